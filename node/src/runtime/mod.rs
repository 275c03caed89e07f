//! A running node: control and data plane side by side, with their threads and sockets.
//!
//! [`running`] starts a node as its files say, in which [`node`] runs `control` and `dataplane`, [`workers`] makes the
//! latter, [`bridge`] carries what they say to each other, [`resolver`] looks names up for the exit, [`sockets`] binds or
//! takes over what a node talks through, [`listeners`] are those of an entry, which [`console`] changes while it runs and
//! [`socks`] opens for SOCKS5 clients. [`status`] serves the node's report over a Unix socket ([`local`]).

mod address_order;
pub mod bridge;
pub mod console;
pub mod icmp;
pub mod listeners;
pub mod local;
pub mod log;
pub mod node;
pub mod readiness;
pub mod refusals;
pub mod resolver;
pub mod running;
pub mod sockets;
pub mod socks;
pub mod status;
pub mod workers;
