//! `eddy-bench capacity`: how many datagrams a second pass without loss.
//!
//! The search of RFC 2544, 26.1: a rate is tried for a while; if nothing was lost the next is higher, else lower, until
//! the highest that passed and the lowest that failed are close. Then the highest has to pass again. Nothing lost means:
//! every datagram arrived, and no ledger of a node has a drop more than before, nor has the kernel at its sockets.
//!
//! `limit` says what a rate that failed ran into.

mod limit;

use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use eddy::report::NodeReport;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use self::limit::{Usage, limited_by};
use crate::chain::{Chain, ChainArgs};
use crate::load::command::{results, seconds};
use crate::load::drive::{self, Outcome, Target};
use crate::load::plan::{Even, Plan};
use crate::load::profile::{Arrivals, Lengths};
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

/// Rates from here on are doubled until one fails.
const RATE_FIRST: f64 = 1000.0;
const RATE_LAST: f64 = 20_000_000.0;
/// How often the highest rate must pass in all.
const PASSES: u32 = 3;
/// The whole search, beside what is under way.
const SEARCH: Duration = Duration::from_secs(180);
/// Parts of the capacity at which latency is told.
const PARTS: [(f64, &str); 2] = [(0.5, "half"), (0.9, "most")];

/// One rate that was tried.
#[derive(Clone, Debug, Serialize)]
struct Try {
    rate: f64,
    passed: bool,
    sent: u64,
    lost: u64,
    p50_us: f64,
    p99_us: f64,
    /// What it ran into, if it failed.
    limited_by: Option<String>,
}

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

/// Runs the command.
///
/// # Errors
/// The chain does not come up, a node does not answer, or not even the lowest rate passes.
pub fn run(args: &CapacityArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    let sink_at = args.sink.unwrap_or_else(|| ([127, 0, 0, 1], 0).into());
    let sink = UdpSocket::bind(sink_at).with_context(|| format!("the sink cannot listen at {sink_at}"))?;
    let mut chain = match args.to {
        Some(_) => None,
        None => Some(Chain::start(&args.chain, sink.local_addr()?)?),
    };
    let status = chain.as_ref().map_or_else(|| args.status.clone(), |chain| chain.status.clone());
    let to = chain.as_ref().map_or(args.to, |chain| Some(chain.forward)).context("where to")?;
    let wait = args.chain.mixing.largest_delay() + Duration::from_millis(1);
    let budget = args.p99_ms.map_or(3 * wait, Duration::from_millis);
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    let mut search =
        Search { args, to, sink: &sink, status, budget, interrupted: &interrupted, bar, tries: Vec::new() };
    // The first run through a chain that was just born warms it up.
    search.drive(RATE_FIRST, Duration::from_millis(200))?;
    let found = search.run();
    let mut found = match found {
        Ok(found) => found,
        Err(why) if search.tries.is_empty() => return Err(why),
        Err(why) => bail!("{why}; tried: {}", serde_json::to_string(&search.tries)?),
    };
    let facts = chain.as_ref().and_then(|chain| chain.ask().ok()).map(|nodes| args.chain.facts(nodes.get(1)));
    for (part, name) in PARTS {
        if interrupted.load(Ordering::Relaxed) {
            break;
        }
        let rate = (part * found.lossless_per_s).round();
        let outcome = search.drive(rate, Duration::from_secs_f64(3.0 * args.try_seconds))?;
        let Some(stream) = outcome.streams.first() else { continue };
        let latency = &stream.latency;
        found.at.push(At {
            part,
            rate,
            lost: stream.lost,
            p50_us: latency.p50,
            p99_us: latency.p99,
            p999_us: latency.p999,
            max_us: latency.max,
        });
        if let Some(folder) = &args.out {
            let nodes = search.ask()?.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
            results(name, &args.command(), &outcome, facts.clone(), nodes).write(folder)?;
        }
    }
    search.bar.finish_and_clear();
    found.tries = std::mem::take(&mut search.tries);
    found.interrupted = interrupted.load(Ordering::Relaxed);
    found.chain = facts;
    if let Some(chain) = &mut chain {
        let (nodes, closed) = chain.end()?;
        anyhow::ensure!(closed, "a ledger of the chain does not close: {}", serde_json::json!(nodes));
    }
    found.machine = Machine::read();
    println!("{}", if args.json { serde_json::to_string(&found)? } else { people(&found) });
    Ok(())
}

struct Search<'a> {
    args: &'a CapacityArgs,
    to: SocketAddr,
    sink: &'a UdpSocket,
    status: Vec<PathBuf>,
    budget: Duration,
    interrupted: &'a AtomicBool,
    bar: ProgressBar,
    tries: Vec<Try>,
}

