//! Handshake datagrams: framing and mac1 (SPEC 4.2).
//!
//! ```text
//! kind u8 | part u8 | 0 u16 | initiator's index u32 | noise bytes | mac1 16 | mac2 16
//! ```
//!
//! The length is checked first, then mac1 in constant time, then anything else. mac2 and kind 3, which has no macs, are
//! [`crate::cookie`]'s. The two halves of message 1 are joined by [`crate::fragments`].

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use subtle::ConstantTimeEq;
use wire::handshake::{COOKIE_LEN, IK_HALF_LEN, INITIATION, NK_HALF_LEN, RESPONSE_LEN};

/// Noise bytes of message 1, NK: e 32, payload 32 + 1184, tag 16.
pub(crate) const NK_MESSAGE_LEN: usize = 32 + 32 + 1184 + 16;
/// Noise bytes of message 1, IK: e 32, s 48, payload 12 + 1184, tag 16.
pub(crate) const IK_MESSAGE_LEN: usize = 32 + 48 + 12 + 1184 + 16;
/// Noise bytes of message 2: e 32, payload 1088, tag 16.
pub(crate) const RESPONSE_MESSAGE_LEN: usize = 32 + 1088 + 16;

const HEAD_LEN: usize = 8;
pub(crate) const MAC_LEN: usize = 16;
const MACS_LEN: usize = 2 * MAC_LEN;

// The framing adds up to the lengths by which datagrams are sorted.
const _: () = {
    assert!(NK_HALF_LEN == HEAD_LEN + NK_MESSAGE_LEN / 2 + MACS_LEN);
    assert!(IK_HALF_LEN == HEAD_LEN + IK_MESSAGE_LEN / 2 + MACS_LEN);
    assert!(RESPONSE_LEN == HEAD_LEN + RESPONSE_MESSAGE_LEN + MACS_LEN);
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum MessageKind {
    /// Message 1, in two halves.
    Initiation = INITIATION,
    /// Message 2.
    Response = 2,
    /// The answer to a half that is not accepted.
    Answer = 3,
}

/// A handshake datagram taken apart. Nothing in it is trusted before mac1 is checked.
pub(crate) struct Parsed<'a> {
    pub(crate) kind: MessageKind,
    pub(crate) part: u8,
    pub(crate) index: u32,
    /// Behind the head, up to mac1.
    pub(crate) noise: &'a [u8],
    covered: &'a [u8],
    /// Empty in an answer, like the other two.
    pub(crate) mac1: &'a [u8],
    pub(crate) before_mac2: &'a [u8],
    pub(crate) mac2: &'a [u8],
}

/// Checks form and length; `half_len` is that of this link's halves of message 1.
pub(crate) fn parse(datagram: &[u8], half_len: usize) -> Option<Parsed<'_>> {
    let head: &[u8; HEAD_LEN] = datagram.first_chunk()?;
    let (kind, len, parts) = match head[0] {
        INITIATION => (MessageKind::Initiation, half_len, 2),
        2 => (MessageKind::Response, RESPONSE_LEN, 1),
        3 => (MessageKind::Answer, COOKIE_LEN, 2),
        _ => return None,
    };
    if datagram.len() != len || head[1] >= parts || head[2..4] != [0; 2] {
        return None;
    }
    let macs_len = if kind == MessageKind::Answer { 0 } else { MACS_LEN };
    let (covered, macs) = datagram.split_at(len - macs_len);
    let (mac1, mac2) = macs.split_at(macs_len / 2);
    Some(Parsed {
        kind,
        part: head[1],
        index: u32::from_be_bytes([head[4], head[5], head[6], head[7]]),
        noise: &covered[HEAD_LEN..],
        covered,
        mac1,
        before_mac2: &datagram[..len - mac2.len()],
        mac2,
    })
}

