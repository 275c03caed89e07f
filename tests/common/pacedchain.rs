//! A chain of a paced class with what to expect of it: counts of its links, and what becomes of the datagrams of
//! applications.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut, Range};
use std::time::Duration;

use dataplane::Nanos;
use dataplane::socket::memory::Datagram;
use eddy_virtual::{Plan, link_of};
use wire::cell::{CellKind, Class, Direction};
use wire::ids::Side;
use wire::paced::{ControlSlots, PacedClass, PacedHeader, PacedTerms, Phase};
use wire::setup::Suite;

use super::limit::Permit;

pub use eddy_virtual::{Seen, destination, link_address, listener};

pub const HOPS: usize = 4;
/// The entries of a chain of three users.
pub const ENTRIES: [usize; 3] = [101, 102, 103];
/// Of a meeting.
pub const SECRET: [u8; 32] = [7; 32];
const MILLI: Nanos = 1_000_000;

/// Terms of a class with short batches.
pub fn terms() -> PacedTerms {
    PacedTerms {
        rounds: 512,
        n_min: 1,
        seats: 16,
        loops: 0,
        steps_ms: vec![2; HOPS - 1],
        ..PacedTerms::new(PacedClass::new(Class::S), "voice", HOPS)
    }
}

/// As few slots as a few entries need.
pub fn few_seats() -> PacedTerms {
    PacedTerms { seats: 6, ..terms() }
}

/// [`few_seats`], and terms in which nothing is the same: a class of size L whose channels have two cells, with repeat.
pub fn small_and_large() -> [PacedTerms; 2] {
    let class = PacedClass::new(Class::L);
    [few_seats(), PacedTerms { class, cells: 2, repeat: true, rounds: 256, ..few_seats() }]
}

/// By then the cells of a round have left everywhere.
pub const LATE: Duration = Duration::from_millis(100);
pub const DIRECTIONS: [Direction; 2] = [Direction::Forward, Direction::Backward];

/// A link: its number, from 1, and on link 1 the entry's number, from 101.
pub type LinkOf = (usize, usize);

/// Rounds that [`Chain::lose_rounds`] loses.
pub fn is_lost(round: u64) -> bool {
    round % 5 == 3
}

/// The application at an entry.
pub fn client(entry: usize) -> SocketAddr {
    SocketAddr::from(([198, 18, 1, 100], entry as u16))
}

/// When a datagram was sent and, if it has come, how long it took and from where it came.
pub type Delivered = (Nanos, Option<(Nanos, SocketAddr)>);

/// The delays that half, 99.9 % and all of some do not exceed, in ms.
pub fn quantiles(mut delays: Vec<Nanos>) -> [f64; 3] {
    delays.sort_unstable();
    let last = delays.len() - 1;
    [delays.len() / 2, last - last / 1000, last].map(|at| delays[at] as f64 / 1e6)
}

/// Sender and receiver of a link.
pub fn ends((link, entry): LinkOf, direction: Direction) -> (SocketAddr, SocketAddr) {
    let up = link_address(if link == 1 { entry } else { link - 1 }, Side::Down);
    let down = link_address(link, Side::Up);
    if direction == Direction::Forward { (up, down) } else { (down, up) }
}

/// A cell as it was sent, with its header in the clear.
pub struct Opened<'a> {
    pub seen: &'a Seen,
    pub header: PacedHeader,
    /// The slot of its link.
    slot: usize,
}

