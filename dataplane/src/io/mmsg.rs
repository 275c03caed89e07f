//! Link sockets by recvmmsg and sendmmsg.

use std::io;
use std::net::UdpSocket;

use arrayvec::ArrayVec;

use super::{Port, Rx, Tx};
use crate::batch::{Arrivals, Departures, RECEIVE_MAX};
use crate::frame::{Cell, Frame, FreeList};
use crate::ledger::Tally;
use crate::sys;

/// One UDP socket of a link.
pub struct MmsgPort {
    socket: UdpSocket,
    ready: bool,
}

impl MmsgPort {
    /// Around a bound socket.
    pub fn new(socket: UdpSocket) -> MmsgPort {
        MmsgPort { socket, ready: true }
    }

    /// The socket, to be polled.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}

impl Rx for MmsgPort {
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize {
        if !self.ready {
            return 0;
        }
        let mut frames: ArrayVec<&'static mut Frame, RECEIVE_MAX> =
            std::iter::from_fn(|| free.take()).take(RECEIVE_MAX).collect();
        let wanted = frames.len();
        let mut received: ArrayVec<sys::Received, RECEIVE_MAX> = ArrayVec::new();
        let buffers = frames.iter_mut().map(|frame| &mut frame.bytes()[..]);
        let got = sys::recv_batch(&self.socket, buffers, |_, datagram| received.push(datagram));
        // Fewer than asked for: the queue is empty. An error other than "nothing waits" has no
        // datagram behind it either; level-triggered polling brings us back if there is more.
        self.ready = matches!(got, Ok(got) if got == wanted && wanted > 0);
        for (i, frame) in frames.into_iter().enumerate() {
            match received.get(i) {
                Some(datagram) => into.push(Cell::new(frame), datagram.len, datagram.from),
                None => free.give(frame),
            }
        }
        received.len()
    }
}

impl Tx for MmsgPort {
    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool {
        while !out.is_empty() {
            match sys::send_batch(&self.socket, out.front()) {
                Ok(sent) => {
                    tally.sent += sent as u64;
                    out.done(sent, free);
                }
                Err(error) if waits(&error) => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    tally.send_errors += 1;
                    out.done(1, free);
                }
            }
        }
        true
    }
}

/// Whether the socket will take it later.
pub(crate) fn waits(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

impl Port for MmsgPort {
    fn set_ready(&mut self) {
        self.ready = true;
    }
}
