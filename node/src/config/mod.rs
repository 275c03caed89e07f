//! The configuration: the chain's public file, and per node a configuration, a key file and a state file.
//!
//! Owns the kinds of TOML files, the table of their keys ([`table`]) and every message about them ([`ConfigError`]).
//! Refuses unknown keys, and files that do not fit together. Opens no sockets.
//!
//! Neighbours: [`crate::init`] writes the files, the command loads them, [`crate::runtime::node`] runs a node from
//! them.

mod caps;
mod chain;
pub(crate) mod class_name;
mod error;
mod generate;
pub(crate) mod keys;
mod loaded;
mod node;
pub(crate) mod served;
mod show;
pub(crate) mod source;
pub mod table;
mod table_node;
pub(crate) mod table_trust;
mod target;
mod trust_files;

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use wire::cell::{Class, Shape};

pub use caps::values as caps_values;
pub use chain::ChainFile;
pub use class_name::{ClassName, NotAClassName, Payload, Terms};
pub use error::in_words;
pub use error::{ConfigError, Location};
pub use generate::{Value, generate};
pub use keys::{SocksUsers, create_meeting, draw_meeting, is_user, parse_users, read_meeting};
pub use loaded::{Found, Loaded, Psks};
pub(crate) use loaded::{refusal, replaced};
pub use node::{COMMAND_LINE, EntryPart, ExitPart, Forward, NodeConfig, Part};
pub use node::{parse_idle, parse_max_age};
pub use served::{ClassConfig, ServedClass, queue_age};
pub use show::{Setting, effective, effective_toml};
pub use source::{encode_base64, nearest};
pub use target::{NotATarget, Target, without_secret};
pub(crate) use trust_files::sync_folder;
pub use trust_files::{TrustFiles, wall_s};

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
/// Milliseconds that a datagram or cell may wait in a node unless configured.
pub const MAX_AGE_MS: u64 = 250;
/// The least and the most that may be configured. A worker has its turns at least twice in this time.
pub(crate) const MAX_AGE_MS_RANGE: (i64, i64) = (20, 3_600_000);
/// The largest floor of the anonymity meter's alarm: more channels than a pool holds cells.
pub(crate) const METER_FLOOR_MAX: u32 = 10_000;
/// Flows of one channel at an exit unless configured.
pub const MAX_FLOWS_PER_CHANNEL: usize = 1024;
/// Datagrams that an exit sends to an address that has not answered, unless configured.
pub const MAX_UNANSWERED: u32 = 1000;
/// Datagrams a second of a flow at an exit, each way, unless configured.
pub const MAX_FLOW_RATE: u32 = 100_000;
/// Names that an exit resolves per second, for all channels, unless configured otherwise.
pub const MAX_NAME_RATE: u32 = 200;
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
        let text = without_secret(text);
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
