//! What the demonstration has to say: tables for people, one JSON object for programs, a verdict.

use std::time::Duration;

use anyhow::bail;
use serde::Serialize;

use super::traffic::Outcome;
use crate::tables;
use eddy_node::report::NodeReport;

/// With more messages than this, receivers are listed instead.
const LISTED: usize = 100;

/// Everything that happened.
pub struct Summary<'a> {
    /// From the first process to the last channel.
    pub setup: Duration,
    /// What became of the messages.
    pub outcome: &'a Outcome,
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

    /// Tables.
    pub fn people(&self) -> String {
        let Outcome { sent, delivered, answered, sending, .. } = self.outcome;
        let Rtt { p50, p99, max } = self.rtt();
        let ms = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), |us| format!("{:.1}", us as f64 / 1e3));
        format!(
            "{}\n{}\n{sent} sent in {:.1} s, {delivered} delivered, {answered} answered; \
             round trip p50 {} ms, p99 {} ms, max {} ms; the chain was up after {} ms\n",
            if self.outcome.messages.len() > LISTED { self.receivers() } else { self.messages() },
            tables::render(self.nodes),
            sending.as_secs_f64(),
            ms(p50),
            ms(p99),
            ms(max),
            self.setup.as_millis(),
        )
    }

    fn messages(&self) -> String {
        let mut table = tables::table(&["message", "receiver", "round trip"]);
        for (i, message) in self.outcome.messages.iter().enumerate() {
            let took = message.round_trip.map_or_else(|| "no answer".to_owned(), milliseconds);
            table.add_row([(i + 1).to_string(), (message.receiver + 1).to_string(), took]);
        }
        tables::align_right(&mut table, 0..3);
        format!("{table}\n")
    }

    fn receivers(&self) -> String {
        let mut table = tables::table(&["receiver", "sent", "answered", "mean round trip", "longest"]);
        let count = self.outcome.messages.iter().map(|message| message.receiver + 1).max().unwrap_or(0);
        let mut rows = vec![(0u64, 0u64, Duration::ZERO, Duration::ZERO); count];
        for message in &self.outcome.messages {
            let (sent, answered, sum, longest) = &mut rows[message.receiver];
            *sent += 1;
            if let Some(took) = message.round_trip {
                *answered += 1;
                *sum += took;
                *longest = took.max(*longest);
            }
        }
        for (i, (sent, answered, sum, longest)) in rows.into_iter().enumerate() {
            let mean = Duration::from_secs_f64(sum.as_secs_f64() / answered.max(1) as f64);
            let row = [
                (i + 1).to_string(),
                sent.to_string(),
                answered.to_string(),
                milliseconds(mean),
                milliseconds(longest),
            ];
            table.add_row(row);
        }
        tables::align_right(&mut table, 0..5);
        format!("{table}\n")
    }

    /// Whether nothing is missing.
    ///
    /// # Errors
    /// Something is; tells what.
    pub fn verdict(&self) -> anyhow::Result<()> {
        let Outcome { sent, delivered, answered, damaged, .. } = *self.outcome;
        let open: Vec<String> = self.nodes.iter().filter(|node| !node.ledger.closed()).map(NodeReport::name).collect();
        if !open.is_empty() {
            bail!("the ledger of {} does not close: packets went unaccounted for", open.join(", "));
        }
        if delivered != sent || answered != sent || damaged > 0 {
            bail!(
                "{sent} sent, {delivered} delivered, {answered} answered, {damaged} damaged or twice: \
                 the ledgers above name what was dropped, and where"
            );
        }
        Ok(())
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
