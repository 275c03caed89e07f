//! What the access link of a paced class shows of its rounds.
//!
//! A round has cells of data and, by the timetable, slots for control cells, each sent several times
//! (docs/SPEC.md 9.6). A cell is lost if no copy arrived. Where the record says which datagrams are the same bytes,
//! that is nearly certain; otherwise it has a probability.

use std::{collections::HashMap, ops::RangeFrom};

use crate::{paced::PacedShape, record::Record};

/// How far the slots of a link may be from where its rounds begin, in rounds.
const SHIFT: i64 = 4;

/// One round of an access link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkRound {
    pub round: u64,
    /// When its first copies are due on the link, in nanoseconds since the record began.
    pub at: u64,
    /// The share of its cells that are missing in all copies. Data and control cells look alike.
    pub lost: f64,
    /// The share of cells that are missing from the slots with its copies.
    pub missing: f64,
    /// How much later than usual the cells of its first slot are on average, in nanoseconds.
    pub late: f64,
}

/// A time at which cells are due.
#[derive(Clone, Copy, Default)]
struct Slot {
    at: f64,
    cells: u32,
    /// The sum of all cells.
    late: f64,
}

/// A cell by its bytes: how often it came, in which slots.
struct Group {
    first: usize,
    last: usize,
}

/// The rounds of an access link, in order, without those at the ends of the record that are not seen whole. Empty if
/// the class is not paced, or the record does not have its terms.
pub(crate) fn rounds(record: &Record, user: usize, forward: bool) -> Vec<LinkRound> {
    let Some(shape) = &record.paced else { return Vec::new() };
    let trace = record.access[user].trace(forward);
    let contents = record.contents.get(user).map_or(&[][..], |contents| contents.of(forward));
    let cells: Vec<(u64, Option<u32>)> = (trace.iter().enumerate())
        .filter(|(_, seen)| record.is_cell(seen))
        .map(|(i, seen)| (seen.at, contents.get(i).copied()))
        .collect();
    let Some((slots, slot_of)) = slots(shape, &cells) else { return Vec::new() };
    let numbers = numbers(shape, &slots, forward);
    let each = || numbers.clone().take(slots.len());
    let expected: Vec<u32> = each().map(|round| in_slot(shape, round, forward)).collect();
    let lack = |slot: usize| f64::from(expected[slot].saturating_sub(slots[slot].cells)) / f64::from(expected[slot]);
    let new: Vec<u32> = each().map(|round| shape.new_cells(round, forward)).collect();
    let unseen = (contents.len() == trace.len()).then(|| unseen(shape, &cells, &slot_of, &new));

    let (copies, gap) = (shape.copies as usize, shape.gap as usize);
    let reach = (copies - 1) * gap;
    let whole = reach..slots.len().saturating_sub(reach + 1);
    (whole.zip(numbers.skip(reach)))
        .map(|(slot, round)| {
            let lacks = (0..copies).map(|copy| lack(slot + copy * gap));
            let lost = match &unseen {
                Some(unseen) => unseen[slot] / f64::from(new[slot]),
                None => lacks.clone().product(),
            };
            let Slot { at, cells, late } = slots[slot];
            let late = if cells > 0 { late / f64::from(cells) } else { 0.0 };
            LinkRound { round, at: at.max(0.0) as u64, lost, missing: lacks.sum::<f64>() / copies as f64, late }
        })
        .collect()
}

/// The slots from the first to the last one with a cell, and the slot of each cell.
fn slots(shape: &PacedShape, cells: &[(u64, Option<u32>)]) -> Option<(Vec<Slot>, Vec<usize>)> {
    let period = shape.period as f64;
    // The circular mean of the first cells is where slots begin; then their clock is followed.
    let (sin, cos) = cells.iter().take(500).fold((0.0, 0.0), |(sin, cos), (at, _)| {
        let angle = (*at as f64 / period).fract() * std::f64::consts::TAU;
        (sin + angle.sin(), cos + angle.cos())
    });
    let mut phase = sin.atan2(cos) / std::f64::consts::TAU * period;
    let mut slot_of: Vec<i64> = Vec::with_capacity(cells.len());
    let mut lates = Vec::with_capacity(cells.len());
    for &(at, _) in cells {
        let slot = ((at as f64 - phase) / period).round();
        let late = at as f64 - phase - slot * period;
        phase += late / 64.0;
        slot_of.push(slot as i64);
        lates.push((phase, late));
    }
    let (&first, &last) = (slot_of.iter().min()?, slot_of.iter().max()?);
    let slot = |slot: i64| Slot { at: phase + slot as f64 * period, ..Slot::default() };
    let mut slots: Vec<Slot> = (first..=last).map(slot).collect();
    let slot_of: Vec<usize> = slot_of.into_iter().map(|slot| (slot - first) as usize).collect();
    for (&slot, (phase, late)) in slot_of.iter().zip(lates) {
        let one = &mut slots[slot];
        one.at = phase + (first + slot as i64) as f64 * period;
        one.cells += 1;
        one.late += late;
    }
    Some((slots, slot_of))
}

