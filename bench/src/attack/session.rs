//! One recorded run: nodes, access links, users and a capture, from the start of all to a record.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use attack::active::Plan;
use attack::{Record, Truth};
use dataplane::ledger::DropReason;
use dataplane::per_direction::PerDirection;
use eddy_node::report::{MeterReport, NodeReport};
use eddy_virtual::{Chain, ENTRIES};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::capture::{Capture, Captured};
use super::impairment::Impairments;
use super::network::{Network, Recorded, resident};
use super::places::{Tap, Wire};
use super::plant::{self, Leak, Plant, Speakers};
use super::profile::{self, FRAME_LEN, OWN_PACED_LEN, Traffic, WARM_UP};
use super::record::{Entries, Recording};
use super::relay::{Begin, Relay};
use super::users::{self, wall};
use super::virtual_run::VirtualFacts;
use crate::load::plan::Queue;
use crate::load::source::{Nanos, Source, Sources, seeded};
use crate::results::histogram;

/// Between two readings of the meters.
const METER_EVERY: Duration = Duration::from_secs(1);
/// A record that lacks more of its datagrams is refused.
const CAPTURE_LOSS_MAX: f64 = 1e-3;

/// Settings of one run.
pub(super) struct Session<'a> {
    pub(super) entries: Entries,
    pub(super) class: Recorded,
    pub(super) mixes: usize,
    pub(super) traffic: &'a Traffic,
    pub(super) length: Duration,
    pub(super) seed: u64,
    pub(super) impairments: Impairments,
    /// Of an active adversary.
    pub(super) plan: Option<Plan>,
    pub(super) tap: Tap,
    /// A leak that is planted.
    pub(super) leak: Option<Leak>,
    /// Entries that stop now and then. Under a virtual clock only.
    pub(super) stalls: Vec<usize>,
    /// The record also has what a corrupt exit sees. Under a virtual clock only.
    pub(super) corrupt_exit: bool,
}

/// Counts and costs of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Datagrams of the applications, with those before the record began.
    pub(super) sent: [u64; 2],
    pub(super) arrived: [u64; 2],
    /// From one application to the other, forward and backward.
    #[serde(default)]
    pub(super) delays: [Delay; 2],
    /// Standard deviation of departures at the exit from the grid of rounds, in ms; `None` without rounds or flows.
    #[serde(default)]
    pub(super) off_grid_ms: Option<f64>,
    /// By how much the time between two rounds of an entry differs from the period, p50 and p99 in ms; `None` without
    /// rounds.
    #[serde(default)]
    pub(super) entry_jitter_ms: Option<[f64; 2]>,
    /// Cells and datagrams that nodes dropped.
    pub(super) dropped: u64,
    /// Every ledger of the mixes and the exit closed.
    pub(super) ledgers_closed: bool,
    /// Datagrams that the capture saw, a burst as one.
    pub(super) captured: u64,
    /// Datagrams that it lost.
    pub(super) capture_lost: u64,
    /// Processor time over wall time: of this process, with all entries, and of the nodes.
    pub(super) cores_here: f64,
    pub(super) cores_nodes: f64,
    /// Resident memory of this process and of the nodes, in bytes.
    pub(super) memory_here: u64,
    pub(super) memory_nodes: u64,
    /// The most that an application was late.
    pub(super) late_ms: f64,
    /// From the first node's start to the start of the record.
    pub(super) start_s: f64,
    /// Processor time over wall time of the workers and control threads of all entries.
    #[serde(default)]
    pub(super) cores_entries: f64,
    /// Only if a paced class was recorded.
    #[serde(default)]
    pub(super) paced: Option<PacedFacts>,
    /// Only of a run under a virtual clock.
    #[serde(default)]
    pub(super) virtual_clock: Option<VirtualFacts>,
    /// The anonymity meters of the mixes, about once a second.
    #[serde(default)]
    pub(crate) meter: Vec<MeterSample>,
}

/// How long datagrams took, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Delay {
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
}

impl Delay {
    /// Of nanoseconds, forward and backward.
    pub(super) fn of_both(delays: &PerDirection<Histogram<u64>>) -> [Delay; 2] {
        [&delays.forward, &delays.backward].map(|delays| {
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| delays.value_at_quantile(quantile) as f64 / 1e6);
            Delay { p50, p99, p999 }
        })
    }
}

