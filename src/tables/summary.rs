//! One node on one screen of 80 x 24: what `eddy status` prints, and a node when it ends.

use super::{align_right, lines, reasons, refusals, span, table, time};
use eddy_node::config::NodeRole;
use eddy_node::report::{Distribution, NodeReport, StayReport, TallyReport};

/// Columns of a terminal that everybody has.
pub const WIDTH: usize = 80;
/// Lines of drop reasons shown; the rest is in the tables of `--verbose`.
const DROPS_SHOWN: usize = 5;

/// The summary. `chain` names the node's chain, where it is known.
pub fn render(node: &NodeReport, chain: Option<&str>) -> String {
    let of_chain = chain.map_or_else(String::new, |id| format!(" of chain {id}"));
    let cpu = if node.uptime_s > 0.0 { 100.0 * node.cpu_s / node.uptime_s } else { 0.0 };
    let role = match node.role {
        NodeRole::Mix => String::new(),
        NodeRole::Entry | NodeRole::Exit => format!("   client sockets {}", node.sockets),
    };
    format!(
        "{}{of_chain}, up {}\n\
         links {}   channels {}   flows {}{role}\n\
         engine {}   io {}   cpu {cpu:.1} %\n\n\
         {}{}{}\n",
        node.name(),
        span(node.uptime_s),
        node.links,
        node.channels,
        node.flows,
        node.engine,
        node.io,
        traffic(node),
        drops(node),
        ledger(node),
    )
}

/// Counts, rates and latency by direction.
fn traffic(node: &NodeReport) -> String {
    let mut rows = table(&["", "forward", "backward"]);
    let units = [("cells", Some(&node.ledger.cells)), ("datagrams", node.ledger.datagrams.as_ref())];
    let units = units.into_iter().filter_map(|(unit, pair)| Some((unit, pair?)));
    for (unit, pair) in units {
        let mut row = |what: &str, of: &dyn Fn(&TallyReport) -> String| {
            rows.add_row([format!("{unit} {what}"), of(&pair.forward), of(&pair.backward)]);
        };
        row("received", &|tally| tally.received.to_string());
        row("sent", &|tally| tally.sent.to_string());
        row("sent per second", &|tally| rate(tally.sent, node.uptime_s));
    }
    let mut row = |what: &str, of: &dyn Fn(&StayReport) -> Option<String>| {
        let values = [of(&node.latency_us.forward), of(&node.latency_us.backward)];
        if let [Some(forward), Some(backward)] = values {
            rows.add_row([what.to_owned(), forward, backward]);
        }
    };
    row("mixing p50 / p99", &|stay| stay.pool.as_ref().map(p50_p99));
    row("node p50 / p99", &|stay| Some(p50_p99(&stay.node)));
    align_right(&mut rows, 1..3);
    lines(&rows)
}

/// A mean since the start.
fn rate(count: u64, seconds: f64) -> String {
    if seconds > 0.0 { format!("{:.1}", count as f64 / seconds) } else { "-".to_owned() }
}

fn p50_p99(of: &Distribution) -> String {
    if of.count > 0 { format!("{} / {}", time(of.p50), time(of.p99)) } else { "-".to_owned() }
}

/// Drops by reason, only if there are any.
fn drops(node: &NodeReport) -> String {
    let mut all: Vec<String> = Vec::new();
    for (unit, direction, tally) in node.ledger.tallies() {
        if !tally.dropped.is_empty() {
            all.push(format!("dropped {unit} {direction}: {}", reasons(&tally.dropped)));
        }
        if tally.send_errors > 0 {
            all.push(format!("send errors, {unit} {direction}: {}", tally.send_errors));
        }
    }
    if node.kernel_drops > 0 {
        all.push(format!("dropped by the kernel: {} (receive buffer full)", node.kernel_drops));
    }
    if !node.refused.is_empty() {
        all.push(refusals(&node.refused));
    }
    if all.is_empty() {
        return String::new();
    }

    let options = super::wrapping(WIDTH - 1).subsequent_indent("  ");
    let mut shown: Vec<String> =
        all.iter().flat_map(|line| textwrap::wrap(line, &options)).map(|line| line.into_owned()).collect();
    if shown.len() > DROPS_SHOWN {
        shown.truncate(DROPS_SHOWN - 1);
        shown.push("  more with --verbose".to_owned());
    }
    format!("\n{}\n", shown.join("\n"))
}

fn ledger(node: &NodeReport) -> &'static str {
    if node.ledger.closed() { "\nledger closed: yes" } else { "\nledger closed: NO (--verbose shows which)" }
}

#[cfg(test)]
mod tests {
    use dataplane::latency::Profile;
    use dataplane::ledger::{DropReason, Ledger};

    use super::super::nodes::tests::busy;
    use super::*;

    fn fits(text: &str) {
        assert!(text.lines().count() <= 23, "one line is the prompt's: {text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn summary_of_a_busy_mix_fits_80x24() {
        let text = render(&busy(), Some("3fa2b1c4"));
        fits(&text);
        for part in ["mix2 of chain 3fa2b1c4, up 2 h 13 min", "mixing p50 / p99", "replay 10000", "ledger closed: yes"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn summary_of_an_exit_that_drops_for_every_reason_fits_80x24() {
        let mut ledger = Ledger::default();
        for pair in [&mut ledger.cells, &mut ledger.datagrams] {
            for tally in [&mut pair.forward, &mut pair.backward] {
                for reason in DropReason::ALL {
                    tally.drop_many(*reason, 9_999_999);
                }
            }
        }
        let text = render(&NodeReport::new(NodeRole::Exit, 4, &ledger, &Profile::default()), Some("3fa2b1c4"));
        fits(&text);
        assert!(text.contains("more with --verbose") && text.contains("ledger closed: NO"), "{text}");
    }

    #[test]
    fn summary_without_drops_has_no_line_about_them() {
        let text = render(&NodeReport::new(NodeRole::Entry, 0, &Ledger::default(), &Profile::default()), None);
        fits(&text);
        assert!(text.contains("entry, up 0.0 s") && !text.contains("drop"), "{text}");
    }
}
