//! `eddy-bench setup`: what a channel setup costs, in both suites side by side.
//!
//! Processor time of the entry that builds a setup and of the first hop that opens and answers it, in
//! memory and without the cells' own cryptography. Then the time from setup to ack over loopback: a
//! chain of three mixes that do not wait runs as processes, and entries start one after the other.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use eddy::tables::{align_right, table};
use eddy_node::init::{self, Plan};
use serde::Serialize;
use serde_json::Value;
use wire::cell::{Class, Direction, Shape};
use wire::kdf::Secret;
use wire::setup::{self, HopPublic, Info, SetupKey, Suite};

use crate::args::OutputArgs;
use crate::chain::NodeProcess;
use crate::hop::cores::own_time;
use crate::machine::Machine;
use crate::stats::{median, round};

#[derive(Args, Debug)]
pub struct SetupArgs {
    /// Size class of the cells
    #[arg(long, default_value_t = Class::L, ignore_case = true)]
    class: Class,
    /// Number of setups to build and open
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Number of entries to start
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    starts: u32,
    #[command(flatten)]
    output: OutputArgs,
}

/// Medians of one suite and length of chain, in microseconds.
#[derive(Debug, Serialize)]
struct Row {
    suite: u8,
    mixes: usize,
    /// Cells on link 1, and bytes of the setup in them.
    cells: usize,
    bytes: usize,
    /// Entry: key agreement with all hops, onion, shards.
    build_us: f64,
    /// Hop 1: open and answer.
    hop_us: f64,
    /// Hop 1: the same, and the shards: decoded with as many lost as the code allows, and encoded again.
    hop_with_shards_us: f64,
    /// Setups that a core opens and answers.
    hop_per_s: f64,
    /// From setup to ack over loopback, median and greatest; for three mixes.
    latency_us: Option<[f64; 2]>,
}

#[derive(Debug, Serialize)]
struct SetupResult {
    class: String,
    rows: Vec<Row>,
    machine: Machine,
}

/// Runs the command.
///
/// # Errors
/// The chain does not start.
pub fn run(args: &SetupArgs) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for mixes in [3, 7] {
        for suite in Suite::ALL {
            let latency_us = (mixes == 3).then(|| latency(suite, args)).transpose()?;
            rows.push(Row { latency_us, ..costs(suite, args.class, mixes, args.rounds)? });
        }
    }
    let result = SetupResult { class: args.class.name().to_owned(), rows, machine: Machine::read() };
    let text = if args.output.json { serde_json::to_string(&result)? } else { result.text(args.output.verbose) };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

impl SetupResult {
    fn text(&self, verbose: bool) -> String {
        let mut header = vec!["mixes", "suite", "build us", "hop us", "hop/s", "latency us"];
        if verbose {
            header.extend(["greatest", "with shards us", "cells", "bytes"]);
        }
        let mut all = table(&header);
        for row in &self.rows {
            let of_latency = |which: usize| row.latency_us.map_or("-".to_owned(), |both| format!("{:.0}", both[which]));
            let mut cells = vec![
                row.mixes.to_string(),
                row.suite.to_string(),
                format!("{:.1}", row.build_us),
                format!("{:.1}", row.hop_us),
                format!("{:.0}", row.hop_per_s),
                of_latency(0),
            ];
            if verbose {
                let shards = format!("{:.1}", row.hop_with_shards_us);
                cells.extend([of_latency(1), shards, row.cells.to_string(), row.bytes.to_string()]);
            }
            all.add_row(cells);
        }
        align_right(&mut all, 0..header.len());
        let meaning = "build: processor time of the entry for a setup\nhop: of a hop that opens and answers it\n\
                       latency: from setup to ack, three mixes that do not wait, on loopback";
        format!("{all}\n{meaning}\nclass {}; {}", self.class, self.machine)
    }
}

/// The content of the cells that carry an onion on a link.
fn shards_of(shape: Shape, suite: Suite, link: usize, onion: &[u8]) -> Vec<Vec<u8>> {
    let room = shape.control_content(Direction::Forward, link);
    let mut shards: Vec<Vec<u8>> = onion.chunks(room).map(<[u8]>::to_vec).collect();
    if let Some(last) = shards.last_mut() {
        last.resize(room, 0);
    }
    setup::shards(shape, suite, link).encode(&mut shards);
    shards
}

