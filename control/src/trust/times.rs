//! The arithmetic of intervals and epochs (SPEC 7.6, 7.7, 7.9). All times are milliseconds since
//! 1970; divisions round down.

use std::time::Duration;

use super::chain::ChainTerms;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// I.
    interval_ms: u64,
    /// E.
    epoch_ms: u64,
}

impl Times {
    pub fn new(terms: &ChainTerms) -> Times {
        Times { interval_ms: u64::from(terms.interval_s) * 1000, epoch_ms: u64::from(terms.epoch_s) * 1000 }
    }

    /// I.
    pub fn interval_ms(&self) -> u64 {
        self.interval_ms
    }

    /// How long a hop waits for records and signatures that are under way before it signs.
    pub fn settle_ms(&self) -> u64 {
        self.interval_ms / 20
    }

    /// A pair of keys is wiped after this, whatever the host's clock does: 7E/5 + 2I.
    pub fn key_life_max(&self) -> Duration {
        Duration::from_millis(self.epoch_ms * 7 / 5 + 2 * self.interval_ms)
    }

    /// True if a node that has not drawn keys since they were made, at `made` seconds since 1970, may start as one that
    /// has never signed: for an epoch. Later its files may come from a backup or from the image of a container.
    pub fn counts_as_new(&self, made: u64, ms: u64) -> bool {
        let since_ms = (ms / 1000).checked_sub(made).map(|since| since.saturating_mul(1000));
        made > 0 && since_ms.is_some_and(|since| since < self.epoch_ms)
    }

    /// The interval that runs at a time.
    pub fn interval_at(&self, ms: u64) -> u64 {
        ms / self.interval_ms
    }

    pub fn interval_start(&self, interval: u64) -> u64 {
        interval.saturating_mul(self.interval_ms)
    }

    /// True if one of these intervals begins an epoch or more after the other.
    pub fn is_epoch_apart(&self, one: u64, other: u64) -> bool {
        one.abs_diff(other).saturating_mul(self.interval_ms) >= self.epoch_ms
    }

    /// When hops begin to sign for an interval.
    pub fn signing_start(&self, interval: u64) -> u64 {
        self.interval_start(interval).saturating_sub(self.interval_ms / 5)
    }

    /// The latest interval for which hops sign at a time: the running one, or the next shortly before it begins.
    pub fn signable_at(&self, ms: u64) -> u64 {
        self.interval_at(ms + self.interval_ms / 5)
    }

    /// All intervals for which hops sign at a time: the running one, and the next shortly before it begins.
    pub fn signable(&self, ms: u64) -> std::ops::RangeInclusive<u64> {
        self.interval_at(ms)..=self.signable_at(ms)
    }

    /// The epoch whose records the bundle of an interval has.
    pub fn epoch_of(&self, interval: u64) -> u64 {
        self.interval_start(interval).saturating_mul(60).saturating_sub(self.epoch_ms) / (60 * self.epoch_ms)
    }

    /// The first interval of an epoch's records.
    pub fn switch(&self, epoch: u64) -> u64 {
        (60 * epoch * self.epoch_ms + self.epoch_ms).div_ceil(60 * self.interval_ms)
    }

    /// When an epoch's records are published: E/6 before it, rounded up.
    pub fn publish_at(&self, epoch: u64) -> u64 {
        (epoch * self.epoch_ms).saturating_sub(self.epoch_ms / 6)
    }

    /// From when setups to an epoch's keys are accepted: an interval before their first bundle, for clocks that are
    /// ahead. Not from their publication, for their replay cache has no room for that.
    pub fn accept_at(&self, epoch: u64) -> u64 {
        self.interval_start(self.switch(epoch).saturating_sub(1))
    }

    /// When setups to an epoch's keys are refused, and the keys wiped.
    pub fn wipe_at(&self, epoch: u64) -> u64 {
        self.interval_start(self.switch(epoch + 1)) + self.epoch_ms / 6
    }

    /// Setups that one pair of keys may accept, at `rate` per second: in 7E/6 + 2I (SPEC 7.9.4).
    pub fn setups_per_key(&self, rate: u32) -> u64 {
        (u64::from(rate) * (self.epoch_ms * 7 + 12 * self.interval_ms)).div_ceil(6 * 1000)
    }

    /// If a switch of epochs is less than an interval away, before or after: when it no longer is.
    pub fn near_switch_until(&self, ms: u64) -> Option<u64> {
        let epoch = ms / self.epoch_ms;
        let switches = [epoch, epoch + 1].map(|epoch| self.interval_start(self.switch(epoch)));
        let near = switches.into_iter().find(|switch| switch.abs_diff(ms) < self.interval_ms);
        near.map(|switch| switch + self.interval_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::terms;
    use super::*;

    fn times(interval_s: u32, epoch_s: u32) -> Times {
        Times::new(&ChainTerms { interval_s, epoch_s, ..terms() })
    }

    #[test]
    fn switch_is_the_first_interval_of_its_epoch() {
        for (interval_s, epoch_s) in [(1, 10), (10, 3600), (7, 100), (600, 6000), (1, 86_400), (600, 86_400)] {
            let times = times(interval_s, epoch_s);
            for epoch in [1, 2, 489_000] {
                let switch = times.switch(epoch);
                assert_eq!((times.epoch_of(switch), times.epoch_of(switch - 1)), (epoch, epoch - 1));
            }
        }
    }

    #[test]
    fn records_are_out_before_signing_and_keys_outlive_use() {
        for (interval_s, epoch_s) in [(1, 10), (10, 3600), (7, 100), (600, 6000), (600, 86_400)] {
            let times = times(interval_s, epoch_s);
            let epoch = 1000;
            assert!(times.publish_at(epoch) < times.signing_start(times.switch(epoch)));
            let last = times.switch(epoch + 1) - 1;
            assert!(times.wipe_at(epoch) > times.interval_start(last + 1) + times.interval_ms);
            // Two pairs of keys at most: an epoch's are wiped before those after the next are published.
            assert!(times.wipe_at(epoch) < times.publish_at(epoch + 2));
            assert!(times.publish_at(epoch) <= times.accept_at(epoch));
            let accepted_s = (times.wipe_at(epoch) - times.accept_at(epoch)).div_ceil(1000);
            assert!(times.setups_per_key(1000) >= 1000 * accepted_s - 1000, "{times:?}");
        }
    }

    #[test]
    fn hops_sign_from_a_fifth_of_an_interval_before_it() {
        let times = times(10, 3600);
        assert_eq!(times.signing_start(7), 68_000);
        assert_eq!([67_999, 68_000, 77_999].map(|ms| times.signable_at(ms)), [6, 7, 7]);
        assert_eq!([67_999, 68_000, 70_000].map(|ms| times.signable(ms)), [6..=6, 6..=7, 7..=7]);
    }

    #[test]
    fn times_of_the_default_terms() {
        let times = times(10, 3600);
        // E/60 is 60 s: the seventh interval after the hour is the first with new keys.
        assert_eq!(times.switch(1), 366);
        assert_eq!(times.publish_at(1), 3_000_000);
        assert_eq!(times.wipe_at(1), 7_260_000 + 600_000);
        assert_eq!(times.setups_per_key(1000), 4_220_000);
        for (offset_ms, near) in [(-10_000, false), (-9_999, true), (0, true), (9_999, true), (10_000, false)] {
            let until = times.near_switch_until(3_660_000u64.strict_add_signed(offset_ms));
            assert_eq!(until, near.then_some(3_670_000), "{offset_ms}");
        }
    }
}
