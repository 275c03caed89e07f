//! The mistakes: what the operator did, what was run then, and what the answer must say.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use control::{Descriptor, Identity};
use rustix::thread::sched_getaffinity;

use super::Setup::{Do, Line, Nothing};
use super::{Mistake, Running, Scene};
use crate::common::command::eddy;

const MIX: &str = "mix --config mix1.toml";
const ENTRY: &str = "entry --config entry.toml";
const EXIT: &str = "exit --config exit.toml";

/// All mistakes, under the titles of the handbook.
pub const TABLE: &[(&str, &[Mistake])] = &[
    ("Files", FILES),
    ("A node's configuration", NODE),
    ("The chain file", CHAIN),
    ("Keys", KEYS),
    ("Addresses and ports", SOCKETS),
    ("The host", HOST),
    ("The status socket", STATUS),
    ("The command line", COMMAND_LINE),
];

macro_rules! table {
    ($name:ident: $($what:literal, $setup:expr, $command:expr, $wanted:expr;)*) => {
        const $name: &[Mistake] = &[$(Mistake { name: $what, setup: $setup, command: $command, wanted: $wanted },)*];
    };
}

table! { FILES:
    "no such configuration", Nothing, "mix --config mix9.toml",
        &["mix9.toml: No such file", "check the path", "`eddy init DIR`"];
    "no such chain file", Line("mix1.toml", "chain", "chain = \"chian.toml\""), MIX,
        &["chian.toml: No such file", "`chain` in mix1.toml:5", "eddy init"];
    "no such key file", Line("mix1.toml", "keys", "keys = \"none.key\""), MIX,
        &["none.key: No such file", "`keys` in mix1.toml:6 must name the key file"];
    "a folder for a configuration", Do(|s| fs::create_dir(s.path("demo")).unwrap()), "mix --config demo",
        &["demo: Is a directory", "name a file in it"];
    "a configuration that is not UTF-8",
        Do(|s| fs::write(s.path("mix1.toml"), b"role = \"mix\"\n# gr\xfc\xdfe\n").unwrap()), MIX,
        &["mix1.toml:2: the text is not UTF-8", "save it as UTF-8"];
    "an empty configuration", Do(|s| fs::write(s.path("mix1.toml"), "").unwrap()), MIX,
        &["mix1.toml: the file is empty", "`eddy init`"];
    "an empty chain file", Do(|s| fs::write(s.path("chain.toml"), "\n").unwrap()), MIX,
        &["chain.toml: the file is empty", "`eddy init`"];
    "the chain file for a configuration", Nothing, "mix --config chain.toml",
        &["chain.toml: this is the chain's public file", "expected a node's configuration", "such as mix1.toml"];
    "the key file for a configuration", Nothing, "mix --config mix1.key",
        &["mix1.key: this is a key file, expected a node's configuration", "such as mix1.toml"];
    "a node's configuration for the chain file", Line("mix1.toml", "chain", "chain = \"mix2.toml\""), MIX,
        &["mix2.toml: this is a node's configuration, expected the chain's public file", "chain.toml"];
    "the configuration of another role", Nothing, "exit --config mix1.toml",
        &["mix1.toml configures a mix, not an exit", "run `eddy mix --config mix1.toml`"];
}

