//! The files that a node's trust rests on: descriptors, private keys, and what the node remembers.
//!
//! They are read at the start and again at each SIGHUP. Nothing here decides which descriptor counts: that is
//! [`control::trust::View`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use control::NodeKeys;
use control::trust::{SignedDescriptor, State, View};

use super::loaded::Psks;
use super::{ChainFile, ConfigError, Location, NodeConfig};
use crate::ceremony::files::{self, DescriptorFile};

/// Endings of files with replaced keys. A node keeps four descriptors, and the newest and one more may name the others.
const OLD: [&str; 3] = ["old", "old2", "old3"];

/// Their paths.
#[derive(Clone, Debug)]
pub struct TrustFiles {
    /// The chain file. `None`: its text was given.
    pub chain: Option<PathBuf>,
    /// The private keys of a hop.
    pub keys: Option<PathBuf>,
    /// `None`: nothing is kept.
    pub state: Option<PathBuf>,
}

/// Seconds since 1970 by this host's clock.
pub fn wall_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A path with a further ending: `node.key` and `next` make `node.key.next`.
fn ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(ending);
    path.with_file_name(name)
}

impl TrustFiles {
    pub fn of(config: &NodeConfig) -> TrustFiles {
        TrustFiles { chain: Some(config.chain.clone()), keys: config.keys.clone(), state: config.state.clone() }
    }

    /// Reads the chain file.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn chain(&self) -> Result<Option<ChainFile>, ConfigError> {
        self.chain.as_deref().map(|path| ChainFile::read(path, wall_s())).transpose()
    }

    /// Reads every `*.desc` in the folder of the chain file, in the order of their names.
    pub fn descriptors_beside(&self) -> Vec<(PathBuf, Result<SignedDescriptor, ConfigError>)> {
        let Some(chain) = &self.chain else { return Vec::new() };
        let folder = chain.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        // Joined to the chain's own parent, so that messages name files as the configuration does.
        let named = |name: std::ffi::OsString| chain.with_file_name(name);
        let mut paths: Vec<PathBuf> = entries.map(|entry| named(entry.file_name())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "desc"));
        paths.sort();
        let read = |path: PathBuf| {
            let descriptor = DescriptorFile::read(&path).map(|file| file.descriptor);
            (path, descriptor)
        };
        paths.into_iter().map(read).collect()
    }

    /// Reads the private keys: the current ones, those that will replace them, and those that they have replaced.
    ///
    /// # Errors
    /// The current ones cannot be read, or another file of them has a mistake.
    pub fn keys(&self) -> Result<(Vec<NodeKeys>, Psks), ConfigError> {
        let Some(path) = &self.keys else { return Ok(Default::default()) };
        let current = files::NodeKeys::read(path)?;
        let psks = Psks { up: current.psk_up.clone(), down: current.psk_down.clone() };
        let mut all = vec![current.pair()];
        for other in ["next"].into_iter().chain(OLD).map(|name| ending(path, name)) {
            if other.symlink_metadata().is_ok() {
                all.push(files::NodeKeys::read(&other)?.pair());
            }
        }
        Ok((all, psks))
    }

    /// Moves keys to the place that their descriptors give them: `node.key.next` becomes `node.key` as soon as the
    /// newest descriptor of the node names its keys, and the replaced keys, `node.key.old`, go when no descriptor that
    /// may still be used names them. Returns what was done.
    ///
    /// There is a `node.key` at any time, also after a crash or a power cut in between.
    ///
    /// # Errors
    /// A file cannot be read or moved. All keys stay then.
    pub fn settle_keys(&self, view: &View, position: usize) -> Result<Vec<String>, ConfigError> {
        let Some(path) = &self.keys else { return Ok(Vec::new()) };
        let next = ending(path, "next");
        let unwritable = |path: &Path| {
            let path = path.to_owned();
            move |why| ConfigError::Unwritable { path, why }
        };
        let mut done = self.delete_replaced(view, position)?;
        if next.symlink_metadata().is_ok() {
            let keys = files::NodeKeys::read(&next)?.pair();
            if view.descriptor(position).is_some_and(|own| keys.are_of(own)) {
                let old = self.keep_replaced(path)?;
                sync_folder(path).map_err(unwritable(path))?;
                fs::rename(&next, path).map_err(unwritable(path))?;
                sync_folder(path).map_err(unwritable(path))?;
                done.push(format!(
                    "{} has become {}; the replaced keys are {}",
                    next.display(),
                    path.display(),
                    old.display()
                ));
                done.extend(self.delete_replaced(view, position)?);
            }
        }
        Ok(done)
    }

    /// Gives the current keys a second name, under which they are found when others are in their place.
    fn keep_replaced(&self, path: &Path) -> Result<PathBuf, ConfigError> {
        let all = OLD.map(|name| ending(path, name));
        // A crash may have left them there.
        let same = |old: &&PathBuf| {
            fs::metadata(old).is_ok_and(|old| fs::metadata(path).is_ok_and(|current| is_same(&old, &current)))
        };
        if let Some(old) = all.iter().find(same) {
            return Ok(old.clone());
        }
        let free = |old: &&PathBuf| old.symlink_metadata().is_err();
        let old = all.iter().find(free).unwrap_or(&all[0]);
        let _ = fs::remove_file(old);
        fs::hard_link(path, old).map_err(|why| ConfigError::Unwritable { path: old.clone(), why })?;
        Ok(old.clone())
    }

    /// Deletes replaced keys that no valid descriptor names.
    fn delete_replaced(&self, view: &View, position: usize) -> Result<Vec<String>, ConfigError> {
        let Some(path) = &self.keys else { return Ok(Vec::new()) };
        let mut done = Vec::new();
        for old in OLD.map(|name| ending(path, name)).into_iter().filter(|old| old.symlink_metadata().is_ok()) {
            let keys = files::NodeKeys::read(&old)?.pair();
            let now_s = wall_s();
            let lives = |own: &SignedDescriptor| now_s < own.not_after && keys.are_of(own);
            if !view.descriptors(position).iter().any(|own| lives(own)) {
                fs::remove_file(&old).map_err(|why| ConfigError::Unwritable { path: old.clone(), why })?;
                done.push(format!("deleted {}: no valid descriptor names these keys", old.display()));
            }
        }
        Ok(done)
    }

    /// Locks a hop's state and keys for as long as the returned files are open. Empty at an entry. The locks are files
    /// of their own, `node.state.lock` and `node.key.lock`: keys and state are renamed when they change.
    ///
    /// Keys in a folder that cannot be written, as systemd's credentials are, are not locked: the lock of the state is
    /// then the only one. Copies of a key file are not recognised either.
    ///
    /// # Errors
    /// Another node runs with this state or these keys, or the lock of the state cannot be made.
    pub fn lock(&self) -> Result<Vec<File>, ConfigError> {
        let (Some(keys), Some(state)) = (&self.keys, &self.state) else { return Ok(Vec::new()) };
        let locked_state = lock(state, state, "state file")?;
        // Without the file there is nothing to lock: reading it reports that.
        let Ok(target) = fs::canonicalize(keys) else { return Ok(vec![locked_state]) };
        match lock(keys, &target, "key file") {
            Ok(locked_keys) => Ok(vec![locked_state, locked_keys]),
            Err(ConfigError::Unwritable { .. }) => Ok(vec![locked_state]),
            Err(why) => Err(why),
        }
    }

    /// Reads the state file, if there is one.
    ///
    /// # Errors
    /// It cannot be read, or it is damaged.
    pub fn state(&self) -> Result<Option<State>, ConfigError> {
        let Some(path) = &self.state else { return Ok(None) };
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(why) => {
                let remedy = "the state file must be readable by the user who runs eddy".to_owned();
                return Err(ConfigError::Unreadable { path: path.clone(), why, remedy });
            }
        };
        State::read(&bytes).map(Some).map_err(|why| ConfigError::Value {
            at: Location::file(path),
            what: why.to_string(),
            remedy: "delete the file; a hop then waits for the next interval before it signs".into(),
        })
    }

    /// Replaces the state file, so that after a power cut there is the old one or the new one.
    ///
    /// # Errors
    /// It cannot be written. The old one stays.
    pub fn save(&self, state: &[u8]) -> io::Result<()> {
        let Some(path) = &self.state else { return Ok(()) };
        let new = ending(path, &format!("{}.new", std::process::id()));
        let _ = fs::remove_file(&new);
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).and_then(|mut file| {
            file.write_all(state)?;
            file.sync_all()
        });
        let done = written.and_then(|()| fs::rename(&new, path)).and_then(|()| sync_folder(path));
        if done.is_err() {
            let _ = fs::remove_file(&new);
        }
        done
    }
}

