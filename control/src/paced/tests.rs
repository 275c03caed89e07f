//! Entries, three mixes and the exit of one class in memory, round by round.

use std::collections::{HashMap, HashSet};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class, Direction, Shape};
use wire::gcm::{encipher_batch, open_batch, seal_batch};
use wire::ids::{ChannelKeys, LinkId};
use wire::kdf::Secret;
use wire::paced::{Call, EntryKeys, ExitKeys, HopKeys, Inner, MeetingSecret, PacedClass, PacedTerms, Phase, RoundSub};
use wire::setup::{self, BadAck, HopPublic, Info, Opened, SetupKey, Suite};

use super::entry_alarm::EntryAlarm;
use super::*;
use crate::counters::{Counters, Refusal};
use crate::trust::keyring::NotOpened;

const HOPS: usize = 4;
const BATCH: u64 = 80_000_000;
const FORWARD: Direction = Direction::Forward;
const BACKWARD: Direction = Direction::Backward;

/// The least rounds for three mixes, without loops.
pub(super) fn terms() -> PacedTerms {
    PacedTerms {
        rounds: 512,
        n_min: 1,
        seats: 6,
        loops: 0,
        ..PacedTerms::new(PacedClass::new(Class::S), "voice", HOPS)
    }
}

fn config(terms: PacedTerms) -> PacedConfig {
    let hops = terms.steps_ms.len() + 1;
    PacedConfig::new([0xcc; 32], terms, (hops, Suite::Hybrid, 10))
}

/// The setup keys of a hop, and the setups that it has opened.
struct Keys {
    key: SetupKey,
    hash: [u8; 32],
    seen: HashSet<[u8; 16]>,
}

impl Keys {
    fn new(position: u8) -> Keys {
        let key = SetupKey::generate(Suite::Hybrid, Secret::new([position; 32]));
        Keys { key, hash: [position; 32], seen: HashSet::new() }
    }

    fn public(&self) -> HopPublic {
        HopPublic { setup: self.key.public(), descriptor_hash: self.hash }
    }

    fn open(&mut self, position: usize, shape: Shape, info: Info, onion: &[u8]) -> Result<Opened, NotOpened> {
        let opened = setup::open(shape, position, &[self.hash], &self.key, info, onion).map_err(NotOpened::Invalid)?;
        if self.seen.insert(opened.tag) { Ok(opened) } else { Err(NotOpened::Replayed) }
    }
}

struct Hop {
    machine: PacedHop,
    rng: ChaCha20Rng,
    counters: Counters,
    keys: Keys,
    installs: Vec<Install>,
    outcomes: Vec<Outcome>,
}

impl Hop {
    fn shard(&mut self, position: usize, cell: ShardCell<'_>) -> Result<(), Refusal> {
        let open = |shape, info: Info, onion: &[u8]| self.keys.open(position, shape, info, onion);
        let done = self.machine.shard(&mut self.rng, &mut self.counters, cell, open);
        done.map(|install| self.installs.extend(install)).inspect_err(|why| self.counters.refuse(*why))
    }

    fn advance(&mut self, direction: Direction, round: u64) {
        self.outcomes.extend(self.machine.advance(&mut self.rng, &mut self.counters, direction, round));
    }
}

struct User {
    machine: PacedEntry,
    rng: ChaCha20Rng,
    counters: Counters,
    outcomes: Vec<Outcome>,
    is_ready: bool,
}

/// A setup or ack cell on a link.
#[derive(Clone, Debug, PartialEq)]
struct Sent {
    round: u64,
    /// From 1.
    link: usize,
    /// On link 1.
    user: Option<usize>,
    kind: CellKind,
    channel: u32,
    sub: u8,
    content: Vec<u8>,
}

type Lose = Box<dyn FnMut(&Sent) -> bool>;

struct World {
    config: PacedConfig,
    users: Vec<User>,
    hops: Vec<Hop>,
    round: u64,
    sent: Vec<Sent>,
    lose: Lose,
}

impl World {
    /// `users` and all hops, which start before batch [`BATCH`].
    fn new(terms: PacedTerms, users: usize) -> World {
        let config = config(terms);
        let round = config.times.first(BATCH) - 20;
        let rng = |node: usize| ChaCha20Rng::seed_from_u64(node as u64);
        let hop = |position: usize| Hop {
            machine: PacedHop::new(config.clone(), position, [round; 2]),
            rng: rng(position),
            counters: Counters::default(),
            keys: Keys::new(position as u8),
            installs: Vec::new(),
            outcomes: Vec::new(),
        };
        let user = |user: usize| {
            let mut rng = rng(100 + user);
            let machine = PacedEntry::new(config.clone(), &mut rng, round);
            User { machine, rng, counters: Counters::default(), outcomes: Vec::new(), is_ready: true }
        };
        let (hops, users) = ((1..=config.shape.hops()).map(hop).collect(), (0..users).map(user).collect());
        let mut world = World { config, users, hops, round, sent: Vec::new(), lose: Box::new(|_| false) };
        world.publish(BATCH + 1);
        world
    }

    fn losing(mut self, lose: impl FnMut(&Sent) -> bool + 'static) -> World {
        self.lose = Box::new(lose);
        self
    }

    /// Everybody gets the bundle for the channels of a batch.
    fn publish(&mut self, batch: u64) {
        let publics: Vec<HopPublic> = self.hops.iter().map(|hop| hop.keys.public()).collect();
        let interval = self.config.interval_of(batch);
        self.users.iter_mut().for_each(|user| user.machine.bundle(interval, publics.clone()));
        self.hops.iter_mut().for_each(|hop| hop.machine.bundle(interval, publics.clone()));
    }

    /// Records a cell. None if it is lost.
    fn carry(&mut self, link: usize, user: Option<usize>, cell: Placed<'_>) -> Option<Sent> {
        let Placed { kind, channel, sub, content, .. } = cell;
        let sent = Sent { round: self.round, link, user, kind, channel, sub, content: content.to_vec() };
        self.sent.push(sent.clone());
        (!(self.lose)(&sent)).then_some(sent)
    }

