//! A running node: control on one thread, workers on others ([`crate::runtime::workers`]), and the bridge between them
//! ([`crate::runtime::bridge`]).
//!
//! Owns the control thread and the sources of a node's report. Control sends handshake datagrams itself, on duplicates
//! of the link sockets; everything else is sent by the workers.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use control::trust::TrustStatus;
use control::{BadConfig, Config, Control, Counters, Role, Timing};
use dataplane::lanes::Lanes;
use dataplane::latency::{self, Profile};
use dataplane::ledger::Ledger;
use dataplane::punt::Notice;
use dataplane::runner::{Clock, Poller, Turns};
use dataplane::sys::{self, Waker};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tracing::warn;
use wire::cell::Class;

use crate::ceremony::{span, utc};
use crate::config::{ConfigError, Loaded, Location, NodeConfig, NodeRole, Part, node_name, wall_s};
use crate::error::{NodeDied, StartError};
use crate::report::{MeterReport, NodeReport};
use crate::runtime::bridge::{AGAIN, Bridge, Note};
use crate::runtime::door::{DOOR_PAUSE, Door, DoorCounts};
use crate::runtime::flood::Flood;
use crate::runtime::icmp::{Fate, Icmp};
use crate::runtime::listeners::{Listeners, Times};
use crate::runtime::log::Log;
use crate::runtime::meter_alarm::MeterAlarm;
use crate::runtime::next_names::NextNames;
use crate::runtime::own_addresses::{self, OwnAddresses};
use crate::runtime::pauses::Pauses;
use crate::runtime::random::rng;
use crate::runtime::readiness::Readiness;
use crate::runtime::resolver::Resolver;
use crate::runtime::sockets::{HandshakeSockets, Sockets};
use crate::runtime::socks;
use crate::runtime::trust_keeper::TrustKeeper;
use crate::runtime::workers::Workers;

/// Everything that a node is started with.
pub struct NodeSpec {
    pub loaded: Loaded,
    /// Address of the next hop, as far as it is known; none at the exit.
    pub next: Option<SocketAddr>,
    /// Of its links.
    pub lanes: Lanes,
    pub sockets: Sockets,
}

/// Control's part of the report, updated at each of its turns.
#[derive(Clone, Default)]
struct ControlState {
    counters: Counters,
    half_open: usize,
    trust: TrustStatus,
    /// Handshakes refused per second, while there is a flood of them.
    flood_per_s: Option<u64>,
}

/// The sources of a node's report.
#[derive(Clone)]
struct Reporter {
    role: NodeRole,
    position: usize,
    /// Id of the chain.
    chain: [u8; 32],
    /// One for each worker.
    ledgers: Vec<Arc<Mutex<Ledger>>>,
    profiles: Vec<latency::Shared>,
    control: Arc<Mutex<ControlState>>,
    /// Duplicates of the link sockets, for the kernel's drop counters.
    sockets: Arc<Vec<UdpSocket>>,
    /// Of handshakes that do not pass a worker.
    door: Option<Arc<DoorCounts>>,
    /// Of an entry.
    listeners: Option<Listeners>,
    readiness: Arc<Readiness>,
    turns: Vec<Arc<Turns>>,
    clock: Clock,
    /// Of a mix: the class of its cells, and the floor of its meter.
    meter: Option<(Class, u32)>,
}

impl Reporter {
    fn report(&self) -> NodeReport {
        let profile = self.profile();
        let control = lock(&self.control).clone();
        let of_workers = self.turns.iter().map(|turns| turns.read());
        let (turns, sleeps) = of_workers.fold((0, 0), |(turns, sleeps), (t, s)| (turns + t, sleeps + s));
        NodeReport {
            turns,
            sleeps,
            kernel_drops: self.sockets.iter().filter_map(|socket| sys::kernel_drops(socket).ok()).sum::<u64>()
                + self.listeners.as_ref().map_or(0, Listeners::kernel_drops),
            uptime_s: self.clock.uptime().as_secs_f64(),
            cpu_s: Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).map_or(0.0, |cpu| cpu.as_secs_f64()),
            engine: wire::gcm::engine().name().to_owned(),
            meter: self.meter(&profile),
            ..NodeReport::new(self.role, self.position, &self.ledger(), &profile)
        }
        .with_control(&control.counters, control.half_open)
        .with_flood(control.flood_per_s)
        .with_trust(&self.chain, &control.trust)
    }
}

