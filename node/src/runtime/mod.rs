//! A running node: control and data plane side by side, with their threads and sockets.
//!
//! [`running`] starts a node as its files say: it checks them, `next_hop` chooses how the next hop is
//! reached, [`sockets`] binds or takes over the sockets, and
//! [`node`] runs `control` and `dataplane`. [`workers`] makes the data plane; [`bridge`] carries messages between the
//! two; [`resolver`] resolves names for the exit. [`listeners`] are the listening sockets of an entry: [`console`]
//! changes them while it runs, and [`socks`] opens them for SOCKS5 clients. [`status`] serves the node's report over a
//! Unix socket ([`local`]). `trust_keeper` saves the state of
//! trust and reads descriptors and keys again, [`expiry`] warns before they end, `next_names` resolves the names of
//! the next hop, and `own_addresses` reads those of an exit's host. [`log`] decides what is logged of events, `flood`
//! of floods of handshakes, and `pauses` of times in which the node did not run. `door` takes in handshakes, and
//! `drop_counter` counts what the kernel drops at a socket. `meeting` keeps that of an entry, and
//! `flow_stop` says when one refuses new flows. [`seats`] measures whether a hop opens the setups of a paced class in
//! time.

mod address_order;
pub mod bridge;
mod class;
pub mod console;
mod control_thread;
mod door;
mod drop_counter;
pub mod expiry;
mod flood;
mod flow_stop;
pub mod icmp;
pub mod listeners;
pub mod local;
pub mod log;
mod meeting;
mod meter_alarm;
mod next_hop;
mod next_names;
pub mod node;
mod own_addresses;
pub mod path;
mod pauses;
pub mod random;
pub mod readiness;
pub mod refused_flows;
mod reporter;
pub mod resolver;
pub mod running;
pub mod seats;
pub mod sockets;
pub mod socks;
pub mod status;
mod trust_keeper;
pub mod workers;
