//! Lines of `eddy status` about a paced class.

use eddy_node::figures::HIDES_FROM;
use eddy_node::report::NodeReport;
use eddy_node::report::paced::{
    CauseKind, CauseReport, ClockReport, CompanyReport, EndToEndReport, LoopsReport, MeetingReport, OutagesReport,
    PacedEntryReport, PacedHopReport, PacedReport, PlacesReport, WHAT_TO_DO,
};

/// What the class means to its users, and how it goes: at most six lines, and the alarm.
pub fn render(node: &NodeReport) -> String {
    let Some(PacedReport { figures, entry, hop, .. }) = &node.paced else { return String::new() };
    let mut text = String::new();
    if let Some(entry) = entry {
        text = format!("{figures}\n{}{}{}", promise(entry), of_entry(entry), dropped(node));
        text += &dropping(&causes(entry), &entry.dropping, &remedy(entry));
    }
    text + &hop.as_ref().map_or_else(String::new, of_hop)
}

/// What an observer of all links finds, by what the class serves, and among how many.
fn promise(entry: &PacedEntryReport) -> String {
    if !entry.has_channel {
        return "promise: none before it has a channel\n".to_owned();
    }
    let among = match entry.company {
        Some(CompanyReport { channels: 0, .. }) => return "promise: none, and nothing is carried\n".to_owned(),
        Some(company @ CompanyReport { channels, n_min, .. }) if company.is_low() => {
            return format!("promise: none, and nothing is carried: {channels} of {n_min} channels (n_min)\n");
        }
        Some(CompanyReport { channels, .. }) if channels < HIDES_FROM => {
            return format!("promise: none, because {channels} channels in a batch hide nobody\n");
        }
        Some(CompanyReport { channels, .. }) => format!("{channels} channels"),
        None => "a batch's channels".to_owned(),
    };
    match entry.meeting {
        Some(_) => format!("promise: with one honest mix, who calls whom is hidden among {among}\n"),
        None => format!("promise: weaker, among {among}: losses on your access link show outside\n"),
    }
}

fn of_entry(entry: &PacedEntryReport) -> String {
    let PacedEntryReport { joined, failed, skipped, forward, backward, .. } = entry;
    let channel = match (entry.has_channel, entry.round) {
        (_, None) => "waits for the clock of mix1".to_owned(),
        (true, _) if entry.company.is_some_and(|company| company.channels == 0) => {
            "has a channel, not counted by mix1: a new one, or mix1 has restarted".to_owned()
        }
        (true, _) => "has a channel".to_owned(),
        (false, _) => format!("joins a batch in {:.0} s or later", entry.next_batch_s),
    };
    // Otherwise nothing opens, whether the other end is there or not.
    let can_open = entry.has_channel && !entry.company.is_some_and(CompanyReport::is_low);
    let corrupt = if entry.end_to_end.is_some_and(|cells| cells.of_exit > 0) { " (corrupt exit)" } else { "" };
    let meeting = match entry.meeting.filter(|_| can_open) {
        Some(MeetingReport::Lost) => format!("   meeting lost (nothing comes back){corrupt}"),
        Some(MeetingReport::Joined) => format!("   meeting joined{corrupt}"),
        Some(MeetingReport::Waiting) => format!("   meeting waiting{corrupt}"),
        None => String::new(),
    };
    // When a hop has restarted no entry has a channel: 0 channels say nothing about the company.
    let company = entry.company.filter(|company| company.channels > 0);
    let company = match (company, full(entry)) {
        (Some(company @ CompanyReport { channels, n_min, .. }), _) if company.is_low() => {
            format!("   waiting for company: {channels} of {n_min}")
        }
        (_, Some(CompanyReport { channels, seats, .. })) => format!("   class full: {channels} of {seats} seats"),
        (Some(CompanyReport { channels, .. }), None) => format!("   company {channels}"),
        (None, None) => String::new(),
    };
    let refused = if entry.refuses_flows { "   new flows refused" } else { "" };
    let excused = match entry.excused {
        0 => String::new(),
        batches => format!(" (excused: {batches})"),
    };
    let other_end = match entry.end_to_end {
        Some(EndToEndReport { places, lost, .. }) => {
            format!("   other end {} since the start", share(PlacesReport { places, lost, ..PlacesReport::default() }))
        }
        None => String::new(),
    };
    // The alarm says more, and takes the place of the next two lines on a screen of 24 lines.
    let ended = restarted(entry).filter(|_| !entry.has_channel && entry.dropping.is_empty());
    let ended = ended.map_or_else(String::new, |hops| format!("{hops}: channels through it have ended\n"));
    let outages = entry.outages.filter(|_| entry.dropping.is_empty());
    let outages = outages.map_or_else(String::new, |OutagesReport { count, longest_ms }| {
        format!("outages of the access link back {count}, longest {longest_ms} ms\n")
    });
    format!(
        "{channel}{meeting}{company}\n\
         batches {joined}, failed {failed}{excused}   rounds skipped {skipped}{refused}\n\
         link lost lately {} out, {} back{other_end}\n\
         {ended}{outages}",
        share(forward.lately()),
        share(backward.lately())
    )
}

