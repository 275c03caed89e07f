//! A chain of a paced class, in memory: a channel in every batch, datagrams there and back, loops, constant links.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use control::Event;
use control::paced::{Cause, PacedEvent};
use control::trust::hop::TrustEvent;
use dataplane::Nanos;
use dataplane::ledger::DropReason;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::ids::Side;
use wire::paced::{PacedTerms, Phase};

use crate::common::pacedchain::{Chain, ENTRIES, HOPS, LATE, destination, link_address, quantiles, terms};

/// A chain whose entries have channels in the running batch, which has just begun.
fn started() -> Chain {
    Chain::new(&terms(), ENTRIES.len()).start()
}

/// All entries send for this time, and the destination answers. No datagram and no answer is lost. Returns how long
/// those to the destination took.
fn talk_without_loss(chain: &mut Chain, time: Duration) -> Vec<Nanos> {
    chain.talk(&ENTRIES, time);
    chain.run(LATE);
    chain.answer();
    chain.run(LATE);
    let delays = ENTRIES.map(|entry| chain.delays(entry, destination())).concat();
    assert_eq!(ENTRIES.map(|entry| chain.delays_of_answers(entry)).concat().len(), delays.len(), "answers");
    delays
}

/// True if this is the access link's address of an entry.
fn is_entry(at: SocketAddr) -> bool {
    ENTRIES.iter().any(|entry| link_address(*entry, Side::Down) == at)
}

#[test]
fn first_rounds_of_an_entry_do_not_show_its_hosts_clock() {
    let mut chain = Chain::new(&terms(), ENTRIES.len());
    let next = |chain: &Chain| ENTRIES.map(|entry| chain.entry_status(entry).next_batch);
    let (first, now) = (next(&chain), chain.batch());
    // Up to 12 h behind, which is 8,437 batches.
    assert!(first.iter().all(|batch| (now - 8_440..now).contains(batch)), "{first:?} {now}");
    assert_eq!(first.iter().collect::<HashSet<_>>().len(), ENTRIES.len(), "{first:?}");
    chain.run(Duration::from_secs(1));
    assert!(next(&chain).iter().all(|batch| batch.abs_diff(now) <= 3), "the rounds of Mix 1");
}

#[test]
fn every_batch_has_channels_that_lose_nothing() {
    let mut chain = started();
    let (first, setups, batch) = (chain.batch(), ENTRIES.map(|entry| chain.setups(entry)), chain.batch_time());
    let delays = talk_without_loss(&mut chain, 3 * batch);
    let (count, [p50, _, most]) = (delays.len(), quantiles(delays));
    println!("{count} datagrams: p50 {p50:.2} ms, at most {most:.2} ms");
    assert!(p50 <= 35.0 && most <= 36.0, "p50 {p50}, at most {most}");

    while chain.batch() < first + 7 {
        chain.run_to_batch(1);
    }
    let later = ENTRIES.map(|entry| chain.setups(entry));
    assert_eq!(later, setups.map(|before| before + 7), "one in each batch");
    // Backward cells of the last rounds are under way. With traffic and without.
    chain.run(LATE);
    chain.assert_all_constant(&ENTRIES, chain.times.first(first)..chain.times.first(first + 7));
    chain.assert_closed();
}

