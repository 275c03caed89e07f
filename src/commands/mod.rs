//! One file per command; and exit codes: 0 success, 1 failure, 2 a mistake in a configuration or on the command line.

pub mod assemble;
pub mod chain;
pub mod config;
pub mod docs;
pub mod doctor;
pub mod forward;
pub mod init;
pub mod inspect;
pub mod keygen;
pub mod meet;
pub mod renew;
pub mod run;
pub mod status;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ErrorKind};

use crate::args::{Cli, Command};
use crate::log;
use eddy_node::StartError;
use eddy_node::config::{ConfigError, NodeRole};

/// The exit code of a mistake in a configuration or on the command line.
pub const MISTAKE: u8 = 2;

/// The parser knows no options of `help`, so `eddy help -h` fails. Returns the error of the same command line without
/// them, which is the help that was requested; other errors as they are.
pub fn help_of_help(error: clap::Error) -> clap::Error {
    let is_help = |arg: &str| arg == "-h" || arg == "--help";
    let wrong = error.get(ContextKind::InvalidSubcommand).map(ToString::to_string);
    if error.kind() != ErrorKind::InvalidSubcommand || wrong.is_none_or(|wrong| !is_help(&wrong)) {
        return error;
    }
    let others = std::env::args_os().filter(|arg| !arg.to_str().is_some_and(is_help));
    Cli::try_parse_from(others).err().unwrap_or(error)
}

/// Answers a command line that cannot be parsed: with one line, or with the help that was requested.
pub fn usage_error(error: &clap::Error) -> ExitCode {
    let help = !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if help {
        // Standard output may be closed.
        let _ = error.print();
        return if error.use_stderr() { ExitCode::from(MISTAKE) } else { ExitCode::SUCCESS };
    }
    log::complain(one_line(error));
    ExitCode::from(MISTAKE)
}

/// The parser's message on one line.
fn one_line(error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(ToString::to_string);
    let argument = context(ContextKind::InvalidArg);
    match (error.kind(), argument, context(ContextKind::InvalidValue), error.source()) {
        (ErrorKind::ValueValidation, Some(argument), Some(value), Some(why)) => {
            let why = why.to_string();
            // Some parsers repeat the value, as they do for files.
            let why = why.split_once(&format!("{value:?}: ")).map_or(why.as_str(), |(_, why)| why);
            format!("invalid {} {:?}: {}", option(&argument), value, expected_range(why))
        }
        (ErrorKind::InvalidValue, Some(argument), Some(value), _) if !value.is_empty() => {
            let possible = context(ContextKind::ValidValue).unwrap_or_default();
            format!("invalid {} {value:?}: expected one of {possible}", option(&argument))
        }
        (ErrorKind::MissingRequiredArgument, Some(argument), ..) => {
            if argument.starts_with("--role") {
                return format!("missing {argument}: e.g. `eddy keygen --role mix --address 192.0.2.1:4700`");
            }
            let usage = context(ContextKind::Usage).unwrap_or_default();
            format!("missing {}; {}", alternatives(&argument), usage.trim().replace("Usage:", "usage:"))
        }
        (ErrorKind::UnknownArgument, Some(argument), ..)
            if !argument.starts_with('-')
                && let Some(command) = command_of(&context(ContextKind::Usage).unwrap_or_default())
                && let Some(option) = file_option(&command, &argument) =>
        {
            format!("unexpected argument {argument:?}: did you mean {option} {argument}?")
        }
        _ => joined(&error.render().to_string()),
    }
}

/// The option with which a command takes its file.
fn file_option(command: &str, file: &str) -> Option<&'static str> {
    match command {
        "entry" | "doctor" if is_chain_file(file) => Some("--chain"),
        "status" | "doctor" | "entry" | "mix" | "exit" | "run" => Some("--config"),
        "meet" => Some("--out"),
        _ => None,
    }
}

/// The command of a usage: `mix` of `Usage: eddy mix --config <FILE>`.
fn command_of(usage: &str) -> Option<String> {
    usage.split_whitespace().skip_while(|word| *word != "Usage:").nth(2).map(str::to_owned)
}

