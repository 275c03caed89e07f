//! Flows at the exit and the sockets they share (SPEC 3.10, RFC 4787).
//!
//! Flows of one channel with one `map` share one unconnected socket per address family, so that a
//! client keeps one port towards all its peers. Answers are matched by socket and source; datagrams
//! from an address that is not the peer of a flow are filtered. A token identifies a flow on any channel.
//!
//! Neighbours: [`super::mappings`] keeps the sockets of clients, [`super::quota`] divides the shared resources among
//! channels, and [`super::names`] keeps the questions to the resolver.

mod idlers;
mod sockets;

use std::net::{IpAddr, SocketAddr};

use hashbrown::HashMap;
use wire::frames::Token;
use wire::ids::ChannelIndex;

use super::fallback::{Fallbacks, Kept};
use super::limits::Usage;
use super::mappings::{MappingId, Mappings};
use super::names::{Names, QUESTIONS_MAX, QueryId, Waiting};
use super::quota::{Caps, Part, Quota, Share, may_have_another};
use crate::Nanos;
use crate::SECOND;
use crate::ledger::DropReason;
use crate::socket::app_batch::{FlowId, SocketId};
use crate::socket::apps::Apps;
use crate::wheel::Wheel;
use idlers::Idlers;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Flows of an exit, unless it may have more sockets than that.
pub(super) const FLOWS_MAX: usize = 1 << 16;
/// Datagrams in flight find a flow under its old number for this long after it has moved.
const MOVED: Nanos = 5 * SECOND;

/// The destination of a flow.
pub(super) enum Target {
    /// Not known yet: the flow has no socket. Only while it is being opened.
    Unconnected,
    /// From this socket to this peer.
    Peer { socket: SocketId, to: SocketAddr },
    /// Its name is being resolved.
    Resolving {
        query: QueryId,
        port: u16,
        /// Datagrams that came meanwhile.
        waiting: Vec<Waiting>,
    },
}

pub(super) struct Flow {
    pub channel: ChannelIndex,
    pub number: u16,
    pub target: Target,
    /// Its destination was a name, so the entry needs to learn the address.
    pub named: bool,
    /// Its use of its limits. None if it has no limits.
    pub usage: Option<Usage>,
    token: Token,
    mapping: MappingId,
    pub(super) seen: Nanos,
    next_id: u16,
    /// The place it has left last, for datagrams that were under way.
    was: Option<(ChannelIndex, u16)>,
    /// The time of the last report that its peer is unreachable.
    reported: Nanos,
    /// From this time on PEER precedes its next answer. `Nanos::MAX` until the flow moves on (SPEC 3.12.8).
    pub(super) peer_due: Nanos,
    /// An older flow of the client had its peer when it came.
    shadows: bool,
    /// From which its channel has it.
    part: Part,
}

impl Flow {
    /// A fresh fragment id.
    pub(crate) fn next_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// True once a second: an unreachable peer may be reported now.
    pub(crate) fn may_report(&mut self, now: Nanos) -> bool {
        let may = now >= self.reported + SECOND;
        if may {
            self.reported = now;
        }
        may
    }
}

/// The flow that had a place until it moved, remembered until a time.
struct Alias {
    flow: FlowId,
    until: Nanos,
}

/// All flows of an exit.
pub(super) struct Flows {
    caps: Caps,
    idle: Nanos,
    flows: Vec<Option<Flow>>,
    vacant: Vec<FlowId>,
    by_number: Map<(ChannelIndex, u16), FlowId>,
    by_token: Map<Token, FlowId>,
    by_peer: Map<(SocketId, SocketAddr), FlowId>,
    quota: Quota,
    mappings: Mappings,
    /// Places that flows have left: at most one a flow.
    aliases: Map<(ChannelIndex, u16), Alias>,
    names: Names,
    /// Further addresses of names.
    pub fallbacks: Fallbacks,
    idlers: Idlers,
    /// Flows that have ended because their sockets are for others.
    evicted: Vec<(ChannelIndex, u16)>,
    wheel: Wheel,
    due: Vec<u32>,
}

