//! Leaving in a paced class: link tags, control cells, headers, and a uniformly random order on each link (SPEC 9.6,
//! 9.10).

use std::collections::VecDeque;

use hashbrown::HashMap;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Block, CellKind, TAG_LEN};
use wire::ids::LinkId;
use wire::link::LinkContent;
use wire::paced::clock::ClockCell;
use wire::paced::{CLOCK_EVERY, PacedClass, PacedHeader, PacedTerms, SlotCount};

use super::control_cells::{Control, ControlCells};
use super::links::PacedLinks;
use crate::Nanos;
use crate::batch::Departures;
use crate::buffer::{Cell, FreeList, Opened, PREFETCHED, Sealed};
use crate::ledger::{DropReason, Tally};

/// A data cell that leaves, with its channel's number on the link.
pub(super) struct Leaving {
    pub(super) cell: Cell<Opened>,
    pub(super) number: u32,
    pub(super) sub: u8,
}

/// A release: the round that leaves.
#[derive(Clone, Copy)]
pub(super) struct Release {
    pub(super) round: u64,
    /// When it is due, by the class's clock.
    pub(super) due: Nanos,
    pub(super) slots: SlotCount,
}

/// The cells of a round by link, for their copies.
type Kept = (u64, HashMap<LinkId, Vec<Cell<Sealed>>, foldhash::fast::RandomState>);

/// What clock cells say, by link.
enum Clocks {
    /// At a hop: `sent` of the latest clock cell that came, and when it came.
    OfPeer(HashMap<LinkId, (u64, u64), foldhash::fast::RandomState>),
    /// At an entry: how many have left, so that Mix 1 learns nothing of the entry's clock.
    Numbered(HashMap<LinkId, u64, foldhash::fast::RandomState>),
}

impl Clocks {
    fn forget(&mut self, link: LinkId) {
        match self {
            Clocks::OfPeer(seen) => {
                seen.remove(&link);
            }
            Clocks::Numbered(numbers) => {
                numbers.remove(&link);
            }
        }
    }

    fn cell(&mut self, link: LinkId, release: Release) -> ClockCell {
        match self {
            Clocks::OfPeer(seen) => {
                let (peer, received) = seen.get(&link).copied().unwrap_or_default();
                ClockCell { sent: release.due, peer, received }
            }
            Clocks::Numbered(numbers) => {
                let number = numbers.entry(link).or_default();
                *number += 1;
                ClockCell { sent: *number, ..ClockCell::default() }
            }
        }
    }
}

/// What leaves on the links of one direction.
pub(super) struct Sender {
    class: PacedClass,
    /// On link 1: how often a cell is sent, and how many rounds apart.
    copies: u64,
    gap: u64,
    /// At Mix 1, towards entries: each link has control cells of its own. Otherwise the neighbour has them.
    is_per_link: bool,
    control: HashMap<Option<LinkId>, ControlCells, foldhash::fast::RandomState>,
    clocks: Clocks,
    /// Cells of earlier rounds of which copies are still to leave, by round, and how many.
    kept_cells: VecDeque<Kept>,
    kept: usize,
    rng: ChaCha20Rng,
    leaving: Vec<Leaving>,
    cells: Vec<(Cell<Opened>, Block)>,
    blocks: Vec<Block>,
    sealed: Vec<Cell<Sealed>>,
    taken: Vec<Control>,
}

impl Sender {
    /// At an entry.
    pub(super) fn of_entry(terms: &PacedTerms, rng: ChaCha20Rng) -> Sender {
        Sender { clocks: Clocks::Numbered(HashMap::default()), is_per_link: false, ..Sender::new(terms, true, rng) }
    }

    /// At a hop, for the links of one direction, or on link 1 for those to entries.
    pub(super) fn new(terms: &PacedTerms, is_link_1: bool, rng: ChaCha20Rng) -> Sender {
        Sender {
            class: terms.class,
            copies: if is_link_1 { terms.copies.into() } else { 1 },
            gap: terms.gap.into(),
            is_per_link: is_link_1,
            control: HashMap::default(),
            clocks: Clocks::OfPeer(HashMap::default()),
            kept_cells: VecDeque::new(),
            kept: 0,
            rng,
            leaving: Vec::new(),
            cells: Vec::new(),
            blocks: Vec::new(),
            sealed: Vec::new(),
            taken: Vec::new(),
        }
    }

