//! The generator alone, straight into its own sink: what it can do at most, and what of a latency is its own.

use std::net::UdpSocket;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::drive::{self, Target};
use super::plan::{Even, Plan};
use super::profile::{Arrivals, Lengths};
use crate::results::{Floor, Stream};

/// A try of a rate.
const TRY: Duration = Duration::from_millis(300);
/// Rates from the first on are doubled until one is not reached.
const RATE_FIRST: f64 = 25_000.0;
const RATE_LAST: f64 = 12_800_000.0;
/// The sender is behind below this part of a rate; datagrams are lost beyond this part.
const BEHIND: f64 = 0.95;
const LOST: f64 = 0.001;

/// Datagrams a second that the generator sends and counts, of `len` bytes from `flows` sockets.
///
/// # Errors
/// As [`drive::run`].
pub fn ceiling(flows: usize, len: u32, interrupted: &AtomicBool) -> anyhow::Result<f64> {
    let (mut best, mut rate) = (0.0f64, RATE_FIRST);
    let sink = UdpSocket::bind("127.0.0.1:0")?;
    while rate <= RATE_LAST && !interrupted.load(std::sync::atomic::Ordering::Relaxed) {
        // Bursts, as a loaded program's kernel would make them.
        let arrivals = Arrivals::Burst((rate / 50_000.0).max(1.0) as u32);
        let even = Even { flows, rate, arrivals, lengths: Lengths::fixed(len) };
        let target = Target { to: sink.local_addr()?, sink: &sink, delay: Duration::ZERO };
        let outcome = drive::run(Plan::even(&even, TRY, false, 1), &target, interrupted, |_| {})?;
        let (sent, delivered) = (outcome.sum(|stream| stream.sent), outcome.sum(|stream| stream.delivered));
        let slowest = outcome.streams.iter().map(|stream| stream.latency.max).fold(0.0, f64::max);
        best = best.max(delivered as f64 / (TRY.as_secs_f64() + slowest / 1e6));
        if (sent as f64) < BEHIND * rate * TRY.as_secs_f64()
            || slowest > TRY.as_micros() as f64
            || (delivered as f64) < (1.0 - LOST) * sent as f64
        {
            break;
        }
        rate *= 2.0;
    }
    Ok(best)
}

/// The floor, given what a direct run of the load showed.
pub fn of(ceiling_per_s: f64, direct: &[Stream]) -> Floor {
    let worst = |of: fn(&Stream) -> f64| direct.iter().map(of).fold(0.0, f64::max);
    Floor {
        ceiling_per_s,
        p50_us: worst(|stream| stream.latency.p50),
        p99_us: worst(|stream| stream.latency.p99),
        p999_us: worst(|stream| stream.latency.p999),
        max_us: worst(|stream| stream.latency.max),
    }
}
