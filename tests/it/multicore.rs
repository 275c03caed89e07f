//! Mixes with several lanes, as processes: every port carries its share, and nothing is lost between their cores.

use serde_json::Value;

use crate::common::command::{complaint, eddy};
use crate::common::limit::Permit;
use crate::common::nodes::{Nodes, Plan, until};
use crate::common::process::{counted_by_time, exclusive};
use crate::common::traffic::{Load, Traffic};

/// Datagrams of this length fill a cell each.
const LEN: usize = 150;

#[test]
fn every_port_carries_its_share_also_after_a_restart() {
    let _alone = exclusive();
    let mut nodes = Nodes::start(Plan { mixes: 3, lanes: 2, channels: 16, ..Plan::default() });
    nodes.assert_carries();
    let counted = |nodes: &Nodes| {
        (1..=3).map(|position| nodes.count(position, "/latency_us/forward/total/count")).collect::<Vec<_>>()
    };
    let before = counted(&nodes);
    let load = Load { flows: 32, rate: 20_000, len: LEN, ..Load::default() };
    Traffic::exchange(nodes.forward(), &nodes.sink, load, 6000).assert_whole();
    let after = counted(&nodes);
    assert!(before.iter().zip(&after).all(|(before, after)| *after >= before + 6000), "{before:?}, {after:?}");
    for position in 1..=3 {
        assert!(nodes.said(position).iter().any(|line| line.contains("(2 lanes)")), "{:?}", nodes.said(position));
        assert_eq!(nodes.count(position, "/channels"), 16, "mix {position}");
        nodes.stop(position);
        nodes.run(position);
    }
    nodes.wait_for_channels();
    nodes.assert_carries();
    nodes.end();
    let lost: u64 = nodes.reports.iter().map(|(_, report)| report["kernel_drops"].as_u64().unwrap()).sum();
    assert_eq!(lost, 0);
}

#[test]
fn multicore_mix_stopped_under_load_closes_its_ledger() {
    let _alone = exclusive();
    // Pools that wait: there is something to hold.
    let mixing = "timed:t=50ms".parse().unwrap();
    let mut nodes = Nodes::start(Plan { mixes: 2, lanes: 3, channels: 16, mixing, ..Plan::default() });
    nodes.assert_carries();
    let load = Load { flows: 32, rate: 4000, len: LEN, under_way: 1000, answers: false };
    let traffic = Traffic::start(nodes.forward(), &nodes.sink, load);
    let pooled = |nodes: &Nodes| nodes.count(1, "/ledger/cells/forward/held") > 50;
    until("cells are pooled", || pooled(&nodes));
    // Stopping asserts that every ledger closes with nothing held.
    nodes.stop(1);
    nodes.stop(2);
    let counts = traffic.stop();
    assert!(counts.delivered < counts.sent, "the stopped mixes carry nothing: {counts:?}");
    nodes.end();
}

#[test]
fn multicore_chain_closes_every_ledger() {
    let _permit = Permit::wait();
    for lanes in ["2", "3"] {
        let output = eddy().args(["chain", "--json", "--lanes", lanes, "--messages", "50"]).output().unwrap();
        let (code, said) = complaint(&output);
        assert_eq!(code, Some(0), "{said}");
        let last = String::from_utf8(output.stdout).unwrap().lines().last().unwrap().to_owned();
        let json: Value = serde_json::from_str(&last).unwrap();
        assert_eq!((&json["delivered"], &json["answered"]), (&50.into(), &50.into()));
        for node in json["nodes"].as_array().unwrap() {
            for direction in ["forward", "backward"] {
                let tally = &node["ledger"]["cells"][direction];
                assert_eq!((&tally["closed"], &tally["held"]), (&true.into(), &0.into()), "{node:#}");
            }
            counted_by_time(node, 5_000.0);
        }
    }
}
