//! The two messages that carry trust in cells of type 3 (SPEC 7.8): asks, which say what a node holds,
//! and parts, which carry what the other side lacks.

use std::collections::VecDeque;
use std::time::Duration;

use wire::link::{CLOCK_ITEM, LinkContent, PartHead};

use super::descriptor;
use super::encoding::{Malformed, Reader, sha256};

/// Kind of an ask (SPEC 3.6).
pub const ASK: u8 = LinkContent::Ask as u8;
/// Kind of a part.
pub const PART: u8 = LinkContent::Part as u8;
/// Longest item.
pub const ITEM_MAX: usize = descriptor::LEN_MAX;
/// How long the pieces of an item wait for the others, counted from the last new one.
const WAIT: Duration = Duration::from_secs(5);

/// The records that a node holds of a hop; zeros if none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Revision of the newest descriptor.
    pub revision: u64,
    /// First bytes of its hash.
    pub descriptor: [u8; 2],
    /// Draw of the record of the interval's epoch that counts.
    pub draw: u64,
    /// First bytes of its hash.
    pub record: [u8; 4],
}

/// What a node holds for an interval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// An answer is wanted even if nothing is missing.
    pub answer: bool,
    /// The sender's clock, ms since 1970.
    pub clock_ms: u64,
    pub interval: u64,
    /// First bytes of the hash whose signatures follow; zeros if none.
    pub hash: [u8; 8],
    /// One bit for each hop whose signature over it is held.
    pub signatures: u8,
    /// By position - 1.
    pub held: Vec<Held>,
}

impl Held {
    /// Which of two newest descriptors counts, as far as asks show: the greater one.
    pub fn rank(&self) -> (u64, [u8; 2]) {
        (self.revision, self.descriptor)
    }
}

impl Ask {
    /// `kind 3 | flags u8 | clock u64 | n u64 | hash tag 8 | signatures u8`, h times `revision u64 | tag 2 | draw u64 |
    /// tag 4`.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![ASK, u8::from(self.answer)];
        out.extend_from_slice(&self.clock_ms.to_be_bytes());
        out.extend_from_slice(&self.interval.to_be_bytes());
        out.extend_from_slice(&self.hash);
        out.push(self.signatures);
        for held in &self.held {
            out.extend_from_slice(&held.revision.to_be_bytes());
            out.extend_from_slice(&held.descriptor);
            out.extend_from_slice(&held.draw.to_be_bytes());
            out.extend_from_slice(&held.record);
        }
        out
    }

    /// Reads an ask of a chain with `hops` hops from the content of a cell, whose rest is ignored.
    ///
    /// # Errors
    /// Too short, or unknown flags.
    pub fn read(content: &[u8], hops: usize) -> Result<Ask, Malformed> {
        let mut reader = Reader::new(content);
        reader.u8()?;
        let answer = match reader.u8()? {
            flags @ (0 | 1) => flags == 1,
            _ => return Err(Malformed::Field("unknown flags of an ask")),
        };
        let mut ask = Ask {
            answer,
            clock_ms: reader.u64()?,
            interval: reader.u64()?,
            hash: reader.array()?,
            signatures: reader.u8()?,
            held: Vec::with_capacity(hops),
        };
        for _ in 0..hops {
            ask.held.push(Held {
                revision: reader.u64()?,
                descriptor: reader.array()?,
                draw: reader.u64()?,
                record: reader.array()?,
            });
        }
        Ok(ask)
    }
}

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// The descriptor of the hop at a position, from 1.
    Descriptor(u8),
    /// Its record.
    Record(u8),
    Signatures,
    /// The sender's clock.
    Clock,
}

impl ItemKind {
    const fn to_wire(self) -> u8 {
        match self {
            ItemKind::Descriptor(hop) => 0x10 | hop,
            ItemKind::Record(hop) => 0x20 | hop,
            ItemKind::Signatures => 0x30,
            ItemKind::Clock => CLOCK_ITEM,
        }
    }

