//! Clients, their flows, and the channels they are bound to (SPEC 5.5).
//!
//! A client is a local source address at one listener. It is bound to the least loaded channel at its
//! first datagram and stays there; all its flows share one `map`, so that the exit gives it one port.
//! A map number is unique over all channels of the entry: MOVE carries a flow and its socket elsewhere
//! without collision.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use hashbrown::HashMap;
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use wire::frames::{Frame, SESSION_FLOW, Status, Token};
use wire::ids::ChannelIndex;

use super::Destination;
use crate::ledger::DropReason;
use crate::socket::app_batch::{FlowId, SocketId};
use crate::wheel::Wheel;
use crate::{Nanos, SECOND};

/// Most clients: one map number each.
pub(crate) const CLIENTS_MAX: usize = 1 << 16;
pub(crate) const FLOWS_MAX: usize = 1 << 17;
/// A refused flow is retried after this long.
const RETRY: Nanos = 5 * SECOND;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Names a client: the place of its record, and its map number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ClientId(u32);

impl ClientId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// The state of a flow at the exit, as far as the entry knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowState {
    /// OPEN goes in front of every datagram.
    Opening,
    /// MOVE goes in front of every datagram.
    Moving,
    /// STATUS 0 has arrived.
    Open,
    /// The exit has refused the flow.
    Refused {
        reason: DropReason,
        /// The next datagram after this time sends OPEN again.
        until: Nanos,
    },
}

/// One flow of a client.
pub(crate) struct Flow {
    client: ClientId,
    destination: Destination,
    /// Identifies the flow at the exit, on any channel.
    pub token: Token,
    pub channel: ChannelIndex,
    pub number: u16,
    pub map: u16,
    pub state: FlowState,
    /// The exit has confirmed its OPEN, so it knows the token.
    known: bool,
    /// All its places: answers may still come to those it has left.
    places: Vec<(ChannelIndex, u16)>,
    next_id: u16,
    seen: Nanos,
    /// The address of its destination's name that the exit sends to.
    peer: Option<SocketAddr>,
    /// The cell that carried this address, if it came to the flow's present place.
    peer_seq: Option<u64>,
}

impl Flow {
    /// The exit does not have the flow: what it resolved the name to, it will say again.
    fn forget_answer(&mut self) {
        self.known = false;
        (self.peer, self.peer_seq) = (None, None);
    }
}

/// The destination of an answer, and its sender.
pub(crate) struct Reply<'a> {
    pub socket: SocketId,
    pub to: SocketAddr,
    pub flow: FlowId,
    /// The sender: the flow's destination, or the address of its name.
    pub peer: Cow<'a, Destination>,
}

/// The client and destination of a refused flow.
pub(crate) struct RefusedFlow<'a> {
    pub socket: SocketId,
    pub address: SocketAddr,
    pub destination: &'a Destination,
}

impl Flow {
    /// A fresh fragment id.
    pub(crate) fn next_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Its OPEN.
    pub(crate) fn open(&self) -> Frame<'_> {
        Frame::Open { flow: self.number, map: self.map, token: self.token, to: self.destination.address() }
    }
}

struct Client {
    socket: SocketId,
    address: SocketAddr,
    /// Its flows are closed when they have sent nothing for this long.
    idle: Nanos,
    channel: Option<ChannelIndex>,
    flows: Vec<FlowId>,
}

struct Channel {
    clients: usize,
    next_number: u16,
    /// Flows have numbers up to this one.
    last_number: u16,
    flows: Map<u16, FlowId>,
}

/// All clients and flows of an entry.
pub(crate) struct Clients {
    clients: Vec<Option<Client>>,
    vacant_clients: VecDeque<ClientId>,
    by_address: Map<(SocketId, SocketAddr), ClientId>,
    flows: Vec<Option<Flow>>,
    vacant_flows: Vec<FlowId>,
    by_destination: Map<(ClientId, Destination), FlowId>,
    channels: Map<ChannelIndex, Channel>,
    wheel: Wheel,
    due: Vec<u32>,
    /// No flow is added.
    refuses_new: bool,
}

