//! The terms of a chain, and the id that everyone compares (SPEC 7.4).
//!
//! Whatever all its nodes and users must agree on is in the id. Descriptors are not, so the id
//! survives renewals and moves.

use thiserror::Error;
use wire::cell::{Class, MAX_HOPS};
use wire::ids::ClassId;
use wire::paced::PacedTerms;
use wire::paced::terms::BadPacedTerms;
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
    /// Free classes, by ascending number. A chain may have paced ones only.
    pub classes: Vec<ClassTerms>,
    /// Paced classes, by ascending number.
    pub paced: Vec<PacedTerms>,
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

#[derive(Clone, Debug, Error, PartialEq, Eq)]
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
    #[error("two paced classes have the name {0:?}: each needs its own")]
    SameName(String),
    /// The name of a paced class, and what is wrong with it.
    #[error("class {0}: {1}")]
    Paced(String, BadPacedTerms),
}

impl ChainTerms {
    /// The class with whose links hops reach each other for what they sign (SPEC 7.8).
    ///
    /// # Panics
    /// The chain has no class: it was not checked.
    pub fn first_class(&self) -> ClassId {
        self.class_ids().next().expect("a chain has a class")
    }

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
        if self.class_ids().next().is_none() || !self.class_ids().is_sorted_by(|a, b| a < b) {
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
        for (i, terms) in self.paced.iter().enumerate() {
            if self.paced[..i].iter().any(|other| other.name == terms.name) {
                return Err(BadTerms::SameName(terms.name.clone()));
            }
        }
        self.paced.iter().try_for_each(|terms| {
            let checked = terms.check(self.suite, hops, self.interval_s, self.epoch_s);
            checked.map_err(|why| BadTerms::Paced(terms.name.clone(), why))
        })
    }

    /// Its classes, by ascending number.
    pub fn class_ids(&self) -> impl Iterator<Item = ClassId> {
        let free = self.classes.iter().map(|terms| terms.class.into());
        free.chain(self.paced.iter().map(|terms| terms.class.into()))
    }

    /// SHA-256 of the canonical encoding.
    pub fn id(&self) -> [u8; 32] {
        let mut out = Vec::with_capacity(64 + 32 * self.identities.len());
        out.extend_from_slice(b"eddy chain");
        out.extend_from_slice(&[VERSION, self.suite as u8]);
        out.extend_from_slice(&self.interval_s.to_be_bytes());
        out.extend_from_slice(&self.epoch_s.to_be_bytes());
        out.extend_from_slice(&[self.identities.len() as u8, self.class_ids().count() as u8]);
        for terms in &self.classes {
            out.push(terms.class as u8);
            out.extend_from_slice(&terms.mixing_delay_ms.to_be_bytes());
            out.extend_from_slice(&terms.lifetime_s.to_be_bytes());
        }
        self.paced.iter().for_each(|terms| terms.encode(&mut out));
        self.identities.iter().for_each(|identity| out.extend_from_slice(identity));
        sha256(&[&out])
    }
}

#[cfg(test)]
pub(super) mod tests {
    use hex_literal::hex;
    use wire::paced::PacedClass;

    use super::*;

    pub(crate) fn terms() -> ChainTerms {
        ChainTerms {
            suite: Suite::Hybrid,
            interval_s: 10,
            epoch_s: 3600,
            classes: vec![ClassTerms { class: Class::L, mixing_delay_ms: 5, lifetime_s: 3600 }],
            paced: Vec::new(),
            identities: vec![[1; 32], [2; 32], [3; 32]],
        }
    }

    /// The same with two paced classes.
    fn paced_terms() -> ChainTerms {
        let paced = |size, name| PacedTerms::new(PacedClass::new(size), name, 3);
        ChainTerms { paced: vec![paced(Class::S, "voice"), paced(Class::L, "video")], ..terms() }
    }

    /// Checks that each change keeps to the bounds and gives an id of its own.
    fn assert_ids_differ(terms: &ChainTerms, changes: &[fn(&mut ChainTerms)]) {
        let mut ids = vec![terms.id()];
        for change in changes {
            let mut changed = terms.clone();
            change(&mut changed);
            assert_eq!(changed.check(), Ok(()));
            assert!(!ids.contains(&changed.id()), "{changed:?}");
            ids.push(changed.id());
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
        assert_ids_differ(&terms(), &changes);
    }

    #[test]
    fn every_term_of_a_paced_class_changes_the_id() {
        let changes: [fn(&mut ChainTerms); 17] = [
            |t| t.paced[0].class = PacedClass::new(Class::M),
            |t| t.paced[0].name = "calls".to_owned(),
            |t| t.paced[0].period_ms = 11,
            |t| t.paced[0].cells = 2,
            |t| t.paced[0].rounds = 4096,
            |t| t.paced[0].copies = 3,
            |t| t.paced[0].gap = 2,
            |t| t.paced[0].repeat = true,
            |t| t.paced[0].n_min = 9,
            |t| t.paced[0].seats = 257,
            |t| t.paced[0].loops = 3,
            |t| t.paced[0].slack_ms = 9,
            |t| t.paced[0].steps_ms = vec![5, 6],
            |t| t.paced[1].steps_ms = vec![6, 5],
            |t| t.classes.clear(),
            |t| t.paced.truncate(1),
            |t| t.paced.clear(),
        ];
        assert_ids_differ(&paced_terms(), &changes);
    }

    /// As wire/tests/paced.json has it; the identities are the `descriptor_hash` of wire/tests/known_answer.json.
    #[test]
    fn id_of_a_paced_chain_is_the_known_answer() {
        let voice = PacedTerms::new(PacedClass::new(Class::S), "voice", 4);
        let terms = ChainTerms {
            classes: Vec::new(),
            paced: vec![PacedTerms { repeat: true, steps_ms: vec![2; 3], ..voice }],
            identities: vec![
                hex!("cecc13720d7ff03686ae7db40536b5d25a63c773a0ba1157d264577de227d125"),
                hex!("2feb41f2e945ae266dbca9f4382f5c7e4b8f701f63f2ea26d5388337a77e7d7e"),
                hex!("bf9d350b6f42224afc816a774ea6c25ed677a48ce3075446f14d784cb5ef09bf"),
                hex!("dad3ecc1b7d2fd136e49e9412fba864bb0cb1b309efc1f897bd99abddd535bb8"),
            ],
            ..terms()
        };
        assert_eq!(terms.check(), Ok(()));
        assert_eq!(terms.id(), hex!("018e8311d9b8cd51e9148e6c88b5eeb3b37dcc0a82348b06b67bdc6ec1779c10"));
    }

    #[test]
    fn bad_paced_classes_are_refused() {
        let refused = |change: fn(&mut ChainTerms), why: BadTerms| {
            let mut changed = paced_terms();
            change(&mut changed);
            assert_eq!(changed.check(), Err(why));
        };
        refused(|t| t.paced.swap(0, 1), BadTerms::Classes);
        refused(|t| t.paced[1].class = PacedClass::new(Class::S), BadTerms::Classes);
        refused(|t| t.paced[1].name = "voice".to_owned(), BadTerms::SameName("voice".to_owned()));
        refused(|t| t.paced[1].rounds = 100, BadTerms::Paced("video".to_owned(), BadPacedTerms::Rounds(100)));
        let interval = BadPacedTerms::Interval { interval_ms: 7000, least_ms: 7200 };
        refused(|t| t.interval_s = 7, BadTerms::Paced("voice".to_owned(), interval));
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
