//! What a node says of itself: its ledger, its batches, its tables. One type for the status socket,
//! for `--json`, and for people.
//!
//! Owns names and form of that JSON; whoever reads it may rely on them. Counts nothing itself.
//!
//! Neighbours: [`crate::runtime::node`] fills it, [`crate::runtime::status`] and the command pass it on.

use std::collections::BTreeMap;

use dataplane::histogram::Histogram;
use dataplane::latency::{Latency, Profile};
use dataplane::ledger::{DropReason, Ledger, Tally};
use dataplane::per_direction::PerDirection;
use dataplane::socket::backend::Io;
use serde::{Deserialize, Serialize};

use crate::config::{NodeRole, node_name};

/// All that a node says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// What it is.
    pub role: NodeRole,
    /// Entry 0, then the mixes, then the exit.
    pub index: usize,
    /// Where every packet went.
    pub ledger: LedgerReport,
    /// Releases of its pools; turns with cells on entry and exit.
    pub batches: u64,
    /// Cells in one of them, on average.
    pub mean_batch: f64,
    /// Distinct channels in one of them, on average.
    pub distinct_channels_mean: f64,
    /// The largest of them, in cells.
    pub largest_batch: u64,
    /// How many of them had so many cells: the most that counts here, and how many; only what happened.
    pub batch_sizes: Vec<(u64, u64)>,
    /// How long cells stay.
    pub latency_us: LatencyReport,
    /// Messages of the kernel's that brought cells, and that took them away: a burst of cells counts once.
    pub messages: Messages,
    /// Datagrams that the kernel dropped before the node saw them; in no ledger.
    pub kernel_drops: u64,
    /// Links now.
    pub links: u64,
    /// Open channels now.
    pub channels: u64,
    /// Flows now.
    pub flows: u64,
    /// Client sockets (entry) or application sockets (exit) now.
    pub sockets: u64,
    /// Buffers that nobody holds, of how many.
    pub buffers: Buffers,
    /// Handshakes and setups.
    pub handshakes: Handshakes,
    /// What control refused, by reason; only what happened.
    pub refused: BTreeMap<String, u64>,
    /// Turns of the worker.
    pub turns: u64,
    /// Those after which it had nothing to do and slept.
    pub sleeps: u64,
    /// Since the start.
    pub uptime_s: f64,
    /// Processor time of the node's process since then.
    pub cpu_s: f64,
    /// The AEAD engine in use.
    pub engine: String,
    /// How cells get into the kernel: `mmsg` or `uring`.
    pub io: String,
}

/// Where every packet went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerReport {
    /// Cells.
    pub cells: PairReport,
    /// Datagrams, on entry and exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datagrams: Option<PairReport>,
}

/// Both directions of one unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairReport {
    /// Towards the exit.
    pub forward: TallyReport,
    /// Towards the entry.
    pub backward: TallyReport,
}

/// Counters of one unit in one direction:
/// received + injected = sent + send_errors + sum(dropped) + consumed + held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TallyReport {
    /// Came in.
    pub received: u64,
    /// Made here.
    pub injected: u64,
    /// The kernel took it.
    pub sent: u64,
    /// The kernel refused it.
    pub send_errors: u64,
    /// Dropped, by reason; only what happened.
    pub dropped: BTreeMap<String, u64>,
    /// Handed over: to control, or to the other unit.
    pub consumed: u64,
    /// Inside the node.
    pub held: u64,
    /// Whether the sum is right.
    pub closed: bool,
}

/// How long cells stay in the node, from the turn that received them to the end of the one that sent them, in
/// microseconds. Where datagrams leave, on entry and exit, it is those.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// Towards the exit.
    pub forward: StayReport,
    /// Towards the entry.
    pub backward: StayReport,
}

/// How long the cells of one direction stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StayReport {
    /// In the pool, until it was due: what mixing costs. On mixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Distribution>,
    /// All the rest: what eddy costs.
    pub node: Distribution,
    /// Both.
    pub total: Distribution,
}

/// How numbers are distributed. Quantiles are at most an eighth too high.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// Half are not larger.
    pub p50: f64,
    /// Nine in ten are not larger.
    pub p90: f64,
    /// 99 in a hundred are not larger.
    pub p99: f64,
    /// 999 in a thousand are not larger.
    pub p999: f64,
    /// The largest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// The largest number that a bucket takes, and how many are in it: all buckets that are not empty.
    pub buckets: Vec<(f64, u64)>,
}

