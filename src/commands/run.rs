//! `eddy entry`, `eddy mix`, `eddy exit`, `eddy run`: run one node until a signal.
//!
//! Owns the life of the process: reading files, signals, the last report. [`eddy_node::runtime::running`] runs the
//! node.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use anyhow::Context;
use control::trust::ChainTerms;
use dataplane::exit::policy::Rule;
use listenfd::ListenFd;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use wire::cell::Class;
use wire::frames;
use wire::ids::ClassId;
use wire::paced::SALT_LEN;

use crate::args::{EntryArgs, NodeArgs, ProcessArgs};
use crate::tables;
use eddy_node::config::{ConfigError, EntryPart, Forward, Loaded, NodeConfig, NodeRole, Part, ServedClass, Terms};
use eddy_node::report::NodeReport;
use eddy_node::runtime::running::{self, Running};

/// Time between checks of a running node.
const LOOK: Duration = Duration::from_secs(1);

/// Settings that the command line adds to the configuration.
#[derive(Debug, Default)]
pub struct Extras {
    /// Forwards of the entry.
    pub forwards: Vec<Forward>,
    /// Pymix ports of the entry.
    pub pymix: Vec<SocketAddr>,
    /// SOCKS ports of the entry.
    pub socks: Vec<SocketAddr>,
    /// Networks that the exit opens.
    pub allow: Vec<Rule>,
    /// Networks that the exit closes.
    pub deny: Vec<Rule>,
}

/// Runs a node of a configuration file. Its role must be `wanted`, if that is given.
///
/// # Errors
/// As `node`.
pub fn run(wanted: Option<NodeRole>, args: &NodeArgs, extras: Extras) -> anyhow::Result<()> {
    let read = || {
        let mut config = NodeConfig::read(&args.config)?;
        if let Some(keys) = &args.keys {
            config.set_keys(keys.clone());
        }
        Ok(config)
    };
    node(wanted, read, &args.process, extras)
}

/// Runs an entry of a configuration file, or of a chain file alone.
///
/// # Errors
/// As `node`.
pub fn entry(args: EntryArgs) -> anyhow::Result<()> {
    let EntryArgs { config, chain, status, process, forwards, socks, pymix } = args;
    let read = || match (config, chain) {
        (Some(config), _) if status.is_some() => Err(ConfigError::Arguments(format!(
            "--status is for --chain: set `status` in {} instead",
            config.display()
        ))),
        (Some(config), _) => NodeConfig::read(&config),
        (None, chain) => {
            let mut config = NodeConfig::of_entry(&chain.unwrap_or_default());
            config.status = status;
            Ok(config)
        }
    };
    node(Some(NodeRole::Entry), read, &process, Extras { forwards, pymix, socks, ..Extras::default() })
}

/// A core file would have the keys that are in no other file.
fn forbid_core_files() {
    let limit = getrlimit(Resource::Core);
    // A sandbox may refuse it; the systemd unit sets the limit itself.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), ..limit });
}

