//! One mix alone, with this program for its neighbours ([`crate::hop`]): the mix has a core of its own, as on a host that
//! does nothing else, and what is counted are cells.
//!
//! A cell's own latency is not seen from outside, for the mix alone knows which it was: it is the mix's own count, from
//! receipt to departure.

use std::time::Duration;

use anyhow::ensure;
use eddy_node::report::{Distribution, NodeReport};
use wire::cell::{Direction, Shape};

use super::search::Try;
use super::{At, CapacityArgs, Subject};
use crate::hop::child::Wanted;
use crate::hop::cores::Cores;
use crate::hop::rig::{Reading, Rig, Round};
use crate::hop::{BUFFER_WANTED, granted};
use crate::results::ChainFacts;

/// Cells of a try at most: they are sealed before it, and lie in memory.
const CELLS_MAX: f64 = 262_144.0;
/// A sender that takes so much longer than it should is behind.
const BEHIND: f64 = 1.05;
/// A core that is busy for this part of the time has none left.
const BUSY: f64 = 0.9;

/// The mix.
pub struct Lone {
    args: CapacityArgs,
    rig: Rig,
}

impl Lone {
    /// Starts it, and opens its channels.
    ///
    /// # Errors
    /// It does not come up, or the system grants too small a receive buffer.
    pub fn start(args: &CapacityArgs) -> anyhow::Result<Lone> {
        let chain = &args.chain;
        let wanted = Wanted {
            class: chain.class,
            mixing: chain.mixing,
            receive_buffer: granted(BUFFER_WANTED)?,
            offload: chain.offload,
            sink_gro: true,
            arguments: Vec::new(),
            lines: Vec::new(),
            unpinned: false,
            environment: chain.engine.iter().map(|engine| ("EDDY_AEAD".to_owned(), engine.clone())).collect(),
            program: None,
        };
        let mut rig = Rig::start(&wanted, 1, Cores::choose()?)?;
        rig.open(chain.channels as usize, &|_| ())?;
        Ok(Lone { args: args.clone(), rig })
    }

    /// Cells at a rate for a while: what became of them, and the mix before and after.
    fn drive(&mut self, rate: f64, time: f64) -> anyhow::Result<(usize, Reading, [NodeReport; 2])> {
        let cells = (rate * time).clamp(64.0, CELLS_MAX) as usize;
        let channels = self.args.chain.channels as usize;
        let round =
            Round { direction: Direction::Forward, apart: 0, channels, cells, window: usize::MAX, pace: Some(rate) };
        let before = self.rig.mix.report()?;
        let reading = self.rig.measure(round)?;
        let after = self.rig.mix.report()?;
        ensure!(reading.closed, "the mix's ledger does not close: {reading:?}");
        ensure!(reading.checked.1 == 0, "{} of {} cells are not authentic", reading.checked.1, reading.checked.0);
        Ok((cells, reading, [before, after]))
    }
}

/// How long cells stayed between two reports, microseconds: so much of them were not longer.
fn stayed([before, after]: &[NodeReport; 2], part: f64) -> f64 {
    let total = |report: &NodeReport| report.latency_us.forward.total.clone();
    quantile(&total(before), &total(after), part)
}

/// A quantile of what was counted between two readings.
fn quantile(before: &Distribution, after: &Distribution, part: f64) -> f64 {
    let old = |upper: f64| before.buckets.iter().find(|(at, _)| *at == upper).map_or(0, |(_, count)| *count);
    let wanted = (part * (after.count - before.count) as f64).ceil() as u64;
    let mut seen = 0;
    let reached = after.buckets.iter().find(|(upper, count)| {
        seen += count - old(*upper);
        seen >= wanted.max(1)
    });
    reached.map_or(0.0, |(upper, _)| *upper)
}

/// What a rate ran into; nothing, if it passed.
fn limit(reading: &Reading, cells: usize, rate: f64, p99_us: f64, budget: Duration) -> Option<String> {
    let took = reading.played.took.as_secs_f64().max(f64::EPSILON);
    let busy = reading.time.as_secs_f64() / took;
    let processor = || format!("processor: the mix had a core to itself and used {:.0} % of it", 100.0 * busy);
    let behind = cells as f64 / rate * BEHIND + budget.as_secs_f64() < took;
    if reading.lost.0 > 0 {
        let lost = reading.lost.0;
        return Some(if busy > BUSY {
            processor()
        } else {
            format!(
                "receive buffer: the kernel dropped {lost} cells at the mix (`eddy doctor` says what it was granted)"
            )
        });
    }
    if let Some((why, count)) = reading.dropped.first() {
        return Some(format!("mix: it dropped {count} as {why}"));
    }
    if reading.lost.1 > 0 {
        return Some(format!("the generator: its sink lost {} cells", reading.lost.1));
    }
    if p99_us > budget.as_secs_f64() * 1e6 {
        return Some(if busy > BUSY { processor() } else { "latency: p99 is over its budget".to_owned() });
    }
    behind.then(|| if busy > BUSY { processor() } else { "the generator: it cannot send more".to_owned() })
}

