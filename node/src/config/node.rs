//! One node's configuration: `entry.toml`, `mix1.toml`, `exit.toml`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::Caps;
use dataplane::entry::{Destination, NotADestination};
use dataplane::exit::Filtering;
use dataplane::exit::limits::Limits;
use dataplane::exit::policy::Rule;
use dataplane::rate::Rate;
use dataplane::socket::backend::Io;
use dataplane::socket::offload::Offload;
use dataplane::stage::pool::Mixing;
use serde::Deserialize;
use toml::Spanned;

use super::caps::RawCaps;
use super::source::{Source, nearest};
use super::{
    CHANNELS, ConfigError, FLOW_IDLE_S, MAX_DESTINATION_RATE, MAX_FLOW_RATE, MAX_FLOWS_PER_CHANNEL, MAX_SOCKETS,
    MAX_UNANSWERED, NodeRole, Place, RECEIVE_BUFFER, RENEW_AFTER_S, WINDOW, parse_listen,
};

/// What one node is told.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The file it came from.
    pub path: PathBuf,
    /// Entry 0, mixes from 1, then the exit.
    pub position: usize,
    /// The chain's file.
    pub chain: PathBuf,
    /// The key file.
    pub keys: PathBuf,
    /// The Unix socket that `eddy status` reads; every file names one.
    pub status: Option<PathBuf>,
    /// Where cells from the previous hop arrive; none at the entry.
    pub up: Option<SocketAddr>,
    /// Where cells to the next hop leave from; none means any port of any address.
    pub down: Option<SocketAddr>,
    /// Where the next hop is reached, if not at its descriptor's address: `HOST:PORT`; its further lanes at the ports
    /// after that.
    pub next: Option<String>,
    /// Width of replay windows.
    pub window: usize,
    /// Bytes of receive buffer to ask for on link sockets.
    pub receive_buffer: usize,
    /// Whether cells travel in GSO bursts.
    pub offload: Offload,
    /// How cells get into the kernel.
    pub io: Io,
    /// The cores that the workers stay on, in their order and then again from the first; the system's choice if none
    /// is named.
    pub cores: Vec<usize>,
    /// After something came, the worker looks for more so long before it sleeps.
    pub spin: Duration,
    /// Buffers and channels on huge pages, where the system gives them.
    pub hugepages: bool,
    /// Links are renewed after this.
    pub renew_after: Duration,
    /// Bounds of admission, at mixes and exits.
    pub caps: Caps,
    /// What only this role has.
    pub part: Part,
    /// The lines that keys stand in; lists have one per element.
    lines: Vec<(&'static str, usize)>,
}

/// What only one role has.
#[derive(Clone, Debug)]
pub enum Part {
    /// The entry's.
    Entry(EntryPart),
    /// A mix's.
    Mix {
        /// When its pools are released.
        mixing: Mixing,
    },
    /// The exit's.
    Exit(ExitPart),
}

/// What only an entry has.
#[derive(Clone, Debug)]
pub struct EntryPart {
    /// Channels to keep up.
    pub channels: usize,
    /// Idle flows are closed after this.
    pub flow_idle: Duration,
    /// Ports with one destination each.
    pub forwards: Vec<Forward>,
    /// Ports whose datagrams begin with their destination.
    pub pymix: Vec<SocketAddr>,
    /// TCP ports for SOCKS5 clients.
    pub socks: Vec<SocketAddr>,
    /// The Unix socket that `eddy forward` talks to.
    pub commands: Option<PathBuf>,
}

/// A port of the entry and the destination of what is sent there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where the entry listens.
    pub listen: SocketAddr,
    /// Where the exit sends to.
    pub to: Destination,
    /// Its flows are closed when they have sent nothing for so long, instead of [`EntryPart::flow_idle`].
    pub idle: Option<Duration>,
}

impl std::str::FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Forward, String> {
        let (listen, to) = text.split_once('=').ok_or_else(|| {
            format!("{text:?} is no LISTEN=DEST: write for example 127.0.0.1:5000=192.0.2.7:5000") //
        })?;
        let (to, idle) = match to.split_once(',') {
            None => (to, None),
            Some((to, option)) => {
                let seconds = option.strip_prefix("idle_s=").and_then(|seconds| seconds.parse().ok());
                let seconds = seconds.ok_or_else(|| {
                    format!("{option:?} is nothing that a forward takes: write idle_s=SECONDS") //
                })?;
                (to, Some(parse_idle(seconds)?))
            }
        };
        Ok(Forward {
            listen: parse_listen(listen)?,
            to: to.parse().map_err(|why: NotADestination| why.to_string())?,
            idle,
        })
    }
}

