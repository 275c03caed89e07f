//! What a paced class reports and shows: events, and what the status of a node has of it (SPEC 9.5.7, 9.15).

use std::time::Duration;

use wire::cell::Direction;
use wire::ids::Side;
use wire::paced::clock::Comparison;
use wire::paced::{Company, Report};

use super::AHEAD_MAX;
use super::own::Failure;
use crate::counters::Refusal;

/// Something that happened in a paced class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacedEvent {
    /// Entry, or mix with loops: more is lost than links explain. Once for each kind of cause, while the alarm is up.
    Dropping(Cause),
    /// Entry: it has no channel in a batch, and raises no alarm: the latest bundle shows that a hop has restarted, or
    /// the entry was not ready in time, or in most of a phase that the setup needs.
    SetupExcused {
        /// From 1. None: it was the entry.
        hop: Option<usize>,
        batch: u64,
    },
    /// Entry, or mix with loops: no cause for 65,536 rounds.
    DroppingEnded,
    /// Entry: Mix 1 announces another number of channels, or the first one.
    Company(Company),
    /// Entry: its lead has changed by more than the slack of the class within 10 minutes.
    LeadMoved { lead_ns: i64 },
    /// Entry: it is connected and has no channel. If its setup succeeds, it has one from this batch on, which begins
    /// after `wait`.
    JoinsAt { batch: u64, wait: Duration },
    /// Entry: it has a channel in a batch, which begins soon.
    Joined { batch: u64 },
    /// Entry: it misses a batch.
    NotJoined { batch: u64, why: Failure },
    /// Hop: the clock of a neighbouring hop is off by more than 2 ms. Once, until it is within that again.
    ClockOff {
        side: Side,
        /// Positive: the neighbour's is ahead.
        offset_ns: i64,
    },
}

/// Why the alarm `dropping` is up (SPEC 9.15.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Too many of the places of the latest 1,000 rounds were lost in all copies.
    Lost { direction: Direction, places: u64, lost: u64 },
    /// Five reports of Mix 1 in a row did not come.
    NoReports,
    /// No clock cell of Mix 1 has answered one of the entry for 40 s: the lead no longer follows anything.
    NoClock,
    /// A setup failed, or there was none.
    Setup { batch: u64, why: Failure },
    /// Mix: too many of the places of its loops in the latest 1,000 rounds brought nothing back.
    Loops {
        places: u64,
        /// Nothing came from the next hop.
        lost: u64,
        /// What came was noise: their cells were lost forward, or behind the next hop.
        garbled: u64,
    },
    /// Mix: no report of the next hop has come for 1,000 rounds, though most of its cells did.
    NextReportsNothing,
    /// Mix: of the setups of its loops for a batch more failed than losses explain.
    LoopSetups { batch: u64, sent: u64, failed: u64 },
}

impl Cause {
    /// True if both are of one kind, and of one direction.
    pub(super) fn is_like(&self, other: &Cause) -> bool {
        match (self, other) {
            (Cause::Lost { direction, .. }, Cause::Lost { direction: of_other, .. }) => direction == of_other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// A cause of the alarm, the latest of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RaisedCause {
    pub cause: Cause,
    /// The rounds in which a cause of this kind came first, and last.
    pub since: u64,
    pub last: u64,
    /// Causes of this kind in that time: tests, one after every 100 rounds, batches with failed setups, late reports,
    /// or times of 40 s without a clock.
    pub times: u64,
}

/// What a node knows of one of its paced classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PacedStatus {
    Entry(EntryStatus),
    Hop(HopStatus),
}

/// What an entry knows of a paced class.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryStatus {
    /// By how much it sends before its own clock shows the time of a round; none before the first clock cell.
    pub lead_ns: Option<i64>,
    /// Time since the latest sample of the lead.
    pub lead_age: Option<Duration>,
    /// Mix 1's clock against this node's.
    pub clock: Option<Comparison>,
    /// As Mix 1 announced it last.
    pub company: Option<Company>,
    /// The round in which Mix 1 announced a company of `n_min` or more after a smaller one; 0 if it never did.
    pub company_since: u64,
    /// Places of its channels, as Mix 1 reports them.
    pub forward: Reported,
    /// Places of its channels, as the entry counts them: `filled` is what was lost.
    pub backward: Reported,
    /// Batches in which it had or has a channel, and those that it missed: its setup failed, or it had no bundle, or
    /// was not ready in time (SPEC 9.15.3).
    pub joined: u64,
    pub failed: u64,
    /// Those that failed which a restart of a hop, or a link that was down, has excused.
    pub excused: u64,
    /// It has a channel in the running batch.
    pub has_channel: bool,
    /// The next batch in which it can have a channel, the setup of which has not failed.
    pub next_batch: u64,
    /// Time until that batch begins.
    pub next_batch_in: Duration,
    /// The alarm `dropping` is up for these causes. None: it is not.
    pub dropping: Vec<RaisedCause>,
    /// The round up to which it has looked for causes.
    pub looked_to: u64,
    /// Hops, from 1, that have restarted within the time for which the alarm lasts, as bundles show.
    pub restarted: Vec<usize>,
}

