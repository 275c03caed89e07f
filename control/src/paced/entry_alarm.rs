//! The alarm `dropping`: more is lost than links explain, so somebody may drop cells on purpose (SPEC 9.15.3).
//!
//! Times are rounds here. [`EntryAlarm`] is that of an entry: a test of the losses of each direction ([`LossTest`]),
//! reports and clock cells that are missing, and setups that failed. It reports and stops nothing.

use std::collections::{BTreeMap, VecDeque};

use wire::cell::Direction;
use wire::paced::{BEHIND_MAX, Phase, REPORT_EVERY, Report};
use wire::setup::HopPublic;

use super::PacedConfig;
use super::losses::{BEFORE, LossTest, Places};
use super::own::Failure;
use super::raised::RaisedCauses;
use super::status::{Cause, PacedEvent, RaisedCause};

/// Reports in a row that are late.
const REPORTS_LATE: u64 = 5;
/// Rounds after the start of a batch in which all places of the phases before it are counted.
const COUNTED_AFTER: u64 = BEHIND_MAX + 2 * REPORT_EVERY;
/// Bundles whose keys are compared.
const BUNDLES: usize = 8;

/// A setup that failed, until it is known whether that is a cause.
struct FailedSetup {
    batch: u64,
    why: Failure,
    /// The round in which that was known.
    at: u64,
    /// The round in which the places around it are counted, and that by which every hop that was restarted would have
    /// signed a bundle.
    counted: u64,
    signed: u64,
    /// The entry was not ready for it, or in most of a phase that it needed.
    was_unready: bool,
    /// A bundle that was signed later has the same keys: no hop was restarted.
    is_confirmed: bool,
}

impl FailedSetup {
    /// True when the places around it are counted, and a bundle has shown that no hop was restarted, or would have.
    fn is_decided(&self, round: u64) -> bool {
        round >= if self.is_confirmed { self.counted } else { self.signed }
    }
}

/// The setup keys of a bundle.
struct Bundle {
    interval: u64,
    /// The round in which it came.
    came: u64,
    hops: Vec<HopPublic>,
}

/// A restart of a hop that excuses failed setups.
#[derive(Clone, Copy)]
struct Restart {
    /// The interval of the bundle that showed it. Setups with bundles of earlier ones may fail.
    interval: u64,
    /// The round in which it came.
    at: u64,
}

/// The alarm of an entry.
pub(crate) struct EntryAlarm {
    config: PacedConfig,
    running: u64,
    forward: LossTest,
    backward: LossTest,
    /// The last round of the latest report that came in time; none while none is expected.
    reported: Option<u64>,
    /// The last round of the latest report that was late.
    late: u64,
    /// The coming batch, and the rounds of phases 1 and 2h in which the entry was not ready.
    unready: (u64, [u64; 2]),
    /// The round in which that has last excused a failed setup.
    link_excused: Option<u64>,
    failed: Vec<FailedSetup>,
    /// The latest ones, as they came.
    bundles: VecDeque<Bundle>,
    /// The latest restart that excused a failed setup, by hop.
    restarts: BTreeMap<usize, Restart>,
    /// Setups that were excused.
    excused: u64,
    raised: RaisedCauses,
}

impl EntryAlarm {
    pub(crate) fn new(config: PacedConfig) -> EntryAlarm {
        let (forward, backward, failed, bundles, restarts, raised) = Default::default();
        let (running, reported, late, unready, link_excused, excused) = Default::default();
        EntryAlarm {
            config,
            running,
            forward,
            backward,
            reported,
            late,
            unready,
            link_excused,
            failed,
            bundles,
            restarts,
            excused,
            raised,
        }
    }

