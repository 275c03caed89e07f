//! The engine `portable`: GCM by ring, for CPUs without wide instructions. It is the fastest of the measured
//! libraries if every text has another key. It has no plain counter mode; [`super::rustcrypto`] provides that.

use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

use zeroize::{ZeroizeOnDrop, zeroize_flat_type};

use super::Cipher;
use crate::cell::TAG_LEN;

/// A prepared AEAD key; wiped on drop here, because the library does not.
pub(super) struct AeadKey(LessSafeKey);

// The key owns no heap memory, so wiping the value wipes all of it.
const _: () = assert!(!std::mem::needs_drop::<LessSafeKey>());

impl Drop for AeadKey {
    fn drop(&mut self) {
        // SAFETY: the value owns no other memory (asserted above) and is not used after the drop.
        unsafe { zeroize_flat_type(&mut self.0) }
    }
}

impl ZeroizeOnDrop for AeadKey {}

impl AeadKey {
    pub(super) fn new<C: Cipher>(key: &C::Key) -> Self {
        AeadKey(LessSafeKey::new(
            UnboundKey::new(C::portable(), key.as_ref()).expect("the key has its cipher's length"),
        ))
    }

    /// Opens `data` in place. `data` becomes zeros if it is not authentic; it must not be shorter than a tag.
    pub(super) fn open(&self, nonce: &[u8; 12], data: &mut [u8]) -> bool {
        self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), data).is_ok()
    }

    /// Seals `data` in place; its last bytes become the tag. It must not be shorter than a tag.
    pub(super) fn seal(&self, nonce: &[u8; 12], data: &mut [u8]) {
        let (text, tag) = data.split_at_mut(data.len() - TAG_LEN);
        let made = self.0.seal_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::empty(), text);
        tag.copy_from_slice(made.expect("a cell is far below GCM's length limit").as_ref());
    }
}
