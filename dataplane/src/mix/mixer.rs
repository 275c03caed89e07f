//! The pools of a mix, one for each direction: all its cells meet here, whichever core brought them, so there is one
//! anonymity set.

use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;

use super::edge::Pools;
use crate::Nanos;
use crate::batch::Ticket;
use crate::frame::{Cell, Opened};
use crate::ledger::Batches;
use crate::pool::{Mixing, POOL_MAX, Pool, Pooled};

pub(super) struct Mixer {
    forward: Pool,
    backward: Pool,
    batches: Batches,
    release: Vec<Pooled>,
}

impl Mixer {
    /// One generator for each pool.
    pub fn new(mixing: Mixing, [forward, backward]: [ChaCha20Rng; 2]) -> Mixer {
        Mixer {
            forward: Pool::new(mixing, forward),
            backward: Pool::new(mixing, backward),
            batches: Batches::default(),
            release: Vec::with_capacity(POOL_MAX),
        }
    }

    fn pool(&self, direction: Direction) -> &Pool {
        match direction {
            Direction::Forward => &self.forward,
            Direction::Backward => &self.backward,
        }
    }

    fn pool_mut(&mut self, direction: Direction) -> &mut Pool {
        match direction {
            Direction::Forward => &mut self.forward,
            Direction::Backward => &mut self.backward,
        }
    }

    /// The shuffled contents of a pool that is due; of any that is not empty, if forced. The caller empties it.
    pub fn release(&mut self, direction: Direction, now: Nanos, force: bool) -> Option<&mut Vec<Pooled>> {
        let pool = self.pool(direction);
        if !(pool.due(now) || force && !pool.is_empty()) {
            return None;
        }
        debug_assert!(self.release.is_empty());
        self.batches.add(pool.len(), pool.distinct_channels());
        let pool = match direction {
            Direction::Forward => &mut self.forward,
            Direction::Backward => &mut self.backward,
        };
        pool.release(&mut self.release);
        Some(&mut self.release)
    }

    /// When the next pool is due by time.
    pub fn due_at(&self) -> Option<Nanos> {
        [self.forward.due_at(), self.backward.due_at()].into_iter().flatten().min()
    }

    /// Cells in one of the pools.
    pub fn held(&self, direction: Direction) -> usize {
        self.pool(direction).len()
    }

    /// What was released so far.
    pub fn batches(&self) -> Batches {
        self.batches
    }
}

impl Pools for Mixer {
    fn room(&self, direction: Direction) -> usize {
        self.pool(direction).room()
    }

    fn sated(&self, direction: Direction, now: Nanos) -> bool {
        self.pool(direction).due(now)
    }

    fn admit(&mut self, direction: Direction, cell: Cell<Opened>, ticket: Ticket) {
        self.pool_mut(direction).admit(cell, ticket);
    }
}
