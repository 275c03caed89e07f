//! A pool against a plain list: when it is due, and that what goes in comes out once.

use std::cell::RefCell;
use std::collections::HashSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use wire::ids::ChannelIndex;

use super::company::{Bits, Company};
use super::{Mixing, OWN, POOL_MAX, Pool, Pooled, ticket};
use crate::batch::{Label, RECEIVE_MAX};
use crate::buffer::{Cell, FreeList};
use crate::{MILLI, Nanos, SECOND};

#[derive(Clone, Debug)]
enum Step {
    /// A number of cells of one channel, or of the node's own, arrive.
    Admit {
        channel: Option<ChannelIndex>,
        count: usize,
    },
    Wait(Nanos),
    /// Time passes to a nanosecond before the pool is due, or to when it is.
    WaitForDue {
        early: bool,
    },
    /// Cells of one channel arrive until there is room for so many.
    Fill {
        room: usize,
    },
    /// It is released if it is due, or whether it is due or not.
    Release {
        only_due: bool,
    },
}

fn mixing() -> impl Strategy<Value = Mixing> {
    let n = prop_oneof![1usize..10, 1usize..200, Just(POOL_MAX)];
    let t = prop_oneof![Just(MILLI / 10), MILLI..20 * MILLI, Just(60 * SECOND)];
    prop_oneof![
        (n.clone(), any::<prop::sample::Index>()).prop_map(|(n, m)| Mixing::Threshold { n, n_min: 1 + m.index(n) }),
        t.clone().prop_map(|t| Mixing::Timed { t }),
        (n, any::<prop::sample::Index>(), t).prop_map(|(n, m, t)| Mixing::ThresholdOrTimed {
            n,
            n_min: 1 + m.index(n),
            t
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let channel = prop_oneof![4 => (0u32..6).prop_map(Some), 1 => Just(None)];
    let count = prop_oneof![8 => 1usize..8, 1 => 1usize..1500];
    prop_oneof![
        10 => (channel, count).prop_map(|(channel, count)| Step::Admit { channel: channel.map(ChannelIndex), count }),
        3 => (0..10 * MILLI).prop_map(Step::Wait),
        2 => any::<bool>().prop_map(|early| Step::WaitForDue { early }),
        1 => (RECEIVE_MAX - 2..RECEIVE_MAX + 3).prop_map(|room| Step::Fill { room }),
        4 => prop::bool::weighted(0.8).prop_map(|only_due| Step::Release { only_due }),
    ]
}

/// What is in the pool, in order of arrival: number, channel, when.
type Model = Vec<(u64, Option<ChannelIndex>, Nanos)>;

/// True if this number of cells and channels releases the pool at once, by count.
fn by_count(mixing: Mixing, model: &Model) -> bool {
    let channels: HashSet<ChannelIndex> = model.iter().filter_map(|(_, channel, _)| *channel).collect();
    match mixing {
        Mixing::Threshold { n, n_min } | Mixing::ThresholdOrTimed { n, n_min, .. } => {
            model.len() >= n && channels.len() >= n_min
        }
        Mixing::Timed { .. } => false,
    }
}

/// The distance of the instants at which a pool is due; none if a cell is due when it comes.
fn distance(mixing: Mixing) -> Option<Nanos> {
    match mixing {
        Mixing::Threshold { n: 1, .. } => None,
        Mixing::Threshold { .. } => Some(SECOND),
        Mixing::Timed { t } | Mixing::ThresholdOrTimed { t, .. } => Some(t),
    }
}

/// Holds a release against what was in the pool.
fn check_release(released: &[Pooled], model: &Model) -> Result<(), TestCaseError> {
    let number = |pooled: &Pooled| pooled.ticket.header.seq;
    let mut out: Vec<u64> = released.iter().map(number).collect();
    for channel in 0..6 {
        let of = |pooled: &&Pooled| pooled.ticket.label == Label::Channel(ChannelIndex(channel));
        let order: Vec<u64> = released.iter().filter(of).map(number).collect();
        let came: Vec<u64> =
            model.iter().filter(|cell| cell.1 == Some(ChannelIndex(channel))).map(|cell| cell.0).collect();
        prop_assert_eq!(order, came, "each channel keeps its order");
    }
    // The numbers are written into the cells too, so a cell under another's ticket shows.
    prop_assert!(released.iter().all(|pooled| pooled.cell.bytes(8) == number(pooled).to_be_bytes()));
    out.sort_unstable();
    prop_assert_eq!(out, model.iter().map(|cell| cell.0).collect::<Vec<_>>(), "what goes in comes out once");
    Ok(())
}

/// Holds the company of a release against the cells of each channel in the pool.
fn check_company(company: &Company, model: &Model) -> Result<(), TestCaseError> {
    let mut counts = [0u32; 6];
    model.iter().filter_map(|cell| cell.1).for_each(|channel| counts[channel.index()] += 1);
    let cells: u32 = counts.iter().sum();
    let shares = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / f64::from(cells));
    let channels = shares.clone().count() as u32;
    prop_assert_eq!((company.cells, company.channels, company.prefixes), (cells, channels, None));
    let entropy: f64 = shares.clone().map(|share| -share * share.log2()).sum();
    let min_entropy = shares.reduce(f64::max).map_or(0.0, |share| -share.log2());
    for (found, want) in [(company.entropy, entropy), (company.min_entropy, min_entropy)] {
        prop_assert!((Bits::from_sum(found.0.into(), 1) - want).abs() < 1e-4, "{:?} is not {} bits", found, want);
    }
    Ok(())
}

fn case(free: &mut FreeList, mixing: Mixing, seed: u64, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut pool = Pool::new(mixing, ChaCha20Rng::seed_from_u64(seed));
    let mut model = Model::new();
    let (mut now, mut number) = (SECOND, 0);
    // An instant at which the pool was due once: all others are whole distances from it.
    let mut instant: Option<Nanos> = None;
    for step in steps {
        let mut release = None;
        let step = match step {
            Step::Fill { room } => {
                Step::Admit { channel: Some(ChannelIndex(0)), count: pool.room().saturating_sub(room) }
            }
            other => other,
        };
        match step {
            Step::Admit { channel, count } => {
                for _ in 0..count.min(pool.room()) {
                    let mut cell = Cell::own(free.take().expect("as many as a pool holds"));
                    cell.bytes_mut(8).copy_from_slice(&u64::to_be_bytes(number));
                    pool.admit(cell, ticket(channel.map_or(OWN, Label::Channel), number, now));
                    model.push((number, channel, now));
                    number += 1;
                }
            }
            Step::Wait(time) => now += time,
            Step::WaitForDue { early } => now = pool.due_at().map_or(now, |at| now.max(at - u64::from(early))),
            Step::Fill { .. } => unreachable!("made a number above"),
            Step::Release { only_due } => release = Some(only_due),
        }
        prop_assert_eq!((pool.len(), pool.room()), (model.len(), POOL_MAX - model.len()));
        prop_assert_eq!(pool.is_empty(), model.is_empty());
        let oldest = model.first().map(|cell| cell.2);
        let due_at = pool.due_at();
        match (oldest, distance(mixing)) {
            (None, _) => prop_assert_eq!(due_at, None),
            (Some(oldest), None) => prop_assert_eq!(due_at, Some(oldest)),
            (Some(oldest), Some(distance)) => {
                let at = due_at.expect("a cell is never stranded");
                prop_assert!(at > oldest && at - oldest <= distance, "{} after {}", at, oldest);
                let known = *instant.get_or_insert(at);
                prop_assert_eq!(at.abs_diff(known) % distance, 0, "the grid has moved");
            }
        }
        let full = POOL_MAX - model.len() < RECEIVE_MAX;
        let want = !model.is_empty() && (by_count(mixing, &model) || full || due_at.is_some_and(|at| at <= now));
        prop_assert_eq!(pool.due(now), want, "{} cells at {}", model.len(), now);
        if release.is_some_and(|only_due| !only_due || want) {
            let mut out = Vec::new();
            let company = pool.release(now, &mut out);
            let checked = check_release(&out, &model).and_then(|()| check_company(&company, &model));
            out.into_iter().for_each(|pooled| free.give(pooled.cell.into_buffer()));
            checked?;
            model.clear();
            prop_assert_eq!((pool.len(), pool.distinct_channels(), pool.due(Nanos::MAX)), (0, 0, false));
        }
    }
    let mut out = Vec::new();
    pool.release(now, &mut out);
    out.into_iter().for_each(|pooled| free.give(pooled.cell.into_buffer()));
    Ok(())
}

#[test]
fn a_pool_agrees_with_a_plain_list() {
    // Buffers live as long as the process: all cases share them, and one that failed keeps its own.
    let free = RefCell::new(FreeList::new(POOL_MAX));
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let input = (mixing(), any::<u64>(), prop::collection::vec(step(), 1..100));
    let done = runner.run(&input, |(mixing, seed, steps)| {
        let mut free = free.borrow_mut();
        if free.free() < POOL_MAX {
            *free = FreeList::new(POOL_MAX);
        }
        case(&mut free, mixing, seed, steps)
    });
    if let Err(why) = done {
        panic!("{why}");
    }
}
