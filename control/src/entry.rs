//! The entry's side of setup: keeps its channels up (SPEC 5.6-5.8).
//!
//! A wanted channel that is not open, or whose channel nears its end, is searched for: setup after
//! setup, each with fresh ephemerals, until one is acknowledged. Whichever ack arrives first wins.
//! Nothing is sent while the link to Mix 1 is down. While no channel is open at all, only the first
//! search goes on, so that the setups of all wanted channels do not load a broken chain; that search
//! retries often, so that a repaired chain is found soon. Few setups are in flight at once, because Mix 1
//! joins the shards of few at once; the searches that are due wait, in the order of their numbers.
//!
//! A setup is built from the bundle of the running interval, which all hops have signed (SPEC 7.6, 7.9). Without it a
//! search waits.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use rand::{Rng, RngExt};
use wire::cell::Header;
use wire::ids::{ChannelIndex, ChannelKeys, LinkId};
use wire::setup::{self, HopPublic, Pending};

use crate::channel::{Channels, LinkChannel, Use, info, send_setup};
use crate::config::{Config, Role};
use crate::context::Context;
use crate::counters::Refusal;
use crate::draw::draw_secret;
use crate::io::{Change, Event};
use crate::link::{INCOMPLETE_SETUPS_PER_ENTRY_LINK, Links, SETUP_SHARDS_WAIT};
use crate::trust::user::UserTrust;

/// Attempts of one search whose ack is still accepted.
const ATTEMPTS_MAX: usize = 8;
/// An ack is accepted for this long.
const ACK_WAIT: Duration = Duration::from_secs(60);
/// Setups in flight: neither answered by an ack cell nor older than the wait of Mix 1 for their shards.
/// Two fewer than Mix 1 joins at once, for shards that are late.
pub const SETUPS_IN_FLIGHT_MAX: usize = INCOMPLETE_SETUPS_PER_ENTRY_LINK - 2;

/// Although a switch of epochs is near, a replacement begins this and a first timeout before its channel ends.
const REPLACEMENT_WAIT: Duration = Duration::from_secs(2);

/// One wanted channel.
#[derive(Default)]
struct Wanted {
    open: Option<OpenChannel>,
    search: Option<Search>,
    /// Its channel has ended before another was open.
    has_lost: bool,
}

struct OpenChannel {
    channel: ChannelIndex,
    replace_at: Duration,
    /// Its replacement must begin by then: hops end channels at full seconds, and a setup takes time.
    replace_by: Duration,
}

/// The attempts to set up one channel.
struct Search {
    /// Oldest first.
    attempts: VecDeque<Attempt>,
    /// Attempts so far.
    count: u32,
    /// The timeout of the next attempt.
    timeout: Duration,
    /// The time of the next attempt.
    due: Duration,
}

/// One setup that waits for its ack.
struct Attempt {
    id: LinkChannel,
    pending: Pending,
    /// The ack contents that arrived.
    acks: Vec<Option<Vec<u8>>>,
    sent_at: Duration,
}

/// All wanted channels, by number.
pub(crate) struct Entry {
    keys: BundleKeys,
    wanted: Vec<Wanted>,
    /// Those with a search.
    searching: BTreeSet<usize>,
    /// All others, by the time at which their search starts.
    scheduled: BTreeSet<(Duration, usize)>,
    /// Number of open channels.
    open_count: usize,
    in_flight: InFlight,
}

/// Setups that may wait at Mix 1 for some of their shards, and the time at which each left; oldest first.
#[derive(Default)]
struct InFlight(VecDeque<(Duration, LinkChannel)>);

impl InFlight {
    fn expire(&mut self, now: Duration) {
        while self.0.pop_front_if(|(sent_at, _)| now.saturating_sub(*sent_at) >= SETUP_SHARDS_WAIT).is_some() {}
    }

    /// The time from which one more may leave.
    fn room_at(&self) -> Duration {
        let full = self.0.len() >= SETUPS_IN_FLIGHT_MAX;
        self.0.front().filter(|_| full).map_or(Duration::ZERO, |(sent_at, _)| *sent_at + SETUP_SHARDS_WAIT)
    }

