//! `chain.toml`: what everyone may know of a chain. Identities are pinned here; descriptors are
//! verified against them and against the clock.

use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use control::Descriptor;
use dataplane::lanes::Lanes;
use dataplane::stage::pool::Mixing;
use serde::Deserialize;
use toml::Spanned;
use wire::cell::{Class, Shape};

use super::source::{Source, decode_base64, nearest};
use super::{ConfigError, NodeRole};

/// A chain, verified.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Its id.
    pub id: [u8; 32],
    /// Class and key hops.
    pub shape: Shape,
    /// What its mixes were set up to do.
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
    /// Where the previous hop reaches it: its first lane.
    pub address: SocketAddr,
    /// Its lanes: so many ports from that of `address` on.
    pub lanes: usize,
    /// Its descriptor, verified.
    pub descriptor: Descriptor,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChain {
    id: Spanned<String>,
    class: Spanned<String>,
    hops: Spanned<i64>,
    mixing: Spanned<String>,
    lifetime_s: Spanned<i64>,
    node: Vec<RawNode>,
}

/// One `[[node]]` of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    role: Spanned<String>,
    index: Spanned<i64>,
    identity: Spanned<String>,
    address: Spanned<String>,
    descriptor: Spanned<String>,
}

impl Chain {
    /// Reads and verifies a chain.
    ///
    /// # Errors
    /// The first thing that is wrong, with its remedy.
    pub fn read(path: &Path, wall: SystemTime) -> Result<Chain, ConfigError> {
        Chain::check(&Source::read(path)?, wall)
    }

    /// The same from a text; `path` is named in complaints.
    ///
    /// # Errors
    /// The first thing that is wrong, with its remedy.
    pub fn parse(path: &Path, text: &str, wall: SystemTime) -> Result<Chain, ConfigError> {
        Chain::check(&Source::new(path, text), wall)
    }

    fn check(source: &Source, wall: SystemTime) -> Result<Chain, ConfigError> {
        let raw: RawChain = source.parse()?;
        let id = source.bytes("id", &raw.id)?;
        let class: Class = (raw.class.get_ref().parse())
            .map_err(|why: wire::cell::UnknownClass| source.invalid(&raw.class, why.to_string()))?;
        let hops = source.required("hops", &raw.hops, 2..9)? as usize;
        let shape = Shape::new(class, hops).map_err(|why| source.invalid(&raw.hops, why.to_string()))?;
        let mixing = raw.mixing.get_ref().parse::<Mixing>();
        let mixing = mixing.map_err(|why| source.invalid(&raw.mixing, why.to_string()))?;
        let lifetime_s = source.required("lifetime_s", &raw.lifetime_s, 60..3601)? as u16;
        if raw.node.len() != hops {
            let what = format!("hops = {hops}, but {} [[node]] entries follow", raw.node.len());
            return Err(source.wrong(&raw.hops, what, "list every mix and the exit, Mix 1 first"));
        }
        let nodes = raw.node.iter().enumerate().map(|(i, raw)| node(source, raw, i + 1, shape, &id, wall));
        let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
        for (node, raw_node) in nodes.iter().zip(&raw.node) {
            if node.descriptor.lifetime_s != lifetime_s {
                let what =
                    format!("the descriptor says lifetime {} s, the chain {lifetime_s} s", node.descriptor.lifetime_s);
                return Err(source.wrong(&raw_node.descriptor, what, "fetch the chain file again"));
            }
        }
        Ok(Chain { id, shape, mixing, lifetime_s, nodes })
    }

    /// The key hop at a position, from 1.
    pub fn node(&self, position: usize) -> Option<&ChainNode> {
        self.nodes.get(position.checked_sub(1)?)
    }

    /// Over how many ports the links of the node at a position are spread.
    pub fn lanes_at(&self, position: usize) -> Lanes {
        let of = |position| self.node(position).map_or(1, |node| node.lanes);
        Lanes { own: of(position), next: of(position + 1) }
    }

    /// The first eight digits of its id, for people.
    pub fn short_id(&self) -> String {
        self.id[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn node(
    source: &Source,
    raw: &RawNode,
    index: usize,
    shape: Shape,
    chain: &[u8; 32],
    wall: SystemTime,
) -> Result<ChainNode, ConfigError> {
    let order = "list Mix 1 with index 1 first and the exit last";
    if *raw.index.get_ref() != index as i64 {
        let what = format!("index = {} stands in place {index}", raw.index.get_ref());
        return Err(source.wrong(&raw.index, what, order));
    }
    let role = if index == shape.hops() { NodeRole::Exit } else { NodeRole::Mix };
    if raw.role.get_ref() != role.name() {
        let hint = nearest(raw.role.get_ref(), &[role.name()]).map_or(order, |_| "mend the spelling");
        let what = format!("role = {:?} where the chain has its {role}", raw.role.get_ref());
        return Err(source.wrong(&raw.role, what, hint));
    }
    let identity = source.bytes("identity", &raw.identity)?;
    let address: SocketAddr = raw.address.get_ref().parse().map_err(|_| {
        source.wrong(&raw.address, format!("address = {:?} is no IP:PORT", raw.address.get_ref()), "write IP:PORT")
    })?;
    let signed = decode_base64(raw.descriptor.get_ref())
        .ok_or_else(|| source.wrong(&raw.descriptor, "the descriptor is not base64", "fetch the chain file again"))?;
    let at = || source.at(raw.descriptor.span());
    let descriptor = Descriptor::verify(&signed, &identity, chain, wall).map_err(|why| ConfigError::Descriptor {
        at: at(),
        index,
        why,
    })?;
    let same = usize::from(descriptor.position) == index
        && usize::from(descriptor.hops) == shape.hops()
        && descriptor.class == shape.class();
    if !same {
        let what = format!(
            "the descriptor is of place {} of {} in class {}, not of place {index} of {} in class {}",
            descriptor.position,
            descriptor.hops,
            descriptor.class,
            shape.hops(),
            shape.class()
        );
        return Err(source.wrong(&raw.descriptor, what, "fetch the chain file again"));
    }
    if !descriptor.lanes.contains(&address) {
        let what =
            format!("address = \"{address}\" is not in the signed descriptor, which says {}", descriptor.lanes[0]);
        return Err(source.wrong(
            &raw.address,
            what,
            "restore it; a node behind NAT is reached by `next` in the previous node's configuration",
        ));
    }
    let lanes = lanes(&descriptor, address).map_err(|what| {
        source.wrong(&raw.descriptor, what, "ask its operator for a descriptor that `eddy init` made")
    })?;
    if lanes > 1 && role == NodeRole::Exit {
        let what = format!("the descriptor gives the exit {lanes} lanes, and an exit has one");
        return Err(source.wrong(&raw.descriptor, what, "ask its operator for a descriptor that `eddy init` made"));
    }
    Ok(ChainNode { role, index, identity, address, lanes, descriptor })
}

/// How many lanes begin at `address`: the descriptor's addresses of that host, which must be as many ports in a row
/// (SPEC 4.7).
fn lanes(descriptor: &Descriptor, address: SocketAddr) -> Result<usize, String> {
    let here: Vec<SocketAddr> = descriptor.lanes.iter().copied().filter(|lane| lane.ip() == address.ip()).collect();
    for (i, lane) in here.iter().enumerate() {
        if dataplane::lanes::address(address, i) != Some(*lane) {
            return Err(format!("lane {i} of {address} is published at {lane}, and lanes are ports in a row"));
        }
    }
    Ok(here.len())
}
