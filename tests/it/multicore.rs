//! Mixes with several lanes, as processes: every port carries its share, and nothing is lost between their cores.

use std::fs;
use std::net::SocketAddr;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::command::{complaint, eddy, run};
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
fn mix_with_two_lanes_is_found_at_an_announced_address() {
    let _alone = exclusive();
    let mut nodes = Nodes::start(Plan { mixes: 2, lanes: 2, channels: 16, ..Plan::default() });
    nodes.assert_carries();
    let (old, new, folder) = (nodes.up(2), SocketAddr::new(nodes.host(), 4750), nodes.config(2).parent().unwrap());
    let revision = nodes.count(1, "/trust/hops/1/revision");
    let renew = format!("renew --identity mix2.identity.key mix2.desc --address {old} --address {new}");
    assert!(run(folder, &renew).status.success());
    kill_process(Pid::from_raw(nodes.pid(2) as i32).unwrap(), Signal::HUP).expect("it runs");
    until("the neighbours have the descriptor", || {
        nodes.count(1, "/trust/hops/1/revision") > revision
            && nodes.status(2)["trust"]["hops"][1]["neighbours_have"] == true
    });
    let text = fs::read_to_string(nodes.config(2)).unwrap();
    let moved = text.replace(&format!("up = \"{old}\""), &format!("up = \"{new}\""));
    assert_ne!(moved, text);
    let neighbour = nodes.pid(1);
    nodes.stop(2);
    fs::write(nodes.config(2), moved).unwrap();
    nodes.run(2);
    nodes.assert_carries();
    // All channels are new ones, and those of either lane carry.
    until("all channels run over the new address", || nodes.count(2, "/channels") >= 16);
    nodes.wait_for_channels();
    let load = Load { flows: 32, rate: 2000, len: LEN, answers: true, under_way: 64 };
    let counts = Traffic::exchange(nodes.forward(), &nodes.sink, load, 2000);
    assert!(counts.answered > 1600, "half would be lost with one lane: {counts:?}");
    assert_eq!(nodes.pid(1), neighbour);
    nodes.end();
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
