//! The progress of an entry in one class: its link to Mix 1 and its open channels.
//!
//! The control thread reports every event; [`crate::client`] waits for progress, blocking or async.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control::Event;
use tokio::sync::Notify;

/// The progress of a class of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The link to the next hop is up.
    pub linked: bool,
    /// Open channels.
    pub channels: usize,
    /// The control thread has ended, so nothing will change.
    pub ended: bool,
}

/// Progress that others can wait for.
#[derive(Default)]
pub struct Readiness {
    progress: Mutex<Progress>,
    changed: Condvar,
    notify: Notify,
}

impl Readiness {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
        self.notify.notify_waiters();
    }

    /// Takes an event of control. An entry has one link, to Mix 1.
    pub fn note(&self, event: &Event) {
        match event {
            Event::LinkUp { .. } => self.update(|progress| progress.linked = true),
            Event::LinkDown { .. } => self.update(|progress| progress.linked = false),
            Event::ChannelOpen { .. } => self.update(|progress| progress.channels += 1),
            Event::ChannelClosed { .. } => {
                self.update(|progress| progress.channels = progress.channels.saturating_sub(1));
            }
            _ => {}
        }
    }

    /// The control thread ends.
    pub fn end(&self) {
        self.update(|progress| progress.ended = true);
    }

    /// Waits until `channels` are open, the node has ended, or the timeout. Returns the progress at that time.
    pub fn wait(&self, channels: usize, timeout: Duration) -> Progress {
        let deadline = Instant::now().checked_add(timeout);
        let mut progress = self.lock();
        while progress.channels < channels && !progress.ended {
            let left = deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            // A timeout of centuries overflows the clock of the system.
            let left = left.min(Duration::from_secs(86_400));
            progress = self.changed.wait_timeout(progress, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *progress
    }

    /// The same, async and without a timeout.
    pub async fn reached(&self, channels: usize) -> Progress {
        loop {
            // Created before progress is read, so that no change in between is missed.
            let notified = self.notify.notified();
            let progress = *self.lock();
            if progress.channels >= channels || progress.ended {
                return progress;
            }
            notified.await;
        }
    }

    /// Progress now.
    pub fn now(&self) -> Progress {
        *self.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_with_the_channels_the_timeout_or_the_node() {
        let readiness = Readiness::default();
        assert_eq!(readiness.wait(1, Duration::ZERO), Progress::default());
        readiness.note(&Event::ChannelOpen { channel: wire::ids::ChannelIndex(0), setup: Duration::ZERO });
        assert_eq!(readiness.wait(1, Duration::MAX).channels, 1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| readiness.wait(2, Duration::MAX));
            readiness.end();
            assert!(waiting.join().unwrap().ended);
        });
    }
}
