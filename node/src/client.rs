//! The library: an entry in your own process, and datagrams through its chain.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use eddy_node::client::{Channel, Entry};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let entry = Entry::start(Path::new("entry.toml"))?;
//! let channel = Channel::open(&entry)?;
//! channel.send_to(b"question", &"example.org:5000".parse()?)?;
//! let mut answer = [0; 2000];
//! let (len, from) = channel.recv_from(&mut answer)?;
//! println!("{from} says {:?}", &answer[..len]);
//! # Ok(())
//! # }
//! ```
//!
//! A [`Channel`] behaves like a [`UdpSocket`] that stands at the exit: it has one port there, which every destination
//! sees (RFC 4787, endpoint-independent mapping), answers come back from the address that gave them, and datagrams may
//! be lost. Names are resolved at the exit, never here. Within the process it is a pair of loopback sockets: the
//! [`Relay`] that a SOCKS client would get from `eddy entry`, and one of its own that alone may use it. So the
//! entry treats both alike, and what either is refused is in the same ledger ([`Entry::report`]).

use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

pub use dataplane::entry::Destination;
use dataplane::entry::{Association, HEADER_MAX, read_socks, socks_header};
use listenfd::ListenFd;
use rustix::io::Errno;
use socket2::SockRef;
use wire::cell::Shape;
use wire::frames;

use crate::config::{ConfigError, Loaded, NodeRole};
use crate::error::{NodeDied, StartError};
use crate::report::NodeReport;
use crate::runtime::listeners::{Listeners, Relay, fits};
use crate::runtime::running::Running;

/// A running entry.
///
/// It is what `eddy entry` runs, forwards, SOCKS ports and status socket of its configuration included. Ends when
/// dropped; [`Entry::stop`] tells what became of every datagram.
pub struct Entry {
    node: Option<Running>,
    listeners: Listeners,
    shape: Shape,
}

impl Entry {
    /// Starts the entry that a configuration describes (`eddy init` writes one). Its channels open meanwhile; what is
    /// sent before that waits, up to 1024 datagrams.
    ///
    /// While the configuration's Unix sockets are made, new files of the process are readable for their owner alone.
    ///
    /// # Errors
    /// A mistake in its files, in one line with place and remedy ([`ConfigError`]), or what the system refuses.
    pub fn start(config: &Path) -> Result<Entry, StartError> {
        let loaded = Loaded::read(config)?;
        let role = loaded.config.role();
        let another = || {
            let (file, what) = (config.display(), role.with_article());
            ConfigError::Arguments(format!("{file} configures {what}, not an entry: name the entry's configuration"))
        };
        if role != NodeRole::Entry {
            return Err(another().into());
        }
        let node = Running::start(loaded, ListenFd::empty())?;
        let (listeners, shape) = (node.listeners().ok_or_else(another)?, node.shape());
        Ok(Entry { node: Some(node), listeners, shape })
    }

    /// Bytes of the longest datagram that travels in one cell: longer ones take up to eight, and are lost with any of
    /// them.
    pub fn one_cell(&self) -> usize {
        self.shape.max_single_cell_len()
    }

    /// Bytes of the longest datagram that travels at all.
    pub fn longest(&self) -> usize {
        frames::max_datagram_len(self.shape.payload())
    }

    /// A reading of all counters.
    pub fn report(&self) -> NodeReport {
        self.node.as_ref().expect("it runs until it is dropped").report()
    }

    /// Ends it, its channels too. The last reading.
    ///
    /// # Errors
    /// A thread had died.
    pub fn stop(mut self) -> Result<NodeReport, NodeDied> {
        self.node.take().expect("it runs until it is dropped").stop()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Nobody asks what came of it.
        let _ = self.node.take().map(Running::stop);
    }
}

/// A datagram socket at the far end of the chain.
///
/// Shared by reference, one thread may send while another receives. Closed when dropped, and with its [`Entry`]: then
/// sending and receiving fail with [`ErrorKind::ConnectionRefused`].
pub struct Channel {
    socket: UdpSocket,
    shape: Shape,
    /// Header and data of what is received.
    received: Mutex<Box<[u8]>>,
    _relay: Relay,
}

impl Channel {
    /// A new one, with a port of its own at the exit.
    ///
    /// # Errors
    /// No port or descriptor is left, or the entry listens at too many sockets.
    pub fn open(entry: &Entry) -> io::Result<Channel> {
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let socket = UdpSocket::bind((client, 0))?;
        let port = Some(socket.local_addr()?.port());
        let relay = entry.listeners.relay(client, Association { client, port })?;
        socket.connect(relay.address())?;
        let longest = HEADER_MAX + frames::max_datagram_len(entry.shape.payload());
        let received = Mutex::new(vec![0; longest].into_boxed_slice());
        Ok(Channel { socket, shape: entry.shape, received, _relay: relay })
    }

    /// Sends a datagram. Returns its length.
    ///
    /// That it was sent says no more than it does of a [`UdpSocket`]: the exit's policy, or the network behind it,
    /// may drop it.
    ///
    /// # Errors
    /// `EMSGSIZE` if it is longer than [`Entry::longest`]; [`ErrorKind::InvalidInput`] for port 0, what is no name, or
    /// a name that no cell holds; what the system says of a socket.
    pub fn send_to(&self, data: &[u8], to: &Destination) -> io::Result<usize> {
        if data.len() > frames::max_datagram_len(self.shape.payload()) {
            return Err(Errno::MSGSIZE.into());
        }
        let invalid = |why: String| io::Error::new(ErrorKind::InvalidInput, why);
        if !to.is_valid() {
            return Err(invalid(format!("{to} is no destination: its port is 0, or its name is none")));
        }
        fits(self.shape, to).map_err(|why| invalid(why.to_string()))?;
        let header = socks_header(to);
        let sent = SockRef::from(&self.socket).send_vectored(&[IoSlice::new(&header), IoSlice::new(data)])?;
        Ok(sent.saturating_sub(header.len()))
    }

    /// Receives a datagram: its length, and the address that it comes from. What `buffer` has no room for is lost, as
    /// with a [`UdpSocket`].
    ///
    /// An answer to a name that overtook the exit's word on its address comes from that name.
    ///
    /// # Errors
    /// [`ErrorKind::WouldBlock`] after [`Channel::set_read_timeout`]; what the system says of a socket.
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, Destination)> {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let len = self.socket.recv(&mut received)?;
            // Nobody but the relay can send here, and it writes headers.
            let Ok((from, data)) = read_socks(&received[..len]) else { continue };
            let len = data.len().min(buffer.len());
            buffer[..len].copy_from_slice(&data[..len]);
            return Ok((len, from));
        }
    }

    /// How long [`Channel::recv_from`] waits; for ever if none.
    ///
    /// # Errors
    /// A time of zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    /// Whether sending and receiving return at once ([`ErrorKind::WouldBlock`]); with [`AsFd`], for an event loop.
    ///
    /// # Errors
    /// What the system says of a socket.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }
}

impl AsFd for Channel {
    /// To be waited on, not to be read from or written to.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
