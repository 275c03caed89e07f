//! A whole chain as processes (`eddy chain --stay`), to measure through it.

use std::fmt;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use dataplane::socket::offload::Offload;
use dataplane::stage::pool::Mixing;
use eddy_node::report::NodeReport;
use eddy_node::runtime::status;
use serde_json::Value;
use wire::cell::Class;

use crate::args::TargetArgs;
use crate::nodes;
use crate::results::ChainFacts;

/// Time limit for a process to end.
const END_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Args, Clone, Debug)]
pub(crate) struct ChainArgs {
    /// Size class of the cells
    #[arg(long, default_value_t = Class::L, ignore_case = true, help_heading = "Chain")]
    pub(crate) class: Class,
    /// Number of mixes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7), help_heading = "Chain")]
    pub(crate) mixes: u8,
    /// Mixing strategy
    #[arg(long, default_value_t = Mixing::default(), value_name = "NAME:KEY=VALUE,...", help_heading = "Chain")]
    pub(crate) mixing: Mixing,
    /// Channels that the entry keeps open
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256), help_heading = "Chain")]
    pub(crate) channels: u32,
    /// Lanes of each mix
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64), help_heading = "Chain")]
    pub(crate) lanes: u8,
    /// GSO and GRO
    #[arg(long, default_value_t = Offload::Auto, value_name = "WHEN", help_heading = "Chain")]
    pub(crate) offload: Offload,
    /// AEAD engine of the nodes (sets EDDY_AEAD)
    #[arg(long, help_heading = "Chain")]
    pub(crate) engine: Option<String>,
}

impl ChainArgs {
    /// Longest delay of a datagram in all mixes together.
    pub(crate) fn delay(&self) -> Duration {
        self.mixing.largest_delay() * u32::from(self.mixes)
    }

    /// The arguments that repeat this.
    pub(crate) fn command(&self) -> String {
        let ChainArgs { class, mixes, mixing, channels, lanes, offload, engine } = self;
        let engine = engine.as_ref().map_or_else(String::new, |engine| format!(" --engine {engine}"));
        format!(
            "--class {} --mixes {mixes} --mixing {mixing} --channels {channels} --lanes {lanes} --offload \
             {offload}{engine}",
            class.name()
        )
    }

    /// Environment variables of the nodes.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        engine_environment(self.engine.as_deref())
    }

    /// For a result; engine and system calls are those that a node reports.
    pub(crate) fn facts(&self, node: Option<&NodeReport>) -> ChainFacts {
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

/// The environment variable that chooses an AEAD engine.
pub(crate) fn engine_environment(engine: Option<&str>) -> Vec<(String, String)> {
    engine.map(|engine| ("EDDY_AEAD".to_owned(), engine.to_owned())).into_iter().collect()
}

/// Two lines, the second one indented.
impl fmt::Display for ChainFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ChainFacts { mixes, class, mixing, channels, engine, io, offload, .. } = self;
        let mix = if *mixes == 1 { "mix" } else { "mixes" };
        write!(
            f,
            "{mixes} {mix}, class {class}, {mixing}\n  {channels} channels, engine {engine}, {io}, offload {offload}"
        )
    }
}

/// A running chain. It ends when this is dropped, and when this program ends.
pub(crate) struct Chain {
    process: Child,
    lifeline: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Address at which its entry listens.
    pub(crate) forward: SocketAddr,
    /// Status sockets of its nodes, entry first.
    pub(crate) status: Vec<PathBuf>,
}

impl Chain {
    /// Starts a chain whose entry forwards to `sink`.
    ///
    /// # Errors
    /// The chain does not start.
    pub(crate) fn start(args: &ChainArgs, sink: SocketAddr) -> anyhow::Result<Chain> {
        let mut command = Command::new(std::env::current_exe().context("cannot find the path of this program")?);
        command.args(["chain", "--stay", "--json", "--lifeline", "--receivers", "1", "--messages", "1"]);
        command.args(["--class", args.class.name(), "--mixes", &args.mixes.to_string()]);
        command.args(["--channels", &args.channels.to_string(), "--mixing", &args.mixing.to_string()]);
        command.args(["--lanes", &args.lanes.to_string()]);
        command.args(["--offload", &args.offload.to_string(), "--forward", &format!("127.0.0.1:0={sink}")]);
        command.envs(args.environment());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("cannot start the chain")?;
        let lifeline = process.stdin.take();
        let mut stdout = BufReader::new(process.stdout.take().context("the chain has no standard output")?);

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
            bail!("the chain did not start");
        };
        let status = ready["status"].as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into);
        let status = status.collect();
        Ok(Chain { process, lifeline, stdout, forward, status })
    }

    /// Reports of its nodes now, entry first.
    ///
    /// # Errors
    /// A node does not answer.
    pub(crate) fn reports(&self) -> anyhow::Result<Vec<NodeReport>> {
        reports(&self.status)
    }

    /// Ends the chain. Returns the last reports of its nodes, and whether every ledger closed.
    ///
    /// # Errors
    /// The chain ended without a report.
    pub(crate) fn end(&mut self) -> anyhow::Result<(Vec<Value>, bool)> {
        self.lifeline = None;
        let no_report = "the chain ended without a report";
        let last = self.stdout.by_ref().lines().map_while(Result::ok).last().context(no_report)?;
        let mut report: Value = serde_json::from_str(&last).context(no_report)?;
        let Value::Array(nodes) = report["nodes"].take() else { bail!(no_report) };
        let closed = nodes.iter().all(|node| nodes::facts(node).closed);
        Ok((nodes, closed))
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        self.lifeline = None;
        // Nodes that the chain started have lifelines of their own.
        end_process(&mut self.process, END_TIMEOUT);
    }
}

