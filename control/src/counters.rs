//! Counters of one class of a node: what was refused, by reason, and what was done.

macro_rules! refusals {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why something that a peer sent was refused. Counted and never logged one by one. Two of them are answered:
        /// [`Refusal::CookieRequired`] by a cookie, [`Refusal::StaleTimestamp`] by a challenge.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Refusal { $($(#[$doc])* $variant,)* }

        impl Refusal {
            /// In the order of [`Refusal::NAMES`].
            pub const ALL: &[Refusal] = &[$(Refusal::$variant),*];
            /// Names in reports and metrics.
            pub const NAMES: &[&str] = &[$($name),*];
        }
    };
}

refusals! {
    /// A handshake datagram of unknown length, kind or part.
    HandshakeMalformed = "handshake-malformed",
    /// The sender does not know this node's public key.
    BadMac1 = "bad-mac1",
    /// A half of message 1 that is waiting already.
    HalfDuplicate = "half-duplicate",
    /// A half of message 1 whose other half did not arrive in time, or that made room for another.
    HalfIncomplete = "half-incomplete",
    /// A half of message 1, or a whole one with a stale timestamp, without a valid cookie while one is required.
    CookieRequired = "cookie-required",
    /// A cookie or a challenge that does not authenticate.
    AnswerForged = "answer-forged",
    /// A handshake message on the side that does not take it.
    WrongSide = "wrong-side",
    /// More messages 1 per second than [`crate::Caps::handshakes`] allows.
    HandshakeRateLimited = "handshake-rate-limited",
    /// More messages 1 per second than one prefix may send.
    PrefixRateLimited = "prefix-rate-limited",
    /// More messages 1 per second from addresses that are not the previous hop's than one hop answers.
    ElsewhereRateLimited = "elsewhere-rate-limited",
    /// A message that Noise or ML-KEM does not accept.
    HandshakeForged = "handshake-forged",
    /// The initiator's static key is not the previous hop's.
    UnknownInitiator = "unknown-initiator",
    /// A timestamp that is not newer than the last accepted one, or answers another challenge.
    StaleTimestamp = "stale-timestamp",
    /// A message 1 that was answered before.
    HandshakeReplayed = "handshake-replayed",
    /// A message 1 with a resumption token that a newer message 1 has used.
    TokenSpent = "token-spent",
    /// A message 2 without a message 1 that waits for it.
    UnexpectedResponse = "unexpected-response",
    /// No room for another link of this prefix, or of this address and port.
    PrefixLinksFull = "prefix-links-full",
    /// No room for another link on this node.
    LinksFull = "links-full",
    /// A cell on a link or slot that is gone.
    UnknownSlot = "unknown-slot",
    /// A control cell of the wrong length, direction or kind.
    CellMalformed = "cell-malformed",
    /// A control cell that does not authenticate.
    CellForged = "cell-forged",
    /// A control cell outside the replay window, or seen before.
    CellReplayed = "cell-replayed",
    /// A control cell on link 1 of a paced class that was accepted before: each is sent several times.
    CellCopy = "cell-copy",
    /// A link cell with unknown content.
    UnknownLinkContent = "unknown-link-content",
    /// An ask or a part of a form that does not exist.
    TrustMalformed = "trust-malformed",
    /// An entry sent something other than an ask.
    TrustFromEntry = "trust-from-entry",
    /// More asks or items than a link or the node may cause work for.
    TrustRateLimited = "trust-rate-limited",
    /// A descriptor, a record or signatures that do not verify, are of another time, or are too many in an interval.
    TrustItem = "trust-item",
    /// A setup for a channel number that is in use.
    ChannelInUse = "channel-in-use",
    /// A setup shard with an index beyond the last, or one that is there already.
    FragmentMalformed = "fragment-malformed",
    /// A setup of which too few shards arrived in time, or that made room for another.
    SetupIncomplete = "setup-incomplete",
    /// Mix: a loop of its own in a paced class for which no bundle came in time, or no complete ack.
    LoopFailed = "loop-failed",
    /// Mix: a setup of a paced class, while it lacks the bundle from which its own loops are made.
    NoBundle = "no-bundle",
    /// A shard of a setup of a paced class for which no seat is left in its batch.
    NoRoom = "no-room",
    /// Mix 1: a shard of a second setup of an entry link for one batch of a paced class.
    SecondSetup = "second-setup",
    /// A setup or ack cell of a paced class before its phase.
    CellEarly = "cell-early",
    /// A setup or ack cell of a paced class after its phase.
    CellLate = "cell-late",
    /// More setups per second than one entry link may begin.
    LinkSetupsRateLimited = "link-setups-rate-limited",
    /// More setups per second than one prefix may begin.
    PrefixSetupsRateLimited = "prefix-setups-rate-limited",
    /// More setups per second than this node accepts.
    SetupsRateLimited = "setups-rate-limited",
    /// Too many half-open channels on this entry link.
    LinkHalfOpenFull = "link-half-open-full",
    /// Too many half-open channels of this prefix.
    PrefixHalfOpenFull = "prefix-half-open-full",
    /// A half-open channel that made room for another.
    HalfOpenReplaced = "half-open-replaced",
    /// Too many channels on this entry link.
    LinkChannelsFull = "link-channels-full",
    /// Too many channels of this prefix.
    PrefixChannelsFull = "prefix-channels-full",
    /// Too many channels on this node.
    ChannelsFull = "channels-full",
    /// The next hop is not connected yet: this node has just started, or has just lost it.
    NextHopStarting = "next-hop-starting",
    /// The next hop is not connected.
    NextHopDown = "next-hop-down",
    /// A setup that this node has opened before.
    SetupReplayed = "setup-replayed",
    /// The replay cache is full.
    ReplayCacheFull = "replay-cache-full",
    /// A setup that does not open, or whose fields are not those of the chain.
    SetupInvalid = "setup-invalid",
    /// An ack that no channel waits for or has received.
    UnexpectedAck = "unexpected-ack",
    /// An ack with a wrong confirmation.
    AckInvalid = "ack-invalid",
    /// An ack content that is sent in one cell instead of three, because too many wait for their others.
    AckCopiesFull = "ack-copies-full",
    /// A half-open channel whose ack did not arrive in time.
    HalfOpenExpired = "half-open-expired",
    /// A handshake datagram of this node that found the queue towards the sockets full.
    OutgoingFull = "outgoing-full",
    /// A cell of this node, or a clock for one, while too many commands waited for a worker that does not take them.
    CommandsFull = "commands-full",
}

