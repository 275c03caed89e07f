//! A running node: control and data plane joined. This file is a placeholder for its interface.

use std::net::UdpSocket;

use dataplane::entry::Listener;

pub use crate::config::NodeRole;
use crate::config::{Chain, Keys, NodeConfig};
use crate::report::NodeReport;

/// What a node is started with.
pub struct NodeSpec {
    /// What it is.
    pub role: NodeRole,
    /// The chain, verified.
    pub chain: Chain,
    /// Entry 0, then the mixes, then the exit.
    pub position: usize,
    /// Its configuration, with what the command line adds.
    pub config: NodeConfig,
    /// Its keys.
    pub keys: Keys,
    /// Its sockets, bound.
    pub sockets: Sockets,
}

/// A node's sockets, bound.
pub struct Sockets {
    /// Towards the entry; none at the entry.
    pub up: Option<UdpSocket>,
    /// Towards the exit; none at the exit.
    pub down: Option<UdpSocket>,
    /// An entry's ports for applications.
    pub listeners: Vec<(UdpSocket, Listener)>,
}

/// Running threads.
pub struct Node {}

#[allow(clippy::unimplemented)]
impl Node {
    /// Starts the threads.
    ///
    /// # Errors
    /// The specification contradicts itself, or the system refuses a socket option or a thread.
    pub fn start(_spec: NodeSpec) -> anyhow::Result<Node> {
        anyhow::bail!("nodes cannot run yet")
    }

    /// A reading of all counters.
    pub fn report(&self) -> NodeReport {
        unimplemented!()
    }

    /// The same for another thread.
    pub fn reporter(&self) -> impl Fn() -> NodeReport + Send + 'static {
        || unimplemented!()
    }

    /// Ends the threads; what they counted.
    pub fn stop(self) -> NodeReport {
        unimplemented!()
    }
}
