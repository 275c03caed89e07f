//! Room for links from entries: the caps of addresses, prefixes and the node (SPEC 4.5.5, 4.11).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use wire::ids::{LinkId, Side};

use super::{Link, Links};
use crate::context::Context;
use crate::counters::Refusal;
use crate::prefix::{Prefix, has_its_share};

/// Links with one address and port. A data thread tries the keys of each on every cell from there.
const LINKS_PER_ADDRESS: usize = 4;

impl Links {
    /// Refuses an address and port for a link that goes on if it has as many other links as it may have.
    pub(super) fn check_address(&self, id: LinkId, from: SocketAddr) -> Result<(), Refusal> {
        let is_at = |link: &&Link| {
            let mut slots = [&link.current, &link.next, &link.previous].into_iter().flatten();
            link.peer == from || slots.any(|slot| slot.peer == from)
        };
        let is_there = self.link(id).is_some_and(|link| is_at(&link));
        let others = || self.iter().filter(|link| link.side == Side::Up).filter(is_at).count();
        if is_there || others() < LINKS_PER_ADDRESS { Ok(()) } else { Err(Refusal::PrefixLinksFull) }
    }

    /// Makes room for one more link under the cap of its address, the share of its prefix and the cap of the node
    /// (SPEC 4.5.5, 4.11). Links that were never promoted go first, then those of the prefix that has most, each time
    /// the oldest first. Links with channels never go, nor those with a channel or setup of a paced class, which it
    /// `holds` (SPEC 9.8.6).
    pub(super) fn make_room(
        &mut self,
        cx: &mut Context,
        now: Duration,
        from: SocketAddr,
        holds: &dyn Fn(LinkId) -> bool,
    ) -> Result<(), Refusal> {
        let is_empty = |link: &&Link| link.carries_no_channels() && !holds(link.id);
        let up = || self.iter().filter(|link| link.side == Side::Up);
        let at_address = |link: &&Link| link.peer == from;
        if up().filter(at_address).count() >= LINKS_PER_ADDRESS {
            let empty = up().filter(at_address).filter(is_empty);
            let victim = empty.min_by_key(|link| (link.was_promoted, link.created_at)).map(|link| link.id);
            self.retire(cx, victim.ok_or(Refusal::PrefixLinksFull)?);
        }

        // Only promoted links count: anybody makes others from forged addresses.
        let prefix_of = |link: &Link| cx.config.prefix(link.home);
        let up = || self.iter().filter(|link| link.side == Side::Up);
        let promoted = || up().filter(|link| link.was_promoted);
        let (links, used, cap) = (up().count(), promoted().count(), cx.config.links_max());
        let prefix = cx.config.prefix(from.ip());
        let own = promoted().filter(|link| prefix_of(link) == prefix).count();
        let has_share = prefix.is_some() && has_its_share(own, used, cap);
        let unused = links - used;
        let victim = (links >= cap || has_share).then(|| {
            let may_go = |link: &&Link| {
                let is_own = prefix.is_none() || prefix_of(link) == prefix;
                is_empty(link) && (is_own || !has_share && (!link.was_promoted || own == 0))
            };
            let mut of_prefix: HashMap<Option<Prefix>, usize> = HashMap::new();
            promoted().for_each(|link| *of_prefix.entry(prefix_of(link)).or_default() += 1);
            let order = |link: &&Link| {
                let rivals = of_prefix.get(&prefix_of(link)).copied().unwrap_or(0);
                (link.was_promoted, std::cmp::Reverse(rivals), link.created_at)
            };
            let refused = if has_share { Refusal::PrefixLinksFull } else { Refusal::LinksFull };
            up().filter(may_go).min_by_key(order).map(|link| link.id).ok_or(refused)
        });
        if let Some(victim) = victim.transpose()? {
            self.retire(cx, victim);
        }
        if 4 * unused > cap {
            self.require_cookies(now);
        }
        Ok(())
    }
}
