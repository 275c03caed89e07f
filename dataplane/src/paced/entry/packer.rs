//! What waits at an entry for cells, and how it is written into them (SPEC 9.11.5 to 9.11.7).

use std::collections::VecDeque;

use arrayvec::ArrayVec;
use wire::cell::Class;
use wire::frames::{DATAGRAMS_MAX, Frame, Token, Writer, fresh_max, split};
use wire::ids::ChannelIndex;
use wire::paced::PacedTerms;

use crate::Nanos;
use crate::entry::clients::{Clients, FlowState};
use crate::ledger::{DropReason, Tally};
use crate::socket::app_batch::SocketId;

/// The name under which [`Clients`] knows the entry's session.
pub(super) const SESSION: ChannelIndex = ChannelIndex(0);
/// Datagrams that wait at most.
pub(super) const WAITING_MAX: usize = 1024;
/// A queue whose first datagram was late in as many rounds in a row does not become shorter by itself.
const LATE_ROUNDS: u32 = 64;
/// Ends of flows that wait at most. CLOSE is not repeated anyway: the exit has a timeout.
const CLOSES_MAX: usize = 1024;

/// The flow of a datagram, which may have ended while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowAt {
    pub(super) number: u16,
    pub(super) token: Token,
}

/// A datagram of an application.
pub(super) struct Waiting {
    pub(super) arrived: Nanos,
    pub(super) socket: SocketId,
    /// None in a meeting.
    pub(super) flow: Option<FlowAt>,
    /// Its number among the fragmented datagrams of its flow.
    pub(super) id: u16,
    pub(super) data: Vec<u8>,
    /// Its frames that were written already.
    pub(super) written: usize,
    /// OPEN did not fit into a cell with it, and was in the cell before.
    pub(super) is_opened: bool,
}

/// What a cell is to begin with.
pub(super) struct Cell<'a> {
    pub(super) sub: u8,
    /// Named in this cell, if there is room.
    pub(super) session: Option<&'a [u8; 16]>,
    /// False in the last round of a batch with repeat.
    pub(super) takes_new: bool,
    /// Nothing is repeated if a datagram waits, so that the queue becomes shorter.
    pub(super) catches_up: bool,
}

/// Frames that wait, and those of the round before.
pub(super) struct Packer {
    /// Inner bytes of a cell: P, or P - 8 in a meeting.
    inner: usize,
    repeat: bool,
    waiting: VecDeque<Waiting>,
    closes: VecDeque<u16>,
    /// When the datagrams came whose last frame is in a cell of this round.
    taken: Vec<Nanos>,
    /// By sub: the frames other than AGAIN of the round before, with repeat.
    before: Vec<Vec<u8>>,
    /// Rounds in a row in which the first datagram was late.
    late: u32,
}

impl Packer {
    /// For cells with `inner` inner bytes.
    pub(super) fn new(terms: &PacedTerms, inner: usize) -> Packer {
        Packer {
            inner,
            repeat: terms.repeat,
            waiting: VecDeque::new(),
            closes: VecDeque::new(),
            taken: Vec::new(),
            before: vec![Vec::new(); terms.cells.into()],
            late: 0,
        }
    }

    /// Bytes of the frames other than AGAIN in a cell: datagrams are split for as many.
    pub(super) fn fresh_max(&self) -> usize {
        fresh_max(self.inner, self.repeat)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// True if frames wait that are not datagrams, or are to be repeated.
    pub(super) fn has_others(&self) -> bool {
        !self.closes.is_empty() || self.before.iter().any(|frames| !frames.is_empty())
    }

    /// Queues a datagram. If as many wait as may, returns the time of the oldest, which makes room for it.
    pub(super) fn push(&mut self, waiting: Waiting) -> Option<Nanos> {
        let oldest = if self.waiting.len() == WAITING_MAX { self.waiting.pop_front() } else { None };
        self.waiting.push_back(waiting);
        oldest.map(|oldest| oldest.arrived)
    }

    /// Queues a CLOSE.
    pub(super) fn close(&mut self, flow: u16) {
        if self.closes.len() < CLOSES_MAX {
            self.closes.push_back(flow);
        }
    }

    /// Drops the datagrams that `is_aged`, but for those of which a fragment was sealed. Calls `dropped` with the time
    /// at which each of them came.
    pub(super) fn drop_aged(&mut self, is_aged: impl Fn(&Waiting) -> bool, mut dropped: impl FnMut(Nanos)) {
        self.waiting.retain(|waiting| {
            let stays = waiting.written > 0 || !is_aged(waiting);
            if !stays {
                dropped(waiting.arrived);
            }
            stays
        });
    }

    /// Drops what waits at a socket that was closed, or everywhere.
    pub(super) fn drop_of(&mut self, socket: Option<SocketId>, reason: DropReason, tally: &mut Tally) {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| socket.is_some_and(|socket| waiting.socket != socket));
        tally.drop_many(reason, (before - self.waiting.len()) as u64);
    }

