//! Active attacks: the adversary holds, delays or drops cells on access links, and looks for the trace of it in flows.
//!
//! A [`Plan`] says what happens to each cell. Whoever makes the record applies it to the access links: the record shows
//! the links behind the adversary. [`detect`] takes the record and the plan and finds the target's flow.

mod isolation;
mod plan;
mod watermark;

pub use plan::{Action, DelayWatermark, DropWatermark, Isolation, Plan};

use crate::{Record, Scores};

/// Lengths of record after which a detector looks, in seconds.
const LOOKS: [f64; 10] = [1.0, 2.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0];

/// Deviations from chance, for the flow with the highest score, that count as found. Detectors try each flow at about a
/// hundred delays, so chance brings up to 4.
const FOUND: f64 = 6.0;

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

/// Looks for the target's flow in a record to which `plan` was applied.
pub fn detect(record: &Record, plan: &Plan) -> Detection {
    let flows: Vec<Vec<u64>> =
        record.flows.iter().map(|place| place.forward.iter().map(|seen| seen.at).collect()).collect();
    let cells = record.access.get(plan.target()).map(|place| record.cells(&place.forward).collect::<Vec<u64>>());
    let cells = cells.unwrap_or_default();
    let strengths = |until: u64| match plan {
        Plan::DelayWatermark(plan) => watermark::delayed(&flows, plan, until),
        Plan::DropWatermark(plan) => watermark::dropped(&flows, &cells, plan, until),
        Plan::Isolation(plan) => isolation::alone(&flows, plan, until),
    };

    let seconds = record.length as f64 / 1e9;
    let mut found: Option<(usize, f64)> = None;
    for look in LOOKS.into_iter().filter(|&look| look <= seconds) {
        let best = standing_out(&strengths((look * 1e9) as u64));
        found = match (found, best) {
            (Some((before, since)), Some(best)) if before == best => Some((best, since)),
            (_, best) => best.map(|flow| (flow, look)),
        };
    }
    let strengths = strengths(record.length);
    Detection {
        scores: Scores::of_pairs(1, strengths.len(), |_, flow| strengths[flow]),
        seconds: found.filter(|found| standing_out(&strengths) == Some(found.0)).map(|found| found.1),
    }
}

/// The flow that is stronger than chance allows, and than every other flow.
fn standing_out(strengths: &[f64]) -> Option<usize> {
    let best = (0..strengths.len()).max_by(|&a, &b| strengths[a].total_cmp(&strengths[b]))?;
    let others = (0..strengths.len()).filter(|&flow| flow != best).map(|flow| strengths[flow]);
    let second = others.fold(f64::MIN, f64::max);
    (strengths[best] >= FOUND && strengths[best] >= second + AHEAD).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Chain as Simulated, Ideal, Simulation};
    use crate::testbed::{Calls, Chain, constant_calls, talk_spurts};

    fn plans(target: usize, seed: u64) -> [Plan; 3] {
        [
            Plan::DelayWatermark(DelayWatermark::new(target, seed)),
            Plan::DropWatermark(DropWatermark::new(target, seed)),
            Plan::Isolation(Isolation::new(target, seed)),
        ]
    }

    /// The seconds that each plan needs, where it finds the right flow.
    fn seconds(chain: &Chain, calls: &Calls, seed: u64) -> [Option<f64>; 3] {
        plans(7, seed).map(|plan| {
            let (record, truth) = chain.run(seed, &calls.under(&plan));
            let detection = detect(&record, &plan);
            let flow = standing_out(detection.scores.row(0));
            detection.seconds.filter(|_| flow == Some(truth.0[plan.target()]))
        })
    }

    fn within(needed: Option<f64>, limit: f64) -> bool {
        needed.is_some_and(|needed| needed <= limit)
    }

    #[test]
    fn constant_calls_through_a_grid_carry_the_marks() {
        let [delay, drop, isolation] = seconds(&Chain::default(), &constant_calls(1, 100, 20.0), 1);
        assert!(
            within(delay, 10.0) && within(drop, 15.0) && within(isolation, 3.0),
            "{delay:?} {drop:?} {isolation:?}"
        );
    }

    #[test]
    fn talk_spurts_through_a_grid_carry_the_marks() {
        let [delay, drop, isolation] = seconds(&Chain::default(), &talk_spurts(2, 50, 30.0), 2);
        assert!(
            within(delay, 30.0) && within(drop, 30.0) && within(isolation, 10.0),
            "{delay:?} {drop:?} {isolation:?}"
        );
    }

    #[test]
    fn ideal_rounds_carry_no_marks() {
        let (mut false_alarms, mut right) = (0, 0);
        for seed in 1..4 {
            let ideal = Simulated::Ideal(Ideal::default());
            let (record, truth) = Simulation { chain: ideal, ..Simulation::new(60, 10.0, seed) }.run();
            for plan in plans(seed as usize, seed) {
                let detection = detect(&record, &plan);
                let row = detection.scores.row(0);
                let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
                right += usize::from(best == Some(truth.0[seed as usize]));
                false_alarms += usize::from(detection.seconds.is_some());
            }
        }
        assert!(false_alarms == 0 && right <= 1, "{false_alarms} false alarms, {right} right");
    }
}
