//! What arrives, flow by flow: losses and their bursts, order, latency, jitter.
//!
//! Numbers of a flow and direction go up by one from 0, so whatever is missing at the end was lost.

use std::collections::VecDeque;

use hdrhistogram::Histogram;

use super::mos;
use crate::results::{Mos, Second, Spread, Stream, histogram};

/// Datagrams that brought a new highest number, of which so many are remembered to tell a reordering's extent.
const MAXIMA: usize = 1024;
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;

/// Which numbers of a flow have come, and how.
#[derive(Default)]
struct Flow {
    stream: usize,
    seen: Vec<u64>,
    /// One more than the highest number that has come.
    next: u32,
    /// Datagrams that have come.
    arrived: u64,
    /// Numbers that were the highest when they came, and how many datagrams had come before: oldest first.
    maxima: VecDeque<(u32, u64)>,
    /// Of the last datagram.
    transit_ns: Option<i64>,
    jitter_ns: f64,
    /// Greatest latency.
    slowest_ns: u64,
}

impl Flow {
    /// Whether the number is new.
    fn mark(&mut self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, 1u64 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let fresh = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        fresh
    }

    fn has(&self, number: u32) -> bool {
        self.seen.get(number as usize / 64).is_some_and(|word| word & 1 << (number % 64) != 0)
    }

    /// RFC 4737, 4.2.1: how many datagrams came since the first that overtook this one.
    fn extent(&self, number: u32) -> u64 {
        let first = self.maxima.partition_point(|(highest, _)| *highest < number);
        self.maxima.get(first).map_or(MAXIMA as u64, |(_, before)| self.arrived - before)
    }
}

/// What a stream counts.
struct Counts {
    delivered: u64,
    duplicated: u64,
    reordered: u64,
    bytes: u64,
    latency: Histogram<u64>,
    jitter: Histogram<u64>,
    extent: Histogram<u64>,
}

impl Counts {
    fn new() -> Counts {
        let [latency, jitter, extent] = [(); 3].map(|()| histogram());
        Counts { delivered: 0, duplicated: 0, reordered: 0, bytes: 0, latency, jitter, extent }
    }
}

/// A second of a run.
struct Tick {
    delivered: u64,
    bytes: u64,
    latency: Histogram<u64>,
}

/// One direction of all flows.
pub struct Recorder {
    flows: Vec<Flow>,
    streams: Vec<Counts>,
    seconds: Vec<Tick>,
}

/// A datagram that came.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Its flow.
    pub flow: usize,
    /// Its number.
    pub number: u32,
    /// When it was to leave, in nanoseconds since the run began.
    pub intended_ns: u64,
    /// When it came.
    pub now_ns: u64,
    /// Its bytes.
    pub len: usize,
}

impl Recorder {
    /// Of flows that belong to these streams.
    pub fn new(streams: usize, stream_of: impl Iterator<Item = usize>) -> Recorder {
        Recorder {
            flows: stream_of.map(|stream| Flow { stream, ..Flow::default() }).collect(),
            streams: (0..streams).map(|_| Counts::new()).collect(),
            seconds: Vec::new(),
        }
    }

    /// Counts one. False if its flow is none of ours, or it has come before.
    pub fn arrived(&mut self, arrival: Arrival) -> bool {
        let Arrival { flow, number, intended_ns, now_ns, len } = arrival;
        let Some(flow) = self.flows.get_mut(flow) else { return false };
        let stream = &mut self.streams[flow.stream];
        if !flow.mark(number) {
            stream.duplicated += 1;
            return false;
        }
        if number >= flow.next {
            flow.next = number + 1;
            if flow.maxima.len() == MAXIMA {
                flow.maxima.pop_front();
            }
            flow.maxima.push_back((number, flow.arrived));
        } else {
            stream.reordered += 1;
            stream.extent.saturating_record(flow.extent(number));
        }
        flow.arrived += 1;
        let latency = now_ns.saturating_sub(intended_ns);
        stream.delivered += 1;
        stream.bytes += len as u64;
        stream.latency.saturating_record(latency.max(1));
        flow.slowest_ns = flow.slowest_ns.max(latency);
        // RFC 3550, 6.4.1, without its division of time into a clock's units.
        if let Some(before) = flow.transit_ns.replace(latency as i64) {
            let difference = (latency as i64 - before).abs() as f64;
            flow.jitter_ns += (difference - flow.jitter_ns) / 16.0;
            stream.jitter.saturating_record((flow.jitter_ns as u64).max(1));
        }
        let second = (intended_ns / SECOND) as usize;
        // A day is beyond all that is offered; what claims more is no datagram of ours.
        if second < 86_400 {
            while self.seconds.len() <= second {
                let latency = Histogram::new_with_bounds(1, 60 * SECOND, 2).expect("bounds that the crate takes");
                self.seconds.push(Tick { delivered: 0, bytes: 0, latency });
            }
            let tick = &mut self.seconds[second];
            tick.delivered += 1;
            tick.bytes += len as u64;
            tick.latency.saturating_record(latency.max(1));
        }
        true
    }

