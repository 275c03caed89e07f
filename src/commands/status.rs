//! `eddy status`: what a running node says of itself.

use std::io::Write;

use anyhow::Context;

use crate::args::StatusArgs;
use crate::tables;
use eddy_node::config::NodeConfig;
use eddy_node::runtime::status;

/// Asks the node that runs with this configuration.
///
/// # Errors
/// The configuration cannot be read, or no node answers.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let config = NodeConfig::read(&args.config)?;
    let socket = config.status.clone().unwrap_or_default();
    let node = status::ask(&socket).with_context(|| {
        format!(
            "no node answers at {}: start it with `eddy {} --config {}`",
            socket.display(),
            config.role(),
            args.config.display()
        )
    })?;
    let text = if args.json { serde_json::to_string(&node)? + "\n" } else { tables::render(&[node]) };
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}
