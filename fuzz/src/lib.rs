//! Shared by targets and seeds: a chain of two mixes with well-known keys, and the scripts of the `handshake`
//! target.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::Ed25519KeyPair;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use control::trust::{ChainTerms, ClassTerms, Contact, HopRole, NodeDescriptor, SignedDescriptor, Signer, State, View};
use control::{Caps, Config, NodeKeys, Role, Timing, TrustSetup};
use eddy_node::config::ChainFile;
use wire::cell::{Class, Shape};
use wire::handshake::{COOKIE_LEN, IK_HALF_LEN, NK_HALF_LEN, RESPONSE_LEN};
use wire::kdf::{Secret, x25519_public};
use wire::setup::{SetupKey, Suite};

pub const HOPS: usize = 3;
/// The wall clock, in seconds since 1970. The descriptors of the chain are valid around this time.
pub const WALL_S: u64 = 1_800_000_000;

pub fn wall() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(WALL_S)
}

pub fn shape() -> Shape {
    Shape::new(Class::S, HOPS).expect("three hops are a chain")
}

/// Seed of a hop's identity.
pub fn identity_seed(position: usize) -> Secret {
    Secret::new([position as u8; 32])
}

/// Seed of a hop's signing key.
pub fn signing_seed(position: usize) -> Secret {
    Secret::new([0x60 + position as u8; 32])
}

pub fn noise_key(position: usize) -> Secret {
    Secret::new([0x20 + position as u8; 32])
}

pub fn setup_key(position: usize) -> SetupKey {
    let byte = 0x40 + position as u8;
    let mlkem = ml_kem::ml_kem_768::DecapsulationKey::from_seed([byte; 64].into());
    #[allow(deprecated)]
    let expanded = ml_kem::ExpandedKeyEncoding::to_expanded_bytes(&mlkem);
    SetupKey::new(Secret::new([byte; 32]), Some(&expanded)).expect("a good key")
}

/// Where a node receives from the previous hop.
pub fn address(position: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, position as u8], 1000))
}

pub fn descriptor(position: usize) -> NodeDescriptor {
    NodeDescriptor {
        role: if position == HOPS { HopRole::Exit } else { HopRole::Mix },
        revision: 1,
        floor: 0,
        not_before: WALL_S - 1000,
        not_after: WALL_S + 1000,
        identity: Signer::from_seed(&identity_seed(position)).public(),
        noise: x25519_public(&noise_key(position)),
        signing: Signer::from_seed(&signing_seed(position)).public(),
        contacts: vec![Contact {
            class: Class::S.into(),
            lanes: 1,
            addresses: vec![address(position)],
            names: Vec::new(),
        }],
    }
}

pub fn signed(position: usize) -> SignedDescriptor {
    descriptor(position).sign(&Signer::from_seed(&identity_seed(position))).expect("it is in order")
}

/// Replaces the last 64 bytes by a signature of the bytes before them, by the identity of hop 1.
pub fn sign_again(bytes: &mut [u8]) {
    let Some(at) = bytes.len().checked_sub(64) else { return };
    let pair = Ed25519KeyPair::from_seed_unchecked(identity_seed(1).expose()).expect("every 32 bytes are a seed");
    let (signed, signature) = bytes.split_at_mut(at);
    signature.copy_from_slice(pair.sign(&[b"eddy node", &*signed].concat()).as_ref());
}

pub fn terms() -> ChainTerms {
    ChainTerms {
        suite: Suite::Hybrid,
        interval_s: 10,
        epoch_s: 3600,
        classes: vec![ClassTerms { class: Class::S, mixing_delay_ms: 5, lifetime_s: 3600 }],
        paced: Vec::new(),
        identities: (1..=HOPS).map(|position| descriptor(position).identity).collect(),
    }
}

/// The configuration of `control` at a node, and what it starts with.
pub fn config(position: usize) -> (Config, TrustSetup) {
    let role = match position {
        0 => Role::Entry { channels: 4 },
        HOPS => Role::Exit,
        _ => Role::Mix,
    };
    let config = Config {
        previous: Vec::new(),
        shared_prefixes: Vec::new(),
        paced: false,
        role,
        shape: shape(),
        position,
        terms: terms(),
        next: None,
        psk_up: None,
        psk_down: None,
        timing: Timing::default(),
        caps: Caps::default(),
    };
    let mut view = View::new(terms());
    for hop in 1..=HOPS {
        view.take_descriptor(hop, signed(hop), WALL_S).expect("it is in order");
    }
    let own = NodeKeys { noise: noise_key(position), signer: Signer::from_seed(&signing_seed(position)) };
    let keys = if position == 0 { Vec::new() } else { vec![own] };
    (config, TrustSetup { view, keys, state: State::fresh(WALL_S).hop })
}

