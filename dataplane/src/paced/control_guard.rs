//! Which control cells go to control (SPEC 9.4.9): each once, and of a slot no more than its link carries.
//!
//! Control authenticates them, and all links share its queue. So repeated cells, and more than a peer has slots for,
//! end here.

use wire::cell::CellKind;
use wire::gcm::LINK_TAG_LEN;
use wire::paced::PacedHeader;

use crate::Nanos;
use crate::ledger::DropReason;

/// Bodies that are passed on under one header. Whoever copies a header and overtakes its cell uses up the others.
const BODIES_MAX: u8 = 2;
/// Rounds whose control cells may come at once: twice as many as data cells may be ahead.
const ROUNDS_AT_ONCE: u64 = 16;
/// Numbers that are remembered, at least.
const NUMBERS_MIN: usize = 256;

/// What a link carries in its control slots.
#[derive(Clone, Copy)]
pub(super) struct ControlLimits {
    period: Nanos,
    per_round: u64,
    /// The reason for which repeated cells are dropped.
    repeated: DropReason,
}

impl ControlLimits {
    /// Of a link with at most `slots` control slots in a round, each round of `period` ns.
    pub(super) fn new(period: Nanos, slots: usize, expects_copies: bool) -> ControlLimits {
        let repeated = if expects_copies { DropReason::Copy } else { DropReason::Replay };
        ControlLimits { period, per_round: u64::from(BODIES_MAX) * slots as u64, repeated }
    }

    fn numbers(&self) -> usize {
        NUMBERS_MIN.max((ROUNDS_AT_ONCE * self.per_round) as usize)
    }
}

#[derive(Clone, Copy)]
struct Seen {
    seq: u64,
    /// Of the latest body.
    tag: [u8; LINK_TAG_LEN],
    bodies: u8,
}

/// The control cells that have come under one slot.
#[derive(Default)]
pub(super) struct ControlGuard {
    /// The latest numbers, each at its remainder. Empty before the first cell.
    seen: Box<[Option<Seen>]>,
    /// The highest number of a link cell. Their headers have 80 known bits, so nobody but the peer moves it.
    newest: u64,
    /// Cells that may pass, and the round up to which they were granted.
    credit: u64,
    granted: u64,
}

impl ControlGuard {
    /// Whether a cell goes to control, which came at `now`. `tag` is a keyed hash of its body.
    ///
    /// # Errors
    /// It has come before, or the link carries fewer cells.
    pub(super) fn pass(
        &mut self,
        header: &PacedHeader,
        tag: [u8; LINK_TAG_LEN],
        limits: &ControlLimits,
        now: Nanos,
    ) -> Result<(), DropReason> {
        let (round, most) = (now / limits.period, ROUNDS_AT_ONCE * limits.per_round);
        if self.seen.is_empty() {
            self.seen = vec![None; limits.numbers()].into();
            (self.credit, self.granted) = (most, round);
        }
        let passed = round.saturating_sub(self.granted);
        self.credit = most.min(self.credit.saturating_add(passed.saturating_mul(limits.per_round)));
        self.granted = self.granted.max(round);

        let numbers = self.seen.len() as u64;
        let place = &mut self.seen[(header.seq % numbers) as usize];
        let before = place.filter(|seen| seen.seq == header.seq);
        let is_repeated = before.is_some_and(|seen| seen.tag == tag || seen.bodies == BODIES_MAX);
        if is_repeated || header.seq + numbers <= self.newest {
            return Err(limits.repeated);
        }
        self.credit = self.credit.checked_sub(1).ok_or(DropReason::ControlRate)?;
        *place = Some(Seen { seq: header.seq, tag, bodies: before.map_or(0, |seen| seen.bodies) + 1 });
        if header.kind == CellKind::Link && header.channel == 0 {
            self.newest = self.newest.max(header.seq);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::CLASS;
    use super::*;
    use crate::MILLI;

    const T: Nanos = 10 * MILLI;
    const LIMITS: ControlLimits = ControlLimits { period: T, per_round: 4, repeated: DropReason::Copy };

    fn header(kind: CellKind, seq: u64) -> PacedHeader {
        PacedHeader { channel: 0, seq, sub: 0, kind, class: CLASS, tag: [0; LINK_TAG_LEN] }
    }

    fn pass(guard: &mut ControlGuard, seq: u64, tag: u8, now: Nanos) -> Result<(), DropReason> {
        guard.pass(&header(CellKind::Link, seq), [tag; LINK_TAG_LEN], &LIMITS, now)
    }

    #[test]
    fn repeated_control_cell_uses_up_no_credit() {
        let mut guard = ControlGuard::default();
        let most = ROUNDS_AT_ONCE * LIMITS.per_round;
        for seq in 0..most {
            assert_eq!(pass(&mut guard, seq, 1, T), Ok(()));
            for _ in 0..100 {
                assert_eq!(pass(&mut guard, seq, 1, T), Err(DropReason::Copy));
            }
        }
        assert_eq!(pass(&mut guard, most, 1, T), Err(DropReason::ControlRate));
        assert_eq!(pass(&mut guard, most, 1, 2 * T), Ok(()));
    }

    #[test]
    fn link_has_the_credit_of_its_slots_in_every_round() {
        let mut guard = ControlGuard::default();
        let flood =
            |round: u64| (0..1000).filter(|n| pass(&mut guard, 1000 * round + n, 1, round * T) == Ok(())).count();
        assert_eq!([5, 6, 8, 1000, 1001].map(flood), [64, 4, 8, 64, 4]);
    }

    #[test]
    fn copied_header_passes_with_two_bodies() {
        let mut guard = ControlGuard::default();
        assert_eq!([1, 2, 3, 2].map(|tag| pass(&mut guard, 7, tag, T).is_ok()), [true, true, false, false]);
        assert_eq!(guard.credit, ROUNDS_AT_ONCE * LIMITS.per_round - 2);
    }

    #[test]
    fn cells_recorded_long_ago_are_repeated_ones() {
        let mut guard = ControlGuard::default();
        let pass = |guard: &mut ControlGuard, kind, seq, round| {
            guard.pass(&header(kind, seq), [1; LINK_TAG_LEN], &LIMITS, round * T)
        };
        for seq in 0..1000 {
            assert_eq!(pass(&mut guard, CellKind::Link, seq, seq), Ok(()));
        }
        for seq in 0..1000 {
            assert_eq!(pass(&mut guard, CellKind::Link, seq, 1000), Err(DropReason::Copy), "{seq}");
        }
        // A number that came from anywhere else than a link cell's header moves nothing.
        assert_eq!(pass(&mut guard, CellKind::Setup, 1 << 39, 1000), Ok(()));
        assert_eq!(pass(&mut guard, CellKind::Link, 1000, 1000), Ok(()));
    }
}
