//! The engine `rustcrypto`: the crates `aes-gcm`, `aes` and `ctr`, written in Rust. It is the reference that the
//! others are tested against, and the default on architectures where no other was measured.

use aes::cipher::array::Array;
use aes::cipher::consts::{U12, U16};
use aes::cipher::{BlockCipherEncrypt, InnerIvInit, KeyInit, StreamCipherCore};
use aes_gcm::aead::AeadInOut;

use super::Cipher;
use crate::cell::TAG_LEN;

/// An AEAD made from a key of type `K`.
pub trait Gcm<K>: AeadInOut<NonceSize = U12, TagSize = U16> {
    fn prepare(key: &K) -> Self;
}

/// A block cipher made from a key of type `K`.
pub trait Aes<K>: BlockCipherEncrypt<BlockSize = U16> {
    fn prepare(key: &K) -> Self;
}

impl<T: KeyInit + AeadInOut<NonceSize = U12, TagSize = U16>, const N: usize> Gcm<[u8; N]> for T
where
    for<'a> &'a Array<u8, T::KeySize>: From<&'a [u8; N]>,
{
    fn prepare(key: &[u8; N]) -> Self {
        T::new(key.into())
    }
}

impl<T: KeyInit + BlockCipherEncrypt<BlockSize = U16>, const N: usize> Aes<[u8; N]> for T
where
    for<'a> &'a Array<u8, T::KeySize>: From<&'a [u8; N]>,
{
    fn prepare(key: &[u8; N]) -> Self {
        T::new(key.into())
    }
}

/// A prepared AEAD key; wiped on drop by the crate.
pub(super) struct AeadKey<C: Cipher>(C::Gcm);

/// A prepared CTR key; wiped on drop by the crate.
pub(super) struct StreamKey<C: Cipher>(C::Aes);

impl<C: Cipher> AeadKey<C> {
    pub(super) fn new(key: &C::Key) -> Self {
        AeadKey(C::Gcm::prepare(key))
    }

    /// Opens `data` in place. `data` remains ciphertext if it is not authentic; it must not be shorter than a tag.
    pub(super) fn open(&self, nonce: &[u8; 12], data: &mut [u8]) -> bool {
        let (text, tag) = data.split_at_mut(data.len() - TAG_LEN);
        let tag = aes_gcm::Tag::try_from(&tag[..]).expect("split at TAG_LEN");
        self.0.decrypt_inout_detached(&(*nonce).into(), &[], text.into(), &tag).is_ok()
    }

    /// Seals `data` in place; its last bytes become the tag. It must not be shorter than a tag.
    pub(super) fn seal(&self, nonce: &[u8; 12], data: &mut [u8]) {
        let (text, tag) = data.split_at_mut(data.len() - TAG_LEN);
        let made = self.0.encrypt_inout_detached(&(*nonce).into(), &[], text.into());
        tag.copy_from_slice(&made.expect("a cell is far below GCM's length limit"));
    }
}

impl<C: Cipher> StreamKey<C> {
    pub(super) fn new(key: &C::Key) -> Self {
        StreamKey(C::Aes::prepare(key))
    }

    /// XORs the keystream over `data`. Counters start at 1.
    pub(super) fn apply(&self, nonce: &[u8; 12], data: &mut [u8]) {
        let mut counter = [0; 16];
        counter[..12].copy_from_slice(nonce);
        counter[15] = 1;
        self.apply_from(counter, data);
    }

    /// XORs the keystream over `data`, from a counter block on. Its last 32 bits count up.
    pub(super) fn apply_from(&self, counter: [u8; 16], data: &mut [u8]) {
        ctr::CtrCore::<&C::Aes, ctr::flavors::Ctr32BE>::inner_iv_init(&self.0, &counter.into())
            .apply_keystream_partial(data.into());
    }
}
