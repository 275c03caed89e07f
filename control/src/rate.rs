//! Rates and the token buckets that enforce them (SPEC 5.9).

use std::time::Duration;

/// The size of a token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u32,
    /// Most tokens that it holds.
    pub burst: u32,
}

/// A token bucket; starts full. The data plane has another (`dataplane/src/rate.rs`), which does not know this crate.
pub(crate) struct Bucket {
    rate: Rate,
    /// Tokens at time `at`.
    tokens: f64,
    at: Duration,
}

impl Bucket {
    pub(crate) fn new(rate: Rate, now: Duration) -> Bucket {
        Bucket { rate, tokens: f64::from(rate.burst), at: now }
    }

    /// Whole tokens that it has.
    pub(crate) fn tokens(&mut self, now: Duration) -> u32 {
        self.take_many(now, 0);
        self.tokens as u32
    }

    /// True if there are fewer than half of the most that it holds.
    pub(crate) fn is_low(&mut self, now: Duration) -> bool {
        2 * u64::from(self.tokens(now)) < u64::from(self.rate.burst)
    }

    /// Takes one token. False if there is none.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        self.take_many(now, 1)
    }

    /// Takes `count` tokens. False, and none are taken, if there are fewer.
    pub(crate) fn take_many(&mut self, now: Duration, count: u32) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * f64::from(self.rate.per_second)).min(f64::from(self.rate.burst));
        let has = self.tokens >= f64::from(count);
        if has {
            self.tokens -= f64::from(count);
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = Bucket::new(Rate { per_second: 5, burst: 20 }, Duration::from_secs(100));
        let mut taken = |millis: u64| (0..100).filter(|_| bucket.take(Duration::from_millis(millis))).count();
        assert_eq!(taken(100_000), 20);
        assert_eq!(taken(100_100), 0);
        assert_eq!(taken(100_400), 2);
        assert_eq!(taken(90_000), 0, "a clock that steps back adds no tokens");
        assert_eq!(taken(200_000), 20);
    }
}
