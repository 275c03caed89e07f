//! The block ciphers that keys are prepared for, with the parameters that each engine needs.

#[cfg(target_arch = "x86_64")]
use super::wide::{self, Block};
#[cfg(target_arch = "x86_64")]
use super::{Aead, Job, Stream};

mod sealed {
    pub trait Sealed {}
}

/// AES with one key length.
pub trait Cipher: sealed::Sealed + Sized + 'static {
    type Key: AsRef<[u8]>;

    /// Rounds (FIPS 197 5).
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    const ROUNDS: usize;
    /// `ROUNDS + 1` of them.
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    type RoundKeys: AsRef<[Block]> + AsMut<[Block]>;
    #[cfg(target_arch = "x86_64")]
    #[doc(hidden)]
    const NO_ROUND_KEYS: Self::RoundKeys;

    // Entry points of the wide engines. Without them, every crate that has jobs would compile the engines again.
    // SAFETY of all: the CPU must have the engine's instructions.
    #[doc(hidden)]
    #[cfg(target_arch = "x86_64")]
    unsafe fn open_512(jobs: &mut [Job<'_, Aead<Self>>]) -> usize;
    #[doc(hidden)]
    #[cfg(target_arch = "x86_64")]
    unsafe fn seal_512(jobs: &mut [Job<'_, Aead<Self>>]) -> usize;
    #[doc(hidden)]
    #[cfg(target_arch = "x86_64")]
    unsafe fn ctr_512(jobs: &mut [Job<'_, Stream<Self>>]) -> usize;
    #[doc(hidden)]
    #[cfg(target_arch = "x86_64")]
    unsafe fn open_256(jobs: &mut [Job<'_, Aead<Self>>]) -> usize;
    #[doc(hidden)]
    #[cfg(target_arch = "x86_64")]
    unsafe fn seal_256(jobs: &mut [Job<'_, Aead<Self>>]) -> usize;
    #[doc(hidden)]
    #[cfg(target_arch = "x86_64")]
    unsafe fn ctr_256(jobs: &mut [Job<'_, Stream<Self>>]) -> usize;

    /// For the engine `portable`.
    #[doc(hidden)]
    fn portable() -> &'static ring::aead::Algorithm;

    /// For the engine `rustcrypto`: the AEAD.
    #[doc(hidden)]
    type Gcm: super::rustcrypto::Gcm<Self::Key>;
    /// For the engine `rustcrypto`: the block cipher.
    #[doc(hidden)]
    type Aes: super::rustcrypto::Aes<Self::Key>;
}

macro_rules! cipher {
    ($name:ident, $doc:literal, $key_len:literal, $rounds:literal, $algorithm:ident, $gcm:ident) => {
        #[doc = $doc]
        pub struct $name;

        impl sealed::Sealed for $name {}

        impl Cipher for $name {
            type Key = [u8; $key_len];

            #[cfg(target_arch = "x86_64")]
            const ROUNDS: usize = $rounds;
            #[cfg(target_arch = "x86_64")]
            type RoundKeys = [Block; $rounds + 1];
            #[cfg(target_arch = "x86_64")]
            const NO_ROUND_KEYS: Self::RoundKeys = [Block([0; 16]); $rounds + 1];

            #[cfg(target_arch = "x86_64")]
            unsafe fn open_512(jobs: &mut [Job<'_, Aead<Self>>]) -> usize {
                // SAFETY: the caller guarantees the CPU's instructions.
                unsafe { wide::of_512::open_batch(jobs) }
            }
            #[cfg(target_arch = "x86_64")]
            unsafe fn seal_512(jobs: &mut [Job<'_, Aead<Self>>]) -> usize {
                // SAFETY: the caller guarantees the CPU's instructions.
                unsafe { wide::of_512::seal_batch(jobs) }
            }
            #[cfg(target_arch = "x86_64")]
            unsafe fn ctr_512(jobs: &mut [Job<'_, Stream<Self>>]) -> usize {
                // SAFETY: the caller guarantees the CPU's instructions.
                unsafe { wide::of_512::ctr_batch(jobs) }
            }
            #[cfg(target_arch = "x86_64")]
            unsafe fn open_256(jobs: &mut [Job<'_, Aead<Self>>]) -> usize {
                // SAFETY: the caller guarantees the CPU's instructions.
                unsafe { wide::of_256::open_batch(jobs) }
            }
            #[cfg(target_arch = "x86_64")]
            unsafe fn seal_256(jobs: &mut [Job<'_, Aead<Self>>]) -> usize {
                // SAFETY: the caller guarantees the CPU's instructions.
                unsafe { wide::of_256::seal_batch(jobs) }
            }
            #[cfg(target_arch = "x86_64")]
            unsafe fn ctr_256(jobs: &mut [Job<'_, Stream<Self>>]) -> usize {
                // SAFETY: the caller guarantees the CPU's instructions.
                unsafe { wide::of_256::ctr_batch(jobs) }
            }

            fn portable() -> &'static ring::aead::Algorithm {
                &ring::aead::$algorithm
            }

            type Gcm = aes_gcm::$gcm;
            type Aes = aes::$name;
        }
    };
}

cipher!(Aes128, "AES with keys of 128 bits, the cipher of the protocol.", 16, 10, AES_128_GCM, Aes128Gcm);
cipher!(Aes256, "AES with keys of 256 bits.", 32, 14, AES_256_GCM, Aes256Gcm);
