//! What an observer of links sees of a paced class, in memory: times to the nanosecond, lengths and counts. Losses,
//! delays and cuts elsewhere do not change them.

use std::ops::Range;

use dataplane::Nanos;
use dataplane::ledger::DropReason;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction::{Backward, Forward};
use wire::ids::Side;
use wire::paced::{PacedTerms, Phase};

use crate::common::pacedchain::{
    Chain, HOPS, LATE, LinkOf, SECRET, client, ends, few_seats, link_address, small_and_large,
};

const MILLI: Nanos = 1_000_000;

/// What an observer of a link sees in some rounds: times, lengths, directions.
fn trace(chain: &Chain, link: LinkOf, rounds: Range<u64>) -> Vec<(Nanos, usize, bool)> {
    let seen = chain.seen();
    let of = |direction| {
        let link = ends(link, direction);
        let of_link = seen.iter().filter(move |seen| (seen.from, seen.to) == link);
        of_link.map(move |seen| (seen.at, seen.bytes.len(), direction == Forward))
    };
    // At the begin of a batch cells of the one before are still under way.
    let rounds = rounds.start + 8..rounds.end;
    let of_time = |at: &Nanos| rounds.contains(&chain.round_at(*at));
    let mut trace: Vec<_> = of(Forward).chain(of(Backward)).filter(|(at, ..)| of_time(at)).collect();
    trace.sort_unstable();
    trace
}

/// Entries that talk for two batches, from the first batch on that has channels of all. Returns its number, too.
fn talking(
    terms: &PacedTerms,
    entries: usize,
    meetings: &[(usize, [u8; 32])],
    attack: impl FnOnce(&Chain),
) -> (Chain, u64) {
    let mut chain = Chain::with_meetings(terms, entries, meetings).start();
    let first = chain.batch();
    attack(&chain);
    let entries: Vec<_> = (101..101 + entries).collect();
    chain.talk(&entries, 2 * chain.batch_time());
    chain.run(LATE);
    (chain, first)
}

/// Lets every datagram of the access links of some entries meet with chance.
fn at_random(chain: &Chain, entries: &[usize], mut chance: impl FnMut(Nanos, u32, Nanos) -> Option<Nanos> + 'static) {
    let mut rng = ChaCha20Rng::seed_from_u64(9);
    let entries: Vec<_> = entries.iter().map(|entry| link_address(*entry, Side::Down)).collect();
    chain.attack(move |now, datagram| {
        let (percent, time) = (rng.random_range(0..100), rng.random_range(0..60 * MILLI));
        let is_access = entries.contains(&datagram.from) || entries.contains(&datagram.to);
        let after = if is_access { chance(now, percent, time) } else { Some(0) };
        after.map(|after| (after, datagram)).into_iter().collect()
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
    for terms in small_and_large() {
        let all = [101, 102, 103];
        let (calm, first) = talking(&terms, 3, &[], |_| {});
        let rounds = calm.times.first(first)..calm.times.first(first + 2);
        let link_2 = |chain: &Chain| trace(chain, (2, 0), rounds.clone());
        let (trace_of_calm, came) = (link_2(&calm), calm.at_destination());
        drop(calm);

        let slack = Nanos::from(terms.slack_ms) * MILLI;
        let (delayed, _) =
            talking(&terms, 3, &[], |chain| at_random(chain, &all, move |_, _, time| Some(time % slack)));
        assert_equal_traces(&trace_of_calm, &link_2(&delayed), "link 2, delays shorter than the slack");
        assert_equal_traces(&came, &delayed.at_destination(), "destination, delays shorter than the slack");
        drop(delayed);

        let lose = |_, percent, time| (percent >= 5).then_some(if percent < 15 { time } else { 0 });
        let (lossy, _) = talking(&terms, 3, &[], |chain| at_random(chain, &all, lose));
        let channels = [0, 1].map(|more| lossy.channels_both((2, 0), lossy.rounds(first + more)));
        assert_eq!(channels, [3, 3], "all setups came");
        assert_equal_traces(&trace_of_calm, &link_2(&lossy), "link 2, loss and long delays");
        let mix_1 = lossy.ledger(1).cells.forward;
        assert!(mix_1.drops(DropReason::Late) > 100, "they did happen");
        assert!(terms.repeat || lossy.at_destination().len() < came.len(), "they did happen");
    }
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
    let (calm, first) = talking(&few_seats(), 3, &meeting, |_| {});
    let rounds = calm.times.first(first)..calm.times.first(first + 2);
    let links = [(1, 102), (1, 103), (2, 0), (3, 0), (4, 0)];
    let traces = |chain: &Chain| links.map(|link| trace(chain, link, rounds.clone()));
    let lost = |chain: &Chain| chain.delivered(101, client(102)).iter().filter(|(_, came)| came.is_none()).count();
    let (of_calm, lost_of_calm) = (traces(&calm), lost(&calm));
    drop(calm);

    type Chance = fn(bool, u32, Nanos) -> Option<Nanos>;
    let cases: [(&str, Chance, Range<usize>); 3] = [
        ("loss", |_, percent, _| (percent >= 20).then_some(0), 5..100),
        ("delay", |_, percent, time| Some(if percent < 50 { time } else { 0 }), 5..400),
        ("cut", |is_quiet, _, _| (!is_quiet).then_some(0), 250..450),
    ];
    for (what, chance, expected) in cases {
        let (chain, _) = talking(&few_seats(), 3, &meeting, |chain| {
            let is_quiet = is_quiet(chain);
            at_random(chain, &[101], move |now, percent, time| chance(is_quiet(now), percent, time));
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
    let (lost, first) = talking(&few_seats(), 3, &[], |chain| chain.cut_in_phase(103, Phase::Setup(1), Forward));
    let (without, same) = talking(&few_seats(), 2, &[], |_| {});
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
    let (first, period) = (chain.batch(), chain.times.period());
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
