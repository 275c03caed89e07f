//! What a hop has signed, so that it never signs two bundles of one interval (SPEC 7.7).
//!
//! It is written to disk before a signature leaves. Numbers of intervals are never forgotten, for a
//! clock may step back; they are kept as ranges, of which there are few.

use super::record::Rank;

/// Ranges at most. Each further one needs a clock that jumps ahead and back.
const RANGES_MAX: usize = 64;
/// Signed hashes that are kept, so that the same signature can be made again.
const RECENT_MAX: usize = 4;

/// Highest records that are kept: those of eight epochs. More than two needs a clock that jumps ahead.
const RANKS_MAX: usize = 64;

/// The intervals that a hop has signed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignedIntervals {
    /// First and last of each range, ascending, with gaps between them.
    ranges: Vec<(u64, u64)>,
    /// Interval and hash of the latest, the newest last.
    recent: Vec<(u64, [u8; 32])>,
}

impl SignedIntervals {
    /// From what was written to disk.
    pub fn restore(ranges: Vec<(u64, u64)>, recent: Vec<(u64, [u8; 32])>) -> Option<SignedIntervals> {
        let ordered = ranges.iter().all(|(first, last)| first <= last) && ranges.is_sorted_by(|a, b| a.1 < b.0);
        (ordered && ranges.len() <= RANGES_MAX && recent.len() <= RECENT_MAX)
            .then_some(SignedIntervals { ranges, recent })
    }

    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    pub fn recent(&self) -> &[(u64, [u8; 32])] {
        &self.recent
    }

    pub fn contains(&self, interval: u64) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&interval))
    }

    /// The hash that was signed for an interval, if it is still known.
    pub fn hash(&self, interval: u64) -> Option<[u8; 32]> {
        self.recent.iter().find(|(of, _)| *of == interval).map(|(_, hash)| *hash)
    }

    /// Notes a signature. False, and nothing is noted, if the interval was signed before.
    #[must_use]
    pub fn insert(&mut self, interval: u64, hash: [u8; 32]) -> bool {
        if self.contains(interval) {
            return false;
        }
        let at = self.ranges.partition_point(|(_, last)| *last < interval);
        self.ranges.insert(at, (interval, interval));
        // Ranges that touch become one; of too many the two lowest do, with all between them.
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.ranges.len());
        for &(first, last) in &self.ranges {
            match merged.last_mut() {
                Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
                _ => merged.push((first, last)),
            }
        }
        if merged.len() > RANGES_MAX {
            merged[1].0 = merged[0].0;
            merged.remove(0);
        }
        self.ranges = merged;
        if self.recent.len() >= RECENT_MAX {
            self.recent.remove(0);
        }
        self.recent.push((interval, hash));
        true
    }
}

/// The highest record that a hop has signed, per hop and epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SignedRanks(Vec<(u8, u64, Rank)>);

impl SignedRanks {
    pub fn restore(all: Vec<(u8, u64, Rank)>) -> SignedRanks {
        SignedRanks(all)
    }

    pub fn all(&self) -> &[(u8, u64, Rank)] {
        &self.0
    }

    /// The highest rank that was signed for a hop, by position, and an epoch.
    pub fn highest(&self, hop: u8, epoch: u64) -> Option<Rank> {
        self.0.iter().find(|(of, at, _)| (*of, *at) == (hop, epoch)).map(|(_, _, rank)| *rank)
    }

    /// Notes that a record was signed. Epochs before the last one are forgotten, and of too many later ones, which a
    /// clock that was ahead has left, the farthest.
    pub fn insert(&mut self, hop: u8, epoch: u64, rank: Rank) {
        self.0.retain(|(of, at, _)| at.saturating_add(1) >= epoch && (*of, *at) != (hop, epoch));
        self.0.push((hop, epoch, rank));
        while self.0.len() > RANKS_MAX {
            let farthest = self.0.iter().map(|(_, at, _)| *at).max().expect("there are some");
            self.0.retain(|(_, at, _)| *at != farthest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a plain set: as long as the ranges are few, they say the same; beyond, they only ever refuse more.
        #[test]
        fn no_interval_is_signed_twice(all in prop::collection::vec(0u64..400, 0..300)) {
            let mut signed = SignedIntervals::default();
            let mut model = BTreeSet::new();
            for interval in all {
                let inserted = signed.insert(interval, [0; 32]);
                prop_assert!(!(inserted && model.contains(&interval)));
                if inserted {
                    model.insert(interval);
                }
                prop_assert!(model.iter().all(|interval| signed.contains(*interval)));
                prop_assert!(signed.ranges().len() <= RANGES_MAX);
                let again = SignedIntervals::restore(signed.ranges().to_vec(), signed.recent().to_vec());
                prop_assert_eq!(again.as_ref(), Some(&signed));
            }
        }
    }

    #[test]
    fn consecutive_intervals_are_one_range() {
        let mut signed = SignedIntervals::default();
        assert!((100..10_000).all(|interval| signed.insert(interval, [1; 32])));
        assert_eq!(signed.ranges(), [(100, 9_999)]);
        assert_eq!((signed.hash(9_999), signed.hash(100)), (Some([1; 32]), None));
        assert!(!signed.insert(100, [2; 32]));
    }

    #[test]
    fn clock_that_steps_ahead_and_back_signs_nothing_twice() {
        let mut signed = SignedIntervals::default();
        for interval in [10, 11, 500, 501, 502, 12, 13] {
            assert!(signed.insert(interval, [interval as u8; 32]));
        }
        assert!([10, 11, 12, 13, 500, 501, 502].iter().all(|interval| !signed.insert(*interval, [0; 32])));
        assert_eq!(signed.ranges(), [(10, 13), (500, 502)]);
    }

    #[test]
    fn clock_that_jumps_ahead_leaves_few_ranks() {
        let mut ranks = SignedRanks::default();
        for ahead in (0..100).rev() {
            for hop in 1..=8 {
                ranks.insert(hop, 5 + 10 * ahead, (1, 7, [0; 32]));
                ranks.insert(hop, 5, (1, 7, [0; 32]));
            }
            assert!(ranks.all().len() <= RANKS_MAX);
        }
        assert_eq!(ranks.highest(8, 5), Some((1, 7, [0; 32])));
        assert_eq!(ranks.highest(1, 15), Some((1, 7, [0; 32])), "the nearest later ones stay");
    }

    #[test]
    fn ranks_of_old_epochs_are_forgotten() {
        let mut ranks = SignedRanks::default();
        for epoch in 5..9 {
            for hop in 1..=4 {
                ranks.insert(hop, epoch, (1, epoch, [0; 32]));
            }
        }
        assert_eq!(ranks.all().len(), 2 * 4);
        assert_eq!(ranks.highest(2, 8), Some((1, 8, [0; 32])));
        ranks.insert(2, 8, (1, 9, [0; 32]));
        assert_eq!((ranks.highest(2, 8), ranks.all().len()), (Some((1, 9, [0; 32])), 8));
    }
}
