//! Timed releases lie on a grid whose phase is random at start and never changes (SPEC 6.2).
//!
//! A timer that started with the first cell would delay a lone cell by exactly t, which tells an
//! observer all there is to know. On a grid its delay is uniform on (0, t].

use crate::Nanos;

/// The instants phase + k * period.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    period: Nanos,
    phase: Nanos,
}

impl Grid {
    /// A grid of `period`, with its phase made from a uniform `random`.
    ///
    /// # Panics
    /// If the period is zero.
    pub fn new(period: Nanos, random: u64) -> Grid {
        assert!(period > 0, "a grid has a period");
        Grid { period, phase: ((u128::from(random) * u128::from(period)) >> 64) as u64 }
    }

    /// The first instant after `t`.
    pub fn after(&self, t: Nanos) -> Nanos {
        if t < self.phase {
            return self.phase;
        }
        self.phase + ((t - self.phase) / self.period + 1) * self.period
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_one_period_apart_whatever_is_asked() {
        let grid = Grid::new(10, u64::MAX / 10 * 3 + 7);
        assert_eq!(grid.phase, 3);
        assert_eq!([0, 2, 3, 12, 13, 22].map(|t| grid.after(t)), [3, 3, 13, 13, 23, 23]);
    }
}
