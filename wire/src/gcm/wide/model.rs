//! A model of a vector: N lanes as N registers of 128 bits. With it the algorithm is tested at both widths, lane by
//! lane, on any CPU with AES-NI. The real vectors are tested on CPUs that have their instructions.

use super::*;

#[derive(Clone, Copy)]
pub(super) struct Model<const N: usize>([__m128i; N]);

impl<const N: usize> Model<N> {
    fn each(self, f: impl Fn(__m128i) -> __m128i) -> Self {
        Model(self.0.map(f))
    }

    fn both(self, other: Self, f: impl Fn(__m128i, __m128i) -> __m128i) -> Self {
        Model(std::array::from_fn(|lane| f(self.0[lane], other.0[lane])))
    }

    fn bytes(self) -> Vec<u8> {
        // SAFETY: a vector is plain bytes.
        self.0.iter().flat_map(|lane| unsafe { std::mem::transmute::<__m128i, [u8; 16]>(*lane) }).collect()
    }

    fn of(bytes: &[u8]) -> Self {
        Model(std::array::from_fn(|lane| {
            let bytes: [u8; 16] = bytes[lane * 16..][..16].try_into().unwrap();
            // SAFETY: any bytes are a vector.
            unsafe { std::mem::transmute::<[u8; 16], __m128i>(bytes) }
        }))
    }
}

// SAFETY: each load and store accesses the requested bytes, one by one.
unsafe impl<const N: usize> Vector for Model<N> {
    const BLOCKS: usize = N;

    #[inline(never)]
    unsafe fn splat(at: *const u8) -> Self {
        // SAFETY: the caller guarantees 16 bytes.
        Model([unsafe { _mm_loadu_si128(at.cast()) }; N])
    }

    #[inline(never)]
    unsafe fn fill(block: __m128i) -> Self {
        Model([block; N])
    }

    #[inline(never)]
    unsafe fn load(at: *const u8) -> Self {
        // SAFETY: the caller guarantees all bytes.
        unsafe { Self::load_part(at, 0, Self::LEN) }
    }

    type Mask = usize;

    #[inline(never)]
    unsafe fn mask(from: usize) -> usize {
        assert!(from < Self::LEN && from.is_multiple_of(16));
        from
    }

    #[inline(never)]
    unsafe fn load_from(at: *const u8, mask: usize) -> Self {
        // SAFETY: the caller guarantees the bytes that are not skipped.
        unsafe { Self::load_part(at, mask, Self::LEN) }
    }

    #[inline(never)]
    unsafe fn load_part(at: *const u8, from: usize, to: usize) -> Self {
        assert!(from <= to && to <= Self::LEN);
        let mut bytes = vec![0; Self::LEN];
        for (i, byte) in bytes.iter_mut().enumerate().take(to).skip(from) {
            // SAFETY: the caller guarantees these bytes.
            *byte = unsafe { at.wrapping_add(i).read() };
        }
        Self::of(&bytes)
    }

    #[inline(never)]
    unsafe fn store(self, at: *mut u8) {
        // SAFETY: the caller guarantees all bytes.
        unsafe { self.store_part(at, 0, Self::LEN) }
    }

    #[inline(never)]
    unsafe fn store_part(self, at: *mut u8, from: usize, to: usize) {
        assert!(from <= to && to <= Self::LEN);
        for (i, byte) in self.bytes().into_iter().enumerate().take(to).skip(from) {
            // SAFETY: the caller guarantees these bytes.
            unsafe { at.wrapping_add(i).write(byte) };
        }
    }

    #[inline(never)]
    fn keep(self, from: usize, to: usize) -> Self {
        let bytes = self.bytes().into_iter().enumerate();
        Self::of(&bytes.map(|(at, byte)| if (from..to).contains(&at) { byte } else { 0 }).collect::<Vec<_>>())
    }

    #[inline(never)]
    unsafe fn compute_now(self) -> Self {
        self
    }

    #[inline(never)]
    fn zero(self) -> Self {
        Self::of(&vec![0; Self::LEN])
    }

    #[inline(never)]
    fn xor(self, other: Self) -> Self {
        // SAFETY: x86-64 has SSE2.
        self.both(other, |a, b| unsafe { _mm_xor_si128(a, b) })
    }

