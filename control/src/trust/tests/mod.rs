//! Whole chains of hops and entries in memory: time passes in steps, links delay and lose.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::{Class, Direction, Shape};
use wire::ids::LinkId;
use wire::kdf::Secret;
use wire::setup::{SetupKey, SetupPublic, Suite};

use super::chain::{ChainTerms, ClassTerms};
use super::descriptor::tests::{identity, node, signed};
use super::descriptor::{NUMBER_END, NodeDescriptor, SignedDescriptor};
use super::hop::{CertifiedKeys, HopSetup, HopState, HopTrust, Step, TrustEvent};
use super::message::{ASK, Ask, Held, ItemKind, cut};
use super::record::{EpochRecord, SignedRecord};
use super::state::State;
use super::sync::Peer;
use super::user::UserTrust;
use super::view::View;

mod asks;
mod contacts;
mod descriptors;
mod intervals;
mod paced;

const STEP_MS: u64 = 5;
/// In the middle of an epoch of either length.
const START_MS: u64 = 1_800_005_000;
const UP: LinkId = LinkId(1);
const DOWN: LinkId = LinkId(2);

struct Hop {
    trust: HopTrust,
    /// What is on its disk.
    disk: HopState,
    /// Its clock minus true time.
    offset_ms: i64,
}

/// An entry, on Mix 1's link `LinkId(10 + number)`.
struct User {
    trust: UserTrust,
    offset_ms: i64,
    /// Intervals for which it had a bundle.
    had: BTreeSet<u64>,
}

struct Cell {
    at_ms: u64,
    to: Node,
    link: LinkId,
    content: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Hop(usize),
    User(usize),
}

struct World {
    rng: ChaCha20Rng,
    terms: ChainTerms,
    shape: Shape,
    /// Since the start.
    now_ms: u64,
    hops: Vec<Hop>,
    users: Vec<User>,
    cells: Vec<Cell>,
    loss: f64,
    /// Every hash that each hop has signed, per interval.
    signed: BTreeMap<(usize, u64), BTreeSet<[u8; 32]>>,
    events: Vec<(usize, TrustEvent)>,
    sent: usize,
    /// Cells that each hop has sent on each of its links.
    sent_on: BTreeMap<(usize, LinkId), usize>,
    /// States written, of all hops.
    saves: usize,
}

impl World {
    fn new(hops: usize, class: Class, times: (u32, u32), loss: f64) -> World {
        World::starting_at(0, hops, class, times, loss)
    }

    fn starting_at(now_ms: u64, hops: usize, class: Class, (interval_s, epoch_s): (u32, u32), loss: f64) -> World {
        let terms = ChainTerms {
            suite: Suite::X25519,
            interval_s,
            epoch_s,
            classes: vec![ClassTerms { class, mixing_delay_ms: 5, lifetime_s: 60 }],
            paced: Vec::new(),
            identities: (1..=hops as u8).map(|seed| identity(seed).public()).collect(),
        };
        let mut world = World {
            rng: ChaCha20Rng::seed_from_u64(7),
            shape: Shape::new(class, hops).unwrap(),
            terms,
            now_ms,
            hops: Vec::new(),
            users: Vec::new(),
            cells: Vec::new(),
            loss,
            signed: BTreeMap::new(),
            events: Vec::new(),
            sent: 0,
            sent_on: BTreeMap::new(),
            saves: 0,
        };
        for hop in 1..=hops {
            let disk = HopState { made: START_MS / 1000, ..HopState::default() };
            let trust = world.start(hop, disk.clone(), 0);
            world.hops.push(Hop { trust, disk, offset_ms: 0 });
        }
        (1..hops).for_each(|hop| world.connect(hop));
        world
    }

    fn view(&self) -> View {
        let mut view = View::new(self.terms.clone());
        let hops = self.terms.identities.len();
        for hop in 1..=hops {
            let mut descriptor = node(hop, hops);
            descriptor.contacts[0].class = self.shape.class().into();
            view.take_descriptor(hop, signed(descriptor, hop), START_MS / 1000).unwrap();
        }
        view
    }

