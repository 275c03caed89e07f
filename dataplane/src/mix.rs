//! The worker of a mix.
//!
//! `turn` spells the path of a cell. Both directions are the same but for the layer: forward a mix
//! takes one off and checks it, backward it puts one on.

use std::sync::{Arc, Mutex};

use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Header, Shape};
use wire::gcm::{AeadKey, StreamKey};
use wire::replay::Window;

use crate::batch::{Arrivals, Departures, Label, RECEIVE_MAX, Ticket};
use crate::frame::{Cell, FreeList};
use crate::ingress::{Admitted, Gate};
use crate::io::Port;
use crate::ledger::{Batches, Drop, Gauges, Ledger, Tally};
use crate::links::{Side, report_activity};
use crate::open::{self, BackwardLane, ForwardLane};
use crate::pool::{Mixing, POOL_MAX, Pool, Pooled};
use crate::punt::{Ended, PuntSender};
use crate::runner::{BLOCKED_WAIT, Worker};
use crate::seal::Sealer;
use crate::table::{ChannelKeys, ChannelState, IDLE_S, Lane, Op, Record, Table};
use crate::wheel::Wheel;
use crate::{Nanos, SECOND};

/// Receive calls per socket and turn: bounds a turn, and what one side can delay the other.
const RECEIVES: usize = 4;

/// Frames of a mix: two pools, as many waiting in the two send queues as a pool can release, what the two sockets
/// offer for what comes, and the batch being received.
pub const FRAMES: usize = 2 * POOL_MAX + 2 * POOL_MAX + 2 * RECEIVE_MAX + RECEIVE_MAX;

/// What a mix worker is made with.
pub struct Settings {
    /// Lengths of the chain.
    pub shape: Shape,
    /// Which hop: 1 for Mix 1.
    pub position: usize,
    /// When pools are released.
    pub mixing: Mixing,
    /// Width of replay windows.
    pub window: usize,
    /// Frames on huge pages.
    pub hugepages: bool,
}

/// A mix's part of a channel.
#[repr(C)]
pub struct MixChannel {
    forward: Lane<AeadKey>,
    backward: Lane<StreamKey>,
}

impl ChannelState for MixChannel {
    fn offset(direction: Direction) -> usize {
        match direction {
            Direction::Forward => std::mem::offset_of!(MixChannel, forward),
            Direction::Backward => std::mem::offset_of!(MixChannel, backward),
        }
    }

    fn window(&self, direction: Direction) -> &Window {
        match direction {
            Direction::Forward => self.forward.window(),
            Direction::Backward => self.backward.window(),
        }
    }
}

impl ForwardLane for MixChannel {
    fn forward(&self) -> &Lane<AeadKey> {
        &self.forward
    }

    fn forward_mut(&mut self) -> &mut Lane<AeadKey> {
        &mut self.forward
    }
}

impl BackwardLane for MixChannel {
    fn backward(&self) -> &Lane<StreamKey> {
        &self.backward
    }

    fn backward_mut(&mut self) -> &mut Lane<StreamKey> {
        &mut self.backward
    }
}

/// One direction: what lies between two sockets.
struct Half {
    gate: Gate,
    pool: Pool,
    out: Departures,
    tally: Tally,
}

/// The worker of a mix between its two link sockets.
pub struct Mix<U, D> {
    settings: Settings,
    up: U,
    down: D,
    table: Table<MixChannel>,
    forward: Half,
    backward: Half,
    free: FreeList,
    ops: rtrb::Consumer<Op>,
    punts: PuntSender,
    sealer: Sealer,
    wheel: Wheel,
    batches: Batches,
    report_due: Nanos,
    arrivals: Arrivals,
    admitted: Vec<Admitted>,
    release: Vec<Pooled>,
    due: Vec<u32>,
    published: Arc<Mutex<Ledger>>,
}

