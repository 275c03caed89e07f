//! A running node: control on one thread, the data plane on another, joined by [`crate::join`].
//!
//! Owns the threads and the sockets' options. Control sends handshake datagrams itself, on duplicates of
//! the link sockets; everything else leaves through the worker.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use control::{Config, Control, Counters, Event, NextHop, Role, Timing};
use dataplane::entry::{Entry, Listener};
use dataplane::exit::Exit;
use dataplane::exit::policy::Policy;
use dataplane::ingress::lengths;
use dataplane::io::apps::UdpApps;
use dataplane::io::calls::{Calls, Io};
use dataplane::io::link::LinkPort;
use dataplane::io::offload::{Offload, Trains};
use dataplane::ledger::Ledger;
use dataplane::links::Side;
use dataplane::mix::Mix;
use dataplane::punt::{Notice, PuntSender};
use dataplane::runner::{self, Clock, Poller, Run, Turns, Worker};
use dataplane::sys::{self, Waker};
use dataplane::table::OpSender;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use tracing::{info, warn};
use wire::cell::Shape;

use crate::config::{self, ConfigError, NodeConfig, NodeRole, Part, Place};
use crate::join::{Joint, Note};
use crate::report::NodeReport;
use crate::resolver::Resolver;

/// Operations from control that can wait for the worker.
const OPS_MAX: usize = 4096;
/// Punts that can wait for control: 256 copies of at most a frame, 400 kB.
const PUNTS_MAX: usize = 256;

/// All a node needs to run.
pub struct NodeSpec {
    /// What it is.
    pub role: NodeRole,
    /// Its chain, verified.
    pub chain: config::Chain,
    /// Entry 0, mixes from 1, then the exit.
    pub position: usize,
    /// Where its next hop is reached; none at the exit.
    pub next: Option<std::net::SocketAddr>,
    /// Its configuration.
    pub config: NodeConfig,
    /// Its keys.
    pub keys: config::Keys,
    /// Its sockets, bound.
    pub sockets: Sockets,
}

/// A node's sockets.
pub struct Sockets {
    /// Towards the previous hop; none at the entry.
    pub up: Option<UdpSocket>,
    /// Towards the next hop; none at the exit.
    pub down: Option<UdpSocket>,
    /// The entry's listeners.
    pub listeners: Vec<(UdpSocket, Listener)>,
}

/// What control last said of itself.
#[derive(Clone, Default)]
struct ControlState {
    counters: Counters,
    half_open: usize,
}

/// What a node's readings are made from.
#[derive(Clone)]
struct Reporter {
    role: NodeRole,
    position: usize,
    ledger: Arc<Mutex<Ledger>>,
    control: Arc<Mutex<ControlState>>,
    /// The link and listening sockets, to ask the kernel what it dropped there.
    sockets: Arc<Vec<UdpSocket>>,
    turns: Arc<Turns>,
    clock: Clock,
}

impl Reporter {
    fn report(&self) -> NodeReport {
        let control = lock(&self.control).clone();
        let (turns, sleeps) = self.turns.read();
        NodeReport {
            turns,
            sleeps,
            kernel_drops: self.sockets.iter().filter_map(|socket| sys::kernel_drops(socket).ok()).sum(),
            uptime_s: self.clock.uptime().as_secs_f64(),
            cpu_s: Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).map_or(0.0, |cpu| cpu.as_secs_f64()),
            engine: wire::gcm::engine().name().to_owned(),
            ..NodeReport::new(self.role, self.position, &lock(&self.ledger))
        }
        .with_control(&control.counters, control.half_open)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A node's threads.
pub struct Node {
    reporter: Reporter,
    stop: Arc<AtomicBool>,
    worker_waker: Arc<Waker>,
    control_waker: Arc<Waker>,
    worker: JoinHandle<()>,
    control: JoinHandle<()>,
}

/// A fresh generator seeded by the operating system.
fn rng() -> anyhow::Result<ChaCha20Rng> {
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut seed[..]).map_err(|error| anyhow::anyhow!("no randomness from the system: {error}"))?;
    Ok(ChaCha20Rng::from_seed(*seed))
}

/// Descriptors that flows leave to the rest of an exit: status clients, the resolver, the node's own sockets.
const DESCRIPTORS_KEPT: usize = 64;

