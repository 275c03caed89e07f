//! A rate limit for packets.
//!
//! A bucket is one integer and takes two additions, because there is one for each flow and address. Control has a
//! bucket of its own (`control/src/rate.rs`): control and data plane do not know each other, and that one counts
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

    /// True if a token was available.
    pub fn has(self, rate: Rate, now: Nanos) -> bool {
        self.0.max(now) + rate.each <= now + rate.depth
    }
}
