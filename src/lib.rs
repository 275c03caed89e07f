//! The command `eddy`: its arguments, what each command does, its tables.
//!
//! A library beside the program, since `eddy-bench` starts nodes of the build that it measures and the tests write chains
//! with `init`. What runs a node is in `eddy-node`.

pub mod args;
pub mod commands;
pub mod log;
pub mod tables;
