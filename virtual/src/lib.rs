//! A chain of a paced class in one thread: real control, real workers, sockets in memory, a virtual clock. Tests and
//! `eddy-bench attack` run it.
//!
//! Time passes from one event to the next. A node runs when its timer is due, or when a datagram has come to it, as the
//! event loop of a node would have it (`dataplane::runner`); a turn takes no time. So a chain shows the protocol and
//! its timers. It shows neither the kernel and its scheduler nor the time that a node computes.
//!
//! ```text
//! node      a hop or an entry, and its turns      wires     what is sent: when, from where, and what becomes of it
//! hops      keys and descriptors                  headers   header keys of links
//! faults    restarts, nodes that do not run, clocks that step        corrupt_exit   what an exit sees of meetings
//! setups    when setups and acks pass Mix 1 and the exit
//! ```

#![warn(unreachable_pub)]

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::Event;
use control::paced::{Cause, EntryStatus, HopStatus, PacedEvent, PacedStatus};
use control::trust::{ChainTerms, Contact, State};
use dataplane::ledger::Ledger;
use dataplane::paced::{entry, mix};
use dataplane::socket::memory::MemNet;
use dataplane::{MILLI, Nanos};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::ids::Side;
use wire::paced::terms::BadPacedTerms;
use wire::paced::{MeetingSecret, PacedTerms, Timetable};
use wire::setup::Suite;

mod corrupt_exit;
mod faults;
mod headers;
mod hops;
mod node;
mod setups;
mod wires;

pub use corrupt_exit::ExitBody;
pub use headers::HeaderKeys;
pub use hops::Hops;
use node::{Kit, Node};
pub use wires::Seen;
use wires::Wires;

/// Wall clock when the virtual clock of a chain shows 0, in seconds since 1970. Descriptors are valid around it.
pub const START_S: u64 = 1_800_000_000;
/// The virtual clock at the start.
const START: Nanos = 10_000 * MILLI;
/// A node that wants to run again at once runs after this time.
const AT_ONCE: Nanos = MILLI / 20;
/// Entries have numbers from here on, hops from 1.
pub const FIRST_ENTRY: usize = 101;

/// What a chain is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub terms: PacedTerms,
    pub mixes: usize,
    pub entries: usize,
    /// The secrets of the entries that serve a meeting, by their numbers. All others forward to a destination.
    pub meetings: HashMap<usize, [u8; 32]>,
    /// The destination of an entry, by its number.
    pub destination: fn(usize) -> SocketAddr,
    pub seed: u64,
    /// Mean of an exponential time by which the timers of nodes are late.
    pub timers_late: Duration,
    /// The chain starts this long before a batch.
    pub before_batch: Option<Duration>,
    /// Keeps all datagrams, with their bytes.
    pub keeps: bool,
}

impl Plan {
    /// Entries that forward to one destination, and timers that are exact. All datagrams are kept.
    pub fn new(terms: &PacedTerms, mixes: usize, entries: usize) -> Plan {
        Plan {
            terms: terms.clone(),
            mixes,
            entries,
            meetings: HashMap::new(),
            destination: |_| destination(),
            seed: 1,
            timers_late: Duration::ZERO,
            before_batch: None,
            keeps: true,
        }
    }

    fn hops(&self) -> usize {
        self.mixes + 1
    }

    /// Intervals and epochs of the chain, in seconds.
    fn interval_and_epoch(&self) -> (u32, u32) {
        (self.terms.interval_ms_min(self.hops()).div_ceil(1000).max(10) as u32, 3600)
    }

    /// Whether nodes would take its terms.
    ///
    /// # Errors
    /// They would not.
    pub fn check(&self) -> Result<(), BadPacedTerms> {
        let (interval_s, epoch_s) = self.interval_and_epoch();
        self.terms.check(Suite::Hybrid, self.hops(), interval_s, epoch_s)
    }
}

