//! Attacks records and judges what the attackers found.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{bail, ensure};
use attack::attackers;
use attack::figures::{self, Figures};
use attack::independence::{self, Verdict};
use attack::{Attacker, Example, Record, Scores};
use serde::{Deserialize, Serialize};

use super::cases::Attacked;
use super::measures;

/// What one attacker found in one record.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) case: String,
    /// `None` if the record does not say.
    pub(super) profile: Option<String>,
    pub(super) users: usize,
    /// Length of the record that it had.
    pub(super) seconds: f64,
    pub(super) seed: u64,
    pub(super) attacker: String,
    /// The paper that it comes from.
    pub(super) source: &'static str,
    #[serde(flatten)]
    pub(super) figures: Figures,
    /// [`measures::bits_left`].
    pub(super) entropy_bits: f64,
    /// [`measures::roc`].
    roc: Vec<f64>,
}

/// What all attackers together found in the records of one case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) case: String,
    /// For each seed: the attacker that was best on the other seeds.
    pub(crate) attackers: Vec<String>,
    /// Its top-1 after the whole record: mean of the seeds, and the least and greatest of them.
    pub(crate) top1: f64,
    pub(crate) top1_range: [f64; 2],
    /// The same after each time.
    pub(crate) top1_after: Vec<(f64, f64)>,
    /// Seconds until its top-1 is one half: mean of the seeds, if it gets there in all.
    pub(crate) seconds_to_half: Option<f64>,
    /// Top-1 of an attacker that guesses.
    pub(crate) chance: f64,
    /// For each seed: a permutation test over all attackers together, after the whole record.
    pub(crate) verdicts: Vec<NamedVerdict>,
    /// The p of that test after each time, for each seed.
    #[serde(default)]
    pub(crate) p_after: Vec<(f64, Vec<f64>)>,
}

/// A [`Verdict`] with its attacker by name.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NamedVerdict {
    pub(crate) p: f64,
    attacker: String,
    deviations: f64,
    best_top1: f64,
    p_best_top1: f64,
    best_top1_by_chance: f64,
}

impl NamedVerdict {
    fn new(verdict: &Verdict, attackers: &[Box<dyn Attacker>]) -> NamedVerdict {
        let Verdict { p, attacker, deviations, best_top1, p_best_top1, best_top1_by_chance, .. } = *verdict;
        let attacker = attackers[attacker].name();
        NamedVerdict { p, attacker, deviations, best_top1, p_best_top1, best_top1_by_chance }
    }
}

/// What to attack with.
pub(super) struct Judge<'a> {
    /// Times after which attackers are judged, in seconds, besides the whole record.
    pub(super) times: Vec<f64>,
    /// Names, or the beginnings of names. All attackers if it is empty.
    pub(super) chosen: &'a [String],
    pub(super) interrupted: &'a AtomicBool,
}

