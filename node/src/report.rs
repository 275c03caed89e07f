//! The report of a node: its ledger, its releases, its tables. One type for the status socket, for `--json`, and for
//! the tables of the command.
//!
//! Owns the names and the shape of that JSON, which scripts may rely on. Counts nothing itself.
//!
//! Neighbours: [`crate::runtime::node`] fills it, [`crate::runtime::status`] and the command pass it on.

pub mod paced;
pub mod path;

use std::collections::BTreeMap;

use dataplane::Nanos;
use dataplane::histogram::Histogram;
use dataplane::latency::{Latency, Profile};
use dataplane::ledger::{DropReason, Ledger, RoundCounts, Tally};
use dataplane::meter::{Meter, Sums};
use dataplane::per_direction::PerDirection;
use dataplane::socket::backend::Io;
use serde::{Deserialize, Serialize};
use wire::cell::Direction;

use paced::PacedReport;

use crate::ceremony::hex;
use crate::config::{NodeRole, node_name};

/// The report of one node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    pub role: NodeRole,
    /// Position in the chain: 0 for the entry, then the mixes, then the exit.
    pub index: usize,
    /// Number of the class (SPEC 9.1.1), in whose order a chain lists them.
    #[serde(default)]
    pub class_number: u8,
    pub ledger: LedgerReport,
    /// Releases of a mix's pools; turns with cells at entry and exit.
    pub releases: u64,
    /// Mean number of cells in a release.
    pub mean_release: f64,
    /// Cells in the largest release.
    pub largest_release: u64,
    /// Histogram of releases by size: the largest size of a bucket, and the releases in it. Empty buckets are left out.
    pub release_sizes: Vec<(u64, u64)>,
    /// The company of cells in a mix's releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meter: Option<MeterReport>,
    /// Of a paced class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paced: Option<PacedReport>,
    /// Of a hop of a paced class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounds: Option<RoundsReport>,
    pub latency_us: LatencyReport,
    /// Kernel messages that carried cells; a GSO or GRO burst counts once.
    pub messages: Messages,
    /// Datagrams that the kernel dropped before the node read them. They are not in the ledger.
    pub kernel_drops: u64,
    /// Links that exist now, up or not.
    pub links: u64,
    /// Channels that are open now.
    pub channels: u64,
    /// Flows that are open now.
    pub flows: u64,
    /// Clients (entry) or application sockets (exit) that exist now.
    pub sockets: u64,
    pub buffers: Buffers,
    pub handshakes: Handshakes,
    /// Refusals of control by reason; reasons that did not occur are left out.
    pub refused: BTreeMap<String, u64>,
    pub trust: TrustReport,
    /// Turns of all workers.
    pub turns: u64,
    /// Turns after which a worker had nothing to do and slept.
    pub sleeps: u64,
    pub uptime_s: f64,
    /// CPU time of the process.
    pub cpu_s: f64,
    /// Name of the AEAD engine in use.
    pub engine: String,
    /// I/O of link sockets: `mmsg` or `uring`.
    pub io: String,
    /// If the node serves several classes, or another one than the chain's first: the report of each, by its name, as
    /// if the node had no other. All fields above are those of the first one that it serves.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, NodeReport>,
}

/// Nanoseconds in ms.
fn ms(ns: i64) -> f64 {
    ns as f64 / 1e6
}

/// Rounds of a paced class that a hop sent to other hops, in both directions, as it counts them itself
/// (docs/SPEC.md 9.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundsReport {
    pub released: u64,
    /// Those of them with more or fewer cells than the channels of the batch and the slots of the round make.
    pub uneven: u64,
    /// Rounds that did not leave, because the hop woke too late. The next hop fills them.
    pub skipped: u64,
    /// Cells of channels in the released rounds, loops included.
    #[serde(default)]
    pub cells: u64,
}

impl From<RoundCounts> for RoundsReport {
    fn from(RoundCounts { released, uneven, skipped, cells }: RoundCounts) -> RoundsReport {
        RoundsReport { released, uneven, skipped, cells }
    }
}

/// The anonymity meter: how much company cells had in the releases of the last minute.
///
/// It counts channels. It does not say how many flows an observer of both ends confuses (docs/ANONYMITY.md).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeterReport {
    /// Class of the cells.
    pub class: String,
    /// `meter_floor` of the configuration; 0: no alarm.
    pub floor: u32,
    /// Towards the exit.
    pub forward: CompanyReport,
    /// Towards the entry.
    pub backward: CompanyReport,
}

