//! A chain of a paced class with what to expect of it: counts of its links, and what becomes of the datagrams of
//! applications.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;
use std::time::Duration;

use dataplane::Nanos;
use dataplane::command::LinkCommand;
use dataplane::paced::Command;
use dataplane::socket::memory::Datagram;
use eddy_virtual::Setup;
use wire::cell::{CellKind, Class, Direction};
use wire::gcm::encipher_batch;
use wire::ids::{ChannelKeys, Side};
use wire::link::HeaderKey;
use wire::paced::{ControlSlots, HopKeys, PacedClass, PacedHeader, PacedTerms, Phase};
use wire::setup::Suite;

use super::limit::Permit;

pub use eddy_virtual::{Seen, destination, link_address, listener};

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

/// By then the cells of a round have left everywhere.
pub const LATE: Duration = Duration::from_millis(100);
pub const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];

/// A link: its number, from 1, and on link 1 the entry's number, from 101.
pub type LinkOf = (usize, usize);

/// The application at an entry.
pub fn client(entry: usize) -> SocketAddr {
    SocketAddr::from(([198, 18, 1, 100], entry as u16))
}

/// Sender and receiver of a link.
pub fn ends((link, entry): LinkOf, direction: Direction) -> (SocketAddr, SocketAddr) {
    let up = link_address(if link == 1 { entry } else { link - 1 }, Side::Down);
    let down = link_address(link, Side::Up);
    if direction == Direction::Forward { (up, down) } else { (down, up) }
}

/// Header keys of a link slot, with the node that has them.
struct Slot {
    node: usize,
    forward: HeaderKey,
    backward: HeaderKey,
}

/// A cell as it was sent, with its header in the clear.
pub struct Opened<'a> {
    pub seen: &'a Seen,
    pub header: PacedHeader,
    /// The slot of its link.
    slot: usize,
}

/// What control has given to workers.
#[derive(Default)]
struct Keys {
    slots: Vec<Slot>,
    /// The layers of the exit, by batch and number on the last link.
    exit: HashMap<(u64, u32), HopKeys>,
}

pub struct Chain {
    chain: eddy_virtual::Chain,
    keys: Rc<RefCell<Keys>>,
    _permit: Permit,
}

impl Deref for Chain {
    type Target = eddy_virtual::Chain;

    fn deref(&self) -> &eddy_virtual::Chain {
        &self.chain
    }
}

impl DerefMut for Chain {
    fn deref_mut(&mut self) -> &mut eddy_virtual::Chain {
        &mut self.chain
    }
}

impl Chain {
    /// Three mixes, an exit, and entries with a forward each.
    pub fn new(terms: &PacedTerms, entries: usize) -> Chain {
        Chain::with_meetings(terms, entries, &[])
    }

    /// A chain some of whose entries, from 101, serve a meeting with this secret.
    pub fn with_meetings(terms: &PacedTerms, entries: usize, meetings: &[(usize, [u8; 32])]) -> Chain {
        let _permit = Permit::wait();
        let meetings = meetings.iter().copied().collect();
        let setup = Setup { meetings, ..Setup::new(terms, HOPS - 1, entries) };
        let mut chain = eddy_virtual::Chain::new(setup);
        let keys = Rc::<RefCell<Keys>>::default();
        let known = keys.clone();
        chain.watch_commands(move |node, command| match command {
            Command::Link(LinkCommand::InstallSlot { header_i2r, header_r2i, .. }) => {
                let [forward, backward] = [header_i2r, header_r2i].map(|key| HeaderKey::new(key));
                known.borrow_mut().slots.push(Slot { node, forward, backward });
            }
            Command::InstallChannel { batch, up, keys, .. } if node == HOPS => {
                let ChannelKeys::Hop { forward, backward } = &**keys else { panic!("keys of an entry") };
                let layers = HopKeys::new(forward.clone(), backward.clone());
                known.borrow_mut().exit.insert((*batch, up.number), layers);
            }
            _ => {}
        });
        Chain { chain, keys, _permit }
    }

