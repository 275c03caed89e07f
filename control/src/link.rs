//! Links: handshakes with both neighbours, slots, renewal, liveness (SPEC 4).
//!
//! Down is one link, which this node starts and renews. Up is one link whose peer is known (IK), or
//! at Mix 1 one per entry that has shaken hands (NK). A message that does not authenticate changes
//! nothing, and a handshake never displaces a link that carries channels. What travels in the cells
//! is [`crate::channel`]'s.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::{Rng, RngExt};
use subtle::ConstantTimeEq;
use wire::cell::{Direction, Header, Kind};
use wire::kdf::x25519_public;
use wire::link::{LinkContent, LinkSecrets};

use crate::admission::Bucket;
use crate::channel::Fragments;
use crate::config::Config;
use crate::core::Core;
use crate::counters::Refusal;
use crate::datagram::{self, Halves, IK_HALF_LEN, Joined, Mac1Key, NK_HALF_LEN};
use crate::io::{DataOp, Event, LinkId, Output, Rank, Side, SlotId};
use crate::noise::{Initiator, Pattern, Responder, Terms};
use crate::slot::Slot;

/// First messages that may wait for an answer at once.
const CALLS_MAX: usize = 4;
/// How long each waits.
const CALL_WAIT: Duration = Duration::from_secs(5);
/// How long a link lasts that its initiator has never used.
const UNPROMOTED_WAIT: Duration = Duration::from_secs(10);
/// Ephemerals of accepted first messages that a link remembers.
const EPHEMERALS_PER_LINK: usize = 16;
/// And the node, over all links.
const EPHEMERALS_MAX: usize = 4096;

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

    /// next becomes current, because its initiator has shown that it holds the keys.
    fn promote(&mut self, core: &mut Core) {
        let Some(slot) = self.next.take() else { return };
        core.data(DataOp::Promote { link: self.id, slot: slot.id });
        let was_up = self.current.is_some();
        self.was_up = true;
        self.peer = slot.peer;
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

/// A message 1 on its way.
struct Call {
    index: u32,
    /// NK without a token.
    fresh: bool,
    sent: Duration,
    initiator: Initiator,
    key: Mac1Key,
}

/// Why a new handshake is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    NoLink,
    Age,
    Silence,
}

/// How this node starts handshakes.
struct Caller {
    terms: Terms,
    /// The next hop's static key.
    theirs: [u8; 32],
    key: Mac1Key,
    address: SocketAddr,
    calls: VecDeque<Call>,
    wait: Duration,
    /// No new message 1 before.
    due: Duration,
    /// Last timestamp sent: each is greater, whatever the wall clock does.
    stamp: u128,
}

/// How this node answers them.
struct Callee {
    terms: Terms,
    half_len: usize,
    key: Mac1Key,
    halves: Halves,
    bucket: Bucket,
    /// IK: last accepted timestamp.
    stamp: [u8; 12],
    seen: HashSet<[u8; 32]>,
    seen_order: VecDeque<[u8; 32]>,
}

/// All links of a node.
pub(crate) struct Links {
    all: Vec<Option<Link>>,
    slots: SlotId,
    down: Option<LinkId>,
    caller: Option<Caller>,
    callee: Option<Callee>,
}

impl Links {
    pub(crate) fn new(config: &Config, now: Duration) -> Links {
        let class = config.shape.class();
        let caller = config.next.as_ref().map(|next| {
            let pattern = if config.is_entry() { Pattern::Nk } else { Pattern::Ik };
            Caller {
                terms: Terms::new(pattern, class, &next.descriptor.hash(), config.psk_down.as_ref()),
                theirs: next.descriptor.noise,
                key: Mac1Key::of(&next.descriptor.noise),
                address: next.address,
                calls: VecDeque::new(),
                wait: config.timing.handshake_retry,
                due: now,
                stamp: 0,
            }
        });
        let callee = config.descriptor.as_ref().filter(|_| !config.is_entry()).map(|own| {
            let (pattern, half_len) =
                if config.faces_entries() { (Pattern::Nk, NK_HALF_LEN) } else { (Pattern::Ik, IK_HALF_LEN) };
            Callee {
                terms: Terms::new(pattern, class, &own.hash(), config.psk_up.as_ref()),
                half_len,
                key: Mac1Key::of(&x25519_public(&config.noise)),
                halves: Halves::default(),
                bucket: Bucket::new(config.caps.handshakes, now),
                stamp: [0; 12],
                seen: HashSet::new(),
                seen_order: VecDeque::new(),
            }
        });
        Links { all: Vec::new(), slots: 0, down: None, caller, callee }
    }

