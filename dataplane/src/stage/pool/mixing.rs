//! The mixing strategies and their notation (SPEC 6.1): `name:key=value,...`.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::{LAST_RESORT, THRESHOLD_MAX};
use crate::{MILLI, Nanos};

/// The rule that releases a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixing {
    /// Released when it holds `n` cells of at least `n_min` channels, and on a 1 s grid as a last resort.
    Threshold {
        n: usize,
        n_min: usize,
    },
    /// Everything, on a grid of `t`.
    Timed {
        t: Nanos,
    },
    ThresholdOrTimed {
        n: usize,
        n_min: usize,
        t: Nanos,
    },
}

impl Default for Mixing {
    /// 64 cells or 5 ms.
    fn default() -> Self {
        Mixing::ThresholdOrTimed { n: 64, n_min: 8, t: 5 * MILLI }
    }
}

impl Mixing {
    /// Period of the grid; none if every cell leaves at once.
    pub fn period(&self) -> Option<Nanos> {
        match *self {
            Mixing::Threshold { n: 1, .. } => None,
            Mixing::Threshold { .. } => Some(LAST_RESORT),
            Mixing::Timed { t } | Mixing::ThresholdOrTimed { t, .. } => Some(t),
        }
    }

    /// The longest that a cell can wait.
    pub fn largest_delay(&self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.period().unwrap_or(0))
    }

    /// True if `cells` cells of `channels` channels release the pool.
    pub fn reached(&self, cells: usize, channels: usize) -> bool {
        match *self {
            Mixing::Threshold { n, n_min } | Mixing::ThresholdOrTimed { n, n_min, .. } => {
                cells >= n && channels >= n_min
            }
            Mixing::Timed { .. } => false,
        }
    }
}

impl fmt::Display for Mixing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |t: Nanos| t as f64 / MILLI as f64;
        match *self {
            Mixing::Threshold { n, n_min } => write!(f, "threshold:n={n},n_min={n_min}"),
            Mixing::Timed { t } => write!(f, "timed:t={}ms", ms(t)),
            Mixing::ThresholdOrTimed { n, n_min, t } => {
                write!(f, "threshold-or-timed:n={n},n_min={n_min},t={}ms", ms(t))
            }
        }
    }
}

/// A mixing specification that does not parse.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "mixing {spec:?}: {fault}: expected one of threshold:n=64, timed:t=5ms, threshold-or-timed:n=64,t=5ms (n_min=8 may follow)"
)]
pub struct BadMixing {
    spec: String,
    fault: String,
}

/// The message for a period that is not accepted.
fn bad_duration(pair: &str, value: &str) -> String {
    let in_ms = format!("{value}ms");
    match duration(&in_ms) {
        Some(_) => format!("{pair:?} has no unit: write t={in_ms} (100us to 60s)"),
        None => format!("{pair:?}: expected 100us to 60s"),
    }
}

fn duration(text: &str) -> Option<Nanos> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let scale = match unit {
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    let nanos = number.parse::<f64>().ok()? * scale;
    (1e5..=6e10).contains(&nanos).then_some(nanos.round() as Nanos)
}

impl FromStr for Mixing {
    type Err = BadMixing;

    fn from_str(spec: &str) -> Result<Self, BadMixing> {
        let fault = |fault: String| BadMixing { spec: spec.to_owned(), fault };
        let (name, rest) = spec.split_once(':').unwrap_or((spec, ""));
        let (mut n, mut n_min, mut t) = (None, None, None);
        for pair in rest.split(',').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| fault(format!("{pair:?} is not KEY=VALUE")))?;
            let count = || {
                let count = value.parse::<usize>().ok().filter(|n| (1..=THRESHOLD_MAX).contains(n));
                count.ok_or_else(|| fault(format!("{pair:?}: expected 1 to {THRESHOLD_MAX}")))
            };
            let slot_taken = match key {
                "n" => n.replace(count()?).is_some(),
                "n_min" => n_min.replace(count()?).is_some(),
                "t" => t.replace(duration(value).ok_or_else(|| fault(bad_duration(pair, value)))?).is_some(),
                _ => return Err(fault(format!("unknown key {key:?}"))),
            };
            if slot_taken {
                return Err(fault(format!("duplicate key {key}")));
            }
        }
        let floor = |n: usize| n_min.unwrap_or(n.div_ceil(8));
        let mixing = match (name, n, t) {
            ("threshold", Some(n), None) => Mixing::Threshold { n, n_min: floor(n) },
            ("timed", None, Some(t)) if n_min.is_none() => Mixing::Timed { t },
            ("threshold-or-timed", n, t) => {
                let n = n.unwrap_or(64);
                Mixing::ThresholdOrTimed { n, n_min: floor(n), t: t.unwrap_or(5 * MILLI) }
            }
            ("threshold", None, _) => return Err(fault("threshold needs n".into())),
            ("threshold", _, Some(_)) => return Err(fault("threshold takes no t".into())),
            ("timed", _, None) => return Err(fault("timed needs t".into())),
            ("timed", ..) => return Err(fault("timed takes only t".into())),
            _ => return Err(fault(format!("unknown strategy {name:?}"))),
        };
        match mixing {
            Mixing::Threshold { n, n_min } | Mixing::ThresholdOrTimed { n, n_min, .. } if n_min > n => {
                Err(fault(format!("n_min={n_min} is more than n={n}")))
            }
            good => Ok(good),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_period_displays_and_parses_the_same(t in MILLI / 10..=60_000 * MILLI) {
            let mixing = Mixing::Timed { t };
            prop_assert_eq!(mixing.to_string().parse(), Ok(mixing));
        }
    }

    #[test]
    fn a_fault_is_told_in_one_line() {
        for bad in ["timed:t=5\nms", "threshold:n=\n", "threshold:n=5,\n", "\n"] {
            assert_eq!(bad.parse::<Mixing>().unwrap_err().to_string().lines().count(), 1, "{bad:?}");
        }
    }

    #[test]
    fn notation_and_meaning_agree() {
        let good = [
            ("threshold:n=5", Mixing::Threshold { n: 5, n_min: 1 }),
            ("threshold:n=64,n_min=3", Mixing::Threshold { n: 64, n_min: 3 }),
            ("timed:t=2.5ms", Mixing::Timed { t: 2_500_000 }),
            ("threshold-or-timed", Mixing::default()),
            ("threshold-or-timed:n=9,t=1s", Mixing::ThresholdOrTimed { n: 9, n_min: 2, t: 1_000_000_000 }),
        ];
        for (spec, want) in good {
            let mixing: Mixing = spec.parse().unwrap();
            assert_eq!(mixing, want);
            assert_eq!(mixing.to_string().parse(), Ok(want));
        }
        for bad in [
            "",
            "poisson",
            "threshold",
            "threshold:n=0",
            "threshold:n=5,t=1ms",
            "timed",
            "timed:t=5",
            "timed:t=0ms",
            "timed:n=5,t=1ms",
            "threshold:n=5,n=6",
            "threshold:n=5,n_min=6",
            "timed:t=1ms,x=1",
            "threshold:n",
        ] {
            let error = bad.parse::<Mixing>().unwrap_err();
            assert!(error.to_string().contains("expected one of"), "{error}");
        }
        let error = "timed:t=5".parse::<Mixing>().unwrap_err().to_string();
        assert!(error.contains(r#""t=5" has no unit: write t=5ms (100us to 60s)"#), "{error}");
    }
}
