//! What the exits of free and of paced classes have in common: flows, their sockets, and the frames that concern them.
//!
//! An *owner* has flows, and answers go to it: a channel in free classes, a session in paced ones (SPEC 9.12.5). Both
//! are named by a [`ChannelIndex`]. A gateway sends nothing: datagrams go to the send batch of its worker, and answers
//! to its [`Answers`].

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hashbrown::HashMap;
use wire::frames::{self, Frame};
use wire::ids::ChannelIndex;
use wire::reassembly::Reassembler;

use super::Filtering;
use super::flows::Flows;
use super::limits::{Limiter, Limits};
use super::policy::Policy;
use super::quota::{Caps, Lookups, Opens};
use crate::age::{AgeLimit, nanos};
use crate::ledger::{DropReason, Tally};
use crate::punt::PuntSender;
use crate::slab::Slab;
use crate::socket::app_batch::{SendBatch, SocketId};
use crate::socket::apps::Apps;
use crate::{Nanos, SECOND};

/// Which datagrams an exit carries, and how many flows.
pub struct Settings {
    /// The destinations that it may send to.
    pub policy: Policy,
    /// The senders that its sockets accept.
    pub filtering: Filtering,
    /// Limits for destinations that the policy does not trust.
    pub limits: Limits,
    /// Bounds of its tables.
    pub caps: Caps,
    /// Idle flows end after this.
    pub flow_idle: Duration,
    /// The longest time that a datagram may wait (SPEC 6.6).
    pub max_age: Duration,
}

/// Where frames for entries go.
pub(crate) trait Answers {
    /// Appends a frame to what an owner is sent.
    ///
    /// # Errors
    /// No buffer is free, the frame is longer than a cell takes, or the owner is unknown.
    fn put(&mut self, owner: ChannelIndex, frame: &Frame<'_>) -> Result<(), DropReason>;
}

/// What a gateway works with in a turn of its worker.
pub(crate) struct Context<'a, A, Q> {
    pub(crate) now: Nanos,
    pub(crate) apps: &'a mut A,
    pub(crate) send_batch: &'a mut SendBatch,
    /// Counts datagrams that go to applications.
    pub(crate) tally: &'a mut Tally,
    pub(crate) punts: &'a mut PuntSender,
    pub(crate) answers: Q,
    pub(crate) age: &'a AgeLimit,
    /// How long the cells whose frames are handled can have waited in the socket.
    pub(crate) link_waited: Nanos,
}

/// An owner's part of the work.
struct Owner {
    reassembler: Reassembler,
    opens: Opens,
}

/// The flows of an exit.
pub(crate) struct Gateway {
    pub(super) policy: Policy,
    filtering: Filtering,
    /// Names to resolve per second, of all owners.
    pub(super) names_max: Option<u32>,
    /// Inner bytes of the cells that answers are split for.
    payload: usize,
    /// What fragments from entries were split for, and how long they wait for the others.
    fragments: (usize, Duration),
    owners: Slab<Owner>,
    pub(super) flows: Flows,
    pub(super) limiter: Limiter,
    /// Names that all owners have had resolved.
    lookups: Lookups,
    /// Flows refused within the last second: the datagrams behind their OPENs go the same way.
    pub(super) refused: HashMap<(ChannelIndex, u16), DropReason, foldhash::fast::RandomState>,
    /// Datagrams of which some fragments are here.
    pub(super) reassembling: u64,
    /// Peers that the system has reported unreachable.
    pub(super) unreachable: Vec<(SocketId, SocketAddr)>,
    /// A flow can move from one owner to another.
    pub(super) has_moves: bool,
}

impl Gateway {
    /// One without flows. Answers are split for cells of `payload` inner bytes. `fragments` is what entries split
    /// datagrams for, and how long an incomplete one is kept.
    pub(crate) fn new(settings: Settings, payload: usize, fragments: (usize, Duration), now: Nanos) -> Gateway {
        let Settings { policy, filtering, limits, caps, flow_idle, max_age } = settings;
        let mut flows = Flows::new(caps, flow_idle, now);
        flows.fallbacks.keep_for(nanos(max_age));
        Gateway {
            policy,
            filtering,
            names_max: limits.names,
            payload,
            fragments,
            owners: Slab::new(false),
            flows,
            limiter: Limiter::new(limits, now),
            lookups: Lookups::default(),
            refused: HashMap::default(),
            reassembling: 0,
            unreachable: Vec::new(),
            has_moves: true,
        }
    }

    /// Flows stay with the owner that has opened them, as those of sessions do (SPEC 9.12.9).
    pub(crate) fn without_moves(self) -> Gateway {
        Gateway { has_moves: false, ..self }
    }

    /// An owner without fragments. Allocates nothing.
    pub(super) fn no_fragments(&self) -> Reassembler {
        let (payload, hold) = self.fragments;
        Reassembler::with_hold(payload, hold)
    }

