//! Links that are bad, not hostile: loss, copies, disorder and darkness in every link of a chain of processes.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::cell::Class;
use wire::frames;

use crate::common::flows::{Echo, Flows};
use crate::common::nodes::{Nodes, Plan};
use crate::common::process::exclusive;
use crate::common::tap::Faults;

/// Links of the chain, each way.
const LINKS: i32 = 3;
/// Share of datagrams that each of them loses.
const LOSS: f64 = 0.05;
/// Class S: a cell carries one of these and no second.
const SMALL: usize = 150;

fn bad() -> Faults {
    let reorder_by = Duration::from_millis(50);
    Faults { drop: LOSS, duplicate: 0.05, reorder: 0.2, reorder_by, ..Faults::default() }
}

/// Length of a datagram of `cells` cells, the last of which has no room for anything else.
fn of_cells(cells: usize) -> usize {
    match cells {
        1 => SMALL,
        _ => (cells - 1) * (Class::S.payload() - frames::FRAG_OVERHEAD) + SMALL,
    }
}

/// A chain with a tap in every link, and flows through it that its sink answers.
fn chain(seed: u64, faults: Faults, flows: usize) -> (Nodes, Flows) {
    let plan = Plan { taps: true, channels: 4, faults, seed, ..Plan::default() };
    let nodes = Nodes::start(plan);
    let flows = flows_of(&nodes, flows);
    (nodes, flows)
}

fn flows_of(nodes: &Nodes, flows: usize) -> Flows {
    let echo = Arc::new(Echo::start(&nodes.sink, |_, _, _| {}));
    Flows::new(0, flows, nodes.forward(), &[], &echo)
}

/// Sends on 20 flows for a while: small datagrams all the time, and some of three and of five cells.
fn measure(flows: &mut Flows, time: Duration) {
    flows.begin();
    let began = Instant::now();
    for step in 0u32.. {
        let due = Duration::from_millis(5) * step;
        if due >= time {
            break;
        }
        while began.elapsed() < due {
            flows.receive();
            std::thread::sleep(Duration::from_millis(1));
        }
        let (flow, round) = ((step % 20) as u16, step / 20);
        flows.send(flow, SMALL);
        if round % 5 == 0 {
            flows.send(flow, of_cells(if flow % 2 == 0 { 3 } else { 5 }));
        }
    }
    flows.settle();
}

/// Holds what was delivered against what a loss on every link leaves: four standard deviations are granted.
fn assert_delivered(flows: &Flows, loss: f64) {
    for cells in [1, 3, 5] {
        let survives = (1.0 - loss).powi(LINKS * cells as i32);
        let [sent, there, back] = flows.delivered(of_cells(cells));
        for (way, of, got) in [("there", sent, there), ("back", there, back)] {
            let expected = of as f64 * survives;
            let sigma = (expected * (1.0 - survives)).sqrt();
            println!(
                "{cells} cells, {way}: {got} of {of}, {:.4}; expected {survives:.4}, {:+.1} sigma",
                got as f64 / of as f64,
                (got as f64 - expected) / sigma.max(1.0)
            );
            assert!(of > 0 && got as f64 >= expected - 4.0 * sigma, "{cells} cells {way}: {got} of {of}");
        }
    }
}

#[test]
fn on_bad_links_a_chain_starts_keeps_its_channels_and_loses_what_the_links_lose() {
    let _lock = exclusive();
    let run = |faults: Faults, seconds: u64| {
        let began = Instant::now();
        let plan = Plan { taps: true, channels: 4, renew_after_s: 3, faults, seed: 7, ..Plan::default() };
        let mut nodes = Nodes::start(plan);
        println!("loss {}: started in {:?}", faults.drop, began.elapsed());
        let mut flows = flows_of(&nodes, 50);
        let (took, datagrams) = flows.until_answered(0..50, SMALL);
        println!("50 flows answered in {took:?} with {datagrams} datagrams");
        let opened = nodes.count(0, "/handshakes/channels_opened");
        measure(&mut flows, Duration::from_secs(seconds));
        assert_delivered(&flows, faults.drop);
        flows.assert_once_and_whole();
        println!("channels opened {opened} -> {}", nodes.count(0, "/handshakes/channels_opened"));
        for position in nodes.positions() {
            println!("{position}: {:?}", nodes.said(position));
            let status = nodes.status(position);
            println!("{} {} {}", status["handshakes"], status["refused"], status["ledger"]);
        }
        nodes.end_and_account();
    };
    run(Faults::default(), 4);
    run(bad(), 30);
}

#[test]
fn a_channel_that_only_pongs_answer_outlives_bad_links() {
    let plan = Plan { taps: true, channels: 4, renew_after_s: 1, faults: bad(), seed: 8, ..Plan::default() };
    let mut nodes = Nodes::start(plan);
    let clients: Vec<UdpSocket> = (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let opened = nodes.count(0, "/handshakes/channels_opened");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        clients.iter().for_each(|client| drop(client.send_to(b"to somebody who listens", nodes.forward())));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(nodes.count(0, "/handshakes/channels_opened"), opened, "a channel was given up: {:?}", nodes.said(0));
    nodes.end_and_account();
}
