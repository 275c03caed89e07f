//! The engine `portable`: GCM by ring, for CPUs without wide instructions; of the libraries measured it is the
//! fastest with a key of its own for each text. It has no bare counter mode, so that is [`super::rustcrypto`]'s.

use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

use zeroize::{ZeroizeOnDrop, zeroize_flat_type};

use super::Cipher;
use crate::cell::TAG_LEN;

/// A prepared AEAD key; wiped on drop, which the library leaves to us.
pub struct AeadKey(LessSafeKey);

// All of it lies in the value itself: it owns nothing that would have to be freed.
const _: () = assert!(!std::mem::needs_drop::<LessSafeKey>());

impl Drop for AeadKey {
    fn drop(&mut self) {
        // SAFETY: the value owns no other memory (above), and nobody uses it any more.
        unsafe { zeroize_flat_type(&mut self.0) }
    }
}

impl ZeroizeOnDrop for AeadKey {}

impl AeadKey {
    /// Expands a key.
    pub fn new<C: Cipher>(key: &C::Key) -> Self {
        AeadKey(LessSafeKey::new(
            UnboundKey::new(C::portable(), key.as_ref()).expect("the key has its cipher's length"),
        ))
    }

    /// Opens `data` in place; the library leaves zeros where it is not authentic. At least a tag's length.
    pub fn open(&self, nonce: &[u8; 12], data: &mut [u8]) -> bool {
        self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), data).is_ok()
    }

    /// Seals `data` in place, its tag behind it. At least a tag's length.
    pub fn seal(&self, nonce: &[u8; 12], data: &mut [u8]) {
        let (text, tag) = data.split_at_mut(data.len() - TAG_LEN);
        let made = self.0.seal_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::empty(), text);
        tag.copy_from_slice(made.expect("a cell is far below GCM's length limit").as_ref());
    }
}
