//! Active attacks: the adversary holds, delays or drops cells on access links, and looks for the trace of it in flows.
//!
//! A [`Plan`] says what happens to each cell. Whoever makes the record applies it to the access links: the record shows
//! the links behind the adversary. [`detect`] takes the record and the plan and finds the target's flow.

mod isolation;
mod plan;
mod watermark;

pub use plan::{Action, DelayWatermark, DropWatermark, Isolation, Plan};

use crate::{Record, Scores, delay::Delay};

/// Lengths of record after which a detector looks, in seconds.
const LOOKS: [f64; 10] = [1.0, 2.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0];

/// Deviations from chance, for the flow with the highest score, that count as found. Over all flows, delays and looks,
/// chance hardly reaches 4.
const FOUND: f64 = 6.0;

/// The longest delay from the access link to the flow, in nanoseconds.
const LONGEST_DELAY: u64 = 320_000_000;

/// Nanoseconds between delays that are tried.
const STEP: u64 = 4_000_000;

/// Datagrams of the adversary's own user that show the delay of the chain.
const PROBES: usize = 20;

/// How far, in deviations, the best flow must be ahead of all others.
const AHEAD: f64 = 2.0;

/// What a detector found.
#[derive(Clone, Debug)]
pub struct Detection {
    /// One row: for each flow, how strongly it carries the trace of the plan, in deviations from chance.
    pub scores: Scores,
    /// Seconds of the record after which one flow stands out and stays the same in all longer looks. None if no flow
    /// does.
    pub seconds: Option<f64>,
}

impl Detection {
    /// The flow that carries the strongest trace. None if the record has no flows.
    pub fn best(&self) -> Option<usize> {
        strongest(self.scores.row(0))
    }
}

/// Looks for the target's flow in a record to which `plan` was applied.
pub fn detect(record: &Record, plan: &Plan) -> Detection {
    let flows = record.datagrams(true);
    let cells: Vec<u64> =
        record.access.get(plan.target()).map(|place| record.cells(&place.forward).collect()).unwrap_or_default();
    let probed = probed_delays(record);
    let strengths = |until: u64| match plan {
        Plan::DelayWatermark(plan) => watermark::delayed(&flows, plan, &all_delays(), until),
        Plan::DropWatermark(plan) => watermark::dropped(&flows, &cells, plan, &probed, until),
        Plan::Isolation(plan) => isolation::alone(&flows, plan, until),
    };

    let whole = record.length as f64 / 1e9;
    let mut found: Option<(usize, f64)> = None;
    let mut last = Vec::new();
    for look in LOOKS.into_iter().filter(|&look| look < whole).chain([whole]) {
        last = strengths((look * 1e9) as u64);
        let best = standing_out(&last);
        found = match (found, best) {
            (Some((before, since)), Some(best)) if before == best => Some((best, since)),
            (_, best) => best.map(|flow| (flow, look)),
        };
    }
    Detection {
        scores: Scores::of_pairs(1, last.len(), |_, flow| last[flow]),
        seconds: found.map(|(_, seconds)| seconds),
    }
}

/// The delays from the adversary's clock to the flow that are tried. Its relay may add to the delay of the chain.
fn all_delays() -> Vec<u64> {
    (0..=LONGEST_DELAY).step_by(STEP as usize).collect()
}

/// The delays from the access link to the flow that are tried: those that the adversary's own user saw, or all.
fn probed_delays(record: &Record) -> Vec<u64> {
    if record.probe.len() < PROBES {
        return all_delays();
    }
    let delay = Delay::measured(record);
    let limit = |share: f32| u64::try_from(delay.quantile(share)).unwrap_or(0).min(LONGEST_DELAY);
    (limit(0.05).saturating_sub(STEP)..=limit(0.95) + STEP).step_by(STEP as usize).collect()
}

fn strongest(strengths: &[f64]) -> Option<usize> {
    (0..strengths.len()).max_by(|&a, &b| strengths[a].total_cmp(&strengths[b]))
}

