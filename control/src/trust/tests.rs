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
use super::descriptor::tests::{descriptor, identity};
use super::descriptor::{HopRole, NUMBER_END, NodeDescriptor, SignedDescriptor};
use super::hop::{CertifiedKeys, HopSetup, HopState, HopTrust, Step, TrustEvent};
use super::message::{ASK, Ask, Held, ItemKind, cut};
use super::record::{EpochRecord, SignedRecord};
use super::state::State;
use super::sync::Peer;
use super::user::UserTrust;
use super::view::View;

const STEP_MS: u64 = 5;
/// In the middle of an epoch of either length.
const START_MS: u64 = 1_800_005_000;
const UP: LinkId = LinkId(1);
const DOWN: LinkId = LinkId(2);

fn role(hop: usize, hops: usize) -> HopRole {
    if hop == hops { HopRole::Exit } else { HopRole::Mix }
}

fn node(hop: usize, hops: usize) -> NodeDescriptor {
    NodeDescriptor { not_before: 0, not_after: START_MS, ..descriptor(hop as u8, role(hop, hops)) }
}

fn signed(descriptor: NodeDescriptor, hop: usize) -> SignedDescriptor {
    descriptor.sign(&identity(hop as u8)).unwrap()
}

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
            descriptor.contacts[0].class = self.shape.class();
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
        let mut trust = UserTrust::new(self.view(), now);
        trust.link_up(DOWN, self.shape.control_content(Direction::Forward, 1), now);
        self.hops[0].trust.link_up(link, Peer::Entry, self.shape.control_content(Direction::Backward, 1), now);
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
            one.trust.tick(now, wall);
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

#[test]
fn chain_that_starts_for_the_first_time_has_a_bundle_at_once() {
    for (hops, class) in [(2, Class::S), (4, Class::L), (8, Class::S)] {
        let mut world = World::new(hops, class, (10, 3600), 0.0);
        world.add_user(0);
        let took = world.time_to_bundle(0, 10_000);
        assert!(took <= 700, "{hops} hops of class {class}: {took} ms");
        world.assert_nobody_signed_twice();
    }
}

#[test]
fn first_start_late_in_an_interval_does_not_wait_for_the_next() {
    let mut world = World::starting_at(10_000 - START_MS % 10_000 - 1500, 4, Class::L, (10, 3600), 0.0);
    world.add_user(0);
    let took = world.time_to_bundle(0, 10_000);
    assert!(took <= 700, "{took} ms");
    world.run(10_000);
    world.assert_nobody_signed_twice();
}

#[test]
fn every_interval_has_a_bundle_over_three_epochs() {
    for loss in [0.0, 0.05] {
        let mut world = World::new(4, Class::S, (1, 10), loss);
        world.add_user(0);
        world.run(35_000);
        let first = *world.users[0].had.first().unwrap();
        let missed: Vec<u64> = (first..first + 34).filter(|n| !world.users[0].had.contains(n)).collect();
        let allowed = if loss == 0.0 { 0 } else { 2 };
        assert!(missed.len() <= allowed, "loss {loss}: without a bundle in {missed:?} from {first}");
        world.assert_nobody_signed_twice();
    }
}

#[test]
fn restarted_hop_takes_part_in_the_next_interval_that_it_can() {
    let mut worst = 0;
    for hop in 1..=4 {
        for phase_ms in (0..10_000).step_by(1900) {
            let mut world = World::new(4, Class::L, (10, 3600), 0.0);
            if hop > 1 {
                world.add_user(0);
            }
            world.run(20_000 + phase_ms);
            let disk = world.hops[hop - 1].disk.clone();
            world.restart(hop, disk, 1000);
            if hop == 1 {
                world.add_user(0);
            }
            let start = world.now_ms;
            // The bundles that the user still has name keys that are gone.
            let has_new_keys = |world: &mut World| {
                let (now, wall) = (world.now(), world.wall(0));
                let Some(bundle) = world.users[0].trust.bundle(now, wall, now) else { return false };
                let named = bundle.records[hop - 1].clone();
                world.hops[hop - 1].trust.keyring().record(named.epoch).is_some_and(|own| own.hash() == named.hash())
            };
            while !has_new_keys(&mut world) {
                assert!(world.now_ms - start < 20_000, "hop {hop} at {phase_ms} ms");
                world.run(50);
            }
            worst = worst.max(world.now_ms - start + 1000);
            world.assert_nobody_signed_twice();
        }
    }
    assert!(worst <= 14_000, "{worst} ms");
}

