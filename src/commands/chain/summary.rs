//! The result of a demonstration: a table of messages and a verdict for people, one JSON object for
//! programs.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use serde::Serialize;

use super::traffic::Outcome;
use crate::tables::{self, align_right, lines, table};
use eddy_node::report::{NodeReport, PairReport};

/// Runs of more messages list receivers instead.
const LISTED: usize = 100;
/// Columns of the verdict.
const WIDTH: usize = 80;

/// Everything that happened.
pub struct Summary<'a> {
    /// From the first process to the last channel.
    pub setup: Duration,
    pub outcome: &'a Outcome,
    /// The nodes' reports when the chain was up.
    pub at_start: &'a [Option<NodeReport>],
    /// Programs could use it until it was interrupted.
    pub stayed: bool,
    /// The nodes' last reports.
    pub nodes: &'a [NodeReport],
}

#[derive(Serialize)]
struct Json<'a> {
    sent: u64,
    delivered: u64,
    answered: u64,
    damaged: u64,
    setup_ms: u64,
    sending_ms: u64,
    rtt_us: Rtt,
    nodes: &'a [NodeReport],
}

/// Round trips in microseconds; null without answers.
#[derive(Serialize)]
struct Rtt {
    p50: Option<u64>,
    p99: Option<u64>,
    max: Option<u64>,
}