    /// A report of Mix 1 on the rounds up to `last` has come. `new` is what it adds to those before it, if anything.
    pub(crate) fn report(&mut self, last: u64, new: Option<Report>) {
        if let Some(reported) = &mut self.reported
            && self.running <= last + REPORT_EVERY
        {
            *reported = last.max(*reported);
        }
        let Some(Report { first, last, places, filled, lost }) = new else { return };
        let rounds = last + 1 - first;
        // Of more rounds than are remembered: it would be long to test.
        if rounds > BEFORE {
            return;
        }
        let floored = u64::from(filled - lost);
        let places = Places { first, rounds, places: u64::from(places) - floored, lost: lost.into() };
        if let Some(excess) = self.forward.add(places) {
            self.raise_lost(Direction::Forward, excess);
        }
    }

    /// Places of a channel in a round.
    pub(super) fn cells(&self) -> u64 {
        self.config.terms.cells.into()
    }

    /// Takes in what the worker has counted of backward places.
    pub(crate) fn backward(&mut self, places: Places) {
        if let Some(excess) = self.backward.add(places) {
            self.raise_lost(Direction::Backward, excess);
        }
    }

    fn raise_lost(&mut self, direction: Direction, (places, lost): (u64, u64)) {
        self.raise(Cause::Lost { direction, places, lost });
    }

    /// The entry, which was ready, has no channel in a batch that begins now or soon.
    pub(crate) fn failed(&mut self, batch: u64, why: Failure) {
        // The chain may have just started, or this entry: there was no bundle before that either.
        let (needed, phase) = (self.config.interval_of(batch), self.config.rounds_of(batch, Phase::Setup(1)));
        let was_there = |bundle: &Bundle| bundle.interval <= needed && bundle.came < phase.start;
        let is_start = why == Failure::NoBundle && !self.bundles.iter().any(was_there);
        if !is_start {
            let (of, rounds) = self.unready;
            let is_most = of == batch && rounds.into_iter().any(|rounds| 2 * rounds > self.config.times.phase_len());
            let was_unready = is_most || why == Failure::NotReady;
            let (at, [counted, signed]) = (self.running, decided_at(&self.config, batch));
            self.failed.push(FailedSetup { batch, why, at, counted, signed, was_unready, is_confirmed: false });
        }
    }

    /// True if the entry was not ready for a setup. That excuses one in 65,536 rounds: whoever keeps handshakes from an
    /// entry chooses when it is not ready.
    fn link_excuses(&mut self, &FailedSetup { batch, was_unready, .. }: &FailedSetup) -> bool {
        let has_excused = self.link_excused.is_some_and(|at| self.running < at + BEFORE);
        let excuses = was_unready && !has_excused;
        if excuses {
            self.link_excused = Some(self.running);
            self.excused += 1;
            self.raised.say(PacedEvent::SetupExcused { hop: None, batch });
        }
        excuses
    }

    /// Compares the setup keys of a bundle with those of the setups that failed. A hop that was restarted has others.
    pub(crate) fn bundle(&mut self, interval: u64, hops: &[HopPublic]) {
        let failed = std::mem::take(&mut self.failed);
        for mut setup in failed {
            match self.restarted(&setup, interval, hops) {
                Some(hop) => {
                    self.excused += 1;
                    self.raised.say(PacedEvent::SetupExcused { hop: Some(hop), batch: setup.batch });
                }
                None => {
                    // Hops sign from a fifth of an interval before it.
                    let PacedConfig { times, interval_ms, .. } = &self.config;
                    let signed_ms = (interval * interval_ms).saturating_sub(interval_ms / 5);
                    setup.is_confirmed |= signed_ms > times.begin(setup.at) / 1_000_000;
                    self.failed.push(setup);
                }
            }
        }
        self.bundles.push_back(Bundle { interval, came: self.running, hops: hops.to_vec() });
        if self.bundles.len() > BUNDLES {
            self.bundles.pop_front();
        }
    }

