//! Does the order of setups and acks survive the mixes?
//!
//! Every entry sets up one channel for every batch, and the mixes shuffle setups and acks in each phase
//! (docs/SPEC.md 9.8.7 and 9.9.4). The exit knows when the setup of each of its channels came. If that is in any order
//! of the access links, or in their opposite order, users are matched to channels. Channels change with every batch,
//! so the truth is one for each batch and [`crate::attackers`] do not apply.
//!
//! Source: A. Serjantov, R. Dingledine and P. Syverson, From a Trickle to a Flood, IH 2002 (an order that a mix keeps
//! links what it mixes); C. Spearman, The Proof and Measurement of Association between Two Things, 1904.

use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::{independence, record::Truth};

/// Random matchings. The smallest p is 1 / (PERMUTATIONS + 1).
const PERMUTATIONS: usize = 999;

/// When a setup and its ack were seen at one end of the chain, in nanoseconds or in positions: only their order within
/// the batch counts. `None` if it was not seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// The first cell of the setup: on the access link, or on the last link.
    pub begun: Option<u64>,
    /// The cell with which there are enough to open it.
    pub complete: Option<u64>,
    /// The first cell of its ack: on the access link, or on the last link.
    pub ack: Option<u64>,
}

/// The setups for one batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// For each user whose setup reached the exit: its access link, at Mix 1's end.
    pub users: Vec<Passed>,
    /// For each channel that the exit has, loops of mixes as well: the last link, where the exit sees when it has the
    /// setup, and sends the ack.
    pub channels: Vec<Passed>,
}

/// The setups for many batches. At least 50 are needed to find a weak order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetupOrder {
    pub batches: Vec<Batch>,
}

impl SetupOrder {
    /// The permutation p of the largest standardised statistic, against random matchings of users and channels in every
    /// batch. Each of the three times of [`Passed`] on the access links is compared with each one on the last link, in
    /// two ways: by the correlation of ranks, which finds an order that is kept or turned round, and by how close to
    /// each other users come out that went in one after the other, which finds blocks and rotations, too.
    ///
    /// `truths` has the channel of each user for each batch; `seed` is for the matchings.
    ///
    /// # Panics
    /// `truths` are not one for each batch, with one channel for each user.
    pub fn p(&self, truths: &[Truth], seed: u64) -> f64 {
        assert_eq!(self.batches.len(), truths.len(), "a truth for each batch");
        let batches: Vec<Ranked> = self.batches.iter().map(Ranked::of).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut values = vec![[0.0; STATISTICS]; PERMUTATIONS + 1];
        for (batch, truth) in batches.iter().zip(truths) {
            assert_eq!(batch.user_count, truth.0.len(), "a channel for each user");
            let mut channel_of = truth.0.clone();
            for values in &mut values {
                // The right matching first, then random ones.
                batch.add(&channel_of, values);
                channel_of.shuffle(&mut rng);
            }
        }
        let scales: Vec<(f64, f64)> = (0..STATISTICS)
            .map(|one| independence::mean_and_deviation(values.iter().map(|values| values[one])))
            .collect();
        let deviations = |(value, (mean, deviation)): (&f64, &(f64, f64))| ((value - mean) / deviation).abs();
        independence::share_at_least(
            values.iter().map(|values| values.iter().zip(&scales).map(deviations).fold(0.0, f64::max)),
        )
    }
}

/// Times on the access links, times on the last link, ways to compare them.
const STATISTICS: usize = 3 * 3 * 2;

/// A batch's orders.
struct Ranked {
    user_count: usize,
    /// For each time: the rank of each user, and the users in their order.
    users: [(Vec<f64>, Vec<usize>); 3],
    /// For each time: the rank of each channel.
    channels: [Vec<f64>; 3],
}

impl Ranked {
    fn of(batch: &Batch) -> Self {
        let times = |all: &[Passed]| {
            let one = |time: fn(&Passed) -> Option<u64>| all.iter().map(time).collect::<Vec<Option<u64>>>();
            [one(|passed| passed.begun), one(|passed| passed.complete), one(|passed| passed.ack)]
        };
        let with_order = |times: Vec<Option<u64>>| {
            let mut order: Vec<usize> = (0..times.len()).filter(|&user| times[user].is_some()).collect();
            order.sort_by_key(|&user| times[user]);
            (ranks(&times), order)
        };
        Self {
            user_count: batch.users.len(),
            users: times(&batch.users).map(with_order),
            channels: times(&batch.channels).map(|times| ranks(&times)),
        }
    }

