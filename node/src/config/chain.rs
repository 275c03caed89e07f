//! `chain.toml`: the public facts about a chain. It pins the identities of nodes; descriptors are verified against them
//! and against the clock.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use control::Descriptor;
use dataplane::lanes::Lanes;
use dataplane::stage::pool::Mixing;
use wire::cell::{Class, Shape};
use wire::setup::Suite;

use super::source::{Source, Table, decode_base64};
use super::table::CHAIN;
use super::{ConfigError, NodeRole, node_name};

/// A chain, verified.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its id.
    pub id: [u8; 32],
    /// Class and key hops.
    pub shape: Shape,
    /// Algorithms of its channel setups.
    pub suite: Suite,
    /// The mixing strategy that its mixes were created with.
    pub mixing: Mixing,
    /// Lifetime of its channels in seconds.
    pub lifetime_s: u16,
    /// Its key hops, Mix 1 first, the exit last.
    pub nodes: Vec<ChainNode>,
}

/// A key hop.
#[derive(Clone, Debug)]
pub struct ChainNode {
    /// Mix or exit.
    pub role: NodeRole,
    /// Its position, from 1.
    pub index: usize,
    /// The Ed25519 public key that signs its descriptors.
    pub identity: [u8; 32],
    /// Its first lane, to which the previous hop sends.
    pub address: SocketAddr,
    /// Number of its lanes: consecutive ports from that of `address` on.
    pub lanes: usize,
    /// Its descriptor, verified.
    pub descriptor: Descriptor,
}

impl Chain {
    /// Reads and verifies a chain.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn read(path: &Path, wall: SystemTime) -> Result<Chain, ConfigError> {
        Chain::check(&Source::read(path)?, wall)
    }

    /// The same from a text; messages name `path`.
    ///
    /// # Errors
    /// The first mistake, with its remedy.
    pub fn parse(path: &Path, text: &str, wall: SystemTime) -> Result<Chain, ConfigError> {
        Chain::check(&Source::new(path, text), wall)
    }

    fn check(source: &Source, wall: SystemTime) -> Result<Chain, ConfigError> {
        let table = source.table(CHAIN)?;
        table.check(NodeRole::Mix)?;
        let id = table.text("id").bytes("id")?;
        let class: Class = table.parsed("class")?;
        let hops = table.integer("hops") as usize;
        let shape = Shape::new(class, hops).map_err(|why| table.invalid("hops", why.to_string()))?;
        let suite = table.integer("suite");
        let suite = u8::try_from(suite).ok().and_then(Suite::from_wire).expect("in the range of the table");
        let mixing = table.parsed("mixing")?;
        let lifetime_s = table.integer("lifetime_s") as u16;

        let tables = table.subs("node")?;
        if tables.len() != hops {
            let what = format!("hops = {hops}, but the file has {} [[node]] tables", tables.len());
            return Err(table.wrong("hops", what, "list every mix and the exit, mix1 first"));
        }
        let nodes = tables.iter().enumerate().map(|(i, node)| read_node(node, i + 1, shape, &id, wall));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;

        for (node, table) in nodes.iter().zip(&tables) {
            if node.descriptor.lifetime_s != lifetime_s {
                let said = node.descriptor.lifetime_s;
                let what = format!("the descriptor has a lifetime of {said} s, the chain {lifetime_s} s");
                return Err(table.wrong("descriptor", what, FETCH));
            }
            let said = node.descriptor.setup.suite();
            if said != suite {
                let what = format!("the descriptor has setup keys of suite {said}, the chain names suite {suite}");
                return Err(table.wrong("descriptor", what, FETCH));
            }
        }
        Ok(Chain { id, shape, suite, mixing, lifetime_s, nodes })
    }

    /// The key hop at a position, from 1.
    pub fn node(&self, position: usize) -> Option<&ChainNode> {
        self.nodes.get(position.checked_sub(1)?)
    }

    /// The lanes of the node at a position and of its next hop.
    pub fn lanes_at(&self, position: usize) -> Lanes {
        let of = |position| self.node(position).map_or(1, |node| node.lanes);
        Lanes { own: of(position), next: of(position + 1) }
    }

    /// The first eight digits of its id.
    pub fn short_id(&self) -> String {
        self.id[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The remedy for a chain file that contradicts itself.
const FETCH: &str = "get the chain file again from the chain's operator";
/// The order of a chain file.
const ORDER: &str = "list mix1 with index 1 first and the exit last";

fn read_node(
    table: &Table<'_>,
    index: usize,
    shape: Shape,
    chain: &[u8; 32],
    wall: SystemTime,
) -> Result<ChainNode, ConfigError> {
    if table.integer("index") != index as i64 {
        let what = format!("index must be {index} for the [[node]] in this position (got {})", table.integer("index"));
        return Err(table.wrong("index", what, ORDER));
    }
    let role = if index == shape.hops() { NodeRole::Exit } else { NodeRole::Mix };
    let said = table.text("role");
    if said.value != role.name() {
        return Err(said.wrong(
            format!("role must be \"{role}\" in [[node]] {index} of {} (got {:?})", shape.hops(), said.value),
            ORDER,
        ));
    }

    let identity = table.text("identity").bytes("identity")?;
    let said = table.text("address");
    let address: SocketAddr = said.value.parse().map_err(|_| {
        let what = format!("address must be IP:PORT or [IPv6]:PORT (got {:?})", said.value);
        said.wrong(what, FETCH)
    })?;

    // The signature covers the keys and the addresses of the node.
    let text = table.text("descriptor");
    let signed = decode_base64(text.value).ok_or_else(|| text.wrong("the descriptor is not base64", FETCH))?;
    let verified = Descriptor::verify(&signed, &identity, chain, wall);
    let descriptor =
        verified.map_err(|why| ConfigError::Descriptor { at: text.at(), node: node_name(role, index), why })?;

    // A valid descriptor may be one of another place in the chain.
    let same = usize::from(descriptor.position) == index
        && usize::from(descriptor.hops) == shape.hops()
        && descriptor.class == shape.class();
    if !same {
        let what = format!(
            "the descriptor is for position {} of {} in class {}, expected position {index} of {} in class {}",
            descriptor.position,
            descriptor.hops,
            descriptor.class,
            shape.hops(),
            shape.class()
        );
        return Err(text.wrong(what, FETCH));
    }

    if !descriptor.lanes.contains(&address) {
        let what =
            format!("address = \"{address}\" is not in the signed descriptor, which has {}", descriptor.lanes[0]);
        let remedy = "restore it; for a node behind NAT set `next` in the previous node's configuration";
        return Err(said.wrong(what, remedy));
    }

    let new = "ask its operator for a descriptor made by `eddy init`";
    let lanes = lanes(&descriptor, address).map_err(|what| text.wrong(what, new))?;
    if lanes > 1 && role == NodeRole::Exit {
        return Err(text.wrong(format!("the descriptor has {lanes} lanes for the exit, expected one"), new));
    }
    Ok(ChainNode { role, index, identity, address, lanes, descriptor })
}

/// The number of lanes from `address` on: the addresses of that host in the descriptor, which must have consecutive
/// ports (SPEC 4.7).
fn lanes(descriptor: &Descriptor, address: SocketAddr) -> Result<usize, String> {
    let here: Vec<SocketAddr> = descriptor.lanes.iter().copied().filter(|lane| lane.ip() == address.ip()).collect();
    for (i, lane) in here.iter().enumerate() {
        if dataplane::lanes::address(address, i) != Some(*lane) {
            return Err(format!("lane {i} of {address} is published at {lane}, expected consecutive ports"));
        }
    }
    Ok(here.len())
}