    /// Hands in cells. What is refused is counted.
    fn deliver(&mut self, cells: Vec<Sent>) {
        for Sent { link, user, kind, channel, sub, content, .. } in cells {
            match (kind, user) {
                (CellKind::Ack, Some(user)) => {
                    let User { machine, counters, outcomes, .. } = &mut self.users[user];
                    match machine.ack(counters, (channel, sub), &content) {
                        Ok(outcome) => outcomes.extend(outcome),
                        Err(why) => counters.refuse(why),
                    }
                }
                (CellKind::Ack, None) => {
                    let Hop { machine, counters, .. } = &mut self.hops[link - 2];
                    machine.ack(counters, (channel, sub), &content).unwrap_or_else(|why| counters.refuse(why));
                }
                (_, user) => {
                    let from = LinkId(user.map_or(1000, |user| user as u32));
                    let cell = ShardCell { link: from, home: None, channel, sub, content: &content };
                    self.hops[link - 1].shard(link, cell).unwrap_or_default();
                }
            }
        }
    }

    /// The cells of a hop for this round that are not lost.
    fn release(&mut self, position: usize, direction: Direction) -> Vec<Sent> {
        let round = self.round;
        self.hops[position - 1].advance(direction, round);
        let placed: Vec<_> = self.hops[position - 1].machine.cells(direction, round);
        let cells: Vec<_> =
            placed.iter().map(|cell| (cell.link, cell.channel, cell.sub, cell.content.to_vec())).collect();
        let (link, kind) = match direction {
            FORWARD => (position + 1, CellKind::Setup),
            BACKWARD => (position, CellKind::Ack),
        };
        let carried = cells.iter().filter_map(|(to, channel, sub, content)| {
            let user = to.filter(|_| link == 1).map(|to| to.0 as usize);
            self.carry(link, user, Placed { link: *to, kind, channel: *channel, sub: *sub, content })
        });
        carried.collect()
    }

    fn step(&mut self) {
        let round = self.round;
        for user in 0..self.users.len() {
            let User { machine, rng, counters, outcomes, is_ready } = &mut self.users[user];
            outcomes.extend(machine.advance(rng, counters, round, *is_ready));
            let cell = machine.cell(round).map(|cell| (cell.channel, cell.sub, cell.content.to_vec()));
            if let Some((channel, sub, content)) = cell {
                let placed = Placed { link: None, kind: CellKind::Setup, channel, sub, content: &content };
                let carried = self.carry(1, Some(user), placed);
                self.deliver(carried.into_iter().collect());
            }
        }
        for position in 1..=self.hops.len() {
            let cells = self.release(position, FORWARD);
            self.deliver(cells);
        }
        for position in (1..=self.hops.len()).rev() {
            let cells = self.release(position, BACKWARD);
            self.deliver(cells);
        }
        self.round += 1;
    }

    /// Until this round is over.
    fn run_to(&mut self, round: u64) {
        while self.round <= round {
            self.step();
        }
    }

    /// Until the first round of this batch is over.
    fn run_to_batch(&mut self, batch: u64) {
        self.run_to(self.config.times.first(batch));
    }

    /// Cells of each round and link.
    fn counts(&self) -> HashMap<(u64, usize, CellKind), usize> {
        let mut counts = HashMap::new();
        self.sent.iter().for_each(|cell| *counts.entry((cell.round, cell.link, cell.kind)).or_default() += 1);
        counts
    }

    fn refused(&self, position: usize, why: Refusal) -> u64 {
        self.hops[position - 1].counters.refused(why)
    }

    /// The channels of a user's setup at all hops, Mix 1 first. Empty from where it was not accepted.
    fn path(&self, user: usize, channel: u32) -> Vec<&Install> {
        self.path_behind(0, (LinkId(user as u32), channel))
    }

    /// The channels of a setup at the hops behind one, by its link and number there.
    fn path_behind(&self, position: usize, up: (LinkId, u32)) -> Vec<&Install> {
        let (mut path, mut up) = (Vec::new(), Some(up));
        for hop in &self.hops[position..] {
            let Some(install) = hop.installs.iter().find(|install| Some(install.up) == up) else { break };
            up = install.down.map(|down| (LinkId(1000), down));
            path.push(install);
        }
        path
    }
}

fn refusals(counters: &Counters) -> Vec<(&'static str, u64)> {
    counters.refusals().filter(|(_, count)| *count > 0).collect()
}

fn is_ready(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Ready { .. })
}

fn why(outcomes: &[Outcome]) -> Option<Failure> {
    match outcomes {
        [Outcome::Failed { why, .. }] => Some(*why),
        _ => None,
    }
}

/// True if a body that the entry seals opens at the exit of this path, and the exit's opens at the entry.
fn keys_fit(keys: &EntryKeys, path: &[&Install], round: u64) -> bool {
    let place = RoundSub { round, sub: 0 };
    let secrets = |install: &Install| match &*install.keys {
        ChannelKeys::Hop { forward, backward } => (forward.clone(), backward.clone()),
        ChannelKeys::Entry(_) => panic!("the keys of a hop"),
    };
    let (exit, mixes) = path.split_last().unwrap();
    let (forward, backward) = secrets(exit);
    let exit = ExitKeys::new(&forward, &backward);
    let layer = |mix: &&Install, direction, body: &mut [u8]| {
        let (forward, backward) = secrets(mix);
        encipher_batch(&mut [HopKeys::new(&forward, &backward).job(direction, place, body)]);
    };

    let mut there = vec![5; 224];
    keys.seal_data(place, &mut there);
    mixes.iter().for_each(|mix| layer(mix, FORWARD, &mut there));
    let mut jobs = [exit.data_job(FORWARD, place, &mut there)];
    open_batch(&mut jobs);
    let is_open = jobs[0].ok;

    let mut back = vec![6; 224];
    seal_batch(&mut [exit.data_job(BACKWARD, place, &mut back)]);
    mixes.iter().rev().for_each(|mix| layer(mix, BACKWARD, &mut back));
    let answer = keys.open(None, place, &mut back);
    is_open && there[..208] == [5; 208] && answer == Some(Inner::Data(&[6; 208]))
}

