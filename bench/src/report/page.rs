//! The page: sections in the order in which they are asked for, each left out when nothing is known of it.

use hdrhistogram::Histogram;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::nodes::{self, Quantiles};
use super::plot::{self, Axis, Group, Line, Paint};
use super::read::{Capacity, Hop, HopRow, PathRows, Run, Sources};
use crate::results::{ChainFacts, Floor, Second, Spread, Stream};

/// Nothing comes from elsewhere, and nothing runs.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
/// Points of a line over time: longer runs are told by several seconds at once.
const BINS_MAX: usize = 600;
/// Steps of a percentile line for each nine.
const STEPS: u32 = 40;
/// Nines that a plot shows at most: what fewer than one in ten millions does is in the tables, as the greatest.
const NINES_MAX: f64 = 7.0;

/// The whole page.
///
/// # Errors
/// A plot cannot be drawn.
pub fn write(title: &str, sources: &Sources) -> anyhow::Result<String> {
    let sections: Vec<Section> = [
        delivery(&sources.runs),
        percentiles(
            &sources.runs,
            "latency",
            "Latency by percentile",
            "One way, from the time at which a datagram was meant to leave to its arrival, so a generator that falls \
             behind shows. Read it from the right: at 99 %, one datagram in a hundred took longer than the line says.",
            |run, at| Some(&run.times[at].latency),
            true,
        )?,
        percentiles(
            &sources.runs,
            "round-trip",
            "Round trip by percentile",
            "From the time at which a datagram was meant to leave to the arrival of its answer, of the streams that \
             were answered.",
            |run, at| run.times[at].round_trip.as_ref(),
            false,
        )?,
        over_time(&sources.runs)?,
        losses(&sources.runs),
        batches(&sources.runs)?,
        stays(&sources.runs),
        chain_nodes(&sources.runs),
        capacities(&sources.capacities)?,
        hops(&sources.hops)?,
        paths(&sources.paths),
        place(sources),
    ]
    .into_iter()
    .flatten()
    .collect();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="generator" content={ "eddy-bench " (env!("CARGO_PKG_VERSION")) };
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) (PreEscaped(plot::style())) }
            }
            body {
                header {
                    h1 { (title) }
                    p.quiet { (sources.summary()) "; made by eddy-bench report" }
                    nav aria-label="Sections" {
                        @for section in &sections { a href={ "#" (section.id) } { (section.title) } }
                    }
                }
                main {
                    @for section in &sections {
                        section id=(section.id) { h2 { (section.title) } (section.body) }
                    }
                }
            }
        }
    };
    Ok(page.into_string())
}

struct Section {
    id: &'static str,
    title: &'static str,
    body: Markup,
}

/// A table's column.
#[derive(Clone, Copy)]
struct Column {
    name: &'static str,
    is_number: bool,
    /// May be broken into lines.
    is_long: bool,
    /// What stands over it and those beside it of the same group.
    group: &'static str,
}

const fn number(name: &'static str) -> Column {
    Column { name, is_number: true, is_long: false, group: "" }
}

const fn word(name: &'static str) -> Column {
    Column { name, is_number: false, is_long: false, group: "" }
}

const fn long(name: &'static str) -> Column {
    Column { name, is_number: false, is_long: true, group: "" }
}

/// Numbers under a common head.
fn under<const N: usize>(group: &'static str, names: [&'static str; N]) -> [Column; N] {
    names.map(|name| Column { group, ..number(name) })
}

/// A table's row.
#[derive(Default)]
struct Row {
    cells: Vec<String>,
    /// Only there for comparison.
    is_quiet: bool,
    /// The first of its run.
    is_first: bool,
    /// A cell that should not be as it is.
    bad: Option<usize>,
}

impl Row {
    fn is_bad(&self, at: usize) -> Option<&'static str> {
        (self.bad == Some(at)).then_some("yes")
    }
}