impl From<&Histogram> for Distribution {
    /// Of nanoseconds, in microseconds.
    fn from(nanos: &Histogram) -> Distribution {
        let us = |nanos: u64| nanos as f64 / 1e3;
        Distribution {
            count: nanos.count(),
            p50: us(nanos.quantile(0.5)),
            p90: us(nanos.quantile(0.9)),
            p99: us(nanos.quantile(0.99)),
            p999: us(nanos.quantile(0.999)),
            max: us(nanos.max()),
            mean: us(nanos.mean().round() as u64),
            buckets: nanos.buckets().map(|(upper, count)| (us(upper), count)).collect(),
        }
    }
}

impl StayReport {
    fn new(role: NodeRole, latency: &Latency) -> StayReport {
        StayReport {
            pool: (role == NodeRole::Mix).then(|| (&latency.pool).into()),
            node: (&latency.node).into(),
            total: (&latency.total).into(),
        }
    }
}

/// Messages on link sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// Came in.
    pub received: u64,
    /// The kernel took it.
    pub sent: u64,
    /// Whether cells leave in GSO bursts.
    pub gso: bool,
}

/// A node's buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffers {
    /// Nobody holds them.
    pub free: u64,
    /// All.
    pub total: u64,
}

/// What control has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handshakes {
    /// First messages sent.
    pub started: u64,
    /// Completed.
    pub done: u64,
    /// Setups begun (entry) or passed on (hops).
    pub setups: u64,
    /// Channels opened.
    pub channels_opened: u64,
    /// Keepalives sent.
    pub keepalives: u64,
    /// Control cells accepted.
    pub cells: u64,
    /// Channels set up and not yet acknowledged.
    pub half_open: u64,
}

impl From<&Tally> for TallyReport {
    fn from(tally: &Tally) -> TallyReport {
        let dropped = DropReason::ALL.iter().map(|why| (why.name().to_owned(), tally.drops(*why)));
        TallyReport {
            received: tally.received,
            injected: tally.injected,
            sent: tally.sent,
            send_errors: tally.send_errors,
            dropped: dropped.filter(|(_, count)| *count > 0).collect(),
            consumed: tally.consumed,
            held: tally.held,
            closed: tally.closed(),
        }
    }
}

impl From<&PerDirection<Tally>> for PairReport {
    fn from(pair: &PerDirection<Tally>) -> PairReport {
        PairReport { forward: (&pair.forward).into(), backward: (&pair.backward).into() }
    }
}

impl TallyReport {
    /// Dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
}

impl LedgerReport {
    /// Every unit and direction with its name.
    pub fn tallies(&self) -> impl Iterator<Item = (&'static str, &'static str, &TallyReport)> {
        let cells = [("cells", "forward", &self.cells.forward), ("cells", "backward", &self.cells.backward)];
        let datagrams = self.datagrams.iter();
        let datagrams =
            datagrams.flat_map(|d| [("datagrams", "forward", &d.forward), ("datagrams", "backward", &d.backward)]);
        cells.into_iter().chain(datagrams)
    }

    /// Whether every sum is right.
    pub fn closed(&self) -> bool {
        self.tallies().all(|(_, _, tally)| tally.closed)
    }
}

impl From<(NodeRole, &Ledger)> for LedgerReport {
    fn from((role, ledger): (NodeRole, &Ledger)) -> LedgerReport {
        let datagrams = (role != NodeRole::Mix).then(|| (&ledger.datagrams).into());
        LedgerReport { cells: (&ledger.cells).into(), datagrams }
    }
}

