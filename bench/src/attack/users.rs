//! The users: for each an entry in this process and an application. Far ends are destinations behind the exit, or the
//! applications of the users that they meet.
//!
//! One thread plays all applications and all destinations. It sends what is due and takes what arrives.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dataplane::per_direction::PerDirection;
use dataplane::runner::Poller;
use dataplane::sys;
use eddy_node::config::create_meeting;
use eddy_node::{ClassName, Destination, Entry, NodeReport, Target, UdpTunnel};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};
use wire::cell::Direction::{self, Backward, Forward};
use wire::paced::PacedTerms;

use super::network::Recorded;
use super::places;
use super::plant::Speakers;
use super::profile::WARM_UP;
use super::record::Entries;
use crate::load::plan::{Due, Queue};
use crate::load::source::Nanos;
use crate::results::histogram;

/// Time for all entries to open their channels.
const READY_MAX: Duration = Duration::from_secs(120);
/// Receive buffer of a destination.
const BUFFER: usize = 1 << 20;
/// Between two attempts to pass a chain of a paced class, which carries nothing before the next batch.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Such an attempt. Datagrams of applications are longer.
const ASK: [u8; 1] = [0];

pub(super) struct Users {
    entries: Vec<Entry>,
    /// The application of each user or caller, in their order.
    near: Vec<End>,
    /// What each of them sends to: its destination, or the application of its partner.
    far: Vec<UdpSocket>,
    /// Where that answers to, if it was known from the start.
    peers: Vec<Option<SocketAddr>>,
    /// The entries of each user and of its partner.
    at: Vec<(usize, Option<usize>)>,
    speakers: Speakers,
}

/// An application's end of a flow.
enum End {
    Tunnel(UdpTunnel, Destination),
    /// With the address at which its entry listens.
    Meeting(UdpSocket, SocketAddr),
}

impl End {
    /// True if the entry has it.
    fn send(&self, bytes: &[u8]) -> bool {
        match self {
            End::Tunnel(tunnel, to) => tunnel.send_to(bytes, to).is_ok(),
            End::Meeting(socket, entry) => socket.send_to(bytes, entry).is_ok(),
        }
    }

    /// The length of the next datagram.
    fn receive(&self, bytes: &mut [u8]) -> Option<usize> {
        match self {
            End::Tunnel(tunnel, _) => tunnel.recv_from(bytes).ok().map(|(len, _)| len),
            End::Meeting(socket, _) => socket.recv(bytes).ok(),
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            End::Tunnel(tunnel, _) => tunnel.as_fd(),
            End::Meeting(socket, _) => socket.as_fd(),
        }
    }
}

/// How the users of a run are started.
pub(super) struct Start<'a> {
    /// The chain's public file.
    pub(super) chain: &'a Path,
    pub(super) class: &'a Recorded,
    pub(super) entries: Entries,
    /// The number of each user's flow, with the adversary's own.
    pub(super) flows: &'a [usize],
    pub(super) speakers: Speakers,
    pub(super) interrupted: &'a AtomicBool,
}

