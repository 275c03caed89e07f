//! Channels: how a hop passes on setups and acks, and the table of channels (SPEC 5).
//!
//! A hop opens a setup, records the channel as half-open, and only then sends the rest on. The ack
//! cells come back, each passes once, and the channel is installed before the last one leaves. The
//! entry's own setups are in [`crate::entry`]. Checks of a setup run from cheap to expensive: form,
//! buckets, caps, replay, and public-key work last.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use rand::Rng;
use wire::cell::{CellKind, Direction, Header};
use wire::ids::{ChannelIndex, ChannelKeys, EndReason, LinkId};
use wire::setup::{self, HopSecrets, Info};

use crate::admission::{Bucket, ReplayCache};
use crate::config::Config;
use crate::context::Context;
use crate::counters::Refusal;
use crate::descriptor::draw_secret;
use crate::fragments::Joined;
use crate::io::{DataOp, Event};
use crate::link::{Links, Outgoing};

/// How long an id is not drawn again on its link after its use.
const ID_COOLDOWN: Duration = Duration::from_secs(180);

/// A channel's id on a link.
pub(crate) type LinkChannel = (LinkId, u32);

/// What an id on a link is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A half-open channel, by its serial.
    HalfOpen(u64),
    /// An open channel.
    Open(ChannelIndex),
    /// The entry's setup for this wanted channel.
    Setup(usize),
    /// Nothing, but it was in use too recently.
    CoolingDown,
}

/// A channel that is set up towards the exit and not yet acknowledged.
struct HalfOpen {
    up: LinkChannel,
    down: LinkChannel,
    ephemeral: [u8; 32],
    secrets: HopSecrets,
    /// One bit for each ack cell that has passed.
    passed: u8,
    created_at: Duration,
}

struct Open {
    up: Option<LinkChannel>,
    down: Option<LinkChannel>,
    /// Its ids and counts are released; only the data plane's report is missing.
    retired: bool,
}

/// All channels of a node.
pub(crate) struct Channels {
    ids: HashMap<LinkChannel, Use>,
    /// Ids and the end of their cooldown, earliest first.
    cooling_down: VecDeque<(Duration, LinkChannel)>,
    /// By serial, so oldest first.
    half_open: BTreeMap<u64, HalfOpen>,
    next_serial: u64,
    /// By [`ChannelIndex`].
    open: Vec<Option<Open>>,
    free: Vec<ChannelIndex>,
    open_count: usize,
    bucket: Bucket,
    seen: ReplayCache,
    /// Hash of this hop's descriptor (D in SPEC 5.1); none at the entry.
    descriptor_hash: Option<[u8; 32]>,
}

/// The info that every setup of this chain carries.
pub(crate) fn info(config: &Config) -> Info {
    Info { class: config.shape.class(), lifetime_s: config.lifetime_s(), first: 0 }
}

impl Channels {
    pub(crate) fn new(config: &Config, now: Duration) -> Channels {
        Channels {
            ids: HashMap::new(),
            cooling_down: VecDeque::new(),
            half_open: BTreeMap::new(),
            next_serial: 0,
            open: Vec::new(),
            free: Vec::new(),
            open_count: 0,
            bucket: Bucket::new(config.caps.setups, now),
            seen: ReplayCache::new(config.caps.replay_cache),
            descriptor_hash: config.descriptor.as_ref().map(|own| own.hash()),
        }
    }

    pub(crate) fn open_count(&self) -> usize {
        self.open_count
    }

    pub(crate) fn half_open_count(&self) -> usize {
        self.half_open.len()
    }

    /// Ids towards the entry of all half-open channels.
    #[cfg(test)]
    pub(crate) fn half_open_ids(&self) -> Vec<u32> {
        self.half_open.values().map(|half| half.up.1).collect()
    }