impl Subject for Lone {
    fn warm_up(&mut self, rate: f64) -> anyhow::Result<()> {
        self.drive(rate, 0.2).map(drop)
    }

    fn attempt(&mut self, rate: f64) -> anyhow::Result<Try> {
        let (cells, reading, reports) = self.drive(rate, self.args.try_seconds)?;
        let p99_us = stayed(&reports, 0.99);
        let limited_by = limit(&reading, cells, rate, p99_us, self.args.budget());
        let (sent, lost) = (reading.played.sent as u64, (reading.played.sent - reading.played.arrived) as u64);
        Ok(Try { rate, passed: limited_by.is_none(), sent, lost, p50_us: stayed(&reports, 0.5), p99_us, limited_by })
    }

    fn latency(&mut self, part: f64, rate: f64, _name: &str) -> anyhow::Result<Option<At>> {
        let (_, reading, reports) = self.drive(rate, 3.0 * self.args.try_seconds)?;
        let [p50_us, p99_us, p999_us, max_us] = [0.5, 0.99, 0.999, 1.0].map(|part| stayed(&reports, part));
        let lost = (reading.played.sent - reading.played.arrived) as u64;
        Ok(Some(At { part, rate, lost, p50_us, p99_us, p999_us, max_us }))
    }

    fn facts(&self) -> anyhow::Result<Option<ChainFacts>> {
        Ok(Some(ChainFacts { mixes: 1, lanes: 1, ..self.args.chain.facts(Some(&self.rig.mix.report()?)) }))
    }

    fn packets(&self) -> String {
        // A chain of one mix and an exit has two layers.
        let class = self.args.chain.class;
        Shape::new(class, 2).map_or_else(|_| class.name().to_owned(), |shape| shape.longest_cell().to_string())
    }

    fn end(self: Box<Self>) -> anyhow::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hop::play::Played;

    fn distribution(buckets: &[(f64, u64)]) -> Distribution {
        let count = buckets.iter().map(|(_, count)| count).sum();
        let buckets = buckets.to_vec();
        Distribution { count, buckets, p50: 0.0, p90: 0.0, p99: 0.0, p999: 0.0, max: 0.0, mean: 0.0 }
    }

    #[test]
    fn only_what_came_between_two_readings_counts() {
        let before = distribution(&[(1.0, 1000), (8.0, 10)]);
        let after = distribution(&[(1.0, 1000), (2.0, 98), (4.0, 1), (8.0, 11)]);
        assert_eq!([0.5, 0.98, 0.99, 1.0].map(|part| quantile(&before, &after, part)), [2.0, 2.0, 4.0, 8.0]);
        assert_eq!(quantile(&after, &after, 0.99), 0.0);
    }

    #[test]
    fn a_limit_is_named_by_what_was_short() {
        let second = Duration::from_secs(1);
        let played = Played { sent: 1000, arrived: 1000, took: second };
        let fine = Reading { played, time: second / 2, ..Reading::default() };
        let why = |reading: &Reading, p99_us| limit(reading, 1000, 1000.0, p99_us, Duration::from_millis(10));
        assert_eq!(why(&fine, 9000.0), None);
        let starts = |found: Option<String>, with: &str| {
            assert!(found.as_ref().is_some_and(|found| found.starts_with(with)), "{found:?}");
        };
        starts(why(&fine, 11_000.0), "latency");
        starts(why(&Reading { lost: (3, 0), ..fine.clone() }, 1.0), "receive buffer: the kernel dropped 3");
        starts(why(&Reading { lost: (3, 0), time: second, ..fine.clone() }, 1.0), "processor: the mix");
        starts(why(&Reading { lost: (0, 3), ..fine.clone() }, 1.0), "the generator: its sink");
        starts(why(&Reading { dropped: vec![("no-buffer".into(), 2)], ..fine.clone() }, 1.0), "mix: it dropped 2");
        let slow = Played { took: 2 * second, ..played };
        starts(why(&Reading { played: slow, ..fine }, 1.0), "the generator: it cannot");
    }
}
