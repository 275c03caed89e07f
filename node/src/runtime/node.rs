//! A running node: control on one thread, the workers of each class on others ([`crate::runtime::workers`]), and the
//! bridge between them ([`crate::runtime::bridge`]).
//!
//! Starts and stops the threads. Control sends handshake datagrams itself, on duplicates of the link sockets; workers
//! send everything else.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::SystemTime;

use control::{BadConfig, Config, Control, Role, Timing};
use dataplane::exit::QUESTIONS_MAX;
use dataplane::runner::Clock;
use dataplane::sys::Waker;
use rustix::process::{Resource, getrlimit, setrlimit};
use tracing::warn;
use wire::cell::Shape;
use wire::paced::MeetingSecret;

use crate::ceremony::{span, utc};
use crate::config::{
    ClassName, ConfigError, Loaded, Location, NodeConfig, NodeRole, Part, ServedClass, Terms, node_name, wall_s,
};
use crate::error::{NodeDied, StartError};
use crate::report::NodeReport;
use crate::runtime::bridge::Bridge;
use crate::runtime::class::Start;
use crate::runtime::control_thread::ControlThread;
use crate::runtime::icmp::Icmp;
use crate::runtime::listeners::Listeners;
use crate::runtime::own_addresses::{self, OwnAddresses};
use crate::runtime::pauses::Pauses;
use crate::runtime::random::rng;
use crate::runtime::readiness::Readiness;
use crate::runtime::reporter::{ClassReporter, Reporter, lock};
use crate::runtime::socks;
use crate::runtime::trust_keeper::TrustKeeper;

pub use crate::runtime::class::{ClassSpec, MeetingSpec};

/// Everything that a node is started with.
pub struct NodeSpec {
    pub loaded: Loaded,
    /// Those that it serves, in the chain's order.
    pub classes: Vec<ClassSpec>,
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
    socks: Vec<socks::Server>,
    /// Of each class that serves one: its place, and the address of its socket.
    meetings: Vec<(ClassName, usize, SocketAddr)>,
    /// Secrets that control has not taken yet.
    new_meetings: Arc<Mutex<Vec<(usize, MeetingSecret)>>>,
}

/// Descriptors for status clients and the node's own sockets.
pub const DESCRIPTORS_OWN: usize = 64;
/// Descriptors of each class of an exit that flows may not use: its own, and one for each question to its resolver.
pub const DESCRIPTORS_KEPT: usize = DESCRIPTORS_OWN + QUESTIONS_MAX;

/// Sockets for flows that each of an exit's classes may have under a limit of open files.
fn sockets_within(limit: u64, classes: usize) -> usize {
    (limit as usize / classes).saturating_sub(DESCRIPTORS_KEPT).max(1)
}

/// Raises the limit of open files as far as the process may. Lowers the `max_sockets` of an exit's classes to it, so
/// that status clients still get a descriptor.
fn raise_descriptors(classes: &mut [ClassSpec]) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let count = classes.len();
    for (place, ClassSpec { config, .. }) in classes.iter_mut().enumerate() {
        if let Part::Exit(part) = &mut config.part
            && let Some(now) = getrlimit(Resource::Nofile).current
            && part.max_sockets > sockets_within(now, count)
        {
            let wanted = part.max_sockets;
            part.max_sockets = sockets_within(now, count);
            if place == 0 {
                warn!(
                    "max_sockets is {} instead of {wanted}, because the limit of open files is {now}: run `ulimit -Hn {}` \
                     as root before you start the exit, or lower max_sockets",
                    part.max_sockets,
                    count * (wanted + DESCRIPTORS_KEPT)
                );
            }
        }
    }
}

/// Channels with which a class of an entry is ready.
fn wanted_channels(class: &ClassSpec) -> usize {
    match (&class.config.part, class.terms.paced()) {
        (Part::Entry(_), Some(_)) => 1,
        (Part::Entry(part), None) => part.channels,
        (Part::Mix { .. } | Part::Exit(_), _) => 0,
    }
}