impl EntryStatus {
    /// True while the alarm `dropping` is up.
    pub fn is_dropping(&self) -> bool {
        !self.dropping.is_empty()
    }
}

/// What a hop knows of a paced class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopStatus {
    /// Clocks of the neighbouring hops.
    pub clocks: Vec<NeighbourClock>,
    /// The running batch, of those that it has seen from their setups on.
    pub batch: Option<BatchSize>,
    /// The least of each number in the batches of the last hour.
    pub smallest: Option<BatchSize>,
    /// Forward places that the next hop received, as that one reports them.
    pub forward: Reported,
    /// Backward places that the previous hop received, as that one reports them. No entry does.
    pub backward: Reported,
    /// Only of a mix with loops.
    pub loops: Option<LoopsStatus>,
}

/// The loops of a mix since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoopsStatus {
    /// Loops that were set up, one for each batch, and those whose setup was sent and has failed.
    pub set_up: u64,
    pub failed: u64,
    /// The alarm `dropping` is up for these causes. None: it is not.
    pub dropping: Vec<RaisedCause>,
    /// The round up to which it has looked for causes.
    pub looked_to: u64,
}

/// The clock of a neighbouring hop, from the shortest round trip of late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourClock {
    pub side: Side,
    pub clock: Comparison,
}

/// The channels of a batch that came from the previous link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSize {
    /// At Mix 1 each is of an entry's link of its own.
    pub channels: usize,
    /// Prefixes of these links at Mix 1; those that are exempt count as one.
    pub prefixes: usize,
}

/// Reports on places (SPEC 9.15.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    pub last: Option<Report>,
    /// Sums of what each report adds to the one before it.
    pub places: u64,
    pub filled: u64,
    pub lost: u64,
    latest: [Latest; 2],
}

/// What was counted in some of the latest rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Latest {
    rounds: u64,
    places: u64,
    lost: u64,
}

/// What a report can say.
pub(super) struct Bounds {
    /// Most places in a round.
    pub(super) per_round: u64,
    /// The round at which this node is.
    pub(super) running: u64,
}

/// Rounds of one count. The count before it is kept, too.
const LATELY: u64 = 1000;

impl Reported {
    /// Places of the latest 1,000 to 2,000 rounds, fewer after a start, and those of them that were lost.
    pub fn latest(&self) -> (u64, u64) {
        let [before, now] = self.latest;
        (before.places + now.places, before.lost + now.lost)
    }

    /// Takes in running totals. Returns what they add; none if they are the first ones, or not later than the last.
    ///
    /// # Errors
    /// They are of rounds to come, or what they add is impossible (SPEC 9.15.2).
    pub(super) fn take(&mut self, report: Report, bounds: Bounds) -> Result<Option<Report>, Refusal> {
        if report.first > report.last || report.last >= bounds.running + AHEAD_MAX {
            return Err(Refusal::CellMalformed);
        }
        let Some(last) = self.last else { return Ok(self.last.replace(report)) };
        let Some(new) = report.since(last) else { return Ok(None) };
        let most = (new.last + 1 - new.first) * bounds.per_round;
        if new.lost > new.filled || new.filled > new.places || u64::from(new.places) > most {
            return Err(Refusal::CellMalformed);
        }
        self.last = Some(report);
        self.add(new);
        Ok(Some(new))
    }

    /// Adds what was counted of some rounds.
    pub(super) fn add(&mut self, new: Report) {
        self.places += u64::from(new.places);
        self.filled += u64::from(new.filled);
        self.lost += u64::from(new.lost);
        let [_, now] = self.latest;
        if now.rounds >= LATELY {
            self.latest = [now, Latest::default()];
        }
        let [_, now] = &mut self.latest;
        now.rounds += new.last + 1 - new.first;
        now.places += u64::from(new.places);
        now.lost += u64::from(new.lost);
    }
}
