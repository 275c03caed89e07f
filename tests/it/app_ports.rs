//! Application ports: every datagram is delivered or counted. Random datagrams from strangers at the entry's
//! listeners and the exit's flow sockets, and destinations that answer with floods.
//!
//! The exit's policy admits loopback alone, which `Nodes::start` has proved before anything random is sent.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dataplane::sys;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use serde_json::Value;

use crate::common::flows::{Echo, Flows};
use crate::common::network::run_without_routes;
use crate::common::nodes::{Nodes, Plan, until, while_receiving};
use crate::common::process::exclusive;

/// Random datagrams per port.
const RANDOM: usize = 20_000;
/// Sockets of strangers.
const STRANGERS: usize = 50;
/// Sent before the port is waited for, so that its receive buffer does not overflow.
const CHUNK: usize = 64;
/// The longest datagram that travels in class S.
const LONGEST: usize = 1600;
/// The longest that UDP has over IPv4.
const UDP_MAX: usize = 65_507;
/// Well-behaved flows.
const GOOD: u16 = 10;
/// The longest of their datagrams: one cell each, so that no timer of a reassembly decides.
const GOOD_LEN: usize = 150;

/// The UDP sockets of this network namespace by inode: local address as the kernel writes it, bytes that wait, and
/// datagrams dropped. One reading may miss or repeat a socket while others come and go.
fn sockets() -> HashMap<String, (String, u64, u64)> {
    let table = std::fs::read_to_string("/proc/net/udp").unwrap();
    let lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .map(|line| {
            let (_, waiting) = line[4].split_once(':').unwrap();
            let dropped = line.last().unwrap().parse().unwrap();
            (line[9].to_owned(), (line[1].to_owned(), u64::from_str_radix(waiting, 16).unwrap(), dropped))
        })
        .collect()
}

/// Bytes that wait at the sockets bound to these addresses, and datagrams that they have dropped.
fn kernel_queues(locals: &[SocketAddr]) -> (u64, u64) {
    let name = |local: &SocketAddr| {
        let IpAddr::V4(ip) = local.ip() else { panic!("{local} is not IPv4") };
        format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), local.port())
    };
    let names: Vec<String> = locals.iter().map(name).collect();
    let mut found = Vec::new();
    until("the kernel lists the sockets", || {
        found = sockets().into_values().filter(|(local, ..)| names.contains(local)).collect();
        found.len() == names.len()
    });
    (found.iter().map(|socket| socket.1).sum(), found.iter().map(|socket| socket.2).sum())
}

/// The local address of the exit's flow sockets: any.
fn any(port: u16) -> SocketAddr {
    ([0, 0, 0, 0], port).into()
}

