//! What an attacker finds who watches both ends of the calls: times and lengths of datagrams, and nothing else.
//!
//! It knows who calls and who is called, and looks for each caller's partner. In the paced class both ends are access
//! links. In the free class a voice leaves at the exit, so the end of a call is the partner's socket.

use std::fmt;

use attack::figures::top1;
use attack::independence::verdict;
use attack::{Attacker as _, Passage, Place, Record, Seen, Trace, Truth, attackers};
use dataplane::paced::entry::PREPARE;
use serde::Serialize;

use super::voice::Heard;

/// For the order of random matchings: one recording, one result.
const SEED: u64 = 1;

/// What the attacker found in a recording of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// Its name in `eddy-bench attack`.
    pub attacker: String,
    pub calls: usize,
    /// Callers whose partner has the highest score.
    pub matched: usize,
    /// Most that are matched in 95 % of random guesses.
    pub matched_by_chance: usize,
    /// Share of random guesses that fit the scores as well as the truth does.
    pub p: f64,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { calls, matched, matched_by_chance, .. } = self;
        write!(f, "{matched}/{calls}")?;
        if matched <= matched_by_chance { write!(f, ", chance") } else { Ok(()) }
    }
}

/// The calls of one class as an attacker sees them. Two users in a row call each other.
pub struct Recording<'a> {
    /// Access links of all users. Times are those of `heard`, counted from the first datagram.
    pub links: Vec<Place>,
    /// What the partner of each user heard.
    pub heard: &'a [Heard],
    pub datagram_bytes: usize,
    /// Bytes of the shortest cells.
    pub cell_bytes: usize,
    pub is_paced: bool,
    /// In nanoseconds.
    pub length: u64,
}

impl Recording<'_> {
    /// Attacks it. `None` for a single call, which nobody can mistake for another one.
    pub fn attack(&self) -> Option<Found> {
        let calls = self.links.len() / 2;
        if calls < 2 {
            return None;
        }
        let (attacker, truth) = (attackers::likelihood(), Truth((0..calls).collect()));
        let scores = attacker.scores(&self.voices(0)).plus(&attacker.scores(&self.voices(1)).transposed());
        let verdict = verdict(std::slice::from_ref(&scores), &truth, SEED);
        let count = |share: f64| (share * calls as f64).round() as usize;
        Some(Found {
            attacker: attacker.name(),
            calls,
            matched: count(top1(&scores, &truth)),
            matched_by_chance: count(verdict.best_top1_by_chance),
            p: verdict.p,
        })
    }

    /// What the callers send (0) or their partners (1), and where it comes out. The delay of the chain is that of the
    /// first of these voices, as if the attacker had made a call of its own.
    fn voices(&self, side: usize) -> Record {
        let place = |forward: Trace| Place { forward, ..Place::default() };
        let senders = || (side..self.links.len()).step_by(2);
        let record = Record {
            length: self.length,
            cell_bytes: self.cell_bytes as u32,
            access: senders().map(|user| place(self.links[user].forward.clone())).collect(),
            flows: senders().map(|user| place(self.outcome(user))).collect(),
            probe: self.passages(side),
            ..Record::default()
        };
        record.first(self.length)
    }

    /// Where the voice of `user` comes out: its partner's access link, or its partner's socket.
    fn outcome(&self, user: usize) -> Trace {
        if self.is_paced {
            return self.links[user ^ 1].backward.clone();
        }
        let arrived = self.heard[user].arrivals.iter().map(|(sent, delay)| sent + delay);
        let bytes = self.datagram_bytes as u32;
        let mut trace: Trace = arrived.map(|at| Seen { at, bytes }).collect();
        trace.sort_by_key(|seen| seen.at);
        trace
    }

    /// From the cell that carried a datagram of `user` to the one that brought it, or to its arrival at a socket.
    fn passages(&self, user: usize) -> Vec<Passage> {
        let (access, prepare) = (&self.links[user].forward, if self.is_paced { PREPARE } else { 0 });
        let outcome = self.outcome(user);
        let passage = |&(sent, delay): &(u64, u64)| {
            let entered = access.get(access.partition_point(|seen| seen.at < sent + prepare))?.at;
            let left = outcome[..outcome.partition_point(|seen| seen.at <= sent + delay)].last()?.at;
            (entered <= left).then_some(Passage { entered, left })
        };
        self.heard[user].arrivals.iter().filter_map(passage).collect()
    }
}

