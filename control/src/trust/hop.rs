//! A hop's part: it draws keys for every epoch, publishes them, and signs one bundle in every interval
//! (SPEC 7.5, 7.7, 7.9).

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use wire::ids::LinkId;

use super::bundle::{self, Signatures};
use super::descriptor::{NUMBER_END, SignedDescriptor, Validity};
use super::encoding::Signer;
use super::keyring::Keyring;
use super::record::SignedRecord;
use super::signed::{SignedIntervals, SignedRanks};
use super::sync::{News, OFFSET_MAX_MS, Outgoing, Peer, Refused, Sync, best};
use super::view::{BadDescriptor, Taken, View};

/// A record that has just arrived may be one of several: a hop waits so long for the others before it signs.
const QUIET: Duration = Duration::from_millis(50);
/// A state that was not saved is to be saved again after this.
const SAVE_AGAIN: Duration = Duration::from_secs(1);

/// A clock that differs is reported after this.
const CLOCK_OFF_FOR: Duration = Duration::from_secs(1);

/// What a hop writes to disk: what it must never forget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HopState {
    /// When the node's keys were made, in seconds since 1970, as long as no setup keys were drawn: whatever was signed,
    /// this node has not signed it. Otherwise 0.
    pub made: u64,
    pub last_draw: u64,
    pub intervals: SignedIntervals,
    pub ranks: SignedRanks,
}

/// What the runner does next; the order is binding.
#[derive(Debug)]
pub enum Step {
    /// Write the state to disk. Until [`HopTrust::saved`] has this number, nothing is sent.
    Save(u64),
    /// Send the content in a cell of type 3, at once and past the pool.
    Send(LinkId, Vec<u8>),
    Event(TrustEvent),
}

/// Something for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustEvent {
    /// A hop, by position, has a newer descriptor.
    Descriptor { hop: usize, revision: u64 },
    /// A hop's identity has signed two descriptors of one revision. That with the higher hash counts, everywhere.
    AmbiguousRevision { hop: usize, revision: u64 },
    /// A hop has signed two bundles of one interval: it is corrupt, or it runs twice from a copy of its state.
    SignedTwice { hop: usize, interval: u64 },
    /// An entry wants a channel, and has been without a bundle of the running interval for three seconds: a hop is
    /// down, or cannot sign. The newest bundle that it has seen, if any.
    NoBundle { newest: Option<u64> },
    /// At a hop: the running interval ends soon and has no complete bundle here, although it began after this hop. Of
    /// the bundle with most signatures the hops that have signed, a bit for each, that of hop 1 lowest.
    BundleMissing { interval: u64, signed: u8 },
    /// This node's clock differs by more than two seconds from a neighbour's. Positive: the neighbour's is ahead.
    ClockOff { offset_ms: i64 },
    /// This node's clock differs by more than an interval from those of all neighbouring hops. It signs nothing.
    ClockStops { offset_ms: i64 },
    /// A newer descriptor of this node exists, whose keys are not here.
    OwnKeysMissing { revision: u64 },
    /// This node's descriptor has expired: it signs nothing.
    OwnExpired,
    /// Someone else publishes keys in the name of this node, or it runs twice.
    OwnRecordElsewhere { draw: u64 },
}

pub struct HopTrust {
    position: usize,
    view: View,
    sync: Sync,
    keyring: Keyring,
    keys: Vec<CertifiedKeys>,
    state: HopState,
    /// Number of the last [`Step::Save`].
    saves: u64,
    /// The state is not on disk yet; when it is to be saved again.
    unsaved: Option<Duration>,
    /// Something has arrived that the next tick acts on.
    has_news: bool,
    /// At the last tick a valid descriptor named keys that are here.
    has_certificate: bool,
    /// Since when a neighbour's clock differs.
    clock_off_since: Option<Duration>,
    /// The first interval that may be signed: earlier ones may have been signed before the start.
    first: u64,
    /// The latest interval that could be signed at the start.
    started: u64,
    /// When a record arrived last.
    record_at: Duration,
    /// The interval for which missing records were asked.
    asked_for: u64,
    /// Events that were reported and hold on.
    reported: Vec<TrustEvent>,
    steps: Vec<Step>,
}

/// Keys of a node that one descriptor names together.
pub struct CertifiedKeys {
    pub signer: Signer,
    /// Public key of the Noise static.
    pub noise: [u8; 32],
}

