//! A mix on several cores: each core runs a shard, whose edge exchanges cells with one shared mixer.
//!
//! ```text
//!          edge 0 ==opened==>          ==released==> edge 0
//!                             mixer                            one anonymity set
//!          edge 1 ==opened==>          ==released==> edge 1
//! ```
//!
//! Every arrow is a bounded ring of one producer and one consumer. The mixer has no thread: whoever runs edge 0 runs
//! it after each of that edge's turns. Full buffers that leave an edge are exchanged for empty ones, and an edge gives
//! back what it has more of than at the start, so no edge runs dry because another one sends what it receives.
//!
//! An edge publishes its ledger before it hands cells on, so that of several ledgers, read at once, the sum never
//! shows a cell that was sent and not received.

mod shared;

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use rtrb::{Consumer, Producer, RingBuffer};
use wire::cell::Direction;

use self::shared::{STOCK, ShardRings, SharedMixer, drain, fill};
use super::edge::{Edge, Pools};
use super::mixer::Mixer;
use super::{Settings, publish};
use crate::batch::{RECEIVE_MAX, Ticket};
use crate::buffer::{Buffer, Cell, Opened};
use crate::command::Command;
use crate::latency::{self, Groups, Times};
use crate::ledger::{Buffers, DropReason, Ledger};
use crate::per_direction::{DIRECTIONS, PerDirection};
use crate::punt::PuntSender;
use crate::runner::{BLOCKED_WAIT, Clock, Worker};
use crate::socket::Port;
use crate::stage::pool::{POOL_MAX, Pooled};
use crate::sys::Waker;
use crate::{MICRO, Nanos};

/// Opened cells of one direction that wait for the mixer: two receive calls' worth.
const OPENED_MAX: usize = 2 * RECEIVE_MAX;
/// Released cells of one direction that wait for an edge: those of a pool, while those of the last one are sealed.
const RELEASED_MAX: usize = 2 * POOL_MAX;
/// Buffers of a shard: the rx buffers of its two sockets, the batch being received, the two rings of opened cells, and
/// as much as a pool in two send queues.
const SHARD_BUFFERS: usize = 3 * RECEIVE_MAX + 2 * OPENED_MAX + 2 * POOL_MAX;
/// The longest time that a stopping shard waits for the others.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// The parts of one shard: its sockets, its ends of the rings to control, its waker and its generator.
pub struct ShardParts<U, D> {
    /// Its socket towards the previous hop.
    pub up: U,
    /// Its socket towards the next hop, if it has one ([`crate::lanes::Lanes::downs`]).
    pub down: Option<D>,
    pub commands: Consumer<Command>,
    pub punts: PuntSender,
    pub waker: Arc<Waker>,
    /// For the order of groups.
    pub rng: ChaCha20Rng,
}

/// One core's share of a mix: an edge with its rings to the mixer. Runs as a worker.
pub struct Shard<U, D> {
    edge: Edge<U, Option<D>>,
    to_mixer: ToMixer,
    released: PerDirection<Consumer<Pooled>>,
    /// Cells taken from the mixer so far.
    taken: PerDirection<usize>,
    release: Vec<Pooled>,
    groups: Groups,
    empties: Consumer<&'static mut Buffer>,
    surplus: Producer<&'static mut Buffer>,
    /// Buffers given away less those that came.
    exchanged: usize,
    /// Wakes the mixer's thread, if that is another.
    mixer_waker: Option<Arc<Waker>>,
    /// At shard 0.
    shared: Option<SharedMixer>,
    barrier: Arc<StopBarrier>,
    published: Arc<Mutex<Ledger>>,
    profile: latency::Shared,
}

