//! UIV+ and POLYVAL: a plain reference against published vectors, and all engines that this CPU can run against the
//! reference.

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use hex_literal::hex;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::gcm::{BODY_MAX, Engine, Job, PolyvalKey, UIV_KEY_LEN, UivKey, decipher_batch, encipher_batch};

/// Bits that eddy clears in a counter block.
const CLEARED: u32 = 7;
/// Bodies of the classes S, M and L.
const BODIES: [usize; 3] = [224, 1168, 1344];

/// Whether a text is enciphered or deciphered.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Way {
    Encipher,
    Decipher,
}

/// a b x^-128 in the field of RFC 8452 3, bit by bit.
fn dot(a: u128, b: u128) -> u128 {
    // x^127 + x^126 + x^121 + 1, which x^128 is reduced to.
    const POLYNOMIAL: u128 = 1 << 127 | 1 << 126 | 1 << 121 | 1;
    (0..128).fold(0, |sum, bit| {
        let sum = if a >> bit & 1 == 1 { sum ^ b } else { sum };
        // Divided by x.
        if sum & 1 == 1 { (sum ^ POLYNOMIAL) >> 1 | 1 << 127 } else { sum >> 1 }
    })
}

/// POLYVAL (RFC 8452 3); zeros make the last block whole.
fn polyval(key: &[u8], text: &[u8]) -> [u8; 16] {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u128::from(*byte));
    text.chunks(16).fold(0, |sum, block| dot(sum ^ number(block), number(key))).to_le_bytes()
}

fn aes(key: &[u8], way: Way, block: [u8; 16]) -> [u8; 16] {
    let (cipher, mut block) = (aes::Aes128::new_from_slice(key).unwrap(), block.into());
    match way {
        Way::Encipher => cipher.encrypt_block(&mut block),
        Way::Decipher => cipher.decrypt_block(&mut block),
    }
    block.into()
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

/// The tweakable block cipher; `keys` are K_B and K_U.
fn tweakable(keys: &[u8], tweak: &[u8], way: Way, block: &[u8]) -> Vec<u8> {
    let mask = polyval(&keys[16..32], tweak);
    xor(&aes(&keys[..16], way, xor(block, &mask).try_into().unwrap()), &mask)
}

/// The pseudorandom function from its block `first` on; `keys` are K_S and K_V.
fn prf(keys: &[u8], cleared: u32, input: &[u8], first: u32, len: usize) -> Vec<u8> {
    let start = u128::from_be_bytes(polyval(&keys[16..32], input)) >> cleared << cleared;
    let block = |j: u32| {
        assert!(j < 1 << cleared, "the counter is full");
        aes(&keys[..16], Way::Encipher, (start | u128::from(j)).to_be_bytes())
    };
    let mut stream: Vec<u8> = (first..).take(len.div_ceil(16)).flat_map(block).collect();
    stream.truncate(len);
    stream
}

/// UIV+ of Tor's proposal 359 for any tweak, length, and number of cleared bits.
pub(super) fn uiv(keys: &[u8], cleared: u32, tweak: &[u8], way: Way, text: &[u8]) -> Vec<u8> {
    let (left, right) = text.split_at(16);
    let (first, second) = keys.split_at(32);
    let stream = |left: &[u8]| prf(second, cleared, left, 0, right.len());
    match way {
        Way::Encipher => {
            let out = tweakable(first, &[tweak, right].concat(), way, left);
            let stream = stream(&out);
            [out, xor(right, &stream)].concat()
        }
        Way::Decipher => {
            let right = xor(right, &stream(left));
            [tweakable(first, &[tweak, &right[..]].concat(), way, left), right].concat()
        }
    }
}

/// The reference with eddy's parameters.
fn reference(keys: &[u8], nonce: &[u8; 12], way: Way, body: &[u8]) -> Vec<u8> {
    uiv(keys, CLEARED, &[&nonce[..], &[0; 4]].concat(), way, body)
}

/// Reads a file of cgo/: its lines, each by columns.
fn vectors(file: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    file.lines().skip(1).map(|line| line.split(' ').collect())
}

pub(super) fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn way(text: &str) -> Way {
    if text == "encrypt" { Way::Encipher } else { Way::Decipher }
}

#[test]
fn reference_reproduces_vectors_of_tor() {
    let mut counts = [0; 3];
    for vector in vectors(include_str!("../cgo/et.txt")) {
        let [keys, tweak, block, out] = [1, 2, 3, 4].map(|i| unhex(vector[i]));
        assert_eq!(tweakable(&keys, &tweak, way(vector[0]), &block), out);
        counts[0] += 1;
    }
    for vector in vectors(include_str!("../cgo/prf.txt")) {
        let [keys, input, out] = [0, 2, 3].map(|i| unhex(vector[i]));
        let first = 31 * vector[1].parse::<u32>().unwrap();
        assert_eq!(prf(&keys, 6, &input, first, out.len()), out);
        counts[1] += 1;
    }
    for vector in vectors(include_str!("../cgo/uiv.txt")) {
        let [keys, tweak, left, right, out_left, out_right] = [1, 2, 3, 4, 5, 6].map(|i| unhex(vector[i]));
        assert_eq!((tweak.len(), right.len()), (17, 493));
        let out = uiv(&keys, 6, &tweak, way(vector[0]), &[left, right].concat());
        assert_eq!(out, [out_left, out_right].concat());
        counts[2] += 1;
    }
    assert_eq!(counts, [20, 20, 12]);
}

#[test]
fn polyval_matches_rfc_8452() {
    // Appendix A, and the second vector of C.1.
    let vectors: [(_, &[u8], _); 2] = [
        (
            hex!("25629347589242761d31f826ba4b757b"),
            &hex!("4f4f95668c83dfb6401762bb2d01a262d1a24ddd2721d006bbe45f20d3c9f362"),
            hex!("f7a3b47b846119fae5b7866cf5e5b77e"),
        ),
        (
            hex!("d9b360279694941ac5dbc6987ada7377"),
            &hex!("0100000000000000000000000000000000000000000000004000000000000000"),
            hex!("eb93b7740962c5e49d2a90a7dc5cec74"),
        ),
    ];
    for (key, text, want) in vectors {
        assert_eq!(polyval(&key, text), want);
        for engine in Engine::all() {
            assert_eq!(PolyvalKey::prepare_for(engine, &key).hash(text), want, "{}", engine.name());
        }
    }
}

fn random<const N: usize>(rng: &mut ChaCha20Rng) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}

