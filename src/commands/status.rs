//! `eddy status`: what a running node says of itself.

use std::io::Write;

use anyhow::Context;

use crate::cli::StatusArgs;
use crate::config::NodeConfig;
use crate::{report, status};

/// Asks the node that runs with this configuration.
///
/// # Errors
/// The configuration cannot be read, or no node answers.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let config = NodeConfig::read(&args.config)?;
    let node = status::ask(&config.status).with_context(|| {
        format!(
            "no node answers at {}: start it with `eddy {} --config {}`",
            config.status.display(),
            config.role(),
            args.config.display()
        )
    })?;
    let text = if args.json { serde_json::to_string(&node)? + "\n" } else { report::render(&[node]) };
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}