/// Raises the limit of open descriptors as far as the process may, and lowers an exit's `max_sockets` to it: without
/// a descriptor left nobody could ask for its status.
fn raise_descriptors(part: &mut Part) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    if let Part::Exit(part) = part
        && let Some(now) = getrlimit(Resource::Nofile).current
        && now < (part.max_sockets + DESCRIPTORS_KEPT) as u64
    {
        let wanted = part.max_sockets;
        part.max_sockets = (now as usize).saturating_sub(DESCRIPTORS_KEPT).max(1);
        warn!(
            "only {now} descriptors may be open, so max_sockets is {} instead of {wanted}: run `ulimit -Hn {}` as \
             root before the exit, or lower max_sockets",
            part.max_sockets,
            wanted + DESCRIPTORS_KEPT
        );
    }
}

/// Sets DF, and takes no word of ICMP for the path's MTU: anybody may forge that, and a cell has but one length.
fn whole(socket: &UdpSocket) -> std::io::Result<()> {
    if socket.local_addr()?.is_ipv6() {
        sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?;
    } else {
        sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?;
    }
    Ok(())
}

/// The core that the worker is to stay on, if this process may use it.
fn core(config: &NodeConfig) -> anyhow::Result<Option<CpuSet>> {
    let Some(core) = config.core else { return Ok(None) };
    let ours = sched_getaffinity(None)?;
    if core >= CpuSet::MAX_CPU || !ours.is_set(core) {
        let ours: Vec<String> = (0..CpuSet::MAX_CPU).filter(|i| ours.is_set(*i)).map(|i| i.to_string()).collect();
        return Err(ConfigError::Value {
            at: config.place("core", 0).unwrap_or_else(|| Place::file(&config.path)),
            what: format!("core = {core}, but this process may use {} only", ours.join(", ")),
            remedy: "take one of those, or remove the line to let the system choose".to_owned(),
        }
        .into());
    }
    let mut set = CpuSet::new();
    set.set(core);
    Ok(Some(set))
}

/// Whether this node's cells travel in trains; a line for the operator if they should and cannot.
fn trains(shape: Shape, position: usize, sockets: &Sockets, offload: Offload) -> anyhow::Result<Trains> {
    let sides = [(Side::Up, &sockets.up), (Side::Down, &sockets.down)];
    let sockets = sides.into_iter().filter_map(|(side, socket)| Some((side, socket.as_ref()?)));
    let (mut lens, mut ipv6) = (Vec::new(), false);
    for (side, socket) in sockets {
        // What arrives on one side has the length that leaves on the other, give or take a layer: both are tried.
        lens.push(lengths(shape, position, side).cell);
        ipv6 |= socket.local_addr()?.is_ipv6();
    }
    let (trains, why) = offload.decide(&lens, ipv6);
    if let Some(why) = why {
        let what = if trains == Trains::BOTH { "trains are used all the same" } else { "cells leave one by one" };
        warn!("no trains of cells (offload = \"{offload}\"): {why}; {what}");
    }
    Ok(trains)
}

/// The system calls of a link socket; a line for the operator, the first time, if they are not those that were asked
/// for.
fn calls(socket: &UdpSocket, io: Io, said: &mut bool) -> Calls {
    let (calls, why) = Calls::new(io, socket);
    if let Some(why) = why
        && !std::mem::replace(said, true)
    {
        warn!("no io_uring (io = \"{io}\"): {why}; recvmmsg and sendmmsg are used instead");
    }
    calls
}

/// Options of a link socket: cells whole, a receive buffer for bursts. A buffer that somebody asked for must
/// be had; the default need not.
fn prepare(socket: &UdpSocket, config: &NodeConfig, trains: Trains) -> anyhow::Result<()> {
    socket.set_nonblocking(true)?;
    whole(socket)?;
    if trains.join {
        sys::join_trains(socket)?;
    }
    // The kernel grants twice what is asked and counts its own overhead against it.
    let receive_buffer = config.receive_buffer;
    let granted = sys::size_receive_buffer(socket, receive_buffer)? / 2;
    if granted < receive_buffer {
        if let Some(at) = config.place("receive_buffer", 0) {
            return Err(ConfigError::Value {
                at,
                what: format!("receive_buffer = {receive_buffer}, but the system grants {granted}"),
                remedy: format!(
                    "run `sudo sysctl -w net.core.rmem_max={receive_buffer}`, or remove the line to take what there is"
                ),
            }
            .into());
        }
        warn!(
            "the receive buffer is {granted} bytes, wanted {receive_buffer}: run `sudo sysctl -w \
             net.core.rmem_max={receive_buffer}`, or bursts will be lost in the kernel"
        );
    }
    Ok(())
}

