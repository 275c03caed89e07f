//! A real mix between two links that do whatever they like, against plain books: at every turn each
//! counter of its ledger, by direction and by reason, is what the books say, and every buffer is somewhere.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use dataplane::batch::{Arrivals, Departures};
use dataplane::buffer::FreeList;
use dataplane::command::{Command, LinkCommand};
use dataplane::histogram::Histogram;
use dataplane::lanes::Lanes;
use dataplane::ledger::{DropReason, Ledger, Tally};
use dataplane::mix::{Mix, Settings};
use dataplane::punt::{Punt, PuntSender, RESERVED};
use dataplane::runner::Worker;
use dataplane::socket::Port;
use dataplane::socket::memory::{Datagram, MemNet, MemPort};
use dataplane::stage::ingress::lengths;
use dataplane::sys::Waker;
use dataplane::{MILLI, Nanos, SECOND};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class, Direction, Header, Shape};
use wire::gcm::{AeadKey, Job, seal_batch};
use wire::handshake::{IK_HALF_LEN, RESPONSE_LEN};
use wire::ids::{ChannelIndex, ChannelKeys, LinkId, Rank, Side, SlotId};
use wire::kdf::Secret;
use wire::key::{GENERATION_SHIFT, Generations};
use wire::link::HeaderKey;
use zeroize::Zeroizing;

mod books;

use books::{Books, Count, Numbers};

const POSITION: usize = 2;
const WINDOW: u64 = 64;
const AHEAD: u64 = 1 << 19;
const CHANNELS: u32 = 3;
/// What a turn takes.
const TURN: Nanos = 7_000;

fn shape() -> Shape {
    Shape::new(Class::S, 3).unwrap()
}

fn own(side: Side) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 2], if side == Side::Up { 1 } else { 2 }))
}

fn peer(side: Side) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, if side == Side::Up { 1 } else { 3 }], 9))
}

fn cell_len(side: Side) -> usize {
    match side {
        Side::Up => shape().cell_len(Direction::Forward, POSITION),
        Side::Down => shape().cell_len(Direction::Backward, POSITION + 1),
    }
}

/// So many cells a socket takes in a turn, and whether it fails on every third of them.
type Mood = Rc<Cell<(usize, bool)>>;

/// A socket with a mood.
struct Moody {
    port: MemPort,
    net: MemNet,
    from: SocketAddr,
    mood: Mood,
}

impl Port for Moody {
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize {
        self.port.recv(free, into)
    }

    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool {
        let (takes, fails) = self.mood.get();
        let count = out.len().min(takes);
        let mut went = Vec::with_capacity(count);
        for (i, (bytes, to)) in out.front().take(count).enumerate() {
            went.push(!(fails && i % 3 == 0));
            if fails && i % 3 == 0 {
                tally.send_errors += 1;
            } else {
                self.net.send(Datagram { from: self.from, to, bytes: bytes.to_vec() });
                tally.sent += 1;
            }
        }
        for went in went {
            if went { out.done(1, free) } else { out.lose(1, free) }
        }
        out.is_empty()
    }

    fn set_ready(&mut self) {}
}

/// What is sent to the mix, and what the books must know of it.
#[derive(Clone, Debug)]
enum Arrival {
    /// No cell's length and no handshake's.
    Length(usize),
    Handshake,
    /// A cell's length, from an address without a link.
    Stranger,
    /// A cell's length, and nothing in it.
    Garbage,
    /// A cell under this slot.
    Cell {
        slot: u32,
        kind: CellKind,
        channel: u32,
        seq: u64,
        sub: u8,
        forged: bool,
    },
}