/// Locks the file beside `target`. Messages name the file as `path`, which is a `kind`.
fn lock(path: &Path, target: &Path, kind: &str) -> Result<File, ConfigError> {
    let beside = ending(target, "lock");
    let unlockable = |why| ConfigError::Unwritable { path: beside.clone(), why };
    let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&beside);
    let file = options.map_err(unlockable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::Error(why)) => Err(unlockable(why)),
        Err(TryLockError::WouldBlock) => Err(ConfigError::Value {
            at: Location::file(path),
            what: format!("another node runs with this {kind}"),
            remedy: "stop it first: two of them would sign different things in one name".into(),
        }),
    }
}

/// True if both are one file.
fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Makes changes of names in the folder of a file durable.
pub(crate) fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ceremony::keygen::rotate;
    use crate::ceremony::renew::{self, renew};
    use crate::config::Loaded;
    use crate::init::{self, Plan};

    #[test]
    fn state_is_replaced_as_a_whole_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.state");
        let files = TrustFiles { chain: None, keys: None, state: Some(path.clone()) };
        assert!(files.state().unwrap().is_none());
        for _ in 0..2 {
            files.save(&State::fresh(7).to_bytes()).unwrap();
            assert!(files.state().unwrap().is_some_and(|state| state.hop.made == 7));
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, "eddy state").unwrap();
        let why = files.state().unwrap_err().to_string();
        assert!(why.contains("node.state: ") && why.contains("delete the file"), "{why}");
        let nowhere = TrustFiles { state: Some(dir.path().join("none/node.state")), ..files };
        assert!(nowhere.save(b"x").is_err());
    }

    /// A hop's files in `dir`, of which its keys exist.
    fn hop_files(dir: &Path) -> TrustFiles {
        let keys = dir.join("node.key");
        fs::write(&keys, "x").unwrap();
        TrustFiles { chain: None, keys: Some(keys), state: Some(dir.join("node.state")) }
    }

    #[test]
    fn second_node_with_one_state_is_refused_whatever_its_keys() {
        let dir = tempfile::tempdir().unwrap();
        let (keys, copy) = (dir.path().join("node.key"), dir.path().join("credentials"));
        let files = hop_files(dir.path());
        fs::write(&copy, "x").unwrap();
        let locks = files.lock().unwrap();
        assert_eq!(locks.len(), 2);
        // The running node puts new keys into place and writes its state; another one has a copy of the keys.
        fs::rename(&copy, &keys).unwrap();
        files.save(b"new").unwrap();
        for keys in [keys, copy] {
            let why = TrustFiles { keys: Some(keys), ..files.clone() }.lock().unwrap_err().to_string();
            assert!(why.contains("node.state: another node runs with this state file: stop it first"), "{why}");
        }
        drop(locks);
        assert_eq!(files.lock().unwrap().len(), 2);
        assert!(TrustFiles { keys: None, ..files }.lock().unwrap().is_empty(), "entries share their file");
    }

    #[test]
    fn second_node_with_one_key_file_is_refused_whatever_its_state() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("other.key");
        let files = hop_files(dir.path());
        std::os::unix::fs::symlink("node.key", &link).unwrap();
        let other = TrustFiles { state: Some(dir.path().join("other.state")), ..files.clone() };
        let locks = files.lock().unwrap();
        for (keys, name) in [(files.keys.clone(), "node.key"), (Some(link), "other.key")] {
            let why = TrustFiles { keys, ..other.clone() }.lock().unwrap_err().to_string();
            assert!(why.contains(&format!("{name}: another node runs with this key file: stop it first")), "{why}");
        }
        drop(locks);
        assert_eq!(other.lock().unwrap().len(), 2);
    }

    #[test]
    fn keys_in_a_read_only_folder_are_not_locked() {
        // Root may write everywhere but here.
        let keys = PathBuf::from("/proc/self/status");
        let dir = tempfile::tempdir().unwrap();
        let files = TrustFiles { keys: Some(keys), ..hop_files(dir.path()) };
        assert_eq!(files.lock().unwrap().len(), 1);
        let missing = TrustFiles { keys: Some(dir.path().join("none")), ..files };
        assert_eq!(missing.lock().unwrap().len(), 1);
        assert!(!dir.path().join("none.lock").exists());
    }

    #[test]
    fn next_keys_take_over_once_a_descriptor_names_them() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = [1, 2].map(|host| std::net::SocketAddr::from(([192, 0, 2, host], 4700)));
        init::write(dir.path(), &Plan::new(&addresses)).unwrap();
        let config = dir.path().join("mix1.toml");
        let key = |ending: &str| dir.path().join(format!("mix1.key{ending}"));
        let settle = || {
            let Loaded { files, position, trust, .. } = Loaded::read(&config).unwrap();
            assert_eq!(position, 1);
            files.settle_keys(&trust.view, position).unwrap()
        };

        rotate(dir.path(), "mix1", false).unwrap();
        let (old, new) = (fs::read(key("")).unwrap(), fs::read(key(".next")).unwrap());
        assert!(settle().is_empty(), "no descriptor names the next keys yet");
        let plan = |revoke| renew::Plan {
            identity: dir.path().join("mix1.identity.key"),
            file: dir.path().join("mix1.request"),
            out: None,
            places: Default::default(),
            drop_names: false,
            days: 90,
            revoke,
        };
        renew(&plan(false), wall_s()).unwrap();
        // A crash after the first half of the change.
        fs::hard_link(key(""), key(".old")).unwrap();
        assert_eq!(settle().len(), 1);
        let content = |ending: &str| fs::read(key(ending)).unwrap();
        assert_eq!((content(""), content(".old")), (new.clone(), old.clone()));
        assert!(!key(".next").exists() && !key(".old2").exists());
        assert!(settle().is_empty(), "old keys answer until their descriptor ends");

        // Further ones, before the first two descriptors have ended.
        fs::copy(dir.path().join("mix1.desc"), dir.path().join("second.desc")).unwrap();
        rotate(dir.path(), "mix1", true).unwrap();
        renew(&plan(false), wall_s()).unwrap();
        assert_eq!(settle().len(), 1);
        assert_eq!((content(".old"), content(".old2")), (old, new));
        assert_eq!(Loaded::read(&config).unwrap().trust.keys.len(), 3);

        renew(&plan(true), wall_s()).unwrap();
        assert_eq!(settle().len(), 2);
        assert!(!key(".old").exists() && !key(".old2").exists(), "revoked keys go");
    }
}
