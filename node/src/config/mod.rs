//! The configuration: the chain's public file, and per node a configuration and a key file.
//!
//! Owns the three kinds of TOML files, the table of their keys ([`table`]) and every message about them
//! ([`ConfigError`]). Refuses unknown keys, and files that do not fit together. Opens no sockets.
//!
//! Neighbours: [`crate::init`] writes the files, the command loads them, [`crate::runtime::node`] runs a node from
//! them.

mod caps;
mod chain;
mod error;
mod generate;
mod keys;
mod node;
mod show;
mod source;
pub mod table;

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::SystemTime;

use dataplane::lanes::Lanes;
use serde::{Deserialize, Serialize};
use wire::cell::{Class, Shape};

pub use caps::values as caps_values;
pub use chain::{Chain, ChainNode};
pub use error::in_words;
pub use error::{ConfigError, Location};
pub use generate::{Value, generate};
pub use keys::Keys;
pub use node::parse_idle;
pub use node::{EntryPart, ExitPart, Forward, NodeConfig, Part};
pub use show::{Setting, effective, effective_toml};
pub use source::{encode_base64, nearest};

/// Receive windows unless configured.
pub const WINDOW: usize = 4096;
/// Receive buffer of link sockets in bytes unless configured.
pub const RECEIVE_BUFFER: usize = 8 << 20;
/// Seconds after which a link is renewed unless configured.
pub const RENEW_AFTER_S: u64 = 120;
/// Channels that an entry keeps unless configured.
pub const CHANNELS: usize = 4;
/// Seconds after which an idle flow is closed unless configured.
pub const FLOW_IDLE_S: u64 = 300;
/// Flows of one channel at an exit unless configured.
pub const MAX_FLOWS_PER_CHANNEL: usize = 1024;
/// Datagrams that an exit sends to an address that has not answered, unless configured.
pub const MAX_UNANSWERED: u32 = 1000;
/// Datagrams a second of a flow at an exit, each way, unless configured.
pub const MAX_FLOW_RATE: u32 = 100_000;
/// Datagrams a second of one address at an exit, each way, unless configured.
pub const MAX_DESTINATION_RATE: u32 = 200_000;
/// Sockets of an exit unless configured.
pub const MAX_SOCKETS: usize = 4096;
/// Lifetime of a channel in seconds unless configured.
pub const LIFETIME_S: u16 = 3600;
/// Longest UDP payload that a 1500-byte path carries over IPv4, and over IPv6.
pub const PAYLOAD_MAX: [usize; 2] = [1472, 1452];

/// The role of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// The first node: applications send to it.
    Entry,
    /// A node between entry and exit.
    Mix,
    /// The last node: it sends to destinations.
    Exit,
}

impl NodeRole {
    /// Its name, which is also the command that runs it.
    pub const fn name(self) -> &'static str {
        match self {
            NodeRole::Entry => "entry",
            NodeRole::Mix => "mix",
            NodeRole::Exit => "exit",
        }
    }

    /// "an entry", "a mix", "an exit".
    pub const fn with_article(self) -> &'static str {
        match self {
            NodeRole::Entry => "an entry",
            NodeRole::Mix => "a mix",
            NodeRole::Exit => "an exit",
        }
    }

    /// The role at a position of a chain with this number of key hops.
    pub fn at(position: usize, hops: usize) -> Option<NodeRole> {
        match position {
            0 => Some(NodeRole::Entry),
            p if p < hops => Some(NodeRole::Mix),
            p if p == hops => Some(NodeRole::Exit),
            _ => None,
        }
    }
}

impl fmt::Display for NodeRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name of a node in files, tables and logs: `entry`, `mix1`, `exit`.
pub fn node_name(role: NodeRole, index: usize) -> String {
    match role {
        NodeRole::Mix => format!("mix{index}"),
        NodeRole::Entry | NodeRole::Exit => role.to_string(),
    }
}

/// A node's three files, read and checked against each other.
pub struct Loaded {
    /// Its own configuration.
    pub config: NodeConfig,
    /// The chain, all descriptors verified.
    pub chain: Chain,
    /// Its keys.
    pub keys: Keys,
}

impl Loaded {
    /// The lanes of its links.
    pub fn lanes(&self) -> Lanes {
        self.chain.lanes_at(self.config.position)
    }

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
        let chain = config.read_chain(SystemTime::now())?;
        let keys = config.read_keys()?;
        config.is_in(&chain)?;
        keys.are_of(&config, &chain)?;
        Ok(Loaded { config, chain, keys })
    }

    /// The address of the next hop: `next` of the configuration, or its first lane. `None` at the exit.
    ///
    /// # Errors
    /// A name that does not resolve.
    pub fn next_address(&self) -> Result<Option<SocketAddr>, ConfigError> {
        self.config.next_address(&self.chain)
    }
}

/// A configuration and the files that it names.
impl NodeConfig {
    /// `error` of reading a file that `key` names, which must be `must`.
    fn named(&self, key: &str, must: &str, error: ConfigError) -> ConfigError {
        match error {
            ConfigError::Unreadable { path, why, .. } => {
                let remedy = format!("`{key}` in {} must name {must}", self.place_of(key));
                ConfigError::Unreadable { path, why, remedy }
            }
            other => other,
        }
    }

