//! The table of configuration keys: name, roles, type, default, doc and example of each, in one place.
//!
//! Parser, role check, suggestions for misspelt keys, generated files, the handbook's table and `eddy config` follow
//! from it. A new key is a row here, a field of [`super::NodeConfig`] and the line that reads it.

use super::NodeRole::{self, Entry, Exit, Mix};
use super::table_trust::{
    CHAIN_CLASS, CHAIN_FILE, CHAIN_HOP, DESCRIPTOR_FILE, IDENTITY_FILE, NODE_KEY_FILE, REQUEST_FILE,
};
use super::{
    CHANNELS, FLOW_IDLE_S, MAX_AGE_MS, MAX_AGE_MS_RANGE, MAX_DESTINATION_RATE, MAX_FLOW_RATE, MAX_FLOWS_PER_CHANNEL,
    MAX_NAME_RATE, MAX_SOCKETS, MAX_UNANSWERED, METER_FLOOR_MAX, RECEIVE_BUFFER, RENEW_AFTER_S, WINDOW,
};

/// One key.
pub struct Key {
    /// As written in the file.
    pub name: &'static str,
    /// The roles whose configuration has it.
    pub roles: &'static [NodeRole],
    /// The accepted values.
    pub kind: Kind,
    /// Its meaning when it is not set.
    pub default: DefaultValue,
    /// The first sentence also follows the line in a generated file.
    pub doc: &'static str,
    /// A value, as TOML. Empty: the default is the example.
    pub example: &'static str,
}

