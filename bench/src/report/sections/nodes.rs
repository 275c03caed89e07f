//! What the nodes of a chain reported at its end.

use maud::html;
use serde_json::Value;

use super::Section;
use crate::format::{count, rounded};
use crate::nodes;
use crate::report::sources::Run;
use crate::report::table::{Row, long, number, table, word};

/// Index of the column `ledger`.
const LEDGER_AT: usize = 9;

pub(super) fn section(runs: &[Run]) -> Option<Section> {
    let columns = [
        word("run"),
        word("node"),
        number("cells"),
        number("releases"),
        number("cells/release"),
        number("largest"),
        number("effective channels, forward"),
        number("backward"),
        number("CPU ns/cell"),
        number("kernel drops"),
        word("ledger"),
        long("dropped"),
    ];
    let rows = runs.iter().flat_map(|run| {
        run.results.nodes.iter().enumerate().map(move |(at, node)| row(if at == 0 { &run.label } else { "" }, node))
    });
    let rows: Vec<Row> = rows.collect();
    if rows.is_empty() {
        return None;
    }
    let body = html! {
        p.quiet {
            "Reports of the nodes at the end of a run. A ledger closes if every packet was sent, dropped for a named "
            "reason, consumed or held. CPU time is that of the whole process, including start and channel setup."
        }
        (table("The nodes", &columns, &rows))
    };
    Some(Section { id: "nodes", title: "Nodes", body })
}

fn row(label: &str, node: &Value) -> Row {
    let facts = nodes::facts(node);
    let dropped = facts.dropped.iter().map(|(reason, times)| format!("{} {reason}", count(*times)));
    let dropped = dropped.collect::<Vec<_>>().join(", ");
    let effective = |at| facts.effective.map_or_else(|| "-".to_owned(), |both: [f64; 2]| format!("{:.1}", both[at]));
    let cells = vec![
        label.to_owned(),
        nodes::name(node),
        count(facts.cells),
        count(facts.releases),
        format!("{:.1}", facts.mean_release),
        count(facts.largest_release),
        effective(0),
        effective(1),
        rounded(facts.cell_ns),
        count(facts.kernel_drops),
        if facts.closed { "closed" } else { "open" }.to_owned(),
        if dropped.is_empty() { "none".to_owned() } else { dropped },
    ];
    Row { cells, is_first: !label.is_empty(), bad: (!facts.closed).then_some(LEDGER_AT), ..Row::default() }
}
