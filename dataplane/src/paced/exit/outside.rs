//! The exit's side towards the internet: what frames of a released round do, and what is received between rounds
//! (SPEC 9.12).
//!
//! How long this takes is up to users and destinations. So all of it is done in steps, none of which takes much longer
//! than a system call or a look through a table, and stops when a release is due.

use std::collections::VecDeque;
use std::net::IpAddr;

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use rand_chacha::ChaCha20Rng;
use wire::frames::{Frame, Frames, SESSION_FLOW, fresh_max};
use wire::ids::ChannelIndex;

use super::sessions::{BatchChannel, Queues, SessionName, Sessions};
use super::{ExitChannel, Settings};
use crate::age::{AgeLimit, LastRead, nanos};
use crate::endpoint::{AppTurn, drop_late, next_second};
use crate::exit::QueryId;
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
const SESSION_LASTS: Nanos = 60 * SECOND;
const SESSION_BATCHES: u64 = 3;

/// Idle flows that one step ends.
const EXPIRE: usize = 16;

/// Frames of channels that have not named a session.
#[derive(Default)]
struct Waiting {
    /// The oldest first.
    of_channel: HashMap<BatchChannel, VecDeque<(Nanos, Vec<u8>)>, foldhash::fast::RandomState>,
    /// The channel of each, the oldest first, and of some that wait no more.
    order: VecDeque<(Nanos, BatchChannel)>,
}

impl Waiting {
    fn add(&mut self, of: BatchChannel, since: Nanos, frames: &[u8]) {
        self.of_channel.entry(of).or_default().push_back((since, frames.to_vec()));
        self.order.push_back((since, of));
    }

    /// All frames of a channel.
    fn take(&mut self, of: BatchChannel) -> VecDeque<(Nanos, Vec<u8>)> {
        self.of_channel.remove(&of).unwrap_or_default()
    }

    /// The oldest frames, if they wait since before `until`.
    fn pop_before(&mut self, until: Nanos) -> Option<Vec<u8>> {
        while let Some((since, of)) = self.order.pop_front_if(|(since, _)| *since < until) {
            let Entry::Occupied(mut frames) = self.of_channel.entry(of) else { continue };
            let found = frames.get_mut().pop_front_if(|(of_first, _)| *of_first == since);
            if frames.get().is_empty() {
                frames.remove();
            }
            if let Some((_, frames)) = found {
                return Some(frames);
            }
        }
        None
    }
}

/// What is done in steps.
enum Work {
    /// The frames of a cell take effect, from this byte on.
    Frames {
        since: Nanos,
        session: ChannelIndex,
        frames: Vec<u8>,
        at: usize,
    },
    /// A channel has named its session: what has waited for that takes effect.
    Named {
        session: ChannelIndex,
        of: BatchChannel,
    },
    /// A session has ended: so do these flows, which are looked up first.
    End {
        session: ChannelIndex,
        flows: Option<Vec<u16>>,
    },
    Resolved {
        query: QueryId,
        addresses: Vec<IpAddr>,
    },
    /// The datagrams that the frames of a release have made leave.
    Send {
        since: Nanos,
    },
    /// Answers are received, although frames wait.
    Receive,
    /// What is due once a second.
    Tick,
    /// Flows that are idle end.
    Expire,
}

