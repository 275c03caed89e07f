//! What must hold whatever the network does, checked after each event and at the end of each sequence.
//!
//! Three more invariants are assertions of the simulator itself, so they hold in all its tests: numbers under one
//! control key only grow, no control cell is accepted twice, and the keys of a channel are installed once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use control::Event;
use control::trust::hop::TrustEvent;
use wire::handshake::{COOKIE_LEN, is_handshake_len};
use wire::ids::{LinkId, Side};

use super::step::attacker;
use crate::sim::node::PlaneLink;
use crate::sim::{Moment, Node, Packet, World, secs, up_address};

/// A link may move if a datagram between its ends was lost or late so recently: a check of its old address may have
/// failed for that.
const DISTURBED_FOR: Duration = secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// On an honest network both ends soon share a slot, and send to each other's address.
    Recovery,
    /// As long as nothing is lost, ends that share a slot go on sharing one.
    Loss,
    /// The address of a link that is up does not move while its initiator receives at the old one.
    Path,
    /// A refused datagram changes nothing.
    Refusal,
    /// Strangers get no handshake datagrams that are longer in sum than their own.
    Answer,
    /// A hop signs one bundle for an interval.
    Bundle,
    /// On an honest network hops soon hold a bundle of the running interval.
    BundleRecovery,
    /// A channel outlives renewals and moves of its link.
    Channel,
    /// An assertion of the simulator or of the code.
    Assertion,
}

/// An invariant that did not hold, and the circumstances.
pub type Broken = (Invariant, String);

/// What a peer can change of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Snapshot {
    /// Id, address, and the current and all slots, each by the first bytes of a key.
    links: Vec<(LinkId, SocketAddr, Option<u32>, Vec<u32>)>,
    channels: (usize, usize),
    next_wake: Duration,
    events: usize,
}

impl Snapshot {
    fn of(node: &Node) -> Snapshot {
        let link = |(id, link): (&LinkId, &PlaneLink)| {
            let short = |key: [u8; 16]| u32::from_be_bytes([key[0], key[1], key[2], key[3]]);
            let (current, all) = link.keys();
            (*id, link.peer, current.map(short), all.into_iter().map(short).collect())
        };
        Snapshot {
            links: node.links.iter().map(link).collect(),
            channels: (node.control.class(0).open_channels(), node.control.class(0).half_open()),
            next_wake: node.control.next_wake(),
            events: node.events.len(),
        }
    }
}

/// What a node has refused, and its cells and handshakes.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Counts {
    refused: u64,
    accepted: (u64, u64),
}

impl Counts {
    fn of(node: &Node) -> Counts {
        let counters = node.control.class(0).counters();
        Counts { refused: counters.refused_total(), accepted: (counters.cells, counters.handshakes_done) }
    }
}

/// Watches one run.
pub struct Monitor {
    initiator: usize,
    responder: usize,
    before: BTreeMap<usize, (Snapshot, Counts)>,
    /// Addresses of the responder's links that are up.
    peers: BTreeMap<LinkId, SocketAddr>,
    disturbed_at: Option<Duration>,
    /// Nothing was lost and nobody restarted so far.
    is_lossless: bool,
    /// The ends have shared a slot.
    is_shared: bool,
    /// Bytes of handshake datagrams that the attacker has sent and not received.
    attacker_credit: usize,
    /// By hop and interval.
    signed: BTreeMap<(usize, u64), [u8; 32]>,
}

impl Monitor {
    pub fn new((initiator, responder): (usize, usize)) -> Monitor {
        Monitor {
            initiator,
            responder,
            before: BTreeMap::new(),
            peers: BTreeMap::new(),
            disturbed_at: None,
            is_lossless: true,
            is_shared: false,
            attacker_credit: 0,
            signed: BTreeMap::new(),
        }
    }

    /// A datagram will not reach its destination, whatever for.
    pub fn lose(&mut self) {
        self.is_lossless = false;
    }

    /// A datagram between the ends was lost or held back, or one of them restarted.
    pub fn disturb(&mut self, now: Duration) {
        self.disturbed_at = Some(now);
        self.lose();
    }

    pub fn attacker_sends(&mut self, packet: &Packet) {
        self.attacker_credit += handshake_len(packet);
    }

    /// Before an event.
    pub fn before(&mut self, world: &World) {
        self.before = world.nodes.iter().map(|(at, node)| (*at, (Snapshot::of(node), Counts::of(node)))).collect();
        self.peers = up_links(world.node(self.responder)).map(|(id, link)| (id, link.peer)).collect();
    }

    /// After an event, which has sent these datagrams.
    pub fn after(&mut self, world: &World, moment: Moment, sent: &[Packet]) -> Result<(), Broken> {
        self.check_path(world)?;
        self.check_loss(world)?;
        for packet in sent.iter().filter(|packet| packet.to == attacker()) {
            let rest = self.attacker_credit.checked_sub(handshake_len(packet));
            self.attacker_credit =
                rest.ok_or((Invariant::Answer, "the attacker gets more than it has sent".to_owned()))?;
        }
        if let Moment::Arrived(at) = moment {
            self.check_refusal(world, at, sent)?;
        }
        self.check_bundles(world)
    }

    fn check_loss(&mut self, world: &World) -> Result<(), Broken> {
        let initiator = world.node(self.initiator);
        let shared =
            |(_, link): (LinkId, &PlaneLink)| common_slot(initiator, link) && common_slot_back(initiator, link);
        let is_shared = up_links(world.node(self.responder)).any(shared);
        let is_lost = self.is_shared && !is_shared && self.is_lossless;
        self.is_shared |= is_shared;
        if is_lost { Err((Invariant::Loss, "the ends have no common slot any more".to_owned())) } else { Ok(()) }
    }

