//! A datagram socket at the exit.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dataplane::entry::{Association, Destination, HEADER_MAX, read_socks, socks_header};
use socket2::SockRef;
use wire::frames;

use super::{Entry, TunnelError};
use crate::config::{ClassName, Payload};
use crate::runtime::listeners::{Listeners, Relay, fits};
use crate::runtime::refused_flows::RefusedFlows;

/// A UDP socket at the exit.
///
/// It has one port there, which every destination sees (RFC 4787, endpoint-independent mapping). Answers come back with
/// the address that sent them. Datagrams may be lost, duplicated and reordered, as with a [`UdpSocket`].
///
/// Shared by reference: one thread may send while another receives. It ends when dropped, and with its [`Entry`]: then
/// calls fail with [`TunnelError::Closed`].
pub struct UdpTunnel {
    pub(super) socket: UdpSocket,
    payload: Payload,
    /// Header and data of what is received.
    received: Mutex<Box<[u8]>>,
    refused: Arc<RefusedFlows>,
    _relay: Relay,
}

impl UdpTunnel {
    /// Opens a tunnel. It can be used at once: datagrams sent before the entry is ready wait, up to 1024 of them.
    ///
    /// # Errors
    /// [`TunnelError::Io`] if no port or descriptor is left, the entry has 8192 tunnels and listeners already, or the
    /// chain's first class serves a meeting here.
    pub fn open(entry: &Entry) -> Result<UdpTunnel, TunnelError> {
        let none = || io::Error::other("the chain's first class serves a meeting: name another one (`open_in`)");
        UdpTunnel::with(entry.listeners.as_ref().ok_or_else(none)?)
    }

    /// The same, in cells of a class of the chain that serves destinations, and that the entry's options name.
    ///
    /// # Errors
    /// As for [`UdpTunnel::open`]; or the entry does not serve destinations in this class.
    pub fn open_in(entry: &Entry, class: &ClassName) -> Result<UdpTunnel, TunnelError> {
        let found = entry.running().listeners_of(class);
        let none =
            || io::Error::other(format!("this entry serves no destinations in class {class}: name it in its options"));
        UdpTunnel::with(&found.ok_or_else(none)?)
    }

    fn with(listeners: &Listeners) -> Result<UdpTunnel, TunnelError> {
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let socket = UdpSocket::bind((client, 0))?;
        let port = Some(socket.local_addr()?.port());
        let refused = Arc::<RefusedFlows>::default();
        let relay = listeners.tunnel(client, Association { client, port }, refused.clone())?;
        connect_only(&socket, relay.address())?;
        let payload = listeners.payload().clone();
        let received = Mutex::new(vec![0; HEADER_MAX + frames::max_datagram_len(payload.bytes)].into_boxed_slice());
        Ok(UdpTunnel { socket, payload, received, refused, _relay: relay })
    }

    /// Sends a datagram. Returns its length.
    ///
    /// Success means that the entry has it, not that it arrives. A refusal of the exit is the error of a later call.
    ///
    /// # Errors
    /// See [`TunnelError`]. After [`TunnelError::TooLong`] and [`TunnelError::InvalidDestination`] of this destination,
    /// and after a refusal of an earlier datagram, nothing was sent.
    pub fn send_to(&self, data: &[u8], destination: &Destination) -> Result<usize, TunnelError> {
        self.check()?;
        let max = frames::max_datagram_len(self.payload.bytes);
        if data.len() > max {
            return Err(TunnelError::TooLong { destination: destination.clone(), len: data.len(), max });
        }
        let invalid = |why: String| TunnelError::InvalidDestination { destination: destination.clone(), why };
        if !destination.is_valid() {
            return Err(invalid("use a port from 1 to 65535, and a host name of at most 255 letters".to_owned()));
        }
        fits(&self.payload, destination).map_err(|why| invalid(why.to_string()))?;
        let header = socks_header(destination);
        let sent = SockRef::from(&self.socket).send_vectored(&[IoSlice::new(&header), IoSlice::new(data)])?;
        Ok(sent.saturating_sub(header.len()))
    }

    /// Receives a datagram. Returns its length and its sender. Bytes that do not fit in `buffer` are cut off, as with a
    /// [`UdpSocket`]; [`Entry::max_datagram_len`] bytes are always enough.
    ///
    /// The sender is an address, even if the datagram answers one to a name. If the exit's message with that address
    /// was lost or overtaken, it is the name.
    ///
    /// # Errors
    /// See [`TunnelError`]: [`TunnelError::Io`] with [`WouldBlock`](io::ErrorKind::WouldBlock) after
    /// [`UdpTunnel::set_read_timeout`], and refusals of earlier datagrams.
    pub fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, Destination), TunnelError> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            self.check()?;
            let len = self.socket.recv(&mut received)?;
            // Only the relay can send here. A datagram without a header wakes this call for a refusal or the entry's
            // end.
            let Ok((from, data)) = read_socks(&received[..len]) else { continue };
            let len = data.len().min(buffer.len());
            buffer[..len].copy_from_slice(&data[..len]);
            return Ok((len, from));
        }
    }

    /// Returns the oldest refusal, or the end of the entry.
    fn check(&self) -> Result<(), TunnelError> {
        // The relay's port may belong to another program by now.
        if self.refused.has_ended() {
            return Err(TunnelError::Closed);
        }
        while let Some(flow) = self.refused.take() {
            if let Some(error) = TunnelError::refused(flow) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Limits how long [`UdpTunnel::recv_from`] waits; without a limit by default.
    ///
    /// # Errors
    /// A timeout of zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// Makes calls return at once with [`WouldBlock`](io::ErrorKind::WouldBlock) instead of waiting. With [`AsFd`], for
    /// an event loop of your own: the descriptor becomes readable for refusals, too.
    ///
    /// # Errors
    /// An error of the operating system.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }
}

/// Connects a socket, so that it receives from `relay` only, and removes what others sent to it before.
fn connect_only(socket: &UdpSocket, relay: SocketAddr) -> io::Result<()> {
    socket.connect(relay)?;
    socket.set_nonblocking(true)?;
    while socket.recv(&mut [0]).is_ok() {}
    socket.set_nonblocking(false)
}

impl AsFd for UdpTunnel {
    /// A descriptor to poll. Do not read from it or write to it: that takes datagrams of the tunnel.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpTunnel {
    /// See [`UdpTunnel::as_fd`].
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn datagrams_sent_before_the_relay_is_known_are_removed() {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (socket, relay, stranger) = (bind(), bind(), bind());
        let address = socket.local_addr().unwrap();
        let header = socks_header(&Destination::from(SocketAddr::from(([192, 0, 2, 1], 53))));
        (0..3).for_each(|_| _ = stranger.send_to(&header, address).unwrap());
        connect_only(&socket, relay.local_addr().unwrap()).unwrap();
        relay.send_to(b"from the relay", address).unwrap();

        let mut buffer = [0; 100];
        let len = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"from the relay");
        let _ = stranger.send_to(&header, address);
        socket.set_nonblocking(true).unwrap();
        assert_eq!(socket.recv(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
