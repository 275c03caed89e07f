//! Even loads: a rate, arrivals and lengths from the command line.

use std::fmt;
use std::str::FromStr;

use rand::RngExt;
use rand_chacha::ChaCha20Rng;

use super::header;
use super::source::{Nanos, SECOND, Source, exponential};

/// A load of equal flows.
#[derive(Clone, Debug)]
pub(crate) struct Even {
    pub(crate) flows: usize,
    /// Datagrams per second over all flows.
    pub(crate) rate: f64,
    pub(crate) arrivals: Arrivals,
    pub(crate) lengths: Lengths,
}

/// Spacing of the datagrams of an even load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrivals {
    /// At equal intervals, flow after flow.
    Constant,
    /// At exponential intervals in each flow.
    Poisson,
    /// This many of a flow at once.
    Burst(u32),
}

impl Arrivals {
    /// Bursts at high rates: programs that send so fast use GSO, and without it the generator would be measured.
    pub(crate) fn for_rate(rate: f64) -> Arrivals {
        Arrivals::Burst((rate / 50_000.0).max(1.0) as u32)
    }
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "")) {
            ("constant", "") => Ok(Arrivals::Constant),
            ("poisson", "") => Ok(Arrivals::Poisson),
            ("burst", n) => match n.parse() {
                Ok(n) if (1..=100_000).contains(&n) => Ok(Arrivals::Burst(n)),
                _ => Err(format!(
                    "invalid arrivals \"burst:{n}\": expected burst:N with N from 1 to 100000, e.g. burst:32"
                )),
            },
            _ => Err(format!("invalid arrivals {text:?}: expected constant, poisson or burst:N")),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arrivals::Constant => write!(f, "constant"),
            Arrivals::Poisson => write!(f, "poisson"),
            Arrivals::Burst(n) => write!(f, "burst:{n}"),
        }
    }
}

/// Lengths of an even load's datagrams: `1000`, `200-1300` (uniform), or a list with weights, `172*6,1200*1`.
///
/// Each entry is `(shortest, longest, weight)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lengths(Vec<(u32, u32, u32)>);

/// Longest UDP payload over IPv4.
const LONGEST: u32 = 65_507;

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let (least, most) = (header::SHORTEST, LONGEST);
            format!(
                "invalid lengths {text:?}: expected bytes from {least} to {most}, e.g. 1000, 200-1300 or 172*6,1200*1"
            )
        };
        let part = |part: &str| -> Option<(u32, u32, u32)> {
            let (lengths, weight) = part.split_once('*').unwrap_or((part, "1"));
            let (low, high) = lengths.split_once('-').unwrap_or((lengths, lengths));
            let (low, high, weight) = (low.parse().ok()?, high.parse().ok()?, weight.parse().ok()?);
            (header::SHORTEST as u32 <= low && low <= high && high <= LONGEST && (1..=1000).contains(&weight))
                .then_some((low, high, weight))
        };
        text.split(',').map(part).collect::<Option<Vec<_>>>().map(Lengths).ok_or_else(wrong)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (low, high, weight)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let to = if low < high { format!("-{high}") } else { String::new() };
            let times = if self.0.len() > 1 { format!("*{weight}") } else { String::new() };
            write!(f, "{comma}{low}{to}{times}")?;
        }
        Ok(())
    }
}

impl Lengths {
    pub(crate) fn fixed(len: u32) -> Lengths {
        Lengths(vec![(len, len, 1)])
    }

    #[cfg(test)]
    fn mean(&self) -> f64 {
        let all: u32 = self.0.iter().map(|(.., weight)| weight).sum();
        let sum: f64 = self
            .0
            .iter()
            .map(|(low, high, weight)| (f64::from(*low) + f64::from(*high)) / 2.0 * f64::from(*weight))
            .sum();
        sum / f64::from(all)
    }

    fn draw(&self, rng: &mut ChaCha20Rng) -> usize {
        if let [(low, high, _)] = self.0[..]
            && low == high
        {
            return low as usize;
        }
        let all: u32 = self.0.iter().map(|(.., weight)| weight).sum();
        let mut at = rng.random_range(0..all);
        for (low, high, weight) in &self.0 {
            if at < *weight {
                return rng.random_range(*low..=*high) as usize;
            }
            at -= weight;
        }
        unreachable!("a draw is below the sum of the weights")
    }
}

