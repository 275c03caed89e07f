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
    /// Its bytes before the body.
    text_mask: V::Mask,
    /// Powers of K_U.
    powers: *const u8,
    /// The vector after `head`.
    hashed: *const u8,
    /// The next vector to hash, with the sum of those before, lane by lane.
    head: V,
}

/// What a pass enciphers.
#[derive(Clone, Copy)]
pub(super) struct Ctr<'a> {
    key: &'a UivKey,
    start: __m128i,
    body: *mut u8,
    len: usize,
}

/// What a pass hashes, after a first block that replaces X_L, if there is one.
#[derive(Clone, Copy)]
pub(super) struct Hash<'a> {
    key: &'a HashKey,
    tweak: Option<&'a [u8; BLOCK]>,
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
                text_mask: V::mask(0),
                powers: std::ptr::null(),
                hashed: std::ptr::null(),
                head: zero,
            }
        }
    }

    /// # Safety
    /// The CPU has the instructions of `V`; the body has whole blocks.
    #[inline(always)]
    unsafe fn enciphers(&mut self, ctr: Ctr<'_>) {
        let (pad, _) = measure::<V>(ctr.len);
        let mut start = [0; BLOCK];
        // SAFETY: the caller guarantees the CPU; `start` has 16 bytes. X_L's lane has the number -1, and lanes before
        // it have less, down to -4: NUMBERS has those of all lanes.
        unsafe {
            _mm_storeu_si128(start.as_mut_ptr().cast(), ctr.start);
            let numbers = NUMBERS[NUMBERED_FROM - 1 - pad / BLOCK..].as_ptr().cast();
            self.counters = V::splat(start.as_ptr()).add(V::load(numbers));
            self.rounds = ctr.key.stream.rounds.as_ptr().cast();
            self.text = ctr.body.wrapping_sub(pad);
            self.text_from = pad + BLOCK;
            self.text_mask = V::mask(pad);
        }
    }

    /// # Safety
    /// The CPU has the instructions of `V`; the key is for its lanes; the text has whole blocks.
    #[inline(always)]
    unsafe fn hashes(&mut self, hash: Hash<'_>) {
        let (pad, _) = measure::<V>(hash.len);
        let at = hash.text.wrapping_sub(pad);
        // SAFETY: the caller guarantees the CPU and the text; a tweak has 16 bytes.
        unsafe {
            self.head = match hash.tweak {
                None => V::load_part(at, pad, V::LEN),
                Some(tweak) => {
                    let tweak = V::load_part(tweak.as_ptr().wrapping_sub(pad), pad, pad + BLOCK);
                    V::load_part(at, pad + BLOCK, V::LEN).xor(tweak)
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
        // SAFETY: the pointers stay within the 11 round keys and the powers of the keys, and within the vectors that the
        // caller guarantees. Bytes in front of X_R are masked out.
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
                    for i in ($round - 1) * products / MIDDLE..$round * products / MIDDLE {
                        let power = V::splat(powers.add((V::STEPS - products + i) * BLOCK));
                        let vector = if i == 0 { self.head } else { V::load(self.hashed.wrapping_add((i - 1) * V::LEN)) };
                        product.add(vector, power);
                    }
                )*};
            }
            rounds!(1 2 3 4 5 6 7 8 9);
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
                        *block = block.xor(V::load_from(at, self.text_mask)).compute_now();
                    }
                }
                // Parts with a branch come after all parts without one.
                if self.text_from == 0 {
                    blocks[0].store(self.text);
                } else if self.text_from < V::LEN {
                    blocks[0].store_part(self.text, self.text_from, V::LEN);
                }
                self.text = self.text.wrapping_add(E * V::LEN);
                self.text_from = 0;
                self.text_mask = V::mask(0);
            }
        }
    }

    /// Enciphers a text and hashes another one, which have the same number of vectors. `K` is `V::STEPS`.
    ///
    /// # Safety
    /// Both texts are announced and have that many vectors.
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

    /// Enciphers and hashes, if there is something. Returns the hash. `K` is `V::STEPS`.
    ///
    /// # Safety
    /// The CPU has the instructions of `V`; the keys are for its lanes; the texts have whole blocks, at least one, and do
    /// not overlap.
    #[inline(always)]
    unsafe fn both<const K: usize>(ctr: Option<Ctr<'_>>, hash: Option<Hash<'_>>) -> __m128i {
        // SAFETY: the caller guarantees the same, and `measure` counts the vectors.
        unsafe {
            let mut pass = Self::idle();
            let [mut enciphered, mut hashed] = [0; 2];
            if let Some(ctr) = ctr {
                pass.enciphers(ctr);
                enciphered = measure::<V>(ctr.len).1;
            }
            if let Some(hash) = hash {
                pass.hashes(hash);
                hashed = measure::<V>(hash.len).1;
            }
            if enciphered == hashed && hashed > 0 {
                pass.fused::<K>(hashed);
            } else {
                pass.encipher(enciphered);
                if hashed > 0 {
                    pass.hash::<K>(hashed);
                }
            }
            pass.head.sum()
        }
    }
}

/// [`Pass::both`], compiled once for a width.
pub(super) type Both = unsafe fn(Option<Ctr<'_>>, Option<Hash<'_>>) -> __m128i;

