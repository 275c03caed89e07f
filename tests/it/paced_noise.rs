//! What an observer of links, or a corrupt exit, sees in the bytes of a paced class (SPEC 9.2, 9.3, 9.13): noise.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

use dataplane::paced::entry::MeetingState;
use eddy_virtual::ExitBody;

use crate::common::pacedchain::{Chain, DIRECTIONS, HOPS, LATE, client, destination, few_seats, is_lost};

/// Both entries have one secret.
const MEETING: [(usize, [u8; 32]); 2] = [(101, [7; 32]), (102, [7; 32])];

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

/// Quantiles of 1e-7 and 1 - 1e-7 with 255 degrees of freedom (Wilson and Hilferty). One run in 41,000 has one of its
/// 120 statistics of links beyond them.
const PLAUSIBLE: Range<f64> = 154.2..390.5;

/// Two entries that talk for three batches, with each other or with a destination, and lose rounds on their way to Mix
/// 1. `watch` sees what the exit has. Returns the first batch, too.
fn lossy(meetings: &[(usize, [u8; 32])], watch: impl FnMut(ExitBody) + 'static) -> (Chain, u64) {
    let mut chain = Chain::with_meetings(&few_seats(), 2, meetings).start();
    chain.lose_rounds();
    chain.watch_exit(watch);
    let first = chain.batch();
    chain.talk(&[101, 102], 3 * chain.batch_time());
    chain.run(LATE);
    for (entry, _) in meetings {
        assert_eq!(chain.shown(*entry).meeting, Some(MeetingState::Joined));
    }
    (chain, first)
}

/// Counts of byte values in the headers and the bodies of cells, of rounds that came to Mix 1 and of lost ones.
type Counts = [[[u64; 256]; 2]; 2];

/// Fails unless bytes are uniform, and those of lost rounds like those of others.
fn assert_noise(counts: &Counts, what: &str) {
    for (part, counts) in ["headers", "bodies"].into_iter().zip(counts) {
        let of_each = counts.map(|counts| chi_squared(&counts));
        let of_both = chi_squared_of_two(&counts[0], &counts[1]);
        println!("{what}, {part}: chi-squared {of_each:.0?}, of both {of_both:.0}");
        let are_plausible = of_each.iter().chain([&of_both]).all(|chi| PLAUSIBLE.contains(chi));
        assert!(are_plausible, "{what}, {part}: {of_each:?}, lost against others {of_both}");
    }
}

#[test]
fn headers_and_bodies_look_like_noise_on_every_link() {
    for (meetings, reached) in [(&MEETING[..], client(102)), (&[], destination())] {
        let (chain, first) = lossy(meetings, |_| ());
        let (mut cells, mut bodies) = (HashSet::new(), HashSet::new());
        let links = [(1, 101), (1, 102)].into_iter().chain((2..=HOPS).map(|link| (link, 0)));
        for (link, direction) in links.flat_map(|link| DIRECTIONS.map(|direction| (link, direction))) {
            let what = format!("to {reached}, link {link:?} {direction:?}");
            let mut counts = [[[0; 256]; 2]; 2];
            let rounds = chain.times.first(first)..chain.times.first(first + 3);
            for (round, _, cell) in chain.cells(link, direction, rounds) {
                // Copies, which are on link 1 only, are the same bytes.
                if link.0 == 1 && !cells.insert(cell.clone()) {
                    continue;
                }
                let (header, body) = cell.split_at(16);
                for (counts, bytes) in counts.iter_mut().zip([header, body]) {
                    bytes.iter().for_each(|byte| counts[usize::from(is_lost(round))][usize::from(*byte)] += 1);
                }
                assert!(bodies.insert(body.to_vec()), "{what}: a body that was seen before");
            }
            let bytes = counts.map(|of_part| of_part.map(|counts| counts.iter().sum::<u64>()));
            let [least_of_headers, least_of_bodies] = if link.0 == 1 { [4_000, 60_000] } else { [15_000, 200_000] };
            assert!(bytes[0].iter().all(|bytes| *bytes > least_of_headers), "{what}: {bytes:?}");
            assert!(bytes[1].iter().all(|bytes| *bytes > least_of_bodies), "{what}: {bytes:?}");
            assert_noise(&counts, &what);
        }
        // The rounds were lost: their datagrams did not come.
        let sent = chain.delivered(101, reached);
        let lost = sent.iter().filter(|(_, came)| came.is_none()).count();
        assert!(lost * 10 > sent.len() && lost * 3 < sent.len(), "{lost} of {} lost", sent.len());
    }
}

/// The exit takes off no layer of a meeting: it adds one for the channel on which a cell comes, and one for the other.
/// Between them it sees noise, at every byte, and nothing of which rounds were lost before Mix 1.
#[test]
fn bodies_between_the_layers_of_the_exit_look_like_noise() {
    // Bodies of the same round, in the order of their entries.
    let pairs = Rc::<RefCell<BTreeMap<u64, BTreeMap<usize, Vec<u8>>>>>::default();
    let seen = pairs.clone();
    let (chain, first) = lossy(&MEETING, move |ExitBody { round, entry, between, .. }| {
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
