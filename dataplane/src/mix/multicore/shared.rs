//! The mixer that several shards share, with its ends of the rings.

use std::sync::Arc;

use rtrb::{Consumer, Producer};
use wire::cell::Direction;

use crate::buffer::{Buffer, FreeList};
use crate::lanes::Lanes;
use crate::latency::Profile;
use crate::ledger::{Buffers, Ledger};
use crate::mix::edge::Pools;
use crate::mix::mixer::{Mixer, RELEASES, Release};
use crate::per_direction::{DIRECTIONS, PerDirection};
use crate::runner::BLOCKED_WAIT;
use crate::stage::pool::{POOL_MAX, Pooled};
use crate::sys::Waker;
use crate::{MICRO, Nanos};

/// Buffers of the mixer, for exchange: as much as two pools and what they released before.
pub(super) const STOCK: usize = 4 * POOL_MAX;
/// Cells taken from one shard before the next is looked at.
const SHARE: usize = 256;

/// The mixer's ends of the rings of one shard.
pub(super) struct ShardRings {
    from: PerDirection<Consumer<Pooled>>,
    to: PerDirection<Producer<Pooled>>,
    /// Its part of a release.
    staged: PerDirection<Vec<Pooled>>,
    empties: Producer<&'static mut Buffer>,
    surplus: Consumer<&'static mut Buffer>,
    /// Wakes its thread, if that is another.
    waker: Option<Arc<Waker>>,
}

/// The mixer with its ends of the rings.
pub(super) struct SharedMixer {
    mixer: Mixer,
    shards: Vec<ShardRings>,
    stock: Vec<&'static mut Buffer>,
    /// Buffers given from the stock less those that came back.
    exchanged: usize,
    lanes: Lanes,
    /// Rotates the shard that is served first from turn to turn.
    turn: usize,
    /// A pool is due and a shard has no room for what it would get, or cells wait and no empty buffer is left.
    stuck: bool,
}

impl ShardRings {
    pub(super) fn new(
        from: PerDirection<Consumer<Pooled>>,
        to: PerDirection<Producer<Pooled>>,
        empties: Producer<&'static mut Buffer>,
        surplus: Consumer<&'static mut Buffer>,
        waker: Option<Arc<Waker>>,
    ) -> ShardRings {
        let staged = PerDirection::from_fn(|_| Vec::with_capacity(POOL_MAX));
        ShardRings { from, to, staged, empties, surplus, waker }
    }
}

impl SharedMixer {
    /// With a stock of buffers, on huge pages if wanted.
    pub(super) fn new(mixer: Mixer, shards: Vec<ShardRings>, lanes: Lanes, hugepages: bool) -> SharedMixer {
        let mut store = FreeList::on(STOCK, hugepages);
        let stock = std::iter::from_fn(|| store.take()).collect();
        SharedMixer { mixer, shards, stock, exchanged: 0, lanes, turn: 0, stuck: false }
    }

    /// Takes opened cells in, and releases what is due.
    pub(super) fn turn(&mut self, now: Nanos, force: bool) {
        self.turn = (self.turn + 1) % self.shards.len();
        self.stuck = false;
        for shard in &mut self.shards {
            let before = self.stock.len();
            self.stock.extend(drain(&mut shard.surplus, usize::MAX));
            self.exchanged = self.exchanged.wrapping_sub(self.stock.len() - before);
        }
        for direction in DIRECTIONS {
            for _ in 0..RELEASES {
                self.gather(direction, now, force);
                if !self.release(direction, now, force) {
                    break;
                }
            }
        }
    }