impl Node {
    /// Starts the threads.
    ///
    /// # Errors
    /// A socket option, a thread or the resolver is refused by the system.
    pub fn start(spec: NodeSpec) -> Result<Node, StartError> {
        let NodeSpec { loaded, mut classes } = spec;
        raise_descriptors(&mut classes);
        let configs =
            classes.iter().map(|spec| class_config(&loaded, &spec.config, (&spec.terms, spec.shape), spec.next));
        let configs = configs.collect();
        let Loaded { config, chain, files, position, trust, socks_users, .. } = loaded;
        let role = config.role();
        let clock = Clock::start();
        let control_waker = Arc::new(Waker::new().map_err(StartError::system("create an event descriptor"))?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut control = Control::new(configs, trust, rng()?, clock.elapsed(), SystemTime::now())
            .map_err(|why| bad_config(&config, &why))?;

        let mut meetings = Vec::new();
        for (place, class) in classes.iter().enumerate() {
            if let (Some(meeting), Some(socket)) = (&class.meeting, &class.sockets.meeting) {
                control.meet(place, meeting.secret.clone());
                let at = socket.local_addr().map_err(StartError::system("read the address of a meeting's socket"))?;
                meetings.push((class.terms.name(), place, at));
            }
        }

        let readiness = Arc::new(Readiness::new(classes.iter().map(wanted_channels)));
        let (stop_all, waker) = (&stop, &control_waker);
        let start = Start {
            chain: &chain,
            position,
            has_many: classes.len() > 1,
            clock,
            stop: stop_all,
            waker,
            control: &control,
        };
        let (mut workers, mut wakers, mut ends, mut states) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut sockets, mut reporters, mut socks) = (Vec::new(), Vec::new(), Vec::new());
        for (place, class) in classes.into_iter().enumerate() {
            let started = start.class(place, class, workers.len())?;
            workers.extend(started.workers);
            wakers.extend(started.wakers);
            ends.push(started.ends);
            states.push(started.state);
            sockets.push(started.sockets);
            socks.push((started.socks, started.reporter.listeners.clone()));
            reporters.push(started.reporter);
        }

        let mut bridge = Bridge::new(control, ends);
        let own_addresses = match &config.part {
            Part::Exit(part) => {
                let own = OwnAddresses::new(part.own.clone(), clock.elapsed(), own_addresses::of_host);
                let own = own.map_err(StartError::system("list this host's addresses"))?;
                bridge.own_addresses(&own.all());
                Some(own)
            }
            Part::Entry(_) | Part::Mix { .. } => None,
        };
        let (trust_status, chain_id) = (Arc::default(), chain.id);
        let names_classes = reporters.len() > 1 || reporters[0].id != chain.terms.first_class();
        let classes = reporters.into();
        let reporter =
            Reporter { role, position, chain: chain_id, trust: trust_status, clock, readiness, classes, names_classes };

        let reload = Arc::new(AtomicBool::new(false));
        let new_meetings = Arc::<Mutex<_>>::default();
        let hop_names = (1..=chain.descriptors.len()).map(|hop| node_name(chain.role(hop), hop)).collect();
        let thread = ControlThread {
            bridge,
            classes: states,
            sockets,
            own_addresses,
            trust: TrustKeeper::new(files, &chain, position, hop_names),
            reload: reload.clone(),
            new_meetings: new_meetings.clone(),
            icmp: (role == NodeRole::Entry).then(Icmp::open),
            rng: rng()?,
            pauses: Pauses::default(),
            reporter: reporter.clone(),
            waker: control_waker.clone(),
            stop: stop.clone(),
        };
        let control = std::thread::Builder::new().name("control".into()).spawn(move || thread.run());
        let control = control.map_err(StartError::system("start the control thread"))?;

        // Last, because clients may connect at once.
        let serve = |(sockets, listeners): (Vec<TcpListener>, Option<Listeners>)| {
            let listeners = listeners.filter(|_| !sockets.is_empty())?;
            Some(socks::serve(sockets, socks_users.clone(), listeners))
        };
        let socks = socks.into_iter().filter_map(serve).collect::<std::io::Result<Vec<_>>>();
        let socks = socks.map_err(StartError::system("serve the SOCKS ports"))?;
        Ok(Node { reporter, stop, wakers, control_waker, reload, workers, control, socks, meetings, new_meetings })
    }