impl CertifiedKeys {
    /// True if this descriptor names them.
    pub fn are_of(&self, descriptor: &SignedDescriptor) -> bool {
        descriptor.signing == self.signer.public() && descriptor.noise == self.noise
    }
}

/// What a hop starts with.
pub struct HopSetup {
    pub position: usize,
    pub view: View,
    /// Its links to neighbouring hops are those of a paced class.
    pub is_paced: bool,
    pub keys: Vec<CertifiedKeys>,
    pub state: HopState,
    /// Most setups that one pair of keys opens.
    pub replay_capacity: usize,
}

impl HopTrust {
    pub fn new(setup: HopSetup, now: Duration, wall_ms: u64) -> HopTrust {
        let HopSetup { position, view, is_paced, keys, state, replay_capacity } = setup;
        let times = view.times();
        let keyring =
            Keyring::new((*view.chain(), view.terms().suite, times), (position, view.hops()), replay_capacity);
        // Whatever could be signed at the start, this node may have signed before it stopped.
        let is_new = times.counts_as_new(state.made, wall_ms);
        let first = if is_new { 0 } else { times.signable_at(wall_ms) + 1 };
        let sync = Sync::new(&view, is_paced, now);
        let (reported, steps) = (Vec::new(), Vec::new());
        HopTrust {
            position,
            view,
            sync,
            keyring,
            keys,
            state,
            saves: 0,
            unsaved: None,
            has_news: true,
            has_certificate: false,
            clock_off_since: None,
            first,
            started: times.signable_at(wall_ms),
            record_at: Duration::ZERO,
            asked_for: 0,
            reported,
            steps,
        }
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn sync(&self) -> &Sync {
        &self.sync
    }

    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    pub fn keyring_mut(&mut self) -> &mut Keyring {
        &mut self.keyring
    }

    pub fn state(&self) -> &HopState {
        &self.state
    }

    pub fn link_up(&mut self, link: LinkId, peer: Peer, content_len: usize, now: Duration) {
        self.sync.link_up(link, peer, content_len, now);
    }

    pub fn link_down(&mut self, link: LinkId) {
        self.sync.link_down(link);
    }

    /// Takes in a descriptor from a file.
    ///
    /// # Errors
    /// See [`BadDescriptor`].
    pub fn take_descriptor(
        &mut self,
        hop: usize,
        descriptor: SignedDescriptor,
        now: Duration,
        wall_ms: u64,
    ) -> Result<Taken, BadDescriptor> {
        let taken = self.view.take_descriptor(hop, descriptor, wall_ms / 1000)?;
        if taken != Taken::Known {
            self.report_ambiguous(hop);
            self.sync.changed(now);
            self.save(now);
            self.has_news = true;
        }
        Ok(taken)
    }

    /// The keys of this node, after they were loaded.
    pub fn set_keys(&mut self, keys: Vec<CertifiedKeys>) {
        self.keys = keys;
        self.has_news = true;
    }

    /// The state is on disk as it was at the [`Step::Save`] with this number.
    pub fn saved(&mut self, number: u64, now: Duration, wall_ms: u64) {
        if number == self.saves {
            self.unsaved = None;
            self.carry(now, wall_ms);
        }
    }

    /// Sends what is due.
    fn carry(&mut self, now: Duration, wall_ms: u64) {
        let mut out = Vec::new();
        self.sync.run(&self.view, now, wall_ms, &mut out);
        self.send(out);
    }

    fn save(&mut self, now: Duration) {
        self.saves += 1;
        self.unsaved = Some(now + SAVE_AGAIN);
        self.steps.push(Step::Save(self.saves));
    }

    /// Takes in the content of an ask or part cell.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn take(&mut self, now: Duration, wall_ms: u64, link: LinkId, content: &[u8]) -> Result<(), Refused> {
        let mut out = Vec::new();
        let news = self.sync.take(&mut self.view, now, wall_ms, link, content, &mut out);
        // An answer may name what is not on disk yet. Whoever asked asks again.
        if self.unsaved.is_none() {
            self.send(out);
        }
        for news in news? {
            self.has_news = true;
            match news {
                News::Descriptor(hop) => {
                    let revision = self.view.descriptor(hop).map_or(0, |descriptor| descriptor.revision);
                    self.steps.push(Step::Event(TrustEvent::Descriptor { hop, revision }));
                    self.report_ambiguous(hop);
                    self.save(now);
                }
                News::Certificate(hop) => {
                    self.report_ambiguous(hop);
                    self.save(now);
                }
                News::Record(_) => self.record_at = now,
                News::SignedTwice(hop, interval) => self.report(TrustEvent::SignedTwice { hop, interval }),
                News::Signatures(_) => {}
            }
        }
        Ok(())
    }

