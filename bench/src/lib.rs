//! Load for a running chain, and what became of it.
//!
//! Neighbours: `dataplane::sys` for batched system calls. Nothing but the integration tests imports this
//! crate.

pub mod capacity;
pub mod chain;
pub mod hop;
pub mod load;
pub mod machine;
pub mod path;
pub mod peers;
pub mod performance;
pub mod replay;
pub mod report;
pub mod results;
pub mod signals;
pub mod stages;
