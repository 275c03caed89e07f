//! The meeting of an entry in a paced class: its secret, read again at each reload, and the lines about its state.

use std::path::PathBuf;
use std::time::Duration;

use dataplane::paced::entry::MeetingState;
use tracing::{debug, info, warn};
use wire::paced::MeetingSecret;

use crate::config::read_meeting;

/// How often the state is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the control thread keeps of a meeting.
pub(super) struct MeetingKeeper {
    file: PathBuf,
    said: Option<MeetingState>,
    due: Duration,
}

impl MeetingKeeper {
    /// Of the meeting whose secret is in this file.
    pub(super) fn new(file: PathBuf) -> MeetingKeeper {
        MeetingKeeper { file, said: None, due: Duration::ZERO }
    }

    /// Reads the secret again. The log says why not, and then the meeting stays as it is.
    pub(super) fn read(&self) -> Option<MeetingSecret> {
        match read_meeting(&self.file) {
            Ok(secret) => {
                info!("read the meeting's secret again; it applies from the next batch that has no setup yet");
                Some(secret)
            }
            Err(why) => {
                warn!("the meeting stays as it is: {why}");
                None
            }
        }
    }

    /// Logs the state that `read` returns if it has changed: for developers only, because the journal of other levels
    /// would say when the user talked. Returns when to look again.
    pub(super) fn look(&mut self, now: Duration, read: impl FnOnce() -> Option<MeetingState>) -> Duration {
        if now < self.due {
            return self.due;
        }
        self.due = now + LOOK_EVERY;
        let state = read();
        if let Some(state) = state.filter(|_| self.said != state) {
            self.said = Some(state);
            match state {
                MeetingState::Waiting => debug!("meeting: the other end is not there"),
                MeetingState::Joined => debug!("meeting: joined"),
                MeetingState::Lost => debug!("meeting: nothing has opened for 100 rounds; leave this entry running"),
            }
        }
        self.due
    }
}
