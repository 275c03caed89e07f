//! One class at an entry: a channel number for every batch, and one setup for it (SPEC 9.7, 9.8, 9.9).

use std::collections::VecDeque;

use rand_chacha::ChaCha20Rng;
use wire::cell::CellKind;
use wire::paced::{AHEAD_MAX, BEHIND_MAX, MeetingSecret, Phase};
use wire::setup::{HopPublic, ack_cells};
use wire::shards::Shards;

use super::losses::TESTED;
use super::numbers::Numbers;
use super::own::{Answer, Bundles, Failure, Outcome, Own};
use super::queue::Placed;
use super::{PacedConfig, SHARDS_MAX};
use crate::counters::{Counters, Refusal};

/// How far the channel of the next batch is.
enum Coming {
    /// The entry has only just started.
    Idle,
    /// The setup waits until the entry is ready and has its bundle. If it waits until its batch begins, it has failed
    /// for this reason; none if the entry was not ready for long before.
    Waiting(Option<Failure>),
    Sent(Sent),
    /// The channel is ready or has failed.
    Decided,
}

struct Sent {
    own: Own,
    answer: Answer,
    /// The round of shard 0.
    begin: u64,
    shards: Vec<Vec<u8>>,
}

/// The channel of an entry in a class, by rounds alone. [`super::class`] gives it the time and the link.
pub(crate) struct PacedEntry {
    config: PacedConfig,
    meeting: Option<MeetingSecret>,
    /// How often it has changed, and how often before the setup that is under way began.
    meetings: u32,
    begun: u32,
    running: u64,
    /// The latest 1,000 rounds in which it was ready, the oldest first.
    ready: VecDeque<u64>,
    numbers: Numbers,
    /// Batches and the numbers drawn for them.
    channels: VecDeque<(u64, u32)>,
    bundles: Bundles,
    coming: Coming,
}

impl PacedEntry {
    /// An entry that starts in this round. It sets up nothing before the next batch begins.
    pub(crate) fn new(config: PacedConfig, rng: &mut ChaCha20Rng, round: u64) -> PacedEntry {
        let (ready, channels, bundles) = Default::default();
        let numbers = Numbers::new(config.terms.period_ms);
        let mut entry = PacedEntry {
            config,
            meeting: None,
            meetings: 0,
            begun: 0,
            running: round,
            ready,
            numbers,
            channels,
            bundles,
            coming: Coming::Idle,
        };
        entry.draw_numbers(rng);
        entry
    }

    pub(crate) const fn config(&self) -> &PacedConfig {
        &self.config
    }

    /// Serves this meeting from the next batch on whose setup has not begun; without one, destinations.
    pub(crate) fn meet(&mut self, meeting: Option<MeetingSecret>) {
        let is_same = self.meeting.as_ref().zip(meeting.as_ref()).is_some_and(|(before, now)| before.is_same(now));
        self.meetings += u32::from(!is_same);
        self.meeting = meeting;
    }

    /// The number of the meeting of the channel that has just become ready.
    pub(super) fn meeting_number(&self) -> u32 {
        self.begun
    }

    /// Takes in the setup keys of all hops, of the bundle of this interval.
    pub(crate) fn bundle(&mut self, interval: u64, hops: Vec<HopPublic>) {
        self.bundles.insert(interval, hops);
    }

    /// The earliest interval that has begun and whose bundle is missing, for a setup that is not late yet.
    pub(crate) fn wanted_interval(&self) -> Option<u64> {
        let PacedConfig { times, interval_ms, .. } = &self.config;
        let coming = self.coming_batch();
        let is_late = self.running >= self.config.rounds_of(coming, Phase::Setup(1)).end;
        let waits = matches!(self.coming, Coming::Waiting(_)) && !is_late;
        let begun = times.begin(self.running) / 1_000_000 / interval_ms;
        let first = self.config.interval_of(if waits { coming } else { coming + 1 });
        let is_missing = |interval: &u64| self.config.is_used(*interval) && self.bundles.get(*interval).is_none();
        (first..=begun).find(is_missing)
    }

    /// The number of the entry's channel in a batch: the running one, the next one, and earlier ones for 256 rounds
    /// after their end. It is used with a channel and without one.
    pub(crate) fn channel(&self, batch: u64) -> Option<u32> {
        self.channels.iter().find(|(of, _)| *of == batch).map(|(_, channel)| *channel)
    }