/// A forward and the sink behind it.
pub(crate) struct Route {
    pub(crate) forward: SocketAddr,
    pub(crate) sink: UdpSocket,
    /// What is between them; `None` if it was running before.
    chain: Option<Chain>,
}

impl Route {
    /// Starts a chain, unless `target` names a running one.
    ///
    /// # Errors
    /// The chain does not start, or the sink cannot be bound.
    pub(crate) fn start(target: &TargetArgs, args: &ChainArgs) -> anyhow::Result<Route> {
        if let Some((forward, sink)) = target.running() {
            let sink = UdpSocket::bind(sink).with_context(|| format!("cannot listen at the sink {sink}"))?;
            return Ok(Route { forward, sink, chain: None });
        }
        let sink = UdpSocket::bind("127.0.0.1:0")?;
        let chain = Chain::start(args, sink.local_addr()?)?;
        Ok(Route { forward: chain.forward, sink, chain: Some(chain) })
    }

    /// Status sockets of the chain's nodes; none if it was running before.
    pub(crate) fn status(&self) -> &[PathBuf] {
        self.chain.as_ref().map_or(&[], |chain| &chain.status)
    }

    /// The chain, as its first mix reports it; `None` if it was running before.
    ///
    /// # Errors
    /// A node does not answer.
    pub(crate) fn facts(&self, args: &ChainArgs) -> anyhow::Result<Option<ChainFacts>> {
        let Some(chain) = &self.chain else { return Ok(None) };
        Ok(Some(args.facts(chain.reports()?.get(1))))
    }

    /// Ends the chain. Returns the last reports of its nodes.
    ///
    /// # Errors
    /// The chain ended without a report, or a ledger is open.
    pub(crate) fn end(self) -> anyhow::Result<Vec<Value>> {
        let Some(mut chain) = self.chain else { return Ok(Vec::new()) };
        let (nodes, closed) = chain.end()?;
        ensure!(closed, "a ledger of the chain does not close: {}", serde_json::json!(nodes));
        Ok(nodes)
    }
}

/// A node of this build. It ends when this is dropped.
pub(crate) struct NodeProcess(pub(crate) Child);

impl NodeProcess {
    /// Starts a node with this level of its log.
    ///
    /// # Errors
    /// The system refuses the process.
    pub(crate) fn start(role: &str, config: &Path, log: &str, stderr: Stdio) -> anyhow::Result<NodeProcess> {
        let program = std::env::current_exe().context("cannot find the path of this program")?;
        let mut command = Command::new(program);
        command.args([role, "--lifeline", "--log-format", "json", "--config"]).arg(config);
        command.env("EDDY_LOG", log);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr);
        Ok(NodeProcess(command.spawn().with_context(|| format!("cannot start {role}"))?))
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        end_process(&mut self.0, Duration::from_secs(5));
    }
}

/// Asks nodes for their reports at these status sockets.
///
/// # Errors
/// A node does not answer.
pub(crate) fn reports(status: &[PathBuf]) -> anyhow::Result<Vec<NodeReport>> {
    let ask = |path: &PathBuf| {
        status::ask(path).with_context(|| format!("no node answers at the status socket {}", path.display()))
    };
    status.iter().map(ask).collect()
}

/// Waits until a process ends, and kills it if it does not.
pub(crate) fn end_process(process: &mut Child, patience: Duration) {
    let deadline = Instant::now() + patience;
    while matches!(process.try_wait(), Ok(None)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = process.kill();
    let _ = process.wait();
}
