//! The rounds of paced classes: whether cells arrive in time for them.

use super::super::facts::{Facts, Neighbour};
use super::super::finding::{Finding, Fix};
use super::super::subject::Subject;
use eddy_node::report::paced::ClockReport;
use wire::paced::terms::STEP_MS;

/// The step of a link is the time that 999 of 1,000 cells need.
const LOST_MAX: f64 = 1e-3;
/// A link that loses more is down, or a hop has just been restarted: that says nothing of steps.
const DOWN: f64 = 0.5;
/// From the time of a round to the moment at which its last cell leaves, in ms.
const RELEASE_MS: f64 = 1.0;

/// A link whose step was compared with what was measured.
struct Link {
    /// `class voice to the next hop`.
    name: String,
    needs_ms: f64,
    step_ms: u16,
    clock: ClockReport,
    /// Share of the cells that do not come in time.
    lost: f64,
    /// What makes its step long enough.
    remedy: String,
}

/// The step of each link, against the delay of the link, the difference of the clocks and the time of a release, as the
/// running node has measured them.
pub fn steps(subject: &Subject, facts: &Facts) -> Finding {
    const NAME: &str = "steps";
    if subject.paced.is_empty() {
        return Finding::ok(NAME, "no rounds to be in time for");
    }
    let Some(neighbours) = &facts.neighbours else {
        return Finding::note(NAME, "not measured: start the node, then run this again");
    };
    let all = neighbours.iter().flat_map(|(class, of_class)| of_class.iter().map(move |neighbour| (class, neighbour)));
    let links: Vec<Link> = all.filter_map(|(class, neighbour)| link(subject, class, neighbour)).collect();
    let Some(worst) = links.iter().max_by(|a, b| a.over_ms().total_cmp(&b.over_ms())) else {
        return Finding::note(NAME, "not measured: no neighbour has answered yet; run this again in a minute");
    };
    let Link { name, needs_ms, step_ms, clock: ClockReport { offset_ms, round_trip_ms }, remedy, .. } = worst;
    let found = format!("{name} needs {needs_ms:.1} ms, and its step is {step_ms} ms");
    let effect = "cells come after their round has left: they are dropped as `late`, and noise takes their place";
    if worst.over_ms() <= 0.0 {
        let most = links.iter().max_by(|a, b| a.lost.total_cmp(&b.lost));
        if let Some(Link { name, lost, .. }) = most.filter(|link| link.lost >= DOWN) {
            let lost = 100.0 * lost;
            return Finding::note(NAME, format!("{name}: {lost:.0} % of the latest cells did not come: is it down?"));
        }
        let Some(worst) = most.filter(|link| link.lost > LOST_MAX) else {
            return Finding::ok(NAME, found);
        };
        let Link { name, step_ms, lost, remedy, .. } = worst;
        let found = format!("{name}: {:.2} % of its cells do not come within the step of {step_ms} ms", 100.0 * lost);
        let what = format!(
            "if the link itself loses less (`ping`), a hop wakes late: give each a core (`cores`), and look at its load. If \
             that changes nothing, {remedy}"
        );
        return Finding::warning(NAME, found, effect).fix(Fix::words(what));
    }
    let found = format!(
        "{found} (half a round trip of {round_trip_ms:.1} ms, twice the clocks' difference of {:.1} ms, {RELEASE_MS:.0} ms \
         for the release)",
        offset_ms.abs()
    );
    let off = 2.0 * offset_ms.abs();
    let what = if needs_ms - off <= f64::from(*step_ms) {
        format!("synchronise the clocks of both hosts (`chronyc tracking`), or {remedy}")
    } else {
        remedy.clone()
    };
    Finding::warning(NAME, found, effect).fix(Fix::words(what))
}

impl Link {
    fn over_ms(&self) -> f64 {
        self.needs_ms - f64::from(self.step_ms)
    }
}

