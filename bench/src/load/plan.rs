//! Everything that a run sends: flows with their sources, and a queue in order of time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;

use super::even::{Even, EvenSource};
use super::header;
use super::profile::Profile;
use super::record::StreamName;
use super::source::{Source, Sources, seeded};
use crate::format::direction_name;

/// A flow: a socket, and what it sends and receives.
pub(crate) struct Flow {
    /// Index into [`Plan::groups`].
    pub(crate) group: usize,
    pub(crate) sources: Sources,
}

/// Flows that are reported together: a profile, an even load, or a trace.
#[derive(Clone, Debug)]
pub(crate) struct FlowGroup {
    pub(crate) name: String,
    /// The flows are calls, so call quality is estimated.
    pub(crate) is_call: bool,
}

pub(crate) struct Plan {
    pub(crate) groups: Vec<FlowGroup>,
    pub(crate) flows: Vec<Flow>,
    /// Datagrams that are due later are not sent.
    pub(crate) time: Duration,
    /// The destination sends every datagram back.
    pub(crate) answers: bool,
}

impl Plan {
    pub(crate) fn even(even: &Even, time: Duration, answers: bool, seed: u64) -> Plan {
        let mut rng = seeded(seed);
        let flow = |flow| {
            let source = EvenSource::new(ChaCha20Rng::from_rng(&mut rng), even, flow);
            Flow { group: 0, sources: Sources { forward: Some(Box::new(source)), backward: None } }
        };
        let flows = (0..even.flows).map(flow).collect();
        Plan { groups: vec![FlowGroup { name: "even".into(), is_call: false }], flows, time, answers }
    }

    /// Several profiles at the same time.
    pub(crate) fn profiles(profiles: &[Profile], time: Duration, answers: bool, seed: u64) -> Plan {
        let mut rng = seeded(seed);
        let (mut groups, mut flows) = (Vec::<FlowGroup>::new(), Vec::new());
        for profile in profiles {
            let name = profile.application.as_str();
            let group = groups.iter().position(|group| group.name == name).unwrap_or_else(|| {
                groups.push(FlowGroup { name: name.into(), is_call: profile.application.is_call() });
                groups.len() - 1
            });
            flows.extend((0..profile.flows).map(|_| Flow { group, sources: profile.application.sources(&mut rng) }));
        }
        Plan { groups, flows, time, answers }
    }

    /// The names of one direction's streams, one for each group.
    pub(crate) fn names(&self, direction: Direction) -> Vec<StreamName> {
        let direction = direction_name(direction);
        let name = |group: &FlowGroup| StreamName { profile: group.name.clone(), direction, is_call: group.is_call };
        self.groups.iter().map(name).collect()
    }

    /// Takes out the sources of one direction.
    pub(crate) fn queue(&mut self, direction: Direction) -> Queue {
        let limit_ns = self.time.as_nanos() as u64;
        let sources = self.flows.iter_mut().map(|flow| flow.sources[direction].take()).collect();
        Queue::new(sources, limit_ns)
    }
}

/// A datagram to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    /// Since the run began.
    pub(crate) at_ns: u64,
    pub(crate) flow: usize,
    pub(crate) len: usize,
}

/// Datagrams of many flows, in order of time.
pub(crate) struct Queue {
    sources: Vec<Option<Box<dyn Source>>>,
    /// The next datagram of each flow: due, flow, length.
    heap: BinaryHeap<Reverse<(u64, usize, usize)>>,
    limit_ns: u64,
}

impl Queue {
    pub(crate) fn new(sources: Vec<Option<Box<dyn Source>>>, limit_ns: u64) -> Queue {
        let mut queue = Queue { heap: BinaryHeap::with_capacity(sources.len()), sources, limit_ns };
        (0..queue.sources.len()).for_each(|flow| queue.refill(flow));
        queue
    }

    fn refill(&mut self, flow: usize) {
        if let Some((at, len)) = self.sources[flow].as_mut().and_then(|source| source.next())
            && at < self.limit_ns
        {
            self.heap.push(Reverse((at, flow, len.max(header::SHORTEST))));
        }
    }

    pub(crate) fn peek(&self) -> Option<Due> {
        self.heap.peek().map(|Reverse((at_ns, flow, len))| Due { at_ns: *at_ns, flow: *flow, len: *len })
    }

    pub(crate) fn pop(&mut self) -> Option<Due> {
        let Reverse((at_ns, flow, len)) = self.heap.pop()?;
        self.refill(flow);
        Some(Due { at_ns, flow, len })
    }
}

#[cfg(test)]
mod tests {
    use super::super::even::{Arrivals, Lengths};
    use super::*;

    #[test]
    fn queue_is_in_order_of_time_and_ends_in_time() {
        let even = Even { flows: 7, rate: 700.0, arrivals: Arrivals::Poisson, lengths: Lengths::fixed(100) };
        let mut plan = Plan::even(&even, Duration::from_secs(2), false, 1);
        let mut queue = plan.queue(Direction::Forward);
        let all: Vec<Due> = std::iter::from_fn(|| queue.pop()).collect();
        assert!((1200..1600).contains(&all.len()), "{}", all.len());
        assert!(all.is_sorted_by_key(|due| due.at_ns) && all.iter().all(|due| due.at_ns < 2_000_000_000));
        assert!(plan.queue(Direction::Backward).pop().is_none());
    }

    #[test]
    fn same_seed_gives_the_same_plan() {
        let draw = |seed| {
            let profiles = ["voip:3".parse().unwrap(), "game:2".parse().unwrap()];
            let mut queue = Plan::profiles(&profiles, Duration::from_secs(1), false, seed).queue(Direction::Backward);
            std::iter::from_fn(move || queue.pop()).collect::<Vec<Due>>()
        };
        assert_eq!(draw(4), draw(4));
        assert_ne!(draw(4), draw(5));
    }
}
