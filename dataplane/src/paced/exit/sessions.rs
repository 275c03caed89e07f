//! Sessions: what flows belong to in a paced class, and the answers that wait for rounds (SPEC 9.12.4 to 9.12.7).
//!
//! An entry names its session in every batch, so its flows outlive channels. Answers wait as encoded frames. Those of
//! a datagram follow each other; it ages until the first of them is in a cell, and leaves whole from then on.

use std::collections::{BTreeSet, HashMap, VecDeque};

use wire::frames::{Frame, SESSION_FLOW, Status, Writer, datagrams_max};
use wire::ids::ChannelIndex;

use crate::Nanos;
use crate::exit::gateway::Answers;
use crate::ledger::{DropReason, Tally};

/// Rounds from one answer to SESSION to the next.
const ANSWER_EVERY: u64 = 10;
/// Cells of the longest datagram: a queue has room for one more than can leave within the maximum age.
const DATAGRAM_CELLS: usize = wire::frames::FRAGMENTS_MAX;
/// Sessions for each channel that a batch may have: those that were named in the running batch and the two before are
/// fewer.
const SESSIONS_PER_CHANNEL: usize = 4;

/// Names a session. Random bytes that its entry draws and nobody else learns.
pub(super) type SessionName = [u8; 16];

/// A channel: its batch, and its index there.
pub(super) type BatchChannel = (u64, usize);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Of no datagram.
    None,
    /// A whole datagram or the first fragment of one.
    First,
    Further,
}

/// An encoded frame.
struct Queued {
    since: Nanos,
    len: usize,
    part: Part,
}

struct Session {
    name: SessionName,
    queue: VecDeque<Queued>,
    bytes: VecDeque<u8>,
    /// The channel that sends its answers.
    sender: BatchChannel,
    /// When a cell has named it last.
    named: Nanos,
    /// An OPEN has come.
    is_open: bool,
    /// The batch and round of the last answer to SESSION.
    answered: Option<(u64, u64)>,
}

/// All sessions of an exit.
pub(super) struct Sessions {
    /// Inner bytes of a cell.
    payload: usize,
    /// The longest time that an answer may wait.
    max_age: Nanos,
    /// Most bytes of a queue: about as many as can leave within that time.
    bytes_max: usize,
    /// A session that no cell has named for this long ends.
    lasts: Nanos,
    /// Most sessions.
    pub(super) most: usize,
    sessions: Vec<Option<Session>>,
    vacant: Vec<ChannelIndex>,
    /// Its hash has a random key, so that times show nothing about names.
    by_name: HashMap<SessionName, ChannelIndex>,
    /// When each was named last.
    by_time: BTreeSet<(Nanos, ChannelIndex)>,
    /// Datagrams that wait.
    held: u64,
    scratch: Vec<u8>,
}

/// Sessions, as the place where answers go.
pub(super) struct Queues<'a> {
    pub(super) sessions: &'a mut Sessions,
    pub(super) now: Nanos,
    /// Counts datagrams from applications.
    pub(super) tally: &'a mut Tally,
}

impl Answers for Queues<'_> {
    fn put(&mut self, owner: ChannelIndex, frame: &Frame<'_>) -> Result<(), DropReason> {
        let Self { sessions, now, tally } = self;
        let Sessions { payload, bytes_max, sessions, held, scratch, .. } = &mut **sessions;
        let session = sessions.get_mut(owner.index()).and_then(Option::as_mut).ok_or(DropReason::Ended)?;
        scratch.resize(*payload, 0);
        let mut writer = Writer::new(scratch);
        if !writer.put(frame) {
            return Err(DropReason::TooLarge);
        }
        let len = writer.written().bytes;
        while session.bytes.len() + len > *bytes_max {
            // More than can leave in time.
            let dropped = u64::from(session.drop_first());
            *held -= dropped;
            tally.drop_many(DropReason::Aged, dropped);
        }
        let part = match frame {
            Frame::Frag { index: 1.., .. } => Part::Further,
            frame if frame.is_datagram() => Part::First,
            _ => Part::None,
        };
        *held += u64::from(part == Part::First);
        session.bytes.extend(&scratch[..len]);
        session.queue.push_back(Queued { since: *now, len, part });
        Ok(())
    }
}

impl Session {
    /// Drops frames from before `oldest`, but for those of a datagram of which something has left. Returns how many
    /// datagrams they were.
    fn drop_aged(&mut self, oldest: Nanos) -> u64 {
        let mut dropped = 0;
        while self.queue.front().is_some_and(|frame| frame.part != Part::Further && frame.since < oldest) {
            dropped += u64::from(self.drop_first());
        }
        dropped
    }

    /// Drops the first frame, and the others of its datagram. True if it was a datagram of which nothing has left.
    fn drop_first(&mut self) -> bool {
        let is_first = self.queue.front().is_some_and(|first| first.part == Part::First);
        let mut count = 1;
        if is_first {
            count += self.queue.iter().skip(1).take_while(|frame| frame.part == Part::Further).count();
        }
        let bytes: usize = self.queue.drain(..count.min(self.queue.len())).map(|frame| frame.len).sum();
        self.bytes.drain(..bytes);
        is_first
    }
}

impl Sessions {
    /// For batches of `channels` channels at most and cells with `payload` inner bytes, `cells` of which leave within
    /// `max_age`. A session ends `lasts` after a cell has named it last.
    pub(super) fn new(channels: usize, payload: usize, cells: usize, (max_age, lasts): (Nanos, Nanos)) -> Sessions {
        Sessions {
            payload,
            max_age,
            bytes_max: (cells + DATAGRAM_CELLS) * payload,
            lasts,
            most: SESSIONS_PER_CHANNEL * channels,
            sessions: Vec::new(),
            vacant: Vec::new(),
            by_name: HashMap::new(),
            by_time: BTreeSet::new(),
            held: 0,
            scratch: Vec::new(),
        }
    }

