//! Rounds: when they are built, when the worker wakes for them, and how they leave.

use std::ops::RangeInclusive;

use rand::{Rng, RngExt};
use wire::paced::clock::ClockCell;
use wire::paced::{BEHIND_MAX, MEETING_OVERHEAD, RoundSub};

use super::channels::Channel;
use super::pacer::{PREPARE, SETTLE};
use super::packer::SESSION;
use super::{Entry, MeetingEnd, QUIET, packer};
use crate::batch::Departures;
use crate::buffer::Cell;
use crate::ledger::DropReason;
use crate::paced::sender::{Leaving, Release};
use crate::punt::Punt;
use crate::runner::BLOCKED_WAIT;
use crate::socket::Port;
use crate::socket::apps::Apps;
use crate::{MICRO, MILLI, Nanos};

/// The worker wakes at least, and at most, this long before a round is due, and spins until then.
pub(super) const EARLY: RangeInclusive<Nanos> = 20 * MICRO..=150 * MICRO;
/// An entry that is behind leaves AGAIN out in one round of 16 on average (SPEC 9.11.7).
const CATCH_UP_ONE_IN: u64 = 16;

/// A round that is built and sealed.
pub(super) struct Ready {
    pub(super) round: u64,
    /// When it leaves, by the runner's clock.
    pub(super) at: Nanos,
}

/// How long before the next round to wake, after a timer that was late. A timer that was later than the longest such
/// time had to wait for another thread, against which spinning does not help.
pub(super) fn next_early(early: Nanos, timer_late: Nanos) -> Nanos {
    if timer_late > *EARLY.end() {
        return early;
    }
    timer_late.max(early - early / 64).max(*EARLY.start())
}

impl<D: Port, A: Apps> Entry<D, A> {
    /// Builds and seals the next round, if it is time for it.
    pub(super) fn prepare(&mut self, now: Nanos) {
        if self.ready.is_some() {
            return;
        }
        let Some(round) = self.pacer.next(self.clock.at(now)) else { return };
        let began = self.runner_clock.map_or(now, |clock| clock.now());
        self.drop_aged(now);
        self.follow_link();
        let is_next = round == self.pacer.last() + 1;
        if !is_next || self.channels.round_before(round).is_none() {
            self.packer.forget_before();
        }
        self.renew_session(round);
        self.follow_meeting(round, now);
        let Self { settings, times, channels, packer, users, meeting, sender, cells, datagrams, .. } = self;
        let Self { links, link, slots, pacer, clock, free, rng, session, .. } = self;
        let Self { prepared, punts, waits, carries, .. } = self;
        let terms = &settings.terms;
        let is_last = round + 1 == times.first(times.batch_of(round) + 1);
        let takes_new = !(terms.repeat && is_last);
        let falls_behind = packer.falls_behind(now.saturating_sub(Nanos::from(terms.period_ms) * MILLI));
        let catches_up = rng.random_range(0..CATCH_UP_ONE_IN) == 0 && falls_behind;
        let has_flows = users.clients.flows() > 0 || packer.has_others();
        let tally = &mut cells.forward;
        let (channel_number, mut channel) = channels.of_round(round, rng);
        *carries = channel.as_ref().map(|_| {
            let since = carries.as_ref().filter(|_| is_next).map_or(now, |carries| carries.start);
            since..now
        });
        let mut leaving = Vec::with_capacity(terms.cells.into());
        let mut is_sealed = false;
        for sub in 0..terms.cells {
            tally.injected += 1;
            let Some(buffer) = free.take() else {
                tally.drop(DropReason::NoBuffer);
                continue;
            };
            let mut cell = Cell::own(buffer);
            let body = cell.body_mut(terms.class.body_len());
            let place = RoundSub { round, sub };
            let mut of_cell = packer::Cell { sub, session: None, takes_new, catches_up };
            match &mut channel {
                Some(Channel { keys, call: Some(call), .. }) => {
                    let inner = &mut body[MEETING_OVERHEAD..];
                    packer.fill(inner, &of_cell, &users.clients, &mut datagrams.forward);
                    keys.seal_meeting(call, place, body);
                    is_sealed = true;
                }
                Some(channel) if has_flows => {
                    of_cell.session = (sub == 0 && channel.names_session(round)).then_some(session);
                    let inner = &mut body[..terms.class.size().payload()];
                    if packer.fill(inner, &of_cell, &users.clients, &mut datagrams.forward) {
                        channel.named_session(round);
                    }
                    channel.keys.seal_data(place, body);
                    is_sealed = true;
                }
                _ => rng.fill_bytes(body),
            }
            leaving.push(Leaving { cell, number: channel_number, sub });
        }
        if let Some(meeting) = meeting
            && is_sealed
        {
            meeting.silent += 1;
        }
        crate::rekey(rng);
        pacer.prepared(round, is_sealed);
        let due = pacer.due_at(round);
        let release = Release { round, due, slots: slots.of(times, round) };
        let clock_cell = sender.leave(*link, release, leaving.into_iter(), links, prepared, free, tally);
        if let (&mut Some(link), Some(ClockCell { sent: clock_number, .. })) = (link, clock_cell) {
            // If it is lost, this clock cell gives no sample.
            let _ = punts.send(Punt::PacedClockSent { link, number: clock_number, sent_ns: due });
        }
        sender.end_round(round, free);
        // From before it was prepared: that has taken time, more or less by what is in the round.
        let at = clock.when(due).max(began + SETTLE);
        packer.taken().for_each(|arrived| waits.add(at.saturating_sub(arrived), 1));
        self.ready = Some(Ready { round, at });
    }

