//! Who vouches for which key: descriptors, the chain's terms, epoch records and bundles (SPEC 7).
//!
//! An identity key, which may stay offline, signs a node's [`descriptor`]. The signing key in that
//! descriptor signs the node's setup keys of an epoch ([`record`]), and, in every interval, the keys
//! of all hops together ([`bundle`]). This module owns encodings, signatures and the arithmetic of
//! time; who sends what to whom is decided by its neighbours.

pub mod bundle;
pub mod chain;
pub mod descriptor;
mod encoding;
pub mod hop;
pub mod keyring;
pub mod message;
pub mod record;
pub mod signed;
pub mod state;
pub mod status;
pub mod sync;
#[cfg(test)]
mod tests;
pub mod times;
pub mod user;
pub mod view;

pub use chain::{ChainTerms, ClassTerms};
pub use descriptor::{Contact, HopRole, NodeDescriptor, SignedDescriptor, Validity};
pub use encoding::{Malformed, Signer};
pub use record::{EpochRecord, SignedRecord};
pub use state::State;
pub use status::{BundleStatus, HopStatus, RecordStatus, TrustStatus};
pub use times::Times;
pub use view::View;
