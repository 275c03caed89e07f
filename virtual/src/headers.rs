//! Header keys of all links, read on their way from control to workers: for attackers and for tests.

use std::collections::HashMap;

use dataplane::command::LinkCommand;
use dataplane::paced::Command;
use dataplane::per_direction::PerDirection;
use wire::cell::{Direction, HEADER_LEN};
use wire::link::HeaderKey;
use wire::paced::{PacedClass, PacedHeader};

use super::{is_link, number_of};

/// The header keys of all slots that links have had. A link is named by the node at its upper end, as
/// [`link_of`](super::link_of) does.
pub struct HeaderKeys {
    class: PacedClass,
    slots: HashMap<usize, Vec<PerDirection<HeaderKey>>>,
}

impl HeaderKeys {
    pub(super) fn new(class: PacedClass) -> HeaderKeys {
        HeaderKeys { class, slots: HashMap::new() }
    }

    /// Takes in a command of control to a node's worker. It reads keys at the lower end of a link, which has all slots.
    pub(super) fn command(&mut self, node: usize, command: &Command) {
        if let Command::Link(LinkCommand::InstallSlot { peer, header_i2r, header_r2i, .. }) = command
            && let Some(up) = number_of(*peer).filter(|up| is_link(*up, node))
        {
            let keys = PerDirection { forward: HeaderKey::new(header_i2r), backward: HeaderKey::new(header_r2i) };
            self.slots.entry(up).or_default().push(keys);
        }
    }

    /// The header of a cell on a link while a round is `running`, and the number of its slot on that link, from 0.
    /// None if it is a cell of no slot.
    pub fn open(&self, (up, direction): (usize, Direction), cell: &[u8], running: u64) -> Option<(usize, PacedHeader)> {
        self.slots.get(&up)?.iter().enumerate().rev().find_map(|(slot, keys)| {
            let mut block = [*cell.first_chunk::<HEADER_LEN>()?];
            keys[direction].decipher(&mut block);
            Some((slot, PacedHeader::from_block(&block[0], self.class, Some(running))?))
        })
    }

    /// The key of a slot that [`Self::open`] has found.
    pub fn key(&self, (up, direction): (usize, Direction), slot: usize) -> &HeaderKey {
        &self.slots[&up][slot][direction]
    }
}