    #[inline(never)]
    fn xor3(self, b: Self, c: Self) -> Self {
        self.xor(b).xor(c)
    }

    #[inline(never)]
    fn reverse(self) -> Self {
        let bytes = self.bytes();
        Self::of(&bytes.chunks(16).flat_map(|lane| lane.iter().rev().copied()).collect::<Vec<_>>())
    }

    #[inline(never)]
    fn swap_halves(self) -> Self {
        // SAFETY: x86-64 has SSE2.
        self.each(|a| unsafe { _mm_shuffle_epi32::<0x4e>(a) })
    }

    #[inline(never)]
    fn count(self, first: u32) -> Self {
        let mut counter = first;
        Model(self.0.map(|lane| {
            // SAFETY: x86-64 has SSE2.
            let sum = unsafe { _mm_add_epi32(lane, _mm_cvtsi32_si128(counter as i32)) };
            counter = counter.wrapping_add(1);
            sum
        }))
    }

    #[inline(never)]
    fn advance(self) -> Self {
        // SAFETY: x86-64 has SSE2.
        self.each(|a| unsafe { _mm_add_epi32(a, _mm_cvtsi32_si128(N as i32)) })
    }

    #[inline(never)]
    fn add(self, other: Self) -> Self {
        // SAFETY: x86-64 has SSE2.
        self.both(other, |a, b| unsafe { _mm_add_epi32(a, b) })
    }

    #[inline(never)]
    fn round(self, key: Self) -> Self {
        // SAFETY: the test checks for AES-NI.
        self.both(key, |a, b| unsafe { _mm_aesenc_si128(a, b) })
    }

    #[inline(never)]
    fn last_round(self, key: Self) -> Self {
        // SAFETY: the test checks for AES-NI.
        self.both(key, |a, b| unsafe { _mm_aesenclast_si128(a, b) })
    }

    #[inline(never)]
    fn multiply<const A: bool, const B: bool>(self, b: Self) -> Self {
        // SAFETY: the test checks for PCLMULQDQ.
        self.both(b, |a, b| unsafe {
            match (A, B) {
                (false, false) => _mm_clmulepi64_si128::<0x00>(a, b),
                (true, false) => _mm_clmulepi64_si128::<0x01>(a, b),
                (false, true) => _mm_clmulepi64_si128::<0x10>(a, b),
                (true, true) => _mm_clmulepi64_si128::<0x11>(a, b),
            }
        })
    }

    #[inline(never)]
    fn with_last(mut self, block: __m128i) -> Self {
        self.0[N - 1] = block;
        self
    }

    #[inline(never)]
    fn last(self) -> __m128i {
        self.0[N - 1]
    }

    #[inline(never)]
    fn sum(self) -> __m128i {
        // SAFETY: x86-64 has SSE2.
        self.0.into_iter().reduce(|a, b| unsafe { _mm_xor_si128(a, b) }).unwrap()
    }
}

/// Compares with the reference at every length around whole vectors and groups, and some beyond.
fn agrees<const N: usize, const K: usize, C: Cipher>(secret: &C::Key) {
    if !(is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq")) {
        return;
    }
    // SAFETY: the CPU has AES-NI and PCLMULQDQ.
    let (key, plain) = unsafe { (AeadKey::<C>::new(secret, N), StreamKey::<C>::new(secret)) };
    let oracle = super::super::rustcrypto::AeadKey::<C>::new(secret);
    let stream_oracle = super::super::rustcrypto::StreamKey::<C>::new(secret);
    let nonce = *b"not a secret";
    for len in (0..400).chain([640, 641, 1168, 1184, 1199, 1200, 1344]) {
        let text: Vec<u8> = (0..len + TAG_LEN).map(|i| (i * 31 + len) as u8).collect();
        let mut want = text.clone();
        oracle.seal(&nonce, &mut want);
        let mut data = text.clone();
        // SAFETY: the CPU has AES-NI and PCLMULQDQ, which the model needs; the key is for its lanes.
        unsafe {
            seal::<Model<N>, C, K>(&key, &nonce, &mut data);
            assert!(data == want, "{N} lanes seal {len}");
            assert!(open::<Model<N>, C, K>(&key, &nonce, &mut data), "{N} lanes open {len}");
            assert!(data[..len] == text[..len], "{N} lanes open {len}");
            let mut forged = want.clone();
            forged[len * 7 / 8] ^= 0x10;
            assert!(!open::<Model<N>, C, K>(&key, &nonce, &mut forged), "{N} lanes open what is forged, {len}");
            let (mut one, mut other) = (text.clone(), text.clone());
            stream::<Model<N>, C, STREAM>(&plain, &nonce, 1, &mut one);
            stream_oracle.apply(&nonce, &mut other);
            assert!(one == other, "{N} lanes stream {len}");
        }
    }
}

