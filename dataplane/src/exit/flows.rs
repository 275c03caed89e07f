//! Flows at the exit and the sockets they share (SPEC 3.10, RFC 4787).
//!
//! Flows of one channel with one `map` share one unconnected socket per address family, so that a
//! client keeps one port towards all its peers. What comes back is matched by socket and source; what
//! no flow talks to is filtered. A flow is known by its token, whatever channel it is on.
//!
//! What all channels share, flows, sockets and questions to the resolver, goes by one rule: a channel gets one more
//! only while more of them are free than it has. So k greedy channels leave a part in k + 1 to the others.

use std::net::{IpAddr, SocketAddr};

use hashbrown::HashMap;
use wire::frames::Token;
use wire::ids::ChannelIndex;

use super::limits::Usage;
use crate::Nanos;
use crate::SECOND;
use crate::ledger::DropReason;
use crate::rate::{Bucket, Rate};
use crate::socket::app_batch::SocketId;
use crate::socket::apps::Apps;
use crate::wheel::Wheel;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Flows of one channel.
    pub flows_per_channel: usize,
    /// Sockets in all.
    pub sockets: usize,
}

/// Flows of an exit, unless it may have more sockets than that.
pub const FLOWS_MAX: usize = 1 << 16;
/// Datagrams that wait for a flow's name to resolve.
pub const WAITING_PER_FLOW: usize = 16;
/// Datagrams that wait for names, over all flows.
pub const WAITING_MAX: usize = 1024;
/// Names that are being resolved.
pub const QUESTIONS_MAX: usize = 256;
/// OPENs of new flows that a channel may send at once, and a second.
const OPENS: Rate = Rate::new(64, 64);

/// The number of no question.
const NO_QUERY: u32 = u32::MAX;

/// How long datagrams under way still find a flow that has moved.
const MOVED: Nanos = 5 * SECOND;

/// Where a flow sends.
pub enum Target {
    /// From this socket to this peer.
    Peer {
        /// The socket.
        socket: SocketId,
        /// The peer.
        to: SocketAddr,
    },
    /// Its name is being resolved.
    Resolving {
        /// The question's number.
        query: u32,
        /// The port.
        port: u16,
        /// Datagrams that came meanwhile.
        waiting: Vec<Vec<u8>>,
    },
}

/// A flow.
pub struct Flow {
    /// Its channel.
    pub channel: ChannelIndex,
    /// Its number there.
    pub number: u16,
    /// Where it sends.
    pub target: Target,
    /// Its destination was a name, so the entry has to be told the address.
    pub named: bool,
    /// What it has used of its limits; nothing if it has none.
    pub usage: Option<Usage>,
    token: Token,
    mapping: u32,
    seen: Nanos,
    next_id: u16,
    /// The place it has left last, for datagrams that were under way.
    was: Option<(ChannelIndex, u16)>,
    /// When its peer was last reported unreachable.
    reported: Nanos,
}

impl Flow {
    /// A fresh fragment id.
    pub fn next_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Whether an unreachable peer may be reported now: once a second.
    pub fn may_report(&mut self, now: Nanos) -> bool {
        let may = now >= self.reported + SECOND;
        if may {
            self.reported = now;
        }
        may
    }
}

/// The sockets of one client.
struct Mapping {
    key: (ChannelIndex, u16),
    v4: Option<Held>,
    v6: Option<Held>,
    flows: Vec<u32>,
}

/// A socket, and the channel that opened it, as long as that lives: moving a flow gives nobody room for another.
#[derive(Clone, Copy)]
struct Held {
    socket: SocketId,
    opener: Option<ChannelIndex>,
}

/// A name that is being resolved: for which flow and channel, while those live.
struct Question {
    flow: Option<u32>,
    channel: Option<ChannelIndex>,
}

/// What a channel has of that which all share.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    flows: usize,
    sockets: usize,
    questions: usize,
}

/// A channel's token bucket for new flows: a socket or a question costs the exit more than a cell.
#[derive(Default)]
pub struct Opens(Bucket);

impl Opens {
    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Nanos) -> bool {
        self.0.take(OPENS, now)
    }
}

