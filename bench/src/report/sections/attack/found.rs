//! The share of users whose flow was found, after each length of record.

use maud::{Markup, html};

use super::super::{Section, parts};
use super::{IDEAL, Means, attackers_legend, grid, percent, percent_axis, time_axis};
use crate::attack::{AttackResult, Summary};
use crate::report::format::axis_number;
use crate::report::plot::{self, Line, Paint};
use crate::report::sources::Labelled;
use crate::report::table::{Row, figure, number, table, word};

/// A larger p says that a result may be luck.
const P_MAX: f64 = 0.05;

pub(in super::super) fn section(attacks: &[Labelled<AttackResult>]) -> anyhow::Result<Option<Section>> {
    let about = "An adversary records the time and length of every datagram on all wires, and guesses which flow behind \
                 the exit is whose. The lines show for how many users the guess is right. A class \
                 whose line rises does not hide these flows from somebody who sees both ends; the time at which it \
                 rises is how long a flow may last. A class whose line stays at chance withstood these attackers, which \
                 does not mean that it withstands others. The attacker of a case is the one that was best on the other \
                 seeds; with one seed it is chosen on the same record, so its figure is too high.";
    Ok(parts(about, attacks, part)?.map(|body| Section { id: "attack", title: "Flows found", body }))
}

fn part(result: &AttackResult) -> anyhow::Result<Markup> {
    let means = Means(result);
    let columns = [
        word("case"),
        word("attacker"),
        number("users"),
        number("50 % after, s"),
        number("seconds"),
        number("found"),
        number("least"),
        number("greatest"),
        number("chance"),
        number("p"),
    ];
    let rows: Vec<Row> = result.summaries.iter().map(|summary| summary_row(means, summary)).collect();
    let (best, each) = (best_plot(result)?, attackers_plots(means)?);
    Ok(html! {
        ul { @for summary in &result.summaries { li { (conclusion(summary)) } } }
        (table("The best attacker of each case", &columns, &rows))
        @if let Some(best) = best { (best) }
        @if let Some(each) = each {
            p.quiet {
                "The same for each of the strongest attackers, with the users that it found at each length of the \
                 record."
            }
            (each)
        }
        details {
            summary { "Every attacker after the whole record" }
            p.quiet {
                "Means of the seeds. Rank is the mean reciprocal rank of the right flow. TPR is the share of right \
                 pairs above all but 1 % or 0.1 % of the wrong ones. Bits left: see Entropy. The best of many \
                 attackers is above chance by luck."
            }
            (every_attacker(means))
        }
    })
}

/// In plain words.
fn conclusion(summary: &Summary) -> String {
    let Summary { case, top1, seconds_to_half, chance, .. } = summary;
    let seconds = summary.top1_after.last().map_or(0.0, |(seconds, _)| *seconds);
    let p = greatest_p(summary);
    let half = seconds_to_half.map_or(String::new(), |seconds| format!(" and half of them after {seconds:.1} s"));
    let luck = match (p <= P_MAX, case == IDEAL) {
        (true, true) => {
            "This record is independent of its users: an attacker above chance has found a leak in the bench"
        }
        (true, false) => "This is not luck",
        (false, true) => "It is independent of its users, and no attacker says otherwise",
        (false, false) => "This may be luck",
    };
    format!(
        "{case}: the best attacker finds {} of the users after {seconds} s{half}; guessing finds {}. {luck} (p = {p:.3}).",
        percent(*top1),
        percent(*chance)
    )
}

/// Of the seed that shows least.
fn greatest_p(summary: &Summary) -> f64 {
    summary.verdicts.iter().map(|verdict| verdict.p).fold(0.0, f64::max)
}

fn attackers(summary: &Summary) -> String {
    let mut names = summary.attackers.clone();
    names.sort();
    names.dedup();
    names.join(", ")
}

fn summary_row(means: Means<'_>, summary: &Summary) -> Row {
    let users = means.of_case(&summary.case).map(|found| found.users).max().unwrap_or(0);
    Row::new(vec![
        summary.case.clone(),
        attackers(summary),
        users.to_string(),
        summary.seconds_to_half.map_or("-".to_owned(), |seconds| format!("{seconds:.1}")),
        summary.top1_after.last().map_or("-".to_owned(), |(seconds, _)| axis_number(*seconds)),
        percent(summary.top1),
        percent(summary.top1_range[0]),
        percent(summary.top1_range[1]),
        percent(summary.chance),
        format!("{:.3}", greatest_p(summary)),
    ])
}