#[test]
fn chain_recovers_when_all_hops_restart_without_disks() {
    let mut world = World::new(4, Class::L, (10, 3600), 0.0);
    world.run(23_000);
    for hop in 1..=4 {
        // No state next to a key is a restart, not a first start.
        world.restart(hop, HopState::default(), 5);
    }
    world.add_user(0);
    let took = world.time_to_bundle(0, 20_000);
    assert!(took <= 13_000, "{took} ms");
    world.assert_nobody_signed_twice();
}

#[test]
fn clock_that_steps_signs_no_interval_twice() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    for step_ms in [60_000, -60_000, 7000, -7000, 1500, -1500] {
        world.run(3000);
        world.hops[1].offset_ms += step_ms;
        world.run(3000);
    }
    world.run(3000);
    world.time_to_bundle(0, 1000);
    world.assert_nobody_signed_twice();
    assert!(world.events.iter().any(|(hop, event)| *hop == 2 && matches!(event, TrustEvent::ClockStops { .. })));
}

#[test]
fn hop_that_always_draws_keys_gives_nobody_keys_of_his_own() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    world.add_user(0);
    world.add_user(0);
    for _ in 0..40 {
        let disk = world.hops[1].disk.clone();
        world.restart(2, disk, 50);
        world.run(2000);
        let (now, wall) = (world.now(), world.wall(0));
        let hashes: Vec<_> =
            (0..2).map(|user| world.users[user].trust.bundle(now, wall, now).map(|b| b.hash())).collect();
        if let [Some(a), Some(b)] = hashes[..] {
            assert_eq!(a, b);
        }
    }
    world.assert_nobody_signed_twice();
}

#[test]
fn renewed_descriptor_reaches_everyone_in_band() {
    let mut world = World::new(4, Class::L, (1, 10), 0.05);
    world.add_user(0);
    world.run(3000);
    let renewed = NodeDescriptor { revision: 9, ..node(3, 4) };
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[2].trust.take_descriptor(3, signed(renewed, 3), now, wall).unwrap();
    world.run(4000);
    for hop in 1..=4 {
        assert_eq!(world.hops[hop - 1].trust.view().descriptor(3).unwrap().revision, 9, "at hop {hop}");
    }
    world.time_to_bundle(0, 1000);
    assert_eq!(world.users[0].trust.session().descriptor(3).unwrap().revision, 9);
    let (now, wall) = (world.now(), world.wall(0));
    assert_eq!(world.users[0].trust.bundle(now, wall, now).unwrap().records[2].revision, 9);
    world.run(12_000);
    assert_eq!(world.users[0].trust.durable().descriptor(3).unwrap().revision, 9, "also for contact, an epoch later");
    world.assert_nobody_signed_twice();
}

#[test]
fn descriptor_that_spreads_before_its_node_loads_it_is_adopted() {
    let mut world = World::new(4, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    let renewed = NodeDescriptor { revision: 9, ..node(3, 4) };
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[0].trust.take_descriptor(3, signed(renewed, 3), now, wall).unwrap();
    world.run(3000);
    world.time_to_bundle(0, 1000);
    let (now, wall) = (world.now(), world.wall(0));
    assert_eq!(world.users[0].trust.bundle(now, wall, now).unwrap().records[2].revision, 9);
}

#[test]
fn node_whose_keys_are_revoked_says_that_it_cannot_sign() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.run(2000);
    let can_sign = |world: &World, hop: usize| world.hops[hop - 1].trust.can_sign(world.wall(0));
    assert!(can_sign(&world, 2));
    // Its operator has revoked the keys, and the new ones are not here yet.
    let revoking = NodeDescriptor { revision: 9, floor: 9, signing: identity(77).public(), ..node(2, 3) };
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[0].trust.take_descriptor(2, signed(revoking, 2), now, wall).unwrap();
    world.run(2000);
    assert!(!can_sign(&world, 2) && can_sign(&world, 1));
    let missing = (2, TrustEvent::OwnKeysMissing { revision: 9 });
    assert_eq!(world.events.iter().filter(|event| **event == missing).count(), 1);
}

#[test]
fn idle_neighbours_fall_silent() {
    let mut world = World::new(4, Class::L, (600, 6000), 0.0);
    world.run(5000);
    let before = world.sent;
    world.run(60_000);
    assert!(world.sent - before <= 10, "{} cells in a minute", world.sent - before);
}

