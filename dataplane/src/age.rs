//! Age: a datagram that waits for too long is dropped instead of delivered late (SPEC 6.6).
//!
//! ```text
//! in a socket         has no time. It arrived after the last turn that read the socket, so it is at most as old as
//!                     that turn: LastRead
//! in a queue          has the time of the turn that received it
//! read in this turn   the thread may have been stopped since the turn began: AgeLimit reads the clock before a send
//! ```
//!
//! A worker has two turns in its limit even if nothing arrives. If more than the limit lies between two turns, its
//! thread did not run, and what it finds in its sockets may have waited for as long.

use std::time::Duration;

use crate::Nanos;
use crate::runner::Clock;

/// Receive calls on a link socket that is read empty. They bring more than a receive buffer of 8 MB holds; a flood does
/// not keep the worker longer.
pub(crate) const DRAIN_CALLS: usize = 4096;
/// The same for application sockets, whose calls bring fewer.
pub(crate) const DRAIN_APP_BATCHES: usize = 16_384;

/// How long datagrams may wait in a worker.
#[derive(Debug)]
pub(crate) struct AgeLimit {
    max: Nanos,
    /// The smallest limit of the worker: forwards may have one of their own.
    shortest: Nanos,
    clock: Option<Clock>,
}

impl AgeLimit {
    pub(crate) fn new(max: Duration) -> AgeLimit {
        let max = nanos(max);
        AgeLimit { max, shortest: max, clock: None }
    }

    /// The clock of the runner. A worker without one believes the time of its turn.
    pub(crate) fn set_clock(&mut self, clock: Clock) {
        self.clock = Some(clock);
    }

    /// Sets the smallest limit of the worker, which is not above the limit itself.
    pub(crate) fn set_shortest(&mut self, shortest: Nanos) {
        self.shortest = shortest.min(self.max);
    }

    pub(crate) fn max(&self) -> Nanos {
        self.max
    }

    /// True if what has waited for this long may be too old.
    pub(crate) fn is_exceeded(&self, waited: Nanos) -> bool {
        waited > self.shortest
    }

    /// Time since the turn began, at `now`.
    pub(crate) fn since(&self, now: Nanos) -> Nanos {
        self.clock.map_or(0, |clock| clock.now().saturating_sub(now))
    }

    /// What came before this time is too old to be sent, in a turn that began at `now`.
    pub(crate) fn oldest(&self, now: Nanos) -> Nanos {
        (now + self.since(now)).saturating_sub(self.max)
    }

    /// The latest time of the next turn.
    pub(crate) fn wake_at(&self, now: Nanos) -> Nanos {
        now.saturating_add(self.shortest / 2)
    }
}

/// The start of the last turn that read a socket. None before the first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastRead(Option<Nanos>);

impl LastRead {
    /// How long what waits in the socket can have waited. Before the first turn nothing is known, and nothing is late.
    pub(crate) fn waited(self, now: Nanos) -> Nanos {
        self.0.map_or(0, |last| now.saturating_sub(last))
    }

    pub(crate) fn set(&mut self, now: Nanos) {
        self.0 = Some(now);
    }
}

/// A time span; the longest there is if it does not fit.
pub(crate) fn nanos(duration: Duration) -> Nanos {
    Nanos::try_from(duration.as_nanos()).unwrap_or(Nanos::MAX)
}
