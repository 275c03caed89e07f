//! Traffic: numbered datagrams from several clients through a forward to a sink, which answers each. Every datagram is
//! checked to the last byte and counted at both ends.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::sys;

use super::nodes::{PATIENCE, PROBE, while_receiving};

/// Shape of the traffic.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub flows: u32,
    /// Datagrams per second, all flows together; fewer where [`Load::under_way`] does not permit more.
    pub rate: u32,
    /// Bytes per datagram, 12 at least.
    pub len: usize,
    /// Datagrams that may be on their way at the same time. The default number of cells fits into every socket's
    /// default buffer, so that the kernel drops none, however busy the machine is.
    pub under_way: u64,
    /// The sink sends every datagram back.
    pub answers: bool,
}

impl Default for Load {
    fn default() -> Load {
        Load { flows: 4, rate: 300, len: 100, under_way: 64, answers: true }
    }
}

/// Counters of both ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub sent: u64,
    /// Arrived at the sink for the first time.
    pub delivered: u64,
    /// Arrived back at the client that had sent them, for the first time.
    pub answered: u64,
    /// Arrived again, at either end.
    pub again: u64,
    /// Arrived behind a later one of their flow, at either end.
    pub reordered: u64,
    /// Of these, the longest time for which a later one was there already.
    pub late_max: Duration,
    /// Arrived and were never sent.
    pub strange: u64,
    /// What the kernel has dropped at the sockets of both ends.
    pub kernel_drops: u64,
}

impl Counts {
    /// Everything arrived there and back, once and in order.
    pub fn assert_whole(&self) {
        let all = Counts { sent: self.sent, delivered: self.sent, answered: self.sent, ..Counts::default() };
        assert_eq!(*self, all, "all datagrams arrive and are answered, once and in order");
    }
}

/// The numbers that have arrived at one end.
#[derive(Default)]
struct Arrivals {
    seen: HashSet<(u32, u64)>,
    /// The latest arrivals of each flow that were its highest numbers then, with their times.
    records: HashMap<u32, VecDeque<(u64, Instant)>>,
}

/// Arrivals of a flow that are remembered: as many as may be under way.
const RECORDS_MAX: usize = 8192;

impl Arrivals {
    /// Counts an arrival; true for the first of its number.
    fn add(&mut self, which: Option<(u32, u64)>, counts: &mut Counts) -> bool {
        let Some((flow, number)) = which else {
            counts.strange += 1;
            return false;
        };
        let first = self.seen.insert((flow, number));
        counts.again += u64::from(!first);
        let records = self.records.entry(flow).or_default();
        let overtaken = records.partition_point(|(record, _)| *record < number);
        match records.get(overtaken) {
            Some((_, at)) if first => {
                counts.reordered += 1;
                counts.late_max = counts.late_max.max(at.elapsed());
            }
            Some(_) => {}
            None => {
                records.push_back((number, Instant::now()));
                if records.len() > RECORDS_MAX {
                    records.pop_front();
                }
            }
        }
        first
    }
}

/// Running traffic.
pub struct Traffic {
    counts: Arc<Mutex<Counts>>,
    stop: Arc<AtomicBool>,
    end: Arc<AtomicBool>,
    client: JoinHandle<()>,
    sink: JoinHandle<()>,
}

/// Nothing more arrives when nothing has arrived for this long.
const QUIET: Duration = Duration::from_secs(5);
/// What has not arrived by then no longer counts as under way.
const OVERDUE: Duration = Duration::from_secs(1);
/// Receive buffer of each socket, where the system grants it.
const BUFFER: usize = 8 << 20;

fn payload(flow: u32, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(flow.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes.extend((12..len).map(|i| (number as u8).wrapping_mul(31).wrapping_add(i as u8)));
    bytes
}

/// Flow and number, if these are the bytes of that datagram.
fn recognise(bytes: &[u8]) -> Option<(u32, u64)> {
    let flow = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?);
    let number = u64::from_be_bytes(bytes.get(4..12)?.try_into().ok()?);
    (payload(flow, number, bytes.len()) == bytes).then_some((flow, number))
}

impl Traffic {
    /// Starts to send to `to`, until stopped; what the exit delivers is expected at `sink`.
    pub fn start(to: SocketAddr, sink: &UdpSocket, load: Load) -> Traffic {
        Traffic::limited(to, sink, load, u64::MAX)
    }

    /// Sends `count` datagrams and waits for them.
    pub fn exchange(to: SocketAddr, sink: &UdpSocket, load: Load, count: u64) -> Counts {
        Traffic::limited(to, sink, load, count).finish()
    }

