//! The entry's side of setup: keeps its channels up (SPEC 5.6-5.8).
//!
//! Each wanted channel is a seat. A seat without a channel, or whose channel nears its end, is on a
//! quest: setup after setup, each with fresh ephemerals, until one is acknowledged; whichever comes
//! back first wins. Nothing is sent while the link to Mix 1 is down. While no channel is open at all
//! only the first quest goes on trying, so that a broken chain is not loaded by every seat, and it
//! tries often, so that a mended one is found soon.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rand::RngExt;
use wire::cell::Header;
use wire::ids::{ChannelIndex, ChannelKeys, LinkId};
use wire::setup::{self, HopPublic, Pending};

use crate::channel::{Channels, LinkChannel, Use, info, send_setup};
use crate::config::{Config, Role};
use crate::core::Core;
use crate::counters::Refusal;
use crate::descriptor::draw_secret;
use crate::io::{DataOp, Event};
use crate::link::Links;

/// Attempts that are remembered.
const ATTEMPTS_MAX: usize = 8;
/// And for how long.
const ATTEMPT_WAIT: Duration = Duration::from_secs(60);

/// One wanted channel.
#[derive(Default)]
struct Seat {
    open: Option<Seated>,
    quest: Option<Quest>,
}

struct Seated {
    channel: ChannelIndex,
    replace_at: Duration,
}

/// The search for one channel.
struct Quest {
    attempts: VecDeque<Attempt>,
    count: u32,
    timeout: Duration,
    due: Duration,
}

/// One setup that waits for its ack.
struct Attempt {
    id: LinkChannel,
    pending: Pending,
    acks: Vec<Option<Vec<u8>>>,
    sent: Duration,
}

/// All seats.
pub(crate) struct Entry {
    hops: Vec<HopPublic>,
    seats: Vec<Seat>,
    /// Seats on a quest.
    questing: BTreeSet<usize>,
    /// All others, by the time at which they begin one.
    resting: BTreeSet<(Duration, usize)>,
    /// Seats with an open channel.
    open: usize,
}

impl Entry {
    pub(crate) fn new(config: &Config) -> Option<Entry> {
        let Role::Entry { hops, channels } = &config.role else { return None };
        let hops = hops.iter().map(|descriptor| descriptor.hop()).collect();
        let mut entry = Entry { hops, seats: Vec::new(), questing: BTreeSet::new(), resting: BTreeSet::new(), open: 0 };
        entry.grow(*channels);
        Some(entry)
    }

    /// Has at least so many seats from now on.
    pub(crate) fn grow(&mut self, seats: usize) {
        for seat in self.seats.len()..seats {
            self.seats.push(Seat::default());
            self.resting.insert((Duration::ZERO, seat));
        }
    }

    /// Takes a seat whose time to begin a quest has come.
    fn begins(&mut self, now: Duration) -> Option<usize> {
        let (at, seat) = *self.resting.first()?;
        (at <= now && self.resting.remove(&(at, seat))).then_some(seat)
    }

    /// Which seat may go on trying while nothing is open.
    fn prober(&self) -> Option<usize> {
        if self.open > 0 { None } else { self.questing.first().copied() }
    }

    /// Whether a quest waits for another one to succeed first.
    fn held_back(prober: Option<usize>, seat: usize, quest: &Quest) -> bool {
        quest.count > 0 && prober.is_some_and(|prober| prober != seat)
    }

