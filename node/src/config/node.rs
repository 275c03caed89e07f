//! One node's configuration: `entry.toml`, `mix1.toml`, `exit.toml`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::Caps;
use dataplane::entry::Destination;
use dataplane::exit::Filtering;
use dataplane::exit::limits::Limits;
use dataplane::exit::policy::{Nat64, Rule};
use dataplane::rate::Rate;
use dataplane::socket::backend::Io;
use dataplane::socket::offload::Offload;
use dataplane::stage::pool::Mixing;
use ipnet::IpNet;

use super::class_name::{ClassName, NotAClassName};
use super::served::ClassConfig;
use super::source::{Source, Table, Text};
use super::table::NODE;
use super::{
    ConfigError, Location, MAX_AGE_MS, MAX_AGE_MS_RANGE, NodeRole, NotATarget, Target, caps, parse_listen,
    without_secret,
};

/// The name of the options of a command line in messages.
pub const COMMAND_LINE: &str = "the command line";

/// One node's configuration.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The file it came from.
    pub path: PathBuf,
    /// The chain's file.
    pub chain: PathBuf,
    /// The key file of a mix or an exit.
    pub keys: Option<PathBuf>,
    /// The state file. `None`: the node, an entry, keeps nothing on disk.
    pub state: Option<PathBuf>,
    /// The Unix socket that `eddy status` reads. Every file names one.
    pub status: Option<PathBuf>,
    /// Local address of the link to the previous hop; none at the entry.
    pub up: Option<SocketAddr>,
    /// Local address of the link to the next hop. `None`: any port of any address.
    pub down: Option<SocketAddr>,
    /// Address of the next hop, `HOST:PORT`, if it is not reached at its descriptor's; further lanes are on the ports
    /// after it.
    pub next: Option<String>,
    /// Addresses of the previous hop in addition to those in its descriptor.
    pub previous: Vec<IpAddr>,
    /// Networks that are exempt from counts by prefix.
    pub shared_prefixes: Vec<IpNet>,
    /// Width of replay windows, in cells.
    pub window: usize,
    /// Receive buffer of each link socket, in bytes.
    pub receive_buffer: usize,
    /// GSO and GRO on link sockets.
    pub offload: Offload,
    /// System calls of link sockets.
    pub io: Io,
    /// Cores of the workers, in turn if there are more workers. Empty: the system chooses.
    pub cores: Vec<usize>,
    /// Time for which a worker keeps polling after it received something.
    pub spin: Duration,
    /// Buffers and channels on huge pages, if the system has them.
    pub hugepages: bool,
    /// Datagrams and cells that have waited for longer are dropped.
    pub max_age: Duration,
    /// Links are renewed after this.
    pub renew_after: Duration,
    /// Bounds of admission, at mixes and exits.
    pub caps: Caps,
    /// Paced classes are served although the clock of the host may not be synchronised.
    pub unsynchronised_clock: bool,
    /// Settings of this role only.
    pub part: Part,
    /// Settings of single classes.
    pub classes: Vec<ClassConfig>,
    /// The keys that are set, with their lines; lists have one per element. A program's options have no lines.
    pub(super) lines: Vec<(&'static str, Option<usize>)>,
}

/// Settings of one role.
#[derive(Clone, Debug)]
pub enum Part {
    /// The entry's.
    Entry(EntryPart),
    /// A mix's.
    Mix {
        /// When its pools are released.
        mixing: Mixing,
        /// Links between hops may have several lanes.
        lanes_show_label_bits: bool,
        /// The effective set below which the meter raises its alarm; 0: none.
        meter_floor: u32,
    },
    /// The exit's.
    Exit(ExitPart),
}

/// Settings of an entry.
#[derive(Clone, Debug)]
pub struct EntryPart {
    /// Channels to keep open.
    pub channels: usize,
    /// Idle flows are closed after this.
    pub flow_idle: Duration,
    /// Ports with one destination each.
    pub forwards: Vec<Forward>,
    /// Ports whose datagrams begin with their destination.
    pub pymix: Vec<SocketAddr>,
    /// TCP ports for SOCKS5 clients.
    pub socks: Vec<SocketAddr>,
    /// The file with the users of these ports from other hosts.
    pub socks_users: Option<PathBuf>,
    /// No new flows in a paced class while its alarm is up.
    pub refuses_on_alarm: bool,
    /// The Unix socket for `eddy forward`.
    pub commands: Option<PathBuf>,
    /// A program may open tunnels in the chain's first class at any time.
    pub has_tunnels: bool,
}

