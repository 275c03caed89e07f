//! `eddy-bench attack`: records what an adversary on all wires sees, and attacks the record.
//!
//! ```text
//! namespace    a network of this process's own       places       ports of everything that is captured
//! network      mixes and exit as processes           capture      packet sockets on loopback
//! relay        access links, one for each user       record       from captured datagrams to a record
//! impairment   loss, jitter, outages, a bottleneck   session      one run
//! users        entries, applications, destinations   profile      what an application sends
//! ```
//!
//! Nothing in a record comes from a node. The crate `attack` has the attackers.

mod capture;
mod impairment;
mod namespace;
mod network;
mod places;
mod profile;
mod record;
mod relay;
mod session;
mod users;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use dataplane::stage::pool::Mixing;
use indicatif::{ProgressBar, ProgressStyle};
use wire::cell::Class;

use self::impairment::{Impairments, Loss, Outage};
use self::profile::{Profile, Traffic};
use self::relay::Verdict;
use self::session::{Run, Session, Stage};
use crate::args::{OutputArgs, in_range, seconds};
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

/// Runs the command.
///
/// # Errors
/// The system has no network namespaces, a run fails, or files cannot be read or written.
pub fn run(args: &AttackArgs) -> anyhow::Result<()> {
    namespace::enter()?;
    let interrupted = signals::interrupted()?;
    let traffic = Traffic::read(&args.profile)?;
    let style = ProgressStyle::with_template("{prefix:>16} {bar:20} {elapsed_precise} {msg}")?;
    for (case, mixing) in [("off", "threshold:n=1".parse()?), ("default", args.mixing)] {
        for seed in 1..=args.seeds {
            let bar = ProgressBar::new(1000).with_style(style.clone()).with_prefix(format!("{case} {seed}"));
            let run = args.session(&traffic, mixing, seed).run(&interrupted, |stage| match stage {
                Stage::Starting(ready) => bar.set_message(format!("{ready} of {} entries are ready", args.users + 1)),
                Stage::Recording(elapsed) => {
                    bar.set_position((1000.0 * elapsed.as_secs_f64() / args.seconds) as u64);
                    bar.set_message("recording");
                }
                Stage::Ending => bar.set_message("stopping"),
            });
            bar.finish_and_clear();
            let Run { record, facts, .. } = run.with_context(|| format!("case {case}, seed {seed}"))?;
            println!("{case} {seed}: {}", facts.text());
            for (name, places) in [("access", &record.access), ("inner", &record.inner), ("flows", &record.flows)] {
                let counts: Vec<_> = places.iter().map(|place| (place.forward.len(), place.backward.len())).collect();
                println!("  {name}: {counts:?}");
            }
            println!("  probe: {}", record.probe.len());
        }
    }
    Ok(())
}

impl AttackArgs {
    fn session<'a>(&self, traffic: &'a Traffic, mixing: Mixing, seed: u64) -> Session<'a> {
        Session {
            users: self.users.into(),
            class: self.class,
            mixes: self.mixes.into(),
            mixing,
            channels: self.channels,
            traffic,
            length: Duration::from_secs_f64(self.seconds),
            seed,
            impairments: self.impairments(),
            plan: Arc::new(|_, _, _| Verdict::Pass),
        }
    }

    fn impairments(&self) -> Impairments {
        Impairments {
            loss: self.loss,
            jitter: Duration::from_secs_f64(self.jitter_ms / 1e3),
            rate: self.rate,
            outages: self.outages.clone(),
        }
    }
}
