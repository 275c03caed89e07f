//! The parameters of a paced class (SPEC 9.16).

use std::ops::RangeInclusive;

use crate::cell::{Direction, Shape};
use crate::setup::{Suite, paced_shards};
use crate::shards::Shards;
use thiserror::Error;

use super::{AHEAD_MAX, PacedClass, Timetable};

/// Bounds of T, in ms.
pub const PERIOD_MS: RangeInclusive<u16> = 5..=100;
/// Bounds of c.
pub const CELLS: RangeInclusive<u8> = 1..=32;
/// The most that R may be. The least depends on the chain ([`PacedTerms::check`]).
pub const ROUNDS_MAX: u16 = 8192;
/// Bounds of `copies`.
pub const COPIES: RangeInclusive<u8> = 1..=4;
/// Bounds of `gap`, in rounds.
pub const GAP: RangeInclusive<u8> = 1..=4;
/// Bounds of `seats`.
pub const SEATS: RangeInclusive<u16> = 1..=16_384;
/// Most pairs of loops of a mix.
pub const LOOPS_MAX: u8 = 64;
/// Bounds of `slack`, in ms.
pub const SLACK_MS: RangeInclusive<u16> = 1..=500;
/// Bounds of each step, in ms.
pub const STEP_MS: RangeInclusive<u16> = 1..=500;
/// Each step unless chosen otherwise.
pub const STEP_DEFAULT_MS: u16 = 5;
/// Characters of a name at most.
pub const NAME_MAX: usize = 16;
/// Rounds after which the answer to a round leaves Mix 1 at the latest.
const ANSWER_MAX: u64 = 48;
/// Rounds for each hop in which the parts of a bundle reach an entry.
const BUNDLE_ROUNDS: u64 = 240;

/// The parameters of a paced class, the same for all hops and users. Its fields have the names of SPEC 9.16.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacedTerms {
    pub class: PacedClass,
    pub name: String,
    /// T: ms between two rounds.
    pub period_ms: u16,
    /// c: cells of a channel in a round.
    pub cells: u8,
    /// R: rounds of a batch.
    pub rounds: u16,
    /// How often a data cell is sent on link 1.
    pub copies: u8,
    /// Rounds between two copies.
    pub gap: u8,
    /// True if cells repeat the frames of the round before.
    pub repeat: bool,
    /// Mix 1 fills batches of fewer channels with noise.
    pub n_min: u16,
    /// Channels of a batch at Mix 1.
    pub seats: u16,
    /// Most pairs of loops of a mix.
    pub loops: u8,
    /// slack: ms after the time of a round in which its cells may reach Mix 1.
    pub slack_ms: u16,
    /// step_2 to step_h.
    pub steps_ms: Vec<u16>,
}

/// Why a chain refuses the terms of a paced class.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadPacedTerms {
    #[error("name must be 1 to {NAME_MAX} of the characters a-z, 0-9 and - (got {0:?})")]
    Name(String),
    #[error("{key} must be {least} to {most} (got {found})")]
    Range { key: &'static str, least: u32, most: u32, found: u32 },
    #[error("rounds must be a power of two up to {ROUNDS_MAX} (got {0})")]
    Rounds(u16),
    #[error("steps_ms must have {expected} steps, one for each link after the first (got {found})")]
    Steps { expected: usize, found: usize },
    #[error("copies, gap and slack_ms delay a cell for {delay_ms} ms at Mix 1: at most {most_ms} with this period_ms")]
    Delay { delay_ms: u32, most_ms: u32 },
    #[error("steps_ms has a step of {step_ms} ms: at most {most_ms} with this period_ms")]
    Step { step_ms: u16, most_ms: u32 },
    #[error(
        "rounds is too small: a setup has {cells} cells, and a phase has {slots} rounds for them: in a chain of this length \
         expected {least} or more"
    )]
    Phase { cells: usize, slots: u64, least: u16 },
    #[error("n_min must be 1 to seats, which is {seats} (got {n_min})")]
    Company { n_min: u16, seats: u16 },
    #[error(
        "steps_ms, slack_ms, copies and gap make the first hop answer {late_ms} ms after a round begins: at most \
         {most_ms} with this period_ms"
    )]
    Answer { late_ms: u64, most_ms: u64 },
    #[error(
        "with this period_ms and this number of hops the interval must be at least {least_ms} ms (got {interval_ms}), \
         otherwise setup keys do not reach users in time"
    )]
    Interval { interval_ms: u64, least_ms: u64 },
    #[error(
        "with these rounds a setup may come {late_ms} ms after the interval of its keys began, but keys last {most_ms} \
         ms beyond their epoch: lower rounds, period_ms or the interval, or raise the epoch"
    )]
    Keys { late_ms: u64, most_ms: u64 },
}

