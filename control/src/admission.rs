//! Limits on the work that peers can cause: token buckets and the replay cache (SPEC 5.9, 5.3).
//!
//! Both have a bound from the configuration and refuse when it is reached. The caps on links and
//! channels are checked where those tables are.

use std::collections::HashSet;
use std::time::Duration;

use crate::config::Rate;

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

    /// Takes one token. False if there is none.
    pub(crate) fn take(&mut self, now: Duration) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * f64::from(self.rate.per_second)).min(f64::from(self.rate.burst));
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }
}

/// Tags of the setups that this setup key has opened, for as long as the key is in use.
pub(crate) struct ReplayCache {
    seen: HashSet<[u8; 16]>,
    cap: usize,
}

impl ReplayCache {
    pub(crate) fn new(cap: usize) -> ReplayCache {
        ReplayCache { seen: HashSet::new(), cap }
    }

    pub(crate) fn contains(&self, tag: &[u8; 16]) -> bool {
        self.seen.contains(tag)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.seen.len() >= self.cap
    }

    pub(crate) fn insert(&mut self, tag: [u8; 16]) {
        self.seen.insert(tag);
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