impl Reporter {
    /// The sum of all workers' ledgers and of the door's counts. The ledgers are all locked at once, because one may
    /// have received what another has sent.
    fn ledger(&self) -> Ledger {
        let readings: Vec<_> = self.ledgers.iter().map(|ledger| lock(ledger)).collect();
        let sum = readings.iter().map(|reading| **reading).reduce(|sum, reading| sum.and(&reading));
        let mut sum = sum.unwrap_or_default();
        if let Some(door) = &self.door {
            door.add_to(&mut sum.cells.forward);
        }
        sum
    }

    /// The anonymity meter of a mix.
    fn meter(&self, profile: &Profile) -> Option<MeterReport> {
        let (class, floor) = self.meter?;
        Some(MeterReport::new(class, floor, &profile.meters, self.clock.now()))
    }

    /// The sum of all workers' profiles.
    fn profile(&self) -> Profile {
        self.profiles.iter().map(latency::Shared::read).reduce(|sum, more| sum.and(&more)).unwrap_or_default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A node's threads.
pub struct Node {
    reporter: Reporter,
    stop: Arc<AtomicBool>,
    wakers: Vec<Arc<Waker>>,
    control_waker: Arc<Waker>,
    reload: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
    control: JoinHandle<()>,
    socks: Option<socks::Server>,
}

/// Descriptors of an exit that flows may not use: for status clients, the resolver, the node's own sockets.
pub const DESCRIPTORS_KEPT: usize = 64;

/// Raises the limit of open files as far as the process may. Lowers an exit's `max_sockets` to it, so that status
/// clients still get a descriptor.
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
            "max_sockets is {} instead of {wanted}, because the limit of open files is {now}: run `ulimit -Hn {}` as root \
             before you start the exit, or lower max_sockets",
            part.max_sockets,
            wanted + DESCRIPTORS_KEPT
        );
    }
}

