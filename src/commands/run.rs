//! `eddy entry`, `eddy mix`, `eddy exit`, `eddy run`: one node, until it is told to end.
//!
//! Owns the life of the process: files in, signals, the last report. Its sockets come from
//! [`crate::sockets`]; what the node does meanwhile is [`crate::node`]'s.

use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use anyhow::Context;
use dataplane::entry::Kind;
use dataplane::exit::policy::Rule;
use listenfd::ListenFd;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use wire::cell::Shape;
use wire::frames;
use wire::gcm::Engine;

use crate::cli::NodeArgs;
use crate::config::{ConfigError, Forward, Loaded, NodeConfig, NodeRole, Part, Place, node_name};
use crate::local::Bound;
use crate::node::{Node, NodeSpec, Sockets};
use crate::report::{self, NodeReport};
use crate::{console, listeners, sockets, status};

/// How often a running node is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What the command line adds to the configuration.
#[derive(Debug, Default)]
pub struct Extras {
    /// More forwards, at the entry.
    pub forwards: Vec<Forward>,
    /// More pymix ports, at the entry.
    pub pymix: Vec<SocketAddr>,
    /// More SOCKS ports, at the entry.
    pub socks: Vec<SocketAddr>,
    /// More networks, at the exit.
    pub allow: Vec<Rule>,
    /// Networks to keep from, at the exit.
    pub deny: Vec<Rule>,
}

/// Runs a node until SIGTERM, SIGINT or, with a lifeline, the end of standard input; one of any role, unless it is said.
///
/// # Errors
/// A mistake in its files, a socket that cannot be had, or what the node itself refuses.
pub fn run(wanted: Option<NodeRole>, args: &NodeArgs, extras: Extras) -> anyhow::Result<()> {
    // Before anything else: this reads and clears the environment.
    let passed = ListenFd::from_env();
    start_log();
    engine()?;
    let mut config = NodeConfig::read(&args.config)?;
    if let Some(keys) = &args.keys {
        config.keys = keys.clone();
    }
    let mut loaded = Loaded::read_files(config)?;
    let role = loaded.config.role();
    if let Some(wanted) = wanted.filter(|wanted| *wanted != role) {
        let (file, verb) = (args.config.display(), role.name());
        return Err(ConfigError::Arguments(format!(
            "{file} configures {}, not {}: run `eddy {verb} --config {file}`",
            role.with_article(),
            wanted.with_article()
        ))
        .into());
    }
    extend(&mut loaded, extras);
    loaded.config.offload = args.offload.unwrap_or(loaded.config.offload);
    loaded.config.io = args.io.unwrap_or(loaded.config.io);
    names_fit(&loaded)?;
    let stop = stop_on_signals(args.lifeline)?;
    let place = loaded.config.place("status", 0).unwrap_or_else(|| Place::file(&args.config));
    let status = Bound::new(&loaded.config.status, "status", &place)?;
    let commands = match &loaded.config.part {
        Part::Entry(part) => part.commands.as_ref(),
        Part::Mix { .. } | Part::Exit(_) => None,
    };
    let place = loaded.config.place("commands", 0).unwrap_or_else(|| Place::file(&args.config));
    let console = commands.map(|path| Bound::new(path, "commands", &place)).transpose()?;
    let (sockets, next) = sockets::open(&loaded, passed)?;
    let ready = ready_line(&loaded, &sockets);
    let lengths = (role == NodeRole::Entry).then(|| lengths_line(loaded.chain.shape));
    let lanes = loaded.lanes();
    let Loaded { config, chain, keys } = loaded;
    let node = Node::start(NodeSpec { role, position: config.position, next, lanes, chain, config, keys, sockets })?;
    let status = status::serve(status, node.reporter()).context("status socket")?;
    let console = console.zip(node.listeners()).map(|(bound, listeners)| console::serve(bound, listeners));
    let console = console.transpose().context("command socket")?;
    tracing::info!("{ready}");
    if let Some(lengths) = lengths {
        tracing::info!("{lengths}");
    }
    tell(&[NotifyState::Ready, NotifyState::Status(&ready)]);
    let mut trains = node.report().messages.trains;
    let why = loop {
        match stop.recv_timeout(LOOK) {
            Ok(why) => break why,
            Err(RecvTimeoutError::Timeout) if node.is_alive() => {
                if trains && !node.report().messages.trains {
                    trains = false;
                    tracing::warn!(
                        "the kernel refuses trains of cells where it takes each alone: they leave one by one from now \
                         on, at several times the cost; look at the device with `ethtool -k DEV | grep udp-seg`"
                    );
                }
            }
            Err(RecvTimeoutError::Timeout) => break "a thread has died",
            Err(RecvTimeoutError::Disconnected) => break "nobody can stop it any more",
        }
    };
    tracing::info!("ending: {why}");
    tell(&[NotifyState::Stopping]);
    drop((status, console));
    print(&node.stop()?, args.report_json);
    Ok(())
}