/// Reads the seconds after which an idle flow is closed.
///
/// # Errors
/// None, or more than a day.
pub fn parse_idle(seconds: u64) -> Result<Duration, String> {
    if IDLE_RANGE.contains(&(seconds as i64)) {
        return Ok(Duration::from_secs(seconds));
    }
    Err(format!("idle_s = {seconds}: take {} to {} seconds", IDLE_RANGE.start, IDLE_RANGE.end - 1))
}

/// Seconds after which an idle flow may be closed.
const IDLE_RANGE: std::ops::Range<i64> = 1..86_401;

/// What only an exit has.
#[derive(Clone, Debug)]
pub struct ExitPart {
    /// Networks that are reachable although they are private, loopback, link-local, multicast or the
    /// exit's own.
    pub allow: Vec<Rule>,
    /// Networks that are not, although they are public; the narrowest entry of both lists decides.
    pub deny: Vec<Rule>,
    /// Destinations without limits.
    pub trust: Vec<Rule>,
    /// What the others get.
    pub limits: Limits,
    /// Whom a client's socket hears.
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    role: Spanned<String>,
    position: Spanned<i64>,
    chain: Spanned<String>,
    keys: Spanned<String>,
    status: Spanned<String>,
    up: Option<Spanned<String>>,
    down: Option<Spanned<String>>,
    next: Option<Spanned<String>>,
    mixing: Option<Spanned<String>>,
    window: Option<Spanned<i64>>,
    receive_buffer: Option<Spanned<i64>>,
    offload: Option<Spanned<String>>,
    io: Option<Spanned<String>>,
    cores: Option<Spanned<Vec<Spanned<i64>>>>,
    spin_us: Option<Spanned<i64>>,
    hugepages: Option<Spanned<bool>>,
    renew_after_s: Option<Spanned<i64>>,
    channels: Option<Spanned<i64>>,
    flow_idle_s: Option<Spanned<i64>>,
    forward: Option<Spanned<Vec<RawForward>>>,
    pymix: Option<Spanned<Vec<Spanned<String>>>>,
    socks: Option<Spanned<Vec<Spanned<String>>>>,
    commands: Option<Spanned<String>>,
    allow: Option<Spanned<Vec<Spanned<String>>>>,
    deny: Option<Spanned<Vec<Spanned<String>>>>,
    trust: Option<Spanned<Vec<Spanned<String>>>>,
    max_unanswered: Option<Spanned<i64>>,
    max_flow_rate: Option<Spanned<i64>>,
    max_destination_rate: Option<Spanned<i64>>,
    filtering: Option<Spanned<String>>,
    resolver: Option<Spanned<String>>,
    max_flows_per_channel: Option<Spanned<i64>>,
    max_sockets: Option<Spanned<i64>>,
    caps: Option<Spanned<RawCaps>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawForward {
    listen: Spanned<String>,
    to: Spanned<String>,
    idle_s: Option<Spanned<i64>>,
}

impl NodeConfig {
    /// Reads one node's configuration; of the files it names, none.
    ///
    /// # Errors
    /// The first thing that is wrong, with its remedy.
    pub fn read(path: &Path) -> Result<NodeConfig, ConfigError> {
        NodeConfig::check(path, &Source::read(path)?)
    }

    /// The same from a text; `path` is named in complaints, and what the text names lies beside it.
    ///
    /// # Errors
    /// The first thing that is wrong, with its remedy.
    pub fn parse(path: &Path, text: &str) -> Result<NodeConfig, ConfigError> {
        NodeConfig::check(path, &Source::new(path, text))
    }

    /// Options of a program instead of a file: `name` in complaints, without lines.
    ///
    /// # Errors
    /// The first thing that is wrong, with its remedy.
    pub(crate) fn parse_options(name: &str, text: &str) -> Result<NodeConfig, ConfigError> {
        NodeConfig::check(Path::new(name), &Source::without_lines(name, text))
    }

