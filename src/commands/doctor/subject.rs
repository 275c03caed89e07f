//! What a node asks of its host: read from its files, or what `eddy chain` asks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::descriptor::DescriptorError;
use dataplane::io::calls::Io;
use dataplane::io::offload::Offload;
use wire::cell::{Class, Shape};

use eddy_node::config::{
    Chain, ConfigError, MAX_SOCKETS, NodeConfig, NodeRole, Part, Place, RECEIVE_BUFFER, node_name,
};

/// A node, as far as its host is concerned.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What is looked at, for people.
    pub what: String,
    /// Its configuration; none for `eddy chain`.
    pub config: Option<PathBuf>,
    /// Its role; none: all of a chain.
    pub role: Option<NodeRole>,
    /// Class and length of its chain.
    pub shape: Shape,
    /// Entry 0, mixes from 1, then the exit.
    pub position: usize,
    /// Worker threads.
    pub workers: usize,
    /// Bytes that it asks for on link sockets, and at the entry on listening ones.
    pub receive_buffer: usize,
    /// Where the file asks for them: then it is binding.
    pub receive_buffer_at: Option<Place>,
    /// Whether cells travel in GSO bursts.
    pub offload: Offload,
    /// How cells get into the kernel.
    pub io: Io,
    /// The cores that its workers stay on.
    pub cores: Vec<usize>,
    /// Buffers on huge pages.
    pub hugepages: bool,
    /// Sockets of its own: links and listeners.
    pub sockets: usize,
    /// An exit's sockets for flows at most.
    pub max_sockets: Option<usize>,
    /// An exit that asks the name servers of this host.
    pub system_names: bool,
    /// Where it receives from the previous hop.
    pub up: Option<SocketAddr>,
    /// The address that it sends to the next hop from.
    pub from: IpAddr,
    /// Where its next hop is; none at an exit; or why that is not known.
    pub next: Result<Option<SocketAddr>, String>,
    /// Seconds since 1970 in which all descriptors of its chain are valid.
    pub valid: Option<Range<u64>>,
    /// Its key file.
    pub keys: Option<KeyFile>,
}

/// A key file as it lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyFile {
    /// Where.
    pub path: PathBuf,
    /// Its permission bits, and its owner; none if it cannot be looked at.
    pub mode_and_owner: Option<(u32, u32)>,
    /// Why this user cannot read it, if that is all that is wrong.
    pub unreadable: bool,
    /// Others than its owner may read it.
    pub exposed: bool,
}

impl Subject {
    /// What `eddy chain` asks for: five nodes on loopback.
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

    /// Reads a node's files. What is wrong with the host, its clock or the key file's mode is no mistake here.
    ///
    /// # Errors
    /// A mistake in the files, as the node itself would say it.
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

    /// Whether it is an entry or has one.
    pub fn has_entry(&self) -> bool {
        self.role.is_none_or(|role| role == NodeRole::Entry)
    }

    /// Whether it is an exit or has one.
    pub fn has_exit(&self) -> bool {
        self.role.is_none_or(|role| role == NodeRole::Exit)
    }
}

/// Its chain, whatever this host's clock says.
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

/// Its key file. One that another user owns, or that others may read, is for the check to tell.
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
