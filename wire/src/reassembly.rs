//! Puts the fragments of one channel and direction together again (SPEC 3.11).
//!
//! At most [`PARTIAL_MAX`] datagrams are incomplete at a time, each for at most [`HOLD`], or longer in paced classes; a
//! new one evicts the oldest. Fragments that break the rules or contradict each other are refused, and copies are
//! ignored. A channel without fragments costs a few words; a channel with fragments keeps a few buffers. Time is a
//! `Duration` that never decreases. Neighbour: [`crate::frames`] splits.
//!
//! [`Pushed`] and [`Reassembler::expire`] let the caller keep a ledger of datagrams: started ones are
//! injected, complete ones delivered, evicted and expired ones dropped, and the rest is
//! [`Reassembler::held`].

use std::time::Duration;

use crate::frames::{FRAG_OVERHEAD, FRAGMENTS_MAX};

/// Most incomplete datagrams of one channel and direction.
pub const PARTIAL_MAX: usize = 16;
/// The longest time that a datagram waits after its first fragment, in free classes.
pub const HOLD: Duration = Duration::from_millis(250);
/// Idle buffers kept for later datagrams. Mixes keep the order of a channel, so more than a few
/// incomplete datagrams are an exception. A buffer of class L has at most 10,560 bytes.
const SPARES_MAX: usize = 4;

/// The fragments of one datagram.
struct Partial {
    flow: u16,
    id: u16,
    /// The arrival time of its first fragment.
    since: Duration,
    /// Bit i is set if fragment i is present.
    present: u8,
    /// Number of fragments; 0 as long as the last has not arrived.
    count: u8,
    /// Length of the datagram; 0 as long as the last has not arrived.
    len: usize,
    bytes: Vec<u8>,
}

/// A datagram that is complete. Copies of its fragments are ignored for [`HOLD`].
struct Done {
    flow: u16,
    id: u16,
    since: Duration,
}

/// The incomplete datagrams of one channel and direction.
pub struct Reassembler {
    payload: u32,
    hold_ms: u32,
    /// Number of `partials` in use. Spare ones with idle buffers follow.
    held: usize,
    /// Oldest first.
    partials: Vec<Partial>,
    /// Oldest first, at most [`PARTIAL_MAX`].
    done: Vec<Done>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// Stored until the others arrive, or ignored as a copy.
    Stored,
    /// The datagram, completed by this fragment.
    Complete(&'a [u8]),
    /// It breaks the rules or contradicts another fragment. It changed nothing.
    Refused,
}

/// The result of [`Reassembler::push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Pushed<'a> {
    /// This is the first fragment of a datagram.
    pub started: bool,
    /// Number of datagrams dropped, because they expired or to make room.
    pub evicted: u32,
    pub outcome: Outcome<'a>,
}

impl Reassembler {
    /// For cells with this payload; allocates nothing.
    pub const fn new(payload: usize) -> Reassembler {
        Reassembler::with_hold(payload, HOLD)
    }

    /// One that holds a datagram for `hold`, in whole milliseconds, after its first fragment (SPEC 9.1.3).
    pub const fn with_hold(payload: usize, hold: Duration) -> Reassembler {
        let (payload, hold_ms) = (payload as u32, hold.as_millis() as u32);
        Reassembler { payload, hold_ms, held: 0, partials: Vec::new(), done: Vec::new() }
    }

    fn hold(&self) -> Duration {
        Duration::from_millis(self.hold_ms.into())
    }

    /// Bytes of a fragment that is not the last.
    fn chunk(&self) -> usize {
        self.payload as usize - FRAG_OVERHEAD
    }