    fn from_wire(byte: u8, hops: usize) -> Option<ItemKind> {
        let hop = byte & 0xf;
        let exists = (1..=hops).contains(&usize::from(hop));
        match byte & 0xf0 {
            0x10 if exists => Some(ItemKind::Descriptor(hop)),
            0x20 if exists => Some(ItemKind::Record(hop)),
            0x30 if hop == 0 => Some(ItemKind::Signatures),
            CLOCK_ITEM if hop == 0 => Some(ItemKind::Clock),
            _ => None,
        }
    }
}

/// Cuts an item into the contents of part cells of `content_len` bytes each.
///
/// # Panics
/// The item is empty or longer than [`ITEM_MAX`].
pub fn cut(kind: ItemKind, item: &[u8], content_len: usize) -> Vec<Vec<u8>> {
    assert!((1..=ITEM_MAX).contains(&item.len()));
    let id = id(kind, item);
    let pieces = item.chunks(content_len - PartHead::LEN).enumerate();
    let part = |(index, piece): (usize, &[u8])| {
        let head = PartHead { item: kind.to_wire(), id, index: index as u8, total: item.len() as u16 };
        [&head.to_bytes(), piece].concat()
    };
    pieces.map(part).collect()
}

/// How many cells [`cut`] makes of an item.
pub fn cells(item: &[u8], content_len: usize) -> usize {
    item.len().div_ceil(content_len - PartHead::LEN)
}

/// The first bytes of the item's hash.
fn id(kind: ItemKind, item: &[u8]) -> [u8; 4] {
    *sha256(&[&[kind.to_wire()], item]).first_chunk().expect("a hash has 32 bytes")
}

/// The items of one link whose pieces are not all there.
pub struct Reassembly {
    /// Most of them.
    capacity: usize,
    /// The longest without a new piece first.
    waiting: VecDeque<Partial>,
}

struct Partial {
    kind: ItemKind,
    id: [u8; 4],
    since: Duration,
    bytes: Vec<u8>,
    /// One bit for each piece that is there.
    present: u64,
}

/// What became of a part.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    Incomplete,
    Complete(ItemKind, Vec<u8>),
}

impl Reassembly {
    /// For the items of a chain with `hops` hops: a descriptor and a record of each, signatures, a clock.
    pub fn new(hops: usize) -> Reassembly {
        Reassembly { capacity: 2 * hops + 2, waiting: VecDeque::new() }
    }

