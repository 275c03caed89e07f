//! Counts and costs of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use dataplane::ledger::DropReason;
use dataplane::per_direction::PerDirection;
use eddy_node::report::{MeterReport, NodeReport};
use eddy_virtual::{Chain, FIRST_ENTRY};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::virtual_run::VirtualFacts;

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
pub(super) fn off_grid(times: &[u64], period: u64) -> Option<f64> {
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
pub(super) fn jitter(times: &[u64], period: u64) -> Vec<u64> {
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
    pub(super) fn new<'a>(entries: &[&NodeReport], all: impl Iterator<Item = &'a NodeReport>) -> PacedFacts {
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
            if number >= FIRST_ENTRY {
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
    pub(super) fn new(at: Duration, reports: &[NodeReport]) -> MeterSample {
        let bits =
            |of: fn(&MeterReport) -> f64| reports.iter().filter_map(|report| report.meter.as_ref().map(of)).collect();
        MeterSample {
            seconds: (at.as_secs_f64() * 100.0).round() / 100.0,
            forward_bits: bits(|meter| meter.forward.entropy_bits),
            backward_bits: bits(|meter| meter.backward.entropy_bits),
        }
    }
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
pub(super) fn entries_cpu() -> Duration {
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
