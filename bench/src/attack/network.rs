//! The mixes and the exit of a chain, as processes on fixed ports, without an entry.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context;
use dataplane::exit::policy::Rule;
use dataplane::stage::pool::Mixing;
use eddy_node::init::{self, Plan, PlannedClass, PlannedHop};
use eddy_node::report::NodeReport;
use tempfile::TempDir;
use wire::cell::{Class, Direction, Shape};
use wire::paced::PacedTerms;

use super::cases::NO_MIXING;
use super::places;
use crate::chain::{NodeProcess, reports};
use crate::hop::mix_process::{set_lines, wide_caps};

/// The class of a chain whose links are recorded.
#[derive(Clone, Debug)]
pub(super) enum Recorded {
    Free {
        class: Class,
        mixing: Mixing,
        /// Channels that each entry keeps open.
        channels: u16,
    },
    /// The chain has a free class as well, which carries nothing.
    Paced(PacedTerms),
}

impl Recorded {
    /// Length of a cell on link `link`, from 1, of a chain of `hops` hops, in bytes.
    pub(super) fn cell_len(&self, hops: usize, direction: Direction, link: usize) -> usize {
        match self {
            Recorded::Free { class, .. } => {
                Shape::new(*class, hops).expect("the number was checked").cell_len(direction, link)
            }
            Recorded::Paced(terms) => terms.class.cell_len(),
        }
    }

    /// The report of this class.
    pub(super) fn of<'a>(&self, report: &'a NodeReport) -> &'a NodeReport {
        match self {
            Recorded::Free { .. } => report,
            Recorded::Paced(terms) => report.classes.get(&terms.name).unwrap_or(report),
        }
    }
}

/// Running mixes and an exit. They end when this is dropped.
pub(super) struct Network {
    nodes: Vec<NodeProcess>,
    status: Vec<PathBuf>,
    /// The chain's public file.
    pub(super) chain: PathBuf,
    /// Deleted with it.
    _dir: TempDir,
}

impl Network {
    /// # Errors
    /// A node does not start; its own messages are on standard error.
    pub(super) fn start(mixes: usize, recorded: &Recorded) -> anyhow::Result<Network> {
        let dir =
            tempfile::Builder::new().prefix("eddy-bench-").tempdir().context("cannot create a temporary folder")?;
        let addresses: Vec<_> = (1..=mixes + 1).map(places::hop).collect();
        let mut plan = Plan { caps: wide_caps(), ..Plan::new(&addresses) };
        match recorded {
            Recorded::Free { class, mixing, .. } => {
                (plan.class, plan.mixing) = (*class, *mixing);
                let hops =
                    (1..).zip(addresses).map(|(hop, address)| PlannedHop { address, down: places::hop_down(hop) });
                plan.hops = hops.collect();
            }
            Recorded::Paced(terms) => {
                (plan.class, plan.mixing) = (Class::S, NO_MIXING);
                // Setups of both classes count, and an entry has one in each batch.
                plan.caps.setups.per_second = 1000;
                let hops = (1..=mixes + 1).map(places::beside).map(|[address, down]| PlannedHop { address, down });
                plan.hops = hops.collect();
                plan.interval_s = plan.interval_s.max(terms.interval_ms_min(mixes + 1).div_ceil(1000) as u32);
                plan.paced.push(PlannedClass { terms: terms.clone(), addresses });
            }
        }
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
        Ok(Network { nodes, status, chain: files.chain, _dir: dir })
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