/// Which flow was at a place, until when that is remembered.
struct Alias {
    flow: u32,
    until: Nanos,
}

/// All flows of an exit.
pub struct Flows {
    caps: Caps,
    idle: Nanos,
    flows: Vec<Option<Flow>>,
    vacant: Vec<u32>,
    by_number: Map<(ChannelIndex, u16), u32>,
    by_token: Map<Token, u32>,
    by_peer: Map<(SocketId, SocketAddr), u32>,
    by_socket: Map<SocketId, u32>,
    shares: Map<ChannelIndex, Share>,
    mappings: Vec<Option<Mapping>>,
    vacant_mappings: Vec<u32>,
    by_map: Map<(ChannelIndex, u16), u32>,
    /// Places that flows have left: at most one a flow.
    aliases: Map<(ChannelIndex, u16), Alias>,
    queries: Map<u32, Question>,
    next_query: u32,
    /// Datagrams that wait for names.
    waiting: usize,
    sockets: usize,
    wheel: Wheel,
    due: Vec<u32>,
}

impl Flows {
    /// None yet.
    pub fn new(caps: Caps, idle: std::time::Duration, now: Nanos) -> Flows {
        Flows {
            caps,
            idle: idle.as_nanos() as Nanos,
            flows: Vec::new(),
            vacant: Vec::new(),
            by_number: Map::default(),
            by_token: Map::default(),
            by_peer: Map::default(),
            by_socket: Map::default(),
            shares: Map::default(),
            mappings: Vec::new(),
            vacant_mappings: Vec::new(),
            by_map: Map::default(),
            aliases: Map::default(),
            queries: Map::default(),
            next_query: 0,
            waiting: 0,
            sockets: 0,
            wheel: Wheel::new(now / SECOND),
            due: Vec::new(),
        }
    }

    /// Flows now.
    pub fn len(&self) -> usize {
        self.by_number.len()
    }

    /// Sockets now.
    pub fn sockets(&self) -> usize {
        self.sockets
    }

    /// Datagrams that wait for names.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Keeps a datagram until the flow's name has resolved.
    ///
    /// # Errors
    /// There is no room.
    pub fn wait(&mut self, id: u32, data: &[u8]) -> Result<(), DropReason> {
        let full = self.waiting >= WAITING_MAX;
        match self.flows[id as usize].as_mut().map(|flow| &mut flow.target) {
            Some(Target::Resolving { waiting, .. }) if waiting.len() < WAITING_PER_FLOW => {
                if full {
                    return Err(DropReason::NameQueueFull);
                }
                waiting.push(data.to_vec());
                self.waiting += 1;
                Ok(())
            }
            _ => Err(DropReason::FlowQueueFull),
        }
    }

    /// Takes what waits for a question's answer: the flow, its port, its datagrams.
    pub fn answered(&mut self, query: u32) -> Option<(u32, u16, Vec<Vec<u8>>)> {
        let question = self.queries.remove(&query)?;
        if let Some(channel) = question.channel {
            self.give_back(channel, Share { questions: 1, ..Share::default() });
        }
        let id = question.flow?;
        let flow = self.flows[id as usize].as_mut()?;
        let Target::Resolving { port, waiting, .. } = &mut flow.target else { return None };
        let taken = std::mem::take(waiting);
        self.waiting -= taken.len();
        Some((id, *port, taken))
    }

    /// The channel and number of a flow.
    pub fn place(&self, id: u32) -> Option<(ChannelIndex, u16)> {
        self.flows[id as usize].as_ref().map(|flow| (flow.channel, flow.number))
    }

    /// The flow with this number on a channel.
    pub fn at(&mut self, channel: ChannelIndex, number: u16) -> Option<(u32, &mut Flow)> {
        let id = *self.by_number.get(&(channel, number))?;
        Some((id, self.flows[id as usize].as_mut()?))
    }

    /// The flow with this number on a channel, or that had it until a moment ago.
    pub fn at_or_was(&mut self, channel: ChannelIndex, number: u16) -> Option<(u32, &mut Flow)> {
        let id = match self.by_number.get(&(channel, number)) {
            Some(id) => *id,
            None => self.aliases.get(&(channel, number))?.flow,
        };
        Some((id, self.flows[id as usize].as_mut()?))
    }

