//! The result of the calls: one table that compares the classes, and a verdict; or one JSON object.

use std::time::Duration;

use anyhow::bail;
use eddy_node::config::ClassName;
use eddy_node::report::{NodeReport, RoundsReport};
use serde::Serialize;

use super::Rounds;
use super::attacker::Found;
use super::voice::Heard;
use crate::mos;
use crate::tables::{self, align_right, lines, table};

/// Columns of the text below the table.
const WIDTH: usize = 80;
/// On one host, more loss than this shows that it is too busy.
const LOSS_SHOWN: f64 = 0.01;
/// Seconds of the calls without a chain.
pub const DIRECT_S: usize = 3;
/// A call of which more is lost does not work.
const LOSS_MAX: f64 = 0.5;

/// The calls in one class, or without a chain (`direct`). Times are those of all datagrams of all users, one way.
#[derive(Serialize)]
pub struct OfClass {
    class: String,
    sent: u64,
    received: u64,
    delay_us: Delay,
    /// Mean over the streams, RFC 3550.
    jitter_us: u64,
    mos: Mos,
    /// Of the stream that lost most, 0 to 1.
    largest_loss: f64,
    /// None of calls without a chain.
    cells: Option<Cells>,
    /// Every round of every link between hops had the cells of its channels and slots; false in a free class, and none
    /// of calls without a chain.
    constant: Option<bool>,
    /// Of a paced class, during the calls.
    rounds: Option<RoundsReport>,
    /// None for a single call.
    pub attacker: Option<Found>,
}

/// One-way delays; none if nothing arrived.
#[derive(Serialize)]
struct Delay {
    p50: Option<u64>,
    p99: Option<u64>,
    max: Option<u64>,
}

/// Mean opinion scores over the streams.
#[derive(Serialize)]
struct Mos {
    mean: f64,
    worst: f64,
}

/// Cells of channels in a release of mix1, fewest and most. In a paced class on average in a round from mix1 to the
/// next hop during the calls, rounded down and up.
#[derive(Serialize)]
struct Cells {
    fewest: u64,
    most: u64,
}

impl OfClass {
    /// Of all streams. A class with `rounds` is a paced one; `reports` are those of the hops.
    ///
    /// # Errors
    /// A hop does not answer.
    pub fn new(
        class: &ClassName,
        heard: &[Heard],
        rounds: Option<Rounds>,
        reports: &[Option<NodeReport>],
    ) -> anyhow::Result<OfClass> {
        let of_class = |hop: &NodeReport| hop.classes.get(class.as_str()).cloned();
        let Some(first) = reports.first().and_then(|report| of_class(report.as_ref()?)) else {
            bail!("mix1 does not answer on its status socket: this host is too busy; try --users 4");
        };
        let sizes = first.release_sizes.iter().map(|(size, _)| *size).filter(|size| *size > 0);
        let cells = match rounds {
            Some(Rounds { of_mix1: RoundsReport { released, cells, .. }, .. }) => {
                Cells { fewest: cells / released.max(1), most: cells.div_ceil(released.max(1)) }
            }
            None => Cells { fewest: sizes.min().unwrap_or(0), most: first.largest_release },
        };
        let rounds = rounds.map(|rounds| rounds.of_all);
        let constant = Some(rounds.is_some_and(|rounds| rounds.uneven == 0));
        Ok(OfClass { cells: Some(cells), constant, rounds, ..OfClass::of(class.to_string(), heard) })
    }

    /// Of streams from socket to socket.
    pub fn direct(heard: &[Heard]) -> OfClass {
        OfClass::of("direct".to_owned(), heard)
    }

    fn of(class: String, heard: &[Heard]) -> OfClass {
        let mut delays: Vec<u64> = heard.iter().flat_map(Heard::delays_ns).collect();
        delays.sort_unstable();
        let quantile = |q: f64| delays.get(((delays.len() as f64 * q) as usize).min(delays.len().saturating_sub(1)));
        let us = |ns: Option<&u64>| ns.map(|ns| ns / 1000);
        let scores: Vec<f64> = heard.iter().map(score).collect();
        let mean = |sum: f64| sum / heard.len().max(1) as f64;
        OfClass {
            class,
            sent: heard.iter().map(|heard| heard.sent).sum(),
            received: delays.len() as u64,
            delay_us: Delay { p50: us(quantile(0.5)), p99: us(quantile(0.99)), max: us(delays.last()) },
            jitter_us: (mean(heard.iter().map(Heard::jitter_ns).sum()) / 1e3) as u64,
            mos: Mos { mean: mean(scores.iter().sum()), worst: scores.into_iter().fold(4.5, f64::min) },
            largest_loss: heard.iter().map(loss).fold(0.0, f64::max),
            cells: None,
            constant: None,
            rounds: None,
            attacker: None,
        }
    }

