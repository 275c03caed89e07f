//! The causes for which the alarm `dropping` is up (SPEC 9.15.3).

use super::losses::BEFORE;
use super::status::{Cause, PacedEvent, RaisedCause};

/// An alarm: its causes, and what has changed.
#[derive(Default)]
pub(super) struct RaisedCauses {
    up: Vec<RaisedCause>,
    events: Vec<PacedEvent>,
}

impl RaisedCauses {
    /// Raises it in a round for this cause, or keeps it up.
    pub(super) fn raise(&mut self, cause: Cause, round: u64) {
        match self.up.iter_mut().find(|raised| raised.cause.is_like(&cause)) {
            Some(raised) => *raised = RaisedCause { cause, last: round, times: raised.times + 1, ..*raised },
            None => {
                self.up.push(RaisedCause { cause, since: round, last: round, times: 1 });
                self.events.push(PacedEvent::Dropping(cause));
            }
        }
    }

    /// Changes each cause for which it is up.
    pub(super) fn each(&mut self, change: impl FnMut(&mut RaisedCause)) {
        self.up.iter_mut().for_each(change);
    }

    /// Something else has happened.
    pub(super) fn say(&mut self, event: PacedEvent) {
        self.events.push(event);
    }

    /// Ends it for causes that have not come for long before this round.
    pub(super) fn expire(&mut self, round: u64) {
        let count = self.up.len();
        self.up.retain(|raised| round < raised.last + BEFORE);
        if count > 0 && self.up.is_empty() {
            self.events.push(PacedEvent::DroppingEnded);
        }
    }

    /// The causes for which it is up; none if it is not.
    pub(super) fn up(&self) -> &[RaisedCause] {
        &self.up
    }

    /// What has happened since the last call.
    pub(super) fn events(&mut self) -> Vec<PacedEvent> {
        std::mem::take(&mut self.events)
    }
}