/// Flows, sessions and sockets.
pub(super) struct Outside<A> {
    pub(super) apps: A,
    pub(super) gateway: Gateway,
    pub(super) sessions: Sessions,
    waiting: Waiting,
    /// The longest time that frames wait for a session, and to take effect.
    waits: Nanos,
    queue: VecDeque<Work>,
    /// Datagrams for the next release, or those that are being sent.
    send_batch: SendBatch,
    /// The first datagram of `send_batch` that was not sent, if they are being sent.
    sending: Option<usize>,
    receive_batch: ReceiveBatch,
    /// How many datagrams of `receive_batch` were handled.
    handled: usize,
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
        let cells = (waits.min(SESSION_LASTS) / period + 1) as usize * usize::from(terms.cells);
        let lasts = SESSION_LASTS.max(SESSION_BATCHES * u64::from(terms.rounds) * period);
        Outside {
            apps,
            gateway: Gateway::new(gateway, payload, fragments, now).without_moves(),
            sessions: Sessions::new(class.channels_max(), payload, cells, (waits, lasts)),
            waiting: Waiting::default(),
            waits,
            queue: VecDeque::new(),
            send_batch: SendBatch::default(),
            sending: None,
            receive_batch: ReceiveBatch::default(),
            handled: 0,
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

    /// A cell names its session, and its frames wait to take effect, or those that the next cell repeats. AGAIN among
    /// them is for the round before. False if it names another session than its channel has, and so has no effect.
    pub(super) fn take(
        &mut self,
        (channel, of): (&mut ExitChannel, BatchChannel),
        round: u64,
        frames: &[u8],
        now: Nanos,
    ) -> bool {
        let mut names = Frames::of_again(frames).filter_map(|frame| match frame {
            Frame::Session(name) => Some(name),
            _ => None,
        });
        let (name, had_session) = (names.next(), channel.session.is_some());
        let has_effect = |frame| !matches!(frame, Frame::Again(_) | Frame::Session(_));
        let frames = Frames::of_again(frames).any(has_effect).then_some(frames);
        if let Some(name) = name {
            let is_other = |session| !self.sessions.has_name(session, &name);
            if channel.session.is_some_and(is_other) || names.any(|other| other != name) {
                return false;
            }
            self.name(channel, of, name, round, now);
        } else if !had_session {
            frames.into_iter().for_each(|frames| self.waiting.add(of, now, frames));
            return true;
        }
        let Some(session) = channel.session else { return true };
        self.queue.extend((!had_session).then_some(Work::Named { session, of }));
        let frames = frames.map(|frames| Work::Frames { since: now, session, frames: frames.to_vec(), at: 0 });
        self.queue.extend(frames);
        true
    }

    /// A frame of a session takes effect.
    fn apply(&mut self, session: ChannelIndex, frame: &Frame<'_>, punts: &mut PuntSender, now: Nanos) {
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
                gateway.forward_frame(&mut cx, session, frame);
            }
        }
    }

    /// The resolver's answer waits to take effect.
    pub(super) fn resolved(&mut self, query: QueryId, addresses: Vec<IpAddr>) {
        self.queue.push_back(Work::Resolved { query, addresses });
    }

    /// A channel names its session, which may begin by that. An entry has one in a class: others would be for nothing
    /// but the exit's memory.
    fn name(&mut self, channel: &mut ExitChannel, of: BatchChannel, name: SessionName, round: u64, now: Nanos) {
        let owner = self.sessions.find(&name).unwrap_or_else(|| {
            if let Some(oldest) = self.sessions.in_excess() {
                self.end_session(oldest);
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

    /// What was taken was all of a release: when it has taken effect, its datagrams are sent.
    pub(super) fn released(&mut self, now: Nanos) {
        self.queue.push_back(Work::Send { since: now });
    }

    /// Works until nothing is left or `pauses` is true, which it asks after each step. Frames go first; when all of a
    /// release have taken effect, its datagrams are sent. Then answers are received, also if there are more frames.
    /// False if something may be left.
    pub(super) fn work(&mut self, punts: &mut PuntSender, now: Nanos, pauses: &mut dyn FnMut() -> bool) -> bool {
        loop {
            if self.unhandled() > 0 {
                // Their socket may be closed by frames, and another one get its number.
                if !self.handle_batch(now, pauses) {
                    return false;
                }
            } else if let Some(first) = self.sending {
                self.sending = self.apps.send_from(first, &mut self.send_batch, &mut self.tally.forward, pauses);
                if self.sending.is_some() || pauses() {
                    return false;
                }
            } else if let Some(work) = self.queue.pop_front() {
                if matches!(work, Work::Receive) {
                    self.receive(punts, now, pauses);
                } else {
                    let left = self.step(work, punts, now);
                    left.into_iter().for_each(|work| self.queue.push_front(work));
                }
                if pauses() {
                    return false;
                }
            } else {
                return self.receive(punts, now, pauses);
            }
        }
    }

    /// Does a part of some work. Returns what is left of it.
    fn step(&mut self, mut work: Work, punts: &mut PuntSender, now: Nanos) -> Option<Work> {
        match &mut work {
            Work::Frames { since, frames, at, .. } if now > *since + self.waits => {
                self.drop_datagrams(&frames[*at..], DropReason::Aged);
                return None;
            }
            Work::Frames { session, frames, at, .. } => {
                let frame = Frames::of_again(&frames[*at..]).next()?;
                *at += frame.len();
                self.apply(*session, &frame, punts, now);
            }
            Work::Named { session, of } => {
                for (since, frames) in self.waiting.take(*of).into_iter().rev() {
                    self.queue.push_front(Work::Frames { since, session: *session, frames, at: 0 });
                }
                return None;
            }
            Work::End { session, flows: flows @ None } => *flows = Some(self.gateway.numbers_of(*session)),
            Work::End { session, flows: Some(flows) } => match flows.pop() {
                Some(flow) => self.apply(*session, &Frame::Close { flow }, punts, now),
                None => {
                    self.end_owner(*session, now);
                    self.sessions.vacate(*session);
                    return None;
                }
            },
            Work::Resolved { query, addresses } => {
                let (gateway, mut cx) = self.gateway(punts, now);
                gateway.resolved(&mut cx, *query, addresses);
                return None;
            }
            Work::Send { since } => {
                self.order(*since);
                self.sending = Some(0);
                if !self.queue.is_empty() {
                    self.queue.push_front(Work::Receive);
                }
                return None;
            }
            Work::Receive => unreachable!("receives are taken out before"),
            Work::Tick => {
                self.sessions.drop_aged(now, &mut self.tally.backward);
                self.sessions.stale(now).into_iter().for_each(|session| self.end_session(session));
                let (gateway, mut cx) = self.gateway(punts, now);
                gateway.tick(&mut cx);
                return Some(Work::Expire);
            }
            Work::Expire => {
                let (gateway, mut cx) = self.gateway(punts, now);
                return gateway.expire(&mut cx, EXPIRE).then_some(Work::Expire);
            }
        }
        Some(work)
    }

    /// Puts the datagrams of a release at `since` into their order. Those that are too late by now are dropped.
    fn order(&mut self, since: Nanos) {
        self.send_batch.shuffle_flows(&mut self.rng);
        crate::rekey(&mut self.rng);
        let max_age = self.age.max();
        drop_late(&mut self.send_batch, &mut self.tally.forward, (&self.age, since), |_| max_age);
    }

    /// Receives answers, and errors of what was sent. Flows that move on send with the next release.
    fn receive(&mut self, punts: &mut PuntSender, now: Nanos, pauses: &mut dyn FnMut() -> bool) -> bool {
        let turn = AppTurn::begin(&mut self.apps, &self.age, self.read, now);
        for _ in 0..turn.batches {
            let Self { apps, receive_batch, handled, read, age, tally, .. } = self;
            let received = turn.receive(apps, read, receive_batch);
            let is_empty = received.is_none();
            let mut is_late = false;
            if let Some((batch, waited)) = received {
                tally.backward.received += batch.len() as u64;
                is_late = age.is_exceeded(waited);
                *receive_batch = batch;
            }
            *handled = if is_empty || is_late { receive_batch.len() } else { 0 };
            tally.backward.drop_many(DropReason::Aged, if is_late { receive_batch.len() as u64 } else { 0 });
            if !self.handle_batch(now, pauses) {
                return false;
            }
            loop {
                let (gateway, mut cx) = self.gateway(punts, now);
                let has_more = gateway.handle_errors(&mut cx, 1);
                if pauses() {
                    return is_empty && !has_more;
                }
                if !has_more {
                    break;
                }
            }
            if is_empty {
                return true;
            }
        }
        false
    }

    /// Handles what was received. False if something is left.
    fn handle_batch(&mut self, now: Nanos, pauses: &mut dyn FnMut() -> bool) -> bool {
        let Self { gateway, sessions, receive_batch, handled, tally, .. } = self;
        let mut answers = Queues { sessions, now, tally: &mut tally.backward };
        for (from, data) in receive_batch.iter().skip(*handled) {
            *handled += 1;
            if let Err(why) = gateway.backward_datagram(&mut answers, (receive_batch.socket(), from), data, now) {
                answers.tally.drop(why);
            }
            if pauses() {
                return false;
            }
        }
        true
    }

    /// Drops frames that have waited for too long. Once a second answers, sessions and flows follow.
    pub(super) fn tick(&mut self, now: Nanos) {
        self.drop_aged_frames(now);
        self.drop_waiting(now.saturating_sub(self.waits), DropReason::Aged);
        if now < self.next_tick {
            return;
        }
        self.next_tick = next_second(now);
        if !self.queue.iter().any(|work| matches!(work, Work::Tick)) {
            self.queue.push_back(Work::Tick);
        }
    }

    /// Frames come faster than they take effect: those that wait for too long must not fill the memory.
    fn drop_aged_frames(&mut self, now: Nanos) {
        let is_old = |since: Nanos| now > since + self.waits;
        let mut times = self
            .queue
            .iter()
            .filter_map(|work| if let Work::Frames { since, .. } = work { Some(*since) } else { None });
        if !times.next().is_some_and(is_old) {
            return;
        }
        for work in std::mem::take(&mut self.queue) {
            match work {
                Work::Frames { since, frames, at, .. } if now > since + self.waits => {
                    self.drop_datagrams(&frames[at..], DropReason::Aged);
                }
                // One sends for both.
                Work::Send { .. } if matches!(self.queue.back(), Some(Work::Send { .. })) => {}
                work => self.queue.push_back(work),
            }
        }
    }

    /// Drops frames that wait for a session since before `until`.
    fn drop_waiting(&mut self, until: Nanos, why: DropReason) {
        while let Some(frames) = self.waiting.pop_before(until) {
            self.drop_datagrams(&frames, why);
        }
    }

    /// Drops frames that take no effect. Their datagrams have not been counted.
    fn drop_datagrams(&mut self, frames: &[u8], why: DropReason) {
        let datagrams = Frames::of_again(frames).filter(|frame| matches!(frame, Frame::Dgram { .. })).count() as u64;
        self.tally.forward.injected += datagrams;
        self.tally.forward.drop_many(why, datagrams);
    }

    /// Nobody can name the session from now on. Its flows end behind the frames that wait.
    fn end_session(&mut self, session: ChannelIndex) {
        self.sessions.end(session, DropReason::Ended, &mut self.tally.backward);
        self.queue.push_back(Work::End { session, flows: None });
    }

    fn end_owner(&mut self, session: ChannelIndex, now: Nanos) {
        let Self { apps, gateway, sessions, tally: PerDirection { forward, backward }, .. } = self;
        gateway.end_owner(session, apps, forward, &mut Queues { sessions, now, tally: backward });
    }

    /// The node stops.
    pub(super) fn finish(&mut self, now: Nanos) {
        self.drop_waiting(Nanos::MAX, DropReason::Shutdown);
        for work in std::mem::take(&mut self.queue) {
            match work {
                Work::Frames { frames, at, .. } => self.drop_datagrams(&frames[at..], DropReason::Shutdown),
                Work::End { session, .. } => self.end_owner(session, now),
                Work::Named { .. }
                | Work::Resolved { .. }
                | Work::Send { .. }
                | Work::Receive
                | Work::Tick
                | Work::Expire => {}
            }
        }
        for session in self.sessions.all() {
            self.end_owner(session, now);
            self.sessions.end(session, DropReason::Shutdown, &mut self.tally.backward);
        }
        self.tally.forward.drop_many(DropReason::Shutdown, self.unsent());
        self.tally.backward.drop_many(DropReason::Shutdown, self.unhandled());
        self.handled = self.receive_batch.len();
        self.sending = None;
        self.send_batch.clear();
        self.apps.send(&mut self.send_batch, &mut self.tally.forward);
    }

    /// How much is done in steps.
    #[cfg(test)]
    pub(super) fn works(&self) -> usize {
        self.queue.len()
    }

    /// Datagrams to destinations that wait.
    fn unsent(&self) -> u64 {
        (self.send_batch.len() - self.sending.unwrap_or(0)) as u64
    }

    /// Datagrams from destinations that were received and not handled.
    fn unhandled(&self) -> u64 {
        (self.receive_batch.len() - self.handled) as u64
    }

    /// Both tallies, with what waits.
    pub(super) fn tallies(&self) -> PerDirection<Tally> {
        let mut tally = self.tally;
        tally.forward.held = self.gateway.held() + self.unsent();
        tally.backward.held = self.sessions.held() + self.unhandled();
        tally
    }
}
