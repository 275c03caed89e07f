//! What attackers found in the records of `attack`, and what the cases cost.

mod costs;
mod entropy;
mod found;
mod roc;

pub(super) use self::costs::{cost, delay};
pub(super) use self::entropy::section as entropy;
pub(super) use self::found::section as found;
pub(super) use self::roc::section as roc;

use maud::{Markup, PreEscaped, html};

use crate::attack::{AttackResult, Found};
use crate::report::format::axis_number;
use crate::report::plot::{self, Axis, Paint};
use crate::report::table::legend;

/// The case whose flows are independent of its users by construction.
const IDEAL: &str = "ideal";

/// The results of an attack by case, attacker and length of record: means of the seeds.
#[derive(Clone, Copy)]
struct Means<'a>(&'a AttackResult);

impl<'a> Means<'a> {
    fn cases(self) -> impl Iterator<Item = &'a str> {
        self.0.summaries.iter().map(|summary| summary.case.as_str())
    }

    fn of_case(self, case: &str) -> impl Iterator<Item = &'a Found> {
        self.0.results.iter().filter(move |found| found.case == case)
    }

    /// The lengths of record after which a case was judged, in ascending order.
    fn times(self, case: &str) -> Vec<f64> {
        let mut times: Vec<f64> = self.of_case(case).map(|found| found.seconds).collect();
        times.sort_by(f64::total_cmp);
        times.dedup();
        times
    }

    /// The seeds of a case, in the order of its summary.
    fn seeds(self, case: &str) -> Vec<u64> {
        let mut seeds = Vec::new();
        for found in self.of_case(case) {
            if !seeds.contains(&found.seed) {
                seeds.push(found.seed);
            }
        }
        seeds
    }

    /// `None` if there is no such result.
    fn mean(self, case: &str, attacker: &str, seconds: f64, value: impl Fn(&Found) -> f64) -> Option<f64> {
        let own = self.of_case(case).filter(|found| found.attacker == attacker && found.seconds == seconds);
        mean(own.map(value))
    }

    /// All attackers, the strongest first: those with the largest true positive rates at 1 % false positives in all
    /// cases but the ideal one, whose figures are luck.
    fn attackers(self) -> Vec<&'a str> {
        let only_ideal = self.cases().all(|case| case == IDEAL);
        let mut rates: Vec<(&str, Vec<f64>)> = Vec::new();
        for found in &self.0.results {
            let counts = found.case != IDEAL || only_ideal;
            let rate = counts.then_some(found.tpr_1e2);
            match rates.iter_mut().find(|(name, _)| *name == found.attacker) {
                Some((_, own)) => own.extend(rate),
                None => rates.push((&found.attacker, rate.into_iter().collect())),
            }
        }
        let strength = |rates: &Vec<f64>| mean(rates.iter().copied()).unwrap_or(0.0);
        rates.sort_by(|one, other| strength(&other.1).total_cmp(&strength(&one.1)));
        rates.into_iter().map(|(name, _)| name).collect()
    }

    /// The attackers of a plot with a line for each, and their paints.
    fn shown(self) -> Vec<(Paint, &'a str)> {
        let numbered = self.attackers().into_iter().take(plot::COLORS).enumerate();
        numbered.map(|(number, name)| (Paint::Line(number), name)).collect()
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn percent_axis(name: &str) -> Axis {
    Axis::linear(name, 1.0, |share| format!("{:.0} %", 100.0 * share))
}

/// Logarithmic. `None` if all records were judged after one time only.
fn time_axis(times: &[f64]) -> Option<Axis> {
    let (first, last) = (times.first()?, times.last()?);
    (first < last).then(|| Axis::log("seconds of the record", *first, *last, axis_number))
}

/// Small plots with captions, under one legend.
fn grid(plots: &[(String, String)], entries: &[(Paint, String)]) -> Markup {
    html! {
        figure {
            div.plots {
                @for (caption, svg) in plots { figure { figcaption { (caption) } (PreEscaped(svg)) } }
            }
            (legend(entries, Paint::swatch))
        }
    }
}

/// Of an attack's plots with a line for each attacker.
fn attackers_legend(shown: &[(Paint, &str)], others: &str) -> Vec<(Paint, String)> {
    let named = shown.iter().map(|(paint, name)| (*paint, (*name).to_owned()));
    named.chain([(Paint::Quiet, others.to_owned())]).collect()
}
