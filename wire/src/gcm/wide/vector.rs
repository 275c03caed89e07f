//! The operations of the algorithm on a vector register: two blocks in 256 bits, four in 512.
//!
//! Every method is a few instructions. The constructors of [`Ymm`] and [`Zmm`] are unsafe and require a CPU with
//! their instructions, so a value proves that the CPU has them, and the other methods are safe. All methods are
//! inlined into the entry points of [`super`], which are compiled for those instructions.

use std::arch::asm;
use std::arch::x86_64::*;

use super::key::POWERS;

/// Bytes of an AES block, and of a lane.
pub(super) const BLOCK: usize = 16;

/// Reverses the bytes of a block, between GCM's order and the CPU's.
const REVERSED: [u8; BLOCK] = [15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0];

/// A register of blocks. Lane 0 holds the first block in memory.
///
/// # Safety
/// Loads and stores access only the bytes that their contracts name.
pub(super) unsafe trait Vector: Copy {
    /// Lanes.
    const BLOCKS: usize;
    /// Bytes.
    const LEN: usize = Self::BLOCKS * BLOCK;
    /// Vectors of a group: as many as a key has powers of H^BLOCKS.
    const STEPS: usize = POWERS + 1 - Self::BLOCKS;

    /// One block in every lane.
    ///
    /// # Safety
    /// The CPU has this type's instructions; 16 bytes at `at` may be read.
    unsafe fn splat(at: *const u8) -> Self;

    /// The block in every lane.
    ///
    /// # Safety
    /// The CPU has this type's instructions.
    unsafe fn fill(block: __m128i) -> Self;

    /// The bytes at `at`.
    ///
    /// # Safety
    /// The CPU has this type's instructions; [`Self::LEN`] bytes at `at` may be read.
    unsafe fn load(at: *const u8) -> Self;

    /// Selects the bytes that [`Self::load_from`] skips.
    type Mask: Copy;

    /// Skips the first `from` bytes: whole lanes, but not all of them.
    ///
    /// # Safety
    /// The CPU has this type's instructions; `from < LEN`.
    unsafe fn mask(from: usize) -> Self::Mask;

    /// The bytes at `at`, without a branch, and zeros for skipped bytes, which may lie outside of any object.
    ///
    /// # Safety
    /// The CPU has this type's instructions; the bytes that are not skipped may be read.
    unsafe fn load_from(at: *const u8, mask: Self::Mask) -> Self;

    /// The bytes `from..to` at `at`, and zeros for the others, which may lie outside of any object.
    ///
    /// # Safety
    /// The CPU has this type's instructions; `from <= to <= LEN`, and those bytes may be read.
    unsafe fn load_part(at: *const u8, from: usize, to: usize) -> Self;

    /// `pad` zeros, then the bytes at `at`. The zeros are not memory: where a masked load begins in a line that nothing
    /// else uses, it waits for that line.
    ///
    /// # Safety
    /// The CPU has this type's instructions; `pad` is that of whole blocks, at most LEN, and LEN - `pad` bytes at `at`
    /// may be read.
    #[inline(always)]
    unsafe fn load_end(at: *const u8, pad: usize) -> Self {
        // SAFETY: the caller guarantees both.
        unsafe { Self::load_part(at.wrapping_sub(pad), pad, Self::LEN) }
    }

    /// Writes all bytes.
    ///
    /// # Safety
    /// [`Self::LEN`] bytes at `at` may be written.
    unsafe fn store(self, at: *mut u8);

    /// Writes the bytes `from..to`.
    ///
    /// # Safety
    /// `from <= to <= LEN`, and those bytes at `at` may be written.
    unsafe fn store_part(self, at: *mut u8, from: usize, to: usize);

