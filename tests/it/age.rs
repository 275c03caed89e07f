//! Age: a node that did not run for a while drops what waited in the meantime, and a mix that ends sends what it holds.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::common::nodes::{Nodes, PATIENCE, Plan, until};
use crate::common::process::tallies;
use crate::robustness::{next, there_and_back};

/// Maximum age in these chains: the default.
const MAX_AGE: Duration = Duration::from_millis(eddy_node::config::MAX_AGE_MS);
/// Time between two datagrams.
const PACE: Duration = Duration::from_millis(5);

/// A datagram that has arrived.
#[derive(Clone, Copy)]
struct Arrival {
    sent: Instant,
    arrived: Instant,
}

/// A client that sends a datagram every [`PACE`], and a sink that sends each back. A datagram contains its number, for
/// which the time of sending is known.
struct Clocked {
    sent: Arc<Mutex<Vec<Instant>>>,
    /// At the sink, and at the client.
    arrivals: [Arc<Mutex<Vec<Arrival>>>; 2],
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clocked {
    fn start(to: SocketAddr, sink: &UdpSocket) -> Clocked {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (sent, stop) = (Arc::<Mutex<Vec<Instant>>>::default(), Arc::<AtomicBool>::default());
        let arrivals = [Arc::<Mutex<Vec<Arrival>>>::default(), Arc::default()];
        let receiver = |socket: &UdpSocket, arrivals: &Arc<Mutex<Vec<Arrival>>>, answers: bool| {
            let (socket, arrivals) = (socket.try_clone().unwrap(), arrivals.clone());
            let (sent, stop) = (sent.clone(), stop.clone());
            socket.set_nonblocking(false).unwrap();
            socket.set_read_timeout(Some(PACE)).unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while !stop.load(Ordering::Acquire) {
                    let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
                    let arrived = Instant::now();
                    let Ok(number) = buffer[..len].try_into().map(u64::from_be_bytes) else { continue };
                    arrivals.lock().unwrap().push(Arrival { sent: sent.lock().unwrap()[number as usize], arrived });
                    if answers {
                        let _ = socket.send_to(&buffer[..len], from);
                    }
                }
            })
        };
        let mut threads = vec![receiver(sink, &arrivals[0], true), receiver(&client, &arrivals[1], false)];
        let (times, stopped) = (sent.clone(), stop.clone());
        threads.push(std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let number = {
                    let mut times = times.lock().unwrap();
                    times.push(Instant::now());
                    times.len() as u64 - 1
                };
                let _ = client.send_to(&number.to_be_bytes(), to);
                std::thread::sleep(PACE);
            }
        }));
        Clocked { sent, arrivals, stop, threads }
    }

    /// Waits for the answer to a datagram that was sent after `time`. Returns when it came.
    fn answered_since(&self, time: Instant) -> Instant {
        let mut first = None;
        until("a datagram is answered", || {
            first = self.arrivals[1].lock().unwrap().iter().find(|arrival| arrival.sent > time).copied();
            first.is_some()
        });
        first.expect("just seen").arrived
    }

    /// Datagrams at each end that arrived after `time` and were sent more than the maximum age before it.
    fn aged(&self, time: Instant) -> [usize; 2] {
        let is_aged = |arrival: &&Arrival| arrival.arrived > time && arrival.sent + MAX_AGE < time;
        [0, 1].map(|end: usize| self.arrivals[end].lock().unwrap().iter().filter(is_aged).count())
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Release);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.sent.lock().unwrap().len()
    }
}

/// What a node has dropped as aged, in both units and directions.
fn dropped_as_aged(report: &Value) -> u64 {
    tallies(report).map(|tally| tally["dropped"]["aged"].as_u64().unwrap_or(0)).sum()
}

/// Stops each node in turn under traffic, and returns how long the flow then took to go on.
fn stop_each_node(time: Duration) -> Vec<Duration> {
    let mut nodes = Nodes::start(Plan { max_age_ms: eddy_node::config::MAX_AGE_MS, ..Plan::default() });
    let traffic = Clocked::start(nodes.forward(), &nodes.sink);
    let mut gaps = Vec::new();
    for position in nodes.positions() {
        traffic.answered_since(Instant::now());
        nodes.signal(position, Signal::STOP);
        // The time is what is tested.
        std::thread::sleep(time);
        let continued = Instant::now();
        nodes.signal(position, Signal::CONT);
        let answered = traffic.answered_since(continued);
        gaps.push(answered.duration_since(continued));
        until("the node reports", || nodes.try_status(position).is_some_and(|report| dropped_as_aged(&report) > 0));
        // A node may be stopped between its look at the clock and the send call, which has one datagram at this pace.
        let aged = traffic.aged(continued);
        assert!(
            aged.iter().all(|count| *count <= 1),
            "node {position} delivered what had waited for {time:?}: {aged:?}"
        );
    }
    println!("of {} datagrams; the flow went on after {gaps:?}", traffic.end());
    nodes.wait_for_channels();
    nodes.end();
    gaps
}

#[test]
fn stopped_node_delivers_nothing_aged() {
    stop_each_node(Duration::from_secs(3));
}

#[test]
#[ignore = "takes two minutes, and a machine that does nothing else"]
fn flows_go_on_within_15_s_of_a_stop_of_10_s() {
    let gaps = stop_each_node(Duration::from_secs(10));
    assert!(gaps.iter().all(|gap| *gap < Duration::from_secs(15)), "{gaps:?}");
}

#[test]
fn mix_drains_its_pool_at_sigterm() {
    const COUNT: u64 = 20;
    // Long enough that a pool holds the cells when the signal comes.
    let mixing = "timed:t=3s".parse().unwrap();
    let mut nodes = Nodes::start(Plan { mixes: 1, mixing, channels: 1, ..Plan::quiet() });
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let exit = there_and_back(&nodes, &client, b"the flow is open");

    let before = [0, 2].map(|position| nodes.status(position));
    for number in 0..COUNT {
        client.send_to(&number.to_be_bytes(), nodes.forward()).unwrap();
        nodes.sink.send_to(&number.to_be_bytes(), exit).unwrap();
    }
    let number = |of: &Value, pointer: &str| of.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    until("all cells are in the mix", || {
        [(0, 0, "forward"), (1, 2, "backward")].into_iter().all(|(at, position, direction)| {
            let (consumed, [sent, received]) = (
                format!("/ledger/datagrams/{direction}/consumed"),
                ["sent", "received"].map(|name| format!("/ledger/cells/{direction}/{name}")),
            );
            let end = nodes.status(position);
            number(&end, &consumed) >= number(&before[at], &consumed) + COUNT
                && nodes.count(1, &received) >= number(&end, &sent)
        })
    });
    nodes.stop(1);

    let (_, report) = nodes.reports.last().expect("it has ended");
    assert!(tallies(report).all(|tally| tally["dropped"].get("shutdown").is_none()), "{report:#}");
    for wanted in 0..COUNT {
        assert_eq!(next(&nodes.sink).0, wanted.to_be_bytes());
        assert_eq!(next(&client).0, wanted.to_be_bytes());
    }
    nodes.end();
}
