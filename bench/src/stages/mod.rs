//! The stages of a cell's path, each alone and in memory. `bench/check` counts their instructions, and `--time`
//! measures their processor time.
//!
//! A stage is prepared and then run, repeatedly. Only the run is measured: it is one function per stage that is never
//! inlined, so that a profiler finds it by its name. Seeds and keys are fixed. No stage calls the kernel.
//!
//! ```text
//! mix     ingress: Gate::admit     pool: Pool::admit, release     seal: Sealer::run
//! ends    wrap: all layers of an entry     frames: datagrams into cells, and out of them
//! paced   wide: UIV+ of a mix              open: GCM of the same length, to compare
//! ```

mod ends;
mod mix;
mod paced;

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
    /// ingress, pool, seal, wrap, frames, wide or open; several take turns
    #[arg(required = true)]
    stages: Vec<String>,
    /// Number of runs
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Print the processor time for a cell instead of the number of cells
    #[arg(long)]
    time: bool,
}

/// A stage that was asked for, and its results.
struct Chosen {
    name: &'static str,
    stage: Box<dyn Stage>,
    cells: usize,
    times: Vec<f64>,
}

/// Runs the command: stages, repeatedly.
///
/// # Errors
/// There is no such stage, or its result is wrong.
pub fn run(args: &StageArgs) -> anyhow::Result<()> {
    let mut chosen = Vec::new();
    for wanted in &args.stages {
        let all = all();
        let names = all.each_ref().map(|(name, _)| *name).join(", ");
        let found = all.into_iter().find(|(name, _)| name == wanted);
        let (name, stage) = found.with_context(|| format!("unknown stage {wanted:?}: expected one of {names}"))?;
        chosen.push(Chosen { name, stage, cells: 0, times: Vec::new() });
    }
    for _ in 0..args.rounds {
        for Chosen { stage, cells, times, .. } in &mut chosen {
            stage.prepare();
            // Under valgrind the clock must stay unread: rustix takes it from the vDSO, which valgrind does not show.
            let start = args.time.then(own_time);
            let of_round = stage.run();
            if let Some(start) = start {
                times.push((own_time() - start).as_nanos() as f64 / of_round as f64);
            }
            *cells += of_round;
        }
    }
    let alone = chosen.len() == 1;
    for Chosen { name, mut stage, cells, times } in chosen {
        ensure!(stage.is_correct(), "the last round of {name} has a wrong result");
        let name = if alone { String::new() } else { format!("{name:8}") };
        if args.time {
            let [least, most] = range(&times);
            println!("{name}{:.1} ns/cell ({least:.1} to {most:.1})", median(times.into_iter()));
        } else {
            println!("{name}{cells}");
        }
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
fn all() -> [(&'static str, Box<dyn Stage>); 7] {
    [
        ("ingress", Box::new(mix::Ingress::new())),
        ("pool", Box::new(mix::Pooling::new())),
        ("seal", Box::new(mix::Sealing::new())),
        ("wrap", Box::new(ends::Wrapping::new())),
        ("frames", Box::new(ends::Packing::new())),
        ("wide", Box::new(paced::Wide::new())),
        ("open", Box::new(paced::Open::new())),
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
