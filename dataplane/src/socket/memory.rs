//! Link sockets in memory: deterministic, for whole chains in one thread.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;

use super::Port;
use super::app_batch::{ReceiveBatch, SendBatch, SocketId};
use super::apps::{Apps, count_failure};
use crate::Nanos;
use crate::batch::{Arrivals, Departures, Lengths, RECEIVE_MAX};
use crate::buffer::{Cell, FreeList};
use crate::ledger::Tally;

/// A datagram under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

/// Decides what becomes of a datagram: none (lost), itself, or several.
pub type Tap = Box<dyn FnMut(Datagram) -> Vec<Datagram>>;

/// Called with the name of a call on application sockets.
pub type OnCall = Box<dyn FnMut(&'static str)>;

/// An address, and the only peer that a connected port there hears.
type QueueKey = (SocketAddr, Option<SocketAddr>);

/// A network without delay: every datagram goes through the tap and into its receiver's queue.
#[derive(Clone, Default)]
pub struct MemNet(Rc<RefCell<Inner>>);

#[derive(Default)]
struct Inner {
    queues: HashMap<QueueKey, VecDeque<Datagram>>,
    /// Datagrams in all queues.
    waiting: usize,
    has_bursts: bool,
    tap: Option<Tap>,
    blocked: bool,
    open_error: Option<i32>,
    on_call: Option<OnCall>,
    send_errors: HashMap<SocketAddr, i32>,
    waited: Nanos,
}

impl MemNet {
    /// Sends everything through `tap` from now on.
    pub fn tap(&self, tap: impl FnMut(Datagram) -> Vec<Datagram> + 'static) {
        self.0.borrow_mut().tap = Some(Box::new(tap));
    }

    /// Puts a datagram on the wire.
    pub fn send(&self, datagram: Datagram) {
        let mut inner = self.0.borrow_mut();
        let out = match inner.tap.as_mut() {
            Some(tap) => tap(datagram),
            None => vec![datagram],
        };
        inner.waiting += out.len();
        for datagram in out {
            let connected = (datagram.to, Some(datagram.from));
            match inner.queues.get_mut(&connected) {
                Some(queue) => queue.push_back(datagram),
                None => inner.queues.entry((datagram.to, None)).or_default().push_back(datagram),
            }
        }
    }

    /// Ports take nothing from now on, as if their send buffers were full, or take it again.
    pub fn block(&self, blocked: bool) {
        self.0.borrow_mut().blocked = blocked;
    }

    /// Calls `each` whenever an application socket is opened or closed, or gives a batch: "open", "close", "receive".
    pub fn on_call(&self, each: impl FnMut(&'static str) + 'static) {
        self.0.borrow_mut().on_call = Some(Box::new(each));
    }

    fn called(&self, name: &'static str) {
        if let Some(each) = &mut self.0.borrow_mut().on_call {
            each(name);
        }
    }

    /// Opening a socket fails with this errno from now on, or works again.
    pub fn fail_open(&self, errno: Option<i32>) {
        self.0.borrow_mut().open_error = errno;
    }

    /// From now on sends of application sockets to this address fail with this errno, or succeed again.
    pub fn fail_send(&self, to: SocketAddr, errno: Option<i32>) {
        let errors = &mut self.0.borrow_mut().send_errors;
        match errno {
            Some(errno) => errors.insert(to, errno),
            None => errors.remove(&to),
        };
    }

    /// What is received from now on had waited for this long in a socket with a backlog.
    pub fn set_waited(&self, waited: Nanos) {
        self.0.borrow_mut().waited = waited;
    }

    /// Takes the next datagram for an address.
    pub fn receive(&self, at: SocketAddr) -> Option<Datagram> {
        self.take((at, None))
    }

    /// From now on a port receives together what one sender has sent without a pause, as a kernel with GRO has it.
    pub fn join_bursts(&self) {
        self.0.borrow_mut().has_bursts = true;
    }

    /// Who has sent the next datagram for an address.
    fn front(&self, at: QueueKey) -> Option<SocketAddr> {
        Some(self.0.borrow().queues.get(&at)?.front()?.from)
    }

    fn take(&self, at: QueueKey) -> Option<Datagram> {
        let mut inner = self.0.borrow_mut();
        let datagram = inner.queues.get_mut(&at)?.pop_front()?;
        inner.waiting -= 1;
        Some(datagram)
    }

    /// A port at `address`, for datagrams of these lengths.
    pub fn port(&self, address: SocketAddr, lengths: Lengths) -> MemPort {
        MemPort { net: self.clone(), at: (address, None), lengths }
    }

    /// Another one at `address` that alone hears what `peer` sends there.
    pub fn connected(&self, address: SocketAddr, peer: SocketAddr, lengths: Lengths) -> MemPort {
        let at = (address, Some(peer));
        self.0.borrow_mut().queues.entry(at).or_default();
        MemPort { net: self.clone(), at, lengths }
    }

    /// Datagrams that have not been received.
    pub fn waiting(&self) -> usize {
        self.0.borrow().waiting
    }
}

/// One address of a [`MemNet`].
pub struct MemPort {
    net: MemNet,
    at: QueueKey,
    lengths: Lengths,
}

/// Messages of one receive call, and datagrams of a burst.
const MESSAGES: usize = 64;
const SEGMENTS: usize = 64;

impl Port for MemPort {
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize {
        let (mut count, mut messages, mut segments, mut last) = (0, 0, 0, None);
        let has_bursts = self.net.0.borrow().has_bursts;
        while count < RECEIVE_MAX && free.free() > 0 {
            let from = self.net.front(self.at);
            segments = if has_bursts && from == last { segments + 1 } else { 0 };
            messages += usize::from(segments % SEGMENTS == 0);
            last = from;
            if messages > MESSAGES {
                break;
            }
            let Some(Datagram { from, bytes, .. }) = self.net.take(self.at) else { break };
            if bytes.len() == self.lengths.cell {
                let buffer = free.take().expect("just asked");
                buffer.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
                into.push(Cell::new(buffer), from);
            } else {
                into.push_other(self.lengths, bytes.len(), std::iter::once(&bytes[..]), from);
            }
            count += 1;
        }
        count
    }

    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool {
        if self.net.0.borrow().blocked {
            return out.is_empty();
        }
        for (bytes, to) in out.front() {
            self.net.send(Datagram { from: self.at.0, to, bytes: bytes.to_vec() });
        }
        tally.sent += out.len() as u64;
        out.done(out.len(), free);
        true
    }

    fn set_ready(&mut self) {}

    fn waited(&mut self, _now: Nanos) -> Nanos {
        self.net.0.borrow().waited
    }
}

/// Application sockets in memory, on a [`MemNet`] of their own.
pub struct MemApps {
    net: MemNet,
    sockets: Vec<Option<SocketAddr>>,
    host: std::net::IpAddr,
    next_port: u16,
    at: usize,
    unreachable: Vec<(SocketId, SocketAddr)>,
}

impl MemApps {
    /// Listeners at `listeners`, numbered from 0; sockets opened later are at `host`.
    pub fn new(net: MemNet, listeners: Vec<SocketAddr>, host: std::net::IpAddr) -> MemApps {
        MemApps {
            net,
            sockets: listeners.into_iter().map(Some).collect(),
            host,
            next_port: 40000,
            at: 0,
            unreachable: Vec::new(),
        }
    }
}

impl Apps for MemApps {
    fn open(&mut self, _ipv6: bool) -> std::io::Result<SocketId> {
        self.net.called("open");
        if let Some(errno) = self.net.0.borrow().open_error {
            return Err(std::io::Error::from_raw_os_error(errno));
        }
        self.next_port += 1;
        self.sockets.push(Some(SocketAddr::new(self.host, self.next_port)));
        Ok(self.sockets.len() as SocketId - 1)
    }

    /// Listens at its address in this net; the socket itself is not used.
    fn adopt(&mut self, socket: UdpSocket) -> std::io::Result<SocketId> {
        self.sockets.push(Some(socket.local_addr()?));
        Ok(self.sockets.len() as SocketId - 1)
    }

    fn close(&mut self, socket: SocketId) {
        self.net.called("close");
        self.sockets[socket as usize] = None;
    }

    fn close_now(&mut self, socket: SocketId) {
        self.close(socket);
    }

    fn closing(&self) -> usize {
        0
    }

    fn recv(&mut self, receive_batch: &mut ReceiveBatch) -> bool {
        for _ in 0..self.sockets.len() {
            self.at = (self.at + 1) % self.sockets.len();
            let Some(address) = self.sockets[self.at] else { continue };
            receive_batch.start(self.at as SocketId);
            while !receive_batch.is_full() {
                let Some(datagram) = self.net.receive(address) else { break };
                receive_batch.push(datagram.from, &datagram.bytes);
            }
            if receive_batch.iter().next().is_some() {
                self.net.called("receive");
                return true;
            }
        }
        false
    }

    fn send_from(
        &mut self,
        first: usize,
        send_batch: &mut SendBatch,
        tally: &mut Tally,
        pauses: &mut dyn FnMut() -> bool,
    ) -> Option<usize> {
        for (at, (item, data)) in send_batch.iter().enumerate().skip(first) {
            if at > first && pauses() {
                return Some(at);
            }
            match self.sockets.get(item.socket as usize).copied().flatten() {
                Some(_) if self.net.0.borrow().send_errors.contains_key(&item.to) => {
                    let error = std::io::Error::from_raw_os_error(self.net.0.borrow().send_errors[&item.to]);
                    if count_failure(&error, tally) {
                        self.unreachable.push((item.socket, item.to));
                    }
                }
                Some(from) => {
                    self.net.send(Datagram { from, to: item.to, bytes: data.to_vec() });
                    tally.sent += 1;
                }
                None => tally.send_errors += 1,
            }
        }
        send_batch.clear();
        None
    }

    fn waited(&mut self, _socket: SocketId, _now: Nanos) -> Nanos {
        self.net.0.borrow().waited
    }

    fn unreachable(&mut self, each: &mut dyn FnMut(SocketId, SocketAddr)) {
        self.unreachable.drain(..).for_each(|(socket, to)| each(socket, to));
    }

    fn set_ready(&mut self, _token: u64) {}

    fn set_all_ready(&mut self) {}
}
