//! Cells on their way through a turn, with what is known of them in side arrays.

use std::net::SocketAddr;

use wire::cell::Header;
use wire::ids::{ChannelIndex, LinkId, SlotId};

use crate::buffer::{Cell, FreeList, Sealed};
use crate::latency::{Latency, Times};
use crate::{Nanos, sys};

/// Most cells of one receive call: few enough that they stay in the cache until they are
/// opened.
pub(crate) const RECEIVE_MAX: usize = 1024;
/// Most handshake datagrams of one receive call; control's queue takes fewer.
const HANDSHAKES_MAX: usize = 256;

/// The lengths of datagrams that mean something on one socket (SPEC 2.3, 4.2).
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    pub cell: usize,
    /// Of handshake datagrams; none of them is a cell's.
    pub handshakes: &'static [usize],
}

/// Consecutive cells from one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The source address of the cells.
    pub peer: SocketAddr,
    pub count: usize,
}

/// Datagrams as received, sorted by their length.
#[derive(Default)]
pub struct Arrivals {
    /// Those of a cell's length.
    pub cells: Vec<Cell<Sealed>>,
    /// Their senders, in order.
    pub runs: Vec<Run>,
    /// Those of a handshake's length, copied.
    pub handshakes: Vec<(SocketAddr, Box<[u8]>)>,
    /// Handshake datagrams beyond the most that a call keeps.
    pub handshakes_over: u64,
    /// Datagrams of any other length.
    pub odd: u64,
    /// Cells of a burst longer than any that a neighbour sends.
    pub cut: u64,
}

impl Arrivals {
    /// Room for one receive call.
    pub fn new() -> Arrivals {
        Arrivals {
            cells: Vec::with_capacity(RECEIVE_MAX),
            runs: Vec::with_capacity(sys::MESSAGES_MAX),
            handshakes: Vec::with_capacity(HANDSHAKES_MAX),
            ..Arrivals::default()
        }
    }

    /// Adds a datagram of a cell's length.
    pub fn push(&mut self, cell: Cell<Sealed>, peer: SocketAddr) {
        match self.runs.last_mut() {
            Some(run) if run.peer == peer => run.count += 1,
            _ => self.runs.push(Run { peer, count: 1 }),
        }
        self.cells.push(cell);
    }

    /// Adds a burst of cells.
    pub fn push_burst(&mut self, cells: impl Iterator<Item = Cell<Sealed>>, peer: SocketAddr) {
        let before = self.cells.len();
        self.cells.extend(cells);
        let count = self.cells.len() - before;
        match self.runs.last_mut() {
            Some(run) if run.peer == peer => run.count += count,
            _ if count > 0 => self.runs.push(Run { peer, count }),
            _ => {}
        }
    }

    /// Adds a datagram that is not a cell: `len` bytes, which `parts` hold one after the other.
    pub(crate) fn push_other<'a>(
        &mut self,
        lengths: Lengths,
        len: usize,
        parts: impl Iterator<Item = &'a [u8]>,
        peer: SocketAddr,
    ) {
        if !lengths.handshakes.contains(&len) {
            self.odd += 1;
        } else if self.handshakes.len() == HANDSHAKES_MAX {
            self.handshakes_over += 1;
        } else {
            let mut datagram = vec![0; len].into_boxed_slice();
            gather(&mut datagram, parts);
            self.handshakes.push((peer, datagram));
        }
    }

    /// Number of datagrams received.
    pub fn len(&self) -> usize {
        self.cells.len() + self.handshakes.len() + (self.handshakes_over + self.odd + self.cut) as usize
    }

    /// True if nothing arrived.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Fills `into` with what `parts` hold one after the other.
pub(crate) fn gather<'a>(mut into: &mut [u8], parts: impl Iterator<Item = &'a [u8]>) {
    for part in parts {
        let (here, rest) = into.split_at_mut(part.len().min(into.len()));
        here.copy_from_slice(&part[..here.len()]);
        into = rest;
    }
}

