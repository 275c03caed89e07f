//! Sockets and receive buffers of the generators.

use std::io;
use std::net::UdpSocket;

use dataplane::sys;

/// Messages of a receive call, each of up to 64 kB.
pub(crate) const MESSAGES: usize = 16;
/// Bytes of the largest message.
pub(crate) const MESSAGE_MAX: usize = 1 << 16;

/// Makes a socket non-blocking, with GRO and a receive buffer of `buffer` bytes.
pub(crate) fn prepare(socket: &UdpSocket, buffer: usize) -> io::Result<()> {
    sys::size_receive_buffer(socket, buffer)?;
    sys::enable_gro(socket)?;
    socket.set_nonblocking(true)
}

/// Buffers for one receive call.
pub(crate) fn receive_buffers() -> Vec<Vec<u8>> {
    vec![vec![0; MESSAGE_MAX]; MESSAGES]
}