#[derive(Clone, Debug)]
enum Step {
    Send(Side, Arrival),
    /// A data cell `ahead` of the highest number sent so far in its channel and direction.
    Data {
        side: Side,
        channel: u32,
        ahead: i64,
        sub: u8,
        forged: bool,
    },
    Inject {
        side: Side,
        dead_slot: bool,
    },
    /// Keys of a link go, or come.
    Slot(Side, bool),
    /// A channel goes, or comes.
    Channel(u32, bool),
    Socket {
        side: Side,
        takes: usize,
        fails: bool,
    },
    Turn(u64),
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Up), Just(Side::Down)]
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(vec![CellKind::Setup, CellKind::Ack, CellKind::Link]);
    let arrival = prop_oneof![
        prop::sample::select(vec![0, 1, 65, 239, 500, 1472, 2000]).prop_map(Arrival::Length),
        Just(Arrival::Handshake),
        Just(Arrival::Stranger),
        Just(Arrival::Garbage),
        (kind, 0u64..100).prop_map(|(kind, seq)| Arrival::Cell {
            slot: 0,
            kind,
            channel: 1,
            seq,
            sub: 0,
            forged: false
        }),
    ];
    let ahead = prop_oneof![
        6 => Just(1i64),
        4 => -70i64..70,
        1 => prop::sample::select(vec![AHEAD as i64 - 1, AHEAD as i64, AHEAD as i64 + 1, 1 << 30]),
    ];
    // One channel more than there are.
    let data = (side(), 0..=CHANNELS, ahead, prop_oneof![20 => Just(0u8), 1 => Just(1)], prop::bool::weighted(0.1))
        .prop_map(|(side, channel, ahead, sub, forged)| Step::Data { side, channel, ahead, sub, forged });
    prop_oneof![
        8 => (side(), arrival).prop_map(|(side, arrival)| Step::Send(side, arrival)),
        24 => data,
        3 => (side(), prop::bool::weighted(0.2)).prop_map(|(side, dead_slot)| Step::Inject { side, dead_slot }),
        1 => (side(), any::<bool>()).prop_map(|(side, comes)| Step::Slot(side, comes)),
        1 => (0..CHANNELS, any::<bool>()).prop_map(|(channel, comes)| Step::Channel(channel, comes)),
        2 => (side(), prop_oneof![0usize..4, Just(usize::MAX)], any::<bool>())
            .prop_map(|(side, takes, fails)| Step::Socket { side, takes, fails }),
        12 => (1u64..4).prop_map(Step::Turn),
    ]
}

/// A mix, for all cases: its buffers live as long as the process.
struct World {
    net: MemNet,
    mix: Mix<Moody, Moody>,
    ledger: Arc<Mutex<Ledger>>,
    commands: rtrb::Producer<Command>,
    punts: rtrb::Consumer<Punt>,
    /// Whether control's ring has room for what strangers cause.
    modest: bool,
    moods: [Mood; 2],
    now: Nanos,
    /// Live slots, and which side's.
    slots: BTreeMap<u32, Side>,
    next_slot: u32,
    next_secret: u8,
}

/// The channels of a case.
struct Channels {
    open: Vec<bool>,
    secrets: Vec<Secret>,
}

fn link(side: Side) -> u32 {
    if side == Side::Up { 0 } else { 1 }
}

fn slot_key(slot: u32, side: Side) -> [u8; 16] {
    let mut key = [if side == Side::Up { 7 } else { 8 }; 16];
    key[..4].copy_from_slice(&slot.to_be_bytes());
    key
}

impl World {
    fn new(modest: bool) -> World {
        let net = MemNet::default();
        let (commands, from_control) = rtrb::RingBuffer::new(1024);
        let (to_control, punts) = rtrb::RingBuffer::new(if modest { 4096 } else { RESERVED });
        let moods = [(); 2].map(|()| Mood::new(Cell::new((usize::MAX, false))));
        let port = |side: Side| Moody {
            port: net.port(own(side), lengths(shape(), POSITION, side)),
            net: net.clone(),
            from: own(side),
            mood: moods[link(side) as usize].clone(),
        };
        let settings = Settings {
            shape: shape(),
            position: POSITION,
            mixing: "timed:t=1ms".parse().unwrap(),
            lanes: Lanes::ONE,
            window: WINDOW as usize,
            hugepages: false,
            max_age: std::time::Duration::MAX,
        };
        let rngs = [1, 2, 3].map(ChaCha20Rng::seed_from_u64);
        let punt_sender = PuntSender::new(to_control, Arc::new(Waker::new().unwrap()));
        let ports = (port(Side::Up), port(Side::Down));
        let mut mix = Mix::new(settings, ports, from_control, punt_sender, rngs, SECOND);
        mix.turn(SECOND);
        mix.record_latency(SECOND);
        let ledger = mix.published();
        let mut world = World {
            net,
            mix,
            ledger,
            commands,
            punts,
            modest,
            moods,
            now: SECOND,
            slots: BTreeMap::new(),
            next_slot: 1,
            next_secret: 0,
        };
        for side in [Side::Up, Side::Down] {
            world.command(Command::Link(LinkCommand::Install { link: LinkId(link(side)), side, peer: peer(side) }));
        }
        world
    }

