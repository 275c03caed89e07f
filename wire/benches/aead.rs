//! The AEAD engines compared with the libraries, and UIV+ with GCM of the same engine, in ns per job.
//!
//! `cargo bench -p wire --bench aead [-- WORD...]`; every word must occur in a row's name. Jobs come in batches of 64,
//! as in a mix. Sealed cells are copied into place before each measurement, so they are in the cache as after a receive
//! call; with many keys, the keys are as cold as their number makes them. All candidates take turns in several rounds.
//! A figure is the median of the rounds, each of which is the median of its batches.

use std::hint::black_box;
use std::time::Instant;

use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use wire::gcm::{
    Aead, Aes128, Aes256, Cipher, Engine, Job, PolyvalKey, Stream, UIV_KEY_LEN, UivKey, ctr_batch, decipher_batch,
    encipher_batch, open_batch, seal_batch,
};

const BATCH: usize = 64;
const ROUNDS: usize = 9;
const BATCHES: usize = 128;
const TAG: usize = 16;
const NONCE: [u8; 12] = *b"not a secret";

#[derive(Clone, Copy, PartialEq)]
enum Path {
    Open,
    Seal,
    Ctr,
}

/// One way to process a batch, with keys from index `at` on, wrapping around.
type Work = Box<dyn Fn(usize, &mut [Vec<u8>])>;

fn secret(len: usize, i: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + i) as u8 ^ (i >> 8) as u8).collect()
}

trait Sized128or256: Cipher {
    const LEN: usize;
    fn key(bytes: &[u8]) -> Self::Key;
    fn ring() -> &'static ring::aead::Algorithm;
    fn aws() -> &'static aws_lc_rs::aead::Algorithm;
    fn aws_cipher() -> &'static aws_lc_rs::cipher::Algorithm;
}

impl Sized128or256 for Aes128 {
    const LEN: usize = 16;
    fn key(bytes: &[u8]) -> [u8; 16] {
        bytes.try_into().expect("16 bytes")
    }
    fn ring() -> &'static ring::aead::Algorithm {
        &ring::aead::AES_128_GCM
    }
    fn aws() -> &'static aws_lc_rs::aead::Algorithm {
        &aws_lc_rs::aead::AES_128_GCM
    }
    fn aws_cipher() -> &'static aws_lc_rs::cipher::Algorithm {
        &AES_128
    }
}

impl Sized128or256 for Aes256 {
    const LEN: usize = 32;
    fn key(bytes: &[u8]) -> [u8; 32] {
        bytes.try_into().expect("32 bytes")
    }
    fn ring() -> &'static ring::aead::Algorithm {
        &ring::aead::AES_256_GCM
    }
    fn aws() -> &'static aws_lc_rs::aead::Algorithm {
        &aws_lc_rs::aead::AES_256_GCM
    }
    fn aws_cipher() -> &'static aws_lc_rs::cipher::Algorithm {
        &AES_256
    }
}

fn engine<C: Sized128or256>(engine: Engine, path: Path, keys: usize) -> Work {
    fn jobs<'a, K>(keys: &'a [K], at: usize, cells: &'a mut [Vec<u8>]) -> arrayvec::ArrayVec<Job<'a, K>, BATCH> {
        let keys = keys.iter().cycle().skip(at % keys.len());
        keys.zip(cells).map(|(key, cell)| Job::new(key, NONCE, cell)).collect()
    }
    if path == Path::Ctr {
        let keys: Vec<_> = (0..keys).map(|i| Stream::<C>::prepare_for(engine, &C::key(&secret(C::LEN, i)))).collect();
        return Box::new(move |at, cells| ctr_batch(&mut jobs(&keys, at, cells)));
    }
    let keys: Vec<_> = (0..keys).map(|i| Aead::<C>::prepare_for(engine, &C::key(&secret(C::LEN, i)))).collect();
    Box::new(move |at, cells| {
        let mut jobs = jobs(&keys, at, cells);
        match path {
            Path::Open => {
                open_batch(&mut jobs);
                assert!(jobs.iter().all(|job| job.ok));
            }
            _ => seal_batch(&mut jobs),
        }
    })
}

macro_rules! library {
    ($name:ident, $library:ident, $algorithm:ident) => {
        fn $name<C: Sized128or256>(path: Path, keys: usize) -> Work {
            use $library::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
            let key = |i| LessSafeKey::new(UnboundKey::new(C::$algorithm(), &secret(C::LEN, i)).expect("its length"));
            let keys: Vec<_> = (0..keys).map(key).collect();
            Box::new(move |at, cells| {
                for (key, cell) in keys.iter().cycle().skip(at % keys.len()).zip(cells) {
                    let nonce = Nonce::assume_unique_for_key(NONCE);
                    if path == Path::Open {
                        key.open_in_place(nonce, Aad::empty(), cell).expect("authentic");
                    } else {
                        let at = cell.len() - TAG;
                        let (text, tag) = cell.split_at_mut(at);
                        let made = key.seal_in_place_separate_tag(nonce, Aad::empty(), text).expect("short enough");
                        tag.copy_from_slice(made.as_ref());
                    }
                }
            })
        }
    };
}

