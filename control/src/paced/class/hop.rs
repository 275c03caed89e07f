//! A paced class at a mix or the exit.

use std::collections::HashMap;

use wire::cell::{CellKind, Direction};
use wire::ids::{LinkId, Side};
use wire::link::LinkContent;
use wire::paced::clock::{CLOCK_LEN, ClockCell, SteadyClock};
use wire::paced::{Report, Schedule};

use super::{ClassTime, Neighbour, PacedCell, compare_clocks, place};
use crate::Trust;
use crate::context::Context;
use crate::counters::Refusal;
use crate::io::{Change, Event, PacedChange};
use crate::link::Links;
use crate::paced::watch::HopWatch;
use crate::paced::{Failure, HopStatus, Install, LoopPlaces, Outcome, PacedConfig, PacedHop, ShardCell};

/// Clock cells say to a tenth of a millisecond when others came. Nanoseconds would show how long turns of the worker
/// take.
const RECEIVED_NS: u64 = 100_000;

pub(super) struct HopPart {
    hop: PacedHop,
    /// Of releases, forward and backward.
    schedules: [Schedule; 2],
    /// The rounds that were handed over last, forward and backward.
    handed_over: [u64; 2],
    /// By link; at Mix 1 entries, too.
    neighbours: HashMap<LinkId, Neighbour>,
    /// Links to hops among these: the status, which is made in every turn, looks at no others.
    hops: Vec<LinkId>,
    watch: HopWatch,
}

impl HopPart {
    pub(super) fn new(config: PacedConfig, position: usize, unix_ns: u64) -> HopPart {
        let schedules = [Direction::Forward, Direction::Backward].map(|way| config.times.schedule(way, position));
        let handed_over = schedules.map(|schedule| schedule.last_due(unix_ns));
        HopPart {
            watch: HopWatch::new(&config, position, handed_over[1]),
            hop: PacedHop::new(config, position, handed_over),
            schedules,
            handed_over,
            neighbours: HashMap::new(),
            hops: Vec::new(),
        }
    }

    pub(super) fn holds(&self, link: LinkId) -> bool {
        self.hop.holds(link)
    }

    /// When the next round is to be handed over, by the class's clock.
    pub(super) fn due(&self) -> u64 {
        let due = |way: usize| self.schedules[way].due_at(self.handed_over[way] + 1);
        due(0).min(due(1)).saturating_sub(self.hop.config().times.period())
    }

    pub(super) fn tick(&mut self, cx: &mut Context, trust: &Trust, at: ClassTime) {
        self.take_bundle(trust);
        self.hand_over(cx, Direction::Forward, at);
        self.hand_over(cx, Direction::Backward, at);
        // A batch may have begun. Its setups that have come already are next.
        self.take_bundle(trust);
    }

    fn take_bundle(&mut self, trust: &Trust) {
        if let (Trust::Hop(trust), Some(interval)) = (trust, self.hop.wanted_interval())
            && let Some(bundle) = trust.view().complete(interval)
        {
            let keys = bundle.setup_keys(&self.hop.config().chain_id);
            self.hop.bundle(interval, keys);
        }
    }

    /// Hands over the rounds that are due within a period.
    fn hand_over(&mut self, cx: &mut Context, direction: Direction, at: ClassTime) {
        let HopPart { hop, schedules, handed_over, watch, .. } = self;
        let handed_over = &mut handed_over[direction as usize];
        let period = hop.config().times.period();
        for round in schedules[direction as usize].due(*handed_over, at.class_ns + period) {
            if direction == Direction::Forward {
                watch.begins(hop, round, at.now);
            }
            let outcomes = hop.advance(&mut cx.rng, &mut cx.counters, direction, round);
            watch.loops_decided(&outcomes);
            install_loops(cx, outcomes);
            for cell in hop.cells(direction, round) {
                place(cx, direction, round, cell);
            }
            *handed_over = round;
        }
    }

    pub(super) fn cell(
        &mut self,
        cx: &mut Context,
        links: &Links,
        trust: &mut Trust,
        clock: &SteadyClock,
        cell: &PacedCell,
    ) -> Result<(), Refusal> {
        let PacedCell { header, content, .. } = *cell;
        match header.kind {
            CellKind::Setup => self.setup(cx, links, trust, cell),
            CellKind::Ack => self.hop.ack(&mut cx.counters, (header.channel, header.sub), content),
            CellKind::Link => self.link_cell(cx, links, trust, clock, cell),
            CellKind::Data => Err(Refusal::CellMalformed),
        }
    }