table! { NODE:
    "a misspelt key", Line("mix1.toml", "mixing", "mixxing = \"timed:t=1ms\""), MIX,
        &["mix1.toml:13: unknown key `mixxing`", "did you mean `mixing`?"];
    "a key that is nothing like any", Line("mix1.toml", "", "colour = \"red\""), MIX,
        &["unknown key `colour`", "the keys here are role, position, chain"];
    "a missing key", Line("mix1.toml", "position", ""), MIX,
        &["mix1.toml: the key `position` is missing", "add `position = 1`"];
    "a value of the wrong type", Line("mix1.toml", "position", "position = \"1\""), MIX,
        &["mix1.toml:4: position must be a whole number from 0 to 8 (got \"1\")", "for example `position = 1`"];
    "a position that the chain does not have", Line("mix1.toml", "position", "position = 4"), MIX,
        &["mix1.toml:4: position must be 1 to 3 for a mix in this chain (got 4)", "or `role`"];
    "a position that no chain has", Line("mix1.toml", "position", "position = 9"), MIX,
        &["position must be a whole number from 0 to 8 (got 9)"];
    "an unknown role", Line("mix1.toml", "role", "role = \"mux\""), MIX,
        &["role must be ", "(got \"mux\")", "did you mean \"mix\"?"];
    "no value", Line("mix1.toml", "role", "role = "), MIX,
        &["mix1.toml:3: role has no value", "write `role = \"mix\"`"];
    "a mix without `up`", Line("mix1.toml", "up", ""), MIX,
        &["`up` is missing", "up = \"127.0.0.1:4701\""];
    "a name where an address belongs", Line("mix1.toml", "up", "up = \"localhost\""), MIX,
        &["mix1.toml:9: up must be IP:PORT or [IPv6]:PORT (got \"localhost\")", "for example `up = "];
    "`next` without a port", Line("mix1.toml", "# next", "next = \"nowhere\""), MIX,
        &["\"nowhere\" has no port", "expected IP:PORT"];
    "an unknown mixing", Line("mix1.toml", "mixing", "mixing = \"poisson\""), MIX,
        &["unknown strategy", "expected one of threshold"];
    "a mixing slower than the descriptor promises", Line("mix1.toml", "mixing", "mixing = \"timed:t=9ms\""), MIX,
        &["mix1.toml:13: ", "longer than the 5 ms that the descriptor promises", "--mixing timed:t=9ms"];
    "a window that is not a power of two", Line("mix1.toml", "# window", "window = 1000"), MIX,
        &["window must be a power of two (got 1000)", "`window = 1024`"];
    "a window too small", Line("mix1.toml", "# window", "window = 32"), MIX,
        &["window must be a whole number from 64 to 65536 (got 32)", "the default is 4096"];
    "a receive buffer too small", Line("mix1.toml", "# receive_buffer", "receive_buffer = 1"), MIX,
        &["receive_buffer must be a whole number from 4096 to 1073741823 (got 1)"];
    "offload neither on nor off", Line("mix1.toml", "# offload", "offload = \"yes\""), MIX,
        &["offload must be \"auto\", \"on\" or \"off\" (got \"yes\")"];
    "system calls that there are not", Line("mix1.toml", "# io", "io = \"epoll\""), MIX,
        &["mix1.toml:", "io must be \"auto\", \"mmsg\" or \"uring\" (got \"epoll\")"];
    "a worker that never sleeps", Line("mix1.toml", "# spin_us", "spin_us = 1000000"), MIX,
        &["spin_us must be a whole number from 0 to 100000 (got 1000000)"];
    "a word for a switch", Line("mix1.toml", "# hugepages", "hugepages = \"yes\""), MIX,
        &["hugepages must be true or false (got \"yes\")"];
    "a cap that there is not", Line("mix1.toml", "", "[caps]\nchanels = 5"), MIX,
        &["unknown key `chanels`", "did you mean `channels`?"];
    "more links than a node can number", Line("mix1.toml", "", "[caps]\nlinks = 4096"), MIX,
        &["links must be a whole number from 1 to 4095 (got 4096)", "the default is 1024"];
    "a cap of nothing", Line("exit.toml", "", "[caps]\nsetups_per_s = 0"), EXIT,
        &["setups_per_s must be a whole number from 1 to 1000000 (got 0)", "the default is 1000"];
    "caps at the entry", Line("entry.toml", "", "[caps]\nchannels = 5"), ENTRY,
        &["`caps` does not apply to role = \"entry\"", "mixN.toml or exit.toml"];
    "links renewed without a pause", Line("mix1.toml", "# renew_after_s", "renew_after_s = 0"), MIX,
        &["renew_after_s must be a whole number from 1 to 3600 (got 0)", "120"];
    "a fraction of a second", Line("mix1.toml", "# renew_after_s", "renew_after_s = 2.5"), MIX,
        &["renew_after_s must be a whole number from 1 to 3600 (got 2.5)", "`renew_after_s = 120`"];
    "the exit's `allow` at a mix", Line("mix1.toml", "# window", "allow = []"), MIX,
        &["`allow` does not apply to role = \"mix\"", "move it to exit.toml"];
    "the exit's limit at a mix", Line("mix1.toml", "# window", "max_flows_per_channel = 1"), MIX,
        &["`max_flows_per_channel` does not apply", "exit.toml"];
    "a mix's `mixing` at the exit", Line("exit.toml", "up", "mixing = \"timed:t=1ms\""), EXIT,
        &["`mixing` does not apply to role = \"exit\""];
    "`up` at the entry", Line("entry.toml", "channels", "up = \"127.0.0.1:1\""), ENTRY,
        &["`up` does not apply to role = \"entry\"", "mixN.toml or exit.toml"];
    "an entry at the place of a mix", Line("entry.toml", "position", "position = 1"), ENTRY,
        &["position must be 0 for an entry in this chain (got 1)"];
    "an entry without channels", Line("entry.toml", "channels", "channels = 0"), ENTRY,
        &["channels must be a whole number from 1 to 256 (got 0)", "the default is 4"];
    "an invalid pymix address", Line("entry.toml", "channels", "pymix = [\"here\"]"), ENTRY,
        &["invalid listen address \"here\": expected IP:PORT"];
    "a forward to no port", Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"example.org\""), ENTRY,
        &["\"example.org\" has no port", "NAME:PORT"];
    "a forward to nowhere", Line("entry.toml", "", "[[forward]]\nlisten = \"5000\""), ENTRY,
        &["the key `to` is missing", "add `to = "];
    "a key that no forward has",
        Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\"\nfrom = 1"), ENTRY,
        &["unknown key `from`", "keys here are listen, to"];
    "a key of the whole file below a table",
        Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\"\nsocks = [\"1080\"]"), ENTRY,
        &["entry.toml:", "unknown key `socks`", "below the line [[forward]]", "move `socks` above the first table"];
    "a key that is set twice", Line("mix1.toml", "mixing", "mixing = \"timed:t=1ms\"\nmixing = \"timed:t=2ms\""), MIX,
        &["mix1.toml:14: duplicate key mixing: line 13 sets it, too", "remove one of the two lines"];
    "an entry without listeners and without a command socket", Line("entry.toml", "commands", ""), ENTRY,
        &["entry.toml:3: this entry listens nowhere", "add a [[forward]] or `socks`", "--forward"];
    "an `allow` that is not a network", Line("exit.toml", "allow", "allow = [\"10.0.0.0/33\"]"), EXIT,
        &["exit.toml:13: \"10.0.0.0/33\" is not a network", "IP/BITS"];
    "an invalid resolver address", Line("exit.toml", "# resolver", "resolver = \"dns\""), EXIT,
        &["resolver must be IP or IP:PORT of a name server (got \"dns\")"];
    "an exit without sockets", Line("exit.toml", "# max_sockets", "max_sockets = 0"), EXIT,
        &["max_sockets must be a whole number from 1 to 1000000 (got 0)"];
    "filtering of a kind that there is not", Line("exit.toml", "# filtering", "filtering = \"address\""), EXIT,
        &["filtering must be \"endpoint\" or \"none\" (got \"address\")"];
    "trust in no network", Line("exit.toml", "trust", "trust = [\"example.org\"]"), EXIT,
        &["\"example.org\" is not a network"];
    "a negative budget", Line("exit.toml", "# max_unanswered", "max_unanswered = -1"), EXIT,
        &["max_unanswered must be a whole number from 0 to 10000000 (got -1)", "the default is 1000"];
}

