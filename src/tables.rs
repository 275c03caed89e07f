//! Tables for people: the reports of nodes, and the style of every other table.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets};
use eddy_node::report::{Distribution, NodeReport, PairReport, TallyReport};

/// An empty table in the project's style.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_header(header.iter().copied());
    table
}

/// Rights all columns from `first` to before `end`.
pub fn align_right(table: &mut Table, columns: std::ops::Range<usize>) {
    for index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The ledgers and batches of nodes, for people.
pub fn render(nodes: &[NodeReport]) -> String {
    let mut ledger = table(&[
        "node",
        "unit",
        "direction",
        "received",
        "injected",
        "sent",
        "errors",
        "dropped",
        "consumed",
        "held",
        "closed",
        "dropped because",
    ]);
    let mut sizes = table(&[
        "node",
        "batches",
        "mean",
        "largest",
        "channels in one",
        "cells a message in",
        "out",
        "kernel drops",
        "links",
        "channels",
        "flows",
        "handshakes",
        "setups",
        "uptime",
        "cpu",
        "io",
    ]);
    let mut stays = table(&[
        "node",
        "direction",
        "counted",
        "mixing p50",
        "p99",
        "eddy p50",
        "p99",
        "longest",
        "both p50",
        "p99",
        "longest",
    ]);
    for node in nodes {
        for (i, (direction, stay)) in
            [("forward", &node.latency_us.forward), ("backward", &node.latency_us.backward)].into_iter().enumerate()
        {
            let of = |distribution: Option<&Distribution>, what: fn(&Distribution) -> f64| {
                distribution.filter(|all| all.count > 0).map_or_else(|| "-".to_owned(), |all| time(what(all)))
            };
            let (pool, eddy, both) = (stay.pool.as_ref(), Some(&stay.node), Some(&stay.total));
            stays.add_row([
                if i == 0 { node.name() } else { String::new() },
                direction.to_owned(),
                stay.total.count.to_string(),
                of(pool, |all| all.p50),
                of(pool, |all| all.p99),
                of(eddy, |all| all.p50),
                of(eddy, |all| all.p99),
                of(eddy, |all| all.max),
                of(both, |all| all.p50),
                of(both, |all| all.p99),
                of(both, |all| all.max),
            ]);
        }
        for (i, (unit, direction, tally)) in node.ledger.tallies().enumerate() {
            let counts = [
                tally.received,
                tally.injected,
                tally.sent,
                tally.send_errors,
                tally.dropped_total(),
                tally.consumed,
                tally.held,
            ];
            let mut row = vec![if i == 0 { node.name() } else { String::new() }, unit.to_owned(), direction.to_owned()];
            row.extend(counts.iter().map(u64::to_string));
            row.push(if tally.closed { "yes" } else { "NO" }.to_owned());
            row.push(reasons(&tally.dropped));
            ledger.add_row(row);
        }
        let cells = |count: fn(&TallyReport) -> u64| {
            let PairReport { forward, backward } = &node.ledger.cells;
            count(forward) + count(backward)
        };
        sizes.add_row([
            node.name(),
            node.batches.to_string(),
            format!("{:.1}", node.mean_batch),
            node.largest_batch.to_string(),
            format!("{:.1}", node.distinct_channels_mean),
            per_message(cells(|tally| tally.received), node.messages.received),
            per_message(cells(|tally| tally.sent), node.messages.sent),
            node.kernel_drops.to_string(),
            node.links.to_string(),
            node.channels.to_string(),
            node.flows.to_string(),
            node.handshakes.done.to_string(),
            node.handshakes.setups.to_string(),
            format!("{:.1} s", node.uptime_s),
            format!("{:.2} s", node.cpu_s),
            node.io.clone(),
        ]);
    }
    align_right(&mut ledger, 3..10);
    align_right(&mut sizes, 1..15);
    align_right(&mut stays, 2..11);
    let mut text = format!("{ledger}\n{sizes}\n{stays}\n");
    for node in nodes.iter().filter(|node| !node.refused.is_empty()) {
        text += &format!("{} refused: {}\n", node.name(), reasons(&node.refused));
    }
    text
}

/// Microseconds, in a unit that people read.
fn time(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{us:.0} us"),
        us if us < 999_500.0 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

fn per_message(cells: u64, messages: u64) -> String {
    if messages == 0 { "-".to_owned() } else { format!("{:.1}", cells as f64 / messages as f64) }
}

fn reasons(counts: &BTreeMap<String, u64>) -> String {
    let all: Vec<String> = counts.iter().map(|(why, count)| format!("{why} {count}")).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use dataplane::latency::Profile;
    use dataplane::ledger::{DropReason, Ledger};
    use eddy_node::config::NodeRole;

    use super::*;

    fn sample() -> NodeReport {
        let mut ledger = Ledger::default();
        ledger.cells.forward.received = 5;
        ledger.cells.forward.sent = 3;
        ledger.cells.forward.drop_many(DropReason::Replay, 2);
        ledger.batches.add(3, 2);
        let mut profile = Profile::default();
        profile.batches.add(3, 1);
        profile.forward.add(4_200_000, 35_000, 2);
        profile.forward.add(100_000, 1_234_567, 1);
        NodeReport::new(NodeRole::Mix, 2, &ledger, &profile)
    }

    #[test]
    fn people_read_what_mixing_costs_and_what_eddy_does() {
        let text = render(&[sample()]);
        // The second is told as the end of its bucket.
        for cell in ["4.2 ms", "37 us", "1.2 ms"] {
            assert!(text.contains(cell), "{cell}: {text}");
        }
        assert_eq!([0.4, 999.4, 999.6, 999_499.0, 5e6].map(time), ["0 us", "999 us", "1.0 ms", "999.5 ms", "5.0 s"]);
    }

    #[test]
    fn an_open_ledger_shows() {
        let mut ledger = Ledger::default();
        ledger.cells.backward.received = 1;
        let report = NodeReport::new(NodeRole::Exit, 4, &ledger, &Profile::default());
        assert!(!report.ledger.closed());
        assert!(render(&[report]).contains("NO"));
    }
}
