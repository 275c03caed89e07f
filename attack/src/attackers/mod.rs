//! The attackers, one file each.

mod batch_tracing;
mod lateness;
mod releases;

pub use batch_tracing::BatchTracing;
pub use lateness::Lateness;
