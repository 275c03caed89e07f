//! The client API: an entry in this process, and tunnels through its chain. See the crate's documentation.

#[cfg(feature = "tokio")]
mod async_io;
mod builder;
mod error;
mod tunnel;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use wire::frames;
pub use wire::paced::MeetingSecret;

#[cfg(feature = "tokio")]
pub use async_io::AsyncUdpTunnel;
pub use builder::EntryBuilder;
pub use dataplane::entry::Destination;
pub use error::{NotReady, TunnelError};
pub use tunnel::UdpTunnel;

use crate::ceremony::places;
use crate::config::{ClassName, ConfigError, Loaded, Part, Payload};
use crate::error::{NodeDied, StartError};
use crate::report::NodeReport;
use crate::runtime::listeners::Listeners;
use crate::runtime::readiness::{Progress, Readiness};
use crate::runtime::running::Running;

/// A running entry: what `eddy entry` runs, in this process.
///
/// It keeps its channels open, and serves the forwards, SOCKS ports and sockets that its configuration names. It ends
/// when dropped; [`Entry::shutdown`] also returns the last report.
pub struct Entry {
    node: Option<Running>,
    /// Of the chain's first class, unless it serves a meeting.
    listeners: Option<Listeners>,
    /// What a cell of that class holds.
    payload: Payload,
    readiness: Arc<Readiness>,
    /// The address of mix1.
    next: String,
}

impl Entry {
    /// An entry from a chain file, or from its text, and options.
    pub fn builder() -> EntryBuilder {
        EntryBuilder::new()
    }

    /// Starts the entry of a configuration file as `eddy init` writes it, with the files that it names.
    ///
    /// # Errors
    /// A mistake in a file, or a refusal of the operating system.
    pub fn start(config: impl AsRef<Path>) -> Result<Entry, StartError> {
        Entry::run(Loaded::read(config.as_ref())?)
    }

    fn run(mut loaded: Loaded) -> Result<Entry, StartError> {
        let Part::Entry(part) = &mut loaded.config.part else {
            let (file, role) = (loaded.config.path.display(), loaded.config.role().with_article());
            let what = format!("{file} configures {role}, not an entry: pass the entry's configuration");
            return Err(ConfigError::Arguments(what).into());
        };
        part.has_tunnels = true;
        let first = loaded.first_class();
        let (published, payload) = (first.next_contact().map(places), first.terms.payload());
        let next = loaded.config.next.clone().or(published).unwrap_or_default();
        let node = Running::start(loaded, ListenFd::empty())?;
        let (listeners, readiness) = (node.listeners(), node.readiness());
        Ok(Entry { node: Some(node), listeners, payload, readiness, next })
    }

    /// The addresses at which it listens, in one class: of forwards, or of its meeting. Empty if it does not serve the
    /// class.
    pub fn listens(&self, class: &ClassName) -> Vec<SocketAddr> {
        self.running().listens(class)
    }

    /// Meets the user who has this secret from now on, in a class that serves a meeting already. It takes effect with
    /// the next batch whose setup has not begun.
    ///
    /// # Errors
    /// The class serves no meeting.
    pub fn meet(&self, class: &ClassName, secret: MeetingSecret) -> Result<(), ConfigError> {
        self.running().meet(class, secret)
    }

    fn running(&self) -> &Running {
        self.node.as_ref().expect("it runs until it is dropped")
    }

    /// Waits until every class is ready: in a free class all of the entry's channels are open, in a paced class it has
    /// a channel in the running batch, which takes one to two batches, and up to an interval before them.
    ///
    /// Tunnels of free classes work before that, too: what they send waits. The wait shows whether the chain is up.
    ///
    /// # Errors
    /// Not every class is ready after `timeout`. The entry keeps trying, so this may be called again.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), NotReady> {
        let started = Instant::now();
        let progress = self.readiness.wait(timeout);
        self.judge(progress, started.elapsed())
    }

    fn judge(&self, progress: Progress, waited: Duration) -> Result<(), NotReady> {
        let Progress { linked, open, wanted, ended } = progress;
        if ended {
            Err(NotReady::Closed)
        } else if open >= wanted {
            Ok(())
        } else if !linked {
            Err(NotReady::NoLink { address: self.next.clone(), waited })
        } else {
            Err(NotReady::FewChannels { open, wanted, waited })
        }
    }

    /// Bytes of the longest datagram that travels in one cell. Longer ones take up to eight cells, and are lost if one
    /// of them is.
    pub fn max_single_cell_len(&self) -> usize {
        frames::max_single_cell_len(self.payload.bytes)
    }

    /// Bytes of the longest datagram that can be sent.
    pub fn max_datagram_len(&self) -> usize {
        frames::max_datagram_len(self.payload.bytes)
    }

    /// All counters, as of now: where every datagram went.
    pub fn report(&self) -> NodeReport {
        self.running().report()
    }

    /// Ends the entry, its channels and its tunnels, and returns the last report.
    ///
    /// # Errors
    /// A thread of it panicked.
    pub fn shutdown(mut self) -> Result<NodeReport, NodeDied> {
        self.node.take().expect("it runs until it is dropped").stop()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Nobody asks for the report.
        let _ = self.node.take().map(Running::stop);
    }
}