#[test]
fn loops_of_mixes_meet_and_every_link_is_constant() {
    let mut chain = Chain::new(&PacedTerms { loops: 2, ..terms() }, ENTRIES.len()).start();
    let (first, batch) = (chain.batch(), chain.batch_time());
    // Before the first bundle no loop is set up.
    let failed = |chain: &Chain| (1..HOPS).map(|mix| chain.loops_failed(mix)).collect::<Vec<_>>();
    let at_start = failed(&chain);
    talk_without_loss(&mut chain, 2 * batch);
    while chain.batch() < first + 6 {
        chain.run_to_batch(1);
    }
    chain.run(LATE);
    chain.assert_all_constant(&ENTRIES, chain.times.first(first)..chain.times.first(first + 6));
    for mix in 1..HOPS {
        let view = chain.loops(mix);
        let counts = view.counts;
        assert!(counts.places >= 6 * 4 * u64::from(chain.terms.rounds) && view.met > 0, "mix {mix}: {view:?}");
        assert_eq!((counts.lost, counts.garbled, counts.link_lost), (0, 0, 0), "mix {mix}");
        let loops = chain.hop_status(mix).loops.expect("it has loops");
        assert!(loops.set_up >= 6 * 4 && loops.failed == 0 && loops.dropping.is_empty(), "mix {mix}: {loops:?}");
        // A round leaves Mix `mix` forward, and its cells are back before it leaves backward.
        let way = chain.times.offset(Direction::Backward, mix) - chain.times.offset(Direction::Forward, mix);
        let delay = view.delay.unwrap();
        assert!(delay.batch == first + 5 && delay.p50 > way / 2 && delay.p99 <= way, "mix {mix}: {delay:?} of {way}");
    }
    assert_eq!(failed(&chain), at_start);
    chain.assert_closed();
}

#[test]
fn second_copy_makes_up_for_a_loss_of_one_percent() {
    let mut chain = started();
    let (mut count, len) = (0, terms().class.cell_len());
    // Never both copies of a cell, which are one round apart.
    chain.tap(move |datagram| {
        let is_counted = datagram.bytes.len() == len && (is_entry(datagram.from) || is_entry(datagram.to));
        count += u64::from(is_counted);
        !(is_counted && count.is_multiple_of(100))
    });
    let first = chain.batch();
    talk_without_loss(&mut chain, Duration::from_millis(4500));
    chain.run_to_batch(2);
    chain.run(LATE);
    chain.assert_constant_behind_mix_1(ENTRIES.len(), chain.times.first(first)..chain.times.first(first + 2));
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
    for entry in [101, 102] {
        assert_eq!(chain.channels_both((1, entry), rounds(first..first + 3)), 1);
    }
    // Its channel of the next batch was set up.
    chain.assert_constant_behind_mix_1(3, rounds(first..first + 2));
    chain.assert_constant_behind_mix_1(2, rounds(first + 2..first + 3));
}

/// An attacker drops cells of entry 102, each in all copies: those of which the first copy is `nth` (from 1) at a time,
/// if `drops` says so. Its alarm is up within 10 s, and that of no other node.
fn dropped_cells_raise_the_alarm(of: Direction, mut drops: impl FnMut(usize, Nanos) -> bool + 'static) {
    let mut chain = started();
    chain.run(Duration::from_secs(10));
    assert_eq!(chain.dropping(), [], "nothing is lost");
    let victim = link_address(102, Side::Down);
    // The attacker reads bytes, so it knows the copies of what it has dropped.
    let (mut seen, mut dropped) = (HashSet::new(), HashSet::new());
    chain.attack(move |now, datagram| {
        if (if of == Direction::Forward { datagram.from } else { datagram.to }) != victim {
            return vec![(0, datagram)];
        }
        let is_first = seen.insert(datagram.bytes.clone());
        if is_first && drops(seen.len(), now) {
            dropped.insert(datagram.bytes.clone());
        }
        if dropped.contains(&datagram.bytes) { Vec::new() } else { vec![(0, datagram)] }
    });
    chain.run(Duration::from_secs(10));
    let [(102, Cause::Lost { direction, places, lost })] = chain.dropping()[..] else {
        panic!("{:?}", chain.dropping())
    };
    assert!(direction == of && places == 1000 && (5..10).contains(&lost), "{direction:?}: {lost} of {places}");
    let status = chain.entry_status(102);
    let [this, other] =
        if of == Direction::Forward { [status.forward, status.backward] } else { [status.backward, status.forward] };
    assert!(status.is_dropping() && this.lost >= lost && other.lost == 0, "{status:?}");
    assert!(!chain.entry_status(101).is_dropping());
}

#[test]
fn forward_cells_of_one_user_that_are_dropped_raise_its_alarm() {
    dropped_cells_raise_the_alarm(Direction::Forward, |nth, _| nth.is_multiple_of(50));
}