table! { CHAIN:
    "a chain id cut short", Line("chain.toml", "id", "id = \"00\""), MIX,
        &["chain.toml:2: id must be 32 bytes in base64 or hex"];
    "descriptors of another chain",
        Line("chain.toml", "id", "id = \"0000000000000000000000000000000000000000000000000000000000000000\""), MIX,
        &["mix1: the descriptor belongs to another chain", "compare the chain id"];
    "a class that there is not", Line("chain.toml", "class", "class = \"XL\""), MIX,
        &["chain.toml:3: class must be \"S\", \"M\" or \"L\" (got \"XL\")"];
    "a class unlike the descriptors'", Line("chain.toml", "class", "class = \"M\""), MIX,
        &["the descriptor is for position 1 of 4 in class L, expected position 1 of 4 in class M"];
    "more hops than nodes", Line("chain.toml", "hops", "hops = 5"), MIX,
        &["hops = 5, but the file has 4 [[node]] tables", "every mix and the exit"];
    "one hop", Line("chain.toml", "hops", "hops = 1"), MIX, &["hops must be a whole number from 2 to 8 (got 1)"];
    "a chain without mixing", Line("chain.toml", "mixing", "mixing = \"none\""), MIX, &["unknown strategy"];
    "a lifetime unlike the descriptors'", Line("chain.toml", "lifetime_s", "lifetime_s = 600"), MIX,
        &["a lifetime of 3600 s, the chain 600 s"];
    "a suite that there is not", Line("chain.toml", "suite", "suite = 3"), MIX,
        &["suite must be a whole number from 1 to 2 (got 3)"];
    "a suite unlike the descriptors'", Line("chain.toml", "suite", "suite = 1"), MIX,
        &["the descriptor has setup keys of suite 2, the chain names suite 1"];
    "nodes out of order", Line("chain.toml", "index", "index = 2"), MIX, &["index must be 1 ", "(got 2)"];
    "an exit among the mixes", Line("chain.toml", "role", "role = \"exit\""), MIX,
        &["role must be \"mix\" in [[node]] 1 of 4 (got \"exit\")"];
    "an identity cut short", Line("chain.toml", "identity", "identity = \"AAAA\""), MIX,
        &["identity must be 32 bytes"];
    "the identity of somebody else",
        Line("chain.toml", "identity", "identity = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\""), MIX,
        &["mix1: the signature does not match"];
    "an address that nobody signed", Line("chain.toml", "address", "address = \"127.0.0.1:9\""), MIX,
        &["is not in the signed descriptor, which has 127.0.0.1:4701", "`next`"];
    "a misspelt key of a node", Line("chain.toml", "address", "adress = \"127.0.0.1:4701\""), MIX,
        &["unknown key `adress`", "did you mean `address`?"];
    "a descriptor that is not base64", Line("chain.toml", "descriptor", "descriptor = \"%\""), MIX,
        &["the descriptor is not base64"];
    "a descriptor cut short", Line("chain.toml", "descriptor", "descriptor = \"ZWRkeQE=\""), MIX,
        &["mix1: the descriptor is truncated"];
    "no descriptor", Line("chain.toml", "descriptor", ""), MIX, &["the key `descriptor` is missing"];
    "a descriptor with a bad signature", Do(|s| sign(s, |_| {}, |signed| *signed.last_mut().unwrap() ^= 1)), MIX,
        &["chain.toml:", "mix1: the signature does not match the identity", "the node's operator"];
    "a descriptor that has expired, or a clock far ahead",
        Do(|s| sign(s, |d| (d.not_before, d.not_after) = (0, now() - 3 * DAY - 3600), |_| {})), MIX,
        &["mix1: the descriptor expired 3 days ago", "check this host's clock", "a new one"];
    "a descriptor not yet valid, or a clock far behind",
        Do(|s| sign(s, |d| d.not_before = now() + 3 * DAY + 3600, |_| {})), MIX,
        &["mix1: the descriptor is not valid for another 3 days", "check this host's clock"];
    "lanes that are not ports in a row",
        Do(|s| sign(s, |d| d.lanes.push(SocketAddr::new(d.lanes[0].ip(), d.lanes[0].port() + 2)), |_| {})), MIX,
        &["lane 1 of 127.0.0.1:4701 is published at 127.0.0.1:4703", "`eddy init`"];
}