    /// Draws another name for the session once the exit and late answers have none of its flows left, so that it does
    /// not link them with later ones. Ends of flows that have found no channel until then are not said.
    fn renew_session(&mut self, round: u64) {
        let says_others = self.channels.channel(round).is_some() && self.packer.has_others();
        let lasts = u64::from(self.settings.terms.rounds) + BEHIND_MAX;
        if self.users.clients.flows() > 0 || says_others {
            self.session_used = Some(round);
        } else if self.session_used.is_some_and(|used| round > used + lasts) {
            self.rng.fill_bytes(&mut self.session);
            self.users.clients.session_renewed(SESSION);
            self.packer.forget_others();
            self.session_used = None;
        }
    }

    /// What was said to the other end of a meeting is not for that of another one.
    fn follow_meeting(&mut self, round: u64, now: Nanos) {
        let Self { channels, meeting, packer, reassembler, datagrams, rng, .. } = self;
        if let (Some(channel), Some(meeting)) = (channels.channel(round), meeting.as_mut())
            && meeting.number != channel.meeting
        {
            packer.drop_of(None, DropReason::Ended, &mut datagrams.forward);
            packer.forget_others();
            datagrams.backward.drop_many(DropReason::Incomplete, u64::from(reassembler.drop_flow(0)));
            *meeting = MeetingEnd {
                client: meeting.client,
                counted: meeting.counted,
                ..MeetingEnd::new(meeting.max_age, rng)
            };
            (meeting.number, meeting.changed) = (channel.meeting, Some(now));
        }
    }

    /// Waits for a round that is due in a moment. Returns the time.
    pub(super) fn spin(&mut self, mut now: Nanos) -> Nanos {
        if let (Some(Ready { at, .. }), Some(clock)) = (&self.ready, &self.runner_clock)
            && *at <= now + self.early
        {
            let timer_late = now + self.early - at;
            while now < *at {
                std::hint::spin_loop();
                now = clock.now();
            }
            self.early = next_early(self.early, timer_late);
        }
        now
    }

    /// Sends the round that is due, or what is left of it. What comes too late for that is dropped.
    pub(super) fn send_round(&mut self, now: Nanos) {
        let time = self.clock.at(now);
        let Self { out, free, cells, .. } = self;
        let mut lose = |out: &mut Departures| {
            cells.forward.drop_many(DropReason::Aged, out.len() as u64);
            out.lose(out.len(), free);
        };
        if let Some(Ready { round, .. }) = self.ready.take_if(|ready| ready.at <= now) {
            lose(out);
            std::mem::swap(out, &mut self.prepared);
            self.out_ends = self.pacer.due_at(round + 1);
        }
        if time >= self.out_ends {
            lose(out);
        }
        self.down.send(out, free, &mut self.cells.forward);
    }

    /// A round is ready that is due in a moment.
    pub(super) fn is_due_soon(&self, now: Nanos) -> bool {
        self.ready.as_ref().is_some_and(|ready| ready.at <= now + QUIET)
    }

    /// When the next round is to be built, unless one is ready.
    pub(super) fn prepare_at(&self) -> Nanos {
        self.clock.when(self.pacer.due_at(self.pacer.last() + 1).saturating_sub(PREPARE))
    }

    /// When the worker is to come back.
    pub(super) fn wake_at(&self, now: Nanos) -> Nanos {
        let next = match &self.ready {
            Some(Ready { at, .. }) if *at > now + self.early => at - self.early,
            Some(Ready { at, .. }) => *at,
            None => self.prepare_at(),
        };
        let aged = now.saturating_add(self.shortest_age / 2);
        let blocked = if self.out.is_empty() { Nanos::MAX } else { now + BLOCKED_WAIT };
        next.min(aged).min(blocked).min(self.next_tick)
    }
}
