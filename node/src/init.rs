//! Makes a chain: one public file, and per node a configuration and a key file.
//!
//! Owns the layout of a chain's folder and the text of its files. All keys are made in one place, which suits one
//! operator. With several operators, each gives the others a signed descriptor and keeps the keys.
//!
//! Neighbours: `eddy init` and `eddy chain` write chains with it, and so do tests and benchmarks; [`crate::config`]
//! reads what it writes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::descriptor::{draw_secret, draw_setup, draw_x25519};
use control::{Caps, Descriptor};
use dataplane::exit::policy::Rule;
use dataplane::socket::backend::Io;
use dataplane::socket::offload::Offload;
use dataplane::stage::pool::Mixing;
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Class, Shape};
use wire::kdf::Secret;
use wire::setup::Suite;
use zeroize::Zeroizing;

use crate::config::{
    CHANNELS, ConfigError, Forward, Keys, LIFETIME_S, NodeRole, RECEIVE_BUFFER, RENEW_AFTER_S, Value, check_fits,
    encode_base64, generate, node_name,
};

/// Descriptors are valid for a year.
const VALID: Duration = Duration::from_secs(365 * 24 * 3600);
/// They are valid from an hour before they are made, for clocks that run behind.
const BACKDATED: Duration = Duration::from_secs(3600);

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
    /// The mixes and, last, the exit.
    pub hops: Vec<PlannedHop>,
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
            renew_after_s: RENEW_AFTER_S,
            offload: Offload::Auto,
            receive_buffer: RECEIVE_BUFFER,
            caps: Caps::default(),
            io: Io::Auto,
            lanes: 1,
            hops,
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

/// The files of one node before they are written.
struct Written {
    name: String,
    config: String,
    keys: Zeroizing<String>,
}

