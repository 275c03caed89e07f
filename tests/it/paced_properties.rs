//! Paced classes (SPEC 9) against an attacker on the wire, in memory: meetings, bodies, traces, damage, replays.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use control::Counters;
use control::paced::{PacedConfig, PacedEntry, PacedHop, PacedStatus, Reported, ShardCell};
use dataplane::Nanos;
use dataplane::ledger::DropReason;
use dataplane::paced::entry::MeetingState;
use dataplane::socket::memory::Datagram;
use eddy_virtual::ExitBody;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction::{self, Backward, Forward};
use wire::cell::{CellKind, Class, Shape};
use wire::ids::{LinkId, Side};
use wire::kdf::Secret;
use wire::paced::{PacedTerms, Phase};
use wire::setup::{self, HopPublic, SetupKey, Suite, ack_cells};

use crate::common::pacedchain::{
    Chain, DIRECTIONS, HOPS, LATE, LinkOf, Opened, client, destination, ends, link_address, quantiles, terms,
};

const MILLI: Nanos = 1_000_000;
const SECRET: [u8; 32] = [7; 32];

/// As few slots as a few entries need.
fn few_seats() -> PacedTerms {
    PacedTerms { seats: 6, ..terms() }
}

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

/// Chi-squared of bytes against a uniform distribution, 255 degrees of freedom.
fn chi_squared(counts: &[u64; 256]) -> f64 {
    let expected = counts.iter().sum::<u64>() as f64 / 256.0;
    counts.iter().map(|count| (*count as f64 - expected).powi(2) / expected).sum()
}

/// Chi-squared of two samples of bytes against one distribution, 255 degrees of freedom.
fn chi_squared_of_two(one: &[u64; 256], other: &[u64; 256]) -> f64 {
    let [n, m] = [one, other].map(|counts| counts.iter().sum::<u64>() as f64);
    let part = |(one, other): (&u64, &u64)| {
        let (one, other) = (*one as f64, *other as f64);
        ((m / n).sqrt() * one - (n / m).sqrt() * other).powi(2) / (one + other)
    };
    one.iter().zip(other).map(part).sum()
}

/// Quantiles of 1e-7 and 1 - 1e-7 with 255 degrees of freedom (Wilson and Hilferty). One run in 280,000 has one of its
/// 18 statistics beyond them.
const PLAUSIBLE: Range<f64> = 154.2..390.5;

/// Rounds of which all copies are lost between entries and Mix 1.
fn is_lost(round: u64) -> bool {
    round % 5 == 3
}

fn lose_rounds(chain: &Chain) {
    let (begin, period) = (chain.round_at(0), chain.times.begin(1));
    chain.attack(move |now, datagram| {
        // An entry may be a little early. Copies follow one round later.
        let sent_in = begin + (now + 5 * MILLI) / period;
        let is_forward = datagram.to == link_address(1, Side::Up);
        if is_forward && (is_lost(sent_in) || is_lost(sent_in - 1)) { Vec::new() } else { vec![(0, datagram)] }
    });
}