impl BadPacedTerms {
    /// A key of the class that is to change.
    pub const fn key(&self) -> &'static str {
        match self {
            BadPacedTerms::Name(_) => "name",
            BadPacedTerms::Range { key, .. } => key,
            BadPacedTerms::Rounds(_) | BadPacedTerms::Phase { .. } | BadPacedTerms::Keys { .. } => "rounds",
            BadPacedTerms::Steps { .. } | BadPacedTerms::Step { .. } | BadPacedTerms::Answer { .. } => "steps_ms",
            BadPacedTerms::Company { .. } => "n_min",
            BadPacedTerms::Delay { .. } => "slack_ms",
            BadPacedTerms::Interval { .. } => "period_ms",
        }
    }
}

impl PacedTerms {
    /// The defaults, in a chain of `hops` hops.
    pub fn new(class: PacedClass, name: &str, hops: usize) -> PacedTerms {
        PacedTerms {
            class,
            name: name.to_owned(),
            period_ms: 10,
            cells: 1,
            rounds: 2048,
            copies: 2,
            gap: 1,
            repeat: false,
            n_min: 8,
            seats: 256,
            loops: 2,
            slack_ms: 8,
            steps_ms: vec![STEP_DEFAULT_MS; hops.saturating_sub(1)],
        }
    }

    /// Its rounds, in a chain of `hops` hops.
    pub fn timetable(&self, hops: usize) -> Timetable {
        Timetable::new(self, hops)
    }

    /// How a setup is spread over cells on link `link`.
    ///
    /// # Panics
    /// A chain has at most eight hops.
    pub fn setup_shards(&self, suite: Suite, hops: usize, link: usize) -> Shards {
        let shape = Shape::new(self.class.size(), hops).expect("a chain has at most eight hops");
        paced_shards(shape, suite, link)
    }

