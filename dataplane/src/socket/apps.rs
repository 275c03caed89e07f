//! Application sockets: the entry's listeners and the exit's flows.
//!
//! Datagrams of any length here. Where an application sends bursts, they come as such and are taken apart; where
//! sizes and destination repeat, datagrams leave as bursts. Two implementations of [`Apps`]: [`UdpApps`] and, for
//! tests, [`super::memory::MemApps`].

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use super::app_batch::{ReceiveBatch, SendBatch, SocketId};
use super::backlog::Backlog;
use super::link::waits;
use super::offload::Offloads;
use crate::Nanos;
use crate::ledger::{DropReason, Tally};
use crate::runner::{APPS, Poller};
use crate::sys;

/// Application sockets of a worker.
pub trait Apps {
    /// Opens an unconnected socket on a port of the system's choice.
    ///
    /// # Errors
    /// No descriptors or ports left.
    fn open(&mut self, ipv6: bool) -> io::Result<SocketId>;
    /// Takes over a socket that is bound.
    ///
    /// # Errors
    /// It cannot be watched.
    fn adopt(&mut self, socket: UdpSocket) -> io::Result<SocketId>;
    /// Closes a socket, after the next [`Apps::send`].
    fn close(&mut self, socket: SocketId);
    /// Closes a socket from which nothing waits to be sent. No other gets its number before the next [`Apps::send`].
    fn close_now(&mut self, socket: SocketId);
    /// Sockets that will be closed after the next [`Apps::send`].
    fn closing(&self) -> usize;
    /// Receives one batch from one socket that has something. False if none has. The batch may be empty if sockets had
    /// nothing but errors.
    fn recv(&mut self, receive_batch: &mut ReceiveBatch) -> bool;
    /// How long the newest datagram of the last batch, which came from `socket`, had waited, if that socket has not
    /// been read empty for some time; else 0.
    fn waited(&mut self, socket: SocketId, now: Nanos) -> Nanos;
    /// Sends all of `send_batch` and empties it; counts what went and, by reason, what did not.
    fn send(&mut self, send_batch: &mut SendBatch, tally: &mut Tally) {
        self.send_from(0, send_batch, tally, &mut || false);
    }
    /// The same from the datagram at place `first` on, until `pauses` is true, which it asks after calls of the
    /// system's. Then it returns the place of the next datagram, from which it must be called again, even if it is
    /// behind the last one: sockets remain to be closed.
    fn send_from(
        &mut self,
        first: usize,
        send_batch: &mut SendBatch,
        tally: &mut Tally,
        pauses: &mut dyn FnMut() -> bool,
    ) -> Option<usize>;
    /// Destinations that were reported unreachable since the last call.
    fn unreachable(&mut self, each: &mut dyn FnMut(SocketId, SocketAddr));
    /// The poller saw a socket readable.
    fn set_ready(&mut self, token: u64);
    /// Any socket may be readable: the poller reports few at a time.
    fn set_all_ready(&mut self);
}

struct AppSocket {
    socket: UdpSocket,
    /// Its ICMP errors are reported.
    reports: bool,
    queued: bool,
    backlog: Backlog,
}

pub struct UdpApps {
    poller: Poller,
    sockets: Vec<Option<AppSocket>>,
    vacant: Vec<SocketId>,
    /// Closed in this turn: what waits to be sent from them goes first, and nobody inherits their numbers
    /// before.
    closing: Vec<SocketId>,
    /// Numbers of those that are closed already.
    resting: Vec<SocketId>,
    ready: VecDeque<SocketId>,
    unreachable: Vec<(SocketId, SocketAddr)>,
    rcvbuf: usize,
    offloads: Offloads,
}

/// Errors that are reported to the sender of a datagram: the destination is unreachable.
const REPORTED: [i32; 7] = [
    libc::ECONNREFUSED,
    libc::EHOSTUNREACH,
    libc::ENETUNREACH,
    libc::EHOSTDOWN,
    libc::ENETDOWN,
    libc::EADDRNOTAVAIL,
    libc::EACCES,
];
/// Errors taken off a socket's queue at a time; level-triggered, the rest comes back.
const ERRORS_MAX: usize = 64;

/// Counts a datagram that the kernel did not take. True if the destination is unreachable and the sender should know.
pub(crate) fn count_failure(error: &io::Error, tally: &mut Tally) -> bool {
    let errno = error.raw_os_error().unwrap_or(0);
    let reported = REPORTED.contains(&errno);
    match errno {
        _ if reported => tally.drop(DropReason::Unreachable),
        libc::EPERM => tally.drop(DropReason::Forbidden),
        libc::EMSGSIZE => tally.drop(DropReason::PathMtu),
        _ if waits(error) => tally.drop(DropReason::SendBufferFull),
        _ => tally.send_errors += 1,
    }
    reported
}

