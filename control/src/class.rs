//! One class of a node: its links, its channels, and at an entry the setups that it wants.
//!
//! [`Control`](crate::Control) has one for each class of its node. What they share is trust: keys, descriptors,
//! bundles.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand_chacha::ChaCha20Rng;
use wire::ids::Side;
use wire::paced::MeetingSecret;
use wire::paced::clock::SteadyClock;

use crate::channel::Channels;
use crate::config::{Caps, Config};
use crate::contacts::{Contacts, Static};
use crate::context::Context;
use crate::counters::Counters;
use crate::entry::Entry;
use crate::link::Links;
use crate::paced::{Paced, PacedStatus};
use crate::trust::user::UserTrust;
use crate::trust::view::View;

/// What a node does in one of its classes. It shares no link, channel, limit or counter with the others.
pub struct ClassControl {
    pub(crate) cx: Context,
    pub(crate) links: Links,
    pub(crate) channels: Channels,
    /// Only at an entry.
    pub(crate) entry: Option<Entry>,
    /// Only of a paced class, which has neither channels nor an entry of free classes.
    pub(crate) paced: Option<Paced>,
}

impl ClassControl {
    /// The class at place `place` among those of the node.
    pub(crate) fn new(
        place: usize,
        config: Config,
        (view, statics): (&View, Arc<[Static]>),
        rng: ChaCha20Rng,
        now: Duration,
        wall_at_zero: i128,
    ) -> ClassControl {
        let links = Links::new(place, &config, view.chain(), now);
        let channels = Channels::new(&config, now);
        let entry = if config.paced { None } else { Entry::new(&config) };
        let paced = config.paced_terms().cloned();
        let mut contacts = Contacts::default();
        contacts.update(&config, view);
        let (linked, out, counters) = (Vec::new(), Default::default(), Counters::default());
        let mut cx = Context { config, statics, contacts, linked, rng, out, wall_at_zero, counters };
        let unix_ns = cx.unix_ns(now) as u64;
        let paced = paced.map(|terms| Paced::new(&mut cx, terms, view, now, unix_ns));
        ClassControl { cx, links, channels, entry, paced }
    }

    /// Does everything that is due, but for an entry's setups.
    pub(crate) fn tick(&mut self, now: Duration, wall: SystemTime) {
        let ClassControl { cx, links, channels, entry, .. } = self;
        for link in links.expire(cx, now) {
            let is_down = links.link_mut(link).is_some_and(|link| link.side() == Side::Down);
            channels.drop_link(cx, links, now, link);
            if is_down && let Some(entry) = entry {
                entry.drop_link(channels, now);
            }
            links.retire(cx, link);
        }
        links.initiate(cx, now, wall);
        channels.tick(cx, links, now);
    }

    /// Sends the setups that are due. False if no bundle is wanted.
    pub(crate) fn tick_entry(&mut self, user: &mut UserTrust, clocks: (Duration, u64)) -> bool {
        let ClassControl { cx, links, channels, entry, .. } = self;
        entry.as_mut().is_some_and(|entry| entry.tick(cx, channels, links, user, clocks))
    }

    /// When [`ClassControl::tick`] or [`ClassControl::tick_entry`] has something to do.
    pub(crate) fn next_wake(&self) -> Duration {
        let entry = self.entry.as_ref().map_or(Duration::MAX, |entry| entry.next_wake(&self.links));
        let paced = self.paced.as_ref().map_or(Duration::MAX, Paced::next_wake);
        self.links.next_wake(&self.cx).min(self.channels.next_wake(&self.cx)).min(entry).min(paced)
    }

    /// What it knows of a paced class at `now`; none of a free one.
    pub fn paced_status(&self, now: Duration) -> Option<PacedStatus> {
        self.paced.as_ref().map(|paced| paced.status(&self.cx, &self.links, now))
    }

    /// The clock of a paced class, with which its worker starts.
    pub fn paced_clock(&self) -> Option<&SteadyClock> {
        self.paced.as_ref().map(Paced::clock)
    }

    /// Entry of a paced class: serves this meeting.
    pub(crate) fn meet(&mut self, meeting: MeetingSecret) {
        self.paced.as_mut().expect("a paced class").meet(meeting);
    }

    pub fn caps(&self) -> &Caps {
        &self.cx.config.caps
    }

    pub fn counters(&self) -> &Counters {
        &self.cx.counters
    }

    /// Number of links, whether up or not.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Number of open channels.
    pub fn open_channels(&self) -> usize {
        self.channels.open_count()
    }

    /// Number of channels that are set up towards the exit and not yet acknowledged.
    pub fn half_open(&self) -> usize {
        self.channels.half_open_count()
    }

    /// The time for which the next hop has not replied although this node sends to it: cells without an answer, or
    /// handshakes since the start or since the link was lost. None while it replies, and at the exit.
    pub fn next_hop_silence(&self, now: Duration) -> Option<Duration> {
        self.links.next_hop_silence(&self.cx, now)
    }
}
