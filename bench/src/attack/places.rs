//! Ports of everything that a capture sees. They are fixed, because nobody else uses this network.
//!
//! Each recorded wire has one *watched* end:
//!
//! ```text
//! user    entry --> relay (watched)           the user's side of its access link
//!         relay (watched) --> Mix 1           Mix 1's side of it
//! inner   mix K --> mix K+1, exit (watched)         of the class that is recorded
//! flow    exit  --> destination (watched)
//! ```
//!
//! Traffic between an application and its entry is not captured.

use std::net::SocketAddr;

/// Maximum number of users.
pub(super) const USERS_MAX: usize = 1000;
/// Ports of a block: one for each user and one for the adversary's own, or one for each hop.
const STEP: u16 = 2000;

/// Watched ports: the first one, and the one after the last.
pub(super) const WATCHED: (u16, u16) = (10_000, 10_000 + 4 * STEP);

/// The relay's socket towards the entry of a user.
pub(super) fn relay_to_user(user: usize) -> SocketAddr {
    at(0, user)
}

/// The destination of flow `flow`.
pub(super) fn destination(flow: usize) -> SocketAddr {
    at(1, flow)
}

/// The address of hop `hop`, from 1, for cells from the hop before it. That of Mix 1 is not watched.
pub(super) fn hop(hop: usize) -> SocketAddr {
    if hop == 1 { at(4, 0) } else { at(2, hop) }
}

/// The address of hop `hop` towards the next one.
pub(super) fn hop_down(hop: usize) -> SocketAddr {
    at(4, hop)
}

/// The relay's socket towards Mix 1 for a user.
pub(super) fn relay_to_mix(user: usize) -> SocketAddr {
    at(3, user)
}

/// The addresses of hop `hop` for the free class of a chain whose paced class is recorded: for cells from the hop
/// before it, and towards the next one.
pub(super) fn beside(hop: usize) -> [SocketAddr; 2] {
    [at(6, 2 * hop), at(6, 2 * hop + 1)]
}

/// The address of a user's entry towards the relay.
pub(super) fn entry(user: usize) -> SocketAddr {
    at(5, user)
}

fn at(block: u16, index: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], WATCHED.0 + block * STEP + index as u16))
}

/// Where a datagram was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// Of a user's access link.
    Access(Tap, usize),
    /// From mix `.0` to the next hop.
    Inner(usize),
    Flow(usize),
}

/// A side of the access links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Tap {
    User,
    Mix1,
}

impl Wire {
    /// The wire of a watched port, and whether a datagram went forward that went to that port or came from it.
    pub(super) fn of(port: u16, to_port: bool) -> Option<(Wire, bool)> {
        let from_first = port.checked_sub(WATCHED.0)?;
        let index = usize::from(from_first % STEP);
        match from_first / STEP {
            0 => Some((Wire::Access(Tap::User, index), to_port)),
            1 => Some((Wire::Flow(index), to_port)),
            2 => Some((Wire::Inner(index.checked_sub(1)?), to_port)),
            3 => Some((Wire::Access(Tap::Mix1, index), !to_port)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wire_has_one_watched_end() {
        let watched = |address: &SocketAddr| (WATCHED.0..WATCHED.1).contains(&address.port());
        let wire = |address: SocketAddr| Wire::of(address.port(), true);
        for user in [0, 1, USERS_MAX] {
            assert_eq!(wire(relay_to_user(user)), Some((Wire::Access(Tap::User, user), true)));
            assert_eq!(wire(relay_to_mix(user)), Some((Wire::Access(Tap::Mix1, user), false)));
            assert_eq!(wire(destination(user)), Some((Wire::Flow(user), true)));
            assert!(!watched(&entry(user)));
        }
        for mix in 1..=7 {
            assert_eq!(wire(hop(mix + 1)), Some((Wire::Inner(mix), true)));
            assert!(!watched(&hop_down(mix)) && watched(&hop(mix + 1)) && !beside(mix).iter().any(watched));
        }
        assert!(!watched(&hop(1)) && wire(hop(1)).is_none());
    }
}
