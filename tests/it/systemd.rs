//! Notifications to a supervisor (sd_notify(3)).

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::mistakes::edit;
use crate::common::command::{eddy, run};
use crate::common::nodes::PATIENCE;

fn chain() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), "init . --mixes 3").status.success());
    edit(&dir.path().join("mix1.toml"), "up", "up = \"127.0.0.1:0\"");
    dir
}

/// A node that ends with its test.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn received(supervisor: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let got = supervisor.recv(&mut buffer).expect("a notification");
    String::from_utf8_lossy(&buffer[..got]).into_owned()
}

#[test]
fn systemd_is_notified_of_ready_and_stopping() {
    let dir = chain();
    let socket = dir.path().join("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    supervisor.set_read_timeout(Some(PATIENCE)).unwrap();
    // As systemd passes credentials: in a folder of their own, readable by an access list.
    fs::rename(dir.path().join("mix1.key"), dir.path().join("keys")).unwrap();
    let keys = dir.path().join("keys");
    let mut command = eddy();
    command.args(["run", "--config", "mix1.toml", "--report-json", "--keys"]).arg(&keys);
    command.current_dir(dir.path()).env("NOTIFY_SOCKET", &socket);
    let mut node = Node(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let ready = received(&supervisor);
    assert!(ready.lines().any(|line| line == "READY=1"), "{ready}");
    assert!(ready.lines().any(|line| line.starts_with("STATUS=ready: mix1 of chain ")), "{ready}");
    kill_process(Pid::from_child(&node.0), Signal::TERM).unwrap();
    assert_eq!(received(&supervisor).trim_end(), "STOPPING=1");
    let mut report = String::new();
    node.0.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    assert!(node.0.wait().unwrap().success());
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["role"], &report["index"]), (&"mix".into(), &1.into()));
}

#[test]
fn node_runs_without_a_reachable_supervisor() {
    let dir = chain();
    for socket in [None, Some(dir.path().join("gone"))] {
        let mut command = eddy();
        command.args(["run", "--config", "mix1.toml", "--lifeline"]).current_dir(dir.path());
        if let Some(socket) = &socket {
            command.env("NOTIFY_SOCKET", socket);
        }
        // Its lifeline is cut at once: it ends as soon as it has started.
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("ready: mix1"), "{said}");
        assert_eq!(said.contains("cannot notify the supervisor"), socket.is_some(), "{said}");
    }
}
