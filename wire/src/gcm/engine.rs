//! Selects the engine: the fastest that the CPU can run, or the one that `EDDY_AEAD` names.
//!
//! An [`Engine`] proves that this CPU can run it, because only this module makes one.

use std::sync::OnceLock;

use super::{
    AeadKey, Job, KEY_LEN, PolyvalKey, StreamKey, UIV_KEY_LEN, UivKey, ctr_batch, encipher_batch, open_batch,
    seal_batch,
};
use crate::cell::TAG_LEN;

/// The environment variable that selects an engine.
pub const VARIABLE: &str = "EDDY_AEAD";

/// An engine that this CPU can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Engine(pub(super) Which);

/// Fastest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    #[cfg(target_arch = "x86_64")]
    Wide512,
    #[cfg(target_arch = "x86_64")]
    Wide256,
    Portable,
    RustCrypto,
}

/// The names of all engines, also of those that this CPU cannot run.
const NAMES: [&str; 4] = ["wide512", "wide256", "portable", "rustcrypto"];

/// [`VARIABLE`] does not name an engine that can run here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    #[error("invalid {VARIABLE}={0}: expected wide512, wide256, portable or rustcrypto; or unset it")]
    Unknown(String),
    #[error("{VARIABLE}={0} needs {1}, which this CPU does not have: use portable or rustcrypto, or unset it")]
    Unavailable(&'static str, &'static str),
}

impl Engine {
    /// The engines that this CPU can run, fastest first.
    pub fn all() -> impl Iterator<Item = Engine> {
        NAMES.into_iter().filter_map(|name| Engine::named(name).ok())
    }

    /// The default: the fastest engine that agrees with the reference `rustcrypto` on this CPU. On other
    /// architectures, where nothing was measured, the reference itself.
    pub fn best() -> Engine {
        let fastest = Engine::all().find(|engine| engine.agrees()).expect("the reference agrees with itself");
        if cfg!(target_arch = "x86_64") { fastest } else { Engine(Which::RustCrypto) }
    }

    /// Checks that it processes a few texts like the reference. Costs a few microseconds at the
    /// start, and guards against faulty emulators, hypervisors and CPUs.
    fn agrees(self) -> bool {
        self.agrees_on_gcm() && self.agrees_on_uiv()
    }

    fn agrees_on_uiv(self) -> bool {
        let reference = Engine(Which::RustCrypto);
        [224, 1168, 1344].into_iter().all(|len| {
            let text: Vec<u8> = (0..len).map(|i| (i * 11 + i / 256) as u8).collect();
            let run = |engine| {
                let (key, hash) =
                    (UivKey::prepare_for(engine, &[0x3b; UIV_KEY_LEN]), PolyvalKey::prepare_for(engine, &[0x91; 16]));
                let mut bodies = [text.clone(), text.clone(), text.clone()];
                encipher_batch(&mut bodies.each_mut().map(|body| Job::new(&key, [0x5c; 12], body)));
                let tag = hash.link_tag(&bodies[2]);
                key.decipher(&[0x5c; 12], &mut bodies[1]);
                (bodies, tag)
            };
            let (bodies, tag) = run(self);
            bodies[1] == text && (bodies, tag) == run(reference)
        })
    }

    fn agrees_on_gcm(self) -> bool {
        let reference = Engine(Which::RustCrypto);
        let (key, nonce) = ([0xa7; KEY_LEN], [0x5c; 12]);
        let seal = |engine, text: &[u8]| {
            let (aead, stream) = (AeadKey::prepare_for(engine, &key), StreamKey::prepare_for(engine, &key));
            let (mut sealed, mut streamed) = (text.to_vec(), text.to_vec());
            seal_batch(&mut [Job::new(&aead, nonce, &mut sealed)]);
            ctr_batch(&mut [Job::new(&stream, nonce, &mut streamed)]);
            (aead, sealed, streamed)
        };
        [0, 1, 15, 16, 17, 208, 240, 1184, 1328, 1440].into_iter().all(|len| {
            let text: Vec<u8> = (0..len + TAG_LEN).map(|i| (i * 7 + i / 256) as u8).collect();
            let ((aead, mut sealed, streamed), (_, sealed_reference, streamed_reference)) =
                (seal(self, &text), seal(reference, &text));
            let same = sealed == sealed_reference && streamed == streamed_reference;
            let mut forged = sealed.clone();
            forged[len] ^= 1;
            let mut jobs = [Job::new(&aead, nonce, &mut sealed), Job::new(&aead, nonce, &mut forged)];
            open_batch(&mut jobs);
            let verdicts = jobs.each_ref().map(|job| job.ok);
            same && verdicts == [true, false] && sealed[..len] == text[..len]
        })
    }

    /// The engine of this name.
    ///
    /// # Errors
    /// The name is unknown, or this CPU cannot run the engine.
    pub fn named(name: &str) -> Result<Engine, EngineError> {
        match name {
            #[cfg(target_arch = "x86_64")]
            "wide512" if has_512() => Ok(Engine(Which::Wide512)),
            "wide512" => Err(EngineError::Unavailable("wide512", "VAES and VPCLMULQDQ with AVX-512")),
            #[cfg(target_arch = "x86_64")]
            "wide256" if has_256() => Ok(Engine(Which::Wide256)),
            "wide256" => Err(EngineError::Unavailable("wide256", "VAES and VPCLMULQDQ with AVX2")),
            "portable" => Ok(Engine(Which::Portable)),
            "rustcrypto" => Ok(Engine(Which::RustCrypto)),
            _ => Err(EngineError::Unknown(name.to_owned())),
        }
    }

    /// Its name in reports and in [`VARIABLE`].
    pub const fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Which::Wide512 => "wide512",
            #[cfg(target_arch = "x86_64")]
            Which::Wide256 => "wide256",
            Which::Portable => "portable",
            Which::RustCrypto => "rustcrypto",
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_512() -> bool {
    cpufeatures::new!(
        wide512,
        "avx2",
        "aes",
        "pclmulqdq",
        "vaes",
        "vpclmulqdq",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl"
    );
    wide512::get()
}

/// Without cpufeatures, which reports `vaes` and `vpclmulqdq` only if AVX-512 is usable, too.
#[cfg(target_arch = "x86_64")]
fn has_256() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// The engine of this process, chosen at the first call. A node calls it at its start and reports the error.
///
/// # Errors
/// [`VARIABLE`] names an engine that is unknown or that this CPU cannot run.
pub fn select() -> Result<Engine, EngineError> {
    static CHOSEN: OnceLock<Result<Engine, EngineError>> = OnceLock::new();
    let choose = || match std::env::var_os(VARIABLE) {
        None => Ok(Engine::best()),
        Some(name) => Engine::named(&name.to_string_lossy()),
    };
    CHOSEN.get_or_init(choose).clone()
}

/// The engine of this process. The default if [`select`] fails; a node does not start then.
pub fn engine() -> Engine {
    select().unwrap_or_else(|_| Engine::best())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_engine_agrees_with_the_reference() {
        for engine in Engine::all() {
            assert!(engine.agrees(), "{}", engine.name());
        }
    }
}
