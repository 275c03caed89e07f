//! The setup onion and its ack as bytes (SPEC 5.1, 5.2, 5.4; of paced classes 9.8, 9.9).
//!
//! Pure functions: keys and randomness go in, bytes and secrets come out. The state machines that
//! call them are in `control`. This is a slow path, so it may allocate. The suites differ in
//! `suite` alone; `ack` is the way back.

mod ack;
mod suite;

pub use ack::{BadAck, SLOT_LEN, ack_cells, begin_ack, cover_ack, slot};
pub use suite::{
    BadMlKem, Encapsulation, EntryShare, MLKEM_CIPHERTEXT_LEN, MLKEM_PRIVATE_LEN, MLKEM_PUBLIC_LEN, SetupKey,
    SetupPublic, Suite,
};

use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::cell::{Class, Direction, Shape, TAG_LEN};
use crate::gcm::{AeadKey, Job, Prepared, open_batch, prepare, seal_batch};
use crate::kdf::{LowOrder, Secret, expand, expand_secret, extract, x25519, x25519_public};
use crate::paced::PacedClass;
use crate::shards::Shards;

/// Protocol version in `info`.
pub const VERSION: u8 = 1;
const INFO_LEN: usize = 16;
/// Bytes of the token behind the exit's info, in paced classes (SPEC 9.8.1).
pub const TOKEN_LEN: usize = 32;

/// The facts about a hop that a setup needs.
#[derive(Clone, Debug)]
pub struct HopPublic {
    /// Setup keys.
    pub setup: SetupPublic,
    /// SHA-256 of the descriptor without its signature: D.
    pub descriptor_hash: [u8; 32],
}

/// The constants of a chain that every setup carries (SPEC 5.2). A field that varied would be a label
/// by which hops recognise a channel. Use [`Info::paced`] for a paced class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    pub suite: Suite,
    /// The class, or the size of the paced class.
    pub class: Class,
    pub paced: bool,
    /// Lifetime of the channel, at most 3600 s; 0 in paced classes.
    pub lifetime_s: u16,
    /// First sequence number of the channel: 0 in free classes, the first round of its batch in paced ones.
    pub first: u64,
}

impl Info {
    /// Of a channel for the batch with this first round (SPEC 9.8.1).
    pub const fn paced(suite: Suite, class: PacedClass, first: u64) -> Info {
        Info { suite, class: class.size(), paced: true, lifetime_s: 0, first }
    }

    /// Bytes behind the exit's info.
    const fn token_len(self) -> usize {
        if self.paced { TOKEN_LEN } else { 0 }
    }

    fn to_bytes(self) -> [u8; INFO_LEN] {
        let mut out = [0; INFO_LEN];
        out[0] = VERSION;
        out[1] = self.suite as u8;
        out[2] = if self.paced { PacedClass::new(self.class).number() } else { self.class as u8 };
        out[4..6].copy_from_slice(&self.lifetime_s.to_be_bytes());
        out[6..11].copy_from_slice(&self.first.to_be_bytes()[3..8]);
        out
    }
}

/// Length of the onion that arrives at hop `i`, counted from 1: S_i. In paced classes a token is behind it.
pub const fn onion_len(shape: Shape, suite: Suite, i: usize) -> usize {
    suite.part_len() * (shape.hops() - i + 1)
}

/// How S_i is spread over the cells of link `i`.
pub const fn shards(shape: Shape, suite: Suite, i: usize) -> Shards {
    Shards::of(onion_len(shape, suite, i), shape.control_content(Direction::Forward, i))
}

/// The same in the paced class of the shape's size. On link 1 an entry may send more parity shards (SPEC 9.8.3).
pub const fn paced_shards(shape: Shape, suite: Suite, i: usize) -> Shards {
    Shards::of(onion_len(shape, suite, i) + TOKEN_LEN, shape.payload())
}

