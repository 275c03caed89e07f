//! UIV+ with wide registers.
//!
//! A body is processed in vectors of L lanes, with padding in front that makes the vectors whole:
//!
//! ```text
//!     CTR      -    -   E(0) E(1) ...          E(n-1)
//!     POLYVAL  0    t    X1   X2  ...            Xn
//!     body    pad  X_L   X1   X2  ...            Xn
//! ```
//!
//! AES and carry-less multiplication run in different units of the CPU. GCM interleaves them within a text, but in UIV+
//! one of them needs the result of the other. So a [`Pass`] enciphers one body of a batch while it hashes another. The
//! serial part of a body, from u to v, runs meanwhile, too: the next pass does not depend on it.
//!
//! ```text
//!     encipher   pass i: POLYVAL of body i, CTR of body i - 2; then u, Y_L, v of body i
//!     decipher   v of body i + 1; pass i: CTR of body i, POLYVAL of body i - 1; then u, X_L of body i - 1
//! ```
//!
//! POLYVAL is done as in GCM, without reversing bytes. Counters are kept in memory's order, too: 7 bits of the last
//! byte count, so nothing carries.
//!
//! No branch and no address depends on a secret, only on lengths.

use super::super::uiv::{UivKey as Prepared, UivKind};
use super::super::{Aes128, Cipher, Job};
use super::key::{self, HashKey, UivKey};
use super::vector::{BLOCK, Vector};
use super::{Product, opaque, prefetch};
use std::arch::x86_64::*;

/// Blocks that have a number in their last byte, from -[`NUMBERED_FROM`].
const NUMBERS: [[u8; BLOCK]; 9] = {
    let mut blocks = [[0; BLOCK]; 9];
    let mut i = 0;
    while i < 9 {
        blocks[i][BLOCK - 1] = (i as u8).wrapping_sub(NUMBERED_FROM as u8);
        i += 1;
    }
    blocks
};
const NUMBERED_FROM: usize = 4;

/// Bytes of padding in front of a text of whole blocks, and the number of its vectors.
#[inline(always)]
fn measure<V: Vector>(len: usize) -> (usize, usize) {
    let vectors = len.div_ceil(V::LEN);
    (vectors * V::LEN - len, vectors)
}

/// A body that is enciphered and another one that is hashed. Pointers may lie before a body by its padding, which is
/// never accessed.
struct Pass<V: Vector> {
    /// Round keys of K_S.
    rounds: *const u8,
    /// Counter blocks of the next vector.
    counters: V,
    /// The next vector to encipher.
    text: *mut u8,
    /// Its bytes before X_R.
    text_from: usize,
    /// Powers of K_U.
    powers: *const u8,
    /// The vector after `head`.
    hashed: *const u8,
    /// The next vector to hash, with the sum of those before, lane by lane.
    head: V,
    /// A block that [`Self::fused`] encrypts, and its round keys.
    block: __m128i,
    block_rounds: *const u8,
}

/// What a pass enciphers.
#[derive(Clone, Copy)]
struct Ctr<'a> {
    key: &'a UivKey,
    start: __m128i,
    body: *mut u8,
    len: usize,
}

/// What a pass hashes, after a first block that replaces X_L, if there is one.
#[derive(Clone, Copy)]
struct Hash<'a> {
    key: &'a HashKey,
    tweak: Option<__m128i>,
    text: *const u8,
    len: usize,
}

impl<V: Vector> Pass<V> {
    /// Without anything to do.
    ///
    /// # Safety
    /// The CPU has the instructions of `V`.
    #[inline(always)]
    unsafe fn idle() -> Self {
        // SAFETY: the caller guarantees the CPU; the block has 16 bytes.
        unsafe {
            let zero = V::splat(NUMBERS[NUMBERED_FROM].as_ptr());
            Pass {
                rounds: std::ptr::null(),
                counters: zero,
                text: std::ptr::null_mut(),
                text_from: 0,
                powers: std::ptr::null(),
                hashed: std::ptr::null(),
                head: zero,
                block: _mm_setzero_si128(),
                block_rounds: std::ptr::null(),
            }
        }
    }

    /// # Safety
    /// The CPU has the instructions of `V`; the body has whole blocks.
    #[inline(always)]
    unsafe fn enciphers(&mut self, ctr: Ctr<'_>) {
        let (pad, _) = measure::<V>(ctr.len);
        // SAFETY: the caller guarantees the CPU. X_L's lane has the number -1, and lanes before it have less, down to
        // -4: NUMBERS has those of all lanes.
        unsafe {
            let numbers = NUMBERS[NUMBERED_FROM - 1 - pad / BLOCK..].as_ptr().cast();
            self.counters = V::fill(ctr.start).add(V::load(numbers));
            self.rounds = ctr.key.stream.rounds.as_ptr().cast();
            self.text = ctr.body.wrapping_sub(pad);
            self.text_from = pad + BLOCK;
        }
    }

