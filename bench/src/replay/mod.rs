//! `eddy-bench replay`: the times and lengths of recorded traffic, through a chain.
//!
//! Each flow of a trace gets a socket, and its packets are sent at the times of the trace. `trace` reads the files.

pub(crate) mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use dataplane::per_direction::PerDirection;
use wire::cell::Direction::{Backward, Forward};

use self::trace::{Packet, Trace};
use crate::args::{in_range, seconds};
use crate::format::{duration, wrapped};
use crate::load::plan::{Flow, FlowGroup, Plan};
use crate::load::runs::RunArgs;
use crate::load::source::{Source, Sources};
use crate::results::{Results, Stream};
use crate::signals;

#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Traces to send to the destination: pcap, pcapng, or CSV with the columns t_s,src,dst,payload_len
    #[arg(value_name = "FILE", required_unless_present = "back")]
    files: Vec<PathBuf>,
    /// Trace to send back from the destination (repeatable)
    #[arg(long, value_name = "FILE", help_heading = "Load")]
    back: Vec<PathBuf>,
    /// Speed relative to the trace
    #[arg(long, default_value_t = 1.0, value_parser = speed, help_heading = "Load")]
    speed: f64,
    /// How long to send [default: the whole trace]
    #[arg(long, value_parser = seconds, help_heading = "Load")]
    seconds: Option<f64>,
    #[command(flatten)]
    run: RunArgs,
}

fn speed(text: &str) -> Result<f64, String> {
    in_range(text, 0.01, 1000.0, "a speed")
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
/// A trace cannot be read, the chain does not start, flows do not open, or files cannot be written.
pub fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    let read = |files: &[PathBuf]| -> anyhow::Result<Vec<(String, Trace)>> {
        files.iter().map(|file| Ok((stem(file), Trace::read(file)?))).collect()
    };
    let traces = PerDirection { forward: read(&args.files)?, backward: read(&args.back)? };
    let interrupted = signals::interrupted()?;
    let runs = args.run.run(&interrupted, &args.command(), || plan(&traces, args.speed, args.seconds))?;
    args.run.report(&runs)?;
    if args.run.is_text() {
        print_added_latency(&runs);
    }
    Ok(())
}

/// What the chain adds to the latency of each stream.
fn print_added_latency(runs: &[Results]) {
    let [direct, chain] = runs else { return };
    for stream in &chain.streams {
        let same = |other: &&Stream| other.profile == stream.profile && other.direction == stream.direction;
        let Some(before) = direct.streams.iter().find(same) else { continue };
        let more = |of: fn(&Stream) -> f64| duration((of(stream) - of(before)).max(0.0));
        let line = format!(
            "{} {}: the chain adds {} to p50, {} to p99 and {} to the maximum; jitter p50 {} (direct: {})",
            stream.profile,
            stream.direction,
            more(|s| s.latency.p50),
            more(|s| s.latency.p99),
            more(|s| s.latency.max),
            duration(stream.jitter.p50),
            duration(before.jitter.p50),
        );
        println!("{}", wrapped(&line));
    }
}

/// The name of a trace's stream: that of the file without its extension, without commas and spaces.
fn stem(file: &Path) -> String {
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

fn plan(traces: &PerDirection<Vec<(String, Trace)>>, speed: f64, limit_s: Option<f64>) -> Plan {
    let (mut groups, mut flows) = (Vec::<FlowGroup>::new(), Vec::new());
    let mut last_ns = 0;
    for direction in [Forward, Backward] {
        for (name, trace) in &traces[direction] {
            let group = groups.iter().position(|group| group.name == *name).unwrap_or(groups.len());
            if group == groups.len() {
                groups.push(FlowGroup { name: name.clone(), is_call: false });
            }
            let mut packets = vec![Vec::new(); trace.flows];
            for packet in &trace.packets {
                packets[packet.flow].push(*packet);
                last_ns = last_ns.max(packet.at_ns);
            }
            for packets in packets {
                let mut sources = Sources::default();
                sources[direction] = Some(Box::new(Packets { packets: packets.into_iter(), speed }));
                flows.push(Flow { group, sources });
            }
        }
    }
    // One more millisecond includes the last packet.
    let whole = Duration::from_secs_f64(last_ns as f64 / 1e9 / speed) + Duration::from_millis(1);
    let time = limit_s.map_or(whole, |limit_s| whole.min(Duration::from_secs_f64(limit_s)));
    Plan { groups, flows, time, answers: false }
}

impl ReplayArgs {
    /// The arguments that repeat this.
    fn command(&self) -> String {
        let mut parts = vec!["replay".to_owned()];
        // Names only, because paths differ between machines.
        let name = |file: &Path| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        parts.extend(self.files.iter().map(|file| name(file)));
        parts.extend(self.back.iter().map(|file| format!("--back {}", name(file))));
        parts.push(format!("--speed {}", self.speed));
        parts.extend(self.seconds.map(|seconds| format!("--seconds {seconds}")));
        parts.push(self.run.command());
        parts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_is_replayed_at_its_times_scaled_by_speed() {
        let packet = |at_ms: u64, flow, len| Packet { at_ns: at_ms * 1_000_000, flow, len };
        let trace =
            Trace { packets: vec![packet(0, 0, 20), packet(10, 1, 30), packet(30, 0, 40)], flows: 2, ways: Vec::new() };
        let traces = PerDirection::from_fn(|_| vec![("a".to_owned(), trace.clone())]);
        let mut plan = plan(&traces, 2.0, None);
        assert_eq!((plan.groups.len(), plan.flows.len(), plan.time), (1, 4, Duration::from_millis(16)));
        for (direction, first) in [(Forward, 0), (Backward, 2)] {
            let mut queue = plan.queue(direction);
            let all: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|due| (due.at_ns, due.flow, due.len)).collect();
            assert_eq!(all, [(0, first, 20), (5_000_000, first + 1, 30), (15_000_000, first, 40)]);
        }
    }
}
