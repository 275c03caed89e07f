//! ICMP errors for the entry's clients, as a network sends them for datagrams that it does not carry.
//!
//! A program with a connected socket gets an error instead of silence: `EMSGSIZE`, `ECONNREFUSED`, `EHOSTUNREACH`
//! (RFC 792, RFC 4443; RFC 1122, 4.1.3.3). Needs CAP_NET_RAW; without it there is only the log.
//!
//! Neighbour: [`crate::runtime::node`] calls it on the control thread for notices of the worker, which limits their
//! rate ([`dataplane::punt::Notice`]).

use std::io;
use std::net::SocketAddr;

use etherparse::err::packet::BuildWriteError;
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::icmpv6::DestUnreachableCode;
use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, PacketBuilder};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use wire::frames::Status;

/// The MTU in an error: the largest possible, so that the system's path MTU for all other programs does not change. The
/// log has the length that fits.
const MTU: u16 = u16::MAX;

/// Why a client's datagram was not carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is longer than the longest datagram.
    TooLong,
    /// The exit refused it with this status.
    Refused(Status),
}

/// Raw sockets, if the process may open them.
pub struct Icmp {
    v4: Option<Socket>,
    v6: Option<Socket>,
}

impl Icmp {
    /// Opens the sockets that the process may open.
    pub fn open() -> Icmp {
        let raw = |domain, protocol| -> io::Result<Socket> {
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            socket.set_nonblocking(true)?;
            // Nothing is read from this socket, so nothing may queue up: BPF_RET | BPF_K with 0 bytes.
            socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)])?;
            Ok(socket)
        };
        Icmp { v4: raw(Domain::IPV4, Protocol::ICMPV4).ok(), v6: raw(Domain::IPV6, Protocol::ICMPV6).ok() }
    }

    /// Sends an error to `client` about its datagram to `listener`, an address of this host. A lost error is not
    /// repeated.
    pub fn send(&self, client: SocketAddr, listener: SocketAddr, fate: Fate) {
        let (client, listener) = (canonical(client), canonical(listener));
        let socket = if client.is_ipv4() { &self.v4 } else { &self.v6 };
        let (Some(socket), Some(error)) = (socket, error(client, listener, fate)) else { return };
        let to = SocketAddr::new(client.ip(), 0);
        let _ = socket.send_to(&error, &to.into());
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The error from its ICMP header on. None if ICMP has no such error, or if the listener's address is unspecified.
fn error(client: SocketAddr, listener: SocketAddr, fate: Fate) -> Option<Vec<u8>> {
    use Fate::{Refused, TooLong};
    if listener.ip().is_unspecified() {
        return None;
    }

    let mut error = Vec::with_capacity(64);
    match (client, listener) {
        (SocketAddr::V4(client), SocketAddr::V4(listener)) => {
            let kind = match fate {
                TooLong => DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: MTU },
                Refused(Status::Refused | Status::TooManyFlows) => DestUnreachableHeader::FilterProhibited,
                Refused(Status::Unresolvable) => DestUnreachableHeader::HostUnknown,
                Refused(Status::Unreachable) => DestUnreachableHeader::Port,
                Refused(Status::Open | Status::UnknownFlow | Status::TooLarge) => return None,
            };
            let about = PacketBuilder::ipv4(client.ip().octets(), listener.ip().octets(), 64);
            let about = about_udp(|out| about.udp(client.port(), listener.port()).write(out, &[]))?;
            Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(kind), &about).write(&mut error).ok()?;
            error.extend(about);
        }
        (SocketAddr::V6(client), SocketAddr::V6(listener)) => {
            let kind = match fate {
                TooLong => Icmpv6Type::PacketTooBig { mtu: u32::from(MTU) + 1 },
                Refused(Status::Refused | Status::TooManyFlows) => {
                    Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Prohibited)
                }
                // Linux does not pass this error on to IPv6 applications as it does for IPv4.
                Refused(Status::Unresolvable | Status::Unreachable) => {
                    Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port)
                }
                Refused(Status::Open | Status::UnknownFlow | Status::TooLarge) => return None,
            };
            let about = PacketBuilder::ipv6(client.ip().octets(), listener.ip().octets(), 64);
            let about = about_udp(|out| about.udp(client.port(), listener.port()).write(out, &[]))?;
            // The system fills in the checksum, because it selects the source address (RFC 3542, 3.1).
            Icmpv6Header::new(kind).write(&mut error).ok()?;
            error.extend(about);
        }
        _ => return None,
    }
    Some(error)
}

/// The header of the datagram that was not carried.
fn about_udp(write: impl FnOnce(&mut Vec<u8>) -> Result<(), BuildWriteError>) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(48);
    write(&mut out).ok().map(|()| out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv4Slice, IpSlice, LaxPacketHeaders, TransportHeader};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_error_speaks_of_the_datagram_that_was_sent() {
        let error = error(at("192.0.2.1:40000"), at("127.0.0.1:5000"), Fate::TooLong).unwrap();
        let icmp = Icmpv4Slice::from_slice(&error).unwrap();
        assert_eq!((icmp.type_u8(), icmp.code_u8(), error.len()), (3, 4, 8 + 20 + 8), "RFC 792");
        assert_eq!(icmp.header().icmp_type.calc_checksum(icmp.payload()), icmp.checksum());
        let about = LaxPacketHeaders::from_ip(icmp.payload()).unwrap();
        let ip = IpSlice::from_slice(icmp.payload()).unwrap();
        assert_eq!(ip.source_addr().to_string(), "192.0.2.1");
        assert_eq!(ip.destination_addr().to_string(), "127.0.0.1");
        let Some(TransportHeader::Udp(udp)) = about.transport else { panic!("{about:?}") };
        assert_eq!((udp.source_port, udp.destination_port), (40000, 5000));
    }

    #[test]
    fn each_fate_has_its_code_and_some_have_none() {
        let code = |to: &str, fate| error(at(to), at(to), fate).map(|error| (error[0], error[1]));
        let [v4, v6] = ["127.0.0.1:9", "[::1]:9"];
        // RFC 792 and RFC 1122, 3.2.2.1; RFC 4443, 3.1 and 3.2.
        for (fate, four, six) in [
            (Fate::TooLong, Some((3, 4)), Some((2, 0))),
            (Fate::Refused(Status::Refused), Some((3, 13)), Some((1, 1))),
            (Fate::Refused(Status::TooManyFlows), Some((3, 13)), Some((1, 1))),
            (Fate::Refused(Status::Unresolvable), Some((3, 7)), Some((1, 4))),
            (Fate::Refused(Status::Unreachable), Some((3, 3)), Some((1, 4))),
            (Fate::Refused(Status::UnknownFlow), None, None),
        ] {
            assert_eq!((code(v4, fate), code(v6, fate)), (four, six), "{fate:?}");
        }
        assert_eq!(error(at(v4), at("0.0.0.0:9"), Fate::TooLong), None, "nobody knows where it was sent");
        assert_eq!(error(at(v4), at(v6), Fate::TooLong), None);
    }
}