    fn send(&mut self, out: Vec<Outgoing>) {
        self.steps.extend(out.into_iter().map(|(link, content)| Step::Send(link, content)));
    }

    /// Reports an event once, until [`HopTrust::withdraw`].
    fn report(&mut self, event: TrustEvent) {
        let same = |other: &TrustEvent| match (other, &event) {
            (TrustEvent::BundleMissing { interval, .. }, TrustEvent::BundleMissing { interval: also, .. }) => {
                interval == also
            }
            (TrustEvent::SignedTwice { hop, .. }, TrustEvent::SignedTwice { hop: also, .. })
            | (TrustEvent::AmbiguousRevision { hop, .. }, TrustEvent::AmbiguousRevision { hop: also, .. }) => {
                hop == also
            }
            _ => std::mem::discriminant(other) == std::mem::discriminant(&event),
        };
        if !self.reported.iter().any(same) {
            self.reported.push(event);
            self.steps.push(Step::Event(event));
        }
    }

    fn report_ambiguous(&mut self, hop: usize) {
        if let Some(revision) = self.view.ambiguous_revision(hop) {
            self.report(TrustEvent::AmbiguousRevision { hop, revision });
        }
    }

    fn withdraw(&mut self, gone: fn(&TrustEvent) -> bool) {
        self.reported.retain(|event| !gone(event));
    }

    /// This node's clock was set. It signs nothing until it has heard from a neighbouring hop's.
    pub fn clock_stepped(&mut self, now: Duration) {
        self.sync.forget_offsets();
        self.sync.ask_soon(now);
    }

    /// The clock cells of a paced link show that the neighbour's clock is so much ahead.
    pub fn clock_compared(&mut self, link: LinkId, offset_ms: i64) {
        self.sync.clock_compared(link, offset_ms);
    }

    /// This node did not run for a while that ends now.
    pub fn stalled(&mut self, now: Duration) {
        self.sync.stalled(now);
    }

    /// Does everything that is due.
    pub fn tick(&mut self, rng: &mut impl Rng, now: Duration, wall_ms: u64) {
        self.has_news = false;
        self.view.forget(wall_ms);
        self.keyring.wipe(now, wall_ms);
        // A clock that was ahead at the start and is right now: what the process before it could sign is over.
        self.first = self.first.min(self.view.times().signable_at(wall_ms) + 1);
        self.check_clock(now);
        let own = self.own_certificate(wall_ms);
        self.has_certificate = own.is_some();
        if let Some((own, keys)) = own {
            self.keep_keys(rng, now, wall_ms, &own, keys);
            for interval in self.view.times().signable(wall_ms) {
                self.sign(now, wall_ms, interval, keys);
            }
        }
        self.check_bundle(wall_ms);
        match self.unsaved {
            Some(again) if again <= now => self.save(now),
            Some(_) => {}
            None => self.carry(now, wall_ms),
        }
    }

    /// What to do, in this order.
    pub fn steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    /// When the next tick is due.
    pub fn next_wake(&self, now: Duration, wall_ms: u64) -> Duration {
        let times = self.view.times();
        let interval = times.signable_at(wall_ms);
        let epoch = times.epoch_of(interval);
        let soon =
            [times.signing_start(interval + 1), times.publish_at(epoch + 1), times.wipe_at(epoch.saturating_sub(1))];
        let settled = times.signing_start(interval) + times.settle_ms();
        let next = soon.into_iter().chain([settled]).filter(|at| *at > wall_ms).min().unwrap_or(u64::MAX);
        let clock = now + Duration::from_millis(next.saturating_sub(wall_ms));
        let quiet = if self.record_at + QUIET > now { self.record_at + QUIET } else { Duration::MAX };
        let news = if self.has_news { now } else { Duration::MAX };
        let sync = self.unsaved.unwrap_or(self.sync.next_wake());
        sync.min(clock).min(quiet).min(news)
    }

