//! Link sockets by recvmmsg and sendmmsg, with trains where the kernel has them.
//!
//! Every link socket has one length of cell, so the kernel's offload fits exactly. What arrives as a train is
//! scattered over as many frames, one cell each; what leaves is gathered from frames in shuffled order. No byte is
//! moved for it in user space.
//!
//! ```text
//! UDP_GRO      one message, n bytes in steps of s    s = cell: frames 0..n/s hold a cell each, a shorter tail is
//!                                                    judged by its own length, like a lone datagram
//!                                                    s other: every datagram is judged by its own length
//!              one message without steps             n = cell: one cell; else no cell, however many frames it fills
//!              longer than the frames offered        cells beyond them are counted as cut
//! UDP_SEGMENT  up to 64 cells to one peer            never of two lengths: the kernel does not see where frames end
//! ```
//!
//! Neighbours: [`super::offload`] says whether trains may be used, [`crate::sys`] makes the calls.

use std::io;
use std::net::UdpSocket;

use arrayvec::ArrayVec;

use super::offload::Trains;
use super::{Port, Rx, Tx};
use crate::batch::{Arrivals, Departures, Lengths, RECEIVE_MAX};
use crate::frame::{Cell, Frame, FreeList};
use crate::ledger::{Tally, Traffic};
use crate::sys::{self, Message, Received, TRAIN_BYTES_MAX, TRAIN_MAX};

/// Cells that a receive call should bring: so many stay in a core's second cache until they have left.
const CELLS_WANTED: usize = 256;

/// One UDP socket of a link.
pub struct MmsgPort {
    socket: UdpSocket,
    lengths: Lengths,
    ready: bool,
    offer: Offer,
    /// Whether what leaves may leave in trains.
    trains: bool,
    traffic: Traffic,
}

impl MmsgPort {
    /// Around a bound socket for datagrams of these lengths. Where trains are joined, the socket must have been
    /// given to [`sys::join_trains`].
    pub fn new(socket: UdpSocket, lengths: Lengths, trains: Trains) -> MmsgPort {
        MmsgPort {
            socket,
            lengths,
            ready: true,
            offer: Offer::new(lengths, trains.join),
            trains: trains.cut,
            traffic: Traffic::default(),
        }
    }

    /// The socket, to be polled.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}

/// Cells of a train at most.
pub(super) fn longest_train(cell_len: usize) -> usize {
    TRAIN_MAX.min(TRAIN_BYTES_MAX / cell_len)
}

impl Rx for MmsgPort {
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize {
        if !self.ready {
            return 0;
        }
        let messages = self.offer.fill(free);
        if messages == 0 {
            return 0;
        }
        let mut received: ArrayVec<Received, { sys::MESSAGES_MAX }> = ArrayVec::new();
        let per_message = self.offer.per_message;
        let got = sys::recv(&self.socket, self.offer.buffers(messages), per_message, |_, message| {
            received.push(message);
        });
        // Fewer than asked for: the queue is empty. An error other than "nothing waits" has no datagram behind it
        // either; level-triggered polling brings us back if there is more.
        self.ready = matches!(got, Ok(got) if got == messages);
        let before = into.len();
        for (i, message) in received.iter().enumerate() {
            self.offer.take(i, *message, self.lengths, free, into);
        }
        let arrived = into.len() - before;
        self.offer.learn(received.len(), arrived);
        self.traffic.received += received.len() as u64;
        arrived
    }

    fn offered(&self) -> usize {
        self.offer.frames.len()
    }
}

/// Frames that receive calls fill.
pub(super) struct Offer {
    frames: Vec<&'static mut Frame>,
    pub(super) per_message: usize,
    /// Bytes of each frame that are offered: a cell's where trains come, so that each fills its own frame; all of
    /// them otherwise.
    room: usize,
    /// Datagrams of a message lately, times 16.
    recent: usize,
}

impl Offer {
    fn new(lengths: Lengths, join: bool) -> Offer {
        Offer {
            frames: Vec::with_capacity(RECEIVE_MAX),
            per_message: if join { longest_train(lengths.cell) } else { 1 },
            room: if join { lengths.cell } else { wire::cell::MAX_CELL_LEN },
            recent: 16,
        }
    }

