//! Control cells of a round: how many there are on each link, and which place each cell of a setup or an ack takes
//! (SPEC 9.6, 9.8.7, 9.9.4).

use super::{PacedTerms, Phase, Timetable};
use crate::cell::{Direction, Shape};
use crate::replay::WIDTH_DEFAULT;
use crate::setup::{Suite, ack_cells};

/// Copies of each ack cell on links between hops (SPEC 9.9.4).
pub const ACK_COPIES: usize = 3;
/// On link 1, rounds with this divisor have a slot for a link cell.
const LINK_EVERY: u64 = 8;
/// Slots for link cells in each round between hops.
const LINK_SLOTS: usize = 2;

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

/// The control slots of one link and direction (SPEC 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlSlots {
    /// The phase in which setups or acks travel here.
    phase: Phase,
    /// Slots for their cells in each of its first rounds.
    per_round: usize,
    is_first_link: bool,
}

/// Control cells of one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCount {
    /// Setup or ack cells.
    pub placed: usize,
    /// Link cells.
    pub link: usize,
}

impl SlotCount {
    /// Cells of all kinds.
    pub fn total(self) -> usize {
        self.placed + self.link
    }
}

impl ControlSlots {
    /// Those of link `link`, from 1, in a chain of `hops` hops.
    ///
    /// # Panics
    /// A chain has at most eight hops.
    pub fn new(terms: &PacedTerms, suite: Suite, hops: usize, link: usize, direction: Direction) -> ControlSlots {
        let (phase, slots) = match direction {
            Direction::Forward => (Phase::Setup(link), setup_slots(terms, suite, hops, link)),
            Direction::Backward => (Phase::Ack(link), ack_slots(terms, hops, link)),
        };
        let is_first_link = link == 1;
        ControlSlots { phase, per_round: if is_first_link { 1 } else { slots.per_round }, is_first_link }
    }

    /// The slots of a round.
    pub fn of(&self, times: &Timetable, round: u64) -> SlotCount {
        let has_placed = times.phase_of(round).is_some_and(|(phase, at)| phase == self.phase && at < times.used());
        let link = match self.is_first_link {
            true => usize::from(round.is_multiple_of(LINK_EVERY)),
            false => LINK_SLOTS,
        };
        SlotCount { placed: if has_placed { self.per_round } else { 0 }, link }
    }

    /// Most control cells of a round.
    pub fn most(&self) -> usize {
        self.per_round + if self.is_first_link { 1 } else { LINK_SLOTS }
    }
}

/// Places for setups on link `link`.
pub fn setup_slots(terms: &PacedTerms, suite: Suite, hops: usize, link: usize) -> Slots {
    let cells = terms.setup_shards(suite, hops, link).total();
    Slots::new(seats_on(link, terms.seats, terms.loops), cells, terms.timetable(hops).used())
}

/// Places for acks on link `link`, from 2.
///
/// # Panics
/// More than the hops of any chain.
pub fn ack_slots(terms: &PacedTerms, hops: usize, link: usize) -> Slots {
    let shape = Shape::new(terms.class.size(), hops).expect("a chain has at most eight hops");
    let cells = ACK_COPIES * ack_cells(shape);
    Slots::new(seats_on(link, terms.seats, terms.loops), cells, terms.timetable(hops).used())
}

/// Numbers in the replay window of control cells on link `link`, for both directions: cells of a round leave in random
/// order, and may overtake those of the next ones (SPEC 9.1.3).
///
/// # Panics
/// The terms are not those of a chain of `hops` hops ([`PacedTerms::check`]).
pub fn control_window(terms: &PacedTerms, suite: Suite, hops: usize, link: usize) -> usize {
    if link == 1 {
        return WIDTH_DEFAULT;
    }
    let placed = setup_slots(terms, suite, hops, link).per_round + ack_slots(terms, hops, link).per_round;
    WIDTH_DEFAULT.max(8 * (placed + LINK_SLOTS)).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::super::terms::{LOOPS_MAX, ROUNDS_MAX, SEATS, voice};
    use super::*;
    use crate::cell::Class;
    use crate::paced::PacedClass;
    use crate::replay::Window;
    use crate::setup::Suite;

    fn slots(hops: usize, link: usize) -> Slots {
        setup_slots(&voice(hops), Suite::Hybrid, hops, link)
    }

    #[test]
    fn links_have_the_slots_of_the_example() {
        assert_eq!((2..=4).map(|link| slots(4, link).per_round).collect::<Vec<_>>(), [31, 22, 13]);
        assert_eq!(ack_slots(&voice(4), 4, 2).per_round, 5, "acks");
    }

    #[test]
    fn every_place_is_taken_once_and_in_time() {
        for (hops, link) in [(2, 2), (4, 2), (4, 4), (8, 5)] {
            let slots = slots(hops, link);
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

    #[test]
    fn rounds_of_a_phase_have_slots_for_its_cells() {
        let (terms, times) = (voice(4), voice(4).timetable(4));
        let of = |link, direction| ControlSlots::new(&terms, Suite::Hybrid, 4, link, direction);
        let first = times.first(7);
        let totals = |slots: ControlSlots| {
            let of_batch = (first..first + 2048).map(|round| slots.of(&times, round));
            of_batch.fold((0, 0), |(placed, link), of| (placed + of.placed, link + of.link))
        };
        assert_eq!(totals(of(1, Direction::Forward)), (186, 256));
        assert_eq!(totals(of(1, Direction::Backward)), (186, 256));
        assert_eq!(totals(of(2, Direction::Forward)), (186 * 31, 4096));
        assert_eq!(totals(of(2, Direction::Backward)), (186 * 5, 4096));
        let second = times.rounds_of(7, Phase::Setup(2)).start;
        let slots = of(2, Direction::Forward);
        let placed = |round| slots.of(&times, round).placed;
        assert_eq!([second - 1, second, second + 185, second + 186].map(placed), [0, 31, 31, 0]);
        assert_eq!(slots.most(), 33);
    }

    #[test]
    fn control_window_follows_the_slots_of_a_round() {
        let of = |seats, hops, link| {
            let terms = PacedTerms { seats, ..voice(hops) };
            control_window(&terms, Suite::Hybrid, hops, link)
        };
        assert_eq!((2..=8).map(|link| of(256, 8, link)).collect::<Vec<_>>(), [4096; 7]);
        // 8,635 setup slots and 1,058 ack slots.
        assert_eq!([1, 2, 8].map(|link| of(16_384, 8, link)), [4096, 1 << 17, 1 << 15]);
    }

    #[test]
    fn every_chain_has_control_windows_of_its_slots() {
        let mut most = 0;
        for size in [Class::S, Class::M, Class::L] {
            for (hops, power, suite) in (2..=8)
                .flat_map(|hops| (0..=ROUNDS_MAX.ilog2()).map(move |power| (hops, power)))
                .flat_map(|(hops, power)| [Suite::X25519, Suite::Hybrid].map(|suite| (hops, power, suite)))
            {
                let (class, loops) = (PacedClass::new(size), LOOPS_MAX);
                let terms = PacedTerms { class, loops, rounds: 1 << power, seats: *SEATS.end(), ..voice(hops) };
                if terms.check(suite, hops, 600, 86_400).is_ok() {
                    let windows = (2..=hops).map(|link| control_window(&terms, suite, hops, link));
                    most = most.max(windows.max().unwrap());
                }
            }
        }
        assert_eq!(most, 1 << 18);
        Window::new(0, most);
    }
}
