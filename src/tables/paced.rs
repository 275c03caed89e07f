//! Lines of `eddy status` about a paced class.

use eddy_node::report::paced::{ClockReport, LoopsReport, PacedEntryReport, PacedHopReport, PacedReport, PlacesReport};

/// What the class means to its users, and how it goes: at most five lines, and the alarm.
pub fn render(paced: Option<&PacedReport>) -> String {
    let Some(PacedReport { figures, entry, hop, .. }) = paced else { return String::new() };
    let mut text = String::new();
    if let Some(entry) = entry {
        text = format!("{figures}\n{}{}", promise(entry), of_entry(entry));
    }
    text + &hop.as_ref().map_or_else(String::new, of_hop)
}

/// What an observer of all links finds, by what the class serves.
fn promise(entry: &PacedEntryReport) -> &'static str {
    match entry.meeting {
        Some(_) => "promise: no observer of all links and the exit sees who calls whom in a batch\n",
        None => "promise: weaker, to destinations: losses on your access link show at the exit\n",
    }
}

fn of_entry(entry: &PacedEntryReport) -> String {
    let PacedEntryReport { joined, failed, skipped, forward, backward, .. } = entry;
    let channel = match (entry.has_channel, entry.round) {
        (_, None) => "waits for the clock of mix1".to_owned(),
        (true, _) => "has a channel".to_owned(),
        (false, _) => format!("joins a batch in {:.0} s", entry.next_batch_s),
    };
    let meeting = entry.meeting.as_ref().map_or_else(String::new, |state| format!("   meeting {state}"));
    let company = match entry.company {
        Some((channels, n_min)) if channels < n_min => format!("   waiting for company: {channels} of {n_min}"),
        Some((channels, _)) => format!("   company {channels}"),
        None => String::new(),
    };
    let excused = match entry.excused {
        0 => String::new(),
        setups => format!(", excused {setups}"),
    };
    let mut text = format!(
        "{channel}{meeting}{company}\n\
         joined {joined}, failed {failed}{excused}   skipped {skipped}   lost {} out, {} back\n",
        share(*forward),
        share(*backward)
    );
    text += &dropping(&entry.dropping);
    text
}

/// Its causes while the alarm is up.
fn dropping(causes: &[String]) -> String {
    if causes.is_empty() {
        return String::new();
    }
    let options = super::wrapping(super::summary::WIDTH).subsequent_indent("  ");
    textwrap::fill(&format!("DROPPING: {}", causes.join("; ")), &options) + "\n"
}

fn of_hop(hop: &PacedHopReport) -> String {
    let count = |now: Option<usize>, least: Option<usize>| match (now, least) {
        (Some(now), Some(least)) => format!("{now} (hour: {least})"),
        _ => "-".to_owned(),
    };
    let prefixes = match hop.prefixes {
        Some(_) => format!("   networks {}", count(hop.prefixes, hop.fewest_prefixes)),
        None => String::new(),
    };
    let clocks: Vec<String> = hop.clocks.iter().map(|(who, clock)| format!("{who} {}", offset(clock))).collect();
    let clocks = if clocks.is_empty() { String::new() } else { format!("   clocks: {}", clocks.join(", ")) };
    format!(
        "channels of the batch {}{prefixes}\nfilled: next {}, previous {}{clocks}\n{}{}",
        count(hop.channels, hop.fewest_channels),
        share(PlacesReport { lost: hop.forward.filled, ..hop.forward }),
        share(PlacesReport { lost: hop.backward.filled, ..hop.backward }),
        hop.loops.as_ref().map_or_else(String::new, of_loops),
        dropping(&hop.dropping),
    )
}

