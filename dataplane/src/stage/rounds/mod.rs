//! Rounds: in a paced class every channel of a batch has the same number of places in each round, and what did not come
//! in time is replaced by noise (SPEC 9.10).
//!
//! A [`Rounds`] holds one direction of a class at a hop. A cell takes its place when it arrives. The release of a
//! round takes the contents of all its places, so the number of cells that leave does not depend on what came.
//!
//! Cost of a place: 9 bytes for each of [`AHEAD_MAX`] rounds, 720 kB for 10,000 channels of one cell. A cell is stored
//! and taken once; its bytes do not move.

pub mod noise;

use std::cmp::Ordering;

use wire::paced::AHEAD_MAX;

use crate::buffer::{Cell, FreeList, Opened};
use noise::Noise;

/// The place of a cell: a channel's index within its batch, and the number of the cell within the round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub channel: usize,
    pub sub: u8,
}

/// Why a cell finds no place in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untimely {
    /// Its round has been released.
    Late,
    /// Its round is too far ahead.
    Early,
}

/// Where the contents of a place came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A cell that arrived.
    Came,
    /// Noise, because nothing had arrived.
    Lost,
    /// Noise, because the batch has too few channels (SPEC 9.15).
    Floor,
}

/// A cell of a released round.
pub struct Released {
    pub cell: Cell<Opened>,
    pub place: Place,
    pub origin: Origin,
}

/// What happened to the places of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filling {
    /// Cells that had arrived.
    pub came: usize,
    /// Places that held noise instead.
    pub filled: usize,
    /// Places for which there was no noise: nothing leaves for them.
    pub missing: usize,
    /// Cells that had arrived and were replaced because of the floor: dropped.
    pub floored: usize,
}

/// The rounds of one direction that are not released yet.
pub struct Rounds {
    /// Most channels of a batch.
    channels_max: usize,
    /// Cells of a channel in a round.
    cells: u8,
    /// The contents of each place, round by round: round r is at r modulo [`AHEAD_MAX`].
    places: Vec<Option<Cell<Opened>>>,
    /// Places for which a cell has come.
    claimed: Vec<bool>,
    /// The last released round.
    released: u64,
    held: usize,
}

impl Rounds {
    /// Empty rounds for batches of at most `channels_max` channels with `cells` cells in a round. `released` is the
    /// last round that was due when the node started.
    pub fn new(channels_max: usize, cells: u8, released: u64) -> Rounds {
        let places = channels_max * usize::from(cells) * AHEAD_MAX as usize;
        Rounds {
            channels_max,
            cells,
            places: (0..places).map(|_| None).collect(),
            claimed: vec![false; places],
            released,
            held: 0,
        }
    }

    /// The last released round.
    pub fn released(&self) -> u64 {
        self.released
    }

    /// Cells that wait.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Checks whether a round can still, or already, be taken: step 5 of SPEC 9.4.
    ///
    /// # Errors
    /// See [`Untimely`].
    pub fn check(&self, round: u64) -> Result<(), Untimely> {
        match round.cmp(&(self.released + 1)) {
            Ordering::Less => Err(Untimely::Late),
            _ if round > self.released + AHEAD_MAX => Err(Untimely::Early),
            _ => Ok(()),
        }
    }

    /// Claims a place for a cell, before it gets the layer of this hop: nobody enciphers two bodies for one place.
    /// False if the place is claimed: the cell is a second copy. The round must have passed [`Rounds::check`].
    pub fn claim(&mut self, round: u64, place: Place) -> bool {
        debug_assert!(self.check(round).is_ok());
        let index = self.index(round, place);
        !std::mem::replace(&mut self.claimed[index], true)
    }

    /// Puts a cell, with the layer of this hop, into the place that was claimed for it.
    pub fn put(&mut self, round: u64, place: Place, cell: Cell<Opened>) {
        let index = self.index(round, place);
        debug_assert!(self.claimed[index] && self.places[index].is_none());
        self.places[index] = Some(cell);
        self.held += 1;
    }

    /// Takes what was put into a place of a round that is not released.
    pub(crate) fn take_from(&mut self, round: u64, place: Place) -> Option<Cell<Opened>> {
        let index = self.index(round, place);
        let cell = self.places[index].take();
        self.held -= usize::from(cell.is_some());
        cell
    }

    /// Releases the round after the last one as it is. Calls `each` for every place of the batch's `channels`, channel
    /// by channel, with the cell that was put there, and whether one has come.
    pub(crate) fn take(&mut self, channels: usize, mut each: impl FnMut(Place, Option<Cell<Opened>>, bool)) {
        assert!(channels <= self.channels_max);
        self.released += 1;
        let (row, row_len) = (self.row(self.released), self.row_len());
        for channel in 0..channels {
            for sub in 0..self.cells {
                let place = Place { channel, sub };
                let at = row + self.offset(place);
                let cell = self.places[at].take();
                self.held -= usize::from(cell.is_some());
                each(place, cell, self.claimed[at]);
            }
        }
        self.claimed[row..row + row_len].fill(false);
    }

