//! Counts of places for reports to neighbours (SPEC 9.15.2).

use hashbrown::HashMap;
use wire::ids::LinkId;
use wire::link::LinkContent;
use wire::paced::{REPORT_EVERY, Report};

use super::control_cells::Control;
use crate::stage::rounds::Origin;

#[derive(Clone, Copy)]
struct Count {
    first: u64,
    places: u32,
    filled: u32,
    lost: u32,
}

/// Places that were counted: of each entry at Mix 1, otherwise of all channels.
pub(super) struct ReportCounts {
    /// The first round behind the last report.
    next: u64,
    counts: HashMap<Option<LinkId>, Count, foldhash::fast::RandomState>,
}

impl ReportCounts {
    /// Of the rounds behind the last released one.
    pub(super) fn new(released: u64) -> ReportCounts {
        ReportCounts { next: released + 1, counts: HashMap::default() }
    }

    /// True if reports are due after the release of a round.
    pub(super) fn is_due(round: u64) -> bool {
        (round + 1).is_multiple_of(REPORT_EVERY)
    }

    fn count(&mut self, of: Option<LinkId>) -> &mut Count {
        let (places, filled, lost) = (0, 0, 0);
        self.counts.entry(of).or_insert(Count { first: self.next, places, filled, lost })
    }

    /// Counts a place of an entry's channel, or of any.
    pub(super) fn add(&mut self, of: Option<LinkId>, origin: Origin) {
        let count = self.count(of);
        count.places = count.places.wrapping_add(1);
        count.filled = count.filled.wrapping_add(u32::from(origin != Origin::Came));
        count.lost = count.lost.wrapping_add(u32::from(origin == Origin::Lost));
    }

    /// The report on the rounds up to `last`.
    pub(super) fn report(&mut self, of: Option<LinkId>, last: u64) -> Control {
        let Count { first, places, filled, lost } = *self.count(of);
        Control::link(LinkContent::Report, &Report { first, last, places, filled, lost }.to_bytes())
    }

    /// All reports up to `last` are made. Links that are gone are forgotten.
    pub(super) fn reported(&mut self, last: u64, lives: impl Fn(LinkId) -> bool) {
        self.next = last + 1;
        self.counts.retain(|of, _| of.is_none_or(&lives));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_have_totals_since_their_link_began() {
        let [old, new] = [1, 2].map(|link| Some(LinkId(link)));
        let mut places = ReportCounts::new(199);
        let expect = |places: &mut ReportCounts, of, last, first, filled: u32| {
            let report = Report { first, last, places: filled, filled, lost: filled };
            assert_eq!(places.report(of, last).content[1..], report.to_bytes());
        };
        places.add(old, Origin::Lost);
        expect(&mut places, old, 299, 200, 1);
        expect(&mut places, None, 299, 200, 0);
        places.reported(299, |_| true);
        [old, new].into_iter().for_each(|of| places.add(of, Origin::Lost));
        expect(&mut places, old, 399, 200, 2);
        expect(&mut places, new, 399, 300, 1);
        expect(&mut places, None, 399, 200, 0);
        places.reported(399, |link| Some(link) == new);
        expect(&mut places, old, 99_999, 400, 0);
        expect(&mut places, new, 99_999, 300, 1);
    }

    #[test]
    fn totals_go_on_behind_their_largest_number() {
        let mut places = ReportCounts::new(199);
        *places.count(None) = Count { first: 200, places: u32::MAX, filled: u32::MAX, lost: u32::MAX };
        places.add(None, Origin::Lost);
        let report = Report { first: 200, last: 299, places: 0, filled: 0, lost: 0 };
        assert_eq!(places.report(None, 299).content[1..], report.to_bytes());
    }
}
