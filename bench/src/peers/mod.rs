//! `eddy-bench peers`: eddy beside what others do for a packet at a hop, on this machine and in this run.
//!
//! Two kinds of rows. Cryptography only: eddy's own, a Sphinx packet, WireGuard, Noise, all in memory. With I/O: a whole
//! mix as `hop` measures it, beside relays that only move the bytes. Every round takes all of them in turn, so that what
//! the machine does meanwhile falls on all alike.
//!
//! The libraries of others are built with the feature `peers` only; without it the command says so.
//!
//! ```text
//! contest    what a contestant is, and its rounds     eddy    our own
//! others     Sphinx, WireGuard, Noise                 rows    the table
//! ```

#[cfg(feature = "peers")]
mod contest;
#[cfg(feature = "peers")]
mod eddy;
#[cfg(feature = "peers")]
mod others;
#[cfg(feature = "peers")]
mod rows;

use clap::Args;

/// What `peers` is told.
#[derive(Args, Debug)]
pub struct PeersArgs {
    /// Rounds in which all take turns; medians are told
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Print one JSON object as the last line instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
///
/// # Errors
/// This build is without the others' libraries.
#[cfg(not(feature = "peers"))]
pub fn run(_args: &PeersArgs) -> anyhow::Result<()> {
    anyhow::bail!(
        "peers needs the libraries that it compares with, which this build is without: \
         cargo run --release -p eddy-bench --features peers -- peers"
    )
}

/// Runs the command.
///
/// # Errors
/// The system refuses what is needed, the mix ends, or somebody's packets do not come out right.
#[cfg(feature = "peers")]
pub fn run(args: &PeersArgs) -> anyhow::Result<()> {
    wire::gcm::select()?;
    let mut contest = contest::Contest::new()?;
    let one = crate::hop::one(args.rounds, &mut |round, core| contest.round(round, core))?;
    rows::Rows::of(contest, one).print(args.json)
}
