//! A chain in memory: `Control` nodes, a data plane with slots and channels only, and a network with a
//! virtual clock that loses, copies and delays datagrams as a test demands.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::trust::State;
use control::{Change, Control, Input, Output, Refusal};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::CellKind;
use wire::handshake::is_handshake_len;
use wire::ids::{ChannelIndex, ChannelKeys, EndReason, Side};

pub mod node;
pub mod plan;

pub use node::{Node, Plane};
pub use plan::{Plan, down_address, port_of_class, up_address};

pub const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A datagram in flight.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    pub at: Duration,
    pub number: usize,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

/// The fate of a datagram on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Pass,
    Lose,
    Copy,
    Delay(Duration),
}

pub type Tap = Box<dyn FnMut(Duration, &Packet) -> Fate>;

/// Loses this share of all datagrams.
pub fn losing(share: f64) -> Tap {
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    Box::new(move |_, _| if rng.random_bool(share) { Fate::Lose } else { Fate::Pass })
}

pub struct World {
    pub plan: Plan,
    pub now: Duration,
    pub nodes: BTreeMap<usize, Node>,
    /// Datagrams in flight.
    flight: BinaryHeap<Reverse<Packet>>,
    number: usize,
    rng: ChaCha20Rng,
    pub tap: Tap,
    /// Added to the virtual time, this is the wall clock of all hosts.
    pub wall_base: Duration,
    /// How far clocks are ahead of it, in ms, by node.
    pub clock_ms: BTreeMap<usize, i64>,
    /// Nodes that cannot write to their disk.
    pub broken_disks: BTreeSet<usize>,
    /// What names resolve to, for everybody.
    pub names: BTreeMap<(String, u16), Vec<SocketAddr>>,
    /// Answers under way to the nodes that have asked: when, to whom, what.
    answers: VecDeque<(Duration, usize, Vec<SocketAddr>)>,
    /// What is on the disk of each node.
    pub disks: BTreeMap<usize, Vec<u8>>,
    /// All datagrams sent, unless a test turns it off.
    pub record: Vec<Packet>,
    pub recording: bool,
    /// How long a datagram takes, in microseconds: drawn for each, so they overtake each other.
    pub delay_us: Range<u64>,
    /// Forward control cells arrive behind a data cell of the same slot and source.
    pub data_cells: bool,
    /// The latest number that was sealed under each control key, which is known by its header key.
    numbers: BTreeMap<[u8; 16], u64>,
    /// Control cells that were accepted: each one is once.
    accepted: BTreeSet<([u8; 16], u64)>,
    /// The forward secrets of all channels that a node has had: each one's numbers begin at 0 once.
    secrets: BTreeSet<(usize, [u8; 32])>,
}

/// A step of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A datagram arrived at this node.
    Arrived(usize),
    /// A datagram arrived where nobody is, or nodes did what was due.
    Passed,
    /// Nothing is due before the limit.
    Idle,
}

impl World {
    /// A chain without nodes.
    pub fn empty(plan: Plan) -> World {
        World {
            plan,
            now: secs(1000),
            nodes: BTreeMap::new(),
            flight: BinaryHeap::new(),
            number: 0,
            rng: ChaCha20Rng::seed_from_u64(2),
            tap: Box::new(|_, _| Fate::Pass),
            record: Vec::new(),
            recording: true,
            delay_us: 2_000..6_000,
            wall_base: secs(1_800_000_000),
            clock_ms: BTreeMap::new(),
            broken_disks: BTreeSet::new(),
            names: BTreeMap::new(),
            answers: VecDeque::new(),
            disks: BTreeMap::new(),
            data_cells: false,
            numbers: BTreeMap::new(),
            accepted: BTreeSet::new(),
            secrets: BTreeSet::new(),
        }
    }

    /// A chain whose nodes all start now.
    pub fn new(plan: Plan) -> World {
        let mut world = World::empty(plan);
        for position in (0..=world.plan.shape.hops()).rev() {
            world.start(position);
        }
        world
    }

    /// The clock of a node's host.
    pub fn wall(&self, node: usize) -> SystemTime {
        let ahead = self.clock_ms.get(&node).copied().unwrap_or(0);
        let wall = UNIX_EPOCH + self.wall_base + self.now;
        if ahead < 0 { wall - ms(ahead.unsigned_abs()) } else { wall + ms(ahead.unsigned_abs()) }
    }

