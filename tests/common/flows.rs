//! Numbered datagrams on flows of their own, echoed behind the exit, and every arrival counted at both ends.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::sys;

use super::nodes::{until, while_receiving};

/// Prefix of these datagrams: flow (2) and number (4) follow, then bytes derived from both.
const MAGIC: [u8; 4] = *b"flow";
/// Receive buffer of the test's own sockets.
const BUFFER: usize = 8 << 20;
/// What is still missing is lost when nothing has come for this long.
const QUIET: Duration = Duration::from_secs(3);

fn datagram(flow: u16, number: u32, len: usize) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &flow.to_be_bytes(), &number.to_be_bytes()].concat();
    bytes.extend((bytes.len()..len).map(|i| (i as u32 * 31).wrapping_add(number ^ u32::from(flow)) as u8));
    bytes
}

/// Arrivals at one end.
#[derive(Default)]
pub struct Arrived {
    /// How often, by flow and number.
    pub counts: HashMap<(u16, u32), u32>,
    /// Where the datagrams of a flow came from last.
    pub from: HashMap<u16, SocketAddr>,
    /// Altered on the way.
    pub broken: u64,
    /// Not of these flows.
    pub strange: u64,
    last: Option<Instant>,
}

impl Arrived {
    /// Counts a datagram; false if it is not one of these.
    fn add(&mut self, bytes: &[u8], from: SocketAddr) -> bool {
        let Some((head, _)) = bytes.split_first_chunk::<10>().filter(|(head, _)| head.starts_with(&MAGIC)) else {
            self.strange += 1;
            return false;
        };
        let [_, _, _, _, f, g, a, b, c, d] = *head;
        let (flow, number) = (u16::from_be_bytes([f, g]), u32::from_be_bytes([a, b, c, d]));
        self.last = Some(Instant::now());
        if datagram(flow, number, bytes.len()) == bytes {
            *self.counts.entry((flow, number)).or_default() += 1;
            self.from.insert(flow, from);
        } else {
            self.broken += 1;
        }
        true
    }

    /// How many arrived, copies too.
    pub fn total(&self) -> u64 {
        self.counts.values().map(|count| u64::from(*count)).sum()
    }

    /// How many arrived more than once.
    pub fn twice(&self) -> usize {
        self.counts.values().filter(|count| **count > 1).count()
    }
}

