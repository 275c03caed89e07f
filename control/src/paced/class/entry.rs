//! A paced class at an entry.

use std::collections::VecDeque;

use rand::RngExt;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Direction};
use wire::ids::LinkId;
use wire::link::LinkContent;
use wire::paced::clock::{CLOCK_LEN, ClockCell, SteadyClock};
use wire::paced::{AHEAD_MAX, Company, MeetingSecret, Report};

use super::{ClassTime, Neighbour, PacedCell, compare_clocks, place};
use crate::Trust;
use crate::context::Context;
use crate::counters::Refusal;
use crate::io::{Change, Event, PacedChange};
use crate::link::Links;
use crate::paced::watch::EntryWatch;
use crate::paced::{EntryStatus, Lead, Outcome, PacedConfig, PacedEntry, Places};

/// A lead that has changed by less is not worth a command to the worker.
const LEAD_STEP_NS: u64 = 10_000;
/// An entry sets up channels by a clock of Mix 1 that is this far from its host's (SPEC 9.8.2).
const CLOCK_OFF_MS: u64 = 2 * 3600 * 1000;
/// Clock cells of an entry of which an answer may come: those of 10 s with rounds of 10 ms.
const CLOCKS_SENT_MAX: usize = 64;
/// Periods before a round is due in which its cells are handed over: the worker prepares it early.
const HANDED_OVER_BEFORE: u64 = 2;

pub(super) struct EntryPart {
    entry: PacedEntry,
    lead: Lead,
    mix_1: Neighbour,
    /// Link and number of its latest clock cells, and when they left.
    clocks_sent: VecDeque<((LinkId, u64), u64)>,
    /// The round that is handed over next.
    next: u64,
    passed: Passed,
    watch: EntryWatch,
    clock_bound: ClockBound,
}

/// What the worker knows.
#[derive(Default)]
struct Passed {
    lead: Option<(i64, bool)>,
    /// The batch whose number it has, and that of the next one.
    running: Option<u64>,
}

impl Passed {
    /// The batches whose numbers it gets, as the entry is in this one: it may have jumped back there.
    fn batches(&mut self, running: u64) -> Option<[u64; 2]> {
        (self.running.replace(running) != Some(running)).then_some([running, running + 1])
    }
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

impl EntryPart {
    pub(super) fn new(rng: &mut ChaCha20Rng, config: PacedConfig, lead: Lead, unix_ns: u64) -> EntryPart {
        let next = lead.round_at(unix_ns);
        let (mix_1, clocks_sent, passed) = Default::default();
        let watch = EntryWatch::new(config.clone());
        let entry = PacedEntry::new(config, rng, next);
        EntryPart { entry, lead, mix_1, clocks_sent, next, passed, watch, clock_bound: ClockBound::draw(rng) }
    }

    /// The time of Mix 1, in ms, when what leaves now arrives there.
    pub(super) fn mix_1_ms(&self, time: u64) -> u64 {
        time.saturating_add_signed(self.lead.current_ns()) / 1_000_000
    }

    pub(super) fn meet(&mut self, meeting: MeetingSecret) {
        self.entry.meet(Some(meeting));
    }

    pub(super) fn wanted_interval(&self) -> Option<u64> {
        self.lead.lead_ns().and_then(|_| self.entry.wanted_interval())
    }

    /// When the next round is to be handed over, by the class's clock.
    pub(super) fn due(&self) -> u64 {
        self.lead.send_at(self.next).saturating_sub(HANDED_OVER_BEFORE * self.period())
    }

    fn period(&self) -> u64 {
        self.entry.config().times.period()
    }

    pub(super) fn tick(&mut self, cx: &mut Context, links: &Links, trust: &mut Trust, at: ClassTime) {
        let is_up = links.down_ready().is_some();
        let is_ready = self.lead.lead_ns().is_some() && is_up;
        if is_ready {
            self.take_bundle(cx, trust, at);
        }
        self.lead.follow(at.class_ns);
        self.pass_lead(cx);
        let last = self.lead.round_at(at.class_ns + HANDED_OVER_BEFORE * self.period());
        // The lead may have become known: then the entry sends other rounds.
        if self.next.abs_diff(last) > AHEAD_MAX {
            self.watch.alarm.jumps_to(last);
            self.entry.jumps_to(last);
            self.next = last;
        }
        while self.next <= last {
            let outcomes = self.entry.advance(&mut cx.rng, &mut cx.counters, self.next, is_ready);
            self.pass_numbers(cx);
            self.pass_outcomes(cx, at.class_ns, outcomes);
            let events = self.watch.advance(&self.entry, (&self.lead, at.class_ns), self.next, is_up);
            events.into_iter().for_each(|event| cx.event(Event::Paced(event)));
            if let Some(cell) = self.entry.cell(self.next) {
                place(cx, Direction::Forward, self.next, cell);
            }
            self.next += 1;
        }
    }

