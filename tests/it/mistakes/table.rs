//! The mistakes: what the operator did, what was run then, and what the answer must say.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use control::trust::NodeDescriptor;
use eddy_node::ceremony::files::read_identity;
use eddy_node::ceremony::utc;
use eddy_node::config::{ChainFile, wall_s};
use rustix::thread::sched_getaffinity;

use super::Setup::{Do, Line, Nothing};
use super::{Mistake, Running, Scene};
use crate::common::command::{eddy, run};

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

/// A chain with a paced class in place of the other, whose entry has a meeting with the secret in this file.
fn voice(s: &Scene, secret: &str) {
    let init = run(s.dir.path(), "init . --force --class L --class voice");
    assert!(init.status.success());
    let forward = format!("[[forward]]\nlisten = \"5000\"\nto = \"meet:@{secret}\"\nclass = \"voice\"");
    s.edit("entry.toml", "", &forward);
}

macro_rules! table {
    ($name:ident: $($what:literal, $setup:expr, $command:expr, $wanted:expr;)*) => {
        const $name: &[Mistake] = &[$(Mistake { name: $what, setup: $setup, command: $command, wanted: $wanted },)*];
    };
}

table! { FILES:
    "no such configuration", Nothing, "mix --config mix9.toml",
        &["mix9.toml: No such file", "check the path", "`eddy init DIR`"];
    "no such chain file", Line("mix1.toml", "chain", "chain = \"chian.toml\""), MIX,
        &["chian.toml: No such file", "`chain` in mix1.toml:4", "eddy assemble"];
    "no such key file", Line("mix1.toml", "keys", "keys = \"none.key\""), MIX,
        &["none.key: No such file", "`keys` in mix1.toml:5 must name the key file"];
    "a folder for a configuration", Do(|s| fs::create_dir(s.path("demo")).unwrap()), "mix --config demo",
        &["demo: Is a directory", "name a file in it, such as node.toml or mix1.toml"];
    "a configuration that is not UTF-8",
        Do(|s| fs::write(s.path("mix1.toml"), b"role = \"mix\"\n# gr\xfc\xdfe\n").unwrap()), MIX,
        &["mix1.toml:2: the text is not UTF-8", "save it as UTF-8"];
    "an empty configuration", Do(|s| fs::write(s.path("mix1.toml"), "").unwrap()), MIX,
        &["mix1.toml: the file is empty", "`eddy init` or `eddy keygen`"];
    "an empty chain file", Do(|s| fs::write(s.path("chain.toml"), "\n").unwrap()), MIX,
        &["chain.toml: the file is empty", "`eddy init`"];
    "the chain file for a configuration", Nothing, "mix --config chain.toml",
        &["chain.toml: this is the chain's public file", "expected a node's configuration", "such as node.toml or mix1.toml",
          "`eddy entry --chain chain.toml`"];
    "the key file for a configuration", Nothing, "mix --config mix1.key",
        &["mix1.key: this is a key file, expected a node's configuration", "such as node.toml or mix1.toml"];
    "a state file for a configuration", Nothing, "mix --config mix1.state",
        &["mix1.state: this is a state file of eddy", "name a TOML file"];
    "a node's configuration for the chain file", Line("mix1.toml", "chain", "chain = \"mix2.toml\""), MIX,
        &["mix2.toml: this is a node's configuration, expected the chain's public file", "chain.toml"];
    "a web page for the chain file",
        Do(|s| fs::write(s.path("chain.toml"), "<!DOCTYPE html>\n<html>\n").unwrap()), MIX,
        &["chain.toml: this is a web page (HTML), not a file of eddy", "get the file again"];
    "a folder for the key file",
        Do(|s| {
            fs::create_dir(s.path("new")).unwrap();
            s.edit("mix1.toml", "keys", "keys = \"new\"");
        }), MIX,
        &["new: is a directory", "`keys` in mix1.toml:5 must name the key file"];
    "the configuration of another role", Nothing, "exit --config mix1.toml",
        &["mix1.toml configures a mix, not an exit", "run `eddy mix --config mix1.toml`"];
}

