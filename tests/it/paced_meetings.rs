//! Meetings of a paced class (SPEC 9.13), in memory, and when datagrams come: secrets that change, repeat, the floor.

use dataplane::Nanos;
use dataplane::ledger::DropReason;
use dataplane::paced::entry::MeetingState;
use wire::cell::Direction::Forward;
use wire::paced::{PacedTerms, Phase};

use crate::common::pacedchain::{Chain, HOPS, LATE, SECRET, client, destination, few_seats, quantiles};

const MILLI: Nanos = 1_000_000;

#[test]
fn two_entries_with_one_secret_meet_and_a_third_waits() {
    let meetings = [(101, SECRET), (102, SECRET), (103, [8; 32]), (104, [8; 32]), (105, [8; 32])];
    let mut chain = Chain::with_meetings(&few_seats(), 5, &meetings).start();
    for of_batch in 0..3 {
        let (from, time) = (chain.now, chain.batch_time());
        chain.talk(&[101, 102, 103, 104, 105], time / 2);
        let (waiting, joined): (Vec<_>, Vec<_>) =
            (101..=105).partition(|entry| chain.shown(*entry).meeting == Some(MeetingState::Waiting));
        let are_joined = joined.iter().all(|entry| chain.shown(*entry).meeting == Some(MeetingState::Joined));
        assert!(are_joined && joined[..2] == [101, 102] && waiting.len() == 1, "{joined:?} and {waiting:?}");
        chain.talk(&[101, 102], time / 2);

        let second = from + 100 * MILLI..from + 1000 * MILLI;
        let reached = |entry: usize| {
            let peers = (101..=105).filter(|peer| *peer != entry);
            let came = |peer: &usize| {
                let of_time = chain.delivered(entry, client(*peer)).into_iter().filter(|(at, _)| second.contains(at));
                let came: Vec<bool> = of_time.map(|(_, came)| came.is_some()).collect();
                assert!(came.iter().all(|one| *one == came[0]), "batch {of_batch}: entry {entry} to {peer}: {came:?}");
                came[0]
            };
            peers.filter(came).collect::<Vec<_>>()
        };
        for pair in [[joined[0], joined[1]], [joined[2], joined[3]]] {
            assert_eq!(pair.map(reached), [vec![pair[1]], vec![pair[0]]], "the ends of a meeting, batch {of_batch}");
        }
        assert_eq!(reached(waiting[0]), [0; 0], "one that waits, batch {of_batch}");
    }
    chain.run(2 * LATE);

    // All batches, both ways.
    let delays = [(101, 102), (102, 101)].map(|(from, to)| chain.delays(from, client(to))).concat();
    let count = delays.len();
    let [p50, _, most] = quantiles(delays);
    println!("{count} datagrams: p50 {p50:.2} ms, at most {most:.2} ms");
    assert!(p50 <= 50.0 && most <= 65.0, "p50 {p50}, at most {most}");
    chain.assert_closed();
}

#[test]
fn new_secret_holds_from_the_next_batch_without_a_setup() {
    const OTHER: [u8; 32] = [8; 32];
    let meetings = [(101, SECRET), (102, SECRET), (103, OTHER)];
    let mut chain = Chain::with_meetings(&few_seats(), 3, &meetings).start();
    let first = chain.batch();
    let setups = chain.times.rounds_of(first, Phase::Setup(1));
    // The setup for the next batch has begun.
    let begun = chain.begins(setups.start + 20);
    chain.run_until(begun);
    chain.meet(101, OTHER);
    for (batch, peers) in (first..).zip([(102, 103), (102, 103), (103, 102), (103, 102)]) {
        let begun = chain.begins(chain.times.first(batch)) + 100 * MILLI;
        let now = chain.now;
        chain.run_until(begun.max(now));
        let (from, (peer, other)) = (chain.now, peers);
        chain.talk(&[101, 102, 103], 2 * chain.batch_time() / 5);
        let [this, joined, waits] = [101, peer, other].map(|entry| chain.shown(entry).meeting.expect("a meeting"));
        let expected = (MeetingState::Joined, MeetingState::Joined, MeetingState::Waiting);
        assert_eq!((this, joined, waits), expected, "batch {}", batch - first);
        chain.run(2 * LATE);
        let came = |one, to| {
            let of_time = chain.delivered(one, client(to)).into_iter().filter(|(at, _)| *at >= from);
            of_time.map(|(_, came)| came.is_some()).collect::<Vec<_>>()
        };
        for (one, to) in [(101, peer), (peer, 101)] {
            assert!(came(one, to).iter().all(|came| *came), "from {one} to {to} in batch {}", batch - first);
        }
        for (one, to) in [(101, other), (other, 101), (other, peer), (peer, other)] {
            assert!(came(one, to).iter().all(|came| !came), "from {one} to {to} in batch {}", batch - first);
        }
        chain.run_to_batch(1);
    }
    chain.assert_closed();
    chain.assert_sealed_once();
}

