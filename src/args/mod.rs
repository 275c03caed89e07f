//! The command line: arguments and their help.
//!
//! `-h` fits a screen of 80 x 24 for every command: options for experts are left out (`hide_short_help`).
//! `--help` and the manual pages have all options, longer explanations and examples.
//! [`crate::commands`] has one file per command with what the arguments do.

mod ceremony;
mod chain;
mod class;
mod inspect;
mod node;

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, ValueHint};

pub use ceremony::{AssembleArgs, InspectArgs, KeygenArgs, RenewArgs};
pub use chain::{ChainArgs, ChainClass, InitArgs, ShapeArgs};
pub use inspect::{ConfigAction, ConfigArgs, DoctorArgs, ForwardAction, ForwardArgs, StatusArgs};
pub use node::{
    EntryArgs, ExitArgs, MEET_HELP, MeetAction, MeetArgs, MeetNewArgs, MixArgs, NodeArgs, ProcessArgs, RunArgs,
};

use crate::version;

const ABOUT: &str = "A mix chain for streaming-grade UDP: voice, video, games, QUIC, WireGuard";

const LONG_ABOUT: &str = "\
A mix chain for streaming-grade UDP: voice, video, games, QUIC, WireGuard.

A program sends datagrams to the ENTRY. They cross one to seven MIXES and
leave at the EXIT; answers return the same way. Mixes hold cells of equal length
for a few milliseconds and release them shuffled, so that no single node sees
both who sends and where to.

    program <-> entry <-> mix1 <-> ... <-> mixN <-> exit <-> destination";

const EXAMPLES: &str = "\
Examples:
  Run a whole chain on this host and check it:
    eddy chain

  Create a chain, run its nodes, and send UDP through it:
    eddy init demo --mixes 3
    eddy doctor --config demo/mix1.toml
    eddy mix --config demo/mix1.toml
    eddy exit --config demo/exit.toml --allow 127.0.0.0/8
    eddy entry --config demo/entry.toml --forward 127.0.0.1:5000=127.0.0.1:6000
    eddy status --config demo/entry.toml
  (mix2 and mix3 like mix1; nodes start in any order)

  Make a chain of several operators, each with their own keys:
    eddy keygen --role mix --address 192.0.2.1:4700 --out mymix
    eddy assemble a.desc b.desc c.desc --exit exit.desc
    eddy inspect chain.toml

  Print a completion script for a shell, or write the manual pages:
    eddy completions bash
    eddy man pages

Environment:
  EDDY_LOG   what nodes log, e.g. debug (see `eddy mix --help`, --log)
  EDDY_AEAD  AEAD engine: wide512, wide256, portable or rustcrypto
             [default: the fastest that this CPU runs]
  NO_COLOR   if set, output has no colour

Exit codes:
  0  success
  1  failure
  2  mistake in a configuration or on the command line";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "eddy", version = version::SHORT, long_version = version::long(), about = ABOUT,
          long_about = LONG_ABOUT, after_long_help = EXAMPLES, max_term_width = 80)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole chain on this host and check it
    Chain(Box<ChainArgs>),
    /// Create the files of a chain
    Init(InitArgs),
    /// Draw the keys of one node, for a chain of several operators
    Keygen(KeygenArgs),
    /// Make a chain file from the descriptors of several operators
    Assemble(AssembleArgs),
    /// Sign the next descriptor of a node with its identity
    Renew(RenewArgs),
    /// Print what a descriptor or a chain file says
    Inspect(InspectArgs),
    /// Run an entry: applications send their datagrams to it
    Entry(EntryArgs),
    /// Run a mix
    Mix(MixArgs),
    /// Run an exit: it exchanges datagrams with the destinations
    Exit(ExitArgs),
    /// Run the node that a configuration describes, whatever its role
    #[command(hide = true)]
    Run(RunArgs),
    /// Make the secret of a meeting: two users who call each other
    Meet(MeetArgs),
    /// Add, remove or list the forwards of a running entry
    Forward(ForwardArgs),
    /// Print the state of a running node
    Status(StatusArgs),
    /// Check this host for problems and print fixes
    Doctor(DoctorArgs),
    /// Explain, check or show a node's configuration
    Config(ConfigArgs),
    /// Print a completion script for a shell
    #[command(hide = true)]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages to a folder
    #[command(hide = true)]
    Man {
        /// The folder; created if it does not exist
        #[arg(value_hint = ValueHint::DirPath)]
        dir: PathBuf,
    },
}

impl Cli {
    /// The command's own description, for completions and manual pages. They have the commands, too, for which a screen
    /// of `-h` has no room.
    pub fn description() -> clap::Command {
        let shown = |command: clap::Command| command.hide(false);
        ["run", "completions", "man"].into_iter().fold(Cli::command(), |all, name| all.mut_subcommand(name, shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Checks the help of a command and of its subcommands: `-h` or `--help`.
    fn check(mut command: clap::Command, long: bool, most_lines: usize) {
        let text = if long { command.render_long_help() } else { command.render_help() }.to_string();
        let name = command.get_name();
        assert!(text.lines().count() <= most_lines, "{name}: {} lines\n{text}", text.lines().count());
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{name}: {line}");
        }
        for subcommand in command.get_subcommands() {
            check(subcommand.clone().term_width(80), long, most_lines);
        }
    }

    #[test]
    fn short_help_fits_80x24() {
        check(Cli::command().term_width(80), false, 24);
    }

    #[test]
    fn long_help_fits_80_columns() {
        check(Cli::command().term_width(80), true, 160);
    }
}
