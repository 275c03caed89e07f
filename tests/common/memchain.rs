//! A whole chain in one thread: real control, real workers, sockets in memory, a virtual clock.
//!
//! Every datagram that crosses a link is recorded, and every command that control hands to a data plane
//! passes through here on its way, so that a test knows all keys and can hold a model against all bytes.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control::trust::{ChainTerms, ClassTerms, Contact, State};
use control::{Caps, Config, Control, Role, Timing};
use dataplane::command::{Command, CommandSender, LinkCommand};
use dataplane::entry::{Destination, Entry, Listener, ListenerKind};
use dataplane::exit::limits::Limits;
use dataplane::exit::policy::Policy;
use dataplane::exit::{Exit, Filtering};
use dataplane::lanes::{self, Lanes};
use dataplane::latency::{Profile, Shared};
use dataplane::ledger::Ledger;
use dataplane::mix::Mix;
use dataplane::mix::multicore::{ShardParts, shards};
use dataplane::punt::PuntSender;
use dataplane::runner::Worker;
use dataplane::socket::memory::{Datagram, MemApps, MemNet};
use dataplane::stage::ingress::lengths;
use dataplane::stage::pool::Mixing;
use dataplane::sys::Waker;
use dataplane::{Nanos, SECOND};
use eddy_node::runtime::bridge::{Bridge, Commands, Ends, Note};
use eddy_virtual::{Hops, START_S, wall_at};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::{Class, Direction, Shape};
use wire::ids::{ChannelKeys, Side};
use wire::setup::{HopSecrets, Suite};

use super::limit::Permit;

pub use eddy_virtual::link_address;

/// What a chain is made with.
#[derive(Clone)]
pub struct Plan {
    pub class: Class,
    pub mixes: usize,
    pub suite: Suite,
    /// Lanes of each mix; the exit has one.
    pub lanes: Vec<usize>,
    pub mixing: Mixing,
    pub channels: usize,
    pub lifetime_s: u16,
    pub interval_s: u32,
    pub epoch_s: u32,
    /// First number of every channel, slipped in on the way from control to the data planes.
    pub first: u64,
    pub seed: u64,
    pub timing: Timing,
    pub destination: SocketAddr,
    /// The longest time that a datagram may wait in a node. None by default: a test may let time pass in leaps.
    pub max_age: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            class: Class::S,
            mixes: 3,
            suite: Suite::default(),
            lanes: vec![1; 3],
            mixing: Mixing::default(),
            channels: 4,
            lifetime_s: 3600,
            interval_s: 10,
            epoch_s: 3600,
            first: 0,
            seed: 1,
            timing: Timing::default(),
            destination: app(9, 9000),
            max_age: Duration::MAX,
        }
    }
}

impl Plan {
    /// Lanes of the node at a position.
    fn lanes(&self, position: usize) -> usize {
        position.checked_sub(1).and_then(|i| self.lanes.get(i)).copied().unwrap_or(1)
    }
}

/// What a turn takes, on the virtual clock.
pub const TURN: Nanos = 7_000;

/// Header keys of a slot, forward and backward.
pub type HeaderKeys = ([u8; 16], [u8; 16]);

/// Keys seen on their way into the data planes.
#[derive(Default)]
pub struct Keys {
    /// Per entry channel: link number and what the setup left for each hop.
    pub channels: Vec<(u32, Vec<HopSecrets>)>,
    /// Per link (1..=h) and slot: header keys forward and backward.
    pub slots: HashMap<usize, Vec<HeaderKeys>>,
}

struct Node {
    bridge: Bridge,
    /// For each worker, the end that control writes to and the end that the worker reads.
    commands: Vec<(rtrb::Consumer<Command>, rtrb::Producer<Command>)>,
    workers: Vec<Box<dyn Worker>>,
    ledgers: Vec<Arc<Mutex<Ledger>>>,
    profiles: Vec<Shared>,
    control_wake: Duration,
    worker_wake: Nanos,
}

/// A datagram as seen on a link.
#[derive(Clone, Debug)]
pub struct Seen {
    pub link: usize,
    pub direction: Direction,
    pub at: Nanos,
    pub bytes: Vec<u8>,
}