/// Makes the keys and writes all files of a chain into `dir`, which is created if it does not exist.
///
/// # Errors
/// The plan is not valid, a file exists and may not be overwritten, or a file cannot be written. Nothing is written
/// before everything else is checked.
pub fn write(dir: &Path, plan: &Plan) -> Result<Files, ConfigError> {
    let h = plan.hops.len();
    let shape = Shape::new(plan.class, h).map_err(|why| ConfigError::Arguments(why.to_string()))?;
    check_fits(shape, plan.hops.iter().any(|hop| hop.address.is_ipv6()))?;
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut seed[..])
        .map_err(|why| ConfigError::Arguments(format!("cannot read random bytes from the system: {why}")))?;
    let mut rng = ChaCha20Rng::from_seed(*seed);
    let chain_id = *draw_secret(&mut rng).expose();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();

    let mut chain_text = chain_head(&chain_id, shape, plan);
    // An entry has no setup keys that anyone uses.
    let entry_keys = Keys::draw(&mut rng, Suite::X25519);
    let mut nodes = vec![Written {
        name: node_name(NodeRole::Entry, 0),
        config: entry_config(plan),
        keys: key_text(NodeRole::Entry, &entry_keys),
    }];
    for (i, hop) in plan.hops.iter().enumerate() {
        let index = i + 1;
        let role = if index == h { NodeRole::Exit } else { NodeRole::Mix };
        let (noise, noise_public) = draw_x25519(&mut rng);
        let setup = draw_setup(&mut rng, plan.suite);
        let setup_public = setup.public();
        let (identity, socks_users) = (draw_secret(&mut rng), BTreeMap::new());
        let keys = Keys { identity, noise, setup, psk_up: None, psk_down: None, socks_users };
        let identity = control::Identity::from_seed(&keys.identity);
        let delay = if role == NodeRole::Mix { plan.mixing.largest_delay() } else { Duration::ZERO };
        let descriptor = Descriptor {
            chain: chain_id,
            position: index as u8,
            hops: h as u8,
            class: plan.class,
            epoch: 1,
            not_before: now.saturating_sub(BACKDATED).as_secs(),
            not_after: (now + VALID).as_secs(),
            noise: noise_public,
            setup: setup_public,
            mixing_delay_ms: delay.as_nanos().div_ceil(1_000_000) as u32,
            lifetime_s: plan.lifetime_s,
            lanes: lanes(hop.address, if role == NodeRole::Mix { plan.lanes } else { 1 })?,
        };
        let signed = descriptor
            .sign(&identity)
            .map_err(|why| ConfigError::Arguments(format!("{} at {}: {why}", node_name(role, index), hop.address)))?;
        let _ = write!(
            chain_text,
            "\n[[node]]\nrole = \"{role}\"\nindex = {index}\nidentity = \"{}\"\naddress = \"{}\"\n\
             descriptor = \"{}\"\n",
            encode_base64(&identity.public()),
            hop.address,
            encode_base64(&signed),
        );
        let config = if role == NodeRole::Mix { mix_config(plan, index) } else { exit_config(plan) };
        nodes.push(Written { name: node_name(role, index), config, keys: key_text(role, &keys) });
    }

    let chain = dir.join("chain.toml");
    let config_path = |node: &Written| dir.join(format!("{}.toml", node.name));
    let key_path = |node: &Written| dir.join(format!("{}.key", node.name));
    if !plan.force {
        let all = nodes.iter().flat_map(|node| [config_path(node), key_path(node)]);
        if let Some(taken) = std::iter::once(chain.clone()).chain(all).find(|path| path.symlink_metadata().is_ok()) {
            return Err(ConfigError::Exists(taken));
        }
    }
    fs::create_dir_all(dir).map_err(|why| ConfigError::Unwritable { path: dir.to_owned(), why })?;
    create(&chain, chain_text.as_bytes(), 0o644)?;
    for node in &nodes {
        create(&config_path(node), node.config.as_bytes(), 0o644)?;
        create(&key_path(node), node.keys.as_bytes(), 0o600)?;
    }
    let mut configs = nodes.iter().map(config_path);
    let entry = configs.next().unwrap_or_default();
    Ok(Files { chain, entry, hops: configs.collect() })
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
fn create(path: &Path, content: &[u8], mode: u32) -> Result<(), ConfigError> {
    let done = match fs::remove_file(path) {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why),
        _ => {
            OpenOptions::new().write(true).create_new(true).mode(mode).open(path).and_then(|mut f| f.write_all(content))
        }
    };
    done.map_err(|why| ConfigError::Unwritable { path: path.to_owned(), why })
}

fn chain_head(id: &[u8; 32], shape: Shape, plan: &Plan) -> String {
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "# The chain's public file: give it to all operators and users.\n\
         id = \"{id}\"\n\
         class = \"{}\"\n\
         hops = {}   # key hops: the mixes and the exit\n\
         suite = {}   # of channel setups: 2 is X25519 with ML-KEM-768, 1 X25519 alone\n\
         mixing = \"{}\"\n\
         lifetime_s = {}   # of a channel\n",
        shape.class(),
        shape.hops(),
        plan.suite,
        plan.mixing,
        plan.lifetime_s,
    )
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
        ("position", set(index.to_string())),
        ("chain", set("\"chain.toml\"".to_owned())),
        ("keys", set(format!("\"{name}.key\""))),
        ("status", set(format!("\"{name}.sock\""))),
        ("receive_buffer", unless_default(&plan.receive_buffer, &RECEIVE_BUFFER, plan.receive_buffer.to_string())),
        ("offload", unless_default(&plan.offload, &Offload::Auto, format!("\"{}\"", plan.offload))),
        ("io", unless_default(&plan.io, &Io::Auto, format!("\"{}\"", plan.io))),
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
    generate(NodeRole::Entry, 0, &values, &entry.forwards, &plan.caps)
}

fn mix_config(plan: &Plan, index: usize) -> String {
    let hop = &plan.hops[index - 1];
    let mut values = common(NodeRole::Mix, index, plan);
    values.push(("up", Value::Set(format!("\"{}\"", hop.address))));
    values.extend(to_next(hop.down, &plan.hops[index]));
    values.push(("mixing", Value::Set(format!("\"{}\"", plan.mixing))));
    generate(NodeRole::Mix, index, &values, &[], &plan.caps)
}

