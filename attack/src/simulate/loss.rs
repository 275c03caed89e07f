//! Loss on access links.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

use super::{MS, SECOND, exponential};

/// Loss of single cells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    None,
    /// Each cell is lost with this probability.
    Independent(f64),
    /// Gilbert-Elliott channel: `share` of the cells are lost, in runs of mean length `run` cells (geometric).
    Bursts {
        share: f64,
        run: f64,
    },
}

/// Times in which a link loses everything: they begin on average every `every` seconds and last `ms` on average (both
/// exponential).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outages {
    pub every: f64,
    pub ms: f64,
}

pub(super) fn lost(
    loss: Loss,
    outages: Option<Outages>,
    length: u64,
    rng: &mut ChaCha8Rng,
    times: impl Iterator<Item = u64>,
) -> Vec<bool> {
    let spans = outages.map(|outages| spans(outages, length, rng)).unwrap_or_default();
    let mut next_span = spans.iter().peekable();
    let mut bad = false;
    times
        .map(|at| {
            let single = match loss {
                Loss::None => false,
                Loss::Independent(share) => rng.random::<f64>() < share,
                Loss::Bursts { share, run } => {
                    // The chain's stationary share of bad states is `share`, a bad state lasts `run` cells.
                    let leave = 1.0 / run;
                    let enter = leave * share / (1.0 - share);
                    bad = rng.random::<f64>() < if bad { 1.0 - leave } else { enter };
                    bad
                }
            };
            while next_span.next_if(|(_, end)| *end <= at).is_some() {}
            single || next_span.peek().is_some_and(|(start, _)| *start <= at)
        })
        .collect()
}

fn spans(outages: Outages, length: u64, rng: &mut ChaCha8Rng) -> Vec<(u64, u64)> {
    let mut spans = Vec::new();
    let mut at = 0;
    loop {
        let start = at + exponential(rng, outages.every * SECOND as f64) as u64;
        if start >= length {
            return spans;
        }
        at = start + exponential(rng, outages.ms * MS as f64) as u64;
        spans.push((start, at));
    }
}
