//! Cells lost on an access link against datagrams that a flow lacks.
//!
//! Redundancy hides single losses, not outages: no copy survives a link that is down for longer than the copies are
//! apart. The flow then lacks a datagram, and whoever saw the link knows whose flow it is. In a paced class, a cell is
//! lost if all copies are, and by the timetable some cells are no data.

use rayon::prelude::*;

use super::missing_slots;
use crate::{
    attacker::{Attacker, Example, Scores},
    delay::Delay,
    record::Record,
    slots::{Run, Slots},
};

/// Most cells that runs of each class lack.
const RUNS: [u32; 5] = [1, 2, 4, 8, u32::MAX];

/// The share of runs of each class that the flow lacks something for: of those that anybody sees, and of lost rounds
/// of a paced class at a corrupt exit, which knows each round that it could not open.
const SEEN: [f64; RUNS.len()] = [0.1, 0.3, 0.5, 0.7, 0.9];
const KNOWN: [f64; RUNS.len()] = [0.25, 0.5, 0.95, 0.98, 0.99];

/// What a flow shows at the time at which the datagrams of lost cells were due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing is due, nothing came.
    Nothing,
    /// All datagrams came when they were due.
    Complete,
    /// A datagram came late.
    Late,
    /// The first datagram after a silence: one before it may be lost.
    Edge,
    Lacks1,
    Lacks2,
    Lacks3,
}

const OUTCOMES: usize = 7;

/// What the flow of a corrupt or honest exit lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Datagrams that are missing, late or first after a gap, as anybody sees behind the exit.
    Honest,
    /// Rounds that the exit could not open.
    Corrupt,
}

/// Probabilities of outcomes given that the flow belongs to the link: learnt, or assumed.
#[derive(Clone, Debug, PartialEq)]
struct Habits {
    /// For each class of runs.
    outcomes: [[f64; OUTCOMES]; RUNS.len()],
    /// For each datagram that a flow lacks, the class of the run at that time; the last is none.
    causes: [f64; RUNS.len() + 1],
}

/// Matches runs of lost cells with what flows lack, by log-likelihood ratio.
pub(crate) struct Outage {
    exit: Exit,
    habits: Option<Habits>,
}

impl Outage {
    /// Until it is trained, it assumes that a run of lost cells is seen in the flow more often the longer it is, and
    /// that most of the datagrams that a flow lacks were lost on the access link.
    pub(crate) fn new(exit: Exit) -> Self {
        Self { exit, habits: None }
    }
}

impl Attacker for Outage {
    fn name(&self) -> String {
        match self.exit {
            Exit::Honest => "outage".into(),
            Exit::Corrupt => "outage-corrupt-exit".into(),
        }
    }

    fn source(&self) -> &'static str {
        "M. Wright et al., The Predecessor Attack, TISSEC 2004; \
         A. Houmansadr and N. Borisov, The Need for Flow Fingerprints to Link Correlated Network Flows, PETS 2013"
    }

    fn applies(&self, record: &Record) -> bool {
        self.exit == Exit::Honest || !record.unopened.is_empty()
    }

    /// Learns how often the flow shows losses of the link.
    fn learn(&mut self, examples: &[Example<'_>]) {
        let mut counts = Counts::default();
        let usable = || examples.iter().filter(|example| self.applies(example.record));
        for example in usable() {
            let views = Views::of(example.record, self.exit);
            for (user, &flow) in example.truth.0.iter().enumerate() {
                counts.add(&views, user, flow);
            }
        }
        self.habits = usable().next().map(|_| counts.habits());
    }

    fn scores(&self, record: &Record) -> Scores {
        let views = Views::of(record, self.exit);
        let (users, flows) = (views.links.len(), views.flows.len());
        let all: Vec<Counts> = (0..users * flows)
            .into_par_iter()
            .map(|pair| {
                let mut counts = Counts::default();
                counts.add(&views, pair / flows, pair % flows);
                counts
            })
            .collect();
        // Nearly all pairs are of strangers: together they show how often outcomes occur by chance.
        let mut chance = Counts::default();
        all.iter().for_each(|counts| chance.merge(counts));
        let chance = chance.habits();
        let habits = self.habits.clone().unwrap_or_else(|| match (&record.paced, self.exit) {
            (Some(_), Exit::Corrupt) => chance.assumed(KNOWN, 0.95),
            _ => chance.assumed(SEEN, 0.7),
        });
        let ratios = habits.ratios(&chance);
        let sent: Vec<Vec<i64>> = views.flows.iter().map(Flow::sent).collect();
        Scores::of_pairs(users, flows, |user, flow| {
            let counted = all[user * flows + flow].sum(&ratios);
            match (&views.links[user], self.exit) {
                // A datagram of a round that is lost for certain is somebody else's.
                (Some(link), Exit::Honest) if record.paced.is_some() => {
                    counted + missing_slots::ratio(link, &sent[flow], record.length)
                }
                _ => counted,
            }
        })
    }
}

