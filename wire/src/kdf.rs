//! HKDF-SHA256 and X25519 as the protocol uses them (SPEC 4.3, 5.1), by aws-lc-rs.
//!
//! Every output is wiped when it goes out of scope. An all-zero Diffie-Hellman result is an error, so
//! that a caller cannot forget the check (RFC 7748 6.1).

use aws_lc_rs::{agreement, hkdf, hmac};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A 32-byte secret: a pseudo-random key, a chain of generations, a Diffie-Hellman result.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    pub const fn new(bytes: [u8; 32]) -> Secret {
        Secret(bytes)
    }

    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// HKDF-Extract (RFC 5869 2.2) over the concatenation of `ikm`.
pub fn extract(salt: &[u8], ikm: &[&[u8]]) -> Secret {
    let key = hmac::Key::new(hmac::HMAC_SHA256, salt);
    let mut context = hmac::Context::with_key(&key);
    for part in ikm {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    Secret(out)
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an HKDF expansion yields at most 8160 bytes")]
pub struct TooLong;

/// HKDF-Expand (RFC 5869 2.3) with any info; fills `out`. For the labels of the protocol use
/// `expand`.
///
/// # Errors
/// `out` is longer than 255 hash lengths.
pub fn expand_info(prk: &Secret, info: &[u8], out: &mut [u8]) -> Result<(), TooLong> {
    struct Len(usize);
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, prk.expose())
        .expand(&[info], Len(out.len()))
        .and_then(|okm| okm.fill(out))
        .map_err(|_| TooLong)
}

/// HKDF-Expand with an ASCII label.
pub fn expand<const N: usize>(prk: &Secret, label: &str) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    expand_info(prk, label.as_bytes(), &mut out[..]).expect("N is far below 255 hash lengths");
    out
}

/// [`expand`] to a [`Secret`].
pub(crate) fn expand_secret(prk: &Secret, label: &str) -> Secret {
    Secret(*expand::<32>(prk, label))
}

/// The peer's point yields the all-zero result, or is not a point.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Diffie-Hellman result is all zeros")]
pub struct LowOrder;

/// X25519 (RFC 7748 5).
///
/// # Errors
/// The result is all zeros.
pub fn x25519(private: &Secret, public: &[u8; 32]) -> Result<Secret, LowOrder> {
    let key = agreement::PrivateKey::from_private_key(&agreement::X25519, private.expose()).map_err(|_| LowOrder)?;
    let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, public);
    let mut out = Secret([0; 32]);
    agreement::agree(&key, peer, LowOrder, |shared| {
        out.0.copy_from_slice(shared);
        Ok(())
    })?;
    if bool::from(subtle::ConstantTimeEq::ct_eq(&out.0[..], &[0; 32][..])) {
        return Err(LowOrder);
    }
    Ok(out)
}

/// The public key of an X25519 private key.
pub fn x25519_public(private: &Secret) -> [u8; 32] {
    let key = agreement::PrivateKey::from_private_key(&agreement::X25519, private.expose())
        .expect("every 32-byte string is an X25519 private key");
    let public = key.compute_public_key().expect("a private key has a public key");
    let mut out = [0; 32];
    out.copy_from_slice(public.as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    #[test]
    fn extract_and_expand_match_rfc_5869() {
        // A.1, whose info is binary, and A.3, whose info is empty.
        let prk = extract(&hex!("000102030405060708090a0b0c"), &[&[0x0b; 11], &[0x0b; 11]]);
        assert_eq!(prk.expose(), &hex!("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"));
        let mut okm = [0; 42];
        expand_info(&prk, &hex!("f0f1f2f3f4f5f6f7f8f9"), &mut okm).unwrap();
        assert_eq!(okm, hex!("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"));
        let prk = extract(&[], &[&[0x0b; 22]]);
        let okm: Zeroizing<[u8; 42]> = expand(&prk, "");
        assert_eq!(
            okm[..],
            hex!("8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8")
        );
    }

    #[test]
    fn low_order_point_is_an_error() {
        assert_eq!(x25519(&Secret::new([7; 32]), &[0; 32]).unwrap_err(), LowOrder);
        let mut one = [0; 32];
        one[0] = 1;
        assert_eq!(x25519(&Secret::new([7; 32]), &one).unwrap_err(), LowOrder);
    }

    #[test]
    fn secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new([7; 32])), "Secret(..)");
    }
}
