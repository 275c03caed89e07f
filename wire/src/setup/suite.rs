//! Key agreement between the entry and a hop: the one part in which the suites differ (SPEC 5.1).
//!
//! Suite 1 is X25519; suite 2 adds ML-KEM-768. Both hand [`Agreed`] to the onion. A wrong ML-KEM
//! ciphertext gives another secret and no error, so the AEAD of the onion refuses it.

use std::fmt;

use aws_lc_rs::kem::{Ciphertext, DecapsulationKey, EncapsulationKey, ML_KEM_768};
use thiserror::Error;

use super::{BadSetup, INFO_LEN};
use crate::cell::TAG_LEN;
use crate::kdf::{LowOrder, Secret, extract, x25519, x25519_public};

/// Bytes of an X25519 public key.
const E_LEN: usize = 32;
/// Bytes of an ML-KEM-768 encapsulation key (FIPS 203, 8).
pub const MLKEM_PUBLIC_LEN: usize = 1184;
/// Bytes of an ML-KEM-768 decapsulation key.
pub const MLKEM_PRIVATE_LEN: usize = 2400;
/// Bytes of an ML-KEM-768 ciphertext.
pub const MLKEM_CIPHERTEXT_LEN: usize = 1088;
/// Where the decapsulation key holds the encapsulation key.
const MLKEM_PUBLIC_AT: usize = 1152;

/// The public-key algorithms of a chain's setups. The chain names its suite; nothing is negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    X25519 = 1,
    /// X25519 and ML-KEM-768: both must be broken to learn a channel's keys.
    #[default]
    Hybrid = 2,
}

impl Suite {
    pub const ALL: [Suite; 2] = [Suite::X25519, Suite::Hybrid];

    pub const fn from_wire(byte: u8) -> Option<Suite> {
        match byte {
            1 => Some(Suite::X25519),
            2 => Some(Suite::Hybrid),
            _ => None,
        }
    }

    /// Bytes of H, the part of an onion that is not encrypted: E, and in suite 2 ct.
    pub(super) const fn head_len(self) -> usize {
        match self {
            Suite::X25519 => E_LEN,
            Suite::Hybrid => E_LEN + MLKEM_CIPHERTEXT_LEN,
        }
    }

    /// Bytes of one hop's part of an onion: H, and the encrypted info with its tag.
    pub const fn part_len(self) -> usize {
        self.head_len() + INFO_LEN + TAG_LEN
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (*self as u8).fmt(f)
    }
}

/// An ML-KEM-768 key that fails the checks of FIPS 203.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not an ML-KEM-768 key")]
pub struct BadMlKem;

/// A hop's public setup keys; those that it has are its suite.
#[derive(Clone, PartialEq, Eq)]
pub struct SetupPublic {
    x25519: [u8; E_LEN],
    mlkem: Option<Box<[u8; MLKEM_PUBLIC_LEN]>>,
}

impl SetupPublic {
    /// From an X25519 key and, in suite 2, an encapsulation key.
    ///
    /// # Errors
    /// The encapsulation key has another length, or fails the check of FIPS 203 7.2.
    pub fn new(x25519: [u8; E_LEN], mlkem: Option<&[u8]>) -> Result<SetupPublic, BadMlKem> {
        let Some(bytes) = mlkem else { return Ok(SetupPublic { x25519, mlkem: None }) };
        let mlkem = Some(Box::new(bytes.try_into().map_err(|_| BadMlKem)?));
        // aws-lc checks a key at its first use.
        encapsulate(bytes)?;
        Ok(SetupPublic { x25519, mlkem })
    }

    pub fn suite(&self) -> Suite {
        if self.mlkem.is_some() { Suite::Hybrid } else { Suite::X25519 }
    }

    pub const fn x25519(&self) -> &[u8; E_LEN] {
        &self.x25519
    }

    /// The encapsulation key, in suite 2.
    pub fn mlkem(&self) -> Option<&[u8; MLKEM_PUBLIC_LEN]> {
        self.mlkem.as_deref()
    }

    /// The entry's share of a setup, with a fresh ephemeral and, in suite 2, a fresh encapsulation.
    pub fn share(&self, ephemeral: Secret) -> EntryShare {
        let kem = self.mlkem.as_ref().map(|key| encapsulate(&key[..]).expect("the key was checked"));
        EntryShare { ephemeral, kem }
    }
}

impl fmt::Debug for SetupPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SetupPublic").field("x25519", &self.x25519).field("suite", &self.suite()).finish()
    }
}

fn encapsulate(key: &[u8]) -> Result<Encapsulation, BadMlKem> {
    let key = EncapsulationKey::new(&ML_KEM_768, key).map_err(|_| BadMlKem)?;
    let (ciphertext, secret) = key.encapsulate().map_err(|_| BadMlKem)?;
    Ok(Encapsulation {
        ciphertext: Box::new(ciphertext.as_ref().try_into().expect("the length of ML-KEM-768")),
        secret: Secret::new(secret.as_ref().try_into().expect("32 bytes")),
    })
}

