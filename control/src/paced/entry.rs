//! One class at an entry: a channel number for every batch, and one setup for it (SPEC 9.7, 9.8, 9.9).

use std::collections::VecDeque;

use rand_chacha::ChaCha20Rng;
use wire::cell::CellKind;
use wire::paced::{AHEAD_MAX, BEHIND_MAX, MeetingSecret, Phase};
use wire::setup::{HopPublic, ack_cells};
use wire::shards::Shards;

use super::numbers::Numbers;
use super::own::{Answer, Bundles, Failure, Outcome, Own};
use super::queue::Placed;
use super::{PacedConfig, SHARDS_MAX};
use crate::counters::{Counters, Refusal};

/// How far the channel of the next batch is.
enum Coming {
    /// The entry was not ready in time.
    Idle,
    /// The setup waits for its bundle.
    Waiting,
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

/// One class at an entry.
pub(crate) struct PacedEntry {
    config: PacedConfig,
    meeting: Option<MeetingSecret>,
    running: u64,
    was_ready: bool,
    numbers: Numbers,
    /// Batches and the numbers drawn for them.
    channels: VecDeque<(u64, u32)>,
    bundles: Bundles,
    coming: Coming,
}

impl PacedEntry {
    /// An entry that starts in this round. It sets up nothing before the next batch begins.
    pub(crate) fn new(config: PacedConfig, rng: &mut ChaCha20Rng, round: u64) -> PacedEntry {
        let (channels, bundles) = Default::default();
        let numbers = Numbers::new(config.terms.period_ms);
        let mut entry = PacedEntry {
            config,
            meeting: None,
            running: round,
            was_ready: false,
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
        self.meeting = meeting;
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
        let waits = matches!(self.coming, Coming::Waiting) && !is_late;
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

    /// True while it is open what becomes of its channel of that batch.
    pub(super) fn is_setting_up(&self) -> bool {
        matches!(self.coming, Coming::Waiting | Coming::Sent(_))
    }

    /// The last round for which [`PacedEntry::advance`] was called.
    pub(super) fn running(&self) -> u64 {
        self.running
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
        if self.was_ready && round < self.running {
            return Vec::new();
        }
        let before = self.coming_batch();
        self.running = round;
        let mut outcomes = Vec::new();
        if self.coming_batch() != before {
            let is_in_time = self.was_ready || round == self.config.times.first(self.coming_batch() - 1);
            let coming = if is_ready && is_in_time { Coming::Waiting } else { Coming::Idle };
            // What has not come by now is late.
            let outcome = match std::mem::replace(&mut self.coming, coming) {
                Coming::Idle | Coming::Decided => None,
                Coming::Waiting => Some(self.failed(before, Failure::NoBundle)),
                Coming::Sent(sent) => Some(sent.own.finish(&self.config, sent.answer)),
            };
            outcomes.extend(outcome);
            self.draw_numbers(rng);
            self.bundles.keep_from(self.config.interval_of(self.coming_batch()));
        }
        self.was_ready = is_ready;
        if matches!(self.coming, Coming::Waiting) {
            outcomes.extend(self.begin(rng, counters));
        }
        outcomes
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

    /// Builds the setup, if the bundle is there and the shards that any hop needs still fit.
    fn begin(&mut self, rng: &mut ChaCha20Rng, counters: &mut Counters) -> Option<Outcome> {
        let (config, batch) = (&self.config, self.coming_batch());
        let at = self.running - config.times.first(batch - 1);
        let (code, left) = (config.code(1), config.times.used().saturating_sub(at));
        if left < code.total() as u64 {
            return None;
        }
        let hops = self.bundles.get(config.interval_of(batch))?;
        let code = Shards { data: code.data, parity: left.min(SHARDS_MAX) as usize - code.data };
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
            Coming::Idle | Coming::Waiting => return Err(Refusal::UnexpectedAck),
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
