//! An entry's part: it asks Mix 1 for the bundle of the running interval when it wants to set up a
//! channel, and uses no other (SPEC 7.6, 7.9).

use std::time::Duration;

use wire::ids::LinkId;
use wire::setup::HopPublic;

use super::hop::TrustEvent;
use super::sync::{News, Outgoing, Peer, Refused, Sync};
use super::view::{Bundle, View};

/// A clock that differs by more is reported.
const OFFSET_MAX_MS: i64 = 2000;

pub struct UserTrust {
    view: View,
    sync: Sync,
    /// The hash of the bundle that was used last.
    used: Option<Vec<[u8; 32]>>,
    events: Vec<TrustEvent>,
    reported_offset: bool,
}

impl UserTrust {
    pub fn new(view: View, now: Duration) -> UserTrust {
        let sync = Sync::new(&view, now);
        UserTrust { view, sync, used: None, events: Vec::new(), reported_offset: false }
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn view_mut(&mut self) -> &mut View {
        &mut self.view
    }

    pub fn link_up(&mut self, link: LinkId, content_len: usize, now: Duration) {
        self.sync.link_up(link, Peer::FirstHop, content_len, now);
    }

    pub fn link_down(&mut self, link: LinkId) {
        self.sync.link_down(link);
    }

    /// Takes in the content of a part cell.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn take(&mut self, now: Duration, wall_ms: u64, link: LinkId, content: &[u8]) -> Result<(), Refused> {
        let mut out = Vec::new();
        let news = self.sync.take(&mut self.view, now, wall_ms, link, content, &mut out)?;
        match news {
            Some(News::Descriptor(hop)) => {
                let revision = self.view.descriptor(hop).map_or(0, |descriptor| descriptor.revision);
                self.events.push(TrustEvent::Descriptor { hop, revision });
            }
            Some(News::SignedTwice(hop, interval)) => self.events.push(TrustEvent::SignedTwice { hop, interval }),
            _ => {}
        }
        let offset = self.sync.offsets_ms().next().filter(|offset| offset.abs() > OFFSET_MAX_MS);
        match offset {
            Some(offset_ms) if !self.reported_offset => self.events.push(TrustEvent::ClockDiffers { offset_ms }),
            _ => {}
        }
        self.reported_offset = offset.is_some();
        Ok(())
    }

    /// The bundle of the running interval, if it is here. If it is not, [`UserTrust::run`] asks for it.
    pub fn bundle(&mut self, now: Duration, wall_ms: u64) -> Option<&Bundle> {
        let interval = self.view.times().interval_at(wall_ms);
        self.sync.want(Some(interval), now);
        self.view.complete(interval)
    }

    /// The setup keys of all hops in a bundle, Mix 1 first.
    pub fn hops(&self, bundle: &Bundle) -> Vec<HopPublic> {
        let hops = bundle.records.len();
        let public = |(i, record): (usize, &std::sync::Arc<super::SignedRecord>)| HopPublic {
            setup: record.setup.clone(),
            descriptor_hash: record.setup_hash(self.view.chain(), i + 1, hops),
        };
        bundle.records.iter().enumerate().map(public).collect()
    }

    /// True if the records of this bundle differ from those used last; they are those used last from now on.
    pub fn records_changed(&mut self, bundle_records: Vec<[u8; 32]>) -> bool {
        let changed = self.used.as_ref().is_some_and(|used| *used != bundle_records);
        self.used = Some(bundle_records);
        changed
    }

    /// No bundle is wanted any more.
    pub fn rest(&mut self, now: Duration) {
        self.sync.want(None, now);
    }

    /// Sends what is due.
    pub fn run(&mut self, now: Duration, wall_ms: u64) -> Vec<Outgoing> {
        self.view.forget(wall_ms);
        let mut out = Vec::new();
        self.sync.run(&self.view, now, wall_ms, &mut out);
        out
    }

    pub fn events(&mut self) -> Vec<TrustEvent> {
        std::mem::take(&mut self.events)
    }

    pub fn next_wake(&self) -> Duration {
        self.sync.next_wake()
    }
}
