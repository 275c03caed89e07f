//! Detectors of watermarks. A detector knows the secret, so it knows when a flow that carries the mark has a hole or
//! comes twice as fast. It compares the flow with that pattern at every delay the chain may have, and then with the
//! patterns of other secrets, which the flow cannot carry: these give the deviation that chance brings.

use rayon::prelude::*;

use super::plan::{DelayWatermark, DropWatermark};

/// The longest delay from the access link to the flow, in nanoseconds.
const LONGEST_DELAY: u64 = 320_000_000;

/// Nanoseconds between delays that are tried.
const STEP: u64 = 4_000_000;

/// Secrets that are compared with.
const OTHERS: u64 = 32;

/// How far a chain may smear a slot on either side, in nanoseconds.
const SMEAR: u64 = 8_000_000;

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

/// The same for dropped slots: datagrams that are missing from a regular flow, or fewer datagrams in any flow.
pub fn dropped(flows: &[Vec<u64>], plan: &DropWatermark, until: u64) -> Vec<f64> {
    let slots = |seed: u64| -> Vec<u64> {
        let plan = DropWatermark { seed, ..plan.clone() };
        let last = until.saturating_sub(LONGEST_DELAY + plan.slot + SMEAR) / plan.slot;
        (0..last).filter(|&slot| plan.marks(slot)).map(|slot| slot * plan.slot).collect()
    };
    let patterns = secrets(plan.seed).map(slots).collect::<Vec<_>>();
    let length = plan.slot + 2 * SMEAR;
    let fit = |events: &[u64], sign: f64| {
        let counts = Counts::new(events, until);
        let expected = counts.between(0, until) * length as f64 / until as f64;
        against_others(&patterns, |slots| {
            best_delay(|delay| {
                let near = |at: u64| counts.between((at + delay).saturating_sub(SMEAR), at + delay + plan.slot + SMEAR);
                sign * slots.iter().map(|&at| near(at) - expected).sum::<f64>()
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

/// Datagrams that a regular flow leaves out: where a gap is two to four times the usual one.
fn missing(flow: &[u64]) -> Vec<u64> {
    let mut gaps: Vec<u64> = flow.windows(2).map(|pair| pair[1] - pair[0]).collect();
    if gaps.len() < 8 {
        return Vec::new();
    }
    let middle = gaps.len() / 2;
    let usual = (*gaps.select_nth_unstable(middle).1).max(1);
    let left_out = |pair: &[u64]| {
        let times = (pair[1] - pair[0] + usual / 2) / usual;
        let at = pair[0];
        (1..if times <= 4 { times } else { 1 }).map(move |i| at + i * usual)
    };
    flow.windows(2).flat_map(left_out).collect()
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
}
