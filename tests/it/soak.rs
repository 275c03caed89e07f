//! Everything at once: bad links and hostile taps on every link, strangers at every port, senders and receivers
//! that come and go, and a random node restarted every minute.
//!
//! `cargo test` runs it for a little while; `.ci/soak.sh` runs it for half an hour and prints the record that
//! is kept in docs/BENCHMARKS.md. The exit admits loopback alone, which [`Nodes::start`] proves; the script adds a
//! network namespace without a route where it may make one.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use wire::cell::Direction::{Backward, Forward};

use crate::common::attack::{Material, Port, below};
use crate::common::nodes::{Nodes, PROBE, Plan};
use crate::common::process::{exclusive, tallies};
use crate::common::tap::Faults;
use crate::common::traffic::{Load, Traffic};

const MIB: f64 = (1 << 20) as f64;

/// The faults of every link, both ways.
const LINKS: Faults = Faults {
    drop: 0.05,
    duplicate: 0.05,
    reorder: 0.2,
    reorder_by: Duration::from_millis(50),
    mutate: 0.01,
    truncate: 0.005,
    extend: 0.005,
    delay: Duration::ZERO,
    replay: 0.02,
    elsewhere: 0.01,
};

/// One process of a node: how long it lived and how much memory and how many descriptors it had.
#[derive(Clone, Copy, Debug)]
struct Life {
    position: usize,
    began: Instant,
    lived: Duration,
    /// Resident bytes once it had settled, and at the end.
    memory: Option<(u64, u64)>,
    descriptors: usize,
}

/// When a node's memory is first looked at: caches and tables are warm by then.
const SETTLED: Duration = Duration::from_secs(20);
/// A settled node may grow by this much: pages that an allocator keeps, tables that are fuller than before.
const GROWTH_MAX: u64 = 4 << 20;

