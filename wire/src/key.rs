//! Keys of a channel, generation by generation (SPEC 5.7).
//!
//! `sec[0]` comes from the setup. Each generation of 2^20 cells expands to a key, an iv and the next
//! secret. Two generations are ready at any time, because the replay window never spans more. A
//! generation is wiped once the window has passed it, so that a node seized later cannot go back.

use crate::gcm::Prepared;
use crate::kdf::{Secret, expand, expand_secret};

/// log2 of the cells in a generation of a free class.
pub const GENERATION_SHIFT: u32 = 20;

/// The key and iv of the generation of `secret`, and the secret of the next generation.
fn derive<K: Prepared>(secret: &Secret) -> (K, Secret) {
    let key = K::prepare(&expand(secret, "eddy1 key"), &expand(secret, "eddy1 iv"));
    (key, expand_secret(secret, "eddy1 next"))
}

/// The live generations of one layer of a channel and direction. The keys come first: they are used for
/// every cell.
#[repr(C)]
pub struct Generations<K> {
    /// Keys of generations `base` and `base + 1`.
    live: [K; 2],
    /// `seq >> GENERATION_SHIFT` of the first key's cells.
    base: u64,
    next: Secret,
}

impl<K: Prepared> Generations<K> {
    /// Generations 0 and 1 of `sec[0]`, for sequence numbers from `first` on.
    pub fn new(sec0: &Secret, first: u64) -> Self {
        let (zero, after) = derive(sec0);
        let (one, next) = derive(&after);
        Generations { live: [zero, one], base: first >> GENERATION_SHIFT, next }
    }

    /// Key and iv of `seq`, if its generation is live.
    pub fn of(&self, seq: u64) -> Option<(&K, &[u8; 12])> {
        self.counted_from(seq, self.base)
    }

    /// The same for a caller that knows the lowest acceptable number, to which this was advanced: it need not load
    /// `base`.
    pub fn since(&self, lowest: u64, seq: u64) -> Option<(&K, &[u8; 12])> {
        debug_assert_eq!(lowest >> GENERATION_SHIFT, self.base);
        self.counted_from(seq, lowest >> GENERATION_SHIFT)
    }

    fn counted_from(&self, seq: u64, base: u64) -> Option<(&K, &[u8; 12])> {
        let live = (seq >> GENERATION_SHIFT).checked_sub(base)?;
        let key = self.live.get(usize::try_from(live).ok()?)?;
        Some((key, key.iv()))
    }

    /// Wipes generations below `lowest`, the lowest acceptable number, and prepares the following ones.
    /// Costs nothing unless `lowest` has reached a new generation.
    pub fn advance(&mut self, lowest: u64) {
        while lowest >> GENERATION_SHIFT > self.base {
            let (fresh, next) = derive(&self.next);
            self.next = next;
            self.live.swap(0, 1);
            self.live[1] = fresh;
            self.base += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcm::StreamKey;
    use crate::replay::{JUMP_MAX, WIDTH_MAX, Window};

    fn iv(generations: &Generations<StreamKey>, seq: u64) -> Option<[u8; 12]> {
        generations.of(seq).map(|(_, iv)| *iv)
    }

    #[test]
    fn generations_follow_sequence_numbers_and_are_wiped() {
        let start = Secret::new([3; 32]);
        let mut keys = Generations::<StreamKey>::new(&start, 0);
        let (zero, one) = (iv(&keys, 0).unwrap(), iv(&keys, 1 << 20).unwrap());
        assert_ne!(zero, one);
        assert_eq!(iv(&keys, (1 << 20) - 1), Some(zero));
        assert_eq!(iv(&keys, 2 << 20), None);
        keys.advance(1 << 20);
        assert_eq!(iv(&keys, 0), None, "generation 0 is wiped");
        assert_eq!(iv(&keys, 1 << 20), Some(one));
        assert!(iv(&keys, 2 << 20).is_some());
        let again = expand_secret(&expand_secret(&start, "eddy1 next"), "eddy1 next");
        assert_eq!(iv(&keys, 2 << 20), Some(*expand::<12>(&again, "eddy1 iv")));
        // The secret behind them advances, too.
        keys.advance(2 << 20);
        assert_eq!(iv(&keys, 1 << 20), None);
        let third = expand_secret(&again, "eddy1 next");
        assert_eq!(iv(&keys, 3 << 20), Some(*expand::<12>(&third, "eddy1 iv")));
        assert_eq!(keys.next.expose(), expand_secret(&third, "eddy1 next").expose());
    }

    #[test]
    fn keys_and_secrets_wipe_themselves() {
        fn wipes<T: zeroize::ZeroizeOnDrop>() {}
        wipes::<Secret>();
        wipes::<zeroize::Zeroizing<[u8; 12]>>();
        wipes::<crate::gcm::AeadKey>();
        wipes::<crate::gcm::StreamKey>();
        // Keys of the libraries behind them, and header keys.
        wipes::<aes::Aes128>();
        wipes::<aes_gcm::Aes128Gcm>();
    }

    #[test]
    fn every_acceptable_number_has_a_live_generation() {
        let mut keys = Generations::<StreamKey>::new(&Secret::new([3; 32]), 0);
        let mut window = Window::new(0, WIDTH_MAX);
        let mut seq = 0;
        while seq < 8 << 20 {
            window.mark_seen(seq).unwrap();
            keys.advance(window.lowest());
            for probe in [window.lowest(), seq, seq + JUMP_MAX] {
                assert!(keys.of(probe).is_some(), "highest {seq}, probe {probe}");
            }
            seq += JUMP_MAX / 4 + 1;
        }
    }
}
