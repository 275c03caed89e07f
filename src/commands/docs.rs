//! `eddy completions` and `eddy man`: the command line in other forms.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::args::Cli;
use eddy_node::config::ConfigError;

/// Prints a completion script.
///
/// # Errors
/// Standard output is closed.
pub fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::description(), "eddy", &mut script);
    std::io::stdout().write_all(&script).context("standard output")
}

/// Writes a manual page per command into a folder.
///
/// # Errors
/// A file cannot be written.
pub fn manual(dir: &Path) -> anyhow::Result<()> {
    let done = std::fs::create_dir_all(dir).and_then(|()| {
        let mut command = Cli::description().disable_help_subcommand(true);
        command.build();
        pages(&command, dir)
    });
    done.map_err(|why| ConfigError::Unwritable { path: dir.to_owned(), why }.into())
}

/// The page of a command, and those of its subcommands.
fn pages(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        pages(subcommand, dir)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    std::fs::write(dir.join(format!("{name}.1")), page(command.clone())?)
}

/// What clap_mangen writes, except that examples keep their lines: it would fill them like prose.
fn page(command: clap::Command) -> std::io::Result<Vec<u8>> {
    let subcommands = command.has_subcommands();
    let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let man = Man::new(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    sections(&help).to_writer(&mut page)?;
    Ok(page)
}

/// A help text as sections: `Examples:` begins one, indented lines are blocks, the rest is prose.
fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut block = false;
    for (i, line) in help.lines().enumerate() {
        let indented = line.starts_with(' ');
        if indented != block && !line.is_empty() {
            roff.control(if indented { "nf" } else { "fi" }, []);
            block = indented;
        }
        let title = line.strip_suffix(':').filter(|title| !indented && title.split(' ').count() <= 2);
        match title {
            Some(title) => roff.control("SH", [title.to_uppercase().as_str()]),
            None if line.is_empty() => roff.control("PP", []),
            None => {
                if i == 0 {
                    roff.control("SH", ["NOTES"]);
                }
                roff.text([roman(line.strip_prefix("  ").unwrap_or(line))])
            }
        };
    }
    if block {
        roff.control("fi", []);
    }
    roff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_in_manual_pages_keep_their_lines() {
        let dir = tempfile::tempdir().unwrap();
        manual(dir.path()).unwrap();
        let page = std::fs::read_to_string(dir.path().join("eddy-init.1")).unwrap();
        let examples = page.split(".SH EXAMPLES\n").nth(1).expect("a section of its own");
        let block = examples.split(".nf\n").nth(1).and_then(|rest| rest.split(".fi\n").next()).unwrap();
        assert!(block.contains("Three mixes and an exit, all on 127.0.0.1:\n  eddy init demo\n"), "{page}");
        for page in ["eddy.1", "eddy-forward-add.1", "eddy-chain.1"] {
            assert!(dir.path().join(page).exists(), "{page}");
        }
    }
}
