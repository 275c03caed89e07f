//! Handles frames from the entry: datagrams go to their flows; flows are opened, moved and closed; names are resolved.
//!
//! Nothing is sent here: datagrams go to the send batch, answers to [`Answers`].

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use arrayvec::ArrayVec;
use wire::frames::{Address, Frame, Status, Token};
use wire::ids::ChannelIndex;
use wire::reassembly::Outcome;

use super::fallback::{CANDIDATES_MAX, KEEP};
use super::flows::Target;
use super::gateway::{Answers, Context, Gateway};
use super::quota::Part;
use super::{QueryId, REASSEMBLING_MAX, REFUSED_MAX};
use crate::Nanos;
use crate::ledger::DropReason;
use crate::punt::Punt;
use crate::socket::app_batch::SocketId;
use crate::socket::apps::Apps;

/// An owner, and the number of a flow that it has.
type Place = (ChannelIndex, u16);

impl Gateway {
    /// One frame from the entry of an owner. SESSION and AGAIN have no effect here.
    pub(crate) fn forward_frame<A: Apps, Q: Answers>(
        &mut self,
        cx: &mut Context<'_, A, Q>,
        owner: ChannelIndex,
        frame: &Frame<'_>,
    ) {
        match *frame {
            Frame::Dgram { flow, data } => {
                cx.tally.injected += 1;
                self.received_datagram(cx, (owner, flow), data);
            }
            Frame::Frag { flow, id, index, last, data } => {
                let fresh = self.no_fragments();
                let Some(reassembler) = self.reassembler(owner) else { return };
                let mut reassembler = std::mem::replace(reassembler, fresh);
                let held = reassembler.held();
                let pushed = reassembler.push(Duration::from_nanos(cx.now), flow, id, index, last, data);
                cx.tally.injected += u64::from(pushed.started);
                cx.tally.drop_many(DropReason::Incomplete, u64::from(pushed.evicted));
                self.reassembling -= u64::from(pushed.evicted);
                let free = REASSEMBLING_MAX - self.reassembling as usize;
                let may_start = pushed.evicted > 0 || Part::of(held, free, REASSEMBLING_MAX).is_some();
                self.reassembling += u64::from(pushed.started);
                if pushed.started && !may_start {
                    reassembler.give_up(flow, id);
                    self.reassembling -= 1;
                    cx.tally.drop(DropReason::ReassemblyFull);
                } else if let Outcome::Complete(data) = pushed.outcome {
                    self.reassembling -= 1;
                    self.received_datagram(cx, (owner, flow), data);
                }
                if let Some(place) = self.reassembler(owner) {
                    *place = reassembler;
                }
            }
            Frame::Open { flow, map, token, to } => {
                let opened = self.open(cx, (owner, flow), map, token, to);
                self.answer(cx, (owner, flow), opened);
            }
            Frame::Move { flow, token } => {
                let moved = self.flows.relocate(owner, flow, &token, cx.now);
                self.answer(cx, (owner, flow), moved);
            }
            Frame::Close { flow } => self.close_number(cx, (owner, flow)),
            Frame::Ping(bytes) => {
                let _ = cx.answers.put(owner, &Frame::Pong(bytes));
            }
            // An exit sends no PING, so a PONG means nothing to it. The others do not travel forward.
            _ => {}
        }
    }

    /// A whole datagram from the link, which may have waited there for too long.
    fn received_datagram<A: Apps, Q: Answers>(&mut self, cx: &mut Context<'_, A, Q>, place: Place, data: &[u8]) {
        if cx.age.is_exceeded(cx.link_waited) {
            cx.tally.drop(DropReason::Aged);
        } else {
            self.send_datagram(cx, place, data, cx.now);
        }
    }

