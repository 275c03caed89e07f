//! Clients that have sent nothing for a while: they give up their sockets to channels that have none (SPEC 5.9).
//!
//! The list of them may be old when it is used. Those that were not on it had sent later than all that were, so whoever
//! has sent nothing since is still the one that has been idle for longest, and the others are passed over.

use std::cmp::Reverse;

use crate::exit::mappings::MappingId;
use crate::{Nanos, SECOND};

/// A client that has sent nothing for this long loses its socket if none is left for a channel that has none.
pub(super) const YIELDS_AFTER: Nanos = 30 * SECOND;

/// Clients that may have to give up their sockets.
pub(super) struct Idlers {
    /// Each with the time at which it had sent last, the latest first.
    list: Vec<(Nanos, MappingId)>,
    /// When they are looked for again.
    look_at: Nanos,
}

impl Idlers {
    pub(super) fn new(now: Nanos) -> Idlers {
        Idlers { list: Vec::new(), look_at: now }
    }

    /// Takes the one of `clients` that has sent nothing for longest, if that is [`YIELDS_AFTER`]. Looks through them at
    /// most once a second. `last_seen` is None for a client that has ended, or that is not idle for another reason.
    pub(super) fn take(
        &mut self,
        mut clients: impl Iterator<Item = MappingId>,
        last_seen: impl Fn(MappingId) -> Option<Nanos>,
        now: Nanos,
    ) -> Option<MappingId> {
        loop {
            while let Some((seen, client)) = self.list.pop() {
                if last_seen(client) == Some(seen) {
                    return Some(client);
                }
            }
            if now < self.look_at {
                return None;
            }
            self.look_at = now + SECOND;
            let is_idle = |seen: &Nanos| seen + YIELDS_AFTER <= now;
            let idle = |client| Some((last_seen(client).filter(is_idle)?, client));
            self.list.extend(clients.by_ref().filter_map(idle));
            self.list.sort_unstable_by_key(|(seen, _)| Reverse(*seen));
        }
    }
}
