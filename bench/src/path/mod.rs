//! `eddy-bench path`: what a whole chain carries on this machine.
//!
//! Entry, three mixes and exit as processes (`eddy chain --stay`), loaded through one forward from many sockets. The
//! rate is searched for at which at most one datagram in ten thousand is lost. All share the machine's cores with the
//! generator and the sink.
//!
//! `flood` sends and counts.

mod flood;

use std::io::Write;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use eddy::tables::{align_right, table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use self::flood::{Counted, Flood};
use crate::chain::{Chain, ChainArgs};
use crate::machine::Machine;
use crate::signals;

/// What `path` is told.
#[derive(Args, Debug)]
pub struct PathArgs {
    /// Client sockets, each a flow
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=512))]
    pub flows: u32,
    /// Milliseconds of each try
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    pub try_ms: u64,
    /// Bytes of a datagram (repeatable)
    #[arg(long = "payload-len", default_values_t = [200, 1000, 1323],
          value_parser = clap::value_parser!(u32).range(flood::LEN_MIN as i64..=1323))]
    pub payload_lens: Vec<u32>,
    /// Print one JSON object as the last line instead of a table
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub chain: ChainArgs,
}

/// Lost datagrams that a rate may have.
const LOSS_MAX: f64 = 1e-4;
/// Datagrams per second that a search begins with.
const RATE_FIRST: f64 = 25_000.0;
/// The search ends when a step of less than this is lost, too: within 4.5 %.
const STEP_MIN: f64 = 1.04;
/// Tries of a rate: a machine has moments.
const TRIES: u32 = 2;

#[derive(Debug, Serialize)]
struct Row {
    /// `forward`: one way. `both`: every datagram is answered by itself.
    direction: &'static str,
    payload_len: usize,
    /// Of both directions together.
    delivered_per_s: f64,
    gbit_s: f64,
    /// Of those sent, both ways.
    loss: f64,
    /// Offered to the entry.
    sent_per_s: f64,
    /// The sender could not have sent more.
    generator_bound: bool,
}

/// What a node's cells cost it.
#[derive(Debug, Serialize)]
struct NodeCost {
    node: String,
    /// Cells that passed through it, both ways.
    cells: u64,
    /// Processor time of the process, all of its threads, for each of them.
    cell_ns: u64,
}

impl NodeCost {
    /// From a node's report.
    fn of(node: &Value) -> NodeCost {
        let cells = ["forward", "backward"].iter().map(|direction| {
            let tally = &node["ledger"]["cells"][direction];
            // An entry makes the forward ones, an exit the backward ones.
            tally["received"].as_u64().unwrap_or(0).max(tally["injected"].as_u64().unwrap_or(0))
        });
        let cells: u64 = cells.sum();
        let (role, index) = (node["role"].as_str().unwrap_or_default(), &node["index"]);
        NodeCost {
            node: if role == "mix" { format!("mix{index}") } else { role.to_owned() },
            cells,
            cell_ns: (1e9 * node["cpu_s"].as_f64().unwrap_or(0.0) / cells.max(1) as f64).round() as u64,
        }
    }
}

#[derive(Debug, Serialize)]
struct Rows {
    rows: Vec<Row>,
    mixing: String,
    mixes: u8,
    lanes: u8,
    channels: u32,
    flows: u32,
    /// What a cell cost each node, over all rows.
    nodes: Vec<NodeCost>,
    /// Every ledger of the chain closed at its end.
    closed: bool,
    cores: usize,
    load: f64,
}

/// Runs the command.
///
/// # Errors
/// The chain does not come up, or ends.
pub fn run(args: &PathArgs) -> anyhow::Result<()> {
    let interrupted = signals::interrupted()?;
    let bar = ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
    let sink = UdpSocket::bind("127.0.0.1:0")?;
    let mut chain = Chain::start(&args.chain, sink.local_addr()?)?;
    let mut flood = Flood::new(args.flows as usize, chain.forward, sink)?;
    flood.open(&interrupted)?;
    let mut rows = Vec::new();
    for len in &args.payload_lens {
        for echo in [false, true] {
            let what = format!("{len} bytes, {}", if echo { "both ways" } else { "forward" });
            rows.push(search(args, &mut flood, *len as usize, echo, &interrupted, |rate| {
                bar.set_message(format!("{what}: {rate:.0} datagrams a second"));
                bar.tick();
            })?);
        }
    }
    bar.finish_and_clear();
    let (nodes, closed) = chain.end()?;
    let machine = Machine::read();
    let rows = Rows {
        rows,
        mixing: args.chain.mixing.to_string(),
        mixes: args.chain.mixes,
        lanes: args.chain.lanes,
        channels: args.chain.channels,
        flows: args.flows,
        nodes: nodes.iter().map(NodeCost::of).collect(),
        closed,
        cores: machine.cores,
        load: machine.load,
    };
    let text = if args.json { serde_json::to_string(&rows)? } else { people(&rows) };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// Doubles the rate until datagrams are lost, and goes on from the last that went through in smaller steps.
fn search(
    args: &PathArgs,
    flood: &mut Flood,
    len: usize,
    echo: bool,
    interrupted: &AtomicBool,
    progress: impl Fn(f64),
) -> anyhow::Result<Row> {
    let time = Duration::from_millis(args.try_ms);
    let mut best: Option<(Counted, bool)> = None;
    let mut attempt = |rate: f64| {
        for _ in 0..TRIES {
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            progress(rate);
            let counted = flood.run(rate, len, echo, time)?;
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
    // A rate that failed by mischance is come upon again from below.
    while step > STEP_MIN {
        match attempt(good * step)? {
            // A sender that is behind learns nothing from a higher rate.
            Some(true) => break,
            Some(false) => good *= step,
            None => step = step.sqrt(),
        }
    }
    let (counted, generator_bound) = best.unwrap_or_default();
    let per_s = |count: u64| (count as f64 / counted.took.as_secs_f64().max(f64::EPSILON)).round();
    let delivered_per_s = per_s(counted.delivered());
    Ok(Row {
        direction: if echo { "both" } else { "forward" },
        payload_len: len,
        delivered_per_s,
        gbit_s: (delivered_per_s * len as f64 * 8.0 / 1e6).round() / 1e3,
        loss: counted.loss(),
        sent_per_s: per_s(counted.sent),
        generator_bound,
    })
}

fn people(rows: &Rows) -> String {
    let mut all = table(&["direction", "bytes", "delivered a second", "Gbit/s", "loss", ""]);
    for row in &rows.rows {
        all.add_row([
            row.direction.to_owned(),
            row.payload_len.to_string(),
            format!("{:.0}", row.delivered_per_s),
            format!("{:.2}", row.gbit_s),
            format!("{:.4} %", 100.0 * row.loss),
            if row.generator_bound { "generator bound" } else { "" }.to_owned(),
        ]);
    }
    align_right(&mut all, 1..5);
    let Rows { mixing, mixes, lanes, channels, flows, nodes, closed, cores, load, .. } = rows;
    let nodes: Vec<String> = nodes.iter().map(|cost| format!("{} {}", cost.node, cost.cell_ns)).collect();
    format!(
        "{all}\nProcessor time, ns a cell over all rows: {}.\n{mixes} mixes of {lanes} lanes, {mixing}, {channels} \
         channels, {flows} flows, all on {cores} cores; load average {load}; every ledger closed: {closed}.",
        nodes.join(", ")
    )
}
