//! Links of a paced class: what [`crate::links`] has, and the keys by which a worker seals its cells itself (SPEC 9.2,
//! 9.6.5).

use std::net::SocketAddr;

use arrayvec::ArrayVec;
use hashbrown::HashMap;
use wire::cell::{CellKind, SEQ_END, TAG_LEN};
use wire::gcm::PolyvalKey;
use wire::ids::{LinkId, Rank, Side, SlotId};
use wire::link::{ControlKey, HeaderKey, LinkSecrets};
use wire::paced::{PacedClass, PacedHeader};
use zeroize::Zeroizing;

use super::Command;
use super::control_guard::{ControlGuard, ControlLimits};
use crate::Nanos;
use crate::command::LinkCommand;
use crate::ledger::DropReason;
use crate::links::Links;
use crate::punt::{Punt, PuntSender};

/// Slots of a link: current, next and previous.
const SLOTS_MAX: usize = 3;

/// Keys of a slot that only a paced class needs in the data plane.
pub struct SlotKeys {
    /// Key of the link tags of cells that arrive.
    pub tag_in: Zeroizing<[u8; 16]>,
    /// Key of the link tags of cells that leave.
    pub tag_out: Zeroizing<[u8; 16]>,
    /// Opens control cells that arrive.
    pub control_in: Zeroizing<[u8; 28]>,
    /// Seals control cells that leave.
    pub control_out: Zeroizing<[u8; 28]>,
}

/// What installs a link with one slot, for benchmarks and tests: control sends these as handshakes end. The other end
/// is at `peer`, on `side`.
pub fn link_commands(link: LinkId, side: Side, peer: SocketAddr, secrets: LinkSecrets) -> [Command; 3] {
    let LinkSecrets { header_i2r, header_r2i, tag_i2r, tag_r2i, control_i2r, control_r2i, .. } = secrets;
    let (tag_in, tag_out, control_in, control_out) = match side {
        Side::Up => (tag_i2r, tag_r2i, control_i2r, control_r2i),
        Side::Down => (tag_r2i, tag_i2r, control_r2i, control_i2r),
    };
    let slot = SlotId(link.0);
    [
        Command::Link(LinkCommand::Install { link, side, peer }),
        Command::Link(LinkCommand::InstallSlot { link, slot, peer, header_i2r, header_r2i, rank: Rank::Current }),
        Command::SlotKeys { link, slot, keys: Box::new(SlotKeys { tag_in, tag_out, control_in, control_out }) },
    ]
}

struct Keys {
    tag_in: PolyvalKey,
    tag_out: PolyvalKey,
    control_in: ControlKey,
    control_out: ControlKey,
    /// Number of the next control cell.
    next_seq: u64,
    arrived: ControlGuard,
}

/// All links of a worker.
#[derive(Default)]
pub(super) struct PacedLinks {
    pub(super) links: Links,
    /// In boxes: what moves in a table leaves no keys behind that nobody wipes.
    keys: HashMap<LinkId, ArrayVec<(SlotId, Box<Keys>), SLOTS_MAX>, foldhash::fast::RandomState>,
    /// When a cell of the link was last accepted.
    heard: HashMap<LinkId, Nanos, foldhash::fast::RandomState>,
    /// The link of each side that was installed, or heard first, most recently. After its end, the one heard last.
    latest: [Option<LinkId>; 2],
}

/// A link as a sender needs it: the keys of its current slot.
pub(super) struct Outgoing<'a> {
    pub(super) peer: SocketAddr,
    header: &'a HeaderKey,
    keys: &'a mut Keys,
}