    pub(crate) fn len(&self) -> usize {
        self.iter().count()
    }

    fn iter(&self) -> impl Iterator<Item = &Link> {
        self.all.iter().flatten()
    }

    pub(crate) fn link_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.all.get_mut(id as usize)?.as_mut()
    }

    /// The down link, if it can send.
    pub(crate) fn down_ready(&self) -> Option<LinkId> {
        let id = self.down?;
        self.all[id as usize].as_ref().filter(|link| link.current.is_some()).map(|link| link.id)
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
            link.promote(core);
        }
        link.heard(now);
        core.counters.cells += 1;
        Ok((side, content))
    }

    /// The data plane saw a forward data cell authenticate under this slot.
    pub(crate) fn promoted(&mut self, core: &mut Core, now: Duration, link: LinkId, slot: SlotId) {
        if let Some(link) = self.link_mut(link)
            && link.next.as_ref().is_some_and(|next| next.id == slot)
        {
            link.promote(core);
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

    fn install_slot(
        &mut self,
        core: &mut Core,
        now: Duration,
        link: LinkId,
        peer: SocketAddr,
        secrets: &LinkSecrets,
    ) -> Option<()> {
        let id = self.slots;
        self.slots = self.slots.checked_add(1)?;
        let link = self.link_mut(link)?;
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
        match rank {
            Rank::Next => link.next = Some(slot),
            Rank::Current => {
                link.peer = peer;
                link.was_up = true;
                link.previous = link.current.replace(slot);
            }
        }
        core.counters.handshakes_done += 1;
        Some(())
    }

    fn install_link(&mut self, core: &mut Core, now: Duration, side: Side, peer: SocketAddr) -> LinkId {
        let at = self.all.iter().position(Option::is_none).unwrap_or(self.all.len());
        let id = at as LinkId;
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
        if at == self.all.len() {
            self.all.push(None);
        }
        self.all[at] = Some(link);
        core.data(DataOp::InstallLink { link: id, side, peer });
        id
    }

    /// Drops a link; its channels must be retired before.
    pub(crate) fn retire(&mut self, core: &mut Core, id: LinkId) {
        let Some(link) = self.all.get_mut(id as usize).and_then(Option::take) else { return };
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

    /// Responder: half of message 1.
    fn hello(&mut self, core: &mut Core, now: Duration, from: SocketAddr, bytes: &[u8]) -> Result<(), Refusal> {
        let callee = self.callee.as_mut().ok_or(Refusal::WrongSide)?;
        let parsed = datagram::parse(bytes, callee.half_len).ok_or(Refusal::HandshakeForm)?;
        match parsed.kind {
            datagram::Kind::Hello => {}
            datagram::Kind::Answer => return Err(Refusal::WrongSide),
            datagram::Kind::Cookie => return Err(Refusal::Cookie),
        }
        if !callee.key.accepts(&parsed) {
            return Err(Refusal::BadMac1);
        }
        let message = match callee.halves.join(now, from, &parsed) {
            Joined::Waits(gone) => {
                (0..gone).for_each(|_| core.refuse(Refusal::HalfAlone));
                return Ok(());
            }
            Joined::Twice => return Err(Refusal::HalfTwice),
            Joined::Whole(message) => message,
        };
        let ephemeral: [u8; 32] = *message.first_chunk().ok_or(Refusal::HandshakeForm)?;
        if callee.seen.contains(&ephemeral) {
            return Err(Refusal::HandshakeReplayed);
        }
        if !callee.bucket.take(now) {
            return Err(Refusal::HandshakeBucketEmpty);
        }
        let responder = Responder::read(&mut core.rng, &callee.terms, &core.config.noise, &message)
            .map_err(|_| Refusal::HandshakeForged)?;
        let stamp: Option<[u8; 12]> = match callee.terms.pattern {
            Pattern::Nk => None,
            Pattern::Ik => {
                if responder.initiator != core.config.previous || responder.initiator.is_none() {
                    return Err(Refusal::NotANeighbour);
                }
                let stamp: [u8; 12] = *responder.head.first_chunk().ok_or(Refusal::HandshakeForged)?;
                if stamp <= callee.stamp {
                    return Err(Refusal::StaleTimestamp);
                }
                Some(stamp)
            }
        };
        let known = match stamp {
            Some(_) => self.iter().find(|link| link.side == Side::Up).map(|link| link.id),
            None => self.resumed(core, &responder.head)?,
        };
        if let Some(id) = known
            && self.link_mut(id).is_some_and(|link| link.ephemerals.contains(&ephemeral))
        {
            return Err(Refusal::HandshakeReplayed);
        }
        if known.is_none() {
            self.make_room(core, from)?;
        }
        let (message, secrets) = responder.answer().map_err(|_| Refusal::HandshakeForged)?;
        let link = known.unwrap_or_else(|| self.install_link(core, now, Side::Up, from));
        self.install_slot(core, now, link, from, &secrets).ok_or(Refusal::LinksFull)?;
        if let Some(link) = self.link_mut(link) {
            link.ephemerals.push_back(ephemeral);
            if link.ephemerals.len() > EPHEMERALS_PER_LINK {
                link.ephemerals.pop_front();
            }
        }
        let callee = self.callee.as_mut().expect("it was there above");
        if let Some(stamp) = stamp {
            callee.stamp = stamp;
        }
        callee.remember(ephemeral);
        let key = Mac1Key::of(&ephemeral);
        let datagram = datagram::frame(datagram::Kind::Answer, 0, parsed.index, &message, &key);
        core.out.push_back(Output::Send { side: Side::Up, to: from, datagram });
        Ok(())
    }

    /// NK: the live link whose current or next handshake this token names. One that names `next`
    /// proves that its initiator holds those keys, so it is promoted like by a cell. One that names
    /// `previous` is spent: its message 1 was overtaken by a newer, and a link of its own would draw
    /// the initiator away from its channels.
    fn resumed(&mut self, core: &mut Core, token: &[u8]) -> Result<Option<LinkId>, Refusal> {
        let names = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.resume[..].ct_eq(token).into());
        for link in self.all.iter_mut().flatten().filter(|link| link.side == Side::Up) {
            if names(&link.next) {
                link.promote(core);
                return Ok(Some(link.id));
            }
            if names(&link.current) {
                return Ok(Some(link.id));
            }
            if names(&link.previous) {
                return Err(Refusal::TokenSpent);
            }
        }
        Ok(None)
    }

    /// Makes room for one more link: at most so many per address and per node. Those that were never
    /// used go first, then those without channels, the oldest first; others never go.
    fn make_room(&mut self, core: &mut Core, from: SocketAddr) -> Result<(), Refusal> {
        let up = |link: &&Link| link.side == Side::Up;
        let victim = |of: &mut dyn Iterator<Item = &Link>| {
            of.filter(|link| link.is_empty()).min_by_key(|link| (link.current.is_some(), link.made)).map(|link| link.id)
        };
        let here =
            |link: &&Link| up(link) && (link.peer == from || link.next.as_ref().is_some_and(|next| next.peer == from));
        if self.iter().filter(here).count() >= core.config.caps.links_per_address {
            let id = victim(&mut self.iter().filter(here)).ok_or(Refusal::LinksFull)?;
            self.retire(core, id);
        }
        if self.iter().filter(up).count() >= core.config.caps.links {
            let id = victim(&mut self.iter().filter(up)).ok_or(Refusal::LinksFull)?;
            self.retire(core, id);
        }
        Ok(())
    }

    /// Initiator: message 2.
    fn answer(&mut self, core: &mut Core, now: Duration, bytes: &[u8]) -> Result<(), Refusal> {
        let caller = self.caller.as_mut().ok_or(Refusal::WrongSide)?;
        let parsed = datagram::parse(bytes, NK_HALF_LEN)
            .or_else(|| datagram::parse(bytes, IK_HALF_LEN))
            .ok_or(Refusal::HandshakeForm)?;
        match parsed.kind {
            datagram::Kind::Answer => {}
            datagram::Kind::Hello => return Err(Refusal::WrongSide),
            datagram::Kind::Cookie => return Err(Refusal::Cookie),
        }
        let at = caller.calls.iter().position(|call| call.index == parsed.index).ok_or(Refusal::NotAwaited)?;
        let call = &mut caller.calls[at];
        if !call.key.accepts(&parsed) {
            return Err(Refusal::BadMac1);
        }
        let secrets = call.initiator.finish(parsed.noise).map_err(|_| Refusal::HandshakeForged)?;
        // An older call must not take over from this one. A newer one does if it too is answered, for
        // then the responder has put it in the place of this one; but without a token each call has
        // made a link of its own, and the first answered is as good as any.
        let fresh = call.fresh;
        caller.calls.drain(..=at);
        if fresh {
            caller.calls.clear();
        }
        caller.wait = core.config.timing.handshake_retry;
        let peer = caller.address;
        let id = match self.down {
            Some(id) => id,
            None => self.install_link(core, now, Side::Down, peer),
        };
        self.down = Some(id);
        let was_up = self.down_ready().is_some();
        self.install_slot(core, now, id, peer, &secrets).ok_or(Refusal::LinksFull)?;
        let side = Side::Down;
        core.event(if was_up {
            Event::LinkRenewed { side, link: id, peer }
        } else {
            Event::LinkUp { side, link: id, peer }
        });
        let link = self.link_mut(id).expect("it was installed above");
        link.unanswered = None;
        keepalive(core, now, link);
        Ok(())
    }

    /// Why a handshake with the next hop is due, if it is.
    fn cause(&self, core: &Core, now: Duration) -> Option<Cause> {
        let link = self.down.and_then(|id| self.all[id as usize].as_ref());
        let Some((link, slot)) = link.and_then(|link| Some((link, link.current.as_ref()?))) else {
            return Some(Cause::NoLink);
        };
        if now.saturating_sub(slot.made) >= core.config.timing.renew_after {
            return Some(Cause::Age);
        }
        let silent = link.unanswered.is_some_and(|since| now.saturating_sub(since) >= core.config.silent_after());
        silent.then_some(Cause::Silence)
    }

    /// Sends message 1, if one is due.
    pub(crate) fn call(&mut self, core: &mut Core, now: Duration, wall: SystemTime) {
        let Some(cause) = self.cause(core, now) else { return };
        let down = self.down;
        let Some(caller) = &mut self.caller else { return };
        if now < caller.due {
            return;
        }
        let link = down.and_then(|id| self.all[id as usize].as_mut());
        let head = match caller.terms.pattern {
            Pattern::Nk => {
                link.as_ref().and_then(|l| l.current.as_ref()).map_or_else(|| vec![0; 32], |slot| slot.resume.to_vec())
            }
            Pattern::Ik => caller.next_stamp(wall).to_vec(),
        };
        let head = zeroize::Zeroizing::new(head);
        if let (Cause::Silence, Some(link)) = (cause, link)
            && !link.silent
        {
            link.silent = true;
            core.event(Event::LinkSilent { link: link.id });
        }
        let wait = if cause == Cause::Silence { core.config.timing.handshake_retry_max } else { caller.wait };
        // Up to a fifth less, so that neighbours of one node do not call in step.
        let spread = core.rng.random_range(0.8..=1.0);
        caller.due = now + if cause == Cause::Silence { wait } else { wait.mul_f64(spread) };
        caller.wait = (caller.wait * 3 / 2).min(core.config.timing.handshake_retry_max);
        caller.calls.retain(|call| now.saturating_sub(call.sent) < CALL_WAIT);
        if caller.calls.len() >= CALLS_MAX {
            caller.calls.pop_front();
        }
        let started = Initiator::start(&mut core.rng, &caller.terms, &core.config.noise, &caller.theirs, &head);
        let Ok((initiator, message)) = started else {
            core.refuse(Refusal::HandshakeForged);
            return;
        };
        let mut index = core.rng.next_u32();
        while caller.calls.iter().any(|call| call.index == index) {
            index = core.rng.next_u32();
        }
        for datagram in datagram::frame_halves(index, &message, &caller.key) {
            core.out.push_back(Output::Send { side: Side::Down, to: caller.address, datagram });
        }
        let key = Mac1Key::of(&initiator.ephemeral);
        let fresh = caller.terms.pattern == Pattern::Nk && head[..] == [0; 32];
        caller.calls.push_back(Call { index, fresh, sent: now, initiator, key });
        core.counters.handshakes_started += 1;
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

    /// When [`Links::expire`] or [`Links::call`] has something to do next.
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
            let current = self.down.and_then(|id| self.all[id as usize].as_ref()).and_then(|link| {
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

impl Caller {
    /// TAI64N of the wall clock, or one more than the last if that has not grown.
    fn next_stamp(&mut self, wall: SystemTime) -> [u8; 12] {
        let unix = wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.stamp = unix.as_nanos().max(self.stamp + 1);
        let seconds = (1 << 62) + 10 + (self.stamp / 1_000_000_000) as u64;
        let mut out = [0; 12];
        out[..8].copy_from_slice(&seconds.to_be_bytes());
        out[8..].copy_from_slice(&((self.stamp % 1_000_000_000) as u32).to_be_bytes());
        out
    }
}

impl Callee {
    fn remember(&mut self, ephemeral: [u8; 32]) {
        if self.seen.insert(ephemeral) {
            self.seen_order.push_back(ephemeral);
        }
        if self.seen_order.len() > EPHEMERALS_MAX
            && let Some(oldest) = self.seen_order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }
}
