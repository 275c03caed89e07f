//! Generators of random numbers, seeded by the operating system.

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use zeroize::Zeroizing;

use crate::error::StartError;

/// A new generator.
///
/// # Errors
/// The system returns no random bytes.
pub fn rng() -> Result<ChaCha20Rng, StartError> {
    let mut seed = Zeroizing::new([0; 32]);
    let system = StartError::system("read random bytes from the system");
    getrandom::fill(&mut seed[..]).map_err(|why| system(why.into()))?;
    Ok(ChaCha20Rng::from_seed(*seed))
}