#[test]
fn backward_cells_of_one_user_that_are_dropped_raise_its_alarm() {
    dropped_cells_raise_the_alarm(Direction::Backward, |nth, _| nth.is_multiple_of(50));
}

/// As `attack::active::DropWatermark`: 2 of 100 slots of 10 ms.
#[test]
fn drop_watermark_raises_the_alarm() {
    let slots: Vec<bool> =
        ChaCha20Rng::seed_from_u64(23).random_iter().map(|share: f64| share < 0.02).take(4000).collect();
    let marks = move |_: usize, now: Nanos| slots[(now / 10_000_000) as usize % slots.len()];
    dropped_cells_raise_the_alarm(Direction::Forward, marks);
}

#[test]
fn loss_of_one_percent_raises_no_alarm() {
    let mut chain = started();
    let mut rng = ChaCha20Rng::seed_from_u64(11);
    chain.tap(move |datagram| {
        let is_access = is_entry(datagram.from) || is_entry(datagram.to);
        !(is_access && rng.random_bool(0.01))
    });
    let before = ENTRIES.map(|entry| chain.entry_status(entry));
    chain.run(Duration::from_secs(25));
    assert_eq!(chain.dropping(), []);
    for (entry, before) in ENTRIES.into_iter().zip(before) {
        let status = chain.entry_status(entry);
        assert!(status.forward.places >= 2000 && status.backward.places >= 2000, "{status:?}");
        assert!(status.has_channel && status.failed == before.failed, "{status:?}");
    }
}

#[test]
fn suppressed_setup_raises_the_alarm_for_its_batch() {
    let mut chain = started();
    let coming = chain.batch() + 2;
    chain.run_to_batch(1);
    let before = [102, 101].map(|entry| chain.entry_status(entry).failed);
    // The cells of 22 rounds in a row are 21 places, less than half of a phase. Too few shards of the setup are left.
    let victim = link_address(102, Side::Down);
    chain.tap(move |datagram| datagram.from != victim);
    chain.run(Duration::from_millis(220));
    chain.tap(|_| true);
    chain.run(Duration::from_secs(25));
    let setups: Vec<_> =
        chain.dropping().into_iter().filter(|(_, cause)| matches!(cause, Cause::Setup { .. })).collect();
    let [(102, Cause::Setup { batch, .. })] = setups[..] else { panic!("{:?}", chain.dropping()) };
    assert_eq!(batch, coming);
    let not_joined = |(node, event): &(usize, PacedEvent)| {
        *node == 102 && matches!(event, PacedEvent::NotJoined { batch, .. } if *batch == coming)
    };
    assert_eq!(chain.paced_events().filter(not_joined).count(), 1);
    let [status, other] = [102, 101].map(|entry| chain.entry_status(entry));
    assert!(status.is_dropping() && status.failed == before[0] + 1 && status.has_channel, "{status:?}");
    assert!(!other.is_dropping() && other.failed == before[1], "{other:?}");
}

/// An ack is in every round of its phase, and nobody knows which cells are of it: all have to go. That explains the
/// setup that failed, but not the losses.
#[test]
fn suppressed_ack_raises_the_alarm_within_10_s() {
    let mut chain = started();
    chain.run_to_batch(1);
    let before = [102, 101].map(|entry| chain.entry_status(entry).failed);
    chain.cut_in_phase(102, Phase::Ack(1), Direction::Backward);
    let begin = chain.begins(chain.times.rounds_of(chain.batch(), Phase::Ack(1)).start);
    chain.run_until(begin + 10_000_000_000);
    let alarms = chain.dropping();
    let is_expected = matches!(alarms[..], [(102, Cause::Lost { direction: Direction::Backward, lost: 5.., .. })]);
    assert!(is_expected, "{alarms:?}");
    let [failed, of_other] = [102, 101].map(|entry| chain.entry_status(entry).failed);
    assert_eq!([failed, of_other], [before[0] + 1, before[1]]);
}

