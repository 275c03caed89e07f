//! Control cells that wait for their slots (SPEC 9.6).
//!
//! Cells of setups and acks have a round of their own. Link cells wait for the next slot, in the order of their kinds.
//! A slot with nothing to carry gets a dummy, so the number of cells does not depend on what waits.

use std::collections::VecDeque;

use hashbrown::HashMap;
use wire::cell::CellKind;
use wire::link::{CLOCK_ITEM, LinkContent, PartHead};
use wire::paced::SlotCount;

/// Link cells of one kind that wait at most, more than a bundle has; others are dropped.
const WAITING_MAX: usize = 256;
/// Rounds in which an ask may be on its way that does not show an item that has left: it is not queued again meanwhile.
const SHOWN_AFTER: u64 = 64;
/// The kinds of link cells by the order in which they get slots; what is not in it goes last.
const ORDER: [&[LinkContent]; 5] = [
    &[LinkContent::Keepalive],
    &[LinkContent::Path, LinkContent::Echo],
    &[LinkContent::Clock],
    &[LinkContent::Report],
    &[LinkContent::Company],
];

/// The content of a control cell of a paced class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    pub kind: CellKind,
    /// 0 in link cells.
    pub channel: u32,
    pub sub: u8,
    /// At most P bytes; zeros follow.
    pub content: Vec<u8>,
}

impl Control {
    /// A link cell.
    pub(super) fn link(kind: LinkContent, content: &[u8]) -> Control {
        let content = std::iter::once(kind as u8).chain(content.iter().copied()).collect();
        Control { kind: CellKind::Link, channel: 0, sub: 0, content }
    }

    fn dummy() -> Control {
        Control::link(LinkContent::Dummy, &[])
    }
}

fn part_of(control: &Control) -> Option<PartHead> {
    PartHead::read(&control.content)
}

fn are_of_one_item(a: &PartHead, b: &PartHead) -> bool {
    (a.item, a.id) == (b.item, b.id)
}

/// Control cells of one link and direction.
#[derive(Default)]
pub(super) struct ControlCells {
    placed: HashMap<u64, Vec<Control>, foldhash::fast::RandomState>,
    waiting: [VecDeque<Control>; ORDER.len() + 1],
    /// Of each item of which pieces have left the latest piece, and its round.
    left: Vec<(PartHead, u64)>,
}

impl ControlCells {
    /// Adds a cell of a setup or an ack that leaves in this round.
    pub(super) fn add_at_round(&mut self, round: u64, control: Control) {
        self.placed.entry(round).or_default().push(control);
    }

    /// The same for an entry, which has one such slot in a round: its control hands the cells of rounds over again when
    /// its lead goes back.
    pub(super) fn replace_at_round(&mut self, round: u64, control: Control) {
        self.placed.insert(round, vec![control]);
    }

    /// Adds a link cell, unless the same one waits, or its item waits or has just left (SPEC 9.6.6). A report or a
    /// company cell replaces one that waits. False if too many wait.
    pub(super) fn queue(&mut self, control: Control) -> bool {
        let kind = control.content.first().and_then(|kind| LinkContent::from_wire(*kind));
        let order = ORDER.iter().position(|kinds| kind.is_some_and(|kind| kinds.contains(&kind)));
        let queue = &mut self.waiting[order.unwrap_or(ORDER.len())];
        if matches!(kind, Some(LinkContent::Report | LinkContent::Company)) {
            // The totals of a report cover those of earlier ones.
            queue.clear();
        }
        if queue.contains(&control) {
            return true;
        }
        if let Some(part) = part_of(&control) {
            // A later time replaces one that waits.
            let is_clock = |part: PartHead| part.item == CLOCK_ITEM;
            let older = |other: &&mut Control| part_of(other).is_some_and(is_clock);
            if let Some(other) = queue.iter_mut().find(older).filter(|_| is_clock(part)) {
                *other = control;
                return true;
            }
            // The piece behind the others is queued for the first time.
            let mut before = self.left.iter().map(|(part, _)| *part).chain(queue.iter().filter_map(part_of));
            let last = before.rfind(|other| are_of_one_item(other, &part));
            if last.is_some_and(|last| last.index.checked_add(1) != Some(part.index)) {
                return true;
            }
        }
        let has_room = queue.len() < WAITING_MAX;
        if has_room {
            queue.push_back(control);
        }
        has_room
    }

    /// Cells of setups and acks that wait.
    #[cfg(test)]
    pub(super) fn placed(&self) -> usize {
        self.placed.values().map(Vec::len).sum()
    }

    /// What was for rounds up to this one has missed them.
    pub(super) fn forget_to(&mut self, round: u64) {
        self.placed.retain(|of, _| *of > round);
    }

    /// An entry has another link: what waits for a slot was for the one before, and its neighbour could know it again.
    pub(super) fn forget_link_cells(&mut self) {
        self.waiting.iter_mut().for_each(VecDeque::clear);
        self.left.clear();
    }