table! { KEYS:
    "the keys of another node", Line("mix1.toml", "keys", "keys = \"mix2.key\""), MIX,
        &["mix2.key: the noise key is not that of mix1"];
    "the position of another node", Line("mix1.toml", "position", "position = 2"), MIX,
        &["mix1.key", "noise key is not that of mix2", "`keys` in mix1.toml:6 must name"];
    "keys that others may read", Do(|s| mode(s, "mix1.key", 0o644)), MIX,
        &["mode 0644", "run `chmod 600 mix1.key`"];
    "keys that this user may not read", Do(|s| { s.unprivileged = true; mode(s, "mix1.key", 0o200); }), MIX,
        &["mix1.key: Permission denied", "owned by the user who runs eddy"];
    "a malformed key", Line("mix1.key", "noise", "noise = \"c2hvcnQ=\""), MIX,
        &["mix1.key:4: noise must be 32 bytes in base64"];
    "a malformed ML-KEM key", Line("mix1.key", "setup_mlkem", "setup_mlkem = \"c2hvcnQ=\""), MIX,
        &["mix1.key:6: setup_mlkem must be 2400 bytes in base64"];
    "no ML-KEM key in a chain of suite 2", Line("mix1.key", "setup_mlkem", ""), MIX,
        &["mix1.key: the setup key is not that of mix1"];
}

