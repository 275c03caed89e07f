//! The data plane of a node: its workers, made and set running, each on a thread of its own.
//!
//! Owns the link sockets' options and what a worker is made of. An entry and an exit have one worker; a mix has one for
//! each of its lanes.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dataplane::command::{Command, CommandSender};
use dataplane::entry::Entry;
use dataplane::exit::Exit;
use dataplane::exit::policy::Policy;
use dataplane::lanes::Lanes;
use dataplane::latency;
use dataplane::ledger::Ledger;
use dataplane::mix::multicore::{ShardParts, shards};
use dataplane::mix::{self, Mix};
use dataplane::punt::{Punt, PuntSender};
use dataplane::runner::{self, Clock, Poller, Run, Turns, Worker};
use dataplane::socket::apps::UdpApps;
use dataplane::socket::backend::{Calls, Io};
use dataplane::socket::link::LinkPort;
use dataplane::socket::offload::{Offload, Offloads};
use dataplane::stage::ingress::lengths;
use dataplane::sys::{self, Waker};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tracing::warn;
use wire::cell::Shape;
use wire::ids::Side;

use crate::config::{Chain, ConfigError, Location, NodeConfig, Part};
use crate::error::StartError;
use crate::runtime::node::{Sockets, rng};

/// Operations from control that can wait for a worker.
const OPS_MAX: usize = 4096;
/// Punts of a worker that can wait for control: 256 copies of at most a buffer, 400 kB.
const PUNTS_MAX: usize = 256;
/// Receive buffer of an exit's flow socket: a burst of video to one client.
pub const FLOW_BUFFER: usize = 1 << 20;

/// Running workers, with control's ends of their rings.
pub struct Workers {
    /// Their threads.
    pub threads: Vec<JoinHandle<()>>,
    /// To all of them.
    pub ops: CommandSender,
    /// From each.
    pub punts: Vec<rtrb::Consumer<Punt>>,
    /// What each counts.
    pub ledgers: Vec<Arc<Mutex<Ledger>>>,
    /// How long cells stay in each, and what each releases by size.
    pub profiles: Vec<latency::Shared>,
    /// Their turns.
    pub turns: Vec<Arc<Turns>>,
    /// Wake them.
    pub wakers: Vec<Arc<Waker>>,
}

/// A worker's ends of its rings, and what its thread waits on.
struct Seat {
    ops: rtrb::Consumer<Command>,
    punts: PuntSender,
    waker: Arc<Waker>,
    poller: Poller,
}

