//! Prints how often whoever suppresses the setups of two users learns from the number of pairs whether they are one.
//!
//! The exit counts the pairs of a batch. If the two are one pair, it counts one pair less than before; if each of them
//! calls somebody else, two less. The honest mixes blur the count: each has from 0 to `loops` pairs of its own, drawn
//! for every batch. The attacker is the best there can be, and knows how many pairs there are without the two.
//!
//! ```text
//! cargo run --release -p attack --example pairs -- [LOOPS]
//! ```

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const TRIALS: usize = 200_000;
const MIXES: [usize; 3] = [1, 2, 3];
const BATCHES: [usize; 5] = [1, 2, 3, 5, 10];

fn main() {
    let loops: usize = std::env::args().nth(1).and_then(|loops| loops.parse().ok()).unwrap_or(2);
    let batches = BATCHES.map(|batches| batches.to_string());
    println!("| honest mixes | batches: {} |", batches.join(" | "));
    println!("|{}", " --- |".repeat(1 + BATCHES.len()));
    for mixes in MIXES {
        let shares = BATCHES.map(|batches| format!("{:.0} %", right(loops, mixes, batches) * 100.0));
        println!("| {mixes} | {} |", shares.join(" | "));
    }
}

/// How often the attacker is right after this many batches, if one pair and two strangers are equally likely.
fn right(loops: usize, mixes: usize, batches: usize) -> f64 {
    let noise = noise(loops, mixes);
    let probability = |pairs: i64| usize::try_from(pairs).ok().and_then(|i| noise.get(i)).copied().unwrap_or(0.0);
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut right = 0.0;
    for trial in 0..TRIALS {
        let is_pair = trial % 2 == 0;
        // Of what was counted, how likely it is for each of the two; pairs of others are left out.
        let (mut if_pair, mut if_strangers) = (1.0, 1.0);
        for _ in 0..batches {
            let loops: i64 = (0..mixes).map(|_| rng.random_range(0..=loops as i64)).sum();
            let counted = loops - if is_pair { 1 } else { 2 };
            if_pair *= probability(counted + 1);
            if_strangers *= probability(counted + 2);
        }
        right += match if_pair.total_cmp(&if_strangers) {
            std::cmp::Ordering::Equal => 0.5,
            more => f64::from((more == std::cmp::Ordering::Greater) == is_pair),
        };
    }
    right / TRIALS as f64
}

/// The probability of each number of pairs of loops.
fn noise(loops: usize, mixes: usize) -> Vec<f64> {
    (0..mixes).fold(vec![1.0], |before, _| {
        let mut next = vec![0.0; before.len() + loops];
        for (i, p) in before.iter().enumerate() {
            next[i..=i + loops].iter_mut().for_each(|sum| *sum += p / (loops + 1) as f64);
        }
        next
    })
}
