//! Listening sockets of an entry: where what arrives there is to go, and what its answers look like.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use wire::frames::{Address, Frame, is_host_name};

use crate::ledger::DropReason;

/// Control's name for a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerId(pub u32);

#[derive(Clone, Debug)]
pub struct Listener {
    pub kind: ListenerKind,
    /// Flows of its clients that have sent nothing for this long are closed.
    pub idle: Duration,
    /// The longest time that a datagram of its clients, or one for them, may wait (SPEC 6.6).
    pub max_age: Duration,
}

/// The kinds of listening sockets.
#[derive(Clone, Debug)]
pub enum ListenerKind {
    /// All go to one destination.
    Forward(Destination),
    /// Each begins with its destination: IPv4 address (4 bytes) and port (2).
    Pymix,
    /// Each begins with its destination, and each answer with where it comes from (RFC 1928, 7).
    Socks(Association),
}

/// The client that may use a SOCKS association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Association {
    /// The address that asked for it.
    pub client: IpAddr,
    /// The port that it said it would send from, if it said so.
    pub port: Option<u16>,
}

/// The destination of a flow, as the exit sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    Ip(SocketAddr),
    /// A name that the exit resolves, and a port. Shared: it is looked up by every datagram.
    Name(Arc<str>, u16),
}

/// Longest header of an answer: a name.
pub const HEADER_MAX: usize = 4 + 1 + NAME_MAX + 2;
/// Longest name: its length is one byte.
const NAME_MAX: usize = 255;
/// Address types of RFC 1928, 5.
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;

impl Listener {
    /// The destination and the data of a datagram.
    ///
    /// # Errors
    /// Its header is not valid ([`DropReason::BadAddress`]), it is part of a datagram ([`DropReason::SocksFragment`]),
    /// or not the client's ([`DropReason::Foreign`]).
    pub fn read<'a>(&self, from: SocketAddr, bytes: &'a [u8]) -> Result<(Destination, &'a [u8]), DropReason> {
        match &self.kind {
            ListenerKind::Forward(destination) => Ok((destination.clone(), bytes)),
            ListenerKind::Pymix => Ok((pymix_destination(bytes).ok_or(DropReason::BadAddress)?, &bytes[6..])),
            ListenerKind::Socks(association) => association.read(from, bytes),
        }
    }

    /// True if its clients learn the sender of an answer.
    pub(crate) fn tells_peers(&self) -> bool {
        matches!(self.kind, ListenerKind::Socks(_))
    }

    /// The header in front of an answer of `peer`.
    pub fn header(&self, peer: &Destination) -> ArrayVec<u8, HEADER_MAX> {
        if self.tells_peers() { socks_header(peer) } else { ArrayVec::new() }
    }
}

impl Association {
    fn read<'a>(&self, from: SocketAddr, bytes: &'a [u8]) -> Result<(Destination, &'a [u8]), DropReason> {
        if from.ip().to_canonical() != self.client || self.port.is_some_and(|port| port != from.port()) {
            return Err(DropReason::Foreign);
        }
        read_socks(bytes)
    }
}

/// Header of a SOCKS datagram to or from an address or name (RFC 1928, 7): RSV and FRAG of zeros, ATYP, DST.ADDR,
/// DST.PORT. The peer is valid ([`Destination::is_valid`]).
pub fn socks_header(peer: &Destination) -> ArrayVec<u8, HEADER_MAX> {
    let mut header = ArrayVec::new();
    let port = match peer {
        Destination::Ip(SocketAddr::V4(at)) => {
            header.extend([0, 0, 0, IPV4].into_iter().chain(at.ip().octets()));
            at.port()
        }
        Destination::Ip(SocketAddr::V6(at)) => {
            header.extend([0, 0, 0, IPV6].into_iter().chain(at.ip().octets()));
            at.port()
        }
        Destination::Name(name, port) => {
            header.extend([0, 0, 0, NAME, name.len() as u8].into_iter().chain(name.bytes()));
            *port
        }
    };
    header.extend(port.to_be_bytes());
    header
}

/// Reads what [`socks_header`] writes; what follows it is the data.
///
/// # Errors
/// The header is not valid ([`DropReason::BadAddress`]), or the datagram is part of one
/// ([`DropReason::SocksFragment`]).
pub fn read_socks(bytes: &[u8]) -> Result<(Destination, &[u8]), DropReason> {
    match *bytes {
        [0, 0, 0, ..] => socks_destination(&bytes[3..]).ok_or(DropReason::BadAddress),
        [0, 0, _, ..] => Err(DropReason::SocksFragment),
        _ => Err(DropReason::BadAddress),
    }
}