#[test]
fn nodes_show_batches_clocks_reports_and_company() {
    let mut chain = started();
    let events = |chain: &Chain, entry: usize| -> Vec<PacedEvent> {
        chain.paced_events().filter_map(|(node, event)| (node == entry).then_some(event)).collect()
    };
    chain.run_to_batch(1);
    chain.run(Duration::from_secs(3));
    let batch = chain.batch();
    for entry in ENTRIES {
        let status = chain.entry_status(entry);
        assert!(status.has_channel && status.joined >= 2, "{status:?}");
        assert_eq!(status.next_batch, batch + 1);
        assert!(status.next_batch_in > Duration::from_secs(2) && status.next_batch_in < Duration::from_millis(2200));
        assert_eq!(status.company.map(|company| (company.channels, company.n_min)), Some((3, 1)));
        // Both clocks are the same, and the network takes no time.
        assert!(status.clock.is_some() && status.lead_ns.unwrap().abs() < 10_000_000, "{status:?}");
        assert!(status.forward.places >= 700 && status.forward.lost == 0, "{status:?}");
        assert!(status.backward.places >= 400 && status.backward.lost == 0, "{status:?}");

        // The chain has just started, so it had no bundle for the first of them.
        let events = events(&chain, entry);
        let promised = events.iter().find_map(|event| match event {
            PacedEvent::JoinsAt { batch, .. } => Some(*batch),
            _ => None,
        });
        let batches = |joined: bool| -> Vec<u64> {
            let of = |event: &PacedEvent| match event {
                PacedEvent::Joined { batch } if joined => Some(*batch),
                PacedEvent::NotJoined { batch, .. } if !joined => Some(*batch),
                _ => None,
            };
            events.iter().filter_map(of).collect()
        };
        let (failed, joined) = (batches(false), batches(true));
        assert_eq!(failed.iter().chain(&joined).min().copied(), promised);
        assert_eq!((failed.len() as u64, joined.len() as u64), (status.failed, status.joined));
        assert!(joined.iter().copied().eq(batch + 1 - status.joined..=batch), "{joined:?}");
        assert!(!events.iter().any(|event| matches!(event, PacedEvent::Dropping(_) | PacedEvent::LeadMoved { .. })));
    }
    for hop in 1..=HOPS {
        let status = chain.hop_status(hop);
        assert_eq!(status.batch.map(|size| size.channels), Some(ENTRIES.len()), "hop {hop}");
        let clocks = usize::from(hop > 1) + usize::from(hop < HOPS);
        assert_eq!(status.clocks.len(), clocks, "hop {hop}: {:?}", status.clocks);
        assert!(status.clocks.iter().all(|clock| clock.clock.offset_ns.abs() < 2_000_000), "hop {hop}");
        assert_eq!((status.forward.last.is_some(), status.backward.last.is_some()), (hop < HOPS, hop > 1));
        assert_eq!((status.forward.lost, status.backward.lost), (0, 0), "hop {hop}");
    }
    assert_eq!(chain.hop_status(1).batch.unwrap().prefixes, ENTRIES.len(), "each has an address of its own");
    let is_of_clocks = |(_, event): &(usize, Event)| match event {
        Event::Paced(event) => matches!(event, PacedEvent::ClockOff { .. }),
        Event::Trust(event) => matches!(event, TrustEvent::ClockOff { .. } | TrustEvent::ClockStops { .. }),
        _ => false,
    };
    assert!(!chain.events.iter().any(is_of_clocks));
    // The second copy of a cell on link 1 does not count as a replay.
    for (node, direction) in [(1, Direction::Forward), (101, Direction::Backward)] {
        let cells = chain.ledger(node).cells[direction];
        assert!(cells.drops(DropReason::Copy) > 0 && cells.drops(DropReason::Replay) == 0, "{cells:?}");
        let refused = chain.refused(node);
        assert!(!refused.iter().any(|(why, _)| why.starts_with("cell-")), "control sees no copy: {refused:?}");
    }
}
