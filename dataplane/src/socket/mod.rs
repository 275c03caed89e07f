//! Receiving and sending cells: what a worker needs of a socket.
//!
//! Two implementations: [`link`] on UDP sockets, by one of two kinds of system calls ([`backend`]), and [`memory`],
//! deterministic, for tests.

pub mod app_batch;
pub mod apps;
pub mod backend;
pub mod link;
pub mod memory;
pub mod offload;
mod rx_buffers;
#[cfg(test)]
mod suite;

use crate::batch::{Arrivals, Departures};
use crate::buffer::FreeList;
use crate::ledger::{Tally, Traffic};

/// Receives cells.
pub trait Rx {
    /// Takes what waits, at most one batch and at most as many as there are free buffers. Returns how
    /// many came.
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize;

    /// Buffers that it keeps for what is to come; they hold nothing.
    fn rx_buffers(&self) -> usize {
        0
    }
}

/// Sends cells.
pub trait Tx {
    /// Sends until all are gone (true) or the socket takes no more (false: try again next turn).
    /// Counts what went and what the kernel refused, and gives the buffers back.
    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool;
}

/// One link socket.
pub trait Port: Rx + Tx {
    /// The poller saw it readable.
    fn set_ready(&mut self);

    /// What passed through it so far.
    fn traffic(&self) -> Traffic {
        Traffic::default()
    }
}

/// A socket that an edge of a mix may do without: another one has it.
impl<P: Rx> Rx for Option<P> {
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize {
        self.as_mut().map_or(0, |port| port.recv(free, into))
    }

    fn rx_buffers(&self) -> usize {
        self.as_ref().map_or(0, Rx::rx_buffers)
    }
}

impl<P: Tx> Tx for Option<P> {
    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool {
        debug_assert!(self.is_some() || out.is_empty(), "cells are steered to edges with a socket");
        self.as_mut().is_none_or(|port| port.send(out, free, tally))
    }
}

impl<P: Port> Port for Option<P> {
    fn set_ready(&mut self) {
        if let Some(port) = self {
            port.set_ready();
        }
    }

    fn traffic(&self) -> Traffic {
        self.as_ref().map_or(Traffic { gso: true, uring: true, ..Traffic::default() }, Port::traffic)
    }
}