    fn setup(&mut self, cx: &mut Context, links: &Links, trust: &mut Trust, cell: &PacedCell) -> Result<(), Refusal> {
        let PacedCell { at, link, header, content, .. } = *cell;
        let Trust::Hop(trust) = trust else { return Err(Refusal::CellMalformed) };
        let home = links.home(&cx.config, link);
        let cell = ShardCell { link, home, channel: header.channel, sub: header.sub, content };
        let wall_ms = (cx.unix_ns(at.now) / 1_000_000) as u64;
        let open = |shape, info, onion: &[u8]| trust.keyring_mut().open(shape, info, onion, wall_ms);
        if let Some(install) = self.hop.shard(&mut cx.rng, &mut cx.counters, cell, open)? {
            let Install { batch, up: (link, number), down, keys, token } = install;
            let up = (cx.config.faces_entries().then_some(link), number);
            cx.change(Change::Paced(PacedChange::InstallChannel { batch, up, down, keys, token }));
        }
        Ok(())
    }

    fn link_cell(
        &mut self,
        cx: &mut Context,
        links: &Links,
        trust: &mut Trust,
        clock: &SteadyClock,
        &PacedCell { at, link, slot, content, .. }: &PacedCell,
    ) -> Result<(), Refusal> {
        let side = side_of_hop(cx, links, link);
        let neighbour = self.neighbours.entry(link).or_insert_with(|| {
            self.hops.extend(side.map(|_| link));
            Neighbour::default()
        });
        if !neighbour.comes_under(slot) {
            return Ok(());
        }
        let exchange = &mut neighbour.exchange;
        let bytes = &content[1..];
        match LinkContent::from_wire(content[0]) {
            Some(LinkContent::Clock) => {
                let cell: &[u8; CLOCK_LEN] = bytes.first_chunk().ok_or(Refusal::CellMalformed)?;
                exchange.take(ClockCell::from_bytes(cell), at.class_ns);
                if let Some((sent_ns, received_ns)) = exchange.latest() {
                    let received_ns = received_ns.next_multiple_of(RECEIVED_NS);
                    cx.change(Change::Paced(PacedChange::ClockSeen { link, sent_ns, received_ns }));
                }
                compare_clocks(cx, trust, clock, at.now, (link, exchange));
                if let Some(event) = side.and_then(|side| self.watch.clock((link, side), exchange)) {
                    cx.event(Event::Paced(event));
                }
                Ok(())
            }
            Some(LinkContent::Report) => {
                let report = Report::from_bytes(bytes.first_chunk().ok_or(Refusal::CellMalformed)?);
                side.map_or(Ok(()), |side| {
                    let direction = if side == Side::Down { Direction::Forward } else { Direction::Backward };
                    self.watch.report((link, side), report, self.hop.released(direction))
                })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn loops(&mut self, cx: &mut Context, places: LoopPlaces) {
        self.watch.loops(places).into_iter().for_each(|event| cx.event(Event::Paced(event)));
    }

    pub(super) fn status(&self, cx: &Context, links: &Links) -> HopStatus {
        let of_hops = self.hops.iter().filter_map(|link| {
            let side = side_of_hop(cx, links, *link)?;
            Some((side, &self.neighbours.get(link)?.exchange))
        });
        self.watch.status(of_hops)
    }

    #[cfg(test)]
    pub(super) fn clocks(&self) -> usize {
        self.neighbours.len()
    }

    pub(super) fn forget(&mut self, link: LinkId) {
        self.neighbours.remove(&link);
        self.hops.retain(|hop| *hop != link);
        self.watch.forget(link);
    }
}

/// The side of a link to another hop. None of an entry's: it says nothing but the time.
fn side_of_hop(cx: &Context, links: &Links, link: LinkId) -> Option<Side> {
    links.side(link).filter(|side| *side == Side::Down || !cx.config.faces_entries())
}

/// What has become of loops. Those that failed send as well: the number of cells does not show it.
fn install_loops(cx: &mut Context, outcomes: Vec<Outcome>) {
    for outcome in outcomes {
        let (batch, number, keys) = match outcome {
            Outcome::Ready { batch, channel, keys, call } => {
                (batch, channel, Some((keys, call.expect("a loop has a meeting"))))
            }
            Outcome::Failed { batch, channel, why } => {
                if why != Failure::Alone {
                    cx.refuse(Refusal::LoopFailed);
                }
                (batch, channel, None)
            }
        };
        cx.change(Change::Paced(PacedChange::InstallLoop { batch, number, keys }));
    }
}