#[test]
fn all_setups_of_a_batch_come_through_and_keys_fit() {
    let mut world = World::new(terms(), 6);
    let secret = || Some(MeetingSecret::new([9; 32]));
    [1, 4].into_iter().for_each(|user| world.users[user].machine.meet(secret()));
    world.run_to_batch(BATCH + 1);
    let first = world.config.times.first(BATCH + 1);
    let mut tokens = Vec::new();
    for (at, user) in world.users.iter().enumerate() {
        let [Outcome::Ready { batch, channel, keys, call }] = &user.outcomes[..] else { panic!("user {at}") };
        assert_eq!((*batch, Some(*channel)), (BATCH + 1, user.machine.channel(BATCH + 1)));
        let path = world.path(at, *channel);
        assert!(path.iter().all(|install| install.batch == BATCH + 1) && path.len() == HOPS);
        assert!(keys_fit(keys, &path, first + 7), "user {at}");
        assert_eq!(call.is_some(), [1, 4].contains(&at));
        tokens.push(path[HOPS - 1].token.clone().unwrap());
        assert!(refusals(&user.counters).is_empty());
    }
    let token = secret().unwrap().meeting(&[0xcc; 32], terms().class, first).token;
    let of_meeting: Vec<usize> = (0..6).filter(|user| tokens[*user] == token).collect();
    assert_eq!(of_meeting, [1, 4]);
    assert_eq!(world.hops.iter().map(|hop| refusals(&hop.counters)).collect::<Vec<_>>(), vec![vec![]; HOPS]);
}

#[test]
fn ack_of_two_contents_comes_through_eight_hops() {
    let mut world = World::new(PacedTerms { rounds: 2048, steps_ms: vec![5; 7], ..terms() }, 3);
    world.run_to_batch(BATCH + 1);
    for (at, user) in world.users.iter().enumerate() {
        let [Outcome::Ready { channel, keys, .. }] = &user.outcomes[..] else { panic!("user {at}") };
        assert!(keys_fit(keys, &world.path(at, *channel), 7), "user {at}");
    }
    // On link 1 in turn, in all rounds that carry acks; between hops three cells for each content.
    let acks = |link| world.sent.iter().filter(move |cell| cell.kind == CellKind::Ack && cell.link == link);
    let subs: Vec<u8> = acks(1).filter(|cell| cell.user == Some(1)).map(|cell| cell.sub).collect();
    assert!(subs.len() == 93 && subs.iter().zip(0..).all(|(sub, at)| *sub == at % 2));
    assert!((2..=8).all(|link| acks(link).count() == 3 * 2 * 3));
}

#[test]
fn keys_of_one_user_do_not_fit_another() {
    let mut world = World::new(terms(), 2);
    world.run_to_batch(BATCH + 1);
    let paths = [0, 1].map(|user| world.path(user, world.users[user].machine.channel(BATCH + 1).unwrap()));
    let [Outcome::Ready { keys, .. }] = &world.users[0].outcomes[..] else { panic!("it is ready") };
    assert!(keys_fit(keys, &paths[0], 7) && !keys_fit(keys, &paths[1], 7));
}

#[test]
fn setups_survive_one_percent_loss_on_every_link() {
    const USERS: usize = 150;
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    let (mut cells, mut done, mut ready) = (0, 0, 0);
    let mut world =
        World::new(PacedTerms { seats: USERS as u16, ..terms() }, USERS).losing(move |_| rng.random_bool(0.01));
    for batch in BATCH + 1..=BATCH + 7 {
        world.publish(batch);
        world.run_to_batch(batch);
        let outcomes: Vec<Outcome> = world.users.iter_mut().flat_map(|user| user.outcomes.drain(..)).collect();
        done += outcomes.len();
        ready += outcomes.iter().filter(|outcome| is_ready(outcome)).count();
        cells += world.sent.drain(..).len();
        world.hops.iter_mut().for_each(|hop| hop.installs.clear());
    }
    assert_eq!(done, 7 * USERS);
    assert!(cells > 100_000 && 1000 * ready >= 999 * done, "{ready} of {done}");
}

#[test]
fn suppressed_ack_fails_one_entry_and_changes_no_count() {
    let mut world = World::new(terms(), 6);
    world.run_to_batch(BATCH + 1);
    let (victim, counts) = (world.path(2, world.users[2].machine.channel(BATCH + 1).unwrap())[1].down, world.counts());
    assert!(world.users.iter().all(|user| is_ready(&user.outcomes[0])));

    // The same once more, but the ack of user 2 does not arrive at Mix 2.
    let is_ack = move |cell: &Sent| cell.kind == CellKind::Ack && cell.link == 3 && Some(cell.channel) == victim;
    let mut world = World::new(terms(), 6).losing(is_ack);
    world.run_to_batch(BATCH + 1);
    assert!(world.sent.iter().any(is_ack));
    assert_eq!(world.counts(), counts);
    for (at, user) in world.users.iter().enumerate() {
        assert_eq!(is_ready(&user.outcomes[0]), at != 2, "user {at}");
    }
    // Mixes 1 and 2 have answered; what is under their layers is random.
    assert_eq!(why(&world.users[2].outcomes), Some(Failure::BadAck(BadAck::Confirm(3))));
    assert!(world.hops.iter().all(|hop| hop.installs.len() == 6), "its channel exists at all hops");
}

#[test]
fn lost_setup_leaves_the_cells_of_a_run_without_its_entry() {
    let run = |users: usize, lost: Option<usize>| {
        let mut world = World::new(terms(), users).losing(move |cell| cell.link == 1 && cell.user == lost);
        world.run_to_batch(BATCH + 1);
        world
    };
    // Setups are encrypted at random, so contents differ from run to run.
    let behind = |world: &World| -> Vec<_> {
        let cells = world.sent.iter().filter(|cell| cell.link > 1);
        cells.map(|cell| (cell.round, cell.link, cell.kind, cell.channel, cell.sub)).collect()
    };
    let (lost, without) = (run(5, Some(4)), run(4, None));
    assert_eq!(behind(&lost), behind(&without));
    assert!(!behind(&lost).is_empty());
    assert_eq!(why(&lost.users[4].outcomes), Some(Failure::NoAck));
}

