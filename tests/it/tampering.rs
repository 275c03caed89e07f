//! A man in the middle of whole chains in memory flips, copies, forges and replays cells.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use dataplane::ledger::{DropReason, Tally};
use dataplane::socket::memory::Datagram;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::handshake::{RESPONSE_LEN, is_handshake_len};
use wire::ids::Side;

use crate::common::memchain::{Chain, Plan, app, link_address};

/// Every link and direction of a chain of three mixes.
fn everywhere() -> impl Iterator<Item = (usize, Direction)> {
    (1..=4).flat_map(|link| [(link, Direction::Forward), (link, Direction::Backward)])
}

/// The node to which a link delivers in a direction.
fn receiver(link: usize, direction: Direction) -> usize {
    match direction {
        Direction::Forward => link,
        Direction::Backward => link - 1,
    }
}

/// The address at which it does.
fn end(link: usize, direction: Direction) -> SocketAddr {
    let side = if direction == Direction::Forward { Side::Up } else { Side::Down };
    link_address(receiver(link, direction), side)
}

/// The cells that a node has received in a direction.
fn cells(chain: &Chain, node: usize, direction: Direction) -> Tally {
    let cells = chain.ledger(node).cells;
    if direction == Direction::Forward { cells.forward } else { cells.backward }
}

/// An open chain, and a switch for what `change` makes of each cell that comes to `at`.
fn tampered(at: SocketAddr, change: impl Fn(Datagram) -> Vec<Datagram> + 'static) -> (Chain, Rc<Cell<bool>>) {
    tampered_of(Plan::default(), at, change)
}

/// The same of a plan.
fn tampered_of(
    plan: Plan,
    at: SocketAddr,
    change: impl Fn(Datagram) -> Vec<Datagram> + 'static,
) -> (Chain, Rc<Cell<bool>>) {
    let mut chain = Chain::new(plan);
    chain.open();
    let armed = Rc::new(Cell::new(false));
    let switch = armed.clone();
    chain.tap(move |datagram| {
        let touched = switch.get() && datagram.to == at && !is_handshake_len(datagram.bytes.len());
        if touched { change(datagram) } else { vec![datagram] }
    });
    (chain, armed)
}

/// Sends a question and answers it; how many questions and answers came.
fn exchange(chain: &mut Chain) -> (usize, usize) {
    let client = app(100, 1);
    chain.send(client, b"question");
    chain.run(Duration::from_millis(40));
    let questions = chain.receive(chain.plan.destination);
    for question in &questions {
        chain.apps.send(Datagram { from: question.to, to: question.from, bytes: b"answer".to_vec() });
    }
    chain.run(Duration::from_millis(40));
    (questions.len(), chain.receive(client).len())
}

fn flipped(mut datagram: Datagram) -> Datagram {
    let last = datagram.bytes.len() - 1;
    datagram.bytes[last] ^= 1;
    datagram
}

#[test]
fn flipped_bit_is_refused_at_the_next_hop_or_the_entry() {
    for (link, direction) in everywhere() {
        let (mut chain, armed) = tampered(end(link, direction), |datagram| vec![flipped(datagram)]);
        assert_eq!(exchange(&mut chain), (1, 1));
        armed.set(true);
        let came = exchange(&mut chain);
        let forged: Vec<u64> = (0..5).map(|node| cells(&chain, node, direction).drops(DropReason::Forged)).collect();
        let notices = if direction == Direction::Forward { link } else { 0 };
        for (node, forged) in forged.iter().enumerate() {
            assert_eq!(*forged > 0, node == notices, "link {link} {direction:?}, node {node}: {forged}");
        }
        let want = if direction == Direction::Forward { (0, 0) } else { (1, 0) };
        assert_eq!(came, want, "link {link} {direction:?}");
        armed.set(false);
        assert_eq!(exchange(&mut chain), (1, 1), "link {link} {direction:?}: and nothing is broken");
        chain.assert_closed();
    }
}

