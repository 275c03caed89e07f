//! Integration tests: one binary, a module per topic.

mod commands;
mod report;