table! { NODE:
    "a misspelt key", Line("mix1.toml", "mixing", "mixxing = \"timed:t=1ms\""), MIX,
        &["mix1.toml:15: unknown key `mixxing`", "did you mean `mixing`?"];
    "a key that is nothing like any", Line("mix1.toml", "", "colour = \"red\""), MIX,
        &["unknown key `colour`", "the keys here are role, chain, keys, state"];
    "a missing key", Line("mix1.toml", "chain", ""), MIX,
        &["mix1.toml: the key `chain` is missing", "add `chain = \"chain.toml\"`"];
    "a value of the wrong type", Line("mix1.toml", "# window", "window = \"1\""), MIX,
        &["window must be a whole number from 64 to 65536 (got \"1\")", "for example `window = 4096`"];
    "the role of another hop",
        Do(|s| {
            s.edit("mix1.toml", "role", "role = \"exit\"");
            ["down", "mixing"].into_iter().for_each(|key| s.edit("mix1.toml", key, ""));
        }), "exit --config mix1.toml",
        &["mix1.toml:3: this node is a mix in this chain, not an exit", "correct `role`"];
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
    "a mixing slower than the chain allows", Line("mix1.toml", "mixing", "mixing = \"timed:t=9ms\""), MIX,
        &["mix1.toml:15: ", "longer than the 5 ms that this chain allows", "use a shorter delay"];
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
    "more links than a node may have", Line("mix1.toml", "", "[caps]\nlinks = 4096"), MIX,
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
    "an entry without channels", Line("entry.toml", "channels", "channels = 0"), ENTRY,
        &["channels must be a whole number from 1 to 256 (got 0)", "the default is 4"];
    "an invalid pymix address", Line("entry.toml", "channels", "pymix = [\"here\"]"), ENTRY,
        &["invalid listen address \"here\": expected IP:PORT"];
    "a forward to no port", Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"example.org\""), ENTRY,
        &["\"example.org\" has no port", "NAME:PORT"];
    "a forward to nowhere", Line("entry.toml", "", "[[forward]]\nlisten = \"5000\""), ENTRY,
        &["the key `to` is missing", "add `to = "];
    "a meeting's secret in place of its file",
        Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"meet:eddy-meet-1:00\""), ENTRY,
        &["entry.toml:", "expected meet:@FILE", "`eddy meet new --out FILE`"];
    "a meeting in a chain without a paced class",
        Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"meet:@call.secret\""), ENTRY,
        &["entry.toml:", "is a meeting, which class L does not have", "a chain that has a paced class"];
    "no file with a meeting's secret", Do(|s| voice(s, "none.secret")), ENTRY,
        &["none.secret: No such file", "the secret of a meeting", "`eddy meet new --out FILE`"];
    "a folder for a meeting's secret",
        Do(|s| { fs::create_dir(s.path("secrets")).unwrap(); voice(s, "secrets") }), ENTRY,
        &["secrets: is a directory", "the secret of a meeting", "`eddy meet new --out FILE`"];
    "a meeting's secret that others may read",
        Do(|s| {
            voice(s, "call.secret");
            assert!(eddy().args(["meet", "new", "--out"]).arg(s.path("call.secret")).status().unwrap().success());
            mode(s, "call.secret", 0o644);
        }), ENTRY,
        &["call.secret: mode 0644", "this secret of a meeting", "`chmod 600 call.secret`", "`eddy meet new --out FILE`"];
    "a key file for a meeting's secret", Do(|s| voice(s, "mix1.key")), ENTRY,
        &["mix1.key: invalid secret of a meeting", "`eddy meet new --out FILE`"];
    "an empty file for a meeting's secret",
        Do(|s| { fs::write(s.path("call.secret"), "").unwrap(); mode(s, "call.secret", 0o600); voice(s, "call.secret") }),
        ENTRY, &["call.secret: this is not the secret of a meeting", "`eddy meet new --out FILE`"];
    "another file, which all may read, for a meeting's secret", Do(|s| voice(s, "chain.toml")), ENTRY,
        &["chain.toml: invalid secret of a meeting", "`eddy meet new --out FILE`"];
    "a meeting's secret with a line end of Windows",
        Do(|s| {
            voice(s, "call.secret");
            fs::write(s.path("call.secret"), format!("eddy-meet-1:{}\r\n", "ab".repeat(32))).unwrap();
            mode(s, "call.secret", 0o600);
        }), ENTRY,
        &["call.secret: invalid secret of a meeting", "a line end of Windows (CR LF)", "remove them"];
    "a meeting's secret for a public file",
        Do(|s| fs::write(s.path("call.secret"), format!("eddy-meet-1:{}\n", "ab".repeat(32))).unwrap()),
        "inspect call.secret", &["call.secret: this is the secret of a meeting, not a configuration or a public file"];
    "a meeting's secret for a configuration",
        Do(|s| fs::write(s.path("call.secret"), format!("eddy-meet-1:{}\n", "ab".repeat(32))).unwrap()),
        "config check call.secret", &["call.secret: this is the secret of a meeting", "LISTEN=meet:@FILE"];
    "a meeting's secret for a chain file",
        Do(|s| fs::write(s.path("call.secret"), format!("eddy-meet-1:{}\n", "ab".repeat(32))).unwrap()),
        "entry --chain call.secret", &["call.secret: this is the secret of a meeting", "LISTEN=meet:@FILE"];
    "a meeting's secret over another file", Nothing, "meet new --out mix1.key",
        &["mix1.key: this file exists", "another FILE in `eddy meet new --out FILE`"];
    "an invalid class name",
        Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\"\nclass = \"Voice\""), ENTRY,
        &["unknown class \"Voice\"", "the name of a paced class"];
    "a key that no forward has",
        Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\"\nfrom = 1"), ENTRY,
        &["unknown key `from`", "keys here are listen, to"];
    "a key of the whole file below a table",
        Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\"\nsocks = [\"1080\"]"), ENTRY,
        &["entry.toml:", "unknown key `socks`", "below the line [[forward]]", "move `socks` above the first table"];
    "a key that is set twice", Line("mix1.toml", "mixing", "mixing = \"timed:t=1ms\"\nmixing = \"timed:t=2ms\""), MIX,
        &["mix1.toml:16: duplicate key mixing: line 15 sets it, too", "remove one of the two lines"];
    "an entry without listeners and without a command socket", Line("entry.toml", "commands", ""), ENTRY,
        &["entry.toml:3: this entry listens nowhere", "add a [[forward]] or `socks`", "--forward"];
    "an `allow` that is not a network", Line("exit.toml", "allow", "allow = [\"10.0.0.0/33\"]"), EXIT,
        &["exit.toml:16: \"10.0.0.0/33\" is not a network", "IP/BITS"];
    "an invalid resolver address", Line("exit.toml", "# resolver", "resolver = \"dns\""), EXIT,
        &["resolver must be IP or IP:PORT of a name server (got \"dns\")"];
    "an exit without sockets", Line("exit.toml", "# max_sockets", "max_sockets = 0"), EXIT,
        &["max_sockets must be a whole number from 1 to 1000000 (got 0)"];
    "filtering of a kind that there is not", Line("exit.toml", "# filtering", "filtering = \"address\""), EXIT,
        &["filtering must be \"endpoint\" or \"none\" (got \"address\")"];
    "trust in no network", Line("exit.toml", "trust", "trust = [\"example.org\"]"), EXIT,
        &["\"example.org\" is not a network"];
    "a previous hop at mix1", Line("mix1.toml", "# window", "previous = [\"192.0.2.9\"]"), MIX,
        &["mix1.toml:", "`previous` has no effect at mix1", "remove it"];
    "networks of users at mix2", Line("mix2.toml", "# window", "shared_prefixes = [\"198.51.100.0/24\"]"),
        "mix --config mix2.toml", &["mix2.toml:", "`shared_prefixes` has no effect at mix2", "move it"];
    "an address for a network", Line("mix1.toml", "# window", "shared_prefixes = [\"198.51.100.7/24\"]"), MIX,
        &["\"198.51.100.7/24\" is an address in a network", "write \"198.51.100.0/24\" or \"198.51.100.7\""];
    "an address for the prefix of a translator", Line("exit.toml", "# window", "nat64 = [\"2001:db8:64::1/96\"]"), EXIT,
        &["is an address in a network", "write 2001:db8:64::/96"];
    "a translator's prefix of another length", Line("exit.toml", "# window", "nat64 = [\"2001:db8:64::/80\"]"), EXIT,
        &["expected PREFIX/BITS with 32, 40, 48, 56, 64 or 96 bits"];
    "a negative budget", Line("exit.toml", "# max_unanswered", "max_unanswered = -1"), EXIT,
        &["max_unanswered must be a whole number from 0 to 10000000 (got -1)", "the default is 1000"];
}

