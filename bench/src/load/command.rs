//! `eddy-bench load`.

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::drive::{self, Outcome, Progress, Target};
use super::plan::{Even, Plan};
use super::profile::{Arrivals, Lengths, Profile};
use super::{floor, tell};
use crate::chain::{Chain, ChainArgs};
use crate::machine::Machine;
use crate::results::{ChainFacts, FORMAT, Floor, Results};
use crate::signals;

/// What `load` is told.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Flows of an application: voip, game, video or bulk, and how many (repeatable)
    #[arg(long = "profile", value_name = "NAME:FLOWS", conflicts_with_all = ["rate", "payload_len", "arrivals", "flows"])]
    pub profiles: Vec<Profile>,
    /// Datagrams per second over all flows
    #[arg(long, default_value_t = 10_000.0, value_parser = rate)]
    pub rate: f64,
    /// Bytes per datagram: 1000, 200-1300 or 172*6,1200*1
    #[arg(long, default_value_t = Lengths::fixed(1000), value_name = "BYTES")]
    pub payload_len: Lengths,
    /// How datagrams follow each other: constant, poisson or burst:N
    #[arg(long, default_value_t = Arrivals::Constant)]
    pub arrivals: Arrivals,
    /// Flows, each from a socket of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub flows: u32,
    /// How long to send
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    pub seconds: f64,
    /// The destination sends every datagram back: round trips are measured, too
    #[arg(long)]
    pub answers: bool,
    /// What is drawn is drawn from this number
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub through: Through,
}

/// Where a load goes, and what is left of it.
#[derive(Args, Clone, Debug)]
pub struct Through {
    /// What runs already: an entry's forward. Without it a chain is started for the run
    #[arg(long, value_name = "ADDR", requires = "sink", help_heading = "Where to")]
    pub to: Option<SocketAddr>,
    /// Where that forward leads: received here
    #[arg(long, value_name = "ADDR", requires = "to", help_heading = "Where to")]
    pub sink: Option<SocketAddr>,
    /// Through no chain at all: the generator and the kernel alone
    #[arg(long, conflicts_with = "to", help_heading = "Where to")]
    pub direct: bool,
    /// Leave out the direct run that every other one is measured beside
    #[arg(long, conflicts_with = "direct", help_heading = "Where to")]
    pub no_direct: bool,

    /// What the run is called in tables and files
    #[arg(long, default_value = "chain", value_parser = name)]
    pub name: String,
    /// A folder for NAME.json (for `eddy-bench report`), .hgrm and .hlog files
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Print one JSON object as the last line instead of a table
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub chain: ChainArgs,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.1..=20_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("datagrams per second, from 0.1 to 20000000".into()),
    }
}

/// For the command line.
///
/// # Errors
/// It is no time that a run can have.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds, from 0.1 to 86400".into()),
    }
}

/// For the command line.
///
/// # Errors
/// It is no name of a file.
pub fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && !text.starts_with('.') && text.len() <= 64 && text.chars().all(good) {
        Ok(text.to_owned())
    } else {
        Err("letters, digits, - _ and ., at most 64".into())
    }
}

/// Runs the command.
///
/// # Errors
/// The chain does not come up, flows do not open, or files cannot be written.
pub fn run(args: &LoadArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    let runs = args.through.run(&interrupted, &args.command(), || args.plan())?;
    tell(&runs, args.through.out.as_ref(), args.through.json)
}

/// Writes what is to be written and prints the rest.
///
/// # Errors
/// Files cannot be written.
pub fn tell(runs: &[Results], out: Option<&PathBuf>, json: bool) -> anyhow::Result<()> {
    let mut files = Vec::new();
    if let Some(folder) = out {
        for run in runs {
            files.push(run.write(folder)?);
        }
    }
    if json {
        println!("{}", serde_json::json!({ "runs": runs }));
    } else {
        println!("{}", tell::people(runs));
        for file in files {
            println!("{} (eddy-bench report {0})", file.display());
        }
    }
    Ok(())
}

/// Bytes of a datagram that arrived, on average.
fn mean_len(run: &Results) -> u32 {
    let (bytes, count) = run.streams.iter().fold((0, 0), |sum, s| (sum.0 + s.bytes, sum.1 + s.delivered));
    (bytes / count.max(1)).max(super::header::SHORTEST as u64) as u32
}

impl LoadArgs {
    fn plan(&self) -> Plan {
        let time = Duration::from_secs_f64(self.seconds);
        if !self.profiles.is_empty() {
            return Plan::profiles(&self.profiles, time, self.answers, self.seed);
        }
        let LoadArgs { flows, rate, arrivals, payload_len, .. } = self;
        let even = Even { flows: *flows as usize, rate: *rate, arrivals: *arrivals, lengths: payload_len.clone() };
        Plan::even(&even, time, self.answers, self.seed)
    }

    /// What repeats it.
    fn command(&self) -> String {
        let mut parts = vec!["load".to_owned()];
        if self.profiles.is_empty() {
            let LoadArgs { flows, rate, arrivals, payload_len, .. } = self;
            parts.push(format!("--flows {flows} --rate {rate} --payload-len {payload_len} --arrivals {arrivals}"));
        }
        parts.extend(self.profiles.iter().map(|profile| format!("--profile {profile}")));
        if self.answers {
            parts.push("--answers".into());
        }
        parts.push(format!("--seconds {} --seed {}", self.seconds, self.seed));
        parts.push(self.through.command());
        parts.join(" ")
    }
}

