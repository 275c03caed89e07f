//! Results as a table.

use eddy::tables::{align_right, table};

use crate::results::{Results, Spread, Stream};

/// A time in the unit that suits it.
pub fn time(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us:.0} us"),
        us if us < 1e6 => format!("{:.2} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

fn part(of: u64, all: u64) -> String {
    match (of, all) {
        (0, _) => "0".into(),
        (of, all) => format!("{of} ({:.3} %)", 100.0 * of as f64 / all.max(1) as f64),
    }
}

/// Runs beside each other.
pub fn people(runs: &[Results]) -> String {
    let answered = runs.iter().flat_map(|run| &run.streams).any(|stream| stream.round_trip.is_some());
    let calls = runs.iter().flat_map(|run| &run.streams).any(|stream| stream.mos.is_some());
    let mut heads = vec!["run", "what", "flows", "sent a second", "delivered", "lost", "out of order"];
    heads.extend(["p50", "p99", "p99.9", "max", "jitter p50"]);
    if answered {
        heads.extend(["round trip p50", "p99"]);
    }
    if calls {
        heads.push("MOS (worst)");
    }
    let mut all = table(&heads);
    for run in runs {
        for stream in &run.streams {
            all.add_row(row(run, stream, answered, calls));
        }
    }
    align_right(&mut all, 2..heads.len());
    let mut text = all.to_string();
    for run in runs {
        let bursts: Vec<String> = run
            .streams
            .iter()
            .flat_map(|stream| &stream.loss_bursts)
            .map(|(len, times)| format!("{times} of {len}"))
            .collect();
        if !bursts.is_empty() {
            text += &format!("\nLost in a row, {}: {}.", run.name, bursts.join(", "));
        }
        if run.interrupted {
            text += &format!("\n{}: ended after {:.1} s.", run.name, run.seconds);
        }
    }
    if let Some(run) = runs.last() {
        if let Some(floor) = &run.floor {
            text += &format!(
                "\nThe generator alone: {:.0} datagrams a second at most; of this load p50 {}, p99 {}, max {}.",
                floor.ceiling_per_s,
                time(floor.p50_us),
                time(floor.p99_us),
                time(floor.max_us)
            );
        }
        if let Some(chain) = &run.chain {
            text += &format!(
                "\n{} mixes, class {}, {}, {} channels, engine {}, {}, offload {}.",
                chain.mixes, chain.class, chain.mixing, chain.channels, chain.engine, chain.io, chain.offload
            );
        }
        let machine = &run.machine;
        text += &format!(
            "\n{}, {} cores, Linux {}, load average {}; all of it on this machine. eddy {}.",
            machine.cpu, machine.cores, machine.kernel, machine.load, machine.eddy
        );
    }
    text
}

fn row(run: &Results, stream: &Stream, answered: bool, calls: bool) -> Vec<String> {
    let Stream { profile, direction, flows, sent, delivered, lost, reordered, latency, jitter, .. } = stream;
    let Spread { p50, p99, p999, max, .. } = latency;
    let mut row = vec![
        run.name.clone(),
        format!("{profile} {direction}"),
        flows.to_string(),
        format!("{:.0}", *sent as f64 / run.seconds.max(f64::EPSILON)),
        delivered.to_string(),
        part(*lost, *sent),
        part(*reordered, *sent),
        time(*p50),
        time(*p99),
        time(*p999),
        time(*max),
        time(jitter.p50),
    ];
    if answered {
        row.extend(match &stream.round_trip {
            Some(trip) => [time(trip.p50), time(trip.p99)],
            None => ["-".into(), "-".into()],
        });
    }
    if calls {
        row.push(stream.mos.map_or_else(|| "-".into(), |mos| format!("{:.2} ({:.2})", mos.mean, mos.worst)));
    }
    row
}
