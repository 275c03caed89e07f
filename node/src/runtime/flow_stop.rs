//! `on_alarm = "no-new-flows"`: an entry refuses new flows some time after the alarm `dropping` rose, and takes them
//! again some time after it has ended (SPEC 9.15.4).

use std::ops::RangeInclusive;
use std::time::Duration;

use rand::{Rng, RngExt};

/// By how many milliseconds it follows the alarm, drawn uniformly for each change: who raises the alarm on purpose does
/// not choose the moment.
const DELAY_MS: RangeInclusive<u64> = 60_000..=600_000;

/// Whether new flows are refused.
#[derive(Default)]
pub(super) struct FlowStop {
    is_up: bool,
    refuses: bool,
    due: Option<Duration>,
}

impl FlowStop {
    /// The alarm is up or has ended. A start that was drawn comes even if the alarm has ended before it.
    pub(super) fn alarm(&mut self, now: Duration, is_up: bool, rng: &mut impl Rng) {
        if std::mem::replace(&mut self.is_up, is_up) == is_up {
            return;
        }
        match (is_up, self.refuses) {
            (true, true) => self.due = None,
            (false, false) => {}
            _ => self.due = self.due.or_else(|| Some(after(now, rng))),
        }
    }

    /// True while new flows are refused.
    pub(super) fn refuses(&self) -> bool {
        self.refuses
    }

    /// The time of the next change; none is due if it is the largest.
    pub(super) fn due(&self) -> Duration {
        self.due.unwrap_or(Duration::MAX)
    }

    /// What is true from now on if there is a change: new flows are refused, or not.
    pub(super) fn change(&mut self, now: Duration, rng: &mut impl Rng) -> Option<bool> {
        self.due.take_if(|due| *due <= now)?;
        self.refuses = !self.refuses;
        if self.refuses && !self.is_up {
            self.due = Some(after(now, rng));
        }
        Some(self.refuses)
    }
}

fn after(now: Duration, rng: &mut impl Rng) -> Duration {
    now + Duration::from_millis(rng.random_range(DELAY_MS))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn new_flows_follow_the_alarm_after_a_random_time() {
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let (mut stop, mut delays) = (FlowStop::default(), Vec::new());
        for nth in 0..200 {
            let (now, is_up) = (HOUR * nth, nth.is_multiple_of(2));
            stop.alarm(now, is_up, rng);
            let due = stop.due();
            // Another cause of the same alarm does not change the time.
            stop.alarm(now + MS, is_up, rng);
            assert_eq!((stop.due(), stop.change(due - MS, rng)), (due, None));
            assert_eq!((stop.change(due, rng), stop.change(due, rng), stop.due()), (Some(is_up), None, Duration::MAX));
            delays.push((due - now).as_secs());
        }
        delays.sort_unstable();
        assert!(delays[0] >= 60 && delays[199] <= 600, "{delays:?}");
        assert!(delays[20] < 180 && delays[180] > 480, "spread over all of the time: {delays:?}");
    }

    #[test]
    fn start_comes_after_a_short_alarm_and_ends_by_itself() {
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let mut stop = FlowStop::default();
        [true, false].into_iter().for_each(|is_up| stop.alarm(Duration::ZERO, is_up, rng));
        let start = stop.due();
        assert_eq!(stop.change(start, rng), Some(true));
        let end = stop.due();
        assert!(end > start && stop.change(end, rng) == Some(false) && stop.due() == Duration::MAX);
    }

    #[test]
    fn alarm_that_rises_again_before_the_end_changes_nothing() {
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let mut stop = FlowStop::default();
        stop.alarm(HOUR, true, rng);
        assert_eq!(stop.change(2 * HOUR, rng), Some(true));
        [false, true].into_iter().for_each(|is_up| stop.alarm(2 * HOUR, is_up, rng));
        assert_eq!((stop.due(), stop.change(3 * HOUR, rng)), (Duration::MAX, None));
    }
}
