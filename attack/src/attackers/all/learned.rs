//! A learned matcher: boosted trees over what other attackers say about a pair.
//!
//! It is trained with records of other seeds, whose truth is known: the pairs that belong together, and others. It
//! learns how much each attacker is worth where the others are unsure. It sees how far a pair is above its row, its
//! column and its best rivals, not the scores themselves, so it also works on records of other lengths.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use smartcore::{
    linalg::basic::matrix::DenseMatrix,
    xgboost::{XGRegressor, XGRegressorParameters},
};

use super::{BatchTracing, Correlation, Lateness, Likelihood, MissingSlots, Outage, PacketCount, Volume};
use crate::{
    attacker::{Attacker, Example, Scores},
    directions::Way,
    record::Record,
};

/// Lengths of the beginnings that each example is also learned from, in nanoseconds.
const BEGINNINGS: [u64; 2] = [3_000_000_000, 10_000_000_000];

/// For each pair that belongs together: pairs that do not, half of them those that look most like it.
const OTHERS: usize = 4;

/// Values per pair and attacker.
const VIEWS: usize = 4;

type Trees = XGRegressor<f64, f64, DenseMatrix<f64>, Vec<f64>>;

/// Boosted trees over the scores of other attackers.
pub(crate) struct Learned {
    bases: Vec<Box<dyn Attacker>>,
    seed: u64,
    trees: Option<Trees>,
}

impl Learned {
    /// Until it is trained, its score is the mean over all attackers of how far the pair is above its row and column.
    pub(crate) fn new(seed: u64) -> Self {
        Self { bases: bases(), seed, trees: None }
    }
}

impl Attacker for Learned {
    fn name(&self) -> String {
        "learned".into()
    }

    fn source(&self) -> &'static str {
        "M. Nasr, A. Bahramali and A. Houmansadr, DeepCorr: Strong Flow Correlation Attacks on Tor Using Deep Learning, \
         CCS 2018; T. Chen and C. Guestrin, XGBoost: A Scalable Tree Boosting System, KDD 2016; D. Wolpert, Stacked \
         Generalization, Neural Networks 1992"
    }

    /// Equal examples and seeds give equal trees.
    fn learn(&mut self, examples: &[Example<'_>]) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for example in examples {
            let whole = example.record.length;
            for length in BEGINNINGS.into_iter().filter(|&length| length < whole).chain([whole]) {
                let views = Views::of(&self.bases, &example.record.first(length));
                for (user, flow, label) in lessons(&views, &example.truth.0, &mut rng) {
                    rows.push(views.row(user, flow));
                    labels.push(label);
                }
            }
        }
        let parameters = XGRegressorParameters::default()
            .with_n_estimators(50)
            .with_max_depth(3)
            .with_learning_rate(0.2)
            .with_min_child_weight(5)
            .with_subsample(0.7)
            .with_base_score(0.0)
            .with_seed(self.seed);
        let trees = DenseMatrix::from_2d_vec(&rows).and_then(|rows| Trees::fit(&rows, &labels, parameters));
        self.trees = trees.ok();
    }

    fn scores(&self, record: &Record) -> Scores {
        let views = Views::of(&self.bases, record);
        let (users, flows) = (record.access.len(), record.flows.len());
        let judged = |user: usize| -> Vec<f64> {
            let rows = (0..flows).map(|flow| views.row(user, flow)).collect::<Vec<_>>();
            let predict = |trees: &Trees| DenseMatrix::from_2d_vec(&rows).and_then(|rows| trees.predict(&rows)).ok();
            self.trees.as_ref().and_then(predict).unwrap_or_else(|| vec![0.0; flows])
        };
        let judged: Vec<Vec<f64>> = (0..users).into_par_iter().map(judged).collect();
        // Trees give many pairs the same value: the mean decides among them.
        Scores::of_pairs(users, flows, |user, flow| judged[user][flow] + 1e-3 * views.mean(user, flow))
    }
}

/// Attackers of every kind that take little time.
fn bases() -> Vec<Box<dyn Attacker>> {
    let way = Way::Both;
    vec![
        Box::new(BatchTracing),
        Box::new(Likelihood { way, two_sided: true }),
        Box::new(Correlation { way, bin_ms: 20 }),
        Box::new(Correlation { way, bin_ms: 100 }),
        Box::new(Correlation { way, bin_ms: 500 }),
        Box::new(PacketCount { way, window_ms: 1000 }),
        Box::new(Volume { way }),
        Box::new(MissingSlots { way }),
        Box::new(Lateness),
        Box::new(Outage::new(super::Exit::Honest)),
    ]
}

/// What all bases say about all pairs.
struct Views {
    /// The common logarithm of the record's seconds: short records say less.
    length: f64,
    bases: Vec<View>,
}

/// One base: its scores, and of each row and column the mean, the deviation and the two best scores.
struct View {
    scores: Scores,
    rows: Vec<Line>,
    columns: Vec<Line>,
}

struct Line {
    mean: f64,
    deviation: f64,
    best: [f64; 2],
}