    /// Sees to frames for the next call, and for those that it will take away. Returns for how many messages: few
    /// where trains come, many where lone datagrams do.
    fn fill(&mut self, free: &mut FreeList) -> usize {
        let most = (RECEIVE_MAX / self.per_message).min(sys::MESSAGES_MAX);
        let wanted = (16 * CELLS_WANTED).div_ceil(self.recent.max(1)).min(most);
        while self.frames.len() < wanted * self.per_message
            && let Some(frame) = free.take()
        {
            self.frames.push(frame);
        }
        wanted.min(self.frames.len().min(free.free()) / self.per_message)
    }

    fn buffers(&mut self, messages: usize) -> impl Iterator<Item = &mut [u8]> {
        let room = self.room;
        self.frames.iter_mut().take(messages * self.per_message).map(move |frame| &mut frame.bytes_mut()[..room])
    }

    /// Sorts what one message brought; frames that hold cells go with them, and others take their place.
    fn take(&mut self, message: usize, got: Received, lengths: Lengths, free: &mut FreeList, into: &mut Arrivals) {
        let Received { len, segment, from } = got;
        let first = message * self.per_message;
        let frames = &mut self.frames[first..first + self.per_message];
        let step = segment.unwrap_or(len).max(1);
        if step != lengths.cell {
            let (room, held) = (self.room, self.room * frames.len());
            let mut at = 0;
            loop {
                let n = step.min(len - at);
                if at + n > held && lengths.handshakes.contains(&n) {
                    into.cut += 1;
                } else {
                    let skip = at % room;
                    let parts = frames.iter().skip(at / room).enumerate();
                    let parts = parts.map(|(i, frame)| &frame.bytes()[if i == 0 { skip } else { 0 }..room]);
                    into.push_other(lengths, n, parts, from);
                }
                at += n;
                if at >= len {
                    return;
                }
            }
        }
        let (whole, tail) = (len / step, len % step);
        let cells = whole.min(frames.len());
        into.cut += (whole - cells) as u64;
        if tail > 0 {
            match frames.get(whole) {
                Some(frame) => into.push_other(lengths, tail, std::iter::once(&frame.bytes()[..tail]), from),
                None => into.cut += 1,
            }
        }
        let full = frames[..cells].iter_mut().map(|frame| {
            let fresh = free.take().expect("seen to before the call");
            Cell::new(std::mem::replace(frame, fresh))
        });
        into.push_train(full, from);
    }

    /// What the last call brought decides how many messages the next one asks for.
    fn learn(&mut self, messages: usize, datagrams: usize) {
        if messages > 0 {
            self.recent = (7 * self.recent + 16 * datagrams / messages) / 8;
        }
    }
}

impl Tx for MmsgPort {
    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool {
        while !out.is_empty() {
            let train_max = if self.trains { longest_train(out.cell_len()) } else { 1 };
            match self.send_some(out, train_max) {
                Ok(cells) => {
                    tally.sent += cells as u64;
                    out.done(cells, free);
                }
                Err(error) if waits(&error) => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(refused) => match self.send_some(out, 1) {
                    Ok(cells) => {
                        // What goes alone does not go in a train: this kernel or this device does not cut.
                        self.trains &= train_max == 1 || !is_about_trains(&refused);
                        tally.sent += cells as u64;
                        out.done(cells, free);
                    }
                    Err(error) if waits(&error) => return false,
                    Err(_) => {
                        tally.send_errors += 1;
                        out.done(1, free);
                    }
                },
            }
        }
        true
    }
}

impl MmsgPort {
    /// One call; cells that went.
    fn send_some(&mut self, out: &Departures, train_max: usize) -> io::Result<usize> {
        let segment = out.cell_len() as u16;
        let messages =
            out.trains(train_max).map(|(to, pieces)| Message { to, pieces, segment: (pieces > 1).then_some(segment) });
        let sent = sys::send(&self.socket, messages, out.cells())?;
        self.traffic.sent += sent as u64;
        Ok(out.trains(train_max).take(sent).map(|(_, cells)| cells).sum())
    }
}

/// Whether an error may be a train's own.
fn is_about_trains(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

/// Whether the socket will take it later.
pub(crate) fn waits(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

impl Port for MmsgPort {
    fn set_ready(&mut self) {
        self.ready = true;
    }

    fn traffic(&self) -> Traffic {
        Traffic { trains: self.trains, ..self.traffic }
    }
}