    /// Releases the round after the last one: for each of the batch's `channels` and each of its places, what came or
    /// noise, appended to `out` in the order of channels. With `floor` all of it is noise.
    pub fn release(
        &mut self,
        channels: usize,
        floor: bool,
        noise: &mut Noise,
        free: &mut FreeList,
        out: &mut Vec<Released>,
    ) -> Filling {
        let before = out.len();
        let mut filling = Filling::default();
        self.take(channels, |place, came, _| {
            let (cell, origin) = match came {
                Some(cell) if !floor => (Some(cell), Origin::Came),
                Some(cell) => {
                    free.give(cell.into_buffer());
                    filling.floored += 1;
                    (noise.take(), Origin::Floor)
                }
                None => (noise.take(), if floor { Origin::Floor } else { Origin::Lost }),
            };
            match cell {
                Some(cell) => {
                    filling.came += usize::from(origin == Origin::Came);
                    out.push(Released { cell, place, origin });
                }
                None => filling.missing += 1,
            }
        });
        filling.filled = out.len() - before - filling.came;
        filling
    }

    /// Skips the rounds before `round` that are not released, for a hop that woke too late (SPEC 9.5). Returns how many
    /// rounds were skipped and how many cells had come for them.
    pub fn skip_to(&mut self, round: u64, free: &mut FreeList) -> (u64, usize) {
        let skipped = round.saturating_sub(self.released + 1);
        let row_len = self.row_len();
        let mut dropped = 0;
        for skipped in (self.released + 1..round).take(AHEAD_MAX as usize) {
            let row = self.row(skipped);
            self.claimed[row..row + row_len].fill(false);
            for cell in self.places[row..row + row_len].iter_mut().filter_map(Option::take) {
                free.give(cell.into_buffer());
                dropped += 1;
            }
        }
        self.released += skipped;
        self.held -= dropped;
        (skipped, dropped)
    }

    fn row_len(&self) -> usize {
        self.channels_max * usize::from(self.cells)
    }

    fn row(&self, round: u64) -> usize {
        (round % AHEAD_MAX) as usize * self.row_len()
    }

    fn offset(&self, place: Place) -> usize {
        place.channel * usize::from(self.cells) + usize::from(place.sub)
    }