    /// The hop whose restart, as a bundle shows it, excuses a failed setup. One restart of a hop does so in 65,536
    /// rounds: a corrupt hop can publish new keys as often as it likes.
    fn restarted(&mut self, setup: &FailedSetup, interval: u64, hops: &[HopPublic]) -> Option<usize> {
        // All hops had the same keys after it failed.
        if setup.is_confirmed {
            return None;
        }
        let earlier = self.config.interval_of(setup.batch).min(interval.saturating_sub(1));
        let used = self.bundles.iter().rev().find(|bundle| bundle.interval <= earlier)?;
        let others = (1..).zip(used.hops.iter().zip(hops)).filter(|(_, (a, b))| a.setup != b.setup);
        let others: Vec<usize> = others.map(|(hop, _)| hop).collect();
        // All hops have new keys in every epoch.
        if others.len() == hops.len() {
            return None;
        }
        let latest = |hop: &usize| self.restarts.get(hop).filter(|latest| self.running < latest.at + BEFORE);
        let excuses = |hop: &usize| latest(hop).is_none_or(|latest| used.interval < latest.interval);
        let hop = others.iter().copied().find(excuses)?;
        let news: Vec<usize> = others.into_iter().filter(|hop| latest(hop).is_none()).collect();
        self.restarts.extend(news.into_iter().map(|hop| (hop, Restart { interval, at: self.running })));
        Some(hop)
    }

    /// The entry goes on at this round: its lead has jumped. Causes and excuses are as old as before, so whoever moves
    /// its time ends no alarm.
    pub(crate) fn jumps_to(&mut self, round: u64) {
        let moved = |at: u64| (at + round).saturating_sub(self.running);
        self.raised.each(|one| (one.since, one.last) = (moved(one.since), moved(one.last)));
        self.late = moved(self.late);
        self.reported = self.reported.map(moved);
        for setup in &mut self.failed {
            (setup.at, setup.counted, setup.signed) = (moved(setup.at), moved(setup.counted), moved(setup.signed));
        }
        self.link_excused = self.link_excused.map(moved);
        self.restarts.values_mut().for_each(|restart| restart.at = moved(restart.at));
        self.running = round;
    }

    /// The entry seals this round, or is about to. `is_ready` as for [`super::PacedEntry::advance`].
    pub(crate) fn advance(&mut self, round: u64, is_ready: bool) {
        let passed = round.saturating_sub(self.running);
        self.running = round;
        self.follow_link(round, is_ready);
        self.follow_reports(round, passed, is_ready);
        while let Some(at) = self.failed.iter().position(|setup| setup.is_decided(round)) {
            let setup = self.failed.remove(at);
            if !self.losses_explain(setup.batch) && !self.link_excuses(&setup) {
                self.raise(Cause::Setup { batch: setup.batch, why: setup.why });
            }
        }
        self.raised.expire(round);
    }

    fn follow_link(&mut self, round: u64, is_ready: bool) {
        let batch = self.config.times.batch_of(round) + 1;
        if self.unready.0 != batch {
            self.unready = (batch, [0; 2]);
        }
        for (phase, rounds) in [Phase::Setup(1), Phase::Ack(1)].into_iter().zip(&mut self.unready.1) {
            let is_in = self.config.rounds_of(batch, phase).contains(&round);
            *rounds += u64::from(is_in && !is_ready);
        }
    }

    /// Rounds in which the entry is not ready do not count, but they excuse no others: whoever ends its link for a
    /// moment now and then would keep all reports from it.
    fn follow_reports(&mut self, round: u64, passed: u64, is_ready: bool) {
        let last_due = |round: u64| ((round + 1) / REPORT_EVERY * REPORT_EVERY).saturating_sub(1);
        self.reported = match self.reported {
            Some(reported) => Some(last_due(round).min(reported + if is_ready { 0 } else { passed })),
            None => is_ready.then(|| last_due(round)),
        };
        let late = last_due(round.saturating_sub(REPORT_EVERY));
        if self.reported.is_some_and(|reported| late >= reported + REPORTS_LATE * REPORT_EVERY) && late > self.late {
            self.late = late;
            self.raise(Cause::NoReports);
        }
    }

    /// No clock cell of Mix 1 has answered one of the entry for long.
    pub(crate) fn clock_is_missing(&mut self) {
        self.raise(Cause::NoClock);
    }

