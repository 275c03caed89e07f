//! Leaving: new headers, enciphered by the batch, and runs to each next hop (SPEC 3.2, 4.4).
//!
//! A shuffled release for several next hops (Mix 1 backwards) is split by a stable partition, and the
//! groups leave in random order, so each link still sees a uniform order of labels.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;
use wire::cell::Block;
use wire::ids::LinkId;

use crate::batch::Departures;
use crate::buffer::FreeList;
use crate::lanes::address;
use crate::ledger::{DropReason, Tally};
use crate::links::Links;
use crate::stage::pool::Pooled;

/// Scratch space of the stage.
pub struct Sealer {
    rng: ChaCha20Rng,
    groups: Vec<(LinkId, usize)>,
    order: Vec<u32>,
    blocks: Vec<Block>,
}

impl Sealer {
    /// `rng` orders the groups.
    pub fn new(rng: ChaCha20Rng) -> Sealer {
        Sealer { rng, groups: Vec::new(), order: Vec::new(), blocks: Vec::new() }
    }

    /// Seals a release, empties it, and appends its cells to `out`. The neighbours have `lanes` lanes, and a cell
    /// goes to the one of its channel number.
    pub fn run(
        &mut self,
        release: &mut Vec<Pooled>,
        lanes: usize,
        links: &mut Links,
        out: &mut Departures,
        free: &mut FreeList,
        tally: &mut Tally,
    ) {
        self.group(release, lanes);
        let mut cells = release.drain(..);
        let leg = |pooled: &Pooled| (pooled.ticket.link, pooled.ticket.slot(), lane(pooled, lanes));
        while let Some((link_id, sealed_for, lane)) = cells.as_slice().first().map(leg) {
            let same = cells.as_slice().iter().take_while(|next| leg(next) == (link_id, sealed_for, lane));
            self.blocks.clear();
            self.blocks.extend(same.map(|pooled| pooled.ticket.header.to_block()));
            let link = links.link(link_id);
            let slot = match (link, sealed_for) {
                (Some(link), None) => link.current().map(|slot| (slot, link.peer())).ok_or(DropReason::LinkDown),
                (Some(link), Some(id)) => link.slot(id).map(|slot| (slot, link.peer())).ok_or(DropReason::SlotExpired),
                (None, _) => Err(DropReason::LinkGone),
            };
            match slot {
                Ok((slot, peer)) => {
                    slot.outgoing().encipher(&mut self.blocks);
                    // A port beyond the last is a descriptor's mistake, and refused where those are read.
                    let peer = address(peer, lane).unwrap_or(peer);
                    out.push_times(cells.as_slice()[..self.blocks.len()].iter().map(|pooled| pooled.ticket.times));
                    let run = cells.by_ref().take(self.blocks.len()).zip(&self.blocks);
                    out.push_run(run.map(|(pooled, block)| pooled.cell.seal(block)), peer);
                    if sealed_for.is_none() {
                        links.sent(link_id);
                    }
                }
                Err(reason) => {
                    tally.drop_many(reason, self.blocks.len() as u64);
                    let run = cells.by_ref().take(self.blocks.len());
                    run.for_each(|pooled| free.give(pooled.cell.into_buffer()));
                }
            }
        }
    }

    /// Partitions a release by link and lane, unless it has one of them only.
    fn group(&mut self, release: &mut [Pooled], lanes: usize) {
        let group = |pooled: &Pooled| (pooled.ticket.link, lane(pooled, lanes));
        self.groups.clear();
        for pooled in release.iter() {
            let group = group(pooled);
            if self.groups.last() != Some(&group) && !self.groups.contains(&group) {
                self.groups.push(group);
            }
        }
        if self.groups.len() < 2 {
            return;
        }
        self.groups.shuffle(&mut self.rng);
        crate::rekey(&mut self.rng);
        let at = |(link, lane): (LinkId, usize)| link.index() * lanes + lane;
        let most = self.groups.iter().map(|group| at(*group) + 1).max().unwrap_or(0);
        self.order.clear();
        self.order.resize(most, 0);
        for (rank, group) in self.groups.iter().enumerate() {
            self.order[at(*group)] = rank as u32;
        }
        release.sort_by_key(|pooled| self.order[at(group(pooled))]);
    }
}