/// A line about datagrams that have waited for too long.
fn dropped(node: &NodeReport) -> String {
    let of = |reason| node.ledger.datagrams.as_ref().and_then(|pair| pair.forward.dropped.get(reason));
    let rate = of("over-rate").map(|count| format!("{count} beyond the class's rate"));
    let aged = of("aged").map(|count| format!("{count} without a channel, or late"));
    let all: Vec<String> = rate.into_iter().chain(aged).collect();
    if all.is_empty() { String::new() } else { format!("datagrams dropped: {}\n", all.join("; ")) }
}

/// The company of a batch in which no seat was free, while it has no channel for that.
fn full(entry: &PacedEntryReport) -> Option<CompanyReport> {
    entry.full.filter(|_| !entry.has_channel)
}

/// The causes of an entry's alarm. A full class comes before a setup that failed.
fn causes(entry: &PacedEntryReport) -> Vec<String> {
    let has_failed = entry.dropping.iter().any(|cause| cause.cause == CauseKind::NoChannel);
    let verb = if entry.has_channel { "was" } else { "is" };
    let full = entry.full.filter(|_| has_failed).map(|company| company.full(verb));
    full.into_iter().chain(entry.dropping.iter().map(CauseReport::to_string)).collect()
}

/// What else explains an entry's alarm, and what to do: with two causes, three lines.
fn remedy(entry: &PacedEntryReport) -> String {
    if full(entry).is_some() && entry.dropping.iter().all(|cause| cause.cause == CauseKind::NoChannel) {
        return "keep the entry running, which tries again for each batch".to_owned();
    }
    let why = match (restarted(entry), entry.skipped) {
        (Some(hops), _) => format!("{hops}, which may be why."),
        (None, 0) => "was mix1 restarted?".to_owned(),
        (None, skipped) => format!("{skipped} rounds skipped: this host too busy?"),
    };
    format!("{why} Still, {WHAT_TO_DO}")
}

/// Hops that have restarted of late.
fn restarted(entry: &PacedEntryReport) -> Option<String> {
    let has = if entry.restarted.len() > 1 { "have" } else { "has" };
    (!entry.restarted.is_empty()).then(|| format!("{} {has} restarted", entry.restarted.join(", ")))
}

/// Its causes while the alarm is up, when the latest one was, and what to do.
fn dropping(causes: &[String], raised: &[CauseReport], what_to_do: &str) -> String {
    let (ago, ends) = (raised.iter().map(|one| one.ago_s).min(), raised.iter().map(|one| one.ends_s).max());
    let Some((ago, ends)) = ago.zip(ends) else { return String::new() };
    let options = super::wrapping(super::summary::WIDTH).subsequent_indent("  ");
    let when = format!("{} ago, ends in {}", time(ago), time(ends));
    textwrap::fill(&format!("DROPPING ({when}): {}: {what_to_do}", causes.join("; ")), &options) + "\n"
}

