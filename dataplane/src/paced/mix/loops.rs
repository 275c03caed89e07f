//! Loops: channels of the mix's own through the hops behind it (SPEC 9.14).
//!
//! Forward their cells leave with the release of their round, backward they end here. The bodies of a round are sealed
//! when the round before has left. Backward cells get a layer when they come, as those of others do. It is removed, and
//! they are opened, when their round has left. Places without a loop or without a cell are processed under random keys.
//! So times show neither which channels are loops nor what became of their setups.

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::paced::{AHEAD_MAX, Call, EntryKeys, HopKeys, Inner, MEETING_OVERHEAD, RoundSub, Timetable};

use crate::Nanos;
use crate::buffer::{Cell, FreeList, Opened};
use crate::histogram::Histogram;
use crate::ledger::{DropReason, Tally};
use crate::paced::batches::{Batches, Channel};
use crate::paced::report_counts::ReportCounts;
use crate::paced::sender::Leaving;
use crate::paced::{ChannelAt, Settings, decoy};
use crate::stage::rounds::{Origin, Place, Rounds};

/// What seals and opens the cells of a loop. None if its setup has failed.
pub(super) type LoopKeys = Option<(Box<EntryKeys>, Box<Call>)>;

/// Backward places that a mix has counted since its start (SPEC 9.14.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopCounts {
    /// Those of loops that were set up, in rounds that were released.
    pub places: u64,
    /// Those of them for which no cell came in time.
    pub lost: u64,
    /// Cells that came and did not open: what was sent for them was lost behind this mix, or altered.
    pub garbled: u64,
    /// Places of the channels of the next link of which a cell has come in the batch, and of loops that were set up,
    /// without those that the floor has filled.
    pub link_places: u64,
    /// Those of them for which no cell came in time.
    pub link_lost: u64,
}

impl LoopCounts {
    /// Counts a place of a channel of the next link.
    pub(super) fn add_to_link(&mut self, origin: Origin) {
        self.link_places += u64::from(origin != Origin::Floor);
        self.link_lost += u64::from(origin == Origin::Lost);
    }

    /// What was counted since an earlier time.
    pub(super) fn since(self, earlier: LoopCounts) -> LoopCounts {
        LoopCounts {
            places: self.places - earlier.places,
            lost: self.lost - earlier.lost,
            garbled: self.garbled - earlier.garbled,
            link_places: self.link_places - earlier.link_places,
            link_lost: self.link_lost - earlier.link_lost,
        }
    }
}

/// What a mix measures by its loops, from its start on (SPEC 9.14.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoopsView {
    pub counts: LoopCounts,
    /// Cells that loops have sent, those whose setup has failed included.
    pub sent: u64,
    /// Cells from the other loop of a pair that opened.
    pub met: u64,
    /// Of the latest batch in which a cell opened.
    pub delay: Option<Delay>,
}

/// How long the cells of a batch that opened were on their way: from the time at which their round was due to leave
/// forward, in nanoseconds. At most an eighth too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    pub batch: u64,
    pub p50: Nanos,
    pub p99: Nanos,
}

/// The loops of a mix.
pub(super) struct Loops {
    times: Timetable,
    body_len: usize,
    cells: u8,
    /// In a backward round the place of the first loop: behind those of all channels that come in at this hop.
    first: usize,
    batches: Batches<LoopKeys>,
    /// For loops whose setup has failed, and for places without a cell or a loop.
    decoy: (EntryKeys, Call),
    /// The layer that backward cells get when they come.
    layer: HopKeys,
    /// How long the cells of rounds to be released were on their way; round r is at r modulo [`AHEAD_MAX`].
    waited: Vec<Nanos>,
    /// The cells of the backward round that leaves, by loop and sub.
    came: Vec<Option<Cell<Opened>>>,
    /// A body for places without a cell.
    nothing: Vec<u8>,
    /// The round that is sealed, and its cells.
    round: u64,
    sealed: Vec<Leaving>,
    rng: ChaCha20Rng,
    /// Of the cells of this batch that have opened.
    delays: (u64, Histogram),
    pub(super) view: LoopsView,
    /// The first round of which control has not heard, and what it has heard up to there.
    pub(super) reported: (u64, LoopCounts),
}

impl Loops {
    /// `released` is the last backward round that was due when the mix started.
    pub(super) fn new(settings: &Settings, mut rng: ChaCha20Rng, released: u64) -> Loops {
        let terms = &settings.terms;
        let places = settings.loops() * usize::from(terms.cells);
        Loops {
            times: settings.times(),
            body_len: terms.class.body_len(),
            cells: terms.cells,
            first: settings.channels_max(),
            batches: Batches::new(terms.rounds.into(), settings.loops()),
            decoy: decoy::entry_keys(terms.class, settings.hops - settings.position, &mut rng),
            layer: decoy::hop_keys(&mut rng),
            waited: vec![0; places * AHEAD_MAX as usize],
            came: (0..places).map(|_| None).collect(),
            nothing: vec![0; terms.class.body_len()],
            round: 0,
            sealed: Vec::with_capacity(places),
            rng,
            delays: Default::default(),
            view: LoopsView::default(),
            reported: (released + 1, LoopCounts::default()),
        }
    }

    /// Adds a loop to a batch of which nothing was released forward; `released` is the last round.
    pub(super) fn install(&mut self, batch: u64, released: u64, number: u32, keys: LoopKeys) {
        let up = ChannelAt { link: None, number };
        self.batches.add(batch, released, Channel { up, down: Some(number), state: keys });
    }

