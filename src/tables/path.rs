//! `eddy status --path`: where the delay of a paced class comes from.

use std::collections::BTreeMap;

use eddy_node::report::NodeReport;
use eddy_node::report::path::{PathReport, StepReport};

use super::{align_right, lines, table};

/// Planned and measured times of each step, and of the loops of a mix.
pub fn render(node: &NodeReport) -> String {
    let Some(paced) = &node.paced else {
        return "a free class has no timetable: eddy status without --path shows its times\n".to_owned();
    };
    let PathReport { steps, total, meeting, loops } = &paced.path;
    let mut rows = table(&[&format!("{}, ms", node.name()), "forward", "backward", "measured"]);
    for step in steps.iter().chain([total, meeting]) {
        rows.add_row([step.step.clone(), planned(step.forward_ms), planned(step.backward_ms), measured(step)]);
    }
    align_right(&mut rows, 1..4);
    let most = |times: Option<(f64, f64)>| times.map_or(0.0, |(_, most)| most);
    let (forward, backward) = (most(total.forward_ms), most(total.backward_ms));
    format!(
        "{}`adds` of eddy status is the most of these: {forward:.0}, {backward:.0}, {:.0} ms, without access paths\n{}",
        lines(&rows),
        most(meeting.forward_ms),
        loops.as_ref().map_or_else(String::new, of_loops)
    )
}

/// The same for programs: of a node with one class its path, null of a free one; otherwise the paths of its paced
/// classes by name.
///
/// # Errors
/// Never in practice.
pub fn json(node: &NodeReport) -> serde_json::Result<String> {
    let path = |node: &NodeReport| node.paced.as_ref().map(|paced| paced.path.clone());
    if node.classes.is_empty() {
        return serde_json::to_string(&path(node));
    }
    let paths: BTreeMap<_, _> = node.classes.iter().filter_map(|(name, class)| Some((name, path(class)?))).collect();
    serde_json::to_string(&paths)
}

fn planned(times: Option<(f64, f64)>) -> String {
    match times {
        None => "-".to_owned(),
        Some((least, most)) if least == most => format!("{most:.0}"),
        Some((least, most)) => format!("{least:.0} to {most:.0}"),
    }
}

fn measured(step: &StepReport) -> String {
    match (step.measured_ms, step.measured_p99_ms) {
        (None, _) => "-".to_owned(),
        (Some(time), None) => format!("{time:.1}"),
        (Some(p50), Some(p99)) => format!("{p50:.1} / {p99:.1}"),
    }
}

fn of_loops(loops: &StepReport) -> String {
    let Some((sent, late)) = loops.backward_ms else { return String::new() };
    format!(
        "{}: p50 / p99 {} ms;\nthe next hop sends them after {sent:.0} ms, and after {late:.0} ms they are late\n",
        loops.step,
        measured(loops)
    )
}

#[cfg(test)]
mod tests {
    use dataplane::latency::Profile;
    use dataplane::ledger::Ledger;
    use eddy_node::config::NodeRole;
    use eddy_node::report::paced::PacedReport;
    use wire::cell::Class;
    use wire::paced::{PacedClass, PacedTerms};

    use super::super::paced::tests::troubled_entry;
    use super::*;

    fn node(path: PathReport) -> NodeReport {
        let node = NodeReport::new(NodeRole::Mix, 1, &Ledger::default(), &Profile::default());
        NodeReport { paced: Some(PacedReport { path, ..troubled_entry() }), ..node }
    }

    #[test]
    fn path_through_eight_hops_fits_80x24() {
        let mut path = PathReport::planned(&PacedTerms::new(PacedClass::new(Class::S), "voice", 8), 8);
        path.steps.iter_mut().for_each(|step| (step.measured_ms, step.measured_p99_ms) = (Some(1234.5), Some(1234.5)));
        let step = "loops of this mix, to the exit and back".to_owned();
        path.loops = Some(StepReport { step, backward_ms: Some((1234.0, 1234.0)), ..path.steps[0].clone() });
        let text = render(&node(path));
        assert!(text.lines().count() <= 23 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let words = |step: &str| -> Vec<String> {
            let line = text.lines().find(|line| line.starts_with(step)).unwrap_or_else(|| panic!("{step}: {text}"));
            line[step.len()..].split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(words("mix1: slack"), ["8", "-", "1234.5", "/", "1234.5"]);
        assert_eq!(words("mix7 to exit: path, then wait"), ["5", "5", "1234.5", "/", "1234.5"]);
        assert_eq!(words("total to destinations, and back"), ["55", "to", "65", "36", "to", "46", "-"]);
        assert_eq!(words("total between users"), ["91", "to", "101", "91", "to", "101", "-"]);
        assert!(text.contains("\n`adds` of eddy status is the most of these: 65, 46, 101 ms"), "{text}");
    }

    #[test]
    fn path_of_each_paced_class_is_in_its_json() {
        let path = PathReport::planned(&PacedTerms::new(PacedClass::new(Class::S), "voice", 4), 4);
        let parsed = |node: &NodeReport| serde_json::from_str::<serde_json::Value>(&json(node).unwrap()).unwrap();
        let free = NodeReport::new(NodeRole::Mix, 1, &Ledger::default(), &Profile::default());
        assert!(parsed(&free).is_null());
        let paced = node(path.clone());
        assert_eq!(parsed(&paced), serde_json::to_value(&path).unwrap());
        let classes = [("L".to_owned(), free.clone()), ("voice".to_owned(), paced)].into();
        let both = parsed(&NodeReport { classes, ..free });
        assert_eq!(both, serde_json::json!({ "voice": path }));
    }

    #[test]
    fn free_class_has_no_timetable() {
        let node = NodeReport::new(NodeRole::Mix, 1, &Ledger::default(), &Profile::default());
        assert!(render(&node).starts_with("a free class has no timetable"));
    }
}
