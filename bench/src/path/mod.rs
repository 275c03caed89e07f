//! `eddy-bench path`: what a whole chain carries on this machine.
//!
//! Entry, mixes and exit run as processes (`eddy chain --stay`), loaded through one forward from many sockets. The
//! command searches for the highest rate at which at most one datagram in ten thousand is lost. Nodes, generator and
//! sink share the cores of the machine.
//!
//! `generator` sends and counts.

mod generator;

use std::io::Write;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use eddy::tables::{align_right, table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::generator::{Counted, Generator};
use crate::args::OutputArgs;
use crate::chain::{Chain, ChainArgs};
use crate::format::{rounded, wrapped};
use crate::machine::Machine;
use crate::results::ChainFacts;
use crate::{nodes, signals};

#[derive(Args, Debug)]
pub struct PathArgs {
    /// Number of flows, each with its own socket
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512), help_heading = "Load")]
    flows: u32,
    /// Bytes of a datagram (repeatable)
    #[arg(
        long = "payload-len",
        value_name = "BYTES",
        default_values_t = [200, 1000, 1323],
        value_parser = clap::value_parser!(u32).range(generator::LEN_MIN as i64..=1323),
        help_heading = "Load"
    )]
    payload_lens: Vec<u32>,
    /// How long to try a rate
    #[arg(
        long,
        value_name = "MS",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(50..=60_000),
        help_heading = "Search"
    )]
    try_ms: u64,
    #[command(flatten)]
    output: OutputArgs,

    #[command(flatten)]
    chain: ChainArgs,
}

/// Share of datagrams that may be lost.
const LOSS_MAX: f64 = 1e-4;
/// Datagrams per second with which a search begins.
const RATE_FIRST: f64 = 25_000.0;
/// The search ends when a step smaller than this fails: the result is within 4.5 %.
const STEP_MIN: f64 = 1.04;
/// Trials of a rate, because the machine may be busy for a moment.
const TRIES: u32 = 2;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PathRow {
    /// `forward`: one way. `both`: every datagram is sent back on its own.
    pub(crate) direction: String,
    pub(crate) payload_len: usize,
    /// Both directions together.
    pub(crate) delivered_per_s: f64,
    pub(crate) gbit_s: f64,
    /// Share of the datagrams sent, both ways.
    pub(crate) loss: f64,
    /// Offered to the entry.
    pub(crate) sent_per_s: f64,
    /// The generator could not send more.
    pub(crate) generator_bound: bool,
}

/// Processor time of a node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeCost {
    pub(crate) node: String,
    /// Cells that passed through it, both directions.
    pub(crate) cells: u64,
    /// Processor time of the process, with all of its threads, for each cell.
    pub(crate) cell_ns: u64,
}