    /// True if more than half of the places of the phase of its setup, or of its ack, were lost.
    fn losses_explain(&self, batch: u64) -> bool {
        let half = self.config.times.phase_len() * u64::from(self.config.terms.cells) / 2;
        let lost = |test: &LossTest, phase| test.lost_in(self.config.rounds_of(batch, phase));
        lost(&self.forward, Phase::Setup(1)) > half || lost(&self.backward, Phase::Ack(1)) > half
    }

    /// Raises it for this cause, or keeps it up.
    fn raise(&mut self, cause: Cause) {
        self.raised.raise(cause, self.running);
    }

    /// Failed setups that restarts of hops, or the entry's link, have excused.
    pub(crate) fn excused(&self) -> u64 {
        self.excused
    }

    /// The causes for which it is up; none if it is not.
    pub(crate) fn raised(&self) -> &[RaisedCause] {
        self.raised.up()
    }

    /// What has happened since the last call.
    pub(crate) fn events(&mut self) -> Vec<PacedEvent> {
        self.raised.events()
    }
}

/// When the places around a setup that failed are counted, and when every hop that was restarted would have signed a
/// bundle.
fn decided_at(config: &PacedConfig, batch: u64) -> [u64; 2] {
    let interval = config.times.round_at(config.interval_ms * 1_000_000);
    [config.times.first(batch), config.times.first(batch + 1) + 2 * interval].map(|round| round + COUNTED_AFTER)
}

#[cfg(test)]
mod tests {
    use wire::kdf::Secret;
    use wire::setup::{SetupKey, Suite};

    use super::super::tests::terms;
    use super::*;

    const BATCH: u64 = 1000;
    const FORWARD: Direction = Direction::Forward;
    const BACKWARD: Direction = Direction::Backward;

    /// The places of 100 rounds.
    fn places_of(first: u64, filled: u32, lost: u32) -> Report {
        Report { first, last: first + 99, places: 100, filled, lost }
    }

    fn keys(seed: u8) -> HopPublic {
        let key = SetupKey::generate(Suite::X25519, Secret::new([seed; 32]));
        HopPublic { setup: key.public(), descriptor_hash: [0; 32] }
    }

    /// The bundle of an interval in which hop 2 has keys of this number, and the others have theirs.
    fn bundle(number: u8) -> Vec<HopPublic> {
        [1, number, 3, 4].map(keys).into()
    }

    /// An alarm that has heard of everything up to this round.
    struct Entry {
        alarm: EntryAlarm,
        round: u64,
        events: Vec<PacedEvent>,
    }

    impl Entry {
        /// At the begin of a batch, with the bundle for it.
        fn new() -> Entry {
            let config = PacedConfig::new([0xcc; 32], terms(), (4, Suite::Hybrid, 10));
            let round = config.times.first(BATCH - 1);
            let mut alarm = EntryAlarm::new(config);
            alarm.bundle(alarm.config.interval_of(BATCH), &bundle(2));
            Entry { alarm, round, events: Vec::new() }
        }

        /// Until this round; rounds of these lose all their places.
        fn run(&mut self, end: u64, loses: impl Fn(Direction, u64) -> bool, has_reports: bool, is_ready: bool) {
            while self.round < end {
                let round = self.round;
                self.alarm.advance(round, is_ready);
                // Reports are there 30 rounds later, counts of backward places 256 rounds.
                if has_reports && (round - 29).is_multiple_of(100) {
                    let first = round - 129;
                    let lost = (first..first + 100).filter(|round| loses(FORWARD, *round)).count() as u32;
                    self.alarm.report(first + 99, Some(places_of(first, lost, lost)));
                }
                if (round - 56).is_multiple_of(100) {
                    let first = round - 356;
                    let lost = (first..first + 100).filter(|round| loses(BACKWARD, *round)).count() as u64;
                    self.alarm.backward(Places { first, rounds: 100, places: 100, lost });
                }
                self.events.extend(self.alarm.events());
                self.round += 1;
            }
        }

