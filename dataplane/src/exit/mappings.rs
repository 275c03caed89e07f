//! The sockets of clients: one for each address family, shared by all flows of one client (RFC 4787, 4.1).
//!
//! A client is a channel and the `map` of an OPEN. It keeps its sockets until its last flow ends, also when flows move
//! to another channel.

use arrayvec::ArrayVec;
use hashbrown::HashMap;
use wire::ids::ChannelIndex;

use super::quota::{Part, Share};
use crate::Nanos;
use crate::socket::app_batch::{FlowId, SocketId};

/// A channel, and a client's number there.
pub(super) type Key = (ChannelIndex, u16);

type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Names the sockets of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct MappingId(u32);

impl MappingId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// A socket, and the channel for which it counts: the one that opened it, even after its flows have moved, and when
/// that has ended, one that has its flows.
#[derive(Clone, Copy)]
pub(super) struct Held {
    pub(super) socket: SocketId,
    pub(super) counts_for: ChannelIndex,
    /// From which that channel has it.
    pub(super) part: Part,
}

impl Held {
    /// What the channel has by it.
    pub(super) fn share(&self) -> Share {
        Share::socket(self.part)
    }
}

/// The sockets of one client.
struct Mapping {
    key: Key,
    v4: Option<Held>,
    v6: Option<Held>,
    flows: Vec<FlowId>,
    /// When one of its flows that have ended sent last.
    seen: Nanos,
}

impl Mapping {
    fn held(&mut self, ipv6: bool) -> &mut Option<Held> {
        if ipv6 { &mut self.v6 } else { &mut self.v4 }
    }
}

/// The sockets of all clients.
#[derive(Default)]
pub(super) struct Mappings {
    list: Vec<Option<Mapping>>,
    vacant: Vec<MappingId>,
    by_key: Map<Key, MappingId>,
    by_socket: Map<SocketId, MappingId>,
}

impl Mappings {
    pub(super) fn sockets(&self) -> usize {
        self.by_socket.len()
    }

    fn at(&mut self, id: MappingId) -> &mut Mapping {
        self.list[id.index()].as_mut().expect("a flow has a live mapping")
    }

    /// Adds a flow to its client's mapping, which is made if there is none. Returns the mapping's id.
    pub(super) fn add_flow(&mut self, key: Key, flow: FlowId) -> MappingId {
        let id = *self.by_key.entry(key).or_insert_with(|| {
            let id = self.vacant.pop().unwrap_or_else(|| {
                self.list.push(None);
                MappingId(self.list.len() as u32 - 1)
            });
            self.list[id.index()] = Some(Mapping { key, v4: None, v6: None, flows: Vec::new(), seen: 0 });
            id
        });
        self.at(id).flows.push(flow);
        id
    }

    /// Removes a flow that sent last at `seen`. With the last flow of a client its mapping goes: returns the sockets to
    /// close.
    pub(super) fn remove_flow(&mut self, id: MappingId, flow: FlowId, seen: Nanos) -> ArrayVec<Held, 2> {
        let mapping = self.at(id);
        mapping.flows.retain(|of| *of != flow);
        mapping.seen = mapping.seen.max(seen);
        if !mapping.flows.is_empty() {
            return ArrayVec::new();
        }
        let mapping = self.list[id.index()].take().expect("just looked at");
        self.vacant.push(id);
        if self.by_key.get(&mapping.key) == Some(&id) {
            self.by_key.remove(&mapping.key);
        }
        let held: ArrayVec<Held, 2> = [mapping.v4, mapping.v6].into_iter().flatten().collect();
        for Held { socket, .. } in &held {
            self.by_socket.remove(socket);
        }
        held
    }

    /// The client's socket of one address family.
    pub(super) fn socket(&mut self, id: MappingId, ipv6: bool) -> Option<SocketId> {
        self.at(id).held(ipv6).map(|held| held.socket)
    }

    /// Gives a client a socket.
    pub(super) fn hold(&mut self, id: MappingId, ipv6: bool, held: Held) {
        *self.at(id).held(ipv6) = Some(held);
        self.by_socket.insert(held.socket, id);
    }

    /// The newest flow of the client that has this socket.
    pub(super) fn flow_of(&self, socket: SocketId) -> Option<FlowId> {
        let mapping = *self.by_socket.get(&socket)?;
        self.list[mapping.index()].as_ref()?.flows.last().copied()
    }

    /// When a client sent last on flows that have ended; 0 if none has. `None` if it has ended itself.
    pub(super) fn seen(&self, id: MappingId) -> Option<Nanos> {
        self.list[id.index()].as_ref().map(|mapping| mapping.seen)
    }

    /// How many flows a client has.
    pub(super) fn count(&self, key: Key) -> usize {
        self.by_key.get(&key).map_or(0, |id| self.flows(*id).len())
    }

    /// All flows of a mapping, the newest last.
    pub(super) fn flows(&self, id: MappingId) -> &[FlowId] {
        self.list[id.index()].as_ref().map_or(&[], |mapping| &mapping.flows)
    }

    /// A flow of the client has moved to `channel`: flows that it opens there share its sockets, unless others do.
    pub(super) fn move_to(&mut self, id: MappingId, channel: ChannelIndex) {
        let old = self.at(id).key;
        let key = (channel, old.1);
        if old != key && !self.by_key.contains_key(&key) {
            // A channel that was given this index since may have a mapping under the old key.
            if self.by_key.get(&old) == Some(&id) {
                self.by_key.remove(&old);
            }
            self.at(id).key = key;
            self.by_key.insert(key, id);
        }
    }

    /// A channel has ended. Clients whose flows have moved on keep their sockets; flows opened under the same index
    /// later get others.
    pub(super) fn forget_channel(&mut self, channel: ChannelIndex) {
        self.by_key.retain(|(of, _), _| *of != channel);
    }

    /// A channel has ended whose sockets are still in use. `pass_on` has each count for another channel, which it finds
    /// by the client's newest flow, or returns false. Returns the clients that lose their sockets.
    pub(super) fn bequeath(
        &mut self,
        channel: ChannelIndex,
        mut pass_on: impl FnMut(FlowId, &mut Held) -> bool,
    ) -> Vec<MappingId> {
        let mut refused = Vec::new();
        for (mapping, id) in self.list.iter_mut().zip(0..) {
            let Some(Mapping { v4, v6, flows, .. }) = mapping else { continue };
            let newest = *flows.last().expect("a mapping ends with its last flow");
            for held in [v4, v6].into_iter().flatten() {
                if held.counts_for == channel && !pass_on(newest, held) {
                    refused.push(MappingId(id));
                }
            }
        }
        refused
    }

    /// All sockets, with their clients.
    pub(super) fn held_by_clients(&self) -> impl Iterator<Item = (MappingId, Held)> {
        let clients = self.list.iter().zip(0..).filter_map(|(mapping, id)| Some((mapping.as_ref()?, MappingId(id))));
        clients.flat_map(|(mapping, id)| [mapping.v4, mapping.v6].into_iter().flatten().map(move |held| (id, held)))
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.by_socket.is_empty() && self.vacant.len() == self.list.len()
    }
}
