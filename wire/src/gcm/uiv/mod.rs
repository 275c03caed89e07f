//! UIV+, the wide-block cipher of paced cells, and the POLYVAL tag of a link; by the same engines as GCM.
//!
//! UIV+ is that of Tor's proposal 359. It encrypts a body of 16 | P bytes without a tag, and every bit of the result
//! depends on every bit of the body:
//!
//! ```text
//!     encipher  X_L 16 | X_R P  ->  Y_L = AES(K_B, X_L XOR u) XOR u    u = POLYVAL(K_U; nonce 12 | 0^4 | X_R)
//!                                   Y_R = X_R XOR CTR(K_S; v)          v = POLYVAL(K_V; Y_L)
//! ```
//!
//! The low 7 bits of v's last byte are replaced by the number of the keystream's block, from 0. POLYVAL is that of
//! RFC 8452. P is a multiple of 16, from 16 to [`BODY_MAX`] - 16.
//!
//! Within a body u, Y_L, v and the keystream follow from each other. A wide engine hides that behind the other bodies
//! of a batch.

mod library;

use zeroize::ZeroizeOnDrop;

use super::engine::Which;
#[cfg(target_arch = "x86_64")]
use super::wide;
use super::{Engine, Job, engine};

/// Bytes of a key: K_B, K_U, K_S, K_V, 16 each.
pub const UIV_KEY_LEN: usize = 64;

/// Bytes of the longest body: X_L and the blocks that a counter of 7 bits can number.
pub const BODY_MAX: usize = BLOCK + (BLOCK << 7);

/// Bytes of a link tag.
pub const LINK_TAG_LEN: usize = 4;

/// Bytes of an AES block.
const BLOCK: usize = 16;

/// A prepared key of UIV+; wiped on drop. It has eight cache lines; with the engines by libraries it has one, and more
/// in a box.
pub struct UivKey(pub(super) UivKind);

/// A key, by engine.
#[repr(align(64))]
pub(super) enum UivKind {
    #[cfg(target_arch = "x86_64")]
    Wide512(wide::UivKey),
    #[cfg(target_arch = "x86_64")]
    Wide256(wide::UivKey),
    Library(Box<library::UivKey>),
}

#[cfg(target_arch = "x86_64")]
const _: () = assert!(size_of::<UivKey>() == 8 * 64);

// Each engine's key wipes itself.
impl ZeroizeOnDrop for UivKey {}

impl UivKey {
    /// Expands a key for the engine of this process.
    pub fn prepare(key: &[u8; UIV_KEY_LEN]) -> Self {
        Self::prepare_for(engine(), key)
    }

    /// Expands a key for an engine.
    pub fn prepare_for(engine: Engine, key: &[u8; UIV_KEY_LEN]) -> Self {
        UivKey(match engine.0 {
            // SAFETY: an `Engine` exists only if this CPU has its instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Which::Wide512 => UivKind::Wide512(unsafe { wide::UivKey::new(key, wide::of_512::LANES) }),
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Which::Wide256 => UivKind::Wide256(unsafe { wide::UivKey::new(key, wide::of_256::LANES) }),
            Which::Portable | Which::RustCrypto => UivKind::Library(Box::new(library::UivKey::new(key))),
        })
    }

    /// [`encipher_batch`] of one body. A batch takes less time for a body.
    ///
    /// # Panics
    /// As [`encipher_batch`].
    pub fn encipher(&self, nonce: &[u8; 12], body: &mut [u8]) {
        encipher_batch(&mut [Job::new(self, *nonce, body)]);
    }

    /// [`decipher_batch`] of one body. A batch takes less time for a body.
    ///
    /// # Panics
    /// As [`decipher_batch`].
    pub fn decipher(&self, nonce: &[u8; 12], body: &mut [u8]) {
        decipher_batch(&mut [Job::new(self, *nonce, body)]);
    }
}

/// Panics unless UIV+ can process a body of this length.
fn check(body: &[u8]) {
    let len = body.len();
    let fits = len.is_multiple_of(BLOCK) && (2 * BLOCK..=BODY_MAX).contains(&len);
    assert!(fits, "invalid body of {len} bytes: expected a multiple of {BLOCK} from {} to {BODY_MAX}", 2 * BLOCK);
}

