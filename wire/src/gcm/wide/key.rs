//! Key material of the wide engine: round keys and powers of H, next to each other.
//!
//! An AES-128-GCM key has 11 round keys and 8 powers, 304 bytes; with the enum's tag and the iv five cache lines.
//! AES-256-GCM takes six, AES-128-CTR three. UIV+ has two AES keys, 8 powers and K_V, 496 bytes; with the enum's tag
//! eight cache lines. Expansion has no secret-dependent branch and reads no table: the S-box
//! is AESKEYGENASSIST's.

use std::arch::x86_64::*;

use zeroize::{DefaultIsZeroes, Zeroize, ZeroizeOnDrop};

use super::super::{Aes128, Cipher, UIV_KEY_LEN};

/// 16 aligned bytes.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
pub struct Block(pub [u8; 16]);

impl DefaultIsZeroes for Block {}

/// Number of powers of H in a key.
pub(super) const POWERS: usize = 8;

/// Round keys; wiped on drop.
#[repr(C)]
pub(crate) struct StreamKey<C: Cipher> {
    pub(super) rounds: C::RoundKeys,
}

/// H^(KL), ..., H^(2L), H^L, H^(L-1), ..., H for an engine of L lanes, where K + L = 9; wiped on drop. The powers are
/// those of POLYVAL, so that a product needs no shift (RFC 8452 appendix A).
#[repr(C)]
pub(crate) struct HashKey {
    pub(super) powers: [Block; POWERS],
}

/// A key of GCM.
#[repr(C)]
pub(crate) struct AeadKey<C: Cipher> {
    pub(super) stream: StreamKey<C>,
    pub(super) hash: HashKey,
}

/// A key of UIV+; wiped on drop.
#[repr(C)]
pub(crate) struct UivKey {
    /// K_B
    pub(super) block: StreamKey<Aes128>,
    /// K_U
    pub(super) tweak: HashKey,
    /// K_S
    pub(super) stream: StreamKey<Aes128>,
    /// K_V
    pub(super) counter: Block,
}

impl<C: Cipher> Drop for StreamKey<C> {
    fn drop(&mut self) {
        self.rounds.as_mut().zeroize();
    }
}

impl Drop for HashKey {
    fn drop(&mut self) {
        self.powers.zeroize();
    }
}

impl Drop for UivKey {
    fn drop(&mut self) {
        self.counter.zeroize();
    }
}

impl<C: Cipher> ZeroizeOnDrop for StreamKey<C> {}
impl ZeroizeOnDrop for HashKey {}
impl<C: Cipher> ZeroizeOnDrop for AeadKey<C> {}
impl ZeroizeOnDrop for UivKey {}

impl<C: Cipher> StreamKey<C> {
    /// Expands a key (FIPS 197 5.2).
    ///
    /// # Safety
    /// The CPU has AES-NI.
    #[target_feature(enable = "aes,sse2")]
    pub(crate) unsafe fn new(key: &C::Key) -> Self {
        let mut rounds = C::NO_ROUND_KEYS;
        let out = rounds.as_mut();
        let key = key.as_ref();
        for (block, bytes) in out.iter_mut().zip(key.chunks_exact(16)) {
            block.0.copy_from_slice(bytes);
        }
        let words = key.len() / 4;
        let word = |out: &[Block], i: usize| {
            u32::from_le_bytes(out[i / 4].0[i % 4 * 4..][..4].try_into().expect("four bytes"))
        };
        let mut constant = 1u32;
        for i in words..out.len() * 4 {
            let mut fresh = word(out, i - 1);
            if i % words == 0 {
                fresh = substitute(fresh).rotate_right(8) ^ constant;
                constant = (constant << 1) ^ ((constant >> 7) * 0x11b);
            } else if words == 8 && i % 8 == 4 {
                fresh = substitute(fresh);
            }
            fresh ^= word(out, i - words);
            out[i / 4].0[i % 4 * 4..][..4].copy_from_slice(&fresh.to_le_bytes());
        }
        StreamKey { rounds }
    }
}

/// SubWord.
#[inline]
#[target_feature(enable = "aes,sse2")]
fn substitute(word: u32) -> u32 {
    // The second word goes through the S-box and comes back first.
    _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(_mm_set1_epi32(word as i32))) as u32
}

impl<C: Cipher> AeadKey<C> {
    /// Expands a key for an engine with `lanes` lanes.
    ///
    /// # Safety
    /// The CPU has AES-NI and PCLMULQDQ.
    #[target_feature(enable = "aes,pclmulqdq,sse2")]
    pub(crate) unsafe fn new(key: &C::Key, lanes: usize) -> Self {
        // SAFETY: the caller guarantees AES-NI.
        let stream = unsafe { StreamKey::<C>::new(key) };
        let h = value(encrypt(&stream, block(0))).swap_bytes();
        // GHASH under H is POLYVAL under x H.
        let h = block((h << 1) ^ (0u128.wrapping_sub(h >> 127) & POLY));
        AeadKey { stream, hash: HashKey::new(h, lanes) }
    }
}

