//! Every counter of one or several nodes, in tables of at most 80 columns.

use super::summary::node_name_at;
use super::{align_right, lines, reasons, refusals, span, table, time};
use comfy_table::Table;
use eddy_node::ceremony::utc;
use eddy_node::config::NodeRole;
use eddy_node::report::{Distribution, NodeReport, PairReport, TallyReport};

/// All tables, each under its title.
pub fn render(nodes: &[NodeReport]) -> String {
    let parts = [
        ("Cells", tallies(nodes, "cells")),
        ("Datagrams", tallies(nodes, "datagrams")),
        ("Drops and refusals", drops(nodes)),
        ("Mixing: time in the pool", mixing(nodes)),
        ("Latency: node without mixing, and total", latency(nodes)),
        ("Releases", releases(nodes)),
        ("Company in a release, last minute", meters(nodes)),
        ("State", state(nodes)),
        ("Trust: newest descriptors", descriptors(nodes)),
        ("Trust: newest bundle", bundles(nodes)),
    ];
    let shown = parts.into_iter().filter(|(_, text)| !text.is_empty());
    shown.map(|(title, text)| format!("{title}\n{text}\n")).collect()
}

/// The ledger of one unit: `cells` or `datagrams`.
fn tallies(nodes: &[NodeReport], wanted: &str) -> String {
    let mut rows =
        compact(&["node", "dir", "received", "injected", "sent", "err", "dropped", "consumed", "held", "closed"]);

    for node in nodes {
        for (_, direction, tally) in node.ledger.tallies().filter(|(unit, ..)| *unit == wanted) {
            let mut row = vec![node.name(), short(direction)];
            let counts = [
                tally.received,
                tally.injected,
                tally.sent,
                tally.send_errors,
                tally.dropped_total(),
                tally.consumed,
                tally.held,
            ];
            row.extend(counts.iter().map(u64::to_string));
            row.push(if tally.closed { "yes" } else { "NO" }.to_owned());
            rows.add_row(row);
        }
    }
    align_right(&mut rows, 2..9);
    if rows.is_empty() { String::new() } else { lines(&rows) }
}

/// An empty table with one space between columns: ten counters fit a line.
fn compact(header: &[&str]) -> Table {
    let mut rows = table(header);
    rows.column_iter_mut().for_each(|column| _ = column.set_padding((0, 0)));
    rows
}

/// A direction in a column.
fn short(direction: &str) -> String {
    if direction == "forward" { "fwd" } else { "back" }.to_owned()
}

/// Columns that all tables fit.
const WIDTH: usize = 80;

/// A line per reason list: what the data plane dropped, what control refused, what the kernel lost.
fn drops(nodes: &[NodeReport]) -> String {
    let mut all = Vec::new();
    for node in nodes {
        let name = node.name();
        for (unit, direction, tally) in node.ledger.tallies().filter(|(.., tally)| !tally.dropped.is_empty()) {
            all.push(format!("{name}  {unit} {direction}: {}", reasons(&tally.dropped)));
        }
        if !node.refused.is_empty() {
            all.push(format!("{name}  {}", refusals(&node.refused)));
        }
        if node.kernel_drops > 0 {
            all.push(format!("{name}  dropped by the kernel: {}", node.kernel_drops));
        }
    }
    let options = super::wrapping(WIDTH).subsequent_indent("       ");
    all.iter().map(|line| textwrap::fill(line, &options) + "\n").collect()
}

fn quantile(of: &Distribution, quantile: fn(&Distribution) -> f64) -> String {
    if of.count > 0 { time(quantile(of)) } else { "-".to_owned() }
}

