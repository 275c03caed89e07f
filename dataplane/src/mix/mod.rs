//! The worker of a mix, and the workers of one that has several cores.
//!
//! ```text
//! edge    between the sockets of one core: receive, open; seal, send     mixer   the pools of both directions
//! multicore   several shards, each with an edge, around one shared mixer, joined by bounded rings
//! ```
//!
//! [`Mix::turn`](Worker::turn) spells the path of a cell on one core, without a ring. Both directions are the same but
//! for the layer: forward a mix takes one off and checks it, backward it puts one on.

mod edge;
mod mixer;
pub mod multicore;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Shape};
use wire::gcm::{AeadKey, StreamKey};
use wire::replay::Window;

use self::edge::Edge;
use self::mixer::{Mixer, Release};
use crate::Nanos;
use crate::batch::RECEIVE_MAX;
use crate::command::Command;
use crate::lanes::Lanes;
use crate::latency;
use crate::ledger::{DropReason, Ledger};
use crate::per_direction::DIRECTIONS;
use crate::punt::PuntSender;
use crate::runner::{Clock, Worker};
use crate::socket::Port;
use crate::stage::pool::{Mixing, POOL_MAX};
use crate::table::{BackwardHalf, ChannelState, ForwardHalf, Half, Record};

/// Buffers of a mix: two pools, as many waiting in the two send queues as a pool can release, the rx buffers of the
/// two sockets, and the batch being received.
pub(crate) const BUFFERS: usize = 2 * POOL_MAX + 2 * POOL_MAX + 2 * RECEIVE_MAX + RECEIVE_MAX;

/// The configuration of a mix worker.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Lengths of the chain.
    pub shape: Shape,
    /// The position of this hop: 1 for Mix 1.
    pub position: usize,
    /// The rule that releases pools.
    pub mixing: Mixing,
    /// Over how many ports its links are spread.
    pub lanes: Lanes,
    /// Width of replay windows.
    pub window: usize,
    /// Buffers on huge pages.
    pub hugepages: bool,
    /// The longest time that a cell may wait, not counting the pool's mixing (SPEC 6.6).
    pub max_age: Duration,
}

/// A mix's part of a channel.
#[repr(C)]
pub struct MixChannel {
    forward: Half<AeadKey>,
    backward: Half<StreamKey>,
}

// `None` is a value that no half has, in the first cache line, so the option takes no room of its own.
#[cfg(target_arch = "x86_64")]
const _: () = assert!(size_of::<Option<Record<MixChannel>>>() == 21 * 64);

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

impl ForwardHalf for MixChannel {
    fn forward(&self) -> &Half<AeadKey> {
        &self.forward
    }

    fn forward_mut(&mut self) -> &mut Half<AeadKey> {
        &mut self.forward
    }
}

impl BackwardHalf for MixChannel {
    fn backward(&self) -> &Half<StreamKey> {
        &self.backward
    }

    fn backward_mut(&mut self) -> &mut Half<StreamKey> {
        &mut self.backward
    }
}

/// The worker of a mix between its two link sockets, on one core.
pub struct Mix<U, D> {
    edge: Edge<U, D>,
    mixer: Mixer,
    published: Arc<Mutex<Ledger>>,
    profile: latency::Shared,
}

impl<U: Port, D: Port> Mix<U, D> {
    /// A mix with empty tables. Three generators: one per pool and one for group order.
    pub fn new(
        settings: Settings,
        ports: (U, D),
        commands: rtrb::Consumer<Command>,
        punts: PuntSender,
        [forward, backward, groups]: [ChaCha20Rng; 3],
        now: Nanos,
    ) -> Self {
        Mix {
            mixer: Mixer::new(settings.mixing, [forward, backward]),
            edge: Edge::new(settings, 0, BUFFERS, ports, (commands, punts), groups, now),
            published: Arc::default(),
            profile: latency::Shared::default(),
        }
    }

    /// The ledger, published at every turn boundary.
    pub fn published(&self) -> Arc<Mutex<Ledger>> {
        self.published.clone()
    }

    /// Histograms of how long cells stay, and of releases by size.
    pub fn profile(&self) -> latency::Shared {
        self.profile.clone()
    }

    fn publish(&self) {
        let mut ledger = self.edge.ledger();
        for direction in DIRECTIONS {
            ledger.cells[direction].hold(self.mixer.held(direction));
        }
        ledger.releases = self.mixer.releases();
        publish(&self.published, ledger);
    }

    fn release(&mut self, now: Nanos, force: bool) {
        for direction in DIRECTIONS {
            // The rest of the last turn goes first.
            if self.edge.may_leave(direction)
                && let Some(Release { cells, times }) = self.mixer.release(direction, now, force)
            {
                self.edge.leave(direction, cells, times);
            }
        }
    }
}