/// The data that a pooled cell carries, so that its channel's record may be removed at any time.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// The link it leaves on.
    pub link: LinkId,
    /// Header for the next link, in the clear.
    pub header: Header,
    /// Cells of one channel keep their order (SPEC 6.3).
    pub label: Label,
    /// The time of its arrival.
    pub arrived: Nanos,
    /// Index of its times among those of its release ([`Departures::begin_release`]). Between cores: the microseconds
    /// that it spent in the pool.
    pub times: u32,
    /// At Mix 1, the network of the entry whose channel it is (SPEC 4.11), for the meter. Elsewhere 0.
    pub prefix: u32,
}

/// No network is known.
pub(crate) const NO_PREFIX: u32 = 0;

impl Ticket {
    /// Injected by control: the slot its body was sealed under. Data: none, the current one serves.
    pub fn slot(&self) -> Option<SlotId> {
        match self.label {
            Label::Own(slot) => Some(slot),
            Label::Channel(_) => None,
        }
    }

    /// True for a cell of control's.
    pub fn is_own(&self) -> bool {
        self.slot().is_some()
    }
}

/// Cells of one channel keep their order in a shuffle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// A channel, by its index.
    Channel(ChannelIndex),
    /// A cell of the node's own, alike to no other, and the slot its body was sealed under.
    Own(SlotId),
}

/// Cells of one length, ready for the wire, as runs to one peer each.
pub struct Departures {
    cells: std::collections::VecDeque<Cell<Sealed>>,
    runs: std::collections::VecDeque<(SocketAddr, usize)>,
    cell_len: usize,
    /// Per cell, which of `times` are its own: first of those that were sent in this turn, then of those that wait.
    groups: std::collections::VecDeque<u32>,
    /// Cells sent in this turn.
    gone: usize,
    /// Index 0 is not used.
    times: Vec<Times>,
    /// Scratch space: cells by group.
    counts: Vec<u32>,
    /// Index of the first time of the last release.
    base: u32,
}

/// The group of cells that are not counted.
const NOBODY: u32 = 0;
/// Cells whose groups are compared at once: mostly they are one.
const CHUNK: usize = 32;

impl Departures {
    /// Room for `capacity` cells of `cell_len` bytes.
    pub fn new(cell_len: usize, capacity: usize) -> Departures {
        Departures {
            cells: std::collections::VecDeque::with_capacity(capacity),
            runs: std::collections::VecDeque::with_capacity(64),
            cell_len,
            groups: std::collections::VecDeque::with_capacity(2 * capacity),
            gone: 0,
            times: Vec::with_capacity(capacity + 1),
            counts: Vec::with_capacity(capacity + 1),
            base: NOBODY,
        }
    }

    /// A release follows. The `times` of its tickets are indices into this table.
    pub fn begin_release(&mut self, times: &[Times]) {
        if self.groups.is_empty() {
            self.times.clear();
        }
        if self.times.is_empty() {
            self.times.push(Times::new(0, 0));
        }
        self.base = self.times.len() as u32;
        self.times.extend_from_slice(times);
    }

    /// The `times` of the tickets of the run that is added next. A run without them is not counted.
    pub(crate) fn push_times(&mut self, times: impl Iterator<Item = u32>) {
        let base = self.base;
        self.groups.extend(times.map(|times| base + times));
    }

    /// Adds cells to one peer.
    pub fn push_run(&mut self, cells: impl Iterator<Item = Cell<Sealed>>, peer: SocketAddr) {
        let before = self.cells.len();
        self.cells.extend(cells);
        let count = self.cells.len() - before;
        match self.runs.back_mut() {
            Some((last, run)) if *last == peer => *run += count,
            _ if count > 0 => self.runs.push_back((peer, count)),
            _ => {}
        }
        self.groups.resize(self.gone + self.cells.len(), NOBODY);
    }

    /// Bytes of each cell.
    pub fn cell_len(&self) -> usize {
        self.cell_len
    }

    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The next cells in order, each with its peer.
    pub fn front(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        let peers = self.runs.iter().flat_map(|(peer, count)| std::iter::repeat_n(*peer, *count));
        self.cells().zip(peers)
    }

    /// The next cells in order.
    pub fn cells(&self) -> impl Iterator<Item = &[u8]> {
        self.cells.iter().map(|cell| cell.bytes(self.cell_len))
    }