#[test]
fn descriptor_that_no_bundle_names_is_no_contact() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    // Mix 1 gives this user a descriptor of its own that nobody else has, to recognise him by it later.
    let only_his = signed(NodeDescriptor { revision: 99, ..node(1, 3) }, 1);
    let (now, wall) = (world.now(), world.wall(0));
    for mut part in cut(ItemKind::Descriptor(1), only_his.bytes(), world.shape.payload()) {
        part.resize(world.shape.payload(), 0);
        world.users[0].trust.take(now, wall, DOWN, &part).unwrap();
    }
    world.run(5000);
    assert!(world.users[0].had.len() > 5, "bundles come on");
    assert_eq!(contact_revisions(&world), [1, 1, 1]);
}

/// The newest revision of each hop that the first entry uses for contact and has on disk.
fn contact_revisions(world: &World) -> Vec<u64> {
    let durable = world.users[0].trust.durable();
    let revisions: Vec<u64> = (1..=world.hops.len()).map(|hop| durable.descriptor(hop).unwrap().revision).collect();
    let state = State::of(durable, HopState::default());
    let on_disk = |hop: usize| {
        let all = state.descriptors.iter().filter(|one| one.identity == world.terms.identities[hop - 1]);
        all.map(|one| one.revision).max().unwrap()
    };
    assert!(revisions.iter().zip(1..).all(|(revision, hop)| *revision == on_disk(hop)));
    revisions
}

/// Hop 1 has another descriptor, which revokes all before it.
fn renew_mix_1(world: &mut World, revision: u64) {
    let renewed = signed(NodeDescriptor { revision, floor: revision, ..node(1, world.hops.len()) }, 1);
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[0].trust.take_descriptor(1, renewed, now, wall).unwrap();
}

#[test]
fn descriptor_is_a_contact_after_bundles_an_epoch_apart() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    renew_mix_1(&mut world, 9);
    world.run(2000);
    assert_eq!(world.users[0].trust.session().descriptor(1).unwrap().revision, 9);
    // It certifies at once, and neither it nor its floor counts for anything else.
    world.run(7000);
    assert_eq!((contact_revisions(&world), world.users[0].trust.durable().floor(1)), (vec![1, 1, 1], 0));
    world.run(3000);
    assert_eq!((contact_revisions(&world), world.users[0].trust.durable().floor(1)), (vec![9, 1, 1], 9));
    world.time_to_bundle(0, 1000);
}

#[test]
fn descriptor_replaced_within_an_epoch_is_no_contact() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    // Whoever joins within some seconds would have a contact of his own.
    for revision in 10..15 {
        renew_mix_1(&mut world, revision);
        world.run(6000);
        assert_eq!(world.users[0].trust.session().descriptor(1).unwrap().revision, revision);
        assert_eq!((contact_revisions(&world), world.users[0].trust.durable().floor(1)), (vec![1, 1, 1], 0));
    }
    world.run(7000);
    assert_eq!(contact_revisions(&world), [14, 1, 1]);
}

#[test]
fn interval_without_a_bundle_lets_descriptors_wait_again() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    renew_mix_1(&mut world, 9);
    world.run(4000);
    // Mix 1 withholds bundles from this user alone.
    world.users[0].trust.link_down(DOWN);
    world.run(2100);
    let (now, content) = (world.now(), world.shape.control_content(Direction::Forward, 1));
    world.users[0].trust.link_up(DOWN, content, now);
    // More than an epoch after the first bundle that named it.
    world.run(7900);
    assert_eq!(contact_revisions(&world), [1, 1, 1]);
    world.run(5000);
    assert_eq!(contact_revisions(&world), [9, 1, 1]);
}

#[test]
fn descriptor_below_the_newest_contact_is_no_contact() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(2000);
    let from_a_file = signed(NodeDescriptor { revision: 20, ..node(1, 3) }, 1);
    let wall = world.wall(0);
    world.users[0].trust.take_descriptor(1, from_a_file, wall).unwrap();
    // It would be the first one that is tried.
    renew_mix_1(&mut world, 9);
    world.run(15_000);
    assert_eq!(world.users[0].trust.session().descriptor(1).unwrap().revision, 9);
    let durable = world.users[0].trust.durable();
    let revisions: Vec<u64> = durable.descriptors(1).iter().map(|one| one.revision).collect();
    assert_eq!((revisions, durable.floor(1)), (vec![20, 1], 0));
}

