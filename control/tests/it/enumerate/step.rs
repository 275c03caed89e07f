//! What the network and the hosts may do with one message, and sequences of that.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// What happens to one message. An attacker is at an address of its own; it sees what others send, and gets what is
/// sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Move {
    /// It arrives. If it was sent to the attacker: the attacker sends it on, from the responder's address.
    Pass,
    /// It is lost, or the attacker keeps it.
    Drop,
    /// It arrives after the next message of the same direction.
    Hold,
    /// It arrives, and again after the next message of the same direction.
    Copy,
    /// The attacker's copy arrives from the attacker's address, and then the message.
    Overtake,
    /// The message arrives, and after the next one of the same direction the attacker's copy, from its address.
    Elsewhere,
    /// It arrives from the attacker's address only.
    Divert,
    /// A copy with another last byte of content arrives first, from the sender's address.
    Forge,
    /// It is sent, and then the attacker sends copies of all datagrams so far, from their senders' addresses and from
    /// its own.
    Replay,
    /// It is sent, and then the initiator restarts, with what is on its disk and with the right clock.
    RestartInitiator,
    /// It is sent, and then the responder restarts.
    RestartResponder,
    /// It is sent. From then on nothing that the initiator writes reaches its disk. At the next message it restarts.
    CrashInitiator,
    /// The same of the responder.
    CrashResponder,
    /// It is sent, and then the initiator has another address.
    Roam,
}

/// All moves, each with its letter and in words.
const MOVES: [(Move, char, &str); 14] = [
    (Move::Pass, '.', "passes"),
    (Move::Drop, 'x', "is lost"),
    (Move::Hold, 'h', "arrives after the next one"),
    (Move::Copy, 'c', "passes, and again after the next one"),
    (Move::Overtake, 'o', "is overtaken by a copy from the attacker's address"),
    (Move::Elsewhere, 'e', "passes, and from the attacker's address after the next one"),
    (Move::Divert, 'd', "arrives from the attacker's address only"),
    (Move::Forge, 'f', "is overtaken by a forged copy from its sender's address"),
    (Move::Replay, 'a', "passes; the attacker sends copies of all datagrams so far"),
    (Move::RestartInitiator, 'I', "passes; the initiator restarts"),
    (Move::RestartResponder, 'R', "passes; the responder restarts"),
    (Move::CrashInitiator, 'J', "passes; the initiator writes nothing more and restarts at the next one"),
    (Move::CrashResponder, 'S', "passes; the responder writes nothing more and restarts at the next one"),
    (Move::Roam, 'm', "passes; the initiator moves to another address"),
];

/// The moves of a sequence, the first one for the first message. All messages behind its end pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence(pub Vec<Move>);

impl Sequence {
    pub fn get(&self, at: usize) -> Move {
        self.0.get(at).copied().unwrap_or(Move::Pass)
    }

    /// This sequence with another move at a place behind its end.
    pub fn with(&self, at: usize, other: Move) -> Sequence {
        let mut moves = self.0.clone();
        moves.resize(at, Move::Pass);
        moves.push(other);
        Sequence(moves)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |step: &Move| MOVES.iter().find(|(other, ..)| other == step).expect("all are there").1;
        write!(f, "{}", self.0.iter().map(letter).collect::<String>())
    }
}

impl FromStr for Sequence {
    type Err = String;

    fn from_str(letters: &str) -> Result<Sequence, String> {
        let step = |letter| {
            let found = MOVES.iter().find(|(_, other, _)| *other == letter);
            found.map(|found| found.0).ok_or_else(|| format!("no move has the letter {letter}"))
        };
        letters.chars().map(step).collect::<Result<_, _>>().map(Sequence)
    }
}

/// Datagrams that one node sends to one address at once: the halves of a message 1, a message 2, a cell or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: Kind,
    pub way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By the first byte: 1 and 2 are messages of Noise, 3 is a reply that stores nothing.
    Handshake(u8),
    Cells,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the initiator to the responder.
    Forward,
    /// From the responder to the initiator.
    Backward,
    /// To the attacker.
    Away,
}

impl Message {
    /// What can happen to it, other than that it passes.
    pub fn moves(self, all: &[Move]) -> impl Iterator<Item = Move> {
        let fits = move |step: &Move| match self.way {
            Way::Forward => true,
            // An initiator takes nothing from another address, so this is a loss.
            Way::Backward => *step != Move::Divert,
            Way::Away => *step == Move::Drop,
        };
        all.iter().copied().filter(fits)
    }
}

/// A sequence in words, one line for each message that does not simply pass.
pub fn describe(sequence: &Sequence, messages: &[Message]) -> String {
    let mut out = String::new();
    for (i, step) in sequence.0.iter().enumerate() {
        let what = match messages.get(i) {
            Some(Message { kind: Kind::Handshake(kind), way }) => {
                format!("handshake datagrams of kind {kind}, {way:?}")
            }
            Some(Message { kind: Kind::Cells, way }) => format!("cells, {way:?}"),
            None => "nothing".to_owned(),
        };
        let words = match (step, messages.get(i).map(|message| message.way)) {
            (Move::Pass, Some(Way::Away)) => "are sent on from the responder's address",
            (Move::Drop, Some(Way::Away)) => "are kept",
            _ => MOVES.iter().find(|(other, ..)| other == step).expect("all are there").2,
        };
        out += &format!("  {:2} {what}: {words}\n", i + 1);
    }
    out
}

/// The address of an attacker who copies and forwards datagrams.
pub fn attacker() -> SocketAddr {
    SocketAddr::from(([6, 6, 6, 6], 6))
}
