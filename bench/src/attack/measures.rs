//! Measures of scores in addition to the figures of the crate `attack`: the ROC curve at fixed rates, and the entropy
//! that an attacker leaves.

use attack::figures::{margins, roc_points};
use attack::{Scores, Truth};

/// Powers of two by which scores are multiplied, after division by their standard deviation.
const SCALES: std::ops::RangeInclusive<i32> = -8..=12;
/// Probability that is spread evenly over all flows: a mistake of a sure attacker does not count for infinity.
const SPREAD: f64 = 0.01;

/// False positive rates of [`roc`]: 1e-4 to 1, five for each decade.
pub(super) fn false_positive_rates() -> Vec<f64> {
    (0..=20).map(|step| rounded(10f64.powf(f64::from(step) / 5.0 - 4.0), 1e6)).collect()
}

/// The true positive rate over all pairs at each of the [`false_positive_rates`], of margins over the rivals.
pub(super) fn roc(scores: &Scores, truth: &Truth) -> Vec<f64> {
    let points = roc_points(&margins(scores), truth);
    let at = |rate: f64| {
        let after = points.partition_point(|point| point.0 <= rate);
        let below = points[after.saturating_sub(1)];
        points.get(after).map_or(below.1, |above| {
            below.1 + (above.1 - below.1) * (rate - below.0) / (above.0 - below.0).max(f64::MIN_POSITIVE)
        })
    };
    false_positive_rates().into_iter().map(|rate| rounded(at(rate), 1e4)).collect()
}

/// Bits of uncertainty about a user's flow that scores leave: from 0 to the logarithm of the number of flows.
///
/// A softmax makes probabilities of each user's scores. All users have one scale: the one with the best result, so the
/// unit of the scores does not matter. The result is the mean of -log2 of the right flow's probability (the cross
/// entropy), which an attacker can reach and which is not below the conditional entropy of the flow, except for the
/// choice of the scale.
pub(super) fn bits_left(scores: &Scores, truth: &Truth) -> f64 {
    let distances = distances(scores);
    let scale = |power: i32| 2f64.powi(power);
    let bits = SCALES.map(|power| cross_entropy(&distances, truth, scale(power)));
    rounded(bits.fold((scores.columns().max(1) as f64).log2(), f64::min), 1e4)
}

/// Of each user, how much lower each flow's score is than the highest, in standard deviations of all of these.
fn distances(scores: &Scores) -> Vec<Vec<f64>> {
    let row = |user: usize| {
        let row = scores.row(user);
        let best = row.iter().copied().filter(|score| score.is_finite()).fold(f64::NEG_INFINITY, f64::max);
        row.iter().map(|score| (score.is_finite()).then_some(best - score)).collect::<Vec<Option<f64>>>()
    };
    let rows: Vec<Vec<Option<f64>>> = (0..scores.rows()).map(row).collect();
    let finite = || rows.iter().flatten().filter_map(|distance| *distance);
    let (count, sum) = finite().fold((0.0, 0.0), |(count, sum), distance| (count + 1.0, sum + distance));
    let mean = sum / f64::max(count, 1.0);
    let deviation = (finite().map(|distance| (distance - mean).powi(2)).sum::<f64>() / f64::max(count, 1.0)).sqrt();
    let unit = if deviation > 0.0 { deviation } else { 1.0 };
    // A score that cannot be computed is lower than all others.
    let lowest = finite().fold(0.0, f64::max) + unit;
    rows.into_iter().map(|row| row.into_iter().map(|one| one.unwrap_or(lowest) / unit).collect()).collect()
}

fn cross_entropy(distances: &[Vec<f64>], truth: &Truth, scale: f64) -> f64 {
    let bits = distances.iter().zip(&truth.0).map(|(row, &flow)| {
        let all = row.iter().map(|distance| (-scale * distance).exp()).sum::<f64>();
        let own = (-scale * row[flow]).exp() / all;
        -((1.0 - SPREAD) * own + SPREAD / row.len() as f64).log2()
    });
    bits.sum::<f64>() / distances.len().max(1) as f64
}

/// `unit` is how many steps there are from 0 to 1.
fn rounded(value: f64, unit: f64) -> f64 {
    (value * unit).round() / unit
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diagonal(users: usize) -> Truth {
        Truth((0..users).collect())
    }

    #[test]
    fn perfect_scores_leave_nothing_and_equal_ones_everything() {
        let truth = diagonal(16);
        let perfect = Scores::of_pairs(16, 16, |user, flow| if user == flow { 3.0 } else { f64::NEG_INFINITY });
        assert!(bits_left(&perfect, &truth) < 0.02);
        let perfect = Scores::of_pairs(16, 16, |user, flow| 1e-6 * f64::from(u8::from(user == flow)));
        assert!(bits_left(&perfect, &truth) < 0.02);
        assert!(roc(&perfect, &truth).iter().all(|rate| *rate == 1.0));
        let equal = Scores::of_pairs(16, 16, |_, _| 0.7);
        assert_eq!(bits_left(&equal, &truth), 4.0);
        assert_eq!(roc(&equal, &truth), false_positive_rates().iter().map(|r| rounded(*r, 1e4)).collect::<Vec<_>>());
    }

    #[test]
    fn scores_that_halve_the_flows_leave_one_bit_less() {
        // Each user is known to have one of eight flows of sixteen.
        let scores = Scores::of_pairs(16, 16, |user, flow| 1000.0 * f64::from(u8::from(user / 8 == flow / 8)));
        assert!((bits_left(&scores, &diagonal(16)) - 3.0).abs() < 0.02);
        // A sure attacker that is wrong about all users is worth nothing.
        let wrong = Scores::of_pairs(16, 16, |user, flow| f64::from(u8::from((user + 1) % 16 == flow)));
        assert!((bits_left(&wrong, &diagonal(16)) - 4.0).abs() < 0.05);
    }
}