impl EntryPart {
    /// True if anything of it is in the chain's first class without naming it.
    pub(super) fn uses_first_class(&self) -> bool {
        let has_forward = self.forwards.iter().any(|forward| forward.class.is_none());
        self.has_tunnels || has_forward || !self.socks.is_empty() || !self.pymix.is_empty()
    }
}

/// A port of the entry and the destination of what is sent there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Address at which the entry listens.
    pub listen: SocketAddr,
    /// A destination of the exit, or a meeting.
    pub to: Target,
    /// Idle flows are closed after this instead of [`EntryPart::flow_idle`].
    pub idle: Option<Duration>,
    /// Datagrams that have waited for longer are dropped, instead of [`NodeConfig::max_age`].
    pub max_age: Option<Duration>,
    /// Class of the cells in which they travel; the chain's first one unless set.
    pub class: Option<ClassName>,
}

impl std::str::FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Forward, String> {
        Forward::parse(text).map_err(|why| without_secret(&why).into_owned())
    }
}

impl Forward {
    fn parse(text: &str) -> Result<Forward, String> {
        let (listen, to) = text.split_once('=').ok_or_else(|| {
            format!(
                "invalid forward {text:?}: expected LISTEN=DEST, e.g. 127.0.0.1:5000=192.0.2.7:5000 or 5000=meet:@FILE"
            )
        })?;
        let mut parts = to.split(',');
        let mut forward = Forward {
            listen: parse_listen(listen)?,
            to: parts.next().unwrap_or_default().parse().map_err(|why: NotATarget| why.to_string())?,
            idle: None,
            max_age: None,
            class: None,
        };
        for option in parts {
            let number = |name: &str, value: &str| {
                value.parse::<u64>().map_err(|_| format!("{name}={value}: expected a whole number, e.g. {name}=60"))
            };
            if let Some(seconds) = option.strip_prefix("idle_s=") {
                forward.idle = Some(parse_idle(number("idle_s", seconds)?)?);
            } else if let Some(ms) = option.strip_prefix("max_age_ms=") {
                forward.max_age = Some(parse_max_age(number("max_age_ms", ms)?)?);
            } else if let Some(class) = option.strip_prefix("class=") {
                forward.class = Some(class.parse().map_err(|why: NotAClassName| why.to_string())?);
            } else {
                return Err(format!(
                    "unknown option {option:?} of a forward: expected idle_s=SECONDS, max_age_ms=MILLISECONDS or \
                     class=NAME, e.g. idle_s=30"
                ));
            }
        }
        match forward.to {
            Target::Meeting(_) if forward.idle.is_some() => Err(format!("{NO_IDLE}: remove idle_s")),
            _ => Ok(forward),
        }
    }
}

/// Why a forward is refused that sets `idle_s` for a meeting.
const NO_IDLE: &str = "a meeting has no flows that could be idle";

/// Reads the milliseconds that a datagram may wait.
///
/// # Errors
/// A number out of range.
pub fn parse_max_age(ms: u64) -> Result<Duration, String> {
    let (min, max) = MAX_AGE_MS_RANGE;
    if (min..=max).contains(&i64::try_from(ms).unwrap_or(i64::MAX)) {
        return Ok(Duration::from_millis(ms));
    }
    Err(format!("max_age_ms must be from {min} to {max} milliseconds (got {ms})"))
}

/// Reads the seconds after which an idle flow is closed.
///
/// # Errors
/// Zero, or more than a day.
pub fn parse_idle(seconds: u64) -> Result<Duration, String> {
    if IDLE_RANGE.contains(&(seconds as i64)) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(format!("idle_s must be from {} to {} seconds (got {seconds})", IDLE_RANGE.start, IDLE_RANGE.end - 1))
}

/// Seconds after which an idle flow may be closed.
const IDLE_RANGE: std::ops::Range<i64> = 1..86_401;