impl PacedLinks {
    /// Makes a change of control's. A link whose slot is promoted was heard: its peer has shown that it holds the keys.
    pub(super) fn apply(&mut self, command: LinkCommand, now: Nanos) {
        let link = match &command {
            LinkCommand::Install { link, side, .. } => {
                if *side == Side::Down {
                    self.latest[Side::Down as usize] = Some(*link);
                }
                *link
            }
            LinkCommand::InstallSlot { link, .. }
            | LinkCommand::Promote { link, .. }
            | LinkCommand::Move { link, .. }
            | LinkCommand::RetireSlot { link, .. }
            | LinkCommand::Retire { link } => *link,
        };
        let is_promoted = matches!(command, LinkCommand::Promote { .. });
        let is_retired = matches!(command, LinkCommand::Retire { .. });
        self.links.apply(command);
        if is_promoted {
            self.heard(link, now);
        }
        let Self { links, keys, heard, .. } = self;
        match links.link(link) {
            Some(live) => {
                if let Some(keys) = keys.get_mut(&link) {
                    keys.retain(|(slot, _)| live.slot(*slot).is_some());
                }
            }
            None => {
                keys.remove(&link);
                heard.remove(&link);
            }
        }
        for side in [Side::Up, Side::Down] {
            if is_retired && self.latest[side as usize] == Some(link) {
                self.latest[side as usize] = self.last_heard(side);
            }
        }
    }

    /// The link of a side with a current slot of which a cell was accepted last.
    fn last_heard(&self, side: Side) -> Option<LinkId> {
        let of_side = self.keys.keys().copied().filter(|link| self.links.side(*link) == Some(side));
        of_side.filter(|link| self.has_slot(*link)).max_by_key(|link| self.heard.get(link))
    }

    fn has_slot(&self, link: LinkId) -> bool {
        self.links.link(link).is_some_and(|link| link.current().is_some())
    }

    /// Adds the keys of a slot that was installed.
    pub(super) fn add_keys(&mut self, link: LinkId, slot: SlotId, keys: &SlotKeys) {
        if self.links.link(link).is_none_or(|link| link.slot(slot).is_none()) {
            return;
        }
        let keys = Box::new(Keys {
            tag_in: PolyvalKey::prepare(&keys.tag_in),
            tag_out: PolyvalKey::prepare(&keys.tag_out),
            control_in: ControlKey::new(&keys.control_in),
            control_out: ControlKey::new(&keys.control_out),
            next_seq: 0,
            arrived: ControlGuard::default(),
        });
        // There is room: keys of slots that have gone were removed with them.
        let _ = self.keys.entry(link).or_default().try_push((slot, keys));
    }

    /// True if this is the link tag of a body that arrived.
    pub(super) fn is_tag_of(&self, link: LinkId, slot: SlotId, header: &PacedHeader, body: &[u8]) -> bool {
        let keys = self.keys.get(&link).and_then(|keys| keys.iter().find(|(id, _)| *id == slot));
        keys.is_some_and(|(_, keys)| header.is_tag_of(&keys.tag_in, body))
    }