/// The secrets that the entry and one hop share after a setup (SPEC 5.1).
#[derive(Clone)]
pub struct HopSecrets {
    /// Proves in the ack that the hop derived the same secrets.
    pub confirm: Zeroizing<[u8; 16]>,
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
            confirm: expand(&prk1, "eddy1 confirm"),
            ack: expand(&prk1, "eddy1 ack"),
            forward: expand_secret(&prk1, "eddy1 fwd"),
            backward: expand_secret(&prk1, "eddy1 bwd"),
        }
    }
}

fn setup_aead(prk0: &Secret) -> AeadKey {
    prepare(&expand(prk0, "eddy1 setup"))
}

/// The entry's state of a setup that is not acknowledged: ephemeral and PRK0 of each hop. Wiped on
/// drop.
pub struct Pending {
    hops: Vec<(Secret, Secret)>,
}

/// Builds the onion of a free class, S_1. `shares` are those of hops 1..h, fresh for each attempt.
///
/// # Errors
/// A hop's public key is of low order.
///
/// # Panics
/// The number of hops or shares differs from the shape's, or their suite from that of `info`.
pub fn build(
    shape: Shape,
    hops: &[HopPublic],
    shares: Vec<EntryShare>,
    info: Info,
) -> Result<(Vec<u8>, Pending), LowOrder> {
    assert!(hops.len() == shape.hops());
    build_with_token(shape, hops, shares, info, &[])
}

/// Builds an onion whose exit finds `token`, [`TOKEN_LEN`] bytes in paced classes and none in free ones. `hops` end
/// with the exit. A mix leaves out itself and those before it: its loops begin behind it (SPEC 9.14).
///
/// # Errors
/// A hop's public key is of low order.
///
/// # Panics
/// There are more hops than the shape's, the number of shares or the length of the token is another, or a suite
/// differs from that of `info`.
pub fn build_with_token(
    shape: Shape,
    hops: &[HopPublic],
    shares: Vec<EntryShare>,
    info: Info,
    token: &[u8],
) -> Result<(Vec<u8>, Pending), LowOrder> {
    assert!(hops.len() <= shape.hops() && shares.len() == hops.len() && token.len() == info.token_len());
    let head_len = info.suite.head_len();
    let before = shape.hops() - hops.len();
    let mut onion = token.to_vec();
    let mut pending = Vec::with_capacity(hops.len());
    for (at, (hop, share)) in hops.iter().zip(shares).enumerate().rev() {
        let i = before + at + 1;
        let (head, agreed) = share.agree(&hop.setup)?;
        assert_eq!(head.len(), head_len, "a chain has one suite");
        let prk0 = agreed.prk0(i, shape.hops(), &hop.descriptor_hash, &head);
        let key = setup_aead(&prk0);
        let mut layer = Vec::with_capacity(onion_len(shape, info.suite, i) + token.len());
        layer.extend_from_slice(&head);
        layer.extend_from_slice(&info.to_bytes());
        layer.append(&mut onion);
        // Where the token was.
        onion.zeroize();
        layer.extend_from_slice(&[0; TAG_LEN]);
        seal_batch(&mut [Job::new(&key, *key.iv(), &mut layer[head_len..])]);
        onion = layer;
        pending.push((share.ephemeral, prk0));
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
    /// The onion for the next hop, S_{i+1}. At the exit it is the token of a paced class, otherwise empty.
    pub rest: Vec<u8>,
    entry_ephemeral: [u8; 32],
    prk0: Secret,
}

/// The tag of a setup in the replay cache, SHA-256(H_i)[..16]. It needs no public-key work.
pub fn replay_tag(suite: Suite, onion: &[u8]) -> Option<[u8; 16]> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, onion.get(..suite.head_len())?);
    digest.as_ref()[..16].try_into().ok()
}