/// Sends two datagrams, the first of which is lost before anything can come back; where the second comes from.
fn behind_a_lost_one(chain: &mut Chain, armed: &Cell<bool>) -> SocketAddr {
    let client = app(100, 1);
    armed.set(true);
    chain.send(client, b"lost");
    chain.settle();
    armed.set(false);
    chain.send(client, b"behind it");
    chain.run(Duration::from_millis(40));
    let came = chain.receive(chain.plan.destination);
    assert_eq!(came.iter().map(|d| &d.bytes[..]).collect::<Vec<_>>(), [b"behind it"]);
    assert_eq!(chain.ledger(4).datagrams.forward.drops(DropReason::Flow), 0, "the exit knew its flow");
    came[0].from
}

#[test]
fn datagram_behind_a_lost_open_or_move_arrives() {
    let at = link_address(1, Side::Up);
    let plan = Plan { channels: 1, lifetime_s: 400, ..Plan::default() };
    let (mut chain, armed) = tampered_of(plan, at, |_| Vec::new());
    let port = behind_a_lost_one(&mut chain, &armed);
    // The flow is open, and moves to the channel that replaces its own.
    let deadline = chain.now + 400 * dataplane::SECOND;
    while chain.keys.channels.len() < 2 {
        assert!(chain.now < deadline, "{:#?}", chain.notes);
        chain.send(app(100, 1), b"not idle");
        chain.run(Duration::from_secs(1));
        assert_eq!(chain.receive(chain.plan.destination).len(), 1);
    }
    assert_eq!(behind_a_lost_one(&mut chain, &armed), port, "it was moved, not opened again");
    chain.assert_closed();
}

#[test]
fn copied_or_replayed_cell_arrives_once() {
    for (link, direction) in everywhere() {
        // Two copies race into one batch.
        let (mut chain, armed) = tampered(end(link, direction), |datagram| vec![datagram.clone(), datagram]);
        armed.set(true);
        let node = receiver(link, direction);
        assert_eq!(exchange(&mut chain), (1, 1), "link {link} {direction:?}");
        let raced = cells(&chain, node, direction).drops(DropReason::Replay);
        assert!(raced > 0, "link {link} {direction:?}");
        armed.set(false);
        // And all that was seen there comes once more, later.
        let seen: Vec<_> =
            chain.seen.borrow().iter().filter(|s| (s.link, s.direction) == (link, direction)).cloned().collect();
        let from = if direction == Direction::Forward {
            link_address(link - 1, Side::Down)
        } else {
            link_address(link, Side::Up)
        };
        let sent = cells(&chain, node, direction).sent;
        for cell in seen.iter().filter(|cell| !is_handshake_len(cell.bytes.len())) {
            chain.links.send(Datagram { from, to: end(link, direction), bytes: cell.bytes.clone() });
        }
        chain.settle();
        assert!(cells(&chain, node, direction).drops(DropReason::Replay) >= raced + raced, "link {link} {direction:?}");
        assert_eq!(cells(&chain, node, direction).sent, sent);
        assert!(chain.receive(chain.plan.destination).is_empty() && chain.receive(app(100, 1)).is_empty());
        assert_eq!(exchange(&mut chain), (1, 1));
        chain.assert_closed();
    }
}

#[test]
fn forged_copy_is_harmless_where_a_tag_is_checked() {
    let forward = (1..=4).map(|link| (link, Direction::Forward));
    for (link, direction) in forward.chain([(1, Direction::Backward)]) {
        let overtake = |datagram: Datagram| vec![flipped(datagram.clone()), datagram];
        let (mut chain, armed) = tampered(end(link, direction), overtake);
        armed.set(true);
        assert_eq!(exchange(&mut chain), (1, 1), "link {link} {direction:?}");
        assert!(cells(&chain, receiver(link, direction), direction).drops(DropReason::Forged) > 0);
        chain.assert_closed();
    }
}

