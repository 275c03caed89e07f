//! A hop's setup keys of one epoch, signed (SPEC 7.5).
//!
//! ```text
//! off  len   field
//! 0    32    identity
//! 32   32    SHA-256 of the descriptor whose signing key signs this record, without its signature
//! 64   8     revision of that descriptor
//! 72   8     epoch
//! 80   8     draw
//! 88   32    X25519 setup key
//! 120  1184  ML-KEM-768 encapsulation key; absent in suite 1
//! ..   64    signature by the signing key, over the chain id and everything before
//! ```
//!
//! It travels without its first 64 bytes, which the receiver knows from the hop and the revision.

use wire::kdf::{Secret, x25519};
use wire::setup::{MLKEM_PUBLIC_LEN, SetupPublic, Suite};

use super::descriptor::{NUMBER_END, SignedDescriptor};
use super::encoding::{Label, Malformed, Reader, SIGNATURE_LEN, Signer, sha256};

/// Bytes that do not travel: identity and descriptor hash.
const KNOWN_LEN: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochRecord {
    pub identity: [u8; 32],
    /// Hash of the descriptor whose signing key signs this record.
    pub descriptor: [u8; 32],
    /// Its revision.
    pub revision: u64,
    /// Seconds since 1970, divided by E.
    pub epoch: u64,
    /// Grows with every record of a node.
    pub draw: u64,
    pub setup: SetupPublic,
}

impl EpochRecord {
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(120 + MLKEM_PUBLIC_LEN + SIGNATURE_LEN);
        out.extend_from_slice(&self.identity);
        out.extend_from_slice(&self.descriptor);
        out.extend_from_slice(&self.revision.to_be_bytes());
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.draw.to_be_bytes());
        out.extend_from_slice(self.setup.x25519());
        out.extend_from_slice(self.setup.mlkem().map_or(&[][..], |key| key));
        out
    }

    /// Signs it for a chain, with the node's signing key.
    pub fn sign(self, chain: &[u8; 32], signer: &Signer) -> SignedRecord {
        let mut bytes = self.to_bytes();
        let hash = sha256(&[&bytes]);
        let signature = signer.sign(Label::Record, &[chain, &bytes[..]].concat());
        bytes.extend_from_slice(&signature);
        SignedRecord { content: self, bytes, hash }
    }
}

/// A record whose signature was checked, with the bytes that were signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRecord {
    content: EpochRecord,
    bytes: Vec<u8>,
    hash: [u8; 32],
}

/// Which of two records of one hop and epoch counts: the greater one. The hash decides between two of one draw,
/// which only a faulty node makes, so that everyone makes the same choice.
pub type Rank = (u64, u64, [u8; 32]);

impl SignedRecord {
    /// Reads a record as it travels, and checks that the node of `descriptor` signed it for this chain.
    ///
    /// # Errors
    /// Another length, another revision, a key that is not one, or a signature that does not verify.
    pub fn read(
        travelled: &[u8],
        suite: Suite,
        chain: &[u8; 32],
        descriptor: &SignedDescriptor,
    ) -> Result<SignedRecord, Malformed> {
        let bytes = [&descriptor.identity[..], descriptor.hash(), travelled].concat();
        let mut reader = Reader::new(&bytes);
        let content = EpochRecord {
            identity: reader.array()?,
            descriptor: reader.array()?,
            revision: reader.u64()?,
            epoch: reader.u64()?,
            draw: reader.u64()?,
            setup: read_keys(&mut reader, suite)?,
        };
        let signed = reader.position();
        let signature = reader.bytes(SIGNATURE_LEN)?;
        reader.end()?;
        if content.revision != descriptor.revision {
            return Err(Malformed::Field("the record is of another revision of the descriptor"));
        }
        if content.draw >= NUMBER_END {
            return Err(Malformed::Field("its draw is out of range"));
        }
        if !Label::Record.verifies(&descriptor.signing, &[chain, &bytes[..signed]].concat(), signature) {
            return Err(Malformed::Signature);
        }
        let hash = sha256(&[&bytes[..signed]]);
        Ok(SignedRecord { content, bytes, hash })
    }

    /// The revision that a travelling record claims, before anything in it is trusted.
    pub fn claimed_revision(travelled: &[u8]) -> Option<u64> {
        Reader::new(travelled).u64().ok()
    }

    /// The epoch that it claims.
    pub fn claimed_epoch(travelled: &[u8]) -> Option<u64> {
        let mut reader = Reader::new(travelled);
        reader.u64().and_then(|_| reader.u64()).ok()
    }

    pub fn content(&self) -> &EpochRecord {
        &self.content
    }

    /// As it travels: without what the receiver knows, with the signature.
    pub fn travelling(&self) -> &[u8] {
        &self.bytes[KNOWN_LEN..]
    }

    pub fn rank(&self) -> Rank {
        (self.content.revision, self.content.draw, self.hash)
    }