/// Opens S_i at hop `i` with its setup key, under the first of these D_i that fits. Its public-key work is done once.
///
/// # Errors
/// See [`BadSetup`].
pub fn open(
    shape: Shape,
    i: usize,
    descriptor_hashes: &[[u8; 32]],
    setup_key: &SetupKey,
    info: Info,
    onion: &[u8],
) -> Result<Opened, BadSetup> {
    if onion.len() != onion_len(shape, info.suite, i) + info.token_len() || setup_key.suite() != info.suite {
        return Err(BadSetup::Length);
    }
    let (head, sealed) = onion.split_at(info.suite.head_len());
    let agreed = setup_key.agree(head)?;
    let opened = descriptor_hashes.iter().find_map(|descriptor_hash| {
        let prk0 = agreed.prk0(i, shape.hops(), descriptor_hash, head);
        let key = setup_aead(&prk0);
        // The token of the exit is in it.
        let mut body = Zeroizing::new(sealed.to_vec());
        let mut jobs = [Job::new(&key, *key.iv(), &mut body)];
        open_batch(&mut jobs);
        jobs[0].ok.then_some((prk0, body))
    });
    let (prk0, mut body) = opened.ok_or(BadSetup::Forged)?;
    let len = body.len() - TAG_LEN;
    body.truncate(len);
    let rest = body.split_off(INFO_LEN);
    if body[..] != info.to_bytes() {
        return Err(BadSetup::Info);
    }
    let tag = replay_tag(info.suite, onion).expect("it has a head");
    let entry_ephemeral = *head.first_chunk().expect("a head begins with E");
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys of each hop.
    fn keys(suite: Suite, hops: usize) -> (Vec<SetupKey>, Vec<HopPublic>) {
        let keys: Vec<SetupKey> =
            (0..hops).map(|i| SetupKey::generate(suite, Secret::new([i as u8 + 1; 32]))).collect();
        let public = |(i, key): (usize, &SetupKey)| HopPublic { setup: key.public(), descriptor_hash: [i as u8; 32] };
        let publics = keys.iter().enumerate().map(public).collect();
        (keys, publics)
    }

    fn shares(hops: &[HopPublic]) -> Vec<EntryShare> {
        hops.iter().enumerate().map(|(i, hop)| hop.setup.share(Secret::new([0x40 + i as u8; 32]))).collect()
    }

    fn run(suite: Suite, class: Class, hops: usize, tamper: Option<(usize, usize)>) -> Result<(), BadAck> {
        let shape = Shape::new(class, hops).unwrap();
        let info = Info { suite, class, paced: false, lifetime_s: 3600, first: 0 };
        let (keys, publics) = keys(suite, hops);
        let (mut onion, pending) = build(shape, &publics, shares(&publics), info).unwrap();
        let mut secrets = Vec::new();
        for i in 1..=hops {
            assert_eq!(onion.len(), onion_len(shape, suite, i));
            assert_eq!(onion.len(), [64, 1152][suite as usize - 1] * (hops - i + 1));
            let opened = open(shape, i, &[publics[i - 1].descriptor_hash], &keys[i - 1], info, &onion).unwrap();
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
        for suite in Suite::ALL {
            for class in [Class::S, Class::M, Class::L] {
                (2..=8).for_each(|hops| run(suite, class, hops, None).unwrap());
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
        for suite in Suite::ALL {
            assert!(matches!(run(suite, Class::L, 4, Some((4, 40))), Err(BadAck::Confirm(4))));
            assert!(matches!(run(suite, Class::L, 4, Some((2, 40))), Err(BadAck::Confirm(4))));
        }
    }

    #[test]
    fn setup_for_another_hop_or_descriptor_does_not_open() {
        for suite in Suite::ALL {
            let shape = Shape::new(Class::L, 3).unwrap();
            let info = Info { suite, class: Class::L, paced: false, lifetime_s: 3600, first: 0 };
            let key = SetupKey::generate(suite, Secret::new([9; 32]));
            let hops = vec![HopPublic { setup: key.public(), descriptor_hash: [1; 32] }; 3];
            let (onion, _) = build(shape, &hops, shares(&hops), info).unwrap();
            let try_open =
                |i, hash: &[u8; 32], info, onion: &[u8]| open(shape, i, &[*hash], &key, info, onion).map(drop);
            assert_eq!(try_open(1, &[1; 32], info, &onion), Ok(()));
            assert_eq!(try_open(1, &[2; 32], info, &onion), Err(BadSetup::Forged));
            assert_eq!(try_open(2, &[1; 32], info, &onion), Err(BadSetup::Length));
            assert_eq!(try_open(1, &[1; 32], Info { lifetime_s: 60, ..info }, &onion), Err(BadSetup::Info));
            let mut zero = onion.clone();
            zero[..32].fill(0);
            assert_eq!(try_open(1, &[1; 32], info, &zero), Err(BadSetup::LowOrder));
            // Every byte, of ct too: ML-KEM rejects a wrong one implicitly, hence by the AEAD.
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
            assert_eq!(open(longer, 2, &[[1; 32]], &key, info, &onion).map(drop), Err(BadSetup::Forged));
        }
    }

    const FIRST: u64 = 163_840_000_000;

    /// A setup of a paced class through the hops from `from` on, and its ack. The content that the hop `lost` waits
    /// for does not come: it takes other bytes in its place.
    fn run_paced(suite: Suite, hops: usize, from: usize, lost: Option<usize>) -> Result<(), BadAck> {
        let shape = Shape::new(Class::S, hops).unwrap();
        let info = Info::paced(suite, PacedClass::new(Class::S), FIRST);
        let (keys, publics) = keys(suite, hops);
        let publics = &publics[from - 1..];
        let (mut onion, pending) = build_with_token(shape, publics, shares(publics), info, &[0x77; TOKEN_LEN]).unwrap();
        let mut secrets = Vec::new();
        for (i, public) in (from..).zip(publics) {
            assert_eq!(onion.len(), onion_len(shape, suite, i) + 32);
            let opened = open(shape, i, &[public.descriptor_hash], &keys[i - 1], info, &onion).unwrap();
            onion.clone_from(&opened.rest);
            secrets.push(opened.answer(Secret::new([0x80 + i as u8; 32])).unwrap());
        }
        assert_eq!(onion, [0x77; 32]);
        let mut contents = vec![vec![0xaa; shape.payload()]; ack_cells(shape)];
        for i in (from..=hops).rev() {
            let (e, s) = &secrets[i - from];
            for (sub, content) in (0..).zip(&mut contents) {
                if lost == Some(i) {
                    content.fill(0x55);
                }
                if i == hops {
                    begin_ack(shape, sub, e, s, content);
                } else {
                    cover_ack(shape, i, sub, e, s, content);
                }
            }
        }
        let entry = pending.finish(shape, &mut contents)?;
        assert_eq!(entry.len(), secrets.len());
        assert!(entry.iter().zip(&secrets).all(|(mine, (_, theirs))| mine.forward.expose() == theirs.forward.expose()));
        Ok(())
    }

    #[test]
    fn paced_setup_brings_a_token_to_the_exit() {
        for suite in Suite::ALL {
            for hops in [2, 4, 8] {
                // From the second hop on it is a loop of Mix 1.
                (1..=hops).for_each(|from| run_paced(suite, hops, from, None).unwrap());
            }
            assert_eq!(run_paced(suite, 8, 1, Some(3)), Err(BadAck::Confirm(4)), "a lost content shows at the entry");
        }
    }

    #[test]
    fn paced_setup_for_another_batch_or_class_is_refused() {
        let (keys, publics) = keys(Suite::Hybrid, 2);
        let (shape, class) = (Shape::new(Class::S, 2).unwrap(), PacedClass::new(Class::S));
        let info = Info::paced(Suite::Hybrid, class, FIRST);
        let (onion, _) = build_with_token(shape, &publics, shares(&publics), info, &[7; TOKEN_LEN]).unwrap();
        let try_open = |info, onion: &[u8]| open(shape, 1, &[[0; 32]], &keys[0], info, onion).map(drop);
        assert_eq!(try_open(info, &onion), Ok(()));
        assert_eq!(try_open(Info { first: FIRST + 2048, ..info }, &onion), Err(BadSetup::Info));
        assert_eq!(try_open(Info { first: FIRST - 2048, ..info }, &onion), Err(BadSetup::Info));
        assert_eq!(try_open(Info { lifetime_s: 1, ..info }, &onion), Err(BadSetup::Info));
        assert_eq!(try_open(Info { class: Class::M, ..info }, &onion), Err(BadSetup::Info));
        assert_eq!(try_open(Info { paced: false, ..info }, &onion), Err(BadSetup::Length));
        assert_eq!(try_open(info, &onion[..onion.len() - TOKEN_LEN]), Err(BadSetup::Length));
        let free = Info { paced: false, lifetime_s: 3600, first: 0, ..info };
        let (onion, _) = build(shape, &publics, shares(&publics), free).unwrap();
        assert_eq!(try_open(info, &onion), Err(BadSetup::Length));
    }

    #[test]
    fn paced_setup_has_the_shards_of_the_specification() {
        let table = |class, hops| {
            let shape = Shape::new(class, hops).unwrap();
            let counts = |i| paced_shards(shape, Suite::Hybrid, i);
            (1..=hops).map(|i| (counts(i).data, counts(i).parity)).collect::<Vec<_>>()
        };
        assert_eq!(table(Class::S, 4)[0].0, 23);
        assert_eq!(table(Class::S, 4)[1..], [(17, 5), (12, 3), (6, 3)]);
        assert_eq!(table(Class::S, 8)[0].0, 45);
        assert_eq!(table(Class::S, 8)[1..], [(39, 10), (34, 9), (28, 7), (23, 6), (17, 5), (12, 3), (6, 3)]);
        assert_eq!(table(Class::M, 8)[1..], [(8, 3), (7, 3), (6, 3), (5, 3), (4, 3), (3, 3), (2, 3)]);
        assert_eq!(table(Class::L, 4), [(4, 3), (3, 3), (2, 3), (1, 3)]);
    }

    #[test]
    fn setup_of_one_suite_does_not_open_in_the_other() {
        let shape = Shape::new(Class::L, 3).unwrap();
        let [one, two] = Suite::ALL.map(|suite| {
            let info = Info { suite, class: Class::L, paced: false, lifetime_s: 3600, first: 0 };
            let (keys, publics) = keys(suite, 3);
            (build(shape, &publics, shares(&publics), info).unwrap().0, keys, info)
        });
        for ((onion, ..), (_, keys, info)) in [(&one, &two), (&two, &one)] {
            assert_eq!(open(shape, 1, &[[0; 32]], &keys[0], *info, onion).map(drop), Err(BadSetup::Length));
        }
        // With the key of one suite and the constants of the other.
        assert_eq!(open(shape, 1, &[[0; 32]], &one.1[0], two.2, &two.0).map(drop), Err(BadSetup::Length));
    }

    #[test]
    fn tag_of_a_setup_covers_the_whole_head() {
        let (_, publics) = keys(Suite::Hybrid, 2);
        let shape = Shape::new(Class::S, 2).unwrap();
        let info = Info { suite: Suite::Hybrid, class: Class::S, paced: false, lifetime_s: 60, first: 0 };
        let (mut onion, _) = build(shape, &publics, shares(&publics), info).unwrap();
        let tag = |onion: &[u8]| replay_tag(Suite::Hybrid, onion).unwrap();
        let first = tag(&onion);
        onion[1120] ^= 1;
        assert_eq!(tag(&onion), first, "the sealed part is not in it");
        onion[1119] ^= 1;
        assert_ne!(tag(&onion), first);
        assert_eq!(replay_tag(Suite::Hybrid, &onion[..1119]), None);
    }
}
