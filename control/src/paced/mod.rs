//! Control of paced classes: channels, clocks and alarms (SPEC 9.5, 9.7 to 9.9, 9.14, 9.15).
//!
//! ```text
//! class   a class at a node: clock, what leaves in each round
//!
//! entry   the channel of an entry in each batch: its number, its setup, its ack
//! hop     the channels of all entries at a mix or the exit, and the loops of a mix
//! seats   who may have a channel at a hop, and the shards of its setup
//! queue   the control cells of a phase, each in its place
//! own     setups of an entry or of a loop, until their ack is complete
//! numbers channel numbers for the link towards the exit
//!
//! lead    at which own time an entry sends a round
//! watch   what is heard of the class from others
//!
//! entry_alarm  whether more is lost than links explain, at an entry
//! loops_alarm  the same at a mix, by its loops
//! losses       the test that both use
//! raised  causes for which an alarm is up
//! status  events, and what a node shows
//! ```
//!
//! `entry`, `hop`, `seats`, `queue` and `own` know no clock and no link. The only time that they know is the number of
//! a round: `class` reports what a hop releases or an entry seals, hands in the contents of setup and ack cells that
//! passed the checks of SPEC 9.4 (copies on link 1 do not pass), and takes for each round the contents of the setup and
//! ack slots. Slots without contents carry dummies, so the number of cells in a round never depends on what they
//! return.

mod class;
mod entry;
mod entry_alarm;
mod hop;
mod lead;
mod loops_alarm;
mod losses;
mod numbers;
mod own;
mod queue;
mod raised;
mod seats;
mod status;
#[cfg(test)]
mod tests;
mod watch;

use wire::cell::Shape;
use wire::paced::{AHEAD_MAX, PacedTerms, Phase, Slots, Timetable, ack_slots, seats_on, setup_slots};
use wire::setup::{Info, Suite, paced_shards};
use wire::shards::Shards;

pub(crate) use class::{ClassTime, Paced, PacedCell};
pub(crate) use entry::PacedEntry;
pub(crate) use hop::{Install, PacedHop, ShardCell};
pub(crate) use lead::Lead;
pub use loops_alarm::LoopPlaces;
pub use losses::BEFORE as ALARM_LASTS;
pub use losses::Places;
pub use own::Failure;
pub(crate) use own::Outcome;
pub(crate) use queue::Placed;
pub use status::{
    BatchSize, Cause, EntryStatus, HopStatus, LoopsStatus, NeighbourClock, PacedEvent, PacedStatus, RaisedCause,
    Reported,
};

/// Most shards of a setup: their index has 8 bits, and 255 is not used.
const SHARDS_MAX: u64 = 255;

/// What the hops and entries of a chain compute from the terms of one class.
#[derive(Clone, Debug)]
pub(crate) struct PacedConfig {
    pub(crate) chain_id: [u8; 32],
    pub(crate) shape: Shape,
    pub(crate) suite: Suite,
    pub(crate) terms: PacedTerms,
    pub(crate) times: Timetable,
    /// I of the chain.
    pub(crate) interval_ms: u64,
}

impl PacedConfig {
    /// Of terms that the chain has accepted ([`PacedTerms::check`]).
    ///
    /// # Panics
    /// A chain has 2 to 8 hops.
    pub(crate) fn new(
        chain_id: [u8; 32],
        terms: PacedTerms,
        (hops, suite, interval_s): (usize, Suite, u32),
    ) -> PacedConfig {
        let shape = Shape::new(terms.class.size(), hops).expect("a chain has 2 to 8 hops");
        let (times, interval_ms) = (terms.timetable(hops), u64::from(interval_s) * 1000);
        PacedConfig { chain_id, shape, suite, terms, times, interval_ms }
    }

    /// The interval whose bundle all entries and loops use for the channels of a batch (SPEC 9.8.2).
    pub(crate) fn interval_of(&self, batch: u64) -> u64 {
        let begin_ms = self.times.begin(self.times.first(batch - 1)) / 1_000_000;
        (begin_ms / self.interval_ms).saturating_sub(1)
    }

    /// True if the bundle of an interval is used for the channels of a batch.
    fn is_used(&self, interval: u64) -> bool {
        let next_begin = (interval + 1) * self.interval_ms * 1_000_000;
        let running = next_begin.div_ceil(self.times.begin(self.times.first(1)));
        self.interval_of(running + 1) == interval
    }

    /// The setup slots of a round on link `link`, from 2 on (SPEC 9.6).
    pub(crate) fn setup_slots(&self, link: usize) -> Slots {
        setup_slots(&self.terms, self.suite, self.shape.hops(), link)
    }

    /// The ack slots of a round on link `link`, from 2 on.
    pub(crate) fn ack_slots(&self, link: usize) -> Slots {
        ack_slots(&self.terms, self.shape.hops(), link)
    }

    /// Channels of a batch on link `link` at most: seats_i.
    fn seats(&self, link: usize) -> usize {
        seats_on(link, self.terms.seats, self.terms.loops)
    }

    /// The shards of a setup on link `link`. On link 1 an entry sends more parity shards.
    fn code(&self, link: usize) -> Shards {
        paced_shards(self.shape, self.suite, link)
    }

    /// Shards that a setup has on link `link` at most.
    fn shards_max(&self, link: usize) -> usize {
        if link == 1 { self.times.used().min(SHARDS_MAX) as usize } else { self.code(link).total() }
    }

    /// The fields of a setup for this batch.
    fn info(&self, batch: u64) -> Info {
        Info::paced(self.suite, self.terms.class, self.times.first(batch))
    }

    /// The batch whose channels are set up in this round, or begin to be within the rounds in which a hop takes cells
    /// ahead of time.
    fn coming(&self, released: u64) -> u64 {
        self.times.batch_of(released + AHEAD_MAX) + 1
    }

    /// The rounds of a phase in which channels of this batch are set up.
    fn rounds_of(&self, batch: u64, phase: Phase) -> std::ops::Range<u64> {
        self.times.rounds_of(batch - 1, phase)
    }

    /// The number of a round among those of a phase that carry setups or acks. None if it is not one of them, or if the
    /// phase is one of another batch's channels.
    fn place_of(&self, batch: u64, phase: Phase, round: u64) -> Option<u64> {
        let at = round.checked_sub(self.rounds_of(batch, phase).start)?;
        (at < self.times.used()).then_some(at)
    }
}
