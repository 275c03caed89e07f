//! Workers of paced classes: rounds, in which every link carries the same number of cells whatever came (SPEC 9).
//!
//! ```text
//! socket -> gate -> layer -> rounds ... release -> sender -> socket
//!
//! links          slots with the keys by which a worker seals control cells itself
//! gate           header, place and link tag of what arrives
//! control_guard  which control cells go to control
//! batches        channels, batch by batch
//! decoy          keys of channels that do not exist, for equal work
//! control_cells  control cells that wait for their slots
//! sender         headers, tags, control cells and copies of a round
//! report_counts  counts for reports
//! mix            the worker of a mix, with its loops
//! entry          the worker of an entry
//! exit           the worker of an exit
//! ```
//!
//! The workers of free classes take a cell as soon as it comes; these have a timetable. So they share sockets, buffers
//! and ledgers with those, but neither pools nor tables.

mod batches;
mod control_cells;
mod control_guard;
mod decoy;
pub mod entry;
pub mod exit;
mod gate;
mod links;
pub mod mix;
#[cfg(test)]
mod peer;
mod report_counts;
mod sender;

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use wire::cell::Direction;
use wire::ids::{ChannelKeys, LinkId, Side, SlotId};
use wire::paced::clock::SteadyClock;
use wire::paced::{AHEAD_MAX, Call, ControlSlots, EntryKeys, MeetingToken, PacedTerms, Schedule, Timetable, seats_on};
use wire::reassembly::HOLD;
use wire::setup::Suite;

use crate::batch::Lengths;
use crate::command::LinkCommand;
use crate::entry::listener::{Listener, ListenerId};
use crate::exit::QueryId;
use crate::stage::ingress;
pub use control_cells::Control;
use control_guard::ControlLimits;
pub use links::{SlotKeys, link_commands};

/// A paced class at one node.
#[derive(Clone, Debug)]
pub struct Settings {
    pub terms: PacedTerms,
    pub suite: Suite,
    /// Hops of the chain: mixes and exit.
    pub hops: usize,
    /// This hop, from 1; 0 is the entry.
    pub position: usize,
    /// Buffers on huge pages.
    pub hugepages: bool,
}

/// The longest time that a datagram or an answer waits for a round, unless configured (SPEC 9.1.4).
pub fn default_max_age(terms: &PacedTerms) -> Duration {
    Duration::from_millis(u64::from(6 * terms.period_ms).max(60))
}

/// Rounds that a fragment waits for the others of its datagram, if that is longer than in free classes (SPEC 9.1.3).
const HOLD_ROUNDS: u32 = 20;

fn hold(terms: &PacedTerms) -> Duration {
    HOLD.max(HOLD_ROUNDS * Duration::from_millis(terms.period_ms.into()))
}

/// Commands for a channel and its link that wait at most: the link, slots and their keys, the channel, clocks.
const COMMANDS_OF_CHANNEL: usize = 8;

/// Receive calls on each link socket in one turn.
const RECEIVES: usize = 4;

impl Settings {
    fn times(&self) -> Timetable {
        self.terms.timetable(self.hops)
    }

    /// When this hop releases rounds.
    fn schedule(&self, direction: Direction) -> Schedule {
        self.times().schedule(direction, self.position)
    }

    /// The control slots of the link that cells of this direction leave on.
    fn slots(&self, direction: Direction) -> ControlSlots {
        let link = match direction {
            Direction::Forward => self.position + 1,
            Direction::Backward => self.position,
        };
        ControlSlots::new(&self.terms, self.suite, self.hops, link, direction)
    }

    /// The control cells that come in at the socket towards `side`.
    fn control_limits(&self, side: Side) -> ControlLimits {
        let (link, direction) = match side {
            Side::Up => (self.position, Direction::Forward),
            Side::Down => (self.position + 1, Direction::Backward),
        };
        let slots = ControlSlots::new(&self.terms, self.suite, self.hops, link, direction);
        ControlLimits::new(self.times().period(), slots.most(), link == 1)
    }

    /// Most channels of a batch on the link that comes in at this hop.
    fn channels_max(&self) -> usize {
        seats_on(self.position, self.terms.seats, self.terms.loops)
    }

    /// Loops of a mix: channels of its own on the link that leaves it.
    fn loops(&self) -> usize {
        2 * usize::from(self.terms.loops)
    }

    /// Commands that wait for the worker at most, if it is not later than a hop's release may be: cells of the control
    /// slots of these rounds, and those of a channel, its link's among them.
    pub fn commands_max(&self) -> usize {
        let (is_entry, is_exit) = (self.position == 0, self.position == self.hops);
        let forward = if is_exit { 0 } else { self.slots(Direction::Forward).most() };
        let backward = if is_entry { 0 } else { self.slots(Direction::Backward).most() };
        let links = if self.position == 1 { usize::from(self.terms.seats) } else { 1 };
        let channels = if is_entry { 1 } else { self.channels_max() + self.loops() };
        AHEAD_MAX as usize * (forward + backward * links) + COMMANDS_OF_CHANNEL * channels
    }