    /// Its part of the chain id.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend([self.class.number(), self.name.len() as u8]);
        out.extend(self.name.as_bytes());
        out.extend(self.period_ms.to_be_bytes());
        out.push(self.cells);
        out.extend(self.rounds.to_be_bytes());
        out.extend([self.copies, self.gap, u8::from(self.repeat)]);
        out.extend(self.n_min.to_be_bytes());
        out.extend(self.seats.to_be_bytes());
        out.push(self.loops);
        out.extend(self.slack_ms.to_be_bytes());
        out.extend(self.steps_ms.iter().flat_map(|step| step.to_be_bytes()));
    }

    /// The least `rounds`, its own or more, whose phases have room for a setup. `rounds` is a power of two.
    ///
    /// # Panics
    /// As [`PacedTerms::setup_shards`].
    pub fn rounds_min(&self, suite: Suite, hops: usize) -> u16 {
        let cells = self.setup_shards(suite, hops, 1).total() as u64;
        let longer = std::iter::successors(Some(self.rounds), |rounds| rounds.checked_mul(2));
        let mut in_range = longer.take_while(|rounds| *rounds <= ROUNDS_MAX);
        let fits = |rounds: &u16| PacedTerms { rounds: *rounds, ..self.clone() }.timetable(hops).used() >= cells;
        in_range.find(fits).unwrap_or(ROUNDS_MAX)
    }

    /// The shortest interval in which all parts of a bundle reach an entry on its link of this class.
    pub fn interval_ms_min(&self, hops: usize) -> u64 {
        BUNDLE_ROUNDS * hops as u64 * u64::from(self.period_ms)
    }

    /// True for a text that may be a class's name: 1 to 16 of a-z, 0-9 and `-`.
    pub fn is_name(text: &str) -> bool {
        let is_part = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(is_part)
    }

    /// The longest delay of cells on a link, in ms: a hop takes cells of eight rounds, of which two are spare (SPEC
    /// 9.16.2).
    pub fn link_max_ms(&self) -> u32 {
        (AHEAD_MAX as u32 - 2) * u32::from(self.period_ms)
    }

    /// Checks ranges and what they must have in common.
    ///
    /// # Errors
    /// See [`BadPacedTerms`].
    pub fn check(&self, suite: Suite, hops: usize, interval_s: u32, epoch_s: u32) -> Result<(), BadPacedTerms> {
        if !PacedTerms::is_name(&self.name) {
            return Err(BadPacedTerms::Name(self.name.clone()));
        }
        within("period_ms", PERIOD_MS, self.period_ms)?;
        within("cells", CELLS, self.cells)?;
        within("copies", COPIES, self.copies)?;
        within("gap", GAP, self.gap)?;
        within("seats", SEATS, self.seats)?;
        if !(1..=self.seats).contains(&self.n_min) {
            return Err(BadPacedTerms::Company { n_min: self.n_min, seats: self.seats });
        }
        within("loops", 0..=LOOPS_MAX, self.loops)?;
        within("slack_ms", SLACK_MS, self.slack_ms)?;
        self.steps_ms.iter().try_for_each(|step| within("steps_ms", STEP_MS, *step))?;
        if !self.rounds.is_power_of_two() || self.rounds > ROUNDS_MAX {
            return Err(BadPacedTerms::Rounds(self.rounds));
        }
        if self.steps_ms.len() != hops - 1 {
            return Err(BadPacedTerms::Steps { expected: hops - 1, found: self.steps_ms.len() });
        }
        let period_ms = u32::from(self.period_ms);
        let most_ms = self.link_max_ms();
        let delay_ms = u32::from(self.copies - 1) * u32::from(self.gap) * period_ms + u32::from(self.slack_ms);
        if delay_ms > most_ms {
            return Err(BadPacedTerms::Delay { delay_ms, most_ms });
        }
        if let Some(step_ms) = self.steps_ms.iter().copied().find(|step| u32::from(*step) > most_ms) {
            return Err(BadPacedTerms::Step { step_ms, most_ms });
        }
        let (least, cells) = (self.rounds_min(suite, hops), self.setup_shards(suite, hops, 1).total());
        if self.rounds < least {
            return Err(BadPacedTerms::Phase { cells, slots: self.timetable(hops).used(), least });
        }
        let (period_ms, interval_ms) = (u64::from(self.period_ms), u64::from(interval_s) * 1000);
        let times = self.timetable(hops);
        let (late_ms, most_ms) = (times.offset(Direction::Backward, 1) / 1_000_000, ANSWER_MAX * period_ms);
        if late_ms > most_ms {
            return Err(BadPacedTerms::Answer { late_ms, most_ms });
        }
        let least_ms = self.interval_ms_min(hops);
        if interval_ms < least_ms {
            return Err(BadPacedTerms::Interval { interval_ms, least_ms });
        }
        let last_ms = times.offset(Direction::Backward, hops) / 1_000_000;
        let late_ms = interval_ms + u64::from(self.rounds) * period_ms / 2 + last_ms;
        let most_ms = u64::from(epoch_s) * 1000 / 6;
        if late_ms > most_ms {
            return Err(BadPacedTerms::Keys { late_ms, most_ms });
        }
        Ok(())
    }
}

fn within<T: Copy + PartialOrd + Into<u32>>(
    key: &'static str,
    range: RangeInclusive<T>,
    found: T,
) -> Result<(), BadPacedTerms> {
    if range.contains(&found) {
        return Ok(());
    }
    Err(BadPacedTerms::Range { key, least: (*range.start()).into(), most: (*range.end()).into(), found: found.into() })
}