/// The company of cells in the releases of one direction. Without a release all numbers are 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompanyReport {
    /// Releases with a channel's cell in the last 50 to 60 seconds.
    pub releases: u64,
    /// Mean number of cells of channels in a release.
    pub cells: f64,
    /// Mean number of distinct channels in a release.
    pub channels: f64,
    /// Mean Shannon entropy H of the channel of a cell, in bits.
    pub entropy_bits: f64,
    /// 2^H of that mean: the number of equally busy channels that have the same entropy.
    pub effective: f64,
    /// The effective set of the release that had the smallest one.
    pub smallest_effective: f64,
    /// Mean min-entropy, in bits.
    pub min_entropy_bits: f64,
    /// Mean number of networks (/32 of IPv4, /48 of IPv6) of the entries behind a release's channels. At Mix 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<f64>,
    /// The fewest in a release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewest_prefixes: Option<u32>,
    /// True if the effective set is below the floor.
    pub below_floor: bool,
}

/// The ledger: where every packet went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerReport {
    pub cells: PairReport,
    /// Datagrams of applications, at entry and exit.
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
    pub received: u64,
    /// Made by this node: built, unwrapped, or a copy that is sent again.
    pub injected: u64,
    /// Accepted by the kernel.
    pub sent: u64,
    /// Refused by the kernel.
    pub send_errors: u64,
    /// Drops by reason; reasons that did not occur are left out.
    pub dropped: BTreeMap<String, u64>,
    /// Handed to control, or to the other unit.
    pub consumed: u64,
    /// In the node now.
    pub held: u64,
    /// True if the sum holds.
    pub closed: bool,
}

/// Time that cells stay in the node, from the turn that received them to the end of the turn that sent them, in
/// microseconds. In the direction in which a node sends datagrams to applications, the time of these datagrams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyReport {
    /// Towards the exit.
    pub forward: StayReport,
    /// Towards the entry.
    pub backward: StayReport,
}

/// Time that the cells of one direction stay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StayReport {
    /// Time in the pool until the release was due, which is the cost of mixing. At mixes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Distribution>,
    /// The rest, which is the cost of eddy.
    pub node: Distribution,
    /// The sum of both.
    pub total: Distribution,
}

/// Summary of a histogram. Quantiles are at most an eighth too high.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub mean: f64,
    /// The largest number of a bucket, and the count in it. Empty buckets are left out.
    pub buckets: Vec<(f64, u64)>,
}

impl From<&Histogram> for Distribution {
    /// From nanoseconds to microseconds.
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
    pub received: u64,
    pub sent: u64,
    /// Cells leave in GSO bursts.
    pub gso: bool,
}

/// Buffers of cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffers {
    /// Not in use.
    pub free: u64,
    pub total: u64,
}

/// Counters of control.
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
    /// Cookies given, while handshakes need them.
    pub cookies: u64,
    /// Handshake datagrams refused per second for their number, while there is a flood of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flood_per_s: Option<u64>,
    /// Challenges given to the previous hop, whose clock was ahead.
    pub challenges: u64,
    /// Links that kept their address, because their initiator still received there.
    pub moves_refused: u64,
    /// Control cells accepted.
    pub cells: u64,
    /// Of these, setup and ack cells that were not needed.
    pub surplus_cells: u64,
    /// Channels set up and not yet acknowledged.
    pub half_open: u64,
}

/// Descriptors, epochs and bundles, as the node knows them (docs/SPEC.md 7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustReport {
    /// Id of the chain, in hex.
    pub chain: String,
    /// The running interval, by this node's clock.
    pub interval: u64,
    /// The epoch whose setup keys it uses.
    pub epoch: u64,
    /// The newest interval for which all hops have signed.
    pub bundle: Option<u64>,
    /// The bundle of the running interval, or else the newest that is complete.
    pub newest: Option<BundleReport>,
    /// A hop: nothing prevents it from signing.
    pub can_sign: bool,
    /// A hop that was started in an interval which it may have signed before: the first one that it signs, until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signs_from: Option<u64>,
    /// The clock of the neighbour that differs most, minus this one, in milliseconds.
    pub clock_offset_ms: Option<i64>,
    /// Mix 1 first.
    pub hops: Vec<HopReport>,
}

