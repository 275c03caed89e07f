//! Passes the commit to [`version.rs`](src/version.rs) of release builds. Debug builds have none: each commit would
//! rebuild the command and its tests.

use std::path::Path;
use std::process::Command;

/// The output of a git command; `None` without git or a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=EDDY_COMMIT");
    // An archive has no history: set EDDY_COMMIT to build from one.
    if std::env::var_os("EDDY_COMMIT").is_some() || std::env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return;
    }

    for source in ["src", "wire/src", "control/src", "dataplane/src", "node/src", "bench/src", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={source}");
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    if let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) {
        let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|changes| !changes.is_empty());
        println!("cargo::rustc-env=EDDY_COMMIT={commit}{}", if changed { ", changed" } else { "" });
    }
}