        fn quiet(&mut self, rounds: u64) {
            self.run(self.round + rounds, |_, _| false, true, true);
        }

        /// The setup for [`BATCH`] fails, after this has been lost.
        fn fail(&mut self, loses: impl Fn(Direction, u64) -> bool + Copy) {
            let first = self.alarm.config.times.first(BATCH);
            self.run(first, loses, true, true);
            self.alarm.failed(BATCH, Failure::NoAck);
            self.run(first + 512, loses, true, true);
        }

        /// A bundle comes, of the first interval that is signed later.
        fn bundle(&mut self, number: u8) {
            let interval = self.alarm.config.times.begin(self.round) / 10_000_000_000 + 2;
            self.alarm.bundle(interval, &bundle(number));
        }

        fn setup_causes(&self) -> usize {
            self.events.iter().filter(|event| matches!(event, PacedEvent::Dropping(Cause::Setup { .. }))).count()
        }
    }

    #[test]
    fn dropping_is_raised_once_for_each_direction_and_ends() {
        for direction in [FORWARD, BACKWARD] {
            let mut entry = Entry::new();
            entry.quiet(1000);
            assert_eq!(entry.events, []);
            let begin = entry.round;
            entry.run(begin + 1500, |of, round| of == direction && round.is_multiple_of(50), true, true);
            let [PacedEvent::Dropping(Cause::Lost { direction: found, places: 1000, lost })] = entry.events[..] else {
                panic!("{direction:?}: {:?}", entry.events)
            };
            assert!(found == direction && (5..=6).contains(&lost));
            let alert = entry.alarm.raised()[0];
            assert!(alert.since < begin + 800 && alert.last > begin + 1300, "{alert:?} from {begin}");
            assert_eq!(alert.times, (alert.last - alert.since) / 100 + 1, "each test since then counts");
            entry.quiet(BEFORE);
            assert_eq!(entry.events.len(), 1);
            entry.quiet(2000);
            assert_eq!(entry.events[1..], [PacedEvent::DroppingEnded]);
            assert_eq!(entry.alarm.raised(), []);
        }
    }

    #[test]
    fn places_that_the_floor_fills_do_not_count() {
        let mut alarm = Entry::new().alarm;
        let mut report = |first, filled, lost| {
            alarm.report(first + 99, Some(places_of(first, filled, lost)));
        };
        report(0, 100, 0);
        report(100, 100, 1);
        report(200, 1, 1);
        assert_eq!(alarm.events(), []);
        assert_eq!(alarm.forward.counts_in(0..u64::MAX).map(|count| count.places).collect::<Vec<_>>(), [0, 1, 100]);
    }

    #[test]
    fn five_late_reports_in_a_row_raise_it() {
        let mut entry = Entry::new();
        entry.quiet(1000);
        // One that is not there 100 rounds after it was due.
        let due = entry.round / 100 * 100 + 99;
        entry.run(due + 400 + 100, |_, _| false, false, true);
        assert_eq!(entry.events, []);
        entry.run(due + 400 + 101, |_, _| false, false, true);
        assert_eq!(entry.events, [PacedEvent::Dropping(Cause::NoReports)]);
        entry.run(entry.round + 300, |_, _| false, false, true);
        assert_eq!(entry.alarm.raised()[0].times, 4, "one more for each report");

        let mut entry = Entry::new();
        entry.quiet(1000);
        let due = entry.round / 100 * 100 + 99;
        entry.run(due + 102, |_, _| false, false, true);
        entry.alarm.report(due, Some(places_of(due - 99, 0, 0)));
        entry.run(due + 501, |_, _| false, false, true);
        assert_eq!(entry.events, [PacedEvent::Dropping(Cause::NoReports)], "it came too late");
    }

    #[test]
    fn no_report_is_missing_while_the_link_is_down() {
        let mut entry = Entry::new();
        entry.quiet(1000);
        entry.run(entry.round + 2000, |_, _| false, false, false);
        entry.quiet(2000);
        assert_eq!(entry.events, []);
    }

