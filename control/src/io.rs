//! Inputs and outputs of [`Control`](crate::Control): the seam to the bridge and the data plane.
//!
//! Plain values. Rules that both planes must follow are written at the variants.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use wire::cell::{CellKind, Direction, Header};
use wire::ids::{ChannelIndex, ChannelKeys, EndReason, LinkId, Rank, Side, SlotId};
use wire::paced::clock::SteadyClock;
use wire::paced::{Call, EntryKeys, MeetingToken, PacedHeader};
use zeroize::Zeroizing;

use crate::paced::{LoopPlaces, PacedEvent, Places};
use crate::trust::hop::TrustEvent;

/// An input from the runner.
pub enum Input<'a> {
    /// A datagram of one of the handshake lengths ([`wire::handshake`]).
    Handshake {
        /// The socket that received it.
        side: Side,
        from: SocketAddr,
        datagram: &'a mut [u8],
    },
    /// A setup, ack or link cell whose header deciphered under `slot`. The body is still sealed.
    Cell {
        link: LinkId,
        slot: SlotId,
        from: SocketAddr,
        header: Header,
        /// With its tag; opened in place.
        body: &'a mut [u8],
    },
    /// The same in a paced class, where the worker has opened it.
    PacedCell {
        link: LinkId,
        slot: SlotId,
        from: SocketAddr,
        header: PacedHeader,
        content: &'a [u8],
        /// When it came, by the class's clock.
        at_ns: u64,
    },
    /// A forward data cell authenticated under the `next` slot. The data plane does not promote on its
    /// own: [`Change::Promote`] is the reply. Repeats are harmless.
    Promoted {
        link: LinkId,
        slot: SlotId,
        /// The source of that cell.
        from: SocketAddr,
    },
    /// Activity of a link since the last report; at most every 100 ms.
    Activity {
        link: LinkId,
        /// At least one cell passed header and window.
        received: bool,
        /// At least one cell was sent.
        sent: bool,
    },
    /// Entry of a paced class: what the worker has counted of backward places, about every 100 rounds (SPEC 9.15.3).
    PacedPlaces(Places),
    /// Mix of a paced class: what the worker has counted by its loops, about every 100 rounds (SPEC 9.15.5).
    PacedLoops(LoopPlaces),
    /// Entry of a paced class: the clock cell with this number leaves on a link, the first one with 1 (SPEC 9.5.6).
    PacedClockSent {
        link: LinkId,
        number: u64,
        /// By the class's clock.
        sent_ns: u64,
    },
    /// A channel is gone from the table. Exactly one for each [`Change::InstallChannel`], also if
    /// [`Change::RetireChannel`] ended it. The index may be reused afterwards.
    ChannelEnded { channel: ChannelIndex, reason: EndReason },
}

/// An output for the runner. The order of all outputs is binding.
#[derive(Debug)]
pub enum Output {
    /// A handshake datagram to send.
    Send {
        /// The socket to send it from.
        side: Side,
        to: SocketAddr,
        datagram: Vec<u8>,
    },
    /// A change for the data plane; the bridge makes a command of it.
    Change(Change),
    /// Write [`Control::state`](crate::Control::state) to disk, then call [`Control::saved`](crate::Control::saved)
    /// with this number. Until then a hop sends no record and no signature; after a second it asks again.
    Save(u64),
    /// Resolve these names of the next hop, with their ports, and call
    /// [`Control::resolved`](crate::Control::resolved).
    Resolve(Vec<(String, u16)>),
    /// Something an operator may want to read.
    Event(Event),
}

