//! Messages from a worker to control: copies in a bounded ring, one wake-up per turn.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wire::cell::Header;
use wire::handshake::MAC2_LEN;
use wire::ids::{ChannelIndex, EndReason, LinkId, Side, SlotId};
use wire::paced::PacedHeader;

use crate::Nanos;
use crate::entry::listener::ListenerId;
use crate::exit::names::QueryId;
use crate::paced::mix::LoopCounts;
use crate::sys::Waker;

/// Places of the ring that handshake datagrams and names to resolve cannot take.
pub const RESERVED: usize = 64;
/// Handshakes of each kind take at most a quarter of the ring (SPEC 4.9.4).
const HANDSHAKE_PARTS: usize = 4;

// The ring of a class with many seats has some hundred thousand places (SPEC 9.4.9). What a message carries is
// elsewhere.
const _: () = assert!(size_of::<Punt>() <= 96);

/// One message to control.
pub enum Punt {
    /// A datagram of a handshake's length.
    Handshake {
        /// The socket it came in on.
        side: Side,
        from: SocketAddr,
        datagram: Box<[u8]>,
        /// Those without a cookie fill half of their part of the ring, or more: control requires cookies (SPEC 4.9).
        is_crowded: bool,
        place: HandshakePlace,
    },
    /// A setup, ack or link cell; its body is sealed still.
    Cell {
        link: LinkId,
        /// The slot under which its header deciphered.
        slot: SlotId,
        /// Its source: the link's address, if it promotes the slot.
        from: SocketAddr,
        header: Header,
        body: Box<[u8]>,
    },
    /// The same in a paced class, opened.
    PacedCell {
        link: LinkId,
        slot: SlotId,
        from: SocketAddr,
        header: PacedHeader,
        content: Box<[u8]>,
        /// When it came, by the class's clock: for clock cells.
        at: Nanos,
    },
    /// A data cell authenticated under the link's next slot: [`crate::command::LinkCommand::Promote`] is the answer.
    Promoted {
        link: LinkId,
        slot: SlotId,
        /// The source of that cell: the link's address from now on.
        from: SocketAddr,
    },
    /// Activity of a link since the last report, at most every 100 ms.
    Activity {
        link: LinkId,
        /// A data cell passed header and window.
        received: bool,
        /// A data cell was sent.
        sent: bool,
    },
    /// Entry of a paced class: counts of backward places, about every 100 rounds (SPEC 9.15.3).
    PacedPlaces {
        first: u64,
        rounds: u64,
        places: u64,
        /// Those of which no copy came.
        lost: u64,
    },
    /// Mix of a paced class with loops: counts of backward places, about every 100 rounds (SPEC 9.15.5).
    PacedLoops {
        first: u64,
        rounds: u64,
        /// As [`crate::paced::mix::LoopsView`] has them, of these rounds only.
        counts: LoopCounts,
    },
    /// Entry of a paced class: its next clock cell on a link (SPEC 9.5.6).
    PacedClockSent {
        link: LinkId,
        /// From 1.
        number: u64,
        /// When it is due, by the class's clock.
        sent_ns: Nanos,
    },
    /// A channel is gone.
    ChannelEnded { channel: ChannelIndex, reason: EndReason },
    /// Exit: a name to resolve; answered by [`crate::command::Command::Resolved`].
    Resolve {
        /// Names the question in the answer.
        query: QueryId,
        name: Box<str>,
    },
    /// Something that an operator or a client should know, at most a hundred times a second.
    Notice(Notice),
}

/// A client of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAt {
    /// Control's name for the listening socket.
    pub listener: ListenerId,
    /// The client's own address.
    pub address: SocketAddr,
}

/// Events that are logged and, where one is concerned, reported to a client.
#[derive(Clone, Debug)]
pub enum Notice {
    /// Entry: a local datagram is longer than eight fragments.
    TooLarge {
        client: ClientAt,
        len: usize,
        /// The most that travels.
        max: usize,
    },
    /// Entry of a paced class: applications send more than the class carries.
    OverRate,
    /// Entry: a socket that it was given cannot be listened at.
    Deaf { why: String },
    /// Entry: the exit refused a flow.
    Refused {
        client: ClientAt,
        /// The flow's destination.
        destination: String,
        status: wire::frames::Status,
    },
}

/// A handshake's place in the ring; free once this is dropped.
pub struct HandshakePlace(Arc<AtomicUsize>);

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The worker's end of the ring.
pub struct PuntSender {
    ring: rtrb::Producer<Punt>,
    waker: Arc<Waker>,
    unsignalled: bool,
    /// Handshakes in the ring: halves without a cookie, halves that claim one, and what the next hop sends.
    handshakes: [Arc<AtomicUsize>; 3],
    /// Ends of channels that found the ring full: at most one per channel.
    owed: VecDeque<Punt>,
}

