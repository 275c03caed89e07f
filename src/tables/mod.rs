//! Tables and figures for people: one style for every table of the command and of `eddy-bench`.
//!
//! [`nodes`] has every counter of a node; the short form of `eddy status` is [`summary`]'s.

pub mod nodes;
mod paced;
pub mod path;
pub mod summary;

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, LineStyle, Table, TableStyle};
use eddy_node::report::NodeReport;

/// A rule below the header, and nothing else: narrow, and easy to cut with other tools.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// What `render` prints of a node: if it serves several classes, of each of them, below its name and in the chain's
/// order.
pub fn by_class(node: &NodeReport, render: impl Fn(&NodeReport) -> String) -> String {
    if node.classes.is_empty() {
        return render(node);
    }
    let mut classes: Vec<_> = node.classes.iter().collect();
    classes.sort_by_key(|(_, class)| class.class_number);
    classes.into_iter().map(|(name, class)| format!("class {name}\n{}", render(class))).collect()
}

/// How text is wrapped. Words with hyphens stay whole, so that values and names of options can be copied.
pub fn wrapping<'a>(columns: usize) -> textwrap::Options<'a> {
    textwrap::Options::new(columns).word_splitter(textwrap::WordSplitter::NoHyphenation)
}

/// An empty table in the project's style.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_header(header.iter().copied());
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((i.min(1) as u16, 0));
    }
    table
}

/// Aligns a range of columns to the right.
pub fn align_right(table: &mut Table, columns: std::ops::Range<usize>) {
    for index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// The lines of a table, without spaces at their ends.
pub fn lines(table: &Table) -> String {
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// A time in the unit that reads best.
fn time(us: f64) -> String {
    match us {
        us if us < 999.5 => format!("{us:.0} us"),
        us if us < 999_500.0 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

/// A span of time in its two largest units: `2 h 13 min`.
fn span(seconds: f64) -> String {
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds:.1} s"),
        (0, 0, _) => format!("{minutes} min {} s", whole % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (_, _, _) => format!("{days} d {hours} h"),
    }
}

/// What control refused, with the meaning of what a wrong file causes.
fn refusals(counts: &BTreeMap<String, u64>) -> String {
    let stale = if counts.contains_key("bad-mac1") {
        " (bad-mac1: the sender's chain.toml has other keys than this node, or it is a scan)"
    } else {
        ""
    };
    format!("refused by control: {}{stale}", reasons(counts))
}

/// `replay 2, forged 1`: the reasons with their counts, the most frequent first.
pub fn reasons(counts: &BTreeMap<String, u64>) -> String {
    let mut all: Vec<_> = counts.iter().collect();
    all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let all: Vec<String> = all.into_iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use dataplane::latency::Profile;
    use dataplane::ledger::Ledger;
    use eddy_node::config::NodeRole;

    use super::*;

    #[test]
    fn several_classes_are_printed_in_the_order_of_the_chain() {
        let mut node = NodeReport::new(NodeRole::Mix, 1, &Ledger::default(), &Profile::default());
        let links = |node: &NodeReport| format!("links {}\n", node.links);
        assert_eq!(by_class(&node, links), "links 0\n");
        let second = NodeReport { links: 3, class_number: 3, ..node.clone() };
        node.classes = BTreeMap::from([("S".to_owned(), node.clone()), ("L".to_owned(), second)]);
        assert_eq!(by_class(&node, links), "class S\nlinks 0\nclass L\nlinks 3\n");
    }

    #[test]
    fn times_are_in_the_unit_that_reads_best() {
        assert_eq!([0.4, 999.4, 999.6, 999_499.0, 5e6].map(time), ["0 us", "999 us", "1.0 ms", "999.5 ms", "5.0 s"]);
        let spans = [0.25, 61.0, 7980.0, 180_000.0].map(span);
        assert_eq!(spans, ["0.2 s", "1 min 1 s", "2 h 13 min", "2 d 2 h"]);
    }

    #[test]
    fn handshakes_for_other_keys_are_explained() {
        let line = |reason: &str| refusals(&BTreeMap::from([(reason.to_owned(), 3)]));
        assert!(line("bad-mac1").contains("bad-mac1 3 (bad-mac1: the sender's chain.toml"));
        assert_eq!(line("cookie"), "refused by control: cookie 3");
    }

    #[test]
    fn most_frequent_reason_is_first() {
        let counts = BTreeMap::from([("forged".to_owned(), 1), ("replay".to_owned(), 20)]);
        assert_eq!(reasons(&counts), "replay 20, forged 1");
    }
}
