//! `eddy-bench attack`: records what an adversary on all wires sees, and attacks the record.
//!
//! ```text
//! namespace    a network of this process's own       places       ports of everything that is captured
//! network      mixes and exit as processes           capture      packet sockets on loopback
//! relay        access links, one for each user       record       from captured datagrams to a record
//! impairment   loss, jitter, outages, a bottleneck   session      one run
//! users        entries, applications, destinations   profile      what an application sends
//! cases        what is compared                      folder       records as files
//! virtual_run  a run under a virtual clock           plant        leaks that attackers must find
//! copies       copies of cells on access links       exit_record  what a corrupt exit adds to a record
//! judge        attackers and their figures           text         tables
//! measures     ROC curves and entropy                costs        delay and bytes
//! result       what `report` reads of the output     rivals       padding defences of others
//! facts        counts and costs of a run
//! ```
//!
//! Nothing in a record comes from a node. The crate `attack` has the attackers. Each run is a process of its own,
//! because an entry keeps the memory of its buffers until its process ends.

mod capture;
mod cases;
mod copies;
mod costs;
mod exit_record;
mod facts;
mod folder;
mod impairment;
mod judge;
mod measures;
mod namespace;
mod network;
mod places;
mod plant;
mod profile;
mod record;
mod relay;
mod result;
#[cfg(feature = "rivals")]
mod rivals;
mod session;
mod text;
mod users;
mod virtual_run;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use attack::active::{self, DelayWatermark, DropWatermark, Isolation, Plan};
use clap::{Args, ValueEnum};
use dataplane::stage::pool::Mixing;
use eddy_node::ceremony::profile::{ClassChoice, for_hops};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use wire::cell::Class;
use wire::paced::PacedTerms;

use self::cases::{Attacked, Case, NO_MIXING};
use self::costs::Costs;
use self::impairment::{Impairments, Loss, Outage};
use self::judge::Judge;
pub(crate) use self::judge::Summary;
use self::network::Recorded;
use self::places::Tap;
use self::plant::Leak;
use self::profile::{Profile, Traffic};
use self::record::Entries;
pub(crate) use self::result::{AttackResult, Found, RunInfo};
use self::session::{Run, Session, Stage};
use crate::args::{OutputArgs, in_range, seconds};
use crate::machine::Machine;
use crate::signals;

/// Options of new records, which `--from` does not make.
const OF_NEW_RECORDS: [&str; 21] = [
    "users",
    "profile",
    "seconds",
    "seeds",
    "loss",
    "jitter_ms",
    "rate",
    "outages",
    "stalls",
    "tap",
    "plant",
    "corrupt_exit",
    "cases",
    "class",
    "mixes",
    "mixing",
    "paced",
    "channels",
    "record",
    "wf4nym",
    "run",
];