fn best_plot(result: &AttackResult) -> anyhow::Result<Option<Markup>> {
    let mut times: Vec<f64> = result.summaries.iter().flat_map(|one| &one.top1_after).map(|(at, _)| *at).collect();
    times.sort_by(f64::total_cmp);
    let Some(x) = time_axis(&times) else { return Ok(None) };
    let [first, last] = [times[0], times[times.len() - 1]].map(f64::log10);

    let (mut lines, mut legend, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let chance = result.summaries.iter().map(|one| one.chance).fold(0.0, f64::max);
    lines.push(Line { points: vec![(first, chance), (last, chance)], paint: Paint::Quiet });
    for (number, summary) in result.summaries.iter().enumerate() {
        let paint = Paint::Line(number);
        lines.push(Line { points: summary.top1_after.iter().map(|(at, top1)| (at.log10(), *top1)).collect(), paint });
        legend.push((paint, format!("{}: {}", summary.case, attackers(summary))));
        let after = summary.top1_after.iter().map(|(at, top1)| format!("{} after {at} s", percent(*top1)));
        values.push(format!("{}: {}", summary.case, after.collect::<Vec<_>>().join(", ")));
    }
    legend.push((Paint::Quiet, "guessing".to_owned()));
    let label = format!("Users whose flow was found, by length of the record. {}.", values.join("; "));
    Ok(Some(figure(plot::lines(&label, &x, &percent_axis("found"), &lines)?, &legend)))
}

/// A plot for each case with a line for each of the strongest attackers.
fn attackers_plots(means: Means<'_>) -> anyhow::Result<Option<Markup>> {
    let shown = means.shown();
    let mut plots = Vec::new();
    for case in means.cases() {
        let times = means.times(case);
        let Some(x) = time_axis(&times) else { continue };
        let (mut lines, mut values) = (Vec::new(), Vec::new());
        let chance = means.0.summaries.iter().find(|one| one.case == case).map_or(0.0, |one| one.chance);
        let ends = [times[0], times[times.len() - 1]];
        lines.push(Line { points: ends.map(|at| (at.log10(), chance)).to_vec(), paint: Paint::Quiet });
        for (paint, attacker) in &shown {
            let top1 = |at: &f64| Some((at.log10(), means.mean(case, attacker, *at, |found| found.top1)?));
            let points: Vec<(f64, f64)> = times.iter().filter_map(top1).collect();
            values.extend(points.last().map(|(_, top1)| format!("{attacker} {}", percent(*top1))));
            lines.push(Line { points, paint: *paint });
        }
        let label = format!("Users found in case {case} by length of the record. At the end: {}.", values.join("; "));
        plots.push((case.to_owned(), plot::small_lines(&label, &x, &percent_axis("found"), &lines)?));
    }
    Ok((!plots.is_empty()).then(|| grid(&plots, &attackers_legend(&shown, "guessing"))))
}

fn every_attacker(means: Means<'_>) -> Markup {
    let columns = [
        word("case"),
        word("attacker"),
        number("found"),
        number("rank"),
        number("AUC"),
        number("TPR at 1 %"),
        number("TPR at 0.1 %"),
        number("bits left"),
    ];
    let mut rows = Vec::new();
    for case in means.cases() {
        let Some(seconds) = means.times(case).last().copied() else { continue };
        let before = rows.len();
        for attacker in means.attackers() {
            let mean = |value: fn(&crate::attack::Found) -> f64| means.mean(case, attacker, seconds, value);
            let Some(top1) = mean(|found| found.top1) else { continue };
            let mut cells = vec![case.to_owned(), attacker.to_owned(), percent(top1)];
            let shares = [mean(|found| found.mrr), mean(|found| found.auc), mean(|found| found.tpr_1e2)];
            let shares = shares.into_iter().chain([mean(|found| found.tpr_1e3)]).flatten();
            cells.extend(shares.map(|share| format!("{share:.3}")));
            cells.extend(mean(|found| found.entropy_bits).map(|bits| format!("{bits:.2}")));
            rows.push(Row { is_first: rows.len() == before, ..Row::new(cells) });
        }
    }
    table("Every attacker", &columns, &rows)
}
