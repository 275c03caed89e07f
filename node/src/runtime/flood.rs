//! Floods of handshakes: one line when a flood begins, one when it has ended, and its rate for the report.
//!
//! A refused datagram gets no line of its own, so strangers cannot choose how often one is written. Refusals for their
//! number alone say that there are more than the node takes (SPEC 4.9). Those for want of a cookie count datagrams, of
//! which a handshake has two, and the others whole handshakes.

use std::time::Duration;

use control::{Counters, Refusal};
use tracing::{info, warn};

use crate::runtime::log::Trouble;

/// Refusals of handshake datagrams for their number.
const FOR_NUMBER: [Refusal; 4] =
    [Refusal::CookieRequired, Refusal::HandshakeRateLimited, Refusal::PrefixRateLimited, Refusal::ElsewhereRateLimited];
/// Refusals per second from which on it is a flood: a neighbour behind a NAT causes a few.
const FLOOD_PER_S: u64 = 50;
/// Refusals are counted over this time.
const WINDOW: Duration = Duration::from_secs(1);
/// A flood has ended when there was none for this time.
const QUIET: Duration = Duration::from_secs(10);

/// The flood that lasts, if one does.
#[derive(Default)]
pub(super) struct Flood {
    /// Refusals at the start of the window, and that start.
    window: (u64, Duration),
    lasting: Option<Lasting>,
    trouble: Trouble,
}

struct Lasting {
    began: Duration,
    /// Refusals before it.
    before: u64,
    /// The last window that was above the limit, its end, and its refusals per second.
    last: Duration,
    per_s: u64,
}

/// A change that is worth a line.
#[derive(Debug, PartialEq)]
enum News {
    Began { per_s: u64 },
    Ended { lasted: Duration, refused: u64 },
}

impl Flood {
    /// Takes what was refused so far.
    pub(super) fn look(&mut self, now: Duration, counters: &Counters) {
        let refused = FOR_NUMBER.iter().map(|why| counters.refused(*why)).sum();
        match self.news(now, refused) {
            Some(News::Began { per_s }) => warn!(
                per_s,
                "handshake flood: refusing {per_s} handshake datagrams per second and requiring cookies; senders that answer \
                 a cookie still connect"
            ),
            Some(News::Ended { lasted, refused }) => {
                let (lasted_s, per_s) = (lasted.as_secs_f64().round(), refused as f64 / lasted.as_secs_f64());
                info!(
                    lasted_s,
                    refused,
                    "handshake flood over after {lasted_s} s: {refused} handshake datagrams refused, {per_s:.0} per second"
                );
            }
            None => {}
        }
    }

    /// Handshake datagrams refused per second, while a flood lasts.
    pub(super) fn per_s(&self) -> Option<u64> {
        self.lasting.as_ref().map(|lasting| lasting.per_s)
    }

    /// When to look again at the latest.
    pub(super) fn due(&self) -> Duration {
        if self.lasting.is_some() { self.window.1 + WINDOW } else { Duration::MAX }
    }

    fn news(&mut self, now: Duration, refused: u64) -> Option<News> {
        let (before, since) = self.window;
        let time = now.saturating_sub(since);
        if time < WINDOW {
            return None;
        }
        self.window = (refused, now);
        let per_s = ((refused - before) as f64 / time.as_secs_f64()) as u64;
        if per_s >= FLOOD_PER_S {
            if let Some(lasting) = &mut self.lasting {
                (lasting.last, lasting.per_s) = (now, per_s);
                return None;
            }
            self.lasting = Some(Lasting { began: since, before, last: now, per_s });
            return self.trouble.occurs(now).then_some(News::Began { per_s });
        }
        let lasting = self.lasting.take_if(|lasting| now >= lasting.last + QUIET)?;
        let (lasted, refused) = (lasting.last - lasting.began, refused - lasting.before);
        self.trouble.end(now).then_some(News::Ended { lasted, refused })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// What a flood of this many refusals in each second gets logged, from `at` on.
    fn run(flood: &mut Flood, total: &mut u64, seconds: std::ops::Range<u64>, per_s: u64) -> Vec<(u64, News)> {
        let mut news = Vec::new();
        for at in seconds {
            *total += per_s;
            news.extend(flood.news(secs(at), *total).map(|what| (at, what)));
        }
        news
    }

    #[test]
    fn flood_gets_a_line_at_its_start_and_its_end() {
        let (mut flood, mut total) = (Flood::default(), 0);
        assert_eq!(run(&mut flood, &mut total, 1..100, FLOOD_PER_S - 1), []);
        assert_eq!((flood.per_s(), flood.due()), (None, Duration::MAX));
        assert_eq!(run(&mut flood, &mut total, 100..130, 1000), [(100, News::Began { per_s: 1000 })]);
        assert_eq!((flood.per_s(), flood.due()), (Some(1000), secs(130)));
        let ended = run(&mut flood, &mut total, 130..150, 0);
        assert_eq!(ended, [(139, News::Ended { lasted: secs(30), refused: 30_000 })]);
        assert_eq!(flood.per_s(), None);
    }

    #[test]
    fn flood_that_comes_and_goes_fills_no_log() {
        let (mut flood, mut total) = (Flood::default(), 0);
        let lines: usize = (0..60)
            .map(|n| {
                let at = 1 + 20 * n;
                run(&mut flood, &mut total, at..at + 5, 1000).len()
                    + run(&mut flood, &mut total, at + 5..at + 20, 0).len()
            })
            .sum();
        assert!(lines <= 16, "{lines}");
    }
}
