//! Many flows, and many refusals.

use std::net::UdpSocket;
use std::time::Instant;

use crate::common::nodes::{Nodes, Plan, until, while_receiving};
use crate::common::process::{exclusive, may_open};

/// Datagrams under way at most: as many cells fit into any socket's buffer.
const UNDER_WAY: usize = 100;

fn dropped(nodes: &Nodes, position: usize, why: &str) -> u64 {
    nodes.count(position, &format!("/ledger/datagrams/forward/dropped/{why}"))
}

#[test]
fn ten_thousand_flows_lose_nothing_and_idle_ones_close() {
    const FLOWS: usize = 10_000;
    // An exit opens 64 flows a second for each channel.
    const CHANNELS: usize = 64;
    let _lock = exclusive();
    if !may_open(FLOWS as u64 + 1000) {
        return;
    }
    let mut nodes = Nodes::start(Plan {
        channels: CHANNELS,
        extra: vec![
            (0, "flow_idle_s = 30".to_owned()),
            (3, "flow_idle_s = 30\nmax_sockets = 15000\nmax_flows_per_channel = 4096".to_owned()),
        ],
        ..Plan::default()
    });
    let exit = nodes.exit();
    nodes.sink.set_nonblocking(true).unwrap();
    // Below the ports that the system hands out, which the exit needs.
    let client = |i: usize| {
        let socket = UdpSocket::bind((nodes.host(), 10_000 + i as u16)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let clients: Vec<UdpSocket> = (0..FLOWS).map(client).collect();
    let before = [nodes.resident(0), nodes.resident(exit)];
    let descriptors = nodes.descriptors(exit);
    let mut buffer = [0; 64];
    let mut round = |number: u8, per_second: f64| {
        let (mut there, mut back) = (vec![false; FLOWS], vec![false; FLOWS]);
        let (mut sent, mut arrived, mut answered) = (0, 0, 0);
        let began = Instant::now();
        until("all are answered", || {
            let due = (began.elapsed().as_secs_f64() * per_second) as usize;
            while sent < FLOWS.min(due).min(answered + UNDER_WAY) {
                let data = [&[number][..], &(sent as u32).to_be_bytes()].concat();
                clients[sent].send_to(&data, nodes.forward()).unwrap();
                sent += 1;
            }
            let mut answers = Vec::new();
            while_receiving(&nodes.sink, &mut buffer, |bytes, from| {
                if bytes.len() == 5 && bytes[0] == number {
                    let i = u32::from_be_bytes(bytes[1..].try_into().unwrap()) as usize;
                    assert!(!std::mem::replace(&mut there[i], true), "delivered once");
                    arrived += 1;
                    answers.push((bytes.to_vec(), from));
                }
            });
            answers.iter().for_each(|(bytes, from)| _ = nodes.sink.send_to(bytes, *from).unwrap());
            // Answers come in about the order of the questions.
            let first = back.iter().position(|back| !back).unwrap_or(FLOWS);
            for i in first..sent {
                while_receiving(&clients[i], &mut buffer, |bytes, from| {
                    assert_eq!(
                        (bytes, from),
                        (&[&[number][..], &(i as u32).to_be_bytes()].concat()[..], nodes.forward())
                    );
                    assert!(!std::mem::replace(&mut back[i], true), "answered once");
                    answered += 1;
                });
            }
            answered == FLOWS
        });
        println!("round {number}: {FLOWS} there and back in {:?}", began.elapsed());
    };
    round(1, 2500.0);
    let open = (nodes.count(0, "/flows"), nodes.count(exit, "/flows"), nodes.descriptors(exit));
    round(2, 10_000.0);
    let after = [nodes.resident(0), nodes.resident(exit)];
    let each = [0, 1].map(|end| after[end].saturating_sub(before[end]) as usize / FLOWS);
    println!("flows {open:?}; resident bytes for each: entry {}, exit {}", each[0], each[1]);
    assert!(open.0 >= FLOWS as u64 && open.1 >= FLOWS as u64 && open.2 >= descriptors + FLOWS, "{open:?}");
    assert!(each[0] < 2048 && each[1] < 4096, "{each:?}");
    until("idle flows are reaped, at both ends, and their sockets closed", || {
        (nodes.count(0, "/flows"), nodes.count(exit, "/flows")) == (0, 0) && nodes.descriptors(exit) <= descriptors + 1
    });
    // A client that comes back is served as before.
    round(3, 2500.0);
    let lost = |report: &serde_json::Value| {
        let of = |pointer: &str| report.pointer(pointer).and_then(serde_json::Value::as_object).cloned();
        [of("/ledger/datagrams/forward/dropped"), of("/ledger/datagrams/backward/dropped")]
    };
    for position in [0, exit] {
        let report = nodes.status(position);
        for dropped in lost(&report).into_iter().flatten() {
            let others: Vec<_> = dropped.iter().filter(|(why, _)| *why != "policy").collect();
            assert!(others.is_empty(), "node {position}: {others:?}");
        }
        assert_eq!(report["kernel_drops"], 0);
    }
    nodes.sink.set_nonblocking(false).unwrap();
    nodes.end();
}

/// Memory of a node's process, without kernel memory.
fn cost(nodes: &Nodes, position: usize) -> (usize, u64) {
    (nodes.descriptors(position), nodes.resident(position))
}

#[test]
fn hundred_thousand_refused_opens_cost_no_socket() {
    const EACH: u32 = 50_000;
    /// Sent before their refusals are waited for: as many cells fit into any socket's buffer, so that the kernel drops
    /// none of them.
    const BATCH: u32 = 50;
    let _lock = exclusive();
    let mut nodes = Nodes::start(Plan { channels: 2, ..Plan::default() });
    let exit = nodes.exit();
    let clients = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let refused = || ["policy", "refused-full"].iter().map(|why| dropped(&nodes, exit, why)).sum::<u64>();
    // Nodes::start has sent some itself, to see that nothing leaves.
    let before = refused();
    let (descriptors, resident) = cost(&nodes, exit);
    let mut most_descriptors = descriptors;
    for first in (0..EACH).step_by(BATCH as usize) {
        for number in first..first + BATCH {
            for (client, net) in clients.iter().zip([10u8, 172]) {
                let [_, a, b, c] = (number | 0x0010_0000).to_be_bytes();
                client.send_to(&[net, a, b, c, 0, 9, b'n', b'o'], nodes.pymix()).unwrap();
            }
        }
        let sent = u64::from(2 * (first + BATCH));
        until(&format!("the exit refuses the first {sent} datagrams"), || refused() >= before + sent);
        most_descriptors = most_descriptors.max(nodes.descriptors(exit));
    }
    assert_eq!(refused(), before + u64::from(2 * EACH));
    assert_eq!((nodes.count(exit, "/flows"), nodes.count(exit, "/ledger/datagrams/forward/sent")), (0, 0));
    assert!(most_descriptors <= descriptors + 1, "{most_descriptors} descriptors, {descriptors} before");
    let grown = nodes.resident(exit).saturating_sub(resident);
    println!("the exit has refused {} datagrams and grown by {grown} bytes", 2 * EACH);
    assert!(grown < 16 << 20, "{grown}");
    nodes.assert_carries();
    nodes.end();
}
