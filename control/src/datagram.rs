//! Handshake datagrams: framing, mac1, and the two halves of message 1 (SPEC 4.2).
//!
//! ```text
//! kind u8 | part u8 | 0 u16 | initiator's index u32 | noise bytes | mac1 16 | mac2 16
//! ```
//!
//! Length first, then mac1 in constant time, then anything else. Cookies are not used yet: mac2 is
//! sixteen zeros and not looked at. No cell of any chain has one of these lengths.

use std::net::SocketAddr;
use std::time::Duration;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use subtle::ConstantTimeEq;
use wire::handshake::{COOKIE_LEN, IK_HALF_LEN, NK_HALF_LEN, RESPONSE_LEN};

/// Noise bytes of message 1, NK: e 32, payload 32 + 1184, tag 16.
pub(crate) const NK_MESSAGE_LEN: usize = 32 + 32 + 1184 + 16;
/// Noise bytes of message 1, IK: e 32, s 48, payload 12 + 1184, tag 16.
pub(crate) const IK_MESSAGE_LEN: usize = 32 + 48 + 12 + 1184 + 16;
/// Noise bytes of message 2: e 32, payload 1088, tag 16.
pub(crate) const RESPONSE_MESSAGE_LEN: usize = 32 + 1088 + 16;

const HEAD_LEN: usize = 8;
const MAC_LEN: usize = 16;
const MACS_LEN: usize = 2 * MAC_LEN;

// The framing adds up to the lengths by which datagrams are sorted.
const _: () = {
    assert!(NK_HALF_LEN == HEAD_LEN + NK_MESSAGE_LEN / 2 + MACS_LEN);
    assert!(IK_HALF_LEN == HEAD_LEN + IK_MESSAGE_LEN / 2 + MACS_LEN);
    assert!(RESPONSE_LEN == HEAD_LEN + RESPONSE_MESSAGE_LEN + MACS_LEN);
};

/// What a handshake datagram is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Message 1, in two halves.
    Hello = 1,
    /// Message 2.
    Answer = 2,
    /// A cookie.
    Cookie = 3,
}

/// A handshake datagram taken apart; nothing in it is believed yet.
pub(crate) struct Parsed<'a> {
    pub(crate) kind: Kind,
    pub(crate) part: u8,
    pub(crate) index: u32,
    pub(crate) noise: &'a [u8],
    covered: &'a [u8],
    mac1: &'a [u8],
}

/// Checks form and length. `half` is the length of this link's halves.
pub(crate) fn parse(datagram: &[u8], half: usize) -> Option<Parsed<'_>> {
    let head: &[u8; HEAD_LEN] = datagram.first_chunk()?;
    let (kind, len, parts) = match head[0] {
        1 => (Kind::Hello, half, 2),
        2 => (Kind::Answer, RESPONSE_LEN, 1),
        3 => (Kind::Cookie, COOKIE_LEN, 1),
        _ => return None,
    };
    if datagram.len() != len || head[1] >= parts || head[2..4] != [0; 2] {
        return None;
    }
    let covered = &datagram[..len - MACS_LEN];
    Some(Parsed {
        kind,
        part: head[1],
        index: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
        noise: &covered[HEAD_LEN..],
        covered,
        mac1: &datagram[len - MACS_LEN..len - MAC_LEN],
    })
}

/// Frames Noise bytes.
pub(crate) fn frame(kind: Kind, part: u8, index: u32, noise: &[u8], key: &Mac1Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + noise.len() + MACS_LEN);
    out.extend_from_slice(&[kind as u8, part, 0, 0]);
    out.extend_from_slice(&index.to_be_bytes());
    out.extend_from_slice(noise);
    let mac1 = key.mac(&out);
    out.extend_from_slice(&mac1);
    out.extend_from_slice(&[0; MAC_LEN]);
    out
}

/// Frames message 1 in two halves.
pub(crate) fn frame_halves(index: u32, noise: &[u8], key: &Mac1Key) -> [Vec<u8>; 2] {
    let (first, second) = noise.split_at(noise.len() / 2);
    [frame(Kind::Hello, 0, index, first, key), frame(Kind::Hello, 1, index, second, key)]
}

/// Shows that a sender knows the receiver's public key: no secret, but no blind scan passes it.
pub(crate) struct Mac1Key([u8; 32]);

impl Mac1Key {
    /// For a receiver's public key: its Noise static, or for message 2 the initiator's ephemeral,
    /// because an NK initiator has no static.
    pub(crate) fn of(public: &[u8; 32]) -> Mac1Key {
        let mut hash = <Blake2s256 as Digest>::new();
        Digest::update(&mut hash, b"mac1----");
        Digest::update(&mut hash, public);
        Mac1Key(Digest::finalize(hash).into())
    }

    fn mac(&self, bytes: &[u8]) -> [u8; MAC_LEN] {
        let mut mac = Blake2sMac::<U16>::new_with_salt_and_personal(Some(&self.0), &[], &[])
            .expect("a key of 32 bytes, no salt, no personalisation");
        mac.update(bytes);
        mac.finalize_fixed().into()
    }