impl Node {
    /// Starts the threads.
    ///
    /// # Errors
    /// A socket option, a thread or the resolver is refused by the system.
    pub fn start(mut spec: NodeSpec) -> Result<Node, StartError> {
        let duplicate = || StartError::system("duplicate the link sockets");
        raise_descriptors(&mut spec.loaded.config.part);
        let NodeSpec { loaded, next, lanes, mut sockets } = spec;
        let control_config = control_config(&loaded, next);
        let Loaded { config, chain, files, position, trust, socks_users, .. } = loaded;
        let role = config.role();
        let clock = Clock::start();
        let control_waker = Arc::new(Waker::new().map_err(StartError::system("create an event descriptor"))?);
        let stop = Arc::new(AtomicBool::new(false));

        let mut watched = Vec::new();
        let links = sockets.up.iter().chain(&sockets.down);
        for socket in links {
            watched.push(socket.try_clone().map_err(duplicate())?);
        }

        let socks = std::mem::take(&mut sockets.socks);
        let listeners = match &config.part {
            Part::Entry(part) => {
                let (first, waker) = (&sockets.listeners, control_waker.clone());
                let times = Times { idle: part.flow_idle, max_age: config.max_age };
                let listeners = Listeners::new(chain.shape(), times, first, waker);
                Some(listeners.map_err(StartError::system("duplicate the listening sockets"))?)
            }
            Part::Mix { .. } | Part::Exit(_) => None,
        };

        let log = Log::new(&chain, position, next);
        let handshake_sockets = HandshakeSockets::new(&sockets).map_err(duplicate())?;

        let control = Control::new(control_config, trust, rng()?, clock.elapsed(), SystemTime::now())
            .map_err(|why| bad_config(&config, &why))?;
        let Workers { threads, commands, punts, ledgers, profiles, turns, wakers, door } =
            Workers::start(&chain, position, lanes, &config, sockets, clock, (&stop, &control_waker))?;

        let mut bridge = Bridge::new(control, commands, punts);
        let own_addresses = match &config.part {
            Part::Exit(part) => {
                let own = OwnAddresses::new(part.own.clone(), clock.elapsed(), own_addresses::of_host);
                let own = own.map_err(StartError::system("list this host's addresses"))?;
                bridge.own_addresses(own.all());
                Some(own)
            }
            Part::Entry(_) | Part::Mix { .. } => None,
        };
        let (control_state, sockets) = (Arc::default(), Arc::new(watched));
        let (control, listening) = (control_state, listeners.clone());
        let reporter = Reporter {
            role,
            position,
            chain: chain.id,
            ledgers,
            profiles,
            control,
            sockets,
            door: door.as_ref().map(Door::counts),
            listeners: listening,
            readiness: Arc::default(),
            turns,
            clock,
            meter: match &config.part {
                Part::Mix { meter_floor, .. } => Some((chain.shape().class(), *meter_floor)),
                Part::Entry(_) | Part::Exit(_) => None,
            },
        };

        let resolver = match &config.part {
            Part::Exit(part) => Some(Resolver::start(part.resolver, control_waker.clone())?),
            Part::Entry(_) | Part::Mix { .. } => None,
        };

        let reload = Arc::new(AtomicBool::new(false));
        let hop_names = (1..=chain.descriptors.len()).map(|hop| node_name(chain.role(hop), hop)).collect();
        let thread = ControlThread {
            bridge,
            resolver,
            own_addresses,
            meter_alarm: matches!(config.part, Part::Mix { .. }).then(|| MeterAlarm::new(clock.elapsed())),
            trust: TrustKeeper::new(files, &chain, position, hop_names),
            next_names: NextNames::default(),
            reload: reload.clone(),
            sockets: handshake_sockets,
            door,
            icmp: (role == NodeRole::Entry).then(Icmp::open),
            log,
            flood: Flood::default(),
            pauses: Pauses::default(),
            reporter: reporter.clone(),
            waker: control_waker.clone(),
            stop: stop.clone(),
        };
        let control = std::thread::Builder::new().name("control".into()).spawn(move || thread.run());
        let control = control.map_err(StartError::system("start the control thread"))?;

        // Last, because clients may connect at once.
        let socks = match listeners {
            Some(listeners) if !socks.is_empty() => {
                let served = socks::serve(socks, socks_users, listeners);
                Some(served.map_err(StartError::system("serve the SOCKS ports"))?)
            }
            _ => None,
        };
        Ok(Node { reporter, stop, wakers, control_waker, reload, workers: threads, control, socks })
    }

    /// The listening sockets of an entry; `None` for other roles.
    pub fn listeners(&self) -> Option<Listeners> {
        self.reporter.listeners.clone()
    }

    /// The progress of its link and channels, to wait for.
    pub fn readiness(&self) -> Arc<Readiness> {
        self.reporter.readiness.clone()
    }

    /// A report of all counters.
    pub fn report(&self) -> NodeReport {
        self.reporter.report()
    }