/// Runs a node until SIGTERM, SIGINT or, with a lifeline, the end of standard input.
///
/// # Errors
/// A mistake in its files, a socket that cannot be bound, or a refusal of the operating system.
fn node(
    wanted: Option<NodeRole>,
    read: impl FnOnce() -> Result<NodeConfig, ConfigError>,
    args: &ProcessArgs,
    extras: Extras,
) -> anyhow::Result<()> {
    // Before anything else: this reads and clears the environment.
    let passed = ListenFd::from_env();
    args.log.start()?;
    forbid_core_files();
    running::engine()?;

    let config = read()?;
    let role = config.role();
    if let Some(wanted) = wanted.filter(|wanted| *wanted != role) {
        let (file, verb) = (config.path.display(), role.name());
        return Err(ConfigError::Arguments(format!(
            "{file} configures {}, not {}: run `eddy {verb} --config {file}`",
            role.with_article(),
            wanted.with_article()
        ))
        .into());
    }
    let mut loaded = Loaded::lock_and_read(config)?;

    extend(&mut loaded, extras);
    loaded.config.offload = args.offload.unwrap_or(loaded.config.offload);
    loaded.config.io = args.io.unwrap_or(loaded.config.io);

    let has_listeners = require_listeners(&loaded)?;

    let file = loaded.config.path.display().to_string();
    let lengths: Vec<_> = loaded.classes().iter().map(|class| lengths_line(class, &loaded.chain.terms)).collect();
    let signals = watch_signals(args.lifeline)?;
    let node = Running::start(loaded, passed)?;
    tracing::info!("{}", node.ready());
    if role == NodeRole::Entry {
        lengths.iter().for_each(|line| tracing::info!("{line}"));
    }
    if !has_listeners {
        tracing::warn!(
            "no program can use this entry yet, because it listens nowhere: run `eddy forward add --config {file} \
             LISTEN=DEST`, or start it with --forward or --socks"
        );
    }
    notify(&[NotifyState::Ready, NotifyState::Status(node.ready())]);

    let mut gso = node.report().messages.gso;
    let why = loop {
        match signals.recv_timeout(LOOK) {
            Ok(Received::Stop(why)) => break why,
            Ok(Received::Reload) => node.reload(),
            Err(RecvTimeoutError::Timeout) if node.is_alive() => {
                if gso && !node.report().messages.gso {
                    gso = false;
                    tracing::warn!(
                        "GSO disabled: the kernel refuses bursts of cells but accepts single ones; sending one datagram \
                         per cell costs several times as much, check the device with `ethtool -k DEV | grep udp-seg`"
                    );
                }
            }
            Err(RecvTimeoutError::Timeout) => break "a thread died",
            Err(RecvTimeoutError::Disconnected) => break "no signal handler is left",
        }
    };

    tracing::info!(reason = why, "stopping: {why}");
    notify(&[NotifyState::Stopping]);
    // A node that has stopped has no links.
    let before = node.report();
    print(&node.stop()?.with_gauges_of(&before), args.report_json);
    Ok(())
}

/// False if programs cannot use this entry yet. It then needs a command socket, through which forwards are added.
pub(super) fn require_listeners(loaded: &Loaded) -> Result<bool, ConfigError> {
    let Part::Entry(EntryPart { commands, .. }) = &loaded.config.part else { return Ok(true) };
    // A forward of a class that the chain does not have belongs to no class.
    loaded.check_classes()?;
    let has_listeners = |class: &ServedClass<'_>| {
        let Part::Entry(EntryPart { forwards, pymix, socks, .. }) = &class.config.part else { return false };
        !(forwards.is_empty() && pymix.is_empty() && socks.is_empty())
    };
    if loaded.classes().iter().any(has_listeners) {
        return Ok(true);
    }
    if commands.is_some() {
        return Ok(false);
    }
    let at = loaded.config.place_of("role");
    let what = "this entry listens nowhere, and has no command socket to add a forward through".to_owned();
    Err(ConfigError::Value { at, what, remedy: "add a [[forward]] or `socks`, or use --forward or --socks".to_owned() })
}

