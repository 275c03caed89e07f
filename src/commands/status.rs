//! `eddy status`: the report of a running node, on one screen or in full.

use std::io::Write;
use std::time::SystemTime;

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
    let text = if args.json {
        serde_json::to_string(&node)? + "\n"
    } else if args.verbose {
        tables::nodes::render(&[node])
    } else {
        // The node runs: a chain file that has changed since is not worth an error here.
        let chain = config.read_chain(SystemTime::now()).ok().map(|chain| chain.short_id());
        tables::summary::render(&node, chain.as_deref())
    };
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}