    /// The same for another thread.
    pub fn reporter(&self) -> impl Fn() -> NodeReport + Send + 'static {
        let reporter = self.reporter.clone();
        move || reporter.report()
    }

    /// Has control read descriptors and keys again.
    pub fn reload(&self) {
        self.reload.store(true, Ordering::Release);
        self.control_waker.wake();
    }

    /// True while all threads run.
    pub fn is_alive(&self) -> bool {
        !self.workers.iter().chain([&self.control]).any(JoinHandle::is_finished)
    }

    /// Stops the threads. Cells that the node holds are sent if possible and counted otherwise. Returns the last
    /// report.
    ///
    /// # Errors
    /// A thread has died.
    pub fn stop(self) -> Result<NodeReport, NodeDied> {
        drop(self.socks);
        self.stop.store(true, Ordering::Release);
        self.wakers.iter().for_each(|waker| waker.wake());
        self.control_waker.wake();
        // A thread that died does not keep the others running, or the sockets open.
        let control = self.control.join().map_err(|_| NodeDied { thread: "control" });
        let workers: Vec<_> = self.workers.into_iter().map(JoinHandle::join).collect();
        self.reporter.listeners.iter().for_each(Listeners::close_all);
        control?;
        if workers.iter().any(Result::is_err) {
            return Err(NodeDied { thread: "worker" });
        }
        Ok(self.reporter.report())
    }
}

/// The configuration of control from a node's files. `next` is the address of the next hop.
pub fn control_config(loaded: &Loaded, next: Option<SocketAddr>) -> Config {
    let Loaded { config, chain, position, psks, .. } = loaded;
    let role = match &config.part {
        Part::Entry(part) => Role::Entry { channels: part.channels },
        Part::Mix { .. } => Role::Mix,
        Part::Exit(_) => Role::Exit,
    };
    Config {
        role,
        shape: chain.shape(),
        position: *position,
        terms: chain.terms.clone(),
        next: next.filter(|_| config.next.is_some()),
        previous: config.previous.clone(),
        shared_prefixes: config.shared_prefixes.clone(),
        psk_up: psks.up.clone(),
        psk_down: psks.down.clone(),
        timing: Timing { renew_after: config.renew_after, expire_after: config.expire_after(), ..Timing::default() },
        caps: config.caps,
    }
}

/// Control's complaint about a configuration.
pub fn bad_config(config: &NodeConfig, why: &BadConfig) -> ConfigError {
    let at = Location::file(&config.path);
    let BadConfig::Expired(ago_s) = why else { return ConfigError::Invalid { at, what: why.to_string() } };
    ConfigError::Value {
        at,
        what: format!(
            "this node's descriptor expired on {}, {} ago",
            utc(wall_s().saturating_sub(*ago_s)),
            span(*ago_s)
        ),
        remedy:
            "check this host's clock with `date -u`; if it is right, run `eddy renew`, then copy node.desc next to \
                 chain.toml"
                .to_owned(),
    }
}

impl Drop for ControlThread {
    fn drop(&mut self) {
        self.reporter.readiness.end();
    }
}

/// A turn of the control thread that is later than this is one of a node that did not run.
const STALLED: Duration = Duration::from_millis(250);

struct ControlThread {
    bridge: Bridge,
    /// Of an exit.
    resolver: Option<Resolver>,
    /// Of an exit.
    own_addresses: Option<OwnAddresses>,
    /// Of a mix.
    meter_alarm: Option<MeterAlarm>,
    trust: TrustKeeper,
    next_names: NextNames,
    /// Descriptors and keys are to be read again.
    reload: Arc<AtomicBool>,
    sockets: HandshakeSockets,
    door: Option<Door>,
    /// Of an entry.
    icmp: Option<Icmp>,
    log: Log,
    flood: Flood,
    pauses: Pauses,
    reporter: Reporter,
    waker: Arc<Waker>,
    stop: Arc<AtomicBool>,
}

