//! Whether more cells of one direction were lost than is usual (SPEC 9.15.3, 9.15.5). Times are rounds here.

use std::collections::VecDeque;
use std::ops::Range;

use wire::paced::REPORT_EVERY;

/// Rounds that are tested together.
pub(super) const TESTED: u64 = 1000;
/// Rounds before these by which the usual share of losses is known. An alarm ends as long after its last cause, and a
/// restart of a hop excuses failed setups once in as many.
pub const BEFORE: u64 = 1 << 16;
/// Bounds of the usual share. Whoever drops cells for long does not get it above the second one.
const SHARE: (f64, f64) = (1e-4, 1e-3);
/// What is less probable than this raises the alarm.
pub(super) const IMPROBABLE: f64 = 1e-6;

/// The places of some rounds in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    pub first: u64,
    pub rounds: u64,
    /// Without those that a floor has filled.
    pub places: u64,
    /// Those of which no copy came.
    pub lost: u64,
}

impl Places {
    pub(super) fn end(&self) -> u64 {
        self.first + self.rounds
    }

    fn has_one_of(&self, rounds: &Range<u64>) -> bool {
        self.first < rounds.end && rounds.start < self.end()
    }
}

/// The test of one direction, for counts of about 100 rounds each.
#[derive(Default)]
pub(crate) struct LossTest {
    /// The oldest first. Those of tests that have found too many losses are marked: they do not become usual.
    counts: VecDeque<(Places, bool)>,
    /// The rounds up to the latest test.
    tested: u64,
}

impl LossTest {
    /// Takes in the next count; one of rounds that are counted already is ignored. Returns places and lost places of
    /// the latest 1,000 rounds if these are too many.
    pub(crate) fn add(&mut self, count: Places) -> Option<(u64, u64)> {
        self.add_within(count, SHARE)
    }

    /// The same with other bounds of the usual share.
    pub(super) fn add_within(&mut self, count: Places, share: (f64, f64)) -> Option<(u64, u64)> {
        if self.counts.back().is_some_and(|(last, _)| last.end() > count.first) {
            return None;
        }
        self.counts.push_back((count, false));
        // Whoever reports round by round would have it tested in each.
        if count.end() < self.tested + REPORT_EVERY {
            return None;
        }
        self.tested = count.end();
        let tested = count.end().saturating_sub(TESTED);
        while self.counts.pop_front_if(|(oldest, _)| oldest.end() + BEFORE <= tested).is_some() {}
        let latest = self.counts.partition_point(|(count, _)| count.end() <= tested);
        let sum = |(places, lost), (count, _): &(Places, bool)| (places + count.places, lost + count.lost);
        let usual = self.counts.range(..latest).filter(|(_, is_marked)| !is_marked);
        let (places_before, lost_before) = usual.fold((0, 0), sum);
        let (places, lost) = self.counts.range(latest..).fold((0, 0), sum);
        let share = (lost_before as f64 / places_before.max(1) as f64).clamp(share.0, share.1);
        if tail(places, share, lost) >= IMPROBABLE {
            return None;
        }
        self.counts.range_mut(latest..).for_each(|(_, is_marked)| *is_marked = true);
        Some((places, lost))
    }

    /// The rounds up to the latest test.
    #[cfg(test)]
    pub(super) const fn tested(&self) -> u64 {
        self.tested
    }

    /// The counts that have a round of these.
    pub(super) fn counts_in(&self, rounds: Range<u64>) -> impl Iterator<Item = &Places> {
        self.counts.iter().map(|(count, _)| count).filter(move |count| count.has_one_of(&rounds))
    }

    /// Lost places of the counts that have a round of these, of those that a test has found too many.
    pub(super) fn too_many_in(&self, rounds: Range<u64>) -> u64 {
        let marked = self.counts.iter().filter(|(count, is_marked)| *is_marked && count.has_one_of(&rounds));
        marked.map(|(count, _)| count.lost).sum()
    }
}