/// The link to the neighbour `who`. `None` for links without a step, which are those of users.
fn link(subject: &Subject, class: &str, neighbour: &Neighbour) -> Option<Link> {
    let Neighbour { who, clock, lost, places } = neighbour;
    let terms = subject.paced.iter().find(|terms| terms.name == *class)?;
    let steps = &terms.steps_ms;
    // The first step is that of the link to the second hop.
    let at = if who == "next" { subject.position - 1 } else { subject.position.checked_sub(2)? };
    let step_ms = *steps.get(at)?;
    let needs_ms = clock.round_trip_ms / 2.0 + 2.0 * clock.offset_ms.abs() + RELEASE_MS;
    let mut longer: Vec<String> = steps.iter().map(u16::to_string).collect();
    // Half as long again if delay and clocks do not explain the losses.
    let enough = if needs_ms > step_ms.into() { needs_ms.ceil() as u16 } else { step_ms + step_ms.div_ceil(2) };
    longer[at] = enough.to_string();
    let (most_ms, periods) = (terms.link_max_ms(), terms.link_max_ms() / u32::from(terms.period_ms));
    let remedy = match u32::from(enough) {
        step if step > (*STEP_MS.end()).into() => {
            format!("use hosts that are nearer to each other: a step has at most {} ms", STEP_MS.end())
        }
        step if step > most_ms => {
            let period_ms = step.div_ceil(periods);
            format!("make the chain again with period_ms={period_ms} or more, which a step of {step} ms needs")
        }
        _ => format!("make the chain again with steps_ms={}", longer.join("/")),
    };
    Some(Link {
        name: format!("class {class} to the {who} hop"),
        needs_ms,
        step_ms,
        clock: *clock,
        lost: *lost as f64 / (*places).max(1) as f64,
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::sound;
    use super::super::super::finding::Severity;
    use super::*;
    use wire::cell::Class;
    use wire::paced::{PacedClass, PacedTerms};

    fn voice(steps_ms: Vec<u16>) -> Vec<PacedTerms> {
        vec![PacedTerms { steps_ms, ..PacedTerms::new(PacedClass::new(Class::S), "voice", 4) }]
    }

    /// Of the second of four hops, where the neighbours' clocks are these.
    fn found(clocks: &[(&str, f64, f64)]) -> Finding {
        let subject = Subject { position: 2, paced: voice(vec![2, 5, 3]), ..Subject::of_a_chain() };
        let neighbour = |&(who, offset_ms, round_trip_ms): &(&str, f64, f64)| {
            let clock = ClockReport { offset_ms, round_trip_ms };
            Neighbour { who: who.to_owned(), clock, lost: 10, places: 10_000 }
        };
        steps_of(&subject, clocks.iter().map(neighbour).collect())
    }

    fn steps_of(subject: &Subject, neighbours: Vec<Neighbour>) -> Finding {
        let facts = Facts { neighbours: Some(vec![("voice".to_owned(), neighbours)]), ..sound() };
        steps(subject, &facts)
    }

    fn remedy(finding: &Finding) -> &str {
        let Some(Fix::Do { what, .. }) = &finding.fix else { panic!("{finding:?}") };
        what
    }

    #[test]
    fn step_that_covers_link_and_clocks_is_sound() {
        let finding = found(&[("previous", 0.1, 0.6), ("next", -0.5, 4.0)]);
        assert_eq!((finding.severity, finding.fix), (Severity::Ok, None));
        assert_eq!(finding.found, "class voice to the previous hop needs 1.5 ms, and its step is 2 ms");
    }

    #[test]
    fn short_step_is_found_with_the_setting_that_fixes_it() {
        let far = found(&[("previous", 0.0, 1.0), ("next", 0.0, 12.4)]);
        assert_eq!(far.severity, Severity::Warning);
        assert!(far.found.starts_with("class voice to the next hop needs 7.2 ms, and its step is 5 ms"), "{far:?}");
        assert_eq!(remedy(&far), "make the chain again with steps_ms=2/8/3");
        let farther = found(&[("previous", 0.0, 1.0), ("next", 0.0, 150.0)]);
        assert_eq!(remedy(&farther), "make the chain again with period_ms=13 or more, which a step of 76 ms needs");
        let too_far = found(&[("previous", 0.0, 1.0), ("next", 0.0, 1100.0)]);
        assert_eq!(remedy(&too_far), "use hosts that are nearer to each other: a step has at most 500 ms");
        let apart = found(&[("previous", -1.5, 1.0), ("next", 0.0, 1.0)]);
        assert!(remedy(&apart).starts_with("synchronise the clocks"), "{apart:?}");
        assert!(remedy(&apart).ends_with("steps_ms=5/5/3"), "{apart:?}");
    }

    #[test]
    fn cells_that_do_not_come_in_time_are_found() {
        let subject = Subject { position: 2, paced: voice(vec![2, 5, 3]), ..Subject::of_a_chain() };
        let neighbour = |who: &str, lost| {
            let clock = ClockReport { offset_ms: 0.0, round_trip_ms: 1.0 };
            Neighbour { who: who.to_owned(), clock, lost, places: 10_000 }
        };
        let finding = steps_of(&subject, vec![neighbour("previous", 10), neighbour("next", 11)]);
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(
            finding.found,
            "class voice to the next hop: 0.11 % of its cells do not come within the step of 5 ms"
        );
        assert!(remedy(&finding).ends_with("make the chain again with steps_ms=2/8/3"), "{finding:?}");
        assert_eq!(steps_of(&subject, vec![neighbour("next", 10)]).severity, Severity::Ok);
        let down = steps_of(&subject, vec![neighbour("next", 9000)]);
        assert_eq!((down.severity, down.fix), (Severity::Note, None));
    }

    #[test]
    fn node_that_does_not_run_was_not_measured() {
        let subject = Subject { paced: voice(vec![2]), ..Subject::of_a_chain() };
        assert_eq!(steps(&subject, &sound()).severity, Severity::Note);
        assert_eq!(found(&[]).severity, Severity::Note);
        assert_eq!(steps(&Subject::of_a_chain(), &sound()).severity, Severity::Ok);
    }
}