    fn command(&mut self, command: Command) {
        self.commands.push(command).unwrap_or_else(|_| panic!("the ring has room"));
    }

    fn live(&self, side: Side) -> Option<u32> {
        self.slots.iter().find(|(_, of)| **of == side).map(|(slot, _)| *slot)
    }

    fn slot(&mut self, side: Side, comes: bool) {
        match (self.live(side), comes) {
            (None, true) => {
                let slot = self.next_slot;
                self.next_slot += 1;
                self.slots.insert(slot, side);
                let key = |side| Zeroizing::new(slot_key(slot, side));
                self.command(Command::Link(LinkCommand::InstallSlot {
                    link: LinkId(link(side)),
                    slot: SlotId(slot),
                    peer: peer(side),
                    header_i2r: key(Side::Up),
                    header_r2i: key(Side::Down),
                    rank: Rank::Current,
                }));
            }
            (Some(slot), false) => {
                self.slots.remove(&slot);
                self.command(Command::Link(LinkCommand::RetireSlot { link: LinkId(link(side)), slot: SlotId(slot) }));
            }
            _ => {}
        }
    }

    fn channel(&mut self, channels: &mut Channels, books: &mut [Books; 2], channel: u32, comes: bool) {
        let at = channel as usize;
        if channels.open[at] == comes {
            return;
        }
        channels.open[at] = comes;
        if !comes {
            self.command(Command::RetireChannel { channel: ChannelIndex(channel) });
            return;
        }
        self.next_secret = self.next_secret.wrapping_add(1);
        channels.secrets[at] = Secret::new([self.next_secret; 32]);
        books.iter_mut().for_each(|books| books.numbers[at] = Numbers::default());
        books.iter_mut().for_each(|books| books.sent_up_to[at] = 0);
        // What is under way was sealed for the channel before.
        for arrival in &mut books[0].waiting {
            if let Arrival::Cell { kind: CellKind::Data, channel: of, forged, .. } = arrival
                && *of == channel
            {
                *forged = true;
            }
        }
        self.command(Command::InstallChannel {
            channel: ChannelIndex(channel),
            up: Some((LinkId(link(Side::Up)), 100 + channel)),
            down: Some((LinkId(link(Side::Down)), 200 + channel)),
            keys: ChannelKeys::Hop {
                forward: channels.secrets[at].clone(),
                backward: Secret::new([!self.next_secret; 32]),
            },
            lifetime_s: 3600,
            first: 0,
        });
    }

    fn send(&self, channels: &Channels, books: &mut Books, mut arrival: Arrival) {
        let side = books.from;
        let live = self.live(side);
        let (mut from, mut bytes) = (peer(side), vec![0x5a; cell_len(side)]);
        match &mut arrival {
            Arrival::Length(len) => bytes = vec![1; *len],
            Arrival::Handshake => bytes = vec![1; if side == Side::Up { IK_HALF_LEN } else { RESPONSE_LEN }],
            Arrival::Stranger => from.set_port(10),
            Arrival::Garbage => {}
            Arrival::Cell { slot, kind, channel, seq, sub, forged } => {
                *slot = live.unwrap_or(u32::MAX);
                let number = if side == Side::Up { 100 } else { 200 } + *channel;
                let header = Header { channel: number, seq: *seq, sub: *sub, kind: *kind, class: Class::S };
                if let (Side::Up, CellKind::Data, Some(secret)) = (side, *kind, channels.secrets.get(*channel as usize))
                {
                    let mut keys = Generations::<AeadKey>::new(secret, 0);
                    keys.advance(*seq);
                    let (key, iv) = keys.of(*seq).unwrap();
                    seal_batch(&mut [Job::new(key, header.data_nonce(iv), &mut bytes[16..])]);
                    bytes[100] ^= u8::from(*forged);
                }
                let mut block = [header.to_block()];
                HeaderKey::new(&slot_key(*slot, side)).encipher(&mut block);
                bytes[..16].copy_from_slice(&block[0]);
            }
        }
        self.net.send(Datagram { from, to: own(side), bytes });
        books.waiting.push_back(arrival);
    }

