//! What the setup of a channel costs a hop's control: in memory, without the link cells' own cryptography.

use std::time::Duration;

use eddy_node::runtime::seats::opening_times;
use wire::paced::PacedTerms;
use wire::setup::Suite;

use super::HOPS;
use crate::stats::median;

/// Setups that are measured.
const SETUPS: usize = 200;

/// Processor time of a mix for one setup, median.
pub(super) fn setup_cost(terms: &PacedTerms, position: usize) -> Duration {
    let times = opening_times(terms, Suite::Hybrid, HOPS, position, SETUPS);
    Duration::from_nanos(median(times.iter().map(|time| time.as_nanos() as f64)) as u64)
}
