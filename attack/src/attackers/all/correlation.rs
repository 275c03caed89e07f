//! Normalised cross-correlation of packet counts.

use crate::{
    attacker::{Attacker, Scores},
    directions::{self, Direction, Way},
    math::dot,
    record::Record,
};

/// More lags than this are not tried.
const LAGS: i64 = 60;

/// Correlates packets per bin of inputs and outputs, at the best of all lags that the probe's delays allow.
pub(crate) struct Correlation {
    pub way: Way,
    pub bin_ms: u64,
}

impl Attacker for Correlation {
    fn name(&self) -> String {
        format!("correlation-{}ms{}", self.bin_ms, self.way.suffix())
    }

    fn source(&self) -> &'static str {
        "B. Levine et al., Timing Attacks in Low-Latency Mix Systems, FC 2004; \
         V. Shmatikov and M.-H. Wang, Timing Analysis in Low-Latency Mix Networks, ESORICS 2006"
    }

    fn scores(&self, record: &Record) -> Scores {
        let bin = self.bin_ms * 1_000_000;
        directions::scores(record, self.way, |direction| correlate(direction, bin))
    }
}

fn correlate(direction: &Direction, bin: u64) -> Scores {
    let lag = |share: f32| direction.delay.quantile(share).div_euclid(bin as i64).max(0);
    let lags = lag(0.05)..=(lag(0.95) + 1).min(lag(0.05) + LAGS);
    let counts = |times: &Vec<u64>| normalised(times, bin, direction.length);
    let inputs: Vec<Vec<f32>> = direction.inputs.iter().map(counts).collect();
    let outputs: Vec<Vec<f32>> = direction.outputs.iter().map(counts).collect();
    Scores::of_pairs(inputs.len(), outputs.len(), |i, o| {
        let at = |lag: i64| f64::from(dot(&inputs[i], outputs[o].get(lag as usize..).unwrap_or_default()));
        lags.clone().map(at).fold(f64::NEG_INFINITY, f64::max)
    })
}

/// Packets per bin, less their mean, scaled to length one.
fn normalised(times: &[u64], bin: u64, length: u64) -> Vec<f32> {
    let mut counts = vec![0f32; length.div_ceil(bin) as usize];
    for at in times {
        counts[(at / bin) as usize] += 1.0;
    }
    let mean = times.len() as f32 / counts.len().max(1) as f32;
    let norm = counts.iter().map(|c| (c - mean).powi(2)).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    counts.iter_mut().for_each(|c| *c = (*c - mean) / norm);
    counts
}
