//! Integration tests: one binary, a module per topic.

#[path = "../stand/mod.rs"]
mod stand;

mod age;
mod ledger;
mod steady;