    /// Starts quests and sends what is due.
    pub(crate) fn tick(&mut self, core: &mut Core, channels: &mut Channels, links: &mut Links, now: Duration) {
        while let Some(seat) = self.begins(now) {
            let timeout = core.config.setup_timeout();
            self.seats[seat].quest = Some(Quest { attempts: VecDeque::new(), count: 0, timeout, due: now });
            self.questing.insert(seat);
        }
        for seat in self.questing.iter().copied().collect::<Vec<_>>() {
            let state = &mut self.seats[seat];
            if let Some(quest) = &mut state.quest {
                quest.forget_old(channels, now, ATTEMPTS_MAX);
            }
            let prober = self.prober();
            let Some(link) = links.down_ready() else { continue };
            let timing = core.config.timing;
            let longest = if prober.is_some() { timing.probe_retry_max } else { timing.setup_retry_max };
            let longest = longest.max(core.config.setup_timeout());
            let state = &mut self.seats[seat];
            if let Some(quest) = &mut state.quest
                && !Self::held_back(prober, seat, quest)
            {
                // It may have slowed down while another seat's channel was open.
                if quest.timeout > longest {
                    quest.timeout = longest;
                    quest.due = quest.due.min(now + longest);
                }
                if now < quest.due {
                    continue;
                }
                quest.wait(core, now, longest);
                quest.attempt(core, channels, links, now, (seat, link), &self.hops);
            }
        }
    }

    /// An ack cell from Mix 1.
    pub(crate) fn ack(
        &mut self,
        core: &mut Core,
        channels: &mut Channels,
        links: &mut Links,
        now: Duration,
        (link, header): (LinkId, &Header),
        content: &[u8],
    ) -> Result<(), Refusal> {
        let id = (link, header.channel);
        let Some(Use::Attempt(seat)) = channels.used_by(id) else { return Err(Refusal::AckUnasked) };
        let state = self.seats.get_mut(seat).ok_or(Refusal::AckUnasked)?;
        let quest = state.quest.as_mut().ok_or(Refusal::AckUnasked)?;
        let at = quest.attempts.iter().position(|attempt| attempt.id == id).ok_or(Refusal::AckUnasked)?;
        let attempt = &mut quest.attempts[at];
        let part = attempt.acks.get_mut(usize::from(header.sub)).ok_or(Refusal::AckUnasked)?;
        if part.is_some() {
            return Err(Refusal::AckUnasked);
        }
        *part = Some(content.to_vec());
        if attempt.acks.iter().any(Option::is_none) {
            return Ok(());
        }
        let attempt = quest.attempts.remove(at).expect("it was found above");
        let mut contents: Vec<Vec<u8>> = attempt.acks.into_iter().flatten().collect();
        let secrets = match attempt.pending.finish(core.config.shape, &mut contents) {
            Ok(secrets) => secrets,
            Err(why) => {
                channels.rest(now, id);
                core.event(Event::SetupRefused(why));
                return Err(Refusal::AckBad);
            }
        };
        let quest = state.quest.take().expect("it was found above");
        quest.forget(channels, now);
        let setup = now.saturating_sub(attempt.sent);
        let new = channels.install(core, links, None, Some(id), ChannelKeys::Entry(secrets), setup);
        let replace_at = now + replace_after(core);
        match state.open.replace(Seated { channel: new, replace_at }) {
            Some(old) => core.data(DataOp::Supersede { old: old.channel, new }),
            None => self.open += 1,
        }
        self.questing.remove(&seat);
        self.resting.insert((replace_at, seat));
        self.hurry(core, now);
        Ok(())
    }

    /// The chain works: quests that had slowed down start over.
    fn hurry(&mut self, core: &Core, now: Duration) {
        let first = core.config.setup_timeout();
        for seat in &self.questing {
            let Some(quest) = &mut self.seats[*seat].quest else { continue };
            quest.timeout = first;
            let answered_by = quest.attempts.back().map_or(now, |attempt| attempt.sent + first);
            quest.due = quest.due.min(answered_by.max(now));
        }
    }

    /// A channel is gone; its seat seeks another at the next tick.
    pub(crate) fn ended(&mut self, channel: ChannelIndex) {
        let with = |seat: &Seat| seat.open.as_ref().is_some_and(|open| open.channel == channel);
        let Some(at) = self.seats.iter().position(with) else { return };
        let Some(open) = self.seats[at].open.take() else { return };
        self.open -= 1;
        if self.resting.remove(&(open.replace_at, at)) {
            self.resting.insert((Duration::ZERO, at));
        }
    }