    /// Forgets places that flows have left long ago.
    pub fn forget_aliases(&mut self, now: Nanos) {
        self.aliases.retain(|_, alias| alias.until > now);
    }

    /// The flow whose peer this is.
    pub fn talking_to(&mut self, socket: SocketId, from: SocketAddr) -> Option<&mut Flow> {
        let id = *self.by_peer.get(&(socket, from))?;
        self.flows[id as usize].as_mut()
    }

    /// A flow of the client that has this socket.
    pub fn of_client(&mut self, socket: SocketId) -> Option<&mut Flow> {
        let mapping = *self.by_socket.get(&socket)?;
        let id = *self.mappings[mapping as usize].as_ref()?.flows.last()?;
        self.flows[id as usize].as_mut()
    }

    /// What flows with limits have used, and to which address.
    pub fn usages(&self) -> impl Iterator<Item = (&Usage, IpAddr)> {
        self.flows.iter().flatten().filter_map(|flow| match (&flow.usage, &flow.target) {
            (Some(usage), Target::Peer { to, .. }) => Some((usage, to.ip())),
            _ => None,
        })
    }

    /// A datagram went out on it.
    pub fn touch(&mut self, id: u32, now: Nanos) {
        if let Some(flow) = self.flows[id as usize].as_mut() {
            flow.seen = now;
        }
    }

    /// Whether the flow with this number has this token: OPEN is idempotent.
    pub fn is_same(&mut self, channel: ChannelIndex, number: u16, token: &Token) -> bool {
        self.at(channel, number).is_some_and(|(_, flow)| flow.token == *token)
    }

