//! The requirements of a node on its host: read from its files, or those of `eddy chain`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use control::trust::{ChainTerms, ClassTerms, SignedDescriptor};
use dataplane::lanes::Lanes;
use dataplane::socket::backend::Io;
use dataplane::socket::offload::Offload;
use wire::cell::{Class, Shape};
use wire::paced::PacedTerms;
use wire::setup::Suite;

use eddy_node::config::{
    ChainFile, ConfigError, LIFETIME_S, Loaded, Location, MAX_SOCKETS, NodeConfig, NodeRole, Part, RECEIVE_BUFFER,
    Terms, node_name,
};
use eddy_node::runtime::running;

/// A node and what it requires.
#[derive(Clone, Debug)]
pub struct Subject {
    /// For people: the node, or the nodes of `eddy chain`.
    pub what: String,
    /// The option that names its file; none for `eddy chain`.
    pub option: Option<String>,
    /// Its role; `None` for a whole chain.
    pub role: Option<NodeRole>,
    /// The classes of its chain.
    pub chain: ChainTerms,
    /// Class and length of its chain.
    pub shape: Shape,
    /// The classes that it serves.
    pub classes: Vec<Terms>,
    /// Why the node would not start, as `eddy config check` says it; `None` where its keys cannot be read.
    pub start: Option<Result<(), String>>,
    /// Entry 0, mixes from 1, then the exit.
    pub position: usize,
    /// Worker threads of all its classes.
    pub workers: usize,
    /// Those of them that are pinned to cores.
    pub pinned: usize,
    /// Bytes requested for link sockets, and for the listening sockets of an entry.
    pub receive_buffer: usize,
    /// The line that sets it, which makes it mandatory.
    pub receive_buffer_at: Option<Location>,
    pub offload: Offload,
    pub io: Io,
    /// The cores that its workers are pinned to, as `cores` of the node and of its classes lists them.
    pub cores: Vec<usize>,
    /// Buffers and channels on huge pages.
    pub hugepages: bool,
    /// Sockets of its own: links and listeners.
    pub sockets: usize,
    /// The most sockets for flows, of an exit.
    pub max_sockets: Option<usize>,
    /// A hop with this paced class, which needs a synchronised clock.
    pub needs_clock: Option<String>,
    /// At a hop: the paced classes of its chain.
    pub paced: Vec<PacedTerms>,
    /// The status socket of the node.
    pub status: Option<PathBuf>,
    /// An exit that uses the name servers of this host.
    pub system_names: bool,
    /// The address for the previous hop.
    pub up: Option<SocketAddr>,
    /// The source address towards the next hop.
    pub from: IpAddr,
    /// The address of the next hop, `None` at an exit; or why it is unknown.
    pub next: Result<Option<SocketAddr>, String>,
    /// The newest descriptors of its chain: name of the hop, whether that is this node, end in seconds since 1970.
    /// Empty for `eddy chain`.
    pub descriptors: Vec<(String, bool, u64)>,
    pub keys: Option<KeyFile>,
    /// Of its classes that listen at another port than the published one: what is wrong.
    pub other_ports: Vec<String>,
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
        let class = ClassTerms { class: Class::L, mixing_delay_ms: 5, lifetime_s: LIFETIME_S };
        let chain = ChainTerms {
            suite: Suite::default(),
            interval_s: 600,
            epoch_s: 3600,
            classes: vec![class],
            paced: Vec::new(),
            identities: vec![[0; 32]; 4],
        };
        Subject {
            what: "the nodes of `eddy chain`".to_owned(),
            option: None,
            role: None,
            classes: vec![Terms::Free(class)],
            chain,
            start: Some(Ok(())),
            shape: Shape::new(Class::L, 4).expect("three mixes and an exit are a chain"),
            position: 0,
            workers: 5,
            pinned: 0,
            receive_buffer: RECEIVE_BUFFER,
            receive_buffer_at: None,
            offload: Offload::Auto,
            io: Io::Auto,
            cores: Vec::new(),
            hugepages: true,
            sockets: 8,
            max_sockets: Some(MAX_SOCKETS),
            needs_clock: None,
            paced: Vec::new(),
            status: None,
            system_names: true,
            up: None,
            from: Ipv4Addr::LOCALHOST.into(),
            next: Ok(Some((Ipv4Addr::LOCALHOST, 4701).into())),
            descriptors: Vec::new(),
            keys: None,
            other_ports: Vec::new(),
        }
    }

    /// Reads a node's files. Descriptors that expire and the permissions of the key file are left to the checks.
    ///
    /// # Errors
    /// A mistake in the files, reported as the node itself would.
    pub fn read(path: &Path) -> Result<Subject, ConfigError> {
        Subject::of(NodeConfig::read(path)?, format!("--config {}", path.display()))
    }

    /// The same of an entry that has nothing but the chain's public file.
    ///
    /// # Errors
    /// A mistake in the file, reported as the entry would.
    pub fn of_entry(chain: &Path) -> Result<Subject, ConfigError> {
        Subject::of(NodeConfig::of_entry(chain), format!("--chain {}", chain.display()))
    }

    fn of(config: NodeConfig, option: String) -> Result<Subject, ConfigError> {
        let (loaded, keys) = load(&config)?;
        let chain = config.read_chain()?;
        let (role, shape) = (config.role(), chain.shape());
        let position = loaded.as_ref().map_or_else(|| likely_position(&config, &chain), |loaded| loaded.position);

        let newest = |hop: usize| match &loaded {
            Some(loaded) => loaded.trust.view.descriptor(hop).map(|newest| newest.content()),
            None => chain.descriptors.get(hop - 1).map(|copy| copy.content()),
        };
        let hops = 1..=chain.descriptors.len();
        // Of each class: its lanes, and the cores for its workers.
        let (classes, next): (Vec<(Lanes, Vec<usize>)>, _) = match &loaded {
            Some(loaded) => {
                let class = loaded.first_class();
                let next = class.next_contact();
                let address = next.map_or(Ok(None), |next| class.next_address(next).map_err(|why| why.to_string()));
                let served = loaded.classes().into_iter();
                (served.map(|class| (class.lanes(class.next_contact()), class.config.cores)).collect(), address)
            }
            None => {
                let lanes_of = |hop: usize, class| {
                    let copy = hops.contains(&hop).then(|| newest(hop)).flatten();
                    copy.and_then(|one| one.contact(class)).map_or(1, |contact| usize::from(contact.lanes))
                };
                let lanes = |class| Lanes { own: lanes_of(position, class), next: lanes_of(position + 1, class) };
                (Terms::of(&chain.terms).map(|terms| (lanes(terms.id()), config.cores.clone())).collect(), Ok(None))
            }
        };
        let ipv6 = matches!(next, Ok(Some(SocketAddr::V6(_))));
        let any = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let (listeners, max_sockets, system_names) = match &config.part {
            Part::Entry(entry) => (entry.forwards.len() + entry.pymix.len(), None, false),
            Part::Mix { .. } => (0, None, false),
            Part::Exit(exit) => (0, Some(exit.max_sockets), exit.resolver.is_none()),
        };
        let accepts_any = role == NodeRole::Entry || config.unsynchronised_clock;
        let needs_clock = chain.terms.paced.first().filter(|_| !accepts_any);
        let start = loaded.as_ref().map(|loaded| running::check(loaded).map(drop).map_err(|why| why.to_string()));
        let terms = match &loaded {
            Some(loaded) => loaded.classes().into_iter().map(|class| class.terms).collect(),
            None => Terms::of(&chain.terms).collect(),
        };
        let until = |hop| Some((node_name(chain.role(hop), hop), hop == position, newest(hop)?.not_after));

        Ok(Subject {
            what: format!("{} of chain {}", node_name(role, position), chain.short_id()),
            option: Some(option),
            role: Some(role),
            shape,
            classes: terms,
            start,
            position,
            workers: classes.iter().map(|(lanes, _)| lanes.own).sum(),
            pinned: classes.iter().filter(|(_, cores)| !cores.is_empty()).map(|(lanes, _)| lanes.own).sum(),
            receive_buffer: config.receive_buffer,
            receive_buffer_at: config.place("receive_buffer", 0),
            offload: config.offload,
            io: config.io,
            cores: classes.iter().flat_map(|(_, cores)| cores.clone()).collect(),
            hugepages: config.hugepages,
            sockets: classes.iter().map(|(lanes, _)| lanes.own + lanes.downs()).sum::<usize>() + listeners,
            max_sockets,
            needs_clock: needs_clock.map(|terms| terms.name.clone()),
            paced: chain.terms.paced.iter().filter(|_| position > 0).cloned().collect(),
            status: config.status.clone(),
            system_names,
            up: config.up,
            from: config.down.map_or(any, |down| down.ip()),
            next,
            descriptors: hops.clone().filter_map(until).collect(),
            keys,
            other_ports: loaded.iter().flat_map(Loaded::classes).filter_map(|class| class.other_port()).collect(),
            chain: chain.terms.clone(),
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

/// All its files, and its key file. Wrong permissions of that are left to the check.
fn load(config: &NodeConfig) -> Result<(Option<Loaded>, Option<KeyFile>), ConfigError> {
    let loaded = Loaded::read_files(config.clone()).and_then(|loaded| {
        // Secrets of meetings are files, too.
        loaded.classes().iter().try_for_each(|class| class.read_meeting().map(drop))?;
        Ok(loaded)
    });
    let Some(path) = config.keys.clone() else { return Ok((Some(loaded?), None)) };
    let metadata = std::fs::metadata(&path).ok();
    let mode_and_owner = metadata.map(|metadata| (metadata.mode() & 0o7777, metadata.uid()));
    let mut file = KeyFile { path, mode_and_owner, unreadable: false, exposed: false };
    match loaded {
        Ok(loaded) => Ok((Some(loaded), Some(file))),
        Err(ConfigError::Exposed { .. }) => {
            file.exposed = true;
            Ok((None, Some(file)))
        }
        Err(ConfigError::Unreadable { why, .. }) if why.kind() == std::io::ErrorKind::PermissionDenied => {
            file.unreadable = true;
            Ok((None, Some(file)))
        }
        Err(why) => Err(why),
    }
}

/// The position of a hop whose keys cannot be read: where its address is published.
fn likely_position(config: &NodeConfig, chain: &ChainFile) -> usize {
    let class = chain.shape().class();
    let is_own = |descriptor: &&SignedDescriptor| {
        let contact = descriptor.contact(class);
        contact.is_some_and(|contact| config.up.is_some_and(|up| contact.addresses.contains(&up)))
    };
    match config.role() {
        NodeRole::Entry => 0,
        NodeRole::Exit => chain.descriptors.len(),
        NodeRole::Mix => chain.descriptors.iter().position(|one| is_own(&one)).map_or(1, |at| at + 1),
    }
}