    /// True if it has all that it needs to sign: keys that a valid descriptor names, and a clock that neighbours share.
    pub fn can_sign(&self, wall_ms: u64) -> bool {
        let is_time = self.first <= self.view.times().signable_at(wall_ms);
        is_time && self.has_certificate && self.shares_a_clock() && self.unsaved.is_none()
    }

    /// The first interval that it may sign.
    pub fn signs_from(&self) -> u64 {
        self.first
    }

    /// True if it knows the clock of a neighbour, and its own is not away from those of all.
    fn shares_a_clock(&self) -> bool {
        let stops = self.reported.iter().any(|event| matches!(event, TrustEvent::ClockStops { .. }));
        !stops && self.sync.offsets_ms().next().is_some()
    }

    /// This node's newest descriptor whose keys are here, if it is valid, and which of the keys it names.
    fn own_certificate(&mut self, wall_ms: u64) -> Option<(Arc<SignedDescriptor>, usize)> {
        let all = self.view.descriptors(self.position);
        let with_keys = |descriptor: &Arc<SignedDescriptor>| {
            let at = self.keys.iter().position(|keys| keys.are_of(descriptor))?;
            Some((descriptor.clone(), at))
        };
        let own = all.iter().find_map(with_keys);
        let newest = all.first().map(|descriptor| descriptor.revision);
        match (&own, newest) {
            (Some((own, _)), Some(revision)) if own.revision == revision => {
                self.withdraw(|event| matches!(event, TrustEvent::OwnKeysMissing { .. }));
            }
            (_, Some(revision)) => self.report(TrustEvent::OwnKeysMissing { revision }),
            (_, None) => {}
        }
        let own = own?;
        if let Validity::Valid(_) = own.0.validity(wall_ms / 1000) {
            self.withdraw(|event| matches!(event, TrustEvent::OwnExpired));
            return Some(own);
        }
        self.report(TrustEvent::OwnExpired);
        None
    }

    /// Draws and publishes keys where they are missing, and publishes them again where the record is not that of the
    /// newest descriptor, or where others hold a higher one.
    fn keep_keys(&mut self, rng: &mut impl Rng, now: Duration, wall_ms: u64, own: &SignedDescriptor, keys: usize) {
        let times = self.view.times();
        let running = times.epoch_of(times.interval_at(wall_ms));
        let published = |epoch: &u64| *epoch == running || times.publish_at(*epoch) <= wall_ms;
        for epoch in [running, running + 1].into_iter().filter(published) {
            let higher =
                |held: &&Arc<SignedRecord>| self.keyring.record(epoch).is_none_or(|mine| mine.rank() < held.rank());
            // One of a higher revision cannot be outdone: the keys of that descriptor are elsewhere.
            let foreign = self.view.record(self.position, epoch).filter(higher).map(|held| (held.revision, held.draw));
            let foreign = foreign.filter(|(revision, _)| *revision == own.revision).map(|(_, draw)| draw);
            let is_current = self.keyring.record(epoch).is_some_and(|mine| mine.descriptor == *own.hash());
            if is_current && foreign.is_none() {
                continue;
            }
            if let Some(draw) = foreign
                && self.keyring.has(epoch)
            {
                self.report(TrustEvent::OwnRecordElsewhere { draw });
            }
            // Nothing is higher than this one. Only another descriptor helps.
            if is_current && foreign.is_some_and(|draw| draw >= NUMBER_END - 1) {
                continue;
            }
            self.state.last_draw = (self.state.last_draw + 1).max(wall_ms / 1000);
            self.state.made = 0;
            // A draw of someone else counts for this record only, so that no thief can use up the draws.
            let outdone = foreign.map_or(0, |draw| (draw + 1).min(NUMBER_END - 1));
            let draw = self.state.last_draw.max(outdone);
            self.save(now);
            let signer = &self.keys[keys].signer;
            let record = if self.keyring.has(epoch) {
                self.keyring.publish(epoch, draw, own, signer).expect("it has the keys")
            } else {
                self.keyring.draw(rng, now, epoch, draw, own, signer)
            };
            self.view.put_own(self.position, record);
            self.sync.changed(now);
        }
    }