    /// Runs until all entries have channels in a batch, which has just begun.
    pub fn start(mut self) -> Chain {
        let entries: Vec<usize> = self.numbers().filter(|number| *number > HOPS).collect();
        for _ in 0..8 {
            self.run_to_batch(1);
            if entries.iter().all(|entry| self.setups(*entry) > 0) {
                // The setup was for the batch that begins now, unless it began just now.
                self.run_to_batch(1);
                return self;
            }
        }
        panic!("no channels after 8 batches: {:?} {:?}", self.refused(101), self.events);
    }

    /// Runs until a batch has begun that is `batches` later, and its first cells have left.
    pub fn run_batches(&mut self, batches: u64) {
        let end = self.batch() + batches;
        while self.batch() < end {
            self.run_to_batch(1);
        }
        self.run(LATE);
    }

    /// Lets the application of each of these entries send a numbered datagram about every 20 ms. The destination
    /// answers with the same bytes.
    pub fn talk(&mut self, entries: &[usize], time: Duration) {
        let end = self.now + time.as_nanos() as Nanos;
        for gap in [17, 22, 19, 24, 19].into_iter().cycle() {
            if self.now >= end {
                return;
            }
            for entry in entries {
                let (from, to) = (client(*entry), listener(entry - 101));
                let bytes = format!("{} from {entry}", self.now).into_bytes();
                self.apps.send(Datagram { from, to, bytes });
            }
            let left = Duration::from_nanos(end - self.now);
            self.run(left.min(Duration::from_millis(gap)));
            for datagram in std::iter::from_fn(|| self.apps.receive(destination())).collect::<Vec<_>>() {
                self.apps.send(Datagram { from: destination(), to: datagram.from, bytes: datagram.bytes });
            }
        }
    }

    /// For each datagram of the application at an entry when it was sent and, if it has come to `to`, how long it took
    /// and from where it came.
    pub fn delivered(&self, entry: usize, to: SocketAddr) -> Vec<(Nanos, Option<(Nanos, SocketAddr)>)> {
        let seen = self.at_apps();
        let came: HashMap<_, _> =
            seen.iter().filter(|seen| seen.to == to).map(|seen| (&seen.bytes, (seen.at, seen.from))).collect();
        let sent = seen.iter().filter(|seen| seen.from == client(entry));
        sent.map(|sent| (sent.at, came.get(&sent.bytes).map(|(at, from)| (at - sent.at, *from)))).collect()
    }

    /// How long after the begin of a round its cells leave on a link.
    fn offset(&self, link: LinkOf, direction: Direction) -> Nanos {
        match direction {
            Direction::Forward if link.0 == 1 => 0,
            Direction::Forward => self.times.offset(direction, link.0 - 1),
            Direction::Backward => self.times.offset(direction, link.0),
        }
    }

    /// The cells of a link in these rounds: round, time and bytes.
    pub fn cells(&self, link: LinkOf, direction: Direction, rounds: Range<u64>) -> Vec<(u64, Nanos, Vec<u8>)> {
        let ((from, to), offset) = (ends(link, direction), self.offset(link, direction));
        let (half, len) = (self.times.begin(1) / 2, self.terms.class.cell_len());
        let seen = self.seen();
        let of_link = seen.iter().filter(|seen| (seen.from, seen.to, seen.bytes.len()) == (from, to, len));
        let with_round = of_link.map(|seen| (self.round_at(seen.at + half - offset), seen.at, seen.bytes.clone()));
        with_round.filter(|(round, ..)| rounds.contains(round)).collect()
    }

