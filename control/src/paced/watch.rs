//! What an entry, or a hop, has heard of a paced class, and what it makes of that: events, status, the alarm.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use wire::ids::{LinkId, Side};
use wire::paced::clock::Exchange;
use wire::paced::{Company, Report};

use super::entry_alarm::EntryAlarm;
use super::lead::MEMORY;
use super::loops_alarm::{LoopPlaces, LoopsAlarm};
use super::losses::Places;
use super::status::{BatchSize, Bounds, EntryStatus, HopStatus, NeighbourClock, PacedEvent, Reported};
use super::{Lead, Outcome, PacedConfig, PacedEntry, PacedHop};
use crate::counters::Refusal;

/// A clock that is off by more is reported (SPEC 9.5.7).
const CLOCK_OFF_NS: u64 = 2_000_000;
/// The time over which the smallest size is known.
const HOUR: Duration = Duration::from_secs(3600);

/// What an entry watches.
pub(super) struct EntryWatch {
    pub(super) alarm: EntryAlarm,
    company: Option<Company>,
    company_since: u64,
    forward: Reported,
    backward: Reported,
    joined: u64,
    failed: u64,
    /// The latest batch in which it has a channel, and the one before that.
    latest: Option<u64>,
    before: Option<u64>,
    was_ready: bool,
    has_moved: bool,
    /// Since when no clock cell has answered one of the entry, by its clock, later by the time in which its link was
    /// down since: none was expected then.
    unanswered_since: u64,
    /// When that was looked at, by the same clock.
    followed: u64,
}

impl EntryWatch {
    pub(super) fn new(config: PacedConfig) -> EntryWatch {
        EntryWatch {
            alarm: EntryAlarm::new(config),
            company: None,
            company_since: 0,
            forward: Reported::default(),
            backward: Reported::default(),
            joined: 0,
            failed: 0,
            latest: None,
            before: None,
            was_ready: false,
            has_moved: false,
            unanswered_since: 0,
            followed: 0,
        }
    }

    /// Takes in a report of Mix 1, when the entry sends round `running`.
    ///
    /// # Errors
    /// It is of rounds to come, or impossible.
    pub(super) fn report(&mut self, report: Report, running: u64) -> Result<(), Refusal> {
        let new = self.forward.take(report, Bounds { per_round: self.alarm.cells(), running })?;
        self.alarm.report(report.last, new);
        Ok(())
    }

    /// Takes in what the worker has counted of backward places.
    pub(super) fn backward(&mut self, places: Places) {
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let (first, lost) = (places.first, count(places.lost));
        let last = (first + places.rounds).saturating_sub(1);
        self.backward.add(Report { first, last, places: count(places.places), filled: lost, lost });
        self.alarm.backward(places);
    }

    /// Takes in a company cell of Mix 1, when the entry sends round `running`.
    pub(super) fn company(&mut self, company: Company, running: u64) -> Option<PacedEvent> {
        let before = self.company.replace(company);
        if before.is_some_and(|before| before.is_low()) && !company.is_low() {
            self.company_since = running;
        }
        (before != Some(company)).then_some(PacedEvent::Company(company))
    }

    /// What has become of a channel.
    pub(super) fn decided(&mut self, outcome: &Outcome) -> PacedEvent {
        match *outcome {
            Outcome::Ready { batch, .. } => {
                self.joined += 1;
                (self.before, self.latest) = (self.latest, Some(batch));
                PacedEvent::Joined { batch }
            }
            Outcome::Failed { batch, why, .. } => {
                self.failed += 1;
                self.alarm.failed(batch, why);
                PacedEvent::NotJoined { batch, why }
            }
        }
    }

    fn has_channel(&self, batch: u64) -> bool {
        [self.before, self.latest].contains(&Some(batch))
    }

    /// The next batch in which it can have a channel, and the time until it begins.
    fn next(&self, entry: &PacedEntry, lead: &Lead, time: u64) -> (u64, Duration) {
        let coming = entry.coming_batch();
        let batch = if entry.is_setting_up() || self.has_channel(coming) { coming } else { coming + 1 };
        let begin = lead.send_at(entry.config().times.first(batch));
        (batch, Duration::from_nanos(begin.saturating_sub(time)))
    }