    /// Signs for an interval whose time has come, once.
    fn sign(&mut self, now: Duration, wall_ms: u64, interval: u64, keys: usize) {
        let times = self.view.times();
        if interval < self.first || self.state.intervals.contains(interval) || !self.shares_a_clock() {
            return;
        }
        // What arrives together is signed together.
        let waited = wall_ms - times.signing_start(interval);
        let unsettled = now < self.record_at + QUIET
            || self.view.bundles(interval).iter().any(|bundle| !self.would_sign(interval, &bundle.hash()));
        if unsettled && waited < times.settle_ms() {
            return;
        }
        let Some(records) = self.view.records(interval) else {
            // Once for all intervals that can be signed now, or every arrival would cause another ask.
            self.ask_once(now, times.signable_at(wall_ms));
            return;
        };
        let epoch = times.epoch_of(interval);
        let lower = |(i, record): (usize, &Arc<SignedRecord>)| {
            self.state.ranks.highest(i as u8 + 1, epoch).is_some_and(|signed| record.rank() < signed)
        };
        let own = self.keyring.record(epoch).map(|record| record.rank());
        if records.iter().enumerate().any(lower) || own != Some(records[self.position - 1].rank()) {
            return;
        }
        let held: Vec<&SignedRecord> = records.iter().map(|record| &**record).collect();
        let mut signatures = Signatures::new(self.view.chain(), interval, &held);
        if !self.state.intervals.insert(interval, signatures.hash) {
            return;
        }
        for (i, record) in records.iter().enumerate() {
            self.state.ranks.insert(i as u8 + 1, epoch, record.rank());
        }
        self.save(now);
        signatures.signatures[self.position - 1] = Some(bundle::sign(&self.keys[keys].signer, &signatures.hash));
        // Another signature of this node for this interval can only come from someone else with its key.
        let _ = self.view.take_signatures(&signatures, wall_ms);
        self.sync.changed(now);
        self.sync.ask_soon(now + Duration::from_millis(250));
    }

    fn would_sign(&self, interval: u64, hash: &[u8; 32]) -> bool {
        let Some(records) = self.view.records(interval) else { return true };
        let held: Vec<&SignedRecord> = records.iter().map(|record| &**record).collect();
        bundle::hash(self.view.chain(), interval, &held) == *hash
    }

    fn ask_once(&mut self, now: Duration, interval: u64) {
        if self.asked_for != interval {
            self.asked_for = interval;
            self.sync.ask_soon(now);
        }
    }

    /// Looks whether the running interval has a complete bundle, when hops begin to sign the next one.
    fn check_bundle(&mut self, wall_ms: u64) {
        let times = self.view.times();
        let interval = times.interval_at(wall_ms);
        if interval < self.first || interval <= self.started || times.signable_at(wall_ms) == interval {
            return;
        }
        let of_another =
            |event: &TrustEvent| matches!(event, TrustEvent::BundleMissing { interval: of, .. } if *of != interval);
        self.reported.retain(|event| !of_another(event));
        if self.view.complete(interval).is_none() {
            let signed = best(&self.view, interval).map_or(0, |bundle| bundle.signatures.present());
            self.report(TrustEvent::BundleMissing { interval, signed });
        }
    }

    /// Compares this node's clock with those of its neighbouring hops.
    fn check_clock(&mut self, now: Duration) {
        let limit = self.view.times().interval_ms();
        let offsets: Vec<i64> = self.sync.offsets_ms().collect();
        let stops = !offsets.is_empty() && offsets.iter().all(|offset| offset.unsigned_abs() > limit);
        if stops {
            self.report(TrustEvent::ClockStops { offset_ms: offsets[0] });
        } else {
            self.withdraw(|event| matches!(event, TrustEvent::ClockStops { .. }));
        }
        let Some(offset_ms) = offsets.iter().find(|offset| offset.unsigned_abs() > OFFSET_MAX_MS) else {
            self.clock_off_since = None;
            self.withdraw(|event| matches!(event, TrustEvent::ClockOff { .. }));
            return;
        };
        // Of a clock that was set, the neighbours hear one after the other.
        let since = *self.clock_off_since.get_or_insert(now);
        if !stops && now - since >= CLOCK_OFF_FOR {
            self.report(TrustEvent::ClockOff { offset_ms: *offset_ms });
        }
    }
}
