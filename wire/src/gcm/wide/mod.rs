//! The wide engine: AES-GCM and AES-CTR with VAES and VPCLMULQDQ, one algorithm for 256 and 512 bits.
//!
//! A text of n blocks is worked on in vectors of L lanes, and both halves of GCM use the same ones:
//!
//! ```text
//!     CTR     pad  E(2) E(3) ...            E(n+1)  E(1)      E(1) masks the tag
//!     GHASH    0    X1   X2  ...  Xn, zeros behind  lengths
//!            `---- one vector ----'   ...   `-- the last --'
//! ```
//!
//! The padding in front makes whole vectors; zeros there change no hash, so that only the first and the last
//! vector are not plain loads and stores. K vectors make a group. While AES goes through its rounds on one
//! group, GHASH multiplies another between the rounds, since AES and carry-less multiplication run in
//! different units: the same group on the way in, the one before on the way out. Each lane runs a Horner
//! chain of its own over every L-th block, reduced once a group; the last vector is multiplied by H^L, ..., H
//! lane by lane, and the lanes are added up.
//!
//! What is opened is deciphered before its tag is known. If the tag is wrong the text is enciphered again.
//!
//! Nothing here branches on, or looks up by, a secret: only on lengths and on the verdict.

mod key;
#[cfg(test)]
mod model;
mod vector;

use std::arch::x86_64::*;

pub use key::{AeadKey, Block, StreamKey};
use vector::{BLOCK, Vector, Ymm, Zmm};

use super::Cipher;
use crate::cell::TAG_LEN;
use key::POLY;

/// Vectors in flight in counter mode alone.
const STREAM: usize = 8;

/// Where a job stands. Pointers may lie before the text by the padding, which is never touched.
struct Run<V: Vector> {
    rounds: *const u8,
    powers: *const u8,
    /// nonce | 1, bytes reversed.
    first: __m128i,
    /// The next vector's counter blocks, bytes reversed.
    counters: V,
    /// The next vector to encipher, and the bytes of it that are padding.
    text: *mut u8,
    text_pad: usize,
    text_mask: V::Mask,
    /// The next vector to hash.
    hashed: *const u8,
    hashed_mask: V::Mask,
    /// The last vector, from the end of its padding, if it has some, to the end of the text.
    last: V,
    last_from: usize,
    last_to: usize,
    /// Bits of the text.
    bits: u64,
    /// GHASH so far, lane by lane.
    sum: V,
    /// E(nonce | 1).
    mask: __m128i,
}

/// Counter of the block that masks a tag; text is enciphered from the next one.
const TAG_COUNTER: u32 = 1;

impl<V: Vector> Run<V> {
    /// At the start of a text of so many vectors, behind `pad` bytes of padding.
    ///
    /// # Safety
    /// The CPU has the instructions of `V`. The last of the vectors has no byte of the text behind it, and the one
    /// before it has the text on both sides of it.
    #[inline(always)]
    unsafe fn new<C: Cipher>(
        rounds: &StreamKey<C>,
        powers: *const u8,
        nonce: &[u8; 12],
        counter: u32,
        text: &mut [u8],
        pad: usize,
        vectors: usize,
    ) -> Self {
        let mut first = [0; BLOCK];
        first[..4].copy_from_slice(&TAG_COUNTER.to_le_bytes());
        for (to, from) in first[4..].iter_mut().zip(nonce.iter().rev()) {
            *to = *from;
        }
        let at = text.as_mut_ptr().wrapping_sub(pad);
        let before = (vectors - 1) * V::LEN;
        let (last_from, last_to) = (if vectors == 1 { pad } else { 0 }, pad + text.len() - before);
        // SAFETY: the caller answers for the CPU and the place of the last vector; `first` is 16 bytes.
        unsafe {
            let splat = V::splat(first.as_ptr());
            let first = _mm_loadu_si128(first.as_ptr().cast());
            Run {
                rounds: rounds.rounds.as_ref().as_ptr().cast(),
                powers,
                first,
                counters: splat.count(counter.wrapping_sub(TAG_COUNTER).wrapping_sub((pad / BLOCK) as u32)),
                text: at,
                text_pad: pad,
                text_mask: V::mask(pad),
                hashed: at,
                hashed_mask: V::mask(pad),
                last: V::load_part(at.wrapping_add(before), last_from, last_to),
                last_from,
                last_to,
                bits: text.len() as u64 * 8,
                sum: splat.zero(),
                mask: first,
            }
        }
    }

