//! What scores are worth, given the truth: accuracy, rank, ROC, and how sure these are.
//!
//! Equal scores count at their expectation over a random order, so an attacker that gives all pairs one score has a
//! top-1 of 1/N and an AUC of one half.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{attacker::Scores, record::Truth};

/// Seconds after which attackers are judged.
pub const TIMES: [f64; 5] = [1.0, 3.0, 10.0, 30.0, 60.0];

const RESAMPLES: usize = 200;
const ROC_POINTS: usize = 200;

/// How well one attacker did on one record. All shares are from 0 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Share of users whose flow has the highest score in their row.
    pub top1: f64,
    /// Mean of 1/rank of the user's flow in the user's row.
    pub mrr: f64,
    /// Area under the ROC curve over all pairs, of [`margins`].
    pub auc: f64,
    /// True positive rate over all pairs at a false positive rate of 1e-2, of [`margins`].
    pub tpr_1e2: f64,
    /// True positive rate over all pairs at a false positive rate of 1e-3, of [`margins`].
    pub tpr_1e3: f64,
    /// The same three of the scores as they are. Users differ in the level of their scores, so one threshold for all
    /// rows usually finds less.
    pub auc_raw: f64,
    pub tpr_1e2_raw: f64,
    pub tpr_1e3_raw: f64,
    pub interval: Intervals,
}

/// 95 % intervals: percentiles of a bootstrap over users (rows). The one of `top1` also covers Wilson's interval: a
/// bootstrap of nothing but misses, or of nothing but hits, has no width.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Intervals {
    pub top1: [f64; 2],
    pub mrr: [f64; 2],
    pub auc: [f64; 2],
    pub tpr_1e2: [f64; 2],
    pub tpr_1e3: [f64; 2],
}

/// Judges scores. `seed` is for the bootstrap: one seed, one result.
pub fn figures(scores: &Scores, truth: &Truth, seed: u64) -> Figures {
    assert_eq!(scores.rows(), truth.0.len(), "a flow for each user");
    let ranks: Vec<Rank> = truth.0.iter().enumerate().map(|(user, &flow)| Rank::of(scores.row(user), flow)).collect();
    let margin_pairs = Pairs::new(&margins(scores), truth);
    let raw_pairs = Pairs::new(scores, truth);
    let once = vec![1; ranks.len()];
    let [auc, tpr_1e2, tpr_1e3] = margin_pairs.roc(&once);
    let [auc_raw, tpr_1e2_raw, tpr_1e3_raw] = raw_pairs.roc(&once);
    let top1 = mean(&ranks, &once, |rank| rank.top1);
    let interval = intervals(&ranks, &margin_pairs, top1, seed);
    let mrr = mean(&ranks, &once, |rank| rank.reciprocal);
    Figures { top1, mrr, auc, tpr_1e2, tpr_1e3, auc_raw, tpr_1e2_raw, tpr_1e3_raw, interval }
}

/// Share of users whose flow has the highest score in their row.
pub fn top1(scores: &Scores, truth: &Truth) -> f64 {
    let ranks = truth.0.iter().enumerate().map(|(user, &flow)| Rank::of(scores.row(user), flow).top1);
    ranks.sum::<f64>() / truth.0.len().max(1) as f64
}

/// When a growing accuracy first reaches `level`: linear between the points of `curve` (seconds, accuracy), which
/// starts at zero seconds with none. `None` if it never does.
pub fn seconds_until(level: f64, curve: &[(f64, f64)]) -> Option<f64> {
    let mut before = (0.0, 0.0);
    for &(seconds, accuracy) in curve {
        if accuracy >= level {
            let share = (level - before.1) / (accuracy - before.1);
            return Some(before.0 + share * (seconds - before.0));
        }
        before = (seconds, accuracy);
    }
    None
}

/// Scores relative to the rivals: a pair's score less the highest other one in its row or column. A user whose scores
/// are all high, or a flow that resembles everybody, no longer hides the pairs that stand out.
pub fn margins(scores: &Scores) -> Scores {
    let (rows, columns) = (scores.rows(), scores.columns());
    let row_best: Vec<BestTwo> = (0..rows).map(|user| BestTwo::of((0..columns).map(|f| scores.at(user, f)))).collect();
    let column_best: Vec<BestTwo> =
        (0..columns).map(|flow| BestTwo::of((0..rows).map(|user| scores.at(user, flow)))).collect();
    Scores::of_pairs(rows, columns, |user, flow| {
        let rival = row_best[user].except(flow).max(column_best[flow].except(user));
        if rival.is_finite() { scores.at(user, flow) - rival } else { scores.at(user, flow) }
    })
}

/// The ROC curve of scores over all pairs, of [`margins`] if it belongs to [`Figures::auc`]: (false positive rate,
/// true positive rate), at most about 200 points, closer together where false positives are few.
pub fn roc_points(scores: &Scores, truth: &Truth) -> Vec<(f64, f64)> {
    let pairs = Pairs::new(scores, truth);
    let all = pairs.curve(&vec![1; truth.0.len()]);
    let mut points: Vec<(f64, f64)> = Vec::new();
    for &point in &all {
        let step = (point.0 * 0.1).max(1e-4);
        let moved = |last: &(f64, f64)| point.0 - last.0 >= step || point.1 - last.1 >= 4.0 / ROC_POINTS as f64;
        if points.last().is_none_or(moved) {
            points.push(point);
        }
    }
    if points.last() != all.last() {
        points.extend(all.last());
    }
    points
}

