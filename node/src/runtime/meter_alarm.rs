//! The alarm of the anonymity meter: a line in the log when a direction's effective set falls below the operator's
//! floor, and one when it is back.

use std::time::Duration;

use tracing::{info, warn};

use crate::report::MeterReport;
use crate::runtime::log::Trouble;

/// Time between two looks at the meter.
const AGAIN: Duration = Duration::from_secs(10);

/// The state of both directions.
pub(super) struct MeterAlarm {
    due: Duration,
    low: [bool; 2],
    trouble: [Trouble; 2],
}

impl MeterAlarm {
    /// Looks for the first time after a minute: before it, means are of few releases.
    pub(super) fn new(now: Duration) -> MeterAlarm {
        MeterAlarm { due: now + Duration::from_secs(60), low: [false; 2], trouble: Default::default() }
    }

    /// The time of the next look.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Looks at the meter if it is time. A direction without a release keeps its state: nobody was exposed.
    pub(super) fn look(&mut self, now: Duration, read: impl FnOnce() -> Option<MeterReport>) {
        if now < self.due {
            return;
        }
        self.due = now + AGAIN;
        let Some(meter) = read() else { return };
        let floor = meter.floor;
        let states = self.low.iter_mut().zip(&mut self.trouble);
        for ((direction, company), (low, trouble)) in meter.directions().into_iter().zip(states) {
            if company.releases == 0 || *low == company.below_floor {
                continue;
            }
            *low = company.below_floor;
            let effective = format!("{:.1}", company.effective);
            if *low && trouble.occurs(now) {
                warn!(
                    direction,
                    effective,
                    floor,
                    "cells have little company: {effective} effective channels a release, {direction}, in the last \
                     minute; meter_floor is {floor}"
                );
            } else if !*low && trouble.end(now) {
                info!(
                    direction,
                    effective,
                    floor,
                    "cells have company again: {effective} effective channels a release, {direction}; meter_floor is \
                     {floor}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::CompanyReport;

    #[test]
    fn alarm_looks_after_a_minute_and_keeps_state_without_releases() {
        let mut alarm = MeterAlarm::new(Duration::from_secs(1));
        let mut look = |now: u64, releases: u64, below_floor: bool| {
            let forward = CompanyReport { releases, below_floor, ..CompanyReport::default() };
            let backward = CompanyReport { releases, ..CompanyReport::default() };
            let mut looked = false;
            alarm.look(Duration::from_secs(now), || {
                looked = true;
                Some(MeterReport { class: "L".to_owned(), floor: 8, forward, backward })
            });
            (looked, alarm.low)
        };
        assert_eq!(look(60, 9, true), (false, [false, false]));
        assert_eq!(look(61, 9, true), (true, [true, false]));
        assert_eq!(look(70, 9, false), (false, [true, false]));
        assert_eq!(look(71, 0, false), (true, [true, false]));
        assert_eq!(look(81, 9, false), (true, [false, false]));
    }
}