    /// How many channels a link carries in one direction, if it is one number in all of these rounds. Otherwise its
    /// data cells in the first one, and those of others that differ, by their place in `rounds`.
    pub fn carries(&self, link: LinkOf, direction: Direction, rounds: Range<u64>) -> Result<usize, String> {
        let (terms, hops) = (&self.terms, HOPS);
        let slots = ControlSlots::new(terms, Suite::Hybrid, hops, link.0, direction);
        let control = |round| {
            let slots = slots.of(&self.times, round);
            slots.placed + slots.link
        };
        let found = self.per_round(ends(link, direction), self.offset(link, direction), rounds.clone());
        // Copies of control cells come on link 1, each `gap` rounds after the one before.
        let (gap, copies) = (u64::from(terms.gap), if link.0 == 1 { u64::from(terms.copies) } else { 1 });
        let data = rounds.clone().zip(&found).map(|(round, found)| {
            let control: usize = (0..copies).map(|copy| control(round - copy * gap)).sum();
            *found as i64 - control as i64
        });
        let data: Vec<i64> = data.collect();
        let differ = |at: &usize| data[*at] != data[0];
        let others: Vec<_> = (0..data.len()).filter(differ).map(|at| (at, data[at])).take(5).collect();
        let of_channel = usize::from(terms.cells) * copies as usize;
        match usize::try_from(data[0]) {
            Ok(cells) if others.is_empty() => Ok(cells / of_channel),
            _ => Err(format!("{} data cells in a round, but (round, cells) {others:?}", data[0])),
        }
    }

    /// [`Chain::carries`], which must be one number.
    pub fn channels(&self, link: LinkOf, direction: Direction, rounds: Range<u64>) -> usize {
        self.carries(link, direction, rounds).unwrap_or_else(|why| panic!("{link:?} {direction:?}: {why}"))
    }

    /// [`Chain::channels`] of both directions, which must be equal.
    pub fn channels_both(&self, link: LinkOf, rounds: Range<u64>) -> usize {
        let [forward, backward] = DIRECTIONS.map(|direction| self.channels(link, direction, rounds.clone()));
        assert_eq!(forward, backward, "channels forward and backward on {link:?}");
        forward
    }

    /// The rounds of a batch.
    pub fn rounds(&self, batch: u64) -> Range<u64> {
        self.times.first(batch)..self.times.first(batch + 1)
    }

    /// Cells that one socket sent to another in each of these rounds, which leave `offset` after their begin.
    pub fn per_round(&self, (from, to): (SocketAddr, SocketAddr), offset: Nanos, rounds: Range<u64>) -> Vec<usize> {
        let mut counts = vec![0; (rounds.end - rounds.start) as usize];
        let len = self.terms.class.cell_len();
        let is_cell = |seen: &&Seen| seen.from == from && seen.to == to && seen.bytes.len() == len;
        for seen in self.seen().iter().filter(is_cell) {
            // An entry may be a little early, and so may a hop whose clock is not right.
            let round = self.round_at(seen.at + self.times.begin(1) / 2 - offset);
            if rounds.contains(&round) {
                counts[(round - rounds.start) as usize] += 1;
            }
        }
        counts
    }

    /// Loses what an entry sends, or what is sent to it, in a phase of the running batch and a little longer: until the
    /// last copies have left.
    pub fn cut_in_phase(&self, entry: usize, phase: Phase, direction: Direction) {
        let rounds = self.times.rounds_of(self.batch(), phase);
        let time = self.begins(rounds.start) - 5 * MILLI..self.begins(rounds.end + 12);
        let link = ends((1, entry), direction);
        self.attack(move |now, datagram| {
            let is_cut = (datagram.from, datagram.to) == link && time.contains(&now);
            if is_cut { Vec::new() } else { vec![(0, datagram)] }
        });
    }