/// The place of the true flow in a user's row, at expectation over the order of equal scores.
pub(crate) struct Rank {
    pub top1: f64,
    pub reciprocal: f64,
    /// Share of the other flows that score less; those that score the same count half.
    pub percentile: f64,
}

impl Rank {
    pub(crate) fn of(row: &[f64], flow: usize) -> Self {
        let mine = order(row[flow]);
        let above = row.iter().filter(|&&other| order(other) > mine).count();
        let equal = row.iter().filter(|&&other| order(other) == mine).count();
        let top1 = if above == 0 { 1.0 / equal as f64 } else { 0.0 };
        let reciprocal = (1..=equal).map(|i| 1.0 / (above + i) as f64).sum::<f64>() / equal as f64;
        let below = (row.len() - above - equal) as f64;
        let percentile = match row.len() {
            0 | 1 => 0.5,
            n => (below + 0.5 * (equal - 1) as f64) / (n - 1) as f64,
        };
        Self { top1, reciprocal, percentile }
    }
}

/// A score that cannot be computed is the lowest.
fn order(score: f64) -> f64 {
    if score.is_nan() { f64::NEG_INFINITY } else { score }
}

fn mean(ranks: &[Rank], weights: &[u32], value: impl Fn(&Rank) -> f64) -> f64 {
    let total: u32 = weights.iter().sum();
    ranks.iter().zip(weights).map(|(rank, &weight)| value(rank) * f64::from(weight)).sum::<f64>() / f64::from(total)
}

/// The highest two of some scores.
struct BestTwo {
    best: (usize, f64),
    second: f64,
}

impl BestTwo {
    fn of(scores: impl Iterator<Item = f64>) -> Self {
        let mut two = Self { best: (usize::MAX, f64::NEG_INFINITY), second: f64::NEG_INFINITY };
        for (i, score) in scores.map(order).enumerate() {
            if score > two.best.1 {
                two.second = two.best.1;
                two.best = (i, score);
            } else if score > two.second {
                two.second = score;
            }
        }
        two
    }

    fn except(&self, i: usize) -> f64 {
        if self.best.0 == i { self.second } else { self.best.1 }
    }
}

/// All pairs from the highest score down, in groups of equal scores.
struct Pairs {
    /// (user, is true, ends a group)
    sorted: Vec<(u32, bool, bool)>,
}

impl Pairs {
    fn new(scores: &Scores, truth: &Truth) -> Self {
        let mut pairs: Vec<(f64, u32, bool)> = (0..scores.rows())
            .flat_map(|user| {
                let row = scores.row(user).iter().enumerate();
                row.map(move |(flow, &score)| (order(score), user as u32, truth.0[user] == flow))
            })
            .collect();
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let last = pairs.len().saturating_sub(1);
        let ends = |i: usize| i == last || pairs[i].0 != pairs[i + 1].0;
        Self { sorted: (0..pairs.len()).map(|i| (pairs[i].1, pairs[i].2, ends(i))).collect() }
    }

    /// (false positive rate, true positive rate) after each group, from (0, 0); `weights` is how often each user
    /// counts.
    fn curve(&self, weights: &[u32]) -> Vec<(f64, f64)> {
        let (mut positives, mut negatives) = (0u64, 0u64);
        for &(user, is_true, _) in &self.sorted {
            *(if is_true { &mut positives } else { &mut negatives }) += u64::from(weights[user as usize]);
        }
        let (mut hits, mut misses) = (0u64, 0u64);
        let mut curve = vec![(0.0, 0.0)];
        for &(user, is_true, ends_group) in &self.sorted {
            *(if is_true { &mut hits } else { &mut misses }) += u64::from(weights[user as usize]);
            if ends_group {
                curve.push((misses as f64 / negatives.max(1) as f64, hits as f64 / positives.max(1) as f64));
            }
        }
        curve
    }

    /// AUC and the true positive rates at 1e-2 and 1e-3.
    fn roc(&self, weights: &[u32]) -> [f64; 3] {
        let curve = self.curve(weights);
        let area = curve.windows(2).map(|w| (w[1].0 - w[0].0) * f64::midpoint(w[0].1, w[1].1)).sum();
        [area, tpr_at(&curve, 1e-2), tpr_at(&curve, 1e-3)]
    }
}

/// The true positive rate where the curve crosses this false positive rate. Within a group of equal scores it is
/// linear: a random part of the group is taken.
fn tpr_at(curve: &[(f64, f64)], rate: f64) -> f64 {
    let after = curve.partition_point(|point| point.0 <= rate);
    let below = curve[after - 1];
    match curve.get(after) {
        None => below.1,
        Some(above) => below.1 + (above.1 - below.1) * (rate - below.0) / (above.0 - below.0),
    }
}

