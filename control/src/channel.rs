//! Channels: setup and ack as a hop passes them on, and the table of channels (SPEC 5).
//!
//! A setup is opened, its half-open record installed, and only then the rest sent on; its ack cells
//! come back, each passes once, and the last leaves behind the channel's installation. What the entry
//! does with setups and acks of its own is [`crate::entry`]'s. Setups are refused in the order of
//! their price: form, buckets, caps, replay, and public-key work last.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use rand::Rng;
use wire::cell::{Direction, Header, Kind};
use wire::ids::{ChannelIndex, ChannelKeys, EndReason, LinkId};
use wire::setup::{self, HopSecrets, Info};

use crate::admission::{Bucket, ReplayCache};
use crate::config::Config;
use crate::core::Core;
use crate::counters::Refusal;
use crate::descriptor::draw_secret;
use crate::io::{DataOp, Event};
use crate::link::{Links, Outgoing};

/// An id is not drawn again on its link for so long.
const ID_REST: Duration = Duration::from_secs(180);
/// Setups that one link may have in pieces.
const FRAGMENTED_MAX: usize = 8;
/// How long pieces wait for each other.
const FRAGMENTS_WAIT: Duration = Duration::from_secs(2);

/// A channel on a link.
pub(crate) type LinkChannel = (LinkId, u32);

/// Setups of one link that are not whole yet.
#[derive(Default)]
pub(crate) struct Fragments {
    waiting: Vec<Pieces>,
}

struct Pieces {
    channel: u32,
    since: Duration,
    parts: Vec<Option<Vec<u8>>>,
}

impl Fragments {
    /// Takes in one of `count` pieces; the whole once it is whole. Also how many setups were given up.
    fn join(&mut self, now: Duration, header: &Header, count: usize, content: &[u8]) -> (Joined, usize) {
        let before = self.waiting.len();
        self.waiting.retain(|pieces| now.saturating_sub(pieces.since) < FRAGMENTS_WAIT);
        let mut gone = before - self.waiting.len();
        let at = match self.waiting.iter().position(|pieces| pieces.channel == header.channel) {
            Some(at) => at,
            None => {
                if self.waiting.len() >= FRAGMENTED_MAX {
                    self.waiting.remove(0);
                    gone += 1;
                }
                self.waiting.push(Pieces { channel: header.channel, since: now, parts: vec![None; count] });
                self.waiting.len() - 1
            }
        };
        let part = &mut self.waiting[at].parts[usize::from(header.sub)];
        if part.is_some() {
            return (Joined::Twice, gone);
        }
        *part = Some(content.to_vec());
        if self.waiting[at].parts.iter().any(Option::is_none) {
            return (Joined::Waits, gone);
        }
        let parts = self.waiting.remove(at).parts;
        (Joined::Whole(parts.into_iter().flatten().flatten().collect()), gone)
    }
}

enum Joined {
    Waits,
    Twice,
    Whole(Vec<u8>),
}

/// Who uses an id on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// A half-open channel, by its serial.
    HalfOpen(u64),
    /// An open channel.
    Open(ChannelIndex),
    /// The entry's attempt for this seat.
    Attempt(usize),
    /// Nobody, but too recently.
    Resting,
}

/// Set up towards the exit, not yet acknowledged.
struct HalfOpen {
    up: LinkChannel,
    down: LinkChannel,
    ephemeral: [u8; 32],
    secrets: HopSecrets,
    /// Bit per ack cell that has passed.
    passed: u8,
    made: Duration,
}

/// An open channel.
struct Open {
    up: Option<LinkChannel>,
    down: Option<LinkChannel>,
    /// Ids and counts are given back already; only the data plane's report is missing.
    retired: bool,
}

/// All channels of a node.
pub(crate) struct Channels {
    ids: HashMap<LinkChannel, Use>,
    resting: VecDeque<(Duration, LinkChannel)>,
    half_open: BTreeMap<u64, HalfOpen>,
    serial: u64,
    open: Vec<Option<Open>>,
    free: Vec<ChannelIndex>,
    open_n: usize,
    bucket: Bucket,
    seen: ReplayCache,
    /// D of this hop.
    own: Option<[u8; 32]>,
}

