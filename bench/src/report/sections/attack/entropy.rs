//! The uncertainty that an attacker leaves, and what the meters of the mixes show at the same time.

use maud::{Markup, html};

use super::super::{Section, parts};
use super::{Means, mean, time_axis};
use crate::attack::{AttackResult, Summary};
use crate::report::format::axis_number;
use crate::report::plot::{self, Axis, COLORS, Line, Paint};
use crate::report::sources::Labelled;
use crate::report::table::figure;

pub(in super::super) fn section(attacks: &[Labelled<AttackResult>]) -> anyhow::Result<Option<Section>> {
    let about = "Solid lines are bits of uncertainty about a user's flow that the best attacker of a case leaves, \
                 computed from its scores on the record (cross entropy of a softmax with the best scale). The dashed \
                 grey line is the most that is possible: every flow is equally likely. One bit less halves the flows \
                 that a user can have; at 0 bits the user is found. Coloured dashes are what the anonymity meters of \
                 the mixes show during the run: the mean entropy of the channel of a cell in a forward release of the \
                 last minute, at the mix where it is smallest. A meter that stays high while the solid line falls \
                 shows why the meter alone is not a measure of safety: it looks at one release, and a call is \
                 thousands of them.";
    let body = parts(about, attacks, part)?;
    Ok(body.map(|body| Section { id: "attack-entropy", title: "Entropy", body }))
}

fn part(result: &AttackResult) -> anyhow::Result<Markup> {
    let means = Means(result);
    let users = result.results.iter().map(|found| found.users).max().unwrap_or(1).max(2) as f64;
    let attackers: Vec<(&Summary, Vec<(f64, f64)>)> =
        result.summaries.iter().map(|summary| (summary, bits_left(means, summary))).collect();
    let meters: Vec<Vec<(f64, f64)>> = result.summaries.iter().map(|summary| meter(result, &summary.case)).collect();
    let mut times: Vec<f64> = attackers.iter().flat_map(|(_, points)| points.iter().map(|point| point.0)).collect();
    times.sort_by(f64::total_cmp);
    let Some(x) = time_axis(&times) else {
        return Ok(html! { p { "The records are too short for a curve." } });
    };
    let most = meters.iter().flatten().map(|point| point.1).fold(users.log2(), f64::max);
    let y = Axis::linear("bits", most, axis_number);

    let ends = [times[0], times[times.len() - 1]];
    let mut lines = vec![line(&ends.map(|at| (at, users.log2())), Paint::Quiet)];
    let (mut legend, mut values) = (Vec::new(), Vec::new());
    for (number, ((summary, points), meter)) in attackers.iter().zip(&meters).enumerate() {
        let case = &summary.case;
        lines.push(line(points, Paint::Line(number)));
        legend.push((Paint::Line(number), format!("{case}: left by the best attacker")));
        let after = points.iter().map(|(at, bits)| format!("{bits:.1} after {at} s"));
        values.push(format!("{case}: {}", after.collect::<Vec<_>>().join(", ")));
        if let Some((_, bits)) = meter.last() {
            let paint = Paint::Line(number + COLORS);
            lines.push(line(meter, paint));
            legend.push((paint, format!("{case}: the meter")));
            values.push(format!("meter of {case}: {bits:.1} at the end"));
        }
    }
    legend.push((Paint::Quiet, format!("{} users are equally likely", users)));
    let label = format!("Bits of uncertainty by length of the record. {}.", values.join("; "));
    Ok(figure(plot::lines(&label, &x, &y, &lines)?, &legend))
}

fn line(points: &[(f64, f64)], paint: Paint) -> Line {
    Line { points: points.iter().map(|(at, bits)| (at.log10(), *bits)).collect(), paint }
}

/// By the attacker that was chosen for each seed: seconds and bits, means of the seeds.
fn bits_left(means: Means<'_>, summary: &Summary) -> Vec<(f64, f64)> {
    let case = &summary.case;
    let chosen: Vec<(u64, &String)> = means.seeds(case).into_iter().zip(&summary.attackers).collect();
    let at = |seconds: f64| {
        let own = means
            .of_case(case)
            .filter(|found| found.seconds == seconds && chosen.contains(&(found.seed, &found.attacker)));
        Some((seconds, mean(own.map(|found| found.entropy_bits))?))
    };
    means.times(case).into_iter().filter_map(at).collect()
}

/// Forward, at the mix with the smallest entropy: whole seconds and bits, means of the seeds.
fn meter(result: &AttackResult, case: &str) -> Vec<(f64, f64)> {
    let facts = result.runs.iter().filter(|run| run.case == case).filter_map(|run| run.facts.as_ref());
    let samples: Vec<_> = facts.flat_map(|facts| &facts.meter).collect();
    let last = samples.iter().map(|sample| sample.seconds).fold(0.0, f64::max);
    let at = |second: u32| {
        let near = samples.iter().filter(|sample| sample.seconds as u32 == second);
        let least = near.filter_map(|sample| sample.forward_bits.iter().copied().reduce(f64::min));
        Some((f64::from(second), mean(least)?))
    };
    (1..=last as u32).filter_map(at).collect()
}
