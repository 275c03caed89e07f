//! The floor under load: 100 flows of 1,000-byte datagrams through entry, three mixes and exit as processes.
//!
//! `cargo test` runs a tenth of the rate; the full one needs large receive buffers, so it is ignored unless asked
//! for (`bench/load.sh` as root). One file lock, so that two loads never share the machine.

use std::net::UdpSocket;
use std::time::Duration;

use eddy_bench::load::{Load, run};

use crate::common::process::{Demo, closed, exclusive, tallies};

/// What handshakes that cross cost when a chain comes up on a slow machine: cells of control, made for the older
/// one or under its keys. A datagram lost so would be one more than the kernel dropped.
const CROSSED: &[&str] = &["header", "slot-expired"];

fn load(rate: u64, seconds: u64) {
    let _lock = exclusive();
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let forward = format!("127.0.0.1:0={}", sink.local_addr().unwrap());
    let demo = Demo::start(&["--messages", "1", "--forward", &forward, "--allow", "127.0.0.0/8"]);
    let to = demo.forward_to(sink.local_addr().unwrap());
    let load = Load { to, flows: 100, rate, len: 1000, time: Duration::from_secs(seconds) };
    let outcome = run(&load, sink).unwrap();
    let report = demo.end();
    println!("{outcome:?}");
    assert_eq!(outcome.refused, 0);
    assert_eq!((outcome.reordered, outcome.duplicated), (0, 0));
    closed(&report);
    // Every datagram is accounted for: what did not arrive, a kernel queue dropped, and says so.
    let mut kernel = outcome.sink_kernel_drops;
    for node in report["nodes"].as_array().unwrap() {
        kernel += node["kernel_drops"].as_u64().unwrap();
        assert!(tallies(node).all(|tally| tally["send_errors"] == 0), "{node:#}");
        for (unit, costs) in [("cells", CROSSED), ("datagrams", &[][..])] {
            for direction in ["forward", "backward"] {
                let dropped = node["ledger"][unit][direction]["dropped"].as_object();
                let other = dropped.into_iter().flatten().find(|(why, _)| !costs.contains(&why.as_str()));
                assert_eq!(other, None, "lost inside the nodes: {report:#}");
            }
        }
    }
    assert!(outcome.lost <= kernel, "{} lost, {kernel} dropped by the kernel", outcome.lost);
    assert!(outcome.delivered > 0);
}

#[test]
fn a_tenth_of_the_floor_arrives_in_order_and_accounted_for() {
    load(2_000, 3);
}

#[test]
#[ignore = "needs receive buffers of 8 MB: run as root, or `sysctl -w net.core.rmem_max=8388608`; bench/load.sh runs it"]
fn the_floor_arrives_in_order_and_accounted_for() {
    let seconds = std::env::var("EDDY_LOAD_SECONDS").map_or(10, |s| s.parse().unwrap());
    load(20_000, seconds);
}
