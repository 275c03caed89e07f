//! A hop's cryptography, and its measurement.

use std::time::Duration;

use anyhow::{Context, ensure};

use crate::hop::cores;

/// Packets of a call: they fit the second-level cache, like the packets of a receive call.
pub(super) const PACKETS: usize = 256;
/// Bytes of payload in a packet of the others, and in one of eddy's rows.
pub(super) const PAYLOAD: usize = 1200;
/// Least processor time of a candidate in a round.
const TURN: Duration = Duration::from_millis(20);

/// The cryptography of a hop: turns packets that arrive into packets to send.
pub(super) trait Hop: Send {
    /// Prepares [`PACKETS`] packets that it has not seen yet.
    ///
    /// # Errors
    /// The library fails.
    fn prepare(&mut self) -> anyhow::Result<()>;

    /// Does the work of a hop on them. Only this is measured.
    ///
    /// # Errors
    /// A packet is refused.
    fn run(&mut self) -> anyhow::Result<()>;

    /// True if the next hop, or the last one, can read what was sent. Called once, after a run.
    ///
    /// # Errors
    /// A packet cannot be opened.
    fn is_correct(&mut self) -> anyhow::Result<bool>;
}

/// A hop that is compared, and its figures.
pub(super) struct Candidate {
    /// `eddy`, or the name of a package.
    pub(super) name: &'static str,
    /// Distinguishes rows of one name.
    pub(super) variant: &'static str,
    /// The work for a packet.
    pub(super) work: &'static str,
    hop: Box<dyn Hop>,
    /// ns for a packet, in each round.
    pub(super) ns: Vec<f64>,
}

impl Candidate {
    pub(super) fn new(
        name: &'static str,
        variant: &'static str,
        work: &'static str,
        hop: impl Hop + 'static,
    ) -> Candidate {
        Candidate { name, variant, work, hop: Box::new(hop), ns: Vec::new() }
    }

    /// Warms it up, and checks that it works.
    fn warm_up(&mut self) -> anyhow::Result<()> {
        self.hop.prepare()?;
        self.hop.run()?;
        ensure!(self.hop.is_correct()?, "its packets are not what was sent");
        self.turn().map(drop)
    }

    /// One round: ns for a packet.
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

/// Measures all candidates once, on this core. Round 0 is a warm-up.
///
/// # Errors
/// The system refuses, or a candidate returns wrong packets.
pub(super) fn round(candidates: &mut [Candidate], round: u32, core: usize) -> anyhow::Result<()> {
    // A thread of its own, since the caller must not stay on that core.
    let work = || -> anyhow::Result<()> {
        cores::pin(core)?;
        for candidate in candidates {
            if round == 0 {
                candidate.warm_up().with_context(|| candidate.name)?;
            } else {
                let ns = candidate.turn().with_context(|| candidate.name)?;
                candidate.ns.push(ns);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow::anyhow!("a candidate panicked"))?
}
