//! `eddy completions` and `eddy man`: the command's description in other forms.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap_complete::Shell;

use crate::args::Cli;
use eddy_node::config::ConfigError;

/// Prints a completion script.
///
/// # Errors
/// Standard output is gone.
pub fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::description(), "eddy", &mut script);
    std::io::stdout().write_all(&script).context("standard output")
}

/// Writes a manual page per command into a folder.
///
/// # Errors
/// It cannot be written to.
pub fn manual(dir: &Path) -> anyhow::Result<()> {
    let done = std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(Cli::description(), dir));
    done.map_err(|why| ConfigError::Unwritable { path: dir.to_owned(), why }.into())
}