/// Counters of one class of a node. They only grow.
#[derive(Clone, Debug)]
pub struct Counters {
    refused: [u64; Refusal::ALL.len()],
    /// Messages 1 sent.
    pub handshakes_started: u64,
    /// Whole messages 1 from others that cost public-key work, whether they were accepted or not.
    pub handshakes_read: u64,
    /// Messages 2 sent or accepted.
    pub handshakes_done: u64,
    /// Setups sent (entry), or opened (hops).
    pub setups: u64,
    pub channels_opened: u64,
    pub keepalives: u64,
    /// Cookies given.
    pub cookies: u64,
    /// Challenges given.
    pub challenges: u64,
    /// Moves of a link that did not happen, because its initiator still received at the old address.
    pub moves_refused: u64,
    /// Control cells accepted.
    pub cells: u64,
    /// Of these, setup shards beyond those that were needed, and ack cells after the first of a content.
    pub surplus_cells: u64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            refused: [0; Refusal::ALL.len()],
            handshakes_started: 0,
            handshakes_read: 0,
            handshakes_done: 0,
            setups: 0,
            channels_opened: 0,
            keepalives: 0,
            cookies: 0,
            challenges: 0,
            moves_refused: 0,
            cells: 0,
            surplus_cells: 0,
        }
    }
}

impl Counters {
    pub(crate) fn refuse(&mut self, why: Refusal) {
        self.refused[why as usize] += 1;
    }

    /// The count of this reason.
    pub fn refused(&self, why: Refusal) -> u64 {
        self.refused[why as usize]
    }

    /// Names and counts of all reasons.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Refusal::NAMES.iter().copied().zip(self.refused.iter().copied())
    }

    pub fn refused_total(&self) -> u64 {
        self.refused.iter().sum()
    }
}
