//! An entry's part: it asks Mix 1 for the bundle of the running interval when it wants to set up a
//! channel, and uses no other (SPEC 7.6, 7.9).
//!
//! It has two views, so that Mix 1 does not recognise an entry by what it holds. Asks and bundles come from `session`,
//! which is new for each link and takes nothing but what arrives on it. `durable` comes from files. It serves to reach
//! Mix 1, and what a link has brought gets into it only after two bundles, an epoch apart, that name it.

use std::collections::BTreeSet;
use std::time::Duration;

use wire::ids::LinkId;

use super::descriptor::SignedDescriptor;
use super::hop::{Step, TrustEvent};
use super::sync::{News, OFFSET_MAX_MS, Peer, Refused, Sync};
use super::view::{BadDescriptor, Bundle, Taken, View};

/// A bundle that is missing so long is reported.
const MISSING_FOR: Duration = Duration::from_secs(3);

/// A descriptor that a link has brought and that does not count yet.
#[derive(Clone, Copy)]
struct Candidate {
    hash: [u8; 32],
    /// The interval of the first bundle that named it.
    since: u64,
}

pub struct UserTrust {
    durable: View,
    session: View,
    /// By position - 1. In memory only: on disk it would be what it prevents, a trace of a single bundle.
    candidates: Vec<Option<Candidate>>,
    /// Intervals for which it has asked, and of which it has no bundle that it uses.
    unanswered: BTreeSet<u64>,
    sync: Sync,
    steps: Vec<Step>,
    /// Number of the last [`Step::Save`].
    saves: u64,
    reported_offset: bool,
    /// Since when a wanted bundle is missing.
    missing_since: Option<Duration>,
    /// Since when one is missing that a paced class wants, on this link.
    paced_missing_since: Option<Duration>,
    reported_missing: bool,
    /// Hops whose second bundle of an interval, or second descriptor of a revision, was reported.
    signed_twice: BTreeSet<usize>,
    ambiguous: BTreeSet<usize>,
}

impl UserTrust {
    /// `is_paced`: its link is that of a paced class.
    pub fn new(durable: View, is_paced: bool, now: Duration) -> UserTrust {
        UserTrust {
            session: View::new(durable.terms().clone()),
            candidates: vec![None; durable.hops()],
            unanswered: BTreeSet::new(),
            sync: Sync::new(&durable, is_paced, now),
            durable,
            steps: Vec::new(),
            saves: 0,
            reported_offset: false,
            missing_since: None,
            paced_missing_since: None,
            reported_missing: false,
            signed_twice: BTreeSet::new(),
            ambiguous: BTreeSet::new(),
        }
    }

    /// The descriptors and floors that count for contact and are written to disk.
    pub fn durable(&self) -> &View {
        &self.durable
    }

    /// What has come on the link.
    pub fn session(&self) -> &View {
        &self.session
    }

    pub fn sync(&self) -> &Sync {
        &self.sync
    }

    /// Takes in a descriptor from a file.
    ///
    /// # Errors
    /// See [`BadDescriptor`].
    pub fn take_descriptor(
        &mut self,
        hop: usize,
        descriptor: SignedDescriptor,
        wall_ms: u64,
    ) -> Result<Taken, BadDescriptor> {
        let taken = self.durable.take_descriptor(hop, descriptor, wall_ms / 1000)?;
        if taken != Taken::Known {
            self.report_ambiguous(hop);
            self.save();
        }
        Ok(taken)
    }

    fn report_ambiguous(&mut self, hop: usize) {
        if let Some(revision) = self.durable.ambiguous_revision(hop).filter(|_| self.ambiguous.insert(hop)) {
            self.steps.push(Step::Event(TrustEvent::AmbiguousRevision { hop, revision }));
        }
    }

    /// What it holds is worth writing to disk. Nothing waits for that.
    fn save(&mut self) {
        self.saves += 1;
        self.steps.push(Step::Save(self.saves));
    }

    /// A new link is up. What came on earlier ones is forgotten: Mix 1 could find out by it whose they were.
    pub fn link_up(&mut self, link: LinkId, content_len: usize, now: Duration) {
        self.session = View::new(self.durable.terms().clone());
        self.paced_missing_since = None;
        self.sync.link_up(link, Peer::FirstHop, content_len, now);
    }

    pub fn link_down(&mut self, link: LinkId) {
        self.sync.link_down(link);
    }

    /// This node did not run for a while that ends now.
    pub fn stalled(&mut self, now: Duration) {
        self.sync.stalled(now);
    }