fn random(rng: &mut ChaCha20Rng) -> Vec<u8> {
    let len = match rng.random_range(0..100) {
        0..70 => rng.random_range(0..=64),
        70..92 => rng.random_range(0..=LONGEST + 100),
        92..98 => rng.random_range(0..=12_000),
        _ => rng.random_range(0..=UDP_MAX),
    };
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// The sink's answers to datagrams that are not of the well-behaved flows.
#[derive(Default)]
struct Sink {
    /// Number of arrivals of each content.
    got: Mutex<HashMap<Vec<u8>, u64>>,
    /// The kind of its answers, see [`answers`].
    mode: AtomicU8,
    /// Answers sent.
    answered: AtomicU64,
}

/// Number and length of the datagrams that answer one.
fn answers(mode: u8) -> (u64, usize) {
    [(0, 0), (100, 100), (10, UDP_MAX), (100, 0)][usize::from(mode)]
}

impl Sink {
    fn take(&self, socket: &UdpSocket, bytes: &[u8], from: SocketAddr) {
        *self.got.lock().unwrap().entry(bytes.to_vec()).or_default() += 1;
        let (count, len) = answers(self.mode.load(Ordering::Relaxed));
        for _ in 0..count {
            socket.send_to(&vec![7; len], from).unwrap();
        }
        self.answered.fetch_add(count, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.got.lock().unwrap().values().sum()
    }
}

/// A chain, strangers, a sink, and flows that behave at both of the entry's ports.
struct Scene {
    nodes: Nodes,
    pids: Vec<u32>,
    strangers: Vec<UdpSocket>,
    sink: Arc<Sink>,
    rng: ChaCha20Rng,
    /// At the forward.
    forwarded: Flows,
    /// At the pymix port.
    pymixed: Flows,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let nodes = Nodes::start(Plan { channels: 4, seed, ..Plan::default() });
        let pids = nodes.positions().map(|position| nodes.pid(position)).collect();
        let sink = Arc::<Sink>::default();
        let hands = sink.clone();
        let echo = Arc::new(Echo::start(&nodes.sink, move |socket, bytes, from| hands.take(socket, bytes, from)));
        let header = pymix_header(nodes.sink.local_addr().unwrap());
        let mut forwarded = Flows::new(0, usize::from(GOOD), nodes.forward(), &[], &echo);
        let mut pymixed = Flows::new(GOOD, usize::from(GOOD), nodes.pymix(), &header, &echo);
        forwarded.until_answered(0..GOOD, 100);
        pymixed.until_answered(GOOD..2 * GOOD, 100);
        for flows in [&mut forwarded, &mut pymixed] {
            flows.settle();
            flows.begin();
        }
        // A worker publishes at the end of a turn: an answer may arrive before it is counted.
        let answers = forwarded.back.total() + pymixed.back.total();
        until("the entry has counted them", || nodes.count(0, "/ledger/datagrams/backward/sent") == answers);
        let client = |_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_nonblocking(true).unwrap();
            sys::size_receive_buffer(&socket, 32 << 20).unwrap();
            socket
        };
        let strangers = (0..STRANGERS).map(client).collect();
        Scene { nodes, pids, strangers, sink, rng: ChaCha20Rng::seed_from_u64(seed), forwarded, pymixed }
    }

    /// A counter of the entry's or the exit's datagrams.
    fn datagrams(&self, position: usize, pointer: &str) -> u64 {
        self.nodes.count(position, &format!("/ledger/datagrams/{pointer}"))
    }

    /// The kernel's drops at all sockets that the nodes watch.
    fn kernel_drops(&self) -> u64 {
        self.nodes.positions().map(|position| self.nodes.count(position, "/kernel_drops")).sum()
    }

    /// Datagrams from strangers to sockets bound to `locals`: some, then the good flows, until all is read.
    fn flood(&mut self, datagrams: impl Iterator<Item = (SocketAddr, Vec<u8>)>, locals: &[SocketAddr]) {
        for (i, (to, bytes)) in datagrams.enumerate() {
            self.strangers[i % STRANGERS].send_to(&bytes, to).unwrap();
            if i % CHUNK == 0 {
                let flow = (i / CHUNK) as u16 % GOOD;
                self.forwarded.send(flow, GOOD_LEN - i % 50);
                self.pymixed.send(GOOD + flow, GOOD_LEN - i % 50);
                while kernel_queues(locals).0 > 0 {
                    std::thread::yield_now();
                }
                self.forwarded.receive();
                self.pymixed.receive();
            }
        }
    }

    /// All that the good flows sent since the last time was answered; a kernel queue that overflowed excuses
    /// as many as it dropped.
    fn assert_good_flows(&mut self, kernel: u64) {
        for flows in [&mut self.forwarded, &mut self.pymixed] {
            flows.settle();
            let lost = flows.lost();
            println!("  good: {} sent, {lost} not answered, {kernel} dropped by the kernel", flows.sent.len());
            assert!(lost <= kernel, "{lost} datagrams of well-behaved flows were not answered, {kernel} kernel drops");
            flows.assert_once_and_whole();
            flows.begin();
        }
    }

    fn end(mut self) {
        let pids: Vec<u32> = self.nodes.positions().map(|position| self.nodes.pid(position)).collect();
        assert_eq!(pids, self.pids);
        self.nodes.end();
    }
}