impl HashKey {
    #[inline]
    #[target_feature(enable = "pclmulqdq,sse2")]
    fn new(h: __m128i, lanes: usize) -> Self {
        let mut it = HashKey { powers: [Block::default(); POWERS] };
        let (steps, low) = it.powers.split_at_mut(POWERS + 1 - lanes);
        let mut power = h;
        for out in low.iter_mut().rev() {
            store(out, power);
            power = multiply(power, h);
        }
        let step = power;
        for out in steps.iter_mut().rev() {
            store(out, power);
            power = multiply(power, step);
        }
        it
    }

    /// A key of POLYVAL for an engine with `lanes` lanes.
    ///
    /// # Safety
    /// The CPU has PCLMULQDQ.
    #[target_feature(enable = "pclmulqdq,sse2")]
    pub(crate) unsafe fn polyval(key: &[u8; 16], lanes: usize) -> Self {
        HashKey::new(block(u128::from_le_bytes(*key)), lanes)
    }
}

impl UivKey {
    /// Expands a key for an engine with `lanes` lanes.
    ///
    /// # Safety
    /// The CPU has AES-NI and PCLMULQDQ.
    #[target_feature(enable = "aes,pclmulqdq,sse2")]
    pub(crate) unsafe fn new(key: &[u8; UIV_KEY_LEN], lanes: usize) -> Self {
        let part = |i: usize| key[i * 16..].first_chunk::<16>().expect("four blocks");
        // SAFETY: the caller guarantees AES-NI and PCLMULQDQ.
        unsafe {
            UivKey {
                block: StreamKey::new(part(0)),
                tweak: HashKey::polyval(part(1), lanes),
                stream: StreamKey::new(part(2)),
                counter: Block(*part(3)),
            }
        }
    }
}

/// AES of one block.
#[inline]
#[target_feature(enable = "aes,sse2")]
pub(super) fn encrypt<C: Cipher>(key: &StreamKey<C>, block: __m128i) -> __m128i {
    let (first, rest) = key.rounds.as_ref().split_first().expect("there are rounds");
    let (last, middle) = rest.split_last().expect("there are rounds");
    let state = _mm_xor_si128(block, load(first));
    let state = middle.iter().fold(state, |state, round| _mm_aesenc_si128(state, load(round)));
    _mm_aesenclast_si128(state, load(last))
}

/// The inverse of [`encrypt`]. It makes the round keys of FIPS 197 5.3.5 on the way, so that a key need not have them.
#[inline]
#[target_feature(enable = "aes,sse2")]
pub(super) fn decrypt<C: Cipher>(key: &StreamKey<C>, block: __m128i) -> __m128i {
    let (first, rest) = key.rounds.as_ref().split_first().expect("there are rounds");
    let (last, middle) = rest.split_last().expect("there are rounds");
    let state = _mm_xor_si128(block, load(last));
    let inverse = |state, round| _mm_aesdec_si128(state, _mm_aesimc_si128(load(round)));
    let state = middle.iter().rev().fold(state, inverse);
    _mm_aesdeclast_si128(state, load(first))
}

/// x^128 of POLYVAL's field: x^127 + x^126 + x^121 + 1.
pub(super) const POLY: u128 = 0xc2000000_00000000_00000000_00000001;

#[inline]
#[target_feature(enable = "sse2")]
pub(super) fn load(block: &Block) -> __m128i {
    // SAFETY: 16 bytes, aligned.
    unsafe { _mm_load_si128(block.0.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn store(block: &mut Block, value: __m128i) {
    // SAFETY: 16 bytes, aligned.
    unsafe { _mm_store_si128(block.0.as_mut_ptr().cast(), value) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn block(value: u128) -> __m128i {
    _mm_set_epi64x((value >> 64) as i64, value as i64)
}

#[inline]
#[target_feature(enable = "sse2")]
fn value(block: __m128i) -> u128 {
    let high = _mm_cvtsi128_si64(_mm_unpackhi_epi64(block, block)) as u64;
    u128::from(high) << 64 | u128::from(_mm_cvtsi128_si64(block) as u64)
}

/// POLYVAL's dot: a b x^-128.
#[inline]
#[target_feature(enable = "pclmulqdq,sse2")]
pub(super) fn multiply(a: __m128i, b: __m128i) -> __m128i {
    let poly = block(POLY);
    let low = _mm_clmulepi64_si128::<0x00>(a, b);
    let high = _mm_clmulepi64_si128::<0x11>(a, b);
    let middle = _mm_xor_si128(_mm_clmulepi64_si128::<0x01>(a, b), _mm_clmulepi64_si128::<0x10>(a, b));
    let fold = |above, below| {
        _mm_xor_si128(above, _mm_xor_si128(_mm_clmulepi64_si128::<0x01>(poly, below), _mm_shuffle_epi32::<0x4e>(below)))
    };
    fold(high, fold(middle, low))
}