    #[test]
    fn moments_without_the_link_hide_no_missing_reports() {
        let mut entry = Entry::new();
        entry.quiet(1000);
        for _ in 0..20 {
            entry.run(entry.round + 49, |_, _| false, false, true);
            entry.run(entry.round + 1, |_, _| false, false, false);
        }
        assert_eq!(entry.events, [PacedEvent::Dropping(Cause::NoReports)]);
    }

    #[test]
    fn failed_setup_raises_it_with_the_next_bundle() {
        let mut entry = Entry::new();
        // Not more than half of the 56 places of each phase.
        let first = entry.round;
        entry.fail(|direction, round| match direction {
            FORWARD => (first..first + 28).contains(&round),
            BACKWARD => (first + 7 * 56..first + 7 * 56 + 28).contains(&round),
        });
        assert_eq!(entry.setup_causes(), 0);
        entry.bundle(2);
        entry.quiet(1);
        let cause = Cause::Setup { batch: BATCH, why: Failure::NoAck };
        assert_eq!((entry.setup_causes(), entry.events.last()), (1, Some(&PacedEvent::Dropping(cause))));
    }

    #[test]
    fn failed_setup_raises_it_also_if_no_bundle_comes() {
        let mut entry = Entry::new();
        entry.fail(|_, _| false);
        // Of an interval that began before.
        entry.alarm.bundle(entry.alarm.config.interval_of(BATCH + 1) + 1, &bundle(2));
        entry.quiet(2000);
        assert_eq!(entry.setup_causes(), 0);
        entry.quiet(500);
        assert_eq!(entry.setup_causes(), 1);
    }

    #[test]
    fn setups_that_fail_while_it_is_up_are_counted() {
        let mut entry = Entry::new();
        for number in 1..=3 {
            let batch = entry.alarm.config.times.batch_of(entry.round);
            entry.alarm.failed(batch, Failure::NoAck);
            entry.quiet(1000);
            entry.bundle(2);
            entry.quiet(1000);
            let [RaisedCause { cause, times, .. }] = entry.alarm.raised() else { panic!("{:?}", entry.alarm.raised()) };
            assert_eq!((*cause, *times), (Cause::Setup { batch, why: Failure::NoAck }, number));
        }
    }

    #[test]
    fn missing_bundle_raises_it_once_there_was_one() {
        for had_one in [true, false] {
            let mut entry = Entry::new();
            if !had_one {
                // It came when phase 1 had begun.
                entry.alarm.bundles[0].came = entry.round;
            }
            entry.alarm.failed(BATCH, Failure::NoBundle);
            entry.bundle(2);
            entry.quiet(3000);
            assert_eq!(entry.setup_causes(), usize::from(had_one));
        }
    }

    #[test]
    fn losses_of_half_a_phase_explain_a_failed_setup() {
        for direction in [FORWARD, BACKWARD] {
            let mut entry = Entry::new();
            let begin = entry.round + if direction == FORWARD { 0 } else { 7 * 56 };
            entry.fail(|of, round| of == direction && (begin..begin + 29).contains(&round));
            entry.bundle(2);
            entry.quiet(3000);
            assert_eq!(entry.setup_causes(), 0, "{direction:?}");
            assert_eq!(entry.events.len(), 1, "the losses themselves raise it");
        }
    }

    #[test]
    fn half_of_a_phase_without_the_link_excuses_no_setup() {
        // Of the 56 rounds of phases 1 and 8; those between and behind them do not count.
        let excusing = [(0, 29), (27, 30), (7 * 56, 29), (7 * 56 + 27, 29)];
        let others = [(0, 1), (0, 28), (28, 7 * 56), (7 * 56, 28), (7 * 56 + 28, 60)];
        let cases = excusing.map(|case| (case, true)).into_iter().chain(others.map(|case| (case, false)));
        for ((at, rounds), is_excused) in cases {
            let mut entry = Entry::new();
            let down = entry.round + at;
            entry.quiet(at);
            entry.run(down + rounds, |_, _| false, true, false);
            entry.fail(|_, _| false);
            entry.bundle(2);
            entry.quiet(3000);
            assert_eq!(entry.setup_causes(), usize::from(!is_excused), "{rounds} rounds from {at}");
            let excuse = PacedEvent::SetupExcused { hop: None, batch: BATCH };
            assert_eq!((entry.alarm.excused() == 1, entry.events.contains(&excuse)), (is_excused, is_excused));
        }
    }