    fn check_path(&self, world: &World) -> Result<(), Broken> {
        let home = world.node(self.initiator).down_address;
        let disturbed = self.disturbed_at.is_some_and(|at| world.now < at + DISTURBED_FOR);
        for (id, link) in up_links(world.node(self.responder)) {
            let moved = self.peers.get(&id).is_some_and(|before| *before == home) && link.peer != home;
            if moved && !disturbed && common_slot(world.node(self.initiator), link) {
                return Err((Invariant::Path, format!("link {id} moved from {home} to {}", link.peer)));
            }
        }
        let next = up_address(self.responder);
        let strange = |link: &&PlaneLink| link.side == Side::Down && link.peer != next;
        let strange = world.node(self.initiator).links.values().find(strange);
        strange.map_or(Ok(()), |link| Err((Invariant::Path, format!("the initiator sends to {}", link.peer))))
    }

    fn check_refusal(&self, world: &World, at: usize, sent: &[Packet]) -> Result<(), Broken> {
        let node = world.node(at);
        let (before, counted) = &self.before[&at];
        let counts = Counts::of(node);
        if counts.refused == counted.refused || counts.accepted != counted.accepted {
            return Ok(());
        }
        let after = Snapshot::of(node);
        // Nothing but a cookie or a challenge answers it.
        if after == *before && sent.iter().all(|packet| packet.bytes.len() == COOKIE_LEN) {
            return Ok(());
        }
        let why: Vec<&str> =
            node.control.class(0).counters().refusals().filter(|why| why.1 > 0).map(|why| why.0).collect();
        let sent = sent.len();
        Err((Invariant::Refusal, format!("node {at} ({why:?}) sent {sent}, was {before:?}, is {after:?}")))
    }

    /// Signatures that have left a hop: other nodes hold them.
    fn check_bundles(&mut self, world: &World) -> Result<(), Broken> {
        for (at, node) in &world.nodes {
            let view = node.control.view();
            let running = view.times().interval_at(wall_ms(world));
            for bundle in (running.saturating_sub(1)..=running + 1).flat_map(|interval| view.bundles(interval)) {
                let signatures = &bundle.signatures;
                for hop in (1..=view.hops()).filter(|hop| hop != at && signatures.signatures[hop - 1].is_some()) {
                    let interval = signatures.interval;
                    if *self.signed.entry((hop, interval)).or_insert(signatures.hash) != signatures.hash {
                        return Err((
                            Invariant::Bundle,
                            format!("hop {hop} signed two bundles of interval {interval}"),
                        ));
                    }
                }
            }
            let twice = |event: &Event| matches!(event, Event::Trust(TrustEvent::SignedTwice { .. }));
            if node.saw(twice) > 0 {
                return Err((Invariant::Bundle, format!("node {at} reports that a hop signed twice")));
            }
        }
        Ok(())
    }

    /// At the end, on a network that has been honest for a while.
    pub fn check_link(&self, world: &World) -> Result<(), Broken> {
        let (initiator, responder) = (world.node(self.initiator), world.node(self.responder));
        let shared = up_links(responder).any(|(_, link)| {
            link.peer == initiator.down_address && common_slot(initiator, link) && common_slot_back(initiator, link)
        });
        if shared {
            return Ok(());
        }
        let peers: Vec<SocketAddr> = up_links(responder).map(|(_, link)| link.peer).collect();
        let refused: Vec<_> =
            responder.control.class(0).counters().refusals().filter(|(_, count)| *count > 0).collect();
        let initiator = initiator.has_link(Side::Down);
        Err((
            Invariant::Recovery,
            format!("initiator up: {initiator}, addresses at the responder: {peers:?}, it refused {refused:?}"),
        ))
    }

    /// At the end: every hop holds the bundle of the running interval.
    pub fn check_bundle_recovery(&self, world: &World) -> Result<(), Broken> {
        for (at, node) in &world.nodes {
            let view = node.control.view();
            let running = view.times().interval_at(wall_ms(world));
            if view.complete(running).is_none() {
                return Err((Invariant::BundleRecovery, format!("node {at} has no bundle of interval {running}")));
            }
        }
        Ok(())
    }
}

/// The length of a handshake datagram; 0 of a cell.
fn handshake_len(packet: &Packet) -> usize {
    if is_handshake_len(packet.bytes.len()) { packet.bytes.len() } else { 0 }
}

fn wall_ms(world: &World) -> u64 {
    (world.wall_base + world.now).as_millis() as u64
}

fn up_links(node: &Node) -> impl Iterator<Item = (LinkId, &PlaneLink)> {
    node.links
        .iter()
        .map(|(id, link)| (*id, link))
        .filter(|(_, link)| link.side == Side::Up && link.current().is_some())
}

/// True if the initiator sends under a slot that this link of the responder has.
fn common_slot(initiator: &Node, link: &PlaneLink) -> bool {
    let sends = |down: &PlaneLink| down.keys().0.is_some_and(|key| link.keys().1.contains(&key));
    initiator.links.values().any(|down| down.side == Side::Down && sends(down))
}

/// True if this link of the responder sends under a slot that the initiator has.
fn common_slot_back(initiator: &Node, link: &PlaneLink) -> bool {
    let has = |down: &PlaneLink| link.keys().0.is_some_and(|key| down.keys().1.contains(&key));
    initiator.links.values().any(|down| down.side == Side::Down && has(down))
}
