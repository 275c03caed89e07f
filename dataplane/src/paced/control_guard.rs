//! Which control cells go to control (SPEC 9.4.9): authentic ones, each once, and no more than the link carries.
//!
//! All links share control's queue, so repeated and forged cells, and more than a peer has slots for, end here. What
//! links have saved is spent from one half of the queue only. In the other one each has room for what comes in a round.

use crate::Nanos;
use crate::ledger::DropReason;

/// What may pass on a link in a round, in multiples of its slots.
const MARGIN: u64 = 2;
/// Rounds whose control cells may come at once: twice as many as data cells may be ahead.
const ROUNDS_AT_ONCE: u64 = 2 * wire::paced::AHEAD_MAX;
/// Numbers that are remembered, at least.
const NUMBERS_MIN: usize = 256;

/// What a link carries in its control slots.
#[derive(Clone, Copy)]
pub(super) struct ControlLimits {
    period: Nanos,
    per_round: u64,
    /// The reason for which repeated cells are dropped.
    pub(super) repeated: DropReason,
}

impl ControlLimits {
    /// Of a link with at most `slots` control slots in a round, each round of `period` ns.
    pub(super) fn new(period: Nanos, slots: usize, expects_copies: bool) -> ControlLimits {
        let repeated = if expects_copies { DropReason::Copy } else { DropReason::Replay };
        ControlLimits { period, per_round: MARGIN * slots as u64, repeated }
    }

    /// Cells of a slot that may pass in a round.
    pub(super) fn per_round(&self) -> usize {
        self.per_round as usize
    }

    fn numbers(&self) -> usize {
        NUMBERS_MIN.max((ROUNDS_AT_ONCE * self.per_round) as usize)
    }
}

/// The control cells that have come under one slot.
#[derive(Default)]
pub(super) struct ControlGuard {
    /// The latest numbers, each at its remainder as one more than its quotient, or 0. Empty before the first cell.
    seen: Box<[u32]>,
    newest: u64,
    /// Cells that may pass, and the round up to which they were granted.
    credit: u64,
    granted: u64,
    /// Cells that have passed in that round.
    passed: u64,
}

impl ControlGuard {
    /// Cells of this slot that have passed in the round of this time.
    pub(super) fn passed_at(&self, limits: &ControlLimits, now: Nanos) -> u64 {
        if self.granted == now / limits.period { self.passed } else { 0 }
    }

    /// Whether the cell with number `seq` goes to control, which came at `now`. `passed_beside`, if control's queue is
    /// more than half full: how many have passed in this round under the link's other slots. Only a cell that
    /// `is_authentic` marks its number and uses credit: what others send ahead of it changes nothing.
    ///
    /// # Errors
    /// It has come before, is forged, or the link carries fewer cells.
    pub(super) fn pass(
        &mut self,
        seq: u64,
        limits: &ControlLimits,
        (now, passed_beside): (Nanos, Option<u64>),
        is_authentic: impl FnOnce() -> bool,
    ) -> Result<(), DropReason> {
        let (round, most) = (now / limits.period, ROUNDS_AT_ONCE * limits.per_round);
        if self.seen.is_empty() {
            self.seen = vec![0; limits.numbers()].into();
            (self.credit, self.granted) = (most, round);
        }
        let passed = round.saturating_sub(self.granted);
        self.credit = most.min(self.credit.saturating_add(passed.saturating_mul(limits.per_round)));
        if passed > 0 {
            (self.granted, self.passed) = (round, 0);
        }

        let numbers = self.seen.len() as u64;
        // Numbers have 40 bits. Nobody uses the last ones, for which this is 0.
        let (place, number) = (&mut self.seen[(seq % numbers) as usize], (seq / numbers + 1) as u32);
        if *place == number || seq + numbers <= self.newest {
            return Err(limits.repeated);
        }
        if !is_authentic() {
            return Err(DropReason::Forged);
        }
        if passed_beside.is_some_and(|beside| beside + self.passed >= limits.per_round) {
            return Err(DropReason::ControlRate);
        }
        self.credit = self.credit.checked_sub(1).ok_or(DropReason::ControlRate)?;
        self.passed += 1;
        *place = number;
        self.newest = self.newest.max(seq);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MILLI;

    const T: Nanos = 10 * MILLI;
    const LIMITS: ControlLimits = ControlLimits { period: T, per_round: 4, repeated: DropReason::Copy };

    fn pass(guard: &mut ControlGuard, seq: u64, now: Nanos) -> Result<(), DropReason> {
        guard.pass(seq, &LIMITS, (now, None), || true)
    }

    #[test]
    fn repeated_control_cell_uses_up_no_credit() {
        let mut guard = ControlGuard::default();
        let most = ROUNDS_AT_ONCE * LIMITS.per_round;
        for seq in 0..most {
            assert_eq!(pass(&mut guard, seq, T), Ok(()));
            for _ in 0..100 {
                assert_eq!(pass(&mut guard, seq, T), Err(DropReason::Copy));
            }
        }
        assert_eq!(pass(&mut guard, most, T), Err(DropReason::ControlRate));
        assert_eq!(pass(&mut guard, most, 2 * T), Ok(()));
    }

    #[test]
    fn link_has_the_credit_of_its_slots_in_every_round() {
        let mut guard = ControlGuard::default();
        let flood = |round: u64| (0..1000).filter(|n| pass(&mut guard, 1000 * round + n, round * T) == Ok(())).count();
        assert_eq!([5, 6, 8, 1000, 1001].map(flood), [64, 4, 8, 64, 4]);
    }

    #[test]
    fn crowded_queue_takes_what_a_round_carries() {
        let mut guard = ControlGuard::default();
        let mut flood = |round: u64, beside| {
            let pass = |n: &u64| guard.pass(1000 * round + n, &LIMITS, (round * T, beside), || true) == Ok(());
            (0..1000).filter(pass).count()
        };
        assert_eq!([flood(5, Some(0)), flood(5, Some(0)), flood(6, Some(0))], [4, 0, 4]);
        assert_eq!(flood(7, None), 64, "what was saved is there when the queue is not crowded");
        assert_eq!([flood(8, Some(0)), flood(9, None)], [4, 4]);
        assert_eq!([flood(10, Some(3)), flood(11, Some(4))], [1, 0], "the link's slots share it");
        assert_eq!([10, 11].map(|round| guard.passed_at(&LIMITS, round * T)), [0, 0], "none passed in round 11");
    }

    #[test]
    fn forged_cells_take_nothing_from_the_genuine_one() {
        let mut guard = ControlGuard::default();
        for _ in 0..1000 {
            assert_eq!(guard.pass(7, &LIMITS, (T, None), || false), Err(DropReason::Forged));
        }
        assert_eq!(guard.credit, ROUNDS_AT_ONCE * LIMITS.per_round);
        assert_eq!(pass(&mut guard, 7, T), Ok(()));
        assert_eq!(guard.pass(7, &LIMITS, (T, None), || unreachable!("it has come")), Err(DropReason::Copy));
    }

    #[test]
    fn cells_recorded_long_ago_are_repeated_ones() {
        let mut guard = ControlGuard::default();
        for seq in 0..1000 {
            assert_eq!(pass(&mut guard, seq, seq * T), Ok(()));
        }
        for seq in 0..1000 {
            assert_eq!(pass(&mut guard, seq, 1000 * T), Err(DropReason::Copy), "{seq}");
        }
    }
}
