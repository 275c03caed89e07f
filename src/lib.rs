//! The command `eddy`: its arguments, its subcommands, its tables.
//!
//! It is a library because `eddy-bench` runs nodes of the same build and prints the same tables. The code of nodes is
//! in `eddy-node`.

pub mod args;
pub mod commands;
pub mod log;
pub mod mos;
pub mod tables;
pub mod version;
