//! The async front of the client API, for tokio.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use dataplane::entry::Destination;
use tokio::io::unix::AsyncFd;

use super::{Entry, NotReady, TunnelError, UdpTunnel};

/// A [`UdpTunnel`] whose calls are async, inside a tokio runtime with I/O enabled.
///
/// All calls take `&self` and are cancel safe: dropping their future loses no datagram.
pub struct AsyncUdpTunnel(AsyncFd<UdpTunnel>);

impl AsyncUdpTunnel {
    /// Opens a tunnel, as [`UdpTunnel::open`] does. It does not wait.
    ///
    /// # Errors
    /// See [`UdpTunnel::open`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    pub fn open(entry: &Entry) -> Result<AsyncUdpTunnel, TunnelError> {
        let tunnel = UdpTunnel::open(entry)?;
        tunnel.set_nonblocking(true)?;
        Ok(AsyncUdpTunnel(AsyncFd::register(tunnel)?))
    }

    /// Sends a datagram, as [`UdpTunnel::send_to`] does.
    ///
    /// # Errors
    /// See [`UdpTunnel::send_to`]; never `WouldBlock`.
    pub async fn send_to(&self, data: &[u8], destination: &Destination) -> Result<usize, TunnelError> {
        loop {
            match self.0.get_ref().send_to(data, destination) {
                Err(TunnelError::Io(why)) if why.kind() == ErrorKind::WouldBlock => {
                    self.0.writable().await?.clear_ready();
                }
                done => return done,
            }
        }
    }

    /// Receives a datagram, as [`UdpTunnel::recv_from`] does.
    ///
    /// # Errors
    /// See [`UdpTunnel::recv_from`]; never `WouldBlock`.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, Destination), TunnelError> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.0.get_ref().recv_from(buffer) {
                Err(TunnelError::Io(why)) if why.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                done => return done,
            }
        }
    }
}

impl Entry {
    /// Waits until the entry's channels are open, as [`Entry::wait_ready`] does, without blocking the thread. Needs a
    /// tokio runtime with time enabled.
    ///
    /// # Errors
    /// See [`Entry::wait_ready`].
    pub async fn wait_ready_async(&self, timeout: Duration) -> Result<(), NotReady> {
        let started = Instant::now();
        let progress = tokio::time::timeout(timeout, self.readiness.reached(self.channels)).await;
        self.judge(progress.unwrap_or_else(|_| self.readiness.now()), started.elapsed())
    }
}