#[test]
fn message_2_waits_until_the_worker_has_its_keys() {
    let mut chain = Chain::new(Plan::default());
    chain.held_up.insert(2);
    let answered = |chain: &Chain, link| {
        chain
            .seen
            .borrow()
            .iter()
            .any(|s| (s.link, s.direction, s.bytes.len()) == (link, Direction::Backward, RESPONSE_LEN))
    };
    chain.run(Duration::from_millis(400));
    assert!(answered(&chain, 1) && answered(&chain, 3) && !answered(&chain, 2));
    chain.held_up.clear();
    chain.run(Duration::from_millis(10));
    assert!(answered(&chain, 2));
}

#[test]
fn dead_channels_are_given_up_and_one_way_channels_kept() {
    let mut chain = Chain::new(Plan::default());
    chain.open();
    let lost = |chain: &Chain| chain.notes.iter().filter(|n| n.contains("ChannelClosed") && n.contains("Lost")).count();
    // Nobody answers, but the exit does: a datagram a second for longer than it takes to give up.
    for _ in 0..20 {
        chain.send(app(100, 1), b"question");
        chain.run(Duration::from_secs(1));
        assert_eq!(chain.receive(chain.plan.destination).len(), 1);
    }
    assert_eq!(lost(&chain), 0);
    // The exit is gone: with a datagram under way within 3 s and mixing's round trip, without any once
    // silence is broken.
    chain.asleep.insert(4);
    chain.send(app(100, 1), b"question");
    chain.run(Duration::from_millis(4500));
    assert!(lost(&chain) > 0);
    chain.run(Duration::from_secs(13));
    assert!(lost(&chain) >= 4, "{:#?}", chain.notes);
    assert_eq!(chain.ledger(0).gauges.channels, 0);
    chain.asleep.clear();
    chain.run(Duration::from_secs(10));
    assert_eq!((chain.ledger(0).gauges.channels, exchange(&mut chain)), (4, (1, 1)));
    chain.assert_closed();
}

#[test]
fn foreign_cell_is_dropped_at_the_first_check() {
    let mut chain = Chain::new(Plan::default());
    chain.open();
    let seen = chain.seen.borrow().clone();
    for (link, direction) in everywhere() {
        let node = receiver(link, direction);
        let (from, to) = match direction {
            Direction::Forward => (link_address(link - 1, Side::Down), end(link, direction)),
            Direction::Backward => (link_address(link, Side::Up), end(link, direction)),
        };
        let cell = chain.shape.cell_len(direction, link);
        let others =
            [0, 1, 15, 16, cell - 16, cell - 1, cell + 1, 1472, 1500].map(|len| (from, len, DropReason::Length));
        let stranger = "203.0.113.66:6".parse().unwrap();
        let before = chain.seen.borrow().len();
        let mut sent = 0;
        for (from, len, why) in
            others.into_iter().chain([(from, cell, DropReason::Header), (stranger, cell, DropReason::Stranger)])
        {
            let count = cells(&chain, node, direction).drops(why);
            chain.links.send(Datagram { from, to, bytes: vec![0x5a; len] });
            chain.settle();
            sent += 1;
            let counted = cells(&chain, node, direction).drops(why) - count;
            assert_eq!(counted, 1, "{len} bytes on link {link} {direction:?}: {why:?}");
        }
        // A cell of another link, and one whose header was touched.
        let of = |other: &dyn Fn(usize) -> bool| {
            seen.iter().rev().find(|s| other(s.link) && s.direction == direction && !is_handshake_len(s.bytes.len()))
        };
        let mut touched = of(&|other| other == link).expect("keepalives at least").bytes.clone();
        touched[3] ^= 1;
        let mut moved = of(&|other| other != link).expect("keepalives at least").bytes.clone();
        moved.resize(cell, 0);
        for bytes in [touched, moved] {
            let count = cells(&chain, node, direction).drops(DropReason::Header);
            chain.links.send(Datagram { from, to, bytes });
            chain.settle();
            sent += 1;
            assert_eq!(
                cells(&chain, node, direction).drops(DropReason::Header),
                count + 1,
                "link {link} {direction:?}"
            );
        }
        assert_eq!(chain.seen.borrow().len(), before + sent, "nothing was answered");
    }
    assert_eq!(exchange(&mut chain), (1, 1));
    chain.assert_closed();
}

