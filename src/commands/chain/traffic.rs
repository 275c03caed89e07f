//! Sends messages through the chain and records the fate of each.
//!
//! One socket per client and one per receiver. A message of eight bytes or more carries its number, so
//! that losses, duplicates and damage are found one by one; shorter ones ("Hello") are matched by their
//! order, which a flow preserves.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::children::SILENCE_MAX;
use crate::log;
use eddy_node::config::RECEIVE_BUFFER;

const HELLO: &[u8] = b"Hello";
const THANKS: &[u8] = b"Got Message. Thanks!";
/// Bytes of a message's number.
const NUMBER: usize = 8;
/// Timeout of a receive call, and the time between calls of `watch`.
const LOOK: Duration = Duration::from_millis(100);

/// The messages to send.
pub struct Load {
    pub messages: u64,
    /// Messages per second.
    pub rate: f64,
    pub payload: Payload,
}

/// The content of a message.
#[derive(Clone, Copy, Debug)]
pub enum Payload {
    /// "Hello", answered with "Got Message. Thanks!".
    Hello,
    /// A number of bytes, echoed.
    Length(usize),
}

impl Payload {
    /// Bytes of a message.
    pub fn len(self) -> usize {
        match self {
            Payload::Hello => HELLO.len(),
            Payload::Length(len) => len,
        }
    }

    fn numbered(self) -> bool {
        matches!(self, Payload::Length(len) if len >= NUMBER)
    }

    /// Writes message `number` to `buffer`.
    fn write(self, number: u64, buffer: &mut Vec<u8>) {
        buffer.clear();
        match self {
            Payload::Hello => buffer.extend_from_slice(HELLO),
            Payload::Length(len) => {
                if self.numbered() {
                    buffer.extend_from_slice(&number.to_be_bytes());
                }
                let filled = buffer.len();
                let start = if self.numbered() { number } else { 0 };
                buffer.extend((filled..len).map(|at| (start as usize + at) as u8));
            }
        }
    }

    /// The number of a message, 0 if it has none; `None` if it is damaged.
    fn check(self, bytes: &[u8], scratch: &mut Vec<u8>) -> Option<u64> {
        let number = match bytes.first_chunk::<NUMBER>() {
            Some(number) if self.numbered() => u64::from_be_bytes(*number),
            _ => 0,
        };
        self.write(number, scratch);
        (scratch == bytes).then_some(number)
    }

    fn answer<'a>(&self, message: &'a [u8]) -> &'a [u8] {
        match self {
            Payload::Hello => THANKS,
            Payload::Length(_) => message,
        }
    }

    fn check_answer(self, bytes: &[u8], scratch: &mut Vec<u8>) -> Option<u64> {
        match self {
            Payload::Hello => (bytes == THANKS).then_some(0),
            Payload::Length(_) => self.check(bytes, scratch),
        }
    }
}

/// The fate of the messages.
pub struct Outcome {
    /// Handed to the entry.
    pub sent: u64,
    /// Arrived intact at their receiver.
    pub delivered: u64,
    /// Answers that arrived intact at their client.
    pub answered: u64,
    /// Arrived changed or twice.
    pub damaged: u64,
    /// From the first to the last message sent.
    pub sending: Duration,
    pub messages: Vec<Message>,
    /// Round trips in microseconds.
    pub rtt_us: Histogram<u64>,
}

pub struct Message {
    /// The index of its receiver.
    pub receiver: usize,
    /// From sending it to its answer.
    pub round_trip: Option<Duration>,
}

/// The state of every message in flight. Times are in ns since the start.
struct Book {
    start: Instant,
    payload: Payload,
    receiver: Vec<AtomicU64>,
    sent_at: Vec<AtomicU64>,
    /// 0 until answered.
    round_trip: Vec<AtomicU64>,
    arrived: Vec<AtomicBool>,
    /// Per receiver, messages without numbers that wait for an answer.
    unanswered: Vec<Mutex<VecDeque<u64>>>,
    delivered: AtomicU64,
    answered: AtomicU64,
    damaged: AtomicU64,
    over: AtomicBool,
}

