//! When an entry sends the first copies of a round (SPEC 9.5.5, 9.11.1).
//!
//! Round r is due when the entry's clock shows `r * T - lead`. Each round is prepared once at most, whatever the clock
//! and the lead do: rounds are skipped, or the entry waits.

use wire::paced::AHEAD_MAX;

use crate::{MICRO, MILLI, Nanos};

/// A round is prepared this long before it is due, and takes what has come by then. The shortest period is 5 ms.
pub const PREPARE: Nanos = 2 * MILLI;
/// A round that is prepared late is not sent before this time has passed, which is longer than preparing takes with a
/// few cells. So the time at which it leaves does not depend on what is in it.
pub(super) const SETTLE: Nanos = 300 * MICRO;

#[derive(Clone, Copy, Debug)]
pub(super) struct Pacer {
    period: Nanos,
    lead_ns: i64,
    /// The lead is that of a sample.
    is_known: bool,
    /// The last round that was prepared, or before the first one.
    last: u64,
    /// The last one with bodies that were not random.
    sealed: u64,
    /// Rounds that passed without being prepared.
    skipped: u64,
}

impl Pacer {
    /// Without a lead, for rounds that are due after `time` by the entry's clock.
    pub(super) fn new(period: Nanos, time: Nanos) -> Pacer {
        Pacer { period, lead_ns: 0, is_known: false, last: time / period, sealed: 0, skipped: 0 }
    }

    /// The time at which a round is due, by the entry's clock.
    pub(super) fn due_at(&self, round: u64) -> Nanos {
        (round * self.period).saturating_add_signed(self.lead_ns.saturating_neg())
    }

    /// The last round that is due at `time`.
    fn last_due(&self, time: Nanos) -> u64 {
        time.saturating_add_signed(self.lead_ns) / self.period
    }

    /// The round of which first copies leave at `time`. None before the lead is known.
    pub(super) fn running(&self, time: Nanos) -> Option<u64> {
        self.is_known.then(|| self.last_due(time))
    }

    /// The last round that was prepared.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Sets the lead. True if other rounds come than the one behind the last: up to the first sample the lead may be
    /// any, and the bodies are random. What was sealed never comes again (SPEC 9.5.4). Later samples set nothing back,
    /// or whether an entry falls silent would show whether it has flows.
    pub(super) fn set_lead(&mut self, lead_ns: i64, is_known: bool, time: Nanos) -> bool {
        let was_known = std::mem::replace(&mut self.is_known, is_known);
        self.lead_ns = lead_ns;
        let running = self.last_due(time);
        let jumps = !was_known && self.last > self.sealed && self.last.abs_diff(running) > AHEAD_MAX;
        if jumps {
            self.last = running.max(self.sealed);
        }
        jumps
    }

    /// The round to prepare at `time`, if it is time for that: the next one that can still be sent before the one
    /// behind it is due.
    pub(super) fn next(&self, time: Nanos) -> Option<u64> {
        let round = (self.last + 1).max(self.last_due(time + SETTLE));
        (time + PREPARE >= self.due_at(round)).then_some(round)
    }

    /// The round is prepared. `is_sealed` unless its bodies are random.
    pub(super) fn prepared(&mut self, round: u64, is_sealed: bool) {
        debug_assert!(round > self.last);
        self.skipped += round - self.last - 1;
        self.last = round;
        if is_sealed {
            self.sealed = round;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: Nanos = 10 * MILLI;

    #[test]
    fn lead_moves_the_time_of_a_round() {
        let mut pacer = Pacer::new(T, 1000 * T);
        assert_eq!((pacer.due_at(1001), pacer.running(1000 * T)), (1001 * T, None));
        assert!(!pacer.set_lead(3 * MILLI as i64, true, 1000 * T));
        assert_eq!((pacer.due_at(1001), pacer.running(1001 * T - 3 * MILLI)), (1001 * T - 3 * MILLI, Some(1001)));
        pacer.set_lead(-4 * MILLI as i64, true, 1000 * T);
        assert_eq!((pacer.due_at(1001), pacer.running(1001 * T)), (1001 * T + 4 * MILLI, Some(1000)));
        assert_eq!(pacer.next(1001 * T + 2 * MILLI - 1), None);
        assert_eq!(pacer.next(1001 * T + 2 * MILLI), Some(1001));
    }

    #[test]
    fn first_sample_sets_the_rounds_back_and_later_ones_do_not() {
        let mut pacer = Pacer::new(T, 9000 * T);
        pacer.prepared(9001, false);
        assert!(pacer.set_lead(-8000 * T as i64, true, 9001 * T), "the clock was ahead by 80 s");
        assert_eq!((pacer.running(9001 * T), pacer.next(9002 * T - PREPARE)), (Some(1001), Some(1002)));
        for is_sealed in [false, true] {
            let mut pacer = Pacer { ..pacer };
            pacer.prepared(1002, is_sealed);
            assert!(!pacer.set_lead(-8100 * T as i64, true, 9002 * T), "idle entries wait as others do");
        }
        let mut early = Pacer::new(T, 9000 * T);
        early.prepared(9001, false);
        assert!(early.set_lead(8000 * T as i64, true, 9001 * T), "the clock was behind");
        early.prepared(early.next(9002 * T - PREPARE).unwrap(), false);
        assert_eq!((early.last(), early.skipped()), (17_002, 0));

        pacer.prepared(1002, true);
        assert!(!pacer.set_lead(-8100 * T as i64, true, 9002 * T));
        assert_eq!(pacer.next(9050 * T), None, "it waits");
        assert_eq!(pacer.next(9103 * T), Some(1003));
    }

    #[test]
    fn late_worker_passes_over_what_it_cannot_send() {
        let mut pacer = Pacer::new(T, 1000 * T);
        pacer.prepared(1001, true);
        assert_eq!(pacer.next(1003 * T - SETTLE - 1), Some(1002), "it can leave before 1003 is due");
        assert_eq!(pacer.next(1003 * T - SETTLE), Some(1003));
        pacer.prepared(1003, true);
        assert_eq!(pacer.skipped(), 1);
    }

    proptest! {
        #[test]
        fn no_sealed_round_comes_again(
            steps in prop::collection::vec((0..30 * T, -200 * T as i64..200 * T as i64, any::<bool>()), 1..50),
        ) {
            let (mut time, mut sealed) = (1_000_000 * T, 0);
            let mut pacer = Pacer::new(T, time);
            for (passed, lead_ns, is_sealed) in steps {
                time += passed;
                pacer.set_lead(lead_ns, true, time);
                if let Some(round) = pacer.next(time) {
                    prop_assert!(round > sealed);
                    prop_assert!(pacer.due_at(round) <= time + PREPARE && pacer.due_at(round + 1) > time + SETTLE);
                    pacer.prepared(round, is_sealed);
                    sealed = if is_sealed { round } else { sealed };
                }
            }
        }
    }
}