table! { SOCKETS:
    "a port in use",
        Do(|s| { let held = hold(s, "4701"); s.edit("mix1.toml", "up", &format!("up = \"{held}\"")); }), MIX,
        &["mix1.toml:9: up = ", "another process uses this port", "`ss -ulpn 'sport = :"];
    "a forward's port in use",
        Do(|s| {
            let held = hold(s, "5000");
            s.edit("entry.toml", "", &format!("[[forward]]\nlisten = \"{held}\"\nto = \"192.0.2.7:53\""));
        }), ENTRY,
        &["entry.toml:", ": forward on ", "another process uses this port", "`ss -ulpn 'sport = :"];
    "an address that this host does not have", Line("mix1.toml", "up", "up = \"192.0.2.1:4701\""), MIX,
        &["mix1.toml:9: up = \"192.0.2.1:4701\"", "does not have the address 192.0.2.1", "`ip address`"];
    "a port below 1024 without privilege",
        Do(|s| { privileged_ports(s); s.edit("mix1.toml", "up", "up = \"127.0.0.1:47\""); }), MIX,
        &["port 47 requires a privilege", "setcap cap_net_bind_service=+ep", "net.ipv4.ip_unprivileged_port_start=47"];
    "`up` equal to `down`", Line("mix1.toml", "down", "down = \"127.0.0.1:4701\""), MIX,
        &["mix1.toml:10: down = \"127.0.0.1:4701\"", "also that of mix1.toml:9: up = ", "a different port"];
    "`up` on every address, `down` on one of them, on one port",
        Do(|s| {
            s.edit("mix1.toml", "up", "up = \"0.0.0.0:4701\"");
            s.edit("mix1.toml", "down", "down = \"127.0.0.1:4701\"");
        }), MIX,
        &["mix1.toml:10: down", "also that of mix1.toml:9: up = \"0.0.0.0:4701\""];
    "two forwards on one port",
        Do(|s| (0..2).for_each(|_| s.edit("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\""))), ENTRY,
        &["entry.toml:35: forward on 127.0.0.1:5000", "also that of entry.toml:32: forward on 127.0.0.1:5000"];
    "a forward on the port of another in the file",
        Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\""),
        "entry --config entry.toml --forward 5000=b:1",
        &["--forward 127.0.0.1:5000=b:1", "also that of entry.toml:32: forward on 127.0.0.1:5000"];
    "two forwards of `eddy chain` on one port", Nothing, "chain --stay --forward 5000=a:1 --forward 5000=b:1",
        &["--forward 127.0.0.1:5000=b:1", "also that of --forward 127.0.0.1:5000=a:1", "a different port"];
    "`down` of the wrong address family", Line("mix1.toml", "down", "down = \"[::]:0\""), MIX,
        &["mix1.toml:10: down", "cannot reach the next hop at 127.0.0.1:4702", "0.0.0.0:0"];
    "`down` on loopback, the next hop elsewhere",
        Do(|s| {
            net(s, VETH);
            s.edit("mix1.toml", "down", "down = \"127.0.0.1:0\"");
            s.edit("mix1.toml", "# next", "next = \"192.0.2.7:4702\"");
        }), MIX,
        &["mix1.toml:10: `down`", "cannot reach the next hop at 192.0.2.7:4702", "down = \"0.0.0.0:0\""];
    "a next hop whose name does not resolve", Line("mix1.toml", "# next", "next = \"mix2..example.org:4702\""), MIX,
        &["mix1.toml:11: next = \"mix2..example.org:4702\" does not resolve", "IP:PORT"];
    "`next` names the node itself", Line("mix1.toml", "# next", "next = \"127.0.0.1:4701\""), MIX,
        &["mix1.toml:11: next = \"127.0.0.1:4701\"", "the node's own socket, up", "the address of mix2", "127.0.0.1:4702"];
    "`next` names the node itself, which is bound to every address",
        Do(|s| {
            s.edit("mix1.toml", "up", "up = \"0.0.0.0:4701\"");
            s.edit("mix1.toml", "# next", "next = \"127.0.0.1:4701\"");
        }), MIX,
        &["the node's own socket, up on 0.0.0.0:4701"];
    "`next` names the node itself, which is bound to every address of both families",
        Do(|s| {
            s.edit("mix1.toml", "up", "up = \"[::]:4701\"");
            s.edit("mix1.toml", "# next", "next = \"127.0.0.1:4701\"");
        }), MIX,
        &["the node's own socket, up on [::]:4701"];
    "`next` names the port that the entry sends from",
        Do(|s| {
            s.edit("entry.toml", "down", "down = \"127.0.0.1:4700\"");
            s.edit("entry.toml", "# next", "next = \"127.0.0.1:4700\"");
        }), ENTRY,
        &["the node's own socket, down on 127.0.0.1:4700", "the address of mix1"];
    "the next hop's published address is bound here", Line("mix1.toml", "up", "up = \"0.0.0.0:4702\""), MIX,
        &["chain.toml: the next hop mix2 is published at 127.0.0.1:4702", "set `up` to another port"];
    "`next` names every address", Line("mix1.toml", "# next", "next = \"0.0.0.0:4702\""), MIX,
        &["mix1.toml:11: next", "nothing can be sent to 0.0.0.0", "127.0.0.1:4702"];
    "fewer sockets passed than the node takes", Do(|s| s.environment.push(("LISTEN_FDS", "1"))), MIX,
        &["LISTEN_FDS = 1: expected 2 sockets for this mix", "pass up, down"];
    "something else passed than a UDP socket",
        Do(|s| { s.environment.push(("LISTEN_FDS", "2")); s.prelude = "exec 3</dev/null 4</dev/null"; }), MIX,
        &["LISTEN_FDS: descriptor 3 for up", "pass bound UDP sockets: up, down"];
}

