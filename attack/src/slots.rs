//! The regular times of a link, and the cells that are missing from them.

use crate::{
    links::{self, LinkRound},
    record::Record,
};

/// Cells closer together than this share a slot, in nanoseconds.
const SLOT: u64 = 1_000_000;
/// A link that sends nothing for more slots than this is down, or does not send at regular times.
const MOST: u64 = 100;
/// Rounds that are lost with a smaller probability do not count.
const FAINT: f64 = 0.05;

/// A run of slots that lack cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The time of the first slot that lacks a cell.
    pub from: u64,
    /// The time of the last one.
    pub to: u64,
    /// Cells that are missing from all of them. Of a paced class whose terms are known: four times the number of rounds
    /// that are lost, as expected from what is missing.
    pub cells: u32,
}

/// A link that sends the same number of cells at regular times.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    pub period: u64,
    /// The slots that lack a cell, each once, with the probability that its data is lost.
    pub lacking: Vec<(u64, f64)>,
    pub runs: Vec<Run>,
}

impl Slots {
    /// The slots of an access link. With the terms of a paced class, data is lost if all copies of its cell are, and of
    /// the next round's with `repeat`, and control slots do not count. `None` if the link does not send at regular
    /// times.
    pub(crate) fn seen(record: &Record, user: usize, forward: bool, repeat: bool) -> Option<Self> {
        match &record.paced {
            Some(shape) => Some(Self::paced(shape.period, &links::rounds(record, user, forward), repeat)),
            None => Self::of(&record.cells(record.access[user].trace(forward)).collect::<Vec<u64>>()),
        }
    }

    fn paced(period: u64, rounds: &[LinkRound], repeat: bool) -> Self {
        let rescued = |i: usize| if repeat { rounds.get(i + 1).map_or(1.0, |next| next.lost) } else { 1.0 };
        let lost = rounds.iter().enumerate().map(|(i, round)| (round.at, round.lost * rescued(i)));
        let lacking: Vec<(u64, f64)> = lost.filter(|(_, lost)| *lost >= FAINT).collect();
        let mut runs: Vec<(Run, f64)> = Vec::new();
        for &(at, lost) in &lacking {
            match runs.last_mut() {
                Some((run, sum)) if at.saturating_sub(run.to) < period * 3 / 2 => {
                    run.to = at;
                    *sum += lost;
                }
                _ => runs.push((Run { from: at, to: at, cells: 0 }, lost)),
            }
        }
        let whole = |(run, sum): (Run, f64)| Run { cells: (4.0 * sum).round().max(1.0) as u32, ..run };
        Self { period, lacking, runs: runs.into_iter().map(whole).collect() }
    }

    /// The slots of cells at these times. `None` if fewer than half of the intervals are alike.
    fn of(cells: &[u64]) -> Option<Self> {
        let mut slots: Vec<(u64, u32)> = Vec::new();
        for &at in cells {
            match slots.last_mut() {
                Some((first, count)) if at - *first < SLOT => *count = count.saturating_add(1),
                _ => slots.push((at, 1)),
            }
        }
        let mut intervals: Vec<u64> = slots.windows(2).map(|w| w[1].0 - w[0].0).collect();
        intervals.sort_unstable();
        let period = *intervals.get(intervals.len() / 2)?;
        let alike = intervals.iter().filter(|interval| interval.abs_diff(period) < period / 6).count();
        if alike * 2 < intervals.len() {
            return None;
        }
        let full = most_frequent(slots.iter().map(|slot| slot.1));
        let mut lacking: Vec<(u64, u32)> = Vec::new();
        for pair in slots.windows(2) {
            let (at, count) = pair[0];
            if count < full {
                lacking.push((at, full - count));
            }
            let gap = pair[1].0 - at;
            let steps = (gap + period / 2) / period;
            if (2..=MOST).contains(&steps) {
                lacking.extend((1..steps).map(|step| (at + gap * step / steps, full)));
            }
        }
        let runs = runs(&lacking, period);
        Some(Self { period, lacking: lacking.into_iter().map(|slot| (slot.0, 1.0)).collect(), runs })
    }
}

fn most_frequent(counts: impl Iterator<Item = u32>) -> u32 {
    let mut seen = [0u32; 64];
    for count in counts {
        seen[(count as usize).min(63)] += 1;
    }
    (0..64).max_by_key(|&count| seen[count as usize]).unwrap_or(1)
}

fn runs(lacking: &[(u64, u32)], period: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &(at, cells) in lacking {
        match runs.last_mut() {
            Some(run) if at - run.to < period * 3 / 2 => {
                run.to = at;
                run.cells = run.cells.saturating_add(cells);
            }
            _ => runs.push(Run { from: at, to: at, cells }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_cells_are_found_in_their_slots() {
        const MS: u64 = 1_000_000;
        let lost = [(5, 0), (5, 1), (6, 0), (20, 1)];
        let cells: Vec<u64> = (0..40u64)
            .flat_map(|slot| (0..2).map(move |copy| (slot, copy)))
            .filter(|cell| !lost.contains(cell))
            .map(|(slot, copy)| 3 * MS + slot * 10 * MS + (slot * 7919) % 50_000 + copy * 5_000)
            .collect();
        let slots = Slots::of(&cells).unwrap();
        assert!(slots.period.abs_diff(10 * MS) < 100_000);
        assert_eq!(slots.runs.iter().map(|run| run.cells).collect::<Vec<_>>(), [3, 1]);
        assert!(slots.runs[0].from.abs_diff(53 * MS) < MS && slots.runs[0].to.abs_diff(63 * MS) < MS);
        assert_eq!(slots.lacking.len(), 3);
    }

    #[test]
    fn irregular_links_have_no_slots() {
        let mut at = 0;
        let cells: Vec<u64> = (0..500u64)
            .map(|i| {
                at += 2_000_000 + (i * i * 7919) % 40_000_000;
                at
            })
            .collect();
        assert!(Slots::of(&cells).is_none());
    }

    #[test]
    fn repetition_rescues_a_round_before_one_that_came() {
        let lost = [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.25, 0.0];
        let rounds: Vec<LinkRound> = (0..)
            .zip(lost)
            .map(|(round, lost)| LinkRound { round, at: 10 * round, lost, missing: lost, late: 0.0 })
            .collect();
        let cells = |repeat| -> Vec<(u64, u32)> {
            Slots::paced(10, &rounds, repeat).runs.iter().map(|run| (run.from, run.cells)).collect()
        };
        assert_eq!(cells(false), [(10, 4), (30, 8), (60, 1)]);
        assert_eq!(cells(true), [(30, 4)]);
    }
}