    /// The listening sockets of an entry's first class; `None` for other roles.
    pub fn listeners(&self) -> Option<Listeners> {
        self.reporter.classes[0].listeners.clone()
    }

    /// Those of all its classes; none for other roles.
    pub fn class_listeners(&self) -> Vec<(ClassName, Listeners)> {
        let of_class = |class: &ClassReporter| Some((class.class.clone(), class.listeners.clone()?));
        self.reporter.classes.iter().filter_map(of_class).collect()
    }

    /// The progress of the links and the channels of its classes, to wait for.
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

    /// The address of the socket of a class's meeting.
    pub fn meeting(&self, class: &ClassName) -> Option<SocketAddr> {
        self.meetings.iter().find(|(one, ..)| one == class).map(|(.., at)| *at)
    }

    /// Changes the meeting of a class.
    ///
    /// # Errors
    /// It has none.
    pub fn meet(&self, class: &ClassName, secret: MeetingSecret) -> Result<(), ConfigError> {
        let Some((_, place, _)) = self.meetings.iter().find(|(one, ..)| one == class) else {
            let what = format!("class {class} of this entry serves no meeting: start it with a forward to meet:@FILE");
            return Err(ConfigError::Arguments(what));
        };
        lock(&self.new_meetings).push((*place, secret));
        self.control_waker.wake();
        Ok(())
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
        self.reporter.classes.iter().filter_map(|class| class.listeners.as_ref()).for_each(Listeners::close_all);
        control?;
        if workers.iter().any(Result::is_err) {
            return Err(NodeDied { thread: "worker" });
        }
        Ok(self.reporter.report())
    }
}

/// The configuration of control for a class. `next` is the address of the next hop.
pub fn control_config(class: &ServedClass<'_>, next: Option<SocketAddr>) -> Config {
    class_config(class.loaded, &class.config, (&class.terms, class.shape), next)
}

fn class_config(
    loaded: &Loaded,
    config: &NodeConfig,
    (of_class, shape): (&Terms, Shape),
    next: Option<SocketAddr>,
) -> Config {
    let Loaded { chain, position, psks, .. } = loaded;
    let role = match &config.part {
        Part::Entry(part) => Role::Entry { channels: part.channels },
        Part::Mix { .. } => Role::Mix,
        Part::Exit(_) => Role::Exit,
    };
    Config {
        role,
        shape,
        position: *position,
        terms: chain.terms.clone(),
        next: next.filter(|_| config.next.is_some()),
        previous: config.previous.clone(),
        shared_prefixes: config.shared_prefixes.clone(),
        paced: of_class.paced().is_some(),
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
    use wire::cell::Class;

    use crate::config::class_name::tests::payload_of;
    use crate::runtime::listeners::Times;
    use crate::runtime::refused_flows::RefusedFlows;
    use crate::runtime::reporter::tests::{idle_class, reporter_of};

    #[test]
    fn every_class_of_an_exit_keeps_descriptors_for_its_resolver() {
        for classes in 1..4 {
            let sockets = sockets_within(2000, classes);
            assert!((1990..=2000).contains(&(classes * (sockets + QUESTIONS_MAX + DESCRIPTORS_OWN))), "{classes}");
        }
        assert_eq!(sockets_within(100, 2), 1);
    }

    #[test]
    fn tunnels_end_even_if_the_control_thread_panicked() {
        let waker = Arc::new(Waker::new().unwrap());
        let times = Times { idle: Duration::from_secs(300), max_age: Duration::from_millis(250) };
        let listeners = Listeners::new(payload_of(Class::S), times, &[], waker.clone()).unwrap();
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
            reporter: reporter_of(ClassReporter { listeners: Some(listeners), ..idle_class() }),
            stop,
            wakers: Vec::new(),
            control_waker: waker,
            reload: Arc::default(),
            workers: vec![worker],
            control: std::thread::spawn(|| panic!("part of the test")),
            socks: Vec::new(),
            meetings: Vec::new(),
            new_meetings: Arc::default(),
        };
        assert_eq!(node.stop().unwrap_err().thread, "control");
        assert!(worker_ended.load(Ordering::Acquire) && refused.has_ended());
    }
}