    fn index(&self, round: u64, place: Place) -> usize {
        debug_assert!(place.channel < self.channels_max && place.sub < self.cells);
        self.row(round) + self.offset(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use wire::cell::HEADER_LEN;

    const BODY: usize = 224;

    struct Hop {
        rounds: Rounds,
        noise: Noise,
        free: FreeList,
        out: Vec<Released>,
    }

    impl Hop {
        fn new(channels_max: usize, cells: u8, seed: u64) -> Hop {
            let places = channels_max * usize::from(cells);
            let mut free = FreeList::new(places * (AHEAD_MAX as usize + 2));
            let mut noise = Noise::new(BODY, ChaCha20Rng::seed_from_u64(seed));
            noise.draw(places, &mut free);
            Hop { rounds: Rounds::new(channels_max, cells, 99), noise, free, out: Vec::new() }
        }

        /// Puts a cell that carries a number.
        fn put(&mut self, round: u64, channel: usize, sub: u8, number: u32) -> bool {
            let place = Place { channel, sub };
            let is_first = self.rounds.claim(round, place);
            if is_first {
                let mut cell = Cell::own(self.free.take().unwrap());
                cell.body_mut(4).copy_from_slice(&number.to_be_bytes());
                self.rounds.put(round, place, cell);
            }
            is_first
        }

        fn release(&mut self, channels: usize, floor: bool) -> Filling {
            self.noise.draw(channels * usize::from(self.rounds.cells), &mut self.free);
            self.rounds.release(channels, floor, &mut self.noise, &mut self.free, &mut self.out)
        }

        fn empty(&mut self) {
            self.out.drain(..).for_each(|released| self.free.give(released.cell.into_buffer()));
        }
    }

    /// The number that a cell carries.
    fn number(cell: &Cell<Opened>) -> u32 {
        u32::from_be_bytes(cell.bytes(HEADER_LEN + 4)[HEADER_LEN..].try_into().unwrap())
    }

    #[test]
    fn only_the_next_eight_rounds_are_taken() {
        let mut hop = Hop::new(2, 1, 1);
        let verdicts = |hop: &Hop| [98, 99, 100, 107, 108].map(|round| hop.rounds.check(round));
        let (late, early) = (Err(Untimely::Late), Err(Untimely::Early));
        assert_eq!(verdicts(&hop), [late, late, Ok(()), Ok(()), early]);
        hop.release(0, false);
        assert_eq!(hop.rounds.released(), 100);
        assert_eq!(verdicts(&hop), [late, late, late, Ok(()), Ok(())]);
    }

    #[test]
    fn second_copy_leaves_the_first_in_its_place() {
        let mut hop = Hop::new(2, 2, 1);
        assert!(hop.put(100, 1, 1, 7) && !hop.put(100, 1, 1, 8) && hop.put(101, 1, 1, 9) && hop.put(100, 1, 0, 10));
        assert_eq!(hop.release(2, false), Filling { came: 2, filled: 2, missing: 0, floored: 0 });
        let cell = hop.out.iter().find(|released| released.place == Place { channel: 1, sub: 1 }).unwrap();
        assert_eq!((number(&cell.cell), cell.origin), (7, Origin::Came));
        assert_eq!(hop.rounds.held(), 1);
    }

    #[test]
    fn floor_replaces_what_came() {
        let mut hop = Hop::new(3, 1, 1);
        assert!(hop.put(100, 0, 0, 7));
        assert_eq!(hop.release(3, true), Filling { came: 0, filled: 3, missing: 0, floored: 1 });
        assert!(hop.out.iter().all(|released| released.origin == Origin::Floor));
        assert!(hop.out.iter().all(|released| number(&released.cell) != 7));
    }

    #[test]
    fn place_without_noise_is_missing() {
        let mut hop = Hop::new(3, 1, 1);
        assert!(hop.put(100, 1, 0, 7));
        for _ in 0..2 {
            hop.free.give(hop.noise.take().unwrap().into_buffer());
        }
        let Hop { rounds, noise, free, out } = &mut hop;
        let filling = rounds.release(3, false, noise, free, out);
        assert_eq!((filling, hop.out.len()), (Filling { came: 1, filled: 1, missing: 1, floored: 0 }, 2));
    }

    #[test]
    fn late_hop_skips_all_but_the_latest_rounds() {
        let mut hop = Hop::new(2, 1, 1);
        for round in 100..108 {
            assert!(hop.put(round, 0, 0, round as u32));
        }
        assert_eq!(hop.rounds.skip_to(100, &mut hop.free), (0, 0), "nothing is late");
        assert_eq!(hop.rounds.skip_to(103, &mut hop.free), (3, 3));
        assert_eq!((hop.rounds.released(), hop.rounds.held()), (102, 5));
        assert_eq!(hop.release(2, false).came, 1);
        assert_eq!(hop.rounds.skip_to(1_000_000, &mut hop.free), (999_896, 4));
        assert_eq!((hop.rounds.released(), hop.rounds.held()), (999_999, 0));
        hop.empty();
        assert_eq!(hop.free.free() + hop.noise.len(), hop.free.total());
    }

    proptest! {
        #[test]
        fn releases_have_one_cell_for_each_place(
            steps in prop::collection::vec((prop::collection::vec((0u64..12, 0usize..5, 0u8..3, any::<u32>()), 0..40), 0usize..6), 1..20),
            seed in any::<u64>(),
        ) {
            let mut hop = Hop::new(5, 3, seed);
            let mut expected = std::collections::HashMap::new();
            for (arrivals, channels) in steps {
                for (ahead, channel, sub, number) in arrivals {
                    let round = hop.rounds.released() + ahead;
                    let fits = hop.rounds.check(round).is_ok();
                    prop_assert_eq!(fits, (1..=AHEAD_MAX).contains(&ahead));
                    if fits {
                        let was_taken = expected.contains_key(&(round, channel, sub));
                        prop_assert_eq!(hop.put(round, channel, sub, number), !was_taken);
                        expected.entry((round, channel, sub)).or_insert(number);
                    }
                }
                // A batch has as many channels as it has; what came for others cannot be in the round.
                let round = hop.rounds.released() + 1;
                let channels = expected.keys().filter(|key| key.0 == round).map(|key| key.1 + 1).max().unwrap_or(0).max(channels.min(5));
                let filling = hop.release(channels, false);
                prop_assert_eq!(hop.out.len(), channels * 3);
                let mut came = 0;
                for released in &hop.out {
                    let Place { channel, sub } = released.place;
                    match expected.remove(&(round, channel, sub)) {
                        Some(sent) => {
                            prop_assert!(sent == number(&released.cell) && released.origin == Origin::Came);
                            came += 1;
                        }
                        None => prop_assert_eq!(released.origin, Origin::Lost),
                    }
                }
                prop_assert_eq!(filling, Filling { came, filled: channels * 3 - came, missing: 0, floored: 0 });
                hop.empty();
                prop_assert_eq!(hop.rounds.held(), expected.len());
                prop_assert_eq!(hop.free.free() + hop.noise.len() + hop.rounds.held(), hop.free.total());
            }
        }
    }
}
