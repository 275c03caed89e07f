//! The generator alone, straight into its own sink: its highest rate, and its own latency.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::even::{Arrivals, Even, Lengths};
use super::generator::{self, Target};
use super::plan::Plan;
use crate::results::{Calibration, Stream};

/// Length of a trial.
const TRIAL: Duration = Duration::from_millis(300);
/// The rate doubles from the first on, until one is not reached.
const RATE_FIRST: f64 = 25_000.0;
const RATE_LAST: f64 = 12_800_000.0;
/// A rate is not reached below this part of it, or with more than this part lost.
const REACHED_MIN: f64 = 0.95;
const LOSS_MAX: f64 = 0.001;

/// Datagrams of `len` bytes that the generator can send from `flows` sockets and count, per second.
///
/// # Errors
/// As [`generator::run`].
pub(crate) fn ceiling(flows: usize, len: u32, interrupted: &AtomicBool) -> anyhow::Result<f64> {
    let (mut best, mut rate) = (0.0f64, RATE_FIRST);
    let sink = UdpSocket::bind("127.0.0.1:0")?;
    while rate <= RATE_LAST && !interrupted.load(Ordering::Relaxed) {
        let even = Even { flows, rate, arrivals: Arrivals::for_rate(rate), lengths: Lengths::fixed(len) };
        let target = Target { to: sink.local_addr()?, sink: &sink, delay: Duration::ZERO };
        let outcome = generator::run(Plan::even(&even, TRIAL, false, 1), &target, interrupted, |_| {})?;
        let (sent, delivered) = (outcome.sum(|stream| stream.sent), outcome.sum(|stream| stream.delivered));
        let slowest_us = outcome.streams.iter().map(|stream| stream.latency.max).fold(0.0, f64::max);
        best = best.max(delivered as f64 / (TRIAL.as_secs_f64() + slowest_us / 1e6));
        if (sent as f64) < REACHED_MIN * rate * TRIAL.as_secs_f64()
            || slowest_us > TRIAL.as_micros() as f64
            || (delivered as f64) < (1.0 - LOSS_MAX) * sent as f64
        {
            break;
        }
        rate *= 2.0;
    }
    Ok(best)
}

/// Of a ceiling, and the streams of the load without a chain.
pub(crate) fn of(ceiling_per_s: f64, direct: &[Stream]) -> Calibration {
    let worst = |of: fn(&Stream) -> f64| direct.iter().map(of).fold(0.0, f64::max);
    Calibration {
        ceiling_per_s,
        p50_us: worst(|stream| stream.latency.p50),
        p99_us: worst(|stream| stream.latency.p99),
        p999_us: worst(|stream| stream.latency.p999),
        max_us: worst(|stream| stream.latency.max),
    }
}
