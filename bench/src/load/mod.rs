//! Open-loop load: many flows from many sockets into a forward, and a destination behind the exit.
//!
//! ```text
//! command      `eddy-bench load`                   generator    a run: sender, destination, clients
//! runs         direct and through a chain          record       what arrived, flow by flow
//! plan         flows in order of time              mos          call quality
//! even         even loads                          calibration  what the generator can do alone
//! profile      traffic of applications             summary      results as tables
//! source       a flow's datagrams                  header       the first bytes of a datagram
//! ```

mod calibration;
pub mod command;
pub(crate) mod even;
pub(crate) mod generator;
mod header;
mod mos;
pub(crate) mod plan;
mod profile;
pub(crate) mod record;
pub(crate) mod runs;
pub(crate) mod source;
mod summary;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use self::even::{Arrivals, Even, Lengths};
use self::generator::{Outcome, Target};
use self::plan::Plan;

/// An even load, for tests.
#[derive(Clone, Debug)]
pub struct Load {
    /// A forward of the entry, or the sink itself.
    pub to: SocketAddr,
    /// Number of flows, each with its own socket.
    pub flows: usize,
    /// Datagrams per second over all flows.
    pub rate: u64,
    /// Bytes per datagram.
    pub len: usize,
    /// How long to send.
    pub time: Duration,
}

/// Counts of the datagrams of a [`Load`].
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub sent: u64,
    pub refused: u64,
    pub delivered: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub lost: u64,
    /// Datagrams that opened the flows; not in `sent`.
    pub hellos: u64,
    /// Datagrams that the kernel dropped at the destination.
    pub sink_kernel_drops: u64,
}

impl From<&Outcome> for Counts {
    fn from(outcome: &Outcome) -> Counts {
        Counts {
            sent: outcome.sum(|stream| stream.sent),
            refused: outcome.sum(|stream| stream.refused),
            delivered: outcome.sum(|stream| stream.delivered),
            duplicated: outcome.sum(|stream| stream.duplicated),
            reordered: outcome.sum(|stream| stream.reordered),
            lost: outcome.sum(|stream| stream.lost),
            hellos: outcome.hellos,
            sink_kernel_drops: outcome.kernel_drops,
        }
    }
}

/// Runs an even load into `to` and counts at `sink`.
///
/// # Errors
/// Sockets cannot be created, or flows do not open.
pub fn run(load: &Load, sink: UdpSocket) -> anyhow::Result<Counts> {
    let Load { to, flows, rate, len, time } = load;
    let even = Even {
        flows: *flows,
        rate: *rate as f64,
        arrivals: Arrivals::Constant,
        lengths: Lengths::fixed(u32::try_from(*len)?),
    };
    let target = Target { to: *to, sink: &sink, delay: Duration::ZERO };
    let outcome = generator::run(Plan::even(&even, *time, false, 1), &target, &AtomicBool::new(false), |_| {})?;
    Ok(Counts::from(&outcome))
}
