//! A running node: control on one thread, workers on others ([`crate::runtime::workers`]), and the bridge between them
//! ([`crate::runtime::bridge`]).
//!
//! Starts and stops the threads. Control sends handshake datagrams itself, on duplicates of the link sockets; workers
//! send everything else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::SystemTime;

use control::{BadConfig, Config, Control, Role, Timing};
use dataplane::lanes::Lanes;
use dataplane::runner::Clock;
use dataplane::sys::Waker;
use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::warn;

use crate::ceremony::{span, utc};
use crate::config::{ConfigError, Loaded, Location, NodeConfig, NodeRole, Part, node_name, wall_s};
use crate::error::{NodeDied, StartError};
use crate::report::NodeReport;
use crate::runtime::bridge::Bridge;
use crate::runtime::control_thread::ControlThread;
use crate::runtime::door::Door;
use crate::runtime::drop_counter::DropCounter;
use crate::runtime::flood::Flood;
use crate::runtime::icmp::Icmp;
use crate::runtime::listeners::{Listeners, Times};
use crate::runtime::log::Log;
use crate::runtime::meter_alarm::MeterAlarm;
use crate::runtime::next_names::NextNames;
use crate::runtime::own_addresses::{self, OwnAddresses};
use crate::runtime::pauses::Pauses;
use crate::runtime::random::rng;
use crate::runtime::readiness::Readiness;
use crate::runtime::reporter::Reporter;
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
            watched.push(DropCounter::new(socket.try_clone().map_err(duplicate())?));
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
            meter_alarm: matches!(config.part, Part::Mix { meter_floor: 1.., .. })
                .then(|| MeterAlarm::new(clock.elapsed())),
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

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::UdpSocket;
    use std::time::Duration;

    use dataplane::entry::Association;
    use wire::cell::{Class, Shape};

    use crate::runtime::refused_flows::RefusedFlows;
    use crate::runtime::reporter::tests::idle_reporter;

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
}