impl PuntSender {
    /// Around a ring whose other end waits on `waker`.
    pub fn new(ring: rtrb::Producer<Punt>, waker: Arc<Waker>) -> PuntSender {
        PuntSender { ring, waker, unsignalled: false, handshakes: Default::default(), owed: VecDeque::new() }
    }

    pub fn room(&self) -> usize {
        self.ring.slots()
    }

    /// True if more than half of the ring is taken.
    pub(crate) fn is_half_full(&self) -> bool {
        2 * self.room() < self.ring.buffer().capacity()
    }

    /// Queues a message that strangers or users can cause at will. It leaves [`RESERVED`] places to the
    /// others.
    #[must_use]
    pub(crate) fn send_modestly(&mut self, punt: Punt) -> bool {
        self.room() > RESERVED && self.send(punt)
    }

    /// Queues a handshake datagram. Three kinds have a part of the ring each, so a flood of one leaves the others
    /// theirs: halves from previous hops and entries that claim no cookie, because their mac2 is zeros, halves that
    /// claim one, and the answers of the next hop.
    #[must_use]
    pub(crate) fn send_handshake(&mut self, side: Side, from: SocketAddr, datagram: Box<[u8]>) -> bool {
        let claims = !datagram.ends_with(&[0; MAC2_LEN]);
        let kind = if side == Side::Down { 2 } else { usize::from(claims) };
        let (waiting, most) = (&self.handshakes[kind], self.ring.buffer().capacity() / HANDSHAKE_PARTS);
        let before = waiting.load(Ordering::Relaxed);
        if before >= most {
            return false;
        }
        waiting.fetch_add(1, Ordering::Relaxed);
        let (place, is_crowded) = (HandshakePlace(waiting.clone()), kind == 0 && 2 * before >= most);
        self.send_modestly(Punt::Handshake { side, from, datagram, is_crowded, place })
    }

    /// Queues a message; gives it up and says false if the ring is full.
    #[must_use]
    pub fn send(&mut self, punt: Punt) -> bool {
        let sent = self.ring.push(punt).is_ok();
        self.unsignalled |= sent;
        sent
    }

    /// Reports to control that a channel has ended: now, or as soon as the ring has room. Control relies on
    /// hearing of every one.
    pub fn ended(&mut self, channel: ChannelIndex, reason: EndReason) {
        self.owed.push_back(Punt::ChannelEnded { channel, reason });
        self.pay();
    }

    fn pay(&mut self) {
        while self.ring.slots() > 0
            && let Some(punt) = self.owed.pop_front()
        {
            let _ = self.send(punt);
        }
    }

    /// End of a turn: wakes control if anything was queued.
    pub fn signal(&mut self) {
        self.pay();
        if std::mem::take(&mut self.unsignalled) {
            self.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_punt_ring_never_loses_the_end_of_a_channel() {
        let (ring, mut control) = rtrb::RingBuffer::new(256);
        let mut punts = PuntSender::new(ring, Arc::new(Waker::new().unwrap()));
        let from = SocketAddr::from(([192, 0, 2, 1], 1));
        let mut handshake =
            |side, mac2: u8| punts.send_handshake(side, from, [mac2; wire::handshake::NK_HALF_LEN].into());
        for (side, mac2) in [(Side::Up, 0), (Side::Up, 1), (Side::Down, 0)] {
            let taken = (0..300).filter(|_| handshake(side, mac2)).count();
            assert_eq!(taken, 256 / HANDSHAKE_PARTS, "{side:?} {mac2}");
        }
        let activity = || Punt::Activity { link: LinkId(1), received: true, sent: false };
        assert_eq!((0..300).filter(|_| punts.send(activity())).count(), 256 - 3 * (256 / HANDSHAKE_PARTS));
        (0..1000).for_each(|channel| punts.ended(ChannelIndex(channel), EndReason::Idle));
        assert_eq!(punts.owed.len(), 1000);
        let mut ended = Vec::new();
        for _ in 0..10 {
            while let Ok(punt) = control.pop() {
                if let Punt::ChannelEnded { channel, .. } = punt {
                    ended.push(channel);
                }
            }
            punts.signal();
        }
        assert!(ended.into_iter().eq((0..1000).map(ChannelIndex)) && punts.owed.is_empty());
        assert!(punts.send_handshake(Side::Up, from, [0; 672].into()), "there is room again");
    }
}
