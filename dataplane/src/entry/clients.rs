//! Clients, their flows, and the channels they are bound to (SPEC 5.5).
//!
//! A client is a local source address at one listener. It is bound to the least loaded channel at its
//! first datagram and stays there; all its flows share one `map`, so that the exit gives it one port.
//! A map number is unique over all channels of the entry: MOVE carries a flow and its socket elsewhere
//! without collision.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use hashbrown::HashMap;
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use wire::frames::{Status, Token};

use super::Destination;
use crate::io::apps::SocketId;
use crate::ledger::Drop;
use crate::wheel::Wheel;
use crate::{Nanos, SECOND};

/// Most clients: one map number each.
pub const CLIENTS_MAX: usize = 1 << 16;
/// Most flows.
pub const FLOWS_MAX: usize = 1 << 17;
/// A refused flow is tried again after so long.
const RETRY: Nanos = 5 * SECOND;

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// How far the exit is with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// OPEN goes in front of every datagram.
    Opening,
    /// MOVE goes in front of every datagram.
    Moving,
    /// STATUS 0 has come.
    Open,
    /// The exit said no.
    Refused {
        /// For this.
        reason: Drop,
        /// Then it is asked again.
        until: Nanos,
    },
}

/// One flow of a client.
pub struct Flow {
    client: u32,
    destination: Destination,
    /// Names it for the exit, whatever channel it is on.
    pub token: Token,
    /// Its channel.
    pub channel: u32,
    /// Its number there.
    pub number: u16,
    /// Its client's map.
    pub map: u16,
    /// How far the exit is.
    pub state: FlowState,
    /// Its OPEN was confirmed once, so the exit knows its token.
    known: bool,
    /// All its places: answers may still come to those it has left.
    places: Vec<(u32, u16)>,
    next_id: u16,
    seen: Nanos,
}

impl Flow {
    /// A fresh fragment id.
    pub fn next_id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }
}

struct Client {
    socket: SocketId,
    address: SocketAddr,
    channel: Option<u32>,
    flows: Vec<u32>,
}

#[derive(Default)]
struct Channel {
    clients: usize,
    next_number: u16,
    flows: Map<u16, u32>,
}

/// All clients and flows of an entry.
pub struct Clients {
    idle: Nanos,
    clients: Vec<Option<Client>>,
    vacant_clients: VecDeque<u32>,
    by_address: Map<(SocketId, SocketAddr), u32>,
    flows: Vec<Option<Flow>>,
    vacant_flows: Vec<u32>,
    by_destination: Map<(u32, Destination), u32>,
    channels: Map<u32, Channel>,
    wheel: Wheel,
    due: Vec<u32>,
}

impl Clients {
    /// None yet.
    pub fn new(idle: Duration, now: Nanos) -> Clients {
        Clients {
            idle: idle.as_nanos() as Nanos,
            clients: Vec::new(),
            vacant_clients: VecDeque::new(),
            by_address: Map::default(),
            flows: Vec::new(),
            vacant_flows: Vec::new(),
            by_destination: Map::default(),
            channels: Map::default(),
            wheel: Wheel::new(now / SECOND),
            due: Vec::new(),
        }
    }

    /// Clients now.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Flows now.
    pub fn flows(&self) -> usize {
        self.by_destination.len()
    }

    /// A channel can be used.
    pub fn channel_up(&mut self, channel: u32) {
        self.channels.insert(channel, Channel::default());
    }

    /// A channel is gone; its clients are bound anew at their next datagram.
    pub fn channel_down(&mut self, channel: u32) {
        self.channels.remove(&channel);
        for client in self.clients.iter_mut().flatten().filter(|client| client.channel == Some(channel)) {
            client.channel = None;
        }
    }

    /// A channel's clients are to move to another. Answers still under way on the old one are delivered.
    pub fn supersede(&mut self, old: u32, new: u32) {
        let movers: Vec<u32> = (0..self.clients.len() as u32)
            .filter(|i| self.clients[*i as usize].as_ref().is_some_and(|client| client.channel == Some(old)))
            .collect();
        if !self.channels.contains_key(&new) {
            return;
        }
        for client in movers {
            self.bind(client, new);
        }
        // Nobody new is bound to what is about to end.
        if let Some(channel) = self.channels.get_mut(&old) {
            channel.clients = usize::MAX / 2;
        }
    }

