//! A node made from its files: its sockets, its threads, its status and command sockets.
//!
//! [`Running::start`] and [`check`] (`eddy config check`) share all checks that need no open socket.
//!
//! Neighbours: `eddy run` runs a node until a signal arrives; [`crate::client`] runs one in the process of a program
//! that uses the library.

use std::fs::File;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use control::Config;
use dataplane::entry::ListenerKind;
use dataplane::sys;
use listenfd::ListenFd;
use wire::cell::Shape;
use wire::gcm::Engine;
use wire::paced::{MeetingSecret, PacedTerms};

use crate::config::{
    ClassName, ConfigError, Forward, Loaded, Location, NodeConfig, NodeRole, Part, ServedClass, Terms,
};
use crate::error::{NodeDied, StartError};
use crate::figures::{Figures, warnings};
use crate::report::NodeReport;
use crate::runtime::console::{self, Forwards};
use crate::runtime::listeners::{self, Listeners};
use crate::runtime::local::{self, Bound, Server};
use crate::runtime::node::{self, ClassSpec, MeetingSpec, Node, NodeSpec};
use crate::runtime::readiness::Readiness;
use crate::runtime::seats::{self, TooManySeats};
use crate::runtime::sockets::{Plan, Sockets};
use crate::runtime::{resolver, status, workers};

/// A running node.
pub struct Running {
    node: Node,
    shape: Shape,
    ready: String,
    _status: Option<Server>,
    _console: Option<Server>,
    /// Of a hop's state and keys.
    _locks: Vec<File>,
}

