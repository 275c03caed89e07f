//! Handles frames from the entry: datagrams go to their flows; flows are opened, moved and closed; names are resolved.
//!
//! Nothing is sent here: datagrams go to the send batch, answers to the packer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use arrayvec::ArrayVec;
use wire::frames::{Address, Frame, Status, Token};
use wire::ids::ChannelIndex;
use wire::reassembly::{Outcome, Reassembler};

use super::fallback::{CANDIDATES_MAX, KEEP};
use super::flows::Target;
use super::{Exit, QueryId, REASSEMBLING_MAX, REFUSED_MAX};
use crate::Nanos;
use crate::ledger::DropReason;
use crate::punt::Punt;
use crate::socket::Port;
use crate::socket::app_batch::SocketId;
use crate::socket::apps::Apps;

impl<U: Port, A: Apps> Exit<U, A> {
    /// One frame from the entry.
    pub(super) fn forward_frame(&mut self, channel: ChannelIndex, frame: &Frame<'_>, now: Nanos) {
        match *frame {
            Frame::Dgram { flow, data } => {
                self.endpoint.datagrams.forward.injected += 1;
                self.received_datagram(channel, flow, data, now);
            }
            Frame::Frag { flow, id, index, last, data } => {
                let Some(record) = self.endpoint.table.record_mut(channel) else { return };
                let mut reassembler =
                    std::mem::replace(&mut record.state.reassembler, Reassembler::new(self.settings.shape.payload()));
                let pushed = reassembler.push(Duration::from_nanos(now), flow, id, index, last, data);
                self.endpoint.datagrams.forward.injected += u64::from(pushed.started);
                self.reassembling += u64::from(pushed.started);
                self.endpoint.datagrams.forward.drop_many(DropReason::Incomplete, u64::from(pushed.evicted));
                self.reassembling -= u64::from(pushed.evicted);
                if pushed.started && self.reassembling > REASSEMBLING_MAX {
                    reassembler.give_up(flow, id);
                    self.reassembling -= 1;
                    self.endpoint.datagrams.forward.drop(DropReason::ReassemblyFull);
                } else if let Outcome::Complete(data) = pushed.outcome {
                    self.reassembling -= 1;
                    self.received_datagram(channel, flow, data, now);
                }
                if let Some(record) = self.endpoint.table.record_mut(channel) {
                    record.state.reassembler = reassembler;
                }
            }
            Frame::Open { flow, map, token, to } => {
                let opened = self.open(channel, flow, map, token, to, now);
                self.answer(channel, flow, opened);
            }
            Frame::Move { flow, token } => {
                let moved = self.flows.relocate(channel, flow, &token, now);
                self.answer(channel, flow, moved);
            }
            Frame::Close { flow } => {
                self.close_number(channel, flow);
            }
            Frame::Ping(bytes) => {
                let _ = self.endpoint.packer.put(channel, &Frame::Pong(bytes), &mut self.endpoint.free);
            }
            // An exit sends no PING, so a PONG means nothing to it. The others do not travel forward.
            _ => {}
        }
    }

    /// A whole datagram from the link, which may have waited there for too long.
    fn received_datagram(&mut self, channel: ChannelIndex, number: u16, data: &[u8], now: Nanos) {
        if self.endpoint.age.is_exceeded(self.endpoint.link_waited) {
            self.endpoint.datagrams.forward.drop(DropReason::Aged);
        } else {
            self.datagram(channel, number, data, now);
        }
    }

    /// A whole datagram for a flow.
    fn datagram(&mut self, channel: ChannelIndex, number: u16, data: &[u8], now: Nanos) {
        self.send_datagram((channel, number), data, now, now);
    }

