//! A chain of a paced class, in memory: a channel in every batch, datagrams there and back, loops, constant links.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use dataplane::Nanos;
use dataplane::socket::memory::Datagram;
use wire::cell::Direction;
use wire::ids::Side;
use wire::paced::{ControlSlots, PacedTerms};
use wire::setup::Suite;

use crate::common::pacedchain::{Chain, HOPS, destination, link_address, listener, terms};

const ENTRIES: usize = 3;
const CLIENT: &str = "198.18.1.100:5000";
/// Time between two datagrams of an application. Its phase in a round changes; the mean is 20 ms.
const GAPS_MS: [u64; 5] = [17, 22, 19, 24, 19];

/// By then the cells of a round have left everywhere.
const LATE: Duration = Duration::from_millis(100);

/// A chain whose entries have channels in the running batch, which has just begun.
fn started() -> Chain {
    started_with(&terms())
}

fn started_with(terms: &PacedTerms) -> Chain {
    let mut chain = Chain::new(terms, ENTRIES);
    for _ in 0..8 {
        chain.run_to_batch(1);
        if (0..ENTRIES).all(|entry| chain.setups(101 + entry) > 0) {
            // The setup was for the batch that begins now, unless it began just now.
            chain.run_to_batch(1);
            return chain;
        }
    }
    panic!("no channels after 8 batches: {:?} {:?}", chain.refused(101), chain.events);
}

/// Applications that send a datagram to every entry, and a destination that answers.
#[derive(Default)]
struct Calls {
    sent: usize,
    delays: Vec<Nanos>,
    answers: usize,
}

impl Calls {
    /// Sends for this time, then waits for what is under way.
    fn run(&mut self, chain: &mut Chain, time: Duration) {
        let end = chain.now + time.as_nanos() as Nanos;
        for gap in GAPS_MS.into_iter().cycle() {
            if chain.now >= end {
                break;
            }
            for entry in 0..ENTRIES {
                let bytes = format!("{} from {entry}", self.sent).into_bytes();
                chain.apps.send(Datagram { from: CLIENT.parse().unwrap(), to: listener(entry), bytes });
                self.sent += 1;
            }
            self.wait(chain, Duration::from_millis(gap));
        }
        for _ in 0..20 {
            self.wait(chain, Duration::from_millis(10));
        }
    }

    fn wait(&mut self, chain: &mut Chain, time: Duration) {
        chain.run(time);
        for datagram in std::iter::from_fn(|| chain.apps.receive(destination())).collect::<Vec<_>>() {
            chain.apps.send(Datagram { from: destination(), to: datagram.from, bytes: datagram.bytes });
        }
        self.answers += std::iter::from_fn(|| chain.apps.receive(CLIENT.parse().unwrap())).count();
    }

    /// Fails if a datagram or an answer was lost; notes how long those to the destination took.
    fn assert_nothing_lost(&mut self, chain: &Chain) {
        let seen = chain.at_apps.borrow();
        let mut sent = HashMap::new();
        for seen in seen.iter().filter(|seen| seen.from == CLIENT.parse().unwrap()) {
            sent.insert(seen.bytes.clone(), seen.at);
        }
        let arrived = seen.iter().filter(|seen| seen.to == destination());
        self.delays = arrived.filter_map(|seen| Some(seen.at - sent.remove(&seen.bytes)?)).collect();
        self.delays.sort_unstable();
        let lost: Vec<_> = sent.keys().map(|bytes| String::from_utf8_lossy(bytes)).collect();
        assert!(lost.is_empty(), "{} of {} lost: {lost:?}", lost.len(), self.sent);
        assert_eq!(self.answers, self.sent, "answers");
    }
}

/// The entry or hop that sends on a link, the one that receives, and the time after the begin of a round at which its
/// cells leave.
fn ends(chain: &Chain, link: usize, direction: Direction, entry: usize) -> (Vec<usize>, Nanos) {
    let up = if link == 1 { 101 + entry } else { link - 1 };
    match direction {
        Direction::Forward if link == 1 => (vec![up, link], 0),
        Direction::Forward => (vec![up, link], chain.times.offset(direction, link - 1)),
        Direction::Backward => (vec![link, up], chain.times.offset(direction, link)),
    }
}

/// Fails unless a link carries in every round what SPEC 9.6 says for the channels of so many entries, and of the loops
/// of the mixes before it.
fn assert_constant(chain: &Chain, (link, entry): (usize, usize), rounds: Range<u64>, entries: usize) {
    let terms = &chain.terms;
    let channels = entries + 2 * usize::from(terms.loops) * (link - 1);
    for direction in [Direction::Forward, Direction::Backward] {
        let slots = ControlSlots::new(terms, Suite::Hybrid, HOPS, link, direction);
        let control = |round| {
            let slots = slots.of(&chain.times, round);
            slots.placed + slots.link
        };
        let cells = usize::from(terms.cells);
        let expected = rounds.clone().map(|round| match link {
            1 => 2 * cells + control(round) + control(round - u64::from(terms.gap)),
            _ => cells * channels + control(round),
        });
        let (nodes, offset) = ends(chain, link, direction, entry);
        let (from, to) = match direction {
            Direction::Forward => (link_address(nodes[0], Side::Down), link_address(nodes[1], Side::Up)),
            Direction::Backward => (link_address(nodes[0], Side::Up), link_address(nodes[1], Side::Down)),
        };
        let found = chain.per_round((from, to), offset, rounds.clone());
        let differ =
            |(at, (found, expected)): (usize, (usize, usize))| (found != expected).then_some((at, found, expected));
        let wrong: Vec<_> = found.into_iter().zip(expected).enumerate().filter_map(differ).take(5).collect();
        assert!(wrong.is_empty(), "link {link} {direction:?}: (round, found, expected) {wrong:?}");
    }
}

