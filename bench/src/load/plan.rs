//! All that a run sends: flows with their sources, in order of time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::header;
use super::profile::{Arrivals, Lengths, Plain, Profile, Source, fork, seeded};
use super::record::StreamName;

/// A flow: a socket, and what it sends and gets.
pub struct Flow {
    /// Which kind, in [`Plan::kinds`].
    pub kind: usize,
    /// To the destination, and from there.
    pub sources: [Option<Box<dyn Source>>; 2],
}

/// A kind of flows: a profile, a plain load, a trace.
#[derive(Clone, Debug)]
pub struct Kind {
    /// What it is called.
    pub name: String,
    /// Whether it is calls.
    pub call: bool,
}

/// What a run sends.
pub struct Plan {
    /// Kinds of flows.
    pub kinds: Vec<Kind>,
    /// Its flows.
    pub flows: Vec<Flow>,
    /// What is due later is not sent.
    pub time: Duration,
    /// Whether the destination sends every datagram back.
    pub answers: bool,
}

/// A plain load.
#[derive(Clone, Debug)]
pub struct Even {
    /// Its flows.
    pub flows: usize,
    /// Datagrams a second, over all of them.
    pub rate: f64,
    /// How they follow each other.
    pub arrivals: Arrivals,
    /// Their bytes.
    pub lengths: Lengths,
}

impl Plan {
    /// A plain load.
    pub fn even(even: &Even, time: Duration, answers: bool, seed: u64) -> Plan {
        let mut rng = seeded(seed);
        let flow = |flow| {
            let Even { flows, rate, arrivals, lengths } = even;
            let source = Plain::new(fork(&mut rng), *arrivals, lengths.clone(), *rate, flow, *flows);
            Flow { kind: 0, sources: [Some(Box::new(source)), None] }
        };
        let flows = (0..even.flows).map(flow).collect();
        Plan { kinds: vec![Kind { name: "even".into(), call: false }], flows, time, answers }
    }

    /// Profiles together.
    pub fn profiles(profiles: &[Profile], time: Duration, answers: bool, seed: u64) -> Plan {
        let mut rng = seeded(seed);
        let (mut kinds, mut flows) = (Vec::<Kind>::new(), Vec::new());
        for profile in profiles {
            let name = profile.name.as_str();
            let kind = kinds.iter().position(|kind| kind.name == name).unwrap_or_else(|| {
                kinds.push(Kind { name: name.into(), call: profile.name == super::profile::Name::Voip });
                kinds.len() - 1
            });
            flows.extend((0..profile.flows).map(|_| Flow { kind, sources: profile.name.sources(&mut rng) }));
        }
        Plan { kinds, flows, time, answers }
    }

    /// What one direction is called, kind by kind.
    pub fn names(&self, direction: &'static str) -> Vec<StreamName> {
        let name = |kind: &Kind| StreamName { profile: kind.name.clone(), direction, call: kind.call };
        self.kinds.iter().map(name).collect()
    }

    /// What is sent in one direction, 0 to the destination and 1 from there; its sources are taken out.
    pub fn queue(&mut self, direction: usize) -> Queue {
        let limit_ns = self.time.as_nanos() as u64;
        let sources = self.flows.iter_mut().map(|flow| flow.sources[direction].take()).collect();
        Queue::new(sources, limit_ns)
    }
}

/// A datagram that is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// When, in nanoseconds since the run began.
    pub at_ns: u64,
    /// Its flow.
    pub flow: usize,
    /// Its bytes.
    pub len: usize,
}

/// Datagrams of many flows, in order of time.
pub struct Queue {
    sources: Vec<Option<Box<dyn Source>>>,
    heap: BinaryHeap<Reverse<(u64, usize, usize)>>,
    limit_ns: u64,
}

impl Queue {
    fn new(sources: Vec<Option<Box<dyn Source>>>, limit_ns: u64) -> Queue {
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

    /// The next one.
    pub fn peek(&self) -> Option<Due> {
        self.heap.peek().map(|Reverse((at_ns, flow, len))| Due { at_ns: *at_ns, flow: *flow, len: *len })
    }

    /// Takes the next one.
    pub fn pop(&mut self) -> Option<Due> {
        let Reverse((at_ns, flow, len)) = self.heap.pop()?;
        self.refill(flow);
        Some(Due { at_ns, flow, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_in_order_of_time_and_ends_in_time() {
        let even = Even { flows: 7, rate: 700.0, arrivals: Arrivals::Poisson, lengths: Lengths::fixed(100) };
        let mut plan = Plan::even(&even, Duration::from_secs(2), false, 1);
        let mut queue = plan.queue(0);
        let all: Vec<Due> = std::iter::from_fn(|| queue.pop()).collect();
        assert!((1200..1600).contains(&all.len()), "{}", all.len());
        assert!(all.is_sorted_by_key(|due| due.at_ns) && all.iter().all(|due| due.at_ns < 2_000_000_000));
        assert!(plan.queue(1).pop().is_none());
    }

    #[test]
    fn a_seed_draws_the_same_again() {
        let draw = |seed| {
            let profiles = ["voip:3".parse().unwrap(), "game:2".parse().unwrap()];
            let mut queue = Plan::profiles(&profiles, Duration::from_secs(1), false, seed).queue(1);
            std::iter::from_fn(move || queue.pop()).collect::<Vec<Due>>()
        };
        assert_eq!(draw(4), draw(4));
        assert_ne!(draw(4), draw(5));
    }
}
