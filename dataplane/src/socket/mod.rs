//! Sockets: link sockets that carry cells, and application sockets that carry datagrams.
//!
//! Two implementations: [`link`] on UDP sockets, by one of two kinds of system calls ([`backend`]), and [`memory`],
//! deterministic, for tests.

pub mod app_batch;
pub mod apps;
pub mod backend;
mod backlog;
pub mod link;
pub mod memory;
pub mod offload;
mod rx_buffers;
#[cfg(test)]
mod suite;

use crate::Nanos;
use crate::batch::{Arrivals, Departures};
use crate::buffer::FreeList;
use crate::ledger::{Tally, Traffic};

pub trait Port {
    /// Receives at most one batch, and at most as many cells as there are free buffers. Returns the number of
    /// datagrams.
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize;

    /// Sends until everything has left (true) or the socket takes no more (false: try again in the next turn). Counts
    /// what was sent and what the kernel refused, and returns the buffers.
    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool;

    /// The poller saw it readable.
    fn set_ready(&mut self);

    /// How long the newest of what the last [`Port::recv`] brought had waited, if the port has not been read empty for
    /// some time; else 0.
    fn waited(&mut self, _now: Nanos) -> Nanos {
        0
    }

    /// Buffers that it keeps for what is to come; they are empty.
    fn rx_buffers(&self) -> usize {
        0
    }

    /// Messages that have passed through it.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// A socket that a shard of a mix may do without, because another shard has it.
impl<P: Port> Port for Option<P> {
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize {
        self.as_mut().map_or(0, |port| port.recv(free, into))
    }

    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool {
        debug_assert!(self.is_some() || out.is_empty(), "cells are steered to shards with a socket");
        self.as_mut().is_none_or(|port| port.send(out, free, tally))
    }

    fn set_ready(&mut self) {
        if let Some(port) = self {
            port.set_ready();
        }
    }

    fn waited(&mut self, now: Nanos) -> Nanos {
        self.as_mut().map_or(0, |port| port.waited(now))
    }

    fn rx_buffers(&self) -> usize {
        self.as_ref().map_or(0, Port::rx_buffers)
    }

    fn traffic(&self) -> Traffic {
        self.as_ref().map_or(Traffic { gso: true, uring: true, ..Traffic::default() }, Port::traffic)
    }
}
