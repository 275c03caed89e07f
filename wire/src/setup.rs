//! The setup onion and its ack as bytes, suite 1 (SPEC 5.1, 5.2, 5.4).
//!
//! Pure functions: keys and randomness go in, bytes and secrets come out. The state machines that
//! call them are in `control`. This is a slow path, so it may allocate.

use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::cell::{Class, Shape, TAG_LEN};
use crate::gcm::{AeadKey, Job, Prepared, StreamKey, ctr_batch, open_batch, prepare, seal_batch};
use crate::kdf::{LowOrder, Secret, expand, expand_secret, extract, x25519, x25519_public};

/// Protocol version in `info`.
pub const VERSION: u8 = 1;
/// X25519 only.
pub const SUITE_X25519: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Suite {
    X25519 = 1,
    Hybrid = 2,
}
/// Bytes of one hop in the onion: E (32), info (16), tag (16).
pub const HOP_LEN: usize = 64;
const INFO_LEN: usize = 16;
/// Bytes of an ack slot: e (32) and confirm (16).
pub const SLOT_LEN: usize = 48;

/// The facts about a hop that a setup needs.
#[derive(Clone, Copy, Debug)]
pub struct HopPublic {
    /// X25519 setup key.
    pub setup: [u8; 32],
    /// SHA-256 of the descriptor without its signature: D.
    pub descriptor_hash: [u8; 32],
}

/// The constants of a chain that every setup carries (SPEC 5.2). A field that varied would be a label
/// by which hops recognise a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    pub class: Class,
    /// Lifetime of the channel, at most 3600 s.
    pub lifetime_s: u16,
    /// First sequence number of the channel: 0 in free classes.
    pub first: u64,
}

impl Info {
    fn to_bytes(self) -> [u8; INFO_LEN] {
        let mut out = [0; INFO_LEN];
        out[0] = VERSION;
        out[1] = SUITE_X25519;
        out[2] = self.class as u8;
        out[4..6].copy_from_slice(&self.lifetime_s.to_be_bytes());
        out[6..11].copy_from_slice(&self.first.to_be_bytes()[3..8]);
        out
    }
}

/// Length of the onion that arrives at hop `i`, counted from 1: S_i.
pub const fn onion_len(shape: Shape, i: usize) -> usize {
    HOP_LEN * (shape.hops() - i + 1)
}

/// Ack slots in one cell: q.
const fn slots_per_cell(shape: Shape) -> usize {
    shape.payload() / SLOT_LEN
}

/// Ack cells of one setup: K.
pub const fn ack_cells(shape: Shape) -> usize {
    shape.hops().div_ceil(slots_per_cell(shape))
}

/// The ack cell and the byte range of the slot of hop `i`.
pub const fn slot(shape: Shape, i: usize) -> (usize, std::ops::Range<usize>) {
    let from_exit = shape.hops() - i;
    let at = SLOT_LEN * (from_exit % slots_per_cell(shape));
    (from_exit / slots_per_cell(shape), at..at + SLOT_LEN)
}

/// The secrets that the entry and one hop share after a setup (SPEC 5.1).
#[derive(Clone)]
pub struct HopSecrets {
    /// Proves in the ack that the hop derived the same secrets.
    pub confirm: [u8; 16],
    /// Key and iv of the hop's layer on the ack.
    pub ack: Zeroizing<[u8; 28]>,
    /// `sec[0]` forward.
    pub forward: Secret,
    /// `sec[0]` backward.
    pub backward: Secret,
}

impl HopSecrets {
    fn derive(prk0: &Secret, dh: &Secret, hop_ephemeral: &[u8; 32]) -> HopSecrets {
        let prk1 = extract(prk0.expose(), &[dh.expose(), hop_ephemeral]);
        HopSecrets {
            confirm: *expand(&prk1, "eddy1 confirm"),
            ack: expand(&prk1, "eddy1 ack"),
            forward: expand_secret(&prk1, "eddy1 fwd"),
            backward: expand_secret(&prk1, "eddy1 bwd"),
        }
    }
}

fn prk0(i: usize, hops: usize, descriptor_hash: &[u8; 32], dh: &Secret, entry_ephemeral: &[u8; 32]) -> Secret {
    let mut salt = Vec::with_capacity(41);
    salt.extend_from_slice(b"eddy/1");
    salt.extend_from_slice(&[SUITE_X25519, i as u8, hops as u8]);
    salt.extend_from_slice(descriptor_hash);
    extract(&salt, &[dh.expose(), entry_ephemeral])
}

