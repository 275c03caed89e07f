//! Clients that have sent nothing for a while: they give up their sockets to channels that have fewer (SPEC 5.9).
//!
//! They are listed at most once a second. Whoever has sent since is passed over.

use std::cmp::Reverse;

use hashbrown::HashMap;
use wire::ids::ChannelIndex;

use crate::exit::mappings::{MappingId, Mappings};
use crate::exit::quota::{FEW, Part, Quota};
use crate::{Nanos, SECOND};

/// A client that has sent nothing for this long loses its socket to a channel that has fewer and gets no other.
pub(super) const YIELDS_AFTER: Nanos = 30 * SECOND;

/// A client that may have to give up its socket.
struct Idler {
    /// Sockets that its channel has when its turn comes. Of a kept part so few that only channels for which that is
    /// kept get this one: nobody collects them.
    sockets: usize,
    /// When it had sent last.
    seen: Nanos,
    client: MappingId,
    /// The one for which its socket counts.
    channel: ChannelIndex,
}

/// Clients that may have to give up their sockets.
pub(super) struct Idlers {
    /// The last one goes first: of the channel with most sockets the one that has been idle for longest.
    list: Vec<Idler>,
    /// When they are looked for again.
    look_at: Nanos,
}

impl Idlers {
    pub(super) fn new(now: Nanos) -> Idlers {
        Idlers { list: Vec::new(), look_at: now }
    }

    /// Takes a client for a channel that has `own` sockets: any for a channel without sockets, else one of a channel
    /// that keeps more than `own` without it. `last_seen` is None for a client that has ended, or that is not idle for
    /// another reason.
    pub(super) fn take(
        &mut self,
        mappings: &Mappings,
        quota: &Quota,
        last_seen: impl Fn(MappingId) -> Option<Nanos>,
        own: usize,
        now: Nanos,
    ) -> Option<MappingId> {
        if now >= self.look_at {
            self.look_at = now + SECOND;
            self.look(mappings, quota, &last_seen, now);
        }
        // Otherwise two channels could take the same socket from each other for ever.
        let may_take = |sockets: usize| own == 0 || sockets > own + 1;
        while let Some(idler) = self.list.pop_if(|idler| may_take(idler.sockets)) {
            if last_seen(idler.client) == Some(idler.seen) && may_take(quota.of(idler.channel).sockets) {
                return Some(idler.client);
            }
        }
        None
    }

    fn look(&mut self, mappings: &Mappings, quota: &Quota, last_seen: impl Fn(MappingId) -> Option<Nanos>, now: Nanos) {
        let idlers = mappings.held_by_clients().filter_map(|(client, held)| {
            let seen = last_seen(client).filter(|seen| seen + YIELDS_AFTER <= now)?;
            let sockets = match held.part {
                Part::Common => usize::MAX,
                Part::Few => FEW + 1,
                Part::First => 1,
            };
            Some(Idler { sockets, seen, client, channel: held.counts_for })
        });
        self.list.clear();
        self.list.extend(idlers);
        self.list.sort_unstable_by_key(|idler| idler.seen);
        let mut left: HashMap<ChannelIndex, usize, foldhash::fast::RandomState> = HashMap::default();
        for idler in self.list.iter_mut().filter(|idler| idler.sockets > 1) {
            let left = left.entry(idler.channel).or_insert_with(|| quota.of(idler.channel).sockets);
            (idler.sockets, *left) = (idler.sockets.min(*left), *left - 1);
        }
        self.list.sort_unstable_by_key(|idler| (idler.sockets, Reverse(idler.seen)));
    }
}