    /// The latest second that is over, for whoever looks on.
    pub fn last_second(&self, now_ns: u64) -> Option<Second> {
        let at = ((now_ns / SECOND) as usize).checked_sub(1)?;
        self.seconds.get(at).map(|tick| told(tick, 0))
    }

    /// The streams and seconds, given how many of each flow and in each second were sent, and how many of each stream
    /// were refused.
    pub fn finish(self, sent: &Sent, names: &[StreamName]) -> (Vec<Stream>, Vec<Second>) {
        let streams = self.streams.into_iter().zip(names).enumerate().map(|(at, (counts, name))| {
            let flows = || self.flows.iter().zip(&sent.numbers).filter(|(flow, _)| flow.stream == at);
            let (mut bursts, mut calls) = (std::collections::BTreeMap::<u64, u64>::new(), Vec::new());
            for (flow, sent) in flows() {
                let mut burst = 0;
                for number in 0..=*sent {
                    if number < *sent && !flow.has(number) {
                        burst += 1;
                    } else if burst > 0 {
                        *bursts.entry(burst).or_default() += 1;
                        burst = 0;
                    }
                }
                let lost = u64::from(*sent).saturating_sub(flow.arrived) as f64 / f64::from((*sent).max(1));
                calls.push(mos::of_call(flow.slowest_ns as f64 / 1e6, lost));
            }
            let all: u64 = flows().map(|(_, sent)| u64::from(*sent)).sum();
            let score = (name.call && !calls.is_empty()).then(|| Mos {
                mean: calls.iter().sum::<f64>() / calls.len() as f64,
                worst: calls.iter().copied().fold(f64::INFINITY, f64::min),
            });
            Stream {
                profile: name.profile.clone(),
                direction: name.direction.to_owned(),
                flows: flows().count(),
                sent: all,
                refused: sent.refused.get(at).copied().unwrap_or(0),
                delivered: counts.delivered,
                duplicated: counts.duplicated,
                reordered: counts.reordered,
                lost: all.saturating_sub(counts.delivered),
                bytes: counts.bytes,
                loss_bursts: bursts.into_iter().collect(),
                latency: Spread::of_times(&counts.latency),
                round_trip: None,
                jitter: Spread::of_times(&counts.jitter),
                reorder_extent: (counts.reordered > 0).then(|| Spread::of_numbers(&counts.extent)),
                mos: score,
            }
        });
        let streams = streams.collect();
        let seconds = (0..sent.seconds.len().max(self.seconds.len())).map(|at| {
            let sent = sent.seconds.get(at).copied().unwrap_or(0);
            self.seconds.get(at).map_or(Second { sent, ..Second::default() }, |tick| told(tick, sent))
        });
        let seconds = seconds.collect();
        (streams, seconds)
    }
}

/// What was sent in one direction.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// Of each flow.
    pub numbers: Vec<u32>,
    /// In each second.
    pub seconds: Vec<u64>,
    /// Of each stream: what the kernel refused.
    pub refused: Vec<u64>,
}

impl Sent {
    /// One more of `flow`; its number.
    pub fn count(&mut self, flow: usize, at_ns: u64) -> u32 {
        let second = (at_ns / SECOND) as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, 0);
        }
        self.seconds[second] += 1;
        self.numbers[flow] += 1;
        self.numbers[flow] - 1
    }

    /// The last of `flow` was refused after all.
    pub fn refuse(&mut self, flow: usize, stream: usize, at_ns: u64) {
        self.seconds[(at_ns / SECOND) as usize] -= 1;
        self.numbers[flow] -= 1;
        self.refused[stream] += 1;
    }
}