/// A hop's private setup keys. Wiped on drop.
pub struct SetupKey {
    x25519: Secret,
    mlkem: Option<MlKemKey>,
}

struct MlKemKey {
    public: Box<[u8; MLKEM_PUBLIC_LEN]>,
    key: DecapsulationKey,
}

impl MlKemKey {
    fn new(bytes: &[u8]) -> Result<MlKemKey, BadMlKem> {
        let key = DecapsulationKey::new(&ML_KEM_768, bytes).map_err(|_| BadMlKem)?;
        Ok(MlKemKey::with_public_part(key, bytes))
    }

    /// `bytes` are those of the key, which includes its public part. They are not kept: the private part is in memory
    /// once.
    fn with_public_part(key: DecapsulationKey, bytes: &[u8]) -> MlKemKey {
        let public = bytes[MLKEM_PUBLIC_AT..MLKEM_PUBLIC_AT + MLKEM_PUBLIC_LEN].try_into().expect("of this length");
        MlKemKey { public: Box::new(public), key }
    }

    fn decapsulate(&self, ciphertext: &[u8]) -> Option<Secret> {
        let secret = self.key.decapsulate(Ciphertext::from(ciphertext)).ok()?;
        secret.as_ref().try_into().ok().map(Secret::new)
    }
}

impl SetupKey {
    /// From an X25519 key and, in suite 2, a decapsulation key.
    ///
    /// # Errors
    /// The decapsulation key has another length, or does not open what is encapsulated for it.
    pub fn new(x25519: Secret, mlkem: Option<&[u8]>) -> Result<SetupKey, BadMlKem> {
        let Some(bytes) = mlkem else { return Ok(SetupKey { x25519, mlkem: None }) };
        let key = MlKemKey::new(bytes)?;
        let trial = encapsulate(&key.public[..])?;
        let opened = key.decapsulate(&trial.ciphertext[..]).ok_or(BadMlKem)?;
        // A key that does not fit its own public part would refuse every setup without an error.
        (opened.expose() == trial.secret.expose()).then_some(SetupKey { x25519, mlkem: Some(key) }).ok_or(BadMlKem)
    }

    /// Around this X25519 key, with a new decapsulation key if the suite has one.
    pub fn generate(suite: Suite, x25519: Secret) -> SetupKey {
        let mlkem = (suite == Suite::Hybrid).then(|| {
            let key = DecapsulationKey::generate(&ML_KEM_768).expect("aws-lc has random bytes");
            let bytes = key.key_bytes().expect("a new key has bytes");
            MlKemKey::with_public_part(key, bytes.as_ref())
        });
        SetupKey { x25519, mlkem }
    }

    pub fn suite(&self) -> Suite {
        if self.mlkem.is_some() { Suite::Hybrid } else { Suite::X25519 }
    }

    pub fn public(&self) -> SetupPublic {
        let mlkem = self.mlkem.as_ref().map(|key| key.public.clone());
        SetupPublic { x25519: x25519_public(&self.x25519), mlkem }
    }

    pub const fn x25519(&self) -> &Secret {
        &self.x25519
    }

    /// What the hop agrees on with the sender of this head.
    pub(super) fn agree(&self, head: &[u8]) -> Result<Agreed, BadSetup> {
        let (ephemeral, ciphertext) = head.split_at(E_LEN);
        let dh =
            x25519(&self.x25519, ephemeral.try_into().expect("32 bytes")).map_err(|LowOrder| BadSetup::LowOrder)?;
        // Decapsulation fails only with a broken key, never because of the ciphertext.
        let kem = self.mlkem.as_ref().map(|key| key.decapsulate(ciphertext).ok_or(BadSetup::Forged)).transpose()?;
        Ok(Agreed { dh, kem })
    }
}

impl fmt::Debug for SetupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SetupKey(..)")
    }
}

/// The result of an ML-KEM-768 encapsulation.
pub struct Encapsulation {
    pub ciphertext: Box<[u8; MLKEM_CIPHERTEXT_LEN]>,
    /// ss_m.
    pub secret: Secret,
}

/// The entry's secrets of one setup for one hop. [`SetupPublic::share`] makes one; tests with known
/// answers bring their own.
pub struct EntryShare {
    /// x.
    pub ephemeral: Secret,
    /// In suite 2.
    pub kem: Option<Encapsulation>,
}

impl EntryShare {
    /// H, and what the entry agrees on with the hop.
    ///
    /// # Panics
    /// The share is of another suite than the hop.
    pub(super) fn agree(&self, hop: &SetupPublic) -> Result<(Vec<u8>, Agreed), LowOrder> {
        assert_eq!(self.kem.is_some(), hop.mlkem.is_some(), "a share is made for one hop");
        let mut head = Vec::with_capacity(hop.suite().head_len());
        head.extend_from_slice(&x25519_public(&self.ephemeral));
        head.extend(self.kem.iter().flat_map(|kem| kem.ciphertext.iter()));
        let dh = x25519(&self.ephemeral, &hop.x25519)?;
        Ok((head, Agreed { dh, kem: self.kem.as_ref().map(|kem| kem.secret.clone()) }))
    }
}