/// In seconds or minutes.
fn time(seconds: u64) -> String {
    if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds / 60) }
}

fn of_hop(hop: &PacedHopReport) -> String {
    let count = |now: Option<usize>, of: String, least: Option<usize>| match (now, least) {
        (Some(now), Some(least)) => format!("{now}{of} (hour: {least})"),
        _ => "-".to_owned(),
    };
    let seats = hop.seats.map_or_else(String::new, |seats| format!(" of {seats} seats"));
    let prefixes = match hop.prefixes {
        Some(_) => format!("   networks {}", count(hop.prefixes, String::new(), hop.fewest_prefixes)),
        None => String::new(),
    };
    let clocks: Vec<String> = hop.clocks.iter().map(|(who, clock)| format!("{who} {}", offset(clock))).collect();
    let clocks = if clocks.is_empty() { String::new() } else { format!("   clocks: {}", clocks.join(", ")) };
    format!(
        "channels of the batch {}{prefixes}\nfilled: next {}, previous {}{clocks}\n{}{}",
        count(hop.channels, seats, hop.fewest_channels),
        share(PlacesReport { lost: hop.forward.filled, ..hop.forward }),
        share(PlacesReport { lost: hop.backward.filled, ..hop.backward }),
        hop.loops.as_ref().map_or_else(String::new, of_loops),
        dropping(
            &hop.dropping.iter().map(CauseReport::to_string).collect::<Vec<_>>(),
            &hop.dropping,
            "was a hop behind this one restarted?"
        ),
    )
}

