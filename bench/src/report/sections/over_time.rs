//! Throughput, loss and p99 over the time of a run.

use maud::{Markup, html};

use super::Section;
use crate::format::rounded;
use crate::report::format::{axis_number, axis_time, ms, share};
use crate::report::plot::{self, Axis, Line, Paint};
use crate::report::sources::Run;
use crate::report::table::figure;
use crate::results::Second;

/// Most points of a line: a point of a longer run covers several seconds.
const BINS_MAX: usize = 600;

/// One or more seconds of a run.
struct Bin {
    from: f64,
    to: f64,
    sent_per_s: f64,
    delivered_per_s: f64,
    /// Per cent.
    loss: f64,
    /// Milliseconds, of the worst second.
    p99: Option<f64>,
}

/// `seconds` is the length of the run: its last second may be cut short.
fn bins(series: &[Second], seconds: f64) -> Vec<Bin> {
    let width = series.len().div_ceil(BINS_MAX).max(1);
    let chunks = series.chunks(width).enumerate();
    let bins = chunks.map(|(at, chunk)| {
        let from = (at * width) as f64;
        let whole = from + chunk.len() as f64;
        // A rate over a very short last second would mislead.
        let to = if seconds > whole - 1.0 + 0.1 { whole.min(seconds) } else { whole };
        let sum = |what: fn(&Second) -> u64| chunk.iter().map(|second| what(second) as f64).sum::<f64>();
        let (sent, delivered) = (sum(|s| s.sent), sum(|s| s.delivered));
        let p99 = chunk.iter().filter(|second| second.delivered > 0).map(|second| second.p99_us / 1e3);
        Bin {
            from,
            to,
            sent_per_s: sent / (to - from).max(1e-9),
            delivered_per_s: delivered / (to - from).max(1e-9),
            loss: if sent > 0.0 { (100.0 * (sent - delivered) / sent).max(0.0) } else { 0.0 },
            p99: p99.reduce(f64::max),
        }
    });
    bins.collect()
}

/// A run with its bins; `number` chooses its paint.
struct BinnedRun<'a> {
    number: usize,
    run: &'a Run,
    bins: Vec<Bin>,
}

impl BinnedRun<'_> {
    /// A line with a level stretch for each bin.
    fn line(&self, paint: Paint, value: impl Fn(&Bin) -> Option<f64>) -> Line {
        let stretches = self.bins.iter().filter_map(|bin| Some((bin, value(bin)?)));
        let points = stretches.flat_map(|(bin, value)| [(bin.from, value), (bin.to, value)]).collect();
        Line { points, paint }
    }

    fn paint(&self) -> Paint {
        Paint::Line(self.number)
    }
}

/// All runs on one time axis.
struct Timeline<'a> {
    runs: Vec<BinnedRun<'a>>,
    x: Axis,
    legend: Vec<(Paint, String)>,
}

