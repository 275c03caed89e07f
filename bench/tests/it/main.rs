//! Integration tests: one binary, a module per topic.

mod attack;
mod attack_result;
mod commands;
mod report;
#[path = "../../../tests/common/skipped.rs"]
mod skipped;