impl Node {
    /// Starts the threads.
    ///
    /// # Errors
    /// A socket option, a thread or the resolver is refused by the system.
    pub fn start(mut spec: NodeSpec) -> anyhow::Result<Node> {
        raise_descriptors(&mut spec.config.part);
        let NodeSpec { role, chain, position, next, config, keys, sockets } = spec;
        let clock = Clock::start();
        let shape = chain.shape;
        let trains = trains(shape, position, &sockets, config.offload)?;
        for socket in [&sockets.up, &sockets.down].into_iter().flatten() {
            prepare(socket, &config, trains)?;
        }

        let (ops, worker_ops) = rtrb::RingBuffer::new(OPS_MAX);
        let (punts, control_punts) = rtrb::RingBuffer::new(PUNTS_MAX);
        let (worker_waker, control_waker) = (Arc::new(Waker::new()?), Arc::new(Waker::new()?));
        let stop = Arc::new(AtomicBool::new(false));
        let poller = Poller::new()?;
        let (up, down) = (sockets.up.as_ref().map(AsFd::as_fd), sockets.down.as_ref().map(AsFd::as_fd));
        runner::watch(&poller, &worker_waker, up, down)?;

        let mut watched = Vec::new();
        for socket in [&sockets.up, &sockets.down].into_iter().flatten() {
            watched.push(socket.try_clone()?);
        }
        for (socket, _) in &sockets.listeners {
            watched.push(socket.try_clone()?);
        }
        let handshake_sockets = (clone(&sockets.up)?, clone(&sockets.down)?);

        let control = Control::new(control_config(&chain, position, &config, &keys, next), rng()?, clock.elapsed())
            .context("the configuration contradicts itself")?;
        let joint = Joint::new(control, OpSender::new(ops, worker_waker.clone()), control_punts);
        let punts = PuntSender::new(punts, control_waker.clone());

        let (window, hugepages) = (config.window, config.hugepages);
        let mut said = false;
        let mut port = |socket: Option<UdpSocket>, side: Side| {
            let port = socket.map(|socket| {
                let calls = calls(&socket, config.io, &mut said);
                LinkPort::new(socket, calls, lengths(shape, position, side), trains)
            });
            let which = if side == Side::Up { "up" } else { "down" };
            port.with_context(|| format!("the {} needs its {which} socket", role.name()))
        };
        let (core, spin) = (core(&config)?, config.spin);
        let turns = Arc::new(Turns::default());
        let run = Spawn {
            poller: poller.clone(),
            waker: worker_waker.clone(),
            stop: stop.clone(),
            turns: turns.clone(),
            clock,
            core,
            spin,
        };
        let (worker, ledger) = match &config.part {
            Part::Entry(part) => {
                let (listeners, kinds): (Vec<_>, Vec<_>) = sockets.listeners.into_iter().unzip();
                let delays = chain.nodes.iter().map(|node| u64::from(node.descriptor.mixing_delay_ms));
                let settings = dataplane::entry::Settings {
                    shape,
                    listeners: kinds,
                    window,
                    hugepages,
                    mixing_round_trip: Duration::from_millis(2 * delays.sum::<u64>()),
                    flow_idle: part.flow_idle,
                };
                let apps = UdpApps::new(poller, listeners, config.receive_buffer, trains)?;
                let down = port(sockets.down, Side::Down)?;
                let entry = Entry::new(settings, down, apps, worker_ops, punts, [rng()?, rng()?], clock.now());
                let ledger = entry.published();
                (run.spawn(entry)?, ledger)
            }
            Part::Mix { mixing } => {
                let settings = dataplane::mix::Settings { shape, position, mixing: *mixing, window, hugepages };
                let ports = (port(sockets.up, Side::Up)?, port(sockets.down, Side::Down)?);
                let mix = Mix::new(settings, ports, worker_ops, punts, [rng()?, rng()?, rng()?], clock.now());
                let ledger = mix.published();
                (run.spawn(mix)?, ledger)
            }
            Part::Exit(part) => {
                let own = if_addrs::get_if_addrs().context("this host's own addresses")?;
                let settings = dataplane::exit::Settings {
                    shape,
                    window,
                    hugepages,
                    policy: Policy::new(
                        part.allow.clone(),
                        part.deny.clone(),
                        own.into_iter().map(|interface| interface.ip()).collect(),
                    ),
                    caps: dataplane::exit::Caps {
                        flows_per_channel: part.max_flows_per_channel,
                        sockets: part.max_sockets,
                    },
                    flow_idle: part.flow_idle,
                };
                let apps = UdpApps::new(poller, Vec::new(), FLOW_BUFFER, trains)?;
                let up = port(sockets.up, Side::Up)?;
                let exit = Exit::new(settings, up, apps, worker_ops, punts, [rng()?, rng()?], clock.now());
                let ledger = exit.published();
                (run.spawn(exit)?, ledger)
            }
        };

        let reporter =
            Reporter { role, position, ledger, control: Arc::default(), sockets: Arc::new(watched), turns, clock };
        let resolver = match &config.part {
            Part::Exit(part) => Some(Resolver::start(part.resolver, control_waker.clone())?),
            Part::Entry(_) | Part::Mix { .. } => None,
        };
        let thread = ControlThread {
            joint,
            resolver,
            sockets: handshake_sockets,
            reporter: reporter.clone(),
            waker: control_waker.clone(),
            stop: stop.clone(),
        };
        let control = std::thread::Builder::new().name("control".into()).spawn(move || thread.run())?;
        Ok(Node { reporter, stop, worker_waker, control_waker, worker, control })
    }

