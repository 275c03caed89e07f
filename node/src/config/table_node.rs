//! Keys of a node's configuration: `entry.toml`, `mixN.toml` and `exit.toml`, with their `[[forward]]`, `[caps]` and
//! `[class.NAME]`.

use wire::replay::WIDTH_MAX;

use super::NodeRole::{Entry, Exit, Mix};
use super::table::{ALL, DefaultValue, Key, Kind};
use super::{
    CHANNELS, FLOW_IDLE_S, MAX_AGE_MS_RANGE, MAX_DESTINATION_RATE, MAX_FLOW_RATE, MAX_FLOWS_PER_CHANNEL, MAX_NAME_RATE,
    MAX_SOCKETS, MAX_UNANSWERED, METER_FLOOR_MAX, RECEIVE_BUFFER, RENEW_AFTER_S, WINDOW,
};

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
        doc: "mix1: networks whose many users share few addresses, such as a carrier's NAT. Their links, channels, \
              handshakes and setups are not counted by address, so a single host there can take all that mix1 has: list no network \
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
        default: DefaultValue::Unset("250; in a paced class 60, or six rounds if that is more"),
        doc: "Milliseconds that a datagram or cell may wait in this node; older ones are dropped (`aged`). The delay of \
              the mixing does not count.",
        example: "100",
    },
    Key {
        name: "on_alarm",
        roles: &[Entry],
        kind: Kind::Word(&["warn", "no-new-flows"]),
        default: DefaultValue::Value("\"warn\""),
        doc: "What follows from the alarm `dropping` in a paced class: a line in the log, or also no new flow from \
              1 to 10 minutes after it rose until 1 to 10 minutes after it has ended, drawn at random. Flows and \
              meetings go on either way: a pause would show whose they are. Somebody who drops cells can then keep \
              you from new flows, and see over some such times at the exit whose are missing.",
        example: "\"no-new-flows\"",
    },
    Key {
        name: "unsynchronised_clock",
        roles: &[Mix, Exit],
        kind: Kind::Switch,
        default: DefaultValue::Value("false"),
        doc: "Start with a paced class although this host's clock is not synchronised. Its rounds then drift away from \
              those of other hosts: for chains on one host.",
        example: "true",
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
        doc: "Channels to keep open; clients are spread over them. mix1 admits at most 64 of one address by default.",
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
              Keeps users from flooding a host that does not answer. One channel gets half at most, and when they are \
              used up all channels together 10 first ones a second. Hosts of an IPv6 /64 count as one. Forgotten after \
              ten minutes.",
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
        doc: "Names resolved per second, for all users together; 0 disables the limit. Half is kept for channels \
              that had none in this second; of the rest a channel that had k gets another one only while more than k \
              are left, so one user cannot take them all.",
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
        kind: Kind::Integer(64, WIDTH_MAX as i64),
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
        doc: "Bounds of admission. Setups and handshakes beyond them are refused and counted; open channels stay. Each \
              class has them for itself.",
        example: "",
    },
    Key {
        name: "class",
        roles: ALL,
        kind: Kind::Classes(CLASS),
        default: DefaultValue::Unset(
            "a hop serves all classes of the chain at their published ports; an entry uses those of its forwards",
        ),
        doc: "Settings of one class of the chain, instead of those above. An entry uses the classes of these tables, those \
              that its forwards name, and the chain's first one for everything else, if there is something else.",
        example: "",
    },
];

