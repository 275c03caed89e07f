//! Integration tests: one binary, a module per topic.

#[path = "../common/mod.rs"]
mod common;

mod config;
mod demo;
mod init;
mod memory;
mod mixing;