    /// The cells that loops send in a round.
    pub(super) fn count(&self, round: u64) -> usize {
        self.batches.of_round(round).len() * usize::from(self.cells)
    }

    /// Seals the cells of a round, unless it was done. What was sealed for a round that is skipped never leaves.
    pub(super) fn seal(&mut self, round: u64, free: &mut FreeList) {
        if self.round == round {
            return;
        }
        self.round = round;
        self.sealed.drain(..).for_each(|leaving| free.give(leaving.cell.into_buffer()));
        for Channel { up, state, .. } in self.batches.of_round(round) {
            for sub in 0..self.cells {
                let Some(buffer) = free.take() else { continue };
                let mut cell = Cell::own(buffer);
                let body = cell.body_mut(self.body_len);
                // Bodies under the decoy's keys differ by that.
                self.rng.fill_bytes(body);
                let (keys, call) = match state {
                    Some((keys, call)) => {
                        // Zeros are PAD.
                        body[MEETING_OVERHEAD..].fill(0);
                        (&**keys, &**call)
                    }
                    None => (&self.decoy.0, &self.decoy.1),
                };
                keys.seal_meeting(call, RoundSub { round, sub }, body);
                self.sealed.push(Leaving { cell, number: up.number, sub });
            }
        }
        crate::rekey(&mut self.rng);
    }

    /// Cells that are sealed and have not left.
    pub(super) fn sealed(&self) -> usize {
        self.sealed.len()
    }

    /// The cells of a round that was sealed: one for each place for which there was a buffer.
    pub(super) fn leave(&mut self, round: u64) -> impl Iterator<Item = Leaving> {
        debug_assert!(self.round == round, "it was sealed");
        self.sealed.drain(..)
    }

    /// The place in a backward round of a loop with this number.
    pub(super) fn find(&self, round: u64, number: u32) -> Option<usize> {
        self.batches.find(Direction::Backward, round, None, number).map(|index| self.first + index)
    }

    /// True if a backward place is that of a loop.
    pub(super) fn owns(&self, place: Place) -> bool {
        place.channel >= self.first
    }

    /// A cell has come for a place of a loop, this long after its round was due to leave forward.
    pub(super) fn waited(&mut self, round: u64, place: Place, waited: Nanos) {
        let row = (round % AHEAD_MAX) as usize * self.came.len();
        let at = (place.channel - self.first) * usize::from(self.cells) + usize::from(place.sub);
        self.waited[row + at] = waited;
    }

    /// The layer that backward cells get when they come.
    pub(super) fn layer(&self) -> &HopKeys {
        &self.layer
    }

    /// Counts the places of a backward round that is about to be released, and takes what came for them. The next hop
    /// reads the report: it counts all loops as the channels of others, also those that were not set up, and by the
    /// floor.
    pub(super) fn end_round(&mut self, round: u64, has_floor: bool, rounds: &mut Rounds, places: &mut ReportCounts) {
        let channels = self.batches.of_round(round);
        for (at, came) in self.came.iter_mut().enumerate() {
            let (index, sub) = (at / usize::from(self.cells), (at % usize::from(self.cells)) as u8);
            *came = rounds.take_from(round, Place { channel: self.first + index, sub });
            let Some(Channel { state, .. }) = channels.get(index) else { continue };
            let origin = if came.is_some() { Origin::Came } else { Origin::Lost };
            places.add(None, if has_floor { Origin::Floor } else { origin });
            if state.is_some() {
                self.view.counts.places += 1;
                self.view.counts.lost += u64::from(came.is_none());
                self.view.counts.add_to_link(origin);
            }
        }
    }

    /// Opens what came for a backward round that has left. After the last round of a batch its delays are known, and
    /// its keys wiped.
    pub(super) fn open(&mut self, round: u64, free: &mut FreeList, tally: &mut Tally) {
        let batch = self.times.batch_of(round);
        let (of, delays) = &mut self.delays;
        // The last round of a batch may have been skipped.
        if *of != batch {
            (*of, *delays) = (batch, Histogram::default());
        }
        let channels = self.batches.of_round(round);
        let row = (round % AHEAD_MAX) as usize * self.came.len();
        for (at, came) in self.came.iter_mut().enumerate() {
            let place = RoundSub { round, sub: (at % usize::from(self.cells)) as u8 };
            let state = channels.get(at / usize::from(self.cells)).and_then(|channel| channel.state.as_ref());
            let (keys, call) = state.map_or((&self.decoy.0, &self.decoy.1), |(keys, call)| (&**keys, &**call));
            let body = match came {
                Some(cell) => cell.body_mut(self.body_len),
                None => &mut self.nothing[..],
            };
            self.layer.decipher(Direction::Backward, place, body);
            let inner = keys.open(Some(call), place, body);
            let (is_open, has_met) = (inner.is_some(), matches!(inner, Some(Inner::Meeting(_))));
            let Some(cell) = came.take() else { continue };
            free.give(cell.into_buffer());
            match state {
                Some(_) if is_open => {
                    self.view.met += u64::from(has_met);
                    delays.add(self.waited[row + at], 1);
                    tally.consumed += 1;
                }
                Some(_) => {
                    self.view.counts.garbled += 1;
                    tally.drop(DropReason::Garbled);
                }
                // The exit has the channel if only its ack was lost.
                None => tally.consumed += 1,
            }
        }
        let is_last = self.times.batch_of(round + 1) != batch;
        if is_last && delays.count() > 0 {
            let delays = std::mem::take(delays);
            self.view.delay = Some(Delay { batch, p50: delays.quantile(0.5), p99: delays.quantile(0.99) });
        }
        self.batches.forget_before(round + 1);
    }
}