impl Workers {
    /// Starts the workers of a node. They end when `stop` is set and they are woken; `control` is woken when they have
    /// something to say.
    ///
    /// # Errors
    /// A socket option or a thread is refused by the system.
    pub fn start(
        chain: &Chain,
        position: usize,
        lanes: Lanes,
        config: &NodeConfig,
        sockets: Sockets,
        clock: Clock,
        (stop, control): (&Arc<AtomicBool>, &Arc<Waker>),
    ) -> Result<Workers, StartError> {
        let (shape, window, hugepages) = (chain.shape, config.window, config.hugepages);
        let system = || StartError::system("set up the sockets");
        let offloads = offloads(shape, position, &sockets, config.offload).map_err(system())?;
        for socket in sockets.up.iter().chain(&sockets.down) {
            prepare(socket, config, offloads)?;
        }
        let mut said = false;
        let mut port = |socket: UdpSocket, side: Side| {
            let calls = calls(&socket, config.io, &mut said);
            LinkPort::new(socket, calls, lengths(shape, position, side), offloads)
        };
        let (mut rings, mut punts, mut seats) = (Vec::new(), Vec::new(), Vec::new());
        for edge in 0..lanes.own {
            let (to_worker, ops) = rtrb::RingBuffer::new(OPS_MAX);
            let (to_control, from_worker) = rtrb::RingBuffer::new(PUNTS_MAX);
            let (waker, poller) = (Arc::new(Waker::new().map_err(system())?), Poller::new().map_err(system())?);
            let (up, down) = (sockets.up.get(edge).map(AsFd::as_fd), sockets.down.get(edge).map(AsFd::as_fd));
            runner::watch(&poller, &waker, up, down).map_err(system())?;
            rings.push((to_worker, waker.clone()));
            punts.push(from_worker);
            seats.push(Seat { ops, punts: PuntSender::new(to_control, control.clone()), waker, poller });
        }
        let ops = CommandSender::to_all(rings, lanes);
        let spawn = Spawn { cores: cores(config)?, spin: config.spin, stop: stop.clone(), clock };
        let mut workers = Workers {
            threads: Vec::new(),
            ops,
            punts,
            ledgers: Vec::new(),
            profiles: Vec::new(),
            turns: Vec::new(),
            wakers: seats.iter().map(|seat| seat.waker.clone()).collect(),
        };
        let (up, down) = (sockets.up, sockets.down);
        let missing = |side: &str| {
            let what = format!("the {} needs its {side} socket: set `{side}`", config.role().name());
            StartError::Config(ConfigError::Arguments(what))
        };
        match &config.part {
            Part::Entry(_) => {
                let seat = seats.remove(0);
                let (listeners, kinds): (Vec<_>, Vec<_>) = sockets.listeners.into_iter().unzip();
                let delays = chain.nodes.iter().map(|node| u64::from(node.descriptor.mixing_delay_ms));
                let settings = dataplane::entry::Settings {
                    shape,
                    listeners: kinds,
                    window,
                    hugepages,
                    next_lanes: lanes.next,
                    mixing_round_trip: Duration::from_millis(2 * delays.sum::<u64>()),
                };
                let apps = UdpApps::new(seat.poller.clone(), listeners, config.receive_buffer, offloads);
                let apps = apps.map_err(system())?;
                let down = port(down.into_iter().next().ok_or_else(|| missing("down"))?, Side::Down);
                let entry = Entry::new(settings, down, apps, seat.ops, seat.punts, [rng()?, rng()?], clock.now());
                workers.ledgers.push(entry.published());
                workers.profiles.push(entry.profile());
                workers.spawn(&spawn, entry, seat.poller, seat.waker)?;
            }
            Part::Exit(part) => {
                let seat = seats.remove(0);
                let own = if_addrs::get_if_addrs().map_err(StartError::system("list this host's addresses"))?;
                let settings = dataplane::exit::Settings {
                    shape,
                    window,
                    hugepages,
                    policy: Policy::new(
                        part.allow.clone(),
                        part.deny.clone(),
                        own.into_iter().map(|interface| interface.ip()).collect(),
                    )
                    .trusting(part.trust.clone()),
                    filtering: part.filtering,
                    limits: part.limits,
                    caps: dataplane::exit::Caps {
                        flows_per_channel: part.max_flows_per_channel,
                        sockets: part.max_sockets,
                    },
                    flow_idle: part.flow_idle,
                };
                let apps = UdpApps::new(seat.poller.clone(), Vec::new(), FLOW_BUFFER, offloads).map_err(system())?;
                let up = port(up.into_iter().next().ok_or_else(|| missing("up"))?, Side::Up);
                let exit = Exit::new(settings, up, apps, seat.ops, seat.punts, [rng()?, rng()?], clock.now());
                workers.ledgers.push(exit.published());
                workers.profiles.push(exit.profile());
                workers.spawn(&spawn, exit, seat.poller, seat.waker)?;
            }
            Part::Mix { mixing } => {
                let settings = mix::Settings { shape, position, mixing: *mixing, lanes, window, hugepages };
                let up: Vec<LinkPort> = up.into_iter().map(|socket| port(socket, Side::Up)).collect();
                let mut down: Vec<LinkPort> = down.into_iter().map(|socket| port(socket, Side::Down)).collect();
                if up.len() != lanes.own {
                    return Err(missing("up"));
                }
                if down.len() != lanes.downs() {
                    return Err(missing("down"));
                }
                if lanes.own == 1 {
                    let seat = seats.remove(0);
                    let ports = (up.into_iter().next().ok_or_else(|| missing("up"))?, down.remove(0));
                    let rngs = [rng()?, rng()?, rng()?];
                    let mix = Mix::new(settings, ports, seat.ops, seat.punts, rngs, clock.now());
                    workers.ledgers.push(mix.published());
                    workers.profiles.push(mix.profile());
                    workers.spawn(&spawn, mix, seat.poller, seat.waker)?;
                } else {
                    let (mut parts, mut pollers, mut down) = (Vec::new(), Vec::new(), down.into_iter());
                    for (up, Seat { ops, punts, waker, poller }) in up.into_iter().zip(seats) {
                        pollers.push((poller, waker.clone()));
                        parts.push(ShardParts { up, down: down.next(), commands: ops, punts, waker, rng: rng()? });
                    }
                    let edges = shards(settings, parts, [rng()?, rng()?], clock.now());
                    for (edge, (poller, waker)) in edges.into_iter().zip(pollers) {
                        workers.ledgers.push(edge.published());
                        workers.profiles.push(edge.profile());
                        workers.spawn(&spawn, edge, poller, waker)?;
                    }
                }
            }
        }
        Ok(workers)
    }