/// Settings of an exit.
#[derive(Clone, Debug)]
pub struct ExitPart {
    /// Destinations to open although they are private, loopback, link-local, multicast or the exit's own.
    pub allow: Vec<Rule>,
    /// Destinations to close although they are public; the narrowest entry of both lists decides.
    pub deny: Vec<Rule>,
    /// Addresses that reach this exit although its host does not have them.
    pub own: Vec<IpAddr>,
    /// Prefixes of its network's translators to IPv4.
    pub nat64: Vec<Nat64>,
    /// Destinations without limits.
    pub trust: Vec<Rule>,
    /// Limits of all other destinations.
    pub limits: Limits,
    /// The senders whose datagrams reach a client.
    pub filtering: Filtering,
    /// Name server; the system's unless set.
    pub resolver: Option<SocketAddr>,
    /// Idle flows are closed after this.
    pub flow_idle: Duration,
    /// Flows of one channel at most.
    pub max_flows_per_channel: usize,
    /// Sockets at most.
    pub max_sockets: usize,
}

impl NodeConfig {
    /// Reads one node's configuration, but not the files it names.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read(path: &Path) -> Result<NodeConfig, ConfigError> {
        NodeConfig::check(path, &Source::read(path)?)
    }

    /// The same from a text. Messages name `path`; paths in the text are relative to its folder.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn parse(path: &Path, text: &str) -> Result<NodeConfig, ConfigError> {
        NodeConfig::check(path, &Source::new(path, text))
    }

    /// The same from the options of a program, which messages call `name`.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub(crate) fn parse_options(name: &str, text: &str) -> Result<NodeConfig, ConfigError> {
        NodeConfig::check(Path::new(name), &Source::without_lines(name, text))
    }

    fn check(path: &Path, source: &Source) -> Result<NodeConfig, ConfigError> {
        let table = source.table(NODE)?;
        let role = table.role()?;
        table.check(role)?;

        let beside = |text: Text<'_>| path.parent().unwrap_or(Path::new("")).join(text.value);
        let seconds = |name| Duration::from_secs(table.integer(name) as u64);
        let part = match role {
            NodeRole::Entry => Part::Entry(EntryPart {
                channels: table.integer("channels") as usize,
                flow_idle: seconds("flow_idle_s"),
                forwards: forwards(&table, path.parent().unwrap_or(Path::new("")))?,
                pymix: table.texts("pymix", listen)?,
                socks: table.texts("socks", listen)?,
                socks_users: table.maybe_text("socks_users").map(beside),
                refuses_on_alarm: table.maybe_text("on_alarm").is_some_and(|text| text.value == "no-new-flows"),
                commands: table.maybe_text("commands").map(beside),
                has_tunnels: false,
            }),
            NodeRole::Mix => Part::Mix {
                mixing: table.parsed("mixing")?,
                lanes_show_label_bits: table.switch("lanes_show_label_bits"),
                meter_floor: table.integer("meter_floor") as u32,
            },
            NodeRole::Exit => Part::Exit(ExitPart {
                allow: table.texts("allow", rule)?,
                deny: table.texts("deny", rule)?,
                own: table.texts("own", ip("own"))?,
                nat64: table.texts("nat64", nat64)?,
                trust: table.texts("trust", rule)?,
                limits: limits(&table),
                filtering: table.parsed("filtering")?,
                resolver: table.maybe_text("resolver").map(resolver).transpose()?,
                flow_idle: seconds("flow_idle_s"),
                max_flows_per_channel: table.integer("max_flows_per_channel") as usize,
                max_sockets: table.integer("max_sockets") as usize,
            }),
        };
        Ok(NodeConfig {
            path: path.to_owned(),
            chain: beside(table.text("chain")),
            keys: table.maybe_text("keys").map(beside),
            state: Some(table.maybe_text("state").map_or_else(|| path.with_extension("state"), beside)),
            status: Some(beside(table.text("status"))),
            up: table.maybe_text("up").map(|text| address("up", text)).transpose()?,
            down: table.maybe_text("down").map(|text| address("down", text)).transpose()?,
            next: table.maybe_text("next").map(next).transpose()?,
            previous: table.texts("previous", ip("previous"))?,
            shared_prefixes: table.texts("shared_prefixes", network)?,
            window: window(&table)?,
            receive_buffer: table.integer("receive_buffer") as usize,
            offload: table.parsed("offload")?,
            io: table.parsed("io")?,
            cores: table.integers("cores").into_iter().map(|core| core as usize).collect(),
            spin: Duration::from_micros(table.integer("spin_us") as u64),
            hugepages: table.switch("hugepages"),
            max_age: Duration::from_millis(table.maybe_integer("max_age_ms").map_or(MAX_AGE_MS, |ms| ms as u64)),
            renew_after: seconds("renew_after_s"),
            unsynchronised_clock: role != NodeRole::Entry && table.switch("unsynchronised_clock"),
            caps: if role == NodeRole::Entry { Caps::default() } else { caps::read(&table.sub("caps")?) },
            part,
            classes: table.classes("class")?.iter().map(ClassConfig::read).collect::<Result<_, _>>()?,
            lines: table.lines(),
        })
    }

    /// The configuration of an entry that needs nothing but a chain file. Its state is kept beside that file.
    ///
    /// # Panics
    /// Never: the text is accepted.
    pub fn of_entry(chain: &Path) -> NodeConfig {
        let text = "role = \"entry\"\nchain = \"\"\nstatus = \"\"\n";
        let config = NodeConfig::parse_options(COMMAND_LINE, text).expect("all required keys are set");
        let state = Some(chain.with_extension("state"));
        NodeConfig { chain: chain.to_owned(), state, status: None, ..config }
    }

    /// Names another file with its secrets: the key file, at an entry that of its SOCKS users.
    pub fn set_keys(&mut self, path: PathBuf) {
        match &mut self.part {
            Part::Entry(part) => part.socks_users = Some(path),
            Part::Mix { .. } | Part::Exit(_) => self.keys = Some(path),
        }
    }

    /// The location of a key, or of the `nth` element of a list. None if it is not set there.
    pub fn place(&self, key: &str, nth: usize) -> Option<Location> {
        let (_, line) = self.lines.iter().filter(|(name, _)| *name == key).nth(nth)?;
        Some(Location { path: self.path.clone(), line: *line })
    }

    /// The location of a key, or the file if it does not set the key.
    pub fn place_of(&self, key: &str) -> Location {
        self.place(key, 0).unwrap_or_else(|| Location::file(&self.path))
    }

    /// True if it was read from a file, false if it was made from a program's options.
    pub fn is_file(&self) -> bool {
        self.lines.iter().any(|(_, line)| line.is_some())
    }

    /// The node's role.
    pub fn role(&self) -> NodeRole {
        match self.part {
            Part::Entry(_) => NodeRole::Entry,
            Part::Mix { .. } => NodeRole::Mix,
            Part::Exit(_) => NodeRole::Exit,
        }
    }

    /// Keys of a link are dropped after this time: one and a half times `renew_after`, and at least 10 s after it, so
    /// that ten handshakes may be lost.
    pub fn expire_after(&self) -> Duration {
        self.renew_after + (self.renew_after / 2).max(Duration::from_secs(10))
    }
}

