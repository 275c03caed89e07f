//! The path to the next hop as this host knows it: source address, device, MTU.
//!
//! Cells and handshakes are never fragmented, so the longest packet of a link must fit the MTU of its path.
//! [`check`] compares the two before a node starts; `eddy doctor` reads the same facts.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use control::trust::ChainTerms;
use rustix::net::sockopt;
use wire::cell::{Class, Direction, Shape};
use wire::handshake::HANDSHAKE_LEN_MAX;
use wire::ids::ClassId;

use crate::config::{ConfigError, ServedClass, Terms, in_words};

/// Bytes of the IP and UDP headers, over IPv4 and over IPv6.
const HEADERS: [usize; 2] = [20 + 8, 40 + 8];

/// The system's view of a path.
pub struct KnownPath {
    /// The longest packet that it carries unfragmented, in bytes.
    pub mtu: usize,
    /// Source address of the packets.
    pub local: IpAddr,
}

/// Reads the system's view of the path between two addresses. Sends nothing.
pub fn known_path(from: IpAddr, to: SocketAddr) -> io::Result<KnownPath> {
    let probe = UdpSocket::bind((from, 0))?;
    probe.connect(to)?;
    let mtu = if to.is_ipv4() { sockopt::ip_mtu(&probe) } else { sockopt::ipv6_mtu(&probe) };
    Ok(KnownPath { mtu: mtu? as usize, local: probe.local_addr()?.ip() })
}

/// The longest packet of a class on a link of a chain of `hops`, cells of both directions and handshakes included, in
/// bytes.
pub fn longest_packet(class: ClassId, hops: usize, link: usize, ipv6: bool) -> usize {
    let cell = match class {
        ClassId::Free(class) => {
            let of = |direction| Shape::new(class, hops).map_or(0, |shape| shape.cell_len(direction, link));
            of(Direction::Forward).max(of(Direction::Backward))
        }
        ClassId::Paced(class) => class.cell_len(),
    };
    packet(cell, ipv6)
}

/// The longest packet of a link whose longest cell has `cell` bytes.
fn packet(cell: usize, ipv6: bool) -> usize {
    HEADERS[usize::from(ipv6)] + cell.max(HANDSHAKE_LEN_MAX)
}

/// The chain like this one whose packets fit the MTU of a link, e.g. `a chain of class M without class video`.
pub fn chain_that_fits(chain: &ChainTerms, link: usize, mtu: usize, ipv6: bool) -> Option<String> {
    let hops = chain.identities.len();
    let (free, paced): (Vec<_>, Vec<_>) = Terms::of(chain)
        .filter(|terms| longest_packet(terms.id(), hops, link, ipv6) > mtu)
        .partition(|terms| terms.paced().is_none());
    let mut text = "a chain".to_owned();
    if !free.is_empty() {
        let fits =
            |class: &Class| Shape::new(*class, hops).is_ok_and(|shape| packet(shape.longest_cell(), ipv6) <= mtu);
        text += &format!(" of class {}", [Class::M, Class::S].into_iter().find(fits)?);
    }
    let names: Vec<_> = paced.iter().map(|terms| terms.name().to_string()).collect();
    if !names.is_empty() {
        text += &format!(" without class {}", names.join(" and "));
    }
    Some(text)
}

/// The name of the device with this address.
pub fn device(local: IpAddr) -> Option<String> {
    let interfaces = if_addrs::get_if_addrs().ok()?;
    interfaces.into_iter().find(|interface| interface.ip() == local).map(|found| found.name)
}

/// Checks that the path from `from` to the next hop carries the longest packet of the link.
///
/// A missing route is not an error, because the node keeps trying: it is returned as a warning.
///
/// # Errors
/// The MTU is too small, or `from` cannot reach the next hop.
pub fn check(served: &ServedClass<'_>, from: IpAddr, next: SocketAddr) -> Result<Option<String>, ConfigError> {
    let ServedClass { loaded, terms, shape, config } = served;
    let KnownPath { mtu, local } = match known_path(from, next) {
        Ok(path) => path,
        // Linux returns this for a loopback address towards any other.
        Err(why) if why.kind() == ErrorKind::InvalidInput => {
            let any = if next.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            return Err(ConfigError::Value {
                at: config.place_of("down"),
                what: format!("`down` is bound to {from}, which cannot reach the next hop at {next}"),
                remedy: format!("set down = \"{any}\""),
            });
        }
        // Binding the socket itself reports this, with its remedy.
        Err(why) if why.kind() == ErrorKind::AddrNotAvailable => return Ok(None),
        Err(why) => return Ok(Some(format!("no route to the next hop at {next} yet: {}", in_words(&why)))),
    };

    let (link, ipv6) = (loaded.position + 1, next.is_ipv6());
    let needed = longest_packet(terms.id(), shape.hops(), link, ipv6);
    if needed <= mtu {
        return Ok(None);
    }
    let device = device(local).unwrap_or_else(|| "DEVICE".to_owned());
    let raise =
        format!("raise the MTU of the whole path, on this host with `sudo ip link set dev {device} mtu {needed}`");
    let class = terms.name();
    Err(ConfigError::Value {
        at: config.place_of("next"),
        what: format!(
            "the path to the next hop at {next} carries packets of {mtu} bytes, but class {class} needs {needed}"
        ),
        remedy: match chain_that_fits(&loaded.chain.terms, link, mtu, ipv6) {
            Some(chain) => format!("{raise}, or make {chain}"),
            None => raise,
        },
    })
}
