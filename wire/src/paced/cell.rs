//! Class, lengths and header of a paced cell (SPEC 9.1.1, 9.2, 9.4).

use subtle::ConstantTimeEq;

use super::RoundSub;
use crate::cell::{Block, CellKind, Class, HEADER_LEN, Header, TAG_LEN};
use crate::gcm::{LINK_TAG_LEN, PolyvalKey};

/// The number of a paced class is that of its size with this bit.
const PACED: u8 = 0x10;

/// How far the round of a data cell may be from the running one for its block to be a header (SPEC 9.4, step 3).
pub const SLOT_ROUNDS: u64 = 1024;

/// A paced class. All its cells have one length, on every link and in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PacedClass(Class);

impl PacedClass {
    pub const fn new(size: Class) -> PacedClass {
        PacedClass(size)
    }

    /// Of its number in headers, setups and the chain id.
    pub const fn from_wire(byte: u8) -> Option<PacedClass> {
        match Class::from_wire(byte ^ PACED) {
            Some(size) => Some(PacedClass(size)),
            None => None,
        }
    }

    pub const fn number(self) -> u8 {
        PACED | self.0 as u8
    }

    pub const fn size(self) -> Class {
        self.0
    }

    /// Bytes of a body: P + 16.
    pub const fn body_len(self) -> usize {
        self.0.payload() + TAG_LEN
    }

    /// Bytes of a cell: the UDP payload.
    pub const fn cell_len(self) -> usize {
        HEADER_LEN + self.body_len()
    }
}

impl std::fmt::Display for PacedClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "paced-{}", self.0)
    }
}

/// A header in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacedHeader {
    /// Channel number on this link; 0 in link control cells, and in data cells without a channel (SPEC 9.10.6).
    pub channel: u32,
    /// Data: the round. Others: the number under the link key (SPEC 3.8.4). 40 bits.
    pub seq: u64,
    /// Data: number of the cell in its round. Others: as in free classes.
    pub sub: u8,
    pub kind: CellKind,
    pub class: PacedClass,
    /// Data: the link tag of the body. Others: zeros.
    pub tag: [u8; LINK_TAG_LEN],
}

impl PacedHeader {
    /// The 16 bytes before enciphering.
    pub fn to_block(&self) -> Block {
        let Self { channel, seq, sub, kind, class, tag } = *self;
        let mut block = Header { channel, seq, sub, kind, class: class.size() }.to_block();
        block[11] = class.number();
        block[12..16].copy_from_slice(&tag);
        block
    }

    /// Reads a deciphered block as SPEC 9.4, step 3, demands: the link's class, and zeros behind it or the type of a
    /// data cell with a round near `running`, which is the last one released or, at an entry, the one it sends. None
    /// if the block is not a header of this slot. Before an entry knows `running` no data cell is.
    pub fn from_block(block: &Block, class: PacedClass, running: Option<u64>) -> Option<PacedHeader> {
        if block[11] != class.number() {
            return None;
        }
        let kind = CellKind::from_wire(block[10])?;
        let seq = u64::from_be_bytes([0, 0, 0, block[4], block[5], block[6], block[7], block[8]]);
        let tag = [block[12], block[13], block[14], block[15]];
        let fits = match kind {
            CellKind::Data => running.is_some_and(|running| seq.abs_diff(running) <= SLOT_ROUNDS),
            CellKind::Setup | CellKind::Ack | CellKind::Link => tag == [0; LINK_TAG_LEN],
        };
        let channel = u32::from_be_bytes([block[0], block[1], block[2], block[3]]);
        fits.then_some(PacedHeader { channel, seq, sub: block[9], kind, class, tag })
    }

    /// Round and number of a data cell.
    pub const fn round_sub(&self) -> RoundSub {
        RoundSub { round: self.seq, sub: self.sub }
    }

    /// True if this is the header of a data cell with this body. Takes constant time.
    ///
    /// # Panics
    /// The length of the body is not a multiple of 16.
    pub fn is_tag_of(&self, key: &PolyvalKey, body: &[u8]) -> bool {
        key.link_tag(body).ct_eq(&self.tag).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND: u64 = 163_840_000_007;
    const CLASS: PacedClass = PacedClass::new(Class::S);

    fn data() -> PacedHeader {
        PacedHeader { channel: 0xdead_beef, seq: ROUND, sub: 3, kind: CellKind::Data, class: CLASS, tag: [9, 0, 0, 1] }
    }

    #[test]
    fn lengths_match_the_specification() {
        for (size, number, cell) in [(Class::S, 0x11, 240), (Class::M, 0x12, 1184), (Class::L, 0x13, 1360)] {
            let class = PacedClass::new(size);
            assert_eq!((class.number(), class.cell_len(), class.body_len()), (number, cell, cell - 16));
            assert_eq!(PacedClass::from_wire(number), Some(class));
            assert!(!crate::handshake::is_handshake_len(cell));
        }
        assert!([0, 1, 2, 3, 0x10, 0x14, 0x21, 0xff].iter().all(|byte| PacedClass::from_wire(*byte).is_none()));
    }

    #[test]
    fn data_header_needs_a_round_near_the_running_one() {
        let block = data().to_block();
        for running in [ROUND, ROUND - SLOT_ROUNDS, ROUND + SLOT_ROUNDS] {
            assert_eq!(PacedHeader::from_block(&block, CLASS, Some(running)), Some(data()));
        }
        for running in [0, ROUND - SLOT_ROUNDS - 1, ROUND + SLOT_ROUNDS + 1] {
            assert_eq!(PacedHeader::from_block(&block, CLASS, Some(running)), None);
        }
        assert_eq!(PacedHeader::from_block(&block, PacedClass::new(Class::M), Some(ROUND)), None);
        let free = Header { channel: 1, seq: ROUND, sub: 0, kind: CellKind::Data, class: Class::S }.to_block();
        assert_eq!(PacedHeader::from_block(&free, CLASS, Some(ROUND)), None, "a header of a free class");
    }

    #[test]
    fn control_header_needs_four_zeros_and_any_number() {
        for kind in [CellKind::Setup, CellKind::Ack, CellKind::Link] {
            let header = PacedHeader { seq: 7, kind, tag: [0; 4], ..data() };
            assert_eq!(PacedHeader::from_block(&header.to_block(), CLASS, Some(ROUND)), Some(header));
            for byte in 12..16 {
                let mut block = header.to_block();
                block[byte] = 1;
                assert_eq!(PacedHeader::from_block(&block, CLASS, Some(7)), None);
            }
        }
        let mut block = data().to_block();
        block[10] = 4;
        assert_eq!(PacedHeader::from_block(&block, CLASS, Some(ROUND)), None, "an unknown type");
    }

    #[test]
    fn tag_fails_for_every_altered_bit() {
        let (key, mut body) = (PolyvalKey::prepare(&[7; 16]), vec![3; CLASS.body_len()]);
        let header = PacedHeader { tag: key.link_tag(&body), ..data() };
        assert!(header.is_tag_of(&key, &body));
        for bit in 0..8 * body.len() {
            body[bit / 8] ^= 1 << (bit % 8);
            assert!(!header.is_tag_of(&key, &body), "bit {bit}");
            body[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in 0..32 {
            let mut tag = header.tag;
            tag[bit / 8] ^= 1 << (bit % 8);
            assert!(!PacedHeader { tag, ..header }.is_tag_of(&key, &body));
        }
    }
}
