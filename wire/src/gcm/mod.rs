//! The engine seam: AES-128 in GCM and in bare counter mode, in place, over slices of jobs.
//!
//! A job is one (key, nonce, bytes) triple. Callers hand over whole batches, so that an engine may
//! interleave cells and prefetch keys; a call per cell could do neither. The crates `aes-gcm`, `aes`
//! and `ctr` fill the seam.

use aes::Aes128;
use aes::cipher::{InnerIvInit, KeyInit, StreamCipherCore};
use aes_gcm::Aes128Gcm;
use aes_gcm::aead::AeadInOut;

use crate::cell::TAG_LEN;

/// Name of the engine, for reports.
pub const ENGINE: &str = "rustcrypto";
/// Bytes of an AES-128 key.
pub const KEY_LEN: usize = 16;

/// A prepared AES-128-GCM key; wiped on drop.
pub struct AeadKey(Aes128Gcm);

/// A prepared AES-128-CTR key; wiped on drop.
pub struct StreamKey(Aes128);

/// What a generation of a layer holds: see [`crate::key::Generations`].
pub trait Prepared {
    /// Expands the key schedule.
    fn prepare(key: &[u8; KEY_LEN]) -> Self;
}

impl Prepared for AeadKey {
    fn prepare(key: &[u8; KEY_LEN]) -> Self {
        AeadKey(Aes128Gcm::new(key.into()))
    }
}

impl Prepared for StreamKey {
    fn prepare(key: &[u8; KEY_LEN]) -> Self {
        StreamKey(Aes128::new(key.into()))
    }
}

/// One cell's worth of work under key type `K`.
pub struct Job<'a, K> {
    /// The prepared key.
    pub key: &'a K,
    /// Never the same twice under one key, except for a copy of the same cell.
    pub nonce: [u8; 12],
    /// Worked on in place. For open and seal the last [`TAG_LEN`] bytes are the tag.
    pub data: &'a mut [u8],
    /// Set by [`open_batch`]: the tag was right, `data` holds the plaintext before the tag.
    pub ok: bool,
}

impl<'a, K> Job<'a, K> {
    /// A job not yet done.
    pub fn new(key: &'a K, nonce: [u8; 12], data: &'a mut [u8]) -> Self {
        Job { key, nonce, data, ok: false }
    }
}

/// Opens each job in place (GCM, no AAD); `ok` tells which were authentic. The bytes of a job that
/// was not are ciphertext still.
pub fn open_batch(jobs: &mut [Job<'_, AeadKey>]) {
    for job in jobs {
        let Some(at) = job.data.len().checked_sub(TAG_LEN) else { continue };
        let (text, tag) = job.data.split_at_mut(at);
        let tag = aes_gcm::Tag::try_from(&tag[..]).expect("split at TAG_LEN");
        job.ok = job.key.0.decrypt_inout_detached(&job.nonce.into(), &[], text.into(), &tag).is_ok();
    }
}

/// Seals each job in place (GCM, no AAD); the tag goes into the last [`TAG_LEN`] bytes.
///
/// # Panics
/// If a job is shorter than a tag.
pub fn seal_batch(jobs: &mut [Job<'_, AeadKey>]) {
    for job in jobs {
        let at = job.data.len() - TAG_LEN;
        let (text, tag) = job.data.split_at_mut(at);
        let made = job
            .key
            .0
            .encrypt_inout_detached(&job.nonce.into(), &[], text.into())
            .expect("a cell is far below GCM's length limit");
        tag.copy_from_slice(&made);
        job.ok = true;
    }
}

/// XORs AES-CTR over the whole of each job, first block nonce | u32 1, the u32 counting up
/// (SPEC 3.5).
pub fn ctr_batch(jobs: &mut [Job<'_, StreamKey>]) {
    for job in jobs {
        let mut counter = [0; 16];
        counter[..12].copy_from_slice(&job.nonce);
        counter[15] = 1;
        ctr::CtrCore::<&Aes128, ctr::flavors::Ctr32BE>::inner_iv_init(&job.key.0, &counter.into())
            .apply_keystream_partial((&mut *job.data).into());
        job.ok = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    #[test]
    fn counter_mode_is_that_of_nist_sp_800_38a() {
        // F.5.1 starts its counter block at f0f1..ff; GCM-style counters start at 1, so check the
        // second keystream block against the AES of FIPS-197 instead: E(K, nonce | 1).
        let key = StreamKey::prepare(&hex!("000102030405060708090a0b0c0d0e0f"));
        let mut data = [0; 40];
        ctr_batch(&mut [Job::new(&key, hex!("00112233445566778899aabb"), &mut data)]);
        use aes::cipher::BlockCipherEncrypt;
        let aes = Aes128::new(&hex!("000102030405060708090a0b0c0d0e0f").into());
        for (i, chunk) in data.chunks(16).enumerate() {
            let mut block: aes::Block = hex!("00112233445566778899aabb00000000").into();
            block[15] = 1 + i as u8;
            aes.encrypt_block(&mut block);
            assert_eq!(chunk, &block[..chunk.len()]);
        }
    }

    #[test]
    fn a_flipped_bit_fails_and_only_its_own_job_fails() {
        let key = AeadKey::prepare(&[1; 16]);
        let mut a = [7; 64];
        let mut b = [7; 64];
        seal_batch(&mut [Job::new(&key, [1; 12], &mut a), Job::new(&key, [2; 12], &mut b)]);
        a[3] ^= 1;
        let mut jobs = [Job::new(&key, [1; 12], &mut a), Job::new(&key, [2; 12], &mut b)];
        open_batch(&mut jobs);
        assert_eq!(jobs.each_ref().map(|job| job.ok), [false, true]);
        assert_eq!(b[..48], [7; 48]);
    }

    #[test]
    fn a_job_shorter_than_a_tag_is_refused() {
        let key = AeadKey::prepare(&[1; 16]);
        let mut short = [0; 15];
        let mut jobs = [Job::new(&key, [0; 12], &mut short)];
        open_batch(&mut jobs);
        assert!(!jobs[0].ok);
    }
}
