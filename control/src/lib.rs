//! The control plane as state machines: bytes in, bytes and events out (docs/SPEC.md 4, 5).
//!
//! [`Control`] is the control plane of one node: the link handshakes with the previous hop (as
//! responder) and the next hop (as initiator), channel setup and ack, admission, all for each class
//! of its own ([`ClassControl`]), and the trust of all classes. It owns no socket, no thread and no
//! clock. The runner hands in datagrams, control cells and the time; it takes out datagrams, changes
//! for the data plane, and events. Nothing that a peer sends makes it panic, and
//! an answer to a handshake is not longer than the message. Everything refused is counted by [`Refusal`].
//!
//! Neighbours: `wire` below (bytes and keys), and the node above, which bridges it to the data plane.

#![warn(unreachable_pub)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Header};
use wire::ids::{LinkId, Side, SlotId};
use wire::link::LinkContent;
use wire::paced::{MeetingSecret, PacedHeader};

mod channel;
mod class;
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
pub mod paced;
mod prefix;
mod rate;
mod slot;
#[cfg(test)]
mod tests;
pub mod trust;

pub use channel::ACK_COPIES_MAX;
pub use class::ClassControl;
pub use config::{BadConfig, Caps, Config, LINKS_MAX, NodeKeys, Role, Timing, TrustSetup};
pub use counters::{Counters, Refusal};
pub use entry::SETUPS_IN_FLIGHT_MAX;
pub use io::{Change, Event, Input, Output, PacedChange};
pub use rate::Rate;

use crate::channel::Keys;
use crate::contacts::Static;
use crate::link::content_len;
use crate::paced::{ClassTime, Paced, PacedCell};
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
/// Its classes go by their place among the configurations that it was made of. `now` is any monotonic clock, the same
/// at every call; the host's clock is read at each tick. After each call of [`Control::handle`] or [`Control::tick`]
/// the runner takes all outputs. It calls `tick` no later than [`Control::next_wake`].
pub struct Control {
    /// At least one. At a hop the first is that of the chain.
    classes: Vec<ClassControl>,
    trust: Trust,
    /// When trust has something to do.
    trust_due: Duration,
    /// Something may have changed that since.
    trust_touched: bool,
}

/// What all classes share.
pub(crate) enum Trust {
    Entry(UserTrust),
    Hop(HopTrust),
}

impl Trust {
    /// A clock cell of a paced link has come; the neighbour's clock is so much ahead of the host's.
    pub(crate) fn clock_compared(&mut self, link: LinkId, offset_ms: i64) {
        match self {
            Trust::Entry(trust) => trust.clock_compared(link, offset_ms),
            Trust::Hop(trust) => trust.clock_compared(link, offset_ms),
        }
    }
}

impl Control {
    /// A node without links, with one class for each configuration. Its first tick is due at once.
    ///
    /// # Errors
    /// The configurations contradict themselves, or one another.
    pub fn new(
        configs: Vec<Config>,
        trust: TrustSetup,
        mut rng: ChaCha20Rng,
        now: Duration,
        wall: SystemTime,
    ) -> Result<Control, BadConfig> {
        Config::check(&configs, &trust, wall)?;
        let TrustSetup { view, keys, state } = trust;
        let (secrets, keys): (Vec<_>, Vec<_>) = keys.into_iter().map(NodeKeys::split).unzip();
        let statics: Arc<[Static]> = secrets.into_iter().map(Static::new).collect();
        let is_paced = configs[0].paced;
        let (position, replay_capacity) = (configs[0].position, Config::replay_places(&configs) as usize);
        let wall_at_zero = unix_ns(wall) - now.as_nanos() as i128;
        let class = |(place, config)| {
            let rng = ChaCha20Rng::from_rng(&mut rng);
            ClassControl::new(place, config, (&view, statics.clone()), rng, now, wall_at_zero)
        };
        let classes = configs.into_iter().enumerate().map(class).collect();
        let trust = match position {
            0 => Trust::Entry(UserTrust::new(view, is_paced, now)),
            _ => {
                let setup = HopSetup { position, view, is_paced, keys, state, replay_capacity };
                Trust::Hop(HopTrust::new(setup, now, unix_ms(wall)))
            }
        };
        Ok(Control { classes, trust, trust_due: now, trust_touched: true })
    }

