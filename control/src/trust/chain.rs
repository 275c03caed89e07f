//! The terms of a chain, and the id that everyone compares (SPEC 7.4).
//!
//! Whatever all its nodes and users must agree on is in the id. Descriptors are not, so the id
//! survives renewals and moves.

use thiserror::Error;
use wire::cell::{Class, MAX_HOPS};
use wire::setup::Suite;

use super::encoding::sha256;

const VERSION: u8 = 1;
/// Range of the interval I, in seconds.
pub const INTERVAL_S: std::ops::RangeInclusive<u32> = 1..=600;
/// Longest epoch E, in seconds. The shortest has ten intervals.
pub const EPOCH_MAX_S: u32 = 86_400;
pub const INTERVALS_PER_EPOCH_MIN: u32 = 10;
pub const MIXING_DELAY_MAX_MS: u32 = 60_000;
pub const LIFETIME_MAX_S: u16 = 3600;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainTerms {
    pub suite: Suite,
    /// I, in seconds.
    pub interval_s: u32,
    /// E, in seconds.
    pub epoch_s: u32,
    /// By ascending class number.
    pub classes: Vec<ClassTerms>,
    /// Ed25519 public keys of the hops, Mix 1 first, the exit last.
    pub identities: Vec<[u8; 32]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassTerms {
    pub class: Class,
    /// Longest delay that the mixing of any hop may add.
    pub mixing_delay_ms: u32,
    /// Lifetime of every channel.
    pub lifetime_s: u16,
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BadTerms {
    #[error("a chain has 2 to {MAX_HOPS} hops: one to seven mixes and an exit (got {0})")]
    Hops(usize),
    #[error("hops {0} and {1} have one identity: each hop of a chain needs its own")]
    SameIdentity(usize, usize),
    #[error("the interval must be 1 to 600 s (got {0})")]
    Interval(u32),
    #[error("the epoch must be {least_s}, ten intervals, to {EPOCH_MAX_S} s (got {epoch_s})")]
    Epoch { epoch_s: u32, least_s: u32 },
    #[error("the classes must be listed once each, in ascending order, at least one")]
    Classes,
    #[error("the largest mixing delay must be at most 60000 ms (got {0})")]
    MixingDelay(u32),
    #[error("the lifetime of a channel must be 1 to 3600 s (got {0})")]
    Lifetime(u16),
}

impl ChainTerms {
    /// Checks ranges and that no identity is listed twice.
    ///
    /// # Errors
    /// See [`BadTerms`].
    pub fn check(&self) -> Result<(), BadTerms> {
        let hops = self.identities.len();
        if !(2..=MAX_HOPS).contains(&hops) {
            return Err(BadTerms::Hops(hops));
        }
        for (later, identity) in self.identities.iter().enumerate() {
            if let Some(earlier) = self.identities[..later].iter().position(|other| other == identity) {
                return Err(BadTerms::SameIdentity(earlier + 1, later + 1));
            }
        }
        if !INTERVAL_S.contains(&self.interval_s) {
            return Err(BadTerms::Interval(self.interval_s));
        }
        let least_s = INTERVALS_PER_EPOCH_MIN * self.interval_s;
        if !(least_s..=EPOCH_MAX_S).contains(&self.epoch_s) {
            return Err(BadTerms::Epoch { epoch_s: self.epoch_s, least_s });
        }
        if self.classes.is_empty() || !self.classes.is_sorted_by(|a, b| (a.class as u8) < b.class as u8) {
            return Err(BadTerms::Classes);
        }
        for terms in &self.classes {
            if terms.mixing_delay_ms > MIXING_DELAY_MAX_MS {
                return Err(BadTerms::MixingDelay(terms.mixing_delay_ms));
            }
            if !(1..=LIFETIME_MAX_S).contains(&terms.lifetime_s) {
                return Err(BadTerms::Lifetime(terms.lifetime_s));
            }
        }
        Ok(())
    }

    /// SHA-256 of the canonical encoding.
    pub fn id(&self) -> [u8; 32] {
        let mut out = Vec::with_capacity(64 + 32 * self.identities.len());
        out.extend_from_slice(b"eddy chain");
        out.extend_from_slice(&[VERSION, self.suite as u8]);
        out.extend_from_slice(&self.interval_s.to_be_bytes());
        out.extend_from_slice(&self.epoch_s.to_be_bytes());
        out.extend_from_slice(&[self.identities.len() as u8, self.classes.len() as u8]);
        for terms in &self.classes {
            out.push(terms.class as u8);
            out.extend_from_slice(&terms.mixing_delay_ms.to_be_bytes());
            out.extend_from_slice(&terms.lifetime_s.to_be_bytes());
        }
        self.identities.iter().for_each(|identity| out.extend_from_slice(identity));
        sha256(&[&out])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn terms() -> ChainTerms {
        ChainTerms {
            suite: Suite::Hybrid,
            interval_s: 10,
            epoch_s: 3600,
            classes: vec![ClassTerms { class: Class::L, mixing_delay_ms: 5, lifetime_s: 3600 }],
            identities: vec![[1; 32], [2; 32], [3; 32]],
        }
    }

    #[test]
    fn every_term_changes_the_id() {
        let changes: [fn(&mut ChainTerms); 9] = [
            |t| t.suite = Suite::X25519,
            |t| t.interval_s = 11,
            |t| t.epoch_s = 3601,
            |t| t.classes[0].class = Class::S,
            |t| t.classes[0].mixing_delay_ms = 6,
            |t| t.classes[0].lifetime_s = 60,
            |t| t.identities.swap(0, 1),
            |t| t.identities[2][31] ^= 1,
            |t| t.identities.truncate(2),
        ];
        let mut ids = vec![terms().id()];
        for change in changes {
            let mut changed = terms();
            change(&mut changed);
            assert_eq!(changed.check(), Ok(()));
            assert!(!ids.contains(&changed.id()), "{changed:?}");
            ids.push(changed.id());
        }
    }

    #[test]
    fn terms_out_of_range_are_refused() {
        let refused = |change: fn(&mut ChainTerms), why: BadTerms| {
            let mut changed = terms();
            change(&mut changed);
            assert_eq!(changed.check(), Err(why));
        };
        refused(|t| t.identities.truncate(1), BadTerms::Hops(1));
        refused(|t| t.identities = (0..9).map(|i| [i; 32]).collect(), BadTerms::Hops(9));
        refused(|t| t.identities[2] = [1; 32], BadTerms::SameIdentity(1, 3));
        refused(|t| t.interval_s = 0, BadTerms::Interval(0));
        refused(|t| t.epoch_s = 99, BadTerms::Epoch { epoch_s: 99, least_s: 100 });
        refused(|t| t.classes.clear(), BadTerms::Classes);
        refused(|t| t.classes.push(t.classes[0]), BadTerms::Classes);
        refused(|t| t.classes[0].mixing_delay_ms = 60_001, BadTerms::MixingDelay(60_001));
        refused(|t| t.classes[0].lifetime_s = 0, BadTerms::Lifetime(0));
    }
}