impl<U: Port, D: Port> Mix<U, D> {
    /// A mix with empty tables. Three generators: one per pool and one for group order.
    pub fn new(
        settings: Settings,
        (up, down): (U, D),
        ops: rtrb::Consumer<Op>,
        punts: PuntSender,
        rngs: [ChaCha20Rng; 3],
        now: Nanos,
    ) -> Self {
        let Settings { shape, position, mixing, hugepages, .. } = settings;
        let [rng_forward, rng_backward, rng_groups] = rngs;
        let half = |side, direction, link, rng| Half {
            gate: Gate::new(shape, position, side),
            pool: Pool::new(mixing, rng),
            out: Departures::new(shape.cell_len(direction, link), POOL_MAX),
            tally: Tally::default(),
        };
        Mix {
            forward: half(Side::Up, Direction::Forward, position + 1, rng_forward),
            backward: half(Side::Down, Direction::Backward, position, rng_backward),
            settings,
            up,
            down,
            table: Table::default(),
            free: FreeList::on(FRAMES, hugepages),
            ops,
            punts,
            sealer: Sealer::new(rng_groups),
            wheel: Wheel::new(now / SECOND),
            batches: Batches::default(),
            report_due: now,
            arrivals: Arrivals::new(),
            admitted: Vec::with_capacity(RECEIVE_MAX),
            release: Vec::with_capacity(POOL_MAX),
            due: Vec::new(),
            published: Arc::default(),
        }
    }

    /// Where the ledger appears at every turn boundary.
    pub fn published(&self) -> Arc<Mutex<Ledger>> {
        self.published.clone()
    }

    fn receive_forward(&mut self, now: Nanos) {
        let half = &mut self.forward;
        for _ in 0..RECEIVES {
            if !half.out.is_empty() || half.pool.room() < RECEIVE_MAX {
                return;
            }
            if self.up.recv(&mut self.free, &mut self.arrivals) == 0 {
                return;
            }
            let Self { table, punts, free, arrivals, admitted, settings, .. } = self;
            half.gate.admit(arrivals, table, punts, free, &mut half.tally, admitted);
            open::forward(admitted, settings.shape, settings.position, table, punts, free, &mut half.tally, now);
            pool(admitted, table, Side::Down, &mut half.pool, now, free, &mut half.tally);
        }
    }

    fn receive_backward(&mut self, now: Nanos) {
        let half = &mut self.backward;
        for _ in 0..RECEIVES {
            if !half.out.is_empty() || half.pool.room() < RECEIVE_MAX {
                return;
            }
            if self.down.recv(&mut self.free, &mut self.arrivals) == 0 {
                return;
            }
            let Self { table, punts, free, arrivals, admitted, settings, .. } = self;
            half.gate.admit(arrivals, table, punts, free, &mut half.tally, admitted);
            open::backward(admitted, settings.shape, table, free, &mut half.tally);
            pool(admitted, table, Side::Up, &mut half.pool, now, free, &mut half.tally);
        }
    }

    fn apply(&mut self, op: Op, now: Nanos) {
        let Some(op) = self.table.apply(op) else { return };
        match op {
            Op::InstallChannel {
                channel,
                up,
                down,
                keys: ChannelKeys::Hop { forward, backward },
                lifetime_s,
                first,
            } => {
                let (now_s, width) = (now / SECOND, self.settings.window);
                let state = MixChannel {
                    forward: Lane::new(&forward, first, width),
                    backward: Lane::new(&backward, first, width),
                };
                self.table
                    .install(channel, Record { up, down, ends_s: now_s + u64::from(lifetime_s), seen_s: now_s, state });
                self.wheel.arm(channel, now_s + IDLE_S.min(u64::from(lifetime_s)));
            }
            Op::RetireChannel { channel } => self.end(channel, Ended::Retired),
            Op::Inject { link, slot, header, body } => {
                let half = match self.table.links.side(link) {
                    Some(Side::Up) => &mut self.backward,
                    Some(Side::Down) | None => &mut self.forward,
                };
                half.tally.injected += 1;
                if half.pool.room() == 0 {
                    half.tally.drop(Drop::PoolFull);
                } else {
                    inject(link, slot, header, &body, now, &mut self.free, &mut half.pool, &mut half.tally);
                }
            }
            // Not for a mix; control never sends them here.
            _ => {}
        }
    }

