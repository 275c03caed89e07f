//! The status socket: one JSON line per connection, then the end.
//!
//! Owns the Unix socket of a running node (mode 0600, so only its user may ask) and the thread that
//! answers. It takes no commands: whoever connects learns the counters and can do nothing else.
//!
//! Neighbours: [`crate::report`] says what is in the line; `eddy status` and `eddy chain` ask.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;

use crate::config::{ConfigError, Place, in_words};
use crate::report::NodeReport;

/// Longest path of a Unix socket: sun_path less its final zero.
const PATH_MAX: usize = 107;
/// A client that does not read for so long is left alone.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bound status socket that nobody answers yet. Removes its file when dropped.
pub struct Bound {
    listener: UnixListener,
    path: Removed,
}

/// A file that goes when this is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.0);
    }
}

/// A status socket that is answered. Ends, and removes its file, when dropped.
pub struct Server {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    _path: Removed,
}

impl Bound {
    /// Binds the socket. A file left behind by a node that died is replaced. `place` is where the
    /// configuration names it.
    ///
    /// # Errors
    /// A node answers there already, something else than a socket is in the way, or the system
    /// refuses.
    pub fn new(path: &Path, place: &Place) -> Result<Bound, ConfigError> {
        let name = path.display();
        let wrong = |what: String, remedy: &str| ConfigError::Value {
            at: place.clone(),
            what: format!("the status socket {name}: {what}"),
            remedy: remedy.into(),
        };
        let folder = || match path.parent() {
            Some(parent) if parent != Path::new("") => parent.display().to_string(),
            _ => ".".to_owned(),
        };
        let refused = |why: io::Error| match why.kind() {
            ErrorKind::NotFound => wrong(
                format!("there is no folder {}", folder()),
                &format!("run `mkdir -p {}`, or let `status` name another path", folder()),
            ),
            ErrorKind::PermissionDenied => wrong(
                format!("this user may not write to the folder {}", folder()),
                "change the folder's owner, or let `status` name another path",
            ),
            _ => wrong(in_words(&why), "let `status` name another path"),
        };
        let length = path.as_os_str().len();
        if length > PATH_MAX {
            return Err(wrong(
                format!("its path has {length} bytes, the system takes {PATH_MAX}"),
                "let `status` name a shorter path, or start eddy in the folder of its configuration",
            ));
        }
        if let Ok(there) = path.symlink_metadata() {
            if !there.file_type().is_socket() {
                return Err(wrong(
                    "something that is no socket is in the way".into(),
                    "move it away, or let `status` name another path",
                ));
            }
            match UnixStream::connect(path) {
                Err(why) if why.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(refused)?,
                Err(why) if why.kind() == ErrorKind::NotFound => {}
                Err(why) if why.kind() == ErrorKind::PermissionDenied => {
                    return Err(wrong(
                        "it belongs to another user".into(),
                        "end that user's node, remove the socket, or let `status` name another path",
                    ));
                }
                _ => {
                    return Err(wrong(
                        "a running program answers there already".into(),
                        "end that node, or give each node a `status` of its own",
                    ));
                }
            }
        }
        // Nobody else may connect, from the first moment on; no other thread makes files yet.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        Ok(Bound { listener: bound.map_err(refused)?, path: Removed(path.to_owned()) })
    }

    /// Answers every connection with a fresh report, on a thread of its own.
    ///
    /// # Errors
    /// No thread or no descriptors left.
    pub fn serve(self, report: impl Fn() -> NodeReport + Send + 'static) -> io::Result<Server> {
        let Bound { listener, path } = self;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = UnixStream::pair()?;
        let answer = move || {
            loop {
                let mut fds = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&stopped, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Ok(_) if !fds[1].revents().is_empty() => return,
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(_) => return,
                }
                match listener.accept() {
                    // A client that went away or does not read is its own trouble.
                    Ok((client, _)) => drop(tell(client, &report())),
                    // No descriptor is left: the client waits, and so does this thread.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        };
        let thread = std::thread::Builder::new().name("status".into()).spawn(answer)?;
        Ok(Server { stop: Some(stop), thread: Some(thread), _path: path })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tell(mut client: UnixStream, report: &NodeReport) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(report).map_err(io::Error::other)?;
    line.push(b'\n');
    client.write_all(&line)
}

/// Asks a running node.
///
/// # Errors
/// Nobody answers, or not with a report.
pub fn ask(path: &Path) -> io::Result<NodeReport> {
    let mut socket = UnixStream::connect(path)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    socket.read_to_string(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeRole;
    use dataplane::latency::Profile;
    use dataplane::ledger::Ledger;
    use std::os::unix::fs::MetadataExt;

    fn bind(path: &Path) -> Result<Bound, ConfigError> {
        Bound::new(path, &Place::file(Path::new("mix1.toml")))
    }

    fn report() -> NodeReport {
        NodeReport::new(NodeRole::Mix, 1, &Ledger::default(), &Profile::default())
    }

    #[test]
    fn whoever_asks_gets_a_report_and_the_file_goes_with_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mix1.sock");
        let server = bind(&path).unwrap().serve(report).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(ask(&path).unwrap(), report());
        assert_eq!(ask(&path).unwrap(), report());
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_nodes_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mix1.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let living = bind(&path).unwrap();
        let refused = bind(&path).err().unwrap().to_string();
        assert!(refused.contains("answers there already"), "{refused}");
        drop(living);
        assert!(!path.exists());
        fs::write(&path, "a file").unwrap();
        assert!(bind(&path).err().unwrap().to_string().contains("no socket"));
    }

    #[test]
    fn a_client_that_never_reads_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mix1.sock");
        let server = bind(&path).unwrap().serve(report).unwrap();
        let _silent = UnixStream::connect(&path).unwrap();
        assert_eq!(ask(&path).unwrap(), report());
        drop(server);
    }

    #[test]
    fn a_client_that_leaves_a_long_report_unread_holds_the_next_up_for_a_second_and_no_client_commands() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mix1.sock");
        // Longer than any socket buffer: who does not read it blocks its writer.
        let long = || NodeReport { engine: "x".repeat(4 << 20), ..report() };
        let server = bind(&path).unwrap().serve(long).unwrap();
        let mut silent = UnixStream::connect(&path).unwrap();
        silent.write_all(b"stop\n").unwrap();
        assert_eq!(ask(&path).unwrap(), long());
        drop(server);
    }
}
