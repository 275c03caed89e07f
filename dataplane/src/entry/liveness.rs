//! Detects channels that no longer lead to the exit (SPEC 5.8).
//!
//! The entry hears from the exit whenever anything comes back. If it has sent and heard nothing for a second, it pings
//! at every look until something comes, because PINGs get lost, too. If nothing comes for [`LOST_AFTER`] and the
//! longest round trip of mixing, the channel is lost and its clients move. After a random 5-10 s of silence it pings,
//! too, which keeps the hops from forgetting the channel and finds out early that one has.
//!
//! Time in which the worker did not get its turn does not count: it could neither ping nor hear.

use rand::RngExt;
use rand_chacha::ChaCha20Rng;

use crate::{Nanos, SECOND};

/// The interval at which the entry checks channels that wait for an answer.
pub(super) const LOOK: Nanos = SECOND / 8;

/// A channel is lost after this time without an answer, beyond the longest round trip of mixing (SPEC 5.8).
pub(super) const LOST_AFTER: Nanos = 3 * SECOND;

/// The liveness of one channel, as seen by the entry.
pub(super) struct Liveness {
    /// The time of the first cell sent since the last one was received.
    asked: Option<Nanos>,
    speak_at: Nanos,
}

impl Liveness {
    /// Of a channel that has just opened.
    pub(super) fn new(now: Nanos, rng: &mut ChaCha20Rng) -> Liveness {
        Liveness { asked: None, speak_at: now + silence(rng) }
    }

    /// The look at the channels came `late` after its time: the worker was stopped, or the host is busy.
    pub(super) fn excuse(&mut self, late: Nanos, now: Nanos) {
        self.asked = self.asked.map(|at| (at + late).min(now));
    }

    /// A cell was sent.
    pub(super) fn sent(&mut self, now: Nanos, rng: &mut ChaCha20Rng) {
        self.asked.get_or_insert(now);
        self.speak_at = now + silence(rng);
    }

    /// A cell came back.
    pub(super) fn heard(&mut self) {
        self.asked = None;
    }

    /// True if it waits for an answer.
    pub(super) fn waits(&self) -> bool {
        self.asked.is_some()
    }

    /// True if a PING is due. Called at every check.
    pub(crate) fn wants_ping(&self, now: Nanos) -> bool {
        now >= self.speak_at || self.asked.is_some_and(|at| now >= at + SECOND)
    }

    /// True if the channel must be given up.
    pub(crate) fn is_lost(&self, now: Nanos, after: Nanos) -> bool {
        self.asked.is_some_and(|at| now >= at + after)
    }
}

fn silence(rng: &mut ChaCha20Rng) -> Nanos {
    rng.random_range(5 * SECOND..10 * SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn silent_channel_is_pinged_and_lost_without_an_answer() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut life = Liveness::new(0, &mut rng);
        assert!(!life.wants_ping(5 * SECOND - 1) && life.wants_ping(10 * SECOND));
        life.sent(20 * SECOND, &mut rng);
        assert!(!life.wants_ping(21 * SECOND - 1) && life.wants_ping(21 * SECOND));
        life.sent(21 * SECOND, &mut rng);
        assert!(life.wants_ping(21 * SECOND + LOOK) && life.wants_ping(23 * SECOND), "a PING that is lost is repeated");
        assert!(!life.is_lost(23 * SECOND - 1, LOST_AFTER) && life.is_lost(23 * SECOND, LOST_AFTER));
        assert!(life.waits());
        life.excuse(10 * SECOND, 33 * SECOND);
        assert!(!life.is_lost(33 * SECOND - 1, LOST_AFTER) && life.is_lost(33 * SECOND, LOST_AFTER));
        life.excuse(10 * SECOND, 35 * SECOND);
        assert!(!life.is_lost(38 * SECOND - 1, LOST_AFTER), "a question is never in the future");
        life.heard();
        assert!(!life.waits() && !life.is_lost(60 * SECOND, LOST_AFTER));
    }
}