/// The accepted values of a key.
pub enum Kind {
    /// A whole number from a range, both ends included.
    Integer(i64, i64),
    /// A list of such numbers.
    Integers(i64, i64),
    /// `true` or `false`.
    Switch,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Text in this form.
    Text(&'static str),
    /// A list of texts in this form.
    Texts(&'static str),
    /// A table of its own, `[name]`.
    Table(&'static [Key]),
    /// Any number of such tables, `[[name]]`.
    Tables(&'static [Key]),
    /// A table of texts whose names are the operator's, in this form.
    Names(&'static str),
}

/// The meaning of a key that is not set.
pub enum DefaultValue {
    /// The key must be set.
    Required,
    /// No value, with its meaning.
    Unset(&'static str),
    /// This number.
    Integer(i64),
    /// This value, as TOML.
    Value(&'static str),
}

const ALL: &[NodeRole] = &[Entry, Mix, Exit];

/// Keys of `entry.toml`, `mixN.toml` and `exit.toml`, in the order in which generated files have them.
pub static NODE: &[Key] = &[
    Key {
        name: "role",
        roles: ALL,
        kind: Kind::Word(&["entry", "mix", "exit"]),
        default: DefaultValue::Required,
        doc: "Role of the node.",
        example: "\"mix\"",
    },
    Key {
        name: "chain",
        roles: ALL,
        kind: Kind::Text("a path"),
        default: DefaultValue::Required,
        doc: "The chain's public file. Paths are relative to the folder of the configuration.",
        example: "\"chain.toml\"",
    },
    Key {
        name: "keys",
        roles: &[Mix, Exit],
        kind: Kind::Text("a path"),
        default: DefaultValue::Required,
        doc: "The node's private keys, mode 0600. `--keys` names another file.",
        example: "\"node.key\"",
    },
    Key {
        name: "state",
        roles: ALL,
        kind: Kind::Text("a path"),
        default: DefaultValue::Unset("the path of the configuration, with the ending .state"),
        doc: "File in which the node keeps the newest descriptors, and a hop what it has signed. Mode 0600. A hop needs \
              it to be writable.",
        example: "\"node.state\"",
    },
    Key {
        name: "status",
        roles: ALL,
        kind: Kind::Text("a path"),
        default: DefaultValue::Required,
        doc: "Unix socket that `eddy status` reads. Mode 0600; it takes no commands.",
        example: "\"mix1.sock\"",
    },
    Key {
        name: "up",
        roles: &[Mix, Exit],
        kind: Kind::Text("IP:PORT or [IPv6]:PORT"),
        default: DefaultValue::Required,
        doc: "Local address of the link to the previous hop.",
        example: "\"127.0.0.1:4701\"",
    },
    Key {
        name: "down",
        roles: &[Entry, Mix],
        kind: Kind::Text("IP:PORT or [IPv6]:PORT"),
        default: DefaultValue::Unset("any port; at a mix of an address that its descriptor names, if this host has it"),
        doc: "Local address of the link to the next hop.",
        example: "\"0.0.0.0:0\"",
    },
    Key {
        name: "next",
        roles: &[Entry, Mix],
        kind: Kind::Text("IP:PORT, [IPv6]:PORT or NAME:PORT"),
        default: DefaultValue::Unset("the address in the chain file"),
        doc: "Address of the next hop, if it is not reached at its published one (NAT, a proxy).",
        example: "\"192.0.2.7:4702\"",
    },
    Key {
        name: "previous",
        roles: &[Mix, Exit],
        kind: Kind::Texts("IP addresses"),
        default: DefaultValue::Value("[]"),
        doc: "Addresses that the previous hop sends from, if its descriptor does not name them (NAT, a DNS name). \
              Handshakes from elsewhere need a cookie, and only two of them a second are answered. Not at mix1.",
        example: "[\"192.0.2.9\"]",
    },
    Key {
        name: "shared_prefixes",
        roles: &[Mix],
        kind: Kind::Texts("IP or IP/BITS"),
        default: DefaultValue::Value("[]"),
        doc: "mix1: networks whose many users share few addresses, such as a carrier's NAT. Their links, handshakes and \
              setups are not counted by address, so a single host there can take all that mix1 has: list no network \
              larger than necessary.",
        example: "[\"198.51.100.0/24\"]",
    },
    Key {
        name: "mixing",
        roles: &[Mix],
        kind: Kind::Text("NAME:KEY=VALUE,..."),
        default: DefaultValue::Value("\"threshold-or-timed:n=64,n_min=8,t=5ms\""),
        doc: "When pooled cells are released: threshold:n=64, timed:t=5ms, or threshold-or-timed:n=64,t=5ms. \
              A release by count also needs cells of n_min channels, so that one user alone cannot cause it; unless \
              `n_min=8` or another number follows, it is an eighth of n. Cells of fewer channels wait for t, or with \
              threshold for at most 1 s. It may not hold cells longer than chain.toml allows.",
        example: "\"threshold-or-timed:n=64,t=5ms\"",
    },
    Key {
        name: "meter_floor",
        roles: &[Mix],
        kind: Kind::Integer(0, METER_FLOOR_MAX as i64),
        default: DefaultValue::Integer(0),
        doc: "The effective set of channels per release below which the node warns, as a mean over a minute (`eddy \
              status`); 0 for never. It counts channels, not flows: docs/ANONYMITY.md.",
        example: "8",
    },
    Key {
        name: "max_age_ms",
        roles: ALL,
        kind: Kind::Integer(MAX_AGE_MS_RANGE.0, MAX_AGE_MS_RANGE.1),
        default: DefaultValue::Integer(MAX_AGE_MS as i64),
        doc: "Milliseconds that a datagram or cell may wait in this node; older ones are dropped (`aged`). The delay of \
              the mixing does not count.",
        example: "250",
    },
    Key {
        name: "lanes_show_label_bits",
        roles: &[Mix],
        kind: Kind::Switch,
        default: DefaultValue::Value("false"),
        doc: "Start although a link between hops has several lanes. Whoever sees such a link then reads bits of a cell's \
              channel number from its UDP port. Both ends of the link need it.",
        example: "true",
    },
    Key {
        name: "channels",
        roles: &[Entry],
        kind: Kind::Integer(1, 256),
        default: DefaultValue::Integer(CHANNELS as i64),
        doc: "Channels to keep open; clients are spread over them.",
        example: "4",
    },
    Key {
        name: "flow_idle_s",
        roles: &[Entry, Exit],
        kind: Kind::Integer(1, 86_400),
        default: DefaultValue::Integer(FLOW_IDLE_S as i64),
        doc: "Seconds after which a flow that sends nothing is closed. Answers do not count.",
        example: "300",
    },
    Key {
        name: "socks",
        roles: &[Entry],
        kind: Kind::Texts("IP:PORT, [IPv6]:PORT, or PORT on 127.0.0.1"),
        default: DefaultValue::Value("[]"),
        doc: "SOCKS5 servers for UDP. Clients of other hosts need `socks_users`.",
        example: "[\"127.0.0.1:1080\"]",
    },
    Key {
        name: "socks_users",
        roles: &[Entry],
        kind: Kind::Text("a path"),
        default: DefaultValue::Unset("no users"),
        doc: "File with the users of `socks` from other hosts, mode 0600: lines NAME = \"PASSWORD\" under [socks_users].",
        example: "\"entry.users\"",
    },
    Key {
        name: "pymix",
        roles: &[Entry],
        kind: Kind::Texts("IP:PORT, [IPv6]:PORT, or PORT on 127.0.0.1"),
        default: DefaultValue::Value("[]"),
        doc: "UDP ports for PyMix clients. Each of their datagrams begins with its destination: IPv4 address and port.",
        example: "[\"127.0.0.1:5001\"]",
    },
    Key {
        name: "commands",
        roles: &[Entry],
        kind: Kind::Text("a path"),
        default: DefaultValue::Unset("no command socket"),
        doc: "Unix socket that `eddy forward` commands the entry through. Mode 0600.",
        example: "\"entry.cmd\"",
    },
    Key {
        name: "allow",
        roles: &[Exit],
        kind: Kind::Texts("IP, IP/BITS, IP:PORT or IP/BITS:PORT-PORT"),
        default: DefaultValue::Value("[]"),
        doc: "Destinations to open: private, loopback, link-local, multicast, reserved and this host's own are closed. \
              Of all matching entries in `allow` and `deny` the narrowest decides. A name is judged by the address it \
              resolves to. Ports may follow: \"192.0.2.7:53\", \"10.0.0.0/8:5000-5999\", \"[2001:db8::/32]:53\".",
        example: "[\"10.0.0.0/8\"]",
    },
    Key {
        name: "deny",
        roles: &[Exit],
        kind: Kind::Texts("IP, IP/BITS, IP:PORT or IP/BITS:PORT-PORT"),
        default: DefaultValue::Value("[]"),
        doc: "Destinations to close: the public internet is open. Same form as `allow`.",
        example: "[\"192.0.2.0/24\"]",
    },
    Key {
        name: "own",
        roles: &[Exit],
        kind: Kind::Texts("IP"),
        default: DefaultValue::Value("[]"),
        doc: "Addresses that lead to this exit although its host does not have them, such as the public one behind NAT; \
              closed like the host's own. The exit reads those of its host itself, every 10 s.",
        example: "[\"192.0.2.7\"]",
    },
    Key {
        name: "nat64",
        roles: &[Exit],
        kind: Kind::Texts("PREFIX/BITS"),
        default: DefaultValue::Value("[]"),
        doc: "Prefixes of translators to IPv4 (NAT64) that this exit's network has; such a destination is judged by the \
              IPv4 address in it. 64:ff9b::/96 is known. A prefix has 32, 40, 48, 56, 64 or 96 bits.",
        example: "[\"2001:db8:64::/96\"]",
    },
    Key {
        name: "trust",
        roles: &[Exit],
        kind: Kind::Texts("IP, IP/BITS, IP:PORT or IP/BITS:PORT-PORT"),
        default: DefaultValue::Value("[]"),
        doc: "Destinations without the three limits below. For receivers that never answer (RTP without RTCP) and your own \
              services. It opens nothing: `allow` must still list a closed destination.",
        example: "[\"192.0.2.7:5004\"]",
    },
    Key {
        name: "max_unanswered",
        roles: &[Exit],
        kind: Kind::Integer(0, 10_000_000),
        default: DefaultValue::Integer(MAX_UNANSWERED as i64),
        doc: "Most datagrams that all users together may send to one address before it answers; 0 disables the limit. \
              Keeps users from flooding a host that does not answer. Hosts of an IPv6 /64 count as one. Forgotten \
              after ten minutes.",
        example: "1000",
    },
    Key {
        name: "max_flow_rate",
        roles: &[Exit],
        kind: Kind::Integer(0, 10_000_000),
        default: DefaultValue::Integer(MAX_FLOW_RATE as i64),
        doc: "Most datagrams per second of one flow, each way; 0 disables the limit. Up to a quarter of them may arrive \
              in one burst.",
        example: "100000",
    },
    Key {
        name: "max_destination_rate",
        roles: &[Exit],
        kind: Kind::Integer(0, 10_000_000),
        default: DefaultValue::Integer(MAX_DESTINATION_RATE as i64),
        doc: "Most datagrams per second of all flows with one address, each way; 0 disables the limit. IPv6 counts by \
              /64.",
        example: "200000",
    },
    Key {
        name: "max_name_rate",
        roles: &[Exit],
        kind: Kind::Integer(0, 1_000_000),
        default: DefaultValue::Integer(MAX_NAME_RATE as i64),
        doc: "Names resolved per second, for all users together; 0 disables the limit. A channel that had k of them \
              in this second gets another one only while more than k are left, so one user cannot take them all.",
        example: "200",
    },
    Key {
        name: "filtering",
        roles: &[Exit],
        kind: Kind::Word(&["endpoint", "none"]),
        default: DefaultValue::Value("\"endpoint\""),
        doc: "Who may send to a client: addresses it has sent to (endpoint), or anyone who finds its port (none). \
              `none` is for games and calls between peers (RFC 4787). Only SOCKS clients and tunnels hear such \
              datagrams, one cell's worth each, and only from where the policy lets them answer.",
        example: "\"endpoint\"",
    },
    Key {
        name: "resolver",
        roles: &[Exit],
        kind: Kind::Text("IP or IP:PORT"),
        default: DefaultValue::Unset("the name servers of /etc/resolv.conf"),
        doc: "Name server for the names that clients send to.",
        example: "\"9.9.9.9:53\"",
    },
    Key {
        name: "max_flows_per_channel",
        roles: &[Exit],
        kind: Kind::Integer(1, 65_536),
        default: DefaultValue::Integer(MAX_FLOWS_PER_CHANNEL as i64),
        doc: "Flows of one channel.",
        example: "1024",
    },
    Key {
        name: "max_sockets",
        roles: &[Exit],
        kind: Kind::Integer(1, 1_000_000),
        default: DefaultValue::Integer(MAX_SOCKETS as i64),
        doc: "Sockets of all clients. Needs as many open files, and 64 more.",
        example: "4096",
    },
    Key {
        name: "window",
        roles: ALL,
        kind: Kind::Integer(64, 65_536),
        default: DefaultValue::Integer(WINDOW as i64),
        doc: "Replay window of a channel in cells, a power of two.",
        example: "4096",
    },
    Key {
        name: "receive_buffer",
        roles: ALL,
        kind: Kind::Integer(4096, (1 << 30) - 1),
        default: DefaultValue::Integer(RECEIVE_BUFFER as i64),
        doc: "Receive buffer of each link socket in bytes. If set, the node does not start with less; the default is \
              best effort.",
        example: "8388608",
    },
    Key {
        name: "cores",
        roles: ALL,
        kind: Kind::Integers(0, 1023),
        default: DefaultValue::Value("[]"),
        doc: "Cores for the workers, one each, in turn if there are more workers. An empty list lets the system choose.",
        example: "[0]",
    },
    Key {
        name: "spin_us",
        roles: ALL,
        kind: Kind::Integer(0, 100_000),
        default: DefaultValue::Integer(0),
        doc: "Microseconds that a worker keeps polling after it received something, before it sleeps.",
        example: "50",
    },
    Key {
        name: "hugepages",
        roles: ALL,
        kind: Kind::Switch,
        default: DefaultValue::Value("true"),
        doc: "Cell buffers and channels on pages of 2 MB (madvise), where the system has them.",
        example: "true",
    },
    Key {
        name: "offload",
        roles: ALL,
        kind: Kind::Word(&["auto", "on", "off"]),
        default: DefaultValue::Value("\"auto\""),
        doc: "GSO and GRO on link sockets (UDP_SEGMENT, UDP_GRO).",
        example: "\"auto\"",
    },
    Key {
        name: "io",
        roles: ALL,
        kind: Kind::Word(&["auto", "mmsg", "uring"]),
        default: DefaultValue::Value("\"auto\""),
        doc: "System calls of link sockets.",
        example: "\"auto\"",
    },
    Key {
        name: "renew_after_s",
        roles: ALL,
        kind: Kind::Integer(1, 3600),
        default: DefaultValue::Integer(RENEW_AFTER_S as i64),
        doc: "Seconds after which a link gets new keys. Old keys are dropped after one and a half times that time, at \
              least 10 s later.",
        example: "120",
    },
    Key {
        name: "forward",
        roles: &[Entry],
        kind: Kind::Tables(FORWARD),
        default: DefaultValue::Unset("no forwards"),
        doc: "Datagrams sent to `listen` leave the exit towards `to`. Like `ssh -L`, for UDP.",
        example: "",
    },
    Key {
        name: "caps",
        roles: &[Mix, Exit],
        kind: Kind::Table(CAPS),
        default: DefaultValue::Unset("the defaults below"),
        doc: "Bounds of admission. Setups and handshakes beyond them are refused and counted; open channels stay.",
        example: "",
    },
];

/// Keys of a `[[forward]]`.
pub static FORWARD: &[Key] = &[
    Key {
        name: "listen",
        roles: &[Entry],
        kind: Kind::Text("IP:PORT, [IPv6]:PORT, or PORT on 127.0.0.1"),
        default: DefaultValue::Required,
        doc: "Address of the entry that clients send to.",
        example: "\"127.0.0.1:5000\"",
    },
    Key {
        name: "to",
        roles: &[Entry],
        kind: Kind::Text("IP:PORT, [IPv6]:PORT or NAME:PORT"),
        default: DefaultValue::Required,
        doc: "Destination of the exit. A name is resolved there.",
        example: "\"192.0.2.7:5000\"",
    },
    Key {
        name: "idle_s",
        roles: &[Entry],
        kind: Kind::Integer(1, 86_400),
        default: DefaultValue::Unset("flow_idle_s"),
        doc: "Seconds after which its idle flows are closed.",
        example: "300",
    },
    Key {
        name: "max_age_ms",
        roles: &[Entry],
        kind: Kind::Integer(MAX_AGE_MS_RANGE.0, MAX_AGE_MS_RANGE.1),
        default: DefaultValue::Unset("max_age_ms of the entry"),
        doc: "Milliseconds that its datagrams may wait at the entry.",
        example: "100",
    },
];

/// A bound of admission, with the default of `control::Caps`.
const fn cap(name: &'static str, max: i64, default: i64, doc: &'static str) -> Key {
    Key {
        name,
        roles: &[Mix, Exit],
        kind: Kind::Integer(1, max),
        default: DefaultValue::Integer(default),
        doc,
        example: "",
    }
}

/// Most channels of a node; each costs it a few kB.
const CHANNELS_MAX: i64 = 1 << 20;
/// Most channels that wait for their acks.
const HALF_OPEN_MAX: i64 = 1 << 16;
/// Most setups or handshakes a second: more than public-key work allows.
const RATE_MAX: i64 = 1_000_000;
/// Most links: less than the numbers that a link's id has room for.
const LINKS_MAX: i64 = (1 << wire::ids::LinkId::INDEX_BITS) - 1;

/// Keys of `[caps]`.
pub static CAPS: &[Key] = &[
    cap("links", LINKS_MAX, 1024, "Links with entries, at mix1."),
    cap("handshakes_per_s", RATE_MAX, 1000, "Handshakes per second."),
    cap("handshakes_burst", RATE_MAX, 2000, "Handshakes at once."),
    cap("channels", CHANNELS_MAX, 65_536, "Open channels; each takes a few kB."),
    cap("channels_per_entry_link", CHANNELS_MAX, 4096, "Open channels of one entry, at mix1."),
    cap("half_open", HALF_OPEN_MAX, 4096, "Channels that wait for their acks; beyond it the oldest goes."),
    cap("half_open_per_entry_link", HALF_OPEN_MAX, 64, "The same of one entry, at mix1."),
    cap("setups_per_s", RATE_MAX, 1000, "Channel setups per second."),
    cap("setups_burst", RATE_MAX, 512, "Channel setups at once; at a mix at most half of `half_open`."),
    cap("setups_per_entry_link_per_s", RATE_MAX, 5, "Channel setups per second of one entry, at mix1."),
    cap("setups_per_entry_link_burst", RATE_MAX, 20, "Channel setups at once of one entry, at mix1."),
];

/// A key of another kind of file.
pub(super) const fn plain(name: &'static str, kind: Kind, doc: &'static str, example: &'static str) -> Key {
    Key { name, roles: ALL, kind, default: DefaultValue::Required, doc, example }
}

pub(super) const ASSEMBLED: &str = "\"...\" as `eddy assemble` wrote it";
pub(super) const MADE: &str = "\"...\" as `eddy keygen` wrote it";
pub(super) const COPY: &str = "\"...\" as the chain's operator gives it";

pub(super) const SECRET: Kind = Kind::Text("32 bytes in base64");

/// An optional key of a key file.
pub(super) const fn optional(
    name: &'static str,
    kind: Kind,
    unset: &'static str,
    doc: &'static str,
    example: &'static str,
) -> Key {
    Key { name, roles: ALL, kind, default: DefaultValue::Unset(unset), doc, example }
}

/// The key of an entry's file of SOCKS users.
pub static USERS_FILE: &[Key] = &[plain(
    "socks_users",
    Kind::Names("name = \"password\""),
    "Users of an entry's SOCKS ports from other hosts (RFC 1929).",
    "",
)];

/// All tables, with what messages call their files.
pub static ALL_FILES: &[(&str, &[Key])] = &[
    (CONFIGURATION, NODE),
    ("a [[forward]] of entry.toml", FORWARD),
    ("[caps] of mixN.toml or exit.toml", CAPS),
    ("a file of SOCKS users", USERS_FILE),
    ("chain.toml", CHAIN_FILE),
    ("a [[class]] of chain.toml", CHAIN_CLASS),
    ("a [[hop]] of chain.toml", CHAIN_HOP),
    ("node.desc", DESCRIPTOR_FILE),
    ("node.request", REQUEST_FILE),
    ("node.key", NODE_KEY_FILE),
    ("identity.key", IDENTITY_FILE),
];

/// A kind of file.
pub struct FileKind {
    /// As messages call it.
    pub name: &'static str,
    /// A file of this kind, for messages.
    pub example: &'static str,
    pub keys: &'static [Key],
}

pub(super) const CONFIGURATION: &str = "a node's configuration";
pub(super) const CHAIN: &str = "the chain's public file";

/// All kinds of files.
pub static WHOLE_FILES: &[FileKind] = &[
    FileKind { name: CONFIGURATION, example: "the node's own file, such as node.toml or mix1.toml", keys: NODE },
    FileKind { name: CHAIN, example: "chain.toml as `eddy assemble` writes it", keys: CHAIN_FILE },
    FileKind { name: "a key file", example: "the node's key file, such as mix1.key", keys: NODE_KEY_FILE },
    FileKind { name: "a node's identity", example: "identity.key as `eddy keygen` writes it", keys: IDENTITY_FILE },
    FileKind { name: "a node's descriptor", example: "node.desc as `eddy keygen` writes it", keys: DESCRIPTOR_FILE },
    FileKind {
        name: "a request for new keys",
        example: "node.request as `eddy keygen --rotate` writes it",
        keys: REQUEST_FILE,
    },
];

impl Key {
    /// The first sentence of its doc.
    pub fn summary(&self) -> &'static str {
        self.doc.split_once(". ").map_or(self.doc, |(first, _)| first).trim_end_matches('.')
    }

    /// Its default as TOML, if it is a value.
    pub fn default_value(&self) -> Option<String> {
        match self.default {
            DefaultValue::Integer(number) => Some(number.to_string()),
            DefaultValue::Value(text) => Some(text.to_owned()),
            DefaultValue::Required | DefaultValue::Unset(_) => None,
        }
    }

    /// A line that sets it, or how its table is written.
    pub fn line(&self) -> String {
        match &self.kind {
            Kind::Table(keys) => format!("[{}] with lines such as {}", self.name, keys[0].line()),
            Kind::Tables(keys) => {
                let required = keys.iter().filter(|key| matches!(key.default, DefaultValue::Required));
                let names: Vec<&str> = required.map(|key| key.name).collect();
                format!("[[{}]] with {} below it", self.name, names.join(", "))
            }
            Kind::Names(form) => format!("[{}] with lines such as {form}", self.name),
            _ if self.example.is_empty() => format!("{} = {}", self.name, self.default_value().unwrap_or_default()),
            _ => format!("{} = {}", self.name, self.example),
        }
    }
}

impl Kind {
    /// The values, for messages and tables: "a whole number from 1 to 8".
    pub fn expected(&self) -> String {
        match self {
            Kind::Integer(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Integers(min, max) => format!("a list of whole numbers from {min} to {max}"),
            Kind::Switch => "true or false".to_owned(),
            Kind::Word(words) => {
                let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                match quoted.split_last() {
                    Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
                    _ => quoted.concat(),
                }
            }
            Kind::Text(form) => format!("text: {form}"),
            Kind::Texts(form) => format!("a list of texts: {form}"),
            Kind::Table(_) => "a table".to_owned(),
            Kind::Tables(_) => "tables".to_owned(),
            Kind::Names(form) => format!("lines of the form {form}"),
        }
    }
}

/// The files that have a key: `entry.toml`, `mixN.toml or exit.toml`.
pub fn files(roles: &[NodeRole]) -> String {
    let names = roles.iter().map(|role| if *role == Mix { "mixN.toml".to_owned() } else { format!("{role}.toml") });
    names.collect::<Vec<_>>().join(" or ")
}

/// The key of this name among `keys`.
pub fn find(keys: &'static [Key], name: &str) -> Option<&'static Key> {
    keys.iter().find(|key| key.name == name)
}
