//! The attackers, one file each.

mod batch_tracing;
mod releases;

pub use batch_tracing::BatchTracing;