    /// A turn; what arrived at the neighbours, by direction.
    fn turn(&mut self, after: Nanos) -> [u64; 2] {
        self.now += after;
        self.mix.turn(self.now);
        self.mix.record_latency(self.now + TURN);
        while self.punts.pop().is_ok() {}
        [Side::Down, Side::Up].map(|towards| std::iter::from_fn(|| self.net.receive(peer(towards))).count() as u64)
    }

    /// What was sent, and nothing else, is counted by its time; what was released, by size. No pool keeps a cell longer
    /// than it is due, nor a turn that is not blocked.
    fn assert_profile(&self, ledger: &Ledger) {
        let profile = self.mix.profile().read();
        for (latency, tally) in
            [(&profile.latency.forward, ledger.cells.forward), (&profile.latency.backward, ledger.cells.backward)]
        {
            let counts = [&latency.pool, &latency.node, &latency.total].map(Histogram::count);
            assert_eq!(counts, [tally.sent; 3]);
            assert!(latency.pool.max() <= MILLI && latency.node.max() <= latency.total.max());
            assert!(tally.sent == 0 || latency.node.quantile(0.0) >= TURN);
            let parts = latency.pool.mean() + latency.node.mean();
            assert!((parts - latency.total.mean()).abs() <= 1e-9 * parts);
        }
        let releases = (profile.releases.count(), profile.releases.mean());
        let mean = ledger.releases.cells as f64 / ledger.releases.count.max(1) as f64;
        assert_eq!(releases, (ledger.releases.count, mean));
    }

