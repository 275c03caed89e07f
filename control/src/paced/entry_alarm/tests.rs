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
        let cause = entry.alarm.raised()[0];
        assert!(cause.since < begin + 800 && cause.last > begin + 1300, "{cause:?} from {begin}");
        assert_eq!(cause.times, (cause.last - cause.since) / 100 + 1, "each test since then counts");
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

/// Mix 1 drops a setup, and reports as many losses where no test looks: just after one, and then so late that they have
/// become usual.
#[test]
fn losses_that_no_test_has_found_explain_nothing() {
    let mut entry = Entry::new();
    let begin = entry.round;
    entry.run(begin + 30, |_, _| false, true, true);
    let tested = entry.alarm.forward.tested();
    assert_eq!(entry.alarm.forward.add(Places { first: tested, rounds: 99, places: 99, lost: 99 }), None);
    entry.run(begin + 1300, |_, _| false, false, true);
    entry.alarm.failed(BATCH, Failure::NoAck);
    entry.bundle(2);
    entry.quiet(3000);
    assert_eq!(entry.setup_causes(), 1);
}

/// Totals that begin in another round are counted from there.
#[test]
fn report_of_more_rounds_than_are_tested_counts_as_none() {
    let mut entry = Entry::new();
    entry.quiet(1000);
    let due = entry.round / 100 * 100 + 99;
    for last in (due..due + 600).step_by(100) {
        entry.run(last + 1, |_, _| false, false, true);
        let report = Report { first: last - BEFORE, last, places: 0, filled: 0, lost: 0 };
        entry.alarm.report(last, Some(report));
    }
    assert_eq!(entry.events, [PacedEvent::Dropping(Cause::NoReports)]);
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
    let setup = FailedSetup { batch: BATCH, why, at: 0, counted: 0, signed: 0, was_unready: true, is_confirmed: false };
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
    for jump in [-2 * BEFORE as i64, 2 * BEFORE as i64] {
        let mut entry = Entry::new();
        entry.quiet(1);
        entry.alarm.clock_is_missing();
        entry.alarm.failed(BATCH, Failure::NotReady);
        entry.quiet(4000);
        assert_eq!((entry.alarm.excused(), entry.alarm.raised().len()), (1, 1));
        entry.round = entry.round.saturating_add_signed(jump);
        entry.alarm.jumps_to(entry.round);
        // It was under way.
        let batch = BATCH + 7;
        entry.alarm.failed(batch, Failure::NotReady);
        let causes = |entry: &Entry| entry.alarm.raised().iter().map(|one| one.cause).collect::<Vec<_>>();
        let setup = Cause::Setup { batch, why: Failure::NotReady };
        entry.quiet(2000);
        assert!(!causes(&entry).contains(&setup), "a bundle may show a restart: {jump}");
        entry.quiet(1000);
        assert!(causes(&entry).contains(&setup), "its excuse is used up: {jump}");
        entry.quiet(BEFORE - 7000);
        assert!(causes(&entry).contains(&Cause::NoClock), "{jump}");
        entry.quiet(1);
        assert!(!causes(&entry).contains(&Cause::NoClock), "{jump}");
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