    /// Entry: serves this meeting in a paced class from the next batch on whose setup has not begun (SPEC 9.13.8). Its
    /// worker must have been made for a meeting.
    ///
    /// # Panics
    /// The class at this place is not paced, or this is not an entry.
    pub fn meet(&mut self, class: usize, meeting: MeetingSecret) {
        self.classes[class].meet(meeting);
    }

    /// One of its classes, by place.
    ///
    /// # Panics
    /// No class is at that place.
    pub fn class(&self, place: usize) -> &ClassControl {
        &self.classes[place]
    }

    /// Number of its classes.
    pub fn class_count(&self) -> usize {
        self.classes.len()
    }

    /// The host's clock in ms since 1970, as far as the last tick has set it.
    fn wall_ms(&self, now: Duration) -> u64 {
        (self.classes[0].cx.unix_ns(now) / 1_000_000) as u64
    }

    /// The time by which trust judges what comes on its links, in ms since 1970. What an entry asks for and takes in
    /// shows Mix 1 that time, so one that serves paced classes only judges by that of rounds, which Mix 1 knows (SPEC
    /// 9.8.2).
    fn trust_ms(&self, now: Duration) -> u64 {
        let is_paced = matches!(self.trust, Trust::Entry(_)) && self.classes.iter().all(|class| class.paced.is_some());
        let paced = self.classes[0].paced.as_ref().filter(|_| is_paced);
        paced.map_or_else(|| self.wall_ms(now), |paced| paced.round_ms(now))
    }

    /// Takes in a datagram, a cell, or a report from the data plane, of the class at this place.
    ///
    /// # Panics
    /// No class is at that place.
    pub fn handle(&mut self, now: Duration, class: usize, input: Input<'_>) {
        let ClassControl { cx, links, channels, entry, paced } = &mut self.classes[class];
        match input {
            Input::Handshake { side, from, datagram } => {
                let holds = |link| paced.as_ref().is_some_and(|paced| paced.holds(link));
                if links.handshake(cx, now, side, from, datagram, &holds) {
                    self.tick_entry(now);
                }
            }
            Input::Cell { link, slot, from, header, body } => {
                if let Err(why) = self.handle_cell(now, class, (link, slot), from, &header, body) {
                    self.classes[class].cx.refuse(why);
                }
            }
            Input::PacedCell { link, slot, from, header, content, at_ns } => {
                if let Err(why) = self.handle_paced(now, class, (link, slot), from, &header, (content, at_ns)) {
                    self.classes[class].cx.refuse(why);
                }
            }
            Input::Promoted { link, slot, from } => links.promoted(cx, now, (link, slot), from),
            Input::Activity { link, received, sent } => links.activity(cx, now, link, received, sent),
            Input::PacedClockSent { link, number, sent_ns } => {
                paced.iter_mut().for_each(|paced| paced.clock_sent(link, number, sent_ns));
            }
            Input::PacedPlaces(places) => paced.iter_mut().for_each(|paced| paced.places(places)),
            Input::PacedLoops(places) => paced.iter_mut().for_each(|paced| paced.loops(cx, places)),
            Input::ChannelEnded { channel, reason } => {
                if channels.ended(cx, links, now, channel, reason) {
                    if let Some(entry) = entry {
                        entry.ended(channel);
                    }
                    self.tick_entry(now);
                }
            }
        }
        self.follow_trust(now);
        self.rekey();
    }

    /// Replaces all generators: a setup of any class may have drawn from its own.
    fn rekey(&mut self) {
        self.classes.iter_mut().for_each(|class| class.cx.rekey());
    }