    /// The entry seals a round, or is about to, when its clock shows `time`; [`PacedEntry::advance`] knows it.
    pub(super) fn advance(
        &mut self,
        entry: &PacedEntry,
        (lead, time): (&Lead, u64),
        round: u64,
        is_up: bool,
    ) -> Vec<PacedEvent> {
        let is_ready = is_up && lead.lead_ns().is_some();
        self.follow_clock(lead.sampled_at().unwrap_or(0), time, is_up);
        self.alarm.advance(round, is_ready);
        let mut events = self.alarm.events();
        let was_ready = std::mem::replace(&mut self.was_ready, is_ready);
        if is_ready && !was_ready && !self.has_channel(entry.config().times.batch_of(round)) {
            let (batch, wait) = self.next(entry, lead, time);
            events.push(PacedEvent::JoinsAt { batch, wait });
        }
        let had_moved = std::mem::replace(&mut self.has_moved, lead.has_moved());
        if self.has_moved && !had_moved {
            let lead_ns = lead.lead_ns().unwrap_or(0);
            events.push(PacedEvent::LeadMoved { lead_ns });
        }
        events
    }

    /// The latest answer to a clock cell of the entry came at `answered`. The lead follows those of a time that is as
    /// long as the one after which this raises the alarm, and again after each such time more.
    fn follow_clock(&mut self, answered: u64, time: u64, is_up: bool) {
        let passed = time.saturating_sub(std::mem::replace(&mut self.followed, time));
        if self.unanswered_since == 0 {
            self.unanswered_since = time;
        } else if !is_up {
            self.unanswered_since += passed;
        }
        self.unanswered_since = self.unanswered_since.max(answered);
        if time >= self.unanswered_since + MEMORY {
            self.unanswered_since = time;
            self.alarm.clock_is_missing();
        }
    }

    pub(super) fn status(&self, entry: &PacedEntry, (lead, time): (&Lead, u64), exchange: &Exchange) -> EntryStatus {
        let (next_batch, next_batch_in) = self.next(entry, lead, time);
        EntryStatus {
            lead_ns: lead.lead_ns(),
            lead_age: lead.sampled_at().map(|at| Duration::from_nanos(time.saturating_sub(at))),
            clock: exchange.best(),
            company: self.company,
            company_since: self.company_since,
            forward: self.forward,
            backward: self.backward,
            joined: self.joined,
            failed: self.failed,
            excused: self.alarm.excused(),
            has_channel: self.has_channel(entry.coming_batch() - 1),
            next_batch,
            next_batch_in,
            dropping: self.alarm.raised().to_vec(),
            looked_to: self.alarm.running(),
            restarted: self.alarm.restarted_hops(),
        }
    }
}

/// What a hop watches.
pub(super) struct HopWatch {
    /// Places in a round of the previous link and of the next one, at most.
    places: [u64; 2],
    /// The link on which the latest report of the next hop came.
    next_link: Option<LinkId>,
    forward: Reported,
    backward: Reported,
    /// Links whose clock is off.
    clocks_off: HashSet<LinkId>,
    /// It has seen a batch from its setups on.
    has_followed: bool,
    /// Batches of the last hour and when they began, the oldest first. The last one is the running one.
    sizes: VecDeque<(Duration, BatchSize)>,
    /// Only of a mix with loops.
    loops: Option<Box<LoopsAlarm>>,
}

impl HopWatch {
    /// Of the hop at this position, which starts when backward round `released` is the last one due.
    pub(super) fn new(config: &PacedConfig, position: usize, released: u64) -> HopWatch {
        let places = |link| config.seats(link) as u64 * u64::from(config.terms.cells);
        let places = [places(position), places(position + 1)];
        let has_loops = position < config.shape.hops() && config.terms.loops > 0;
        let loops = has_loops.then(|| Box::new(LoopsAlarm::new(config.clone(), position, released)));
        HopWatch {
            places,
            next_link: None,
            forward: Reported::default(),
            backward: Reported::default(),
            clocks_off: HashSet::new(),
            has_followed: false,
            sizes: VecDeque::new(),
            loops,
        }
    }

