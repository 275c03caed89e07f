//! What a node reports of a paced class (docs/SPEC.md 9).

use std::fmt;
use std::time::Duration;

use control::paced::{
    ALARM_LASTS, BatchSize, Cause, EntryStatus, Failure, HopStatus, LoopsStatus, NeighbourClock, PacedStatus,
    RaisedCause, Reported,
};
use dataplane::paced::entry::{EndToEnd, EntryView, LOST_AFTER, MeetingState, Outages};
use dataplane::paced::mix;
use serde::{Deserialize, Serialize};
use wire::cell::Direction;
use wire::paced::clock::Comparison;
use wire::paced::{Company, PacedTerms};

use super::ms;
use super::path::PathReport;
use crate::config::{NodeRole, node_name};
use crate::figures::Figures;

/// A paced class at a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PacedReport {
    /// What the class carries to destinations, back, and between users; what it costs each way; what it adds at most.
    pub figures: String,
    /// Only at an entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<PacedEntryReport>,
    /// Only at a mix or exit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hop: Option<PacedHopReport>,
    /// Where the delay of a datagram comes from.
    #[serde(default)]
    pub path: PathReport,
}

/// What stays the same of a class while a node runs.
#[derive(Clone, Debug)]
pub struct ClassFacts {
    pub figures: Figures,
    pub terms: PacedTerms,
    /// Hops of the chain, and the position of the node.
    pub hops: usize,
    pub position: usize,
}

/// What an entry sees of its rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PacedEntryReport {
    /// The round of which first copies leave; none before the first clock cell of Mix 1.
    pub round: Option<u64>,
    /// Rounds that were not sent, because the entry was late.
    pub skipped: u64,
    /// If it serves a meeting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meeting: Option<MeetingReport>,
    /// It has a channel in the running batch.
    pub has_channel: bool,
    /// Seconds until the next batch in which it can have one begins.
    pub next_batch_s: f64,
    /// Batches in which it had a channel, and those that it missed.
    pub joined: u64,
    pub failed: u64,
    /// Those that failed because a hop had restarted, or the link was down: they raise no alarm.
    #[serde(default)]
    pub excused: u64,
    pub company: Option<CompanyReport>,
    /// That of the latest batch in which it had no channel for want of an ack, if all seats were taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<CompanyReport>,
    /// It refuses new flows, by `on_alarm`.
    #[serde(default)]
    pub refuses_flows: bool,
    /// By how much cells are sent before this host's clock shows the time of their round.
    pub lead_ms: Option<f64>,
    /// Seconds since Mix 1 last answered a clock cell. From 40 s on the lead follows nothing, and the alarm rises.
    #[serde(default)]
    pub lead_age_s: Option<f64>,
    /// By how much the clock of Mix 1 is ahead of this one's, and the round trip of that measurement.
    pub clock: Option<ClockReport>,
    /// Its cells on the access link: to Mix 1, as that one reports, and from there.
    pub forward: PlacesReport,
    pub backward: PlacesReport,
    /// Times without a cell from Mix 1, if there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outages: Option<OutagesReport>,
    /// What the other end of a meeting sent, all the way from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_to_end: Option<EndToEndReport>,
    /// Why the alarm `dropping` is up; empty if it is not.
    pub dropping: Vec<CauseReport>,
    /// Hops that have restarted within the time for which the alarm lasts, as failed setups have shown.
    #[serde(default)]
    pub restarted: Vec<String>,
}

/// The channels of a batch, as Mix 1 says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompanyReport {
    pub channels: u16,
    /// With fewer Mix 1 lets nothing through.
    pub n_min: u16,
    /// The most that a batch has.
    pub seats: u16,
}

/// The state of an entry's meeting (SPEC 9.13.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MeetingReport {
    /// The other end is there.
    Joined,
    /// It is not, or this entry has no channel or too little company.
    Waiting,
    /// Nothing that opens has come in 100 rounds.
    Lost,
}

impl From<MeetingState> for MeetingReport {
    fn from(state: MeetingState) -> MeetingReport {
        match state {
            MeetingState::Joined => MeetingReport::Joined,
            MeetingState::Waiting => MeetingReport::Waiting,
            MeetingState::Lost => MeetingReport::Lost,
        }
    }
}

