//! `eddy completions` and `eddy man`: the command line and the table of configuration keys in other forms.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::config;
use crate::args::Cli;
use eddy_node::config::ConfigError;
use eddy_node::config::table::{ALL_FILES, files};

/// Prints a completion script.
///
/// # Errors
/// Standard output is closed.
pub fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::description(), "eddy", &mut script);
    std::io::stdout().write_all(&script).context("cannot write to standard output")
}

/// Writes the manual pages into a folder: one per command, and eddy.toml(5). Prints how to read them.
///
/// # Errors
/// A file cannot be written.
pub fn manual(dir: &Path) -> anyhow::Result<()> {
    let done = std::fs::create_dir_all(dir).and_then(|()| {
        let mut command = Cli::description().disable_help_subcommand(true);
        command.build();
        let count = pages(&command, dir)?;
        std::fs::write(dir.join("eddy.toml.5"), configuration().render())?;
        Ok(count + 1)
    });
    let count = done.map_err(|why| ConfigError::Unwritable { path: dir.to_owned(), why })?;
    let said = format!("Wrote {count} pages; read the first one with `man -l {}`\n", dir.join("eddy.1").display());
    std::io::stdout().write_all(said.as_bytes()).context("cannot write to standard output")
}

/// The page of a command, and those of its subcommands. Returns their number.
fn pages(command: &clap::Command, dir: &Path) -> std::io::Result<usize> {
    let mut count = 1;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        count += pages(subcommand, dir)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    std::fs::write(dir.join(format!("{name}.1")), page(command.clone())?)?;
    Ok(count)
}

/// The page of clap_mangen, except that examples and pictures keep their lines, which clap_mangen would fill like
/// prose, and that options which `-h` leaves out keep their descriptions.
fn page(command: clap::Command) -> std::io::Result<Vec<u8>> {
    let command = command.mut_args(|arg| arg.hide_short_help(false));
    let subcommands = command.has_subcommands();
    let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let man = Man::new(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    sections(&about, "DESCRIPTION").to_writer(&mut page)?;
    man.render_options_section(&mut page)?;
    if subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    sections(&help, "NOTES").to_writer(&mut page)?;
    Ok(page)
}

/// A help text as sections: `Examples:` begins one, indented lines are blocks, the rest is prose. Without a title in
/// its first line it begins with the section `first`.
fn sections(help: &str, first: &str) -> Roff {
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
                    roff.control("SH", [first]);
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

/// eddy.toml(5), from the table of keys.
fn configuration() -> Roff {
    let mut roff = Roff::new();
    roff.control("TH", ["eddy.toml", "5"]);
    roff.control("SH", ["NAME"]).text([roman("eddy.toml - configuration files of eddy nodes")]);
    roff.control("SH", ["DESCRIPTION"]).text([roman(
        "Every node has a configuration (entry.toml, mixN.toml or exit.toml), the chain's public file (chain.toml) and a \
         key file of its own. eddy init writes them. All are TOML. Paths are relative to the folder of the configuration.",
    )]);
    for (file, keys) in ALL_FILES {
        roff.control("SH", [*file]);
        for key in *keys {
            roff.control("TP", []).text([bold(key.name)]).text([roman(key.doc)]);
            let values = format!("Value: {}. Default: {}.", key.kind.expected(), config::default(key));
            roff.control("sp", []).text([roman(values)]);
            if *file == ALL_FILES[0].0 {
                roff.control("br", []).text([roman(format!("In: {}.", files(key.roles)))]);
            }
            roff.control("br", []).text([roman(format!("Example: {}", key.line()))]);
        }
    }
    roff.control("SH", ["SEE ALSO"]).text([roman("eddy(1), eddy-init(1), eddy-config(1)")]);
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

    #[test]
    fn every_option_of_manual_pages_has_a_description() {
        fn check(command: &clap::Command) {
            let page = String::from_utf8(page(command.clone()).unwrap()).unwrap();
            // A paragraph is its tag on one line, and the text from the next one on.
            for tagged in page.split("\n.TP\n").skip(1) {
                let (tag, text) = tagged.split_once('\n').unwrap();
                assert!(text.starts_with(|c: char| c != '.'), "{}: {tag} has no description", command.get_name());
            }
            command.get_subcommands().for_each(check);
        }
        let mut command = Cli::description().disable_help_subcommand(true);
        command.build();
        check(&command);
    }

    #[test]
    fn picture_of_a_chain_keeps_its_line() {
        let dir = tempfile::tempdir().unwrap();
        manual(dir.path()).unwrap();
        let page = std::fs::read_to_string(dir.path().join("eddy.1")).unwrap();
        let block = page.split(".nf\n").nth(1).and_then(|rest| rest.split(".fi\n").next()).unwrap();
        let picture = block.lines().next().unwrap().replace('\\', "");
        assert!(picture.contains("<-> mixN <-> exit <-> destination"), "{page}");
        // man(1) indents by 7 columns and leaves 2 free.
        assert!(picture.chars().count() <= 80 - 7 - 2, "{picture}");
    }

    #[test]
    fn configuration_page_has_every_key() {
        let page = configuration().render();
        for key in ALL_FILES.iter().flat_map(|(_, keys)| keys.iter()) {
            let name = format!("\\fB{}\\fR", key.name);
            assert!(page.contains(&name), "{name}: {page}");
        }
    }
}
