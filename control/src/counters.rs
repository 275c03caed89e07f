//! What was refused, by name, and what was done: plain counters, one set per node.

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why something a peer sent changed nothing. Counted, never answered, never logged one by one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Refusal { $($(#[$doc])* $variant,)* }

        impl Refusal {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Refusal] = &[$(Refusal::$variant),*];
            /// Their names for metrics, in the same order.
            pub const NAMES: &[&str] = &[$($name),*];
        }
    };
}

refusals! {
    /// A handshake datagram of no known length, kind, part or filling.
    HandshakeForm = "handshake_form",
    /// mac1 is not by someone who knows our key.
    BadMac1 = "bad_mac1",
    /// A half of message 1 that already waits.
    HalfTwice = "half_twice",
    /// A half of message 1 whose other half never came, or that made way for another.
    HalfAlone = "half_alone",
    /// A cookie; not used yet.
    Cookie = "cookie",
    /// A handshake message on a side that does not take it.
    WrongSide = "wrong_side",
    /// Too many handshakes in a second.
    HandshakeBucketEmpty = "handshake_bucket_empty",
    /// Noise or ML-KEM refuses the message.
    HandshakeForged = "handshake_forged",
    /// The initiator's static key is not the previous hop's.
    NotANeighbour = "not_a_neighbour",
    /// A timestamp no newer than the last accepted one.
    StaleTimestamp = "stale_timestamp",
    /// A message 1 that was answered before.
    HandshakeReplayed = "handshake_replayed",
    /// A message 1 whose token was spent by a newer one.
    TokenSpent = "token_spent",
    /// A message 2 that answers nothing we wait for.
    NotAwaited = "not_awaited",
    /// No room for another link of this address.
    AddressLinksFull = "address_links_full",
    /// No room for another link of this node.
    LinksFull = "links_full",
    /// A cell on a link or slot that is gone.
    NoSuchSlot = "no_such_slot",
    /// A control cell of the wrong length, direction or kind.
    CellForm = "cell_form",
    /// A control cell that its key refuses.
    CellForged = "cell_forged",
    /// A control cell outside the window or seen before.
    CellReplayed = "cell_replayed",
    /// A link cell of unknown kind.
    LinkKind = "link_kind",
    /// A setup for channel 0 or a live channel.
    ChannelTaken = "channel_taken",
    /// A setup fragment with an index beyond the last or already there.
    FragmentForm = "fragment_form",
    /// A setup whose fragments did not all come, or that made way for another.
    SetupIncomplete = "setup_incomplete",
    /// Too many setups in a second on this entry link.
    LinkBucketEmpty = "link_bucket_empty",
    /// Too many setups in a second on this node.
    NodeBucketEmpty = "node_bucket_empty",
    /// Too many half-open channels on this entry link.
    LinkHalfOpenFull = "link_half_open_full",
    /// Too many half-open channels on this node.
    HalfOpenFull = "half_open_full",
    /// Too many open channels on this entry link.
    LinkChannelsFull = "link_channels_full",
    /// Too many open channels on this node.
    ChannelsFull = "channels_full",
    /// The next hop is not reachable.
    NextHopDown = "next_hop_down",
    /// A setup seen before.
    SetupReplayed = "setup_replayed",
    /// The replay cache is full.
    ReplayCacheFull = "replay_cache_full",
    /// A setup that does not open, or with a field unlike the descriptor's.
    SetupBad = "setup_bad",
    /// An ack for no half-open channel, or a part of one that has passed.
    AckUnasked = "ack_unasked",
    /// An ack whose confirmations differ.
    AckBad = "ack_bad",
    /// A half-open channel whose ack did not come.
    HalfOpenExpired = "half_open_expired",
    /// A handshake datagram of our own that found the queue in front of the sockets full.
    OutgoingFull = "outgoing_full",
}

/// One node's counters; they only grow.
#[derive(Clone, Debug)]
pub struct Counters {
    refused: [u64; Refusal::ALL.len()],
    /// First messages sent.
    pub handshakes_started: u64,
    /// Message 2 sent or accepted.
    pub handshakes_done: u64,
    /// Setups begun (entry) or passed on (hops).
    pub setups: u64,
    /// Channels opened.
    pub channels_opened: u64,
    /// Keepalives sent.
    pub keepalives: u64,
    /// Control cells accepted.
    pub cells: u64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            refused: [0; Refusal::ALL.len()],
            handshakes_started: 0,
            handshakes_done: 0,
            setups: 0,
            channels_opened: 0,
            keepalives: 0,
            cells: 0,
        }
    }
}

impl Counters {
    pub(crate) fn refuse(&mut self, why: Refusal) {
        self.refused[why as usize] += 1;
    }

    /// How often something was refused for this reason.
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused[why as usize]
    }

    /// Names and counts, for metrics.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Refusal::NAMES.iter().copied().zip(self.refused.iter().copied())
    }

    /// All refusals together.
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().sum()
    }
}