/// A running chain.
pub struct Chain {
    nodes: Vec<Node>,
    pub terms: PacedTerms,
    pub times: Timetable,
    pub now: Nanos,
    started: Nanos,
    hops: usize,
    links: MemNet,
    /// The network between entries and applications, and between the exit and destinations.
    pub apps: MemNet,
    wires: Rc<Wires>,
    /// Those that run next, at this time.
    ready: BTreeSet<usize>,
    timers_late: Duration,
    rng: ChaCha20Rng,
    /// By node: hops from 1, entries from 101.
    pub events: Vec<(usize, Event)>,
    kit: Rc<Kit>,
}

/// The link socket of a hop, from 1, or of an entry, from 101.
pub fn link_address(node: usize, side: Side) -> SocketAddr {
    let [.., high, low] = node.to_be_bytes();
    SocketAddr::from(([10, high, low, if side == Side::Up { 1 } else { 2 }], 4000))
}

/// Where an entry listens, counted from 0.
pub fn listener(entry: usize) -> SocketAddr {
    let [.., high, low] = (FIRST_ENTRY + entry).to_be_bytes();
    SocketAddr::from(([198, 19, high, low], 1))
}

/// The node that has a link address or listens at an address: hops from 1, entries from 101.
pub fn number_of(address: SocketAddr) -> Option<usize> {
    match address.ip() {
        IpAddr::V4(host) => match host.octets() {
            [10, high, low, _] | [198, 19, high, low] => Some(usize::from(high) << 8 | usize::from(low)),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

/// The link of a datagram: the node at its upper end, and the direction. None if it does not pass from a node to the
/// next or the previous one.
pub fn link_of(from: SocketAddr, to: SocketAddr) -> Option<(usize, Direction)> {
    let (from, to) = number_of(from).zip(number_of(to))?;
    if is_link(from, to) {
        return Some((from, Direction::Forward));
    }
    is_link(to, from).then_some((to, Direction::Backward))
}

/// True if there is a link from the node `up` to the node `down`.
fn is_link(up: usize, down: usize) -> bool {
    if down == 1 { up >= FIRST_ENTRY } else { down < FIRST_ENTRY && up + 1 == down }
}

/// What all entries forward to, unless each has a destination of its own.
pub fn destination() -> SocketAddr {
    SocketAddr::from(([198, 18, 0, 9], 9000))
}

/// The host whose sockets send to destinations.
const EXIT_HOST: [u8; 4] = [198, 18, 0, 2];

/// The wall clock of all hosts, and the clock of the class, in nanoseconds since 1970.
pub fn wall(now: Nanos) -> Nanos {
    START_S * 1000 * MILLI + now
}

/// [`wall`], as a point in time.
pub fn wall_at(now: Nanos) -> SystemTime {
    wall_of_host(now, 0)
}

/// The wall clock of a host that is ahead by this many nanoseconds.
fn wall_of_host(now: Nanos, ahead: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(wall(now).saturating_add_signed(ahead))
}

impl Chain {
    /// Starts it: mixes, an exit and entries.
    ///
    /// # Panics
    /// No node would take these terms: see [`Plan::check`].
    pub fn new(plan: Plan) -> Chain {
        plan.check().expect("terms of a chain");
        let (hops, terms) = (plan.hops(), plan.terms.clone());
        let mut rng = ChaCha20Rng::seed_from_u64(plan.seed);
        let (interval_s, epoch_s) = plan.interval_and_epoch();
        let chain = ChainTerms {
            suite: Suite::Hybrid,
            interval_s,
            epoch_s,
            classes: Vec::new(),
            paced: vec![terms.clone()],
            identities: Vec::new(),
        };
        let contact = |hop| Contact {
            class: terms.class.into(),
            lanes: 1,
            addresses: vec![link_address(hop, Side::Up)],
            names: Vec::new(),
        };
        let drawn = Hops::draw(chain, (1..=hops).map(contact).collect(), &mut rng);
        let times = terms.timetable(hops);
        let begin_of_next = |now: Nanos| {
            let batch = times.batch_of(times.round_at(wall(now)));
            times.begin(times.first(batch + 1)) - wall(0)
        };
        let start = |before: Duration| begin_of_next(START + before.as_nanos() as Nanos) - before.as_nanos() as Nanos;
        let now = plan.before_batch.map_or(START, start);
        let links = MemNet::default();
        links.join_bursts();
        let entries = plan.entries;
        let mut made = Chain {
            nodes: Vec::new(),
            times,
            now,
            started: now,
            hops,
            links,
            apps: MemNet::default(),
            wires: Rc::new(Wires::new(now, plan.keeps, &terms, hops)),
            ready: BTreeSet::new(),
            timers_late: plan.timers_late,
            rng: ChaCha20Rng::seed_from_u64(plan.seed ^ 0x7a7e),
            events: Vec::new(),
            terms,
            kit: Rc::new(Kit { hops: drawn, plan }),
        };
        made.tap(|_| true);
        made.watch_apps(|_, _| true);
        for number in (1..=hops).chain((0..entries).map(|entry| FIRST_ENTRY + entry)) {
            let node = made.node(number, (State::fresh(START_S), 0), &mut rng);
            made.nodes.push(node);
        }
        made.ready.extend(0..made.nodes.len());
        made
    }

    /// Gives an entry that serves a meeting another secret, for batches whose setups have not begun.
    pub fn meet(&mut self, entry: usize, secret: [u8; 32]) {
        let index = self.index(entry);
        self.nodes[index].control.meet(0, MeetingSecret::new(secret));
    }

    /// Lets virtual time pass.
    pub fn run(&mut self, time: Duration) {
        self.run_until(self.now + time.as_nanos() as Nanos);
    }

    /// Lets virtual time pass until `end`.
    pub fn run_until(&mut self, end: Nanos) {
        self.settle();
        while let Some(next) = self.next_event().filter(|next| *next < end) {
            self.now = next;
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// Runs nodes until nothing moves at this instant.
    fn settle(&mut self) {
        self.wires.now.set(self.now);
        self.wires.deliver(&self.links);
        for _ in 0..1000 {
            let due = (0..self.nodes.len()).filter(|index| self.nodes[*index].due <= self.now);
            self.ready.extend(due);
            for number in self.wires.arrived.take() {
                let index = self.index(number);
                // A worker that is blocked reads when its timer is due.
                if !self.nodes[index].worker.is_blocked() {
                    self.ready.insert(index);
                }
            }
            if self.ready.is_empty() {
                return;
            }
            for index in std::mem::take(&mut self.ready) {
                self.turn(index);
            }
        }
        panic!("the chain does not come to rest");
    }

    /// A turn of one node, as its event loop has it.
    fn turn(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.stopped_until > self.now {
            node.due = node.stopped_until;
            return;
        }
        let moved = |links: &MemNet, apps: &MemNet, wires: &Wires| {
            wires.delivered.get() - links.waiting() as u64 - apps.waiting() as u64
        };
        let before = moved(&self.links, &self.apps, &self.wires);
        let network = (&self.links, &*self.wires);
        node.run_control(self.now, network, &mut self.events);
        let worker_wake = node.worker.turn(self.now);
        node.worker.record_latency(self.now);
        // It has received something, and there may be more. What it received may have been for control.
        let has_received = moved(&self.links, &self.apps, &self.wires) > before && !node.worker.is_blocked();
        if has_received || !node.punts.is_empty() || node.commands.waiting() > 0 {
            self.ready.insert(index);
        }
        let control = u64::try_from(node.control.next_wake().as_nanos()).unwrap_or(Nanos::MAX);
        let wake = worker_wake.min(control);
        let due = if wake > self.now { wake } else { self.now + AT_ONCE };
        let late = if self.timers_late.is_zero() {
            0
        } else {
            (-(1.0 - self.rng.random::<f64>()).ln() * self.timers_late.as_nanos() as f64) as Nanos
        };
        node.due = due.saturating_add(late);
    }

    /// When a node's timer is due, or a datagram arrives.
    fn next_event(&self) -> Option<Nanos> {
        self.nodes.iter().map(|node| node.due).chain(self.wires.next()).min()
    }

    /// Runs until the beginning of the batch that is `ahead` of the running one.
    pub fn run_to_batch(&mut self, ahead: u64) {
        self.run_until(self.begins(self.times.first(self.batch() + ahead)));
    }

    /// When a round begins, by the virtual clock.
    pub fn begins(&self, round: u64) -> Nanos {
        self.times.begin(round) - wall(0)
    }

    /// The round that runs at a time.
    pub fn round_at(&self, now: Nanos) -> u64 {
        self.times.round_at(wall(now))
    }

    /// Virtual time since the chain started.
    pub fn since_start(&self) -> Duration {
        Duration::from_nanos(self.now - self.started)
    }

    /// The running batch.
    pub fn batch(&self) -> u64 {
        self.times.batch_of(self.round_at(self.now))
    }

    /// Events of the paced class, by node.
    pub fn paced_events(&self) -> impl Iterator<Item = (usize, PacedEvent)> + '_ {
        self.events.iter().filter_map(|(node, event)| match event {
            Event::Paced(event) => Some((*node, *event)),
            _ => None,
        })
    }

    /// The nodes whose alarm was raised, and why.
    pub fn dropping(&self) -> Vec<(usize, Cause)> {
        let of = |(node, event)| if let PacedEvent::Dropping(cause) = event { Some((node, cause)) } else { None };
        self.paced_events().filter_map(of).collect()
    }

    /// The numbers of all nodes: hops from 1, entries from 101.
    pub fn numbers(&self) -> impl Iterator<Item = usize> + use<> {
        (1..=self.hops).chain(FIRST_ENTRY..FIRST_ENTRY + self.kit.plan.entries)
    }

    /// Mixes, and the exit.
    pub fn hops(&self) -> usize {
        self.hops
    }

    fn index(&self, node: usize) -> usize {
        if node >= FIRST_ENTRY { self.hops + node - FIRST_ENTRY } else { node - 1 }
    }

    fn at(&self, node: usize) -> &Node {
        &self.nodes[self.index(node)]
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

    /// What an entry shows of the class.
    pub fn entry_status(&self, entry: usize) -> EntryStatus {
        let PacedStatus::Entry(status) = self.status(entry) else { panic!("{entry} is an entry") };
        status
    }

    /// What a mix, or the exit, shows of the class.
    pub fn hop_status(&self, hop: usize) -> HopStatus {
        let PacedStatus::Hop(status) = self.status(hop) else { panic!("{hop} is a hop") };
        status
    }

    /// What a mix measures by its loops.
    pub fn loops(&self, mix: usize) -> mix::LoopsView {
        *self.at(mix).loops.as_ref().expect("a mix").lock().unwrap()
    }

    /// Loops of a mix that were not set up, one for each batch.
    pub fn loops_failed(&self, mix: usize) -> u64 {
        self.at(mix).control.class(0).counters().refused(control::Refusal::LoopFailed)
    }

    /// What a node has counted since its start.
    pub fn ledger(&self, node: usize) -> Ledger {
        *self.at(node).ledger.lock().unwrap()
    }

    /// What an entry shows.
    pub fn shown(&self, entry: usize) -> entry::EntryView {
        *self.at(entry).shown.as_ref().expect("an entry").lock().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use dataplane::ledger::DropReason;
    use dataplane::socket::memory::Datagram;
    use wire::paced::PacedClass;

    use super::*;

    /// A class with short batches, in a chain with one mix.
    fn plan(seed: u64) -> Plan {
        let terms = PacedTerms {
            rounds: 512,
            n_min: 1,
            seats: 8,
            loops: 0,
            steps_ms: vec![2],
            ..PacedTerms::new(PacedClass::new(wire::cell::Class::S), "voice", 2)
        };
        let timers_late = Duration::from_micros(60);
        Plan { seed, timers_late, before_batch: Some(Duration::from_secs(1)), ..Plan::new(&terms, 1, 2) }
    }

    fn started(plan: Plan) -> Chain {
        let mut chain = Chain::new(plan);
        chain.run_to_batch(3);
        chain
    }

    /// What links show, without bytes: ML-KEM keys do not depend on the seed.
    fn trace(chain: &Chain) -> Vec<(Nanos, SocketAddr, SocketAddr, usize)> {
        chain.seen().iter().map(|seen| (seen.at, seen.from, seen.to, seen.bytes.len())).collect()
    }

    #[test]
    fn one_seed_gives_one_trace_and_another_seed_another() {
        let [one, again, other] = [7, 7, 8].map(|seed| trace(&started(plan(seed))));
        assert!(one.len() > 1000 && one == again);
        assert!(other.len() > 1000 && one[..100] != other[..100]);
    }

    /// An application at each entry sends its number to the entry, counted from 0.
    fn send(chain: &Chain) {
        for entry in 0..2 {
            let from = SocketAddr::from(([198, 20, 0, 1], 5));
            chain.apps.send(Datagram { from, to: listener(entry), bytes: vec![entry as u8] });
        }
    }

    #[test]
    fn each_entry_has_a_destination_of_its_own() {
        let of = |number: usize| SocketAddr::from(([198, 18, 0, 9], number as u16));
        let mut chain = started(Plan { destination: of, ..plan(1) });
        send(&chain);
        chain.run(Duration::from_millis(200));
        for entry in 0..2 {
            let come = std::iter::from_fn(|| chain.apps.receive(of(FIRST_ENTRY + entry)));
            assert_eq!(come.map(|datagram| datagram.bytes).collect::<Vec<_>>(), [[entry as u8]]);
        }
    }

    /// Mix 1 waits for the last copy of a cell, and for the slack.
    #[test]
    fn held_datagrams_arrive_later_by_that_time() {
        let mut chain = started(plan(1));
        let PacedTerms { slack_ms, period_ms, .. } = chain.terms;
        let forward = |chain: &Chain| chain.ledger(1).cells.forward;
        for (hold, are_late) in [(slack_ms / 2, false), (slack_ms + 2 * period_ms, true)] {
            let hold = Nanos::from(hold) * MILLI;
            chain.attack(move |_, datagram| {
                let is_forward = datagram.to == link_address(1, Side::Up);
                vec![(if is_forward { hold } else { 0 }, datagram)]
            });
            chain.run(Duration::from_millis(100));
            let (before, began) = (forward(&chain), chain.now);
            chain.run(Duration::from_millis(100));
            let (after, due) = (forward(&chain), began - hold..chain.now - hold);
            let is_due = |seen: &&Seen| seen.to == link_address(1, Side::Up) && due.contains(&seen.at);
            let sent = chain.seen().iter().filter(is_due).count() as u64;
            assert!(sent > 10 && after.received - before.received == sent, "{sent} sent in {due:?}");
            send(&chain);
            chain.run(Duration::from_millis(200));
            let come = std::iter::from_fn(|| chain.apps.receive(destination())).count();
            let late = forward(&chain).drops(DropReason::Late) - after.drops(DropReason::Late);
            assert_eq!((come, late > 0), if are_late { (0, true) } else { (2, false) }, "held for {hold} ns");
        }
    }

    #[test]
    fn stopped_node_runs_again_and_reads_what_waited() {
        let mut chain = started(plan(1));
        let before = chain.shown(FIRST_ENTRY);
        chain.stop(FIRST_ENTRY, Duration::from_millis(100));
        chain.run(Duration::from_secs(2));
        let after = chain.shown(FIRST_ENTRY);
        assert!((5..=10).contains(&(after.skipped - before.skipped)), "{before:?} {after:?}");
        assert_eq!(after.lost, before.lost);
    }
}