/// The chain's `chain.toml`.
pub fn chain_toml() -> String {
    ChainFile { id: terms().id(), terms: terms(), descriptors: (1..=HOPS).map(signed).collect() }.text()
}

/// Sets mac1 of a handshake datagram. Anyone who knows the receiver's public key can do this (SPEC 4.2).
pub fn set_mac1(datagram: &mut [u8], receiver: &[u8; 32]) {
    let Some(at) = datagram.len().checked_sub(32) else { return };
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(receiver).finalize();
    let mut mac = Blake2sMac::<U16>::new_with_salt_and_personal(Some(&key), &[], &[]).expect("a key of 32 bytes");
    mac.update(&datagram[..at]);
    datagram[at..at + 16].copy_from_slice(&mac.finalize_fixed());
}

/// One step of a handshake script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A datagram of `LENGTHS[len]` bytes: `bytes`, then zeros.
    Raw { to: To, len: u8, bytes: Vec<u8> },
    /// A datagram of the genuine handshake, perhaps with flipped bits.
    Recorded {
        to: To,
        /// 0 and 1: the halves of message 1; 2: message 2.
        which: u8,
        /// Offset (modulo the length) and bits to flip.
        flips: Vec<(u16, u8)>,
    },
    /// Milliseconds pass, and both nodes tick.
    Tick(u16),
}

/// How a datagram is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct To {
    /// To the responder, or to the initiator.
    pub responder: bool,
    /// On the socket towards the entry, or on the one towards the exit.
    pub up: bool,
    /// With mac1 recomputed.
    pub mac1: bool,
    /// From one of four addresses; 0 is the genuine one.
    pub from: u8,
}

/// Lengths of raw datagrams: all handshake lengths, and some others.
pub const LENGTHS: [usize; 12] =
    [NK_HALF_LEN, IK_HALF_LEN, RESPONSE_LEN, COOKIE_LEN, 0, 1, 8, 32, 40, NK_HALF_LEN - 1, RESPONSE_LEN - 1, 1472];

impl To {
    fn to_byte(self) -> u8 {
        u8::from(self.responder) | u8::from(self.up) << 1 | u8::from(self.mac1) << 2 | (self.from & 3) << 3
    }

    fn from_byte(byte: u8) -> To {
        To { responder: byte & 1 != 0, up: byte & 2 != 0, mac1: byte & 4 != 0, from: byte >> 3 & 3 }
    }
}

impl Step {
    /// Appends the step to a script.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Step::Raw { to, len, bytes } => {
                out.extend([0, to.to_byte(), *len, bytes.len() as u8]);
                out.extend(bytes);
            }
            Step::Recorded { to, which, flips } => {
                out.extend([1, to.to_byte(), *which, flips.len() as u8]);
                flips.iter().for_each(|(at, bits)| {
                    out.extend(at.to_be_bytes());
                    out.push(*bits);
                });
            }
            Step::Tick(ms) => {
                out.push(2);
                out.extend(ms.to_be_bytes());
            }
        }
    }

    /// Takes the next step of a script; none at its end. Every byte string is a script.
    pub fn take(script: &mut &[u8]) -> Option<Step> {
        let mut byte = || {
            let (first, rest) = script.split_first()?;
            *script = rest;
            Some(*first)
        };
        Some(match byte()? % 3 {
            0 => {
                let (to, len, n) = (To::from_byte(byte()?), byte()? % LENGTHS.len() as u8, byte()?);
                let n = usize::from(n).min(script.len());
                let (bytes, rest) = script.split_at(n);
                *script = rest;
                Step::Raw { to, len, bytes: bytes.to_vec() }
            }
            1 => {
                let (to, which, n) = (To::from_byte(byte()?), byte()? % 3, byte()? % 16);
                let mut flips = Vec::new();
                for _ in 0..n {
                    flips.push((u16::from_be_bytes([byte()?, byte()?]), byte()?));
                }
                Step::Recorded { to, which, flips }
            }
            _ => Step::Tick(u16::from_be_bytes([byte()?, byte()?])),
        })
    }
}