    fn handle_cell(
        &mut self,
        now: Duration,
        class: usize,
        (link, slot): (LinkId, SlotId),
        from: SocketAddr,
        header: &Header,
        body: &mut [u8],
    ) -> Result<(), Refusal> {
        let wall_ms = self.wall_ms(now);
        let ClassControl { cx, links, channels, entry, .. } = &mut self.classes[class];
        let content = links.open(cx, now, (link, slot), from, header, body)?;
        match (header.kind, &mut self.trust, entry) {
            (CellKind::Setup, Trust::Hop(trust), _) => {
                let mut keys = Keys { keyring: trust.keyring_mut(), wall_ms };
                channels.shard(cx, links, &mut keys, now, (link, header), content)
            }
            (CellKind::Ack, _, None) => channels.ack(cx, links, now, (link, header), content),
            (CellKind::Ack, _, Some(entry)) => {
                let done = entry.ack(cx, channels, links, now, (link, header), content);
                self.tick_entry(now);
                done
            }
            (CellKind::Link, ..) => match LinkContent::from_wire(content[0]) {
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
            (CellKind::Data, ..) | (CellKind::Setup, Trust::Entry(_), _) => Err(Refusal::CellMalformed),
        }
    }

    fn handle_paced(
        &mut self,
        now: Duration,
        class: usize,
        (link, slot): (LinkId, SlotId),
        from: SocketAddr,
        header: &PacedHeader,
        (content, at_ns): (&[u8], u64),
    ) -> Result<(), Refusal> {
        let ClassControl { cx, links, paced, .. } = &mut self.classes[class];
        let paced = paced.as_mut().ok_or(Refusal::CellMalformed)?;
        links.accept_paced(cx, now, (link, slot), from, header, content)?;
        match LinkContent::from_wire(content[0]).filter(|_| header.kind == CellKind::Link) {
            Some(LinkContent::Ask | LinkContent::Part) => self.take_trust(now, link, content),
            Some(kind @ (LinkContent::Path | LinkContent::Echo)) => links.take_path(cx, now, link, kind, content),
            None if header.kind == CellKind::Link => Err(Refusal::UnknownLinkContent),
            _ => {
                let at = ClassTime { now, class_ns: at_ns };
                paced.cell(cx, links, &mut self.trust, &PacedCell { at, link, slot, header, content })
            }
        }
    }

    /// Takes in an ask or a part.
    fn take_trust(&mut self, now: Duration, link: LinkId, content: &[u8]) -> Result<(), Refusal> {
        // The cell may be the first of its link.
        self.follow_links(now);
        let wall_ms = self.trust_ms(now);
        let taken = match &mut self.trust {
            Trust::Hop(trust) => trust.take(now, wall_ms, link, content),
            Trust::Entry(trust) => trust.take(now, wall_ms, link, content),
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
        let clocks = (now, self.trust_ms(now));
        let Trust::Entry(trust) = &mut self.trust else { return };
        let mut wanted = Vec::new();
        for class in &mut self.classes {
            if class.tick_entry(trust, clocks) {
                wanted.push(trust.session().times().interval_at(clocks.1));
            }
            wanted.extend(class.paced.as_ref().and_then(Paced::wanted_interval));
        }
        trust.want_only(&wanted, clocks.1);
        self.trust_touched = true;
    }

    /// When trust has something to do.
    fn trust_wake(&self, now: Duration) -> Duration {
        match &self.trust {
            Trust::Hop(trust) => trust.next_wake(now, self.wall_ms(now)),
            Trust::Entry(trust) => trust.next_wake(),
        }
    }

    /// Reports links that came up or went down to trust: of a hop those of its first class, and at Mix 1 those of
    /// entries in all classes; of an entry that of the first class that it uses (SPEC 9.6.7).
    fn follow_links(&mut self, now: Duration) {
        let Control { classes, trust, trust_touched, .. } = self;
        for (place, ClassControl { cx, links, paced, .. }) in classes.iter_mut().enumerate() {
            for (id, is_up) in std::mem::take(&mut cx.linked) {
                *trust_touched = true;
                if let Some(paced) = paced.as_mut().filter(|_| !is_up) {
                    paced.forget(id);
                }
                let link = links.link_mut(id).filter(|_| is_up).map(|link| (link.side(), link.home()));
                match (&mut *trust, link) {
                    (Trust::Hop(trust), Some((side, home))) => {
                        let is_entry = side == Side::Up && cx.config.faces_entries();
                        let address = cx.config.prefix(home).map(|_| home);
                        let peer = if is_entry { Peer::Entry(address) } else { Peer::Hop };
                        if is_entry || place == 0 {
                            trust.link_up(id, peer, content_len(&cx.config, side), now);
                        }
                    }
                    (Trust::Hop(trust), None) => trust.link_down(id),
                    (Trust::Entry(trust), Some((side, _))) if place == 0 => {
                        trust.link_up(id, content_len(&cx.config, side), now);
                    }
                    (Trust::Entry(_), Some(_)) => {}
                    (Trust::Entry(trust), None) => trust.link_down(id),
                }
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
        // What is due may be due within this millisecond: it stays so until the next tick.
        self.trust_due = self.trust_due.min(self.trust_wake(now));
        let Control { classes, trust, .. } = self;
        let (steps, view) = match trust {
            Trust::Hop(trust) => (trust.steps(), trust.view()),
            Trust::Entry(trust) => (trust.steps(), trust.durable()),
        };
        for ClassControl { cx, .. } in &mut *classes {
            cx.contacts.update(&cx.config, view);
        }
        // Of several changes of the state the last one is written.
        let last_save =
            steps.iter().rev().find_map(|step| if let Step::Save(number) = step { Some(*number) } else { None });
        for step in steps {
            match step {
                Step::Save(number) if Some(number) != last_save => {}
                Step::Save(number) => classes[0].cx.out.push_back(Output::Save(number)),
                Step::Send(link, content) => {
                    let ClassControl { cx, links, .. } = &mut classes[link.class()];
                    links.inject_trust(cx, now, link, &content);
                }
                Step::Event(event) => classes[0].cx.event(Event::Trust(event)),
            }
        }
    }

    /// The node did not run from `since` to `now`, because it was stopped or the host is busy. It may not have read yet
    /// what came meanwhile: a silent next hop has its time again (SPEC 4.6.2), and clocks that arrive are late.
    pub fn stalled(&mut self, since: Duration, now: Duration) {
        self.classes.iter_mut().for_each(|class| class.links.stalled(now));
        if now.saturating_sub(since) >= LATE_CLOCK {
            match &mut self.trust {
                Trust::Entry(trust) => trust.stalled(now),
                Trust::Hop(trust) => trust.stalled(now),
            }
        }
    }

    /// Does everything that is due at `now`, when the host's clock says `wall`.
    pub fn tick(&mut self, now: Duration, wall: SystemTime) {
        let wall_at_zero = unix_ns(wall) - now.as_nanos() as i128;
        self.trust_touched = true;
        let has_stepped = (wall_at_zero - self.classes[0].cx.wall_at_zero).abs() > CLOCK_STEP_NS;
        for class in &mut self.classes {
            class.cx.wall_at_zero = wall_at_zero;
            class.tick(now, wall);
            let ClassControl { cx, links, paced, .. } = class;
            if let Some(paced) = paced {
                paced.tick(cx, links, &mut self.trust, now);
            }
        }
        self.tick_entry(now);
        if has_stepped || self.trust_due.min(self.trust_wake(now)) <= now {
            let (wall_ms, trust_ms) = (self.wall_ms(now), self.trust_ms(now));
            match &mut self.trust {
                Trust::Hop(trust) => {
                    if has_stepped {
                        trust.clock_stepped(now);
                    }
                    trust.tick(&mut self.classes[0].cx.rng, now, wall_ms);
                }
                Trust::Entry(trust) => trust.tick(now, (wall_ms, trust_ms)),
            }
            self.trust_due = Duration::MAX;
        }
        self.follow_trust(now);
        self.rekey();
    }

    /// Entry: keeps at least this many channels of a class up from now on. The cost of keeping one up does not grow
    /// with their number.
    pub fn want_channels(&mut self, now: Duration, class: usize, channels: usize) {
        if let Some(entry) = &mut self.classes[class].entry {
            entry.grow(channels);
        }
        self.tick_entry(now);
        self.follow_trust(now);
    }

    /// More handshakes of a class wait than usual: it requires cookies for a second.
    pub fn queue_fills(&mut self, now: Duration, class: usize) {
        self.classes[class].links.require_cookies(now);
    }

    /// What belongs on disk: see [`Output::Save`].
    pub fn state(&self) -> State {
        match &self.trust {
            Trust::Hop(trust) => State::of(trust.view(), trust.state().clone()),
            Trust::Entry(trust) => State::of(trust.durable(), HopState::default()),
        }
    }

    /// The state is on disk as it was at the [`Output::Save`] with this number.
    pub fn saved(&mut self, now: Duration, number: u64) {
        self.trust_touched = true;
        let wall_ms = self.wall_ms(now);
        if let Trust::Hop(trust) = &mut self.trust {
            trust.saved(number, now, wall_ms);
        }
        self.follow_trust(now);
    }

    /// The names of an [`Output::Resolve`] of a class have these addresses.
    pub fn resolved(&mut self, now: Duration, class: usize, addresses: Vec<SocketAddr>) {
        let ClassControl { cx, links, .. } = &mut self.classes[class];
        links.resolved(cx, now, addresses);
    }

    /// Takes in a descriptor of any hop of the chain, from a file.
    ///
    /// # Errors
    /// It is not of this chain, not valid yet, or revoked.
    pub fn load_descriptor(&mut self, now: Duration, descriptor: SignedDescriptor) -> Result<Taken, BadDescriptor> {
        self.trust_touched = true;
        let wall_ms = self.wall_ms(now);
        let taken = match &mut self.trust {
            Trust::Hop(trust) => {
                let hop = trust.view().position(&descriptor.identity).ok_or(BadDescriptor::Unknown)?;
                trust.take_descriptor(hop, descriptor, now, wall_ms)
            }
            Trust::Entry(trust) => {
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
        let Trust::Hop(trust) = &mut self.trust else { return };
        let (secrets, keys): (Vec<_>, Vec<_>) = keys.into_iter().map(NodeKeys::split).unzip();
        let statics: Arc<[Static]> = secrets.into_iter().map(Static::new).collect();
        self.classes.iter_mut().for_each(|class| class.cx.statics = statics.clone());
        trust.set_keys(keys);
        self.follow_trust(now);
    }

    /// The descriptors that this node uses for contact and writes to disk, and those of a hop for everything else.
    pub fn view(&self) -> &View {
        match &self.trust {
            Trust::Hop(trust) => trust.view(),
            Trust::Entry(trust) => trust.durable(),
        }
    }

    /// The records and bundles that this node holds, with their descriptors: at an entry, what came on its link.
    pub fn bundles(&self) -> &View {
        match &self.trust {
            Trust::Hop(trust) => trust.view(),
            Trust::Entry(trust) => trust.session(),
        }
    }

    /// What this node holds of the chain's descriptors and bundles.
    pub fn trust_status(&self, now: Duration) -> TrustStatus {
        let wall_ms = self.wall_ms(now);
        let (sync, can_sign, signs_from) = match &self.trust {
            Trust::Hop(trust) => (trust.sync(), trust.can_sign(wall_ms), trust.signs_from()),
            Trust::Entry(trust) => (trust.sync(), false, 0),
        };
        TrustStatus { can_sign, signs_from, ..TrustStatus::of(self.view(), self.bundles(), sync, wall_ms) }
    }

    /// The next output and its class, by place. The order of all outputs of one class is binding. What belongs to the
    /// node, such as events of trust, comes as an output of its first class.
    pub fn poll_output(&mut self) -> Option<(usize, Output)> {
        self.classes.iter_mut().enumerate().find_map(|(place, class)| Some((place, class.cx.out.pop_front()?)))
    }

    /// The time at which the next tick is due. In the past if it is due already.
    pub fn next_wake(&self) -> Duration {
        self.classes.iter().map(ClassControl::next_wake).fold(self.trust_due, Duration::min)
    }

    /// Counts a datagram of this class from [`Control::poll_output`] that found the send queue full.
    pub fn lost_outgoing(&mut self, class: usize) {
        self.classes[class].cx.refuse(Refusal::OutgoingFull);
    }

    /// Counts a cell of this class from [`Control::poll_output`] that found too many commands waiting.
    pub fn lost_command(&mut self, class: usize) {
        self.classes[class].cx.refuse(Refusal::CommandsFull);
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
