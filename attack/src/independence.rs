//! Did anybody find anything? Permutation tests, which need no model of what chance looks like.
//!
//! If access links and flows are independent, the right matching of users and flows is as good as any other. So a
//! statistic of the right matching is compared with the same statistic of random matchings; p is the share of all of
//! them, the right one included, that do at least as well. It is exact for any number of attackers and any scores.

use rand::{SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{
    attacker::Scores,
    figures::Rank,
    record::{Place, Record, Truth},
};

/// Random matchings. The smallest p is 1 / (PERMUTATIONS + 1).
const PERMUTATIONS: usize = 999;

/// One answer from all attackers together.
///
/// The interval of the best of many attackers is not a test: with 100 users the best of 38 reaches 2 to 5 % by luck.
/// Here the best of the permuted matchings has the same choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The permutation p of the largest standardised statistic of all attackers. Each attacker has two: its mean
    /// reciprocal rank, which reacts to a few users that are found, and its mean percentile, which reacts to all users
    /// being a little closer to their flows than to others. The largest, not the sum, because a leak is usually seen by
    /// the one attacker that is made for it, and the noise of the others would drown it.
    pub p: f64,
    /// The attacker that has the largest statistic, by its place in the list.
    pub attacker: usize,
    /// Its statistic, in standard deviations of the permuted matchings.
    pub deviations: f64,
    /// The best top-1 of all attackers.
    pub best_top1: f64,
    /// The permutation p of that.
    pub p_best_top1: f64,
    /// What the best top-1 reaches in 95 % of the random matchings, or less.
    pub best_top1_by_chance: f64,
}

/// Judges all attackers' scores of one record together. `seed` is for the matchings.
pub fn verdict(scores: &[Scores], truth: &Truth, seed: u64) -> Verdict {
    assert!(!scores.is_empty(), "at least one attacker");
    let tables: Vec<Vec<Rank>> = scores.iter().map(ranks).collect();
    let matchings = matchings(truth, seed);
    // For each matching, three values per attacker: reciprocal rank, percentile, top-1.
    let values: Vec<Vec<[f64; 3]>> = matchings
        .iter()
        .map(|flow_of| {
            tables.iter().zip(scores).map(|(ranks, scores)| means(ranks, scores.columns(), flow_of)).collect()
        })
        .collect();
    let statistics: Vec<(usize, f64)> = {
        let scales: Vec<[(f64, f64); 2]> = (0..scores.len())
            .map(|attacker| [0, 1].map(|kind| mean_and_deviation(values.iter().map(|v| v[attacker][kind]))))
            .collect();
        let largest = |values: &Vec<[f64; 3]>| {
            let both = values.iter().zip(&scales).map(|(v, s)| {
                let standard = |kind: usize| (v[kind] - s[kind].0) / s[kind].1;
                standard(0).max(standard(1))
            });
            both.enumerate().fold((0, f64::NEG_INFINITY), |best, one| if one.1 > best.1 { one } else { best })
        };
        values.iter().map(largest).collect()
    };
    let best: Vec<f64> = values.iter().map(|v| v.iter().map(|v| v[2]).fold(0.0, f64::max)).collect();
    let mut by_chance = best[1..].to_vec();
    by_chance.sort_by(f64::total_cmp);
    Verdict {
        p: share_at_least(statistics.iter().map(|s| s.1)),
        attacker: statistics[0].0,
        deviations: statistics[0].1,
        best_top1: best[0],
        p_best_top1: share_at_least(best.iter().copied()),
        best_top1_by_chance: by_chance[by_chance.len() * 95 / 100],
    }
}

/// The p-value for independence of access links and flows, without any attacker: distance correlation of what users
/// send with what their flows show, over the users, against random matchings.
///
/// Users are compared with users and flows with flows by packets per 20 ms, 100 ms and 1 s of both directions. If users
/// whose links are alike have flows that are alike, the distances correlate. The largest of the three, standardised, is
/// tested. Source: G. Székely, M. Rizzo and N. Bakirov, Measuring and Testing Dependence by Correlation of Distances,
/// Annals of Statistics 2007.
pub fn distance_correlation_p(record: &Record, truth: &Truth, seed: u64) -> f64 {
    let matchings = matchings(truth, seed);
    let users = truth.0.len();
    let products: Vec<Vec<f64>> = [20_000_000, 100_000_000, 1_000_000_000]
        .into_iter()
        .map(|bin| {
            let access = centred_distances(&record.access, bin, record.length);
            let flows = centred_distances(&record.flows, bin, record.length);
            let columns = record.flows.len();
            let product = |flow_of: &Vec<usize>| -> f64 {
                let rows = (0..users).map(|a| {
                    let flows = &flows[flow_of[a] * columns..][..columns];
                    access[a * users..][..users].iter().zip(flow_of).map(|(d, &flow)| d * flows[flow]).sum::<f64>()
                });
                rows.sum()
            };
            let products: Vec<f64> = matchings.iter().map(product).collect();
            let (mean, deviation) = mean_and_deviation(products.iter().copied());
            products.iter().map(|product| (product - mean) / deviation).collect()
        })
        .collect();
    share_at_least((0..matchings.len()).map(|m| products.iter().map(|p| p[m]).fold(f64::NEG_INFINITY, f64::max)))
}

