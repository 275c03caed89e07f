//! Event loop: polls sockets and gives one worker its turns.
//!
//! One epoll per worker for link sockets, application sockets and the eventfd that control writes to.
//! The clock is read here, at the start of each turn and at its end. A worker of a free class reads it
//! once more before it sends (`age`), one of a paced class as often as it has to know whether a round is due.

use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::thread::set_current_timer_slack;

use crate::sys::Waker;
use crate::{MILLI, Nanos};

/// Token of control's eventfd.
pub const WAKE: u64 = 0;
/// Token of the socket towards the entry.
pub(crate) const UP: u64 = 1;
/// Token of the socket towards the exit.
pub(crate) const DOWN: u64 = 2;
/// Tokens of application sockets start here.
pub(crate) const APPS: u64 = 16;

/// A thread's worth of data plane.
pub trait Worker {
    /// The clock of its turns.
    fn set_clock(&mut self, clock: Clock);
    /// Does what can be done now, without waiting. Returns when to come back at the latest: in `BLOCKED_WAIT` if it
    /// could not send everything.
    fn turn(&mut self, now: Nanos) -> Nanos;
    /// A turn, or [`Worker::finish`], has ended: what it sent has left by `now`.
    fn record_latency(&mut self, now: Nanos);
    /// The poller saw the socket with this token readable.
    fn ready(&mut self, token: u64);
    /// True if some readable socket is not read, because a send queue is not empty or for another reason. The runner
    /// then waits without polling sockets: with level triggering, the unread one would end every wait at once.
    fn is_blocked(&self) -> bool;
    /// The node stops: sends what it can, counts the rest.
    fn finish(&mut self, now: Nanos);
}

/// The wait of a worker that could not send everything. In this time a send buffer drains about a hundred cells at
/// 500,000 a second.
pub(crate) const BLOCKED_WAIT: Nanos = crate::MILLI / 5;

/// The reading of the clock at the start, so that a time shortly before it is positive.
const HEAD_START: Duration = Duration::from_secs(1);

/// The monotonic clock of a node.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// In a test: the time that it shows next.
    #[cfg(test)]
    script: Option<&'static AtomicU64>,
}

impl Clock {
    /// Starts at one second.
    pub fn start() -> Clock {
        Clock {
            start: Instant::now() - HEAD_START,
            #[cfg(test)]
            script: None,
        }
    }

    /// One that shows this time, and a microsecond more each time that it is read, however busy the machine is.
    #[cfg(test)]
    pub(crate) fn showing(now: Nanos) -> Clock {
        Clock { script: Some(Box::leak(Box::new(AtomicU64::new(now)))), ..Clock::start() }
    }

    /// Nanoseconds on the clock.
    pub fn now(&self) -> Nanos {
        #[cfg(test)]
        if let Some(script) = self.script {
            return script.fetch_add(crate::MICRO, Ordering::Relaxed);
        }
        self.start.elapsed().as_nanos() as Nanos
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.start.elapsed().saturating_sub(HEAD_START)
    }

    /// The same as a duration.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// An epoll that sockets can be added to at any time.
#[derive(Clone)]
pub struct Poller(Arc<OwnedFd>);

impl Poller {
    /// An empty one.
    ///
    /// # Errors
    /// No descriptors left, or a kernel without epoll_pwait2, with which waits end to the microsecond.
    pub fn new() -> std::io::Result<Poller> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut events = Vec::with_capacity(1);
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&Timespec::default())) {
            Err(why @ (Errno::NOSYS | Errno::PERM)) => {
                let why = format!("the system refuses epoll_pwait2 ({why}): eddy needs Linux 5.11 or later");
                Err(std::io::Error::new(std::io::ErrorKind::Unsupported, why))
            }
            _ => Ok(Poller(Arc::new(epoll))),
        }
    }

    /// Watches a descriptor until it is closed.
    ///
    /// # Errors
    /// The kernel's limit on watches.
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
        Ok(epoll::add(&*self.0, fd, EventData::new_u64(token), EventFlags::IN | EventFlags::ERR)?)
    }

    /// Waits for at most `timeout` and calls `each` with the tokens that are ready. Returns how many were.
    pub fn wait(&self, timeout: Option<Duration>, mut each: impl FnMut(u64)) -> usize {
        let mut events = Vec::<epoll::Event>::with_capacity(64);
        // The kernel refuses very long timeouts; an hour is long enough.
        let timeout = timeout
            .map(|t| t.min(Duration::from_secs(3600)))
            .map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: i64::from(t.subsec_nanos()) });
        let space = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&*self.0, space, timeout.as_ref()).is_ok() {
            events.iter().for_each(|event| each(event.data.u64()));
        }
        events.len()
    }
}

/// Counts of a worker's turns and sleeps. Other threads read them at any time.
#[derive(Debug, Default)]
pub struct Turns {
    turns: AtomicU64,
    sleeps: AtomicU64,
}

impl Turns {
    /// Turns and sleeps so far.
    pub fn read(&self) -> (u64, u64) {
        (self.turns.load(Ordering::Relaxed), self.sleeps.load(Ordering::Relaxed))
    }

