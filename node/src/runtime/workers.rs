//! The data plane of a class of a node: makes its workers and runs each on a thread of its own.
//!
//! Owns the options of link sockets. A node has one worker in each class; a mix has one for each of its lanes in a free
//! class.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::batch::Lengths;
use dataplane::command::{Command, CommandSender, PacedSender};
use dataplane::entry::Entry;
use dataplane::exit::policy::Policy;
use dataplane::exit::{Exit, GatewaySettings};
use dataplane::lanes::Lanes;
use dataplane::latency;
use dataplane::ledger::Ledger;
use dataplane::mix::multicore::{ShardParts, shards};
use dataplane::mix::{self, Mix};
use dataplane::paced;
use dataplane::paced::entry::Service;
use dataplane::punt::{Punt, PuntSender};
use dataplane::runner::{self, Clock, Poller, Run, Turns, Worker};
use dataplane::socket::apps::UdpApps;
use dataplane::socket::backend::{Calls, Io};
use dataplane::socket::link::LinkPort;
use dataplane::socket::offload::Offloads;
use dataplane::stage::ingress::lengths;
use dataplane::stage::pool::Mixing;
use dataplane::sys::{self, Waker};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tracing::warn;
use wire::cell::Shape;
use wire::handshake::half_len;
use wire::ids::Side;
use wire::paced::PacedTerms;
use wire::paced::clock::SteadyClock;
use wire::setup::Suite;

use crate::config::{ConfigError, ExitPart, NodeConfig, Part};
use crate::error::StartError;
use crate::runtime::bridge::Commands;
use crate::runtime::door::Door;
use crate::runtime::random::rng;
use crate::runtime::sockets::Sockets;

/// Commands from control that can wait for a worker, or more in a paced class with many seats
/// ([`paced::Settings::commands_max`]).
pub const COMMANDS_MAX: usize = 4096;
/// Punts of a worker that can wait for control: at most 3 MB with what they carry. A setup has up to
/// [`control::SETUP_CELLS_MAX`] cells, so these hold a burst of 55 setups. More in a paced class with many seats
/// ([`paced::Settings::punts_max`]).
pub const PUNTS_MAX: usize = 2048;
/// Receive buffer of an exit's flow socket: a burst of video to one client.
pub const FLOW_BUFFER: usize = 1 << 20;

/// Receive buffer of a link socket with which a loaded chain lost nothing (tuning/README.md). A smaller one is
/// reported.
pub const RECEIVE_BUFFER_ENOUGH: usize = 1 << 20;

/// Running workers of a class, with control's ends of their rings.
pub struct Workers {
    pub threads: Vec<JoinHandle<()>>,
    /// The way to all of them.
    pub commands: Commands,
    /// One ring for each worker.
    pub punts: Vec<rtrb::Consumer<Punt>>,
    pub ledgers: Vec<Arc<Mutex<Ledger>>>,
    /// Latencies and releases by size.
    pub profiles: Vec<latency::Shared>,
    pub turns: Vec<Arc<Turns>>,
    pub wakers: Vec<Arc<Waker>>,
    /// What the entry of a paced class shows.
    pub view: Option<Arc<Mutex<paced::entry::EntryView>>>,
    /// What the mix of a paced class measures by its loops.
    pub loops: Option<Arc<Mutex<paced::mix::LoopsView>>>,
    /// Control's own sockets at the ports towards the previous hop; none at an entry, and where the system refuses.
    pub door: Option<Door>,
}

/// A worker's ends of its rings, and the poller and waker of its thread.
struct WorkerEnds<C> {
    commands: rtrb::Consumer<C>,
    punts: PuntSender,
    waker: Arc<Waker>,
    poller: Poller,
}