impl UdpApps {
    /// Around sockets already bound, numbered from 0; more can be opened.
    ///
    /// # Errors
    /// They cannot be watched.
    pub fn new(poller: Poller, listeners: Vec<UdpSocket>, rcvbuf: usize, offloads: Offloads) -> io::Result<UdpApps> {
        let mut apps = UdpApps {
            poller,
            sockets: Vec::new(),
            vacant: Vec::new(),
            closing: Vec::new(),
            resting: Vec::new(),
            ready: VecDeque::new(),
            unreachable: Vec::new(),
            rcvbuf,
            offloads,
        };
        for socket in listeners {
            apps.add(socket, false)?;
        }
        Ok(apps)
    }

    fn add(&mut self, socket: UdpSocket, reports: bool) -> io::Result<SocketId> {
        socket.set_nonblocking(true)?;
        sys::size_receive_buffer(&socket, self.rcvbuf)?;
        if self.offloads.gro {
            sys::enable_gro(&socket)?;
        }
        let id = self.vacant.pop().unwrap_or(self.sockets.len() as SocketId);
        if let Err(error) = self.poller.add(socket.as_fd(), APPS + u64::from(id)) {
            self.vacant.push(id);
            return Err(error);
        }
        if self.sockets.len() <= id as usize {
            self.sockets.resize_with(id as usize + 1, || None);
        }
        self.sockets[id as usize] = Some(AppSocket { socket, reports, queued: false, backlog: Backlog::default() });
        Ok(id)
    }

    /// Sockets that the system holds.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.sockets.iter().flatten().count()
    }

    fn read_errors(socket: &UdpSocket, id: SocketId, out: &mut Vec<(SocketId, SocketAddr)>) {
        for _ in 0..ERRORS_MAX {
            let Ok(error) = sys::read_error(socket) else { return };
            if let Some(error) = error.filter(|error| REPORTED.contains(&error.errno)) {
                out.push((id, error.to));
            }
        }
    }
}

impl Apps for UdpApps {
    fn open(&mut self, ipv6: bool) -> io::Result<SocketId> {
        let any: SocketAddr = if ipv6 { (Ipv6Addr::UNSPECIFIED, 0).into() } else { (Ipv4Addr::UNSPECIFIED, 0).into() };
        let socket = socket2::Socket::new(socket2::Domain::for_address(any), socket2::Type::DGRAM, None)?;
        if ipv6 {
            socket.set_only_v6(true)?;
        }
        socket.bind(&any.into())?;
        sys::report_errors(&socket, ipv6)?;
        self.add(socket.into(), true)
    }

    fn adopt(&mut self, socket: UdpSocket) -> io::Result<SocketId> {
        self.add(socket, false)
    }

    fn close(&mut self, socket: SocketId) {
        self.closing.push(socket);
    }

    fn close_now(&mut self, socket: SocketId) {
        if self.sockets.get_mut(socket as usize).and_then(Option::take).is_some() {
            self.resting.push(socket);
        }
    }

    fn closing(&self) -> usize {
        self.closing.len()
    }

    fn recv(&mut self, receive_batch: &mut ReceiveBatch) -> bool {
        while let Some(id) = self.ready.pop_front() {
            let Some(Some(app)) = self.sockets.get_mut(id as usize) else { continue };
            app.queued = false;
            if app.reports {
                Self::read_errors(&app.socket, id, &mut self.unreachable);
            }
            receive_batch.start(id);
            if receive_batch.fill(&app.socket) {
                app.queued = true;
                self.ready.push_back(id);
            }
            if !receive_batch.is_empty() {
                return true;
            }
            app.backlog.end();
            if self.unreachable.len() >= ERRORS_MAX {
                return true;
            }
        }
        false
    }

    fn waited(&mut self, socket: SocketId, now: Nanos) -> Nanos {
        match self.sockets.get_mut(socket as usize) {
            // After a full call it is queued again.
            Some(Some(app)) => app.backlog.waited(app.socket.as_fd(), app.queued, now),
            _ => 0,
        }
    }

