//! Channel numbers that a node draws for its link towards the exit (SPEC 3.8.1).

use std::collections::{HashSet, VecDeque};

use rand::Rng;
use wire::paced::BEHIND_MAX;

/// A number is not drawn again for this long after its use.
const COOLDOWN_MS: u64 = 180_000;

/// Numbers in use, or in use too recently.
pub(super) struct Numbers {
    taken: HashSet<u32>,
    /// The round from which a number may be drawn again, in the order in which they were drawn.
    until: VecDeque<(u64, u32)>,
    cooldown: u64,
}

impl Numbers {
    pub(super) fn new(period_ms: u16) -> Numbers {
        let cooldown = BEHIND_MAX + COOLDOWN_MS.div_ceil(period_ms.into());
        Numbers { taken: HashSet::new(), until: VecDeque::new(), cooldown }
    }

    /// Draws the number of a channel whose batch ends before round `end`.
    pub(super) fn draw(&mut self, rng: &mut impl Rng, end: u64) -> u32 {
        loop {
            let number = rng.next_u32();
            if number != 0 && self.taken.insert(number) {
                self.until.push_back((end + self.cooldown, number));
                return number;
            }
        }
    }

    /// Forgets numbers whose time is over in this round.
    pub(super) fn expire(&mut self, round: u64) {
        while let Some((_, number)) = self.until.pop_front_if(|(until, _)| *until <= round) {
            self.taken.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    use super::*;

    #[test]
    fn number_is_drawn_again_three_minutes_after_its_use() {
        let mut numbers = Numbers::new(10);
        let draw = |numbers: &mut Numbers| numbers.draw(&mut ChaCha20Rng::seed_from_u64(1), 4096);
        let first = draw(&mut numbers);
        assert!(first != 0 && draw(&mut numbers) != first);
        numbers.expire(4096 + 256 + 18_000 - 1);
        assert_ne!(draw(&mut numbers), first);
        numbers.expire(4096 + 256 + 18_000);
        assert_eq!(draw(&mut numbers), first);
    }
}