impl Workers {
    /// Starts the workers of a class, as `plan` says. They end when `stop` is set and they
    /// are woken. `control` is woken when there are punts.
    ///
    /// # Errors
    /// The system refuses a socket option or a thread.
    pub fn start(
        plan: &WorkerPlan<'_>,
        sockets: Sockets,
        clock: Clock,
        (stop, control): (&Arc<AtomicBool>, &Arc<Waker>),
    ) -> Result<Workers, StartError> {
        let WorkerPlan { config, lanes, .. } = *plan;
        let offloads = offloads(plan, &sockets);
        let offloads = offloads.map_err(StartError::system("read the addresses of the link sockets"))?;
        let granted = sockets.links().map(|socket| set_options(socket, config.receive_buffer, offloads));
        let granted = granted.collect::<std::io::Result<Vec<usize>>>();
        let granted = granted.map_err(StartError::system("set options of a link socket"))?;
        if let Some(warning) = granted.iter().min().and_then(|least| judge_receive_buffer(config, *least).transpose()) {
            warn!("{}", warning?);
        }

        let door = door(plan, &sockets.up, offloads);
        let spawn = Spawn { cores: cores(config)?, spin: config.spin, stop: stop.clone(), clock };
        let start = |commands: Commands, punts| {
            let (threads, ledgers, profiles, turns, wakers, view, loops) = Default::default();
            let workers = Workers { threads, commands, punts, ledgers, profiles, turns, wakers, view, loops, door };
            Builder { plan, offloads, spawn, io_reported: false, workers }
        };
        if let Some(paced) = &plan.paced {
            let settings = plan.paced_settings(paced);
            let most = (settings.commands_max().max(COMMANDS_MAX), settings.punts_max().max(PUNTS_MAX));
            let Rings { commands, punts, worker } = Rings::new(&sockets, 0, control, most)?;
            let commands = Commands::paced(PacedSender::new(commands, worker.waker.clone()));
            let mut builder = start(commands, vec![punts]);
            builder.paced(paced, sockets, worker)?;
            return Ok(builder.workers);
        }
        let (mut to_workers, mut punts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for worker in 0..lanes.own {
            let rings = Rings::new(&sockets, worker, control, (COMMANDS_MAX, PUNTS_MAX))?;
            to_workers.push((rings.commands, rings.worker.waker.clone()));
            punts.push(rings.punts);
            ends.push(rings.worker);
        }
        let mut builder = start(Commands::free(CommandSender::to_all(to_workers, lanes)), punts);
        match &config.part {
            Part::Entry(_) => builder.entry(sockets, ends.remove(0))?,
            Part::Exit(part) => builder.exit(part, sockets, ends.remove(0))?,
            Part::Mix { mixing, .. } => builder.mix(*mixing, sockets, ends)?,
        }
        Ok(builder.workers)
    }
}

/// Control's ends of the rings of a worker, and the worker's.
struct Rings<C> {
    commands: rtrb::Producer<C>,
    punts: rtrb::Consumer<Punt>,
    worker: WorkerEnds<C>,
}

impl<C> Rings<C> {
    /// Watches the sockets of the `nth` worker, too.
    fn new(
        sockets: &Sockets,
        nth: usize,
        control: &Arc<Waker>,
        (commands_max, punts_max): (usize, usize),
    ) -> Result<Rings<C>, StartError> {
        let (to_worker, commands) = rtrb::RingBuffer::new(commands_max);
        let (to_control, from_worker) = rtrb::RingBuffer::new(punts_max);
        let (waker, poller) = (Waker::new().map_err(events())?, Poller::new().map_err(events())?);
        let waker = Arc::new(waker);
        let (up, down) = (sockets.up.get(nth).map(AsFd::as_fd), sockets.down.get(nth).map(AsFd::as_fd));
        runner::watch(&poller, &waker, up, down).map_err(events())?;
        let punts = PuntSender::new(to_control, control.clone());
        Ok(Rings { commands: to_worker, punts: from_worker, worker: WorkerEnds { commands, punts, waker, poller } })
    }
}

/// What the workers of a class are made of, but for their sockets.
pub struct WorkerPlan<'a> {
    /// With the settings of the class.
    pub config: &'a NodeConfig,
    pub shape: Shape,
    /// Largest mixing delay of a hop, in a free class.
    pub mixing_delay: Duration,
    /// Of a paced class.
    pub paced: Option<PacedWorker>,
    pub position: usize,
    pub lanes: Lanes,
    /// Number of workers of the classes before it: the names and cores of its own follow theirs.
    pub first: usize,
}

/// What the worker of a paced class is made of in addition.
pub struct PacedWorker {
    pub terms: PacedTerms,
    pub suite: Suite,
    /// That of control.
    pub clock: SteadyClock,
    /// How long datagrams of applications wait for a round.
    pub queue_age: Duration,
}

