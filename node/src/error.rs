//! The errors of a node: it does not start, or a thread of it panicked.
//!
//! Every message is one line that includes its cause and names a remedy, so `source()` is not set: printing an error
//! with its chain repeats nothing.

use std::io;

use thiserror::Error;

use crate::config::{ConfigError, in_words};

/// A node does not start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// A mistake in a file, an option or a setting of this host. Starting again does not help before it is fixed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system refuses a resource that every node needs. Starting again later may help.
    #[error("cannot {action}: {}: {remedy}", in_words(why))]
    System {
        /// The attempted action, as a verb phrase.
        action: &'static str,
        /// The answer of the system.
        why: io::Error,
        /// The remedy.
        remedy: &'static str,
    },
    /// The exit has no name server.
    #[error("cannot start the resolver: {0}: set `resolver = \"IP:53\"` in the exit's configuration")]
    Resolver(String),
}

impl StartError {
    /// For `map_err`: the system refused to do `action`.
    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> StartError {
        let remedy = "check the limits of threads and open files (`ulimit -u -n`), and the rules of a sandbox";
        move |why| StartError::System { action, why, remedy }
    }
}

/// A thread of the node panicked, so there is no last report.
#[derive(Debug, Error)]
#[error("the {thread} thread panicked: report this bug with the panic message that was printed on standard error")]
pub struct NodeDied {
    /// `control` or `worker`.
    pub thread: &'static str,
}
