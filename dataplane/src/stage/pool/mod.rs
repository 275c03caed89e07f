//! The pool: cells wait here for others, to be shuffled and released together (SPEC 6).
//!
//! A pool holds the cells of one direction. [`grid`] says when a timed release is due, [`shuffle`]
//! puts a release into an order that depends on labels only, and [`Mixing`] says which rule holds.
//! Cells are permuted as references; no byte of them moves.

pub mod company;
pub mod grid;
mod mixing;
pub mod shuffle;

pub use mixing::{BadMixing, Mixing};

use rand::Rng;
use rand_chacha::ChaCha20Rng;

use crate::batch::{NO_PREFIX, RECEIVE_MAX, Ticket};
use crate::buffer::{Cell, Opened};
use crate::latency::Times;
use crate::{Nanos, SECOND};
use company::{Company, PREFIXES_EVERY};
use grid::Grid;
use shuffle::Shuffle;

/// Cells that a pool can be configured to wait for.
pub(crate) const THRESHOLD_MAX: usize = 4096;
/// Cells that a pool holds at most. It is flushed early when it has no room for a receive batch, so that
/// receiving never waits for the grid.
pub const POOL_MAX: usize = THRESHOLD_MAX + RECEIVE_MAX;

/// A cell in a pool, with all it needs to leave.
pub struct Pooled {
    pub cell: Cell<Opened>,
    /// The next link, and the label that decides the order.
    pub ticket: Ticket,
}

/// The pool of one direction.
pub struct Pool {
    mixing: Mixing,
    grid: Option<Grid>,
    /// None only while they leave.
    held: Vec<Option<Pooled>>,
    /// Their arrival times, and whether they are control's: once for consecutive cells that are alike in both.
    arrivals: Vec<(Nanos, bool)>,
    shuffle: Shuffle,
    /// Arrival of the oldest cell.
    oldest: Nanos,
    /// Prefixes are counted again from this time on.
    prefixes_due: Nanos,
    /// Scratch space: those of the channels held.
    prefixes: Vec<u32>,
    rng: ChaCha20Rng,
}

impl Pool {
    /// An empty pool; the phase of its grid is drawn from `rng`.
    pub fn new(mixing: Mixing, mut rng: ChaCha20Rng) -> Pool {
        let grid = mixing.period().map(|period| Grid::new(period, rng.next_u64()));
        let (held, arrivals) = (Vec::with_capacity(POOL_MAX), Vec::with_capacity(POOL_MAX));
        let prefixes = Vec::with_capacity(POOL_MAX);
        Pool { mixing, grid, held, arrivals, shuffle: Shuffle::default(), oldest: 0, prefixes, prefixes_due: 0, rng }
    }

    /// Takes a cell in.
    ///
    /// # Panics
    /// If the pool is full: ask [`Pool::room`] first.
    pub fn admit(&mut self, cell: Cell<Opened>, mut ticket: Ticket) {
        assert!(self.held.len() < POOL_MAX, "the caller asks for room first");
        if self.held.is_empty() {
            self.oldest = ticket.arrived;
        }
        let arrival = (ticket.arrived, ticket.is_own());
        if self.arrivals.last() != Some(&arrival) {
            self.arrivals.push(arrival);
        }
        ticket.times = self.arrivals.len() as u32 - 1;
        self.shuffle.admit(ticket.label);
        self.held.push(Some(Pooled { cell, ticket }));
    }