    /// # Safety
    /// The CPU has the instructions of `V`; the key is for its lanes; the text has whole blocks.
    #[inline(always)]
    unsafe fn hashes(&mut self, hash: Hash<'_>) {
        let (pad, _) = measure::<V>(hash.len);
        let at = hash.text.wrapping_sub(pad);
        // SAFETY: the caller guarantees the CPU and the text.
        unsafe {
            self.head = match hash.tweak {
                None => V::load_end(hash.text, pad),
                Some(tweak) => {
                    V::load_end(hash.text.wrapping_add(BLOCK), pad + BLOCK).xor(V::fill(tweak).keep(pad, pad + BLOCK))
                }
            };
        }
        self.powers = hash.key.powers.as_ptr().cast();
        self.hashed = at.wrapping_add(V::LEN);
    }

    /// Enciphers `E` vectors and hashes `H`. At the ends of both texts, `head` becomes the lanes of the hash.
    ///
    /// # Safety
    /// At least `E` vectors are left to encipher and `H` to hash; exactly that many if `ends`.
    #[inline(always)]
    unsafe fn step<const E: usize, const H: usize>(&mut self, ends: bool) {
        let (rounds, powers) = (opaque(self.rounds), opaque(self.powers));
        // SAFETY: the pointers stay within the 11 round keys and the powers of the keys, and within the vectors that
        // the caller guarantees. Bytes in front of X_R are masked out.
        unsafe {
            let round_key = |round: usize| V::splat(rounds.add(round * BLOCK));
            let mut blocks = [self.counters; E];
            if E > 0 {
                let key = round_key(0);
                let next = V::splat(NUMBERS[NUMBERED_FROM + V::BLOCKS].as_ptr());
                for block in &mut blocks {
                    *block = self.counters.xor(key);
                    self.counters = self.counters.add(next);
                }
            }
            let with_block = ends && E > 0 && H > 0;
            let block_rounds = opaque(self.block_rounds);
            let block_key = |round: usize| _mm_load_si128(block_rounds.add(round * BLOCK).cast());
            if with_block {
                self.block = _mm_xor_si128(self.block, block_key(0));
            }
            // The products are spread over the rounds. The last vector's follows when the others are reduced.
            let products = if ends && H > 0 { H - 1 } else { H };
            let mut product = Product::none(self.head.zero());
            const MIDDLE: usize = Aes128::ROUNDS - 1;
            // Written out: in a loop, the compiler would compute the bounds of the products at run time.
            macro_rules! rounds {
                ($($round:literal)*) => {$(
                    if E > 0 {
                        let key = round_key($round);
                        for block in &mut blocks {
                            *block = block.round(key);
                        }
                    }
                    if with_block {
                        self.block = _mm_aesenc_si128(self.block, block_key($round));
                    }
                    // The head comes last, because it needs the products before.
                    for i in (products - $round * products / MIDDLE..products - ($round - 1) * products / MIDDLE).rev() {
                        let power = V::splat(powers.add((V::STEPS - products + i) * BLOCK));
                        let vector = if i == 0 { self.head } else { V::load(self.hashed.wrapping_add((i - 1) * V::LEN)) };
                        product.add(vector, power);
                    }
                )*};
            }
            rounds!(1 2 3 4 5 6 7 8 9);
            if with_block {
                self.block = _mm_aesenclast_si128(self.block, block_key(Aes128::ROUNDS));
            }
            if products > 0 {
                let sum = product.reduce().compute_now();
                self.hashed = self.hashed.wrapping_add(products * V::LEN);
                self.head = V::load(self.hashed.wrapping_sub(V::LEN)).xor(sum);
            }
            if ends && H > 0 {
                let mut product = Product::none(self.head.zero());
                product.add(self.head, V::load(powers.add((V::STEPS - 1) * BLOCK)));
                self.head = product.reduce();
            }
            if E > 0 {
                let key = round_key(Aes128::ROUNDS);
                for (i, block) in blocks.iter_mut().enumerate() {
                    *block = block.last_round(key);
                    let at = self.text.wrapping_add(i * V::LEN);
                    if i > 0 {
                        block.xor(V::load(at)).store(at);
                    } else {
                        *block = block.compute_now();
                    }
                }
                // A branch comes after all that has none. X_L, which was stored lately, is not loaded: a load of more
                // than was stored waits until the store is done.
                let (at, from) = (self.text, self.text_from);
                if from == 0 {
                    blocks[0].xor(V::load(at)).store(at);
                } else if from < V::LEN {
                    blocks[0].xor(V::load_end(at.wrapping_add(from), from)).store_part(at, from, V::LEN);
                }
                self.text = self.text.wrapping_add(E * V::LEN);
                self.text_from = 0;
            }
        }
    }

