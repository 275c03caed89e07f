//! The status socket: one line of JSON for each connection.
//!
//! It accepts no commands: a client can read the counters and do nothing else.
//!
//! Neighbours: [`crate::runtime::local`] has the socket; [`crate::report`] defines the line; `eddy status` and `eddy
//! chain` read it.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::report::NodeReport;
use crate::runtime::local::{Bound, Server, read_answer};

/// Answers every connection with a fresh report.
///
/// # Errors
/// No thread or no descriptors left.
pub fn serve(bound: Bound, report: impl Fn() -> NodeReport + Send + 'static) -> io::Result<Server> {
    bound.serve("status", move |client| write(client, &report()))
}

fn write(mut client: UnixStream, report: &NodeReport) -> io::Result<()> {
    let mut line = serde_json::to_vec(report).map_err(io::Error::other)?;
    line.push(b'\n');
    client.write_all(&line)
}

/// Reads the report of a running node.
///
/// # Errors
/// No node answers, or the answer is not a report.
pub fn ask(path: &Path) -> io::Result<NodeReport> {
    let mut socket = UnixStream::connect(path)?;
    read_answer(&mut socket, Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigError, Location, NodeRole};
    use dataplane::latency::Profile;
    use dataplane::ledger::Ledger;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;

    fn bind(path: &Path) -> Result<Bound, ConfigError> {
        Bound::new(path, "status", &Location::file(Path::new("mix1.toml")))
    }

    fn report() -> NodeReport {
        NodeReport::new(NodeRole::Mix, 1, &Ledger::default(), &Profile::default())
    }

    #[test]
    fn clients_get_reports_until_the_server_removes_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mix1.sock");
        let server = serve(bind(&path).unwrap(), report).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(ask(&path).unwrap(), report());
        assert_eq!(ask(&path).unwrap(), report());
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn socket_of_a_dead_node_is_replaced_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mix1.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let living = bind(&path).unwrap();
        let refused = bind(&path).err().unwrap().to_string();
        assert!(refused.contains("already answers there"), "{refused}");
        drop(living);
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert!(bind(&path).err().unwrap().to_string().contains("not a socket"));
    }

    #[test]
    fn silent_client_delays_no_other_client() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mix1.sock");
        let server = serve(bind(&path).unwrap(), report).unwrap();
        let _silent = UnixStream::connect(&path).unwrap();
        assert_eq!(ask(&path).unwrap(), report());
        drop(server);
    }

    #[test]
    fn unread_report_delays_the_next_client_a_second() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mix1.sock");
        // Longer than any socket buffer, so a client that does not read it blocks the writer.
        let long = || NodeReport { engine: "x".repeat(2 << 20), ..report() };
        let server = serve(bind(&path).unwrap(), long).unwrap();
        let mut silent = UnixStream::connect(&path).unwrap();
        silent.write_all(b"stop\n").unwrap();
        assert_eq!(ask(&path).unwrap(), long());
        drop(server);
    }
}
