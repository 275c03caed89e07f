//! The time that cells stay, and the pool's part of it.
//!
//! A cell comes with the turn that receives it, leaves its pool when that is due, and is gone at the end of the turn in
//! which the kernel took it, which the runner tells ([`crate::runner::Worker::record_latency`]):
//!
//! ```text
//! arrived ------- pool -------> released ------- node -------> sent
//!         |<------------------- total ------------------->|
//! ```
//!
//! A pool that is released later than it was due, because the worker was late or what was released before had not left,
//! costs the node that time and not the mixing. Each cell that is sent counts once in all three histograms; one that is
//! dropped, in none.
//!
//! Neighbours: [`crate::batch::Departures`] keeps the times of what waits to be sent; [`crate::histogram`] counts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Nanos;
use crate::histogram::Histogram;
use crate::meter::Meter;
use crate::per_direction::{DIRECTIONS, PerDirection};

/// The times of a cell's arrival and of its release from the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Start of the turn that received it.
    pub arrived: Nanos,
    /// The time at which it was due or its pool was released, whichever was first. Never before its arrival.
    pub released: Nanos,
    /// A cell of control's, which is sent however long it has waited.
    pub is_own: bool,
}

impl Times {
    /// Of a cell that arrived then, from a pool that was due or released then.
    pub fn new(arrived: Nanos, released: Nanos) -> Times {
        Times { arrived, released: released.max(arrived), is_own: false }
    }

    /// The same for cells of control's, or not.
    #[must_use]
    pub fn own(self, is_own: bool) -> Times {
        Times { is_own, ..self }
    }
}

/// Places of [`Groups`] for times seen lately, as a power of two.
const RECENT_BITS: u32 = 6;

/// Cells by their times: few share a release and differ in those, so they are counted by group.
pub struct Groups {
    times: Vec<Times>,
    recent: [u32; 1 << RECENT_BITS],
}

impl Groups {
    /// Room for `capacity` groups.
    pub fn new(capacity: usize) -> Groups {
        Groups { times: Vec::with_capacity(capacity), recent: [0; 1 << RECENT_BITS] }
    }

    pub fn clear(&mut self) {
        self.times.clear();
    }

    /// The number of the group of these times; some have more than one.
    pub fn of(&mut self, times: Times) -> u32 {
        // Fibonacci hashing: the upper bits of the product depend on all of the factor's.
        let hash = (times.arrived ^ times.released.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let recent = &mut self.recent[(hash >> (u64::BITS - RECENT_BITS)) as usize];
        if self.times.get(*recent as usize) != Some(&times) {
            *recent = self.times.len() as u32;
            self.times.push(times);
        }
        *recent
    }

    /// The times of each group, by its number.
    pub fn times(&self) -> &[Times] {
        &self.times
    }
}

/// The time that the cells of one direction stayed, in nanoseconds, or datagrams where a node sends those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// In the pool, until it was due.
    pub pool: Histogram,
    /// From its release until it left.
    pub node: Histogram,
    /// From its arrival until it left.
    pub total: Histogram,
}

impl Latency {
    /// Counts `count` cells or datagrams.
    pub fn add(&mut self, pool: Nanos, node: Nanos, count: u64) {
        self.pool.add(pool, count);
        self.node.add(node, count);
        self.total.add(pool + node, count);
    }

    /// Counts cells that came, were released and left at the same times.
    pub fn count(&mut self, times: Times, sent: Nanos, cells: u64) {
        self.add(times.released - times.arrived, sent.saturating_sub(times.released), cells);
    }

    #[must_use]
    pub fn and(self, other: &Latency) -> Latency {
        Latency {
            pool: self.pool.and(&other.pool),
            node: self.node.and(&other.node),
            total: self.total.and(&other.total),
        }
    }
}

/// All that a worker counts by size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    pub latency: PerDirection<Latency>,
    /// Cells of a release; on entry and exit, of a turn.
    pub releases: Histogram,
    /// The company that cells had in the releases of the last minute. Empty at entry and exit.
    pub meters: PerDirection<Meter>,
}

impl Profile {
    /// Of two cores of one node.
    #[must_use]
    pub fn and(self, other: &Profile) -> Profile {
        let mut meters = self.meters;
        DIRECTIONS.into_iter().for_each(|direction| meters[direction].merge(&other.meters[direction]));
        Profile {
            meters,
            latency: PerDirection {
                forward: self.latency.forward.and(&other.latency.forward),
                backward: self.latency.backward.and(&other.latency.backward),
            },
            releases: self.releases.and(&other.releases),
        }
    }
}

/// A profile that other threads read at any time. The worker writes once a turn, if that sent anything, so a reading
/// lags behind the ledger by one turn at most.
#[derive(Clone, Debug, Default)]
pub struct Shared(Arc<Mutex<Profile>>);

impl Shared {
    /// The counts so far.
    pub fn read(&self) -> Profile {
        self.lock().clone()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Profile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_cell_gets_a_group_of_its_own_times_and_few_are_made(cells in vec((0u64..8, 0u64..4), 0..300)) {
            let mut groups = Groups::new(300);
            for round in 0..2 {
                groups.clear();
                for (arrived, wait) in &cells {
                    let times = Times::new(round + arrived * 1_000_000, round + (arrived + wait) * 1_000_000);
                    let group = groups.of(times);
                    prop_assert_eq!(groups.times()[group as usize], times);
                }
                prop_assert!(groups.times().len() <= cells.len());
            }
        }
    }

    #[test]
    fn times_seen_lately_share_a_group() {
        let mut groups = Groups::new(4);
        let [early, late] = [Times::new(5, 8), Times::new(6, 8)];
        let numbers = [early, early, late, late, late].map(|times| groups.of(times));
        assert_eq!((numbers, groups.times()), ([0, 0, 1, 1, 1], &[early, late][..]));
    }

    #[test]
    fn what_the_pool_and_the_node_take_is_all() {
        let mut latency = Latency::default();
        latency.count(Times::new(100, 400), 450, 3);
        // Released before it came: the pool was due already.
        latency.count(Times::new(100, 90), 120, 1);
        assert_eq!((latency.pool.max(), latency.node.max(), latency.total.max()), (300, 50, 350));
        assert_eq!(latency.total.mean(), latency.pool.mean() + latency.node.mean());
        let both = latency.clone().and(&latency);
        assert_eq!((both.total.count(), both.pool.mean()), (8, latency.pool.mean()));
    }
}