#[test]
fn places_do_not_depend_on_the_order_of_arrival() {
    // Shards of two setups as they come to Mix 2, in both orders.
    let mut world = World::new(terms(), 2);
    let config = world.config.clone();
    world.run_to(config.rounds_of(BATCH + 1, Phase::Setup(2)).end - 1);
    let shards: Vec<Sent> = world.sent.drain(..).filter(|cell| cell.link == 2).collect();
    let begin = config.rounds_of(BATCH + 1, Phase::Setup(3)).start;
    let mut places = |order: &dyn Fn(&Sent) -> (u32, u8)| {
        let mut hop = World::new(terms(), 0).hops.remove(1);
        hop.keys = Keys { seen: HashSet::new(), ..std::mem::replace(&mut world.hops[1].keys, Keys::new(0)) };
        let mut shards = shards.clone();
        shards.sort_by_key(order);
        hop.advance(FORWARD, begin - 40);
        for cell in &shards {
            let shard =
                ShardCell { link: LinkId(7), home: None, channel: cell.channel, sub: cell.sub, content: &cell.content };
            hop.shard(2, shard).unwrap();
        }
        assert_eq!(hop.installs.len(), 2);
        hop.advance(FORWARD, begin);
        let subs = |round| hop.machine.cells(FORWARD, round).iter().map(|cell| (round, cell.sub)).collect::<Vec<_>>();
        let places: Vec<_> = (begin..begin + config.times.used()).flat_map(subs).collect();
        world.hops[1].keys = hop.keys;
        (places, hop.installs[0].up.1)
    };
    let (one, first) = places(&|cell| (cell.channel, cell.sub));
    let (other, second) = places(&|cell| (!cell.channel, 255 - cell.sub));
    assert!(one == other && one.len() == 2 * 15 && first != second);
}

#[test]
fn third_setup_on_a_full_hop_is_refused() {
    let mut world = World::new(PacedTerms { seats: 2, ..terms() }, 3);
    world.run_to_batch(BATCH + 1);
    let ready = world.users.iter().filter(|user| is_ready(&user.outcomes[0])).count();
    assert_eq!((ready, why(&world.users[2].outcomes)), (2, Some(Failure::NoAck)));
    // All its shards, and the first one of the next batch: the others keep their seats.
    assert_eq!(world.refused(1, Refusal::NoRoom), world.config.times.used() + 1);
    assert!(world.hops.iter().all(|hop| hop.installs.len() == 2));
}

#[test]
fn setup_of_another_batch_or_sent_twice_is_refused() {
    let mut world = World::new(terms(), 1);
    world.run_to(world.config.times.first(BATCH) + 30);
    let shards: Vec<Sent> = world.sent.drain(..).filter(|cell| cell.link == 1).collect();
    let again = |world: &mut World, link: u32| {
        let send = |cell: &Sent| {
            let Sent { sub, content, .. } = cell;
            let cell = ShardCell { link: LinkId(link), home: None, channel: 5, sub: *sub, content };
            world.hops[0].shard(1, cell).err()
        };
        shards.iter().filter_map(send).collect::<Vec<_>>()
    };
    assert_eq!(again(&mut world, 50), [Refusal::SetupReplayed]);
    world.run_to_batch(BATCH + 1);
    assert_eq!(again(&mut world, 51), [Refusal::SetupInvalid], "its first is of the batch before");
    assert_eq!(world.hops[0].installs.len(), 1);
}

#[test]
fn shard_for_a_channel_in_use_or_of_no_form_is_refused() {
    let mut world = World::new(terms(), 1);
    world.run_to_batch(BATCH + 1);
    let channel = world.users[0].machine.channel(BATCH + 1).unwrap();
    let content = vec![3; 208];
    let mut send = |link, (channel, sub), content| {
        world.hops[0].shard(1, ShardCell { link: LinkId(link), home: None, channel, sub, content })
    };
    assert_eq!(send(0, (channel, 0), &content), Err(Refusal::ChannelInUse));
    for (at, content) in [((0, 0), &content[..]), ((5, 42), &content), ((5, 0), &content[1..])] {
        assert_eq!(send(1, at, content), Err(Refusal::FragmentMalformed));
    }
    assert_eq!(send(1, (5, 41), &content), Ok(()));
}

#[test]
fn setup_cells_outside_their_phase_are_early_or_late() {
    for position in 2..=HOPS {
        let mut hop = World::new(terms(), 0).hops.remove(position - 1);
        let phase = hop.machine.config().rounds_of(BATCH + 1, Phase::Setup(position));
        let mut sub = 0..;
        let mut shard = |hop: &mut Hop| {
            let (sub, content) = (sub.next().unwrap(), &[3; 208]);
            hop.shard(position, ShardCell { link: LinkId(1), home: None, channel: 5, sub, content })
        };
        hop.advance(FORWARD, phase.start - 9);
        assert_eq!(shard(&mut hop), Err(Refusal::CellEarly));
        hop.advance(FORWARD, phase.start - 8);
        assert_eq!(shard(&mut hop), Ok(()));
        // Two rounds between the directions; the exit is open until its backward release.
        hop.advance(FORWARD, phase.end - 1);
        hop.advance(BACKWARD, phase.end - 3);
        assert_eq!(shard(&mut hop), Ok(()));
        hop.advance(FORWARD, phase.end);
        assert_eq!(shard(&mut hop), if position == HOPS { Ok(()) } else { Err(Refusal::CellLate) });
        hop.advance(BACKWARD, phase.end);
        assert_eq!(shard(&mut hop), Err(Refusal::CellLate));
        assert_eq!(hop.counters.refused(Refusal::SetupIncomplete), 1);
    }
}

