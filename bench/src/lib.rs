//! Load generators and measurements.
//!
//! `main.rs` is the command `eddy-bench`. Its tests read files with [`results`].

#![warn(unreachable_pub)]

mod args;
pub mod attack;
pub mod capacity;
mod chain;
mod format;
pub mod hop;
pub mod load;
pub mod machine;
mod nodes;
pub mod paced;
pub mod path;
pub mod peers;
pub mod performance;
pub mod replay;
pub mod report;
pub mod results;
pub mod setup;
mod signals;
pub mod stages;
mod stats;
mod udp;