    /// The addresses of the host, which nobody may send to.
    pub(crate) fn set_own_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.policy.set_own(addresses);
    }

    pub(crate) fn add_owner(&mut self, owner: ChannelIndex) {
        let fresh = Owner { reassembler: self.no_fragments(), opens: Opens::default() };
        self.owners.insert(owner.index(), fresh);
    }

    /// Removes an owner with its flows; its index may be given out again. Others may lose flows by it.
    pub(crate) fn end_owner(
        &mut self,
        owner: ChannelIndex,
        apps: &mut impl Apps,
        tally: &mut Tally,
        answers: &mut impl Answers,
    ) {
        let Some(ended) = self.owners.take(owner.index()) else { return };
        let waited = self.flows.close_channel(apps, owner);
        self.limiter.forget(owner);
        self.refused.retain(|(of, _), _| *of != owner);
        let fragments = ended.reassembler.held();
        self.reassembling -= fragments as u64;
        tally.drop_many(DropReason::Ended, (waited + fragments) as u64);
        self.report_evicted(answers);
    }

    pub(super) fn reassembler(&mut self, owner: ChannelIndex) -> Option<&mut Reassembler> {
        self.owners.get_mut(owner.index()).map(|owner| &mut owner.reassembler)
    }

    /// Takes a token for one more flow of an owner, or for another address of one.
    pub(super) fn may_open(&mut self, owner: ChannelIndex, now: Nanos) -> bool {
        self.owners.get_mut(owner.index()).is_some_and(|owner| owner.opens.take(now))
    }

    /// Counts one more name to resolve. False if there are too many in this second.
    pub(super) fn may_resolve(&mut self, owner: ChannelIndex, now: Nanos) -> bool {
        let Self { owners, lookups, names_max, .. } = self;
        let owner = owners.get_mut(owner.index());
        owner.is_some_and(|owner| owner.opens.take_name(lookups, *names_max, now))
    }

    /// One datagram from the internet.
    ///
    /// # Errors
    /// It matches no flow or is refused by a limit, or its answer finds no room.
    pub(crate) fn backward_datagram(
        &mut self,
        answers: &mut impl Answers,
        (socket, from): (SocketId, SocketAddr),
        data: &[u8],
        now: Nanos,
    ) -> Result<(), DropReason> {
        let Self { flows, limiter, policy, filtering, payload, .. } = self;
        let Some(flow) = flows.heard(socket, from) else {
            if *filtering == Filtering::Endpoint || !policy.admits(from.ip(), from.port()) {
                return Err(DropReason::Filtered);
            }
            let flow = flows.of_client(socket).ok_or(DropReason::Filtered)?;
            let frame = Frame::From { flow: flow.number, from, data };
            if frame.len() > *payload {
                return Err(DropReason::TooLarge);
            }
            if let Some(usage) = &mut flow.usage {
                limiter.backward(flow.channel, usage, from.ip(), false, now)?;
            }
            return answers.put(flow.channel, &frame);
        };
        if frames::fragment_count(*payload, data.len()).is_none() {
            return Err(DropReason::TooLarge);
        }
        if let Some(usage) = &mut flow.usage {
            limiter.backward(flow.channel, usage, from.ip(), true, now)?;
        }
        let (owner, number, id) = (flow.channel, flow.number, flow.next_id());
        if now >= flow.peer_due {
            flow.peer_due = now + SECOND;
            answers.put(owner, &Frame::Peer { flow: number, from })?;
        }
        for frame in frames::split(*payload, number, id, data) {
            answers.put(owner, &frame)?;
        }
        Ok(())
    }

    /// Once a second: stale fragments, what is remembered for a second.
    pub(crate) fn tick<A: Apps, Q: Answers>(&mut self, cx: &mut Context<'_, A, Q>) {
        let now = cx.now;
        let aged = self.flows.drop_all_aged(now.saturating_sub(cx.age.max()));
        cx.tally.drop_many(DropReason::Aged, aged as u64);
        self.flows.forget_aliases(now);
        self.flows.fallbacks.sweep(now);
        self.limiter.tick(now, self.flows.usages());
        self.refused.clear();
        let with_fragments = self.owners.iter().filter(|(_, owner)| !owner.reassembler.is_bare());
        let with_fragments: Vec<usize> = with_fragments.map(|(index, _)| index).collect();
        for index in with_fragments {
            let owner = self.owners.get_mut(index).expect("just listed");
            let lost = u64::from(owner.reassembler.sweep(Duration::from_nanos(now)));
            self.reassembling -= lost;
            cx.tally.drop_many(DropReason::Incomplete, lost);
        }
    }

    /// Ends `most` flows that are idle. True if there may be more of them.
    pub(crate) fn expire<A: Apps, Q: Answers>(&mut self, cx: &mut Context<'_, A, Q>, most: usize) -> bool {
        let (waited, has_more) = self.flows.expire(cx.apps, cx.now, most, |owner, flow| {
            let _ = cx.answers.put(owner, &Frame::Close { flow });
        });
        cx.tally.drop_many(DropReason::Ended, waited as u64);
        has_more
    }

    /// The numbers of an owner's flows.
    pub(crate) fn numbers_of(&self, owner: ChannelIndex) -> Vec<u16> {
        self.flows.numbers_of(owner)
    }

    /// Datagrams from entries that wait for names or for fragments.
    pub(crate) fn held(&self) -> u64 {
        self.flows.waiting() as u64 + self.reassembling
    }

    /// Flows and their sockets.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.flows.len(), self.flows.sockets())
    }

    #[cfg(test)]
    pub(super) fn has_fragments(&self) -> bool {
        self.owners.iter().any(|(_, owner)| !owner.reassembler.is_bare())
    }
}
