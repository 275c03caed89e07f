//! `eddy-bench attack`: records what an adversary on all wires sees, and attacks the record.
//!
//! ```text
//! namespace    a network of this process's own       places       ports of everything that is captured
//! network      mixes and exit as processes           capture      packet sockets on loopback
//! relay        access links, one for each user       record       from captured datagrams to a record
//! impairment   loss, jitter, outages, a bottleneck   session      one run
//! users        entries, applications, destinations   profile      what an application sends
//! cases        what is compared                      judge        attackers and their figures
//! text         tables
//! ```
//!
//! Nothing in a record comes from a node. The crate `attack` has the attackers.

mod capture;
mod cases;
mod impairment;
mod judge;
mod namespace;
mod network;
mod places;
mod profile;
mod record;
mod relay;
mod session;
mod text;
mod users;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, ensure};
use attack::active::{self, DelayWatermark, DropWatermark, Isolation, Plan};
use clap::{Args, ValueEnum};
use dataplane::stage::pool::Mixing;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use wire::cell::Class;

use self::cases::{Attacked, Case};
use self::impairment::{Impairments, Loss, Outage};
use self::judge::Judge;
use self::places::Tap;
use self::profile::{Profile, Traffic};
use self::session::{Facts, Run, Session, Stage};
use crate::args::{OutputArgs, in_range, seconds};
use crate::machine::Machine;
use crate::signals;

#[derive(Args, Clone, Debug)]
pub struct AttackArgs {
    /// Users, each with an entry and a flow of its own
    #[arg(
        long,
        default_value_t = 100,
        value_parser = clap::value_parser!(u16).range(2..=places::USERS_MAX as i64),
        help_heading = "Users"
    )]
    users: u16,
    /// Application of every user: voice, constant, video, game, web, poisson, or a trace (pcap, CSV)
    #[arg(long, default_value = "voice", value_name = "NAME|FILE", help_heading = "Users")]
    profile: Profile,
    /// Length of a record
    #[arg(long, default_value_t = 60.0, value_parser = seconds, help_heading = "Users")]
    seconds: f64,
    /// Records of each case, each with a seed of its own, from 1 on
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100), help_heading = "Users")]
    seeds: u64,

    /// Loss on access links: 0.01, or 0.01:burst=3 in bursts of that mean length
    #[arg(long, value_name = "PART", help_heading = "Access links")]
    loss: Option<Loss>,
    /// Mean of an exponential delay on access links
    #[arg(long, default_value_t = 0.0, value_parser = jitter, value_name = "MS", help_heading = "Access links")]
    jitter_ms: f64,
    /// Bottleneck of each access link and direction, with a queue of 200 ms
    #[arg(long, value_parser = rate, value_name = "BIT/S", help_heading = "Access links")]
    rate: Option<f64>,
    /// Time without a link for one user (repeatable)
    #[arg(long = "outage", value_name = "USER:AT:SECONDS", help_heading = "Access links")]
    outages: Vec<Outage>,

    /// Side of the access links that is recorded [default: user, and mix1 with impairments or --active]
    #[arg(long, help_heading = "Adversary")]
    tap: Option<Tap>,
    /// What the adversary does to a user's access link
    #[arg(long, value_name = "PLAN", help_heading = "Adversary")]
    active: Option<ActivePlan>,
    /// Attackers: names or their beginnings [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Adversary")]
    attackers: Vec<String>,
    /// What is compared: off (mixes forward at once), default (--mixing), ideal (synthetic)
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_values_t = [Case::Off, Case::Default, Case::Ideal],
        help_heading = "Adversary"
    )]
    cases: Vec<Case>,

    /// Size class of the cells
    #[arg(long, default_value_t = Class::L, ignore_case = true, help_heading = "Chain")]
    class: Class,
    /// Number of mixes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7), help_heading = "Chain")]
    mixes: u8,
    /// Mixing strategy of the case `default`
    #[arg(long, default_value_t = Mixing::default(), value_name = "NAME:KEY=VALUE,...", help_heading = "Chain")]
    mixing: Mixing,
    /// Channels that each entry keeps open
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Chain")]
    channels: u16,

    #[command(flatten)]
    output: OutputArgs,
}

fn jitter(text: &str) -> Result<f64, String> {
    in_range(text, 0.0, 10_000.0, "milliseconds")
}

fn rate(text: &str) -> Result<f64, String> {
    in_range(text, 10_000.0, 1e11, "bits per second")
}

/// An active attack on one user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ActivePlan {
    /// 20 ms of delay, on and off
    Delay,
    /// Cells of a few slots of 10 ms are dropped
    Drop,
    /// All others are held for a while (n-1)
    Isolation,
}