/// A bundle that some hops, or all, have signed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleReport {
    pub interval: u64,
    pub epoch: u64,
    /// The hash that hops sign, in hex.
    pub hash: String,
    /// Mix 1 first.
    pub records: Vec<RecordReport>,
}

/// The record of a hop in a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordReport {
    /// Of the descriptor whose signing key signs it.
    pub revision: u64,
    pub draw: u64,
    /// Its SHA-256, in hex.
    pub hash: String,
    /// The hop has signed the bundle.
    pub has_signed: bool,
}

impl From<&control::trust::BundleStatus> for BundleReport {
    fn from(bundle: &control::trust::BundleStatus) -> BundleReport {
        let record = |record: &control::trust::RecordStatus| RecordReport {
            revision: record.revision,
            draw: record.draw,
            hash: hex(&record.hash),
            has_signed: record.has_signed,
        };
        BundleReport {
            interval: bundle.interval,
            epoch: bundle.epoch,
            hash: hex(&bundle.hash),
            records: bundle.records.iter().map(record).collect(),
        }
    }
}

/// The newest descriptor of a hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HopReport {
    /// 0 if there is none.
    pub revision: u64,
    /// Its end, in seconds since 1970.
    pub not_after: u64,
    /// Lower revisions are revoked.
    pub floor: u64,
    /// All neighbouring hops have this revision.
    pub neighbours_have: bool,
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

    /// True if all sums hold.
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

impl CompanyReport {
    /// From the releases of the last minute.
    fn new(sums: &Sums, floor: u32) -> CompanyReport {
        let bits = sums.entropy_bits().unwrap_or(0.0);
        let effective = if sums.releases > 0 { bits.exp2() } else { 0.0 };
        CompanyReport {
            releases: sums.releases,
            cells: sums.mean_cells().unwrap_or(0.0),
            channels: sums.mean_channels().unwrap_or(0.0),
            entropy_bits: bits,
            effective,
            smallest_effective: sums.smallest_bits().map_or(0.0, f64::exp2),
            min_entropy_bits: sums.min_entropy_bits().unwrap_or(0.0),
            prefixes: sums.mean_prefixes(),
            fewest_prefixes: sums.fewest_prefixes(),
            below_floor: sums.releases > 0 && effective < f64::from(floor),
        }
    }
}

impl MeterReport {
    /// What the meters show at the time `now`.
    pub fn new(class: String, floor: u32, meters: &PerDirection<Meter>, now: Nanos) -> MeterReport {
        let company = |direction| CompanyReport::new(&meters[direction].last_minute(now), floor);
        let (forward, backward) = (company(Direction::Forward), company(Direction::Backward));
        MeterReport { class, floor, forward, backward }
    }

    /// Both directions with their names.
    pub fn directions(&self) -> [(&'static str, &CompanyReport); 2] {
        [("forward", &self.forward), ("backward", &self.backward)]
    }
}

impl NodeReport {
    /// The counters of the data plane. The node fills in those of control, kernel drops, times and engine.
    pub fn new(role: NodeRole, index: usize, ledger: &Ledger, profile: &Profile) -> NodeReport {
        let releases = ledger.releases;
        let mean = |sum: u64| if releases.count == 0 { 0.0 } else { sum as f64 / releases.count as f64 };
        NodeReport {
            role,
            index,
            class_number: 0,
            ledger: (role, ledger).into(),
            releases: releases.count,
            mean_release: mean(releases.cells),
            largest_release: releases.largest,
            release_sizes: profile.releases.buckets().collect(),
            meter: None,
            paced: None,
            rounds: (ledger.rounds != RoundCounts::default()).then(|| ledger.rounds.into()),
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
            buffers: Buffers { free: ledger.buffers.free, total: ledger.buffers.total },
            handshakes: Handshakes::default(),
            refused: BTreeMap::new(),
            trust: TrustReport::default(),
            turns: 0,
            sleeps: 0,
            uptime_s: 0.0,
            cpu_s: 0.0,
            engine: String::new(),
            io: if ledger.traffic.uring { Io::Uring } else { Io::Mmsg }.to_string(),
            classes: BTreeMap::new(),
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
            cookies: counters.cookies,
            flood_per_s: None,
            challenges: counters.challenges,
            moves_refused: counters.moves_refused,
            cells: counters.cells,
            surplus_cells: counters.surplus_cells,
            half_open: half_open as u64,
        };
        let refusals = counters.refusals().filter(|(_, count)| *count > 0);
        self.refused = refusals.map(|(why, count)| (why.to_owned(), count)).collect();
        self
    }