impl Clients {
    pub(crate) fn new(now: Nanos) -> Clients {
        Clients {
            clients: Vec::new(),
            vacant_clients: VecDeque::new(),
            by_address: Map::default(),
            flows: Vec::new(),
            vacant_flows: Vec::new(),
            by_destination: Map::default(),
            channels: Map::default(),
            wheel: Wheel::new(now / SECOND),
            due: Vec::new(),
            refuses_new: false,
        }
    }

    /// Refuses flows that are not there yet, or takes them again.
    pub(crate) fn refuse_new(&mut self, refuses: bool) {
        self.refuses_new = refuses;
    }

    pub(crate) fn len(&self) -> usize {
        self.by_address.len()
    }

    pub(crate) fn flows(&self) -> usize {
        self.by_destination.len()
    }

    /// The ids of all places of clients.
    fn ids(&self) -> impl Iterator<Item = ClientId> + use<> {
        (0..self.clients.len() as u32).map(ClientId)
    }

    /// A channel can be used.
    pub(crate) fn channel_up(&mut self, channel: ChannelIndex) {
        self.channels.insert(channel, Channel::with_numbers_to(u16::MAX));
    }

    /// A session can be used, under the name of a channel that never ends. Its flows belong to it whatever becomes of
    /// channels, and none has the number of [`SESSION_FLOW`].
    pub(crate) fn session_up(&mut self, session: ChannelIndex) {
        self.channels.insert(session, Channel::with_numbers_to(SESSION_FLOW - 1));
    }

    /// The session gets another name, while it has no flow: numbers begin again, as at the start.
    pub(crate) fn session_renewed(&mut self, session: ChannelIndex) {
        debug_assert_eq!(self.flows(), 0, "its flows would be linked with the next ones");
        self.channel_down(session);
        self.session_up(session);
        if self.by_address.is_empty() {
            self.clients.clear();
            self.vacant_clients.clear();
        }
    }

    /// The exit has forgotten the session and all its flows: OPEN goes in front of their datagrams again.
    pub(crate) fn session_forgotten(&mut self) {
        for flow in self.flows.iter_mut().flatten() {
            flow.forget_answer();
            if flow.state == FlowState::Open {
                flow.state = FlowState::Opening;
            }
        }
    }

    /// The flow with this number.
    pub(crate) fn flow_at(&self, channel: ChannelIndex, number: u16) -> Option<&Flow> {
        let id = *self.channels.get(&channel)?.flows.get(&number)?;
        self.flows[id.index()].as_ref()
    }

    /// A channel is gone; its clients are bound again at their next datagram.
    pub(crate) fn channel_down(&mut self, channel: ChannelIndex) {
        self.channels.remove(&channel);
        for client in self.clients.iter_mut().flatten().filter(|client| client.channel == Some(channel)) {
            client.channel = None;
        }
    }

    /// A channel's clients are to move to another. Answers still under way on the old one are delivered.
    pub(crate) fn supersede(&mut self, old: ChannelIndex, new: ChannelIndex) {
        let movers: Vec<ClientId> = self
            .ids()
            .filter(|id| self.clients[id.index()].as_ref().is_some_and(|client| client.channel == Some(old)))
            .collect();
        if !self.channels.contains_key(&new) {
            return;
        }
        for client in movers {
            self.bind(client, new);
            self.forget_if_idle(client);
        }
        // Nobody new is bound to what is about to end.
        if let Some(channel) = self.channels.get_mut(&old) {
            channel.clients = usize::MAX / 2;
        }
    }

