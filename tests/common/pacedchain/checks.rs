//! What to expect of a paced chain: counts of its links, and what becomes of the datagrams of applications.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use dataplane::Nanos;
use dataplane::socket::memory::Datagram;
use wire::cell::Direction;
use wire::ids::Side;
use wire::paced::ControlSlots;
use wire::setup::Suite;

use super::{Chain, HOPS, destination, link_address, listener};

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

impl Chain {
    /// Runs until all entries have channels in a batch, which has just begun.
    pub fn start(mut self) -> Chain {
        let entries: Vec<usize> = (101..101 + self.nodes.len() - HOPS).collect();
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
            self.run(Duration::from_millis(gap).min(Duration::from_nanos(end - self.now)));
            for datagram in std::iter::from_fn(|| self.apps.receive(destination())).collect::<Vec<_>>() {
                self.apps.send(Datagram { from: destination(), to: datagram.from, bytes: datagram.bytes });
            }
        }
    }

    /// For each datagram of the application at an entry when it was sent and, if it has come to `to`, how long it took
    /// and from where it came.
    pub fn delivered(&self, entry: usize, to: SocketAddr) -> Vec<(Nanos, Option<(Nanos, SocketAddr)>)> {
        let seen = self.at_apps.borrow();
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
        let (half, len) = (self.times.begin(1) / 2, self.terms().class.cell_len());
        let seen = self.seen();
        let of_link = seen.iter().filter(|seen| (seen.from, seen.to, seen.bytes.len()) == (from, to, len));
        let with_round = of_link.map(|seen| (self.round_at(seen.at + half - offset), seen.at, seen.bytes.clone()));
        with_round.filter(|(round, ..)| rounds.contains(round)).collect()
    }

    /// How many channels a link carries in one direction, if it is one number in all of these rounds. Otherwise its
    /// data cells in the first one, and those of others that differ, by their place in `rounds`.
    pub fn carries(&self, link: LinkOf, direction: Direction, rounds: Range<u64>) -> Result<usize, String> {
        let (terms, hops) = (self.terms(), HOPS);
        let slots = ControlSlots::new(terms, Suite::Hybrid, hops, link.0, direction);
        let control = |round| {
            let slots = slots.of(&self.times, round);
            slots.placed + slots.link
        };
        let found = self.per_round(ends(link, direction), self.offset(link, direction), rounds.clone());
        let gap = u64::from(terms.gap);
        let data = rounds.clone().zip(&found).map(|(round, found)| {
            let copies = if link.0 == 1 { control(round - gap) } else { 0 };
            *found as i64 - (control(round) + copies) as i64
        });
        let data: Vec<i64> = data.collect();
        let differ = |at: &usize| data[*at] != data[0];
        let others: Vec<_> = (0..data.len()).filter(differ).map(|at| (at, data[at])).take(5).collect();
        let of_channel = usize::from(terms.cells) * if link.0 == 1 { usize::from(terms.copies) } else { 1 };
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
}