/// A change for the data plane. The bridge makes a `dataplane::command::Command` of it, or a
/// `dataplane::paced::Command`.
pub enum Change {
    /// A link without slots; it carries nothing yet.
    InstallLink {
        link: LinkId,
        side: Side,
        /// The destination of its cells.
        peer: SocketAddr,
    },
    /// Header keys of a completed handshake. On side `Up` this node receives with `header_i2r` and
    /// sends with `header_r2i`; on side `Down` it is the other way round.
    InstallSlot {
        link: LinkId,
        slot: SlotId,
        /// The peer's address in the handshake. Cells are accepted from there; they are sent there only
        /// if the slot becomes current at once.
        peer: SocketAddr,
        /// From the initiator to the responder.
        header_i2r: Zeroizing<[u8; 16]>,
        /// From the responder to the initiator.
        header_r2i: Zeroizing<[u8; 16]>,
        /// `Next` at the responder; it overwrites an older `next`. `Current` at the initiator: the old
        /// current becomes previous, and the old previous is dropped. Never `Previous`.
        rank: Rank,
    },
    /// `next` becomes current, current becomes previous, previous is dropped. Ignored if `slot` is not
    /// `next`.
    Promote {
        link: LinkId,
        slot: SlotId,
        /// The link's address from now on.
        peer: SocketAddr,
    },
    /// The link has another address from now on.
    MoveLink { link: LinkId, peer: SocketAddr },
    /// A slot of any rank has expired: drop it.
    RetireSlot { link: LinkId, slot: SlotId },
    /// Drop the link and its remaining slots. Its channels were retired before.
    RetireLink { link: LinkId },
    /// A channel is open. Always before the [`Change::Inject`] of the ack that announces it.
    InstallChannel {
        channel: ChannelIndex,
        /// Link and id towards the entry; none at the entry.
        up: Option<(LinkId, u32)>,
        /// Link and id towards the exit; none at the exit.
        down: Option<(LinkId, u32)>,
        keys: ChannelKeys,
        lifetime_s: u16,
        /// The first sequence number of each direction.
        first: u64,
    },
    /// End a channel now. [`Input::ChannelEnded`] is the reply.
    RetireChannel { channel: ChannelIndex },
    /// Entry: move the clients of `old` to `new`. `old` stays open until its lifetime ends.
    Supersede { old: ChannelIndex, new: ChannelIndex },
    /// Send a cell: forward on side `Down`, backward on side `Up`. Its header is enciphered under
    /// `slot` when it leaves; if that slot is gone by then, the cell is dropped.
    Inject {
        link: LinkId,
        /// The slot whose control key sealed the body.
        slot: SlotId,
        /// In the clear.
        header: Header,
        /// Sealed, of the link's length.
        body: Vec<u8>,
        /// It does not wait in the pool (SPEC 7.8.8).
        at_once: bool,
    },
    /// Only in paced classes.
    Paced(PacedChange),
}

/// A change for a worker of a paced class, in addition to those of links. The bridge makes a
/// `dataplane::paced::Command` of it.
pub enum PacedChange {
    /// The keys of the slot that was just installed with which the worker seals and checks cells.
    SlotKeys {
        link: LinkId,
        slot: SlotId,
        /// Of link tags.
        tag_in: Zeroizing<[u8; 16]>,
        tag_out: Zeroizing<[u8; 16]>,
        /// Of control cells.
        control_in: Zeroizing<[u8; 28]>,
        control_out: Zeroizing<[u8; 28]>,
    },
    /// Hop: a channel of a batch that has not begun.
    InstallChannel {
        batch: u64,
        /// Towards the entry; the link is that of an entry, at Mix 1 alone.
        up: (Option<LinkId>, u32),
        /// Its number on the next link; none at the exit.
        down: Option<u32>,
        keys: Box<ChannelKeys>,
        /// At the exit.
        token: Option<MeetingToken>,
    },
    /// Entry: the channel of a batch that has not begun.
    InstallEntryChannel {
        batch: u64,
        /// Its number on link 1.
        number: u32,
        keys: Box<EntryKeys>,
        /// If it meets another channel.
        call: Option<Box<Call>>,
        /// The number of that meeting: another one than before if it has changed.
        meeting: u32,
    },
    /// Entry: the number that it drew for a batch, before it is known whether there will be a channel.
    Drawn { batch: u64, number: u32 },
    /// Mix: a loop of a batch that has not begun.
    InstallLoop {
        batch: u64,
        /// Its number on the next link.
        number: u32,
        /// None if its setup failed: it sends random bodies.
        keys: Option<(Box<EntryKeys>, Box<Call>)>,
    },
    /// Entry: how much later than by its own clock Mix 1 receives what it sends (SPEC 9.5.5).
    Lead {
        lead_ns: i64,
        /// False before the first sample; the lead is random until then (SPEC 9.5.5).
        is_known: bool,
    },
    /// A setup or ack cell for a round. `link` is that of an entry at Mix 1, otherwise none: the neighbour's.
    AtRound {
        link: Option<LinkId>,
        direction: Direction,
        round: u64,
        kind: CellKind,
        channel: u32,
        sub: u8,
        content: Vec<u8>,
    },
    /// A link cell for the next slot.
    AtNextSlot { link: LinkId, content: Vec<u8> },
    /// The latest clock cell of a link: its `sent`, and when it came.
    ClockSeen { link: LinkId, sent_ns: u64, received_ns: u64 },
    /// The class's clock from now on.
    Clock(SteadyClock),
}