impl Running {
    /// Starts a node on the sockets that were passed, or its own. A hop's files must be locked:
    /// [`Loaded::lock_and_read`].
    ///
    /// # Errors
    /// A mistake in its files, a socket that cannot be bound, or a refusal of the operating system.
    pub fn start(mut loaded: Loaded, passed: ListenFd) -> Result<Running, StartError> {
        let locks = std::mem::take(&mut loaded.locks);
        let Checked { plan, meetings, warnings } = prepare(&loaded, passed)?;
        loaded.notes.iter().for_each(|line| tracing::info!("{line}"));
        figures(&loaded).iter().for_each(|line| tracing::info!("{line}"));
        weaknesses(&loaded).iter().for_each(|line| tracing::warn!("{line}"));
        match loaded.files.settle_keys(&loaded.trust.view, loaded.position) {
            Ok(done) => done.iter().for_each(|line| tracing::info!("{line}")),
            Err(why) => tracing::warn!("cannot put the new keys in place: {why}"),
        }

        // First the Unix sockets: a node that runs already is found before its ports are.
        let bind = |(key, path): (&'static str, &PathBuf)| Bound::new(path, key, &loaded.config.place_of(key));
        let [status, commands] = local_sockets(&loaded.config);
        let (status, commands) = (status.map(bind).transpose()?, commands.map(bind).transpose()?);
        let reached: Vec<_> = plan.classes.iter().map(|class| (class.next, class.lanes)).collect();
        let sockets = plan.open()?;
        // Only now: a start that fails prints its reason alone.
        for warning in loaded.warnings.iter().chain(&warnings) {
            tracing::warn!("{warning}");
        }

        let (shape, ready) = (loaded.first_class().shape, ready_line(&loaded, &sockets));
        let of_class = |(((class, (next, lanes)), sockets), secret): (((ServedClass<'_>, _), _), Option<_>)| {
            let meeting = secret.zip(class.meeting()).map(|(secret, (forward, file))| MeetingSpec {
                secret,
                file: file.to_owned(),
                max_age: forward.max_age.unwrap_or(class.config.max_age),
            });
            let ServedClass { terms, shape, config, .. } = class;
            ClassSpec { terms, shape, config, next, lanes, sockets, meeting }
        };
        let of_chain = Terms::of(&loaded.chain.terms).map(|terms| (terms.name(), terms.paced().is_some()));
        let of_chain: Vec<_> = of_chain.collect();
        let first = of_chain.first().expect("a chain has a class").0.clone();
        let served = loaded.classes();
        let mut to_meetings: Vec<_> = served.iter().filter_map(to_meeting).collect();
        let classes = served.into_iter().zip(reached).zip(sockets).zip(meetings).map(of_class).collect();
        let node = Node::start(NodeSpec { loaded, classes })?;

        let status = status.map(|bound| status::serve(bound, node.reporter())).transpose();
        let status = status.map_err(StartError::system("serve the status socket"))?;
        for Forward { listen, class, .. } in &mut to_meetings {
            *listen = class.as_ref().and_then(|class| node.meeting(class)).unwrap_or(*listen);
        }
        let forwards = Forwards { first, of_chain, classes: node.class_listeners(), meetings: to_meetings };
        let console = commands.map(|bound| console::serve(bound, forwards));
        let console = console.transpose().map_err(StartError::system("serve the command socket"))?;
        Ok(Running { node, shape, ready, _status: status, _console: console, _locks: locks })
    }

    /// A log line with the node's name and addresses.
    pub fn ready(&self) -> &str {
        &self.ready
    }

    /// Class and length of the chain of its first class.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The listening sockets of an entry; `None` for other roles.
    pub fn listeners(&self) -> Option<Listeners> {
        self.node.listeners()
    }

    /// Those of a class that serves destinations.
    pub fn listeners_of(&self, class: &ClassName) -> Option<Listeners> {
        self.node.class_listeners().into_iter().find_map(|(one, listeners)| (one == *class).then_some(listeners))
    }

    /// The addresses of an entry's forwards in a class, or that of its meeting.
    pub fn listens(&self, class: &ClassName) -> Vec<SocketAddr> {
        let forwards = self.listeners_of(class).map(|listeners| listeners.forwards()).unwrap_or_default();
        forwards.into_iter().map(|(_, forward)| forward.listen).chain(self.node.meeting(class)).collect()
    }

    /// Changes the meeting of a class.
    ///
    /// # Errors
    /// The class serves no meeting.
    pub fn meet(&self, class: &ClassName, secret: MeetingSecret) -> Result<(), ConfigError> {
        self.node.meet(class, secret)
    }

    /// The progress of its link and channels, to wait for.
    pub fn readiness(&self) -> Arc<Readiness> {
        self.node.readiness()
    }

    /// A report of all counters.
    pub fn report(&self) -> NodeReport {
        self.node.report()
    }

    /// Reads descriptors and keys again and takes what is new; the log says what. Never ends the node.
    pub fn reload(&self) {
        self.node.reload();
    }

    /// True while all threads run.
    pub fn is_alive(&self) -> bool {
        self.node.is_alive()
    }

    /// Stops the node. Cells that it holds are sent if possible and counted otherwise. Returns the last report.
    ///
    /// # Errors
    /// A thread had died.
    pub fn stop(self) -> Result<NodeReport, NodeDied> {
        let Running { node, _status: status, _console: console, .. } = self;
        drop((status, console));
        node.stop()
    }
}

/// The forward of a class to a meeting, with the class and the time that its datagrams may wait.
fn to_meeting(served: &ServedClass<'_>) -> Option<Forward> {
    let (forward, _) = served.meeting()?;
    let max_age = forward.max_age.or(Some(served.config.max_age));
    Some(Forward { class: Some(served.terms.name()), max_age, ..forward.clone() })
}

/// A node that may be started.
struct Checked {
    plan: Plan,
    /// The secret of each class that has a meeting.
    meetings: Vec<Option<MeetingSecret>>,
    warnings: Vec<String>,
}

/// Checks everything that can be wrong before a socket is opened.
fn prepare(loaded: &Loaded, passed: ListenFd) -> Result<Checked, StartError> {
    let config = &loaded.config;
    engine()?;
    loaded.check_classes()?;
    names_fit(loaded)?;
    for (key, path) in local_sockets(config).into_iter().flatten() {
        local::check_path(path, key, &config.place_of(key))?;
    }
    let plan = Plan::new(loaded, passed)?;
    let served = loaded.classes();
    served.iter().try_for_each(|class| clock_is_kept(class, sys::is_clock_kept().ok()))?;
    seats_open_in_time(loaded, &served)?;
    let meetings = served.iter().map(ServedClass::read_meeting).collect::<Result<_, _>>()?;
    served.iter().try_for_each(|class| workers::check_cores(&class.config))?;
    if let Part::Exit(part) = &config.part {
        resolver::check(part.resolver)?;
    }
    let configs: Vec<_> =
        served.iter().zip(&plan.classes).map(|(served, plan)| node::control_config(served, plan.next)).collect();
    Config::check(&configs, &loaded.trust, SystemTime::now()).map_err(|why| node::bad_config(config, &why))?;
    let mut warnings = plan.warnings.clone();
    if config.role() != NodeRole::Exit && plan.classes.iter().any(|class| class.next.is_none()) {
        warnings.push("no name of the next hop resolves now; trying again while the node runs".to_owned());
    }
    Ok(Checked { plan, meetings, warnings })
}

/// Checks everything that a start checks, for a node that may be running: its ports stay free. Resolves the name of the
/// next hop, and sends nothing else. Returns the warnings that a start would log.
///
/// # Errors
/// The first mistake, with its remedy.
pub fn check(loaded: &Loaded) -> Result<Vec<String>, StartError> {
    let Checked { plan, mut warnings, .. } = prepare(loaded, ListenFd::empty())?;
    plan.check_addresses()?;
    warnings.extend(workers::check_receive_buffer(&loaded.config)?);
    Ok(loaded.warnings.iter().cloned().chain(warnings).collect())
}

/// The status socket and the command socket with their keys, where the node has them.
fn local_sockets(config: &NodeConfig) -> [Option<(&'static str, &PathBuf)>; 2] {
    let commands = match &config.part {
        Part::Entry(part) => part.commands.as_ref(),
        Part::Mix { .. } | Part::Exit(_) => None,
    };
    [config.status.as_ref().map(|path| ("status", path)), commands.map(|path| ("commands", path))]
}

/// The engine that all keys will be prepared for.
///
/// # Errors
/// `EDDY_AEAD` names an engine that does not exist or that this CPU cannot run.
pub fn engine() -> Result<Engine, ConfigError> {
    wire::gcm::select().map_err(|why| ConfigError::Arguments(why.to_string()))
}

/// Checks that the clock of a hop with a paced class is synchronised (SPEC 9.5.3). One that cannot be asked passes.
fn clock_is_kept(class: &ServedClass<'_>, is_kept: Option<bool>) -> Result<(), ConfigError> {
    let config = &class.config;
    let needs = class.terms.paced().is_some() && config.role() != NodeRole::Entry && !config.unsynchronised_clock;
    if !needs || is_kept.unwrap_or(true) {
        return Ok(());
    }
    Err(ConfigError::Value {
        at: config.place_of("unsynchronised_clock"),
        what: format!(
            "this host's clock is not synchronised, but class {} releases rounds by it, as all hops do",
            class.terms.name()
        ),
        remedy:
            "run `sudo timedatectl set-ntp true` and wait until `timedatectl` reports it as synchronized; or, if all \
                 hops of the chain are on this host, set `unsynchronised_clock = true`"
                .to_owned(),
    })
}

/// Checks that a hop opens the setups of its paced classes in time (SPEC 9.16.3).
fn seats_open_in_time(loaded: &Loaded, served: &[ServedClass<'_>]) -> Result<(), ConfigError> {
    if loaded.position == 0 {
        return Ok(());
    }
    let paced: Vec<_> = served.iter().filter_map(|class| class.terms.paced()).collect();
    let terms = &loaded.chain.terms;
    seats::check(&paced, terms.suite, terms.identities.len(), loaded.position).map_err(|too_many| {
        let TooManySeats { class, seats, takes, room } = too_many;
        ConfigError::Value {
            at: loaded.files.chain.as_deref().map_or_else(|| loaded.config.place_of("chain"), Location::file),
            what: format!(
                "paced classes have room for {seats} channels here, whose setups take this host {}, but a phase of class \
                 {class} has {} for them",
                time(takes),
                time(room)
            ),
            remedy: "run the hop on a faster host, or make a chain with fewer `seats` or more `rounds`".to_owned(),
        }
    })
}

/// `620 ms`, `1.2 s`.
fn time(of: Duration) -> String {
    if of < Duration::from_secs(1) { format!("{} ms", of.as_millis()) } else { format!("{:.1} s", of.as_secs_f64()) }
}

/// Checks that names fit in one cell of their class, without which their flows could not be opened (SPEC 3.12).
fn names_fit(loaded: &Loaded) -> Result<(), ConfigError> {
    for ServedClass { terms, config, .. } in loaded.classes() {
        let Part::Entry(entry) = &config.part else { return Ok(()) };
        for (i, forward) in entry.forwards.iter().enumerate() {
            let Some(to) = forward.to.destination() else { continue };
            listeners::fits(&terms.payload(), to).map_err(|why| match config.place("forward", i) {
                Some(place) => ConfigError::Arguments(format!("{place}: {why}")),
                None => why,
            })?;
        }
    }
    Ok(())
}

/// What each paced class of an entry carries, costs and adds.
fn figures(loaded: &Loaded) -> Vec<String> {
    let suite = loaded.chain.terms.suite;
    let classes = if loaded.position == 0 { loaded.classes() } else { Vec::new() };
    let of_class = |class: &ServedClass<'_>| {
        let terms = class.terms.paced()?;
        let (name, n_min) = (class.terms.name(), terms.n_min);
        let lines = Figures::of(terms, suite, class.shape.hops()).lines();
        let said: Vec<String> = lines.iter().map(|(name, what)| format!("{name} {what}")).collect();
        let how = match class.meeting() {
            Some(_) => "serves a meeting: with one honest mix, nobody outside sees who of a batch calls whom",
            None => "serves destinations: losses on your access link show outside, so calls that matter should meet",
        };
        Some([
            format!(
                "class {name} {how}; batches of fewer than {n_min} channels (n_min) carry nothing: `eddy status` shows \
                 how many there are"
            ),
            format!("class {name} {}", said.join("; ")),
        ])
    };
    classes.iter().filter_map(of_class).flatten().collect()
}

/// What the terms of the paced classes of an entry take from its promise.
fn weaknesses(loaded: &Loaded) -> Vec<String> {
    let classes = if loaded.position == 0 { loaded.classes() } else { Vec::new() };
    let of_class = |terms: &PacedTerms| {
        let lines = warnings(terms).into_iter();
        lines.map(|lines| format!("class {}: {}", terms.name, lines.replace('\n', " "))).collect::<Vec<_>>()
    };
    classes.iter().filter_map(|class| class.terms.paced()).flat_map(of_class).collect()
}

fn ready_line(loaded: &Loaded, classes: &[Sockets]) -> String {
    let mut line = format!("ready: {} of chain {}", loaded.name(), loaded.chain.short_id());
    for (served, sockets) in loaded.classes().iter().zip(classes) {
        line += &match classes.len() {
            1 => ", ".to_owned(),
            _ => format!("; class {}: ", served.terms.name()),
        };
        line += &addresses(sockets).join(", ");
    }
    let status = &loaded.config.status;
    status.as_ref().map_or(line.clone(), |status| format!("{line}, status {}", status.display()))
}

/// The sockets of a class with their addresses.
fn addresses(sockets: &Sockets) -> Vec<String> {
    let local = |socket: &UdpSocket| socket.local_addr().map_or_else(|why| why.to_string(), |a| a.to_string());
    let mut all = Vec::new();
    for (name, sockets) in [("up", &sockets.up), ("down", &sockets.down)] {
        let lanes = if sockets.len() > 1 { format!(" ({} lanes)", sockets.len()) } else { String::new() };
        all.extend(sockets.first().map(|socket| format!("{name} {}{lanes}", local(socket))));
    }
    for (socket, listener) in &sockets.listeners {
        match &listener.kind {
            ListenerKind::Forward(to) => all.push(format!("forward {}={to}", local(socket))),
            ListenerKind::Pymix => all.push(format!("pymix {}", local(socket))),
            ListenerKind::Socks(_) => {}
        }
    }
    if let Some(socket) = &sockets.meeting {
        all.push(format!("meeting {}", local(socket)));
    }
    for socket in &sockets.socks {
        let at = socket.local_addr().map_or_else(|why| why.to_string(), |at| at.to_string());
        all.push(format!("socks {at}"));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{IpAddr, TcpStream};
    use std::time::Instant;

    use super::*;
    use crate::client::{Destination, Entry, UdpTunnel};
    use crate::config::served::tests::{chain_of_a_paced_class, chain_of_two_classes, chain_with_seats};
    use crate::report::paced::MeetingReport;

    /// Sends to `at` until the echo comes back.
    fn expect_echo(client: &UdpSocket, at: SocketAddr, what: &[u8]) {
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut buffer = [0; 2048];
        loop {
            assert!(Instant::now() < deadline, "no echo through {at}");
            client.send_to(what, at).unwrap();
            if let Ok((len, from)) = client.recv_from(&mut buffer)
                && (&buffer[..len], from) == (what, at)
            {
                return;
            }
        }
    }

    /// The address of a server that sends back what comes.
    fn echo() -> SocketAddr {
        let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = echo.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = echo.recv_from(&mut buffer) {
                let _ = echo.send_to(&buffer[..len], from);
            }
        });
        at
    }

    #[test]
    fn node_serves_both_classes_of_its_chain() {
        let dir = tempfile::tempdir().unwrap();
        let files = chain_of_two_classes(dir.path());
        let (client, destination) = (UdpSocket::bind("127.0.0.1:0").unwrap(), echo());
        client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();

        let mut entry = std::fs::read_to_string(&files.entry).unwrap();
        for class in ["S", "L"] {
            entry += &format!("[[forward]]\nlisten = \"127.0.0.1:0\"\nto = \"{destination}\"\nclass = \"{class}\"\n");
        }
        entry += "[class.L]\nchannels = 2\n";
        std::fs::write(&files.entry, entry).unwrap();
        let start = |path: &PathBuf| Running::start(Loaded::read(path).unwrap(), ListenFd::empty()).unwrap();
        let nodes: Vec<Running> = files.hops.iter().chain([&files.entry]).map(start).collect();

        let entry = &nodes[2];
        assert!(entry.ready().contains("; class S: down ") && entry.ready().contains("; class L: down "));
        let forwards: Vec<SocketAddr> =
            entry.node.class_listeners().iter().map(|(_, listeners)| listeners.forwards()[0].1.listen).collect();
        // Each in one cell of its class, but too long for one of class S.
        for (at, len) in forwards.into_iter().zip([100, 1000]) {
            expect_echo(&client, at, &vec![7; len]);
        }
        for node in nodes {
            let report = node.stop().unwrap();
            assert_eq!(report.classes.keys().collect::<Vec<_>>(), ["L", "S"]);
            for (name, class) in &report.classes {
                assert!(class.ledger.closed(), "{} {name}: {:?}", report.name(), class.ledger);
                assert!(class.ledger.cells.forward.sent + class.ledger.cells.forward.received > 0);
                assert!(class.handshakes.channels_opened > 0, "{} {name}", report.name());
            }
            assert_eq!(report.ledger, report.classes["S"].ledger);
        }
    }

    /// Sends a datagram into the chain, and says whether it has come back.
    type Way = Box<dyn FnMut() -> bool>;

    /// Uses all of these at the same time until five datagrams have come back on each.
    fn expect_echoes(mut ways: Vec<Way>) {
        let (deadline, mut came) = (Instant::now() + Duration::from_secs(120), vec![0; ways.len()]);
        while came.iter().any(|count| *count < 5) {
            assert!(Instant::now() < deadline, "echoes: {came:?}");
            ways.iter_mut().zip(&mut came).for_each(|(way, count)| *count += usize::from(way()));
        }
    }

    fn socket() -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket
    }

    /// A way through a forward.
    fn through_forward(at: SocketAddr) -> impl FnMut() -> bool {
        let (socket, mut buffer) = (socket(), [0; 2048]);
        move || {
            socket.send_to(&[7; 100], at).unwrap();
            socket.recv_from(&mut buffer).is_ok_and(|(len, from)| (&buffer[..len], from) == (&[7; 100][..], at))
        }
    }

    /// A way through a SOCKS port (RFC 1928), without a name. `client` is its connection.
    fn through_socks(client: &mut TcpStream, to: SocketAddr) -> impl FnMut() -> bool + use<> {
        let mut answer = [0; 10];
        client.write_all(&[5, 1, 0]).unwrap();
        client.read_exact(&mut answer[..2]).unwrap();
        assert_eq!(answer[..2], [5, 0]);
        client.write_all(&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..4], [5, 0, 0, 1]);
        let [.., a, b, c, d, high, low] = answer;
        let relay = SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])));
        let IpAddr::V4(host) = to.ip() else { panic!("{to} is of IPv4") };
        let header = [&[0, 0, 0, 1][..], &host.octets(), &to.port().to_be_bytes()].concat();
        let (socket, mut buffer) = (socket(), [0; 2048]);
        move || {
            let datagram = [&header[..], &[8; 100]].concat();
            socket.send_to(&datagram, relay).unwrap();
            socket.recv_from(&mut buffer).is_ok_and(|(len, _)| buffer[..len] == datagram)
        }
    }

    /// A way through a tunnel of the library.
    fn through_tunnel(tunnel: UdpTunnel, to: SocketAddr) -> impl FnMut() -> bool {
        tunnel.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (to, mut buffer) = (Destination::Ip(to), [0; 2048]);
        move || {
            tunnel.send_to(&[9; 100], &to).unwrap();
            tunnel.recv_from(&mut buffer).is_ok_and(|(len, from)| buffer[..len] == [9; 100] && from == to)
        }
    }

    /// Stops the nodes of a chain with the class `voice`, whose ledgers must close.
    fn stop_paced(nodes: Vec<Running>) {
        for node in nodes {
            let report = node.stop().unwrap();
            let class = &report.classes["voice"];
            assert!(class.ledger.closed(), "{}: {:?}", report.name(), class.ledger);
            assert!(class.ledger.cells.forward.sent + class.ledger.cells.forward.received > 0);
        }
    }

    #[test]
    fn flows_and_calls_pass_a_chain_with_a_paced_class() {
        let dir = tempfile::tempdir().unwrap();
        let files = chain_of_a_paced_class(dir.path());
        let destination = echo();
        let voice: ClassName = "voice".parse().unwrap();
        let forward = |to: &str, class: &str| {
            format!("[[forward]]\nlisten = \"127.0.0.1:0\"\nto = \"{to}\"\nclass = \"{class}\"\n")
        };
        let text = std::fs::read_to_string(&files.entry).unwrap();

        // An address of this test alone.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let socks = SocketAddr::from(([127, 93, high, low.max(1)], 4720));
        let forwards = ["S", "voice"].map(|class| forward(&destination.to_string(), class)).concat();
        let of_class = format!("[class.voice]\nsocks = [\"{socks}\"]\n");
        std::fs::write(&files.entry, [&text, &forwards, &of_class].map(String::as_str).concat()).unwrap();
        let start = |path: &PathBuf| Running::start(Loaded::read(path).unwrap(), ListenFd::empty()).unwrap();
        let mut nodes: Vec<Running> = files.hops.iter().map(start).collect();
        let entry = Entry::start(&files.entry).unwrap();
        let mut client = TcpStream::connect(socks).unwrap();
        expect_echoes(vec![
            Box::new(through_forward(entry.listens(&"S".parse().unwrap())[0])),
            Box::new(through_forward(entry.listens(&voice)[0])),
            Box::new(through_socks(&mut client, destination)),
            Box::new(through_tunnel(UdpTunnel::open_in(&entry, &voice).unwrap(), destination)),
        ]);
        let report = entry.shutdown().unwrap();
        for class in ["S", "voice"] {
            let ledger = &report.classes[class].ledger;
            let sent = ledger.datagrams.as_ref().map(|datagrams| datagrams.backward.sent);
            assert!(ledger.closed() && sent >= Some(5), "{class}: {ledger:?}");
        }

        // The same hops join two entries with one secret.
        let secret = dir.path().join("call.secret");
        let write = |bytes| std::fs::write(&secret, MeetingSecret::new([bytes; 32]).to_text().as_bytes()).unwrap();
        write(7);
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        for end in [1, 2] {
            let path = dir.path().join(format!("entry{end}.toml"));
            let text = [&text, &forward("meet:@call.secret", "voice")].map(String::as_str).concat();
            std::fs::write(&path, text.replace("entry.", &format!("entry{end}."))).unwrap();
            nodes.push(start(&path));
        }
        let ends = [&nodes[2], &nodes[3]].map(|entry| entry.listens(&voice)[0]);
        let sockets = [socket(), socket()];
        // Both ends talk until both are in this state, and have heard each other in it if they are joined.
        let wait_for = |state: MeetingReport| {
            let deadline = Instant::now() + Duration::from_secs(120);
            let (mut heard, mut buffer) = ([false; 2], [0; 2048]);
            let is_in = |entry: &Running| {
                let paced = entry.report().classes["voice"].paced.clone();
                paced.and_then(|paced| paced.entry?.meeting) == Some(state)
            };
            while !nodes[2..].iter().all(is_in) || (state == MeetingReport::Joined && heard != [true; 2]) {
                assert!(Instant::now() < deadline, "the ends are not {state:?}, or do not hear each other: {heard:?}");
                for (i, (socket, at)) in sockets.iter().zip(&ends).enumerate() {
                    socket.send_to(&[i as u8; 100], at).unwrap();
                    if let Ok((len, from)) = socket.recv_from(&mut buffer)
                        && (&buffer[..len], from) == (&[1 - i as u8; 100][..], *at)
                    {
                        heard[i] = true;
                    }
                }
            }
        };
        wait_for(MeetingReport::Joined);
        for entry in &nodes[2..] {
            assert!(entry.report().classes.keys().eq(["voice"]), "the free class is not used");
        }
        // One of them gets another secret in its file, then the other one by the library.
        write(8);
        nodes[2].reload();
        wait_for(MeetingReport::Waiting);
        nodes[3].meet(&voice, MeetingSecret::new([8; 32])).unwrap();
        wait_for(MeetingReport::Joined);
        stop_paced(nodes);
    }

    #[test]
    fn entry_says_among_how_many_a_class_hides_at_least() {
        let dir = tempfile::tempdir().unwrap();
        let files = chain_with_seats(dir.path(), 256);
        let text = std::fs::read_to_string(&files.entry).unwrap();
        for (to, serves) in [("meet:@call.secret", "serves a meeting"), ("192.0.2.1:5", "serves destinations")] {
            let forward = format!("[[forward]]\nlisten = \"5000\"\nto = \"{to}\"\nclass = \"voice\"\n");
            std::fs::write(&files.entry, [&text, &forward].map(String::as_str).concat()).unwrap();
            let loaded = Loaded::read_files(NodeConfig::read(&files.entry).unwrap()).unwrap();
            let n_min = loaded.chain.terms.paced[0].n_min;
            let said = figures(&loaded).concat();
            assert!(said.contains(serves) && said.contains(&format!("fewer than {n_min} channels")), "{said}");
            let [company, loops] = &weaknesses(&loaded)[..] else { panic!("{:?}", weaknesses(&loaded)) };
            assert!(company.starts_with("class voice: n_min = 1 lets ") && !company.contains('\n'), "{company}");
            assert!(loops.starts_with("class voice: loops = 0: "), "{loops}");
        }
    }

    #[test]
    fn hop_with_a_paced_class_needs_a_synchronised_clock() {
        let dir = tempfile::tempdir().unwrap();
        let files = chain_of_a_paced_class(dir.path());
        let check = |path: &PathBuf, accepts: bool, is_kept: bool| {
            let mut config = NodeConfig::read(path).unwrap();
            assert!(config.unsynchronised_clock || config.role() == NodeRole::Entry, "all hops are on this host");
            config.unsynchronised_clock = accepts;
            let loaded = Loaded::read_files(config).unwrap();
            loaded
                .classes()
                .iter()
                .find_map(|class| clock_is_kept(class, Some(is_kept)).err())
                .map(|why| why.to_string())
        };
        let why = check(&files.hops[0], false, false).unwrap();
        assert!(why.contains("class voice releases rounds by it") && why.contains("timedatectl"), "{why}");
        assert_eq!(check(&files.hops[0], true, false), None);
        assert_eq!(check(&files.hops[0], false, true), None);
        assert_eq!(check(&files.entry, false, false), None, "an entry follows mix1");
    }

    #[test]
    fn hop_refuses_a_class_whose_setups_it_cannot_open_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let files = chain_with_seats(dir.path(), 16_384);
        let check = |path: &PathBuf| {
            let loaded = Loaded::read_files(NodeConfig::read(path).unwrap()).unwrap();
            seats_open_in_time(&loaded, &loaded.classes()).map_err(|why| why.to_string())
        };
        let why = check(&files.hops[0]).unwrap_err();
        assert!(why.contains("chain.toml: paced classes have room for 16384 channels here"), "{why}");
        assert!(why.contains("a phase of class voice has 120 ms for them") && why.contains("fewer `seats`"), "{why}");
        assert_eq!(check(&files.entry), Ok(()), "an entry opens none");
    }
}
