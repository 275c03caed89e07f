//! `eddy-bench capacity`: how many datagrams per second pass without loss.
//!
//! The search of RFC 2544, 26.1: a rate is tried for a while. If nothing was lost the next rate is higher, otherwise
//! lower, until the highest that passed and the lowest that failed are close. Then the highest has to pass again.
//! Nothing is lost if every datagram arrived, no ledger of a node has more drops than before, and the kernel dropped
//! nothing at the nodes' sockets.
//!
//! ```text
//! search      from one rate to the next     single_mix     one mix, between neighbours that this program plays
//! limit       why a rate failed             forward_path   a chain between a forward and a sink
//! ```

mod forward_path;
mod limit;
mod search;
mod single_mix;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use eddy::tables::{align_right, table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use self::forward_path::ForwardPath;
pub(crate) use self::search::Trial;
use self::search::{Highest, RATE_FIRST, Search};
use self::single_mix::SingleMix;
use crate::args::{OutputArgs, TargetArgs, in_range, seconds};
use crate::chain::ChainArgs;
use crate::format::{count, duration, rounded, wrapped};
use crate::load::even::Lengths;
use crate::machine::Machine;
use crate::results::ChainFacts;
use crate::signals;

#[derive(Args, Clone, Debug)]
pub struct CapacityArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Status socket of a running node whose ledger is checked (repeatable)
    #[arg(long, value_name = "PATH", requires = "to", help_heading = "Target")]
    status: Vec<PathBuf>,
    /// Measure one mix alone, in cells instead of datagrams, over --channels
    #[arg(
        long = "node",
        conflicts_with_all = ["to", "mixes", "lanes", "payload_len", "flows", "out"],
        help_heading = "Target"
    )]
    single_mix: bool,

    /// Bytes of a datagram
    #[arg(long, default_value_t = Lengths::fixed(1000), value_name = "BYTES", help_heading = "Load")]
    payload_len: Lengths,
    /// Number of flows, each with its own socket
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Load")]
    flows: u32,
    /// Highest p99 latency that passes [default: 3 times the longest wait in a mix plus 1 ms]
    #[arg(
        long,
        value_name = "MS",
        value_parser = clap::value_parser!(u64).range(1..=60_000),
        help_heading = "Search"
    )]
    p99_ms: Option<u64>,
    /// How long to try a rate
    #[arg(long, default_value_t = 1.0, value_parser = seconds, help_heading = "Search")]
    try_seconds: f64,
    /// Accuracy of the result in percent
    #[arg(long, default_value_t = 5.0, value_parser = percent, help_heading = "Search")]
    within: f64,
    /// Write runs at 50 % and 90 % of the capacity to half.json and most.json in this folder
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    chain: ChainArgs,
}

fn percent(text: &str) -> Result<f64, String> {
    in_range(text, 0.5, 50.0, "percent")
}

/// Parts of the capacity at which latency is measured, with the names of their runs.
const PARTS: [(f64, &str); 2] = [(0.5, "half"), (0.9, "most")];

/// Latency at a part of the capacity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LatencyPoint {
    pub(crate) part: f64,
    pub(crate) rate: f64,
    pub(crate) lost: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CapacityResult {
    /// The highest rate that passed, datagrams per second.
    pub(crate) lossless_per_s: f64,
    /// That rate, and the lowest above it that failed.
    pub(crate) interval: [f64; 2],
    /// At that rate, the worst of its trials.
    pub(crate) p99_us: f64,
    /// Why the lowest rate that failed did so.
    pub(crate) limited_by: String,
    /// Highest p99 that passes.
    pub(crate) budget_us: f64,
    pub(crate) payload_len: String,
    pub(crate) at: Vec<LatencyPoint>,
    pub(crate) trials: Vec<Trial>,
    pub(crate) chain: Option<ChainFacts>,
    pub(crate) machine: Machine,
    pub(crate) interrupted: bool,
}

/// A mix or a chain that is measured.
trait SystemUnderTest {
    /// Sends at a low rate for a moment.
    fn warm_up(&mut self, rate: f64) -> anyhow::Result<()>;
    fn attempt(&mut self, rate: f64) -> anyhow::Result<Trial>;
    /// Latency at `rate`, which is `part` of the capacity. `name` is that of its file. `None` if nothing arrived.
    fn latency(&mut self, part: f64, rate: f64, name: &str) -> anyhow::Result<Option<LatencyPoint>>;
    /// `None` if this program did not start the chain.
    fn facts(&self) -> anyhow::Result<Option<ChainFacts>>;
    /// Lengths of its packets, in bytes.
    fn packets(&self) -> String;
    /// Ends it, and checks that its ledgers close.
    fn end(self: Box<Self>) -> anyhow::Result<()>;
}