/// What a stream is called.
#[derive(Clone, Debug)]
pub struct StreamName {
    /// Its profile.
    pub profile: String,
    /// `forward` or `backward`.
    pub direction: &'static str,
    /// Whether it is calls.
    pub call: bool,
}

fn told(tick: &Tick, sent: u64) -> Second {
    let at = |quantile| tick.latency.value_at_quantile(quantile) as f64 / 1000.0;
    Second {
        sent,
        delivered: tick.delivered,
        bytes: tick.bytes,
        p50_us: at(0.5),
        p99_us: at(0.99),
        max_us: tick.latency.max() as f64 / 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Vec<StreamName> {
        vec![StreamName { profile: "even".into(), direction: "forward", call: true }]
    }

    /// Numbers in the order of their arrival, one each millisecond, each 10 ms after it was to leave.
    fn record(numbers: &[u32], sent: u32) -> Stream {
        let mut recorder = Recorder::new(1, [0].into_iter());
        for (i, number) in numbers.iter().enumerate() {
            let now_ns = (i as u64 + 10) * 1_000_000;
            recorder.arrived(Arrival { flow: 0, number: *number, intended_ns: i as u64 * 1_000_000, now_ns, len: 100 });
        }
        let sent = Sent { numbers: vec![sent], seconds: vec![sent.into()], refused: vec![0] };
        recorder.finish(&sent, &name()).0.remove(0)
    }

    #[test]
    fn losses_are_told_by_the_length_of_their_bursts() {
        let stream = record(&[0, 1, 3, 4, 8, 9], 12);
        assert_eq!((stream.delivered, stream.lost), (6, 6));
        assert_eq!(stream.loss_bursts, [(1, 1), (2, 1), (3, 1)]);
    }

    #[test]
    fn an_extent_counts_what_came_since_the_first_that_overtook() {
        // RFC 4737, 4.2.1: number 2 comes behind 3, 4 and 5.
        let stream = record(&[0, 1, 3, 4, 5, 2, 6, 6], 7);
        assert_eq!((stream.reordered, stream.duplicated, stream.lost), (1, 1, 0));
        assert_eq!(stream.reorder_extent.unwrap().max, 3.0);
    }

    #[test]
    fn an_even_stream_has_no_jitter_and_one_that_swings_has_its_mean_deviation() {
        let even = record(&[0, 1, 2, 3], 4);
        assert!(even.jitter.max <= 0.001, "{:?}", even.jitter);
        let mut recorder = Recorder::new(1, [0].into_iter());
        for number in 0..2000u32 {
            let intended_ns = u64::from(number) * 20_000_000;
            let late = if number % 2 == 0 { 1_000_000 } else { 3_000_000 };
            recorder.arrived(Arrival { flow: 0, number, intended_ns, now_ns: intended_ns + late, len: 100 });
        }
        let sent = Sent { numbers: vec![2000], seconds: vec![], refused: vec![0] };
        let (streams, seconds) = recorder.finish(&sent, &name());
        // Every difference is 2 ms.
        assert!((streams[0].jitter.p50 - 2000.0).abs() < 20.0, "{:?}", streams[0].jitter);
        assert_eq!((seconds.len(), seconds[7].delivered), (40, 50));
        assert!((seconds[7].max_us - 3000.0).abs() < 50.0);
        assert!(streams[0].mos.unwrap().worst > 4.3);
    }

    #[test]
    fn what_belongs_to_no_flow_counts_for_nothing() {
        let mut recorder = Recorder::new(1, [0].into_iter());
        assert!(!recorder.arrived(Arrival { flow: 7, number: 0, intended_ns: 0, now_ns: 1, len: 100 }));
        assert!(recorder.arrived(Arrival { flow: 0, number: 0, intended_ns: u64::MAX / 2, now_ns: 1, len: 100 }));
        assert_eq!(recorder.finish(&Sent { numbers: vec![1], ..Sent::default() }, &name()).1.len(), 0);
    }
}
