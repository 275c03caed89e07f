//! A whole chain of a paced class in one thread: real control, real workers, sockets in memory, a virtual clock.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::draw::{draw_secret, draw_x25519};
use control::paced::{PacedEvent, PacedStatus, Places};
use control::trust::{ChainTerms, Contact, HopRole, NodeDescriptor, SignedDescriptor, Signer, State, View};
use control::{Caps, Config, Control, Event, Input, NodeKeys, Output, Role, Timing, TrustSetup};
use dataplane::Nanos;
use dataplane::entry::{Destination, Listener, ListenerKind};
use dataplane::exit::Filtering;
use dataplane::exit::limits::Limits;
use dataplane::exit::policy::Policy;
use dataplane::ledger::Ledger;
use dataplane::paced::entry::{self, Entry, Service};
use dataplane::paced::exit::Exit;
use dataplane::paced::mix::{self, Mix};
use dataplane::paced::{Command, Settings};
use dataplane::punt::{Punt, PuntSender};
use dataplane::runner::Worker;
use dataplane::socket::memory::{Datagram, MemApps, MemNet};
use dataplane::sys::Waker;
use eddy_node::runtime::bridge::paced_command;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::{Class, Shape};
use wire::ids::Side;
use wire::kdf::Secret;
use wire::paced::{MeetingSecret, PacedClass, PacedTerms, Timetable};
use wire::setup::Suite;

use super::limit::Permit;

pub mod checks;
mod faults;

use faults::{Kit, Later};

/// Wall clock at the start of every chain: its descriptors are valid around it.
const EPOCH_S: u64 = 1_800_000_000;
pub const HOPS: usize = 4;
const MILLI: Nanos = 1_000_000;

/// Terms of a class with short batches.
pub fn terms() -> PacedTerms {
    PacedTerms {
        class: PacedClass::new(Class::S),
        name: "voice".to_owned(),
        period_ms: 10,
        cells: 1,
        rounds: 512,
        copies: 2,
        gap: 1,
        repeat: false,
        n_min: 1,
        seats: 16,
        loops: 0,
        slack_ms: 8,
        steps_ms: vec![2; HOPS - 1],
    }
}

struct Node {
    /// Hops from 1, entries from 101.
    number: usize,
    control: Control,
    commands: rtrb::Producer<Command>,
    punts: rtrb::Consumer<Punt>,
    worker: Box<dyn Worker>,
    ledger: Arc<Mutex<Ledger>>,
    /// Of a mix.
    loops: Option<Arc<Mutex<mix::View>>>,
    /// Its addresses towards the entry and towards the exit.
    at: [SocketAddr; 2],
    worker_wake: Nanos,
    /// What an entry shows.
    shown: Option<Arc<Mutex<entry::View>>>,
    /// By how much its host's clock is ahead.
    wall_ahead: i64,
    /// It does not run before this time.
    stopped_until: Nanos,
}

/// A datagram as it was sent.
pub struct Seen {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub at: Nanos,
    pub bytes: Vec<u8>,
}

impl Seen {
    fn new(datagram: &Datagram, at: Nanos) -> Seen {
        Seen { from: datagram.from, to: datagram.to, at, bytes: datagram.bytes.clone() }
    }
}

/// Hops first, then entries.
pub struct Chain {
    _permit: Permit,
    nodes: Vec<Node>,
    pub terms: PacedTerms,
    pub times: Timetable,
    pub now: Nanos,
    links: MemNet,
    pub apps: MemNet,
    seen: Rc<RefCell<Vec<Seen>>>,
    /// What applications sent, and what was sent to them.
    pub at_apps: Rc<RefCell<Vec<Seen>>>,
    cell_len: usize,
    clock: Rc<RefCell<Nanos>>,
    pub events: Vec<String>,
    /// By node: hops from 1, entries from 101.
    pub paced_events: Vec<(usize, PacedEvent)>,
    kit: Rc<Kit>,
    later: Rc<RefCell<Later>>,
}

/// The link socket of a hop, from 1, or of an entry, from 101.
pub fn link_address(node: usize, side: Side) -> SocketAddr {
    SocketAddr::from(([10, 0, node as u8, if side == Side::Up { 1 } else { 2 }], 4000))
}

/// Where an entry listens.
pub fn listener(entry: usize) -> SocketAddr {
    SocketAddr::from(([198, 18, 1, entry as u8 + 1], 1))
}

/// What all entries forward to.
pub fn destination() -> SocketAddr {
    SocketAddr::from(([198, 18, 0, 9], 9000))
}

fn wall_at(now: Nanos) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(EPOCH_S) + Duration::from_nanos(now)
}

impl Chain {
    /// Three mixes, an exit, and entries with a forward each.
    pub fn new(terms: &PacedTerms, entries: usize) -> Chain {
        Chain::with_meetings(terms, entries, &[])
    }

