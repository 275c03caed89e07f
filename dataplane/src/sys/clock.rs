//! adjtimex(2): whether somebody keeps this host's clock.
//!
//! ```text
//! adjtimex(tx)   modes = 0: reads and changes nothing; needs no privilege
//!   status       STA_UNSYNC: the clock has not been set for long, and the kernel no longer trusts it
//! ```

use std::io;
use std::mem::MaybeUninit;

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
}
