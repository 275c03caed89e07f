//! Counters that account for every packet.
//!
//! One [`Tally`] per direction and unit: plain counters that the worker owns. The identity
//!
//! ```text
//! received + injected = sent + send errors + sum(drops by reason) + consumed + held
//! ```
//!
//! holds at every turn boundary, which is when a worker publishes. Units are cells on every node
//! and, on entry and exit, datagrams too. Read for datagrams: forward at the entry `received` from
//! applications and `consumed` (wrapped into cells); forward at the exit `injected` (unwrapped) and
//! `sent`; backward the same the other way round.

use wire::frames::Status;

use crate::per_direction::PerDirection;

macro_rules! drops {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// Every reason.
            pub const ALL: &[DropReason] = &[$(DropReason::$name,)*];

            /// Its name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }
        }
    };
}

drops! {
    /// Neither the link's cell length nor a handshake's.
    Length => "length",
    /// Beyond the cells taken of one burst; neighbours send no longer ones.
    Cut => "cut",
    /// From an address without a link.
    Stranger => "stranger",
    /// The header block deciphers under no slot of the link.
    Header => "header",
    /// A type that may not travel in this direction.
    Kind => "kind",
    /// No open channel of that number on this link.
    Channel => "no-channel",
    /// A cell-in-round number in a class without rounds.
    Sub => "sub",
    /// Behind the window.
    Old => "old",
    /// Too far ahead of the window.
    Ahead => "ahead",
    /// Accepted before.
    Replay => "replay",
    /// Paced class: for a round that has been released.
    Late => "late",
    /// Paced class: for a round too far ahead.
    Early => "early",
    /// Paced class: a cell on link 1 that has come before, in chains without copies, too.
    Copy => "copy",
    /// Paced class: the link tag is not that of the body.
    Tag => "bad-tag",
    /// Paced class: the inner body of a cell does not open: noise, or damaged on its way.
    Garbled => "garbled",
    /// Paced class: noise took its place, because its batch has too few channels.
    Floor => "floor",
    /// Paced class: the hop woke too late to release its round.
    Skipped => "skipped",
    /// The layer, or the body of a control cell of a paced class, is not authentic.
    Forged => "forged",
    /// Control's queue is full.
    PuntFull => "control-queue-full",
    /// Paced class: more control cells than the link has slots for.
    ControlRate => "control-rate",
    /// A cell of control's that found its pool full.
    PoolFull => "pool-full",
    /// No free buffer for a cell of our own.
    NoBuffer => "no-buffer",
    /// The outgoing link has no current slot.
    LinkDown => "link-down",
    /// The outgoing link has ended while the cell was pooled.
    LinkGone => "link-gone",
    /// An injected cell whose slot expired before it left.
    SlotExpired => "slot-expired",
    /// The inner frames of a cell do not parse.
    Frames => "bad-frames",
    /// Longer than eight fragments.
    TooLarge => "too-large",
    /// Entry: waited for a channel, and the queue of those was full.
    ChannelQueueFull => "channel-queue-full",
    /// Exit: the datagrams of the flow that wait for its name have reached their maximum.
    FlowQueueFull => "flow-queue-full",
    /// A fragment never came.
    Incomplete => "incomplete",
    /// Exit: the first fragment of a datagram of a channel that has its share of incomplete datagrams.
    ReassemblyFull => "reassembly-full",
    /// For a flow that does not exist.
    Flow => "unknown-flow",
    /// Refused by the exit's policy.
    Policy => "policy",
    /// The name does not resolve.
    Unresolvable => "unresolvable",
    /// No route leads there, or the host or its port does not answer.
    Unreachable => "unreachable",
    /// The system does not permit it: a firewall's rule, mostly.
    Forbidden => "forbidden",
    /// Longer than the path takes.
    PathMtu => "path-mtu",
    /// The send buffer of an application socket was full.
    SendBufferFull => "send-buffer-full",
    /// Entry: the table of clients is full.
    ClientsFull => "clients-full",
    /// The table of flows is full, or at an exit so full that the channel has as many as are free.
    FlowsFull => "flows-full",
    /// Entry: every flow number of the channel is in use.
    NumbersFull => "numbers-full",
    /// Entry: the exit has too many flows, sockets, questions, or the channel opened too many at once.
    ExitFull => "exit-full",
    /// Exit: the channel has its maximum of flows.
    ChannelFlowsFull => "channel-flows-full",
    /// Exit: the number that a flow was to move to is in use.
    NumberTaken => "number-taken",
    /// Exit: all sockets are in use, or the channel has opened as many as are free.
    SocketsFull => "sockets-full",
    /// Exit: the system gives no socket: no descriptor, port or memory is left.
    NoSocket => "no-socket",
    /// Exit: the channel opens flows faster than it may.
    OpenRate => "open-rate",
    /// Exit: the channel has as many names being resolved as there are free.
    NamesFull => "names-full",
    /// Exit: more names per second than all channels together, or this one's part of them, may have resolved.
    NameRate => "name-rate",
    /// Exit: for an unknown flow, when more flows were refused within a second than it remembers.
    RefusedFull => "refused-full",
    /// From an address that no flow of the socket talks to; at the entry, for a client that cannot see the sender.
    Filtered => "filtered",
    /// Exit: to an address that has not answered what it has got.
    Unanswered => "unanswered",
    /// Exit: faster than a flow may be.
    FlowRate => "flow-rate",
    /// Exit: to or from an address faster than all flows with it may be.
    DestinationRate => "destination-rate",
    /// Entry: a pymix or SOCKS datagram without a whole header, to port 0, or to a name that is malformed or too long.
    BadAddress => "bad-address",
    /// Entry: part of a datagram that a SOCKS client has cut up (RFC 1928 lets a relay refuse that).
    SocksFragment => "socks-fragment",
    /// Entry: at the relay of a SOCKS association, from somebody else than its client.
    Foreign => "not-the-client",
    /// Entry of a paced class: of a flow that is new while the alarm `dropping` is up.
    Alarm => "alarm",
    /// Waited longer than the maximum age, in a socket or in a queue.
    Aged => "aged",
    /// Entry of a paced class: as `Aged`, while each round had a channel: the class does not carry as much.
    OverRate => "over-rate",
    /// Its flow or channel ended while it waited.
    Ended => "ended",
    /// Still held when the node stopped.
    Shutdown => "shutdown",
}

