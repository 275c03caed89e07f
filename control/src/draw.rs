//! Draws private keys.

use rand::Rng;
use wire::kdf::{Secret, x25519_public};

/// Draws 32 bytes: a seed of Ed25519, a private key of X25519.
pub fn draw_secret(rng: &mut impl Rng) -> Secret {
    let mut bytes = zeroize::Zeroizing::new([0; 32]);
    rng.fill_bytes(&mut bytes[..]);
    Secret::new(*bytes)
}

/// Draws a private key of X25519, and its public key, for Noise statics.
pub fn draw_x25519(rng: &mut impl Rng) -> (Secret, [u8; 32]) {
    let secret = draw_secret(rng);
    let public = x25519_public(&secret);
    (secret, public)
}