impl Flows {
    pub(super) fn new(caps: Caps, idle: std::time::Duration, now: Nanos) -> Flows {
        Flows {
            caps,
            idle: idle.as_nanos() as Nanos,
            flows: Vec::new(),
            vacant: Vec::new(),
            by_number: Map::default(),
            by_token: Map::default(),
            by_peer: Map::default(),
            quota: Quota::default(),
            mappings: Mappings::default(),
            aliases: Map::default(),
            names: Names::default(),
            fallbacks: Fallbacks::default(),
            idlers: Idlers::new(now),
            evicted: Vec::new(),
            wheel: Wheel::new(now / SECOND),
            due: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_number.len()
    }

    pub(super) fn sockets(&self) -> usize {
        self.mappings.sockets()
    }

    fn flows_max(&self) -> usize {
        self.caps.sockets.max(FLOWS_MAX)
    }

    /// Datagrams that wait for names.
    pub(super) fn waiting(&self) -> usize {
        self.names.waiting()
    }

    /// Keeps a datagram until the flow's name has resolved.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn wait(&mut self, id: FlowId, data: &[u8], now: Nanos) -> Result<(), DropReason> {
        match self.flows[id.index()].as_mut().map(|flow| &mut flow.target) {
            Some(Target::Resolving { waiting, .. }) => self.names.wait(waiting, data, now),
            _ => Err(DropReason::FlowQueueFull),
        }
    }

    /// Removes datagrams that came before `oldest` and wait for the flow's name. Returns how many.
    pub(super) fn drop_aged(&mut self, id: FlowId, oldest: Nanos) -> usize {
        let target = self.flows[id.index()].as_mut().map(|flow| &mut flow.target);
        let Some(Target::Resolving { waiting, .. }) = target else { return 0 };
        let before = waiting.len();
        waiting.retain(|waiting| waiting.arrived >= oldest);
        let aged = before - waiting.len();
        self.names.waited(aged);
        aged
    }

    /// The same for all flows.
    pub(super) fn drop_all_aged(&mut self, oldest: Nanos) -> usize {
        self.names.flows().into_iter().map(|id| self.drop_aged(id, oldest)).sum()
    }

    /// Takes what waits for a question's answer: the flow, its port, its datagrams.
    pub(super) fn answered(&mut self, query: QueryId) -> Option<(FlowId, u16, Vec<Waiting>)> {
        let question = self.names.answer(query)?;
        if let Some(channel) = question.channel {
            self.quota.give_back(channel, Share::QUESTION);
        }
        let id = question.flow?;
        let flow = self.flows[id.index()].as_mut()?;
        let Target::Resolving { port, waiting, .. } = &mut flow.target else { return None };
        let taken = std::mem::take(waiting);
        self.names.waited(taken.len());
        Some((id, *port, taken))
    }

    /// The channel and number of a flow.
    pub(super) fn place(&self, id: FlowId) -> Option<(ChannelIndex, u16)> {
        self.flows[id.index()].as_ref().map(|flow| (flow.channel, flow.number))
    }

    /// The flow with this number on a channel.
    pub(super) fn at(&mut self, channel: ChannelIndex, number: u16) -> Option<(FlowId, &mut Flow)> {
        let id = *self.by_number.get(&(channel, number))?;
        Some((id, self.flows[id.index()].as_mut()?))
    }

    /// The flow with this number on a channel, or that had it until a moment ago.
    pub(crate) fn at_or_was(&mut self, channel: ChannelIndex, number: u16) -> Option<(FlowId, &mut Flow)> {
        let id = match self.by_number.get(&(channel, number)) {
            Some(id) => *id,
            None => self.aliases.get(&(channel, number))?.flow,
        };
        Some((id, self.flows[id.index()].as_mut()?))
    }

    /// Forgets places that flows left more than [`MOVED`] ago.
    pub(crate) fn forget_aliases(&mut self, now: Nanos) {
        self.aliases.retain(|_, alias| alias.until > now);
    }

    /// The flow whose peer this is.
    pub(crate) fn talking_to(&mut self, socket: SocketId, to: SocketAddr) -> Option<(FlowId, &mut Flow)> {
        let id = *self.by_peer.get(&(socket, to))?;
        Some((id, self.flows[id.index()].as_mut()?))
    }