    fn bind(&mut self, client: ClientId, channel: ChannelIndex) {
        let Some(Some(record)) = self.clients.get_mut(client.index()) else { return };
        if let Some(old) = record.channel.replace(channel).and_then(|old| self.channels.get_mut(&old)) {
            old.clients = old.clients.saturating_sub(1);
        }
        let target = self.channels.get_mut(&channel).expect("bound to a channel that is up");
        target.clients += 1;
        let mut lost = Vec::new();
        for &id in &record.flows {
            let flow = self.flows[id.index()].as_mut().expect("a client lists live flows");
            let Some(number) = target.number(id) else {
                lost.push(id);
                continue;
            };
            flow.channel = channel;
            flow.number = number;
            flow.peer_seq = None;
            flow.places.retain(|(of, _)| *of != channel);
            flow.places.push((channel, number));
            if !matches!(flow.state, FlowState::Refused { .. }) {
                flow.state = if flow.known { FlowState::Moving } else { FlowState::Opening };
            }
        }
        // No number is left there, and where they were nothing may be sent: their next datagram starts over.
        if !lost.is_empty() {
            lost.into_iter().for_each(|id| drop(self.remove(id)));
            let flows = &self.flows;
            flows_of(&mut self.clients, client).retain(|id| flows[id.index()].is_some());
        }
    }

    /// Removes a flow from all lists but its client's.
    fn remove(&mut self, id: FlowId) -> Flow {
        let flow = self.flows[id.index()].take().expect("a live flow");
        self.vacant_flows.push(id);
        self.by_destination.remove(&(flow.client, flow.destination.clone()));
        for (channel, number) in &flow.places {
            if let Some(channel) = self.channels.get_mut(channel)
                && channel.flows.get(number) == Some(&id)
            {
                channel.flows.remove(number);
            }
        }
        flow
    }

    /// Forgets a client that has no flow.
    fn forget_if_idle(&mut self, id: ClientId) {
        if let Some(gone) = self.clients[id.index()].take_if(|client| client.flows.is_empty()) {
            self.by_address.remove(&(gone.socket, gone.address));
            self.vacant_clients.push_back(id);
            if let Some(channel) = gone.channel.and_then(|channel| self.channels.get_mut(&channel)) {
                channel.clients = channel.clients.saturating_sub(1);
            }
        }
    }

    /// The client at an address, new or known, bound to a channel; none if no channel is up.
    ///
    /// # Errors
    /// The table is full.
    pub(crate) fn client(
        &mut self,
        socket: SocketId,
        address: SocketAddr,
        idle: Duration,
    ) -> Result<Option<ClientId>, DropReason> {
        let client = match self.by_address.get(&(socket, address)) {
            Some(client) => *client,
            None if self.channels.is_empty() => return Ok(None),
            None => {
                let idle = idle.as_nanos() as Nanos;
                let fresh = Client { socket, address, idle, channel: None, flows: Vec::new() };
                // The longest vacant first: a map is not given out again while the exit may still have
                // the socket of the one before.
                let id = if self.clients.len() < CLIENTS_MAX && self.vacant_clients.len() < 1024 {
                    self.clients.push(None);
                    ClientId(self.clients.len() as u32 - 1)
                } else {
                    self.vacant_clients.pop_front().ok_or(DropReason::ClientsFull)?
                };
                self.clients[id.index()] = Some(fresh);
                self.by_address.insert((socket, address), id);
                id
            }
        };
        if self.clients[client.index()].as_ref().is_some_and(|c| c.channel.is_none()) {
            let least = self.channels.iter().min_by_key(|(id, channel)| (channel.clients, **id));
            let Some((&channel, _)) = least else { return Ok(None) };
            self.bind(client, channel);
        }
        Ok(Some(client))
    }

