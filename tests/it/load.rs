//! The floor under load: 100 flows of 1,000-byte datagrams through entry, three mixes and exit as processes.
//!
//! `cargo test` runs a tenth of the rate; the full one needs large receive buffers, so it is ignored unless asked
//! for (`bench/load.sh` as root). One file lock, so that two loads never share the machine.

use std::net::UdpSocket;

use dataplane::sys;

use crate::common::process::{CROSSED, Demo, closed, exclusive, tallies};
use crate::common::traffic::{Load, Traffic};

fn carries(load: Load, count: u64) {
    let _lock = exclusive();
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let forward = format!("127.0.0.1:0={}", sink.local_addr().unwrap());
    let demo = Demo::start(&["--messages", "1", "--forward", &forward, "--allow", "127.0.0.0/8"]);
    let to = demo.forward_to(sink.local_addr().unwrap());
    let counts = Traffic::exchange(to, &sink, load, count);
    let report = demo.end();
    println!("{counts:?}");
    assert_eq!((counts.again, counts.reordered, counts.strange), (0, 0, 0));
    closed(&report);
    // Every datagram is accounted for: what did not arrive, a kernel queue dropped, and says so.
    let mut kernel = sys::kernel_drops(&sink).unwrap();
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
    assert!(counts.sent - counts.delivered <= kernel, "{counts:?}, {kernel} dropped by the kernel");
    assert!(counts.delivered > 0);
}

#[test]
fn tenth_of_the_load_floor_arrives_in_order() {
    carries(Load { flows: 100, rate: 2000, len: 1000, ..Load::default() }, 6000);
}

#[test]
#[ignore = "needs receive buffers of 8 MB: run as root, or `sysctl -w net.core.rmem_max=8388608`; bench/load.sh runs it"]
fn load_floor_arrives_in_order() {
    let seconds = std::env::var("EDDY_LOAD_SECONDS").map_or(10, |s| s.parse::<u64>().unwrap());
    let load = Load { flows: 100, rate: 20_000, len: 1000, under_way: u64::MAX, answers: false };
    carries(load, 20_000 * seconds);
}