    fn check(path: &Path, source: &Source) -> Result<NodeConfig, ConfigError> {
        let raw: Raw = source.parse()?;
        let role = role(source, &raw.role)?;
        raw.refuse_foreign(source, role)?;
        let beside = |name: &Spanned<String>| path.parent().unwrap_or(Path::new("")).join(name.get_ref());
        let position = source.required("position", &raw.position, 0..9)? as usize;
        let window = source.number("window", raw.window.as_ref(), 64..65_537, WINDOW as i64)?;
        if let Some(value) = &raw.window
            && !(window as usize).is_power_of_two()
        {
            let remedy = format!("take {}", (window as usize).next_power_of_two());
            return Err(source.wrong(value, format!("window = {window} is no power of two"), remedy));
        }
        let up = raw.up.as_ref().map(|value| listen(source, "up", value)).transpose()?;
        if up.is_none() && role != NodeRole::Entry {
            return Err(source.wrong(
                &raw.role,
                "the key `up` is missing",
                "add the address for cells from the previous hop, such as `up = \"127.0.0.1:4701\"`",
            ));
        }
        let idle = || source.number("flow_idle_s", raw.flow_idle_s.as_ref(), IDLE_RANGE, FLOW_IDLE_S as i64);
        let part = match role {
            NodeRole::Entry => Part::Entry(EntryPart {
                channels: source.number("channels", raw.channels.as_ref(), 1..257, CHANNELS as i64)? as usize,
                flow_idle: Duration::from_secs(idle()? as u64),
                forwards: forwards(source, raw.forward.as_ref())?,
                pymix: addresses(source, raw.pymix.as_ref())?,
                socks: addresses(source, raw.socks.as_ref())?,
                commands: raw.commands.as_ref().map(&beside),
            }),
            NodeRole::Mix => Part::Mix { mixing: word(source, raw.mixing.as_ref())? },
            NodeRole::Exit => Part::Exit(ExitPart {
                allow: list(raw.allow.as_ref(), |value| rule(source, value))?,
                deny: list(raw.deny.as_ref(), |value| rule(source, value))?,
                trust: list(raw.trust.as_ref(), |value| rule(source, value))?,
                limits: raw.limits(source)?,
                filtering: word(source, raw.filtering.as_ref())?,
                resolver: raw.resolver.as_ref().map(|value| resolver(source, value)).transpose()?,
                flow_idle: Duration::from_secs(idle()? as u64),
                max_flows_per_channel: source.number(
                    "max_flows_per_channel",
                    raw.max_flows_per_channel.as_ref(),
                    1..65_537,
                    MAX_FLOWS_PER_CHANNEL as i64,
                )? as usize,
                max_sockets: source.number("max_sockets", raw.max_sockets.as_ref(), 1..1_000_001, MAX_SOCKETS as i64)?
                    as usize,
            }),
        };
        let buffer = raw.receive_buffer.as_ref();
        let renew_after_s =
            source.number("renew_after_s", raw.renew_after_s.as_ref(), 1..3601, RENEW_AFTER_S as i64)?;
        Ok(NodeConfig {
            path: path.to_owned(),
            position,
            chain: beside(&raw.chain),
            keys: beside(&raw.keys),
            status: Some(beside(&raw.status)),
            up,
            down: raw.down.as_ref().map(|value| listen(source, "down", value)).transpose()?,
            next: raw.next.as_ref().map(|value| next(source, value)).transpose()?,
            window: window as usize,
            receive_buffer: source.number("receive_buffer", buffer, 4096..1 << 30, RECEIVE_BUFFER as i64)? as usize,
            offload: word(source, raw.offload.as_ref())?,
            io: word(source, raw.io.as_ref())?,
            cores: list(raw.cores.as_ref(), |core| source.required("cores", core, 0..1024).map(|core| core as usize))?,
            spin: Duration::from_micros(source.number("spin_us", raw.spin_us.as_ref(), 0..100_001, 0)? as u64),
            hugepages: raw.hugepages.as_ref().is_none_or(|wanted| *wanted.get_ref()),
            renew_after: Duration::from_secs(renew_after_s as u64),
            caps: raw.caps.as_ref().map_or(Ok(Caps::default()), |caps| caps.get_ref().read(source))?,
            part,
            lines: raw.lines(source),
        })
    }

    /// Where a key stands; of a list, its `nth` element. None if it does not stand in the file.
    pub fn place(&self, key: &str, nth: usize) -> Option<Place> {
        let (_, line) = self.lines.iter().filter(|(name, _)| *name == key).nth(nth)?;
        Some(Place { path: self.path.clone(), line: Some(*line) })
    }