    /// The flow of a client to a destination, new or known.
    ///
    /// # Errors
    /// The table is full, or new flows are refused. A client that is left without a flow is forgotten.
    pub(crate) fn flow(
        &mut self,
        client: ClientId,
        destination: &Destination,
        now: Nanos,
        rng: &mut ChaCha20Rng,
    ) -> Result<&mut Flow, DropReason> {
        let key = (client, destination.clone());
        let id = match self.by_destination.get(&key) {
            Some(id) => *id,
            None => {
                let refused = match self.flows() {
                    _ if self.refuses_new => Some(DropReason::Alarm),
                    FLOWS_MAX.. => Some(DropReason::FlowsFull),
                    _ => None,
                };
                if let Some(reason) = refused {
                    self.forget_if_idle(client);
                    return Err(reason);
                }
                let id = self.vacant_flows.pop().unwrap_or_else(|| {
                    self.flows.push(None);
                    FlowId(self.flows.len() as u32 - 1)
                });
                let record = self.clients[client.index()].as_mut().expect("a live client");
                let channel = record.channel.expect("bound");
                let number = self.channels.get_mut(&channel).expect("bound to a channel that is up").number(id);
                let Some(number) = number else {
                    self.vacant_flows.push(id);
                    self.forget_if_idle(client);
                    return Err(DropReason::NumbersFull);
                };
                let mut token = [0; 16];
                rng.fill_bytes(&mut token);
                let ends = now + record.idle;
                record.flows.push(id);
                self.flows[id.index()] = Some(Flow {
                    client,
                    destination: destination.clone(),
                    token,
                    channel,
                    number,
                    map: client.0 as u16,
                    state: FlowState::Opening,
                    known: false,
                    places: vec![(channel, number)],
                    next_id: 0,
                    seen: now,
                    peer: None,
                    peer_seq: None,
                });
                self.by_destination.insert(key, id);
                self.wheel.arm(id.0, ends / SECOND + 1);
                id
            }
        };
        let flow = self.flows[id.index()].as_mut().expect("the index lists live flows");
        flow.seen = now;
        if let FlowState::Refused { until, .. } = flow.state
            && until <= now
        {
            flow.state = FlowState::Opening;
        }
        Ok(flow)
    }

    fn at(&mut self, channel: ChannelIndex, number: u16) -> Option<(FlowId, &mut Flow)> {
        let id = *self.channels.get(&channel)?.flows.get(&number)?;
        Some((id, self.flows[id.index()].as_mut()?))
    }