    /// A whole datagram for a flow, which was sent first at `first_sent`.
    fn send_datagram<A: Apps, Q: Answers>(
        &mut self,
        cx: &mut Context<'_, A, Q>,
        (owner, number): Place,
        data: &[u8],
        first_sent: Nanos,
    ) {
        let now = cx.now;
        let Some((id, flow)) = self.flows.at_or_was(owner, number) else {
            match self.refused.get(&(owner, number)) {
                Some(why) => cx.tally.drop(*why),
                None => {
                    let forgotten = self.refused.len() >= REFUSED_MAX;
                    cx.tally.drop(if forgotten { DropReason::RefusedFull } else { DropReason::Flow });
                    cx.report((owner, number), Status::UnknownFlow);
                }
            }
            return;
        };
        match flow.target {
            Target::Peer { socket, to } => {
                let may = match &mut flow.usage {
                    Some(usage) => self.limiter.forward(flow.channel, usage, to.ip(), now),
                    None => Ok(()),
                };
                match may {
                    Ok(()) => {
                        cx.send_batch.push(socket, to, id, data);
                        self.flows.touch(id, now);
                        self.flows.fallbacks.keep(id, data, first_sent);
                    }
                    Err(why) => {
                        cx.tally.drop(why);
                        if why == DropReason::Unanswered && flow.may_report(now) {
                            cx.report((owner, number), Status::Unreachable);
                        }
                    }
                }
            }
            Target::Resolving { .. } | Target::Unconnected => {
                let aged = self.flows.drop_aged(id, now.saturating_sub(cx.age.max()));
                cx.tally.drop_many(DropReason::Aged, aged as u64);
                if let Err(why) = self.flows.wait(id, data, now) {
                    cx.tally.drop(why);
                }
            }
        }
    }

    /// Answers an OPEN or MOVE with STATUS, and with PEER in front of it if the destination is a name. There is no
    /// answer while the name is being resolved. A refusal is remembered for the datagram behind it.
    fn answer<A: Apps, Q: Answers>(
        &mut self,
        cx: &mut Context<'_, A, Q>,
        (owner, number): Place,
        done: Result<(), DropReason>,
    ) {
        self.report_evicted(&mut cx.answers);
        match done {
            Ok(()) => {
                self.refused.remove(&(owner, number));
                let flow = self.flows.at(owner, number).map(|(_, flow)| (&flow.target, flow.named));
                if let Some((&Target::Peer { to, .. }, named)) = flow {
                    if named {
                        let _ = cx.answers.put(owner, &Frame::Peer { flow: number, from: to });
                    }
                    cx.report((owner, number), Status::Open);
                }
            }
            Err(why) => {
                if why != DropReason::Flow && self.refused.len() < REFUSED_MAX {
                    self.refused.insert((owner, number), why);
                }
                cx.report((owner, number), why.status());
            }
        }
    }

    fn open<A: Apps, Q: Answers>(
        &mut self,
        cx: &mut Context<'_, A, Q>,
        (owner, number): Place,
        map: u16,
        token: Token,
        to: Address<'_>,
    ) -> Result<(), DropReason> {
        let now = cx.now;
        if self.flows.is_same(owner, number, &token) {
            return Ok(());
        }
        // The entry uses the number for another flow, so it has closed the one before.
        self.close_number(cx, (owner, number));
        if !self.has_moves && self.flows.owner_of(&token).is_some_and(|other| other != owner) {
            return Err(DropReason::NumberTaken);
        }
        match self.flows.relocate(owner, number, &token, now) {
            Err(DropReason::Flow) => {}
            done => return done,
        }
        let admitted = match to {
            Address::Ip(to) => self.policy.admits(to.ip(), to.port()),
            Address::Name(_, port) => port != 0,
        };
        if !admitted {
            return Err(DropReason::Policy);
        }
        if !self.may_open(owner, now) {
            return Err(DropReason::OpenRate);
        }
        if matches!(to, Address::Name(..)) {
            // A name that cannot be asked for does not count.
            if !self.flows.may_ask(owner) {
                return Err(DropReason::NamesFull);
            }
            if !self.may_resolve(owner, now) {
                return Err(DropReason::NameRate);
            }
        }
        match to {
            Address::Ip(to) => {
                let to = SocketAddr::new(to.ip().to_canonical(), to.port());
                self.flows.open(cx.apps, (owner, number), map, token, to, now)?;
                self.judge((owner, number), to);
                Ok(())
            }
            Address::Name(name, port) => {
                let query = self.flows.open_name((owner, number), map, token, port, now)?;
                if !cx.punts.send_modestly(Punt::Resolve { query, name: name.into() }) {
                    self.flows.answered(query);
                    self.close_number(cx, (owner, number));
                    return Err(DropReason::PuntFull);
                }
                Ok(())
            }
        }
    }

    /// Lifts the limits of a flow whose destination the policy trusts.
    fn judge(&mut self, (owner, number): Place, to: SocketAddr) {
        if self.policy.trusts(to)
            && let Some((_, flow)) = self.flows.at(owner, number)
        {
            flow.usage = None;
        }
    }

    /// Ends a flow, with what waits for its name and the fragments that are here.
    fn close_number<A: Apps, Q>(&mut self, cx: &mut Context<'_, A, Q>, (owner, number): Place) {
        let mut lost = self.flows.close_number(cx.apps, owner, number) as u64;
        if let Some(reassembler) = self.reassembler(owner) {
            let fragments = u64::from(reassembler.drop_flow(number));
            self.reassembling -= fragments;
            lost += fragments;
        }
        cx.tally.drop_many(DropReason::Ended, lost);
    }

