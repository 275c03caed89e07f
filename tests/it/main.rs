//! Integration tests: one binary, a module per topic.

#[path = "../common/mod.rs"]
mod common;

mod config;
mod demo;
mod documents;
mod init;
mod load;
mod memory;
mod mixing;
mod names;
mod tampering;
mod traffic;