fn pymix_header(to: SocketAddr) -> Vec<u8> {
    let IpAddr::V4(ip) = to.ip() else { panic!("{to} is not IPv4") };
    [&ip.octets()[..], &to.port().to_be_bytes()].concat()
}

/// Random datagrams at one of the entry's ports: all are received or dropped by the kernel, what reaches the sink is
/// what was sent to it, behind `header`, once.
fn at_the_entry(scene: &mut Scene, port: SocketAddr, datagrams: Vec<Vec<u8>>, header: &[u8]) {
    let exit = scene.nodes.exit();
    let mut expected: HashMap<Vec<u8>, u64> = HashMap::new();
    for payload in
        datagrams.iter().filter_map(|bytes| bytes.strip_prefix(header)).filter(|bytes| bytes.len() <= LONGEST)
    {
        *expected.entry(payload.to_vec()).or_default() += 1;
    }
    scene.sink.got.lock().unwrap().clear();
    let count = datagrams.len() as u64;
    let read = |scene: &Scene| {
        let entry = &scene.nodes.status(0)["ledger"]["datagrams"]["forward"];
        let sent = scene.datagrams(exit, "forward/sent");
        (entry["received"].as_u64().unwrap(), entry["consumed"].as_u64().unwrap(), sent, scene.kernel_drops())
    };
    // Datagrams of several cells that were not whole in time.
    let incomplete = |scene: &Scene| scene.datagrams(exit, "forward/dropped/incomplete");
    let (before, drops_before, incomplete_before) = (read(scene), kernel_queues(&[port]).1, incomplete(scene));
    scene.flood(datagrams.into_iter().map(|bytes| (port, bytes)), &[port]);
    let good = (scene.forwarded.sent.len() + scene.pymixed.sent.len()) as u64;
    let drops = || kernel_queues(&[port]).1 - drops_before;
    until("the entry has read everything", || read(scene).0 - before.0 + drops() >= count + good);
    scene.forwarded.settle();
    scene.pymixed.settle();
    let total: u64 = expected.values().sum();
    let late = |scene: &Scene| incomplete(scene) - incomplete_before;
    until("everything has arrived or is counted", || {
        scene.sink.count() + late(scene) >= total || scene.kernel_drops() > before.3
    });
    let (after, drops, late) = (read(scene), drops(), late(scene));
    println!("  {count} random, {good} good: received {}, dropped by the kernel {drops}", after.0 - before.0);
    assert_eq!(after.0 - before.0 + drops, count + good);
    let (kernel, got) = (after.3 - before.3, scene.sink.count());
    println!(
        "  wrapped {}, left the exit {}, {got} of {total} at the sink, {late} incomplete",
        after.1 - before.1,
        after.2 - before.2
    );
    for (bytes, times) in scene.sink.got.lock().unwrap().iter() {
        let most = expected.get(bytes).copied().unwrap_or(0);
        assert!(*times <= most, "{} bytes came {times} times, sent {most} times", bytes.len());
    }
    assert!(got + late >= total || kernel > 0, "{got} of {total} at the sink, {late} incomplete");
    scene.assert_good_flows(kernel);
}

