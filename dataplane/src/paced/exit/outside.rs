//! The exit's side towards the internet: what frames of a released round do, and what is received between rounds
//! (SPEC 9.12).

use std::collections::VecDeque;

use rand_chacha::ChaCha20Rng;
use wire::frames::{Frame, Frames, SESSION_FLOW, fresh_max};
use wire::ids::ChannelIndex;

use super::sessions::{BatchChannel, Queues, SessionName, Sessions};
use super::{ExitChannel, Settings};
use crate::age::{AgeLimit, LastRead, nanos};
use crate::endpoint::{AppTurn, drop_late, next_second};
use crate::exit::gateway::{Answers, Context, Gateway};
use crate::ledger::{DropReason, Tally};
use crate::paced::hold;
use crate::per_direction::PerDirection;
use crate::punt::PuntSender;
use crate::runner::Clock;
use crate::socket::app_batch::{ReceiveBatch, SendBatch};
use crate::socket::apps::Apps;
use crate::{MILLI, Nanos, SECOND};

/// A session lasts for this long after a cell has named it, and for this many batches.
const SESSION_LASTS: (Nanos, u64) = (60 * SECOND, 3);

/// Frames of a channel that has not named a session.
struct Waiting {
    since: Nanos,
    of: BatchChannel,
    frames: Vec<u8>,
}

/// Flows, sessions and sockets.
pub(super) struct Outside<A> {
    pub(super) apps: A,
    pub(super) gateway: Gateway,
    pub(super) sessions: Sessions,
    waiting: VecDeque<Waiting>,
    /// The longest time that frames wait for a session.
    waits: Nanos,
    /// Datagrams for the next release.
    send_batch: SendBatch,
    receive_batch: ReceiveBatch,
    read: LastRead,
    age: AgeLimit,
    pub(super) tally: PerDirection<Tally>,
    next_tick: Nanos,
    rng: ChaCha20Rng,
}

impl<A: Apps> Outside<A> {
    pub(super) fn new(settings: Settings, apps: A, rng: ChaCha20Rng, now: Nanos) -> Outside<A> {
        let Settings { class, gateway, queue_age } = settings;
        let (terms, payload) = (&class.terms, class.terms.class.size().payload());
        let fragments = (fresh_max(payload, terms.repeat), hold(terms));
        let age = AgeLimit::new(gateway.max_age);
        let (waits, period) = (nanos(queue_age), Nanos::from(terms.period_ms) * MILLI);
        // What cannot leave in a minute has no use.
        let cells = (waits.min(SESSION_LASTS.0) / period + 1) as usize * usize::from(terms.cells);
        let lasts = SESSION_LASTS.0.max(SESSION_LASTS.1 * u64::from(terms.rounds) * period);
        Outside {
            apps,
            gateway: Gateway::new(gateway, payload, fragments, now).without_moves(),
            sessions: Sessions::new(class.channels_max(), payload, cells, (waits, lasts)),
            waiting: VecDeque::new(),
            waits,
            send_batch: SendBatch::default(),
            receive_batch: ReceiveBatch::default(),
            read: LastRead::default(),
            age,
            tally: PerDirection::default(),
            next_tick: now,
            rng,
        }
    }

    pub(super) fn set_clock(&mut self, clock: Clock) {
        self.age.set_clock(clock);
    }