#[test]
fn repeat_brings_what_all_copies_have_lost() {
    let terms = PacedTerms { repeat: true, ..few_seats() };
    let mut chain = Chain::with_meetings(&terms, 3, &[(101, SECRET), (102, SECRET)]).start();
    lose_rounds(&chain);
    chain.talk(&[101, 102, 103], 2 * chain.batch_time());
    chain.run(2 * LATE);
    let [outside, _, most_outside] = quantiles(chain.delays(103, destination()));
    let inside = [(101, 102), (102, 101)].map(|(from, to)| chain.delays(from, client(to)));
    let [inside, _, most_inside] = quantiles(inside.concat());
    println!("outside {outside:.2} and {most_outside:.2} ms, inside {inside:.2} and {most_inside:.2} ms");
    // What came while a full cell was repeated waits for one more round.
    assert!(outside <= 45.0 && most_outside <= 60.0 && inside <= 60.0 && most_inside <= 75.0);
    // One that was rescued leaves the exit with the others of its round, a round later than without repeat.
    let (period, offset) = (chain.times.begin(1), chain.times.offset(Forward, HOPS));
    for (at, _) in at_destination(&chain) {
        assert_eq!((at * MILLI) % period, offset % period, "when datagrams leave the exit");
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

/// Two entries that meet for three batches, and lose rounds on their way to Mix 1. `watch` sees what the exit has.
/// Returns its first batch, too.
fn lossy_meeting(watch: impl FnMut(ExitBody) + 'static) -> (Chain, u64) {
    let chain = Chain::with_meetings(&few_seats(), 2, &[(101, SECRET), (102, SECRET)]);
    let mut chain = chain.start();
    lose_rounds(&chain);
    chain.watch_exit(watch);
    let first = chain.batch();
    chain.talk(&[101, 102], 3 * chain.batch_time());
    chain.run(LATE);
    for entry in [101, 102] {
        assert_eq!(chain.shown(entry).meeting, Some(MeetingState::Joined));
    }
    (chain, first)
}

#[test]
fn bodies_of_a_meeting_look_like_noise_on_every_link() {
    let (chain, first) = lossy_meeting(|_| ());
    let mut bodies = HashSet::new();
    for (link, direction) in (2..=HOPS).flat_map(|link| DIRECTIONS.map(|direction| (link, direction))) {
        let mut counts = [[0; 256]; 2];
        for (round, _, cell) in
            chain.cells((link, 0), direction, chain.times.first(first)..chain.times.first(first + 3))
        {
            cell[16..].iter().for_each(|byte| counts[usize::from(is_lost(round))][usize::from(*byte)] += 1);
            assert!(bodies.insert(cell[16..].to_vec()), "link {link} {direction:?}: a body that was seen before");
        }
        let bytes = counts.map(|counts| counts.iter().sum::<u64>());
        assert!(bytes.iter().all(|bytes| *bytes > 200_000), "{bytes:?}");
        let of_each = counts.map(|counts| chi_squared(&counts));
        let of_both = chi_squared_of_two(&counts[0], &counts[1]);
        println!("link {link} {direction:?}: {bytes:?} bytes, chi-squared {of_each:.0?}, of both {of_both:.0}");
        let are_plausible = of_each.iter().chain([&of_both]).all(|chi| PLAUSIBLE.contains(chi));
        assert!(are_plausible, "link {link} {direction:?}: {of_each:?}, lost against others {of_both}");
    }
    // The rounds were lost: their datagrams did not come.
    let sent = chain.delivered(101, client(102));
    let lost = sent.iter().filter(|(_, came)| came.is_none()).count();
    assert!(lost * 10 > sent.len() && lost * 3 < sent.len(), "{lost} of {} lost", sent.len());
}

/// The exit takes off no layer of a meeting: it adds one for the channel on which a cell comes, and one for the other.
/// Between them it sees noise, at every byte, and nothing of which rounds were lost before Mix 1.
#[test]
fn bodies_between_the_layers_of_the_exit_look_like_noise() {
    // Bodies of the same round, in the order of their entries.
    let pairs = Rc::<RefCell<BTreeMap<u64, BTreeMap<usize, Vec<u8>>>>>::default();
    let seen = pairs.clone();
    let (chain, first) = lossy_meeting(move |ExitBody { round, entry, between, .. }| {
        if let Some(between) = between {
            seen.borrow_mut().entry(round).or_default().insert(entry, between.to_vec());
        }
    });
    let rounds = chain.times.first(first)..chain.times.first(first + 3);
    let mut pairs = pairs.take();
    pairs.retain(|round, _| rounds.contains(round));
    assert!(pairs.len() as u64 == rounds.end - rounds.start && pairs.values().all(|pair| pair.len() == 2));

    let body_len = chain.terms.class.body_len();
    let mut positions = vec![[0; 256]; body_len];
    let (mut of_rounds, mut differences) = ([[0; 256]; 2], [[0; 256]; 2]);
    let mut blocks = HashSet::new();
    for (round, pair) in &pairs {
        let pair: Vec<_> = pair.values().collect();
        for body in &pair {
            body.iter().zip(&mut positions).for_each(|(byte, counts)| counts[usize::from(*byte)] += 1);
            body.iter().for_each(|byte| of_rounds[usize::from(is_lost(*round))][usize::from(*byte)] += 1);
            body.chunks(16).for_each(|block| assert!(blocks.insert(block.to_vec()), "an equal block, round {round}"));
        }
        for (one, other) in pair[0].iter().zip(pair[1]) {
            differences[usize::from(is_lost(*round))][usize::from(one ^ other)] += 1;
        }
    }
    let of_positions: Vec<f64> = positions.iter().map(chi_squared).collect();
    let of_bytes = of_rounds.map(|counts| chi_squared(&counts));
    let of_pairs = differences.map(|counts| chi_squared(&counts));
    let lost = [of_rounds, differences].map(|[came, lost]| chi_squared_of_two(&came, &lost));
    println!("bytes {of_bytes:.0?}, differences {of_pairs:.0?}, lost against others {lost:.0?}");
    println!("{} positions: {:.0?}", of_positions.len(), quantiles_of(of_positions.clone()));
    let all = of_positions.iter().chain(&of_bytes).chain(&of_pairs).chain(&lost);
    assert!(all.clone().all(|chi| PLAUSIBLE.contains(chi)), "{:?}", all.collect::<Vec<_>>());
}

/// The least, the half and the most.
fn quantiles_of(mut of: Vec<f64>) -> [f64; 3] {
    of.sort_by(f64::total_cmp);
    [of[0], of[of.len() / 2], of[of.len() - 1]]
}

/// What an observer of a link sees in some rounds: times in ms, lengths, directions.
fn trace(chain: &Chain, link: LinkOf, rounds: Range<u64>) -> Vec<(Nanos, usize, bool)> {
    let seen = chain.seen();
    let of = |direction| {
        let link = ends(link, direction);
        let of_link = seen.iter().filter(move |seen| (seen.from, seen.to) == link);
        of_link.map(move |seen| (seen.at / MILLI, seen.bytes.len(), direction == Forward))
    };
    // At the begin of a batch cells of the one before are still under way.
    let rounds = rounds.start + 8..rounds.end;
    let of_time = |at: &Nanos| rounds.contains(&chain.round_at(*at * MILLI));
    let mut trace: Vec<_> = of(Forward).chain(of(Backward)).filter(|(at, ..)| of_time(at)).collect();
    trace.sort_unstable();
    trace
}

/// What comes to the destination, and in which ms.
fn at_destination(chain: &Chain) -> Vec<(Nanos, Vec<u8>)> {
    let seen = chain.at_apps();
    let came = seen.iter().filter(|seen| seen.to == destination());
    let mut came: Vec<_> = came.map(|seen| (seen.at / MILLI, seen.bytes.clone())).collect();
    came.sort_unstable();
    came
}

/// Entries that talk for two batches, from the first batch on that has channels of all. Returns its number, too.
fn talking(entries: usize, meetings: &[(usize, [u8; 32])], attack: impl FnOnce(&Chain)) -> (Chain, u64) {
    let mut chain = Chain::with_meetings(&few_seats(), entries, meetings).start();
    let first = chain.batch();
    attack(&chain);
    let entries: Vec<_> = (101..101 + entries).collect();
    chain.talk(&entries, 2 * chain.batch_time());
    chain.run(LATE);
    (chain, first)
}

/// Lets every datagram of the access links of some entries meet with chance.
fn at_random(chain: &Chain, entries: &[usize], mut chance: impl FnMut(Nanos, u32, u64) -> Option<Nanos> + 'static) {
    let mut rng = ChaCha20Rng::seed_from_u64(9);
    let entries: Vec<_> = entries.iter().map(|entry| link_address(*entry, Side::Down)).collect();
    chain.attack(move |now, datagram| {
        let (percent, ms) = (rng.random_range(0..100), rng.random_range(0..60));
        let is_access = entries.contains(&datagram.from) || entries.contains(&datagram.to);
        let after = if is_access { chance(now, percent, ms) } else { Some(0) };
        after.map(|after| (after * MILLI, datagram)).into_iter().collect()
    });
}

/// Fails, with the first difference, unless two traces are equal.
fn assert_equal_traces<T: PartialEq + std::fmt::Debug>(one: &[T], other: &[T], what: &str) {
    let differs = one.iter().zip(other).position(|(one, other)| one != other);
    let at = differs.unwrap_or(one.len().min(other.len()));
    assert!(
        one == other,
        "{what}: {} and {}, different from {at} on: {:?} {:?}",
        one.len(),
        other.len(),
        one.get(at),
        other.get(at)
    );
    assert!(!one.is_empty());
}

#[test]
fn loss_and_delay_before_mix_1_leave_the_trace_of_link_2() {
    let (calm, first) = talking(3, &[], |_| {});
    let rounds = calm.times.first(first)..calm.times.first(first + 2);
    let link_2 = |chain: &Chain| trace(chain, (2, 0), rounds.clone());
    let (trace_of_calm, came) = (link_2(&calm), at_destination(&calm));
    drop(calm);

    let all = [101, 102, 103];
    let (delayed, _) = talking(3, &[], |chain| at_random(chain, &all, |_, _, ms| Some(ms % 8)));
    assert_equal_traces(&trace_of_calm, &link_2(&delayed), "link 2, delays shorter than the slack");
    assert_equal_traces(&came, &at_destination(&delayed), "destination, delays shorter than the slack");
    drop(delayed);

    let lose = |_, percent, ms| (percent >= 5).then_some(if percent < 15 { ms } else { 0 });
    let (lossy, _) = talking(3, &[], |chain| at_random(chain, &all, lose));
    assert!(
        [1, 2].map(|more| lossy.channels_both((2, 0), lossy.rounds(first + more - 1))) == [3, 3],
        "all setups came"
    );
    assert_equal_traces(&trace_of_calm, &link_2(&lossy), "link 2, loss and long delays");
    let mix_1 = lossy.ledger(1).cells.forward;
    assert!(mix_1.drops(DropReason::Late) > 100 && at_destination(&lossy).len() < came.len(), "they did happen");
}

/// One end of a meeting loses datagrams, has them late, or is cut off between phases 1 and 2h of both batches. The
/// access link of the other end, and all links behind Mix 1, carry the same at the same times as without that.
#[test]
fn loss_delay_and_cuts_at_one_end_do_not_show_at_the_other() {
    let meeting = [(101, SECRET), (102, SECRET)];
    // The times of its setups and acks on link 1 are left alone, until the last copies have left.
    let is_quiet = |chain: &Chain| {
        let first = chain.batch();
        let begin_and_end = |batch| {
            let [setup, ack] = [Phase::Setup(1), Phase::Ack(1)].map(|phase| chain.times.rounds_of(batch, phase));
            chain.begins(setup.end + 12)..chain.begins(ack.start - 12)
        };
        let times = [first, first + 1].map(begin_and_end);
        move |now: Nanos| times.iter().any(|time| time.contains(&now))
    };
    let (calm, first) = talking(3, &meeting, |_| {});
    let rounds = calm.times.first(first)..calm.times.first(first + 2);
    let links = [(1, 102), (1, 103), (2, 0), (3, 0), (4, 0)];
    let traces = |chain: &Chain| links.map(|link| trace(chain, link, rounds.clone()));
    let lost = |chain: &Chain| chain.delivered(101, client(102)).iter().filter(|(_, came)| came.is_none()).count();
    let (of_calm, lost_of_calm) = (traces(&calm), lost(&calm));
    drop(calm);

    type Chance = fn(bool, u32, u64) -> Option<Nanos>;
    let cases: [(&str, Chance, Range<usize>); 3] = [
        ("loss", |_, percent, _| (percent >= 20).then_some(0), 5..100),
        ("delay", |_, percent, ms| Some(if percent < 50 { ms } else { 0 }), 5..400),
        ("cut", |is_quiet, _, _| (!is_quiet).then_some(0), 250..450),
    ];
    for (what, chance, expected) in cases {
        let (chain, _) = talking(3, &meeting, |chain| {
            let is_quiet = is_quiet(chain);
            at_random(chain, &[101], move |now, percent, ms| chance(is_quiet(now), percent, ms));
        });
        for ((link, one), other) in links.into_iter().zip(&of_calm).zip(&traces(&chain)) {
            assert_equal_traces(one, other, &format!("link {link:?}, {what}"));
        }
        let more = lost(&chain) - lost_of_calm;
        println!("{what}: {more} datagrams less");
        assert!(expected.contains(&more), "{what} did happen: {more} datagrams less");
    }
}

#[test]
fn lost_setup_leaves_the_trace_of_a_run_without_its_entry() {
    let (lost, first) = talking(3, &[], |chain| chain.cut_in_phase(103, Phase::Setup(1), Forward));
    let (without, same) = talking(2, &[], |_| {});
    assert_eq!(first, same);
    let next = lost.rounds(first + 1);
    let [one, other] = [&lost, &without].map(|chain| trace(chain, (2, 0), next.clone()));
    assert_equal_traces(&one, &other, "link 2");
    assert_eq!([&lost, &without].map(|chain| chain.channels_both((HOPS, 0), next.clone())), [2, 2]);
}

/// All other entries' setups are held: an n-1 attack.
#[test]
fn isolated_entry_has_the_company_of_the_loops_of_mixes() {
    let mut chain = Chain::new(&PacedTerms { loops: 2, ..few_seats() }, 3).start();
    let (first, period) = (chain.batch(), chain.times.begin(1));
    let others = [102, 103].map(|entry| link_address(entry, Side::Down));
    let phase = chain.times.rounds_of(first, Phase::Setup(1));
    let held = chain.begins(phase.start) - period..chain.begins(phase.end + 12);
    // They come when the phase is over.
    let end = held.end;
    chain.attack(move |now, datagram| {
        let is_held = others.contains(&datagram.from) && held.contains(&now);
        vec![(if is_held { end - now } else { 0 }, datagram)]
    });
    chain.talk(&[101, 102, 103], 2 * chain.batch_time());
    chain.run(LATE);
    for (of_batch, entries) in (first..).zip([3, 1]) {
        for link in 2..=HOPS {
            let channels = chain.channels_both((link, 0), chain.rounds(of_batch));
            assert_eq!(channels, entries + 4 * (link - 1), "link {link}, batch {}", of_batch - first);
        }
    }
    chain.assert_closed();
}

/// Spearman's rank correlation of two orders of the same things.
fn correlation(one: &[u32], other: &[u32]) -> f64 {
    let n = one.len() as f64;
    let rank = |of: &u32| other.iter().position(|other| other == of).expect("the same things") as f64;
    let squares: f64 = one.iter().enumerate().map(|(at, of)| (at as f64 - rank(of)).powi(2)).sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}

#[test]
fn places_of_setups_and_acks_do_not_follow_arrivals() {
    const ENTRIES: usize = 6;
    const RUNS: usize = 60;
    const BATCH: u64 = 80_000_000;
    let mut rng = ChaCha20Rng::seed_from_u64(11);
    let mut counters = Counters::default();
    let config = PacedConfig::new([0xcc; 32], few_seats(), (HOPS, Suite::Hybrid, 10));
    let (times, shape) = (config.times.clone(), config.shape);
    let keys: Vec<_> = (1..=HOPS as u8).map(|hop| SetupKey::generate(Suite::Hybrid, Secret::new([hop; 32]))).collect();
    let hash = |hop: usize| [hop as u8; 32];
    let publics: Vec<_> =
        (1..).zip(&keys).map(|(hop, key)| HopPublic { setup: key.public(), descriptor_hash: hash(hop) }).collect();
    let phase = |phase| times.rounds_of(BATCH, phase);

    // The shards of each entry's setup, as they leave on link 1.
    let setups: Vec<Vec<_>> = (0..ENTRIES)
        .map(|_| {
            let begin = phase(Phase::Setup(1)).start;
            let mut entry = PacedEntry::new(config.clone(), &mut rng, begin - 20);
            entry.bundle(config.interval_of(BATCH + 1), publics.clone());
            entry.advance(&mut rng, &mut counters, begin, true);
            let shards = phase(Phase::Setup(1)).filter_map(|round| entry.cell(round));
            shards.map(|cell| (cell.channel, cell.sub, cell.content.to_vec())).collect()
        })
        .collect();
    // Channels in the order in which the first cell of each leaves.
    let order = |hop: &PacedHop, direction, of: Phase| {
        let mut order = Vec::new();
        for cell in phase(of).flat_map(|round| hop.cells(direction, round)) {
            if !order.contains(&cell.channel) {
                order.push(cell.channel);
            }
        }
        assert_eq!(order.len(), ENTRIES);
        order
    };
    let take =
        |rng: &mut _, hop: &mut PacedHop, position: usize, link, (channel, sub, content): &(u32, u8, Vec<u8>)| {
            let cell = ShardCell { link, home: None, channel: *channel, sub: *sub, content };
            let (hash, key) = (hash(position), &keys[position - 1]);
            let open = |shape, info, onion: &[u8]| Ok(setup::open(shape, position, &[hash], key, info, onion).unwrap());
            hop.shard(rng, &mut Counters::default(), cell, open).unwrap()
        };
    let mut correlations = [0.0; 3];
    for _ in 0..RUNS {
        let mut hops = [1, 2].map(|position| PacedHop::new(config.clone(), position, phase(Phase::Setup(1)).start));
        let mut arrivals: Vec<usize> = (0..ENTRIES).collect();
        arrivals.shuffle(&mut rng);
        let [first, second] = &mut hops;
        let mut accepted = Vec::new();
        for (of, shard) in arrivals.iter().flat_map(|of| setups[*of].iter().map(move |shard| (*of, shard))) {
            let install = take(&mut rng, first, 1, LinkId(of as u32), shard);
            accepted.extend(install.and_then(|install| install.down));
        }
        let begin = phase(Phase::Setup(2)).start;
        first.advance(&mut rng, &mut counters, Forward, begin);
        second.advance(&mut rng, &mut counters, Forward, begin);
        correlations[0] += correlation(&accepted, &order(first, Forward, Phase::Setup(2)));

        // Mix 2 gets them, passes them on, and gets their acks in any order.
        let mut shards = Vec::new();
        for cell in phase(Phase::Setup(2)).flat_map(|round| first.cells(Forward, round)) {
            shards.push((cell.channel, cell.sub, cell.content.to_vec()));
        }
        let (mut ups, mut downs) = (Vec::new(), Vec::new());
        for shard in &shards {
            if let Some(install) = take(&mut rng, second, 2, LinkId(9), shard) {
                ups.push(install.up.1);
                downs.push(install.down.unwrap());
            }
        }
        second.advance(&mut rng, &mut counters, Backward, phase(Phase::Ack(3)).start);
        let mut answered: Vec<usize> = (0..ENTRIES).collect();
        answered.shuffle(&mut rng);
        for (of, sub) in answered.iter().flat_map(|of| (0..ack_cells(shape)).map(move |sub| (*of, sub))) {
            let mut content = vec![0; shape.payload()];
            rng.fill_bytes(&mut content);
            second.ack(&mut counters, (downs[of], sub as u8), &content).unwrap();
        }
        second.advance(&mut rng, &mut counters, Backward, phase(Phase::Ack(2)).start);
        let left = order(second, Backward, Phase::Ack(2));
        correlations[1] += correlation(&ups, &left);
        let answered: Vec<u32> = answered.into_iter().map(|of| ups[of]).collect();
        correlations[2] += correlation(&answered, &left);
    }
    // Of 6 things the correlation of two random orders has the variance 1/5.
    let mean = correlations.map(|sum| sum / RUNS as f64);
    let bound = 5.0 * (0.2 / RUNS as f64).sqrt();
    println!("setups, acks by setups, acks by acks: {mean:.3?}, at most {bound:.3}");
    assert!(mean.iter().all(|mean| mean.abs() < bound), "{mean:?}, at most {bound}");
}

/// Node, what was counted, and why: drops of cells, and what control has refused.
type Count = (usize, &'static str, &'static str);

/// What the nodes have dropped. On link 1 second copies come all the time, and do not count.
fn dropped(chain: &Chain) -> BTreeMap<Count, u64> {
    let mut all = BTreeMap::new();
    for node in (1..=HOPS).chain(101..=103) {
        let cells = chain.ledger(node).cells;
        for (direction, tally) in [("forward", cells.forward), ("backward", cells.backward)] {
            for reason in DropReason::ALL.iter().filter(|reason| **reason != DropReason::Copy) {
                all.insert((node, direction, reason.name()), tally.drops(*reason));
            }
        }
        let is_copied = |why| why == "cell-copy" && (node == 1 || node > 100);
        all.extend(
            chain
                .refused(node)
                .into_iter()
                .filter(|(why, _)| !is_copied(*why))
                .map(|(why, count)| ((node, "control", why), count)),
        );
    }
    all
}

type Make = Box<dyn Fn(Datagram) -> Vec<(Nanos, Datagram)>>;

/// What an attacker does to one cell of a link, when it has let some pass.
struct Blow {
    link: (SocketAddr, SocketAddr),
    passes: usize,
    make: Make,
}

/// A chain with a meeting of entries 101 and 102 and a flow of 103, and somebody on the wire.
struct Wire {
    chain: Chain,
    blow: Rc<RefCell<Option<Blow>>>,
    /// The cell that was struck, as it was sent.
    struck: Rc<RefCell<Vec<u8>>>,
    rng: ChaCha20Rng,
}

impl Wire {
    fn new() -> Wire {
        let mut chain = Chain::with_meetings(&few_seats(), 3, &[(101, SECRET), (102, SECRET)]).start();
        let (blow, len) = (Rc::<RefCell<Option<Blow>>>::default(), chain.terms.class.cell_len());
        let struck = Rc::<RefCell<Vec<u8>>>::default();
        let (next, cell) = (blow.clone(), struck.clone());
        chain.attack(move |_, datagram| {
            let mut blow = next.borrow_mut();
            match &mut *blow {
                Some(Blow { link, passes: 0, make })
                    if *link == (datagram.from, datagram.to) && datagram.bytes.len() == len =>
                {
                    *cell.borrow_mut() = datagram.bytes.clone();
                    let made = make(datagram);
                    *blow = None;
                    made
                }
                Some(Blow { link, passes, .. }) if *link == (datagram.from, datagram.to) => {
                    *passes -= 1;
                    vec![(0, datagram)]
                }
                _ => vec![(0, datagram)],
            }
        });
        // From now on every cell of every channel opens.
        chain.talk(&[101, 102, 103], Duration::from_millis(300));
        Wire { chain, blow, struck, rng: ChaCha20Rng::seed_from_u64(13) }
    }

    /// Strikes one cell of a link. Returns what nodes have dropped until it is over, `after` later.
    fn strike(
        &mut self,
        (link, direction): (LinkOf, Direction),
        after: Duration,
        make: impl Fn(Datagram) -> Vec<(Nanos, Datagram)> + 'static,
    ) -> BTreeMap<Count, u64> {
        self.chain.forget_links();
        let before = dropped(&self.chain);
        let passes = self.rng.random_range(0..5);
        *self.blow.borrow_mut() = Some(Blow { link: ends(link, direction), passes, make: Box::new(make) });
        self.chain.run(after);
        assert!(self.blow.borrow().is_none(), "no cell on link {link:?} {direction:?}");
        let changed = dropped(&self.chain).into_iter().filter_map(|(count, now)| {
            let more = now - before.get(&count).copied().unwrap_or(0);
            (more > 0).then_some((count, more))
        });
        changed.collect()
    }

    /// True if the cell that was struck is one of a channel.
    fn has_struck_data(&self) -> bool {
        let (mut is_data, struck) = (false, self.struck.borrow());
        self.chain.each_opened(|Opened { seen, header, .. }| {
            is_data |= seen.bytes == *struck && header.kind == CellKind::Data;
        });
        is_data
    }

    /// Waits until the rounds until now are in reports.
    fn wait_for_reports(&mut self) {
        let due = (self.chain.round_at(self.chain.now) / 100 + 1) * 100;
        let reported = self.chain.begins(due + 40);
        self.chain.run_until(reported);
    }

    /// Places that were filled with noise, and those of them that were lost, as reports say: by direction and the node
    /// to which they were to come. Entries count lost ones themselves.
    fn filled(&self) -> HashMap<(usize, Direction), (u64, u64)> {
        let of = |reported: Reported| (reported.filled, reported.lost);
        let of_node = |node| match self.chain.status(node) {
            // Mix 1 reports to each entry on its own channel.
            PacedStatus::Entry(status) => {
                [((node, Forward), of(status.forward)), ((node, Backward), of(status.backward))]
            }
            PacedStatus::Hop(status) => {
                [((node + 1, Forward), of(status.forward)), ((node - 1, Backward), of(status.backward))]
            }
        };
        self.chain.numbers().flat_map(of_node).collect()
    }
}

/// One altered bit of one cell, at each of some places on each link and direction. Whoever receives it drops it, and if
/// it was a data cell, noise takes its place behind link 1, which its end cannot open.
#[test]
fn damaged_cell_costs_one_place_and_changes_nothing_else() {
    let mut wire = Wire::new();
    let mut ends_seen = [0, 0];
    for (link, direction) in (1..=HOPS).flat_map(|link| DIRECTIONS.map(|direction| (link, direction))) {
        wire.wait_for_reports();
        let (filled_before, mut data_struck) = (wire.filled(), 0);
        let mut tags = 0;
        // Header and tag are one block; the body from begin to end.
        for (nth, byte) in [0, 11, 14, 16, 100, 128, 239].repeat(9).into_iter().enumerate() {
            // Three of at most eight cells of a round are data.
            if nth >= 21 && tags > 0 {
                break;
            }
            let (bit, entry) = (wire.rng.random_range(0..8), 101 + wire.rng.random_range(0..3));
            let changed = wire.strike(((link, entry), direction), LATE, move |mut datagram| {
                datagram.bytes[byte] ^= 1 << bit;
                vec![(0, datagram)]
            });
            let what = format!("link {link} {direction:?}, byte {byte}: {changed:?}");
            let receiver = match direction {
                Forward => link,
                Backward if link == 1 => entry,
                Backward => link - 1,
            };
            let way = if direction == Forward { "forward" } else { "backward" };
            let count = |node, of, why| changed.get(&(node, of, why)).copied().unwrap_or(0);
            let (tag, header) = (count(receiver, way, "bad-tag"), count(receiver, way, "header"));
            let forged = count(receiver, way, "forged");
            // The second copy of a control cell counts as one whatever is in it.
            if link == 1 && byte >= 16 && changed.is_empty() {
                continue;
            }
            let at_exit = count(HOPS, "forward", "garbled");
            let at_entries: u64 = (101..=103).map(|entry| count(entry, "backward", "garbled")).sum();
            assert_eq!(changed.values().sum::<u64>(), 1 + at_exit + at_entries, "{what}");
            assert_eq!(if byte < 16 { [header, 0] } else { [0, tag + forged] }, [header, tag + forged], "{what}");
            assert_eq!(header + tag + forged, 1, "{what}");
            let behind = at_exit + at_entries;
            match (link, direction) {
                (1, _) => assert_eq!(behind, 0, "the other copy takes its place: {what}"),
                // A round without a cell: the exit opens nothing, and in a meeting it passes on noise.
                (HOPS, Forward) => assert!(at_exit == 0 && behind <= tag + header, "{what}"),
                (_, Forward) => assert!(behind == tag || (header == 1 && behind <= 1), "{what}"),
                (_, Backward) => assert!(at_exit == 0 && (behind == tag || (header == 1 && behind <= 1)), "{what}"),
            }
            data_struck += u64::from(wire.has_struck_data());
            tags += tag;
            ends_seen[0] += at_exit;
            ends_seen[1] += at_entries;
        }
        assert!(tags > 0, "no data cell was hit on link {link} {direction:?}");

        // Whoever receives a damaged data cell between hops fills its place. On link 1 a copy takes it.
        wire.wait_for_reports();
        let receiver = if direction == Forward { link } else { link - 1 };
        for (of, (filled, lost)) in wire.filled() {
            let (filled_before, lost_before) = filled_before[&of];
            let expected = if of == (receiver, direction) && link > 1 { data_struck } else { 0 };
            let found = (filled - filled_before, lost - lost_before);
            assert_eq!(found, (expected, expected), "filled and lost at {of:?}, struck on link {link} {direction:?}");
        }
    }
    assert!(ends_seen.iter().all(|count| *count > 0), "at the exit and in the meeting: {ends_seen:?}");
    wire.chain.assert_closed();
}

#[test]
fn replayed_and_foreign_cells_are_dropped_and_counted() {
    let mut wire = Wire::new();
    let len = wire.chain.terms.class.cell_len();
    let up = |node| link_address(node, Side::Up);
    let down = |node| link_address(node, Side::Down);
    let stranger = SocketAddr::from(([10, 9, 9, 9], 9));
    let of_batch = 10 * u64::from(wire.chain.terms.rounds);
    // A second datagram with the bytes of one of a link, from where and to where, and how many ms later.
    for (what, (link, direction), (from, to), after_ms, (node, why)) in [
        ("at once", (3, Forward), (down(2), up(3)), 0, (3, "replay")),
        ("after the release of its round", (3, Forward), (down(2), up(3)), 15, (3, "late")),
        ("in the next batch", (3, Forward), (down(2), up(3)), of_batch, (3, "late")),
        ("1100 rounds later", (3, Forward), (down(2), up(3)), 11_000, (3, "header")),
        ("on another link", (3, Forward), (down(3), up(4)), 0, (4, "header")),
        ("back to its sender", (3, Forward), (up(3), down(2)), 0, (2, "header")),
        ("on the link of another entry", (1, Forward), (down(102), up(1)), 0, (1, "header")),
        ("from somewhere else", (1, Forward), (stranger, up(1)), 0, (1, "stranger")),
        ("at once", (2, Backward), (up(2), down(1)), 0, (1, "replay")),
        ("after the release of its round", (2, Backward), (up(2), down(1)), 15, (1, "late")),
        ("at once", (4, Backward), (up(4), down(3)), 0, (3, "replay")),
        ("in the next batch", (4, Backward), (up(4), down(3)), of_batch, (3, "late")),
        ("back to its sender", (4, Backward), (down(3), up(4)), 0, (4, "header")),
        ("300 rounds later", (1, Backward), (up(1), down(101)), 3000, (101, "late")),
        ("1100 rounds later", (1, Backward), (up(1), down(101)), 11_000, (101, "header")),
        ("on the link of another entry", (1, Backward), (up(1), down(102)), 0, (102, "header")),
    ] {
        let mut found = 0;
        // Three of at most eight cells of a round are data.
        for _ in 0..30 {
            let after = Duration::from_millis(after_ms) + LATE;
            let changed = wire.strike(((link, 101), direction), after, move |datagram| {
                let again = Datagram { from, to, bytes: datagram.bytes.clone() };
                vec![(0, datagram), (after_ms * MILLI, again)]
            });
            let changed: Vec<_> = changed.into_iter().collect();
            let way = if to == up(node) { "forward" } else { "backward" };
            // A control cell has no round: it is a replay whenever it comes again.
            let is_control = why != "replay" && changed == [((node, way, "replay"), 1)];
            assert!(changed == [((node, way, why), 1)] || is_control, "{what}, link {link} {direction:?}: {changed:?}");
            found += usize::from(!is_control);
            if found == 3 || (found == 1 && after_ms > 1000) {
                break;
            }
        }
        assert!(found > 0, "{what}: only control cells");
    }

    // On link 1 a third datagram counts as the second one does, and nobody gets anything twice.
    let copies = |wire: &Wire| wire.chain.ledger(101).cells.backward.drops(DropReason::Copy);
    for _ in 0..10 {
        let changed = wire.strike(((1, 101), Backward), LATE, |datagram| vec![(0, datagram.clone()), (0, datagram)]);
        assert_eq!(changed, BTreeMap::new(), "one copy more on link 1");
    }
    let before = copies(&wire);
    wire.chain.run(LATE);
    assert!(copies(&wire) > before);
    let seen = wire.chain.at_apps();
    let mut came = HashSet::new();
    for seen in seen.iter().filter(|seen| [101, 102, 103].map(client).contains(&seen.to)) {
        assert!(came.insert((seen.to, &seen.bytes)), "a datagram came twice");
    }
    drop(seen);

    // Cells of the free class of the same size, on the same port: by their length, or by the class in the header.
    let free = Shape::new(Class::S, HOPS).expect("four hops").cell_len(Forward, 2);
    assert_ne!(free, len);
    for (link, node) in [(1, 1), (2, 2)] {
        let changed = wire.strike(((link, 101), Forward), LATE, move |datagram| {
            vec![(0, Datagram { bytes: vec![0x5a; free], ..datagram.clone() }), (0, datagram)]
        });
        assert_eq!(changed, BTreeMap::from([((node, "forward", "length"), 1)]), "a cell of another length");
        let make_free = wire.chain.make_free(if link == 1 { 101 } else { 1 });
        let changed = wire.strike(((link, 101), Forward), LATE, move |datagram| {
            let mut free = datagram.clone();
            make_free(&mut free.bytes);
            vec![(0, free), (0, datagram)]
        });
        assert_eq!(changed, BTreeMap::from([((node, "forward", "header"), 1)]), "a header of the free class");
    }
    wire.chain.assert_closed();
}