impl WorkerPlan<'_> {
    fn paced_settings(&self, paced: &PacedWorker) -> paced::Settings {
        paced::Settings {
            terms: paced.terms.clone(),
            suite: paced.suite,
            hops: self.shape.hops(),
            position: self.position,
            hugepages: self.config.hugepages,
        }
    }

    /// Lengths of what arrives from `side`.
    fn lengths(&self, side: Side) -> Lengths {
        match &self.paced {
            Some(paced) => self.paced_settings(paced).lengths(side),
            None => lengths(self.shape, self.position, side),
        }
    }
}

/// Makes the workers of a class, of any role.
struct Builder<'a> {
    plan: &'a WorkerPlan<'a>,
    offloads: Offloads,
    spawn: Spawn,
    /// The log already has the reason why io_uring is not in use.
    io_reported: bool,
    workers: Workers,
}

impl Builder<'_> {
    fn entry(&mut self, sockets: Sockets, ends: WorkerEnds<Command>) -> Result<(), StartError> {
        let (listeners, kinds): (Vec<_>, Vec<_>) = sockets.listeners.into_iter().unzip();
        let WorkerPlan { config, shape, mixing_delay, lanes, .. } = *self.plan;
        let mixes = shape.hops() as u32 - 1;
        let settings = dataplane::entry::Settings {
            shape,
            listeners: kinds,
            window: config.window,
            hugepages: config.hugepages,
            next_lanes: lanes.next,
            mixing_round_trip: 2 * mixes * mixing_delay,
            max_age: config.max_age,
        };
        let down = self.ports(sockets.down, Side::Down, 1)?.remove(0);
        let apps = self.apps(&ends, listeners, config.receive_buffer)?;
        let (rngs, now) = ([rng()?, rng()?], self.spawn.clock.now());

        let entry = Entry::new(settings, down, apps, ends.commands, ends.punts, rngs, now);
        self.run(entry.published(), entry.profile(), entry, (ends.poller, ends.waker))
    }

    fn exit(&mut self, part: &ExitPart, sockets: Sockets, ends: WorkerEnds<Command>) -> Result<(), StartError> {
        let WorkerPlan { config, shape, .. } = *self.plan;
        let (window, hugepages) = (config.window, config.hugepages);
        let GatewaySettings { policy, filtering, limits, caps, flow_idle, max_age } = gateway(config, part);
        let settings =
            dataplane::exit::Settings { shape, window, hugepages, policy, filtering, limits, caps, flow_idle, max_age };
        let up = self.ports(sockets.up, Side::Up, 1)?.remove(0);
        let apps = self.apps(&ends, Vec::new(), FLOW_BUFFER)?;
        let (rngs, now) = ([rng()?, rng()?], self.spawn.clock.now());

        let exit = Exit::new(settings, up, apps, ends.commands, ends.punts, rngs, now);
        self.run(exit.published(), exit.profile(), exit, (ends.poller, ends.waker))
    }

    /// The worker of a paced class, of any role.
    fn paced(
        &mut self,
        paced: &PacedWorker,
        sockets: Sockets,
        ends: WorkerEnds<paced::Command>,
    ) -> Result<(), StartError> {
        let (config, settings) = (self.plan.config, self.plan.paced_settings(paced));
        let (clock, now) = (paced.clock.clone(), self.spawn.clock.now());
        match &config.part {
            Part::Entry(_) => {
                let down = self.ports(sockets.down, Side::Down, 1)?.remove(0);
                let (listeners, service) = match sockets.meeting {
                    Some(socket) => (vec![socket], Service::Meeting { max_age: paced.queue_age }),
                    None => {
                        let (sockets, listeners) = sockets.listeners.into_iter().unzip();
                        (sockets, Service::Destinations(listeners))
                    }
                };
                let apps = self.apps(&ends, listeners, config.receive_buffer)?;
                let WorkerEnds { commands, punts, waker, poller } = ends;
                let entry =
                    paced::entry::Entry::new((settings, service), (down, apps), commands, punts, rng()?, clock, now);
                self.workers.view = Some(entry.view());
                self.run(entry.published(), entry.profile(), entry, (poller, waker))
            }
            Part::Mix { .. } => {
                let up = self.ports(sockets.up, Side::Up, 1)?.remove(0);
                let down = self.ports(sockets.down, Side::Down, 1)?.remove(0);
                let WorkerEnds { commands, punts, waker, poller } = ends;
                let mix = paced::mix::Mix::new(settings, (up, down), commands, punts, rng()?, clock, now);
                self.workers.loops = Some(mix.view());
                self.run(mix.published(), mix.profile(), mix, (poller, waker))
            }
            Part::Exit(part) => {
                let up = self.ports(sockets.up, Side::Up, 1)?.remove(0);
                let apps = self.apps(&ends, Vec::new(), FLOW_BUFFER)?;
                let (gateway, queue_age) = (gateway(config, part), paced.queue_age);
                let settings = paced::exit::Settings { class: settings, gateway, queue_age };
                let WorkerEnds { commands, punts, waker, poller } = ends;
                let exit = paced::exit::Exit::new(settings, (up, apps), commands, punts, rng()?, clock, now);
                self.run(exit.published(), exit.profile(), exit, (poller, waker))
            }
        }
    }

    /// The application sockets of a worker.
    fn apps<C>(
        &self,
        ends: &WorkerEnds<C>,
        listeners: Vec<UdpSocket>,
        receive_buffer: usize,
    ) -> Result<UdpApps, StartError> {
        UdpApps::new(ends.poller.clone(), listeners, receive_buffer, self.offloads)
            .map_err(StartError::system("set up the application sockets"))
    }

    fn mix(&mut self, mixing: Mixing, sockets: Sockets, mut ends: Vec<WorkerEnds<Command>>) -> Result<(), StartError> {
        let WorkerPlan { config, shape, position, lanes, .. } = *self.plan;
        let settings = mix::Settings {
            shape,
            position,
            mixing,
            lanes,
            window: config.window,
            hugepages: config.hugepages,
            max_age: config.max_age,
        };
        let mut up = self.ports(sockets.up, Side::Up, lanes.own)?;
        let mut down = self.ports(sockets.down, Side::Down, lanes.downs())?;
        let now = self.spawn.clock.now();
        if lanes.own == 1 {
            let (ends, ports) = (ends.remove(0), (up.remove(0), down.remove(0)));
            let mix = Mix::new(settings, ports, ends.commands, ends.punts, [rng()?, rng()?, rng()?], now);
            return self.run(mix.published(), mix.profile(), mix, (ends.poller, ends.waker));
        }

        let (mut parts, mut pollers, mut down) = (Vec::new(), Vec::new(), down.into_iter());
        for (up, WorkerEnds { commands, punts, waker, poller }) in up.into_iter().zip(ends) {
            pollers.push((poller, waker.clone()));
            parts.push(ShardParts { up, down: down.next(), commands, punts, waker, rng: rng()? });
        }
        let shards = shards(settings, parts, [rng()?, rng()?], now);
        for (shard, (poller, waker)) in shards.into_iter().zip(pollers) {
            self.run(shard.published(), shard.profile(), shard, (poller, waker))?;
        }
        Ok(())
    }

    /// The `wanted` link ports of one side.
    fn ports(&mut self, sockets: Vec<UdpSocket>, side: Side, wanted: usize) -> Result<Vec<LinkPort>, StartError> {
        let WorkerPlan { config, .. } = *self.plan;
        if sockets.len() != wanted {
            let (role, side) = (config.role().name(), side.name());
            let what = format!(
                "this {role} needs {wanted} {side} sockets, one for each lane, and has {}: set `{side}` in its \
                 configuration",
                sockets.len()
            );
            return Err(StartError::Config(ConfigError::Arguments(what)));
        }
        let lengths = self.plan.lengths(side);
        let port = |socket: UdpSocket| {
            let calls = calls(&socket, config.io, &mut self.io_reported);
            LinkPort::new(socket, calls, lengths, self.offloads)
        };
        Ok(sockets.into_iter().map(port).collect())
    }

    /// Runs a worker on a thread of its own.
    fn run(
        &mut self,
        ledger: Arc<Mutex<Ledger>>,
        profile: latency::Shared,
        mut worker: impl Worker + Send + 'static,
        (poller, waker): (Poller, Arc<Waker>),
    ) -> Result<(), StartError> {
        self.workers.ledgers.push(ledger);
        self.workers.profiles.push(profile);
        self.workers.wakers.push(waker.clone());
        let Spawn { cores, spin, stop, clock } = &self.spawn;
        let (spin, stop, clock) = (*spin, stop.clone(), *clock);
        let index = self.plan.first + self.workers.threads.len();
        let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
        let turns = Arc::new(Turns::default());
        self.workers.turns.push(turns.clone());

        let exact = self.plan.paced.is_some();
        let name = if index == 0 { "worker".to_owned() } else { format!("worker{index}") };
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            // The cores were checked before; this fails only if the process has lost one since.
            if let Some(core) = &core
                && let Err(why) = sched_setaffinity(None, core)
            {
                warn!("cannot pin the worker to its core: {why}");
            }
            let (poller, waker, stop, turns) = (&poller, &*waker, &*stop, &*turns);
            runner::run(&mut worker, Run { poller, waker, clock, spin, exact, stop, turns });
        });
        self.workers.threads.push(thread.map_err(StartError::system("start a worker"))?);
        Ok(())
    }
}

