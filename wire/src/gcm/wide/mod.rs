//! The wide engine: AES-GCM, AES-CTR and, in [`uiv`], UIV+ with VAES and VPCLMULQDQ, one algorithm for 256 and 512
//! bits.
//!
//! A text of n blocks is processed in vectors of L lanes. Both halves of GCM use the same vectors:
//!
//! ```text
//!     CTR     pad  E(2) E(3) ...            E(n+1)  E(1)      E(1) masks the tag
//!     GHASH    0    X1   X2  ...  Xn, zeros behind  lengths
//!            `---- one vector ----'   ...   `-- the last --'
//! ```
//!
//! The padding in front makes the vectors whole. Zeros there do not change the hash, so all vectors except the
//! first and the last are plain loads and stores. K vectors form a group. AES and carry-less multiplication run in
//! different units of the CPU, so GHASH multiplies one group between the AES rounds of another: of the same group
//! when opening, of the previous group when sealing. Each lane has its own Horner chain over every L-th block,
//! reduced once per group. The last vector is multiplied by H^L, ..., H lane by lane, and the lanes are added.
//!
//! `open` deciphers a text before its tag is known. If the tag is wrong, the text is enciphered again.
//!
//! No branch and no address depends on a secret, only on lengths and on the verdict.

mod key;
#[cfg(test)]
mod model;
mod uiv;
mod vector;

use std::arch::x86_64::*;

pub(super) use key::{AeadKey, Block, HashKey, StreamKey, UivKey};
use vector::{BLOCK, Vector, Ymm, Zmm};

use super::Cipher;
use crate::cell::TAG_LEN;
use key::POLY;

/// Vectors in flight in counter mode alone.
const STREAM: usize = 8;

/// The state of a job. A pointer may lie before the text by the length of the padding, which is never accessed.
struct Run<V: Vector> {
    rounds: *const u8,
    powers: *const u8,
    /// nonce | 1, with bytes reversed.
    first: __m128i,
    /// Counter blocks of the next vector, with bytes reversed.
    counters: V,
    /// The next vector to encipher, and the length of its padding.
    text: *mut u8,
    text_pad: usize,
    text_mask: V::Mask,
    /// The next vector to hash.
    hashed: *const u8,
    hashed_mask: V::Mask,
    /// The last vector: the bytes from the end of its padding to the end of the text.
    last: V,
    last_from: usize,
    last_to: usize,
    /// Bits of the text.
    bits: u64,
    /// GHASH of the vectors so far, lane by lane.
    sum: V,
    /// E(nonce | 1).
    mask: __m128i,
}

/// Counter of the block that masks a tag; text is enciphered from the next one.
const TAG_COUNTER: u32 = 1;

/// The position of a step's vectors in the text. Every step gets one of the constants below, and [`Run::step`] is
/// inlined, so none of these flags is tested at run time.
#[derive(Clone, Copy)]
struct Part {
    /// No vector has padding in front.
    unpadded: bool,
    /// The last enciphered vector is the text's last.
    enciphers_end: bool,
    /// The last lane of that vector becomes the mask of the tag.
    masks_tag: bool,
    /// The last hashed vector is the text's last.
    hashes_end: bool,
}

impl Part {
    const INNER: Part = Part { unpadded: true, enciphers_end: false, masks_tag: false, hashes_end: false };
    /// The first vector may have padding.
    const START: Part = Part { unpadded: false, ..Part::INNER };
    /// These end the text, and may start it, too.
    const OPEN_END: Part = Part { unpadded: false, enciphers_end: true, masks_tag: true, hashes_end: true };
    const SEAL_END: Part = Part { hashes_end: false, ..Part::OPEN_END };
    const HASH_END: Part = Part { hashes_end: true, ..Part::START };
    const STREAM_END: Part = Part { enciphers_end: true, ..Part::INNER };
}

impl<V: Vector> Run<V> {
    /// At the start of a text that has `vectors` vectors after `pad` bytes of padding.
    ///
    /// # Safety
    /// The CPU has the instructions of `V`. The text ends in the last of the vectors or right before it.
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
        // SAFETY: the caller guarantees the CPU and the position of the last vector; `first` has 16 bytes.
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

