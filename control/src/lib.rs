//! Key exchange as state machines: bytes in, bytes and events out (docs/SPEC.md 4, 5).
//!
//! [`Control`] is one node's whole control plane: the link handshakes towards the previous hop
//! (which it answers) and the next hop (which it starts), channel setup and ack, admission. It owns
//! no socket, no thread and no clock: the runner hands in datagrams, control cells and the time, and
//! takes out datagrams, operations on the data plane's table, and events. Nothing a peer sends makes
//! it panic or answer with more than it got; what it refuses it counts by [`Refusal`].
//!
//! Neighbours: `wire` below (bytes and keys); the node above, which joins it with the data plane.

mod config;
mod counters;
mod datagram;
pub mod descriptor;
mod io;
mod noise;

pub use config::{BadConfig, Caps, Config, NextHop, Rate, Role, Timing};
pub use counters::{Counters, Refusal};
pub use datagram::handshake_length;
pub use descriptor::{Descriptor, DescriptorError, Identity};
pub use io::{ChannelIndex, ChannelKeys, DataOp, EndReason, Event, Input, LinkId, Output, Rank, Side, SlotId};
