//! Failures in a paced chain, in memory: nodes that restart, stop or have a wrong clock, lost setups and acks.
//!
//! After each of them the channels come back, other links carry what they carried, and no cell is unaccounted for.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

use dataplane::Nanos;
use dataplane::ledger::DropReason;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::paced::{PacedTerms, Phase};

use crate::common::pacedchain::checks::{DIRECTIONS, LATE, ends};
use crate::common::pacedchain::{Chain, HOPS, Seen, destination, terms};

const ENTRIES: [usize; 3] = [101, 102, 103];
const SECOND: Duration = Duration::from_secs(1);

/// As few slots as three entries need.
fn few_seats() -> PacedTerms {
    PacedTerms { seats: 6, ..terms() }
}

fn started() -> Chain {
    Chain::new(&few_seats(), ENTRIES.len()).start()
}

fn batch(chain: &Chain) -> Duration {
    Duration::from_nanos(chain.times.begin(chain.times.first(1)))
}

/// Fails if a datagram that an entry's application sent in this time has not come. Times are those of sending.
fn assert_delivered(chain: &Chain, entry: usize, sent: Range<Nanos>) {
    let of_time = chain.delivered(entry, destination()).into_iter().filter(|(at, _)| sent.contains(at));
    let (came, lost): (Vec<_>, Vec<_>) = of_time.partition(|(_, came)| came.is_some());
    let lost: Vec<_> = lost.iter().map(|(at, _)| at / 1_000_000).collect();
    assert!(lost.is_empty() && !came.is_empty(), "entry {entry}: {} came, lost those of {lost:?} ms", came.len());
}

/// Fails unless an entry has sent each cell of these rounds `copies` times, and as many cells in every round: no place
/// was sealed twice.
fn assert_sealed_once(chain: &Chain, entry: usize, rounds: Range<u64>) {
    assert_eq!(chain.channels((1, entry), Direction::Forward, rounds.clone()), 1);
    let (from, to) = ends((1, entry), Direction::Forward);
    let mut times = HashMap::<Vec<u8>, usize>::new();
    let inside = rounds.start + 1..rounds.end - 1;
    for seen in chain.seen().iter().filter(|seen| (seen.from, seen.to) == (from, to)) {
        *times.entry(seen.bytes.clone()).or_default() += usize::from(inside.contains(&chain.round_at(seen.at)));
    }
    let copies = usize::from(chain.terms().copies);
    let most = times.values().copied().max();
    assert_eq!(most, Some(copies), "entry {entry}: how often one datagram was sent");
}

/// What links other than those of `hop` have carried in these batches: one number of cells in each round of a batch.
fn assert_others_constant(chain: &Chain, hop: usize, batches: Range<u64>) {
    for rounds in batches.map(|batch| chain.rounds(batch)) {
        for entry in ENTRIES.into_iter().filter(|_| hop != 1) {
            assert_eq!(chain.channels_both((1, entry), rounds.clone()), 1);
        }
        for link in (2..=HOPS).filter(|link| *link != hop && *link != hop + 1) {
            for direction in DIRECTIONS {
                chain.channels((link, 0), direction, rounds.clone());
            }
        }
    }
}

/// Links 2 and on carry one number of cells in each round of a batch, the same both ways.
fn assert_inner_links_constant(chain: &Chain, batches: Range<u64>) {
    for (batch, link) in batches.flat_map(|batch| (2..=HOPS).map(move |link| (batch, link))) {
        chain.channels_both((link, 0), chain.rounds(batch));
    }
}

/// True if all links have the channels of all entries in a batch.
fn is_complete(chain: &Chain, batch: u64) -> bool {
    let is_full = |link, direction| chain.carries(link, direction, chain.rounds(batch)) == Ok(ENTRIES.len());
    (2..=HOPS).all(|link| DIRECTIONS.into_iter().all(|direction| is_full((link, 0), direction)))
}

/// Fails unless the datagrams of the next second all come.
fn assert_works(chain: &mut Chain) {
    let from = chain.now;
    chain.talk(&ENTRIES, SECOND);
    chain.run(2 * LATE);
    ENTRIES.iter().for_each(|entry| assert_delivered(chain, *entry, from..from + SECOND.as_nanos() as Nanos));
    chain.assert_closed();
}

