//! A clock that never steps, and the offset of a neighbour's clock (SPEC 9.5).

use std::collections::VecDeque;

/// Fastest correction, in millionths.
const SLEW_PPM: i128 = 100;
const MILLION: i128 = 1_000_000;
/// Samples from which the best one is taken.
const SAMPLES: usize = 32;

/// Maps a monotonic clock to ns since 1970. It is set once, and later follows the time that it is given by at most
/// 100 ppm, so it never steps and never runs back.
#[derive(Clone, Debug)]
pub struct SteadyClock {
    /// Monotonic time of the last correction, and the time then.
    from_ns: u64,
    time_ns: u64,
    /// What is to be corrected from then on; positive if the clock is behind.
    behind_ns: i128,
}

impl SteadyClock {
    /// A clock that shows `time_ns` at the monotonic time `now_ns`.
    pub fn new(now_ns: u64, time_ns: u64) -> SteadyClock {
        SteadyClock { from_ns: now_ns, time_ns, behind_ns: 0 }
    }

    /// The time at the monotonic time `now_ns`.
    pub fn at(&self, now_ns: u64) -> u64 {
        let passed = now_ns.saturating_sub(self.from_ns);
        let most = i128::from(passed) * SLEW_PPM / MILLION;
        let time = i128::from(self.time_ns) + i128::from(passed) + self.behind_ns.clamp(-most, most);
        u64::try_from(time).unwrap_or(0)
    }

    /// The monotonic time at which the clock shows `time_ns`, or a little later: when a release is due.
    pub fn when(&self, time_ns: u64) -> u64 {
        let ahead = i128::from(time_ns) - i128::from(self.time_ns);
        // As far as the whole correction goes; before that is reached it runs at its fastest.
        let (direct, rate) = (ahead - self.behind_ns, MILLION + SLEW_PPM * self.behind_ns.signum());
        let slewing = (ahead * MILLION).div_euclid(rate);
        let passed = if self.behind_ns >= 0 { direct.max(slewing) } else { direct.min(slewing) };
        let mut now = u64::try_from(i128::from(self.from_ns) + passed).unwrap_or(self.from_ns);
        while self.at(now) < time_ns {
            now += 1;
        }
        now
    }

    /// From the monotonic time `now_ns` on, the clock moves towards `time_ns`.
    pub fn steer(&mut self, now_ns: u64, time_ns: u64) {
        let time = self.at(now_ns);
        *self = SteadyClock { behind_ns: i128::from(time_ns) - i128::from(time), ..SteadyClock::new(now_ns, time) };
    }
}

/// A clock cell (SPEC 9.5.6): ns since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockCell {
    /// When the slot of this cell was due. From an entry, and as `peer` in the answer to it: its number on the link.
    pub sent: u64,
    /// `sent` of the latest clock cell from the other side; 0 before one came.
    pub peer: u64,
    /// When it came; 0 before one did.
    pub received: u64,
}

/// The content of a clock cell behind its kind.
pub const CLOCK_LEN: usize = 24;

impl ClockCell {
    pub fn to_bytes(self) -> [u8; CLOCK_LEN] {
        let mut bytes = [0; CLOCK_LEN];
        for (place, field) in bytes.chunks_exact_mut(8).zip([self.sent, self.peer, self.received]) {
            place.copy_from_slice(&field.to_be_bytes());
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8; CLOCK_LEN]) -> ClockCell {
        let field = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        ClockCell { sent: field(0), peer: field(8), received: field(16) }
    }
}

/// The clock of a neighbour compared with this node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// By how much the neighbour's clock is ahead.
    pub offset_ns: i64,
    pub round_trip_ns: u64,
}

/// What the clock cells of a link have shown.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// `sent` of the latest clock cell that came, and when it came.
    latest: Option<(u64, u64)>,
    samples: VecDeque<Comparison>,
}

