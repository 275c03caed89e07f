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
        EntryAlarm {
            config,
            running: 0,
            forward: LossTest::default(),
            backward: LossTest::default(),
            reported: None,
            late: 0,
            unready: (0, [0; 2]),
            link_excused: None,
            failed: Vec::new(),
            bundles: VecDeque::new(),
            restarts: BTreeMap::new(),
            excused: 0,
            raised: RaisedCauses::default(),
        }
    }

    /// A report of Mix 1 on the rounds up to `last` has come. `new` is what it adds to those before it, if anything.
    pub(crate) fn report(&mut self, last: u64, new: Option<Report>) {
        // Of more rounds than are remembered: it would be long to test, and counts as none.
        if new.is_some_and(|new| new.last + 1 - new.first > BEFORE) {
            return;
        }
        if let Some(reported) = &mut self.reported
            && self.running <= last + REPORT_EVERY
        {
            *reported = last.max(*reported);
        }
        let Some(Report { first, last, places, filled, lost }) = new else { return };
        let rounds = last + 1 - first;
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
            let (at, [counted, signed]) = (self.running, self.decided_at(batch));
            self.failed.push(FailedSetup { batch, why, at, counted, signed, was_unready, is_confirmed: false });
        }
    }

    /// When the places around a setup that fails now are counted, and when every hop that was restarted would have
    /// signed a bundle.
    fn decided_at(&self, batch: u64) -> [u64; 2] {
        let PacedConfig { times, interval_ms, terms, .. } = &self.config;
        let (first, rounds) = (times.first(batch), u64::from(terms.rounds));
        // The lead may have jumped while it was under way.
        let first = if self.running.abs_diff(first) > rounds { self.running } else { first };
        [first, first + rounds + 2 * times.round_at(interval_ms * 1_000_000)].map(|round| round + COUNTED_AFTER)
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

    /// True if more than half of the places of the phase of its setup, or of its ack, were lost, and have raised the
    /// alarm themselves: whoever reports otherwise would have an excuse.
    fn losses_explain(&self, batch: u64) -> bool {
        let half = self.config.times.phase_len() * u64::from(self.config.terms.cells) / 2;
        let lost = |test: &LossTest, phase| test.too_many_in(self.config.rounds_of(batch, phase));
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

    /// The round up to which it has looked for causes.
    pub(crate) fn running(&self) -> u64 {
        self.running
    }

    /// Hops, from 1, that have restarted within the time for which the alarm lasts, as bundles show.
    pub(crate) fn restarted_hops(&self) -> Vec<usize> {
        let is_recent = |restart: &Restart| self.running < restart.at + BEFORE;
        self.restarts.iter().filter(|(_, restart)| is_recent(restart)).map(|(hop, _)| *hop).collect()
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

#[cfg(test)]
mod tests;
