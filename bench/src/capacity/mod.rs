//! `eddy-bench capacity`: how many datagrams a second pass without loss.
//!
//! The search of RFC 2544, 26.1: a rate is tried for a while; if nothing was lost the next is higher, else lower, until
//! the highest that passed and the lowest that failed are close. Then the highest has to pass again. Nothing lost means:
//! every datagram arrived, and no ledger of a node has a drop more than before, nor has the kernel at its sockets.
//!
//! ```text
//! search   from one rate to the next          node    what is searched: one mix, its neighbours played
//! limit    what a rate that failed ran into   nodes   what is searched: whatever leads from a forward to a sink
//! ```

mod limit;
mod node;
mod nodes;
pub(crate) mod search;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use self::node::Lone;
use self::nodes::Nodes;
use self::search::{Highest, RATE_FIRST, Search, Try};
use crate::chain::ChainArgs;
use crate::load::command::seconds;
use crate::load::profile::Lengths;
use crate::load::tell;
use crate::machine::Machine;
use crate::results::ChainFacts;
use crate::signals;

/// What `capacity` is told.
#[derive(Args, Clone, Debug)]
pub struct CapacityArgs {
    /// A forward of an entry that runs. Without it a chain is started
    #[arg(long, value_name = "ADDR", requires = "sink", help_heading = "What is searched")]
    pub to: Option<SocketAddr>,
    /// Where that forward leads: received here
    #[arg(long, value_name = "ADDR", requires = "to", help_heading = "What is searched")]
    pub sink: Option<SocketAddr>,
    /// The status socket of a node that runs: its ledger is read, too (repeatable)
    #[arg(long, value_name = "PATH", requires = "to", help_heading = "What is searched")]
    pub status: Vec<PathBuf>,

    /// One mix alone, with this program for its neighbours: cells instead of datagrams, over --channels
    #[arg(long, conflicts_with_all = ["to", "mixes", "lanes", "payload_len", "flows", "out"],
          help_heading = "What is searched")]
    pub node: bool,

    /// Bytes per datagram
    #[arg(long, default_value_t = Lengths::fixed(1000), value_name = "BYTES")]
    pub payload_len: Lengths,
    /// Flows, each from a socket of its own
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub flows: u32,
    /// 99 of 100 datagrams must arrive within so many milliseconds [default: 3 times what a mix may wait and one more]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub p99_ms: Option<u64>,
    /// How long a rate is tried
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    pub try_seconds: f64,
    /// The search ends when pass and failure are so close, in percent
    #[arg(long, default_value_t = 5.0, value_parser = percent)]
    pub within: f64,
    /// A folder for half.json and most.json: runs at half of what was found, and at nine tenths
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Print one JSON object as the last line instead of text
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub chain: ChainArgs,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(percent) if (0.5..=50.0).contains(&percent) => Ok(percent),
        _ => Err("percent, from 0.5 to 50".into()),
    }
}

/// Parts of the capacity at which latency is told.
const PARTS: [(f64, &str); 2] = [(0.5, "half"), (0.9, "most")];

