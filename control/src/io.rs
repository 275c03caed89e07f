//! What goes into [`Control`](crate::Control) and what comes out.
//!
//! Plain values; every rule that the two planes must agree on is written at the variant. Secrets
//! travel in wiped containers and never print.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use wire::cell::Header;
use wire::ids::{ChannelIndex, ChannelKeys, EndReason, LinkId, Rank, Side, SlotId};
use zeroize::Zeroizing;

/// What the runner hands in.
pub enum Input<'a> {
    /// A datagram of one of the handshake lengths ([`wire::handshake`]).
    Handshake {
        /// The socket it came in by.
        side: Side,
        /// Its source.
        from: SocketAddr,
        /// The whole datagram.
        datagram: &'a mut [u8],
    },
    /// A setup, ack or link cell whose header deciphered under `slot`; the body is still sealed.
    Cell {
        /// Its link.
        link: LinkId,
        /// The slot whose key made sense of the header.
        slot: SlotId,
        /// Its source.
        from: SocketAddr,
        /// The header in the clear.
        header: Header,
        /// The body with its tag; opened in place.
        body: &'a mut [u8],
    },
    /// A forward data cell authenticated under the `next` slot. The data plane does not promote by
    /// itself: [`DataOp::Promote`] is the answer. Repeats are harmless.
    Promoted {
        /// Its link.
        link: LinkId,
        /// The slot.
        slot: SlotId,
        /// The source of that cell.
        from: SocketAddr,
    },
    /// Cells passed header and window, or were sent, on a link since the last report; at most every
    /// 100 ms.
    Activity {
        /// The link.
        link: LinkId,
        /// At least one came in.
        received: bool,
        /// At least one went out.
        sent: bool,
    },
    /// A channel is gone from the table. Exactly one per [`DataOp::InstallChannel`], also when
    /// [`DataOp::RetireChannel`] ended it; afterwards the index may be used again.
    ChannelEnded {
        /// The channel.
        channel: ChannelIndex,
        /// Why.
        reason: EndReason,
    },
}

/// What comes out; the order is binding across all variants.
#[derive(Debug)]
pub enum Output {
    /// A handshake datagram to send.
    Send {
        /// The socket to use.
        side: Side,
        /// Its destination.
        to: SocketAddr,
        /// The whole datagram.
        datagram: Vec<u8>,
    },
    /// An operation on the data plane's table, to be applied in order.
    Data(DataOp),
    /// Something an operator may want to read.
    Event(Event),
}

/// An operation on the data plane's table.
pub enum DataOp {
    /// A link without slots; carries nothing yet.
    InstallLink {
        /// The link.
        link: LinkId,
        /// Its side.
        side: Side,
        /// Where its cells go.
        peer: SocketAddr,
    },
    /// Header keys of a completed handshake. On side `Up` this node receives with `header_i2r` and
    /// sends with `header_r2i`; on side `Down` the other way round.
    InstallSlot {
        /// The link.
        link: LinkId,
        /// The slot.
        slot: SlotId,
        /// The address that the handshake came from or went to. Cells are accepted from there; they go there
        /// only if the slot is current at once.
        peer: SocketAddr,
        /// From the initiator to the responder.
        header_i2r: Zeroizing<[u8; 16]>,
        /// From the responder to the initiator.
        header_r2i: Zeroizing<[u8; 16]>,
        /// Its rank from now on: `Next` at the responder, where a newer handshake overwrites it; `Current` at the
        /// initiator, whose old current becomes previous and whose old previous is dropped. Never `Previous`.
        rank: Rank,
    },
    /// next becomes current, current becomes previous, previous is dropped. Ignored if `slot` is not
    /// `next`.
    Promote {
        /// The link.
        link: LinkId,
        /// The slot.
        slot: SlotId,
        /// Where the link's cells go from now on: the source of the cell that promotes.
        peer: SocketAddr,
    },
    /// A slot has expired: drop it, whatever its rank.
    RetireSlot {
        /// The link.
        link: LinkId,
        /// The slot.
        slot: SlotId,
    },
    /// Drop the link and what slots it has left. Its channels were retired before.
    RetireLink {
        /// The link.
        link: LinkId,
    },
    /// A channel is open. Always before the [`DataOp::Inject`] of the ack that announces it.
    InstallChannel {
        /// Its index.
        channel: ChannelIndex,
        /// Link and id towards the entry; none at the entry.
        up: Option<(LinkId, u32)>,
        /// Link and id towards the exit; none at the exit.
        down: Option<(LinkId, u32)>,
        /// Its keys.
        keys: ChannelKeys,
        /// After so many seconds it ends.
        lifetime_s: u16,
        /// Its first sequence number.
        first: u64,
    },
    /// End a channel now; answered with [`Input::ChannelEnded`].
    RetireChannel {
        /// The channel.
        channel: ChannelIndex,
    },
    /// Entry: move the clients of `old` to `new`; `old` lives on until its lifetime ends.
    Supersede {
        /// The channel near its end.
        old: ChannelIndex,
        /// The one that takes over.
        new: ChannelIndex,
    },
    /// Make a cell: the header is enciphered under `slot` when its turn comes, or the cell dropped
    /// if that slot is gone by then. Forward on side `Down`, backward on side `Up`.
    Inject {
        /// The link to send on.
        link: LinkId,
        /// The slot whose control key sealed the body.
        slot: SlotId,
        /// The header in the clear.
        header: Header,
        /// The sealed body, of the link's length.
        body: Vec<u8>,
    },
}

