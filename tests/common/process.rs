//! A chain of processes: `eddy chain --stay --json`, and what it reports when it ends.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use serde_json::Value;

use super::command::{eddy, io};
use super::limit::Permit;
use super::nodes::ask;
use super::skipped;

/// Why cells are dropped that were made for the older one of two handshakes that crossed, or under its keys: on a busy
/// machine an answer may come so late that the initiator has begun again.
pub const CROSSED: &[&str] = &["header", "slot-expired"];

/// A running chain. Ends when dropped.
pub struct Demo {
    /// `eddy chain` itself.
    pub process: Child,
    stdout: BufReader<ChildStdout>,
    _permit: Permit,
    /// Its first line, written when it is up: forwards, pymix ports, status sockets.
    pub ready: Value,
}

impl Demo {
    /// Starts `eddy chain --stay --json` with more arguments, and waits until it is up.
    pub fn start(arguments: &[&str]) -> Demo {
        let permit = Permit::wait();
        let mut process = eddy()
            .args(["chain", "--stay", "--json", "--io", &io().to_string()])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut stdout = BufReader::new(process.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("text");
        let ready = serde_json::from_str(&line).unwrap_or_else(|why| panic!("{why}: {line:?}"));
        Demo { process, stdout, _permit: permit, ready }
    }

    /// The entry's address of the forward to a destination.
    pub fn forward_to(&self, destination: SocketAddr) -> SocketAddr {
        self.forward(&destination.to_string())
    }

    /// The same for a destination as text.
    pub fn forward(&self, destination: &str) -> SocketAddr {
        let forwards = self.ready["forwards"].as_array().expect("a list");
        let found = forwards.iter().find(|forward| forward["to"] == destination).expect("such a forward");
        found["listen"].as_str().and_then(|listen| listen.parse().ok()).expect("an address")
    }

    /// The entry's first pymix address.
    pub fn pymix(&self) -> SocketAddr {
        self.ready["pymix"][0].as_str().and_then(|listen| listen.parse().ok()).expect("an address")
    }

    /// The entry's first SOCKS address.
    pub fn socks(&self) -> SocketAddr {
        self.ready["socks"][0].as_str().and_then(|listen| listen.parse().ok()).expect("an address")
    }

    /// A node's configuration: the entry is 0.
    pub fn config(&self, position: usize) -> &str {
        self.ready["configs"][position].as_str().expect("a path")
    }

    /// A node's report now: the entry is 0.
    pub fn status(&self, position: usize) -> Value {
        ask(self.config(position).as_ref()).expect("a report")
    }

    /// Ends it by a signal and returns its final report.
    pub fn end(self) -> Value {
        self.signal(Signal::INT);
        self.finish()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it runs");
    }

    /// Waits for its end, which must be a success, and returns its final report.
    pub fn finish(mut self) -> Value {
        let last = self.stdout.by_ref().lines().map_while(Result::ok).last().expect("a report");
        assert_eq!(self.process.wait().expect("it ends").code(), Some(0));
        serde_json::from_str(&last).unwrap_or_else(|why| panic!("{why}: {last:?}"))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if self.process.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal(Signal::TERM);
            let _ = self.process.wait();
        }
    }
}

/// All tallies of a node's report.
pub fn tallies(node: &Value) -> impl Iterator<Item = &Value> {
    let units = node["ledger"].as_object().expect("a ledger").values();
    units.flat_map(|unit| [&unit["forward"], &unit["backward"]])
}

/// Every ledger of a final report closes, and nothing is held.
pub fn closed(report: &Value) {
    for node in report["nodes"].as_array().expect("nodes") {
        for tally in tallies(node) {
            assert_eq!(tally["closed"], true, "{node:#}");
            assert_eq!(tally["held"], 0, "{node:#}");
        }
    }
}

/// Every cell that left on a link, and every datagram that left for an application, is counted by its time in a final
/// report; every release of more than nothing, by its size. `period_us` is that of the mixing.
pub fn counted_by_time(node: &Value, period_us: f64) {
    let role = node["role"].as_str().expect("a role");
    let number = |of: &Value| of.as_f64().unwrap_or_else(|| panic!("{node:#}"));
    let distribution = |of: &Value, sent: &Value| {
        assert_eq!(of["count"], *sent, "{node:#}");
        let quantiles = ["p50", "p90", "p99", "p999", "max"].map(|name| number(&of[name]));
        assert!(quantiles.is_sorted() && quantiles[4] >= number(&of["mean"]), "{of:#}");
        let buckets = of["buckets"].as_array().expect("buckets");
        assert!(buckets.is_sorted_by(|one, next| number(&one[0]) < number(&next[0])), "{of:#}");
        assert_eq!(buckets.iter().map(|bucket| bucket[1].as_u64().expect("a count")).sum::<u64>(), *sent, "{of:#}");
    };
    for direction in ["forward", "backward"] {
        // At the ends of the chain one direction leaves for applications.
        let to_applications = role == "entry" && direction == "backward" || role == "exit" && direction == "forward";
        let sent = &node["ledger"][if to_applications { "datagrams" } else { "cells" }][direction]["sent"];
        let stay = &node["latency_us"][direction];
        distribution(&stay["node"], sent);
        distribution(&stay["total"], sent);
        assert_eq!(stay.get("pool").is_some(), role == "mix", "{node:#}");
        if role == "mix" {
            distribution(&stay["pool"], sent);
            assert!(number(&stay["pool"]["max"]) <= period_us, "no pool may keep a cell for longer: {stay:#}");
            let parts = number(&stay["pool"]["mean"]) + number(&stay["node"]["mean"]);
            // Each is rounded to a nanosecond.
            assert!((parts - number(&stay["total"]["mean"])).abs() < 0.002, "{stay:#}");
        }
    }
    let sizes = node["release_sizes"].as_array().expect("sizes").iter();
    assert_eq!(sizes.map(|size| size[1].as_u64().expect("a count")).sum::<u64>(), node["releases"], "{node:#}");
}

/// Raises this process's limit of open descriptors as far as permitted. True if it suffices; prints a line if not.
pub fn may_open(descriptors: u64) -> bool {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let may = limit.current.is_none_or(|most| most >= descriptors);
    if !may {
        skipped(format!("needs {descriptors} descriptors ({limit:?}): run `ulimit -n {descriptors}` as root before"));
    }
    may
}

/// Holds the file lock that keeps loads and timings from sharing the machine.
pub fn exclusive() -> File {
    // One per user: the file of another could not be opened.
    let user = rustix::process::getuid().as_raw();
    let path = std::env::temp_dir().join(format!("eddy-load-{user}.lock"));
    let file = File::options().create(true).append(true).open(path).expect("a lock file");
    file.lock().expect("a lock");
    file
}