    /// Enciphers `E` vectors and hashes `H`.
    ///
    /// # Safety
    /// `C` is the key's cipher. At least `E` vectors are left to encipher and `H` to hash, and `part` describes them.
    #[inline(always)]
    unsafe fn step<C: Cipher, const E: usize, const H: usize>(&mut self, part: Part) {
        let (rounds, powers) = (opaque(self.rounds), opaque(self.powers));
        // SAFETY: the pointers stay within the key's C::ROUNDS + 1 round keys and its POWERS powers, and within the
        // vectors of text that the caller guarantees. Padding and bytes after the text are masked out.
        unsafe {
            let round_key = |round: usize| V::splat(rounds.add(round * BLOCK));
            let mut blocks = [self.counters; E];
            if E > 0 {
                let key = round_key(0);
                for (i, block) in blocks.iter_mut().enumerate() {
                    let mut counters = self.counters;
                    if part.masks_tag && i == E - 1 {
                        counters = counters.with_last(self.first);
                    }
                    *block = counters.reverse().xor(key);
                    self.counters = self.counters.advance();
                }
            }
            // The products are spread over the rounds. The last vector's follows when the others are reduced.
            let products = if part.hashes_end { H - 1 } else { H };
            let mut product = Product::none(self.sum.zero());
            let middle = C::ROUNDS - 1;
            // Written out: in a loop, the compiler would compute the bounds of the products at run time.
            macro_rules! rounds {
                ($($round:literal)*) => {$(
                    if $round < C::ROUNDS {
                        if E > 0 {
                            let key = round_key($round);
                            for block in &mut blocks {
                                *block = block.round(key);
                            }
                        }
                        for i in ($round - 1) * products / middle..$round * products / middle {
                            let power = V::splat(powers.add((V::STEPS - products + i) * BLOCK));
                            let at = self.hashed.wrapping_add(i * V::LEN);
                            let vector = if part.unpadded || i > 0 { V::load(at) } else { V::load_from(at, self.hashed_mask) };
                            let vector = vector.reverse();
                            product.add(if i == 0 { vector.xor(self.sum) } else { vector }, power);
                        }
                    }
                )*};
            }
            rounds!(1 2 3 4 5 6 7 8 9 10 11 12 13);
            if products > 0 {
                self.sum = product.reduce().compute_now();
            }
            if part.hashes_end {
                // The lengths: none of AAD, then the text's (SP 800-38D 7.1).
                let lengths = _mm_set_epi64x(0, self.bits as i64);
                let last = self.last.reverse().with_last(lengths).xor(self.sum);
                let mut product = Product::none(self.sum.zero());
                product.add(last, V::load(powers.add((V::STEPS - 1) * BLOCK)));
                self.sum = product.reduce();
            } else if H > 0 {
                self.hashed = self.hashed.wrapping_add(H * V::LEN);
                self.hashed_mask = V::mask(0);
            }
            if E > 0 {
                let key = round_key(C::ROUNDS);
                for (i, block) in blocks.iter_mut().enumerate() {
                    *block = block.last_round(key);
                    let at = self.text.wrapping_add(i * V::LEN);
                    if part.enciphers_end && i == E - 1 {
                        if part.masks_tag {
                            self.mask = block.last();
                        }
                        *block = block.xor(self.last).compute_now();
                    } else if part.unpadded || i > 0 {
                        block.xor(V::load(at)).store(at);
                    } else {
                        *block = block.xor(V::load_from(at, self.text_mask)).compute_now();
                    }
                }
                // Parts with a branch come after all parts without one.
                if !(part.unpadded || part.enciphers_end && E == 1) {
                    if self.text_pad == 0 {
                        blocks[0].store(self.text);
                    } else {
                        blocks[0].store_part(self.text, self.text_pad, V::LEN);
                    }
                }
                if part.enciphers_end {
                    let at = self.text.wrapping_add((E - 1) * V::LEN);
                    blocks[E - 1].store_part(at, self.last_from, self.last_to);
                    self.last = blocks[E - 1].keep(self.last_from, self.last_to);
                }
                self.text = self.text.wrapping_add(E * V::LEN);
                self.text_pad = 0;
                self.text_mask = V::mask(0);
            }
        }
    }

