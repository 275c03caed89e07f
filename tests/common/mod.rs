//! What several topics share.

pub mod attack;
pub mod command;
pub mod flows;
pub mod limit;
pub mod memchain;
pub mod nameserver;
pub mod network;
pub mod nodes;
pub mod process;
pub mod tap;
pub mod traffic;

/// Prints that the calling test is skipped, with what enables it. Not by `eprintln!`, which a test that passes prints
/// nothing with.
pub fn skipped(why: impl std::fmt::Display) {
    use std::io::Write;
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Nothing to do if standard error is closed.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}