table! { HOST:
    "cells larger than the path carries",
        Do(|s| net(s, "ip link set lo mtu 1280 up")), MIX,
        &["carries packets of 1280 bytes", "class L needs", "`eddy init --class M`", "`sudo ip link set dev lo mtu 1"];
    "a path that carries not even a handshake",
        Do(|s| net(s, "ip link set lo mtu 1000 up")), MIX,
        &["carries packets of 1000 bytes", "`sudo ip link set dev lo mtu 1"];
    "a core that is not there",
        Do(|s| {
            s.edit("mix1.toml", "# cores", "cores = [0, 1000]");
            let ours = sched_getaffinity(None).unwrap();
            let ours: Vec<String> = (0..1000).filter(|i| ours.is_set(*i)).map(|i| i.to_string()).collect();
            s.names.push((format!("may use {} only", ours.join(", ")), "may use 0, 1 only"));
        }), MIX,
        &["cores lists 1000, but this process may use", "list some of these"];
    "a receive buffer that the system does not grant", Do(receive_buffer), MIX,
        &["mix1.toml:16: receive_buffer = ", "the system grants", "`sudo sysctl -w net.core.rmem_max="];
}

table! { STATUS:
    "no folder for the status socket", Line("mix1.toml", "status", "status = \"run/mix1.sock\""), MIX,
        &["mix1.toml:7: the status socket run/mix1.sock", "the folder run does not exist", "`mkdir -p run`"];
    "a folder that this user may not write to",
        Do(|s| {
            s.unprivileged = true;
            fs::create_dir(s.path("run")).unwrap();
            mode(s, "run", 0o555);
            s.edit("mix1.toml", "status", "status = \"run/mix1.sock\"");
        }), MIX,
        &["mix1.toml:7: the status socket run/mix1.sock", "may not write to the folder run", "owner"];
    "a path too long for a socket",
        Do(|s| {
            s.edit("mix1.toml", "status", &format!("status = \"{}.sock\"", "a".repeat(103)));
            s.names.push(("a".repeat(103), "aaa...aaa"));
        }), MIX,
        &["mix1.toml:7: ", "the path has 108 bytes (limit 107)", "a shorter path"];
    "a file in the way", Do(|s| fs::write(s.path("mix1.sock"), "").unwrap()), MIX,
        &["mix1.toml:7: ", "is not a socket", "move that file"];
    "the node runs already", Do(|s| start(s, "mix1")), MIX,
        &["mix1.toml:7: ", "a running program already answers there", "stop it"];
    "two nodes with one status socket",
        Do(|s| {
            start(s, "mix1");
            s.edit("mix2.toml", "status", "status = \"mix1.sock\"");
        }), "mix --config mix2.toml",
        &["mix2.toml:7: the status socket mix1.sock", "set `status` to another path"];
    "another program answers at the status socket",
        Do(|s| { let held = UnixListener::bind(s.path("mix1.sock")).unwrap(); s.kept.push(Box::new(held)); }), MIX,
        &["mix1.toml:7: ", "a running program already answers there"];
}

