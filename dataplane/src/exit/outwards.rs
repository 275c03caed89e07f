//! Frames from the entry, and what they do: datagrams to their flows, flows opened, moved and closed, names
//! asked for and answered.
//!
//! Nothing here sends: datagrams go to the outbox, answers to the packer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use wire::frames::{Address, Frame, Status, Token};
use wire::reassembly::{Outcome, Reassembler};

use super::flows::Target;
use super::{Exit, REFUSED_MAX};
use crate::Nanos;
use crate::io::Port;
use crate::io::apps::Apps;
use crate::ledger::Drop;
use crate::punt::Punt;

impl<U: Port, A: Apps> Exit<U, A> {
    /// One frame from the entry.
    pub(super) fn outwards(&mut self, channel: u32, frame: &Frame<'_>, now: Nanos) {
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
                self.datagrams.forward.drop_many(Drop::Incomplete, u64::from(pushed.evicted));
                self.reassembling -= u64::from(pushed.evicted);
                if let Outcome::Complete(data) = pushed.outcome {
                    self.reassembling -= 1;
                    self.datagram(channel, flow, data, now);
                }
                if let Some(record) = self.table.record_mut(channel) {
                    record.state.reassembler = reassembler;
                }
            }
            Frame::Open { flow, map, token, to } => {
                let answer = self.open(channel, flow, map, token, to, now);
                match answer {
                    Some(Status::Open) | None => self.refused.remove(&(channel, flow)),
                    Some(status) if self.refused.len() < REFUSED_MAX => self.refused.insert((channel, flow), status),
                    Some(_) => None,
                };
                if let Some(status) = answer {
                    self.tell(channel, flow, status);
                }
            }
            Frame::Move { flow, token } => {
                let status = self.flows.relocate(channel, flow, &token, now);
                if let Some(status) = self.unless_resolving(channel, flow, status) {
                    self.tell(channel, flow, status);
                }
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
    fn datagram(&mut self, channel: u32, number: u16, data: &[u8], now: Nanos) {
        let tally = &mut self.datagrams.forward;
        let Some((id, flow)) = self.flows.at_or_was(channel, number) else {
            match self.refused.get(&(channel, number)) {
                Some(status) => tally.drop(Drop::of_status(*status)),
                None => {
                    tally.drop(Drop::Flow);
                    self.tell(channel, number, Status::UnknownFlow);
                }
            }
            return;
        };
        match flow.target {
            Target::Peer { socket, to } => {
                self.outbox.push(socket, to, id, data);
                self.flows.touch(id, now);
            }
            Target::Resolving { .. } => {
                if !self.flows.wait(id, data) {
                    tally.drop(Drop::QueueFull);
                }
            }
        }
    }

    /// Answers an OPEN; nothing yet if its name must be resolved first.
    fn open(
        &mut self,
        channel: u32,
        number: u16,
        map: u16,
        token: Token,
        to: Address<'_>,
        now: Nanos,
    ) -> Option<Status> {
        if self.flows.is_same(channel, number, &token) {
            return self.unless_resolving(channel, number, Status::Open);
        }
        // The entry has given the number to another flow, so it has closed the one before.
        self.close_number(channel, number);
        match self.flows.relocate(channel, number, &token, now) {
            Status::UnknownFlow => {}
            status => return self.unless_resolving(channel, number, status),
        }
        match to {
            Address::Ip(to) => {
                if !self.settings.policy.admits(to.ip(), to.port()) {
                    return Some(Status::Refused);
                }
                let to = SocketAddr::new(to.ip().to_canonical(), to.port());
                Some(self.flows.open(&mut self.apps, (channel, number), map, token, to, now))
            }
            Address::Name(_, 0) => Some(Status::Refused),
            Address::Name(name, port) => match self.flows.open_name((channel, number), map, token, port, now) {
                Ok(query) => {
                    if !self.punts.send_modestly(Punt::Resolve { query, name: name.into() }) {
                        self.close_number(channel, number);
                        return Some(Status::Unresolvable);
                    }
                    None
                }
                Err(status) => Some(status),
            },
        }
    }

    /// A status, but nothing yet for a flow whose name is being resolved.
    fn unless_resolving(&mut self, channel: u32, number: u16, status: Status) -> Option<Status> {
        let flow = self.flows.at(channel, number);
        let resolving = flow.is_some_and(|(_, flow)| matches!(flow.target, Target::Resolving { .. }));
        (status != Status::Open || !resolving).then_some(status)
    }

    /// Ends a flow, with what waits for its name and the fragments that are here.
    fn close_number(&mut self, channel: u32, number: u16) {
        let mut lost = self.flows.close_number(&mut self.apps, channel, number) as u64;
        if let Some(record) = self.table.record_mut(channel) {
            let fragments = u64::from(record.state.reassembler.drop_flow(number));
            self.reassembling -= fragments;
            lost += fragments;
        }
        self.datagrams.forward.drop_many(Drop::Ended, lost);
    }

    /// The resolver's answer: the first address that the policy admits is taken.
    pub(super) fn resolved(&mut self, query: u32, addresses: &[IpAddr], now: Nanos) {
        let Some((id, port, waiting)) = self.flows.answered(query) else { return };
        let Some((channel, number)) = self.flows.place(id) else { return };
        let admitted = addresses.iter().map(IpAddr::to_canonical).find(|ip| self.settings.policy.admits(*ip, port));
        let status = match admitted {
            Some(ip) => match self.flows.connect(&mut self.apps, id, SocketAddr::new(ip, port)) {
                Ok(()) => Status::Open,
                Err(status) => status,
            },
            None if addresses.is_empty() => Status::Unresolvable,
            None => Status::Refused,
        };
        if status == Status::Open {
            for data in &waiting {
                self.datagram(channel, number, data, now);
            }
        } else {
            self.flows.close(&mut self.apps, id);
            self.datagrams.forward.drop_many(Drop::of_status(status), waiting.len() as u64);
        }
        self.tell(channel, number, status);
    }

    /// Reports on a flow.
    pub(super) fn tell(&mut self, channel: u32, flow: u16, code: Status) {
        let _ = self.packer.put(channel, &Frame::Status { flow, code }, &mut self.free);
    }
}
