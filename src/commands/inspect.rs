//! `eddy inspect`: prints what a public file says.

use std::io::Write as _;

use anyhow::Context;
use eddy_node::ceremony::inspect::PublicFile;
use eddy_node::config::wall_s;

use crate::args::InspectArgs;

/// Runs the command.
///
/// # Errors
/// The file was changed, or is not a public file of eddy.
pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let now_s = wall_s();
    let file = PublicFile::read(&args.file, now_s)?;
    let text = if args.json { file.json(now_s).to_string() + "\n" } else { file.text(&args.file, now_s) };
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}
