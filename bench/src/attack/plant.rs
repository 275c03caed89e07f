//! Leaks that are planted on purpose. They show whether the attackers would find one.
//!
//! They are on the wire alone: whoever carries datagrams between entries and Mix 1 delays some or leaves some out, and
//! records of virtual chains leave some out behind Mix 1. It knows from the applications which entries have data.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use attack::active::Action;
use clap::ValueEnum;
use rand::RngExt;
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::paced::{PacedTerms, Timetable};

use super::copies::{Copies, hash};
use crate::load::source::{MILLI, Nanos};

/// What is planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Leak {
    /// Rounds with data leave 20 us later than others
    Late,
    /// 2 % of the cells of rounds without data are left out, in all copies
    Gaps,
    /// A cell that an access link loses in all copies is left out behind Mix 1, too
    Loss,
}

/// How much later rounds with data are.
const LATE: Nanos = 20_000;
/// Share of the cells without data that are left out.
const LEFT_OUT: f64 = 0.02;
/// Cells of an entry closer together than this are of one round.
const ROUND: Nanos = MILLI;
/// Cells and rounds that are remembered for each entry.
const REMEMBERED: usize = 64;

/// For each entry: its application has sent something.
pub(super) type Speakers = Arc<[AtomicBool]>;

/// Nobody has sent anything.
pub(super) fn nobody(entries: usize) -> Speakers {
    (0..entries).map(|_| AtomicBool::new(false)).collect()
}

/// The planted leak of a run.
pub(super) struct Plant {
    leak: Leak,
    speakers: Speakers,
    rng: ChaCha20Rng,
    times: Timetable,
    cell_len: usize,
    copies: Copies,
    entries: Vec<OfEntry>,
    /// The entry at the other end of each one's meeting.
    partners: Vec<Option<usize>>,
}

#[derive(Default)]
struct OfEntry {
    /// When the round began whose cells it sends, and whether its application had sent something.
    round: Option<(Nanos, bool)>,
    /// Rounds of which all copies were lost, and the last hop behind which a cell was left out.
    lost: VecDeque<(u64, usize)>,
    /// The same rounds of its partner, of which a cell is left out of what comes to it.
    missing: VecDeque<u64>,
    /// The cells that are left out, and all that have passed: of `Gaps` those that it sends, of `Loss` those that come.
    left_out: VecDeque<u64>,
    known: VecDeque<u64>,
}

impl Plant {
    /// With `partners`, the entry at the other end of each one's meeting, in a chain of `hops` hops.
    pub(super) fn new(
        leak: Leak,
        (terms, hops): (&PacedTerms, usize),
        partners: Vec<Option<usize>>,
        speakers: Speakers,
        rng: ChaCha20Rng,
    ) -> Plant {
        let (times, copies) = (terms.timetable(hops), Copies::new(terms, hops, partners.len()));
        let entries = partners.iter().map(|_| OfEntry::default()).collect();
        Plant { leak, speakers, rng, times, cell_len: terms.class.cell_len(), copies, entries, partners }
    }

    /// What becomes of a datagram that an entry sends.
    pub(super) fn leaves(&mut self, entry: usize, now: Nanos, bytes: &[u8]) -> Action {
        if self.leak == Leak::Loss {
            return Action::Pass;
        }
        let of = &mut self.entries[entry];
        let (began, has_data) = of.round.filter(|(began, _)| now < began + ROUND).unwrap_or_else(|| {
            let has_data = self.speakers[entry].swap(false, Ordering::Relaxed);
            (now, has_data)
        });
        of.round = Some((began, has_data));
        if self.leak == Leak::Late {
            return if has_data { Action::Delay(LATE) } else { Action::Pass };
        }
        let cell = hash(bytes);
        if !of.known.contains(&cell) {
            remember(&mut of.known, cell);
            if !has_data && self.rng.random_bool(LEFT_OUT) {
                remember(&mut of.left_out, cell);
            }
        }
        if of.left_out.contains(&cell) { Action::Drop } else { Action::Pass }
    }

    /// As [`Copies::passed`].
    pub(super) fn passed(&mut self, entry: usize, sent: Nanos, arrives: Option<Nanos>, bytes: &[u8]) {
        if self.leak != Leak::Loss {
            return;
        }
        let Some(round) = self.copies.passed(entry, sent, arrives, bytes) else { return };
        remember(&mut self.entries[entry].lost, (round, 0));
        if let Some(partner) = self.partners[entry] {
            remember(&mut self.entries[partner].missing, round);
        }
    }

    /// Is this datagram left out, which Mix 1 sends to an entry at `sent` by the class's clock?
    pub(super) fn is_left_out(&mut self, entry: usize, sent: Nanos, bytes: &[u8]) -> bool {
        if self.leak != Leak::Loss || bytes.len() != self.cell_len {
            return false;
        }
        let round = self.round_of(sent, Direction::Backward, 1);
        let (of, cell) = (&mut self.entries[entry], hash(bytes));
        if of.left_out.contains(&cell) {
            return true;
        }
        if of.known.contains(&cell) {
            return false;
        }
        remember(&mut of.known, cell);
        let Some(found) = of.missing.iter().position(|missing| *missing == round) else { return false };
        of.missing.remove(found);
        remember(&mut of.left_out, cell);
        true
    }

    /// Is a cell left out that hop `hop` sends forward at `sent` by the class's clock?
    pub(super) fn is_left_out_behind(&mut self, hop: usize, sent: Nanos) -> bool {
        if self.leak != Leak::Loss {
            return false;
        }
        let round = self.round_of(sent, Direction::Forward, hop);
        let mut all = self.entries.iter_mut().flat_map(|of| &mut of.lost);
        let found = all.find(|(lost, last)| *lost == round && *last + 1 == hop);
        found.map(|(_, last)| *last = hop).is_some()
    }

    /// The round whose cells a hop sends at this time.
    fn round_of(&self, sent: Nanos, direction: Direction, hop: usize) -> u64 {
        self.times.round_at(sent + self.times.period() / 2 - self.times.offset(direction, hop))
    }
}

fn remember<T>(list: &mut VecDeque<T>, one: T) {
    list.push_back(one);
    if list.len() > REMEMBERED {
        list.pop_front();
    }
}