    fn loss(&self) -> f64 {
        1.0 - self.received as f64 / self.sent.max(1) as f64
    }

    fn row(&self) -> [String; 9] {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let ms = |us: Option<u64>| or_none(us.map(|us| format!("{:.1}", us as f64 / 1e3)));
        let cells = |Cells { fewest, most }: &Cells| match fewest == most {
            true => fewest.to_string(),
            false => format!("{fewest} to {most}"),
        };
        [
            self.class.clone(),
            ms(self.delay_us.p50),
            ms(self.delay_us.p99),
            ms(Some(self.jitter_us)),
            format!("{:.2} %", 100.0 * self.loss()),
            format!("{:.2}", self.mos.mean),
            or_none(self.cells.as_ref().map(cells)),
            or_none(self.constant.map(|is_constant| if is_constant { "yes" } else { "no" }.to_owned())),
            or_none(self.attacker.as_ref().map(Found::to_string)),
        ]
    }
}

fn loss(heard: &Heard) -> f64 {
    1.0 - heard.arrivals.len() as f64 / heard.sent.max(1) as f64
}

fn score(heard: &Heard) -> f64 {
    let delays: Vec<f64> = heard.delays_ns().iter().map(|ns| *ns as f64 / 1e6).collect();
    mos::of_best_buffer(&delays, heard.sent.max(1) as usize)
}

/// Everything that happened.
pub struct Summary<'a> {
    /// From the first process to the last user in a call.
    pub setup: Duration,
    /// Of the calls in each class.
    pub seconds: f64,
    /// Name of the codec.
    pub codec: &'static str,
    /// The paced class, the free one, and the same calls without a chain.
    pub results: &'a [OfClass],
    /// Rounds that entries did not send, because they woke too late.
    pub skipped: u64,
    /// The last reports, of the users' entries first.
    pub nodes: &'a [NodeReport],
}

#[derive(Serialize)]
struct Json<'a> {
    setup_ms: u64,
    seconds: f64,
    codec: &'a str,
    results: &'a [OfClass],
    entry_rounds_skipped: u64,
    nodes: &'a [NodeReport],
}

