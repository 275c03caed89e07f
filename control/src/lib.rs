//! The control plane as state machines: bytes in, bytes and events out (docs/SPEC.md 4, 5).
//!
//! [`Control`] is the control plane of one node: the link handshakes with the previous hop (as
//! responder) and the next hop (as initiator), channel setup and ack, admission. It owns no socket,
//! no thread and no clock. The runner hands in datagrams, control cells and the time; it takes out
//! datagrams, changes for the data plane, and events. Nothing that a peer sends makes it panic or
//! answer with more bytes than it received. Everything refused is counted by [`Refusal`].
//!
//! Neighbours: `wire` below (bytes and keys), and the node above, which bridges it to the data plane.

#![warn(unreachable_pub)]

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Header};
use wire::ids::{LinkId, Side, SlotId};
use wire::link::LinkContent;

mod admission;
mod channel;
mod config;
mod context;
mod counters;
mod datagram;
pub mod descriptor;
mod entry;
mod fragments;
mod io;
mod link;
mod noise;
mod slot;
#[cfg(test)]
mod tests;

pub use channel::ACK_COPIES_MAX;
pub use config::{BadConfig, Caps, Config, NextHop, Rate, Role, Timing};
pub use counters::{Counters, Refusal};
pub use descriptor::{Descriptor, DescriptorError, Identity};
pub use entry::SETUPS_IN_FLIGHT_MAX;
pub use io::{Change, Event, Input, Output};

use crate::channel::Channels;
use crate::context::Context;
use crate::entry::Entry;
use crate::link::Links;

/// Most cells of a setup on one link: class S, seven mixes, suite 2, link 1.
pub const SETUP_CELLS_MAX: usize = 37;

/// The control plane of one node.
///
/// `now` is any monotonic clock, the same at every call. After each call of [`Control::handle`] or
/// [`Control::tick`] the runner takes all outputs. It calls `tick` no later than
/// [`Control::next_wake`].
pub struct Control {
    cx: Context,
    links: Links,
    channels: Channels,
    entry: Option<Entry>,
}

impl Control {
    /// A node without links. Its first tick is due at once.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(config: Config, rng: ChaCha20Rng, now: Duration) -> Result<Control, BadConfig> {
        config.check()?;
        Ok(Control {
            links: Links::new(&config, now),
            channels: Channels::new(&config, now),
            entry: Entry::new(&config),
            cx: Context { config, rng, out: Default::default(), counters: Counters::default() },
        })
    }

    /// Takes in a datagram, a cell, or a report from the data plane.
    pub fn handle(&mut self, now: Duration, input: Input<'_>) {
        let Control { cx, links, channels, entry } = self;
        match input {
            Input::Handshake { side, from, datagram } => {
                if links.handshake(cx, now, side, from, datagram)
                    && let Some(entry) = entry
                {
                    entry.tick(cx, channels, links, now);
                }
            }
            Input::Cell { link, slot, from, header, body } => {
                if let Err(why) = self.handle_cell(now, (link, slot), from, &header, body) {
                    self.cx.refuse(why);
                }
            }
            Input::Promoted { link, slot, from } => links.promoted(cx, now, (link, slot), from),
            Input::Activity { link, received, sent } => links.activity(now, link, received, sent),
            Input::ChannelEnded { channel, reason } => {
                if channels.ended(cx, links, now, channel, reason)
                    && let Some(entry) = entry
                {
                    entry.ended(channel);
                    entry.tick(cx, channels, links, now);
                }
            }
        }
        self.cx.rekey();
    }

    fn handle_cell(
        &mut self,
        now: Duration,
        (link, slot): (LinkId, SlotId),
        from: SocketAddr,
        header: &Header,
        body: &mut [u8],
    ) -> Result<(), Refusal> {
        let Control { cx, links, channels, entry } = self;
        let content = links.open(cx, now, (link, slot), from, header, body)?;
        match (header.kind, entry) {
            (CellKind::Setup, None) => channels.shard(cx, links, now, (link, header), content),
            (CellKind::Ack, None) => channels.ack(cx, links, now, (link, header), content),
            (CellKind::Ack, Some(entry)) => {
                let done = entry.ack(cx, channels, links, now, (link, header), content);
                entry.tick(cx, channels, links, now);
                done
            }
            (CellKind::Link, _) => LinkContent::from_wire(content[0]).map(drop).ok_or(Refusal::UnknownLinkContent),
            (CellKind::Data, _) | (CellKind::Setup, Some(_)) => Err(Refusal::CellMalformed),
        }
    }

    /// Does everything that is due at `now`; `wall` is the host's clock, for the timestamps of handshakes.
    pub fn tick(&mut self, now: Duration, wall: SystemTime) {
        let Control { cx, links, channels, entry } = self;
        for link in links.expire(cx, now) {
            let is_down = links.link_mut(link).is_some_and(|link| link.side() == Side::Down);
            channels.drop_link(cx, links, now, link);
            if is_down && let Some(entry) = entry {
                entry.drop_link(channels, now);
            }
            links.retire(cx, link);
        }
        links.initiate(cx, now, wall);
        channels.tick(cx, links, now);
        if let Some(entry) = entry {
            entry.tick(cx, channels, links, now);
        }
        cx.rekey();
    }

    /// Entry: keeps at least this many channels up from now on. The cost of keeping one up does not grow with their
    /// number.
    pub fn want_channels(&mut self, now: Duration, channels: usize) {
        let Control { cx, links, channels: table, entry } = self;
        if let Some(entry) = entry {
            entry.grow(channels);
            entry.tick(cx, table, links, now);
        }
    }

    /// The next output, in binding order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.cx.out.pop_front()
    }

    /// The time at which the next tick is due. In the past if it is due already.
    pub fn next_wake(&self) -> Duration {
        let entry = self.entry.as_ref().map_or(Duration::MAX, |entry| entry.next_wake(&self.links));
        self.links.next_wake(&self.cx).min(self.channels.next_wake(&self.cx)).min(entry)
    }

    /// Counts a datagram from [`Control::poll_output`] that found the send queue full.
    pub fn lost_outgoing(&mut self) {
        self.cx.refuse(Refusal::OutgoingFull);
    }

    pub fn caps(&self) -> &Caps {
        &self.cx.config.caps
    }

    pub fn counters(&self) -> &Counters {
        &self.cx.counters
    }

    /// Number of links, whether up or not.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Number of open channels.
    pub fn open_channels(&self) -> usize {
        self.channels.open_count()
    }

    /// The time for which the next hop has not replied although this node sends to it: cells without an answer, or
    /// handshakes since the start or since the link was lost. None while it replies, and at the exit.
    pub fn next_hop_silence(&self, now: Duration) -> Option<Duration> {
        self.links.next_hop_silence(&self.cx, now)
    }

    /// Number of channels that are set up towards the exit and not yet acknowledged.
    pub fn half_open(&self) -> usize {
        self.channels.half_open_count()
    }
}

// Unit tests need private fields and the simulator of the integration tests, which names this crate `control`.
#[cfg(test)]
extern crate self as control;
#[cfg(test)]
#[allow(dead_code, unreachable_pub)]
#[path = "../tests/it/sim.rs"]
mod sim;