impl Summary<'_> {
    fn rtt(&self) -> Rtt {
        let rtt = &self.outcome.rtt_us;
        let some = |value: u64| (!rtt.is_empty()).then_some(value);
        Rtt { p50: some(rtt.value_at_quantile(0.5)), p99: some(rtt.value_at_quantile(0.99)), max: some(rtt.max()) }
    }

    /// One line.
    ///
    /// # Errors
    /// Never in practice.
    pub fn json(&self) -> anyhow::Result<String> {
        let Outcome { sent, delivered, answered, damaged, sending, .. } = *self.outcome;
        let (setup_ms, sending_ms) = (self.setup.as_millis() as u64, sending.as_millis() as u64);
        let rtt_us = self.rtt();
        let json = Json { sent, delivered, answered, damaged, setup_ms, sending_ms, rtt_us, nodes: self.nodes };
        Ok(serde_json::to_string(&json)? + "\n")
    }

    /// The messages, or what programs sent through a chain that stayed, and the verdict; between them, if `verbose`,
    /// every counter of every node.
    pub fn people(&self, verbose: bool) -> String {
        let messages = if self.stayed {
            self.carried()
        } else if self.outcome.messages.len() > LISTED {
            self.receivers()
        } else {
            self.messages()
        };
        let nodes = if verbose { tables::nodes::render(&self.without_setup()) } else { String::new() };
        let hint = if verbose { "" } else { "Per-node tables: --verbose\n" };
        let (test, drops, ledgers) = (self.test_lines(), self.drops(), self.ledgers());
        // What was dropped belongs to the programs' table, not to the test.
        let verdict = if self.stayed { format!("{test}{ledgers}") } else { format!("{test}{drops}{ledgers}") };
        let below = if self.stayed { drops } else { String::new() };
        format!("{messages}{below}\n{nodes}{verdict}{hint}")
    }

    /// Counts and times of the test messages.
    fn test_lines(&self) -> String {
        let Outcome { sent, delivered, answered, damaged, sending, .. } = self.outcome;
        let mixes = self.nodes.len().saturating_sub(2);
        let damaged = if *damaged > 0 { format!(", {damaged} damaged or twice") } else { String::new() };
        let what = if self.stayed { "Test at the start: " } else { "" };
        let counts = format!(
            "{what}{sent} sent, {delivered} delivered, {answered} answered{damaged} in {:.1} s over {mixes} mix{}",
            sending.as_secs_f64(),
            if mixes == 1 { "" } else { "es" }
        );

        let Rtt { p50, p99, max } = self.rtt();
        let ms = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), |us| format!("{:.1} ms", us as f64 / 1e3));
        let times = format!(
            "Round trip p50 {}, p99 {}, max {}; chain set up in {} ms",
            ms(p50),
            ms(p99),
            ms(max),
            self.setup.as_millis()
        );

        [counts, times].map(|line| wrapped(&line)).concat()
    }

    fn ledgers(&self) -> String {
        let open = self.open();
        let line = match open.as_slice() {
            [] => format!("Ledgers of all {} nodes close: every packet is accounted for", self.nodes.len()),
            open => format!("Ledgers NOT closed: {}", open.join(", ")),
        };
        wrapped(&line)
    }

    /// The last reports without refusals that came before the chain was up: a node that starts later than
    /// its neighbours is normal.
    fn without_setup(&self) -> Vec<NodeReport> {
        let mut nodes = self.nodes.to_vec();
        for (node, early) in nodes.iter_mut().zip(self.at_start) {
            if let Some(early) = early {
                subtract(&mut node.refused, &early.refused);
            }
        }
        nodes
    }

    /// Drops since the chain was up, by node and reason: a line for each node, wrapped if it is long.
    fn drops(&self) -> String {
        let mut all = String::new();
        for (node, early) in self.nodes.iter().zip(self.at_start) {
            let mut parts = Vec::new();
            let mut early = early.iter().flat_map(|early| early.ledger.tallies());
            for (unit, _, tally) in node.ledger.tallies() {
                let mut dropped = tally.dropped.clone();
                if let Some((.., early)) = early.next() {
                    subtract(&mut dropped, &early.dropped);
                }
                if !dropped.is_empty() {
                    parts.push(format!("{unit}: {}", tables::reasons(&dropped)));
                }
            }
            if node.kernel_drops > 0 {
                parts.push(format!("kernel: {}", node.kernel_drops));
            }
            if !parts.is_empty() {
                let title = if all.is_empty() { "Dropped: " } else { "         " };
                let options = tables::wrapping(WIDTH).initial_indent(title).subsequent_indent("           ");
                all += &(textwrap::fill(&format!("{} {}", node.name(), parts.join("; ")), options) + "\n");
            }
        }
        if all.is_empty() { "Dropped: nothing\n".to_owned() } else { all }
    }

    /// Nodes whose ledger does not close.
    fn open(&self) -> Vec<String> {
        self.nodes.iter().filter(|node| !node.ledger.closed()).map(NodeReport::name).collect()
    }

    /// Datagrams of programs at both ends of the chain: all except the test messages.
    fn carried(&self) -> String {
        let count = |node: Option<&NodeReport>, of: fn(&PairReport) -> u64| {
            node.and_then(|node| node.ledger.datagrams.as_ref()).map_or(0, of)
        };
        let without = |test: u64, node: usize, of| {
            let early = self.at_start.get(node).and_then(Option::as_ref);
            count(self.nodes.get(node), of).saturating_sub(count(early, of) + test)
        };
        let Outcome { sent, delivered, answered, .. } = *self.outcome;
        let exit = self.nodes.len().saturating_sub(1);
        let mut rows = table(&["datagrams of your programs", "entered the chain", "left it"]);
        let [there, back] = [
            [without(sent, 0, |pair| pair.forward.received), without(delivered, exit, |pair| pair.forward.sent)],
            [without(delivered, exit, |pair| pair.backward.received), without(answered, 0, |pair| pair.backward.sent)],
        ];
        for (direction, [entered, left]) in [("to destinations", there), ("answers", back)] {
            rows.add_row([direction.to_owned(), entered.to_string(), left.to_string()]);
        }
        align_right(&mut rows, 1..3);
        lines(&rows)
    }

    fn messages(&self) -> String {
        let mut rows = table(&["message", "receiver", "round trip"]);
        for (i, message) in self.outcome.messages.iter().enumerate() {
            let took = message.round_trip.map_or_else(|| "no answer".to_owned(), milliseconds);
            rows.add_row([(i + 1).to_string(), (message.receiver + 1).to_string(), took]);
        }
        align_right(&mut rows, 0..3);
        lines(&rows)
    }

    fn receivers(&self) -> String {
        let count = self.outcome.messages.iter().map(|message| message.receiver + 1).max().unwrap_or(0);
        let mut receivers = vec![Receiver::default(); count];
        for message in &self.outcome.messages {
            receivers[message.receiver].add(message.round_trip);
        }
        let mut rows = table(&["receiver", "sent", "answered", "mean round trip", "longest"]);
        for (i, Receiver { sent, answered, sum, longest }) in receivers.into_iter().enumerate() {
            let mean = Duration::from_secs_f64(sum.as_secs_f64() / answered.max(1) as f64);
            rows.add_row([
                (i + 1).to_string(),
                sent.to_string(),
                answered.to_string(),
                milliseconds(mean),
                milliseconds(longest),
            ]);
        }
        align_right(&mut rows, 0..5);
        lines(&rows)
    }

    /// Checks that no message is missing.
    ///
    /// # Errors
    /// Messages were lost or damaged, or a ledger does not close.
    pub fn verdict(&self) -> anyhow::Result<()> {
        let Outcome { sent, delivered, answered, damaged, .. } = *self.outcome;
        let open = self.open();
        if !open.is_empty() {
            bail!("the ledger of {} does not close: packets are unaccounted for", open.join(", "));
        }
        if delivered != sent || answered != sent || damaged > 0 {
            bail!(
                "{sent} sent, {delivered} delivered, {answered} answered, {damaged} damaged or duplicated: \
                 see `Dropped` above for the reason, and --verbose for every node's ledger"
            );
        }
        Ok(())
    }
}