/// A whole number that is a power of two.
fn window(table: &Table<'_>) -> Result<usize, ConfigError> {
    let window = table.integer("window") as usize;
    if window.is_power_of_two() {
        return Ok(window);
    }
    let what = format!("window must be a power of two (got {window})");
    Err(table.wrong("window", what, format!("try `window = {}`", window.next_power_of_two())))
}

/// The limits of an exit; 0 means no limit.
fn limits(table: &Table<'_>) -> Limits {
    let limit = |name| Some(table.integer(name) as u32).filter(|limit| *limit > 0);
    Limits {
        unanswered: limit("max_unanswered"),
        flow: limit("max_flow_rate").map(Rate::per_second),
        destination: limit("max_destination_rate").map(Rate::per_second),
        names: limit("max_name_rate"),
    }
}

pub(super) fn address(key: &str, text: Text<'_>) -> Result<SocketAddr, ConfigError> {
    let what = || format!("{key} must be IP:PORT or [IPv6]:PORT (got {:?})", text.value);
    text.value.parse().map_err(|_| text.wrong(what(), format!("for example `{key} = \"192.0.2.7:4701\"`")))
}

pub(super) fn next(text: Text<'_>) -> Result<String, ConfigError> {
    let checked = text.value.parse::<Destination>();
    checked.map(|_| text.value.to_owned()).map_err(|why| text.invalid(format!("invalid next: {why}")))
}

