//! The engine `portable`: GCM by aws-lc-rs, for CPUs without wide instructions. Its keys live behind a pointer of
//! the library's. It has no counter mode without a context on the heap for each text, so that is
//! [`super::rustcrypto`]'s.

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

use super::Cipher;
use crate::cell::TAG_LEN;

/// A prepared AEAD key; wiped on drop by the library.
pub struct AeadKey(LessSafeKey);

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
