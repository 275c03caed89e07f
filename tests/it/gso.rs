//! GSO bursts at sockets with GRO: foreign ones, and more than a chain can carry.
//!
//! The exits here admit loopback alone, which [`Nodes::start`] has proven before.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use dataplane::sys::{self, Message};
use serde_json::Value;
use wire::cell::Direction;

use crate::common::attack::{Port, queue};
use crate::common::nodes::{Nodes, Plan, until};
use crate::common::process::exclusive;
use crate::common::traffic::{Load, Traffic};

/// Sends `bytes` to `to` as one burst in steps of `step`. Older kernels cut no burst into more than 64.
fn send_burst(from: &UdpSocket, to: SocketAddr, bytes: &[u8], step: usize) -> bool {
    let message = Message { to, pieces: 1, segment: Some(step as u16) };
    let sent = sys::send(from, std::iter::once(message), std::iter::once(bytes));
    assert!(sent.is_ok() || bytes.len() > 64 * step, "{sent:?}");
    sent.is_ok()
}

fn tally(nodes: &Nodes, port: Port) -> Value {
    let direction = if port.direction == Direction::Forward { "forward" } else { "backward" };
    nodes.status(port.position)["ledger"]["cells"][direction].clone()
}

#[test]
fn foreign_gso_bursts_are_counted_per_datagram() {
    let _lock = exclusive();
    let mut nodes = Nodes::start(Plan::default());
    let traffic = Traffic::start(nodes.forward(), &nodes.sink, Load { flows: 2, rate: 200, ..Load::default() });
    let stranger = UdpSocket::bind((nodes.forward().ip(), 0)).unwrap();
    let noise = vec![0xee; 65_507];
    for port in Port::all(&nodes) {
        let cell = port.cell_len;
        let handshake = port.handshake_lens()[0];
        let before = tally(&nodes, port);
        let dropped = |now: &Value, why: &str| {
            now["dropped"][why].as_u64().unwrap_or(0) - before["dropped"][why].as_u64().unwrap_or(0)
        };
        // Bytes, step: and what comes of it: strangers' cells, other lengths, cells beyond what is taken.
        let bursts: [(usize, usize, [u64; 3]); 8] = [
            (64 * cell, cell, [64, 0, 0]),
            (10 * cell + 7, cell, [10, 1, 0]),
            (100 * cell, cell, [64, 0, 36]),
            (64 * cell + 1, cell, [64, 0, 1]),
            (50 * (cell - 1), cell - 1, [0, 50, 0]),
            (50 * (cell + 1), cell + 1, [0, 50, 0]),
            // Shorter than a cell as a whole: at a port with sockets for halves the kernel drops it as one.
            (128, 1, [0, if port.direction == Direction::Forward { 1 } else { 128 }, 0]),
            (3 * 1400 + 9, 1400, [0, 4, 0]),
        ];
        let mut want = [0; 3];
        for (bytes, step, counts) in bursts {
            if !send_burst(&stranger, port.address, &noise[..bytes], step) {
                continue;
            }
            want.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        // Datagrams of a handshake's length, in a burst and as its tail, and longer ones than any.
        send_burst(&stranger, port.address, &noise[..3 * handshake], handshake);
        stranger.send_to(&noise, port.address).unwrap();
        want[1] += 1;
        let all = want.iter().sum::<u64>() + 3;
        until("everything is counted", || {
            let now = tally(&nodes, port);
            let drops: u64 = ["stranger", "length", "cut"].iter().map(|why| dropped(&now, why)).sum();
            drops + 3 == all && queue(port.address).0 == 0
        });
        let now = tally(&nodes, port);
        assert_eq!(["stranger", "length", "cut"].map(|why| dropped(&now, why)), want, "{}", port.address);
    }
    let counts = traffic.stop();
    assert_eq!((counts.delivered, counts.answered), (counts.sent, counts.sent), "{counts:?}");
    assert_eq!((counts.again, counts.strange), (0, 0), "{counts:?}");
    nodes.assert_carries();
    nodes.end();
}

/// Time in which more is sent than the chain can carry.
const FLOOD: Duration = Duration::from_secs(2);

#[test]
fn overloaded_chain_accounts_for_every_cell_and_recovers() {
    let _lock = exclusive();
    let mut nodes = Nodes::start(Plan { mixing: "threshold-or-timed:n=64,t=5ms".parse().unwrap(), ..Plan::default() });
    nodes.assert_carries();
    let clients: Vec<UdpSocket> = (0..8).map(|_| UdpSocket::bind((nodes.forward().ip(), 0)).unwrap()).collect();
    let before = nodes.status(0)["ledger"]["datagrams"]["forward"]["received"].as_u64().unwrap();
    // One datagram fills a cell; bursts, so that the entry is not spared by the sender's own cost.
    let bytes = [7; 40 * 180];
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < FLOOD {
        for client in &clients {
            sent += if send_burst(client, nodes.forward(), &bytes, 180) { 40 } else { 0 };
        }
    }
    let received = || nodes.status(0)["ledger"]["datagrams"]["forward"]["received"].as_u64().unwrap() - before;
    until("the entry has read what the kernel kept", || queue(nodes.forward()).0 == 0);
    let at_rest =
        || nodes.positions().all(|i| nodes.status(i)["buffers"]["free"] == nodes.status(i)["buffers"]["total"]);
    until("nothing is under way", at_rest);
    for position in nodes.positions() {
        let status = nodes.status(position);
        for unit in ["cells", "datagrams"] {
            for direction in ["forward", "backward"] {
                let tally = &status["ledger"][unit][direction];
                assert!(tally.is_null() || tally["closed"] == true, "node {position}, {unit} {direction}: {tally}");
            }
        }
    }
    let cells = |i: usize, what: &str| nodes.status(i)["ledger"]["cells"]["forward"][what].as_u64().unwrap();
    println!(
        "{sent} sent in {FLOOD:?}, {} received by the entry; cells sent and received from node to node: {:?}",
        received(),
        (1..=nodes.exit()).map(|i| (cells(i - 1, "sent"), cells(i, "received"))).collect::<Vec<_>>()
    );
    assert!(received() <= sent);
    for i in 1..=nodes.exit() {
        assert!(cells(i, "received") <= cells(i - 1, "sent") + 10, "no node makes data cells");
    }
    nodes.assert_carries();
    nodes.end();
}