    /// Enciphers a text and hashes another one, which have the same number of vectors, and encrypts a block. `K` is
    /// `V::STEPS`.
    ///
    /// # Safety
    /// Both texts and the block's key are announced, and the texts have that many vectors.
    #[inline(always)]
    unsafe fn fused<const K: usize>(&mut self, mut left: usize) {
        // SAFETY: `left` is the number of vectors.
        unsafe {
            while left > K {
                self.step::<K, K>(false);
                left -= K;
            }
            match left {
                1 => self.step::<1, 1>(true),
                2 => self.step::<2, 2>(true),
                3 => self.step::<3, 3>(true),
                4 => self.step::<4, 4>(true),
                5 if K > 5 => self.step::<5, 5>(true),
                6 if K > 6 => self.step::<6, 6>(true),
                _ => self.step::<K, K>(true),
            }
        }
    }

    /// Hashes a text. `K` is `V::STEPS`.
    ///
    /// # Safety
    /// A text is announced and has that many vectors.
    #[inline(always)]
    unsafe fn hash<const K: usize>(&mut self, mut left: usize) {
        // SAFETY: `left` is the number of vectors.
        unsafe {
            while left > K {
                self.step::<0, K>(false);
                left -= K;
            }
            match left {
                1 => self.step::<0, 1>(true),
                2 => self.step::<0, 2>(true),
                3 => self.step::<0, 3>(true),
                4 => self.step::<0, 4>(true),
                5 if K > 5 => self.step::<0, 5>(true),
                6 if K > 6 => self.step::<0, 6>(true),
                _ => self.step::<0, K>(true),
            }
        }
    }

    /// Enciphers a text.
    ///
    /// # Safety
    /// A text is announced and has that many vectors.
    #[inline(always)]
    unsafe fn encipher(&mut self, mut left: usize) {
        // SAFETY: `left` is the number of vectors.
        unsafe {
            while left >= 4 {
                self.step::<4, 0>(false);
                left -= 4;
            }
            // The CPU does these at once: none depends on another.
            while left > 0 {
                self.step::<1, 0>(false);
                left -= 1;
            }
        }
    }
}

/// A job with what UIV+ needs of it.
struct Body<'a> {
    key: &'a UivKey,
    tweak: __m128i,
    at: *mut u8,
    len: usize,
}

impl<'a> Body<'a> {
    #[inline(always)]
    fn of(job: &mut Job<'a, Prepared>) -> Self {
        let (low, high) = job.nonce.split_first_chunk().expect("12 bytes");
        let high = u32::from_le_bytes(high.try_into().expect("four are left"));
        // SAFETY: x86-64 has SSE2.
        let tweak = unsafe { _mm_set_epi64x(i64::from(high), i64::from_le_bytes(*low)) };
        let key = match &job.key.0 {
            UivKind::Wide512(key) | UivKind::Wide256(key) => key,
            UivKind::Library(_) => unreachable!("the entry points count the keys of their engine"),
        };
        Body { key, tweak, at: job.data.as_mut_ptr(), len: job.data.len() }
    }

    #[inline(always)]
    fn hash(&self) -> Hash<'_> {
        Hash { key: &self.key.tweak, tweak: Some(self.tweak), text: self.at, len: self.len }
    }

    #[inline(always)]
    fn ctr(&self, start: __m128i) -> Ctr<'a> {
        Ctr { key: self.key, start, body: self.at, len: self.len }
    }

    /// The left side.
    ///
    /// # Safety
    /// As [`process`].
    #[inline(always)]
    unsafe fn left(&self) -> __m128i {
        // SAFETY: the caller guarantees at least a block.
        unsafe { _mm_loadu_si128(self.at.cast()) }
    }

    /// Writes the left side.
    ///
    /// # Safety
    /// As [`process`].
    #[inline(always)]
    unsafe fn replace(&self, left: __m128i) {
        // SAFETY: the caller guarantees at least a block.
        unsafe { _mm_storeu_si128(self.at.cast(), left) };
    }

    /// v of Y_L: the first counter block.
    ///
    /// # Safety
    /// As [`process`].
    #[inline(always)]
    unsafe fn start(&self, left: __m128i) -> __m128i {
        // SAFETY: the caller guarantees the CPU.
        unsafe {
            let v = key::multiply(left, key::load(&self.key.counter));
            _mm_and_si128(v, _mm_set_epi64x(!(0x7f << 56), -1))
        }
    }
}