impl NodeReport {
    /// What the data plane counted; control's part, kernel drops, times and engine are the node's to
    /// fill in.
    pub fn new(role: NodeRole, index: usize, ledger: &Ledger, profile: &Profile) -> NodeReport {
        let batches = ledger.batches;
        let mean = |sum: u64| if batches.count == 0 { 0.0 } else { sum as f64 / batches.count as f64 };
        NodeReport {
            role,
            index,
            ledger: (role, ledger).into(),
            batches: batches.count,
            mean_batch: mean(batches.cells),
            distinct_channels_mean: mean(batches.channels),
            largest_batch: batches.largest,
            batch_sizes: profile.batches.buckets().collect(),
            latency_us: LatencyReport {
                forward: StayReport::new(role, &profile.latency.forward),
                backward: StayReport::new(role, &profile.latency.backward),
            },
            messages: Messages {
                received: ledger.traffic.received,
                sent: ledger.traffic.sent,
                gso: ledger.traffic.gso,
            },
            kernel_drops: 0,
            links: ledger.gauges.links,
            channels: ledger.gauges.channels,
            flows: ledger.gauges.flows,
            sockets: ledger.gauges.sockets,
            buffers: Buffers { free: ledger.buffers.0, total: ledger.buffers.1 },
            handshakes: Handshakes::default(),
            refused: BTreeMap::new(),
            turns: 0,
            sleeps: 0,
            uptime_s: 0.0,
            cpu_s: 0.0,
            engine: String::new(),
            io: if ledger.traffic.uring { Io::Uring } else { Io::Mmsg }.to_string(),
        }
    }

    /// Adds what control counted.
    #[must_use]
    pub fn with_control(mut self, counters: &control::Counters, half_open: usize) -> NodeReport {
        self.handshakes = Handshakes {
            started: counters.handshakes_started,
            done: counters.handshakes_done,
            setups: counters.setups,
            channels_opened: counters.channels_opened,
            keepalives: counters.keepalives,
            cells: counters.cells,
            half_open: half_open as u64,
        };
        let refusals = counters.refusals().filter(|(_, count)| *count > 0);
        self.refused = refusals.map(|(why, count)| (why.to_owned(), count)).collect();
        self
    }

    /// How the node is called.
    pub fn name(&self) -> String {
        node_name(self.role, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NodeReport {
        let mut ledger = Ledger::default();
        ledger.cells.forward.received = 5;
        ledger.cells.forward.sent = 3;
        ledger.cells.forward.drop_many(DropReason::Replay, 2);
        ledger.batches.add(3, 2);
        let mut profile = Profile::default();
        profile.batches.add(3, 1);
        profile.latency.forward.add(4_200_000, 35_000, 2);
        profile.latency.forward.add(100_000, 1_234_567, 1);
        NodeReport::new(NodeRole::Mix, 2, &ledger, &profile)
    }

    #[test]
    fn json_has_the_promised_names_and_only_drops_that_happened() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["role"], "mix");
        assert_eq!(json["index"], 2);
        let tally = &json["ledger"]["cells"]["forward"];
        for name in ["received", "injected", "sent", "send_errors", "consumed", "held"] {
            assert!(tally[name].is_u64(), "{name}");
        }
        assert_eq!(tally["closed"], true);
        assert_eq!(tally["dropped"], serde_json::json!({"replay": 2}));
        assert!(json["ledger"].get("datagrams").is_none());
        assert_eq!(json["mean_batch"], 3.0);
        assert_eq!(json["distinct_channels_mean"], 2.0);
        assert_eq!(json["batch_sizes"], serde_json::json!([[3, 1]]));
        let forward = &json["latency_us"]["forward"];
        assert_eq!(forward["pool"]["count"], 3);
        assert_eq!((&forward["pool"]["max"], &forward["node"]["mean"]), (&4200.0.into(), &434.856.into()));
        assert!(forward["total"]["p50"].as_f64().is_some_and(|us| (4235.0..=4235.0 * 1.125).contains(&us)));
        assert_eq!(forward["node"]["buckets"].as_array().map(Vec::len), Some(2));
        assert_eq!(json["latency_us"]["backward"]["total"]["count"], 0);
        let entry = NodeReport::new(NodeRole::Entry, 0, &Ledger::default(), &Profile::default());
        assert!(serde_json::to_value(&entry).unwrap()["latency_us"]["forward"].get("pool").is_none());
        assert!(serde_json::to_value(entry).unwrap()["ledger"]["datagrams"]["backward"]["closed"] == true);
    }

    #[test]
    fn a_report_survives_its_own_json() {
        let report = sample();
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<NodeReport>(&json).unwrap(), report);
    }
}
