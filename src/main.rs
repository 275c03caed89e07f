//! The command `eddy`.

use std::process::ExitCode;

use clap::Parser;
use eddy::cli::Cli;
use eddy::commands;

fn main() -> ExitCode {
    commands::run(Cli::parse())
}