    /// The control cells of an entry's link, or of the neighbour's.
    pub(super) fn control(&mut self, link: Option<LinkId>) -> &mut ControlCells {
        self.control.entry(link).or_default()
    }

    /// Queues a link cell for the next slot.
    pub(super) fn queue(&mut self, key: Option<LinkId>, control: Control, tally: &mut Tally) {
        if !self.control(key).queue(control) {
            // It was never a cell, so it counts as one here.
            tally.injected += 1;
            tally.drop(DropReason::PoolFull);
        }
    }

    pub(super) fn clock_seen(&mut self, link: LinkId, sent: u64, received: u64) {
        if let Clocks::OfPeer(seen) = &mut self.clocks {
            seen.insert(link, (sent, received));
        }
    }

    /// The link gets another slot: its other end may have another clock than before.
    pub(super) fn forget_clock(&mut self, link: LinkId) {
        if let Clocks::OfPeer(seen) = &mut self.clocks {
            seen.remove(&link);
        }
    }

    /// Forgets a link. What was to be sent again was not counted yet.
    pub(super) fn forget(&mut self, link: LinkId, free: &mut FreeList) {
        self.control.remove(&Some(link));
        self.clocks.forget(link);
        for (_, cells) in &mut self.kept_cells {
            let cells = cells.remove(&link).unwrap_or_default();
            self.kept -= cells.len();
            cells.into_iter().for_each(|cell| free.give(cell.into_buffer()));
        }
    }

    /// Nothing is sent again: the rounds begin at another number.
    pub(super) fn forget_copies(&mut self, free: &mut FreeList) {
        self.kept = 0;
        let cells = self.kept_cells.drain(..).flat_map(|(_, cells)| cells.into_values().flatten());
        cells.for_each(|cell| free.give(cell.into_buffer()));
    }

    /// Cells that are kept for a copy.
    pub(super) const fn kept(&self) -> usize {
        self.kept
    }

    /// Links that have control cells.
    #[cfg(test)]
    pub(super) fn controlled(&self) -> Vec<Option<LinkId>> {
        self.control.keys().copied().collect()
    }