    /// The resolver's answer: the flow sends to the first address that the policy admits, and may move on to some more.
    pub(crate) fn resolved<A: Apps, Q: Answers>(
        &mut self,
        cx: &mut Context<'_, A, Q>,
        query: QueryId,
        addresses: &[IpAddr],
    ) {
        let Some((id, port, mut waiting)) = self.flows.answered(query) else { return };
        let (before, oldest) = (waiting.len(), cx.now.saturating_sub(cx.age.max()));
        waiting.retain(|waiting| waiting.arrived >= oldest);
        cx.tally.drop_many(DropReason::Aged, (before - waiting.len()) as u64);
        let Some(place) = self.flows.place(id) else { return };
        let mut candidates = ArrayVec::<IpAddr, CANDIDATES_MAX>::new();
        for ip in addresses.iter().map(IpAddr::to_canonical) {
            if !candidates.is_full() && !candidates.contains(&ip) && self.policy.admits(ip, port) {
                candidates.push(ip);
            }
        }
        let nothing = if addresses.is_empty() { DropReason::Unresolvable } else { DropReason::Policy };
        let mut done = Err(nothing);
        for (i, ip) in candidates.iter().enumerate() {
            let to = SocketAddr::new(*ip, port);
            done = self.flows.connect(cx.apps, id, to, cx.now).map(|()| to);
            if done.is_ok() {
                self.flows.fallbacks.add(id, &candidates[i + 1..]);
                break;
            }
        }
        match done {
            Ok(to) => {
                self.judge(place, to);
                waiting.iter().for_each(|waiting| self.send_datagram(cx, place, &waiting.data, cx.now));
            }
            Err(why) => {
                self.flows.close(cx.apps, id);
                cx.tally.drop_many(why, waiting.len() as u64);
            }
        }
        self.answer(cx, place, done.map(|_| ()));
    }

    /// Handles `most` errors that the system has reported for peers. Flows that move on put datagrams into the send
    /// batch. True if there are more.
    pub(crate) fn handle_errors<A: Apps, Q: Answers>(&mut self, cx: &mut Context<'_, A, Q>, most: usize) -> bool {
        let mut unreachable = std::mem::take(&mut self.unreachable);
        cx.apps.unreachable(&mut |socket, to| unreachable.push((socket, to)));
        let first = most.min(unreachable.len());
        unreachable.drain(..first).for_each(|(socket, to)| self.unreachable(cx, socket, to));
        self.unreachable = unreachable;
        !self.unreachable.is_empty()
    }

    /// The system reports a flow's peer as unreachable: the flow moves on to the next address of its name, or STATUS 3
    /// reports it to the entry.
    fn unreachable<A: Apps, Q: Answers>(&mut self, cx: &mut Context<'_, A, Q>, socket: SocketId, to: SocketAddr) {
        let now = cx.now;
        let Some((id, flow)) = self.flows.talking_to(socket, to) else { return };
        let (owner, number) = (flow.channel, flow.number);
        // An error that is true follows a datagram closely. A stranger who forges one must guess its time as well as
        // its port.
        let is_recent = now <= flow.seen + KEEP;
        if is_recent
            && self.flows.fallbacks.has(id)
            && self.may_open(owner, now)
            && let Some((to, again)) = self.flows.move_on(cx.apps, id, now)
        {
            self.judge((owner, number), to);
            for (first_sent, data) in again {
                cx.tally.injected += 1;
                self.send_datagram(cx, (owner, number), &data, first_sent);
            }
            self.answer(cx, (owner, number), Ok(()));
        } else if let Some((_, flow)) = self.flows.talking_to(socket, to)
            && flow.may_report(now)
        {
            cx.report((owner, number), Status::Unreachable);
        }
        self.report_evicted(&mut cx.answers);
    }

    /// Notifies the entries of flows that have ended because their sockets are for others.
    pub(super) fn report_evicted(&mut self, answers: &mut impl Answers) {
        for (owner, flow) in self.flows.take_evicted() {
            let _ = answers.put(owner, &Frame::Close { flow });
        }
    }
}

impl<A, Q: Answers> Context<'_, A, Q> {
    /// Reports on a flow.
    fn report(&mut self, (owner, flow): Place, code: Status) {
        let _ = self.answers.put(owner, &Frame::Status { flow, code });
    }
}
