//! The lead of an entry: by how much it sends before its own clock shows the time of a round (SPEC 9.5.5).
//!
//! It follows the clock of Mix 1 and the delay of forward cells, slowly enough that delays which somebody adds do not
//! show at the exit. All times are ns by the entry's own clock, which never steps.

use std::collections::VecDeque;

use wire::paced::clock::ClockCell;
use wire::paced::{AHEAD_MAX, PacedTerms};

const NS_PER_S: u64 = 1_000_000_000;
/// Samples older than this do not count, but for the latest ones.
pub(super) const MEMORY: u64 = 40 * NS_PER_S;
/// A sample beyond this is dropped: the clock of the entry, or that of Mix 1, is wrong.
const SAMPLE_MAX: u64 = 24 * 3600 * NS_PER_S;
/// Latest samples that all must be far away to move the lead at once.
const LATEST: usize = 16;
/// In this time the lead moves by 1 ns at most: 100 ppm.
const SLEW: u64 = 10_000;
/// The time over which a change of the lead is worth a warning, and how often it is noted.
const WATCHED: u64 = 600 * NS_PER_S;
const NOTED_EVERY: u64 = 10 * NS_PER_S;

struct Sample {
    at: u64,
    /// When the entry's own clock cell that Mix 1 has answered was due.
    peer: u64,
    lead: i64,
}

/// The lead of an entry in one class.
pub(crate) struct Lead {
    period: u64,
    slack: i64,
    /// Samples beyond these are out of reach for all copies of a round.
    most_above: i64,
    most_below: i64,
    /// What counts before the first sample.
    before: i64,
    lead: Option<i64>,
    /// Up to when the lead has followed the samples.
    followed: u64,
    has_sent: bool,
    /// Oldest first.
    samples: VecDeque<Sample>,
    /// The lead at some times within the watched one, oldest first.
    noted: VecDeque<(u64, i64)>,
}

impl Lead {
    /// Without a sample. `before` counts until the first one.
    pub(crate) fn new(terms: &PacedTerms, before: i64) -> Lead {
        let ms = |ms: u32| i64::from(ms) * 1_000_000;
        let (period, slack) = (ms(terms.period_ms.into()), ms(terms.slack_ms.into()));
        Lead {
            period: period as u64,
            slack,
            most_above: i64::from(terms.copies - 1) * i64::from(terms.gap) * period + slack,
            most_below: AHEAD_MAX as i64 * period - slack,
            before,
            lead: None,
            followed: 0,
            has_sent: false,
            samples: VecDeque::new(),
            noted: VecDeque::new(),
        }
    }

    /// Takes in a clock cell of Mix 1 that came at `now_ns`. Its `peer` is when the entry's own cell was due. Only that
    /// and `received` count, so delays of backward cells change nothing.
    pub(crate) fn sample(&mut self, now_ns: u64, cell: ClockCell) {
        if cell.peer == 0 || self.samples.iter().any(|sample| sample.peer == cell.peer) {
            return;
        }
        let lead = cell.received.wrapping_sub(cell.peer) as i64;
        // Against the time that its first rounds show, so that this says nothing of its host's clock.
        if lead.abs_diff(self.before) > SAMPLE_MAX {
            return;
        }
        self.follow(now_ns);
        self.samples.push_back(Sample { at: now_ns, peer: cell.peer, lead });
        while self.samples.len() > LATEST && self.samples[0].at + MEMORY <= now_ns {
            self.samples.pop_front();
        }

        let Some(known) = self.lead else {
            (self.lead, self.followed) = (Some(lead), now_ns);
            return;
        };
        if !self.has_sent {
            self.lead = Some(known.min(lead));
            return;
        }
        let latest = self.samples.len().saturating_sub(LATEST);
        let of_latest = || self.samples.range(latest..).map(|sample| sample.lead);
        let (Some(least), Some(most)) = (of_latest().min(), of_latest().max()) else { return };
        let is_out_of_reach = least > known + self.most_above || most < known - self.most_below;
        if self.samples.len() >= LATEST && is_out_of_reach {
            self.samples.drain(..latest);
            self.lead = Some(least);
            self.note(now_ns);
        }
    }

    /// The entry sends in a channel from now on: the lead no longer moves at once.
    pub(crate) fn begin(&mut self, now_ns: u64) {
        if !self.has_sent {
            (self.has_sent, self.followed) = (true, now_ns);
            self.noted.clear();
            self.note(now_ns);
        }
    }

