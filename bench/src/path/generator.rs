//! Generator, sink and echo.
//!
//! One thread sends GSO bursts at an even rate and counts the answers. Another is the destination: it counts, and sends
//! every burst back if it should.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;
use dataplane::runner::Poller;
use dataplane::sys::{self, GSO_BYTES_MAX, GSO_SEGMENTS_MAX, Message};

use crate::udp::{self, MESSAGE_MAX, MESSAGES};

/// Shortest datagram: longer than those that open the flows.
pub(super) const LEN_MIN: usize = 64;
/// Length of a datagram that opens a flow.
const HELLO_LEN: usize = 16;
/// Receive buffer of each socket.
const BUFFER: usize = 32 << 20;
/// Interval of the sender.
const TICK: Duration = Duration::from_micros(500);
/// The end of a run waits this long for the next datagram: many times the delay of three mixes.
const SILENCE: Duration = Duration::from_millis(250);

/// Counts of the datagrams of one trial.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    /// Datagrams that the kernel accepted.
    pub(super) sent: u64,
    /// Datagrams that reached the destination.
    forward: u64,
    /// Datagrams that came back.
    backward: u64,
    /// The destination sent every datagram back.
    echo: bool,
    /// Time of sending.
    pub(super) took: Duration,
}

impl Counted {
    /// Both directions together.
    pub(super) fn delivered(&self) -> u64 {
        self.forward + self.backward
    }

    /// Share of the datagrams that did not arrive, both directions together.
    pub(super) fn loss(&self) -> f64 {
        let wanted = self.sent * if self.echo { 2 } else { 1 };
        1.0 - self.delivered() as f64 / wanted.max(1) as f64
    }

    pub(super) fn sent_per_s(&self) -> f64 {
        self.sent as f64 / self.took.as_secs_f64().max(f64::EPSILON)
    }
}

/// State that the two threads share.
#[derive(Default)]
struct Shared {
    /// Only datagrams of this length count.
    len: AtomicUsize,
    echo: AtomicBool,
    arrived: AtomicU64,
    hellos: AtomicU64,
    stop: AtomicBool,
}

/// Sockets on both sides of a chain.
pub(super) struct Generator {
    clients: Vec<UdpSocket>,
    to: SocketAddr,
    shared: Arc<Shared>,
    destination: Option<JoinHandle<()>>,
    buffers: Vec<Vec<u8>>,
    bytes: Vec<u8>,
}

impl Generator {
    /// Clients of the forward at `to`, which leads to `sink`.
    ///
    /// # Errors
    /// A socket or thread cannot be created.
    pub(super) fn new(flows: usize, to: SocketAddr, sink: UdpSocket) -> anyhow::Result<Generator> {
        let clients = (0..flows).map(|_| -> io::Result<UdpSocket> {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            udp::prepare(&socket, BUFFER)?;
            Ok(socket)
        });
        let clients = clients.collect::<io::Result<Vec<_>>>()?;
        udp::prepare(&sink, BUFFER)?;
        let shared = Arc::new(Shared::default());
        let poller = Poller::new()?;
        poller.add(sink.as_fd(), 0)?;
        let counters = shared.clone();
        let destination = std::thread::Builder::new().name("destination".into()).spawn(move || {
            let mut buffers = udp::receive_buffers();
            while !counters.stop.load(Ordering::Relaxed) {
                if receive(&sink, &mut buffers, &counters) == 0 {
                    poller.wait(Some(Duration::from_millis(20)), |_| {});
                }
            }
        })?;
        let destination = Some(destination);
        Ok(Generator {
            clients,
            to,
            shared,
            destination,
            buffers: udp::receive_buffers(),
            bytes: vec![0x5a; MESSAGE_MAX],
        })
    }