    /// A chain some of whose entries, from 101, serve a meeting with this secret.
    pub fn with_meetings(terms: &PacedTerms, entries: usize, meetings: &[(usize, [u8; 32])]) -> Chain {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let (descriptors, keys): (Vec<_>, Vec<_>) = (1..=HOPS).map(|hop| hop_of(hop, terms.class, &mut rng)).unzip();
        let chain = ChainTerms {
            suite: Suite::Hybrid,
            interval_s: 10,
            epoch_s: 3600,
            classes: Vec::new(),
            paced: vec![terms.clone()],
            identities: descriptors.iter().map(|descriptor| descriptor.identity).collect(),
        };
        let now = 10_000 * MILLI;
        let (seen, clock) = (Rc::<RefCell<Vec<Seen>>>::default(), Rc::new(RefCell::new(now)));
        let mut made = Chain {
            _permit: Permit::wait(),
            nodes: Vec::new(),
            terms: terms.clone(),
            times: terms.timetable(HOPS),
            now,
            links: MemNet::default(),
            apps: MemNet::default(),
            seen,
            at_apps: Rc::default(),
            cell_len: terms.class.cell_len(),
            clock,
            events: Vec::new(),
            paced_events: Vec::new(),
            kit: Rc::new(Kit {
                chain,
                descriptors,
                keys,
                terms: terms.clone(),
                meetings: meetings.iter().copied().collect(),
            }),
            later: Rc::default(),
        };
        made.tap(|_| true);
        let (at_apps, clock) = (made.at_apps.clone(), made.clock.clone());
        made.apps.tap(move |datagram| {
            at_apps.borrow_mut().push(Seen::new(&datagram, *clock.borrow()));
            vec![datagram]
        });
        for number in (1..=HOPS).chain((0..entries).map(|entry| 101 + entry)) {
            let node = made.node(number, State::fresh(EPOCH_S), &mut rng);
            made.nodes.push(node);
        }
        made
    }

    /// Records every link datagram as sent, then lets `tap` decide whether it arrives.
    pub fn tap(&self, mut tap: impl FnMut(&Datagram) -> bool + 'static) {
        self.attack(move |_, datagram| if tap(&datagram) { vec![(0, datagram)] } else { Vec::new() });
    }

    /// A hop, from 1, or an entry, from 101, that starts with this state.
    fn node(&self, number: usize, state: State, rng: &mut ChaCha20Rng) -> Node {
        let Kit { chain, descriptors, keys, terms, meetings } = &*self.kit;
        let (position, meeting) = (if number > 100 { 0 } else { number }, meetings.get(&number));
        let shape = Shape::new(terms.class.size(), HOPS).unwrap();
        let at = [Side::Up, Side::Down].map(|side| link_address(number, side));
        let mut seed = || ChaCha20Rng::seed_from_u64(rng.next_u64());
        let mut view = View::new(chain.clone());
        for (hop, descriptor) in (1..).zip(descriptors) {
            view.take_descriptor(hop, descriptor.clone(), EPOCH_S).unwrap();
        }
        let keys = position.checked_sub(1).map(|hop| &keys[hop]);
        let keys = keys.map(|(noise, signing)| NodeKeys { noise: noise.clone(), signer: Signer::from_seed(signing) });
        let trust = TrustSetup { view, keys: keys.into_iter().collect(), state: state.hop };
        let config = Config {
            role: match position {
                0 => Role::Entry { channels: 0 },
                HOPS => Role::Exit,
                _ => Role::Mix,
            },
            shape,
            paced: true,
            position,
            terms: chain.clone(),
            next: None,
            previous: position
                .checked_sub(2)
                .map(|_| link_address(position - 1, Side::Down).ip())
                .into_iter()
                .collect(),
            shared_prefixes: Vec::new(),
            psk_up: None,
            psk_down: None,
            timing: Timing::default(),
            caps: Caps::default(),
        };
        let elapsed = Duration::from_nanos(self.now);
        let mut control = Control::new(vec![config], trust, seed(), elapsed, wall_at(self.now)).unwrap();
        if let Some(secret) = meeting {
            control.meet(0, MeetingSecret::new(*secret));
        }
        let mut shown = None;
        let clock = control.class(0).paced_clock().expect("a paced class").clone();
        let (commands, worker_commands) = rtrb::RingBuffer::new(1 << 14);
        let (worker_punts, punts) = rtrb::RingBuffer::new(4096);
        let sender = PuntSender::new(worker_punts, Arc::new(Waker::new().unwrap()));
        let settings = Settings { terms: terms.clone(), suite: chain.suite, hops: HOPS, position, hugepages: false };
        let [up, down] =
            [Side::Up, Side::Down].map(|side| self.links.port(link_address(number, side), settings.lengths(side)));
        let mut loops = None;
        let (worker, ledger): (Box<dyn Worker>, _) = match position {
            0 => {
                let at = listener(number - 101);
                let kind = ListenerKind::Forward(Destination::Ip(destination()));
                let max_age = dataplane::paced::entry::default_max_age(terms);
                let listener = Listener { kind, idle: Duration::from_secs(300), max_age };
                let apps = MemApps::new(self.apps.clone(), vec![at], at.ip());
                let service = match meeting {
                    Some(_) => Service::Meeting { max_age },
                    None => Service::Destinations(vec![listener]),
                };
                let entry =
                    Entry::new((settings, service), (down, apps), worker_commands, sender, seed(), clock, self.now);
                let ledger = entry.published();
                shown = Some(entry.view());
                (Box::new(entry), ledger)
            }
            HOPS => {
                let gateway = dataplane::exit::GatewaySettings {
                    policy: Policy::new(vec!["198.18.0.0/24".parse().unwrap()], Vec::new(), Vec::new()),
                    filtering: Filtering::default(),
                    limits: Limits::default(),
                    caps: dataplane::exit::Caps { flows_per_channel: 1024, sockets: 4096 },
                    flow_idle: Duration::from_secs(300),
                    max_age: Duration::from_millis(250),
                };
                let queue_age = dataplane::paced::entry::default_max_age(terms);
                let settings = dataplane::paced::exit::Settings { class: settings, gateway, queue_age };
                let apps = MemApps::new(self.apps.clone(), Vec::new(), [198, 18, 0, 2].into());
                let exit = Exit::new(settings, (up, apps), worker_commands, sender, seed(), clock, self.now);
                let ledger = exit.published();
                (Box::new(exit), ledger)
            }
            _ => {
                let mix = Mix::new(settings, (up, down), worker_commands, sender, seed(), clock, self.now);
                let ledger = mix.published();
                loops = Some(mix.view());
                (Box::new(mix), ledger)
            }
        };
        let (worker_wake, wall_ahead, stopped_until) = (0, 0, 0);
        Node {
            number,
            control,
            commands,
            punts,
            worker,
            ledger,
            loops,
            at,
            worker_wake,
            shown,
            wall_ahead,
            stopped_until,
        }
    }