fn intervals(ranks: &[Rank], pairs: &Pairs, top1: f64, seed: u64) -> Intervals {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let users = ranks.len();
    let mut samples: [Vec<f64>; 5] = Default::default();
    for _ in 0..RESAMPLES {
        let mut weights = vec![0u32; users];
        for _ in 0..users {
            weights[rng.random_range(0..users)] += 1;
        }
        let [auc, tpr_1e2, tpr_1e3] = pairs.roc(&weights);
        let top1 = mean(ranks, &weights, |rank| rank.top1);
        let mrr = mean(ranks, &weights, |rank| rank.reciprocal);
        for (sample, value) in samples.iter_mut().zip([top1, mrr, auc, tpr_1e2, tpr_1e3]) {
            sample.push(value);
        }
    }
    let [top1_samples, mrr, auc, tpr_1e2, tpr_1e3] = samples.map(percentiles);
    let wilson = wilson(top1, users as f64);
    let top1 = [top1_samples[0].min(wilson[0]), top1_samples[1].max(wilson[1])];
    Intervals { top1, mrr, auc, tpr_1e2, tpr_1e3 }
}

fn percentiles(mut sample: Vec<f64>) -> [f64; 2] {
    sample.sort_by(f64::total_cmp);
    let at = |share: f64| sample[(share * (sample.len() - 1) as f64).round() as usize];
    [at(0.025), at(0.975)]
}

/// Wilson's 95 % interval for a share of `n`.
fn wilson(share: f64, n: f64) -> [f64; 2] {
    let z2 = 1.96f64.powi(2);
    let middle = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = 1.96 / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagonal(users: usize) -> Truth {
        Truth((0..users).collect())
    }

    #[test]
    fn equal_scores_count_at_expectation() {
        let scores = Scores::of_pairs(50, 50, |_, _| 0.7);
        let figures = figures(&scores, &diagonal(50), 1);
        assert!((figures.top1 - 0.02).abs() < 1e-12);
        assert!((figures.auc - 0.5).abs() < 1e-12);
        assert!((figures.tpr_1e2 - 0.01).abs() < 1e-12);
        assert!((figures.tpr_1e3_raw - 0.001).abs() < 1e-12);
        assert!((figures.mrr - (1..=50).map(|i| 1.0 / f64::from(i)).sum::<f64>() / 50.0).abs() < 1e-12);
    }

    #[test]
    fn perfect_scores_have_perfect_figures() {
        let scores = Scores::of_pairs(40, 40, |user, flow| f64::from(u8::from(user == flow)));
        let figures = figures(&scores, &diagonal(40), 1);
        assert_eq!([figures.top1, figures.mrr, figures.auc, figures.tpr_1e2, figures.tpr_1e3], [1.0; 5]);
        assert!(figures.interval.top1[0] < 1.0 && figures.interval.top1[1] == 1.0);
    }

    #[test]
    fn scores_that_are_not_numbers_rank_last() {
        let scores = Scores::of_pairs(3, 3, |user, flow| if user == flow { f64::NAN } else { 0.0 });
        let figures = figures(&scores, &diagonal(3), 1);
        assert_eq!((figures.top1, figures.auc_raw), (0.0, 0.0));
    }

    #[test]
    fn margins_find_what_levels_hide() {
        // Each user's scores have a level of their own, far apart; the true flow stands out by a little.
        let scores = Scores::of_pairs(30, 30, |user, flow| user as f64 + 0.1 * f64::from(u8::from(user == flow)));
        let figures = figures(&scores, &diagonal(30), 1);
        assert!(figures.tpr_1e2_raw < 0.1, "{figures:?}");
        assert_eq!(figures.top1, 1.0);
    }

    #[test]
    fn figures_depend_on_their_seed_only() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let noise: Vec<f64> = (0..900).map(|_| rng.random()).collect();
        let scores = Scores::of_pairs(30, 30, |user, flow| noise[user * 30 + flow]);
        assert_eq!(figures(&scores, &diagonal(30), 7), figures(&scores, &diagonal(30), 7));
        let interval = figures(&scores, &diagonal(30), 7).interval;
        assert!(interval.auc[0] < 0.5 && 0.5 < interval.auc[1], "{interval:?}");
    }

    #[test]
    fn time_to_a_level_is_interpolated() {
        assert_eq!(seconds_until(0.5, &[(1.0, 0.25), (3.0, 0.75)]), Some(2.0));
        assert_eq!(seconds_until(0.5, &[(1.0, 0.25)]), None);
        assert_eq!(seconds_until(0.5, &[(2.0, 1.0)]), Some(1.0));
    }

    #[test]
    fn roc_points_run_from_corner_to_corner() {
        let scores = Scores::of_pairs(20, 20, |user, flow| ((user * 7 + flow * 13) % 10) as f64);
        let points = roc_points(&scores, &diagonal(20));
        assert_eq!((points[0], *points.last().unwrap()), ((0.0, 0.0), (1.0, 1.0)));
        assert!(points.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1));
    }
}
