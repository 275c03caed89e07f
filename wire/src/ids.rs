//! The vocabulary that control and the data plane share: classes, ids, the two sides of a node, ranks of
//! slots, reasons why a channel ends.
//!
//! Plain values without logic. Control draws every id; the data plane only looks them up.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::cell::Class;
use crate::kdf::Secret;
use crate::paced::PacedClass;
use crate::setup::HopSecrets;

/// A class of a chain: a size, free or paced (SPEC 2.2, 9.1.1). Ordered by number, so free ones come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClassId {
    /// Cells leave when they come, or when the mixing strategy says.
    Free(Class),
    /// Cells leave in rounds.
    Paced(PacedClass),
}

impl ClassId {
    /// Of its number in descriptors, chain ids, handshakes and setups.
    pub const fn from_wire(number: u8) -> Option<ClassId> {
        match (Class::from_wire(number), PacedClass::from_wire(number)) {
            (Some(class), _) => Some(ClassId::Free(class)),
            (None, Some(class)) => Some(ClassId::Paced(class)),
            (None, None) => None,
        }
    }

    /// Its number there.
    pub const fn number(self) -> u8 {
        match self {
            ClassId::Free(class) => class as u8,
            ClassId::Paced(class) => class.number(),
        }
    }

    /// The size of its cells' content.
    pub const fn size(self) -> Class {
        match self {
            ClassId::Free(class) => class,
            ClassId::Paced(class) => class.size(),
        }
    }

    /// True if its cells leave in rounds.
    pub const fn is_paced(self) -> bool {
        matches!(self, ClassId::Paced(_))
    }
}

impl Ord for ClassId {
    fn cmp(&self, other: &ClassId) -> Ordering {
        self.number().cmp(&other.number())
    }
}

impl PartialOrd for ClassId {
    fn partial_cmp(&self, other: &ClassId) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<Class> for ClassId {
    fn from(class: Class) -> ClassId {
        ClassId::Free(class)
    }
}

impl From<PacedClass> for ClassId {
    fn from(class: PacedClass) -> ClassId {
        ClassId::Paced(class)
    }
}

/// `S`, `M`, `L`, `paced-S`, `paced-M`, `paced-L`.
impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClassId::Free(class) => class.fmt(f),
            ClassId::Paced(class) => class.fmt(f),
        }
    }
}

impl FromStr for ClassId {
    type Err = UnknownClassId;

    fn from_str(text: &str) -> Result<ClassId, UnknownClassId> {
        let unknown = |_| UnknownClassId(text.to_owned());
        match text.strip_prefix("paced-") {
            Some(size) => size.parse().map(PacedClass::new).map(ClassId::Paced).map_err(unknown),
            None => text.parse().map(ClassId::Free).map_err(unknown),
        }
    }
}

/// A text that is not a class.
#[derive(Debug, Error)]
#[error("unknown class {0:?}: expected S (203 bytes in a cell), M (1147), L (1323), paced-S, paced-M or paced-L")]
pub struct UnknownClassId(String);

/// One of a node's two neighbours, and the sockets towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Towards the entry. This node is the responder; forward cells arrive here.
    Up,
    /// Towards the exit. This node is the initiator; backward cells arrive here.
    Down,
}

impl Side {
    /// `up` or `down`.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Up => "up",
            Side::Down => "down",
        }
    }
}

/// A link of a node: its class, an index into that class's table of links, dense and reused after the
/// link is retired, and a version that counts the uses of that index. A pooled cell whose link has ended
/// therefore never leaves under the keys of the link that took over its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub u32);

impl LinkId {
    /// The low bits, which hold the index: a node has fewer than `1 << INDEX_BITS` links of one class. A paced class
    /// has up to 32,768 (SPEC 9.8.6, 9.16).
    pub const INDEX_BITS: u32 = 16;
    /// The high bits, which hold the class: a chain has at most six.
    pub const CLASS_BITS: u32 = 3;
    /// Versions of an index: 2^13. Control takes the index that was free longest, and keeps 256 free, so an id comes
    /// again after 2^21 links at the earliest. SPEC 5.9 bounds handshakes, so that outlasts any cell in a pool.
    pub const VERSIONS: u32 = 1 << (u32::BITS - Self::INDEX_BITS - Self::CLASS_BITS);

