//! What `path` measured: the load that a whole chain carries.

use maud::{Markup, html};

use super::{Section, parts};
use crate::format::{count, rounded};
use crate::path::{PathResult, PathRow};
use crate::report::format::share;
use crate::report::sources::Labelled;
use crate::report::table::{Row, number, table, word};

pub(super) fn section(paths: &[Labelled<PathResult>]) -> anyhow::Result<Option<Section>> {
    let about = "The highest rate that a whole chain carries while at most one datagram in ten thousand is lost. Chain, \
                 generator and sink share the machine. “both”: every datagram is sent back, and both ways are added up.";
    Ok(parts(about, paths, |path| Ok(part(path)))?.map(|body| Section { id: "path", title: "A path", body }))
}

fn part(path: &PathResult) -> Markup {
    let columns = [
        word("direction"),
        number("bytes"),
        number("delivered/s"),
        number("Gbit/s"),
        number("lost, %"),
        number("sent/s"),
        word(""),
    ];
    let rows: Vec<Row> = path.rows.iter().map(row).collect();
    let node_columns = [word("node"), number("cells"), number("CPU ns/cell")];
    let nodes = path.nodes.iter().map(|node| Row::new(vec![node.node.clone(), count(node.cells), count(node.cell_ns)]));
    let nodes: Vec<Row> = nodes.collect();
    html! {
        (table("Load that a chain carries", &columns, &rows))
        (table("Processor time of each node for a cell", &node_columns, &nodes))
        p { (path.flows) " flows. Every ledger closed: " (if path.closed { "yes" } else { "no" }) "." }
    }
}

fn row(row: &PathRow) -> Row {
    Row::new(vec![
        row.direction.clone(),
        count(row.payload_len as u64),
        rounded(row.delivered_per_s),
        format!("{:.2}", row.gbit_s),
        share(100.0 * row.loss),
        rounded(row.sent_per_s),
        if row.generator_bound { "limited by the generator" } else { "" }.to_owned(),
    ])
}
