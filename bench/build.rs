//! Passes the commit to the build, so that results name it.

use std::path::Path;
use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-env-changed=EDDY_COMMIT");
    // The sources, and the commit.
    for source in ["src", "../src", "../node/src", "../wire/src", "../control/src", "../dataplane/src", "../Cargo.lock"]
    {
        println!("cargo::rerun-if-changed={source}");
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    // A source archive has no history: its builder may set EDDY_COMMIT.
    if std::env::var_os("EDDY_COMMIT").is_none()
        && let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"])
    {
        let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_none_or(|changes| !changes.is_empty());
        println!("cargo::rustc-env=EDDY_COMMIT={commit}{}", if changed { ", changed" } else { "" });
    }
}
