//! A flood at the mix while it is measured: halves of message 1 by somebody who knows the mix's public key, from one
//! address, each with its own index; one by one or in GSO bursts. Or datagrams that are too short for a cell.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use dataplane::sys::{self, GSO_SEGMENTS_MAX, MESSAGES_MAX, Message};
use wire::handshake::{NK_HALF_LEN, half_head};

use super::cores;

/// Datagrams that are made ahead. The mix keeps no half for a second while it asks for cookies.
const DATAGRAMS: usize = 4096;
/// The flood is sent in steps of this time.
const STEP: Duration = Duration::from_millis(1);

/// What a flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FloodKind {
    /// Halves of message 1, one by one.
    Halves,
    /// Halves of message 1 in GSO bursts of 64, which loopback carries whole.
    Bursts,
    /// Empty datagrams.
    Empty,
}

/// A flood to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloodPlan {
    pub(crate) kind: FloodKind,
    /// Datagrams per second.
    pub(crate) rate: u32,
}

pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<usize>>,
}

impl Flood {
    /// Starts to send to a mix with this Noise static, from a thread on this core.
    ///
    /// # Errors
    /// The system refuses a socket or a thread.
    pub(crate) fn start(to: SocketAddr, mix: &[u8; 32], plan: FloodPlan, core: usize) -> anyhow::Result<Flood> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let FloodPlan { kind, rate } = plan;
        let of_index = |index| if kind == FloodKind::Empty { Vec::new() } else { half(mix, index) };
        let datagrams: Vec<Vec<u8>> = (0..DATAGRAMS as u32).map(of_index).collect();
        let per_message = if kind == FloodKind::Bursts { GSO_SEGMENTS_MAX } else { 1 };
        let segment = (kind == FloodKind::Bursts).then_some(NK_HALF_LEN as u16);
        let most = per_message * (MESSAGES_MAX / per_message);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let send = move || {
            cores::pin(core)?;
            let (start, mut sent) = (Instant::now(), 0);
            while !stopped.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as usize;
                // A burst leaves when it is due as a whole.
                while due - sent >= per_message {
                    let at = sent % DATAGRAMS;
                    let some = &datagrams[at..DATAGRAMS.min(at + (due - sent).min(most))];
                    let messages = some.chunks_exact(per_message).map(|_| Message { to, pieces: per_message, segment });
                    sent += per_message * sys::send(&socket, messages, some.iter().map(Vec::as_slice))?;
                }
                std::thread::sleep(STEP);
            }
            anyhow::Ok(sent)
        };
        Ok(Flood { stop, thread: std::thread::Builder::new().name("flood".into()).spawn(send)? })
    }

    /// Ends it. Returns how many datagrams it has sent.
    ///
    /// # Errors
    /// Sending failed.
    pub(crate) fn finish(self) -> anyhow::Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the flood's thread panicked"))?.context("the flood failed")
    }
}

/// Half of a message 1 with a right mac1 (SPEC 4.2), and noise instead of a handshake.
fn half(mix: &[u8; 32], index: u32) -> Vec<u8> {
    let mut bytes = half_head(0).to_vec();
    bytes.extend_from_slice(&index.to_be_bytes());
    bytes.resize(NK_HALF_LEN - 32, index as u8);
    let key = Blake2s256::digest([&b"mac1----"[..], mix].concat());
    let mut mac = Blake2sMac::<U16>::new_with_salt_and_personal(Some(&key), &[], &[]).expect("a key of 32 bytes");
    mac.update(&bytes);
    bytes.extend_from_slice(&mac.finalize_fixed());
    bytes.resize(NK_HALF_LEN, 0);
    bytes
}