/// Standard deviation of times from a grid of this period, all in ns.
fn off_grid(times: &[u64], period: u64) -> Option<f64> {
    // The grid's phase is not known: that of the first time is near it, unless half of the others are far off.
    let (first, half) = (*times.first()?, period as i64 / 2);
    let off = |at: &u64| {
        let after = (at % period) as i64 - (first % period) as i64;
        ((after + half).rem_euclid(period as i64) - half) as f64
    };
    let count = times.len() as f64;
    let mean = times.iter().map(off).sum::<f64>() / count;
    Some((times.iter().map(|at| (off(at) - mean).powi(2)).sum::<f64>() / count).sqrt())
}

/// By how much the times between bursts differ from a period. A burst begins more than half a period after what was
/// sent before it. All in ns.
fn jitter(times: &[u64], period: u64) -> Vec<u64> {
    let begins: Vec<u64> = times
        .iter()
        .enumerate()
        .filter(|(i, at)| i.checked_sub(1).is_none_or(|before| **at - times[before] > period / 2))
        .map(|(_, at)| *at)
        .collect();
    begins.windows(2).map(|pair| (pair[1] - pair[0]).abs_diff(period)).collect()
}

/// What the nodes of a paced class counted, from their start on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PacedFacts {
    pub(super) entries: usize,
    /// Rounds that entries did not send, because they were late.
    pub(super) skipped: u64,
    /// Cells that were to come to entries, and those of them of which no copy came.
    pub(super) places: u64,
    pub(super) lost: u64,
    /// Drops of all nodes by unit and reason: `copy` has the second copies of cells that came.
    pub(super) drops: BTreeMap<String, u64>,
}

impl PacedFacts {
    /// From reports of the class.
    fn new<'a>(entries: &[&NodeReport], all: impl Iterator<Item = &'a NodeReport>) -> PacedFacts {
        let mut facts = PacedFacts { entries: entries.len(), ..PacedFacts::default() };
        for entry in entries.iter().filter_map(|report| report.paced.as_ref()?.entry.as_ref()) {
            facts.skipped += entry.skipped;
            facts.places += entry.backward.places;
            facts.lost += entry.backward.lost;
        }
        for (unit, _, tally) in all.flat_map(|report| report.ledger.tallies().collect::<Vec<_>>()) {
            for (reason, count) in &tally.dropped {
                *facts.drops.entry(format!("{unit} {reason}")).or_default() += count;
            }
        }
        facts
    }

    /// From a chain in memory.
    pub(super) fn of_chain(chain: &Chain) -> PacedFacts {
        let mut facts = PacedFacts::default();
        for number in chain.numbers() {
            if number >= ENTRIES {
                let view = chain.shown(number);
                facts.entries += 1;
                facts.skipped += view.skipped;
                facts.places += view.places;
                facts.lost += view.lost;
            }
            let ledger = chain.ledger(number);
            for (unit, tally) in ledger
                .cells
                .iter()
                .map(|tally| ("cells", tally))
                .chain(ledger.datagrams.iter().map(|tally| ("datagrams", tally)))
            {
                for reason in DropReason::ALL.iter().filter(|reason| tally.drops(**reason) > 0) {
                    *facts.drops.entry(format!("{unit} {}", reason.name())).or_default() += tally.drops(*reason);
                }
            }
        }
        facts
    }

    /// Drops that were not second copies.
    pub(super) fn dropped(&self) -> u64 {
        self.drops.iter().filter(|(name, _)| *name != "cells copy").map(|(_, count)| count).sum()
    }
}

/// Entropy of the channel of a cell in the releases of the last minute, for each mix, in bits.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MeterSample {
    /// Since the record began.
    pub(crate) seconds: f64,
    pub(crate) forward_bits: Vec<f64>,
    pub(crate) backward_bits: Vec<f64>,
}

impl MeterSample {
    /// From reports of all nodes.
    fn new(at: Duration, reports: &[NodeReport]) -> MeterSample {
        let bits =
            |of: fn(&MeterReport) -> f64| reports.iter().filter_map(|report| report.meter.as_ref().map(of)).collect();
        MeterSample {
            seconds: (at.as_secs_f64() * 100.0).round() / 100.0,
            forward_bits: bits(|meter| meter.forward.entropy_bits),
            backward_bits: bits(|meter| meter.backward.entropy_bits),
        }
    }
}

