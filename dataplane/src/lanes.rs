//! Lanes: a link spread over ports, so that several cores can share it (SPEC 4.7).
//!
//! A node has as many lanes as its descriptor lists addresses: lane k is at the port of lane 0 plus k. A cell of
//! channel number n travels on lane n mod L, where L is the number of lanes of the responder, so a channel stays on one
//! lane, and one core owns its keys and windows. All lanes of a link are one link: they share its keys, its counters
//! and the initiator's address.
//!
//! A mix with L lanes has L edges, one per core ([`crate::mix::multicore`]). Towards the next hop each edge has a
//! socket of its own where that hop has as many lanes; otherwise edge 0 sends and receives for all.

use std::net::SocketAddr;

/// The numbers of lanes of a node and of its next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes {
    /// Lanes of the node itself, towards the previous hop; from 1.
    pub own: usize,
    /// Lanes of the next hop; from 1.
    pub next: usize,
}

impl Lanes {
    /// One lane here and at the next hop.
    pub const ONE: Lanes = Lanes { own: 1, next: 1 };

    /// Sockets towards the next hop.
    pub fn downs(self) -> usize {
        if self.next == self.own { self.own } else { 1 }
    }

    /// The edge whose socket towards the previous hop receives and sends the cells of this channel number.
    pub(crate) fn up_edge(self, number: u32) -> usize {
        number as usize % self.own
    }

    /// The edge whose socket towards the next hop receives and sends the cells of this channel number.
    pub(crate) fn down_edge(self, number: u32) -> usize {
        number as usize % self.downs()
    }
}

/// The address of lane `lane` of a node whose first lane is at `first`. None beyond the last port.
pub fn address(first: SocketAddr, lane: usize) -> Option<SocketAddr> {
    let port = u16::try_from(lane).ok().and_then(|lane| first.port().checked_add(lane))?;
    Some(SocketAddr::new(first.ip(), port))
}

/// The address of the first lane of a node whose lane `lane` is at `address`.
pub(crate) fn first(address: SocketAddr, lane: usize) -> Option<SocketAddr> {
    let port = u16::try_from(lane).ok().and_then(|lane| address.port().checked_sub(lane))?;
    Some(SocketAddr::new(address.ip(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hop_port_is_shared_only_with_one_socket_per_lane() {
        let edges = |own, next| (0..6).map(|n| Lanes { own, next }.down_edge(n)).collect::<Vec<_>>();
        assert_eq!(edges(2, 2), [0, 1, 0, 1, 0, 1]);
        assert_eq!(edges(2, 3), [0; 6]);
        assert_eq!(edges(1, 4), [0; 6]);
        let one = "192.0.2.1:65534".parse().unwrap();
        assert_eq!(address(one, 1).and_then(|two| first(two, 1)), Some(one));
        assert_eq!(address(one, 2), None);
        assert_eq!(first("192.0.2.1:1".parse().unwrap(), 2), None);
    }
}