    /// Datagrams that wait.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    pub(super) fn find(&self, name: &SessionName) -> Option<ChannelIndex> {
        self.by_name.get(name).copied()
    }

    /// The session that ends when another one begins, if there are as many as there may be: none of an entry that has
    /// had a channel in one of the latest batches.
    pub(super) fn in_excess(&self) -> Option<ChannelIndex> {
        self.by_time.first().filter(|_| self.by_time.len() >= self.most).map(|(_, owner)| *owner)
    }

    /// True if this is the name of a session.
    pub(super) fn has_name(&self, owner: ChannelIndex, name: &SessionName) -> bool {
        self.find(name) == Some(owner)
    }

    /// Begins a session that a channel has named.
    pub(super) fn begin(&mut self, name: SessionName, sender: BatchChannel, now: Nanos) -> ChannelIndex {
        let owner = self.vacant.pop().unwrap_or_else(|| {
            self.sessions.push(None);
            ChannelIndex(self.sessions.len() as u32 - 1)
        });
        let (queue, bytes) = Default::default();
        let session = Session { name, queue, bytes, sender, named: now, is_open: false, answered: None };
        self.sessions[owner.index()] = Some(session);
        self.by_name.insert(name, owner);
        self.by_time.insert((now, owner));
        owner
    }

    /// A channel has named a session in a cell of a round. Returns what the exit answers, if it does.
    pub(super) fn named(
        &mut self,
        owner: ChannelIndex,
        by: BatchChannel,
        round: u64,
        now: Nanos,
    ) -> Option<Frame<'static>> {
        let session = self.sessions[owner.index()].as_mut()?;
        self.by_time.remove(&(session.named, owner));
        self.by_time.insert((now, owner));
        session.named = now;
        if by.0 >= session.sender.0 {
            session.sender = by;
        }
        let is_answered = |(batch, last)| batch == by.0 && round < last + ANSWER_EVERY;
        if session.answered.is_some_and(is_answered) {
            return None;
        }
        session.answered = Some((by.0, round));
        let code = if session.is_open { Status::Open } else { Status::UnknownFlow };
        Some(Frame::Status { flow: SESSION_FLOW, code })
    }

    /// An OPEN has come.
    pub(super) fn opened(&mut self, owner: ChannelIndex) {
        if let Some(session) = self.sessions[owner.index()].as_mut() {
            session.is_open = true;
        }
    }

    /// Drops what has waited for too long in all sessions.
    pub(super) fn drop_aged(&mut self, now: Nanos, tally: &mut Tally) {
        let oldest = now.saturating_sub(self.max_age);
        let dropped = self.sessions.iter_mut().flatten().map(|session| session.drop_aged(oldest)).sum();
        self.held -= dropped;
        tally.drop_many(DropReason::Aged, dropped);
    }

    /// Fills the inner bytes of a cell of a channel with what waits in the session that it has named; the rest is PAD.
    pub(super) fn fill(
        &mut self,
        owner: Option<ChannelIndex>,
        by: BatchChannel,
        inner: &mut [u8],
        now: Nanos,
        tally: &mut Tally,
    ) {
        let oldest = now.saturating_sub(self.max_age);
        let session = owner.and_then(|owner| self.sessions.get_mut(owner.index())?.as_mut());
        let (mut written, mut datagrams) = (0, 0);
        if let Some(session) = session.filter(|session| session.sender == by) {
            loop {
                let dropped = session.drop_aged(oldest);
                self.held -= dropped;
                tally.drop_many(DropReason::Aged, dropped);
                let Some(&Queued { len, part, .. }) = session.queue.front() else { break };
                datagrams += usize::from(part != Part::None);
                if written + len > inner.len() || datagrams > datagrams_max(inner.len()) {
                    break;
                }
                session.queue.pop_front();
                let (front, back) = session.bytes.as_slices();
                let from_front = len.min(front.len());
                inner[written..written + from_front].copy_from_slice(&front[..from_front]);
                inner[written + from_front..written + len].copy_from_slice(&back[..len - from_front]);
                session.bytes.drain(..len);
                written += len;
                self.held -= u64::from(part == Part::First);
                tally.consumed += u64::from(part == Part::First);
            }
        }
        inner[written..].fill(0);
    }

    /// The sessions that no cell has named for too long.
    pub(super) fn stale(&self, now: Nanos) -> Vec<ChannelIndex> {
        let is_stale = |(named, _): &&(Nanos, ChannelIndex)| named + self.lasts <= now;
        self.by_time.iter().take_while(is_stale).map(|(_, owner)| *owner).collect()
    }

    /// All sessions.
    pub(super) fn all(&self) -> Vec<ChannelIndex> {
        self.by_name.values().copied().collect()
    }

    /// Ends a session. Its index may be given out again when it is vacated.
    pub(super) fn end(&mut self, owner: ChannelIndex, why: DropReason, tally: &mut Tally) {
        let Some(session) = self.sessions[owner.index()].take() else { return };
        let dropped = session.queue.iter().filter(|frame| frame.part == Part::First).count() as u64;
        self.held -= dropped;
        tally.drop_many(why, dropped);
        self.by_name.remove(&session.name);
        self.by_time.remove(&(session.named, owner));
    }

    /// The index of a session that has ended may be given out again.
    pub(super) fn vacate(&mut self, owner: ChannelIndex) {
        self.vacant.push(owner);
    }
}