#[test]
fn random_datagrams_are_delivered_or_counted() {
    let _lock = exclusive();
    let mut scene = Scene::new(21);
    let exit = scene.nodes.exit();
    let host = scene.nodes.forward().ip();
    let sink = scene.nodes.sink.local_addr().unwrap();

    println!("the entry's forward");
    let datagrams: Vec<Vec<u8>> = (0..RANDOM).map(|_| random(&mut scene.rng)).collect();
    let (sent_before, echoed) = (scene.datagrams(exit, "forward/sent"), scene.forwarded.there(|there| there.total()));
    let port = scene.nodes.forward();
    at_the_entry(&mut scene, port, datagrams, &[]);
    // Everything that the exit sends goes to the sink.
    let there = scene.sink.count() + scene.forwarded.there(|there| there.total()) - echoed;
    assert_eq!(scene.datagrams(exit, "forward/sent") - sent_before, there + kernel_drops(&scene.nodes.sink));

    println!("the entry's pymix port");
    // The chain's own ports too, but not the entry's listeners, for what goes there comes in again.
    let mut ports: Vec<u16> = (0..200).map(|_| scene.rng.random_range(1..4990)).collect();
    ports.extend((1..=exit).flat_map(|i| [scene.nodes.up(i).port(), scene.nodes.down(i - 1).port()]));
    let datagrams: Vec<Vec<u8>> = (0..RANDOM)
        .map(|_| {
            let bytes = random(&mut scene.rng);
            let to = match scene.rng.random_range(0..10) {
                0..4 => sink,
                4..6 => SocketAddr::new(host, ports[scene.rng.random_range(0..ports.len())]),
                6 => SocketAddr::from(([10, 0, 0, 1], 0)),
                _ => return bytes,
            };
            let mut all = [pymix_header(to), bytes].concat();
            all.truncate(UDP_MAX);
            all
        })
        .collect();
    let port = scene.nodes.pymix();
    at_the_entry(&mut scene, port, datagrams, &pymix_header(sink));

    println!("the exit's flow sockets");
    let sockets: Vec<SocketAddr> = scene.forwarded.there(|there| there.from.values().copied().collect());
    let locals: Vec<SocketAddr> = sockets.iter().map(|socket| any(socket.port())).collect();
    let dropped = || kernel_queues(&locals).1;
    let filtered = |scene: &Scene| scene.datagrams(exit, "backward/dropped/filtered");
    let (before, drops_before, kernel) = (filtered(&scene), dropped(), scene.kernel_drops());
    let datagrams: Vec<_> = (0..RANDOM).map(|i| (sockets[i % sockets.len()], random(&mut scene.rng))).collect();
    scene.flood(datagrams.into_iter(), &locals);
    until("strangers' datagrams are filtered", || {
        filtered(&scene) - before + dropped() - drops_before >= RANDOM as u64
    });
    let drops = dropped() - drops_before;
    println!("  {RANDOM} random: filtered {}, dropped by the kernel {drops}", filtered(&scene) - before);
    assert_eq!(filtered(&scene) - before + drops, RANDOM as u64);
    let kernel = scene.kernel_drops() - kernel + drops;
    scene.assert_good_flows(kernel);
    assert_eq!((scene.forwarded.back.strange, scene.pymixed.back.strange), (0, 0), "a stranger reached a client");
    print_drops(&scene.nodes);
    scene.end();
}

fn kernel_drops(socket: &UdpSocket) -> u64 {
    sys::kernel_drops(socket).unwrap()
}

fn print_drops(nodes: &Nodes) {
    for position in nodes.positions() {
        let ledger: Value = nodes.status(position)["ledger"].clone();
        for unit in ["cells", "datagrams"] {
            for direction in ["forward", "backward"] {
                println!("  node {position} {unit} {direction}: {}", ledger[unit][direction]["dropped"]);
            }
        }
    }
}

