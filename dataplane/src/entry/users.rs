//! The local side of an entry, in free and paced classes: listening sockets, and their clients and flows.
//!
//! It reads what applications send, and says where answers go. What waits for a cell or a channel is its owner's.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use wire::frames::{self, Frame};
use wire::ids::ChannelIndex;

use super::clients::{Clients, RefusedFlow, Reply};
use super::{Destination, Listener, ListenerId};
use crate::Nanos;
use crate::age::nanos;
use crate::ledger::{DropReason, Tally};
use crate::punt::{ClientAt, Notice, Punt, PuntSender};
use crate::rate::{Bucket, Rate};
use crate::socket::app_batch::{SendBatch, SocketId};
use crate::socket::apps::Apps;

const NOTICES: Rate = Rate::per_second(100);

/// A listening socket in use.
struct Listening {
    /// Its id at control.
    id: ListenerId,
    listener: Listener,
}

/// Listening sockets, clients and flows.
pub(crate) struct Users {
    listening: Vec<Option<Listening>>,
    pub(crate) clients: Clients,
    notices: Notices,
}

/// A datagram of an application that can be sent.
pub(crate) struct Request<'a> {
    pub(crate) destination: Destination,
    pub(crate) data: &'a [u8],
    /// Flows of its client that have sent nothing for this long are closed.
    pub(crate) idle: Duration,
}

/// What control is told, at a limited rate.
#[derive(Default)]
pub(crate) struct Notices(Bucket);

impl Notices {
    /// Notifies control of something that an operator or a client should know.
    pub(crate) fn send(&mut self, notice: Notice, punts: &mut PuntSender, now: Nanos) {
        if self.0.take(NOTICES, now) {
            let _ = punts.send(Punt::Notice(notice));
        }
    }
}

impl Users {
    /// One listener per application socket, in their order, and no clients.
    pub(crate) fn new(listeners: Vec<Listener>, now: Nanos) -> Users {
        let listening = |(listener, id)| Some(Listening { id: ListenerId(id), listener });
        Users {
            listening: listeners.into_iter().zip(0..).map(listening).collect(),
            clients: Clients::new(now),
            notices: Notices::default(),
        }
    }

    /// The shortest limit of a listener.
    pub(crate) fn shortest_age(&self) -> Nanos {
        self.listening.iter().flatten().map(|listening| nanos(listening.listener.max_age)).min().unwrap_or(Nanos::MAX)
    }

    /// The limit of the listener at a socket. Without one nothing is late: another reason applies.
    pub(crate) fn max_age(&self, socket: SocketId) -> Nanos {
        self.at(socket).map_or(Nanos::MAX, |listening| nanos(listening.listener.max_age))
    }

    fn at(&self, socket: SocketId) -> Option<&Listening> {
        self.listening.get(socket as usize).and_then(Option::as_ref)
    }

    /// Listens at one more socket.
    pub(crate) fn listen(
        &mut self,
        (id, socket, listener): (ListenerId, UdpSocket, Listener),
        apps: &mut impl Apps,
        punts: &mut PuntSender,
    ) {
        match apps.adopt(socket) {
            Ok(socket) => {
                let at = socket as usize;
                if self.listening.len() <= at {
                    self.listening.resize_with(at + 1, || None);
                }
                self.listening[at] = Some(Listening { id, listener });
            }
            Err(why) => {
                let _ = punts.send(Punt::Notice(Notice::Deaf { why: why.to_string() }));
            }
        }
    }

    /// Closes a listening socket and forgets its clients; calls `close` for each of their flows. Returns the socket, if
    /// there is one of this name.
    pub(crate) fn unlisten(
        &mut self,
        id: ListenerId,
        apps: &mut impl Apps,
        close: impl FnMut(ChannelIndex, u16),
    ) -> Option<SocketId> {
        let known = |listening: &Option<Listening>| listening.as_ref().is_some_and(|listening| listening.id == id);
        let at = self.listening.iter().position(known)?;
        self.listening[at] = None;
        let socket = at as SocketId;
        apps.close(socket);
        self.clients.forget(socket, close);
        Some(socket)
    }

    /// Reads a datagram that came at a socket. Its OPEN fits in a cell with `payload` inner bytes, its data in as many
    /// cells as a datagram may take.
    ///
    /// # Errors
    /// The reason for which it is dropped.
    pub(crate) fn read<'a>(
        &mut self,
        (socket, from, bytes): (SocketId, SocketAddr, &'a [u8]),
        payload: usize,
        punts: &mut PuntSender,
        now: Nanos,
    ) -> Result<Request<'a>, DropReason> {
        // Datagrams that a socket received before it was closed are counted and dropped.
        let Some(Listening { id, listener }) = self.at(socket) else { return Err(DropReason::Ended) };
        let client = ClientAt { listener: *id, address: from };
        let (destination, data) = listener.read(from, bytes)?;
        let idle = listener.idle;
        if destination.open_len() > payload {
            return Err(DropReason::BadAddress);
        }
        if frames::fragment_count(payload, data.len()).is_none() {
            let max = frames::max_datagram_len(payload);
            self.notices.send(Notice::TooLarge { client, len: data.len(), max }, punts, now);
            return Err(DropReason::TooLarge);
        }
        Ok(Request { destination, data, idle })
    }

    /// Passes a datagram to a flow's client, unless it has waited for too long. Its sender is the flow's peer, or
    /// `from`.
    pub(crate) fn answer(
        &mut self,
        (channel, number): (ChannelIndex, u16),
        from: Option<SocketAddr>,
        (waited, data): (Nanos, &[u8]),
        send_batch: &mut SendBatch,
        tally: &mut Tally,
    ) {
        let Some(Reply { socket, to, flow, peer }) = self.clients.reply_to(channel, number) else {
            tally.drop(DropReason::Flow);
            return;
        };
        let Some(Listening { listener, .. }) = self.listening.get(socket as usize).and_then(Option::as_ref) else {
            tally.drop(DropReason::Flow);
            return;
        };
        if waited > nanos(listener.max_age) {
            tally.drop(DropReason::Aged);
            return;
        }
        let header = match from {
            None => listener.header(&peer),
            Some(from) if listener.tells_peers() => listener.header(&Destination::Ip(from)),
            Some(_) => {
                tally.drop(DropReason::Filtered);
                return;
            }
        };
        send_batch.push_behind(socket, to, flow, &header, data);
    }

    /// A frame that reports on a flow, in cell `seq` of a channel.
    pub(crate) fn report(
        &mut self,
        channel: ChannelIndex,
        seq: u64,
        frame: &Frame<'_>,
        punts: &mut PuntSender,
        now: Nanos,
    ) {
        match *frame {
            Frame::Status { flow, code } => {
                if let Some(RefusedFlow { socket, address, destination }) =
                    self.clients.status(channel, flow, code, now)
                    && let Some(Listening { id, .. }) = self.listening.get(socket as usize).and_then(Option::as_ref)
                {
                    let client = ClientAt { listener: *id, address };
                    let destination = destination.to_string();
                    self.notices.send(Notice::Refused { client, destination, status: code }, punts, now);
                }
            }
            Frame::Peer { flow, from } => self.clients.resolved((channel, flow), seq, from),
            Frame::Close { flow } => self.clients.closed(channel, flow),
            // A PONG has counted as received already, as any other cell. SESSION and AGAIN do not come here.
            _ => {}
        }
    }
}
