//! Links: handshakes with both neighbours, slots, renewal, liveness (SPEC 4).
//!
//! Down is one link, which this node initiates and renews. Up is one link with a known peer (IK), or
//! at Mix 1 one link per entry that completed a handshake (NK). A message that does not authenticate
//! changes nothing, and a handshake never displaces a link that carries channels. The content of
//! control cells belongs to [`crate::channel`].

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::cell::{CellKind, Direction, Header, TAG_LEN};
use wire::ids::{LinkId, Rank, Side, SlotId};
use wire::link::{LinkContent, LinkSecrets};
use wire::paced::PacedHeader;
use zeroize::Zeroizing;

use crate::config::{Config, Timing};
use crate::context::Context;
use crate::counters::Refusal;
use crate::fragments::{Decided, Joiner};
use crate::io::{Change, Event, PacedChange};
use crate::rate::Bucket;
use crate::slot::Slot;

mod admission;
mod ids;
mod initiator;
mod path;
mod responder;
mod room;
#[cfg(test)]
mod tests;

use ids::LinkIds;
use initiator::{Initiator, PENDING_MAX};
use path::Moving;
use responder::Responder;

/// Overwritten `next` slots whose tokens a link remembers: as many as an initiator has messages 1 unanswered.
const OVERWRITTEN_MAX: usize = PENDING_MAX;
/// Lifetime of a link that its initiator has never used.
const UNPROMOTED_WAIT: Duration = Duration::from_secs(10);
/// Incomplete setups of an entry's link. An entry has fewer setups in flight.
pub(crate) const INCOMPLETE_SETUPS_PER_ENTRY_LINK: usize = 8;
/// Incomplete setups of a link between hops, which carries those of all entries.
const INCOMPLETE_SETUPS_MAX: usize = 256;
/// How long the shards of a setup wait for each other.
pub(crate) const SETUP_SHARDS_WAIT: Duration = Duration::from_secs(2);
/// Decided setups that an entry's link remembers: more than its default rate allows in their time.
const DECIDED_SETUPS_PER_ENTRY_LINK: usize = 64;
/// Decided setups that a link between hops remembers.
const DECIDED_SETUPS_MAX: usize = 4096;
/// How long the remaining shards of a decided setup are expected.
const DECIDED_SETUPS_KEEP: Duration = Duration::from_secs(2);

/// A link with its slots.
pub(crate) struct Link {
    id: LinkId,
    side: Side,
    /// Where its cells go.
    peer: SocketAddr,
    /// Its address when it was first promoted: that network's shares and buckets are charged for it (SPEC 4.11),
    /// wherever it moves.
    home: IpAddr,
    /// Probes answered under the current keys.
    echoes: usize,
    /// Another address that takes its place unless the initiator still receives there.
    moving: Option<Moving>,
    created_at: Duration,
    current: Option<Slot>,
    next: Option<Slot>,
    previous: Option<Slot>,
    /// The first cell received since the last one sent: a keepalive is owed for it.
    owed_since: Option<Duration>,
    /// The first cell sent since the last one received.
    unanswered_since: Option<Duration>,
    silence_reported: bool,
    /// It had current keys at some time: its initiator has proven that it holds them.
    was_promoted: bool,
    /// Ephemerals of the latest accepted messages 1, so that none is accepted twice.
    ephemerals: VecDeque<[u8; 32]>,
    /// Tokens of the latest `next` slots that a newer handshake has overwritten: their initiator may hold them.
    overwritten: VecDeque<Zeroizing<[u8; 32]>>,
    /// Open channels.
    pub(crate) channels: usize,
    /// Half-open channels.
    pub(crate) half_open: usize,
    /// Limits the setups that begin on this link.
    pub(crate) setups: Bucket,
    /// Incomplete setups, by channel number.
    pub(crate) incomplete_setups: Joiner<u32>,
    /// Setups that were accepted or refused lately, by channel number.
    pub(crate) decided_setups: Decided<u32>,
}

