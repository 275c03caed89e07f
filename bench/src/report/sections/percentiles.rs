//! Latency and round trips by percentile, up to the slowest datagram.

use hdrhistogram::Histogram;
use maud::html;

use super::Section;
use crate::report::format::{axis_time, ms};
use crate::report::plot::{self, Axis, Line, Paint};
use crate::report::sources::{Run, Times};
use crate::report::streams::{self, RunStream, calibrations};
use crate::report::table::figure;
use crate::results::Calibration;

/// Points of a line for each nine.
const STEPS: u32 = 40;
/// Most nines of a plot. Rarer values are in the tables as the maximum.
const NINES_MAX: f64 = 7.0;

pub(super) fn latency(runs: &[Run]) -> anyhow::Result<Option<Section>> {
    let about = "One way, from the time at which a datagram was due to its arrival, so a generator that falls behind \
                 shows up. At 99 %, one datagram in a hundred took longer than the line shows.";
    let plot = Percentiles { id: "latency", title: "Latency by percentile", about };
    plot.section(runs, &calibrations(runs), |times| Some(&times.latency))
}

pub(super) fn round_trip(runs: &[Run]) -> anyhow::Result<Option<Section>> {
    let about =
        "From the time at which a datagram was due to the arrival of its answer, for streams that were answered.";
    let plot = Percentiles { id: "round-trip", title: "Round trip by percentile", about };
    plot.section(runs, &[], |times| times.round_trip.as_ref())
}

struct Percentiles {
    id: &'static str,
    title: &'static str,
    about: &'static str,
}

impl Percentiles {
    /// One line for each stream of which `of` finds a histogram.
    fn section(
        &self,
        runs: &[Run],
        calibrations: &[(&Calibration, Vec<&str>)],
        of: fn(&Times) -> Option<&Histogram<u64>>,
    ) -> anyhow::Result<Option<Section>> {
        let Percentiles { id, title, about } = *self;
        let all: Vec<(RunStream<'_>, &Histogram<u64>)> = streams::all(runs)
            .filter_map(|stream| Some((stream, of(&stream.run.times[stream.at])?)))
            .filter(|(_, histogram)| !histogram.is_empty())
            .collect();
        if all.is_empty() {
            return Ok(None);
        }

        let most = all.iter().map(|(_, histogram)| histogram.len()).max().unwrap_or(1) as f64;
        let x = Axis::nines("percentile of the datagrams", most.log10().min(NINES_MAX));
        let y = time_axis(&all, calibrations);

        let mut lines = Vec::new();
        let mut legend = Vec::new();
        let mut values = Vec::new();
        // Drawn first, so that the streams' lines are on top.
        for (calibration, _) in calibrations {
            lines.push(calibration_line(calibration));
        }
        for (RunStream { paint, run, stream, .. }, histogram) in &all {
            let name = format!("{}: {}", run.label, streams::name(stream));
            let at = |quantile| ms(histogram.value_at_quantile(quantile) as f64 / 1e3);
            values.push(format!("{name}: p50 {} ms, p99 {} ms, p99.9 {} ms", at(0.5), at(0.99), at(0.999)));
            lines.push(Line { points: points(histogram, NINES_MAX), paint: *paint });
            legend.push((*paint, name));
        }
        if !calibrations.is_empty() {
            legend.push((Paint::Quiet, "generator alone, p50 to p99.9".to_owned()));
        }

        let label = format!("{title}, one line for each run and stream. {}.", values.join("; "));
        let svg = plot::lines(&label, &x, &y, &lines)?;
        let body = html! { p.quiet { (about) } (figure(svg, &legend)) };
        Ok(Some(Section { id, title, body }))
    }
}

/// From the least to the greatest time of all lines.
fn time_axis(all: &[(RunStream<'_>, &Histogram<u64>)], calibrations: &[(&Calibration, Vec<&str>)]) -> Axis {
    let measured = all.iter().flat_map(|(_, histogram)| [histogram.min(), histogram.max()]);
    let measured = measured.map(|nanos| nanos as f64 / 1e6);
    let calibrated = calibrations.iter().flat_map(|(calibration, _)| [calibration.p50_us, calibration.max_us]);
    let calibrated = calibrated.map(|us| us / 1e3);
    let times: Vec<f64> = measured.chain(calibrated).filter(|ms| *ms > 0.0).collect();
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = times.iter().copied().fold(0.0, f64::max);
    Axis::log("time", least, most, axis_time)
}

fn calibration_line(calibration: &Calibration) -> Line {
    let points = [(0.5f64, calibration.p50_us), (0.99, calibration.p99_us), (0.999, calibration.p999_us)];
    let points = points.map(|(quantile, us)| (-(1.0 - quantile).log10(), (us.max(1e-3) / 1e3).log10()));
    Line { points: points.to_vec(), paint: Paint::Quiet }
}

/// Points of a line: nines, and the logarithm of milliseconds.
fn points(histogram: &Histogram<u64>, nines_max: f64) -> Vec<(f64, f64)> {
    let last = (histogram.len() as f64).log10().min(nines_max);
    let value = |nanos: u64| (nanos.max(1) as f64 / 1e6).log10();
    let steps = (last * f64::from(STEPS)).floor() as u32;
    let at = |step: u32| f64::from(step) / f64::from(STEPS);

    let mut points: Vec<(f64, f64)> = Vec::new();
    for step in 0..=steps {
        let point = (at(step), value(histogram.value_at_quantile(1.0 - 10f64.powf(-at(step)))));
        // The inner points of a level stretch are redundant.
        if points.len() > 1 && points[points.len() - 2..].iter().all(|before| before.1 == point.1) {
            points.pop();
        }
        points.push(point);
    }
    if (histogram.len() as f64).log10() <= nines_max {
        points.push((last, value(histogram.max())));
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::histogram;

    #[test]
    fn percentile_line_runs_from_minimum_to_maximum() {
        let mut all = histogram();
        (1..=10_000u64).for_each(|us| all.record(us * 1000).unwrap());
        let points = points(&all, NINES_MAX);
        let near = |got: f64, ms: f64| (got - ms.log10()).abs() < 0.01;
        assert!(points[0].0 == 0.0 && near(points[0].1, 0.001), "{:?}", points[0]);
        let last = points[points.len() - 1];
        assert!(last.0 == 4.0 && near(last.1, 10.0), "{last:?}");
        let at_99 = points.iter().find(|point| point.0 == 2.0).unwrap();
        assert!(near(at_99.1, 9.9), "{at_99:?}");
        assert!(points.windows(2).all(|two| two[0].0 <= two[1].0 && two[0].1 <= two[1].1));
    }

    #[test]
    fn level_stretch_keeps_its_ends_and_ends_with_the_plot() {
        let mut level = histogram();
        level.record_n(5000, 1_000_000_000).unwrap();
        let level = points(&level, NINES_MAX);
        assert!(level.len() <= 3 && level[level.len() - 1].0 == NINES_MAX, "{level:?}");
    }
}