    /// One more; the worker's thread alone counts.
    fn count(counter: &AtomicU64) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// The arguments of [`run`] in addition to the worker.
pub struct Run<'a> {
    /// Its sockets, and `waker`.
    pub poller: &'a Poller,
    /// Woken by control, and when `stop` is set.
    pub waker: &'a Waker,
    pub clock: Clock,
    /// The loop keeps polling for this long after the last arrival before it sleeps.
    pub spin: Duration,
    /// Waits end on time, as the rounds of a paced class need it. Otherwise they take whole milliseconds, which costs a
    /// mix with little traffic less processor time (docs/BENCHMARKS.md).
    pub exact: bool,
    pub stop: &'a AtomicBool,
    /// The counters of its turns.
    pub turns: &'a Turns,
}

/// Gives `worker` turns until `stop` is set and `waker` woken.
pub fn run(worker: &mut impl Worker, run: Run<'_>) {
    let Run { poller, waker, clock, spin, exact, stop, turns } = run;
    let spin = spin.as_nanos() as Nanos;
    let mut awake_until = 0;
    if exact {
        // By default the kernel may end a wait 50 us late. If it refuses, that remains.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
    }
    worker.set_clock(clock);
    while !stop.load(Ordering::Acquire) {
        let now = clock.now();
        let wake_at = worker.turn(now);
        Turns::count(&turns.turns);
        let end = clock.now();
        worker.record_latency(end);
        // A turn takes time too: what it costs is not slept again.
        let mut timeout = Duration::from_nanos(wake_at.saturating_sub(end));
        if worker.is_blocked() {
            Turns::count(&turns.sleeps);
            waker.wait(timeout);
            timeout = Duration::ZERO;
        } else if now < awake_until {
            timeout = Duration::ZERO;
        }
        let mut ready = |token| match token {
            WAKE => waker.clear(),
            token => {
                awake_until = now + spin;
                worker.ready(token);
            }
        };
        // Polls before it sleeps, so that only real sleeps are counted.
        if poller.wait(Some(Duration::ZERO), &mut ready) == 0 && timeout != Duration::ZERO {
            Turns::count(&turns.sleeps);
            let whole = Duration::from_millis(timeout.as_nanos().div_ceil(MILLI.into()) as u64);
            poller.wait(Some(if exact { timeout } else { whole }), &mut ready);
        }
    }
    worker.turn(clock.now());
    worker.record_latency(clock.now());
    worker.finish(clock.now());
    worker.record_latency(clock.now());
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
    fn waits_are_not_rounded_up_to_milliseconds() {
        let poller = Poller::new().unwrap();
        let wait = || {
            let began = Instant::now();
            poller.wait(Some(Duration::from_micros(50)), |_| ());
            began.elapsed()
        };
        let shortest = (0..200).map(|_| wait()).min().unwrap();
        assert!(Duration::from_micros(50) <= shortest && shortest < Duration::from_millis(1), "{shortest:?}");
    }

    /// A worker whose socket takes nothing, and which therefore does not read the other one.
    struct Stuck {
        turns: u32,
        stop: Arc<AtomicBool>,
    }

    impl Worker for Stuck {
        fn set_clock(&mut self, _clock: Clock) {}
        fn turn(&mut self, now: Nanos) -> Nanos {
            self.turns += 1;
            self.stop.store(self.turns == 101, Ordering::Release);
            now + BLOCKED_WAIT
        }
        fn record_latency(&mut self, _now: Nanos) {}
        fn ready(&mut self, _token: u64) {}
        fn is_blocked(&self) -> bool {
            true
        }
        fn finish(&mut self, _now: Nanos) {}
    }

    #[test]
    fn blocked_worker_does_not_spin_on_unread_sockets() {
        let (poller, waker, stop) = (Poller::new().unwrap(), Waker::new().unwrap(), Arc::new(AtomicBool::new(false)));
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"unread", socket.local_addr().unwrap()).unwrap();
        watch(&poller, &waker, Some(socket.as_fd()), None).unwrap();
        let start = Instant::now();
        let turns = Turns::default();
        let (poller, waker, clock, spin) = (&poller, &waker, Clock::start(), Duration::ZERO);
        run(
            &mut Stuck { turns: 0, stop: stop.clone() },
            Run { poller, waker, clock, spin, exact: false, stop: &stop, turns: &turns },
        );
        // The time of a turn is not slept a second time.
        let waits = start.elapsed().as_nanos() as Nanos / BLOCKED_WAIT;
        assert!(waits >= 90, "a hundred turns in {waits} waits");
        assert_eq!(turns.read(), (101, 101));
    }

    #[test]
    fn control_wakes_a_worker_that_cannot_send() {
        let waker = Waker::new().unwrap();
        waker.wake();
        let start = Instant::now();
        waker.wait(Duration::from_secs(60));
        assert!(start.elapsed() < Duration::from_secs(30));
        waker.clear();
        waker.wait(Duration::from_millis(1));
    }

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
