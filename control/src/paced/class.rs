//! A paced class at a node: its clock, and what setups, acks and link cells leave in each round (SPEC 9).
//!
//! The worker releases rounds by the clock that is kept here. Control hands it the contents of a round's setup and ack
//! slots one period before the round is due; slots without a content carry dummies.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rand::RngExt;
use wire::cell::{CellKind, Direction};
use wire::ids::{LinkId, Side};
use wire::link::LinkContent;
use wire::paced::clock::{CLOCK_LEN, ClockCell, Exchange, SteadyClock};
use wire::paced::{AHEAD_MAX, Company, MeetingSecret, PacedHeader, PacedTerms, Report};

use super::watch::{EntryWatch, HopWatch};
use super::{
    Failure, Lead, LoopPlaces, Outcome, PacedConfig, PacedEntry, PacedHop, PacedStatus, Placed, Places, ShardCell,
};
use crate::Trust;
use crate::context::Context;
use crate::counters::Refusal;
use crate::io::{Change, Event, PacedChange};
use crate::link::Links;
use crate::trust::view::View;

/// How often a hop's clock is steered towards the host's.
const STEER_EVERY: Duration = Duration::from_secs(1);
/// A lead that has changed by less is not worth a command to the worker.
const LEAD_STEP_NS: u64 = 10_000;
/// Before its first sample an entry sends as if its clock were ahead by up to 12 h (SPEC 9.5.5).
const LEAD_BEFORE_MAX_NS: i64 = 12 * 3600 * 1_000_000_000;
/// An entry sets up channels by a clock of Mix 1 that is this far from its host's (SPEC 9.8.2).
const CLOCK_OFF_MS: u64 = 2 * 3600 * 1000;
/// Clock cells of an entry of which an answer may come: those of 10 s with rounds of 10 ms.
const CLOCKS_SENT_MAX: usize = 64;

/// What a node does in a paced class.
pub(crate) struct Paced {
    clock: SteadyClock,
    steer_at: Duration,
    part: Part,
}

/// What only a hop, or only an entry does.
enum Part {
    Hop {
        hop: Box<PacedHop>,
        position: usize,
        next: [u64; 2],
        exchanges: HashMap<LinkId, Exchange>,
        watch: Box<HopWatch>,
    },
    Entry {
        entry: Box<PacedEntry>,
        lead: Lead,
        exchange: Exchange,
        /// Link and number of its latest clock cells, and when they left.
        clocks_sent: VecDeque<((LinkId, u64), u64)>,
        next: u64,
        told: Told,
        watch: Box<EntryWatch>,
        clock_bound: ClockBound,
    },
}

/// How far the clock of Mix 1 may be from that of an entry's host. Otherwise Mix 1 could turn its time back to setup
/// keys that hops have wiped.
struct ClockBound {
    off_max_ms: u64,
}

impl ClockBound {
    /// 2 h, and a random time below that, so that Mix 1 does not learn the entry's clock more exactly.
    fn draw(rng: &mut impl RngExt) -> ClockBound {
        ClockBound { off_max_ms: CLOCK_OFF_MS + rng.random_range(0..CLOCK_OFF_MS) }
    }

    fn holds(&self, mix_1_ms: u64, host_ms: u64) -> bool {
        mix_1_ms.abs_diff(host_ms) <= self.off_max_ms
    }
}

