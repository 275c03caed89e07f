//! The trait of attackers: an attacker takes a record and scores every pair of a user and a flow.

use crate::record::{Record, Truth};

/// A way to match users to flows.
pub trait Attacker: Sync {
    /// Short name for tables and JSON: lower-case words joined by hyphens.
    fn name(&self) -> String;

    /// The paper or document that the method comes from.
    fn source(&self) -> &'static str;

    /// True if the record has the data that the attacker looks at. Where it has not, all scores are equal.
    fn applies(&self, _record: &Record) -> bool {
        true
    }

    /// Learns from records of other seeds. Most attackers do not learn.
    fn learn(&mut self, _examples: &[Example<'_>]) {}

    /// A score for each user (row) and flow (column): the higher, the more alike. Only the order of scores matters.
    fn scores(&self, record: &Record) -> Scores;
}

/// A record whose truth is known. Attackers that learn are trained with records of other seeds than those that they
/// attack.
pub struct Example<'a> {
    pub record: &'a Record,
    pub truth: &'a Truth,
}

/// A matrix of scores: rows are users, columns are flows.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    columns: usize,
    values: Vec<f64>,
}

impl Scores {
    /// Computes all pairs, rows in parallel.
    pub fn of_pairs(rows: usize, columns: usize, score: impl Fn(usize, usize) -> f64 + Sync) -> Self {
        use rayon::prelude::*;
        let values = (0..rows * columns).into_par_iter().map(|i| score(i / columns, i % columns)).collect();
        Self { columns, values }
    }

    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.columns).unwrap_or(0)
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    pub fn row(&self, user: usize) -> &[f64] {
        &self.values[user * self.columns..][..self.columns]
    }

    pub fn at(&self, user: usize, flow: usize) -> f64 {
        self.row(user)[flow]
    }

    /// The flows as rows and the users as columns.
    pub fn transposed(&self) -> Self {
        let values = (0..self.columns).flat_map(|flow| (0..self.rows()).map(move |user| self.at(user, flow))).collect();
        Self { columns: self.rows(), values }
    }

    /// The sum of two matrices of one shape.
    pub fn plus(&self, other: &Self) -> Self {
        assert_eq!((self.rows(), self.columns), (other.rows(), other.columns), "matrices of one shape");
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a + b).collect();
        Self { columns: self.columns, values }
    }
}
