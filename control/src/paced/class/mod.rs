//! A paced class at a node: its clock, and what setups, acks and link cells leave in each round (SPEC 9).
//!
//! The worker releases rounds by the clock that is kept here. Control hands it the contents of a round's setup and ack
//! slots one period before the round is due, at an entry two; slots without a content carry dummies.

mod entry;
mod hop;

use std::time::Duration;

use rand::RngExt;
use wire::cell::Direction;
use wire::ids::{LinkId, SlotId};
use wire::paced::clock::{Exchange, SteadyClock};
use wire::paced::{MeetingSecret, PacedHeader, PacedTerms};

use self::entry::EntryPart;
use self::hop::HopPart;
use super::{Lead, LoopPlaces, PacedConfig, PacedStatus, Placed, Places};
use crate::Trust;
use crate::context::Context;
use crate::counters::Refusal;
use crate::io::{Change, PacedChange};
use crate::link::Links;
use crate::trust::view::View;

/// How often a hop's clock is steered towards the host's.
const STEER_EVERY: Duration = Duration::from_secs(1);
/// Before its first sample an entry sends as if its clock were ahead by up to 12 h (SPEC 9.5.5).
const LEAD_BEFORE_MAX_NS: i64 = 12 * 3600 * 1_000_000_000;

/// What a node does in a paced class.
pub(crate) struct Paced {
    clock: SteadyClock,
    steer_at: Duration,
    part: Part,
}

enum Part {
    Hop(Box<HopPart>),
    Entry(Box<EntryPart>),
}

/// A moment, by the node's time and by the class's clock.
#[derive(Clone, Copy)]
pub(crate) struct ClassTime {
    pub(crate) now: Duration,
    pub(crate) class_ns: u64,
}

/// An authentic control cell.
pub(crate) struct PacedCell<'a> {
    pub(crate) at: ClassTime,
    pub(crate) link: LinkId,
    /// Under which it came.
    pub(crate) slot: SlotId,
    pub(crate) header: &'a PacedHeader,
    pub(crate) content: &'a [u8],
}

/// What the clock cells of a neighbour have shown under the newest slot.
#[derive(Default)]
struct Neighbour {
    slot: Option<SlotId>,
    exchange: Exchange,
}

impl Neighbour {
    /// A link cell has come under this slot. False if it is not the newest, and the cell is ignored. With a newer one
    /// the exchange begins again: who has shaken hands may have been restarted with another clock.
    fn comes_under(&mut self, slot: SlotId) -> bool {
        // They are numbered in order, modulo 2^32.
        if self.slot.is_none_or(|newest| (slot.0.wrapping_sub(newest.0) as i32) > 0) {
            *self = Neighbour { slot: Some(slot), exchange: Exchange::default() };
        }
        self.slot == Some(slot)
    }
}

impl Paced {
    /// A class that starts at `now`, when the host's clock shows `unix_ns`.
    pub(crate) fn new(cx: &mut Context, terms: PacedTerms, view: &View, now: Duration, unix_ns: u64) -> Paced {
        let chain = view.terms();
        let config = PacedConfig::new(*view.chain(), terms, (chain.identities.len(), chain.suite, chain.interval_s));
        let clock = SteadyClock::new(now.as_nanos() as u64, unix_ns);
        let part = match cx.config.position {
            0 => {
                // Nobody but the entry itself may learn what its host's clock shows.
                let lead = Lead::new(&config.terms, -cx.rng.random_range(0..=LEAD_BEFORE_MAX_NS));
                Part::Entry(Box::new(EntryPart::new(&mut cx.rng, config, lead, unix_ns)))
            }
            position => Part::Hop(Box::new(HopPart::new(config, position, unix_ns))),
        };
        Paced { clock, steer_at: now + STEER_EVERY, part }
    }

    /// The clock that the worker starts with.
    pub(crate) const fn clock(&self) -> &SteadyClock {
        &self.clock
    }

    fn class_time(&self, now: Duration) -> ClassTime {
        ClassTime { now, class_ns: self.clock.at(now.as_nanos() as u64) }
    }

    /// The time of rounds at `now`, in ms since 1970: of a hop its own, of an entry that at which Mix 1 receives what
    /// leaves now, or by the lead that the entry has drawn.
    pub(crate) fn round_ms(&self, now: Duration) -> u64 {
        let time = self.class_time(now).class_ns;
        match &self.part {
            Part::Hop(_) => time / 1_000_000,
            Part::Entry(entry) => entry.mix_1_ms(time),
        }
    }

    /// Entry: serves this meeting.
    pub(crate) fn meet(&mut self, meeting: MeetingSecret) {
        let Part::Entry(entry) = &mut self.part else { panic!("only an entry has a meeting") };
        entry.meet(meeting);
    }