impl fmt::Debug for PacedChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PacedChange::SlotKeys { link, slot, .. } => write!(f, "SlotKeys {link}/{slot}"),
            PacedChange::InstallChannel { batch, up, down, .. } => {
                write!(f, "InstallChannel {up:?} {down:?} in batch {batch}")
            }
            PacedChange::InstallEntryChannel { batch, number, .. } => {
                write!(f, "InstallEntryChannel {number} in batch {batch}")
            }
            PacedChange::Drawn { batch, number } => write!(f, "Drawn {number} in batch {batch}"),
            PacedChange::InstallLoop { batch, number, .. } => write!(f, "InstallLoop {number} in batch {batch}"),
            PacedChange::Lead { lead_ns, is_known } => write!(f, "Lead {lead_ns} ns, known {is_known}"),
            PacedChange::AtRound { link, direction, round, kind, channel, sub, .. } => {
                write!(f, "AtRound {link:?} {direction:?} {kind:?} {channel}/{sub} in round {round}")
            }
            PacedChange::AtNextSlot { link, content } => write!(f, "AtNextSlot {link} {:?}", content.first()),
            PacedChange::ClockSeen { link, sent_ns, .. } => write!(f, "ClockSeen {link} {sent_ns}"),
            PacedChange::Clock(clock) => write!(f, "{clock:?}"),
        }
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::InstallLink { link, side, peer } => write!(f, "InstallLink {link} {side:?} {peer}"),
            Change::InstallSlot { link, slot, peer, rank, .. } => {
                write!(f, "InstallSlot {link}/{slot} {rank:?} {peer}")
            }
            Change::Promote { link, slot, peer } => write!(f, "Promote {link}/{slot} {peer}"),
            Change::MoveLink { link, peer } => write!(f, "MoveLink {link} {peer}"),
            Change::RetireSlot { link, slot } => write!(f, "RetireSlot {link}/{slot}"),
            Change::RetireLink { link } => write!(f, "RetireLink {link}"),
            Change::InstallChannel { channel, up, down, lifetime_s, .. } => {
                write!(f, "InstallChannel {channel} {up:?} {down:?} {lifetime_s} s")
            }
            Change::RetireChannel { channel } => write!(f, "RetireChannel {channel}"),
            Change::Supersede { old, new } => write!(f, "Supersede {old} by {new}"),
            Change::Paced(change) => change.fmt(f),
            Change::Inject { link, slot, header, body, at_once } => {
                let place = if *at_once { "at once" } else { "pooled" };
                write!(f, "Inject {link}/{slot} {header:?} {} bytes {place}", body.len())
            }
        }
    }
}

/// Something that happened, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link is up: the next hop responded (down), or the initiator proved that it holds the keys (up).
    LinkUp { side: Side, link: LinkId, peer: SocketAddr },
    /// A link has new keys.
    LinkRenewed { side: Side, link: LinkId, peer: SocketAddr },
    /// A link that is up has another address: its initiator no longer receives at the old one.
    LinkMoved { side: Side, link: LinkId, peer: SocketAddr },
    /// A message 1 between hops, with a cookie, came from an address that is not the previous hop's. At most one a
    /// minute.
    HandshakeFromElsewhere { from: SocketAddr },
    /// A link is down: its last slot expired, or it made room for another link.
    LinkDown { side: Side, link: LinkId },
    /// The next hop does not answer. A new handshake is under way.
    LinkSilent { link: LinkId },
    /// A channel is open on this node.
    ChannelOpen {
        channel: ChannelIndex,
        /// From the first shard of the setup to the last ack cell.
        setup: Duration,
    },
    /// A channel is gone.
    ChannelClosed { channel: ChannelIndex, reason: EndReason },
    /// Entry: no ack in time; the setup is retried.
    SetupTimedOut {
        /// Attempts so far for this channel.
        attempts: u32,
        next_timeout: Duration,
    },
    /// Entry: an ack was refused. A hop or a link tampers.
    SetupRefused(wire::setup::BadAck),
    /// Descriptors, clocks, and what prevents a bundle.
    Trust(TrustEvent),
    /// Only in paced classes.
    Paced(PacedEvent),
}