/// A kind of cause of the alarm `dropping`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CauseKind {
    /// Entry: cells to Mix 1 are lost.
    LostForward,
    /// Entry: cells from Mix 1 are lost.
    LostBackward,
    /// Mix 1, or at a mix the next hop, sends no reports.
    NoReports,
    /// Entry: Mix 1 sends no clock.
    NoClock,
    /// Entry: it has no channel in a batch.
    NoChannel,
    /// Mix: cells of its loops are lost.
    LoopsLost,
    /// Mix: setups of its loops fail.
    LoopSetups,
}

/// What the alarm `dropping` is up for, the latest of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CauseReport {
    pub cause: CauseKind,
    /// How often since the alarm rose.
    pub times: u64,
    /// Seconds since the latest one, and until the alarm ends if none follows.
    #[serde(default)]
    pub ago_s: u64,
    #[serde(default)]
    pub ends_s: u64,
    /// The latest one, for people.
    pub what: String,
}

/// What a hop sees of its batches and neighbours.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PacedHopReport {
    /// Channels of the running batch, and the networks of their entries at Mix 1 (/32 of IPv4, /48 of IPv6).
    pub channels: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefixes: Option<usize>,
    /// Only of Mix 1: channels that a batch of users has room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seats: Option<u16>,
    /// The least of both in the batches of the last hour.
    pub fewest_channels: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fewest_prefixes: Option<usize>,
    /// Clocks of neighbouring hops: `previous` or `next`, and the measurement.
    pub clocks: Vec<(String, ClockReport)>,
    /// Its cells to the next hop, and to the previous one, as these report.
    pub forward: PlacesReport,
    pub backward: PlacesReport,
    /// Only of a mix with loops.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loops: Option<LoopsReport>,
    /// Why the alarm `dropping` of a mix is up; empty if it is not.
    #[serde(default)]
    pub dropping: Vec<CauseReport>,
}

/// Loops of a mix since its start (docs/SPEC.md 9.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoopsReport {
    /// Loops that were set up, one for each batch, and those whose setup was sent and has failed.
    pub set_up: u64,
    pub failed: u64,
    /// Cells that they sent, those of loops whose setup has failed included.
    pub sent: u64,
    /// Cells that were expected back; those of them that did not come in time, and those that came as noise.
    pub places: u64,
    pub lost: u64,
    pub garbled: u64,
    /// Cells that came from the other loop of a pair.
    pub met: u64,
    /// Of the latest batch: from the forward release of a round until its cells came back.
    pub delay_p50_ms: Option<f64>,
    pub delay_p99_ms: Option<f64>,
}

/// A clock against this host's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClockReport {
    /// Positive: it is ahead.
    pub offset_ms: f64,
    pub round_trip_ms: f64,
}

/// Cells of the other end of a meeting, up to the latest one that came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndToEndReport {
    pub places: u64,
    /// Those that were lost anywhere on their way. With repeat, the next cell brings their datagrams.
    pub lost: u64,
    /// Cells that the exit sent in place of lost ones, and must not.
    #[serde(default)]
    pub of_exit: u64,
}

/// Two rounds or more in a row of which no copy came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutagesReport {
    pub count: u64,
    pub longest_ms: u64,
}

/// Places of cells at the node that received them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacesReport {
    pub places: u64,
    /// Those that left with noise.
    pub filled: u64,
    /// Those of the filled ones that did not come.
    pub lost: u64,
    /// The same of the latest 1,000 to 2,000 rounds.
    #[serde(default)]
    pub latest_places: u64,
    #[serde(default)]
    pub latest_lost: u64,
}

impl From<Comparison> for ClockReport {
    fn from(Comparison { offset_ns, round_trip_ns }: Comparison) -> ClockReport {
        ClockReport { offset_ms: ms(offset_ns), round_trip_ms: round_trip_ns as f64 / 1e6 }
    }
}

impl PlacesReport {
    /// Those of the latest 1,000 to 2,000 rounds.
    pub fn lately(self) -> PlacesReport {
        PlacesReport { places: self.latest_places, lost: self.latest_lost, ..PlacesReport::default() }
    }
}