impl Summary<'_> {
    /// One line.
    ///
    /// # Errors
    /// Never in practice.
    pub fn json(&self) -> anyhow::Result<String> {
        let Summary { setup, seconds, codec, results, skipped, nodes } = *self;
        let setup_ms = setup.as_millis() as u64;
        let json = Json { setup_ms, seconds, codec, results, entry_rounds_skipped: skipped, nodes };
        Ok(serde_json::to_string(&json)? + "\n")
    }

    /// The table, what it says, and if `verbose` every counter of mixes and exit.
    pub fn people(&self, verbose: bool) -> String {
        let mut rows = table(&["class", "p50 ms", "p99 ms", "jitter", "loss", "MOS", "cells", "constant", "matched"]);
        for of_class in self.results {
            rows.add_row(of_class.row());
        }
        align_right(&mut rows, 1..7);
        align_right(&mut rows, 8..9);
        let nodes = if verbose { by_class(self.hops()) } else { String::new() };
        let text = self.notes().iter().map(|note| wrapped(note)).collect::<String>();
        format!("{}\n{nodes}{text}", lines(&rows))
    }

    fn hops(&self) -> &[NodeReport] {
        let entries = self.nodes.iter().take_while(|node| node.index == 0).count();
        &self.nodes[entries..]
    }

    fn notes(&self) -> Vec<String> {
        let [paced, free, ..] = self.results else { return Vec::new() };
        let RoundsReport { released, uneven, skipped, .. } = paced.rounds.unwrap_or_default();
        let late = |rounds: u64, who: &str| match rounds {
            0 => String::new(),
            rounds => format!(" {who} woke too late for {rounds}, which costs losses and delay: this host was busy."),
        };
        let too_busy = (paced.loss() > LOSS_SHOWN).then(|| {
            format!(
                "{}: {:.0} % lost, probably because this host was too busy: entries skipped {} rounds, and {} cells came to a \
                 hop after its release. Measure again when it is idle.",
                paced.class,
                100.0 * paced.loss(),
                self.skipped,
                self.late(&paced.class)
            )
        });
        let open = self.open();
        let notes = vec![
            format!(
                "All: {:.0} s of {} from each user, who talks in spurts (ITU-T P.59); delays one way, jitter in ms, MOS by ITU-T \
                 G.107 as for G.711. The users were in calls after {:.0} s.",
                self.seconds,
                self.codec,
                self.setup.as_secs_f64()
            ),
            format!(
                "{}: calls between users, who meet at the exit. {}: this class has no meetings, so the voice of each user \
                 leaves at the exit for a socket of the other one. direct: from socket to socket, for {DIRECT_S} s at most.",
                paced.class, free.class
            ),
            format!(
                "cells: those of channels, loops included, in a round from mix1 to the next hop, as mix1 counts them; class {} \
                 has no rounds: these are the cells in a release of mix1. constant: the hops sent {released} rounds, {uneven} of them with another number of cells than their \
                 timetable has.{}{}",
                free.class,
                late(skipped, "They"),
                late(self.skipped, "The users' entries")
            ),
            attackers(paced, free),
            match open.as_slice() {
                [] => format!("Ledgers of all {} nodes close: every packet is accounted for", self.nodes.len()),
                open => format!("Ledgers NOT closed: {}", open.join(", ")),
            },
        ];
        too_busy.into_iter().chain(notes).collect()
    }

    /// Cells of a class that came to a hop after its release.
    fn late(&self, class: &str) -> u64 {
        let ledgers = self.hops().iter().filter_map(|node| node.classes.get(class)).map(|class| &class.ledger);
        let tallies = ledgers.flat_map(|ledger| [&ledger.cells.forward, &ledger.cells.backward]);
        tallies.filter_map(|tally| tally.dropped.get("late")).sum()
    }

    /// Nodes and classes whose ledger does not close.
    fn open(&self) -> Vec<String> {
        let of_node = |node: &NodeReport| {
            let open = node.classes.iter().filter(|(_, class)| !class.ledger.closed());
            open.map(|(name, _)| format!("{} (class {name})", node.name())).collect::<Vec<_>>()
        };
        self.nodes.iter().flat_map(of_node).collect()
    }

    /// Checks that all calls worked and that links were constant.
    ///
    /// # Errors
    /// A ledger does not close, a round had another number of cells, or more than half of a call was lost.
    pub fn verdict(&self) -> anyhow::Result<()> {
        let open = self.open();
        if !open.is_empty() {
            bail!(
                "the ledger of {} does not close: packets are unaccounted for, which is a bug; please report it with the \
                 output of --verbose",
                open.join(", ")
            );
        }
        for OfClass { class, largest_loss, rounds, .. } in self.results {
            if let Some(RoundsReport { uneven: 1.., released, .. }) = rounds {
                bail!(
                    "the links of class {class} were not constant in all of {released} rounds, which is a bug; please report \
                     it with the output of --verbose"
                );
            }
            if *largest_loss > LOSS_MAX {
                bail!(
                    "a call in class {class} did not work: {:.0} % of one user's voice was lost; on a busy host try \
                     --users 4 or --class voice:steps_ms=6",
                    100.0 * largest_loss
                );
            }
        }
        Ok(())
    }
}

/// What the attacker's column means, and what it is worth.
fn attackers(paced: &OfClass, free: &OfClass) -> String {
    let (Some(in_paced), Some(in_free)) = (&paced.attacker, &free.attacker) else {
        return "matched: an attacker cannot mistake a single call; use --users 4 or more.".to_owned();
    };
    format!(
        "matched: calls of which an attacker found both ends, from the times of datagrams on the users' access links and \
         at the sockets of class {}. Guessing finds 1 of {}, and up to {} in 95 % of tries. Share of guesses as good as \
         the attacker (permutation p): {} {:.3}, {} {:.3}. This is one attacker ({}) and one short recording. The \
         judgement is that of eddy-bench attack --cases off,default,paced.",
        free.class,
        in_paced.calls,
        in_paced.matched_by_chance,
        paced.class,
        in_paced.p,
        free.class,
        in_free.p,
        in_free.attacker
    )
}

