//! Setups and acks at a hop (SPEC 5.3-5.5, 5.9).
//!
//! A hop joins the shards of a setup, opens it, records the channel as half-open, and only then sends
//! the rest on. The ack contents come back, each passes once, and the channel is installed before the
//! last one leaves. Checks of a setup run from cheap to expensive: form, buckets, caps, replay, and
//! public-key work last. The keys of the epochs are [`crate::trust::keyring`]'s.

use std::net::IpAddr;
use std::time::Duration;

use rand::Rng;
use wire::cell::{CellKind, Direction, Header};
use wire::ids::{ChannelKeys, LinkId};
use wire::setup::{self, HopSecrets, Info};
use wire::shards::Shards;

use super::{Channels, HalfOpen, LinkChannel, Use};
use crate::config::Config;
use crate::context::Context;
use crate::counters::Refusal;
use crate::draw::draw_secret;
use crate::fragments::{Joined, Parts};
use crate::link::{Links, Outgoing};
use crate::prefix::{Prefix, has_its_share, is_same_subnet};
use crate::trust::keyring::{Keyring, NotOpened};

/// What opens setups.
pub(crate) struct Keys<'a> {
    pub(crate) keyring: &'a mut Keyring,
    /// This node's clock.
    pub(crate) wall_ms: u64,
}

/// The info that every setup of this chain carries.
pub(crate) fn info(config: &Config) -> Info {
    Info { suite: config.suite(), class: config.shape.class(), paced: false, lifetime_s: config.lifetime_s(), first: 0 }
}

impl Channels {
    /// Hop: takes in a setup shard from the previous one.
    pub(crate) fn shard(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        keys: &mut Keys<'_>,
        now: Duration,
        (link, header): (LinkId, &Header),
        content: &[u8],
    ) -> Result<(), Refusal> {
        let (shape, position) = (cx.config.shape, cx.config.position);
        let up = (link, header.channel);
        let shards = setup::shards(shape, cx.config.suite(), position);
        if usize::from(header.sub) >= shards.total() {
            return Err(Refusal::FragmentMalformed);
        }
        let state = links.link_mut(link).ok_or(Refusal::UnknownSlot)?;
        if state.decided_setups.contains(now, header.channel) {
            cx.counters.surplus_cells += 1;
            return Ok(());
        }
        if self.ids.contains_key(&up) {
            return Err(Refusal::ChannelInUse);
        }

        let (joined, given_up) = state.incomplete_setups.join(now, header.channel, header.sub, shards.data, content);
        (0..given_up).for_each(|_| cx.refuse(Refusal::SetupIncomplete));
        match joined {
            Joined::Incomplete => Ok(()),
            Joined::Duplicate => Err(Refusal::FragmentMalformed),
            Joined::Complete(parts) => {
                state.decided_setups.insert(now, header.channel);
                self.setup(cx, links, keys, now, up, shards, &parts)
            }
        }
    }

    /// Hop: opens a setup and passes it on, or acknowledges it at the exit.
    #[allow(clippy::too_many_arguments)]
    fn setup(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        keys: &mut Keys<'_>,
        now: Duration,
        up: LinkChannel,
        shards: Shards,
        parts: &Parts,
    ) -> Result<(), Refusal> {
        let (shape, position) = (cx.config.shape, cx.config.position);
        let is_exit = position == shape.hops();
        let next_hop = match links.down_ready() {
            _ if is_exit => None,
            Some(next_hop) => Some(next_hop),
            // The nodes of a chain start in any order, so this is not a fault yet. The entry retries.
            None if links.is_starting(now) => return Err(Refusal::NextHopStarting),
            None => return Err(Refusal::NextHopDown),
        };
        self.admit(cx, links, now, up.0)?;

        let mut onion = shards.decode(&parts.indexes, &parts.bytes);
        onion.truncate(setup::onion_len(shape, cx.config.suite(), position));
        let opened = keys.keyring.open(shape, info(&cx.config), &onion, keys.wall_ms).map_err(|why| match why {
            NotOpened::Replayed => Refusal::SetupReplayed,
            NotOpened::Full => Refusal::ReplayCacheFull,
            NotOpened::Invalid(_) => Refusal::SetupInvalid,
        })?;
        let rest = opened.rest.clone();
        let y = draw_secret(&mut cx.rng);
        let (ephemeral, secrets) = opened.answer(y).map_err(|_| Refusal::SetupInvalid)?;
        cx.counters.setups += 1;

        let Some(next_hop) = next_hop else {
            self.acknowledge(cx, links, now, up, &ephemeral, secrets);
            return Ok(());
        };
        if self.half_open.len() >= cx.config.caps.half_open {
            // The oldest has had the time that an ack may take (SPEC 5.9).
            let oldest = self.half_open.first_key_value().map(|(serial, _)| *serial);
            oldest.into_iter().for_each(|serial| self.drop_half_open(links, now, serial));
            cx.refuse(Refusal::HalfOpenReplaced);
        }
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

    /// Checks buckets and caps.
    fn admit(&mut self, cx: &mut Context, links: &mut Links, now: Duration, up: LinkId) -> Result<(), Refusal> {
        let caps = cx.config.caps;
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
            let home = link.home();
            if let Some(prefix) = cx.config.prefix(home) {
                self.admit_of_prefix(cx, links, now, prefix, home)?;
            }
        }
        if !self.bucket.take(now) {
            return Err(Refusal::SetupsRateLimited);
        }
        // Retired channels count until the data plane has reported their end.
        if self.open.len() - self.free.len() + self.half_open.len() >= caps.channels {
            return Err(Refusal::ChannelsFull);
        }
        Ok(())
    }