    /// A reading of all counters.
    pub fn report(&self) -> NodeReport {
        self.reporter.report()
    }

    /// The same for another thread.
    pub fn reporter(&self) -> impl Fn() -> NodeReport + Send + 'static {
        let reporter = self.reporter.clone();
        move || reporter.report()
    }

    /// Whether both threads run.
    pub fn is_alive(&self) -> bool {
        !self.worker.is_finished() && !self.control.is_finished()
    }

    /// Stops the threads: what is held is sent if it can be, and counted if not. The last reading.
    ///
    /// # Errors
    /// A thread had died.
    pub fn stop(self) -> anyhow::Result<NodeReport> {
        self.stop.store(true, Ordering::Release);
        self.worker_waker.wake();
        self.control_waker.wake();
        let died = |which: &str| anyhow::anyhow!("the {which} thread died: this is a bug, its panic is above");
        self.control.join().map_err(|_| died("control"))?;
        self.worker.join().map_err(|_| died("worker"))?;
        Ok(self.reporter.report())
    }
}

/// Receive buffer of an exit's flow socket: a burst of video to one client.
const FLOW_BUFFER: usize = 1 << 20;

fn clone(socket: &Option<UdpSocket>) -> std::io::Result<Option<UdpSocket>> {
    socket.as_ref().map(UdpSocket::try_clone).transpose()
}

/// What a worker's thread needs beside the worker.
struct Spawn {
    poller: Poller,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
    turns: Arc<Turns>,
    clock: Clock,
    core: Option<CpuSet>,
    spin: Duration,
}

impl Spawn {
    fn spawn(self, mut worker: impl Worker + Send + 'static) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("worker".into()).spawn(move || {
            // Seen to be possible before.
            if let Some(core) = &self.core
                && let Err(why) = sched_setaffinity(None, core)
            {
                warn!("the worker is not pinned: {why}");
            }
            let Spawn { poller, waker, stop, turns, clock, spin, .. } = &self;
            runner::run(&mut worker, Run { poller, waker, clock: *clock, spin: *spin, stop, turns });
        })
    }
}

/// What control is told, of a node's files.
pub fn control_config(
    chain: &config::Chain,
    position: usize,
    config: &NodeConfig,
    keys: &config::Keys,
    next: Option<std::net::SocketAddr>,
) -> Config {
    let descriptor = |position: usize| chain.node(position).map(|node| node.descriptor.clone());
    let role = match &config.part {
        Part::Entry(part) => {
            Role::Entry { hops: (1..=chain.shape.hops()).filter_map(descriptor).collect(), channels: part.channels }
        }
        Part::Mix { .. } => Role::Mix,
        Part::Exit(_) => Role::Exit,
    };
    Config {
        role,
        shape: chain.shape,
        position,
        noise: keys.noise.clone(),
        setup: keys.setup.clone(),
        descriptor: descriptor(position),
        previous: position.checked_sub(1).filter(|i| *i > 0).and_then(descriptor).map(|d| d.noise),
        next: descriptor(position + 1).zip(next).map(|(descriptor, address)| NextHop { descriptor, address }),
        psk_up: keys.psk_up.clone(),
        psk_down: keys.psk_down.clone(),
        timing: Timing { renew_after: config.renew_after, expire_after: config.expire_after(), ..Timing::default() },
        caps: config.caps,
    }
}

struct ControlThread {
    joint: Joint,
    resolver: Option<Resolver>,
    /// Duplicates of the link sockets, up and down.
    sockets: (Option<UdpSocket>, Option<UdpSocket>),
    reporter: Reporter,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
}