impl Views {
    fn of(bases: &[Box<dyn Attacker>], record: &Record) -> Self {
        let length = (record.length.max(1) as f64 / 1e9).log10();
        Self { length, bases: bases.iter().map(|base| View::of(base.scores(record))).collect() }
    }

    fn row(&self, user: usize, flow: usize) -> Vec<f64> {
        let mut row = Vec::with_capacity(1 + VIEWS * self.bases.len());
        row.push(self.length);
        row.extend(self.bases.iter().flat_map(|view| view.values(user, flow)));
        row
    }

    /// The mean of how far a pair is above its row and column.
    fn mean(&self, user: usize, flow: usize) -> f64 {
        let above = |view: &View| view.values(user, flow)[..2].iter().sum::<f64>();
        self.bases.iter().map(above).sum::<f64>() / (2 * self.bases.len()) as f64
    }
}

impl View {
    fn of(scores: Scores) -> Self {
        let (users, flows) = (scores.rows(), scores.columns());
        let rows = (0..users).map(|user| Line::of(scores.row(user).iter().copied())).collect();
        let columns = (0..flows).map(|flow| Line::of((0..users).map(|user| scores.at(user, flow)))).collect();
        Self { scores, rows, columns }
    }

    /// In deviations: above the mean of the row and of the column, above the best rival in the row and in the column.
    fn values(&self, user: usize, flow: usize) -> [f64; VIEWS] {
        let (score, row, column) = (self.scores.at(user, flow), &self.rows[user], &self.columns[flow]);
        if !score.is_finite() {
            return [0.0; VIEWS];
        }
        [row.above_mean(score), column.above_mean(score), row.above_rival(score), column.above_rival(score)]
    }
}

impl Line {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        let count = values.len().max(1) as f64;
        let mean = values.iter().sum::<f64>() / count;
        let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
        let best = values.iter().fold([f64::NEG_INFINITY; 2], |[first, second], &value| {
            if value > first { [value, first] } else { [first, second.max(value)] }
        });
        Self { mean, deviation, best }
    }

    fn above_mean(&self, score: f64) -> f64 {
        self.scaled(score - self.mean)
    }

    fn above_rival(&self, score: f64) -> f64 {
        self.scaled(score - if score >= self.best[0] { self.best[1] } else { self.best[0] })
    }

    fn scaled(&self, distance: f64) -> f64 {
        let scaled = distance / self.deviation;
        if scaled.is_finite() { scaled.clamp(-50.0, 50.0) } else { 0.0 }
    }
}

/// Pairs to learn from: user, flow, and 1 where they belong together.
fn lessons(views: &Views, flow_of: &[usize], rng: &mut ChaCha8Rng) -> Vec<(usize, usize, f64)> {
    let mut lessons = Vec::new();
    for (user, &own) in flow_of.iter().enumerate() {
        let mut others: Vec<usize> = (0..flow_of.len()).filter(|&flow| flow != own).collect();
        others.sort_by(|&a, &b| views.mean(user, b).total_cmp(&views.mean(user, a)));
        lessons.push((user, own, 1.0));
        for i in 0..OTHERS.min(others.len()) {
            let other = if i < OTHERS / 2 { i } else { rng.random_range(0..others.len()) };
            lessons.push((user, others[other], 0.0));
        }
    }
    lessons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{Chain, Ideal, Simulation};
    use crate::{figures::top1, record::Truth};

    fn run(chain: &Chain, seconds: f64, seed: u64) -> (Record, Truth) {
        Simulation { chain: chain.clone(), ..Simulation::new(40, seconds, seed) }.run()
    }

    fn trained(chain: &Chain, seconds: f64) -> Learned {
        let runs = [run(chain, seconds, 11), run(chain, seconds, 12)];
        let examples: Vec<Example<'_>> = runs.iter().map(|(record, truth)| Example { record, truth }).collect();
        let mut learned = Learned::new(1);
        learned.learn(&examples);
        learned
    }

    #[test]
    fn learned_matcher_finds_calls_through_a_grid() {
        let (record, truth) = run(&Chain::DEFAULT, 5.0, 1);
        let scores = trained(&Chain::DEFAULT, 4.0).scores(&record);
        assert!(top1(&scores, &truth) > 0.9);
        assert_eq!(scores, trained(&Chain::DEFAULT, 4.0).scores(&record), "equal seeds give equal scores");
    }

    #[test]
    fn learned_matcher_is_at_chance_on_independent_records() {
        let ideal = Chain::Ideal(Ideal::default());
        let (record, truth) = run(&ideal, 5.0, 1);
        assert!(top1(&trained(&ideal, 5.0).scores(&record), &truth) <= 0.125);
        assert!(top1(&trained(&Chain::DEFAULT, 5.0).scores(&record), &truth) <= 0.125);
    }

    #[test]
    fn without_examples_the_mean_decides() {
        let (record, truth) = run(&Chain::DEFAULT, 5.0, 1);
        assert!(top1(&Learned::new(1).scores(&record), &truth) > 0.9);
    }
}
