//! Lengths and the header block (SPEC 2.2, 2.3, 3.1-3.3).
//!
//! All cells of one link and direction have the same length, which only [`Shape`] computes. The
//! header is one AES block; this module packs and parses it in the clear, and [`crate::link`]
//! enciphers it.

use thiserror::Error;

/// Bytes of the header block.
pub const HEADER_LEN: usize = 16;
/// Bytes of an AEAD tag.
pub const TAG_LEN: usize = 16;
/// Most key hops of a chain: seven mixes and the exit.
pub const MAX_HOPS: usize = 8;
/// End of the sequence numbers: this one and greater ones are never used (SPEC 3.8).
pub const SEQ_END: u64 = 1 << 39;
/// Longest cell: class L on the first link of eight hops.
pub const MAX_CELL_LEN: usize = HEADER_LEN + Class::L.payload() + TAG_LEN * MAX_HOPS;

const _: () = assert!(MAX_CELL_LEN == 1472);

/// One header block, enciphered or not.
pub type Block = [u8; HEADER_LEN];

/// Size class of a chain (SPEC 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// 208 payload bytes: voice, game state.
    S = 1,
    /// 1152 payload bytes: IPv6 minimum-MTU paths.
    M = 2,
    /// 1328 payload bytes: QUIC, RTP video, WireGuard.
    L = 3,
}

impl Class {
    /// P, the payload bytes that a cell carries.
    pub const fn payload(self) -> usize {
        match self {
            Class::S => 208,
            Class::M => 1152,
            Class::L => 1328,
        }
    }

    pub const fn from_wire(byte: u8) -> Option<Class> {
        match byte {
            1 => Some(Class::S),
            2 => Some(Class::M),
            3 => Some(Class::L),
            _ => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Class::S => "S",
            Class::M => "M",
            Class::L => "L",
        }
    }
}

impl std::str::FromStr for Class {
    type Err = UnknownClass;
    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        match text {
            "S" | "s" => Ok(Class::S),
            "M" | "m" => Ok(Class::M),
            "L" | "l" => Ok(Class::L),
            _ => Err(UnknownClass(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Error)]
#[error("unknown class {0:?}: expected S (203 bytes in a cell), M (1147) or L (1323)")]
pub struct UnknownClass(String);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the entry towards the exit.
    Forward,
    /// From the exit towards the entry.
    Backward,
}

/// The type of a cell (SPEC 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CellKind {
    /// Application data under the layers of a channel.
    Data = 0,
    /// A shard of a setup; forward only.
    Setup = 1,
    /// An ack of a setup; backward only.
    Ack = 2,
    /// Link control: dummy, keepalive, clock.
    Link = 3,
}

impl CellKind {
    pub(crate) const fn from_wire(byte: u8) -> Option<CellKind> {
        match byte {
            0 => Some(CellKind::Data),
            1 => Some(CellKind::Setup),
            2 => Some(CellKind::Ack),
            3 => Some(CellKind::Link),
            _ => None,
        }
    }

    /// True if cells of this kind may travel in `direction`.
    pub const fn travels(self, direction: Direction) -> bool {
        match self {
            CellKind::Data | CellKind::Link => true,
            CellKind::Setup => matches!(direction, Direction::Forward),
            CellKind::Ack => matches!(direction, Direction::Backward),
        }
    }
}

/// A header in the clear (SPEC 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Channel number on this link; 0 only in link control cells.
    pub channel: u32,
    /// Sequence number of 40 bits, per channel and direction, or per link key.
    pub seq: u64,
    /// Index of a shard of a setup or of a content of an ack; 0 in data and link control cells.
    pub sub: u8,
    pub kind: CellKind,
    pub class: Class,
}

/// Why a deciphered block is not a header of this link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// The zero field is not zero: another key, or forged.
    Zero,
    Class,
    Kind,
}

impl Header {
    /// The 16 bytes before enciphering.
    pub fn to_block(&self) -> Block {
        debug_assert!(self.seq < 1 << 40);
        let mut block = [0; HEADER_LEN];
        block[0..4].copy_from_slice(&self.channel.to_be_bytes());
        block[4..9].copy_from_slice(&self.seq.to_be_bytes()[3..8]);
        block[9] = self.sub;
        block[10] = self.kind as u8;
        block[11] = self.class as u8;
        block
    }

    /// Reads a deciphered block, in the order of SPEC 3.7: zero, class, type.
    ///
    /// # Errors
    /// The one of the three that is wrong.
    pub fn from_block(block: &Block, class: Class) -> Result<Header, BadHeader> {
        if block[12..16] != [0; 4] {
            return Err(BadHeader::Zero);
        }
        if block[11] != class as u8 {
            return Err(BadHeader::Class);
        }
        let kind = CellKind::from_wire(block[10]).ok_or(BadHeader::Kind)?;
        let mut seq = [0; 8];
        seq[3..8].copy_from_slice(&block[4..9]);
        Ok(Header {
            channel: u32::from_be_bytes([block[0], block[1], block[2], block[3]]),
            seq: u64::from_be_bytes(seq),
            sub: block[9],
            kind,
            class,
        })
    }