#[test]
fn every_engine_is_polyval_at_every_length() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    for len in (0..=BODY_MAX).step_by(16) {
        let key = random(&mut rng);
        // One byte more than the text, so that it can start at any address.
        let mut text = vec![0; len + len / 16 % 16];
        rng.fill_bytes(&mut text);
        let text = &text[len / 16 % 16..];
        let want = polyval(&key, text);
        for engine in Engine::all() {
            let prepared = PolyvalKey::prepare_for(engine, &key);
            assert_eq!(prepared.hash(text), want, "{} hashes {len} bytes", engine.name());
            assert_eq!(prepared.link_tag(text), want[..4]);
        }
    }
}

/// Bodies in one memory, with gaps between them, each with a key and a nonce.
struct Scene {
    keys: Vec<[u8; UIV_KEY_LEN]>,
    nonces: Vec<[u8; 12]>,
    /// The gap before a body, and its length.
    places: Vec<(usize, usize)>,
    memory: Vec<u8>,
}

impl Scene {
    fn new(rng: &mut ChaCha20Rng, lengths: &[usize]) -> Scene {
        let places: Vec<_> = lengths.iter().map(|len| (rng.random_range(0..70), *len)).collect();
        let mut memory = vec![0; places.iter().map(|(gap, len)| gap + len).sum::<usize>() + 64];
        rng.fill_bytes(&mut memory);
        Scene {
            keys: lengths.iter().map(|_| random(rng)).collect(),
            nonces: lengths.iter().map(|_| random(rng)).collect(),
            places,
            memory,
        }
    }

    /// The memory after the bodies were processed by `engines`, body after body.
    fn run(&self, engines: &[Engine], way: Way) -> Vec<u8> {
        let engine = |i: usize| engines[i % engines.len()];
        let keys: Vec<_> = self.keys.iter().enumerate().map(|(i, key)| UivKey::prepare_for(engine(i), key)).collect();
        let mut memory = self.memory.clone();
        let (mut rest, mut jobs) = (&mut memory[..], Vec::new());
        for (i, (gap, len)) in self.places.iter().enumerate() {
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(*gap);
            let (body, tail) = tail.split_at_mut(*len);
            rest = tail;
            jobs.push(Job::new(&keys[i], self.nonces[i], body));
        }
        match way {
            Way::Encipher => encipher_batch(&mut jobs),
            Way::Decipher => decipher_batch(&mut jobs),
        }
        assert!(jobs.iter().all(|job| job.ok));
        memory
    }

    /// The same by the reference.
    fn want(&self, way: Way) -> Vec<u8> {
        let (mut memory, mut at) = (self.memory.clone(), 0);
        for (i, (gap, len)) in self.places.iter().enumerate() {
            let body = &mut memory[at + gap..][..*len];
            let done = reference(&self.keys[i], &self.nonces[i], way, body);
            body.copy_from_slice(&done);
            at += gap + len;
        }
        memory
    }

