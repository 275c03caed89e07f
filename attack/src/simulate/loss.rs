//! Loss on access links.

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;

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

pub(super) fn lost(loss: Loss, rng: &mut ChaCha8Rng, cells: usize) -> Vec<bool> {
    let mut bad = false;
    (0..cells)
        .map(|_| match loss {
            Loss::None => false,
            Loss::Independent(share) => rng.random::<f64>() < share,
            Loss::Bursts { share, run } => {
                // The chain's stationary share of bad states is `share`, a bad state lasts `run` cells.
                let leave = 1.0 / run;
                let enter = leave * share / (1.0 - share);
                bad = rng.random::<f64>() < if bad { 1.0 - leave } else { enter };
                bad
            }
        })
        .collect()
}
