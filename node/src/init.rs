//! Makes a whole chain on one host: what `eddy keygen` and `eddy assemble` do, for all of its nodes at once.
//!
//! Owns the layout of such a chain's folder and the configurations in it. Whoever runs it holds every private key, so
//! the chain protects its users from others only.
//!
//! Neighbours: `eddy init` and `eddy chain` write chains with it, and so do tests and benchmarks; [`crate::ceremony`]
//! draws the keys; [`crate::config`] reads what it writes.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use control::Caps;
use control::trust::{ChainTerms, ClassTerms, Contact, HopRole, SignedDescriptor};
use dataplane::exit::policy::Rule;
use dataplane::socket::backend::Io;
use dataplane::socket::offload::Offload;
use dataplane::stage::pool::Mixing;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Class, Shape};
use wire::ids::ClassId;
use wire::paced::PacedTerms;
use wire::setup::Suite;
use zeroize::Zeroizing;

use crate::ceremony::VALID_DAYS;
use crate::ceremony::assemble::{EPOCH_S, INTERVAL_S};
use crate::ceremony::keygen::{self, Drawn, Names};
use crate::config::{
    CHANNELS, ChainFile, ConfigError, Forward, LIFETIME_S, NodeRole, RECEIVE_BUFFER, RENEW_AFTER_S, Value, check_fits,
    generate, node_name, wall_s,
};

/// A planned chain.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Size class.
    pub class: Class,
    /// Algorithms of its channel setups.
    pub suite: Suite,
    /// Mixing strategy of all mixes.
    pub mixing: Mixing,
    /// Lifetime of its channels in seconds, 60 to 3600.
    pub lifetime_s: u16,
    /// Seconds between two bundles of setup keys.
    pub interval_s: u32,
    /// Seconds for which hops keep their setup keys.
    pub epoch_s: u32,
    /// Seconds after which links are renewed.
    pub renew_after_s: u64,
    /// GSO and GRO on link sockets.
    pub offload: Offload,
    /// Receive buffer of link sockets, in bytes.
    pub receive_buffer: usize,
    /// Bounds of admission at mixes and exit.
    pub caps: Caps,
    /// System calls of link sockets.
    pub io: Io,
    /// Lanes of each mix, 1 to 64: consecutive ports from its address on.
    pub lanes: usize,
    /// Mixes start although their links have several lanes.
    pub lanes_show_label_bits: bool,
    /// The mixes and, last, the exit.
    pub hops: Vec<PlannedHop>,
    /// Its paced classes, by ascending number.
    pub paced: Vec<PlannedClass>,
    /// The entry.
    pub entry: PlannedEntry,
    /// Closed destinations that the exit opens.
    pub allow: Vec<Rule>,
    /// Public destinations that the exit closes.
    pub deny: Vec<Rule>,
    /// Destinations without limits.
    pub trust: Vec<Rule>,
    /// Name server of the exit; the system's if not set.
    pub resolver: Option<SocketAddr>,
    /// Overwrite existing files.
    pub force: bool,
}

/// A planned mix or exit.
#[derive(Clone, Copy, Debug)]
pub struct PlannedHop {
    /// The address that the previous hop sends to.
    pub address: SocketAddr,
    /// Local address of the link to the next hop; unused at the exit.
    pub down: SocketAddr,
}

/// A planned paced class.
#[derive(Clone, Debug)]
pub struct PlannedClass {
    pub terms: PacedTerms,
    /// The address of each hop that the previous one sends to, in the order of the hops.
    pub addresses: Vec<SocketAddr>,
}

/// A planned entry.
#[derive(Clone, Debug)]
pub struct PlannedEntry {
    /// Local address of the link to Mix 1.
    pub down: SocketAddr,
    /// Channels to keep open.
    pub channels: usize,
    /// Its forwards.
    pub forwards: Vec<Forward>,
    /// Its pymix ports.
    pub pymix: Vec<SocketAddr>,
    /// Its SOCKS ports.
    pub socks: Vec<SocketAddr>,
}