    /// Nonce of a data layer: iv XOR (type | sub | 0^5 | seq) (SPEC 3.3).
    pub fn data_nonce(&self, iv: &[u8; 12]) -> [u8; 12] {
        let mut nonce = *iv;
        nonce[0] ^= self.kind as u8;
        nonce[1] ^= self.sub;
        for (n, s) in nonce[7..12].iter_mut().zip(&self.seq.to_be_bytes()[3..8]) {
            *n ^= s;
        }
        nonce
    }
}

/// Nonce of a setup, ack or link cell: iv XOR the first twelve bytes of its header in the clear (SPEC 3.6).
pub(crate) fn control_nonce(block: &Block, iv: &[u8; 12]) -> [u8; 12] {
    let mut nonce = *iv;
    for (n, b) in nonce.iter_mut().zip(&block[..12]) {
        *n ^= b;
    }
    nonce
}

/// The lengths of a chain: its class and its number of key hops (SPEC 2.3).
///
/// Link `i` leads into hop `i`, from 1; hop `hops` is the exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    class: Class,
    hops: u8,
}

#[derive(Debug, Error)]
#[error("a chain has 1 to 7 mixes and an exit, not {0} key hops")]
pub struct BadShape(usize);

impl Shape {
    /// A chain of `hops` key hops: the mixes and the exit.
    ///
    /// # Errors
    /// Unless 2 <= hops <= 8.
    pub fn new(class: Class, hops: usize) -> Result<Shape, BadShape> {
        match u8::try_from(hops) {
            Ok(n) if (2..=MAX_HOPS).contains(&hops) => Ok(Shape { class, hops: n }),
            _ => Err(BadShape(hops)),
        }
    }

    pub const fn class(self) -> Class {
        self.class
    }

    /// Key hops: the mixes and the exit.
    pub const fn hops(self) -> usize {
        self.hops as usize
    }

    /// Payload bytes of a cell: P.
    pub const fn payload(self) -> usize {
        self.class.payload()
    }

    /// Length of the body of a forward cell on link `link`: B_i.
    pub const fn forward_body(self, link: usize) -> usize {
        assert!(link >= 1 && link <= self.hops());
        self.payload() + TAG_LEN * (self.hops() - link + 1)
    }

    /// Length of the body of a backward cell on any link.
    pub const fn backward_body(self) -> usize {
        self.payload() + TAG_LEN
    }

    /// Length of a cell on link `link` in `direction`: the UDP payload.
    pub const fn cell_len(self, direction: Direction, link: usize) -> usize {
        HEADER_LEN
            + match direction {
                Direction::Forward => self.forward_body(link),
                Direction::Backward => self.backward_body(),
            }
    }

    /// Length of the content of a control cell on link `link`: its body without the tag.
    pub const fn control_content(self, direction: Direction, link: usize) -> usize {
        self.cell_len(direction, link) - HEADER_LEN - TAG_LEN
    }

    /// Longest cell of the chain: a forward cell on link 1.
    pub const fn longest_cell(self) -> usize {
        self.cell_len(Direction::Forward, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cell_lengths_match_the_specification() {
        for (class, first, last, one_cell) in
            [(Class::S, 288, 240, 203), (Class::M, 1232, 1184, 1147), (Class::L, 1408, 1360, 1323)]
        {
            let shape = Shape::new(class, 4).unwrap();
            assert_eq!(shape.cell_len(Direction::Forward, 1), first);
            assert_eq!(shape.cell_len(Direction::Forward, 4), last);
            assert_eq!(shape.cell_len(Direction::Backward, 1), last);
            assert_eq!(crate::frames::max_single_cell_len(shape.payload()), one_cell);
        }
        assert!(Shape::new(Class::L, 1).is_err());
        assert!(Shape::new(Class::L, 9).is_err());
    }

    #[test]
    fn header_roundtrips_and_other_blocks_are_refused() {
        let header =
            Header { channel: 0xdead_beef, seq: 0x12_3456_789a, sub: 7, kind: CellKind::Setup, class: Class::M };
        let block = header.to_block();
        assert_eq!(Header::from_block(&block, Class::M), Ok(header));
        assert_eq!(Header::from_block(&block, Class::L), Err(BadHeader::Class));
        for byte in 12..16 {
            let mut bad = block;
            bad[byte] = 1;
            assert_eq!(Header::from_block(&bad, Class::M), Err(BadHeader::Zero));
        }
        let mut bad = block;
        bad[10] = 4;
        assert_eq!(Header::from_block(&bad, Class::M), Err(BadHeader::Kind));
    }

    #[test]
    fn nonce_covers_every_header_field_that_varies() {
        let base = Header { channel: 1, seq: 5, sub: 0, kind: CellKind::Data, class: Class::S };
        let iv = [9; 12];
        let data = base.data_nonce(&iv);
        assert_ne!(data, Header { seq: 6, ..base }.data_nonce(&iv));
        assert_ne!(data, Header { sub: 1, ..base }.data_nonce(&iv));
        assert_ne!(data, Header { kind: CellKind::Link, ..base }.data_nonce(&iv));
        assert_eq!(data, Header { channel: 2, ..base }.data_nonce(&iv), "the channel chooses the key");
        let control = |header: Header| control_nonce(&header.to_block(), &iv);
        assert_ne!(control(base), control(Header { channel: 2, ..base }));
    }
}
