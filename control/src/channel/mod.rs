//! The table of channels of a class (SPEC 5): ids on links, half-open and open channels.
//!
//! [`setup`] is how a hop passes on setups and acks, [`copies`] the second and third cell of an ack; the
//! entry's own setups are in [`crate::entry`].

mod copies;
mod setup;

pub use copies::ACK_COPIES_MAX;
pub(crate) use setup::{Keys, info, send_setup};

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use rand::Rng;
use wire::ids::{ChannelIndex, ChannelKeys, EndReason, LinkId};
use wire::setup::HopSecrets;

use self::copies::AckCopies;
use crate::config::Config;
use crate::context::Context;
use crate::counters::Refusal;
use crate::io::{Change, Event};
use crate::link::Links;
use crate::prefix::Buckets;
use crate::rate::Bucket;

/// An id is not drawn again on its link for this long after its use.
const ID_COOLDOWN: Duration = Duration::from_secs(180);

/// A channel's id on a link.
pub(crate) type LinkChannel = (LinkId, u32);

/// The use of an id on a link.
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

/// All channels of a class.
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
    ack_copies: AckCopies,
    bucket: Bucket,
    /// The same for each prefix, at Mix 1.
    prefixes: Option<Buckets>,
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
            ack_copies: AckCopies::default(),
            bucket: Bucket::new(config.setups(), now),
            prefixes: config.faces_entries().then(|| Buckets::with_subnets(now)),
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
        cx.change(Change::InstallChannel { channel, up, down, keys, lifetime_s, first: 0 });
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
                cx.change(Change::RetireChannel { channel });
            }
        }
    }

    /// Sends the ack cells that are due, drops half-open channels whose ack is overdue and ends cooldowns.
    pub(crate) fn tick(&mut self, cx: &mut Context, links: &mut Links, now: Duration) {
        self.ack_copies.tick(cx, links, now);
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

    /// The time of the next work for [`Channels::tick`].
    pub(crate) fn next_wake(&self, cx: &Context) -> Duration {
        let expires = self.half_open.first_key_value().map(|(_, half)| half.created_at + cx.config.half_open_for());
        let cooled_down = self.cooling_down.front().map(|(until, _)| *until);
        let wakes = [expires, cooled_down, self.ack_copies.due()];
        wakes.into_iter().flatten().min().unwrap_or(Duration::MAX)
    }
}