/// The defaults of SPEC 9.16, for tests.
#[cfg(test)]
pub(super) fn voice(hops: usize) -> PacedTerms {
    PacedTerms::new(PacedClass::new(crate::cell::Class::S), "voice", hops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Class;

    #[test]
    fn setup_has_the_shards_of_the_specification() {
        let table = |size, hops| {
            let terms = PacedTerms { class: PacedClass::new(size), ..voice(hops) };
            let on_link = |link| terms.setup_shards(Suite::Hybrid, hops, link);
            (1..=hops).map(|link| (on_link(link).data, on_link(link).parity)).collect::<Vec<_>>()
        };
        assert_eq!(table(Class::S, 4)[0].0, 23);
        assert_eq!(table(Class::S, 4)[1..], [(17, 5), (12, 3), (6, 3)]);
        assert_eq!(table(Class::S, 8)[0].0, 45);
        assert_eq!(table(Class::S, 8)[1..], [(39, 10), (34, 9), (28, 7), (23, 6), (17, 5), (12, 3), (6, 3)]);
        assert_eq!(table(Class::M, 4)[1..], [(4, 3), (3, 3), (2, 3)]);
        assert_eq!(table(Class::L, 8)[0].0, 7);
    }

    #[test]
    fn terms_out_of_range_are_named() {
        let check = |terms: &PacedTerms| terms.check(Suite::Hybrid, 4, 60, 3600).map_err(|bad| bad.to_string());
        assert_eq!(check(&voice(4)), Ok(()));
        let refused = |change: fn(&mut PacedTerms)| {
            let mut terms = voice(4);
            change(&mut terms);
            check(&terms).unwrap_err()
        };
        for (change, expected) in [
            ((|terms| terms.name = "Voice".into()) as fn(&mut PacedTerms), "name must be 1 to 16 of the characters"),
            (|terms| terms.name.clear(), "name must be 1 to 16"),
            (|terms| terms.period_ms = 4, "period_ms must be 5 to 100 (got 4)"),
            (|terms| terms.cells = 33, "cells must be 1 to 32"),
            (|terms| terms.n_min = 257, "n_min must be 1 to seats, which is 256 (got 257)"),
            (|terms| terms.rounds = 2000, "rounds must be a power of two"),
            (
                |terms| terms.rounds = 256,
                "a setup has 29 cells, and a phase has 18 rounds for them: in a chain of this length expected 512 or more",
            ),
            (|terms| terms.steps_ms.truncate(2), "must have 3 steps, one for each link after the first (got 2)"),
            (|terms| (terms.gap, terms.copies) = (4, 3), "delay a cell for 88 ms at Mix 1: at most 60"),
            (|terms| terms.steps_ms[1] = 61, "steps_ms has a step of 61 ms: at most 60"),
        ] {
            let found = refused(change);
            assert!(found.contains(expected), "{found}");
        }
        assert_eq!(check(&PacedTerms { gap: 4, ..voice(4) }), Ok(()), "48 ms of eight rounds");
        assert_eq!(check(&PacedTerms { rounds: 512, ..voice(4) }), Ok(()), "the least for m = 3");
        let least = |hops| PacedTerms { rounds: 2, ..voice(hops) }.rounds_min(Suite::Hybrid, hops);
        assert_eq!([least(4), least(6), least(8), voice(4).rounds_min(Suite::Hybrid, 4)], [512, 1024, 2048, 2048]);
        let long = PacedTerms { rounds: 8192, period_ms: 100, ..voice(4) };
        assert!(check(&long).unwrap_err().contains("the interval must be at least 96000 ms (got 60000)"));
        let epoch = |epoch_s| long.check(Suite::Hybrid, 4, 96, epoch_s);
        assert_eq!(epoch(3600), Ok(()));
        assert_eq!(epoch(1800), Err(BadPacedTerms::Keys { late_ms: 505_724, most_ms: 300_000 }));
        let slow = PacedTerms { period_ms: 5, steps_ms: vec![30; 7], ..voice(8) }.check(Suite::Hybrid, 8, 60, 3600);
        assert_eq!(slow, Err(BadPacedTerms::Answer { late_ms: 434, most_ms: 240 }));
    }

    #[test]
    fn encoding_is_that_of_the_specification() {
        let mut out = Vec::new();
        voice(4).encode(&mut out);
        let expected = hex_literal::hex!("11 05 766f696365 000a 01 0800 02 01 00 0008 0100 02 0008 0005 0005 0005");
        assert_eq!(out, expected);
    }
}