    /// An ack cell has arrived, so Mix 1 has joined the shards.
    fn remove(&mut self, id: LinkChannel) {
        self.0.retain(|(_, other)| *other != id);
    }
}

/// The setup keys of all hops, from the bundle of the running interval.
struct BundleKeys {
    /// The bundle of the running interval is here.
    are_usable: bool,
    /// Hashes of the records that they are from.
    records: Vec<[u8; 32]>,
    hops: Vec<HopPublic>,
    /// When the next interval begins. Not used while no channel is searched for.
    next_interval: Duration,
    /// The interval that was looked at last, and when its bundle is asked for by who has a channel, in ms since 1970.
    /// It is a random time, because Mix 1 would read the entry's clock from an ask at the start of an interval.
    interval: Option<(u64, u64)>,
    /// After a switch of epochs that was near: when it no longer is, and the random time at which held-back setups
    /// leave, in ms since 1970.
    release_ms: Range<u64>,
    /// Setups of who has a channel are held back until then, so that clocks do not label it.
    held_until: Option<Duration>,
}

impl BundleKeys {
    fn new() -> BundleKeys {
        BundleKeys {
            are_usable: false,
            records: Vec::new(),
            hops: Vec::new(),
            next_interval: Duration::MAX,
            interval: None,
            release_ms: 0..0,
            held_until: None,
        }
    }

    /// Looks at the clock and for the bundle, or asks for it, later if all searches can wait until then. True if the
    /// keys are others than before.
    fn look(
        &mut self,
        rng: &mut impl Rng,
        user: &mut UserTrust,
        (now, wall_ms): (Duration, u64),
        can_wait: impl Fn(Duration) -> bool,
    ) -> bool {
        let times = user.session().times();
        let at = |ms: u64| now + Duration::from_millis(ms.saturating_sub(wall_ms));
        let interval = times.interval_at(wall_ms);
        self.next_interval = at(times.interval_start(interval + 1));
        let ask_ms = match self.interval {
            Some((same, ask_ms)) if same == interval => ask_ms,
            _ => times.interval_start(interval) + rng.random_range(0..=times.interval_ms() / 10),
        };
        self.interval = Some((interval, ask_ms));
        let near_until = times.near_switch_until(wall_ms);
        if let Some(until) = near_until.filter(|until| *until != self.release_ms.start) {
            self.release_ms = until..until + rng.random_range(1..=times.interval_ms());
        }
        let is_held = near_until.is_some() || self.release_ms.contains(&wall_ms);
        self.held_until = is_held.then(|| at(self.release_ms.end));
        let ask_at = Some(at(ask_ms)).filter(|at| can_wait(*at)).unwrap_or(now);
        let chain = *user.session().chain();
        let bundle = user.bundle(now, wall_ms, ask_at);
        self.are_usable = bundle.is_some();
        let Some(bundle) = bundle else { return false };
        let records = bundle.record_hashes();
        if records == self.records {
            return false;
        }
        self.hops = bundle.setup_keys(&chain);
        let before = std::mem::replace(&mut self.records, records);
        !before.is_empty()
    }
}

impl Wanted {
    /// Its search can wait: it, or another one, has a channel for longer.
    fn can_wait(&self, until: Duration, open_count: usize) -> bool {
        match &self.open {
            Some(open) => open.replace_by > until,
            None => open_count > 0 && !self.has_lost,
        }
    }

    /// The search must not begin a setup before this.
    fn not_before(&self, keys: &BundleKeys, open_count: usize) -> Option<Duration> {
        keys.held_until.filter(|until| self.can_wait(*until, open_count))
    }
}

impl Entry {
    pub(crate) fn new(config: &Config) -> Option<Entry> {
        let Role::Entry { channels } = &config.role else { return None };
        let mut entry = Entry {
            keys: BundleKeys::new(),
            wanted: Vec::new(),
            searching: BTreeSet::new(),
            scheduled: BTreeSet::new(),
            open_count: 0,
            in_flight: InFlight::default(),
        };
        entry.grow(*channels);
        Some(entry)
    }

