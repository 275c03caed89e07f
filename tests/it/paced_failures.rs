//! Failures in a paced chain, in memory: nodes that restart, stop or have a wrong clock, lost setups and acks.
//!
//! After each of them the channels come back, other links carry what they carried, no place was sealed twice, and no
//! cell is unaccounted for. Mixes have loops, two entries meet, and a third one has a flow.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use control::Event;
use control::paced::{Cause, Failure, PacedEvent};
use control::trust::hop::TrustEvent;
use dataplane::Nanos;
use dataplane::ledger::DropReason;
use eddy_virtual::{FIRST_ENTRY, Plan};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::CellKind;
use wire::cell::Direction::{self, Backward, Forward};
use wire::ids::Side;
use wire::paced::{PacedTerms, Phase};

use crate::common::limit::Permit;
use crate::common::pacedchain::{
    Chain, DIRECTIONS, ENTRIES, HOPS, LATE, Opened, Seen, client, destination, ends, link_address, terms,
};

const SECOND: Duration = Duration::from_secs(1);
/// Of a node's clock.
const SECOND_NS: i64 = 1_000_000_000;
const HOUR_NS: i64 = 3600 * SECOND_NS;
/// I of the chain.
const INTERVAL: Duration = Duration::from_secs(10);

/// A chain with as few slots as three entries need.
fn started() -> Chain {
    started_with(2)
}

fn started_with(loops: u8) -> Chain {
    let terms = PacedTerms { seats: 6, loops, ..terms() };
    Chain::with_meetings(&terms, ENTRIES.len(), &[(101, [7; 32]), (102, [7; 32])]).start()
}

/// Where the datagrams of an entry go.
fn other_end(entry: usize) -> SocketAddr {
    match entry {
        101 => client(102),
        102 => client(101),
        _ => destination(),
    }
}

/// Fails if a datagram that an entry's application sent in this time has not come. Times are those of sending.
fn assert_delivered(chain: &Chain, entry: usize, sent: Range<Nanos>) {
    let of_time = chain.delivered(entry, other_end(entry)).into_iter().filter(|(at, _)| sent.contains(at));
    let (came, lost): (Vec<_>, Vec<_>) = of_time.partition(|(_, came)| came.is_some());
    let lost: Vec<_> = lost.iter().map(|(at, _)| at / 1_000_000).collect();
    assert!(lost.is_empty() && !came.is_empty(), "entry {entry}: {} came, lost those of {lost:?} ms", came.len());
}

/// Fails unless an entry has sent each cell of these rounds `copies` times, and as many cells in every round.
fn assert_copied(chain: &Chain, entry: usize, rounds: Range<u64>) {
    assert_eq!(chain.channels((1, entry), Forward, rounds.clone()), 1);
    let (from, to) = ends((1, entry), Forward);
    let mut times = HashMap::<Vec<u8>, usize>::new();
    let inside = rounds.start + 1..rounds.end - 1;
    for seen in chain.seen().iter().filter(|seen| (seen.from, seen.to) == (from, to)) {
        *times.entry(seen.bytes.clone()).or_default() += usize::from(inside.contains(&chain.round_at(seen.at)));
    }
    let copies = usize::from(chain.terms.copies);
    let most = times.values().copied().max();
    assert_eq!(most, Some(copies), "entry {entry}: how often one datagram was sent");
}

