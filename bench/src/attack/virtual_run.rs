//! One run under a virtual clock: users and access links around a chain in memory (`eddy_virtual`).
//!
//! Users, links, impairments and the record are those of a real run. Timers are late by [`TIMERS_LATE`] on average, or
//! links would be more regular than any real ones; nothing else takes time. So a record shows what the protocol shows,
//! and nothing that a kernel, a scheduler or a busy processor adds.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use attack::active::{Action, Plan};
use dataplane::per_direction::PerDirection;
use dataplane::socket::memory::Datagram;
use eddy_virtual::{Chain, FIRST_ENTRY, listener, number_of, wall};
use hdrhistogram::Histogram;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use wire::cell::Direction::{self, Backward, Forward};
use wire::paced::PacedTerms;

use super::capture::Captured;
use super::copies::hash;
use super::exit_record::ExitRecord;
use super::facts::{Delay, Facts, PacedFacts, cpu};
use super::impairment::Link;
use super::places::{self, Tap};
use super::plant::{self, Plant, Speakers};
use super::profile::{self, WARM_UP};
use super::record::{Entries, Recording};
use super::session::{Run, Session, Stage};
use crate::load::plan::Due;
use crate::load::source::{MILLI, Nanos, SECOND, exponential, seeded};
use crate::results::histogram;

/// Mean of the exponential time by which timers are late.
const TIMERS_LATE: Duration = Duration::from_micros(60);
/// The chain starts this long before a batch: time for handshakes and clocks.
const BEFORE_BATCH: Duration = Duration::from_secs(3);
/// From the first batch with channels to the first datagram: time for meetings to join.
const JOIN: Duration = Duration::from_millis(500);
/// Behind the record, for what is under way.
const AFTER: Duration = Duration::from_secs(1);
/// A datagram that shows an entry where its application is.
const HELLO: [u8; 1] = [0];
/// An entry with `--stall` stops after an exponential time of this mean, for [`STALL_MS`].
const STALL_EVERY: f64 = 0.5e9;
const STALL_MS: std::ops::RangeInclusive<u64> = 5..=50;

/// What a run under a virtual clock adds to its counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct VirtualFacts {
    /// Virtual time with its start, and the processor time that it took, in seconds.
    seconds: f64,
    cpu_s: f64,
    /// Batches of the record whose setups were watched, and whether their order says whose channel is whose
    /// (`attack::setup_order`).
    #[serde(default)]
    setup_batches: usize,
    #[serde(default = "chance")]
    setup_order_p: f64,
    /// The share of a user's datagrams that arrived, of the user and the direction with the least.
    #[serde(default)]
    least_arrived: Option<f64>,
}

/// The p of no evidence.
fn chance() -> f64 {
    1.0
}

impl VirtualFacts {
    pub(super) fn text(&self) -> String {
        let VirtualFacts { seconds, cpu_s, setup_batches, setup_order_p, least_arrived } = self;
        let least = least_arrived.map_or(String::new(), |share| format!("at least {:.2} % of each; ", 100.0 * share));
        format!(
            "{least}order of setups for {setup_batches} batches: p {setup_order_p:.3}; {seconds:.0} s of virtual time \
             took {cpu_s:.0} s"
        )
    }
}

/// The application of an entry, counted from 0.
fn application(entry: usize) -> SocketAddr {
    let [.., high, low] = entry.to_be_bytes();
    SocketAddr::from(([198, 20, high, low], 5000))
}

/// The destination of an entry, by the number that it has in a chain.
fn destination(number: usize) -> SocketAddr {
    SocketAddr::from(([198, 18, 0, 9], FIRST_PORT + (number - FIRST_ENTRY) as u16))
}

const FIRST_PORT: u16 = 10_000;

/// What taps and applications share.
struct World {
    entries: Entries,
    /// The flow of each user, with the adversary's own.
    flows: Vec<usize>,
    /// The user of each entry, and whether the entry is its partner's.
    users: Vec<(usize, bool)>,
    tap: Tap,
    plan: Option<Plan>,
    plant: Option<Plant>,
    speakers: Speakers,
    /// The access links.
    links: Vec<PerDirection<Link>>,
    contents: Vec<PerDirection<Numbers>>,
    exit: Option<ExitRecord>,
    /// When the record begins and ends.
    begin: Nanos,
    end: Nanos,
    captured: Vec<Captured>,
    /// Where the exit sends from, for each user.
    peers: Vec<Option<SocketAddr>>,
    /// When each user sent each of its datagrams, and when each was answered.
    sent: PerDirection<Vec<Vec<Nanos>>>,
    /// How many of them arrived.
    arrived: PerDirection<Vec<u64>>,
    delays: PerDirection<Histogram<u64>>,
}