/// The hops of a chain, Mix 1 first.
fn hops(plan: &Plan, shape: Shape, rng: &mut ChaCha20Rng) -> Hops {
    let contact = |position| Contact {
        class: plan.class.into(),
        lanes: plan.lanes(position) as u8,
        addresses: vec![link_address(position, Side::Up)],
        names: Vec::new(),
    };
    let class = ClassTerms {
        class: plan.class,
        mixing_delay_ms: plan.mixing.largest_delay().as_millis() as u32,
        lifetime_s: plan.lifetime_s,
    };
    let terms = ChainTerms {
        suite: plan.suite,
        interval_s: plan.interval_s,
        epoch_s: plan.epoch_s,
        classes: vec![class],
        paced: Vec::new(),
        identities: Vec::new(),
    };
    Hops::draw(terms, (1..=shape.hops()).map(contact).collect(), rng)
}

/// A chain of nodes: entry, mixes, exit.
pub struct Chain {
    _permit: Permit,
    nodes: Vec<Node>,
    pub plan: Plan,
    pub shape: Shape,
    pub now: Nanos,
    pub links: MemNet,
    pub apps: MemNet,
    pub seen: Rc<RefCell<Vec<Seen>>>,
    pub clock: Rc<RefCell<Nanos>>,
    pub keys: Keys,
    pub notes: Vec<String>,
    /// Nodes that have not been started yet: what is sent to them is lost.
    pub asleep: HashSet<usize>,
    /// Nodes whose workers do not take what control hands them.
    pub held_up: HashSet<usize>,
}

/// Address of a lane of a node.
pub fn lane_address(position: usize, lane: usize) -> SocketAddr {
    lanes::address(link_address(position, Side::Up), lane).unwrap()
}

/// Address of an application.
pub fn app(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, host], port))
}

/// Where the entry listens: a forward to the plan's destination.
pub fn forward_listener() -> SocketAddr {
    app(1, 1)
}

/// Where the entry listens for pymix clients.
pub fn pymix_listener() -> SocketAddr {
    app(1, 2)
}

fn position_of(address: SocketAddr) -> (usize, Side) {
    let SocketAddr::V4(v4) = address else { panic!("links are IPv4 here") };
    let [_, _, position, host] = v4.ip().octets();
    (usize::from(position), if host == 1 { Side::Up } else { Side::Down })
}

impl Chain {
    pub fn new(plan: Plan) -> Chain {
        let shape = Shape::new(plan.class, plan.mixes + 1).unwrap();
        let mut rng = ChaCha20Rng::seed_from_u64(plan.seed);
        let hops = hops(&plan, shape, &mut rng);
        let (links, apps) = (MemNet::default(), MemNet::default());
        let seen: Rc<RefCell<Vec<Seen>>> = Rc::default();
        let now = 10 * SECOND;
        let clock = Rc::new(RefCell::new(now));
        let mut chain = Chain {
            _permit: Permit::wait(),
            nodes: Vec::new(),
            shape,
            now,
            links,
            apps,
            seen,
            clock,
            keys: Keys::default(),
            notes: Vec::new(),
            asleep: HashSet::new(),
            held_up: HashSet::new(),
            plan,
        };
        chain.tap(|datagram| vec![datagram]);
        for position in 0..=shape.hops() {
            let node = chain.node(position, &hops, &mut rng);
            chain.nodes.push(node);
        }
        chain
    }

    /// Records every link datagram as sent, then lets `tap` decide its fate.
    pub fn tap(&self, mut tap: impl FnMut(Datagram) -> Vec<Datagram> + 'static) {
        let (seen, clock) = (self.seen.clone(), self.clock.clone());
        self.links.tap(move |datagram| {
            let (position, side) = position_of(datagram.to);
            let (link, direction) = match side {
                Side::Up => (position, Direction::Forward),
                Side::Down => (position + 1, Direction::Backward),
            };
            seen.borrow_mut().push(Seen { link, direction, at: *clock.borrow(), bytes: datagram.bytes.clone() });
            tap(datagram)
        });
    }

