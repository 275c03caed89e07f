//! One node on one screen of 80 x 24: what `eddy status` prints, and a node when it ends.

use super::{align_right, lines, paced, reasons, refusals, span, table, time};
use eddy_node::config::{NodeRole, node_name, wall_s};
use eddy_node::report::{
    CompanyReport, Distribution, HopReport, MeterReport, NodeReport, StayReport, TallyReport, TrustReport,
};
use eddy_node::runtime::expiry::stage;

/// Columns of a terminal that everybody has.
pub const WIDTH: usize = 80;
/// Lines of such a terminal, without the prompt's.
const HEIGHT: usize = 23;
/// Most lines of drop reasons shown; the rest is in the tables of `--verbose`.
const DROPS_SHOWN_MAX: usize = 5;
/// Lines of the parts that every node has: three at the top, the ledger, and an empty line before it and before the
/// drops.
const OTHER_LINES: usize = 7;
/// A clock that differs by this from that of Mix 1 can keep an entry without a channel.
const CLOCK_OFF_MS: u64 = 2000;

/// The summary.
pub fn render(node: &NodeReport) -> String {
    let of_chain = node.trust.chain.get(..8).map_or_else(String::new, |id| format!(" of chain {id}"));
    let cpu = if node.uptime_s > 0.0 { 100.0 * node.cpu_s / node.uptime_s } else { 0.0 };
    let role = match node.role {
        NodeRole::Mix => String::new(),
        NodeRole::Entry | NodeRole::Exit => format!("   client sockets {}", node.sockets),
    };
    let (trust, no_channel, flood, traffic) = (trust(node), no_channel(node), flood(node), traffic(node));
    let paced = paced::render(node);
    let some_lines: usize =
        [&trust, &no_channel, &flood, &traffic, &paced].iter().map(|text| text.lines().count()).sum();
    let room = HEIGHT.saturating_sub(OTHER_LINES + some_lines);
    format!(
        "{}{of_chain}, up {}\n\
         links {}   channels {}   flows {}{role}\n\
         engine {}   io {}   cpu {cpu:.1} % (mean since start)\n\
         {trust}{no_channel}{flood}{paced}\n\
         {traffic}{}{}\n",
        node.name(),
        span(node.uptime_s),
        node.links,
        node.channels,
        node.flows,
        node.engine,
        node.io,
        drops(node, room.min(DROPS_SHOWN_MAX)),
        ledger(node),
    )
}

/// Epoch and newest bundle, and what is wrong with descriptors and clocks: at most three lines.
fn trust(node: &NodeReport) -> String {
    let TrustReport { interval, epoch, bundle, can_sign, clock_offset_ms, hops, .. } = &node.trust;
    if hops.is_empty() {
        return String::new();
    }
    let is_entry = node.role == NodeRole::Entry;
    let bundle = match bundle {
        // An entry asks for one when it needs it, so the age matters only until it has channels.
        _ if is_entry && node.channels > 0 => String::new(),
        Some(bundle) if bundle >= interval => "   bundle complete".to_owned(),
        Some(bundle) => match interval - bundle {
            1 => "   bundle 1 interval old".to_owned(),
            age => format!("   bundle {age} intervals old"),
        },
        None => "   bundle none yet".to_owned(),
    };
    let clock = clock_offset_ms.map_or(String::new(), |ms| format!("   clock {}", offset(ms)));
    let now_s = wall_s();
    let signs = if is_entry || *can_sign { String::new() } else { cannot_sign(node, now_s) };
    format!("interval {interval}   epoch {epoch}{bundle}{clock}\n{signs}{}", ends(hops, now_s))
}

/// This clock minus that of a neighbour, from the difference the other way round.
fn offset(neighbour_ms: i64) -> String {
    match format!("{:+.1} s", -(neighbour_ms as f64) / 1000.0).as_str() {
        "-0.0 s" | "+0.0 s" => "0.0 s".to_owned(),
        other => other.to_owned(),
    }
}

/// A line about a hop that does not sign, with the reason if the report has it.
fn cannot_sign(node: &NodeReport, now_s: u64) -> String {
    let own = node.index.checked_sub(1).and_then(|at| node.trust.hops.get(at));
    let why = match (own, node.trust.signs_from) {
        (Some(own), _) if own.revision == 0 => "it has no descriptor",
        (Some(own), _) if own.not_after <= now_s => "its descriptor has expired",
        _ if node.trust.clock_offset_ms.is_none() => "no neighbouring hop has sent its clock: are they up?",
        (_, Some(from)) => return format!("this node has just started and signs from interval {from} on\n"),
        _ => "its log says why",
    };
    format!("this node cannot sign: {why}\n")
}

