//! The files of a node, read and checked against each other.

use std::fs::File;
use std::path::{Path, PathBuf};

use control::TrustSetup;
use control::trust::view::{BadDescriptor, Taken};
use control::trust::{SignedDescriptor, State, View};
use wire::cell::Shape;
use wire::kdf::Secret;

use super::keys::{SocksUsers, read_users};
use super::trust_files::{TrustFiles, wall_s};
use super::{ChainFile, ConfigError, Location, NodeConfig, NodeRole, Part, ServedClass, node_name};
use crate::ceremony::files::DescriptorFile;

/// Keys that operators of neighbouring nodes have agreed on.
#[derive(Default)]
pub struct Psks {
    pub up: Option<Secret>,
    pub down: Option<Secret>,
}

impl Psks {
    /// Refuses the pre-shared key of a side that has no neighbouring hop.
    fn have_effect(&self, position: usize, hops: usize, keys: Option<&Path>) -> Result<(), ConfigError> {
        let (name, what) = match (&self.up, &self.down) {
            (Some(_), _) if position == 1 => ("psk_up", "`psk_up` has no effect at mix1: users have no pre-shared key"),
            (_, Some(_)) if position == hops => {
                ("psk_down", "`psk_down` has no effect at the exit, which has no next hop")
            }
            _ => return Ok(()),
        };
        let at = Location::file(keys.unwrap_or(Path::new("")));
        Err(ConfigError::Value { at, what: what.to_owned(), remedy: format!("remove the line `{name}`") })
    }
}

/// A node's files.
pub struct Loaded {
    /// Its own configuration.
    pub config: NodeConfig,
    /// The chain, verified.
    pub chain: ChainFile,
    /// Where its trust comes from, to be read again.
    pub files: TrustFiles,
    /// Entry 0, mixes from 1, then the exit.
    pub position: usize,
    /// All descriptors that it has, its keys, and what it remembers.
    pub trust: TrustSetup,
    /// The descriptors of these files alone, without those that neighbours have sent.
    of_files: View,
    pub psks: Psks,
    /// Users of its SOCKS ports from other hosts.
    pub socks_users: SocksUsers,
    /// What the operator should know, although the node starts.
    pub warnings: Vec<String>,
    /// What is not as new as it could be, and does not matter.
    pub notes: Vec<String>,
    /// Of a hop that is about to run: no other process runs with its state or its keys.
    pub locks: Vec<File>,
}

/// What became of a descriptor from a file.
#[derive(Debug)]
pub enum Found {
    /// Its hop has it from now on.
    Taken { hop: usize, taken: Taken },
    /// It is revoked, for this reason.
    Revoked { hop: usize, why: String },
    /// Why it does not count.
    Refused(String),
}

impl Found {
    /// Takes a descriptor with `take`, for the hop that has its identity.
    pub fn take(
        descriptor: Result<SignedDescriptor, ConfigError>,
        position: impl Fn(&[u8; 32]) -> Option<usize>,
        take: impl FnOnce(usize, SignedDescriptor) -> Result<Taken, BadDescriptor>,
    ) -> Found {
        let descriptor = match descriptor {
            Ok(descriptor) => descriptor,
            // The message names the file.
            Err(why) => return Found::Refused(why.to_string()),
        };
        let Some(hop) = position(&descriptor.identity) else {
            return Found::Refused("its identity is not that of a hop of this chain".to_owned());
        };
        match take(hop, descriptor) {
            Ok(taken) => Found::Taken { hop, taken },
            Err(why @ BadDescriptor::Revoked { .. }) => Found::Revoked { hop, why: why.to_string() },
            Err(why) => Found::Refused(why.to_string()),
        }
    }
}