    /// The link to Mix 1 goes, and all channels and attempts with it.
    pub(crate) fn drop_link(&mut self, channels: &mut Channels, now: Duration) {
        for seat in &mut self.seats {
            seat.open = None;
            if let Some(quest) = seat.quest.take() {
                quest.forget(channels, now);
            }
        }
        self.open = 0;
        self.questing.clear();
        self.resting = (0..self.seats.len()).map(|seat| (Duration::ZERO, seat)).collect();
    }

    /// When [`Entry::tick`] has something to do next.
    pub(crate) fn next_wake(&self, links: &Links) -> Duration {
        let rested = self.resting.first().map_or(Duration::MAX, |(at, _)| *at);
        if links.down_ready().is_none() {
            return rested;
        }
        let prober = self.prober();
        let quests = self.questing.iter().filter_map(|at| Some((*at, self.seats[*at].quest.as_ref()?)));
        let due = quests.filter(|(at, quest)| !Self::held_back(prober, *at, quest)).map(|(_, quest)| quest.due);
        due.min().map_or(rested, |due| due.min(rested))
    }
}

impl Quest {
    /// Sets the wait for the attempt that follows, +-20 %, and doubles the next.
    fn wait(&mut self, core: &mut Core, now: Duration, longest: Duration) {
        let wait = self.timeout.min(longest).mul_f64(core.rng.random_range(0.8..=1.2));
        self.due = now + wait;
        self.timeout = (self.timeout * 2).min(longest);
        if self.count > 0 {
            core.event(Event::SetupTimedOut { attempts: self.count, next_timeout: wait });
        }
        self.count += 1;
    }

    /// Sends one more setup.
    fn attempt(
        &mut self,
        core: &mut Core,
        channels: &mut Channels,
        links: &mut Links,
        now: Duration,
        (seat, link): (usize, LinkId),
        hops: &[HopPublic],
    ) {
        self.forget_old(channels, now, ATTEMPTS_MAX - 1);
        let shape = core.config.shape;
        let ephemerals = hops.iter().map(|_| draw_secret(&mut core.rng)).collect();
        let Ok((onion, pending)) = setup::build(shape, hops, ephemerals, info(&core.config)) else {
            // A descriptor with a low-order setup key; its operator must publish another.
            core.refuse(Refusal::SetupBad);
            return;
        };
        let id = channels.draw_id(core, link, Use::Attempt(seat));
        let acks = vec![None; setup::ack_cells(shape)];
        self.attempts.push_back(Attempt { id, pending, acks, sent: now });
        core.counters.setups += 1;
        send_setup(core, links, now, id, &onion);
    }

    /// Wipes attempts that are over a minute old, and the oldest beyond `keep`.
    fn forget_old(&mut self, channels: &mut Channels, now: Duration, keep: usize) {
        let old = |quest: &Quest| {
            let first = quest.attempts.front()?;
            (quest.attempts.len() > keep || now.saturating_sub(first.sent) >= ATTEMPT_WAIT).then_some(())
        };
        while old(self).is_some() {
            let attempt = self.attempts.pop_front().expect("there is a first");
            channels.rest(now, attempt.id);
        }
    }

    /// Lets the ids of all attempts rest.
    fn forget(self, channels: &mut Channels, now: Duration) {
        for attempt in self.attempts {
            channels.rest(now, attempt.id);
        }
    }
}

/// A channel is replaced 60-300 s before its end; one that lives less than ten minutes in its second
/// half.
fn replace_after(core: &mut Core) -> Duration {
    let lifetime = f64::from(core.config.lifetime_s());
    let margin =
        if lifetime > 600.0 { core.rng.random_range(60.0..300.0) } else { lifetime * core.rng.random_range(0.1..0.5) };
    Duration::from_secs_f64(lifetime - margin)
}
