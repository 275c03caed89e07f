//! Receives at the destination and at the clients.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use arrayvec::ArrayVec;
use dataplane::runner::Poller;
use dataplane::sys::{self, Message, Received};
use hdrhistogram::Histogram;

use super::sender::Sender;
use super::{Flows, LOOK, SLEEP_MIN, Shared};
use crate::load::header::{Header, Headers, Purpose};
use crate::load::record::{Arrival, Recorder, Sent};
use crate::load::source::SECOND;
use crate::results::histogram;
use crate::udp::{self, MESSAGE_MAX, MESSAGES};

/// Receives up to a call's worth of messages.
fn receive(socket: &UdpSocket, buffers: &mut [Vec<u8>]) -> ArrayVec<Received, MESSAGES> {
    let mut received = ArrayVec::new();
    let buffers = buffers.iter_mut().map(Vec::as_mut_slice);
    let _ = sys::recv(socket, buffers, 1, |_, message| received.push(message));
    received
}

/// Calls `each` with every datagram that waits, up to a call's worth. Returns whether there may be more.
pub(super) fn each_datagram(
    socket: &UdpSocket,
    buffers: &mut [Vec<u8>],
    mut each: impl FnMut(&[u8], SocketAddr),
) -> bool {
    let received = receive(socket, buffers);
    for (message, buffer) in received.iter().zip(buffers.iter()) {
        let bytes = &buffer[..message.len.min(MESSAGE_MAX)];
        bytes.chunks(message.segment.unwrap_or(message.len).max(1)).for_each(|datagram| each(datagram, message.from));
    }
    received.is_full()
}

/// Counts and answers what arrives, and sends the backward direction.
pub(super) struct Destination<'a> {
    pub(super) shared: &'a Shared,
    pub(super) sink: &'a UdpSocket,
    pub(super) recorder: Recorder,
    pub(super) sender: Sender<'a>,
    /// Source address of each flow.
    pub(super) peers: Vec<SocketAddr>,
    pub(super) answers: bool,
}

impl Destination<'_> {
    pub(super) fn run(mut self) -> anyhow::Result<(Recorder, Sent)> {
        let Self { shared, sink, .. } = self;
        let poller = Poller::new()?;
        poller.add(sink.as_fd(), 0)?;
        let mut buffers = udp::receive_buffers();
        let mut last_second = 0;
        while !shared.end.load(Ordering::Acquire) {
            let more = self.receive(&mut buffers);
            let peers = &self.peers;
            let wait = self.sender.turn(|_| sink, |flow| peers[flow]).unwrap_or(LOOK);
            if !more && !wait.is_zero() {
                poller.wait(Some(wait.clamp(SLEEP_MIN, LOOK)), |_| {});
            }

            let now = shared.now();
            if now / SECOND > last_second {
                last_second = now / SECOND;
                *shared.second() = self.recorder.last_second(now);
            }
        }
        Ok((self.recorder, self.sender.sent))
    }

    /// Receives up to a call's worth. Returns whether there may be more.
    fn receive(&mut self, buffers: &mut [Vec<u8>]) -> bool {
        let received = receive(self.sink, buffers);
        let (now_ns, mut arrived) = (self.shared.now(), 0);
        for (message, buffer) in received.iter().zip(buffers.iter_mut()) {
            let bytes = &mut buffer[..message.len.min(MESSAGE_MAX)];
            let (new, only_forward) = self.count(bytes, message, now_ns);
            arrived += new;
            if self.answers && only_forward {
                self.answer(bytes, message);
            }
        }
        self.shared.arrived.forward.fetch_add(arrived, Ordering::Release);
        received.is_full()
    }

    /// Counts the datagrams of a message. Returns how many are new, and whether all of them are forward datagrams.
    fn count(&mut self, bytes: &[u8], message: &Received, now_ns: u64) -> (u64, bool) {
        let (mut new, mut only_forward) = (0, true);
        for datagram in bytes.chunks(message.segment.unwrap_or(message.len).max(1)) {
            let Some(Header { purpose: Purpose::Forward, flow, number, intended_ns }) =
                self.shared.headers.read(datagram)
            else {
                only_forward = false;
                continue;
            };
            let flow = flow as usize;
            // An exit may change the port of a flow.
            if let Some(peer) = self.peers.get_mut(flow) {
                *peer = message.from;
            }
            let arrival = Arrival { flow, number, intended_ns, now_ns, len: datagram.len() };
            new += u64::from(self.recorder.arrived(arrival));
        }
        (new, only_forward)
    }

    /// Sends a message back to where it came from.
    fn answer(&self, bytes: &mut [u8], message: &Received) {
        bytes.chunks_mut(message.segment.unwrap_or(message.len).max(1)).for_each(Headers::mark_answer);
        let segment = message.segment.filter(|segment| *segment < message.len).map(|segment| segment as u16);
        let back = Message { to: message.from, pieces: 1, segment };
        // A message that the kernel refuses is lost, and the client notices.
        let _ = sys::send(self.sink, std::iter::once(back), std::iter::once(&bytes[..]));
    }
}

/// Counts what arrives at the clients, and records round trips by group.
pub(super) fn clients(
    shared: &Shared,
    clients: &[UdpSocket],
    flows: &Flows,
) -> anyhow::Result<(Recorder, Vec<Histogram<u64>>)> {
    let poller = Poller::new()?;
    for (flow, client) in clients.iter().enumerate() {
        poller.add(client.as_fd(), flow as u64)?;
    }
    let mut recorder = flows.recorder();
    let mut trips: Vec<Histogram<u64>> = (0..flows.streams).map(|_| histogram()).collect();
    let mut buffers = udp::receive_buffers();
    let mut ready = Vec::new();
    while !shared.end.load(Ordering::Acquire) {
        poller.wait(Some(LOOK), |flow| ready.push(flow as usize));
        for client in ready.drain(..) {
            let (mut arrived, mut answers) = (0, 0);
            let mut take = |bytes: &[u8], _: SocketAddr| {
                let now_ns = shared.now();
                let Some(Header { purpose, flow, number, intended_ns }) = shared.headers.read(bytes) else { return };
                let flow = flow as usize;
                // A datagram at the wrong client does not count as arrived.
                if flow != client {
                    return;
                }
                match purpose {
                    Purpose::Backward => {
                        let arrival = Arrival { flow, number, intended_ns, now_ns, len: bytes.len() };
                        arrived += u64::from(recorder.arrived(arrival));
                    }
                    Purpose::Answer => {
                        answers += 1;
                        trips[flows.groups[flow]].saturating_record(now_ns.saturating_sub(intended_ns).max(1));
                    }
                    Purpose::Hello | Purpose::Forward => {}
                }
            };
            while each_datagram(&clients[client], &mut buffers, &mut take) {}
            shared.arrived.backward.fetch_add(arrived, Ordering::Release);
            shared.answers.fetch_add(answers, Ordering::Release);
        }
    }
    Ok((recorder, trips))
}
