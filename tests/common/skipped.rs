//! How a test reports that this host cannot run it. The unit tests of `dataplane` include this file, too.

use std::io::Write;

/// Prints that the calling test is skipped, with what enables it. Does not use `eprintln!`, because the test harness
/// captures the output of that and drops it when the test passes.
pub(crate) fn skipped(why: impl std::fmt::Display) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Nothing to do if standard error is closed.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}