impl ControlThread {
    fn run(mut self) {
        let poller = Poller::new().and_then(|poller| {
            let sockets = self.door.iter().flat_map(Door::sockets);
            sockets.chain([self.waker.as_fd()]).try_for_each(|fd| poller.add(fd, 0))?;
            Ok(poller)
        });
        let poller = match poller {
            Ok(poller) => poller,
            Err(error) => {
                warn!("the control thread cannot poll: {error}");
                return;
            }
        };
        let clock = self.reporter.clock;
        while !self.stop.load(Ordering::Acquire) {
            while let Some((query, addresses)) = self.resolver.as_ref().and_then(Resolver::answer) {
                self.bridge.resolved(query, addresses);
            }
            if let Some(addresses) = self.next_names.resolved() {
                self.bridge.control_mut().resolved(clock.elapsed(), addresses);
            }
            if self.reload.swap(false, Ordering::AcqRel) {
                self.trust.reload(self.bridge.control_mut(), clock.elapsed());
            }
            if let Some(listeners) = &self.reporter.listeners {
                self.bridge.take_commands(std::iter::from_fn(|| listeners.next_command()));
            }
            let is_flooded = self.read_door(clock.elapsed());
            let mut wake = self.turn(clock.elapsed());
            if let Some(own) = &mut self.own_addresses {
                if let Some(addresses) = own.look(clock.elapsed(), own_addresses::of_host) {
                    self.bridge.own_addresses(addresses);
                    wake = clock.elapsed();
                }
                wake = wake.min(own.due());
            }
            if let Some(alarm) = &mut self.meter_alarm {
                alarm.look(clock.elapsed(), || self.reporter.meter(&self.reporter.profile()));
                wake = wake.min(alarm.due());
            }
            if self.reporter.listeners.as_ref().is_some_and(Listeners::has_commands) {
                wake = wake.min(clock.elapsed() + AGAIN);
            }
            self.wait(&poller, wake, is_flooded || !self.bridge.takes_handshakes());
        }
    }

    /// Waits until `wake` or until another thread wakes this one, at most for [`DOOR_PAUSE`] while handshakes are not
    /// to wake it. Looks at the clock in between, because a pause of the node is seen by it alone.
    fn wait(&mut self, poller: &Poller, wake: Duration, is_door_shut: bool) {
        let clock = self.reporter.clock;
        loop {
            let due = wake.min(clock.elapsed() + if is_door_shut { DOOR_PAUSE } else { STALLED });
            let timeout = due.saturating_sub(clock.elapsed());
            let events = if is_door_shut {
                self.waker.wait(timeout);
                self.waker.clear();
                1
            } else {
                poller.wait(Some(timeout), |_| self.waker.clear())
            };
            let now = clock.elapsed();
            if now > due + STALLED {
                self.bridge.control_mut().stalled(due, now);
                self.pauses.note(due, now);
            }
            if events > 0 || now >= wake {
                return;
            }
        }
    }

    /// Takes handshakes in. Returns true if there are many.
    fn read_door(&mut self, now: Duration) -> bool {
        let Self { bridge, door, .. } = self;
        let Some(door) = door.as_mut().filter(|_| bridge.takes_handshakes()) else { return false };
        door.read(|from, half, is_crowded| bridge.take_half(from, half, is_crowded, now))
    }

    fn turn(&mut self, now: Duration) -> Duration {
        let Self { bridge, resolver, trust, next_names, sockets, reporter, icmp, log, flood, waker, .. } = self;
        let mut send = |side, to, datagram: &[u8]| sockets.send(side, to, datagram);

        let mut own_descriptor = false;
        // Apart, because `note` borrows the rest.
        let mut saves = std::mem::take(&mut trust.saves);
        let mut note = |note| match note {
            Note::Event(event) => {
                own_descriptor |= trust.concerns_own_descriptor(&event);
                reporter.readiness.note(&event);
                log.event(now, &event);
            }
            Note::ResolveNext(names) => next_names.ask(names, waker),
            Note::Notice(notice) => {
                log.notice(now, &notice);
                if let (Notice::Refused { client, destination, status }, Some(listeners)) =
                    (&notice, &reporter.listeners)
                {
                    listeners.refuse(client.listener, client.address, destination, *status);
                }
                if let (Some(icmp), Some(listeners)) = (icmp.as_ref(), reporter.listeners.as_ref()) {
                    answer_client(icmp, listeners, &notice);
                }
            }
            Note::Resolve { query, name } => {
                if let Some(resolver) = resolver {
                    resolver.ask(query, name);
                }
            }
        };

        let wake = bridge.turn(now, SystemTime::now(), &mut send, &mut note, &mut |state| saves.save(now, state));
        trust.saves = saves;
        if own_descriptor {
            trust.settle_keys(bridge.control_mut(), now);
        }
        let control = bridge.control();
        log.next_hop(now, control.next_hop_silence(now));
        flood.look(now, control.counters());
        let look = trust.look(control, now).min(flood.due());
        let mut state = lock(&reporter.control);
        state.counters = control.counters().clone();
        state.half_open = control.half_open();
        state.flood_per_s = flood.per_s();
        if let Some(status) = trust.status.take() {
            state.trust = status;
        }
        wake.min(look)
    }
}