    /// The interval whose bundle an entry lacks.
    pub(crate) fn wanted_interval(&self) -> Option<u64> {
        match &self.part {
            Part::Hop(_) => None,
            Part::Entry(entry) => entry.wanted_interval(),
        }
    }

    /// True if a link to an entry has a channel or a setup: no handshake displaces it (SPEC 9.8.6).
    pub(crate) fn holds(&self, link: LinkId) -> bool {
        matches!(&self.part, Part::Hop(hop) if hop.holds(link))
    }

    /// When the next round is to be handed over, or the clock steered.
    pub(crate) fn next_wake(&self) -> Duration {
        let due = match &self.part {
            Part::Hop(hop) => hop.due(),
            Part::Entry(entry) => entry.due(),
        };
        Duration::from_nanos(self.clock.when(due)).min(self.steer_at)
    }

    /// Does what is due: steers the clock, and hands the next round's cells over.
    pub(crate) fn tick(&mut self, cx: &mut Context, links: &mut Links, trust: &mut Trust, now: Duration) {
        if now >= self.steer_at {
            self.steer_at = now + STEER_EVERY;
            // An entry follows Mix 1, by its lead, and not its host.
            if matches!(self.part, Part::Hop(_)) {
                self.clock.steer(now.as_nanos() as u64, cx.unix_ns(now) as u64);
                cx.change(Change::Paced(PacedChange::Clock(self.clock.clone())));
            }
        }
        let at = self.class_time(now);
        match &mut self.part {
            Part::Hop(hop) => hop.tick(cx, trust, at),
            Part::Entry(entry) => entry.tick(cx, links, trust, at),
        }
    }

    /// Takes in an authentic control cell. Asks, parts and path cells are those of all classes.
    ///
    /// # Errors
    /// The cell is refused.
    pub(crate) fn cell(
        &mut self,
        cx: &mut Context,
        links: &Links,
        trust: &mut Trust,
        cell: &PacedCell,
    ) -> Result<(), Refusal> {
        let clock = &self.clock;
        match &mut self.part {
            Part::Hop(hop) => hop.cell(cx, links, trust, clock, cell),
            Part::Entry(entry) => entry.cell(cx, trust, clock, cell),
        }
    }

    /// Entry: the worker sends the clock cell with this number on a link, by its own clock at `sent_ns`.
    pub(crate) fn clock_sent(&mut self, link: LinkId, number: u64, sent_ns: u64) {
        if let Part::Entry(entry) = &mut self.part {
            entry.clock_sent(link, number, sent_ns);
        }
    }

    /// Entry: the worker has counted backward places.
    pub(crate) fn places(&mut self, places: Places) {
        if let Part::Entry(entry) = &mut self.part {
            entry.places(places);
        }
    }

    /// Mix: the worker has counted places of loops.
    pub(crate) fn loops(&mut self, cx: &mut Context, places: LoopPlaces) {
        if let Part::Hop(hop) = &mut self.part {
            hop.loops(cx, places);
        }
    }

    /// What the node shows of it at `now`.
    pub(crate) fn status(&self, cx: &Context, links: &Links, now: Duration) -> PacedStatus {
        match &self.part {
            Part::Hop(hop) => PacedStatus::Hop(hop.status(cx, links)),
            Part::Entry(entry) => PacedStatus::Entry(entry.status(self.class_time(now).class_ns)),
        }
    }

    /// Links whose clocks are known.
    #[cfg(test)]
    pub(crate) fn clocks(&self) -> usize {
        match &self.part {
            Part::Hop(hop) => hop.clocks(),
            Part::Entry(_) => 0,
        }
    }

    /// A link has gone.
    pub(crate) fn forget(&mut self, link: LinkId) {
        if let Part::Hop(hop) = &mut self.part {
            hop.forget(link);
        }
    }
}

/// Reports to the node's trust how far the clock behind a link is from the host's.
fn compare_clocks(
    cx: &Context,
    trust: &mut Trust,
    clock: &SteadyClock,
    now: Duration,
    (link, exchange): (LinkId, &Exchange),
) {
    if let Some(best) = exchange.best() {
        let of_class = i128::from(clock.at(now.as_nanos() as u64)) - cx.unix_ns(now) as i128;
        trust.clock_compared(link, ((i128::from(best.offset_ns) + of_class) / 1_000_000) as i64);
    }
}

fn place(cx: &mut Context, direction: Direction, round: u64, cell: Placed<'_>) {
    let Placed { link, kind, channel, sub, content } = cell;
    // Only entries' links have cells of their own.
    let link = link.filter(|_| cx.config.faces_entries() && direction == Direction::Backward);
    let content = content.to_vec();
    cx.change(Change::Paced(PacedChange::AtRound { link, direction, round, kind, channel, sub, content }));
}
