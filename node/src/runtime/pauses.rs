//! Pauses of the control thread: times in which it did not run. Most pauses are those of the whole node.

use std::time::Duration;

use tracing::warn;

/// A shorter pause gets no line.
const LOGGED_FROM: Duration = Duration::from_secs(1);
/// Time between two lines.
const EVERY: Duration = Duration::from_secs(60);

/// What was logged of pauses.
#[derive(Default)]
pub(super) struct Pauses {
    last_line: Option<Duration>,
}

impl Pauses {
    /// Logs that control did not run from `since` to `now`.
    pub(super) fn note(&mut self, since: Duration, now: Duration) {
        if !self.is_due(since, now) {
            return;
        }
        let paused_s = now.saturating_sub(since).as_secs_f64();
        warn!(
            paused_s,
            "the control thread did not run for {paused_s:.1} s: the node was stopped, the host was suspended or busy, or the \
             disk is slow; if workers stopped too, what waited is dropped (`aged`)"
        );
    }

    fn is_due(&mut self, since: Duration, now: Duration) -> bool {
        let is_due = now.saturating_sub(since) >= LOGGED_FROM && self.last_line.is_none_or(|last| now >= last + EVERY);
        if is_due {
            self.last_line = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_get_one_line_a_minute() {
        let mut pauses = Pauses::default();
        let secs = Duration::from_secs;
        assert!(!pauses.is_due(secs(5), secs(5) + LOGGED_FROM / 2), "too short");
        let lines: Vec<u64> = (0..20).map(|n| 10 * n).filter(|at| pauses.is_due(secs(*at), secs(at + 2))).collect();
        assert_eq!(lines, [0, 60, 120, 180]);
    }
}
