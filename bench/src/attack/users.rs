//! The users: for each an entry in this process, a tunnel through it, and a destination of its own.
//!
//! One thread plays all applications and all destinations. It sends what is due and takes what arrives.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use dataplane::per_direction::PerDirection;
use dataplane::runner::Poller;
use dataplane::sys;
use eddy_node::{Destination, Entry, UdpTunnel};
use rustix::time::{ClockId, clock_gettime};
use wire::cell::Direction::{Backward, Forward};

use super::places;
use crate::load::plan::{Due, Queue};
use crate::load::source::Nanos;

/// Time for all entries to open their channels.
const READY_MAX: Duration = Duration::from_secs(120);
/// Receive buffer of a destination.
const BUFFER: usize = 1 << 20;

pub(super) struct Users {
    entries: Vec<Entry>,
    tunnels: Vec<UdpTunnel>,
    /// Of each user, in the order of users.
    destinations: Vec<UdpSocket>,
}

impl Users {
    /// Starts an entry for each user and waits until all their channels are open. `flows` has the number of each user's
    /// flow, which chooses its destination's port.
    ///
    /// # Errors
    /// An entry does not start, or its channels do not open.
    pub(super) fn start(
        chain: &Path,
        channels: u16,
        flows: &[usize],
        interrupted: &AtomicBool,
        mut progress: impl FnMut(usize),
    ) -> anyhow::Result<Users> {
        let start = |user: usize| {
            let entry = Entry::builder().chain_file(chain).channels(channels).bind(places::entry(user));
            entry.next(places::relay_to_user(user).to_string()).start()
        };
        let entries =
            (0..flows.len()).map(start).collect::<Result<Vec<Entry>, _>>().context("cannot start an entry")?;
        let deadline = Instant::now() + READY_MAX;
        for (user, entry) in entries.iter().enumerate() {
            while let Err(why) = entry.wait_ready(Duration::from_millis(200)) {
                if interrupted.load(Ordering::Relaxed) {
                    bail!("interrupted");
                }
                if Instant::now() > deadline {
                    bail!("entry {user} is not ready: {why}");
                }
            }
            progress(user + 1);
        }

        let tunnels = entries.iter().map(UdpTunnel::open).collect::<Result<Vec<UdpTunnel>, _>>()?;
        let destination = |&flow: &usize| {
            let socket = UdpSocket::bind(places::destination(flow))?;
            sys::size_receive_buffer(&socket, BUFFER)?;
            socket.set_nonblocking(true)?;
            std::io::Result::Ok(socket)
        };
        let destinations = flows.iter().map(destination).collect::<Result<_, _>>()?;
        tunnels.iter().try_for_each(|tunnel| tunnel.set_nonblocking(true))?;
        Ok(Users { entries, tunnels, destinations })
    }

    /// Cells and datagrams that the entries dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.entries.iter().map(|entry| super::session::dropped(&entry.report())).sum()
    }

    /// Ends the entries, one after the other.
    pub(super) fn end(self) -> anyhow::Result<()> {
        drop(self.tunnels);
        for entry in self.entries {
            entry.shutdown()?;
        }
        Ok(())
    }
}

/// Datagrams of the applications in a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Played {
    /// Datagrams sent and received.
    pub(super) sent: PerDirection<u64>,
    pub(super) arrived: PerDirection<u64>,
    /// When the last user sent each of its datagrams, by the wall clock: it is the adversary's own.
    pub(super) probe: Vec<Nanos>,
    /// The most that a datagram was sent after it was due.
    pub(super) late: Duration,
}

/// Sends what the queues hold, from `origin` on, until `stop`.
///
/// # Errors
/// The system refuses to watch sockets.
pub(super) fn play(
    users: &Users,
    mut queues: PerDirection<Queue>,
    origin: Instant,
    stop: &AtomicBool,
) -> anyhow::Result<Played> {
    let poller = Poller::new()?;
    let count = users.tunnels.len();
    let ends = users.destinations.iter().map(AsFd::as_fd).chain(users.tunnels.iter().map(AsFd::as_fd));
    for (number, end) in ends.enumerate() {
        poller.add(end, number as u64)?;
    }
    let to = |socket: &UdpSocket| socket.local_addr().map(Destination::from);
    let to = users.destinations.iter().map(to).collect::<Result<_, _>>()?;
    let mut apps = Apps {
        users,
        to,
        peers: vec![None; count],
        sent: vec![0; count],
        bytes: vec![0; 1 << 16].into(),
        played: Played::default(),
    };

    while !stop.load(Ordering::Relaxed) {
        let now = origin.elapsed();
        let next = [Forward, Backward].into_iter().filter_map(|way| queues[way].peek()).map(|due| due.at_ns).min();
        let wait = next.map_or(u64::MAX, |at| at.saturating_sub(now.as_nanos() as u64));
        let mut ready = Vec::with_capacity(64);
        poller.wait(Some(Duration::from_nanos(wait).min(Duration::from_millis(20))), |end| ready.push(end as usize));
        ready
            .into_iter()
            .for_each(|end| if end < count { apps.at_destination(end) } else { apps.at_user(end - count) });

        let now = origin.elapsed().as_nanos() as u64;
        for way in [Forward, Backward] {
            while queues[way].peek().is_some_and(|due| due.at_ns <= now) {
                let Some(due) = queues[way].pop() else { break };
                apps.played.late = apps.played.late.max(Duration::from_nanos(now - due.at_ns));
                if way == Forward { apps.send(due) } else { apps.answer(due) }
            }
        }
    }
    Ok(apps.played)
}

struct Apps<'a> {
    users: &'a Users,
    to: Vec<Destination>,
    /// Where the exit sends each user's datagrams from.
    peers: Vec<Option<SocketAddr>>,
    /// Datagrams that each user sent.
    sent: Vec<u32>,
    bytes: Box<[u8]>,
    played: Played,
}

impl Apps<'_> {
    fn send(&mut self, Due { flow: user, len, .. }: Due) {
        let number = self.sent[user];
        self.sent[user] += 1;
        if user + 1 == self.to.len() {
            self.played.probe.push(wall());
        }
        // A trace may have shorter datagrams.
        let mut bytes = vec![0; len.max(4)];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let sent = self.users.tunnels[user].send_to(&bytes, &self.to[user]);
        self.played.sent.forward += u64::from(sent.is_ok());
    }

    fn answer(&mut self, Due { flow: user, len, .. }: Due) {
        let Some(peer) = self.peers[user] else { return };
        let sent = self.users.destinations[user].send_to(&vec![0; len], peer);
        self.played.sent.backward += u64::from(sent.is_ok());
    }

    fn at_destination(&mut self, user: usize) {
        while let Ok((_, from)) = self.users.destinations[user].recv_from(&mut self.bytes) {
            self.peers[user] = Some(from);
            self.played.arrived.forward += 1;
        }
    }

    fn at_user(&mut self, user: usize) {
        while self.users.tunnels[user].recv_from(&mut self.bytes).is_ok() {
            self.played.arrived.backward += 1;
        }
    }
}

/// The clock of the capture's timestamps, ns.
pub(super) fn wall() -> Nanos {
    Duration::try_from(clock_gettime(ClockId::Realtime)).unwrap_or_default().as_nanos() as Nanos
}
