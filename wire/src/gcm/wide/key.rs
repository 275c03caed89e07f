//! Key material of the wide engine: round keys and powers of H, next to each other.
//!
//! An AES-128-GCM key has 11 round keys and 8 powers, 304 bytes; with the enum's tag and the iv five cache lines.
//! AES-256-GCM takes six, AES-128-CTR three. Expansion has no secret-dependent branch and reads no table: the S-box
//! is AESKEYGENASSIST's.

use std::arch::x86_64::*;

use zeroize::{DefaultIsZeroes, Zeroize, ZeroizeOnDrop};

use super::super::Cipher;

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

/// Round keys, then H^(KL), ..., H^(2L), H^L, H^(L-1), ..., H for an engine of L lanes, where K + L = 9; wiped on
/// drop. The powers are those of POLYVAL, so that a product needs no shift (RFC 8452 appendix A).
#[repr(C)]
pub(crate) struct AeadKey<C: Cipher> {
    pub(super) stream: StreamKey<C>,
    pub(super) powers: [Block; POWERS],
}

impl<C: Cipher> Drop for StreamKey<C> {
    fn drop(&mut self) {
        self.rounds.as_mut().zeroize();
    }
}

impl<C: Cipher> Drop for AeadKey<C> {
    fn drop(&mut self) {
        self.powers.zeroize();
    }
}

impl<C: Cipher> ZeroizeOnDrop for StreamKey<C> {}
impl<C: Cipher> ZeroizeOnDrop for AeadKey<C> {}

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
        let mut it = Self { stream: unsafe { StreamKey::<C>::new(key) }, powers: [Block::default(); POWERS] };
        let h = {
            let (first, rest) = it.stream.rounds.as_ref().split_first().expect("there are rounds");
            let (last, middle) = rest.split_last().expect("there are rounds");
            let mut state = load(first);
            for round in middle {
                state = _mm_aesenc_si128(state, load(round));
            }
            value(_mm_aesenclast_si128(state, load(last))).swap_bytes()
        };
        // GHASH under H is POLYVAL under x H.
        let h = block((h << 1) ^ (0u128.wrapping_sub(h >> 127) & POLY));
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
}

/// x^128 of POLYVAL's field: x^127 + x^126 + x^121 + 1.
pub(super) const POLY: u128 = 0xc2000000_00000000_00000000_00000001;

#[inline]
#[target_feature(enable = "sse2")]
fn load(block: &Block) -> __m128i {
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
fn multiply(a: __m128i, b: __m128i) -> __m128i {
    let poly = block(POLY);
    let low = _mm_clmulepi64_si128::<0x00>(a, b);
    let high = _mm_clmulepi64_si128::<0x11>(a, b);
    let middle = _mm_xor_si128(_mm_clmulepi64_si128::<0x01>(a, b), _mm_clmulepi64_si128::<0x10>(a, b));
    let fold = |above, below| {
        _mm_xor_si128(above, _mm_xor_si128(_mm_clmulepi64_si128::<0x01>(poly, below), _mm_shuffle_epi32::<0x4e>(below)))
    };
    fold(high, fold(middle, low))
}