table! { CHAIN:
    "a chain id cut short", Line("chain.toml", "id", "id = \"00\""), MIX,
        &["chain.toml:4: id must be 64 hexadecimal digits, in lower case"];
    "the id of another chain",
        Line("chain.toml", "id", "id = \"0000000000000000000000000000000000000000000000000000000000000000\""),
        "config check entry.toml", &["chain.toml:4: chain.toml was changed: id says 0000", "content gives"];
    "a class that there is not", Line("chain.toml", "class", "class = \"XL\""), MIX,
        &["class must be \"S\", \"M\" or \"L\" (got \"XL\")"];
    "another class", Line("chain.toml", "class", "class = \"M\""), MIX, &["chain.toml was changed"];
    "another suite", Line("chain.toml", "suite", "suite = 1"), MIX, &["chain.toml was changed"];
    "a suite that there is not", Line("chain.toml", "suite", "suite = 3"), MIX,
        &["suite must be a whole number from 1 to 2 (got 3)"];
    "another lifetime", Line("chain.toml", "lifetime_s", "lifetime_s = 600"), MIX, &["chain.toml was changed"];
    "an interval of nothing", Line("chain.toml", "interval_s", "interval_s = 0"), MIX,
        &["interval_s must be a whole number from 1 to 600 (got 0)"];
    "a key that no chain has", Line("chain.toml", "suite", "hops = 4"), MIX, &["chain.toml:5: unknown key `hops`"];
    "two hops of one identity", Do(|s| copy_line(s, "identity")), MIX,
        &["chain.toml:", "hops 1 and 2 have one identity", "each hop of a chain needs its own"];
    "one descriptor for two hops", Do(|s| copy_line(s, "descriptor")), MIX,
        &["the descriptor of hop 2 is refused: its identity is that of hop 1, not of hop 2"];
    "a descriptor from another identity", Do(foreign), MIX,
        &["the descriptor of hop 1 is refused: its identity is not that of hop 1 in this chain"];
    "a malformed descriptor", Line("chain.toml", "descriptor", "descriptor = \"?\""), MIX,
        &["the descriptor is not base64"];
    "a descriptor cut short", Do(|s| sign(s, |_| {}, |signed| signed.truncate(100))), MIX,
        &["the descriptor was changed or damaged: truncated"];
    "no descriptor", Line("chain.toml", "descriptor", ""), MIX, &["the key `descriptor` is missing"];
    "an altered descriptor", Do(|s| sign(s, |_| {}, |signed| signed[30] ^= 1)), MIX,
        &["chain.toml:", "the signature does not match", "from whoever made the chain"];
    "a descriptor of this node that has expired, or a clock far ahead",
        Do(|s| {
            sign(s, |d| (d.not_before, d.not_after) = (0, now() - 3 * DAY - 3600), |_| {});
            let ended = now() - 3 * DAY - 3600;
            // The minute may end meanwhile.
            s.names.extend([ended - 60, ended, ended + 60].map(|at| (utc(at), "2026-11-28 22:59 UTC")));
        }), MIX,
        &["mix1.toml: this node's descriptor expired on ", " UTC, 3 days ago", "check this host's clock",
          "`eddy renew`, then copy node.desc next to chain.toml"];
    "a descriptor not yet valid, or a clock far behind",
        Do(|s| sign(s, |d| d.not_before = now() + 3 * DAY + 3600, |_| {})), MIX,
        &["the descriptor of hop 1 is refused: it is not valid for another", "check this host's clock"];
}