/// Time from the restart of a hop until entries have channels again, at most (SPEC 9.7.7): it signs the first interval
/// that begins a fifth of one after its start, that bundle is for batches that begin in the interval after it, and
/// their setups are for the batches after those.
fn back_within(chain: &Chain) -> Nanos {
    let interval = 10 * SECOND;
    (interval * 11 / 5 + 2 * batch(chain)).as_nanos() as Nanos
}

/// What the links have carried since a batch.
fn view(chain: &Chain, first: u64) -> String {
    let of = |batch, link| DIRECTIONS.map(|direction| chain.carries((link, 0), direction, chain.rounds(batch)));
    let all = (first..chain.batch()).flat_map(|batch| (2..=HOPS).map(move |link| (batch, link)));
    let lines = all.map(|(batch, link)| format!("\nbatch {}, link {link}: {:?}", batch - first, of(batch, link)));
    lines.chain([format!("{:?}", chain.events)]).collect()
}

/// A hop dies and starts again. Returns the chain when the channels of all entries are back, with the last batch.
fn restarted(hop: usize) -> Chain {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    chain.restart(hop);
    let until = chain.now + back_within(&chain);
    let is_back = |chain: &mut Chain| {
        chain.run_batches(1);
        is_complete(chain, chain.batch() - 1)
    };
    // In the batch of the restart its links carry less.
    chain.run_batches(1);
    while !is_back(&mut chain) {
        assert!(
            chain.now < until,
            "hop {hop}: not all channels after {} batches: {}",
            chain.batch() - first,
            view(&chain, first)
        );
    }
    println!("hop {hop}: channels in batch {} after the restart", chain.batch() - 1 - first);
    assert_works(&mut chain);
    assert_others_constant(&chain, hop, first..chain.batch());
    for entry in ENTRIES {
        assert_sealed_once(&chain, entry, chain.times.first(first)..chain.times.first(chain.batch()));
    }
    chain
}

#[test]
fn restarted_mix_has_channels_again_others_are_constant() {
    restarted(2);
}

#[test]
fn restarted_first_mix_finds_entries_that_never_paused() {
    restarted(1);
}

#[test]
fn restarted_exit_has_channels_again_others_are_constant() {
    restarted(HOPS);
}

#[test]
fn restarted_entry_joins_again_and_others_notice_nothing() {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    chain.restart(103);
    let (from, time) = (chain.now, 3 * batch(&chain));
    chain.talk(&[101, 102], time);
    // The parts of its bundle take up to an interval, 10 s (SPEC 9.16.2): two of these short batches.
    while chain.batch() < first + 4 || !is_complete(&chain, chain.batch() - 1) {
        assert!(chain.batch() < first + 6, "{}", view(&chain, first));
        chain.run_batches(1);
    }
    assert_works(&mut chain);
    for entry in [101, 102] {
        assert_delivered(&chain, entry, from..from + time.as_nanos() as Nanos);
        let rounds = chain.times.first(first)..chain.times.first(chain.batch());
        assert_eq!(chain.channels_both((1, entry), rounds), 1);
    }
    // The channels of its first life last as long as their batches.
    assert!(is_complete(&chain, first) && is_complete(&chain, first + 1), "{}", view(&chain, first));
    assert_inner_links_constant(&chain, first..chain.batch());
}

/// A node does not run for 2 s in the middle of a batch.
fn stopped(node: usize) -> Chain {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    chain.stop(node, 2 * SECOND);
    chain.talk(&ENTRIES, 2 * SECOND);
    // Those that have lost their link shake hands.
    chain.talk(&ENTRIES, SECOND / 2);
    assert_works(&mut chain);
    while chain.batch() < first + 3 {
        chain.run_to_batch(1);
    }
    chain.run(LATE);
    assert!(is_complete(&chain, first + 2), "two batches later");
    assert_works(&mut chain);
    chain
}

#[test]
fn stopped_hop_goes_on_with_its_channels() {
    for hop in [2, HOPS] {
        let chain = stopped(hop);
        let first = chain.batch() - 3;
        assert_others_constant(&chain, hop, first..chain.batch());
        let rounds = chain.times.first(first)..chain.times.first(chain.batch());
        ENTRIES.iter().for_each(|entry| assert_sealed_once(&chain, *entry, rounds.clone()));
    }
}