fn resolver(text: Text<'_>) -> Result<SocketAddr, ConfigError> {
    let ip = text.value.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    ip.or_else(|_| text.value.parse()).map_err(|_| {
        let what = format!("resolver must be IP or IP:PORT of a name server (got {:?})", text.value);
        text.wrong(what, "for example `resolver = \"9.9.9.9:53\"`")
    })
}

fn rule(text: &Text<'_>) -> Result<Rule, ConfigError> {
    text.value.parse().map_err(|why: String| text.invalid(why))
}

/// Reads an IP address of the list `key`.
fn ip(key: &'static str) -> impl Fn(&Text<'_>) -> Result<IpAddr, ConfigError> {
    move |text| {
        text.value.parse().map(|ip: IpAddr| ip.to_canonical()).map_err(|_| {
            text.invalid(format!("{key} must list IP addresses (got {:?}), e.g. {key} = [\"192.0.2.7\"]", text.value))
        })
    }
}

fn network(text: &Text<'_>) -> Result<IpNet, ConfigError> {
    let one = text.value.parse().map(|address: IpAddr| IpNet::from(address));
    let net = one.or_else(|_| text.value.parse()).map_err(|_| {
        let example = "e.g. shared_prefixes = [\"198.51.100.0/24\"]";
        text.invalid(format!("shared_prefixes must list networks (got {:?}), {example}", text.value))
    })?;
    if net.addr() != net.network() {
        let what = format!("\"{net}\" is an address in a network, not a network");
        return Err(text.wrong(what, format!("write \"{}\" or \"{}\"", net.trunc(), net.addr())));
    }
    Ok(net)
}

fn nat64(text: &Text<'_>) -> Result<Nat64, ConfigError> {
    text.value.parse().map_err(|why: String| text.invalid(why))
}

pub(super) fn listen(text: &Text<'_>) -> Result<SocketAddr, ConfigError> {
    parse_listen(text.value).map_err(|why| text.invalid(why))
}

