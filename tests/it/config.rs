//! Operators' mistakes in the files: each is refused before anything starts, with exit code 2 and one
//! line that says what, where, and what to do.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use crate::common::command::{assert_mistake, complaint, eddy, run};

/// A chain of three mixes in a fresh folder.
fn chain() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let made = run(dir.path(), "init . --mixes 3");
    assert!(made.status.success(), "{made:?}");
    dir
}

/// Replaces the first line that starts with `line` (or appends, where that is empty).
fn edit(file: &Path, line: &str, with: &str) {
    let text = fs::read_to_string(file).unwrap();
    let edited: String = if line.is_empty() {
        format!("{text}{with}\n")
    } else {
        assert!(text.lines().any(|l| l.starts_with(line)), "no {line} in {}", file.display());
        let mut left = Some(with);
        let replace = |l| if str::starts_with(l, line) { left.take().unwrap_or(l) } else { l };
        text.lines().map(replace).map(|l| format!("{l}\n")).collect()
    };
    fs::write(file, edited).unwrap();
}

#[test]
fn a_mistake_in_a_node_file_is_named_with_place_and_remedy() {
    #[rustfmt::skip]
    let mistakes: &[(&str, &str, &str, &[&str])] = &[
        ("mix1", "mixing", "mixxing = \"timed:t=1ms\"",
            &["mix1.toml:13: unknown key `mixxing`", "did you mean `mixing`?"]),
        ("mix1", "", "colour = \"red\"", &["unknown key `colour`", "the keys here are"]),
        ("mix1", "position", "", &["mix1.toml: the key `position` is missing", "add `position = 1`"]),
        ("mix1", "position", "position = \"1\"", &["mix1.toml:4: ", "expected", "write it like `position = 1`"]),
        ("mix1", "position", "position = 4", &["position = 4 is not the place of a mix", "1 to 3"]),
        ("mix1", "position", "position = 9", &["position = 9 is out of range", "take 0 to 8"]),
        ("mix1", "position", "position = 2", &["mix1.key", "noise key is not that of node 2", "`keys` must name"]),
        ("mix1", "role", "role = \"mux\"", &["role = \"mux\"", "did you mean \"mix\"?"]),
        ("mix1", "role", "role = ", &["mix1.toml:3: ", "TOML"]),
        ("mix1", "up", "", &["`up` is missing", "up = \"127.0.0.1:4701\""]),
        ("mix1", "up", "up = \"localhost\"", &["mix1.toml:9: up = \"localhost\" is no address", "write IP:PORT"]),
        ("mix1", "down", "down = \"[::]:0\"", &["cannot reach the next hop at 127.0.0.1:4702", "0.0.0.0:0"]),
        ("mix1", "# next", "next = \"nowhere\"", &["\"nowhere\" has no port", "write IP:PORT"]),
        ("mix1", "mixing", "mixing = \"poisson\"", &["unknown strategy", "write one of threshold"]),
        ("mix1", "mixing", "mixing = \"timed:t=9ms\"",
            &["longer than the 5 ms of the descriptor", "--mixing timed:t=9ms"]),
        ("mix1", "# window", "window = 1000", &["window = 1000 is no power of two", "take 1024"]),
        ("mix1", "# window", "window = 32", &["take 64 to 65536; the default is 4096"]),
        ("mix1", "# receive_buffer", "receive_buffer = 1", &["receive_buffer = 1 is out of range"]),
        ("mix1", "# renew_after_s", "renew_after_s = 0", &["renew_after_s = 0 is out of range", "120"]),
        ("mix1", "# renew_after_s", "renew_after_s = 2.5", &["expected", "write it like `renew_after_s = 120`"]),
        ("mix1", "# window", "allow = []", &["`allow` has no meaning for role = \"mix\"", "move it to exit.toml"]),
        ("mix1", "# window", "max_flows_per_channel = 1", &["`max_flows_per_channel` has no meaning", "exit.toml"]),
        ("mix1", "chain", "chain = \"chian.toml\"", &["chian.toml: No such file", "eddy init"]),
        ("mix1", "keys", "keys = \"mix2.key\"", &["mix2.key: its noise key is not that of node 1"]),
        ("mix1", "keys", "keys = \"none.key\"", &["none.key: No such file", "`keys` must name the key file"]),
        ("entry", "position", "position = 1", &["position = 1 is not the place of an entry", "the position is 0"]),
        ("entry", "channels", "channels = 0", &["channels = 0 is out of range", "the default is 4"]),
        ("entry", "channels", "pymix = [\"here\"]", &["\"here\" is no address to listen on", "write IP:PORT"]),
        ("entry", "channels", "up = \"127.0.0.1:1\"",
            &["`up` has no meaning for role = \"entry\"", "mixN.toml or exit.toml"]),
        ("entry", "", "[[forward]]\nlisten = \"5000\"\nto = \"example.org\"",
            &["\"example.org\" has no port", "NAME:PORT"]),
        ("entry", "", "[[forward]]\nlisten = \"5000\"", &["the key `to` is missing", "add `to = "]),
        ("entry", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\"\nfrom = 1",
            &["unknown key `from`", "keys here are listen, to"]),
        ("entry", "", "[[forward]]\nlisten = \"5000\"\nto = \"a:1\"\n[[forward]]\nlisten = \"5000\"\nto = \"b:1\"",
            &["two forwards listen on 127.0.0.1:5000", "a port of its own"]),
        ("exit", "allow", "allow = [\"10.0.0.0/33\"]", &["exit.toml:13: \"10.0.0.0/33\" is no network", "IP/BITS"]),
        ("exit", "# resolver", "resolver = \"dns\"", &["resolver = \"dns\" is no address", "write IP or IP:PORT"]),
        ("exit", "# max_sockets", "max_sockets = 0", &["max_sockets = 0 is out of range"]),
        ("exit", "up", "mixing = \"timed:t=1ms\"", &["`mixing` has no meaning for role = \"exit\""]),
    ];
    for (node, line, with, wanted) in mistakes {
        let dir = chain();
        edit(&dir.path().join(format!("{node}.toml")), line, with);
        let role = node.trim_end_matches('1');
        assert_mistake(with, &run(dir.path(), &format!("{role} --config {node}.toml")), wanted);
    }
}