    /// The id of the link that is the `version`th at `index`, of the class at place `class` among those
    /// of the node.
    pub const fn new(class: usize, index: usize, version: u32) -> LinkId {
        debug_assert!(class < 1 << Self::CLASS_BITS && index < 1 << Self::INDEX_BITS && version < Self::VERSIONS);
        let high = (class as u32) << (u32::BITS - Self::CLASS_BITS);
        LinkId(high | version << Self::INDEX_BITS | index as u32)
    }

    /// Its index in the table of its class's links.
    pub const fn index(self) -> usize {
        (self.0 & ((1 << Self::INDEX_BITS) - 1)) as usize
    }

    /// The place of its class among those of the node, from 0.
    pub const fn class(self) -> usize {
        (self.0 >> (u32::BITS - Self::CLASS_BITS)) as usize
    }
}

/// The keys of one completed handshake. Never reused, so a late report about a slot that is gone is
/// recognised: 2^32 handshakes outlast any slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u32);

/// A channel's index in the data plane's table; dense, reused after the channel has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelIndex(pub u32);

impl ChannelIndex {
    /// For indexing a table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

macro_rules! display_as_number {
    ($($id:ty),*) => {$(
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

display_as_number!(LinkId, SlotId, ChannelIndex);

/// The rank of a slot of a link (SPEC 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rank {
    /// Cells are accepted and sent under it.
    Current,
    /// The responder's newest handshake: cells are accepted under it, and the first authentic one
    /// makes it current.
    Next,
    /// The one before current; cells are still accepted under it.
    Previous,
}

/// Why a channel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Its lifetime is over.
    Lifetime,
    /// Hop: no authentic forward cell for 30 s.
    Idle,
    /// Entry: the exit no longer answers.
    Lost,
    /// Control retired it.
    Retired,
}

/// The secrets that a channel starts with: sec\[0\] per direction (SPEC 5.1).
pub enum ChannelKeys {
    /// One hop's.
    Hop {
        /// Towards the exit.
        forward: Secret,
        /// Towards the entry.
        backward: Secret,
    },
    /// Entry: those of all hops, first mix first.
    Entry(Vec<HopSecrets>),
}

impl fmt::Debug for ChannelKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelKeys(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_different_classes_have_different_ids() {
        let mut seen = std::collections::HashSet::new();
        for class in 0..1 << LinkId::CLASS_BITS {
            for index in [0, 1, (1 << LinkId::INDEX_BITS) - 1] {
                for version in [0, 1, LinkId::VERSIONS - 1] {
                    let id = LinkId::new(class, index, version);
                    assert_eq!((id.class(), id.index()), (class, index), "version {version}");
                    assert!(seen.insert(id));
                }
            }
        }
        assert_eq!(LinkId::new(0, 5, 0), LinkId(5));
    }

    #[test]
    fn classes_have_one_number_and_one_text_each() {
        let all: Vec<ClassId> = (0..=u8::MAX).filter_map(ClassId::from_wire).collect();
        assert_eq!(all.iter().map(|class| class.number()).collect::<Vec<_>>(), [1, 2, 3, 0x11, 0x12, 0x13]);
        assert!(all.is_sorted());
        let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["S", "M", "L", "paced-S", "paced-M", "paced-L"]);
        for (text, class) in texts.iter().zip(&all) {
            assert_eq!(text.parse::<ClassId>().ok().as_ref(), Some(class));
        }
        for text in ["", "XL", "paced", "paced-", "paced-paced-S", "Paced-S"] {
            assert!(text.parse::<ClassId>().unwrap_err().to_string().contains("or paced-L"));
        }
    }
}
