//! What all signed encodings share: a cursor over bytes, labels of signatures, SHA-256.

use aws_lc_rs::digest;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use thiserror::Error;
use wire::kdf::Secret;

/// Bytes of an Ed25519 signature.
pub(super) const SIGNATURE_LEN: usize = 64;

/// The signatures of this protocol. Each is over its label followed by the signed bytes, so that no
/// signature is valid for something of another kind (SPEC 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Descriptor,
    Record,
    Bundle,
}

impl Label {
    fn text(self) -> &'static [u8] {
        match self {
            Label::Descriptor => b"eddy node",
            Label::Record => b"eddy epoch",
            Label::Bundle => b"eddy bundle",
        }
    }

    fn over(self, bytes: &[u8]) -> Vec<u8> {
        [self.text(), bytes].concat()
    }

    /// Checks a signature over `bytes` under an Ed25519 public key.
    pub(super) fn verifies(self, key: &[u8; 32], bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, key).verify(&self.over(bytes), signature).is_ok()
    }
}

/// An Ed25519 key pair: a node's identity, or its signing key.
pub struct Signer(Ed25519KeyPair);

impl Signer {
    /// The key pair of a 32-byte seed.
    pub fn from_seed(seed: &Secret) -> Signer {
        Signer(Ed25519KeyPair::from_seed_unchecked(seed.expose()).expect("any 32 bytes are a seed"))
    }

    pub fn public(&self) -> [u8; 32] {
        self.0.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes")
    }

    pub(super) fn sign(&self, label: Label, bytes: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(&label.over(bytes)).as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }
}

pub(super) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Why bytes are not what they should be.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    #[error("truncated ({0} bytes)")]
    Truncated(usize),
    #[error("{0} bytes follow the end")]
    Trailing(usize),
    #[error("too long ({0} bytes, at most {1})")]
    TooLong(usize, usize),
    #[error("not an eddy descriptor")]
    NotADescriptor,
    #[error(
        "unsupported descriptor version {found} (expected {expected}): both sides must run matching versions of eddy"
    )]
    Version { found: u8, expected: u8 },
    #[error("the signature does not match")]
    Signature,
    #[error("{0}")]
    Field(&'static str),
}

/// Reads fixed fields from the front of a byte string.
pub(super) struct Reader<'a> {
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { whole: bytes.len(), rest: bytes }
    }

    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(Malformed::Truncated(self.whole))?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        Ok(self.bytes(N)?.try_into().expect("as many as asked for"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.whole - self.rest.len()
    }

    /// Checks that nothing is left.
    pub(super) fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Trailing(self.rest.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_is_valid_for_its_own_label_only() {
        let signer = Signer::from_seed(&Secret::new([7; 32]));
        let labels = [Label::Descriptor, Label::Record, Label::Bundle];
        for signed in labels {
            let signature = signer.sign(signed, b"bytes");
            for read in labels {
                assert_eq!(read.verifies(&signer.public(), b"bytes", &signature), signed == read);
            }
        }
    }

    #[test]
    fn no_label_is_the_beginning_of_another() {
        let labels = [Label::Descriptor, Label::Record, Label::Bundle];
        for a in labels {
            for b in labels {
                assert!(a == b || !a.text().starts_with(b.text()));
            }
        }
    }
}