    /// Brings a flow here.
    ///
    /// # Errors
    /// Nothing is known of the token ([`DropReason::Flow`]), or there is no room here.
    pub fn relocate(
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
            // An entry does not reuse a number that is in use; whoever does keeps what it has.
            return Err(DropReason::NumberTaken);
        }
        if old.0 != channel && self.share(channel).flows >= self.caps.flows_per_channel {
            return Err(DropReason::ChannelFlowsFull);
        }
        self.shares.entry(channel).or_default().flows += 1;
        let flow = self.flows[id as usize].as_mut().expect("the index lists live flows");
        (flow.channel, flow.number) = (channel, number);
        let mapping_id = flow.mapping;
        let before = flow.was.replace(old);
        if let Some(before) = before {
            self.aliases.remove(&before);
        }
        self.by_number.remove(&old);
        self.take_place((channel, number), id);
        self.aliases.insert(old, Alias { flow: id, until: now + MOVED });
        self.give_back(old.0, Share { flows: 1, ..Share::default() });
        let mapping = self.mappings[mapping_id as usize].as_mut().expect("a flow has a live mapping");
        let key = (channel, mapping.key.1);
        if mapping.key != key && !self.by_map.contains_key(&key) {
            self.by_map.remove(&mapping.key);
            mapping.key = key;
            self.by_map.insert(key, mapping_id);
        }
        Ok(())
    }

    /// A flow is at a place now; whoever was there before is no longer found there.
    fn take_place(&mut self, place: (ChannelIndex, u16), id: u32) {
        self.by_number.insert(place, id);
        if let Some(alias) = self.aliases.remove(&place)
            && let Some(flow) = self.flows[alias.flow as usize].as_mut()
        {
            flow.was = None;
        }
    }

    fn share(&self, channel: ChannelIndex) -> Share {
        self.shares.get(&channel).copied().unwrap_or_default()
    }

    fn give_back(&mut self, channel: ChannelIndex, less: Share) {
        if let Some(share) = self.shares.get_mut(&channel) {
            share.flows -= less.flows;
            share.sockets -= less.sockets;
            share.questions -= less.questions;
            if *share == Share::default() {
                self.shares.remove(&channel);
            }
        }
    }

    /// Adds a flow without a target. Its number must be free.
    ///
    /// # Errors
    /// The channel or the exit has its fill.
    fn add(
        &mut self,
        channel: ChannelIndex,
        number: u16,
        map: u16,
        token: Token,
        target: Target,
        now: Nanos,
    ) -> Result<u32, DropReason> {
        let mine = self.share(channel).flows;
        if mine >= self.caps.flows_per_channel {
            return Err(DropReason::ChannelFlowsFull);
        }
        if mine >= self.caps.sockets.max(FLOWS_MAX) - self.len() {
            return Err(DropReason::FlowsFull);
        }
        self.shares.entry(channel).or_default().flows += 1;
        let mapping = match self.by_map.get(&(channel, map)) {
            Some(mapping) => *mapping,
            None => {
                let id = self.vacant_mappings.pop().unwrap_or_else(|| {
                    self.mappings.push(None);
                    self.mappings.len() as u32 - 1
                });
                self.mappings[id as usize] =
                    Some(Mapping { key: (channel, map), v4: None, v6: None, flows: Vec::new() });
                self.by_map.insert((channel, map), id);
                id
            }
        };
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() as u32 - 1
        });
        self.mappings[mapping as usize].as_mut().expect("just looked up").flows.push(id);
        self.flows[id as usize] = Some(Flow {
            channel,
            number,
            named: matches!(target, Target::Resolving { query, .. } if query != NO_QUERY),
            usage: Some(Usage::default()),
            target,
            token,
            mapping,
            seen: now,
            next_id: 0,
            was: None,
            reported: 0,
        });
        self.take_place((channel, number), id);
        self.by_token.insert(token, id);
        self.wheel.arm(id, (now + self.idle) / SECOND + 1);
        Ok(id)
    }

    /// Opens a flow to an address that the policy admits.
    ///
    /// # Errors
    /// Flows or sockets are short.
    pub fn open(
        &mut self,
        apps: &mut impl Apps,
        (channel, number): (ChannelIndex, u16),
        map: u16,
        token: Token,
        to: SocketAddr,
        now: Nanos,
    ) -> Result<(), DropReason> {
        // Until it has a socket, the flow has no target worth sending to.
        let placeholder = Target::Resolving { query: NO_QUERY, port: to.port(), waiting: Vec::new() };
        let id = self.add(channel, number, map, token, placeholder, now)?;
        self.connect(apps, id, to).inspect_err(|_| {
            self.close(apps, id);
        })
    }

    /// Opens a flow whose name must be resolved; returns the question's number.
    ///
    /// # Errors
    /// Flows or questions are short.
    pub fn open_name(
        &mut self,
        (channel, number): (ChannelIndex, u16),
        map: u16,
        token: Token,
        port: u16,
        now: Nanos,
    ) -> Result<u32, DropReason> {
        if self.share(channel).questions >= QUESTIONS_MAX - self.queries.len() {
            return Err(DropReason::NamesFull);
        }
        let query = self.next_query;
        self.next_query = (query + 1) % NO_QUERY;
        let target = Target::Resolving { query, port, waiting: Vec::new() };
        let id = self.add(channel, number, map, token, target, now)?;
        self.queries.insert(query, Question { flow: Some(id), channel: Some(channel) });
        self.shares.entry(channel).or_default().questions += 1;
        Ok(query)
    }

    /// Gives a flow its peer, over its client's socket.
    ///
    /// # Errors
    /// Sockets are short.
    pub fn connect(&mut self, apps: &mut impl Apps, id: u32, to: SocketAddr) -> Result<(), DropReason> {
        let flow = self.flows[id as usize].as_mut().expect("a live flow");
        let mapping = self.mappings[flow.mapping as usize].as_mut().expect("a flow has a live mapping");
        let place = if to.is_ipv6() { &mut mapping.v6 } else { &mut mapping.v4 };
        let socket = match *place {
            Some(held) => held.socket,
            None => {
                let share = self.shares.entry(flow.channel).or_default();
                if share.sockets >= self.caps.sockets - self.sockets {
                    return Err(DropReason::SocketsFull);
                }
                let socket = apps.open(to.is_ipv6()).map_err(|_| DropReason::NoSocket)?;
                share.sockets += 1;
                self.sockets += 1;
                *place = Some(Held { socket, opener: Some(flow.channel) });
                self.by_socket.insert(socket, flow.mapping);
                socket
            }
        };
        // Two flows of a client to one peer (an address and its name): answers go to the newer.
        flow.target = Target::Peer { socket, to };
        self.by_peer.insert((socket, to), id);
        Ok(())
    }

    /// Ends a flow, and its socket with the last flow of its client. Returns datagrams that waited.
    pub fn close(&mut self, apps: &mut impl Apps, id: u32) -> usize {
        let Some(flow) = self.flows[id as usize].take() else { return 0 };
        self.vacant.push(id);
        self.by_number.remove(&(flow.channel, flow.number));
        self.by_token.remove(&flow.token);
        if let Some(was) = flow.was {
            self.aliases.remove(&was);
        }
        self.give_back(flow.channel, Share { flows: 1, ..Share::default() });
        let waited = match flow.target {
            Target::Peer { socket, to } => {
                if self.by_peer.get(&(socket, to)) == Some(&id) {
                    self.by_peer.remove(&(socket, to));
                }
                0
            }
            Target::Resolving { query, waiting, .. } => {
                // The resolver is at it still, and its answer will come.
                if let Some(question) = self.queries.get_mut(&query) {
                    question.flow = None;
                }
                self.waiting -= waiting.len();
                waiting.len()
            }
        };
        let mapping = self.mappings[flow.mapping as usize].as_mut().expect("a flow has a live mapping");
        mapping.flows.retain(|of| *of != id);
        if mapping.flows.is_empty() {
            let mapping = self.mappings[flow.mapping as usize].take().expect("just looked at");
            self.vacant_mappings.push(flow.mapping);
            if self.by_map.get(&mapping.key) == Some(&flow.mapping) {
                self.by_map.remove(&mapping.key);
            }
            for Held { socket, opener } in [mapping.v4, mapping.v6].into_iter().flatten() {
                apps.close(socket);
                self.by_socket.remove(&socket);
                self.sockets -= 1;
                if let Some(opener) = opener {
                    self.give_back(opener, Share { sockets: 1, ..Share::default() });
                }
            }
        }
        waited
    }

    /// Ends the flow with this number; returns datagrams that waited.
    pub fn close_number(&mut self, apps: &mut impl Apps, channel: ChannelIndex, number: u16) -> usize {
        match self.by_number.get(&(channel, number)) {
            Some(&id) => self.close(apps, id),
            None => 0,
        }
    }

    /// Ends all flows of a channel; returns datagrams that waited.
    pub fn close_channel(&mut self, apps: &mut impl Apps, channel: ChannelIndex) -> usize {
        // Its index is given out again: nothing that is left may be found under it. A client whose flows
        // have moved on keeps its socket; flows that it opens from here on get another.
        self.by_map.retain(|(of, _), _| *of != channel);
        self.aliases.retain(|(of, _), _| *of != channel);
        if !self.shares.contains_key(&channel) {
            return 0;
        }
        let ids: Vec<u32> = self.by_number.iter().filter(|((of, _), _)| *of == channel).map(|(_, id)| *id).collect();
        let waited = ids.into_iter().map(|id| self.close(apps, id)).sum();
        if self.shares.remove(&channel).is_some() {
            let mappings = self.mappings.iter_mut().flatten();
            let held = mappings.flat_map(|mapping| [&mut mapping.v4, &mut mapping.v6]).flatten();
            let openers = held.map(|held| &mut held.opener);
            let askers = self.queries.values_mut().map(|question| &mut question.channel);
            openers.chain(askers).for_each(|of| {
                of.take_if(|of| *of == channel);
            });
        }
        waited
    }

    /// Ends idle flows, calling `closed` for each; returns datagrams that waited.
    pub fn expire(&mut self, apps: &mut impl Apps, now: Nanos, mut closed: impl FnMut(ChannelIndex, u16)) -> usize {
        self.wheel.advance(now / SECOND, &mut self.due);
        let mut waited = 0;
        for id in std::mem::take(&mut self.due) {
            let Some(flow) = self.flows[id as usize].as_ref() else { continue };
            if flow.seen + self.idle > now {
                self.wheel.arm(id, (flow.seen + self.idle) / SECOND + 1);
            } else {
                closed(flow.channel, flow.number);
                waited += self.close(apps, id);
            }
        }
        waited
    }
}

#[cfg(test)]
mod tests;
