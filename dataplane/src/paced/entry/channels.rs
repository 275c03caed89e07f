//! The numbers and channels of an entry, batch by batch (SPEC 9.7, 9.8.8, 9.11.8).

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use wire::paced::{AHEAD_MAX, BEHIND_MAX, Call, EntryKeys, PacedTerms, RoundSub, Timetable};

use super::EndToEnd;
use super::shown::COUNTED_MAX;

/// Rounds whose places are remembered: more than are in range, and than are counted at a time.
const RECENT: u64 = 512;
const _: () = assert!(RECENT > BEHIND_MAX + COUNTED_MAX + AHEAD_MAX);
/// Cells that name the session in each batch, whether an answer came or not (SPEC 9.12.6).
const NAMED_FIRST: u32 = 4;
/// Without an answer the session is named again this many rounds later.
const NAMED_AGAIN: u64 = 10;

/// One bit for each place of a batch.
struct Marks(Vec<u64>);

impl Marks {
    fn has(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 == 1
    }

    /// True if it was not marked before.
    fn insert(&mut self, at: usize) -> bool {
        let was_marked = self.has(at);
        self.0[at / 64] |= 1 << (at % 64);
        !was_marked
    }
}

/// When a channel names the session.
#[derive(Default)]
struct Naming {
    /// Cells that did, and the round of the last one.
    count: u32,
    last: u64,
    is_answered: bool,
}

/// An entry's channel in one batch.
pub(super) struct Channel {
    pub(super) keys: Box<EntryKeys>,
    /// The meeting that it serves; none for destinations.
    pub(super) call: Option<Box<Call>>,
    /// The number of that meeting.
    pub(super) meeting: u32,
    /// Places whose backward cell has opened.
    opened: Marks,
    /// Places whose frames have had their effect: in a meeting an AGAIN may bring them first.
    used: Marks,
    /// Places whose body of the other end of the meeting has opened. If there is one, that end is there for the whole
    /// batch.
    met: Marks,
    is_joined: bool,
    naming: Naming,
}

impl Channel {
    /// True if its next cell of sub 0 names the session.
    pub(super) fn names_session(&self, round: u64) -> bool {
        let Naming { count, last, is_answered } = self.naming;
        count < NAMED_FIRST || (!is_answered && round >= last + NAMED_AGAIN)
    }

    pub(super) fn named_session(&mut self, round: u64) {
        self.naming.count += 1;
        self.naming.last = round;
    }

    /// The exit has answered a SESSION on this channel.
    pub(super) fn session_answered(&mut self) {
        self.naming.is_answered = true;
    }
}

/// One batch.
struct Batch {
    number: u64,
    /// The channel number on link 1.
    channel_number: u32,
    channel: Option<Channel>,
}

/// All batches that an entry knows, and what came in the latest rounds.
pub(super) struct Channels {
    times: Timetable,
    cells: usize,
    rounds: usize,
    /// Two or three, or a few more if batches are short.
    batches: Vec<Batch>,
    /// The latest round for whose place a cell came.
    recent: Vec<u64>,
}

impl Channels {
    pub(super) fn new(terms: &PacedTerms, times: Timetable) -> Channels {
        let cells = usize::from(terms.cells);
        let recent = vec![0; RECENT as usize * cells];
        Channels { times, cells, rounds: terms.rounds.into(), batches: Vec::new(), recent }
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.batches.iter().position(|batch| batch.number == number)
    }

    fn at(&mut self, number: u64, drawn: impl FnOnce() -> u32) -> &mut Batch {
        let at = self.position(number).unwrap_or_else(|| {
            self.batches.push(Batch { number, channel_number: drawn(), channel: None });
            self.batches.len() - 1
        });
        &mut self.batches[at]
    }

    /// Sets the number of a batch, and with keys its channel. A number that a batch has stays, unless it gets a
    /// channel.
    pub(super) fn install(
        &mut self,
        number: u64,
        channel_number: u32,
        keys: Option<(Box<EntryKeys>, Option<Box<Call>>, u32)>,
    ) {
        let places = self.rounds * self.cells;
        let marks = || Marks(vec![0; places.div_ceil(64)]);
        let batch = self.at(number, || channel_number);
        if let Some((keys, call, meeting)) = keys {
            batch.channel_number = channel_number;
            let ([opened, used, met], naming) = ([marks(), marks(), marks()], Naming::default());
            batch.channel = Some(Channel { keys, call, meeting, opened, used, met, is_joined: false, naming });
        }
    }

