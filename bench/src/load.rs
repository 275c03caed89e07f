//! An open-loop load: many flows from many sockets into one forward, and a sink behind the exit.
//!
//! Every datagram carries its flow, its number and the time at which it was *meant* to leave, so a sender
//! that falls behind shows up as latency and not as a lower rate. The sink counts what arrives: losses are
//! numbers that never came, reordering is a number below one already seen in its flow.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use dataplane::runner::Poller;
use dataplane::sys;
use hdrhistogram::Histogram;
use serde::Serialize;

/// Bytes that a datagram must have: flow u32, number u64, intended time u64.
pub const LEN_MIN: usize = 20;
/// Receive buffer of the sink.
const SINK_BUFFER: usize = 32 << 20;
/// The sink gives up when nothing has come for so long after the last datagram was sent.
const PATIENCE: Duration = Duration::from_secs(2);

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// A forward of the entry, or the sink itself to measure the generator.
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
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The kernel took them.
    pub sent: u64,
    /// The kernel refused them.
    pub refused: u64,
    /// Arrived for the first time.
    pub delivered: u64,
    /// Arrived again.
    pub duplicated: u64,
    /// Arrived behind a later one of their flow.
    pub reordered: u64,
    /// Sent and never arrived.
    pub lost: u64,
    /// Dropped by the kernel at the sink: the generator's own loss.
    pub sink_kernel_drops: u64,
    /// Sent per second, over the time it took.
    pub sent_per_s: f64,
    /// From the intended time of sending to arrival.
    pub latency_us: Latency,
}

/// Quantiles of a latency, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// Runs a load into `to` and counts at `sink`. `progress` hears of the datagrams sent so far.
///
/// # Errors
/// Sockets cannot be made, or the options make no sense.
pub fn run(load: &Load, sink: UdpSocket, progress: impl Fn(u64)) -> anyhow::Result<Outcome> {
    anyhow::ensure!(load.len >= LEN_MIN, "a datagram carries its number and time: at least {LEN_MIN} bytes");
    anyhow::ensure!(load.flows > 0 && load.rate > 0, "a load has at least one flow and one datagram per second");
    let start = Instant::now();
    let done = Arc::new(AtomicBool::new(false));
    let total = Arc::new(AtomicU64::new(u64::MAX));
    sys::size_receive_buffer(&sink, SINK_BUFFER)?;
    sink.set_nonblocking(true)?;
    let counter = {
        let (done, total, flows) = (done.clone(), total.clone(), load.flows);
        std::thread::Builder::new().name("sink".into()).spawn(move || count(&sink, flows, start, &done, &total))?
    };
    let sent = send(load, start, progress);
    if let Ok(sent) = &sent {
        total.store(sent.0, Ordering::Release);
    }
    done.store(true, Ordering::Release);
    let counted = counter.join().map_err(|_| anyhow::anyhow!("the sink's thread died"))??;
    let (sent, refused, took) = sent?;
    let us = |quantile| counted.latency.value_at_quantile(quantile) / 1000;
    Ok(Outcome {
        sent,
        refused,
        delivered: counted.delivered,
        duplicated: counted.duplicated,
        reordered: counted.reordered,
        lost: sent.saturating_sub(counted.delivered),
        sink_kernel_drops: counted.kernel_drops,
        sent_per_s: sent as f64 / took.as_secs_f64(),
        latency_us: Latency { p50: us(0.5), p99: us(0.99), p999: us(0.999), max: counted.latency.max() / 1000 },
    })
}

fn send(load: &Load, start: Instant, progress: impl Fn(u64)) -> anyhow::Result<(u64, u64, Duration)> {
    let host = if load.to.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
    let sockets = (0..load.flows)
        .map(|_| UdpSocket::bind(host))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{} sockets: raise `ulimit -n`", load.flows))?;
    let wanted = (load.rate as f64 * load.time.as_secs_f64()) as u64;
    let mut bytes = vec![0x5a; load.len];
    let (mut number, mut sent, mut refused) = (0, 0, 0);
    let began = start.elapsed();
    while number < wanted {
        let due = ((start.elapsed() - began).as_secs_f64() * load.rate as f64) as u64;
        while number < due.min(wanted) {
            let flow = number as usize % load.flows;
            let intended = began + Duration::from_secs_f64(number as f64 / load.rate as f64);
            bytes[..4].copy_from_slice(&(flow as u32).to_be_bytes());
            bytes[4..12].copy_from_slice(&(number / load.flows as u64).to_be_bytes());
            bytes[12..20].copy_from_slice(&(intended.as_nanos() as u64).to_be_bytes());
            match sockets[flow].send_to(&bytes, load.to) {
                Ok(_) => sent += 1,
                Err(_) => refused += 1,
            }
            number += 1;
        }
        progress(number);
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok((sent, refused, start.elapsed() - began))
}

struct Counted {
    delivered: u64,
    duplicated: u64,
    reordered: u64,
    kernel_drops: u64,
    latency: Histogram<u64>,
}

/// Which numbers of a flow have come.
#[derive(Default)]
struct Flow {
    next: u64,
    missing: std::collections::BTreeSet<u64>,
}

fn count(
    sink: &UdpSocket,
    flows: usize,
    start: Instant,
    done: &AtomicBool,
    total: &AtomicU64,
) -> anyhow::Result<Counted> {
    let poller = Poller::new()?;
    poller.add(sink.as_fd(), 0)?;
    let mut counted = Counted {
        delivered: 0,
        duplicated: 0,
        reordered: 0,
        kernel_drops: 0,
        latency: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
    };
    let mut seen: Vec<Flow> = (0..flows).map(|_| Flow::default()).collect();
    let mut buffers = vec![[0u8; LEN_MIN]; sys::MESSAGES_MAX];
    let mut last = Instant::now();
    loop {
        let got = sys::recv(sink, buffers.iter_mut().map(|b| &mut b[..]), 1, |_, _| {}).unwrap_or(0);
        let now = start.elapsed().as_nanos() as u64;
        for bytes in &buffers[..got] {
            last = Instant::now();
            let flow = u32::from_be_bytes(bytes[..4].try_into().expect("4 bytes")) as usize;
            let number = u64::from_be_bytes(bytes[4..12].try_into().expect("8 bytes"));
            let intended = u64::from_be_bytes(bytes[12..20].try_into().expect("8 bytes"));
            let Some(flow) = seen.get_mut(flow) else { continue };
            if number >= flow.next {
                flow.missing.extend(flow.next..number);
                flow.next = number + 1;
            } else if flow.missing.remove(&number) {
                counted.reordered += 1;
            } else {
                counted.duplicated += 1;
                continue;
            }
            counted.delivered += 1;
            counted.latency.saturating_record(now.saturating_sub(intended));
        }
        if got == 0 {
            if counted.delivered >= total.load(Ordering::Acquire)
                || done.load(Ordering::Acquire) && last.elapsed() > PATIENCE
            {
                break;
            }
            poller.wait(Some(Duration::from_millis(20)), |_| {});
        }
    }
    counted.kernel_drops = sys::kernel_drops(sink)?;
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn straight_to_the_sink_everything_arrives_once_and_in_order() {
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = sink.local_addr().unwrap();
        let load = Load { to, flows: 7, rate: 2000, len: 100, time: Duration::from_millis(500) };
        let outcome = run(&load, sink, |_| {}).unwrap();
        assert_eq!((outcome.sent, outcome.delivered), (1000, 1000));
        assert_eq!((outcome.lost, outcome.reordered, outcome.duplicated), (0, 0, 0));
    }
}
