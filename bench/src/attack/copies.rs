//! Copies of cells on access links, as anybody knows them who reads bytes: equal ones.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};

use wire::cell::Direction;
use wire::paced::{PacedTerms, Timetable};

use crate::load::source::Nanos;

/// Cells of an entry whose last copy is awaited.
const WAITING_MAX: usize = 64;

/// The copies that entries send.
pub(super) struct Copies {
    terms: PacedTerms,
    times: Timetable,
    entries: Vec<VecDeque<Waiting>>,
}

/// A cell of which a copy was sent.
struct Waiting {
    hash: u64,
    round: u64,
    copies: u8,
    /// One came to Mix 1 before the release of the round.
    came: bool,
}

impl Copies {
    pub(super) fn new(terms: &PacedTerms, hops: usize, entries: usize) -> Copies {
        let entries = (0..entries).map(|_| VecDeque::new()).collect();
        Copies { terms: terms.clone(), times: terms.timetable(hops), entries }
    }

    /// A datagram that an entry sent at `sent` arrives at Mix 1 at `arrives`, if it is not lost; both by the class's
    /// clock. The round of its cell, if this is the last copy and none came in time.
    pub(super) fn passed(&mut self, entry: usize, sent: Nanos, arrives: Option<Nanos>, bytes: &[u8]) -> Option<u64> {
        if bytes.len() != self.terms.class.cell_len() {
            return None;
        }
        let (list, hash) = (&mut self.entries[entry], hash(bytes));
        let found = list.iter().position(|cell| cell.hash == hash).unwrap_or_else(|| {
            if list.len() == WAITING_MAX {
                list.pop_front();
            }
            // An entry may be a little early.
            let round = self.times.round_at(sent + self.times.period() / 2);
            list.push_back(Waiting { hash, round, copies: 0, came: false });
            list.len() - 1
        });
        let cell = &mut list[found];
        let release = self.times.schedule(Direction::Forward, 1).due_at(cell.round);
        cell.copies += 1;
        cell.came |= arrives.is_some_and(|arrives| arrives < release);
        if cell.copies < self.terms.copies {
            return None;
        }
        let Waiting { round, came, .. } = list.remove(found)?;
        (!came).then_some(round)
    }
}

/// Equal for equal bytes.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}