    fn send_from(
        &mut self,
        first: usize,
        send_batch: &mut SendBatch,
        tally: &mut Tally,
        pauses: &mut dyn FnMut() -> bool,
    ) -> Option<usize> {
        let mut at = first;
        let mut retried = false;
        // Datagrams before this one go one by one: the kernel refused them as a burst.
        let mut alone = 0;
        while at < send_batch.items.len() {
            if at > first && pauses() {
                return Some(at);
            }
            let id = send_batch.items[at].socket;
            let run = send_batch.items[at..].iter().take_while(|item| item.socket == id).count();
            let Some(Some(app)) = self.sockets.get(id as usize) else {
                tally.send_errors += run as u64;
                at += run;
                continue;
            };
            let from = if self.offloads.gso { alone } else { usize::MAX };
            let messages = || send_batch.messages(at..at + run, from);
            let datagrams = send_batch.iter().skip(at).map(|(_, data)| data);
            match sys::send(&app.socket, messages(), datagrams) {
                Ok(sent) => {
                    let sent: usize = messages().take(sent).map(|message| message.pieces).sum();
                    tally.sent += sent as u64;
                    at += sent;
                    retried = false;
                }
                // A socket that reports errors fails the next send for an earlier one's: try again.
                Err(error) if !retried && !waits(&error) => {
                    retried = true;
                    if app.reports {
                        Self::read_errors(&app.socket, id, &mut self.unreachable);
                    }
                }
                // A burst may be too much where each of its datagrams is not.
                Err(error) if !waits(&error) && messages().next().is_some_and(|message| message.pieces > 1) => {
                    alone = at + messages().next().map_or(1, |message| message.pieces);
                    // No device here ever cuts, or this kernel does not.
                    self.offloads.gso &= !matches!(error.raw_os_error(), Some(libc::EIO | libc::EOPNOTSUPP));
                }
                Err(error) => {
                    if count_failure(&error, tally) && app.reports {
                        self.unreachable.push((id, send_batch.items[at].to));
                    }
                    at += 1;
                    retried = false;
                }
            }
        }
        while let Some(id) = self.closing.pop() {
            self.close_now(id);
            if pauses() {
                return Some(at);
            }
        }
        send_batch.clear();
        for id in self.resting.drain(..) {
            self.unreachable.retain(|(of, _)| *of != id);
            self.vacant.push(id);
        }
        None
    }

    fn unreachable(&mut self, each: &mut dyn FnMut(SocketId, SocketAddr)) {
        self.unreachable.drain(..).for_each(|(socket, to)| each(socket, to));
    }

    fn set_ready(&mut self, token: u64) {
        let id = (token - APPS) as SocketId;
        if let Some(Some(app)) = self.sockets.get_mut(id as usize)
            && !app.queued
        {
            app.queued = true;
            self.ready.push_back(id);
        }
    }