    /// The configuration of control at `position`.
    fn config(&self, position: usize, terms: &ChainTerms) -> Config {
        let role = match position {
            0 => Role::Entry { channels: self.plan.channels },
            _ if position == self.shape.hops() => Role::Exit,
            _ => Role::Mix,
        };
        Config {
            role,
            shape: self.shape,
            position,
            terms: terms.clone(),
            next: None,
            previous: position.checked_sub(1).map(|before| link_address(before, Side::Down).ip()).into_iter().collect(),
            shared_prefixes: Vec::new(),
            paced: false,
            psk_up: None,
            psk_down: None,
            timing: self.plan.timing,
            caps: Caps::default(),
        }
    }

    fn node(&self, position: usize, hops: &Hops, rng: &mut ChaCha20Rng) -> Node {
        let (plan, shape, now) = (&self.plan, self.shape, self.now);
        let exit = position == shape.hops();
        let config = self.config(position, &hops.terms);
        let mut seeds = || ChaCha20Rng::seed_from_u64(rng.next_u64());
        let elapsed = Duration::from_nanos(now);
        let trust = hops.trust(position, State::fresh(START_S).hop);
        let control = Control::new(vec![config], trust, seeds(), elapsed, wall_at(now)).unwrap();
        let lanes = Lanes { own: plan.lanes(position), next: plan.lanes(position + 1) };
        let (mut rings, mut commands, mut punts, mut ears) = (Vec::new(), Vec::new(), Vec::new(), VecDeque::new());
        for _ in 0..lanes.own {
            let (to_test, from_control) = rtrb::RingBuffer::new(4096);
            let (to_worker, worker_commands) = rtrb::RingBuffer::new(4096);
            let (to_control, from_worker) = rtrb::RingBuffer::new(2048);
            let waker = Arc::new(Waker::new().unwrap());
            rings.push((to_test, waker.clone()));
            commands.push((from_control, to_worker));
            punts.push(from_worker);
            ears.push_back((worker_commands, PuntSender::new(to_control, waker.clone()), waker));
        }
        let bridge = Bridge::new(control, vec![Ends::new(Commands::free(CommandSender::to_all(rings, lanes)), punts)]);
        let port = |side| self.links.port(link_address(position, side), lengths(shape, position, side));
        let window = wire::replay::WIDTH_DEFAULT;
        let (workers, ledgers, profiles): (Vec<Box<dyn Worker>>, Vec<_>, Vec<_>) = match position {
            0 => {
                let (worker_commands, punts, _) = ears.pop_front().unwrap();
                let settings = dataplane::entry::Settings {
                    shape,
                    listeners: [ListenerKind::Forward(Destination::Ip(plan.destination)), ListenerKind::Pymix]
                        .map(|kind| Listener { kind, idle: Duration::from_secs(300), max_age: plan.max_age })
                        .into(),
                    window,
                    hugepages: false,
                    next_lanes: lanes.next,
                    mixing_round_trip: plan.mixing.largest_delay() * 2 * plan.mixes as u32,
                    max_age: plan.max_age,
                };
                let apps =
                    MemApps::new(self.apps.clone(), vec![forward_listener(), pymix_listener()], [198, 18, 0, 1].into());
                let entry =
                    Entry::new(settings, port(Side::Down), apps, worker_commands, punts, [seeds(), seeds()], now);
                let (ledger, profile) = (entry.published(), entry.profile());
                (vec![Box::new(entry)], vec![ledger], vec![profile])
            }
            _ if exit => {
                let (worker_commands, punts, _) = ears.pop_front().unwrap();
                let settings = dataplane::exit::Settings {
                    shape,
                    window,
                    hugepages: false,
                    policy: Policy::new(vec!["198.18.0.0/24".parse().unwrap()], Vec::new(), Vec::new()),
                    filtering: Filtering::default(),
                    limits: Limits::default(),
                    caps: dataplane::exit::Caps { flows_per_channel: 1024, sockets: 4096 },
                    flow_idle: Duration::from_secs(300),
                    max_age: plan.max_age,
                };
                let apps = MemApps::new(self.apps.clone(), Vec::new(), [198, 18, 0, 2].into());
                let exit = Exit::new(settings, port(Side::Up), apps, worker_commands, punts, [seeds(), seeds()], now);
                let (ledger, profile) = (exit.published(), exit.profile());
                (vec![Box::new(exit)], vec![ledger], vec![profile])
            }
            _ => {
                let settings = dataplane::mix::Settings {
                    shape,
                    position,
                    mixing: plan.mixing,
                    lanes,
                    window,
                    hugepages: false,
                    max_age: plan.max_age,
                };
                if lanes.own == 1 {
                    let (worker_commands, punts, _) = ears.pop_front().unwrap();
                    let ports = (port(Side::Up), port(Side::Down));
                    let mix = Mix::new(settings, ports, worker_commands, punts, [seeds(), seeds(), seeds()], now);
                    let (ledger, profile) = (mix.published(), mix.profile());
                    (vec![Box::new(mix)], vec![ledger], vec![profile])
                } else {
                    let parts = ears.into_iter().enumerate().map(|(edge, (commands, punts, waker))| {
                        let (up, down) = (lane_address(position, edge), link_address(position, Side::Down));
                        let up = self.links.port(up, lengths(shape, position, Side::Up));
                        let next = lane_address(position + 1, edge);
                        let down = match lanes.downs() {
                            1 => (edge == 0).then(|| port(Side::Down)),
                            _ => Some(self.links.connected(down, next, lengths(shape, position, Side::Down))),
                        };
                        ShardParts { up, down, commands, punts, waker, rng: seeds() }
                    });
                    let workers = shards(settings, parts.collect(), [seeds(), seeds()], now);
                    let ledgers = workers.iter().map(|worker| worker.published()).collect();
                    let profiles = workers.iter().map(|worker| worker.profile()).collect();
                    let workers = workers.into_iter().map(|worker| Box::new(worker) as Box<dyn Worker>).collect();
                    (workers, ledgers, profiles)
                }
            }
        };
        Node { bridge, commands, workers, ledgers, profiles, control_wake: Duration::ZERO, worker_wake: 0 }
    }