    fn bind(&mut self, client: u32, channel: u32) {
        let Some(Some(record)) = self.clients.get_mut(client as usize) else { return };
        if let Some(old) = record.channel.replace(channel).and_then(|old| self.channels.get_mut(&old)) {
            old.clients = old.clients.saturating_sub(1);
        }
        let target = self.channels.get_mut(&channel).expect("bound to a channel that is up");
        target.clients += 1;
        for &id in &record.flows {
            let flow = self.flows[id as usize].as_mut().expect("a client lists live flows");
            let Some(number) = target.number(id) else { continue };
            flow.channel = channel;
            flow.number = number;
            flow.places.retain(|(of, _)| *of != channel);
            flow.places.push((channel, number));
            if !matches!(flow.state, FlowState::Refused { .. }) {
                flow.state = if flow.known { FlowState::Moving } else { FlowState::Opening };
            }
        }
    }

    /// The client at an address, new or known, bound to a channel; none if no channel is up.
    ///
    /// # Errors
    /// The table is full.
    pub fn client(&mut self, socket: SocketId, address: SocketAddr) -> Result<Option<u32>, Drop> {
        let client = match self.by_address.get(&(socket, address)) {
            Some(client) => *client,
            None if self.channels.is_empty() => return Ok(None),
            None => {
                let fresh = Client { socket, address, channel: None, flows: Vec::new() };
                // The longest vacant first: a map is not given out again while the exit may still have
                // the socket of the one before.
                let id = if self.clients.len() < CLIENTS_MAX && self.vacant_clients.len() < 1024 {
                    self.clients.push(None);
                    self.clients.len() as u32 - 1
                } else {
                    self.vacant_clients.pop_front().ok_or(Drop::TableFull)?
                };
                self.clients[id as usize] = Some(fresh);
                self.by_address.insert((socket, address), id);
                id
            }
        };
        if self.clients[client as usize].as_ref().is_some_and(|c| c.channel.is_none()) {
            let least = self.channels.iter().min_by_key(|(id, channel)| (channel.clients, **id));
            let Some((&channel, _)) = least else { return Ok(None) };
            self.bind(client, channel);
        }
        Ok(Some(client))
    }

    /// The flow of a client to a destination, new or known.
    ///
    /// # Errors
    /// The table is full, or the flow was refused a moment ago.
    pub fn flow(
        &mut self,
        client: u32,
        destination: &Destination,
        now: Nanos,
        rng: &mut ChaCha20Rng,
    ) -> Result<&mut Flow, Drop> {
        let key = (client, destination.clone());
        let id = match self.by_destination.get(&key) {
            Some(id) => *id,
            None => {
                if self.flows() >= FLOWS_MAX {
                    return Err(Drop::TableFull);
                }
                let id = self.vacant_flows.pop().unwrap_or_else(|| {
                    self.flows.push(None);
                    self.flows.len() as u32 - 1
                });
                let record = self.clients[client as usize].as_mut().expect("a live client");
                let channel = record.channel.expect("bound");
                let number = self.channels.get_mut(&channel).expect("bound to a channel that is up").number(id);
                let Some(number) = number else {
                    self.vacant_flows.push(id);
                    return Err(Drop::TableFull);
                };
                let mut token = [0; 16];
                rng.fill_bytes(&mut token);
                record.flows.push(id);
                self.flows[id as usize] = Some(Flow {
                    client,
                    destination: destination.clone(),
                    token,
                    channel,
                    number,
                    map: client as u16,
                    state: FlowState::Opening,
                    known: false,
                    places: vec![(channel, number)],
                    next_id: 0,
                    seen: now,
                });
                self.by_destination.insert(key, id);
                self.wheel.arm(id, (now + self.idle) / SECOND + 1);
                id
            }
        };
        let flow = self.flows[id as usize].as_mut().expect("the index lists live flows");
        flow.seen = now;
        if let FlowState::Refused { until, .. } = flow.state
            && until <= now
        {
            flow.state = FlowState::Opening;
        }
        Ok(flow)
    }

    fn at(&mut self, channel: u32, number: u16) -> Option<(u32, &mut Flow)> {
        let id = *self.channels.get(&channel)?.flows.get(&number)?;
        Some((id, self.flows[id as usize].as_mut()?))
    }

    /// Where an answer on a flow goes: socket, address, and the flow's own id.
    pub fn reply_to(&mut self, channel: u32, number: u16) -> Option<(SocketId, SocketAddr, u32)> {
        let (id, flow) = self.at(channel, number)?;
        let client = flow.client;
        let client = self.clients[client as usize].as_ref()?;
        Some((client.socket, client.address, id))
    }

