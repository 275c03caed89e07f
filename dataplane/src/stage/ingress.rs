//! The gate of a link socket: length, header block, channel, window (SPEC 3.7).
//!
//! Data cells that pass go on to [`super::open`]; setup, ack and link cells and handshake datagrams
//! are copied to control; the rest is counted. Each datagram costs one length check and, if it has
//! a cell's length and comes from a link's address, one AES block in a batch.

use std::net::SocketAddr;

use wire::cell::{Block, CellKind, Class, Direction, HEADER_LEN, Header, Shape};
use wire::handshake::{COOKIE_LEN, IK_HALF_LEN, NK_HALF_LEN, RESPONSE_LEN};
use wire::ids::{ChannelIndex, LinkId, Rank, Side, SlotId};

use crate::batch::{Arrivals, Lengths, RECEIVE_MAX};
use crate::buffer::{Cell, FreeList, Sealed};
use crate::lanes;
use crate::ledger::{DropReason, Tally};
use crate::links::Links;
use crate::punt::{Punt, PuntSender};
use crate::table::{ChannelState, Table};

/// A data cell whose header is good; its body is not yet authentic.
pub struct Admitted {
    pub cell: Cell<Sealed>,
    /// Its header in the clear.
    pub header: Header,
    pub channel: ChannelIndex,
    /// The link it came on.
    pub link: LinkId,
    /// The slot, if that is the link's next, and the cell's source: an authentic cell promotes the slot and
    /// gives the link its address. Boxed, because few have it and all are moved.
    pub next_slot: Option<Box<(SlotId, SocketAddr)>>,
}

struct Found {
    link: LinkId,
    slot: SlotId,
    rank: Rank,
    /// Its channel's index, if it is a data cell of an open one.
    channel: Option<ChannelIndex>,
    header: Header,
}

/// Records are prefetched this many cells ahead of their use.
const AHEAD: usize = 8;

/// The checks of one link socket.
pub struct Gate {
    side: Side,
    /// Lanes of the neighbours, whose cells come from as many ports.
    lanes: usize,
    direction: Direction,
    class: Class,
    lengths: Lengths,
    blocks: Vec<Block>,
    found: Vec<Option<Found>>,
    trial: Vec<Block>,
    tried: Vec<usize>,
}

/// The lengths that may arrive at the socket towards `side` of hop `position` (0 is the entry).
pub fn lengths(shape: Shape, position: usize, side: Side) -> Lengths {
    let (direction, link) = match side {
        Side::Up => (Direction::Forward, position),
        Side::Down => (Direction::Backward, position + 1),
    };
    Lengths { cell: shape.cell_len(direction, link), handshakes: handshakes(position, side) }
}

/// The lengths of handshake datagrams that may arrive there.
pub(crate) fn handshakes(position: usize, side: Side) -> &'static [usize] {
    match (side, position) {
        (Side::Up, 1) => &[NK_HALF_LEN],
        (Side::Up, _) => &[IK_HALF_LEN],
        (Side::Down, _) => &[RESPONSE_LEN, COOKIE_LEN],
    }
}

impl Gate {
    /// The gate of the socket towards `side` at hop `position` (0 is the entry), where the neighbours answer on so
    /// many lanes.
    pub fn new(shape: Shape, position: usize, side: Side, lanes: usize) -> Gate {
        Gate {
            side,
            lanes,
            direction: if side == Side::Up { Direction::Forward } else { Direction::Backward },
            class: shape.class(),
            lengths: lengths(shape, position, side),
            blocks: Vec::with_capacity(RECEIVE_MAX),
            found: Vec::with_capacity(RECEIVE_MAX),
            trial: Vec::with_capacity(RECEIVE_MAX),
            tried: Vec::with_capacity(RECEIVE_MAX),
        }
    }