fn assert_all_constant(chain: &Chain, rounds: Range<u64>) {
    (0..ENTRIES).for_each(|entry| assert_constant(chain, (1, entry), rounds.clone(), 1));
    (2..=HOPS).for_each(|link| assert_constant(chain, (link, 0), rounds.clone(), ENTRIES));
}

#[test]
fn every_batch_has_channels_that_lose_nothing() {
    let mut chain = started();
    let (first, setups) = (chain.batch(), [101, 102, 103].map(|entry| chain.setups(entry)));
    let batch = Duration::from_nanos(chain.times.begin(chain.times.first(1)));
    let mut calls = Calls::default();
    calls.run(&mut chain, 3 * batch);
    calls.assert_nothing_lost(&chain);
    let ms = |at: usize| calls.delays[at] as f64 / 1e6;
    let (p50, most) = (ms(calls.delays.len() / 2), ms(calls.delays.len() - 1));
    println!("{} datagrams: p50 {p50:.2} ms, at most {most:.2} ms", calls.sent);
    assert!(p50 <= 35.0 && most <= 36.0, "p50 {p50}, at most {most}");

    while chain.batch() < first + 7 {
        chain.run_to_batch(1);
    }
    let later = [101, 102, 103].map(|entry| chain.setups(entry));
    assert_eq!(later, setups.map(|before| before + 7), "one in each batch");
    // Backward cells of the last rounds are under way. With traffic and without.
    chain.run(LATE);
    assert_all_constant(&chain, chain.times.first(first)..chain.times.first(first + 7));
    chain.assert_closed();
}

#[test]
fn loops_of_mixes_meet_and_every_link_is_constant() {
    let mut chain = started_with(&PacedTerms { loops: 2, ..terms() });
    let (first, batch) = (chain.batch(), Duration::from_nanos(chain.times.begin(chain.times.first(1))));
    // Before the first bundle no loop is set up.
    let failed = |chain: &Chain| (1..HOPS).map(|mix| chain.loops_failed(mix)).collect::<Vec<_>>();
    let at_start = failed(&chain);
    let mut calls = Calls::default();
    calls.run(&mut chain, 2 * batch);
    calls.assert_nothing_lost(&chain);
    while chain.batch() < first + 6 {
        chain.run_to_batch(1);
    }
    chain.run(LATE);
    assert_all_constant(&chain, chain.times.first(first)..chain.times.first(first + 6));
    for mix in 1..HOPS {
        let view = chain.loops(mix);
        assert!(view.places >= 6 * 4 * u64::from(chain.terms.rounds) && view.met > 0, "mix {mix}: {view:?}");
        assert_eq!((view.lost, view.garbled), (0, 0), "mix {mix}");
        // A round leaves Mix `mix` forward, and its cells are back before it leaves backward.
        let way = chain.times.offset(Direction::Backward, mix) - chain.times.offset(Direction::Forward, mix);
        let delay = view.delay.unwrap();
        assert!(delay.batch == first + 5 && delay.p50 > way / 2 && delay.p99 <= way, "mix {mix}: {delay:?} of {way}");
    }
    assert_eq!(failed(&chain), at_start);
    chain.assert_closed();
}

#[test]
fn copies_make_up_for_a_loss_of_one_percent() {
    let mut chain = started();
    let (mut count, len) = (0, terms().class.cell_len());
    let entries = |at| (0..ENTRIES).any(|entry| link_address(101 + entry, Side::Down) == at);
    // Never both copies of a cell, which are one round apart.
    chain.tap(move |datagram| {
        let is_counted = datagram.bytes.len() == len && (entries(datagram.from) || entries(datagram.to));
        count += u64::from(is_counted);
        !(is_counted && count.is_multiple_of(100))
    });
    let first = chain.batch();
    let mut calls = Calls::default();
    calls.run(&mut chain, Duration::from_millis(4500));
    calls.assert_nothing_lost(&chain);
    chain.run_to_batch(2);
    chain.run(LATE);
    let rounds = chain.times.first(first)..chain.times.first(first + 2);
    (2..=HOPS).for_each(|link| assert_constant(&chain, (link, 0), rounds.clone(), ENTRIES));
}

#[test]
fn entry_that_stops_changes_nothing_for_others() {
    let mut chain = started();
    chain.run(Duration::from_millis(2500));
    let stopped = link_address(103, Side::Down);
    chain.tap(move |datagram| datagram.from != stopped);
    let first = chain.batch();
    chain.run_to_batch(3);
    chain.run(LATE);
    let rounds = |batches: Range<u64>| chain.times.first(batches.start)..chain.times.first(batches.end);
    for entry in 0..ENTRIES - 1 {
        assert_constant(&chain, (1, entry), rounds(first..first + 3), 1);
    }
    // Its channel of the next batch was set up.
    for link in 2..=HOPS {
        assert_constant(&chain, (link, 0), rounds(first..first + 2), ENTRIES);
        assert_constant(&chain, (link, 0), rounds(first + 2..first + 3), ENTRIES - 1);
    }
}
