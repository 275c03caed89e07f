//! adjtimex(2): whether somebody keeps this host's clock. ioctl(SIOCGSTAMPNS): when a datagram arrived.
//!
//! ```text
//! adjtimex(tx)   modes = 0: reads and changes nothing; needs no privilege
//!   status       STA_UNSYNC: the clock has not been set for long, and the kernel no longer trusts it
//! ioctl(fd, SIOCGSTAMPNS, &timespec)
//!   the wall-clock time at which the datagram arrived that was received last. The first call has the kernel note
//!   arrivals from then on, for the life of the socket; for a datagram without a time it returns that of the call
//! ```

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, SystemTime};

/// True if the kernel reports the clock as synchronized (NTP, PTP, a hypervisor's agent).
///
/// # Errors
/// A sandbox forbids to ask.
pub fn is_clock_kept() -> io::Result<bool> {
    // SAFETY: a timex is plain integers, for which zeros are valid; modes = 0 changes nothing.
    let mut timex: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: `timex` is local and writable.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(timex.status & libc::STA_UNSYNC == 0) }
}

/// How long the datagram that was received last from a socket had waited there. `None` if it arrived before the first
/// call, and if the kernel does not say. Nothing if the clock has been set back since to before its arrival.
pub(crate) fn last_waited(socket: BorrowedFd<'_>) -> Option<Duration> {
    const SIOCGSTAMPNS: libc::c_ulong = 0x8907;
    let before = SystemTime::UNIX_EPOCH.elapsed().ok()?;
    // SAFETY: a timespec is plain integers, for which zeros are valid.
    let mut time: libc::timespec = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the kernel writes one timespec, which is local and writable; the fd is borrowed.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSTAMPNS as _, &raw mut time) };
    let after = SystemTime::UNIX_EPOCH.elapsed().ok()?;
    let (seconds, nanos) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    if result == 0 { since(Duration::new(seconds, nanos), before, after) } else { None }
}

/// The time since an arrival, according to clocks read before and after the kernel was asked for it. An arrival between
/// the two is the time of the call: the kernel has noted none.
fn since(arrived: Duration, before: Duration, after: Duration) -> Option<Duration> {
    match arrived {
        _ if arrived < before => Some(before - arrived),
        _ if arrived <= after => None,
        _ => Some(Duration::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_and_the_clock_goes_on() {
        let before = std::time::SystemTime::now();
        match is_clock_kept() {
            Ok(kept) => assert_eq!(is_clock_kept().unwrap(), kept),
            Err(why) => assert_eq!(why.raw_os_error(), Some(libc::EPERM), "{why}"),
        }
        assert!(before.elapsed().unwrap() < std::time::Duration::from_secs(60), "reading sets nothing");
    }

    #[test]
    fn datagram_from_before_the_clock_was_set_back_is_new() {
        let since = |arrived| since(Duration::from_secs(arrived), Duration::from_secs(10), Duration::from_secs(12));
        assert_eq!([7, 10, 12].map(since), [Some(Duration::from_secs(3)), None, None]);
        assert_eq!(since(13), Some(Duration::ZERO));
    }
}