    /// Lets `each` see all cells that nodes have sent, in order, with their headers in the clear.
    pub fn each_opened(&self, mut each: impl FnMut(Opened)) {
        let (seen, keys, class) = (self.seen(), self.keys.borrow(), self.terms.class);
        let slots = &keys.slots;
        let mut latest = HashMap::new();
        for seen in seen.iter().filter(|seen| seen.bytes.len() == class.cell_len()) {
            let IpAddr::V4(host) = seen.from.ip() else { panic!("{} is a node", seen.from) };
            let [_, high, low, side] = host.octets();
            let (node, round) = (usize::from(high) << 8 | usize::from(low), self.round_at(seen.at));
            let open = |slot: usize| {
                let Slot { node: of, forward, backward } = &slots[slot];
                let mut block: [u8; 16] = seen.bytes[..16].try_into().expect("16 bytes");
                let key = if side == 1 { backward } else { forward };
                key.decipher(std::slice::from_mut(&mut block));
                let header = PacedHeader::from_block(&block, class, Some(round)).filter(|_| *of == node);
                header.map(|header| Opened { seen, header, slot })
            };
            let latest = latest.entry((seen.from, seen.to)).or_insert(0);
            let opened = std::iter::once(*latest).chain((0..slots.len()).rev()).find_map(open);
            let Some(opened) = opened else {
                // Before its first sample an entry sends rounds of another time (SPEC 9.5.5).
                assert!(node > HOPS, "a cell under the keys of a slot");
                continue;
            };
            *latest = opened.slot;
            each(opened);
        }
    }

    /// Puts the exit's forward layer of a channel on a body: what is between its two layers in a meeting.
    pub fn encipher_at_exit(&self, header: &PacedHeader, body: &mut [u8]) {
        let (keys, batch) = (self.keys.borrow(), self.times.batch_of(header.seq));
        let layers = keys.exit.get(&(batch, header.channel)).expect("a channel of the exit");
        encipher_batch(&mut [layers.job(Direction::Forward, header.place(), body)]);
    }

    /// Gives a forward cell that a node has sent the number of the free class, under the key of its link.
    pub fn make_free(&self, node: usize) -> impl Fn(&mut [u8]) + 'static {
        let (keys, class) = (self.keys.clone(), self.terms.class);
        move |cell| {
            let sealed: [u8; 16] = cell[..16].try_into().expect("16 bytes");
            for slot in keys.borrow().slots.iter().filter(|slot| slot.node == node) {
                let mut block = [sealed];
                slot.forward.decipher(&mut block);
                if block[0][11] == class.number() && block[0][10] <= CellKind::Link as u8 {
                    block[0][11] = class.size() as u8;
                    slot.forward.encipher(&mut block);
                    cell[..16].copy_from_slice(&block[0]);
                }
            }
            assert_ne!(sealed, cell[..16], "a cell of this node");
        }
    }

    /// Fails if a node has sent two bodies for one channel, round and sub, or under one number of a slot: no place was
    /// sealed twice, by an entry, a loop or the exit, nor enciphered twice by a hop.
    pub fn assert_sealed_once(&self) {
        let (mut bodies, mut senders) = (HashMap::new(), HashSet::new());
        self.each_opened(|Opened { seen, header, slot }| {
            let place = match header.kind {
                // Noise of Mix 1 for an entry without a channel.
                CellKind::Data if header.channel == 0 => return,
                // A channel keeps its keys when its link gets new ones.
                CellKind::Data => (seen.from, None, header.channel, header.seq, header.sub),
                _ => (seen.from, Some(slot), 0, header.seq, 0),
            };
            if header.kind == CellKind::Data {
                senders.insert(seen.from);
            }
            let body = bodies.entry(place).or_insert_with(|| seen.bytes[16..].to_vec());
            assert!(*body == seen.bytes[16..], "a second body from {} at {}: {header:?}", seen.from, seen.at);
        });
        // Mixes send on two links.
        assert_eq!(senders.len(), self.numbers().count() + HOPS - 1, "{senders:?}");
    }

    /// Fails if a node has lost count of a cell.
    pub fn assert_closed(&self) {
        for number in self.numbers() {
            let ledger = self.ledger(number);
            assert!(ledger.closed(), "node {number}: {ledger:#?}");
        }
    }
}
