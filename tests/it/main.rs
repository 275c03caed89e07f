//! Integration tests: one binary, a module per topic.

#[path = "../common/mod.rs"]
mod common;

mod appports;
mod badlinks;
mod config;
mod demo;
mod init;
mod load;
mod memory;
mod mixing;
mod names;
mod tap;
mod traffic;
