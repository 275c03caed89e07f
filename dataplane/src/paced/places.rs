//! Counts of places for reports to neighbours (SPEC 9.15.2).

use wire::link::LinkContent;
use wire::paced::Report;

use super::control_cells::Control;
use crate::stage::rounds::Origin;

/// A report covers this many rounds.
const REPORT_EVERY: u64 = 100;

/// Places since the last report.
#[derive(Clone, Copy, Default)]
pub(super) struct Places {
    places: u32,
    filled: u32,
    lost: u32,
}

impl Places {
    /// True if a report is due after the release of a round.
    pub(super) fn is_due(round: u64) -> bool {
        (round + 1).is_multiple_of(REPORT_EVERY)
    }

    pub(super) fn add(&mut self, origin: Origin) {
        self.places += 1;
        self.filled += u32::from(origin != Origin::Came);
        self.lost += u32::from(origin == Origin::Filled);
    }

    /// The report on the rounds up to `last`.
    pub(super) fn report(self, last: u64) -> Control {
        let Places { places, filled, lost } = self;
        let report = Report { first: last + 1 - REPORT_EVERY, rounds: REPORT_EVERY as u16, places, filled, lost };
        Control::link(LinkContent::Report, &report.to_bytes())
    }
}