/// A line with all hops whose descriptors have expired, or else one about the first to expire if that is soon.
fn ends(hops: &[HopReport], now_s: u64) -> String {
    let named = hops.iter().zip(1..).filter(|(hop, _)| hop.revision > 0);
    let named = named.map(|(hop, position)| (hop.not_after, node_name_at(position, hops.len())));
    let (expired, valid): (Vec<_>, Vec<_>) = named.partition(|(until, _)| *until <= now_s);
    let expired: Vec<&str> = expired.iter().map(|(_, name)| name.as_str()).collect();
    match (&expired[..], valid.iter().min()) {
        ([], Some((until, name))) if stage(*until, now_s).is_some() => {
            format!("descriptor of {name} expires in {}\n", span((until - now_s) as f64))
        }
        ([], _) => String::new(),
        (_, None) => "all descriptors have expired by this host's clock: check `date -u`\n".to_owned(),
        ([name], _) => format!("descriptor of {name} has expired\n"),
        (names, _) => format!("descriptors of {} have expired\n", names.join(", ")),
    }
}

/// The name of a hop.
pub(super) fn node_name_at(position: usize, hops: usize) -> String {
    node_name(if position == hops { NodeRole::Exit } else { NodeRole::Mix }, position)
}

/// A line for an entry that cannot carry anything yet.
fn no_channel(node: &NodeReport) -> String {
    // In a paced class it has lines of its own.
    if node.role != NodeRole::Entry || node.channels > 0 || node.paced.is_some() {
        return String::new();
    }
    match node.trust.clock_offset_ms {
        Some(ms) if ms.unsigned_abs() >= CLOCK_OFF_MS => {
            let seconds = ms.unsigned_abs() as f64 / 1000.0;
            let way = if ms < 0 { "ahead of" } else { "behind" };
            format!("no channel; this clock is {seconds:.1} s {way} that of mix1: check `date -u`\n")
        }
        _ => "no channel: datagrams wait; the log names the hop that does not answer\n".to_owned(),
    }
}

/// A line while there is a flood of handshakes.
fn flood(node: &NodeReport) -> String {
    let per_s = node.handshakes.flood_per_s;
    per_s.map_or(String::new(), |per_s| {
        format!("handshake flood: refusing {per_s} handshake datagrams per second, requiring cookies\n")
    })
}

/// Counts, rates and latency by direction. A dash where a role has no such direction: an entry makes the cells of the
/// forward direction from datagrams, an exit those of the backward direction. At an entry of a paced class only
/// datagrams: its cells are as many in every round.
fn traffic(node: &NodeReport) -> String {
    let mut rows = table(&["", "forward", "backward"]);
    let units = [("cells", Some(&node.ledger.cells)), ("datagrams", node.ledger.datagrams.as_ref())];
    let is_paced_entry = node.paced.as_ref().is_some_and(|paced| paced.entry.is_some());
    let units = units.into_iter().filter_map(|(unit, pair)| Some((unit, pair?)));
    for (unit, pair) in units.filter(|(unit, _)| !is_paced_entry || *unit == "datagrams") {
        let (receives, sends) = (is_received(node.role, unit), is_sent(node.role, unit));
        let mut row = |what: &str, occurs: [bool; 2], of: &dyn Fn(&TallyReport) -> (u64, String)| {
            let cells = [(&pair.forward, occurs[0]), (&pair.backward, occurs[1])].map(|(tally, occurs)| {
                let (count, text) = of(tally);
                if occurs || count > 0 { text } else { "-".to_owned() }
            });
            let [forward, backward] = cells;
            rows.add_row([format!("{unit} {what}"), forward, backward]);
        };
        let plain = |count: u64| (count, count.to_string());
        row("received", receives, &|tally| plain(tally.received));
        if unit == "datagrams" {
            row("into the chain", receives, &|tally| plain(tally.consumed));
        }
        row("sent", sends, &|tally| plain(tally.sent));
        if is_paced_entry {
            continue;
        }
        row("sent per second, mean", sends, &|tally| (tally.sent, rate(tally.sent, node.uptime_s)));
        if pair.forward.held + pair.backward.held > 0 {
            row("held", [true; 2], &|tally| plain(tally.held));
        }
    }
    let mut row = |what: &str, of: &dyn Fn(&StayReport) -> Option<String>| {
        let values = [of(&node.latency_us.forward), of(&node.latency_us.backward)];
        if let [Some(forward), Some(backward)] = values {
            rows.add_row([what.to_owned(), forward, backward]);
        }
    };
    row("mixing p50 / p99", &|stay| stay.pool.as_ref().map(p50_p99));
    row("node p50 / p99", &|stay| (!is_paced_entry).then(|| p50_p99(&stay.node)));
    if let Some(MeterReport { forward, backward, .. }) = &node.meter {
        let company = |of: &CompanyReport| {
            let low = if of.below_floor { " LOW" } else { "" };
            if of.releases == 0 {
                "-".to_owned()
            } else {
                let few = if of.releases < 1000 { format!(" of {}", of.releases) } else { String::new() };
                format!("{:.1} / {:.1}{few}{low}", of.effective, of.smallest_effective)
            }
        };
        rows.add_row(["effective channels".to_owned(), company(forward), company(backward)]);
    }
    align_right(&mut rows, 1..3);
    lines(&rows)
}