impl Link {
    fn slots(&mut self) -> [&mut Option<Slot>; 3] {
        [&mut self.current, &mut self.next, &mut self.previous]
    }

    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// The address whose network is charged for it.
    pub(crate) fn home(&self) -> IpAddr {
        self.home
    }

    fn carries_no_channels(&self) -> bool {
        self.channels == 0 && self.half_open == 0
    }

    fn has_no_slots(&self) -> bool {
        self.current.is_none() && self.next.is_none() && self.previous.is_none()
    }

    /// When [`Links::expire`] has something to do for it.
    fn due(&self, config: &Config) -> Duration {
        let lifetime = self.slot_lifetime(&config.timing);
        let slots = [&self.current, &self.next, &self.previous].into_iter().flatten();
        let expires = slots.map(|slot| slot.created_at + lifetime);
        let wakes = expires.chain(self.keepalive_at(config)).chain(self.moving.as_ref().map(Moving::due));
        wakes.min().unwrap_or(Duration::MAX)
    }

    /// When a keepalive is due. Links of paced classes are never silent (SPEC 9.1.3).
    fn keepalive_at(&self, config: &Config) -> Option<Duration> {
        self.owed_since.filter(|_| !config.paced).map(|since| since + config.timing.keepalive_after)
    }

    /// The life of a slot after its handshake.
    fn slot_lifetime(&self, timing: &Timing) -> Duration {
        let unpromoted = self.current.is_none() && self.previous.is_none();
        if unpromoted { timing.expire_after.min(UNPROMOTED_WAIT) } else { timing.expire_after }
    }

    fn record_received(&mut self, now: Duration) {
        self.unanswered_since = None;
        self.silence_reported = false;
        self.owed_since.get_or_insert(now);
    }

    fn record_sent(&mut self, now: Duration) {
        self.owed_since = None;
        self.unanswered_since.get_or_insert(now);
    }

    /// `next` becomes current, because its initiator proved that it holds the keys. A link that was not up has its
    /// address from `from`, the source of the cell that proved it: the handshake itself may have come from anywhere.
    /// One that was up keeps its own as long as its initiator receives there (SPEC 4.4.6, 4.8).
    fn promote(&mut self, cx: &mut Context, now: Duration, from: Option<SocketAddr>) {
        let Some(slot) = self.next.take() else { return };
        let was_up = self.current.is_some();
        if !was_up {
            self.peer = from.unwrap_or(slot.peer);
        } else if let Some(from) = from
            && self.moving.as_ref().is_none_or(|moving| moving.to != from)
        {
            self.moving = (from != self.peer).then(|| Moving::new(cx, now, from));
        }
        cx.change(Change::Promote { link: self.id, slot: slot.id, peer: self.peer });
        if !self.was_promoted {
            (self.was_promoted, self.home) = (true, self.peer.ip());
        }
        self.previous = self.current.replace(slot);
        self.report_up(cx, was_up);
        self.follow_move(cx, now);
    }

    /// Reports that it has new keys. `was_up` if it had others.
    fn report_up(&self, cx: &mut Context, was_up: bool) {
        let (side, link, peer) = (self.side, self.id, self.peer);
        cx.event(if was_up { Event::LinkRenewed { side, link, peer } } else { Event::LinkUp { side, link, peer } });
    }

    fn slot(&mut self, slot: SlotId) -> Result<&mut Slot, Refusal> {
        self.slots().into_iter().flatten().find(|known| known.id == slot).ok_or(Refusal::UnknownSlot)
    }

    /// A control cell has come under one of its slots. The first one under `next` promotes that slot.
    fn accepted(&mut self, cx: &mut Context, now: Duration, slot: SlotId, from: SocketAddr) {
        if self.next.as_ref().is_some_and(|next| next.id == slot) {
            self.promote(cx, now, Some(from));
        }
        self.record_received(now);
        cx.counters.cells += 1;
    }

