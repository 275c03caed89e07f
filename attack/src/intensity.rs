//! How likely events are, given packets elsewhere and the delay between the two.

use rayon::prelude::*;

use crate::{
    attacker::Scores,
    delay::{BIN, Delay},
};

/// Share of events that have nothing to do with the packets: lost, repeated, or delayed as the probe never saw.
const STRAY: f32 = 0.03;

/// For each list of packets (row) and each list of events (column): the sum over events of the log-likelihood that a
/// packet caused it, less the mean over time of that likelihood's logarithm.
///
/// Packets and the delay give an intensity of events at each time (a convolution). Events that do not depend on the
/// packets score zero on average, so that rows of many and of few packets can be compared.
pub(crate) fn log_likelihoods(packets: &[Vec<u64>], events: &[Vec<u64>], delay: &Delay, length: u64) -> Scores {
    let columns = events.len();
    let rows: Vec<Vec<f64>> = packets
        .par_iter()
        .map(|packets| {
            let (logarithm, mean) = log_intensity(packets, delay, length);
            let at = |event: &u64| logarithm.get((event / BIN) as usize).map_or(0.0, |l| f64::from(*l) - mean);
            events.iter().map(|events| events.iter().map(at).sum()).collect()
        })
        .collect();
    Scores::of_pairs(rows.len(), columns, |row, column| rows[row][column])
}

/// The logarithm of the intensity in each bin, relative to the rate of the packets, and its mean over time.
fn log_intensity(packets: &[u64], delay: &Delay, length: u64) -> (Vec<f32>, f64) {
    let bins = length.div_ceil(BIN) as usize;
    let mut intensity = vec![0f32; bins];
    for &packet in packets {
        let start = (packet / BIN) as i64 + delay.first;
        let skip = (-start).max(0) as usize;
        let from = start.max(0) as usize;
        for (sum, density) in intensity[from.min(bins)..].iter_mut().zip(delay.density.iter().skip(skip)) {
            *sum += density;
        }
    }
    let rate = (packets.len() as f32 / bins.max(1) as f32).max(f32::MIN_POSITIVE);
    let stray = STRAY * rate;
    // Between packets the intensity is that of strays, and its logarithm is the same for all these bins.
    let log_stray = STRAY.ln();
    let mut sum = 0.0;
    for value in &mut intensity {
        *value = if *value == 0.0 { log_stray } else { (((1.0 - STRAY) * *value + stray) / rate).ln() };
        sum += f64::from(*value);
    }
    let mean = sum / bins.max(1) as f64;
    (intensity, mean)
}