impl ControlThread {
    fn run(mut self) {
        let poller = Poller::new().and_then(|poller| poller.add(self.waker.as_fd(), 0).map(|()| poller));
        let poller = match poller {
            Ok(poller) => poller,
            Err(error) => {
                warn!("control cannot wait: {error}");
                return;
            }
        };
        let clock = self.reporter.clock;
        while !self.stop.load(Ordering::Acquire) {
            while let Some((query, addresses)) = self.resolver.as_ref().and_then(Resolver::answer) {
                self.joint.resolved(query, addresses);
            }
            let wake = self.turn(clock.elapsed());
            poller.wait(Some(wake.saturating_sub(clock.elapsed())), |_| self.waker.clear());
        }
    }

    fn turn(&mut self, now: Duration) -> Duration {
        let Self { joint, resolver, sockets, reporter, .. } = self;
        let mut send = |side, to, datagram: &[u8]| {
            let socket = match side {
                Side::Up => &sockets.0,
                Side::Down => &sockets.1,
            };
            // Lost or not, control tries again in its own time.
            if let Some(socket) = socket {
                let _ = socket.send_to(datagram, to);
            }
        };
        let mut note = |note| match note {
            Note::Event(event) => log(&event),
            Note::Notice(Notice::TooLarge { from, len, max }) => {
                warn!("a datagram of {len} bytes from {from} was dropped: at most {max} travel (8 fragments)");
            }
            Note::Notice(Notice::Refused { destination, status }) => {
                warn!("the exit refused {destination}: {}", status_text(status));
            }
            Note::Resolve { query, name } => {
                if let Some(resolver) = resolver {
                    resolver.ask(query, name);
                }
            }
        };
        let wake = joint.turn(now, SystemTime::now(), &mut send, &mut note);
        let control = joint.control();
        *lock(&reporter.control) =
            ControlState { counters: control.counters().clone(), half_open: control.half_open() };
        wake
    }
}

fn status_text(status: wire::frames::Status) -> &'static str {
    use wire::frames::Status;
    match status {
        Status::Open => "open",
        Status::Refused => "its policy does not allow it (see `allow` and `deny` in the exit's configuration)",
        Status::Unresolvable => "the name does not resolve there",
        Status::Unreachable => "the destination is unreachable",
        Status::TooManyFlows => "it has too many flows or sockets",
        Status::UnknownFlow => "it does not know the flow",
        Status::TooLarge => "the datagram is too large",
    }
}

fn log(event: &Event) {
    match event {
        // Who calls is nobody's business but the caller's, and strangers choose how often.
        Event::LinkUp { side: control::Side::Up, peer, .. } => tracing::debug!("link up is up: {peer}"),
        Event::LinkUp { side, peer, .. } => info!("link {} is up: {peer}", side.name()),
        Event::LinkRenewed { side, peer, .. } => tracing::debug!("link {} renewed: {peer}", side.name()),
        Event::LinkDown { side: control::Side::Up, .. } => tracing::debug!("link up is down"),
        Event::LinkDown { side, .. } => warn!("link {} is down", side.name()),
        Event::LinkSilent { .. } => warn!("the next hop is silent; a new handshake is under way"),
        Event::ChannelOpen { channel, setup } => tracing::debug!("channel {channel} is open after {setup:?}"),
        Event::ChannelClosed { channel, reason } => tracing::debug!("channel {channel} has ended: {reason:?}"),
        Event::SetupTimedOut { attempts, next_timeout } => {
            warn!("no ack for a channel after {attempts} attempts; the next is given {next_timeout:?}");
        }
        Event::SetupRefused(why) => warn!("an ack was refused: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_what_the_kernel_dropped() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        sys::size_receive_buffer(&socket, 4096).unwrap();
        let reporter = Reporter {
            role: NodeRole::Mix,
            position: 1,
            ledger: Arc::default(),
            control: Arc::default(),
            sockets: Arc::new(vec![socket.try_clone().unwrap()]),
            turns: Arc::default(),
            clock: Clock::start(),
        };
        assert_eq!(reporter.report().kernel_drops, 0);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        let got = std::iter::from_fn(|| socket.recv(&mut [0; 1000]).ok()).count() as u64;
        assert_eq!(reporter.report().kernel_drops, 100 - got);
        assert!(got < 100);
    }

    #[test]
    fn link_sockets_take_nobodys_word_for_the_mtu() {
        let v4 = UdpSocket::bind("127.0.0.1:0").unwrap();
        whole(&v4).unwrap();
        assert_eq!(sockopt::ip_mtu_discover(&v4).unwrap(), Ipv4PathMtuDiscovery::PROBE);
        let Ok(v6) = UdpSocket::bind("[::1]:0") else {
            eprintln!("skipped for IPv6: this host has no ::1");
            return;
        };
        whole(&v6).unwrap();
        assert_eq!(sockopt::ipv6_mtu_discover(&v6).unwrap(), Ipv6PathMtuDiscovery::PROBE);
    }
}