    /// The setup keys of the bundle that it uses.
    #[cfg(test)]
    pub(crate) fn setup_keys(&self) -> &[HopPublic] {
        &self.keys.hops
    }

    /// Wants at least this many channels from now on.
    pub(crate) fn grow(&mut self, count: usize) {
        for number in self.wanted.len()..count {
            self.wanted.push(Wanted::default());
            self.scheduled.insert((Duration::ZERO, number));
        }
    }

    /// Takes out a wanted channel whose search is due to start.
    fn pop_scheduled(&mut self, now: Duration) -> Option<usize> {
        let (at, number) = *self.scheduled.first()?;
        (at <= now && self.scheduled.remove(&(at, number))).then_some(number)
    }

    /// The only search that goes on while nothing is open.
    fn prober(&self) -> Option<usize> {
        if self.open_count > 0 { None } else { self.searching.first().copied() }
    }

    /// Checks whether a search must wait until the prober has succeeded.
    fn is_held_back(prober: Option<usize>, number: usize, search: &Search) -> bool {
        search.count > 0 && prober.is_some_and(|prober| prober != number)
    }

    /// Starts searches and sends the setups that are due. False if no bundle is wanted.
    pub(crate) fn tick(
        &mut self,
        cx: &mut Context,
        channels: &mut Channels,
        links: &mut Links,
        user: &mut UserTrust,
        (now, wall_ms): (Duration, u64),
    ) -> bool {
        while let Some(number) = self.pop_scheduled(now) {
            let timeout = cx.config.setup_timeout();
            self.wanted[number].search = Some(Search { attempts: VecDeque::new(), count: 0, timeout, due: now });
            self.searching.insert(number);
        }

        let (searching, wanted) = (&self.searching, &self.wanted);
        let can_wait = |until| searching.iter().all(|number| wanted[*number].can_wait(until, self.open_count));
        let wants_bundle = !self.searching.is_empty() && links.down_ready().is_some();
        if !wants_bundle {
            self.keys.are_usable = false;
        } else if self.keys.look(&mut cx.rng, user, (now, wall_ms), can_wait) {
            self.discard_attempts(cx, channels, now);
        }
        self.in_flight.expire(now);
        let prober = self.prober();
        let timing = &cx.config.timing;
        let longest = if prober.is_some() { timing.probe_retry_max } else { timing.setup_retry_max };
        let longest = longest.max(cx.config.setup_timeout());
        for number in &self.searching {
            let not_before = self.wanted[*number].not_before(&self.keys, self.open_count);
            let Some(search) = &mut self.wanted[*number].search else { continue };
            search.drop_attempts(channels, now, ATTEMPTS_MAX);
            let Some(link) = links.down_ready() else { continue };
            if Self::is_held_back(prober, *number, search) {
                continue;
            }
            // Its timeout may have grown while the channel of another search was open.
            if search.timeout > longest {
                search.timeout = longest;
                search.due = search.due.min(now + longest);
            }
            let may_begin = not_before.is_none_or(|at| now >= at) && now >= self.in_flight.room_at();
            if now >= search.due && self.keys.are_usable && may_begin {
                search.schedule(cx, now, longest);
                if let Some(id) = search.attempt(cx, channels, links, now, (*number, link), &self.keys.hops) {
                    self.in_flight.0.push_back((now, id));
                }
            }
        }
        wants_bundle
    }

    /// Hops have other keys: setups to the old ones are given up, and others are sent at once.
    fn discard_attempts(&mut self, cx: &Context, channels: &mut Channels, now: Duration) {
        for number in &self.searching {
            let Some(search) = &mut self.wanted[*number].search else { continue };
            if search.attempts.is_empty() {
                continue;
            }
            search.attempts.drain(..).for_each(|attempt| channels.release_drawn(now, attempt.id));
            (search.timeout, search.due) = (cx.config.setup_timeout(), now);
        }
    }

