//! What `hop` measured: processor time of a mix and of relays for each cell.

use maud::{Markup, html};

use super::{Section, parts};
use crate::format::{count, rounded};
use crate::hop::{HopResult, HopRow};
use crate::report::plot::{self, BarGroup, Paint};
use crate::report::sources::Labelled;
use crate::report::table::{Row, group, legend, number, plot_area, table, word};

/// A figure of a row, in ns.
type Cost = fn(&HopRow) -> f64;

/// The bars of a row, in order.
const BARS: [(&str, Cost); 4] = [
    ("mix", |row| row.cell_ns),
    ("relay with GSO and GRO", |row| row.relay_gso_ns),
    ("relay with recvmmsg and sendmmsg", |row| row.relay_mmsg_ns),
    ("relay with recvfrom and sendto", |row| row.relay_single_ns),
];

pub(super) fn section(hops: &[Labelled<HopResult>]) -> anyhow::Result<Option<Section>> {
    let about = "Processor time of one mix on one core for each cell, compared with relays on the same core that only \
                 move the bytes, without cryptography. Medians of the rounds.";
    Ok(parts(about, hops, part)?.map(|body| Section { id: "hop", title: "A hop", body }))
}

fn part(hop: &HopResult) -> anyhow::Result<Markup> {
    let mut columns = vec![word("row")];
    columns.extend(group("mix, ns/cell", ["median", "min", "max"]));
    columns.extend(group("relay, ns/cell", ["GSO, GRO", "recvmmsg", "recvfrom"]));
    columns.extend(group("mix / relay", ["GSO, GRO", "recvmmsg"]));
    columns.extend([number("Gbit/s"), number("batch"), word("")]);
    let rows: Vec<Row> = hop.rows.iter().map(table_row).collect();

    let values = hop.rows.iter().map(|row| {
        let bars = BARS.iter().map(|(bar, of)| format!("{bar} {}", rounded(of(row))));
        format!("{}: {}", name(row), bars.collect::<Vec<_>>().join(", "))
    });
    let label = format!("Processor time for a cell, in nanoseconds. {}.", values.collect::<Vec<_>>().join("; "));
    let groups = hop.rows.iter().map(|row| BarGroup { name: name(row), values: BARS.map(|(_, of)| of(row)).to_vec() });
    let svg = plot::groups(&label, &groups.collect::<Vec<_>>(), |ns| format!("{} ns", rounded(ns)))?;
    let paints = BARS.iter().enumerate().map(|(bar, (name, _))| (Paint::Line(bar), (*name).to_owned()));
    let paints: Vec<_> = paints.collect();
    Ok(html! {
        figure { (legend(&paints, Paint::block)) (plot_area(svg)) }
        (table("Processor time for a cell", &columns, &rows))
    })
}

fn name(row: &HopRow) -> String {
    let from = if row.entries > 0 { format!(", from {} entries", row.entries) } else { String::new() };
    let channels = if row.channels == 1 { "channel" } else { "channels" };
    format!("{}, {} {channels}, pool {}{from}", row.direction, count(row.channels as u64), count(row.pool as u64))
}

fn table_row(row: &HopRow) -> Row {
    let figure = |value: f64, digits: usize| if value.is_finite() { format!("{value:.digits$}") } else { "-".into() };
    let [least, most] = row.cell_ns_range;
    let mut cells = vec![name(row)];
    cells.extend([row.cell_ns, least, most].map(|ns| figure(ns, 0)));
    cells.extend([row.relay_gso_ns, row.relay_mmsg_ns, row.relay_single_ns].map(|ns| figure(ns, 0)));
    cells.extend([row.ratio_gso, row.ratio_mmsg].map(|ratio| figure(ratio, 2)));
    cells.extend([figure(row.gbit_s, 1), figure(row.batch, 0)]);
    cells.push(if row.generator_bound { "limited by the generator" } else { "" }.to_owned());
    Row::new(cells)
}
