//! Unix sockets of a running node, for its own user only.
//!
//! Owns the file (mode 0600, removed when the node ends), the thread that answers, and the reading of an answer.
//! [`crate::runtime::status`] and [`crate::runtime::console`] define the protocols.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, Mode, access, fchmod};
use serde::de::DeserializeOwned;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::{ConfigError, Location, in_words};

/// Longest path of a Unix socket in bytes: `sun_path` without its final zero.
const PATH_MAX: usize = 107;
/// The connection ends after this time in which the client neither reads nor writes.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest answer in bytes. Thousands of forwards fit.
const ANSWER_MAX: usize = 4 << 20;
/// Most connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// A bound socket that is not served yet. Removes its file when dropped.
pub struct Bound {
    listener: UnixListener,
    path: Removed,
}

/// A file that is removed when this is dropped.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.0);
    }
}

/// A socket that is served. Ends, and removes its file, when dropped.
pub struct Server {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    _path: Removed,
}

impl Bound {
    /// Binds the socket and replaces the file of a node that died. `key` is its configuration key, `place` where that
    /// is set.
    ///
    /// # Errors
    /// See [`check_path`]; or a program answers there already, or the system refuses.
    pub fn new(path: &Path, key: &str, place: &Location) -> Result<Bound, ConfigError> {
        check_path(path, key, place)?;
        let another = format!("set `{key}` to another path");
        let refused = |why: io::Error| wrong(path, key, place, in_words(&why), &another);

        if path.symlink_metadata().is_ok() {
            match UnixStream::connect(path) {
                Err(why) if why.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(refused)?,
                Err(why) if why.kind() == ErrorKind::NotFound => {}
                Err(why) if why.kind() == ErrorKind::PermissionDenied => {
                    let remedy = format!("stop that user's node, remove the socket, or {another}");
                    return Err(wrong(path, key, place, "it belongs to another user".into(), &remedy));
                }
                _ => {
                    let remedy = format!("stop it, or {another}");
                    return Err(wrong(path, key, place, "a running program already answers there".into(), &remedy));
                }
            }
        }

        let listener = bind_private(path).map_err(refused)?;
        Ok(Bound { listener, path: Removed(path.to_owned()) })
    }

    /// Answers all connections, one after the other, on a thread of its own.
    ///
    /// # Errors
    /// No thread or no descriptors left.
    pub fn serve(
        self,
        thread: &str,
        mut answer: impl FnMut(UnixStream) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Server> {
        let Bound { listener, path } = self;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = UnixStream::pair()?;

        let answer_all = move || {
            loop {
                let mut fds = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&stopped, PollFlags::IN)];
                match poll(&mut fds, None) {
                    Ok(_) if !fds[1].revents().is_empty() => return,
                    Ok(_) => {}
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(_) => return,
                }
                match listener.accept() {
                    // A client that went away or does not read gets no answer.
                    Ok((client, _)) => drop(patient(&client).and_then(|()| answer(client))),
                    // No descriptor is left. The client waits, and this thread tries again.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        };

        let thread = std::thread::Builder::new().name(thread.into()).spawn(answer_all)?;
        Ok(Server { stop: Some(stop), thread: Some(thread), _path: path })
    }
}

/// Reads a server's answer, JSON of one value, until the server closes the connection. Control characters in its texts,
/// which a terminal would obey, are escaped.
///
/// # Errors
/// The answer is not complete after `patience`, longer than 4 MiB, or not a `T`.
pub fn read_answer<T: DeserializeOwned>(socket: &mut UnixStream, patience: Duration) -> io::Result<T> {
    let deadline = Instant::now() + patience;
    let (mut answer, mut part) = (Vec::new(), [0; 16 << 10]);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let what = format!("no complete answer within {} s", patience.as_secs_f64());
            return Err(io::Error::new(ErrorKind::TimedOut, what));
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut part) {
            Ok(0) => break,
            Ok(len) if answer.len() + len > ANSWER_MAX => {
                let what = format!("the answer is longer than {ANSWER_MAX} bytes");
                return Err(io::Error::new(ErrorKind::InvalidData, what));
            }
            Ok(len) => answer.extend_from_slice(&part[..len]),
            // The deadline decides.
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(why) => return Err(why),
        }
    }
    let value = printable(serde_json::from_slice(&answer).map_err(io::Error::other)?);
    serde_json::from_value(value).map_err(io::Error::other)
}