pub(super) struct Run {
    pub(super) record: Record,
    pub(super) truth: Truth,
    /// Mean time that a datagram of the adversary's own waited for its cell.
    pub(super) wait_ms: Option<f64>,
    pub(super) facts: Facts,
}

/// Progress of a run.
pub(super) enum Stage {
    /// Users whose entries are ready.
    Starting(usize),
    Recording(Duration),
    Ending,
}

impl Session<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// Something does not start, the user interrupts, or the capture lost too much.
    pub(super) fn run(&self, interrupted: &AtomicBool, mut progress: impl FnMut(Stage) + Send) -> anyhow::Result<Run> {
        let started = Instant::now();
        let own_len = if let Recorded::Paced(_) = self.class { OWN_PACED_LEN } else { FRAME_LEN };
        let (truth, sources) = profile::draw(self.traffic, self.entries.rows, own_len, self.seed);
        let mut flows = truth.0.clone();
        // The adversary's own user.
        flows.push(self.entries.rows);

        let network = Network::start(self.mixes, &self.class)?;
        let begin = Begin::default();
        let links = self.entries.count();
        let speakers = plant::nobody(links);
        let planted = self.plant(&flows, &speakers);
        let relay = Relay::start(links, &self.impairments, (self.plan.clone(), planted), begin.clone(), self.seed)?;
        let start = users::Start {
            chain: &network.chain,
            class: &self.class,
            entries: self.entries,
            flows: &flows,
            speakers,
            interrupted,
        };
        let users = yielding(|| start.run(|ready| progress(Stage::Starting(ready))))?;
        let capture = Capture::start()?;

        let (before, cpu_before) = (network.reports()?, (cpu(), entries_cpu()));
        let queues = self.queues(sources);
        let (origin, stop) = (Instant::now(), AtomicBool::new(false));
        let (traffic, begin_wall, meter) = std::thread::scope(|scope| {
            let apps = std::thread::Builder::new().name("apps".into());
            let apps = apps.spawn_scoped(scope, || users::play(&users, queues, origin, &stop))?;
            std::thread::sleep(WARM_UP.saturating_sub(origin.elapsed()));
            let (_, begin_wall) = (begin.set(Instant::now()), wall());
            let begun = Instant::now();
            let mut meter = Vec::<MeterSample>::new();
            while begun.elapsed() < self.length && !interrupted.load(Ordering::Relaxed) && !apps.is_finished() {
                progress(Stage::Recording(begun.elapsed()));
                if begun.elapsed() > METER_EVERY * (meter.len() as u32 + 1) {
                    // A node that does not answer now shows in the reports at the end.
                    meter.extend(network.reports().ok().map(|reports| MeterSample::new(begun.elapsed(), &reports)));
                }
                std::thread::sleep((self.length - begun.elapsed().min(self.length)).min(Duration::from_millis(100)));
            }
            stop.store(true, Ordering::Relaxed);
            let traffic = apps.join().map_err(|_| anyhow!("the thread of the applications panicked"))??;
            anyhow::Ok((traffic, begin_wall, meter))
        })?;
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");

        progress(Stage::Ending);
        let took = origin.elapsed().as_secs_f64();
        let (captured, capture_lost) = capture.finish()?;
        let (after, cpu_after) = (network.reports()?, (cpu(), entries_cpu()));
        let of_entries = users.reports();
        let hops: Vec<&NodeReport> = after.iter().map(|report| self.class.of(report)).collect();
        let entries: Vec<&NodeReport> = of_entries.iter().map(|report| self.class.of(report)).collect();
        let paced = match self.class {
            Recorded::Free { .. } => None,
            Recorded::Paced(_) => Some(PacedFacts::new(&entries, hops.iter().chain(&entries).copied())),
        };
        let nodes_cpu = |reports: &[NodeReport]| reports.iter().map(|report| report.cpu_s).sum::<f64>();
        let facts = Facts {
            sent: [traffic.sent.forward, traffic.sent.backward],
            arrived: [traffic.arrived.forward, traffic.arrived.backward],
            delays: Delay::of_both(&traffic.delays),
            off_grid_ms: self.off_grid(&captured).map(|deviation| deviation / 1e6),
            entry_jitter_ms: self.entry_jitter(&captured),
            dropped: match &paced {
                Some(paced) => paced.dropped(),
                None => after.iter().chain(&of_entries).map(dropped).sum(),
            },
            ledgers_closed: hops.iter().all(|report| report.ledger.closed()),
            captured: captured.len() as u64,
            capture_lost,
            cores_here: (cpu_after.0 - cpu_before.0).as_secs_f64() / took,
            cores_entries: (cpu_after.1 - cpu_before.1).as_secs_f64() / took,
            paced,
            cores_nodes: (nodes_cpu(&after) - nodes_cpu(&before)) / took,
            memory_here: resident("self"),
            memory_nodes: network.resident(),
            late_ms: traffic.late.as_secs_f64() * 1e3,
            virtual_clock: None,
            start_s: (origin + WARM_UP - started).as_secs_f64(),
            meter,
        };
        users.end()?;
        relay.finish()?;
        let share = facts.capture_lost as f64 / facts.captured.max(1) as f64;
        ensure!(
            share <= CAPTURE_LOSS_MAX,
            "the capture lost {capture_lost} datagrams, more than {} % of {}: use fewer --users, or allow larger receive \
             buffers with `sudo sysctl -w net.core.rmem_max=67108864`",
            100.0 * CAPTURE_LOSS_MAX,
            captured.len()
        );

        let recording = Recording {
            captured: &captured,
            begin: begin_wall,
            length: self.length.as_nanos() as u64,
            class: &self.class,
            mixes: self.mixes,
            tap: self.tap,
            entries: self.entries,
            probe: &traffic.probe,
            has_contents: false,
        };
        let (record, wait_ms) = recording.record();
        Ok(Run { record, truth, wait_ms, facts })
    }

    /// Standard deviation of what leaves the exit from the grid of rounds, in ns.
    fn off_grid(&self, captured: &[Captured]) -> Option<f64> {
        let Recorded::Paced(terms) = &self.class else { return None };
        let leaves = |seen: &&Captured| matches!(Wire::of(seen.port, seen.to_port), Some((Wire::Flow(_), true)));
        let times: Vec<u64> = captured.iter().filter(leaves).map(|seen| seen.at).collect();
        off_grid(&times, u64::from(terms.period_ms) * 1_000_000).filter(|_| !self.entries.meetings)
    }

    /// The jitter of all entries' rounds where they leave: p50 and p99, in ms.
    fn entry_jitter(&self, captured: &[Captured]) -> Option<[f64; 2]> {
        let Recorded::Paced(terms) = &self.class else { return None };
        let mut times = vec![Vec::new(); self.entries.count()];
        for seen in captured {
            if let Some((Wire::Access(Tap::User, entry), true)) = Wire::of(seen.port, seen.to_port) {
                times[entry].push(seen.at);
            }
        }
        let mut all = histogram();
        let period = u64::from(terms.period_ms) * 1_000_000;
        times.iter().flat_map(|times| jitter(times, period)).for_each(|off| all.saturating_record(off));
        Some([0.5, 0.99].map(|quantile| all.value_at_quantile(quantile) as f64 / 1e6))
    }

    /// The leak that is planted, if one is.
    pub(super) fn plant(&self, flows: &[usize], speakers: &Speakers) -> Option<Plant> {
        let Recorded::Paced(terms) = &self.class else { return None };
        let mut partners = vec![None; self.entries.count()];
        for (user, &flow) in flows.iter().enumerate().filter(|_| self.entries.meetings) {
            let (own, partner) = (self.entries.user(user), self.entries.partner(flow));
            (partners[own], partners[partner]) = (Some(partner), Some(own));
        }
        // Users draw from stream 0 of the same seed, and links from stream 1.
        let mut rng = seeded(self.seed);
        rng.set_stream(4);
        let leak = self.leak?;
        Some(Plant::new(leak, (terms, self.mixes + 1), partners, speakers.clone(), rng))
    }

    /// What all users and destinations send.
    pub(super) fn queues(&self, sources: Vec<Sources>) -> PerDirection<Queue> {
        let limit = (WARM_UP + self.length + Duration::from_secs(1)).as_nanos() as Nanos;
        let mut all = PerDirection::from_fn(|_| Vec::<Option<Box<dyn Source>>>::new());
        for flow in sources {
            all.forward.push(flow.forward);
            all.backward.push(flow.backward);
        }
        PerDirection { forward: Queue::new(all.forward, limit), backward: Queue::new(all.backward, limit) }
    }
}

