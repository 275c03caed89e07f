//! Channels of a paced class, batch by batch (SPEC 9.7).

use hashbrown::HashMap;
use wire::cell::Direction;
use wire::ids::LinkId;
use wire::paced::AHEAD_MAX;

use super::ChannelAt;

/// The running batch, the one before, whose last rounds still leave backward, and the one that is being set up.
const BATCHES: usize = 3;

/// A channel at a hop.
pub(super) struct Channel<K> {
    pub(super) up: ChannelAt,
    /// None at the exit.
    pub(super) down: Option<u32>,
    /// Its keys, and what else its hop needs.
    pub(super) state: K,
}

/// The channels of one batch; their indices are places in a round.
pub(super) struct Batch<K> {
    number: u64,
    pub(super) channels: Vec<Channel<K>>,
    up: HashMap<ChannelAt, u32, foldhash::fast::RandomState>,
    down: HashMap<u32, u32, foldhash::fast::RandomState>,
}

/// All batches that a hop knows.
pub(super) struct Batches<K> {
    /// Rounds of a batch.
    rounds: u64,
    /// Most channels of a batch.
    channels_max: usize,
    /// Batch b is at b modulo [`BATCHES`].
    batches: [Batch<K>; BATCHES],
}

impl<K> Batches<K> {
    /// No channels, for batches of `rounds` rounds with at most `channels_max` channels.
    pub(super) fn new(rounds: u64, channels_max: usize) -> Batches<K> {
        let empty = |_| {
            // A vector that grows would leave keys behind where it was (SPEC 9.3.6).
            let channels = Vec::with_capacity(channels_max);
            Batch { number: 0, channels, up: HashMap::default(), down: HashMap::default() }
        };
        Batches { rounds, channels_max, batches: std::array::from_fn(empty) }
    }

    /// Adds a channel to a batch of which nothing was released, and no cell can have been accepted: `released` is the
    /// last round forward. A batch three before is forgotten. False if it is too late, or if the batch has its most
    /// channels, or one with a number of this one's.
    pub(super) fn add(&mut self, number: u64, released: u64, channel: Channel<K>) -> bool {
        let batch = &mut self.batches[(number % BATCHES as u64) as usize];
        if number * self.rounds <= released + AHEAD_MAX || number < batch.number {
            return false;
        }
        if batch.number != number {
            batch.number = number;
            batch.channels.clear();
            batch.up.clear();
            batch.down.clear();
        }
        let index = batch.channels.len() as u32;
        let is_known =
            batch.up.contains_key(&channel.up) || channel.down.is_some_and(|down| batch.down.contains_key(&down));
        if batch.channels.len() >= self.channels_max || is_known {
            return false;
        }
        batch.up.insert(channel.up, index);
        if let Some(down) = channel.down {
            batch.down.insert(down, index);
        }
        batch.channels.push(channel);
        true
    }

    /// The channels of a round's batch.
    pub(super) fn of_round(&self, round: u64) -> &[Channel<K>] {
        self.batch(round).map_or(&[], |batch| &batch.channels)
    }

    /// The channels of a round's batch.
    pub(super) fn of_round_mut(&mut self, round: u64) -> &mut [Channel<K>] {
        let number = round / self.rounds;
        let batch = &mut self.batches[(number % BATCHES as u64) as usize];
        if batch.number == number { &mut batch.channels } else { &mut [] }
    }

    fn batch(&self, round: u64) -> Option<&Batch<K>> {
        let number = round / self.rounds;
        Some(&self.batches[(number % BATCHES as u64) as usize]).filter(|batch| batch.number == number)
    }

    /// The index of the channel in a round to which a cell with this number belongs. `link` is that of an entry.
    pub(super) fn find(&self, direction: Direction, round: u64, link: Option<LinkId>, number: u32) -> Option<usize> {
        let batch = self.batch(round)?;
        let index = match direction {
            Direction::Forward => batch.up.get(&ChannelAt { link, number }),
            Direction::Backward => batch.down.get(&number),
        };
        index.map(|index| *index as usize)
    }

    /// All keys of batches that ended before this round are wiped.
    pub(super) fn forget_before(&mut self, round: u64) {
        let first = round / self.rounds;
        for batch in self.batches.iter_mut().filter(|batch| batch.number < first && !batch.channels.is_empty()) {
            batch.channels.clear();
            batch.up.clear();
            batch.down.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(batches: &mut Batches<()>, batch: u64, released: u64, number: u32) -> bool {
        let up = ChannelAt { link: None, number };
        batches.add(batch, released, Channel { up, down: None, state: () })
    }

    #[test]
    fn batch_that_can_have_begun_gets_no_channel() {
        let mut batches = Batches::new(512, 4);
        assert!(add(&mut batches, 10, 5120 - 9, 1));
        assert!(!add(&mut batches, 10, 5120 - 8, 2));
        assert_eq!(batches.of_round(5120).len(), 1);
    }

    #[test]
    fn older_batch_does_not_replace_a_newer_one() {
        let mut batches = Batches::new(512, 4);
        assert!(add(&mut batches, 13, 0, 1) && !add(&mut batches, 10, 0, 1));
        assert_eq!(batches.of_round(13 * 512).len(), 1);
    }

    #[test]
    fn channels_of_a_batch_never_move() {
        let mut batches = Batches::new(512, 1000);
        assert!(add(&mut batches, 1, 0, 1));
        let at = batches.of_round(512).as_ptr();
        assert!((2..=1000).all(|number| add(&mut batches, 1, 0, number)));
        assert_eq!(batches.of_round(512).as_ptr(), at);
    }
}