impl Start<'_> {
    /// Starts an entry for each user, and for each partner, and waits until data passes the chain. `progress` has the
    /// number of users that are ready.
    ///
    /// # Errors
    /// An entry does not start, its channels do not open, or nothing passes.
    pub(super) fn run(&self, mut progress: impl FnMut(usize)) -> anyhow::Result<Users> {
        let entries = self.entries()?;
        let deadline = Instant::now() + READY_MAX;
        for (number, entry) in entries.iter().enumerate() {
            while let Err(why) = entry.wait_ready(Duration::from_millis(200)) {
                self.check(deadline, || format!("entry {number} is not ready: {why}"))?;
            }
            if let Recorded::Free { .. } = self.class {
                progress(number + 1);
            }
        }

        let (at, speakers) = (Vec::new(), self.speakers.clone());
        let mut users = Users { near: Vec::new(), far: Vec::new(), peers: Vec::new(), at, speakers, entries };
        for (user, &flow) in self.flows.iter().enumerate() {
            let (near, far, peer) = self.ends(&users.entries, user, flow)?;
            users.near.push(near);
            users.far.push(far);
            users.peers.push(peer);
            let partner = self.entries.meetings.then(|| self.entries.partner(flow));
            users.at.push((self.entries.user(user), partner));
        }
        if let Recorded::Paced(terms) = self.class {
            self.pass(&users, terms, progress)?;
        }
        Ok(users)
    }

    /// # Errors
    /// It is time to give up.
    fn check(&self, deadline: Instant, why: impl FnOnce() -> String) -> anyhow::Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        ensure!(Instant::now() < deadline, why());
        Ok(())
    }

    fn entries(&self) -> anyhow::Result<Vec<Entry>> {
        let dir =
            tempfile::Builder::new().prefix("eddy-bench-").tempdir().context("cannot create a temporary folder")?;
        let mut builders: Vec<_> = (0..self.entries.count())
            .map(|entry| {
                let (down, next) = (places::entry(entry), places::relay_to_user(entry).to_string());
                let builder = Entry::builder().chain_file(self.chain);
                match self.class {
                    Recorded::Free { channels, .. } => builder.channels(*channels).bind(down).next(next),
                    Recorded::Paced(terms) => {
                        let table = format!("[class.{}]\ndown = \"{down}\"\nnext = \"{next}\"", terms.name);
                        builder.channels(1).options(&table)
                    }
                }
            })
            .collect();
        if let (Recorded::Paced(terms), true) = (self.class, self.entries.meetings) {
            let class = class_name(terms)?;
            for (user, &flow) in self.flows.iter().enumerate() {
                let secret = dir.path().join(format!("call{user}.secret"));
                create_meeting(&secret)?;
                for entry in [self.entries.user(user), self.entries.partner(flow)] {
                    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                    let builder = std::mem::replace(&mut builders[entry], Entry::builder());
                    builders[entry] = builder.forward_in(&class, any, &Target::Meeting(secret.clone()));
                }
            }
        }
        // Each reads its secret when it starts, and not again.
        builders.into_iter().map(|builder| builder.start()).collect::<Result<_, _>>().context("cannot start an entry")
    }

    /// The application of a user, what it sends to, and where that answers to.
    fn ends(
        &self,
        entries: &[Entry],
        user: usize,
        flow: usize,
    ) -> anyhow::Result<(End, UdpSocket, Option<SocketAddr>)> {
        // The adversary sees which of its own datagrams arrives when.
        let is_watched = !self.entries.meetings || user == self.entries.rows;
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let far = UdpSocket::bind(if is_watched { places::destination(flow) } else { any })?;
        sys::size_receive_buffer(&far, BUFFER)?;
        far.set_nonblocking(true)?;
        let entry = &entries[self.entries.user(user)];
        let (near, peer) = match self.class {
            Recorded::Paced(terms) if self.entries.meetings => {
                let class = class_name(terms)?;
                let at = |entry: &Entry| entry.listens(&class).first().copied().context("a meeting has a socket");
                let socket = UdpSocket::bind(any)?;
                socket.set_nonblocking(true)?;
                (End::Meeting(socket, at(entry)?), Some(at(&entries[self.entries.partner(flow)])?))
            }
            Recorded::Paced(_) | Recorded::Free { .. } => {
                let tunnel = match self.class {
                    Recorded::Paced(terms) => UdpTunnel::open_in(entry, &class_name(terms)?)?,
                    Recorded::Free { .. } => UdpTunnel::open(entry)?,
                };
                tunnel.set_nonblocking(true)?;
                (End::Tunnel(tunnel, far.local_addr()?.into()), None)
            }
        };
        Ok((near, far, peer))
    }

    /// Waits until each application has heard the other end.
    fn pass(&self, users: &Users, terms: &PacedTerms, mut progress: impl FnMut(usize)) -> anyhow::Result<()> {
        let batch = Duration::from_millis(u64::from(terms.rounds) * u64::from(terms.period_ms));
        let deadline = Instant::now() + READY_MAX + 4 * batch;
        let mut peers = users.peers.clone();
        let mut has_heard = vec![[false; 2]; users.near.len()];
        let mut bytes = [0; 64];
        loop {
            for (user, [near, far]) in has_heard.iter_mut().enumerate() {
                *near |= users.near[user].receive(&mut bytes).is_some();
                if let Ok((_, from)) = users.far[user].recv_from(&mut bytes) {
                    (*far, peers[user]) = (true, Some(from));
                }
                if *near && *far {
                    continue;
                }
                users.near[user].send(&ASK);
                if let Some(peer) = peers[user] {
                    // Lost if it cannot be sent, and sent again.
                    let _ = users.far[user].send_to(&ASK, peer);
                }
            }
            let ready = has_heard.iter().filter(|heard| **heard == [true; 2]).count();
            progress(ready);
            if ready == has_heard.len() {
                return Ok(());
            }
            let missing = has_heard.iter().position(|heard| *heard != [true; 2]).unwrap_or(0);
            self.check(deadline, || format!("nothing passes the chain between user {missing} and its other end"))?;
            std::thread::sleep(ASK_EVERY);
        }
    }
}

