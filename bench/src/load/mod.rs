//! Open-loop load: many flows from many sockets into a forward, and a destination behind the exit.
//!
//! ```text
//! profile   what is sent when     header   what a datagram says of itself
//! plan      flows in order of time         record   what arrives, flow by flow     mos   what a call sounds like
//! drive     a run: sender, destination, clients     floor   what the generator can do alone
//! command   `eddy-bench load`     tell     the same for people
//! ```

pub mod command;
pub mod drive;
pub mod floor;
pub mod header;
mod mos;
pub mod plan;
pub mod profile;
pub mod record;
pub mod tell;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use self::drive::{Outcome, Target};
use self::plan::{Even, Plan};
use self::profile::{Arrivals, Lengths};

/// An even load, as tests use it.
#[derive(Clone, Debug)]
pub struct Load {
    /// A forward of the entry, or the sink itself.
    pub to: SocketAddr,
    /// Flows, one socket each.
    pub flows: usize,
    /// Datagrams per second over all flows.
    pub rate: u64,
    /// Bytes per datagram.
    pub len: usize,
    /// How long.
    pub time: Duration,
}

/// What became of it.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Counts {
    pub sent: u64,
    pub refused: u64,
    pub delivered: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub lost: u64,
    /// Sent beforehand to open the flows; not in `sent`.
    pub hellos: u64,
    /// Dropped by the kernel at the destination.
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
/// Sockets cannot be had, or flows do not open.
pub fn run(load: &Load, sink: UdpSocket) -> anyhow::Result<Counts> {
    let Load { to, flows, rate, len, time } = load;
    let even = Even {
        flows: *flows,
        rate: *rate as f64,
        arrivals: Arrivals::Constant,
        lengths: Lengths::fixed(u32::try_from(*len)?),
    };
    let target = Target { to: *to, sink: &sink, delay: Duration::ZERO };
    let outcome = drive::run(Plan::even(&even, *time, false, 1), &target, &AtomicBool::new(false), |_| {})?;
    Ok(Counts::from(&outcome))
}
