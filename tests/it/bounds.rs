//! Whole chains in memory at the bounds of their tables.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use dataplane::entry::WAITING_MAX;
use dataplane::ledger::{DropReason, Ledger};
use dataplane::per_direction::PerDirection;
use dataplane::socket::memory::Datagram;
use wire::ids::Side;

use crate::common::memchain::{Chain, Plan, app, forward_listener, link_address, pymix_listener};

const SETTLED: Duration = Duration::from_millis(200);

/// A pymix client's datagram.
fn pymix(chain: &Chain, from: SocketAddr, to: SocketAddr) {
    let SocketAddr::V4(v4) = to else { panic!("pymix speaks IPv4") };
    let mut bytes = v4.ip().octets().to_vec();
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(b"hello");
    chain.apps.send(Datagram { from, to: pymix_listener(), bytes });
}

fn forward(ledger: &Ledger, why: DropReason) -> u64 {
    ledger.datagrams.forward.drops(why)
}

#[test]
fn queue_for_a_channel_is_bounded_and_keeps_the_latest() {
    let mut chain = Chain::new(Plan::default());
    chain.asleep.insert(1);
    for n in 0..WAITING_MAX as u32 + 3 {
        chain.send(app(100, 1), &n.to_be_bytes());
    }
    chain.run(Duration::from_secs(1));
    let ledger = chain.ledger(0);
    assert_eq!(
        (forward(&ledger, DropReason::ChannelQueueFull), ledger.datagrams.forward.held),
        (3, WAITING_MAX as u64)
    );
    chain.asleep.clear();
    chain.open();
    chain.run(SETTLED);
    let got: Vec<u32> = chain
        .receive(chain.plan.destination)
        .iter()
        .map(|datagram| u32::from_be_bytes(datagram.bytes[..].try_into().unwrap()))
        .collect();
    assert!(got.into_iter().eq(3..WAITING_MAX as u32 + 3), "the oldest gave way");
    assert_eq!(chain.ledger(0).datagrams.forward.held, 0);
    chain.assert_closed();
}

#[test]
fn flow_open_rate_limits_one_client_only() {
    let mut chain = Chain::new(Plan::default());
    chain.open();
    let (greedy, modest) = (app(100, 1), app(100, 2));
    chain.send(modest, b"before");
    chain.run(SETTLED);
    let all = |chain: &Chain| (0..200).for_each(|port| pymix(chain, greedy, app(9, 1000 + port)));
    let arrived = |chain: &Chain| (0..200).map(|port| chain.receive(app(9, 1000 + port)).len()).sum::<usize>();
    all(&chain);
    chain.send(modest, b"during");
    chain.run(SETTLED);
    let exit = chain.ledger(4);
    assert_eq!((arrived(&chain), forward(&exit, DropReason::OpenRate)), (64, 136));
    assert_eq!(chain.receive(chain.plan.destination).len(), 2);
    // The entry was told, and does not ask again at once; what is open stays open.
    all(&chain);
    chain.run(SETTLED);
    assert_eq!((arrived(&chain), forward(&chain.ledger(0), DropReason::ExitFull)), (64, 136));
    for _ in 0..4 {
        chain.run(Duration::from_secs(6));
        all(&chain);
        chain.run(SETTLED);
        arrived(&chain);
    }
    all(&chain);
    chain.run(SETTLED);
    assert_eq!(arrived(&chain), 200);
    chain.assert_closed();
}

#[test]
fn exit_out_of_descriptors_keeps_its_flows() {
    let mut chain = Chain::new(Plan::default());
    chain.open();
    let (old, new) = (app(100, 1), app(100, 2));
    chain.send(old, b"1");
    chain.run(SETTLED);
    chain.apps.fail_open(Some(24));
    for _ in 0..5 {
        chain.send(old, b"2");
        chain.send(new, b"3");
        chain.run(SETTLED);
    }
    assert_eq!(chain.receive(chain.plan.destination).len(), 6);
    assert_eq!(
        (forward(&chain.ledger(4), DropReason::NoSocket), forward(&chain.ledger(0), DropReason::ExitFull)),
        (1, 4)
    );
    assert!(chain.notes.iter().any(|note| note.contains("TooManyFlows")), "the operator is told");
    chain.apps.fail_open(None);
    chain.run(Duration::from_secs(5));
    chain.send(new, b"4");
    chain.run(SETTLED);
    assert_eq!(chain.receive(chain.plan.destination).len(), 1);
    chain.assert_closed();
}

