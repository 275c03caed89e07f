//! What `report` reads of the output of `attack --json`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::costs::Costs;
use super::facts::Facts;
use super::judge::Summary;
use crate::machine::Machine;

/// The object that `attack --json` prints.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct AttackResult {
    pub(crate) results: Vec<Found>,
    /// The false positive rates of all ROC curves.
    pub(crate) roc_rates: Vec<f64>,
    pub(crate) summaries: Vec<Summary>,
    pub(crate) runs: Vec<RunInfo>,
    pub(crate) machine: Machine,
}

/// What one attacker found in one record.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Found {
    pub(crate) case: String,
    pub(crate) profile: Option<String>,
    pub(crate) users: usize,
    pub(crate) seconds: f64,
    pub(crate) seed: u64,
    pub(crate) attacker: String,
    pub(crate) top1: f64,
    pub(crate) mrr: f64,
    pub(crate) auc: f64,
    pub(crate) tpr_1e2: f64,
    pub(crate) tpr_1e3: f64,
    pub(crate) entropy_bits: f64,
    /// True positive rates.
    pub(crate) roc: Vec<f64>,
}

/// A record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunInfo {
    pub(crate) case: String,
    pub(crate) seed: u64,
    /// Arguments of `eddy-bench` that made it, if the record says.
    pub(crate) command: Option<String>,
    pub(crate) costs: Costs,
    /// Mean time that a datagram waited at the end of its tunnel before it was sent, if the case is a rival's.
    #[serde(default)]
    pub(crate) wait_ms: Option<f64>,
    /// `None` if it is synthetic.
    pub(crate) facts: Option<Facts>,
}

impl AttackResult {
    /// Who sends what, for the label: `: voice, 100 users`.
    pub(crate) fn users(&self) -> String {
        let distinct = |of: fn(&Found) -> Option<String>| self.results.iter().filter_map(of).collect::<BTreeSet<_>>();
        let profiles = distinct(|found| found.profile.clone());
        let users = distinct(|found| Some(format!("{} users", found.users)));
        let parts: Vec<String> = profiles.into_iter().chain(users).collect();
        if parts.is_empty() { String::new() } else { format!(": {}", parts.join(", ")) }
    }

    /// Length of the longest record, in seconds.
    pub(crate) fn length(&self) -> Option<f64> {
        self.results.iter().map(|found| found.seconds).reduce(f64::max)
    }
}
