//! Which engine does the work: the fastest that the CPU can run, or the one that `EDDY_AEAD` names.
//!
//! An [`Engine`] is a proof that this CPU can run it: there is no other way to one than asking here.

use std::sync::OnceLock;

use super::{AeadKey, Job, KEY_LEN, StreamKey, ctr_batch, open_batch, seal_batch};
use crate::cell::TAG_LEN;

/// The environment variable that names an engine.
pub const VARIABLE: &str = "EDDY_AEAD";

/// An engine that this CPU can run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Engine(pub(super) Which);

/// The engines, fastest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Which {
    #[cfg(target_arch = "x86_64")]
    Wide512,
    #[cfg(target_arch = "x86_64")]
    Wide256,
    Portable,
    RustCrypto,
}

/// All names, known on every CPU.
const NAMES: [&str; 4] = ["wide512", "wide256", "portable", "rustcrypto"];

/// [`VARIABLE`] names no engine that can run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// No such engine.
    #[error("{VARIABLE}={0}: no such engine: take wide512, wide256, portable or rustcrypto, or unset it")]
    Unknown(String),
    /// The CPU lacks its instructions.
    #[error("{VARIABLE}={0}: this CPU has no {1}: take portable or rustcrypto, or unset it")]
    Unavailable(&'static str, &'static str),
}

impl Engine {
    /// Those that this CPU can run, fastest first.
    pub fn all() -> impl Iterator<Item = Engine> {
        NAMES.into_iter().filter_map(|name| Engine::named(name).ok())
    }

    /// The one that is taken unless told otherwise: the fastest that agrees with Rust's own on this very CPU. Where
    /// nothing was measured that is Rust's own.
    pub fn best() -> Engine {
        let fastest = Engine::all().find(|engine| engine.agrees()).expect("Rust's own agrees with itself");
        if cfg!(target_arch = "x86_64") { fastest } else { Engine(Which::RustCrypto) }
    }

    /// Whether it seals, opens and enciphers a few texts as Rust's own does. A microsecond or two at the start, for an
    /// emulator, a hypervisor or a CPU of which nobody has heard yet.
    fn agrees(self) -> bool {
        let rust = Engine(Which::RustCrypto);
        let (key, nonce) = ([0xa7; KEY_LEN], [0x5c; 12]);
        let of = |engine, text: &[u8]| {
            let (aead, stream) = (AeadKey::prepare_for(engine, &key), StreamKey::prepare_for(engine, &key));
            let (mut sealed, mut streamed) = (text.to_vec(), text.to_vec());
            seal_batch(&mut [Job::new(&aead, nonce, &mut sealed)]);
            ctr_batch(&mut [Job::new(&stream, nonce, &mut streamed)]);
            (aead, sealed, streamed)
        };
        [0, 1, 15, 16, 17, 208, 240, 1184, 1328, 1440].into_iter().all(|len| {
            let text: Vec<u8> = (0..len + TAG_LEN).map(|i| (i * 7 + i / 256) as u8).collect();
            let ((aead, mut sealed, streamed), (_, sealed_rust, streamed_rust)) = (of(self, &text), of(rust, &text));
            let same = sealed == sealed_rust && streamed == streamed_rust;
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
    /// There is none, or this CPU cannot run it.
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

    /// Its name, for reports and for [`VARIABLE`].
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

/// cpufeatures ties `vaes` and `vpclmulqdq` to the state of AVX-512, which this path does without.
#[cfg(target_arch = "x86_64")]
fn has_256() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// The process's engine, chosen at the first call and for good. A node asks at its start, to report the error.
///
/// # Errors
/// [`VARIABLE`] names an engine that does not exist or that this CPU cannot run.
pub fn select() -> Result<Engine, EngineError> {
    static CHOSEN: OnceLock<Result<Engine, EngineError>> = OnceLock::new();
    let choose = || match std::env::var_os(VARIABLE) {
        None => Ok(Engine::best()),
        Some(name) => Engine::named(&name.to_string_lossy()),
    };
    CHOSEN.get_or_init(choose).clone()
}

/// The process's engine. Where [`select`] gives an error, which a node does not start with, the best.
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