table! { COMMAND_LINE:
    "no configuration", Nothing, "mix", &["missing --config <FILE>", "usage: eddy mix"];
    "a misspelt command", Nothing, "mixx --config mix1.toml", &["mixx", "'mix'"];
    "a misspelt option", Nothing, "init x --mxies 3", &["--mxies", "--mixes"];
    "`--allow` with nonsense", Nothing, "exit --config exit.toml --allow everyone",
        &["everyone", "--allow", "expected IP/BITS"];
    "`--forward` without a destination", Nothing, "entry --config entry.toml --forward 5000", &["LISTEN=DEST"];
    "`--forward` to port 0", Nothing, "entry --config entry.toml --forward 5000=192.0.2.1:0", &["port 0"];
    "`--pymix` without an address", Nothing, "entry --config entry.toml --pymix here",
        &["invalid --pymix \"here\": expected IP:PORT"];
    "`--io` with nonsense", Nothing, "mix --config mix1.toml --io uing", &["uing", "--io", "expected auto, mmsg or uring"];
    "too many mixes", Nothing, "init x --mixes 8", &["invalid --mixes", "expected 1 to 7"];
    "an unknown engine", Do(|s| s.environment.push(("EDDY_AEAD", "wide128"))), MIX,
        &["EDDY_AEAD=wide128", "expected wide512", "portable or rustcrypto"];
    "an `EDDY_LOG` that is not a filter", Do(|s| s.environment.push(("EDDY_LOG", "dbug"))), MIX,
        &["invalid EDDY_LOG \"dbug\"", "expected a level", "info,eddy_node=debug"];
    "a `--log` that is not a filter", Nothing, "mix --config mix1.toml --log eddy_node=loud",
        &["eddy_node=loud", "--log", "expected a level", "info,eddy_node=debug"];
    "a `--log-format` that does not exist", Nothing, "mix --config mix1.toml --log-format yaml",
        &["yaml", "--log-format", "text, json"];
    "a chain with an unknown engine", Do(|s| s.environment.push(("EDDY_AEAD", ""))), "chain",
        &["EDDY_AEAD=:", "expected wide512", "or unset it"];
    "cells too long for IPv6", Nothing, "init x --ipv6 --mixes 6",
        &["class L with 6 mixes", "1456 bytes, but over IPv6 only 1452 fit", "--mixes 5 or --class M"];
    "a chain made over another", Nothing, "init .", &["chain.toml exists", "--force"];
}

