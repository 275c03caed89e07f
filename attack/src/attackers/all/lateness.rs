//! Lateness: how late each cell is on the clock of its own link, against what the flow sends.
//!
//! A link at a constant rate shows nothing by its rate. But software that reads, encrypts or copies for a datagram and
//! not for a dummy sends data some microseconds later. The attacker fits the link's clock, takes what is left, and
//! correlates it with the datagrams of every flow at the delay of the chain, which all pairs share.

use rayon::prelude::*;

use crate::{
    Attacker, Record, Scores,
    clock::{Clock, period},
    math::{dot, median},
};

/// The longest delay between access link and flow, in nanoseconds.
const LONGEST_DELAY: u64 = 1_500_000_000;

/// Delays that are tried at most, one period of the link apart.
const DELAYS: usize = 128;

/// Slots that the delay is fitted to.
const FITTED: usize = 2_000;

/// The time over which a link's clock may wander, in nanoseconds.
const WANDER: u64 = 10_000_000_000;

/// Finds pacing that depends on data.
pub(crate) struct Lateness;

impl Attacker for Lateness {
    fn name(&self) -> String {
        "lateness".into()
    }

    fn source(&self) -> &'static str {
        "X. Fu et al., On Effectiveness of Link Padding for Statistical Traffic Analysis Attacks, ICDCS 2003 (timers that \
         payload delays); S. Murdoch, Hot or Not: Revealing Hidden Services by Their Clock Skew, CCS 2006 (fitting a \
         remote clock)"
    }

    fn scores(&self, record: &Record) -> Scores {
        let agreement =
            |forward| agreement(&record.access_cells(forward), &record.datagrams(forward), record.length, forward);
        let (forward, backward) = (agreement(true), agreement(false));
        let squared = |z: f32| f64::from(z * z.abs());
        Scores::of_pairs(record.access.len(), record.flows.len(), |user, flow| {
            let of = |table: &[Vec<f32>]| table.get(user).map_or(0.0, |row| squared(row[flow]));
            of(&forward) + of(&backward)
        })
    }
}

/// Normalised correlation of each user's lateness with each flow's datagrams, at the delay and with the sign that fit
/// all pairs best. Empty where the links are not paced.
fn agreement(cells: &[Vec<u64>], datagrams: &[Vec<u64>], length: u64, forward: bool) -> Vec<Vec<f32>> {
    let mut periods: Vec<f64> = cells.iter().filter_map(|times| period(times)).collect();
    if periods.is_empty() {
        return Vec::new();
    }
    let period = median(&mut periods);
    let slots = (length as f64 / period) as usize + 1;
    let late: Vec<Vec<f32>> = cells.par_iter().map(|times| standard(lateness(times, period, slots))).collect();
    let active: Vec<Vec<f32>> = datagrams.par_iter().map(|times| standard(activity(times, period, slots))).collect();

    let delays = ((LONGEST_DELAY as f64 / period) as usize).clamp(1, DELAYS).min(slots);
    let at = |delay: usize, slots: usize| -> Vec<Vec<f32>> {
        let pair = |late: &[f32], active: &[f32]| match forward {
            true => dot(&late[..slots - delay], &active[delay..slots]),
            false => dot(&late[delay..slots], &active[..slots - delay]),
        };
        let scale = ((slots - delay) as f32).sqrt().max(1.0);
        late.iter().map(|late| active.iter().map(|active| pair(late, active) / scale).collect()).collect()
    };
    // Pairs that belong together stick out at the delay of the chain only: the fourth power finds them among many.
    let sticking = |delay: usize| -> (f64, usize, f64) {
        let table = at(delay, slots.min(delay + FITTED));
        let sum = |power: i32| table.iter().flatten().map(|z| f64::from(z.powi(power))).sum::<f64>();
        (sum(4), delay, sum(3))
    };
    let all: Vec<(f64, usize, f64)> = (0..delays).into_par_iter().map(sticking).collect();
    let Some(&(_, best, skew)) = all.iter().max_by(|a, b| a.0.total_cmp(&b.0)) else { return Vec::new() };
    let sign = if skew < 0.0 { -1.0 } else { 1.0 };
    // Links differ in phase, so a delay may be in the slot before or after.
    let near: Vec<Vec<Vec<f32>>> =
        (best.saturating_sub(1)..delays.min(best + 2)).into_par_iter().map(|delay| at(delay, slots)).collect();
    let strongest = |user: usize, flow: usize| near.iter().map(|t| sign * t[user][flow]).fold(f32::MIN, f32::max);
    (0..late.len()).map(|user| (0..active.len()).map(|flow| strongest(user, flow)).collect()).collect()
}

/// How late the cells of each slot are on the link's own clock, in nanoseconds: zero for slots without a cell.
fn lateness(times: &[u64], common: f64, slots: usize) -> Vec<f32> {
    let mut late = vec![0.0; slots];
    let Some(Clock { late: mut residuals, .. }) = Clock::of(times) else { return late };
    flatten(&mut residuals, (WANDER as f64 / common) as usize);
    let spread = median(&mut residuals.iter().map(|residual| residual.abs()).collect::<Vec<f64>>());
    let mut counts = vec![0.0_f32; slots];
    for (&at, residual) in times.iter().zip(residuals) {
        let slot = (at as f64 / common) as usize;
        if slot < slots {
            late[slot] += residual.clamp(-6.0 * spread, 6.0 * spread) as f32;
            counts[slot] += 1.0;
        }
    }
    late.iter_mut().zip(counts).filter(|(_, count)| *count > 1.0).for_each(|(late, count)| *late /= count);
    late
}

/// Subtracts the mean of the `window` values around each: a clock may wander.
fn flatten(values: &mut [f64], window: usize) {
    let mut sums = vec![0.0];
    sums.extend(values.iter().scan(0.0, |sum, value| {
        *sum += value;
        Some(*sum)
    }));
    let count = values.len();
    for (i, value) in values.iter_mut().enumerate() {
        let (from, to) = (i.saturating_sub(window / 2), (i + window / 2 + 1).min(count));
        *value -= (sums[to] - sums[from]) / (to - from) as f64;
    }
}

/// Datagrams in each slot.
fn activity(times: &[u64], period: f64, slots: usize) -> Vec<f32> {
    let mut counts = vec![0.0; slots];
    for &at in times {
        if let Some(count) = counts.get_mut((at as f64 / period) as usize) {
            *count += 1.0;
        }
    }
    counts
}

/// Mean zero and variance one, or all zero.
fn standard(mut values: Vec<f32>) -> Vec<f32> {
    let count = values.len() as f32;
    let mean = values.iter().sum::<f32>() / count;
    let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count).sqrt();
    values.iter_mut().for_each(|value| *value = if deviation > 0.0 { (*value - mean) / deviation } else { 0.0 });
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Place, Seen};

    #[test]
    fn bursts_over_an_hour_are_scored_as_equal() {
        let trace: Vec<Seen> = (0..4000).map(|i| Seen { at: (i / 20) * 18_000_000_000 + (i % 20), bytes: 9 }).collect();
        let place = Place { forward: trace.clone(), backward: trace };
        let record = Record {
            length: 3_600_000_000_000,
            cell_bytes: 9,
            access: vec![place.clone(); 3],
            flows: vec![place; 3],
            ..Record::default()
        };
        assert_eq!(Lateness.scores(&record), Scores::of_pairs(3, 3, |_, _| 0.0));
    }
}