    /// Seals and injects a link cell with this content, filled up with zeros. False if the link cannot send.
    fn send_content(&mut self, cx: &mut Context, now: Duration, content: &[u8], at_once: bool) -> bool {
        if cx.config.paced {
            // The worker seals it when its slot leaves (SPEC 9.6).
            if self.current.is_none() {
                return false;
            }
            cx.change(Change::Paced(PacedChange::AtNextSlot { link: self.id, content: content.to_vec() }));
            return true;
        }
        let mut filled = vec![0; content_len(&cx.config, self.side)];
        filled[..content.len()].copy_from_slice(content);
        let cell = Outgoing { kind: CellKind::Link, channel: 0, sub: 0, content: &filled, at_once };
        self.inject(cx, now, &cell)
    }

    /// Seals and injects a cell under the current slot.
    fn inject(&mut self, cx: &mut Context, now: Duration, cell: &Outgoing<'_>) -> bool {
        let Some(slot) = &mut self.current else { return false };
        let class = cx.config.shape.class();
        let Some((header, body)) = slot.seal(cell.kind, cell.channel, cell.sub, class, cell.content) else {
            return false;
        };
        cx.change(Change::Inject { link: self.id, slot: slot.id, header, body, at_once: cell.at_once });
        self.record_sent(now);
        true
    }
}

/// A control cell to seal; `content` has the full length that the link's cells have.
pub(crate) struct Outgoing<'a> {
    pub(crate) kind: CellKind,
    pub(crate) channel: u32,
    pub(crate) sub: u8,
    pub(crate) content: &'a [u8],
    /// Past the pool.
    pub(crate) at_once: bool,
}

/// All links of a class.
pub(crate) struct Links {
    /// By [`LinkId::index`].
    all: Vec<Option<Link>>,
    ids: LinkIds,
    /// No link has anything due before.
    due: Duration,
    /// The id of the next slot.
    next_slot: u32,
    down: Option<LinkId>,
    initiator: Option<Initiator>,
    responder: Option<Responder>,
}