    /// Ids that cannot be drawn or taken now.
    #[cfg(test)]
    pub(crate) fn id_count(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn used_by(&self, id: LinkChannel) -> Option<Use> {
        self.ids.get(&id).copied()
    }

    /// Draws an id for the next hop: never 0, never one that is in use or was during the last 180 s.
    pub(crate) fn draw_id(&mut self, cx: &mut Context, link: LinkId, for_use: Use) -> LinkChannel {
        loop {
            let id = (link, cx.rng.next_u32());
            if id.1 != 0 && !self.ids.contains_key(&id) {
                self.ids.insert(id, for_use);
                return id;
            }
        }
    }

    /// Releases an id that this node drew.
    pub(crate) fn release_drawn(&mut self, now: Duration, id: LinkChannel) {
        self.ids.insert(id, Use::CoolingDown);
        self.cooling_down.push_back((now + ID_COOLDOWN, id));
    }

    /// Hop: takes in a setup fragment from the previous one.
    pub(crate) fn fragment(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        now: Duration,
        (link, header): (LinkId, &Header),
        content: &[u8],
    ) -> Result<(), Refusal> {
        let (shape, position) = (cx.config.shape, cx.config.position);
        let up = (link, header.channel);
        if self.ids.contains_key(&up) {
            return Err(Refusal::ChannelInUse);
        }
        let len = setup::onion_len(shape, position);
        let count = len.div_ceil(content.len());
        if usize::from(header.sub) >= count {
            return Err(Refusal::FragmentMalformed);
        }
        if count == 1 {
            return self.setup(cx, links, now, up, &content[..len]);
        }
        let state = links.link_mut(link).ok_or(Refusal::UnknownSlot)?;
        let (joined, given_up) = state.incomplete_setups.join(now, header.channel, header.sub.into(), count, content);
        (0..given_up).for_each(|_| cx.refuse(Refusal::SetupIncomplete));
        match joined {
            Joined::Incomplete => Ok(()),
            Joined::Duplicate => Err(Refusal::FragmentMalformed),
            Joined::Complete(onion) => self.setup(cx, links, now, up, &onion[..len]),
        }
    }

    /// Hop: opens a setup and passes it on, or acknowledges it at the exit.
    fn setup(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        now: Duration,
        up: LinkChannel,
        onion: &[u8],
    ) -> Result<(), Refusal> {
        let (shape, position) = (cx.config.shape, cx.config.position);
        let is_exit = position == shape.hops();
        let next_hop = match links.down_ready() {
            _ if is_exit => None,
            Some(next_hop) => Some(next_hop),
            // The nodes of a chain start in any order, so this is not a fault yet. The entry retries.
            None if links.is_starting(now) => return Ok(()),
            None => return Err(Refusal::NextHopDown),
        };
        self.admit(cx, links, now, up.0, is_exit)?;

        let tag = setup::replay_tag(onion).ok_or(Refusal::SetupInvalid)?;
        if self.seen.contains(&tag) {
            return Err(Refusal::SetupReplayed);
        }
        let descriptor_hash = self.descriptor_hash.ok_or(Refusal::SetupInvalid)?;
        let opened = setup::open(shape, position, &descriptor_hash, &cx.config.setup, info(&cx.config), onion)
            .map_err(|_| Refusal::SetupInvalid)?;
        self.seen.insert(opened.tag);
        let rest = opened.rest.clone();
        let y = draw_secret(&mut cx.rng);
        let (ephemeral, secrets) = opened.answer(y).map_err(|_| Refusal::SetupInvalid)?;
        cx.counters.setups += 1;

        let Some(next_hop) = next_hop else {
            self.acknowledge(cx, links, now, up, &ephemeral, secrets);
            return Ok(());
        };
        let serial = self.next_serial;
        self.next_serial += 1;
        let down = self.draw_id(cx, next_hop, Use::HalfOpen(serial));
        self.ids.insert(up, Use::HalfOpen(serial));
        self.half_open.insert(serial, HalfOpen { up, down, ephemeral, secrets, passed: 0, created_at: now });
        for link in [up.0, down.0] {
            if let Some(link) = links.link_mut(link) {
                link.half_open += 1;
            }
        }
        send_setup(cx, links, now, down, &rest);
        Ok(())
    }

    /// Checks buckets, caps and room in the replay cache.
    fn admit(
        &mut self,
        cx: &Context,
        links: &mut Links,
        now: Duration,
        up: LinkId,
        is_exit: bool,
    ) -> Result<(), Refusal> {
        let caps = &cx.config.caps;
        if cx.config.faces_entries() {
            // Between hops one link carries the setups of every entry, so only the node's bounds apply there.
            let link = links.link_mut(up).ok_or(Refusal::UnknownSlot)?;
            if !link.setups.take(now) {
                return Err(Refusal::LinkSetupsRateLimited);
            }
            if link.half_open >= caps.half_open_per_entry_link {
                return Err(Refusal::LinkHalfOpenFull);
            }
            if link.channels + link.half_open >= caps.channels_per_entry_link {
                return Err(Refusal::LinkChannelsFull);
            }
        }
        if !self.bucket.take(now) {
            return Err(Refusal::SetupsRateLimited);
        }
        if !is_exit && self.half_open.len() >= caps.half_open {
            return Err(Refusal::HalfOpenFull);
        }
        // Retired channels count until the data plane has reported their end.
        if self.open.len() - self.free.len() + self.half_open.len() >= caps.channels {
            return Err(Refusal::ChannelsFull);
        }
        if self.seen.is_full() {
            return Err(Refusal::ReplayCacheFull);
        }
        Ok(())
    }

    /// Exit: opens the channel and sends the ack cells.
    fn acknowledge(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        now: Duration,
        up: LinkChannel,
        ephemeral: &[u8; 32],
        secrets: HopSecrets,
    ) {
        let shape = cx.config.shape;
        let keys = ChannelKeys::Hop { forward: secrets.forward.clone(), backward: secrets.backward.clone() };
        self.install(cx, links, Some(up), None, keys, Duration::ZERO);
        for sub in 0..setup::ack_cells(shape) as u8 {
            let mut content = vec![0; shape.payload()];
            cx.rng.fill_bytes(&mut content);
            setup::begin_ack(shape, sub, ephemeral, &secrets, &mut content);
            links.inject(cx, now, up.0, &Outgoing { kind: CellKind::Ack, channel: up.1, sub, content: &content });
        }
    }

    /// Mix: covers an ack cell from the next hop and passes it on.
    pub(crate) fn ack(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        now: Duration,
        (link, header): (LinkId, &Header),
        content: &mut [u8],
    ) -> Result<(), Refusal> {
        let shape = cx.config.shape;
        let Some(Use::HalfOpen(serial)) = self.used_by((link, header.channel)) else {
            return Err(Refusal::UnexpectedAck);
        };
        let half = self.half_open.get_mut(&serial).ok_or(Refusal::UnexpectedAck)?;
        let cells = setup::ack_cells(shape);
        if half.down != (link, header.channel) || usize::from(header.sub) >= cells {
            return Err(Refusal::UnexpectedAck);
        }
        // A second pass would use the same keystream twice.
        let bit = 1 << header.sub;
        if half.passed & bit != 0 {
            return Err(Refusal::UnexpectedAck);
        }
        half.passed |= bit;
        let sub = header.sub;
        setup::cover_ack(shape, cx.config.position, sub, &half.ephemeral, &half.secrets, content);
        let up = half.up;
        if half.passed.count_ones() as usize == cells {
            let half = self.take_half_open(links, serial).expect("it was found above");
            let keys =
                ChannelKeys::Hop { forward: half.secrets.forward.clone(), backward: half.secrets.backward.clone() };
            self.install(cx, links, Some(half.up), Some(half.down), keys, now.saturating_sub(half.created_at));
        }
        links.inject(cx, now, up.0, &Outgoing { kind: CellKind::Ack, channel: up.1, sub, content });
        Ok(())
    }

    /// Removes a half-open record from the table and the counts; its ids stay reserved.
    fn take_half_open(&mut self, links: &mut Links, serial: u64) -> Option<HalfOpen> {
        let half = self.half_open.remove(&serial)?;
        for link in [half.up.0, half.down.0] {
            if let Some(link) = links.link_mut(link) {
                link.half_open = link.half_open.saturating_sub(1);
            }
        }
        Some(half)
    }

    fn drop_half_open(&mut self, links: &mut Links, now: Duration, serial: u64) {
        if let Some(half) = self.take_half_open(links, serial) {
            self.ids.remove(&half.up);
            self.release_drawn(now, half.down);
        }
    }

    /// Installs an open channel.
    pub(crate) fn install(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        up: Option<LinkChannel>,
        down: Option<LinkChannel>,
        keys: ChannelKeys,
        setup: Duration,
    ) -> ChannelIndex {
        let channel = self.free.pop().unwrap_or_else(|| {
            self.open.push(None);
            ChannelIndex((self.open.len() - 1) as u32)
        });
        self.open[channel.index()] = Some(Open { up, down, retired: false });
        self.open_count += 1;
        for id in [up, down].into_iter().flatten() {
            self.ids.insert(id, Use::Open(channel));
            if let Some(link) = links.link_mut(id.0) {
                link.channels += 1;
            }
        }
        let lifetime_s = cx.config.lifetime_s();
        cx.data(DataOp::InstallChannel { channel, up, down, keys, lifetime_s, first: 0 });
        cx.event(Event::ChannelOpen { channel, setup });
        cx.counters.channels_opened += 1;
        channel
    }

    /// Releases ids and counts of an open channel. False if that was done before.
    fn release(&mut self, links: &mut Links, now: Duration, channel: ChannelIndex) -> bool {
        let Some(open) = self.open.get_mut(channel.index()).and_then(Option::as_mut) else { return false };
        if std::mem::replace(&mut open.retired, true) {
            return false;
        }
        let (up, down) = (open.up, open.down);
        self.open_count -= 1;
        for id in [up, down].into_iter().flatten() {
            if let Some(link) = links.link_mut(id.0) {
                link.channels = link.channels.saturating_sub(1);
            }
        }
        if let Some(up) = up {
            self.ids.remove(&up);
        }
        if let Some(down) = down {
            self.release_drawn(now, down);
        }
        true
    }

    /// The data plane has ended a channel. False if the index is not in use.
    pub(crate) fn ended(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        now: Duration,
        channel: ChannelIndex,
        reason: EndReason,
    ) -> bool {
        self.release(links, now, channel);
        let Some(entry) = self.open.get_mut(channel.index()) else { return false };
        if entry.take().is_none() {
            return false;
        }
        self.free.push(channel);
        cx.event(Event::ChannelClosed { channel, reason });
        true
    }

    /// Retires the channels of a link that is about to be retired, and drops its half-open ones.
    pub(crate) fn drop_link(&mut self, cx: &mut Context, links: &mut Links, now: Duration, link: LinkId) {
        let over = |id: Option<LinkChannel>| id.is_some_and(|id| id.0 == link);
        let half: Vec<u64> = self
            .half_open
            .iter()
            .filter(|(_, half)| over(Some(half.up)) || over(Some(half.down)))
            .map(|(serial, _)| *serial)
            .collect();
        for serial in half {
            self.drop_half_open(links, now, serial);
        }
        for channel in (0..self.open.len() as u32).map(ChannelIndex) {
            let open = self.open[channel.index()].as_ref();
            let gone = open.is_some_and(|open| !open.retired && (over(open.up) || over(open.down)));
            if gone && self.release(links, now, channel) {
                cx.data(DataOp::RetireChannel { channel });
            }
        }
    }

    /// Drops half-open channels whose ack is overdue and ends cooldowns.
    pub(crate) fn tick(&mut self, cx: &mut Context, links: &mut Links, now: Duration) {
        let limit = cx.config.half_open_for();
        while let Some((serial, half)) = self.half_open.first_key_value()
            && now.saturating_sub(half.created_at) >= limit
        {
            let serial = *serial;
            self.drop_half_open(links, now, serial);
            cx.refuse(Refusal::HalfOpenExpired);
        }
        while let Some((until, id)) = self.cooling_down.front()
            && *until <= now
        {
            if self.ids.get(id) == Some(&Use::CoolingDown) {
                self.ids.remove(id);
            }
            self.cooling_down.pop_front();
        }
    }

    /// When [`Channels::tick`] has something to do next.
    pub(crate) fn next_wake(&self, cx: &Context) -> Duration {
        let expires = self.half_open.first_key_value().map(|(_, half)| half.created_at + cx.config.half_open_for());
        let cooled_down = self.cooling_down.front().map(|(until, _)| *until);
        expires.unwrap_or(Duration::MAX).min(cooled_down.unwrap_or(Duration::MAX))
    }
}

/// Sends an onion to the next hop in cells of equal length; random bytes fill up the last.
pub(crate) fn send_setup(cx: &mut Context, links: &mut Links, now: Duration, down: LinkChannel, onion: &[u8]) {
    let content_len = cx.config.shape.control_content(Direction::Forward, cx.config.position + 1);
    for (sub, part) in onion.chunks(content_len).enumerate() {
        let mut content = vec![0; content_len];
        content[..part.len()].copy_from_slice(part);
        cx.rng.fill_bytes(&mut content[part.len()..]);
        links.inject(
            cx,
            now,
            down.0,
            &Outgoing { kind: CellKind::Setup, channel: down.1, sub: sub as u8, content: &content },
        );
    }
}

// Every onion fits 255 fragments and every ack 8 cells, whatever the chain.
const _: () = {
    let mut hops = 2;
    while hops <= wire::cell::MAX_HOPS {
        // Class S has the shortest cells.
        assert!(setup::HOP_LEN * hops <= 255 * 208 && hops.div_ceil(208 / setup::SLOT_LEN) <= 8);
        hops += 1;
    }
};