    /// Runs every node until nothing moves at this instant.
    pub fn settle(&mut self) {
        *self.clock.borrow_mut() = self.now;
        let wall = wall_at(self.now);
        let now = Duration::from_nanos(self.now);
        for _ in 0..1000 {
            let before = (self.seen.borrow().len(), self.apps.waiting(), self.links.waiting());
            let mut moved = false;
            for position in 0..self.nodes.len() {
                let node = &mut self.nodes[position];
                if self.asleep.contains(&position) {
                    let ups = (0..self.plan.lanes(position)).map(|lane| lane_address(position, lane));
                    for at in ups.chain([link_address(position, Side::Down)]) {
                        while self.links.receive(at).is_some() {}
                    }
                    (node.control_wake, node.worker_wake) = (Duration::MAX, Nanos::MAX);
                    continue;
                }
                let links = self.links.clone();
                let notes = &mut self.notes;
                let mut send = |_, side, to, bytes: &[u8]| {
                    links.send(Datagram { from: link_address(position, side), to, bytes: bytes.to_vec() });
                };
                let mut note = |_, note| match note {
                    Note::Event(event) => notes.push(format!("{position}: {event:?}")),
                    Note::Notice(notice) => notes.push(format!("{position}: {notice:?}")),
                    Note::Resolve { .. } | Note::ResolveNext(_) => {}
                };
                node.control_wake = node.bridge.turn(now, wall, &mut send, &mut note, &mut |_| true);
                for (from_control, to_worker) in &mut node.commands {
                    while !self.held_up.contains(&position)
                        && let Ok(mut command) = from_control.pop()
                    {
                        moved = true;
                        if let Command::InstallChannel { first, .. } = &mut command {
                            *first = self.plan.first;
                        }
                        self.keys.learn(position, &command);
                        to_worker.push(command).unwrap_or_else(|_| panic!("as large as the ring before"));
                    }
                }
                let wakes = node.workers.iter_mut().map(|worker| {
                    let wake = worker.turn(self.now);
                    worker.record_latency(self.now + TURN);
                    wake
                });
                node.worker_wake = wakes.min().unwrap();
                moved |= node.workers.len() > 1 && node.worker_wake <= self.now;
            }
            if !moved && before == (self.seen.borrow().len(), self.apps.waiting(), self.links.waiting()) {
                return;
            }
        }
        panic!("the chain does not come to rest");
    }