table! { KEYS:
    "the keys of another hop", Line("mix1.toml", "keys", "keys = \"exit.key\""), MIX,
        &["mix1.toml:3: this node is an exit in this chain, not a mix"];
    "the keys of another chain",
        Do(|s| {
            let draw = eddy().args(["keygen", "--role", "mix", "--address", "192.0.2.1", "--out"]).arg(s.path("new")).status();
            assert!(draw.unwrap().success());
            s.edit("mix1.toml", "keys", "keys = \"new/node.key\"");
        }), MIX,
        &["new/node.key: no descriptor in chain.toml or beside it has these keys", "`keys` in mix1.toml:5 must name"];
    "a node that is not in the chain",
        Do(|s| {
            let draw = eddy().args(["keygen", "--role", "mix", "--address", "192.0.2.1", "--out"]).arg(s.path("new")).status();
            assert!(draw.unwrap().success());
            fs::copy(s.path("chain.toml"), s.path("new/chain.toml")).unwrap();
        }), "mix --config new/node.toml",
        &["this node is not in new/chain.toml: the identity of new/node.desc is not among its hops"];
    "keys that others may read", Do(|s| mode(s, "mix1.key", 0o644)), MIX,
        &["mode 0644", "run `chmod 600 mix1.key`"];
    "keys that this user may not read", Do(|s| { s.unprivileged = true; mode(s, "mix1.key", 0o200); }), MIX,
        &["mix1.key: Permission denied", "owned by the user who runs eddy"];
    "a malformed key", Line("mix1.key", "noise", "noise = \"c2hvcnQ=\""), MIX,
        &["mix1.key:3: noise must be 32 bytes in base64"];
    "a key file cut short", Line("mix1.key", "signing", ""), MIX,
        &["mix1.key: the key `signing` is missing", "restore the file that `eddy keygen` or `eddy init` wrote"];
    "a key cut short", Line("mix1.key", "signing", "signing = \"QUJD"), MIX,
        &["mix1.key:4: ", "restore the file that `eddy keygen` or `eddy init` wrote"];
    "the keys of another mix", Line("mix2.toml", "keys", "keys = \"mix1.key\""), "mix --config mix2.toml",
        &["mix1.key: these are the keys of mix1, but mix2.desc is of mix2", "`keys` in mix2.toml:5 must name"];
    "the key file of another mix in place of a node's own",
        Do(|s| _ = fs::copy(s.path("mix1.key"), s.path("mix2.key")).unwrap()), "config check mix2.toml",
        &["mix2.key: these are the keys of mix1, but mix2.desc is of mix2"];
    "a state file that is none", Do(|s| fs::write(s.path("mix1.state"), "nothing").unwrap()), MIX,
        &["mix1.state: not a state file of eddy", ": delete the file"];
    "a damaged state file",
        Do(|s| {
            let mut state = fs::read(s.path("mix1.state")).unwrap();
            *state.last_mut().unwrap() ^= 1;
            fs::write(s.path("mix1.state"), state).unwrap();
        }), MIX,
        &["mix1.state: the state file is damaged", ": delete the file"];
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
        &["entry.toml:38: forward on 127.0.0.1:5000", "also that of entry.toml:35: forward on 127.0.0.1:5000"];
    "a forward on the port of another in the file",
        Line("entry.toml", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\""),
        "entry --config entry.toml --forward 5000=b:1",
        &["--forward 127.0.0.1:5000=b:1", "also that of entry.toml:35: forward on 127.0.0.1:5000"];
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
        &["carries packets of 1280 bytes", "class L needs", "a chain of class M", "`sudo ip link set dev lo mtu 1"];
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
        &["mix1.toml:22: receive_buffer = ", "the system grants", "`sudo sysctl -w net.core.rmem_max="];
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
        &["mix1.state: another node runs with this state file", "stop it first"];
    "two nodes with one key file",
        Do(|s| {
            start(s, "mix1");
            s.edit("mix2.toml", "keys", "keys = \"mix1.key\"");
        }), "mix --config mix2.toml",
        &["mix1.key: another node runs with this key file", "stop it first"];
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
    "an entry without a chain", Nothing, "entry", &["missing --chain <chain.toml> or --config <FILE>", "usage: eddy entry"];
    "a status socket beside a configuration", Nothing, "entry --config entry.toml --status mine.sock",
        &["--status is for --chain: set `status` in entry.toml instead"];
    "a new secret without `--out`", Nothing, "meet new call.secret", &["did you mean --out call.secret?"];
    "a chain file without `--chain`", Nothing, "entry chain.toml", &["did you mean --chain chain.toml?"];
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
    "an option of free classes for calls in a paced one", Nothing, "chain --class voice --messages 100",
        &["--messages is for chains of a free class", "leave it out", "instead of voice"];
    "cells too long for IPv6", Nothing, "init x --ipv6 --mixes 6",
        &["class L with 6 mixes", "1456 bytes, but over IPv6 only 1452 fit", "--mixes 5 or --class M"];
    "a chain made over another", Nothing, "init .", &["chain.toml exists", "--force"];
}