    /// Runs every node until nothing moves at this instant.
    fn settle(&mut self) {
        *self.clock.borrow_mut() = self.now;
        let now = Duration::from_nanos(self.now);
        self.deliver_later();
        for _ in 0..100 {
            let before = (self.seen.borrow().len(), self.apps.waiting(), self.links.waiting());
            for node in self.nodes.iter_mut().filter(|node| node.stopped_until <= self.now) {
                if node.control.next_wake() <= now {
                    node.control.tick(now, wall_at(self.now.saturating_add_signed(node.wall_ahead)));
                }
                while let Ok(punt) = node.punts.pop() {
                    take(&mut node.control, punt, now);
                }
                while let Some((_, output)) = node.control.poll_output() {
                    match output {
                        Output::Send { side, to, datagram } => {
                            let from = node.at[usize::from(side == Side::Down)];
                            self.links.send(Datagram { from, to, bytes: datagram });
                        }
                        Output::Change(change) => {
                            let command = paced_command(change).expect("the chain has a paced class only");
                            assert!(node.commands.push(command).is_ok());
                        }
                        Output::Save(number) => node.control.saved(now, number),
                        Output::Resolve(_) => {}
                        Output::Event(Event::Trust(event)) => self.events.push(format!("{event:?}")),
                        Output::Event(Event::Paced(event)) => self.paced_events.push((node.number, event)),
                        Output::Event(event) => self.events.push(format!("{} {event:?}", node.at[0])),
                    }
                }
                node.worker_wake = node.worker.turn(self.now);
                node.worker.record_latency(self.now);
            }
            if before == (self.seen.borrow().len(), self.apps.waiting(), self.links.waiting()) {
                return;
            }
        }
        panic!("the chain does not come to rest");
    }