    /// Enciphers `A` vectors and hashes `G`. With `A_LAST` the last of the `A` is the text's last, with `TAGGED` it
    /// makes the tag's mask too; with `G_LAST` the last of the `G` is the text's last. `PLAIN` says that there is no
    /// padding in what is worked on here.
    ///
    /// # Safety
    /// `C` is the key's cipher. So many vectors are left, and the last is marked as such; `PLAIN` is true.
    #[inline(always)]
    unsafe fn step<
        C: Cipher,
        const A: usize,
        const G: usize,
        const A_LAST: bool,
        const TAGGED: bool,
        const G_LAST: bool,
        const PLAIN: bool,
    >(
        &mut self,
    ) {
        let (rounds, powers) = (opaque(self.rounds), opaque(self.powers));
        // SAFETY: pointers go over the key's round keys and powers, whose numbers C::ROUNDS and POWERS are, and over
        // vectors of text that the caller says are left. Padding and what is behind the text is masked out.
        unsafe {
            let round_key = |round: usize| V::splat(rounds.add(round * BLOCK));
            let mut blocks = [self.counters; A];
            if A > 0 {
                let key = round_key(0);
                for (i, block) in blocks.iter_mut().enumerate() {
                    let mut counters = self.counters;
                    if A_LAST && TAGGED && i == A - 1 {
                        counters = counters.with_last(self.first);
                    }
                    *block = counters.reverse().xor(key);
                    self.counters = self.counters.advance();
                }
            }
            // Between the rounds, the products: the last vector's comes when those before it are reduced.
            let products = if G_LAST { G - 1 } else { G };
            let mut product = Product::none(self.sum.zero());
            let middle = C::ROUNDS - 1;
            // Spelled out: a loop over the rounds would keep the products' places for the run.
            macro_rules! rounds {
                ($($round:literal)*) => {$(
                    if $round < C::ROUNDS {
                        if A > 0 {
                            let key = round_key($round);
                            for block in &mut blocks {
                                *block = block.round(key);
                            }
                        }
                        for i in ($round - 1) * products / middle..$round * products / middle {
                            let power = V::splat(powers.add((V::STEPS - products + i) * BLOCK));
                            let at = self.hashed.wrapping_add(i * V::LEN);
                            let vector = if PLAIN || i > 0 { V::load(at) } else { V::load_from(at, self.hashed_mask) };
                            let vector = vector.reverse();
                            product.add(if i == 0 { vector.xor(self.sum) } else { vector }, power);
                        }
                    }
                )*};
            }
            rounds!(1 2 3 4 5 6 7 8 9 10 11 12 13);
            if products > 0 {
                self.sum = product.reduce().made();
            }
            if G_LAST {
                // The lengths: none of AAD, then the text's (SP 800-38D 7.1).
                let lengths = _mm_set_epi64x(0, self.bits as i64);
                let last = self.last.reverse().with_last(lengths).xor(self.sum);
                let mut product = Product::none(self.sum.zero());
                product.add(last, V::load(powers.add((V::STEPS - 1) * BLOCK)));
                self.sum = product.reduce();
            } else if G > 0 {
                self.hashed = self.hashed.wrapping_add(G * V::LEN);
                self.hashed_mask = V::mask(0);
            }
            if A > 0 {
                let key = round_key(C::ROUNDS);
                for (i, block) in blocks.iter_mut().enumerate() {
                    *block = block.last_round(key);
                    let at = self.text.wrapping_add(i * V::LEN);
                    if A_LAST && i == A - 1 {
                        if TAGGED {
                            self.mask = block.last();
                        }
                        *block = block.xor(self.last).made();
                    } else if PLAIN || i > 0 {
                        block.xor(V::load(at)).store(at);
                    } else {
                        *block = block.xor(V::load_from(at, self.text_mask)).made();
                    }
                }
                // What takes a branch comes behind all that does not.
                if !(PLAIN || A_LAST && A == 1) {
                    if self.text_pad == 0 {
                        blocks[0].store(self.text);
                    } else {
                        blocks[0].store_part(self.text, self.text_pad, V::LEN);
                    }
                }
                if A_LAST {
                    let at = self.text.wrapping_add((A - 1) * V::LEN);
                    blocks[A - 1].store_part(at, self.last_from, self.last_to);
                    self.last = blocks[A - 1].keep(self.last_from, self.last_to);
                }
                self.text = self.text.wrapping_add(A * V::LEN);
                self.text_pad = 0;
                self.text_mask = V::mask(0);
            }
        }
    }

