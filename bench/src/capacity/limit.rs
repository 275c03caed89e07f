//! Why a rate failed: the first of these that is true.
//!
//! ```text
//! the generator    it sent nothing, or, if nothing was lost, less than its rate
//! processor        a node used up its core, or all cores were busy
//! the generator    its own sockets lost datagrams
//! receive buffer   the kernel dropped datagrams at a node's sockets
//! a node           its ledger has drops, by reason
//! losses           that no ledger names
//! latency          all arrived, but too late
//! ```

use std::time::{Duration, Instant};

use eddy_node::report::{LedgerReport, NodeReport};
use rustix::time::{ClockId, clock_gettime};

use crate::load::generator::Outcome;

/// A core is used up if it is busy for more than this part of the time.
const BUSY: f64 = 0.9;
/// The generator does not reach a rate below this part of it.
const BEHIND: f64 = 0.95;

/// Reports of the nodes, and processor time of this program, at one moment.
pub(super) struct Usage {
    nodes: Vec<NodeReport>,
    own_s: f64,
    at: Instant,
}

impl Usage {
    pub(super) fn new(nodes: Vec<NodeReport>) -> Usage {
        let own = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
        Usage { nodes, own_s: own.as_secs_f64(), at: Instant::now() }
    }
}

fn name(node: &NodeReport) -> String {
    eddy_node::config::node_name(node.role, node.index)
}

/// Drops of all units and directions, by reason.
fn drops(ledger: &LedgerReport) -> std::collections::BTreeMap<String, u64> {
    let mut all = std::collections::BTreeMap::new();
    for pair in [Some(&ledger.cells), ledger.datagrams.as_ref()].into_iter().flatten() {
        for tally in [&pair.forward, &pair.backward] {
            tally.dropped.iter().for_each(|(why, count)| *all.entry(why.clone()).or_default() += count);
            *all.entry("send-errors".into()).or_default() += tally.send_errors;
        }
    }
    all
}

