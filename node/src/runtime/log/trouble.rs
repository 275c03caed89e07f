//! How often trouble becomes a line: soon, then at growing intervals, and when it ends.

use std::collections::BTreeMap;
use std::time::Duration;

/// Trouble is reported after it has lasted this long.
pub(super) const REPORT_AFTER: Duration = Duration::from_millis(1500);
/// Time from the first report of trouble to the second; then it doubles.
const REPEAT_FIRST: Duration = Duration::from_secs(10);
/// Longest time between two reports of the same trouble.
const REPEAT_MAX: Duration = Duration::from_secs(600);
/// Time between two lines about clients, whatever they do.
const CLIENTS_EVERY: Duration = Duration::from_secs(1);
/// Destinations and clients that get lines of their own.
const CLIENT_TROUBLES_MAX: usize = 64;
/// New ones of these that get a line at once.
const SUBJECTS_AT_ONCE: u32 = 8;
/// Time after which one more does.
const SUBJECTS_EVERY: Duration = Duration::from_secs(60);

/// Trouble that may last, or come back.
#[derive(Default)]
pub(in crate::runtime) struct Trouble {
    /// Once it has been reported: when to report it again, and the interval before that.
    repeat: Option<(Duration, Duration)>,
    /// It has lasted for [`REPORT_AFTER`] and has not ended.
    pub(super) lasts: bool,
    /// It was reported and has not ended since.
    reported: bool,
    ended: Option<Duration>,
}

impl Trouble {
    /// True if a report is due for trouble that has lasted this long.
    ///
    /// Trouble that comes back continues at the interval it had reached, unless it was absent for that long.
    pub(super) fn is_due(&mut self, now: Duration, lasted: Duration) -> bool {
        if !self.lasts {
            if lasted < REPORT_AFTER {
                return false;
            }
            self.lasts = true;
            let began = now.saturating_sub(lasted);
            if let (Some(ended), Some((_, interval))) = (self.ended, self.repeat)
                && began >= ended + interval
            {
                self.repeat = None;
            }
        }
        let interval = match self.repeat {
            None => REPEAT_FIRST,
            Some((at, _)) if now < at => return false,
            Some((_, interval)) => (interval * 2).min(REPEAT_MAX),
        };
        self.repeat = Some((now + interval, interval));
        self.reported = true;
        true
    }

    /// True if a report is due for a single event. What was not seen for the longest interval is new again.
    pub(in crate::runtime) fn occurs(&mut self, now: Duration) -> bool {
        if self.is_over(now) {
            *self = Trouble::default();
        }
        self.is_due(now, REPORT_AFTER)
    }

    /// True if it was not seen for the longest interval.
    fn is_over(&self, now: Duration) -> bool {
        self.repeat.is_some_and(|(at, _)| now >= at + REPEAT_MAX)
    }

    /// Ends the trouble. True if it had been reported.
    pub(in crate::runtime) fn end(&mut self, now: Duration) -> bool {
        if std::mem::take(&mut self.lasts) {
            self.ended = Some(now);
        }
        std::mem::take(&mut self.reported)
    }
}

/// Trouble that clients cause, by its subject: a refused destination, or a client with too long datagrams.
///
/// Each subject is reported at growing intervals, and all together at most once per [`CLIENTS_EVERY`]. A client can
/// make up any number of subjects, so only [`SUBJECTS_AT_ONCE`] and one more per [`SUBJECTS_EVERY`] get lines of their
/// own. The others are counted in one line, at growing intervals as well.
#[derive(Default)]
pub(super) struct ClientTroubles {
    by_subject: BTreeMap<String, Trouble>,
    last_line: Option<Duration>,
    /// When all of [`SUBJECTS_AT_ONCE`] are available again.
    subjects_refilled: Duration,
    /// Notices about other subjects since the last line about them.
    unlisted: u64,
    more: Trouble,
}

impl ClientTroubles {
    /// True if a report about this subject is due.
    pub(super) fn is_due(&mut self, now: Duration, subject: String) -> bool {
        let may_log = self.may_log(now);
        if may_log {
            self.by_subject.retain(|_, trouble| !trouble.is_over(now));
        }
        let has_room = self.has_room(now);
        let is_due = match self.by_subject.get_mut(&subject) {
            Some(trouble) => may_log && trouble.occurs(now),
            None if may_log && has_room => {
                self.subjects_refilled = self.subjects_refilled.max(now) + SUBJECTS_EVERY;
                self.by_subject.entry(subject).or_default().occurs(now)
            }
            None => {
                self.unlisted += 1;
                false
            }
        };
        if is_due {
            self.last_line = Some(now);
        }
        is_due
    }