impl NodeCost {
    fn of(report: &Value) -> NodeCost {
        let facts = nodes::facts(report);
        NodeCost { node: nodes::name(report), cells: facts.cells, cell_ns: facts.cell_ns.round() as u64 }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PathResult {
    pub(crate) rows: Vec<PathRow>,
    pub(crate) flows: u32,
    pub(crate) chain: ChainFacts,
    /// Over all rows.
    pub(crate) nodes: Vec<NodeCost>,
    /// Every ledger of the chain closed at its end.
    pub(crate) closed: bool,
    pub(crate) machine: Machine,
}

/// Runs the command.
///
/// # Errors
/// The chain does not start, or ends early.
pub fn run(args: &PathArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    let sink = UdpSocket::bind("127.0.0.1:0")?;
    let mut chain = Chain::start(&args.chain, sink.local_addr()?)?;
    let mut generator = Generator::new(args.flows as usize, chain.forward, sink)?;
    generator.open(&interrupted)?;

    let mut rows = Vec::new();
    for len in &args.payload_lens {
        for echo in [false, true] {
            let what = format!("{len} bytes, {}", if echo { "both ways" } else { "forward" });
            let search = Search { len: *len as usize, echo, time: Duration::from_millis(args.try_ms) };
            rows.push(search.run(&mut generator, &interrupted, |rate| {
                bar.set_message(format!("{what}: trying {rate:.0}/s"));
                bar.tick();
            })?);
        }
    }
    bar.finish_and_clear();

    let facts = args.chain.facts(chain.reports()?.get(1));
    let (nodes, closed) = chain.end()?;
    let result = PathResult {
        rows,
        flows: args.flows,
        chain: facts,
        nodes: nodes.iter().map(NodeCost::of).collect(),
        closed,
        machine: Machine::read(),
    };
    let text = if args.output.json { serde_json::to_string(&result)? } else { result.text(args.output.verbose) };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// A search for the highest rate of one length.
struct Search {
    len: usize,
    /// The destination sends every datagram back.
    echo: bool,
    /// Length of a trial.
    time: Duration,
}

impl Search {
    /// Doubles the rate until datagrams are lost, and continues from the last rate that passed in smaller steps.
    fn run(
        &self,
        generator: &mut Generator,
        interrupted: &AtomicBool,
        progress: impl Fn(f64),
    ) -> anyhow::Result<PathRow> {
        let mut best: Option<(Counted, bool)> = None;
        let mut attempt = |rate: f64| {
            for _ in 0..TRIES {
                if interrupted.load(Ordering::Relaxed) {
                    bail!("interrupted");
                }
                progress(rate);
                let counted = generator.run(rate, self.len, self.echo, self.time)?;
                if counted.loss() <= LOSS_MAX {
                    let behind = counted.sent_per_s() < 0.9 * rate;
                    let is_better = best.as_ref().is_none_or(|(best, _)| counted.delivered() > best.delivered());
                    if is_better {
                        best = Some((counted, behind));
                    }
                    return Ok(Some(behind));
                }
            }
            Ok(None)
        };

        let (mut good, mut step) = (RATE_FIRST / 2.0, 2.0f64);
        // A rate that failed by chance is reached again in smaller steps.
        while step > STEP_MIN {
            match attempt(good * step)? {
                // A higher rate would not be reached either.
                Some(true) => break,
                Some(false) => good *= step,
                None => step = step.sqrt(),
            }
        }
        let (counted, generator_bound) = best.unwrap_or_default();
        Ok(self.row(&counted, generator_bound))
    }

    fn row(&self, counted: &Counted, generator_bound: bool) -> PathRow {
        let per_s = |count: u64| (count as f64 / counted.took.as_secs_f64().max(f64::EPSILON)).round();
        let delivered_per_s = per_s(counted.delivered());
        PathRow {
            direction: if self.echo { "both" } else { "forward" }.to_owned(),
            payload_len: self.len,
            delivered_per_s,
            gbit_s: (delivered_per_s * self.len as f64 * 8.0 / 1e6).round() / 1e3,
            loss: counted.loss(),
            sent_per_s: per_s(counted.sent),
            generator_bound,
        }
    }
}

impl PathResult {
    fn text(&self, verbose: bool) -> String {
        let mut all = table(&["direction", "bytes", "delivered/s", "Gbit/s", "lost %", "limit"]);
        for row in &self.rows {
            all.add_row([
                row.direction.clone(),
                row.payload_len.to_string(),
                rounded(row.delivered_per_s),
                format!("{:.2}", row.gbit_s),
                format!("{:.4}", 100.0 * row.loss),
                if row.generator_bound { "generator" } else { "chain" }.to_owned(),
            ]);
        }
        align_right(&mut all, 1..5);

        let mut text = all.to_string();
        if verbose {
            let mut costs = table(&["node", "cells", "CPU ns/cell"]);
            for cost in &self.nodes {
                costs.add_row([cost.node.clone(), rounded(cost.cells as f64), rounded(cost.cell_ns as f64)]);
            }
            align_right(&mut costs, 1..3);
            text += &format!("\n\n{costs}\n");
        } else {
            let costs: Vec<String> = self.nodes.iter().map(|cost| format!("{} {}", cost.node, cost.cell_ns)).collect();
            text += &format!("\n{}", wrapped(&format!("Processor time, ns/cell: {}", costs.join(", "))));
        }
        if !self.closed {
            text += "\nA ledger of the chain did not close.";
        }
        text + &format!("\nChain: {}, {} flows\nMachine: {}", self.chain, self.flows, self.machine)
    }
}