    /// The gateway, and what it works with.
    pub(super) fn gateway<'a>(
        &'a mut self,
        punts: &'a mut PuntSender,
        now: Nanos,
    ) -> (&'a mut Gateway, Context<'a, A, Queues<'a>>) {
        let Self { apps, gateway, sessions, send_batch, age, tally: PerDirection { forward, backward }, .. } = self;
        let answers = Queues { sessions, now, tally: backward };
        (gateway, Context { now, apps, send_batch, tally: forward, punts, answers, age, link_waited: 0 })
    }

    /// The frames of a cell take effect, or those that the next cell repeats. AGAIN among them is for the round before.
    /// False if the cell names another session than its channel has, and so has no effect.
    pub(super) fn take_effect(
        &mut self,
        (channel, of): (&mut ExitChannel, BatchChannel),
        round: u64,
        frames: &[u8],
        punts: &mut PuntSender,
        now: Nanos,
    ) -> bool {
        let mut names = Frames::of_again(frames).filter_map(|frame| match frame {
            Frame::Session(name) => Some(name),
            _ => None,
        });
        let (name, had_session) = (names.next(), channel.session.is_some());
        if let Some(name) = name {
            let is_other = |session| !self.sessions.has_name(session, &name);
            if channel.session.is_some_and(is_other) || names.any(|other| other != name) {
                return false;
            }
            self.name(channel, of, name, round, now);
        } else if !had_session {
            if Frames::of_again(frames).any(|frame| !matches!(frame, Frame::Again(_))) {
                self.waiting.push_back(Waiting { since: now, of, frames: frames.to_vec() });
            }
            return true;
        }
        if !had_session {
            let waiting = std::mem::take(&mut self.waiting);
            let (own, others) = waiting.into_iter().partition::<VecDeque<_>, _>(|waiting| waiting.of == of);
            self.waiting = others;
            own.iter().for_each(|waiting| self.apply(channel, &waiting.frames, punts, now));
        }
        self.apply(channel, frames, punts, now);
        true
    }

    /// The frames of a channel with a session.
    fn apply(&mut self, channel: &ExitChannel, frames: &[u8], punts: &mut PuntSender, now: Nanos) {
        let Some(session) = channel.session else { return };
        for frame in Frames::of_again(frames) {
            match frame {
                Frame::Again(_) | Frame::Session(_) => {}
                // No flow has this number, and a STATUS of it would be taken for an answer to SESSION.
                Frame::Open { flow: SESSION_FLOW, .. } | Frame::Frag { flow: SESSION_FLOW, .. } => {}
                Frame::Dgram { flow: SESSION_FLOW, .. } => {
                    self.tally.forward.injected += 1;
                    self.tally.forward.drop(DropReason::Flow);
                }
                frame => {
                    if matches!(frame, Frame::Open { .. }) {
                        self.sessions.opened(session);
                    }
                    let (gateway, mut cx) = self.gateway(punts, now);
                    gateway.forward_frame(&mut cx, session, &frame);
                }
            }
        }
    }

    /// A channel names its session, which may begin by that. An entry has one in a class: others would be for nothing
    /// but the exit's memory.
    fn name(&mut self, channel: &mut ExitChannel, of: BatchChannel, name: SessionName, round: u64, now: Nanos) {
        let owner = self.sessions.find(&name).unwrap_or_else(|| {
            if let Some(oldest) = self.sessions.in_excess() {
                self.end_session(oldest, DropReason::Ended, now);
            }
            let owner = self.sessions.begin(name, of, now);
            self.gateway.add_owner(owner);
            owner
        });
        channel.session = Some(owner);
        if let Some(answer) = self.sessions.named(owner, of, round, now) {
            let _ = Queues { sessions: &mut self.sessions, now, tally: &mut self.tally.backward }.put(owner, &answer);
        }
    }

    /// Puts the datagrams of a release into their order.
    pub(super) fn order(&mut self, now: Nanos) {
        self.send_batch.shuffle_flows(&mut self.rng);
        crate::rekey(&mut self.rng);
        let max_age = self.age.max();
        drop_late(&mut self.send_batch, &mut self.tally.forward, (&self.age, now), |_| max_age);
    }

    /// Sends datagrams from the one at place `first` on, and pauses at this time of the runner's clock. Returns the
    /// place of the next one, if there is one.
    pub(super) fn send_from(&mut self, first: usize, clock: Option<Clock>, until: Nanos) -> Option<usize> {
        let mut pauses = || clock.is_some_and(|clock| clock.now() >= until);
        self.apps.send_from(first, &mut self.send_batch, &mut self.tally.forward, &mut pauses)
    }

    /// Receives answers, and errors of what was sent. Flows that move on send with the next release.
    pub(super) fn receive(&mut self, punts: &mut PuntSender, now: Nanos) {
        let turn = AppTurn::begin(&mut self.apps, &self.age, self.read, now);
        for _ in 0..turn.batches {
            let Self { apps, gateway, sessions, receive_batch, read, age, tally, .. } = self;
            let Some((batch, waited)) = turn.receive(apps, read, receive_batch) else { break };
            tally.backward.received += batch.len() as u64;
            if age.is_exceeded(waited) {
                tally.backward.drop_many(DropReason::Aged, batch.len() as u64);
            } else {
                let mut answers = Queues { sessions, now, tally: &mut tally.backward };
                for (from, data) in batch.iter() {
                    if let Err(why) = gateway.backward_datagram(&mut answers, (batch.socket(), from), data, now) {
                        answers.tally.drop(why);
                    }
                }
            }
            *receive_batch = batch;
        }
        let (gateway, mut cx) = self.gateway(punts, now);
        gateway.handle_errors(&mut cx);
    }

    /// Drops what has waited for too long and, once a second, ends sessions and flows.
    pub(super) fn tick(&mut self, punts: &mut PuntSender, now: Nanos) {
        self.sessions.drop_aged(now, &mut self.tally.backward);
        while self.waiting.front().is_some_and(|waiting| now > waiting.since + self.waits) {
            self.drop_waiting(DropReason::Aged);
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = next_second(now);
        self.sessions.stale(now).into_iter().for_each(|session| self.end_session(session, DropReason::Ended, now));
        let (gateway, mut cx) = self.gateway(punts, now);
        gateway.tick(&mut cx);
    }

    /// Drops the first frames that wait for a session. Their datagrams have not been counted.
    fn drop_waiting(&mut self, why: DropReason) {
        let Some(Waiting { frames, .. }) = self.waiting.pop_front() else { return };
        let datagrams = Frames::of_again(&frames).filter(|frame| matches!(frame, Frame::Dgram { .. })).count() as u64;
        self.tally.forward.injected += datagrams;
        self.tally.forward.drop_many(why, datagrams);
    }

    fn end_session(&mut self, session: ChannelIndex, why: DropReason, now: Nanos) {
        let Self { apps, gateway, sessions, tally: PerDirection { forward, backward }, .. } = self;
        gateway.end_owner(session, apps, forward, &mut Queues { sessions, now, tally: backward });
        sessions.end(session, why, backward);
    }

    /// The node stops.
    pub(super) fn finish(&mut self, now: Nanos) {
        while !self.waiting.is_empty() {
            self.drop_waiting(DropReason::Shutdown);
        }
        self.sessions.all().into_iter().for_each(|session| self.end_session(session, DropReason::Shutdown, now));
        self.tally.forward.drop_many(DropReason::Shutdown, self.send_batch.len() as u64);
        self.send_batch.clear();
        self.apps.send(&mut self.send_batch, &mut self.tally.forward);
    }

    /// Both tallies, with what waits.
    pub(super) fn tallies(&self) -> PerDirection<Tally> {
        let mut tally = self.tally;
        tally.forward.held = self.gateway.held() + self.send_batch.len() as u64;
        tally.backward.held = self.sessions.held();
        tally
    }
}