/// A thread that sends until it is stopped, and counts what it sends.
struct Background {
    name: &'static str,
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Background {
    /// Calls `act` at `rate` per second; it returns how many datagrams it sent.
    fn start(name: &'static str, rate: u64, mut act: impl FnMut() -> u64 + Send + 'static) -> Background {
        let (count, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, told) = (count.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let began = Instant::now();
            let mut done = 0;
            while !told.load(Ordering::Relaxed) {
                while done < (began.elapsed().as_secs_f64() * rate as f64) as u64 {
                    counted.fetch_add(act(), Ordering::Relaxed);
                    done += 1;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Background { name, count, stop, thread }
    }

    fn stop(self) -> (&'static str, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| panic!("{} died", self.name));
        (self.name, self.count.load(Ordering::Relaxed))
    }
}

fn any() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Strangers at every link port: recorded datagrams mutated, noise of every length.
fn strangers(ports: Vec<Port>, material: Arc<Mutex<Vec<Material>>>) -> Background {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let mut socket = any();
    Background::start("strangers' datagrams at link ports", 1000, move || {
        if below(&mut rng, 100) == 0 {
            socket = any();
        }
        let port = ports[below(&mut rng, ports.len())];
        let material = material.lock().unwrap();
        let bytes = if below(&mut rng, 4) == 0 {
            let mut bytes = vec![0; below(&mut rng, 2000) * [1, 1, 1, 30][below(&mut rng, 4)]];
            rng.fill_bytes(&mut bytes);
            bytes
        } else {
            material[below(&mut rng, material.len())].draw(&mut rng)
        };
        u64::from(socket.send_to(&bytes, port.address).is_ok())
    })
}

/// Clients that come, send a few datagrams of any size, and go without reading answers.
fn passers_by(forward: SocketAddr, pymix: SocketAddr) -> Background {
    let mut rng = ChaCha20Rng::seed_from_u64(2);
    let mut open: Vec<UdpSocket> = Vec::new();
    let mut gone: Vec<SocketAddr> = Vec::new();
    Background::start("datagrams of clients that come and go", 300, move || {
        if open.len() < 20 || below(&mut rng, 20) == 0 {
            open.push(any());
        }
        if open.len() > 40 {
            open.swap_remove(below(&mut rng, 40));
        }
        let client = &open[below(&mut rng, open.len())];
        let longest = [30, 200, 1500, 9000][below(&mut rng, 4)];
        let mut bytes = vec![0; below(&mut rng, longest)];
        rng.fill_bytes(&mut bytes);
        let sent = match below(&mut rng, 4) {
            // Whatever the first six bytes say: the policy refuses nearly all of it.
            0 => client.send_to(&bytes, pymix),
            // A receiver that was there a moment ago, and one that listens.
            1 => {
                if gone.len() < 10 || below(&mut rng, 50) == 0 {
                    gone.push(any().local_addr().unwrap());
                    gone.truncate(20);
                }
                let SocketAddr::V4(to) = gone[below(&mut rng, gone.len())] else { panic!("IPv4") };
                client.send_to(&[&to.ip().octets()[..], &to.port().to_be_bytes(), &bytes].concat(), pymix)
            }
            // Port 0, nothing, less than a header.
            2 => client.send_to(&[127, 0, 0, 1, 0, 0, 1][..below(&mut rng, 8)], pymix),
            // To the sink, which does not count these.
            _ => client.send_to(&[PROBE, &bytes].concat(), forward),
        };
        u64::from(sent.is_ok())
    })
}

fn soak(time: Duration, restart_every: Duration) {
    let _lock = exclusive();
    // Flows are forgotten soon, links and channels renewed often: everything that can end does.
    let idle = |position| (position, "flow_idle_s = 5".to_owned());
    let mut nodes = Nodes::start(Plan {
        taps: true,
        mixes: 3,
        channels: 4,
        renew_after_s: 10,
        extra: vec![idle(0), idle(4)],
        ..Plan::default()
    });
    nodes.assert_carries();
    for (i, tap) in nodes.taps.iter().enumerate() {
        tap.keep(2000);
        tap.elsewhere(&nodes.taps[(i + 1) % nodes.taps.len()]);
        tap.set_both(LINKS);
    }
    let ports = Port::all(&nodes);
    let learn = |nodes: &Nodes| ports.iter().map(|port| Material::of(*port, &nodes.taps)).collect::<Vec<_>>();
    let material = Arc::new(Mutex::new(learn(&nodes)));
    let traffic = Traffic::start(
        nodes.forward(),
        &nodes.sink,
        Load { flows: 8, rate: 200, under_way: u64::MAX, ..Load::default() },
    );
    let background = [strangers(ports.clone(), material.clone()), passers_by(nodes.forward(), nodes.pymix())];

    let mut rng = ChaCha20Rng::seed_from_u64(3);
    let began = Instant::now();
    let born = |position| Life { position, began: Instant::now(), lived: Duration::ZERO, memory: None, descriptors: 0 };
    let mut lives: Vec<Life> = nodes.positions().map(born).collect();
    let mut ended: Vec<Life> = Vec::new();
    let (mut terminated, mut killed) = (0, 0);
    let mut restart_due = began + restart_every;
    while began.elapsed() < time {
        std::thread::sleep(Duration::from_secs(1));
        for life in &mut lives {
            let position = life.position;
            assert!(nodes.is_alive(position), "node {position} died: {:#?}", nodes.said(position));
            life.lived = life.began.elapsed();
            life.descriptors = nodes.descriptors(position);
            if life.lived > SETTLED {
                let now = nodes.resident(position);
                life.memory = Some((life.memory.map_or(now, |(settled, _)| settled), now));
            }
        }
        if Instant::now() > restart_due {
            *material.lock().unwrap() = learn(&nodes);
            restart_due += restart_every;
            let position = below(&mut rng, nodes.exit() + 1);
            if below(&mut rng, 2) == 0 {
                terminated += 1;
                nodes.stop(position);
            } else {
                killed += 1;
                nodes.kill(position);
            }
            nodes.run(position);
            ended.push(std::mem::replace(&mut lives[position], born(position)));
        }
        if began.elapsed().as_secs().is_multiple_of(60) {
            println!("{:>5} s: {:?}, {} restarts", began.elapsed().as_secs(), traffic.counts(), ended.len());
        }
    }

    let background = background.map(Background::stop);
    nodes.taps.iter().for_each(|tap| tap.set_both(Faults::default()));
    let counts = traffic.stop();
    nodes.assert_carries();
    let links: Vec<String> =
        nodes.taps.iter().map(|tap| (tap.passed(Forward) + tap.passed(Backward)).to_string()).collect();
    nodes.end();
    ended.extend(lives);

    record(time, &nodes, &ended, (terminated, killed), &background, &counts, &links);
    assert_eq!((counts.again, counts.strange), (0, 0), "{counts:?}");
    // Eight crossings of links that lose and spoil a fifteenth leave more than a half; restarts cost the rest.
    assert!(counts.answered * 5 > counts.sent, "{counts:?}");
    for life in &ended {
        if let Some((settled, last)) = life.memory {
            assert!(last <= settled + GROWTH_MAX, "memory of node {} grew from {settled} to {last}", life.position);
        }
        assert!(life.descriptors < 400, "{life:?}");
    }
}

/// Prints the record of docs/BENCHMARKS.md.
fn record(
    time: Duration,
    nodes: &Nodes,
    lives: &[Life],
    (terminated, killed): (u32, u32),
    background: &[(&'static str, u64)],
    counts: &crate::common::traffic::Counts,
    links: &[String],
) {
    println!("\n| | |\n| --- | --- |");
    println!("| time | {} s |", time.as_secs());
    println!("| restarts | {terminated} by SIGTERM, {killed} by SIGKILL |");
    println!("| crashes | 0 |");
    let closed = nodes.reports.len();
    println!("| ledgers closed | {closed} of {closed}: every process that ended by SIGTERM |");
    println!("| datagrams that came to the taps of links 1 to {} | {} |", links.len(), links.join(", "));
    for (name, count) in background {
        println!("| {name} | {count} |");
    }
    println!(
        "| well-behaved flows | {} sent, {} delivered, {} answered, {} twice, {} altered |",
        counts.sent, counts.delivered, counts.answered, counts.again, counts.strange
    );
    println!(
        "\n| node | processes | longest life, s | memory settled, MiB | at its end | most growth of any | descriptors |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for position in nodes.positions() {
        let of: Vec<&Life> = lives.iter().filter(|life| life.position == position).collect();
        let longest = of.iter().max_by_key(|life| life.lived).expect("it ran");
        let (settled, last) = longest.memory.unwrap_or_default();
        let growth = of.iter().filter_map(|life| life.memory).map(|(from, to)| to as i64 - from as i64).max();
        println!(
            "| {position} | {} | {} | {:.1} | {:.1} | {:+.1} | {} |",
            of.len(),
            longest.lived.as_secs(),
            settled as f64 / MIB,
            last as f64 / MIB,
            growth.unwrap_or_default() as f64 / MIB,
            of.iter().map(|life| life.descriptors).max().unwrap_or_default()
        );
    }
    println!("\n| node | why it dropped cells and datagrams, all processes that ended by SIGTERM |\n| --- | --- |");
    for position in nodes.positions() {
        let mut reasons = std::collections::BTreeMap::<String, u64>::new();
        for (_, report) in nodes.reports.iter().filter(|(of, _)| *of == position) {
            let dropped = tallies(report).filter_map(|tally| tally["dropped"].as_object());
            for (reason, count) in dropped.chain(report["refused"].as_object()).flatten() {
                *reasons.entry(reason.clone()).or_default() += count.as_u64().unwrap_or(0);
            }
        }
        let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        println!("| {position} | {} |", reasons.join(", "));
    }
}

#[test]
fn short_soak_crashes_nothing_and_closes_ledgers() {
    soak(Duration::from_secs(20), Duration::from_secs(6));
}

#[test]
#[ignore = "takes half an hour: .ci/soak.sh runs it"]
fn long_soak_crashes_nothing_and_closes_ledgers() {
    let seconds = std::env::var("EDDY_SOAK_SECONDS").map_or(1800, |s| s.parse().unwrap());
    soak(Duration::from_secs(seconds), Duration::from_secs(60));
}
