//! `eddy-bench peers`: a hop of eddy compared with a hop of others, on this machine and in one run.
//!
//! Cryptography only: eddy, a Sphinx packet, WireGuard and Noise, all in memory. With I/O: a whole mix as in `hop`, and
//! relays that only move the bytes. Every round measures all of them, so that other load of the machine affects
//! all of them alike.
//!
//! The libraries of the others are built only with the feature `peers`.
//!
//! ```text
//! candidate   a hop's cryptography, and its rounds     eddy        eddy's cryptography
//! result      the table                                libraries   Sphinx, WireGuard, Noise
//! ```

#[cfg(feature = "peers")]
mod candidate;
#[cfg(feature = "peers")]
mod eddy;
#[cfg(feature = "peers")]
mod libraries;
#[cfg(feature = "peers")]
mod result;

use clap::Args;

use crate::args::OutputArgs;

#[derive(Args, Debug)]
pub struct PeersArgs {
    /// Rounds of each candidate; the result is their median
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs the command.
///
/// # Errors
/// This build does not have the libraries.
#[cfg(not(feature = "peers"))]
pub fn run(_args: &PeersArgs) -> anyhow::Result<()> {
    anyhow::bail!(
        "this build does not have the libraries to compare with: run \
         `cargo run --release -p eddy-bench --features peers -- peers`"
    )
}

/// Runs the command.
///
/// # Errors
/// The system refuses a resource, the mix ends, or a candidate returns wrong packets.
#[cfg(feature = "peers")]
pub fn run(args: &PeersArgs) -> anyhow::Result<()> {
    wire::gcm::select()?;
    let mut candidates = eddy::candidates();
    candidates.extend(libraries::candidates()?);
    let one = crate::hop::one_row(args.rounds, &mut |round, core| candidate::round(&mut candidates, round, core))?;
    result::PeersResult::of(candidates, one).print(args.output)
}
