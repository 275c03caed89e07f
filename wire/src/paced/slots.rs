//! Control cells of a round: how many there are on each link, and which place each cell of a setup or an ack takes
//! (SPEC 9.6, 9.8.7, 9.9.4).

/// Places for the cells of setups, or of acks, on one link in one phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// Setups or acks at most: seats_i.
    pub seats: usize,
    /// Cells of each.
    pub cells: usize,
    /// Cells in each of the phase's first rounds: w_i or a_i.
    pub per_round: usize,
}

impl Slots {
    /// For `seats` setups or acks of `cells` cells each in `used` rounds.
    pub fn new(seats: usize, cells: usize, used: u64) -> Slots {
        Slots { seats, cells, per_round: (seats * cells).div_ceil(used.max(1) as usize) }
    }

    /// The round of the phase, from 0, in which cell `cell` of the setup or ack with rank `rank` leaves.
    pub fn round_of(self, rank: usize, cell: usize) -> u64 {
        debug_assert!(rank < self.seats && cell < self.cells);
        ((cell * self.seats + rank) / self.per_round) as u64
    }

    /// Rank and number of the cells that leave in a round of the phase, from 0.
    pub fn of_round(self, at: u64) -> impl Iterator<Item = (usize, usize)> {
        let (first, all) = (at as usize * self.per_round, self.seats * self.cells);
        (first..all.min(first + self.per_round)).map(move |slot| (slot % self.seats, slot / self.seats))
    }
}

/// Channels that a batch has on link `link`, from 1, with the loops of the mixes before it: seats_i.
pub fn seats_on(link: usize, seats: u16, loops: u8) -> usize {
    usize::from(seats) + 2 * usize::from(loops) * (link - 1)
}

#[cfg(test)]
mod tests {
    use super::super::terms::voice;
    use super::*;
    use crate::setup::Suite;

    fn setup_slots(hops: usize, link: usize) -> Slots {
        let terms = voice(hops);
        let seats = seats_on(link, terms.seats, terms.loops);
        let shards = terms.setup_shards(Suite::Hybrid, hops, link);
        Slots::new(seats, shards.total(), terms.timetable(hops).used())
    }

    #[test]
    fn links_have_the_slots_of_the_example() {
        assert_eq!((2..=4).map(|link| setup_slots(4, link).per_round).collect::<Vec<_>>(), [31, 22, 13]);
        assert_eq!(Slots::new(seats_on(2, 256, 2), 3, 186).per_round, 5, "acks");
    }

    #[test]
    fn every_place_is_taken_once_and_in_time() {
        for (hops, link) in [(2, 2), (4, 2), (4, 4), (8, 5)] {
            let slots = setup_slots(hops, link);
            let used = voice(hops).timetable(hops).used();
            let mut rounds = vec![0; used as usize];
            for rank in 0..slots.seats {
                let own: Vec<u64> = (0..slots.cells).map(|cell| slots.round_of(rank, cell)).collect();
                assert!(own.is_sorted(), "the cells of a setup leave in order");
                own.iter().for_each(|round| rounds[*round as usize] += 1);
            }
            for (at, count) in (0..used).zip(&rounds) {
                assert!(slots.of_round(at).all(|(rank, cell)| slots.round_of(rank, cell) == at));
                assert_eq!(slots.of_round(at).count(), *count);
            }
            assert!(rounds.iter().all(|count| *count <= slots.per_round));
            assert_eq!(rounds.iter().sum::<usize>(), slots.seats * slots.cells);
        }
    }
}
