//! A man in the middle: a UDP proxy in a link that drops, copies, delays and alters datagrams as configured.
//!
//! The initiator's `next` points at the tap's front, and the tap's back sends to the responder, so both see
//! the addresses that they expect. The fate of a datagram depends only on the seed and the order of arrival:
//! first a [`Script`], if there is one, then the [`Faults`] of its direction.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::runner::Poller;
use dataplane::sys::{self, Waker};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::handshake::is_handshake_len;

/// Datagrams recorded by default.
const KEPT: usize = 100_000;
/// Receive buffer of both ends: a tap loses only what its faults drop.
const BUFFER: usize = 32 << 20;
/// Forward and backward.
pub const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];

/// A datagram that came to the tap, before anything was done to it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Since the tap was started.
    pub at: Duration,
    pub bytes: Vec<u8>,
}

/// Faults of one direction. Shares are of all datagrams, from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Are dropped.
    pub drop: f64,
    /// Arrive twice.
    pub duplicate: f64,
    /// Have one bit flipped.
    pub mutate: f64,
    /// Lose bytes at the end.
    pub truncate: f64,
    /// Get bytes at the end, up to 64.
    pub extend: f64,
    /// Are held back for a random time up to `reorder_by`, so that others overtake them.
    pub reorder: f64,
    pub reorder_by: Duration,
    /// Delay of all datagrams.
    pub delay: Duration,
    /// Are followed by an earlier one of their direction.
    pub replay: f64,
    /// Are followed by a copy in the other direction and, after [`Tap::elsewhere`], on another link.
    pub elsewhere: f64,
}

/// What a tap has done in one direction: `came + made == dropped + sent + held`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Came from the sender.
    pub came: u64,
    /// Handshake datagrams among them: no ledger counts these as sent.
    pub handshakes: u64,
    /// Were dropped.
    pub dropped: u64,
    /// Copies, replays and the test's own.
    pub made: u64,
    /// Were sent to the receiver.
    pub sent: u64,
    /// Are held back now.
    pub held: u64,
}

/// Maps one datagram to any number of them, each with a delay.
pub type Script = Box<dyn FnMut(Direction, &[u8]) -> Vec<(Duration, Direction, Vec<u8>)> + Send>;

/// The tap's sockets.
struct Ends {
    front: UdpSocket,
    back: UdpSocket,
    to: SocketAddr,
    /// Where the last datagram at the front came from.
    initiator: Mutex<Option<SocketAddr>>,
}

impl Ends {
    fn send(&self, direction: Direction, bytes: &[u8]) -> bool {
        // Before the initiator has sent anything its address is unknown.
        let sent = match direction {
            Direction::Forward => Some(self.back.send_to(bytes, self.to)),
            Direction::Backward => lock(&self.initiator).map(|to| self.front.send_to(bytes, to)),
        };
        matches!(sent, Some(Ok(_)))
    }
}

struct State {
    rngs: [ChaCha20Rng; 2],
    faults: [Faults; 2],
    script: Option<Script>,
    records: [VecDeque<Record>; 2],
    keep: usize,
    counts: [Counts; 2],
    elsewhere: Option<Arc<Ends>>,
    stop: bool,
}

