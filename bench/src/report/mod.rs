//! `eddy-bench report`: one page from what the other commands left behind.
//!
//! The page holds all that it shows: it fetches nothing, runs no scripts, and can be mailed or printed. What comes
//! from files is text to it and never markup.
//!
//! `read` takes files apart, `nodes` knows what a node says of itself, `plot` draws, `page` puts it together.

mod nodes;
mod page;
mod plot;
mod read;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;

use self::read::Sources;

/// What `report` is told.
#[derive(Args, Debug)]
pub struct ReportArgs {
    /// NAME.json files of load, replay and capacity; what capacity, hop and path printed with --json
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The page
    #[arg(long, default_value = "report.html", value_name = "FILE")]
    pub out: PathBuf,
    /// What it is called
    #[arg(long, default_value = "eddy, measured", value_name = "TEXT")]
    pub title: String,
}

/// Runs the command.
///
/// # Errors
/// A file cannot be read or is none of ours, or the page cannot be written.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let ReportArgs { files, out, title } = args;
    ensure!(
        !files.iter().any(|file| same(file, out)),
        "{} would be overwritten by the page: say another --out",
        out.display()
    );
    let sources = Sources::read(files)?;
    let page = page::write(title, &sources)?;
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir());
    if let Some(folder) = folder {
        anyhow::bail!("cannot write {}: there is no folder {}: make it first", out.display(), folder.display());
    }
    fs::write(out, page).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}: {}", out.display(), sources.summary());
    Ok(())
}

/// Whether both are one file that is there.
fn same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