    pub(super) fn coming_batch(&self) -> u64 {
        self.config.times.batch_of(self.running) + 1
    }

    /// True while it can still have a channel in that batch, and has none.
    pub(super) fn is_setting_up(&self) -> bool {
        match self.coming {
            Coming::Idle | Coming::Decided => false,
            Coming::Waiting(_) => self.shards_left().is_some(),
            Coming::Sent(_) => true,
        }
    }

    /// The last round for which [`PacedEntry::advance`] was called.
    pub(super) fn running(&self) -> u64 {
        self.running
    }

    /// Its next round is this one: its lead has jumped. The rounds in which it was ready are as long ago as before: a
    /// batch that it misses because somebody has moved its time counts.
    pub(super) fn jumps_to(&mut self, round: u64) {
        let waits = self.was_ready() && round <= self.running;
        if !waits {
            let next = self.running + 1;
            self.ready.iter_mut().for_each(|at| *at = (*at + round).saturating_sub(next));
        }
    }

    /// True if it was ready in the running round.
    fn was_ready(&self) -> bool {
        self.ready.back() == Some(&self.running)
    }

    /// The entry seals this round, or is about to. `is_ready`: it knows its lead, and its link is up. Rounds may be
    /// left out. They may jump back when the lead becomes known; an entry that was ready waits instead.
    pub(crate) fn advance(
        &mut self,
        rng: &mut ChaCha20Rng,
        counters: &mut Counters,
        round: u64,
        is_ready: bool,
    ) -> Vec<Outcome> {
        if self.was_ready() && round < self.running {
            return Vec::new();
        }
        let before = self.coming_batch();
        self.running = round;
        let mut outcomes = Vec::new();
        if self.coming_batch() != before {
            let coming = self.begin_batch(is_ready);
            let is_missed = self.coming_batch() > before + 1 && self.was_ready_long();
            // What has not come by now is late.
            let outcome = match std::mem::replace(&mut self.coming, coming) {
                Coming::Idle | Coming::Waiting(None) | Coming::Decided => None,
                Coming::Waiting(Some(why)) => Some(self.failed(before, why)),
                Coming::Sent(sent) => Some(sent.own.finish(&self.config, sent.answer)),
            };
            outcomes.extend(outcome);
            self.draw_numbers(rng);
            if is_missed {
                // The lead has jumped over the phase of its setup.
                outcomes.push(self.failed(self.coming_batch() - 1, Failure::NotReady));
            }
            self.bundles.keep_from(self.config.interval_of(self.coming_batch()));
        }
        if is_ready {
            self.ready.push_back(round);
            if self.ready.len() as u64 > TESTED {
                self.ready.pop_front();
            }
            if matches!(self.coming, Coming::Waiting(_)) {
                outcomes.extend(self.begin(rng, counters));
            }
        }
        outcomes
    }

    /// What it does about the coming batch in the first round of the running one. An entry that becomes ready for the
    /// first time sends other rounds than before, and sets up nothing in the middle of a batch.
    fn begin_batch(&self, is_ready: bool) -> Coming {
        let first = self.config.times.first(self.coming_batch() - 1);
        if self.ready.is_empty() && !(is_ready && self.running == first) {
            return Coming::Idle;
        }
        let is_in_time = is_ready && self.shards_left().is_some();
        Coming::Waiting((is_in_time || self.was_ready_long()).then_some(Failure::NotReady))
    }

    /// True if it was ready in half of the 1,000 rounds before the running one.
    fn was_ready_long(&self) -> bool {
        let tested = self.running.saturating_sub(TESTED)..self.running;
        2 * self.ready.iter().filter(|round| tested.contains(round)).count() as u64 >= TESTED
    }

    fn failed(&self, batch: u64, why: Failure) -> Outcome {
        Outcome::Failed { batch, channel: self.channel(batch).expect("it was drawn"), why }
    }

    fn draw_numbers(&mut self, rng: &mut ChaCha20Rng) {
        let times = &self.config.times;
        let is_kept = |batch: u64| self.running < times.first(batch + 1) + BEHIND_MAX;
        self.channels.retain(|(batch, _)| is_kept(*batch));
        self.numbers.expire(self.running);
        let coming = times.batch_of(self.running) + 1;
        for batch in [coming - 1, coming] {
            if self.channel(batch).is_none() {
                let number = self.numbers.draw(rng, self.config.times.first(batch + 1));
                self.channels.push_back((batch, number));
            }
        }
    }