/// Notifies the supervisor that NOTIFY_SOCKET names, as sd_notify(3) does.
fn notify(state: &[NotifyState]) {
    if let Err(why) = sd_notify::notify(state) {
        tracing::warn!("cannot notify the supervisor at NOTIFY_SOCKET: {why}");
    }
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

/// Lengths of datagrams for applications: a datagram of several cells is lost with any of them.
fn lengths_line(class: &ServedClass<'_>, chain: &ChainTerms) -> String {
    let name = class.terms.name();
    let payload = class.shape.payload();
    let (room, profile) = match class.terms.paced() {
        None => (payload, Class::L.to_string()),
        Some(terms) => {
            let inner = if class.meeting().is_some() { payload - SALT_LEN } else { payload };
            (frames::fresh_max(inner, terms.repeat), "video".to_owned())
        }
    };
    let larger = larger(chain, class.terms.id(), &profile);
    format!(
        "class {name}: datagrams of up to {} bytes travel in one cell, of up to {} in eight; {}",
        frames::max_single_cell_len(room),
        frames::max_datagram_len(room),
        wireguard_hint(room, name.as_str(), &larger)
    )
}

/// A class of the same kind with larger cells: `class L` if the chain has one, otherwise `a chain of class` with this
/// name.
fn larger(chain: &ChainTerms, than: ClassId, profile: &str) -> String {
    let payload = |class: ClassId| class.size().payload();
    let others = Terms::of(chain)
        .filter(|other| other.id().is_paced() == than.is_paced() && payload(other.id()) > payload(than));
    let largest = others.max_by_key(|other| payload(other.id()));
    largest.map_or(format!("a chain of class {profile}"), |largest| format!("class {}", largest.name()))
}

/// The MTU of a WireGuard interface: the largest whose packets travel in one cell each, but no less than IPv6 needs. A
/// cell of the class has room for `room` bytes of frames; those of `larger`, such as `class video`, have more.
pub(super) fn wireguard_hint(room: usize, class: &str, larger: &str) -> String {
    /// Header and tag of a WireGuard packet (its whitepaper, 5.4.6).
    const WIREGUARD_OVERHEAD: usize = 16 + 16;
    /// RFC 8200, 5.
    const IPV6_MTU_MIN: usize = 1280;
    let mtu = frames::max_single_cell_len(room).saturating_sub(WIREGUARD_OVERHEAD).max(IPV6_MTU_MIN);
    match frames::fragment_count(room, mtu + WIREGUARD_OVERHEAD) {
        Some(1) => format!("for WireGuard inside set `MTU = {mtu}`"),
        Some(cells) => {
            format!(
                "for WireGuard inside use {larger}; in class {class} `MTU = {mtu}` works, with {cells} cells \
                 per full packet"
            )
        }
        None => format!("cells of class {class} are too small for WireGuard inside: use {larger}"),
    }
}

/// What a signal asks for.
enum Received {
    /// The end, for this reason.
    Stop(&'static str),
    Reload,
}

/// Reports signals. Those to end after the first are ignored: `timeout` and supervisors send two at once, and the last
/// report must still be printed.
fn watch_signals(lifeline: bool) -> anyhow::Result<mpsc::Receiver<Received>> {
    let (reasons, reason) = mpsc::channel();
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("cannot handle SIGTERM, SIGINT and SIGHUP")?;
    let by_signal: Sender<Received> = reasons.clone();
    let wait = move || {
        for signal in signals.forever() {
            let _ = by_signal.send(match signal {
                SIGHUP => Received::Reload,
                SIGTERM => Received::Stop("SIGTERM"),
                _ => Received::Stop("SIGINT"),
            });
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .context("cannot start the thread that waits for signals")?;
    if lifeline {
        let wait = move || {
            let mut ignored = [0; 64];
            while std::io::stdin().read(&mut ignored).is_ok_and(|n| n > 0) {}
            let _ = reasons.send(Received::Stop("standard input closed"));
        };
        std::thread::Builder::new()
            .name("lifeline".into())
            .spawn(wait)
            .context("cannot start the thread that reads standard input")?;
    }
    Ok(reason)
}

/// Prints the last report. Its reader may have gone away, which is not an error.
fn print(node: &NodeReport, json: bool) {
    let text = if json {
        serde_json::to_string(node).unwrap_or_default() + "\n"
    } else {
        tables::by_class(node, tables::summary::render)
    };
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use control::trust::ClassTerms;
    use wire::paced::{PacedClass, PacedTerms};
    use wire::setup::Suite;

    use super::*;

    #[test]
    fn larger_class_is_one_of_the_chain_if_it_has_one() {
        let [small, video] = [Class::S, Class::L].map(PacedClass::new);
        let voice = PacedTerms::new(small, "voice", 4);
        let mut chain = ChainTerms {
            suite: Suite::default(),
            interval_s: 10,
            epoch_s: 3600,
            classes: vec![ClassTerms { class: Class::L, mixing_delay_ms: 5, lifetime_s: 600 }],
            paced: vec![voice],
            identities: vec![[0; 32]; 4],
        };
        assert_eq!(larger(&chain, small.into(), "video"), "a chain of class video", "L is a free one");
        chain.paced.push(PacedTerms::new(video, "film", 4));
        assert_eq!(larger(&chain, small.into(), "video"), "class film");
        assert_eq!(larger(&chain, Class::S.into(), "L"), "class L");
    }

    #[test]
    fn wireguard_mtu_is_never_below_that_of_ipv6() {
        let hint = |class: Class| wireguard_hint(class.payload(), &class.to_string(), "a chain of class L");
        assert_eq!(hint(Class::L), "for WireGuard inside set `MTU = 1291`");
        assert!(hint(Class::M).contains("`MTU = 1280` works, with 2 cells per full packet"), "{}", hint(Class::M));
        assert!(hint(Class::S).contains("`MTU = 1280` works, with 7 cells per full packet"), "{}", hint(Class::S));
    }
}
