//! Integration tests: one binary, a module per topic.

#[path = "../common/mod.rs"]
mod common;

mod appports;
mod badlinks;
mod bounds;
mod client;
mod config;
mod demo;
mod doctor;
mod documents;
mod enduring;
mod forwards;
mod gso;
mod hostile;
mod init;
mod lanes;
mod limits;
mod load;
mod log;
mod many;
mod memory;
mod mistakes;
mod mixing;
mod names;
mod policy;
mod soak;
mod socks;
mod supervised;
mod tampering;
mod tap;
mod tidy;
mod told;
mod traffic;
mod unkillable;