    /// What the node is.
    pub fn role(&self) -> NodeRole {
        match self.part {
            Part::Entry(_) => NodeRole::Entry,
            Part::Mix { .. } => NodeRole::Mix,
            Part::Exit(_) => NodeRole::Exit,
        }
    }

    /// Keys of a link are dropped after this: half as long again as renewal takes, and at least ten
    /// seconds later, which is ten handshakes that may be lost.
    pub fn expire_after(&self) -> Duration {
        self.renew_after + (self.renew_after / 2).max(Duration::from_secs(10))
    }
}

impl Raw {
    /// An exit's limits; 0 is none.
    fn limits(&self, source: &Source) -> Result<Limits, ConfigError> {
        let most = |key, value: &Option<Spanned<i64>>, default: u32| {
            let most = source.number(key, value.as_ref(), 0..10_000_001, i64::from(default))?;
            Ok((most > 0).then_some(most as u32))
        };
        let rate = |key, value, default| most(key, value, default).map(|rate| rate.map(Rate::per_second));
        Ok(Limits {
            unanswered: most("max_unanswered", &self.max_unanswered, MAX_UNANSWERED)?,
            flow: rate("max_flow_rate", &self.max_flow_rate, MAX_FLOW_RATE)?,
            destination: rate("max_destination_rate", &self.max_destination_rate, MAX_DESTINATION_RATE)?,
        })
    }

    /// The lines of what is judged only when the node starts.
    fn lines(&self, source: &Source) -> Vec<(&'static str, usize)> {
        let settings =
            [("chain", Some(&self.chain)), ("keys", Some(&self.keys)), ("status", Some(&self.status))].into_iter();
        let settings =
            settings.chain([("up", self.up.as_ref()), ("down", self.down.as_ref()), ("next", self.next.as_ref())]);
        let settings = settings.chain([("mixing", self.mixing.as_ref())]);
        let settings = settings.filter_map(|(key, value)| Some((key, value?.span())));
        let numbers = [("position", Some(&self.position)), ("receive_buffer", self.receive_buffer.as_ref())];
        let numbers = numbers.into_iter().filter_map(|(key, value)| Some((key, value?.span())));
        let cores = self.cores.iter().map(|list| ("cores", list.span()));
        let forwards = self.forward.iter().flat_map(|list| list.get_ref());
        let forwards = forwards.map(|forward| ("forward", forward.listen.span()));
        let addresses = [("pymix", &self.pymix), ("socks", &self.socks)].into_iter();
        let addresses = addresses
            .flat_map(|(key, list)| list.iter().flat_map(|list| list.get_ref()).map(move |value| (key, value.span())));
        let commands = self.commands.iter().map(|value| ("commands", value.span()));
        let all = settings.chain(numbers).chain(cores).chain(forwards).chain(addresses).chain(commands);
        all.filter_map(|(key, span)| Some((key, source.at(span).line?))).collect()
    }