/// The messages to one receiver.
#[derive(Clone, Default)]
struct Receiver {
    sent: u64,
    answered: u64,
    sum: Duration,
    longest: Duration,
}

impl Receiver {
    fn add(&mut self, round_trip: Option<Duration>) {
        self.sent += 1;
        if let Some(took) = round_trip {
            self.answered += 1;
            self.sum += took;
            self.longest = took.max(self.longest);
        }
    }
}

/// Takes earlier counts off later ones.
fn subtract(counts: &mut BTreeMap<String, u64>, early: &BTreeMap<String, u64>) {
    for (reason, count) in early {
        if let Some(total) = counts.get_mut(reason) {
            *total = total.saturating_sub(*count);
        }
    }
    counts.retain(|_, count| *count > 0);
}

/// A line, continued in indented ones if it is long.
fn wrapped(line: &str) -> String {
    textwrap::fill(line, tables::wrapping(WIDTH).subsequent_indent("  ")) + "\n"
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use dataplane::latency::Profile;
    use dataplane::ledger::{DropReason, Ledger};
    use eddy_node::config::NodeRole;

    use super::*;

    fn nodes() -> Vec<NodeReport> {
        let node = |(index, role): (usize, NodeRole)| {
            let mut ledger = Ledger::default();
            if role != NodeRole::Mix {
                for reason in DropReason::ALL {
                    ledger.datagrams.forward.drop_many(*reason, 1_000);
                }
            }
            NodeReport::new(role, index, &ledger, &Profile::default())
        };
        [NodeRole::Entry, NodeRole::Mix, NodeRole::Exit].into_iter().enumerate().map(node).collect()
    }

    fn nothing() -> Outcome {
        let rtt_us = hdrhistogram::Histogram::new(3).unwrap();
        Outcome {
            sent: 0,
            delivered: 0,
            answered: 0,
            damaged: 0,
            sending: Duration::ZERO,
            messages: Vec::new(),
            rtt_us,
        }
    }

    #[test]
    fn drops_have_a_line_per_node_and_are_not_cut() {
        let (nodes, at_start, outcome) = (nodes(), vec![None, None, None], nothing());
        let setup = Duration::from_millis(5);
        let summary =
            |stayed| Summary { setup, outcome: &outcome, at_start: &at_start, stayed, nodes: &nodes }.people(false);
        let text = summary(false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(
            text.contains("\nDropped: entry datagrams: ") && text.contains("\n         exit datagrams: "),
            "{text}"
        );
        for reason in DropReason::ALL {
            assert!(text.contains(reason.name()), "{text}");
        }

        let text = summary(true);
        let lines: Vec<&str> = text.lines().collect();
        let at = |start: &str| lines.iter().position(|line| line.starts_with(start)).unwrap();
        assert_eq!(at("Dropped: "), at("answers") + 1, "under the table: {text}");
        assert!(at("Test at the start: ") > at("Dropped: "), "{text}");
        assert_eq!(lines[at("Test at the start: ") - 1], "", "{text}");
    }
}
