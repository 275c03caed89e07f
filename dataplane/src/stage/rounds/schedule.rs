//! When rounds are released (SPEC 9.5).

use wire::paced::AHEAD_MAX;

use crate::Nanos;

/// The releases of one direction at a hop, in ns since 1970 by the class's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    period: Nanos,
    offset: Nanos,
}

impl Schedule {
    /// Round r is released `offset` after it begins, and begins at r times `period`.
    pub fn new(period: Nanos, offset: Nanos) -> Schedule {
        assert!(period > 0);
        Schedule { period, offset }
    }

    /// The time at which a round is released.
    pub fn due_at(self, round: u64) -> Nanos {
        round * self.period + self.offset
    }

    /// The last round that is due at `now`; 0 before the first.
    pub fn last_due(self, now: Nanos) -> u64 {
        now.saturating_sub(self.offset) / self.period
    }

    /// The rounds to release at `now` after `released`: at most the [`AHEAD_MAX`] latest ones. The rounds between
    /// `released` and these are skipped.
    pub fn due(self, released: u64, now: Nanos) -> std::ops::RangeInclusive<u64> {
        let last = self.last_due(now);
        (released + 1).max((last + 1).saturating_sub(AHEAD_MAX))..=last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MILLI;

    #[test]
    fn round_is_due_at_its_offset() {
        let schedule = Schedule::new(10 * MILLI, 18 * MILLI);
        assert_eq!(schedule.due_at(100), 1018 * MILLI);
        assert_eq!([1018 * MILLI - 1, 1018 * MILLI, 1028 * MILLI].map(|now| schedule.last_due(now)), [99, 100, 101]);
        assert_eq!(schedule.last_due(0), 0);
    }

    #[test]
    fn late_hop_releases_the_latest_rounds_only() {
        let schedule = Schedule::new(10 * MILLI, 18 * MILLI);
        let due = |released, ms| schedule.due(released, ms * MILLI).collect::<Vec<u64>>();
        assert_eq!(due(100, 1027), [0; 0]);
        assert_eq!(due(100, 1028), [101]);
        assert_eq!(due(100, 1098), (101..=108).collect::<Vec<_>>());
        assert_eq!(due(100, 1108), (102..=109).collect::<Vec<_>>(), "101 is skipped");
        assert_eq!(due(120, 1108), [0; 0], "a clock that went back releases nothing again");
    }
}