#[test]
fn wide_algorithm_is_gcm_at_both_widths_on_any_cpu() {
    agrees::<2, 7, super::super::Aes128>(&[7; 16]);
    agrees::<4, 5, super::super::Aes128>(&[8; 16]);
    agrees::<2, 7, super::super::Aes256>(&[9; 32]);
    agrees::<4, 5, super::super::Aes256>(&[10; 32]);
}

/// Compares UIV+ with the reference at every length, in batches.
fn agrees_on_uiv<const N: usize, const K: usize>() {
    use super::super::uiv::{UivKey as Prepared, UivKind};
    use super::super::{BODY_MAX, Engine, Job, PolyvalKey, UIV_KEY_LEN, decipher_batch, encipher_batch};
    if !(is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq")) {
        return;
    }
    let reference = Engine::named("rustcrypto").unwrap();
    let secret: [u8; UIV_KEY_LEN] = std::array::from_fn(|i| (i * 37 + N) as u8);
    // SAFETY: the CPU has AES-NI and PCLMULQDQ. The variant matters only to the batches, which are not called.
    let key = Prepared(UivKind::Wide256(unsafe { UivKey::new(&secret, N) }));
    let oracle = Prepared::prepare_for(reference, &secret);
    let lengths: Vec<usize> = (32..=BODY_MAX).step_by(16).collect();
    // Bodies of one length, and of several.
    for lengths in lengths.chunks(3).map(<[usize]>::to_vec).chain(lengths.iter().map(|len| vec![*len; len / 16 % 5])) {
        let texts: Vec<Vec<u8>> = lengths.iter().map(|len| (0..*len).map(|i| (i * 29 + len) as u8).collect()).collect();
        let run = |key, work: &dyn Fn(&mut [Job<'_, Prepared>])| {
            let mut bodies = texts.clone();
            let nonces = (0..).map(|i| [i; 12]);
            let mut jobs: Vec<_> =
                bodies.iter_mut().zip(nonces).map(|(body, nonce)| Job::new(key, nonce, body)).collect();
            work(&mut jobs);
            assert!(jobs.iter().all(|job| job.ok));
            bodies
        };
        // SAFETY: the CPU has AES-NI and PCLMULQDQ, which the model needs; the key is for its lanes.
        let enciphered = run(&key, &|jobs| unsafe { uiv::process::<Model<N>, K>(jobs, uiv::Way::Encipher) });
        assert!(enciphered == run(&oracle, &|jobs| encipher_batch(jobs)), "{N} lanes encipher {lengths:?}");
        // SAFETY: the same.
        let deciphered = run(&key, &|jobs| unsafe { uiv::process::<Model<N>, K>(jobs, uiv::Way::Decipher) });
        assert!(deciphered == run(&oracle, &|jobs| decipher_batch(jobs)), "{N} lanes decipher {lengths:?}");
    }
    let hash = PolyvalKey::prepare_for(reference, &[5; 16]);
    for len in (0..=BODY_MAX).step_by(16) {
        let text: Vec<u8> = (0..len).map(|i| (i * 31) as u8).collect();
        // SAFETY: the CPU has AES-NI and PCLMULQDQ, which the model needs; the key is for its lanes.
        let made = unsafe { uiv::polyval::<Model<N>, K>(&HashKey::polyval(&[5; 16], N), &text) };
        assert_eq!(made, hash.hash(&text), "{N} lanes hash {len}");
    }
}

#[test]
fn wide_algorithm_is_uiv_at_both_widths_on_any_cpu() {
    agrees_on_uiv::<2, 7>();
    agrees_on_uiv::<4, 5>();
}
