//! Errors of the client API.

use std::io::{self, ErrorKind};
use std::time::Duration;

use dataplane::entry::Destination;
use thiserror::Error;
use wire::frames::Status;

use crate::runtime::refused_flows::RefusedFlow;

/// Error of a call on a [`UdpTunnel`](super::UdpTunnel).
///
/// The first five are the exit's answers to an earlier datagram. They come as the result of the next call, as
/// `ECONNREFUSED` does on a UDP socket, and name the destination; the call itself did nothing and may be repeated.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// The exit's policy closes this destination. Later datagrams there are dropped; the exit is asked again after 5 s.
    #[error("the exit's policy refuses {destination}: choose another destination, or list it in `allow` at the exit")]
    PolicyRefused {
        /// The destination of the earlier datagram.
        destination: Destination,
    },
    /// No route, or a closed port. Later datagrams there are sent all the same.
    #[error("the exit cannot reach {destination}: check that the service is running there, and the exit's routes")]
    Unreachable {
        /// The destination of the earlier datagram.
        destination: Destination,
    },
    /// The name does not resolve at the exit. The exit is asked again after 5 s.
    #[error("the exit cannot resolve {destination}: check the name, and `resolver` at the exit")]
    Unresolvable {
        /// The destination of the earlier datagram.
        destination: Destination,
    },
    /// The exit has no room for another flow. It is asked again after 5 s.
    #[error("the exit has no room for a flow to {destination}: use fewer destinations, or try again later")]
    ExitFull {
        /// The destination of the earlier datagram.
        destination: Destination,
    },
    /// The exit refused a datagram as too large. It is asked again after 5 s.
    #[error("the exit refused a datagram to {destination} as too large: send shorter datagrams")]
    TooLargeForExit {
        /// The destination of the earlier datagram.
        destination: Destination,
    },
    /// The datagram is longer than [`Entry::max_datagram_len`](super::Entry::max_datagram_len). Nothing was sent.
    #[error("the datagram of {len} bytes for {destination} is too long: at most {max} bytes fit in eight cells")]
    TooLong {
        /// The destination.
        destination: Destination,
        /// Its length in bytes.
        len: usize,
        /// The longest that can be sent, in bytes.
        max: usize,
    },
    /// Port 0, text that is not a host name, or a name too long for a cell of this chain. Nothing was sent.
    #[error("invalid destination {destination}: {why}")]
    InvalidDestination {
        /// The destination.
        destination: Destination,
        /// The mistake and its remedy.
        why: String,
    },
    /// The entry has been shut down or dropped.
    #[error("the entry has ended: start another one")]
    Closed,
    /// The operating system's answer. `WouldBlock` after a read timeout or on a non-blocking tunnel.
    #[error(transparent)]
    Io(io::Error),
}

impl TunnelError {
    /// The kind that [`io::Error`] has for it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            TunnelError::PolicyRefused { .. } => ErrorKind::PermissionDenied,
            TunnelError::Unreachable { .. } => ErrorKind::HostUnreachable,
            TunnelError::Unresolvable { .. } => ErrorKind::NotFound,
            TunnelError::ExitFull { .. } => ErrorKind::QuotaExceeded,
            TunnelError::TooLargeForExit { .. }
            | TunnelError::TooLong { .. }
            | TunnelError::InvalidDestination { .. } => ErrorKind::InvalidInput,
            TunnelError::Closed => ErrorKind::ConnectionAborted,
            TunnelError::Io(why) => why.kind(),
        }
    }
}

impl From<TunnelError> for io::Error {
    fn from(error: TunnelError) -> io::Error {
        match error {
            TunnelError::Io(why) => why,
            other => io::Error::new(other.kind(), other),
        }
    }
}

impl From<io::Error> for TunnelError {
    /// A refused connection means that the entry has ended: its relay no longer exists.
    fn from(why: io::Error) -> TunnelError {
        if why.kind() == ErrorKind::ConnectionRefused { TunnelError::Closed } else { TunnelError::Io(why) }
    }
}

impl TunnelError {
    /// `None` for an answer that is not a refusal.
    pub(super) fn refused(RefusedFlow { destination, status }: RefusedFlow) -> Option<TunnelError> {
        Some(match status {
            Status::Refused => TunnelError::PolicyRefused { destination },
            Status::Unreachable => TunnelError::Unreachable { destination },
            Status::Unresolvable => TunnelError::Unresolvable { destination },
            Status::TooManyFlows => TunnelError::ExitFull { destination },
            // The exit does not say which datagram it was, or how long one may be.
            Status::TooLarge => TunnelError::TooLargeForExit { destination },
            Status::Open | Status::UnknownFlow => return None,
        })
    }
}

/// [`Entry::wait_ready`](super::Entry::wait_ready) timed out. The entry keeps trying.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NotReady {
    /// The first mix did not answer.
    #[error("no link to mix1 at {address} after {}: check that it is running, and that UDP reaches it", seconds(*waited))]
    NoLink {
        /// The address of mix1.
        address: String,
        /// The time since the call.
        waited: Duration,
    },
    /// The first mix answers, and fewer channels are open than configured, or none in a paced class.
    #[error("{open} of {wanted} channels are open after {}: check that all mixes and the exit are running", seconds(*waited))]
    FewChannels {
        /// Channels that are open.
        open: usize,
        /// Channels that the entry is to keep open.
        wanted: usize,
        /// The time since the call.
        waited: Duration,
    },
    /// The entry has been shut down, or a thread of it panicked.
    #[error("the entry has ended: start another one")]
    Closed,
}

fn seconds(time: Duration) -> String {
    format!("{} s", (time.as_secs_f64() * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_at_the_exit_names_no_length() {
        let destination = Destination::Name("example.org".into(), 53);
        let error = TunnelError::refused(RefusedFlow { destination, status: Status::TooLarge }).unwrap();
        assert!(matches!(error, TunnelError::TooLargeForExit { .. }), "{error}");
        assert!(!error.to_string().contains("bytes"), "{error}");
    }
}