    fn wall(&self, offset_ms: i64) -> u64 {
        (START_MS + self.now_ms).strict_add_signed(offset_ms)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms)
    }

    fn start(&self, position: usize, state: HopState, offset_ms: i64) -> HopTrust {
        let setup = HopSetup {
            position,
            is_paced: false,
            view: self.view(),
            keys: vec![CertifiedKeys {
                signer: identity(position as u8 + 100),
                noise: node(position, self.terms.identities.len()).noise,
            }],
            state,
            replay_capacity: 1000,
        };
        HopTrust::new(setup, self.now(), self.wall(offset_ms))
    }

    /// The link between a hop and the next one comes up.
    fn connect(&mut self, hop: usize) {
        let now = self.now();
        let forward = self.shape.control_content(Direction::Forward, hop + 1);
        let backward = self.shape.control_content(Direction::Backward, hop + 1);
        self.hops[hop - 1].trust.link_up(DOWN, Peer::Hop, forward, now);
        self.hops[hop].trust.link_up(UP, Peer::Hop, backward, now);
    }

    fn add_user(&mut self, offset_ms: i64) {
        let now = self.now();
        let link = LinkId(10 + self.users.len() as u32);
        let mut trust = UserTrust::new(self.view(), false, now);
        trust.link_up(DOWN, self.shape.control_content(Direction::Forward, 1), now);
        self.hops[0].trust.link_up(link, Peer::Entry(None), self.shape.control_content(Direction::Backward, 1), now);
        self.users.push(User { trust, offset_ms, had: BTreeSet::new() });
    }

    /// A hop is killed and starts again with what is on its disk; its links are up `after_ms` later.
    fn restart(&mut self, hop: usize, disk: HopState, after_ms: u64) {
        let hops = self.hops.len();
        self.cells.retain(|cell| cell.to != Node::Hop(hop));
        if hop > 1 {
            self.hops[hop - 2].trust.link_down(DOWN);
        }
        if hop < hops {
            self.hops[hop].trust.link_down(UP);
        }
        let offset_ms = self.hops[hop - 1].offset_ms;
        let trust = self.start(hop, disk.clone(), offset_ms);
        self.hops[hop - 1] = Hop { trust, disk, offset_ms };
        self.run(after_ms);
        if hop > 1 {
            self.connect(hop - 1);
        }
        if hop < hops {
            self.connect(hop);
        }
    }

    fn send(&mut self, from: Node, link: LinkId, content: Vec<u8>) {
        self.sent += 1;
        if let Node::Hop(hop) = from {
            *self.sent_on.entry((hop, link)).or_default() += 1;
        }
        if self.rng.random_bool(self.loss) {
            return;
        }
        let (to, over) = match (from, link) {
            (Node::Hop(hop), UP) => (Node::Hop(hop - 1), DOWN),
            (Node::Hop(hop), DOWN) => (Node::Hop(hop + 1), UP),
            (Node::Hop(_), link) => (Node::User(link.0 as usize - 10), DOWN),
            (Node::User(user), _) => (Node::Hop(1), LinkId(10 + user as u32)),
        };
        let len = match (from, link) {
            (Node::Hop(_), DOWN) => self.shape.control_content(Direction::Forward, 2),
            (Node::User(_), _) => self.shape.control_content(Direction::Forward, 1),
            _ => self.shape.payload(),
        };
        assert!(content.len() <= self.shape.control_content(Direction::Forward, 1));
        let mut content = content;
        if !matches!((from, link), (Node::Hop(_), DOWN)) {
            content.resize(len, 0);
        } else if let Node::Hop(hop) = from {
            content.resize(self.shape.control_content(Direction::Forward, hop + 1), 0);
        }
        let at_ms = self.now_ms + self.rng.random_range(1..=10);
        self.cells.push(Cell { at_ms, to, link: over, content });
    }

    fn run(&mut self, ms: u64) {
        let end = self.now_ms + ms;
        while self.now_ms < end {
            self.now_ms += STEP_MS;
            self.step();
        }
    }

    fn step(&mut self) {
        let (now_ms, now) = (self.now_ms, self.now());
        let (due, later) = std::mem::take(&mut self.cells).into_iter().partition(|cell| cell.at_ms <= now_ms);
        self.cells = later;
        let due: Vec<Cell> = due;
        for cell in due {
            // A refusal is not a fault: what an item needs may be lost or under way.
            match cell.to {
                Node::Hop(hop) => {
                    let wall = self.wall(self.hops[hop - 1].offset_ms);
                    let _ = self.hops[hop - 1].trust.take(now, wall, cell.link, &cell.content);
                }
                Node::User(user) => {
                    let wall = self.wall(self.users[user].offset_ms);
                    let _ = self.users[user].trust.take(now, wall, cell.link, &cell.content);
                }
            }
        }
        for hop in 1..=self.hops.len() {
            let wall = self.wall(self.hops[hop - 1].offset_ms);
            let one = &mut self.hops[hop - 1];
            one.trust.tick(&mut self.rng, now, wall);
            for step in one.trust.steps() {
                match step {
                    Step::Save(number) => {
                        self.saves += 1;
                        let state = self.hops[hop - 1].trust.state().clone();
                        for (interval, hash) in state.intervals.recent() {
                            self.signed.entry((hop, *interval)).or_default().insert(*hash);
                        }
                        self.hops[hop - 1].disk = state;
                        let one = &mut self.hops[hop - 1];
                        one.trust.saved(number, now, wall);
                        for step in one.trust.steps() {
                            if let Step::Send(link, content) = step {
                                self.send(Node::Hop(hop), link, content);
                            }
                        }
                    }
                    Step::Send(link, content) => self.send(Node::Hop(hop), link, content),
                    Step::Event(event) => self.events.push((hop, event)),
                }
            }
        }
        for user in 0..self.users.len() {
            let wall = self.wall(self.users[user].offset_ms);
            let one = &mut self.users[user];
            let interval = one.trust.session().times().interval_at(wall);
            if one.trust.bundle(now, wall, now).is_some() {
                one.had.insert(interval);
            }
            one.trust.want_only(&[interval], wall);
            one.trust.tick(now, (wall, wall));
            for step in one.trust.steps() {
                if let Step::Send(link, content) = step {
                    self.send(Node::User(user), link, content);
                }
            }
        }
    }

    /// How long until a user has a bundle of its running interval.
    fn time_to_bundle(&mut self, user: usize, limit_ms: u64) -> u64 {
        let start = self.now_ms;
        while self.now_ms < start + limit_ms {
            self.run(STEP_MS);
            let wall = self.wall(self.users[user].offset_ms);
            let now = self.now();
            if self.users[user].trust.bundle(now, wall, now).is_some() {
                return self.now_ms - start;
            }
        }
        panic!("no bundle within {limit_ms} ms");
    }

    fn assert_nobody_signed_twice(&self) {
        for ((hop, interval), hashes) in &self.signed {
            assert_eq!(hashes.len(), 1, "hop {hop} signed {} bundles of interval {interval}", hashes.len());
        }
    }
}
