//! The version of this build, for `eddy --version` and the results of `eddy-bench`.

use std::sync::LazyLock;

/// The package's version.
pub const SHORT: &str = env!("CARGO_PKG_VERSION");

/// The commit of a release build, if git or `EDDY_COMMIT` named one at build time.
pub const COMMIT: Option<&str> = option_env!("EDDY_COMMIT");

/// The version with its commit: `0.1.0 (0d3b2701b5aa)`.
pub fn with_commit() -> String {
    COMMIT.map_or_else(|| SHORT.to_owned(), |commit| format!("{SHORT} ({commit})"))
}

/// What `eddy --version` prints after the name. The engine depends on this host and on `EDDY_AEAD`.
pub fn long() -> &'static str {
    static LONG: LazyLock<String> = LazyLock::new(|| {
        let engine = wire::gcm::select().map_or_else(|why| why.to_string(), |engine| engine.name().to_owned());
        format!("{SHORT}\ncommit  {}\nengine  {engine}", COMMIT.unwrap_or("unknown"))
    });
    &LONG
}