/// The first bytes of every handshake datagram.
pub(crate) fn head(kind: MessageKind, part: u8, index: u32) -> [u8; HEAD_LEN] {
    let [a, b, c, d] = index.to_be_bytes();
    [kind as u8, part, 0, 0, a, b, c, d]
}

/// Frames Noise bytes, without mac2.
pub(crate) fn frame(kind: MessageKind, part: u8, index: u32, noise: &[u8], key: &Mac1Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN + noise.len() + MACS_LEN);
    out.extend_from_slice(&head(kind, part, index));
    out.extend_from_slice(noise);
    let mac1 = key.mac(&out);
    out.extend_from_slice(&mac1);
    out.extend_from_slice(&[0; MAC_LEN]);
    out
}

/// mac1 of a half.
pub(crate) fn mac1(half: &[u8]) -> [u8; MAC_LEN] {
    let macs = &half[half.len() - MACS_LEN..];
    *macs.first_chunk().expect("two macs are longer than one")
}

/// Frames message 1 in two halves.
pub(crate) fn frame_halves(index: u32, noise: &[u8], key: &Mac1Key) -> [Vec<u8>; 2] {
    let (first, second) = noise.split_at(noise.len() / 2);
    [frame(MessageKind::Initiation, 0, index, first, key), frame(MessageKind::Initiation, 1, index, second, key)]
}

/// Proves that a sender knows the receiver's public key. That key is not a secret, but a blind scan
/// fails here.
pub(crate) struct Mac1Key([u8; 32]);

impl Mac1Key {
    /// The key of a receiver's public key: its Noise static, or for message 2 the initiator's
    /// ephemeral, because an NK initiator has no static.
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

    /// Checks mac1 in constant time.
    pub(crate) fn accepts(&self, parsed: &Parsed<'_>) -> bool {
        self.mac(parsed.covered).ct_eq(parsed.mac1).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;
    use wire::handshake::half_head;

    #[test]
    fn mac1_is_keyed_blake2s_of_16_bytes() {
        // RFC 7693 has no keyed 16-byte vector; this one is Python's
        // hashlib.blake2s(b"eddy", digest_size=16, key=bytes(range(32))).
        let key = Mac1Key(std::array::from_fn(|i| i as u8));
        assert_eq!(key.mac(b"eddy"), hex!("c38072c2454d8de5435eb6fd2eed867f"));
    }

    #[test]
    fn halves_carry_message_1_in_order() {
        let key = Mac1Key::of(&[1; 32]);
        for (noise_len, half_len) in [(NK_MESSAGE_LEN, NK_HALF_LEN), (IK_MESSAGE_LEN, IK_HALF_LEN)] {
            let noise: Vec<u8> = (0..noise_len).map(|i| i as u8).collect();
            let halves = frame_halves(7, &noise, &key);
            let parsed = [0, 1].map(|part: usize| parse(&halves[part], half_len).unwrap());
            assert!(parsed.iter().all(|half| key.accepts(half) && half.index == 7));
            assert_eq!(parsed.each_ref().map(|half| half.part), [0, 1]);
            assert_eq!([parsed[0].noise, parsed[1].noise].concat(), noise);
            // The kernel finds bursts of halves by these bytes.
            assert!(halves.iter().zip([0, 1]).all(|(half, part)| half.starts_with(&half_head(part))));
        }
    }

    #[test]
    fn flipped_bit_before_mac2_is_detected() {
        let key = Mac1Key::of(&[1; 32]);
        let datagram = frame(MessageKind::Response, 0, 5, &[3; RESPONSE_MESSAGE_LEN], &key);
        assert_eq!(datagram.len(), RESPONSE_LEN);
        for byte in 0..RESPONSE_LEN - MAC_LEN {
            let mut bad = datagram.clone();
            bad[byte] ^= 0x10;
            assert!(parse(&bad, NK_HALF_LEN).is_none_or(|parsed| !key.accepts(&parsed)), "byte {byte}");
        }
    }
}