    /// Opens a control cell that arrived at `now` in place, and returns its content, which goes to control, whose queue
    /// is more than half full or not.
    ///
    /// # Errors
    /// Why it does not go there.
    pub(super) fn open_control<'a>(
        &mut self,
        (link, slot): (LinkId, SlotId),
        (header, body): (&PacedHeader, &'a mut [u8]),
        limits: &ControlLimits,
        (now, is_crowded): (Nanos, bool),
    ) -> Result<&'a [u8], DropReason> {
        let of_link = self.keys.get_mut(&link).ok_or(DropReason::Header)?;
        let at = of_link.iter().position(|(id, _)| *id == slot).ok_or(DropReason::Header)?;
        let passed_beside = is_crowded.then(|| {
            let others = of_link.iter().filter(|(id, _)| *id != slot);
            others.map(|(_, keys)| keys.arrived.passed_at(limits, now)).sum()
        });
        let keys = &mut of_link[at].1;
        let is_authentic = || keys.control_in.open_under(&header.to_block(), body).is_some();
        keys.arrived.pass(header.seq, limits, (now, passed_beside), is_authentic)?;
        Ok(&body[..body.len() - TAG_LEN])
    }

    /// A cell of the link was accepted.
    pub(super) fn heard(&mut self, link: LinkId, now: Nanos) {
        if self.heard.insert(link, now).is_none()
            && let Some(side) = self.links.side(link)
        {
            self.latest[side as usize] = Some(link);
        }
        if self.is_initiators(link) {
            self.links.received(link);
        }
    }

    /// Cells have left on the link.
    pub(super) fn sent(&mut self, link: LinkId) {
        if self.is_initiators(link) {
            self.links.sent(link);
        }
    }

    /// Control has to know of activity only where this node is the initiator, who starts a handshake when no answer
    /// comes (SPEC 4.6.2).
    fn is_initiators(&self, link: LinkId) -> bool {
        self.links.side(link) == Some(Side::Down)
    }

    /// A cell of the link was accepted, maybe under its next slot, which control is to promote then.
    pub(super) fn accepted(
        &mut self,
        link: LinkId,
        next_slot: Option<(SlotId, SocketAddr)>,
        punts: &mut PuntSender,
        now: Nanos,
    ) {
        self.heard(link, now);
        if let Some((slot, from)) = next_slot
            && self.links.proposes(link, slot)
        {
            let _ = punts.send(Punt::Promoted { link, slot, from });
        }
    }

    /// Mix 1: links to entries of which a cell was accepted at `oldest` or later.
    pub(super) fn entries_heard_since(&self, oldest: Nanos) -> impl Iterator<Item = LinkId> {
        let heard = self.heard.iter().filter(move |(_, heard)| **heard >= oldest).map(|(link, _)| *link);
        heard.filter(|link| self.links.side(*link) == Some(Side::Up))
    }

    /// The link to the neighbour on a side where there is one: while a new one has no slot, the one before.
    pub(super) fn neighbour(&self, side: Side) -> Option<LinkId> {
        self.latest[side as usize].filter(|link| self.has_slot(*link)).or_else(|| self.last_heard(side))
    }

    /// The link's current slot, if it has one. The keys of a new one come behind it: until then it is the one before.
    pub(super) fn outgoing(&mut self, link: LinkId) -> Option<Outgoing<'_>> {
        let (live, keys) = (self.links.link(link)?, self.keys.get_mut(&link)?);
        live.current()?;
        let in_use = live.slots().filter(|(rank, _)| *rank != Rank::Next).map(|(_, slot)| slot);
        let (slot, at) =
            in_use.filter_map(|slot| Some((slot, keys.iter().position(|(id, _)| *id == slot.id())?))).next()?;
        Some(Outgoing { peer: live.peer(), header: slot.outgoing(), keys: &mut keys[at].1 })
    }
}

impl Outgoing<'_> {
    /// The tag of a body.
    pub(super) fn tag(&self, body: &[u8]) -> [u8; wire::gcm::LINK_TAG_LEN] {
        self.keys.tag_out.link_tag(body)
    }

    /// Seals the content of a control cell, which is in the first bytes of `body`, under the next number. Returns the
    /// header in the clear, or `None` once the numbers are used up.
    pub(super) fn seal_control(
        &mut self,
        class: PacedClass,
        (kind, channel, sub): (CellKind, u32, u8),
        body: &mut [u8],
    ) -> Option<PacedHeader> {
        let seq = self.keys.next_seq;
        if seq >= SEQ_END {
            return None;
        }
        self.keys.next_seq += 1;
        let header = PacedHeader { channel, seq, sub, kind, class, tag: [0; wire::gcm::LINK_TAG_LEN] };
        self.keys.control_out.seal_under(&header.to_block(), body);
        Some(header)
    }

    /// Enciphers headers.
    pub(super) fn encipher(&self, blocks: &mut [wire::cell::Block]) {
        self.header.encipher(blocks);
    }
}