#[test]
fn ack_cells_outside_their_phase_are_early_or_late() {
    let mut world = World::new(terms(), 1).losing(|cell| cell.kind == CellKind::Ack);
    let (first, phases) = (world.config.times.first(BATCH), 2 * HOPS as u64);
    let content = vec![3; 208];
    let phase = world.config.rounds_of(BATCH + 1, Phase::Ack(2));
    let ack = |world: &mut World, channel| {
        let Hop { machine, counters, .. } = &mut world.hops[0];
        machine.ack(counters, (channel, 0), &content)
    };
    // A round is over at all hops when `run_to` returns.
    world.run_to(phase.start - 9);
    let down = world.hops[0].installs[0].down.unwrap();
    assert_eq!(ack(&mut world, down), Err(Refusal::CellEarly));
    world.run_to(phase.start - 8);
    assert_eq!(ack(&mut world, down), Ok(()));
    assert_eq!((ack(&mut world, down), world.hops[0].counters.surplus_cells > 0), (Ok(()), true));
    assert_eq!(ack(&mut world, down.wrapping_add(1)), Err(Refusal::UnexpectedAck));
    world.run_to(phase.end);
    assert_eq!(ack(&mut world, down), Err(Refusal::CellLate));

    // At the entry, which seals a round before that.
    let begin = first + (phases - 1) * world.config.times.phase_len();
    assert_eq!(phase.end, begin);
    let mut entry = World::new(terms(), 1);
    entry.run_to(begin - 9);
    let channel = entry.users[0].machine.channel(BATCH + 1).unwrap();
    let ack = |world: &mut World, channel| {
        let User { machine, counters, .. } = &mut world.users[0];
        machine.ack(counters, (channel, 0), &content).map(|outcome| outcome.is_some())
    };
    assert_eq!(ack(&mut entry, channel), Err(Refusal::CellEarly));
    entry.run_to(begin - 8);
    assert_eq!(ack(&mut entry, channel ^ 1), Err(Refusal::UnexpectedAck));
    assert_eq!(ack(&mut entry, channel), Ok(true));
    assert!(entry.users[0].outcomes.is_empty(), "the caller has the outcome");
    entry.lose = Box::new(|_| true);
    entry.run_to_batch(BATCH + 1);
    assert_eq!(ack(&mut entry, channel), Err(Refusal::CellLate));
}

#[test]
fn lost_link_does_not_end_channels() {
    // From the end of phase 1 on nothing arrives on the link of user 1.
    let mut world = World::new(PacedTerms { seats: 2, ..terms() }, 2);
    world.run_to(world.config.rounds_of(BATCH + 1, Phase::Setup(1)).end);
    world.lose = Box::new(|cell| cell.user == Some(1));
    world.run_to_batch(BATCH + 1);
    assert!(world.hops.iter().all(|hop| hop.installs.len() == 2));
    let acks = |user| world.sent.iter().filter(|cell| cell.kind == CellKind::Ack && cell.user == Some(user)).count();
    assert_eq!([acks(0), acks(1)], [world.config.times.used() as usize; 2]);
    assert_eq!(why(&world.users[1].outcomes), Some(Failure::NoAck));

    // Its place is kept in the next batch, so nobody else has it.
    let stranger = ShardCell { link: LinkId(9), home: None, channel: 5, sub: 0, content: &[3; 208] };
    assert_eq!(world.hops[0].shard(1, stranger), Err(Refusal::NoRoom));
}

#[test]
fn hop_that_skips_rounds_begins_its_phases_late() {
    let mut world = World::new(terms(), 1);
    let config = world.config.clone();
    let phase = config.rounds_of(BATCH + 1, Phase::Setup(2));
    world.run_to(phase.start - 1);
    world.round = phase.start + 2;
    world.run_to_batch(BATCH + 1);
    let setups = world.sent.iter().filter(|cell| cell.link == 2 && cell.kind == CellKind::Setup);
    let lost = 22 - setups.count();
    assert!((1..=2).contains(&lost) && is_ready(&world.users[0].outcomes[0]), "{lost} shards were skipped");
    // A whole batch later it has no channels.
    world.round = config.times.first(BATCH + 3);
    world.publish(BATCH + 4);
    world.step();
    assert!(world.hops.iter().all(|hop| hop.machine.coming_batch() == BATCH + 4 && hop.machine.accepted() == 0));
}

/// Keys, call and path of each loop of a mix.
fn loops(world: &World, mix: usize) -> Vec<(&EntryKeys, &Call, Vec<&Install>)> {
    let outcomes = world.hops[mix - 1].outcomes.iter();
    let of = outcomes.map(|outcome| {
        let Outcome::Ready { channel, keys, call: Some(call), .. } = outcome else { panic!("a loop of mix {mix}") };
        (&**keys, &**call, world.path_behind(mix, (LinkId(1000), *channel)))
    });
    of.collect()
}

#[test]
fn loops_of_every_mix_come_through() {
    let mut world = World::new(PacedTerms { loops: 2, ..terms() }, 3);
    world.run_to_batch(BATCH + 1);
    let first = world.config.times.first(BATCH + 1);
    for mix in 1..HOPS {
        let loops = loops(&world, mix);
        assert_eq!(loops.len(), 4, "mix {mix}");
        for (keys, _, path) in loops {
            assert!(path.len() == HOPS - mix && keys_fit(keys, &path, first + 3));
        }
    }
    let installs: Vec<usize> = world.hops.iter().map(|hop| hop.installs.len()).collect();
    assert_eq!(installs, [3, 7, 11, 15]);
    assert!(world.users.iter().all(|user| is_ready(&user.outcomes[0])));
    assert!(world.hops.iter().all(|hop| refusals(&hop.counters).is_empty()));
}