    /// The flow whose peer this is and has sent something: a flow to a name keeps that address.
    pub(super) fn heard(&mut self, socket: SocketId, from: SocketAddr) -> Option<&mut Flow> {
        let id = *self.by_peer.get(&(socket, from))?;
        self.fallbacks.forget(id);
        self.flows[id.index()].as_mut()
    }

    /// Moves a flow whose peer is unreachable on to the next address of its name. Returns its new peer, and the
    /// datagrams to send there again.
    pub(crate) fn move_on(&mut self, apps: &mut impl Apps, id: FlowId, now: Nanos) -> Option<(SocketAddr, Vec<Kept>)> {
        let Target::Peer { socket, to: left } = self.flows[id.index()].as_ref()?.target else { return None };
        let mut again = Vec::new();
        let to = loop {
            let (ip, datagrams) = self.fallbacks.next(id, now)?;
            again.extend(datagrams);
            let to = SocketAddr::new(ip, left.port());
            if self.connect(apps, id, to, now).is_ok() {
                break to;
            }
        };
        self.release_peer(id, (socket, left));
        let flow = self.flows[id.index()].as_mut()?;
        // What holds for the new peer is judged again.
        flow.usage = Some(flow.usage.unwrap_or_default().moved_on());
        // The entry may lose the PEER that announces this, and no longer asks.
        flow.peer_due = now;
        Some((to, again))
    }

    /// A flow of the client that has this socket.
    pub(crate) fn of_client(&mut self, socket: SocketId) -> Option<&mut Flow> {
        let id = self.mappings.flow_of(socket)?;
        self.flows[id.index()].as_mut()
    }

    /// The usage of all flows with limits, with their channels and their peers' addresses.
    pub(crate) fn usages(&self) -> impl Iterator<Item = (ChannelIndex, &Usage, IpAddr)> {
        self.flows.iter().flatten().filter_map(|flow| match (&flow.usage, &flow.target) {
            (Some(usage), Target::Peer { to, .. }) => Some((flow.channel, usage, to.ip())),
            _ => None,
        })
    }

    /// Notes that the flow has sent a datagram.
    pub(super) fn touch(&mut self, id: FlowId, now: Nanos) {
        if let Some(flow) = self.flows[id.index()].as_mut() {
            flow.seen = now;
        }
    }

    /// True if the flow with this number has this token. A repeated OPEN changes nothing then.
    pub(super) fn is_same(&mut self, channel: ChannelIndex, number: u16, token: &Token) -> bool {
        self.at(channel, number).is_some_and(|(_, flow)| flow.token == *token)
    }

    /// The channel of the flow with this token.
    pub(super) fn owner_of(&self, token: &Token) -> Option<ChannelIndex> {
        self.by_token.get(token).and_then(|id| self.place(*id)).map(|(channel, _)| channel)
    }

    /// Moves the flow with this token to this channel and number.
    ///
    /// # Errors
    /// The token is unknown ([`DropReason::Flow`]), or this channel has no room.
    pub(crate) fn relocate(
        &mut self,
        channel: ChannelIndex,
        number: u16,
        token: &Token,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let &id = self.by_token.get(token).ok_or(DropReason::Flow)?;
        let old = self.place(id).expect("the index lists live flows");
        if old == (channel, number) {
            return Ok(());
        }
        if self.by_number.contains_key(&(channel, number)) {
            // An entry never reuses a number in use. If one does, the flow that has the number keeps it.
            return Err(DropReason::NumberTaken);
        }
        let (own, all, free) = (self.quota.of(channel), self.flows_max(), self.flows_max() - self.len());
        let flow = self.flows[id.index()].as_mut().expect("the index lists live flows");
        let was = flow.part;
        let part = if old.0 == channel {
            was
        } else if own.flows >= self.caps.flows_per_channel {
            return Err(DropReason::ChannelFlowsFull);
        } else {
            // It would be free again if it ended.
            was.passed_on(own.flows, own.first_flows, free + 1, all).ok_or(DropReason::FlowsFull)?
        };
        self.quota.take(channel, Share::flow(part));
        (flow.channel, flow.number, flow.part) = (channel, number, part);
        let mapping = flow.mapping;
        let before = flow.was.replace(old);
        self.forget_alias(before, id);
        self.by_number.remove(&old);
        self.take_place((channel, number), id);
        self.aliases.insert(old, Alias { flow: id, until: now + MOVED });
        self.quota.give_back(old.0, Share::flow(was));
        self.mappings.move_to(mapping, channel);
        Ok(())
    }