    /// The same cut into bursts of at most `most` cells to one peer.
    pub fn bursts(&self, most: usize) -> impl Iterator<Item = (SocketAddr, usize)> {
        self.runs
            .iter()
            .flat_map(move |(peer, count)| (0..*count).step_by(most).map(move |at| (*peer, most.min(count - at))))
    }

    /// The first `count` were sent: their buffers go back.
    pub fn done(&mut self, count: usize, free: &mut FreeList) {
        self.gone += count;
        self.remove(count, free);
    }

    /// The first `count` will not be sent: their buffers go back.
    pub fn lose(&mut self, count: usize, free: &mut FreeList) {
        self.groups.range_mut(self.gone..self.gone + count).for_each(|group| *group = NOBODY);
        self.done(count, free);
    }

    /// Drops cells that were released before `oldest`, except control's. Returns how many.
    pub(crate) fn drop_aged(&mut self, oldest: Nanos, free: &mut FreeList) -> usize {
        let is_aged = |times: &Times| times.released < oldest && !times.is_own;
        if self.cells.is_empty() || !self.times.iter().skip(1).any(is_aged) {
            return 0;
        }
        let (cells, runs) = (std::mem::take(&mut self.cells), std::mem::take(&mut self.runs));
        let groups = self.groups.split_off(self.gone);
        let before = cells.len();
        let peers = runs.into_iter().flat_map(|(peer, count)| std::iter::repeat_n(peer, count));
        for ((cell, peer), group) in cells.into_iter().zip(peers).zip(groups) {
            if group != NOBODY && is_aged(&self.times[group as usize]) {
                free.give(cell.into_buffer());
            } else {
                self.groups.push_back(group);
                self.push_run(std::iter::once(cell), peer);
            }
        }
        before - self.cells.len()
    }

    /// True if something was sent since the last [`Departures::record_latency`].
    pub(crate) fn has_unrecorded(&self) -> bool {
        self.gone > 0
    }

    /// Counts what was sent: now it has left.
    pub fn record_latency(&mut self, now: Nanos, latency: &mut Latency) {
        self.counts.clear();
        self.counts.resize(self.times.len().max(1), 0);
        let (head, tail) = self.groups.as_slices();
        let (head, tail) = (&head[..head.len().min(self.gone)], &tail[..self.gone.saturating_sub(head.len())]);
        for groups in head.chunks(CHUNK).chain(tail.chunks(CHUNK)) {
            // A shuffle has mixed what came in several turns; else there is one group, and no need to look at each.
            let first = groups[0];
            if groups.iter().fold(true, |same, group| same & (*group == first)) {
                self.counts[first as usize] += groups.len() as u32;
            } else {
                groups.iter().for_each(|group| self.counts[*group as usize] += 1);
            }
        }
        self.groups.drain(..self.gone);
        self.gone = 0;
        for (times, count) in self.times.iter().zip(&self.counts).skip(1).filter(|(_, count)| **count > 0) {
            latency.count(*times, now, u64::from(*count));
        }
    }

