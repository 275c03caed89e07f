//! What an active adversary does to cells on access links: a pure function of the user, the time and a secret.

/// What happens to one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    /// It goes on this many nanoseconds later. Cells may overtake each other.
    Delay(u64),
    Drop,
}

/// An active attack on one user.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    DelayWatermark(DelayWatermark),
    DropWatermark(DropWatermark),
    Isolation(Isolation),
}

impl Plan {
    /// What happens to a cell of `user` that the entry sends at `at`, in nanoseconds since the record began.
    pub fn act(&self, user: usize, at: u64) -> Action {
        match self {
            Self::DelayWatermark(plan) if user == plan.target && plan.delays(at) => Action::Delay(plan.delay),
            Self::DropWatermark(plan) if user == plan.target && plan.marks(at / plan.slot) => Action::Drop,
            Self::Isolation(plan) if user != plan.target => plan.until(at).map_or(Action::Pass, Action::Delay),
            _ => Action::Pass,
        }
    }

    /// When a cell that `user` sends at `at` goes on, in nanoseconds; `None` if it is dropped.
    pub fn passes(&self, user: usize, at: u64) -> Option<u64> {
        match self.act(user, at) {
            Action::Pass => Some(at),
            Action::Delay(by) => Some(at + by),
            Action::Drop => None,
        }
    }

    /// The user whose flow the adversary looks for.
    pub fn target(&self) -> usize {
        match self {
            Self::DelayWatermark(plan) => plan.target,
            Self::DropWatermark(plan) => plan.target,
            Self::Isolation(plan) => plan.target,
        }
    }

    /// Seconds of a record after which the target's flow stood out on real chains (docs/ANONYMITY.md, Results). In a
    /// shorter one the detector may well find nothing.
    pub fn seconds_needed(&self) -> f64 {
        match self {
            Self::DelayWatermark(_) => 20.0,
            Self::DropWatermark(_) => 45.0,
            Self::Isolation(_) => 3.0,
        }
    }

    /// Short name for tables and JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::DelayWatermark(_) => "delay-watermark",
            Self::DropWatermark(_) => "drop-watermark",
            Self::Isolation(_) => "isolation",
        }
    }

    /// The paper that the attack comes from.
    pub fn source(&self) -> &'static str {
        match self {
            Self::DelayWatermark(_) => {
                "X. Wang and D. Reeves, Robust Correlation of Encrypted Attack Traffic Through Stepping Stones by \
                 Manipulation of Interpacket Delays, CCS 2003; A. Houmansadr, N. Kiyavash and N. Borisov, RAINBOW: A \
                 Robust and Invisible Non-Blind Watermark for Network Flows, NDSS 2009"
            }
            Self::DropWatermark(_) => {
                "W. Yu et al., DSSS-Based Flow Marking Technique for Invisible Traceback, S&P 2007, with losses for rates"
            }
            Self::Isolation(_) => {
                "A. Serjantov, R. Dingledine and P. Syverson, From a Trickle to a Flood: Active Attacks on Several Mix \
                 Types, IH 2002"
            }
        }
    }
}

/// Delays the target's cells in one of every two periods; which of the two is secret.
#[derive(Clone, Debug, PartialEq)]
pub struct DelayWatermark {
    pub target: usize,
    /// The secret.
    pub seed: u64,
    /// Nanoseconds.
    pub delay: u64,
    /// Nanoseconds of one period.
    pub period: u64,
}

impl DelayWatermark {
    /// 20 ms on and off, in periods of 100 ms.
    pub fn new(target: usize, seed: u64) -> Self {
        Self { target, seed, delay: 20_000_000, period: 100_000_000 }
    }

    /// Are cells delayed at this time?
    pub(super) fn delays(&self, at: u64) -> bool {
        let period = at / self.period;
        period.is_multiple_of(2) == draw(self.seed, period / 2).is_multiple_of(2)
    }
}

/// Drops the target's cells in a share of short slots, which are secret.
#[derive(Clone, Debug, PartialEq)]
pub struct DropWatermark {
    pub target: usize,
    /// The secret.
    pub seed: u64,
    /// Nanoseconds of a slot.
    pub slot: u64,
    /// Share of slots whose cells are dropped.
    pub share: f64,
}

impl DropWatermark {
    /// Two of a hundred slots of 10 ms.
    pub fn new(target: usize, seed: u64) -> Self {
        Self { target, seed, slot: 10_000_000, share: 0.02 }
    }

    /// Are the cells of this slot dropped?
    pub(super) fn marks(&self, slot: u64) -> bool {
        (draw(self.seed, slot) >> 11) as f64 / (1_u64 << 53) as f64 <= self.share
    }
}

/// The n-1 attack without cells of the adversary's own: for a while only the target's cells pass, and those of all
/// others are held to the end of the window.
#[derive(Clone, Debug, PartialEq)]
pub struct Isolation {
    pub target: usize,
    /// The secret that places the windows.
    pub seed: u64,
    /// Nanoseconds that others are held for.
    pub window: u64,
    /// Nanoseconds: each cycle has one window.
    pub cycle: u64,
}

impl Isolation {
    /// 300 ms of every second.
    pub fn new(target: usize, seed: u64) -> Self {
        Self { target, seed, window: 300_000_000, cycle: 1_000_000_000 }
    }

    /// Begin and end of the window of a cycle, in nanoseconds since the record began.
    pub(super) fn bounds(&self, cycle: u64) -> (u64, u64) {
        let room = self.cycle.saturating_sub(self.window).max(1);
        let begin = cycle * self.cycle + draw(self.seed, cycle) % room;
        (begin, begin + self.window)
    }

    /// How long a cell of another user is held.
    fn until(&self, at: u64) -> Option<u64> {
        let (begin, end) = self.bounds(at / self.cycle);
        (begin..end).contains(&at).then(|| end - at)
    }
}

/// Number `index` of the secret's stream: SplitMix64 (G. Steele, D. Lea and C. Flood, Fast Splittable Pseudorandom
/// Number Generators, OOPSLA 2014).
fn draw(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for _ in 0..2 {
        z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    z
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_pass_watermarks() {
        for plan in [Plan::DelayWatermark(DelayWatermark::new(3, 1)), Plan::DropWatermark(DropWatermark::new(3, 1))] {
            assert!((0..1000).all(|i| plan.act(2, i * 7_000_000) == Action::Pass));
        }
    }

    #[test]
    fn watermark_delays_half_of_the_time() {
        let plan = DelayWatermark::new(0, 5);
        let delayed = (0..1000).filter(|i| plan.delays(i * plan.period)).count();
        assert_eq!(delayed, 500);
        let other = DelayWatermark::new(0, 6);
        assert!((0..1000).any(|i| plan.delays(i * plan.period) != other.delays(i * plan.period)));
    }

    #[test]
    fn slots_are_dropped_by_their_share() {
        let plan = DropWatermark::new(0, 5);
        let dropped = (0..100_000).filter(|&slot| plan.marks(slot)).count();
        assert!((1_800..2_200).contains(&dropped), "{dropped}");
    }

    #[test]
    fn isolation_holds_others_to_the_end_of_the_window() {
        let plan = Plan::Isolation(Isolation::new(3, 9));
        let mut held = 0;
        for at in (0..20_000_000_000).step_by(1_000_000) {
            assert_eq!(plan.act(3, at), Action::Pass);
            if let Action::Delay(by) = plan.act(4, at) {
                held += 1;
                assert_eq!(plan.act(4, at + by), Action::Pass);
            }
        }
        assert!((5_900..6_100).contains(&held), "{held}");
    }
}
