//! The entry's side of setup: keeps its channels up (SPEC 5.6-5.8).
//!
//! Each wanted channel is a seat. A seat without a channel, or whose channel nears its end, is on a
//! quest: setup after setup, each with fresh ephemerals, until one is acknowledged; whichever comes
//! back first wins. Nothing is sent while the link to Mix 1 is down. While no channel is open at all
//! only the first quest goes on trying, so that a broken chain is not loaded by every seat, and it
//! tries often, so that a mended one is found soon.

use std::collections::VecDeque;
use std::time::Duration;

use rand::RngExt;
use wire::cell::Header;
use wire::setup::{self, HopPublic, Pending};

use crate::channel::{Channels, LinkChannel, Use, info, send_setup};
use crate::config::{Config, Role};
use crate::core::Core;
use crate::counters::Refusal;
use crate::descriptor::draw_secret;
use crate::io::{ChannelIndex, ChannelKeys, DataOp, Event, LinkId};
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
}

impl Entry {
    pub(crate) fn new(config: &Config) -> Option<Entry> {
        let Role::Entry { hops, channels } = &config.role else { return None };
        let hops = hops.iter().map(|descriptor| descriptor.hop()).collect();
        Some(Entry { hops, seats: (0..*channels).map(|_| Seat::default()).collect() })
    }

    fn any_open(&self) -> bool {
        self.seats.iter().any(|seat| seat.open.is_some())
    }

    /// Which seat may go on trying while nothing is open.
    fn prober(&self) -> Option<usize> {
        if self.any_open() { None } else { self.seats.iter().position(|seat| seat.quest.is_some()) }
    }

    /// Whether a quest waits for another one to succeed first.
    fn held_back(prober: Option<usize>, seat: usize, quest: &Quest) -> bool {
        quest.count > 0 && prober.is_some_and(|prober| prober != seat)
    }

    /// Starts quests and sends what is due.
    pub(crate) fn tick(&mut self, core: &mut Core, channels: &mut Channels, links: &mut Links, now: Duration) {
        for seat in 0..self.seats.len() {
            let state = &mut self.seats[seat];
            if state.open.as_ref().is_none_or(|open| now >= open.replace_at) && state.quest.is_none() {
                let timeout = core.config.setup_timeout();
                state.quest = Some(Quest { attempts: VecDeque::new(), count: 0, timeout, due: now });
            }
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
        if let Some(old) = state.open.replace(Seated { channel: new, replace_at }) {
            core.data(DataOp::Supersede { old: old.channel, new });
        }
        self.hurry(core, now);
        Ok(())
    }

    /// The chain works: quests that had slowed down start over.
    fn hurry(&mut self, core: &Core, now: Duration) {
        let first = core.config.setup_timeout();
        for quest in self.seats.iter_mut().filter_map(|seat| seat.quest.as_mut()) {
            quest.timeout = first;
            let answered_by = quest.attempts.back().map_or(now, |attempt| attempt.sent + first);
            quest.due = quest.due.min(answered_by.max(now));
        }
    }

    /// A channel is gone; its seat seeks another at the next tick.
    pub(crate) fn ended(&mut self, channel: ChannelIndex) {
        for seat in &mut self.seats {
            seat.open.take_if(|open| open.channel == channel);
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
    }

    /// When [`Entry::tick`] has something to do next.
    pub(crate) fn next_wake(&self, links: &Links) -> Duration {
        let prober = self.prober();
        let up = links.down_ready().is_some();
        let mut wake = Duration::MAX;
        for (at, seat) in self.seats.iter().enumerate() {
            wake = wake.min(match (&seat.quest, &seat.open) {
                (Some(quest), _) if up && !Self::held_back(prober, at, quest) => quest.due,
                (Some(_), _) => Duration::MAX,
                (None, Some(open)) => open.replace_at,
                (None, None) => Duration::ZERO,
            });
        }
        wake
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