    /// Takes in an ack cell from Mix 1. The last content opens the channel.
    pub(crate) fn ack(
        &mut self,
        cx: &mut Context,
        channels: &mut Channels,
        links: &mut Links,
        now: Duration,
        (link, header): (LinkId, &Header),
        content: &[u8],
    ) -> Result<(), Refusal> {
        let id = (link, header.channel);
        if usize::from(header.sub) >= setup::ack_cells(cx.config.shape) {
            return Err(Refusal::UnexpectedAck);
        }
        let number = match channels.used_by(id) {
            Some(Use::Setup(number)) => number,
            Some(Use::Open(_)) => {
                cx.counters.surplus_cells += 1;
                return Ok(());
            }
            _ => return Err(Refusal::UnexpectedAck),
        };
        let wanted = self.wanted.get_mut(number).ok_or(Refusal::UnexpectedAck)?;
        let search = wanted.search.as_mut().ok_or(Refusal::UnexpectedAck)?;
        let at = search.attempts.iter().position(|attempt| attempt.id == id).ok_or(Refusal::UnexpectedAck)?;
        self.in_flight.remove(id);
        let attempt = &mut search.attempts[at];
        let part = &mut attempt.acks[usize::from(header.sub)];
        if part.is_some() {
            cx.counters.surplus_cells += 1;
            return Ok(());
        }
        *part = Some(content.to_vec());
        if attempt.acks.iter().any(Option::is_none) {
            return Ok(());
        }

        let attempt = search.attempts.remove(at).expect("it was found above");
        let mut contents: Vec<Vec<u8>> = attempt.acks.into_iter().flatten().collect();
        let secrets = match attempt.pending.finish(cx.config.shape, &mut contents) {
            Ok(secrets) => secrets,
            Err(why) => {
                channels.release_drawn(now, id);
                cx.event(Event::SetupRefused(why));
                return Err(Refusal::AckInvalid);
            }
        };
        let search = wanted.search.take().expect("it was found above");
        search.cancel(channels, now);

        let setup = now.saturating_sub(attempt.sent_at);
        let new = channels.install(cx, links, None, Some(id), ChannelKeys::Entry(secrets), setup);
        let replace_at = now + replace_after(cx);
        let lifetime = Duration::from_secs(u64::from(cx.config.lifetime_s()));
        let replace_by = now + lifetime.saturating_sub(REPLACEMENT_WAIT + cx.config.setup_timeout());
        wanted.has_lost = false;
        match wanted.open.replace(OpenChannel { channel: new, replace_at, replace_by }) {
            Some(old) => cx.change(Change::Supersede { old: old.channel, new }),
            None => self.open_count += 1,
        }
        self.searching.remove(&number);
        self.scheduled.insert((replace_at, number));
        self.reset_timeouts(cx, now);
        Ok(())
    }

    /// Starts the timeouts of all searches over, because the chain works.
    fn reset_timeouts(&mut self, cx: &Context, now: Duration) {
        let first = cx.config.setup_timeout();
        for number in &self.searching {
            let Some(search) = &mut self.wanted[*number].search else { continue };
            search.timeout = first;
            let answered_by = search.attempts.back().map_or(now, |attempt| attempt.sent_at + first);
            search.due = search.due.min(answered_by.max(now));
        }
    }

    /// A channel has ended: the search for another starts at the next tick.
    pub(crate) fn ended(&mut self, channel: ChannelIndex) {
        let has = |wanted: &Wanted| wanted.open.as_ref().is_some_and(|open| open.channel == channel);
        let Some(number) = self.wanted.iter().position(has) else { return };
        let Some(open) = self.wanted[number].open.take() else { return };
        self.wanted[number].has_lost = true;
        self.open_count -= 1;
        if self.scheduled.remove(&(open.replace_at, number)) {
            self.scheduled.insert((Duration::ZERO, number));
        }
    }