impl<'a> Timeline<'a> {
    /// `None` if no run has a second.
    fn of(runs: &'a [Run]) -> Option<Timeline<'a>> {
        let runs: Vec<BinnedRun<'a>> = runs
            .iter()
            .enumerate()
            .map(|(number, run)| BinnedRun { number, run, bins: bins(&run.results.series, run.results.seconds) })
            .filter(|run| !run.bins.is_empty())
            .collect();
        let end = runs.iter().flat_map(|run| &run.bins).map(|bin| bin.to).reduce(f64::max)?;
        let legend = runs.iter().map(|run| (run.paint(), run.run.label.clone())).collect();
        Some(Timeline { runs, x: Axis::time("seconds since the start", end), legend })
    }

    fn bins(&self) -> impl Iterator<Item = &Bin> {
        self.runs.iter().flat_map(|run| &run.bins)
    }

    fn lines(&self, value: impl Fn(&Bin) -> Option<f64>) -> Vec<Line> {
        self.runs.iter().map(|run| run.line(run.paint(), &value)).collect()
    }

    /// Describes a plot for screen readers, with a value of each run.
    fn label(&self, what: &str, value: impl Fn(&[Bin]) -> String) -> String {
        let values = self.runs.iter().map(|run| format!("{}: {}", run.run.label, value(&run.bins)));
        format!("{what} over time, one line for each run. {}.", values.collect::<Vec<_>>().join("; "))
    }

    fn throughput(&self) -> anyhow::Result<Markup> {
        let most = self.bins().map(|bin| bin.sent_per_s.max(bin.delivered_per_s)).fold(0.0, f64::max);
        let y = Axis::linear("datagrams delivered/s", most, rounded);
        let lossy = self.runs.iter().filter(|run| run.bins.iter().any(|bin| bin.loss > 0.5));
        let mut lines: Vec<Line> = lossy.map(|run| run.line(Paint::Quiet, |bin| Some(bin.sent_per_s))).collect();
        let mut legend = self.legend.clone();
        if !lines.is_empty() {
            legend.push((Paint::Quiet, "sent, where it differs".to_owned()));
        }
        lines.extend(self.lines(|bin| Some(bin.delivered_per_s)));

        let mean = |bins: &[Bin]| bins.iter().map(|bin| bin.delivered_per_s).sum::<f64>() / bins.len() as f64;
        let label = self.label("Datagrams delivered", |bins| rounded(mean(bins)) + "/s");
        Ok(figure(plot::lines(&label, &self.x, &y, &lines)?, &legend))
    }

    /// `None` if nothing was lost.
    fn loss(&self) -> anyhow::Result<Option<Markup>> {
        let worst = self.bins().map(|bin| bin.loss).fold(0.0, f64::max);
        if worst == 0.0 {
            return Ok(None);
        }
        let y = Axis::linear("lost, %", worst, axis_number);
        let label = self
            .label("Datagrams lost", |bins| share(bins.iter().map(|bin| bin.loss).fold(0.0, f64::max)) + " % at worst");
        let svg = plot::lines(&label, &self.x, &y, &self.lines(|bin| Some(bin.loss)))?;
        Ok(Some(figure(svg, &self.legend)))
    }

    /// `None` if nothing arrived.
    fn p99(&self) -> anyhow::Result<Option<Markup>> {
        let p99s = || self.bins().filter_map(|bin| bin.p99).filter(|ms| *ms > 0.0);
        let Some(least) = p99s().reduce(f64::min) else { return Ok(None) };
        let y = Axis::log("p99 latency", least, p99s().fold(0.0, f64::max), axis_time);
        let label = self.label("The 99th percentile of latency", |bins| {
            ms(1e3 * bins.iter().filter_map(|bin| bin.p99).fold(0.0, f64::max)) + " ms at worst"
        });
        let lines = self.lines(|bin| bin.p99.map(|ms| ms.max(1e-6).log10()));
        Ok(Some(figure(plot::lines(&label, &self.x, &y, &lines)?, &self.legend)))
    }
}

pub(super) fn section(runs: &[Run]) -> anyhow::Result<Option<Section>> {
    let Some(timeline) = Timeline::of(runs) else { return Ok(None) };
    let (throughput, loss, p99) = (timeline.throughput()?, timeline.loss()?, timeline.p99()?);
    let body = html! {
        p.quiet { "By the second in which datagrams were due, over all streams of a run." }
        h3 { "Throughput" }
        (throughput)
        h3 { "Loss" }
        @if let Some(loss) = loss { (loss) } @else { p { "No datagram was lost." } }
        @if let Some(p99) = p99 { h3 { "Latency" } (p99) }
    };
    Ok(Some(Section { id: "time", title: "Over time", body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_last_second_does_not_show_as_a_dip() {
        let second = Second { sent: 100, delivered: 100, ..Second::default() };
        let last = Second { sent: 50, delivered: 40, ..Second::default() };
        let all = bins(&[second, second, last], 2.5);
        assert_eq!(all.iter().map(|bin| bin.sent_per_s).collect::<Vec<_>>(), [100.0, 100.0, 100.0]);
        assert_eq!((all[2].delivered_per_s, all[2].loss, all[2].to), (80.0, 20.0, 2.5));
        assert!(all[2].p99.is_some() && bins(&[Second { sent: 1, ..Second::default() }], 1.0)[0].p99.is_none());
    }

    #[test]
    fn long_run_has_a_bounded_number_of_bins() {
        let second = Second { sent: 100, delivered: 100, ..Second::default() };
        let long = bins(&vec![second; 86_400], 86_400.0);
        assert!(long.len() <= BINS_MAX && long.iter().all(|bin| bin.sent_per_s == 100.0));
    }
}