fn class_name(terms: &PacedTerms) -> anyhow::Result<ClassName> {
    Ok(terms.name.parse()?)
}

impl Users {
    /// The reports of all entries.
    pub(super) fn reports(&self) -> Vec<NodeReport> {
        self.entries.iter().map(Entry::report).collect()
    }

    /// Ends the entries, one after the other.
    pub(super) fn end(self) -> anyhow::Result<()> {
        drop(self.near);
        for entry in self.entries {
            entry.shutdown()?;
        }
        Ok(())
    }
}

/// Datagrams of the applications in a run.
#[derive(Clone, Debug)]
pub(super) struct Played {
    /// Datagrams sent and received.
    pub(super) sent: PerDirection<u64>,
    pub(super) arrived: PerDirection<u64>,
    /// How long those took that were sent after the warm-up, from one application to the other, ns.
    pub(super) delays: PerDirection<Histogram<u64>>,
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
    let count = users.near.len();
    let ends = users.far.iter().map(AsFd::as_fd).chain(users.near.iter().map(AsFd::as_fd));
    for (number, end) in ends.enumerate() {
        poller.add(end, number as u64)?;
    }
    let mut apps = Apps {
        users,
        peers: users.peers.clone(),
        sent: vec![0; count],
        bytes: vec![0; 1 << 16].into(),
        origin,
        played: Played {
            sent: PerDirection::default(),
            arrived: PerDirection::default(),
            delays: PerDirection::from_fn(|_| histogram()),
            probe: Vec::new(),
            late: Duration::ZERO,
        },
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
    /// Where each far end answers to.
    peers: Vec<Option<SocketAddr>>,
    /// Datagrams that each user sent.
    sent: Vec<u32>,
    bytes: Box<[u8]>,
    origin: Instant,
    played: Played,
}

/// A datagram begins with its number and when it was sent. A trace may have shorter ones, which do not say when.
fn datagram(len: usize, number: u32, sent: Duration) -> Vec<u8> {
    let mut bytes = vec![0; len.max(4)];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    if let Some(time) = bytes.get_mut(4..12) {
        time.copy_from_slice(&(sent.as_nanos() as u64).to_be_bytes());
    }
    bytes
}

impl Apps<'_> {
    fn send(&mut self, Due { flow: user, len, .. }: Due) {
        let number = self.sent[user];
        self.sent[user] += 1;
        if user + 1 == self.sent.len() {
            self.played.probe.push(wall());
        }
        let bytes = datagram(len, number, self.origin.elapsed());
        self.users.speakers[self.users.at[user].0].store(true, Ordering::Relaxed);
        self.played.sent.forward += u64::from(self.users.near[user].send(&bytes));
    }

    fn answer(&mut self, Due { flow: user, len, .. }: Due) {
        let Some(peer) = self.peers[user] else { return };
        if let (_, Some(partner)) = self.users.at[user] {
            self.users.speakers[partner].store(true, Ordering::Relaxed);
        }
        let sent = self.users.far[user].send_to(&datagram(len, 0, self.origin.elapsed()), peer);
        self.played.sent.backward += u64::from(sent.is_ok());
    }

    fn at_destination(&mut self, user: usize) {
        while let Ok((len, from)) = self.users.far[user].recv_from(&mut self.bytes) {
            self.peers[user] = Some(from);
            self.arrived(Forward, len);
        }
    }

    fn at_user(&mut self, user: usize) {
        while let Some(len) = self.users.near[user].receive(&mut self.bytes) {
            self.arrived(Backward, len);
        }
    }

    fn arrived(&mut self, way: Direction, len: usize) {
        if len <= ASK.len() {
            return;
        }
        self.played.arrived[way] += 1;
        let sent = self.bytes[..len].get(4..12).and_then(|time| time.try_into().ok()).map(u64::from_be_bytes);
        if let Some(sent) = sent.map(Duration::from_nanos).filter(|sent| *sent >= WARM_UP) {
            self.played.delays[way].saturating_record(self.origin.elapsed().saturating_sub(sent).as_nanos() as u64);
        }
    }
}

/// The clock of the capture's timestamps, ns.
pub(super) fn wall() -> Nanos {
    Duration::try_from(clock_gettime(ClockId::Realtime)).unwrap_or_default().as_nanos() as Nanos
}