#[test]
fn a_mistake_in_the_chain_file_is_named_with_place_and_remedy() {
    #[rustfmt::skip]
    let mistakes: &[(&str, &str, &[&str])] = &[
        ("id", "id = \"00\"", &["chain.toml:2: id is not 32 bytes in base64 or hex"]),
        ("id", "id = \"0000000000000000000000000000000000000000000000000000000000000000\"",
            &["node 1: the descriptor belongs to another chain"]),
        ("class", "class = \"XL\"", &["chain.toml:3: ", "the classes are S"]),
        ("class", "class = \"M\"", &["the descriptor is of place 1 of 4 in class L, not of place 1 of 4 in class M"]),
        ("hops", "hops = 5", &["hops = 5, but 4 [[node]] entries follow", "every mix and the exit"]),
        ("hops", "hops = 1", &["hops = 1 is out of range"]),
        ("mixing", "mixing = \"none\"", &["unknown strategy"]),
        ("lifetime_s", "lifetime_s = 600", &["lifetime 3600 s, the chain 600 s"]),
        ("index", "index = 2", &["index = 2 stands in place 1"]),
        ("role", "role = \"exit\"", &["role = \"exit\" where the chain has its mix"]),
        ("identity", "identity = \"AAAA\"", &["identity is not 32 bytes"]),
        ("identity", "identity = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"",
            &["node 1: the signature is not by"]),
        ("address", "address = \"127.0.0.1:9\"",
            &["is not in the signed descriptor, which says 127.0.0.1:4701", "`next`"]),
        ("address", "adress = \"127.0.0.1:4701\"", &["unknown key `adress`", "did you mean `address`?"]),
        ("descriptor", "descriptor = \"%\"", &["the descriptor is not base64"]),
        ("descriptor", "descriptor = \"ZWRkeQE=\"", &["node 1: the descriptor is cut short"]),
        ("descriptor", "", &["the key `descriptor` is missing"]),
    ];
    for (line, with, wanted) in mistakes {
        let dir = chain();
        edit(&dir.path().join("chain.toml"), line, with);
        assert_mistake(with, &run(dir.path(), "mix --config mix1.toml"), wanted);
    }
}