/// Loops of a mix: batches times loops, what came back, and how long that took.
fn of_loops(loops: &LoopsReport) -> String {
    let LoopsReport { set_up, failed, places, lost, garbled, .. } = *loops;
    let part = |lost| share(PlacesReport { places, filled: 0, lost });
    let delay = match (loops.delay_p50_ms, loops.delay_p99_ms) {
        (Some(p50), Some(p99)) => format!("   RTT {p50:.1} / {p99:.1} ms"),
        _ => String::new(),
    };
    format!("loops {set_up}, failed {failed}   lost {}, noise {}{delay}\n", part(lost), part(garbled))
}

fn offset(clock: &ClockReport) -> String {
    format!("{:+.1} ms", clock.offset_ms)
}

/// The lost places as a share of all.
fn share(places: PlacesReport) -> String {
    match places.places {
        0 => "-".to_owned(),
        all => format!("{:.2} %", 100.0 * places.lost as f64 / all as f64),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use eddy_node::report::path::PathReport;

    use super::*;

    /// An entry that has something for every line.
    pub fn troubled_entry() -> PacedReport {
        let figures = "2116 kbit/s out, 2116 back, 2104 inside; 2214 MB/h; adds 144, 116, 141 ms".to_owned();
        let places = PlacesReport { places: 100_000, filled: 3000, lost: 2500 };
        let clock = ClockReport { offset_ms: -12.34, round_trip_ms: 20.0 };
        let entry = PacedEntryReport {
            round: Some(1),
            skipped: 12_345,
            meeting: Some("waiting".to_owned()),
            has_channel: false,
            next_batch_s: 23.4,
            joined: 1234,
            failed: 56,
            excused: 3,
            company: Some((5, 8)),
            lead_ms: Some(1.0),
            lead_age_s: Some(0.1),
            clock: Some(clock),
            forward: places,
            backward: places,
            dropping: vec!["12 of 1000 cells to mix1 lost (7 times)".to_owned(), "no reports from mix1".to_owned()],
        };
        PacedReport { figures, entry: Some(entry), hop: None, path: PathReport::default() }
    }

    #[test]
    fn lines_of_a_paced_class_fit_80_columns() {
        let clock = ClockReport { offset_ms: -12.34, round_trip_ms: 20.0 };
        let hop = PacedHopReport {
            channels: Some(12_345),
            prefixes: Some(1234),
            fewest_channels: Some(12_000),
            fewest_prefixes: Some(1000),
            clocks: vec![("previous".to_owned(), clock), ("next".to_owned(), clock)],
            loops: Some(LoopsReport {
                set_up: 1_234_567,
                failed: 12_345,
                places: 1000,
                lost: 123,
                garbled: 456,
                delay_p50_ms: Some(123.4),
                delay_p99_ms: Some(234.5),
                ..LoopsReport::default()
            }),
            dropping: vec![
                "of 4000 loop cells 492 lost from the next hop, 1824 before that".to_owned(),
                "4 of 4 loops not set up".to_owned(),
            ],
            ..PacedHopReport::default()
        };
        let hop = PacedReport { figures: String::new(), entry: None, hop: Some(hop), path: PathReport::default() };
        let text = render(Some(&hop));
        assert!(
            text.contains("\nloops 1234567, failed 12345   lost 12.30 %, noise 45.60 %   RTT 123.4 / 234.5 ms\n"),
            "{text}"
        );
        assert!(text.contains("\nDROPPING: of 4000 loop cells"), "{text}");
        for report in [troubled_entry(), hop] {
            let text = render(Some(&report));
            assert!(text.lines().all(|line| line.chars().count() <= 80) && text.lines().count() <= 5, "{text}");
        }
    }

    #[test]
    fn entry_says_when_it_joins_and_for_whom_it_waits() {
        let text = render(Some(&troubled_entry()));
        for part in [
            "joins a batch in 23 s   meeting waiting   waiting for company: 5 of 8",
            "joined 1234, failed 56, excused 3",
            "lost 2.50 % out, 2.50 % back",
            "DROPPING: 12 of 1000 cells to mix1 lost; no reports",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
