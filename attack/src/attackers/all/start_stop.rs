//! Compares the times at which flows and links start and stop.

use crate::{
    attacker::{Attacker, Scores},
    directions::{self, Way},
    record::Record,
};

/// A silence of this length ends a spurt, in nanoseconds.
const SILENCE: u64 = 150_000_000;
/// Edges further apart than this do not belong together, in nanoseconds.
const REACH: f64 = 100e6;
/// Edges closer than this score hardly more than equal ones, in nanoseconds.
const CLOSE: f64 = 2e6;

/// Compares the times at which packets start after a silence and stop before one.
///
/// Outputs are moved back by the median delay. Each edge then scores by its distance to the nearest edge on the other
/// side.
pub(crate) struct StartStop {
    pub way: Way,
}

impl Attacker for StartStop {
    fn name(&self) -> String {
        format!("start-stop{}", self.way.suffix())
    }

    fn source(&self) -> &'static str {
        "A. Pfitzmann et al., ISDN-Mixes: Untraceable Communication with Very Small Bandwidth Overhead, 1991; \
         L. Overlier and P. Syverson, Locating Hidden Servers, S&P 2006"
    }

    fn scores(&self, record: &Record) -> Scores {
        directions::scores(record, self.way, |direction| {
            let delay = direction.delay.median();
            let edges = |times: &Vec<u64>, earlier: i64| Edges::of(times, earlier, direction.length);
            let inputs: Vec<Edges> = direction.inputs.iter().map(|times| edges(times, 0)).collect();
            let outputs: Vec<Edges> = direction.outputs.iter().map(|times| edges(times, delay)).collect();
            Scores::of_pairs(inputs.len(), outputs.len(), |i, o| inputs[i].likeness(&outputs[o]))
        })
    }
}

struct Edges {
    starts: Vec<i64>,
    stops: Vec<i64>,
}

impl Edges {
    /// A trace that begins or ends with the record has no edge there.
    fn of(times: &[u64], earlier: i64, length: u64) -> Self {
        let (mut starts, mut stops) = (Vec::new(), Vec::new());
        let mut before = 0;
        for &at in times {
            if at - before > SILENCE {
                starts.push(at as i64 - earlier);
                if before > 0 {
                    stops.push(before as i64 - earlier);
                }
            }
            before = at;
        }
        if before > 0 && length - before.min(length) > SILENCE {
            stops.push(before as i64 - earlier);
        }
        Self { starts, stops }
    }

    fn likeness(&self, other: &Self) -> f64 {
        near(&self.starts, &other.starts)
            + near(&other.starts, &self.starts)
            + near(&self.stops, &other.stops)
            + near(&other.stops, &self.stops)
    }
}

/// The sum over `edges` of how near the nearest of `others` is. An edge without one within reach counts against the
/// pair.
fn near(edges: &[i64], others: &[i64]) -> f64 {
    let score = |edge: &i64| {
        let after = others.partition_point(|other| other < edge);
        let candidates = others[after.saturating_sub(1)..].iter().take(2);
        let distance = candidates.map(|other| (other - edge).abs() as f64).fold(f64::INFINITY, f64::min);
        if distance < REACH { (REACH / (distance + CLOSE)).ln() } else { -0.5 }
    };
    edges.iter().map(score).sum()
}
