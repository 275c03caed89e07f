//! Runs of a plan: straight to its destination, and through a chain.

use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::generator::{self, Outcome, Progress, Target};
use super::plan::Plan;
use super::{calibration, header, summary};
use crate::args::{OutputArgs, TargetArgs};
use crate::chain::{ChainArgs, Route};
use crate::machine::Machine;
use crate::results::{ChainFacts, FORMAT, Results};

/// Target and output of a load.
#[derive(Args, Clone, Debug)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Measure the generator alone, without a chain
    #[arg(long, conflicts_with = "to", help_heading = "Target")]
    direct: bool,
    /// Skip the direct run, which every other run is compared with
    #[arg(long, conflicts_with = "direct", help_heading = "Target")]
    no_direct: bool,

    /// Name of the run in tables and files
    #[arg(long, default_value = "chain", value_parser = name, help_heading = "Output")]
    name: String,
    /// Write NAME.json (for `eddy-bench report`), .hgrm and .hlog files to this folder
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    out: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    chain: ChainArgs,
}

fn name(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if !text.is_empty() && !text.starts_with('.') && text.len() <= 64 && text.chars().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err("expected at most 64 letters, digits, and the characters -_.".into())
    }
}

impl RunArgs {
    /// The arguments that repeat this.
    pub(crate) fn command(&self) -> String {
        self.target.command(|| if self.direct { "--direct".into() } else { self.chain.command() })
    }

    pub(crate) fn is_text(&self) -> bool {
        !self.output.json
    }

    /// Runs the plan straight to its destination and through the chain, unless one of them was excluded.
    ///
    /// # Errors
    /// The chain does not start, or flows do not open.
    pub(crate) fn run(
        &self,
        interrupted: &AtomicBool,
        command: &str,
        plan: impl Fn() -> Plan,
    ) -> anyhow::Result<Vec<Results>> {
        let mut runs = Vec::new();
        // The chain first, since it is what may fail.
        if !self.direct {
            runs.push(self.through_chain(interrupted, command, plan())?);
        }
        if self.no_direct || interrupted.load(Ordering::Relaxed) {
            return Ok(runs);
        }

        let sink = UdpSocket::bind("127.0.0.1:0")?;
        let target = Target { to: sink.local_addr()?, sink: &sink, delay: Duration::ZERO };
        let outcome = run_with_progress(plan(), &target, interrupted, "direct")?;
        let direct = results("direct", command, &outcome, None, Vec::new());
        let calibration = if interrupted.load(Ordering::Relaxed) {
            None
        } else {
            let flows = direct.streams.iter().map(|stream| stream.flows).max().unwrap_or(1);
            let ceiling = calibration::ceiling(flows, mean_len(&direct), interrupted)?;
            Some(calibration::of(ceiling, &direct.streams))
        };
        runs.insert(0, direct);
        runs.iter_mut().for_each(|run| run.calibration.clone_from(&calibration));
        Ok(runs)
    }

    /// Through the running chain, or through one that is started for the run.
    fn through_chain(&self, interrupted: &AtomicBool, command: &str, plan: Plan) -> anyhow::Result<Results> {
        let route = Route::start(&self.target, &self.chain)?;
        let target = Target { to: route.forward, sink: &route.sink, delay: self.chain.delay() };
        let outcome = run_with_progress(plan, &target, interrupted, &self.name)?;
        let (facts, nodes) = (route.facts(&self.chain)?, route.end()?);
        Ok(results(&self.name, command, &outcome, facts, nodes))
    }

    /// Writes files and prints the results.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(crate) fn report(&self, runs: &[Results]) -> anyhow::Result<()> {
        let mut files = Vec::new();
        if let Some(folder) = &self.out {
            for run in runs {
                files.push(run.write(folder)?);
            }
        }
        if self.output.json {
            println!("{}", serde_json::json!({ "runs": runs }));
            return Ok(());
        }
        println!("{}", summary::text(runs, self.output.verbose));
        for file in files {
            println!("Wrote {}.", file.display());
        }
        Ok(())
    }
}

/// Mean length of the datagrams that arrived.
fn mean_len(run: &Results) -> u32 {
    let (bytes, count) = run.streams.iter().fold((0, 0), |sum, s| (sum.0 + s.bytes, sum.1 + s.delivered));
    (bytes / count.max(1)).max(header::SHORTEST as u64) as u32
}

/// The results of one run.
pub(crate) fn results(
    name: &str,
    command: &str,
    outcome: &Outcome,
    chain: Option<ChainFacts>,
    nodes: Vec<Value>,
) -> Results {
    Results {
        format: FORMAT,
        name: name.to_owned(),
        command: command.to_owned(),
        machine: Machine::read(),
        chain,
        calibration: None,
        seconds: outcome.took.as_secs_f64(),
        interrupted: outcome.interrupted,
        streams: outcome.streams.clone(),
        series: outcome.series.clone(),
        nodes,
    }
}

/// Runs a plan with a progress bar, whose text changes each second.
fn run_with_progress(plan: Plan, target: &Target<'_>, interrupted: &AtomicBool, name: &str) -> anyhow::Result<Outcome> {
    let style = ProgressStyle::with_template("{prefix:>10} {bar:20} {elapsed_precise} {msg}")?;
    let total = plan.time;
    let bar = ProgressBar::new(total.as_millis() as u64).with_style(style).with_prefix(name.to_owned());
    let mut last = Duration::ZERO;
    let outcome = generator::run(plan, target, interrupted, |progress| {
        bar.set_position(progress.elapsed.min(total).as_millis() as u64);
        if progress.elapsed.as_secs() > last.as_secs() || last.is_zero() {
            last = progress.elapsed.max(Duration::from_nanos(1));
            bar.set_message(progress_text(&progress));
        }
    })?;
    bar.finish_and_clear();
    Ok(outcome)
}

fn progress_text(progress: &Progress) -> String {
    let Progress { sent, arrived, second, .. } = progress;
    let p99 = second.map_or_else(String::new, |second| format!(", p99 {:.0} us", second.p99_us));
    format!("{sent} sent, {arrived} arrived{p99}")
}