const DAY: u64 = 86_400;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Changes Mix 1's descriptor and signs it again; then changes what was signed.
fn sign(scene: &mut Scene, change: fn(&mut Descriptor), spoil: fn(&mut Vec<u8>)) {
    let keys = eddy_node::config::Keys::read(&scene.path("mix1.key")).unwrap();
    let identity = Identity::from_seed(&keys.identity);
    let chain = eddy_node::config::Chain::read(&scene.path("chain.toml"), SystemTime::now()).unwrap();
    let mut descriptor = chain.nodes[0].descriptor.clone();
    change(&mut descriptor);
    let mut signed = descriptor.sign(&identity).unwrap();
    spoil(&mut signed);
    scene.edit("chain.toml", "descriptor", &format!("descriptor = \"{}\"", STANDARD.encode(signed)));
}

fn mode(scene: &mut Scene, file: &str, mode: u32) {
    fs::set_permissions(scene.path(file), fs::Permissions::from_mode(mode)).unwrap();
}

/// A socket of another program; the handbook says `port`.
fn hold(scene: &mut Scene, port: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    scene.names.push((format!(":{}", address.port()), if port == "4701" { ":4701" } else { ":5000" }));
    scene.kept.push(Box::new(socket));
    address
}

/// A network of its own.
fn net(scene: &mut Scene, prelude: &'static str) {
    (scene.apart, scene.prelude) = (true, prelude);
    if !scene.can(prelude) {
        scene.impossible("needs network namespaces and ip(8): `unshare -rn ip link` must work, or run as root");
    }
}

fn privileged_ports(scene: &mut Scene) {
    scene.unprivileged = true;
    let file = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    if fs::read_to_string(file).is_ok_and(|first| first.trim().parse::<u16>().is_ok_and(|first| first <= 47)) {
        scene.impossible("every user may bind every port: sysctl -w net.ipv4.ip_unprivileged_port_start=1024");
    }
}

/// A host with one address beside loopback.
const VETH: &str = "ip link set lo up && ip link add d0 type veth peer name d1 && \
                    ip address add 192.0.2.1/24 dev d0 && ip link set d0 up";

/// Asks for more than the system grants.
fn receive_buffer(scene: &mut Scene) {
    scene.unprivileged = true;
    let most: usize = fs::read_to_string("/proc/sys/net/core/rmem_max").unwrap().trim().parse().unwrap();
    let wanted = 1_000_000_000;
    if most >= wanted {
        return scene.impossible("the system grants every buffer: sysctl -w net.core.rmem_max=8388608");
    }
    scene.names.push((format!("grants {most}"), "grants 212992"));
    scene.edit("mix1.toml", "# receive_buffer", &format!("receive_buffer = {wanted}"));
    scene.edit("mix1.toml", "up", "up = \"127.0.0.1:0\"");
}

/// Starts a mix and waits until it is ready.
fn start(scene: &mut Scene, name: &str) {
    scene.edit(&format!("{name}.toml"), "up", "up = \"127.0.0.1:0\"");
    let mut node = Running::new(eddy().current_dir(&scene.dir).args(["mix", "--config", &format!("{name}.toml")]));
    node.until_ready();
    scene.kept.push(Box::new(node));
}
