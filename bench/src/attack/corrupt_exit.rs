//! What a corrupt exit adds to a record under a virtual clock: rounds that it could not open, and bodies of meetings.

use std::collections::HashMap;

use attack::{Bodies, Body, ExitRound, Meeting, Record};
use eddy_virtual::{Chain, ENTRIES, ExitBody};
use wire::cell::Direction::Forward;
use wire::paced::PacedTerms;

use super::copies::Copies;
use crate::load::source::Nanos;

/// A body that has not left again is forgotten after this number of rounds.
const ROUNDS_MAX: u64 = 16;

/// When a cell came, its body, and the body between the layers.
type Came = (Nanos, Body, Option<Body>);

/// What it has seen of each entry.
pub(super) struct CorruptExit {
    copies: Copies,
    /// Rounds of which no copy came in time, those of control cells included.
    unopened: Vec<Vec<u64>>,
    /// By entry, round and number of the cell.
    came: HashMap<(usize, u64, u8), Came>,
    bodies: Vec<OfEntry>,
    /// What went from each entry to the one that it meets.
    rounds: Vec<Vec<(Nanos, ExitRound)>>,
}

#[derive(Clone, Default)]
struct OfEntry {
    before: Bodies,
    between: Bodies,
    after: Bodies,
}

impl CorruptExit {
    pub(super) fn new(terms: &PacedTerms, hops: usize, entries: usize) -> CorruptExit {
        CorruptExit {
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
            let bodies = &mut self.bodies[entry - ENTRIES];
            let (before, between) =
                (bodies.before.next(body), seen.between.map(|between| bodies.between.next(between)));
            self.came.insert((entry, round, sub), (at, before, between));
            return;
        }
        // What leaves to an entry came from the one that it meets.
        let Some((came, before, between)) = self.came.remove(&(partner, round, sub)) else { return };
        let after = self.bodies[partner - ENTRIES].after.next(body);
        self.rounds[partner - ENTRIES].push((came, ExitRound { round, waited: None, before, between, after }));
        if self.came.len() > self.bodies.len() * ROUNDS_MAX as usize * 4 {
            self.came.retain(|(_, known, _), _| *known + ROUNDS_MAX > round);
        }
    }

    /// Fills a record that begins at `begin`. `flows` has the entries of each flow: the user's, and the partner's in a
    /// meeting.
    pub(super) fn fill(self, record: &mut Record, chain: &Chain, begin: Nanos, flows: &[(usize, Option<usize>)]) {
        let within = |round: u64| (begin..begin + record.length).contains(&chain.begins(round));
        let release = |round| chain.begins(round) + chain.times.offset(Forward, chain.hops());
        let rounds = |entry: usize| -> Vec<ExitRound> {
            let all = self.rounds[entry].iter().filter(|(_, one)| within(one.round));
            all.map(|(came, one)| ExitRound {
                waited: release(one.round).checked_sub(*came).map(|time| time as u32),
                ..*one
            })
            .collect()
        };
        let (mut meetings, mut unopened) = (Vec::new(), Vec::new());
        for (user, partner) in flows {
            match partner {
                Some(partner) => meetings.push(Meeting { forward: rounds(*user), backward: rounds(*partner) }),
                None => {
                    let times = self.unopened[*user].iter().map(|round| release(*round));
                    let within = times.filter(|at| (begin..begin + record.length).contains(at));
                    unopened.push(within.map(|at| at - begin).collect());
                }
            }
        }
        (record.meetings, record.unopened) = (meetings, unopened);
    }
}
