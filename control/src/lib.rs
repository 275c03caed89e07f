//! Key exchange as state machines: bytes in, bytes and events out (docs/SPEC.md 4, 5).
//!
//! [`Control`] is one node's whole control plane: the link handshakes towards the previous hop
//! (which it answers) and the next hop (which it starts), channel setup and ack, admission. It owns
//! no socket, no thread and no clock: the runner hands in datagrams, control cells and the time, and
//! takes out datagrams, operations on the data plane's table, and events. Nothing a peer sends makes
//! it panic or answer with more than it got; what it refuses it counts by [`Refusal`].
//!
//! Neighbours: `wire` below (bytes and keys); the node above, which joins it with the data plane.

use std::time::{Duration, SystemTime};

use rand_chacha::ChaCha20Rng;
use wire::cell::Kind;
use wire::ids::Side;
use wire::link::LinkContent;

mod admission;
mod channel;
mod config;
mod core;
mod counters;
mod datagram;
pub mod descriptor;
mod entry;
mod io;
mod link;
mod noise;
mod slot;
#[cfg(test)]
mod tests;

pub use config::{BadConfig, Caps, Config, NextHop, Rate, Role, Timing};
pub use counters::{Counters, Refusal};
pub use descriptor::{Descriptor, DescriptorError, Identity};
pub use io::{DataOp, Event, Input, Output};

use crate::channel::Channels;
use crate::core::Core;
use crate::entry::Entry;
use crate::link::Links;

/// One node's control plane.
///
/// `now` is any monotonic clock, the same at every call; `wall` is the host's. After each call of
/// [`Control::handle`] or [`Control::tick`] the runner takes all outputs, and calls `tick` no later
/// than [`Control::next_wake`].
pub struct Control {
    core: Core,
    links: Links,
    channels: Channels,
    entry: Option<Entry>,
}

impl Control {
    /// A node that knows nobody yet. Its first tick is due at once.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(config: Config, rng: ChaCha20Rng, now: Duration) -> Result<Control, BadConfig> {
        config.check()?;
        Ok(Control {
            links: Links::new(&config, now),
            channels: Channels::new(&config, now),
            entry: Entry::new(&config),
            core: Core { config, rng, out: Default::default(), counters: Counters::default() },
        })
    }

    /// Takes in a datagram, a cell, or a report of the data plane.
    pub fn handle(&mut self, now: Duration, _wall: SystemTime, input: Input<'_>) {
        let Control { core, links, channels, entry } = self;
        match input {
            Input::Handshake { side, from, datagram } => {
                if links.handshake(core, now, side, from, datagram)
                    && let Some(entry) = entry
                {
                    entry.tick(core, channels, links, now);
                }
            }
            Input::Cell { link, slot, from, header, body } => {
                let done = links.open(core, now, (link, slot), from, &header, body).and_then(|(_, content)| {
                    match (header.kind, entry.as_mut()) {
                        (Kind::Setup, None) => channels.fragment(core, links, now, (link, &header), content),
                        (Kind::Ack, None) => channels.ack(core, links, now, (link, &header), content),
                        (Kind::Ack, Some(entry)) => {
                            let done = entry.ack(core, channels, links, now, (link, &header), content);
                            entry.tick(core, channels, links, now);
                            done
                        }
                        (Kind::Link, _) => match LinkContent::from_wire(content[0]) {
                            Some(_) => Ok(()),
                            None => Err(Refusal::LinkKind),
                        },
                        (Kind::Data, _) | (Kind::Setup, Some(_)) => Err(Refusal::CellForm),
                    }
                });
                if let Err(why) = done {
                    core.refuse(why);
                }
            }
            Input::Promoted { link, slot, from } => links.promoted(core, now, (link, slot), from),
            Input::Activity { link, received, sent } => links.activity(now, link, received, sent),
            Input::ChannelEnded { channel, reason } => {
                if channels.ended(core, links, now, channel, reason)
                    && let Some(entry) = entry
                {
                    entry.ended(channel);
                    entry.tick(core, channels, links, now);
                }
            }
        }
        core.rekey();
    }

    /// Does what is due by now.
    pub fn tick(&mut self, now: Duration, wall: SystemTime) {
        let Control { core, links, channels, entry } = self;
        for link in links.expire(core, now) {
            let is_down = links.link_mut(link).is_some_and(|link| link.side() == Side::Down);
            channels.drop_link(core, links, now, link);
            if is_down && let Some(entry) = entry {
                entry.drop_link(channels, now);
            }
            links.retire(core, link);
        }
        links.call(core, now, wall);
        channels.tick(core, links, now);
        if let Some(entry) = entry {
            entry.tick(core, channels, links, now);
        }
        core.rekey();
    }

    /// Entry: keeps at least so many channels up from now on. What it costs to keep one does not grow with their
    /// number.
    pub fn want_channels(&mut self, now: Duration, channels: usize) {
        let Control { core, links, channels: table, entry } = self;
        if let Some(entry) = entry {
            entry.grow(channels);
            entry.tick(core, table, links, now);
        }
    }

    /// The next output, in binding order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.core.out.pop_front()
    }

    /// When the next tick is due; in the past if it is due already.
    pub fn next_wake(&self) -> Duration {
        let entry = self.entry.as_ref().map_or(Duration::MAX, |entry| entry.next_wake(&self.links));
        self.links.next_wake(&self.core).min(self.channels.next_wake(&self.core)).min(entry)
    }

    /// A datagram that [`Control::poll_output`] gave out could not be kept until it may leave.
    pub fn lost_outgoing(&mut self) {
        self.core.refuse(Refusal::OutgoingFull);
    }

    /// Its bounds.
    pub fn caps(&self) -> &Caps {
        &self.core.config.caps
    }

    /// What was done and refused so far.
    pub fn counters(&self) -> &Counters {
        &self.core.counters
    }

    /// Links that exist, whether up or not.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Open channels.
    pub fn open_channels(&self) -> usize {
        self.channels.open_count()
    }

    /// Channels set up towards the exit and not yet acknowledged.
    pub fn half_open(&self) -> usize {
        self.channels.half_open_count()
    }
}

#[cfg(test)]
extern crate self as control;
#[cfg(test)]
#[allow(dead_code, unreachable_pub)]
#[path = "../tests/it/sim.rs"]
mod sim;