    /// Starts a node, or restarts it with what is on its disk.
    pub fn start(&mut self, position: usize) {
        self.start_as(position, position, up_address(position), down_address(position));
    }

    /// Starts another node with the configuration of `position`, under its own number and addresses.
    pub fn start_as(&mut self, number: usize, position: usize, up_address: SocketAddr, down_address: SocketAddr) {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.rng.random::<u64>().to_be_bytes());
        let wall = self.wall(number);
        let now_s = wall.duration_since(UNIX_EPOCH).expect("it is later").as_secs();
        let state = match self.disks.get(&number) {
            Some(bytes) => State::read(bytes).expect("it was written"),
            None => State::fresh(now_s),
        };
        let (configs, trust) = self.plan.configs(position, state, wall);
        let shapes: Vec<_> = configs.iter().map(|config| config.shape).collect();
        let control = Control::new(configs, trust, ChaCha20Rng::from_seed(seed), self.now, wall);
        let control = control.expect("the plan is sound");
        let plane =
            |(class, shape)| Plane::new(shape, port_of_class(up_address, class), port_of_class(down_address, class));
        self.nodes.insert(
            number,
            Node {
                control,
                position,
                planes: shapes.into_iter().enumerate().map(plane).collect(),
                events: Vec::new(),
                honest: true,
                acks: BTreeMap::new(),
                resolved: Vec::new(),
                late: 0,
            },
        );
    }

    pub fn stop(&mut self, position: usize) {
        self.nodes.remove(&position);
    }

    pub fn node(&self, position: usize) -> &Node {
        &self.nodes[&position]
    }

    pub fn refused(&self, position: usize, why: Refusal) -> u64 {
        self.node(position).control.class(0).counters().refused(why)
    }

    /// Puts a datagram on the network.
    pub fn send(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        let delay = Duration::from_micros(self.rng.random_range(self.delay_us.clone()));
        self.number += 1;
        let packet = Packet { at: self.now + delay, number: self.number, from, to, bytes };
        let fate = (self.tap)(self.now, &packet);
        if self.recording {
            self.record.push(packet.clone());
        }
        match fate {
            Fate::Pass => self.flight.push(Reverse(packet)),
            Fate::Lose => {}
            Fate::Copy => {
                let copy = Packet { at: packet.at + ms(3), ..packet.clone() };
                self.flight.push(Reverse(packet));
                self.flight.push(Reverse(copy));
            }
            Fate::Delay(by) => self.flight.push(Reverse(Packet { at: packet.at + by, ..packet })),
        }
    }

    /// Loses what is in flight from an address.
    pub fn lose_flight(&mut self, from: SocketAddr) {
        self.flight.retain(|Reverse(packet)| packet.from != from);
    }

    /// Runs until `until`, or until `done` returns true; returns whether it did.
    pub fn run_until(&mut self, until: Duration, mut done: impl FnMut(&World) -> bool) -> bool {
        for _ in 0..2_000_000 {
            if done(self) {
                return true;
            }
            if self.advance(until) == Moment::Idle {
                return false;
            }
        }
        panic!("the chain does not come to rest");
    }

    /// Does what is due next, if that is before `until`.
    pub fn advance(&mut self, until: Duration) -> Moment {
        let packet = self.flight.peek().map_or(Duration::MAX, |p| p.0.at);
        let wake = self.nodes.values().map(|n| n.control.next_wake()).min().unwrap_or(Duration::MAX);
        let answer = self.answers.front().map_or(Duration::MAX, |(at, ..)| *at);
        let next = packet.min(wake).min(answer).max(self.now);
        if next > until {
            self.now = until;
            return Moment::Idle;
        }
        self.now = next;
        if answer <= next {
            let (_, at, addresses) = self.answers.pop_front().expect("it is there");
            if let Some(node) = self.nodes.get_mut(&at) {
                node.control.resolved(next, 0, addresses);
            }
            return Moment::Passed;
        }
        if packet <= next {
            let packet = self.flight.pop().expect("it was peeked").0;
            return self.deliver(&packet).map_or(Moment::Passed, Moment::Arrived);
        }
        let due: Vec<usize> =
            self.nodes.iter().filter(|(_, n)| n.control.next_wake() <= next).map(|(at, _)| *at).collect();
        for at in due {
            let wall = self.wall(at);
            let node = self.nodes.get_mut(&at).expect("it is there");
            node.control.tick(next, wall);
            self.drain(at);
            let wake = self.nodes[&at].control.next_wake();
            assert!(wake > next, "node {at} would spin: wake {wake:?} at {next:?}");
        }
        Moment::Passed
    }

    /// Each node has something else to do now.
    pub fn tick_all(&mut self) {
        for at in self.nodes.keys().copied().collect::<Vec<_>>() {
            let (now, wall) = (self.now, self.wall(at));
            self.nodes.get_mut(&at).expect("it is there").control.tick(now, wall);
            self.drain(at);
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time, |_| false);
    }

    /// Hands a datagram to the node that has its destination; returns which.
    fn deliver(&mut self, packet: &Packet) -> Option<usize> {
        let side = |plane: &Plane| [Side::Up, Side::Down].into_iter().find(|side| plane.address(*side) == packet.to);
        let (&at, (class, side)) = self.nodes.iter().find_map(|(at, node)| {
            let mut planes = node.planes.iter().enumerate();
            Some((at, planes.find_map(|(class, plane)| Some((class, side(plane)?)))?))
        })?;
        let now = self.now;
        let node = self.nodes.get_mut(&at).expect("it was found");
        let (control, plane) = (&mut node.control, &node.planes[class]);
        let mut bytes = packet.bytes.clone();
        if is_handshake_len(bytes.len()) {
            control.handle(now, class, Input::Handshake { side, from: packet.from, datagram: &mut bytes });
        } else if let Some((link, slot, header)) = plane.find(side, packet.from, &bytes) {
            if self.data_cells && side == Side::Up && plane.links[&link].next() == Some(slot) {
                control.handle(now, class, Input::Promoted { link, slot, from: packet.from });
            }
            let key = plane.header_key(link, slot, side == Side::Up).expect("it was found under this slot");
            let before = control.class(class).counters().cells;
            let body = &mut bytes[16..];
            control.handle(now, class, Input::Cell { link, slot, from: packet.from, header, body });
            if control.class(class).counters().cells > before {
                assert!(self.accepted.insert((key, header.seq)), "cell {} is accepted again", header.seq);
            }
        }
        self.drain(at);
        Some(at)
    }

    /// Lets a datagram arrive at its time, past the tap.
    pub fn put(&mut self, packet: Packet) {
        self.flight.push(Reverse(packet));
    }

    /// Delivers these bytes instead of a packet's, at once.
    pub fn deliver_now(&mut self, packet: &Packet, bytes: Vec<u8>) {
        self.deliver(&Packet { bytes, ..packet.clone() });
    }

    /// Hands an input of the first class to a node and processes its outputs.
    pub fn input(&mut self, position: usize, input: Input<'_>) {
        self.input_of(0, position, input);
    }

    fn input_of(&mut self, class: usize, position: usize, input: Input<'_>) {
        self.nodes.get_mut(&position).expect("it runs").control.handle(self.now, class, input);
        self.drain(position);
    }

    /// Sets the number of channels that an entry keeps open.
    pub fn want_channels(&mut self, entry: usize, channels: usize) {
        let now = self.now;
        self.nodes.get_mut(&entry).expect("it runs").control.want_channels(now, 0, channels);
        self.drain(entry);
    }

    /// Forgets the acks that have passed. Ids recur after three minutes, so long runs call this at rest.
    pub fn forget_acks(&mut self) {
        self.nodes.values_mut().for_each(|node| node.acks.clear());
    }

    /// The data plane of a node ends a channel.
    pub fn end(&mut self, position: usize, channel: ChannelIndex, reason: EndReason) {
        self.end_of(0, position, channel, reason);
    }

    /// The same in another class than the first, by place.
    pub fn end_of(&mut self, class: usize, position: usize, channel: ChannelIndex, reason: EndReason) {
        let plane = &mut self.nodes.get_mut(&position).expect("it runs").planes[class];
        plane.channels.remove(&channel).expect("it is open");
        self.input_of(class, position, Input::ChannelEnded { channel, reason });
    }

    fn drain(&mut self, at: usize) {
        let mut ended = Vec::new();
        loop {
            let node = self.nodes.get_mut(&at).expect("it runs");
            let Some((class, output)) = node.control.poll_output() else {
                match ended.pop() {
                    Some((class, channel)) => {
                        let input = Input::ChannelEnded { channel, reason: EndReason::Retired };
                        node.control.handle(self.now, class, input);
                        continue;
                    }
                    None => return,
                }
            };
            let plane = &mut node.planes[class];
            match output {
                Output::Send { side, to, datagram } => {
                    assert!(is_handshake_len(datagram.len()));
                    let from = plane.address(side);
                    self.send(from, to, datagram);
                }
                Output::Event(event) => node.events.push((self.now, event)),
                Output::Save(_) if self.broken_disks.contains(&at) => {}
                Output::Save(number) => {
                    self.disks.insert(at, node.control.state().to_bytes());
                    node.control.saved(self.now, number);
                }
                Output::Resolve(names) => {
                    let addresses = names.iter().filter_map(|name| self.names.get(name)).flatten();
                    node.resolved.push(self.now);
                    self.answers.push_back((self.now + ms(5), at, addresses.copied().collect()));
                }
                Output::Change(Change::Inject { link, slot, header, body, at_once }) => {
                    if self.recording {
                        plane.sent.push((self.now, header.kind, at_once));
                    }
                    if header.kind == CellKind::Ack && node.honest {
                        let id = (link, header.channel);
                        let contents = node.acks.entry(id).or_default();
                        let cells = contents.entry(header.sub).or_insert(0);
                        *cells += 1;
                        let cells = *cells;
                        assert!(cells <= 3, "each content has three cells");
                        if contents.len() == wire::setup::ack_cells(plane.shape) && cells == 1 {
                            let open = plane.channels.values().any(|channel| channel.up == Some(id));
                            assert!(open, "the channel is installed before its last ack leaves");
                        }
                    }
                    if let Some(key) = plane.sends_with(link, slot) {
                        let latest = self.numbers.insert(key, header.seq);
                        assert!(latest.is_none_or(|latest| latest < header.seq), "number {} again", header.seq);
                    }
                    match plane.encipher(link, slot, header, &body) {
                        Some((from, to, bytes)) => self.send(from, to, bytes),
                        None => node.late += 1,
                    }
                }
                Output::Change(Change::RetireChannel { channel }) => {
                    plane.channels.remove(&channel).expect("it was installed");
                    ended.push((class, channel));
                }
                Output::Change(change) => {
                    if let Change::InstallChannel { keys, .. } = &change {
                        let forward = match keys {
                            ChannelKeys::Entry(all) => &all[0].forward,
                            ChannelKeys::Hop { forward, .. } => forward,
                        };
                        assert!(self.secrets.insert((at, *forward.expose())), "a channel's keys are installed once");
                    }
                    plane.apply(change);
                }
            }
        }
    }

    /// True if every hop has the entry's secrets of this channel, on the link that the previous node sends on.
    pub fn agrees(&self, entry: usize, channel: ChannelIndex) -> bool {
        self.agrees_in(0, entry, channel)
    }

    fn agrees_in(&self, class: usize, entry: usize, channel: ChannelIndex) -> bool {
        let installed = &self.node(entry).planes[class].channels[&channel];
        let ChannelKeys::Entry(all) = &installed.keys else { panic!("an entry has all hops' keys") };
        let mut id = installed.down.expect("an entry has a next hop").1;
        let mut sender = &self.node(entry).planes[class];
        for (at, secrets) in all.iter().enumerate() {
            let Some(hop) = self.nodes.get(&(at + 1)).map(|hop| &hop.planes[class]) else { return false };
            let Some(here) = hop.channels.values().find(|c| c.up.expect("hops have an up side").1 == id) else {
                return false;
            };
            let ChannelKeys::Hop { forward, backward } = &here.keys else { panic!("a hop has its own keys") };
            if forward.expose() != secrets.forward.expose() || backward.expose() != secrets.backward.expose() {
                return false;
            }
            let Some(sends) = sender.links.values().find(|l| l.side == Side::Down).and_then(|l| l.current.as_ref())
            else {
                return false;
            };
            if !hop.links[&here.up.expect("it has one").0].slots().any(|slot| slot.i2r == sends.i2r) {
                return false;
            }
            id = here.down.map_or(0, |down| down.1);
            sender = hop;
        }
        id == 0
    }

    /// True if this entry has `n` channels and all hops agree with it on each.
    pub fn has_channels(&self, entry: usize, n: usize) -> bool {
        self.has_channels_of(0, entry, n)
    }

    /// The same for the channels of another class, by place.
    pub fn has_channels_of(&self, class: usize, entry: usize, n: usize) -> bool {
        let node = self.node(entry);
        let channels = &node.planes[class].channels;
        channels.len() == n
            && node.control.class(class).open_channels() == n
            && channels.keys().all(|c| self.agrees_in(class, entry, *c))
    }
}