/// The shared secrets of an agreement. Wiped on drop.
pub(super) struct Agreed {
    /// ss_x.
    dh: Secret,
    /// ss_m.
    kem: Option<Secret>,
}

impl Agreed {
    /// PRK0: salted with suite, place and descriptor, over all secrets and the head.
    pub(super) fn prk0(&self, i: usize, hops: usize, descriptor_hash: &[u8; 32], head: &[u8]) -> Secret {
        let suite = if self.kem.is_some() { Suite::Hybrid } else { Suite::X25519 };
        let mut salt = Vec::with_capacity(41);
        salt.extend_from_slice(b"eddy/1");
        salt.extend_from_slice(&[suite as u8, i as u8, hops as u8]);
        salt.extend_from_slice(descriptor_hash);
        let kem = self.kem.as_ref().map_or(&[][..], |secret| secret.expose());
        extract(&salt, &[self.dh.expose(), kem, head])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ml_kem::kem::{Decapsulate, KeyExport};
    use ml_kem::ml_kem_768::{DecapsulationKey as Oracle, EncapsulationKey as OraclePublic};

    fn key() -> SetupKey {
        SetupKey::generate(Suite::Hybrid, Secret::new([7; 32]))
    }

    #[test]
    fn both_ends_agree_and_a_wrong_ciphertext_gives_another_secret() {
        let key = key();
        let (mut head, entry) = key.public().share(Secret::new([8; 32])).agree(&key.public()).unwrap();
        assert_eq!(head.len(), Suite::Hybrid.head_len());
        let hop = key.agree(&head).unwrap();
        assert_eq!(hop.kem.as_ref().unwrap().expose(), entry.kem.as_ref().unwrap().expose());
        assert_eq!(hop.dh.expose(), entry.dh.expose());
        head[E_LEN] ^= 1;
        let other = key.agree(&head).unwrap();
        assert_ne!(other.kem.unwrap().expose(), entry.kem.unwrap().expose());
    }

    #[test]
    fn decapsulation_agrees_with_another_implementation() {
        // Theirs from a seed, ours from its expanded form; a wrong ciphertext is rejected alike.
        for seed in 0..8u8 {
            let oracle = Oracle::from_seed([seed; 64].into());
            #[allow(deprecated)]
            let expanded = ml_kem::ExpandedKeyEncoding::to_expanded_bytes(&oracle);
            let ours = SetupKey::new(Secret::new([1; 32]), Some(&expanded)).unwrap();
            assert_eq!(ours.public().mlkem().unwrap()[..], oracle.encapsulation_key().to_bytes()[..]);
            let (mut ct, secret) = oracle.encapsulation_key().encapsulate_deterministic(&[seed; 32].into());
            let mlkem = ours.mlkem.as_ref().unwrap();
            assert_eq!(mlkem.decapsulate(&ct).unwrap().expose()[..], secret[..]);
            ct[usize::from(seed)] ^= 1;
            assert_eq!(mlkem.decapsulate(&ct).unwrap().expose()[..], oracle.decapsulate(&ct)[..]);
            // And what we encapsulate, they open.
            let made = encapsulate(&mlkem.public[..]).unwrap();
            assert_eq!(oracle.decapsulate(&(*made.ciphertext).into())[..], made.secret.expose()[..]);
        }
    }

    #[test]
    fn malformed_keys_are_refused() {
        let key = key();
        let public = *key.public().mlkem().unwrap();
        let private = key.mlkem.as_ref().unwrap().key.key_bytes().unwrap().as_ref().to_vec();
        assert!(SetupPublic::new([1; 32], Some(&public)).is_ok());
        // A coefficient of 0xfff is not below 3329.
        let mut wrong = public;
        (wrong[0], wrong[1]) = (0xff, wrong[1] | 0x0f);
        assert_eq!(SetupPublic::new([1; 32], Some(&wrong)), Err(BadMlKem));
        assert!(OraclePublic::new(&wrong.into()).is_err());
        assert_eq!(SetupPublic::new([1; 32], Some(&public[1..])), Err(BadMlKem));
        let private_is_good = |bytes: &[u8]| SetupKey::new(Secret::new([1; 32]), Some(bytes)).is_ok();
        assert!(private_is_good(&private));
        assert!(!private_is_good(&private[1..]));
        for at in [0, 1151, MLKEM_PUBLIC_AT, MLKEM_PUBLIC_AT + MLKEM_PUBLIC_LEN - 1, 2336, 2367] {
            let mut wrong = private.clone();
            wrong[at] ^= 1;
            assert!(!private_is_good(&wrong), "byte {at}");
        }
    }

    #[test]
    fn keys_do_not_print() {
        assert_eq!(format!("{:?}", key()), "SetupKey(..)");
    }
}