impl Judge<'_> {
    /// The attackers, trained with records of other seeds.
    ///
    /// # Errors
    /// A name is unknown.
    fn attackers(&self, examples: &[Example<'_>]) -> anyhow::Result<Vec<Box<dyn Attacker>>> {
        let names: Vec<String> = attackers::passive(&[], |_| true).iter().map(|attacker| attacker.name()).collect();
        let unknown = self.chosen.iter().find(|chosen| !names.iter().any(|name| name.starts_with(*chosen)));
        if let Some(unknown) = unknown {
            bail!(
                "unknown attacker {unknown:?}: expected the name or the beginning of the name of {}",
                names.join(", ")
            );
        }
        let wanted = |name: &str| self.chosen.is_empty() || self.chosen.iter().any(|one| name.starts_with(one));
        Ok(attackers::passive(examples, wanted))
    }

    /// The number of attackers.
    ///
    /// # Errors
    /// A name is unknown.
    pub(super) fn count(&self) -> anyhow::Result<u64> {
        Ok(self.attackers(&[])?.len() as u64)
    }

    /// Attacks the records of one case with every attacker.
    ///
    /// # Errors
    /// The records differ in length, or the user interrupts.
    pub(super) fn attack(
        &self,
        records: &[Attacked],
        mut progress: impl FnMut(),
    ) -> anyhow::Result<(Vec<Finding>, Summary)> {
        same_length(records)?;
        let (mut findings, mut verdicts, mut p_after) = (Vec::new(), Vec::new(), Vec::<(f64, Vec<f64>)>::new());
        for (index, attacked) in records.iter().enumerate() {
            let Attacked { case, seed, profile, record, truth, .. } = attacked;
            let times = self.all_times(record.length);
            let parts: Vec<Record> = times.iter().map(|seconds| record.first((seconds * 1e9) as u64)).collect();
            let mut all: Vec<Vec<Scores>> = vec![Vec::new(); times.len()];
            let mut attackers = self.attackers(&examples(records, index))?;
            attackers.retain(|attacker| attacker.applies(record));
            ensure!(!attackers.is_empty(), "the record {case}-{seed} lacks the data that the chosen attackers look at");
            for attacker in &attackers {
                ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
                let scores: Vec<Scores> = parts.iter().map(|part| attacker.scores(part)).collect();
                findings.extend(scores.iter().zip(&times).map(|(scores, seconds)| Finding {
                    case: case.clone(),
                    profile: profile.clone(),
                    users: record.access.len(),
                    seconds: *seconds,
                    seed: *seed,
                    attacker: attacker.name(),
                    source: attacker.source(),
                    figures: figures::figures(scores, truth, *seed),
                    entropy_bits: measures::bits_left(scores, truth),
                    roc: measures::roc(scores, truth),
                }));
                all.iter_mut().zip(scores).for_each(|(all, scores)| all.push(scores));
                progress();
            }
            let of_times: Vec<_> = all.iter().map(|scores| independence::verdict(scores, truth, *seed)).collect();
            p_after.resize_with(times.len(), Default::default);
            for ((after, seconds), verdict) in p_after.iter_mut().zip(times).zip(&of_times) {
                after.0 = seconds;
                after.1.push(verdict.p);
            }
            verdicts.extend(of_times.last().map(|verdict| NamedVerdict::new(verdict, &attackers)));
        }
        let summary = Summary { p_after, ..self.summary(records, &findings, verdicts) };
        Ok((findings, summary))
    }

    /// The times within a record, and its length.
    fn all_times(&self, length: u64) -> Vec<f64> {
        let length = length as f64 / 1e9;
        let within = self.times.iter().copied().filter(|seconds| *seconds < length);
        within.chain([length]).collect()
    }

    fn summary(&self, records: &[Attacked], findings: &[Finding], verdicts: Vec<NamedVerdict>) -> Summary {
        let (mut chosen, mut ends, mut halves) = (Vec::new(), Vec::new(), Vec::new());
        let times = self.all_times(records.first().map_or(0, |attacked| attacked.record.length));
        let mut after = vec![0.0; times.len()];
        for attacked in records {
            let best = best_elsewhere(findings, attacked.seed, times.last().copied().unwrap_or(0.0));
            let own = findings.iter().filter(|one| one.seed == attacked.seed && one.attacker == best);
            let curve: Vec<(f64, f64)> = own.map(|one| (one.seconds, one.figures.top1)).collect();
            for (sum, (_, top1)) in after.iter_mut().zip(&curve) {
                *sum += top1 / records.len() as f64;
            }
            ends.extend(curve.last().map(|(_, top1)| *top1));
            halves.push(figures::seconds_until(0.5, &curve));
            chosen.push(best);
        }
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len().max(1) as f64;
        let halves: Option<Vec<f64>> = halves.into_iter().collect();
        let users = records.first().map_or(1, |attacked| attacked.record.flows.len());
        Summary {
            case: records.first().map(|attacked| attacked.case.clone()).unwrap_or_default(),
            attackers: chosen,
            top1: mean(&ends),
            top1_range: [ends.iter().copied().fold(1.0, f64::min), ends.iter().copied().fold(0.0, f64::max)],
            top1_after: times.into_iter().zip(after).collect(),
            seconds_to_half: halves.filter(|halves| !halves.is_empty()).map(|halves| mean(&halves)),
            chance: 1.0 / users as f64,
            verdicts,
            p_after: Vec::new(),
        }
    }
}

/// Figures of several seeds are comparable only after the same time.
fn same_length(records: &[Attacked]) -> anyhow::Result<()> {
    let Some(first) = records.first() else { return Ok(()) };
    let other = records.iter().find(|other| other.record.length != first.record.length);
    let describe = |one: &Attacked| format!("{}-{} has {} s", one.case, one.seed, one.record.length as f64 / 1e9);
    ensure!(
        other.is_none(),
        "records of one case have different lengths: {}, {}; keep records of different lengths in different folders",
        describe(first),
        other.map_or_else(String::new, describe)
    );
    Ok(())
}

/// The records of the other seeds.
fn examples(records: &[Attacked], index: usize) -> Vec<Example<'_>> {
    let others = records.iter().enumerate().filter(|(other, _)| *other != index);
    others.map(|(_, attacked)| Example { record: &attacked.record, truth: &attacked.truth }).collect()
}

/// The attacker with the best top-1 on all seeds but this one, or on this one if there are no others.
fn best_elsewhere(findings: &[Finding], seed: u64, seconds: f64) -> String {
    let others = findings.iter().any(|one| one.seed != seed);
    let mut sums: Vec<(&str, f64)> = Vec::new();
    for one in findings.iter().filter(|one| (one.seed != seed || !others) && one.seconds == seconds) {
        match sums.iter_mut().find(|(name, _)| *name == one.attacker) {
            Some((_, sum)) => *sum += one.figures.top1,
            None => sums.push((&one.attacker, one.figures.top1)),
        }
    }
    // The first of equals, so that one set of records gives one answer.
    let best = sums.iter().fold(None, |best: Option<&(&str, f64)>, one| match best {
        Some(best) if best.1 >= one.1 => Some(best),
        _ => Some(one),
    });
    best.map(|(name, _)| (*name).to_owned()).unwrap_or_default()
}
