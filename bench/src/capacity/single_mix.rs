//! One mix alone, between neighbours that this program plays ([`crate::hop`]). The mix has a core of its own, as on a
//! host that does nothing else. Rates are in cells.
//!
//! Nobody but the mix knows which cell that arrived is which that left, so latency is what the mix itself measures,
//! from receipt to departure.

use std::time::Duration;

use anyhow::ensure;
use eddy_node::report::{Distribution, NodeReport};
use wire::cell::{Direction, Shape};

use super::search::Trial;
use super::{CapacityArgs, LatencyPoint, SystemUnderTest};
use crate::hop::cores::Cores;
use crate::hop::mix_process::MixOptions;
use crate::hop::testbed::{Measurement, Round, Testbed};
use crate::hop::{RECEIVE_BUFFER, granted_buffer};
use crate::results::ChainFacts;

/// Most cells of a trial: they are sealed before it, into memory.
const CELLS_MAX: f64 = 262_144.0;
/// The generator does not reach a rate if sending takes this much longer than it should.
const BEHIND: f64 = 1.05;
/// A core is used up if it is busy for more than this part of the time.
const BUSY: f64 = 0.9;

pub(super) struct SingleMix {
    args: CapacityArgs,
    testbed: Testbed,
}

impl SingleMix {
    /// Starts the mix and opens its channels.
    ///
    /// # Errors
    /// The mix does not start, or this program may use only one core.
    pub(super) fn start(args: &CapacityArgs) -> anyhow::Result<SingleMix> {
        let chain = &args.chain;
        let options = MixOptions {
            class: chain.class,
            mixing: chain.mixing,
            receive_buffer: granted_buffer(RECEIVE_BUFFER)?,
            offload: chain.offload,
            sink_gro: true,
            arguments: Vec::new(),
            lines: Vec::new(),
            limits_handshakes: false,
            unpinned: false,
            environment: chain.environment(),
            program: None,
        };
        let mut testbed = Testbed::start(&options, 1, Cores::choose()?)?;
        testbed.open(chain.channels as usize, &|_| ())?;
        Ok(SingleMix { args: args.clone(), testbed })
    }

    /// Sends cells at a rate. Returns how many, what happened to them, and the mix's reports before and after.
    fn drive(&mut self, rate: f64, seconds: f64) -> anyhow::Result<(usize, Measurement, [NodeReport; 2])> {
        let cells = (rate * seconds).clamp(64.0, CELLS_MAX) as usize;
        let channels = self.args.chain.channels as usize;
        let round =
            Round { direction: Direction::Forward, entries: 0, channels, cells, window: usize::MAX, pace: Some(rate) };
        let before = self.testbed.mix.report()?;
        let measured = self.testbed.measure(round)?;
        let after = self.testbed.mix.report()?;
        ensure!(measured.closed, "the ledger of the mix does not close: {measured:?}");
        ensure!(measured.checked.1 == 0, "{} of {} cells are forged", measured.checked.1, measured.checked.0);
        Ok((cells, measured, [before, after]))
    }
}

/// Time that cells spent in the mix between two reports, in microseconds: a quantile.
fn time_inside([before, after]: &[NodeReport; 2], part: f64) -> f64 {
    let total = |report: &NodeReport| report.latency_us.forward.total.clone();
    quantile(&total(before), &total(after), part)
}

/// A quantile of what was counted between two reports.
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

/// Why a rate failed; `None` if it passed.
fn limit(measured: &Measurement, cells: usize, rate: f64, p99_us: f64, budget: Duration) -> Option<String> {
    let took = measured.delivery.took.as_secs_f64().max(f64::EPSILON);
    let busy = measured.time.as_secs_f64() / took;
    let processor = || format!("processor: the mix used {:.0} % of its core", 100.0 * busy);
    let behind = cells as f64 / rate * BEHIND + budget.as_secs_f64() < took;
    if measured.lost.0 > 0 {
        let lost = measured.lost.0;
        return Some(if busy > BUSY {
            processor()
        } else {
            format!("receive buffer: the kernel dropped {lost} cells at the mix (`eddy doctor` checks the buffer)")
        });
    }
    if let Some((why, count)) = measured.dropped.first() {
        return Some(format!("mix: it dropped {count} ({why})"));
    }
    if measured.lost.1 > 0 {
        return Some(format!("the generator: its sink dropped {} cells", measured.lost.1));
    }
    if p99_us > budget.as_secs_f64() * 1e6 {
        return Some(if busy > BUSY { processor() } else { "latency: p99 is over its budget".to_owned() });
    }
    behind.then(|| if busy > BUSY { processor() } else { "the generator: it cannot send more".to_owned() })
}