    #[test]
    fn link_excuses_one_setup_in_65536_rounds() {
        let mut alarm = Entry::new().alarm;
        let why = Failure::NotReady;
        let setup =
            FailedSetup { batch: BATCH, why, at: 0, counted: 0, signed: 0, was_unready: true, is_confirmed: false };
        let excuses = |round| {
            alarm.running = round;
            alarm.link_excuses(&setup)
        };
        assert_eq!([1000, 1001, 999 + BEFORE, 1000 + BEFORE].map(excuses), [true, false, false, true]);
        assert_eq!(alarm.excused(), 2);
    }

    #[test]
    fn setup_that_losses_explain_leaves_the_links_excuse() {
        let mut entry = Entry::new();
        let begin = entry.round;
        let loses = |of, round| of == FORWARD && (begin..begin + 29).contains(&round);
        entry.run(begin + 512, loses, true, true);
        entry.alarm.failed(BATCH, Failure::NotReady);
        entry.run(begin + 1024, loses, true, true);
        entry.alarm.failed(BATCH + 1, Failure::NotReady);
        entry.bundle(2);
        entry.quiet(3000);
        assert_eq!((entry.setup_causes(), entry.alarm.excused()), (0, 1), "{:?}", entry.events);
        assert!(entry.events.contains(&PacedEvent::SetupExcused { hop: None, batch: BATCH + 1 }));
    }

    /// So Mix 1 cannot end it by a jump of its clock.
    #[test]
    fn alarm_and_excuses_are_as_old_behind_a_jump() {
        for jump in [-10 * BEFORE as i64, 2 * BEFORE as i64] {
            let mut alarm = Entry::new().alarm;
            alarm.advance(20 * BEFORE, true);
            alarm.clock_is_missing();
            alarm.failed(BATCH, Failure::NotReady);
            alarm.advance(20 * BEFORE + 1, true);
            let round = (20 * BEFORE + 1).saturating_add_signed(jump);
            assert_eq!((alarm.excused(), alarm.raised().len()), (1, 1));
            alarm.jumps_to(round);
            alarm.failed(BATCH, Failure::NotReady);
            alarm.advance(round + BEFORE - 2, true);
            let causes = |alarm: &EntryAlarm| alarm.raised().iter().map(|one| one.cause).collect::<Vec<_>>();
            let setup = Cause::Setup { batch: BATCH, why: Failure::NotReady };
            assert!(causes(&alarm).contains(&Cause::NoClock), "{jump}");
            assert!(causes(&alarm).contains(&setup), "its excuse is used up: {jump}");
            alarm.advance(round + BEFORE - 1, true);
            assert!(!causes(&alarm).contains(&Cause::NoClock), "{jump}");
        }
    }

    #[test]
    fn jump_while_the_entry_is_not_ready_needs_no_reports() {
        let mut entry = Entry::new();
        entry.quiet(1000);
        entry.run(entry.round + 50, |_, _| false, false, false);
        for jump in [9, 700, 5000] {
            entry.round += jump;
            entry.alarm.jumps_to(entry.round);
            entry.run(entry.round + 200, |_, _| false, false, false);
        }
        assert_eq!(entry.events, []);
    }

