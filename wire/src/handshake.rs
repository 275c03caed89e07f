//! Lengths of the handshake datagrams, and the first bytes of message 1 (SPEC 4.2).
//!
//! The length alone distinguishes a handshake from a cell: no cell of any chain has one of these
//! lengths. Control makes and reads the datagrams; the data plane sorts by length.

/// Half of message 1 from an entry to Mix 1 (Noise NK).
pub const NK_HALF_LEN: usize = 672;
/// Half of message 1 between hops (Noise IK).
pub const IK_HALF_LEN: usize = 686;
/// Message 2, of either pattern.
pub const RESPONSE_LEN: usize = 1176;
/// A cookie or a challenge.
pub const COOKIE_LEN: usize = 64;
/// The end of each half: zeros if its sender has no cookie.
pub const MAC2_LEN: usize = 16;

/// Kind of message 1.
pub const INITIATION: u8 = 1;

/// The first bytes of a half of message 1; part 0 is the first half, part 1 the second.
pub const fn half_head(part: u8) -> [u8; 4] {
    [INITIATION, part, 0, 0]
}

/// All four.
pub const HANDSHAKE_LENS: [usize; 4] = [COOKIE_LEN, NK_HALF_LEN, IK_HALF_LEN, RESPONSE_LEN];
/// The longest of them.
pub const HANDSHAKE_LEN_MAX: usize = RESPONSE_LEN;

// A response is never longer than the two halves that it answers.
const _: () = assert!(RESPONSE_LEN <= 2 * NK_HALF_LEN && NK_HALF_LEN <= IK_HALF_LEN);

/// True if a datagram of this length is a handshake datagram and not a cell.
pub const fn is_handshake_len(len: usize) -> bool {
    matches!(len, COOKIE_LEN | NK_HALF_LEN | IK_HALF_LEN | RESPONSE_LEN)
}

/// Half of message 1 on link `link`, counted from the entry: link 1 runs from the entry to Mix 1.
pub const fn half_len(link: usize) -> usize {
    if link == 1 { NK_HALF_LEN } else { IK_HALF_LEN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::{Class, Direction, Shape};

    #[test]
    fn no_cell_has_a_handshake_length() {
        for class in [Class::S, Class::M, Class::L] {
            for hops in 2..=crate::cell::MAX_HOPS {
                let shape = Shape::new(class, hops).unwrap();
                for link in 1..=hops {
                    assert!(!is_handshake_len(shape.cell_len(Direction::Forward, link)));
                    assert!(!is_handshake_len(shape.cell_len(Direction::Backward, link)));
                }
            }
        }
    }
}