#[test]
fn bundle_that_files_revoke_is_not_used_nor_asked_for_again() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    (0..2).for_each(|_| world.add_user(0));
    let revoking = signed(NodeDescriptor { revision: 9, floor: 9, ..node(3, 3) }, 3);
    let wall = world.wall(0);
    world.users[0].trust.take_descriptor(3, revoking, wall).unwrap();
    world.run(2000);
    let (now, wall) = (world.now(), world.wall(0));
    let [user, other] = [0, 1].map(|user| {
        let trust = &mut world.users[user].trust;
        let is_usable = trust.bundle(now, wall, now).is_some();
        trust.tick(now, wall);
        (is_usable, trust.steps().len())
    });
    assert_eq!((user, other), ((false, 0), (true, 0)), "nobody asks any more");
}

/// The newest descriptor of a hop as each hop has it.
fn newest(world: &World, of: usize) -> Vec<[u8; 32]> {
    world.hops.iter().map(|hop| *hop.trust.view().descriptor(of).unwrap().hash()).collect()
}

#[test]
fn of_two_descriptors_with_one_revision_one_spreads() {
    for not_after in [START_MS - 1, START_MS - 2, START_MS - 3, START_MS - 4] {
        let mut world = World::new(4, Class::L, (1, 10), 0.05);
        world.add_user(0);
        world.run(2000);
        let first = newest(&world, 3)[0];
        let second = signed(NodeDescriptor { not_after, ..node(3, 4) }, 3);
        let counts = first.max(*second.hash());
        let (now, wall) = (world.now(), world.wall(0));
        world.hops[0].trust.take_descriptor(3, second, now, wall).unwrap();
        world.run(5000);
        assert_eq!(newest(&world, 3), [counts; 4]);
        world.time_to_bundle(0, 1000);
        let reported = |hop: usize| {
            let twice = |event: &&(usize, TrustEvent)| matches!(event, (at, TrustEvent::AmbiguousRevision { hop: 3, revision: 1 }) if *at == hop);
            world.events.iter().filter(twice).count()
        };
        assert_eq!(reported(1), 1);
        assert!((2..=4).all(|hop| reported(hop) == usize::from(counts != first)));
    }
}