impl Loaded {
    /// Reads `path` and the files it names.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read(path: &Path) -> Result<Loaded, ConfigError> {
        Loaded::read_files(NodeConfig::read(path)?)
    }

    /// Reads the files that a configuration names.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read_files(config: NodeConfig) -> Result<Loaded, ConfigError> {
        let chain = config.read_chain()?;
        Loaded::with_chain(TrustFiles::of(&config), config, chain)
    }

    /// Reads the files of a node that is about to run. A hop's are locked first, because a running node writes them.
    ///
    /// # Errors
    /// The first mistake, with its remedy, or another node runs with them.
    pub fn lock_and_read(config: NodeConfig) -> Result<Loaded, ConfigError> {
        let locks = TrustFiles::of(&config).lock()?;
        Ok(Loaded { locks, ..Loaded::read_files(config)? })
    }

    /// The same for a chain file that was read already.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn with_chain(files: TrustFiles, config: NodeConfig, chain: ChainFile) -> Result<Loaded, ConfigError> {
        let now_s = wall_s();
        let is_entry = config.role() == NodeRole::Entry;
        let (keys, psks) = config.read_keys(&files)?;
        let (mut warnings, mut notes) = (Vec::new(), Vec::new());
        let mut view = View::new(chain.terms.clone());

        let state = files.state()?;
        if state.is_none() && !is_entry {
            warnings.push(format!(
                "the state file {} does not exist: this node signs nothing until the next interval begins",
                files.state.as_deref().unwrap_or(Path::new("")).display()
            ));
        }
        // The chain file says first who this node is, for in it no two hops share a key; then the operator's other
        // files; then what neighbours have sent. A hop may sign a descriptor of its own with the keys of this node.
        let mut of_chain = View::new(chain.terms.clone());
        let mut of_files = View::new(chain.terms.clone());
        let state = state.map(|state| State::restore(state, &mut view, now_s)).unwrap_or_default();
        for (at, descriptor) in chain.descriptors.iter().enumerate() {
            // Revoked, or older than what the state has. The chain file itself was checked.
            let _ = view.take_descriptor(at + 1, descriptor.clone(), now_s);
            let _ = of_chain.take_descriptor(at + 1, descriptor.clone(), now_s);
            let _ = of_files.take_descriptor(at + 1, descriptor.clone(), now_s);
        }
        let mut refused = None;
        let mut foreign = None;
        for (path, descriptor) in files.descriptors_beside() {
            let own = descriptor.as_ref().is_ok_and(|descriptor| keys.iter().any(|keys| keys.are_of(descriptor)));
            let position = view.position(&descriptor.as_ref().map_or([0; 32], |descriptor| descriptor.identity));
            let found = Found::take(
                descriptor,
                |_| position,
                |hop, signed| {
                    let _ = of_files.take_descriptor(hop, signed.clone(), now_s);
                    view.take_descriptor(hop, signed, now_s)
                },
            );
            let (Found::Refused(why) | Found::Revoked { why, .. }) = &found else { continue };
            let warning = refusal(&path, why);
            refused.get_or_insert_with(|| warning.clone());
            if let Found::Revoked { hop, .. } = found
                && let Some(newest) = view.descriptor(hop)
            {
                notes.push(replaced(&path, &node_name(chain.role(hop), hop), newest.revision));
                continue;
            }
            if own && position.is_none() {
                foreign = Some(path);
            }
            warnings.push(warning);
        }

        let position = match is_entry {
            true => 0,
            false => position(&of_chain, &keys)
                .or_else(|| position(&of_files, &keys))
                .or_else(|| position(&view, &keys))
                .ok_or_else(|| not_in_chain(&config, foreign, refused))?,
        };
        config.is_at(position, &chain)?;
        config.has_own_keys(position, &chain)?;
        psks.have_effect(position, chain.descriptors.len(), config.keys.as_deref())?;
        let users = match &config.part {
            Part::Entry(part) => part.socks_users.as_deref(),
            Part::Mix { .. } | Part::Exit(_) => None,
        };
        let socks_users = users.map(read_users).transpose().map_err(|why| {
            config.named("socks_users", "the file with the users, owned by the user who runs eddy", why)
        })?;
        let mut loaded = Loaded {
            trust: TrustSetup { view, keys, state },
            of_files,
            socks_users: socks_users.unwrap_or_default(),
            config,
            chain,
            files,
            position,
            psks,
            warnings,
            notes,
            locks: Vec::new(),
        };
        loaded.check_classes()?;
        let served = loaded.classes();
        served.iter().try_for_each(ServedClass::check)?;
        let other_ports: Vec<_> = served.iter().filter_map(ServedClass::other_port).collect();
        loaded.warnings.extend(other_ports);
        Ok(loaded)
    }

    /// Class and length of the cells of its first class.
    pub fn shape(&self) -> Shape {
        self.chain.shape()
    }

    /// `entry`, `mix1`, `exit`.
    pub fn name(&self) -> String {
        node_name(self.config.role(), self.position)
    }

    /// Descriptors of the next hop with which this node may start, the preferred one first. None at the exit.
    ///
    /// An entry prefers the oldest, as its link does (SPEC 7.3.7): a new one might be a label. A hop prefers the
    /// newest. Of a hop the last one is the newest of its files, because a neighbour may have sent the others.
    pub fn next_hops(&self) -> Vec<&SignedDescriptor> {
        let (view, hop) = (&self.trust.view, self.position + 1);
        if hop > view.hops() {
            return Vec::new();
        }
        let held = view.descriptors(hop).iter().map(|held| &**held);
        if self.position == 0 {
            return held.rev().collect();
        }
        let of_files = self.of_files.descriptor(hop).map(|of_files| &**of_files);
        held.take_while(|held| of_files.is_none_or(|last| held.hash() != last.hash())).chain(of_files).collect()
    }
}

