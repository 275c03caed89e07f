//! Links: handshakes with both neighbours, slots, renewal, liveness (SPEC 4).
//!
//! Down is one link, which this node starts and renews. Up is one link whose peer is known (IK), or
//! at Mix 1 one per entry that has shaken hands (NK). A message that does not authenticate changes
//! nothing, and a handshake never displaces a link that carries channels. What travels in the cells
//! is [`crate::channel`]'s.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use wire::cell::{Direction, Header, Kind};
use wire::ids::{LinkId, Rank, Side, SlotId};
use wire::link::{LinkContent, LinkSecrets};

use crate::admission::Bucket;
use crate::channel::Fragments;
use crate::config::Config;
use crate::core::Core;
use crate::counters::Refusal;
use crate::io::{DataOp, Event};
use crate::slot::Slot;

mod callee;
mod caller;

use callee::Callee;
use caller::Caller;

/// How long a link lasts that its initiator has never used.
const UNPROMOTED_WAIT: Duration = Duration::from_secs(10);
/// A link with its slots.
pub(crate) struct Link {
    id: LinkId,
    side: Side,
    peer: SocketAddr,
    made: Duration,
    current: Option<Slot>,
    next: Option<Slot>,
    previous: Option<Slot>,
    /// Since when something was heard and nothing sent.
    owed: Option<Duration>,
    /// Since when something was sent and nothing heard.
    unanswered: Option<Duration>,
    /// Whether the silence was told.
    silent: bool,
    /// Whether it was ever up.
    was_up: bool,
    /// Ephemerals of the latest accepted first messages, so that none is accepted twice.
    ephemerals: VecDeque<[u8; 32]>,
    /// Open channels on it.
    pub(crate) channels: usize,
    /// Half-open channels on it.
    pub(crate) half_open: usize,
    /// Setups it may begin.
    pub(crate) setups: Bucket,
    /// Setups that are not whole yet.
    pub(crate) fragments: Fragments,
}

impl Link {
    fn slots(&mut self) -> [&mut Option<Slot>; 3] {
        [&mut self.current, &mut self.next, &mut self.previous]
    }

    /// Towards which neighbour.
    pub(crate) fn side(&self) -> Side {
        self.side
    }

    fn is_empty(&self) -> bool {
        self.channels == 0 && self.half_open == 0
    }

    fn heard(&mut self, now: Duration) {
        self.unanswered = None;
        self.silent = false;
        self.owed.get_or_insert(now);
    }

    fn sent(&mut self, now: Duration) {
        self.owed = None;
        self.unanswered.get_or_insert(now);
    }

    /// next becomes current, because its initiator has shown that it holds the keys. The link's address is the
    /// source of the cell that showed it: a handshake may have come from anywhere (SPEC 4.4.6).
    fn promote(&mut self, core: &mut Core, from: Option<SocketAddr>) {
        let Some(slot) = self.next.take() else { return };
        let was_up = self.current.is_some();
        if let Some(peer) = from.or((!was_up).then_some(slot.peer)) {
            self.peer = peer;
        }
        core.data(DataOp::Promote { link: self.id, slot: slot.id, peer: self.peer });
        self.was_up = true;
        self.previous = self.current.replace(slot);
        let (side, link, peer) = (self.side, self.id, self.peer);
        core.event(if was_up { Event::LinkRenewed { side, link, peer } } else { Event::LinkUp { side, link, peer } });
    }

    /// Seals and injects a cell under the current slot.
    fn inject(&mut self, core: &mut Core, now: Duration, cell: &Outgoing<'_>) -> bool {
        let Some(slot) = &mut self.current else { return false };
        let class = core.config.shape.class();
        let Some((header, body)) = slot.seal(cell.kind, cell.channel, cell.sub, class, cell.content) else {
            return false;
        };
        core.data(DataOp::Inject { link: self.id, slot: slot.id, header, body });
        self.sent(now);
        true
    }
}

/// A control cell to be sealed: its content has the link's full length.
pub(crate) struct Outgoing<'a> {
    pub(crate) kind: Kind,
    pub(crate) channel: u32,
    pub(crate) sub: u8,
    pub(crate) content: &'a [u8],
}

/// All links of a node.
pub(crate) struct Links {
    /// By index.
    all: Vec<Option<Link>>,
    /// How often each index was used before.
    versions: Vec<u32>,
    slots: u32,
    down: Option<LinkId>,
    caller: Option<Caller>,
    callee: Option<Callee>,
}

