//! The requirements of a node on its host: read from its files, or those of `eddy chain`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::descriptor::DescriptorError;
use dataplane::socket::backend::Io;
use dataplane::socket::offload::Offload;
use wire::cell::{Class, Shape};

use eddy_node::config::{
    Chain, ConfigError, Location, MAX_SOCKETS, NodeConfig, NodeRole, Part, RECEIVE_BUFFER, node_name,
};

/// A node and what it requires.
#[derive(Clone, Debug)]
pub struct Subject {
    /// For people: the node, or the nodes of `eddy chain`.
    pub what: String,
    /// Its configuration; `None` for `eddy chain`.
    pub config: Option<PathBuf>,
    /// Its role; `None` for a whole chain.
    pub role: Option<NodeRole>,
    /// Class and length of its chain.
    pub shape: Shape,
    /// Entry 0, mixes from 1, then the exit.
    pub position: usize,
    /// Worker threads.
    pub workers: usize,
    /// Bytes requested for link sockets, and for the listening sockets of an entry.
    pub receive_buffer: usize,
    /// The line that sets it, which makes it mandatory.
    pub receive_buffer_at: Option<Location>,
    pub offload: Offload,
    pub io: Io,
    /// The cores that its workers are pinned to.
    pub cores: Vec<usize>,
    /// Buffers and channels on huge pages.
    pub hugepages: bool,
    /// Sockets of its own: links and listeners.
    pub sockets: usize,
    /// The most sockets for flows, of an exit.
    pub max_sockets: Option<usize>,
    /// An exit that uses the name servers of this host.
    pub system_names: bool,
    /// The address for the previous hop.
    pub up: Option<SocketAddr>,
    /// The source address towards the next hop.
    pub from: IpAddr,
    /// The address of the next hop, `None` at an exit; or why it is unknown.
    pub next: Result<Option<SocketAddr>, String>,
    /// Unix times between which all descriptors of its chain are valid.
    pub valid: Option<Range<u64>>,
    pub keys: Option<KeyFile>,
}

/// A key file and its permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    pub path: PathBuf,
    /// Permission bits and owner; `None` if the file is not accessible.
    pub mode_and_owner: Option<(u32, u32)>,
    /// This user cannot read it.
    pub unreadable: bool,
    /// Users other than its owner can read it.
    pub exposed: bool,
}

impl Subject {
    /// The requirements of `eddy chain`: five nodes on loopback.
    pub fn of_a_chain() -> Subject {
        Subject {
            what: "the nodes of `eddy chain`".to_owned(),
            config: None,
            role: None,
            shape: Shape::new(Class::L, 4).expect("three mixes and an exit are a chain"),
            position: 0,
            workers: 5,
            receive_buffer: RECEIVE_BUFFER,
            receive_buffer_at: None,
            offload: Offload::Auto,
            io: Io::Auto,
            cores: Vec::new(),
            hugepages: true,
            sockets: 8,
            max_sockets: Some(MAX_SOCKETS),
            system_names: true,
            up: None,
            from: Ipv4Addr::LOCALHOST.into(),
            next: Ok(Some((Ipv4Addr::LOCALHOST, 4701).into())),
            valid: None,
            keys: None,
        }
    }

    /// Reads a node's files. Problems with the clock or the permissions of the key file are left to the checks.
    ///
    /// # Errors
    /// A mistake in the files, reported as the node itself would.
    pub fn read(path: &Path) -> Result<Subject, ConfigError> {
        let config = NodeConfig::read(path)?;
        let chain = chain(&config)?;
        config.is_in(&chain)?;
        let keys = keys(&config, &chain)?;
        let (role, lanes) = (config.role(), chain.lanes_at(config.position));

        let next = config.next_address(&chain).map_err(|why| why.to_string());
        let ipv6 = matches!(next, Ok(Some(SocketAddr::V6(_))));
        let any = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let (listeners, max_sockets, system_names) = match &config.part {
            Part::Entry(entry) => (entry.forwards.len() + entry.pymix.len(), None, false),
            Part::Mix { .. } => (0, None, false),
            Part::Exit(exit) => (0, Some(exit.max_sockets), exit.resolver.is_none()),
        };

        let descriptors = chain.nodes.iter().map(|node| &node.descriptor);
        let from = descriptors.clone().map(|descriptor| descriptor.not_before).max();
        let until = descriptors.map(|descriptor| descriptor.not_after).min();

        Ok(Subject {
            what: format!("{} of chain {}", node_name(role, config.position), chain.short_id()),
            config: Some(path.to_owned()),
            role: Some(role),
            shape: chain.shape,
            position: config.position,
            workers: lanes.own,
            receive_buffer: config.receive_buffer,
            receive_buffer_at: config.place("receive_buffer", 0),
            offload: config.offload,
            io: config.io,
            cores: config.cores.clone(),
            hugepages: config.hugepages,
            sockets: lanes.own + lanes.downs() + listeners,
            max_sockets,
            system_names,
            up: config.up,
            from: config.down.map_or(any, |down| down.ip()),
            next,
            valid: from.zip(until).map(|(from, until)| from..until),
            keys: Some(keys),
        })
    }

    /// It is an entry or includes one.
    pub fn has_entry(&self) -> bool {
        self.role.is_none_or(|role| role == NodeRole::Entry)
    }

    /// It is an exit or includes one.
    pub fn has_exit(&self) -> bool {
        self.role.is_none_or(|role| role == NodeRole::Exit)
    }
}

/// Its chain, even if the descriptors are not valid now.
fn chain(config: &NodeConfig) -> Result<Chain, ConfigError> {
    let now = SystemTime::now();
    let other = match config.read_chain(now) {
        Err(ConfigError::Descriptor { why: DescriptorError::NotYet(seconds), .. }) => {
            now.checked_add(Duration::from_secs(seconds.saturating_add(1)))
        }
        Err(ConfigError::Descriptor { why: DescriptorError::Expired(seconds), .. }) => {
            now.checked_sub(Duration::from_secs(seconds.saturating_add(1)))
        }
        done => return done,
    };
    config.read_chain(other.unwrap_or(UNIX_EPOCH))
}

/// Its key file. Wrong permissions are left to the check.
fn keys(config: &NodeConfig, chain: &Chain) -> Result<KeyFile, ConfigError> {
    let metadata = std::fs::metadata(&config.keys).ok();
    let mut file = KeyFile {
        path: config.keys.clone(),
        mode_and_owner: metadata.map(|metadata| (metadata.mode() & 0o7777, metadata.uid())),
        unreadable: false,
        exposed: false,
    };
    match config.read_keys() {
        Ok(keys) => keys.are_of(config, chain)?,
        Err(ConfigError::Exposed { .. }) => file.exposed = true,
        Err(ConfigError::Unreadable { why, .. }) if why.kind() == std::io::ErrorKind::PermissionDenied => {
            file.unreadable = true;
        }
        Err(why) => return Err(why),
    }
    Ok(file)
}
