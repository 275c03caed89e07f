//! eddy as a library: an entry in your own process, and datagrams through its chain.
//!
//! Programs use [`client`]. Everything else is what the command `eddy` runs nodes with; it is public for that command
//! and for the tests, hidden here, and may change at any time.

pub mod client;
#[doc(hidden)]
pub mod config;
mod error;
#[doc(hidden)]
pub mod init;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod runtime;

pub use error::{NodeDied, StartError};