    /// The tag.
    #[inline(always)]
    fn tag(&self) -> [u64; 2] {
        // SAFETY: whoever holds a vector has SSE2 and more.
        unsafe {
            let sum = self.sum.sum();
            let low = (_mm_cvtsi128_si64(sum) as u64).swap_bytes();
            let high = (_mm_cvtsi128_si64(_mm_unpackhi_epi64(sum, sum)) as u64).swap_bytes();
            let mask = [
                _mm_cvtsi128_si64(self.mask) as u64,
                _mm_cvtsi128_si64(_mm_unpackhi_epi64(self.mask, self.mask)) as u64,
            ];
            [high ^ mask[0], low ^ mask[1]]
        }
    }
}

/// A sum of carry-less products of 256 bits, in three parts.
struct Product<V> {
    low: V,
    middle: V,
    high: V,
}

impl<V: Vector> Product<V> {
    #[inline(always)]
    fn none(zero: V) -> Self {
        Product { low: zero, middle: zero, high: zero }
    }

    #[inline(always)]
    fn add(&mut self, a: V, b: V) {
        self.low = self.low.xor(a.multiply::<false, false>(b));
        self.middle = self.middle.xor3(a.multiply::<false, true>(b), a.multiply::<true, false>(b));
        self.high = self.high.xor(a.multiply::<true, true>(b));
    }

    /// Times x^-128 in POLYVAL's field.
    #[inline(always)]
    fn reduce(self) -> V {
        const POLY_BYTES: [u8; BLOCK] = POLY.to_le_bytes();
        // SAFETY: whoever holds a vector has its CPU; 16 bytes.
        let poly = unsafe { V::splat(POLY_BYTES.as_ptr()) };
        let fold = |above: V, below: V| above.xor3(poly.multiply::<true, false>(below), below.swap_halves());
        fold(self.high, fold(self.middle, self.low))
    }
}

/// Calls a method with the number of vectors left, 1 to `$most`, as its constant.
macro_rules! by_length {
    ($left:expr, $most:ident, $run:ident.$method:ident::<$cipher:ident>) => {
        match $left {
            1 => $run.$method::<$cipher, 1>(),
            2 => $run.$method::<$cipher, 2>(),
            3 => $run.$method::<$cipher, 3>(),
            4 => $run.$method::<$cipher, 4>(),
            5 if $most > 5 => $run.$method::<$cipher, 5>(),
            6 if $most > 6 => $run.$method::<$cipher, 6>(),
            7 if $most > 7 => $run.$method::<$cipher, 7>(),
            _ => $run.$method::<$cipher, $most>(),
        }
    };
}

/// The ends of texts, by the number of vectors that are left.
impl<V: Vector> Run<V> {
    /// # Safety
    /// As [`Self::step`].
    #[inline(always)]
    unsafe fn open_last<C: Cipher, const N: usize>(&mut self) {
        // SAFETY: the caller's.
        unsafe { self.step::<C, N, N, true, true, true, false>() }
    }

    /// # Safety
    /// As [`Self::step`].
    #[inline(always)]
    unsafe fn seal_last<C: Cipher, const N: usize>(&mut self) {
        // SAFETY: the caller's.
        unsafe { self.step::<C, N, 0, true, true, false, false>() }
    }

    /// # Safety
    /// As [`Self::step`].
    #[inline(always)]
    unsafe fn hash_last<C: Cipher, const N: usize>(&mut self) {
        // SAFETY: the caller's.
        unsafe { self.step::<C, 0, N, false, false, true, false>() }
    }

    /// # Safety
    /// As [`Self::step`].
    #[inline(always)]
    unsafe fn stream_last<C: Cipher, const N: usize>(&mut self) {
        // SAFETY: the caller's.
        unsafe { self.step::<C, N, 0, true, false, false, true>() }
    }
}

