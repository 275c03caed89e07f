//! Flows at the exit and the sockets they share (SPEC 3.10, RFC 4787).
//!
//! Flows of one channel with one `map` share one unconnected socket per address family, so that a
//! client keeps one port towards all its peers. What comes back is matched by socket and source; what
//! no flow talks to is filtered. A flow is known by its token, whatever channel it is on.

use std::net::SocketAddr;

use hashbrown::HashMap;
use wire::frames::{Status, Token};

use crate::Nanos;
use crate::SECOND;
use crate::io::apps::{Apps, SocketId};
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

/// Datagrams that wait for a flow's name to resolve.
const WAITING_PER_FLOW: usize = 16;
/// Datagrams that wait for names, over all flows.
const WAITING_MAX: usize = 1024;

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
    pub channel: u32,
    /// Its number there.
    pub number: u16,
    /// Where it sends.
    pub target: Target,
    token: Token,
    mapping: u32,
    seen: Nanos,
    next_id: u16,
    /// The place it has left last, for datagrams that were under way.
    was: Option<(u32, u16)>,
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
    key: (u32, u16),
    v4: Option<SocketId>,
    v6: Option<SocketId>,
    flows: usize,
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
    by_number: Map<(u32, u16), u32>,
    by_token: Map<Token, u32>,
    by_peer: Map<(SocketId, SocketAddr), u32>,
    per_channel: Map<u32, usize>,
    mappings: Vec<Option<Mapping>>,
    vacant_mappings: Vec<u32>,
    by_map: Map<(u32, u16), u32>,
    /// Places that flows have left: at most one a flow.
    aliases: Map<(u32, u16), Alias>,
    queries: Map<u32, u32>,
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
            per_channel: Map::default(),
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

    /// Keeps a datagram until the flow's name has resolved, if there is room.
    pub fn wait(&mut self, id: u32, data: &[u8]) -> bool {
        let full = self.waiting >= WAITING_MAX;
        match self.flows[id as usize].as_mut().map(|flow| &mut flow.target) {
            Some(Target::Resolving { waiting, .. }) if !full && waiting.len() < WAITING_PER_FLOW => {
                waiting.push(data.to_vec());
                self.waiting += 1;
                true
            }
            _ => false,
        }
    }

    /// Takes what waits for a question's answer: the flow, its port, its datagrams.
    pub fn answered(&mut self, query: u32) -> Option<(u32, u16, Vec<Vec<u8>>)> {
        let id = self.queries.remove(&query)?;
        let flow = self.flows[id as usize].as_mut()?;
        let Target::Resolving { port, waiting, .. } = &mut flow.target else { return None };
        let taken = std::mem::take(waiting);
        self.waiting -= taken.len();
        Some((id, *port, taken))
    }

    /// The channel and number of a flow.
    pub fn place(&self, id: u32) -> Option<(u32, u16)> {
        self.flows[id as usize].as_ref().map(|flow| (flow.channel, flow.number))
    }

    /// The flow with this number on a channel.
    pub fn at(&mut self, channel: u32, number: u16) -> Option<(u32, &mut Flow)> {
        let id = *self.by_number.get(&(channel, number))?;
        Some((id, self.flows[id as usize].as_mut()?))
    }

    /// The flow with this number on a channel, or that had it until a moment ago.
    pub fn at_or_was(&mut self, channel: u32, number: u16) -> Option<(u32, &mut Flow)> {
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

    /// A datagram went out on it.
    pub fn touch(&mut self, id: u32, now: Nanos) {
        if let Some(flow) = self.flows[id as usize].as_mut() {
            flow.seen = now;
        }
    }

    /// Whether the flow with this number has this token: OPEN is idempotent.
    pub fn is_same(&mut self, channel: u32, number: u16, token: &Token) -> bool {
        self.at(channel, number).is_some_and(|(_, flow)| flow.token == *token)
    }

    /// Brings a flow here; UnknownFlow if nothing is known of the token.
    pub fn relocate(&mut self, channel: u32, number: u16, token: &Token, now: Nanos) -> Status {
        let Some(&id) = self.by_token.get(token) else { return Status::UnknownFlow };
        let flow = self.flows[id as usize].as_mut().expect("the index lists live flows");
        let old = (flow.channel, flow.number);
        if old == (channel, number) {
            return Status::Open;
        }
        if self.by_number.contains_key(&(channel, number)) {
            // An entry does not reuse a number that is in use; whoever does keeps what it has.
            return Status::TooManyFlows;
        }
        let count = self.per_channel.entry(channel).or_default();
        if old.0 != channel && *count >= self.caps.flows_per_channel {
            return Status::TooManyFlows;
        }
        *count += 1;
        (flow.channel, flow.number) = (channel, number);
        let mapping_id = flow.mapping;
        let before = flow.was.replace(old);
        if let Some(before) = before {
            self.aliases.remove(&before);
        }
        self.by_number.remove(&old);
        self.take_place((channel, number), id);
        self.aliases.insert(old, Alias { flow: id, until: now + MOVED });
        self.leave_channel(old.0);
        let mapping = self.mappings[mapping_id as usize].as_mut().expect("a flow has a live mapping");
        let key = (channel, mapping.key.1);
        if mapping.key != key && !self.by_map.contains_key(&key) {
            self.by_map.remove(&mapping.key);
            mapping.key = key;
            self.by_map.insert(key, mapping_id);
        }
        Status::Open
    }

    /// A flow is at a place now; whoever was there before is no longer found there.
    fn take_place(&mut self, place: (u32, u16), id: u32) {
        self.by_number.insert(place, id);
        if let Some(alias) = self.aliases.remove(&place)
            && let Some(flow) = self.flows[alias.flow as usize].as_mut()
        {
            flow.was = None;
        }
    }

    fn leave_channel(&mut self, channel: u32) {
        if let Some(count) = self.per_channel.get_mut(&channel) {
            *count -= 1;
            if *count == 0 {
                self.per_channel.remove(&channel);
            }
        }
    }

    /// Adds a flow without a target. Its number must be free.
    ///
    /// # Errors
    /// The channel has its fill.
    fn add(
        &mut self,
        channel: u32,
        number: u16,
        map: u16,
        token: Token,
        target: Target,
        now: Nanos,
    ) -> Result<u32, Status> {
        let count = self.per_channel.entry(channel).or_default();
        if *count >= self.caps.flows_per_channel {
            return Err(Status::TooManyFlows);
        }
        *count += 1;
        let mapping = match self.by_map.get(&(channel, map)) {
            Some(mapping) => *mapping,
            None => {
                let id = self.vacant_mappings.pop().unwrap_or_else(|| {
                    self.mappings.push(None);
                    self.mappings.len() as u32 - 1
                });
                self.mappings[id as usize] = Some(Mapping { key: (channel, map), v4: None, v6: None, flows: 0 });
                self.by_map.insert((channel, map), id);
                id
            }
        };
        self.mappings[mapping as usize].as_mut().expect("just looked up").flows += 1;
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.flows.push(None);
            self.flows.len() as u32 - 1
        });
        self.flows[id as usize] =
            Some(Flow { channel, number, target, token, mapping, seen: now, next_id: 0, was: None, reported: 0 });
        self.take_place((channel, number), id);
        self.by_token.insert(token, id);
        self.wheel.arm(id, (now + self.idle) / SECOND + 1);
        Ok(id)
    }

    /// Opens a flow to an address that the policy admits.
    pub fn open(
        &mut self,
        apps: &mut impl Apps,
        (channel, number): (u32, u16),
        map: u16,
        token: Token,
        to: SocketAddr,
        now: Nanos,
    ) -> Status {
        // Until it has a socket, the flow has no target worth sending to.
        let placeholder = Target::Resolving { query: u32::MAX, port: to.port(), waiting: Vec::new() };
        match self.add(channel, number, map, token, placeholder, now) {
            Ok(id) => match self.connect(apps, id, to) {
                Ok(()) => Status::Open,
                Err(status) => {
                    self.close(apps, id);
                    status
                }
            },
            Err(status) => status,
        }
    }

    /// Opens a flow whose name must be resolved; returns the question's number.
    ///
    /// # Errors
    /// The channel has its fill.
    pub fn open_name(
        &mut self,
        (channel, number): (u32, u16),
        map: u16,
        token: Token,
        port: u16,
        now: Nanos,
    ) -> Result<u32, Status> {
        let query = self.next_query;
        self.next_query = (query + 1) % u32::MAX;
        let target = Target::Resolving { query, port, waiting: Vec::new() };
        let id = self.add(channel, number, map, token, target, now)?;
        self.queries.insert(query, id);
        Ok(query)
    }

    /// Gives a flow its peer, over its client's socket.
    ///
    /// # Errors
    /// No socket is left, or another flow of the client has this peer.
    pub fn connect(&mut self, apps: &mut impl Apps, id: u32, to: SocketAddr) -> Result<(), Status> {
        let flow = self.flows[id as usize].as_mut().expect("a live flow");
        let mapping = self.mappings[flow.mapping as usize].as_mut().expect("a flow has a live mapping");
        let place = if to.is_ipv6() { &mut mapping.v6 } else { &mut mapping.v4 };
        let socket = match *place {
            Some(socket) => socket,
            None => {
                if self.sockets >= self.caps.sockets {
                    return Err(Status::TooManyFlows);
                }
                let socket = apps.open(to.is_ipv6()).map_err(|_| Status::TooManyFlows)?;
                self.sockets += 1;
                *place = Some(socket);
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
        self.leave_channel(flow.channel);
        let waited = match flow.target {
            Target::Peer { socket, to } => {
                if self.by_peer.get(&(socket, to)) == Some(&id) {
                    self.by_peer.remove(&(socket, to));
                }
                0
            }
            Target::Resolving { query, waiting, .. } => {
                self.queries.remove(&query);
                self.waiting -= waiting.len();
                waiting.len()
            }
        };
        let mapping = self.mappings[flow.mapping as usize].as_mut().expect("a flow has a live mapping");
        mapping.flows -= 1;
        if mapping.flows == 0 {
            let mapping = self.mappings[flow.mapping as usize].take().expect("just looked at");
            self.vacant_mappings.push(flow.mapping);
            if self.by_map.get(&mapping.key) == Some(&flow.mapping) {
                self.by_map.remove(&mapping.key);
            }
            for socket in [mapping.v4, mapping.v6].into_iter().flatten() {
                apps.close(socket);
                self.sockets -= 1;
            }
        }
        waited
    }

    /// Ends the flow with this number; returns datagrams that waited.
    pub fn close_number(&mut self, apps: &mut impl Apps, channel: u32, number: u16) -> usize {
        match self.by_number.get(&(channel, number)) {
            Some(&id) => self.close(apps, id),
            None => 0,
        }
    }

    /// Ends all flows of a channel; returns datagrams that waited.
    pub fn close_channel(&mut self, apps: &mut impl Apps, channel: u32) -> usize {
        // Its index is given out again: nothing that is left may be found under it. A client whose flows
        // have moved on keeps its socket; flows that it opens from here on get another.
        self.by_map.retain(|(of, _), _| *of != channel);
        self.aliases.retain(|(of, _), _| *of != channel);
        if !self.per_channel.contains_key(&channel) {
            return 0;
        }
        let ids: Vec<u32> = self.by_number.iter().filter(|((of, _), _)| *of == channel).map(|(_, id)| *id).collect();
        ids.into_iter().map(|id| self.close(apps, id)).sum()
    }

    /// Ends idle flows, calling `closed` for each; returns datagrams that waited.
    pub fn expire(&mut self, apps: &mut impl Apps, now: Nanos, mut closed: impl FnMut(u32, u16)) -> usize {
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
mod tests {
    use super::*;
    use crate::io::mem::{MemApps, MemNet};
    use std::time::Duration;

    fn exit() -> (Flows, MemApps) {
        let caps = Caps { flows_per_channel: 3, sockets: 4 };
        let apps = MemApps::new(MemNet::default(), Vec::new(), [192, 0, 2, 1].into());
        (Flows::new(caps, Duration::from_secs(300), 0), apps)
    }

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, 1], port))
    }

    fn socket(flows: &mut Flows, channel: u32, number: u16) -> SocketId {
        match flows.at(channel, number).unwrap().1.target {
            Target::Peer { socket, .. } => socket,
            Target::Resolving { .. } => panic!("no socket yet"),
        }
    }

    #[test]
    fn a_client_keeps_one_port_towards_all_its_peers() {
        let (mut flows, mut apps) = exit();
        for number in 0..3 {
            assert_eq!(flows.open(&mut apps, (1, number), 7, [number as u8; 16], peer(number), 0), Status::Open);
        }
        assert_eq!(flows.open(&mut apps, (2, 0), 7, [9; 16], peer(0), 0), Status::Open);
        let sockets: Vec<_> = (0..3).map(|n| socket(&mut flows, 1, n)).collect();
        assert!(sockets.iter().all(|s| *s == sockets[0]));
        assert_ne!(socket(&mut flows, 2, 0), sockets[0], "maps of two channels are two clients");
        assert_eq!(flows.talking_to(sockets[0], peer(2)).unwrap().number, 2);
        assert!(flows.talking_to(sockets[0], peer(3)).is_none(), "nobody talks to that peer");
        assert_eq!(flows.open(&mut apps, (1, 9), 7, [8; 16], peer(9), 0), Status::TooManyFlows);
    }

    #[test]
    fn a_moved_flow_keeps_its_socket_and_a_new_flow_of_the_client_joins_it() {
        let (mut flows, mut apps) = exit();
        flows.open(&mut apps, (1, 0), 7, [1; 16], peer(1), 0);
        flows.open(&mut apps, (1, 1), 7, [2; 16], peer(2), 0);
        let before = socket(&mut flows, 1, 0);
        assert_eq!(flows.relocate(5, 40, &[1; 16], 0), Status::Open);
        assert_eq!(flows.relocate(5, 40, &[1; 16], 0), Status::Open, "MOVE is repeated");
        assert_eq!(flows.relocate(5, 41, &[2; 16], 0), Status::Open);
        assert_eq!(flows.relocate(5, 42, &[3; 16], 0), Status::UnknownFlow);
        let at = |flows: &mut Flows| flows.at_or_was(1, 0).map(|(_, flow)| (flow.channel, flow.number));
        assert_eq!(at(&mut flows), Some((5, 40)), "what was under way still arrives");
        assert!(flows.at(1, 0).is_none());
        flows.forget_aliases(MOVED);
        assert_eq!(at(&mut flows), None);
        flows.open(&mut apps, (5, 42), 7, [3; 16], peer(3), 0);
        assert!((40..43).all(|n| socket(&mut flows, 5, n) == before));
        assert_eq!(flows.close_channel(&mut apps, 1), 0);
        assert_eq!((flows.len(), flows.sockets()), (3, 1), "nothing of the old channel is left");
        flows.close_channel(&mut apps, 5);
        assert_eq!((flows.len(), flows.sockets()), (0, 0));
    }

    #[test]
    fn idle_flows_end_and_the_last_one_takes_the_socket_along() {
        let (mut flows, mut apps) = exit();
        flows.open(&mut apps, (1, 0), 7, [1; 16], peer(1), 0);
        flows.open(&mut apps, (1, 1), 7, [2; 16], peer(2), 0);
        let (id, _) = flows.at(1, 1).unwrap();
        flows.touch(id, 100 * SECOND);
        let mut closed = Vec::new();
        flows.expire(&mut apps, 301 * SECOND, |channel, number| closed.push((channel, number)));
        assert_eq!((&closed[..], flows.sockets()), (&[(1, 0)][..], 1));
        flows.expire(&mut apps, 402 * SECOND, |channel, number| closed.push((channel, number)));
        assert_eq!((closed.len(), flows.sockets()), (2, 0));
    }

    #[test]
    fn sockets_are_bounded_and_a_refused_flow_leaves_nothing_behind() {
        let (mut flows, mut apps) = exit();
        for channel in 0..4 {
            assert_eq!(flows.open(&mut apps, (channel, 0), 1, [channel as u8; 16], peer(1), 0), Status::Open);
        }
        assert_eq!(flows.open(&mut apps, (4, 0), 1, [9; 16], peer(1), 0), Status::TooManyFlows);
        assert_eq!((flows.len(), flows.sockets()), (4, 4));
        assert_eq!(flows.relocate(0, 5, &[9; 16], 0), Status::UnknownFlow);
    }

    #[test]
    fn nothing_of_an_ended_channel_is_found_under_its_index() {
        let (mut flows, mut apps) = exit();
        // One client with two flows; one moves to channel 9 and ends there, the other stays alive.
        flows.open(&mut apps, (7, 0), 0, [1; 16], peer(1), 0);
        flows.open(&mut apps, (7, 1), 0, [2; 16], peer(2), 0);
        assert_eq!(flows.relocate(9, 0, &[1; 16], 0), Status::Open);
        flows.close_number(&mut apps, 9, 0);
        flows.close_channel(&mut apps, 9);
        // Index 9 is another entry's now, whose first client has map 0 too.
        flows.open(&mut apps, (9, 0), 0, [3; 16], peer(3), 0);
        assert_ne!(socket(&mut flows, 7, 1), socket(&mut flows, 9, 0));
        // A flow leaves channel 7, which ends: its old number leads nowhere.
        assert_eq!(flows.relocate(8, 0, &[2; 16], 0), Status::Open);
        assert!(flows.at_or_was(7, 1).is_some());
        flows.close_channel(&mut apps, 7);
        assert!(flows.at_or_was(7, 1).is_none());
    }

    #[test]
    fn a_flow_that_moves_for_ever_leaves_one_alias_behind() {
        let (mut flows, mut apps) = exit();
        flows.open(&mut apps, (7, 0), 0, [1; 16], peer(1), 0);
        for number in 1..1000 {
            assert_eq!(flows.relocate(7, number, &[1; 16], 0), Status::Open);
            assert!(flows.at_or_was(7, number - 1).is_some());
        }
        assert_eq!(flows.aliases.len(), 1);
        // A new flow takes the old place.
        flows.open(&mut apps, (7, 998), 0, [2; 16], peer(2), 0);
        assert_eq!(flows.aliases.len(), 0);
        assert_eq!(flows.at_or_was(7, 998).unwrap().1.token, [2; 16]);
    }

    #[test]
    fn flows_that_come_and_go_leave_no_timers_behind() {
        let (mut flows, mut apps) = exit();
        flows.open(&mut apps, (7, 9), 0, [9; 16], peer(9), 0);
        for round in 0..3u64 {
            let start = round * 301 * SECOND;
            for i in 0..10_000u32 {
                let mut token = [round as u8; 16];
                token[..4].copy_from_slice(&i.to_be_bytes());
                flows.close_number(&mut apps, 7, 0);
                assert_eq!(flows.open(&mut apps, (7, 0), 0, token, peer(1), start), Status::Open);
            }
            for number in [0, 9] {
                let (id, _) = flows.at(7, number).unwrap();
                flows.touch(id, start + 300 * SECOND);
            }
            flows.expire(&mut apps, start + 301 * SECOND, |_, _| ());
            assert_eq!((flows.len(), flows.wheel.timers()), (2, 2));
        }
    }

    #[test]
    fn a_token_that_differs_in_a_bit_reaches_no_flow() {
        let (mut flows, mut apps) = exit();
        let token = [0xa5; 16];
        flows.open(&mut apps, (1, 0), 7, token, peer(1), 0);
        for bit in 0..128 {
            let mut guess = token;
            guess[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(flows.relocate(2, 0, &guess, 0), Status::UnknownFlow, "bit {bit}");
            assert!(!flows.is_same(1, 0, &guess), "bit {bit}");
        }
        assert_eq!(flows.close_number(&mut apps, 2, 0), 0);
        assert_eq!(flows.place(flows.by_token[&token]), Some((1, 0)), "it is where it was");
        // Nor does the true one take a place that is another flow's.
        flows.open(&mut apps, (2, 0), 7, [1; 16], peer(2), 0);
        assert_eq!(flows.relocate(2, 0, &token, 0), Status::TooManyFlows);
        assert_eq!(flows.at(2, 0).unwrap().1.token, [1; 16]);
    }

    #[test]
    fn a_channel_with_its_fill_of_flows_takes_no_more_however_they_come() {
        let (mut flows, mut apps) = exit();
        for number in 0..3 {
            assert_eq!(flows.open(&mut apps, (1, number), 0, [number as u8; 16], peer(1), 0), Status::Open);
        }
        assert_eq!(flows.open(&mut apps, (1, 3), 0, [8; 16], peer(1), 0), Status::TooManyFlows);
        assert_eq!(flows.open_name((1, 3), 0, [8; 16], 53, 0), Err(Status::TooManyFlows));
        assert_eq!(flows.open(&mut apps, (2, 0), 1, [9; 16], peer(1), 0), Status::Open);
        assert_eq!(flows.relocate(1, 3, &[9; 16], 0), Status::TooManyFlows);
        assert_eq!((flows.len(), flows.sockets()), (4, 2));
    }
}