    /// The channel number of a round, and the channel if there is one. A batch of which nothing is known gets a number.
    pub(super) fn of_round(&mut self, round: u64, rng: &mut ChaCha20Rng) -> (u32, Option<&mut Channel>) {
        let draw = || std::iter::repeat_with(|| rng.next_u32()).find(|number| *number != 0).expect("it never ends");
        let number = self.times.batch_of(round);
        let batch = self.at(number, draw);
        (batch.channel_number, batch.channel.as_mut())
    }

    /// True if a cell of this round may have this channel number: 0, or that of the batch.
    pub(super) fn is_number_of(&self, round: u64, number: u32) -> bool {
        let batch = self.times.batch_of(round);
        let known = |batch: usize| self.batches[batch].channel_number == number;
        number == 0 || self.position(batch).is_some_and(known)
    }

    /// The channel of a round.
    pub(super) fn channel(&mut self, round: u64) -> Option<&mut Channel> {
        let at = self.position(self.times.batch_of(round))?;
        self.batches[at].channel.as_mut()
    }

    fn mark_of(&self, place: RoundSub) -> usize {
        (place.round % self.rounds as u64) as usize * self.cells + usize::from(place.sub)
    }

    /// A cell of this place has opened. False if one had before: cells of rounds far
    /// away have come since, after the lead has jumped.
    pub(super) fn mark_opened(&mut self, place: RoundSub) -> bool {
        let at = self.mark_of(place);
        self.channel(place.round).is_some_and(|channel| channel.opened.insert(at))
    }

    /// The cell of this place is of the other end of the meeting.
    pub(super) fn mark_met(&mut self, place: RoundSub) {
        let at = self.mark_of(place);
        if let Some(channel) = self.channel(place.round) {
            channel.met.insert(at);
            channel.is_joined = true;
        }
    }

    /// True the first time that frames of this place are to have an effect.
    pub(super) fn mark_used(&mut self, place: RoundSub) -> bool {
        let at = self.mark_of(place);
        self.channel(place.round).is_some_and(|channel| channel.used.insert(at))
    }

    /// The round before this one, if it is of the same batch.
    pub(super) fn round_before(&self, round: u64) -> Option<u64> {
        let before = round.checked_sub(1)?;
        (self.times.batch_of(before) == self.times.batch_of(round)).then_some(before)
    }

    /// A cell takes its place. False if one has taken it before, whether it opened or not.
    pub(super) fn claim(&mut self, place: RoundSub) -> bool {
        let at = (place.round % RECENT) as usize * self.cells + usize::from(place.sub);
        std::mem::replace(&mut self.recent[at], place.round) != place.round
    }

    /// How many places the channel of a round has, and how many of them no cell came for. The round is one of the
    /// latest 512.
    pub(super) fn lost(&mut self, round: u64) -> (u64, u64) {
        if self.channel(round).is_none() {
            return (0, 0);
        }
        let at = (round % RECENT) as usize * self.cells;
        let lost = self.recent[at..at + self.cells].iter().filter(|taken| **taken != round).count();
        (self.cells as u64, lost as u64)
    }

    /// The places of a round in which the other end of the meeting is there, those for which nothing of it has opened,
    /// and those of them for which something of the exit has.
    pub(super) fn of_other_end(&mut self, round: u64) -> EndToEnd {
        let cells = self.cells;
        let first = self.mark_of(RoundSub { round, sub: 0 });
        let Some(channel) = self.channel(round).filter(|channel| channel.is_joined) else { return EndToEnd::default() };
        let lost = || (first..first + cells).filter(|at| !channel.met.has(*at));
        let of_exit = lost().filter(|at| channel.opened.has(*at)).count() as u64;
        EndToEnd { places: cells as u64, lost: lost().count() as u64, of_exit }
    }

    /// Batches with a channel.
    pub(super) fn len(&self) -> usize {
        self.batches.iter().filter(|batch| batch.channel.is_some()).count()
    }

    /// Batches of which no cell can come any more, since round `from` is the first one that counts, are forgotten, and
    /// their keys wiped. So are those that `running` is far from: the lead has jumped back.
    pub(super) fn forget(&mut self, from: u64, running: u64) {
        let (times, coming) = (&self.times, self.times.batch_of(running) + 1);
        let is_over = |batch: u64| times.first(batch + 1) + BEHIND_MAX <= from;
        self.batches.retain(|batch| !is_over(batch.number) && batch.number <= coming + 1);
    }
}
