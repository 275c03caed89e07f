//! When rounds are released (SPEC 9.5).

use std::ops::RangeInclusive;

use super::AHEAD_MAX;

/// The releases of one direction at a hop, in ns since 1970 by the class's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    period_ns: u64,
    offset_ns: u64,
}

impl Schedule {
    /// Round r is released `offset_ns` after it begins, and begins at r times `period_ns`.
    pub(super) fn new(period_ns: u64, offset_ns: u64) -> Schedule {
        assert!(period_ns > 0);
        Schedule { period_ns, offset_ns }
    }

    /// The time at which a round is released.
    pub fn due_at(self, round: u64) -> u64 {
        round * self.period_ns + self.offset_ns
    }

    /// The last round that is due at `now_ns`; 0 before the first.
    pub fn last_due(self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.offset_ns) / self.period_ns
    }

    /// The rounds to release at `now_ns` after `released`: at most the [`AHEAD_MAX`] latest ones. The rounds between
    /// `released` and these are skipped.
    pub fn due(self, released: u64, now_ns: u64) -> RangeInclusive<u64> {
        let last = self.last_due(now_ns);
        (released + 1).max((last + 1).saturating_sub(AHEAD_MAX))..=last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn round_is_due_at_its_offset() {
        let schedule = Schedule::new(10 * MS, 18 * MS);
        assert_eq!(schedule.due_at(100), 1018 * MS);
        assert_eq!([1018 * MS - 1, 1018 * MS, 1028 * MS].map(|now| schedule.last_due(now)), [99, 100, 101]);
        assert_eq!(schedule.last_due(0), 0);
    }

    #[test]
    fn late_hop_releases_the_latest_rounds_only() {
        let schedule = Schedule::new(10 * MS, 18 * MS);
        let due = |released, ms| schedule.due(released, ms * MS).collect::<Vec<u64>>();
        assert_eq!(due(100, 1027), [0; 0]);
        assert_eq!(due(100, 1028), [101]);
        assert_eq!(due(100, 1098), (101..=108).collect::<Vec<_>>());
        assert_eq!(due(100, 1108), (102..=109).collect::<Vec<_>>(), "101 is skipped");
        assert_eq!(due(120, 1108), [0; 0], "a clock that went back releases nothing again");
    }
}