/// Enciphers each body in place and sets `ok`.
///
/// # Panics
/// A body's length is not a multiple of 16 from 32 to [`BODY_MAX`].
pub fn encipher_batch(mut jobs: &mut [Job<'_, UivKey>]) {
    jobs.iter().for_each(|job| check(job.data));
    while let Some(first) = jobs.first_mut() {
        let done = match &first.key.0 {
            // SAFETY: a key for an engine exists only if the CPU has its instructions; lengths are checked.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            UivKind::Wide512(_) => unsafe { wide::of_512::encipher_batch(jobs) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            UivKind::Wide256(_) => unsafe { wide::of_256::encipher_batch(jobs) },
            UivKind::Library(key) => {
                key.encipher(&first.nonce, first.data);
                first.ok = true;
                1
            }
        };
        jobs = &mut jobs[done..];
    }
}

/// Deciphers each body in place and sets `ok`. Nothing is authenticated: an altered body becomes random.
///
/// # Panics
/// A body's length is not a multiple of 16 from 32 to [`BODY_MAX`].
pub fn decipher_batch(mut jobs: &mut [Job<'_, UivKey>]) {
    jobs.iter().for_each(|job| check(job.data));
    while let Some(first) = jobs.first_mut() {
        let done = match &first.key.0 {
            // SAFETY: a key for an engine exists only if the CPU has its instructions; lengths are checked.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            UivKind::Wide512(_) => unsafe { wide::of_512::decipher_batch(jobs) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            UivKind::Wide256(_) => unsafe { wide::of_256::decipher_batch(jobs) },
            UivKind::Library(key) => {
                key.decipher(&first.nonce, first.data);
                first.ok = true;
                1
            }
        };
        jobs = &mut jobs[done..];
    }
}

/// A prepared key of POLYVAL; wiped on drop.
pub struct PolyvalKey(PolyvalKind);

/// A key, by engine.
enum PolyvalKind {
    #[cfg(target_arch = "x86_64")]
    Wide512(wide::HashKey),
    #[cfg(target_arch = "x86_64")]
    Wide256(wide::HashKey),
    Library(library::HashKey),
}

// Each engine's key wipes itself.
impl ZeroizeOnDrop for PolyvalKey {}

impl PolyvalKey {
    /// Prepares a key for the engine of this process.
    pub fn prepare(key: &[u8; BLOCK]) -> Self {
        Self::prepare_for(engine(), key)
    }

    /// Prepares a key for an engine.
    pub fn prepare_for(engine: Engine, key: &[u8; BLOCK]) -> Self {
        PolyvalKey(match engine.0 {
            // SAFETY: an `Engine` exists only if this CPU has its instructions.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Which::Wide512 => PolyvalKind::Wide512(unsafe { wide::HashKey::polyval(key, wide::of_512::LANES) }),
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            Which::Wide256 => PolyvalKind::Wide256(unsafe { wide::HashKey::polyval(key, wide::of_256::LANES) }),
            Which::Portable | Which::RustCrypto => PolyvalKind::Library(library::HashKey::new(key)),
        })
    }

    /// POLYVAL (RFC 8452 3).
    ///
    /// # Panics
    /// The length of `text` is not a multiple of 16.
    pub fn hash(&self, text: &[u8]) -> [u8; BLOCK] {
        assert!(text.len().is_multiple_of(BLOCK), "POLYVAL takes whole blocks, not {} bytes", text.len());
        match &self.0 {
            // SAFETY: a key for an engine exists only if the CPU has its instructions; the length is checked.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            PolyvalKind::Wide512(key) => unsafe { wide::of_512::polyval(key, text) },
            // SAFETY: the same.
            #[cfg(target_arch = "x86_64")]
            #[allow(unsafe_code)]
            PolyvalKind::Wide256(key) => unsafe { wide::of_256::polyval(key, text) },
            PolyvalKind::Library(key) => key.hash(&[0; 0], text),
        }
    }

    /// The tag of a body on a link: the first bytes of [`Self::hash`].
    ///
    /// # Panics
    /// As [`Self::hash`].
    pub fn link_tag(&self, body: &[u8]) -> [u8; LINK_TAG_LEN] {
        *self.hash(body).first_chunk().expect("a block is longer")
    }
}