    fn limited(to: SocketAddr, sink: &UdpSocket, load: Load, count: u64) -> Traffic {
        let counts = Arc::<Mutex<Counts>>::default();
        let [stop, end] = [Arc::<AtomicBool>::default(), Arc::default()];
        let socket = sink.try_clone().unwrap();
        let (counted, ended) = (counts.clone(), end.clone());
        let sink = std::thread::spawn(move || answer(&socket, load, &counted, &ended));
        let (counted, stopped) = (counts.clone(), stop.clone());
        let client = std::thread::spawn(move || Client::new(to, load).run(count, &counted, &stopped));
        Traffic { counts, stop, end, client, sink }
    }

    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap()
    }

    /// Sends no more, waits for what is on its way, and returns what became of it all.
    pub fn stop(self) -> Counts {
        self.stop.store(true, Ordering::Release);
        self.finish()
    }

    fn finish(self) -> Counts {
        self.client.join().expect("the client lives");
        self.end.store(true, Ordering::Release);
        self.sink.join().expect("the sink lives");
        *self.counts.lock().unwrap()
    }
}

fn answer(sink: &UdpSocket, load: Load, counts: &Mutex<Counts>, ended: &AtomicBool) {
    sink.set_nonblocking(false).unwrap();
    sink.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    sys::size_receive_buffer(sink, BUFFER).unwrap();
    let mut arrivals = Arrivals::default();
    let mut buffer = vec![0; 1 << 16];
    while !ended.load(Ordering::Acquire) {
        let Ok((len, from)) = sink.recv_from(&mut buffer) else { continue };
        if buffer.starts_with(PROBE) {
            continue;
        }
        let which = recognise(&buffer[..len]).filter(|_| len == load.len);
        let mut counts = counts.lock().unwrap();
        counts.delivered += u64::from(arrivals.add(which, &mut counts));
        drop(counts);
        if load.answers && which.is_some() {
            let _ = sink.send_to(&buffer[..len], from);
        }
    }
    counts.lock().unwrap().kernel_drops += sys::kernel_drops(sink).unwrap();
    sink.set_read_timeout(Some(PATIENCE)).unwrap();
}

struct Client {
    to: SocketAddr,
    load: Load,
    sockets: Vec<UdpSocket>,
    arrivals: Arrivals,
}

impl Client {
    fn new(to: SocketAddr, load: Load) -> Client {
        let socket = |_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            sys::size_receive_buffer(&socket, BUFFER).unwrap();
            socket
        };
        Client { to, load, sockets: (0..load.flows).map(socket).collect(), arrivals: Arrivals::default() }
    }

    fn run(mut self, limit: u64, counts: &Mutex<Counts>, stopped: &AtomicBool) {
        let began = Instant::now();
        // Arrived by then, and what did not and is not waited for.
        let (mut arrived, mut overdue, mut last) = (0, 0, Instant::now());
        loop {
            let stop = stopped.load(Ordering::Acquire);
            let due = if stop { 0 } else { (began.elapsed().as_secs_f64() * f64::from(self.load.rate)) as u64 };
            self.send(due.min(limit), arrived + overdue, counts);
            self.receive(counts);
            let now = *counts.lock().unwrap();
            let count = if self.load.answers { now.answered } else { now.delivered };
            if count > arrived {
                (arrived, last) = (count, Instant::now());
            }
            let missing = now.sent - arrived;
            overdue = if last.elapsed() > OVERDUE { missing } else { missing.min(overdue) };
            let done = stop || now.sent >= limit;
            if done && (arrived >= now.sent || last.elapsed() > QUIET) {
                let dropped = self.sockets.iter().map(|socket| sys::kernel_drops(socket).unwrap());
                counts.lock().unwrap().kernel_drops += dropped.sum::<u64>();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends what is due, as far as what is under way permits.
    fn send(&self, due: u64, arrived: u64, counts: &Mutex<Counts>) {
        let mut number = counts.lock().unwrap().sent;
        while number < due.min(arrived.saturating_add(self.load.under_way)) {
            let flow = (number % u64::from(self.load.flows)) as u32;
            // Counted before it leaves: what arrives was sent.
            counts.lock().unwrap().sent += 1;
            let socket = &self.sockets[flow as usize];
            if socket.send_to(&payload(flow, number, self.load.len), self.to).is_err() {
                counts.lock().unwrap().sent -= 1;
                return;
            }
            number += 1;
        }
    }

    fn receive(&mut self, counts: &Mutex<Counts>) {
        let mut buffer = [0; 1 << 14];
        for (flow, socket) in (0..).zip(&self.sockets) {
            while_receiving(socket, &mut buffer, |bytes, from| {
                // Late answers to probes come here if their client had this port.
                if bytes.starts_with(PROBE) {
                    return;
                }
                let which = recognise(bytes).filter(|which| which.0 == flow && from == self.to);
                let mut counts = counts.lock().unwrap();
                counts.answered += u64::from(self.arrivals.add(which, &mut counts));
            });
        }
    }
}
