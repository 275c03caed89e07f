//! A log-linear histogram of fixed size.
//!
//! Eight buckets for each power of two: a bucket is at most an eighth as wide as what lies in it, so a quantile is at
//! most an eighth too high. Numbers below 16 have a bucket each. Knows no unit: nanoseconds up to 137 seconds and cells
//! of a release go into the same. Takes no memory when it counts.

/// Buckets for each power of two, as a power of two.
const BITS: u32 = 3;
/// Values of more than this many bits go into the last bucket: in nanoseconds, above 137 seconds.
const LENGTH_MAX: u32 = 37;
const BUCKETS: usize = (((LENGTH_MAX - BITS) << BITS) + (1 << BITS)) as usize;

/// Counts of numbers, by size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    count: u64,
    sum: u64,
    max: u64,
    buckets: [u64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { count: 0, sum: 0, max: 0, buckets: [0; BUCKETS] }
    }
}

/// The bucket of a number.
fn place(value: u64) -> usize {
    let value = value.min((1 << LENGTH_MAX) - 1);
    // The least shift after which no more than the leading bit and `BITS` others are left.
    let shift = (value | 1 << BITS).ilog2() - BITS;
    ((u64::from(shift) << BITS) + (value >> shift)) as usize
}

/// The largest number of a bucket.
fn upper(place: usize) -> u64 {
    let shift = (place >> BITS).saturating_sub(1) as u32;
    ((place as u64 - (u64::from(shift) << BITS) + 1) << shift) - 1
}

impl Histogram {
    /// Counts a number `times` times.
    pub fn add(&mut self, value: u64, times: u64) {
        self.count += times;
        self.sum += value * times;
        self.max = self.max.max(value);
        self.buckets[place(value)] += times;
    }

    /// Number of values counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The largest; 0 of none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean; 0 of none.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// An upper bound of the `q` quantile, at most an eighth too large. 0 if nothing was counted.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count.max(1));
        let mut below = 0;
        for (place, count) in self.buckets.iter().enumerate() {
            below += count;
            // The last bucket also holds all larger values.
            if below >= rank && place < BUCKETS - 1 {
                return upper(place).min(self.max);
            }
        }
        self.max
    }

    /// Buckets that are not empty, smallest first: the largest number that falls into each, and how many did.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let filled = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(place, count)| (if place == BUCKETS - 1 { self.max } else { upper(place) }, *count))
    }

    #[must_use]
    pub fn and(mut self, other: &Histogram) -> Histogram {
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(count, more)| *count += more);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Numbers of every length, up to beyond the last bucket.
    fn values() -> impl Strategy<Value = Vec<(u64, u64)>> {
        vec(((0u32..42, any::<u64>()).prop_map(|(length, bits)| bits & ((1 << length) - 1)), 1u64..4), 1..200)
    }

    fn histogram(values: &[(u64, u64)]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|(value, times)| histogram.add(*value, *times));
        histogram
    }

    proptest! {
        #[test]
        fn a_quantile_is_the_sorted_lists_or_at_most_an_eighth_more(values in values(), q in 0.0..=1.0f64) {
            let histogram = histogram(&values);
            let mut list: Vec<u64> = values.iter().flat_map(|(value, times)| vec![*value; *times as usize]).collect();
            list.sort_unstable();
            let rank = ((q * list.len() as f64).ceil() as usize).clamp(1, list.len());
            let (exact, told) = (list[rank - 1], histogram.quantile(q));
            prop_assert!(told >= exact, "{told} for {exact}");
            // Values beyond the last bucket are reported as the largest one.
            prop_assert!(told <= exact + exact / 8 || exact >= 1 << LENGTH_MAX && told == list[list.len() - 1]
                || exact >= upper(BUCKETS - 2), "{told} for {exact}");
            prop_assert_eq!(histogram.max(), list[list.len() - 1]);
            prop_assert_eq!(histogram.count(), list.len() as u64);
            let mean = list.iter().sum::<u64>() as f64 / list.len() as f64;
            prop_assert!((histogram.mean() - mean).abs() <= mean * 1e-9);
        }

        #[test]
        fn every_number_lies_in_its_bucket_and_buckets_tell_all(values in values()) {
            let histogram = histogram(&values);
            let buckets: Vec<_> = histogram.buckets().collect();
            prop_assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0));
            let mut below = 0;
            for (upper, count) in buckets {
                let exact: u64 = values.iter().filter(|(value, _)| *value <= upper).map(|(_, times)| times).sum();
                below += count;
                prop_assert_eq!(below, exact);
            }
            prop_assert_eq!(below, histogram.count());
        }

        #[test]
        fn the_sum_of_two_is_that_of_all(mine in values(), theirs in values()) {
            let all = histogram(&[&mine[..], &theirs].concat());
            prop_assert_eq!(histogram(&mine).and(&histogram(&theirs)), all);
        }
    }

    #[test]
    fn buckets_follow_one_another_without_a_gap() {
        let mut last = None;
        for bucket in 0..BUCKETS {
            let first = last.map_or(0, |last| last + 1);
            assert_eq!((place(first), place(upper(bucket))), (bucket, bucket));
            last = Some(upper(bucket));
        }
        assert_eq!(last, Some((1 << LENGTH_MAX) - 1));
        assert_eq!(place(u64::MAX), BUCKETS - 1);
        assert_eq!((Histogram::default().quantile(0.5), Histogram::default().mean()), (0, 0.0));
    }
}
