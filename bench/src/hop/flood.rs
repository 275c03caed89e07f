//! A flood of forged handshakes at the mix while it is measured: halves of message 1 by somebody who knows the mix's
//! public key, from one address, each with its own index.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use dataplane::sys::{self, MESSAGES_MAX, Message};
use wire::handshake::NK_HALF_LEN;

use super::cores;

/// Halves that are made ahead. The mix keeps none of them for a second while it asks for cookies.
const HALVES: u32 = 4096;
/// The flood is sent in steps of this time.
const STEP: Duration = Duration::from_millis(1);

pub(crate) struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<u64>>,
}

impl Flood {
    /// Starts to send `rate` halves per second to a mix with this Noise static, from a thread on this core.
    ///
    /// # Errors
    /// The system refuses a socket or a thread.
    pub(crate) fn start(to: SocketAddr, mix: &[u8; 32], rate: u32, core: usize) -> anyhow::Result<Flood> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let halves: Vec<Vec<u8>> = (0..HALVES).map(|index| half(mix, index)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let send = move || {
            cores::pin(core)?;
            let (start, mut sent) = (Instant::now(), 0);
            while !stopped.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
                while sent < due {
                    let at = (sent % u64::from(HALVES)) as usize;
                    let some = &halves[at..halves.len().min(at + (due - sent).min(MESSAGES_MAX as u64) as usize)];
                    let messages = some.iter().map(|_| Message { to, pieces: 1, segment: None });
                    sent += sys::send(&socket, messages, some.iter().map(Vec::as_slice))? as u64;
                }
                std::thread::sleep(STEP);
            }
            anyhow::Ok(sent)
        };
        Ok(Flood { stop, thread: std::thread::Builder::new().name("flood".into()).spawn(send)? })
    }

    /// Ends it. Returns how many halves it has sent.
    ///
    /// # Errors
    /// Sending failed.
    pub(crate) fn finish(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the flood's thread panicked"))?.context("the flood failed")
    }
}

/// Half of a message 1 with a right mac1 (SPEC 4.2), and noise instead of a handshake.
fn half(mix: &[u8; 32], index: u32) -> Vec<u8> {
    let mut bytes = vec![1, 0, 0, 0];
    bytes.extend_from_slice(&index.to_be_bytes());
    bytes.resize(NK_HALF_LEN - 32, index as u8);
    let key = Blake2s256::digest([&b"mac1----"[..], mix].concat());
    let mut mac = Blake2sMac::<U16>::new_with_salt_and_personal(Some(&key), &[], &[]).expect("a key of 32 bytes");
    mac.update(&bytes);
    bytes.extend_from_slice(&mac.finalize_fixed());
    bytes.resize(NK_HALF_LEN, 0);
    bytes
}
