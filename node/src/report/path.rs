//! Where the delay of a paced class comes from: what the timetable plans for each step of the way, and what this node
//! measures of it (docs/SPEC.md 9.5, 9.14.5).

use control::paced::PacedStatus;
use dataplane::paced::entry::{PREPARE, Waits};
use dataplane::paced::mix::LoopsView;
use serde::{Deserialize, Serialize};
use wire::cell::Direction;
use wire::ids::Side;
use wire::paced::PacedTerms;

use super::ms;
use crate::config::{NodeRole, node_name};

/// The way of a datagram through a paced class, step by step from the entry to the exit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PathReport {
    pub steps: Vec<StepReport>,
    /// The sum of the steps to a destination, and back, without access paths.
    pub total: StepReport,
    /// The same between two users, each way. With repeat the most is that of a datagram whose own cell was lost.
    #[serde(default)]
    pub meeting: StepReport,
    /// At a mix: from its forward release of a round to the arrival of that round's loop cells from the next hop.
    /// Planned are the next hop's release, and this mix's own, after which a cell is late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loops: Option<StepReport>,
}

/// A step. Times are in ms.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    pub step: String,
    /// Planned towards the exit, the least and the most. `None` for an access path, or if it has no such step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_ms: Option<(f64, f64)>,
    /// The same towards the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backward_ms: Option<(f64, f64)>,
    /// Measured by this node. Of a path half of its shortest round trip of late, otherwise the median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_ms: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_p99_ms: Option<f64>,
}

/// The place of link 1 among the steps, which those of the other links follow.
const ACCESS: usize = 1;

impl PathReport {
    /// What the terms of a class plan in a chain of `hops` hops.
    pub fn planned(terms: &PacedTerms, hops: usize) -> PathReport {
        let exactly = |ms: u16| Some((f64::from(ms), f64::from(ms)));
        // A round has what came before it was prepared, or sealed.
        let wait = |least: f64| Some((least, least + f64::from(terms.period_ms)));
        let times = terms.timetable(hops);
        let sealed = times.offset(Direction::Backward, hops) - times.offset(Direction::Forward, hops);
        let step = |step: &str, forward_ms, backward_ms| StepReport {
            step: step.to_owned(),
            forward_ms,
            backward_ms,
            ..StepReport::default()
        };
        let name = |hop| node_name(if hop == hops { NodeRole::Exit } else { NodeRole::Mix }, hop);

        let copies_ms = u16::from(terms.copies - 1) * u16::from(terms.gap) * terms.period_ms;
        let mut steps = vec![
            step("wait for a round at the entry, or exit", wait(ms(PREPARE as i64)), wait(ms(sealed as i64))),
            step("access path, entry to mix1", None, None),
            step("mix1: wait for copies", exactly(copies_ms), None),
            step("mix1: slack", exactly(terms.slack_ms), None),
        ];
        let links = (1..hops).zip(&terms.steps_ms);
        let link = |(hop, ms): (usize, &u16)| {
            step(&format!("{} to {}: path, then wait", name(hop), name(hop + 1)), exactly(*ms), exactly(*ms))
        };
        steps.extend(links.map(link));
        steps.push(step("exit: wait for repeated cells", exactly(u16::from(terms.repeat) * terms.period_ms), None));

        let sum = |of: fn(&StepReport) -> Option<(f64, f64)>| {
            let planned = steps.iter().filter_map(of);
            Some(planned.fold((0.0, 0.0), |(least, most), (more, more_most)| (least + more, most + more_most)))
        };
        let total = step("total to destinations, and back", sum(|step| step.forward_ms), sum(|step| step.backward_ms));
        let there = ms((PREPARE + times.offset(Direction::Backward, 1)) as i64);
        let between = Some((there, there + f64::from(terms.period_ms * (1 + u16::from(terms.repeat)))));
        let meeting = step("total between users", between, between);
        PathReport { steps, total, meeting, loops: None }
    }

