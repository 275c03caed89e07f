//! The data plane: receive, open, pool, shuffle, seal, send.
//!
//! Data flows one way through the files: [`socket`] -> [`stage::ingress`] -> [`stage::open`] -> [`stage::pool`] ->
//! [`stage::seal`] -> [`socket`]. [`mix`], [`entry`] and [`exit`] are the three workers, and [`paced`] has three more;
//! each has one function, `turn`, that spells its path. A worker of a free class reads no clock but to see that it was
//! stopped (`age`), one of a paced class also to send in time. It never sleeps; [`runner`] does the waiting. Control
//! reaches a worker through one bounded ring of [`command::Command`]s and hears of it through one ring of
//! [`punt::Punt`]s.
//!
//! Neighbours: `wire` for everything cryptographic. `control` and this crate do not know each other.

#![warn(unreachable_pub)]
#![deny(unsafe_code)]

mod age;
pub mod batch;
pub mod buffer;
pub mod command;
pub mod endpoint;
pub mod entry;
pub mod exit;
pub mod histogram;
pub mod lanes;
pub mod latency;
pub mod ledger;
pub mod links;
pub mod meter;
pub mod mix;
pub mod paced;
pub mod per_direction;
pub mod punt;
pub mod rate;
pub mod runner;
mod slab;
pub mod socket;
pub mod stage;
#[allow(unsafe_code)]
pub mod sys;
pub mod table;
mod wheel;

/// Monotonic time in nanoseconds since some start, as the runner reads it once per turn.
pub type Nanos = u64;

/// Nanoseconds in a microsecond.
pub(crate) const MICRO: Nanos = 1_000;
/// Nanoseconds in a millisecond.
pub const MILLI: Nanos = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;

/// Replaces a generator by one seeded from its own output, over its own memory: whoever seizes the process
/// later cannot run it back and undo the shuffles of recorded traffic.
pub(crate) fn rekey(rng: &mut rand_chacha::ChaCha20Rng) {
    *rng = rand::SeedableRng::from_rng(rng);
}

#[cfg(test)]
pub(crate) use skipped::skipped;

/// Shared with the integration tests of the workspace.
#[cfg(test)]
#[path = "../../tests/common/skipped.rs"]
mod skipped;

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha20Rng;

    #[test]
    fn a_generator_that_was_replaced_does_not_run_back() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut past = [0; 1000];
        rng.fill_bytes(&mut past);
        let mut next = rng.clone();
        super::rekey(&mut rng);
        assert_ne!(rng, next, "nothing of the old state is left");
        // Who has the state can go to any of its positions, the first one too.
        rng.set_word_pos(0);
        let mut stolen = [0; 8000];
        rng.fill_bytes(&mut stolen);
        assert!(past.chunks(8).all(|word| !stolen.windows(8).any(|other| other == word)));
        assert_ne!(next.next_u64().to_le_bytes(), stolen[..8]);
    }
}