#[derive(Args, Clone, Debug)]
pub struct AttackArgs {
    /// Users, each with an entry and a flow
    #[arg(
        long,
        default_value_t = 100,
        value_parser = clap::value_parser!(u16).range(2..=places::USERS_MAX as i64),
        help_heading = "Users"
    )]
    users: u16,
    /// Application of every user
    ///
    /// voice, opus, constant, video, game, web, poisson, or a trace (pcap, CSV)
    #[arg(long, default_value = "voice", value_name = "NAME|FILE", help_heading = "Users")]
    profile: Profile,
    /// Length of a record
    #[arg(long, default_value_t = 60.0, value_parser = seconds, help_heading = "Users")]
    seconds: f64,
    /// Records per case, with seeds 1, 2, ...
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100), help_heading = "Users")]
    seeds: u64,

    /// Share of datagrams lost on access links: 0.01, or 0.01:burst=3 for bursts of 3 on average
    #[arg(hide_short_help = true, long, value_name = "SHARE", help_heading = "Access links")]
    loss: Option<Loss>,
    /// Mean of an exponential delay on access links
    #[arg(
        hide_short_help = true,
        long,
        default_value_t = 0.0,
        value_parser = jitter,
        value_name = "MS",
        help_heading = "Access links"
    )]
    jitter_ms: f64,
    /// Bottleneck of each access link and direction, with a queue of 200 ms
    #[arg(hide_short_help = true, long, value_parser = rate, value_name = "BIT/S", help_heading = "Access links")]
    rate: Option<f64>,
    /// Time without a link for one user, counted from 0 (repeatable)
    #[arg(hide_short_help = true, long = "outage", value_name = "USER:AT:SECONDS", help_heading = "Access links")]
    outages: Vec<Outage>,

    /// User whose entry stops for 5 to 50 ms twice a second, counted from 0: a busy machine (repeatable)
    ///
    /// In the cases `paced-virtual...` only.
    #[arg(hide_short_help = true, long = "stall", value_name = "USER", help_heading = "Access links")]
    stalls: Vec<usize>,

    /// Side of the access links that is recorded [default: user, and mix1 with impairments or --active]
    #[arg(hide_short_help = true, long, help_heading = "Adversary")]
    tap: Option<Tap>,
    /// Active attack on one user
    #[arg(hide_short_help = true, long, value_name = "PLAN", help_heading = "Adversary")]
    active: Option<ActivePlan>,
    /// Plant a leak on the access links of a paced class, which attackers should find
    #[arg(hide_short_help = true, long, value_name = "LEAK", help_heading = "Adversary")]
    plant: Option<Leak>,
    /// Also record what a corrupt exit sees, in the cases `paced-virtual...`
    #[arg(hide_short_help = true, long, help_heading = "Adversary")]
    corrupt_exit: bool,
    /// Attackers: names or their beginnings [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Adversary")]
    attackers: Vec<String>,
    /// Cases to compare
    ///
    /// off (mixes forward at once), default (--mixing), paced (users call each
    /// other in a paced class), paced-outside (they send to destinations in it),
    /// paced-virtual, paced-virtual-outside (the same in one process, under a
    /// virtual clock: the nodes' own code and timers, without sockets, kernel,
    /// scheduler and the time that nodes compute), ideal (synthetic);
    /// rival-none, rival-tamaraw, rival-front (padding defences of others, in
    /// builds with --features rivals)
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_values_t = [Case::Off, Case::Default, Case::Ideal],
        help_heading = "Adversary"
    )]
    cases: Vec<Case>,

    /// Size class of the cells
    #[arg(hide_short_help = true, long, default_value_t = Class::L, ignore_case = true, help_heading = "Chain")]
    class: Class,
    /// Number of mixes
    #[arg(
        hide_short_help = true,
        long,
        default_value_t = 3,
        value_parser = clap::value_parser!(u8).range(1..=7),
        help_heading = "Chain"
    )]
    mixes: u8,
    /// Mixing strategy of the case `default`
    #[arg(
        hide_short_help = true,
        long,
        default_value_t = Mixing::default(),
        value_name = "NAME:KEY=VALUE,...",
        help_heading = "Chain"
    )]
    mixing: Mixing,
    /// Paced class of the cases `paced...`: PROFILE:KEY=VALUE,... as for `eddy assemble --class`
    ///
    /// Seats are raised and n_min is lowered to fit --users.
    #[arg(
        hide_short_help = true,
        long,
        default_value = "voice:steps_ms=2,loops=0",
        value_parser = paced_class,
        value_name = "CLASS",
        help_heading = "Chain"
    )]
    paced: PacedTerms,
    /// Channels that each entry keeps open
    #[arg(
        hide_short_help = true,
        long,
        default_value_t = 4,
        value_parser = clap::value_parser!(u16).range(1..=256),
        help_heading = "Chain"
    )]
    channels: u16,

    /// Keep the records in this folder
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    record: Option<PathBuf>,
    /// Also write them in the format of WF4NYM-artifacts
    #[arg(hide_short_help = true, long, requires = "record", help_heading = "Output")]
    wf4nym: bool,
    /// Attack the records in this folder again
    ///
    /// Options of users, access links, adversary and chain are those of the records, and refused.
    #[arg(long, value_name = "FOLDER", conflicts_with_all = OF_NEW_RECORDS, help_heading = "Output")]
    from: Option<PathBuf>,
    /// Make this record only: what the command starts for each record
    #[arg(long, value_name = "CASE-SEED", hide = true, requires = "record")]
    run: Option<RunName>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The name of a record.
#[derive(Clone, Copy, Debug)]
struct RunName {
    case: Case,
    seed: u64,
}