/// The first cell of a row is its name.
fn table(label: &str, columns: &[Column], rows: &[Row]) -> Markup {
    let class = |column: &Column| match column {
        Column { is_number: true, .. } => Some("number"),
        Column { is_long: true, .. } => Some("long"),
        _ => None,
    };
    let groups: Vec<&[Column]> = columns.chunk_by(|one, next| one.group == next.group).collect();
    html! {
        div.scroll tabindex="0" role="region" aria-label=(label) {
            table {
                thead {
                    @if groups.len() > 1 {
                        tr.over {
                            @for group in groups {
                                @if group[0].group.is_empty() { td colspan=(group.len()) {} }
                                @else { th scope="colgroup" colspan=(group.len()) { (group[0].group) } }
                            }
                        }
                    }
                    tr { @for column in columns { th scope="col" class=[class(column)] { (column.name) } } }
                }
                tbody {
                    @for row in rows {
                        tr.quiet[row.is_quiet].first[row.is_first] {
                            @for (at, (cell, column)) in row.cells.iter().zip(columns).enumerate() {
                                @if at == 0 { th scope="row" { (cell) } }
                                @else { td class=[class(column)] data-bad=[row.is_bad(at)] { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn figure(svg: String, legend: &[(Paint, String)]) -> Markup {
    html! {
        figure {
            div.scroll tabindex="0" role="region" aria-label="A plot" { (PreEscaped(svg)) }
            (legend_of(legend, Paint::swatch))
        }
    }
}

fn legend_of(legend: &[(Paint, String)], sample: fn(Paint) -> String) -> Markup {
    html! {
        figcaption { ul.legend {
            @for (paint, name) in legend { li { (PreEscaped(sample(*paint))) (name) } }
        } }
    }
}

/// 1,234,567
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The same of what has no whole parts worth telling.
fn rounded(number: f64) -> String {
    count(number.round() as u64)
}

/// Microseconds as milliseconds.
fn ms(us: f64) -> String {
    format!("{:.3}", us / 1e3)
}

fn percent(part: u64, all: u64) -> String {
    share(100.0 * part as f64 / all.max(1) as f64)
}

/// Per cent, as exactly as it takes.
fn share(percent: f64) -> String {
    match percent {
        0.0 => "0".into(),
        percent if percent < 0.01 => format!("{percent:.4}"),
        percent if percent < 10.0 => format!("{percent:.2}"),
        percent => format!("{percent:.1}"),
    }
}

/// A number on an axis.
fn short(value: f64) -> String {
    format!("{}", (value * 1e6).round() / 1e6)
}

/// A time on an axis, in the unit that suits it.
fn tick(ms: f64) -> String {
    match ms {
        ms if ms < 0.999 => format!("{} us", short(ms * 1e3)),
        ms if ms < 999.0 => format!("{} ms", short(ms)),
        ms => format!("{} s", short(ms / 1e3)),
    }
}

fn stream_name(stream: &Stream) -> String {
    format!("{} {}", stream.profile, stream.direction)
}

/// Runs with each of their streams, and the look of its line.
///
/// Streams of one kind have one colour and each run dashes of its own, as far as dashes go; else each line counts.
fn streams(runs: &[Run]) -> impl Iterator<Item = (Paint, &Run, usize, &Stream)> {
    let mut kinds: Vec<String> = Vec::new();
    for name in runs.iter().flat_map(|run| &run.results.streams).map(stream_name) {
        if !kinds.contains(&name) {
            kinds.push(name);
        }
    }
    let by_kind = kinds.len() > 1 && kinds.len() <= plot::COLORS && runs.len() <= plot::ROUNDS;
    let all = runs.iter().enumerate().flat_map(|(number, run)| {
        run.results.streams.iter().enumerate().map(move |(at, stream)| (number, run, at, stream))
    });
    all.enumerate().map(move |(line, (number, run, at, stream))| {
        let kind = kinds.iter().position(|kind| *kind == stream_name(stream)).unwrap_or_default();
        (Paint::Line(if by_kind { number * plot::COLORS + kind } else { line }), run, at, stream)
    })
}

/// Floors, each once: runs of one command share theirs.
fn floors(runs: &[Run]) -> Vec<(&Floor, Vec<&str>)> {
    let mut floors: Vec<(&Floor, Vec<&str>)> = Vec::new();
    for run in runs {
        let Some(floor) = &run.results.floor else { continue };
        match floors.iter_mut().find(|(known, _)| *known == floor) {
            Some((_, names)) => names.push(&run.label),
            None => floors.push((floor, vec![&run.label])),
        }
    }
    floors
}

fn delivery(runs: &[Run]) -> Option<Section> {
    if runs.is_empty() {
        return None;
    }
    let any = |what: fn(&Stream) -> bool| runs.iter().flat_map(|run| &run.results.streams).any(what);
    let (refused, answered, calls) =
        (any(|s| s.refused > 0), any(|s| s.round_trip.is_some()), any(|s| s.mos.is_some()));
    let mut columns = vec![word("run"), word("stream"), number("flows"), number("sent/s")];
    if refused {
        columns.push(number("refused"));
    }
    columns.push(number("delivered"));
    let lost_at = columns.len();
    columns.extend(under("lost", ["count", "%"]));
    columns.extend(["reordered", "twice"].map(number));
    let before = columns.len();
    columns.extend(under("latency, ms", ["p50", "p99", "p99.9", "max"]));
    columns.extend(under("jitter, ms", ["p50", "p99"]));
    if answered {
        columns.extend(under("round trip, ms", ["p50", "p99"]));
    }
    if calls {
        columns.extend(under("MOS", ["mean", "worst"]));
    }
    let mut rows = Vec::new();
    for (_, run, at, stream) in streams(runs) {
        let Stream { flows, sent, delivered, lost, reordered, duplicated, latency, jitter, round_trip, mos, .. } =
            stream;
        let Spread { p50, p99, p999, max, .. } = latency;
        let per_s = *sent as f64 / run.results.seconds.max(1e-9);
        let name = if at == 0 { run.label.clone() } else { String::new() };
        let mut cells = vec![name, stream_name(stream), count(*flows as u64), rounded(per_s)];
        if refused {
            cells.push(count(stream.refused));
        }
        cells.extend([count(*delivered), count(*lost), percent(*lost, *sent), count(*reordered), count(*duplicated)]);
        let times = [*p50, *p99, *p999, *max, jitter.p50, jitter.p99];
        // Of nothing there is no median.
        cells.extend(times.map(|time| if *delivered == 0 { "-".into() } else { ms(time) }));
        if answered {
            let none = || ["-".to_owned(), "-".to_owned()];
            cells.extend(round_trip.as_ref().map_or_else(none, |trip| [ms(trip.p50), ms(trip.p99)]));
        }
        if calls {
            let none = || ["-".to_owned(), "-".to_owned()];
            cells.extend(mos.map_or_else(none, |mos| [mos.mean, mos.worst].map(|mos| format!("{mos:.2}"))));
        }
        rows.push(Row { cells, is_first: at == 0, bad: (*lost > 0).then_some(lost_at), ..Row::default() });
    }
    let floors = floors(runs);
    for (at, (floor, names)) in floors.iter().enumerate() {
        let of = if floors.len() == 1 { String::new() } else { format!(" of {}", names.join(", ")) };
        let rate = format!("up to {}", rounded(floor.ceiling_per_s));
        let mut cells = vec!["generator alone".to_owned() + &of, String::new(), String::new(), rate];
        let times = [floor.p50_us, floor.p99_us, floor.p999_us, floor.max_us];
        cells.resize(before, String::new());
        cells.extend(times.map(ms));
        cells.resize(columns.len(), String::new());
        rows.push(Row { cells, is_quiet: true, is_first: at == 0, bad: None });
    }
    let ended: Vec<&Run> = runs.iter().filter(|run| run.results.interrupted).collect();
    let body = html! {
        p.quiet {
            "Latency is one way, from the time at which a datagram was meant to leave; jitter is that of RFC 3550. "
            @if !floors.is_empty() {
                "The generator alone is the same load straight into its own sink: so much is no chain's doing."
            } @else {
                "No run here was measured beside the generator alone."
            }
        }
        (table("Delivery and latency by run and stream", &columns, &rows))
        @for run in &ended {
            p { (run.label) ": somebody ended it after " (format!("{:.1}", run.results.seconds)) " s." }
        }
    };
    Some(Section { id: "delivery", title: "Delivery and latency", body })
}

/// A line of a histogram: nines, and the logarithm of milliseconds.
fn nines(histogram: &Histogram<u64>, to: f64) -> Vec<(f64, f64)> {
    let last = (histogram.len() as f64).log10().min(to);
    let value = |nanos: u64| (nanos.max(1) as f64 / 1e6).log10();
    let steps = (last * f64::from(STEPS)).floor() as u32;
    let at = |step: u32| f64::from(step) / f64::from(STEPS);
    let mut points: Vec<(f64, f64)> = Vec::new();
    for step in 0..=steps {
        let point = (at(step), value(histogram.value_at_quantile(1.0 - 10f64.powf(-at(step)))));
        // The middle of a level stretch says nothing.
        if points.len() > 1 && points[points.len() - 2..].iter().all(|before| before.1 == point.1) {
            points.pop();
        }
        points.push(point);
    }
    if (histogram.len() as f64).log10() <= to {
        points.push((last, value(histogram.max())));
    }
    points
}

fn percentiles<'a>(
    runs: &'a [Run],
    id: &'static str,
    title: &'static str,
    say: &str,
    of: impl Fn(&'a Run, usize) -> Option<&'a Histogram<u64>>,
    with_floors: bool,
) -> anyhow::Result<Option<Section>> {
    let all = streams(runs).filter_map(|(paint, run, at, stream)| Some((paint, run, stream, of(run, at)?)));
    let all: Vec<_> = all.filter(|(_, _, _, histogram)| !histogram.is_empty()).collect();
    if all.is_empty() {
        return Ok(None);
    }
    let floors = if with_floors { floors(runs) } else { Vec::new() };
    let most = all.iter().map(|(_, _, _, histogram)| histogram.len()).max().unwrap_or(1) as f64;
    let x = Axis::nines("percentile of the datagrams", most.log10().min(NINES_MAX));
    let times = all.iter().flat_map(|(_, _, _, histogram)| [histogram.min(), histogram.max()]);
    let floor_times = floors.iter().flat_map(|(floor, _)| [floor.p50_us, floor.max_us]).map(|us| us / 1e3);
    let times: Vec<f64> = times.map(|nanos| nanos as f64 / 1e6).chain(floor_times).filter(|ms| *ms > 0.0).collect();
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let y = Axis::log("time", least, times.iter().copied().fold(0.0, f64::max), tick);
    let mut lines = Vec::new();
    let mut legend = Vec::new();
    let mut told = Vec::new();
    // What is only there for comparison lies below the others.
    for (floor, _) in &floors {
        let points = [(0.5f64, floor.p50_us), (0.99, floor.p99_us), (0.999, floor.p999_us)];
        let points = points.map(|(quantile, us)| (-(1.0 - quantile).log10(), (us.max(1e-3) / 1e3).log10()));
        lines.push(Line { points: points.to_vec(), paint: Paint::Quiet });
    }
    for (paint, run, stream, histogram) in &all {
        let name = format!("{}: {}", run.label, stream_name(stream));
        let at = |quantile| ms(histogram.value_at_quantile(quantile) as f64 / 1e3);
        told.push(format!("{name}: p50 {} ms, p99 {} ms, p99.9 {} ms", at(0.5), at(0.99), at(0.999)));
        lines.push(Line { points: nines(histogram, NINES_MAX), paint: *paint });
        legend.push((*paint, name));
    }
    if !floors.is_empty() {
        legend.push((Paint::Quiet, "generator alone, p50 to p99.9".to_owned()));
    }
    let label = format!("{title}, a line for each run and stream. {}.", told.join("; "));
    let svg = plot::lines(&label, &x, &y, &lines)?;
    let body = html! { p.quiet { (say) } (figure(svg, &legend)) };
    Ok(Some(Section { id, title, body }))
}

/// One or more seconds of a run.
struct Bin {
    from: f64,
    to: f64,
    sent_per_s: f64,
    delivered_per_s: f64,
    /// Per cent.
    loss: f64,
    /// The worst second's, in milliseconds.
    p99: Option<f64>,
}

/// The last second may be cut short.
fn bins(series: &[Second], seconds: f64) -> Vec<Bin> {
    let width = series.len().div_ceil(BINS_MAX).max(1);
    let chunks = series.chunks(width).enumerate();
    let bins = chunks.map(|(at, chunk)| {
        let from = (at * width) as f64;
        let whole = from + chunk.len() as f64;
        // A last sliver would say more of the clock than of the chain.
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

/// A level stretch for each bin.
fn stairs(bins: &[Bin], value: impl Fn(&Bin) -> Option<f64>) -> Vec<(f64, f64)> {
    let stretches = bins.iter().filter_map(|bin| Some((bin, value(bin)?)));
    stretches.flat_map(|(bin, value)| [(bin.from, value), (bin.to, value)]).collect()
}

fn over_time(runs: &[Run]) -> anyhow::Result<Option<Section>> {
    let all: Vec<(usize, &Run, Vec<Bin>)> = runs
        .iter()
        .enumerate()
        .map(|(number, run)| (number, run, bins(&run.results.series, run.results.seconds)))
        .filter(|(_, _, bins)| !bins.is_empty())
        .collect();
    if all.is_empty() {
        return Ok(None);
    }
    let most = |value: &dyn Fn(&Bin) -> f64| all.iter().flat_map(|(.., bins)| bins).map(value).fold(0.0, f64::max);
    let x = Axis::time("seconds since the start", most(&|bin| bin.to));
    let legend: Vec<_> = all.iter().map(|(number, run, _)| (Paint::Line(*number), run.label.clone())).collect();
    let lines = |value: &dyn Fn(&Bin) -> Option<f64>| {
        let line = |(number, _, bins): &(usize, &Run, Vec<Bin>)| Line {
            points: stairs(bins, value),
            paint: Paint::Line(*number),
        };
        all.iter().map(line).collect::<Vec<_>>()
    };
    let label = |what: &str, value: &dyn Fn(&[Bin]) -> String| {
        let told = all.iter().map(|(_, run, bins)| format!("{}: {}", run.label, value(bins)));
        format!("{what} over time, a line for each run. {}.", told.collect::<Vec<_>>().join("; "))
    };
    let rate_axis = Axis::linear("delivered a second", most(&|bin| bin.sent_per_s.max(bin.delivered_per_s)), rounded);
    let mut delivered: Vec<Line> = all
        .iter()
        .filter(|(.., bins)| bins.iter().any(|bin| bin.loss > 0.5))
        .map(|(.., bins)| Line { points: stairs(bins, |bin| Some(bin.sent_per_s)), paint: Paint::Quiet })
        .collect();
    let mut rate_legend = legend.clone();
    if !delivered.is_empty() {
        rate_legend.push((Paint::Quiet, "sent, where it differs".to_owned()));
    }
    delivered.extend(lines(&|bin| Some(bin.delivered_per_s)));
    let mean = |bins: &[Bin]| bins.iter().map(|bin| bin.delivered_per_s).sum::<f64>() / bins.len() as f64;
    let rate = plot::lines(
        &label("Datagrams delivered", &|bins| rounded(mean(bins)) + " a second"),
        &x,
        &rate_axis,
        &delivered,
    )?;
    let worst = most(&|bin| bin.loss);
    let loss = if worst > 0.0 {
        let y = Axis::linear("lost, %", worst, short);
        let worst = |bins: &[Bin]| share(bins.iter().map(|bin| bin.loss).fold(0.0, f64::max)) + " % at worst";
        Some(plot::lines(&label("Datagrams lost", &worst), &x, &y, &lines(&|bin| Some(bin.loss)))?)
    } else {
        None
    };
    let p99s: Vec<f64> =
        all.iter().flat_map(|(.., bins)| bins).filter_map(|bin| bin.p99).filter(|ms| *ms > 0.0).collect();
    let late = if p99s.is_empty() {
        None
    } else {
        let least = p99s.iter().copied().fold(f64::INFINITY, f64::min);
        let y = Axis::log("p99 of the latency", least, p99s.iter().copied().fold(0.0, f64::max), tick);
        let worst = |bins: &[Bin]| ms(1e3 * bins.iter().filter_map(|bin| bin.p99).fold(0.0, f64::max)) + " ms at worst";
        let lines = lines(&|bin| bin.p99.map(|ms| ms.max(1e-6).log10()));
        Some(plot::lines(&label("The latency's 99th percentile", &worst), &x, &y, &lines)?)
    };
    let body = html! {
        p.quiet { "By the second in which datagrams were meant to leave, over all streams of a run." }
        h3 { "Throughput" }
        (figure(rate, &rate_legend))
        h3 { "Loss" }
        @if let Some(loss) = loss { (figure(loss, &legend)) } @else { p { "Nothing was lost in any second." } }
        @if let Some(late) = late { h3 { "Latency" } (figure(late, &legend)) }
    };
    Ok(Some(Section { id: "time", title: "Over time", body }))
}

fn losses(runs: &[Run]) -> Option<Section> {
    let columns = [
        word("run"),
        word("stream"),
        number("lost"),
        number("bursts"),
        number("mean"),
        number("longest"),
        long("times"),
    ];
    let mut rows = Vec::new();
    for (_, run, _, stream) in streams(runs) {
        let mut bursts = stream.loss_bursts.clone();
        bursts.retain(|(_, times)| *times > 0);
        bursts.sort_unstable();
        let Some((longest, _)) = bursts.last() else { continue };
        let times = bursts.iter().map(|(_, times)| *times as f64).sum::<f64>();
        let lost = bursts.iter().map(|(len, times)| *len as f64 * *times as f64).sum::<f64>();
        // The lengths that matter are the most frequent and the longest.
        let told: Vec<String> =
            bursts.iter().map(|(len, times)| format!("{} of {}", count(*times), count(*len))).collect();
        let told = match told.len() {
            0..=14 => told.join(", "),
            all => format!("{}, ... {}", told[..10].join(", "), told[all - 3..].join(", ")),
        };
        let cells = vec![
            run.label.clone(),
            stream_name(stream),
            rounded(lost),
            rounded(times),
            format!("{:.2}", lost / times),
            count(*longest),
            told,
        ];
        rows.push(Row { cells, ..Row::default() });
    }
    if rows.is_empty() {
        return None;
    }
    let body = html! {
        p.quiet { "Datagrams of a flow that were lost in a row: a codec hides one, and no ten." }
        (table("Losses in a row by run and stream", &columns, &rows))
    };
    Some(Section { id: "losses", title: "Losses in a row", body })
}

/// Bars over powers of two: from, to, per cent.
fn size_bars(sizes: &[(u64, u64)]) -> Vec<(f64, f64, f64)> {
    let all = sizes.iter().map(|(_, count)| *count as f64).sum::<f64>();
    let mut below = 0;
    let mut bars = Vec::new();
    for (upper, count) in sizes {
        // Nodes count each size below 16 by itself, and eight buckets for each power of two from there.
        let width = 1u64 << upper.max(&1).ilog2().saturating_sub(3);
        let from = (upper.saturating_add(1) - width.min(*upper)).max(below + 1).max(1);
        bars.push(((from as f64).log2(), (upper.saturating_add(1).max(2) as f64).log2(), 100.0 * *count as f64 / all));
        below = *upper;
    }
    bars
}

fn batches(runs: &[Run]) -> anyhow::Result<Option<Section>> {
    let with_nodes = runs.iter().filter(|run| !run.results.nodes.is_empty());
    let with_nodes: Vec<&Run> = with_nodes.collect();
    if with_nodes.is_empty() {
        return Ok(None);
    }
    let mut plots: Vec<(&str, Vec<(String, String)>)> = Vec::new();
    for run in &with_nodes {
        let mut of_run = Vec::new();
        for node in &run.results.nodes {
            let sizes = nodes::batch_sizes(node);
            if sizes.is_empty() {
                continue;
            }
            let name = nodes::name(node);
            let bars = size_bars(&sizes);
            let (to, most) = (bars.iter().map(|bar| bar.1), bars.iter().map(|bar| bar.2));
            let x = Axis::powers_of_two("cells in a batch", to.fold(1.0, f64::max));
            let y = Axis::linear("batches, %", most.fold(0.0, f64::max), short);
            let all = sizes.iter().map(|(_, count)| *count as f64).sum::<f64>();
            let mode = sizes.iter().max_by_key(|(_, count)| *count).map_or(0, |(upper, _)| *upper);
            let largest = nodes::facts(node).largest_batch;
            let mode = if largest > 0 { mode.min(largest) } else { mode };
            let label = format!(
                "Sizes of {}'s batches in {}: {} batches, most often of up to {mode} cells, the largest of {largest}.",
                name,
                run.label,
                rounded(all)
            );
            of_run.push((format!("{name}: {} batches", rounded(all)), plot::bars(&label, &x, &y, &bars)?));
        }
        if !of_run.is_empty() {
            plots.push((&run.label, of_run));
        }
    }
    let body = html! {
        @if plots.is_empty() {
            p { "The nodes of these runs do not tell how large their batches were, only the mean (see the nodes)." }
        } @else {
            p.quiet {
                "How many of a node's batches had so many cells. A mix's batch is a release of its pool: the cells "
                "among which one hides. On entry and exit it is what one turn of the worker carried."
            }
            @for (run, plots) in &plots {
                h3 { (run) }
                div.plots {
                    @for (name, svg) in plots { figure { figcaption { (name) } (PreEscaped(svg)) } }
                }
            }
        }
    };
    Ok(Some(Section { id: "batches", title: "Batch sizes", body }))
}

fn stays(runs: &[Run]) -> Option<Section> {
    let mut columns = vec![word("run"), word("node"), word("direction"), number("counted")];
    for part in ["mixing, ms", "eddy, ms", "both, ms"] {
        columns.extend(under(part, ["p50", "p99"]));
    }
    let mut rows = Vec::new();
    for run in runs {
        let mut is_first = true;
        for node in &run.results.nodes {
            for (at, stay) in nodes::stays(node).into_iter().enumerate() {
                let label = if is_first { run.label.clone() } else { String::new() };
                let name = if at == 0 { nodes::name(node) } else { String::new() };
                let mut cells = vec![label, name, stay.direction.to_owned(), count(stay.count)];
                for part in [stay.mixing, stay.eddy, stay.total] {
                    let none = || ["-".to_owned(), "-".to_owned()];
                    cells.extend(part.map_or_else(none, |Quantiles { p50, p99 }| [ms(p50), ms(p99)]));
                }
                rows.push(Row { cells, is_first, ..Row::default() });
                is_first = false;
            }
        }
    }
    if rows.is_empty() {
        return None;
    }
    let body = html! {
        p.quiet {
            "How long cells stayed in a node, as it says itself. Mixing is the wait in the pool until that was due: "
            "what the mixing strategy costs. eddy is all the rest: what the program costs, from the turn that received "
            "a cell to the end of the one that sent it. Time between nodes is in neither."
        }
        (table("Time inside the nodes", &columns, &rows))
    };
    Some(Section { id: "inside", title: "Time inside the nodes", body })
}

fn chain_nodes(runs: &[Run]) -> Option<Section> {
    let columns = [
        word("run"),
        word("node"),
        number("cells"),
        number("batches"),
        number("cells in one"),
        number("largest"),
        number("channels in one"),
        number("CPU ns/cell"),
        number("kernel drops"),
        word("ledger"),
        long("dropped"),
    ];
    let mut rows = Vec::new();
    for run in runs {
        for (at, node) in run.results.nodes.iter().enumerate() {
            let facts = nodes::facts(node);
            let dropped = facts.dropped.iter().map(|(why, times)| format!("{} {why}", count(*times)));
            let dropped = dropped.collect::<Vec<_>>().join(", ");
            let cells = vec![
                if at == 0 { run.label.clone() } else { String::new() },
                nodes::name(node),
                count(facts.cells),
                count(facts.batches),
                format!("{:.1}", facts.mean_batch),
                count(facts.largest_batch),
                format!("{:.1}", facts.channels_in_one),
                rounded(facts.cell_ns),
                count(facts.kernel_drops),
                if facts.closed { "closes" } else { "open" }.to_owned(),
                if dropped.is_empty() { "nothing".to_owned() } else { dropped },
            ];
            rows.push(Row { cells, is_first: at == 0, bad: (!facts.closed).then_some(9), ..Row::default() });
        }
    }
    if rows.is_empty() {
        return None;
    }
    let body = html! {
        p.quiet {
            "What the chain's nodes said at the end. A ledger closes when every packet was sent, dropped for a named "
            "reason, consumed or held. Processor time is that of the whole process, start and setup included."
        }
        (table("The nodes", &columns, &rows))
    };
    Some(Section { id: "nodes", title: "Nodes", body })
}

fn capacities(capacities: &[Capacity]) -> anyhow::Result<Option<Section>> {
    if capacities.is_empty() {
        return Ok(None);
    }
    let mut at_columns = vec![word("of it, %"), number("rate"), number("lost")];
    at_columns.extend(under("latency, ms", ["p50", "p99", "p99.9", "max"]));
    let mut columns = vec![word("rate"), word("passed"), number("sent"), number("lost")];
    columns.extend(under("latency, ms", ["p50", "p99"]));
    columns.push(long("ran into"));
    let mut parts = Vec::new();
    for capacity in capacities {
        let Capacity { label, lossless_per_s, interval, p99_us, limited_by, budget_us, payload_len, .. } = capacity;
        let at = capacity.at.iter().map(|at| {
            let mut cells = vec![share(100.0 * at.part), rounded(at.rate), count(at.lost)];
            cells.extend([at.p50_us, at.p99_us, at.p999_us, at.max_us].map(ms));
            Row { cells, bad: (at.lost > 0).then_some(2), ..Row::default() }
        });
        let at: Vec<Row> = at.collect();
        let tries = capacity.tries.iter().map(|tried| {
            let passed = if tried.passed { "yes" } else { "no" };
            let mut cells = vec![rounded(tried.rate), passed.to_owned(), count(tried.sent), count(tried.lost)];
            cells.extend([tried.p50_us, tried.p99_us].map(ms));
            cells.push(tried.limited_by.clone().unwrap_or_default());
            Row { cells, is_quiet: !tried.passed, ..Row::default() }
        });
        let tries: Vec<Row> = tries.collect();
        let upper = interval[1].map_or_else(String::new, |upper| format!("; {} do not", rounded(upper)));
        parts.push(html! {
            h3 { (label) }
            p {
                strong { (rounded(*lossless_per_s)) " datagrams a second" }
                " of " (payload_len) " bytes pass without loss" (upper) ". p99 is " (ms(*p99_us)) " ms there, of "
                (ms(*budget_us)) " ms that it may be. Limited by " (limited_by) "."
                @if capacity.interrupted { " Somebody ended the search before its time." }
            }
            @if let Some(plot) = tried(capacity)? { (plot) }
            @if !at.is_empty() { (table("Latency at a part of the capacity", &at_columns, &at)) }
            (table("Rates that were tried", &columns, &tries))
        });
    }
    let body = html! {
        p.quiet {
            "The highest rate at which every datagram arrives, no ledger drops one, and 99 of 100 arrive in time "
            "(RFC 2544, 26.1)."
        }
        @for part in &parts { (part) }
    };
    Ok(Some(Section { id: "capacity", title: "Capacity", body }))
}

/// Latency over the rates that were tried, the worst of each.
fn tried(capacity: &Capacity) -> anyhow::Result<Option<Markup>> {
    let mut rates: Vec<(f64, f64, f64)> = Vec::new();
    let arrived = capacity.tries.iter().filter(|tried| tried.rate > 0.0 && tried.sent > tried.lost);
    for tried in arrived.filter(|tried| tried.p50_us > 0.0 && tried.p99_us > 0.0) {
        match rates.iter_mut().find(|(rate, ..)| *rate == tried.rate) {
            Some((_, p50, p99)) => (*p50, *p99) = (p50.max(tried.p50_us), p99.max(tried.p99_us)),
            None => rates.push((tried.rate, tried.p50_us, tried.p99_us)),
        }
    }
    if rates.len() < 2 {
        return Ok(None);
    }
    rates.sort_by(|one, other| one.0.total_cmp(&other.0));
    let budget = capacity.budget_us.max(f64::MIN_POSITIVE);
    let (least, most) =
        rates.iter().fold((budget, budget), |(least, most), rate| (least.min(rate.1), most.max(rate.2)));
    let x = Axis::log("datagrams a second", rates[0].0, rates[rates.len() - 1].0, rounded);
    let y = Axis::log("latency", least / 1e3, most / 1e3, tick);
    let line = |of: fn(&(f64, f64, f64)) -> f64, paint| Line {
        points: rates.iter().map(|rate| (rate.0.log10(), (of(rate) / 1e3).log10())).collect(),
        paint,
    };
    let level = (budget / 1e3).log10();
    let lines = [
        Line {
            points: vec![(rates[0].0.log10(), level), (rates[rates.len() - 1].0.log10(), level)],
            paint: Paint::Quiet,
        },
        line(|rate| rate.1, Paint::Line(0)),
        line(|rate| rate.2, Paint::Line(1)),
    ];
    let told =
        rates.iter().map(|(rate, p50, p99)| format!("{}: p50 {} ms, p99 {} ms", rounded(*rate), ms(*p50), ms(*p99)));
    let label = format!("Latency by datagrams a second. {}.", told.collect::<Vec<_>>().join("; "));
    let legend = [(Paint::Line(0), "p50"), (Paint::Line(1), "p99"), (Paint::Quiet, "what p99 may be")];
    Ok(Some(figure(plot::lines(&label, &x, &y, &lines)?, &legend.map(|(paint, name)| (paint, name.to_owned())))))
}

/// A figure of a row, if it could be had.
type Figure = fn(&HopRow) -> Option<f64>;

/// What `hop` compares, in the order of the bars.
const KINDS: [(&str, Figure); 4] = [
    ("mix", |row| row.cell_ns),
    ("relay with GRO and GSO", |row| row.null_gro_gso_ns),
    ("relay with recvmmsg and sendmmsg", |row| row.null_mmsg_ns),
    ("relay with recvfrom and sendto", |row| row.null_single_ns),
];

fn hops(hops: &[Hop]) -> anyhow::Result<Option<Section>> {
    if hops.is_empty() {
        return Ok(None);
    }
    let mut columns = vec![word("row")];
    columns.extend(under("mix, ns a cell", ["median", "least", "most"]));
    columns.extend(under("relay, ns a cell", ["GRO, GSO", "recvmmsg", "recvfrom"]));
    columns.extend(under("mix over relay", ["GRO, GSO", "recvmmsg"]));
    columns.extend([number("Gbit/s"), number("batch"), word("")]);
    let mut parts = Vec::new();
    for hop in hops {
        let figure = |value: Option<f64>, digits: usize| value.map_or_else(|| "-".into(), |v| format!("{v:.digits$}"));
        let names = hop.rows.iter().map(|row| {
            let from = if row.entries > 0 { format!(", from {} entries", row.entries) } else { String::new() };
            let channels = if row.channels == 1 { "channel" } else { "channels" };
            format!("{}, {} {channels}, pool {}{from}", row.direction, count(row.channels), count(row.pool))
        });
        let names: Vec<String> = names.collect();
        let rows: Vec<Row> = hop
            .rows
            .iter()
            .zip(&names)
            .map(|(row, name)| {
                let [least, most] = row.cell_ns_range.unwrap_or_default();
                let mut cells = vec![name.clone()];
                cells.extend([row.cell_ns, least, most].map(|value| figure(value, 0)));
                cells.extend([row.null_gro_gso_ns, row.null_mmsg_ns, row.null_single_ns].map(|value| figure(value, 0)));
                cells.extend(
                    [(row.ratio_gro_gso, 2), (row.ratio_mmsg, 2), (row.gbit_s, 1), (row.batch, 0)]
                        .map(|(v, d)| figure(v, d)),
                );
                cells.push(if row.blaster_bound { "the mix was not busy" } else { "" }.to_owned());
                Row { cells, ..Row::default() }
            })
            .collect();
        let groups = hop
            .rows
            .iter()
            .zip(&names)
            .map(|(row, name)| Group { name: name.clone(), values: KINDS.iter().map(|(_, of)| of(row)).collect() });
        let groups: Vec<Group> = groups.collect();
        let told = hop.rows.iter().zip(&names).map(|(row, name)| {
            let kinds = KINDS.iter().map(|(kind, of)| format!("{kind} {}", figure(of(row), 0)));
            format!("{name}: {}", kinds.collect::<Vec<_>>().join(", "))
        });
        let label = format!("Processor time for a cell, in nanoseconds. {}.", told.collect::<Vec<_>>().join("; "));
        let svg = plot::groups(&label, &groups, |ns| format!("{} ns", rounded(ns)))?;
        let legend: Vec<_> =
            KINDS.iter().enumerate().map(|(kind, (name, _))| (Paint::Line(kind), (*name).to_owned())).collect();
        parts.push(html! {
            h3 { (hop.label) }
            figure {
                (legend_of(&legend, Paint::block))
                div.scroll tabindex="0" role="region" aria-label="A plot" { (PreEscaped(svg)) }
            }
            (table("Processor time for a cell", &columns, &rows))
        });
    }
    let body = html! {
        p.quiet {
            "Processor time of one mix on one core for each cell, beside relays on the same core that only move the "
            "bytes, without any cryptography. Medians of the rounds."
        }
        @for part in &parts { (part) }
    };
    Ok(Some(Section { id: "hop", title: "A hop", body }))
}

fn paths(paths: &[PathRows]) -> Option<Section> {
    if paths.is_empty() {
        return None;
    }
    let columns = [
        word("direction"),
        number("bytes"),
        number("delivered/s"),
        number("Gbit/s"),
        number("lost, %"),
        number("sent/s"),
        word(""),
    ];
    let node_columns = [word("node"), number("cells"), number("CPU ns/cell")];
    let body = html! {
        p.quiet {
            "What a whole chain carries with at most one datagram in ten thousand lost; chain, generator and sink "
            "share the machine. Both ways together where every datagram is answered."
        }
        @for path in paths {
            @let rows: Vec<Row> = path.rows.iter().map(|row| Row {
                cells: vec![
                    row.direction.clone(),
                    count(row.payload_len),
                    rounded(row.delivered_per_s),
                    format!("{:.2}", row.gbit_s),
                    share(100.0 * row.loss),
                    rounded(row.sent_per_s),
                    if row.generator_bound { "the generator could do no more" } else { "" }.to_owned(),
                ],
                ..Row::default()
            }).collect();
            @let nodes: Vec<Row> = path.nodes.iter().map(|node| Row {
                cells: vec![node.node.clone(), count(node.cells), count(node.cell_ns)],
                ..Row::default()
            }).collect();
            h3 { (path.label) }
            (table("What a chain carries", &columns, &rows))
            @if !nodes.is_empty() { (table("What a cell cost each node", &node_columns, &nodes)) }
            p {
                (path.mixes) " mixes of " (path.lanes) " lanes, " (path.mixing) ", " (path.channels) " channels, "
                (path.flows) " flows; every ledger closed: " (if path.closed { "yes" } else { "no" }) "."
            }
        }
    };
    Some(Section { id: "path", title: "A path", body })
}

fn known(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// What a chain is: class, mixes, mixing, channels, lanes, offload, engine, io.
fn chain_cells(chain: Option<&ChainFacts>) -> [String; 8] {
    let Some(chain) = chain else { return std::array::from_fn(|_| known("")) };
    [
        known(&chain.class),
        chain.mixes.to_string(),
        known(&chain.mixing),
        chain.channels.to_string(),
        chain.lanes.to_string(),
        known(&chain.offload),
        known(&chain.engine),
        known(&chain.io),
    ]
}

fn place(sources: &Sources) -> Option<Section> {
    let columns = [
        word("measurement"),
        word("eddy"),
        long("processor"),
        number("cores"),
        word("Linux"),
        number("load average"),
        number("seconds"),
        word("class"),
        number("mixes"),
        word("mixing"),
        number("channels"),
        number("lanes"),
        word("offload"),
        word("engine"),
        word("io"),
    ];
    let dash = || known("");
    let mut rows = Vec::new();
    for Run { label, results, .. } in &sources.runs {
        let machine = &results.machine;
        let mut cells = vec![
            label.clone(),
            known(&machine.eddy),
            known(&machine.cpu),
            machine.cores.to_string(),
            known(&machine.kernel),
            format!("{:.2}", machine.load),
            format!("{:.1}", results.seconds),
        ];
        cells.extend(chain_cells(results.chain.as_ref()));
        rows.push(Row { cells, ..Row::default() });
    }
    for Capacity { label, machine, chain, .. } in &sources.capacities {
        let cores = machine.cores.as_u64().map_or_else(dash, count);
        let mut cells = vec![label.clone(), known(&machine.eddy), known(&machine.cpu), cores];
        cells.extend([known(&machine.kernel), format!("{:.2}", machine.load), known("")]);
        cells.extend(chain_cells(chain.as_ref()));
        rows.push(Row { cells, ..Row::default() });
    }
    for hop in &sources.hops {
        let machine = &hop.machine;
        let offload = known(&hop.offload) + if hop.lone_sink { ", a sink without GRO" } else { "" };
        let mut cells = vec![hop.label.clone(), known(&machine.eddy), known(&machine.cpu), hop.cores().to_string()];
        cells.extend([known(&machine.kernel), format!("{:.2}", machine.load), dash(), known(&hop.class), "1".into()]);
        cells.extend([dash(), dash(), "1".into(), offload, known(&hop.engine), known(hop.io.as_deref().unwrap_or(""))]);
        rows.push(Row { cells, ..Row::default() });
    }
    for path in &sources.paths {
        let mut cells = vec![path.label.clone(), dash(), dash(), path.cores.to_string(), dash()];
        cells.extend([format!("{:.2}", path.load), dash(), dash(), path.mixes.to_string(), known(&path.mixing)]);
        cells.extend([path.channels.to_string(), path.lanes.to_string(), dash(), dash(), dash()]);
        rows.push(Row { cells, ..Row::default() });
    }
    if rows.is_empty() {
        return None;
    }
    let commands: Vec<(&str, String)> = sources
        .runs
        .iter()
        .map(|run| {
            let command = run.results.command.as_str();
            let whole = if command.starts_with("eddy-bench") { String::new() } else { "eddy-bench ".to_owned() };
            (run.label.as_str(), whole + command)
        })
        .collect();
    let body = html! {
        p.quiet { "A figure says nothing without its machine, and little while that does something else." }
        (table("Where it was measured, and how", &columns, &rows))
        @if !commands.is_empty() {
            h3 { "What repeats it" }
            dl { @for (label, command) in &commands { div { dt { (label) } dd { code { (command) } } } } }
        }
    };
    Some(Section { id: "place", title: "Where and how", body })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::histogram;

    #[test]
    fn a_percentile_line_begins_at_the_least_and_ends_at_the_greatest() {
        let mut all = histogram();
        (1..=10_000u64).for_each(|us| all.record(us * 1000).unwrap());
        let points = nines(&all, NINES_MAX);
        let near = |got: f64, ms: f64| (got - ms.log10()).abs() < 0.01;
        assert!(points[0].0 == 0.0 && near(points[0].1, 0.001), "{:?}", points[0]);
        let last = points[points.len() - 1];
        assert!(last.0 == 4.0 && near(last.1, 10.0), "{last:?}");
        let at_99 = points.iter().find(|point| point.0 == 2.0).unwrap();
        assert!(near(at_99.1, 9.9), "{at_99:?}");
        assert!(points.windows(2).all(|two| two[0].0 <= two[1].0 && two[0].1 <= two[1].1));
        // Of a level stretch only the ends are kept, and more nines than are shown end where the plot does.
        let mut level = histogram();
        level.record_n(5000, 1_000_000_000).unwrap();
        let level = nines(&level, NINES_MAX);
        assert!(level.len() <= 3 && level[level.len() - 1].0 == NINES_MAX, "{level:?}");
    }

    #[test]
    fn a_last_second_that_was_cut_short_is_no_dip() {
        let second = Second { sent: 100, delivered: 100, ..Second::default() };
        let last = Second { sent: 50, delivered: 40, ..Second::default() };
        let all = bins(&[second, second, last], 2.5);
        assert_eq!(all.iter().map(|bin| bin.sent_per_s).collect::<Vec<_>>(), [100.0, 100.0, 100.0]);
        assert_eq!((all[2].delivered_per_s, all[2].loss, all[2].to), (80.0, 20.0, 2.5));
        assert!(all[2].p99.is_some() && bins(&[Second { sent: 1, ..Second::default() }], 1.0)[0].p99.is_none());
        let long = bins(&vec![second; 86_400], 86_400.0);
        assert!(long.len() <= BINS_MAX && long.iter().all(|bin| bin.sent_per_s == 100.0));
    }

    #[test]
    fn bars_of_batches_do_not_overlap_and_lie_over_their_sizes() {
        let bars = size_bars(&[(1, 1), (2, 1), (15, 1), (17, 1), (64, 4), (71, 2)]);
        assert!(bars.windows(2).all(|two| two[0].1 <= two[1].0 + 1e-12), "{bars:?}");
        assert_eq!((bars[0].0, bars[0].1, bars[1].1), (0.0, 1.0, 3f64.log2()));
        assert_eq!((bars[2].0, bars[3].0), (15f64.log2(), 16f64.log2()));
        assert!((bars.iter().map(|bar| bar.2).sum::<f64>() - 100.0).abs() < 1e-9);
        assert!(size_bars(&[(0, 3), (u64::MAX, 1)]).iter().all(|bar| bar.0 < bar.1));
    }

    #[test]
    fn numbers_are_told_as_people_write_them() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 0.0012, 0.2, 12.0].map(share), ["0", "0.0012", "0.20", "12.0"]);
        assert_eq!([0.02, 1.0, 500.0, 2000.0].map(tick), ["20 us", "1 ms", "500 ms", "2 s"]);
    }
}
