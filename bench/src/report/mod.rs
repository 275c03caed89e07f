//! `eddy-bench report`: one HTML page from the results of the other commands.
//!
//! The page is self-contained: it fetches nothing, runs no scripts, and can be mailed or printed. Text from files is
//! escaped, so it never becomes markup.
//!
//! ```text
//! sources   reads the files                      plot    draws SVG
//! sections  one module for each section          table   tables and figures
//! page      the page around the sections
//! ```

mod format;
mod page;
mod plot;
mod sections;
mod sources;
mod streams;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use self::sources::Sources;

#[derive(Args, Debug)]
pub struct ReportArgs {
    /// NAME.json of load, replay or capacity, or what attack, capacity, hop or path printed with --json
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// File to write the page to
    #[arg(long, default_value = "report.html", value_name = "FILE")]
    out: PathBuf,
    /// Title of the page
    #[arg(long, default_value = "eddy measurements", value_name = "TEXT")]
    title: String,
}

/// Runs the command.
///
/// # Errors
/// A file cannot be read or does not hold results, or the page cannot be written.
pub fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let ReportArgs { files, out, title } = args;
    if files.iter().any(|file| is_same(file, out)) {
        bail!("the page would overwrite its input {}: choose another --out", out.display());
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir());
    if let Some(folder) = folder {
        bail!("cannot write {}: create the folder {} first", out.display(), folder.display());
    }
    let sources = Sources::read(files)?;
    let page = page::write(title, &sources)?;
    fs::write(out, page).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}: {}", out.display(), sources.summary());
    Ok(())
}

/// True if both paths name one existing file.
fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
