//! ROC curves of the strongest attackers.

use maud::{Markup, html};

use super::super::{Section, parts};
use super::{Means, attackers_legend, grid, mean, percent, percent_axis};
use crate::attack::AttackResult;
use crate::report::format::axis_number;
use crate::report::plot::{self, Axis, Line, Paint};
use crate::report::sources::Labelled;

pub(in super::super) fn section(attacks: &[Labelled<AttackResult>]) -> anyhow::Result<Option<Section>> {
    let about = "An adversary that accuses every pair of a user and a flow whose score is above a threshold finds the \
                 share of right pairs that the line shows, at the price of the share of wrong pairs on the axis below. \
                 With 100 users 1 % of the wrong pairs are 99 accusations of innocent pairs. A line at 100 % means \
                 that the adversary can be sure of everybody; a line on the dashed one means that it guesses. Scores \
                 are margins over the rivals in row and column.";
    Ok(parts(about, attacks, part)?.map(|body| Section { id: "attack-roc", title: "ROC curves", body }))
}

fn part(result: &AttackResult) -> anyhow::Result<Markup> {
    let means = Means(result);
    let shown = means.shown();
    let mut plots = Vec::new();
    for case in means.cases() {
        let times = means.times(case);
        let mut ends: Vec<f64> = times.first().into_iter().chain(times.last()).copied().collect();
        ends.dedup();
        for seconds in ends {
            plots.push((format!("{case}, after {seconds} s"), curves(means, &shown, case, seconds)?));
        }
    }
    Ok(html! {
        (grid(&plots, &attackers_legend(&shown, "guessing")))
        p.quiet { "Means of the seeds at each false positive rate. The attackers are the strongest of all cases." }
    })
}

fn curves(means: Means<'_>, shown: &[(Paint, &str)], case: &str, seconds: f64) -> anyhow::Result<String> {
    let rates = &means.0.roc_rates;
    let first = rates.first().copied().unwrap_or(1e-4);
    let x = Axis::log("false positive rate", first, 1.0, axis_number);
    let guessing = rates.iter().map(|rate| (rate.log10(), *rate)).collect();
    let mut lines = vec![Line { points: guessing, paint: Paint::Quiet }];
    let mut values = Vec::new();
    for (paint, attacker) in shown {
        let own = || means.of_case(case).filter(|found| found.attacker == *attacker && found.seconds == seconds);
        let at = |(index, rate): (usize, &f64)| {
            let share = mean(own().filter_map(|found| found.roc.get(index).copied()))?;
            Some((rate.log10(), share))
        };
        lines.push(Line { points: rates.iter().enumerate().filter_map(at).collect(), paint: *paint });
        values.extend(mean(own().map(|found| found.tpr_1e2)).map(|share| format!("{attacker} {}", percent(share))));
    }
    let label = format!(
        "ROC curves of case {case} after {seconds} s. True positive rates at 1 % false positives: {}.",
        values.join("; ")
    );
    plot::small_lines(&label, &x, &percent_axis("right pairs found"), &lines)
}