/// A running tap. Ends when dropped.
pub struct Tap {
    ends: Arc<Ends>,
    state: Arc<Mutex<State>>,
    waker: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn both(direction: Direction) -> usize {
    usize::from(direction == Direction::Backward)
}

fn other(direction: Direction) -> Direction {
    if direction == Direction::Forward { Direction::Backward } else { Direction::Forward }
}

impl Tap {
    /// A tap at `front` in a link towards the responder at `to`; its back gets any port of the same
    /// address. It passes everything until faults are set.
    pub fn start(front: SocketAddr, to: SocketAddr, seed: u64) -> Tap {
        let socket = |address: SocketAddr| {
            let socket = UdpSocket::bind(address).unwrap_or_else(|why| panic!("tap at {address}: {why}"));
            socket.set_nonblocking(true).unwrap();
            sys::size_receive_buffer(&socket, BUFFER).unwrap();
            socket
        };
        let back = socket(SocketAddr::new(front.ip(), 0));
        let ends = Arc::new(Ends { front: socket(front), back, to, initiator: Mutex::default() });
        let state = Arc::new(Mutex::new(State {
            rngs: [seed, !seed].map(ChaCha20Rng::seed_from_u64),
            faults: [Faults::default(); 2],
            script: None,
            records: Default::default(),
            keep: KEPT,
            counts: [Counts::default(); 2],
            elsewhere: None,
            stop: false,
        }));
        let waker = Arc::new(Waker::new().unwrap());
        let thread = {
            let (ends, state, waker) = (ends.clone(), state.clone(), waker.clone());
            std::thread::Builder::new().name("tap".into()).spawn(move || run(&ends, &state, &waker)).unwrap()
        };
        Tap { ends, state, waker, thread: Some(thread) }
    }

    /// The address that the initiator sends to.
    pub fn front(&self) -> SocketAddr {
        self.ends.front.local_addr().unwrap()
    }

    /// The address that the responder sees.
    pub fn back(&self) -> SocketAddr {
        self.ends.back.local_addr().unwrap()
    }

    /// Sets the faults of one direction.
    pub fn set(&self, direction: Direction, faults: Faults) {
        lock(&self.state).faults[both(direction)] = faults;
    }

    /// Sets the faults of both directions.
    pub fn set_both(&self, faults: Faults) {
        lock(&self.state).faults = [faults; 2];
    }

    /// Lets `script` decide first; what it returns is not subject to faults.
    pub fn script(&self, script: Option<Script>) {
        lock(&self.state).script = script;
    }

    /// Copies of what has [`Faults::elsewhere`] go to the other tap's link, too.
    pub fn elsewhere(&self, other: &Tap) {
        lock(&self.state).elsewhere = Some(other.ends.clone());
    }

    /// Sets how many datagrams of a direction are recorded; the oldest are forgotten first.
    pub fn keep(&self, count: usize) {
        let mut state = lock(&self.state);
        state.keep = count;
        for records in &mut state.records {
            records.drain(..records.len().saturating_sub(count));
        }
    }

    /// The recorded datagrams of a direction.
    pub fn records(&self, direction: Direction) -> Vec<Record> {
        lock(&self.state).records[both(direction)].iter().cloned().collect()
    }

    /// How many datagrams have come in a direction.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.counts(direction).came
    }

    /// Counters of a direction. Copies that went [`Faults::elsewhere`] are not counted there.
    pub fn counts(&self, direction: Direction) -> Counts {
        lock(&self.state).counts[both(direction)]
    }

    /// What the kernel dropped in front of the tap.
    pub fn kernel_drops(&self) -> u64 {
        [&self.ends.front, &self.ends.back].map(|socket| sys::kernel_drops(socket).unwrap()).iter().sum()
    }