    fn gather(&mut self, direction: Direction, now: Nanos, force: bool) {
        let shards = self.shards.len();
        let mut idle = 0;
        for i in (0..shards).cycle().skip(self.turn) {
            if self.mixer.sated(direction, now) || idle == shards {
                return;
            }
            let shard = &mut self.shards[i];
            let mut most = SHARE.min(self.mixer.room(direction));
            if !force {
                let empties = self.stock.len().min(shard.empties.slots());
                self.stuck |= empties == 0 && !shard.from[direction].is_empty();
                most = most.min(empties);
            }
            let mut taken = 0;
            for Pooled { cell, ticket } in drain(&mut shard.from[direction], most) {
                self.mixer.admit(direction, cell, ticket);
                taken += 1;
            }
            if !force {
                let kept = self.stock.len() - taken;
                self.exchanged = self.exchanged.wrapping_add(taken);
                fill(&mut shard.empties, self.stock.drain(kept..));
            }
            idle = if taken == 0 { idle + 1 } else { 0 };
        }
    }

    /// Releases a pool that is due, each cell to the shard of its lane. True if it did.
    fn release(&mut self, direction: Direction, now: Nanos, force: bool) -> bool {
        let waiting = self.mixer.held(direction);
        if self.shards.iter().any(|shard| shard.to[direction].slots() < waiting) {
            self.stuck |= self.mixer.sated(direction, now);
            return false;
        }
        let Some(Release { cells, times }) = self.mixer.release(direction, now, force) else { return false };
        for mut pooled in cells.drain(..) {
            let times = times[pooled.ticket.times as usize];
            pooled.ticket.times = u32::try_from((times.released - times.arrived) / MICRO).unwrap_or(u32::MAX);
            let number = pooled.ticket.header.channel;
            let shard = match direction {
                Direction::Forward => self.lanes.down_edge(number),
                Direction::Backward => self.lanes.up_edge(number),
            };
            self.shards[shard].staged[direction].push(pooled);
        }
        for shard in self.shards.iter_mut().filter(|shard| !shard.staged[direction].is_empty()) {
            fill(&mut shard.to[direction], shard.staged[direction].drain(..));
            if let Some(waker) = &shard.waker {
                waker.wake();
            }
        }
        true
    }

    /// The latest time of the next turn if nothing arrives.
    pub(crate) fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        if self.stuck {
            return Some(now + BLOCKED_WAIT);
        }
        let waits = self.shards.iter().any(|shard| shard.from.iter().any(|ring| !ring.is_empty()));
        if waits { Some(now) } else { self.mixer.due_at() }
    }

    /// True if it waits for a shard.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Adds what it counts to the ledger of its shard.
    pub(crate) fn add_to(&self, ledger: &mut Ledger) {
        ledger.releases = self.mixer.releases();
        let free = self.stock.len().wrapping_add(self.exchanged) as u64;
        ledger.buffers = ledger.buffers.and(Buffers { free, total: STOCK as u64 });
    }

    /// True if a release is not counted by size and company yet.
    pub(crate) fn has_released(&self) -> bool {
        self.mixer.has_released()
    }

    /// Counts what was released by size and company.
    pub(crate) fn record_releases(&mut self, now: Nanos, profile: &mut Profile) {
        self.mixer.record_releases(now, profile);
    }

    /// The end: what is left in the pool and in the rings of opened cells.
    pub(crate) fn abandon(&mut self, direction: Direction, now: Nanos, into: &mut Vec<Pooled>) {
        if let Some(Release { cells, .. }) = self.mixer.release(direction, now, true) {
            into.append(cells);
        }
        for shard in &mut self.shards {
            into.extend(drain(&mut shard.from[direction], usize::MAX));
        }
    }
}

/// Takes all that waits in a ring, up to `most`.
pub(super) fn drain<T>(ring: &mut Consumer<T>, most: usize) -> impl Iterator<Item = T> {
    let waiting = ring.slots().min(most);
    ring.read_chunk(waiting).ok().into_iter().flat_map(IntoIterator::into_iter)
}

/// Moves everything into a ring that has room for it: the caller has looked.
pub(super) fn fill<T>(ring: &mut Producer<T>, from: impl ExactSizeIterator<Item = T>) {
    match ring.write_chunk_uninit(from.len()) {
        Ok(chunk) => _ = chunk.fill_from_iter(from),
        Err(_) => debug_assert!(false, "room was looked for before"),
    }
}