impl Links {
    /// Those of the class at place `class` among those of the node.
    pub(crate) fn new(class: usize, config: &Config, chain: &[u8; 32], now: Duration) -> Links {
        let (initiator, responder) = (Initiator::new(config, chain, now), Responder::new(config, chain, now));
        let (all, ids, due) = (Vec::new(), LinkIds::new(class), Duration::MAX);
        Links { all, ids, due, next_slot: 0, down: None, initiator, responder }
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

    /// Half-open and open channels of entries whose links belong to such an address.
    pub(crate) fn channels_of(&self, is_own: impl Fn(IpAddr) -> bool) -> (usize, usize) {
        let of_own = |link: &&Link| link.side == Side::Up && is_own(link.home);
        self.iter().filter(of_own).fold((0, 0), |sum, link| (sum.0 + link.half_open, sum.1 + link.channels))
    }

    /// The link to the next hop, if it can send.
    pub(crate) fn down_ready(&self) -> Option<LinkId> {
        let id = self.down?;
        self.link(id).filter(|link| link.current.is_some()).map(|link| link.id)
    }

    /// Seals and injects a control cell; false if the link is gone or cannot send.
    pub(crate) fn inject(&mut self, cx: &mut Context, now: Duration, link: LinkId, cell: &Outgoing<'_>) -> bool {
        self.link_mut(link).is_some_and(|link| link.inject(cx, now, cell))
    }

    /// Seals and injects the content of an ask or a part, which does not wait in the pool (SPEC 7.8.8).
    pub(crate) fn inject_trust(&mut self, cx: &mut Context, now: Duration, link: LinkId, content: &[u8]) {
        if let Some(link) = self.link_mut(link) {
            link.send_content(cx, now, content, true);
        }
    }

    /// Opens a control cell. The first authentic one under `next` promotes that slot.
    pub(crate) fn open<'a>(
        &mut self,
        cx: &mut Context,
        now: Duration,
        (link, slot): (LinkId, SlotId),
        from: SocketAddr,
        header: &Header,
        body: &'a mut [u8],
    ) -> Result<&'a mut [u8], Refusal> {
        let link = self.link_mut(link).ok_or(Refusal::UnknownSlot)?;
        let (direction, number) = match link.side {
            Side::Up => (Direction::Forward, cx.config.position),
            Side::Down => (Direction::Backward, cx.config.position + 1),
        };
        let shape = cx.config.shape;
        let fits = body.len() == shape.cell_len(direction, number) - wire::cell::HEADER_LEN
            && header.class == shape.class()
            && header.kind != CellKind::Data
            && header.kind.travels(direction)
            && (header.channel == 0) == (header.kind == CellKind::Link);
        if !fits {
            return Err(Refusal::CellMalformed);
        }
        let content = link.slot(slot)?.open(header, body)?;
        link.accepted(cx, now, slot, from);
        self.due = link.due(&cx.config).min(self.due);
        Ok(content)
    }

    /// Takes in a control cell of a paced class, which the worker has opened. The first one under `next` promotes that
    /// slot.
    pub(crate) fn accept_paced(
        &mut self,
        cx: &mut Context,
        now: Duration,
        (link, slot): (LinkId, SlotId),
        from: SocketAddr,
        header: &PacedHeader,
        content: &[u8],
    ) -> Result<(), Refusal> {
        let link = self.link_mut(link).ok_or(Refusal::UnknownSlot)?;
        let direction = if link.side == Side::Up { Direction::Forward } else { Direction::Backward };
        let fits = cx.config.class() == header.class.into()
            && content.len() == header.class.body_len() - TAG_LEN
            && header.kind != CellKind::Data
            && header.kind.travels(direction)
            && (header.channel == 0) == (header.kind == CellKind::Link);
        if !fits {
            return Err(Refusal::CellMalformed);
        }
        // Copies of all cells travel there (SPEC 9.6.4).
        let is_link_1 = cx.config.position == 0 || (direction == Direction::Forward && cx.config.faces_entries());
        link.slot(slot)?.mark_seen(header.seq).map_err(|why| if is_link_1 { Refusal::CellCopy } else { why })?;
        link.accepted(cx, now, slot, from);
        self.due = link.due(&cx.config).min(self.due);
        Ok(())
    }

    /// The side of a link that is there.
    pub(crate) fn side(&self, link: LinkId) -> Option<Side> {
        self.link(link).map(|link| link.side)
    }

    /// Where a link to an entry was first promoted, unless its prefix is exempt (SPEC 4.11).
    pub(crate) fn home(&self, config: &Config, link: LinkId) -> Option<IpAddr> {
        let home = self.link(link)?.home;
        config.prefix(home).map(|_| home)
    }

    /// The data plane authenticated a forward data cell under this slot.
    pub(crate) fn promoted(
        &mut self,
        cx: &mut Context,
        now: Duration,
        (link, slot): (LinkId, SlotId),
        from: SocketAddr,
    ) {
        if let Some(link) = self.link_mut(link)
            && link.next.as_ref().is_some_and(|next| next.id == slot)
        {
            link.promote(cx, now, Some(from));
            link.record_received(now);
            self.due = link.due(&cx.config).min(self.due);
        }
    }

    /// The data plane received or sent cells.
    pub(crate) fn activity(&mut self, cx: &Context, now: Duration, link: LinkId, received: bool, sent: bool) {
        let Some(link) = self.link_mut(link) else { return };
        if received {
            link.record_received(now);
        }
        if sent {
            link.record_sent(now);
            if received {
                // Their order is unknown; the received cell is recent enough to count as an answer.
                link.unanswered_since = None;
            }
        }
        self.due = link.due(&cx.config).min(self.due);
    }

    /// What the next hop has not answered counts as sent now.
    pub(crate) fn stalled(&mut self, now: Duration) {
        if let Some(since) = self.down.and_then(|id| self.link_mut(id)).and_then(|link| link.unanswered_since.as_mut())
        {
            *since = now;
        }
    }

    fn install_slot(&mut self, cx: &mut Context, now: Duration, link: LinkId, peer: SocketAddr, secrets: &LinkSecrets) {
        let id = SlotId(self.next_slot);
        self.next_slot = self.next_slot.wrapping_add(1);
        let Some(link) = self.link_mut(link) else { return };
        let slot = Slot::new((id, link.side), peer, now, secrets, cx.config.control_window(link.side));
        let rank = match link.side {
            Side::Up => Rank::Next,
            Side::Down => Rank::Current,
        };
        cx.change(Change::InstallSlot {
            link: link.id,
            slot: id,
            peer,
            header_i2r: secrets.header_i2r.clone(),
            header_r2i: secrets.header_r2i.clone(),
            rank,
        });
        if cx.config.paced {
            let (tag_in, tag_out, control_in, control_out) = match link.side {
                Side::Up => (&secrets.tag_i2r, &secrets.tag_r2i, &secrets.control_i2r, &secrets.control_r2i),
                Side::Down => (&secrets.tag_r2i, &secrets.tag_i2r, &secrets.control_r2i, &secrets.control_i2r),
            };
            cx.change(Change::Paced(PacedChange::SlotKeys {
                link: link.id,
                slot: id,
                tag_in: tag_in.clone(),
                tag_out: tag_out.clone(),
                control_in: control_in.clone(),
                control_out: control_out.clone(),
            }));
        }
        match link.side {
            Side::Up => {
                if let Some(gone) = link.next.replace(slot) {
                    link.overwritten.push_back(gone.resume);
                    if link.overwritten.len() > OVERWRITTEN_MAX {
                        link.overwritten.pop_front();
                    }
                }
            }
            Side::Down => {
                link.peer = peer;
                link.was_promoted = true;
                link.echoes = 0;
                link.previous = link.current.replace(slot);
            }
        }
        self.due = link.due(&cx.config).min(self.due);
        cx.counters.handshakes_done += 1;
    }

    fn install_link(&mut self, cx: &mut Context, now: Duration, side: Side, peer: SocketAddr) -> LinkId {
        let id = self.ids.take();
        if id.index() == self.all.len() {
            self.all.push(None);
        }
        let (incomplete, decided) = if cx.config.faces_entries() {
            (INCOMPLETE_SETUPS_PER_ENTRY_LINK, DECIDED_SETUPS_PER_ENTRY_LINK)
        } else {
            (INCOMPLETE_SETUPS_MAX, DECIDED_SETUPS_MAX)
        };
        let link = Link {
            id,
            side,
            peer,
            home: peer.ip(),
            echoes: 0,
            moving: None,
            created_at: now,
            current: None,
            next: None,
            previous: None,
            owed_since: None,
            unanswered_since: None,
            silence_reported: false,
            was_promoted: false,
            ephemerals: VecDeque::new(),
            overwritten: VecDeque::new(),
            channels: 0,
            half_open: 0,
            setups: Bucket::new(cx.config.caps.setups_per_entry_link, now),
            incomplete_setups: Joiner::new(incomplete, SETUP_SHARDS_WAIT),
            decided_setups: Decided::new(decided, DECIDED_SETUPS_KEEP),
        };
        self.all[id.index()] = Some(link);
        cx.change(Change::InstallLink { link: id, side, peer });
        id
    }

    /// Drops a link. Its channels must be retired before.
    pub(crate) fn retire(&mut self, cx: &mut Context, id: LinkId) {
        let Some(link) = self.all.get_mut(id.index()).and_then(|at| at.take_if(|link| link.id == id)) else { return };
        self.ids.give_back(id);
        if self.down == Some(id) {
            self.down = None;
            if let Some(initiator) = &mut self.initiator {
                initiator.link_ended(cx);
            }
        }
        cx.change(Change::RetireLink { link: id });
        if link.was_promoted {
            cx.event(Event::LinkDown { side: link.side, link: id });
        }
    }

    /// Handshakes need cookies for a time (SPEC 4.9.3).
    pub(crate) fn require_cookies(&mut self, now: Duration) {
        if let Some(responder) = &mut self.responder {
            responder.require_cookies(now);
        }
    }

    /// Takes in a datagram of one of the handshake lengths. True if the down link has new keys. `holds` says which
    /// links have a channel or a setup of a paced class, and so may not go.
    pub(crate) fn handshake(
        &mut self,
        cx: &mut Context,
        now: Duration,
        side: Side,
        from: SocketAddr,
        bytes: &[u8],
        holds: &dyn Fn(LinkId) -> bool,
    ) -> bool {
        let done = match side {
            Side::Up => self.handle_initiation(cx, now, from, bytes, holds).map(|()| false),
            Side::Down => self.handle_answer(cx, now, bytes),
        };
        done.unwrap_or_else(|why| {
            cx.refuse(why);
            false
        })
    }

    /// Drops slots that are too old and sends keepalives; returns the links whose last slot is gone.
    pub(crate) fn expire(&mut self, cx: &mut Context, now: Duration) -> Vec<LinkId> {
        let mut dead = Vec::new();
        if now < self.due {
            return dead;
        }
        self.due = Duration::MAX;
        for link in self.all.iter_mut().flatten() {
            let id = link.id;
            let lifetime = link.slot_lifetime(&cx.config.timing);
            for of_rank in link.slots() {
                if let Some(slot) = of_rank.take_if(|slot| now.saturating_sub(slot.created_at) >= lifetime) {
                    cx.change(Change::RetireSlot { link: id, slot: slot.id });
                }
            }

            link.follow_move(cx, now);
            if link.has_no_slots() {
                dead.push(id);
                if let Some(initiator) = self.initiator.as_mut().filter(|_| self.down == Some(id)) {
                    initiator.unlinked_since = link.unanswered_since.unwrap_or(now);
                }
            } else if link.keepalive_at(&cx.config).is_some_and(|at| at <= now) {
                keepalive(cx, now, link);
            }
            self.due = self.due.min(link.due(&cx.config));
        }
        dead
    }

    /// The time of the next work for [`Links::expire`] or `initiate`.
    pub(crate) fn next_wake(&self, cx: &Context) -> Duration {
        let timing = &cx.config.timing;
        let mut wake = self.due;
        if let Some(initiator) = &self.initiator {
            let current = self.down.and_then(|id| self.link(id)).and_then(|link| {
                let slot = link.current.as_ref()?;
                let silent = link.unanswered_since.map_or(Duration::MAX, |since| since + cx.config.silent_after());
                Some(silent.min(slot.created_at + timing.renew_after))
            });
            wake = wake.min(initiator.due.max(current.unwrap_or(Duration::ZERO)));
        }
        wake
    }
}

/// Bytes of content in the control cells that this node sends on this side.
pub(crate) fn content_len(config: &Config, side: Side) -> usize {
    if config.paced {
        return config.shape.payload();
    }
    match side {
        Side::Up => config.shape.control_content(Direction::Backward, config.position),
        Side::Down => config.shape.control_content(Direction::Forward, config.position + 1),
    }
}

/// TAI64N of a time in ns since 1970 (SPEC 4.1.5).
fn tai64n(unix_ns: u128) -> [u8; 12] {
    let seconds = (1 << 62) + 10 + (unix_ns / 1_000_000_000) as u64;
    let mut out = [0; 12];
    out[..8].copy_from_slice(&seconds.to_be_bytes());
    out[8..].copy_from_slice(&((unix_ns % 1_000_000_000) as u32).to_be_bytes());
    out
}

fn keepalive(cx: &mut Context, now: Duration, link: &mut Link) {
    // Noted also without a slot to send under: otherwise the next wake would be in the past.
    link.owed_since = None;
    if link.send_content(cx, now, &[LinkContent::Keepalive as u8], false) {
        cx.counters.keepalives += 1;
    }
}
