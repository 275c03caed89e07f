//! Detectors of watermarks. A detector knows the secret, so it knows when a flow that carries the mark has a hole or
//! comes twice as fast. It compares the flow with that pattern at every delay the chain may have, and then with the
//! patterns of other secrets, which the flow cannot carry: these give the deviation that chance brings.

use rayon::prelude::*;

use super::plan::{DelayWatermark, DropWatermark};
use crate::math::median;

/// The longest delay from the access link to the flow, in nanoseconds.
const LONGEST_DELAY: u64 = 320_000_000;

/// Nanoseconds between delays that are tried.
const STEP: u64 = 4_000_000;

/// Secrets that are compared with.
const OTHERS: u64 = 32;

/// How far a chain may smear a time on either side, in nanoseconds.
const SMEAR: u64 = 8_000_000;

/// Nanoseconds by which the time of a dropped cell may be unknown.
const JITTER: u64 = 3_000_000;

/// Packets on either side of a gap that decide whether something is missing.
const AROUND: usize = 7;

/// For each flow: how much better the plan's pattern fits than those of other secrets, in deviations. Only what the
/// first `until` nanoseconds show is used.
pub fn delayed(flows: &[Vec<u64>], plan: &DelayWatermark, until: u64) -> Vec<f64> {
    // When the delay begins, nothing comes for as long as it is; when it ends, cells come twice as often.
    let switches = |seed: u64| -> Vec<(u64, f64)> {
        let plan = DelayWatermark { seed, ..plan.clone() };
        let last = until.saturating_sub(LONGEST_DELAY + plan.delay) / plan.period;
        let switch = |period: u64| {
            let (before, after) = (plan.delays((period - 1) * plan.period), plan.delays(period * plan.period));
            (before != after).then_some((period * plan.period, if after { -1.0 } else { 1.0 }))
        };
        (1..last).filter_map(switch).collect()
    };
    let patterns = secrets(plan.seed).map(switches).collect::<Vec<_>>();
    let strength = |flow: &Vec<u64>| {
        let counts = Counts::new(flow, until);
        against_others(&patterns, |switches| {
            best_delay(|delay| {
                switches.iter().map(|&(at, sign)| sign * counts.between(at + delay, at + delay + plan.delay)).sum()
            })
        })
    };
    flows.par_iter().map(strength).collect()
}

/// The same for dropped slots: datagrams that are missing from a regular flow, or fewer datagrams in any flow. `cells`
/// are those of the target's access link that were not dropped.
pub fn dropped(flows: &[Vec<u64>], cells: &[u64], plan: &DropWatermark, until: u64) -> Vec<f64> {
    let last = until.saturating_sub(LONGEST_DELAY + plan.slot + SMEAR);
    // The adversary knows which cells it dropped: those that its target's link lacks. With other secrets it would have
    // dropped others.
    let lacking = missing(cells);
    let sent: Vec<u64> = cells.iter().chain(&lacking).copied().filter(|&at| at < last).collect();
    let hit = |seed: u64, times: &[u64], slack: u64| -> Vec<u64> {
        let plan = DropWatermark { seed, ..plan.clone() };
        let marked = |at: u64| plan.marks(at.saturating_sub(slack) / plan.slot) || plan.marks((at + slack) / plan.slot);
        times.iter().copied().filter(|&at| at < last && marked(at)).collect()
    };
    let mut patterns: Vec<Vec<u64>> = secrets(plan.seed).map(|seed| hit(seed, &sent, 0)).collect();
    patterns[0] = hit(plan.seed, &lacking, JITTER);
    let mut smear = SMEAR;
    if 4 * patterns[0].len() * OTHERS as usize <= patterns[1..].iter().map(Vec::len).sum() {
        // A link without a rhythm does not show what it lacks: all marked slots count, by their middles.
        let middles: Vec<u64> = (0..last / plan.slot).map(|slot| slot * plan.slot + plan.slot / 2).collect();
        patterns = secrets(plan.seed).map(|seed| hit(seed, &middles, 0)).collect();
        smear += plan.slot / 2;
    }
    let fit = |events: &[u64], sign: f64| {
        let counts = Counts::new(events, until);
        let expected = counts.between(0, until) * 2.0 * smear as f64 / until as f64;
        against_others(&patterns, |times| {
            best_delay(|delay| {
                let near = |at: u64| counts.between((at + delay).saturating_sub(smear), at + delay + smear);
                sign * times.iter().map(|&at| near(at) - expected).sum::<f64>()
            })
        })
    };
    flows.par_iter().map(|flow| fit(&missing(flow), 1.0).max(fit(flow, -1.0))).collect()
}

/// The plan's secret first, then the others.
fn secrets(seed: u64) -> impl Iterator<Item = u64> {
    (0..=OTHERS).map(move |i| seed.wrapping_add(i << 32))
}

/// How far the fit of the first pattern is above the mean of the fits of all others, in their deviations.
fn against_others<P>(patterns: &[P], fit: impl Fn(&P) -> f64) -> f64 {
    let Some((own, others)) = patterns.split_first() else { return 0.0 };
    let fits: Vec<f64> = others.iter().map(&fit).collect();
    let mean = fits.iter().sum::<f64>() / fits.len() as f64;
    let variance = fits.iter().map(|other| (other - mean).powi(2)).sum::<f64>() / fits.len() as f64;
    // A fit counts datagrams: where hardly any are counted, the deviation is not known to less than a part of one.
    (fit(own) - mean) / (variance + 0.1).sqrt()
}

/// The best fit over all delays.
fn best_delay(fit: impl Fn(u64) -> f64) -> f64 {
    (0..=LONGEST_DELAY).step_by(STEP as usize).map(fit).fold(f64::MIN, f64::max)
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