impl Plan {
    /// A chain over these addresses, Mix 1 first and the exit last, with all defaults.
    pub fn new(addresses: &[SocketAddr]) -> Plan {
        let downs = addresses.iter().skip(1).chain(addresses.last()).map(any_like);
        let hops = addresses.iter().zip(downs).map(|(&address, down)| PlannedHop { address, down }).collect();
        Plan {
            class: Class::L,
            suite: Suite::default(),
            mixing: Mixing::default(),
            lifetime_s: LIFETIME_S,
            interval_s: INTERVAL_S,
            epoch_s: EPOCH_S,
            renew_after_s: RENEW_AFTER_S,
            offload: Offload::Auto,
            receive_buffer: RECEIVE_BUFFER,
            caps: Caps::default(),
            io: Io::Auto,
            lanes: 1,
            lanes_show_label_bits: false,
            hops,
            paced: Vec::new(),
            entry: PlannedEntry {
                down: addresses.first().map_or(SocketAddr::from(([0; 4], 0)), any_like),
                channels: CHANNELS,
                forwards: Vec::new(),
                pymix: Vec::new(),
                socks: Vec::new(),
            },
            allow: Vec::new(),
            deny: Vec::new(),
            trust: Vec::new(),
            resolver: None,
            force: false,
        }
    }
}

impl Plan {
    /// All hops have one clock.
    fn is_on_loopback(&self) -> bool {
        self.hops.iter().all(|hop| hop.address.ip().is_loopback())
    }

    fn role(&self, hop: usize) -> NodeRole {
        if hop == self.hops.len() { NodeRole::Exit } else { NodeRole::Mix }
    }
}

/// Any port of any address of the same family.
fn any_like(address: &SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

/// The files of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// `chain.toml`.
    pub chain: PathBuf,
    /// The entry's configuration.
    pub entry: PathBuf,
    /// The configurations of the mixes and, last, of the exit.
    pub hops: Vec<PathBuf>,
}

/// Draws the keys of all nodes, assembles the chain, and writes all files into `dir`, which is created if it does not
/// exist.
///
/// # Errors
/// The plan is not valid, a file exists and may not be overwritten, or a file cannot be written. Nothing is written
/// before everything else is checked.
pub fn write(dir: &Path, plan: &Plan) -> Result<Files, ConfigError> {
    let h = plan.hops.len();
    let shape = Shape::new(plan.class, h).map_err(|why| ConfigError::Arguments(why.to_string()))?;
    check_fits(shape, plan.hops.iter().any(|hop| hop.address.is_ipv6()))?;
    let now_s = wall_s();
    let drawn = (1..=h).map(|hop| draw_hop(plan, hop, now_s)).collect::<Result<Vec<_>, _>>()?;
    let chain = chain_of(plan, drawn.iter().map(|node| node.descriptor.clone()).collect())?;
    let (chain_path, chain_text) = (dir.join("chain.toml"), chain.text());
    // Whatever is written must load.
    ChainFile::parse(&chain_path, &chain_text, now_s)?;

    let names = |hop| Names::among_others(&node_name(chain.role(hop), hop));
    let entry = dir.join("entry.toml");
    if !plan.force {
        let of_hops = (1..=h).flat_map(|hop| names(hop).all().map(|name| dir.join(name)));
        let all = [chain_path.clone(), entry.clone()].into_iter().chain(of_hops);
        if let Some(taken) = all.into_iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(ConfigError::Exists(taken));
        }
    }
    fs::create_dir_all(dir).map_err(|why| ConfigError::Unwritable { path: dir.to_owned(), why })?;
    create(&chain_path, chain_text.as_bytes(), 0o644)?;
    create(&entry, entry_config(plan).as_bytes(), 0o644)?;
    let _ = fs::remove_file(entry.with_extension("state"));
    for (node, hop) in drawn.iter().zip(1..) {
        let config = if hop == h { exit_config(plan) } else { mix_config(plan, hop) };
        node.write(dir, &names(hop), &config)?;
    }
    let hops = (1..=h).map(|hop| dir.join(names(hop).config)).collect();
    Ok(Files { chain: chain_path, entry, hops })
}

