//! `eddy-bench load`.

use std::time::Duration;

use clap::Args;

use super::even::{Arrivals, Even, Lengths};
use super::plan::Plan;
use super::profile::Profile;
use super::runs::RunArgs;
use crate::args::{in_range, seconds};
use crate::signals;

#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Flows of an application: voip, opus, game, video or bulk (repeatable)
    #[arg(
        long = "profile",
        value_name = "NAME:FLOWS",
        conflicts_with_all = ["rate", "payload_len", "arrivals", "flows"],
        help_heading = "Load"
    )]
    profiles: Vec<Profile>,
    /// Datagrams per second over all flows
    #[arg(long, default_value_t = 10_000.0, value_parser = rate, help_heading = "Load")]
    rate: f64,
    /// Bytes of a datagram: 1000, 200-1300 or 172*6,1200*1
    #[arg(long, default_value_t = Lengths::fixed(1000), value_name = "BYTES", help_heading = "Load")]
    payload_len: Lengths,
    /// Intervals between datagrams: constant, poisson or burst:N
    #[arg(long, default_value_t = Arrivals::Constant, help_heading = "Load")]
    arrivals: Arrivals,
    /// Number of flows, each with its own socket
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000), help_heading = "Load")]
    flows: u32,
    /// How long to send
    #[arg(long, default_value_t = 10.0, value_parser = seconds, help_heading = "Load")]
    seconds: f64,
    /// Send every datagram back from the destination and measure round trips
    #[arg(long, help_heading = "Load")]
    answers: bool,
    /// Seed of all random numbers
    #[arg(long, default_value_t = 1, help_heading = "Load")]
    seed: u64,
    #[command(flatten)]
    run: RunArgs,
}

fn rate(text: &str) -> Result<f64, String> {
    in_range(text, 0.1, 20_000_000.0, "datagrams per second")
}

/// Runs the command.
///
/// # Errors
/// The chain does not start, flows do not open, or files cannot be written.
pub fn run(args: &LoadArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    let runs = args.run.run(&interrupted, &args.command(), || args.plan())?;
    args.run.report(&runs)
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

    /// The arguments that repeat this.
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
        parts.push(self.run.command());
        parts.join(" ")
    }
}