/// Reads ATYP, DST.ADDR and DST.PORT, and what follows them.
fn socks_destination(bytes: &[u8]) -> Option<(Destination, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (ip, rest) = match *kind {
        IPV4 => {
            let (octets, rest) = rest.split_first_chunk::<4>()?;
            (Ok(IpAddr::from(Ipv4Addr::from(*octets))), rest)
        }
        IPV6 => {
            let (octets, rest) = rest.split_first_chunk::<16>()?;
            (Ok(Ipv6Addr::from(*octets).to_canonical()), rest)
        }
        NAME => {
            let (len, rest) = rest.split_first()?;
            let (name, rest) = rest.split_at_checked(usize::from(*len))?;
            let name = std::str::from_utf8(name).ok().filter(|name| is_host_name(name.as_bytes()))?;
            // Some programs write addresses as names.
            (name.parse().map_err(|_| name), rest)
        }
        _ => return None,
    };
    let (port, data) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    let destination = match ip {
        Ok(ip) => Destination::Ip(SocketAddr::new(ip, port)),
        Err(name) => Destination::Name(name.into(), port),
    };
    (port != 0).then_some((destination, data))
}

/// Reads a pymix header, the first six bytes of a datagram: an IPv4 address and a port that is not 0.
pub fn pymix_destination(bytes: &[u8]) -> Option<Destination> {
    let [a, b, c, d, p, q, ..] = *bytes else { return None };
    let port = u16::from_be_bytes([p, q]);
    (port != 0).then(|| Destination::Ip((Ipv4Addr::new(a, b, c, d), port).into()))
}

impl Destination {
    /// Its form in an OPEN frame.
    pub fn address(&self) -> Address<'_> {
        match self {
            Destination::Ip(address) => Address::Ip(*address),
            Destination::Name(name, port) => Address::Name(name, *port),
        }
    }

    /// True if an exit would accept it: the port is not 0, and the name is not too long.
    pub fn is_valid(&self) -> bool {
        match self {
            Destination::Ip(address) => address.port() != 0,
            Destination::Name(name, port) => *port != 0 && is_host_name(name.as_bytes()),
        }
    }

    /// Bytes of an OPEN for it: they must fit in one cell (SPEC 3.12).
    pub fn open_len(&self) -> usize {
        Frame::Open { flow: 0, map: 0, token: [0; 16], to: self.address() }.len()
    }
}

/// A text that is not a [`Destination`], with the expected form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotADestination(String);

impl std::fmt::Display for NotADestination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotADestination {}

impl std::str::FromStr for Destination {
    type Err = NotADestination;

    /// Reads `IP:PORT`, `[IPv6]:PORT`, or `NAME:PORT`, which the exit resolves.
    fn from_str(text: &str) -> Result<Destination, NotADestination> {
        const EXPECTED: &str = "expected IP:PORT, [IPv6]:PORT or NAME:PORT";
        let wrong = |what: &str, remedy: &str| NotADestination(format!("{text:?} {what}: {remedy}"));
        if let Ok(address) = text.parse::<SocketAddr>() {
            if address.port() == 0 {
                return Err(wrong("has port 0", "expected the port that the service listens on"));
            }
            return Ok(Destination::Ip(address));
        }
        let (name, port) = text.rsplit_once(':').ok_or_else(|| wrong("has no port", EXPECTED))?;
        // A sign, which `parse` would take, makes a name of what is an address without it.
        let digits = Some(port).filter(|port| !port.starts_with('+'));
        let port = digits.and_then(|port| port.parse().ok()).filter(|port| *port > 0);
        let port = port.ok_or_else(|| wrong("does not end in a port from 1 to 65535", EXPECTED))?;
        if !is_host_name(name.as_bytes()) {
            return Err(wrong("is not an address or host name with a port", EXPECTED));
        }
        Ok(Destination::Name(name.into(), port))
    }
}