/// Every counter of these nodes, class by class.
fn by_class(nodes: &[NodeReport]) -> String {
    let of_class = |class: &str| {
        let reports: Vec<_> = nodes.iter().filter_map(|node| node.classes.get(class).cloned()).collect();
        format!("class {class}\n{}", tables::nodes::render(&reports))
    };
    let names = nodes.first().map(|node| node.classes.keys()).unwrap_or_default();
    names.map(|class| of_class(class)).collect()
}

fn wrapped(line: &str) -> String {
    textwrap::fill(line, tables::wrapping(WIDTH).subsequent_indent("  ")) + "\n"
}

#[cfg(test)]
mod tests {
    use dataplane::latency::Profile;
    use dataplane::ledger::Ledger;
    use eddy_node::config::NodeRole;

    use super::*;

    fn heard(sent: u64, delays_ms: &[u64]) -> Heard {
        Heard { sent, arrivals: delays_ms.iter().map(|ms| (0, ms * 1_000_000)).collect() }
    }

    fn of_class(name: &str, heard: &[Heard], rounds: Option<RoundsReport>) -> OfClass {
        let mut hop = NodeReport::new(NodeRole::Mix, 1, &Ledger::default(), &Profile::default());
        let rounds = rounds.map(|of_all| {
            let of_mix1 = RoundsReport { released: 10, cells: 79, ..of_all };
            Rounds { of_all, of_mix1 }
        });
        hop.largest_release = 7;
        hop.classes = [(name.to_owned(), hop.clone())].into();
        OfClass::new(&name.parse().unwrap(), heard, rounds, &[Some(hop)]).unwrap()
    }

    fn found(matched: usize, p: f64) -> Found {
        Found { attacker: "likelihood-two-sided-forward".to_owned(), calls: 10, matched, matched_by_chance: 3, p }
    }

    #[test]
    fn table_compares_the_classes_within_80_columns() {
        let rounds = RoundsReport { released: 123_456, skipped: 12, ..RoundsReport::default() };
        let mut results = [
            of_class("voice-lite", &[heard(10, &[140; 10]), heard(10, &[141; 9])], Some(rounds)),
            of_class("S", &[heard(10, &[7; 10]), heard(10, &[8; 10])], None),
            OfClass::direct(&[heard(10, &[0; 10])]),
        ];
        results[0].attacker = Some(found(2, 0.413));
        results[1].attacker = Some(found(10, 0.001));
        let summary = Summary {
            setup: Duration::from_secs(30),
            seconds: 0.2,
            codec: "G.711",
            results: &results,
            skipped: 3,
            nodes: &[],
        };
        let text = summary.people(false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let parts = [
            " 140.0 ",
            " 141.0 ",
            "5.00 %",
            "yes",
            " 2/10, chance\n",
            "7 to 8",
            "0 to 7",
            "no",
            " 10/10\n",
            "123456 rounds, 0 of",
        ];
        for part in parts.into_iter().chain(["voice-lite 0.413, S 0.001", "--cases", "\nvoice-lite: 5 % lost"]) {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(summary.verdict().is_ok());
        let whole = ["voice", "S"].map(|name| of_class(name, &[heard(10, &[140; 10])], Some(rounds)));
        let text = Summary { results: &whole, ..summary }.people(false);
        assert!(!text.contains("too busy"), "{text}");
    }

    #[test]
    fn lost_call_and_uneven_round_fail_the_run() {
        let fails = |results: &[OfClass]| {
            let summary =
                Summary { setup: Duration::ZERO, seconds: 1.0, codec: "G.711", results, skipped: 0, nodes: &[] };
            summary.verdict().unwrap_err().to_string()
        };
        let deaf = of_class("S", &[heard(10, &[7; 10]), heard(10, &[8; 4])], None);
        assert!(fails(&[deaf]).contains("60 % of one user's voice was lost"));
        let rounds = RoundsReport { released: 9, uneven: 1, ..RoundsReport::default() };
        let uneven = of_class("voice", &[heard(1, &[7])], Some(rounds));
        assert!(uneven.constant == Some(false) && fails(&[uneven]).contains("not constant"));
    }
}