    fn spawn(
        &mut self,
        with: &Spawn,
        mut worker: impl Worker + Send + 'static,
        poller: Poller,
        waker: Arc<Waker>,
    ) -> Result<(), StartError> {
        let Spawn { cores, spin, stop, clock } = with;
        let (spin, stop, clock) = (*spin, stop.clone(), *clock);
        let index = self.threads.len();
        let core = (!cores.is_empty()).then(|| cores[index % cores.len()]);
        let turns = Arc::new(Turns::default());
        self.turns.push(turns.clone());
        // The name that the first has had since there was but one.
        let name = if index == 0 { "worker".to_owned() } else { format!("worker{index}") };
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            // Seen to be possible before.
            if let Some(core) = &core
                && let Err(why) = sched_setaffinity(None, core)
            {
                warn!("cannot pin the worker to its core: {why}");
            }
            let (poller, waker, stop, turns) = (&poller, &*waker, &*stop, &*turns);
            runner::run(&mut worker, Run { poller, waker, clock, spin, stop, turns });
        });
        self.threads.push(thread.map_err(StartError::system("start a worker"))?);
        Ok(())
    }
}

/// What all workers' threads need.
struct Spawn {
    cores: Vec<CpuSet>,
    spin: Duration,
    stop: Arc<AtomicBool>,
    clock: Clock,
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

/// Checks that this process may use the configured cores.
///
/// # Errors
/// It may not use one of them.
pub fn check_cores(config: &NodeConfig) -> Result<(), StartError> {
    cores(config).map(drop)
}

/// The cores that the workers are to stay on, if this process may use them.
fn cores(config: &NodeConfig) -> Result<Vec<CpuSet>, StartError> {
    let ours = sched_getaffinity(None).map_err(|why| StartError::system("read the CPU affinity")(why.into()))?;
    let set = |core: &usize| {
        if *core >= CpuSet::MAX_CPU || !ours.is_set(*core) {
            let ours: Vec<String> = (0..CpuSet::MAX_CPU).filter(|i| ours.is_set(*i)).map(|i| i.to_string()).collect();
            return Err(ConfigError::Value {
                at: config.place("cores", 0).unwrap_or_else(|| Location::file(&config.path)),
                what: format!("cores names {core}, but this process may use {} only", ours.join(", ")),
                remedy: "take some of those, or remove the line to let the system choose".to_owned(),
            }
            .into());
        }
        let mut set = CpuSet::new();
        set.set(*core);
        Ok(set)
    };
    config.cores.iter().map(set).collect()
}

/// Whether this node's cells travel in GSO bursts; a line for the operator if they should and cannot.
fn offloads(shape: Shape, position: usize, sockets: &Sockets, offload: Offload) -> std::io::Result<Offloads> {
    let sides = [(Side::Up, sockets.up.first()), (Side::Down, sockets.down.first())];
    let sockets = sides.into_iter().filter_map(|(side, socket)| Some((side, socket?)));
    let (mut lens, mut ipv6) = (Vec::new(), false);
    for (side, socket) in sockets {
        // What arrives on one side has the length that leaves on the other, give or take a layer: both are tried.
        lens.push(lengths(shape, position, side).cell);
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

/// The system calls of a link socket; a line for the operator, the first time, if they are not those that were asked
/// for.
fn calls(socket: &UdpSocket, io: Io, said: &mut bool) -> Calls {
    let (calls, why) = Calls::new(io, socket);
    if let Some(why) = why
        && !std::mem::replace(said, true)
    {
        warn!("io_uring is not available (io = \"{io}\"): {why}; using recvmmsg and sendmmsg");
    }
    calls
}

/// Options of a link socket: cells whole, a receive buffer for bursts. A buffer that somebody asked for must
/// be had; the default need not.
fn prepare(socket: &UdpSocket, config: &NodeConfig, offloads: Offloads) -> Result<(), StartError> {
    let receive_buffer = config.receive_buffer;
    let granted =
        set_options(socket, receive_buffer, offloads).map_err(StartError::system("set options of a link socket"))?;
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
             net.core.rmem_max={receive_buffer}`, or the kernel drops bursts"
        );
    }
    Ok(())
}

/// Sets the options of a link socket. Returns the granted receive buffer in bytes.
fn set_options(socket: &UdpSocket, receive_buffer: usize, offloads: Offloads) -> std::io::Result<usize> {
    socket.set_nonblocking(true)?;
    whole(socket)?;
    if offloads.gro {
        sys::enable_gro(socket)?;
    }
    // The kernel grants twice what is asked and counts its own overhead against it.
    Ok(sys::size_receive_buffer(socket, receive_buffer)? / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

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
