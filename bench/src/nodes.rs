//! Facts from a node's report (`eddy status --json`).
//!
//! Only this module knows the keys of such a report. A key that is missing counts as zero or is not shown, so reports
//! of other versions can be read.

use serde_json::Value;

/// `entry`, `mix2`, `exit`.
pub(crate) fn name(node: &Value) -> String {
    match node["role"].as_str() {
        Some("mix") => format!("mix{}", node["index"]),
        Some(role) => role.to_owned(),
        None => "unknown".to_owned(),
    }
}

/// Releases by size, as `(largest size of the bucket, releases)`, smallest first.
pub(crate) fn release_sizes(node: &Value) -> Vec<(u64, u64)> {
    let buckets = node["release_sizes"].as_array().map_or(&[][..], Vec::as_slice);
    let mut sizes: Vec<(u64, u64)> =
        buckets.iter().filter_map(|bucket| Some((bucket[0].as_u64()?, bucket[1].as_u64()?))).collect();
    sizes.retain(|(_, count)| *count > 0);
    sizes.sort_unstable();
    sizes
}

/// Time that cells of one direction spent in a node.
pub(crate) struct NodeLatency {
    /// `forward` or `backward`.
    pub(crate) direction: &'static str,
    /// Cells, or datagrams where the node delivers datagrams.
    pub(crate) count: u64,
    /// Wait in the pool.
    pub(crate) mixing: Option<Quantiles>,
    /// Everything else.
    pub(crate) eddy: Option<Quantiles>,
    pub(crate) total: Option<Quantiles>,
}

/// Microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Quantiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// The directions that carried something.
pub(crate) fn latencies(node: &Value) -> Vec<NodeLatency> {
    let of = |direction: &'static str| {
        let latency = &node["latency_us"][direction];
        let part = |name: &str| {
            let part = &latency[name];
            Some(Quantiles { p50: part["p50"].as_f64()?, p99: part["p99"].as_f64()? })
        };
        let count = latency["total"]["count"].as_u64().filter(|count| *count > 0)?;
        Some(NodeLatency { direction, count, mixing: part("pool"), eddy: part("node"), total: part("total") })
    };
    ["forward", "backward"].into_iter().filter_map(of).collect()
}

/// Counters of a node over its life.
pub(crate) struct Facts {
    /// Cells received or made here, both directions.
    pub(crate) cells: u64,
    /// Cells and datagrams dropped, by reason.
    pub(crate) dropped: Vec<(String, u64)>,
    /// Datagrams that the kernel dropped before the node saw them.
    pub(crate) kernel_drops: u64,
    /// Releases of pools; turns on entry and exit.
    pub(crate) releases: u64,
    pub(crate) mean_release: f64,
    pub(crate) largest_release: u64,
    /// Effective sets of channels in a mix's releases of the last minute, forward and backward.
    pub(crate) effective: Option<[f64; 2]>,
    /// Processor time of the process for each cell, ns.
    pub(crate) cell_ns: f64,
    /// Every sum of its ledger adds up.
    pub(crate) closed: bool,
}

pub(crate) fn facts(node: &Value) -> Facts {
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let mut facts = Facts {
        cells: 0,
        dropped: Vec::new(),
        kernel_drops: count(&node["kernel_drops"]),
        releases: count(&node["releases"]),
        mean_release: number(&node["mean_release"]),
        largest_release: count(&node["largest_release"]),
        effective: (!node["meter"].is_null())
            .then(|| ["forward", "backward"].map(|direction| number(&node["meter"][direction]["effective"]))),
        cell_ns: 0.0,
        closed: true,
    };
    for unit in ["cells", "datagrams"] {
        for direction in ["forward", "backward"] {
            let tally = &node["ledger"][unit][direction];
            if tally.is_null() {
                continue;
            }
            facts.closed &= tally["closed"] == true;
            if unit == "cells" {
                // An entry makes the forward cells, an exit the backward ones.
                let handled = count(&tally["received"]).max(count(&tally["injected"]));
                facts.cells = facts.cells.saturating_add(handled);
            }
            for (reason, times) in tally["dropped"].as_object().into_iter().flatten() {
                facts.dropped.push((format!("{reason} ({unit} {direction})"), count(times)));
            }
        }
    }
    if facts.cells > 0 {
        facts.cell_ns = 1e9 * number(&node["cpu_s"]) / facts.cells as f64;
    }
    facts
}
