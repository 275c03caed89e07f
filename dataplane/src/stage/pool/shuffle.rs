//! The order of a release: labels are put into positions by a uniform shuffle, and each channel's positions
//! are filled with its cells oldest first (SPEC 6.3).
//!
//! Every channel keeps its own order, so neither QUIC nor RTP sees reordering, and an observer to whom
//! the cells of a channel are alike learns nothing: to it the result has the distribution of a uniform
//! permutation of cells.

use hashbrown::HashMap;
use rand::Rng;
use rand::seq::SliceRandom;

use wire::ids::ChannelIndex;

use super::company::Company;
use crate::batch::Label;

const NONE: u32 = u32::MAX;

/// Labels of what is held, and the scratch space of the shuffle.
#[derive(Default)]
pub struct Shuffle {
    /// Per item, its label as a small number.
    labels: Vec<u32>,
    /// Small number of each channel held.
    channels: HashMap<ChannelIndex, u32, foldhash::fast::RandomState>,
    /// Small numbers given out.
    next_label: u32,
    /// Items with [`Label::Own`].
    own: usize,
    positions: Vec<u32>,
    head: Vec<u32>,
    next: Vec<u32>,
    place: Vec<u32>,
    /// Items of each label.
    counts: Vec<u32>,
}

impl Shuffle {
    /// Adds the label of the next item. True if it is the first of a channel.
    pub fn admit(&mut self, label: Label) -> bool {
        let fresh = self.next_label;
        let small = match label {
            Label::Channel(channel) => *self.channels.entry(channel).or_insert(fresh),
            Label::Own => {
                self.own += 1;
                fresh
            }
        };
        if small == fresh {
            self.next_label += 1;
        }
        self.labels.push(small);
        small == fresh && label != Label::Own
    }

    /// Distinct channels since the last run.
    pub(crate) fn distinct_channels(&self) -> usize {
        self.channels.len()
    }

    /// Puts `items`, one per admitted label and in that order, into their positions, and starts over. Returns the
    /// company that they had.
    ///
    /// # Panics
    /// If items and labels are not equally many.
    pub fn run<T>(&mut self, items: &mut [T], rng: &mut impl Rng) -> Company {
        assert_eq!(items.len(), self.labels.len());
        self.positions.clone_from(&self.labels);
        self.positions.shuffle(rng);
        // Per label, a list of its items, oldest first.
        self.head.clear();
        self.head.resize(self.next_label as usize, NONE);
        self.next.resize(items.len(), NONE);
        self.counts.clear();
        self.counts.resize(self.next_label as usize, 0);
        for i in (0..items.len()).rev() {
            let label = self.labels[i] as usize;
            let head = &mut self.head[label];
            self.next[i] = *head;
            *head = i as u32;
            self.counts[label] += 1;
        }
        let company = Company::new(&self.counts, items.len(), self.channels.len(), self.own);
        self.place.resize(items.len(), 0);
        for (position, label) in self.positions.iter().enumerate() {
            let head = &mut self.head[*label as usize];
            let item = *head as usize;
            *head = self.next[item];
            self.place[item] = position as u32;
        }
        for i in 0..items.len() {
            while self.place[i] as usize != i {
                let to = self.place[i] as usize;
                items.swap(i, to);
                self.place.swap(i, to);
            }
        }
        self.labels.clear();
        self.channels.clear();
        (self.next_label, self.own) = (0, 0);
        company
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    fn shuffled(labels: &[Label], seed: u64) -> Vec<usize> {
        let mut shuffle = Shuffle::default();
        labels.iter().for_each(|label| {
            shuffle.admit(*label);
        });
        let mut items: Vec<usize> = (0..labels.len()).collect();
        shuffle.run(&mut items, &mut ChaCha20Rng::seed_from_u64(seed));
        items
    }

    #[test]
    fn every_arrangement_of_labels_is_equally_likely() {
        // Channels A (3 cells), B (2), C (1): 6!/(3! 2! 1!) = 60 arrangements, in two arrival orders.
        let [a, b, c] = [1, 2, 3].map(|channel| Label::Channel(ChannelIndex(channel)));
        for labels in [[a, a, a, b, b, c], [b, a, c, a, b, a]] {
            let rounds = 60_000u64;
            let mut seen: std::collections::HashMap<Vec<ChannelIndex>, u32> = Default::default();
            for seed in 0..rounds {
                let arrangement = shuffled(&labels, seed)
                    .into_iter()
                    .map(|item| match labels[item] {
                        Label::Channel(channel) => channel,
                        Label::Own => ChannelIndex(0),
                    })
                    .collect();
                *seen.entry(arrangement).or_default() += 1;
            }
            assert_eq!(seen.len(), 60);
            // Chi-squared with 59 degrees of freedom: 98.3 has p = 0.001.
            let expected = rounds as f64 / 60.0;
            let chi: f64 = seen.values().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
            assert!(chi < 98.3, "chi-squared {chi}");
        }
    }

    proptest! {
        #[test]
        fn a_shuffle_is_a_permutation_that_keeps_each_channels_order(
            labels in prop::collection::vec(prop::option::of(0u32..6), 0..200),
            seed in any::<u64>(),
        ) {
            let labels: Vec<Label> = labels.into_iter().map(|l| l.map_or(Label::Own, |channel| Label::Channel(ChannelIndex(channel)))).collect();
            let order = shuffled(&labels, seed);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            prop_assert!(sorted.into_iter().eq(0..labels.len()));
            for channel in 0..6 {
                let of: Vec<_> = order.iter().filter(|i| labels[**i] == Label::Channel(ChannelIndex(channel))).collect();
                prop_assert!(of.is_sorted());
            }
        }
    }
}
