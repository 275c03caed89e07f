//! Integration tests: one binary, a module per topic.

#[path = "../common/mod.rs"]
mod common;

mod age;
mod app_ports;
mod bad_links;
mod bounds;
mod ceremony;
mod chain;
mod client;
mod config;
mod docs;
mod doctor;
mod endurance;
mod epochs;
mod forwards;
mod gso;
mod hostile_input;
mod icmp;
mod init;
mod limits;
mod load;
mod log;
mod mistakes;
mod mixing;
mod model;
mod multicore;
mod names;
mod paced_chain;
mod paced_failures;
mod paced_profiles;
mod paced_properties;
mod paced_setup_order;
mod policy;
mod renewal;
mod robustness;
mod scale;
mod soak;
mod socks;
mod starvation;
mod systemd;
mod tampering;
mod tap;
mod tidy;
mod traffic;
mod trust;