pub struct Chain {
    chain: eddy_virtual::Chain,
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
        let plan = Plan { meetings, ..Plan::new(terms, HOPS - 1, entries) };
        Chain { chain: eddy_virtual::Chain::new(plan), _permit }
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
            self.answer();
        }
    }

    /// Lets the destination answer what has come to it.
    pub fn answer(&self) {
        for datagram in std::iter::from_fn(|| self.apps.receive(destination())).collect::<Vec<_>>() {
            self.apps.send(Datagram { from: destination(), to: datagram.from, bytes: datagram.bytes });
        }
    }

    /// For each datagram of the application at an entry when it was sent and, if it has come to `to`, how long it took
    /// and from where it came.
    pub fn delivered(&self, entry: usize, to: SocketAddr) -> Vec<Delivered> {
        self.delivered_between(entry, client(entry), to)
    }

    /// The same for what `from` sent of the datagrams of an entry's application.
    fn delivered_between(&self, entry: usize, from: SocketAddr, to: SocketAddr) -> Vec<Delivered> {
        let (seen, whose) = (self.at_apps(), format!(" from {entry}"));
        let came: HashMap<_, _> =
            seen.iter().filter(|seen| seen.to == to).map(|seen| (&seen.bytes, (seen.at, seen.from))).collect();
        let sent = seen.iter().filter(|seen| seen.from == from && seen.bytes.ends_with(whose.as_bytes()));
        sent.map(|sent| (sent.at, came.get(&sent.bytes).map(|(at, from)| (at - sent.at, *from)))).collect()
    }

    /// How long the datagrams of an entry's application took. None may be lost.
    pub fn delays(&self, entry: usize, to: SocketAddr) -> Vec<Nanos> {
        self.delays_between(entry, client(entry), to)
    }

    /// How long the destination's answers to them took. None may be lost.
    pub fn delays_of_answers(&self, entry: usize) -> Vec<Nanos> {
        self.delays_between(entry, destination(), client(entry))
    }

    fn delays_between(&self, entry: usize, from: SocketAddr, to: SocketAddr) -> Vec<Nanos> {
        let sent = self.delivered_between(entry, from, to);
        let lost: Vec<_> = sent.iter().filter(|(_, came)| came.is_none()).map(|(at, _)| at / MILLI).collect();
        let all = sent.len();
        assert!(lost.is_empty() && all > 0, "entry {entry}: of {all} from {from} to {to} lost those of {lost:?} ms");
        sent.iter().filter_map(|(_, came)| came.map(|(delay, _)| delay)).collect()
    }

    /// What comes to the destination, and when.
    pub fn at_destination(&self) -> Vec<(Nanos, Vec<u8>)> {
        let seen = self.at_apps();
        let came = seen.iter().filter(|seen| seen.to == destination());
        let mut came: Vec<_> = came.map(|seen| (seen.at, seen.bytes.clone())).collect();
        came.sort_unstable();
        came
    }

    /// From now on all copies of the cells of some rounds are lost on their way to Mix 1: those for which [`is_lost`].
    pub fn lose_rounds(&self) {
        let (begin, period) = (self.round_at(0), self.times.period());
        self.attack(move |now, datagram| {
            // An entry may be a little early. Copies follow one round later.
            let sent_in = begin + (now + 5 * MILLI) / period;
            let is_forward = datagram.to == link_address(1, Side::Up);
            if is_forward && (is_lost(sent_in) || is_lost(sent_in - 1)) { Vec::new() } else { vec![(0, datagram)] }
        });
    }

    /// How long a batch is.
    pub fn batch_time(&self) -> Duration {
        Duration::from_nanos(self.times.begin(self.times.first(1)))
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
        let (half, len) = (self.times.period() / 2, self.terms.class.cell_len());
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
            slots.total()
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
            Ok(cells) if others.is_empty() && cells.is_multiple_of(of_channel) => Ok(cells / of_channel),
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

    /// Channels on a link: one of each of some entries, and those of the loops of the mixes before it.
    pub fn channels_of(&self, link: usize, entries: usize) -> usize {
        entries + 2 * usize::from(self.terms.loops) * (link - 1)
    }

    /// Fails unless all links carry the cells of SPEC 9.6 in every round, for these entries and for loops.
    pub fn assert_all_constant(&self, entries: &[usize], rounds: Range<u64>) {
        entries.iter().for_each(|entry| assert_eq!(self.channels_both((1, *entry), rounds.clone()), 1));
        self.assert_constant_behind_mix_1(entries.len(), rounds);
    }

    /// The same of the links behind Mix 1, for a number of entries.
    pub fn assert_constant_behind_mix_1(&self, entries: usize, rounds: Range<u64>) {
        for link in 2..=HOPS {
            let expected = self.channels_of(link, entries);
            assert_eq!(self.channels_both((link, 0), rounds.clone()), expected, "link {link} in rounds {rounds:?}");
        }
    }

    /// The rounds of a batch.
    pub fn rounds(&self, batch: u64) -> Range<u64> {
        self.times.first(batch)..self.times.first(batch + 1)
    }

    /// Cells that one socket sent to another in each of these rounds, which leave `offset` after their begin.
    fn per_round(&self, (from, to): (SocketAddr, SocketAddr), offset: Nanos, rounds: Range<u64>) -> Vec<usize> {
        let mut counts = vec![0; (rounds.end - rounds.start) as usize];
        let len = self.terms.class.cell_len();
        let is_cell = |seen: &&Seen| seen.from == from && seen.to == to && seen.bytes.len() == len;
        for seen in self.seen().iter().filter(is_cell) {
            // An entry may be a little early, and so may a hop whose clock is not right.
            let round = self.round_at(seen.at + self.times.period() / 2 - offset);
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
        let (keys, len) = (self.header_keys(), self.terms.class.cell_len());
        for seen in self.seen().iter().filter(|seen| seen.bytes.len() == len) {
            let link = link_of(seen.from, seen.to).expect("nodes send to their neighbours");
            match keys.borrow().open(link, &seen.bytes, self.round_at(seen.at)) {
                Some((slot, header)) => each(Opened { seen, header, slot }),
                // Before its first sample an entry sends rounds of another time (SPEC 9.5.5).
                None => assert!(link.0 > HOPS && link.1 == Direction::Forward, "a cell under the keys of a slot"),
            }
        }
    }

    /// Gives a forward cell that a node has sent the number of the free class, under the key of its link.
    pub fn make_free(&self, node: usize) -> impl Fn(&mut [u8]) + 'static {
        let (keys, class, running) = (self.header_keys(), self.terms.class, self.round_at(self.now));
        move |cell| {
            let (keys, link) = (keys.borrow(), (node, Direction::Forward));
            let (slot, header) = keys.open(link, cell, running).expect("a cell of this node");
            let mut block = [header.to_block()];
            block[0][11] = class.size() as u8;
            keys.key(link, slot).encipher(&mut block);
            cell[..16].copy_from_slice(&block[0]);
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
                _ => (seen.from, Some((seen.to, slot)), 0, header.seq, 0),
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
