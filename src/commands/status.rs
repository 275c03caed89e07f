//! `eddy status`: the report of a running node, on one screen or in full.

use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;

use crate::args::StatusArgs;
use crate::tables;
use eddy_node::config::{NodeConfig, NodeRole};
use eddy_node::runtime::status;

/// The error of a command that gets no answer at a node's Unix socket.
pub(super) fn unanswered(socket: &Path, role: NodeRole, config: &Path, why: io::Error) -> anyhow::Error {
    let (at, file) = (socket.display(), config.display());
    let what = match why.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            format!("no node answers at {at}: start it with `eddy {role} --config {file}`")
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

/// Asks the node that runs with this configuration.
///
/// # Errors
/// The configuration cannot be read, or no node answers.
pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let config = NodeConfig::read(&args.config)?;
    let socket = config.status.clone().unwrap_or_default();
    let node = status::ask(&socket).map_err(|why| unanswered(&socket, config.role(), &args.config, why))?;
    let text = if args.json {
        serde_json::to_string(&node)? + "\n"
    } else if args.verbose {
        tables::nodes::render(&[node])
    } else {
        // The node runs: a chain file that has changed since is not worth an error here.
        let chain = config.read_chain(SystemTime::now()).ok().map(|chain| chain.short_id());
        tables::summary::render(&node, chain.as_deref())
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
        let said =
            |kind: ErrorKind| format!("{:#}", unanswered(&socket, NodeRole::Mix, Path::new("mix1.toml"), kind.into()));
        let denied = said(ErrorKind::PermissionDenied);
        assert!(denied.contains("this user may not use ") && denied.contains("with sudo"), "{denied}");
        assert!(denied.contains("who runs the mix (user id ") && !denied.contains("start it"), "{denied}");
        for kind in [ErrorKind::NotFound, ErrorKind::ConnectionRefused] {
            assert!(said(kind).contains("start it with `eddy mix --config mix1.toml`"), "{}", said(kind));
        }
        assert!(!said(ErrorKind::TimedOut).contains("start it"));
    }
}