    /// The exit's word on a flow; its destination if that is a refusal.
    pub fn status(&mut self, channel: u32, number: u16, code: Status, now: Nanos) -> Option<&Destination> {
        let (_, flow) = self.at(channel, number)?;
        if (flow.channel, flow.number) != (channel, number) {
            // About a place that the flow has left.
            return None;
        }
        match code {
            Status::Open => {
                flow.known = true;
                flow.state = FlowState::Open;
                None
            }
            Status::UnknownFlow => {
                flow.known = false;
                // It follows a refused OPEN too, for the datagram behind it, and does not lift it.
                if !matches!(flow.state, FlowState::Refused { .. }) {
                    flow.state = FlowState::Opening;
                }
                None
            }
            // A port that is closed now may open: say so, and go on sending.
            Status::Unreachable => Some(&flow.destination),
            _ => {
                flow.known = false;
                flow.state = FlowState::Refused { reason: Drop::of_status(code), until: now + RETRY };
                Some(&flow.destination)
            }
        }
    }

    /// The exit has closed a flow.
    pub fn closed(&mut self, channel: u32, number: u16) {
        if let Some((_, flow)) = self.at(channel, number)
            && (flow.channel, flow.number) == (channel, number)
        {
            flow.known = false;
            flow.state = FlowState::Opening;
        }
    }

    /// Forgets flows that have been idle, and clients without flows; calls `close` for each flow.
    pub fn expire(&mut self, now: Nanos, mut close: impl FnMut(u32, u16)) {
        self.wheel.advance(now / SECOND, &mut self.due);
        for id in std::mem::take(&mut self.due) {
            let Some(flow) = self.flows[id as usize].as_ref() else { continue };
            if flow.seen + self.idle > now {
                self.wheel.arm(id, (flow.seen + self.idle) / SECOND + 1);
                continue;
            }
            let flow = self.flows[id as usize].take().expect("just looked at");
            self.vacant_flows.push(id);
            self.by_destination.remove(&(flow.client, flow.destination));
            for (channel, number) in &flow.places {
                if let Some(channel) = self.channels.get_mut(channel)
                    && channel.flows.get(number) == Some(&id)
                {
                    channel.flows.remove(number);
                }
            }
            if self.channels.contains_key(&flow.channel) {
                close(flow.channel, flow.number);
            }
            let client = self.clients[flow.client as usize].as_mut().expect("a flow has a live client");
            client.flows.retain(|other| *other != id);
            if client.flows.is_empty() {
                let gone = self.clients[flow.client as usize].take().expect("just looked at");
                self.by_address.remove(&(gone.socket, gone.address));
                self.vacant_clients.push_back(flow.client);
                if let Some(channel) = gone.channel.and_then(|channel| self.channels.get_mut(&channel)) {
                    channel.clients = channel.clients.saturating_sub(1);
                }
            }
        }
    }
}

