//! Well-behaved traffic that goes on meanwhile: numbered datagrams through the forward, each answered by the
//! sink, each checked to the last byte, counted at both ends.

use std::collections::HashSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::nodes::PROBE;

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub sent: u64,
    /// Arrived at the sink for the first time.
    pub delivered: u64,
    /// Arrived back at the client that had sent them, for the first time.
    pub answered: u64,
    /// Arrived again, at either end.
    pub again: u64,
    /// Arrived and are not what anybody sent.
    pub strange: u64,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub flows: u32,
    /// Datagrams per second, all flows together.
    pub rate: u32,
    /// Bytes per datagram, 12 at least.
    pub len: usize,
}

/// Running traffic.
pub struct Steady {
    counts: Arc<Mutex<Counts>>,
    ends: [Arc<AtomicBool>; 2],
    client: JoinHandle<()>,
    sink: JoinHandle<()>,
}

/// How long the last answers may take.
const STRAGGLERS: Duration = Duration::from_secs(3);

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

impl Steady {
    /// Starts to send to `to`; what the exit delivers is expected at `sink`.
    pub fn start(to: SocketAddr, sink: &UdpSocket, load: Load) -> Steady {
        let counts = Arc::<Mutex<Counts>>::default();
        let ends = [Arc::<AtomicBool>::default(), Arc::default()];
        let socket = sink.try_clone().unwrap();
        socket.set_nonblocking(true).unwrap();
        let (told, count) = (ends[1].clone(), counts.clone());
        let sink = std::thread::spawn(move || answer(&socket, load.len, &count, &told));
        let (told, count) = (ends[0].clone(), counts.clone());
        let client = std::thread::spawn(move || send(to, load, &count, &told));
        Steady { counts, ends, client, sink }
    }

    /// What has come of it so far.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().unwrap()
    }

    /// Sends no more, waits for what is on its way, and tells what came of it all.
    pub fn stop(self) -> Counts {
        self.ends[0].store(true, Ordering::Release);
        self.client.join().expect("the client lives");
        self.ends[1].store(true, Ordering::Release);
        self.sink.join().expect("the sink lives");
        *self.counts.lock().unwrap()
    }
}

fn answer(sink: &UdpSocket, len: usize, counts: &Mutex<Counts>, told: &AtomicBool) {
    let mut seen = HashSet::new();
    let mut buffer = vec![0; 1 << 16];
    while !told.load(Ordering::Acquire) {
        while let Ok((got, from)) = sink.recv_from(&mut buffer) {
            if buffer.starts_with(PROBE) {
                continue;
            }
            let known = recognise(&buffer[..got]).filter(|_| got == len);
            let mut counts = counts.lock().unwrap();
            match known {
                Some(which) if seen.insert(which) => counts.delivered += 1,
                Some(_) => counts.again += 1,
                None => counts.strange += 1,
            }
            drop(counts);
            if known.is_some() {
                let _ = sink.send_to(&buffer[..got], from);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    sink.set_nonblocking(false).unwrap();
}

fn send(to: SocketAddr, load: Load, counts: &Mutex<Counts>, told: &AtomicBool) {
    let sockets: Vec<UdpSocket> = (0..load.flows)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        })
        .collect();
    let mut seen = HashSet::new();
    let mut buffer = vec![0; 1 << 16];
    let began = Instant::now();
    let mut number = 0;
    let mut quiet_since = None;
    loop {
        let stopped = told.load(Ordering::Acquire);
        if !stopped {
            let due = (began.elapsed().as_secs_f64() * f64::from(load.rate)) as u64;
            while number < due {
                let flow = (number % u64::from(load.flows)) as u32;
                if sockets[flow as usize].send_to(&payload(flow, number, load.len), to).is_ok() {
                    counts.lock().unwrap().sent += 1;
                }
                number += 1;
            }
        }
        let mut got_any = false;
        for (flow, socket) in sockets.iter().enumerate() {
            while let Ok((got, from)) = socket.recv_from(&mut buffer) {
                got_any = true;
                let known = recognise(&buffer[..got]).filter(|which| which.0 as usize == flow && from == to);
                let mut counts = counts.lock().unwrap();
                match known {
                    Some(which) if seen.insert(which) => counts.answered += 1,
                    Some(_) => counts.again += 1,
                    None => counts.strange += 1,
                }
            }
        }
        if stopped {
            let since = *quiet_since.get_or_insert_with(Instant::now);
            let counts = *counts.lock().unwrap();
            if got_any {
                quiet_since = Some(Instant::now());
            } else if counts.answered >= counts.sent || since.elapsed() > STRAGGLERS {
                return;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
