//! The command `eddy`.

use std::process::ExitCode;

use clap::Parser;
use eddy::args::Cli;
use eddy::commands;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => commands::run(cli),
        Err(error) => commands::usage_error(&commands::help_of_help(error)),
    }
}
