//! AES-GCM, plain AES-CTR and UIV+, in place, over slices of jobs; four engines implement them.
//!
//! A job is one (key, nonce, bytes) triple. Callers pass whole batches, so that an engine can prefetch the
//! next key; a call per cell could not. The engines are `wide` with registers of 512 and of 256 bits,
//! `portable` and `rustcrypto`; [`engine`] returns the one in use. Each key is prepared for one engine, and a
//! batch may mix keys of several. The protocol uses AES-128; AES-256 is for comparison and for later suites.

#[allow(unsafe_code)]
mod cipher;
mod engine;
#[allow(unsafe_code)]
mod portable;
mod rustcrypto;
mod uiv;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod wide;

pub use cipher::{Aes128, Aes256, Cipher};
use engine::Which;
pub use engine::{Engine, EngineError, VARIABLE, engine, select};
pub use uiv::{BODY_MAX, LINK_TAG_LEN, PolyvalKey, UIV_KEY_LEN, UivKey, decipher_batch, encipher_batch};

use zeroize::{ZeroizeOnDrop, Zeroizing};

use crate::cell::TAG_LEN;

/// Bytes of an AES-128 key.
const KEY_LEN: usize = 16;

/// A prepared AES-128-GCM key; wiped on drop.
pub type AeadKey = Aead<Aes128>;
/// A prepared AES-128-CTR key; wiped on drop.
pub type StreamKey = Stream<Aes128>;

/// A prepared GCM key and its iv; wiped on drop. With AES-128 it has five cache lines; an engine by a library uses
/// only the first.
pub struct Aead<C: Cipher>(AeadKind<C>);

/// The iv that nonces under a key are derived from. It fits into the alignment gap after the enum's tag.
type Iv = Zeroizing<[u8; 12]>;

/// A key, by engine.
#[repr(align(64))]
enum AeadKind<C: Cipher> {
    #[cfg(target_arch = "x86_64")]
    Wide512(Iv, wide::AeadKey<C>),
    #[cfg(target_arch = "x86_64")]
    Wide256(Iv, wide::AeadKey<C>),
    Portable(Iv, Box<portable::AeadKey>),
    RustCrypto(Iv, Box<rustcrypto::AeadKey<C>>),
}

/// A prepared CTR key and its iv; wiped on drop. With AES-128 it has three cache lines.
pub struct Stream<C: Cipher>(StreamKind<C>);

/// A key, by engine.
#[repr(align(64))]
enum StreamKind<C: Cipher> {
    #[cfg(target_arch = "x86_64")]
    Wide512(Iv, wide::StreamKey<C>),
    #[cfg(target_arch = "x86_64")]
    Wide256(Iv, wide::StreamKey<C>),
    Library(Iv, Box<rustcrypto::StreamKey<C>>),
}

#[cfg(target_arch = "x86_64")]
const _: () = assert!(size_of::<AeadKey>() == 5 * 64 && size_of::<StreamKey>() == 3 * 64);

// Each engine's key wipes itself.
impl<C: Cipher> ZeroizeOnDrop for Aead<C> {}
impl<C: Cipher> ZeroizeOnDrop for Stream<C> {}

impl<C: Cipher> Aead<C> {
    /// Expands a key for an engine, with an iv of zeros.
    pub fn prepare_for(engine: Engine, key: &C::Key) -> Self {
        Self::with_iv(engine, key, Iv::default())
    }

    fn with_iv(engine: Engine, key: &C::Key, iv: Iv) -> Self {
        Aead(match engine.0 {
            // SAFETY: an `Engine` exists only if this CPU has its instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Which::Wide512 => AeadKind::Wide512(iv, unsafe { wide::AeadKey::new(key, wide::of_512::LANES) }),
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Which::Wide256 => AeadKind::Wide256(iv, unsafe { wide::AeadKey::new(key, wide::of_256::LANES) }),
            Which::Portable => AeadKind::Portable(iv, Box::new(portable::AeadKey::new::<C>(key))),
            Which::RustCrypto => AeadKind::RustCrypto(iv, Box::new(rustcrypto::AeadKey::new(key))),
        })
    }
}

impl<C: Cipher> Stream<C> {
    /// Expands a key for an engine, with an iv of zeros.
    pub fn prepare_for(engine: Engine, key: &C::Key) -> Self {
        Self::with_iv(engine, key, Iv::default())
    }

    fn with_iv(engine: Engine, key: &C::Key, iv: Iv) -> Self {
        Stream(match engine.0 {
            // SAFETY: an `Engine` exists only if this CPU has its instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Which::Wide512 => StreamKind::Wide512(iv, unsafe { wide::StreamKey::new(key) }),
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Which::Wide256 => StreamKind::Wide256(iv, unsafe { wide::StreamKey::new(key) }),
            Which::Portable | Which::RustCrypto => StreamKind::Library(iv, Box::new(rustcrypto::StreamKey::new(key))),
        })
    }
}

/// A key that [`crate::key::Generations`] can hold.
pub trait Prepared {
    /// Expands a key for the engine of this process.
    fn prepare(key: &[u8; KEY_LEN], iv: &[u8; 12]) -> Self;

    /// The iv that nonces under this key are derived from.
    fn iv(&self) -> &[u8; 12];
}

/// Prepares a key (16 bytes) and its iv (12 bytes), as one label expands.
pub fn prepare<K: Prepared>(bytes: &[u8; KEY_LEN + 12]) -> K {
    let (key, iv) = bytes.split_first_chunk::<KEY_LEN>().expect("it is longer");
    K::prepare(key, iv.try_into().expect("12 are left"))
}

impl Prepared for AeadKey {
    fn prepare(key: &[u8; KEY_LEN], iv: &[u8; 12]) -> Self {
        Aead::with_iv(engine(), key, Iv::new(*iv))
    }