/// Makes a ledger known.
fn publish(place: &Mutex<Ledger>, ledger: Ledger) {
    debug_assert!(ledger.closed(), "{ledger:?}");
    *place.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = ledger;
}

impl<U: Port, D: Port> Worker for Mix<U, D> {
    fn set_clock(&mut self, clock: Clock) {
        self.edge.set_clock(clock);
    }

    fn turn(&mut self, now: Nanos) -> Nanos {
        let Self { edge, mixer, .. } = self;
        edge.begin(now, mixer);
        DIRECTIONS.into_iter().for_each(|direction| edge.receive(direction, now, mixer));
        self.release(now, false);
        self.edge.send(now);
        self.edge.report(now);
        self.publish();
        // A pool that is due cannot leave before the rest of the last release.
        let due = if self.edge.is_blocked() { None } else { self.mixer.due_at() };
        due.into_iter().fold(self.edge.wake_at(now), Nanos::min)
    }

    fn record_latency(&mut self, now: Nanos) {
        if self.edge.has_unrecorded() || self.mixer.has_released() {
            let mut profile = self.profile.lock();
            self.edge.record_latency(now, &mut profile);
            self.mixer.record_releases(now, &mut profile);
        }
    }

    fn ready(&mut self, token: u64) {
        self.edge.ready(token);
    }

    fn is_blocked(&self) -> bool {
        self.edge.is_blocked()
    }

