//! `eddy-bench replay`: real traffic's times and lengths, through a chain.
//!
//! `trace` reads files; each of their flows becomes a socket, and its packets leave when they left then.

pub mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use self::trace::{Packet, Trace};
use crate::load::command::{Through, seconds, tell};
use crate::load::plan::{Flow, Kind, Plan};
use crate::load::profile::Source;
use crate::results::{Results, Stream};
use crate::signals;

/// What `replay` is told.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Traces that go to the destination: pcap, pcapng, or CSV with the columns t_s,src,dst,payload_len
    #[arg(value_name = "FILE", required_unless_present = "back")]
    pub files: Vec<PathBuf>,
    /// A trace that comes from the destination (repeatable)
    #[arg(long, value_name = "FILE")]
    pub back: Vec<PathBuf>,
    /// So many times as fast as it was
    #[arg(long, default_value_t = 1.0, value_parser = speed)]
    pub speed: f64,
    /// Only so much of the traces, in seconds of this run
    #[arg(long, value_parser = seconds)]
    pub seconds: Option<f64>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub through: Through,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if (0.01..=1000.0).contains(&speed) => Ok(speed),
        _ => Err("how many times as fast, from 0.01 to 1000".into()),
    }
}

/// Packets of one flow of a trace.
struct Packets {
    packets: std::vec::IntoIter<Packet>,
    speed: f64,
}

impl Source for Packets {
    fn next(&mut self) -> Option<(u64, usize)> {
        self.packets.next().map(|packet| ((packet.at_ns as f64 / self.speed) as u64, packet.len))
    }
}

/// Runs the command.
///
/// # Errors
/// A trace cannot be read, the chain does not come up, flows do not open, or files cannot be written.
pub fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let read = |files: &[PathBuf]| -> anyhow::Result<Vec<(String, Trace)>> {
        files.iter().map(|file| Ok((stem(file), Trace::read(file)?))).collect()
    };
    let traces = [read(&args.files)?, read(&args.back)?];
    let interrupted = signals::interrupted()?;
    let runs = args.through.run(&interrupted, &args.command(), || plan(&traces, args.speed, args.seconds))?;
    tell(&runs, args.through.out.as_ref(), args.through.json)?;
    if !args.through.json {
        added(&runs);
    }
    Ok(())
}

/// What the chain adds to each stream.
fn added(runs: &[Results]) {
    let [direct, chain] = runs else { return };
    for stream in &chain.streams {
        let same = |other: &&Stream| other.profile == stream.profile && other.direction == stream.direction;
        let Some(before) = direct.streams.iter().find(same) else { continue };
        let more = |of: fn(&Stream) -> f64| crate::load::tell::time((of(stream) - of(before)).max(0.0));
        println!(
            "{} {}: the chain adds {} to the median, {} to p99 and {} to the slowest; jitter p50 {} instead of {}.",
            stream.profile,
            stream.direction,
            more(|s| s.latency.p50),
            more(|s| s.latency.p99),
            more(|s| s.latency.max),
            crate::load::tell::time(stream.jitter.p50),
            crate::load::tell::time(before.jitter.p50),
        );
    }
}

/// A file's name without its last ending, as a stream is called: no comma, no space.
fn stem(file: &Path) -> String {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

fn plan([there, back]: &[Vec<(String, Trace)>; 2], speed: f64, limit_s: Option<f64>) -> Plan {
    let (mut kinds, mut flows) = (Vec::<Kind>::new(), Vec::new());
    let mut last_ns = 0;
    for (direction, traces) in [there, back].into_iter().enumerate() {
        for (name, trace) in traces {
            let kind = kinds.iter().position(|kind| kind.name == *name).unwrap_or(kinds.len());
            if kind == kinds.len() {
                kinds.push(Kind { name: name.clone(), call: false });
            }
            let mut packets = vec![Vec::new(); trace.flows];
            for packet in &trace.packets {
                packets[packet.flow].push(*packet);
                last_ns = last_ns.max(packet.at_ns);
            }
            for packets in packets {
                let mut sources: [Option<Box<dyn Source>>; 2] = [None, None];
                sources[direction] = Some(Box::new(Packets { packets: packets.into_iter(), speed }));
                flows.push(Flow { kind, sources });
            }
        }
    }
    // The last packet is sent, too.
    let whole = Duration::from_secs_f64(last_ns as f64 / 1e9 / speed) + Duration::from_millis(1);
    let time = limit_s.map_or(whole, |limit_s| whole.min(Duration::from_secs_f64(limit_s)));
    Plan { kinds, flows, time, answers: false }
}

impl ReplayArgs {
    /// What repeats it.
    fn command(&self) -> String {
        let mut parts = vec!["replay".to_owned()];
        // Names alone: where the files lie is this machine's.
        let name = |file: &Path| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        parts.extend(self.files.iter().map(|file| name(file)));
        parts.extend(self.back.iter().map(|file| format!("--back {}", name(file))));
        parts.push(format!("--speed {}", self.speed));
        parts.extend(self.seconds.map(|seconds| format!("--seconds {seconds}")));
        parts.push(self.through.command());
        parts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_played_at_its_times_and_lengths_flow_by_flow_and_faster_if_wanted() {
        let packet = |at_ms: u64, flow, len| Packet { at_ns: at_ms * 1_000_000, flow, len };
        let trace = Trace { packets: vec![packet(0, 0, 20), packet(10, 1, 30), packet(30, 0, 40)], flows: 2 };
        let traces = [vec![("a".to_owned(), trace.clone())], vec![("a".to_owned(), trace)]];
        let mut plan = plan(&traces, 2.0, None);
        assert_eq!((plan.kinds.len(), plan.flows.len(), plan.time), (1, 4, Duration::from_millis(16)));
        for (direction, first) in [(0, 0), (1, 2)] {
            let mut queue = plan.queue(direction);
            let all: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|due| (due.at_ns, due.flow, due.len)).collect();
            assert_eq!(all, [(0, first, 20), (5_000_000, first + 1, 30), (15_000_000, first, 40)]);
        }
    }
}
