//! Links that are bad, not hostile: loss, copies, disorder and darkness in every link of a chain of processes.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::cell::{Class, Direction};
use wire::frames;

use crate::common::flows::{Echo, Flows};
use crate::common::nodes::{Nodes, Plan, until};
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

fn flows_of(nodes: &Nodes, flows: usize) -> Flows {
    let echo = Arc::new(Echo::start(&nodes.sink, |_, _, _| {}));
    Flows::new(0, flows, nodes.forward(), &[], &echo)
}

/// Sends on 20 flows in turns: small datagrams all the time, and some of three and of five cells.
fn measure(flows: &mut Flows, steps: u32) {
    flows.begin();
    for step in 0..steps {
        // The pace only. On a busy machine the steps take longer, and no burst makes up for it.
        std::thread::sleep(Duration::from_millis(5));
        flows.receive();
        let (flow, round) = ((step % 20) as u16, step / 20);
        flows.send(flow, SMALL);
        if round % 5 == 0 {
            flows.send(flow, of_cells(if flow % 2 == 0 { 3 } else { 5 }));
        }
    }
    flows.settle();
}

/// Compares what was delivered with what a loss on every link leaves. It may be four standard deviations less. Without
/// faults it may be less by what a busy machine loses: `kernel_drops`, and datagrams there and back of which some cells
/// came too late.
fn assert_delivered(flows: &Flows, loss: f64, late: [u64; 2], kernel_drops: u64) {
    for cells in [1, 3, 5] {
        let survives = (1.0 - loss).powi(LINKS * cells as i32);
        let [sent, there, back] = flows.delivered(of_cells(cells));
        for (way, of, got, late) in [("there", sent, there, late[0]), ("back", there, back, late[1])] {
            let excused = match cells {
                _ if loss > 0.0 => 0,
                1 => kernel_drops,
                _ => kernel_drops + late,
            };
            let expected = (of - excused.min(of)) as f64 * survives;
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

fn opened(nodes: &Nodes) -> u64 {
    nodes.count(0, "/handshakes/channels_opened")
}

/// Nodes may drop copies, because these links copy. Two handshakes that cross, where an answer takes long, also cost a
/// cell under the keys of the older one.
fn assert_dropped_copies_alone(nodes: &Nodes) {
    for (position, report) in &nodes.reports {
        for direction in ["forward", "backward"] {
            let dropped = report["ledger"]["cells"][direction]["dropped"].as_object().unwrap();
            assert!(
                dropped.keys().all(|why| why == "replay" || why == "header"),
                "node {position} {direction}: {dropped:?}"
            );
        }
    }
}

#[test]
fn bad_links_cost_their_own_loss_and_no_channel() {
    let _lock = exclusive();
    // Without faults first, to show that losses in the second run come from the links.
    for (faults, steps, renewals) in [(Faults::default(), 600, 0), (bad(), 6000, 7)] {
        let began = Instant::now();
        let plan = Plan { taps: true, channels: 4, renew_after_s: 3, faults, seed: 7, ..Plan::default() };
        let mut nodes = Nodes::start(plan);
        println!("loss {}: up after {:?}", faults.drop, began.elapsed());
        let mut flows = flows_of(&nodes, 50);
        let (took, datagrams) = flows.until_answered(0..50, SMALL);
        println!("50 flows were answered after {took:?} and {datagrams} datagrams");
        let before = opened(&nodes);
        measure(&mut flows, steps);
        let late = [(nodes.exit(), "forward"), (0, "backward")].map(|(position, direction)| {
            nodes.count(position, &format!("/ledger/datagrams/{direction}/dropped/incomplete"))
        });
        let kernel_drops = nodes.positions().map(|position| nodes.count(position, "/kernel_drops")).sum();
        assert_delivered(&flows, faults.drop, late, kernel_drops);
        flows.assert_once_and_whole();
        assert_eq!(opened(&nodes), before, "a channel was lost: {:?}", nodes.said(0));
        for position in nodes.positions().skip(1) {
            until(&format!("node {position} has renewed its link"), || {
                nodes.count(position, "/handshakes/done") > renewals
            });
        }
        nodes.end_and_account();
        assert_dropped_copies_alone(&nodes);
    }
}

#[test]
fn channel_answered_by_pongs_only_survives_bad_links() {
    let plan = Plan { taps: true, channels: 4, renew_after_s: 1, faults: bad(), seed: 8, ..Plan::default() };
    let mut nodes = Nodes::start(plan);
    let clients: Vec<UdpSocket> = (0..8).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let before = opened(&nodes);
    // About one PONG per second for each of the four channels.
    let pongs = || nodes.count(0, "/ledger/cells/backward/consumed");
    let enough = pongs() + 100;
    while pongs() < enough {
        clients.iter().for_each(|client| drop(client.send_to(b"to somebody who listens", nodes.forward())));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(opened(&nodes), before, "a channel was given up: {:?}", nodes.said(0));
    nodes.end_and_account();
}

/// Sends on four flows, a datagram on each in every round. Returns how many were answered.
fn talk(flows: &mut Flows, rounds: u32) -> u64 {
    flows.begin();
    for _ in 0..rounds {
        (0..4).for_each(|flow| flows.send(flow, SMALL));
        std::thread::sleep(Duration::from_millis(50));
        flows.receive();
    }
    flows.delivered(SMALL)[2]
}

#[test]
fn traffic_resumes_after_heavy_loss_on_all_links() {
    // Links are not renewed by age, so traffic must resume without it.
    let mut nodes = Nodes::start(Plan { taps: true, renew_after_s: 3600, seed: 9, ..Plan::default() });
    let mut flows = flows_of(&nodes, 4);
    flows.until_answered(0..4, SMALL);
    nodes.set_links(Faults { drop: 0.3, ..Faults::default() });
    talk(&mut flows, 200);
    nodes.set_links(Faults::default());
    let (took, _) = flows.until_answered(0..4, SMALL);
    println!("all flows answered {took:?} after the loss had ended");
    flows.settle();
    flows.assert_once_and_whole();
    nodes.end_and_account();
}

fn a_dark_link(link: usize) {
    let plan = Plan { taps: true, renew_after_s: 3600, seed: 10 + link as u64, ..Plan::default() };
    let mut nodes = Nodes::start(plan);
    let mut flows = flows_of(&nodes, 4);
    flows.until_answered(0..4, SMALL);
    let dark = Faults { drop: 1.0, ..Faults::default() };
    for directions in [&[Direction::Forward, Direction::Backward][..], &[Direction::Forward], &[Direction::Backward]] {
        directions.iter().for_each(|direction| nodes.taps[link - 1].set(*direction, dark));
        assert_eq!(talk(&mut flows, 100), 0, "answers through the dark");
        // The first time. Loss that comes back soon is reported at growing intervals.
        until(&format!("node {} reports the loss, link {link} dark {directions:?}", link - 1), || {
            nodes.said(link - 1).iter().any(|line| line.contains("lost the next hop"))
        });
        nodes.set_links(Faults::default());
        let (took, _) = flows.until_answered(0..4, SMALL);
        println!("link {link} dark {directions:?}: all flows answered {took:?} after the light came back");
        for position in nodes.positions() {
            let said = nodes.said(position);
            assert!(!said.iter().any(|line| line.contains("disconnected")), "node {position}: {said:?}");
        }
    }
    flows.settle();
    flows.assert_once_and_whole();
    nodes.end_and_account();
}

#[test]
fn traffic_resumes_after_a_dark_link_that_stays_up() {
    std::thread::scope(|scope| {
        let links: Vec<_> = (1..=LINKS as usize).map(|link| scope.spawn(move || a_dark_link(link))).collect();
        for (i, link) in links.into_iter().enumerate() {
            assert!(link.join().is_ok(), "link {}: see above", i + 1);
        }
    });
}