impl World {
    fn capture(&mut self, (at, address, to_port): (Nanos, SocketAddr, bool), bytes: &[u8]) {
        self.capture_content((at, address, to_port), bytes, 0);
    }

    fn capture_content(&mut self, (at, address, to_port): (Nanos, SocketAddr, bool), bytes: &[u8], content: u32) {
        if (self.begin..self.end).contains(&at) {
            let mut first = [0; 4];
            first.iter_mut().zip(bytes).for_each(|(first, byte)| *first = *byte);
            let (bytes, first) = (bytes.len() as u16, u32::from_be_bytes(first));
            self.captured.push(Captured { at: wall(at), port: address.port(), to_port, bytes, first, content });
        }
    }

    /// A link datagram, sent now: what arrives, after a time.
    fn pass(&mut self, now: Nanos, datagram: Datagram) -> Vec<(Nanos, Datagram)> {
        match (number_of(datagram.from), number_of(datagram.to)) {
            (Some(from), _) if from >= FIRST_ENTRY => self.pass_forward(from - FIRST_ENTRY, now, datagram),
            (_, Some(to)) if to >= FIRST_ENTRY => self.pass_backward(to - FIRST_ENTRY, now, datagram),
            (Some(from), Some(to)) => {
                let is_forward = to > from;
                let plant = self.plant.as_mut().filter(|_| is_forward);
                if !plant.is_some_and(|plant| plant.is_left_out_behind(from, wall(now))) {
                    self.capture((now, places::hop(from.max(to)), is_forward), &datagram.bytes);
                }
                vec![(0, datagram)]
            }
            _ => vec![(0, datagram)],
        }
    }

    fn pass_forward(&mut self, entry: usize, now: Nanos, datagram: Datagram) -> Vec<(Nanos, Datagram)> {
        let at = match self.plant.as_mut().map_or(Action::Pass, |plant| plant.leaves(entry, now, &datagram.bytes)) {
            Action::Pass => now,
            Action::Delay(by) => now + by,
            Action::Drop => return Vec::new(),
        };
        let content = self.contents[entry].forward.number(&datagram.bytes);
        if self.tap == Tap::User {
            self.capture_content((at, places::relay_to_user(entry), true), &datagram.bytes, content);
        }
        let due = match at.checked_sub(self.begin) {
            None => Some(at),
            Some(since) => {
                let arrives = self.plan.as_ref().map_or(Some(since), |plan| plan.passes(entry, since));
                let link = &mut self.links[entry].forward;
                arrives.and_then(|arrives| link.pass(arrives, datagram.bytes.len())).map(|due| due + self.begin)
            }
        };
        if let Some(plant) = &mut self.plant {
            plant.passed(entry, wall(now), due.map(wall), &datagram.bytes);
        }
        if let Some(exit) = &mut self.exit {
            exit.passed(entry, wall(now), due.map(wall), &datagram.bytes);
        }
        let Some(due) = due else { return Vec::new() };
        if self.tap == Tap::Mix1 {
            self.capture_content((due, places::relay_to_mix(entry), false), &datagram.bytes, content);
        }
        vec![(due - now, datagram)]
    }

    fn pass_backward(&mut self, entry: usize, now: Nanos, datagram: Datagram) -> Vec<(Nanos, Datagram)> {
        if self.plant.as_mut().is_some_and(|plant| plant.is_left_out(entry, wall(now), &datagram.bytes)) {
            return Vec::new();
        }
        let content = self.contents[entry].backward.number(&datagram.bytes);
        if self.tap == Tap::Mix1 {
            self.capture_content((now, places::relay_to_mix(entry), true), &datagram.bytes, content);
        }
        let due = match now.checked_sub(self.begin) {
            None => Some(now),
            Some(since) => self.links[entry].backward.pass(since, datagram.bytes.len()).map(|due| due + self.begin),
        };
        let Some(due) = due else { return Vec::new() };
        if self.tap == Tap::User {
            self.capture_content((due, places::relay_to_user(entry), false), &datagram.bytes, content);
        }
        vec![(due - now, datagram)]
    }

