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
    positions: Vec<u32>,
    lists: Vec<List>,
    /// Per item, the next one in its list.
    next: Vec<u32>,
}

/// The items of one label, oldest first.
#[derive(Clone)]
struct List {
    head: u32,
    len: u32,
}

impl Shuffle {
    /// Adds the label of the next item.
    pub fn admit(&mut self, label: Label) {
        let fresh = self.next_label;
        let label = match label {
            Label::Channel(channel) => *self.channels.entry(channel).or_insert(fresh),
            Label::Own(_) => fresh,
        };
        if label == fresh {
            self.next_label += 1;
        }
        self.labels.push(label);
    }

    /// Per item, true if it is the first of its label.
    pub(super) fn firsts(&self) -> impl Iterator<Item = bool> {
        let mut fresh = 0;
        self.labels.iter().map(move |label| {
            let is_first = *label == fresh;
            fresh += u32::from(is_first);
            is_first
        })
    }

    /// Distinct channels since the last run.
    pub(crate) fn distinct_channels(&self) -> usize {
        self.channels.len()
    }

    /// Moves `items`, one per admitted label and in that order, to the end of `out` in their positions, and starts
    /// over. Returns the company that they had.
    ///
    /// # Panics
    /// If items and labels are not equally many, or an item is missing.
    pub fn run<T>(&mut self, items: &mut Vec<Option<T>>, out: &mut Vec<T>, rng: &mut impl Rng) -> Company {
        assert_eq!(items.len(), self.labels.len());
        self.positions.clone_from(&self.labels);
        self.positions.shuffle(rng);
        self.lists.clear();
        self.lists.resize(self.next_label as usize, List { head: NONE, len: 0 });
        self.next.resize(items.len(), NONE);
        for (i, (label, next)) in self.labels.iter().zip(&mut self.next).enumerate().rev() {
            let list = &mut self.lists[*label as usize];
            *next = list.head;
            list.head = i as u32;
            list.len += 1;
        }
        let own = self.lists.len() - self.channels.len();
        let company = Company::new(self.lists.iter().map(|list| list.len), items.len(), self.channels.len(), own);
        out.extend(self.positions.iter().map(|label| {
            let head = &mut self.lists[*label as usize].head;
            let item = *head as usize;
            *head = self.next[item];
            items[item].take().expect("an item has one position")
        }));
        items.clear();
        self.labels.clear();
        self.channels.clear();
        self.next_label = 0;
        company
    }
}

#[cfg(test)]
mod tests {
    use super::super::OWN;
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;

    fn shuffled(labels: &[Label], seed: u64) -> Vec<usize> {
        let mut shuffle = Shuffle::default();
        labels.iter().for_each(|label| shuffle.admit(*label));
        let mut items: Vec<Option<usize>> = (0..labels.len()).map(Some).collect();
        let mut out = Vec::new();
        shuffle.run(&mut items, &mut out, &mut ChaCha20Rng::seed_from_u64(seed));
        out
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
                        Label::Own(_) => ChannelIndex(0),
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
            let labels: Vec<Label> = labels.into_iter().map(|l| l.map_or(OWN, |channel| Label::Channel(ChannelIndex(channel)))).collect();
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
