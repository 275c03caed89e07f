//! The kernel's drops at a socket, in 64 bits. The kernel counts them in 32, which a flood uses up in minutes or hours.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dataplane::sys;

/// How often control reads each counter. 2^32 drops in that time are 71 million a second.
pub(super) const READ_EVERY: Duration = Duration::from_secs(60);

/// A socket, and the datagrams that the kernel has dropped there as of the last look.
pub(super) struct DropCounter {
    pub(super) socket: UdpSocket,
    seen: AtomicU64,
}

impl DropCounter {
    pub(super) fn new(socket: UdpSocket) -> DropCounter {
        DropCounter { socket, seen: AtomicU64::new(0) }
    }

    /// Datagrams dropped since the socket was made. Looks that are 2^32 drops apart, or more, miss as many.
    pub(super) fn read(&self) -> u64 {
        // If another thread stores its look first, this one looks again, so the count never goes back.
        let look = |seen: u64| Some(advanced(seen, sys::kernel_drops(&self.socket).ok()? as u32));
        let _ = self.seen.fetch_update(Ordering::Relaxed, Ordering::Relaxed, look);
        self.seen.load(Ordering::Relaxed)
    }
}

/// A count of 64 bits once the one of 32 bits that it follows shows `now`.
fn advanced(seen: u64, now: u32) -> u64 {
    seen + u64::from(now.wrapping_sub(seen as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_goes_on_when_the_kernels_wraps() {
        let looks = [5, 5, u32::MAX - 1, u32::MAX, 0, 7, 6, 5, u32::MAX];
        let counts = looks.iter().scan(0, |seen, now| {
            *seen = advanced(*seen, *now);
            Some(*seen)
        });
        let wrapped = |times: u64, now: u32| (times << 32) + u64::from(now);
        let want = [(0, 5), (0, 5), (0, u32::MAX - 1), (0, u32::MAX), (1, 0), (1, 7), (2, 6), (3, 5), (3, u32::MAX)];
        assert_eq!(counts.collect::<Vec<_>>(), want.map(|(times, now)| wrapped(times, now)));
    }
}