impl DropReason {
    /// The reason for which datagrams of a flow are dropped that the exit refused with this status.
    pub(crate) fn of_status(status: Status) -> DropReason {
        match status {
            Status::Refused => DropReason::Policy,
            Status::Unresolvable => DropReason::Unresolvable,
            Status::Unreachable => DropReason::Unreachable,
            Status::TooManyFlows => DropReason::ExitFull,
            Status::TooLarge => DropReason::TooLarge,
            Status::Open | Status::UnknownFlow => DropReason::Flow,
        }
    }

    /// The status that an exit sends to the entry for a flow refused for this reason.
    pub(crate) fn status(self) -> Status {
        match self {
            DropReason::Policy => Status::Refused,
            DropReason::Unresolvable => Status::Unresolvable,
            DropReason::Flow => Status::UnknownFlow,
            _ => Status::TooManyFlows,
        }
    }
}

/// Number of reasons.
pub(crate) const DROPS: usize = DropReason::ALL.len();

/// Counters of one unit in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Came in.
    pub received: u64,
    /// Made here.
    pub injected: u64,
    /// The kernel took it.
    pub sent: u64,
    /// The kernel refused it.
    pub send_errors: u64,
    /// Handed over: to control, or to the other unit.
    pub consumed: u64,
    /// Dropped, by reason.
    pub dropped: [u64; DROPS],
    /// Inside the node now.
    pub held: u64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally { received: 0, injected: 0, sent: 0, send_errors: 0, consumed: 0, dropped: [0; DROPS], held: 0 }
    }
}

impl Tally {
    /// Counts a drop.
    pub fn drop(&mut self, reason: DropReason) {
        self.dropped[reason as usize] += 1;
    }

    /// Counts several drops.
    pub fn drop_many(&mut self, reason: DropReason, count: u64) {
        self.dropped[reason as usize] += count;
    }

    /// Drops of one reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Drops of all reasons.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Counts cells that are inside.
    pub fn hold(&mut self, cells: usize) {
        self.held = self.held.wrapping_add(cells as u64);
    }

    /// True if the identity holds. `held` of one core may be negative: it sends cells that other cores have received.
    pub fn closed(&self) -> bool {
        let accounted = self.sent + self.send_errors + self.dropped_total() + self.consumed;
        self.received + self.injected == accounted.wrapping_add(self.held)
    }

    /// The sum of two tallies.
    pub fn and(mut self, other: &Tally) -> Tally {
        self.received += other.received;
        self.injected += other.injected;
        self.sent += other.sent;
        self.send_errors += other.send_errors;
        self.consumed += other.consumed;
        self.held = self.held.wrapping_add(other.held);
        self.dropped.iter_mut().zip(other.dropped).for_each(|(drops, more)| *drops += more);
        self
    }
}

impl PerDirection<Tally> {
    /// True if both identities hold.
    pub fn closed(&self) -> bool {
        self.forward.closed() && self.backward.closed()
    }