/// Two records of one hop, epoch and draw that an ask does not tell apart.
fn records_alike(view: &View, hop: usize, epoch: u64, draw: u64) -> [SignedRecord; 2] {
    let certificate = view.descriptor(hop).unwrap();
    let mut seen = BTreeMap::new();
    for number in 1u64.. {
        let mut key = [9; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        let record = EpochRecord {
            identity: certificate.identity,
            descriptor: *certificate.hash(),
            revision: certificate.revision,
            epoch,
            draw,
            setup: SetupPublic::new(key, None).unwrap(),
        };
        let record = record.sign(view.chain(), &identity(hop as u8 + 100));
        let tag: [u8; 4] = *record.hash().first_chunk().unwrap();
        if let Some(other) = seen.insert(tag, record.clone()) {
            return [other, record];
        }
    }
    unreachable!()
}

#[test]
fn hops_agree_on_records_that_asks_do_not_tell_apart() {
    let mut world = World::new(3, Class::L, (1, 60), 0.0);
    // Hop 3 is corrupt: it tells hop 1 something other than hop 2, and signs nothing.
    world.hops[1].trust.link_down(DOWN);
    world.hops[2].trust.link_down(UP);
    world.run(50);
    let view = world.hops[0].trust.view();
    let epoch = view.times().epoch_of(view.times().interval_at(world.wall(0)));
    let alike = records_alike(view, 3, epoch, START_MS / 1000 + 9);
    let (now, wall) = (world.now(), world.wall(0));
    for (hop, record) in [1, 2].into_iter().zip(&alike) {
        let len = world.shape.control_content(Direction::Forward, 2);
        let trust = &mut world.hops[hop - 1].trust;
        for mut part in cut(ItemKind::Record(3), record.travelling(), len) {
            part.resize(len, 0);
            // At hop 2 as if it came from hop 1: its link to hop 3 is down.
            trust.take(now, wall, if hop == 1 { DOWN } else { UP }, &part).unwrap();
        }
        assert_eq!(trust.view().record(3, epoch).unwrap().hash(), record.hash());
    }
    world.run(3000);
    let held = [0, 1].map(|at| *world.hops[at].trust.view().record(3, epoch).unwrap().hash());
    assert_eq!(held, [*alike[0].hash().max(alike[1].hash()); 2]);
    world.assert_nobody_signed_twice();
}

#[test]
fn node_with_old_keys_waits_for_the_next_interval() {
    for (ago_s, waits) in [(3600, true), (3599, false)] {
        let mut world = World::new(3, Class::L, (10, 3600), 0.0);
        let made = START_MS / 1000 - ago_s;
        (1..=3).for_each(|hop| world.restart(hop, HopState { made, ..HopState::default() }, 0));
        world.add_user(0);
        let running = world.wall(0) / 10_000;
        world.run(2000);
        assert_eq!(world.signed.keys().all(|(_, interval)| *interval > running), waits, "{ago_s} s");
        world.run(10_000);
        assert!(world.users[0].had.contains(&(running + 1)));
    }
}

/// What an entry sends on a new link on which these items come, one every 300 ms.
fn shown_on_a_new_link(world: &World, trust: &mut UserTrust, items: &[(ItemKind, Vec<u8>)]) -> Vec<Vec<u8>> {
    let (mut now, mut wall) = (world.now(), world.wall(0));
    let new = LinkId(77);
    trust.link_down(DOWN);
    trust.steps();
    trust.link_up(new, world.shape.control_content(Direction::Forward, 1), now);
    let mut shown = Vec::new();
    for (kind, item) in items {
        for mut part in cut(*kind, item, world.shape.payload()) {
            part.resize(world.shape.payload(), 0);
            let _ = trust.take(now, wall, new, &part);
        }
        trust.bundle(now, wall, now);
        trust.tick(now, wall);
        shown.extend(trust.steps().into_iter().filter_map(|step| match step {
            Step::Send(link, content) => Some((link, content)),
            _ => None,
        }));
        (now, wall) = (now + Duration::from_millis(300), wall + 300);
    }
    assert!(shown.iter().all(|(link, content)| *link == new && content[0] == ASK));
    shown.into_iter().map(|(_, content)| content).collect()
}

/// Lets an entry have items on the link that it has.
fn give(world: &mut World, user: usize, items: &[(ItemKind, Vec<u8>)]) {
    let (now, wall) = (world.now(), world.wall(0));
    for (kind, item) in items {
        for mut part in cut(*kind, item, world.shape.payload()) {
            part.resize(world.shape.payload(), 0);
            let _ = world.users[user].trust.take(now, wall, DOWN, &part);
        }
    }
}

fn item(descriptor: &SignedDescriptor, hop: u8) -> (ItemKind, Vec<u8>) {
    (ItemKind::Descriptor(hop), descriptor.bytes().to_vec())
}

/// Entries with different pasts get the same items on a new link, and show the same there.
fn assert_shown_alike(world: &World, mut trusts: Vec<UserTrust>, items: &[(ItemKind, Vec<u8>)]) -> Vec<Ask> {
    let mut all: Vec<_> = trusts.iter_mut().map(|trust| shown_on_a_new_link(world, trust, items)).collect();
    let first = all.pop().unwrap();
    assert!(first.len() > 1 && all.iter().all(|other| *other == first));
    first.iter().map(|ask| Ask::read(ask, world.hops.len()).unwrap()).collect()
}

#[test]
fn entry_shows_on_a_link_only_what_came_on_it() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    // One has been on another link, one has a newer descriptor from a file, one starts.
    (0..2).for_each(|_| world.add_user(0));
    world.run(2000);
    let newer = signed(NodeDescriptor { revision: 9, ..node(2, 3) }, 2);
    let wall = world.wall(0);
    world.users[1].trust.take_descriptor(2, newer, wall).unwrap();
    world.add_user(0);
    let view = world.hops[0].trust.view();
    let bundle = view.complete(view.times().interval_at(wall)).unwrap().clone();
    let mut items = vec![(ItemKind::Clock, wall.to_be_bytes().to_vec())];
    // Altered, and so refused; then as everyone has them.
    let mut altered = item(&bundle.descriptors[1], 2);
    *altered.1.last_mut().unwrap() ^= 1;
    items.push(altered);
    items.extend((1..).zip(&bundle.descriptors).map(|(hop, descriptor)| item(descriptor, hop)));
    let record = |(hop, record): (u8, &SignedRecord)| (ItemKind::Record(hop), record.travelling().to_vec());
    items.extend((1..).zip(bundle.records.iter().map(|record| &**record)).map(record));
    let mut some = bundle.signatures.clone();
    some.signatures[2] = None;
    items.push((ItemKind::Signatures, some.to_bytes()));
    items.push((ItemKind::Signatures, bundle.signatures.to_bytes()));

    let trusts = std::mem::take(&mut world.users).into_iter().map(|user| user.trust).collect();
    let asks = assert_shown_alike(&world, trusts, &items);
    assert!(asks[0].held.iter().all(|held| *held == Held::default()) && asks[0].signatures == 0);
    let last = asks.last().unwrap();
    assert!(last.held.iter().all(|held| held.revision == 1 && held.draw > 0) && last.signatures == 0b011);
    assert!(asks.iter().all(|ask| ask.clock_ms == 0));
}