/// What passed a link in the `length` nanoseconds from `begin` on.
pub fn window(place: &Place, begin: u64, length: u64) -> Place {
    let cut = |trace: &[Seen]| {
        let of = |at: u64| trace.partition_point(|seen| seen.at < at);
        let within = &trace[of(begin)..of(begin + length)];
        within.iter().map(|seen| Seen { at: seen.at - begin, ..*seen }).collect()
    };
    Place { forward: cut(&place.forward), backward: cut(&place.backward) }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt as _, SeedableRng as _};
    use rand_chacha::ChaCha20Rng;

    use super::*;

    const MS: u64 = 1_000_000;
    const LENGTH: u64 = 5000 * MS;

    fn cells(times: impl Iterator<Item = u64>) -> Trace {
        times.take_while(|at| *at < LENGTH).map(|at| Seen { at, bytes: 240 }).collect()
    }

    /// Each of twelve users sends at times of its own, and is heard 7 ms after each.
    fn heard() -> Vec<Heard> {
        let mut rng = ChaCha20Rng::from_seed([3; 32]);
        let mut of_user = || {
            let mut times: Vec<u64> = (0..100).map(|_| rng.random_range(0..LENGTH - 100 * MS)).collect();
            times.sort_unstable();
            Heard { sent: 100, arrivals: times.into_iter().map(|sent| (sent, 7 * MS)).collect() }
        };
        (0..12).map(|_| of_user()).collect()
    }

    #[test]
    fn calls_whose_cells_follow_the_voice_are_all_matched() {
        let heard = heard();
        let link = |heard: &Heard| Place {
            forward: cells(heard.arrivals.iter().map(|(sent, _)| sent + MS / 10)),
            ..Place::default()
        };
        let links = heard.iter().map(link).collect();
        let recording =
            Recording { links, heard: &heard, datagram_bytes: 172, cell_bytes: 240, is_paced: false, length: LENGTH };
        let found = recording.attack().unwrap();
        assert_eq!((found.calls, found.matched), (6, 6), "{found:?}");
        assert!(found.p < 0.02, "{found:?}");
    }

    #[test]
    fn calls_on_constant_links_are_matched_at_chance() {
        let heard = heard();
        let slots = || cells((0..).map(|slot| slot * 10 * MS));
        let links = heard.iter().map(|_| Place { forward: slots(), backward: slots() }).collect();
        let recording =
            Recording { links, heard: &heard, datagram_bytes: 172, cell_bytes: 240, is_paced: true, length: LENGTH };
        let found = recording.attack().unwrap();
        assert_eq!((found.calls, found.matched, found.p), (6, 1, 1.0), "{found:?}");
    }

    #[test]
    fn single_call_is_not_attacked() {
        let (links, heard) = (vec![Place::default(); 2], [Heard::default(), Heard::default()]);
        let recording =
            Recording { links, heard: &heard, datagram_bytes: 172, cell_bytes: 240, is_paced: true, length: LENGTH };
        assert_eq!(recording.attack(), None);
    }

    #[test]
    fn window_has_its_own_times() {
        let place = Place { forward: cells((0..10).map(|i| i * MS)), ..Place::default() };
        let cut = window(&place, 3 * MS, 2 * MS);
        assert_eq!((cut.forward, cut.backward), (cells([0, MS].into_iter()), Trace::new()));
    }
}