/// # Safety
/// As [`Pass::both`].
#[inline(always)]
pub(super) unsafe fn both<V: Vector, const K: usize>(ctr: Option<Ctr<'_>>, hash: Option<Hash<'_>>) -> __m128i {
    // SAFETY: the caller guarantees the same.
    unsafe { Pass::<V>::both::<K>(ctr, hash) }
}

/// A job with what UIV+ needs of it.
struct Body<'a> {
    key: &'a UivKey,
    tweak: [u8; BLOCK],
    at: *mut u8,
    len: usize,
}

impl<'a> Body<'a> {
    #[inline(always)]
    fn of(job: &mut Job<'a, Prepared>) -> Self {
        let mut tweak = [0; BLOCK];
        tweak[..job.nonce.len()].copy_from_slice(&job.nonce);
        let key = match &job.key.0 {
            UivKind::Wide512(key) | UivKind::Wide256(key) => key,
            UivKind::Library(_) => unreachable!("the entry points count the keys of their engine"),
        };
        Body { key, tweak, at: job.data.as_mut_ptr(), len: job.data.len() }
    }

    #[inline(always)]
    fn hash(&self) -> Hash<'_> {
        Hash { key: &self.key.tweak, tweak: Some(&self.tweak), text: self.at, len: self.len }
    }

    #[inline(always)]
    fn ctr(&self, start: __m128i) -> Ctr<'a> {
        Ctr { key: self.key, start, body: self.at, len: self.len }
    }

    /// Replaces the left side.
    ///
    /// # Safety
    /// As [`encipher`].
    #[inline(always)]
    unsafe fn replace(&self, cipher: impl FnOnce(__m128i) -> __m128i) -> __m128i {
        // SAFETY: the caller guarantees at least a block.
        unsafe {
            let left = cipher(_mm_loadu_si128(self.at.cast()));
            _mm_storeu_si128(self.at.cast(), left);
            left
        }
    }

    /// v of Y_L: the first counter block.
    ///
    /// # Safety
    /// As [`encipher`].
    #[inline(always)]
    unsafe fn start(&self, left: __m128i) -> __m128i {
        // SAFETY: the caller guarantees the CPU.
        unsafe {
            let v = key::multiply(left, key::load(&self.key.counter));
            _mm_and_si128(v, _mm_set_epi64x(!(0x7f << 56), -1))
        }
    }
}

/// Enciphers all bodies.
///
/// # Safety
/// The CPU has the instructions of `pass`, AES-NI and PCLMULQDQ; all keys are of wide engines and for the lanes of
/// `pass`; UIV+ can process the lengths of all bodies.
#[inline(always)]
pub(super) unsafe fn encipher(jobs: &mut [Job<'_, Prepared>], pass: Both) {
    // SAFETY: the caller guarantees the CPU, keys and lengths; bodies of different jobs do not overlap.
    unsafe {
        let mut starts = [_mm_setzero_si128(); 2];
        for i in 0..jobs.len() + 2 {
            prefetch(jobs.get(i + 1).map(|job| job.key));
            let before = i.checked_sub(2).map(|i| Body::of(&mut jobs[i]));
            let body = jobs.get_mut(i).map(Body::of);
            let ctr = before.as_ref().map(|before| before.ctr(starts[i % 2]));
            let mask = pass(ctr, body.as_ref().map(Body::hash));
            if let Some(body) = body {
                let masked = |block| _mm_xor_si128(block, mask);
                let left = body.replace(|left| masked(key::encrypt(&body.key.block, masked(left))));
                starts[i % 2] = body.start(left);
                jobs[i].ok = true;
            }
        }
    }
}

/// Deciphers all bodies.
///
/// # Safety
/// As [`encipher`].
#[inline(always)]
pub(super) unsafe fn decipher(jobs: &mut [Job<'_, Prepared>], pass: Both) {
    // SAFETY: the caller guarantees the CPU, keys and lengths; bodies of different jobs do not overlap.
    unsafe {
        let start = |body: &Body<'_>| body.start(_mm_loadu_si128(body.at.cast()));
        let mut next = jobs.first_mut().map(Body::of).map(|body| start(&body));
        for i in 0..jobs.len() + 1 {
            prefetch(jobs.get(i + 2).map(|job| job.key));
            let before = i.checked_sub(1).map(|i| Body::of(&mut jobs[i]));
            let body = jobs.get_mut(i).map(Body::of);
            let ctr = body.as_ref().zip(next).map(|(body, start)| body.ctr(start));
            next = jobs.get_mut(i + 1).map(Body::of).map(|body| start(&body));
            let mask = pass(ctr, before.as_ref().map(Body::hash));
            if let Some(before) = before {
                let masked = |block| _mm_xor_si128(block, mask);
                before.replace(|left| masked(key::decrypt(&before.key.block, masked(left))));
                jobs[i - 1].ok = true;
            }
        }
    }
}

/// POLYVAL of a text.
///
/// # Safety
/// The CPU has the instructions of `pass`; the key is for its lanes; the text has whole blocks.
#[inline(always)]
pub(super) unsafe fn polyval(key: &HashKey, text: &[u8], pass: Both) -> [u8; BLOCK] {
    let mut out = [0; BLOCK];
    if text.is_empty() {
        return out;
    }
    // SAFETY: the caller guarantees the same; `out` has 16 bytes.
    unsafe {
        let hash = Hash { key, tweak: None, text: text.as_ptr(), len: text.len() };
        let sum = pass(None, Some(hash));
        _mm_storeu_si128(out.as_mut_ptr().cast(), sum);
    }
    out
}
