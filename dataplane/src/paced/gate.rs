//! Arrival in a paced class: which slot a header belongs to, whether its place is open, the link tag, and at a hop the
//! claim of the place (SPEC 9.4).
//!
//! Headers are deciphered slot by slot over all cells of a peer. What fails costs a counter.

use std::net::SocketAddr;

use wire::cell::{Block, CellKind, Direction};
use wire::ids::{LinkId, Rank, Side, SlotId};
use wire::paced::{PacedClass, PacedHeader};

use super::Settings;
use super::control_guard::ControlLimits;
use super::links::PacedLinks;
use crate::Nanos;
use crate::batch::{Arrivals, RECEIVE_MAX};
use crate::buffer::{Cell, FreeList, PREFETCHED, Sealed};
use crate::ledger::{DropReason, Tally};
use crate::punt::{Punt, PuntSender, RESERVED};
use crate::stage::rounds::{Place, Rounds, Untimely};

/// A data cell that has passed the gate, with what its owner knows of its place.
pub(super) struct Arrived<P> {
    pub(super) cell: Cell<Sealed>,
    pub(super) header: PacedHeader,
    pub(super) place: P,
    pub(super) link: LinkId,
    /// It arrived under the next slot of its link: the slot and the sender's address.
    pub(super) next_slot: Option<(SlotId, SocketAddr)>,
}

struct Found {
    link: LinkId,
    slot: SlotId,
    rank: Rank,
    header: PacedHeader,
}

/// The gate of one socket.
pub(super) struct Gate {
    side: Side,
    direction: Direction,
    class: PacedClass,
    /// Cells of a channel in a round.
    cells: u8,
    control: ControlLimits,
    blocks: Vec<Block>,
    found: Vec<Option<Found>>,
    trial: Vec<Block>,
    tried: Vec<usize>,
}

/// The time of an arrival.
#[derive(Clone, Copy)]
pub(super) struct ArrivalTime {
    /// That of the turn.
    pub(super) turn: Nanos,
    /// By the class's clock, for control.
    pub(super) class: Nanos,
}

/// A batch of arrivals, and what a worker lends for taking it in.
pub(super) struct Intake<'a> {
    pub(super) arrivals: &'a mut Arrivals,
    pub(super) links: &'a mut PacedLinks,
    pub(super) punts: &'a mut PuntSender,
    pub(super) free: &'a mut FreeList,
    pub(super) tally: &'a mut Tally,
    pub(super) at: ArrivalTime,
}

impl Gate {
    /// The gate of the socket towards `side`.
    pub(super) fn new(settings: &Settings, side: Side) -> Gate {
        Gate {
            side,
            direction: if side == Side::Up { Direction::Forward } else { Direction::Backward },
            class: settings.terms.class,
            cells: settings.terms.cells,
            control: settings.control_limits(side),
            blocks: Vec::with_capacity(RECEIVE_MAX),
            found: Vec::with_capacity(RECEIVE_MAX),
            trial: Vec::with_capacity(RECEIVE_MAX),
            tried: Vec::with_capacity(RECEIVE_MAX),
        }
    }