    /// Reads its chain; descriptors must be valid at the time `wall`.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read_chain(&self, wall: SystemTime) -> Result<Chain, ConfigError> {
        Chain::read(&self.chain, wall)
            .map_err(|why| self.named("chain", "the chain's public file, chain.toml as `eddy init` writes it", why))
    }

    /// Reads its keys.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read_keys(&self) -> Result<Keys, ConfigError> {
        Keys::read(&self.keys)
            .map_err(|why| self.named("keys", "the key file of this node, owned by the user who runs eddy", why))
    }

    /// Checks that its position is in the chain, and that its mixing keeps the promise of its descriptor.
    ///
    /// # Errors
    /// The first mismatch, with its remedy.
    pub fn is_in(&self, chain: &Chain) -> Result<(), ConfigError> {
        let config = self;
        let hops = chain.shape.hops();
        let wrong =
            |key: &str, what: String, remedy: String| ConfigError::Value { at: self.place_of(key), what, remedy };
        if NodeRole::at(config.position, hops) != Some(config.role()) {
            let right = match config.role() {
                NodeRole::Entry => "0".to_owned(),
                NodeRole::Mix if hops == 2 => "1".to_owned(),
                NodeRole::Mix => format!("1 to {}", hops - 1),
                NodeRole::Exit => hops.to_string(),
            };
            return Err(wrong(
                "position",
                format!(
                    "position must be {right} for {} in this chain (got {})",
                    config.role().with_article(),
                    config.position
                ),
                "correct the position, or `role`".to_owned(),
            ));
        }

        // The entry computes its timeouts from the promised delays.
        if let Some(own) = chain.node(config.position) {
            let promised = u128::from(own.descriptor.mixing_delay_ms);
            if let Part::Mix { mixing } = &config.part
                && mixing.largest_delay().as_nanos() > promised * 1_000_000
            {
                return Err(wrong(
                    "mixing",
                    format!(
                        "mixing = \"{mixing}\" may hold cells longer than the {promised} ms that the descriptor promises"
                    ),
                    format!("use a shorter delay, or make the chain again with `eddy init --mixing {mixing}`"),
                ));
            }
        }
        Ok(())
    }

    /// See [`Loaded::next_address`].
    ///
    /// # Errors
    /// A name that does not resolve.
    pub fn next_address(&self, chain: &Chain) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(hop) = chain.node(self.position + 1) else { return Ok(None) };
        match &self.next {
            None => Ok(Some(hop.address)),
            Some(next) => {
                let found = next.to_socket_addrs().ok().and_then(|mut all| all.next());
                found.map(Some).ok_or_else(|| ConfigError::Value {
                    at: self.place_of("next"),
                    what: format!("next = \"{next}\" does not resolve"),
                    remedy: "check the name, write the next hop's address as IP:PORT, or fix this host's name \
                             resolution"
                        .into(),
                })
            }
        }
    }
}

/// Refuses a chain whose longest cell does not fit a path of 1500 bytes.
///
/// # Errors
/// It does not fit; the message names a chain that does.
pub fn check_fits(shape: Shape, ipv6: bool) -> Result<(), ConfigError> {
    let limit = PAYLOAD_MAX[usize::from(ipv6)];
    if shape.longest_cell() <= limit {
        return Ok(());
    }
    let fits = |hops: &usize| Shape::new(shape.class(), *hops).is_ok_and(|s| s.longest_cell() <= limit);
    let mixes = (2..shape.hops()).rev().find(fits).map_or(0, |hops| hops - 1);
    Err(ConfigError::TooLong {
        class: shape.class(),
        mixes: shape.hops() - 1,
        family: if ipv6 { "IPv6" } else { "IPv4" },
        cell: shape.longest_cell(),
        limit,
        fits: mixes,
        smaller: if shape.class() == Class::L { Class::M } else { Class::S },
    })
}

/// Reads a listen address: `IP:PORT`, `[IPv6]:PORT`, or `PORT` on 127.0.0.1.
///
/// # Errors
/// Any other text; the message has the forms.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    text.parse().map_err(|_| {
        format!("invalid listen address {text:?}: expected IP:PORT, [IPv6]:PORT or PORT, e.g. 127.0.0.1:5000")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_listens_on_loopback() {
        assert_eq!(parse_listen("5000").unwrap(), "127.0.0.1:5000".parse().unwrap());
        assert_eq!(parse_listen("[::1]:5000").unwrap(), "[::1]:5000".parse().unwrap());
        assert!(parse_listen("localhost:5000").is_err());
    }

    #[test]
    fn too_long_cells_are_refused_with_a_chain_that_fits() {
        let shape = |class, mixes: usize| Shape::new(class, mixes + 1).unwrap();
        assert!(check_fits(shape(Class::L, 7), false).is_ok());
        assert!(check_fits(shape(Class::L, 5), true).is_ok());
        assert!(check_fits(shape(Class::M, 7), true).is_ok());
        let message = check_fits(shape(Class::L, 6), true).unwrap_err().to_string();
        assert!(
            message.contains("1456") && message.contains("--mixes 5") && message.contains("--class M"),
            "{message}"
        );
    }
}