/// What every setup of this chain says.
pub(crate) fn info(config: &Config) -> Info {
    Info { class: config.shape.class(), lifetime_s: config.lifetime_s(), first: 0 }
}

impl Channels {
    pub(crate) fn new(config: &Config, now: Duration) -> Channels {
        Channels {
            ids: HashMap::new(),
            resting: VecDeque::new(),
            half_open: BTreeMap::new(),
            serial: 0,
            open: Vec::new(),
            free: Vec::new(),
            open_n: 0,
            bucket: Bucket::new(config.caps.setups, now),
            seen: ReplayCache::new(config.caps.replay_cache),
            own: config.descriptor.as_ref().map(|own| own.hash()),
        }
    }

    pub(crate) fn open_count(&self) -> usize {
        self.open_n
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

    /// Draws an id for the next hop: never 0, live, or used in the last 180 s.
    pub(crate) fn draw_id(&mut self, core: &mut Core, link: LinkId, by: Use) -> LinkChannel {
        loop {
            let id = (link, core.rng.next_u32());
            if id.1 != 0 && !self.ids.contains_key(&id) {
                self.ids.insert(id, by);
                return id;
            }
        }
    }

    /// Lets an id that this node drew rest.
    pub(crate) fn rest(&mut self, now: Duration, id: LinkChannel) {
        self.ids.insert(id, Use::Resting);
        self.resting.push_back((now + ID_REST, id));
    }

    /// Hop: a setup fragment from the previous one.
    pub(crate) fn fragment(
        &mut self,
        core: &mut Core,
        links: &mut Links,
        now: Duration,
        (link, header): (LinkId, &Header),
        content: &[u8],
    ) -> Result<(), Refusal> {
        let (shape, position) = (core.config.shape, core.config.position);
        let up = (link, header.channel);
        if self.ids.contains_key(&up) {
            return Err(Refusal::ChannelTaken);
        }
        let len = setup::onion_len(shape, position);
        let count = len.div_ceil(content.len());
        if usize::from(header.sub) >= count {
            return Err(Refusal::FragmentForm);
        }
        if count == 1 {
            return self.setup(core, links, now, up, &content[..len]);
        }
        let state = links.link_mut(link).ok_or(Refusal::NoSuchSlot)?;
        let (joined, gone) = state.fragments.join(now, header, count, content);
        (0..gone).for_each(|_| core.refuse(Refusal::SetupIncomplete));
        match joined {
            Joined::Waits => Ok(()),
            Joined::Twice => Err(Refusal::FragmentForm),
            Joined::Whole(onion) => self.setup(core, links, now, up, &onion[..len]),
        }
    }

    /// Hop: a whole setup.
    fn setup(
        &mut self,
        core: &mut Core,
        links: &mut Links,
        now: Duration,
        up: LinkChannel,
        onion: &[u8],
    ) -> Result<(), Refusal> {
        let (shape, position) = (core.config.shape, core.config.position);
        let is_exit = position == shape.hops();
        let down = match is_exit {
            true => None,
            false => Some(links.down_ready().ok_or(Refusal::NextHopDown)?),
        };
        self.admit(core, links, now, up.0, is_exit)?;
        let tag = setup::replay_tag(onion).ok_or(Refusal::SetupBad)?;
        if self.seen.contains(&tag) {
            return Err(Refusal::SetupReplayed);
        }
        let own = self.own.ok_or(Refusal::SetupBad)?;
        let opened = setup::open(shape, position, &own, &core.config.setup, info(&core.config), onion)
            .map_err(|_| Refusal::SetupBad)?;
        self.seen.insert(opened.tag);
        let rest = opened.rest.clone();
        let y = draw_secret(&mut core.rng);
        let (ephemeral, secrets) = opened.answer(y).map_err(|_| Refusal::SetupBad)?;
        core.counters.setups += 1;
        let Some(next) = down else {
            self.acknowledge(core, links, now, up, &ephemeral, secrets);
            return Ok(());
        };
        let serial = self.serial;
        self.serial += 1;
        let down = self.draw_id(core, next, Use::HalfOpen(serial));
        self.ids.insert(up, Use::HalfOpen(serial));
        self.half_open.insert(serial, HalfOpen { up, down, ephemeral, secrets, passed: 0, made: now });
        for link in [up.0, down.0] {
            if let Some(link) = links.link_mut(link) {
                link.half_open += 1;
            }
        }
        send_setup(core, links, now, down, &rest);
        Ok(())
    }

    /// Buckets, caps and room in the replay cache.
    fn admit(
        &mut self,
        core: &Core,
        links: &mut Links,
        now: Duration,
        up: LinkId,
        is_exit: bool,
    ) -> Result<(), Refusal> {
        let caps = &core.config.caps;
        if core.config.faces_entries() {
            // Further on a link carries every entry's setups; there the node's bounds must do.
            let link = links.link_mut(up).ok_or(Refusal::NoSuchSlot)?;
            if !link.setups.take(now) {
                return Err(Refusal::LinkBucketEmpty);
            }
            if link.half_open >= caps.half_open_per_entry_link {
                return Err(Refusal::LinkHalfOpenFull);
            }
            if link.channels + link.half_open >= caps.channels_per_entry_link {
                return Err(Refusal::LinkChannelsFull);
            }
        }
        if !self.bucket.take(now) {
            return Err(Refusal::NodeBucketEmpty);
        }
        if !is_exit && self.half_open.len() >= caps.half_open {
            return Err(Refusal::HalfOpenFull);
        }
        // Retired ones count until the data plane has let go of them.
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
        core: &mut Core,
        links: &mut Links,
        now: Duration,
        up: LinkChannel,
        ephemeral: &[u8; 32],
        secrets: HopSecrets,
    ) {
        let shape = core.config.shape;
        let keys = ChannelKeys::Hop { forward: secrets.forward.clone(), backward: secrets.backward.clone() };
        self.install(core, links, Some(up), None, keys, Duration::ZERO);
        for sub in 0..setup::ack_cells(shape) as u8 {
            let mut content = vec![0; shape.payload()];
            core.rng.fill_bytes(&mut content);
            setup::begin_ack(shape, sub, ephemeral, &secrets, &mut content);
            links.inject(core, now, up.0, &Outgoing { kind: Kind::Ack, channel: up.1, sub, content: &content });
        }
    }

    /// Mix: an ack cell from the next hop.
    pub(crate) fn ack(
        &mut self,
        core: &mut Core,
        links: &mut Links,
        now: Duration,
        (link, header): (LinkId, &Header),
        content: &mut [u8],
    ) -> Result<(), Refusal> {
        let shape = core.config.shape;
        let Some(Use::HalfOpen(serial)) = self.used_by((link, header.channel)) else {
            return Err(Refusal::AckUnasked);
        };
        let half = self.half_open.get_mut(&serial).ok_or(Refusal::AckUnasked)?;
        let cells = setup::ack_cells(shape);
        if half.down != (link, header.channel) || usize::from(header.sub) >= cells {
            return Err(Refusal::AckUnasked);
        }
        let bit = 1 << header.sub;
        if half.passed & bit != 0 {
            return Err(Refusal::AckUnasked);
        }
        half.passed |= bit;
        let sub = header.sub;
        setup::cover_ack(shape, core.config.position, sub, &half.ephemeral, &half.secrets, content);
        let up = half.up;
        if half.passed.count_ones() as usize == cells {
            let half = self.take_half_open(links, serial).expect("it was found above");
            let keys =
                ChannelKeys::Hop { forward: half.secrets.forward.clone(), backward: half.secrets.backward.clone() };
            self.install(core, links, Some(half.up), Some(half.down), keys, now.saturating_sub(half.made));
        }
        links.inject(core, now, up.0, &Outgoing { kind: Kind::Ack, channel: up.1, sub, content });
        Ok(())
    }

    /// Removes a half-open record from table and counts; its ids stay to whoever comes next.
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
            self.rest(now, half.down);
        }
    }

    /// Installs an open channel.
    pub(crate) fn install(
        &mut self,
        core: &mut Core,
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
        self.open_n += 1;
        for id in [up, down].into_iter().flatten() {
            self.ids.insert(id, Use::Open(channel));
            if let Some(link) = links.link_mut(id.0) {
                link.channels += 1;
            }
        }
        let lifetime_s = core.config.lifetime_s();
        core.data(DataOp::InstallChannel { channel, up, down, keys, lifetime_s, first: 0 });
        core.event(Event::ChannelOpen { channel, setup });
        core.counters.channels_opened += 1;
        channel
    }

    /// Gives back ids and counts of an open channel, once.
    fn release(&mut self, links: &mut Links, now: Duration, channel: ChannelIndex) -> bool {
        let Some(open) = self.open.get_mut(channel.index()).and_then(Option::as_mut) else { return false };
        if std::mem::replace(&mut open.retired, true) {
            return false;
        }
        let (up, down) = (open.up, open.down);
        self.open_n -= 1;
        for id in [up, down].into_iter().flatten() {
            if let Some(link) = links.link_mut(id.0) {
                link.channels = link.channels.saturating_sub(1);
            }
        }
        if let Some(up) = up {
            self.ids.remove(&up);
        }
        if let Some(down) = down {
            self.rest(now, down);
        }
        true
    }

    /// The data plane has ended a channel. False if there is none.
    pub(crate) fn ended(
        &mut self,
        core: &mut Core,
        links: &mut Links,
        now: Duration,
        channel: ChannelIndex,
        reason: EndReason,
    ) -> bool {
        self.release(links, now, channel);
        let Some(place) = self.open.get_mut(channel.index()) else { return false };
        if place.take().is_none() {
            return false;
        }
        self.free.push(channel);
        core.event(Event::ChannelClosed { channel, reason });
        true
    }

    /// A link is about to go, and with it what runs over it.
    pub(crate) fn drop_link(&mut self, core: &mut Core, links: &mut Links, now: Duration, link: LinkId) {
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
                core.data(DataOp::RetireChannel { channel });
            }
        }
    }

    /// Drops what has waited too long.
    pub(crate) fn tick(&mut self, core: &mut Core, links: &mut Links, now: Duration) {
        let limit = core.config.half_open_for();
        while let Some((serial, half)) = self.half_open.first_key_value()
            && now.saturating_sub(half.made) >= limit
        {
            let serial = *serial;
            self.drop_half_open(links, now, serial);
            core.refuse(Refusal::HalfOpenExpired);
        }
        while let Some((until, id)) = self.resting.front()
            && *until <= now
        {
            if self.ids.get(id) == Some(&Use::Resting) {
                self.ids.remove(id);
            }
            self.resting.pop_front();
        }
    }

    /// When [`Channels::tick`] has something to do next.
    pub(crate) fn next_wake(&self, core: &Core) -> Duration {
        let half = self.half_open.first_key_value().map(|(_, half)| half.made + core.config.half_open_for());
        let resting = self.resting.front().map(|(until, _)| *until);
        half.unwrap_or(Duration::MAX).min(resting.unwrap_or(Duration::MAX))
    }
}

/// Sends an onion to the next hop in cells of equal length, the last filled with random bytes.
pub(crate) fn send_setup(core: &mut Core, links: &mut Links, now: Duration, down: LinkChannel, onion: &[u8]) {
    let content_len = core.config.shape.control_content(Direction::Forward, core.config.position + 1);
    for (sub, part) in onion.chunks(content_len).enumerate() {
        let mut content = vec![0; content_len];
        content[..part.len()].copy_from_slice(part);
        core.rng.fill_bytes(&mut content[part.len()..]);
        links.inject(
            core,
            now,
            down.0,
            &Outgoing { kind: Kind::Setup, channel: down.1, sub: sub as u8, content: &content },
        );
    }
}

// Every onion fits 255 fragments and every ack 8 cells, whatever the chain.
const _: () = {
    let mut hops = 2;
    while hops <= wire::cell::MAX_HOPS {
        // Class S has the smallest cells.
        assert!(setup::HOP_LEN * hops <= 255 * 208 && hops.div_ceil(208 / setup::SLOT_LEN) <= 8);
        hops += 1;
    }
};
