//! The anonymity meter of a mix: the company that cells had in the releases of the last minute.
//!
//! It counts labels, which are channels: a user with several channels counts as often, and so does an attacker. What a
//! flow's company is worth against somebody who watches both ends, only an attack can say (docs/ANONYMITY.md).

use crate::stage::pool::company::{Bits, Company};
use crate::{Nanos, SECOND};

/// The time that one slot covers, and the number of slots: together a minute.
const SLOT: Nanos = 10 * SECOND;
const SLOTS: usize = 6;

/// Sums over releases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Releases that had a channel's cell.
    pub releases: u64,
    pub cells: u64,
    pub channels: u64,
    /// Entropies, in 2^-16 bits.
    entropy: u64,
    min_entropy: u64,
    /// The smallest entropy of a release.
    smallest: Option<Bits>,
    /// Releases whose prefixes were counted, their prefixes, and the fewest.
    counted: u64,
    prefixes: u64,
    fewest_prefixes: Option<u32>,
}

impl Sums {
    fn add(&mut self, company: &Company) {
        self.merge(&Sums {
            releases: 1,
            cells: company.cells.into(),
            channels: company.channels.into(),
            entropy: company.entropy.0.into(),
            min_entropy: company.min_entropy.0.into(),
            smallest: Some(company.entropy),
            counted: company.prefixes.is_some().into(),
            prefixes: company.prefixes.unwrap_or(0).into(),
            fewest_prefixes: company.prefixes,
        });
    }

    fn merge(&mut self, other: &Sums) {
        self.releases += other.releases;
        self.cells += other.cells;
        self.channels += other.channels;
        self.entropy += other.entropy;
        self.min_entropy += other.min_entropy;
        self.smallest = self.smallest.into_iter().chain(other.smallest).min();
        self.counted += other.counted;
        self.prefixes += other.prefixes;
        self.fewest_prefixes = self.fewest_prefixes.into_iter().chain(other.fewest_prefixes).min();
    }

    fn mean(sum: u64, count: u64) -> Option<f64> {
        (count > 0).then(|| sum as f64 / count as f64)
    }

    /// Mean number of cells of channels in a release. Like all means here: nothing without a release.
    pub fn mean_cells(&self) -> Option<f64> {
        Sums::mean(self.cells, self.releases)
    }

    /// Mean number of distinct channels in a release.
    pub fn mean_channels(&self) -> Option<f64> {
        Sums::mean(self.channels, self.releases)
    }

    /// Mean Shannon entropy of a release, in bits.
    pub fn entropy_bits(&self) -> Option<f64> {
        (self.releases > 0).then(|| Bits::from_sum(self.entropy, self.releases))
    }

    /// Mean min-entropy of a release, in bits.
    pub fn min_entropy_bits(&self) -> Option<f64> {
        (self.releases > 0).then(|| Bits::from_sum(self.min_entropy, self.releases))
    }

    /// The smallest entropy of a release, in bits.
    pub fn smallest_bits(&self) -> Option<f64> {
        self.smallest.map(|bits| Bits::from_sum(bits.0.into(), 1))
    }

    /// Mean number of distinct prefixes in a release, over those whose prefixes were counted.
    pub fn mean_prefixes(&self) -> Option<f64> {
        Sums::mean(self.prefixes, self.counted)
    }

    /// The fewest prefixes of a release.
    pub fn fewest_prefixes(&self) -> Option<u32> {
        self.fewest_prefixes
    }
}

/// The releases of one direction in the last minute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// Each with the number of the time slot that it is for.
    slots: [(u64, Sums); SLOTS],
}

impl Meter {
    /// Counts a release, unless it has cells of the node's own only.
    pub fn add(&mut self, company: &Company, now: Nanos) {
        if company.cells == 0 {
            return;
        }
        let number = now / SLOT;
        let slot = &mut self.slots[number as usize % SLOTS];
        if slot.0 != number {
            *slot = (number, Sums::default());
        }
        slot.1.add(company);
    }

    /// The releases of the last 50 to 60 seconds.
    pub fn last_minute(&self, now: Nanos) -> Sums {
        let newest = now / SLOT;
        let mut sums = Sums::default();
        for (_, slot) in self.slots.iter().filter(|(number, _)| number + (SLOTS as u64) > newest) {
            sums.merge(slot);
        }
        sums
    }

    /// The same of two cores of one node: one alone releases.
    pub(crate) fn merge(&mut self, other: &Meter) {
        for (mine, theirs) in self.slots.iter_mut().zip(&other.slots) {
            match mine.0.cmp(&theirs.0) {
                std::cmp::Ordering::Less => *mine = *theirs,
                std::cmp::Ordering::Equal => mine.1.merge(&theirs.1),
                std::cmp::Ordering::Greater => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn company(cells: u32, channels: u32, bits: u32, prefixes: Option<u32>) -> Company {
        let entropy = Bits(bits << 16);
        Company { cells, channels, entropy, min_entropy: Bits(1 << 16), prefixes }
    }

    #[test]
    fn averages_are_of_entropy_and_not_of_counts() {
        let mut meter = Meter::default();
        for (cells, bits, prefixes) in [(100, 6, Some(30)), (2, 0, None), (0, 0, None), (2, 0, Some(1))] {
            meter.add(&company(cells, cells.min(64), bits, prefixes), SECOND);
        }
        let sums = meter.last_minute(SECOND);
        assert_eq!((sums.releases, sums.mean_cells(), sums.mean_channels()), (3, Some(104.0 / 3.0), Some(68.0 / 3.0)));
        assert_eq!(
            (sums.entropy_bits(), sums.min_entropy_bits(), sums.smallest_bits()),
            (Some(2.0), Some(1.0), Some(0.0))
        );
        assert_eq!((sums.mean_prefixes(), sums.fewest_prefixes()), (Some(15.5), Some(1)));
    }

    #[test]
    fn what_is_older_than_a_minute_is_forgotten() {
        let mut meter = Meter::default();
        for second in 0..100 {
            meter.add(&company(4, 4, if second == 30 { 0 } else { 2 }, None), second * SECOND);
        }
        let at = |second: u64| meter.last_minute(second * SECOND);
        assert_eq!((at(99).releases, at(99).smallest_bits()), (60, Some(2.0)), "40 to 99");
        assert_eq!(at(110).releases, 40, "60 to 99");
        assert_eq!((at(200).releases, at(200).entropy_bits()), (0, None));
    }

    #[test]
    fn two_cores_add_up() {
        let mut meters = [Meter::default(), Meter::default()];
        meters[0].add(&company(4, 4, 2, None), 5 * SECOND);
        meters[1].add(&company(4, 4, 4, None), 6 * SECOND);
        meters[1].add(&company(4, 4, 4, None), 66 * SECOND);
        let [mut all, other] = meters;
        all.merge(&other);
        assert_eq!(all.last_minute(66 * SECOND).releases, 1);
        let sums = all.last_minute(6 * SECOND);
        assert_eq!(sums.releases, 1, "a slot is for one time");
    }
}