impl Exchange {
    /// A clock cell came at `now_ns`, by this node's clock. A cell that is older than the latest one, or whose times
    /// are impossible, is not compared.
    pub fn take(&mut self, cell: ClockCell, now_ns: u64) {
        if self.latest.is_some_and(|(sent, _)| cell.sent <= sent) {
            return;
        }
        self.latest = Some((cell.sent, now_ns));
        if cell.peer == 0 {
            return;
        }
        let [sent, peer, received, came] = [cell.sent, cell.peer, cell.received, now_ns].map(i128::from);
        let round_trip = (came - peer) - (sent - received);
        let offset = ((received - peer) + (sent - came)) / 2;
        let (Ok(round_trip_ns), Ok(offset_ns)) = (u64::try_from(round_trip), i64::try_from(offset)) else { return };
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Comparison { offset_ns, round_trip_ns });
    }

    /// `sent` of the latest clock cell that came, and when it came, which the next clock cell answers.
    pub fn latest(&self) -> Option<(u64, u64)> {
        self.latest
    }

    /// True if there are as many samples as count.
    pub fn is_settled(&self) -> bool {
        self.samples.len() == SAMPLES
    }

    /// The sample with the shortest round trip among the latest 32; of several the latest.
    pub fn best(&self) -> Option<Comparison> {
        self.samples.iter().rev().min_by_key(|sample| sample.round_trip_ns).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn clock_follows_by_100_ppm() {
        let mut clock = SteadyClock::new(5 * S, 1_000 * S);
        assert_eq!(clock.at(6 * S), 1_001 * S);
        // A step of the system clock by an hour.
        clock.steer(6 * S, 4_601 * S);
        assert_eq!(clock.at(6 * S), 1_001 * S, "it does not step");
        assert_eq!(clock.at(7 * S), 1_002 * S + 100_000);
        // Back by 1 ms: done after 10 s.
        clock.steer(7 * S, 1_002 * S + 100_000 - 1_000_000);
        assert_eq!(clock.at(8 * S), 1_003 * S);
        assert_eq!(clock.at(17 * S), 1_012 * S + 100_000 - 1_000_000);
        assert_eq!(clock.at(18 * S), 1_013 * S + 100_000 - 1_000_000);
    }

    proptest! {
        #[test]
        fn clock_never_runs_back_and_says_when_it_gets_there(
            steers in prop::collection::vec((0..10 * S, -3_600_000_000_000i64..3_600_000_000_000), 1..6),
            wait in 0..100 * S,
        ) {
            let mut clock = SteadyClock::new(S, 1_800_000_000 * S);
            let mut now = S;
            for (after, off) in steers {
                let before = clock.at(now);
                now += after;
                prop_assert!(clock.at(now) >= before);
                let at = clock.at(now);
                clock.steer(now, at.saturating_add_signed(off));
                prop_assert_eq!(clock.at(now), at);
            }
            let time = clock.at(now) + wait;
            let when = clock.when(time);
            prop_assert!(clock.at(when) >= time);
            prop_assert!(when == 0 || clock.at(when - 1) <= time, "not later than needed");
            // At most 100 ppm from the time that passes.
            let apart = (i128::from(when - now) - i128::from(wait)).unsigned_abs();
            prop_assert!(apart <= u128::from(wait) * 101 / 1_000_000 + 2, "{} ns apart", apart);
        }
    }

    #[test]
    fn offset_and_round_trip_are_those_of_ntp() {
        // The neighbour is 7 ms ahead; 3 ms there, 1 ms back.
        let ms = 1_000_000;
        let (mut mine, mut theirs) = (Exchange::default(), Exchange::default());
        theirs.take(ClockCell { sent: 100 * ms, peer: 0, received: 0 }, 110 * ms);
        assert_eq!((theirs.latest(), theirs.best()), (Some((100 * ms, 110 * ms)), None));
        let answer = ClockCell { sent: 120 * ms, peer: 100 * ms, received: 110 * ms };
        assert_eq!(ClockCell::from_bytes(&answer.to_bytes()), answer);
        mine.take(answer, 114 * ms);
        // (3 - 1) / 2 ms of the asymmetry are in the offset.
        assert_eq!(mine.best(), Some(Comparison { offset_ns: 8 * ms as i64, round_trip_ns: 4 * ms }));
    }

    #[test]
    fn shortest_round_trip_of_32_counts() {
        let mut exchange = Exchange::default();
        let mut came = |sent: u64, round_trip: u64| {
            exchange.take(ClockCell { sent, peer: sent - 10, received: sent - 5 }, sent - 5 + round_trip);
            exchange.best().map(|best| best.round_trip_ns)
        };
        assert_eq!([came(100, 9), came(200, 5), came(300, 7)], [Some(9), Some(5), Some(5)]);
        assert_eq!(came(250, 1), Some(5), "one that was overtaken");
        for number in 4..4 + 30 {
            came(number * 100, 8);
        }
        assert_eq!(came(10_000, 8), Some(7), "the shortest is forgotten");
        assert_eq!(came(20_000, 0).map(|best| best > 0), Some(false));
        let mut impossible = Exchange::default();
        impossible.take(ClockCell { sent: 100, peer: 50, received: 60 }, 51);
        assert_eq!(impossible.best(), None, "a negative round trip");
    }
}