    /// Sorts a batch of arrivals: data cells with a good tag whose place is open are appended to `out`, everything else
    /// is consumed or dropped, and counted. `running` is the last released round, or the one that an entry sends;
    /// `place` does step 5.
    pub(super) fn admit<P>(
        &mut self,
        intake: &mut Intake<'_>,
        running: Option<u64>,
        place: impl Fn(LinkId, &PacedHeader) -> Result<P, DropReason>,
        out: &mut impl Extend<Arrived<P>>,
    ) {
        let Intake { arrivals, links, punts, free, tally, at } = intake;
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
        self.blocks.extend(arrivals.cells.iter().map(|cell| *cell.header()));
        self.found.resize_with(arrivals.cells.len(), || None);
        let mut from = 0;
        for run in &arrivals.runs {
            self.decipher(links, run.peer, from..from + run.count, running);
            from += run.count;
        }
        let mut peers = arrivals.runs.drain(..).flat_map(|run| std::iter::repeat_n(run.peer, run.count)).enumerate();
        let mut cells = arrivals.cells.drain(..);
        while let Some((mut cell, (i, from))) = cells.next().zip(peers.next()) {
            if let Some(ahead) = cells.as_slice().get(PREFETCHED) {
                ahead.prefetch(self.class.cell_len());
            }
            let verdict = match self.found[i].take() {
                None if links.links.at(self.side, from).is_empty() => Err(DropReason::Stranger),
                None => Err(DropReason::Header),
                Some(Found { header, .. }) if !header.kind.travels(self.direction) => Err(DropReason::Kind),
                Some(Found { link, slot, header, .. }) if header.kind != CellKind::Data => {
                    let body = cell.body_mut(self.class.body_len());
                    // What finds no room may come again.
                    let room = if punts.room() > RESERVED { Ok(()) } else { Err(DropReason::PuntFull) };
                    let at_turn = (at.turn, punts.is_half_full());
                    match room.and_then(|()| links.open_control((link, slot), (&header, body), &self.control, at_turn))
                    {
                        Ok(content) => {
                            let content = content.into();
                            let _ = punts.send(Punt::PacedCell { link, slot, from, header, content, at: at.class });
                            tally.consumed += 1;
                        }
                        Err(reason) => tally.drop(reason),
                    }
                    free.give(cell.into_buffer());
                    continue;
                }
                Some(Found { header, .. }) if header.sub >= self.cells => Err(DropReason::Sub),
                Some(found) => place(found.link, &found.header).and_then(|place| {
                    let body = cell.body_mut(self.class.body_len());
                    let is_genuine = links.is_tag_of(found.link, found.slot, &found.header, body);
                    is_genuine.then_some((found, place)).ok_or(DropReason::Tag)
                }),
            };
            match verdict {
                Ok((Found { link, slot, rank, header }, place)) => {
                    let next_slot = (rank == Rank::Next).then_some((slot, from));
                    out.extend([Arrived { cell, header, place, link, next_slot }]);
                }
                Err(reason) => {
                    tally.drop(reason);
                    free.give(cell.into_buffer());
                }
            }
        }
        self.blocks.clear();
        self.found.clear();
    }

    /// [`Gate::admit`] at a hop, with step 7: appends the cells whose place is in a round that is not released yet and
    /// was empty. It is claimed for them. `channel` finds a cell's channel in its round.
    pub(super) fn claim(
        &mut self,
        mut intake: Intake<'_>,
        rounds: &mut Rounds,
        channel: impl Fn(LinkId, &PacedHeader) -> Option<usize>,
        out: &mut Vec<Arrived<Place>>,
    ) {
        let place = |link, header: &PacedHeader| {
            rounds.check(header.seq).map_err(|untimely| match untimely {
                Untimely::Late => DropReason::Late,
                Untimely::Early => DropReason::Early,
            })?;
            let channel = channel(link, header).ok_or(DropReason::Channel)?;
            Ok(Place { channel, sub: header.sub })
        };
        self.admit(&mut intake, Some(rounds.released()), place, out);
        let Intake { links, punts, free, tally, at, .. } = intake;
        for copy in out.extract_if(.., |cell| !rounds.claim(cell.header.seq, cell.place)) {
            tally.drop(self.control.repeated);
            free.give(copy.cell.into_buffer());
        }
        for cell in out {
            links.accepted(cell.link, cell.next_slot, punts, at.turn);
        }
    }

    /// Tries the slots of the links at `peer` on one run of blocks, each slot on all that are left.
    fn decipher(&mut self, links: &PacedLinks, peer: SocketAddr, run: std::ops::Range<usize>, running: Option<u64>) {
        for &id in links.links.at(self.side, peer) {
            let Some(link) = links.links.link(id) else { continue };
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
                    if let Some(header) = PacedHeader::from_block(block, self.class, running) {
                        self.found[i] = Some(Found { link: id, slot: slot.id(), rank, header });
                    }
                }
            }
        }
    }
}