/// The numbers of the rounds whose first copies are in the slots: those that begin nearby, moved by as many rounds as
/// fit the timetable best.
fn numbers(shape: &PacedShape, slots: &[Slot], forward: bool) -> RangeFrom<u64> {
    let begin = ((slots[0].at - shape.first_at as f64) / shape.period as f64).round() as i64;
    // Rounds before the record's first one have numbers, too.
    let first = shape.first.saturating_add_signed(begin);
    let misfit = |shift: i64| {
        let from = first.saturating_add_signed(shift);
        let rounds = (from..).zip(slots);
        rounds.map(|(round, slot)| u64::from(in_slot(shape, round, forward).abs_diff(slot.cells))).sum::<u64>()
    };
    let shift = (-SHIFT..SHIFT).min_by_key(|&shift| (misfit(shift), shift.abs())).unwrap_or(0);
    first.saturating_add_signed(shift)..
}

/// The cells in the slot of a round: new ones, and copies of earlier ones.
fn in_slot(shape: &PacedShape, round: u64, forward: bool) -> u32 {
    let earlier = |copy: u32| round.checked_sub(u64::from(copy * shape.gap));
    (0..shape.copies).filter_map(earlier).map(|round| shape.new_cells(round, forward)).sum()
}

/// How many cells of the round that begins in each slot were not seen at all. A cell that came once may be of several
/// rounds: it belongs to one that lacks a cell.
fn unseen(shape: &PacedShape, cells: &[(u64, Option<u32>)], slot_of: &[usize], new: &[u32]) -> Vec<f64> {
    let mut groups: HashMap<u32, Group> = HashMap::new();
    for (&slot, content) in slot_of.iter().zip(cells.iter().filter_map(|(_, content)| *content)) {
        let group = groups.entry(content).or_insert(Group { first: slot, last: slot });
        *group = Group { first: group.first.min(slot), last: group.last.max(slot) };
    }
    let mut groups: Vec<Group> = groups.into_values().collect();
    groups.sort_by_key(|group| (group.first, group.last));
    let mut unseen: Vec<f64> = new.iter().map(|&cells| f64::from(cells)).collect();
    let (copies, gap) = (shape.copies as usize, shape.gap as usize);
    let candidates = |group: &Group, unseen: &[f64]| -> Vec<usize> {
        let possible = (0..copies).filter_map(|copy| group.first.checked_sub(copy * gap));
        possible.filter(|begin| begin + (copies - 1) * gap >= group.last && unseen[*begin] > 0.0).collect()
    };
    // What belongs to one round only leaves fewer rounds to the others.
    for _ in 0..4 {
        groups.retain(|group| match candidates(group, &unseen)[..] {
            [only] => {
                unseen[only] = (unseen[only] - 1.0).max(0.0);
                false
            }
            _ => true,
        });
    }
    for group in &groups {
        let possible = candidates(group, &unseen);
        let sum: f64 = possible.iter().map(|&begin| unseen[begin]).sum();
        possible.iter().for_each(|&begin| unseen[begin] = (unseen[begin] * (1.0 - 1.0 / sum)).max(0.0));
    }
    unseen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        paced::Contents,
        record::{Place, Seen},
    };

    /// The first round of the record: a few before the last one with a slot for setups.
    const FIRST: u64 = 2048 * 3 + 180;

    /// A link with two copies of every cell, seen 3 ms before its rounds begin. `drops` is asked for the slot, the
    /// round and the number of the cell within it, which is 0 for data.
    fn link(drops: impl Fn(u64, u64, u32) -> bool) -> Record {
        let shape = PacedShape { first: FIRST, first_at: 7_000_000, ..PacedShape::default() };
        let (mut forward, mut contents) = (Vec::new(), Vec::new());
        for slot in 0..150u64 {
            for round in [Some(slot), slot.checked_sub(1)].into_iter().flatten() {
                for cell in (0..shape.new_cells(FIRST + round, true)).filter(|&cell| !drops(slot, round, cell)) {
                    let at = shape.begins(FIRST + slot) - 3_000_000 + (slot * 7919 % 20) * 100_000;
                    forward.push(Seen { at, bytes: 240 });
                    contents.push(4 * round as u32 + cell);
                }
            }
        }
        Record {
            length: 1_600_000_000,
            cell_bytes: 240,
            access: vec![Place { forward, backward: Vec::new() }],
            contents: vec![Contents { forward: contents, backward: Vec::new() }],
            paced: Some(shape),
            ..Record::default()
        }
    }

    fn lost(record: &Record) -> Vec<(u64, f64)> {
        let rounds = rounds(record, 0, true).into_iter();
        rounds.filter(|round| round.lost > 0.0).map(|round| (round.round - FIRST, round.lost)).collect()
    }

    #[test]
    fn cell_is_lost_when_all_its_copies_are() {
        // Round 180 of the batch is 0 here, so rounds 4, 12 and 20 have a control slot, and 0 to 5 one for setups.
        let record = link(|slot, round, cell| match round {
            3 => cell == 0,
            20 => cell == 1,
            30 => slot == 31,
            _ => (40..43).contains(&slot),
        });
        assert_eq!(lost(&record), [(3, 0.5), (20, 0.5), (40, 1.0), (41, 1.0)]);
        let all = rounds(&record, 0, true);
        assert_eq!((all[0].round, all[0].at / 1_000_000), (FIRST + 1, 15));
        let missing: Vec<f64> = all[28..30].iter().map(|round| round.missing).collect();
        assert_eq!(missing, [0.0, 0.25]);
    }

    #[test]
    fn losses_without_bytes_have_a_probability() {
        let drops = |slot, round, _| round == 30 || (40..43).contains(&slot);
        let record = Record { contents: Vec::new(), ..link(drops) };
        // Rounds 29 and 31 share a slot each with 30, and 28 has a control slot.
        assert_eq!(lost(&record), [(30, 0.25), (40, 1.0), (41, 1.0)]);
    }
}