    /// Takes in one FRAG. Datagrams that have expired by `now` are dropped first, so a late fragment never
    /// completes one.
    pub fn push(&mut self, now: Duration, flow: u16, id: u16, index: u8, last: bool, data: &[u8]) -> Pushed<'_> {
        let mut evicted = self.expire(now);
        if !self.is_plausible(index, last, data) {
            return Pushed { started: false, evicted, outcome: Outcome::Refused };
        }
        if self.done.iter().any(|done| (done.flow, done.id) == (flow, id)) {
            return Pushed { started: false, evicted, outcome: Outcome::Stored };
        }
        let found = self.partials[..self.held].iter().position(|partial| (partial.flow, partial.id) == (flow, id));
        let at = found.unwrap_or_else(|| {
            if self.held == PARTIAL_MAX {
                self.remove(0);
                evicted += 1;
            }
            self.start(now, flow, id)
        });
        let started = found.is_none();
        let chunk = self.chunk();
        let partial = &mut self.partials[at];
        if !partial.agrees(chunk, index, last, data) {
            return Pushed { started, evicted, outcome: Outcome::Refused };
        }
        partial.store(chunk, index, last, data);
        if !partial.is_complete() {
            return Pushed { started, evicted, outcome: Outcome::Stored };
        }
        self.remember(now, flow, id);
        self.remove(at);
        // `remove` has made it the first spare.
        let partial = &self.partials[self.held];
        Pushed { started, evicted, outcome: Outcome::Complete(&partial.bytes[..partial.len]) }
    }

    /// Drops datagrams that started [`HOLD`], or what takes its place, ago or earlier; returns their number.
    pub fn expire(&mut self, now: Duration) -> u32 {
        let hold = self.hold();
        self.done.retain(|done| now < done.since + hold);
        let mut expired = 0;
        while self.next_expiry().is_some_and(|due| due <= now) {
            self.remove(0);
            expired += 1;
        }
        expired
    }

    /// Expires, and also frees the buffers if no fragment arrived for [`HOLD`]. Called now and then.
    pub fn sweep(&mut self, now: Duration) -> u32 {
        let expired = self.expire(now);
        if self.held == 0 && self.done.is_empty() {
            *self = Reassembler::with_hold(self.payload as usize, self.hold());
        }
        expired
    }

    /// True if it holds nothing, not even a buffer.
    pub fn is_bare(&self) -> bool {
        self.partials.capacity() == 0 && self.done.capacity() == 0
    }

    /// Drops one incomplete datagram. False if there is no such datagram.
    pub fn give_up(&mut self, flow: u16, id: u16) -> bool {
        let found = self.partials[..self.held].iter().position(|partial| (partial.flow, partial.id) == (flow, id));
        found.is_some_and(|at| {
            self.remove(at);
            true
        })
    }

    /// Drops the datagrams of a flow that has ended; returns their number. Its ids may be used again.
    pub fn drop_flow(&mut self, flow: u16) -> u32 {
        self.done.retain(|done| done.flow != flow);
        let mut dropped = 0;
        while let Some(at) = self.partials[..self.held].iter().position(|partial| partial.flow == flow) {
            self.remove(at);
            dropped += 1;
        }
        dropped
    }

    /// Number of incomplete datagrams.
    pub fn held(&self) -> usize {
        self.held
    }

    /// The time at which [`Reassembler::expire`] next drops something.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.partials[..self.held].first().map(|partial| partial.since + self.hold())
    }

    /// Checks the rules for a single fragment: all except the last are full, the last is not empty, and a
    /// datagram has at least two.
    fn is_plausible(&self, index: u8, last: bool, data: &[u8]) -> bool {
        let chunk = self.chunk();
        let end = FRAGMENTS_MAX as u8 - 1;
        if last {
            (1..=end).contains(&index) && (1..=chunk).contains(&data.len())
        } else {
            index < end && data.len() == chunk
        }
    }

    /// Starts a datagram after the others, in a spare place if there is one.
    fn start(&mut self, now: Duration, flow: u16, id: u16) -> usize {
        let at = self.held;
        let bytes = self.partials.get_mut(at).map(|spare| std::mem::take(&mut spare.bytes)).unwrap_or_default();
        let fresh = Partial { flow, id, since: now, present: 0, count: 0, len: 0, bytes };
        match self.partials.get_mut(at) {
            Some(spare) => *spare = fresh,
            None => self.partials.push(fresh),
        }
        self.held += 1;
        at
    }

    /// Makes a datagram the first spare and keeps the order of the others.
    fn remove(&mut self, at: usize) {
        self.partials[at..self.held].rotate_left(1);
        self.held -= 1;
        self.partials.truncate(self.held + SPARES_MAX);
    }

    fn remember(&mut self, now: Duration, flow: u16, id: u16) {
        if self.done.len() == PARTIAL_MAX {
            self.done.remove(0);
        }
        self.done.push(Done { flow, id, since: now });
    }
}

impl Partial {
    fn has(&self, index: u8) -> bool {
        self.present & (1 << index) != 0
    }

    /// True if the fragment contradicts none of those present.
    fn agrees(&self, chunk: usize, index: u8, last: bool, data: &[u8]) -> bool {
        match (self.count, last) {
            (0, false) => true,
            // No fragment with this index or a greater one may be present.
            (0, true) => self.present >> index == 0,
            (count, false) => index + 1 < count,
            (count, true) => index + 1 == count && usize::from(index) * chunk + data.len() == self.len,
        }
    }

    /// Copies a fragment to its position, unless it is present already.
    fn store(&mut self, chunk: usize, index: u8, last: bool, data: &[u8]) {
        if self.has(index) {
            return;
        }
        let from = usize::from(index) * chunk;
        let to = from + data.len();
        if self.bytes.len() < to {
            self.bytes.resize(to, 0);
        }
        self.bytes[from..to].copy_from_slice(data);
        self.present |= 1 << index;
        if last {
            self.count = index + 1;
            self.len = to;
        }
    }

    fn is_complete(&self) -> bool {
        self.count > 0 && self.present.count_ones() == u32::from(self.count)
    }
}

#[cfg(test)]
mod tests;
