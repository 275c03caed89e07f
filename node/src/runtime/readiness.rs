//! The progress of an entry: in each class its link to Mix 1 and its channels.
//!
//! The control thread reports every event; [`crate::client`] waits for progress, blocking or async.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use control::Event;
use tokio::sync::Notify;

/// The progress of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct ClassProgress {
    is_linked: bool,
    /// Open channels; of a paced class 1 with a channel in the running batch.
    open: usize,
    /// Channels with which it is ready.
    wanted: usize,
}

/// The progress of all classes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The links of all classes to the next hop are up.
    pub linked: bool,
    /// Open channels, of each class at most those that it wants.
    pub open: usize,
    /// Channels with which all classes are ready.
    pub wanted: usize,
    /// The control thread has ended, so nothing will change.
    pub ended: bool,
}

impl Progress {
    fn is_final(&self) -> bool {
        self.open >= self.wanted || self.ended
    }
}

#[derive(Default)]
struct State {
    classes: Vec<ClassProgress>,
    ended: bool,
}

impl State {
    fn progress(&self) -> Progress {
        let classes = &self.classes;
        Progress {
            linked: classes.iter().all(|class| class.is_linked),
            open: classes.iter().map(|class| class.open.min(class.wanted)).sum(),
            wanted: classes.iter().map(|class| class.wanted).sum(),
            ended: self.ended,
        }
    }
}

/// Progress that others can wait for.
#[derive(Default)]
pub struct Readiness {
    state: Mutex<State>,
    changed: Condvar,
    notify: Notify,
}

impl Readiness {
    /// The number of channels with which each class is ready: one in a paced class.
    pub fn new(wanted: impl Iterator<Item = usize>) -> Readiness {
        let classes = wanted.map(|wanted| ClassProgress { wanted, ..ClassProgress::default() }).collect();
        Readiness { state: Mutex::new(State { classes, ended: false }), ..Readiness::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
        self.notify.notify_waiters();
    }

    fn update_class(&self, place: usize, change: impl FnOnce(&mut ClassProgress)) {
        self.update(|state| {
            if let Some(class) = state.classes.get_mut(place) {
                change(class);
            }
        });
    }

    /// Takes an event of control in the class at this place. An entry has one link in it, to Mix 1.
    pub fn note(&self, place: usize, event: &Event) {
        match event {
            Event::LinkUp { .. } => self.update_class(place, |class| class.is_linked = true),
            Event::LinkDown { .. } => self.update_class(place, |class| class.is_linked = false),
            Event::ChannelOpen { .. } => self.update_class(place, |class| class.open += 1),
            Event::ChannelClosed { .. } => {
                self.update_class(place, |class| class.open = class.open.saturating_sub(1));
            }
            _ => {}
        }
    }

    /// The paced class at this place has a channel in the running batch, or has none.
    pub fn note_batch(&self, place: usize, has_channel: bool) {
        let open = usize::from(has_channel);
        if self.lock().classes.get(place).is_some_and(|class| class.open != open) {
            self.update_class(place, |class| class.open = open);
        }
    }

    /// The control thread ends.
    pub fn end(&self) {
        self.update(|state| state.ended = true);
    }

    /// Waits until all classes are ready, the node has ended, or the timeout. Returns the progress at that time.
    pub fn wait(&self, timeout: Duration) -> Progress {
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.lock();
        while !state.progress().is_final() {
            let left = deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                break;
            }
            // A timeout of centuries overflows the clock of the system.
            let left = left.min(Duration::from_secs(86_400));
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.progress()
    }

    /// The same, async and without a timeout.
    pub async fn reached(&self) -> Progress {
        loop {
            // Created before progress is read, so that no change in between is missed.
            let notified = self.notify.notified();
            let progress = self.now();
            if progress.is_final() {
                return progress;
            }
            notified.await;
        }
    }

    /// Progress now.
    pub fn now(&self) -> Progress {
        self.lock().progress()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(readiness: &Readiness, place: usize) {
        readiness.note(place, &Event::ChannelOpen { channel: wire::ids::ChannelIndex(0), setup: Duration::ZERO });
    }

    #[test]
    fn waiting_ends_with_the_channels_the_timeout_or_the_node() {
        let readiness = Readiness::new([2].into_iter());
        let begun = Progress { linked: false, open: 0, wanted: 2, ended: false };
        assert_eq!(readiness.wait(Duration::ZERO), begun);
        (0..2).for_each(|_| open(&readiness, 0));
        assert_eq!(readiness.wait(Duration::MAX), Progress { open: 2, ..begun });
        let readiness = Readiness::new([1].into_iter());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| readiness.wait(Duration::MAX));
            readiness.end();
            assert!(waiting.join().unwrap().ended);
        });
    }

    #[test]
    fn node_is_ready_when_all_its_classes_are() {
        // A free class with two channels, and a paced one.
        let readiness = Readiness::new([2, 1].into_iter());
        (0..3).for_each(|_| open(&readiness, 0));
        assert_eq!(readiness.now().open, 2, "one channel more than are wanted");
        assert_eq!(readiness.wait(Duration::ZERO).open, 2);
        readiness.note_batch(1, true);
        assert_eq!(readiness.wait(Duration::MAX).open, 3);
        readiness.note_batch(1, false);
        assert_eq!(readiness.wait(Duration::ZERO).open, 2, "no channel in the next batch");
    }
}