/// Sends the ICMP error that a network sends for a datagram that it does not carry.
fn answer_client(icmp: &Icmp, listeners: &Listeners, notice: &Notice) {
    let (client, fate) = match notice {
        Notice::Deaf { .. } => return,
        Notice::TooLarge { client, .. } => (client, Fate::TooLong),
        Notice::Refused { client, status, .. } => (client, Fate::Refused(*status)),
    };
    let Some((at, is_forward)) = listeners.find(client.listener) else { return };
    // An error about one destination would affect a client's others on the same socket.
    if is_forward || fate == Fate::TooLong {
        icmp.send(client.address, at, fate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use dataplane::entry::Association;
    use wire::cell::{Class, Shape};

    use crate::runtime::refused_flows::RefusedFlows;

    /// A reporter of a node without threads.
    fn idle_reporter() -> Reporter {
        Reporter {
            role: NodeRole::Mix,
            position: 1,
            chain: [0; 32],
            ledgers: Vec::new(),
            profiles: Vec::new(),
            control: Arc::default(),
            sockets: Arc::default(),
            door: None,
            listeners: None,
            readiness: Arc::default(),
            turns: Vec::new(),
            clock: Clock::start(),
            meter: None,
        }
    }

    #[test]
    fn tunnels_end_even_if_the_control_thread_panicked() {
        let waker = Arc::new(Waker::new().unwrap());
        let shape = Shape::new(Class::S, 4).unwrap();
        let times = Times { idle: Duration::from_secs(300), max_age: Duration::from_millis(250) };
        let listeners = Listeners::new(shape, times, &[], waker.clone()).unwrap();
        let refused = Arc::<RefusedFlows>::default();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let association = Association { client: client.ip(), port: Some(client.port()) };
        let _relay = listeners.tunnel(client.ip(), association, refused.clone()).unwrap();

        // The worker ends only after it was asked to.
        let stop = Arc::new(AtomicBool::new(false));
        let (asked, worker_ended) = (stop.clone(), Arc::new(AtomicBool::new(false)));
        let ended = worker_ended.clone();
        let worker = std::thread::spawn(move || {
            while !asked.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            ended.store(true, Ordering::Release);
        });
        let node = Node {
            reporter: Reporter { listeners: Some(listeners), ..idle_reporter() },
            stop,
            wakers: Vec::new(),
            control_waker: waker,
            reload: Arc::default(),
            workers: vec![worker],
            control: std::thread::spawn(|| panic!("part of the test")),
            socks: None,
        };
        assert_eq!(node.stop().unwrap_err().thread, "control");
        assert!(worker_ended.load(Ordering::Acquire) && refused.has_ended());
    }

    #[test]
    fn report_counts_kernel_drops() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        sys::size_receive_buffer(&socket, 4096).unwrap();
        let reporter = Reporter { sockets: Arc::new(vec![socket.try_clone().unwrap()]), ..idle_reporter() };
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
}
