//! `eddy status`: the report of a running node, on one screen or in full.

use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;

use crate::args::StatusArgs;
use crate::tables;
use eddy_node::config::{NodeConfig, NodeRole};
use eddy_node::runtime::status;

/// The error of a command that gets no answer at a node's Unix socket; `start` is the command that starts it.
pub(super) fn unanswered(socket: &Path, role: NodeRole, start: &str, why: io::Error) -> anyhow::Error {
    let at = socket.display();
    let what = match why.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            format!("no node answers at {at}: start it with {start}")
        }
        ErrorKind::PermissionDenied => {
            let owner = std::fs::symlink_metadata(socket).map(|socket| format!(" (user id {})", socket.uid()));
            let owner = owner.unwrap_or_default();
            format!("this user may not use {at}: run the command with sudo, or as the user who runs the {role}{owner}")
        }
        _ => {
            format!("the {role} at {at} does not answer as expected: check its log, and that both are the same version")
        }
    };
    anyhow::Error::new(why).context(what)
}

/// Asks the node that runs with this configuration, or at this socket.
///
/// # Errors
/// The configuration cannot be read, or no node answers.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let config = args.config.as_deref().map(NodeConfig::read).transpose()?;
    let configured = config.as_ref().and_then(|config| config.status.clone());
    let socket = args.socket.clone().or(configured).unwrap_or_default();
    let node = status::ask(&socket).map_err(|why| {
        let role = config.as_ref().map_or(NodeRole::Entry, NodeConfig::role);
        let start = config.as_ref().map_or("`eddy entry --chain FILE --status PATH`".to_owned(), |config| {
            format!("`eddy {role} --config {}`", config.path.display())
        });
        unanswered(&socket, role, &start, why)
    })?;
    let text = if args.json && args.path {
        tables::path::json(&node)? + "\n"
    } else if args.json {
        serde_json::to_string(&node)? + "\n"
    } else if args.path {
        tables::by_class(&node, tables::path::render)
    } else if args.verbose {
        tables::by_class(&node, |node| tables::nodes::render(std::slice::from_ref(node)))
    } else {
        tables::by_class(&node, tables::summary::render)
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unanswered_command_names_its_cause() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("mix1.sock");
        std::fs::write(&socket, "").unwrap();
        let said = |kind: ErrorKind| {
            format!("{:#}", unanswered(&socket, NodeRole::Mix, "`eddy mix --config mix1.toml`", kind.into()))
        };
        let denied = said(ErrorKind::PermissionDenied);
        assert!(denied.contains("this user may not use ") && denied.contains("with sudo"), "{denied}");
        assert!(denied.contains("who runs the mix (user id ") && !denied.contains("start it"), "{denied}");
        for kind in [ErrorKind::NotFound, ErrorKind::ConnectionRefused] {
            assert!(said(kind).contains("start it with `eddy mix --config mix1.toml`"), "{}", said(kind));
        }
        assert!(!said(ErrorKind::TimedOut).contains("start it"));
    }
}