/// How often a pair, or many, showed each outcome and cause.
#[derive(Clone, Default)]
struct Counts {
    outcomes: [[u32; OUTCOMES]; RUNS.len()],
    causes: [u32; RUNS.len() + 1],
}

impl Counts {
    fn add(&mut self, views: &Views, user: usize, flow: usize) {
        let Some(link) = &views.links[user] else { return };
        let flow = &views.flows[flow];
        for run in &link.runs {
            let due = flow.due(run, link.period);
            self.outcomes[class(run.cells)][flow.outcome(due) as usize] += 1;
        }
        for lack in &flow.lacks {
            let near = link.runs.iter().filter(|run| {
                let (from, to) = flow.due(run, link.period);
                (from..=to).contains(lack)
            });
            let cause = near.map(|run| class(run.cells)).max().unwrap_or(RUNS.len());
            self.causes[cause] += 1;
        }
    }

    fn merge(&mut self, other: &Self) {
        let pairs = self.outcomes.iter_mut().flatten().zip(other.outcomes.iter().flatten());
        pairs.chain(self.causes.iter_mut().zip(&other.causes)).for_each(|(sum, count)| *sum += count);
    }

    /// Shares, as if a few more of everything had been seen.
    fn habits(&self) -> Habits {
        Habits { outcomes: self.outcomes.map(shares), causes: shares(self.causes) }
    }

    fn sum(&self, ratios: &Habits) -> f64 {
        let counts = self.outcomes.iter().flatten().chain(&self.causes);
        let ratios = ratios.outcomes.iter().flatten().chain(&ratios.causes);
        counts.zip(ratios).map(|(count, ratio)| f64::from(*count) * ratio).sum()
    }
}

fn shares<const N: usize>(counts: [u32; N]) -> [f64; N] {
    const MORE: f64 = 0.5;
    let total: f64 = counts.iter().map(|count| f64::from(*count) + MORE).sum();
    counts.map(|count| (f64::from(count) + MORE) / total)
}

fn class(cells: u32) -> usize {
    RUNS.iter().position(|most| cells <= *most).unwrap_or(RUNS.len() - 1)
}

impl Habits {
    /// From outcomes by chance to those of the right flow, which lacks something for the share `seen` of the runs. The
    /// share `explained` of what it lacks was lost on the link.
    fn assumed(&self, seen: [f64; RUNS.len()], explained: f64) -> Self {
        let mut assumed = self.clone();
        for (outcomes, seen) in assumed.outcomes.iter_mut().zip(seen) {
            outcomes.iter_mut().for_each(|p| *p *= 1.0 - seen);
            for lacks in [Outcome::Lacks1, Outcome::Lacks2, Outcome::Lacks3] {
                outcomes[lacks as usize] += seen / 3.0;
            }
        }
        assumed.causes.iter_mut().for_each(|p| *p *= 1.0 - explained);
        let by_run: f64 = self.causes[..RUNS.len()].iter().sum();
        for (cause, chance) in assumed.causes.iter_mut().zip(self.causes).take(RUNS.len()) {
            *cause += explained * chance / by_run;
        }
        assumed
    }

