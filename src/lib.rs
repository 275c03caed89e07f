//! eddy: a mix chain for streaming-grade UDP.
//!
//! For programs that want datagrams through a chain there is [`client`]. The rest is the command and what it is made of.
//! [`config`] reads what operators write, [`running`] starts a node of it, in which [`node`] runs `control` and
//! `dataplane` side by side, [`workers`] makes the latter, [`join`] carries what they say to each other, [`resolver`] looks
//! names up for the exit, [`sockets`] binds or takes over what a node talks through, [`listeners`] are those of an entry,
//! which [`console`] changes while it runs and [`socks`] opens for SOCKS5 clients. [`report`] is what a node says of
//! itself, [`status`] says it over a Unix socket ([`local`]). [`cli`] and [`commands`] are the command.

pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod console;
pub mod icmp;
pub mod join;
pub mod listeners;
pub mod local;
pub mod node;
pub mod report;
pub mod resolver;
pub mod running;
pub mod sockets;
pub mod socks;
pub mod status;
pub mod workers;