#[test]
fn cell_replayed_at_another_port_is_unknown_there() {
    // Lane k of a mix is at the k-th port; cells that come back to one come from as many.
    let other = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() ^ 1);
    for backward in [false, true] {
        let mixing = "timed:t=1ms".parse().unwrap();
        let mut chain = Chain::new(Plan { lanes: vec![2, 2, 2], channels: 8, mixing, ..Plan::default() });
        chain.open();
        let armed = Rc::new(Cell::new(false));
        let switch = armed.clone();
        chain.tap(move |datagram| {
            let Datagram { from, to, .. } = &datagram;
            let comes_back = *to == link_address(1, Side::Down);
            let again = match backward {
                false if to.ip() == link_address(2, Side::Up).ip() => {
                    Some(Datagram { to: other(*to), ..datagram.clone() })
                }
                true if comes_back => Some(Datagram { from: other(*from), ..datagram.clone() }),
                _ => None,
            };
            let again = again.filter(|_| switch.get() && !is_handshake_len(datagram.bytes.len()));
            std::iter::once(datagram).chain(again).collect()
        });
        assert_eq!(exchange(&mut chain), (1, 1));
        armed.set(true);
        for _ in 0..4 {
            assert_eq!(exchange(&mut chain), (1, 1), "each arrives once");
        }
        let (node, direction) = if backward { (1, Direction::Backward) } else { (2, Direction::Forward) };
        assert!(cells(&chain, node, direction).drops(DropReason::Channel) >= 4);
        chain.assert_closed();
    }
}

/// The longest time until traffic resumes after a fault has ended.
const RESUMED_MAX: Duration = Duration::from_secs(5);

/// Talks for a while; returns how many questions were answered.
fn talk(chain: &mut Chain, time: Duration) -> usize {
    let end = chain.now + time.as_nanos() as u64;
    let mut answered = 0;
    while chain.now < end {
        answered += exchange(chain).1;
    }
    answered
}

fn assert_resumes(chain: &mut Chain, what: &str) {
    let ended = chain.now;
    while exchange(chain) != (1, 1) {
        let took = Duration::from_nanos(chain.now - ended);
        assert!(took < RESUMED_MAX, "{what}: nothing after {took:?}: {:#?}", chain.notes);
    }
}

#[test]
fn traffic_resumes_within_five_seconds_after_a_dark_link() {
    let ways = [&[Direction::Forward, Direction::Backward][..], &[Direction::Forward], &[Direction::Backward]];
    for (link, directions) in (1..=4).flat_map(|link| ways.map(|directions| (link, directions))) {
        let mut chain = Chain::new(Plan::default());
        chain.open();
        assert_eq!(exchange(&mut chain), (1, 1));
        let dark = Rc::new(Cell::new(true));
        let (switch, ends) = (dark.clone(), directions.iter().map(|way| end(link, *way)).collect::<Vec<_>>());
        chain.tap(move |datagram| {
            let lost = switch.get() && ends.contains(&datagram.to);
            if lost { Vec::new() } else { vec![datagram] }
        });
        assert_eq!(talk(&mut chain, Duration::from_secs(5)), 0, "answers over the dark link {link}");
        dark.set(false);
        assert_resumes(&mut chain, &format!("link {link}, dark {directions:?}"));
        chain.assert_closed();
    }
}

#[test]
fn traffic_resumes_within_five_seconds_after_heavy_loss() {
    for seed in 0..5 {
        let mut chain = Chain::new(Plan { seed, ..Plan::default() });
        chain.open();
        let (lossy, mut rng) = (Rc::new(Cell::new(true)), ChaCha20Rng::seed_from_u64(seed));
        let switch = lossy.clone();
        chain.tap(move |datagram| {
            let lost = switch.get() && rng.next_u32() % 10 < 3;
            if lost { Vec::new() } else { vec![datagram] }
        });
        talk(&mut chain, Duration::from_secs(10));
        lossy.set(false);
        assert_resumes(&mut chain, &format!("seed {seed}"));
        chain.assert_closed();
    }
}