#[test]
fn keys_that_others_may_read_are_refused() {
    let dir = chain();
    let file = dir.path().join("mix1.key");
    for mode in [0o644, 0o640, 0o604, 0o620] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let output = run(dir.path(), "mix --config mix1.toml --lifeline");
        assert_mistake("mode", &output, &[&format!("mode {mode:04o}"), "run `chmod 600 mix1.key`"]);
    }
}

#[test]
fn no_complaint_about_a_key_file_shows_a_key() {
    let dir = chain();
    let file = dir.path().join("mix1.key");
    let secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0";
    let lines = [
        (format!("noise = \"{secret}\""), "expected 32 bytes in base64"),
        (format!("noise = \"{secret}"), "mix1.key:"),
        (format!("noise = {secret}"), "mix1.key:"),
        (format!("nose = \"{secret}\""), "did you mean `noise`?"),
        (format!("noise = [\"{secret}\"]"), "mix1.key:"),
    ];
    for (line, wanted) in lines {
        edit(&file, "no", &line);
        let output = run(dir.path(), "mix --config mix1.toml --lifeline");
        assert_mistake(&line, &output, &[wanted]);
        assert!(!complaint(&output).1.contains(&secret[..8]), "{output:?}");
    }
}

#[test]
fn a_node_is_run_by_the_command_of_its_role() {
    let dir = chain();
    let output = run(dir.path(), "exit --config mix1.toml");
    assert_mistake("role", &output, &["mix1.toml configures a mix, not an exit", "run `eddy mix --config mix1.toml`"]);
}

#[test]
fn inherited_sockets_must_be_as_many_as_the_node_takes() {
    let dir = chain();
    let output =
        eddy().current_dir(&dir).args(["mix", "--config", "mix1.toml"]).env("LISTEN_FDS", "1").output().unwrap();
    assert_mistake("LISTEN_FDS", &output, &["LISTEN_FDS = 1, but this mix takes 2 sockets", "pass up, down"]);
}

#[test]
fn paths_in_a_configuration_are_relative_to_it() {
    let dir = chain();
    let elsewhere = tempfile::tempdir().unwrap();
    let config = dir.path().join("mix1.toml");
    edit(&dir.path().join("chain.toml"), "hops", "hops = 1");
    let output = run(elsewhere.path(), &format!("mix --config {}", config.display()));
    let place = format!("{}:4: ", dir.path().join("chain.toml").display());
    assert_mistake("elsewhere", &output, &[&place]);
}

#[test]
fn a_port_in_use_is_a_failure_and_not_a_mistake() {
    let dir = chain();
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    edit(&dir.path().join("mix1.toml"), "up", &format!("up = \"{address}\""));
    let (code, said) = complaint(&run(dir.path(), "mix --config mix1.toml"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("cannot bind up to {address}")) && said.contains("free port"), "{said}");
    assert!(!dir.path().join("mix1.sock").exists(), "the status socket goes with the node");
}

#[test]
fn status_without_a_node_says_how_to_start_one() {
    let dir = chain();
    let (code, said) = complaint(&run(dir.path(), "status --config exit.toml"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no node answers at exit.sock: start it with `eddy exit --config exit.toml`"), "{said}");
}

#[test]
fn a_name_that_fits_no_cell_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), "init . --mixes 1 --class S").status.success());
    let name = ["a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(10)].join(".");
    let output = run(dir.path(), &format!("entry --config entry.toml --forward 127.0.0.1:0={name}:1"));
    assert_mistake("a long name", &output, &["too long for a cell of class S", "at most 183 bytes"]);
}
