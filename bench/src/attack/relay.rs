//! The access links: a relay between each user's entry and Mix 1, with sockets of its own for each user.
//!
//! It applies impairments and the plan of an active adversary, which sits between the user and the impaired link. What
//! the relay sends or drops shows on Mix 1's side of the link, and not on the user's side.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use attack::active::{Action, Plan};
use dataplane::runner::Poller;
use dataplane::sys;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;

use super::impairment::{Impairments, Link};
use super::places;
use super::plant::Plant;
use super::users::wall;
use crate::load::source::{Nanos, seeded};

/// Receive buffer of each socket.
const BUFFER: usize = 1 << 20;
/// Longest datagram on an access link.
const LONGEST: usize = 2048;

/// When the record began; impairments start then.
pub(super) type Begin = Arc<OnceLock<Instant>>;

pub(super) struct Relay {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Relay {
    /// Starts it for `users` users.
    ///
    /// # Errors
    /// The system refuses sockets or a thread.
    pub(super) fn start(
        users: usize,
        impairments: &Impairments,
        (plan, plant): (Option<Plan>, Option<Plant>),
        begin: Begin,
        seed: u64,
    ) -> anyhow::Result<Relay> {
        // Users draw from stream 0 of the same seed.
        let mut rng = seeded(seed);
        rng.set_stream(1);
        let poller = Poller::new()?;
        let mut ways = Vec::with_capacity(2 * users);
        for user in 0..users {
            let user_side = socket(places::relay_to_user(user), places::entry(user))?;
            let mix_side = socket(places::relay_to_mix(user), places::hop(1))?;
            for (from, to) in [(&user_side, &mix_side), (&mix_side, &user_side)] {
                poller.add(from.as_fd(), ways.len() as u64)?;
                let link = Link::new(impairments.clone(), user, ChaCha20Rng::from_rng(&mut rng));
                ways.push(Way { from: from.try_clone()?, to: to.try_clone()?, link });
            }
        }
        let stop = Arc::<AtomicBool>::default();
        let mut worker = Worker {
            ways,
            plan,
            plant,
            begin,
            held: BinaryHeap::new(),
            number: 0,
            bytes: vec![0; LONGEST].into_boxed_slice(),
        };
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("relay".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                worker.turn(&poller);
            }
        })?;
        Ok(Relay { stop, thread })
    }

    pub(super) fn finish(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread of the relay panicked"))
    }
}

fn socket(at: std::net::SocketAddr, peer: std::net::SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind(at).with_context(|| format!("cannot listen at {at}"))?;
    socket.connect(peer)?;
    socket.set_nonblocking(true)?;
    sys::size_receive_buffer(&socket, BUFFER)?;
    Ok(socket)
}

/// One direction of a user's link. Even indices lead forward.
struct Way {
    from: UdpSocket,
    to: UdpSocket,
    link: Link,
}

/// A datagram that waits: due, number of arrival, way, bytes.
type Held = Reverse<(Nanos, u64, usize, Vec<u8>)>;

struct Worker {
    ways: Vec<Way>,
    plan: Option<Plan>,
    plant: Option<Plant>,
    begin: Begin,
    held: BinaryHeap<Held>,
    number: u64,
    bytes: Box<[u8]>,
}

impl Worker {
    /// Time since the record began.
    fn now(&self) -> Option<Nanos> {
        self.begin.get().map(|begin| begin.elapsed().as_nanos() as Nanos)
    }

    fn turn(&mut self, poller: &Poller) {
        let until_due = self.held.peek().zip(self.now()).map(|(Reverse((due, ..)), now)| due.saturating_sub(now));
        let timeout = until_due.map_or(Duration::from_millis(20), Duration::from_nanos);
        let mut ready = Vec::with_capacity(64);
        poller.wait(Some(timeout.min(Duration::from_millis(20))), |way| ready.push(way as usize));
        ready.into_iter().for_each(|way| self.receive(way));
        let now = self.now().unwrap_or(0);
        while self.held.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            let Some(Reverse((_, _, way, bytes))) = self.held.pop() else { break };
            self.send(way, &bytes);
        }
    }

    /// One datagram: the poller names the way again if there are more.
    fn receive(&mut self, index: usize) {
        let now = self.now();
        let way = &mut self.ways[index];
        let Ok(len) = way.from.recv(&mut self.bytes) else { return };
        let Some(now) = now else {
            let _ = way.to.send(&self.bytes[..len]);
            return;
        };
        let (entry, is_forward, bytes) = (index / 2, index.is_multiple_of(2), &self.bytes[..len]);
        let mut sent = now;
        if let Some(plant) = &mut self.plant {
            match if is_forward { plant.leaves(entry, now, bytes) } else { Action::Pass } {
                Action::Pass if !is_forward && plant.is_left_out(entry, wall(), bytes) => return,
                Action::Pass => {}
                Action::Delay(by) => sent += by,
                Action::Drop => return,
            }
        }
        let arrives = match &self.plan {
            Some(plan) if is_forward => plan.passes(entry, sent),
            _ => Some(sent),
        };
        let due = arrives.and_then(|arrives| way.link.pass(arrives, len));
        if let Some(plant) = self.plant.as_mut().filter(|_| is_forward) {
            plant.passed(entry, wall(), due.map(|due| wall() + due - now), bytes);
        }
        match due {
            Some(due) if due <= now => self.send(index, &self.bytes[..len]),
            Some(due) => {
                self.number += 1;
                self.held.push(Reverse((due, self.number, index, self.bytes[..len].to_vec())));
            }
            None => {}
        }
    }

    /// A datagram that the kernel refuses is lost, as on any link.
    fn send(&self, way: usize, bytes: &[u8]) {
        let _ = self.ways[way].to.send(bytes);
    }
}