impl From<Reported> for PlacesReport {
    fn from(reported: Reported) -> PlacesReport {
        let (latest_places, latest_lost) = reported.latest();
        let Reported { places, filled, lost, .. } = reported;
        PlacesReport { places, filled, lost, latest_places, latest_lost }
    }
}

impl PacedReport {
    /// `view` is that of an entry's worker, `loops` that of a mix's.
    pub fn new(
        facts: &ClassFacts,
        status: &PacedStatus,
        view: Option<EntryView>,
        loops: Option<mix::LoopsView>,
    ) -> PacedReport {
        let ClassFacts { figures, terms, hops, position } = facts;
        let waits = view.and_then(|view| view.waits);
        let path = PathReport::planned(terms, *hops).measured((terms, *hops, *position), status, waits, loops.as_ref());
        let figures = figures.brief();
        match status {
            PacedStatus::Entry(status) => {
                let entry = Some(PacedEntryReport::new(status, view.unwrap_or_default(), (terms, *hops)));
                PacedReport { figures, entry, hop: None, path }
            }
            PacedStatus::Hop(status) => {
                let hop = PacedHopReport::new(status, loops.unwrap_or_default(), (*position == 1, terms));
                PacedReport { figures, entry: None, hop: Some(hop), path }
            }
        }
    }
}

impl PacedEntryReport {
    fn new(status: &EntryStatus, view: EntryView, (terms, hops): (&PacedTerms, usize)) -> PacedEntryReport {
        let Outages { count, longest, .. } = view.outages;
        let EndToEnd { places, lost, of_exit } = view.of_other_end;
        let cause = |raised| CauseReport::new(raised, status.looked_to, terms);
        PacedEntryReport {
            round: view.running,
            skipped: view.skipped,
            meeting: meeting(status, &view).map(MeetingReport::from),
            has_channel: status.has_channel && view.has_channel,
            next_batch_s: status.next_batch_in.as_secs_f64(),
            joined: status.joined,
            failed: status.failed,
            excused: status.excused,
            company: status.company.map(|company| CompanyReport::new(company, terms.seats)),
            full: None,
            refuses_flows: false,
            lead_ms: status.lead_ns.map(ms),
            lead_age_s: status.lead_age.map(|age| age.as_secs_f64()),
            clock: status.clock.map(ClockReport::from),
            forward: status.forward.into(),
            backward: status.backward.into(),
            outages: (count > 0).then_some(OutagesReport { count, longest_ms: longest * u64::from(terms.period_ms) }),
            end_to_end: (places > 0).then_some(EndToEndReport { places, lost, of_exit }),
            dropping: status.dropping.iter().map(cause).collect(),
            restarted: status
                .restarted
                .iter()
                .filter_map(|hop| NodeRole::at(*hop, hops).map(|role| node_name(role, *hop)))
                .collect(),
        }
    }
}

impl CompanyReport {
    /// What Mix 1 announced, in a class with this many seats.
    pub fn new(Company { channels, n_min }: Company, seats: u16) -> CompanyReport {
        CompanyReport { channels, n_min, seats }
    }

    /// Too few: nothing comes through.
    pub fn is_low(self) -> bool {
        self.channels < self.n_min
    }

    /// All seats are taken.
    pub fn is_full(self) -> bool {
        self.channels >= self.seats
    }

    /// What keeps a user out of a batch without a free seat, and what to do. A corrupt Mix 1 can claim it. `verb` is
    /// `is` or `was`.
    pub fn full(self, verb: &str) -> String {
        let CompanyReport { channels, seats, .. } = self;
        format!("the class {verb} full, {channels} of {seats} seats as mix1 says: the operators can raise `seats`")
    }
}

/// Why an entry has no channel in a batch. Mix 1 does not answer a setup for which it has no seat.
pub fn reason(why: Failure) -> String {
    match why {
        Failure::NoAck => format!("{why}, or users behind your address (NAT) have their share of the seats"),
        Failure::BadAck(_) => format!("{why}, which is down, was restarted, or lacks the bundle of keys"),
        _ => why.to_string(),
    }
}