    /// The tag.
    #[inline(always)]
    fn tag(&self) -> [u64; 2] {
        // SAFETY: a vector exists only if the CPU has SSE2 and more.
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

    /// Multiplies by x^-128 in POLYVAL's field.
    #[inline(always)]
    fn reduce(self) -> V {
        const POLY_BYTES: [u8; BLOCK] = POLY.to_le_bytes();
        // SAFETY: a vector exists only if the CPU has its instructions; the constant has 16 bytes.
        let poly = unsafe { V::splat(POLY_BYTES.as_ptr()) };
        let fold = |above: V, below: V| above.xor3(poly.multiply::<true, false>(below), below.swap_halves());
        fold(self.high, fold(self.middle, self.low))
    }
}

/// Calls a method with the number of vectors left, 1 to `$most`, as its const parameter.
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

/// The ends of texts, by the number of vectors left.
impl<V: Vector> Run<V> {
    /// # Safety
    /// As [`Self::step`].
    #[inline(always)]
    unsafe fn open_last<C: Cipher, const N: usize>(&mut self) {
        // SAFETY: the caller guarantees the same.
        unsafe { self.step::<C, N, N>(Part::OPEN_END) }
    }

    /// # Safety
    /// As [`Self::step`].
    #[inline(always)]
    unsafe fn seal_last<C: Cipher, const N: usize>(&mut self) {
        // SAFETY: the caller guarantees the same.
        unsafe { self.step::<C, N, 0>(Part::SEAL_END) }
    }

    /// # Safety
    /// As [`Self::step`].
    #[inline(always)]
    unsafe fn hash_last<C: Cipher, const N: usize>(&mut self) {
        // SAFETY: the caller guarantees the same.
        unsafe { self.step::<C, 0, N>(Part::HASH_END) }
    }

    /// # Safety
    /// As [`Self::step`].
    #[inline(always)]
    unsafe fn stream_last<C: Cipher, const N: usize>(&mut self) {
        // SAFETY: the caller guarantees the same.
        unsafe { self.step::<C, N, 0>(Part::STREAM_END) }
    }
}

/// Bytes of padding and number of vectors of a text that is followed by one more block.
#[inline(always)]
fn measure<V: Vector>(len: usize) -> (usize, usize) {
    let blocks = len.div_ceil(BLOCK);
    let vectors = blocks / V::BLOCKS + 1;
    ((vectors * V::BLOCKS - blocks - 1) * BLOCK, vectors)
}

/// Deciphers a text that is followed by its tag; true if it is authentic. `K` is `V::STEPS`.
///
/// # Safety
/// The CPU has the instructions of `V`; the key's powers are for its lanes; `data` has at least a tag's length.
#[inline(always)]
unsafe fn open<V: Vector, C: Cipher, const K: usize>(key: &AeadKey<C>, nonce: &[u8; 12], data: &mut [u8]) -> bool {
    let (text, tag) = data.split_at_mut(data.len() - TAG_LEN);
    let (pad, mut left) = measure::<V>(text.len());
    // SAFETY: the caller guarantees CPU, key and length, and `measure` counts the vectors.
    unsafe {
        let powers = key.hash.powers.as_ptr().cast();
        let mut run = Run::<V>::new(&key.stream, powers, nonce, TAG_COUNTER + 1, text, pad, left);
        if left > K {
            run.step::<C, K, K>(Part::START);
            left -= K;
        }
        while left > K {
            run.step::<C, K, K>(Part::INNER);
            left -= K;
        }
        by_length!(left, K, run.open_last::<C>);
        let made = run.tag();
        let word = |at: usize| u64::from_le_bytes(tag[at..at + 8].try_into().expect("eight bytes"));
        // One comparison for both words, so that time does not depend on which one differs.
        (made[0] ^ word(0)) | (made[1] ^ word(8)) == 0
    }
}

/// Seals a text; its tag follows it. `K` is `V::STEPS`.
///
/// # Safety
/// As [`open`].
#[inline(always)]
unsafe fn seal<V: Vector, C: Cipher, const K: usize>(key: &AeadKey<C>, nonce: &[u8; 12], data: &mut [u8]) {
    let (text, tag) = data.split_at_mut(data.len() - TAG_LEN);
    let (pad, mut left) = measure::<V>(text.len());
    // SAFETY: the caller guarantees CPU, key and length, and `measure` counts the vectors.
    unsafe {
        let powers = key.hash.powers.as_ptr().cast();
        let mut run = Run::<V>::new(&key.stream, powers, nonce, TAG_COUNTER + 1, text, pad, left);
        let many = left > K;
        if many {
            run.step::<C, K, 0>(Part::START);
            left -= K;
            if left > K {
                run.step::<C, K, K>(Part::START);
                left -= K;
            }
            while left > K {
                run.step::<C, K, K>(Part::INNER);
                left -= K;
            }
        }
        by_length!(left, K, run.seal_last::<C>);
        if many {
            run.step::<C, 0, K>(Part::START);
        }
        by_length!(left, K, run.hash_last::<C>);
        let made = run.tag();
        tag[..8].copy_from_slice(&made[0].to_le_bytes());
        tag[8..].copy_from_slice(&made[1].to_le_bytes());
    }
}

/// XORs the keystream over a text, starting at `counter`. `K` is [`STREAM`].
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
    // SAFETY: the caller guarantees the CPU; `left` is the number of vectors.
    unsafe {
        let mut run = Run::<V>::new(key, std::ptr::null(), nonce, counter, text, 0, left);
        while left > K {
            run.step::<C, K, 0>(Part::INNER);
            left -= K;
        }
        by_length!(left, K, run.stream_last::<C>);
    }
}