fn setup_aead(prk0: &Secret) -> AeadKey {
    prepare(&expand(prk0, "eddy1 setup"))
}

/// The entry's state of a setup that is not acknowledged: ephemeral and PRK0 of each hop. Wiped on
/// drop.
pub struct Pending {
    hops: Vec<(Secret, Secret)>,
}

/// Builds the onion of a chain, S_1. `ephemerals` are x_1..x_h, fresh for each attempt.
///
/// # Errors
/// A hop's public key is of low order.
///
/// # Panics
/// The number of hops or ephemerals differs from the shape's.
pub fn build(
    shape: Shape,
    hops: &[HopPublic],
    ephemerals: Vec<Secret>,
    info: Info,
) -> Result<(Vec<u8>, Pending), LowOrder> {
    assert!(hops.len() == shape.hops() && ephemerals.len() == shape.hops());
    let mut onion = Vec::new();
    let mut pending = Vec::with_capacity(hops.len());
    for (i, (hop, x)) in hops.iter().zip(ephemerals).enumerate().rev() {
        let public = x25519_public(&x);
        let dh = x25519(&x, &hop.setup)?;
        let prk0 = prk0(i + 1, shape.hops(), &hop.descriptor_hash, &dh, &public);
        let key = setup_aead(&prk0);
        let mut layer = Vec::with_capacity(onion_len(shape, i + 1));
        layer.extend_from_slice(&public);
        layer.extend_from_slice(&info.to_bytes());
        layer.append(&mut onion);
        layer.extend_from_slice(&[0; TAG_LEN]);
        seal_batch(&mut [Job::new(&key, *key.iv(), &mut layer[32..])]);
        onion = layer;
        pending.push((x, prk0));
    }
    pending.reverse();
    Ok((onion, Pending { hops: pending }))
}

/// Why a hop refuses a setup. Counted, never answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadSetup {
    #[error("wrong length")]
    Length,
    #[error("low-order point")]
    LowOrder,
    #[error("not authentic")]
    Forged,
    #[error("a field differs from the descriptor")]
    Info,
}

/// A setup that a hop has opened.
pub struct Opened {
    /// For the replay cache; see [`replay_tag`].
    pub tag: [u8; 16],
    /// The onion for the next hop, S_{i+1}; empty at the exit.
    pub rest: Vec<u8>,
    entry_ephemeral: [u8; 32],
    prk0: Secret,
}

/// The tag of a setup in the replay cache, SHA-256(E_i)[..16]. It needs no public-key work.
pub fn replay_tag(onion: &[u8]) -> Option<[u8; 16]> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, onion.get(..32)?);
    digest.as_ref()[..16].try_into().ok()
}

/// Opens S_i at hop `i` with its setup key.
///
/// # Errors
/// See [`BadSetup`].
pub fn open(
    shape: Shape,
    i: usize,
    descriptor_hash: &[u8; 32],
    setup_key: &Secret,
    info: Info,
    onion: &[u8],
) -> Result<Opened, BadSetup> {
    if onion.len() != onion_len(shape, i) {
        return Err(BadSetup::Length);
    }
    let entry_ephemeral: [u8; 32] = onion[..32].try_into().expect("32 bytes");
    let dh = x25519(setup_key, &entry_ephemeral).map_err(|LowOrder| BadSetup::LowOrder)?;
    let prk0 = prk0(i, shape.hops(), descriptor_hash, &dh, &entry_ephemeral);
    let key = setup_aead(&prk0);
    let mut body = onion[32..].to_vec();
    let mut jobs = [Job::new(&key, *key.iv(), &mut body)];
    open_batch(&mut jobs);
    if !jobs[0].ok {
        return Err(BadSetup::Forged);
    }
    body.truncate(body.len() - TAG_LEN);
    let rest = body.split_off(INFO_LEN);
    if body != info.to_bytes() {
        return Err(BadSetup::Info);
    }
    let tag = replay_tag(onion).expect("longer than 32");
    Ok(Opened { tag, rest, entry_ephemeral, prk0 })
}

