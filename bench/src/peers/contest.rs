//! What a contestant is, and its rounds.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::{eddy, others};
use crate::hop::cores;

/// Packets that a contestant is given at a time: they stay in the second cache, as what a receive call brings does.
pub const PACKETS: usize = 256;
/// Bytes that the others carry for somebody, and eddy in one of its rows.
pub const PAYLOAD: usize = 1200;
/// How long a contestant works in a round, at least.
const TURN: Duration = Duration::from_millis(20);

/// A hop's cryptography: takes packets as they come, makes them what has to leave.
pub trait Hop: Send {
    /// Puts [`PACKETS`] packets in place that it has not seen yet.
    ///
    /// # Errors
    /// Its library refuses.
    fn prepare(&mut self) -> anyhow::Result<()>;

    /// Does a hop's work on them; only this is measured.
    ///
    /// # Errors
    /// A packet is refused.
    fn run(&mut self) -> anyhow::Result<()>;

    /// Whether the next hop, or the last, finds in all that `run` left what was sent. Asked once.
    ///
    /// # Errors
    /// It cannot open a packet.
    fn sound(&mut self) -> anyhow::Result<bool>;
}

/// One of them, and what it took.
pub struct Contestant {
    /// Its name: of a package, if it is somebody else's.
    pub name: &'static str,
    /// What tells apart rows of one name.
    pub variant: &'static str,
    /// What is done for a packet.
    pub what: &'static str,
    hop: Box<dyn Hop>,
    /// ns for a packet, in each round.
    pub ns: Vec<f64>,
}

impl Contestant {
    /// One that has not run.
    pub fn new(name: &'static str, variant: &'static str, what: &'static str, hop: impl Hop + 'static) -> Contestant {
        Contestant { name, variant, what, hop: Box::new(hop), ns: Vec::new() }
    }

    /// Warms it up, and looks whether it does what it should.
    fn warm_up(&mut self) -> anyhow::Result<()> {
        self.hop.prepare()?;
        self.hop.run()?;
        ensure!(self.hop.sound()?, "what left is not what came");
        self.turn().map(drop)
    }

    /// ns for a packet.
    fn turn(&mut self) -> anyhow::Result<f64> {
        let (mut took, mut packets) = (Duration::ZERO, 0);
        while took < TURN {
            self.hop.prepare()?;
            let start = cores::own_time();
            self.hop.run()?;
            took += cores::own_time() - start;
            packets += PACKETS;
        }
        Ok(took.as_nanos() as f64 / packets as f64)
    }
}

/// All of them.
pub struct Contest {
    /// eddy's row of as many bytes as the others' is first.
    pub contestants: Vec<Contestant>,
}

impl Contest {
    /// # Errors
    /// A library refuses.
    pub fn new() -> anyhow::Result<Contest> {
        let mut contestants = eddy::contestants();
        contestants.extend(others::contestants()?);
        Ok(Contest { contestants })
    }

    /// All of them once, on this core. Round 0 warms up.
    ///
    /// # Errors
    /// The system refuses, or somebody's packets do not come out right.
    pub fn round(&mut self, round: u32, core: usize) -> anyhow::Result<()> {
        // A thread of its own, so that nobody else is kept on that core.
        let work = || -> anyhow::Result<()> {
            cores::pin(core)?;
            for contestant in &mut self.contestants {
                if round == 0 {
                    contestant.warm_up().with_context(|| contestant.name)?;
                } else {
                    let ns = contestant.turn().with_context(|| contestant.name)?;
                    contestant.ns.push(ns);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow::anyhow!("a contestant died"))?
    }
}