/// Of a text with one block more behind it: bytes of padding, and vectors.
#[inline(always)]
fn measure<V: Vector>(len: usize) -> (usize, usize) {
    let blocks = len.div_ceil(BLOCK);
    let vectors = blocks / V::BLOCKS + 1;
    ((vectors * V::BLOCKS - blocks - 1) * BLOCK, vectors)
}

/// Deciphers one text with its tag behind it; whether it was authentic. `K` is `V::STEPS`.
///
/// # Safety
/// The CPU has the instructions of `V`; the key's powers are for its lanes; `data` has at least a tag's length.
#[inline(always)]
unsafe fn open<V: Vector, C: Cipher, const K: usize>(key: &AeadKey<C>, nonce: &[u8; 12], data: &mut [u8]) -> bool {
    let (text, tag) = data.split_at_mut(data.len() - TAG_LEN);
    let (pad, mut left) = measure::<V>(text.len());
    // SAFETY: the caller's, and `measure` counts the vectors.
    unsafe {
        let powers = key.powers.as_ptr().cast();
        let mut run = Run::<V>::new(&key.stream, powers, nonce, TAG_COUNTER + 1, text, pad, left);
        if left > K {
            run.step::<C, K, K, false, false, false, false>();
            left -= K;
        }
        while left > K {
            run.step::<C, K, K, false, false, false, true>();
            left -= K;
        }
        by_length!(left, K, run.open_last::<C>);
        let made = run.tag();
        let word = |at: usize| u64::from_le_bytes(tag[at..at + 8].try_into().expect("eight bytes"));
        // Both words in one sum, and one look at it.
        (made[0] ^ word(0)) | (made[1] ^ word(8)) == 0
    }
}

/// Seals one text; its tag goes behind it. `K` is `V::STEPS`.
///
/// # Safety
/// As [`open`].
#[inline(always)]
unsafe fn seal<V: Vector, C: Cipher, const K: usize>(key: &AeadKey<C>, nonce: &[u8; 12], data: &mut [u8]) {
    let (text, tag) = data.split_at_mut(data.len() - TAG_LEN);
    let (pad, mut left) = measure::<V>(text.len());
    // SAFETY: the caller's, and `measure` counts the vectors.
    unsafe {
        let powers = key.powers.as_ptr().cast();
        let mut run = Run::<V>::new(&key.stream, powers, nonce, TAG_COUNTER + 1, text, pad, left);
        let many = left > K;
        if many {
            run.step::<C, K, 0, false, false, false, false>();
            left -= K;
            if left > K {
                run.step::<C, K, K, false, false, false, false>();
                left -= K;
            }
            while left > K {
                run.step::<C, K, K, false, false, false, true>();
                left -= K;
            }
        }
        by_length!(left, K, run.seal_last::<C>);
        if many {
            run.step::<C, 0, K, false, false, false, false>();
        }
        by_length!(left, K, run.hash_last::<C>);
        let made = run.tag();
        tag[..8].copy_from_slice(&made[0].to_le_bytes());
        tag[8..].copy_from_slice(&made[1].to_le_bytes());
    }
}

/// XORs the keystream from `counter` on over a text. `K` is [`STREAM`].
///
/// # Safety
/// The CPU has the instructions of `V`.
#[inline(always)]
unsafe fn stream<V: Vector, C: Cipher, const K: usize>(
    key: &StreamKey<C>,
    nonce: &[u8; 12],
    counter: u32,
    text: &mut [u8],
) {
    if text.is_empty() {
        return;
    }
    let mut left = text.len().div_ceil(V::LEN);
    // SAFETY: the caller's; so many vectors there are.
    unsafe {
        let mut run = Run::<V>::new(key, std::ptr::null(), nonce, counter, text, 0, left);
        while left > K {
            run.step::<C, K, 0, false, false, false, true>();
            left -= K;
        }
        by_length!(left, K, run.stream_last::<C>);
    }
}

/// The same pointer, of which the compiler knows nothing: it would load all of a key at once and spill it.
#[inline(always)]
fn opaque(pointer: *const u8) -> *const u8 {
    pointer.map_addr(|mut address| {
        // SAFETY: no instruction.
        unsafe { std::arch::asm!("/* {} */", inout(reg) address, options(nomem, nostack, preserves_flags)) };
        address
    })
}