    /// Mix: the worker has counted places of loops.
    pub(super) fn loops(&mut self, places: LoopPlaces) -> Vec<PacedEvent> {
        self.loops.as_mut().map_or_else(Vec::new, |loops| loops.count(places))
    }

    /// Mix: what has become of loops.
    pub(super) fn loops_decided(&mut self, outcomes: &[Outcome]) {
        self.loops.iter_mut().for_each(|loops| loops.decided(outcomes));
    }

    /// Takes in a report of a neighbouring hop. `released` is the last round that this hop released in the direction of
    /// the reported cells: the neighbour releases each round later.
    ///
    /// # Errors
    /// It is of rounds to come, or impossible.
    pub(super) fn report(
        &mut self,
        (link, side): (LinkId, Side),
        report: Report,
        released: u64,
    ) -> Result<(), Refusal> {
        let [up, down] = self.places;
        match side {
            Side::Up => _ = self.backward.take(report, Bounds { per_round: up, running: released })?,
            Side::Down => {
                let new = self.forward.take(report, Bounds { per_round: down, running: released })?;
                let is_other = self.next_link.replace(link) != Some(link);
                match &mut self.loops {
                    // What it adds may be of the link before.
                    Some(loops) if is_other => loops.link_replaced(),
                    Some(loops) => new.iter().for_each(|new| loops.link_reported(new.places, new.lost)),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// A clock cell of a neighbouring hop has come.
    pub(super) fn clock(&mut self, (link, side): (LinkId, Side), exchange: &Exchange) -> Option<PacedEvent> {
        // The first round trips may have waited for a node that starts.
        let offset_ns = exchange.best().filter(|_| exchange.is_settled())?.offset_ns;
        let is_off = offset_ns.unsigned_abs() > CLOCK_OFF_NS;
        let has_changed = if is_off { self.clocks_off.insert(link) } else { self.clocks_off.remove(&link) };
        (is_off && has_changed).then_some(PacedEvent::ClockOff { side, offset_ns })
    }

    pub(super) fn forget(&mut self, link: LinkId) {
        self.clocks_off.remove(&link);
        if self.next_link.take_if(|next| *next == link).is_some() {
            self.loops.iter_mut().for_each(|loops| loops.link_replaced());
        }
    }

    /// The hop goes on to this forward round at `now`, in a moment. If then setups of another batch may come, those of
    /// the one before are complete, and it runs.
    pub(super) fn begins(&mut self, hop: &PacedHop, round: u64, now: Duration) {
        let (batch, next) = (hop.coming_batch(), hop.config().coming(round));
        if next <= batch || !std::mem::replace(&mut self.has_followed, true) {
            return;
        }
        // A hop that has slept for longer has no channels.
        let is_next = batch + 1 == next;
        let size = || BatchSize { channels: hop.accepted(), prefixes: hop.prefixes() };
        self.sizes.push_back((now, if is_next { size() } else { BatchSize::default() }));
        while self.sizes.len() > 1 && self.sizes[1].0 + HOUR <= now {
            self.sizes.pop_front();
        }
    }

    pub(super) fn status<'a>(&self, exchanges: impl Iterator<Item = (Side, &'a Exchange)>) -> HopStatus {
        let clock = |(side, exchange): (Side, &Exchange)| Some(NeighbourClock { side, clock: exchange.best()? });
        let sizes = || self.sizes.iter().map(|(_, size)| *size);
        HopStatus {
            clocks: exchanges.filter_map(clock).collect(),
            batch: sizes().next_back(),
            smallest: sizes().reduce(|a, b| BatchSize {
                channels: a.channels.min(b.channels),
                prefixes: a.prefixes.min(b.prefixes),
            }),
            forward: self.forward,
            backward: self.backward,
            loops: self.loops.as_deref().map(LoopsAlarm::status),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use wire::cell::Direction;
    use wire::paced::clock::ClockCell;
    use wire::paced::{AHEAD_MAX, PacedTerms};
    use wire::setup::Suite;

    use super::super::status::Cause;
    use super::super::tests::terms;
    use super::*;

    fn watch() -> EntryWatch {
        EntryWatch::new(PacedConfig::new([0xcc; 32], terms(), (4, Suite::Hybrid, 10)))
    }

    /// Totals of one place in a round since round `first`.
    fn report(first: u64, last: u64, lost: u32) -> Report {
        Report { first, last, places: (last + 1 - first) as u32, filled: lost, lost }
    }

    #[test]
    fn losses_of_a_lost_report_come_with_the_next() {
        let mut watch = watch();
        for (last, lost) in [(1099, 2), (1199, 2), (1399, 7)] {
            assert!(watch.alarm.events().is_empty());
            assert_eq!(watch.report(report(1000, last, lost), last), Ok(()));
        }
        let cause = Cause::Lost { direction: Direction::Forward, places: 300, lost: 5 };
        assert_eq!(watch.alarm.events(), [PacedEvent::Dropping(cause)]);
        assert_eq!((watch.forward.places, watch.forward.lost), (300, 5));
    }

    #[test]
    fn totals_that_begin_again_count_from_there() {
        let mut watch = watch();
        // The last sender's clock is behind that of the one before.
        let reports = [(0, 999, 500), (1000, 1099, 1), (1000, 1099, 1), (1000, 1199, 3), (600, 699, 2)];
        for (first, last, lost) in reports {
            assert_eq!(watch.report(report(first, last, lost), 1200), Ok(()));
        }
        assert_eq!(watch.forward.lost, 1 + 2 + 2);
    }

    #[test]
    fn company_counts_from_the_round_in_which_it_was_enough_again() {
        let mut watch = watch();
        let mut since = |channels, running| {
            watch.company(Company { channels, n_min: 8 }, running);
            watch.company_since
        };
        assert_eq!([since(9, 100), since(8, 228)], [0, 0], "it was never too small");
        assert_eq!([since(7, 356), since(8, 484), since(9, 612), since(2, 740)], [0, 484, 484, 484]);
        assert_eq!(since(8, 868), 868);
    }

    #[test]
    fn reports_that_contradict_each_other_are_refused() {
        let mut watch = watch();
        let base = Report { first: 100, last: 199, places: 100, filled: 10, lost: 5 };
        assert_eq!(watch.report(base, 200), Ok(()));
        let after = Report { last: 299, places: 200, filled: 20, lost: 10, ..base };
        let bad = [
            Report { places: 105, ..after },
            Report { places: 201, ..after },
            Report { places: 99, ..after },
            Report { filled: 9, lost: 4, ..after },
            Report { filled: 12, ..after },
            Report { lost: 4, ..after },
            Report { first: 300, ..after },
            Report { last: 200 + crate::paced::AHEAD_MAX, ..after },
        ];
        for report in bad {
            assert_eq!(watch.report(report, 200), Err(Refusal::CellMalformed), "{report:?}");
        }
        assert_eq!(watch.report(after, 200 + 100), Ok(()));
        assert_eq!(watch.forward.filled, 10);
    }

    #[test]
    fn hop_refuses_reports_of_more_than_it_has_seats_for() {
        let config = PacedConfig::new([0xcc; 32], terms(), (4, Suite::Hybrid, 10));
        let (up, down) = ((LinkId(1), Side::Up), (LinkId(2), Side::Down));
        for (from, seats) in [(up, config.seats(2)), (down, config.seats(3))] {
            let mut watch = HopWatch::new(&config, 2, 0);
            let most = 100 * seats as u32 * u32::from(config.terms.cells);
            let base = Report { first: 100, last: 199, places: 10, filled: 0, lost: 0 };
            let next = Report { last: 299, places: 10 + most, ..base };
            assert_eq!(watch.report(from, base, 200), Ok(()));
            let bad = [
                Report { places: 11 + most, ..next },
                Report { places: 9, ..next },
                Report { filled: most + 1, ..next },
                Report { lost: 1, ..next },
                Report { last: 300 + AHEAD_MAX, ..next },
                // Of a hop that has restarted.
                Report { first: 200, places: most + 1, ..next },
                Report { first: 300, ..next },
            ];
            for report in bad {
                assert_eq!(watch.report(from, report, 300), Err(Refusal::CellMalformed), "{report:?}");
            }
            assert_eq!(watch.report(from, next, 300), Ok(()));
            assert_eq!(watch.forward.places + watch.backward.places, u64::from(most));
        }
    }

    #[test]
    fn report_on_another_link_says_nothing_of_its_share() {
        let config = PacedConfig::new([0xcc; 32], PacedTerms { loops: 2, ..terms() }, (4, Suite::Hybrid, 10));
        let mut watch = HopWatch::new(&config, 1, 0);
        let share = |watch: &HopWatch| watch.loops.as_ref().unwrap().link_share();
        let mut report = |link, last, lost| {
            let places = 7 * (last as u32 - 99);
            let report = Report { first: 100, last, places, filled: lost, lost };
            assert_eq!(watch.report((LinkId(link), Side::Down), report, last), Ok(()));
            // Backward all links lose as much.
            let (first, rounds, places, lost, garbled) = (last, 1, 0, 0, 0);
            _ = watch.loops(LoopPlaces { first, rounds, places, lost, garbled, link_places: 700, link_lost: 7 });
            share(&watch)
        };
        assert_eq!(report(1, 199, 0), 1e-4, "it is the base of the next one");
        assert_eq!(report(1, 299, 7), 1e-2);
        assert_eq!(report(2, 399, 14), 1e-4, "it may be that of the link before");
        assert_eq!(report(2, 499, 21), 1e-2);
    }

    #[test]
    fn entry_without_a_first_answer_raises_it_after_40_s() {
        const S: u64 = 1_000_000_000;
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let config = PacedConfig::new([0xcc; 32], terms(), (4, Suite::Hybrid, 10));
        let (mut watch, lead) = (EntryWatch::new(config.clone()), Lead::new(&config.terms, 0));
        let entry = PacedEntry::new(config, &mut rng, 1000);
        let mut events = |time| watch.advance(&entry, (&lead, time), 1000, true);
        assert_eq!((events(100 * S), events(140 * S - 1)), (Vec::new(), Vec::new()));
        assert_eq!(events(140 * S), [PacedEvent::Dropping(Cause::NoClock)]);
    }

    #[test]
    fn clock_cells_without_an_answer_for_40_s_raise_it() {
        const S: u64 = 1_000_000_000;
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let config = PacedConfig::new([0xcc; 32], terms(), (4, Suite::Hybrid, 10));
        let (mut watch, mut lead) = (EntryWatch::new(config.clone()), Lead::new(&config.terms, 0));
        let entry = PacedEntry::new(config, &mut rng, 1000);
        let sample = |lead: &mut Lead, at| lead.sample(at, ClockCell { sent: 1, peer: at, received: at });
        let raised = |watch: &mut EntryWatch, lead: &Lead, time: u64, is_up| {
            let events = watch.advance(&entry, (lead, time), 1000, is_up);
            events.contains(&PacedEvent::Dropping(Cause::NoClock))
        };
        assert!(!raised(&mut watch, &lead, 50 * S, true) && !raised(&mut watch, &lead, 89 * S, true));
        sample(&mut lead, 100 * S);
        assert!(!raised(&mut watch, &lead, 139 * S, true));
        // Nothing is expected while its link is down. That excuses no time before.
        assert!(!raised(&mut watch, &lead, 500 * S, false));
        assert!(!raised(&mut watch, &lead, 501 * S - 1, true));
        sample(&mut lead, 501 * S - 1);
        assert!(!raised(&mut watch, &lead, 540 * S, true) && !raised(&mut watch, &lead, 540 * S + 10, false));
        assert!(!raised(&mut watch, &lead, 541 * S + 8, true));
        assert!(raised(&mut watch, &lead, 541 * S + 9, true));
        let status = watch.status(&entry, (&lead, 561 * S - 1), &Exchange::default());
        assert_eq!(status.lead_age, Some(Duration::from_secs(60)));
        assert!(!raised(&mut watch, &lead, 581 * S + 9, true), "it is up");
        assert_eq!(watch.alarm.raised()[0].times, 2);
    }
}