#[test]
fn stopped_entry_leaves_all_other_links_as_they_were() {
    let chain = stopped(103);
    let first = chain.batch() - 3;
    for rounds in (first..chain.batch()).map(|batch| chain.rounds(batch)) {
        for entry in [101, 102] {
            assert_eq!(chain.channels_both((1, entry), rounds.clone()), 1);
        }
    }
    assert_inner_links_constant(&chain, first..chain.batch());
    assert!(is_complete(&chain, first), "its running channel");
    let skipped = chain.shown(103).skipped;
    assert!((195..=201).contains(&skipped), "{skipped} rounds were not sent");
}

/// How far the cells of each round leave a hop from when they are due by a right clock, at most.
fn most_off_time(chain: &Chain, hop: usize, direction: Direction, rounds: Range<u64>) -> Duration {
    let link = if direction == Direction::Forward { hop + 1 } else { hop };
    let (from, to) = ends((link, 0), direction);
    let (offset, period) = (chain.times.offset(direction, hop), chain.times.begin(1));
    let of_link = |seen: &&Seen| (seen.from, seen.to) == (from, to) && rounds.contains(&chain.round_at(seen.at));
    let off = |seen: &Seen| {
        let after = (seen.at + period - offset % period) % period;
        after.min(period - after)
    };
    Duration::from_nanos(chain.seen().iter().filter(of_link).map(off).max().expect("cells"))
}

#[test]
fn stepped_clock_of_a_hop_moves_its_rounds_by_100_ppm() {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    for (hop, by_ms) in [(2, 100), (3, -100)] {
        chain.step_clock(hop, by_ms * 1_000_000);
    }
    let from = chain.now;
    let time = 2 * batch(&chain);
    chain.talk(&ENTRIES, time);
    chain.run(2 * LATE);
    // Hops 2 and 3 drift apart by 200 ppm, 2 ms in 10 s: that is the step of their link.
    ENTRIES.iter().for_each(|entry| assert_delivered(&chain, *entry, from..from + time.as_nanos() as Nanos * 9 / 10));
    chain.run_batches(1);
    for batch in first..chain.batch() {
        assert!(is_complete(&chain, batch), "batch {batch}");
    }
    assert_others_constant(&chain, 0, first..chain.batch());
    let rounds = chain.times.first(first)..chain.round_at(from + time.as_nanos() as Nanos);
    for (hop, direction) in [(2, Direction::Forward), (2, Direction::Backward), (3, Direction::Forward)] {
        let off = most_off_time(&chain, hop, direction, rounds.clone());
        let expected = Duration::from_nanos((chain.now - from) / 10_000 + 100_000);
        assert!(off <= expected && off > Duration::from_micros(500), "hop {hop} {direction:?}: off by {off:?}");
    }
    chain.assert_closed();
}

#[test]
fn clock_that_steps_by_an_hour_stops_no_round() {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    chain.step_clock(2, 3_600_000_000_000);
    let stepped = chain.now;
    chain.talk(&ENTRIES, SECOND);
    chain.run_batches(5);
    let back = chain.batch();
    assert!(chain.events.iter().any(|event| event.starts_with("ClockStops")), "it says why it signs nothing");
    chain.step_clock(2, -3_600_000_000_000);
    let until = chain.now + back_within(&chain);
    while !is_complete(&chain, chain.batch() - 1) || chain.batch() < back + 2 {
        assert!(chain.now < until, "{} batches after the clock was right again", chain.batch() - back);
        chain.run_batches(1);
    }
    assert_works(&mut chain);
    let one = stepped..stepped + SECOND.as_nanos() as Nanos;
    ENTRIES.iter().for_each(|entry| assert_delivered(&chain, *entry, one.clone()));
    assert_others_constant(&chain, 0, first..chain.batch());
    let channels: Vec<_> =
        (first..chain.batch()).map(|batch| chain.channels_both((3, 0), chain.rounds(batch))).collect();
    println!("channels in each batch since the step: {channels:?}; set back after {}", back - first);
    let off = most_off_time(&chain, 2, Direction::Forward, chain.times.first(first)..chain.times.first(chain.batch()));
    let expected = Duration::from_nanos((chain.now - stepped) / 10_000 + 100_000);
    assert!(off <= expected, "off by {off:?}, at most {expected:?}");
}