/// The right matching first, then random ones.
fn matchings(truth: &Truth, seed: u64) -> Vec<Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut all = vec![truth.0.clone()];
    all.extend((0..PERMUTATIONS).map(|_| {
        let mut flow_of = truth.0.clone();
        flow_of.shuffle(&mut rng);
        flow_of
    }));
    all
}

fn ranks(scores: &Scores) -> Vec<Rank> {
    let flows = |user: usize| (0..scores.columns()).map(move |flow| (user, flow));
    (0..scores.rows()).flat_map(flows).map(|(user, flow)| Rank::of(scores.row(user), flow)).collect()
}

fn means(ranks: &[Rank], columns: usize, flow_of: &[usize]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for (user, &flow) in flow_of.iter().enumerate() {
        let rank = &ranks[user * columns + flow];
        sums[0] += rank.reciprocal;
        sums[1] += rank.percentile;
        sums[2] += rank.top1;
    }
    sums.map(|sum| sum / flow_of.len() as f64)
}

/// A statistic that is always the same has an infinite deviation here: it never stands out.
pub(crate) fn mean_and_deviation(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let n = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / n;
    let deviation = (values.map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    (mean, if deviation > 1e-9 { deviation } else { f64::INFINITY })
}

/// The share of values that are at least the first, which counts as well.
pub(crate) fn share_at_least(values: impl Iterator<Item = f64>) -> f64 {
    let mut values = values.peekable();
    let first = values.peek().copied().unwrap_or(0.0);
    let (mut at_least, mut all) = (0u32, 0u32);
    for value in values {
        at_least += u32::from(value >= first - 1e-12);
        all += 1;
    }
    f64::from(at_least) / f64::from(all.max(1))
}

/// Euclidean distances of the packet counts of all places, less the means of rows and columns.
fn centred_distances(places: &[Place], bin: u64, length: u64) -> Vec<f64> {
    let bins = length.div_ceil(bin) as usize;
    let counts: Vec<Vec<f32>> = places
        .iter()
        .map(|place| {
            let mut counts = vec![0f32; 2 * bins];
            for (offset, trace) in [(0, &place.forward), (bins, &place.backward)] {
                trace.iter().for_each(|seen| counts[offset + (seen.at / bin) as usize] += 1.0);
            }
            counts
        })
        .collect();
    let distance = |a: usize, b: usize| {
        let squares = counts[a].iter().zip(&counts[b]).map(|(a, b)| (a - b) * (a - b));
        f64::from(squares.sum::<f32>()).sqrt()
    };
    let n = places.len();
    let scores = Scores::of_pairs(n, n, distance);
    let means: Vec<f64> = (0..n).map(|a| scores.row(a).iter().sum::<f64>() / n as f64).collect();
    let mean = means.iter().sum::<f64>() / n.max(1) as f64;
    (0..n * n).map(|i| scores.at(i / n, i % n) - means[i / n] - means[i % n] + mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngExt as _;

    use crate::simulate::{Chain, Ideal, Simulation};

    fn noise(seed: u64, users: usize) -> Scores {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let noise: Vec<f64> = (0..users * users).map(|_| rng.random()).collect();
        Scores::of_pairs(users, users, |user, flow| noise[user * users + flow])
    }

    #[test]
    fn best_of_many_by_luck_is_not_an_alarm() {
        let truth = Truth((0..50).collect());
        let mut alarms = 0;
        for run in 0..20 {
            let scores: Vec<Scores> = (0..38).map(|attacker| noise(run * 100 + attacker, 50)).collect();
            let verdict = verdict(&scores, &truth, run);
            assert!(verdict.best_top1 >= 0.04, "the best of 38 looks good: {verdict:?}");
            alarms += u32::from(verdict.p < 0.05);
        }
        assert!(alarms <= 4, "{alarms} of 20 at 5 %");
    }

    #[test]
    fn one_attacker_of_many_that_knows_is_an_alarm() {
        let truth = Truth((0..50).rev().collect());
        let mut scores: Vec<Scores> = (0..38).map(|attacker| noise(attacker, 50)).collect();
        // The 17th finds every fifth user.
        scores[17] = scores[17]
            .plus(&Scores::of_pairs(50, 50, |user, flow| f64::from(u8::from(user % 5 == 0 && flow == 49 - user))));
        let verdict = verdict(&scores, &truth, 1);
        assert!(verdict.p <= 0.002 && verdict.attacker == 17, "{verdict:?}");
    }

    #[test]
    fn equal_scores_are_no_evidence() {
        let scores = [Scores::of_pairs(20, 20, |_, _| 1.0)];
        let verdict = verdict(&scores, &Truth((0..20).collect()), 1);
        assert_eq!((verdict.p, verdict.p_best_top1), (1.0, 1.0));
    }

    #[test]
    fn distances_depend_through_a_free_chain_only() {
        let free = Simulation::new(30, 8.0, 4);
        let (record, truth) = free.run();
        assert!(distance_correlation_p(&record, &truth, 1) <= 0.002);
        let (record, truth) = Simulation { chain: Chain::Ideal(Ideal::default()), ..free }.run();
        assert!(distance_correlation_p(&record, &truth, 1) > 0.02);
    }
}
