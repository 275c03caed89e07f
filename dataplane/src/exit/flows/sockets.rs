//! The sockets of flows: who gets one, who loses one, and for whom each of them counts.

use std::net::SocketAddr;

use super::{Flow, Flows, Target};
use crate::Nanos;
use crate::exit::mappings::{Held, MappingId, Mappings};
use crate::exit::quota::{FEW, Part};
use crate::ledger::DropReason;
use crate::socket::app_batch::{FlowId, SocketId};
use crate::socket::apps::Apps;
use wire::ids::ChannelIndex;

impl Flows {
    /// Gives a flow its peer, over its client's socket.
    ///
    /// # Errors
    /// No socket is available.
    pub(in crate::exit) fn connect(
        &mut self,
        apps: &mut impl Apps,
        id: FlowId,
        to: SocketAddr,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let &Flow { channel, mapping, .. } = self.flows[id.index()].as_ref().expect("a live flow");
        let socket = match self.mappings.socket(mapping, to.is_ipv6()) {
            Some(socket) => socket,
            None => {
                let (own, all) = (self.quota.of(channel).sockets, self.caps.sockets);
                let free = all.saturating_sub(self.sockets());
                let part = match Part::of(own, free, all) {
                    // Those that have been closed in this turn stay until its datagrams have left.
                    Some(part) if free > apps.closing() => part,
                    Some(_) => return Err(DropReason::SocketsFull),
                    None => self.evict_idler(apps, own, now).ok_or(DropReason::SocketsFull)?,
                };
                let socket = apps.open(to.is_ipv6()).map_err(|_| DropReason::NoSocket)?;
                let held = Held { socket, counts_for: channel, part };
                self.quota.take(channel, held.share());
                self.mappings.hold(mapping, to.is_ipv6(), held);
                socket
            }
        };
        let flow = self.flows[id.index()].as_mut().expect("a live flow");
        // Two flows of a client to one peer (an address and its name): answers go to the newer.
        flow.target = Target::Peer { socket, to };
        if self.by_peer.insert((socket, to), id).is_some_and(|older| older != id) {
            flow.shadows = true;
        }
        Ok(())
    }

    /// Ends the flows of an idle client, so that a socket is free for a channel that has `own`. Returns the part from
    /// which it has that; None if nobody goes.
    fn evict_idler(&mut self, apps: &mut impl Apps, own: usize, now: Nanos) -> Option<Part> {
        let Flows { idlers, mappings, quota, flows, .. } = self;
        let idler = idlers.take(mappings, quota, |client| last_seen(mappings, flows, client), own, now)?;
        // None of its datagrams waits to be sent.
        self.evict(idler, |socket| apps.close_now(socket));
        Some(match own {
            0 => Part::First,
            1..FEW => Part::Few,
            _ => Part::Common,
        })
    }

    /// Ends all flows of a client, because its sockets are for others. Returns datagrams that waited.
    pub(super) fn evict(&mut self, client: MappingId, mut close: impl FnMut(SocketId)) -> usize {
        let flows = self.mappings.flows(client).to_vec();
        let end = |id: FlowId| {
            self.evicted.extend(self.place(id));
            self.end(id, &mut close)
        };
        flows.into_iter().map(end).sum()
    }

    /// The flows that have ended since the last call because their sockets are for others.
    pub(in crate::exit) fn take_evicted(&mut self) -> Vec<(ChannelIndex, u16)> {
        std::mem::take(&mut self.evicted)
    }

    /// A flow has left its peer: answers from there go to another flow of the client with that peer, if there is one.
    pub(super) fn release_peer(&mut self, id: FlowId, peer: (SocketId, SocketAddr)) {
        if self.by_peer.get(&peer) != Some(&id) {
            return;
        }
        self.by_peer.remove(&peer);
        let Some(flow) = self.flows[id.index()].as_ref().filter(|flow| flow.shadows) else { return };
        let has_peer = |other: &&FlowId| {
            let target = self.flows[other.index()].as_ref().map(|flow| &flow.target);
            **other != id && matches!(target, Some(Target::Peer { socket, to }) if (*socket, *to) == peer)
        };
        if let Some(other) = self.mappings.flows(flow.mapping).iter().rev().find(has_peer) {
            self.by_peer.insert(peer, *other);
        }
    }

    /// Sockets of a channel that has ended count for those to which their flows have moved. Otherwise channels that
    /// come and go would collect for one of them what is kept for channels with few or none. Returns the clients that
    /// lose their sockets: no more than a channel gets of what is kept.
    pub(super) fn bequeath(&mut self, channel: ChannelIndex) -> Vec<MappingId> {
        // With the one that is passed on, which would be free again if its flows ended.
        let (all, free) = (self.caps.sockets, self.caps.sockets - self.sockets() + 1);
        let Flows { mappings, flows, quota, .. } = self;
        mappings.bequeath(channel, |newest, held| {
            let heir = flows[newest.index()].as_ref().expect("a mapping lists live flows").channel;
            let own = quota.of(heir);
            let part = held.part.passed_on(own.sockets, own.first_sockets, free, all);
            if let Some(part) = part {
                (held.counts_for, held.part) = (heir, part);
                quota.take(heir, held.share());
            }
            part.is_some()
        })
    }
}

/// When a client has sent last. `None` if one of its flows has no peer, or it has ended.
fn last_seen(mappings: &Mappings, flows: &[Option<Flow>], client: MappingId) -> Option<Nanos> {
    let ended = mappings.seen(client)?;
    mappings.flows(client).iter().try_fold(ended, |latest, id| match flows[id.index()].as_ref()? {
        Flow { target: Target::Peer { .. }, seen, .. } => Some(latest.max(*seen)),
        _ => None,
    })
}
