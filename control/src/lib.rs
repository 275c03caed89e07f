//! The control plane as state machines: bytes in, bytes and events out (docs/SPEC.md 4, 5).
//!
//! [`Control`] is the control plane of one node: the link handshakes with the previous hop (as
//! responder) and the next hop (as initiator), channel setup and ack, admission. It owns no socket,
//! no thread and no clock. The runner hands in datagrams, control cells and the time; it takes out
//! datagrams, changes for the data plane, and events. Nothing that a peer sends makes it panic, and
//! an answer to a handshake is not longer than the message. Everything refused is counted by [`Refusal`].
//!
//! Neighbours: `wire` below (bytes and keys), and the node above, which bridges it to the data plane.

#![warn(unreachable_pub)]

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Header};
use wire::ids::{LinkId, Side, SlotId};
use wire::link::LinkContent;

mod channel;
mod config;
mod contacts;
mod context;
mod cookie;
mod counters;
mod datagram;
pub mod draw;
mod entry;
mod fragments;
mod io;
mod link;
mod noise;
mod prefix;
mod rate;
mod slot;
#[cfg(test)]
mod tests;
pub mod trust;

pub use channel::ACK_COPIES_MAX;
pub use config::{BadConfig, Caps, Config, NodeKeys, Role, Timing, TrustSetup};
pub use counters::{Counters, Refusal};
pub use entry::SETUPS_IN_FLIGHT_MAX;
pub use io::{Change, Event, Input, Output};
pub use rate::Rate;

use crate::channel::{Channels, Keys};
use crate::contacts::{Contacts, Static};
use crate::context::Context;
use crate::entry::Entry;
use crate::link::{Links, content_len};
use crate::trust::hop::{HopSetup, HopState, HopTrust, Step};
use crate::trust::state::State;
use crate::trust::status::TrustStatus;
use crate::trust::sync::{Peer, Refused};
use crate::trust::user::UserTrust;
use crate::trust::view::{BadDescriptor, Taken};
use crate::trust::{SignedDescriptor, View};

/// Most cells of a setup on one link: class S, seven mixes, suite 2, link 1.
pub const SETUP_CELLS_MAX: usize = 37;

/// Most cells of asks and parts that follow from one tick: answers to entries, and what both neighbours lack.
pub const TRUST_CELLS_MAX: usize = trust::sync::CELLS_MAX;

/// After a pause at least this long, neighbours' clocks are ignored for a while. A shorter delay does not matter.
const LATE_CLOCK: Duration = Duration::from_millis(500);

/// The control plane of one node.
///
/// `now` is any monotonic clock, the same at every call; the host's clock is read at each tick. After each call of
/// [`Control::handle`] or [`Control::tick`] the runner takes all outputs. It calls `tick` no later than
/// [`Control::next_wake`].
pub struct Control {
    cx: Context,
    links: Links,
    channels: Channels,
    part: Part,
    /// When trust has something to do.
    trust_due: Duration,
    /// Something may have changed that since.
    trust_touched: bool,
}

/// What only an entry, or only a hop does.
#[expect(clippy::large_enum_variant, reason = "a node has one")]
enum Part {
    Entry(Entry, UserTrust),
    Hop(HopTrust),
}