impl SystemUnderTest for SingleMix {
    fn warm_up(&mut self, rate: f64) -> anyhow::Result<()> {
        self.drive(rate, 0.2).map(drop)
    }

    fn attempt(&mut self, rate: f64) -> anyhow::Result<Trial> {
        let (cells, measured, reports) = self.drive(rate, self.args.try_seconds)?;
        let p99_us = time_inside(&reports, 0.99);
        let limited_by = limit(&measured, cells, rate, p99_us, self.args.budget());
        let (sent, lost) = (measured.delivery.sent as u64, (measured.delivery.sent - measured.delivery.arrived) as u64);
        Ok(Trial {
            rate,
            passed: limited_by.is_none(),
            sent,
            lost,
            p50_us: time_inside(&reports, 0.5),
            p99_us,
            limited_by,
        })
    }

    fn latency(&mut self, part: f64, rate: f64, _name: &str) -> anyhow::Result<Option<LatencyPoint>> {
        let (_, measured, reports) = self.drive(rate, 3.0 * self.args.try_seconds)?;
        let [p50_us, p99_us, p999_us, max_us] = [0.5, 0.99, 0.999, 1.0].map(|part| time_inside(&reports, part));
        let lost = (measured.delivery.sent - measured.delivery.arrived) as u64;
        Ok(Some(LatencyPoint { part, rate, lost, p50_us, p99_us, p999_us, max_us }))
    }

    fn facts(&self) -> anyhow::Result<Option<ChainFacts>> {
        Ok(Some(ChainFacts { mixes: 1, lanes: 1, ..self.args.chain.facts(Some(&self.testbed.mix.report()?)) }))
    }

    fn packets(&self) -> String {
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
    use crate::hop::generator::Delivery;

    fn distribution(buckets: &[(f64, u64)]) -> Distribution {
        let count = buckets.iter().map(|(_, count)| count).sum();
        let buckets = buckets.to_vec();
        Distribution { count, buckets, p50: 0.0, p90: 0.0, p99: 0.0, p999: 0.0, max: 0.0, mean: 0.0 }
    }

    #[test]
    fn quantile_covers_the_time_between_two_reports() {
        let before = distribution(&[(1.0, 1000), (8.0, 10)]);
        let after = distribution(&[(1.0, 1000), (2.0, 98), (4.0, 1), (8.0, 11)]);
        assert_eq!([0.5, 0.98, 0.99, 1.0].map(|part| quantile(&before, &after, part)), [2.0, 2.0, 4.0, 8.0]);
        assert_eq!(quantile(&after, &after, 0.99), 0.0);
    }

    #[test]
    fn limit_names_the_resource_that_was_short() {
        let second = Duration::from_secs(1);
        let delivery = Delivery { sent: 1000, arrived: 1000, took: second };
        let fine = Measurement { delivery, time: second / 2, ..Measurement::default() };
        let why = |measured: &Measurement, p99_us| limit(measured, 1000, 1000.0, p99_us, Duration::from_millis(10));
        assert_eq!(why(&fine, 9000.0), None);
        let starts = |found: Option<String>, with: &str| {
            assert!(found.as_ref().is_some_and(|found| found.starts_with(with)), "{found:?}");
        };
        starts(why(&fine, 11_000.0), "latency");
        starts(why(&Measurement { lost: (3, 0), ..fine.clone() }, 1.0), "receive buffer: the kernel dropped 3");
        starts(why(&Measurement { lost: (3, 0), time: second, ..fine.clone() }, 1.0), "processor: the mix");
        starts(why(&Measurement { lost: (0, 3), ..fine.clone() }, 1.0), "the generator: its sink");
        starts(why(&Measurement { dropped: vec![("replay".into(), 2)], ..fine.clone() }, 1.0), "mix: it dropped 2");
        let slow = Delivery { took: 2 * second, ..delivery };
        starts(why(&Measurement { delivery: slow, ..fine }, 1.0), "the generator: it cannot");
    }
}
