//! Time that cells spend inside each node.

use maud::html;

use super::Section;
use crate::format::count;
use crate::nodes::{self, Quantiles};
use crate::report::format::{ms, or_dashes};
use crate::report::sources::Run;
use crate::report::table::{Row, group, number, table, word};

pub(super) fn section(runs: &[Run]) -> Option<Section> {
    let mut columns = vec![word("run"), word("node"), word("direction"), number("count")];
    for part in ["mixing, ms", "eddy, ms", "total, ms"] {
        columns.extend(group(part, ["p50", "p99"]));
    }
    let rows: Vec<Row> = runs.iter().flat_map(rows).collect();
    if rows.is_empty() {
        return None;
    }
    let body = html! {
        p.quiet {
            "Time that cells spent in a node, as the node reports it. “Mixing” is the wait in the pool until its release "
            "was due: the cost of the mixing strategy. “eddy” is everything else: the cost of the program, from the turn "
            "that received a cell to the end of the turn that sent it. Neither includes the time between nodes."
        }
        (table("Time inside the nodes", &columns, &rows))
    };
    Some(Section { id: "inside", title: "Time inside the nodes", body })
}

fn rows(run: &Run) -> Vec<Row> {
    let mut rows = Vec::new();
    for node in &run.results.nodes {
        for (at, latency) in nodes::latencies(node).into_iter().enumerate() {
            let is_first = rows.is_empty();
            let label = if is_first { run.label.clone() } else { String::new() };
            let name = if at == 0 { nodes::name(node) } else { String::new() };
            let mut cells = vec![label, name, latency.direction.to_owned(), count(latency.count)];
            for part in [latency.mixing, latency.eddy, latency.total] {
                cells.extend(or_dashes(part.map(|Quantiles { p50, p99 }| [ms(p50), ms(p99)])));
            }
            rows.push(Row { cells, is_first, ..Row::default() });
        }
    }
    rows
}