    /// Whether mac1 is right; constant time.
    pub(crate) fn accepts(&self, parsed: &Parsed<'_>) -> bool {
        self.mac(parsed.covered).ct_eq(parsed.mac1).into()
    }
}

/// Halves of message 1 that wait for the other one: at most 256, one second each.
#[derive(Default)]
pub(crate) struct Halves {
    waiting: Vec<Half>,
}

struct Half {
    from: SocketAddr,
    index: u32,
    part: u8,
    noise: Vec<u8>,
    since: Duration,
}

/// What became of a half.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// It waits; so many others were given up for age or room.
    Waits(usize),
    /// The same half waits already.
    Twice,
    /// Message 1 is whole.
    Whole(Vec<u8>),
}

impl Halves {
    const MAX: usize = 256;
    const WAIT: Duration = Duration::from_secs(1);

    /// Takes in one half.
    pub(crate) fn join(&mut self, now: Duration, from: SocketAddr, parsed: &Parsed<'_>) -> Joined {
        let before = self.waiting.len();
        self.waiting.retain(|half| now.saturating_sub(half.since) < Self::WAIT);
        let mut gone = before - self.waiting.len();
        let (index, part) = (parsed.index, parsed.part);
        if let Some(at) = self.waiting.iter().position(|half| half.from == from && half.index == index) {
            if self.waiting[at].part == part {
                return Joined::Twice;
            }
            let other = self.waiting.swap_remove(at).noise;
            let (first, second) = if part == 0 { (parsed.noise, &other[..]) } else { (&other[..], parsed.noise) };
            return Joined::Whole([first, second].concat());
        }
        if self.waiting.len() >= Self::MAX {
            let oldest = (0..self.waiting.len()).min_by_key(|i| self.waiting[*i].since).expect("it is full");
            self.waiting.swap_remove(oldest);
            gone += 1;
        }
        self.waiting.push(Half { from, index, part, noise: parsed.noise.to_vec(), since: now });
        Joined::Waits(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    fn from(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn the_keyed_mac_is_blake2s_with_sixteen_bytes() {
        // RFC 7693 has no keyed 16-byte vector; this one is Python's
        // hashlib.blake2s(b"eddy", digest_size=16, key=bytes(range(32))).
        let key = Mac1Key(std::array::from_fn(|i| i as u8));
        assert_eq!(key.mac(b"eddy"), hex!("c38072c2454d8de5435eb6fd2eed867f"));
    }

    #[test]
    fn halves_join_in_either_order_and_a_copy_of_a_half_changes_nothing() {
        let key = Mac1Key::of(&[1; 32]);
        let noise: Vec<u8> = (0..NK_MESSAGE_LEN).map(|i| i as u8).collect();
        let halves = frame_halves(7, &noise, &key);
        let now = Duration::from_secs(9);
        for order in [[0, 1], [1, 0]] {
            let mut table = Halves::default();
            let mut join = |which: usize, port| {
                let parsed = parse(&halves[which], NK_HALF_LEN).unwrap();
                assert!(key.accepts(&parsed));
                table.join(now, from(port), &parsed)
            };
            assert_eq!(join(order[0], 1), Joined::Waits(0));
            assert_eq!(join(order[0], 1), Joined::Twice);
            assert_eq!(join(order[1], 2), Joined::Waits(0), "another address is another message");
            assert_eq!(join(order[1], 1), Joined::Whole(noise.clone()));
        }
    }

    #[test]
    fn halves_wait_for_a_second_in_256_slots() {
        let key = Mac1Key::of(&[1; 32]);
        let halves = frame_halves(7, &[0; NK_MESSAGE_LEN], &key);
        let half = |which: usize| parse(&halves[which], NK_HALF_LEN).unwrap();
        let mut table = Halves::default();
        for port in 0..256 {
            assert_eq!(table.join(Duration::from_millis(port.into()), from(port), &half(0)), Joined::Waits(0));
        }
        assert_eq!(table.join(Duration::from_millis(300), from(300), &half(0)), Joined::Waits(1));
        assert_eq!(table.join(Duration::from_millis(301), from(0), &half(1)), Joined::Waits(1), "the oldest left");
        assert_eq!(table.join(Duration::from_millis(2000), from(9), &half(1)), Joined::Waits(256));
    }

    #[test]
    fn any_flipped_bit_before_mac2_is_noticed() {
        let key = Mac1Key::of(&[1; 32]);
        let datagram = frame(Kind::Answer, 0, 5, &[3; RESPONSE_MESSAGE_LEN], &key);
        assert_eq!(datagram.len(), RESPONSE_LEN);
        for byte in 0..RESPONSE_LEN - MAC_LEN {
            let mut bad = datagram.clone();
            bad[byte] ^= 0x10;
            assert!(parse(&bad, NK_HALF_LEN).is_none_or(|parsed| !key.accepts(&parsed)), "byte {byte}");
        }
    }
}