    /// Takes in the content of a part cell. `wall_ms` is the time by which it is judged: that of rounds, if the entry
    /// has paced classes only, otherwise that of the host's clock.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn take(&mut self, now: Duration, wall_ms: u64, link: LinkId, content: &[u8]) -> Result<(), Refused> {
        let mut out = Vec::new();
        let news = self.sync.take(&mut self.session, now, wall_ms, link, content, &mut out)?;
        for news in news {
            match news {
                News::SignedTwice(hop, interval) => {
                    if self.signed_twice.insert(hop) {
                        self.steps.push(Step::Event(TrustEvent::SignedTwice { hop, interval }));
                    }
                }
                News::Descriptor(_) | News::Certificate(_) | News::Record(_) | News::Signatures(_) => {}
            }
        }
        self.check_clock();
        Ok(())
    }

    /// The clock cells of a paced link show that Mix 1's clock is so much ahead.
    pub fn clock_compared(&mut self, link: LinkId, offset_ms: i64) {
        self.sync.clock_compared(link, offset_ms);
        self.check_clock();
    }

    fn check_clock(&mut self) {
        let offset = self.sync.offsets_ms().next().filter(|offset| offset.unsigned_abs() > OFFSET_MAX_MS);
        match offset {
            Some(offset_ms) if !self.reported_offset => {
                self.steps.push(Step::Event(TrustEvent::ClockOff { offset_ms }));
            }
            _ => {}
        }
        self.reported_offset = offset.is_some();
    }

    /// The bundle of the running interval, if it is here. If it is not, [`UserTrust::tick`] asks for it, from `ask_at`
    /// on.
    pub fn bundle(&mut self, now: Duration, wall_ms: u64, ask_at: Duration) -> Option<&Bundle> {
        let interval = self.session.times().interval_at(wall_ms);
        let ask_at = ask_at.max(now);
        let missing_since = self.missing_since.map_or(ask_at, |since| since.min(ask_at));
        self.missing_since = Some(missing_since);
        if self.find(interval, (now, wall_ms), ask_at) {
            (self.missing_since, self.reported_missing) = (None, false);
            return self.usable(interval);
        }
        if now.saturating_sub(missing_since) >= MISSING_FOR {
            self.report_missing();
        }
        None
    }

    fn report_missing(&mut self) {
        if std::mem::replace(&mut self.reported_missing, true) {
            return;
        }
        // A clock that is off is the reason, and was reported.
        if !self.reported_offset {
            let newest = self.session.newest_complete().map(|bundle| bundle.signatures.interval);
            self.steps.push(Step::Event(TrustEvent::NoBundle { newest }));
        }
    }

    /// The bundle of an interval that a paced class uses, if it is here. If not, [`UserTrust::tick`] asks for it (SPEC
    /// 9.8.2). One comes within an interval. `round_ms` is the time of the class's rounds.
    pub(crate) fn paced_bundle(&mut self, interval: u64, now: Duration, round_ms: u64) -> Option<&Bundle> {
        let since = *self.paced_missing_since.get_or_insert(now);
        if self.find(interval, (now, round_ms), now) {
            (self.paced_missing_since, self.reported_missing) = (None, false);
        } else if now.saturating_sub(since) >= Duration::from_millis(self.session.times().interval_ms()) {
            self.report_missing();
        }
        self.usable(interval)
    }

    /// True if the bundle of an interval is here. If not, it is wanted from `ask_at` on.
    fn find(&mut self, interval: u64, (now, wall_ms): (Duration, u64), ask_at: Duration) -> bool {
        if self.session.complete(interval).is_none() {
            self.sync.want(interval, ask_at);
        }
        let is_here = self.usable(interval).is_some();
        if is_here {
            self.unanswered.remove(&interval);
            self.confirm_descriptors(interval, wall_ms / 1000);
        } else if ask_at <= now {
            self.unanswered.insert(interval);
        }
        is_here
    }

    /// The complete bundle of an interval, unless it names a descriptor that a file or the state on disk revokes.
    /// Mix 1 does not learn of that from asks: they go by `session`.
    fn usable(&self, interval: u64) -> Option<&Bundle> {
        let bundle = self.session.complete(interval)?;
        let revisions = bundle.descriptors.iter().map(|descriptor| descriptor.revision);
        revisions.zip(1..).all(|(revision, hop)| revision >= self.durable.floor(hop)).then_some(bundle)
    }

    /// Takes in the descriptors that the bundle of this interval names, if one an epoch or more before named them, too,
    /// and none between them another one of the hop. A descriptor below the newest one for contact is left out, because
    /// it would be tried first.
    fn confirm_descriptors(&mut self, interval: u64, now_s: u64) {
        let Some(bundle) = self.usable(interval) else { return };
        let named = bundle.descriptors.clone();
        let times = self.session.times();
        for (hop, descriptor) in (1..).zip(named) {
            let hash = *descriptor.hash();
            let candidate = &mut self.candidates[hop - 1];
            if self.durable.descriptor(hop).is_some_and(|newest| descriptor.rank() <= newest.rank()) {
                *candidate = None;
                continue;
            }
            let since = candidate.filter(|before| before.hash == hash).map_or(interval, |before| before.since);
            *candidate = Some(Candidate { hash, since });
            if !times.is_epoch_apart(since, interval) {
                continue;
            }
            if self.durable.take_descriptor(hop, SignedDescriptor::clone(&descriptor), now_s) == Ok(Taken::New) {
                self.save();
                self.steps.push(Step::Event(TrustEvent::Descriptor { hop, revision: descriptor.revision }));
                self.report_ambiguous(hop);
            }
        }
    }

    /// Only the bundles of these intervals are wanted from now on.
    pub fn want_only(&mut self, intervals: &[u64], wall_ms: u64) {
        let running = self.session.times().interval_at(wall_ms);
        self.sync.want_only(intervals);
        if !intervals.contains(&running) {
            self.missing_since = None;
        }
        if intervals.is_empty() {
            self.paced_missing_since = None;
        }
        // Mix 1 may have withheld a bundle that names another descriptor, from this entry alone.
        let is_open = |asked: &u64| *asked == running || intervals.contains(asked);
        if self.unanswered.extract_if(.., |asked| !is_open(asked)).count() > 0 {
            self.candidates.fill(None);
        }
    }

    /// Sends what is due. Files count by the host's clock, what has come on the link by the time of
    /// [`UserTrust::take`].
    pub fn tick(&mut self, now: Duration, (wall_ms, link_ms): (u64, u64)) {
        self.durable.forget(wall_ms);
        self.session.forget(link_ms);
        let mut out = Vec::new();
        self.sync.run(&self.session, now, link_ms, &mut out);
        self.steps.extend(out.into_iter().map(|(link, content)| Step::Send(link, content)));
    }

    /// What to do, in this order.
    pub fn steps(&mut self) -> Vec<Step> {
        std::mem::take(&mut self.steps)
    }

    pub fn next_wake(&self) -> Duration {
        self.sync.next_wake()
    }
}