    /// Opens every flow.
    ///
    /// # Errors
    /// A flow does not open.
    pub(super) fn open(&mut self, interrupted: &AtomicBool) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut opened = 0;
        // One at a time: an exit accepts only 64 new flows of a channel at once.
        for client in &self.clients {
            loop {
                client.send_to(&self.bytes[..HELLO_LEN], self.to)?;
                let again = Instant::now() + Duration::from_millis(500);
                while self.shared.hellos.load(Ordering::Relaxed) <= opened && Instant::now() < again {
                    std::thread::sleep(Duration::from_micros(200));
                }
                let now = self.shared.hellos.load(Ordering::Relaxed);
                if now > opened {
                    opened = now;
                    break;
                }
                if interrupted.load(Ordering::Relaxed) || Instant::now() > deadline {
                    bail!("opened only {opened} of {} flows", self.clients.len());
                }
            }
        }
        Ok(())
    }

    /// Sends at `rate` for `time`, and waits for the last datagrams.
    ///
    /// # Errors
    /// The kernel refuses to send.
    pub(super) fn run(&mut self, rate: f64, len: usize, echo: bool, time: Duration) -> anyhow::Result<Counted> {
        let Generator { clients, to, shared, buffers, bytes, .. } = self;
        shared.len.store(len, Ordering::Relaxed);
        shared.echo.store(echo, Ordering::Relaxed);
        shared.arrived.store(0, Ordering::Relaxed);
        let mut answers = 0;
        let mut drain = |answers: &mut u64| clients.iter().for_each(|client| *answers += count(client, buffers, len));
        // Late datagrams of the trial before do not count.
        drain(&mut answers);

        let mut counted = Counted { echo, ..Counted::default() };
        answers = 0;
        let burst_max = GSO_SEGMENTS_MAX.min(GSO_BYTES_MAX / len);
        let (start, mut next, mut client) = (Instant::now(), Duration::ZERO, 0);
        while start.elapsed() < time {
            next += TICK;
            let due = (rate * start.elapsed().as_secs_f64()) as u64;
            while counted.sent < due {
                let pieces = burst_max.min((due - counted.sent) as usize);
                let message = Message { to: *to, pieces: 1, segment: (pieces > 1).then_some(len as u16) };
                let sent = sys::send(&clients[client], std::iter::once(message), [&bytes[..pieces * len]].into_iter());
                match sent {
                    Ok(_) => counted.sent += pieces as u64,
                    Err(why) if matches!(why.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => break,
                    Err(why) => return Err(why.into()),
                }
                client = (client + 1) % clients.len();
            }
            if echo {
                drain(&mut answers);
            }
            std::thread::sleep(next.saturating_sub(start.elapsed()));
        }

        counted.took = start.elapsed();
        let (mut seen, mut since) = (0, Instant::now());
        loop {
            drain(&mut answers);
            let forward = shared.arrived.load(Ordering::Relaxed);
            if forward + answers > seen {
                (seen, since) = (forward + answers, Instant::now());
            }
            let wanted = counted.sent * if echo { 2 } else { 1 };
            if seen >= wanted || since.elapsed() > SILENCE {
                (counted.forward, counted.backward) = (forward, answers);
                return Ok(counted);
            }
            std::thread::sleep(TICK);
        }
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.destination.take() {
            let _ = thread.join();
        }
    }
}

/// Counts the datagrams that wait at a client's socket, by their length.
fn count(socket: &UdpSocket, buffers: &mut [Vec<u8>], len: usize) -> u64 {
    let mut counted = 0;
    loop {
        let short = buffers.iter_mut().map(|buffer| &mut buffer[..1]);
        let got = sys::recv(socket, short, 1, |_, message| {
            if message.segment.unwrap_or(message.len) == len {
                counted += (message.len / len) as u64;
            }
        });
        if !matches!(got, Ok(MESSAGES)) {
            return counted;
        }
    }
}

/// A turn of the destination: counts, and sends back. Returns the number of messages.
fn receive(sink: &UdpSocket, buffers: &mut [Vec<u8>], shared: &Shared) -> usize {
    let (len, echo) = (shared.len.load(Ordering::Relaxed), shared.echo.load(Ordering::Relaxed));
    let mut got = Vec::with_capacity(MESSAGES);
    let all = buffers.iter_mut().map(|buffer| if echo { &mut buffer[..] } else { &mut buffer[..1] });
    let count = sys::recv(sink, all, 1, |_, message| got.push(message)).unwrap_or(0);
    let mut arrived = 0;
    for message in &got {
        let step = message.segment.unwrap_or(message.len);
        if step == HELLO_LEN {
            shared.hellos.fetch_add((message.len / step) as u64, Ordering::Relaxed);
        } else if step == len {
            arrived += (message.len / step) as u64;
        }
    }
    shared.arrived.fetch_add(arrived, Ordering::Relaxed);
    if echo {
        let back = got.iter().map(|message| Message {
            to: message.from,
            pieces: 1,
            segment: message.segment.map(|segment| segment as u16),
        });
        let pieces = got.iter().zip(buffers.iter()).map(|(message, buffer)| &buffer[..message.len.min(buffer.len())]);
        // A message that the kernel refuses does not come back, so it counts as lost.
        let _ = sys::send(sink, back, pieces);
    }
    count
}
