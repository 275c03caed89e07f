//! A rate limit for packets.
//!
//! A bucket is one integer and takes two additions, because there is one for each flow and address. Control has a
//! bucket of its own (`control/src/admission.rs`): control and data plane do not know each other, and that one counts
//! tokens exactly, which matters at a few handshakes per second and costs floating point.

use crate::{Nanos, SECOND};

/// A rate limit.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The interval between tokens.
    each: Nanos,
    /// The interval times the burst.
    depth: Nanos,
}

impl Rate {
    /// `per_second` tokens a second, at most `burst` at once.
    pub const fn new(per_second: u64, burst: u64) -> Rate {
        let each = SECOND / per_second;
        Rate { each, depth: burst * each }
    }

    /// Tokens of a full bucket.
    const fn burst(self) -> u64 {
        self.depth / self.each
    }

    /// This many per second, a quarter of them at once.
    pub const fn per_second(count: u32) -> Rate {
        Rate::new(count as u64, (count as u64).div_ceil(4))
    }
}

/// A token bucket, full at first: the time at which it is full again.
#[derive(Clone, Copy, Default)]
pub struct Bucket(Nanos);

impl Bucket {
    /// Takes a token, if there is one.
    pub fn take(&mut self, rate: Rate, now: Nanos) -> bool {
        let may = self.has(rate, now);
        if may {
            self.0 = self.0.max(now) + rate.each;
        }
        may
    }

    /// Tokens that were taken and have not come back.
    fn used(self, rate: Rate, now: Nanos) -> u64 {
        self.0.saturating_sub(now).div_ceil(rate.each)
    }

    /// Takes a token from a bucket that several share, if it has more tokens than `own`, the user's part in its use, has
    /// taken from it lately. So k users that always ask leave one part in k + 1 to others (SPEC 5.9).
    pub fn take_shared(&mut self, own: &mut Bucket, rate: Rate, now: Nanos) -> bool {
        let free = rate.burst().saturating_sub(self.used(rate, now));
        free > own.used(rate, now) && self.take(rate, now) && own.take(rate, now)
    }

    /// True if a token was available.
    pub fn has(self, rate: Rate, now: Nanos) -> bool {
        self.0.max(now) + rate.each <= now + rate.depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_bucket_leaves_a_part_to_others() {
        let rate = Rate::new(100, 128);
        let mut all = Bucket::default();
        let mut users = [Bucket::default(); 3];
        let mut at_once = |all: &mut Bucket, user: usize| {
            (0..1000).filter(|_| all.take_shared(&mut users[user], rate, SECOND)).count()
        };
        assert_eq!([0, 1, 2].map(|user| at_once(&mut all, user)), [64, 32, 16]);
    }

    #[test]
    fn users_of_a_shared_bucket_keep_its_rate_and_share_it() {
        let rate = Rate::new(100, 100);
        let mut all = Bucket::default();
        let mut users = [Bucket::default(); 4];
        let mut got = [0u64; 4];
        // Three ask all the time, the last one ten times a second.
        for ms in 0..10_000 {
            for user in 0..3 {
                (0..10)
                    .for_each(|_| got[user] += u64::from(all.take_shared(&mut users[user], rate, ms * SECOND / 1000)));
            }
            if ms % 100 == 0 {
                got[3] += u64::from(all.take_shared(&mut users[3], rate, ms * SECOND / 1000));
            }
        }
        assert!(got.iter().sum::<u64>() <= 100 + 1000, "{got:?}");
        assert_eq!(got[3], 100, "{got:?}");
        assert!(got[..3].iter().all(|got| *got > 150), "{got:?}");
    }
}
