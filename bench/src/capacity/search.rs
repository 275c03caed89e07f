//! The search itself, whatever is searched.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

/// Rates from here on are doubled until one fails.
pub const RATE_FIRST: f64 = 1000.0;
const RATE_LAST: f64 = 20_000_000.0;
/// How often the highest rate must pass, one after the other.
const PASSES: u32 = 3;
/// The whole search, beside what is under way.
const SEARCH: Duration = Duration::from_secs(180);

/// One rate that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Try {
    /// Packets a second.
    pub rate: f64,
    /// None was lost, and they were in time.
    pub passed: bool,
    /// Packets that left.
    pub sent: u64,
    /// Those of them that did not arrive.
    pub lost: u64,
    /// Latency of half of them, at most.
    pub p50_us: f64,
    /// Of 99 in a hundred.
    pub p99_us: f64,
    /// What it ran into, if it failed.
    pub limited_by: Option<String>,
}

/// What a search has found.
pub struct Highest {
    /// The highest rate that passed.
    pub rate: f64,
    /// The lowest that failed above it.
    pub failed: f64,
    /// What that ran into.
    pub limited_by: String,
    /// The greatest p99 of the tries at the highest rate.
    pub p99_us: f64,
}

/// How to search.
pub struct Search<'a> {
    /// It ends when pass and failure are so close, in percent.
    pub within: f64,
    /// Somebody ends it.
    pub interrupted: &'a AtomicBool,
    /// Told what is tried.
    pub bar: ProgressBar,
    /// What was tried.
    pub tries: Vec<Try>,
}

impl Search<'_> {
    /// Searches with `attempt`, which tries a rate.
    ///
    /// # Errors
    /// Not even the lowest rate passes, or `attempt` fails.
    pub fn run(&mut self, attempt: &mut dyn FnMut(f64) -> anyhow::Result<Try>) -> anyhow::Result<Highest> {
        let deadline = Instant::now() + SEARCH;
        let (mut good, mut bad): (Option<f64>, Option<f64>) = (None, None);
        let mut limit = String::from("nothing: the generator has no higher rate");
        let within = 1.0 + self.within / 100.0;
        let mut passes = 0;
        loop {
            let rate = match (good, bad) {
                (None, None) => RATE_FIRST,
                (Some(good), None) if good * 2.0 > RATE_LAST => good,
                (Some(good), None) => good * 2.0,
                (Some(good), Some(bad)) if bad > good * within => (good * bad).sqrt().round(),
                // Close enough: it has to pass again.
                (Some(good), Some(_)) => good,
                (None, Some(bad)) if bad > 2.0 => (bad / 2.0).round(),
                (None, Some(_)) => bail!("not even {} datagrams a second pass: limited by {limit}", bad.unwrap_or(0.0)),
            };
            if self.interrupted.load(Ordering::Relaxed) || Instant::now() > deadline {
                break;
            }
            let mut tried = self.attempt(rate, attempt)?;
            if !tried.passed {
                // A machine has moments: what fails once is tried once more.
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
        let Some(rate) = good else { bail!("ended before any rate had passed") };
        let at_rate = self.tries.iter().filter(|tried| tried.passed && tried.rate == rate);
        let p99_us = at_rate.map(|tried| tried.p99_us).fold(0.0, f64::max);
        Ok(Highest { rate, failed: bad.unwrap_or(f64::INFINITY).min(RATE_LAST), limited_by: limit, p99_us })
    }

    /// The highest rate below this one that passed and never failed.
    fn passed_below(&self, rate: f64) -> Option<f64> {
        let failed = |at: f64| self.tries.iter().filter(|tried| tried.rate == at && !tried.passed).count() > 1;
        self.tries
            .iter()
            .filter(|tried| tried.passed && tried.rate < rate && !failed(tried.rate))
            .map(|tried| tried.rate)
            .max_by(f64::total_cmp)
    }

    fn attempt(&mut self, rate: f64, attempt: &mut dyn FnMut(f64) -> anyhow::Result<Try>) -> anyhow::Result<Try> {
        let best = self.passed_below(f64::INFINITY).unwrap_or(0.0);
        self.bar.set_message(format!("{rate:.0} a second; {best:.0} passed"));
        self.bar.tick();
        let tried = attempt(rate)?;
        self.tries.push(tried.clone());
        Ok(tried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn searched(within: f64, passes: impl Fn(f64, usize) -> bool) -> (anyhow::Result<Highest>, Vec<Try>) {
        let never = AtomicBool::new(false);
        let mut search = Search { within, interrupted: &never, bar: ProgressBar::hidden(), tries: Vec::new() };
        let mut count = 0;
        let found = search.run(&mut |rate| {
            count += 1;
            let passed = passes(rate, count);
            let limited_by = (!passed).then(|| "a limit".to_owned());
            Ok(Try { rate, passed, sent: 1, lost: 0, p50_us: 1.0, p99_us: rate, limited_by })
        });
        (found, search.tries)
    }

    #[test]
    fn the_limit_is_found_and_passes_three_times() {
        let (found, tries) = searched(5.0, |rate, _| rate <= 77_000.0);
        let found = found.unwrap();
        assert!(found.rate <= 77_000.0 && found.failed > 77_000.0 && found.failed <= found.rate * 1.05);
        assert_eq!((found.limited_by.as_str(), found.p99_us), ("a limit", found.rate));
        assert!(tries.iter().filter(|tried| tried.rate == found.rate && tried.passed).count() >= 3);
    }

    #[test]
    fn a_moment_of_the_machine_is_forgiven_once() {
        let (found, _) = searched(5.0, |rate, count| count != 3 && rate <= 77_000.0);
        assert!(found.unwrap().rate > 70_000.0);
    }

    #[test]
    fn a_rate_that_does_not_pass_again_is_no_capacity() {
        // 64,000 passes once, when it is first met, and never again.
        let (found, _) = searched(50.0, |rate, count| rate <= 60_000.0 || (rate == 64_000.0 && count < 8));
        assert!(found.unwrap().rate <= 60_000.0);
    }

    #[test]
    fn what_carries_nothing_is_told_with_its_limit() {
        let (found, _) = searched(5.0, |_, _| false);
        let said = found.err().unwrap().to_string();
        assert!(said.starts_with("not even") && said.contains("a limit"), "{said}");
    }
}