    /// The cells of a round: as many as its slots.
    pub(super) fn take(&mut self, round: u64, slots: SlotCount, out: &mut Vec<Control>) {
        let mut placed = self.placed.remove(&round).unwrap_or_default();
        debug_assert!(placed.len() <= slots.placed, "more cells were placed than the round has slots");
        placed.resize_with(slots.placed, Control::dummy);
        out.append(&mut placed);
        self.left.retain(|(_, at)| *at + SHOWN_AFTER > round);
        let waiting = self.waiting.iter_mut().flat_map(|queue| std::iter::from_fn(|| queue.pop_front()));
        let before = out.len();
        out.extend(waiting.chain(std::iter::repeat_with(Control::dummy)).take(slots.link));
        for part in out[before..].iter().filter_map(part_of) {
            self.left.retain(|(other, _)| !are_of_one_item(other, &part));
            self.left.push((part, round));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cell_that_is_placed_again_takes_one_slot() {
        let mut cells = ControlCells::default();
        for _ in 0..2 {
            cells.replace_at_round(7, Control { kind: CellKind::Setup, channel: 5, sub: 1, content: vec![1] });
        }
        let mut out = Vec::new();
        cells.take(7, SlotCount { placed: 1, link: 0 }, &mut out);
        assert_eq!(out.iter().map(|cell| (cell.channel, cell.sub)).collect::<Vec<_>>(), [(5, 1)]);
    }

    #[test]
    fn round_has_as_many_control_cells_as_slots() {
        let mut cells = ControlCells::default();
        let setup = |sub| Control { kind: CellKind::Setup, channel: 9, sub, content: vec![sub] };
        cells.add_at_round(7, setup(1));
        cells.add_at_round(8, setup(2));
        let mut link = |kind| assert!(cells.queue(Control::link(kind, &[])));
        [LinkContent::Ask, LinkContent::Company, LinkContent::Clock, LinkContent::Path].into_iter().for_each(&mut link);
        let mut taken = |round, placed, link| {
            let mut out = Vec::new();
            cells.take(round, SlotCount { placed, link }, &mut out);
            cells.forget_to(round);
            out.iter().map(|control| (control.kind, control.content[0])).collect::<Vec<_>>()
        };
        let (setup, link) = (CellKind::Setup, CellKind::Link);
        assert_eq!(taken(7, 2, 2), [(setup, 1), (link, 0), (link, 8 - 1), (link, 2)]);
        assert_eq!(taken(9, 1, 3), [(link, 0), (link, 6), (link, 3), (link, 0)], "round 8 was missed");
        assert_eq!(taken(8, 0, 0), []);
    }

    #[test]
    fn item_whose_pieces_wait_is_not_queued_again() {
        let mut cells = ControlCells::default();
        let send = |cells: &mut ControlCells, id: u8| {
            for index in 0..4 {
                let head = PartHead { item: 0x21, id: [id, 0, 0, 0], index, total: 400 };
                assert!(cells.queue(Control::link(LinkContent::Part, &head.to_bytes()[1..])));
            }
        };
        send(&mut cells, 1);
        send(&mut cells, 2);
        let mut out = Vec::new();
        cells.take(1, SlotCount { placed: 0, link: 2 }, &mut out);
        send(&mut cells, 1);
        send(&mut cells, 2);
        cells.take(2, SlotCount { placed: 0, link: 8 }, &mut out);
        let pieces: Vec<_> =
            out.iter().map(|control| (control.content.get(2), control.content.get(6).copied())).collect();
        assert_eq!(pieces.len(), 10);
        let of =
            |id| pieces.iter().filter(|piece| piece.0 == Some(&id)).filter_map(|piece| piece.1).collect::<Vec<_>>();
        assert_eq!([of(1), of(2)], [[0, 1, 2, 3], [0, 1, 2, 3]]);
        let parts = |cells: &mut ControlCells, round| {
            let mut out = Vec::new();
            send(cells, 1);
            cells.take(round, SlotCount { placed: 0, link: 5 }, &mut out);
            out.iter().filter(|control| control.content[0] == LinkContent::Part as u8).count()
        };
        assert_eq!([3, 2 + SHOWN_AFTER, 3 + SHOWN_AFTER].map(|round| parts(&mut cells, round)), [0, 0, 4]);
    }

    #[test]
    fn cells_of_rounds_without_a_link_are_forgotten() {
        let mut cells = ControlCells::default();
        for round in 7..10 {
            cells.add_at_round(round, Control { kind: CellKind::Setup, channel: 9, sub: 0, content: vec![1] });
        }
        cells.forget_to(8);
        assert_eq!(cells.placed.keys().copied().collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn latest_report_and_company_replace_what_waits() {
        let mut cells = ControlCells::default();
        for n in 0..3 {
            assert!(cells.queue(Control::link(LinkContent::Report, &[n])));
            assert!(cells.queue(Control::link(LinkContent::Company, &[n])));
        }
        let mut out = Vec::new();
        cells.take(1, SlotCount { placed: 0, link: 3 }, &mut out);
        let contents: Vec<_> = out.iter().map(|control| &control.content[..]).collect();
        assert_eq!(contents, [&[5, 2][..], &[6, 2], &[0]]);
    }

    #[test]
    fn no_kind_waits_without_end() {
        let mut cells = ControlCells::default();
        let kinds = (0..=u8::MAX).filter_map(LinkContent::from_wire);
        for kind in kinds.filter(|kind| !matches!(kind, LinkContent::Report | LinkContent::Company)) {
            let mut queue = |n: u16| cells.queue(Control::link(kind, &n.to_be_bytes()));
            let waiting = (0..1000).filter(|n| queue(*n)).count();
            // Those without a place of their own share one.
            assert!(waiting == WAITING_MAX || waiting == 0, "{kind:?}: {waiting}");
            assert!(waiting == 0 || queue(0), "it waits already");
        }
        let all: usize = cells.waiting.iter().map(VecDeque::len).sum();
        assert!(all <= cells.waiting.len() * WAITING_MAX, "{all}");
    }
}
