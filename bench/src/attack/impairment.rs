//! What happens to datagrams on an access link: loss, jitter, outages and a bottleneck.

use std::str::FromStr;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha20Rng;

use crate::load::source::{Nanos, SECOND, exponential};

/// Datagrams wait at most this long in the queue of a bottleneck; then they are dropped.
const QUEUE_MAX: Nanos = SECOND / 5;

/// Loss on a link: a share of the datagrams, alone or in bursts.
///
/// With bursts it is a Gilbert-Elliott channel that loses everything in its bad state: datagrams are lost in runs of
/// geometric length with mean `burst`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Loss {
    share: f64,
    burst: f64,
}

impl FromStr for Loss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("invalid loss {text:?}: expected SHARE or SHARE:burst=MEAN, e.g. 0.01 or 0.01:burst=3");
        let (share, burst) = match text.split_once(':') {
            None => (text, "1"),
            Some((share, rest)) => (share, rest.strip_prefix("burst=").ok_or_else(wrong)?),
        };
        match (share.parse(), burst.parse()) {
            (Ok(share), Ok(burst)) if (0.0..0.9).contains(&share) && (1.0..=1000.0).contains(&burst) => {
                Ok(Loss { share, burst })
            }
            _ => Err(wrong()),
        }
    }
}

/// A time without a link for one user.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Outage {
    pub(super) user: usize,
    /// Seconds since the record began.
    pub(super) at: f64,
    pub(super) seconds: f64,
}

impl FromStr for Outage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let wrong = || format!("invalid outage {text:?}: expected USER:AT:SECONDS, e.g. 0:10:0.5");
        let [user, at, seconds] = parts[..] else { return Err(wrong()) };
        match (user.parse(), at.parse(), seconds.parse()) {
            (Ok(user), Ok(at), Ok(seconds)) if at >= 0.0 && seconds > 0.0 => Ok(Outage { user, at, seconds }),
            _ => Err(wrong()),
        }
    }
}

/// Impairments of all access links.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Impairments {
    pub(super) loss: Option<Loss>,
    /// Mean of an exponential delay. Datagrams of a link keep their order.
    pub(super) jitter: Duration,
    /// Bits per second of a bottleneck in each direction.
    pub(super) rate: Option<f64>,
    pub(super) outages: Vec<Outage>,
}

/// One direction of one user's link.
pub(super) struct Link {
    rng: ChaCha20Rng,
    impairments: Impairments,
    /// The Gilbert-Elliott channel is in its bad state.
    bad: bool,
    /// The bottleneck sends until then.
    busy: Nanos,
    /// The last datagram leaves then, where there is jitter.
    last: Nanos,
}

impl Link {
    pub(super) fn new(mut impairments: Impairments, user: usize, rng: ChaCha20Rng) -> Link {
        impairments.outages.retain(|outage| outage.user == user);
        Link { rng, impairments, bad: false, busy: 0, last: 0 }
    }

    /// When a datagram that arrives at `now` leaves; `None` if it is lost. Times count from the record's begin.
    pub(super) fn pass(&mut self, now: Nanos, bytes: usize) -> Option<Nanos> {
        let lost = self.is_lost();
        let seconds = now as f64 / 1e9;
        let out = self.impairments.outages.iter().any(|one| (one.at..one.at + one.seconds).contains(&seconds));
        if lost || out {
            return None;
        }

        let mut due = now;
        if let Some(rate) = self.impairments.rate {
            let start = self.busy.max(now);
            if start - now > QUEUE_MAX {
                return None;
            }
            self.busy = start + (bytes as f64 * 8e9 / rate) as Nanos;
            due = self.busy;
        }
        if !self.impairments.jitter.is_zero() {
            due += exponential(&mut self.rng, self.impairments.jitter.as_nanos() as f64) as Nanos;
            due = due.max(self.last);
            self.last = due;
        }
        Some(due)
    }

    fn is_lost(&mut self) -> bool {
        let Some(Loss { share, burst }) = self.impairments.loss else { return false };
        let draw: f64 = self.rng.random();
        if burst == 1.0 {
            return draw < share;
        }
        self.bad = if self.bad { draw >= 1.0 / burst } else { draw < share / (burst * (1.0 - share)) };
        self.bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::source::{MILLI, seeded};

    fn link(impairments: Impairments) -> Link {
        Link::new(impairments, 3, seeded(1))
    }

    #[test]
    fn loss_has_its_mean_and_its_bursts() {
        for (text, burst) in [("0.02", 1.02), ("0.02:burst=3", 3.0), ("0.02:burst=8", 8.0)] {
            let mut link = link(Impairments { loss: Some(text.parse().unwrap()), ..Impairments::default() });
            let lost: Vec<bool> = (0..400_000).map(|i| link.pass(i, 100).is_none()).collect();
            let runs: Vec<usize> = lost.chunk_by(|a, b| a == b).filter(|run| run[0]).map(<[bool]>::len).collect();
            let all: usize = runs.iter().sum();
            assert!((all as f64 / 4e5 - 0.02).abs() < 0.003, "{text}: {all}");
            let mean = all as f64 / runs.len() as f64;
            assert!((mean - burst).abs() < 0.1 * burst, "{text}: {mean}");
        }
    }

    #[test]
    fn bottleneck_queues_and_then_drops() {
        // 1000 bytes take a millisecond.
        let mut link = link(Impairments { rate: Some(8e6), ..Impairments::default() });
        let left: Vec<Option<Nanos>> = (0..300).map(|_| link.pass(0, 1000)).collect();
        assert_eq!(left[..3], [Some(MILLI), Some(2 * MILLI), Some(3 * MILLI)]);
        assert_eq!(left.iter().flatten().count(), 201);
        assert_eq!(link.pass(SECOND, 1000), Some(SECOND + MILLI));
    }

    #[test]
    fn jitter_keeps_the_order_and_outage_is_of_one_user() {
        let outages = vec!["3:1:0.5".parse().unwrap(), "4:0:9".parse().unwrap()];
        let mut link = link(Impairments { jitter: Duration::from_millis(5), outages, ..Impairments::default() });
        let left: Vec<Option<Nanos>> = (0..3000).map(|i| link.pass(i * MILLI, 100)).collect();
        assert!(left[1000..1500].iter().all(Option::is_none));
        let kept: Vec<Nanos> = left.iter().flatten().copied().collect();
        assert!(kept.len() == 2500 && kept.is_sorted() && kept[2000] > 2500 * MILLI);
    }

    #[test]
    fn mistake_in_an_impairment_is_named() {
        for text in ["", "1", "x", "0.1:burst", "0.1:burst=0", "0.1:3"] {
            assert!(text.parse::<Loss>().unwrap_err().contains("expected SHARE"), "{text}");
        }
        for text in ["", "1:2", "a:1:1", "1:1:0", "1:1:1:1"] {
            assert!(text.parse::<Outage>().unwrap_err().contains("expected USER:AT:SECONDS"), "{text}");
        }
        assert_eq!("0.01:burst=3".parse(), Ok(Loss { share: 0.01, burst: 3.0 }));
    }
}