    #[test]
    fn second_batch_that_is_missed_raises_it() {
        let mut entry = Entry::new();
        for batch in [BATCH, BATCH + 1] {
            entry.quiet(512);
            entry.alarm.failed(batch, Failure::NotReady);
        }
        entry.bundle(2);
        entry.quiet(3000);
        assert_eq!(entry.events[0], PacedEvent::SetupExcused { hop: None, batch: BATCH });
        let cause = Cause::Setup { batch: BATCH + 1, why: Failure::NotReady };
        assert_eq!(entry.events[1..], [PacedEvent::Dropping(cause)]);
    }

    #[test]
    fn hop_that_was_restarted_explains_a_failed_setup() {
        let mut entry = Entry::new();
        entry.fail(|_, _| false);
        entry.bundle(9);
        entry.quiet(3000);
        assert_eq!(entry.events, [PacedEvent::SetupExcused { hop: Some(2), batch: BATCH }]);
        assert_eq!(entry.alarm.excused(), 1);
        // A new epoch: all hops have other keys.
        let mut entry = Entry::new();
        entry.fail(|_, _| false);
        let interval = entry.alarm.config.times.begin(entry.round) / 10_000_000_000 + 2;
        entry.alarm.bundle(interval, &[5, 6, 7, 8].map(keys));
        entry.quiet(1);
        assert_eq!(entry.setup_causes(), 1);
    }

    /// A setup fails, and the next bundle has these keys of hop 2. Returns how often the alarm is raised for it.
    fn fails_before(entry: &mut Entry, number: u8) -> usize {
        let (before, batch) = (entry.setup_causes(), entry.alarm.config.times.batch_of(entry.round));
        entry.alarm.failed(batch, Failure::NoAck);
        entry.quiet(1000);
        entry.bundle(number);
        entry.quiet(3000);
        // Another bundle confirms it.
        entry.bundle(number);
        entry.quiet(1000);
        entry.setup_causes() - before
    }

    #[test]
    fn hop_excuses_setups_once_in_65536_rounds() {
        let mut entry = Entry::new();
        entry.quiet(1000);
        // It takes turns with its keys, too.
        let causes = [9, 2, 9, 10].map(|number| {
            let causes = fails_before(&mut entry, number);
            entry.alarm.raised = RaisedCauses::default();
            causes
        });
        assert_eq!(causes, [0, 1, 1, 1]);
        assert_eq!(entry.alarm.excused(), 1);
        // Another hop may restart meanwhile.
        let batch = entry.alarm.config.times.batch_of(entry.round);
        entry.alarm.failed(batch, Failure::NoAck);
        let interval = entry.alarm.config.times.begin(entry.round) / 10_000_000_000 + 2;
        entry.alarm.bundle(interval, &[1, 10, 7, 4].map(keys));
        entry.quiet(1);
        assert_eq!(entry.events.last(), Some(&PacedEvent::SetupExcused { hop: Some(3), batch }));
        // The first excuse is as long ago.
        entry.quiet(BEFORE);
        assert_eq!(fails_before(&mut entry, 11), 0);
        assert_eq!(entry.alarm.excused(), 3);
    }

    #[test]
    fn one_restart_excuses_all_setups_with_older_keys() {
        let mut entry = Entry::new();
        entry.fail(|_, _| false);
        entry.bundle(9);
        // Its keys were of the bundle before, too.
        entry.alarm.failed(BATCH + 1, Failure::NoAck);
        entry.alarm.failed(BATCH + 2, Failure::NoAck);
        entry.quiet(1000);
        entry.bundle(9);
        entry.quiet(3000);
        assert_eq!((entry.alarm.excused(), entry.setup_causes()), (3, 0), "{:?}", entry.events);
    }

    #[test]
    fn restart_after_a_setup_is_confirmed_excuses_nothing() {
        let mut entry = Entry::new();
        let first = entry.alarm.config.times.first(BATCH);
        entry.quiet(first - entry.round);
        entry.alarm.failed(BATCH, Failure::NoAck);
        entry.bundle(2);
        entry.quiet(100);
        entry.bundle(9);
        entry.quiet(1000);
        assert_eq!((entry.alarm.excused(), entry.setup_causes()), (0, 1));
    }
}