/// What the worker of an entry knows.
#[derive(Default)]
struct Told {
    lead: Option<(i64, bool)>,
    /// The last batch whose number it has.
    batch: u64,
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
                let next = lead.round_at(unix_ns);
                let watch = Box::new(EntryWatch::new(config.clone()));
                let entry = Box::new(PacedEntry::new(config, &mut cx.rng, next));
                let (exchange, clocks_sent, told) = Default::default();
                let clock_bound = ClockBound::draw(&mut cx.rng);
                Part::Entry { entry, lead, exchange, clocks_sent, next, told, watch, clock_bound }
            }
            position => {
                let due = |direction| last_due(&config, direction, position, unix_ns);
                let (forward, backward) = (due(Direction::Forward), due(Direction::Backward));
                let watch = Box::new(HopWatch::new(&config, position, backward));
                let hop = Box::new(PacedHop::new(config, position, forward));
                let (next, exchanges) = ([forward + 1, backward + 1], HashMap::new());
                Part::Hop { hop, position, next, exchanges, watch }
            }
        };
        Paced { clock, steer_at: now + STEER_EVERY, part }
    }

    /// The clock that the worker starts with.
    pub(crate) const fn clock(&self) -> &SteadyClock {
        &self.clock
    }

    /// The time of rounds at `now`, in ms since 1970: of a hop its own, of an entry that at which Mix 1 receives what
    /// leaves now, or by the lead that the entry has drawn.
    pub(crate) fn round_ms(&self, now: Duration) -> u64 {
        let time = self.clock.at(now.as_nanos() as u64);
        match &self.part {
            Part::Hop { .. } => time / 1_000_000,
            Part::Entry { lead, .. } => mix_1_ms(lead, time),
        }
    }

    /// Entry: serves this meeting.
    pub(crate) fn meet(&mut self, meeting: MeetingSecret) {
        let Part::Entry { entry, .. } = &mut self.part else { panic!("only an entry has a meeting") };
        entry.meet(Some(meeting));
    }

    fn config(&self) -> &PacedConfig {
        match &self.part {
            Part::Hop { hop, .. } => hop.config(),
            Part::Entry { entry, .. } => entry.config(),
        }
    }

    /// The interval whose bundle an entry lacks.
    pub(crate) fn wanted_interval(&self) -> Option<u64> {
        match &self.part {
            Part::Entry { entry, lead, .. } if lead.lead_ns().is_some() => entry.wanted_interval(),
            _ => None,
        }
    }

    /// True if a link to an entry has a channel or a setup: no handshake displaces it (SPEC 9.8.6).
    pub(crate) fn holds(&self, link: LinkId) -> bool {
        matches!(&self.part, Part::Hop { hop, .. } if hop.holds(link))
    }

    /// When the next round is to be handed over, or the clock steered.
    pub(crate) fn next_wake(&self) -> Duration {
        let config = self.config();
        let period = config.times.begin(1);
        let due = match &self.part {
            Part::Hop { position, next: [forward, backward], .. } => {
                let at = |direction, round| config.times.begin(round) + config.times.offset(direction, *position);
                at(Direction::Forward, *forward).min(at(Direction::Backward, *backward)).saturating_sub(period)
            }
            Part::Entry { lead, next, .. } => lead.send_at(*next).saturating_sub(2 * period),
        };
        Duration::from_nanos(self.clock.when(due)).min(self.steer_at)
    }

    /// Does what is due: steers the clock, and hands the next round's cells over.
    pub(crate) fn tick(&mut self, cx: &mut Context, links: &mut Links, trust: &mut Trust, now: Duration) {
        let now_ns = now.as_nanos() as u64;
        if now >= self.steer_at {
            self.steer_at = now + STEER_EVERY;
            // An entry follows Mix 1, by its lead, and not its host.
            if matches!(self.part, Part::Hop { .. }) {
                self.clock.steer(now_ns, cx.unix_ns(now) as u64);
                cx.change(Change::Paced(PacedChange::Clock(self.clock.clone())));
            }
        }
        let time = self.clock.at(now_ns);
        match &mut self.part {
            Part::Hop { hop, position, next, watch, .. } => {
                if let (Trust::Hop(trust), Some(interval)) = (trust, hop.wanted_interval())
                    && let Some(bundle) = trust.view().complete(interval)
                {
                    let keys = bundle.setup_keys(&hop.config().chain_id);
                    hop.bundle(interval, keys);
                }
                for (direction, next) in [Direction::Forward, Direction::Backward].into_iter().zip(next) {
                    hand_over(cx, (hop, watch), (direction, *position), next, (now, time));
                }
            }
            Part::Entry { entry, lead, next, told, watch, clock_bound, .. } => {
                let is_up = links.down_ready().is_some();
                let is_ready = lead.lead_ns().is_some() && is_up;
                let (mix_1, host_ms) = (mix_1_ms(lead, time), (cx.unix_ns(now) / 1_000_000) as u64);
                if let (Trust::Entry(trust), Some(interval)) = (trust, entry.wanted_interval())
                    && is_ready
                    && let Some(bundle) = trust.paced_bundle(interval, now, mix_1)
                    && clock_bound.holds(mix_1, host_ms)
                {
                    let keys = bundle.setup_keys(&entry.config().chain_id);
                    watch.alarm.bundle(interval, &keys);
                    entry.bundle(interval, keys);
                }
                lead.follow(time);
                tell_lead(cx, lead, told);
                let period = entry.config().times.begin(1);
                let last = lead.round_at(time + 2 * period);
                // The lead may have become known: then the entry sends other rounds.
                if next.abs_diff(last) > AHEAD_MAX {
                    *next = last;
                }
                while *next <= last {
                    let outcomes = entry.advance(&mut cx.rng, &mut cx.counters, *next, is_ready);
                    tell_numbers(cx, entry, *next, told);
                    tell_outcomes(cx, (lead, watch), time, outcomes);
                    let events = watch.advance(entry, (lead, time), *next, (is_up, is_ready));
                    events.into_iter().for_each(|event| cx.event(Event::Paced(event)));
                    if let Some(cell) = entry.cell(*next) {
                        place(cx, Direction::Forward, *next, cell);
                    }
                    *next += 1;
                }
            }
        }
    }

    /// Takes in an authentic control cell that came at `at_ns` by the class's clock. Asks, parts and path cells are
    /// those of all classes.
    pub(crate) fn cell(
        &mut self,
        cx: &mut Context,
        links: &Links,
        trust: &mut Trust,
        (now, at_ns): (Duration, u64),
        (link, header): (LinkId, &PacedHeader),
        content: &[u8],
    ) -> Result<(), Refusal> {
        match (header.kind, &mut self.part) {
            (CellKind::Setup, Part::Hop { hop, .. }) => {
                let Trust::Hop(trust) = trust else { return Err(Refusal::CellMalformed) };
                let home = links.home(&cx.config, link);
                let cell = ShardCell { link, home, channel: header.channel, sub: header.sub, content };
                let wall_ms = (cx.unix_ns(now) / 1_000_000) as u64;
                let open = |shape, info, onion: &[u8]| trust.keyring_mut().open(shape, info, onion, wall_ms);
                if let Some(install) = hop.shard(&mut cx.rng, &mut cx.counters, cell, open)? {
                    let super::Install { batch, up: (link, number), down, keys, token } = install;
                    let up = (cx.config.faces_entries().then_some(link), number);
                    cx.change(Change::Paced(PacedChange::InstallChannel { batch, up, down, keys, token }));
                }
                Ok(())
            }
            (CellKind::Ack, Part::Hop { hop, .. }) => hop.ack(&mut cx.counters, (header.channel, header.sub), content),
            (CellKind::Ack, Part::Entry { entry, lead, watch, .. }) => {
                let outcome = entry.ack(&mut cx.counters, (header.channel, header.sub), content)?;
                tell_outcomes(cx, (lead, watch), at_ns, outcome.into_iter().collect());
                Ok(())
            }
            (CellKind::Link, _) => self.link_cell(cx, links, trust, (now, at_ns), link, content),
            (CellKind::Setup, Part::Entry { .. }) | (CellKind::Data, _) => Err(Refusal::CellMalformed),
        }
    }

    /// Takes in a link cell.
    fn link_cell(
        &mut self,
        cx: &mut Context,
        links: &Links,
        trust: &mut Trust,
        (now, at_ns): (Duration, u64),
        link: LinkId,
        content: &[u8],
    ) -> Result<(), Refusal> {
        let Paced { clock, part, .. } = self;
        // None of an entry: it tells nothing but the time.
        let hop = links.side(link).filter(|side| *side == Side::Down || !cx.config.faces_entries());
        let bytes = &content[1..];
        match LinkContent::from_wire(content[0]) {
            Some(LinkContent::Clock) => {
                let cell: &[u8; CLOCK_LEN] = bytes.first_chunk().ok_or(Refusal::CellMalformed)?;
                let mut cell = ClockCell::from_bytes(cell);
                let exchange = match part {
                    Part::Hop { exchanges, .. } => {
                        let exchange = exchanges.entry(link).or_default();
                        exchange.take(cell, at_ns);
                        let ClockCell { peer: sent_ns, received: received_ns, .. } = exchange.cell(0);
                        cx.change(Change::Paced(PacedChange::ClockSeen { link, sent_ns, received_ns }));
                        exchange
                    }
                    Part::Entry { lead, exchange, clocks_sent, .. } => {
                        let own = clocks_sent.iter().find(|(own, _)| *own == (link, cell.peer));
                        cell.peer = own.map_or(0, |(_, sent_ns)| *sent_ns);
                        lead.sample(at_ns, cell);
                        exchange.take(cell, at_ns);
                        exchange
                    }
                };
                if let Some(best) = exchange.best() {
                    let of_class = i128::from(clock.at(now.as_nanos() as u64)) - cx.unix_ns(now) as i128;
                    trust.clock_compared(link, ((i128::from(best.offset_ns) + of_class) / 1_000_000) as i64);
                }
                if let (Part::Hop { exchanges, watch, .. }, Some(side)) = (part, hop)
                    && let Some(event) = watch.clock((link, side), &exchanges[&link])
                {
                    cx.event(Event::Paced(event));
                }
                Ok(())
            }
            Some(LinkContent::Report) => {
                let report = Report::from_bytes(bytes.first_chunk().ok_or(Refusal::CellMalformed)?);
                match part {
                    Part::Hop { hop: own, watch, .. } => hop.map_or(Ok(()), |side| {
                        let direction = if side == Side::Down { Direction::Forward } else { Direction::Backward };
                        watch.report((link, side), report, own.released(direction))
                    }),
                    // Without a lead it does not know which round it is.
                    Part::Entry { lead, .. } if lead.lead_ns().is_none() => Ok(()),
                    Part::Entry { entry, watch, .. } => watch.report(report, entry.running()),
                }
            }
            Some(LinkContent::Company) => {
                let company = Company::from_bytes(bytes.first_chunk().ok_or(Refusal::CellMalformed)?);
                if let Part::Entry { entry, watch, .. } = part
                    && let Some(event) = watch.company(company, entry.running())
                {
                    cx.event(Event::Paced(event));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Entry: the worker sends the clock cell with this number on a link, by its own clock at `sent_ns`.
    pub(crate) fn clock_sent(&mut self, link: LinkId, number: u64, sent_ns: u64) {
        if let Part::Entry { clocks_sent, .. } = &mut self.part {
            clocks_sent.truncate(CLOCKS_SENT_MAX - 1);
            clocks_sent.push_front(((link, number), sent_ns));
        }
    }

    /// Entry: the worker has counted backward places.
    pub(crate) fn lost(&mut self, places: Places) {
        if let Part::Entry { watch, .. } = &mut self.part {
            watch.backward(places);
        }
    }

    /// Mix: the worker has counted places of loops.
    pub(crate) fn loops(&mut self, cx: &mut Context, places: LoopPlaces) {
        if let Part::Hop { watch, .. } = &mut self.part {
            watch.loops(places).into_iter().for_each(|event| cx.event(Event::Paced(event)));
        }
    }

    /// What the node shows of it at `now`.
    pub(crate) fn status(&self, cx: &Context, links: &Links, now: Duration) -> PacedStatus {
        match &self.part {
            Part::Hop { exchanges, watch, .. } => {
                let side = |link| links.side(link).filter(|side| *side == Side::Down || !cx.config.faces_entries());
                let of_hops = exchanges.iter().filter_map(|(link, exchange)| Some((side(*link)?, exchange)));
                PacedStatus::Hop(watch.status(of_hops))
            }
            Part::Entry { entry, lead, exchange, watch, .. } => {
                let time = self.clock.at(now.as_nanos() as u64);
                PacedStatus::Entry(watch.status(entry, (lead, time), exchange))
            }
        }
    }

    /// Links whose clocks are known.
    #[cfg(test)]
    pub(crate) fn clocks(&self) -> usize {
        match &self.part {
            Part::Hop { exchanges, .. } => exchanges.len(),
            Part::Entry { .. } => 0,
        }
    }

    /// A link has gone.
    pub(crate) fn forget(&mut self, link: LinkId) {
        if let Part::Hop { exchanges, watch, .. } = &mut self.part {
            exchanges.remove(&link);
            watch.forget(link);
        }
    }
}

/// The time of Mix 1, in ms, when what an entry sends now arrives there.
fn mix_1_ms(lead: &Lead, time: u64) -> u64 {
    time.saturating_add_signed(lead.current_ns()) / 1_000_000
}

/// The last round that is due.
fn last_due(config: &PacedConfig, direction: Direction, position: usize, time: u64) -> u64 {
    config.times.round_at(time.saturating_sub(config.times.offset(direction, position)))
}

/// Hands over the rounds that are due within a period.
fn hand_over(
    cx: &mut Context,
    (hop, watch): (&mut PacedHop, &mut HopWatch),
    (direction, position): (Direction, usize),
    next: &mut u64,
    (now, time): (Duration, u64),
) {
    let period = hop.config().times.begin(1);
    let last = last_due(hop.config(), direction, position, time + period);
    *next = (*next).max((last + 1).saturating_sub(AHEAD_MAX));
    while *next <= last {
        if direction == Direction::Forward {
            watch.before(hop, *next, now);
        }
        let outcomes = hop.advance(&mut cx.rng, &mut cx.counters, direction, *next);
        watch.loops_decided(&outcomes);
        tell_loops(cx, outcomes);
        for cell in hop.cells(direction, *next) {
            place(cx, direction, *next, cell);
        }
        *next += 1;
    }
}

/// What has become of loops. Those that failed send as well: the number of cells does not show it.
fn tell_loops(cx: &mut Context, outcomes: Vec<Outcome>) {
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

fn place(cx: &mut Context, direction: Direction, round: u64, cell: Placed<'_>) {
    let Placed { link, kind, channel, sub, content } = cell;
    // Only entries' links have cells of their own.
    let link = link.filter(|_| cx.config.faces_entries() && direction == Direction::Backward);
    let content = content.to_vec();
    cx.change(Change::Paced(PacedChange::Place { link, direction, round, kind, channel, sub, content }));
}

fn tell_lead(cx: &mut Context, lead: &Lead, told: &mut Told) {
    let now = (lead.current_ns(), lead.lead_ns().is_some());
    let is_near = |(lead_ns, is_known): (i64, bool)| is_known == now.1 && lead_ns.abs_diff(now.0) < LEAD_STEP_NS;
    if !told.lead.is_some_and(is_near) {
        told.lead = Some(now);
        cx.change(Change::Paced(PacedChange::Lead { lead_ns: now.0, is_known: now.1 }));
    }
}

/// The numbers of the running batch and the next one: the entry has them with a channel and without.
fn tell_numbers(cx: &mut Context, entry: &PacedEntry, round: u64, told: &mut Told) {
    let running = entry.config().times.batch_of(round);
    for batch in [running, running + 1] {
        if let Some(number) = entry.channel(batch).filter(|_| batch > told.batch) {
            told.batch = batch;
            cx.change(Change::Paced(PacedChange::Drawn { batch, number }));
        }
    }
}

fn tell_outcomes(cx: &mut Context, (lead, watch): (&mut Lead, &mut EntryWatch), time: u64, outcomes: Vec<Outcome>) {
    for outcome in outcomes {
        cx.event(Event::Paced(watch.decided(&outcome)));
        match outcome {
            Outcome::Ready { batch, channel: number, keys, call } => {
                lead.begin(time);
                cx.change(Change::Paced(PacedChange::InstallEntryChannel { batch, number, keys, call }));
            }
            Outcome::Failed { .. } => cx.refuse(Refusal::SetupIncomplete),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    use super::*;

    #[test]
    fn clock_of_mix_1_may_be_off_by_two_hours_and_never_by_four() {
        const HOUR_MS: u64 = 3_600_000;
        const HOST_MS: u64 = 1_800_000_000_000;
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let bounds: Vec<_> = (0..1000).map(|_| ClockBound::draw(&mut rng)).collect();
        let holding = |off_ms: u64| {
            let [behind, ahead] = [HOST_MS - off_ms, HOST_MS + off_ms]
                .map(|mix_1_ms| bounds.iter().filter(|bound| bound.holds(mix_1_ms, HOST_MS)).count());
            assert_eq!(behind, ahead, "off by {off_ms} ms");
            ahead
        };
        assert_eq!([0, 1, 2].map(|hours| holding(hours * HOUR_MS)), [1000; 3]);
        assert_eq!([4, 5, 24].map(|hours| holding(hours * HOUR_MS)), [0; 3]);
        // Between these, each entry has a bound of its own.
        assert!(holding(2 * HOUR_MS + 60_000) > 950 && holding(4 * HOUR_MS - 60_000) < 50);
        assert!((400..600).contains(&holding(3 * HOUR_MS)));
    }
}