#[test]
fn number_of_pairs_is_drawn_and_each_pair_hears_itself() {
    let (mut world, mut drawn) = (World::new(PacedTerms { loops: 2, ..terms() }, 0), [0; 3]);
    let place = RoundSub { round: world.config.times.first(BATCH + 1), sub: 0 };
    let pass = |path: &[&Install], direction, body: &mut [u8]| {
        let layer = |install: &&Install| match &*install.keys {
            ChannelKeys::Hop { forward, backward } => {
                encipher_batch(&mut [HopKeys::new(forward, backward).job(direction, place, body)]);
            }
            ChannelKeys::Entry(_) => panic!("the keys of a hop"),
        };
        match direction {
            FORWARD => path.iter().for_each(layer),
            BACKWARD => path.iter().rev().for_each(layer),
        }
    };
    for batch in BATCH + 1..=BATCH + 12 {
        world.publish(batch);
        world.hops.iter_mut().for_each(|hop| (hop.outcomes.clear(), hop.installs.clear()).0);
        world.run_to_batch(batch);
        for mix in 1..HOPS {
            let loops = loops(&world, mix);
            let token = |at: usize| loops[at].2.last().unwrap().token.clone().unwrap();
            let pairs: Vec<_> = (0..4).flat_map(|to| (0..to).map(move |from| (from, to))).collect();
            let met: Vec<_> = pairs.into_iter().filter(|(from, to)| token(*from) == token(*to)).collect();
            assert!([(0, 1), (2, 3)].starts_with(&met), "{met:?}");
            drawn[met.len()] += 1;
            for (from, to) in met {
                let ((keys, call, path), (their_keys, their_call, their_path)) = (&loops[from], &loops[to]);
                let mut body = vec![0; 224];
                keys.seal_meeting(call, place, &mut body);
                pass(path, FORWARD, &mut body);
                pass(their_path, BACKWARD, &mut body);
                let heard = their_keys.open(Some(their_call), place, &mut body);
                assert_eq!(heard, Some(Inner::Meeting(&[0; 200])));
            }
        }
    }
    // Of 36 batches, each number in a third of them.
    assert!(drawn.iter().all(|count| (5..=20).contains(count)), "{drawn:?}");
}

#[test]
fn loops_without_a_bundle_fail() {
    let mut world = World::new(PacedTerms { loops: 1, ..terms() }, 1);
    let interval = world.config.interval_of(BATCH + 1);
    world.hops[1].machine = PacedHop::new(world.config.clone(), 2, [world.round; 2]);
    world.run_to(world.config.times.first(BATCH));
    let wanted: Vec<_> = world.hops.iter().map(|hop| hop.machine.wanted_interval()).collect();
    assert_eq!(wanted, [None, Some(interval), None, None]);
    world.run_to_batch(BATCH + 1);
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed { why: Failure::NoBundle, .. });
    assert_eq!(world.hops.iter().map(|hop| hop.outcomes.len()).collect::<Vec<_>>(), [2, 2, 2, 0]);
    assert!(world.hops[1].outcomes.iter().all(failed) && !world.hops[0].outcomes.iter().any(failed));
    // Its setups would have no cover: not those of users, nor the loops of Mix 1.
    assert!(world.hops[1].installs.is_empty() && !world.hops[0].installs.is_empty());
    assert_eq!(world.refused(2, Refusal::NoBundle), 1 + 2);
    assert_eq!(why(&world.users[0].outcomes), Some(Failure::BadAck(BadAck::Confirm(2))));
}

#[test]
fn loops_fail_if_their_mix_stalls_while_setups_leave() {
    let mut world = World::new(PacedTerms { loops: 1, ..terms() }, 0);
    let phase = world.config.rounds_of(BATCH + 1, Phase::Setup(3));
    world.run_to(phase.start - 1);
    let stalled = &mut world.hops[1];
    stalled.advance(FORWARD, phase.end);
    let [Outcome::Failed { channel: first, .. }, Outcome::Failed { channel: second, .. }] = stalled.outcomes[..] else {
        panic!("{} outcomes", stalled.outcomes.len())
    };
    assert_eq!(why(&stalled.outcomes[1..]), Some(Failure::NotReady));
    assert!(first != second && stalled.machine.cells(FORWARD, phase.end).is_empty());
    world.run_to_batch(BATCH + 1);
    assert_eq!(world.hops[1].outcomes.len(), 2, "they fail once");

    // Of 42 rounds it skips 20, and 3 of 15 shards may be lost.
    let is_skipped = move |cell: &Sent| cell.link == 3 && cell.round < phase.start + 20;
    let mut world = World::new(PacedTerms { loops: 1, ..terms() }, 0).losing(is_skipped);
    world.run_to(phase.start - 1);
    world.hops[1].advance(FORWARD, phase.start + 20);
    world.run_to_batch(BATCH + 1);
    assert_eq!(why(&world.hops[1].outcomes[1..]), Some(Failure::NotReady), "nobody has dropped them");
}

#[test]
fn loops_of_a_mix_that_misses_their_acks_are_not_ready() {
    // Of 42 rounds it skips some, in which acks do not come.
    let missed = [(0, Failure::NoAck), (20, Failure::NoAck), (30, Failure::NotReady)];
    for (skipped, expected) in missed {
        let is_lost = |cell: &Sent| cell.link == 3 && cell.kind == CellKind::Ack;
        let mut world = World::new(PacedTerms { loops: 1, ..terms() }, 0).losing(is_lost);
        let start = world.config.rounds_of(BATCH + 1, Phase::Ack(3)).start;
        world.run_to(start - 1);
        world.hops[1].advance(BACKWARD, start + skipped);
        world.run_to_batch(BATCH + 1);
        let found = world.hops[1].outcomes.iter().map(|outcome| match outcome {
            Outcome::Failed { why, .. } => *why,
            Outcome::Ready { .. } => panic!("no ack has come"),
        });
        assert_eq!(found.collect::<Vec<_>>(), [expected; 2], "{skipped}");
    }
    // It is stopped from before its setups leave, or before their acks come, until the next batch.
    for phase in [Phase::Setup(3), Phase::Ack(3)] {
        let mut world = World::new(PacedTerms { loops: 1, ..terms() }, 0).losing(|cell| cell.link == 3);
        let rounds = world.config.rounds_of(BATCH + 1, phase);
        world.run_to(rounds.start + u64::from(phase == Phase::Setup(3)));
        let mut hop = world.hops.remove(1);
        let end = world.config.times.first(BATCH + 2) + 20;
        [FORWARD, BACKWARD].into_iter().for_each(|direction| hop.advance(direction, end));
        let of_batch = hop.outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Failed { batch, why, .. } if *batch == BATCH + 1 => Some(*why),
            _ => None,
        });
        assert_eq!(of_batch.collect::<Vec<_>>(), [Failure::NotReady; 2], "{phase:?}");
    }
}