impl Through {
    /// Its part of a command line.
    pub fn command(&self) -> String {
        if let (Some(to), Some(sink)) = (self.to, self.sink) {
            return format!("--to {to} --sink {sink}");
        }
        if self.direct { "--direct".into() } else { self.chain.command() }
    }

    /// Runs what `plan` makes straight to its destination and then through the chain, as far as both are wanted.
    ///
    /// # Errors
    /// The chain does not come up, or flows do not open.
    pub fn run(
        &self,
        interrupted: &AtomicBool,
        command: &str,
        plan: impl Fn() -> Plan,
    ) -> anyhow::Result<Vec<Results>> {
        let mut runs = Vec::new();
        // First what may be refused.
        if !self.direct {
            runs.push(self.loaded(interrupted, command, plan())?);
        }
        let mut floor = None;
        if !(self.no_direct || interrupted.load(Ordering::Relaxed)) {
            let sink = UdpSocket::bind("127.0.0.1:0")?;
            let target = Target { to: sink.local_addr()?, sink: &sink, delay: Duration::ZERO };
            let outcome = watched(plan(), &target, interrupted, "direct")?;
            let direct = results("direct", command, &outcome, None, Vec::new());
            if !interrupted.load(Ordering::Relaxed) {
                let flows = direct.streams.iter().map(|stream| stream.flows).max().unwrap_or(1);
                let ceiling = floor::ceiling(flows, mean_len(&direct), interrupted)?;
                floor = Some(floor::of(ceiling, &direct.streams));
            }
            runs.insert(0, direct);
        }
        runs.iter_mut().for_each(|run| run.floor.clone_from(&floor));
        Ok(runs)
    }

    /// Through a chain: the one that runs, or one of our own.
    fn loaded(&self, interrupted: &AtomicBool, command: &str, plan: Plan) -> anyhow::Result<Results> {
        let name = &self.name;
        if let (Some(to), Some(sink)) = (self.to, self.sink) {
            let sink = UdpSocket::bind(sink).with_context(|| format!("the sink cannot listen at {sink}"))?;
            let target = Target { to, sink: &sink, delay: self.chain.delay() };
            return Ok(results(name, command, &watched(plan, &target, interrupted, name)?, None, Vec::new()));
        }
        let sink = UdpSocket::bind("127.0.0.1:0")?;
        let (outcome, facts, nodes) = through_chain(&self.chain, plan, &sink, interrupted, name)?;
        Ok(results(name, command, &outcome, Some(facts), nodes))
    }
}

/// Runs a plan through a chain of our own. What became of it, what the chain is, and what its nodes said last.
///
/// # Errors
/// The chain does not come up or its ledgers do not close.
pub fn through_chain(
    args: &ChainArgs,
    plan: Plan,
    sink: &UdpSocket,
    interrupted: &AtomicBool,
    name: &str,
) -> anyhow::Result<(Outcome, ChainFacts, Vec<Value>)> {
    let mut chain = Chain::start(args, sink.local_addr()?)?;
    let target = Target { to: chain.forward, sink, delay: args.delay() };
    let outcome = watched(plan, &target, interrupted, name)?;
    let facts = args.facts(chain.ask()?.get(1));
    let (nodes, closed) = chain.end()?;
    ensure!(closed, "a ledger of the chain does not close: {}", serde_json::json!(nodes));
    Ok((outcome, facts, nodes))
}

/// One run's result.
pub fn results(name: &str, command: &str, outcome: &Outcome, chain: Option<ChainFacts>, nodes: Vec<Value>) -> Results {
    Results {
        format: FORMAT,
        name: name.to_owned(),
        command: command.to_owned(),
        machine: Machine::read(),
        chain,
        floor: None::<Floor>,
        seconds: outcome.took.as_secs_f64(),
        interrupted: outcome.interrupted,
        streams: outcome.streams.clone(),
        series: outcome.series.clone(),
        nodes,
    }
}

/// Runs a plan with a bar and a line each second.
///
/// # Errors
/// As [`drive::run`].
pub fn watched(plan: Plan, target: &Target<'_>, interrupted: &AtomicBool, name: &str) -> anyhow::Result<Outcome> {
    if plan.flows.is_empty() {
        bail!("there is nothing to send");
    }
    let style = ProgressStyle::with_template("{prefix:>10} {bar:30} {elapsed_precise} of {msg}")?;
    let total = plan.time;
    let bar = ProgressBar::new(total.as_millis() as u64).with_style(style).with_prefix(name.to_owned());
    let mut last = Duration::ZERO;
    let outcome = drive::run(plan, target, interrupted, |progress| {
        bar.set_position(progress.elapsed.min(total).as_millis() as u64);
        if progress.elapsed.as_secs() > last.as_secs() || last.is_zero() {
            last = progress.elapsed.max(Duration::from_nanos(1));
            bar.set_message(line(total, &progress));
        }
    })?;
    bar.finish_and_clear();
    Ok(outcome)
}

fn line(total: Duration, progress: &Progress) -> String {
    let Progress { sent, arrived, second, .. } = progress;
    let last = second.map_or_else(String::new, |second| {
        format!("; last second p50 {:.0} us, p99 {:.0} us, max {:.0} us", second.p50_us, second.p99_us, second.max_us)
    });
    format!(
        "{:.0} s: {sent} sent, {arrived} arrived, {} under way or lost{last}",
        total.as_secs_f64(),
        sent.saturating_sub(*arrived)
    )
}
