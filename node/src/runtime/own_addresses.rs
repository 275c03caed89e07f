//! The addresses of an exit's host, to which it sends nothing, read again while it runs.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tracing::{info, warn};

/// Time between two looks at the host's addresses.
pub(super) const AGAIN: Duration = Duration::from_secs(10);

/// The addresses of the host's interfaces.
///
/// # Errors
/// The system does not list them.
pub(super) fn of_host() -> io::Result<Vec<IpAddr>> {
    Ok(if_addrs::get_if_addrs()?.into_iter().map(|interface| interface.ip()).collect())
}

/// The addresses that an exit's policy treats as its own.
pub(super) struct OwnAddresses {
    /// Of the configuration, and of the host as last read.
    configured: Vec<IpAddr>,
    host: Vec<IpAddr>,
    due: Duration,
    /// The last attempt to read them failed.
    failed: bool,
}

impl OwnAddresses {
    /// Those of the configuration, and of the host at the time `now`.
    ///
    /// # Errors
    /// The system does not list its addresses.
    pub(super) fn new(
        configured: Vec<IpAddr>,
        now: Duration,
        read: impl FnOnce() -> io::Result<Vec<IpAddr>>,
    ) -> io::Result<OwnAddresses> {
        let mut host = read()?;
        host.sort_unstable();
        Ok(OwnAddresses { configured, host, due: now + AGAIN, failed: false })
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<IpAddr> {
        self.configured.iter().chain(&self.host).copied().collect()
    }

    /// The time of the next look.
    pub(super) fn due(&self) -> Duration {
        self.due
    }

    /// Reads the host's addresses again if it is time. Returns all addresses if they have changed.
    pub(super) fn look(
        &mut self,
        now: Duration,
        read: impl FnOnce() -> io::Result<Vec<IpAddr>>,
    ) -> Option<Vec<IpAddr>> {
        if now < self.due {
            return None;
        }
        self.due = now + AGAIN;

        let mut host = match read() {
            Ok(host) => host,
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    warn!("cannot list this host's addresses ({error}): the exit goes on with those of before");
                }
                return None;
            }
        };
        self.failed = false;
        host.sort_unstable();
        if host == self.host {
            return None;
        }
        self.host = host;
        info!("this host's addresses have changed: the exit sends nothing to {} addresses", self.all().len());
        Some(self.all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_again_every_ten_seconds() {
        let [nat, old, new] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let mut own = OwnAddresses::new(vec![nat], Duration::ZERO, || Ok(vec![old])).unwrap();
        assert_eq!(own.all(), [nat, old]);
        assert_eq!(own.look(AGAIN / 2, || unreachable!("too early")), None);
        assert_eq!(own.look(AGAIN, || Ok(vec![old])), None);
        assert_eq!(own.look(2 * AGAIN, || Err(io::ErrorKind::Other.into())), None);
        assert_eq!(own.all(), [nat, old]);
        assert_eq!(own.look(3 * AGAIN, || Ok(vec![new, old])), Some(vec![nat, old, new]));
        assert_eq!(own.look(4 * AGAIN, || Ok(vec![old, new])), None, "the same addresses in another order");
        assert_eq!(own.due(), 5 * AGAIN);
    }
}