/// Runs the command.
///
/// # Errors
/// The system has no network namespaces, a run fails, or files cannot be read or written.
pub fn run(args: &AttackArgs) -> anyhow::Result<()> {
    let users = usize::from(args.users);
    let outside = args.outages.iter().find(|outage| outage.user >= users);
    ensure!(outside.is_none(), "--outage names user {}, but --users is {users}", outside.map_or(0, |one| one.user));
    let traffic = Traffic::read(&args.profile)?;
    // Before any thread starts.
    if args.cases.iter().any(|case| *case != Case::Ideal) {
        namespace::enter()?;
    }
    let interrupted = signals::interrupted()?;
    let judge = Judge {
        profile: args.profile.to_string(),
        times: attack::figures::TIMES.to_vec(),
        chosen: &args.attackers,
        interrupted: &interrupted,
    };
    judge.count()?;

    let (mut findings, mut summaries, mut runs, mut detections) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for case in &args.cases {
        let mut records = Vec::new();
        for seed in 1..=args.seeds {
            let (attacked, facts) = args.record(*case, seed, &traffic, &interrupted)?;
            if let Some(facts) = facts {
                args.say(&format!("{case} {seed}: {}", facts.text()));
                runs.push(facts);
                detections.extend(args.plan(seed).map(|plan| Detected::new(&attacked, &plan)));
            }
            records.push(attacked);
        }
        let bar = bar(&format!("{case}"), args.seeds * judge.count()?)?.with_message("attacking");
        let (found, summary) = judge.attack(&records, || bar.inc(1))?;
        bar.finish_and_clear();
        findings.extend(found);
        summaries.push(summary);
    }

    let machine = Machine::read();
    if args.output.json {
        let all = serde_json::json!({
            "results": findings, "summaries": summaries, "active": detections, "runs": runs, "machine": machine,
        });
        println!("{all}");
        return Ok(());
    }
    println!("{}", text::summaries(&summaries, args.seconds));
    for one in &detections {
        println!("{}", one.text());
    }
    if args.output.verbose {
        println!("\n{}", text::findings(&findings));
    }
    println!("\n{users} users, {}; class {}, {}\nMachine: {machine}", args.profile, args.class.name(), args.mixing);
    Ok(())
}

/// What the detector of an active attack found.
#[derive(Clone, Debug, Serialize)]
struct Detected {
    case: String,
    seed: u64,
    plan: &'static str,
    source: &'static str,
    /// Its best flow is the target's.
    right: bool,
    /// Seconds after which it was sure, if it ever was.
    seconds: Option<f64>,
}

impl Detected {
    fn new(attacked: &Attacked, plan: &Plan) -> Detected {
        let found = active::detect(&attacked.record, plan);
        let row = found.scores.row(0);
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
        Detected {
            case: attacked.case.clone(),
            seed: attacked.seed,
            plan: plan.name(),
            source: plan.source(),
            right: best == attacked.truth.0.get(plan.target()).copied(),
            seconds: found.seconds,
        }
    }

    fn text(&self) -> String {
        let Detected { case, seed, plan, right, seconds, .. } = self;
        let right = if *right { "the target's flow" } else { "another flow" };
        match seconds {
            Some(seconds) => format!("{case} {seed}: {plan} found {right} after {seconds} s"),
            None => format!("{case} {seed}: {plan} found nothing that stands out ({right} is first)"),
        }
    }
}

fn bar(name: &str, length: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{prefix:>10} {bar:20} {elapsed_precise} {msg}")?;
    Ok(ProgressBar::new(length).with_style(style).with_prefix(name.to_owned()))
}

impl AttackArgs {
    fn record(
        &self,
        case: Case,
        seed: u64,
        traffic: &Traffic,
        interrupted: &AtomicBool,
    ) -> anyhow::Result<(Attacked, Option<Facts>)> {
        let name = case.to_string();
        let Some(mixing) = case.mixing(self.mixing) else {
            let (record, truth) = cases::ideal(self.users.into(), self.seconds, seed, &self.profile);
            return Ok((Attacked { case: name, seed, record, truth }, None));
        };
        let bar = bar(&format!("{case} {seed}"), 1000)?;
        let run = self.session(traffic, mixing, seed).run(interrupted, |stage| match stage {
            Stage::Starting(ready) => bar.set_message(format!("{ready} of {} entries are ready", self.users + 1)),
            Stage::Recording(elapsed) => {
                bar.set_position((1000.0 * elapsed.as_secs_f64() / self.seconds) as u64);
                bar.set_message("recording");
            }
            Stage::Ending => bar.set_message("stopping"),
        });
        bar.finish_and_clear();
        let Run { record, truth, facts } = run.with_context(|| format!("case {case}, seed {seed}"))?;
        Ok((Attacked { case: name, seed, record, truth }, Some(facts)))
    }

    fn session<'a>(&self, traffic: &'a Traffic, mixing: Mixing, seed: u64) -> Session<'a> {
        let impairments = Impairments {
            loss: self.loss,
            jitter: Duration::from_secs_f64(self.jitter_ms / 1e3),
            rate: self.rate,
            outages: self.outages.clone(),
        };
        let changed = impairments != Impairments::default() || self.active.is_some();
        Session {
            users: self.users.into(),
            class: self.class,
            mixes: self.mixes.into(),
            mixing,
            channels: self.channels,
            traffic,
            length: Duration::from_secs_f64(self.seconds),
            seed,
            impairments,
            plan: self.plan(seed),
            tap: self.tap.unwrap_or(if changed { Tap::Mix1 } else { Tap::User }),
        }
    }

    /// Against another user with each seed.
    fn plan(&self, seed: u64) -> Option<Plan> {
        let target = (seed % u64::from(self.users)) as usize;
        Some(match self.active? {
            ActivePlan::Delay => Plan::DelayWatermark(DelayWatermark::new(target, seed)),
            ActivePlan::Drop => Plan::DropWatermark(DropWatermark::new(target, seed)),
            ActivePlan::Isolation => Plan::Isolation(Isolation::new(target, seed)),
        })
    }

    fn say(&self, line: &str) {
        if self.output.verbose {
            println!("{line}");
        }
    }
}