    /// Adds the statistics of a matching.
    fn add(&self, channel_of: &[usize], sums: &mut [f64; STATISTICS]) {
        let pairs = self.users.iter().flat_map(|user| self.channels.iter().map(move |channel| (user, channel)));
        for (sums, ((ranks, order), channels)) in sums.chunks_exact_mut(2).zip(pairs) {
            let left = |user: usize| channels[channel_of[user]];
            sums[0] += ranks.iter().enumerate().map(|(user, rank)| rank * left(user)).sum::<f64>();
            sums[1] += order.windows(2).map(|two| (left(two[0]) - left(two[1])).abs()).sum::<f64>();
        }
    }
}

/// Ranks from -1 to 1. Equal times have their mean rank, and missing ones the middle.
fn ranks(times: &[Option<u64>]) -> Vec<f64> {
    let mut sorted: Vec<u64> = times.iter().flatten().copied().collect();
    sorted.sort_unstable();
    let rank = |time: u64| {
        let (before, until) =
            (sorted.partition_point(|&other| other < time), sorted.partition_point(|&other| other <= time));
        (before + until) as f64 / sorted.len() as f64 - 1.0
    };
    times.iter().map(|time| time.map_or(0.0, rank)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt as _;

    const USERS: usize = 20;

    /// 50 batches with random times, four channels of loops, and acks on the last link that `order` takes from the
    /// times at which the users' setups began.
    fn setups(seed: u64, order: impl Fn(&mut ChaCha8Rng, u64) -> u64) -> (SetupOrder, Vec<Truth>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let time = |rng: &mut ChaCha8Rng| rng.random_range(0..1_000u64);
        let batches = (0..50).map(|_| {
            let passed = |rng: &mut ChaCha8Rng| Passed {
                begun: Some(time(rng)),
                complete: Some(time(rng)),
                ack: rng.random_bool(0.9).then(|| time(rng)),
            };
            let users: Vec<Passed> = (0..USERS).map(|_| passed(&mut rng)).collect();
            let mut channels: Vec<Passed> = (0..USERS + 4).map(|_| passed(&mut rng)).collect();
            let mut channel_of: Vec<usize> = (0..USERS + 4).collect();
            channel_of.shuffle(&mut rng);
            channel_of.truncate(USERS);
            for (user, &channel) in users.iter().zip(&channel_of) {
                channels[channel].ack = user.begun.map(|begun| order(&mut rng, begun));
            }
            (Batch { users, channels }, Truth(channel_of))
        });
        let (batches, truths) = batches.unzip();
        (SetupOrder { batches }, truths)
    }

    #[test]
    fn order_that_is_kept_or_turned_round_is_found() {
        // A little of the order is left: 1000 of time under a noise of 4000.
        let weak = |rng: &mut ChaCha8Rng, begun: u64| begun + rng.random_range(0..4_000u64);
        let turned = |rng: &mut ChaCha8Rng, begun: u64| 1_000 - begun + rng.random_range(0..4_000u64);
        for seed in 1..=3 {
            let ((kept, truths), (back, turned_truths)) = (setups(seed, weak), setups(seed, turned));
            assert!(kept.p(&truths, seed) <= 0.005);
            assert!(back.p(&turned_truths, seed) <= 0.005);
        }
    }

    #[test]
    fn rotation_by_a_random_offset_is_found() {
        let (order, truths) = setups(1, |_, begun| begun);
        // Each batch begins elsewhere in the same circle.
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let mut rotated = order.clone();
        for batch in &mut rotated.batches {
            let offset = rng.random_range(0..1_000);
            batch.channels.iter_mut().for_each(|one| one.ack = one.ack.map(|ack| (ack + offset) % 1_000));
        }
        assert!(rotated.p(&truths, 1) <= 0.005);
    }

    #[test]
    fn shuffled_setups_are_at_chance() {
        let p = |seed| {
            let (order, truths) = setups(seed, |rng, _| rng.random_range(0..1_000));
            order.p(&truths, seed)
        };
        let all: Vec<f64> = (1..=10).map(p).collect();
        assert!(all.iter().all(|&p| p > 0.002) && all.iter().filter(|&&p| p < 0.1).count() <= 4, "{all:?}");
    }

    #[test]
    fn setups_that_nobody_saw_are_no_evidence() {
        let batch = Batch { users: vec![Passed::default(); 5], channels: vec![Passed::default(); 6] };
        let order = SetupOrder { batches: vec![batch; 3] };
        assert_eq!(order.p(&vec![Truth((0..5).collect()); 3], 1), 1.0);
    }
}