    /// Ends channels that are idle or past their lifetime.
    fn tick(&mut self, now: Nanos) {
        let now_s = now / SECOND;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now_s, &mut due);
        for channel in due.drain(..) {
            match self.table.lifespan(channel, now_s) {
                Some(Ok(until_s)) => self.wheel.arm(channel, until_s),
                Some(Err(reason)) => self.end(channel, reason),
                None => {}
            }
        }
        self.due = due;
    }

    /// Forgets a channel, and tells control. Its pooled cells carry all they need.
    fn end(&mut self, channel: u32, reason: Ended) {
        if self.table.remove(channel).is_some() {
            self.punts.ended(channel, reason);
        }
    }

    fn publish(&self) {
        let mut ledger = Ledger::default();
        let held = |half: &Half| Tally { held: (half.pool.len() + half.out.len()) as u64, ..half.tally };
        ledger.cells.forward = held(&self.forward);
        ledger.cells.backward = held(&self.backward);
        ledger.batches = self.batches;
        let bare = self.free.free() + self.up.offered() + self.down.offered();
        ledger.frames = (bare as u64, self.free.total() as u64);
        ledger.traffic = self.up.traffic().and(self.down.traffic());
        ledger.gauges =
            Gauges { links: self.table.links.len() as u64, channels: self.table.len() as u64, ..Gauges::default() };
        debug_assert!(ledger.closed(), "{ledger:?}");
        *self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = ledger;
    }

    fn release(&mut self, now: Nanos, force: bool) {
        for half in [&mut self.forward, &mut self.backward] {
            // What is left from the last turn goes first.
            if half.out.is_empty() && (half.pool.due(now) || force && !half.pool.is_empty()) {
                self.batches.add(half.pool.len(), half.pool.distinct_channels());
                half.pool.release(&mut self.release);
                let (links, free) = (&mut self.table.links, &mut self.free);
                self.sealer.run(&mut self.release, links, &mut half.out, free, &mut half.tally);
            }
        }
    }

    fn send(&mut self) {
        self.down.send(&mut self.forward.out, &mut self.free, &mut self.forward.tally);
        self.up.send(&mut self.backward.out, &mut self.free, &mut self.backward.tally);
    }

    /// When the next turn must come, if nothing arrives.
    fn wake_at(&self, now: Nanos) -> Option<Nanos> {
        let mut wake = [self.forward.pool.due_at(), self.backward.pool.due_at()].into_iter().flatten().min();
        if self.is_blocked() {
            wake = Some(now + BLOCKED_WAIT);
        }
        if self.table.links.has_activity() {
            wake = Some(wake.unwrap_or(Nanos::MAX).min(self.report_due));
        }
        if !self.table.is_empty() {
            wake = Some(wake.unwrap_or(Nanos::MAX).min((now / SECOND + 1) * SECOND));
        }
        wake
    }
}

impl<U: Port, D: Port> Worker for Mix<U, D> {
    fn turn(&mut self, now: Nanos) -> Option<Nanos> {
        while let Ok(op) = self.ops.pop() {
            self.apply(op, now);
        }
        self.tick(now);
        self.receive_forward(now);
        self.receive_backward(now);
        self.release(now, false);
        self.send();
        report_activity(&mut self.table.links, &mut self.punts, &mut self.report_due, now);
        self.punts.signal();
        self.publish();
        self.wake_at(now)
    }

    fn ready(&mut self, token: u64) {
        match token {
            crate::runner::UP => self.up.set_ready(),
            crate::runner::DOWN => self.down.set_ready(),
            _ => {}
        }
    }

    fn is_blocked(&self) -> bool {
        !(self.forward.out.is_empty() && self.backward.out.is_empty())
    }

    fn finish(&mut self, now: Nanos) {
        self.send();
        self.release(now, true);
        self.send();
        for half in [&mut self.forward, &mut self.backward] {
            half.pool.release(&mut self.release);
            half.tally.drop_many(Drop::Shutdown, (self.release.len() + half.out.len()) as u64);
            self.release.drain(..).for_each(|pooled| self.free.give(pooled.cell.into_frame()));
            half.out.done(half.out.len(), &mut self.free);
        }
        self.publish();
    }
}

/// Gives opened cells the header of the next link and pools them.
fn pool(
    admitted: &mut Vec<Admitted>,
    table: &Table<MixChannel>,
    towards: Side,
    pool: &mut Pool,
    now: Nanos,
    free: &mut FreeList,
    tally: &mut Tally,
) {
    for Admitted { cell, header, channel, .. } in admitted.drain(..) {
        let record = table.record(channel).expect("admitted this turn");
        let next = match towards {
            Side::Up => record.up,
            Side::Down => record.down,
        };
        let Some((link, number)) = next else {
            tally.drop(Drop::Channel);
            free.give(cell.into_frame());
            continue;
        };
        let header = Header { channel: number, ..header };
        pool.admit(cell.opened(), Ticket { link, slot: None, header, label: Label::Channel(channel), arrived: now });
    }
}

