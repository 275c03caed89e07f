//! The delay of the chain. The adversary measures it with a user of its own.

use crate::record::{Record, merged};

/// Nanoseconds of a bin.
pub(crate) const BIN: u64 = 200_000;

/// Without a probe, every delay up to this one counts as equally likely.
const UNKNOWN: u64 = 50_000_000;

/// About how many outputs are compared with the inputs before them.
const OUTPUTS: usize = 50_000;

/// A density of delays, in bins of 0.2 ms. It sums to one.
#[derive(Clone, Debug)]
pub(crate) struct Delay {
    /// The first bin, counted from a delay of zero.
    pub first: i64,
    pub density: Vec<f32>,
}

impl Delay {
    /// A kernel density estimate from the probe's passages. The bandwidth is Silverman's, at least 0.1 ms: with few
    /// passages the density is wide, and it sharpens as they come in.
    pub(crate) fn measured(record: &Record) -> Self {
        let mut delays: Vec<f64> = record.probe.iter().map(|p| p.left.saturating_sub(p.entered) as f64).collect();
        if delays.len() < 2 {
            let bins = (UNKNOWN / BIN) as usize;
            return Self { first: 0, density: vec![1.0 / bins as f32; bins] };
        }
        delays.sort_by(f64::total_cmp);
        let n = delays.len() as f64;
        let quantile = |share: f64| delays[(share * (n - 1.0)).round() as usize];
        let mean = delays.iter().sum::<f64>() / n;
        let deviation = (delays.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n).sqrt();
        let spread = deviation.min((quantile(0.75) - quantile(0.25)) / 1.34);
        let width = (0.9 * spread * n.powf(-0.2)).max(0.5 * BIN as f64);
        Self::smoothed(&delays, width)
    }

    /// The delay of answers, which the probe does not measure: the same density, moved to the times at which outputs
    /// follow inputs most often.
    ///
    /// The histogram of times from an input to a later output, over all pairs of a user and a flow, has a peak that
    /// comes from the right pairs. The search ends at twice the longest delay that the probe saw.
    pub(crate) fn moved_to(&self, inputs: &[Vec<u64>], outputs: &[Vec<u64>]) -> Self {
        let reach = (2 * self.quantile(0.98) + 2_000_000).max(0) as u64;
        let mut lags = vec![0f32; (reach / BIN) as usize + 1];
        let (inputs, outputs) = (merged(inputs), merged(outputs));
        let mut oldest = 0;
        // A sample of the outputs is enough, and keeps long delays affordable.
        let step = 1 + outputs.len() / OUTPUTS;
        for &(output, _) in outputs.iter().step_by(step) {
            while inputs.get(oldest).is_some_and(|(input, _)| input + reach < output) {
                oldest += 1;
            }
            for (input, _) in inputs[oldest..].iter().take_while(|(input, _)| *input <= output) {
                lags[((output - input) / BIN) as usize] += 1.0;
            }
        }
        let fit = |lags: &[f32]| lags.iter().zip(&self.density).map(|(count, density)| count * density).sum::<f32>();
        let fits = lags.windows(self.density.len()).map(fit).enumerate();
        let first = fits.max_by(|a, b| a.1.total_cmp(&b.1)).map_or(self.first, |best| best.0 as i64);
        Self { first, density: self.density.clone() }
    }

    /// A normal kernel of standard deviation `width` at each delay.
    fn smoothed(delays: &[f64], width: f64) -> Self {
        let bin = BIN as f64;
        let first = ((delays[0] - 3.0 * width) / bin).floor() as i64;
        let last = ((delays[delays.len() - 1] + 3.0 * width) / bin).ceil() as i64;
        let mut density = vec![0f64; (last - first + 1) as usize];
        let reach = (3.0 * width / bin).ceil() as i64;
        for delay in delays {
            let centre = (delay / bin).floor() as i64;
            for k in (centre - reach).max(first)..=(centre + reach).min(last) {
                let distance = ((k as f64 + 0.5) * bin - delay) / width;
                density[(k - first) as usize] += (-0.5 * distance * distance).exp();
            }
        }
        let sum: f64 = density.iter().sum();
        Self { first, density: density.iter().map(|d| (d / sum) as f32).collect() }
    }

    /// The density of minus the delay: from outputs back to inputs.
    pub(crate) fn reversed(&self) -> Self {
        let mut density = self.density.clone();
        density.reverse();
        Self { first: -(self.first + density.len() as i64 - 1), density }
    }

    /// The delay in nanoseconds that this share of the cells does not exceed.
    pub(crate) fn quantile(&self, share: f32) -> i64 {
        let mut sum = 0.0;
        let bins = self.density.iter().take_while(|d| {
            sum += **d;
            sum < share
        });
        (self.first + bins.count() as i64) * BIN as i64
    }

    pub(crate) fn median(&self) -> i64 {
        self.quantile(0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Passage;

    #[test]
    fn probe_measures_the_delay() {
        let probe =
            (0..1000).map(|i| Passage { entered: i * 1000, left: i * 1000 + 2_000_000 + (i * 5_000) % 5_000_000 });
        let delay = Delay::measured(&Record { probe: probe.collect(), ..Record::default() });
        assert!((delay.density.iter().sum::<f32>() - 1.0).abs() < 1e-3);
        assert!((delay.median() - 4_500_000).abs() <= 2 * BIN as i64, "{}", delay.median());
        assert!((delay.quantile(0.1) - 2_500_000).abs() <= 3 * BIN as i64, "{}", delay.quantile(0.1));
        assert!((delay.reversed().median() + delay.median()).abs() <= 2 * BIN as i64);
    }
}