impl Opened {
    /// Answers with the hop's fresh ephemeral `y`: returns its public key e_i and the secrets. `y` and
    /// PRK0 are wiped.
    ///
    /// # Errors
    /// The entry's ephemeral is of low order.
    pub fn answer(self, y: Secret) -> Result<([u8; 32], HopSecrets), LowOrder> {
        let public = x25519_public(&y);
        let dh = x25519(&y, &self.entry_ephemeral)?;
        Ok((public, HopSecrets::derive(&self.prk0, &dh, &public)))
    }
}

fn ack_layer(secrets: &HopSecrets, sub: u8, content: &mut [u8]) {
    let key: StreamKey = prepare(&secrets.ack);
    let mut nonce = *key.iv();
    nonce[11] ^= sub;
    ctr_batch(&mut [Job::new(&key, nonce, content)]);
}

/// Writes the slot of hop `i` into the content of ack cell `sub`, if the slot belongs there.
fn write_slot(shape: Shape, i: usize, sub: u8, ephemeral: &[u8; 32], confirm: &[u8; 16], content: &mut [u8]) {
    let (cell, range) = slot(shape, i);
    if cell == usize::from(sub) {
        let (e, c) = content[range].split_at_mut(32);
        e.copy_from_slice(ephemeral);
        c.copy_from_slice(confirm);
    }
}

/// Writes the exit's slot into ack cell `sub`, whose `content` holds P fresh random bytes.
pub fn begin_ack(shape: Shape, sub: u8, ephemeral: &[u8; 32], secrets: &HopSecrets, content: &mut [u8]) {
    write_slot(shape, shape.hops(), sub, ephemeral, &secrets.confirm, content);
}

/// Adds the layer of mix `i` to ack cell `sub`, then writes its slot. The caller must pass each `sub`
/// only once, or two texts share a keystream.
pub fn cover_ack(shape: Shape, i: usize, sub: u8, ephemeral: &[u8; 32], secrets: &HopSecrets, content: &mut [u8]) {
    ack_layer(secrets, sub, content);
    write_slot(shape, i, sub, ephemeral, &secrets.confirm, content);
}

/// Why the entry refuses an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadAck {
    #[error("low-order point in the ack of hop {0}")]
    LowOrder(usize),
    #[error("wrong confirmation from hop {0}")]
    Confirm(usize),
}