/// Runs `start` so that the threads that it starts yield to those of the nodes, which would have a host of their own.
fn yielding<R: Send>(start: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            // It fails only where a limit forbids it; the processor is shared evenly then.
            let _ = rustix::process::nice(10);
            start()
        });
        started.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Cells and datagrams that a node dropped.
pub(super) fn dropped(report: &NodeReport) -> u64 {
    report.kernel_drops + report.ledger.tallies().map(|(.., tally)| tally.dropped_total()).sum::<u64>()
}

/// Processor time of this process.
pub(super) fn cpu() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Processor time of the threads of all entries in this process, by the scheduler's statistics; 0 if there are none.
fn entries_cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(Result::ok);
    let nanos = tasks.filter_map(|task| {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).ok();
        let name = read("comm")?;
        let is_of_entry = name.starts_with("worker") || name.starts_with("control");
        read("schedstat").filter(|_| is_of_entry)?.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

impl Facts {
    /// One or two lines.
    pub(super) fn text(&self) -> String {
        let Facts { sent, arrived, dropped, captured, capture_lost, .. } = self;
        let share = 100.0 * arrived.iter().sum::<u64>() as f64 / sent.iter().sum::<u64>().max(1) as f64;
        let mib = |bytes: u64| bytes >> 20;
        let [there, back] = self.delays.map(|Delay { p50, p99, p999 }| format!("{p50:.1}, {p99:.1}, {p999:.1} ms"));
        let delay = format!("delay p50, p99, p99.9: {there} there, {back} back");
        let grid = self.off_grid_ms.map_or_else(String::new, |off| format!("; off the grid by {off:.2} ms"));
        let jitter = self.entry_jitter_ms.map_or_else(String::new, |[p50, p99]| {
            format!("; rounds of entries vary by {p50:.2} ms (p50), {p99:.2} ms (p99)")
        });
        let paced = self.paced.as_ref().map_or_else(String::new, |paced| {
            let PacedFacts { entries, skipped, places, lost, .. } = paced;
            format!("\n  {entries} entries skipped {skipped} rounds, and lost {lost} of {places} cells")
        });
        if let Some(of) = &self.virtual_clock {
            return format!(
                "sent {} + {}, arrived {} + {} ({share:.2} %), captured {captured}\n  {delay}; {}{paced}",
                sent[0],
                sent[1],
                arrived[0],
                arrived[1],
                of.text()
            );
        }
        format!(
            "sent {} + {}, arrived {} + {} ({share:.2} %), dropped in nodes {dropped}; captured {captured}, lost {capture_lost}\n  \
             {delay}{grid}{jitter}\n  {:.2} cores here, {:.2} of them of entries, {:.2} in nodes; {} + {} MiB; started in {:.1} s; at most {:.1} ms \
             late{paced}",
            sent[0],
            sent[1],
            arrived[0],
            arrived[1],
            self.cores_here,
            self.cores_entries,
            self.cores_nodes,
            mib(self.memory_here),
            mib(self.memory_nodes),
            self.start_s,
            self.late_ms
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_far_off_the_grid_as_they_vary() {
        assert_eq!(off_grid(&[], 10), None);
        assert_eq!(off_grid(&[3, 13, 23, 93], 10), Some(0.0));
        assert_eq!(off_grid(&[9, 11, 19, 21], 10), Some(1.0), "around the begin of a round");
        assert_eq!(off_grid(&[100, 104, 200, 204], 100), Some(2.0));
    }

    #[test]
    fn jitter_is_that_of_the_first_cells_of_rounds() {
        let times = [5, 6, 105, 106, 108, 210, 303];
        assert_eq!(jitter(&times, 100), [0, 5, 7]);
        assert!(jitter(&times[..2], 100).is_empty());
    }
}