    /// Takes the bundle that a setup waits for, if it is there and the clock of Mix 1 is not far off.
    fn take_bundle(&mut self, cx: &Context, trust: &mut Trust, at: ClassTime) {
        let (mix_1_ms, host_ms) = (self.mix_1_ms(at.class_ns), (cx.unix_ns(at.now) / 1_000_000) as u64);
        if let (Trust::Entry(trust), Some(interval)) = (trust, self.entry.wanted_interval())
            && let Some(bundle) = trust.paced_bundle(interval, at.now, mix_1_ms)
            && self.clock_bound.holds(mix_1_ms, host_ms)
        {
            let keys = bundle.setup_keys(&self.entry.config().chain_id);
            self.watch.alarm.bundle(interval, &keys);
            self.entry.bundle(interval, keys);
        }
    }

    pub(super) fn cell(
        &mut self,
        cx: &mut Context,
        trust: &mut Trust,
        clock: &SteadyClock,
        cell: &PacedCell,
    ) -> Result<(), Refusal> {
        let PacedCell { at, header, content, .. } = *cell;
        match header.kind {
            CellKind::Ack => {
                let outcome = self.entry.ack(&mut cx.counters, (header.channel, header.sub), content)?;
                self.pass_outcomes(cx, at.class_ns, outcome.into_iter().collect());
                Ok(())
            }
            CellKind::Link => self.link_cell(cx, trust, clock, cell),
            CellKind::Setup | CellKind::Data => Err(Refusal::CellMalformed),
        }
    }

    fn link_cell(
        &mut self,
        cx: &mut Context,
        trust: &mut Trust,
        clock: &SteadyClock,
        &PacedCell { at, link, slot, content, .. }: &PacedCell,
    ) -> Result<(), Refusal> {
        if !self.mix_1.comes_under(slot) {
            return Ok(());
        }
        let exchange = &mut self.mix_1.exchange;
        let bytes = &content[1..];
        match LinkContent::from_wire(content[0]) {
            Some(LinkContent::Clock) => {
                let cell: &[u8; CLOCK_LEN] = bytes.first_chunk().ok_or(Refusal::CellMalformed)?;
                let mut cell = ClockCell::from_bytes(cell);
                let own = self.clocks_sent.iter().find(|(own, _)| *own == (link, cell.peer));
                cell.peer = own.map_or(0, |(_, sent_ns)| *sent_ns);
                self.lead.sample(at.class_ns, cell);
                exchange.take(cell, at.class_ns);
                compare_clocks(cx, trust, clock, at.now, (link, exchange));
                Ok(())
            }
            Some(LinkContent::Report) => {
                let report = Report::from_bytes(bytes.first_chunk().ok_or(Refusal::CellMalformed)?);
                // Without a lead it does not know which round it is.
                self.lead.lead_ns().map_or(Ok(()), |_| self.watch.report(report, self.entry.running()))
            }
            Some(LinkContent::Company) => {
                let company = Company::from_bytes(bytes.first_chunk().ok_or(Refusal::CellMalformed)?);
                if let Some(event) = self.watch.company(company, self.entry.running()) {
                    cx.event(Event::Paced(event));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn clock_sent(&mut self, link: LinkId, number: u64, sent_ns: u64) {
        self.clocks_sent.truncate(CLOCKS_SENT_MAX - 1);
        self.clocks_sent.push_front(((link, number), sent_ns));
    }

    pub(super) fn places(&mut self, places: Places) {
        self.watch.backward(places);
    }

    pub(super) fn status(&self, time: u64) -> EntryStatus {
        self.watch.status(&self.entry, (&self.lead, time), &self.mix_1.exchange)
    }

    fn pass_lead(&mut self, cx: &mut Context) {
        let now = (self.lead.current_ns(), self.lead.lead_ns().is_some());
        let is_near = |(lead_ns, is_known): (i64, bool)| is_known == now.1 && lead_ns.abs_diff(now.0) < LEAD_STEP_NS;
        if !self.passed.lead.is_some_and(is_near) {
            self.passed.lead = Some(now);
            cx.change(Change::Paced(PacedChange::Lead { lead_ns: now.0, is_known: now.1 }));
        }
    }

    /// The numbers of the running batch and the next one: the entry has them with a channel and without.
    fn pass_numbers(&mut self, cx: &mut Context) {
        let running = self.entry.coming_batch() - 1;
        for batch in self.passed.batches(running).into_iter().flatten() {
            let number = self.entry.channel(batch).expect("it is drawn");
            cx.change(Change::Paced(PacedChange::Drawn { batch, number }));
        }
    }

    fn pass_outcomes(&mut self, cx: &mut Context, time: u64, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            cx.event(Event::Paced(self.watch.decided(&outcome)));
            match outcome {
                Outcome::Ready { batch, channel: number, keys, call } => {
                    self.lead.begin(time);
                    let meeting = self.entry.meeting_number();
                    cx.change(Change::Paced(PacedChange::InstallEntryChannel { batch, number, keys, call, meeting }));
                }
                Outcome::Failed { .. } => cx.refuse(Refusal::SetupIncomplete),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    use super::*;

    #[test]
    fn numbers_are_passed_for_all_batches_after_a_jump_back() {
        let mut passed = Passed::default();
        let had: Vec<_> =
            [700, 700, 701, 500, 500, 501].into_iter().filter_map(|batch| passed.batches(batch)).collect();
        assert_eq!(had, [[700, 701], [701, 702], [500, 501], [501, 502]]);
    }

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