/// Loops of a mix: batches times loops, what came back, and how long that took.
fn of_loops(loops: &LoopsReport) -> String {
    let LoopsReport { set_up, failed, places, lost, garbled, .. } = *loops;
    let part = |lost| share(PlacesReport { places, lost, ..PlacesReport::default() });
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
    use dataplane::latency::Profile;
    use dataplane::ledger::{DropReason, Ledger};
    use eddy_node::config::NodeRole;
    use eddy_node::report::path::PathReport;

    use super::*;

    /// An entry that has something for every line.
    pub fn troubled_entry() -> PacedReport {
        let figures = "2116 kbit/s out, 2116 back, 2104 inside; 2214 MB/h; adds 144, 116, 141 ms".to_owned();
        let places = PlacesReport { places: 100_000, filled: 3000, lost: 2600, latest_places: 2000, latest_lost: 50 };
        let clock = ClockReport { offset_ms: -12.34, round_trip_ms: 20.0 };
        let entry = PacedEntryReport {
            round: Some(1),
            skipped: 12_345,
            meeting: Some(MeetingReport::Waiting),
            has_channel: false,
            next_batch_s: 23.4,
            joined: 1234,
            failed: 56,
            excused: 3,
            company: company(5, 8),
            full: None,
            refuses_flows: true,
            lead_ms: Some(1.0),
            lead_age_s: Some(0.1),
            clock: Some(clock),
            forward: places,
            backward: places,
            outages: Some(OutagesReport { count: 12, longest_ms: 2340 }),
            end_to_end: Some(EndToEndReport { places: 100_000, lost: 5000, of_exit: 1 }),
            restarted: Vec::new(),
            dropping: vec![
                cause(CauseKind::LostForward, "12 of 1000 cells to mix1 lost", 7),
                cause(CauseKind::NoReports, "no reports from mix1", 1),
            ],
        };
        PacedReport { figures, entry: Some(entry), hop: None, path: PathReport::default() }
    }

    fn company(channels: u16, n_min: u16) -> Option<CompanyReport> {
        Some(CompanyReport { channels, n_min, seats: 16_384 })
    }

    fn cause(cause: CauseKind, what: &str, times: u64) -> CauseReport {
        CauseReport { cause, times, ago_s: 190, ends_s: 465, what: what.to_owned() }
    }

    /// A node that reports this, and has dropped some datagrams of a kind.
    pub fn node(paced: PacedReport, dropped: DropReason, count: u64) -> NodeReport {
        let mut ledger = Ledger::default();
        ledger.datagrams.forward.drop_many(dropped, count);
        let role = if paced.entry.is_some() { NodeRole::Entry } else { NodeRole::Mix };
        NodeReport { paced: Some(paced), ..NodeReport::new(role, 0, &ledger, &Profile::default()) }
    }

    fn shown(paced: PacedReport) -> String {
        render(&node(paced, DropReason::Aged, 1_234_567))
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
                cause(CauseKind::LoopsLost, "of 4000 loop cells 492 lost from the next hop, 1824 before that", 1),
                cause(CauseKind::LoopSetups, "4 of 4 loops not set up", 1),
            ],
            ..PacedHopReport::default()
        };
        let hop = PacedReport { figures: String::new(), entry: None, hop: Some(hop), path: PathReport::default() };
        let text = shown(hop.clone());
        assert!(
            text.contains("\nloops 1234567, failed 12345   lost 12.30 %, noise 45.60 %   RTT 123.4 / 234.5 ms\n"),
            "{text}"
        );
        assert!(text.contains("\nDROPPING (3 min ago, ends in 7 min): of 4000"), "{text}");
        let mut in_company = troubled_entry();
        let entry = in_company.entry.as_mut().unwrap();
        (entry.company, entry.meeting) = (company(12_345, 8), None);
        for (report, most) in [(troubled_entry(), 9), (in_company, 9), (hop, 6)] {
            let text = shown(report);
            assert!(text.lines().all(|line| line.chars().count() <= 80) && text.lines().count() <= most, "{text}");
        }
    }

    #[test]
    fn entry_says_when_it_joins_and_for_whom_it_waits() {
        let text = shown(troubled_entry());
        for part in [
            "joins a batch in 23 s or later   waiting for company: 5 of 8",
            "batches 1234, failed 56 (excused: 3)   rounds skipped 12345   new flows refused",
            "link lost lately 2.50 % out, 2.50 % back   other end 5.00 % since the start",
            "DROPPING (3 min ago, ends in 7 min): 12 of 1000 cells to mix1 lost (in 7 tests);",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let mut quiet = troubled_entry();
        let entry = quiet.entry.as_mut().unwrap();
        (entry.dropping, entry.has_channel, entry.company) = (Vec::new(), true, company(12, 8));
        let outages = "\noutages of the access link back 12, longest 2340 ms\n";
        let quiet = shown(quiet);
        assert!(quiet.contains(outages) && !text.contains(outages), "the alarm takes its place");
        assert!(quiet.contains("   meeting waiting (corrupt exit)   company 12\n"), "{quiet}");
        assert!(text.replace("\n  ", " ").contains("keep the entry running; if `ping` shows less loss"), "{text}");
    }

    #[test]
    fn full_class_comes_before_the_setup_that_failed() {
        let text = |has_channel, failed| {
            let mut paced = troubled_entry();
            let entry = paced.entry.as_mut().unwrap();
            (entry.company, entry.has_channel) = (Some(CompanyReport { channels: 4, n_min: 1, seats: 4 }), has_channel);
            entry.full = Some(CompanyReport { channels: 4, n_min: 1, seats: 4 });
            entry.dropping = vec![cause(failed, "no channel: no complete ack came in time", 3)];
            shown(paced).replace("\n  ", " ")
        };
        let full = text(false, CauseKind::NoChannel);
        for part in [
            "joins a batch in 23 s or later   class full: 4 of 4 seats\n",
            "DROPPING (3 min ago, ends in 7 min): the class is full, 4 of 4 seats as mix1 says: the operators can raise `seats`",
            "can raise `seats`; no channel: no complete ack came in time (3 times): keep the entry running, which tries again for each batch",
        ] {
            assert!(full.contains(part), "{part}: {full}");
        }
        let later = text(true, CauseKind::NoChannel);
        assert!(
            later.contains("DROPPING (3 min ago, ends in 7 min): the class was full, 4 of 4 seats as mix1 says"),
            "{later}"
        );
        assert!(
            !text(false, CauseKind::NoReports).contains("is full")
                && !text(true, CauseKind::NoReports).contains("was full")
        );
    }

    #[test]
    fn mix_1_shows_the_seats_of_a_batch() {
        let (channels, prefixes) = (Some(256), Some(256));
        let hop = PacedHopReport {
            seats: Some(256),
            fewest_channels: channels,
            fewest_prefixes: prefixes,
            channels,
            prefixes,
            ..PacedHopReport::default()
        };
        let text =
            shown(PacedReport { figures: String::new(), entry: None, hop: Some(hop), path: PathReport::default() });
        let line = text.lines().next().unwrap();
        assert_eq!(line, "channels of the batch 256 of 256 seats (hour: 256)   networks 256 (hour: 256)");
        assert!(line.len() <= 80);
    }

    #[test]
    fn meeting_is_shown_where_its_cells_can_open() {
        let line = |meeting, has_channel, said: Option<(u16, u16)>| {
            let company = said.and_then(|(channels, n_min)| company(channels, n_min));
            let mut paced = troubled_entry();
            let entry = paced.entry.as_mut().unwrap();
            (entry.meeting, entry.has_channel, entry.company) = (Some(meeting), has_channel, company);
            entry.end_to_end = None;
            shown(paced).lines().nth(2).unwrap().to_owned()
        };
        assert_eq!(line(MeetingReport::Joined, true, Some((12, 8))), "has a channel   meeting joined   company 12");
        assert_eq!(line(MeetingReport::Lost, true, None), "has a channel   meeting lost (nothing comes back)");
        assert_eq!(line(MeetingReport::Waiting, true, Some((5, 8))), "has a channel   waiting for company: 5 of 8");
        assert_eq!(line(MeetingReport::Waiting, false, Some((12, 8))), "joins a batch in 23 s or later   company 12");
    }

    #[test]
    fn promise_names_the_channels_that_it_holds_among() {
        let promised = |said: Option<(u16, u16)>, meeting: Option<MeetingReport>| {
            let company = said.and_then(|(channels, n_min)| company(channels, n_min));
            let mut paced = troubled_entry();
            let entry = paced.entry.as_mut().unwrap();
            (entry.company, entry.meeting) = (company, meeting);
            entry.has_channel = true;
            shown(paced).lines().nth(1).unwrap().to_owned()
        };
        assert!(
            promised(Some((12, 8)), Some(MeetingReport::Joined))
                .ends_with("who calls whom is hidden among 12 channels")
        );
        assert!(
            promised(Some((5, 8)), Some(MeetingReport::Joined))
                .ends_with("nothing is carried: 5 of 8 channels (n_min)")
        );
        assert!(
            promised(Some((1, 2)), Some(MeetingReport::Waiting))
                .ends_with("nothing is carried: 1 of 2 channels (n_min)")
        );
        assert!(promised(None, Some(MeetingReport::Waiting)).ends_with("hidden among a batch's channels"));
        assert!(
            promised(Some((2, 2)), Some(MeetingReport::Joined))
                .ends_with("none, because 2 channels in a batch hide nobody")
        );
        assert!(shown(troubled_entry()).contains("promise: none before it has a channel"));
        assert!(promised(Some((12, 8)), None).starts_with("promise: weaker, among 12 channels: losses on your access"));
    }

    #[test]
    fn datagrams_beyond_the_class_are_shown() {
        let paced = troubled_entry();
        let lines = |paced: &PacedReport, dropped, count| {
            let text = render(&node(paced.clone(), dropped, count));
            text.lines().filter(|line| line.contains("datagrams dropped")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(&paced, DropReason::OverRate, 7), ["datagrams dropped: 7 beyond the class's rate"]);
        assert_eq!(lines(&paced, DropReason::Aged, 7), ["datagrams dropped: 7 without a channel, or late"]);
        assert!(lines(&paced, DropReason::Aged, 0).is_empty());
        assert!(lines(&paced, DropReason::TooLarge, 7).is_empty());
    }
}
