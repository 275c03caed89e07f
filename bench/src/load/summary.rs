//! Results of runs as tables.

use eddy::tables::{align_right, table};

use crate::format::{count, duration, rounded, wrapped};
use crate::results::{Results, Stream};

/// Which columns the streams fill.
#[derive(Clone, Copy)]
struct Columns {
    round_trip: bool,
    mos: bool,
}

impl Columns {
    fn of(runs: &[Results]) -> Columns {
        let any = |has: fn(&Stream) -> bool| runs.iter().flat_map(|run| &run.streams).any(has);
        Columns { round_trip: any(|stream| stream.round_trip.is_some()), mos: any(|stream| stream.mos.is_some()) }
    }
}

/// All runs in one table of at most 80 columns, or in two tables with every figure.
pub(crate) fn text(runs: &[Results], verbose: bool) -> String {
    let columns = Columns::of(runs);
    let mut text = if verbose {
        format!("{}\n\n{}\n\n{}", delivery(runs), latency(runs, columns), losses(runs))
    } else {
        overview(runs, columns)
    };
    for run in runs.iter().filter(|run| run.interrupted) {
        text += &format!("\n{}: interrupted after {:.1} s.", run.name, run.seconds);
    }
    let Some(run) = runs.last() else { return text };
    if let Some(calibration) = &run.calibration {
        text += &format!(
            "\nGenerator alone: up to {} datagrams/s; latency p50 {}, p99 {}.",
            rounded(calibration.ceiling_per_s),
            duration(calibration.p50_us),
            duration(calibration.p99_us),
        );
    }
    if let Some(chain) = &run.chain {
        text += &format!("\nChain: {chain}");
    }
    text + &format!("\nMachine: {}", run.machine)
}

/// A table whose rows are streams. `row` gives the cells after the run and the stream.
fn stream_table(runs: &[Results], heads: &[&str], row: impl Fn(&Results, &Stream) -> Vec<String>) -> String {
    let heads = [&["run", "stream"], heads].concat();
    let mut all = table(&heads);
    for run in runs {
        for stream in &run.streams {
            let name = format!("{} {}", stream.profile, stream.direction);
            all.add_row([vec![run.name.clone(), name], row(run, stream)].concat());
        }
    }
    align_right(&mut all, 2..heads.len());
    all.to_string()
}

fn overview(runs: &[Results], columns: Columns) -> String {
    let mut heads = vec!["sent/s", "lost", "p50", "p99"];
    // Calls have round trips and a score: the score says more.
    let with_trips = columns.round_trip && !columns.mos;
    if with_trips {
        heads.push("RTT p50");
    }
    if columns.mos {
        heads.push("MOS");
    }
    stream_table(runs, &heads, |run, stream| {
        let mut row = vec![rate(run, stream), loss(stream), duration(stream.latency.p50), duration(stream.latency.p99)];
        if with_trips {
            row.push(stream.round_trip.as_ref().map_or_else(dash, |trip| duration(trip.p50)));
        }
        if columns.mos {
            row.push(stream.mos.map_or_else(dash, |mos| format!("{:.2}", mos.mean)));
        }
        row
    })
}

fn delivery(runs: &[Results]) -> String {
    let heads = ["flows", "sent/s", "sent", "delivered", "lost", "lost %", "reordered", "duplicated"];
    stream_table(runs, &heads, |run, stream| {
        let Stream { flows, sent, delivered, lost, reordered, duplicated, .. } = stream;
        let mut row = vec![flows.to_string(), rate(run, stream)];
        row.extend([*sent, *delivered, *lost].map(count));
        row.push(loss(stream));
        row.extend([*reordered, *duplicated].map(count));
        row
    })
}

fn latency(runs: &[Results], columns: Columns) -> String {
    let mut heads = vec!["p50", "p99", "p99.9", "max", "jitter p50"];
    if columns.round_trip {
        heads.extend(["RTT p50", "RTT p99"]);
    }
    if columns.mos {
        heads.extend(["MOS", "worst"]);
    }
    stream_table(runs, &heads, |_, stream| {
        let Stream { latency, jitter, round_trip, mos, .. } = stream;
        let mut row = [latency.p50, latency.p99, latency.p999, latency.max, jitter.p50].map(duration).to_vec();
        if columns.round_trip {
            let trips = round_trip.as_ref().map(|trip| [trip.p50, trip.p99].map(duration));
            row.extend(trips.unwrap_or_else(|| [(); 2].map(|()| dash())));
        }
        if columns.mos {
            let scores = mos.map(|mos| [mos.mean, mos.worst].map(|score| format!("{score:.2}")));
            row.extend(scores.unwrap_or_else(|| [(); 2].map(|()| dash())));
        }
        row
    })
}

/// Loss bursts of each run, one line each.
fn losses(runs: &[Results]) -> String {
    let lines = runs.iter().map(|run| {
        let bursts = run.streams.iter().flat_map(|stream| &stream.loss_bursts);
        let bursts: Vec<String> = bursts.map(|(len, times)| format!("{times} of {len}")).collect();
        let bursts = if bursts.is_empty() { "none".to_owned() } else { bursts.join(", ") };
        wrapped(&format!("Lost in a row ({}): {bursts}", run.name))
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn rate(run: &Results, stream: &Stream) -> String {
    rounded(stream.sent as f64 / run.seconds.max(f64::EPSILON))
}

fn loss(stream: &Stream) -> String {
    match stream.lost {
        0 => "0".into(),
        lost => format!("{:.3} %", 100.0 * lost as f64 / stream.sent.max(1) as f64),
    }
}

fn dash() -> String {
    "-".to_owned()
}
