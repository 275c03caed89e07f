//! The search for the highest rate that passes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

/// The rate doubles from here on, until one fails.
pub(super) const RATE_FIRST: f64 = 1000.0;
const RATE_LAST: f64 = 20_000_000.0;
/// Passes in a row that the highest rate needs.
const PASSES: u32 = 3;
/// Longest search, plus the trial that is running.
const SEARCH: Duration = Duration::from_secs(180);

/// One trial of a rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// Packets per second.
    pub(crate) rate: f64,
    /// No packet was lost, and p99 was within its budget.
    pub(crate) passed: bool,
    pub(crate) sent: u64,
    /// Packets that did not arrive.
    pub(crate) lost: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    /// Why it failed.
    pub(crate) limited_by: Option<String>,
}

/// The result of a search.
pub(super) struct Highest {
    /// The highest rate that passed.
    pub(super) rate: f64,
    /// The lowest rate above it that failed.
    pub(super) failed: f64,
    /// Why that one failed.
    pub(super) limited_by: String,
    /// The worst p99 of the trials at the highest rate.
    pub(super) p99_us: f64,
}

pub(super) struct Search<'a> {
    /// Accuracy: ends when the highest pass and the lowest failure are this close, in percent.
    pub(super) within: f64,
    pub(super) interrupted: &'a AtomicBool,
    pub(super) bar: ProgressBar,
    pub(super) trials: Vec<Trial>,
}

impl Search<'_> {
    /// `attempt` trials a rate.
    ///
    /// # Errors
    /// No rate passes, or `attempt` fails.
    pub(super) fn run(&mut self, attempt: &mut dyn FnMut(f64) -> anyhow::Result<Trial>) -> anyhow::Result<Highest> {
        let deadline = Instant::now() + SEARCH;
        let (mut good, mut bad): (Option<f64>, Option<f64>) = (None, None);
        let mut limit = String::from("the generator: it has no higher rate");
        let within = 1.0 + self.within / 100.0;
        let mut passes = 0;
        loop {
            let rate = match (good, bad) {
                (None, None) => RATE_FIRST,
                (Some(good), None) if good * 2.0 > RATE_LAST => good,
                (Some(good), None) => good * 2.0,
                (Some(good), Some(bad)) if bad > good * within => (good * bad).sqrt().round(),
                // Close enough: the highest has to pass again.
                (Some(good), Some(_)) => good,
                (None, Some(bad)) if bad > 2.0 => (bad / 2.0).round(),
                (None, Some(_)) => bail!("even {} datagrams/s do not pass: limited by {limit}", bad.unwrap_or(0.0)),
            };
            if self.interrupted.load(Ordering::Relaxed) || Instant::now() > deadline {
                break;
            }
            let mut tried = self.attempt(rate, attempt)?;
            if !tried.passed {
                // A busy moment of the machine is forgiven once.
                tried = self.attempt(rate, attempt)?;
            }
            if tried.passed {
                passes = if good == Some(rate) { passes + 1 } else { 1 };
                good = Some(rate);
                let close = bad.is_some_and(|bad| bad <= rate * within) || rate * 2.0 > RATE_LAST;
                if close && passes >= PASSES {
                    break;
                }
            } else {
                limit = tried.limited_by.unwrap_or(limit);
                bad = Some(rate);
                if good.is_some_and(|good| good >= rate) {
                    good = self.passed_below(rate);
                }
                passes = 0;
            }
        }
        let Some(rate) = good else { bail!("the search ended before a rate passed") };
        let at_rate = self.trials.iter().filter(|tried| tried.passed && tried.rate == rate);
        let p99_us = at_rate.map(|tried| tried.p99_us).fold(0.0, f64::max);
        Ok(Highest { rate, failed: bad.unwrap_or(f64::INFINITY).min(RATE_LAST), limited_by: limit, p99_us })
    }

    /// The highest rate below this one that passed and did not fail twice.
    fn passed_below(&self, rate: f64) -> Option<f64> {
        let failed = |at: f64| self.trials.iter().filter(|tried| tried.rate == at && !tried.passed).count() > 1;
        self.trials
            .iter()
            .filter(|tried| tried.passed && tried.rate < rate && !failed(tried.rate))
            .map(|tried| tried.rate)
            .max_by(f64::total_cmp)
    }

    fn attempt(&mut self, rate: f64, attempt: &mut dyn FnMut(f64) -> anyhow::Result<Trial>) -> anyhow::Result<Trial> {
        let best = self.passed_below(f64::INFINITY).unwrap_or(0.0);
        self.bar.set_message(format!("trying {rate:.0}/s; {best:.0}/s passed"));
        self.bar.tick();
        let tried = attempt(rate)?;
        self.trials.push(tried.clone());
        Ok(tried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn searched(within: f64, passes: impl Fn(f64, usize) -> bool) -> (anyhow::Result<Highest>, Vec<Trial>) {
        let never = AtomicBool::new(false);
        let mut search = Search { within, interrupted: &never, bar: ProgressBar::hidden(), trials: Vec::new() };
        let mut count = 0;
        let found = search.run(&mut |rate| {
            count += 1;
            let passed = passes(rate, count);
            let limited_by = (!passed).then(|| "a limit".to_owned());
            Ok(Trial { rate, passed, sent: 1, lost: 0, p50_us: 1.0, p99_us: rate, limited_by })
        });
        (found, search.trials)
    }

    #[test]
    fn limit_is_found_and_passes_three_times() {
        let (found, trials) = searched(5.0, |rate, _| rate <= 77_000.0);
        let found = found.unwrap();
        assert!(found.rate <= 77_000.0 && found.failed > 77_000.0 && found.failed <= found.rate * 1.05);
        assert_eq!((found.limited_by.as_str(), found.p99_us), ("a limit", found.rate));
        assert!(trials.iter().filter(|tried| tried.rate == found.rate && tried.passed).count() >= 3);
    }

    #[test]
    fn single_failure_is_forgiven() {
        let (found, _) = searched(5.0, |rate, count| count != 3 && rate <= 77_000.0);
        assert!(found.unwrap().rate > 70_000.0);
    }

    #[test]
    fn rate_that_fails_later_is_not_the_capacity() {
        // 64,000 passes only the first time.
        let (found, _) = searched(50.0, |rate, count| rate <= 60_000.0 || (rate == 64_000.0 && count < 8));
        assert!(found.unwrap().rate <= 60_000.0);
    }

    #[test]
    fn failure_of_every_rate_names_the_limit() {
        let (found, _) = searched(5.0, |_, _| false);
        let said = found.err().unwrap().to_string();
        assert!(said.starts_with("even") && said.contains("a limit"), "{said}");
    }
}