    /// The link to Mix 1 is about to be retired, with all channels and attempts.
    pub(crate) fn drop_link(&mut self, channels: &mut Channels, now: Duration) {
        for wanted in &mut self.wanted {
            if let Some(search) = std::mem::take(wanted).search {
                search.cancel(channels, now);
            }
        }
        self.keys = BundleKeys::new();
        self.open_count = 0;
        self.in_flight = InFlight::default();
        self.searching.clear();
        self.scheduled = (0..self.wanted.len()).map(|number| (Duration::ZERO, number)).collect();
    }

    /// The time of the next work for [`Entry::tick`].
    pub(crate) fn next_wake(&self, links: &Links) -> Duration {
        let scheduled = self.scheduled.first().map_or(Duration::MAX, |(at, _)| *at);
        if links.down_ready().is_none() {
            return scheduled;
        }
        if self.searching.is_empty() {
            return scheduled;
        }
        let wake = scheduled.min(self.keys.next_interval);
        if !self.keys.are_usable {
            return wake;
        }
        let prober = self.prober();
        let searches =
            self.searching.iter().filter_map(|number| Some((*number, self.wanted[*number].search.as_ref()?)));
        let due =
            searches.filter(|(number, search)| !Self::is_held_back(prober, *number, search)).map(|(number, search)| {
                let not_before = self.wanted[number].not_before(&self.keys, self.open_count);
                search.due.max(not_before.unwrap_or(Duration::ZERO)).max(self.in_flight.room_at())
            });
        due.min().map_or(wake, |due| due.min(wake))
    }
}

impl Search {
    /// Sets the time of the attempt after this one, +-20 %, and doubles the timeout.
    fn schedule(&mut self, cx: &mut Context, now: Duration, longest: Duration) {
        let wait = self.timeout.min(longest).mul_f64(cx.rng.random_range(0.8..=1.2));
        self.due = now + wait;
        self.timeout = (self.timeout * 2).min(longest);
        if self.count > 0 {
            cx.event(Event::SetupTimedOut { attempts: self.count, next_timeout: wait });
        }
        self.count += 1;
    }

    /// Sends one more setup and returns its id.
    fn attempt(
        &mut self,
        cx: &mut Context,
        channels: &mut Channels,
        links: &mut Links,
        now: Duration,
        (number, link): (usize, LinkId),
        hops: &[HopPublic],
    ) -> Option<LinkChannel> {
        self.drop_attempts(channels, now, ATTEMPTS_MAX - 1);
        let shape = cx.config.shape;
        let shares = hops.iter().map(|hop| hop.setup.share(draw_secret(&mut cx.rng))).collect();
        let Ok((onion, pending)) = setup::build(shape, hops, shares, info(&cx.config)) else {
            // Records with a low-order key are refused.
            cx.refuse(Refusal::SetupInvalid);
            return None;
        };

        let id = channels.draw_id(cx, link, Use::Setup(number));
        let acks = vec![None; setup::ack_cells(shape)];
        self.attempts.push_back(Attempt { id, pending, acks, sent_at: now });
        cx.counters.setups += 1;
        send_setup(cx, links, now, id, &onion);
        Some(id)
    }

    /// Drops and wipes attempts that are over a minute old, and the oldest beyond `keep`.
    fn drop_attempts(&mut self, channels: &mut Channels, now: Duration, keep: usize) {
        while let Some(first) = self.attempts.front()
            && (self.attempts.len() > keep || now.saturating_sub(first.sent_at) >= ACK_WAIT)
        {
            channels.release_drawn(now, first.id);
            self.attempts.pop_front();
        }
    }

    /// Ends the search and releases the ids of its attempts.
    fn cancel(self, channels: &mut Channels, now: Duration) {
        for attempt in self.attempts {
            channels.release_drawn(now, attempt.id);
        }
    }
}

/// The time from its setup to the replacement of a channel: 60-300 s before its end, or in the second half of
/// a lifetime below ten minutes.
fn replace_after(cx: &mut Context) -> Duration {
    let lifetime = f64::from(cx.config.lifetime_s());
    let margin =
        if lifetime > 600.0 { cx.rng.random_range(60.0..300.0) } else { lifetime * cx.rng.random_range(0.1..0.5) };
    Duration::from_secs_f64(lifetime - margin)
}