/// True for a chain's public file, by its name or its content.
fn is_chain_file(path: &str) -> bool {
    let has_hops = |text: String| text.lines().any(|line| line.trim() == "[[hop]]");
    path.ends_with("chain.toml") || std::fs::read_to_string(path).is_ok_and(has_hops)
}

/// `--chain <FILE> or --config <FILE>` of `<--chain <FILE>|--config <FILE>>`; other arguments as they are.
fn alternatives(argument: &str) -> String {
    let inner = argument.strip_prefix("<--").and_then(|rest| rest.strip_suffix('>'));
    inner.map_or_else(|| argument.to_owned(), |inner| format!("--{}", inner.replace("|--", " or --")))
}

/// `expected 1 to 3650` of the parser's `0 is not in 1..=3650`; other reasons as they are.
fn expected_range(why: &str) -> String {
    let range = why.split_once(" is not in ").and_then(|(_, range)| range.split_once("..="));
    match range {
        Some((first, last)) => format!("expected {first} to {last}"),
        None if why == "invalid digit found in string" => "expected a whole number".to_owned(),
        None => why.to_owned(),
    }
}

/// `--mixes` of `--mixes <N>`.
fn option(argument: &str) -> &str {
    argument.split(' ').next().unwrap_or_default()
}

/// The lines of the parser's message in one; without the usage where it has a tip.
fn joined(text: &str) -> String {
    let mut line = String::new();
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        let part = part.trim_start_matches("error: ");
        if part.starts_with("For more information") || part.starts_with("Usage: ") && text.contains("tip: ") {
            continue;
        }
        line += match part {
            _ if line.is_empty() => "",
            _ if line.ends_with(':') || part.starts_with('[') => " ",
            _ => "; ",
        };
        line += &part.replace("tip: ", "").replace("Usage: ", "usage: ");
    }
    line
}

/// Runs a command line. An error is one line on standard error.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Init(args) => init::run(&args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Assemble(args) => assemble::run(&args),
        Command::Renew(args) => renew::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Entry(args) => run::entry(args),
        Command::Mix(args) => run::run(Some(NodeRole::Mix), &args.node, run::Extras::default()),
        Command::Exit(args) => run::run(
            Some(NodeRole::Exit),
            &args.node,
            run::Extras { allow: args.allow, deny: args.deny, ..run::Extras::default() },
        ),
        Command::Run(args) => run::run(None, &args.node, run::Extras::default()),
        Command::Status(args) => status::run(&args),
        Command::Meet(args) => meet::run(&args),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_without_its_option_is_recognised() {
        for command in ["status", "doctor", "mix"] {
            let error = Cli::try_parse_from(["eddy", command, "mix1.toml"]).unwrap_err();
            assert_eq!(one_line(&error), "unexpected argument \"mix1.toml\": did you mean --config mix1.toml?");
        }
        let error = one_line(&Cli::try_parse_from(["eddy", "entry", "my-chain.toml"]).unwrap_err());
        assert!(error.ends_with(": did you mean --chain my-chain.toml?"), "{error}");
        let error = one_line(&Cli::try_parse_from(["eddy", "meet", "new", "call.secret"]).unwrap_err());
        assert_eq!(error, "unexpected argument \"call.secret\": did you mean --out call.secret?");
        let error = one_line(&Cli::try_parse_from(["eddy", "chain", "mix1.toml"]).unwrap_err());
        assert!(!error.contains("did you mean"), "{error}");
    }

    #[test]
    fn missing_and_wrong_options_name_what_is_expected() {
        for (line, wanted) in [
            ("eddy entry", "missing --chain <chain.toml> or --config <FILE>; usage: eddy entry"),
            ("eddy status", "missing --config <FILE> or --socket <PATH>; usage: eddy status"),
            ("eddy keygen", "missing --role <mix|exit>: e.g. `eddy keygen --role mix --address"),
            ("eddy keygen --role mix --days 0", "invalid --days \"0\": expected 1 to 3650"),
            ("eddy keygen --role mix --days=-3", "invalid --days \"-3\": expected 1 to 3650"),
            ("eddy keygen --role mix --days x", "invalid --days \"x\": expected a whole number"),
        ] {
            let error = one_line(&Cli::try_parse_from(line.split(' ')).unwrap_err());
            assert!(error.starts_with(wanted), "{line}: {error}");
        }
    }
}