/// What links other than these have carried in these batches: one number of cells in each round of a batch.
fn assert_others_constant(chain: &Chain, links: &[usize], batches: Range<u64>) {
    for rounds in batches.map(|batch| chain.rounds(batch)) {
        for entry in ENTRIES.into_iter().filter(|_| !links.contains(&1)) {
            assert_eq!(chain.channels_both((1, entry), rounds.clone()), 1);
        }
        for link in (2..=HOPS).filter(|link| !links.contains(link)) {
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
    let rounds = chain.rounds(batch);
    let is_full = |link, direction| {
        chain.carries((link, 0), direction, rounds.clone()) == Ok(chain.channels_of(link, ENTRIES.len()))
    };
    (2..=HOPS).all(|link| DIRECTIONS.into_iter().all(|direction| is_full(link, direction)))
}

/// Fails unless the datagrams of the next second all come.
fn assert_works(chain: &mut Chain) {
    let from = chain.now;
    chain.talk(&ENTRIES, SECOND);
    chain.run(2 * LATE);
    ENTRIES.iter().for_each(|entry| assert_delivered(chain, *entry, from..from + SECOND.as_nanos() as Nanos));
    chain.assert_closed();
    chain.assert_sealed_once();
}

/// The last batch that begins within this time.
fn batch_within(chain: &Chain, time: Duration) -> u64 {
    chain.times.batch_of(chain.round_at(chain.now + time.as_nanos() as Nanos))
}

/// The first batch with channels after the restart of a hop, at the latest (SPEC 9.7.7): it signs the first interval
/// that begins a fifth of one after its start, that bundle is for batches that begin in the interval after it, and
/// their setups are for the batches after those.
fn back_after_restart(chain: &Chain) -> u64 {
    batch_within(chain, INTERVAL * 11 / 5 + 2 * chain.batch_time())
}

/// The same after a failure that is over now, in which no hop was started and hops have signed for all intervals.
fn back_after_failure(chain: &Chain) -> u64 {
    chain.batch() + 2
}

/// The same if hops have not signed for some intervals: they do for the next one.
fn back_after_missed_intervals(chain: &Chain) -> u64 {
    batch_within(chain, 2 * (INTERVAL + chain.batch_time()))
}

/// The same after the restart of an entry: the parts of a bundle take up to an interval (SPEC 9.16.2).
fn back_after_restart_of_an_entry(chain: &Chain) -> u64 {
    batch_within(chain, INTERVAL + 2 * chain.batch_time())
}

/// What the links have carried since a batch.
fn view(chain: &Chain, first: u64) -> String {
    let of = |batch, link| DIRECTIONS.map(|direction| chain.carries((link, 0), direction, chain.rounds(batch)));
    let all = (first..chain.batch()).flat_map(|batch| (2..=HOPS).map(move |link| (batch, link)));
    let lines = all.map(|(batch, link)| format!("\nbatch {}, link {link}: {:?}", batch - first, of(batch, link)));
    lines.chain([format!("{:?}", chain.events)]).collect()
}

/// Runs until a batch is over in which all links had the channels of all entries: this one at the latest. Returns its
/// number. `first` is the first one that is shown if there is none.
fn run_until_back(chain: &mut Chain, first: u64, at_latest: u64, what: &str) -> u64 {
    // Of the running batch there was a part without.
    chain.run_batches(1);
    loop {
        chain.run_batches(1);
        let last = chain.batch() - 1;
        if is_complete(chain, last) {
            assert!(last <= at_latest, "{what}: channels in batch {}, not {}", last - first, at_latest - first);
            return last;
        }
        assert!(last < at_latest + 4, "{what}: no channels until batch {}: {}", last - first, view(chain, first));
    }
}

/// A hop dies and starts again.
fn restarted(hop: usize) {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    chain.restart(hop);
    let at_latest = back_after_restart(&chain);
    let back = run_until_back(&mut chain, first, at_latest, &format!("hop {hop}"));
    println!("hop {hop}: channels in batch {} after the restart", back - first);
    assert_works(&mut chain);
    assert_others_constant(&chain, &[hop, hop + 1], first..chain.batch());
    for entry in ENTRIES {
        assert_copied(&chain, entry, chain.times.first(first)..chain.times.first(chain.batch()));
    }
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
    let (from, time) = (chain.now, 3 * chain.batch_time());
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

/// A node does not run for 2 s in the middle of a batch. Returns the chain two batches after that one.
fn stopped(node: usize) -> (Chain, Range<u64>) {
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
    (chain, first..first + 3)
}

#[test]
fn stopped_hop_goes_on_with_its_channels() {
    for hop in [1, 2, HOPS] {
        let (chain, batches) = stopped(hop);
        assert_others_constant(&chain, &[hop, hop + 1], batches.clone());
        let rounds = chain.times.first(batches.start)..chain.times.first(batches.end);
        ENTRIES.iter().for_each(|entry| assert_copied(&chain, *entry, rounds.clone()));
    }
}

#[test]
fn stopped_entry_leaves_all_other_links_as_they_were() {
    let (chain, batches) = stopped(103);
    for rounds in batches.clone().map(|batch| chain.rounds(batch)) {
        for entry in [101, 102] {
            assert_eq!(chain.channels_both((1, entry), rounds.clone()), 1);
        }
    }
    assert!(is_complete(&chain, batches.start), "its running channel");
    assert_inner_links_constant(&chain, batches);
    let skipped = chain.shown(103).skipped;
    assert!((195..=201).contains(&skipped), "{skipped} rounds were not sent");
}

/// Longer than neighbours keep a silent link.
#[test]
fn hop_that_stops_for_a_minute_has_channels_again() {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    chain.stop(2, 60 * SECOND);
    chain.run(60 * SECOND);
    let (runs_again, at_latest) = (chain.batch(), back_after_missed_intervals(&chain));
    let back = run_until_back(&mut chain, first, at_latest, "hop 2 after 60 s");
    println!("channels in batch {} after the one in which hop 2 runs again", back - runs_again);
    assert_works(&mut chain);
    assert_others_constant(&chain, &[2, 3], first..chain.batch());
}

/// Link 3 carries nothing for a while.
fn cut(time: Duration, at_latest: fn(&Chain) -> u64) {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    let ends = [link_address(2, Side::Down), link_address(3, Side::Up)];
    chain.tap(move |datagram| !(ends.contains(&datagram.from) && ends.contains(&datagram.to)));
    chain.run(time);
    chain.tap(|_| true);
    let (restored, at_latest) = (chain.batch(), at_latest(&chain));
    let back = run_until_back(&mut chain, first, at_latest, &format!("link 3 after {time:?}"));
    println!("channels in batch {} after the one in which the link is back", back - restored);
    assert_works(&mut chain);
    assert_others_constant(&chain, &[3], first..chain.batch());
}

#[test]
fn link_that_is_cut_has_channels_two_batches_later() {
    cut(4 * SECOND, back_after_failure);
}

/// Longer than neighbours keep a silent link.
#[test]
fn link_that_is_cut_for_30_s_has_channels_again() {
    cut(30 * SECOND, back_after_missed_intervals);
}

/// How far the cells of each round leave a hop from when they are due by a right clock, at most.
fn most_off_time(chain: &Chain, hop: usize, direction: Direction, rounds: Range<u64>) -> Duration {
    let link = if direction == Forward { hop + 1 } else { hop };
    let (from, to) = ends((link, 0), direction);
    let (offset, period) = (chain.times.offset(direction, hop), chain.times.period());
    let of_link = |seen: &&Seen| (seen.from, seen.to) == (from, to) && rounds.contains(&chain.round_at(seen.at));
    let off = |seen: &Seen| {
        let after = (seen.at + period - offset % period) % period;
        after.min(period - after)
    };
    Duration::from_nanos(chain.seen().iter().filter(of_link).map(off).max().expect("cells"))
}

/// Clocks of hosts step by up to 100 ms. `off` names hops whose rounds are off by 100 ppm then, and a direction.
fn stepped(steps: &[(usize, i64)], off: &[(usize, Direction)]) {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    for (node, by_ms) in steps {
        chain.step_clock(*node, by_ms * 1_000_000);
    }
    let from = chain.now;
    let time = 2 * chain.batch_time();
    chain.talk(&ENTRIES, time);
    chain.run(2 * LATE);
    // Neighbours drift apart by 200 ppm at most, 2 ms in 10 s: that is the step of their link.
    ENTRIES.iter().for_each(|entry| assert_delivered(&chain, *entry, from..from + time.as_nanos() as Nanos * 9 / 10));
    chain.run_batches(1);
    for batch in first..chain.batch() {
        assert!(is_complete(&chain, batch), "batch {batch}");
    }
    assert_others_constant(&chain, &[], first..chain.batch());
    let rounds = chain.times.first(first)..chain.round_at(from + time.as_nanos() as Nanos);
    for (hop, direction) in off {
        let off = most_off_time(&chain, *hop, *direction, rounds.clone());
        let expected = Duration::from_nanos((chain.now - from) / 10_000 + 100_000);
        assert!(off <= expected && off > Duration::from_micros(500), "hop {hop} {direction:?}: off by {off:?}");
    }
    chain.assert_closed();
    chain.assert_sealed_once();
}

#[test]
fn stepped_clock_of_a_mix_moves_its_rounds_by_100_ppm() {
    stepped(&[(2, 100), (3, -100)], &[(2, Forward), (2, Backward), (3, Forward)]);
}

/// The entry that steps follows Mix 1 as the others do.
#[test]
fn stepped_clock_of_an_end_moves_its_rounds_by_100_ppm() {
    stepped(&[(1, 100), (HOPS, -100), (103, 100)], &[(1, Forward), (HOPS, Backward)]);
}

/// The clock of a node's host is an hour ahead, or behind, for five batches.
fn stepped_by_an_hour(node: usize, hour: i64) {
    let mut chain = started();
    let first = chain.batch();
    chain.talk(&ENTRIES, SECOND);
    chain.step_clock(node, hour);
    let stepped = chain.now;
    chain.talk(&ENTRIES, 5 * chain.batch_time());
    let back = chain.batch();
    assert!(
        node > HOPS
            || chain.events.iter().any(|(_, event)| matches!(event, Event::Trust(TrustEvent::ClockStops { .. }))),
        "it says why it signs nothing"
    );
    chain.step_clock(node, -hour);
    let at_latest = back_after_restart(&chain);
    run_until_back(&mut chain, first, at_latest, &format!("node {node} after an hour"));
    assert_works(&mut chain);
    assert_others_constant(&chain, &[], first..chain.batch());
    // Nothing ends the channels of the running batch. An entry's clock has no effect on later ones either.
    let good = if node > HOPS { chain.batch() } else { first + 1 };
    assert!((first..good).all(|batch| is_complete(&chain, batch)), "node {node}: {}", view(&chain, first));
    let end = chain.begins(chain.times.first(good.min(back))) - 100_000_000;
    ENTRIES.iter().for_each(|entry| assert_delivered(&chain, *entry, stepped..end));
    // Without channels each mix sends the cells of its own loops in every round.
    for (batch, link) in (good..back).flat_map(|batch| (2..=HOPS).map(move |link| (batch, link))) {
        let channels = chain.channels((link, 0), Forward, chain.rounds(batch));
        assert!(channels >= 2 * usize::from(chain.terms.loops), "node {node}, link {link}: {channels} channels");
    }
    if node <= HOPS {
        let rounds = chain.times.first(first)..chain.times.first(chain.batch());
        let direction = if node == HOPS { Backward } else { Forward };
        let off = most_off_time(&chain, node, direction, rounds);
        let expected = Duration::from_nanos((chain.now - stepped) / 10_000 + 100_000);
        assert!(off <= expected, "off by {off:?}, at most {expected:?}");
    }
}

#[test]
fn clock_of_a_mix_that_steps_by_an_hour_stops_no_round() {
    stepped_by_an_hour(1, HOUR_NS);
    stepped_by_an_hour(2, HOUR_NS);
    stepped_by_an_hour(2, -HOUR_NS);
}

#[test]
fn clock_of_an_end_that_steps_by_an_hour_stops_no_round() {
    stepped_by_an_hour(HOPS, HOUR_NS);
    stepped_by_an_hour(103, HOUR_NS);
    stepped_by_an_hour(103, -HOUR_NS);
}

/// An entry that goes back with Mix 1's clock would seal rounds again.
#[test]
fn mix_1_with_a_clock_behind_lets_nothing_be_sealed_twice() {
    for behind in [SECOND / 2, 2 * SECOND] {
        let mut chain = started();
        chain.talk(&ENTRIES, SECOND);
        chain.step_clock(1, -(behind.as_nanos() as i64));
        chain.restart(1);
        let skipped = ENTRIES.map(|entry| chain.shown(entry).running.expect("it runs"));
        chain.talk(&ENTRIES, 6 * SECOND);
        let rounds = ENTRIES.map(|entry| chain.shown(entry).running.expect("it runs"));
        let expected = (6 * SECOND - behind).as_millis() as u64 / 10;
        for (before, after) in skipped.into_iter().zip(rounds) {
            assert!((after - before).abs_diff(expected) < 3, "{} rounds, not {expected}", after - before);
        }
        chain.assert_closed();
        chain.assert_sealed_once();
    }
}

/// Entries follow it there and back. They seal nothing again, so they wait until the rounds that they have sent are
/// over.
#[test]
fn entries_outlive_a_clock_of_mix_1_that_goes_back_a_minute() {
    let mut chain = started();
    for ahead in [60, -60] {
        chain.step_clock(1, ahead * SECOND_NS);
        chain.restart(1);
        chain.run(30 * SECOND);
    }
    let first = chain.batch();
    chain.run(60 * SECOND);
    chain.run_batches(2);
    assert!(ENTRIES.iter().all(|entry| chain.entry_status(*entry).has_channel), "since batch {first}");
    let from = chain.now;
    chain.talk(&ENTRIES, SECOND);
    chain.run(2 * LATE);
    ENTRIES.iter().for_each(|entry| assert_delivered(&chain, *entry, from..from + SECOND.as_nanos() as Nanos));
    chain.assert_closed();
}

#[test]
fn entry_with_a_clock_ahead_joins_and_seals_nothing_twice() {
    let mut chain = started();
    let first = chain.batch();
    chain.step_clock(103, 100_000_000);
    chain.restart(103);
    chain.talk(&ENTRIES, 2 * chain.batch_time());
    chain.step_clock(103, -100_000_000);
    let at_latest = back_after_restart_of_an_entry(&chain);
    let back = run_until_back(&mut chain, first, at_latest, "entry that was 100 ms ahead");
    println!("entry: channels in batch {} after its restart", back - first);
    assert_works(&mut chain);
}

/// Mix 1 would learn the clock of an entry that judged bundles by it: it would refuse them all, and ask again.
#[test]
fn entry_judges_bundles_by_rounds_and_not_by_its_clock() {
    for off in [1 - 2 * 3600, 2 * 3600 - 1] {
        let mut chain = started();
        let first = chain.batch();
        chain.step_clock(103, off * SECOND_NS);
        chain.restart(103);
        let at_latest = back_after_restart_of_an_entry(&chain);
        run_until_back(&mut chain, first, at_latest, "entry whose clock is off by almost 2 h");
        chain.run_batches(2);
        assert_works(&mut chain);
    }
}

/// Mix 1 could otherwise turn an entry's time back to setup keys that were wiped since.
#[test]
fn entry_whose_clock_is_hours_from_mix_1s_sets_up_nothing() {
    for off in [-4 * HOUR_NS - SECOND_NS, 4 * HOUR_NS + SECOND_NS] {
        let mut chain = started();
        chain.step_clock(103, off);
        chain.restart(103);
        let (restarted, setup_of_others) = (chain.now, chain.setups(101));
        // The channels of its first life last as long as their batches, and Mix 1 sends on its old link for 15 s.
        chain.run_to_batch(4);
        let (first, from, time) = (chain.batch(), chain.now, 2 * chain.batch_time());
        chain.talk(&ENTRIES, time);
        chain.run(2 * LATE);

        let status = chain.entry_status(103);
        assert!(!status.has_channel && status.joined == 0 && status.failed > 0, "{status:?}");
        assert_eq!(chain.setups(103), 0);
        let mut control = HashMap::<_, usize>::new();
        chain.each_opened(|Opened { seen, header, .. }| {
            let is_own = DIRECTIONS.iter().any(|direction| ends((1, 103), *direction) == (seen.from, seen.to));
            if is_own && seen.at > restarted && header.kind != CellKind::Data {
                *control.entry(header.kind as u8).or_default() += 1;
            }
        });
        assert!(control.into_keys().eq([CellKind::Link as u8]), "neither setups nor acks on its link");
        let sent = chain.delivered(103, destination());
        let of_time: Vec<_> = sent.iter().filter(|(at, _)| *at >= from).collect();
        assert!(!of_time.is_empty() && of_time.iter().all(|(_, came)| came.is_none()), "it has no channel");

        // Its link shows nothing of that, and all others join.
        for batch in first..first + 2 {
            ENTRIES.iter().for_each(|entry| assert_eq!(chain.channels_both((1, *entry), chain.rounds(batch)), 1));
            chain.assert_constant_behind_mix_1(2, chain.rounds(batch));
        }
        for entry in [101, 102] {
            assert_delivered(&chain, entry, from..from + time.as_nanos() as Nanos);
        }
        assert!(chain.setups(101) >= setup_of_others + 4);
        chain.assert_closed();
    }
}

/// One entry has no channel in a batch, because its cells of a phase were lost; in that batch links 2 and on carry
/// `channels`. Others notice nothing, and its flow goes on in the next batch. Returns how many cells the exit could not
/// open from that batch on.
fn without_a_channel(loops: u8, phase: Phase, direction: Direction, channels: usize) -> u64 {
    let mut chain = started_with(loops);
    let garbled = |chain: &Chain| chain.ledger(HOPS).cells.forward.drops(DropReason::Garbled);
    chain.talk(&ENTRIES, SECOND);
    chain.run_to_batch(1);
    let first = chain.batch();
    chain.cut_in_phase(103, phase, direction);
    let (from, time) = (chain.now, chain.batch_time());
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
        chain.assert_constant_behind_mix_1(expected, chain.rounds(batch));
    }
    // What it sends in the last 60 ms of the batch waits for the next one.
    let sent = chain.delivered(103, destination());
    let without = from + time + 50_000_000..from + 2 * time - 100_000_000;
    let mut of_time = sent.iter().filter(|(at, _)| without.contains(at)).peekable();
    assert!(of_time.peek().is_some() && of_time.all(|(_, came)| came.is_none()), "it has no channel");
    assert_delivered(&chain, 103, from + 2 * time..from + 4 * time);
    let mut sources: Vec<_> = sent.iter().filter_map(|(_, came)| came.map(|(_, source)| source)).collect();
    sources.dedup();
    assert_eq!(sources.len(), 1, "its flow at the exit: {sources:?}");
    assert_copied(&chain, 103, chain.times.first(first)..chain.times.first(first + 4));
    chain.assert_closed();
    chain.assert_sealed_once();
    garbled(&chain) - before
}

#[test]
fn flow_stays_over_a_batch_whose_setup_was_lost() {
    let garbled = without_a_channel(0, Phase::Setup(1), Forward, 2);
    assert_eq!(garbled, 0, "cells that the exit could not open");
    // It opens no cell of loops that nobody meets.
    without_a_channel(2, Phase::Setup(1), Forward, 2);
}

#[test]
fn suppressed_ack_costs_one_entry_its_batch_and_shows_nowhere() {
    let garbled = without_a_channel(0, Phase::Ack(1), Backward, 3);
    assert_eq!(garbled, u64::from(terms().rounds), "random bodies in all rounds of the batch");
    without_a_channel(2, Phase::Ack(1), Backward, 3);
}

/// Somebody keeps the answers to the handshakes of an entry from it. So its slot expires just before phase 1 of a
/// batch begins, and it has a link again when an answer comes, `back` after that. Returns what the entry says of the
/// batch.
fn without_a_link(back: Duration) -> Vec<PacedEvent> {
    let _permit = Permit::wait();
    let terms = PacedTerms { seats: 6, ..terms() };
    // A slot expires after 180 s: 35 batches have 179.2 s.
    let before_batch = Some(Duration::from_millis(860));
    let mut chain = eddy_virtual::Chain::new(Plan { before_batch, keeps: false, ..Plan::new(&terms, HOPS - 1, 1) });
    let (started, len) = (chain.now, terms.class.cell_len());
    let begin = chain.begins(chain.times.first(chain.batch() + 36));
    let back = begin + back.as_nanos() as Nanos;
    chain.attack(move |now, datagram| {
        let is_answer = ends((1, 101), Backward) == (datagram.from, datagram.to) && datagram.bytes.len() != len;
        match back.saturating_sub(now) {
            wait if !is_answer || now < started + 1_000_000_000 || wait == 0 => vec![(0, datagram)],
            // The last one.
            wait if wait < 4_000_000_000 => vec![(wait, datagram)],
            _ => Vec::new(),
        }
    });
    let unsent = |chain: &eddy_virtual::Chain| chain.ledger(101).cells.forward.drops(DropReason::LinkDown);
    chain.run_until(begin - 100_000_000);
    let before = unsent(&chain);
    chain.run_until(begin + 50_000_000);
    // The data cell of a round, of the last ones before phase 1 and the first ones of it, at least.
    assert!(unsent(&chain) >= before + 5 + 4, "{} cells", unsent(&chain) - before);
    chain.events.clear();
    chain.run_until(begin + 5_500_000_000);
    let coming = chain.batch();
    let is_of_batch = |event: &PacedEvent| match *event {
        PacedEvent::Joined { batch } | PacedEvent::NotJoined { batch, .. } | PacedEvent::SetupExcused { batch, .. } => {
            batch == coming
        }
        PacedEvent::Dropping(cause) => !matches!(cause, Cause::Lost { direction: Direction::Backward, .. }),
        _ => false,
    };
    // What excuses a setup is decided when its losses are counted and the bundles of the time after it are there.
    chain.run_until(begin + 41_000_000_000);
    chain.paced_events().map(|(_, event)| event).filter(is_of_batch).collect()
}

#[test]
fn link_that_is_down_when_phase_1_begins_costs_no_batch() {
    let events = without_a_link(Duration::from_millis(90));
    let [PacedEvent::Dropping(Cause::Lost { .. }), PacedEvent::Joined { .. }] = events[..] else {
        panic!("{events:?}")
    };
}

#[test]
fn link_that_is_down_in_phase_1_costs_a_batch_and_says_so() {
    let events = without_a_link(Duration::from_millis(600));
    // It had a channel, whose losses raise the alarm, and explain the failure: no other cause comes, and no excuse.
    let [PacedEvent::Dropping(Cause::Lost { .. }), PacedEvent::NotJoined { why, .. }] = events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(why, Failure::NotReady);
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
    chain.talk(&ENTRIES, 2 * chain.batch_time());
    chain.run_batches(1);
    for batch in first..chain.batch() {
        assert!(is_complete(&chain, batch), "batch {batch}");
    }
    assert_others_constant(&chain, &[], first..chain.batch());
    let drops = |node: usize| chain.ledger(node).cells.forward;
    assert!(drops(1).drops(DropReason::Copy) > 0 && drops(2).drops(DropReason::Late) > 0);
    assert!(drops(2).drops(DropReason::Replay) > 0);
    chain.assert_closed();
    chain.assert_sealed_once();
}

/// A chain with two pairs of loops at each mix, all of which have come through for a while.
fn with_loops() -> Chain {
    let mut chain = started_with(2);
    chain.run_batches(2);
    assert_eq!(alarms(&chain), [], "nothing is lost");
    chain
}

/// The mixes whose alarm was raised, and why.
fn alarms(chain: &Chain) -> Vec<(usize, Cause)> {
    chain.dropping().into_iter().filter(|(node, _)| *node < FIRST_ENTRY).collect()
}

/// Loses a share of all datagrams on some links, from 2 on, in one direction.
fn lose(chain: &Chain, links: Range<usize>, directions: &[Direction], share: f64) {
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    let ends: Vec<_> = links.flat_map(|link| directions.iter().map(move |way| ends((link, 0), *way))).collect();
    chain.tap(move |datagram| !(ends.contains(&(datagram.from, datagram.to)) && rng.random_bool(share)));
}

#[test]
fn mixes_before_a_link_that_loses_cells_raise_the_alarm() {
    for (link, direction) in [(3, Direction::Forward), (4, Direction::Backward)] {
        let mut chain = with_loops();
        lose(&chain, link..link + 1, &[direction], 0.05);
        // In a batch in which none of its loops meet, a mix does not see what is lost forward.
        chain.run(20 * SECOND);
        let alarms = alarms(&chain);
        let mut raised: Vec<usize> = alarms.iter().map(|(mix, _)| *mix).collect();
        raised.sort_unstable();
        raised.dedup();
        assert!(raised.iter().copied().eq(1..link), "link {link} {direction:?}: {alarms:?}");
        for (mix, cause) in alarms {
            let Cause::Loops { places, lost, garbled } = cause else { panic!("mix {mix}: {cause:?}") };
            assert!(places > 0 && lost + garbled <= places);
            let is_own = mix + 1 == link && direction == Direction::Backward;
            assert_eq!(is_own, lost > 0, "mix {mix}: {cause:?}");
            assert_eq!(is_own, garbled == 0, "mix {mix}: {cause:?}");
        }
    }
}

#[test]
fn suppressed_setups_of_loops_raise_the_alarm_of_their_mix() {
    // Mix 2 is corrupt: dummies take the place of setups, those of its own loops included, or of acks.
    for (direction, expected) in [(Direction::Forward, vec![1, 2]), (Direction::Backward, vec![1])] {
        let mut chain = with_loops();
        chain.run_to_batch(1);
        let batch = chain.batch() + 1;
        chain.withhold(2, direction);
        chain.run(10 * SECOND);
        let mut alarms = alarms(&chain);
        alarms.sort_unstable_by_key(|(mix, _)| *mix);
        let cause = Cause::LoopSetups { batch, sent: 4, failed: 4 };
        let expected: Vec<_> = expected.into_iter().map(|mix| (mix, cause)).collect();
        assert_eq!(alarms, expected, "{direction:?}");
    }
}

#[test]
fn loss_of_one_percent_on_all_links_raises_no_alarm_of_mixes() {
    let mut chain = with_loops();
    lose(&chain, 2..HOPS + 1, &DIRECTIONS, 0.01);
    chain.run(40 * SECOND);
    assert_eq!(alarms(&chain), []);
    for mix in 1..HOPS {
        let counts = chain.loops(mix).counts;
        let lost = (counts.lost + counts.garbled) as f64 / counts.places as f64;
        let expected = 1.0 - 0.99f64.powi(2 * (HOPS - mix) as i32);
        assert!(lost > expected / 2.0, "mix {mix} measures {lost}, expected about {expected}");
    }
}
