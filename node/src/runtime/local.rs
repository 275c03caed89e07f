//! Unix sockets of a running node, for its own user only.
//!
//! Owns the file (mode 0600, removed when the node ends) and the thread that answers.
//! [`crate::runtime::status`] and [`crate::runtime::console`] define the protocols.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, Mode, access};

use crate::config::{ConfigError, Location, in_words};

/// Longest path of a Unix socket in bytes: `sun_path` without its final zero.
const PATH_MAX: usize = 107;
/// The connection ends after this time in which the client neither reads nor writes.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// Binds the socket and replaces the file of a node that died. `key` is its configuration key, `place` where that is
    /// set.
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

        // No other user may connect at any time. No other thread creates files yet.
        let before = rustix::process::umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        rustix::process::umask(before);
        Ok(Bound { listener: bound.map_err(refused)?, path: Removed(path.to_owned()) })
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
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
