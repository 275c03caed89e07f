//! How long datagrams have waited in a socket that is never read empty (SPEC 6.6.7).
//!
//! What waits in a socket has no time. One that was read empty in the last turn holds nothing old, so its owner pays
//! nothing here. After [`BACKLOG_AFTER`] without an empty read the kernel is asked to note when datagrams arrive; it
//! does so for the rest of the socket's life, and after each receive call it is asked for the time of the last one.
//!
//! Neighbours: [`super::link`] and [`super::apps`] have one of these for each socket.

use std::os::fd::BorrowedFd;

use crate::sys;
use crate::{MILLI, Nanos};

/// A socket that was not read empty for this long has a backlog.
const BACKLOG_AFTER: Nanos = 20 * MILLI;

/// The backlog of one socket.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// The first call since the socket was read empty.
    since: Option<Nanos>,
    /// The kernel notes arrivals from then on.
    noted_from: Option<Nanos>,
}

impl Backlog {
    /// A receive call found nothing.
    pub(crate) fn end(&mut self) {
        self.since = None;
    }

    /// How long the newest datagram of the last receive call had waited, or somewhat less if it arrived before
    /// arrivals were noted. 0 without a backlog. `has_more` is false if that call emptied the socket.
    pub(crate) fn waited(&mut self, socket: BorrowedFd<'_>, has_more: bool, now: Nanos) -> Nanos {
        let since = if has_more { *self.since.get_or_insert(now) } else { self.since.take().unwrap_or(now) };
        if now - since < BACKLOG_AFTER {
            return 0;
        }
        let waited = sys::last_waited(socket);
        let noted_from = *self.noted_from.get_or_insert(now);
        waited.map_or(now - noted_from, crate::age::nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use crate::SECOND;

    /// A socket that sends to itself.
    fn own() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(socket.local_addr().unwrap()).unwrap();
        socket
    }

    fn pass(socket: &UdpSocket) {
        socket.send(b"x").unwrap();
        socket.recv(&mut [0; 1]).unwrap();
    }

    #[test]
    fn socket_that_is_read_empty_has_no_backlog() {
        let (socket, mut backlog) = (own(), Backlog::default());
        pass(&socket);
        for second in 0..60 {
            assert_eq!(backlog.waited(socket.as_fd(), false, second * SECOND), 0);
        }
        assert!(backlog.noted_from.is_none());
    }

    #[test]
    fn backlog_has_the_age_of_what_was_received_last() {
        let (socket, mut backlog) = (own(), Backlog::default());
        pass(&socket);
        assert_eq!(backlog.waited(socket.as_fd(), true, SECOND), 0);
        // What came before arrivals are noted is at least as old as that.
        assert!(backlog.waited(socket.as_fd(), true, SECOND + BACKLOG_AFTER) < SECOND);
        let later = 1000 * SECOND;
        let deadline = Instant::now() + Duration::from_secs(60);
        // The kernel starts to note arrivals a little later.
        while backlog.waited(socket.as_fd(), true, later) > 100 * SECOND {
            assert!(Instant::now() < deadline, "arrivals are not noted");
            pass(&socket);
        }
        let first = backlog.waited(socket.as_fd(), true, later);
        while backlog.waited(socket.as_fd(), true, later) < first + MILLI {
            assert!(Instant::now() < deadline);
        }
        // The call that empties it still brings what is old.
        assert!(backlog.waited(socket.as_fd(), false, later) > first);
        assert_eq!(backlog.waited(socket.as_fd(), true, later), 0);
    }
}