impl Channel {
    /// A free flow number for flow `id`.
    fn number(&mut self, id: u32) -> Option<u16> {
        for _ in 0..=u16::MAX {
            let number = self.next_number;
            self.next_number = number.wrapping_add(1);
            if let hashbrown::hash_map::Entry::Vacant(place) = self.flows.entry(number) {
                place.insert(id);
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn clients(channels: &[u32]) -> (Clients, ChaCha20Rng) {
        let mut clients = Clients::new(Duration::from_secs(300), 0);
        channels.iter().for_each(|channel| clients.channel_up(*channel));
        (clients, ChaCha20Rng::seed_from_u64(1))
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn destination(port: u16) -> Destination {
        Destination::Ip(SocketAddr::from(([192, 0, 2, 1], port)))
    }

    #[test]
    fn clients_are_spread_over_channels_and_stay() {
        let (mut clients, mut rng) = clients(&[5, 6, 7, 8]);
        let mut counts: Map<u32, usize> = Map::default();
        for round in 0..2 {
            for port in 0..100 {
                let client = clients.client(0, address(port)).unwrap().unwrap();
                assert_eq!(client, u32::from(port));
                let flow = clients.flow(client, &destination(1), 0, &mut rng).unwrap();
                if round == 0 {
                    *counts.entry(flow.channel).or_default() += 1;
                }
            }
        }
        assert!(counts.values().all(|n| *n == 25), "{counts:?}");
        assert_eq!((clients.len(), clients.flows()), (100, 100));
    }

    #[test]
    fn a_lost_channel_moves_known_flows_and_opens_the_others_again() {
        let (mut clients, mut rng) = clients(&[1]);
        let client = clients.client(0, address(1)).unwrap().unwrap();
        let number = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
        clients.status(1, number, Status::Open, 0);
        let token = clients.flow(client, &destination(1), 0, &mut rng).unwrap().token;
        assert_eq!(clients.flow(client, &destination(2), 0, &mut rng).unwrap().state, FlowState::Opening);
        clients.channel_down(1);
        assert_eq!(clients.client(0, address(1)), Ok(None));
        clients.channel_up(9);
        assert_eq!(clients.client(0, address(1)), Ok(Some(client)));
        let flow = clients.flow(client, &destination(1), 0, &mut rng).unwrap();
        assert_eq!((flow.channel, flow.token, flow.state), (9, token, FlowState::Moving));
        let number = flow.number;
        assert_eq!(clients.flow(client, &destination(2), 0, &mut rng).unwrap().state, FlowState::Opening);
        clients.status(9, number, Status::UnknownFlow, 0);
        assert_eq!(clients.flow(client, &destination(1), 0, &mut rng).unwrap().state, FlowState::Opening);
    }

    #[test]
    fn a_refused_flow_drops_for_a_while_and_then_asks_again() {
        let (mut clients, mut rng) = clients(&[1]);
        let client = clients.client(0, address(1)).unwrap().unwrap();
        let number = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
        assert_eq!(clients.status(1, number, Status::Refused, 10), Some(&destination(1)));
        let state = clients.flow(client, &destination(1), 11, &mut rng).unwrap().state;
        assert!(matches!(state, FlowState::Refused { reason: Drop::Policy, .. }));
        clients.status(1, number, Status::UnknownFlow, 12);
        assert_eq!(clients.flow(client, &destination(1), 13, &mut rng).unwrap().state, state);
        let state = clients.flow(client, &destination(1), 10 + RETRY, &mut rng).unwrap().state;
        assert_eq!(state, FlowState::Opening);
    }

    #[test]
    fn answers_find_their_client_on_the_old_channel_and_on_the_new_one() {
        let (mut clients, mut rng) = clients(&[1]);
        let client = clients.client(3, address(1)).unwrap().unwrap();
        let old = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
        clients.channel_up(2);
        clients.supersede(1, 2);
        let new = clients.flow(client, &destination(1), 0, &mut rng).unwrap().number;
        for (channel, number) in [(1, old), (2, new)] {
            let (socket, to, _) = clients.reply_to(channel, number).unwrap();
            assert_eq!((socket, to), (3, address(1)));
        }
        assert!(clients.reply_to(2, new + 1).is_none());
        assert_eq!(clients.client(3, address(2)).map(|_| ()), Ok(()));
        let second = clients.client(3, address(2)).unwrap().unwrap();
        let channel = clients.flow(second, &destination(1), 0, &mut rng).unwrap().channel;
        assert_eq!(channel, 2, "nobody is bound to a channel about to end");
    }

    #[test]
    fn idle_flows_are_closed_and_their_clients_forgotten() {
        let (mut clients, mut rng) = clients(&[1]);
        for port in 0..10 {
            let client = clients.client(0, address(port)).unwrap().unwrap();
            clients.flow(client, &destination(1), 0, &mut rng).unwrap();
        }
        let busy = clients.client(0, address(3)).unwrap().unwrap();
        clients.flow(busy, &destination(1), 200 * SECOND, &mut rng).unwrap();
        let mut closed = 0;
        clients.expire(301 * SECOND, |_, _| closed += 1);
        assert_eq!((closed, clients.len(), clients.flows()), (9, 1, 1));
        clients.expire(502 * SECOND, |_, _| closed += 1);
        assert_eq!((closed, clients.len(), clients.flows()), (10, 0, 0));
    }

    #[test]
    fn every_flow_has_a_token_of_its_own_drawn_from_the_generator() {
        let (mut clients, mut rng) = clients(&[1]);
        let client = clients.client(0, address(1)).unwrap().unwrap();
        let mut tokens = std::collections::HashSet::new();
        for port in 0..1000 {
            let mut same = rng.clone();
            let token = clients.flow(client, &destination(port), 0, &mut rng).unwrap().token;
            let mut drawn = [0; 16];
            same.fill_bytes(&mut drawn);
            assert_eq!(token, drawn);
            assert!(tokens.insert(token));
        }
    }
}