    /// The sums of each direction.
    pub fn and(self, other: &PerDirection<Tally>) -> PerDirection<Tally> {
        PerDirection { forward: self.forward.and(&other.forward), backward: self.backward.and(&other.backward) }
    }
}

/// Releases of pools or, at entry and exit, of turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Releases {
    pub count: u64,
    /// Cells, summed over releases.
    pub cells: u64,
    /// The largest release.
    pub largest: u64,
}

impl Releases {
    /// Counts a release.
    pub fn add(&mut self, cells: usize) {
        self.count += 1;
        self.cells += cells as u64;
        self.largest = self.largest.max(cells as u64);
    }
}

/// Rounds of a paced class that left on the links between hops, of both directions (SPEC 9.10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundCounts {
    pub released: u64,
    /// Those of them with another number of cells than the batch's channels and the slots of the round make.
    pub uneven: u64,
    /// Rounds that did not leave, because the hop woke too late.
    pub skipped: u64,
    /// Cells of channels in the released rounds, loops included.
    pub cells: u64,
}

impl RoundCounts {
    /// Counts a round that left with `found` cells. It should have `control` control cells and `of_channels` others.
    pub fn add(&mut self, found: usize, control: usize, of_channels: usize) {
        self.released += 1;
        self.uneven += u64::from(found != control + of_channels);
        self.cells += found.saturating_sub(control) as u64;
    }
}

/// All that a worker counts, as published at a turn boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Cells on links.
    pub cells: PerDirection<Tally>,
    /// Datagrams of applications; zeros on a mix.
    pub datagrams: PerDirection<Tally>,
    pub releases: Releases,
    /// Of a paced class; zeros at an entry.
    pub rounds: RoundCounts,
    pub buffers: Buffers,
    pub traffic: Traffic,
    pub gauges: Gauges,
}

/// Buffers of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// Buffers without a cell: in the free list, or at a socket as rx buffers. On one core of several it may wrap,
    /// because buffers move between cores; the sum over all cores does not.
    pub free: u64,
    pub total: u64,
}

impl Buffers {
    /// The sums of two cores.
    pub fn and(self, other: Buffers) -> Buffers {
        Buffers { free: self.free.wrapping_add(other.free), total: self.total + other.total }
    }
}

/// Traffic of link sockets, in messages of system calls: a burst counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub received: u64,
    pub sent: u64,
    /// True if every socket may send cells in GSO bursts.
    pub gso: bool,
    /// True if every socket uses io_uring.
    pub uring: bool,
}

impl Traffic {
    /// The sum over the sockets of a node. GSO and io_uring count only if both use them.
    pub fn and(self, other: Traffic) -> Traffic {
        Traffic {
            received: self.received + other.received,
            sent: self.sent + other.sent,
            gso: self.gso && other.gso,
            uring: self.uring && other.uring,
        }
    }
}

/// Sizes of the tables now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub links: u64,
    /// Open channels.
    pub channels: u64,
    /// Flows (entry and exit).
    pub flows: u64,
    /// Application sockets (exit) or clients (entry).
    pub sockets: u64,
}

impl Ledger {
    /// True if every identity holds.
    pub fn closed(&self) -> bool {
        self.cells.closed() && self.datagrams.closed()
    }

    /// The sum of two cores of one node. Gauges and releases add up, too: one core alone reports what both share.
    pub fn and(self, other: &Ledger) -> Ledger {
        let (mine, theirs) = (self.releases, other.releases);
        let (here, there) = (self.gauges, other.gauges);
        let (ours, others) = (self.rounds, other.rounds);
        Ledger {
            cells: self.cells.and(&other.cells),
            datagrams: self.datagrams.and(&other.datagrams),
            releases: Releases {
                count: mine.count + theirs.count,
                cells: mine.cells + theirs.cells,
                largest: mine.largest.max(theirs.largest),
            },
            rounds: RoundCounts {
                released: ours.released + others.released,
                uneven: ours.uneven + others.uneven,
                skipped: ours.skipped + others.skipped,
                cells: ours.cells + others.cells,
            },
            buffers: self.buffers.and(other.buffers),
            traffic: self.traffic.and(other.traffic),
            gauges: Gauges {
                links: here.links + there.links,
                channels: here.channels + there.channels,
                flows: here.flows + there.flows,
                sockets: here.sockets + there.sockets,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct() {
        let names: std::collections::HashSet<_> = DropReason::ALL.iter().map(|d| d.name()).collect();
        assert_eq!(names.len(), DROPS);
    }

    #[test]
    fn a_tally_closes_only_when_everything_is_accounted_for() {
        let mut tally = Tally { received: 3, sent: 1, held: 1, ..Tally::default() };
        assert!(!tally.closed());
        tally.drop(DropReason::Replay);
        assert!(tally.closed());
    }
}