/// The shards of a mix, one for each lane, in the order of the lanes. Two generators: one per pool.
///
/// # Panics
/// Unless there are as many parts as own lanes, and sockets towards the next hop at the first
/// [`crate::lanes::Lanes::downs`].
pub fn shards<U: Port, D: Port>(
    settings: Settings,
    parts: Vec<ShardParts<U, D>>,
    pools: [ChaCha20Rng; 2],
    now: Nanos,
) -> Vec<Shard<U, D>> {
    let lanes = settings.lanes;
    assert_eq!(parts.len(), lanes.own, "one shard for each lane");
    let downs = parts.iter().map(|parts| parts.down.is_some());
    assert!(downs.eq((0..lanes.own).map(|edge| edge < lanes.downs())), "sockets towards the next hop");
    let barrier = Arc::new(StopBarrier::new(parts.len()));
    let first = parts[0].waker.clone();
    let (mut rings, mut shards) = (Vec::new(), Vec::new());
    for (index, ShardParts { up, down, commands, punts, waker, rng }) in parts.into_iter().enumerate() {
        let (opened, from) = pair(OPENED_MAX);
        let (to, released) = pair(RELEASED_MAX);
        let (empties, empties_here) = RingBuffer::new(SHARD_BUFFERS);
        let (surplus_here, surplus) = RingBuffer::new(SHARD_BUFFERS + STOCK);
        let other = index > 0;
        rings.push(ShardRings::new(from, to, empties, surplus, other.then_some(waker)));
        shards.push(Shard {
            edge: Edge::new(settings, index, SHARD_BUFFERS, (up, down), (commands, punts), rng, now),
            to_mixer: ToMixer {
                staged: PerDirection::from_fn(|_| Vec::with_capacity(OPENED_MAX)),
                rings: opened,
                admitted: PerDirection::default(),
            },
            released,
            taken: PerDirection::default(),
            release: Vec::with_capacity(RELEASED_MAX),
            groups: Groups::new(POOL_MAX),
            empties: empties_here,
            surplus: surplus_here,
            exchanged: 0,
            mixer_waker: other.then(|| first.clone()),
            shared: None,
            barrier: barrier.clone(),
            published: Arc::default(),
            profile: latency::Shared::default(),
        });
    }
    shards[0].shared = Some(SharedMixer::new(Mixer::new(settings.mixing, pools), rings, lanes, settings.hugepages));
    shards
}

fn pair(capacity: usize) -> (PerDirection<Producer<Pooled>>, PerDirection<Consumer<Pooled>>) {
    let ((to, from), (to_back, from_back)) = (RingBuffer::new(capacity), RingBuffer::new(capacity));
    (PerDirection { forward: to, backward: to_back }, PerDirection { forward: from, backward: from_back })
}

/// Opened cells on their way to the mixer.
struct ToMixer {
    /// Those of this turn: they go when the ledger that counts them is published.
    staged: PerDirection<Vec<Pooled>>,
    rings: PerDirection<Producer<Pooled>>,
    /// Cells taken in so far.
    admitted: PerDirection<usize>,
}

impl ToMixer {
    /// True if one receive call could bring more cells than there is room for.
    fn is_full(&self) -> bool {
        DIRECTIONS.into_iter().any(|direction| self.room(direction) < RECEIVE_MAX)
    }

    /// Hands everything on. Returns the number of cells.
    fn flush(&mut self) -> usize {
        let cells = self.staged.iter().map(Vec::len).sum();
        self.rings.iter_mut().zip(self.staged.iter_mut()).for_each(|(ring, staged)| fill(ring, staged.drain(..)));
        cells
    }
}

impl Pools for ToMixer {
    fn room(&self, direction: Direction) -> usize {
        self.rings[direction].slots() - self.staged[direction].len()
    }

    fn sated(&self, direction: Direction, _now: Nanos) -> bool {
        self.room(direction) < RECEIVE_MAX
    }

    fn admit(&mut self, direction: Direction, cell: Cell<Opened>, ticket: Ticket) {
        self.admitted[direction] += 1;
        self.staged[direction].push(Pooled { cell, ticket });
    }
}

impl<U: Port, D: Port> Shard<U, D> {
    /// The ledger of this shard, published at every turn boundary. The mix's ledger is the sum of all, read at once.
    pub fn published(&self) -> Arc<Mutex<Ledger>> {
        self.published.clone()
    }

    /// Histograms of how long cells stay at this shard; shard 0 also counts releases by size. The mix's profile is the
    /// sum.
    pub fn profile(&self) -> latency::Shared {
        self.profile.clone()
    }

    /// Seals what the mixer released, if nothing of the last time is left.
    fn take_released(&mut self) {
        for direction in DIRECTIONS {
            if self.edge.may_leave(direction) && !self.released[direction].is_empty() {
                self.release.extend(drain(&mut self.released[direction], POOL_MAX));
                self.taken[direction] += self.release.len();
                self.edge.buffers().adopt(self.release.len());
                // Cells of several releases, and of each a part: they are grouped again.
                self.groups.clear();
                for Pooled { ticket, .. } in &mut self.release {
                    let released = ticket.arrived + u64::from(ticket.times) * MICRO;
                    ticket.times = self.groups.of(Times::new(ticket.arrived, released).own(ticket.is_own()));
                }
                self.edge.leave(direction, &mut self.release, self.groups.times());
            }
        }
    }

