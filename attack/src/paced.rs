//! What anybody knows of a paced class, and what a corrupt exit sees of the meetings in it.

use std::hash::{DefaultHasher, Hasher as _};

/// The public terms of a paced class, as far as they say which cells an access link carries in which round
/// (docs/SPEC.md 9.6, 9.7 and 9.16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacedShape {
    /// Nanoseconds of a round.
    pub period: u64,
    /// Cells of a channel in a round.
    pub cells: u32,
    /// How often a cell is on the access link: in its round and, byte for byte the same, every `gap` rounds after it.
    pub copies: u32,
    pub gap: u32,
    /// Each cell also carries what the one of the round before did, so a datagram is lost with two rounds in a row.
    pub repeat: bool,
    /// Rounds of a batch.
    pub rounds: u64,
    /// Hops of the chain with its exit.
    pub hops: u32,
    /// The number of the first round that begins within the record, counted from 1970.
    pub first: u64,
    /// When that round begins, in nanoseconds since the record began: less than `period`.
    pub first_at: u64,
}

/// Rounds at the end of a batch in which nothing is set up, and how often a link has a slot for link cells.
const REST: u64 = 64;
const LINK_EVERY: u64 = 8;

impl Default for PacedShape {
    /// The terms of docs/SPEC.md 9.16 with three mixes and an exit. The record begins with round 0.
    fn default() -> Self {
        Self {
            period: 10_000_000,
            cells: 1,
            copies: 2,
            gap: 1,
            repeat: false,
            rounds: 2048,
            hops: 4,
            first: 0,
            first_at: 0,
        }
    }
}

impl PacedShape {
    /// New cells of an access link in a round, without copies of earlier ones: data, and slots for control cells.
    pub fn new_cells(&self, round: u64, forward: bool) -> u32 {
        let phase = self.rounds.saturating_sub(REST) / (2 * u64::from(self.hops));
        // Setups travel in phase 1, acks in phase 2h, in the first three quarters of it.
        let from = if forward { 0 } else { (2 * u64::from(self.hops) - 1) * phase };
        let is_setup = (from..from + 3 * phase / 4).contains(&(round % self.rounds));
        self.cells + u32::from(is_setup) + u32::from(round.is_multiple_of(LINK_EVERY))
    }

    /// When a round begins, in nanoseconds since the record began; 0 for those that began before.
    pub fn begins(&self, round: u64) -> u64 {
        self.first_at.saturating_add(round.saturating_sub(self.first).saturating_mul(self.period))
    }
}

/// Which datagrams of an access link are the same bytes: for each datagram of the place's traces, in their order, a
/// number that equal ones share. The adversary reads bytes, so it knows which cells are copies of each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub forward: Vec<u32>,
    pub backward: Vec<u32>,
}

impl Contents {
    /// The numbers of one direction.
    pub fn of(&self, forward: bool) -> &[u32] {
        if forward { &self.forward } else { &self.backward }
    }
}

/// What a corrupt exit sees of a meeting (docs/SPEC.md 9.13.5), in the order of rounds. A round with several cells of a
/// channel has several entries, in the order of their numbers in the round. Rounds that the exit did not release, or
/// in which the two channels were not joined, are left out.
///
/// Forward is from the caller to the partner. The exit knows a meeting by two channel numbers, which change with every
/// batch. A record puts the batches of a meeting together and says which partner it belongs to, so an attacker knows
/// more than the exit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meeting {
    pub forward: Vec<ExitRound>,
    pub backward: Vec<ExitRound>,
}

impl Meeting {
    /// The cells of one direction.
    pub fn of(&self, forward: bool) -> &[ExitRound] {
        if forward { &self.forward } else { &self.backward }
    }
}

/// One place of a joined channel at the exit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExitRound {
    /// Counted from 1970, as in [`PacedShape::first`].
    pub round: u64,
    /// Nanoseconds from the arrival of its cell on the last link to the exit's forward release of the round; `None` if
    /// no cell came and the exit drew random bytes. Behind an honest mix a cell always comes.
    pub waited: Option<u32>,
    /// The body as it came, or as the exit drew it.
    pub before: Body,
    /// The body between the layers of the two channels; `None` where the record does not say.
    pub between: Option<Body>,
    /// The body as it leaves to the other end.
    pub after: Body,
}

/// What an attacker can use of a body that should be noise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Body {
    /// Equal for equal bodies. Values of different builds do not compare.
    pub fingerprint: u64,
    /// Chi-square of the histogram of its bytes against equal frequencies, 255 degrees of freedom: 255 on average.
    pub chi_square: f32,
    /// Bits that are one: half of them on average.
    pub ones: u16,
    /// Bits that differ from the body before it in the same place: half of them on average. Exactly half if there was
    /// none of this length.
    pub changed: u16,
}

/// Sums up the bodies of one place, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Bodies {
    last: Vec<u8>,
}

impl Bodies {
    /// Sums up the next body, of 1 to 8191 bytes.
    pub fn next(&mut self, body: &[u8]) -> Body {
        let mut hasher = DefaultHasher::new();
        hasher.write(body);
        let mut histogram = [0f32; 256];
        body.iter().for_each(|&byte| histogram[usize::from(byte)] += 1.0);
        let expected = body.len() as f32 / 256.0;
        let chi_square = histogram.iter().map(|count| (count - expected).powi(2) / expected).sum();
        let ones = body.iter().map(|byte| byte.count_ones()).sum::<u32>() as u16;
        let changed = if self.last.len() == body.len() {
            body.iter().zip(&self.last).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>() as u16
        } else {
            4 * body.len() as u16
        };
        self.last = body.to_vec();
        Body { fingerprint: hasher.finish(), chi_square, ones, changed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timetable_has_setups_acks_and_control_slots() {
        let shape = PacedShape::default();
        // Phases of 248 rounds, 186 of them for setups or acks.
        let counts = |rounds: std::ops::Range<u64>, forward| -> Vec<u32> {
            rounds.map(|round| shape.new_cells(2048 * 5 + round, forward)).collect()
        };
        assert_eq!(counts(0..3, true), [3, 2, 2]);
        assert_eq!(counts(184..188, true), [3, 2, 1, 1]);
        assert_eq!(counts(1734..1738, false), [1, 1, 3, 2]);
        assert_eq!(counts(1921..1924, false), [2, 1, 1]);
        assert_eq!(shape.begins(7), 70_000_000);
    }

    #[test]
    fn bodies_are_summed_up_in_order() {
        let mut bodies = Bodies::default();
        let (zeros, ones) = (bodies.next(&[0; 256]), bodies.next(&[255; 256]));
        let each: Vec<u8> = (0..=255).collect();
        let each = bodies.next(&each);
        assert_eq!([zeros.ones, ones.ones, each.ones], [0, 2048, 1024]);
        assert_eq!([zeros.changed, ones.changed, each.changed], [1024, 2048, 1024]);
        assert_eq!([zeros.chi_square, each.chi_square], [255.0 * 256.0, 0.0]);
        assert_eq!(bodies.next(&[0; 256]).fingerprint, zeros.fingerprint);
        assert_ne!(ones.fingerprint, zeros.fingerprint);
    }
}