    /// The number of notices that got no line, if a line about them is due.
    pub(super) fn more(&mut self, now: Duration) -> Option<u64> {
        if self.unlisted == 0 || !self.may_log(now) || !self.more.occurs(now) {
            return None;
        }
        self.last_line = Some(now);
        Some(std::mem::take(&mut self.unlisted))
    }

    fn may_log(&self, now: Duration) -> bool {
        self.last_line.is_none_or(|last| now >= last + CLIENTS_EVERY)
    }

    /// True if a new subject may have lines of its own.
    fn has_room(&self, now: Duration) -> bool {
        let available = self.subjects_refilled <= now + SUBJECTS_EVERY * (SUBJECTS_AT_ONCE - 1);
        available && self.by_subject.len() < CLIENT_TROUBLES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn lasting_trouble_is_reported_at_growing_intervals() {
        let mut trouble = Trouble::default();
        let reports: Vec<u64> = (0..3600).filter(|s| trouble.is_due(secs(*s), secs(*s))).collect();
        assert_eq!(reports, [2, 12, 32, 72, 152, 312, 632, 1232, 1832, 2432, 3032]);
        assert!(trouble.end(secs(3600)) && !trouble.end(secs(3600)));
        assert!(!trouble.is_due(secs(3602), secs(2)), "it is back too soon");
        assert!(!trouble.end(secs(3603)), "its end is not reported either");
        // It was absent for the last interval of 600 s, so it is new.
        let reports: Vec<u64> = (4300..4400).filter(|s| trouble.is_due(secs(*s), secs(*s - 4300))).collect();
        assert_eq!(reports, [4302, 4312, 4332, 4372]);
    }

    #[test]
    fn flapping_trouble_is_reported_at_growing_intervals() {
        let mut trouble = Trouble::default();
        let mut reports = Vec::new();
        for s in 0..200 {
            let phase = s % 5;
            if phase == 3 {
                trouble.end(secs(s));
            } else if phase < 3 && trouble.is_due(secs(s), secs(phase)) {
                reports.push(s);
            }
        }
        assert_eq!(reports, [2, 12, 32, 72, 152]);
    }

    #[test]
    fn refused_destinations_are_reported_at_growing_intervals() {
        let mut troubles = ClientTroubles::default();
        let reports: Vec<u64> = (0..100).filter(|s| troubles.is_due(secs(*s), "a.example:53".to_owned())).collect();
        assert_eq!(reports, [0, 10, 30, 70]);
        assert!(troubles.is_due(secs(100), "b.example:53".to_owned()), "another subject does not wait");
        assert!(!troubles.is_due(secs(100), "c.example:53".to_owned()), "at most one line a second");
        assert!(troubles.is_due(secs(5000), "a.example:53".to_owned()));
        assert!(troubles.is_due(secs(5010), "a.example:53".to_owned()), "what ended is new trouble");
    }

    #[test]
    fn flood_of_subjects_is_counted_and_hides_no_known_one() {
        let mut troubles = ClientTroubles::default();
        let (mut known, mut listed, mut counts, mut total) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for s in 0..400 {
            if troubles.is_due(secs(s), "a.example:53".to_owned()) {
                known.push(s);
            }
            for port in 0..100 {
                total += 1;
                if troubles.is_due(secs(s), format!("192.0.2.1:{s}.{port}")) {
                    listed.push(s);
                }
                counts.extend(troubles.more(secs(s)).map(|more| (s, more)));
            }
        }
        assert_eq!(known, [0, 10, 30, 70, 150, 310]);
        assert_eq!(listed, [1, 2, 3, 4, 5, 6, 7, 60, 120, 180, 240, 300, 360]);
        let times: Vec<u64> = counts.iter().map(|(s, _)| *s).collect();
        assert_eq!(times, [8, 18, 38, 78, 158, 318]);
        assert_eq!(counts.iter().map(|(_, more)| more).sum::<u64>() + troubles.unlisted + listed.len() as u64, total);
    }

    #[test]
    fn remembered_client_troubles_are_bounded() {
        let mut troubles = ClientTroubles::default();
        // One more every ten minutes, and all others again.
        for round in 0..100 {
            (0..=round).for_each(|port| _ = troubles.is_due(secs(round * 600 + port), format!("192.0.2.1:{port}")));
        }
        assert_eq!(troubles.by_subject.len(), CLIENT_TROUBLES_MAX);
    }

    #[test]
    fn short_trouble_is_not_reported() {
        let mut trouble = Trouble::default();
        assert!(!trouble.is_due(secs(1), secs(1)));
        assert!(!trouble.end(secs(1)));
    }
}
