//! The rates that `capacity` tried, and what limits them.

use maud::{Markup, html};

use super::{Section, parts};
use crate::capacity::{CapacityResult, LatencyPoint, Trial};
use crate::format::{count, rounded};
use crate::report::format::{axis_time, ms, share};
use crate::report::plot::{self, Axis, Line, Paint};
use crate::report::sources::Labelled;
use crate::report::table::{Row, figure, group, long, number, table, word};

pub(super) fn section(capacities: &[Labelled<CapacityResult>]) -> anyhow::Result<Option<Section>> {
    let about = "The highest rate at which every datagram arrives, no ledger counts a drop, and 99 of 100 datagrams \
                 arrive within the latency budget (RFC 2544, 26.1).";
    Ok(parts(about, capacities, part)?.map(|body| Section { id: "capacity", title: "Capacity", body }))
}

fn part(result: &CapacityResult) -> anyhow::Result<Markup> {
    let CapacityResult { lossless_per_s, interval, p99_us, limited_by, budget_us, payload_len, .. } = result;
    let mut point_columns = vec![word("% of it"), number("rate"), number("lost")];
    point_columns.extend(group("latency, ms", ["p50", "p99", "p99.9", "max"]));
    let points: Vec<Row> = result.at.iter().map(point_row).collect();
    let mut trial_columns = vec![word("rate"), word("passed"), number("sent"), number("lost")];
    trial_columns.extend(group("latency, ms", ["p50", "p99"]));
    trial_columns.push(long("limited by"));
    let trials: Vec<Row> = result.trials.iter().map(trial_row).collect();
    let plot = trial_plot(result)?;
    Ok(html! {
        p {
            strong { (rounded(*lossless_per_s)) " datagrams/s" }
            " of " (payload_len) " bytes pass without loss; " (rounded(interval[1])) " do not. p99 is " (ms(*p99_us))
            " ms of the " (ms(*budget_us)) " ms allowed. Limited by " (limited_by) "."
            @if result.interrupted { " The search was interrupted." }
        }
        @if let Some(plot) = plot { (plot) }
        @if !points.is_empty() { (table("Latency at a part of the capacity", &point_columns, &points)) }
        (table("Rates that were tried", &trial_columns, &trials))
    })
}

fn point_row(point: &LatencyPoint) -> Row {
    let mut cells = vec![share(100.0 * point.part), rounded(point.rate), count(point.lost)];
    cells.extend([point.p50_us, point.p99_us, point.p999_us, point.max_us].map(ms));
    Row { cells, bad: (point.lost > 0).then_some(2), ..Row::default() }
}

fn trial_row(trial: &Trial) -> Row {
    let passed = if trial.passed { "yes" } else { "no" };
    let mut cells = vec![rounded(trial.rate), passed.to_owned(), count(trial.sent), count(trial.lost)];
    cells.extend([trial.p50_us, trial.p99_us].map(ms));
    cells.push(trial.limited_by.clone().unwrap_or_default());
    Row { cells, is_quiet: !trial.passed, ..Row::default() }
}

/// Latency over the rates that were tried, the worst trial of each; `None` for fewer than two rates.
fn trial_plot(result: &CapacityResult) -> anyhow::Result<Option<Markup>> {
    let rates = worst_latencies(&result.trials);
    let [first, .., last] = &rates[..] else { return Ok(None) };
    let budget = result.budget_us.max(f64::MIN_POSITIVE);
    let (least, most) =
        rates.iter().fold((budget, budget), |(least, most), (_, p50, p99)| (least.min(*p50), most.max(*p99)));
    let x = Axis::log("datagrams/s", first.0, last.0, rounded);
    let y = Axis::log("latency", least / 1e3, most / 1e3, axis_time);

    let line = |of: fn(&(f64, f64, f64)) -> f64, paint| Line {
        points: rates.iter().map(|rate| (rate.0.log10(), (of(rate) / 1e3).log10())).collect(),
        paint,
    };
    let level = (budget / 1e3).log10();
    let lines = [
        Line { points: vec![(first.0.log10(), level), (last.0.log10(), level)], paint: Paint::Quiet },
        line(|rate| rate.1, Paint::Line(0)),
        line(|rate| rate.2, Paint::Line(1)),
    ];

    let values =
        rates.iter().map(|(rate, p50, p99)| format!("{}: p50 {} ms, p99 {} ms", rounded(*rate), ms(*p50), ms(*p99)));
    let label = format!("Latency by datagrams/s. {}.", values.collect::<Vec<_>>().join("; "));
    let legend = [(Paint::Line(0), "p50"), (Paint::Line(1), "p99"), (Paint::Quiet, "p99 budget")];
    let legend = legend.map(|(paint, name)| (paint, name.to_owned()));
    Ok(Some(figure(plot::lines(&label, &x, &y, &lines)?, &legend)))
}

/// Rate, p50 and p99 (us) of each rate, lowest rate first.
fn worst_latencies(trials: &[Trial]) -> Vec<(f64, f64, f64)> {
    let mut rates: Vec<(f64, f64, f64)> = Vec::new();
    let arrived = trials.iter().filter(|trial| trial.rate > 0.0 && trial.sent > trial.lost);
    for trial in arrived.filter(|trial| trial.p50_us > 0.0 && trial.p99_us > 0.0) {
        match rates.iter_mut().find(|(rate, ..)| *rate == trial.rate) {
            Some((_, p50, p99)) => (*p50, *p99) = (p50.max(trial.p50_us), p99.max(trial.p99_us)),
            None => rates.push((trial.rate, trial.p50_us, trial.p99_us)),
        }
    }
    rates.sort_by(|one, other| one.0.total_cmp(&other.0));
    rates
}