#[test]
fn repeat_brings_what_all_copies_have_lost() {
    let terms = PacedTerms { repeat: true, ..few_seats() };
    let mut chain = Chain::with_meetings(&terms, 3, &[(101, SECRET), (102, SECRET)]).start();
    chain.lose_rounds();
    chain.talk(&[101, 102, 103], 2 * chain.batch_time());
    chain.run(2 * LATE);
    let [outside, _, most_outside] = quantiles(chain.delays(103, destination()));
    let inside = [(101, 102), (102, 101)].map(|(from, to)| chain.delays(from, client(to)));
    let [inside, _, most_inside] = quantiles(inside.concat());
    println!("outside {outside:.2} and {most_outside:.2} ms, inside {inside:.2} and {most_inside:.2} ms");
    // What came while a full cell was repeated waits for one more round.
    assert!(outside <= 45.0 && most_outside <= 60.0 && inside <= 60.0 && most_inside <= 75.0);
    // One that was rescued leaves the exit with the others of its round, a round later than without repeat.
    let (period, offset) = (chain.times.period(), chain.times.offset(Forward, HOPS));
    for (at, _) in chain.at_destination() {
        assert_eq!(at % period, offset % period, "when datagrams leave the exit");
    }
    chain.assert_closed();
}

#[test]
fn batch_below_the_floor_carries_nothing_and_looks_alike() {
    let mut chain = Chain::new(&PacedTerms { n_min: 3, ..few_seats() }, 3).start();
    let (first, from, time) = (chain.batch(), chain.now, chain.batch_time());
    chain.cut_in_phase(103, Phase::Setup(1), Forward);
    chain.talk(&[101, 102, 103], 3 * time);
    chain.run(2 * LATE);
    let ns = time.as_nanos() as Nanos;
    for entry in [101, 102] {
        assert_eq!(chain.channels_both((1, entry), chain.times.first(first)..chain.times.first(first + 3)), 1);
        let came = |of_batch: u64| -> Vec<bool> {
            let sent = from + of_batch * ns + 60 * MILLI..from + (of_batch + 1) * ns - 100 * MILLI;
            let of_time = chain.delivered(entry, destination()).into_iter().filter(|(at, _)| sent.contains(at));
            of_time.map(|(_, came)| came.is_some()).collect()
        };
        for (of_batch, expected) in [true, false, true].into_iter().enumerate() {
            let came = came(of_batch as u64);
            assert!(came.len() > 200 && came.iter().all(|came| *came == expected), "batch {of_batch}: {came:?}");
        }
    }
    for (batch, expected) in (first..).zip([3, 2, 3]) {
        assert_eq!([2, HOPS].map(|link| chain.channels_both((link, 0), chain.rounds(batch))), [expected; 2]);
    }
    let floored = [chain.ledger(1).cells.forward, chain.ledger(1).cells.backward].map(|of| of.drops(DropReason::Floor));
    assert_eq!(floored, [2 * u64::from(chain.terms.rounds); 2], "every place of both channels, both ways");
    chain.assert_closed();
}