library!(ring_gcm, ring, ring);
library!(aws_gcm, aws_lc_rs, aws);

fn aws_ctr<C: Sized128or256>(keys: usize) -> Work {
    let key =
        |i| UnboundCipherKey::new(C::aws_cipher(), &secret(C::LEN, i)).and_then(EncryptingKey::ctr).expect("fits");
    let keys: Vec<_> = (0..keys).map(key).collect();
    let mut counter = [0; 16];
    counter[..12].copy_from_slice(&NONCE);
    counter[15] = 1;
    Box::new(move |at, cells| {
        for (key, cell) in keys.iter().cycle().skip(at % keys.len()).zip(cells) {
            let context = EncryptionContext::Iv128(counter.into());
            black_box(key.less_safe_encrypt(cell, context).expect("short enough"));
        }
    })
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Names and figures of all candidates, in ns per job of `len` bytes including the tag.
fn row<C: Sized128or256>(path: Path, len: usize, keys: usize) -> Vec<(&'static str, f64)> {
    let mut candidates: Vec<(&'static str, Work)> =
        Engine::all().map(|which| (which.name(), engine::<C>(which, path, keys))).collect();
    match path {
        Path::Ctr => candidates.push(("aws-lc-rs", aws_ctr::<C>(keys))),
        _ => candidates.extend([("ring", ring_gcm::<C>(path, keys)), ("aws-lc-rs", aws_gcm::<C>(path, keys))]),
    }
    // One sealed cell for each key, at least a batch in total.
    let mut sealed: Vec<_> = (0..keys.max(BATCH)).map(|i| vec![i as u8; len]).collect();
    for (i, cells) in sealed.chunks_mut(BATCH).enumerate() {
        ring_gcm::<C>(Path::Seal, keys)(i * BATCH, cells);
    }
    let mut cells = vec![vec![0; len]; BATCH];
    let mut rounds = vec![Vec::new(); candidates.len()];
    for _ in 0..ROUNDS {
        for ((_, work), medians) in candidates.iter().zip(&mut rounds) {
            let mut samples = Vec::with_capacity(BATCHES);
            for batch in 0..BATCHES {
                let at = batch * BATCH % sealed.len();
                for (cell, sealed) in cells.iter_mut().zip(&sealed[at..]) {
                    cell.copy_from_slice(sealed);
                }
                let start = Instant::now();
                work(at, black_box(&mut cells));
                samples.push(start.elapsed().as_nanos() as f64 / BATCH as f64);
            }
            medians.push(median(samples));
        }
    }
    candidates.iter().zip(rounds).map(|((name, _), medians)| (*name, median(medians))).collect()
}

/// GCM open, UIV+ in both ways and a link's tag, by one engine, in ns per job of `len` bytes.
fn uiv_row(engine: Engine, len: usize, keys: usize, batch: usize) -> [f64; 4] {
    let secret = |i: usize| secret(UIV_KEY_LEN, i);
    let whole = |i| *secret(i).first_chunk::<UIV_KEY_LEN>().expect("its length");
    let part = |i| *secret(i).first_chunk::<16>().expect("it is longer");
    let gcm: Vec<_> = (0..keys).map(|i| Aead::<Aes128>::prepare_for(engine, &part(i))).collect();
    let uiv: Vec<_> = (0..keys).map(|i| UivKey::prepare_for(engine, &whole(i))).collect();
    let tag = PolyvalKey::prepare_for(engine, &part(0));
    fn jobs<'a, K>(keys: &'a [K], at: usize, cells: &'a mut [Vec<u8>]) -> arrayvec::ArrayVec<Job<'a, K>, BATCH> {
        let keys = keys.iter().cycle().skip(at % keys.len());
        keys.zip(cells).map(|(key, cell)| Job::new(key, NONCE, cell)).collect()
    }
    type Work<'a> = &'a dyn Fn(usize, &mut [Vec<u8>]);
    let works: [Work<'_>; 4] = [
        &|at, cells| {
            let mut jobs = jobs(&gcm, at, cells);
            open_batch(&mut jobs);
            assert!(jobs.iter().all(|job| job.ok));
        },
        &|at, cells| encipher_batch(&mut jobs(&uiv, at, cells)),
        &|at, cells| decipher_batch(&mut jobs(&uiv, at, cells)),
        &|_, cells| cells.iter().for_each(|cell| _ = black_box(tag.link_tag(cell))),
    ];
    let mut sealed: Vec<_> = (0..keys.max(batch)).map(|i| vec![i as u8; len]).collect();
    for (i, cells) in sealed.chunks_mut(BATCH).enumerate() {
        seal_batch(&mut jobs(&gcm, i * BATCH, cells));
    }
    let mut cells = vec![vec![0; len]; batch];
    let mut rounds = [const { Vec::new() }; 4];
    for _ in 0..ROUNDS {
        for (work, medians) in works.iter().zip(&mut rounds) {
            let mut samples = Vec::with_capacity(BATCHES);
            for i in 0..BATCHES * BATCH / batch {
                let at = i * batch % (sealed.len() / batch * batch);
                for (cell, sealed) in cells.iter_mut().zip(&sealed[at..]) {
                    cell.copy_from_slice(sealed);
                }
                let start = Instant::now();
                work(at, black_box(&mut cells));
                samples.push(start.elapsed().as_nanos() as f64 / batch as f64);
            }
            medians.push(median(samples));
        }
    }
    rounds.map(median)
}

/// Expansion only, in ns per key.
fn setup(engine: Engine) -> (f64, f64) {
    let time = |prepare: &dyn Fn(usize)| {
        let sample = |_| {
            let start = Instant::now();
            (0..BATCH).for_each(prepare);
            start.elapsed().as_nanos() as f64 / BATCH as f64
        };
        median((0..999).map(sample).collect())
    };
    let key = |i: usize| black_box([i as u8; 16]);
    let aead = time(&|i| drop(black_box(Aead::<Aes128>::prepare_for(engine, &key(i)))));
    let stream = time(&|i| drop(black_box(Stream::<Aes128>::prepare_for(engine, &key(i)))));
    (aead, stream)
}

fn main() {
    let words: Vec<_> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    let names: Vec<_> = Engine::all().map(Engine::name).collect();
    println!("CPU: {}; engines: {}; taken: {}", model.unwrap_or("?"), names.join(", "), wire::gcm::engine().name());
    println!("ns per job, bytes with tag, batches of {BATCH}, medians of {ROUNDS} alternating rounds");
    for (bits, path, name) in [
        (128, Path::Open, "open"),
        (128, Path::Seal, "seal"),
        (128, Path::Ctr, "ctr"),
        (256, Path::Open, "open"),
        (256, Path::Seal, "seal"),
        (256, Path::Ctr, "ctr"),
    ] {
        let mut head = true;
        for len in [256, 1200, 1328] {
            for keys in [1, 64, 4096] {
                let name = format!("aes-{bits} {name} {len} bytes {keys:4} keys");
                if !words.iter().all(|word| name.contains(word.as_str())) {
                    continue;
                }
                let row = match bits {
                    128 => row::<Aes128>(path, len, keys),
                    _ => row::<Aes256>(path, len, keys),
                };
                if std::mem::take(&mut head) {
                    print!("\n{:34}", "");
                    row.iter().for_each(|(name, _)| print!("{name:>12}"));
                    println!();
                }
                print!("{name:34}");
                row.iter().for_each(|(_, ns)| print!("{ns:12.1}"));
                println!();
            }
        }
    }
    println!(
        "\n{:48}{:>12}{:>12}{:>12}{:>12}{:>16}",
        "", "GCM open", "encipher", "decipher", "link tag", "encipher/open"
    );
    for engine in Engine::all() {
        for (len, keys, batch) in [224, 1168, 1344].into_iter().flat_map(|len| {
            [(1, BATCH), (64, BATCH), (4096, BATCH), (20000, BATCH), (64, 8), (64, 4), (64, 1)]
                .map(|(keys, batch)| (len, keys, batch))
        }) {
            let name = format!("uiv {} {len} bytes {keys:5} keys batches of {batch}", engine.name());
            if !words.iter().all(|word| name.contains(word.as_str())) {
                continue;
            }
            let row = uiv_row(engine, len, keys, batch);
            print!("{name:48}");
            row.iter().for_each(|ns| print!("{ns:12.1}"));
            println!("{:16.2}", row[1] / row[0]);
        }
    }
    if words.is_empty() {
        println!("\nexpansion of one AES-128 key and its wiping, ns: GCM, CTR");
        for engine in Engine::all() {
            let (aead, stream) = setup(engine);
            println!("{:34}{aead:12.1}{stream:12.1}", engine.name());
        }
        println!(
            "\nbytes of a key beside its channel: GCM {}, CTR {}",
            size_of::<Aead<Aes128>>(),
            size_of::<Stream<Aes128>>()
        );
    }
}
