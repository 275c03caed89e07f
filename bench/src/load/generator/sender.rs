//! Sends one direction of a plan.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use arrayvec::ArrayVec;
use dataplane::sys::{self, GSO_BYTES_MAX, GSO_SEGMENTS_MAX, Message};
use wire::cell::Direction;

use super::{Flows, LOOK, SLEEP_MIN, Shared};
use crate::load::header::{Header, Purpose};
use crate::load::plan::{Due, Queue};
use crate::load::record::Sent;
use crate::udp;

/// Send calls of one turn: between turns the destination receives.
const CALLS_PER_TURN: usize = 64;

pub(super) struct Sender<'a> {
    shared: &'a Shared,
    queue: Queue,
    direction: Direction,
    flows: &'a Flows,
    bytes: Vec<u8>,
    pub(super) sent: Sent,
}

impl<'a> Sender<'a> {
    pub(super) fn new(shared: &'a Shared, queue: Queue, direction: Direction, flows: &'a Flows) -> Self {
        let sent = Sent::new(flows.groups.len(), flows.streams);
        Sender { shared, queue, direction, flows, bytes: vec![0x5a; udp::MESSAGE_MAX], sent }
    }

    /// Sends everything, each flow from its client.
    pub(super) fn run(mut self, clients: &[UdpSocket], to: SocketAddr) -> Sent {
        while let Some(wait) = self.turn(|flow| &clients[flow], |_| to) {
            if !wait.is_zero() {
                thread::sleep(wait.clamp(SLEEP_MIN, LOOK));
            }
        }
        self.sent
    }

    /// Sends datagrams that are due. Returns how long until the next one is due, `None` after the last.
    pub(super) fn turn<'s>(
        &mut self,
        socket: impl Fn(usize) -> &'s UdpSocket,
        to: impl Fn(usize) -> SocketAddr,
    ) -> Option<Duration> {
        for _ in 0..CALLS_PER_TURN {
            let due = self.queue.peek()?;
            let now = self.shared.now();
            if self.shared.stop.load(Ordering::Relaxed) {
                return None;
            }
            if due.at_ns > now {
                return Some(Duration::from_nanos(due.at_ns - now));
            }
            self.send(now, due, socket(due.flow), to(due.flow));
        }
        Some(Duration::ZERO)
    }

    /// Sends a datagram that is due, in one GSO burst with those of the same flow and length that are due next.
    fn send(&mut self, now: u64, first: Due, socket: &UdpSocket, to: SocketAddr) {
        let Due { flow, len, .. } = first;
        let purpose = match self.direction {
            Direction::Forward => Purpose::Forward,
            Direction::Backward => Purpose::Backward,
        };
        let most = GSO_SEGMENTS_MAX.min(GSO_BYTES_MAX / len).max(1);
        let mut times = ArrayVec::<u64, GSO_SEGMENTS_MAX>::new();
        while times.len() < most
            && self.queue.peek().is_some_and(|due| due.at_ns <= now && due.flow == flow && due.len == len)
        {
            let Some(due) = self.queue.pop() else { break };
            let number = self.sent.count(flow, due.at_ns);
            let header = Header { purpose, flow: flow as u32, number, intended_ns: due.at_ns };
            self.shared.headers.write(header, &mut self.bytes[times.len() * len..][..len]);
            times.push(due.at_ns);
        }

        let count = times.len();
        // Counted first, so that the count of arrivals never exceeds it.
        self.shared.sent[self.direction].fetch_add(count as u64, Ordering::Release);
        let segment = (count > 1).then_some(len as u16);
        let message = Message { to, pieces: 1, segment };
        if sys::send(socket, std::iter::once(message), std::iter::once(&self.bytes[..count * len])).is_err() {
            self.shared.sent[self.direction].fetch_sub(count as u64, Ordering::Release);
            times.iter().for_each(|at_ns| self.sent.refuse(flow, self.flows.groups[flow], *at_ns));
        }
    }
}