    /// Moves the lead towards the smallest sample of the last 40 s.
    pub(crate) fn follow(&mut self, now_ns: u64) {
        let Some(lead) = self.lead.filter(|_| self.has_sent) else { return };
        let most = now_ns.saturating_sub(self.followed) / SLEW;
        self.followed += most * SLEW;
        let recent = self.samples.iter().filter(|sample| now_ns < sample.at + MEMORY);
        if let Some(least) = recent.map(|sample| sample.lead).min() {
            self.lead = Some(lead + (least - lead).clamp(-(most as i64), most as i64));
        }
        if self.noted.back().is_none_or(|(at, _)| at + NOTED_EVERY <= now_ns) {
            self.note(now_ns);
        }
    }

    fn note(&mut self, now_ns: u64) {
        self.noted.extend(self.lead.map(|lead| (now_ns, lead)));
        while self.noted.front().is_some_and(|(at, _)| at + WATCHED < now_ns) {
            self.noted.pop_front();
        }
    }

    /// The lead; None before the first sample.
    pub(crate) fn lead_ns(&self) -> Option<i64> {
        self.lead
    }

    /// When the latest sample came. None before the first one.
    pub(crate) fn sampled_at(&self) -> Option<u64> {
        self.samples.back().map(|sample| sample.at)
    }

    /// True if the lead has changed by more than the slack of the class within 10 minutes: worth a warning.
    pub(crate) fn has_moved(&self) -> bool {
        let Some(lead) = self.lead else { return false };
        let of_noted = || self.noted.iter().map(|(_, lead)| *lead).chain([lead]);
        of_noted().max().zip(of_noted().min()).is_some_and(|(most, least)| most - least > self.slack)
    }

    /// The lead by which the entry sends.
    pub(crate) fn current_ns(&self) -> i64 {
        self.lead.unwrap_or(self.before)
    }

    /// When the entry's clock shows the time at which the first copies of a round leave.
    pub(crate) fn send_at(&self, round: u64) -> u64 {
        (round * self.period).saturating_add_signed(-self.current_ns())
    }