    /// SHA-256 of the bytes without the signature.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// D of the hop at a position, from 1, of a chain with `hops` hops (SPEC 5.1).
    pub fn setup_hash(&self, chain: &[u8; 32], position: usize, hops: usize) -> [u8; 32] {
        let signed = &self.bytes[..self.bytes.len() - SIGNATURE_LEN];
        sha256(&[signed, chain, &[position as u8, hops as u8]])
    }
}

fn read_keys(reader: &mut Reader<'_>, suite: Suite) -> Result<SetupPublic, Malformed> {
    let x25519_key: [u8; 32] = reader.array()?;
    // Any scalar finds out a point of low order.
    x25519(&Secret::new([1; 32]), &x25519_key).map_err(|_| Malformed::Field("its X25519 key has a low order"))?;
    let mlkem = match suite {
        Suite::X25519 => None,
        Suite::Hybrid => Some(reader.bytes(MLKEM_PUBLIC_LEN)?),
    };
    SetupPublic::new(x25519_key, mlkem).map_err(|_| Malformed::Field("its ML-KEM key is not one"))
}

impl std::ops::Deref for SignedRecord {
    type Target = EpochRecord;

    fn deref(&self) -> &EpochRecord {
        &self.content
    }
}

#[cfg(test)]
pub(super) mod tests {
    use wire::setup::SetupKey;

    use super::super::descriptor::tests::{identity, node, signed};
    use super::*;

    pub(crate) fn signed_descriptor(seed: u8) -> SignedDescriptor {
        signed(node(seed.into(), 9), seed.into())
    }

    pub(crate) const CHAIN: [u8; 32] = [0xcc; 32];

    /// ML-KEM keys are drawn by aws-lc alone, so each seed draws one once.
    fn setup_key(seed: u8) -> SetupKey {
        SetupKey::generate(Suite::Hybrid, Secret::new([seed; 32]))
    }

    pub(crate) fn record(seed: u8, epoch: u64, draw: u64) -> SignedRecord {
        let descriptor = signed_descriptor(seed);
        let record = EpochRecord {
            identity: descriptor.identity,
            descriptor: *descriptor.hash(),
            revision: descriptor.revision,
            epoch,
            draw,
            setup: setup_key(seed).public(),
        };
        record.sign(&CHAIN, &identity(seed + 100))
    }

    #[test]
    fn record_is_read_under_its_own_descriptor_and_chain_only() {
        let signed = record(1, 5, 6);
        let bytes = signed.travelling();
        // One cell of class L with the nine bytes of a part.
        assert_eq!(bytes.len(), 1304);
        let own = signed_descriptor(1);
        assert_eq!(SignedRecord::read(bytes, Suite::Hybrid, &CHAIN, &own), Ok(signed.clone()));
        assert_eq!(SignedRecord::claimed_revision(bytes), Some(own.revision));
        assert!(SignedRecord::read(bytes, Suite::Hybrid, &CHAIN, &signed_descriptor(2)).is_err());
        assert!(SignedRecord::read(bytes, Suite::Hybrid, &[0; 32], &own).is_err());
        assert!(SignedRecord::read(bytes, Suite::X25519, &CHAIN, &own).is_err());
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let signed = record(1, 5, 6);
        let descriptor = signed_descriptor(1);
        for at in 0..signed.travelling().len() {
            let mut bytes = signed.travelling().to_vec();
            bytes[at] ^= 1;
            assert!(SignedRecord::read(&bytes, Suite::Hybrid, &CHAIN, &descriptor).is_err(), "byte {at}");
        }
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let descriptor = signed_descriptor(1);
        let refused = |at: usize, with: &[u8]| {
            let mut bytes = record(1, 5, 6).travelling().to_vec();
            bytes[at..at + with.len()].copy_from_slice(with);
            SignedRecord::read(&bytes, Suite::Hybrid, &CHAIN, &descriptor).unwrap_err()
        };
        let x25519_at = 24;
        assert_eq!(refused(x25519_at, &[0; 32]), Malformed::Field("its X25519 key has a low order"));
        // Coefficients beyond q.
        assert_eq!(refused(x25519_at + 32, &[0xff; 384]), Malformed::Field("its ML-KEM key is not one"));
    }

    #[test]
    fn later_revision_outranks_a_later_draw() {
        assert!(record(1, 5, 7).rank() > record(1, 5, 6).rank());
        let (_, draw, hash) = record(1, 5, 7).rank();
        assert!((2, draw - 1, hash) > record(1, 5, 7).rank());
    }

    #[test]
    fn place_and_chain_change_the_setup_hash() {
        let record = record(1, 5, 6);
        let hash = record.setup_hash(&[1; 32], 1, 4);
        let others = [([2; 32], 1, 4), ([1; 32], 2, 4), ([1; 32], 1, 5)];
        assert!(others.iter().all(|(chain, i, h)| record.setup_hash(chain, *i, *h) != hash));
        assert_ne!(*record.hash(), hash);
    }
}