    /// Takes empty buffers in, and gives away what it has beyond its own.
    fn exchange(&mut self) {
        for buffer in drain(&mut self.empties, usize::MAX) {
            self.exchanged = self.exchanged.wrapping_sub(1);
            self.edge.buffers().adopt(1);
            self.edge.buffers().give(buffer);
        }
        let beyond = self.edge.bare().saturating_sub(SHARD_BUFFERS).min(self.surplus.slots());
        for _ in 0..beyond {
            let Some(buffer) = self.edge.buffers().take() else { break };
            self.exchanged = self.exchanged.wrapping_add(1);
            self.edge.buffers().part_with(1);
            fill(&mut self.surplus, std::iter::once(buffer));
        }
    }

    fn publish(&self) {
        let mut ledger = self.edge.ledger();
        for direction in DIRECTIONS {
            let held = self.to_mixer.admitted[direction].wrapping_sub(self.taken[direction]);
            ledger.cells[direction].hold(held);
        }
        // The edge from which cells came counts them while they are in the rings.
        ledger.buffers =
            Buffers { free: self.edge.bare().wrapping_add(self.exchanged) as u64, total: SHARD_BUFFERS as u64 };
        match &self.shared {
            Some(shared) => shared.add_to(&mut ledger),
            // Every edge has the same.
            None => ledger.gauges.links = 0,
        }
        publish(&self.published, ledger);
    }

    /// Hands opened cells on.
    fn hand_over(&mut self) {
        let cells = self.to_mixer.flush();
        self.edge.buffers().part_with(cells);
        if cells > 0
            && let Some(waker) = &self.mixer_waker
        {
            waker.wake();
        }
    }
}

impl<U: Port, D: Port> Worker for Shard<U, D> {
    fn set_clock(&mut self, clock: Clock) {
        self.edge.set_clock(clock);
    }

    fn turn(&mut self, now: Nanos) -> Nanos {
        self.edge.begin(now, &mut self.to_mixer);
        self.take_released();
        DIRECTIONS.into_iter().for_each(|direction| self.edge.receive(direction, now, &mut self.to_mixer));
        self.edge.send(now);
        self.exchange();
        self.edge.report(now);
        self.publish();
        self.hand_over();
        let mut wake = self.edge.wake_at(now);
        if self.to_mixer.is_full() {
            wake = wake.min(now + BLOCKED_WAIT);
        }
        if let Some(shared) = &mut self.shared {
            shared.turn(now, false);
            wake = shared.wake_at(now).map_or(wake, |at| wake.min(at));
        }
        if self.edge.is_blocked() || self.released.iter().all(Consumer::is_empty) { wake } else { now }
    }

    fn record_latency(&mut self, now: Nanos) {
        let released = self.shared.as_mut().filter(|shared| shared.has_released());
        if self.edge.has_unrecorded() || released.is_some() {
            let mut profile = self.profile.lock();
            self.edge.record_latency(now, &mut profile);
            if let Some(shared) = released {
                shared.record_releases(now, &mut profile);
            }
        }
    }

    fn ready(&mut self, token: u64) {
        self.edge.ready(token);
    }

    fn is_blocked(&self) -> bool {
        self.edge.is_blocked() || self.to_mixer.is_full() || self.shared.as_ref().is_some_and(SharedMixer::is_stuck)
    }

    fn finish(&mut self, now: Nanos) {
        // Everybody has handed over what came, then the mixer has released it all, then it leaves or is counted.
        self.barrier.wait(0);
        if let Some(shared) = &mut self.shared {
            shared.turn(now, true);
        }
        self.barrier.wait(1);
        self.edge.send(now);
        self.take_released();
        self.edge.send(now);
        for direction in DIRECTIONS {
            self.edge.abandon(direction);
            self.release.extend(drain(&mut self.released[direction], usize::MAX));
            if let Some(shared) = &mut self.shared {
                shared.abandon(direction, now, &mut self.release);
            }
            self.taken[direction] += self.release.len();
            self.edge.buffers().adopt(self.release.len());
            self.edge.give_up(direction, self.release.drain(..), DropReason::Shutdown);
        }
        self.publish();
    }
}

/// A barrier for the threads of a mix that stop.
struct StopBarrier {
    shards: usize,
    arrived: Mutex<[usize; 2]>,
    all: Condvar,
}

impl StopBarrier {
    fn new(shards: usize) -> StopBarrier {
        StopBarrier { shards, arrived: Mutex::default(), all: Condvar::new() }
    }

    /// Waits until all shards have reached this stage, with a limit, because one may have died.
    fn wait(&self, stage: usize) {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived[stage] += 1;
        self.all.notify_all();
        let missing = |arrived: &mut [usize; 2]| arrived[stage] < self.shards;
        drop(self.all.wait_timeout_while(arrived, STOP_TIMEOUT, missing));
    }
}