/// Draws the keys of a mix or the exit.
fn draw_hop(plan: &Plan, hop: usize, now_s: u64) -> Result<Drawn, ConfigError> {
    let is_exit = hop == plan.hops.len();
    let count = if is_exit { 1 } else { plan.lanes };
    let address = plan.hops[hop - 1].address;
    lanes(address, count)?;
    let of_class =
        |class: ClassId, lanes, address| Contact { class, lanes, addresses: vec![address], names: Vec::new() };
    let mut contacts = vec![of_class(plan.class.into(), count as u8, address)];
    for PlannedClass { terms, addresses } in &plan.paced {
        let address = *addresses.get(hop - 1).ok_or_else(|| {
            ConfigError::Arguments(format!(
                "class {} has no address for {}",
                terms.name,
                node_name(plan.role(hop), hop)
            ))
        })?;
        lanes(address, 1)?;
        contacts.push(of_class(terms.class.into(), 1, address));
    }
    let node = keygen::Plan {
        role: if is_exit { HopRole::Exit } else { HopRole::Mix },
        contacts,
        days: VALID_DAYS,
        force: plan.force,
    };
    keygen::draw(&node, now_s)
}

/// The chain of these hops.
fn chain_of(plan: &Plan, descriptors: Vec<SignedDescriptor>) -> Result<ChainFile, ConfigError> {
    let class = ClassTerms {
        class: plan.class,
        mixing_delay_ms: plan.mixing.largest_delay().as_nanos().div_ceil(1_000_000) as u32,
        lifetime_s: plan.lifetime_s,
    };
    let terms = ChainTerms {
        suite: plan.suite,
        interval_s: plan.interval_s,
        epoch_s: plan.epoch_s,
        classes: vec![class],
        paced: plan.paced.iter().map(|class| class.terms.clone()).collect(),
        identities: descriptors.iter().map(|descriptor| descriptor.identity).collect(),
    };
    terms.check().map_err(|why| ConfigError::Arguments(why.to_string()))?;
    Ok(ChainFile { id: terms.id(), terms, descriptors })
}

/// A generator seeded by the system.
pub(crate) fn seeded_rng() -> Result<ChaCha20Rng, ConfigError> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut seed[..])
        .map_err(|why| ConfigError::Arguments(format!("cannot read random bytes from the system: {why}")))?;
    Ok(ChaCha20Rng::from_seed(*seed))
}

/// The addresses of `count` lanes, from the first one on.
///
/// # Errors
/// Nothing can be sent to the address, or the ports of its lanes would go beyond 65535.
pub fn lanes(address: SocketAddr, count: usize) -> Result<Vec<SocketAddr>, ConfigError> {
    let wrong = |expected: &str| ConfigError::Arguments(format!("invalid node address {address}: expected {expected}"));
    if address.port() == 0 {
        return Err(wrong("a port from 1 to 65535"));
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(wrong("an address that the previous hop can send to"));
    }

    let all: Option<Vec<_>> = (0..count).map(|lane| dataplane::lanes::address(address, lane)).collect();
    all.ok_or_else(|| {
        let last = 65_536 - count;
        wrong(&format!("a port of at most {last}, because {count} lanes need consecutive ports"))
    })
}

/// Writes a new file with these permissions. An existing file is removed and not reused, because its permissions may be
/// wider.
pub(crate) fn create(path: &Path, content: &[u8], mode: u32) -> Result<(), ConfigError> {
    let done = match fs::remove_file(path) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why),
        _ => {
            OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut f| f.write_all(content))
        }
    };
    done.map_err(|why| ConfigError::Unwritable { path: path.to_owned(), why })
}

/// A value that is set only if it is not the default.
fn unless_default<T: PartialEq>(value: &T, default: &T, text: String) -> Option<Value> {
    (value != default).then_some(Value::Set(text))
}