#[test]
fn answer_floods_cost_other_flows_nothing() {
    let _lock = exclusive();
    let mut scene = Scene::new(22);
    let exit = scene.nodes.exit();
    let answers_to = |scene: &Scene| scene.strangers.iter().map(kernel_drops).sum::<u64>();
    for mode in 1..=3u8 {
        scene.sink.mode.store(mode, Ordering::Relaxed);
        let (count, len) = answers(mode);
        // One question from each stranger, so that their sockets at the exit are known.
        let asked = STRANGERS as u64 * 2;
        let read = |scene: &Scene| {
            ["received", "dropped/too-large"].map(|name| scene.datagrams(exit, &format!("backward/{name}")))
        };
        let (before, entry, kernel) = (read(&scene), scene.datagrams(0, "backward/sent"), scene.kernel_drops());
        let (answered, unread) = (scene.sink.answered.load(Ordering::Relaxed), answers_to(&scene));
        let (good, port) = (scene.pymixed.back.total() + scene.forwarded.back.total(), scene.nodes.forward());
        let echoes = scene.forwarded.there(|there| there.total());
        let flow_sockets = scene.nodes.pid(exit);
        let flow_drops = drops_of(flow_sockets);
        let mut got = 0;
        for question in 0..asked {
            scene.flood(std::iter::once((port, question.to_be_bytes().to_vec())), &[port]);
            until("the flood is answered", || {
                scene.sink.answered.load(Ordering::Relaxed) >= answered + count * (question + 1)
            });
            got += receive(&scene.strangers, len);
        }
        scene.forwarded.settle();
        scene.pymixed.settle();
        let backs = scene.sink.answered.load(Ordering::Relaxed) - answered;
        let echoes = scene.forwarded.there(|there| there.total()) - echoes;
        let dropped = || drops_of(flow_sockets) - flow_drops;
        until("the exit has read the flood", || read(&scene)[0] - before[0] + dropped() >= backs + echoes);
        until("answers that are not too long have arrived", || {
            got += receive(&scene.strangers, len);
            len > LONGEST || got + dropped() >= backs || scene.kernel_drops() > kernel
        });
        let mut echoed = 0;
        until("what the entry has sent has arrived", || {
            got += receive(&scene.strangers, len);
            scene.forwarded.receive();
            scene.pymixed.receive();
            echoed = scene.pymixed.back.total() + scene.forwarded.back.total() - good;
            got + echoed + answers_to(&scene) - unread == scene.datagrams(0, "backward/sent") - entry
        });
        let now = read(&scene);
        let (drops, lost) = (dropped(), scene.kernel_drops() - kernel);
        println!(
            "{asked} questions, each answered by {count} of {len} bytes: {backs} at the exit ({drops} dropped by \
                  the kernel), {} too large, {got} at the clients",
            now[1] - before[1]
        );
        assert_eq!(backs, asked * count);
        assert_eq!(now[0] - before[0] + drops, backs + echoes, "at the exit's sockets");
        assert_eq!(now[1] - before[1] > 0, len > LONGEST);
        if len > LONGEST {
            assert_eq!((now[1] - before[1] + drops, got), (backs, 0));
        } else {
            assert!(got + drops == backs || lost > 0, "{got} of {backs}");
        }
        scene.assert_good_flows(drops + lost);
    }
    print_drops(&scene.nodes);
    scene.end();
}

/// Counts what has come to sockets; all of it must have this length.
fn receive(sockets: &[UdpSocket], len: usize) -> u64 {
    let (mut count, mut buffer) = (0, vec![0; 1 << 16]);
    for socket in sockets {
        while_receiving(socket, &mut buffer, |bytes, _| {
            assert_eq!(bytes.len(), len);
            count += 1;
        });
    }
    count
}

/// The kernel's drops at sockets that a process has bound to any address: an exit's flow sockets.
fn drops_of(pid: u32) -> u64 {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let names = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    let inodes: Vec<String> =
        names.filter_map(|name| name.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(String::from)).collect();
    // One reading may miss a socket that another one has.
    let all: HashMap<_, _> = (0..3).flat_map(|_| sockets()).collect();
    let own = inodes.iter().filter_map(|inode| all.get(inode)).filter(|(local, ..)| local.starts_with("00000000:"));
    own.map(|socket| socket.2).sum()
}

#[test]
fn random_datagrams_are_counted_without_a_route_out() {
    run_without_routes("app_ports::random_datagrams_are_delivered_or_counted");
}