    /// Adds the rate of a flood of handshakes.
    #[must_use]
    pub fn with_flood(mut self, per_s: Option<u64>) -> NodeReport {
        self.handshakes.flood_per_s = per_s;
        self
    }

    /// With the gauges of an earlier report: links, channels, flows and sockets.
    #[must_use]
    pub fn with_gauges_of(mut self, earlier: &NodeReport) -> NodeReport {
        (self.links, self.channels) = (earlier.links, earlier.channels);
        (self.flows, self.sockets) = (earlier.flows, earlier.sockets);
        let classes = std::mem::take(&mut self.classes).into_iter().map(|(name, class)| {
            let class = match earlier.classes.get(&name) {
                Some(earlier) => class.with_gauges_of(earlier),
                None => class,
            };
            (name, class)
        });
        self.classes = classes.collect();
        self
    }

    /// Adds what the node holds of descriptors and bundles.
    #[must_use]
    pub fn with_trust(mut self, chain: &[u8; 32], trust: &control::trust::TrustStatus) -> NodeReport {
        let hop = |hop: &control::trust::HopStatus| HopReport {
            revision: hop.revision,
            not_after: hop.not_after,
            floor: hop.floor,
            neighbours_have: hop.neighbours_have,
        };
        self.trust = TrustReport {
            chain: hex(chain),
            interval: trust.interval,
            epoch: trust.epoch,
            bundle: trust.bundle,
            newest: trust.newest.as_ref().map(BundleReport::from),
            can_sign: trust.can_sign,
            signs_from: Some(trust.signs_from).filter(|from| *from > trust.interval),
            clock_offset_ms: trust.clock_offset_ms,
            hops: trust.hops.iter().map(hop).collect(),
        };
        self
    }

    /// The node's name: `entry`, `mix1`, `exit`.
    pub fn name(&self) -> String {
        node_name(self.role, self.index)
    }
}

#[cfg(test)]
mod tests {
    use dataplane::stage::pool::company::{Bits, Company};

    use super::*;

    fn sample() -> NodeReport {
        let mut ledger = Ledger::default();
        ledger.cells.forward.received = 5;
        ledger.cells.forward.sent = 3;
        ledger.cells.forward.drop_many(DropReason::Replay, 2);
        ledger.releases.add(3);
        let mut profile = Profile::default();
        profile.releases.add(3, 1);
        profile.latency.forward.add(4_200_000, 35_000, 2);
        profile.latency.forward.add(100_000, 1_234_567, 1);
        NodeReport::new(NodeRole::Mix, 2, &ledger, &profile)
    }

    #[test]
    fn json_has_stable_names_and_only_nonzero_drops() {
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
        assert_eq!(json["mean_release"], 3.0);
        assert_eq!(json["release_sizes"], serde_json::json!([[3, 1]]));
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
    fn meter_is_below_its_floor_by_the_mean_entropy() {
        let mut meters: PerDirection<Meter> = PerDirection::default();
        for entropy in [4 << 16, 2 << 16] {
            let company = Company { cells: 20, channels: 16, entropy: Bits(entropy), ..Company::default() };
            meters.forward.add(&company, 0);
        }
        let report = |floor| MeterReport::new("S".to_owned(), floor, &meters, 0);
        let CompanyReport { releases, entropy_bits, effective, smallest_effective, .. } = report(8).forward;
        assert_eq!((releases, entropy_bits, effective, smallest_effective), (2, 3.0, 8.0, 4.0));
        assert_eq!([8, 9].map(|floor| report(floor).forward.below_floor), [false, true]);
        assert_eq!(report(9).backward, CompanyReport::default(), "nothing is released, so nobody is exposed");
    }

    #[test]
    fn a_report_survives_its_own_json() {
        let report = sample();
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<NodeReport>(&json).unwrap(), report);
    }
}