/// A sink that sends every datagram of [`Flows`] back to where it came from.
pub struct Echo {
    arrived: Arc<Mutex<Arrived>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// On `sink`; datagrams that are not of [`Flows`] are passed to `others` with their source address.
    pub fn start(sink: &UdpSocket, mut others: impl FnMut(&UdpSocket, &[u8], SocketAddr) + Send + 'static) -> Echo {
        let sink = sink.try_clone().unwrap();
        sink.set_nonblocking(false).unwrap();
        sink.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        sys::size_receive_buffer(&sink, BUFFER).unwrap();
        let (arrived, stop) = (Arc::<Mutex<Arrived>>::default(), Arc::<AtomicBool>::default());
        let (seen, ended) = (arrived.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !ended.load(Ordering::Relaxed) {
                let Ok((len, from)) = sink.recv_from(&mut buffer) else { continue };
                if seen.lock().unwrap().add(&buffer[..len], from) {
                    sink.send_to(&buffer[..len], from).unwrap();
                } else {
                    others(&sink, &buffer[..len], from);
                }
            }
        });
        Echo { arrived, stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Clients with a flow each, and the sink that echoes them.
pub struct Flows {
    clients: Vec<UdpSocket>,
    to: SocketAddr,
    /// In front of every datagram: the destination, at a pymix port.
    header: Vec<u8>,
    next: Vec<u32>,
    echo: Arc<Echo>,
    /// Length of what was sent since [`Flows::begin`], by flow and number.
    pub sent: HashMap<(u16, u32), usize>,
    /// What has come back.
    pub back: Arrived,
}

impl Flows {
    /// Clients numbered from `first`, which send to `to`.
    pub fn new(first: u16, count: usize, to: SocketAddr, header: &[u8], echo: &Arc<Echo>) -> Flows {
        let client = |_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            sys::size_receive_buffer(&socket, BUFFER).unwrap();
            socket
        };
        let mut next = vec![0; usize::from(first)];
        next.resize(usize::from(first) + count, 0);
        let (header, echo) = (header.to_vec(), echo.clone());
        let clients = (0..next.len()).map(client).collect();
        Flows { clients, to, header, next, echo, sent: HashMap::new(), back: Arrived::default() }
    }

    /// Sends the next datagram of a flow.
    pub fn send(&mut self, flow: u16, len: usize) {
        let number = self.next[usize::from(flow)];
        self.next[usize::from(flow)] += 1;
        let bytes = [&self.header[..], &datagram(flow, number, len)].concat();
        self.clients[usize::from(flow)].send_to(&bytes, self.to).unwrap();
        self.sent.insert((flow, number), len);
    }

    /// Receives what has come back.
    pub fn receive(&mut self) {
        let mut buffer = [0; 1 << 14];
        for client in &self.clients {
            while_receiving(client, &mut buffer, |bytes, from| {
                self.back.add(bytes, from);
            });
        }
    }

    /// Counts from here.
    pub fn begin(&mut self) {
        self.sent.clear();
    }

    /// What has arrived at the sink.
    pub fn there<T>(&self, look: impl FnOnce(&Arrived) -> T) -> T {
        look(&self.echo.arrived.lock().unwrap())
    }

    /// Waits until everything sent since [`Flows::begin`] has come back, or nothing has come to either end for a while.
    pub fn settle(&mut self) {
        until("the flows are quiet", || {
            self.receive();
            let last = self.there(|there| there.last).max(self.back.last);
            self.lost() == 0 || last.is_none_or(|last| last.elapsed() > QUIET)
        });
    }

    /// How many datagrams of those sent since [`Flows::begin`] have not come back.
    pub fn lost(&self) -> u64 {
        self.sent.keys().filter(|which| !self.back.counts.contains_key(*which)).count() as u64
    }

    /// Of what was sent since [`Flows::begin`] with this length: how many, how many arrived, how many came back.
    pub fn delivered(&self, len: usize) -> [u64; 3] {
        let sent = || self.sent.iter().filter(|(_, of)| **of == len).map(|(which, _)| which);
        let there = self.there(|there| sent().filter(|which| there.counts.contains_key(which)).count());
        let back = sent().filter(|which| self.back.counts.contains_key(which)).count();
        [sent().count(), there, back].map(|count| count as u64)
    }

    /// Nothing arrived twice or altered, at either end.
    pub fn assert_once_and_whole(&self) {
        let there = self.there(|there| (there.twice(), there.broken));
        assert_eq!((there, (self.back.twice(), self.back.broken)), ((0, 0), (0, 0)), "delivered twice, altered");
    }

    /// Sends on every flow of `flows` repeatedly until each has an answer to a datagram sent from now on. Returns how
    /// long that took, and how many datagrams.
    pub fn until_answered(&mut self, flows: std::ops::Range<u16>, len: usize) -> (Duration, u64) {
        const AGAIN: Duration = Duration::from_millis(200);
        let began = Instant::now();
        let from = self.next.clone();
        let mut last: HashMap<u16, Instant> = HashMap::new();
        let mut count = 0;
        let mut waiting: Vec<u16> = flows.collect();
        until("every flow is answered", || {
            self.receive();
            waiting.retain(|flow| {
                let numbers = from[usize::from(*flow)]..self.next[usize::from(*flow)];
                !numbers.clone().any(|number| self.back.counts.contains_key(&(*flow, number)))
            });
            for &flow in &waiting {
                if last.get(&flow).is_none_or(|last| last.elapsed() > AGAIN) {
                    last.insert(flow, Instant::now());
                    self.send(flow, len);
                    count += 1;
                }
            }
            waiting.is_empty()
        });
        (began.elapsed(), count)
    }
}