/// The probability that a binomial variable of `n` tries of probability `p` reaches `x`; 1 up to its mean.
pub(super) fn tail(n: u64, p: f64, x: u64) -> f64 {
    if x as f64 <= n as f64 * p {
        return 1.0;
    }
    let ways: f64 = (0..x).map(|i| ((n - i) as f64 / (i + 1) as f64).ln()).sum();
    let mut term = (ways + x as f64 * p.ln() + (n - x) as f64 * (-p).ln_1p()).exp();
    let mut sum = term;
    for k in x..n {
        term *= (n - k) as f64 / (k + 1) as f64 * p / (1.0 - p);
        sum += term;
        // Behind the mean each term is less than the one before.
        if term < sum * f64::EPSILON {
            break;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_is_that_of_the_binomial_distribution() {
        let exact = [
            (1000, 1e-4, 4, 3.825002e-6),
            (1000, 1e-4, 5, 7.594521e-8),
            (1000, 1e-3, 9, 1.093610e-6),
            (1000, 1e-3, 10, 1.074283e-7),
            (32_000, 1e-3, 62, 1.656789e-6),
            (32_000, 1e-3, 63, 8.283041e-7),
            (3, 1e-3, 3, 1e-9),
        ];
        for (n, p, x, expected) in exact {
            let found = tail(n, p, x);
            assert!((found / expected - 1.0).abs() < 1e-5, "{n} {p} {x}: {found}");
        }
        assert_eq!([tail(0, 1e-4, 0), tail(4_000_000, 1e-3, 4000)], [1.0, 1.0]);
        assert_eq!(tail(4_000_000, 1e-3, 4_000_000), 0.0, "it has no logarithm's error");
    }

    /// A test that has seen more than 65,536 rounds, in which one place in `one_in` was lost.
    fn with_share(one_in: u64) -> (LossTest, u64) {
        let mut test = LossTest::default();
        let lost_by = |nth: u64| (nth * 100).checked_div(one_in).unwrap_or(0);
        let counts = (0..700).map(|nth| Places {
            first: nth * 100,
            rounds: 100,
            places: 100,
            lost: lost_by(nth + 1) - lost_by(nth),
        });
        counts.for_each(|count| _ = test.add(count));
        (test, 70_000)
    }

    /// What the test says of 1,000 rounds more, after each count of 100 rounds.
    fn losing(test: &mut LossTest, first: u64, lost: [u64; 10]) -> Vec<Option<(u64, u64)>> {
        let count = |(nth, lost): (u64, u64)| Places { first: first + nth * 100, rounds: 100, places: 100, lost };
        (0..).zip(lost).map(|of| test.add(count(of))).collect()
    }

    #[test]
    fn losses_beyond_the_usual_share_are_too_many() {
        // 1 in 10,000 at least, 1 in 1,000 at most.
        for (one_in, enough) in [(0, 5), (20_000, 5), (1000, 10), (250, 10)] {
            let lost = |lost| [lost, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let (mut test, first) = with_share(one_in);
            let spared = losing(&mut test, first, lost(0));
            assert_eq!(spared, [None; 10], "one in {one_in}");
            assert_eq!(losing(&mut test, first + 1000, lost(enough - 1)), [None; 10], "one in {one_in}");
            let found = losing(&mut test, first + 2000, lost(enough));
            assert_eq!(found, [Some((1000, enough)); 10], "in all tests of which they are a part");
            assert_eq!(losing(&mut test, first + 3000, lost(0)), [None; 10]);
        }
    }

    #[test]
    fn losses_of_a_risen_alarm_do_not_become_usual() {
        let (mut test, first) = with_share(0);
        let mut found = Vec::new();
        for nth in 0..2 * BEFORE / 1000 {
            found = losing(&mut test, first + nth * 1000, [1, 1, 1, 0, 1, 1, 1, 0, 1, 0]);
        }
        assert_eq!(found, [Some((1000, 7)); 10], "that would be explained by a share of 7 in 1,000, or 1 in 1,000");
    }

    #[test]
    fn losses_add_up_over_a_thousand_rounds_and_no_longer() {
        let (mut test, first) = with_share(0);
        let found = losing(&mut test, first, [1, 1, 0, 1, 0, 1, 0, 0, 0, 1]);
        assert_eq!((&found[..9], found[9]), (&[None; 9][..], Some((1000, 5))));
        let (mut test, first) = with_share(0);
        assert_eq!(losing(&mut test, first, [4, 0, 0, 0, 0, 0, 0, 0, 0, 0]), [None; 10]);
        assert_eq!(losing(&mut test, first + 1000, [4, 0, 0, 0, 0, 0, 0, 0, 0, 0]), [None; 10]);
    }

    #[test]
    fn count_that_overlaps_another_is_ignored() {
        let (mut test, first) = with_share(0);
        let count = Places { first: first - 50, rounds: 100, places: 100, lost: 100 };
        assert_eq!(test.add(count), None);
        assert_eq!(test.add(Places { first, ..count }), Some((1000, 100)));
    }

    #[test]
    fn first_losses_are_tested_without_a_share() {
        let mut test = LossTest::default();
        let mut add = |first, lost| test.add(Places { first, rounds: 100, places: 100, lost });
        assert_eq!([add(7, 2), add(107, 2), add(207, 1)], [None, Some((200, 4)), Some((300, 5))]);
    }
}
