//! Detectors of watermarks. A detector knows the secret, so it knows when a flow that carries the mark has a hole or
//! comes twice as fast. It compares the flow with that pattern at every delay that the chain may have. Then it does the
//! same with the patterns of other secrets, which the flow cannot carry: these show how far chance deviates.

use rayon::prelude::*;

use super::{
    LONGEST_DELAY,
    plan::{DelayWatermark, DropWatermark},
};
use crate::math::median;

/// Secrets that are compared with.
const OTHERS: u64 = 32;

/// How far a chain may smear a time on either side, in nanoseconds.
const SMEAR: u64 = 8_000_000;

/// Nanoseconds on either side of a time that show the rate of a flow.
const RATE: u64 = 100_000_000;

/// Nanoseconds by which the time of a dropped cell may be unknown.
const JITTER: u64 = 3_000_000;

/// Patterns of less weight show too little to be compared with others.
const LEAST_WEIGHT: f64 = 10.0;

/// The least variance of fits, in datagrams.
const LEAST_VARIANCE: f64 = 0.25;

/// Packets on either side of a gap that decide whether something is missing.
const AROUND: usize = 7;

/// Times at which a flow shows something if it carries the mark, and how much each counts.
type Pattern = Vec<(u64, f64)>;

/// For each flow: how much better the plan's pattern fits than those of other secrets, in deviations. Only what the
/// first `until` nanoseconds show is used.
pub(super) fn delayed(flows: &[Vec<u64>], plan: &DelayWatermark, delays: &[u64], until: u64) -> Vec<f64> {
    // When the delay begins, nothing comes for as long as it is; when it ends, cells come twice as often.
    let switches = |seed: u64| -> Pattern {
        let plan = DelayWatermark { seed, ..plan.clone() };
        let last = until.saturating_sub(LONGEST_DELAY + plan.delay) / plan.period;
        let switch = |period: u64| {
            let (before, after) = (plan.delays((period - 1) * plan.period), plan.delays(period * plan.period));
            (before != after).then_some((period * plan.period, if after { -1.0 } else { 1.0 }))
        };
        (1..last).filter_map(switch).collect()
    };
    let patterns = Patterns::of(plan.seed, switches);
    let strength = |flow: &Vec<u64>| {
        let counts = Counts::new(flow, until);
        patterns.strength(delays, |at| counts.between(at, at + plan.delay))
    };
    flows.par_iter().map(strength).collect()
}

/// The same for dropped slots. `cells` are those of the target's access link that were not dropped.
///
/// A regular flow lacks a datagram where the regular link lacks a cell. Any other flow has fewer datagrams in marked
/// slots than just before and after them, so its talk spurts and pauses do not count.
pub(super) fn dropped(flows: &[Vec<u64>], cells: &[u64], plan: &DropWatermark, delays: &[u64], until: u64) -> Vec<f64> {
    let last = until.saturating_sub(LONGEST_DELAY + plan.slot + SMEAR);
    // The adversary knows which cells it dropped: those that its target's link lacks. With other secrets it would have
    // dropped others.
    let lacking = missing(cells);
    let sent: Vec<u64> = cells.iter().chain(&lacking).copied().collect();
    let holes = Patterns::of(plan.seed, |seed| {
        let (times, slack) = if seed == plan.seed { (&lacking, JITTER) } else { (&sent, 0) };
        let plan = DropWatermark { seed, ..plan.clone() };
        let marked = |at: u64| plan.marks(at.saturating_sub(slack) / plan.slot) || plan.marks((at + slack) / plan.slot);
        times.iter().filter(|&&at| at < last && marked(at)).map(|&at| (at, 1.0)).collect()
    });
    // A slot counts as much as the cells just before and after it suggest that it would have had.
    let half = plan.slot / 2 + SMEAR;
    let link = Counts::new(cells, until);
    let slots = Patterns::of(plan.seed, |seed| {
        let marked = (0..last / plan.slot).filter(|&slot| DropWatermark { seed, ..plan.clone() }.marks(slot));
        marked.map(|slot| slot * plan.slot + plan.slot / 2).map(|at| (at, link.expected(at, half))).collect()
    });
    let strength = |flow: &Vec<u64>| {
        let counts = Counts::new(flow, until);
        let fewer = slots.strength(delays, |at| counts.expected(at, half) - counts.around(at, half));
        let lacks = Counts::new(&missing(flow), until);
        let by_chance = lacks.between(0, until) * 2.0 * SMEAR as f64 / until as f64;
        fewer.max(holes.strength(delays, |at| lacks.around(at, SMEAR) - by_chance))
    };
    flows.par_iter().map(strength).collect()
}

/// The pattern of the plan, and those of other secrets.
struct Patterns {
    own: Pattern,
    others: Vec<Pattern>,
    /// The mean weight of the others: the sum of squares.
    weight: f64,
}