/// The line about a descriptor file that does not count.
pub(crate) fn refusal(path: &Path, why: &str) -> String {
    let path = path.display().to_string();
    // Mistakes in a file name it themselves.
    let why = why.strip_prefix(&format!("{path}: ")).unwrap_or(why);
    format!("ignored the descriptor in {path}: {why}")
}

/// The line about a revoked descriptor, of which a newer one is held.
pub(crate) fn replaced(path: &Path, name: &str, newest: u64) -> String {
    format!("{} has an old descriptor of {name}; revision {newest} replaces it", path.display())
}

/// The hop with a descriptor that names these keys.
fn position(view: &View, keys: &[control::NodeKeys]) -> Option<usize> {
    let is_own = |hop: &usize| {
        let descriptors = view.descriptors(*hop);
        descriptors.iter().any(|descriptor| keys.iter().any(|keys| keys.are_of(descriptor)))
    };
    (1..=view.hops()).find(is_own)
}

/// The keys are not those of a hop.
fn not_in_chain(config: &NodeConfig, foreign: Option<PathBuf>, refused: Option<String>) -> ConfigError {
    let chain = config.chain.display();
    let keys = config.keys.as_deref().unwrap_or(Path::new(""));
    let at = Location::file(keys);
    if let Some(own) = foreign {
        let what = format!("this node is not in {chain}: the identity of {} is not among its hops", own.display());
        return ConfigError::Value {
            at,
            what,
            remedy: "get the chain file that was assembled with this descriptor".into(),
        };
    }
    let beside = refused.map_or(String::new(), |line| format!(" ({line})"));
    ConfigError::Value {
        at,
        what: format!("no descriptor in {chain} or beside it has these keys{beside}"),
        remedy: format!(
            "`keys` in {} must name the key file of a hop of this chain, or its newest node.desc must be in the folder of \
             the chain file",
            config.place_of("keys")
        ),
    }
}

/// A configuration and the files that it names.
impl NodeConfig {
    /// `error` of reading a file that `key` names, which must be `must`.
    fn named(&self, key: &str, must: &str, error: ConfigError) -> ConfigError {
        match error {
            ConfigError::Unreadable { path, why, .. } if self.is_file() => {
                let remedy = format!("`{key}` in {} must name {must}", self.place_of(key));
                ConfigError::Unreadable { path, why, remedy }
            }
            other => other,
        }
    }