/// The lane of `lanes` that a cell travels on.
fn lane(pooled: &Pooled, lanes: usize) -> usize {
    // Most have one, and a division takes as long as all the rest.
    if lanes == 1 { 0 } else { pooled.ticket.header.channel as usize % lanes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Label;
    use crate::buffer::Cell;
    use crate::stage::pool::ticket;
    use rand::SeedableRng;
    use wire::ids::{ChannelIndex, Rank, Side, SlotId};
    use zeroize::Zeroizing;

    const CHANNEL: Label = Label::Channel(ChannelIndex(1));

    #[test]
    fn pooled_cell_never_leaves_on_the_successor_of_its_link() {
        let (mut links, mut free) = (Links::default(), FreeList::new(4));
        let mut out = Departures::new(240, 4);
        let mut tally = Tally::default();
        let mut sealer = Sealer::new(ChaCha20Rng::seed_from_u64(1));
        let install = |links: &mut Links, link: u32| {
            let peer = ([192, 0, 2, 1], link as u16).into();
            let key = Zeroizing::new([link as u8; 16]);
            links.install(LinkId(link), Side::Up, peer);
            links.install_slot(LinkId(link), SlotId(link), peer, Rank::Current, &key, &key);
        };
        let (old, new, down) = (5, 5 | 1 << LinkId::INDEX_BITS, 6);
        install(&mut links, old);
        links.retire(LinkId(old));
        install(&mut links, new);
        links.install(LinkId(down), Side::Up, ([192, 0, 2, 1], 9).into());
        let mut release: Vec<Pooled> = [old, new, old, down]
            .into_iter()
            .map(|link| {
                let ticket = crate::batch::Ticket { link: LinkId(link), ..ticket(CHANNEL, 0, 0) };
                Pooled { cell: Cell::own(free.take().unwrap()), ticket }
            })
            .collect();
        sealer.run(&mut release, 1, &mut links, &mut out, &mut free, &mut tally);
        assert_eq!((out.len(), tally.drops(DropReason::LinkGone), tally.drops(DropReason::LinkDown)), (1, 2, 1));
        assert!(links.link(LinkId(old)).is_none() && links.link(LinkId(new)).is_some());
        links.retire(LinkId(old));
        assert_eq!(links.len(), 2, "what is gone is not retired in place of its successor");
    }

    #[test]
    fn link_groups_leave_in_random_order_that_is_not_redrawn() {
        let mut free = FreeList::new(6);
        let mut sealer = Sealer::new(ChaCha20Rng::seed_from_u64(7));
        let mut orders = std::collections::HashMap::<Vec<u32>, u32>::new();
        for _ in 0..6000 {
            let mut release: Vec<Pooled> = (0..6)
                .map(|seq| {
                    let mut ticket = ticket(CHANNEL, seq, 0);
                    ticket.link = LinkId([4, 9, 4, 6, 9, 4][seq as usize]);
                    Pooled { cell: Cell::own(free.take().unwrap()), ticket }
                })
                .collect();
            let before = sealer.rng.get_seed();
            sealer.group(&mut release, 1);
            assert_ne!(sealer.rng.get_seed(), before);
            for link in [4, 6, 9] {
                let group = release.iter().filter(|pooled| pooled.ticket.link == LinkId(link));
                assert!(group.map(|pooled| pooled.ticket.header.seq).is_sorted());
            }
            let mut links: Vec<u32> = release.iter().map(|pooled| pooled.ticket.link.0).collect();
            links.dedup();
            *orders.entry(links).or_default() += 1;
            release.drain(..).for_each(|pooled| free.give(pooled.cell.into_buffer()));
        }
        assert_eq!(orders.len(), 6, "each link is one group");
        // Chi-squared with 5 degrees of freedom: 20.5 has p = 0.001.
        let chi: f64 = orders.values().map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi < 20.5, "{orders:?}");
    }
}
