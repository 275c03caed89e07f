//! The order in which the addresses of a name are tried: destination address selection of RFC 6724, 6.
//!
//! Asks the system for the source address of each, which sends nothing. Rules 3, 4 and 7 need properties of source
//! addresses that a program does not know (deprecated, home, native), so they are left out.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

/// Sorts addresses, the best first; equal ones stay in their order.
pub fn sort(addresses: &mut [IpAddr]) {
    sort_by_source(addresses, source);
}

fn sort_by_source(addresses: &mut [IpAddr], source: impl Fn(IpAddr) -> Option<IpAddr>) {
    addresses.sort_by_cached_key(|to| {
        let (label, precedence) = policy(*to);
        let from = source(*to);
        let same_scope = from.is_some_and(|from| scope(from) == scope(*to));
        let same_label = from.is_some_and(|from| policy(from).0 == label);
        // Rules 1, 2, 5, 6, 8 and 9; the sort is stable (10).
        (
            from.is_none(),
            !same_scope,
            !same_label,
            Reverse(precedence),
            scope(*to),
            Reverse(from.map_or(0, |from| common_prefix(from, *to))),
        )
    });
}

/// The address from which the system would send.
fn source(to: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = if to.is_ipv6() { ([0u16; 8], 0).into() } else { ([0u8; 4], 0).into() };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((to, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// IPv4 addresses are compared as mapped ones.
fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    }
}

/// Label and precedence (RFC 6724, 2.1).
fn policy(ip: IpAddr) -> (u8, u8) {
    let ip = mapped(ip);
    let [first, second, ..] = ip.segments();
    match (first, second) {
        _ if ip.is_loopback() => (0, 50),
        _ if ip.to_ipv4_mapped().is_some() => (4, 35),
        (0x2002, _) => (2, 30),
        (0x2001, 0) => (5, 5),
        (0xfc00..=0xfdff, _) => (13, 3),
        (0xfec0..=0xfeff, _) => (11, 1),
        (0x3ffe, _) => (12, 1),
        _ if ip.segments()[..6] == [0; 6] => (3, 1),
        _ => (1, 40),
    }
}

/// Scope (RFC 6724, 3.1 and 3.2): link-local 2, site-local 5, global 14.
fn scope(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) if ip.is_loopback() || ip.is_link_local() => 2,
        IpAddr::V4(_) => 14,
        IpAddr::V6(ip) if ip.is_loopback() || ip.is_unicast_link_local() => 2,
        IpAddr::V6(ip) if ip.segments()[0] & 0xffc0 == 0xfec0 => 5,
        IpAddr::V6(_) => 14,
    }
}

/// Leading bits that two IPv6 addresses have in common, at most the 64 of a subnet. Zero for IPv4: there, a common
/// prefix says little about distance, and sorting by it would undo the load balancing of name servers.
fn common_prefix(from: IpAddr, to: IpAddr) -> u32 {
    match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => (from.to_bits() ^ to.to_bits()).leading_zeros().min(64),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order of `addresses` on a host with these source addresses, each for its family; examples of RFC 6724, 10.2.
    fn sorted(addresses: &[&str], sources: &[&str]) -> Vec<String> {
        let mut addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let sources: Vec<IpAddr> = sources.iter().map(|ip| ip.parse().unwrap()).collect();
        sort_by_source(&mut addresses, |to| {
            let family = sources.iter().filter(|from| from.is_ipv6() == to.is_ipv6());
            family.max_by_key(|from| (scope(**from) == scope(to), policy(**from).0 == policy(to).0)).copied()
        });
        addresses.iter().map(IpAddr::to_string).collect()
    }

    #[test]
    fn order_is_that_of_rfc_6724() {
        let native = ["2001:db8:1::2", "fe80::1", "169.254.13.78"];
        assert_eq!(sorted(&["198.51.100.121", "2001:db8:1::1"], &native), ["2001:db8:1::1", "198.51.100.121"]);
        let v4 = ["fe80::1", "198.51.100.117"];
        assert_eq!(sorted(&["2001:db8:1::1", "198.51.100.121"], &v4), ["198.51.100.121", "2001:db8:1::1"]);
        let both = ["2001:db8:1::2", "fe80::1", "10.1.2.4"];
        assert_eq!(sorted(&["10.1.2.3", "2001:db8:1::1"], &both), ["2001:db8:1::1", "10.1.2.3"]);
        let tunnel = ["2002:c633:6401::2", "fe80::2"];
        assert_eq!(sorted(&["2001:db8:1::1", "2002:c633:6401::1"], &tunnel), ["2002:c633:6401::1", "2001:db8:1::1"]);
        assert_eq!(sorted(&["127.0.0.1", "::1"], &["127.0.0.1", "::1"]), ["::1", "127.0.0.1"]);
        assert_eq!(sorted(&["::1", "127.0.0.1"], &["127.0.0.1"]), ["127.0.0.1", "::1"], "without IPv6");
        assert_eq!(sorted(&["192.0.2.9", "192.0.2.1"], &["192.0.2.2"]), ["192.0.2.9", "192.0.2.1"], "as they came");
    }
}