    /// Logarithms of ratios.
    fn ratios(&self, chance: &Self) -> Self {
        let mut ratios = self.clone();
        let chance = chance.outcomes.iter().flatten().chain(&chance.causes);
        let own = ratios.outcomes.iter_mut().flatten().chain(&mut ratios.causes);
        own.zip(chance).for_each(|(own, chance)| *own = (*own / chance).ln());
        ratios
    }
}

/// The links and flows of a record in the form that this attacker compares.
struct Views {
    links: Vec<Option<Slots>>,
    flows: Vec<Flow>,
}

impl Views {
    fn of(record: &Record, exit: Exit) -> Self {
        let delay = Delay::measured(record).median();
        // The exit knows a round that it could not open, whether or not the next one repeats it.
        let repeat = exit == Exit::Honest && record.paced.as_ref().is_some_and(|shape| shape.repeat);
        let users = (0..record.access.len()).into_par_iter();
        let links = users.map(|user| Slots::seen(record, user, true, repeat)).collect();
        let signed = |times: &Vec<u64>| times.iter().map(|&at| at as i64).collect();
        let flows = match exit {
            Exit::Honest => record.datagrams(true).iter().map(|times| Flow::honest(signed(times), delay)).collect(),
            Exit::Corrupt => {
                let none = Vec::new();
                let unopened = (0..record.flows.len()).map(|flow| record.unopened.get(flow).unwrap_or(&none));
                unopened.map(|times| Flow::corrupt(signed(times), delay)).collect()
            }
        };
        Self { links, flows }
    }
}

/// A flow's datagrams and what it lacks, in order.
struct Flow {
    delay: i64,
    /// How far around its time a loss is looked for, in slots.
    reach: f64,
    datagrams: Vec<i64>,
    lacks: Vec<i64>,
    late: Vec<i64>,
    edges: Vec<i64>,
}

impl Flow {
    /// Intervals of nearly twice the usual one and more lack datagrams; those of more than `SILENCE` are pauses.
    fn honest(datagrams: Vec<i64>, delay: i64) -> Self {
        const SILENCE: f64 = 12.5;
        let mut intervals: Vec<i64> = datagrams.windows(2).map(|w| w[1] - w[0]).collect();
        intervals.sort_unstable();
        let usual = intervals.get(intervals.len() / 2).copied().unwrap_or(1).max(1);
        let mut flow = Self { delay, reach: 0.6, datagrams, lacks: Vec::new(), late: Vec::new(), edges: Vec::new() };
        for pair in flow.datagrams.windows(2) {
            let interval = pair[1] - pair[0];
            let steps = interval as f64 / usual as f64;
            if steps > SILENCE {
                flow.edges.push(pair[1]);
            } else if steps > 1.75 {
                let steps = (steps.round() as i64).max(2);
                flow.lacks.extend((1..steps).map(|step| pair[0] + interval * step / steps));
            } else if steps > 1.25 {
                flow.late.push(pair[1]);
            }
        }
        flow
    }

    fn corrupt(lacks: Vec<i64>, delay: i64) -> Self {
        Self { delay, reach: 1.2, datagrams: Vec::new(), lacks, late: Vec::new(), edges: Vec::new() }
    }

    /// When its datagrams were on the link.
    fn sent(&self) -> Vec<i64> {
        self.datagrams.iter().map(|at| at - self.delay).collect()
    }

    /// When the datagrams of lost cells would leave.
    fn due(&self, run: &Run, period: u64) -> (i64, i64) {
        let reach = (self.reach * period as f64) as i64;
        (run.from as i64 + self.delay - reach, run.to as i64 + self.delay + reach)
    }

    fn outcome(&self, due: (i64, i64)) -> Outcome {
        let count = |times: &[i64]| within(times, due);
        match count(&self.lacks) {
            0 if count(&self.late) > 0 => Outcome::Late,
            0 if count(&self.edges) > 0 => Outcome::Edge,
            0 if count(&self.datagrams) > 0 => Outcome::Complete,
            0 => Outcome::Nothing,
            1 => Outcome::Lacks1,
            2 => Outcome::Lacks2,
            _ => Outcome::Lacks3,
        }
    }
}

fn within(times: &[i64], (from, to): (i64, i64)) -> usize {
    times.partition_point(|at| *at <= to) - times.partition_point(|at| *at < from)
}
