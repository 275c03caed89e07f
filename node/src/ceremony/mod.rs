//! How strangers make a chain together: each draws the keys of its own node, and only public files change hands
//! (SPEC 7.1 to 7.4).
//!
//! [`keygen`] runs on a node's host and draws all of its keys. [`renew`] signs public data with the identity, which
//! may be offline. [`assemble`] turns the descriptors of several operators into the public file of a chain
//! ([`ChainFile`]), with paced classes as [`profile`] describes them. [`inspect`] says what a public file contains.
//! Each step checks everything before it writes its first file.
//!
//! Owns the text of `identity.key`, `node.key`, `node.desc` and `node.request`. Decides nothing about encodings and
//! signatures, which are those of [`control::trust`].
//!
//! Neighbours: the commands of the same names; [`crate::init`] does all of it for one host; [`crate::config`] has the
//! table of keys and the chain file.

pub mod assemble;
pub mod contact;
pub mod files;
pub mod inspect;
pub mod keygen;
pub mod profile;
pub mod renew;
#[cfg(test)]
mod tests;
mod words;

pub use crate::config::ChainFile;
pub use words::{fingerprint, hex, places, places_and_lanes, span, utc};

/// Days for which a descriptor is valid unless chosen otherwise.
pub const VALID_DAYS: u32 = 90;
/// Most days for which a descriptor may be valid.
pub const VALID_DAYS_MAX: u32 = 3650;
/// Port of a node unless chosen otherwise.
pub const PORT: u16 = 4700;

/// Descriptors are valid from so many seconds before they are made, for clocks that run behind.
const BACKDATED_S: u64 = 3600;
const DAY_S: u64 = 24 * 3600;

/// First and last second of a descriptor that is made at `now_s`.
fn validity(now_s: u64, days: u32) -> (u64, u64) {
    (now_s.saturating_sub(BACKDATED_S), now_s + u64::from(days) * DAY_S)
}