    /// Lets virtual time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time.as_nanos() as Nanos;
        loop {
            self.settle();
            let wakes = self.nodes.iter().map(|node| {
                let control = u64::try_from(node.control.next_wake().as_nanos()).unwrap_or(Nanos::MAX);
                node.worker_wake.min(control).max(node.stopped_until)
            });
            let next = wakes.chain(self.next_later()).min().unwrap_or(end).max(self.now + MILLI / 20);
            if next >= end {
                self.now = end;
                self.settle();
                return;
            }
            self.now = next;
        }
    }

    /// Runs until the beginning of the batch that is `ahead` of the running one.
    pub fn run_to_batch(&mut self, ahead: u64) {
        let begin = self.times.begin(self.times.first(self.batch() + ahead));
        self.run(Duration::from_nanos(begin - EPOCH_S * 1000 * MILLI - self.now));
    }

    /// The round that runs at a time.
    pub fn round_at(&self, now: Nanos) -> u64 {
        self.times.round_at(EPOCH_S * 1000 * MILLI + now)
    }

    /// The running batch.
    pub fn batch(&self) -> u64 {
        self.times.batch_of(self.times.round_at(EPOCH_S * 1000 * MILLI + self.now))
    }

    /// A hop, from 1, or an entry, from 101.
    fn at(&self, node: usize) -> &Node {
        &self.nodes[if node > 100 { HOPS + node - 101 } else { node - 1 }]
    }

    /// Setups that an entry has begun.
    pub fn setups(&self, node: usize) -> u64 {
        self.at(node).control.class(0).counters().setups
    }

    /// What the control of a node has refused.
    pub fn refused(&self, node: usize) -> Vec<(&'static str, u64)> {
        self.at(node).control.class(0).counters().refusals().filter(|(_, count)| *count > 0).collect()
    }

    /// What a node shows of the class.
    pub fn status(&self, node: usize) -> PacedStatus {
        self.at(node).control.class(0).paced_status(Duration::from_nanos(self.now)).expect("a paced class")
    }

    /// What a mix measures by its loops.
    pub fn loops(&self, mix: usize) -> mix::View {
        *self.at(mix).loops.as_ref().expect("a mix").lock().unwrap()
    }

    /// Loops of a mix that were not set up, one for each batch.
    pub fn loops_failed(&self, mix: usize) -> u64 {
        self.at(mix).control.class(0).counters().refused(control::Refusal::LoopFailed)
    }

    /// Fails if a node has lost count of a cell.
    pub fn assert_closed(&self) {
        for node in &self.nodes {
            let ledger = node.ledger.lock().unwrap();
            assert!(ledger.closed(), "node {}: {ledger:#?}", node.at[0]);
        }
    }

    /// Cells that one socket sent to another in each of these rounds, which leave `offset` after their begin.
    pub fn per_round(&self, (from, to): (SocketAddr, SocketAddr), offset: Nanos, rounds: Range<u64>) -> Vec<usize> {
        let mut counts = vec![0; (rounds.end - rounds.start) as usize];
        let is_cell = |seen: &&Seen| seen.from == from && seen.to == to && seen.bytes.len() == self.cell_len;
        for seen in self.seen.borrow().iter().filter(is_cell) {
            // An entry may be a little early, and so may a hop whose clock is not right.
            let round = self.round_at(seen.at + self.times.begin(1) / 2 - offset);
            if rounds.contains(&round) {
                counts[(round - rounds.start) as usize] += 1;
            }
        }
        counts
    }
}

fn take(control: &mut Control, punt: Punt, now: Duration) {
    match punt {
        Punt::Handshake { side, from, mut datagram, .. } => {
            control.handle(now, 0, Input::Handshake { side, from, datagram: datagram.bytes_mut() });
        }
        Punt::PacedCell { link, slot, from, header, mut body, at } => {
            let input = Input::PacedCell { link, slot, from, header, body: body.bytes_mut(), at_ns: at };
            control.handle(now, 0, input);
        }
        Punt::Promoted { link, slot, from } => control.handle(now, 0, Input::Promoted { link, slot, from }),
        Punt::PacedClockSent { link, number, sent_ns } => {
            control.handle(now, 0, Input::PacedClockSent { link, number, sent_ns });
        }
        Punt::PacedLost { first, rounds, places, lost } => {
            control.handle(now, 0, Input::PacedLost(Places { first, rounds, places, lost }));
        }
        Punt::Activity { link, received, sent } => control.handle(now, 0, Input::Activity { link, received, sent }),
        Punt::ChannelEnded { .. } | Punt::Cell { .. } => panic!("of a free class"),
        Punt::Resolve { .. } | Punt::Notice(_) => {}
    }
}

/// Descriptor of a hop, with its Noise and signing keys.
fn hop_of(position: usize, class: PacedClass, rng: &mut ChaCha20Rng) -> (SignedDescriptor, (Secret, Secret)) {
    let identity = Signer::from_seed(&draw_secret(rng));
    let ((noise, public), signing) = (draw_x25519(rng), draw_secret(rng));
    let contact =
        Contact { class: class.into(), lanes: 1, addresses: vec![link_address(position, Side::Up)], names: Vec::new() };
    let descriptor = NodeDescriptor {
        role: if position == HOPS { HopRole::Exit } else { HopRole::Mix },
        revision: 1,
        floor: 0,
        not_before: EPOCH_S - 10,
        not_after: EPOCH_S + 1_000_000,
        identity: identity.public(),
        noise: public,
        signing: Signer::from_seed(&signing).public(),
        contacts: vec![contact],
    };
    (descriptor.sign(&identity).unwrap(), (noise, signing))
}
