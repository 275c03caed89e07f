//! The tap of an attacker: a relay in each access link, which notes when a datagram passes and how long it is.
//!
//! Nothing comes from a node, and no privileges are needed, unlike for a capture. Its clock is that of this process:
//! it notes a datagram after its thread woke, which a capture in the kernel does some microseconds earlier.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use attack::{Place, Seen};
use dataplane::runner::Poller;

/// Longest datagram of a link.
const LONGEST: usize = 2048;
/// How long the relays may take to notice that they are stopped.
const LOOK: Duration = Duration::from_millis(20);

/// Relays that run.
pub struct Tap {
    /// Where the entry of each link finds mix1.
    pub addresses: Vec<SocketAddr>,
    /// Times are counted from here.
    pub begin: Instant,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Place>>,
}

/// An access link. Its entry is whoever sent last.
struct Link {
    to_user: UdpSocket,
    to_mix: UdpSocket,
    entry: Option<SocketAddr>,
    seen: Place,
}

impl Tap {
    /// Starts a relay for each link, to these addresses of mix1, with sockets that `bind` makes.
    ///
    /// # Errors
    /// The system refuses sockets or a thread.
    pub fn start(
        bind: impl Fn() -> anyhow::Result<UdpSocket>,
        mixes: impl IntoIterator<Item = SocketAddr>,
    ) -> anyhow::Result<Tap> {
        let (begin, poller) = (Instant::now(), Poller::new().context("cannot create an epoll; raise `ulimit -n`")?);
        let (mut links, mut addresses) = (Vec::new(), Vec::new());
        for mix in mixes {
            let [to_user, to_mix] = [bind()?, bind()?];
            to_mix.connect(mix).with_context(|| format!("cannot connect to mix1 at {mix}"))?;
            for socket in [&to_user, &to_mix] {
                socket.set_nonblocking(true)?;
            }
            let token = 2 * links.len() as u64;
            poller.add(to_user.as_fd(), token)?;
            poller.add(to_mix.as_fd(), token + 1)?;
            addresses.push(to_user.local_addr()?);
            links.push(Link { to_user, to_mix, entry: None, seen: Place::default() });
        }
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let relay = move || {
            let mut bytes = [0; LONGEST];
            while !stopped.load(Ordering::Relaxed) {
                // The poller reports a socket again that has more, so one receive call each is enough.
                poller.wait(Some(LOOK), |token| {
                    let link = &mut links[token as usize / 2];
                    link.pass(token.is_multiple_of(2), begin, &mut bytes);
                });
            }
            links.into_iter().map(|link| link.seen).collect()
        };
        let thread = std::thread::Builder::new()
            .name("tap".into())
            .spawn(relay)
            .context("cannot start a thread; raise `ulimit -u`")?;
        Ok(Tap { addresses, begin, stop, thread })
    }

    /// Ends the relays. Returns what passed each link.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn finish(self) -> anyhow::Result<Vec<Place>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread of the tap panicked"))
    }
}

impl Link {
    /// Passes on the next datagram of a direction. What the kernel refuses is lost, as on any link.
    fn pass(&mut self, forward: bool, begin: Instant, bytes: &mut [u8]) {
        let from = if forward { &self.to_user } else { &self.to_mix };
        let Ok((len, sender)) = from.recv_from(bytes) else { return };
        let seen = Seen { at: begin.elapsed().as_nanos() as u64, bytes: len as u32 };
        if forward {
            self.entry = Some(sender);
            self.seen.forward.push(seen);
            let _ = self.to_mix.send(&bytes[..len]);
        } else if let Some(entry) = self.entry {
            self.seen.backward.push(seen);
            let _ = self.to_user.send_to(&bytes[..len], entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relay_passes_both_ways_and_notes_what_it_passed() {
        let bind = || UdpSocket::bind("127.0.0.1:0").context("a socket");
        let [entry, other, mix] = [(); 3].map(|()| bind().unwrap());
        for socket in [&entry, &mix] {
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        let tap = Tap::start(bind, [other.local_addr().unwrap(), mix.local_addr().unwrap()]).unwrap();
        let mut bytes = [0; 64];
        entry.send_to(b"forward", tap.addresses[1]).unwrap();
        let (len, relay) = mix.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"forward");
        mix.send_to(b"back", relay).unwrap();
        let (len, relay) = entry.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..len], relay), (&b"back"[..], tap.addresses[1]));

        let seen = tap.finish().unwrap();
        assert_eq!(seen[0], Place::default());
        let [forward, backward] = [&seen[1].forward, &seen[1].backward].map(|trace| trace[0]);
        assert_eq!((forward.bytes, backward.bytes), (7, 4));
        assert!(forward.at <= backward.at);
    }
}
