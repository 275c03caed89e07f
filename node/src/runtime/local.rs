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
use rustix::fs::Mode;

use crate::config::{ConfigError, Location, in_words};

/// Longest path of a Unix socket: sun_path without its final zero.
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
    /// A node answers there already, something else than a socket is in the way, or the system
    /// refuses.
    pub fn new(path: &Path, key: &str, place: &Location) -> Result<Bound, ConfigError> {
        let name = path.display();
        let another = format!("let `{key}` name another path");
        let wrong = |what: String, remedy: &str| ConfigError::Value {
            at: place.clone(),
            what: format!("the {key} socket {name}: {what}"),
            remedy: remedy.into(),
        };
        let folder = || match path.parent() {
            Some(parent) if parent != Path::new("") => parent.display().to_string(),
            _ => ".".to_owned(),
        };
        let refused = |why: io::Error| match why.kind() {
            ErrorKind::PermissionDenied => wrong(
                format!("this user may not write to the folder {}", folder()),
                &format!("change the folder's owner, or {another}"),
            ),
            _ => wrong(in_words(&why), &another),
        };
        check_path(path, key, place)?;
        if let Ok(there) = path.symlink_metadata() {
            if !there.file_type().is_socket() {
                return Err(wrong(
                    "something that is no socket is in the way".into(),
                    &format!("move it away, or {another}"),
                ));
            }
            match UnixStream::connect(path) {
                Err(why) if why.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(refused)?,
                Err(why) if why.kind() == ErrorKind::NotFound => {}
                Err(why) if why.kind() == ErrorKind::PermissionDenied => {
                    return Err(wrong(
                        "it belongs to another user".into(),
                        &format!("end that user's node, remove the socket, or {another}"),
                    ));
                }
                _ => {
                    return Err(wrong(
                        "a running program answers there already".into(),
                        &format!("end that node, or give each node a `{key}` of its own"),
                    ));
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
                    // No descriptor is left; the client and this thread wait.
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        };
        let thread = std::thread::Builder::new().name(thread.into()).spawn(answer_all)?;
        Ok(Server { stop: Some(stop), thread: Some(thread), _path: path })
    }
}

/// Checks what is known of a socket's path without binding it: its length, and its folder.
///
/// # Errors
/// It cannot be bound, with the remedy.
pub fn check_path(path: &Path, key: &str, place: &Location) -> Result<(), ConfigError> {
    let wrong = |what: String, remedy: String| {
        let what = format!("the {key} socket {}: {what}", path.display());
        Err(ConfigError::Value { at: place.clone(), what, remedy })
    };
    let length = path.as_os_str().len();
    if length > PATH_MAX {
        let remedy = format!("use a shorter path for `{key}`, or start eddy in the folder of its configuration");
        return wrong(format!("its path has {length} bytes, but the system allows {PATH_MAX}"), remedy);
    }
    let folder = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let folder = folder.display();
        let remedy = format!("run `mkdir -p {folder}`, or use another path for `{key}`");
        return wrong(format!("the folder {folder} does not exist"), remedy);
    }
    Ok(())
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
