//! System calls: with `wire::gcm` the only place where unsafe code is allowed.
//!
//! One call per function, behind a safe signature. Neighbours: [`crate::socket`] and [`crate::runner`].

mod arena;
mod clock;
mod errqueue;
mod message;
mod mmsg;
mod prefetch;
mod socket;
mod steer;
mod uring;
mod waker;

pub use arena::Buffer;
pub(crate) use arena::{arena, on_huge_pages};
pub use clock::is_clock_kept;
pub(crate) use clock::last_waited;
pub use errqueue::Unreachable;
pub(crate) use errqueue::read_error;
pub use message::{GRO_BYTES_MAX, GSO_BYTES_MAX, GSO_SEGMENTS_MAX, MESSAGES_MAX, Message, PIECES_MAX, Received};
pub use mmsg::{recv, send};
pub use prefetch::prefetch;
pub(crate) use prefetch::prefetch_lines;
#[cfg(test)]
pub(crate) use socket::refuse_gso;
pub use socket::{enable_gro, is_half_full, kernel_drops, report_errors, size_receive_buffer};
pub use steer::{Steering, refuse_all, steer};
pub use uring::Ring;
pub use waker::Waker;
