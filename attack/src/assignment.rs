//! Gives each user a flow of its own: the assignment with the highest sum of scores.

use pathfinding::{kuhn_munkres::kuhn_munkres, matrix::Matrix};

use crate::{
    attacker::{Attacker, Example, Scores},
    record::Record,
};

/// Adds to an attacker the knowledge that no two users share a flow.
///
/// Scores of assigned pairs are raised by the range of all scores, so they are above all others. Within both groups the
/// order of the scores stays.
pub(crate) struct Assigned<A>(pub A);

impl<A: Attacker> Attacker for Assigned<A> {
    fn name(&self) -> String {
        format!("{}+assignment", self.0.name())
    }

    fn source(&self) -> &'static str {
        "C. Troncoso, B. Gierlichs, B. Preneel and I. Verbauwhede, Perfect Matching Disclosure Attacks, PETS 2008"
    }

    fn applies(&self, record: &Record) -> bool {
        self.0.applies(record)
    }

    fn learn(&mut self, examples: &[Example<'_>]) {
        self.0.learn(examples);
    }

    fn scores(&self, record: &Record) -> Scores {
        assigned(&self.0.scores(record))
    }
}

/// Raises the scores of the best assignment. Scores that are all equal stay as they are: no assignment is best.
fn assigned(scores: &Scores) -> Scores {
    let (users, flows) = (scores.rows(), scores.columns());
    let finite = |score: f64| if score.is_finite() { score } else { f64::MIN };
    let all = || (0..users).flat_map(|user| scores.row(user)).copied().filter(|score| score.is_finite());
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    if high <= low || users > flows {
        return scores.clone();
    }
    // The crate computes with integers: a million millionth of the range is fine enough.
    let weight = |score: f64| ((finite(score).max(low) - low) / (high - low) * 1e12) as i64;
    let weights = Matrix::from_fn(users, flows, |(user, flow)| weight(scores.at(user, flow)));
    let (_, flow_of) = kuhn_munkres(&weights);
    Scores::of_pairs(users, flows, |user, flow| {
        let raised = if flow_of[user] == flow { high - low } else { 0.0 };
        scores.at(user, flow) + raised
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignment_resolves_a_dispute_over_a_flow() {
        // Both prefer flow 0; user 1 has nothing else to offer.
        let table = [[0.9, 0.8], [0.7, 0.1]];
        let scores = assigned(&Scores::of_pairs(2, 2, |user, flow| table[user][flow]));
        assert!(scores.at(0, 1) > scores.at(0, 0) && scores.at(1, 0) > scores.at(1, 1));
    }

    #[test]
    fn equal_scores_stay_equal() {
        let scores = Scores::of_pairs(5, 5, |_, _| 0.3);
        assert_eq!(assigned(&scores), scores);
    }
}
