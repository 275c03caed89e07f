//! Links that are bad, not hostile: loss, copies, disorder and darkness in every link of a chain of processes.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wire::cell::{Class, Direction};
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

/// Holds what was delivered against what a loss on every link leaves: four standard deviations are granted, and what
/// was `late` there and back: datagrams of which not all cells came in time, as on a busy machine they may.
fn assert_delivered(flows: &Flows, loss: f64, late: [u64; 2]) {
    for cells in [1, 3, 5] {
        let survives = (1.0 - loss).powi(LINKS * cells as i32);
        let [sent, there, back] = flows.delivered(of_cells(cells));
        for (way, of, got, late) in [("there", sent, there, late[0]), ("back", there, back, late[1])] {
            let excused = if loss == 0.0 && cells > 1 { late } else { 0 };
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

/// What may be dropped inside on links that copy: copies. Two handshakes that cross, where an answer takes long,
/// also cost a cell under the keys of the older one.
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
    // Without faults first: what is claimed of bad links is due to them.
    for (faults, seconds) in [(Faults::default(), 3), (bad(), 30)] {
        let began = Instant::now();
        let plan = Plan { taps: true, channels: 4, renew_after_s: 3, faults, seed: 7, ..Plan::default() };
        let mut nodes = Nodes::start(plan);
        println!("loss {}: up after {:?}", faults.drop, began.elapsed());
        let mut flows = flows_of(&nodes, 50);
        let (took, datagrams) = flows.until_answered(0..50, SMALL);
        println!("50 flows were answered after {took:?} and {datagrams} datagrams");
        let before = opened(&nodes);
        measure(&mut flows, Duration::from_secs(seconds));
        let late = [(nodes.exit(), "forward"), (0, "backward")].map(|(position, direction)| {
            nodes.count(position, &format!("/ledger/datagrams/{direction}/dropped/incomplete"))
        });
        assert_delivered(&flows, faults.drop, late);
        flows.assert_once_and_whole();
        assert_eq!(opened(&nodes), before, "a channel was lost: {:?}", nodes.said(0));
        for position in nodes.positions().skip(1) {
            let renewed = nodes.count(position, "/handshakes/done");
            assert!(renewed > seconds / 4, "node {position}: {renewed} handshakes in {seconds} s");
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
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        clients.iter().for_each(|client| drop(client.send_to(b"to somebody who listens", nodes.forward())));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(opened(&nodes), before, "a channel was given up: {:?}", nodes.said(0));
    nodes.end_and_account();
}

/// Sends on four flows for a while and returns how much of that was answered.
fn talk(flows: &mut Flows, time: Duration) -> u64 {
    flows.begin();
    let began = Instant::now();
    while began.elapsed() < time {
        (0..4).for_each(|flow| flows.send(flow, SMALL));
        std::thread::sleep(Duration::from_millis(50));
        flows.receive();
    }
    flows.delivered(SMALL)[2]
}

#[test]
fn traffic_resumes_after_heavy_loss_on_all_links() {
    // Without renewal by age: traffic resumes by itself.
    let mut nodes = Nodes::start(Plan { taps: true, renew_after_s: 3600, seed: 9, ..Plan::default() });
    let mut flows = flows_of(&nodes, 4);
    flows.until_answered(0..4, SMALL);
    nodes.set_links(Faults { drop: 0.3, ..Faults::default() });
    talk(&mut flows, Duration::from_secs(10));
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
        assert_eq!(talk(&mut flows, Duration::from_secs(5)), 0, "answers through the dark");
        nodes.set_links(Faults::default());
        let (took, _) = flows.until_answered(0..4, SMALL);
        println!("link {link} dark {directions:?}: all flows answered {took:?} after the light came back");
        // The first time; what comes back soon is reported at growing intervals.
        let noticed = nodes.said(link - 1).iter().any(|line| line.contains("lost the next hop"));
        assert!(noticed, "link {link} {directions:?}: {:?}", nodes.said(link - 1));
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
