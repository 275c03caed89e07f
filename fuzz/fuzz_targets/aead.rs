//! The engines against each other. Every engine that this CPU can run seals, opens and enciphers a batch of jobs with
//! any lengths, keys and addresses, by GCM, CTR and UIV+. The results must equal those of `rustcrypto`, and no other
//! byte may change.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wire::gcm::{
    Aead, Aes128, Aes256, BODY_MAX, Cipher, Engine, Job, PolyvalKey, Stream, UIV_KEY_LEN, UivKey, ctr_batch,
    decipher_batch, encipher_batch, open_batch, seal_batch,
};

/// A job: the gap before it, the length of its text, and its key.
struct Place {
    gap: u8,
    len: u16,
    key: u8,
}

/// Memory with jobs, and a gap before each.
struct Scene<'a> {
    jobs: &'a [Place],
    memory: Vec<u8>,
}

impl Scene<'_> {
    fn run<K>(&mut self, keys: &[K], work: fn(&mut [Job<'_, K>])) -> Vec<bool> {
        let mut rest = &mut self.memory[..];
        let mut jobs = Vec::new();
        for (i, Place { gap, len, key }) in self.jobs.iter().enumerate() {
            let (_, tail) = std::mem::take(&mut rest).split_at_mut(usize::from(*gap));
            let (body, tail) = tail.split_at_mut(16 + usize::from(*len));
            rest = tail;
            jobs.push(Job::new(&keys[usize::from(*key) % keys.len()], [i as u8; 12], body));
        }
        work(&mut jobs);
        jobs.iter().map(|job| job.ok).collect()
    }
}

fn run<C: Cipher>(secrets: &[C::Key], jobs: &[Place], flip: u16, fill: &[u8]) {
    let len: usize = jobs.iter().map(|job| usize::from(job.gap) + 16 + usize::from(job.len)).sum();
    let memory: Vec<u8> = fill.iter().copied().chain([0x5a]).cycle().take(len + 64).collect();
    let oracle = Engine::named("rustcrypto").expect("it runs everywhere");
    let scene = |engine| {
        let aead: Vec<_> = secrets.iter().map(|secret| Aead::<C>::prepare_for(engine, secret)).collect();
        let stream: Vec<_> = secrets.iter().map(|secret| Stream::<C>::prepare_for(engine, secret)).collect();
        let mut sealed = Scene { jobs, memory: memory.clone() };
        sealed.run(&aead, seal_batch);
        let mut opened = Scene { jobs, memory: sealed.memory.clone() };
        assert!(opened.run(&aead, open_batch).iter().all(|ok| *ok), "{} opens what it sealed", engine.name());
        let mut forged = Scene { jobs, memory: sealed.memory.clone() };
        let at = usize::from(flip) % forged.memory.len();
        forged.memory[at] ^= 1 << (flip % 8);
        let ok = forged.run(&aead, open_batch);
        let mut enciphered = Scene { jobs, memory: memory.clone() };
        enciphered.run(&stream, ctr_batch);
        // A library may leave zeros in a refused text.
        let wipes = engine.name() == "portable" && ok.contains(&false);
        ([sealed.memory, opened.memory, enciphered.memory], ok, (!wipes).then_some(forged.memory))
    };
    let (want, ok, forged) = scene(oracle);
    for engine in Engine::all() {
        let (memories, verdicts, left) = scene(engine);
        assert!(memories == want, "{} is not AES", engine.name());
        assert_eq!(verdicts, ok, "{} takes what is forged for authentic, or the other way round", engine.name());
        assert!(left.is_none() || left == forged, "{} changed what it refused", engine.name());
    }
}

/// UIV+, both ways, and the tags of the results on a link.
fn run_uiv(secrets: &[[u8; 32]; 2], jobs: &[Place], fill: &[u8]) {
    // Lengths that UIV+ takes.
    let fit = |place: &Place| Place { len: place.len % (BODY_MAX as u16 / 16 - 1) * 16 + 16, ..*place };
    let jobs: Vec<Place> = jobs.iter().map(fit).collect();
    let len: usize = jobs.iter().map(|job| usize::from(job.gap) + 16 + usize::from(job.len)).sum();
    let memory: Vec<u8> = fill.iter().copied().chain([0x5a]).cycle().take(len + 64).collect();
    let scene = |engine| {
        let key = |secret: &[u8; 32]| {
            let bytes: [u8; UIV_KEY_LEN] = std::array::from_fn(|i| secret[i % 32] ^ i as u8);
            UivKey::prepare_for(engine, &bytes)
        };
        let keys: Vec<_> = secrets.iter().map(key).collect();
        let mut enciphered = Scene { jobs: &jobs, memory: memory.clone() };
        enciphered.run(&keys, encipher_batch);
        let mut back = Scene { jobs: &jobs, memory: enciphered.memory.clone() };
        back.run(&keys, decipher_batch);
        assert!(back.memory == memory, "{} deciphers what it enciphered", engine.name());
        let mut deciphered = Scene { jobs: &jobs, memory: memory.clone() };
        deciphered.run(&keys, decipher_batch);
        let whole = enciphered.memory.len() / 16 * 16;
        let tag = PolyvalKey::prepare_for(engine, secrets[0].first_chunk().expect("32 bytes"));
        (tag.hash(&enciphered.memory[..whole]), enciphered.memory, deciphered.memory)
    };
    let want = scene(Engine::named("rustcrypto").expect("it runs everywhere"));
    for engine in Engine::all() {
        assert!(scene(engine) == want, "{} is not UIV+", engine.name());
    }
}

fuzz_target!(|input: (bool, [[u8; 32]; 2], u16, Vec<(u8, u16, u8)>, &[u8])| {
    let (long, secrets, flip, jobs, fill) = input;
    let jobs: Vec<_> = jobs.into_iter().take(8).map(|(gap, len, key)| Place { gap, len: len % 4200, key }).collect();
    if long {
        run::<Aes256>(&secrets, &jobs, flip, fill);
    } else {
        run::<Aes128>(&secrets.map(|secret| *secret.first_chunk().expect("32 bytes")), &jobs, flip, fill);
        run_uiv(&secrets, &jobs, fill);
    }
});