impl Pending {
    /// Reads the slots of all hops from the contents of the [`ack_cells`], hop 1 first, and removes a
    /// layer after each.
    ///
    /// # Errors
    /// One wrong slot discards the setup.
    pub fn finish(&self, shape: Shape, contents: &mut [Vec<u8>]) -> Result<Vec<HopSecrets>, BadAck> {
        let mut all = Vec::with_capacity(self.hops.len());
        for (hop, (x, prk0)) in self.hops.iter().enumerate() {
            let i = hop + 1;
            let (cell, range) = slot(shape, i);
            let bytes = &contents[cell][range];
            let ephemeral: [u8; 32] = bytes[..32].try_into().expect("a slot is 48 bytes");
            let dh = x25519(x, &ephemeral).map_err(|LowOrder| BadAck::LowOrder(i))?;
            let secrets = HopSecrets::derive(prk0, &dh, &ephemeral);
            if !bool::from(secrets.confirm.ct_eq(&bytes[32..])) {
                return Err(BadAck::Confirm(i));
            }
            if i < shape.hops() {
                for (sub, content) in contents.iter_mut().enumerate() {
                    ack_layer(&secrets, sub as u8, content);
                }
            }
            all.push(secrets);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(class: Class, hops: usize, tamper: Option<(usize, usize)>) -> Result<(), BadAck> {
        let shape = Shape::new(class, hops).unwrap();
        let info = Info { class, lifetime_s: 3600, first: 0 };
        let keys: Vec<Secret> = (0..hops).map(|i| Secret::new([i as u8 + 1; 32])).collect();
        let publics: Vec<HopPublic> = keys
            .iter()
            .enumerate()
            .map(|(i, key)| HopPublic { setup: x25519_public(key), descriptor_hash: [i as u8; 32] })
            .collect();
        let xs = (0..hops).map(|i| Secret::new([0x40 + i as u8; 32])).collect();
        let (mut onion, pending) = build(shape, &publics, xs, info).unwrap();
        let mut secrets = Vec::new();
        for i in 1..=hops {
            assert_eq!(onion.len(), onion_len(shape, i));
            let opened = open(shape, i, &publics[i - 1].descriptor_hash, &keys[i - 1], info, &onion).unwrap();
            onion = opened.rest.clone();
            secrets.push(opened.answer(Secret::new([0x80 + i as u8; 32])).unwrap());
        }
        assert!(onion.is_empty());
        let mut contents = vec![vec![0xaa; shape.payload()]; ack_cells(shape)];
        for i in (1..=hops).rev() {
            let (e, s) = &secrets[i - 1];
            for (sub, content) in contents.iter_mut().enumerate() {
                if i == hops {
                    begin_ack(shape, sub as u8, e, s, content);
                } else {
                    cover_ack(shape, i, sub as u8, e, s, content);
                }
            }
            if let Some((_, byte)) = tamper.filter(|(hop, _)| *hop == i) {
                contents[0][byte] ^= 1;
            }
        }
        let entry = pending.finish(shape, &mut contents)?;
        for (mine, (_, theirs)) in entry.iter().zip(&secrets) {
            assert_eq!(mine.forward.expose(), theirs.forward.expose());
            assert_eq!(mine.backward.expose(), theirs.backward.expose());
        }
        Ok(())
    }

    #[test]
    fn entry_and_every_hop_derive_the_same_secrets() {
        for class in [Class::S, Class::M, Class::L] {
            for hops in 2..=8 {
                run(class, hops, None).unwrap();
            }
        }
    }

    #[test]
    fn class_s_needs_two_ack_cells_from_four_mixes_on() {
        let cells = |hops| ack_cells(Shape::new(Class::S, hops).unwrap());
        assert_eq!([cells(4), cells(5), cells(8)], [1, 2, 2]);
        assert_eq!(ack_cells(Shape::new(Class::L, 8).unwrap()), 1);
    }

    #[test]
    fn flipped_bit_in_an_ack_slot_discards_the_setup() {
        // After the exit: the slot of hop 4, bytes 0..48 of cell 0.
        assert!(matches!(run(Class::L, 4, Some((4, 40))), Err(BadAck::Confirm(4))));
        assert!(matches!(run(Class::L, 4, Some((2, 40))), Err(BadAck::Confirm(4))));
    }

    #[test]
    fn setup_for_another_hop_or_descriptor_does_not_open() {
        let shape = Shape::new(Class::L, 3).unwrap();
        let info = Info { class: Class::L, lifetime_s: 3600, first: 0 };
        let key = Secret::new([9; 32]);
        let hop = HopPublic { setup: x25519_public(&key), descriptor_hash: [1; 32] };
        let xs = || (0..3).map(|i| Secret::new([0x40 + i as u8; 32])).collect();
        let (onion, _) = build(shape, &[hop; 3], xs(), info).unwrap();
        let try_open = |i, hash: &[u8; 32], info, onion: &[u8]| open(shape, i, hash, &key, info, onion).map(drop);
        assert_eq!(try_open(1, &[1; 32], info, &onion), Ok(()));
        assert_eq!(try_open(1, &[2; 32], info, &onion), Err(BadSetup::Forged));
        assert_eq!(try_open(2, &[1; 32], info, &onion), Err(BadSetup::Length));
        assert_eq!(try_open(1, &[1; 32], Info { lifetime_s: 60, ..info }, &onion), Err(BadSetup::Info));
        let mut zero = onion.clone();
        zero[..32].fill(0);
        assert_eq!(try_open(1, &[1; 32], info, &zero), Err(BadSetup::LowOrder));
        for byte in 0..onion.len() {
            let mut bad = onion.clone();
            bad[byte] ^= 1;
            assert_eq!(try_open(1, &[1; 32], info, &bad), Err(BadSetup::Forged), "byte {byte}");
        }
        // X25519 ignores the top bit of a coordinate. The KDF must not: E would have two spellings, and
        // the replay cache would know only one of them.
        let mut bad = onion.clone();
        bad[31] ^= 0x80;
        assert_eq!(try_open(1, &[1; 32], info, &bad), Err(BadSetup::Forged));
        // S_1 of three hops is as long as S_2 of four.
        let longer = Shape::new(Class::L, 4).unwrap();
        assert_eq!(open(longer, 2, &[1; 32], &key, info, &onion).map(drop), Err(BadSetup::Forged));
    }
}