impl Book {
    fn new(load: &Load, receivers: usize) -> Book {
        let zeros = || (0..load.messages).map(|_| AtomicU64::new(0)).collect();
        Book {
            start: Instant::now(),
            payload: load.payload,
            receiver: zeros(),
            sent_at: zeros(),
            round_trip: zeros(),
            arrived: (0..load.messages).map(|_| AtomicBool::new(false)).collect(),
            unanswered: (0..receivers).map(|_| Mutex::default()).collect(),
            delivered: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn delivered(&self, receiver: usize, number: Option<u64>) {
        let fresh = number.is_some_and(|number| match self.arrived.get(number as usize) {
            Some(arrived) if self.payload.numbered() => {
                self.receiver[number as usize].load(Ordering::Relaxed) == receiver as u64
                    && !arrived.swap(true, Ordering::Relaxed)
            }
            Some(_) => true,
            None => false,
        });
        let counter = if fresh { &self.delivered } else { &self.damaged };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn answered(&self, receiver: usize, number: Option<u64>) {
        let number = number.and_then(|number| {
            if self.payload.numbered() {
                return Some(number);
            }
            self.unanswered[receiver].lock().unwrap_or_else(PoisonError::into_inner).pop_front()
        });
        let fresh = number.is_some_and(|number| {
            let Some(round_trip) = self.round_trip.get(number as usize) else { return false };
            let took = self.now().saturating_sub(self.sent_at[number as usize].load(Ordering::Relaxed)).max(1);
            round_trip.compare_exchange(0, took, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        });
        let counter = if fresh { &self.answered } else { &self.damaged };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends all messages at an even rate, each to a random receiver, and waits for the answers: for
/// `patience` after the last one. `watch` is called every 100 ms with the number of messages sent so
/// far; `true` ends the wait, an error ends the run.
///
/// # Errors
/// A socket fails, or `watch` does.
pub fn run(
    load: &Load,
    receivers: Vec<UdpSocket>,
    entries: Vec<SocketAddr>,
    patience: Duration,
    mut watch: impl FnMut(u64) -> anyhow::Result<bool>,
) -> anyhow::Result<Outcome> {
    let any = |entry: &SocketAddr| -> anyhow::Result<UdpSocket> {
        let loopback: IpAddr =
            if entry.is_ipv4() { [127, 0, 0, 1].into() } else { [0, 0, 0, 0, 0, 0, 0, 1].map(|part: u16| part).into() };
        Ok(UdpSocket::bind((loopback, 0))?)
    };
    let clients = entries.iter().map(any).collect::<anyhow::Result<Vec<_>>>()?;
    for socket in receivers.iter().chain(&clients) {
        socket.set_read_timeout(Some(LOOK))?;
        dataplane::sys::size_receive_buffer(socket, RECEIVE_BUFFER)?;
    }

    let book = Book::new(load, receivers.len());
    let sending = std::thread::scope(|scope| {
        for (i, socket) in receivers.iter().enumerate() {
            let book = &book;
            scope.spawn(move || answer(socket, i, book));
        }
        for (i, socket) in clients.iter().enumerate() {
            let book = &book;
            scope.spawn(move || listen(socket, i, book));
        }
        let sent = send(load, &clients, &entries, &book, &mut watch)
            .and_then(|sending| wait(load, &book, patience, &mut watch).map(|()| sending));
        book.over.store(true, Ordering::Relaxed);
        sent
    })?;
    outcome(load, &book, sending)
}

fn send(
    load: &Load,
    clients: &[UdpSocket],
    entries: &[SocketAddr],
    book: &Book,
    watch: &mut impl FnMut(u64) -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("cannot get random bytes from the system")?;
    let mut rng = ChaCha20Rng::from_seed(seed);
    // Without colour, and only on a terminal.
    let bar = ProgressBar::new(load.messages)
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} sent, {per_sec}, {eta} to go")?);

    let start = Instant::now();
    let mut watched = start;
    let mut message = Vec::new();
    for number in 0..load.messages {
        let due = start + Duration::from_secs_f64(number as f64 / load.rate);
        loop {
            let now = Instant::now();
            if now.duration_since(watched) >= LOOK {
                watched = now;
                bar.set_position(number);
                watch(number)?;
            }
            if now >= due {
                break;
            }
            std::thread::sleep((due - now).min(LOOK));
        }

        let i = rng.random_range(0..clients.len());
        load.payload.write(number, &mut message);
        book.receiver[number as usize].store(i as u64, Ordering::Relaxed);
        if !load.payload.numbered() {
            book.unanswered[i].lock().unwrap_or_else(PoisonError::into_inner).push_back(number);
        }
        book.sent_at[number as usize].store(book.now(), Ordering::Relaxed);
        let to = entries[i];
        clients[i].send_to(&message, to).with_context(|| format!("{} bytes to {to}", message.len()))?;
    }
    bar.finish_and_clear();
    Ok(start.elapsed())
}

fn wait(
    load: &Load,
    book: &Book,
    patience: Duration,
    watch: &mut impl FnMut(u64) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let progress = || (book.delivered.load(Ordering::Relaxed), book.answered.load(Ordering::Relaxed));
    let (mut last, mut since) = (progress(), Instant::now());
    let (started, mut said) = (Instant::now(), false);
    while progress().1 < load.messages && since.elapsed() < patience && !watch(load.messages)? {
        std::thread::sleep(Duration::from_millis(10));
        if !said && started.elapsed() > SILENCE_MAX {
            said = true;
            let (answered, patience) = (progress().1, patience.as_secs());
            log::say(format_args!(
                "waiting for answers: {answered} of {}; at most {patience} s for the next one",
                load.messages
            ));
        }
        if progress() != last {
            (last, since) = (progress(), Instant::now());
        }
    }
    Ok(())
}

/// A receiver: answers each message.
fn answer(socket: &UdpSocket, i: usize, book: &Book) {
    let (mut buffer, mut scratch) = (vec![0; 1 << 16], Vec::new());
    while !book.over.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        book.delivered(i, book.payload.check(&buffer[..len], &mut scratch));
        // An answer that cannot be sent counts as lost.
        let _ = socket.send_to(book.payload.answer(&buffer[..len]), from);
    }
}

/// A client: receives its answers.
fn listen(socket: &UdpSocket, i: usize, book: &Book) {
    let (mut buffer, mut scratch) = (vec![0; 1 << 16], Vec::new());
    while !book.over.load(Ordering::Relaxed) {
        let Ok((len, _)) = socket.recv_from(&mut buffer) else { continue };
        book.answered(i, book.payload.check_answer(&buffer[..len], &mut scratch));
    }
}

fn outcome(load: &Load, book: &Book, sending: Duration) -> anyhow::Result<Outcome> {
    let mut rtt_us = Histogram::new(3).context("cannot create a histogram")?;
    let mut messages = Vec::with_capacity(load.messages as usize);
    for (receiver, round_trip) in book.receiver.iter().zip(&book.round_trip) {
        let took = Some(round_trip.load(Ordering::Relaxed)).filter(|ns| *ns > 0).map(Duration::from_nanos);
        if let Some(took) = took {
            rtt_us.record(took.as_micros() as u64).context("cannot count a round trip")?;
        }
        messages.push(Message { receiver: receiver.load(Ordering::Relaxed) as usize, round_trip: took });
    }
    Ok(Outcome {
        sent: load.messages,
        delivered: book.delivered.load(Ordering::Relaxed),
        answered: book.answered.load(Ordering::Relaxed),
        damaged: book.damaged.load(Ordering::Relaxed),
        sending,
        messages,
        rtt_us,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No chain: messages go straight to the receivers.
    fn direct(payload: Payload, messages: u64) -> Outcome {
        let receivers: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let entries = receivers.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let load = Load { messages, rate: 10_000.0, payload };
        run(&load, receivers, entries, Duration::from_secs(10), |_| Ok(false)).unwrap()
    }

    #[test]
    fn messages_of_every_length_are_counted_once() {
        for payload in
            [Payload::Hello, Payload::Length(0), Payload::Length(7), Payload::Length(8), Payload::Length(4000)]
        {
            let outcome = direct(payload, 60);
            let counts = (outcome.sent, outcome.delivered, outcome.answered, outcome.damaged);
            assert_eq!(counts, (60, 60, 60, 0), "{payload:?}");
            assert_eq!(outcome.rtt_us.len(), 60);
            assert!(outcome.messages.iter().all(|message| message.round_trip.is_some()));
        }
    }

    #[test]
    fn duplicates_and_damage_are_not_deliveries() {
        let load = Load { messages: 2, rate: 1.0, payload: Payload::Length(20) };
        let book = Book::new(&load, 1);
        let (mut message, mut scratch) = (Vec::new(), Vec::new());
        load.payload.write(1, &mut message);
        for _ in 0..2 {
            book.delivered(0, load.payload.check(&message, &mut scratch));
        }
        message[19] ^= 1;
        book.delivered(0, load.payload.check(&message, &mut scratch));
        assert_eq!((book.delivered.into_inner(), book.damaged.into_inner()), (1, 2));
    }

    #[test]
    fn lost_messages_are_not_delivered() {
        let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
        let receivers = vec![UdpSocket::bind("127.0.0.1:0").unwrap()];
        let load = Load { messages: 3, rate: 1000.0, payload: Payload::Hello };
        let entries = vec![deaf.local_addr().unwrap()];
        let outcome = run(&load, receivers, entries, Duration::from_millis(50), |_| Ok(false)).unwrap();
        assert_eq!((outcome.sent, outcome.delivered, outcome.answered), (3, 0, 0));
    }
}