fn forwards(table: &Table<'_>, folder: &Path) -> Result<Vec<Forward>, ConfigError> {
    let read = |forward: &Table<'_>| {
        let to = forward.text("to");
        let target: Target = to.value.parse().map_err(|why: NotATarget| to.invalid(why.to_string()))?;
        let target = target.from_folder(folder);
        let idle = forward.maybe_integer("idle_s").map(|seconds| Duration::from_secs(seconds as u64));
        let max_age = forward.maybe_integer("max_age_ms").map(|ms| Duration::from_millis(ms as u64));
        let class = forward
            .maybe_text("class")
            .map(|text| text.value.parse().map_err(|why: NotAClassName| text.invalid(why.to_string())));
        let class = class.transpose()?;
        if let (Target::Meeting(_), Some(_)) = (&target, idle) {
            return Err(forward.wrong("idle_s", NO_IDLE, "remove the line"));
        }
        Ok(Forward { listen: listen(&forward.text("listen"))?, to: target, idle, max_age, class })
    };
    table.subs("forward")?.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::table::{CAPS, CLASS, DefaultValue, FORWARD, Key, Kind};

    /// Lines that set the keys of a table to their examples, except one.
    fn lines(keys: &[Key], role: NodeRole, without: &str) -> String {
        let wanted = |key: &&Key| {
            key.roles.contains(&role)
                && key.name != without
                && !matches!(key.kind, Kind::Table(_) | Kind::Tables(_) | Kind::Classes(_))
        };
        let line = |key: &Key| match key.name {
            "role" => format!("role = \"{role}\"\n"),
            _ => key.line() + "\n",
        };
        keys.iter().filter(wanted).map(line).collect()
    }

    /// A configuration that sets every key of a role to its example.
    fn examples(role: NodeRole) -> String {
        let tables = if role == NodeRole::Entry { ("[[forward]]\n", FORWARD) } else { ("[caps]\n", CAPS) };
        lines(NODE, role, "") + tables.0 + &lines(tables.1, role, "") + "[class.M]\n" + &lines(CLASS, role, "")
    }

    #[test]
    fn every_example_of_the_table_is_accepted() {
        for role in [NodeRole::Entry, NodeRole::Mix, NodeRole::Exit] {
            let text = examples(role);
            let config = NodeConfig::parse(Path::new("node.toml"), &text).unwrap_or_else(|why| panic!("{why}: {text}"));
            assert_eq!((config.role(), config.spin), (role, Duration::from_micros(50)));
        }
    }

    #[test]
    fn networks_with_host_bits_are_refused() {
        let refused = |role: &str, line: &str| {
            let others = match role {
                "mix" => lines(NODE, NodeRole::Mix, "shared_prefixes"),
                _ => lines(NODE, NodeRole::Exit, "nat64"),
            };
            NodeConfig::parse(Path::new("node.toml"), &(others + line)).unwrap_err().to_string()
        };
        let why = refused("mix", "shared_prefixes = [\"198.51.100.7/24\"]\n");
        assert!(why.contains("write \"198.51.100.0/24\" or \"198.51.100.7\""), "{why}");
        let why = refused("exit", "nat64 = [\"2001:db8:64::1/96\"]\n");
        assert!(why.contains("write 2001:db8:64::/96"), "{why}");
    }

    #[test]
    fn defaults_are_those_of_the_table() {
        for role in [NodeRole::Entry, NodeRole::Mix, NodeRole::Exit] {
            let required = |key: &&Key| matches!(key.default, DefaultValue::Required) && key.roles.contains(&role);
            let line = |key: &Key| if key.name == "role" { format!("role = \"{role}\"\n") } else { key.line() + "\n" };
            let text: String = NODE.iter().filter(required).map(line).collect();
            let config = NodeConfig::parse(Path::new("node.toml"), &text).unwrap();
            assert_eq!((config.caps, config.hugepages, config.cores.len()), (Caps::default(), true, 0));
            assert_eq!((config.offload, config.io), (Offload::default(), Io::default()));
            match config.part {
                Part::Entry(part) => assert_eq!((part.channels, part.forwards.len()), (4, 0)),
                Part::Mix { mixing, lanes_show_label_bits, meter_floor } => {
                    assert_eq!((mixing, lanes_show_label_bits, meter_floor), (Mixing::default(), false, 0));
                }
                Part::Exit(part) => assert_eq!((part.filtering, part.max_sockets), (Filtering::default(), 4096)),
            }
        }
    }

    #[test]
    fn every_range_and_word_of_the_table_is_enforced() {
        let tables = [(NODE, ""), (CAPS, "[caps]\n"), (FORWARD, "[[forward]]\n"), (CLASS, "[class.M]\n")];
        for (key, keys, head) in tables.iter().flat_map(|(keys, head)| keys.iter().map(move |key| (key, keys, head))) {
            let role = key.roles[0];
            let others = match *head {
                "" => lines(NODE, role, key.name),
                head => lines(NODE, role, "") + head + &lines(keys, role, key.name),
            };
            let refused = |value: String| {
                let text = format!("{others}{} = {value}\n", key.name);
                let Err(why) = NodeConfig::parse(Path::new("node.toml"), &text) else { panic!("accepted: {text}") };
                let why = why.to_string();
                assert!(why.starts_with("node.toml:") && why.contains(key.name), "{why}");
                assert_eq!(why.lines().count(), 1, "{why}");
            };
            match key.kind {
                Kind::Integer(min, max) => {
                    [min - 1, max + 1].into_iter().for_each(|number| refused(number.to_string()))
                }
                Kind::Word(_) => refused("\"nonsense\"".to_owned()),
                Kind::Switch => refused("\"yes\"".to_owned()),
                Kind::Text(_) => refused("1".to_owned()),
                Kind::Texts(_) => refused("[1]".to_owned()),
                Kind::Integers(..) => refused("[-1]".to_owned()),
                Kind::Table(_) | Kind::Tables(_) | Kind::Either { .. } | Kind::Classes(_) | Kind::Names(_) => {
                    refused("1".to_owned());
                }
            }
        }
    }
}