/// A flow of an even load.
pub(crate) struct EvenSource {
    rng: ChaCha20Rng,
    arrivals: Arrivals,
    lengths: Lengths,
    /// Mean interval between datagrams of the flow.
    gap_ns: f64,
    /// When a flow's first datagram is due.
    phase_ns: f64,
    /// Datagrams so far.
    count: u64,
    /// Sum of the random gaps so far.
    drawn_ns: f64,
}

impl EvenSource {
    /// Flow number `flow` of a load.
    pub(crate) fn new(rng: ChaCha20Rng, even: &Even, flow: usize) -> EvenSource {
        let Even { flows, rate, arrivals, ref lengths } = *even;
        let gap_ns = flows as f64 / rate * SECOND as f64;
        let phase_ns = gap_ns * flow as f64 / flows as f64;
        EvenSource { rng, arrivals, lengths: lengths.clone(), gap_ns, phase_ns, count: 0, drawn_ns: 0.0 }
    }
}

impl Source for EvenSource {
    fn next(&mut self) -> Option<(Nanos, usize)> {
        let at = match self.arrivals {
            Arrivals::Constant => self.phase_ns + self.gap_ns * self.count as f64,
            Arrivals::Poisson => {
                self.drawn_ns += exponential(&mut self.rng, self.gap_ns);
                self.drawn_ns
            }
            Arrivals::Burst(n) => (self.phase_ns + self.gap_ns * (self.count / u64::from(n)) as f64) * f64::from(n),
        };
        self.count += 1;
        Some((at as Nanos, self.lengths.draw(&mut self.rng)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::{MILLI, collect, seeded};
    use super::*;

    fn flows(arrivals: Arrivals, rate: f64, flows: usize) -> Vec<Vec<(Nanos, usize)>> {
        let even = Even { flows, rate, arrivals, lengths: Lengths::fixed(100) };
        let of = |flow| EvenSource::new(seeded(flow as u64), &even, flow);
        (0..flows).map(|flow| collect(Box::new(of(flow)), 10)).collect()
    }

    #[test]
    fn even_load_has_its_rate_with_any_arrivals() {
        for (arrivals, slack) in [(Arrivals::Constant, 0), (Arrivals::Poisson, 400), (Arrivals::Burst(20), 200)] {
            let flows = flows(arrivals, 1000.0, 10);
            let count: usize = flows.iter().map(Vec::len).sum();
            assert!(count.abs_diff(10_000) <= slack, "{arrivals}: {count}");
            assert!(flows.iter().all(|flow| flow.is_sorted_by_key(|(at, _)| *at)));
        }
        let constant = flows(Arrivals::Constant, 1000.0, 10);
        assert_eq!((constant[0][1].0, constant[1][0].0), (10 * MILLI, MILLI));
        let burst = flows(Arrivals::Burst(20), 1000.0, 10);
        assert!(burst[3][..20].iter().all(|(at, _)| *at == burst[3][0].0) && burst[3][20].0 > burst[3][19].0);
    }

    #[test]
    fn poisson_gaps_deviate_by_their_mean() {
        let flow = flows(Arrivals::Poisson, 1000.0, 1).remove(0);
        let gaps: Vec<f64> = flow.windows(2).map(|pair| (pair[1].0 - pair[0].0) as f64 / MILLI as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((mean - 1.0).abs() < 0.05 && (deviation - 1.0).abs() < 0.05, "{mean} {deviation}");
    }

    #[test]
    fn invalid_arrivals_and_lengths_are_refused() {
        assert_eq!("burst:7".parse(), Ok(Arrivals::Burst(7)));
        assert!("burst".parse::<Arrivals>().is_err() && "even".parse::<Arrivals>().is_err());
        let lengths: Lengths = "172*6,1000-1200".parse().unwrap();
        assert_eq!((lengths.to_string(), lengths.mean()), ("172*6,1000-1200*1".into(), (172.0 * 6.0 + 1100.0) / 7.0));
        for wrong in ["", "3", "70000", "9-8", "5*0", "x"] {
            assert!(wrong.parse::<Lengths>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn lengths_are_drawn_by_their_weights() {
        let lengths: Lengths = "172*3,1000-1200*1".parse().unwrap();
        let mut rng = seeded(1);
        let short = (0..10_000).filter(|_| lengths.draw(&mut rng) == 172).count();
        assert!((7300..7700).contains(&short), "{short}");
    }
}