    /// A datagram between an application and its entry, or between the exit and a destination. False if an application
    /// has received it.
    fn watch(&mut self, now: Nanos, datagram: &Datagram) -> bool {
        let Datagram { from, to, bytes } = datagram;
        let entry_of = |port: u16| usize::from(port - FIRST_PORT);
        match (octets(*from), octets(*to)) {
            (_, [198, 18, 0, 9]) => {
                let user = entry_of(to.port());
                self.capture((now, places::destination(self.flows[user]), true), bytes);
                self.peers[user] = Some(*from);
                self.arrives(Forward, user, now, bytes);
                false
            }
            (_, [198, 20, high, low]) => {
                let entry = usize::from(high) << 8 | usize::from(low);
                let (user, is_partner) = self.users[entry];
                if is_partner && user == self.entries.rows {
                    self.capture((now, places::destination(self.flows[user]), true), bytes);
                }
                self.arrives(if is_partner { Forward } else { Backward }, user, now, bytes);
                false
            }
            ([198, 18, 0, 9], _) => {
                self.capture((now, places::destination(self.flows[entry_of(from.port())]), false), bytes);
                true
            }
            _ => true,
        }
    }

    fn arrives(&mut self, direction: Direction, user: usize, now: Nanos, bytes: &[u8]) {
        let Some((number, _)) = bytes.split_first_chunk::<4>() else { return };
        self.arrived[direction][user] += 1;
        if let Some(sent) = self.sent[direction][user].get(u32::from_be_bytes(*number) as usize) {
            self.delays[direction].saturating_record(now - sent);
        }
    }

    /// The share that arrived, of the user and the direction with the least.
    fn least_arrived(&self) -> Option<f64> {
        let of_way = |way| {
            let counts = self.sent[way].iter().zip(&self.arrived[way]);
            counts.filter(|(sent, _)| !sent.is_empty()).map(|(sent, arrived)| *arrived as f64 / sent.len() as f64)
        };
        of_way(Forward).chain(of_way(Backward)).min_by(f64::total_cmp)
    }
}

/// Numbers that equal datagrams of a link share.
#[derive(Clone, Default)]
struct Numbers {
    last: u32,
    /// Hash and number of the last ones.
    known: VecDeque<(u64, u32)>,
}

impl Numbers {
    /// Copies are a few rounds apart.
    const KNOWN_MAX: usize = 64;

    fn number(&mut self, bytes: &[u8]) -> u32 {
        let hash = hash(bytes);
        if let Some((_, number)) = self.known.iter().rev().find(|(known, _)| *known == hash) {
            return *number;
        }
        self.last += 1;
        self.known.push_back((hash, self.last));
        if self.known.len() > Numbers::KNOWN_MAX {
            self.known.pop_front();
        }
        self.last
    }
}