/// Measures processor time in memory.
fn costs(suite: Suite, class: Class, mixes: usize, rounds: u32) -> anyhow::Result<Row> {
    let shape = Shape::new(class, mixes + 1)?;
    let info = Info { suite, class, paced: false, lifetime_s: 3600, first: 0 };
    let key = SetupKey::generate(suite, Secret::new([7; 32]));
    let hops = vec![HopPublic { setup: key.public(), descriptor_hash: [1; 32] }; shape.hops()];
    let code = setup::shards(shape, suite, 1);
    let len = setup::onion_len(shape, suite, 1);
    let secret =
        |round: u32, hop: u32| Secret::new(std::array::from_fn(|i| (round.rotate_left(i as u32) ^ hop) as u8 | 1));

    let (mut build, mut open, mut with_shards) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let start = own_time();
        let shares = (0..).zip(&hops).map(|(hop, public)| public.setup.share(secret(round, hop))).collect();
        let (onion, _pending) = setup::build(shape, &hops, shares, info)?;
        let shards = shards_of(shape, suite, 1, &onion);
        build.push(own_time() - start);

        // As many as can be missing.
        let (first, last) = (code.parity.min(code.data), code.parity.min(code.data) + code.data);
        let kept: Vec<u8> = (first..last).map(|at| at as u8).collect();
        let start = own_time();
        let mut joined = code.decode(&kept, &shards[first..last]);
        joined.truncate(len);
        let before = own_time();
        let opened = setup::open(shape, 1, &[[1; 32]], &key, info, &joined)?;
        let rest = opened.rest.clone();
        opened.answer(secret(round, 99))?;
        let after = own_time();
        ensure!(shards_of(shape, suite, 2, &rest).len() > 3, "a hop sends shards");
        with_shards.push(own_time() - start);
        open.push(after - before);
    }
    let us = |times: &[Duration]| round(median(times.iter().map(|time| time.as_nanos() as f64 / 1e3)), 1);
    let hop_us = us(&open);
    Ok(Row {
        suite: suite as u8,
        mixes,
        cells: code.total(),
        bytes: len,
        build_us: us(&build),
        hop_us,
        hop_with_shards_us: us(&with_shards),
        hop_per_s: round(1e6 / hop_us, 0),
        latency_us: None,
    })
}

/// Times from setup to ack of entries that start one after the other: median and greatest.
fn latency(suite: Suite, args: &SetupArgs) -> anyhow::Result<[f64; 2]> {
    let dir = tempfile::Builder::new().prefix("eddy-bench-").tempdir().context("cannot create a temporary folder")?;
    let sockets = (0..4).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let addresses = sockets.iter().map(UdpSocket::local_addr).collect::<Result<Vec<SocketAddr>, _>>()?;
    drop(sockets);
    let mut plan = Plan { suite, class: args.class, mixing: "threshold:n=1".parse()?, ..Plan::new(&addresses) };
    plan.entry.channels = 1;
    let files = init::write(dir.path(), &plan)?;
    let mut hops = Vec::new();
    for (config, role) in files.hops.iter().zip(["mix", "mix", "mix", "exit"]) {
        hops.push(NodeProcess::start(role, config, "error", Stdio::null())?);
    }
    // The first one waits for the links.
    setup_time(&files.entry)?;
    let times = (0..args.starts).map(|_| setup_time(&files.entry)).collect::<anyhow::Result<Vec<f64>>>()?;
    Ok([median(times.iter().copied()), times.iter().copied().fold(0.0, f64::max)])
}

/// Starts an entry, and returns how long its first successful setup took, in microseconds.
fn setup_time(config: &Path) -> anyhow::Result<f64> {
    let mut entry = NodeProcess::start("entry", config, "debug", Stdio::piped())?;
    let log = BufReader::new(entry.0.stderr.take().context("the entry has no standard error")?);
    for line in log.lines().map_while(Result::ok) {
        let fields = serde_json::from_str::<Value>(&line).unwrap_or_default();
        if let Some(us) = [&fields, &fields["fields"]].into_iter().find_map(|fields| fields["setup_us"].as_f64()) {
            return Ok(us);
        }
    }
    anyhow::bail!("the entry ended without a channel")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_of_every_suite_and_chain_are_measured() {
        for suite in Suite::ALL {
            for (class, mixes) in [(Class::S, 7), (Class::L, 1)] {
                let row = costs(suite, class, mixes, 2).unwrap();
                assert!(row.build_us > 0.0 && row.hop_us > 0.0 && row.hop_with_shards_us >= row.hop_us);
                assert_eq!(row.bytes, [64, 1152][suite as usize - 1] * (mixes + 1));
            }
        }
    }
}
