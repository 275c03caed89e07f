//! A whole chain as processes (`eddy chain --stay`), for what measures through one.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use dataplane::io::offload::Offload;
use dataplane::pool::Mixing;
use eddy_node::report::NodeReport;
use serde_json::Value;
use wire::cell::Class;

use crate::results::ChainFacts;

/// What a chain is to be.
#[derive(Args, Clone, Debug)]
pub struct ChainArgs {
    /// Size of the chain's cells
    #[arg(long, default_value_t = Class::L, ignore_case = true, help_heading = "The chain")]
    pub class: Class,
    /// Mixes of the chain
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7), help_heading = "The chain")]
    pub mixes: u8,
    /// What the mixes do
    #[arg(long, default_value_t = Mixing::default(), value_name = "NAME:KEY=VALUE,...", help_heading = "The chain")]
    pub mixing: Mixing,
    /// Channels that the entry keeps up
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256), help_heading = "The chain")]
    pub channels: u32,
    /// Lanes of each mix
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64), help_heading = "The chain")]
    pub lanes: u8,
    /// Use GSO and GRO for the chain's cells
    #[arg(long, default_value_t = Offload::Auto, value_name = "WHEN", help_heading = "The chain")]
    pub offload: Offload,
    /// The nodes' AEAD engine (EDDY_AEAD)
    #[arg(long, help_heading = "The chain")]
    pub engine: Option<String>,
}

impl ChainArgs {
    /// What its mixes may hold a datagram back, all of them.
    pub fn delay(&self) -> Duration {
        self.mixing.largest_delay() * u32::from(self.mixes)
    }

    /// Its part of a command line.
    pub fn command(&self) -> String {
        let ChainArgs { class, mixes, mixing, channels, lanes, offload, engine } = self;
        let engine = engine.as_ref().map_or_else(String::new, |engine| format!(" --engine {engine}"));
        format!(
            "--class {} --mixes {mixes} --mixing {mixing} --channels {channels} --lanes {lanes} --offload \
             {offload}{engine}",
            class.name()
        )
    }

    /// For a result, with what a node says of itself.
    pub fn facts(&self, node: Option<&NodeReport>) -> ChainFacts {
        ChainFacts {
            mixes: self.mixes.into(),
            class: self.class.name().to_owned(),
            mixing: self.mixing.to_string(),
            channels: self.channels,
            lanes: self.lanes.into(),
            offload: self.offload.to_string(),
            engine: node.map(|node| node.engine.clone()).unwrap_or_default(),
            io: node.map(|node| node.io.clone()).unwrap_or_default(),
        }
    }
}

/// A running chain. Ends when dropped, and when this program does.
pub struct Chain {
    process: Child,
    lifeline: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Where its entry listens for us.
    pub forward: SocketAddr,
    /// Where its nodes are asked, entry first.
    pub status: Vec<PathBuf>,
}

impl Chain {
    /// Starts one whose entry forwards to `sink`.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(args: &ChainArgs, sink: SocketAddr) -> anyhow::Result<Chain> {
        let mut command = Command::new(std::env::current_exe().context("the path of this program")?);
        command.args(["chain", "--stay", "--json", "--lifeline", "--receivers", "1", "--messages", "1"]);
        command.args(["--class", args.class.name(), "--mixes", &args.mixes.to_string()]);
        command.args(["--channels", &args.channels.to_string(), "--mixing", &args.mixing.to_string()]);
        command.args(["--lanes", &args.lanes.to_string()]);
        command.args(["--offload", &args.offload.to_string(), "--forward", &format!("127.0.0.1:0={sink}")]);
        command.envs(args.engine.iter().map(|engine| ("EDDY_AEAD", engine)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("cannot start the chain")?;
        let lifeline = process.stdin.take();
        let mut stdout = BufReader::new(process.stdout.take().context("its output")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line).unwrap_or_default();
        let listen = ready["forwards"].as_array().and_then(|all| {
            let ours = all.iter().find(|forward| forward["to"] == sink.to_string())?;
            ours["listen"].as_str()?.parse().ok()
        });
        let Some(forward) = listen else {
            drop(lifeline);
            let _ = process.wait();
            bail!("the chain does not come up");
        };
        let status = ready["status"].as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into);
        let status = status.collect();
        Ok(Chain { process, lifeline, stdout, forward, status })
    }

    /// What its nodes say now, entry first.
    ///
    /// # Errors
    /// One does not answer.
    pub fn ask(&self) -> anyhow::Result<Vec<NodeReport>> {
        let ask = |path: &PathBuf| {
            eddy_node::runtime::status::ask(path).with_context(|| format!("{} does not answer", path.display()))
        };
        self.status.iter().map(ask).collect()
    }

    /// Ends it; what its nodes said last, and whether every ledger closed.
    ///
    /// # Errors
    /// It ended without a report.
    pub fn end(&mut self) -> anyhow::Result<(Vec<Value>, bool)> {
        self.lifeline = None;
        let last = self.stdout.by_ref().lines().map_while(Result::ok).last().context("the chain's report")?;
        let report: Value = serde_json::from_str(&last).context("the chain's report")?;
        let nodes = report["nodes"].as_array().context("the chain's report")?.clone();
        let closed = nodes.iter().all(closed);
        Ok((nodes, closed))
    }
}

/// Whether every ledger of a node's report closed.
fn closed(node: &Value) -> bool {
    let units = node["ledger"].as_object().into_iter().flat_map(|ledger| ledger.values());
    let mut tallies = units.flat_map(|unit| [&unit["forward"], &unit["backward"]]);
    tallies.all(|tally| tally["closed"] == true)
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.lifeline = None;
        let deadline = Instant::now() + Duration::from_secs(15);
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Ended already, or beyond asking; its nodes have lifelines of their own.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
