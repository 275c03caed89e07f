//! What a flow sends in one direction, and the random numbers that it is drawn from.

use dataplane::per_direction::PerDirection;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

/// Nanoseconds since the run began.
pub(crate) type Nanos = u64;
pub(crate) const SECOND: Nanos = 1_000_000_000;
pub(crate) const MILLI: Nanos = 1_000_000;

/// Datagrams of one flow in one direction, in order of time.
pub(crate) trait Source: Send {
    /// When the next datagram is due, and its length in bytes.
    fn next(&mut self) -> Option<(Nanos, usize)>;
}

/// What a flow sends in each direction.
pub(crate) type Sources = PerDirection<Option<Box<dyn Source>>>;

/// A generator that draws the same for the same seed.
pub(crate) fn seeded(seed: u64) -> ChaCha20Rng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    ChaCha20Rng::from_seed(bytes)
}

/// Draws from an exponential distribution.
pub(crate) fn exponential(rng: &mut ChaCha20Rng, mean: f64) -> f64 {
    let uniform: f64 = rng.random();
    -mean * (1.0 - uniform).ln()
}

/// All that a source sends in `seconds`.
#[cfg(test)]
pub(crate) fn collect(mut source: Box<dyn Source>, seconds: u64) -> Vec<(Nanos, usize)> {
    std::iter::from_fn(|| source.next()).take_while(|(at, _)| *at < seconds * SECOND).collect()
}