/// Copies a cell of control's into a frame and pools it.
#[allow(clippy::too_many_arguments)]
fn inject(
    link: u32,
    slot: u32,
    header: Header,
    body: &[u8],
    now: Nanos,
    free: &mut FreeList,
    pool: &mut Pool,
    tally: &mut Tally,
) {
    let Some(frame) = free.take() else {
        tally.drop(Drop::NoFrame);
        return;
    };
    let mut cell = Cell::own(frame);
    cell.body_mut(body.len()).copy_from_slice(body);
    pool.admit(cell, Ticket { link, slot: Some(slot), header, label: Label::Own, arrived: now });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::lengths;
    use crate::io::mem::{MemNet, MemPort};
    use crate::links::Rank;
    use crate::sys::Waker;
    use rand::SeedableRng;
    use wire::cell::{Class, Kind};
    use zeroize::Zeroizing;

    fn mix(net: &MemNet) -> (Mix<MemPort, MemPort>, rtrb::Producer<Op>, rtrb::Consumer<crate::punt::Punt>) {
        let (ops, worker_ops) = rtrb::RingBuffer::new(16384);
        let (worker_punts, punts) = rtrb::RingBuffer::new(256);
        let shape = Shape::new(Class::S, 2).unwrap();
        let settings =
            Settings { shape, position: 1, mixing: "timed:t=60s".parse().unwrap(), window: 4096, hugepages: false };
        let [up, down] = [(1, Side::Up), (2, Side::Down)]
            .map(|(port, side)| net.port(([192, 0, 2, 1], port).into(), lengths(shape, 1, side)));
        let sender = PuntSender::new(worker_punts, Arc::new(Waker::new().unwrap()));
        let rngs = [1, 2, 3].map(ChaCha20Rng::seed_from_u64);
        (Mix::new(settings, (up, down), worker_ops, sender, rngs, SECOND), ops, punts)
    }

    #[test]
    fn a_pool_behind_a_blocked_socket_takes_what_it_has_room_for_and_loses_nothing_of_it() {
        let net = MemNet::default();
        let (mut mix, mut ops, _punts) = mix(&net);
        let peer = ([192, 0, 2, 9], 9).into();
        let key = || Zeroizing::new([7; 16]);
        let link = Op::InstallLink { link: 0, side: Side::Down, peer };
        let (header_i2r, header_r2i) = (key(), key());
        let slot = Op::InstallSlot { link: 0, slot: 1, peer, header_i2r, header_r2i, rank: Rank::Current };
        assert!(ops.push(link).is_ok() && ops.push(slot).is_ok());
        net.block(true);
        let mut inject = |mix: &mut Mix<MemPort, MemPort>, cells: usize| {
            for seq in 0..cells as u64 {
                let header = Header { channel: 0, seq, sub: 0, kind: Kind::Link, class: Class::S };
                assert!(ops.push(Op::Inject { link: 0, slot: 1, header, body: vec![0; 240] }).is_ok());
            }
            mix.turn(2 * SECOND);
            let ledger = *mix.published.lock().unwrap();
            let tally = ledger.cells.forward;
            (tally.drops(Drop::PoolFull), tally.held as usize, ledger.frames.0 as usize)
        };
        assert_eq!(inject(&mut mix, POOL_MAX), (0, POOL_MAX, FRAMES - POOL_MAX), "a full pool is sealed");
        assert!(mix.is_blocked() && mix.forward.pool.is_empty());
        assert_eq!(inject(&mut mix, POOL_MAX + 1), (1, 2 * POOL_MAX, FRAMES - 2 * POOL_MAX));
        net.block(false);
        mix.turn(2 * SECOND);
        assert_eq!(inject(&mut mix, 0), (1, 0, FRAMES));
        assert_eq!((mix.forward.tally.sent as usize, mix.is_blocked()), (2 * POOL_MAX, false));
        assert_eq!(inject(&mut mix, 1), (1, 1, FRAMES - 1), "there is room again");
    }
}
