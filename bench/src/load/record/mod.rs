//! Records what arrives in one direction: losses and their bursts, order, latency, jitter.

mod flow;
mod sent;

use std::collections::BTreeMap;

use eddy::mos;
use hdrhistogram::Histogram;

use self::flow::Flow;
pub(crate) use self::sent::Sent;
use super::source::SECOND;
use crate::results::{Mos, Second, Spread, Stream, histogram};

/// Seconds that are recorded one by one: a day, which is longer than any run.
const SECONDS_MAX: usize = 86_400;

/// Counters of one stream.
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

/// Counters of one second of a run.
struct Tick {
    delivered: u64,
    bytes: u64,
    latency: Histogram<u64>,
}

impl Tick {
    fn new() -> Tick {
        let latency = Histogram::new_with_bounds(1, 60 * SECOND, 2).expect("valid bounds");
        Tick { delivered: 0, bytes: 0, latency }
    }

    fn second(&self, sent: u64) -> Second {
        let at = |quantile| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        Second {
            sent,
            delivered: self.delivered,
            bytes: self.bytes,
            p50_us: at(0.5),
            p99_us: at(0.99),
            max_us: self.latency.max() as f64 / 1000.0,
        }
    }
}

/// One direction of all flows.
pub(crate) struct Recorder {
    flows: Vec<Flow>,
    streams: Vec<Counts>,
    seconds: Vec<Tick>,
}

/// A datagram that arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) flow: usize,
    pub(crate) number: u32,
    /// When it was due, since the run began.
    pub(crate) intended_ns: u64,
    /// When it arrived, since the run began.
    pub(crate) now_ns: u64,
    pub(crate) len: usize,
}

/// Name of a stream.
#[derive(Clone, Debug)]
pub(crate) struct StreamName {
    pub(crate) profile: String,
    /// `forward` or `backward`.
    pub(crate) direction: &'static str,
    /// Call quality is estimated.
    pub(crate) is_call: bool,
}

impl Recorder {
    /// `stream_of` gives the stream of each flow.
    pub(crate) fn new(streams: usize, stream_of: impl Iterator<Item = usize>) -> Recorder {
        Recorder {
            flows: stream_of.map(Flow::of).collect(),
            streams: (0..streams).map(|_| Counts::new()).collect(),
            seconds: Vec::new(),
        }
    }

    /// Counts a datagram. False for an unknown flow or a duplicate.
    pub(crate) fn arrived(&mut self, arrival: Arrival) -> bool {
        let Arrival { flow, number, intended_ns, now_ns, len } = arrival;
        let Some(flow) = self.flows.get_mut(flow) else { return false };
        let stream = &mut self.streams[flow.stream];
        let latency = now_ns.saturating_sub(intended_ns);
        let Some(order) = flow.arrive(number, latency) else {
            stream.duplicated += 1;
            return false;
        };

        stream.delivered += 1;
        stream.bytes += len as u64;
        stream.latency.saturating_record(latency.max(1));
        if let Some(extent) = order.reordered {
            stream.reordered += 1;
            stream.extent.saturating_record(extent);
        }
        if let Some(jitter_ns) = order.jitter_ns {
            stream.jitter.saturating_record(jitter_ns.max(1));
        }

        let second = (intended_ns / SECOND) as usize;
        if second < SECONDS_MAX {
            if self.seconds.len() <= second {
                self.seconds.resize_with(second + 1, Tick::new);
            }
            let tick = &mut self.seconds[second];
            tick.delivered += 1;
            tick.bytes += len as u64;
            tick.latency.saturating_record(latency.max(1));
        }
        true
    }

    /// The latest second that is over, for a progress line.
    pub(crate) fn last_second(&self, now_ns: u64) -> Option<Second> {
        let at = ((now_ns / SECOND) as usize).checked_sub(1)?;
        self.seconds.get(at).map(|tick| tick.second(0))
    }

