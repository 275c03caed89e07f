//! The pools of a mix, one for each direction: all its cells meet here, whichever core brought them, so there is one
//! anonymity set.

use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;

use super::edge::Pools;
use crate::Nanos;
use crate::batch::Ticket;
use crate::buffer::{Cell, Opened};
use crate::latency::{Profile, Times};
use crate::ledger::Releases;
use crate::per_direction::PerDirection;
use crate::stage::pool::company::Company;
use crate::stage::pool::{Mixing, POOL_MAX, Pool, Pooled};

pub(super) struct Mixer {
    pools: PerDirection<Pool>,
    releases: Releases,
    /// Cells of each release since the last [`Mixer::record_releases`], and their company.
    unrecorded: Vec<(Direction, usize, Company)>,
    cells: Vec<Pooled>,
    times: Vec<Times>,
}

/// The cells of a released pool. The receiver must empty it.
pub(super) struct Release<'a> {
    pub cells: &'a mut Vec<Pooled>,
    /// The table of times into which the `times` of each ticket points.
    pub times: &'a [Times],
}

/// Releases of one direction in one turn, where shards share a mixer.
pub(super) const RELEASES: usize = 4;
/// Releases in one turn, of both directions: the most of any worker.
pub(super) const RELEASES_MAX: usize = 2 * RELEASES;

impl Mixer {
    /// One generator for each pool.
    pub(super) fn new(mixing: Mixing, [forward, backward]: [ChaCha20Rng; 2]) -> Mixer {
        Mixer {
            pools: PerDirection { forward: Pool::new(mixing, forward), backward: Pool::new(mixing, backward) },
            releases: Releases::default(),
            unrecorded: Vec::with_capacity(2 * RELEASES_MAX),
            cells: Vec::with_capacity(POOL_MAX),
            times: Vec::with_capacity(POOL_MAX),
        }
    }

    /// The contents of a pool that is due; of any that is not empty, if forced.
    pub(super) fn release(&mut self, direction: Direction, now: Nanos, force: bool) -> Option<Release<'_>> {
        let pool = &mut self.pools[direction];
        if !(pool.due(now) || force && !pool.is_empty()) {
            return None;
        }
        debug_assert!(self.cells.is_empty());
        let cells = pool.len();
        self.releases.add(cells);
        self.times.clear();
        self.times.extend(pool.times(now));
        let company = pool.release(now, &mut self.cells);
        self.unrecorded.push((direction, cells, company));
        Some(Release { cells: &mut self.cells, times: &self.times })
    }

    /// True if a release is not counted by size and company yet.
    pub(crate) fn has_released(&self) -> bool {
        !self.unrecorded.is_empty()
    }

    /// Counts what was released by size and company.
    pub(crate) fn record_releases(&mut self, now: Nanos, profile: &mut Profile) {
        for (direction, cells, company) in self.unrecorded.drain(..) {
            profile.releases.add(cells as u64, 1);
            profile.meters[direction].add(&company, now);
        }
    }

    /// The time at which the next pool is due.
    pub(crate) fn due_at(&self) -> Option<Nanos> {
        self.pools.iter().filter_map(Pool::due_at).min()
    }

    /// Cells in one of the pools.
    pub(super) fn held(&self, direction: Direction) -> usize {
        self.pools[direction].len()
    }

    /// Counters of all releases.
    pub(super) fn releases(&self) -> Releases {
        self.releases
    }
}

impl Pools for Mixer {
    fn room(&self, direction: Direction) -> usize {
        self.pools[direction].room()
    }

    fn sated(&self, direction: Direction, now: Nanos) -> bool {
        self.pools[direction].due(now)
    }

    fn admit(&mut self, direction: Direction, cell: Cell<Opened>, ticket: Ticket) {
        self.pools[direction].admit(cell, ticket);
    }
}
