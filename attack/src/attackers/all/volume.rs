//! Packets and bytes per window.

use crate::{
    attacker::{Attacker, Scores},
    directions::{self, Direction, Way},
    record::{Place, Record, Seen},
};

/// Compares how many packets went in and came out in each window, by the chi-square distance of the counts. Outputs are
/// moved back by the median delay first.
pub(crate) struct PacketCount {
    pub way: Way,
    pub window_ms: u64,
}

impl Attacker for PacketCount {
    fn name(&self) -> String {
        format!("packet-count-{}ms{}", self.window_ms, self.way.suffix())
    }

    fn source(&self) -> &'static str {
        "A. Serjantov and P. Sewell, Passive Attack Analysis for Connection-Based Anonymity Systems, ESORICS 2003"
    }

    fn scores(&self, record: &Record) -> Scores {
        let window = self.window_ms * 1_000_000;
        directions::scores(record, self.way, |direction| {
            let delay = direction.delay.median();
            let counts = |times: &Vec<u64>, earlier: i64| {
                let mut counts = vec![0f64; direction.length.div_ceil(window) as usize];
                for at in times {
                    counts[((*at as i64 - earlier).max(0) as u64 / window) as usize] += 1.0;
                }
                counts
            };
            let inputs: Vec<Vec<f64>> = direction.inputs.iter().map(|times| counts(times, 0)).collect();
            let outputs: Vec<Vec<f64>> = direction.outputs.iter().map(|times| counts(times, delay)).collect();
            Scores::of_pairs(inputs.len(), outputs.len(), |i, o| {
                let distance = |(a, b): (&f64, &f64)| (a - b).powi(2) / (a + b + 1.0);
                -inputs[i].iter().zip(&outputs[o]).map(distance).sum::<f64>()
            })
        })
    }
}

/// Compares the course of the volume: the share of all bytes that have passed by each moment. Lengths of datagrams
/// count here, and the total does not.
pub(crate) struct Volume {
    pub way: Way,
}

/// Moments at which the course is sampled.
const SAMPLES: u64 = 200;

impl Attacker for Volume {
    fn name(&self) -> String {
        format!("volume{}", self.way.suffix())
    }

    fn source(&self) -> &'static str {
        "A. Panchenko et al., Website Fingerprinting at Internet Scale (CUMUL), NDSS 2016"
    }

    fn scores(&self, record: &Record) -> Scores {
        self.way.sum(|forward| {
            let delay = Direction::of(record, forward).delay.median();
            // What comes out is moved back to when it went in.
            let (access_delay, flow_delay) = if forward { (0, delay) } else { (delay, 0) };
            let courses = |places: &[Place], earlier: i64| -> Vec<Vec<f64>> {
                places.iter().map(|place| course(place.trace(forward), earlier, record.length)).collect()
            };
            let (access, flows) = (courses(&record.access, access_delay), courses(&record.flows, flow_delay));
            Scores::of_pairs(access.len(), flows.len(), |user, flow| {
                -access[user].iter().zip(&flows[flow]).map(|(a, b)| (a - b).abs()).sum::<f64>()
            })
        })
    }
}

fn course(trace: &[Seen], earlier: i64, length: u64) -> Vec<f64> {
    let total: f64 = trace.iter().map(|seen| f64::from(seen.bytes)).sum();
    let mut passed = 0.0;
    let mut seen = trace.iter().peekable();
    (1..=SAMPLES)
        .map(|sample| {
            let now = (length * sample / SAMPLES) as i64;
            while let Some(seen) = seen.next_if(|seen| seen.at as i64 - earlier <= now) {
                passed += f64::from(seen.bytes);
            }
            if total > 0.0 { passed / total } else { 0.0 }
        })
        .collect()
}
