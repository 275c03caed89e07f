//! How much company the cells of a release have: the entropy of its channels, and over how many prefixes they spread.
//!
//! For c_k cells of channel k among n cells, H = log2 n - (1/n) sum c_k log2 c_k bits. 2^H is the number of channels
//! with one cell each that would give the same entropy: the *effective set* (Serjantov and Danezis, Towards an
//! Information Theoretic Metric for Anonymity, PET 2002). The cells that a node sends for itself are no company, so
//! they do not count.

use std::sync::LazyLock;

use crate::{MILLI, Nanos};

/// Fractional bits of an entropy as a whole number, so that sums over releases stay exact.
const FRACTION: u32 = 16;
/// Prefixes of a direction are counted at most this often: that needs a sort.
pub(super) const PREFIXES_EVERY: Nanos = MILLI;

/// An entropy in bits, as a whole number of 2^-16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bits(pub u32);

impl Bits {
    fn of(bits: f64) -> Bits {
        Bits((bits.max(0.0) * f64::from(1 << FRACTION)).round() as u32)
    }

    /// The bits of a sum, or of one.
    pub fn from_sum(sum: u64, count: u64) -> f64 {
        if count == 0 { 0.0 } else { sum as f64 / count as f64 / f64::from(1 << FRACTION) }
    }
}

/// The company in one release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Company {
    /// Cells of channels.
    pub cells: u32,
    /// Distinct channels.
    pub channels: u32,
    /// Shannon entropy of the channel of a cell that is drawn from the release.
    pub entropy: Bits,
    /// Min-entropy: minus the logarithm of the largest share that a channel has.
    pub min_entropy: Bits,
    /// Distinct prefixes of entries (SPEC 4.11), where they were counted.
    pub prefixes: Option<u32>,
}

/// [`n_log_n`] of the numbers that most counts are.
static SMALL_N_LOG_N: LazyLock<[u64; 64]> = LazyLock::new(|| std::array::from_fn(|n| n_log_n(n as u32)));

/// n log2 n, rounded to 2^-16 bits.
fn n_log_n(n: u32) -> u64 {
    (f64::from(n) * f64::from(n.max(1)).log2() * f64::from(1 << FRACTION)).round() as u64
}

impl Company {
    /// From the number of cells of each label. `own` of the labels are cells of the node's own, with one cell each:
    /// they add nothing to the sum and are never the largest share.
    pub(super) fn new(counts: impl Iterator<Item = u32>, cells: usize, channels: usize, own: usize) -> Company {
        let of_channels = cells - own;
        if of_channels == 0 {
            return Company::default();
        }
        let small = &*SMALL_N_LOG_N;
        let (mut sum, mut largest) = (0, 1);
        for count in counts {
            sum += small.get(count as usize).copied().unwrap_or_else(|| n_log_n(count));
            largest = largest.max(count);
        }
        let n = of_channels as f64;
        Company {
            cells: of_channels as u32,
            channels: channels as u32,
            entropy: Bits::of(n.log2() - Bits::from_sum(sum, of_channels as u64)),
            min_entropy: Bits::of((n / f64::from(largest)).log2()),
            prefixes: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cells of each channel, and cells of the node's own.
    fn company(counts: &[u32], own: usize) -> (u32, u32, f64, f64) {
        let all: Vec<u32> = counts.iter().copied().chain(std::iter::repeat_n(1, own)).collect();
        let cells = all.iter().sum::<u32>() as usize;
        let company = Company::new(all.into_iter(), cells, counts.len(), own);
        let bits = |bits: Bits| Bits::from_sum(bits.0.into(), 1);
        (company.cells, company.channels, bits(company.entropy), bits(company.min_entropy))
    }

    #[test]
    fn equal_channels_have_the_logarithm_of_their_number() {
        assert_eq!(company(&[1; 8], 0), (8, 8, 3.0, 3.0));
        assert_eq!(company(&[5; 4], 0), (20, 4, 2.0, 2.0));
        assert_eq!(company(&[7], 0), (7, 1, 0.0, 0.0));
    }

    #[test]
    fn unequal_channels_have_less() {
        // 1/2, 1/4, 1/8, 1/8: 1.75 bits, and half of all cells are of one channel.
        assert_eq!(company(&[4, 2, 1, 1], 0), (8, 4, 1.75, 1.0));
    }

    #[test]
    fn cells_of_the_nodes_own_are_no_company() {
        assert_eq!(company(&[4, 2, 1, 1], 9), (8, 4, 1.75, 1.0));
        assert_eq!(company(&[], 3), (0, 0, 0.0, 0.0));
        assert_eq!(company(&[1], 3), (1, 1, 0.0, 0.0));
    }
}