impl Patterns {
    fn of(seed: u64, pattern: impl Fn(u64) -> Pattern) -> Self {
        let others: Vec<Pattern> = (1..=OTHERS).map(|i| pattern(seed.wrapping_add(i << 32))).collect();
        let weight = others.iter().map(|other| weight(other)).sum::<f64>() / OTHERS as f64;
        Self { own: pattern(seed), others, weight }
    }

    /// How far the fit of the plan's pattern, at the delay at which it is best, is above the mean of those of the
    /// others, in their deviations. `shown` is what the flow shows at a time.
    fn strength(&self, delays: &[u64], shown: impl Fn(u64) -> f64) -> f64 {
        let fit = |pattern: &Pattern| {
            let at = |delay: &u64| pattern.iter().map(|&(at, weight)| weight * shown(at + delay)).sum::<f64>();
            let best = delays.iter().map(at).fold(f64::MIN, f64::max);
            // A pattern of many times varies more than one of few: all are taken to one weight.
            best * (self.weight / weight(pattern).max(LEAST_WEIGHT)).sqrt()
        };
        let fits: Vec<f64> = self.others.iter().map(fit).collect();
        let mean = fits.iter().sum::<f64>() / fits.len() as f64;
        let variance = fits.iter().map(|other| (other - mean).powi(2)).sum::<f64>() / fits.len() as f64;
        // A fit counts datagrams: where hardly any are counted, the deviation is not known to less than a part of one.
        (fit(&self.own) - mean) / (variance + LEAST_VARIANCE).sqrt()
    }
}

fn weight(pattern: &[(u64, f64)]) -> f64 {
    pattern.iter().map(|(_, weight)| weight * weight).sum()
}

/// Packets that a regular trace leaves out: where a gap is too long, and those after it are late for good. After a
/// stall they catch up, and after a silence (a gap of more than four) a new rhythm begins.
fn missing(trace: &[u64]) -> Vec<u64> {
    let mut gaps: Vec<u64> = trace.windows(2).map(|pair| pair[1] - pair[0]).collect();
    if gaps.len() < 8 {
        return Vec::new();
    }
    let middle = gaps.len() / 2;
    let usual = (*gaps.select_nth_unstable(middle).1).max(1);
    let mut missing = Vec::new();
    for spurt in trace.chunk_by(|a, b| b - a <= 4 * usual + usual / 2) {
        // How late each packet is, counted from the first of the spurt.
        let late: Vec<i64> = (0..).zip(spurt).map(|(i, &at)| (at - spurt[0]) as i64 - i * usual as i64).collect();
        for i in (1..spurt.len()).filter(|&i| 2 * (spurt[i] - spurt[i - 1]) >= 3 * usual) {
            let before = median(&mut late[i.saturating_sub(AROUND)..i].to_vec());
            let after = median(&mut late[i..late.len().min(i + AROUND)].to_vec());
            let lost = (after - before + usual as i64 / 2) / usual as i64;
            missing.extend((1..=lost.clamp(0, 3) as u64).map(|k| spurt[i - 1] + k * usual));
        }
    }
    missing
}

/// Events up to each millisecond.
struct Counts(Vec<u32>);

impl Counts {
    const BIN: u64 = 1_000_000;

    fn new(events: &[u64], until: u64) -> Self {
        let mut counts = vec![0; (until / Self::BIN) as usize + 2];
        for at in events.iter().take_while(|&&at| at < until) {
            counts[(at / Self::BIN) as usize + 1] += 1;
        }
        for i in 1..counts.len() {
            counts[i] += counts[i - 1];
        }
        Self(counts)
    }

    /// Events within `half` of a time.
    fn around(&self, at: u64, half: u64) -> f64 {
        self.between(at.saturating_sub(half), at + half)
    }

    /// The same at the rate of the events before and after these.
    fn expected(&self, at: u64, half: u64) -> f64 {
        (self.around(at, RATE) - self.around(at, half)) * half as f64 / (RATE - half) as f64
    }

    fn between(&self, from: u64, to: u64) -> f64 {
        let up_to = |at: u64| self.0[((at / Self::BIN) as usize).min(self.0.len() - 1)];
        f64::from(up_to(to).saturating_sub(up_to(from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_of_a_regular_flow_are_missing_datagrams() {
        let flow: Vec<u64> = (0..100).filter(|i| ![20, 50, 51].contains(i)).map(|i| i * 20).collect();
        assert_eq!(missing(&flow), [400, 1000, 1020]);
    }

    #[test]
    fn stalls_and_silences_leave_nothing_out() {
        let stalled = (0..100).map(|i| if (40..43).contains(&i) { 810 + i } else { i * 20 });
        let silent = (100..200).map(|i| i * 20 + 777);
        assert!(missing(&stalled.chain(silent).collect::<Vec<u64>>()).is_empty());
    }
}