    /// Seals the cells of a round for one link, with its control cells and the copies of earlier rounds, and appends
    /// them to `out` in uniformly random order. Without a link that has a slot the data cells are dropped. Data cells
    /// count as received before, all others are counted here. Returns the clock cell among them.
    #[allow(clippy::too_many_arguments, reason = "the parts of a worker that a stage borrows one by one")]
    pub(super) fn leave(
        &mut self,
        link: Option<LinkId>,
        release: Release,
        data: impl Iterator<Item = Leaving>,
        links: &mut PacedLinks,
        out: &mut Departures,
        free: &mut FreeList,
        tally: &mut Tally,
    ) -> Option<ClockCell> {
        let (class, body_len) = (self.class, self.class.body_len());
        let of_link = link.and_then(|link| Some((link, links.outgoing(link)?)));
        let Some((link, mut outgoing)) = of_link else {
            for leaving in data {
                tally.drop(DropReason::LinkDown);
                free.give(leaving.cell.into_buffer());
            }
            return None;
        };
        // They have waited for their release: the cache may have lost them.
        self.leaving.extend(data);
        let mut leaving = self.leaving.drain(..);
        while let Some(Leaving { mut cell, number, sub }) = leaving.next() {
            if let Some(ahead) = leaving.as_slice().get(PREFETCHED) {
                ahead.cell.prefetch(class.cell_len());
            }
            let tag = outgoing.tag(cell.body_mut(body_len));
            let header = PacedHeader { channel: number, seq: release.round, sub, kind: CellKind::Data, class, tag };
            self.cells.push((cell, header.to_block()));
        }
        drop(leaving);

        let control = self.control.entry(self.is_per_link.then_some(link)).or_default();
        if release.round.is_multiple_of(CLOCK_EVERY) {
            let _ = control.queue(Control::link(LinkContent::Clock, &[]));
        }
        control.take(release.round, release.slots, &mut self.taken);
        // It says the time of the slot that it has got.
        let empty = Control::link(LinkContent::Clock, &[]);
        let clock = self.taken.iter_mut().find(|cell| **cell == empty).map(|cell| {
            let clock = self.clocks.cell(link, release);
            *cell = Control::link(LinkContent::Clock, &clock.to_bytes());
            clock
        });
        for Control { kind, channel, sub, content } in self.taken.drain(..) {
            tally.injected += 1;
            let Some(buffer) = free.take() else {
                tally.drop(DropReason::NoBuffer);
                continue;
            };
            let mut cell = Cell::own(buffer);
            let body = cell.body_mut(body_len);
            let len = content.len().min(body_len - TAG_LEN);
            body[..len].copy_from_slice(&content[..len]);
            body[len..].fill(0);
            match outgoing.seal_control(class, (kind, channel, sub), body) {
                Some(header) => self.cells.push((cell, header.to_block())),
                None => {
                    tally.drop(DropReason::SlotExpired);
                    free.give(cell.into_buffer());
                }
            }
        }

        self.blocks.clear();
        self.blocks.extend(self.cells.iter().map(|(_, block)| *block));
        outgoing.encipher(&mut self.blocks);
        self.sealed.extend(self.cells.drain(..).zip(&self.blocks).map(|((cell, _), block)| cell.seal(block)));
        self.add_copies(link, release.round, free, tally);
        self.sealed.shuffle(&mut self.rng);
        out.push_run(self.sealed.drain(..), outgoing.peer);
        links.sent(link);
        clock
    }

    /// Keeps this round's cells for their copies, and adds the copies of earlier rounds.
    fn add_copies(&mut self, link: LinkId, round: u64, free: &mut FreeList, tally: &mut Tally) {
        if self.copies == 1 {
            return;
        }
        let cell_len = self.class.cell_len();
        let mut copy = |cell: &Cell<Sealed>| {
            let mut copy = Cell::new(free.take()?);
            copy.bytes_mut(cell_len).copy_from_slice(cell.bytes(cell_len));
            Some(copy)
        };
        let first = self.sealed.len();
        for j in 1..self.copies {
            let Some(of) = round.checked_sub(j * self.gap) else { break };
            let Some((_, cells)) = self.kept_cells.iter_mut().find(|(kept, _)| *kept == of) else { continue };
            if j + 1 == self.copies {
                let cells = cells.remove(&link).unwrap_or_default();
                self.kept -= cells.len();
                self.sealed.extend(cells);
            } else {
                self.sealed.extend(cells.get(&link).into_iter().flatten().filter_map(&mut copy));
            }
        }
        tally.injected += (self.sealed.len() - first) as u64;
        if self.kept_cells.back().is_none_or(|(last, _)| *last != round) {
            self.kept_cells.push_back((round, HashMap::default()));
        }
        let kept = self.kept_cells.back_mut().expect("it was added above").1.entry(link).or_default();
        let before = kept.len();
        kept.extend(self.sealed[..first].iter().filter_map(copy));
        self.kept += kept.len() - before;
    }

    /// Ends a round: its control cells that did not leave and what was kept for copies that are over are forgotten,
    /// also of entries that are not sent to, and the generator cannot run back.
    pub(super) fn end_round(&mut self, round: u64, free: &mut FreeList) {
        self.control.values_mut().for_each(|control| control.forget_to(round));
        while self.kept_cells.front().is_some_and(|(kept, _)| kept + (self.copies - 1) * self.gap <= round) {
            let cells = self.kept_cells.pop_front().into_iter().flat_map(|(_, cells)| cells.into_values().flatten());
            for cell in cells {
                self.kept -= 1;
                free.give(cell.into_buffer());
            }
        }
        crate::rekey(&mut self.rng);
    }
}