/// The entry points of one width: whole batches, compiled for its instructions. Each works on jobs from the first
/// on until it meets a key of another engine, and returns their number.
macro_rules! width {
    ($name:ident, $vector:ident, $steps:literal, $features:literal, $variant:ident) => {
        pub(super) mod $name {
            use super::super::{Aead, Cipher, Job, Kind, Stream, StreamKind};
            use super::*;

            const _: () = assert!($vector::STEPS == $steps);
            /// Lanes of a vector.
            pub const LANES: usize = $vector::BLOCKS;

            /// Opens jobs.
            #[target_feature(enable = $features)]
            pub fn open_batch<C: Cipher>(jobs: &mut [Job<'_, Aead<C>>]) -> usize {
                for i in 0..jobs.len() {
                    prefetch(jobs.get(i + 1).map(|job| job.key));
                    let job = &mut jobs[i];
                    let Kind::$variant(_, key) = &job.key.0 else { return i };
                    if job.data.len() < TAG_LEN {
                        job.ok = false;
                        continue;
                    }
                    // SAFETY: this function's features are the vector's; such a key has this width's powers.
                    job.ok = unsafe { super::open::<$vector, C, $steps>(key, &job.nonce, job.data) };
                    if !job.ok {
                        refuse(key, &job.nonce, job.data);
                    }
                }
                jobs.len()
            }

            /// Enciphers again what was deciphered in vain.
            #[cold]
            #[target_feature(enable = $features)]
            fn refuse<C: Cipher>(key: &AeadKey<C>, nonce: &[u8; 12], data: &mut [u8]) {
                let (text, _) = data.split_at_mut(data.len() - TAG_LEN);
                keystream(&key.stream, nonce, TAG_COUNTER + 1, text);
            }

            #[target_feature(enable = $features)]
            fn keystream<C: Cipher>(key: &StreamKey<C>, nonce: &[u8; 12], counter: u32, text: &mut [u8]) {
                // SAFETY: this function's features are the vector's.
                unsafe { super::stream::<$vector, C, STREAM>(key, nonce, counter, text) };
            }

            /// Seals jobs.
            #[target_feature(enable = $features)]
            pub fn seal_batch<C: Cipher>(jobs: &mut [Job<'_, Aead<C>>]) -> usize {
                for i in 0..jobs.len() {
                    prefetch(jobs.get(i + 1).map(|job| job.key));
                    let job = &mut jobs[i];
                    let Kind::$variant(_, key) = &job.key.0 else { return i };
                    assert!(job.data.len() >= TAG_LEN, "a sealed text has room for its tag");
                    // SAFETY: this function's features are the vector's; such a key has this width's powers.
                    unsafe { super::seal::<$vector, C, $steps>(key, &job.nonce, job.data) };
                    job.ok = true;
                }
                jobs.len()
            }

            /// XORs keystreams, counters from 1.
            #[target_feature(enable = $features)]
            pub fn ctr_batch<C: Cipher>(jobs: &mut [Job<'_, Stream<C>>]) -> usize {
                for i in 0..jobs.len() {
                    prefetch(jobs.get(i + 1).map(|job| job.key));
                    let job = &mut jobs[i];
                    let StreamKind::$variant(_, key) = &job.key.0 else { return i };
                    keystream(key, &job.nonce, 1, job.data);
                    job.ok = true;
                }
                jobs.len()
            }
        }
    };
}

width!(of_256, Ymm, 7, "avx2,aes,pclmulqdq,vaes,vpclmulqdq", Wide256);
width!(of_512, Zmm, 5, "avx2,aes,pclmulqdq,vaes,vpclmulqdq,avx512f,avx512bw,avx512dq,avx512vl", Wide512);

/// Asks for a key's cache lines.
#[inline(always)]
fn prefetch<K>(key: Option<&K>) {
    if let Some(key) = key {
        let at = std::ptr::from_ref(key).cast::<i8>();
        for line in (0..size_of::<K>()).step_by(64) {
            // SAFETY: a prefetch reads nothing that can be seen; the key lies there.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.add(line)) };
        }
    }
}