/// The engine that all keys will be prepared for.
pub fn engine() -> Result<Engine, ConfigError> {
    wire::gcm::select().map_err(|why| ConfigError::Arguments(why.to_string()))
}

/// Tells a supervisor that asked by NOTIFY_SOCKET, as sd_notify(3) does; nobody else.
fn tell(state: &[NotifyState]) {
    if let Err(why) = sd_notify::notify(state) {
        tracing::warn!("the supervisor at NOTIFY_SOCKET is not told: {why}");
    }
}

fn start_log() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("EDDY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).try_init();
}

fn extend(loaded: &mut Loaded, extras: Extras) {
    match &mut loaded.config.part {
        Part::Entry(entry) => {
            entry.forwards.extend(extras.forwards);
            entry.pymix.extend(extras.pymix);
            entry.socks.extend(extras.socks);
        }
        Part::Exit(exit) => {
            exit.allow.extend(extras.allow);
            exit.deny.extend(extras.deny);
        }
        Part::Mix { .. } => {}
    }
}

/// A name must fit in one cell of the chain's class, or its flow could never be opened (SPEC 3.12).
fn names_fit(loaded: &Loaded) -> Result<(), ConfigError> {
    let Part::Entry(entry) = &loaded.config.part else { return Ok(()) };
    entry.forwards.iter().try_for_each(|forward| listeners::fits(loaded.chain.shape, &forward.to))
}

/// What an application should know of lengths: beyond one cell a datagram costs as many as it takes, and is lost with
/// any of them.
fn lengths_line(shape: Shape) -> String {
    let one = shape.payload() - frames::DGRAM_OVERHEAD;
    format!(
        "datagrams of up to {one} bytes travel in one cell, of up to {} in eight; for WireGuard inside set `MTU = {}`",
        frames::FRAGMENTS_MAX * (shape.payload() - frames::FRAG_OVERHEAD),
        one.saturating_sub(WIREGUARD_OVERHEAD)
    )
}

/// What WireGuard adds to a packet: header and tag (its whitepaper, 5.4.6).
const WIREGUARD_OVERHEAD: usize = 16 + 16;

/// Says why to end. Signals after the first are ignored: `timeout` and supervisors send two at once,
/// and the ledger must still come out.
fn stop_on_signals(lifeline: bool) -> anyhow::Result<mpsc::Receiver<&'static str>> {
    let (tell, told) = mpsc::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals")?;
    let by_signal: Sender<&'static str> = tell.clone();
    let wait = move || {
        for signal in signals.forever() {
            let _ = by_signal.send(if signal == SIGTERM { "SIGTERM" } else { "SIGINT" });
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait).context("signals")?;
    if lifeline {
        let wait = move || {
            let mut ignored = [0; 64];
            while std::io::stdin().read(&mut ignored).is_ok_and(|n| n > 0) {}
            let _ = tell.send("standard input closed");
        };
        std::thread::Builder::new().name("lifeline".into()).spawn(wait).context("lifeline")?;
    }
    Ok(told)
}

fn ready_line(loaded: &Loaded, sockets: &Sockets) -> String {
    let config = &loaded.config;
    let local = |socket: &UdpSocket| socket.local_addr().map_or_else(|why| why.to_string(), |a| a.to_string());
    let mut line = format!("ready: {} of chain {}", node_name(config.role(), config.position), loaded.chain.short_id());
    for (name, sockets) in [("up", &sockets.up), ("down", &sockets.down)] {
        if let Some(socket) = sockets.first() {
            line += &format!(", {name} {}", local(socket));
        }
        if sockets.len() > 1 {
            line += &format!(" ({} lanes)", sockets.len());
        }
    }
    for (socket, listener) in &sockets.listeners {
        line += &match &listener.kind {
            Kind::Forward(to) => format!(", forward {}={to}", local(socket)),
            Kind::Pymix => format!(", pymix {}", local(socket)),
            Kind::Socks(_) => continue,
        };
    }
    for socket in &sockets.socks {
        line += &format!(", socks {}", socket.local_addr().map_or_else(|why| why.to_string(), |at| at.to_string()));
    }
    line + &format!(", status {}", config.status.display())
}

/// The last report. Whoever read it may be gone, which is no reason to fail.
fn print(node: &NodeReport, json: bool) {
    let text = if json {
        serde_json::to_string(node).unwrap_or_default() + "\n"
    } else {
        report::render(std::slice::from_ref(node))
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
}
