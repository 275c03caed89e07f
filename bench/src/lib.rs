//! Load for a running chain, and what became of it.
//!
//! Neighbours: `dataplane::sys` for batched system calls. Nothing but the integration tests imports this
//! crate.

pub mod hop;
pub mod load;
pub mod path;
pub mod peers;
pub mod stages;