    /// Sends a datagram of the test's own, from the address that the receiver knows the link by.
    pub fn inject(&self, direction: Direction, bytes: &[u8]) {
        let mut state = lock(&self.state);
        assert!(self.ends.send(direction, bytes), "{} bytes {direction:?} through the tap", bytes.len());
        state.counts[both(direction)].made += 1;
        state.counts[both(direction)].sent += 1;
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        lock(&self.state).stop = true;
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A datagram on its way: when it leaves, its number, and what it is.
type Due = Reverse<(Instant, u64, bool, Vec<u8>)>;

fn run(ends: &Ends, state: &Mutex<State>, waker: &Waker) {
    let poller = Poller::new().unwrap();
    poller.add(waker.as_fd(), 0).unwrap();
    poller.add(ends.front.as_fd(), 1).unwrap();
    poller.add(ends.back.as_fd(), 2).unwrap();
    let began = Instant::now();
    let mut due: BinaryHeap<Due> = BinaryHeap::new();
    let mut number = 0;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let wait = due.peek().map(|Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
        poller.wait(wait, |_| waker.clear());
        for (socket, direction) in [(&ends.front, Direction::Forward), (&ends.back, Direction::Backward)] {
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                match direction {
                    Direction::Forward => *lock(&ends.initiator) = Some(from),
                    Direction::Backward if from != ends.to => continue,
                    Direction::Backward => {}
                }
                let fates = lock(state).decide(direction, &buffer[..len], began.elapsed());
                for (after, direction, bytes) in fates {
                    number += 1;
                    due.push(Reverse((Instant::now() + after, number, direction == Direction::Forward, bytes)));
                }
            }
        }
        while due.peek().is_some_and(|Reverse((at, ..))| *at <= Instant::now()) {
            if let Some(Reverse((.., forward, bytes))) = due.pop() {
                let direction = if forward { Direction::Forward } else { Direction::Backward };
                let sent = ends.send(direction, &bytes);
                let counts = &mut lock(state).counts[both(direction)];
                counts.held -= 1;
                counts.sent += u64::from(sent);
                counts.dropped += u64::from(!sent);
            }
        }
        if lock(state).stop {
            return;
        }
    }
}

impl State {
    fn decide(&mut self, direction: Direction, bytes: &[u8], at: Duration) -> Vec<(Duration, Direction, Vec<u8>)> {
        let records = &mut self.records[both(direction)];
        let rng = &mut self.rngs[both(direction)];
        let mut chance = |share: f64| share > 0.0 && f64::from(rng.next_u32()) < share * f64::from(u32::MAX);
        let faults = self.faults[both(direction)];
        let [drop, duplicate, mutate, truncate, extend, reorder, replay, elsewhere] = [
            faults.drop,
            faults.duplicate,
            faults.mutate,
            faults.truncate,
            faults.extend,
            faults.reorder,
            faults.replay,
            faults.elsewhere,
        ]
        .map(&mut chance);
        let mut below = |n: usize| ((u64::from(rng.next_u32()) * n as u64) >> 32) as usize;
        let mut fates = Vec::new();
        if let Some(script) = &mut self.script {
            fates = script(direction, bytes);
        } else if !drop {
            let mut bytes = bytes.to_vec();
            if mutate && !bytes.is_empty() {
                let bit = below(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            if truncate {
                bytes.truncate(below(bytes.len()));
            }
            if extend {
                let more = 1 + below(64);
                bytes.extend((0..more).map(|_| below(256) as u8));
            }
            let held = if reorder { faults.reorder_by.mul_f64(below(1000) as f64 / 1000.0) } else { Duration::ZERO };
            if duplicate {
                fates.push((faults.delay, direction, bytes.clone()));
            }
            fates.push((faults.delay + held, direction, bytes));
        }
        if replay && !records.is_empty() {
            fates.push((faults.delay, direction, records[below(records.len())].bytes.clone()));
        }
        if elsewhere {
            fates.push((faults.delay, other(direction), bytes.to_vec()));
            if let Some(link) = &self.elsewhere {
                link.send(direction, bytes);
                link.send(other(direction), bytes);
            }
        }
        let passed_on = fates.iter().filter(|(_, to, _)| *to == direction).count() as u64;
        let back = fates.len() as u64 - passed_on;
        let counts = &mut self.counts[both(direction)];
        counts.came += 1;
        counts.handshakes += u64::from(is_handshake_len(bytes.len()));
        counts.dropped += u64::from(passed_on == 0);
        counts.made += passed_on.saturating_sub(1);
        counts.held += passed_on;
        let counts = &mut self.counts[both(other(direction))];
        counts.made += back;
        counts.held += back;
        if records.len() == self.keep {
            records.pop_front();
        }
        if self.keep > 0 {
            records.push_back(Record { at, bytes: bytes.to_vec() });
        }
        fates
    }
}