/// One entry has no channel in a batch, because its cells of a phase were lost; in that batch links 2 and on carry
/// `channels`. Others notice nothing, and its flow goes on in the next batch. Returns how many cells the exit could not
/// open from that batch on.
fn without_a_channel(phase: Phase, direction: Direction, channels: usize) -> u64 {
    let mut chain = started();
    let garbled = |chain: &Chain| chain.ledger(HOPS).cells.forward.drops(DropReason::Garbled);
    chain.talk(&ENTRIES, SECOND);
    chain.run_to_batch(1);
    let first = chain.batch();
    chain.cut_in_phase(103, phase, direction);
    let (from, time) = (chain.now, batch(&chain));
    chain.talk(&ENTRIES, time);
    let before = garbled(&chain);
    chain.talk(&ENTRIES, 3 * time);
    chain.run(2 * LATE);
    assert_eq!(chain.batch(), first + 4);
    let time = time.as_nanos() as Nanos;
    for entry in [101, 102] {
        assert_delivered(&chain, entry, from..from + 4 * time);
    }
    for (batch, expected) in (first..).zip([3, channels, 3, 3]) {
        ENTRIES.iter().for_each(|entry| assert_eq!(chain.channels_both((1, *entry), chain.rounds(batch)), 1));
        let found = (2..=HOPS).map(|link| chain.channels_both((link, 0), chain.rounds(batch)));
        assert_eq!(found.collect::<Vec<_>>(), [expected; HOPS - 1], "links 2 and on in batch {batch}");
    }
    // What it sends in the last 60 ms of the batch waits for the next one.
    let sent = chain.delivered(103, destination());
    let without = from + time + 50_000_000..from + 2 * time - 100_000_000;
    let lost = sent.iter().filter(|(at, _)| without.contains(at)).all(|(_, came)| came.is_none());
    assert!(lost, "it has no channel");
    assert_delivered(&chain, 103, from + 2 * time..from + 4 * time);
    let mut sources: Vec<_> = sent.iter().filter_map(|(_, came)| came.map(|(_, source)| source)).collect();
    sources.dedup();
    assert_eq!(sources.len(), 1, "its flow at the exit: {sources:?}");
    assert_sealed_once(&chain, 103, chain.times.first(first)..chain.times.first(first + 4));
    chain.assert_closed();
    garbled(&chain) - before
}

#[test]
fn flow_stays_over_a_batch_whose_setup_was_lost() {
    assert_eq!(without_a_channel(Phase::Setup(1), Direction::Forward, 2), 0, "cells that the exit could not open");
}

#[test]
fn suppressed_ack_costs_one_entry_its_batch_and_shows_nowhere() {
    let garbled = without_a_channel(Phase::Ack(1), Direction::Backward, 3);
    assert_eq!(garbled, u64::from(terms().rounds), "random bodies in all rounds of the batch");
}

#[test]
fn loss_and_reordering_change_no_count_on_any_link() {
    let mut chain = started();
    let first = chain.batch();
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    chain.attack(move |_, datagram| match rng.random_range(0..100) {
        0 => Vec::new(),
        1..=20 => vec![(rng.random_range(1..12_000_000), datagram)],
        21 => vec![(0, datagram.clone()), (0, datagram)],
        _ => vec![(0, datagram)],
    });
    chain.talk(&ENTRIES, 2 * batch(&chain));
    chain.run_batches(1);
    for batch in first..chain.batch() {
        assert!(is_complete(&chain, batch), "batch {batch}");
    }
    assert_others_constant(&chain, 0, first..chain.batch());
    let drops = |node: usize| chain.ledger(node).cells.forward;
    assert!(drops(1).drops(DropReason::Copy) > 0 && drops(2).drops(DropReason::Late) > 0);
    assert!(drops(2).drops(DropReason::Replay) > 0);
    chain.assert_closed();
}