    /// Adds what the node at this position has measured: at an entry the waits of datagrams, at a mix its loops.
    #[must_use]
    pub(super) fn measured(
        mut self,
        (terms, hops, position): (&PacedTerms, usize, usize),
        status: &PacedStatus,
        waits: Option<Waits>,
        loops: Option<&LoopsView>,
    ) -> PathReport {
        let half = |round_trip_ns: u64| Some(ms(round_trip_ns as i64) / 2.0);
        match status {
            PacedStatus::Entry(status) => {
                if let Some(Waits { p50, p99 }) = waits {
                    self.steps[0].measured_ms = Some(ms(p50 as i64));
                    self.steps[0].measured_p99_ms = Some(ms(p99 as i64));
                }
                self.steps[ACCESS].measured_ms = status.clock.and_then(|clock| half(clock.round_trip_ns));
            }
            PacedStatus::Hop(status) => {
                for neighbour in &status.clocks {
                    // Link 2 follows the two steps of Mix 1.
                    let link = if neighbour.side == Side::Up { position } else { position + 1 };
                    self.steps[ACCESS + 1 + link].measured_ms = half(neighbour.clock.round_trip_ns);
                }
            }
        }
        if let Some(delay) = loops.and_then(|view| view.delay) {
            let times = terms.timetable(hops);
            let left = times.offset(Direction::Forward, position);
            let back = |hop| ms((times.offset(Direction::Backward, hop) - left) as i64);
            self.loops = Some(StepReport {
                step: "loops of this mix, to the exit and back".to_owned(),
                backward_ms: Some((back(position + 1), back(position))),
                measured_ms: Some(ms(delay.p50 as i64)),
                measured_p99_ms: Some(ms(delay.p99 as i64)),
                ..StepReport::default()
            });
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use control::paced::{HopStatus, NeighbourClock, Reported};
    use dataplane::paced::mix::Delay;
    use wire::cell::Class;
    use wire::paced::PacedClass;
    use wire::paced::clock::Comparison;
    use wire::setup::Suite;

    use super::*;
    use crate::figures::Figures;

    fn terms() -> PacedTerms {
        PacedTerms { repeat: true, ..PacedTerms::new(PacedClass::new(Class::S), "voice", 4) }
    }

    #[test]
    fn planned_steps_add_up_to_the_figures_of_the_class() {
        for repeat in [false, true] {
            let terms = PacedTerms { repeat, ..terms() };
            let Figures { delay_ms, .. } = Figures::of(&terms, Suite::Hybrid, 4);
            let PathReport { total, meeting, .. } = PathReport::planned(&terms, 4);
            assert_eq!(total.forward_ms.map(|(_, most)| most), Some(delay_ms.forward as f64));
            assert_eq!(total.backward_ms.map(|(_, most)| most), Some(delay_ms.backward as f64));
            assert_eq!(meeting.forward_ms.map(|(_, most)| most), Some(delay_ms.meeting as f64));
            assert_eq!(meeting.backward_ms, meeting.forward_ms);
        }
    }

    #[test]
    fn mix_shows_its_paths_and_the_delay_of_its_loops() {
        let clock = |side, round_trip_ns| NeighbourClock { side, clock: Comparison { offset_ns: 0, round_trip_ns } };
        let status = HopStatus {
            clocks: vec![clock(Side::Up, 2_000_000), clock(Side::Down, 3_000_000)],
            batch: None,
            smallest: None,
            forward: Reported::default(),
            backward: Reported::default(),
            loops: None,
        };
        let delay = Some(Delay { batch: 1, p50: 12_500_000, p99: 13_000_000 });
        let view = LoopsView { delay, ..LoopsView::default() };
        let terms = terms();
        let path =
            PathReport::planned(&terms, 4).measured((&terms, 4, 2), &PacedStatus::Hop(status), None, Some(&view));
        let measured = |text: &str| path.steps.iter().find(|step| step.step.contains(text)).unwrap().measured_ms;
        assert_eq!(["mix1 to mix2", "mix2 to mix3", "mix3 to exit"].map(measured), [Some(1.0), Some(1.5), None]);
        // Two steps of 5 ms to the exit, one back to Mix 3, and 1 ms at the exit.
        let loops = path.loops.unwrap();
        assert_eq!((loops.backward_ms, loops.measured_ms), (Some((16.0, 21.0)), Some(12.5)));
    }
}
