//! The stages of a cell's path, each alone and in memory: what `bench/check` counts instructions of, and what
//! `cargo bench --bench stages` takes the time of.
//!
//! A stage is prepared and then run, over and over. Only the running is measured: one function per stage, never inlined,
//! so that a profiler finds it by its name. Seeds and keys are fixed. No stage talks to the kernel.
//!
//! ```text
//! mix     ingress: Gate::admit     pool: Pool::admit, release     seal: Sealer::run
//! ends    wrap: all layers of the entry on     frames: datagrams into cells, and out of them
//! ```

mod ends;
mod mix;

use std::net::SocketAddr;

use anyhow::{Context, ensure};
use clap::Args;
use wire::cell::{Class, Shape};
use wire::kdf::Secret;

/// Cells of a round: what a receive call brings, and what a pool of the default kind releases under load.
pub const CELLS: usize = 256;
/// Channels that a round's cells belong to, in turn.
const CHANNELS: u32 = 64;
/// Number of channel 0 on a link.
const FIRST_NUMBER: u32 = 1000;

/// What `stage` is told.
#[derive(Args, Debug)]
pub struct StageArgs {
    /// Which: ingress, pool, seal, wrap or frames
    pub stage: String,
    /// How often
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
}

/// Runs the command: a stage over and over. Prints how many cells it worked on.
///
/// # Errors
/// There is no such stage, or its cells do not come out right.
pub fn run(args: &StageArgs) -> anyhow::Result<()> {
    let mut all = all();
    let names = all.each_ref().map(|(name, _)| *name).join(", ");
    let wanted = all.iter_mut().find(|(name, _)| *name == args.stage);
    let (_, stage) = wanted.with_context(|| format!("no stage is called {}: take one of {names}", args.stage))?;
    let mut cells = 0;
    for _ in 0..args.rounds {
        stage.prepare();
        cells += stage.run();
    }
    ensure!(stage.sound(), "the last round of {} did not come out right", args.stage);
    println!("{cells}");
    Ok(())
}

/// One of them.
pub trait Stage {
    /// Makes what the next run works on, and takes away what the last one left.
    fn prepare(&mut self);

    /// The stage itself, once. Cells that it worked on.
    fn run(&mut self) -> usize;

    /// Whether every cell so far came out as it should have: asked after a run.
    fn sound(&mut self) -> bool;
}

/// All of them, in the order of the path; each name is that of the function that is counted.
pub fn all() -> [(&'static str, Box<dyn Stage>); 5] {
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
    Shape::new(Class::L, 4).expect("four hops")
}

/// One secret for each channel and purpose.
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
    fn every_stage_does_its_work_round_after_round() {
        for (name, mut stage) in super::all() {
            for round in 0..3 {
                stage.prepare();
                assert!(stage.run() > 0, "{name}, round {round}");
                assert!(stage.sound(), "{name}, round {round}");
            }
        }
    }
}