#[test]
fn entry_does_not_show_which_descriptors_it_has() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    (0..3).for_each(|_| world.add_user(0));
    world.run(2000);
    // A label of the first entry: it has it for contact. The second one has it from its link.
    let label = signed(NodeDescriptor { revision: 9, ..node(1, 3) }, 1);
    let wall = world.wall(0);
    world.users[0].trust.take_descriptor(1, label.clone(), wall).unwrap();
    give(&mut world, 1, &[item(&label, 1)]);
    let view = world.hops[0].trust.view();
    let (chain, epoch) = (*view.chain(), view.times().epoch_of(view.times().interval_at(wall)));
    let record = EpochRecord {
        identity: label.identity,
        descriptor: *label.hash(),
        revision: 9,
        epoch,
        draw: wall / 1000 + 50,
        setup: SetupPublic::new([9; 32], None).unwrap(),
    };
    let record = record.sign(&chain, &identity(101));
    // Mix 1 sends a record under it, and not the descriptor.
    let probe = (ItemKind::Record(1), record.travelling().to_vec());
    let trusts = std::mem::take(&mut world.users).into_iter().map(|user| user.trust).collect();
    let asks = assert_shown_alike(&world, trusts, &[probe.clone(), probe]);
    assert!(asks.iter().all(|ask| ask.held[0] == Held::default()));
}

#[test]
fn items_of_one_link_use_up_no_share_of_the_next() {
    let mut world = World::new(3, Class::L, (10, 3600), 0.0);
    (0..2).for_each(|_| world.add_user(0));
    world.run(2000);
    let at = |revision| item(&signed(NodeDescriptor { revision, ..node(1, 3) }, 1), 1);
    // As many new descriptors as there may be in an epoch.
    give(&mut world, 0, &(10..20).map(at).collect::<Vec<_>>());
    let trusts = std::mem::take(&mut world.users).into_iter().map(|user| user.trust).collect();
    let asks = assert_shown_alike(&world, trusts, &[at(30), at(31)]);
    assert_eq!(asks[1].held[0].revision, 31);
}

/// Cells that each link gets in three seconds from Mix 1, whom `GREEDY` entries ask all the time. The last link, an
/// honest one, comes when the others have used up what there is, and asks four times a second.
fn served(class: Class, greedy: impl Fn(&View, u64) -> Ask) -> (BTreeMap<LinkId, usize>, LinkId) {
    const GREEDY: u32 = 200;
    let mut world = World::new(4, class, (10, 3600), 0.0);
    world.run(2000);
    let (start, wall) = (world.now(), world.wall(0));
    let content = world.shape.control_content(Direction::Backward, 1);
    let trust = &mut world.hops[0].trust;
    let interval = trust.view().times().interval_at(wall);
    assert!(trust.view().complete(interval).is_some());
    let greedy = greedy(trust.view(), interval).to_bytes();
    let whole = blank_ask(interval).to_bytes();
    let honest = LinkId(100 + GREEDY);
    (0..=GREEDY).for_each(|number| trust.link_up(LinkId(100 + number), Peer::Entry, content, start));
    let mut sent: BTreeMap<LinkId, usize> = BTreeMap::new();
    for ms in (0..3000).step_by(20) {
        let now = start + Duration::from_millis(ms);
        for number in 0..GREEDY {
            let _ = trust.take(now, wall + ms, LinkId(100 + number), &greedy);
        }
        if ms >= 1500 && ms % 250 == 0 {
            let _ = trust.take(now, wall + ms, honest, &whole);
        }
        trust.tick(&mut world.rng, now, wall + ms);
        let mut steps = VecDeque::from(trust.steps());
        while let Some(step) = steps.pop_front() {
            match step {
                Step::Send(link, _) => *sent.entry(link).or_default() += 1,
                Step::Save(number) => {
                    trust.saved(number, now, wall + ms);
                    steps.extend(trust.steps());
                }
                Step::Event(_) => {}
            }
        }
    }
    (sent, honest)
}

fn blank_ask(interval: u64) -> Ask {
    Ask { answer: true, clock_ms: 0, interval, hash: [0; 8], signatures: 0, held: vec![Held::default(); 4] }
}

