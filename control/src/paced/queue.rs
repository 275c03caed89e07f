//! The setups or acks that a hop sends in a phase, each cell in its place (SPEC 9.8.7, 9.9.4).

use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;
use wire::cell::CellKind;
use wire::ids::LinkId;
use wire::paced::Slots;

/// The content of a setup or ack slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placed<'a> {
    /// The link from which the setup came; none towards the next hop.
    pub(crate) link: Option<LinkId>,
    /// [`CellKind::Setup`] or [`CellKind::Ack`].
    pub(crate) kind: CellKind,
    pub(crate) channel: u32,
    pub(crate) sub: u8,
    /// P bytes.
    pub(crate) content: &'a [u8],
}

/// A setup, or the ack of one.
pub(super) struct Item {
    pub(super) link: Option<LinkId>,
    pub(super) channel: u32,
    /// By sub. An ack has more cells than contents, which follow each other in turn.
    pub(super) contents: Vec<Vec<u8>>,
}

impl Item {
    fn cell(&self, kind: CellKind, number: usize) -> Placed<'_> {
        let sub = number % self.contents.len();
        Placed { link: self.link, kind, channel: self.channel, sub: sub as u8, content: &self.contents[sub] }
    }
}

/// The cells of a phase.
pub(super) struct Queue {
    kind: CellKind,
    items: Vec<Item>,
    /// Between hops: the slots, and the item of each rank.
    ranks: Option<(Slots, Vec<Option<usize>>)>,
}

impl Queue {
    /// Between hops: the items get ranks at random.
    ///
    /// # Panics
    /// There are more items than seats.
    pub(super) fn ranked(kind: CellKind, slots: Slots, items: Vec<Item>, rng: &mut ChaCha20Rng) -> Queue {
        assert!(items.len() <= slots.seats);
        let mut ranks: Vec<_> = (0..slots.seats).map(|at| Some(at).filter(|at| *at < items.len())).collect();
        ranks.shuffle(rng);
        Queue { kind, items, ranks: Some((slots, ranks)) }
    }

    /// Acks on link 1: each link has a slot of its own in every round.
    pub(super) fn of_entries(items: Vec<Item>) -> Queue {
        Queue { kind: CellKind::Ack, items, ranks: None }
    }

    /// The cells of a round of the phase, counted from 0.
    pub(super) fn cells(&self, at: u64) -> Vec<Placed<'_>> {
        match &self.ranks {
            None => self.items.iter().map(|item| item.cell(self.kind, at as usize)).collect(),
            Some((slots, ranks)) => {
                let of_rank = |(rank, cell): (usize, usize)| Some(self.items[ranks[rank]?].cell(self.kind, cell));
                slots.of_round(at).filter_map(of_rank).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn items(count: usize, contents: usize) -> Vec<Item> {
        let contents: Vec<Vec<u8>> = (0..contents).map(|sub| vec![sub as u8]).collect();
        (0..count).map(|at| Item { link: None, channel: at as u32, contents: contents.clone() }).collect()
    }

    /// Round, channel and sub of all cells.
    fn cells(queue: &Queue, rounds: u64) -> Vec<(u64, u32, u8)> {
        let of_round = |at| queue.cells(at).into_iter().map(move |cell| (at, cell.channel, cell.sub));
        (0..rounds).flat_map(of_round).collect()
    }

    #[test]
    fn rank_does_not_depend_on_the_order_of_arrival() {
        let slots = Slots::new(6, 2, 12);
        let mut ranks = [[0; 6]; 3];
        for seed in 0..6000 {
            let queue = Queue::ranked(CellKind::Setup, slots, items(3, 2), &mut ChaCha20Rng::seed_from_u64(seed));
            let cells = cells(&queue, 12);
            assert_eq!(cells.len(), 6);
            for (at, channel, _) in cells.iter().filter(|(.., sub)| *sub == 0) {
                ranks[*channel as usize][*at as usize] += 1;
                assert!(cells.contains(&(at + 6, *channel, 1)), "one slot for each shard of the seats");
            }
        }
        // Chi-squared with 5 degrees of freedom: 20.5 has p = 0.001.
        for of_channel in ranks {
            let chi: f64 = of_channel.iter().map(|n| (f64::from(*n) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi < 20.5, "{ranks:?}");
        }
    }

    #[test]
    fn contents_of_an_ack_follow_each_other_in_turn() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let queue = Queue::ranked(CellKind::Ack, Slots::new(1, 6, 6), items(1, 2), &mut rng);
        let subs: Vec<u8> = cells(&queue, 6).iter().map(|cell| cell.2).collect();
        assert_eq!(subs, [0, 1, 0, 1, 0, 1]);
        let queue = Queue::of_entries(items(2, 2));
        assert_eq!(cells(&queue, 2), [(0, 0, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)], "one cell for each link");
    }
}