fn events() -> impl FnOnce(std::io::Error) -> StartError {
    StartError::system("set up the event loop of a worker")
}

/// What an exit's flows are ruled by. The addresses of the host come with the first command.
fn gateway(config: &NodeConfig, part: &ExitPart) -> GatewaySettings {
    GatewaySettings {
        policy: Policy::new(part.allow.clone(), part.deny.clone(), Vec::new())
            .translating(part.nat64.clone())
            .trusting(part.trust.clone()),
        filtering: part.filtering,
        limits: part.limits,
        caps: dataplane::exit::Caps { flows_per_channel: part.max_flows_per_channel, sockets: part.max_sockets },
        flow_idle: part.flow_idle,
        max_age: config.max_age,
    }
}

/// Settings that all worker threads share.
struct Spawn {
    cores: Vec<CpuSet>,
    spin: Duration,
    stop: Arc<AtomicBool>,
    clock: Clock,
}

/// Sets DF and ignores ICMP path-MTU updates: anybody can forge those, and all cells have one length.
fn never_fragment(socket: &UdpSocket) -> std::io::Result<()> {
    if socket.local_addr()?.is_ipv6() {
        sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?;
    } else {
        sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?;
    }
    Ok(())
}

/// Checks that this process may use the configured cores.
///
/// # Errors
/// It may not use one of them.
pub fn check_cores(config: &NodeConfig) -> Result<(), StartError> {
    cores(config).map(drop)
}