    fn case(&mut self, steps: Vec<Step>) -> Result<(), TestCaseError> {
        // Whatever the case before has left behind goes first.
        self.moods.iter().for_each(|mood| mood.set((usize::MAX, false)));
        for channel in 0..CHANNELS {
            self.command(Command::RetireChannel { channel: ChannelIndex(channel) });
        }
        for side in [Side::Up, Side::Down] {
            self.slot(side, false);
        }
        for _ in 0..20 {
            self.turn(MILLI);
        }
        let before = *self.ledger.lock().unwrap();
        prop_assert_eq!(before.cells.forward.held + before.cells.backward.held, 0);

        let mut books = [Side::Up, Side::Down].map(Books::new);
        let mut channels =
            Channels { open: vec![false; CHANNELS as usize], secrets: vec![Secret::new([0; 32]); CHANNELS as usize] };
        for side in [Side::Up, Side::Down] {
            self.slot(side, true);
        }
        for channel in 0..CHANNELS {
            self.channel(&mut channels, &mut books, channel, true);
        }
        let mut arrived = [0; 2];
        let mut injected: [Vec<Option<u32>>; 2] = Default::default();
        for step in steps.into_iter().chain([Step::Turn(1), Step::Turn(1)]) {
            match step {
                Step::Send(side, arrival) => self.send(&channels, &mut books[link(side) as usize], arrival),
                Step::Data { side, channel, ahead, sub, forged } => {
                    let books = &mut books[link(side) as usize];
                    let up_to = &mut books.sent_up_to[channel as usize];
                    let seq = up_to.saturating_add_signed(ahead);
                    if seq < *up_to + AHEAD && !forged && sub == 0 {
                        *up_to = seq.max(*up_to);
                    }
                    let arrival = Arrival::Cell { slot: 0, kind: CellKind::Data, channel, seq, sub, forged };
                    self.send(&channels, books, arrival);
                }
                Step::Inject { side, dead_slot } => {
                    let slot = self.live(side).filter(|_| !dead_slot).unwrap_or(u32::MAX);
                    let header = Header { channel: 0, seq: 0, sub: 0, kind: CellKind::Link, class: Class::S };
                    let out = if side == Side::Up { POSITION } else { POSITION + 1 };
                    let direction = if side == Side::Up { Direction::Backward } else { Direction::Forward };
                    let body = vec![3; shape().cell_len(direction, out) - 16];
                    let (link_id, slot_id) = (LinkId(link(side)), SlotId(slot));
                    self.command(Command::Inject { link: link_id, slot: slot_id, header, body, at_once: false });
                    // It leaves on this side: it is in the books of the direction that comes from the other.
                    injected[1 - link(side) as usize].push(Some(slot));
                }
                Step::Slot(side, comes) => self.slot(side, comes),
                Step::Channel(channel, comes) => self.channel(&mut channels, &mut books, channel, comes),
                Step::Socket { side, takes, fails } => {
                    self.moods[link(side) as usize].set((takes, fails));
                    let towards = &mut books[1 - link(side) as usize];
                    (towards.takes, towards.fails) = (takes, fails);
                }
                Step::Turn(ms) => {
                    let now = self.turn(ms * MILLI);
                    for (i, books) in books.iter_mut().enumerate() {
                        let due = !books.pooled.is_empty();
                        books.count.injected += injected[i].len() as u64;
                        books.pooled.append(&mut injected[i]);
                        books.receive(&self.slots, &channels.open, self.modest);
                        books.release(due, &self.slots);
                        books.send();
                        arrived[i] += now[i];
                        prop_assert_eq!(books.count.sent, arrived[i], "counted as sent, and there");
                    }
                    let ledger = *self.ledger.lock().unwrap();
                    prop_assert!(ledger.closed());
                    self.assert_profile(&ledger);
                    prop_assert_eq!(&Count::since(&ledger.cells.forward, &before.cells.forward), &books[0].count);
                    prop_assert_eq!(&Count::since(&ledger.cells.backward, &before.cells.backward), &books[1].count);
                    let held = books[0].count.held + books[1].count.held;
                    prop_assert_eq!(ledger.buffers.free + held, ledger.buffers.total, "every buffer is somewhere");
                    prop_assert_eq!(ledger.datagrams, before.datagrams, "a mix has no datagrams");
                }
            }
        }
        Ok(())
    }
}

/// Cases on one mix, whose ring to control has room for what strangers cause, or not.
fn hold_against_the_books(modest: bool) {
    let world = RefCell::new(World::new(modest));
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    let done = runner.run(&prop::collection::vec(step(), 1..150), |steps| world.borrow_mut().case(steps));
    if let Err(why) = done {
        panic!("{why}");
    }
    let mut world = world.into_inner();
    world.mix.finish(world.now);
    world.mix.record_latency(world.now + TURN);
    let ledger = *world.ledger.lock().unwrap();
    assert!(ledger.closed());
    assert_eq!(ledger.buffers.free, ledger.buffers.total);
    assert_eq!(ledger.cells.forward.held + ledger.cells.backward.held, 0);
    world.assert_profile(&ledger);
}

#[test]
fn a_mix_accounts_for_every_cell_as_plain_books_do() {
    hold_against_the_books(true);
}

#[test]
fn mix_with_slow_control_accounts_for_every_cell() {
    hold_against_the_books(false);
}

#[test]
fn backward_cell_a_generation_behind_its_batch_is_old() {
    let mut world = World::new(true);
    let half = 1 << (GENERATION_SHIFT - 1);
    let mut steps = Vec::new();
    for side in [Side::Up, Side::Down] {
        let data = |ahead| Step::Data { side, channel: 0, ahead, sub: 0, forged: false };
        // The last two come in one batch: generation 0, and so far into the next that the first is lost.
        steps.extend([data(half - 1), Step::Turn(1), data(101), Step::Turn(1), data(1), data(half - 2), Step::Turn(1)]);
    }
    world.case(steps).unwrap();
    let ledger = *world.ledger.lock().unwrap();
    assert_eq!(ledger.cells.forward.drops(DropReason::Old), 0, "forward it is opened before any is marked");
    assert_eq!(ledger.cells.backward.drops(DropReason::Old), 1);
}