    /// Takes in the content of a part cell.
    ///
    /// # Errors
    /// A form that [`cut`] does not make.
    pub fn take(&mut self, now: Duration, content: &[u8], hops: usize) -> Result<Taken, Malformed> {
        let head = PartHead::read(content).ok_or(Malformed::Field("a part without its head"))?;
        let PartHead { item, id: part_id, index, total } = head;
        let kind = ItemKind::from_wire(item, hops).ok_or(Malformed::Field("an unknown item"))?;
        let (index, total) = (usize::from(index), usize::from(total));
        let mut reader = Reader::new(&content[PartHead::LEN..]);
        let piece_len = content.len() - PartHead::LEN;
        let from = index * piece_len;
        if piece_len == 0 || total > ITEM_MAX || from >= total || total.div_ceil(piece_len) > 64 {
            return Err(Malformed::Field("a part outside its item"));
        }
        let piece = reader.bytes(piece_len.min(total - from))?;

        self.waiting.retain(|partial| now.saturating_sub(partial.since) < WAIT);
        let known = self.waiting.iter().position(|partial| partial.id == part_id && partial.kind == kind);
        let mut partial = match known.and_then(|at| self.waiting.remove(at)) {
            Some(partial) if partial.bytes.len() == total => partial,
            Some(_) => return Err(Malformed::Field("a part that contradicts another")),
            None => Partial { kind, id: part_id, since: now, bytes: vec![0; total], present: 0 },
        };
        if partial.present >> index & 1 == 0 {
            partial.present |= 1 << index;
            partial.since = now;
            partial.bytes[from..from + piece.len()].copy_from_slice(piece);
        }
        if partial.present.count_ones() as usize == total.div_ceil(piece_len) {
            // A piece of another item with the same id may have come between.
            return if id(kind, &partial.bytes) == part_id {
                Ok(Taken::Complete(kind, partial.bytes))
            } else {
                Err(Malformed::Field("an item that is not what its parts say"))
            };
        }
        if self.waiting.len() >= self.capacity {
            self.waiting.pop_front();
        }
        self.waiting.push_back(partial);
        Ok(Taken::Incomplete)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ask(hops: usize) -> Ask {
        let held = |i: usize| Held { revision: i as u64, descriptor: [i as u8; 2], draw: 7, record: [i as u8; 4] };
        Ask { answer: true, clock_ms: 5, interval: 6, hash: [1; 8], signatures: 3, held: (0..hops).map(held).collect() }
    }

    #[test]
    fn ask_of_eight_hops_fits_a_cell_of_class_s() {
        let bytes = ask(8).to_bytes();
        assert_eq!(bytes.len(), 203);
        let padded = [&bytes[..], &[0; 5]].concat();
        assert_eq!(Ask::read(&padded, 8), Ok(ask(8)));
        assert!(Ask::read(&bytes[..202], 8).is_err());
    }

    proptest! {
        /// Pieces come in any order, twice, and with those of other items between.
        #[test]
        fn pieces_make_the_item_again(
            len in 1..=ITEM_MAX,
            content in prop::sample::select(vec![208usize, 320, 1152, 1328, 1440]),
            seed: u64,
        ) {
            let item: Vec<u8> = (0..len).map(|i| (i as u64 ^ seed) as u8).collect();
            let other = [&item[..len - 1], &[!item[len - 1]]].concat();
            let kind = ItemKind::Record(2);
            let mut parts = cut(kind, &item, content);
            let last = parts.pop().unwrap();
            let noise = cut(kind, &other, content);
            let turn = seed as usize % parts.len().max(1);
            parts.rotate_left(turn);
            let mut reassembly = Reassembly::new(4);
            for part in parts.iter().chain(&parts).chain(&noise[..noise.len() - 1]) {
                let padded = [&part[..], &vec![0; content - part.len()]].concat();
                prop_assert_eq!(reassembly.take(Duration::ZERO, &padded, 4), Ok(Taken::Incomplete));
            }
            let padded = [&last[..], &vec![0; content - last.len()]].concat();
            prop_assert_eq!(reassembly.take(Duration::ZERO, &padded, 4), Ok(Taken::Complete(kind, item)));
        }

        #[test]
        fn any_part_is_taken_without_a_panic(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..40)) {
            let mut reassembly = Reassembly::new(4);
            for part in &parts {
                let _ = reassembly.take(Duration::ZERO, part, 4);
                let _ = Ask::read(part, 4);
                prop_assert!(reassembly.waiting.len() <= reassembly.capacity);
            }
        }
    }

    #[test]
    fn item_without_a_new_piece_for_five_seconds_is_forgotten() {
        let parts = cut(ItemKind::Signatures, &[7; 400], 208);
        let padded = |i: usize| [&parts[i][..], &vec![0; 208 - parts[i].len()]].concat();
        let mut reassembly = Reassembly::new(4);
        for (at, i) in [(0, 0), (4, 1), (8, 0)] {
            assert_eq!(reassembly.take(Duration::from_secs(at), &padded(i), 4), Ok(Taken::Incomplete));
        }
        assert_eq!(
            reassembly.take(Duration::from_secs(9), &padded(2), 4),
            Ok(Taken::Incomplete),
            "4 s to 9 s: forgotten"
        );
        assert_eq!(reassembly.waiting.len(), 1);
    }
}