impl Control {
    /// A node without links. Its first tick is due at once.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn new(
        config: Config,
        trust: TrustSetup,
        rng: ChaCha20Rng,
        now: Duration,
        wall: SystemTime,
    ) -> Result<Control, BadConfig> {
        config.check(&trust, wall)?;
        let TrustSetup { view, keys, state } = trust;
        let chain = *view.chain();
        let (links, channels) = (Links::new(&config, &chain, now), Channels::new(&config, now));
        let (secrets, keys): (Vec<_>, Vec<_>) = keys.into_iter().map(NodeKeys::split).unzip();
        let mut contacts = Contacts::default();
        contacts.update(&config, &view);
        let part = match Entry::new(&config) {
            Some(entry) => Part::Entry(entry, UserTrust::new(view, now)),
            None => {
                let replay_capacity = config.replay_places() as usize;
                let setup = HopSetup { position: config.position, view, keys, state, replay_capacity };
                Part::Hop(HopTrust::new(setup, now, unix_ms(wall)))
            }
        };
        let statics = secrets.into_iter().map(Static::new).collect();
        let counters = Counters::default();
        let wall_at_zero = unix_ns(wall) - now.as_nanos() as i128;
        let (linked, out) = (Vec::new(), Default::default());
        let cx = Context { config, statics, contacts, linked, rng, out, wall_at_zero, counters };
        Ok(Control { cx, links, channels, part, trust_due: now, trust_touched: true })
    }

    /// The host's clock in ms since 1970, as far as the last tick has set it.
    fn wall_ms(&self, now: Duration) -> u64 {
        (self.cx.unix_ns(now) / 1_000_000) as u64
    }

    /// Takes in a datagram, a cell, or a report from the data plane.
    pub fn handle(&mut self, now: Duration, input: Input<'_>) {
        let Control { cx, links, channels, part, .. } = self;
        match input {
            Input::Handshake { side, from, datagram } => {
                if links.handshake(cx, now, side, from, datagram) {
                    self.tick_entry(now);
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
                if channels.ended(cx, links, now, channel, reason) {
                    if let Part::Entry(entry, _) = part {
                        entry.ended(channel);
                    }
                    self.tick_entry(now);
                }
            }
        }
        self.follow_trust(now);
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
        let wall_ms = self.wall_ms(now);
        let Control { cx, links, channels, part, .. } = self;
        let content = links.open(cx, now, (link, slot), from, header, body)?;
        match (header.kind, part) {
            (CellKind::Setup, Part::Hop(trust)) => {
                let mut keys = Keys { keyring: trust.keyring_mut(), wall_ms };
                channels.shard(cx, links, &mut keys, now, (link, header), content)
            }
            (CellKind::Ack, Part::Hop(_)) => channels.ack(cx, links, now, (link, header), content),
            (CellKind::Ack, Part::Entry(entry, _)) => {
                let done = entry.ack(cx, channels, links, now, (link, header), content);
                self.tick_entry(now);
                done
            }
            (CellKind::Link, _) => match LinkContent::from_wire(content[0]) {
                Some(LinkContent::Ask | LinkContent::Part) => self.take_trust(now, link, content),
                Some(kind @ (LinkContent::Path | LinkContent::Echo)) => links.take_path(cx, now, link, kind, content),
                Some(
                    LinkContent::Dummy
                    | LinkContent::Keepalive
                    | LinkContent::Clock
                    | LinkContent::Report
                    | LinkContent::Company,
                ) => Ok(()),
                None => Err(Refusal::UnknownLinkContent),
            },
            (CellKind::Data, _) | (CellKind::Setup, Part::Entry(..)) => Err(Refusal::CellMalformed),
        }
    }

    /// Takes in an ask or a part.
    fn take_trust(&mut self, now: Duration, link: LinkId, content: &[u8]) -> Result<(), Refusal> {
        // The cell may be the first of its link.
        self.follow_links(now);
        let wall_ms = self.wall_ms(now);
        let taken = match &mut self.part {
            Part::Hop(trust) => trust.take(now, wall_ms, link, content),
            Part::Entry(_, trust) => trust.take(now, wall_ms, link, content),
        };
        // What a stranger may send without end costs nothing more.
        self.trust_touched |= !matches!(taken, Err(Refused::RateLimited | Refused::NotForEntries));
        self.tick_entry(now);
        taken.map_err(|why| match why {
            Refused::Malformed(_) => Refusal::TrustMalformed,
            Refused::NotForEntries => Refusal::TrustFromEntry,
            Refused::RateLimited => Refusal::TrustRateLimited,
            Refused::Item => Refusal::TrustItem,
        })
    }

    fn tick_entry(&mut self, now: Duration) {
        // Before a setup leaves on a new link: it must not be made for the bundle of the link before.
        self.follow_links(now);
        let wall_ms = self.wall_ms(now);
        let Control { cx, links, channels, part, .. } = self;
        if let Part::Entry(entry, trust) = part {
            entry.tick(cx, channels, links, trust, (now, wall_ms));
            self.trust_touched = true;
        }
    }

    /// When trust has something to do.
    fn trust_wake(&self, now: Duration) -> Duration {
        match &self.part {
            Part::Hop(trust) => trust.next_wake(now, self.wall_ms(now)),
            Part::Entry(_, trust) => trust.next_wake(),
        }
    }

    /// Reports links that came up or went down to trust.
    fn follow_links(&mut self, now: Duration) {
        let Control { cx, links, part, trust_touched, .. } = self;
        for (id, is_up) in std::mem::take(&mut cx.linked) {
            *trust_touched = true;
            let side = links.link_mut(id).filter(|_| is_up).map(|link| link.side());
            match (&mut *part, side) {
                (Part::Hop(trust), Some(side)) => {
                    let is_entry = side == Side::Up && cx.config.faces_entries();
                    let peer = if is_entry { Peer::Entry } else { Peer::Hop };
                    trust.link_up(id, peer, content_len(&cx.config, side), now);
                }
                (Part::Hop(trust), None) => trust.link_down(id),
                (Part::Entry(_, trust), Some(side)) => trust.link_up(id, content_len(&cx.config, side), now),
                (Part::Entry(_, trust), None) => trust.link_down(id),
            }
        }
    }

    /// Hands on what trust wants to be sent, saved and reported, and notes what has changed of the neighbours' keys and
    /// addresses.
    fn follow_trust(&mut self, now: Duration) {
        self.follow_links(now);
        if !std::mem::take(&mut self.trust_touched) {
            return;
        }
        self.trust_due = self.trust_wake(now);
        let Control { cx, links, part, .. } = self;
        let (steps, view) = match part {
            Part::Hop(trust) => (trust.steps(), trust.view()),
            Part::Entry(_, trust) => (trust.steps(), trust.durable()),
        };
        cx.contacts.update(&cx.config, view);
        // Of several changes of the state the last one is written.
        let last_save =
            steps.iter().rev().find_map(|step| if let Step::Save(number) = step { Some(*number) } else { None });
        for step in steps {
            match step {
                Step::Save(number) if Some(number) != last_save => {}
                Step::Save(number) => cx.out.push_back(Output::Save(number)),
                Step::Send(link, content) => links.inject_trust(cx, now, link, &content),
                Step::Event(event) => cx.event(Event::Trust(event)),
            }
        }
    }

    /// The node did not run from `since` to `now`, because it was stopped or the host is busy. It may not have read yet
    /// what came meanwhile: a silent next hop has its time again (SPEC 4.6.2), and clocks that arrive are late.
    pub fn stalled(&mut self, since: Duration, now: Duration) {
        self.links.stalled(now);
        if now.saturating_sub(since) >= LATE_CLOCK {
            match &mut self.part {
                Part::Entry(_, trust) => trust.stalled(now),
                Part::Hop(trust) => trust.stalled(now),
            }
        }
    }

    /// Does everything that is due at `now`, when the host's clock says `wall`.
    pub fn tick(&mut self, now: Duration, wall: SystemTime) {
        let wall_at_zero = unix_ns(wall) - now.as_nanos() as i128;
        self.trust_touched = true;
        let has_stepped = (wall_at_zero - self.cx.wall_at_zero).abs() > CLOCK_STEP_NS;
        self.cx.wall_at_zero = wall_at_zero;
        let Control { cx, links, channels, part, .. } = self;
        for link in links.expire(cx, now) {
            let is_down = links.link_mut(link).is_some_and(|link| link.side() == Side::Down);
            channels.drop_link(cx, links, now, link);
            if is_down && let Part::Entry(entry, _) = part {
                entry.drop_link(channels, now);
            }
            links.retire(cx, link);
        }
        links.initiate(cx, now, wall);
        channels.tick(cx, links, now);
        self.tick_entry(now);
        if has_stepped || self.trust_due.min(self.trust_wake(now)) <= now {
            let wall_ms = self.wall_ms(now);
            match &mut self.part {
                Part::Hop(trust) => {
                    if has_stepped {
                        trust.clock_stepped(now);
                    }
                    trust.tick(&mut self.cx.rng, now, wall_ms);
                }
                Part::Entry(_, trust) => trust.tick(now, wall_ms),
            }
        }
        self.follow_trust(now);
        self.cx.rekey();
    }

    /// Entry: keeps at least this many channels up from now on. The cost of keeping one up does not grow with their
    /// number.
    pub fn want_channels(&mut self, now: Duration, channels: usize) {
        if let Part::Entry(entry, _) = &mut self.part {
            entry.grow(channels);
        }
        self.tick_entry(now);
        self.follow_trust(now);
    }

    /// More handshakes wait than usual: cookies are required for a second.
    pub fn queue_fills(&mut self, now: Duration) {
        self.links.require_cookies(now);
    }

    /// What belongs on disk: see [`Output::Save`].
    pub fn state(&self) -> State {
        match &self.part {
            Part::Hop(trust) => State::of(trust.view(), trust.state().clone()),
            Part::Entry(_, trust) => State::of(trust.durable(), HopState::default()),
        }
    }

    /// The state is on disk as it was at the [`Output::Save`] with this number.
    pub fn saved(&mut self, now: Duration, number: u64) {
        self.trust_touched = true;
        let wall_ms = self.wall_ms(now);
        if let Part::Hop(trust) = &mut self.part {
            trust.saved(number, now, wall_ms);
        }
        self.follow_trust(now);
    }

    /// The names of an [`Output::Resolve`] have these addresses.
    pub fn resolved(&mut self, now: Duration, addresses: Vec<SocketAddr>) {
        self.links.resolved(&mut self.cx, now, addresses);
    }

    /// Takes in a descriptor of any hop of the chain, from a file.
    ///
    /// # Errors
    /// It is not of this chain, not valid yet, or revoked.
    pub fn load_descriptor(&mut self, now: Duration, descriptor: SignedDescriptor) -> Result<Taken, BadDescriptor> {
        self.trust_touched = true;
        let wall_ms = self.wall_ms(now);
        let taken = match &mut self.part {
            Part::Hop(trust) => {
                let hop = trust.view().position(&descriptor.identity).ok_or(BadDescriptor::Unknown)?;
                trust.take_descriptor(hop, descriptor, now, wall_ms)
            }
            Part::Entry(_, trust) => {
                let hop = trust.durable().position(&descriptor.identity).ok_or(BadDescriptor::Unknown)?;
                trust.take_descriptor(hop, descriptor, wall_ms)
            }
        };
        self.follow_trust(now);
        taken
    }

    /// Replaces the private keys of a hop, after its key files were read again.
    pub fn load_keys(&mut self, now: Duration, keys: Vec<NodeKeys>) {
        self.trust_touched = true;
        let Part::Hop(trust) = &mut self.part else { return };
        let (secrets, keys): (Vec<_>, Vec<_>) = keys.into_iter().map(NodeKeys::split).unzip();
        self.cx.statics = secrets.into_iter().map(Static::new).collect();
        trust.set_keys(keys);
        self.follow_trust(now);
    }

    /// The descriptors that this node uses for contact and writes to disk, and those of a hop for everything else.
    pub fn view(&self) -> &View {
        match &self.part {
            Part::Hop(trust) => trust.view(),
            Part::Entry(_, trust) => trust.durable(),
        }
    }

    /// The records and bundles that this node holds, with their descriptors: at an entry, what came on its link.
    pub fn bundles(&self) -> &View {
        match &self.part {
            Part::Hop(trust) => trust.view(),
            Part::Entry(_, trust) => trust.session(),
        }
    }

    /// What this node holds of the chain's descriptors and bundles.
    pub fn trust_status(&self, now: Duration) -> TrustStatus {
        let (sync, can_sign) = match &self.part {
            Part::Hop(trust) => (trust.sync(), trust.can_sign(self.wall_ms(now))),
            Part::Entry(_, trust) => (trust.sync(), false),
        };
        TrustStatus::of(self.view(), self.bundles(), sync, self.wall_ms(now), can_sign)
    }

    /// The next output, in binding order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.cx.out.pop_front()
    }

    /// The time at which the next tick is due. In the past if it is due already.
    pub fn next_wake(&self) -> Duration {
        let entry = match &self.part {
            Part::Entry(entry, _) => entry.next_wake(&self.links),
            Part::Hop(_) => Duration::MAX,
        };
        self.links.next_wake(&self.cx).min(self.channels.next_wake(&self.cx)).min(entry).min(self.trust_due)
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

/// The host's clock was set if it has moved by so much more or less than the monotonic one.
const CLOCK_STEP_NS: i128 = 100_000_000;

/// Nanoseconds since 1970.
fn unix_ns(wall: SystemTime) -> i128 {
    wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128)
}

/// Milliseconds since 1970.
fn unix_ms(wall: SystemTime) -> u64 {
    wall.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

// Unit tests need private fields and the simulator of the integration tests, which names this crate `control`.
#[cfg(test)]
extern crate self as control;
#[cfg(test)]
#[allow(dead_code, unreachable_pub)]
#[path = "../tests/it/sim/mod.rs"]
mod sim;
