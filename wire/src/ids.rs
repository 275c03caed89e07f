//! The vocabulary that control and the data plane share: ids, the two sides of a node, ranks of
//! slots, reasons why a channel ends.
//!
//! Plain values without logic. Control draws every id; the data plane only looks them up.

use std::fmt;

use crate::kdf::Secret;
use crate::setup::HopSecrets;

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
    /// The low bits, which hold the index: a node has fewer than `1 << INDEX_BITS` links of one class.
    pub const INDEX_BITS: u32 = 12;
    /// The high bits, which hold the class: a chain has at most six.
    pub const CLASS_BITS: u32 = 3;
    /// Versions of an index. 2^17 of them outlast any cell in a pool, because SPEC 5.9 bounds
    /// handshakes.
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
}