    /// Keys that another role has.
    fn refuse_foreign(&self, source: &Source, role: NodeRole) -> Result<(), ConfigError> {
        use NodeRole::{Entry, Exit, Mix};
        type Span = Option<std::ops::Range<usize>>;
        fn span<T>(value: &Option<Spanned<T>>) -> Span {
            value.as_ref().map(Spanned::span)
        }
        let keys: [(&str, Span, &[NodeRole]); 21] = [
            ("up", span(&self.up), &[Mix, Exit]),
            ("down", span(&self.down), &[Entry, Mix]),
            ("next", span(&self.next), &[Entry, Mix]),
            ("mixing", span(&self.mixing), &[Mix]),
            ("channels", span(&self.channels), &[Entry]),
            ("forward", span(&self.forward), &[Entry]),
            ("pymix", span(&self.pymix), &[Entry]),
            ("socks", span(&self.socks), &[Entry]),
            ("commands", span(&self.commands), &[Entry]),
            ("flow_idle_s", span(&self.flow_idle_s), &[Entry, Exit]),
            ("allow", span(&self.allow), &[Exit]),
            ("deny", span(&self.deny), &[Exit]),
            ("trust", span(&self.trust), &[Exit]),
            ("max_unanswered", span(&self.max_unanswered), &[Exit]),
            ("max_flow_rate", span(&self.max_flow_rate), &[Exit]),
            ("max_destination_rate", span(&self.max_destination_rate), &[Exit]),
            ("filtering", span(&self.filtering), &[Exit]),
            ("resolver", span(&self.resolver), &[Exit]),
            ("max_flows_per_channel", span(&self.max_flows_per_channel), &[Exit]),
            ("max_sockets", span(&self.max_sockets), &[Exit]),
            ("caps", span(&self.caps), &[Mix, Exit]),
        ];
        for (key, span, roles) in keys {
            if let Some(span) = span
                && !roles.contains(&role)
            {
                let owners: Vec<String> = roles.iter().map(|role| format!("{role}.toml")).collect();
                return Err(ConfigError::Value {
                    at: source.at(span),
                    what: format!("`{key}` has no meaning for role = \"{role}\""),
                    remedy: format!("move it to {}", owners.join(" or ").replace("mix.toml", "mixN.toml")),
                });
            }
        }
        Ok(())
    }
}

fn role(source: &Source, value: &Spanned<String>) -> Result<NodeRole, ConfigError> {
    let names = ["entry", "mix", "exit"];
    match value.get_ref().as_str() {
        "entry" => Ok(NodeRole::Entry),
        "mix" => Ok(NodeRole::Mix),
        "exit" => Ok(NodeRole::Exit),
        other => {
            let hint = nearest(other, &names)
                .map_or("the roles are entry, mix and exit".to_owned(), |name| format!("did you mean \"{name}\"?"));
            Err(source.wrong(value, format!("role = {other:?} is no role"), hint))
        }
    }
}

/// A value that is one of a few words; the first unless it is there.
fn word<T>(source: &Source, value: Option<&Spanned<String>>) -> Result<T, ConfigError>
where
    T: Default + std::str::FromStr<Err: std::fmt::Display>,
{
    let Some(value) = value else { return Ok(T::default()) };
    value.get_ref().parse().map_err(|why: T::Err| source.invalid(value, why.to_string()))
}

fn listen(source: &Source, key: &str, value: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
    value.get_ref().parse().map_err(|_| {
        let what = format!("{key} = {:?} is no address of a socket", value.get_ref());
        source.wrong(value, what, "write IP:PORT or [IPv6]:PORT")
    })
}

fn next(source: &Source, value: &Spanned<String>) -> Result<String, ConfigError> {
    let text = value.get_ref();
    text.parse::<Destination>().map_err(|what| source.invalid(value, what.to_string()))?;
    Ok(text.clone())
}

fn resolver(source: &Source, value: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
    let text = value.get_ref();
    let ip = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
    ip.or_else(|_| text.parse()).map_err(|_| {
        source.wrong(value, format!("resolver = {text:?} is no address"), "write IP or IP:PORT of a name server")
    })
}

fn rule(source: &Source, value: &Spanned<String>) -> Result<Rule, ConfigError> {
    value.get_ref().parse().map_err(|what| source.invalid(value, what))
}

fn forwards(source: &Source, raw: Option<&Spanned<Vec<RawForward>>>) -> Result<Vec<Forward>, ConfigError> {
    let raw = raw.map(|list| list.get_ref().as_slice()).unwrap_or_default();
    let mut all = Vec::with_capacity(raw.len());
    for RawForward { listen, to, idle_s } in raw {
        let listen = parse_listen(listen.get_ref()).map_err(|what| source.invalid(listen, what))?;
        let parsed = to.get_ref().parse();
        let to = parsed.map_err(|what: NotADestination| source.invalid(to, what.to_string()))?;
        let idle = idle_s.as_ref().map(|value| source.required("idle_s", value, IDLE_RANGE)).transpose()?;
        all.push(Forward { listen, to, idle: idle.map(|seconds| Duration::from_secs(seconds as u64)) });
    }
    Ok(all)
}

fn addresses(source: &Source, raw: Option<&Spanned<Vec<Spanned<String>>>>) -> Result<Vec<SocketAddr>, ConfigError> {
    list(raw, |value| parse_listen(value.get_ref()).map_err(|what| source.invalid(value, what)))
}

fn list<T, R>(
    raw: Option<&Spanned<Vec<Spanned<R>>>>,
    read: impl Fn(&Spanned<R>) -> Result<T, ConfigError>,
) -> Result<Vec<T>, ConfigError> {
    raw.map(|list| list.get_ref().as_slice()).unwrap_or_default().iter().map(read).collect()
}
