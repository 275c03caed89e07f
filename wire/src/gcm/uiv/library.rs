//! UIV+ by the crates `aes`, `ctr` and `polyval`, for the engines `portable` and `rustcrypto`: ring has no POLYVAL.
//! All three run in constant time, with and without instructions for AES and carry-less multiplication.

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use polyval::Polyval;
use polyval::universal_hash::UniversalHash;

use super::super::{Aes128, rustcrypto};
use super::{BLOCK, UIV_KEY_LEN};

/// A prepared key of UIV+; wiped on drop by the crates.
pub(in crate::gcm) struct UivKey {
    /// K_B
    block: aes::Aes128,
    /// K_U
    tweak: HashKey,
    /// K_S
    stream: rustcrypto::StreamKey<Aes128>,
    /// K_V
    counter: HashKey,
}

/// A prepared key of POLYVAL; wiped on drop by the crate.
pub(super) struct HashKey(Polyval);

impl HashKey {
    pub(super) fn new(key: &[u8; BLOCK]) -> Self {
        HashKey(Polyval::new(key.into()))
    }

    /// The hash of the concatenation. `text` has whole blocks; `first` is padded with zeros to one, if not empty.
    pub(super) fn hash(&self, first: &[u8], text: &[u8]) -> [u8; BLOCK] {
        let mut state = self.0.clone();
        state.update_padded(first);
        state.update_padded(text);
        state.finalize().into()
    }
}

impl UivKey {
    pub(super) fn new(key: &[u8; UIV_KEY_LEN]) -> Self {
        let part = |i: usize| key[i * BLOCK..].first_chunk::<BLOCK>().expect("four blocks");
        UivKey {
            block: aes::Aes128::new(part(0).into()),
            tweak: HashKey::new(part(1)),
            stream: rustcrypto::StreamKey::new(part(2)),
            counter: HashKey::new(part(3)),
        }
    }

    pub(super) fn encipher(&self, nonce: &[u8; 12], body: &mut [u8]) {
        let (left, right) = body.split_first_chunk_mut().expect("the length is checked");
        let mask = self.tweak.hash(nonce, right);
        xor(left, &mask);
        self.block.encrypt_block(left.into());
        xor(left, &mask);
        self.keystream(left, right);
    }

    pub(super) fn decipher(&self, nonce: &[u8; 12], body: &mut [u8]) {
        let (left, right) = body.split_first_chunk_mut().expect("the length is checked");
        self.keystream(left, right);
        let mask = self.tweak.hash(nonce, right);
        xor(left, &mask);
        self.block.decrypt_block(left.into());
        xor(left, &mask);
    }

    /// XORs the keystream of Y_L over the other side.
    fn keystream(&self, left: &[u8; BLOCK], right: &mut [u8]) {
        let mut counter = self.counter.hash(left, &[]);
        // A counter of 32 bits counts in the cleared bits: there are at most 128 blocks.
        counter[BLOCK - 1] &= 0x80;
        self.stream.apply_from(counter, right);
    }
}

fn xor(block: &mut [u8; BLOCK], other: &[u8; BLOCK]) {
    block.iter_mut().zip(other).for_each(|(to, from)| *to ^= from);
}