/// Keys of a `[class.NAME]`.
pub static CLASS: &[Key] = &[
    Key {
        name: "up",
        roles: &[Mix, Exit],
        kind: Kind::Text("IP:PORT or [IPv6]:PORT"),
        default: DefaultValue::Unset("`up` of the node, with the port that its descriptor has for the class"),
        doc: "Local address of the class's link to the previous hop.",
        example: "\"127.0.0.1:4711\"",
    },
    Key {
        name: "down",
        roles: &[Entry, Mix],
        kind: Kind::Text("IP:PORT or [IPv6]:PORT"),
        default: DefaultValue::Unset("any port of the address in `down` of the node"),
        doc: "Local address of the class's link to the next hop.",
        example: "\"0.0.0.0:0\"",
    },
    Key {
        name: "next",
        roles: &[Entry, Mix],
        kind: Kind::Text("IP:PORT, [IPv6]:PORT or NAME:PORT"),
        default: DefaultValue::Unset("the address in the chain file"),
        doc: "Address of the next hop for the class, if it is not reached at its published one.",
        example: "\"192.0.2.7:4712\"",
    },
    Key {
        name: "mixing",
        roles: &[Mix],
        kind: Kind::Text("NAME:KEY=VALUE,..."),
        default: DefaultValue::Unset("`mixing` of the node"),
        doc: "When pooled cells of the class are released.",
        example: "\"threshold-or-timed:n=64,t=5ms\"",
    },
    Key {
        name: "meter_floor",
        roles: &[Mix],
        kind: Kind::Integer(0, METER_FLOOR_MAX as i64),
        default: DefaultValue::Unset("`meter_floor` of the node"),
        doc: "The effective set of the class's channels per release below which the node warns.",
        example: "8",
    },
    Key {
        name: "channels",
        roles: &[Entry],
        kind: Kind::Integer(1, 256),
        default: DefaultValue::Unset("`channels` of the entry"),
        doc: "Channels of the class to keep open.",
        example: "4",
    },
    Key {
        name: "socks",
        roles: &[Entry],
        kind: Kind::Texts("IP:PORT, [IPv6]:PORT, or PORT on 127.0.0.1"),
        default: DefaultValue::Unset("none"),
        doc: "SOCKS5 servers whose clients' datagrams travel in the class.",
        example: "[\"127.0.0.1:1081\"]",
    },
    Key {
        name: "cores",
        roles: ALL,
        kind: Kind::Integers(0, 1023),
        default: DefaultValue::Unset("`cores` of the node, those after the workers of the classes before it first"),
        doc: "Cores for the workers of the class.",
        example: "[1]",
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
        kind: Kind::Text("IP:PORT, [IPv6]:PORT, NAME:PORT or meet:@FILE"),
        default: DefaultValue::Required,
        doc: "Destination of the exit, which resolves a name; or meet:@FILE, the other user of a meeting. FILE has the \
              secret that `eddy meet new --out FILE` makes and both users have. A meeting needs a paced class (`class`).",
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
    Key {
        name: "class",
        roles: &[Entry],
        kind: Kind::Text("S, M, L, or the name of a paced class of the chain"),
        default: DefaultValue::Unset("the chain's first class"),
        doc: "Class of the cells in which its datagrams travel.",
        example: "\"L\"",
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

/// Keys of `[caps]`.
pub static CAPS: &[Key] = &[
    cap(
        "links",
        control::LINKS_MAX as i64,
        1024,
        "Links with entries, at mix1, in a free class; a paced one has two for each of its `seats`.",
    ),
    cap("handshakes_per_s", RATE_MAX, 1000, "Handshakes per second."),
    cap("handshakes_burst", RATE_MAX, 2000, "Handshakes at once."),
    cap("channels", CHANNELS_MAX, 65_536, "Open channels; each takes a few kB."),
    cap("channels_per_entry_link", CHANNELS_MAX, 4096, "Open channels of one entry, at mix1."),
    cap(
        "channels_per_prefix",
        CHANNELS_MAX,
        64,
        "Channels of one address, or IPv6 /48, at mix1; `shared_prefixes` are exempt.",
    ),
    cap("half_open", HALF_OPEN_MAX, 4096, "Channels that wait for their acks; beyond it the oldest goes."),
    cap("half_open_per_entry_link", HALF_OPEN_MAX, 64, "The same of one entry, at mix1."),
    cap("setups_per_s", RATE_MAX, 1000, "Channel setups per second."),
    cap("setups_burst", RATE_MAX, 512, "Channel setups at once; at a mix at most half of `half_open`."),
    cap("setups_per_entry_link_per_s", RATE_MAX, 5, "Channel setups per second of one entry, at mix1."),
    cap("setups_per_entry_link_burst", RATE_MAX, 20, "Channel setups at once of one entry, at mix1."),
];