    fn remove(&mut self, count: usize, free: &mut FreeList) {
        for cell in self.cells.drain(..count) {
            free.give(cell.into_buffer());
        }
        let mut remaining = count;
        while remaining > 0 {
            let (_, run) = self.runs.front_mut().expect("runs cover all cells");
            let now = remaining.min(*run);
            *run -= now;
            remaining -= now;
            if *run == 0 {
                self.runs.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_every_cell_once_and_buffers_come_back() {
        let mut free = FreeList::new(5);
        let (a, b): (SocketAddr, SocketAddr) = ("1.2.3.4:5".parse().unwrap(), "[::1]:6".parse().unwrap());
        let mut arrivals = Arrivals::new();
        arrivals.push(Cell::new(free.take().unwrap()), a);
        arrivals.push_burst(std::iter::from_fn(|| free.take().map(Cell::new)).take(1), a);
        arrivals.push_burst(std::iter::empty(), b);
        arrivals.push(Cell::new(free.take().unwrap()), b);
        arrivals.push(Cell::new(free.take().unwrap()), a);
        assert_eq!(arrivals.runs.iter().map(|run| run.count).collect::<Vec<_>>(), [2, 1, 1]);
        let mut departures = Departures::new(4, 8);
        let peers = arrivals.runs.iter().flat_map(|run| [run.peer].repeat(run.count));
        for (cell, peer) in arrivals.cells.drain(..).zip(peers) {
            departures.push_run(std::iter::once(cell), peer);
        }
        assert_eq!(departures.bursts(64).collect::<Vec<_>>(), [(a, 2), (b, 1), (a, 1)]);
        assert_eq!(departures.bursts(1).count(), 4);
        assert_eq!(departures.front().map(|(_, peer)| peer).collect::<Vec<_>>(), [a, a, b, a]);
        departures.done(3, &mut free);
        assert_eq!(departures.front().map(|(_, peer)| peer).collect::<Vec<_>>(), [a]);
        departures.done(1, &mut free);
        assert_eq!(free.free(), 5);
    }

    #[test]
    fn aged_cells_leave_the_queue_wherever_they_are() {
        let mut free = FreeList::new(8);
        let (a, b): (SocketAddr, SocketAddr) = ("1.2.3.4:5".parse().unwrap(), "[::1]:6".parse().unwrap());
        let mut departures = Departures::new(4, 8);
        let times = |released| Times::new(0, released);
        departures.begin_release(&[times(10), times(20), times(10).own(true)]);
        for (peer, groups) in [(a, &[0, 1, 2][..]), (b, &[0, 0]), (a, &[1, 0])] {
            let cells: Vec<_> = groups.iter().map(|_| Cell::new(free.take().unwrap())).collect();
            departures.push_times(groups.iter().copied());
            departures.push_run(cells.into_iter(), peer);
        }
        departures.done(1, &mut free);
        assert_eq!(departures.drop_aged(10, &mut free), 0);
        assert_eq!(departures.drop_aged(11, &mut free), 3);
        assert_eq!(departures.bursts(64).collect::<Vec<_>>(), [(a, 3)], "what was between them has gone");
        assert_eq!(departures.drop_aged(21, &mut free), 2);
        departures.done(1, &mut free);
        let mut latency = Latency::default();
        departures.record_latency(100, &mut latency);
        assert_eq!((latency.total.count(), departures.len(), free.free()), (2, 0, 8));
    }

    #[test]
    fn cell_counts_when_sent_under_the_times_of_its_release() {
        let mut free = FreeList::new(200);
        let peer: SocketAddr = "1.2.3.4:5".parse().unwrap();
        let mut departures = Departures::new(4, 200);
        let mut latency = Latency::default();
        let push = |departures: &mut Departures, times: &[u32], free: &mut FreeList| {
            let cells: Vec<_> = times.iter().map(|_| Cell::new(free.take().unwrap())).collect();
            departures.push_times(times.iter().copied());
            departures.push_run(cells.into_iter(), peer);
        };
        departures.begin_release(&[Times::new(10, 100), Times::new(60, 100)]);
        push(&mut departures, &[0, 1, 0, 1, 1], &mut free);
        departures.begin_release(&[Times::new(200, 200)]);
        push(&mut departures, &[0; 70], &mut free);
        departures.done(2, &mut free);
        departures.lose(1, &mut free);
        departures.record_latency(300, &mut latency);
        assert_eq!((latency.pool.count(), latency.pool.max(), latency.pool.mean()), (2, 90, 65.0));
        assert_eq!((latency.node.mean(), latency.total.max()), (200.0, 290));
        assert!(!departures.has_unrecorded() && departures.len() == 72);
        // The rest of the first release has waited in the queue; that is the node's.
        departures.done(3, &mut free);
        departures.record_latency(500, &mut latency);
        assert_eq!((latency.pool.count(), latency.node.count(), latency.total.count()), (5, 5, 5));
        assert_eq!((latency.node.max(), latency.total.max()), (400, 440));
        departures.done(10, &mut free);
        departures.lose(59, &mut free);
        departures.record_latency(500, &mut latency);
        assert_eq!((latency.pool.count(), departures.len(), free.free()), (15, 0, 200));
        departures.begin_release(&[Times::new(600, 600)]);
        assert_eq!(departures.times.len(), 2, "what has left is forgotten");
    }
}