    /// The shards of a setup that begins now: one for each round that is left for them. None if fewer are left than any
    /// hop needs.
    fn shards_left(&self) -> Option<Shards> {
        let (times, code) = (&self.config.times, self.config.code(1));
        let at = self.running - times.first(times.batch_of(self.running));
        let left = times.used().saturating_sub(at).min(SHARDS_MAX) as usize;
        (left >= code.total()).then(|| Shards { data: code.data, parity: left - code.data })
    }

    /// Builds the setup, if the bundle is there and enough shards still fit.
    fn begin(&mut self, rng: &mut ChaCha20Rng, counters: &mut Counters) -> Option<Outcome> {
        let (config, batch, code) = (&self.config, self.coming_batch(), self.shards_left()?);
        let Some(hops) = self.bundles.get(config.interval_of(batch)) else {
            if let Coming::Waiting(Some(why)) = &mut self.coming {
                *why = Failure::NoBundle;
            }
            return None;
        };
        let channel = self.channel(batch).expect("it was drawn");
        let meeting = self
            .meeting
            .as_ref()
            .map(|secret| secret.meeting(&config.chain_id, config.terms.class, config.times.first(batch)));
        match Own::build(rng, config, (batch, channel), hops, meeting.as_ref(), code) {
            Ok((own, shards)) => {
                counters.setups += 1;
                let answer = Answer::new(ack_cells(config.shape));
                self.coming = Coming::Sent(Sent { own, answer, begin: self.running, shards });
                self.begun = self.meetings;
                None
            }
            Err(_) => {
                self.coming = Coming::Decided;
                Some(self.failed(batch, Failure::BadBundle))
            }
        }
    }

    /// What the setup slot of a round carries; none if a dummy.
    pub(crate) fn cell(&self, round: u64) -> Option<Placed<'_>> {
        let Coming::Sent(sent) = &self.coming else { return None };
        let sub = round.checked_sub(sent.begin)?;
        let content = sent.shards.get(usize::try_from(sub).ok()?)?;
        Some(Placed { link: None, kind: CellKind::Setup, channel: sent.own.channel, sub: sub as u8, content })
    }

    /// Checks whether ack cells of this channel come in time: step 5 of SPEC 9.4.
    ///
    /// # Errors
    /// [`Refusal::CellEarly`], [`Refusal::CellLate`], or the entry has no such channel.
    pub(crate) fn check(&self, channel: u32) -> Result<(), Refusal> {
        let batch = self.coming_batch();
        if self.channel(batch) != Some(channel) {
            let is_earlier = self.channels.iter().any(|(_, earlier)| *earlier == channel);
            return Err(if is_earlier { Refusal::CellLate } else { Refusal::UnexpectedAck });
        }
        let first = self.config.rounds_of(batch, Phase::Ack(1)).start;
        if self.running + AHEAD_MAX < first { Err(Refusal::CellEarly) } else { Ok(()) }
    }

    /// Takes in an ack cell. The one that completes an ack decides what becomes of the channel.
    ///
    /// # Errors
    /// The cell is refused.
    pub(crate) fn ack(
        &mut self,
        counters: &mut Counters,
        (channel, sub): (u32, u8),
        content: &[u8],
    ) -> Result<Option<Outcome>, Refusal> {
        let shape = self.config.shape;
        if usize::from(sub) >= ack_cells(shape) || content.len() != shape.payload() {
            return Err(Refusal::UnexpectedAck);
        }
        self.check(channel)?;
        let is_first = match &mut self.coming {
            Coming::Idle | Coming::Waiting(_) => return Err(Refusal::UnexpectedAck),
            Coming::Sent(sent) => sent.answer.put(sub, content),
            Coming::Decided => false,
        };
        if !is_first {
            counters.surplus_cells += 1;
        }
        match std::mem::replace(&mut self.coming, Coming::Decided) {
            Coming::Sent(sent) if sent.answer.is_complete() => Ok(Some(sent.own.finish(&self.config, sent.answer))),
            undecided => {
                self.coming = undecided;
                Ok(None)
            }
        }
    }
}