impl Search<'_> {
    fn run(&mut self) -> anyhow::Result<Found> {
        let deadline = Instant::now() + SEARCH;
        let (mut good, mut bad): (Option<f64>, Option<f64>) = (None, None);
        let mut limit = String::from("nothing: the generator has no higher rate");
        let within = 1.0 + self.args.within / 100.0;
        let mut passes = 0;
        loop {
            let rate = match (good, bad) {
                (None, None) => RATE_FIRST,
                (Some(good), None) if good * 2.0 > RATE_LAST => good,
                (Some(good), None) => good * 2.0,
                (Some(good), Some(bad)) if bad > good * within => (good * bad).sqrt().round(),
                // Close enough: it has to pass again.
                (Some(good), Some(_)) => good,
                (None, Some(bad)) if bad > 2.0 => (bad / 2.0).round(),
                (None, Some(_)) => bail!("not even {} datagrams a second pass: limited by {limit}", bad.unwrap_or(0.0)),
            };
            if self.interrupted.load(Ordering::Relaxed) || Instant::now() > deadline {
                break;
            }
            let mut tried = self.attempt(rate)?;
            if !tried.passed {
                // A machine has moments: what fails once is tried once more.
                tried = self.attempt(rate)?;
            }
            if tried.passed {
                passes = if good == Some(rate) { passes + 1 } else { 1 };
                good = Some(rate);
                let close = bad.is_some_and(|bad| bad <= rate * within) || rate * 2.0 > RATE_LAST;
                if close && passes >= PASSES {
                    break;
                }
            } else {
                limit = tried.limited_by.unwrap_or(limit);
                bad = Some(rate);
                if good.is_some_and(|good| good >= rate) {
                    good = self.passed_below(rate);
                }
                passes = 0;
            }
        }
        let Some(good) = good else { bail!("ended before any rate had passed") };
        let at_good = self.tries.iter().filter(|tried| tried.passed && tried.rate == good);
        Ok(Found {
            lossless_per_s: good,
            interval: [good, bad.unwrap_or(f64::INFINITY).min(RATE_LAST)],
            p99_us: at_good.map(|tried| tried.p99_us).fold(0.0, f64::max),
            limited_by: limit,
            budget_us: self.budget.as_secs_f64() * 1e6,
            payload_len: self.args.payload_len.to_string(),
            at: Vec::new(),
            tries: Vec::new(),
            chain: None,
            machine: Machine::default(),
            interrupted: false,
        })
    }

    /// The highest rate below this one that passed and never failed.
    fn passed_below(&self, rate: f64) -> Option<f64> {
        let failed = |at: f64| self.tries.iter().filter(|tried| tried.rate == at && !tried.passed).count() > 1;
        self.tries
            .iter()
            .filter(|tried| tried.passed && tried.rate < rate && !failed(tried.rate))
            .map(|tried| tried.rate)
            .max_by(f64::total_cmp)
    }

    fn attempt(&mut self, rate: f64) -> anyhow::Result<Try> {
        let best = self.passed_below(f64::INFINITY).unwrap_or(0.0);
        self.bar.set_message(format!("{rate:.0} datagrams a second; {best:.0} passed"));
        self.bar.tick();
        let time = Duration::from_secs_f64(self.args.try_seconds);
        let before = Usage::new(self.ask()?);
        let outcome = self.drive(rate, time)?;
        let after = Usage::new(self.ask()?);
        let (sent, lost) = (outcome.sum(|stream| stream.sent), outcome.sum(|stream| stream.lost));
        let latency = outcome.streams.first().map(|stream| stream.latency.clone()).unwrap_or_default();
        let limited_by = limited_by(&before, &after, &outcome, rate, self.budget);
        let tried = Try {
            rate,
            passed: limited_by.is_none(),
            sent,
            lost,
            p50_us: latency.p50,
            p99_us: latency.p99,
            limited_by,
        };
        self.tries.push(tried.clone());
        Ok(tried)
    }

    fn drive(&self, rate: f64, time: Duration) -> anyhow::Result<Outcome> {
        // Fast programs send in trains; a datagram at a time, the generator would be measured.
        let arrivals = Arrivals::Burst((rate / 50_000.0).max(1.0) as u32);
        let flows = self.args.flows as usize;
        let even = Even { flows, rate, arrivals, lengths: self.args.payload_len.clone() };
        let target = Target { to: self.to, sink: self.sink, delay: self.args.chain.delay() };
        drive::run(Plan::even(&even, time, false, 1), &target, self.interrupted, |_| {})
    }

    fn ask(&self) -> anyhow::Result<Vec<NodeReport>> {
        let ask = |path: &PathBuf| {
            eddy::status::ask(path).with_context(|| format!("no node answers at the status socket {}", path.display()))
        };
        self.status.iter().map(ask).collect()
    }
}

fn people(found: &Found) -> String {
    let Found { lossless_per_s, interval, p99_us, limited_by, budget_us, payload_len, tries, .. } = found;
    let mut text = format!(
        "{lossless_per_s:.0} datagrams a second of {payload_len} bytes pass without loss (between {:.0} and {:.0}; {} \
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
            "\n{} mixes, class {}, {}, {} channels, engine {}, {}, offload {}; generator and nodes share {} cores.",
            chain.mixes,
            chain.class,
            chain.mixing,
            chain.channels,
            chain.engine,
            chain.io,
            chain.offload,
            found.machine.cores
        );
    }
    let Machine { cpu, kernel, load, eddy, .. } = &found.machine;
    text + &format!("\n{cpu}, Linux {kernel}, load average {load}. eddy {eddy}.")
}

impl CapacityArgs {
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