    /// The same, for one that was sent first at `first_sent`.
    fn send_datagram(&mut self, (channel, number): (ChannelIndex, u16), data: &[u8], now: Nanos, first_sent: Nanos) {
        let tally = &mut self.endpoint.datagrams.forward;
        let Some((id, flow)) = self.flows.at_or_was(channel, number) else {
            match self.refused.get(&(channel, number)) {
                Some(why) => tally.drop(*why),
                None => {
                    let forgotten = self.refused.len() >= REFUSED_MAX;
                    tally.drop(if forgotten { DropReason::RefusedFull } else { DropReason::Flow });
                    self.report_status(channel, number, Status::UnknownFlow);
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
                        self.endpoint.send_batch.push(socket, to, id, data);
                        self.flows.touch(id, now);
                        self.flows.fallbacks.keep(id, data, first_sent);
                    }
                    Err(why) => {
                        tally.drop(why);
                        if why == DropReason::Unanswered && flow.may_report(now) {
                            self.report_status(channel, number, Status::Unreachable);
                        }
                    }
                }
            }
            Target::Resolving { .. } | Target::Unconnected => {
                let aged = self.flows.drop_aged(id, now.saturating_sub(self.endpoint.age.max()));
                tally.drop_many(DropReason::Aged, aged as u64);
                if let Err(why) = self.flows.wait(id, data, now) {
                    tally.drop(why);
                }
            }
        }
    }

    /// Answers an OPEN or MOVE with STATUS, and with PEER in front of it if the destination is a name. There is no
    /// answer while the name is being resolved. A refusal is remembered for the datagram behind it.
    fn answer(&mut self, channel: ChannelIndex, number: u16, done: Result<(), DropReason>) {
        self.report_evicted();
        match done {
            Ok(()) => {
                self.refused.remove(&(channel, number));
                let flow = self.flows.at(channel, number).map(|(_, flow)| (&flow.target, flow.named));
                if let Some((&Target::Peer { to, .. }, named)) = flow {
                    if named {
                        let peer = Frame::Peer { flow: number, from: to };
                        let _ = self.endpoint.packer.put(channel, &peer, &mut self.endpoint.free);
                    }
                    self.report_status(channel, number, Status::Open);
                }
            }
            Err(why) => {
                if why != DropReason::Flow && self.refused.len() < REFUSED_MAX {
                    self.refused.insert((channel, number), why);
                }
                self.report_status(channel, number, why.status());
            }
        }
    }

    fn open(
        &mut self,
        channel: ChannelIndex,
        number: u16,
        map: u16,
        token: Token,
        to: Address<'_>,
        now: Nanos,
    ) -> Result<(), DropReason> {
        if self.flows.is_same(channel, number, &token) {
            return Ok(());
        }
        // The entry uses the number for another flow, so it has closed the one before.
        self.close_number(channel, number);
        match self.flows.relocate(channel, number, &token, now) {
            Err(DropReason::Flow) => {}
            done => return done,
        }
        let admitted = match to {
            Address::Ip(to) => self.settings.policy.admits(to.ip(), to.port()),
            Address::Name(_, port) => port != 0,
        };
        if !admitted {
            return Err(DropReason::Policy);
        }
        if !self.endpoint.table.record_mut(channel).is_some_and(|record| record.state.opens.take(now)) {
            return Err(DropReason::OpenRate);
        }
        if matches!(to, Address::Name(..)) {
            // A name that cannot be asked for does not count.
            if !self.flows.may_ask(channel) {
                return Err(DropReason::NamesFull);
            }
            if !self.may_resolve(channel, now) {
                return Err(DropReason::NameRate);
            }
        }
        match to {
            Address::Ip(to) => {
                let to = SocketAddr::new(to.ip().to_canonical(), to.port());
                self.flows.open(&mut self.endpoint.apps, (channel, number), map, token, to, now)?;
                self.judge(channel, number, to);
                Ok(())
            }
            Address::Name(name, port) => {
                let query = self.flows.open_name((channel, number), map, token, port, now)?;
                if !self.endpoint.punts.send_modestly(Punt::Resolve { query, name: name.into() }) {
                    self.flows.answered(query);
                    self.close_number(channel, number);
                    return Err(DropReason::PuntFull);
                }
                Ok(())
            }
        }
    }

    /// Counts one more name to resolve. False if there are too many in this second.
    fn may_resolve(&mut self, channel: ChannelIndex, now: Nanos) -> bool {
        let Self { endpoint, settings, lookups, .. } = self;
        let record = endpoint.table.record_mut(channel);
        record.is_some_and(|record| record.state.opens.take_name(lookups, settings.limits.names, now))
    }

    /// Lifts the limits of a flow whose destination the policy trusts.
    fn judge(&mut self, channel: ChannelIndex, number: u16, to: SocketAddr) {
        if self.settings.policy.trusts(to)
            && let Some((_, flow)) = self.flows.at(channel, number)
        {
            flow.usage = None;
        }
    }

    /// Ends a flow, with what waits for its name and the fragments that are here.
    fn close_number(&mut self, channel: ChannelIndex, number: u16) {
        let mut lost = self.flows.close_number(&mut self.endpoint.apps, channel, number) as u64;
        if let Some(record) = self.endpoint.table.record_mut(channel) {
            let fragments = u64::from(record.state.reassembler.drop_flow(number));
            self.reassembling -= fragments;
            lost += fragments;
        }
        self.endpoint.datagrams.forward.drop_many(DropReason::Ended, lost);
    }

    /// The resolver's answer: the flow sends to the first address that the policy admits, and may move on to some more.
    pub(super) fn resolved(&mut self, query: QueryId, addresses: &[IpAddr], now: Nanos) {
        let Some((id, port, mut waiting)) = self.flows.answered(query) else { return };
        let (before, oldest) = (waiting.len(), now.saturating_sub(self.endpoint.age.max()));
        waiting.retain(|waiting| waiting.arrived >= oldest);
        self.endpoint.datagrams.forward.drop_many(DropReason::Aged, (before - waiting.len()) as u64);
        let Some((channel, number)) = self.flows.place(id) else { return };
        let mut candidates = ArrayVec::<IpAddr, CANDIDATES_MAX>::new();
        for ip in addresses.iter().map(IpAddr::to_canonical) {
            if !candidates.is_full() && !candidates.contains(&ip) && self.settings.policy.admits(ip, port) {
                candidates.push(ip);
            }
        }
        let nothing = if addresses.is_empty() { DropReason::Unresolvable } else { DropReason::Policy };
        let mut done = Err(nothing);
        for (i, ip) in candidates.iter().enumerate() {
            let to = SocketAddr::new(*ip, port);
            done = self.flows.connect(&mut self.endpoint.apps, id, to, now).map(|()| to);
            if done.is_ok() {
                self.flows.fallbacks.add(id, &candidates[i + 1..]);
                break;
            }
        }
        match done {
            Ok(to) => {
                self.judge(channel, number, to);
                waiting.iter().for_each(|waiting| self.datagram(channel, number, &waiting.data, now));
            }
            Err(why) => {
                self.flows.close(&mut self.endpoint.apps, id);
                self.endpoint.datagrams.forward.drop_many(why, waiting.len() as u64);
            }
        }
        self.answer(channel, number, done.map(|_| ()));
    }

    /// Handles errors that the system has reported for peers, and sends the datagrams of flows that move on.
    pub(super) fn move_on(&mut self, now: Nanos) {
        loop {
            let mut unreachable = std::mem::take(&mut self.unreachable);
            self.endpoint.apps.unreachable(&mut |socket, to| unreachable.push((socket, to)));
            unreachable.drain(..).for_each(|(socket, to)| self.unreachable(socket, to, now));
            self.unreachable = unreachable;
            // This ends, because each flow has few addresses.
            if self.endpoint.send_batch.is_empty() {
                return;
            }
            self.endpoint.send_batch.shuffle_flows(&mut self.rng);
            self.send_datagrams();
        }
    }

    /// The system reports a flow's peer as unreachable: the flow moves on to the next address of its name, or STATUS 3
    /// reports it to the entry.
    fn unreachable(&mut self, socket: SocketId, to: SocketAddr, now: Nanos) {
        let Some((id, flow)) = self.flows.talking_to(socket, to) else { return };
        let (channel, number) = (flow.channel, flow.number);
        // An error that is true follows a datagram closely. A stranger who forges one must guess its time as well as
        // its port.
        let is_recent = now <= flow.seen + KEEP;
        if is_recent
            && self.flows.fallbacks.has(id)
            && self.endpoint.table.record_mut(channel).is_some_and(|record| record.state.opens.take(now))
            && let Some((to, again)) = self.flows.move_on(&mut self.endpoint.apps, id, now)
        {
            self.judge(channel, number, to);
            for (first_sent, data) in again {
                self.endpoint.datagrams.forward.injected += 1;
                self.send_datagram((channel, number), &data, now, first_sent);
            }
            self.answer(channel, number, Ok(()));
        } else if let Some((_, flow)) = self.flows.talking_to(socket, to)
            && flow.may_report(now)
        {
            self.report_status(channel, number, Status::Unreachable);
        }
        self.report_evicted();
    }

    /// Notifies the entries of flows that have ended because their sockets are for others.
    pub(super) fn report_evicted(&mut self) {
        for (channel, flow) in self.flows.take_evicted() {
            let _ = self.endpoint.packer.put(channel, &Frame::Close { flow }, &mut self.endpoint.free);
        }
    }

    /// Reports on a flow.
    pub(super) fn report_status(&mut self, channel: ChannelIndex, flow: u16, code: Status) {
        let _ = self.endpoint.packer.put(channel, &Frame::Status { flow, code }, &mut self.endpoint.free);
    }
}
