//! eddy as a library: an entry in your own process, and UDP through its chain.
//!
//! eddy is a mix chain for UDP. Datagrams enter it at an *entry*, cross one to seven *mixes* as cells of equal length,
//! and leave at an *exit*. Answers come back the same way. The command `eddy` runs the nodes; this crate is for
//! programs that send through them without a separate entry process.
//!
//! # Overview
//!
//! * [`Entry`] is the user's end of a chain: threads that keep channels to the exit open. A process has one for each
//!   chain. [`Entry::start`] takes a configuration file, [`Entry::builder`] the chain's public file or its text.
//! * [`UdpTunnel`] is a UDP socket at the exit: `send_to`, `recv_from`. Open as many as you need; each has a port of
//!   its own there. Names are resolved at the exit, never here.
//! * `AsyncUdpTunnel` is the same for tokio (feature `tokio`), with `Entry::wait_ready_async`.
//!
//! # Quick start
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use eddy_node::{Entry, UdpTunnel};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let entry = Entry::builder().chain_file("chain.toml").start()?;
//! entry.wait_ready(Duration::from_secs(10))?;
//!
//! let tunnel = UdpTunnel::open(&entry)?;
//! tunnel.set_read_timeout(Some(Duration::from_secs(5)))?;
//! tunnel.send_to(b"question", &"example.org:5000".parse()?)?;
//!
//! let mut answer = vec![0; entry.max_datagram_len()];
//! let (len, from) = tunnel.recv_from(&mut answer)?;
//! println!("{from} answered {:?}", &answer[..len]);
//! # Ok(())
//! # }
//! ```
//!
//! To try it, run `eddy chain --stay`: it starts a chain on this host and prints the path of its `chain.toml`. The
//! examples `echo` (blocking) and `dns` (async) are complete programs.
//!
//! # Errors
//!
//! Each message is one line with its cause and a remedy; `source()` is not set.
//!
//! * [`StartError`]: the entry does not start. [`StartError::Config`] is a mistake to fix first; the rest is the
//!   operating system's.
//! * [`NotReady`]: the chain is not up yet. It says whether mix1 answers. The entry keeps trying.
//! * [`TunnelError`]: a call on a tunnel. What the exit refuses (its policy, a closed port, an unknown name, no room)
//!   is the error of the next call on that tunnel, with the destination, as `ECONNREFUSED` is on a UDP socket. It
//!   converts to [`std::io::Error`] with a fitting kind.
//! * [`NodeDied`]: a thread panicked, which is a bug.
//!
//! Datagrams are lost without an error like anywhere on a network. [`Entry::report`] counts where each one went.
//!
//! # Limits
//!
//! | what | limit |
//! | --- | --- |
//! | longest datagram | [`Entry::max_datagram_len`], eight cells; [`Entry::max_single_cell_len`] bytes take one |
//! | datagrams that wait for the first channel | 1024; then the oldest is dropped |
//! | tunnels, forwards and SOCKS associations | 8192, each with an open file here and a socket at the exit |
//! | new destinations | 64 a second for each channel |
//! | flows (tunnel and destination) | 131,072 at the entry; at the exit 1024 per channel unless configured otherwise |
//! | idle flows | closed after 300 s without sending, unless configured otherwise |
//! | refusals that wait for one tunnel | 64; the oldest make room; at most 100 a second for the entry |
//!
//! Linux only. The crate makes threads of its own (control, a worker, and one for each kind of socket that is
//! configured), so it needs no async runtime. It logs with `tracing`.
//!
//! Everything that this page does not list is for the command `eddy` and may change at any time.

#![warn(missing_docs)]

#[doc(hidden)]
#[allow(missing_docs)]
pub mod ceremony;
#[doc(hidden)]
pub mod client;
#[doc(hidden)]
#[allow(missing_docs)]
pub mod config;
mod error;
#[doc(hidden)]
#[allow(missing_docs)]
pub mod figures;
#[doc(hidden)]
#[allow(missing_docs)]
pub mod init;
#[doc(hidden)]
#[allow(missing_docs)]
pub mod report;
#[doc(hidden)]
#[allow(missing_docs)]
pub mod runtime;

#[cfg(feature = "tokio")]
#[doc(inline)]
pub use client::AsyncUdpTunnel;
#[doc(inline)]
pub use client::{Destination, Entry, EntryBuilder, MeetingSecret, NotReady, TunnelError, UdpTunnel};
#[doc(inline)]
pub use config::{ClassName, ConfigError, Target};
pub use error::{NodeDied, StartError};
#[doc(inline)]
pub use report::NodeReport;
