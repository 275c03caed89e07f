//! Waiting: the loop that gives a worker its turns.
//!
//! One epoll per worker for link sockets, application sockets and the eventfd that control writes to.
//! The clock is read here, once per turn.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::Nanos;
use crate::sys::Waker;

/// Token of control's eventfd.
pub const WAKE: u64 = 0;
/// Token of the socket towards the entry.
pub const UP: u64 = 1;
/// Token of the socket towards the exit.
pub const DOWN: u64 = 2;
/// Tokens of application sockets start here.
pub const APPS: u64 = 16;

/// A thread's worth of data plane.
pub trait Worker {
    /// Does what can be done now, without waiting. Returns when to come back at the latest.
    fn turn(&mut self, now: Nanos) -> Option<Nanos>;
    /// The poller saw the socket with this token readable.
    fn ready(&mut self, token: u64);
    /// The node stops: sends what it can, counts the rest.
    fn finish(&mut self, now: Nanos);
}

/// What the clock shows at the start, so that "just before" is a time too.
const HEAD_START: Duration = Duration::from_secs(1);

/// The monotonic clock of a node.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts at one second.
    pub fn start() -> Clock {
        Clock(Instant::now() - HEAD_START)
    }

    /// Nanoseconds on the clock.
    pub fn now(&self) -> Nanos {
        self.0.elapsed().as_nanos() as Nanos
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.0.elapsed().saturating_sub(HEAD_START)
    }

    /// The same as a duration.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// An epoll that sockets can be added to at any time.
#[derive(Clone)]
pub struct Poller(Arc<OwnedFd>);

impl Poller {
    /// An empty one.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new() -> std::io::Result<Poller> {
        Ok(Poller(Arc::new(epoll::create(CreateFlags::CLOEXEC)?)))
    }

    /// Watches a descriptor until it is closed.
    ///
    /// # Errors
    /// The kernel's limit on watches.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
        Ok(epoll::add(&*self.0, fd, EventData::new_u64(token), EventFlags::IN | EventFlags::ERR)?)
    }

    /// Waits for at most `timeout` and calls `each` with the tokens that are ready.
    pub fn wait(&self, timeout: Option<Duration>, mut each: impl FnMut(u64)) {
        let mut events = Vec::<epoll::Event>::with_capacity(64);
        // The kernel refuses what is no time; an hour is as good as for ever.
        let timeout = timeout
            .map(|t| t.min(Duration::from_secs(3600)))
            .map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
        let space = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&*self.0, space, timeout.as_ref()).is_ok() {
            events.iter().for_each(|event| each(event.data.u64()));
        }
    }
}

/// Gives `worker` turns until `stop` is set and `waker` woken.
pub fn run(worker: &mut impl Worker, poller: &Poller, waker: &Waker, clock: Clock, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        let now = clock.now();
        let wake_at = worker.turn(now);
        // A turn takes time too: what it costs is not slept again.
        let timeout = wake_at.map(|at| Duration::from_nanos(at.saturating_sub(clock.now())));
        poller.wait(timeout, |token| match token {
            WAKE => waker.clear(),
            token => worker.ready(token),
        });
    }
    worker.turn(clock.now());
    worker.finish(clock.now());
}

/// Watches a waker and a link socket or two.
///
/// # Errors
/// See [`Poller::add`].
pub fn watch(
    poller: &Poller,
    waker: &Waker,
    up: Option<BorrowedFd<'_>>,
    down: Option<BorrowedFd<'_>>,
) -> std::io::Result<()> {
    poller.add(waker.as_fd(), WAKE)?;
    for (socket, token) in [(up, UP), (down, DOWN)] {
        if let Some(socket) = socket {
            poller.add(socket, token)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_for_ever_ends_with_what_it_waits_for() {
        let (poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
        poller.add(waker.as_fd(), 7).unwrap();
        waker.wake();
        let mut seen = Vec::new();
        poller.wait(Some(Duration::MAX), |token| seen.push(token));
        assert_eq!(seen, [7]);
    }
}
