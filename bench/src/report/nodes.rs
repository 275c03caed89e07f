//! What a node's report (`eddy status --json`) says that a page shows.
//!
//! The only place that knows the names in it. A node of another version may lack some: then that is not shown.

use serde_json::Value;

/// `entry`, `mix2`, `exit`.
pub fn name(node: &Value) -> String {
    match node["role"].as_str() {
        Some("mix") => format!("mix{}", node["index"]),
        Some(role) => role.to_owned(),
        None => "a node".to_owned(),
    }
}

/// `[largest size in it, batches]` of each bucket, smallest first; none of it where the node does not count them.
pub fn batch_sizes(node: &Value) -> Vec<(u64, u64)> {
    let buckets = node["batch_sizes"].as_array().map_or(&[][..], Vec::as_slice);
    let mut sizes: Vec<(u64, u64)> =
        buckets.iter().filter_map(|bucket| Some((bucket[0].as_u64()?, bucket[1].as_u64()?))).collect();
    sizes.retain(|(_, count)| *count > 0);
    sizes.sort_unstable();
    sizes
}

/// How long cells of one direction stayed in a node.
pub struct Stay {
    /// `forward` or `backward`.
    pub direction: &'static str,
    /// Cells, or datagrams where the node hands out those.
    pub count: u64,
    /// In the pool: what mixing costs.
    pub mixing: Option<Quantiles>,
    /// All the rest: what eddy costs.
    pub eddy: Option<Quantiles>,
    /// Both.
    pub total: Option<Quantiles>,
}

/// In microseconds.
#[derive(Clone, Copy)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are not above it.
    pub p99: f64,
}

/// Both directions, those that carried something; none where the node does not say.
pub fn stays(node: &Value) -> Vec<Stay> {
    let of = |direction: &'static str| {
        let stay = &node["latency_us"][direction];
        let part = |name: &str| {
            let part = &stay[name];
            Some(Quantiles { p50: part["p50"].as_f64()?, p99: part["p99"].as_f64()? })
        };
        let count = stay["total"]["count"].as_u64().filter(|count| *count > 0)?;
        Some(Stay { direction, count, mixing: part("pool"), eddy: part("node"), total: part("total") })
    };
    ["forward", "backward"].into_iter().filter_map(of).collect()
}

/// Where a node's cells went.
pub struct Facts {
    /// Cells that came or were made here, both ways.
    pub cells: u64,
    /// Cells and datagrams dropped, by reason.
    pub dropped: Vec<(String, u64)>,
    /// Lost by the kernel before the node saw them.
    pub kernel_drops: u64,
    /// Releases of pools; turns on entry and exit.
    pub batches: u64,
    /// Cells in one.
    pub mean_batch: f64,
    /// The same.
    pub largest_batch: u64,
    /// Channels in one.
    pub channels_in_one: f64,
    /// Processor time of the process, for each cell.
    pub cell_ns: f64,
    /// Every sum of its ledger is right.
    pub closed: bool,
}

/// All of it; what a node does not say is 0.
pub fn facts(node: &Value) -> Facts {
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let mut facts = Facts {
        cells: 0,
        dropped: Vec::new(),
        kernel_drops: count(&node["kernel_drops"]),
        batches: count(&node["batches"]),
        mean_batch: number(&node["mean_batch"]),
        largest_batch: count(&node["largest_batch"]),
        channels_in_one: number(&node["distinct_channels_mean"]),
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
                // An entry makes the forward ones, an exit the backward ones.
                let came = count(&tally["received"]).max(count(&tally["injected"]));
                facts.cells = facts.cells.saturating_add(came);
            }
            for (why, times) in tally["dropped"].as_object().into_iter().flatten() {
                facts.dropped.push((format!("{why} ({unit} {direction})"), count(times)));
            }
        }
    }
    if facts.cells > 0 {
        facts.cell_ns = 1e9 * number(&node["cpu_s"]) / facts.cells as f64;
    }
    facts
}