#[test]
fn entries_that_always_ask_leave_answers_to_others() {
    // All of a bundle, or all but one record of it, which is a short answer.
    let short = |view: &View, interval: u64| {
        let mut held = view.held(interval);
        held[3] = Held::default();
        Ask { held, ..blank_ask(interval) }
    };
    for class in [Class::S, Class::L] {
        for (sent, honest) in [served(class, |_, interval| blank_ask(interval)), served(class, short)] {
            let whole = sent.get(&honest).copied().unwrap_or(0);
            assert!(
                whole >= if class == Class::S { 12 } else { 3 },
                "class {class}: all of a bundle, not {whole} cells"
            );
            assert!(sent.values().all(|cells| *cells <= 100 + 3 * 100));
            assert!(sent.values().sum::<usize>() <= 5000 + 3 * 5000);
        }
    }
}

/// Hop 1 sends hop 2 twenty asks every 5 ms in addition to its own, for ten seconds.
fn asked_by_a_greedy_hop(class: Class, asks: impl Fn(&View, u64, usize) -> Ask) {
    let mut world = World::new(4, class, (1, 10), 0.0);
    world.run(3000);
    world.sent_on.clear();
    let (start_ms, mut late) = (world.now_ms, Vec::new());
    while world.now_ms < start_ms + 10_000 {
        let (now, wall) = (world.now(), world.wall(0));
        let interval = wall / 1000;
        for number in 0..20 {
            let ask = asks(world.hops[1].trust.view(), interval, number).to_bytes();
            let _ = world.hops[1].trust.take(now, wall, UP, &ask);
        }
        if wall % 1000 == 0 && world.hops[2].trust.view().complete(interval).is_none() {
            late.push(interval);
        }
        world.run(STEP_MS);
    }
    let sent = world.sent_on[&(2, UP)];
    assert!(sent <= 400 + 10 * 400, "class {class}: {sent} cells to the greedy hop");
    assert!(late.is_empty(), "class {class}: hop 3 had no bundle when {late:?} began");
    let neighbours = [(2, DOWN), (3, UP)].map(|link| world.sent_on[&link]);
    assert!(neighbours.iter().all(|sent| *sent < 1000), "class {class}: {neighbours:?} cells between hops 2 and 3");
}

#[test]
fn greedy_hop_gets_its_share_and_others_their_bundles() {
    for class in [Class::S, Class::L] {
        asked_by_a_greedy_hop(class, |_, interval, _| blank_ask(interval));
        asked_by_a_greedy_hop(class, |view, interval, number| {
            let held = if number % 2 == 0 { vec![Held::default(); 4] } else { view.held(interval) };
            Ask { held, ..blank_ask(interval + number as u64 % 3) }
        });
    }
}

#[test]
fn item_is_not_sent_again_because_an_ask_does_not_show_it() {
    let mut world = World::new(3, Class::L, (600, 6000), 0.0);
    world.run(5000);
    let before = world.sent_on[&(2, UP)];
    let (view, wall) = (world.hops[1].trust.view(), world.wall(0));
    let interval = view.times().interval_at(wall);
    let nothing = Ask { answer: false, held: vec![Held::default(); 3], ..blank_ask(interval) };
    let all = Ask { held: view.held(interval), ..nothing.clone() };
    let mut sent_in_100_ms = || {
        for _ in 0..10 {
            for ask in [&nothing, &all] {
                let (now, wall) = (world.now(), world.wall(0));
                world.hops[1].trust.take(now, wall, UP, &ask.to_bytes()).unwrap();
                world.run(STEP_MS);
            }
        }
        world.sent_on[&(2, UP)] - before
    };
    let once = sent_in_100_ms();
    assert!((1..=10).contains(&once), "descriptors, records and signatures, once: {once} cells");
    assert_eq!(sent_in_100_ms(), once);
}

/// The last interval that a hop has signed.
fn last_signed(world: &World, hop: usize) -> u64 {
    let of_hop = world.signed.keys().filter(|(of, _)| *of == hop);
    of_hop.map(|(_, interval)| *interval).max().expect("it has signed")
}

#[test]
fn hop_that_knows_no_neighbours_clock_signs_nothing() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.run(3000);
    [UP, DOWN].into_iter().for_each(|link| world.hops[1].trust.link_down(link));
    let before = last_signed(&world, 2);
    world.run(3000);
    assert_eq!(last_signed(&world, 2), before);
    (1..3).for_each(|hop| world.connect(hop));
    world.run(1500);
    assert!(last_signed(&world, 2) > before);

    // It was set twice before a neighbour could say its own, just before the next signature.
    world.run(1795 - (START_MS + world.now_ms) % 1000);
    let (now, before) = (world.now(), last_signed(&world, 2));
    (0..2).for_each(|_| world.hops[1].trust.clock_stepped(now));
    world.run(2 * STEP_MS);
    assert_eq!((last_signed(&world, 1), last_signed(&world, 2)), (before + 1, before));
    world.run(200);
    assert_eq!(last_signed(&world, 2), before + 1);
    world.assert_nobody_signed_twice();
}

