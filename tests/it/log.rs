//! The log of a node: what it says about its next hop, in which form, and how much.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use tempfile::TempDir;

use crate::common::command::{eddy, run};
use crate::common::nodes::PATIENCE;
use crate::mistakes::edit;

/// A chain of one mix on a loopback address of its own.
fn chain() -> (TempDir, Ipv4Addr) {
    static CHAINS: AtomicU8 = AtomicU8::new(1);
    let (pid, chain) = (std::process::id(), CHAINS.fetch_add(1, Ordering::Relaxed));
    let host = Ipv4Addr::new(127, 1 + (pid / 251 % 254) as u8, 1 + (pid % 251) as u8, 200 + chain);
    let dir = tempfile::tempdir().unwrap();
    let made = run(dir.path(), &format!("init . --mixes 1 --host {host}"));
    assert!(made.status.success(), "{made:?}");
    (dir, host)
}

/// A running node and its log. Ends when dropped.
struct Node {
    process: Child,
    lines: Receiver<String>,
}

impl Node {
    fn start(dir: &TempDir, name: &str, arguments: &[&str]) -> Node {
        let mut command = eddy();
        command.args(["run", "--config", &format!("{name}.toml")]).args(arguments).current_dir(dir.path());
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Node { process, lines }
    }

    /// Waits for a line with this text. All lines up to it, and it.
    fn wait_for(&self, text: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines: Vec<String> = Vec::new();
        while !lines.last().is_some_and(|line| line.contains(text)) {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => lines.push(line),
                Err(why) => panic!("still waiting for {text:?} ({why}): {lines:#?}"),
            }
        }
        lines
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// All that a node logs which ends at once.
fn log_of(dir: &TempDir, environment: &[(&str, &str)], arguments: &[&str]) -> String {
    let mut command = eddy();
    command.args(["run", "--config", "mix1.toml", "--lifeline"]).args(arguments).current_dir(dir.path());
    let output = command.envs(environment.iter().copied()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn silent_next_hop_is_reported_once_and_so_is_recovery() {
    let (dir, host) = chain();
    let started = Instant::now();
    let mix = Node::start(&dir, "mix1", &[]);
    let exit = format!("exit ({host}:4702)");
    let lines = mix.wait_for(&format!("no reply from next hop {exit}"));
    assert!(lines.last().is_some_and(|line| line.contains("the same chain.toml")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("ready: mix1")), "{lines:#?}");

    let node = Node::start(&dir, "exit", &[]);
    let lines = mix.wait_for(&format!("connected to next hop {exit}"));
    // Repeats are ten seconds apart and more.
    let repeats = lines.iter().filter(|line| line.contains("no reply")).count() as u64;
    assert!(repeats <= started.elapsed().as_secs() / 10, "{lines:#?}");
    node.wait_for("previous hop mix1 (");

    drop(node);
    mix.wait_for(&format!("lost the next hop {exit}: no reply for "));
    let _node = Node::start(&dir, "exit", &[]);
    mix.wait_for(&format!("next hop {exit} replies again"));
}

#[test]
fn entry_names_hops_to_check_while_some_do_not_sign() {
    let (dir, host) = chain();
    let _mix = Node::start(&dir, "mix1", &[]);
    let entry = Node::start(&dir, "entry", &[]);
    entry.wait_for(&format!("connected to next hop mix1 ({host}:4701)"));
    let lines = entry.wait_for("not all hops have signed this interval's keys");
    assert!(
        lines.last().is_some_and(|line| line.contains("mix1 replies, so unless it was just restarted, check exit")),
        "{lines:#?}"
    );
    let _exit = Node::start(&dir, "exit", &[]);
    entry.wait_for("channel setup succeeded");
}

#[test]
fn entry_without_listeners_says_how_to_add_one() {
    let (dir, _) = chain();
    let entry = Node::start(&dir, "entry", &[]);
    let lines = entry.wait_for("no program can use this entry yet");
    assert!(lines.last().is_some_and(|line| line.contains("eddy forward add --config entry.toml")), "{lines:#?}");
}

#[test]
fn socks_client_that_asks_for_tcp_leaves_one_line() {
    let (dir, _) = chain();
    edit(&dir.path().join("entry.toml"), "# socks", "socks = [\"127.0.0.1:0\"]");
    let mut entry = Node::start(&dir, "entry", &[]);
    let ready = entry.wait_for("ready: entry").pop().unwrap();
    let at = ready.split(", socks ").nth(1).and_then(|rest| rest.split(',').next()).unwrap().to_owned();
    let ask = |command: u8| {
        let mut stream = TcpStream::connect(&at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&[5, 1, 0, 5, command, 0, 1, 192, 0, 2, 7, 0, 80]).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[3], 7, "command not supported");
    };
    ask(1);
    let lines = entry.wait_for("refused CONNECT of a SOCKS client: eddy carries UDP only");
    assert!(!lines.concat().contains("192.0.2.7"), "{lines:#?}");
    // The line is repeated after 10 s at the earliest.
    let started = Instant::now();
    (0..5).for_each(|_| ask(2));
    entry.process.kill().unwrap();
    let repeats = entry.lines.iter().filter(|line| line.contains("of a SOCKS client")).count() as u64;
    assert!(repeats <= started.elapsed().as_secs() / 10, "{repeats} repeats");
}

#[test]
fn json_lines_parse_and_carry_values_as_fields() {
    let (dir, host) = chain();
    let mix = Node::start(&dir, "mix1", &["--log-format", "json"]);
    let lines = mix.wait_for("no reply from next hop");
    let parsed: Vec<serde_json::Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = parsed.last().unwrap();
    assert_eq!(last["level"], "WARN");
    assert_eq!((&last["peer"], &last["role"]), (&"exit".into(), &"exit".into()));
    assert_eq!(last["address"], format!("{host}:4702"));
    assert!(last["message"].as_str().unwrap().starts_with("no reply from next hop exit"), "{last:#}");
}

#[test]
fn verbosity_flags_override_the_environment() {
    let (dir, _) = chain();
    assert!(log_of(&dir, &[], &[]).contains("INFO ready: mix1"));
    assert!(!log_of(&dir, &[], &["-q"]).contains("INFO"));
    assert!(!log_of(&dir, &[("EDDY_LOG", "warn")], &[]).contains("INFO"));
    assert!(log_of(&dir, &[("EDDY_LOG", "warn")], &["-v"]).contains("INFO"));
    assert!(log_of(&dir, &[("EDDY_LOG", "warn")], &["--log", "info"]).contains("INFO"));
    assert_eq!(log_of(&dir, &[], &["-qqq"]), "");
}

#[test]
fn lines_to_the_journal_begin_with_their_priority() {
    let (dir, _) = chain();
    let run = |arguments: &[&str], matches: bool| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let file = std::fs::File::from(OwnedFd::from(writer));
        let metadata = file.metadata().unwrap();
        let inode = metadata.ino() + u64::from(!matches);
        let mut command = eddy();
        command.args(arguments).current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::null());
        command.env("JOURNAL_STREAM", format!("{}:{inode}", metadata.dev())).stderr(file);
        let mut process = command.spawn().unwrap();
        drop(command);
        let mut log = String::new();
        reader.read_to_string(&mut log).unwrap();
        process.wait().unwrap();
        log
    };
    let node = ["run", "--config", "mix1.toml", "--lifeline"];
    let log = run(&node, true);
    assert!(log.contains("<6>ready: mix1 of chain "), "{log}");
    assert!(log.lines().all(|line| line.starts_with("<6>") || line.starts_with("<4>")), "{log}");
    assert!(run(&["run", "--config", "none.toml"], true).starts_with("<3>eddy: none.toml"));
    assert!(!run(&node, false).contains('<'), "standard error is not the journal");
}