impl Links {
    pub(crate) fn new(config: &Config, now: Duration) -> Links {
        let (caller, callee) = (Caller::new(config, now), Callee::new(config, now));
        Links { all: Vec::new(), versions: Vec::new(), slots: 0, down: None, caller, callee }
    }

    pub(crate) fn len(&self) -> usize {
        self.iter().count()
    }

    fn iter(&self) -> impl Iterator<Item = &Link> {
        self.all.iter().flatten()
    }

    fn link(&self, id: LinkId) -> Option<&Link> {
        self.all.get(id.index())?.as_ref().filter(|link| link.id == id)
    }

    pub(crate) fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.all.get_mut(id.index())?.as_mut().filter(|link| link.id == id)
    }

    /// The down link, if it can send.
    pub(crate) fn down_ready(&self) -> Option<LinkId> {
        let id = self.down?;
        self.link(id).filter(|link| link.current.is_some()).map(|link| link.id)
    }

    /// Seals and injects a control cell; false if the link is gone or cannot send.
    pub(crate) fn inject(&mut self, core: &mut Core, now: Duration, link: LinkId, cell: &Outgoing<'_>) -> bool {
        self.link_mut(link).is_some_and(|link| link.inject(core, now, cell))
    }

    /// Opens a control cell. The first that is authentic under `next` promotes it.
    pub(crate) fn open<'a>(
        &mut self,
        core: &mut Core,
        now: Duration,
        (link, slot): (LinkId, SlotId),
        from: SocketAddr,
        header: &Header,
        body: &'a mut [u8],
    ) -> Result<(Side, &'a mut [u8]), Refusal> {
        let link = self.link_mut(link).ok_or(Refusal::NoSuchSlot)?;
        let side = link.side;
        let (direction, number) = match side {
            Side::Up => (Direction::Forward, core.config.position),
            Side::Down => (Direction::Backward, core.config.position + 1),
        };
        let shape = core.config.shape;
        let fits = body.len() == shape.cell_len(direction, number) - wire::cell::HEADER_LEN
            && header.class == shape.class()
            && header.kind != Kind::Data
            && header.kind.travels(direction)
            && (header.channel == 0) == (header.kind == Kind::Link);
        if !fits {
            return Err(Refusal::CellForm);
        }
        let found = link.slots().into_iter().flatten().find(|s| s.id == slot).ok_or(Refusal::NoSuchSlot)?;
        let content = found.open(header, body)?;
        if link.next.as_ref().is_some_and(|next| next.id == slot) {
            link.promote(core, Some(from));
        }
        link.heard(now);
        core.counters.cells += 1;
        Ok((side, content))
    }

    /// The data plane saw a forward data cell authenticate under this slot.
    pub(crate) fn promoted(
        &mut self,
        core: &mut Core,
        now: Duration,
        (link, slot): (LinkId, SlotId),
        from: SocketAddr,
    ) {
        if let Some(link) = self.link_mut(link)
            && link.next.as_ref().is_some_and(|next| next.id == slot)
        {
            link.promote(core, Some(from));
            link.heard(now);
        }
    }

    /// Cells went by in the data plane.
    pub(crate) fn activity(&mut self, now: Duration, link: LinkId, received: bool, sent: bool) {
        let Some(link) = self.link_mut(link) else { return };
        if received {
            link.heard(now);
        }
        if sent {
            link.sent(now);
            if received {
                // Which came first is unknown; the cell that was heard is fresh enough.
                link.unanswered = None;
            }
        }
    }

    fn install_slot(&mut self, core: &mut Core, now: Duration, link: LinkId, peer: SocketAddr, secrets: &LinkSecrets) {
        let id = SlotId(self.slots);
        self.slots = self.slots.wrapping_add(1);
        let Some(link) = self.link_mut(link) else { return };
        let slot = Slot::new(id, link.side, peer, now, secrets);
        let rank = match link.side {
            Side::Up => Rank::Next,
            Side::Down => Rank::Current,
        };
        core.data(DataOp::InstallSlot {
            link: link.id,
            slot: id,
            peer,
            header_i2r: secrets.header_i2r.clone(),
            header_r2i: secrets.header_r2i.clone(),
            rank,
        });
        match link.side {
            Side::Up => link.next = Some(slot),
            Side::Down => {
                link.peer = peer;
                link.was_up = true;
                link.previous = link.current.replace(slot);
            }
        }
        core.counters.handshakes_done += 1;
    }

    fn install_link(&mut self, core: &mut Core, now: Duration, side: Side, peer: SocketAddr) -> LinkId {
        let index = self.all.iter().position(Option::is_none).unwrap_or(self.all.len());
        if index == self.all.len() {
            self.all.push(None);
            self.versions.push(0);
        }
        let id = LinkId::new(index, self.versions[index]);
        let link = Link {
            id,
            side,
            peer,
            made: now,
            current: None,
            next: None,
            previous: None,
            owed: None,
            unanswered: None,
            silent: false,
            was_up: false,
            ephemerals: VecDeque::new(),
            channels: 0,
            half_open: 0,
            setups: Bucket::new(core.config.caps.setups_per_entry_link, now),
            fragments: Fragments::default(),
        };
        self.all[index] = Some(link);
        core.data(DataOp::InstallLink { link: id, side, peer });
        id
    }

    /// Drops a link; its channels must be retired before.
    pub(crate) fn retire(&mut self, core: &mut Core, id: LinkId) {
        let Some(link) = self.all.get_mut(id.index()).and_then(|at| at.take_if(|link| link.id == id)) else { return };
        let version = &mut self.versions[id.index()];
        *version = (*version + 1) % LinkId::VERSIONS;
        if self.down == Some(id) {
            self.down = None;
        }
        core.data(DataOp::RetireLink { link: id });
        if link.was_up {
            core.event(Event::LinkDown { side: link.side, link: id });
        }
    }

    /// A datagram of one of the handshake lengths. True if the down link has new keys.
    pub(crate) fn handshake(
        &mut self,
        core: &mut Core,
        now: Duration,
        side: Side,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let done = match side {
            Side::Up => self.hello(core, now, from, bytes).map(|()| false),
            Side::Down => self.answer(core, now, bytes).map(|()| true),
        };
        done.unwrap_or_else(|why| {
            core.refuse(why);
            false
        })
    }

    /// Drops slots that are too old and sends keepalives; returns the links whose last slot is gone.
    pub(crate) fn expire(&mut self, core: &mut Core, now: Duration) -> Vec<LinkId> {
        let expire_after = core.config.timing.expire_after;
        let mut dead = Vec::new();
        for link in self.all.iter_mut().flatten() {
            let id = link.id;
            let unpromoted = link.current.is_none() && link.previous.is_none();
            let limit = if unpromoted { expire_after.min(UNPROMOTED_WAIT) } else { expire_after };
            for place in link.slots() {
                if let Some(slot) = place.take_if(|slot| now.saturating_sub(slot.made) >= limit) {
                    core.data(DataOp::RetireSlot { link: id, slot: slot.id });
                }
            }
            if link.current.is_none() && link.next.is_none() && link.previous.is_none() {
                dead.push(id);
            } else if link.owed.is_some_and(|since| now.saturating_sub(since) >= core.config.timing.keepalive_after) {
                keepalive(core, now, link);
            }
        }
        dead
    }

    /// When [`Links::expire`] or `call` has something to do next.
    pub(crate) fn next_wake(&self, core: &Core) -> Duration {
        let timing = &core.config.timing;
        let mut wake = Duration::MAX;
        for link in self.iter() {
            let unpromoted = link.current.is_none() && link.previous.is_none();
            let limit = if unpromoted { timing.expire_after.min(UNPROMOTED_WAIT) } else { timing.expire_after };
            for slot in [&link.current, &link.next, &link.previous].into_iter().flatten() {
                wake = wake.min(slot.made + limit);
            }
            if let Some(since) = link.owed {
                wake = wake.min(since + timing.keepalive_after);
            }
        }
        if let Some(caller) = &self.caller {
            let current = self.down.and_then(|id| self.link(id)).and_then(|link| {
                let slot = link.current.as_ref()?;
                let silent = link.unanswered.map_or(Duration::MAX, |since| since + core.config.silent_after());
                Some(silent.min(slot.made + timing.renew_after))
            });
            wake = wake.min(caller.due.max(current.unwrap_or(Duration::ZERO)));
        }
        wake
    }
}

fn keepalive(core: &mut Core, now: Duration, link: &mut Link) {
    let shape = core.config.shape;
    let len = match link.side {
        Side::Up => shape.control_content(Direction::Backward, core.config.position),
        Side::Down => shape.control_content(Direction::Forward, core.config.position + 1),
    };
    let mut content = vec![0; len];
    content[0] = LinkContent::Keepalive as u8;
    // Nothing to send under: nothing is owed either.
    link.owed = None;
    if link.inject(core, now, &Outgoing { kind: Kind::Link, channel: 0, sub: 0, content: &content }) {
        core.counters.keepalives += 1;
    }
}