impl fmt::Debug for DataOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataOp::InstallLink { link, side, peer } => write!(f, "InstallLink {link} {side:?} {peer}"),
            DataOp::InstallSlot { link, slot, peer, rank, .. } => {
                write!(f, "InstallSlot {link}/{slot} {rank:?} {peer}")
            }
            DataOp::Promote { link, slot, peer } => write!(f, "Promote {link}/{slot} {peer}"),
            DataOp::RetireSlot { link, slot } => write!(f, "RetireSlot {link}/{slot}"),
            DataOp::RetireLink { link } => write!(f, "RetireLink {link}"),
            DataOp::InstallChannel { channel, up, down, lifetime_s, .. } => {
                write!(f, "InstallChannel {channel} {up:?} {down:?} {lifetime_s} s")
            }
            DataOp::RetireChannel { channel } => write!(f, "RetireChannel {channel}"),
            DataOp::Supersede { old, new } => write!(f, "Supersede {old} by {new}"),
            DataOp::Inject { link, slot, header, body } => {
                write!(f, "Inject {link}/{slot} {header:?} {} bytes", body.len())
            }
        }
    }
}

/// Something that happened, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A neighbour answered (down) or proved itself (up) on a link that was not up.
    LinkUp {
        /// Which side.
        side: Side,
        /// The link.
        link: LinkId,
        /// Its address.
        peer: SocketAddr,
    },
    /// A link has new keys.
    LinkRenewed {
        /// Which side.
        side: Side,
        /// The link.
        link: LinkId,
        /// Its address, perhaps another than before.
        peer: SocketAddr,
    },
    /// A link's last slot has expired, or it made way for another.
    LinkDown {
        /// Which side.
        side: Side,
        /// The link.
        link: LinkId,
    },
    /// The next hop has been silent; a new handshake is under way.
    LinkSilent {
        /// The link.
        link: LinkId,
    },
    /// A channel is open on this node.
    ChannelOpen {
        /// The channel.
        channel: ChannelIndex,
        /// From the setup's first fragment to its last ack.
        setup: Duration,
    },
    /// A channel is gone.
    ChannelClosed {
        /// The channel.
        channel: ChannelIndex,
        /// Why.
        reason: EndReason,
    },
    /// Entry: no ack in time; tried again.
    SetupTimedOut {
        /// Attempts so far for this channel.
        attempts: u32,
        /// When the next gives up.
        next_timeout: Duration,
    },
    /// Entry: an ack was refused, so some hop or link tampers, or a descriptor is out of date.
    SetupRefused(wire::setup::BadAck),
}