    fn set_all_ready(&mut self) {
        (0..self.sockets.len() as u64).for_each(|id| self.set_ready(APPS + id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::app_batch::FlowId;

    #[test]
    fn unreachable_destination_costs_no_other_its_datagram() {
        let poller = Poller::new().unwrap();
        let mut apps = UdpApps::new(poller, Vec::new(), 65536, Offloads::BOTH).unwrap();
        let id = apps.open(false).unwrap();
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut tally = Tally::default();
        let mut send_batch = SendBatch::default();
        // The second send is the first to meet the error of the first.
        for _ in 0..2 {
            send_batch.push(id, there.local_addr().unwrap(), FlowId(2), b"y");
            send_batch.push(id, gone, FlowId(1), b"x");
            apps.send(&mut send_batch, &mut tally);
        }
        assert_eq!((tally.sent, tally.send_errors), (4, 0));
        there.set_nonblocking(true).unwrap();
        let mut buffer = [0; 8];
        assert_eq!((there.recv(&mut buffer).unwrap(), there.recv(&mut buffer).unwrap()), (1, 1));
        apps.set_ready(APPS + u64::from(id));
        apps.recv(&mut ReceiveBatch::default());
        let mut seen = Vec::new();
        apps.unreachable(&mut |socket, to| seen.push((socket, to)));
        assert!(!seen.is_empty() && seen.iter().all(|s| *s == (id, gone)));
    }

    #[test]
    fn every_failure_has_its_reason_and_the_next_datagram_leaves() {
        let mut apps = UdpApps::new(Poller::new().unwrap(), Vec::new(), 65536, Offloads::BOTH).unwrap();
        let id = apps.open(false).unwrap();
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (mut tally, mut send_batch) = (Tally::default(), SendBatch::default());
        // Longer than any datagram; a broadcast, which this socket may not send (EACCES).
        send_batch.push(id, there.local_addr().unwrap(), FlowId(1), &vec![0; 65_536]);
        send_batch.push(id, "255.255.255.255:9".parse().unwrap(), FlowId(2), b"x");
        send_batch.push(id, there.local_addr().unwrap(), FlowId(3), b"y");
        apps.send(&mut send_batch, &mut tally);
        assert_eq!((tally.drops(DropReason::PathMtu), tally.drops(DropReason::Unreachable), tally.sent), (1, 1, 1));
        let mut seen = Vec::new();
        apps.unreachable(&mut |_, to| seen.push(to.port()));
        assert_eq!(seen, [9]);
        for (errno, reason) in [
            (libc::ENETUNREACH, DropReason::Unreachable),
            (libc::EHOSTUNREACH, DropReason::Unreachable),
            (libc::EPERM, DropReason::Forbidden),
            (libc::EMSGSIZE, DropReason::PathMtu),
            (libc::EAGAIN, DropReason::SendBufferFull),
            (libc::ENOBUFS, DropReason::SendBufferFull),
        ] {
            let mut tally = Tally::default();
            let reported = count_failure(&io::Error::from_raw_os_error(errno), &mut tally);
            assert_eq!((tally.drops(reason), tally.send_errors), (1, 0));
            assert_eq!(reported, reason == DropReason::Unreachable);
        }
    }

    #[test]
    fn a_flooded_socket_gives_way_to_another_after_each_batch() {
        let sockets = [0; 2].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let [flooded, other] = [0, 1].map(|id: usize| sockets[id].local_addr().unwrap());
        let mut apps = UdpApps::new(Poller::new().unwrap(), sockets.into(), 1 << 20, Offloads::BOTH).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        (0..100).for_each(|_| _ = client.send_to(b"", flooded).unwrap());
        client.send_to(b"me too", other).unwrap();
        (0..2).for_each(|id| apps.set_ready(APPS + id));
        let mut receive_batch = ReceiveBatch::default();
        let turns: Vec<SocketId> =
            std::iter::from_fn(|| apps.recv(&mut receive_batch).then(|| receive_batch.socket())).collect();
        assert_eq!(turns[..3], [0, 1, 0]);
        assert!(turns.len() > 10 && turns[3..].iter().all(|id| *id == 0), "{turns:?}");
    }

    #[test]
    fn errors_are_read_sixty_four_at_a_time() {
        let mut apps = UdpApps::new(Poller::new().unwrap(), Vec::new(), 1 << 20, Offloads::BOTH).unwrap();
        let id = apps.open(false).unwrap();
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let app = apps.sockets[id as usize].as_ref().unwrap().socket.try_clone().unwrap();
        // A pending error fails the next send, and is thereby taken; its entry stays in the queue.
        let sent = (0..300).filter(|_| app.send_to(b"x", gone).is_ok()).count();
        let mut receive_batch = ReceiveBatch::default();
        let mut seen = Vec::new();
        for _ in 0..sent.div_ceil(ERRORS_MAX) {
            let before = seen.len();
            apps.set_ready(APPS + u64::from(id));
            apps.recv(&mut receive_batch);
            apps.unreachable(&mut |_, to| seen.push(to));
            assert!(seen.len() - before <= ERRORS_MAX);
        }
        assert!(sent > 100 && seen.len() == sent, "{} of {sent}", seen.len());
        assert_eq!(sys::read_error(&app).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn sending_pauses_after_each_socket_that_it_closes() {
        let mut apps = UdpApps::new(Poller::new().unwrap(), Vec::new(), 65536, Offloads::BOTH).unwrap();
        let ids = [0; 3].map(|_| apps.open(false).unwrap());
        ids.into_iter().for_each(|id| apps.close(id));
        let (mut send_batch, mut tally) = (SendBatch::default(), Tally::default());
        for held in [2, 1, 0] {
            assert_eq!(apps.send_from(0, &mut send_batch, &mut tally, &mut || true), Some(0));
            assert_eq!(apps.held(), held);
            assert_eq!(apps.vacant, [], "no number is free before all are closed");
        }
        assert_eq!(apps.send_from(0, &mut send_batch, &mut tally, &mut || true), None);
        assert_eq!(apps.vacant.len(), 3);
    }

    #[test]
    fn datagram_of_a_flow_closed_in_its_turn_keeps_its_socket() {
        let mut apps = UdpApps::new(Poller::new().unwrap(), Vec::new(), 65536, Offloads::BOTH).unwrap();
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        let first = apps.open(false).unwrap();
        let port = |apps: &UdpApps, id: SocketId| {
            apps.sockets[id as usize].as_ref().map(|app| app.socket.local_addr().unwrap().port())
        };
        let mut send_batch = SendBatch::default();
        send_batch.push(first, there.local_addr().unwrap(), FlowId(1), b"last words");
        let own = port(&apps, first);
        apps.close(first);
        let second = apps.open(false).unwrap();
        assert_ne!(first, second);
        let mut tally = Tally::default();
        apps.send(&mut send_batch, &mut tally);
        let (_, from) = there.recv_from(&mut [0; 16]).unwrap();
        assert_eq!((Some(from.port()), tally.sent), (own, 1));
        assert_eq!(port(&apps, first), None, "and then it is closed");
        assert_eq!(apps.open(false).unwrap(), first);
        // One from which nothing waits is closed before, and nobody gets its number in this turn either.
        apps.close_now(first);
        assert_eq!((port(&apps, first), apps.closing()), (None, 0));
        let third = apps.open(false).unwrap();
        assert!(third != first);
        apps.send(&mut send_batch, &mut tally);
        assert_eq!(apps.open(false).unwrap(), first);
    }
}
