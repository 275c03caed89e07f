//! How likely events are, given packets elsewhere and the delay between the two.

use rayon::prelude::*;

use crate::{
    attacker::Scores,
    delay::{BIN, Delay},
};

/// Share of events that have nothing to do with the packets: lost, repeated, or delayed as the probe never saw.
const STRAY: f32 = 0.03;

/// For each list of packets (row) and each list of events (column): the sum over events of the log-likelihood that a
/// packet caused it, less its mean over the time of the events and its mean over all rows.
///
/// Packets and the delay give an intensity of events at each time (a convolution). Events that do not depend on the
/// packets score zero on average, so that rows of many and of few packets can be compared. Events at times at which
/// everybody sends, or nobody yet, score no more than others, so that columns can be compared too.
pub(crate) fn log_likelihoods(packets: &[Vec<u64>], events: &[Vec<u64>], delay: &Delay, length: u64) -> Scores {
    let columns = events.len();
    let rows: Vec<Vec<f64>> = packets
        .par_iter()
        .map(|packets| {
            let logarithm = log_intensity(packets, delay, length);
            let inside = inside(delay, logarithm.len());
            let sums = prefix_sums(&logarithm);
            let score = |events: &Vec<u64>| {
                let bin = |event: &u64| ((event / BIN) as usize).min(logarithm.len().saturating_sub(1));
                let (Some(first), Some(last)) = (events.first().map(bin), events.last().map(bin)) else { return 0.0 };
                let (from, to) = (first.max(inside.start), (last + 1).min(inside.end));
                let (from, to) = if from < to { (from, to) } else { (first, last + 1) };
                let mean = (sums[to] - sums[from]) / (to - from) as f64;
                events.iter().map(|event| f64::from(logarithm[bin(event)]) - mean).sum()
            };
            events.iter().map(score).collect()
        })
        .collect();
    let mean = |column: usize| rows.iter().map(|row| row[column]).sum::<f64>() / rows.len().max(1) as f64;
    let means: Vec<f64> = (0..columns).map(mean).collect();
    Scores::of_pairs(rows.len(), columns, |row, column| rows[row][column] - means[column])
}

/// The logarithm of the intensity in each bin, relative to the rate of the packets.
fn log_intensity(packets: &[u64], delay: &Delay, length: u64) -> Vec<f32> {
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
    for value in &mut intensity {
        *value = if *value == 0.0 { log_stray } else { (((1.0 - STRAY) * *value + stray) / rate).ln() };
    }
    intensity
}

/// The bins that are not near the ends of the record, where packets are missing whose events are there, or the other
/// way round.
fn inside(delay: &Delay, bins: usize) -> std::ops::Range<usize> {
    let bins = bins as i64;
    let from = (delay.first + delay.density.len() as i64).clamp(0, bins);
    let to = (bins + delay.first.min(0)).clamp(0, bins);
    from as usize..to as usize
}

/// The sum of the first n values, for each n.
fn prefix_sums(values: &[f32]) -> Vec<f64> {
    let mut sum = 0.0;
    let sums = values.iter().map(|value| {
        sum += f64::from(*value);
        sum
    });
    std::iter::once(0.0).chain(sums).collect()
}