/// Hides a pointer's origin from the compiler, which would otherwise load a whole key at once and spill it.
#[inline(always)]
fn opaque(pointer: *const u8) -> *const u8 {
    pointer.map_addr(|mut address| {
        // SAFETY: the assembly is empty.
        unsafe { std::arch::asm!("/* {} */", inout(reg) address, options(nomem, nostack, preserves_flags)) };
        address
    })
}

/// The entry points of one width, compiled for its instructions. Each processes jobs from the first on, stops at a
/// key of another engine, and returns the number of jobs done.
macro_rules! width {
    ($name:ident, $vector:ident, $steps:literal, $features:literal, $variant:ident) => {
        pub(super) mod $name {
            use super::super::uiv::{UivKey, UivKind};
            use super::super::{Aead, AeadKind, Cipher, Job, Stream, StreamKind};
            use super::*;

            const _: () = assert!($vector::STEPS == $steps);
            /// Lanes of a vector.
            pub(in crate::gcm) const LANES: usize = $vector::BLOCKS;

            #[target_feature(enable = $features)]
            pub(in crate::gcm) fn open_batch<C: Cipher>(jobs: &mut [Job<'_, Aead<C>>]) -> usize {
                for i in 0..jobs.len() {
                    prefetch(jobs.get(i + 1).map(|job| job.key));
                    let job = &mut jobs[i];
                    let AeadKind::$variant(_, key) = &job.key.0 else { return i };
                    if job.data.len() < TAG_LEN {
                        job.ok = false;
                        continue;
                    }
                    // SAFETY: this function has the vector's features; a key of this variant has this width's powers.
                    job.ok = unsafe { super::open::<$vector, C, $steps>(key, &job.nonce, job.data) };
                    if !job.ok {
                        refuse(key, &job.nonce, job.data);
                    }
                }
                jobs.len()
            }

            /// Enciphers a text again whose tag is wrong.
            #[cold]
            #[target_feature(enable = $features)]
            fn refuse<C: Cipher>(key: &AeadKey<C>, nonce: &[u8; 12], data: &mut [u8]) {
                let (text, _) = data.split_at_mut(data.len() - TAG_LEN);
                keystream(&key.stream, nonce, TAG_COUNTER + 1, text);
            }

            #[target_feature(enable = $features)]
            fn keystream<C: Cipher>(key: &StreamKey<C>, nonce: &[u8; 12], counter: u32, text: &mut [u8]) {
                // SAFETY: this function has the vector's features.
                unsafe { super::stream::<$vector, C, STREAM>(key, nonce, counter, text) };
            }

            #[target_feature(enable = $features)]
            pub(in crate::gcm) fn seal_batch<C: Cipher>(jobs: &mut [Job<'_, Aead<C>>]) -> usize {
                for i in 0..jobs.len() {
                    prefetch(jobs.get(i + 1).map(|job| job.key));
                    let job = &mut jobs[i];
                    let AeadKind::$variant(_, key) = &job.key.0 else { return i };
                    assert!(job.data.len() >= TAG_LEN, "a sealed text has room for its tag");
                    // SAFETY: this function has the vector's features; a key of this variant has this width's powers.
                    unsafe { super::seal::<$vector, C, $steps>(key, &job.nonce, job.data) };
                    job.ok = true;
                }
                jobs.len()
            }

            /// Counters start at 1.
            #[target_feature(enable = $features)]
            pub(in crate::gcm) fn ctr_batch<C: Cipher>(jobs: &mut [Job<'_, Stream<C>>]) -> usize {
                for i in 0..jobs.len() {
                    prefetch(jobs.get(i + 1).map(|job| job.key));
                    let job = &mut jobs[i];
                    let StreamKind::$variant(_, key) = &job.key.0 else { return i };
                    keystream(key, &job.nonce, 1, job.data);
                    job.ok = true;
                }
                jobs.len()
            }

            /// The first jobs with keys of this engine.
            fn own<'a, 'b>(jobs: &'a mut [Job<'b, UivKey>]) -> &'a mut [Job<'b, UivKey>] {
                let others = jobs.iter().position(|job| !matches!(job.key.0, UivKind::$variant(_)));
                let own = others.unwrap_or(jobs.len());
                &mut jobs[..own]
            }

            /// # Safety
            /// All keys are of this engine, and UIV+ can process the lengths of all bodies.
            #[inline(never)]
            #[target_feature(enable = $features)]
            unsafe fn process(jobs: &mut [Job<'_, UivKey>], way: uiv::Way) {
                // SAFETY: this function has the vector's features; a key of this variant has this width's powers.
                unsafe { uiv::process::<$vector, $steps>(jobs, way) };
            }

            /// # Safety
            /// UIV+ can process the lengths of all bodies.
            #[target_feature(enable = $features)]
            pub(in crate::gcm) unsafe fn encipher_batch(jobs: &mut [Job<'_, UivKey>]) -> usize {
                let own = own(jobs);
                // SAFETY: the caller guarantees the lengths.
                unsafe { process(own, uiv::Way::Encipher) };
                own.len()
            }

            /// # Safety
            /// As [`encipher_batch`].
            #[target_feature(enable = $features)]
            pub(in crate::gcm) unsafe fn decipher_batch(jobs: &mut [Job<'_, UivKey>]) -> usize {
                let own = own(jobs);
                // SAFETY: the same.
                unsafe { process(own, uiv::Way::Decipher) };
                own.len()
            }

            /// # Safety
            /// The key is for this width, and `text` has whole blocks.
            #[target_feature(enable = $features)]
            pub(in crate::gcm) unsafe fn polyval(key: &HashKey, text: &[u8]) -> [u8; BLOCK] {
                // SAFETY: this function has the vector's features; the caller guarantees the rest.
                unsafe { uiv::polyval::<$vector, $steps>(key, text) }
            }
        }
    };
}

width!(of_256, Ymm, 7, "avx2,aes,pclmulqdq,vaes,vpclmulqdq", Wide256);
width!(of_512, Zmm, 5, "avx2,aes,pclmulqdq,vaes,vpclmulqdq,avx512f,avx512bw,avx512dq,avx512vl", Wide512);

/// Prefetches the cache lines of a key.
#[inline(always)]
fn prefetch<K>(key: Option<&K>) {
    if let Some(key) = key {
        let at = std::ptr::from_ref(key).cast::<i8>();
        for line in (0..size_of::<K>()).step_by(64) {
            // SAFETY: a prefetch has no visible effect, and the address is within the key.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.add(line)) };
        }
    }
}