    /// The last round whose first copies are due at `now_ns`. It is the running one of SPEC 9.4 from the first sample
    /// on. It may then be an earlier one than before.
    pub(crate) fn round_at(&self, now_ns: u64) -> u64 {
        now_ns.saturating_add_signed(self.current_ns()) / self.period
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::terms;
    use super::*;

    const MS: u64 = 1_000_000;
    /// Between two clock cells.
    const EVERY: u64 = 160 * MS;
    const PATH: i64 = 20_000_000;

    fn lead() -> Lead {
        Lead::new(&terms(), 0)
    }

    fn cell(peer: u64, lead: i64) -> ClockCell {
        let peer = NS_PER_S + peer;
        ClockCell { sent: 7, peer, received: peer.strict_add_signed(lead) }
    }

    /// Leads of 300 s without the first one, while the path takes `delay` ns longer at a time.
    fn moves(delay: impl Fn(u64) -> i64) -> Vec<i64> {
        let mut lead = lead();
        let step = |at: u64| {
            lead.sample(at + EVERY, cell(at, PATH + delay(at)));
            lead.follow(at + EVERY);
            lead.begin(at + EVERY);
            lead.lead_ns().unwrap() - PATH - delay(0)
        };
        (0..300_000 * MS).step_by(EVERY as usize).map(step).collect()
    }

    #[test]
    fn lead_of_each_path_is_that_of_the_second_implementation() {
        let ms = |ms: u64| (ms * MS) as i64;
        let check = |what: &str, delay: &dyn Fn(u64) -> i64, most: i64, last: Option<i64>| {
            let moves = moves(delay);
            assert!(moves.iter().all(|moved| moved.abs() <= most), "{what}: {:?}", moves.iter().max());
            let is_there = last.is_none_or(|last| (moves[moves.len() - 1] - last).abs() < ms(1) / 10);
            assert!(is_there, "{what}: {:?}", moves.last());
        };
        check("constant", &|_| 0, 0, Some(0));
        check("longer for 12 s, again and again", &|at| ms(17 * (at / (12_000 * MS) % 2)), 0, Some(0));
        check("7 ms longer for good", &|at| ms(7 * u64::from(at > 60_000 * MS)), ms(7), Some(ms(7)));
        let ramp = |at: u64| (at.saturating_sub(60_000 * MS) / 6000).min(30 * MS) as i64;
        check("a ramp of 1 ms in 6 s", &ramp, ms(201) / 10, Some(ms(20)));
        check("30 ms longer for good", &|at| ms(30 * u64::from(at > 60_000 * MS)), ms(30), Some(ms(30)));
        let early = |at: u64| if (60_000 * MS..60_000 * MS + EVERY).contains(&at) { 0 } else { ms(90) };
        check("one early sample", &early, ms(41) / 10, None);
    }

    #[test]
    fn first_samples_count_at_once_and_each_peer_once() {
        let mut lead = lead();
        assert_eq!((lead.lead_ns(), lead.round_at(105 * MS), lead.send_at(10)), (None, 10, 100 * MS));
        lead.sample(MS, ClockCell { sent: 7, peer: 0, received: 5 });
        assert_eq!(lead.lead_ns(), None, "a clock cell that answers none");
        for (peer, received, expected) in [(1, 25, 25), (1, 21, 25), (2, 30, 25), (3, -40, -40)] {
            lead.sample(2 * MS, cell(peer, received * MS as i64));
            assert_eq!(lead.lead_ns(), Some(expected * MS as i64));
        }
        assert_eq!((lead.round_at(105 * MS), lead.send_at(10)), (6, 140 * MS));
        assert_eq!(lead.round_at(35 * MS), 0, "a time before 1970 by the clock of Mix 1");
        let mut lead = Lead::new(&terms(), -1000 * MS as i64);
        assert_eq!((lead.lead_ns(), lead.round_at(1105 * MS), lead.send_at(10)), (None, 10, 1100 * MS));
        lead.sample(MS, cell(1, 25 * MS as i64));
        assert_eq!((lead.lead_ns(), lead.send_at(10)), (Some(25 * MS as i64), 75 * MS));
    }

    #[test]
    fn sample_beyond_a_day_is_dropped() {
        let day = 24 * 3600 * NS_PER_S;
        let mut lead = lead();
        for far in [u64::MAX, i64::MAX as u64 + 2 * day, 3 * day + 1] {
            lead.sample(1, ClockCell { sent: 7, peer: 2 * day, received: far });
            lead.sample(1, ClockCell { sent: 7, peer: far, received: 2 * day - 1 });
        }
        assert_eq!(lead.lead_ns(), None);
        lead.sample(1, ClockCell { sent: 7, peer: 2 * day, received: 3 * day });
        assert_eq!(lead.lead_ns(), Some(day as i64));
    }

    #[test]
    fn only_sixteen_samples_out_of_reach_move_the_lead_at_once() {
        // Above by more than off_1, 18 ms; below by more than 8T - slack, 72 ms.
        for (off_ms, reaches) in [(18, false), (19, true), (-72, false), (-73, true)] {
            let mut lead = lead();
            lead.sample(1, cell(1, PATH));
            lead.begin(1);
            for nth in 2..=17 {
                assert_eq!(lead.lead_ns(), Some(PATH), "{off_ms} ms, sample {nth}");
                lead.sample(nth, cell(nth, PATH + off_ms * MS as i64));
            }
            let expected = if reaches { PATH + off_ms * MS as i64 } else { PATH };
            assert_eq!(lead.lead_ns(), Some(expected), "{off_ms} ms");
            assert_eq!(lead.has_moved(), reaches);
            lead.follow(601 * NS_PER_S);
            assert!(!lead.has_moved(), "10 minutes later");
        }
    }

    #[test]
    fn lead_stays_while_no_sample_is_recent() {
        let mut lead = lead();
        lead.sample(NS_PER_S, cell(1, PATH));
        lead.begin(NS_PER_S);
        lead.sample(2 * NS_PER_S, cell(2, PATH - 5 * MS as i64));
        lead.follow(42 * NS_PER_S);
        let expected = PATH - 5 * MS as i64;
        lead.follow(400 * NS_PER_S);
        assert_eq!(lead.lead_ns(), Some(PATH), "the sample of 2 s is 40 s old");
        lead.sample(400 * NS_PER_S, cell(3, PATH - 5 * MS as i64));
        lead.follow(410 * NS_PER_S);
        assert_eq!(lead.lead_ns(), Some(PATH - MS as i64), "the time without a sample does not count");
        lead.follow(439 * NS_PER_S);
        assert_eq!(lead.lead_ns(), Some(expected + (11 * MS / 10) as i64));
    }

    proptest! {
        /// Delays within reach move the lead by at most 100 ppm, however often it is asked.
        #[test]
        fn lead_is_never_faster_than_100_ppm(
            delays in prop::collection::vec((0i64..18_000_000, 0u64..2_000_000_000, 1u64..50), 1..120),
        ) {
            let mut lead = lead();
            let mut now = NS_PER_S;
            lead.sample(now, cell(1, PATH));
            lead.begin(now);
            for (peer, (delay, passed, asks)) in (2..).zip(delays) {
                let before = lead.lead_ns().unwrap();
                for _ in 0..asks {
                    now += passed / asks;
                    lead.follow(now);
                }
                let moved = lead.lead_ns().unwrap().abs_diff(before);
                prop_assert!(moved <= passed / SLEW + 1, "{moved} in {passed}");
                lead.sample(now, cell(peer, PATH + delay));
                let (least, most) = (PATH, PATH + 18_000_000);
                prop_assert!((least..=most).contains(&lead.lead_ns().unwrap()));
            }
        }
    }
}
