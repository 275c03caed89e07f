//! `eddy status`: the report of a running node, on one screen or in full.

use std::io::Write;

use anyhow::Context;

use crate::args::StatusArgs;
use crate::tables;
use eddy_node::config::NodeConfig;
use eddy_node::runtime::status;

/// Asks the node that runs with this configuration, or at this socket.
///
/// # Errors
/// The configuration cannot be read, or no node answers.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let config = args.config.as_deref().map(NodeConfig::read).transpose()?;
    let configured = config.as_ref().and_then(|config| config.status.clone());
    let socket = args.socket.clone().or(configured).unwrap_or_default();
    let node = status::ask(&socket).with_context(|| {
        let start = config.as_ref().map_or("`eddy entry --chain FILE --status PATH`".to_owned(), |config| {
            format!("`eddy {} --config {}`", config.role(), config.path.display())
        });
        format!("no node answers at {}: start it with {start}", socket.display())
    })?;
    let text = if args.json {
        serde_json::to_string(&node)? + "\n"
    } else if args.verbose {
        tables::nodes::render(&[node])
    } else {
        // The node runs: a chain file that has changed since is not worth an error here.
        let chain = config.and_then(|config| config.read_chain().ok()).map(|chain| chain.short_id());
        tables::summary::render(&node, chain.as_deref())
    };
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}