/// Which way bodies are processed.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Way {
    Encipher,
    Decipher,
}

/// Processes all bodies. `K` is `V::STEPS`. Both ways share the code of a pass.
///
/// # Safety
/// The CPU has the instructions of `V`, AES-NI and PCLMULQDQ; all keys are of wide engines and for the lanes of `V`;
/// UIV+ can process the lengths of all bodies.
#[inline(always)]
pub(super) unsafe fn process<V: Vector, const K: usize>(jobs: &mut [Job<'_, Prepared>], way: Way) {
    // The bodies whose left side and whose keystream are due when body i is hashed: i - block_lag, i - ctr_lag.
    let enciphers = way == Way::Encipher;
    let (ctr_lag, hash_lag, block_lag) = if enciphers { (2, 0, 1) } else { (0, 1, 1) };
    // SAFETY: the caller guarantees the CPU, keys and lengths; bodies of different jobs do not overlap.
    unsafe {
        // v of the bodies with even and with odd numbers, and u of the body that was hashed last.
        let mut starts = [_mm_setzero_si128(); 2];
        let mut mask = _mm_setzero_si128();
        if !enciphers && let Some(first) = jobs.first_mut() {
            let first = Body::of(first);
            starts[0] = first.start(first.left());
        }
        for i in 0..jobs.len() + if enciphers { 2 } else { 1 } {
            prefetch(jobs.get(i + if enciphers { 1 } else { 2 }).map(|job| job.key));
            let mut pass = Pass::<V>::idle();
            let [mut enciphered, mut hashed] = [0; 2];
            let ctr = i.wrapping_sub(ctr_lag);
            if let Some(job) = jobs.get_mut(ctr) {
                let body = Body::of(job);
                pass.enciphers(body.ctr(starts[ctr % 2]));
                enciphered = measure::<V>(body.len).1;
            }
            let hash = i.wrapping_sub(hash_lag);
            if let Some(job) = jobs.get_mut(hash) {
                let body = Body::of(job);
                pass.hashes(body.hash());
                hashed = measure::<V>(body.len).1;
            }
            let due = i.wrapping_sub(block_lag);
            let body = jobs.get_mut(due).map(Body::of);
            let fused = enciphered == hashed && hashed > 0;
            if enciphers {
                if let Some(body) = &body {
                    pass.block = _mm_xor_si128(body.left(), mask);
                    pass.block_rounds = body.key.block.rounds.as_ptr().cast();
                    if !fused {
                        pass.block = key::encrypt(&body.key.block, pass.block);
                    }
                }
            } else {
                // The block is not used.
                pass.block_rounds = pass.rounds;
                if let Some(next) = jobs.get_mut(i + 1) {
                    let next = Body::of(next);
                    starts[(i + 1) % 2] = next.start(next.left());
                }
            }
            if fused {
                pass.fused::<K>(hashed);
            } else {
                pass.encipher(enciphered);
                if hashed > 0 {
                    pass.hash::<K>(hashed);
                }
            }
            let sum = pass.head.sum();
            if let Some(body) = body {
                if enciphers {
                    let left = _mm_xor_si128(pass.block, mask);
                    body.replace(left);
                    starts[due % 2] = body.start(left);
                } else {
                    let left = key::decrypt(&body.key.block, _mm_xor_si128(body.left(), sum));
                    body.replace(_mm_xor_si128(left, sum));
                }
                jobs[due].ok = true;
            }
            mask = sum;
        }
    }
}

/// POLYVAL of a text. `K` is `V::STEPS`.
///
/// # Safety
/// The CPU has the instructions of `V`; the key is for its lanes; the text has whole blocks.
#[inline(always)]
pub(super) unsafe fn polyval<V: Vector, const K: usize>(key: &HashKey, text: &[u8]) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    if text.is_empty() {
        return out;
    }
    // SAFETY: the caller guarantees the same; `out` has 16 bytes.
    unsafe {
        let mut pass = Pass::<V>::idle();
        pass.hashes(Hash { key, tweak: None, text: text.as_ptr(), len: text.len() });
        pass.hash::<K>(measure::<V>(text.len()).1);
        _mm_storeu_si128(out.as_mut_ptr().cast(), pass.head.sum());
    }
    out
}
