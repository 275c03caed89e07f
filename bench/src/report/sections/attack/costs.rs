//! Delay of the adversary's own datagrams, and bytes on the access links.

use hdrhistogram::Histogram;
use maud::{Markup, PreEscaped, html};

use super::super::{Section, parts};
use super::mean;
use crate::attack::{AttackResult, RunInfo};
use crate::report::format::{axis_number, ms};
use crate::report::plot::{self, Axis, Bar};
use crate::report::sources::Labelled;
use crate::report::table::{Row, group, number, table, word};
use crate::results::histogram;

/// Bars of a histogram.
const BARS: usize = 40;

pub(in super::super) fn delay(attacks: &[Labelled<AttackResult>]) -> anyhow::Result<Option<Section>> {
    let about = "One-way forward delay, measured on the wires with datagrams of the adversary's own user: from its \
                 access link to its destination. This is what a user pays for the mixing, without the delay of \
                 real links. It is also what the attackers know: the narrower it is, the better they match. The \
                 slowest 0.1 % are left out. The delay of the ideal case is that of its model.";
    let body = parts(about, attacks, delay_part)?;
    Ok(body.map(|body| Section { id: "attack-delay", title: "Delay by case", body }))
}

pub(in super::super) fn cost(attacks: &[Labelled<AttackResult>]) -> anyhow::Result<Option<Section>> {
    let about = "Bytes of UDP payload of one user in an hour, without headers of IP and UDP. Flow is what the \
                 application sends and receives behind the exit; access link is what the user pays for it, with cells \
                 that are not full and those without data. Times is the ratio. The ideal case costs what its model \
                 sends: it shows the price of constant links, not of a class of eddy.";
    let body = parts(about, attacks, |result| Ok(cost_part(result)))?;
    Ok(body.map(|body| Section { id: "attack-cost", title: "Cost by case", body }))
}

/// The records of a case.
fn of_case<'a>(result: &'a AttackResult, case: &'a str) -> impl Iterator<Item = &'a RunInfo> {
    result.runs.iter().filter(move |run| run.case == case)
}

fn delays(result: &AttackResult, case: &str) -> anyhow::Result<Histogram<u64>> {
    let mut all = histogram();
    for run in of_case(result, case) {
        all.add(run.costs.delay.histogram()?)?;
    }
    Ok(all)
}

fn delay_part(result: &AttackResult) -> anyhow::Result<Markup> {
    let mut plots = Vec::new();
    for summary in &result.summaries {
        let case = &summary.case;
        let all = delays(result, case)?;
        if all.is_empty() {
            continue;
        }
        let at = |quantile| ms(all.value_at_quantile(quantile) as f64 / 1e3);
        let figures = format!("p50 {} ms, p99 {} ms, {} datagrams", at(0.5), at(0.99), all.len());
        let label = format!("Delay of case {case}: {figures}.");
        let bars = bars(&all);
        let x = Axis::linear("ms", bars.last().map_or(1.0, |bar| bar.to), axis_number);
        let y = Axis::linear("datagrams, %", bars.iter().map(|bar| bar.height).fold(0.0, f64::max), axis_number);
        plots.push((format!("{case}: {figures}"), plot::bars(&label, &x, &y, &bars)?));
    }
    Ok(html! {
        @if plots.is_empty() { p { "No datagram of the adversary's own user arrived." } }
        div.plots { @for (caption, svg) in &plots { figure { figcaption { (caption) } (PreEscaped(svg)) } } }
    })
}

/// Of equal width, from 0 to the slowest but 0.1 %: milliseconds, and per cent of the datagrams.
fn bars(all: &Histogram<u64>) -> Vec<Bar> {
    let end = all.value_at_quantile(0.999).max(1) as f64;
    let edge = |number: usize| end / 1e6 * number as f64 / BARS as f64;
    let mut counts = [0; BARS];
    for step in all.iter_recorded() {
        let value = all.lowest_equivalent(step.value_iterated_to()) as f64;
        if let Some(count) = counts.get_mut((value / end * BARS as f64) as usize) {
            *count += step.count_at_value();
        }
    }
    let height = |count: u64| 100.0 * count as f64 / all.len() as f64;
    let bars = counts.iter().enumerate();
    bars.map(|(at, count)| Bar { from: edge(at), to: edge(at + 1), height: height(*count) }).collect()
}

fn cost_part(result: &AttackResult) -> Markup {
    let mut columns = vec![word("case"), word("profile")];
    columns.extend(group("delay, ms", ["p50", "p99"]));
    columns.extend(group("access link, MB/h", ["forward", "backward"]));
    columns.extend(group("flow, MB/h", ["forward ", "backward "]));
    columns.push(number("times"));
    let rows: Vec<Row> = result.summaries.iter().map(|summary| cost_row(result, &summary.case)).collect();
    table("Cost of each case", &columns, &rows)
}

fn cost_row(result: &AttackResult, case: &str) -> Row {
    let profile = result.results.iter().find(|found| found.case == case).and_then(|found| found.profile.clone());
    let of_delay = |value: fn(&RunInfo) -> f64| mean(of_case(result, case).map(value));
    let bytes = |value: fn(&RunInfo) -> u64| mean(of_case(result, case).map(|run| value(run) as f64)).unwrap_or(0.0);
    let access = [bytes(|run| run.costs.access_bytes_per_hour[0]), bytes(|run| run.costs.access_bytes_per_hour[1])];
    let flow = [bytes(|run| run.costs.flow_bytes_per_hour[0]), bytes(|run| run.costs.flow_bytes_per_hour[1])];
    let delays = [of_delay(|run| run.costs.delay.p50), of_delay(|run| run.costs.delay.p99)];
    let mut cells = vec![case.to_owned(), profile.unwrap_or_else(|| "-".to_owned())];
    cells.extend(delays.map(|us| us.map_or_else(|| "-".to_owned(), ms)));
    cells.extend(access.into_iter().chain(flow).map(|bytes| format!("{:.1}", bytes / 1e6)));
    let payload = flow[0] + flow[1];
    cells.push(if payload > 0.0 { format!("{:.1}", (access[0] + access[1]) / payload) } else { "-".to_owned() });
    Row::new(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_bars_hold_all_but_the_slowest() {
        let mut all = histogram();
        (1..=10_000u64).for_each(|number| all.record(number * 1000).unwrap());
        let bars = bars(&all);
        assert!(bars[0].from == 0.0 && (bars[BARS - 1].to - 10.0).abs() < 0.02);
        let sum = bars.iter().map(|bar| bar.height).sum::<f64>();
        assert!((99.8..=100.1).contains(&sum), "{sum}");
    }
}