    /// Mix 1: checks the share and the bucket of the prefix of `home`, and of IPv6 the share of its /64 in the prefix.
    fn admit_of_prefix(
        &mut self,
        cx: &mut Context,
        links: &Links,
        now: Duration,
        prefix: Prefix,
        home: IpAddr,
    ) -> Result<(), Refusal> {
        let caps = &cx.config.caps;
        let (half_open, open) = links.channels_of(|home| cx.config.prefix(home) == Some(prefix));
        if has_its_share(half_open, self.half_open.len(), caps.half_open) {
            return Err(Refusal::PrefixHalfOpenFull);
        }
        let (own, all) = (open + half_open, self.open_count + self.half_open.len());
        let (half_open, open) = links.channels_of(|other| is_same_subnet(home, other));
        if own >= caps.channels_per_prefix
            || has_its_share(own, all, caps.channels)
            || has_its_share(open + half_open, own, caps.channels_per_prefix)
        {
            return Err(Refusal::PrefixChannelsFull);
        }
        let passes = self.prefixes.as_mut().is_none_or(|prefixes| prefixes.take(&mut cx.rng, now, home));
        passes.then_some(()).ok_or(Refusal::PrefixSetupsRateLimited)
    }

    /// Exit: opens the channel and sends the ack.
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
            self.ack_copies.send(cx, links, now, up, sub, content);
        }
    }

    /// Mix: covers the first cell of an ack content from the next hop and passes the content on.
    pub(crate) fn ack(
        &mut self,
        cx: &mut Context,
        links: &mut Links,
        now: Duration,
        (link, header): (LinkId, &Header),
        content: &mut [u8],
    ) -> Result<(), Refusal> {
        let shape = cx.config.shape;
        let down = (link, header.channel);
        let cells = setup::ack_cells(shape);
        if usize::from(header.sub) >= cells {
            return Err(Refusal::UnexpectedAck);
        }
        let serial = match self.used_by(down) {
            Some(Use::HalfOpen(serial)) => serial,
            Some(Use::Open(_)) => {
                cx.counters.surplus_cells += 1;
                return Ok(());
            }
            _ => return Err(Refusal::UnexpectedAck),
        };
        let half = self.half_open.get_mut(&serial).ok_or(Refusal::UnexpectedAck)?;
        // A second pass would use the same keystream twice.
        let bit = 1 << header.sub;
        if half.passed & bit != 0 {
            cx.counters.surplus_cells += 1;
            return Ok(());
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
        self.ack_copies.send(cx, links, now, up, sub, content.to_vec());
        Ok(())
    }
}

/// Sends an onion to the next hop in shards, one in each cell; random bytes fill up the last data shard.
pub(crate) fn send_setup(cx: &mut Context, links: &mut Links, now: Duration, down: LinkChannel, onion: &[u8]) {
    let (shape, link) = (cx.config.shape, cx.config.position + 1);
    let content_len = shape.control_content(Direction::Forward, link);
    let mut shards: Vec<Vec<u8>> = onion.chunks(content_len).map(<[u8]>::to_vec).collect();
    if let Some(last) = shards.last_mut() {
        let filled = last.len();
        last.resize(content_len, 0);
        cx.rng.fill_bytes(&mut last[filled..]);
    }
    setup::shards(shape, cx.config.suite(), link).encode(&mut shards);
    for (sub, content) in shards.iter().enumerate() {
        let cell = Outgoing { kind: CellKind::Setup, channel: down.1, sub: sub as u8, content, at_once: false };
        links.inject(cx, now, down.0, &cell);
    }
}

// Every setup fits the indexes of its cells, and every ack the bits of `passed`. Class S has the
// shortest cells, and link 1 of the longest chain the longest setup.
#[cfg(test)]
#[test]
fn longest_setup_and_ack_fit_their_indexes() {
    let shape = wire::cell::Shape::new(wire::cell::Class::S, wire::cell::MAX_HOPS).unwrap();
    let most = (1..=8).map(|link| setup::shards(shape, setup::Suite::Hybrid, link).total()).max();
    assert_eq!(most, Some(crate::SETUP_CELLS_MAX));
    assert!(setup::ack_cells(shape) <= 8);
}