/// The same value, with the control characters of all texts escaped.
fn printable(value: Value) -> Value {
    let escape = |text: String| {
        if !text.contains(char::is_control) {
            return text;
        }
        let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
        text.chars().map(escaped).collect()
    };
    match value {
        Value::String(text) => Value::String(escape(text)),
        Value::Array(all) => all.into_iter().map(printable).collect(),
        Value::Object(all) => all.into_iter().map(|(key, value)| (escape(key), printable(value))).collect(),
        plain => plain,
    }
}

/// Binds a socket to which no other user may connect at any time. The file gets the mode that the socket has before.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(BACKLOG)?;
    Ok(OwnedFd::from(socket).into())
}

/// Checks a socket's path without binding it: its length, its folder, and that no other file is there.
///
/// # Errors
/// It cannot be bound, with the remedy.
pub fn check_path(path: &Path, key: &str, place: &Location) -> Result<(), ConfigError> {
    let another = format!("set `{key}` to another path");
    let length = path.as_os_str().len();
    if length > PATH_MAX {
        let what = format!("the path has {length} bytes (limit {PATH_MAX})");
        let remedy = format!("set `{key}` to a shorter path, or start eddy in the folder of its configuration");
        return Err(wrong(path, key, place, what, &remedy));
    }

    let folder = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let what = format!("the folder {} does not exist", folder.display());
        let remedy = format!("run `mkdir -p {}`, or {another}", folder.display());
        return Err(wrong(path, key, place, what, &remedy));
    }
    if access(folder, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let what = format!("this user may not write to the folder {}", folder.display());
        return Err(wrong(path, key, place, what, &format!("change the owner of the folder, or {another}")));
    }

    match path.symlink_metadata() {
        Ok(there) if !there.file_type().is_socket() => {
            let what = "another file, which is not a socket, has this path".to_owned();
            Err(wrong(path, key, place, what, &format!("move that file, or {another}")))
        }
        _ => Ok(()),
    }
}

/// The message for a socket that cannot be bound.
fn wrong(path: &Path, key: &str, place: &Location, what: String, remedy: &str) -> ConfigError {
    let what = format!("the {key} socket {}: {what}", path.display());
    ConfigError::Value { at: place.clone(), what, remedy: remedy.to_owned() }
}

fn patient(client: &UnixStream) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    client.set_write_timeout(Some(CLIENT_TIMEOUT))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn binding_leaves_the_umask_alone() {
        let umask = || {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            status.lines().find(|line| line.starts_with("Umask:")).map(str::to_owned)
        };
        let dir = tempfile::tempdir().unwrap();
        let before = umask();
        let binding = {
            let path = dir.path().join("node.sock");
            std::thread::spawn(move || {
                for _ in 0..200 {
                    let bound = Bound::new(&path, "status", &Location::file(Path::new("mix1.toml"))).unwrap();
                    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
                    drop(bound);
                }
            })
        };
        while !binding.is_finished() {
            assert_eq!(umask(), before);
        }
        binding.join().unwrap();
    }

    /// The result of reading this answer.
    fn read(answer: &[u8]) -> io::Result<Value> {
        let (mut client, mut server) = UnixStream::pair()?;
        std::thread::scope(|scope| {
            // The reader may end before it has read everything.
            scope.spawn(move || _ = server.write_all(answer));
            let value = read_answer(&mut client, Duration::from_secs(60));
            drop(client);
            value
        })
    }

    #[test]
    fn control_characters_of_an_answer_are_escaped() {
        let value = read(br#"{"a\u001b":["\u001b[2J\n\u009b",7,"a \\ b"]}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a\\u{1b}": ["\\u{1b}[2J\\n\\u{9b}", 7, "a \\ b"]}));
    }

    #[test]
    fn endless_and_unfinished_answers_are_errors() {
        let long = read(&vec![b' '; ANSWER_MAX + 1]).unwrap_err();
        assert_eq!(long.kind(), ErrorKind::InvalidData, "{long}");

        let (mut client, mut server) = UnixStream::pair().unwrap();
        server.write_all(b"{").unwrap();
        let open = read_answer::<Value>(&mut client, Duration::from_millis(50)).unwrap_err();
        assert_eq!(open.kind(), ErrorKind::TimedOut, "{open}");
    }
}