    /// When the datagrams came that were taken since the last call.
    pub(super) fn taken(&mut self) -> impl Iterator<Item = Nanos> {
        self.taken.drain(..)
    }

    /// A round is filled next. True if a datagram that had come before a time like `until` was waiting in each of the
    /// latest rounds: one that comes a little late by itself makes no queue.
    pub(super) fn falls_behind(&mut self, until: Nanos) -> bool {
        let is_late = self.waiting.front().is_some_and(|waiting| waiting.arrived < until);
        self.late = if is_late { self.late.saturating_add(1) } else { 0 };
        self.late >= LATE_ROUNDS
    }

    /// Nothing waits that is not a datagram, and nothing is repeated.
    pub(super) fn forget_others(&mut self) {
        self.closes.clear();
        self.forget_before();
    }

    /// Nothing is repeated: the round before was not prepared, or was in another batch.
    pub(super) fn forget_before(&mut self) {
        self.before.iter_mut().for_each(Vec::clear);
    }

    /// Fills the inner bytes of a cell. True if it names the session.
    pub(super) fn fill(&mut self, inner: &mut [u8], cell: &Cell<'_>, clients: &Clients, tally: &mut Tally) -> bool {
        let mut before = std::mem::take(&mut self.before[usize::from(cell.sub)]);
        if cell.takes_new && cell.catches_up && !self.waiting.is_empty() {
            before.clear();
        }
        let room = if before.is_empty() { self.fresh_max() } else { self.inner };
        inner[room..].fill(0);
        let mut writer = Writer::new(&mut inner[..room]);
        if !before.is_empty() {
            let is_written = writer.put(&Frame::Again(&before));
            debug_assert!(is_written, "frames of a cell fit behind each other");
        }
        let start = writer.written().bytes;
        let has_session = cell.takes_new && cell.session.is_some_and(|session| writer.put(&Frame::Session(*session)));
        let mut datagrams = [0; Class::L.payload()];
        let mut datagrams_len = 0;
        if cell.takes_new {
            while let Some(flow) = self.closes.front()
                && writer.put(&Frame::Close { flow: *flow })
            {
                self.closes.pop_front();
            }
            datagrams_len = self.write_datagrams(&mut writer, &mut datagrams[..room], clients, tally);
        }
        let end = writer.written().bytes + datagrams_len;
        writer.finish();
        inner[end - datagrams_len..end].copy_from_slice(&datagrams[..datagrams_len]);
        before.clear();
        if self.repeat {
            before.extend_from_slice(&inner[start..end]);
        }
        self.before[usize::from(cell.sub)] = before;
        has_session
    }

    /// Writes OPENs behind what a cell holds, and into `datagrams` what goes behind these. Returns the length of that.
    fn write_datagrams(
        &mut self,
        writer: &mut Writer<'_>,
        datagrams: &mut [u8],
        clients: &Clients,
        tally: &mut Tally,
    ) -> usize {
        let fresh_max = self.fresh_max();
        let mut behind = Writer::new(datagrams);
        // Flows whose OPEN is in this cell.
        let mut opened = ArrayVec::<u16, DATAGRAMS_MAX>::new();
        while let Some(waiting) = self.waiting.front_mut() {
            let mut open = None;
            if let Some(FlowAt { number, token }) = waiting.flow {
                let flow = clients.flow_at(SESSION, number).filter(|flow| flow.token == token);
                let refused = match flow.map(|flow| flow.state) {
                    None => Some(DropReason::Ended),
                    Some(FlowState::Refused { reason, .. }) => Some(reason),
                    Some(_) => None,
                };
                if let Some(reason) = refused {
                    tally.drop(reason);
                    self.waiting.pop_front();
                    continue;
                }
                let needs_open = waiting.written == 0 && !waiting.is_opened && !opened.contains(&number);
                open = flow.filter(|flow| needs_open && flow.state != FlowState::Open).map(|flow| flow.open());
            }
            let number = waiting.flow.map_or(0, |flow| flow.number);
            let mut frames = split(fresh_max, number, waiting.id, &waiting.data).skip(waiting.written);
            let frame = frames.next().expect("a datagram that waits has a frame left");
            let room = writer.room() - behind.written().bytes;
            let open_len = open.map_or(0, |open| open.len());
            if open_len + frame.len() > room {
                if let Some(open) = open
                    && open_len + frame.len() > fresh_max
                    && open_len <= room
                {
                    waiting.is_opened = writer.put(&open);
                }
                break;
            }
            if !behind.put(&frame) {
                break;
            }
            if let Some(open) = open {
                let is_written = writer.put(&open);
                debug_assert!(is_written, "there was room");
                opened.push(number);
            }
            waiting.written += 1;
            if frames.next().is_none() {
                tally.consumed += 1;
                self.taken.push(waiting.arrived);
                self.waiting.pop_front();
            }
        }
        behind.written().bytes
    }
}