    /// Messages that wait for control at most. Half of them are what all links that may exist send in one round, twice
    /// as many control cells as they have slots (SPEC 9.4.9). Between hops there are two links while one replaces the
    /// other.
    pub fn punts_max(&self) -> usize {
        let links = |side| match (side, self.position) {
            (Side::Up, 0) => 0,
            (Side::Up, 1) => 2 * usize::from(self.terms.seats),
            (Side::Down, position) if position == self.hops => 0,
            _ => 2,
        };
        let of_side = |side| if links(side) == 0 { 0 } else { links(side) * self.control_limits(side).per_round() };
        2 * (of_side(Side::Up) + of_side(Side::Down))
    }

    /// Lengths of what arrives at the socket towards `side`.
    pub fn lengths(&self, side: Side) -> Lengths {
        Lengths { cell: self.terms.class.cell_len(), handshakes: ingress::handshakes(self.position, side) }
    }
}

/// A channel on a link: by its number and, at Mix 1, its entry's link. Between hops numbers are unique without it, and
/// a channel outlives its link (SPEC 9.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelAt {
    pub link: Option<LinkId>,
    pub number: u32,
}

/// One change that control makes at a worker of a paced class.
pub enum Command {
    Link(LinkCommand),
    /// The keys of a slot that was just installed.
    SlotKeys {
        link: LinkId,
        slot: SlotId,
        keys: Box<SlotKeys>,
    },
    /// A channel of a batch that has not begun.
    InstallChannel {
        batch: u64,
        up: ChannelAt,
        /// Its number on the next link; none at the exit.
        down: Option<u32>,
        keys: Box<ChannelKeys>,
        /// At the exit, the token of its meeting, in the order in which setups were opened (SPEC 9.13.3).
        token: Option<MeetingToken>,
    },
    /// A setup or ack cell for a round. `link` is that of an entry at Mix 1, otherwise none: the neighbour's.
    AtRound {
        link: Option<LinkId>,
        direction: Direction,
        round: u64,
        control: Control,
    },
    /// A link cell for the next slot.
    AtNextSlot {
        link: LinkId,
        control: Control,
    },
    /// What control read in the latest clock cell of a link: its `sent`, and when it came, in ns (SPEC 9.5.6).
    ClockSeen {
        link: LinkId,
        sent: u64,
        received: u64,
    },
    /// The class's clock from now on.
    Clock(SteadyClock),
    /// Exit: the answer to a [`crate::punt::Punt::Resolve`]; empty if there is none.
    Resolved {
        query: QueryId,
        addresses: Vec<IpAddr>,
    },
    /// Exit: the addresses of the host have changed.
    OwnAddresses {
        addresses: Vec<IpAddr>,
    },
    /// Mix: a loop of a batch that has not begun.
    InstallLoop {
        batch: u64,
        /// Its number on the next link.
        number: u32,
        /// None if its setup failed: it sends random bodies.
        keys: Option<(Box<EntryKeys>, Box<Call>)>,
    },
    /// Only of an entry.
    Entry(EntryCommand),
}

/// One change that control makes at an entry's worker of a paced class.
pub enum EntryCommand {
    /// The channel of a batch that has not begun.
    InstallChannel {
        batch: u64,
        /// Its number on link 1.
        number: u32,
        keys: Box<EntryKeys>,
        /// The meeting that it serves; none for destinations.
        call: Option<Box<Call>>,
        /// Its number: another one than before if it is another meeting.
        meeting: u32,
    },
    /// The number that it drew for a batch, before it is known whether there will be a channel (SPEC 9.8.8).
    Drawn { batch: u64, number: u32 },
    /// How much later than by its own clock Mix 1 receives what it sends (SPEC 9.5.5).
    Lead {
        lead_ns: i64,
        /// False before the first sample; the lead is random until then (SPEC 9.5.5).
        is_known: bool,
    },
    /// Listen at one more socket.
    Listen { id: ListenerId, socket: UdpSocket, listener: Listener },
    /// Close a listening socket, and forget its clients.
    Unlisten { id: ListenerId },
    /// Refuse new flows, or take them again.
    RefuseNewFlows(bool),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(position: usize, seats: u16) -> Settings {
        let terms = PacedTerms { seats, ..peer::terms() };
        Settings { terms, suite: Suite::Hybrid, hops: peer::HOPS, position, hugepages: false }
    }

    #[test]
    fn ring_of_commands_follows_the_seats() {
        let most = |position, seats| settings(position, seats).commands_max();
        assert!(most(0, 16_384) < 1000, "an entry has one channel");
        for position in 1..=peer::HOPS {
            assert!(most(position, 256) <= 8192, "{position}");
            assert!((8 * 16_384..1 << 19).contains(&most(position, 16_384)), "{position}");
        }
        // At Mix 1 there are links of entries, which all have a control slot in one round.
        assert!(most(1, 16_384) > 8 * 2 * 16_384);
    }

    #[test]
    fn ring_of_punts_has_room_for_a_round_of_all_links() {
        let most = |position, seats| settings(position, seats).punts_max();
        assert!(most(0, 16_384) < 100, "an entry has one channel");
        // Half of it: 512 links of entries, each of which may pass twice its two slots.
        assert!((4096..4096 + 1000).contains(&most(1, 256)), "{}", most(1, 256));
        assert!((16 * 5000..32 * 5000).contains(&most(1, 5000)), "{}", most(1, 5000));
        assert!((2..=peer::HOPS).all(|position| most(position, 256) < 2048));
    }
}