    fn finish(&mut self, now: Nanos) {
        self.edge.send(now);
        self.release(now, true);
        self.edge.send(now);
        for direction in DIRECTIONS {
            if let Some(Release { cells, .. }) = self.mixer.release(direction, now, true) {
                self.edge.give_up(direction, cells.drain(..), DropReason::Shutdown);
            }
            self.edge.abandon(direction);
        }
        self.publish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SECOND;
    use crate::command::LinkCommand;
    use crate::latency::Latency;
    use crate::runner::BLOCKED_WAIT;
    use crate::socket::memory::{MemNet, MemPort};
    use crate::stage::ingress::lengths;
    use crate::sys::Waker;
    use rand::SeedableRng;
    use wire::cell::{CellKind, Class, Header};
    use wire::ids::{LinkId, Rank, Side, SlotId};
    use zeroize::Zeroizing;

    type MemMix = Mix<MemPort, MemPort>;

    fn mix(net: &MemNet) -> (MemMix, rtrb::Producer<Command>, rtrb::Consumer<crate::punt::Punt>) {
        limited_mix(net, Duration::MAX)
    }

    fn limited_mix(
        net: &MemNet,
        max_age: Duration,
    ) -> (MemMix, rtrb::Producer<Command>, rtrb::Consumer<crate::punt::Punt>) {
        let (commands, worker_commands) = rtrb::RingBuffer::new(16384);
        let (worker_punts, punts) = rtrb::RingBuffer::new(256);
        let shape = Shape::new(Class::S, 2).unwrap();
        let settings = Settings {
            shape,
            position: 1,
            mixing: "timed:t=60s".parse().unwrap(),
            lanes: Lanes::ONE,
            window: 4096,
            hugepages: false,
            max_age,
        };
        let [up, down] = [(1, Side::Up), (2, Side::Down)]
            .map(|(port, side)| net.port(([192, 0, 2, 1], port).into(), lengths(shape, 1, side)));
        let sender = PuntSender::new(worker_punts, Arc::new(Waker::new().unwrap()));
        let rngs = [1, 2, 3].map(ChaCha20Rng::seed_from_u64);
        (Mix::new(settings, (up, down), worker_commands, sender, rngs, SECOND), commands, punts)
    }

    /// Installs a link towards the next hop, with one slot.
    fn connect(commands: &mut rtrb::Producer<Command>) {
        let peer = ([192, 0, 2, 9], 9).into();
        let key = || Zeroizing::new([7; 16]);
        let link = LinkCommand::Install { link: LinkId(0), side: Side::Down, peer };
        let (header_i2r, header_r2i) = (key(), key());
        let slot = LinkCommand::InstallSlot {
            link: LinkId(0),
            slot: SlotId(1),
            peer,
            header_i2r,
            header_r2i,
            rank: Rank::Current,
        };
        assert!([link, slot].into_iter().all(|command| commands.push(Command::Link(command)).is_ok()));
    }

    fn own_cell(seq: u64, at_once: bool) -> Command {
        let header = Header { channel: 0, seq, sub: 0, kind: CellKind::Link, class: Class::S };
        Command::Inject { link: LinkId(0), slot: SlotId(1), header, body: vec![0; 240], at_once }
    }

    #[test]
    fn urgent_cell_leaves_past_the_pool() {
        let net = MemNet::default();
        let (mut mix, mut commands, _punts) = mix(&net);
        connect(&mut commands);
        let mut turn = |cells: &[bool]| {
            for (seq, at_once) in cells.iter().enumerate() {
                assert!(commands.push(own_cell(seq as u64, *at_once)).is_ok());
            }
            mix.turn(2 * SECOND);
            let tally = mix.published.lock().unwrap().cells.forward;
            (tally.sent, tally.held)
        };
        assert_eq!(turn(&[true, false, true, false]), (2, 2));
        net.block(true);
        assert_eq!(turn(&[true, false]), (2, 4), "it waits in the socket's queue");
        net.block(false);
        assert_eq!(turn(&[]), (3, 3));
        assert_eq!(mix.mixer.held(Direction::Forward), 3);
    }

    #[test]
    fn stopped_mix_drains_its_pool() {
        let net = MemNet::default();
        let (mut mix, mut commands, _punts) = mix(&net);
        connect(&mut commands);
        for seq in 0..3 {
            assert!(commands.push(own_cell(seq, false)).is_ok());
        }
        let tally = |mix: &Mix<MemPort, MemPort>| {
            let tally = mix.published.lock().unwrap().cells.forward;
            (tally.sent, tally.held, tally.drops(DropReason::Shutdown))
        };
        mix.turn(2 * SECOND);
        assert_eq!(tally(&mix), (0, 3, 0));
        mix.finish(2 * SECOND);
        assert_eq!(tally(&mix), (3, 0, 0));
    }

    #[test]
    fn cells_of_control_have_no_maximum_age() {
        let net = MemNet::default();
        let (mut mix, mut commands, _punts) = limited_mix(&net, Duration::from_millis(250));
        connect(&mut commands);
        net.block(true);
        for (seq, at_once) in [(0, true), (1, false)] {
            assert!(commands.push(own_cell(seq, at_once)).is_ok());
        }
        mix.turn(2 * SECOND);
        mix.turn(200 * SECOND);
        net.block(false);
        mix.turn(400 * SECOND);
        mix.turn(600 * SECOND);
        let tally = mix.published.lock().unwrap().cells.forward;
        assert_eq!((tally.sent, tally.held, tally.drops(DropReason::Aged)), (2, 0, 0));
    }

    #[test]
    fn pool_behind_a_blocked_socket_loses_nothing_it_took() {
        let net = MemNet::default();
        let (mut mix, mut commands, _punts) = mix(&net);
        connect(&mut commands);
        net.block(true);
        let mut inject = |mix: &mut Mix<MemPort, MemPort>, cells: usize, now: Nanos| {
            for seq in 0..cells as u64 {
                assert!(commands.push(own_cell(seq, false)).is_ok());
            }
            mix.turn(now);
            mix.record_latency(now + 100);
            let ledger = *mix.published.lock().unwrap();
            let tally = ledger.cells.forward;
            (tally.drops(DropReason::PoolFull), tally.held as usize, ledger.buffers.free as usize)
        };
        assert_eq!(inject(&mut mix, POOL_MAX, 2 * SECOND), (0, POOL_MAX, BUFFERS - POOL_MAX), "a full pool is sealed");
        assert!(mix.is_blocked() && mix.mixer.held(Direction::Forward) == 0);
        assert_eq!(inject(&mut mix, POOL_MAX + 1, 2 * SECOND), (1, 2 * POOL_MAX, BUFFERS - 2 * POOL_MAX));
        let late = 200 * SECOND;
        assert_eq!(mix.turn(late), late + BLOCKED_WAIT, "a pool that is due behind it does not spin");
        let sent = |mix: &Mix<MemPort, MemPort>| mix.profile().read().latency.forward.total.count() as usize;
        net.block(false);
        assert_eq!(sent(&mix), 0);
        mix.turn(late);
        mix.record_latency(late + 100);
        assert_eq!(sent(&mix), POOL_MAX);
        assert_eq!(inject(&mut mix, 0, late), (1, 0, BUFFERS));
        assert_eq!(
            (mix.published().lock().unwrap().cells.forward.sent as usize, mix.is_blocked()),
            (2 * POOL_MAX, false)
        );
        assert_eq!(inject(&mut mix, 1, late), (1, 1, BUFFERS - 1), "there is room again");
        // Mixing could not have held them for more than its period: what the socket did is the node's.
        let profile = mix.profile().read();
        let Latency { pool, node, total } = profile.latency.forward;
        assert_eq!([pool.count(), node.count(), total.count()], [2 * POOL_MAX as u64; 3]);
        assert!(pool.max() <= 60 * SECOND && pool.quantile(0.5) == 0, "the first were flushed at once");
        assert_eq!((node.max(), total.max()), (198 * SECOND + 100, 198 * SECOND + 100));
        assert_eq!(profile.releases.buckets().map(|(_, count)| count).collect::<Vec<_>>(), [2]);
    }
}
