//! The mixes and the exit of a chain, as processes on fixed ports, without an entry.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context;
use dataplane::exit::policy::Rule;
use dataplane::stage::pool::Mixing;
use eddy_node::init::{self, Plan, PlannedHop};
use eddy_node::report::NodeReport;
use tempfile::TempDir;
use wire::cell::{Class, Shape};

use super::places;
use crate::chain::{NodeProcess, reports};
use crate::hop::mix_process::{set_lines, wide_caps};

/// Running mixes and an exit. They end when this is dropped.
pub(super) struct Network {
    nodes: Vec<NodeProcess>,
    status: Vec<PathBuf>,
    pub(super) shape: Shape,
    /// The chain's public file.
    pub(super) chain: PathBuf,
    /// Deleted with it.
    _dir: TempDir,
}

impl Network {
    /// # Errors
    /// A node does not start; its own messages are on standard error.
    pub(super) fn start(mixes: usize, class: Class, mixing: Mixing) -> anyhow::Result<Network> {
        let dir =
            tempfile::Builder::new().prefix("eddy-bench-").tempdir().context("cannot create a temporary folder")?;
        let addresses: Vec<_> = (1..=mixes + 1).map(places::hop).collect();
        let mut plan = Plan { class, mixing, caps: wide_caps(), ..Plan::new(&addresses) };
        let hops = (1..).zip(addresses).map(|(hop, address)| PlannedHop { address, down: places::hop_down(hop) });
        plan.hops = hops.collect();
        let loopback: Rule = "127.0.0.0/8".parse().map_err(anyhow::Error::msg)?;
        plan.allow.push(loopback.clone());
        // Destinations that never answer, as those of video and of the adversary, would get 1000 datagrams only.
        plan.trust.push(loopback);
        let files = init::write(dir.path(), &plan)?;
        // A burst of datagrams to one destination passes loopback in one piece, which a capture could not cut.
        let exit = files.hops.last().context("a chain has an exit")?;
        set_lines(exit, &["offload = \"off\"".to_owned()])?;

        let mut nodes = Vec::new();
        for (number, config) in files.hops.iter().enumerate() {
            let role = if number < mixes { "mix" } else { "exit" };
            nodes.push(NodeProcess::start(role, config, "error", Stdio::inherit())?);
        }
        let status = files.hops.iter().map(|config| config.with_extension("sock")).collect();
        Ok(Network { nodes, status, shape: Shape::new(class, mixes + 1)?, chain: files.chain, _dir: dir })
    }

    /// Reports of the mixes and, last, the exit.
    ///
    /// # Errors
    /// A node does not answer.
    pub(super) fn reports(&self) -> anyhow::Result<Vec<NodeReport>> {
        reports(&self.status)
    }

    /// Resident memory of all nodes, in bytes.
    pub(super) fn resident(&self) -> u64 {
        self.nodes.iter().map(|node| resident(&node.0.id().to_string())).sum()
    }
}

/// Resident memory of a process in bytes; 0 if it is not known.
pub(super) fn resident(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
