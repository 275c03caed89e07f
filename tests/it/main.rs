//! Integration tests: one binary, a module per topic.

#[path = "../common/mod.rs"]
mod common;

mod memory;
mod mixing;