/// The flow that is stronger than chance allows, and than every other flow.
fn standing_out(strengths: &[f64]) -> Option<usize> {
    let best = strongest(strengths)?;
    let others = (0..strengths.len()).filter(|&flow| flow != best).map(|flow| strengths[flow]);
    let second = others.fold(f64::MIN, f64::max);
    (strengths[best] >= FOUND && strengths[best] >= second + AHEAD).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt as _;

    use crate::{
        Place,
        simulate::{Answers, Chain, Draw, Ideal, Profile, Simulation, exponential, generator},
    };

    fn plans(target: usize, seed: u64) -> [Plan; 3] {
        [
            Plan::DelayWatermark(DelayWatermark::new(target, seed)),
            Plan::DropWatermark(DropWatermark::new(target, seed)),
            Plan::Isolation(Isolation::new(target, seed)),
        ]
    }

    /// The seconds that each plan needs, where it finds the right flow.
    fn seconds(calls: &Simulation) -> [Option<f64>; 3] {
        plans(7, calls.seed).map(|plan| {
            let (record, truth) = Simulation { plan: Some(plan.clone()), ..calls.clone() }.run();
            let detection = detect(&record, &plan);
            detection.seconds.filter(|_| detection.best() == Some(truth.0[plan.target()]))
        })
    }

    fn within(needed: Option<f64>, limit: f64) -> bool {
        needed.is_some_and(|needed| needed <= limit)
    }

    #[test]
    fn constant_calls_through_a_grid_carry_the_marks() {
        let (profile, answers) = (Profile::Constant, Answers::Independent);
        let calls = Simulation { profile, answers, ..Simulation::new(100, 20.0, 1) };
        let [delay, drop, isolation] = seconds(&calls);
        assert!(
            within(delay, 10.0) && within(drop, 15.0) && within(isolation, 3.0),
            "{delay:?} {drop:?} {isolation:?}"
        );
    }

    #[test]
    fn talk_spurts_through_a_grid_carry_the_marks() {
        let [delay, drop, isolation] = seconds(&Simulation::new(50, 30.0, 2));
        assert!(
            within(delay, 30.0) && within(drop, 30.0) && within(isolation, 10.0),
            "{delay:?} {drop:?} {isolation:?}"
        );
    }

    /// Delays all packets as nodes on a busy machine do, which stall for 15 ms several times a second, and loses some.
    fn disturb(places: &mut [Place], seed: u64) {
        let mut rng = generator(seed, Draw::Chain, 1);
        let mut stalls = vec![(0, 0)];
        for _ in 0..1000 {
            let from = stalls[stalls.len() - 1].1 + exponential(&mut rng, 100e6) as u64;
            stalls.push((from, from + exponential(&mut rng, 15e6) as u64));
        }
        for place in places {
            place.forward.retain_mut(|seen| {
                seen.at += exponential(&mut rng, 2e6) as u64;
                seen.at = seen.at.max(stalls[stalls.partition_point(|stall| stall.0 <= seen.at) - 1].1);
                rng.random_bool(0.95)
            });
            place.forward.sort_by_key(|seen| seen.at);
        }
    }

    #[test]
    fn drop_watermark_is_found_on_a_busy_machine() {
        let plan = Plan::DropWatermark(DropWatermark::new(5, 1));
        let calls = Simulation { plan: Some(plan.clone()), ..Simulation::new(40, 60.0, 1) };
        let (mut record, truth) = calls.run();
        disturb(&mut record.access, 1);
        disturb(&mut record.flows, 2);
        let detection = detect(&record.first(record.length), &plan);
        assert!(detection.seconds.is_some(), "{detection:?}");
        assert_eq!(detection.best(), Some(truth.0[5]));
    }

    #[test]
    fn ideal_rounds_carry_no_marks() {
        let (mut false_alarms, mut right) = (0, 0);
        for seed in 1..4 {
            let target = seed as usize;
            for plan in plans(target, seed) {
                let chain = Chain::Ideal(Ideal::default());
                let unmarked = Simulation { chain, ..Simulation::new(60, 10.0, seed) };
                let (record, truth) = Simulation { plan: Some(plan.clone()), ..unmarked.clone() }.run();
                assert_ne!(record.access, unmarked.run().0.access, "the plan changes the links");
                let detection = detect(&record, &plan);
                right += usize::from(detection.best() == Some(truth.0[target]));
                false_alarms += usize::from(detection.seconds.is_some());
            }
        }
        assert!(false_alarms == 0 && right <= 1, "{false_alarms} false alarms, {right} right");
    }
}