/// Latency at a part of the capacity.
#[derive(Clone, Debug, Serialize)]
struct At {
    part: f64,
    rate: f64,
    lost: u64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Found {
    /// The highest rate that passed, datagrams a second.
    lossless_per_s: f64,
    /// That, and the lowest that failed above it.
    interval: [f64; 2],
    /// At that rate, over all its tries.
    p99_us: f64,
    /// What the lowest rate that failed ran into.
    limited_by: String,
    budget_us: f64,
    payload_len: String,
    at: Vec<At>,
    tries: Vec<Try>,
    chain: Option<ChainFacts>,
    machine: Machine,
    interrupted: bool,
}

/// What is searched.
trait Subject {
    /// Sends so many a second for a while, to get warm.
    fn warm_up(&mut self, rate: f64) -> anyhow::Result<()>;
    /// Tries a rate.
    fn attempt(&mut self, rate: f64) -> anyhow::Result<Try>;
    /// Latency at a rate that is part of the capacity; a file of it has the name. None, if nothing arrived.
    fn latency(&mut self, part: f64, rate: f64, name: &str) -> anyhow::Result<Option<At>>;
    /// What it is, if this program made it.
    fn facts(&self) -> anyhow::Result<Option<ChainFacts>>;
    /// What a packet is.
    fn packets(&self) -> String;
    /// Ends it, and sees whether its ledgers close.
    fn end(self: Box<Self>) -> anyhow::Result<()>;
}

/// Runs the command.
///
/// # Errors
/// What is searched does not come up, a node does not answer, or not even the lowest rate passes.
pub fn run(args: &CapacityArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    // One node alone is measured from a core of our own.
    let cores = Machine::read().cores;
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    let mut subject: Box<dyn Subject> = if args.node {
        bar.set_message("one mix");
        Box::new(Lone::start(args)?)
    } else {
        Box::new(Nodes::start(args, interrupted.clone())?)
    };
    subject.warm_up(RATE_FIRST)?;
    let mut search = Search { within: args.within, interrupted: &interrupted, bar, tries: Vec::new() };
    let found = match search.run(&mut |rate| subject.attempt(rate)) {
        Ok(found) => found,
        Err(why) if search.tries.is_empty() => return Err(why),
        Err(why) => bail!("{why}; tried: {}", serde_json::to_string(&search.tries)?),
    };
    let at = parts(subject.as_mut(), found.rate, &interrupted)?;
    let (chain, packets) = (subject.facts()?, subject.packets());
    search.bar.finish_and_clear();
    let Highest { rate, failed, limited_by, p99_us } = found;
    subject.end()?;
    let found = Found {
        lossless_per_s: rate,
        interval: [rate, failed],
        p99_us,
        limited_by,
        budget_us: args.budget().as_secs_f64() * 1e6,
        payload_len: packets,
        at,
        tries: search.tries,
        chain,
        machine: Machine { cores, ..Machine::read() },
        interrupted: interrupted.load(Ordering::Relaxed),
    };
    println!("{}", if args.json { serde_json::to_string(&found)? } else { people(&found, args.node) });
    Ok(())
}

/// Latency at parts of what was found.
fn parts(subject: &mut dyn Subject, highest: f64, interrupted: &AtomicBool) -> anyhow::Result<Vec<At>> {
    let mut all = Vec::new();
    for (part, name) in PARTS {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        all.extend(subject.latency(part, (part * highest).round(), name)?);
    }
    Ok(all)
}

fn people(found: &Found, node: bool) -> String {
    let Found { lossless_per_s, interval, p99_us, limited_by, budget_us, payload_len, tries, .. } = found;
    let what = if node { "cells" } else { "datagrams" };
    let mut text = format!(
        "{lossless_per_s:.0} {what} a second of {payload_len} bytes pass without loss (between {:.0} and {:.0}; {} \
         tries).\np99 is {} there, of {} that it may be. Limited by {limited_by}.",
        interval[0],
        interval[1],
        tries.len(),
        tell::time(*p99_us),
        tell::time(*budget_us),
    );
    for at in &found.at {
        text += &format!(
            "\nAt {:.0} % of that: p50 {}, p99 {}, p99.9 {}, max {}; {} lost.",
            100.0 * at.part,
            tell::time(at.p50_us),
            tell::time(at.p99_us),
            tell::time(at.p999_us),
            tell::time(at.max_us),
            at.lost
        );
    }
    if let Some(chain) = &found.chain {
        text += &format!(
            "\n{} mix{}, class {}, {}, {} channels, engine {}, {}, offload {}; {} of {} cores.",
            chain.mixes,
            if chain.mixes == 1 { "" } else { "es" },
            chain.class,
            chain.mixing,
            chain.channels,
            chain.engine,
            chain.io,
            chain.offload,
            if node { "generator and mix each have one" } else { "generator and nodes share all" },
            found.machine.cores
        );
    }
    let Machine { cpu, kernel, load, eddy, .. } = &found.machine;
    text + &format!("\n{cpu}, Linux {kernel}, load average {load}. eddy {eddy}.")
}

impl CapacityArgs {
    /// What p99 may be.
    fn budget(&self) -> Duration {
        let wait = self.chain.mixing.largest_delay() + Duration::from_millis(1);
        self.p99_ms.map_or(3 * wait, Duration::from_millis)
    }

    /// What repeats it.
    fn command(&self) -> String {
        let what = match (self.to, self.sink) {
            (Some(to), Some(sink)) => format!("--to {to} --sink {sink}"),
            _ => self.chain.command(),
        };
        format!(
            "capacity --payload-len {} --flows {} --try-seconds {} --within {} {what}",
            self.payload_len, self.flows, self.try_seconds, self.within
        )
    }
}
