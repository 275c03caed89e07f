//! Buffers for what comes, and what a message brought, sorted: a cell per buffer, and others by their length.
//!
//! ```text
//! UDP_GRO   one message, n bytes in steps of s    s = cell: buffers 0..n/s hold a cell each, a shorter tail is
//!                                                 judged by its own length, like a lone datagram
//!                                                 s other: every datagram is judged by its own length; the
//!                                                 last one may be a cell
//!           one message without steps             n = cell: one cell; else no cell, however many buffers it fills
//!           longer than the buffers of a message   cells beyond them are counted as cut
//! ```
//!
//! Neighbour: [`super::link`], whose receive calls fill the buffers.

use crate::batch::{Arrivals, Lengths, RECEIVE_MAX, gather};
use crate::buffer::{Buffer, Cell, FreeList};
use crate::sys::{self, GRO_BYTES_MAX, GSO_BYTES_MAX, GSO_SEGMENTS_MAX, Received};

/// Cells that a receive call should bring: this many stay in a core's second-level cache until they have left.
const CELLS_WANTED: usize = 256;

/// Cells of a burst to send at most.
pub(super) fn burst_cells_max(cell_len: usize) -> usize {
    GSO_SEGMENTS_MAX.min(GSO_BYTES_MAX / cell_len)
}

/// Cells of a received burst at most.
fn joined_cells_max(cell_len: usize) -> usize {
    GSO_SEGMENTS_MAX.min(GRO_BYTES_MAX / cell_len)
}

/// Buffers that receive calls fill.
pub(super) struct RxBuffers {
    buffers: Vec<&'static mut Buffer>,
    /// Buffers of each message.
    pub(super) per_message: usize,
    /// Bytes of each buffer that a message may fill: a cell's where bursts come, so that each fills its own buffer; all
    /// of them otherwise.
    room: usize,
    /// Datagrams of a message lately, times 16.
    recent: usize,
}

impl RxBuffers {
    pub(super) fn new(lengths: Lengths, join: bool) -> RxBuffers {
        RxBuffers {
            buffers: Vec::with_capacity(RECEIVE_MAX),
            per_message: if join { joined_cells_max(lengths.cell) } else { 1 },
            room: if join { lengths.cell } else { wire::cell::MAX_CELL_LEN },
            recent: 16,
        }
    }

    /// Sees to buffers for the next call, and for those that it will take away. Returns for how many messages: few
    /// where bursts come, many where lone datagrams do.
    pub(super) fn fill(&mut self, free: &mut FreeList) -> usize {
        let most = (RECEIVE_MAX / self.per_message).min(sys::MESSAGES_MAX);
        let wanted = (16 * CELLS_WANTED).div_ceil(self.recent.max(1)).min(most);
        while self.buffers.len() < wanted * self.per_message
            && let Some(buffer) = free.take()
        {
            self.buffers.push(buffer);
        }
        wanted.min(self.buffers.len().min(free.free()) / self.per_message)
    }

    /// The space that `messages` messages may fill.
    pub(super) fn slices(&mut self, messages: usize) -> impl Iterator<Item = &mut [u8]> {
        let room = self.room;
        self.buffers.iter_mut().take(messages * self.per_message).map(move |buffer| &mut buffer.bytes_mut()[..room])
    }

    /// Sorts what one message brought; buffers that hold cells go with them, and others take their place.
    pub(super) fn take(
        &mut self,
        message: usize,
        got: Received,
        lengths: Lengths,
        free: &mut FreeList,
        into: &mut Arrivals,
    ) {
        let Received { len, segment, from } = got;
        let first = message * self.per_message;
        let buffers = &mut self.buffers[first..first + self.per_message];
        let step = segment.unwrap_or(len).max(1);
        if step != lengths.cell {
            let (room, held) = (self.room, self.room * buffers.len());
            // A flood of short datagrams comes as such bursts: all but the last are of one length.
            let mut at = if lengths.handshakes.contains(&step) { 0 } else { len.saturating_sub(1) / step * step };
            into.odd += (at / step) as u64;
            loop {
                let n = step.min(len - at);
                let skip = at % room;
                let parts = buffers.iter().skip(at / room).enumerate();
                let parts = parts.map(|(i, buffer)| &buffer.bytes()[if i == 0 { skip } else { 0 }..room]);
                if at + n > held && (n == lengths.cell || lengths.handshakes.contains(&n)) {
                    into.cut += 1;
                } else if n == lengths.cell {
                    // The kernel joins a cell to a longer datagram that came before it from the same address, or to
                    // one that somebody sent in its name.
                    let fresh = free.take().expect("seen to before the call");
                    gather(&mut fresh.bytes_mut()[..n], parts);
                    into.push(Cell::new(fresh), from);
                } else {
                    into.push_other(lengths, n, parts, from);
                }
                at += n;
                if at >= len {
                    return;
                }
            }
        }
        let (whole, tail) = (len / step, len % step);
        let cells = whole.min(buffers.len());
        into.cut += (whole - cells) as u64;
        if tail > 0 {
            match buffers.get(whole) {
                Some(buffer) => into.push_other(lengths, tail, std::iter::once(&buffer.bytes()[..tail]), from),
                None => into.cut += 1,
            }
        }
        let full = buffers[..cells].iter_mut().map(|buffer| {
            let fresh = free.take().expect("seen to before the call");
            Cell::new(std::mem::replace(buffer, fresh))
        });
        into.push_burst(full, from);
    }

    #[cfg(test)]
    pub(super) fn at(&self) -> Vec<*const u8> {
        self.buffers.iter().map(|buffer| buffer.bytes().as_ptr()).collect()
    }

    /// Buffers that it keeps.
    pub(super) fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Adapts the number of messages that the next call asks for to what the last one received.
    pub(super) fn learn(&mut self, messages: usize, datagrams: usize) {
        if let Some(lately) = (16 * datagrams).checked_div(messages) {
            self.recent = (7 * self.recent + lately) / 8;
        }
    }
}