    /// The destination of an answer on a flow.
    pub(crate) fn reply_to(&mut self, channel: ChannelIndex, number: u16) -> Option<Reply<'_>> {
        let id = *self.channels.get(&channel)?.flows.get(&number)?;
        let flow = self.flows[id.index()].as_ref()?;
        let client = self.clients[flow.client.index()].as_ref()?;
        let peer = match flow.peer {
            Some(peer) => Cow::Owned(Destination::Ip(peer)),
            None => Cow::Borrowed(&flow.destination),
        };
        Some(Reply { socket: client.socket, to: client.address, flow: id, peer })
    }

    /// A PEER in cell `seq`: the address to which the exit sends a flow to a name (SPEC 3.10.8).
    pub(crate) fn resolved(&mut self, place: (ChannelIndex, u16), seq: u64, peer: SocketAddr) {
        let Some((_, flow)) = self.at(place.0, place.1) else { return };
        if matches!(flow.destination, Destination::Ip(_)) {
            return;
        }

        if (flow.channel, flow.number) != place {
            // Numbers of two channels have no order: what a place says that the flow has left is better than nothing.
            flow.peer.get_or_insert(peer);
        } else if flow.peer_seq.is_none_or(|last| seq >= last) {
            (flow.peer, flow.peer_seq) = (Some(peer), Some(seq));
        }
    }

    /// Applies a STATUS of the exit to its flow. Returns the client and destination if the exit refused it.
    pub(crate) fn status(
        &mut self,
        channel: ChannelIndex,
        number: u16,
        code: Status,
        now: Nanos,
    ) -> Option<RefusedFlow<'_>> {
        let id = *self.channels.get(&channel)?.flows.get(&number)?;
        let flow = self.flows[id.index()].as_mut()?;
        if (flow.channel, flow.number) != (channel, number) {
            // About a place that the flow has left.
            return None;
        }
        let is_refused = match code {
            Status::Open => {
                flow.known = true;
                // Without its PEER, which was lost, the next datagram asks for it again.
                if flow.peer.is_some() || matches!(flow.destination, Destination::Ip(_)) {
                    flow.state = FlowState::Open;
                }
                false
            }
            Status::UnknownFlow => {
                flow.forget_answer();
                // It follows a refused OPEN too, for the datagram behind it, and does not lift it.
                if !matches!(flow.state, FlowState::Refused { .. }) {
                    flow.state = FlowState::Opening;
                }
                false
            }
            // A port that is closed now may open: say so, and go on sending.
            Status::Unreachable => true,
            _ => {
                flow.forget_answer();
                flow.state = FlowState::Refused { reason: DropReason::of_status(code), until: now + RETRY };
                true
            }
        };
        let client = self.clients[flow.client.index()].as_ref()?;
        let refused = RefusedFlow { socket: client.socket, address: client.address, destination: &flow.destination };
        is_refused.then_some(refused)
    }

    /// The exit has closed a flow.
    pub(crate) fn closed(&mut self, channel: ChannelIndex, number: u16) {
        if let Some((_, flow)) = self.at(channel, number)
            && (flow.channel, flow.number) == (channel, number)
        {
            flow.forget_answer();
            flow.state = FlowState::Opening;
        }
    }

    /// Removes a flow from all lists but its client's, and calls `close` for it. Returns the client.
    fn end(&mut self, id: FlowId, close: &mut impl FnMut(ChannelIndex, u16)) -> ClientId {
        let flow = self.remove(id);
        if self.channels.contains_key(&flow.channel) {
            close(flow.channel, flow.number);
        }
        flow.client
    }

    /// Forgets the clients of a listening socket and their flows; calls `close` for each flow.
    pub(crate) fn forget(&mut self, socket: SocketId, mut close: impl FnMut(ChannelIndex, u16)) {
        let of_socket = |client: &Client| client.socket == socket;
        let ids = self.ids().filter(|id| self.clients[id.index()].as_ref().is_some_and(of_socket)).collect::<Vec<_>>();
        for id in ids {
            for flow in std::mem::take(flows_of(&mut self.clients, id)) {
                self.end(flow, &mut close);
            }
            self.forget_if_idle(id);
        }
    }

    /// Forgets flows that have been idle, and clients without flows; calls `close` for each flow.
    pub(crate) fn expire(&mut self, now: Nanos, mut close: impl FnMut(ChannelIndex, u16)) {
        self.wheel.advance(now / SECOND, &mut self.due);
        let mut clients = Vec::new();
        for id in std::mem::take(&mut self.due).into_iter().map(FlowId) {
            let Some(flow) = self.flows[id.index()].as_ref() else { continue };
            let client = self.clients[flow.client.index()].as_ref().expect("a flow has a live client");
            let ends = flow.seen + client.idle;
            if ends > now {
                self.wheel.arm(id.0, ends / SECOND + 1);
                continue;
            }
            clients.push(self.end(id, &mut close));
        }
        // A client may have tens of thousands of flows: its list is gone through once.
        clients.sort_unstable();
        clients.dedup();
        for id in clients {
            let flows = &self.flows;
            flows_of(&mut self.clients, id).retain(|flow| flows[flow.index()].is_some());
            self.forget_if_idle(id);
        }
    }
}

/// The list of a client's flows.
fn flows_of(clients: &mut [Option<Client>], id: ClientId) -> &mut Vec<FlowId> {
    &mut clients[id.index()].as_mut().expect("a flow has a live client").flows
}

impl Channel {
    fn with_numbers_to(last_number: u16) -> Channel {
        Channel { clients: 0, next_number: 0, last_number, flows: Map::default() }
    }

    /// A free flow number for flow `id`.
    fn number(&mut self, id: FlowId) -> Option<u16> {
        if self.flows.len() > usize::from(self.last_number) {
            return None;
        }
        loop {
            let number = self.next_number;
            self.next_number = if number == self.last_number { 0 } else { number + 1 };
            if let hashbrown::hash_map::Entry::Vacant(place) = self.flows.entry(number) {
                place.insert(id);
                return Some(number);
            }
        }
    }
}

#[cfg(test)]
mod tests;