/// The directions, forward first, in which a role receives a unit from others.
fn is_received(role: NodeRole, unit: &str) -> [bool; 2] {
    match (role, unit) {
        (NodeRole::Mix, _) => [true; 2],
        (NodeRole::Entry, "cells") | (NodeRole::Exit, "datagrams") => [false, true],
        (NodeRole::Entry | NodeRole::Exit, _) => [true, false],
    }
}

/// The directions in which it sends a unit: at the ends of a chain those in which it does not receive it.
fn is_sent(role: NodeRole, unit: &str) -> [bool; 2] {
    match role {
        NodeRole::Mix => [true; 2],
        NodeRole::Entry | NodeRole::Exit => is_received(role, unit).map(|receives| !receives),
    }
}

/// A mean since the start.
fn rate(count: u64, seconds: f64) -> String {
    if seconds > 0.0 { format!("{:.1}", count as f64 / seconds) } else { "-".to_owned() }
}

fn p50_p99(of: &Distribution) -> String {
    if of.count > 0 { format!("{} / {}", time(of.p50), time(of.p99)) } else { "-".to_owned() }
}

/// Drops by reason in at most `room` lines, only if there are any.
fn drops(node: &NodeReport, room: usize) -> String {
    // A reason and its count stay on one line.
    let counts = |counts| reasons(counts).replace(' ', "\u{a0}").replace(",\u{a0}", ", ");
    let mut all: Vec<String> = Vec::new();
    // Those of datagrams say what a user misses.
    let mut tallies: Vec<_> = node.ledger.tallies().collect();
    tallies.sort_by_key(|(unit, ..)| *unit == "cells");
    for (unit, direction, tally) in tallies {
        if !tally.dropped.is_empty() {
            all.push(format!("dropped {unit} {direction}: {}", counts(&tally.dropped)));
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
    let lines = all.iter().flat_map(|line| textwrap::wrap(line, &options));
    let mut shown: Vec<String> = lines.map(|line| line.replace('\u{a0}', " ")).collect();
    if shown.len() > room {
        shown.truncate(room.saturating_sub(1));
        let more = if shown.is_empty() { "drops by reason: --verbose" } else { "  ... more with --verbose" };
        shown.push(more.to_owned());
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
    use super::super::paced::tests::{node as paced_node, troubled_entry};
    use super::*;

    fn fits(text: &str) {
        assert!(text.lines().count() <= HEIGHT, "one line is the prompt's: {text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    }

    #[test]
    fn summary_of_a_busy_mix_fits_80x24() {
        let mut node = busy();
        node.trust.chain = "3fa2b1c4".repeat(8);
        let text = render(&node);
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
                tally.held = 1;
                for reason in DropReason::ALL {
                    tally.drop_many(*reason, 9_999_999);
                }
            }
        }
        let mut node = NodeReport::new(NodeRole::Exit, 4, &ledger, &Profile::default());
        // And with all that can be said of descriptors.
        let hops = vec![HopReport { revision: 1, ..HopReport::default() }; 8];
        node.trust = TrustReport { chain: "3fa2b1c4".repeat(8), hops, interval: 179_283_746, ..TrustReport::default() };
        let text = render(&node);
        fits(&text);
        assert!(text.contains("\ndrops by reason: --verbose\n") && text.contains("ledger closed: NO"), "{text}");
        let some = drops(&node, DROPS_SHOWN_MAX);
        assert!(some.ends_with(" 9999999,\n  ... more with --verbose\n"), "cut between two reasons: {some}");
    }

    #[test]
    fn summary_of_an_entry_of_a_paced_class_fits_80x24() {
        let node = paced_node(troubled_entry(), DropReason::Aged, 1_234_567);
        let node = NodeReport { ledger: node.ledger, role: NodeRole::Entry, meter: None, paced: node.paced, ..busy() };
        let text = render(&node);
        fits(&text);
        assert!(text.contains("\ndatagrams received") && !text.contains("\ncells"), "{text}");
    }

    #[test]
    fn summary_without_drops_has_no_line_about_them() {
        let text = render(&NodeReport::new(NodeRole::Entry, 0, &Ledger::default(), &Profile::default()));
        fits(&text);
        assert!(text.contains("entry, up 0.0 s") && !text.contains("drop"), "{text}");
        assert!(text.contains("\nno channel: datagrams wait; the log names"), "{text}");
    }

    #[test]
    fn clock_that_is_off_is_named_as_the_cause() {
        let mut node = NodeReport::new(NodeRole::Entry, 0, &Ledger::default(), &Profile::default());
        node.trust.clock_offset_ms = Some(-60_000);
        assert!(
            render(&node).contains("\nno channel; this clock is 60.0 s ahead of that of mix1: check"),
            "{}",
            render(&node)
        );
        node.trust.clock_offset_ms = Some(1500);
        assert!(render(&node).contains("\nno channel: datagrams wait"));
    }

    #[test]
    fn flood_of_handshakes_has_a_line_while_it_lasts() {
        let mut node = busy();
        assert!(!render(&node).contains("flood"));
        node.handshakes.flood_per_s = Some(1200);
        fits(&render(&node));
        assert!(
            render(&node).contains("\nhandshake flood: refusing 1200 handshake datagrams per second"),
            "{}",
            render(&node)
        );
    }

    #[test]
    fn trust_is_in_lines_of_their_own() {
        let mut node = NodeReport::new(NodeRole::Exit, 4, &Ledger::default(), &Profile::default());
        let hop = |not_after| HopReport { revision: 1, not_after, ..HopReport::default() };
        let later = wall_s() + 90 * 86_400;
        node.trust = TrustReport {
            interval: 179_283_746,
            epoch: 4_980_104,
            bundle: Some(179_283_745),
            clock_offset_ms: Some(20),
            hops: vec![hop(5), hop(later), hop(5), hop(later)],
            ..TrustReport::default()
        };
        assert_eq!(
            trust(&node),
            "interval 179283746   epoch 4980104   bundle 1 interval old   clock 0.0 s\n\
             this node cannot sign: its log says why\n\
             descriptors of mix1, mix3 have expired\n"
        );
        node.trust.signs_from = Some(179_283_747);
        assert!(trust(&node).contains("\nthis node has just started and signs from interval 179283747 on\n"));
        node.trust.clock_offset_ms = None;
        assert!(
            trust(&node).contains("\nthis node cannot sign: no neighbouring hop has sent its clock"),
            "{}",
            trust(&node)
        );
        node.trust.hops[3] = hop(5);
        assert!(trust(&node).contains("\nthis node cannot sign: its descriptor has expired\n"), "{}", trust(&node));
        (node.role, node.index, node.channels) = (NodeRole::Entry, 0, 4);
        node.trust.clock_offset_ms = Some(1_500);
        assert!(
            trust(&node).starts_with("interval 179283746   epoch 4980104   clock -1.5 s\ndesc"),
            "{}",
            trust(&node)
        );
    }

    #[test]
    fn directions_of_an_entry_that_do_not_occur_are_dashes() {
        let mut ledger = Ledger::default();
        let datagrams = &mut ledger.datagrams.forward;
        (datagrams.received, datagrams.consumed, datagrams.held) = (208, 207, 1);
        let mut node = NodeReport::new(NodeRole::Entry, 0, &ledger, &Profile::default());
        node.channels = 4;
        let text = render(&node);
        fits(&text);
        let row = |name: &str| {
            let line =
                text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(row("cells received "), ["-", "0"]);
        assert_eq!(row("cells sent "), ["0", "-"]);
        assert_eq!(row("datagrams received "), ["208", "-"]);
        assert_eq!(row("datagrams into the chain "), ["207", "-"]);
        assert_eq!(row("datagrams held "), ["1", "0"]);
        assert!(!text.contains("cells held") && !text.contains("no channel"), "{text}");
    }
}
