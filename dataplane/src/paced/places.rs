//! Counts of places for reports to neighbours (SPEC 9.15.2).

use hashbrown::HashMap;
use wire::ids::LinkId;
use wire::link::LinkContent;
use wire::paced::Report;

use super::control_cells::Control;
use crate::stage::rounds::Origin;

/// Rounds between two reports.
pub(super) const REPORT_EVERY: u64 = 100;

#[derive(Clone, Copy, Default)]
struct Count {
    places: u32,
    filled: u32,
    lost: u32,
}

/// Places since the last report: of each entry at Mix 1, otherwise of all channels.
pub(super) struct Places {
    first: u64,
    counts: HashMap<Option<LinkId>, Count, foldhash::fast::RandomState>,
}

impl Places {
    /// Of the rounds behind the last released one.
    pub(super) fn new(released: u64) -> Places {
        Places { first: released + 1, counts: HashMap::default() }
    }

    /// True if a report is due after the release of a round.
    pub(super) fn is_due(round: u64) -> bool {
        (round + 1).is_multiple_of(REPORT_EVERY)
    }

    /// Counts a place of an entry's channel, or of any.
    pub(super) fn add(&mut self, of: Option<LinkId>, origin: Origin) {
        let count = self.counts.entry(of).or_default();
        count.places += 1;
        count.filled += u32::from(origin != Origin::Came);
        count.lost += u32::from(origin == Origin::Filled);
    }

    /// The report on the rounds up to `last`.
    pub(super) fn report(&self, of: Option<LinkId>, last: u64) -> Control {
        let Count { places, filled, lost } = self.counts.get(&of).copied().unwrap_or_default();
        // There may be more rounds if some were skipped.
        let rounds = u16::try_from(last + 1 - self.first).unwrap_or(u16::MAX);
        let report = Report { first: last + 1 - u64::from(rounds), rounds, places, filled, lost };
        Control::link(LinkContent::Report, &report.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_covers_the_rounds_since_the_last_one() {
        let places = |released, last| Places::new(released).report(None, last).content[1..].to_vec();
        let expected = |first, rounds| Report { first, rounds, places: 0, filled: 0, lost: 0 }.to_bytes();
        assert_eq!(places(199, 299), expected(200, 100));
        assert_eq!(places(199, 399), expected(200, 200), "299 was skipped");
        assert_eq!(places(199, 99_999), expected(100_000 - 65_535, 65_535));
    }
}