/// Why a rate failed; `None` if it passed.
pub(super) fn limited_by(
    before: &Usage,
    after: &Usage,
    outcome: &Outcome,
    rate: f64,
    budget: Duration,
) -> Option<String> {
    let took = outcome.took.as_secs_f64().max(f64::EPSILON);
    let (sent, lost) = (outcome.sum(|stream| stream.sent), outcome.sum(|stream| stream.lost));
    let refused = outcome.sum(|stream| stream.refused);
    let slow = outcome.streams.first().map_or(0.0, |stream| stream.latency.p99) > budget.as_secs_f64() * 1e6;
    if sent == 0 {
        return Some("the generator: it sent nothing".into());
    }
    let pairs = || before.nodes.iter().zip(&after.nodes);
    let by_kernel =
        |(before, after): (&NodeReport, &NodeReport)| after.kernel_drops.saturating_sub(before.kernel_drops);
    let by_name = |(before, after): (&NodeReport, &NodeReport)| {
        let old = drops(&before.ledger);
        let new = drops(&after.ledger).into_iter();
        let mut more = new.map(|(why, count)| (count.saturating_sub(old.get(&why).copied().unwrap_or(0)), why));
        more.find(|(count, _)| *count > 0)
    };
    let dropped = pairs().find(|pair| by_kernel(*pair) > 0);
    let named = pairs().find_map(|pair| Some((pair.1, by_name(pair)?)));
    if lost == 0 && refused == 0 && !slow && dropped.is_none() && named.is_none() {
        let behind = (sent as f64) < BEHIND * rate * took;
        return behind.then(|| "the generator: it cannot send more".into());
    }
    let elapsed = (after.at - before.at).as_secs_f64().max(f64::EPSILON);
    // A trial that fails waits for late datagrams: time after the end of sending does not count.
    let busy = |old: f64, new: f64| (new - old) / took.min(elapsed);
    let shares: Vec<(String, f64)> =
        pairs().map(|(before, after)| (name(after), busy(before.cpu_s, after.cpu_s))).collect();
    let own = busy(before.own_s, after.own_s);
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let all = own + shares.iter().map(|(_, share)| share).sum::<f64>();
    let parts = || {
        let nodes = shares.iter().map(|(name, share)| format!("{name} {:.0} %", 100.0 * share));
        nodes.chain([format!("generator {:.0} %", 100.0 * own)]).collect::<Vec<_>>().join(", ")
    };
    if let Some((name, share)) = shares.iter().max_by(|one, other| one.1.total_cmp(&other.1))
        && *share > BUSY
    {
        return Some(format!("processor: {name} used up its core ({})", parts()));
    }
    if all > BUSY * cores {
        return Some(format!("processor: all {cores} cores were busy (of one core: {})", parts()));
    }
    if outcome.kernel_drops > 0 || refused > 0 {
        return Some(format!(
            "the generator: its sockets dropped {} datagrams and refused {refused}",
            outcome.kernel_drops
        ));
    }
    if let Some(pair) = dropped {
        return Some(format!(
            "receive buffer: the kernel dropped {} datagrams at {} (`eddy doctor` checks the buffer)",
            by_kernel(pair),
            name(pair.1)
        ));
    }
    if let Some((node, (count, why))) = named {
        return Some(format!("{}: it dropped {count} ({why})", name(node)));
    }
    if lost > 0 {
        return Some(format!("losses that no ledger names: {lost} of {sent}"));
    }
    Some("latency: p99 is over its budget".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::record::{Recorder, Sent, StreamName};
    use dataplane::latency::Profile;
    use dataplane::ledger::Ledger;
    use eddy_node::config::NodeRole;

    /// A run of one second.
    fn outcome(sent: u32, lost: u32, latency_ms: u64) -> Outcome {
        let mut recorder = Recorder::new(1, [0].into_iter());
        for number in 0..sent - lost {
            let arrival = crate::load::record::Arrival {
                flow: 0,
                number,
                intended_ns: 0,
                now_ns: latency_ms * 1_000_000,
                len: 100,
            };
            recorder.arrived(arrival);
        }
        let names = [StreamName { profile: "even".into(), direction: "forward", is_call: false }];
        let (streams, series) =
            recorder.finish(&Sent { numbers: vec![sent], seconds: vec![], refused: vec![0] }, &names);
        Outcome { streams, series, took: Duration::from_secs(1), kernel_drops: 0, interrupted: false }
    }

    fn usage(at: Instant, kernel_drops: u64, cpu_s: f64) -> Usage {
        let mut node = NodeReport::new(NodeRole::Mix, 2, &Ledger::default(), &Profile::default());
        (node.kernel_drops, node.cpu_s) = (kernel_drops, cpu_s);
        Usage { nodes: vec![node], own_s: 0.0, at }
    }

    #[test]
    fn limit_names_the_resource_that_was_short() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let why = |outcome: &Outcome, rate, kernel_drops, cpu_s| {
            let budget = Duration::from_millis(10);
            limited_by(&usage(now, 5, 1.0), &usage(later, kernel_drops, cpu_s), outcome, rate, budget)
        };
        assert_eq!(why(&outcome(1000, 0, 1), 1000.0, 5, 1.1), None);
        let starts = |found: Option<String>, with: &str| {
            assert!(found.as_ref().is_some_and(|f| f.starts_with(with)), "{found:?}")
        };
        starts(why(&outcome(500, 0, 1), 1000.0, 5, 1.1), "the generator");
        starts(why(&outcome(1000, 3, 1), 1000.0, 8, 1.1), "receive buffer: the kernel dropped 3 datagrams at mix2");
        starts(why(&outcome(1000, 3, 1), 1000.0, 8, 1.99), "processor: mix2");
        starts(why(&outcome(1000, 0, 11), 1000.0, 5, 1.1), "latency");
        starts(why(&outcome(1000, 3, 1), 1000.0, 5, 1.1), "losses that no ledger names");
    }
}
