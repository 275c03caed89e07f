//! Frames from the entry, and what they do: datagrams to their flows, flows opened, moved and closed, names
//! asked for and answered.
//!
//! Nothing here sends: datagrams go to the send batch, answers to the packer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::frames::{Address, Frame, Status, Token};
use wire::ids::ChannelIndex;
use wire::reassembly::{Outcome, Reassembler};

use super::flows::Target;
use super::{Exit, REASSEMBLING_MAX, REFUSED_MAX};
use crate::Nanos;
use crate::ledger::DropReason;
use crate::punt::Punt;
use crate::socket::Port;
use crate::socket::apps::Apps;

impl<U: Port, A: Apps> Exit<U, A> {
    /// One frame from the entry.
    pub(super) fn outwards(&mut self, channel: ChannelIndex, frame: &Frame<'_>, now: Nanos) {
        match *frame {
            Frame::Dgram { flow, data } => {
                self.datagrams.forward.injected += 1;
                self.datagram(channel, flow, data, now);
            }
            Frame::Frag { flow, id, index, last, data } => {
                let Some(record) = self.table.record_mut(channel) else { return };
                let mut reassembler =
                    std::mem::replace(&mut record.state.reassembler, Reassembler::new(self.settings.shape.payload()));
                let pushed = reassembler.push(Duration::from_nanos(now), flow, id, index, last, data);
                self.datagrams.forward.injected += u64::from(pushed.started);
                self.reassembling += u64::from(pushed.started);
                self.datagrams.forward.drop_many(DropReason::Incomplete, u64::from(pushed.evicted));
                self.reassembling -= u64::from(pushed.evicted);
                if pushed.started && self.reassembling > REASSEMBLING_MAX {
                    reassembler.give_up(flow, id);
                    self.reassembling -= 1;
                    self.datagrams.forward.drop(DropReason::ReassemblyFull);
                } else if let Outcome::Complete(data) = pushed.outcome {
                    self.reassembling -= 1;
                    self.datagram(channel, flow, data, now);
                }
                if let Some(record) = self.table.record_mut(channel) {
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
                let _ = self.packer.put(channel, &Frame::Pong(bytes), &mut self.free);
            }
            // PONG answers nothing that an exit asks; the others do not travel forward.
            _ => {}
        }
    }

    /// A whole datagram for a flow.
    fn datagram(&mut self, channel: ChannelIndex, number: u16, data: &[u8], now: Nanos) {
        let tally = &mut self.datagrams.forward;
        let Some((id, flow)) = self.flows.at_or_was(channel, number) else {
            match self.refused.get(&(channel, number)) {
                Some(why) => tally.drop(*why),
                None => {
                    let forgotten = self.refused.len() >= REFUSED_MAX;
                    tally.drop(if forgotten { DropReason::RefusedFull } else { DropReason::Flow });
                    self.tell(channel, number, Status::UnknownFlow);
                }
            }
            return;
        };
        match flow.target {
            Target::Peer { socket, to } => {
                let may = match &mut flow.usage {
                    Some(usage) => self.limiter.outwards(usage, to.ip(), now),
                    None => Ok(()),
                };
                match may {
                    Ok(()) => {
                        self.send_batch.push(socket, to, id, data);
                        self.flows.touch(id, now);
                    }
                    Err(why) => {
                        tally.drop(why);
                        if why == DropReason::Unanswered && flow.may_report(now) {
                            self.tell(channel, number, Status::Unreachable);
                        }
                    }
                }
            }
            Target::Resolving { .. } => {
                if let Err(why) = self.flows.wait(id, data) {
                    tally.drop(why);
                }
            }
        }
    }

    /// Answers an OPEN or MOVE, and tells the address if there was a name to resolve; nothing yet to a flow whose name is
    /// being resolved. What was refused is remembered for the datagram behind it.
    fn answer(&mut self, channel: ChannelIndex, number: u16, done: Result<(), DropReason>) {
        match done {
            Ok(()) => {
                self.refused.remove(&(channel, number));
                let flow = self.flows.at(channel, number).map(|(_, flow)| (&flow.target, flow.named));
                if let Some((&Target::Peer { to, .. }, named)) = flow {
                    if named {
                        let peer = Frame::Peer { flow: number, from: to };
                        let _ = self.packer.put(channel, &peer, &mut self.free);
                    }
                    self.tell(channel, number, Status::Open);
                }
            }
            Err(why) => {
                if why != DropReason::Flow && self.refused.len() < REFUSED_MAX {
                    self.refused.insert((channel, number), why);
                }
                self.tell(channel, number, why.status());
            }
        }
    }

    /// An OPEN.
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
        // The entry has given the number to another flow, so it has closed the one before.
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
        if !self.table.record_mut(channel).is_some_and(|record| record.state.opens.take(now)) {
            return Err(DropReason::OpenRate);
        }
        match to {
            Address::Ip(to) => {
                let to = SocketAddr::new(to.ip().to_canonical(), to.port());
                self.flows.open(&mut self.apps, (channel, number), map, token, to, now)?;
                self.judge(channel, number, to);
                Ok(())
            }
            Address::Name(name, port) => {
                let query = self.flows.open_name((channel, number), map, token, port, now)?;
                if !self.punts.send_modestly(Punt::Resolve { query, name: name.into() }) {
                    self.flows.answered(query);
                    self.close_number(channel, number);
                    return Err(DropReason::PuntFull);
                }
                Ok(())
            }
        }
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
        let mut lost = self.flows.close_number(&mut self.apps, channel, number) as u64;
        if let Some(record) = self.table.record_mut(channel) {
            let fragments = u64::from(record.state.reassembler.drop_flow(number));
            self.reassembling -= fragments;
            lost += fragments;
        }
        self.datagrams.forward.drop_many(DropReason::Ended, lost);
    }

    /// The resolver's answer: the first address that the policy admits is taken.
    pub(super) fn resolved(&mut self, query: u32, addresses: &[IpAddr], now: Nanos) {
        let Some((id, port, waiting)) = self.flows.answered(query) else { return };
        let Some((channel, number)) = self.flows.place(id) else { return };
        let admitted = addresses.iter().map(IpAddr::to_canonical).find(|ip| self.settings.policy.admits(*ip, port));
        let done = match admitted {
            Some(ip) => {
                let to = SocketAddr::new(ip, port);
                self.flows.connect(&mut self.apps, id, to).map(|()| to)
            }
            None if addresses.is_empty() => Err(DropReason::Unresolvable),
            None => Err(DropReason::Policy),
        };
        match done {
            Ok(to) => {
                self.judge(channel, number, to);
                waiting.iter().for_each(|data| self.datagram(channel, number, data, now));
            }
            Err(why) => {
                self.flows.close(&mut self.apps, id);
                self.datagrams.forward.drop_many(why, waiting.len() as u64);
            }
        }
        self.answer(channel, number, done.map(|_| ()));
    }

    /// Reports on a flow.
    pub(super) fn tell(&mut self, channel: ChannelIndex, flow: u16, code: Status) {
        let _ = self.packer.put(channel, &Frame::Status { flow, code }, &mut self.free);
    }
}