    /// The bytes `from..to`, and zeros for the others.
    fn keep(self, from: usize, to: usize) -> Self;
    /// Zeros; `self` only proves that the CPU has the instructions.
    fn zero(self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn xor3(self, b: Self, c: Self) -> Self;
    /// Reverses the bytes of each lane.
    fn reverse(self) -> Self;
    /// Swaps the halves of each lane.
    fn swap_halves(self) -> Self;
    /// Adds `first`, `first + 1`, ... to the low 32 bits of the lanes, modulo 2^32.
    fn count(self, first: u32) -> Self;
    /// Adds the number of lanes to the low 32 bits of each, modulo 2^32.
    fn advance(self) -> Self;
    /// Adds words of 32 bits, modulo 2^32.
    fn add(self, other: Self) -> Self;
    /// One AES round in every lane.
    fn round(self, key: Self) -> Self;
    /// The last AES round in every lane.
    fn last_round(self, key: Self) -> Self;
    /// Carry-less product of two halves in every lane: the upper one of `self` if `A`, of `b` if `B`.
    fn multiply<const A: bool, const B: bool>(self, b: Self) -> Self;
    /// Replaces the last lane.
    fn with_last(self, block: __m128i) -> Self;
    /// The last lane.
    fn last(self) -> __m128i;
    /// XORs all lanes.
    fn sum(self) -> __m128i;
    /// Forces the value to be computed here, so that the compiler does not move it into a branch.
    ///
    /// # Safety
    /// The CPU has this type's instructions. Unsafe only because a register class in `asm!` needs `target_feature`.
    unsafe fn compute_now(self) -> Self;
}

/// The immediate of a carry-less multiplication.
const fn halves(a: bool, b: bool) -> i32 {
    a as i32 | (b as i32) << 4
}

/// Runs intrinsics that this type's CPU has.
macro_rules! has {
    ($($code:tt)*) => {
        // SAFETY: by the constructors' contract, a value of this type exists only if the CPU has its
        // instructions.
        unsafe { $($code)* }
    };
}

/// A carry-less product, with its halves as constants.
macro_rules! product {
    ($intrinsic:ident, $a:expr, $b:expr, $ha:expr, $hb:expr) => {
        match halves($ha, $hb) {
            0x00 => $intrinsic::<0x00>($a, $b),
            0x01 => $intrinsic::<0x01>($a, $b),
            0x10 => $intrinsic::<0x10>($a, $b),
            _ => $intrinsic::<0x11>($a, $b),
        }
    };
}

/// Two blocks: VAES, VPCLMULQDQ and AVX2.
#[derive(Clone, Copy)]
pub(super) struct Ymm(__m256i);

// SAFETY: each load and store below is bounded as its comment says.
unsafe impl Vector for Ymm {
    const BLOCKS: usize = 2;

