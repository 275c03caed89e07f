//! The stages of a cell's path, each alone and in memory. `bench/check` counts their instructions, and `--time`
//! measures their processor time.
//!
//! A stage is prepared and then run, repeatedly. Only the run is measured: it is one function per stage that is never
//! inlined, so that a profiler finds it by its name. Seeds and keys are fixed. No stage calls the kernel.
//!
//! ```text
//! mix     ingress: Gate::admit     pool: Pool::admit, release     seal: Sealer::run
//! ends    wrap: all layers of an entry     frames: datagrams into cells, and out of them
//! ```

mod ends;
mod mix;

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use clap::Args;
use wire::cell::{Class, Shape};
use wire::kdf::Secret;

use crate::hop::cores::own_time;
use crate::stats::{median, range};

/// Cells of a round, as many as a receive call returns and a pool releases under load.
const CELLS: usize = 256;
/// Channels of a round's cells.
const CHANNELS: u32 = 64;
/// Number of channel 0 on a link.
const FIRST_NUMBER: u32 = 1000;

#[derive(Args, Debug)]
pub struct StageArgs {
    /// ingress, pool, seal, wrap or frames
    stage: String,
    /// Number of runs
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print the processor time for a cell instead of the number of cells
    #[arg(long)]
    time: bool,
}

/// Runs the command: a stage, repeatedly.
///
/// # Errors
/// There is no such stage, or its result is wrong.
pub fn run(args: &StageArgs) -> anyhow::Result<()> {
    let mut all = all();
    let names = all.each_ref().map(|(name, _)| *name).join(", ");
    let wanted = all.iter_mut().find(|(name, _)| *name == args.stage);
    let (_, stage) = wanted.with_context(|| format!("unknown stage {:?}: expected one of {names}", args.stage))?;
    let (mut cells, mut times) = (0, Vec::new());
    for _ in 0..args.rounds {
        stage.prepare();
        // Under valgrind the clock must stay unread: rustix takes it from the vDSO, which valgrind does not show.
        let start = args.time.then(own_time);
        let of_round = stage.run();
        if let Some(start) = start {
            times.push((own_time() - start).as_nanos() as f64 / of_round as f64);
        }
        cells += of_round;
    }
    ensure!(stage.is_correct(), "the last round of {} has a wrong result", args.stage);
    if args.time {
        let [least, most] = range(&times);
        println!("{:.1} ns/cell ({least:.1} to {most:.1})", median(times.into_iter()));
    } else {
        println!("{cells}");
    }
    Ok(())
}

/// A stage with its input and output.
trait Stage {
    /// Makes the input of the next run, and discards the output of the last one.
    fn prepare(&mut self);

    /// Runs the stage once. Returns the number of cells.
    fn run(&mut self) -> usize;

    /// True if the output of the last run is right.
    fn is_correct(&mut self) -> bool;
}

/// All stages, in the order of the path. Each name is that of the function that is counted.
fn all() -> [(&'static str, Box<dyn Stage>); 5] {
    [
        ("ingress", Box::new(mix::Ingress::new())),
        ("pool", Box::new(mix::Pooling::new())),
        ("seal", Box::new(mix::Sealing::new())),
        ("wrap", Box::new(ends::Wrapping::new())),
        ("frames", Box::new(ends::Packing::new())),
    ]
}

/// Three mixes and an exit, class L.
fn shape() -> Shape {
    Shape::new(Class::L, 4).expect("four hops are a valid chain")
}

/// A secret for each channel and purpose.
fn secret(channel: u32, purpose: u8) -> Secret {
    let mut bytes = [purpose; 32];
    bytes[..4].copy_from_slice(&channel.to_be_bytes());
    Secret::new(bytes)
}

fn peer() -> SocketAddr {
    ([10, 0, 0, 1], 9).into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_stage_is_correct_in_every_round() {
        for (name, mut stage) in super::all() {
            for round in 0..3 {
                stage.prepare();
                assert!(stage.run() > 0, "{name}, round {round}");
                assert!(stage.is_correct(), "{name}, round {round}");
            }
        }
    }
}