    fn iv(&self) -> &[u8; 12] {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            AeadKind::Wide512(iv, _) | AeadKind::Wide256(iv, _) => iv,
            AeadKind::Portable(iv, _) | AeadKind::RustCrypto(iv, _) => iv,
        }
    }
}

impl Prepared for StreamKey {
    fn prepare(key: &[u8; KEY_LEN], iv: &[u8; 12]) -> Self {
        Stream::with_iv(engine(), key, Iv::new(*iv))
    }

    fn iv(&self) -> &[u8; 12] {
        match &self.0 {
            #[cfg(target_arch = "x86_64")]
            StreamKind::Wide512(iv, _) | StreamKind::Wide256(iv, _) => iv,
            StreamKind::Library(iv, _) => iv,
        }
    }
}

/// The work on one cell under a key of type `K`.
pub struct Job<'a, K> {
    pub key: &'a K,
    /// Never used twice under one key, except for a copy of the same cell.
    pub nonce: [u8; 12],
    /// Processed in place. For open and seal the last [`TAG_LEN`] bytes are the tag.
    pub data: &'a mut [u8],
    /// Set by [`open_batch`] if the tag is valid: `data` holds the plaintext, then the tag.
    pub ok: bool,
}

impl<'a, K> Job<'a, K> {
    pub fn new(key: &'a K, nonce: [u8; 12], data: &'a mut [u8]) -> Self {
        Job { key, nonce, data, ok: false }
    }
}

/// Opens each job in place (GCM, no AAD) and sets `ok` on the authentic ones. The text of any other job remains
/// ciphertext or becomes zeros; it is never the unauthenticated plaintext.
pub fn open_batch<C: Cipher>(mut jobs: &mut [Job<'_, Aead<C>>]) {
    while let Some(first) = jobs.first_mut() {
        let done = match &first.key.0 {
            // SAFETY: a key for an engine exists only if the CPU has its instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            AeadKind::Wide512(..) => unsafe { C::open_512(jobs) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            AeadKind::Wide256(..) => unsafe { C::open_256(jobs) },
            AeadKind::Portable(_, key) => {
                first.ok = first.data.len() >= TAG_LEN && key.open(&first.nonce, first.data);
                1
            }
            AeadKind::RustCrypto(_, key) => {
                first.ok = first.data.len() >= TAG_LEN && key.open(&first.nonce, first.data);
                1
            }
        };
        jobs = &mut jobs[done..];
    }
}

/// Seals each job in place (GCM, no AAD). The last [`TAG_LEN`] bytes become the tag.
///
/// # Panics
/// A job is shorter than a tag.
pub fn seal_batch<C: Cipher>(mut jobs: &mut [Job<'_, Aead<C>>]) {
    while let Some(first) = jobs.first_mut() {
        let done = match &first.key.0 {
            // SAFETY: a key for an engine exists only if the CPU has its instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            AeadKind::Wide512(..) => unsafe { C::seal_512(jobs) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            AeadKind::Wide256(..) => unsafe { C::seal_256(jobs) },
            AeadKind::Portable(_, key) => {
                key.seal(&first.nonce, first.data);
                first.ok = true;
                1
            }
            AeadKind::RustCrypto(_, key) => {
                key.seal(&first.nonce, first.data);
                first.ok = true;
                1
            }
        };
        jobs = &mut jobs[done..];
    }
}

/// XORs the AES-CTR keystream over all bytes of each job. The first counter block is nonce | u32 1, and the u32
/// counts up (SPEC 3.5).
pub fn ctr_batch<C: Cipher>(mut jobs: &mut [Job<'_, Stream<C>>]) {
    while let Some(first) = jobs.first_mut() {
        let done = match &first.key.0 {
            // SAFETY: a key for an engine exists only if the CPU has its instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            StreamKind::Wide512(..) => unsafe { C::ctr_512(jobs) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            StreamKind::Wide256(..) => unsafe { C::ctr_256(jobs) },
            StreamKind::Library(_, key) => {
                key.apply(&first.nonce, first.data);
                first.ok = true;
                1
            }
        };
        jobs = &mut jobs[done..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hex_literal::hex;

    #[test]
    fn counter_mode_matches_nist_sp_800_38a() {
        // F.5.1 starts its counter block at f0f1..ff; GCM-style counters start at 1, so check the
        // second keystream block against the AES of FIPS-197 instead: E(K, nonce | 1).
        let key = StreamKey::prepare(&hex!("000102030405060708090a0b0c0d0e0f"), &[0; 12]);
        let mut data = [0; 40];
        ctr_batch(&mut [Job::new(&key, hex!("00112233445566778899aabb"), &mut data)]);
        use aes::cipher::{BlockCipherEncrypt, KeyInit};
        let aes = aes::Aes128::new(&hex!("000102030405060708090a0b0c0d0e0f").into());
        for (i, chunk) in data.chunks(16).enumerate() {
            let mut block: aes::Block = hex!("00112233445566778899aabb00000000").into();
            block[15] = 1 + i as u8;
            aes.encrypt_block(&mut block);
            assert_eq!(chunk, &block[..chunk.len()]);
        }
    }

    #[test]
    fn flipped_bit_fails_only_its_own_job() {
        let key = AeadKey::prepare(&[1; 16], &[0; 12]);
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
    fn job_shorter_than_a_tag_is_refused() {
        let key = AeadKey::prepare(&[1; 16], &[0; 12]);
        let mut short = [0; 15];
        let mut jobs = [Job::new(&key, [0; 12], &mut short)];
        open_batch(&mut jobs);
        assert!(!jobs[0].ok);
    }
}
