//! What each command does, one file per command; and what the exit code says of it.

pub mod chain;
pub mod config;
pub mod docs;
pub mod doctor;
pub mod forward;
pub mod init;
pub mod run;
pub mod status;

use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::args::{Cli, Command};
use crate::log;
use eddy_node::StartError;
use eddy_node::config::{ConfigError, NodeRole};

/// Exit code of a mistake in a configuration or on the command line.
pub const MISTAKE: u8 = 2;

/// Answers a command line that cannot be read: the parser's words on one line, or the help that was asked
/// for.
pub fn misspoken(error: &clap::Error) -> ExitCode {
    let asked = !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if asked {
        // Whoever wanted to read it may be gone.
        let _ = error.print();
        return if error.use_stderr() { ExitCode::from(MISTAKE) } else { ExitCode::SUCCESS };
    }
    let text = error.render().to_string();
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        let part = part.trim_start_matches("error: ");
        // What is similar is remedy enough.
        if part.starts_with("For more information") || part.starts_with("Usage: ") && text.contains("tip: ") {
            continue;
        }
        let joint = match part {
            _ if line.is_empty() => "",
            _ if line.ends_with(':') || part.starts_with('[') => " ",
            _ => ": ",
        };
        line += joint;
        line += &part.replace("tip: ", "").replace("Usage: ", "write ");
    }
    log::complain(line);
    ExitCode::from(MISTAKE)
}

/// Runs a command line. Complaints are one line on standard error.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Init(args) => init::run(&args),
        Command::Entry(args) => run::run(
            Some(NodeRole::Entry),
            &args.node,
            run::Extras { forwards: args.forwards, pymix: args.pymix, socks: args.socks, ..run::Extras::default() },
        ),
        Command::Mix(args) => run::run(Some(NodeRole::Mix), &args.node, run::Extras::default()),
        Command::Exit(args) => run::run(
            Some(NodeRole::Exit),
            &args.node,
            run::Extras { allow: args.allow, deny: args.deny, ..run::Extras::default() },
        ),
        Command::Run(args) => run::run(None, &args.node, run::Extras::default()),
        Command::Status(args) => status::run(&args),
        Command::Forward(args) => forward::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Chain(args) => chain::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Completions { shell } => docs::completions(shell),
        Command::Man { dir } => docs::manual(&dir),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    log::complain(format_args!("{error:#}"));
    if error
        .chain()
        .any(|cause| cause.is::<ConfigError>() || matches!(cause.downcast_ref(), Some(StartError::Config(_))))
    {
        ExitCode::from(MISTAKE)
    } else {
        ExitCode::FAILURE
    }
}
