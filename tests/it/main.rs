//! Integration tests of the command, one module per topic, in one binary.

mod common;
mod config;
mod init;
