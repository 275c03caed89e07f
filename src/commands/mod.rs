//! What each command does, one file per command; and what the exit code says of it.

pub mod chain;
pub mod docs;
pub mod init;
pub mod run;
pub mod status;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::config::{ConfigError, NodeRole};

/// Exit code of a mistake in a configuration or on the command line.
pub const MISTAKE: u8 = 2;

/// Runs a command line. Complaints are one line on standard error.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Init(args) => init::run(&args),
        Command::Entry(args) => run::run(
            NodeRole::Entry,
            &args.node,
            run::Extras { forwards: args.forwards, pymix: args.pymix, ..run::Extras::default() },
        ),
        Command::Mix(args) => run::run(NodeRole::Mix, &args.node, run::Extras::default()),
        Command::Exit(args) => run::run(
            NodeRole::Exit,
            &args.node,
            run::Extras { allow: args.allow, deny: args.deny, ..run::Extras::default() },
        ),
        Command::Status(args) => status::run(&args),
        Command::Chain(args) => chain::run(&args),
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { dir } => docs::manual(&dir),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("eddy: {error:#}");
    if error.chain().any(|cause| cause.is::<ConfigError>() || cause.is::<control::BadConfig>()) {
        ExitCode::from(MISTAKE)
    } else {
        ExitCode::FAILURE
    }
}