fn exit_config(plan: &Plan) -> String {
    let h = plan.hops.len();
    let mut values = common(NodeRole::Exit, h, plan);
    values.push(("up", Value::Set(format!("\"{}\"", plan.hops[h - 1].address))));
    for (key, rules) in [("allow", &plan.allow), ("deny", &plan.deny), ("trust", &plan.trust)] {
        values.push((key, Value::Set(strings(rules))));
    }
    values.extend(plan.resolver.map(|resolver| ("resolver", Value::Set(format!("\"{resolver}\"")))));
    generate(NodeRole::Exit, h, &values, &[], &plan.caps)
}

fn strings<T: std::fmt::Display>(all: &[T]) -> String {
    let quoted: Vec<String> = all.iter().map(|one| format!("\"{one}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

fn key_text(role: NodeRole, keys: &Keys) -> Zeroizing<String> {
    let line = |secret: &Secret| Zeroizing::new(encode_base64(secret.expose()));
    let mlkem = |key: &[u8]| Zeroizing::new(format!("setup_mlkem = \"{}\"\n", *Zeroizing::new(encode_base64(key))));
    let mlkem = keys.setup.mlkem().map(mlkem).unwrap_or_default();
    let (why, more) = match role {
        NodeRole::Entry => (
            "# An entry does not prove its identity with these keys.\n",
            "\n# Users of its SOCKS ports from other hosts.\n# [socks_users]\n# alice = \"password\"\n",
        ),
        NodeRole::Mix | NodeRole::Exit => ("# Whoever has these can act as this node.\n", ""),
    };
    Zeroizing::new(format!(
        "# Private keys. Only the user who runs the node may read them (mode 0600).\n{why}\
         identity = \"{}\"\nnoise = \"{}\"\nsetup = \"{}\"\n{}{more}",
        *line(&keys.identity),
        *line(&keys.noise),
        *line(keys.setup.x25519()),
        *mlkem,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Loaded, MAX_UNANSWERED, Part};
    use std::os::unix::fs::MetadataExt;

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
            assert_eq!((entry.chain.shape, entry.chain.suite), (Shape::new(class, mixes + 1).unwrap(), suite));
            assert_eq!(entry.next_address().unwrap(), Some(plan.hops[0].address));
            let Part::Entry(part) = &entry.config.part else { panic!("an entry's file") };
            assert_eq!((&part.forwards, part.pymix.len()), (&vec![forward], 1));
            for (i, path) in files.hops.iter().enumerate() {
                let node = Loaded::read(path).unwrap();
                assert_eq!(node.config.position, i + 1);
                assert_eq!(node.config.up, Some(plan.hops[i].address));
                assert_eq!(node.config.renew_after, Duration::from_secs(2));
                assert_eq!((node.config.receive_buffer, node.config.caps), (4096, plan.caps));
                match &node.config.part {
                    Part::Mix { mixing } => assert_eq!(*mixing, plan.mixing),
                    Part::Exit(exit) => {
                        assert_eq!((&exit.allow, &exit.deny, &exit.trust), (&plan.allow, &plan.deny, &plan.trust));
                        assert_eq!(exit.limits.unanswered, Some(MAX_UNANSWERED));
                    }
                    Part::Entry(_) => panic!("a hop's file"),
                }
                let delay = node.chain.node(i + 1).unwrap().descriptor.mixing_delay_ms;
                assert_eq!(delay, if i == mixes { 0 } else { 1000 });
            }
        }
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &plan(3)).unwrap();
        let mut keys = 0;
        for file in fs::read_dir(dir.path()).unwrap().map(Result::unwrap) {
            let mode = file.metadata().unwrap().mode() & 0o777;
            if file.path().extension().is_some_and(|extension| extension == "key") {
                keys += 1;
                assert_eq!(mode, 0o600);
            }
        }
        assert_eq!(keys, 5);
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
