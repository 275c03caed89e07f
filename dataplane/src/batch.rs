//! Cells on their way through a turn, with what is known of them in side arrays.

use std::net::SocketAddr;

use wire::cell::Header;

use crate::Nanos;
use crate::frame::{Cell, FreeList, Sealed};

/// Most datagrams of one receive call.
pub const RECEIVE_MAX: usize = 64;

/// Consecutive datagrams from, or to, one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where they come from, or go.
    pub peer: SocketAddr,
    /// Index of the first.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// Appends one datagram to the last run, or starts a new one.
fn extend(runs: &mut Vec<Run>, peer: SocketAddr, index: usize) {
    match runs.last_mut() {
        Some(run) if run.peer == peer => run.count += 1,
        _ => runs.push(Run { peer, first: index, count: 1 }),
    }
}

/// Datagrams as received.
#[derive(Default)]
pub struct Arrivals {
    cells: Vec<Cell<Sealed>>,
    lens: Vec<usize>,
    runs: Vec<Run>,
}

impl Arrivals {
    /// Room for one receive call.
    pub fn new() -> Arrivals {
        Arrivals {
            cells: Vec::with_capacity(RECEIVE_MAX),
            lens: Vec::with_capacity(RECEIVE_MAX),
            runs: Vec::with_capacity(RECEIVE_MAX),
        }
    }

    /// Adds a datagram of `len` bytes; longer than a frame if it was cut.
    pub fn push(&mut self, cell: Cell<Sealed>, len: usize, peer: SocketAddr) {
        extend(&mut self.runs, peer, self.cells.len());
        self.cells.push(cell);
        self.lens.push(len);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// Empties the batch: run by run, each datagram with its length.
    pub fn drain(&mut self) -> impl Iterator<Item = (Cell<Sealed>, usize, SocketAddr)> {
        let peers = self.runs.drain(..).flat_map(|run| std::iter::repeat_n(run.peer, run.count));
        self.cells.drain(..).zip(self.lens.drain(..)).zip(peers).map(|((cell, len), peer)| (cell, len, peer))
    }
}

/// What a pooled cell must carry, so that its channel's record may go at any time.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// The link it leaves on.
    pub link: u32,
    /// Injected by control: the slot its body was sealed under. Data: none, the current one serves.
    pub slot: Option<u32>,
    /// Header for the next link, in the clear.
    pub header: Header,
    /// Cells with one label keep their order (SPEC 6.3).
    pub label: Label,
    /// When it was received.
    pub arrived: Nanos,
}

/// What a shuffle may not tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// A channel, by its index.
    Channel(u32),
    /// A cell of the node's own: alike to no other.
    Own,
}

/// Cells of one length, ready for the wire, as runs to one peer each.
pub struct Departures {
    cells: std::collections::VecDeque<Cell<Sealed>>,
    runs: std::collections::VecDeque<(SocketAddr, usize)>,
    cell_len: usize,
    /// Scratch of the seal stage: one run.
    pub(crate) scratch: Vec<crate::pool::Pooled>,
}

impl Departures {
    /// Room for `capacity` cells of `cell_len` bytes.
    pub fn new(cell_len: usize, capacity: usize) -> Departures {
        Departures {
            cells: std::collections::VecDeque::with_capacity(capacity),
            runs: std::collections::VecDeque::with_capacity(64),
            cell_len,
            scratch: Vec::with_capacity(capacity),
        }
    }

    /// Adds a cell.
    pub fn push(&mut self, cell: Cell<Sealed>, peer: SocketAddr) {
        match self.runs.back_mut() {
            Some((last, count)) if *last == peer => *count += 1,
            _ => self.runs.push_back((peer, 1)),
        }
        self.cells.push_back(cell);
    }

    /// Bytes of each cell.
    pub fn cell_len(&self) -> usize {
        self.cell_len
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The next cells in order, each with its peer.
    pub fn front(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        let peers = self.runs.iter().flat_map(|(peer, count)| std::iter::repeat_n(*peer, *count));
        self.cells.iter().map(|cell| cell.bytes(self.cell_len)).zip(peers)
    }

    /// The first `count` are done: their frames go back.
    pub fn done(&mut self, count: usize, free: &mut FreeList) {
        for cell in self.cells.drain(..count) {
            free.give(cell.into_frame());
        }
        let mut left = count;
        while left > 0 {
            let (_, run) = self.runs.front_mut().expect("runs cover all cells");
            let now = left.min(*run);
            *run -= now;
            left -= now;
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
    fn runs_cover_every_cell_once_and_frames_come_back() {
        let mut free = FreeList::new(5);
        let (a, b): (SocketAddr, SocketAddr) = ("1.2.3.4:5".parse().unwrap(), "[::1]:6".parse().unwrap());
        let mut arrivals = Arrivals::new();
        for (i, peer) in [a, a, b, a].into_iter().enumerate() {
            arrivals.push(Cell::new(free.take().unwrap()), i, peer);
        }
        assert_eq!(arrivals.runs.len(), 3);
        let mut departures = Departures::new(4, 8);
        for (cell, len, peer) in arrivals.drain() {
            assert_eq!(peer == b, len == 2);
            departures.push(cell, peer);
        }
        assert_eq!(departures.front().map(|(_, peer)| peer).collect::<Vec<_>>(), [a, a, b, a]);
        departures.done(3, &mut free);
        assert_eq!(departures.front().map(|(_, peer)| peer).collect::<Vec<_>>(), [a]);
        departures.done(1, &mut free);
        assert_eq!(free.free(), 5);
    }
}
