//! The async front of the client API, for tokio.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use dataplane::entry::Destination;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::{Entry, NotReady, TunnelError, UdpTunnel};

/// A [`UdpTunnel`] whose calls are async, inside a tokio runtime with I/O enabled.
///
/// All calls take `&self` and are cancel safe: dropping their future loses no datagram.
pub struct AsyncUdpTunnel {
    tunnel: UdpTunnel,
    /// A duplicate of the tunnel's socket, for its readiness alone.
    socket: UdpSocket,
}

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
        let socket = UdpSocket::from_std(tunnel.socket.try_clone()?)?;
        Ok(AsyncUdpTunnel { tunnel, socket })
    }

    /// Sends a datagram, as [`UdpTunnel::send_to`] does.
    ///
    /// # Errors
    /// See [`UdpTunnel::send_to`]; never `WouldBlock`.
    pub async fn send_to(&self, data: &[u8], destination: &Destination) -> Result<usize, TunnelError> {
        loop {
            let sent = self.socket.try_io(Interest::WRITABLE, || unblocked(self.tunnel.send_to(data, destination)));
            match sent {
                Ok(sent) => return sent,
                Err(_) => self.socket.writable().await?,
            }
        }
    }

    /// Receives a datagram, as [`UdpTunnel::recv_from`] does.
    ///
    /// # Errors
    /// See [`UdpTunnel::recv_from`]; never `WouldBlock`.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, Destination), TunnelError> {
        loop {
            match self.socket.try_io(Interest::READABLE, || unblocked(self.tunnel.recv_from(buffer))) {
                Ok(received) => return received,
                Err(_) => self.socket.readable().await?,
            }
        }
    }
}

/// Sets a call that would block apart from all others, for tokio to wait.
fn unblocked<T>(done: Result<T, TunnelError>) -> io::Result<Result<T, TunnelError>> {
    match done {
        Err(TunnelError::Io(why)) if why.kind() == ErrorKind::WouldBlock => Err(why),
        done => Ok(done),
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
        let progress = tokio::time::timeout(timeout, self.readiness.reached()).await;
        self.judge(progress.unwrap_or_else(|_| self.readiness.now()), started.elapsed())
    }
}