    /// Lets virtual time pass until `end`, turn by turn.
    pub fn run_until(&mut self, end: Nanos) {
        loop {
            self.settle();
            let next = self
                .nodes
                .iter()
                .map(|node| node.worker_wake.min(u64::try_from(node.control_wake.as_nanos()).unwrap_or(Nanos::MAX)))
                .min()
                .unwrap_or(end)
                .max(self.now + 20_000);
            if next >= end {
                self.now = end;
                self.settle();
                return;
            }
            self.now = next;
        }
    }

    /// Lets virtual time pass.
    pub fn run(&mut self, time: Duration) {
        self.run_until(self.now + time.as_nanos() as Nanos);
    }

    /// Runs until all channels are open.
    pub fn open(&mut self) {
        let deadline = self.now + 20 * SECOND;
        while self.ledger(0).gauges.channels < self.plan.channels as u64 {
            assert!(self.now < deadline, "no channels: {:#?}", self.notes);
            self.run(Duration::from_millis(10));
        }
    }

    /// A client's datagram to the forward.
    pub fn send(&self, from: SocketAddr, bytes: &[u8]) {
        self.apps.send(Datagram { from, to: forward_listener(), bytes: bytes.to_vec() });
    }

    /// Everything that waits for an application.
    pub fn receive(&self, at: SocketAddr) -> Vec<Datagram> {
        std::iter::from_fn(|| self.apps.receive(at)).collect()
    }

    /// One for each worker of a node.
    pub fn ledgers(&self, position: usize) -> Vec<Ledger> {
        self.nodes[position].ledgers.iter().map(|ledger| *ledger.lock().unwrap()).collect()
    }

    pub fn ledger(&self, position: usize) -> Ledger {
        self.ledgers(position).into_iter().reduce(|sum, reading| sum.and(&reading)).unwrap()
    }

    /// Of all workers of a node.
    pub fn profile(&self, position: usize) -> Profile {
        self.nodes[position].profiles.iter().map(Shared::read).reduce(|sum, more| sum.and(&more)).unwrap()
    }

    /// What a node's control has refused, by name.
    pub fn refused(&self, position: usize) -> Vec<(&'static str, u64)> {
        self.nodes[position].bridge.control().class(0).counters().refusals().filter(|(_, count)| *count > 0).collect()
    }

    /// Every ledger closes and every buffer is where it should be.
    pub fn assert_closed(&self) {
        for position in 0..self.nodes.len() {
            let ledger = self.ledger(position);
            assert!(ledger.closed(), "node {position}: {ledger:#?}");
            let held = ledger.cells.forward.held + ledger.cells.backward.held;
            assert_eq!(ledger.buffers.free + held, ledger.buffers.total, "buffers of node {position}");
        }
    }

    /// No node dropped anything or failed to send.
    pub fn assert_lossless(&self) {
        self.assert_closed();
        for position in 0..self.nodes.len() {
            let ledger = self.ledger(position);
            for (unit, pair) in [("cells", ledger.cells), ("datagrams", ledger.datagrams)] {
                for (direction, tally) in [("forward", pair.forward), ("backward", pair.backward)] {
                    let lost = tally.dropped_total() + tally.send_errors;
                    assert_eq!(lost, 0, "node {position} {unit} {direction}: {tally:?}\n{:#?}", self.notes);
                }
            }
        }
    }
}

impl Keys {
    fn learn(&mut self, position: usize, command: &Command) {
        match command {
            Command::InstallChannel { down: Some((_, number)), keys: ChannelKeys::Entry(hops), .. } => {
                self.channels.push((*number, hops.clone()));
            }
            // The initiator of link i is node i - 1.
            Command::Link(LinkCommand::InstallSlot {
                header_i2r, header_r2i, rank: wire::ids::Rank::Current, ..
            }) => {
                self.slots.entry(position + 1).or_default().push((**header_i2r, **header_r2i));
            }
            _ => {}
        }
    }
}