/// The cores that the workers are pinned to, if this process may use them.
fn cores(config: &NodeConfig) -> Result<Vec<CpuSet>, StartError> {
    let ours = sched_getaffinity(None).map_err(|why| StartError::system("read the CPU affinity")(why.into()))?;
    let set = |core: &usize| {
        if *core >= CpuSet::MAX_CPU || !ours.is_set(*core) {
            let ours: Vec<String> = (0..CpuSet::MAX_CPU).filter(|i| ours.is_set(*i)).map(|i| i.to_string()).collect();
            return Err(ConfigError::Value {
                at: config.place_of("cores"),
                what: format!("cores lists {core}, but this process may use {} only", ours.join(", ")),
                remedy: "list some of these, or remove the line to let the system choose".to_owned(),
            }
            .into());
        }
        let mut set = CpuSet::new();
        set.set(*core);
        Ok(set)
    };
    config.cores.iter().map(set).collect()
}

/// The offloads that this node uses. Logs the reason if one is configured and not possible.
fn offloads(plan: &WorkerPlan<'_>, sockets: &Sockets) -> std::io::Result<Offloads> {
    let offload = plan.config.offload;
    let sides = [(Side::Up, sockets.up.first()), (Side::Down, sockets.down.first())];
    let sockets = sides.into_iter().filter_map(|(side, socket)| Some((side, socket?)));
    let (mut lens, mut ipv6) = (Vec::new(), false);
    for (side, socket) in sockets {
        // Cells of the two sides differ by a layer; both lengths are tested.
        lens.push(plan.lengths(side).cell);
        ipv6 |= socket.local_addr()?.is_ipv6();
    }
    let (offloads, why) = offload.decide(&lens, ipv6);
    if let Some(why) = why {
        if offloads == Offloads::BOTH {
            warn!("GSO may not work, but is on (offload = \"{offload}\"): {why}");
        } else {
            warn!("GSO disabled (offload = \"{offload}\"): {why}; sending one datagram per cell");
        }
    }
    Ok(offloads)
}