#[test]
fn hop_asks_until_it_knows_a_neighbours_clock() {
    let mut world = World::new(3, Class::L, (600, 6000), 0.0);
    world.run(5000);
    let can_sign = |world: &World| world.hops[1].trust.can_sign(world.wall(0));
    assert!(can_sign(&world));
    // It has the bundle and has heard both neighbours, and its clock is set.
    let now = world.now();
    world.hops[1].trust.clock_stepped(now);
    world.loss = 1.0;
    world.run(1000);
    assert!(!can_sign(&world));
    world.loss = 0.0;
    world.run(1000);
    assert!(can_sign(&world));
}

#[test]
fn clock_that_was_ahead_at_the_start_does_not_lock_a_hop_out() {
    let mut world = World::new(3, Class::L, (1, 10), 0.0);
    world.add_user(0);
    world.run(3000);
    let disk = world.hops[1].disk.clone();
    world.hops[1].offset_ms = 86_400_000;
    world.restart(2, disk, 100);
    world.run(3000);
    assert!(!world.hops[1].trust.can_sign(world.wall(86_400_000)));
    world.hops[1].offset_ms = 0;
    world.run(3000);
    assert!(world.hops[1].trust.can_sign(world.wall(0)));
    world.time_to_bundle(0, 2000);
    world.assert_nobody_signed_twice();
}

/// Somebody with the keys of hop 2 of three publishes other setup keys in its name.
fn publish_for_hop_2(world: &mut World, revision: u64, draw: u64) {
    let stolen = signed(NodeDescriptor { revision, ..node(2, 3) }, 2);
    let (now, wall) = (world.now(), world.wall(0));
    let epoch =
        world.users[0].trust.session().times().epoch_of(world.users[0].trust.session().times().interval_at(wall));
    let record = EpochRecord {
        identity: stolen.identity,
        descriptor: *stolen.hash(),
        revision,
        epoch,
        draw,
        setup: SetupKey::generate(Suite::X25519, Secret::new([9; 32])).public(),
    };
    let record = record.sign(world.users[0].trust.session().chain(), &identity(102));
    let _ = world.hops[0].trust.take_descriptor(2, stolen, now, wall);
    let len = world.shape.control_content(Direction::Backward, 2);
    for mut part in cut(ItemKind::Record(2), record.travelling(), len) {
        part.resize(len, 0);
        world.hops[0].trust.take(now, wall, DOWN, &part).unwrap();
    }
}

#[test]
fn records_of_a_thief_do_not_make_a_hop_publish_without_end() {
    for (revision, draw) in [(1, NUMBER_END - 1), (9, 5)] {
        let mut world = World::new(3, Class::L, (1, 10), 0.0);
        world.add_user(0);
        world.run(3000);
        publish_for_hop_2(&mut world, revision, draw);
        let before = world.saves;
        world.run(2000);
        assert!(world.saves - before < 30, "{} states written in 2 s", world.saves - before);
        // In the next epoch but one the hop's own records are the only ones again.
        world.run(20_000);
        world.time_to_bundle(0, 5000);
        world.assert_nobody_signed_twice();
        assert!(world.hops[1].disk.last_draw < NUMBER_END / 2);
    }
}

#[test]
fn renewed_descriptor_ends_the_draws_of_a_thief() {
    let mut world = World::new(3, Class::L, (1, 3600), 0.0);
    world.add_user(0);
    world.run(3000);
    publish_for_hop_2(&mut world, 1, NUMBER_END / 2);
    world.run(2000);
    // Its own record has a draw by its clock again, far below, and counts by its revision.
    let renewed = signed(NodeDescriptor { revision: 9, ..node(2, 3) }, 2);
    let (now, wall) = (world.now(), world.wall(0));
    world.hops[1].trust.take_descriptor(2, renewed, now, wall).unwrap();
    world.run(3000);
    world.time_to_bundle(0, 1000);
    let (now, wall) = (world.now(), world.wall(0));
    assert_eq!(world.users[0].trust.bundle(now, wall, now).unwrap().records[1].revision, 9);
    world.assert_nobody_signed_twice();
}