impl FromStr for RunName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("invalid record {text:?}: expected CASE-SEED, e.g. default-1");
        let (case, seed) = text.rsplit_once('-').ok_or_else(wrong)?;
        Ok(RunName { case: case.parse()?, seed: seed.parse().map_err(|_| wrong())? })
    }
}

fn jitter(text: &str) -> Result<f64, String> {
    in_range(text, 0.0, 10_000.0, "milliseconds")
}

fn rate(text: &str) -> Result<f64, String> {
    in_range(text, 10_000.0, 1e11, "bits per second")
}

fn paced_class(text: &str) -> Result<PacedTerms, String> {
    match text.parse()? {
        ClassChoice::Paced(terms) => Ok(terms),
        ClassChoice::Free(class) => Err(format!("class {class} is not paced: write for example voice:rounds=512")),
    }
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
    let repeated = args.cases.iter().enumerate().find(|(at, case)| args.cases[..*at].contains(case));
    ensure!(
        repeated.is_none(),
        "--cases names {} twice",
        repeated.map_or_else(String::new, |(_, case)| case.to_string())
    );
    ensure!(
        !args.cases.iter().any(|case| case.has_meetings()) || users.is_multiple_of(2),
        "the cases paced and paced-virtual have pairs of users: --users must be even (got {users})"
    );
    let is_virtual = args.cases.iter().all(|case| case.is_virtual());
    ensure!(is_virtual || args.stalls.is_empty(), "--stall needs cases under a virtual clock: --cases paced-virtual");
    ensure!(
        is_virtual || !args.corrupt_exit,
        "--corrupt-exit needs cases under a virtual clock: --cases paced-virtual"
    );
    let stalled = args.stalls.iter().find(|user| **user >= users);
    ensure!(stalled.is_none(), "--stall names user {}, but --users is {users}", stalled.unwrap_or(&0));
    ensure!(
        args.plant.is_none() || args.cases.iter().all(|case| case.is_paced()),
        "--plant needs cases of a paced class: --cases paced-virtual"
    );
    for case in args.cases.iter().filter(|case| case.is_virtual()) {
        if let Some(Recorded::Paced(terms)) = args.recorded(*case) {
            let plan = eddy_virtual::Plan::new(&terms, args.mixes.into(), users);
            plan.check().map_err(|why| anyhow!("--paced: {why}"))?;
        }
    }
    let traffic = Traffic::read(&args.profile)?;
    if let (Some(RunName { case, seed }), Some(dir)) = (args.run, &args.record) {
        return args.record_one(case, seed, &traffic, dir);
    }

    let interrupted = signals::interrupted()?;
    let judge = Judge { times: attack::figures::TIMES.to_vec(), chosen: &args.attackers, interrupted: &interrupted };
    let attackers = judge.count()?;
    let temporary =
        tempfile::Builder::new().prefix("eddy-bench-").tempdir().context("cannot create a temporary folder")?;
    let dir = args.from.as_deref().or(args.record.as_deref()).unwrap_or(temporary.path());
    let all = match &args.from {
        Some(from) => folder::list(from)?,
        None => args.cases.iter().flat_map(|case| (1..=args.seeds).map(|seed| (case.to_string(), seed))).collect(),
    };

    if args.from.is_none() {
        args.warn_if_short("records", args.seconds);
    }

    let (mut findings, mut summaries, mut runs, mut detections) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for of_case in all.chunk_by(|one, other| one.0 == other.0) {
        let mut records = Vec::new();
        for (case, seed) in of_case {
            if args.from.is_none() {
                say_without_bar(&format!("record {} of {}: {case}, seed {seed}", runs.len() + 1, all.len()));
                let made = args.start_run(case, *seed, dir);
                ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
                made?;
            }
            let (attacked, facts) = folder::read(dir, case, *seed)?;
            if let Some(facts) = &facts {
                args.say(&format!("{case} {seed}: {}", facts.text()));
                if args.from.is_some() {
                    args.warn_if_short(&format!("the record {case}-{seed}"), attacked.record.length as f64 / 1e9);
                }
                let plan = args.plan(*seed, attacked.record.access.len());
                detections.extend(plan.map(|plan| Detected::new(&attacked, &plan)));
            }
            let (costs, command) = (Costs::of(&attacked.record), attacked.command.clone());
            runs.push(RunInfo { case: case.clone(), seed: *seed, command, costs, wait_ms: attacked.wait_ms, facts });
            records.push(attacked);
        }
        let case = &of_case[0].0;
        say_without_bar(&format!("attacking {case} (records: {}, attackers: {attackers})", of_case.len()));
        let bar = bar(case, of_case.len() as u64 * attackers)?.with_message("attacking");
        let (found, summary) = judge.attack(&records, || bar.inc(1))?;
        bar.finish_and_clear();
        findings.extend(found);
        summaries.push(summary);
    }

    let machine = Machine::read();
    if args.output.json {
        let all = serde_json::json!({
            "results": findings, "roc_rates": measures::false_positive_rates(), "summaries": summaries,
            "active": detections, "runs": runs, "machine": machine,
        });
        println!("{all}");
        return Ok(());
    }
    println!("{}\n\n{}", text::summaries(&summaries), text::costs(&runs));
    for one in &detections {
        println!("{}", one.text());
    }
    if args.output.verbose {
        println!("\n{}", text::findings(&findings));
    }
    match &args.from {
        Some(from) => println!("\n{}, records of {}", text::users(&findings), from.display()),
        None => println!("\n{users} users, {}; class {}, {}", args.profile, args.class.name(), args.mixing),
    }
    println!("Machine: {machine}");
    if let Some(record) = &args.record {
        println!("Wrote {} records to {}.", all.len(), record.display());
    }
    Ok(())
}

