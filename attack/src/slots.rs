//! The regular times of a link, and the cells that are missing from them.

/// Cells closer together than this share a slot, in nanoseconds.
const SLOT: u64 = 1_000_000;
/// A link that sends nothing for more slots than this is down, or does not send at regular times.
const MOST: u64 = 100;

/// A run of slots that lack cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The time of the first slot that lacks a cell.
    pub from: u64,
    /// The time of the last one.
    pub to: u64,
    /// Cells that are missing from all of them.
    pub cells: u32,
}

/// A link that sends the same number of cells at regular times.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    pub period: u64,
    /// The slots that lack a cell, each once.
    pub lacking: Vec<u64>,
    pub runs: Vec<Run>,
}

impl Slots {
    /// `None` if the link does not send at regular times: where fewer than half of the intervals are alike.
    pub(crate) fn of(cells: &[u64]) -> Option<Self> {
        let mut slots: Vec<(u64, u32)> = Vec::new();
        for &at in cells {
            match slots.last_mut() {
                Some((first, count)) if at - *first < SLOT => *count = count.saturating_add(1),
                _ => slots.push((at, 1)),
            }
        }
        let mut intervals: Vec<u64> = slots.windows(2).map(|w| w[1].0 - w[0].0).collect();
        intervals.sort_unstable();
        let period = *intervals.get(intervals.len() / 2)?;
        let alike = intervals.iter().filter(|interval| interval.abs_diff(period) < period / 6).count();
        if alike * 2 < intervals.len() {
            return None;
        }
        let full = most_frequent(slots.iter().map(|slot| slot.1));
        let mut lacking: Vec<(u64, u32)> = Vec::new();
        for pair in slots.windows(2) {
            let (at, count) = pair[0];
            if count < full {
                lacking.push((at, full - count));
            }
            let gap = pair[1].0 - at;
            let steps = (gap + period / 2) / period;
            if (2..=MOST).contains(&steps) {
                lacking.extend((1..steps).map(|step| (at + gap * step / steps, full)));
            }
        }
        let runs = runs(&lacking, period);
        Some(Self { period, lacking: lacking.into_iter().map(|slot| slot.0).collect(), runs })
    }
}

fn most_frequent(counts: impl Iterator<Item = u32>) -> u32 {
    let mut seen = [0u32; 64];
    for count in counts {
        seen[(count as usize).min(63)] += 1;
    }
    (0..64).max_by_key(|&count| seen[count as usize]).unwrap_or(1)
}

fn runs(lacking: &[(u64, u32)], period: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &(at, cells) in lacking {
        match runs.last_mut() {
            Some(run) if at - run.to < period * 3 / 2 => {
                run.to = at;
                run.cells = run.cells.saturating_add(cells);
            }
            _ => runs.push(Run { from: at, to: at, cells }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_cells_are_found_in_their_slots() {
        const MS: u64 = 1_000_000;
        let lost = [(5, 0), (5, 1), (6, 0), (20, 1)];
        let cells: Vec<u64> = (0..40u64)
            .flat_map(|slot| (0..2).map(move |copy| (slot, copy)))
            .filter(|cell| !lost.contains(cell))
            .map(|(slot, copy)| 3 * MS + slot * 10 * MS + (slot * 7919) % 50_000 + copy * 5_000)
            .collect();
        let slots = Slots::of(&cells).unwrap();
        assert!(slots.period.abs_diff(10 * MS) < 100_000);
        assert_eq!(slots.runs.iter().map(|run| run.cells).collect::<Vec<_>>(), [3, 1]);
        assert!(slots.runs[0].from.abs_diff(53 * MS) < MS && slots.runs[0].to.abs_diff(63 * MS) < MS);
        assert_eq!(slots.lacking.len(), 3);
    }

    #[test]
    fn irregular_links_have_no_slots() {
        let mut at = 0;
        let cells: Vec<u64> = (0..500u64)
            .map(|i| {
                at += 2_000_000 + (i * i * 7919) % 40_000_000;
                at
            })
            .collect();
        assert!(Slots::of(&cells).is_none());
    }
}