/// Latency of both directions with their names.
fn directions(node: &NodeReport) -> [(&'static str, &eddy_node::report::StayReport); 2] {
    [("fwd", &node.latency_us.forward), ("back", &node.latency_us.backward)]
}

fn mixing(nodes: &[NodeReport]) -> String {
    let mut rows = compact(&["node", "dir", "count", "mixing p50", "p90", "p99", "max"]);
    for node in nodes {
        for (direction, stay) in directions(node) {
            let Some(pool) = &stay.pool else { continue };
            rows.add_row([
                node.name(),
                direction.to_owned(),
                pool.count.to_string(),
                quantile(pool, |all| all.p50),
                quantile(pool, |all| all.p90),
                quantile(pool, |all| all.p99),
                quantile(pool, |all| all.max),
            ]);
        }
    }
    align_right(&mut rows, 2..7);
    if rows.is_empty() { String::new() } else { lines(&rows) }
}

fn latency(nodes: &[NodeReport]) -> String {
    let mut rows = compact(&["node", "dir", "count", "node p50", "p99", "max", "total p50", "p99", "max"]);
    for node in nodes {
        for (direction, stay) in directions(node) {
            rows.add_row([
                node.name(),
                direction.to_owned(),
                stay.total.count.to_string(),
                quantile(&stay.node, |all| all.p50),
                quantile(&stay.node, |all| all.p99),
                quantile(&stay.node, |all| all.max),
                quantile(&stay.total, |all| all.p50),
                quantile(&stay.total, |all| all.p99),
                quantile(&stay.total, |all| all.max),
            ]);
        }
    }
    align_right(&mut rows, 2..9);
    lines(&rows)
}

/// Revision and end of the descriptors that each node has.
fn descriptors(nodes: &[NodeReport]) -> String {
    let mut rows = compact(&["node", "interval", "bundle", "hop", "revision", "valid until", "at neighbours"]);
    for node in nodes {
        let hops = &node.trust.hops;
        for (position, hop) in (1..).zip(hops) {
            rows.add_row([
                node.name(),
                node.trust.interval.to_string(),
                node.trust.bundle.map_or("-".to_owned(), |bundle| bundle.to_string()),
                node_name_at(position, hops.len()),
                hop.revision.to_string(),
                utc(hop.not_after),
                // Neighbours do not report to an entry.
                match (node.role, hop.neighbours_have) {
                    (NodeRole::Entry, _) => "-",
                    (_, true) => "yes",
                    (_, false) => "no",
                }
                .to_owned(),
            ]);
        }
    }
    if rows.is_empty() { String::new() } else { lines(&rows) }
}

/// The records of the newest bundle that each node has, and who has signed it.
fn bundles(nodes: &[NodeReport]) -> String {
    let mut rows = compact(&["node", "interval", "hop", "revision", "draw", "record", "signed"]);
    let mut hashes = String::new();
    for node in nodes {
        let Some(bundle) = &node.trust.newest else { continue };
        hashes += &format!("{}: epoch {}, hash {}\n", node.name(), bundle.epoch, groups(&bundle.hash, 8));
        for (position, record) in (1..).zip(&bundle.records) {
            rows.add_row([
                node.name(),
                bundle.interval.to_string(),
                node_name_at(position, bundle.records.len()),
                record.revision.to_string(),
                record.draw.to_string(),
                groups(&record.hash, 4),
                if record.has_signed { "yes" } else { "no" }.to_owned(),
            ]);
        }
    }
    if rows.is_empty() { String::new() } else { lines(&rows) + &hashes }
}

/// The first groups of four digits of a hash in hex, as in a fingerprint.
fn groups(hex: &str, count: usize) -> String {
    let group = |group: &[u8]| String::from_utf8_lossy(group).into_owned();
    hex.as_bytes().chunks(4).take(count).map(group).collect::<Vec<_>>().join(" ")
}

fn releases(nodes: &[NodeReport]) -> String {
    let mut rows = compact(&["node", "releases", "mean", "max", "cells/dgram in", "out", "kernel drops"]);
    for node in nodes {
        let cells = |count: fn(&TallyReport) -> u64| {
            let PairReport { forward, backward } = &node.ledger.cells;
            count(forward) + count(backward)
        };
        rows.add_row([
            node.name(),
            node.releases.to_string(),
            format!("{:.1}", node.mean_release),
            node.largest_release.to_string(),
            ratio(cells(|tally| tally.received), node.messages.received),
            ratio(cells(|tally| tally.sent), node.messages.sent),
            node.kernel_drops.to_string(),
        ]);
    }
    align_right(&mut rows, 1..7);
    lines(&rows)
}

/// The anonymity meter of each mix and direction.
fn meters(nodes: &[NodeReport]) -> String {
    let mut rows = compact(&[
        "node",
        "dir",
        "class",
        "releases",
        "cells",
        "channels",
        "effective",
        "least",
        "bits",
        "min-bits",
        "networks",
    ]);
    for node in nodes {
        let Some(meter) = &node.meter else { continue };
        for (direction, company) in meter.directions() {
            rows.add_row([
                node.name(),
                short(direction),
                meter.class.clone(),
                company.releases.to_string(),
                format!("{:.1}", company.cells),
                format!("{:.1}", company.channels),
                format!("{:.1}{}", company.effective, if company.below_floor { " LOW" } else { "" }),
                format!("{:.1}", company.smallest_effective),
                format!("{:.2}", company.entropy_bits),
                format!("{:.2}", company.min_entropy_bits),
                company.prefixes.map_or_else(|| "-".to_owned(), |mean| format!("{mean:.1}")),
            ]);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    align_right(&mut rows, 3..11);
    lines(&rows)
        + "effective: 2^(mean entropy of the channels); least: in one release. This counts\n\
           channels, not flows, and no attack that compares both ends: docs/ANONYMITY.md\n"
}

fn state(nodes: &[NodeReport]) -> String {
    let mut rows =
        compact(&["node", "links", "channels", "flows", "handsh.", "setups", "uptime", "cpu", "io", "engine"]);
    for node in nodes {
        rows.add_row([
            node.name(),
            node.links.to_string(),
            node.channels.to_string(),
            node.flows.to_string(),
            node.handshakes.done.to_string(),
            node.handshakes.setups.to_string(),
            span(node.uptime_s),
            format!("{:.1} s", node.cpu_s),
            node.io.clone(),
            node.engine.clone(),
        ]);
    }
    align_right(&mut rows, 1..8);
    lines(&rows)
}

fn ratio(cells: u64, datagrams: u64) -> String {
    if datagrams == 0 { "-".to_owned() } else { format!("{:.1}", cells as f64 / datagrams as f64) }
}

#[cfg(test)]
pub(super) mod tests {
    use dataplane::latency::Profile;
    use dataplane::ledger::{DropReason, Ledger};
    use eddy_node::report::{BundleReport, CompanyReport, HopReport, MeterReport, RecordReport};

    use super::*;

    /// A mix that was busy for long: counters of ten digits.
    pub fn busy() -> NodeReport {
        let mut ledger = Ledger::default();
        for tally in [&mut ledger.cells.forward, &mut ledger.cells.backward] {
            (tally.received, tally.sent, tally.consumed) = (8_123_456_789, 8_000_000_000, 123_445_679);
            (tally.injected, tally.held) = (1_000, 2_110);
            tally.drop_many(DropReason::Replay, 10_000);
        }
        let mut profile = Profile::default();
        profile.releases.add(3, 1);
        profile.latency.forward.add(4_200_000, 35_000, 2);
        profile.latency.forward.add(100_000, 1_234_567, 1);
        let mut node = NodeReport::new(NodeRole::Mix, 2, &ledger, &profile);
        let company = CompanyReport {
            releases: 1_234_567,
            cells: 1_234.5,
            channels: 1_000.5,
            entropy_bits: 9.25,
            effective: 608.9,
            smallest_effective: 1.0,
            min_entropy_bits: 6.25,
            prefixes: Some(512.5),
            fewest_prefixes: Some(1),
            below_floor: true,
        };
        node.meter =
            Some(MeterReport { class: "L".to_owned(), floor: 1_000, forward: company.clone(), backward: company });
        (node.uptime_s, node.cpu_s, node.engine) = (7_980.0, 812.5, "wide512".to_owned());
        (node.links, node.channels, node.kernel_drops) = (2, 64, 7);
        node.refused = [("stale-timestamp".to_owned(), 3)].into();
        node
    }

    #[test]
    fn tables_fit_80_columns() {
        let entry = NodeReport::new(NodeRole::Entry, 0, &Ledger::default(), &Profile::default());
        let text = render(&[entry, busy()]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        for part in ["Cells", "Datagrams", "mix2  cells forward: replay 10000", "stale-timestamp 3", "kernel: 7"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn entry_does_not_know_what_neighbours_have() {
        let mut entry = NodeReport::new(NodeRole::Entry, 0, &Ledger::default(), &Profile::default());
        entry.trust.hops = vec![HopReport { revision: 7, not_after: 1_800_000_000, ..HopReport::default() }; 2];
        let text = descriptors(&[entry]);
        assert!(text.lines().skip(2).all(|line| line.trim_end().ends_with('-')), "{text}");
    }

    #[test]
    fn bundle_names_its_records_and_who_has_signed() {
        let mut mix = busy();
        let record = RecordReport {
            revision: 1_795_909_822,
            draw: 1_795_909_830,
            hash: "3fa2b1c4".repeat(8),
            ..Default::default()
        };
        let signed = RecordReport { has_signed: true, ..record.clone() };
        let records = vec![signed, record];
        let hash = "00070e15".repeat(8);
        mix.trust.newest = Some(BundleReport { interval: 179_283_746, epoch: 498_010, hash, records });
        let text = render(&[mix]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let last: Vec<&str> = text.trim_end().lines().rev().take(3).collect();
        assert_eq!(last[0], "mix2: epoch 498010, hash 0007 0e15 0007 0e15 0007 0e15 0007 0e15");
        for (line, parts) in [(last[1], ["exit", "no"]), (last[2], ["mix1", "yes"])] {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert!(parts.iter().all(|part| words.contains(part)) && line.contains("3fa2 b1c4 3fa2 b1c4"), "{line}");
        }
    }

    #[test]
    fn mixing_and_node_latency_are_apart() {
        let text = render(&[busy()]);
        // The second is reported as the end of its bucket.
        for cell in ["4.2 ms", "37 us", "1.2 ms", "mixing p50", "node p50"] {
            assert!(text.contains(cell), "{cell}: {text}");
        }
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