    /// The streams and seconds, given what was sent.
    pub(crate) fn finish(self, sent: &Sent, names: &[StreamName]) -> (Vec<Stream>, Vec<Second>) {
        let Recorder { flows, streams, seconds } = self;
        let streams = streams.into_iter().zip(names).enumerate().map(|(at, (counts, name))| {
            let of_stream = flows.iter().zip(sent.numbers.iter().copied()).filter(|(flow, _)| flow.stream == at);
            let flows: Vec<(&Flow, u32)> = of_stream.collect();
            finish_stream(counts, name, &flows, sent.refused.get(at).copied().unwrap_or(0))
        });
        let streams = streams.collect();

        let series = (0..sent.seconds.len().max(seconds.len())).map(|at| {
            let sent = sent.seconds.get(at).copied().unwrap_or(0);
            seconds.get(at).map_or(Second { sent, ..Second::default() }, |tick| tick.second(sent))
        });
        (streams, series.collect())
    }
}

/// `flows` are the stream's flows, with how many datagrams each of them sent.
fn finish_stream(counts: Counts, name: &StreamName, flows: &[(&Flow, u32)], refused: u64) -> Stream {
    let sent: u64 = flows.iter().map(|(_, sent)| u64::from(*sent)).sum();
    let mut loss_bursts = BTreeMap::<u64, u64>::new();
    for burst in flows.iter().flat_map(|(flow, sent)| flow.loss_bursts(*sent)) {
        *loss_bursts.entry(burst).or_default() += 1;
    }
    Stream {
        profile: name.profile.clone(),
        direction: name.direction.to_owned(),
        flows: flows.len(),
        sent,
        refused,
        delivered: counts.delivered,
        duplicated: counts.duplicated,
        reordered: counts.reordered,
        lost: sent.saturating_sub(counts.delivered),
        bytes: counts.bytes,
        loss_bursts: loss_bursts.into_iter().collect(),
        latency: Spread::of_times(&counts.latency),
        round_trip: None,
        jitter: Spread::of_times(&counts.jitter),
        reorder_extent: (counts.reordered > 0).then(|| Spread::of_numbers(&counts.extent)),
        mos: (name.is_call && !flows.is_empty()).then(|| call_quality(flows)),
    }
}

fn call_quality(flows: &[(&Flow, u32)]) -> Mos {
    let scores = || flows.iter().map(|(flow, sent)| mos::of_call(flow.slowest_ms(), flow.loss(*sent)));
    Mos { mean: scores().sum::<f64>() / flows.len() as f64, worst: scores().fold(f64::INFINITY, f64::min) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Vec<StreamName> {
        vec![StreamName { profile: "even".into(), direction: "forward", is_call: true }]
    }

    /// Numbers in order of arrival, one each millisecond, each 10 ms after it was due.
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
    fn losses_are_counted_by_burst_length() {
        let stream = record(&[0, 1, 3, 4, 8, 9], 12);
        assert_eq!((stream.delivered, stream.lost), (6, 6));
        assert_eq!(stream.loss_bursts, [(1, 1), (2, 1), (3, 1)]);
    }

    #[test]
    fn reordering_extent_follows_rfc_4737() {
        // RFC 4737, 4.2.1: number 2 arrives after 3, 4 and 5.
        let stream = record(&[0, 1, 3, 4, 5, 2, 6, 6], 7);
        assert_eq!((stream.reordered, stream.duplicated, stream.lost), (1, 1, 0));
        assert_eq!(stream.reorder_extent.unwrap().max, 3.0);
    }

    #[test]
    fn jitter_is_the_mean_deviation_of_latency() {
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
        // Each difference is 2 ms.
        assert!((streams[0].jitter.p50 - 2000.0).abs() < 20.0, "{:?}", streams[0].jitter);
        assert_eq!((seconds.len(), seconds[7].delivered), (40, 50));
        assert!((seconds[7].max_us - 3000.0).abs() < 50.0);
        assert!(streams[0].mos.unwrap().worst > 4.3);
    }

    #[test]
    fn datagram_of_unknown_flow_is_ignored() {
        let mut recorder = Recorder::new(1, [0].into_iter());
        assert!(!recorder.arrived(Arrival { flow: 7, number: 0, intended_ns: 0, now_ns: 1, len: 100 }));
        assert!(recorder.arrived(Arrival { flow: 0, number: 0, intended_ns: u64::MAX / 2, now_ns: 1, len: 100 }));
        assert_eq!(recorder.finish(&Sent { numbers: vec![1], ..Sent::default() }, &name()).1.len(), 0);
    }
}
