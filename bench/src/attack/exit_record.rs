//! What a corrupt exit adds to a record under a virtual clock: rounds that it could not open, and bodies of meetings.

use std::collections::HashMap;

use attack::{Bodies, Body, ExitRound, Meeting, Record};
use eddy_virtual::{ExitBody, FIRST_ENTRY, wall};
use wire::cell::Direction::Forward;
use wire::paced::{PacedTerms, Timetable};

use super::copies::Copies;
use crate::load::source::Nanos;

/// A body that has not left again is forgotten after this number of rounds.
const ROUNDS_MAX: u64 = 16;

/// How long a cell has waited for its release, its body, and the body between the layers.
type Came = (Option<u32>, Body, Option<Body>);

/// What it has seen of each entry.
pub(super) struct ExitRecord {
    times: Timetable,
    hops: usize,
    copies: Copies,
    /// Rounds of which no copy came in time, those of control cells included.
    unopened: Vec<Vec<u64>>,
    /// By entry, round and number of the cell.
    came: HashMap<(usize, u64, u8), Came>,
    bodies: Vec<OfEntry>,
    /// What went from each entry to the one that it meets.
    rounds: Vec<Vec<ExitRound>>,
}

#[derive(Clone, Default)]
struct OfEntry {
    before: Bodies,
    between: Bodies,
    after: Bodies,
}

impl ExitRecord {
    pub(super) fn new(terms: &PacedTerms, hops: usize, entries: usize) -> ExitRecord {
        ExitRecord {
            times: terms.timetable(hops),
            hops,
            copies: Copies::new(terms, hops, entries),
            unopened: vec![Vec::new(); entries],
            came: HashMap::new(),
            bodies: vec![OfEntry::default(); entries],
            rounds: vec![Vec::new(); entries],
        }
    }

    /// As [`Copies::passed`].
    pub(super) fn passed(&mut self, entry: usize, sent: Nanos, arrives: Option<Nanos>, bytes: &[u8]) {
        self.unopened[entry].extend(self.copies.passed(entry, sent, arrives, bytes));
    }

    /// A body on the last link.
    pub(super) fn sees(&mut self, seen: &ExitBody<'_>) {
        let ExitBody { entry, partner, round, sub, at, body, .. } = *seen;
        if seen.direction == Forward {
            let bodies = &mut self.bodies[entry - FIRST_ENTRY];
            let (before, between) =
                (bodies.before.next(body), seen.between.map(|between| bodies.between.next(between)));
            let waited = self.release(round).checked_sub(wall(at)).map(|time| time as u32);
            self.came.insert((entry, round, sub), (waited, before, between));
            return;
        }
        // What leaves to an entry came from the one that it meets.
        let Some((waited, before, between)) = self.came.remove(&(partner, round, sub)) else { return };
        let after = self.bodies[partner - FIRST_ENTRY].after.next(body);
        self.rounds[partner - FIRST_ENTRY].push(ExitRound { round, waited, before, between, after });
        if self.came.len() > self.bodies.len() * ROUNDS_MAX as usize * 4 {
            self.came.retain(|(_, known, _), _| *known + ROUNDS_MAX > round);
        }
    }

    /// When the exit releases a round forward, by the class's clock.
    fn release(&self, round: u64) -> Nanos {
        self.times.schedule(Forward, self.hops).due_at(round)
    }

    /// Fills a record that begins at `begin` by the class's clock. `flows` has the entries of each flow: the user's,
    /// and the partner's in a meeting.
    pub(super) fn fill(self, record: &mut Record, begin: Nanos, flows: &[(usize, Option<usize>)]) {
        let time = begin..begin + record.length;
        let rounds = |entry: usize| -> Vec<ExitRound> {
            self.rounds[entry].iter().filter(|one| time.contains(&self.times.begin(one.round))).copied().collect()
        };
        let (mut meetings, mut unopened) = (Vec::new(), Vec::new());
        for (user, partner) in flows {
            match partner {
                Some(partner) => meetings.push(Meeting { forward: rounds(*user), backward: rounds(*partner) }),
                None => {
                    let times = self.unopened[*user].iter().map(|round| self.release(*round));
                    unopened.push(times.filter(|at| time.contains(at)).map(|at| at - begin).collect());
                }
            }
        }
        (record.meetings, record.unopened) = (meetings, unopened);
    }
}