/// The arguments of the command that started this process for a record.
fn command() -> String {
    let arguments = std::env::args_os().skip(1).take_while(|argument| argument != "--run");
    arguments.map(|argument| argument.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
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
        Detected {
            case: attacked.case.clone(),
            seed: attacked.seed,
            plan: plan.name(),
            source: plan.source(),
            right: found.best() == attacked.truth.0.get(plan.target()).copied(),
            seconds: found.seconds,
        }
    }

    fn text(&self) -> String {
        let Detected { case, seed, plan, right, seconds, .. } = self;
        let right = if *right { "the target's flow" } else { "another flow" };
        match seconds {
            Some(seconds) => format!("{case} {seed}: {plan} found {right} after {seconds} s"),
            None => format!("{case} {seed}: {plan} found nothing that stands out so soon ({right} is first)"),
        }
    }
}

fn bar(name: &str, length: u64) -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{prefix:>10} {bar:20} {elapsed_precise} {msg}")?;
    Ok(ProgressBar::new(length).with_style(style).with_prefix(name.to_owned()))
}

/// Reports progress where stderr is not a terminal, which shows no bars.
fn say_without_bar(line: &str) {
    if !std::io::stderr().is_terminal() {
        eprintln!("{line}");
    }
}

impl AttackArgs {
    /// Makes one record in another process, whose arguments are those of this one.
    fn start_run(&self, case: &str, seed: u64, dir: &Path) -> anyhow::Result<()> {
        // This program, also if its file was replaced since it started.
        let mut command = Command::new("/proc/self/exe");
        command.args(std::env::args_os().skip(1)).args(["--run", &format!("{case}-{seed}")]);
        if self.record.is_none() {
            command.arg("--record").arg(dir);
        }
        let ended = command.stdout(Stdio::null()).status().context("cannot start a run")?;
        ensure!(ended.success(), "no record of case {case}, seed {seed}");
        Ok(())
    }