/// More than one datagram, and fewer than anything holds.
const SOME: usize = 50;

#[test]
fn blocked_entry_or_exit_does_not_read() {
    let mut chain = Chain::new(Plan { channels: 1, ..Plan::default() });
    chain.open();
    let (client, destination) = (app(100, 1), chain.plan.destination);
    chain.send(client, b"the flow is open");
    chain.run(SETTLED);
    let exit = chain.receive(destination)[0].from;
    for (node, from, to, reads_it) in [(0, client, forward_listener(), destination), (4, destination, exit, client)] {
        let read = |chain: &Chain| {
            let PerDirection { forward, backward } = chain.ledger(node).datagrams;
            if node == 0 { forward.received } else { backward.received }
        };
        let before = read(&chain);
        chain.links.block(true);
        for number in 0..=SOME as u8 {
            chain.apps.send(Datagram { from, to, bytes: vec![number] });
            chain.run(Duration::from_millis(1));
        }
        assert_eq!((read(&chain) - before, chain.apps.waiting()), (1, SOME), "node {node}");
        chain.links.block(false);
        chain.run(SETTLED);
        let numbers: Vec<_> = chain.receive(reads_it).into_iter().map(|datagram| datagram.bytes[0]).collect();
        assert!(numbers.into_iter().eq(0..=SOME as u8), "node {node}: all arrive, in order");
    }
    chain.assert_lossless();
}

#[test]
fn blocked_mix_does_not_read() {
    let mut chain = Chain::new(Plan { channels: 1, ..Plan::default() });
    chain.open();
    let (client, destination) = (app(100, 1), chain.plan.destination);
    chain.send(client, b"the flow is open");
    chain.run(SETTLED);
    let exit = chain.receive(destination)[0].from;
    for (side, from, to, reads_it) in
        [(Side::Up, client, forward_listener(), destination), (Side::Down, destination, exit, client)]
    {
        // The cells wait in front of the mix, each a datagram of its own.
        let held = Rc::new(RefCell::new(Vec::new()));
        let (hold, armed) = (held.clone(), Rc::new(Cell::new(true)));
        let holds = armed.clone();
        chain.tap(move |datagram| {
            if !holds.get() || datagram.to != link_address(2, side) {
                return vec![datagram];
            }
            hold.borrow_mut().push(datagram);
            Vec::new()
        });
        for number in 0..=SOME as u8 {
            chain.apps.send(Datagram { from, to, bytes: vec![number; 150] });
            chain.run(Duration::from_millis(1));
        }
        chain.run(SETTLED);
        armed.set(false);
        let read = |chain: &Chain| {
            let PerDirection { forward, backward } = chain.ledger(2).cells;
            if side == Side::Up { forward.received } else { backward.received }
        };
        let before = read(&chain);
        chain.links.block(true);
        for datagram in held.take() {
            chain.links.send(datagram);
            chain.run(Duration::from_millis(5));
        }
        assert_eq!((read(&chain) - before, chain.links.waiting()), (1, SOME), "{side:?}");
        chain.links.block(false);
        chain.run(SETTLED);
        let numbers: Vec<_> = chain.receive(reads_it).into_iter().map(|datagram| datagram.bytes[0]).collect();
        assert!(numbers.into_iter().eq(0..=SOME as u8), "{side:?}: all arrive, in order");
    }
    chain.assert_closed();
}

#[test]
fn unroutable_destination_is_reported_and_counted() {
    let mut chain = Chain::new(Plan::default());
    chain.open();
    let client = app(100, 1);
    chain.apps.fail_send(app(9, 1), Some(101));
    for _ in 0..10 {
        pymix(&chain, client, app(9, 1));
        pymix(&chain, client, app(9, 2));
        chain.run(SETTLED);
    }
    assert_eq!(chain.receive(app(9, 2)).len(), 10);
    let exit = chain.ledger(4).datagrams.forward;
    assert_eq!((exit.drops(DropReason::Unreachable), exit.send_errors), (10, 0));
    let told = chain.notes.iter().filter(|note| note.contains("Unreachable")).count();
    assert!((1..=3).contains(&told), "{told} in two seconds");
    chain.apps.fail_send(app(9, 1), None);
    pymix(&chain, client, app(9, 1));
    chain.run(SETTLED);
    assert_eq!(chain.receive(app(9, 1)).len(), 1);
    chain.assert_closed();
}