impl From<SocketAddr> for Destination {
    /// An IPv4 address is one however it is written.
    fn from(address: SocketAddr) -> Destination {
        Destination::Ip(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Destination::Ip(address) => address.fmt(f),
            Destination::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLIENT: Association = Association { client: IpAddr::V4(Ipv4Addr::LOCALHOST), port: None };

    fn socks() -> Listener {
        Listener { kind: ListenerKind::Socks(CLIENT), idle: Duration::from_secs(300), max_age: Duration::MAX }
    }

    fn from(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_socks_datagram_names_its_destination_three_ways() {
        let read = |bytes: &[u8]| {
            let (to, data) = socks().read(from("127.0.0.1:9"), bytes)?;
            Ok((to.to_string(), data.to_vec()))
        };
        let said = |to: &str, data: &[u8]| Ok::<_, DropReason>((to.to_owned(), data.to_vec()));
        assert_eq!(read(&[0, 0, 0, 1, 192, 0, 2, 7, 0, 53, 8, 9]), said("192.0.2.7:53", &[8, 9]));
        let mut six = vec![0, 0, 0, 4];
        six.extend(from("[2001:db8::7]:1").ip().to_string().parse::<Ipv6Addr>().unwrap().octets());
        six.extend([1, 0]);
        assert_eq!(read(&six), said("[2001:db8::7]:256", &[]));
        assert_eq!(read(b"\0\0\0\x03\x0bexample.orgaa1"), said("example.org:24929", b"1"));
        assert_eq!(read(b"\0\0\0\x03\x09192.0.2.7\0\x35x"), said("192.0.2.7:53", b"x"), "an address as a name");
        let mut mapped = vec![0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        mapped.extend([0, 7]);
        assert_eq!(read(&mapped), said("10.0.0.1:7", &[]), "one spelling for an address");
    }

    #[test]
    fn what_is_no_socks_datagram_has_its_reason() {
        let read = |bytes: &[u8]| socks().read(from("127.0.0.1:9"), bytes).unwrap_err();
        assert_eq!(read(&[0, 0, 1, 1, 192, 0, 2, 7, 0, 53]), DropReason::SocksFragment);
        assert_eq!(read(&[0, 0, 0x81, 1, 192, 0, 2, 7, 0, 53]), DropReason::SocksFragment);
        let bad: [&[u8]; 11] = [
            b"",
            b"\0\0",
            b"\0\0\0",
            b"\0\0\0\x01\x7f\0\0\x01\0",
            b"\0\0\0\x01\x7f\0\0\x01\0\0",
            b"\x01\0\0\x01\x7f\0\0\x01\0\x07",
            b"\0\0\0\x02\x7f\0\0\x01\0\x07",
            b"\0\0\0\x03\0\0\x07",
            b"\0\0\0\x03\xffshort\0\x07",
            b"\0\0\0\x03\x03a b\0\x07",
            b"\0\0\0\x03\x02\xc3\xa9\0\x07",
        ];
        bad.into_iter().for_each(|bytes| assert_eq!(read(bytes), DropReason::BadAddress, "{bytes:?}"));
    }

    #[test]
    fn only_the_client_of_an_association_may_use_it() {
        let good = [0, 0, 0, 1, 192, 0, 2, 7, 0, 53];
        let of = |port| Listener {
            kind: ListenerKind::Socks(Association { port, ..CLIENT }),
            idle: Duration::ZERO,
            max_age: Duration::MAX,
        };
        assert_eq!(of(None).read(from("127.0.0.2:9"), &good).err(), Some(DropReason::Foreign));
        assert!(of(None).read(from("127.0.0.1:9"), &good).is_ok());
        assert!(of(None).read(from("[::ffff:127.0.0.1]:9"), &good).is_ok(), "the same on a socket for both families");
        assert_eq!(of(Some(8)).read(from("127.0.0.1:9"), &good).err(), Some(DropReason::Foreign));
        assert!(of(Some(9)).read(from("127.0.0.1:9"), &good).is_ok());
    }

    #[test]
    fn an_answer_tells_where_it_comes_from() {
        let header = |peer: &str| socks().header(&Destination::Ip(from(peer))).to_vec();
        assert_eq!(header("192.0.2.7:53"), [0, 0, 0, 1, 192, 0, 2, 7, 0, 53]);
        assert_eq!(header("[::7]:53"), [&[0, 0, 0, 4][..], &[0; 15], &[7, 0, 53]].concat());
        let name = Destination::Name("a.example".into(), 53);
        assert_eq!(socks().header(&name).to_vec(), b"\0\0\0\x03\x09a.example\0\x35");
        let forward =
            Listener { kind: ListenerKind::Forward(name.clone()), idle: Duration::ZERO, max_age: Duration::MAX };
        assert!(forward.header(&name).is_empty());
    }

    #[test]
    fn destinations_are_addresses_or_names_and_nothing_else() {
        for good in ["127.0.0.1:53", "[::1]:53", "example.org:443", "localhost:1"] {
            assert_eq!(good.parse::<Destination>().unwrap().to_string(), good);
        }
        for bad in
            ["", "example.org", "example.org:0", "127.0.0.1:0", "a b:1", ":1", "::1:x", "[::1]:65536", "127.0.0.1:+53"]
        {
            assert!(bad.parse::<Destination>().is_err(), "{bad}");
        }
        let of_length = |len: usize| Destination::Name("a".repeat(len).as_str().into(), 7);
        assert!(of_length(255).is_valid() && !of_length(256).is_valid(), "its length is one byte on the wire");
        assert_eq!(socks_header(&of_length(255)).len(), HEADER_MAX);
    }

    proptest! {
        #[test]
        fn what_a_header_says_is_read_from_it(
            ip in prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)],
            port in 1u16..,
            data in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let peer = Destination::Ip(SocketAddr::new(ip.to_canonical(), port));
            let mut bytes = socks().header(&peer).to_vec();
            bytes.extend(&data);
            prop_assert_eq!(socks().read(from("127.0.0.1:9"), &bytes), Ok((peer, &data[..])));
        }

        #[test]
        fn nothing_that_arrives_does_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut framed = vec![0, 0, 0];
            framed.extend(&bytes);
            for bytes in [&bytes, &framed] {
                if let Ok((to, data)) = socks().read(from("127.0.0.1:9"), bytes) {
                    prop_assert!(data.len() < bytes.len() && to.open_len() < 300);
                }
            }
        }
    }
}
