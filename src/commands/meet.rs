//! `eddy meet`: makes the secret of a meeting.

use std::fs::{File, Permissions};
use std::io::{IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::Context;
use eddy_node::config::{create_meeting, draw_meeting};

use crate::args::{MeetAction, MeetArgs, MeetNewArgs};

/// Runs the subcommand.
///
/// # Errors
/// No randomness, the file exists or cannot be written, or standard output is closed.
pub fn run(args: &MeetArgs) -> anyhow::Result<()> {
    let MeetAction::New(MeetNewArgs { out }) = &args.action;
    match out {
        Some(file) => Ok(create_meeting(file)?),
        None => print(),
    }
}

fn print() -> anyhow::Result<()> {
    let secret = draw_meeting().context("cannot read random bytes from the system")?;
    let mut out = std::io::stdout();
    // A shell creates files that others may read.
    if let Ok(file) = out.as_fd().try_clone_to_owned().map(File::from)
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        file.set_permissions(Permissions::from_mode(0o600)).context("cannot make the file private")?;
    }
    out.write_all(secret.to_text().as_bytes()).and_then(|()| out.flush()).context("standard output")?;
    if out.is_terminal() {
        eprintln!("This is a new secret. Keep it in a file: eddy meet new --out call.secret");
    }
    Ok(())
}