fn octets(address: SocketAddr) -> [u8; 4] {
    match address.ip() {
        IpAddr::V4(host) => host.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}

impl Session<'_> {
    /// Runs it under a virtual clock, for a class with these terms.
    ///
    /// # Errors
    /// The user interrupts, or the chain carries nothing.
    pub(super) fn run_virtual(
        &self,
        terms: &PacedTerms,
        interrupted: &AtomicBool,
        mut progress: impl FnMut(Stage),
    ) -> anyhow::Result<Run> {
        let cpu_before = cpu();
        let entries = self.entries;
        let (truth, sources) = profile::draw(self.traffic, entries.rows, profile::OWN_PACED_LEN, self.seed);
        let mut flows = truth.0.clone();
        flows.push(entries.rows);
        let mut queues = self.queues(sources);

        let mut chain = self.start_chain(terms, &flows)?;
        chain.watch_setups();
        progress(Stage::Starting(flows.len()));
        let world = Rc::new(RefCell::new(self.world(terms, &flows)));
        let (of_links, of_apps) = (world.clone(), world.clone());
        chain.attack(move |now, datagram| of_links.borrow_mut().pass(now, datagram));
        chain.watch_apps(move |now, datagram| of_apps.borrow_mut().watch(now, datagram));
        if self.corrupt_exit {
            let of_exit = world.clone();
            chain.watch_exit(move |seen| {
                if let Some(exit) = &mut of_exit.borrow_mut().exit {
                    exit.sees(&seen);
                }
            });
        }
        if entries.meetings {
            for entry in 0..entries.count() {
                chain.apps.send(Datagram { from: application(entry), to: listener(entry), bytes: HELLO.to_vec() });
            }
        }
        chain.run(JOIN);

        let nanos = |time: Duration| time.as_nanos() as Nanos;
        let origin = chain.now;
        let (begin, end) = (origin + nanos(WARM_UP), origin + nanos(WARM_UP + self.length));
        {
            let mut world = world.borrow_mut();
            (world.begin, world.end) = (begin, end);
        }
        let mut sent = PerDirection::<u64>::default();
        let mut stalls = Stalls::new(&self.stalls, self.seed, begin);
        let mut second = 0;
        loop {
            let next = [Forward, Backward].into_iter().filter_map(|way| Some((queues[way].peek()?.at_ns, way)));
            let next = next.min_by_key(|(at, _)| *at).map(|(at, way)| (origin + at, way)).filter(|(at, _)| *at < end);
            let until = next.map_or(end, |(at, _)| at);
            if let Some((entry, time)) = stalls.next_before(until, &mut chain) {
                chain.stop(FIRST_ENTRY + entry, time);
                continue;
            }
            chain.run_until(until);
            let Some((_, way)) = next else { break };
            if let Some(due) = queues[way].pop() {
                sent[way] += u64::from(self.send(&chain, &world, way, due));
            }
            if (chain.now - origin) / SECOND > second {
                second = (chain.now - origin) / SECOND;
                progress(Stage::Recording(Duration::from_nanos(chain.now.saturating_sub(begin))));
                ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");
            }
        }
        chain.run(AFTER);

        progress(Stage::Ending);
        chain.tap(|_| true);
        chain.watch_apps(|_, _| true);
        chain.watch_exit(|_| {});
        let mut world = Rc::into_inner(world).expect("the taps are gone").into_inner();
        world.captured.sort_by_key(|captured| captured.at);
        let probe: Vec<Nanos> = world.sent.forward[entries.rows].iter().map(|at| wall(*at)).collect();
        let recording = Recording {
            captured: &world.captured,
            begin: wall(begin),
            length: end - begin,
            class: &self.class,
            mixes: self.mixes,
            tap: self.tap,
            entries,
            probe: &probe,
            has_contents: true,
        };
        let (mut record, wait_ms) = recording.record();
        if let Some(exit) = world.exit.take() {
            let mut of_flows: Vec<(usize, usize)> =
                truth.0.iter().enumerate().map(|(user, flow)| (*flow, user)).collect();
            of_flows.sort_unstable();
            let ends = |(flow, user)| (entries.user(user), entries.meetings.then(|| entries.partner(flow)));
            exit.fill(&mut record, wall(begin), &of_flows.into_iter().map(ends).collect::<Vec<_>>());
        }
        let (setup_order, setup_truths) = chain.setup_order();
        let hops = chain.numbers().take_while(|number| *number < FIRST_ENTRY);
        let paced = PacedFacts::of_chain(&chain);
        let facts = Facts {
            dropped: paced.dropped(),
            sent: [sent.forward, sent.backward],
            arrived: [&world.arrived.forward, &world.arrived.backward].map(|arrived| arrived.iter().sum()),
            delays: Delay::of_both(&world.delays),
            ledgers_closed: hops.into_iter().all(|hop| chain.ledger(hop).closed()),
            captured: world.captured.len() as u64,
            paced: Some(paced),
            memory_here: super::network::resident("self"),
            start_s: chain.since_start().as_secs_f64() - self.length.as_secs_f64(),
            virtual_clock: Some(VirtualFacts {
                seconds: chain.since_start().as_secs_f64(),
                cpu_s: (cpu() - cpu_before).as_secs_f64(),
                setup_batches: setup_truths.len(),
                setup_order_p: setup_order.p(&setup_truths, self.seed),
                least_arrived: world.least_arrived(),
            }),
            ..Facts::default()
        };
        ensure!(facts.arrived[0] > 0, "nothing passes the chain");
        Ok(Run { record, truth, wait_ms, facts })
    }

    /// A chain whose entries all have channels in the batch that has just begun.
    fn start_chain(&self, terms: &PacedTerms, flows: &[usize]) -> anyhow::Result<Chain> {
        let mut rng = seeded(self.seed);
        rng.set_stream(2);
        let mut plan = eddy_virtual::Plan {
            destination,
            seed: self.seed,
            timers_late: TIMERS_LATE,
            before_batch: Some(BEFORE_BATCH),
            keeps: false,
            ..eddy_virtual::Plan::new(terms, self.mixes, self.entries.count())
        };
        for (user, &flow) in flows.iter().enumerate().filter(|_| self.entries.meetings) {
            let mut secret = [0; 32];
            rng.fill_bytes(&mut secret);
            for entry in [self.entries.user(user), self.entries.partner(flow)] {
                plan.meetings.insert(FIRST_ENTRY + entry, secret);
            }
        }
        let mut chain = Chain::new(plan);
        for _ in 0..4 {
            chain.run_to_batch(1);
            if chain.numbers().filter(|number| *number >= FIRST_ENTRY).all(|entry| chain.setups(entry) > 0) {
                // The setups are for the batch that begins now, unless they began just now.
                chain.run_to_batch(1);
                return Ok(chain);
            }
        }
        anyhow::bail!("entries have no channels after 4 batches: {:?}", chain.refused(1))
    }

    fn world(&self, terms: &PacedTerms, flows: &[usize]) -> World {
        let (entries, count, hops) = (self.entries, self.entries.count(), self.mixes + 1);
        let mut users = vec![(0, false); count];
        for (user, &flow) in flows.iter().enumerate() {
            users[entries.user(user)] = (user, false);
            if entries.meetings {
                users[entries.partner(flow)] = (user, true);
            }
        }
        // As the relay of a real run draws them.
        let mut rng = seeded(self.seed);
        rng.set_stream(1);
        let link = |entry, rng: &mut _| Link::new(self.impairments.clone(), entry, ChaCha20Rng::from_rng(rng));
        let links =
            (0..count).map(|entry| PerDirection { forward: link(entry, &mut rng), backward: link(entry, &mut rng) });
        let (links, speakers) = (links.collect(), plant::nobody(count));
        let plant = self.plant(flows, &speakers);
        World {
            entries,
            flows: flows.to_vec(),
            users,
            tap: self.tap,
            plan: self.plan.clone(),
            plant,
            speakers,
            links,
            contents: vec![PerDirection::default(); count],
            exit: self.corrupt_exit.then(|| ExitRecord::new(terms, hops, count)),
            begin: Nanos::MAX,
            end: Nanos::MAX,
            captured: Vec::new(),
            peers: vec![None; flows.len()],
            sent: PerDirection::from_fn(|_| vec![Vec::new(); flows.len()]),
            arrived: PerDirection::from_fn(|_| vec![0; flows.len()]),
            delays: PerDirection::from_fn(|_| histogram()),
        }
    }

    /// Sends what is due. False if nobody knows where to.
    fn send(&self, chain: &Chain, world: &RefCell<World>, way: Direction, Due { flow: user, len, .. }: Due) -> bool {
        let (entries, is_forward) = (self.entries, way == Forward);
        let datagram = {
            let mut world = world.borrow_mut();
            let entry = match is_forward {
                true => entries.user(user),
                false => entries.partner(world.flows[user]),
            };
            let (from, to) = if is_forward || entries.meetings {
                world.speakers[entry].store(true, Ordering::Relaxed);
                (application(entry), listener(entry))
            } else {
                let Some(peer) = world.peers[user] else { return false };
                (destination(FIRST_ENTRY + entries.user(user)), peer)
            };
            let sent = &mut world.sent[way][user];
            let mut bytes = vec![0; len.max(4)];
            bytes[..4].copy_from_slice(&(sent.len() as u32).to_be_bytes());
            sent.push(chain.now);
            Datagram { from, to, bytes }
        };
        chain.apps.send(datagram);
        true
    }
}

/// Entries that stop now and then, as on a busy machine.
struct Stalls {
    rng: ChaCha20Rng,
    /// When each one stops next, and the entry.
    next: Vec<(Nanos, usize)>,
}

impl Stalls {
    fn new(entries: &[usize], seed: u64, begin: Nanos) -> Stalls {
        let mut rng = seeded(seed);
        rng.set_stream(3);
        let next = entries.iter().map(|entry| (begin + exponential(&mut rng, STALL_EVERY) as Nanos, *entry)).collect();
        Stalls { rng, next }
    }

    /// Lets time pass to the next stall before `until`: its entry, and how long it is.
    fn next_before(&mut self, until: Nanos, chain: &mut Chain) -> Option<(usize, Duration)> {
        let next = self.next.iter_mut().min().filter(|(at, _)| *at < until)?;
        chain.run_until(next.0);
        let time = self.rng.random_range(STALL_MS);
        let entry = next.1;
        next.0 += time * MILLI + exponential(&mut self.rng, STALL_EVERY) as Nanos;
        Some((entry, Duration::from_millis(time)))
    }
}