#[test]
fn loop_that_fails_has_the_number_of_its_setup() {
    // Nothing is acknowledged to Mix 1, and no setup of it arrives at Mix 3.
    let is_lost = |cell: &Sent| cell.link == 2 && cell.kind == CellKind::Ack || cell.link == 3 && cell.sub > 0;
    let mut world = World::new(PacedTerms { loops: 2, ..terms() }, 0).losing(is_lost);
    world.run_to_batch(BATCH + 1);
    for mix in [1, 2] {
        let sent = world.sent.iter().filter(|cell| cell.link == mix + 1 && cell.kind == CellKind::Setup);
        let sent: HashSet<u32> = sent.map(|cell| cell.channel).collect();
        let failed = world.hops[mix - 1].outcomes.iter().map(|outcome| match outcome {
            Outcome::Failed { batch, channel, why: Failure::NoAck } if *batch == BATCH + 1 => *channel,
            _ => panic!("it cannot be ready"),
        });
        let failed: HashSet<u32> = failed.collect();
        assert!(failed.len() == 4 && failed.is_subset(&sent), "mix {mix}");
    }
    assert!(world.hops[2].outcomes.iter().all(is_ready));
}

#[test]
fn meeting_has_another_number_only_if_its_secret_is_another() {
    let mut world = World::new(terms(), 1);
    let numbers: Vec<u32> = [7, 7, 8, 8]
        .into_iter()
        .zip(BATCH + 1..)
        .map(|(secret, batch)| {
            world.users[0].machine.meet(Some(MeetingSecret::new([secret; 32])));
            world.publish(batch);
            world.run_to_batch(batch);
            world.users[0].machine.meeting_number()
        })
        .collect();
    // The setup for a batch begins with the batch before.
    assert!(numbers.iter().all(|number| (1..=2).contains(number)) && numbers.is_sorted(), "{numbers:?}");
    assert_eq!((numbers[1], numbers[3]), (1, 2), "{numbers:?}");
}

#[test]
fn interval_is_the_one_before_phase_one_begins() {
    let config = config(terms());
    // A batch has 5.12 s, an interval 10 s: batch 2 begins at 10.24 s, in interval 1.
    assert_eq!([3, 4, 5].map(|batch| config.interval_of(batch)), [0, 0, 1]);
    let entry = PacedEntry::new(config, &mut ChaCha20Rng::seed_from_u64(1), 3 * 512 + 5);
    assert_eq!(entry.wanted_interval(), Some(1), "for batch 5, whose setup begins in batch 4");
}

#[test]
fn setup_on_link_1_has_255_shards_at_most() {
    let most = |rounds| config(PacedTerms { rounds, ..terms() }).shards_max(1);
    assert_eq!([512, 8192].map(most), [42, 255]);
}

#[test]
fn entry_sets_up_while_the_shards_of_a_setup_fit() {
    // 29 of 42 rounds are needed.
    let (used, needed) = (42, 29);
    for (at, sets_up) in [(0, true), (5, true), (used - needed, true), (used - needed + 1, false)] {
        let mut world = World::new(terms(), 1);
        let publics: Vec<HopPublic> = world.hops.iter().map(|hop| hop.keys.public()).collect();
        world.users[0].machine = PacedEntry::new(world.config.clone(), &mut ChaCha20Rng::seed_from_u64(1), world.round);
        let (first, interval) = (world.config.times.first(BATCH), world.config.interval_of(BATCH + 1));
        world.run_to(first + at - 1);
        assert_eq!(world.users[0].machine.wanted_interval(), Some(interval));
        world.users[0].machine.bundle(interval, publics);
        world.run_to_batch(BATCH + 1);
        let is_setup = |cell: &&Sent| cell.kind == CellKind::Setup && cell.link == 1 && cell.round < first + 512;
        let setups: Vec<&Sent> = world.sent.iter().filter(is_setup).collect();
        let rounds: Vec<u64> = setups.iter().map(|cell| cell.round - first).collect();
        assert_eq!(rounds, if sets_up { (at..used).collect() } else { Vec::<u64>::new() }, "bundle at {at}");
        assert!((0..).zip(&setups).all(|(sub, cell)| cell.sub == sub));
        assert_eq!(is_ready(&world.users[0].outcomes[0]), sets_up);
        assert_eq!(why(&world.users[0].outcomes), (!sets_up).then_some(Failure::NoBundle));
    }
}

#[test]
fn entry_that_was_not_ready_waits_for_the_next_batch() {
    let mut world = World::new(terms(), 2);
    world.users.iter_mut().for_each(|user| user.is_ready = false);
    world.run_to_batch(BATCH);
    world.users.iter_mut().for_each(|user| user.is_ready = true);
    // Another one starts behind the begin of phase 1.
    let (config, round) = (world.config.clone(), world.round);
    world.users[1].machine = PacedEntry::new(config, &mut ChaCha20Rng::seed_from_u64(5), round);
    world.publish(BATCH + 1);
    world.run_to(world.config.times.first(BATCH + 1) - 1);
    assert!(world.sent.is_empty() && world.users.iter().all(|user| user.outcomes.is_empty()));
    assert!(world.users.iter().all(|user| user.machine.channel(BATCH + 1).is_some()), "it has a number all the same");
    world.publish(BATCH + 2);
    world.run_to_batch(BATCH + 2);
    assert!(world.users.iter().all(|user| is_ready(&user.outcomes[0])));
}

/// An entry and its alarm until the setup for batch `BATCH + 3` is decided. It is ready in the rounds of which
/// `is_ready` is true, when phase 1 of that setup begins in the round of its first argument.
struct Flapping {
    /// The rounds of the setup, counted from there.
    setup: Vec<u64>,
    outcome: Option<Result<(), Failure>>,
    alarm: EntryAlarm,
    world: World,
}

fn flapping(is_ready: impl Fn(u64, u64) -> bool) -> Flapping {
    let mut world = World::new(terms(), 1);
    let (begin, end) = (world.config.times.first(BATCH + 2), world.config.times.first(BATCH + 3));
    (BATCH + 2..=BATCH + 4).for_each(|batch| world.publish(batch));
    let mut flapping = Flapping { setup: Vec::new(), outcome: None, alarm: EntryAlarm::new(config(terms())), world };
    flapping.run_to(end, |round| is_ready(begin, round));
    let setup = flapping.world.sent.iter().filter(|cell| cell.kind == CellKind::Setup && cell.link == 1);
    flapping.setup = setup.filter_map(|cell| cell.round.checked_sub(begin)).filter(|at| *at < end - begin).collect();
    flapping
}

