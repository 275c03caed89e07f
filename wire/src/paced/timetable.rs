//! Rounds, releases, batches and phases (SPEC 9.5, 9.7).

use crate::cell::Direction;

use super::Schedule;
use super::terms::PacedTerms;

const MS: u64 = 1_000_000;
/// The last rounds of a batch, which belong to no phase.
const SPARE: u64 = 64;

/// The times of a class in a chain. Times are ns since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timetable {
    period_ns: u64,
    rounds: u64,
    hops: usize,
    /// off_1 to off_h, and off'_1 to off'_h, in ns.
    forward: Vec<u64>,
    backward: Vec<u64>,
}

/// What travels in a phase. Links are counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Setups on this link.
    Setup(usize),
    /// Acks on this link.
    Ack(usize),
}

impl Timetable {
    pub(super) fn new(terms: &PacedTerms, hops: usize) -> Timetable {
        let ms = |ms: u16| u64::from(ms) * MS;
        let period_ns = ms(terms.period_ms);
        let copies = u64::from(terms.copies - 1) * u64::from(terms.gap) * period_ns;
        let mut forward = vec![copies + ms(terms.slack_ms)];
        for step in &terms.steps_ms {
            forward.push(forward[forward.len() - 1] + ms(*step));
        }
        let mut backward = vec![forward[forward.len() - 1] + MS];
        for step in terms.steps_ms.iter().rev() {
            backward.push(backward[backward.len() - 1] + ms(*step));
        }
        backward.reverse();
        Timetable { period_ns, rounds: terms.rounds.into(), hops, forward, backward }
    }

    /// T, in ns.
    pub fn period(&self) -> u64 {
        self.period_ns
    }

    /// When round `round` begins.
    pub fn begin(&self, round: u64) -> u64 {
        round * self.period_ns
    }

    /// The round that runs at `now_ns`.
    pub fn round_at(&self, now_ns: u64) -> u64 {
        now_ns / self.period_ns
    }

    /// How long after its begin hop `hop`, from 1, releases a round.
    pub fn offset(&self, direction: Direction, hop: usize) -> u64 {
        match direction {
            Direction::Forward => self.forward[hop - 1],
            Direction::Backward => self.backward[hop - 1],
        }
    }

    /// When hop `hop`, from 1, releases rounds.
    pub fn schedule(&self, direction: Direction, hop: usize) -> Schedule {
        Schedule::new(self.period_ns, self.offset(direction, hop))
    }

    /// The batch of a round.
    pub fn batch_of(&self, round: u64) -> u64 {
        round / self.rounds
    }

    /// The first round of a batch.
    pub fn first(&self, batch: u64) -> u64 {
        batch * self.rounds
    }

    /// L: rounds of a phase.
    pub fn phase_len(&self) -> u64 {
        self.rounds.saturating_sub(SPARE) / (2 * self.hops as u64)
    }

    /// u: the rounds at the beginning of a phase in which its cells travel.
    pub fn used(&self) -> u64 {
        3 * self.phase_len() / 4
    }

    /// The phase of a round, and the number of the round in it. None in the last rounds of a batch.
    pub fn phase_of(&self, round: u64) -> Option<(Phase, u64)> {
        let at = round % self.rounds;
        let (phase, at) = (at.checked_div(self.phase_len())? as usize + 1, at % self.phase_len());
        match phase {
            link if link <= self.hops => Some((Phase::Setup(link), at)),
            later if later <= 2 * self.hops => Some((Phase::Ack(2 * self.hops + 1 - later), at)),
            _ => None,
        }
    }

    /// The rounds of a phase in batch `batch`, in which the channels of the next batch are set up.
    pub fn rounds_of(&self, batch: u64, phase: Phase) -> std::ops::Range<u64> {
        let number = match phase {
            Phase::Setup(link) => link,
            Phase::Ack(link) => 2 * self.hops + 1 - link,
        };
        let begin = self.first(batch) + (number as u64 - 1) * self.phase_len();
        begin..begin + self.phase_len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::terms::voice;
    use super::*;
    use Direction::{Backward, Forward};

    #[test]
    fn offsets_are_those_of_the_example() {
        // T = 10 ms, copies 2, gap 1, slack 8 ms, steps of 2 ms.
        let terms = PacedTerms { steps_ms: vec![2; 3], ..voice(4) };
        let times = terms.timetable(4);
        let offsets = |direction| (1..=4).map(|hop| times.offset(direction, hop) / MS).collect::<Vec<_>>();
        assert_eq!(offsets(Forward), [18, 20, 22, 24]);
        assert_eq!(offsets(Backward), [31, 29, 27, 25]);
    }

    #[test]
    fn a_link_has_one_step_in_both_directions() {
        let terms = PacedTerms { steps_ms: vec![1, 2, 4], ..voice(4) };
        let times = terms.timetable(4);
        for hop in 2..=4 {
            let forward = times.offset(Forward, hop) - times.offset(Forward, hop - 1);
            let backward = times.offset(Backward, hop - 1) - times.offset(Backward, hop);
            assert_eq!((forward, backward), ([1, 2, 4][hop - 2] * MS, [1, 2, 4][hop - 2] * MS));
        }
    }

    #[test]
    fn phases_have_the_lengths_of_the_specification() {
        for (hops, length, used) in [(2, 496, 372), (4, 248, 186), (8, 124, 93)] {
            let times = voice(hops).timetable(hops);
            assert_eq!((times.phase_len(), times.used()), (length, used));
        }
    }

    #[test]
    fn each_round_has_the_phase_whose_rounds_hold_it() {
        let times = voice(4).timetable(4);
        let batch = 83;
        let mut phases = Vec::new();
        for round in times.first(batch)..times.first(batch + 1) {
            assert_eq!(times.batch_of(round), batch);
            let Some((phase, at)) = times.phase_of(round) else { continue };
            let rounds = times.rounds_of(batch, phase);
            assert!(rounds.contains(&round) && round - rounds.start == at);
            phases.push(phase);
        }
        assert_eq!(2048 - phases.len(), 64, "rounds without a phase");
        phases.dedup();
        let setups = (1..=4).map(Phase::Setup);
        assert_eq!(phases, setups.chain((1..=4).rev().map(Phase::Ack)).collect::<Vec<_>>());
    }

    #[test]
    fn round_number_follows_from_the_time() {
        let times = voice(4).timetable(4);
        let round = 179_000_000_123;
        assert_eq!([0, 10 * MS - 1, 10 * MS].map(|late| times.round_at(times.begin(round) + late) - round), [0, 0, 1]);
    }
}