    /// Forgets the place that a flow had left last, unless another flow has left it since.
    fn forget_alias(&mut self, was: Option<(ChannelIndex, u16)>, id: FlowId) {
        if let Some(was) = was
            && self.aliases.get(&was).is_some_and(|alias| alias.flow == id)
        {
            self.aliases.remove(&was);
        }
    }

    /// Registers a flow at a place. A flow that had the place before is no longer found there.
    fn take_place(&mut self, place: (ChannelIndex, u16), id: FlowId) {
        self.by_number.insert(place, id);
        if let Some(alias) = self.aliases.remove(&place)
            && let Some(flow) = self.flows[alias.flow.index()].as_mut()
        {
            flow.was = None;
        }
    }

    /// Adds a flow. Its number must be free.
    ///
    /// # Errors
    /// The channel or the exit has its maximum of flows.
    fn add(
        &mut self,
        channel: ChannelIndex,
        number: u16,
        map: u16,
        token: Token,
        target: Target,
        now: Nanos,
    ) -> Result<FlowId, DropReason> {
        let mine = self.quota.of(channel).flows;
        // The client's may have come from several channels. To end one costs as much as there are.
        if mine.max(self.mappings.count((channel, map))) >= self.caps.flows_per_channel {
            return Err(DropReason::ChannelFlowsFull);
        }
        let (all, free) = (self.flows_max(), self.flows_max() - self.len());
        let part = Part::of(mine, free, all).ok_or(DropReason::FlowsFull)?;
        self.quota.take(channel, Share::flow(part));
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.flows.push(None);
            FlowId(self.flows.len() as u32 - 1)
        });
        let mapping = self.mappings.add_flow((channel, map), id);
        self.flows[id.index()] = Some(Flow {
            channel,
            number,
            named: matches!(target, Target::Resolving { .. }),
            usage: Some(Usage::default()),
            target,
            token,
            mapping,
            seen: now,
            next_id: 0,
            was: None,
            reported: 0,
            peer_due: Nanos::MAX,
            shadows: false,
            part,
        });
        self.take_place((channel, number), id);
        self.by_token.insert(token, id);
        self.wheel.arm(id.0, (now + self.idle) / SECOND + 1);
        Ok(id)
    }

    /// Opens a flow to an address that the policy admits.
    ///
    /// # Errors
    /// No flow or no socket is available.
    pub(super) fn open(
        &mut self,
        apps: &mut impl Apps,
        (channel, number): (ChannelIndex, u16),
        map: u16,
        token: Token,
        to: SocketAddr,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let id = self.add(channel, number, map, token, Target::Unconnected, now)?;
        self.connect(apps, id, to, now).inspect_err(|_| {
            self.close(apps, id);
        })
    }

    /// True if a channel may ask for another name.
    pub(super) fn may_ask(&self, channel: ChannelIndex) -> bool {
        may_have_another(self.quota.of(channel).questions, QUESTIONS_MAX - self.names.len(), QUESTIONS_MAX / 2)
    }

    /// Opens a flow whose name must be resolved; returns the question's number.
    ///
    /// # Errors
    /// No flow or no question is available.
    pub(crate) fn open_name(
        &mut self,
        (channel, number): (ChannelIndex, u16),
        map: u16,
        token: Token,
        port: u16,
        now: Nanos,
    ) -> Result<QueryId, DropReason> {
        if !self.may_ask(channel) {
            return Err(DropReason::NamesFull);
        }
        let query = self.names.draw();
        let target = Target::Resolving { query, port, waiting: Vec::new() };
        let id = self.add(channel, number, map, token, target, now)?;
        self.names.ask(query, id, channel);
        self.quota.take(channel, Share::QUESTION);
        Ok(query)
    }

    /// Ends a flow, and its socket with the last flow of its client. Returns datagrams that waited.
    pub(super) fn close(&mut self, apps: &mut impl Apps, id: FlowId) -> usize {
        self.end(id, |socket| apps.close(socket))
    }

    /// The same, where `close` closes sockets.
    fn end(&mut self, id: FlowId, mut close: impl FnMut(SocketId)) -> usize {
        if let Some(Flow { target: Target::Peer { socket, to }, .. }) = self.flows[id.index()] {
            self.release_peer(id, (socket, to));
        }
        let Some(flow) = self.flows[id.index()].take() else { return 0 };
        self.vacant.push(id);
        self.fallbacks.forget(id);
        self.by_number.remove(&(flow.channel, flow.number));
        self.by_token.remove(&flow.token);
        self.forget_alias(flow.was, id);
        self.quota.give_back(flow.channel, Share::flow(flow.part));
        let waited = match flow.target {
            Target::Peer { .. } | Target::Unconnected => 0,
            Target::Resolving { query, waiting, .. } => {
                self.names.forget_flow(query);
                self.names.waited(waiting.len());
                waiting.len()
            }
        };
        for held in self.mappings.remove_flow(flow.mapping, id, flow.seen) {
            close(held.socket);
            self.quota.give_back(held.counts_for, held.share());
        }
        waited
    }

    /// Ends the flow with this number; returns datagrams that waited.
    pub(crate) fn close_number(&mut self, apps: &mut impl Apps, channel: ChannelIndex, number: u16) -> usize {
        match self.by_number.get(&(channel, number)) {
            Some(&id) => self.close(apps, id),
            None => 0,
        }
    }

    /// Ends all flows of a channel, and those of a client that has moved on if no other channel may have its socket.
    /// Returns datagrams that waited.
    pub(crate) fn close_channel(&mut self, apps: &mut impl Apps, channel: ChannelIndex) -> usize {
        // Its index is given out again: nothing that is left may be found under it. A client whose flows
        // have moved on keeps its socket; flows that it opens from here on get another.
        self.mappings.forget_channel(channel);
        self.aliases.retain(|(of, _), _| *of != channel);
        if !self.quota.holds(channel) {
            return 0;
        }
        let numbers = self.numbers_of(channel);
        let mut waited = numbers.into_iter().map(|number| self.close_number(apps, channel, number)).sum();
        if self.quota.forget(channel) {
            let refused = self.bequeath(channel);
            waited += refused.into_iter().map(|client| self.evict(client, |socket| apps.close(socket))).sum::<usize>();
            self.names.forget_channel(channel);
        }
        waited
    }

    /// The numbers of a channel's flows.
    pub(super) fn numbers_of(&self, channel: ChannelIndex) -> Vec<u16> {
        if !self.quota.holds(channel) {
            return Vec::new();
        }
        self.by_number.keys().filter(|(of, _)| *of == channel).map(|(_, number)| *number).collect()
    }

    /// Ends idle flows, calling `closed` for each: at most `most` of those that may be idle. Returns datagrams that
    /// waited, and whether there are others.
    pub(super) fn expire(
        &mut self,
        apps: &mut impl Apps,
        now: Nanos,
        most: usize,
        mut closed: impl FnMut(ChannelIndex, u16),
    ) -> (usize, bool) {
        self.wheel.advance(now / SECOND, &mut self.due);
        let mut waited = 0;
        let first = self.due.len().saturating_sub(most);
        for id in self.due.split_off(first).into_iter().map(FlowId) {
            let Some(flow) = self.flows[id.index()].as_ref() else { continue };
            if flow.seen + self.idle > now {
                self.wheel.arm(id.0, (flow.seen + self.idle) / SECOND + 1);
            } else {
                closed(flow.channel, flow.number);
                waited += self.close(apps, id);
            }
        }
        (waited, !self.due.is_empty())
    }
}

#[cfg(test)]
mod tests;