const DAY: u64 = 86_400;

fn now() -> u64 {
    wall_s()
}

/// Changes Mix 1's descriptor and signs it again; then changes what was signed.
fn sign(scene: &mut Scene, change: fn(&mut NodeDescriptor), spoil: fn(&mut Vec<u8>)) {
    let identity = read_identity(&scene.path("mix1.identity.key")).unwrap();
    let chain = ChainFile::read(&scene.path("chain.toml"), now()).unwrap();
    let mut descriptor = chain.descriptors[0].content().clone();
    change(&mut descriptor);
    let mut signed = descriptor.sign(&identity).unwrap().bytes().to_vec();
    spoil(&mut signed);
    scene.edit("chain.toml", "descriptor", &format!("descriptor = \"{}\"", STANDARD.encode(signed)));
    // Otherwise the good one would count.
    fs::remove_file(scene.path("mix1.desc")).unwrap();
}

/// Gives hop 2 the line of hop 1.
fn copy_line(scene: &mut Scene, key: &str) {
    let text = fs::read_to_string(scene.path("chain.toml")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(key)).collect();
    fs::write(scene.path("chain.toml"), text.replacen(lines[1], lines[0], 1)).unwrap();
}

/// Gives hop 1 the descriptor of a node that is not in the chain.
fn foreign(scene: &mut Scene) {
    let draw =
        eddy().args(["keygen", "--role", "mix", "--address", "192.0.2.1", "--out"]).arg(scene.path("new")).status();
    assert!(draw.unwrap().success());
    let text = fs::read_to_string(scene.path("new/node.desc")).unwrap();
    let line = text.lines().find(|line| line.starts_with("descriptor")).unwrap();
    scene.edit("chain.toml", "descriptor", line);
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
