//! A chain of node processes that a test can watch, restart and tap.
//!
//! Every chain has an address of its own in 127.0.0.0/8 with fixed ports below the ephemeral ones, so that a
//! node that starts again finds its port free. The exit's policy admits loopback alone, which
//! [`Nodes::start`] proves before anything else is sent.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::exit::policy::Rule;
use dataplane::stage::pool::Mixing;
use eddy_node::config::Forward;
use eddy_node::init::{self, Files};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use wire::cell::{Class, Shape};

use super::command::{eddy, eddy_with_descriptors};
use super::limit::Permit;
use super::process::{counted_by_time, tallies};
use super::tap::{BOTH, Faults, Tap};

/// The longest time that a test waits for an event before it fails. Long, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How the datagrams of [`Nodes::assert_carries`] begin; some may still be on their way when it returns.
pub const PROBE: &[u8] = b"is anybody there? ";

/// Parameters of a chain.
pub struct Plan {
    pub mixes: usize,
    /// Lanes of each mix; without taps.
    pub lanes: usize,
    pub class: Class,
    pub mixing: Mixing,
    pub channels: usize,
    pub renew_after_s: u64,
    /// Short ones, so that nodes that start again sign soon.
    pub interval_s: u32,
    pub epoch_s: u32,
    pub lifetime_s: u16,
    /// Of every node. Long by default: a test that counts must not depend on when a node gets the processor.
    pub max_age_ms: u64,
    /// Puts a tap into every link.
    pub taps: bool,
    /// Faults of every link from the start, both ways; needs [`Plan::taps`].
    pub faults: Faults,
    /// Lines for the end of a node's configuration, by position.
    pub extra: Vec<(usize, String)>,
    /// Where further forwards of the entry lead.
    pub forwards: Vec<SocketAddr>,
    /// Destinations allowed beyond loopback: for a network without a way out.
    pub allow: Vec<Rule>,
    /// The exit keeps its default policy instead of loopback only: for a network without a way out.
    pub open: bool,
    /// The exit trusts loopback.
    pub trusting: bool,
    /// Most descriptors that the exit may open.
    pub descriptors: Option<u64>,
    pub seed: u64,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            mixes: 2,
            lanes: 1,
            class: Class::S,
            mixing: "timed:t=2ms".parse().expect("a mixing"),
            channels: 2,
            renew_after_s: eddy_node::config::RENEW_AFTER_S,
            interval_s: 1,
            epoch_s: 3600,
            lifetime_s: eddy_node::config::LIFETIME_S,
            max_age_ms: 60_000,
            taps: false,
            faults: Faults::default(),
            extra: Vec::new(),
            forwards: Vec::new(),
            allow: Vec::new(),
            open: false,
            trusting: true,
            descriptors: None,
            seed: 1,
        }
    }
}

impl Plan {
    /// Intervals of ten minutes: after its start hops send no cells of their own but keepalives. For tests that count
    /// cells; a hop that starts again would not sign soon.
    pub fn quiet() -> Plan {
        Plan { interval_s: 600, epoch_s: 6000, ..Plan::default() }
    }
}

/// A node's process.
struct Running {
    process: Child,
    _lifeline: ChildStdin,
    stdout: JoinHandle<String>,
    said: Arc<Mutex<Vec<String>>>,
    stderr: JoinHandle<()>,
}

/// A chain of processes. Ends when dropped.
pub struct Nodes {
    _permit: Permit,
    _dir: TempDir,
    plan: Plan,
    host: IpAddr,
    configs: Vec<PathBuf>,
    running: Vec<Option<Running>>,
    /// The tap of link i at i - 1.
    pub taps: Vec<Tap>,
    /// Where the entry's forward leads.
    pub sink: UdpSocket,
    /// The last report of every process that has ended, with its position.
    pub reports: Vec<(usize, Value)>,
}