/// The state of an entry's meeting (SPEC 9.13.7). Without a channel or company nothing can open, and nothing is lost.
pub fn meeting(status: &EntryStatus, view: &EntryView) -> Option<MeetingState> {
    let can_open = status.has_channel && !status.company.is_some_and(Company::is_low);
    let is_new = view.running <= Some(status.company_since + LOST_AFTER);
    view.meeting.map(|state| match state {
        _ if !can_open => MeetingState::Waiting,
        MeetingState::Lost if is_new => MeetingState::Waiting,
        state => state,
    })
}

impl LoopsReport {
    fn new(status: &LoopsStatus, view: &mix::LoopsView) -> LoopsReport {
        let mix::LoopsView { counts, sent, met, delay } = *view;
        LoopsReport {
            set_up: status.set_up,
            failed: status.failed,
            sent,
            places: counts.places,
            lost: counts.lost,
            garbled: counts.garbled,
            met,
            delay_p50_ms: delay.map(|delay| ms(delay.p50 as i64)),
            delay_p99_ms: delay.map(|delay| ms(delay.p99 as i64)),
        }
    }
}

impl PacedHopReport {
    fn new(status: &HopStatus, view: mix::LoopsView, (is_mix_1, terms): (bool, &PacedTerms)) -> PacedHopReport {
        let clock = |NeighbourClock { side, clock }: &NeighbourClock| {
            let who = if *side == wire::ids::Side::Up { "previous" } else { "next" };
            (who.to_owned(), ClockReport::from(*clock))
        };
        let channels = |size: Option<BatchSize>| size.map(|size| size.channels);
        // Only Mix 1 sees prefixes, of which a batch may have none.
        let prefixes = |size: Option<BatchSize>| size.filter(|_| is_mix_1).map(|size| size.prefixes);
        let dropping = |loops: &LoopsStatus| {
            let cause = |raised| CauseReport::new(raised, loops.looked_to, terms);
            loops.dropping.iter().map(cause).collect::<Vec<_>>()
        };
        PacedHopReport {
            channels: channels(status.batch),
            prefixes: prefixes(status.batch),
            seats: is_mix_1.then_some(terms.seats),
            fewest_channels: channels(status.smallest),
            fewest_prefixes: prefixes(status.smallest),
            clocks: status.clocks.iter().map(clock).collect(),
            forward: status.forward.into(),
            backward: status.backward.into(),
            loops: status.loops.as_ref().map(|loops| LoopsReport::new(loops, &view)),
            dropping: status.loops.iter().flat_map(dropping).collect(),
        }
    }
}

/// What the user of an entry does about the alarm `dropping`.
pub const WHAT_TO_DO: &str = "keep the entry running; if `ping` shows less loss, use another link and report it";

/// For how long an alarm lasts after its latest cause.
pub fn alarm_lasts(terms: &PacedTerms) -> Duration {
    Duration::from_millis(ALARM_LASTS * u64::from(terms.period_ms))
}

impl CauseReport {
    /// The alarm has looked for causes up to round `looked_to`.
    fn new(RaisedCause { cause, times, last, .. }: &RaisedCause, looked_to: u64, terms: &PacedTerms) -> CauseReport {
        let (cause, what) = match cause {
            Cause::Lost { direction: Direction::Forward, places, lost } => {
                (CauseKind::LostForward, format!("{lost} of {places} cells to mix1 lost"))
            }
            Cause::Lost { direction: Direction::Backward, places, lost } => {
                (CauseKind::LostBackward, format!("{lost} of {places} cells from mix1 lost"))
            }
            Cause::NoReports => (CauseKind::NoReports, "no reports from mix1".to_owned()),
            Cause::NextReportsNothing => (CauseKind::NoReports, "no reports from the next hop".to_owned()),
            Cause::NoClock => (CauseKind::NoClock, "no clock of mix1 for 40 s".to_owned()),
            Cause::Setup { why, .. } => (CauseKind::NoChannel, format!("no channel: {}", reason(*why))),
            Cause::Loops { places, lost, garbled } => (
                CauseKind::LoopsLost,
                format!("of {places} loop cells {lost} lost from the next hop, {garbled} before that"),
            ),
            Cause::LoopSetups { sent, failed, .. } => {
                (CauseKind::LoopSetups, format!("{failed} of {sent} loops not set up"))
            }
        };
        let ago = Duration::from_millis(looked_to.saturating_sub(*last) * u64::from(terms.period_ms));
        let ends_s = alarm_lasts(terms).saturating_sub(ago).as_secs();
        CauseReport { cause, times: *times, ago_s: ago.as_secs(), ends_s, what }
    }
}