    /// Reads its chain.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read_chain(&self) -> Result<ChainFile, ConfigError> {
        let must = "the chain's public file, chain.toml as `eddy assemble` writes it";
        ChainFile::read(&self.chain, wall_s()).map_err(|why| self.named("chain", must, why))
    }

    fn read_keys(&self, files: &TrustFiles) -> Result<(Vec<control::NodeKeys>, Psks), ConfigError> {
        files
            .keys()
            .map_err(|why| self.named("keys", "the key file of this node, owned by the user who runs eddy", why))
    }

    /// Checks that the descriptors with the names of its key file and of this configuration, where there are such, are
    /// of the hop that has the keys.
    fn has_own_keys(&self, position: usize, chain: &ChainFile) -> Result<(), ConfigError> {
        let Some(keys) = self.keys.as_deref().filter(|_| self.is_file()) else { return Ok(()) };
        for path in [keys, self.path.as_path()].map(|file| file.with_extension("desc")) {
            let Ok(beside) = DescriptorFile::read(&path) else { continue };
            let identities = &chain.terms.identities;
            let hop = identities.iter().position(|identity| *identity == beside.descriptor.identity).map(|at| at + 1);
            let Some(hop) = hop.filter(|hop| *hop != position) else { continue };
            let name = |hop| node_name(chain.role(hop), hop);
            return Err(ConfigError::Value {
                at: Location::file(keys),
                what: format!("these are the keys of {}, but {} is of {}", name(position), path.display(), name(hop)),
                remedy: format!(
                    "`keys` in {} must name the key file of {}; if this node is {}, replace {} by its own descriptor",
                    self.place_of("keys"),
                    name(hop),
                    name(position),
                    path.display()
                ),
            });
        }
        Ok(())
    }

    /// Checks that its role is that of a position of a chain.
    ///
    /// # Errors
    /// The first mismatch, with its remedy.
    fn is_at(&self, position: usize, chain: &ChainFile) -> Result<(), ConfigError> {
        let wrong =
            |key: &str, what: String, remedy: String| ConfigError::Value { at: self.place_of(key), what, remedy };
        let right = NodeRole::at(position, chain.descriptors.len()).unwrap_or(NodeRole::Exit);
        if right != self.role() {
            return Err(wrong(
                "role",
                format!("this node is {} in this chain, not {}", right.with_article(), self.role().with_article()),
                "correct `role`, `chain` or `keys`".to_owned(),
            ));
        }
        if position == 1 && self.place("previous", 0).is_some() {
            return Err(wrong(
                "previous",
                "`previous` has no effect at mix1, which users reach from any address".to_owned(),
                "remove it; it belongs to the other mixes and the exit".to_owned(),
            ));
        }
        if position > 1 && self.place("shared_prefixes", 0).is_some() {
            return Err(wrong(
                "shared_prefixes",
                format!(
                    "`shared_prefixes` has no effect at {}: only mix1 counts by address",
                    node_name(right, position)
                ),
                "move it to the configuration of mix1".to_owned(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Loaded {
    /// Takes a newer descriptor of a mix, as from a neighbour, of a chain that `init` has written to `dir`.
    pub(crate) fn receive(&mut self, dir: &Path, mix: usize, change: impl FnOnce(&mut control::trust::Contact)) {
        let identity = crate::ceremony::files::read_identity(&dir.join(format!("mix{mix}.identity.key"))).unwrap();
        let mut content = self.trust.view.descriptor(mix).unwrap().content().clone();
        content.revision += 1;
        change(&mut content.contacts[0]);
        let taken = self.trust.view.take_descriptor(mix, content.sign(&identity).unwrap(), wall_s());
        assert_eq!(taken, Ok(Taken::New));
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::init::{self, Plan};

    #[test]
    fn lanes_between_hops_are_refused_unless_configured() {
        let addresses: Vec<SocketAddr> = [1, 2, 3].map(|host| SocketAddr::from(([192, 0, 2, host], 4700))).into();
        let check = |mixes: usize, lanes_show_label_bits| {
            let dir = tempfile::tempdir().unwrap();
            let plan = Plan { lanes: 2, lanes_show_label_bits, ..Plan::new(&addresses[2 - mixes..]) };
            let files = init::write(dir.path(), &plan).unwrap();
            let checked = files.hops.iter().chain([&files.entry]).map(|path| {
                let loaded = Loaded::read(path).unwrap();
                let class = loaded.first_class();
                class.check_lanes(class.next_contact())
            });
            checked.map(|done| done.err().map(|why| why.to_string())).collect::<Vec<_>>()
        };
        assert_eq!(check(1, false), [None, None, None], "link 1 may have lanes");
        assert_eq!(check(2, true), [None, None, None, None]);
        let [Some(mix1), Some(mix2), None, None] = &check(2, false)[..] else { panic!("both ends of link 2 refuse") };
        for why in [mix1, mix2] {
            for part in ["the link from mix1 to mix2 has 2 lanes", "lanes_show_label_bits = true", "make mix2"] {
                assert!(why.contains(part), "{part}: {why}");
            }
        }
    }

    #[test]
    fn entry_prefers_the_oldest_descriptor_and_a_hop_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = [1, 2, 3].map(|host| SocketAddr::from(([192, 0, 2, host], 4700)));
        let files = init::write(dir.path(), &Plan::new(&addresses)).unwrap();
        let label = SocketAddr::from(([192, 0, 2, 99], 4700));
        for (path, hop, preferred) in [(&files.entry, 1, addresses[0]), (&files.hops[0], 2, label)] {
            let mut loaded = Loaded::read(path).unwrap();
            loaded.receive(dir.path(), hop, |contact| {
                contact.addresses = vec![label];
                contact.lanes = 2;
            });
            let class = loaded.first_class();
            let next = class.next_contact().unwrap();
            assert_eq!(class.next_address(next).unwrap(), Some(preferred), "next hop {hop}");
            assert_eq!(class.lanes(Some(next)).next, if preferred == label { 2 } else { 1 });
            assert_eq!(loaded.next_hops().len(), 2);
        }
    }

    #[test]
    fn up_on_loopback_is_refused_if_another_address_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let addresses = [1, 2].map(|host| SocketAddr::from(([192, 0, 2, host], 4700)));
        init::write(dir.path(), &Plan::new(&addresses)).unwrap();
        let config = dir.path().join("mix1.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        let with = |up: &str| {
            std::fs::write(&config, text.replace("up = \"192.0.2.1:4700\"", &format!("up = \"{up}\""))).unwrap();
            Loaded::read(&config)
        };
        assert!(with("192.0.2.1:4700").is_ok() && with("0.0.0.0:4700").is_ok() && with("10.0.0.1:4700").is_ok());
        let why = with("127.0.0.1:4700").err().unwrap().to_string();
        for part in ["mix1.toml:", "up = \"127.0.0.1:4700\" is on loopback", "sends to 192.0.2.1:4700", "0.0.0.0:4700"]
        {
            assert!(why.contains(part), "{part}: {why}");
        }
    }
}
