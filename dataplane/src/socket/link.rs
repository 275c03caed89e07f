//! Link sockets, with GSO and GRO where the kernel has them.
//!
//! Every link socket has one length of cell, so the kernel's offload fits exactly. What arrives as a burst is
//! scattered over as many buffers, one cell each (`rx_buffers`); what leaves is gathered from buffers in shuffled
//! order, up to 64 cells to one peer, never of two lengths: the kernel does not see where buffers end. No byte is moved
//! for it in user space.
//!
//! Neighbours: [`super::offload`] says whether GSO and GRO may be used, [`super::backend`] moves the messages.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;

use arrayvec::ArrayVec;

use super::Port;
use super::backend::Calls;
use super::backlog::Backlog;
use super::offload::Offloads;
use super::rx_buffers::{RxBuffers, burst_cells_max};
use crate::Nanos;
use crate::batch::{Arrivals, Departures, Lengths};
use crate::buffer::FreeList;
use crate::ledger::{Tally, Traffic};
use crate::sys::{self, Message, Received};

/// One UDP socket of a link.
pub struct LinkPort {
    socket: UdpSocket,
    calls: Calls,
    lengths: Lengths,
    ready: bool,
    backlog: Backlog,
    rx_buffers: RxBuffers,
    /// True if cells may be sent in GSO bursts.
    gso: bool,
    traffic: Traffic,
}

impl LinkPort {
    /// Around a bound socket for datagrams of these lengths. Where bursts are joined, the socket must have been
    /// given to [`sys::enable_gro`]; `calls` must be of this socket.
    pub fn new(socket: UdpSocket, calls: Calls, lengths: Lengths, offloads: Offloads) -> LinkPort {
        LinkPort {
            socket,
            calls,
            lengths,
            ready: true,
            backlog: Backlog::default(),
            rx_buffers: RxBuffers::new(lengths, offloads.gro),
            gso: offloads.gso,
            traffic: Traffic::default(),
        }
    }

    /// The buffers that the next call fills, in order.
    #[cfg(test)]
    pub(super) fn rx_buffers_at(&self) -> Vec<*const u8> {
        self.rx_buffers.at()
    }
}

impl Port for LinkPort {
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize {
        if !self.ready {
            return 0;
        }
        let messages = self.rx_buffers.fill(free);
        if messages == 0 {
            return 0;
        }
        let mut received: ArrayVec<(usize, Received), { sys::MESSAGES_MAX }> = ArrayVec::new();
        let per_message = self.rx_buffers.per_message;
        let got = self.calls.recv(&self.socket, self.rx_buffers.slices(messages), per_message, |i, message| {
            received.push((i, message));
        });
        // Fewer than asked for: the queue is empty. An error other than "nothing waits" has no datagram behind it
        // either; level-triggered polling brings us back if there is more.
        self.ready = matches!(got, Ok(got) if got == messages);
        if received.is_empty() {
            self.backlog.end();
        }
        let before = into.len();
        for (i, message) in &received {
            self.rx_buffers.take(*i, *message, self.lengths, free, into);
        }
        let arrived = into.len() - before;
        self.rx_buffers.learn(received.len(), arrived);
        self.traffic.received += received.len() as u64;
        arrived
    }

    fn waited(&mut self, now: Nanos) -> Nanos {
        self.backlog.waited(self.socket.as_fd(), self.ready, now)
    }

    fn rx_buffers(&self) -> usize {
        self.rx_buffers.len()
    }

    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool {
        while !out.is_empty() {
            let burst_max = if self.gso { burst_cells_max(out.cell_len()) } else { 1 };
            match self.send_some(out, burst_max) {
                Ok(cells) => {
                    tally.sent += cells as u64;
                    out.done(cells, free);
                }
                Err(error) if waits(&error) => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(refused) => match self.send_some(out, 1) {
                    Ok(cells) => {
                        // What goes alone does not go in a burst: this kernel or this device does not cut.
                        self.gso &= burst_max == 1 || !is_about_gso(&refused);
                        tally.sent += cells as u64;
                        out.done(cells, free);
                    }
                    Err(error) if waits(&error) => return false,
                    Err(_) => {
                        tally.send_errors += 1;
                        out.lose(1, free);
                    }
                },
            }
        }
        true
    }

    fn set_ready(&mut self) {
        self.ready = true;
    }

    fn traffic(&self) -> Traffic {
        Traffic { gso: self.gso, uring: matches!(self.calls, Calls::Uring(_)), ..self.traffic }
    }
}

impl LinkPort {
    /// One call; cells that went.
    fn send_some(&mut self, out: &Departures, burst_max: usize) -> io::Result<usize> {
        let segment = out.cell_len() as u16;
        let messages =
            out.bursts(burst_max).map(|(to, pieces)| Message { to, pieces, segment: (pieces > 1).then_some(segment) });
        let sent = self.calls.send(&self.socket, messages, out.cells())?;
        self.traffic.sent += sent as u64;
        Ok(out.bursts(burst_max).take(sent).map(|(_, cells)| cells).sum())
    }
}

/// True if an error may be due to sending a burst.
fn is_about_gso(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

/// True if the socket will accept the cells later.
pub(crate) fn waits(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}