/// With the number of times, if there were several. Losses are tested after every 100 rounds, over 1,000.
impl fmt::Display for CauseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.times {
            0 | 1 => f.write_str(&self.what),
            times => match self.cause {
                CauseKind::LostForward | CauseKind::LostBackward | CauseKind::LoopsLost => {
                    write!(f, "{} (in {times} tests)", self.what)
                }
                _ => write!(f, "{} ({times} times)", self.what),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::cell::Class;
    use wire::paced::PacedClass;

    use super::*;

    fn terms() -> PacedTerms {
        PacedTerms::new(PacedClass::new(Class::S), "voice", 4)
    }

    #[test]
    fn meeting_is_lost_only_where_something_could_open() {
        let state = |has_channel, channels, company_since, running, state| {
            let company = Some(Company { channels, n_min: 8 });
            let status = EntryStatus { has_channel, company, company_since, ..EntryStatus::default() };
            meeting(&status, &EntryView { running: Some(running), meeting: Some(state), ..EntryView::default() })
                .unwrap()
        };
        use MeetingState::{Joined, Lost, Waiting};
        assert_eq!(state(true, 8, 0, 1000, Lost), Lost);
        assert_eq!([state(true, 8, 900, 1000, Lost), state(true, 8, 900, 1001, Lost)], [Waiting, Lost]);
        assert_eq!(state(true, 8, 900, 1000, Joined), Joined);
        for seen in [Joined, Lost, Waiting] {
            assert_eq!([state(true, 7, 0, 1000, seen), state(false, 8, 0, 1000, seen)], [Waiting; 2], "{seen:?}");
        }
        assert_eq!(
            meeting(&EntryStatus::default(), &EntryView::default()),
            None,
            "of a class that serves destinations"
        );
    }

    #[test]
    fn only_mix_1_shows_networks_and_none_of_an_empty_batch() {
        let (of_batch, smallest) = (BatchSize { channels: 3, prefixes: 2 }, BatchSize::default());
        let status = HopStatus {
            clocks: Vec::new(),
            batch: Some(of_batch),
            smallest: Some(smallest),
            forward: Reported::default(),
            backward: Reported::default(),
            loops: None,
        };
        let networks = |is_mix_1| {
            let hop = PacedHopReport::new(&status, mix::LoopsView::default(), (is_mix_1, &terms()));
            assert_eq!((hop.channels, hop.fewest_channels), (Some(3), Some(0)));
            (hop.prefixes, hop.fewest_prefixes)
        };
        assert_eq!([networks(true), networks(false)], [(Some(2), Some(0)), (None, None)]);
    }

    #[test]
    fn setup_without_an_ack_may_lack_a_seat() {
        let what = |why| {
            let cause = Cause::Setup { batch: 7, why };
            CauseReport::new(&RaisedCause { cause, since: 1, last: 1, times: 1 }, 1, &terms()).what
        };
        assert!(
            what(Failure::NoAck)
                .ends_with("ack came in time, or users behind your address (NAT) have their share of the seats")
        );
        assert_eq!(what(Failure::NotReady), "no channel: the entry was not ready in time");
    }

    #[test]
    fn causes_of_one_kind_are_counted() {
        let cause = Cause::Lost { direction: Direction::Forward, places: 1000, lost: 12 };
        let raised = |times| RaisedCause { cause, since: 1, last: 2, times };
        let shown = |times| CauseReport::new(&raised(times), 202, &terms());
        assert_eq!(shown(1).to_string(), "12 of 1000 cells to mix1 lost");
        assert_eq!(shown(7).to_string(), "12 of 1000 cells to mix1 lost (in 7 tests)");
        assert_eq!((shown(7).cause, shown(7).times), (CauseKind::LostForward, 7));
        assert_eq!((shown(7).ago_s, shown(7).ends_s), (2, 653));
    }
}
