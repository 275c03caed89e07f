//! Ids of links: indexes, which are reused, and their versions.

use std::collections::VecDeque;

use wire::ids::LinkId;
use wire::paced::terms::SEATS;

use crate::config::LINKS_MAX;

/// An index is used again while more than this many are free, the one that was free longest first. So between two
/// uses of an index at least as many others are used.
const FREE_MIN: usize = 256;

// Two links for each of the seats of a paced class (SPEC 9.8.6), and the one to the next hop.
const _: () = assert!(2 * *SEATS.end() as usize + 1 + FREE_MIN < 1 << LinkId::INDEX_BITS);
const _: () = assert!(LINKS_MAX + 1 + FREE_MIN < 1 << LinkId::INDEX_BITS);

/// The ids of the links of one class.
pub(super) struct LinkIds {
    /// The place of the class among those of the node.
    class: usize,
    /// The version that each index has or gets next.
    versions: Vec<u32>,
    /// In the order in which they were given back.
    free: VecDeque<usize>,
}

impl LinkIds {
    pub(super) fn new(class: usize) -> LinkIds {
        LinkIds { class, versions: Vec::new(), free: VecDeque::new() }
    }

    /// An id for a new link. Indexes are at most [`FREE_MIN`] more than links.
    pub(super) fn take(&mut self) -> LinkId {
        let free = if self.free.len() > FREE_MIN { self.free.pop_front() } else { None };
        let index = free.unwrap_or_else(|| {
            self.versions.push(0);
            self.versions.len() - 1
        });
        LinkId::new(self.class, index, self.versions[index])
    }

    /// The link with this id is gone.
    pub(super) fn give_back(&mut self, id: LinkId) {
        let version = &mut self.versions[id.index()];
        *version = (*version + 1) % LinkId::VERSIONS;
        self.free.push_back(id.index());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_a_link_comes_again_after_two_million_others() {
        let mut ids = LinkIds::new(1);
        // A full node: one link ends when another one comes.
        let mut latest = ids.take();
        let first = latest;
        let mut next = || {
            ids.give_back(latest);
            latest = ids.take();
            latest
        };
        let others = (1..).find(|_| next() == first);
        assert_eq!(others, Some((FREE_MIN + 1) * LinkId::VERSIONS as usize));
        assert!(others > Some(2_000_000));
    }

    #[test]
    fn indexes_are_few_more_than_links() {
        let mut ids = LinkIds::new(0);
        for count in [10, 3000, 500, 3000] {
            let links: Vec<LinkId> = (0..count).map(|_| ids.take()).collect();
            let indexes: std::collections::HashSet<usize> = links.iter().map(|link| link.index()).collect();
            assert_eq!(indexes.len(), count, "all differ");
            links.into_iter().for_each(|link| ids.give_back(link));
        }
        assert!(ids.versions.len() <= 3000 + FREE_MIN, "{}", ids.versions.len());
    }
}