    /// Checks the engines in both ways, and that one undoes the other.
    fn hold(mut self, engines: &[Engine]) {
        let names: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
        let deciphered = self.run(engines, Way::Decipher);
        assert!(deciphered == self.want(Way::Decipher), "{names:?} decipher {:?}", self.places);
        let enciphered = self.run(engines, Way::Encipher);
        assert!(enciphered == self.want(Way::Encipher), "{names:?} encipher {:?}", self.places);
        let before = std::mem::replace(&mut self.memory, enciphered);
        assert!(self.run(engines, Way::Decipher) == before, "{names:?} decipher what they enciphered");
        let enciphered = std::mem::replace(&mut self.memory, deciphered);
        assert!(self.run(engines, Way::Encipher) == before, "{names:?} encipher what they deciphered");
        assert!(enciphered != before);
    }
}

#[test]
fn every_engine_is_uiv_at_every_length() {
    let mut rng = ChaCha20Rng::seed_from_u64(2);
    for engine in Engine::all() {
        for len in (32..=BODY_MAX).step_by(16) {
            Scene::new(&mut rng, &[len]).hold(&[engine]);
        }
    }
}

#[test]
fn batches_of_every_class_match_the_reference() {
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    for engine in Engine::all() {
        for len in BODIES {
            for count in [1, 2, 3, 4, 5, 7, 8, 13] {
                Scene::new(&mut rng, &vec![len; count]).hold(&[engine]);
            }
        }
    }
}

#[test]
fn mixed_lengths_and_engines_match_the_reference() {
    let mut rng = ChaCha20Rng::seed_from_u64(4);
    let engines: Vec<_> = Engine::all().collect();
    for round in 0..60 {
        let lengths: Vec<_> = (0..rng.random_range(1..10)).map(|_| 16 * rng.random_range(2..=129)).collect();
        let scene = Scene::new(&mut rng, &lengths);
        // One engine for all bodies, or several: each change of the engine ends a run of jobs.
        if round % 2 == 1 {
            scene.hold(&engines);
        } else {
            scene.hold(&[engines[round / 2 % engines.len()]]);
        }
    }
}

#[test]
fn altered_bit_changes_half_of_all_bits() {
    let mut rng = ChaCha20Rng::seed_from_u64(5);
    for engine in Engine::all() {
        let (key, nonce) = (UivKey::prepare_for(engine, &random(&mut rng)), random(&mut rng));
        for len in BODIES {
            let mut body = vec![0; len];
            rng.fill_bytes(&mut body);
            let run = |way, nonce: &[u8; 12], body: &[u8]| {
                let mut body = body.to_vec();
                match way {
                    Way::Encipher => key.encipher(nonce, &mut body),
                    Way::Decipher => key.decipher(nonce, &mut body),
                }
                body
            };
            for way in [Way::Encipher, Way::Decipher] {
                let whole = run(way, &nonce, &body);
                let differs = |other: &[u8]| {
                    let bits: u32 = xor(&whole, other).iter().map(|byte| byte.count_ones()).sum();
                    // Bits differ by chance: seven standard deviations are allowed.
                    let (half, limit) = (4.0 * len as f64, 7.0 * (2.0 * len as f64).sqrt());
                    assert!((f64::from(bits) - half).abs() < limit, "{}: {bits} bits of {len} bytes", engine.name());
                    // No block stays, wherever the bit was.
                    assert!(whole.chunks(16).zip(other.chunks(16)).all(|(a, b)| a != b), "{}", engine.name());
                };
                for bit in (0..len * 8).step_by(131).chain([127, 128, len * 8 - 1]) {
                    let mut altered = body.clone();
                    altered[bit / 8] ^= 1 << (bit % 8);
                    // Enciphering spreads a bit of either side. Deciphering does so only for Y_L: Y_R is XORed.
                    if way == Way::Encipher || bit < 128 {
                        differs(&run(way, &nonce, &altered));
                    }
                }
                let mut other = nonce;
                other[11] ^= 1;
                if way == Way::Encipher {
                    differs(&run(way, &other, &body));
                }
            }
        }
    }
}

#[test]
fn bodies_that_do_not_fit_are_refused() {
    for engine in Engine::all() {
        let key = UivKey::prepare_for(engine, &[1; UIV_KEY_LEN]);
        for len in [0, 1, 16, 31, 33, 225, BODY_MAX + 1, BODY_MAX + 16] {
            let refused = |work: fn(&UivKey, &[u8; 12], &mut [u8])| {
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&key, &[0; 12], &mut vec![0; len])))
                    .is_err()
            };
            assert!(refused(UivKey::encipher) && refused(UivKey::decipher), "{}: {len} bytes", engine.name());
        }
    }
}