    /// Sorts a batch of arrivals: good data cells are appended to `out`, everything else is
    /// consumed or dropped, and counted.
    pub fn admit<C: ChannelState>(
        &mut self,
        arrivals: &mut Arrivals,
        table: &Table<C>,
        punts: &mut PuntSender,
        free: &mut FreeList,
        tally: &mut Tally,
        out: &mut Vec<Admitted>,
    ) {
        tally.received += arrivals.len() as u64;
        tally.drop_many(DropReason::Length, std::mem::take(&mut arrivals.odd));
        tally.drop_many(DropReason::Cut, std::mem::take(&mut arrivals.cut));
        tally.drop_many(DropReason::PuntFull, std::mem::take(&mut arrivals.handshakes_over));
        for (from, datagram) in arrivals.handshakes.drain(..) {
            if punts.send_handshake(self.side, from, datagram) {
                tally.consumed += 1;
            } else {
                tally.drop(DropReason::PuntFull);
            }
        }
        if self.lanes > 1 {
            arrivals.runs.iter_mut().for_each(|run| run.peer = self.first_lane(&table.links, run.peer));
        }
        self.blocks.extend(arrivals.cells.iter().map(|cell| *cell.header()));
        self.found.resize_with(arrivals.cells.len(), || None);
        let mut at = 0;
        for run in &arrivals.runs {
            self.decipher(&table.links, run.peer, at..at + run.count);
            at += run.count;
        }
        // Look-ups first, all of them: none waits for another, and with the indices known, what they lead to can be
        // on its way from memory while the cells before are judged.
        for found in self.found.iter_mut().flatten().filter(|found| found.header.kind == CellKind::Data) {
            found.channel = table.lookup(self.side, found.link, found.header.channel);
        }
        let peers = arrivals.runs.drain(..).flat_map(|run| std::iter::repeat_n(run.peer, run.count));
        for (i, (mut cell, peer)) in arrivals.cells.drain(..).zip(peers).enumerate() {
            if let Some(Some(Found { channel: Some(channel), .. })) = self.found.get(i + AHEAD) {
                table.prefetch(*channel, self.direction);
            }
            let found = self.found[i].take();
            match judge(self.side, self.direction, self.lengths.cell, found, peer, &mut cell, table, punts) {
                Verdict::Data { header, channel, link, next_slot } => {
                    out.push(Admitted { cell, header, channel, link, next_slot });
                    continue;
                }
                Verdict::Punted => tally.consumed += 1,
                Verdict::Dropped(reason) => tally.drop(reason),
            }
            free.give(cell.into_buffer());
        }
        self.blocks.clear();
        self.found.clear();
    }

    /// The address by which a link is known whose cells come from `peer`, one of its lanes.
    fn first_lane(&self, links: &Links, peer: SocketAddr) -> SocketAddr {
        let known = |first: &SocketAddr| !links.at(self.side, *first).is_empty();
        (0..self.lanes).filter_map(|lane| lanes::first(peer, lane)).find(known).unwrap_or(peer)
    }

    /// Tries the slots of the links at `peer` on one run of blocks, each slot on all that are left.
    fn decipher(&mut self, links: &Links, peer: SocketAddr, run: std::ops::Range<usize>) {
        for &id in links.at(self.side, peer) {
            let Some(link) = links.link(id) else { continue };
            for (rank, slot) in link.slots() {
                self.trial.clear();
                self.tried.clear();
                for i in run.clone().filter(|i| self.found[*i].is_none()) {
                    self.trial.push(self.blocks[i]);
                    self.tried.push(i);
                }
                if self.tried.is_empty() {
                    return;
                }
                slot.incoming().decipher(&mut self.trial);
                for (&i, block) in self.tried.iter().zip(&self.trial) {
                    if let Ok(header) = Header::from_block(block, self.class) {
                        self.found[i] = Some(Found { link: id, slot: slot.id, rank, channel: None, header });
                    }
                }
            }
        }
    }
}

enum Verdict {
    Data { header: Header, channel: ChannelIndex, link: LinkId, next_slot: Option<Box<(SlotId, SocketAddr)>> },
    Punted,
    Dropped(DropReason),
}

#[allow(clippy::too_many_arguments, reason = "the parts of a worker that a stage borrows one by one")]
fn judge<C: ChannelState>(
    side: Side,
    direction: Direction,
    cell_len: usize,
    found: Option<Found>,
    peer: SocketAddr,
    cell: &mut Cell<Sealed>,
    table: &Table<C>,
    punts: &mut PuntSender,
) -> Verdict {
    let Some(Found { link, slot, rank, channel, header }) = found else {
        let stranger = table.links.at(side, peer).is_empty();
        return Verdict::Dropped(if stranger { DropReason::Stranger } else { DropReason::Header });
    };
    if !header.kind.travels(direction) {
        return Verdict::Dropped(DropReason::Kind);
    }
    if header.kind != CellKind::Data {
        let body = (&*cell.body_mut(cell_len - HEADER_LEN)).into();
        return if punts.send(Punt::Cell { link, slot, from: peer, header, body }) {
            Verdict::Punted
        } else {
            Verdict::Dropped(DropReason::PuntFull)
        };
    }
    let Some(channel) = channel else {
        return Verdict::Dropped(DropReason::Channel);
    };
    if header.sub != 0 {
        return Verdict::Dropped(DropReason::Sub);
    }
    let record = table.record(channel).expect("the index lists live channels");
    match record.state.window(direction).accept(header.seq) {
        Ok(()) => {
            Verdict::Data { header, channel, link, next_slot: (rank == Rank::Next).then(|| Box::new((slot, peer))) }
        }
        Err(refused) => Verdict::Dropped(refused.into()),
    }
}