    #[inline(always)]
    unsafe fn splat(at: *const u8) -> Self {
        // SAFETY: the caller guarantees the CPU and for 16 bytes.
        Ymm(unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast())) })
    }

    #[inline(always)]
    unsafe fn fill(block: __m128i) -> Self {
        // SAFETY: the caller guarantees the CPU.
        Ymm(unsafe { _mm256_broadcastsi128_si256(block) })
    }

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: the caller guarantees the CPU and for 32 bytes.
        Ymm(unsafe { _mm256_loadu_si256(at.cast()) })
    }

    type Mask = __m256i;

    #[inline(always)]
    unsafe fn mask(from: usize) -> __m256i {
        const MASKS: [u8; 48] = {
            let mut masks = [0xff; 48];
            let mut at = 0;
            while at < 16 {
                masks[at] = 0;
                at += 1;
            }
            masks
        };
        // SAFETY: the caller guarantees the CPU; `from` is 0 or 16, so 32 bytes of the 48 are read.
        unsafe { _mm256_loadu_si256(MASKS.as_ptr().wrapping_add(16 - from).cast()) }
    }

    #[inline(always)]
    unsafe fn load_from(at: *const u8, mask: __m256i) -> Self {
        // SAFETY: the caller guarantees the CPU and for the bytes that the mask selects; no other byte is accessed.
        Ymm(unsafe { _mm256_maskload_epi64(at.cast(), mask) })
    }

    #[inline(always)]
    unsafe fn load_part(at: *const u8, from: usize, to: usize) -> Self {
        // SAFETY: the caller guarantees the CPU and for the bytes from..to, and no others are read.
        unsafe {
            match (from, to) {
                (0, 32) => Self::load(at),
                (0, 16) => Ymm(_mm256_zextsi128_si256(_mm_loadu_si128(at.cast()))),
                (16, 32) => Ymm(_mm256_setzero_si256()).with_last(_mm_loadu_si128(at.wrapping_add(16).cast())),
                (32, _) => Ymm(_mm256_setzero_si256()),
                _ => {
                    let mut bytes = [0u8; 32];
                    bytes.as_mut_ptr().add(from).copy_from_nonoverlapping(at.wrapping_add(from), to - from);
                    Self::load(bytes.as_ptr())
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8) {
        // SAFETY: the caller guarantees 32 bytes.
        unsafe { _mm256_storeu_si256(at.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn store_part(self, at: *mut u8, from: usize, to: usize) {
        // SAFETY: the caller guarantees the bytes from..to, and no others are written.
        unsafe {
            match (from, to) {
                (0, 32) => self.store(at),
                (0, 16) => _mm_storeu_si128(at.cast(), _mm256_castsi256_si128(self.0)),
                (16, 32) => _mm_storeu_si128(at.wrapping_add(16).cast(), self.last()),
                _ => {
                    let mut bytes = [0u8; 32];
                    self.store(bytes.as_mut_ptr());
                    at.wrapping_add(from).copy_from_nonoverlapping(bytes.as_ptr().add(from), to - from);
                }
            }
        }
    }

    #[inline(always)]
    fn keep(self, from: usize, to: usize) -> Self {
        const POSITIONS: [i8; 32] = {
            let mut positions = [0; 32];
            let mut at = 0;
            while at < 32 {
                positions[at] = at as i8;
                at += 1;
            }
            positions
        };
        has! {
            let positions = _mm256_loadu_si256(POSITIONS.as_ptr().cast());
            let below = _mm256_cmpgt_epi8(_mm256_set1_epi8(to as i8), positions);
            let before = _mm256_cmpgt_epi8(_mm256_set1_epi8(from as i8), positions);
            Ymm(_mm256_andnot_si256(before, _mm256_and_si256(below, self.0)))
        }
    }

    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn compute_now(mut self) -> Self {
        has! { asm!("/* {} */", inout(ymm_reg) self.0, options(nomem, nostack, preserves_flags)) };
        self
    }

    #[inline(always)]
    fn zero(self) -> Self {
        has! { Ymm(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        has! { Ymm(_mm256_xor_si256(self.0, other.0)) }
    }

    #[inline(always)]
    fn xor3(self, b: Self, c: Self) -> Self {
        self.xor(b).xor(c)
    }

    #[inline(always)]
    fn reverse(self) -> Self {
        has! { Ymm(_mm256_shuffle_epi8(self.0, Self::splat(REVERSED.as_ptr()).0)) }
    }

    #[inline(always)]
    fn swap_halves(self) -> Self {
        has! { Ymm(_mm256_shuffle_epi32::<0x4e>(self.0)) }
    }

    #[inline(always)]
    fn count(self, first: u32) -> Self {
        let (a, b) = (first as i32, first.wrapping_add(1) as i32);
        has! { Ymm(_mm256_add_epi32(self.0, _mm256_setr_epi32(a, 0, 0, 0, b, 0, 0, 0))) }
    }

    #[inline(always)]
    fn advance(self) -> Self {
        has! { Ymm(_mm256_add_epi32(self.0, _mm256_setr_epi32(2, 0, 0, 0, 2, 0, 0, 0))) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        has! { Ymm(_mm256_add_epi32(self.0, other.0)) }
    }

    #[inline(always)]
    fn round(self, key: Self) -> Self {
        has! { Ymm(_mm256_aesenc_epi128(self.0, key.0)) }
    }

    #[inline(always)]
    fn last_round(self, key: Self) -> Self {
        has! { Ymm(_mm256_aesenclast_epi128(self.0, key.0)) }
    }

    #[inline(always)]
    fn multiply<const A: bool, const B: bool>(self, b: Self) -> Self {
        has! { Ymm(product!(_mm256_clmulepi64_epi128, self.0, b.0, A, B)) }
    }

    #[inline(always)]
    fn with_last(self, block: __m128i) -> Self {
        has! { Ymm(_mm256_inserti128_si256::<1>(self.0, block)) }
    }

    #[inline(always)]
    fn last(self) -> __m128i {
        has! { _mm256_extracti128_si256::<1>(self.0) }
    }

    #[inline(always)]
    fn sum(self) -> __m128i {
        has! { _mm_xor_si128(_mm256_castsi256_si128(self.0), _mm256_extracti128_si256::<1>(self.0)) }
    }
}

/// Four blocks: VAES, VPCLMULQDQ and AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(super) struct Zmm(__m512i);

/// A mask of the bytes `from..to` of 64.
const fn mask(from: usize, to: usize) -> u64 {
    if from == to { 0 } else { (u64::MAX >> (64 - (to - from))) << from }
}

// SAFETY: each load and store below is bounded as its comment says.
unsafe impl Vector for Zmm {
    const BLOCKS: usize = 4;

    #[inline(always)]
    unsafe fn splat(at: *const u8) -> Self {
        // SAFETY: the caller guarantees the CPU and for 16 bytes.
        Zmm(unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(at.cast())) })
    }

    #[inline(always)]
    unsafe fn fill(block: __m128i) -> Self {
        // SAFETY: the caller guarantees the CPU.
        Zmm(unsafe { _mm512_broadcast_i32x4(block) })
    }

    #[inline(always)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: the caller guarantees the CPU and for 64 bytes.
        Zmm(unsafe { _mm512_loadu_si512(at.cast()) })
    }

    type Mask = __mmask8;

    #[inline(always)]
    unsafe fn mask(from: usize) -> __mmask8 {
        0xff << (from / 8)
    }

    #[inline(always)]
    unsafe fn load_from(at: *const u8, mask: __mmask8) -> Self {
        // SAFETY: the caller guarantees the CPU and for the bytes that the mask selects; no other byte is accessed.
        Zmm(unsafe { _mm512_maskz_loadu_epi64(mask, at.cast()) })
    }

    #[inline(always)]
    unsafe fn load_part(at: *const u8, from: usize, to: usize) -> Self {
        // SAFETY: the caller guarantees the CPU and for the bytes from..to; a masked load accesses no others.
        Zmm(unsafe { _mm512_maskz_loadu_epi8(mask(from, to), at.cast()) })
    }

    #[inline(always)]
    unsafe fn load_end(at: *const u8, pad: usize) -> Self {
        let (first, last) = (0xffu32 >> (pad / 8), 0xffu32 << (pad / 8));
        // SAFETY: the caller guarantees the CPU and for 64 - pad bytes; a masked load accesses no others.
        Zmm(unsafe { _mm512_maskz_expand_epi64(last as u8, _mm512_maskz_loadu_epi64(first as u8, at.cast())) })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8) {
        // SAFETY: the caller guarantees 64 bytes.
        unsafe { _mm512_storeu_si512(at.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn store_part(self, at: *mut u8, from: usize, to: usize) {
        // SAFETY: the caller guarantees the bytes from..to; a masked store accesses no others.
        unsafe {
            if (from, to) == (0, 64) {
                self.store(at);
            } else {
                _mm512_mask_storeu_epi8(at.cast(), mask(from, to), self.0);
            }
        }
    }

    #[inline(always)]
    fn keep(self, from: usize, to: usize) -> Self {
        has! { Zmm(_mm512_maskz_mov_epi8(mask(from, to), self.0)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn compute_now(mut self) -> Self {
        has! { asm!("/* {} */", inout(zmm_reg) self.0, options(nomem, nostack, preserves_flags)) };
        self
    }

    #[inline(always)]
    fn zero(self) -> Self {
        has! { Zmm(_mm512_setzero_si512()) }
    }

    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        has! { Zmm(_mm512_xor_si512(self.0, other.0)) }
    }

    #[inline(always)]
    fn xor3(self, b: Self, c: Self) -> Self {
        has! { Zmm(_mm512_ternarylogic_epi32::<0x96>(self.0, b.0, c.0)) }
    }

    #[inline(always)]
    fn reverse(self) -> Self {
        has! { Zmm(_mm512_shuffle_epi8(self.0, Self::splat(REVERSED.as_ptr()).0)) }
    }

    #[inline(always)]
    fn swap_halves(self) -> Self {
        has! { Zmm(_mm512_shuffle_epi32::<0x4e>(self.0)) }
    }

    #[inline(always)]
    fn count(self, first: u32) -> Self {
        let [a, b, c, d] = [0, 1, 2, 3].map(|lane| first.wrapping_add(lane) as i32);
        has! { Zmm(_mm512_add_epi32(self.0, _mm512_setr_epi32(a, 0, 0, 0, b, 0, 0, 0, c, 0, 0, 0, d, 0, 0, 0))) }
    }

    #[inline(always)]
    fn advance(self) -> Self {
        has! { Zmm(_mm512_add_epi32(self.0, _mm512_setr_epi32(4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0))) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        has! { Zmm(_mm512_add_epi32(self.0, other.0)) }
    }

    #[inline(always)]
    fn round(self, key: Self) -> Self {
        has! { Zmm(_mm512_aesenc_epi128(self.0, key.0)) }
    }

    #[inline(always)]
    fn last_round(self, key: Self) -> Self {
        has! { Zmm(_mm512_aesenclast_epi128(self.0, key.0)) }
    }

    #[inline(always)]
    fn multiply<const A: bool, const B: bool>(self, b: Self) -> Self {
        has! { Zmm(product!(_mm512_clmulepi64_epi128, self.0, b.0, A, B)) }
    }

    #[inline(always)]
    fn with_last(self, block: __m128i) -> Self {
        has! { Zmm(_mm512_inserti32x4::<3>(self.0, block)) }
    }

    #[inline(always)]
    fn last(self) -> __m128i {
        has! { _mm512_extracti32x4_epi32::<3>(self.0) }
    }

    #[inline(always)]
    fn sum(self) -> __m128i {
        has! {
            let half = _mm256_xor_si256(_mm512_castsi512_si256(self.0), _mm512_extracti64x4_epi64::<1>(self.0));
            _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
        }
    }
}