/// Waits for a condition, which is looked at every millisecond at first and every ten later. Panics with what was
/// waited for if it does not come.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    while !holds() {
        assert!(Instant::now() < deadline, "still waiting after {PATIENCE:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// The report of a node, if it answers at its status socket.
pub fn ask(config: &Path) -> Option<Value> {
    let mut socket = UnixStream::connect(config.with_extension("sock")).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut report = String::new();
    socket.read_to_string(&mut report).ok()?;
    serde_json::from_str(&report).ok()
}

impl Nodes {
    /// Starts a chain, waits for its channels, and proves that its exit reaches loopback alone.
    pub fn start(plan: Plan) -> Nodes {
        let permit = Permit::wait();
        static CHAINS: AtomicU8 = AtomicU8::new(1);
        let (pid, chain) = (std::process::id(), CHAINS.fetch_add(1, Ordering::Relaxed));
        let host = Ipv4Addr::new(127, 1 + (pid / 251 % 254) as u8, 1 + (pid % 251) as u8, chain).into();
        let at = |port: u16, i: usize| SocketAddr::new(host, port + i as u16);
        let h = plan.mixes + 1;
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        sink.set_read_timeout(Some(PATIENCE)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let ups: Vec<SocketAddr> = (1..=h).map(|i| at(4700, 1 + (i - 1) * plan.lanes)).collect();
        let mut made = init::Plan::new(&ups);
        (made.class, made.mixing, made.renew_after_s) = (plan.class, plan.mixing, plan.renew_after_s);
        (made.interval_s, made.epoch_s, made.lifetime_s) = (plan.interval_s, plan.epoch_s, plan.lifetime_s);
        made.io = super::command::io();
        made.lanes = plan.lanes;
        made.lanes_show_label_bits = plan.lanes > 1;
        made.allow = plan.allow.clone();
        if plan.open {
            let out = UdpSocket::bind("0.0.0.0:0").unwrap().connect("1.1.1.1:9");
            assert!(out.is_err(), "this network has a way out");
        } else {
            made.allow.push("127.0.0.0/8".parse().unwrap());
            made.deny = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        }
        if plan.trusting {
            made.trust = vec!["127.0.0.0/8".parse().unwrap()];
        }
        made.entry.channels = plan.channels;
        made.entry.down = at(4900, 0);
        made.entry.forwards.push(format!("{}={}", at(5000, 0), sink.local_addr().unwrap()).parse::<Forward>().unwrap());
        for (i, to) in plan.forwards.iter().enumerate() {
            made.entry.forwards.push(format!("{}={to}", at(5002, i)).parse::<Forward>().unwrap());
        }
        made.entry.pymix.push(at(5001, 0));
        for (i, hop) in made.hops.iter_mut().enumerate() {
            hop.down = at(4901, i);
        }
        let Files { entry, hops, .. } = init::write(dir.path(), &made).unwrap();
        let configs: Vec<_> = std::iter::once(entry).chain(hops).collect();
        let mut taps = Vec::new();
        for (position, config) in configs.iter().enumerate() {
            let mut text = std::fs::read_to_string(config).unwrap();
            if plan.taps && position < h {
                let link = position + 1;
                taps.push(Tap::start(at(4800, link), ups[position], plan.seed.wrapping_mul(100) + link as u64));
                text = text.replacen("\n# next", &format!("\nnext = \"{}\"\n# next", at(4800, link)), 1);
            }
            // In front, for what follows a [[forward]] would belong to it.
            text = format!("max_age_ms = {}\n{text}", plan.max_age_ms);
            for (_, lines) in plan.extra.iter().filter(|(of, _)| *of == position) {
                text = format!("{lines}\n{text}");
            }
            std::fs::write(config, text).unwrap();
        }
        taps.iter().for_each(|tap| tap.set_both(plan.faults));
        let running = configs.iter().map(|_| None).collect();
        let mut nodes =
            Nodes { _permit: permit, _dir: dir, plan, host, configs, running, taps, sink, reports: Vec::new() };
        // The exit first, so that no node sends to a port that is not open yet: whatever a tap sends arrives.
        for position in (0..=h).rev() {
            nodes.run(position);
        }
        nodes.wait_for_channels();
        nodes.set_links(Faults::default());
        if !nodes.plan.open {
            nodes.assert_loopback_alone();
        }
        nodes.set_links(nodes.plan.faults);
        nodes
    }

    /// Class and length of the chain.
    pub fn shape(&self) -> Shape {
        Shape::new(self.plan.class, self.exit()).unwrap()
    }

    pub fn positions(&self) -> std::ops::Range<usize> {
        0..self.configs.len()
    }

    pub fn exit(&self) -> usize {
        self.configs.len() - 1
    }

    /// The configuration of another entry to the same chain, where nothing listens.
    pub fn another_entry(&self) -> PathBuf {
        let text = std::fs::read_to_string(&self.configs[0]).unwrap();
        let own =
            |line: &&str| !["down", "pymix", "commands", "status", "state"].iter().any(|key| line.starts_with(key));
        let (kept, _) = text.split_once("[[forward]]").expect("a forward");
        let kept = kept.lines().filter(own).collect::<Vec<_>>().join("\n");
        let path = self.configs[0].with_file_name("another.toml");
        std::fs::write(&path, format!("status = \"another.sock\"\n{kept}\n")).unwrap();
        path
    }

    pub fn config(&self, position: usize) -> &Path {
        &self.configs[position]
    }

    /// The address of all sockets of this chain.
    pub fn host(&self) -> IpAddr {
        self.host
    }

    /// The entry's forward to the sink.
    pub fn forward(&self) -> SocketAddr {
        SocketAddr::new(self.host, 5000)
    }

    /// The entry's forward to one of [`Plan::forwards`].
    pub fn further_forward(&self, i: usize) -> SocketAddr {
        SocketAddr::new(self.host, 5002 + i as u16)
    }

    /// The entry's pymix port.
    pub fn pymix(&self) -> SocketAddr {
        SocketAddr::new(self.host, 5001)
    }

    /// The link port of a node towards the previous hop.
    pub fn up(&self, position: usize) -> SocketAddr {
        SocketAddr::new(self.host, 4701 + ((position - 1) * self.plan.lanes) as u16)
    }

    /// The link port of a node towards the next hop.
    pub fn down(&self, position: usize) -> SocketAddr {
        SocketAddr::new(self.host, 4900 + position as u16)
    }

    /// Starts a node that does not run, and waits until it says that it is ready.
    pub fn run(&mut self, position: usize) {
        assert!(self.running[position].is_none(), "node {position} runs");
        let role = if position == 0 { "entry" } else { ["mix", "exit"][usize::from(position == self.exit())] };
        let mut command = match self.plan.descriptors.filter(|_| role == "exit") {
            Some(most) => eddy_with_descriptors(most),
            None => eddy(),
        };
        command.args([role, "--lifeline", "--report-json", "--config"]).arg(&self.configs[position]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the command starts");
        let lifeline = process.stdin.take().unwrap();
        let (stdout, stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
        let said = Arc::<Mutex<Vec<String>>>::default();
        let lines = said.clone();
        let stderr = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        let stdout =
            std::thread::spawn(move || BufReader::new(stdout).lines().map_while(Result::ok).last().unwrap_or_default());
        let ready = said.clone();
        self.running[position] = Some(Running { process, _lifeline: lifeline, stdout, said, stderr });
        until(&format!("node {position} is ready: {:?}", ready.lock().unwrap()), || {
            ready.lock().unwrap().iter().any(|line| line.contains("ready: "))
        });
    }

    /// Ends a node as its operator would. Its ledger must close.
    pub fn stop(&mut self, position: usize) {
        self.signal(position, Signal::TERM);
        let (ended, text) = self.reap(position);
        assert!(ended.success(), "node {position}: {ended}");
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|why| panic!("node {position}: {why}: {text}"));
        for tally in tallies(&report) {
            assert_eq!((&tally["closed"], &tally["held"]), (&Value::Bool(true), &0.into()), "{report:#}");
        }
        counted_by_time(&report, self.plan.mixing.largest_delay().as_micros() as f64);
        self.reports.push((position, report));
    }

    /// Sends a signal to a node that runs.
    pub fn signal(&self, position: usize, signal: Signal) {
        let running = self.running[position].as_ref().expect("it runs");
        kill_process(Pid::from_child(&running.process), signal).expect("it runs");
    }

    /// Ends a node without a word, as a power cut would.
    pub fn kill(&mut self, position: usize) {
        self.running[position].as_mut().expect("it runs").process.kill().expect("it runs");
        self.reap(position);
    }

    fn reap(&mut self, position: usize) -> (ExitStatus, String) {
        let mut running = self.running[position].take().expect("it runs");
        let mut ended = None;
        until(&format!("node {position} ends"), || {
            ended = running.process.try_wait().expect("a child");
            ended.is_some()
        });
        running.stderr.join().unwrap();
        let said = running.said.lock().unwrap();
        assert!(!said.iter().any(|line| line.contains("panicked")), "node {position}: {said:#?}");
        (ended.unwrap(), running.stdout.join().unwrap())
    }

    pub fn is_alive(&mut self, position: usize) -> bool {
        self.running[position].as_mut().is_some_and(|running| running.process.try_wait().is_ok_and(|e| e.is_none()))
    }

    /// Sets the faults of every link, both ways.
    pub fn set_links(&self, faults: Faults) {
        self.taps.iter().for_each(|tap| tap.set_both(faults));
    }

    /// Waits until every datagram that the taps let pass has been read, ends all nodes, and holds what each
    /// node sent and received against what the tap between them did: exactly, but for what a kernel queue dropped.
    pub fn end_and_account(&mut self) {
        self.set_links(Faults { drop: 1.0, ..Faults::default() });
        until("what the taps let pass is read", || {
            self.positions().all(|position| {
                let report = self.status(position);
                let cells = &report["ledger"]["cells"];
                let [up, down] = self.sent_to(position);
                let read = |direction: &str| cells[direction]["received"].as_u64().unwrap();
                read("forward") + read("backward") + report["kernel_drops"].as_u64().unwrap() >= up + down
            }) && self.taps.iter().all(|tap| BOTH.iter().all(|direction| tap.counts(*direction).held == 0))
        });
        self.end();
        let total = |position: usize, pointer: &str| -> u64 {
            let of = self.reports.iter().filter(|(of, _)| *of == position);
            of.map(|(_, report)| report.pointer(pointer).and_then(Value::as_u64).unwrap()).sum()
        };
        for (i, tap) in self.taps.iter().enumerate() {
            assert_eq!(tap.kernel_drops(), 0, "tap {}", i + 1);
            for (direction, name, from, to) in [(BOTH[0], "forward", i, i + 1), (BOTH[1], "backward", i + 1, i)] {
                let sent = total(from, &format!("/ledger/cells/{name}/sent"));
                until(&format!("tap {} has read what node {from} sent", i + 1), || {
                    let counts = tap.counts(direction);
                    counts.held == 0 && counts.came - counts.handshakes == sent
                });
                let counts = tap.counts(direction);
                assert_eq!(counts.came + counts.made, counts.dropped + counts.sent, "tap {}", i + 1);
                let received = total(to, &format!("/ledger/cells/{name}/received"));
                let lost = counts.sent - received;
                assert!(lost <= total(to, "/kernel_drops"), "link {} {name}: {lost} lost, {counts:?}", i + 1);
            }
        }
    }

    /// How many datagrams the taps have sent to a node, from above and from below.
    fn sent_to(&self, position: usize) -> [u64; 2] {
        let of = |tap: Option<&Tap>, direction| tap.map_or(0, |tap| tap.counts(direction).sent);
        let up = position.checked_sub(1).and_then(|i| self.taps.get(i));
        [of(up, BOTH[0]), of(self.taps.get(position), BOTH[1])]
    }

    /// Lines that a node has written to standard error.
    pub fn said(&self, position: usize) -> Vec<String> {
        self.running[position].as_ref().map_or_else(Vec::new, |running| running.said.lock().unwrap().clone())
    }

    pub fn pid(&self, position: usize) -> u32 {
        self.running[position].as_ref().expect("it runs").process.id()
    }

    pub fn pids(&self) -> Vec<u32> {
        self.positions().map(|position| self.pid(position)).collect()
    }

    /// The chain carries traffic, every node is the process that it was, and every ledger closes in the end.
    pub fn assert_unharmed(&mut self, pids: &[u32]) {
        self.assert_carries();
        assert_eq!(self.pids(), pids);
        assert!(self.positions().all(|position| self.is_alive(position)));
        self.end();
    }

    /// Resident memory of a node in bytes.
    pub fn resident(&self, position: usize) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid(position))).expect("it runs");
        let line = text.lines().find(|line| line.starts_with("Rss:")).expect("a line Rss");
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<u64>().ok()).expect("kilobytes") * 1024
    }

    /// Descriptors that a node has open.
    pub fn descriptors(&self, position: usize) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid(position))).expect("it runs").count()
    }

    /// A node's report now, if it answers.
    pub fn try_status(&self, position: usize) -> Option<Value> {
        ask(&self.configs[position])
    }

    /// A node's report now.
    pub fn status(&self, position: usize) -> Value {
        self.try_status(position).unwrap_or_else(|| panic!("node {position} answers: {:?}", self.said(position)))
    }

    /// A counter of a node's report; what is not there has not happened.
    pub fn count(&self, position: usize, pointer: &str) -> u64 {
        self.status(position).pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Waits until the entry's channels are open.
    pub fn wait_for_channels(&self) {
        let mut last = None;
        until("channels", || {
            last = self.try_status(0);
            last.as_ref().is_some_and(|entry| entry["channels"].as_u64() >= Some(self.plan.channels as u64))
        });
    }

    /// The exit's policy admits loopback and nothing else: asked before anything hostile is sent.
    fn assert_loopback_alone(&self) {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let refused = || self.count(self.exit(), "/ledger/datagrams/forward/dropped/policy");
        for outside in [[1, 1, 1, 1], [192, 0, 2, 1], [10, 0, 0, 1]] {
            let before = refused();
            let datagram = [&outside[..], &[0, 9], b"must not leave"].concat();
            client.send_to(&datagram, self.pymix()).unwrap();
            until(&format!("the exit refuses {outside:?}"), || refused() == before + 1);
        }
    }

    /// A datagram through the forward to the sink and its answer back arrive, sooner or later.
    pub fn assert_carries(&self) {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_nonblocking(true).unwrap();
        self.sink.set_nonblocking(true).unwrap();
        let mut buffer = [0; 2048];
        let mut number = 0u32;
        let mut answered = false;
        until("traffic goes both ways", || {
            let mut question = PROBE.to_vec();
            question.extend(number.to_be_bytes());
            number += 1;
            let _ = client.send_to(&question, self.forward());
            while_receiving(&self.sink, &mut buffer, |bytes, from| {
                if bytes.starts_with(PROBE) {
                    let _ = self.sink.send_to(bytes, from);
                }
            });
            while_receiving(&client, &mut buffer, |_, _| answered = true);
            answered
        });
        self.sink.set_nonblocking(false).unwrap();
    }

    /// Ends all nodes, the entry first. Every ledger must close; the reports are in [`Nodes::reports`].
    pub fn end(&mut self) {
        for position in self.positions() {
            if self.running[position].is_some() {
                self.stop(position);
            }
        }
    }
}

/// Hands over everything that waits at a socket that does not block.
pub fn while_receiving(socket: &UdpSocket, buffer: &mut [u8], mut each: impl FnMut(&[u8], SocketAddr)) {
    while let Ok((len, from)) = socket.recv_from(buffer) {
        each(&buffer[..len], from);
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for running in self.running.iter_mut().flatten() {
            let _ = running.process.kill();
            let _ = running.process.wait();
        }
    }
}