    /// Cells it can still take.
    pub fn room(&self) -> usize {
        POOL_MAX - self.held.len()
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Distinct channels in it.
    pub(crate) fn distinct_channels(&self) -> usize {
        self.shuffle.distinct_channels()
    }

    /// The time at which the oldest cell must leave, if there is one.
    pub(crate) fn due_at(&self) -> Option<Nanos> {
        if self.held.is_empty() {
            return None;
        }
        Some(self.grid.as_ref().map_or(self.oldest, |grid| grid.after(self.oldest)))
    }

    /// True if it must be released now: by count, by time, or because it has no more room.
    pub fn due(&self, now: Nanos) -> bool {
        !self.held.is_empty()
            && (self.mixing.reached(self.held.len(), self.distinct_channels())
                || self.due_at().is_some_and(|at| at <= now)
                || self.room() < RECEIVE_MAX)
    }

    /// The table of times into which the `times` of each ticket points: each arrival, and its release, which is now or
    /// the time at which it was due if that has passed. Cells of other cores may be older than the oldest one known
    /// here, so each has a time of its own.
    pub fn times(&self, now: Nanos) -> impl Iterator<Item = Times> {
        let due = |arrived: Nanos| self.grid.as_ref().map_or(arrived, |grid| grid.after(arrived));
        self.arrivals.iter().map(move |(arrived, own)| Times::new(*arrived, due(*arrived).min(now)).own(*own))
    }

    /// Shuffles what it holds and moves it to the end of `out`. Returns the company that the cells had.
    pub fn release(&mut self, now: Nanos, out: &mut Vec<Pooled>) -> Company {
        let prefixes = if now >= self.prefixes_due {
            self.prefixes_due = now + PREFIXES_EVERY;
            self.distinct_prefixes()
        } else {
            None
        };
        let company = Company { prefixes, ..self.shuffle.run(&mut self.held, out, &mut self.rng) };
        crate::rekey(&mut self.rng);
        self.arrivals.clear();
        company
    }

    /// Distinct prefixes of the channels held, if this hop knows prefixes.
    fn distinct_prefixes(&mut self) -> Option<u32> {
        let firsts = self.held.iter().flatten().zip(self.shuffle.firsts()).filter(|(_, is_first)| *is_first);
        let prefixes = firsts.map(|(pooled, _)| pooled.ticket.prefix);
        self.prefixes.clear();
        self.prefixes.extend(prefixes.filter(|prefix| *prefix != NO_PREFIX));
        self.prefixes.sort_unstable();
        self.prefixes.dedup();
        (!self.prefixes.is_empty()).then_some(self.prefixes.len() as u32)
    }
}

/// Period of the last resort of `threshold` (SPEC 6.2).
pub(crate) const LAST_RESORT: Nanos = SECOND;

/// The label of a cell of control's, for tests.
#[cfg(test)]
const OWN: crate::batch::Label = crate::batch::Label::Own(wire::ids::SlotId(0));

/// A ticket for tests.
#[cfg(test)]
pub(crate) fn ticket(label: crate::batch::Label, seq: u64, arrived: Nanos) -> Ticket {
    use wire::cell::{CellKind, Class, Header};
    Ticket {
        link: wire::ids::LinkId(0),
        header: Header { channel: 1, seq, sub: 0, kind: CellKind::Data, class: Class::S },
        label,
        arrived,
        times: 0,
        prefix: NO_PREFIX,
    }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MILLI;
    use crate::batch::Label;
    use crate::buffer::FreeList;
    use rand::SeedableRng;
    use wire::ids::ChannelIndex;

    fn pool(spec: &str, seed: u64) -> Pool {
        Pool::new(spec.parse().unwrap(), ChaCha20Rng::seed_from_u64(seed))
    }

    #[test]
    fn the_delay_of_a_lone_cell_is_uniform_up_to_t() {
        let t = 5 * MILLI;
        let mut free = FreeList::new(1);
        let mut bins = [0u32; 20];
        let rounds = 20_000u32;
        // Always the same arrival, so that only the grid's phase varies.
        let arrived = 1_000_000_007;
        for seed in 0..rounds {
            let mut pool = pool("threshold-or-timed:n=64,t=5ms", u64::from(seed));
            pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(1)), 0, arrived));
            let delay = pool.due_at().unwrap() - arrived;
            assert!(delay > 0 && delay <= t);
            assert!(!pool.due(arrived + delay - 1) && pool.due(arrived + delay));
            bins[((delay - 1) * 20 / t) as usize] += 1;
            let mut out = Vec::new();
            pool.release(SECOND, &mut out);
            out.drain(..).for_each(|p| free.give(p.cell.into_buffer()));
        }
        // Chi-squared with 19 degrees of freedom: 43.8 has p = 0.001.
        let expected = f64::from(rounds) / 20.0;
        let chi: f64 = bins.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
        assert!(chi < 43.8, "chi-squared {chi}, bins {bins:?}");
    }

    #[test]
    fn threshold_needs_distinct_channels_or_the_last_resort() {
        let mut free = FreeList::new(64);
        let mut pool = pool("threshold:n=16", 3);
        for seq in 0..20 {
            pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(1)), seq, SECOND));
        }
        assert!(!pool.due(SECOND), "one channel alone does not flush a pool with n_min = 2");
        let last_resort = pool.due_at().unwrap();
        assert!(last_resort > SECOND && last_resort <= 2 * SECOND && pool.due(last_resort));
        pool.admit(Cell::own(free.take().unwrap()), ticket(OWN, 0, SECOND));
        assert!(!pool.due(SECOND), "the node's own cell does not count as a channel");
        pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(2)), 0, SECOND));
        assert!(pool.due(SECOND));
    }

    #[test]
    fn a_threshold_of_five_flushes_at_five_and_strands_nothing() {
        let mut free = FreeList::new(64);
        let mut pool = pool("threshold:n=5", 3);
        let mut out = Vec::new();
        for seq in 0..12 {
            pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(1)), seq, SECOND));
            if pool.due(SECOND) {
                pool.release(SECOND, &mut out);
            }
        }
        assert_eq!((out.len(), pool.len()), (10, 2));
        assert!(pool.due(2 * SECOND));
    }

    #[test]
    fn a_flush_by_count_does_not_move_the_grid() {
        let mut free = FreeList::new(64);
        let mut pool = pool("threshold-or-timed:n=2,t=10ms", 9);
        pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(1)), 0, SECOND));
        let due = pool.due_at().unwrap();
        pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(2)), 0, SECOND + 1));
        assert!(pool.due(SECOND + 1));
        pool.release(SECOND, &mut Vec::new());
        pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(1)), 1, SECOND + 2));
        assert_eq!(pool.due_at().unwrap(), due);
    }

    #[test]
    fn pooled_cell_keeps_its_time_and_leaves_when_due() {
        let mut free = FreeList::new(64);
        let mut pool = pool("threshold-or-timed:n=60,n_min=1,t=10ms", 9);
        let mut out = Vec::new();
        for late in [0, 7 * MILLI] {
            for seq in 0..40 {
                let arrived = SECOND + seq / 8;
                pool.admit(
                    Cell::own(free.take().unwrap()),
                    ticket(Label::Channel(ChannelIndex(seq as u32 % 4)), seq, arrived),
                );
            }
            let due = pool.due_at().unwrap();
            let times: Vec<Times> = pool.times(due + late).collect();
            assert_eq!(times, [0, 1, 2, 3, 4].map(|i| Times::new(SECOND + i, due)));
            assert_eq!(pool.times(due - 1).last(), Some(Times::new(SECOND + 4, due - 1)), "flushed by count");
            pool.release(SECOND, &mut out);
            for pooled in out.drain(..) {
                assert_eq!(times[pooled.ticket.times as usize].arrived, pooled.ticket.arrived);
                free.give(pooled.cell.into_buffer());
            }
        }
    }

    #[test]
    fn older_cell_of_another_core_waits_one_period_at_most() {
        let mut free = FreeList::new(2);
        let period = 10 * MILLI;
        let mut pool = pool("timed:t=10ms", 9);
        pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(1)), 0, SECOND));
        let due = pool.due_at().unwrap();
        pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(2)), 0, due - period - 5));
        let times: Vec<Times> = pool.times(due).collect();
        assert_eq!(times, [Times::new(SECOND, due), Times::new(due - period - 5, due - period)]);
    }

    #[test]
    fn prefixes_of_channels_are_counted_every_millisecond() {
        let mut free = FreeList::new(64);
        let mut pool = pool("threshold:n=1", 3);
        let mut company = |channels: &[(u32, u32)], now: Nanos| {
            for (channel, prefix) in channels {
                let ticket = Ticket { prefix: *prefix, ..ticket(Label::Channel(ChannelIndex(*channel)), 0, now) };
                pool.admit(Cell::own(free.take().unwrap()), ticket);
            }
            pool.admit(Cell::own(free.take().unwrap()), ticket(OWN, 0, now));
            let mut out = Vec::new();
            let Company { cells, channels, prefixes, .. } = pool.release(now, &mut out);
            out.drain(..).for_each(|pooled| free.give(pooled.cell.into_buffer()));
            (cells, channels, prefixes)
        };
        assert_eq!(company(&[(1, 7), (2, 9), (1, 7), (3, 7)], SECOND), (4, 3, Some(2)));
        assert_eq!(company(&[(1, 7)], SECOND + PREFIXES_EVERY - 1), (1, 1, None));
        assert_eq!(company(&[(5, 1), (6, 2), (7, 3)], SECOND + PREFIXES_EVERY), (3, 3, Some(3)));
        assert_eq!(company(&[(5, NO_PREFIX), (6, NO_PREFIX)], 2 * SECOND), (2, 2, None), "a later hop knows none");
        assert_eq!(company(&[], 3 * SECOND), (0, 0, None));
    }

    #[test]
    fn a_full_pool_is_due() {
        let mut free = FreeList::new(POOL_MAX);
        let mut pool = pool("timed:t=1s", 3);
        for seq in 0..=(POOL_MAX - RECEIVE_MAX) as u64 {
            assert!(!pool.due(SECOND));
            pool.admit(Cell::own(free.take().unwrap()), ticket(Label::Channel(ChannelIndex(1)), seq, SECOND));
        }
        assert!(pool.due(SECOND));
    }

    #[test]
    fn release_order_cannot_be_drawn_again() {
        let mut free = FreeList::new(64);
        let labels = (0..64).map(|channel| Label::Channel(ChannelIndex(channel)));
        let mut pool = pool("threshold:n=64", 3);
        let mut releases = Vec::new();
        for _ in 0..2 {
            for (seq, label) in labels.clone().enumerate() {
                pool.admit(Cell::own(free.take().unwrap()), ticket(label, seq as u64, SECOND));
            }
            let mut out = Vec::new();
            pool.release(SECOND, &mut out);
            releases.push(out.iter().map(|pooled| pooled.ticket.header.seq).collect::<Vec<_>>());
            out.drain(..).for_each(|pooled| free.give(pooled.cell.into_buffer()));
        }
        // A thief goes through the positions of the generator that it has found.
        for position in 0..1024 {
            let mut stolen = pool.rng.clone();
            stolen.set_word_pos(position);
            let mut shuffle = Shuffle::default();
            labels.clone().for_each(|label| shuffle.admit(label));
            let (mut items, mut order) = ((0..64).map(Some).collect(), Vec::<u64>::new());
            shuffle.run(&mut items, &mut order, &mut stolen);
            assert!(!releases.contains(&order), "position {position}");
        }
    }
}