impl Flapping {
    fn run_to(&mut self, round: u64, is_ready: impl Fn(u64) -> bool) {
        while self.world.round <= round {
            let now = self.world.round;
            self.world.users[0].is_ready = is_ready(now);
            self.world.step();
            for outcome in self.world.users[0].outcomes.drain(..) {
                let (batch, found) = match outcome {
                    Outcome::Ready { batch, .. } => (batch, Ok(())),
                    Outcome::Failed { batch, why, .. } => {
                        self.alarm.failed(batch, why);
                        (batch, Err(why))
                    }
                };
                self.outcome = (batch == BATCH + 3).then_some(found).or(self.outcome);
            }
            self.alarm.advance(now, is_ready(now));
        }
    }

    /// The setups for which it is up.
    fn raised(&self) -> Vec<Cause> {
        let causes = self.alarm.raised().iter().map(|raised| raised.cause);
        causes.filter(|cause| matches!(cause, Cause::Setup { .. })).collect()
    }
}

/// An attacker who delays the answer to a handshake chooses when an entry is not ready.
#[test]
fn entry_that_is_ready_again_in_phase_1_sets_up() {
    let last = 42 - 29;
    for at in [1, 2, last] {
        let Flapping { setup, outcome, .. } = flapping(|begin, round| !(begin - 1..begin + at).contains(&round));
        assert_eq!(setup, (at..42).collect::<Vec<_>>());
        assert_eq!(outcome, Some(Ok(())), "ready from round {at} on");
    }
    // It does so after an outage of any length.
    let Flapping { setup, outcome, .. } = flapping(|begin, round| round < begin - 1000 || round >= begin + 5);
    assert_eq!((setup[0], outcome), (5, Some(Ok(()))));
    // Too late.
    let Flapping { setup, outcome, .. } = flapping(|begin, round| !(begin..begin + last + 1).contains(&round));
    assert_eq!((setup, outcome), (vec![], Some(Err(Failure::NotReady))));
}

#[test]
fn batch_is_missed_if_the_entry_was_ready_in_half_the_time() {
    for (ready, is_missed) in [(500, true), (499, false)] {
        let found = flapping(|begin, round| round < begin - 1000 + ready);
        assert_eq!((found.setup, found.outcome), (vec![], is_missed.then_some(Err(Failure::NotReady))), "{ready}");
    }
    let found = flapping(|begin, round| !(begin - 500..begin).contains(&round) && round <= begin);
    assert_eq!(found.outcome, Some(Ok(())), "the setup had begun");
}

#[test]
fn link_that_is_cut_in_phase_1_again_raises_the_alarm() {
    let mut found = flapping(|begin, round| !(begin - 3..begin + 56).contains(&round));
    assert_eq!(found.outcome, Some(Err(Failure::NotReady)));
    let (first, end) = (found.world.config.times.first(BATCH + 3), found.world.config.times.first(BATCH + 12));
    (BATCH + 5..=BATCH + 13).for_each(|batch| found.world.publish(batch));
    found.run_to(end, |round| !(first + 512 - 3..first + 512 + 56).contains(&round));
    let again = Cause::Setup { batch: BATCH + 5, why: Failure::NotReady };
    assert_eq!((found.alarm.excused(), found.raised()), (1, vec![again]), "the first one is excused");
}

#[test]
fn numbers_are_known_for_256_rounds_after_their_batch() {
    let mut world = World::new(terms(), 1);
    world.run_to_batch(BATCH + 1);
    let of = |world: &World, batch| world.users[0].machine.channel(batch);
    let kept = of(&world, BATCH).unwrap();
    world.run_to_batch(BATCH + 2);
    assert_eq!(of(&world, BATCH), None);
    let now = [BATCH + 1, BATCH + 2, BATCH + 3].map(|batch| of(&world, batch).unwrap());
    assert!(!now.contains(&kept) && now[0] != now[1] && now[1] != now[2]);
    assert_eq!(of(&world, BATCH + 4), None);
}

#[test]
fn rounds_jump_back_only_before_the_entry_is_ready() {
    let mut world = World::new(terms(), 1);
    let User { machine, rng, counters, .. } = &mut world.users[0];
    let (first, earlier) = (world.config.times.first(BATCH), world.config.times.first(5));
    // Its own clock was ahead.
    machine.advance(rng, counters, earlier + 3, false);
    assert!(machine.channel(5).is_some() && machine.channel(6).is_some() && machine.channel(7).is_none());
    machine.advance(rng, counters, first, true);
    assert_eq!(machine.cell(first).map(|cell| cell.sub), Some(0));
    // Its lead has become smaller.
    assert!(machine.advance(rng, counters, first - 2, true).is_empty());
    machine.advance(rng, counters, first + 1, true);
    assert_eq!(machine.cell(first + 1).map(|cell| cell.sub), Some(1));
}

/// Mix 1 chooses the lead. What it makes an entry miss counts.
#[test]
fn batches_that_the_lead_jumps_over_are_missed() {
    let mut world = World::new(terms(), 1);
    world.run_to_batch(BATCH + 2);
    let User { machine, rng, counters, .. } = &mut world.users[0];
    // Nobody has published keys for BATCH + 3.
    let landed = world.config.times.first(BATCH + 4) + 300;
    machine.jumps_to(landed);
    let mut outcomes = machine.advance(rng, counters, landed, true);
    let next = world.config.times.first(BATCH + 5);
    outcomes.extend((landed + 1..=next).flat_map(|round| machine.advance(rng, counters, round, true)));
    let missed: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Failed { batch, why, .. } => (*batch, *why),
            Outcome::Ready { .. } => panic!("no hop has answered"),
        })
        .collect();
    let [jumped_over, not_begun] = [BATCH + 4, BATCH + 5].map(|batch| (batch, Failure::NotReady));
    assert_eq!(missed, [(BATCH + 3, Failure::NoBundle), jumped_over, not_begun]);
}