/// The door of a node that has a previous hop. Logs why it has none.
fn door(plan: &WorkerPlan<'_>, links: &[UdpSocket], offloads: Offloads) -> Option<Door> {
    if links.is_empty() {
        return None;
    }
    let cell_len = plan.lengths(Side::Up).cell;
    let door = Door::open(links, half_len(plan.position), cell_len, offloads.gro);
    door.inspect_err(|why| {
        warn!(
            "handshakes share the sockets of cells ({why}), so a flood of them slows cells down: let the user that runs \
             the node bind `up` (OPERATE, Under systemd)"
        );
    })
    .ok()
}

/// The system calls of a link socket. Logs the reason once if they are not the configured ones.
fn calls(socket: &UdpSocket, io: Io, said: &mut bool) -> Calls {
    let (calls, why) = Calls::new(io, socket);
    if let Some(why) = why
        && !std::mem::replace(said, true)
    {
        warn!("io_uring is not available (io = \"{io}\"): {why}; using recvmmsg and sendmmsg");
    }
    calls
}

/// Checks the receive buffer that the system grants to a new socket, as a start does for the link sockets. Returns a
/// warning if it is smaller than the default.
///
/// # Errors
/// It is smaller than configured.
pub fn check_receive_buffer(config: &NodeConfig) -> Result<Option<String>, StartError> {
    let check = || StartError::system("open a socket to check the receive buffer");
    let any = UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0));
    let socket = any.or_else(|_| UdpSocket::bind((std::net::Ipv6Addr::LOCALHOST, 0))).map_err(check())?;
    let granted = receive_buffer(&socket, config.receive_buffer).map_err(check())?;
    Ok(judge_receive_buffer(config, granted)?)
}

/// The finding of `eddy doctor` and of a start.
pub fn short_receive_buffer(granted: usize, wanted: usize) -> String {
    format!("the kernel grants receive buffers of {granted} of {wanted} bytes (net.core.rmem_max)")
}

/// A configured receive buffer is mandatory; the default is best effort, so less of it is a warning.
fn judge_receive_buffer(config: &NodeConfig, granted: usize) -> Result<Option<String>, ConfigError> {
    let wanted = config.receive_buffer;
    if granted >= wanted {
        return Ok(None);
    }
    let raise = format!("run `sudo sysctl -w net.core.rmem_max={wanted}`");
    match config.place("receive_buffer", 0) {
        Some(at) => Err(ConfigError::Value {
            at,
            what: format!("receive_buffer = {wanted}, but the system grants {granted}"),
            remedy: format!("{raise}, or remove the line to accept less"),
        }),
        None if granted >= RECEIVE_BUFFER_ENOUGH => Ok(None),
        None => {
            Ok(Some(format!("{}, so it drops bursts that do not fit: {raise}", short_receive_buffer(granted, wanted))))
        }
    }
}

/// Sets the options of a link socket. Returns the granted receive buffer in bytes.
fn set_options(socket: &UdpSocket, receive_buffer: usize, offloads: Offloads) -> std::io::Result<usize> {
    socket.set_nonblocking(true)?;
    never_fragment(socket)?;
    if offloads.gro {
        sys::enable_gro(socket)?;
    }
    self::receive_buffer(socket, receive_buffer)
}

/// Requests a receive buffer. Returns the granted bytes: the kernel doubles them for its own overhead.
fn receive_buffer(socket: &UdpSocket, bytes: usize) -> std::io::Result<usize> {
    Ok(sys::size_receive_buffer(socket, bytes)? / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn link_sockets_take_nobodys_word_for_the_mtu() {
        let v4 = UdpSocket::bind("127.0.0.1:0").unwrap();
        never_fragment(&v4).unwrap();
        assert_eq!(sockopt::ip_mtu_discover(&v4).unwrap(), Ipv4PathMtuDiscovery::PROBE);
        let Ok(v6) = UdpSocket::bind("[::1]:0") else {
            // Not `eprintln`, which the test harness captures.
            let _ = writeln!(std::io::stderr(), "skipped for IPv6: this host has no ::1");
            return;
        };
        never_fragment(&v6).unwrap();
        assert_eq!(sockopt::ipv6_mtu_discover(&v6).unwrap(), Ipv6PathMtuDiscovery::PROBE);
    }
}