/// Runs the command.
///
/// # Errors
/// The system under test does not start, a node does not answer, or the lowest rate fails.
pub fn run(args: &CapacityArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    // Read first: a single mix is measured from a pinned thread, which sees only its own core.
    let cores = Machine::read().cores;
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    bar.set_message("starting");
    let mut system: Box<dyn SystemUnderTest> = if args.single_mix {
        Box::new(SingleMix::start(args)?)
    } else {
        Box::new(ForwardPath::start(args, interrupted.clone())?)
    };
    system.warm_up(RATE_FIRST)?;

    let mut search = Search { within: args.within, interrupted: &interrupted, bar, trials: Vec::new() };
    let found = match search.run(&mut |rate| system.attempt(rate)) {
        Ok(found) => found,
        Err(why) if search.trials.is_empty() => return Err(why),
        Err(why) => bail!("{why}; trials: {}", serde_json::to_string(&search.trials)?),
    };
    let Highest { rate, failed, limited_by, p99_us } = found;
    let at = latency_points(system.as_mut(), rate, &interrupted)?;
    let (chain, payload_len) = (system.facts()?, system.packets());
    search.bar.finish_and_clear();
    system.end()?;

    let result = CapacityResult {
        lossless_per_s: rate,
        interval: [rate, failed],
        p99_us,
        limited_by,
        budget_us: args.budget().as_secs_f64() * 1e6,
        payload_len,
        at,
        trials: search.trials,
        chain,
        machine: Machine { cores, ..Machine::read() },
        interrupted: interrupted.load(Ordering::Relaxed),
    };
    let text = if args.output.json { serde_json::to_string(&result)? } else { args.text(&result) };
    println!("{text}");
    Ok(())
}

fn latency_points(
    system: &mut dyn SystemUnderTest,
    highest: f64,
    interrupted: &AtomicBool,
) -> anyhow::Result<Vec<LatencyPoint>> {
    let mut points = Vec::new();
    for (part, name) in PARTS {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        points.extend(system.latency(part, (part * highest).round(), name)?);
    }
    Ok(points)
}

fn trial_table(trials: &[Trial]) -> String {
    let mut all = table(&["rate", "sent", "lost", "p50", "p99", "failed because of"]);
    for Trial { rate, sent, lost, p50_us, p99_us, limited_by, .. } in trials {
        let limit = limited_by.as_deref().and_then(|why| why.split(':').next()).unwrap_or("-");
        let [p50, p99] = [*p50_us, *p99_us].map(duration);
        all.add_row([rounded(*rate), count(*sent), count(*lost), p50, p99, limit.to_owned()]);
    }
    align_right(&mut all, 0..5);
    all.to_string()
}

impl CapacityArgs {
    fn budget(&self) -> Duration {
        let wait = self.chain.mixing.largest_delay() + Duration::from_millis(1);
        self.p99_ms.map_or(3 * wait, Duration::from_millis)
    }

    /// The arguments that repeat this.
    fn command(&self) -> String {
        let target = self.target.command(|| self.chain.command());
        format!(
            "capacity --payload-len {} --flows {} --try-seconds {} --within {} {target}",
            self.payload_len, self.flows, self.try_seconds, self.within
        )
    }

    fn text(&self, result: &CapacityResult) -> String {
        let CapacityResult { lossless_per_s, interval, p99_us, limited_by, budget_us, payload_len, .. } = result;
        let unit = if self.single_mix { "cells" } else { "datagrams" };
        let (passed, failed) = (rounded(*lossless_per_s), rounded(interval[1]));
        let mut text = [
            format!("Capacity: {passed} {unit}/s of {payload_len} bytes without loss ({failed}/s failed)"),
            format!("Limited by {limited_by}"),
            format!("Latency there: p99 {} (allowed: {})", duration(*p99_us), duration(*budget_us)),
        ]
        .map(|line| wrapped(&line))
        .join("\n");
        for point in &result.at {
            text += &format!(
                "\nAt {:.0} %: p50 {}, p99 {}, p99.9 {}, max {}; {} lost",
                100.0 * point.part,
                duration(point.p50_us),
                duration(point.p99_us),
                duration(point.p999_us),
                duration(point.max_us),
                point.lost
            );
        }
        if self.output.verbose {
            text += &format!("\n\n{}\n", trial_table(&result.trials));
        }
        if let Some(chain) = &result.chain {
            text += &format!("\nChain: {chain}");
        }
        text + &format!("\nMachine: {}", result.machine)
    }
}