    /// Makes one record in this process.
    fn record_one(&self, case: Case, seed: u64, traffic: &Traffic, dir: &Path) -> anyhow::Result<()> {
        // The process that waits for the record may be killed.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        let (name, profile, command) = (case.to_string(), Some(self.profile.to_string()), Some(command()));
        let Some(class) = self.recorded(case) else {
            let ((record, truth), wait_ms) = match case {
                #[cfg(feature = "rivals")]
                Case::Rival(defence) => self.tunnels(traffic, seed)?.record(defence),
                _ => (cases::ideal(self.users.into(), self.seconds, seed, &self.profile), None),
            };
            let attacked = Attacked { case: name, seed, profile, command, record, truth, wait_ms };
            return folder::write(dir, &attacked, None, self.wf4nym);
        };
        // Before any thread starts.
        if !case.is_virtual() {
            namespace::enter()?;
        }
        let interrupted = signals::interrupted()?;
        let bar = bar(&format!("{case} {seed}"), 1000)?;
        let session = self.session(traffic, case, class, seed);
        let users = session.entries.rows + 1;
        let progress = |stage| match stage {
            Stage::Starting(ready) => bar.set_message(format!("{ready} of {users} users are ready")),
            Stage::Recording(elapsed) => {
                bar.set_position((1000.0 * elapsed.as_secs_f64() / self.seconds) as u64);
                bar.set_message("recording");
            }
            Stage::Ending => bar.set_message("stopping"),
        };
        let run = match &session.class {
            Recorded::Paced(terms) if case.is_virtual() => session.run_virtual(terms, &interrupted, progress),
            _ => session.run(&interrupted, progress),
        };
        bar.finish_and_clear();
        let Run { record, truth, wait_ms, facts } = run?;
        let wait_ms = wait_ms.filter(|_| facts.paced.is_some());
        let attacked = Attacked { case: name, seed, profile, command, record, truth, wait_ms };
        folder::write(dir, &attacked, Some(facts), self.wf4nym)
    }

    #[cfg(feature = "rivals")]
    fn tunnels<'a>(&self, traffic: &'a Traffic, seed: u64) -> anyhow::Result<rivals::Tunnels<'a>> {
        let shape = wire::cell::Shape::new(self.class, usize::from(self.mixes) + 1)?;
        let length = Duration::from_secs_f64(self.seconds);
        Ok(rivals::Tunnels { users: self.users.into(), length, seed, traffic, shape })
    }

    /// The class whose links are recorded; `None` if the case has no chain.
    fn recorded(&self, case: Case) -> Option<Recorded> {
        let free = |mixing| Some(Recorded::Free { class: self.class, mixing, channels: self.channels });
        match case {
            Case::Off => free(NO_MIXING),
            Case::Default => free(self.mixing),
            paced if paced.is_paced() => {
                let mut terms = for_hops(self.paced.clone(), usize::from(self.mixes) + 1);
                // Half of the entries are enough company. All of them have one prefix, which gets half of the seats.
                terms.seats = terms.seats.max(2 * self.users + 16);
                terms.n_min = terms.n_min.min(self.users / 2);
                Some(Recorded::Paced(terms))
            }
            _ => None,
        }
    }

    fn session<'a>(&self, traffic: &'a Traffic, case: Case, class: Recorded, seed: u64) -> Session<'a> {
        let impairments = Impairments {
            loss: self.loss,
            jitter: Duration::from_secs_f64(self.jitter_ms / 1e3),
            rate: self.rate,
            outages: self.outages.clone(),
        };
        let changed = impairments != Impairments::default() || self.active.is_some() || self.plant.is_some();
        let (users, meetings) = (usize::from(self.users), case.has_meetings());
        let entries = Entries { rows: if meetings { users / 2 } else { users }, meetings };
        Session {
            entries,
            class,
            mixes: self.mixes.into(),
            traffic,
            length: Duration::from_secs_f64(self.seconds),
            seed,
            impairments,
            plan: self.plan(seed, entries.rows),
            tap: self.tap.unwrap_or(if changed { Tap::Mix1 } else { Tap::User }),
            leak: self.plant,
            stalls: self.stalls.clone(),
            corrupt_exit: self.corrupt_exit,
        }
    }

    /// Against another user of `users`, or another caller, with each seed.
    fn plan(&self, seed: u64, users: usize) -> Option<Plan> {
        let target = (seed % users as u64) as usize;
        Some(match self.active? {
            ActivePlan::Delay => Plan::DelayWatermark(DelayWatermark::new(target, seed)),
            ActivePlan::Drop => Plan::DropWatermark(DropWatermark::new(target, seed)),
            ActivePlan::Isolation => Plan::Isolation(Isolation::new(target, seed)),
        })
    }

    fn warn_if_short(&self, records: &str, seconds: f64) {
        let Some(plan) = self.plan(1, 2) else { return };
        let needed = plan.seconds_needed();
        if seconds < needed {
            eprintln!(
                "warning: {records} of {seconds} s may be too short for the {}, which needs about {needed} s: record \
                 with --seconds {needed} or more",
                plan.name()
            );
        }
    }

    fn say(&self, line: &str) {
        if self.output.verbose {
            println!("{line}");
        }
    }
}