/// The keys that all nodes have.
fn common(role: NodeRole, index: usize, plan: &Plan) -> Vec<(&'static str, Value)> {
    let name = node_name(role, index);
    let set = |text: String| Some(Value::Set(text));
    let all = [
        ("role", set(format!("\"{role}\""))),
        ("chain", set("\"chain.toml\"".to_owned())),
        ("keys", (role != NodeRole::Entry).then(|| Value::Set(format!("\"{name}.key\"")))),
        ("state", Some(Value::Hint(format!("\"{name}.state\"")))),
        ("status", set(format!("\"{name}.sock\""))),
        ("receive_buffer", unless_default(&plan.receive_buffer, &RECEIVE_BUFFER, plan.receive_buffer.to_string())),
        ("offload", unless_default(&plan.offload, &Offload::Auto, format!("\"{}\"", plan.offload))),
        ("io", unless_default(&plan.io, &Io::Auto, format!("\"{}\"", plan.io))),
        (
            "unsynchronised_clock",
            (role != NodeRole::Entry && !plan.paced.is_empty() && plan.is_on_loopback())
                .then(|| Value::Set("true".to_owned())),
        ),
        ("renew_after_s", unless_default(&plan.renew_after_s, &RENEW_AFTER_S, plan.renew_after_s.to_string())),
    ];
    all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

/// The keys of the link to the next hop.
fn to_next(down: SocketAddr, next: &PlannedHop) -> [(&'static str, Value); 2] {
    let next = format!("\"{}\"", next.address);
    [("down", Value::Set(format!("\"{down}\""))), ("next", Value::Hint(next))]
}

fn entry_config(plan: &Plan) -> String {
    let entry = &plan.entry;
    let mut values = common(NodeRole::Entry, 0, plan);
    values.extend(to_next(entry.down, &plan.hops[0]));
    values.push(("channels", Value::Set(entry.channels.to_string())));
    values.push(("commands", Value::Set("\"entry.cmd\"".to_owned())));
    for (key, addresses) in [("pymix", &entry.pymix), ("socks", &entry.socks)] {
        if !addresses.is_empty() {
            values.push((key, Value::Set(strings(addresses))));
        }
    }
    generate(NodeRole::Entry, &node_name(NodeRole::Entry, 0), &values, &entry.forwards, &plan.caps)
}

fn mix_config(plan: &Plan, index: usize) -> String {
    let hop = &plan.hops[index - 1];
    let mut values = common(NodeRole::Mix, index, plan);
    values.push(("up", Value::Set(format!("\"{}\"", hop.address))));
    values.extend(to_next(hop.down, &plan.hops[index]));
    values.push(("mixing", Value::Set(format!("\"{}\"", plan.mixing))));
    let shows = plan.lanes_show_label_bits;
    values.extend(unless_default(&shows, &false, shows.to_string()).map(|value| ("lanes_show_label_bits", value)));
    generate(NodeRole::Mix, &node_name(NodeRole::Mix, index), &values, &[], &plan.caps)
}

fn exit_config(plan: &Plan) -> String {
    let h = plan.hops.len();
    let mut values = common(NodeRole::Exit, h, plan);
    values.push(("up", Value::Set(format!("\"{}\"", plan.hops[h - 1].address))));
    for (key, rules) in [("allow", &plan.allow), ("deny", &plan.deny), ("trust", &plan.trust)] {
        values.push((key, Value::Set(strings(rules))));
    }
    values.extend(plan.resolver.map(|resolver| ("resolver", Value::Set(format!("\"{resolver}\"")))));
    generate(NodeRole::Exit, &node_name(NodeRole::Exit, h), &values, &[], &plan.caps)
}

fn strings<T: std::fmt::Display>(all: &[T]) -> String {
    let quoted: Vec<String> = all.iter().map(|one| format!("\"{one}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Loaded, MAX_UNANSWERED, Part};
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    fn plan(mixes: usize) -> Plan {
        let addresses: Vec<SocketAddr> =
            (0..=mixes).map(|i| SocketAddr::from(([127, 0, 0, 1], 4701 + i as u16))).collect();
        Plan::new(&addresses)
    }

    #[test]
    fn every_node_reads_the_files_of_init() {
        let chains = [(Class::S, 1, Suite::X25519), (Class::L, 3, Suite::Hybrid), (Class::M, 7, Suite::Hybrid)];
        for (class, mixes, suite) in chains {
            let dir = tempfile::tempdir().unwrap();
            let forward: Forward = "127.0.0.1:5000=example.org:53".parse().unwrap();
            let mut plan = Plan { class, suite, allow: vec!["127.0.0.0/8".parse().unwrap()], ..plan(mixes) };
            plan.deny.push("::/0".parse().unwrap());
            plan.trust.push("127.0.0.1:9".parse().unwrap());
            plan.mixing = "threshold:n=5".parse().unwrap();
            plan.entry.forwards.push(forward.clone());
            plan.entry.pymix.push("127.0.0.1:5001".parse().unwrap());
            plan.renew_after_s = 2;
            plan.receive_buffer = 4096;
            plan.caps = Caps { channels: 100_000, links: 7, ..Caps::default() };
            let files = write(dir.path(), &plan).unwrap();
            let entry = Loaded::read(&files.entry).unwrap();
            assert_eq!(entry.shape(), Shape::new(class, mixes + 1).unwrap());
            assert_eq!((entry.chain.terms.suite, entry.chain.terms.classes[0].mixing_delay_ms), (suite, 1000));
            assert_eq!(entry.first_class().next_contact().unwrap().addresses, [plan.hops[0].address]);
            let Part::Entry(part) = &entry.config.part else { panic!("an entry's file") };
            assert_eq!((&part.forwards, part.pymix.len()), (&vec![forward], 1));
            for (i, path) in files.hops.iter().enumerate() {
                let node = Loaded::read(path).unwrap();
                assert_eq!((node.position, node.warnings), (i + 1, Vec::<String>::new()));
                assert_eq!(node.config.up, Some(plan.hops[i].address));
                assert_eq!(node.config.renew_after, Duration::from_secs(2));
                assert_eq!((node.config.receive_buffer, node.config.caps), (4096, plan.caps));
                match &node.config.part {
                    Part::Mix { mixing, .. } => assert_eq!(*mixing, plan.mixing),
                    Part::Exit(exit) => {
                        assert_eq!((&exit.allow, &exit.deny, &exit.trust), (&plan.allow, &plan.deny, &plan.trust));
                        assert_eq!(exit.limits.unanswered, Some(MAX_UNANSWERED));
                    }
                    Part::Entry(_) => panic!("a hop's file"),
                }
            }
        }
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &plan(3)).unwrap();
        let mut private = 0;
        for file in fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
            let mode = file.metadata().unwrap().mode() & 0o777;
            if file.path().extension().is_some_and(|extension| extension == "key" || extension == "state") {
                private += 1;
                assert_eq!(mode, 0o600);
            }
        }
        assert_eq!(private, 4 * 3);
    }

    #[test]
    fn nothing_is_overwritten_unless_forced() {
        let dir = tempfile::tempdir().unwrap();
        let taken = dir.path().join("mix2.key");
        fs::write(&taken, "precious").unwrap();
        let refused = write(dir.path(), &plan(3)).unwrap_err();
        assert!(matches!(&refused, ConfigError::Exists(path) if *path == taken), "{refused}");
        assert!(!dir.path().join("chain.toml").exists());
        write(dir.path(), &Plan { force: true, ..plan(3) }).unwrap();
        assert_eq!(fs::metadata(&taken).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn plan_sends_from_the_address_family_of_the_next_hop() {
        let plan = Plan::new(&["192.0.2.1:1".parse().unwrap(), "[2001:db8::1]:2".parse().unwrap()]);
        assert!(plan.entry.down.is_ipv4());
        assert!(plan.hops[0].down.is_ipv6());
    }
}
