//! Flows that the exit refused, on their way to the tunnel that sent the datagram.
//!
//! The data plane notices one, control stores it here, and the tunnel's next call returns it as an error. A wake
//! datagram on the tunnel's relay ends a call that waits. The end of the entry arrives the same way. The cell path does
//! not change.
//!
//! Neighbours: [`crate::runtime::node`] fills it by way of [`crate::runtime::listeners`], [`crate::client`] empties it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use dataplane::entry::Destination;
use wire::frames::Status;

/// Most refused flows that wait for one tunnel; the oldest are removed first.
const PENDING_MAX: usize = 64;
/// Wakes a tunnel. Shorter than any header that a relay sends.
pub const WAKE: &[u8] = &[1];

/// The destination of a datagram, and the reason why the exit does not send there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedFlow {
    /// As the tunnel wrote it.
    pub destination: Destination,
    /// The exit's answer.
    pub status: Status,
}

/// Refused flows of one tunnel, oldest first.
#[derive(Default)]
pub struct RefusedFlows {
    pending: Mutex<VecDeque<RefusedFlow>>,
    /// True if `pending` is not empty, so that a call without them takes no lock.
    any: AtomicBool,
    ended: AtomicBool,
}

impl RefusedFlows {
    /// Adds one.
    pub fn push(&self, flow: RefusedFlow) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.len() == PENDING_MAX {
            pending.pop_front();
        }
        pending.push_back(flow);
        self.any.store(true, Ordering::Release);
    }

    /// Records that the entry has ended: nothing that reaches the tunnel's port later comes from it.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// True after [`RefusedFlows::end`].
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Takes the oldest.
    pub fn take(&self) -> Option<RefusedFlow> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let first = pending.pop_front();
        self.any.store(!pending.is_empty(), Ordering::Release);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_flows_are_bounded_and_come_in_order() {
        let refused = RefusedFlows::default();
        assert_eq!(refused.take(), None);
        let flow =
            |port| RefusedFlow { destination: Destination::Name("a.example".into(), port), status: Status::Refused };
        (1..=PENDING_MAX as u16 + 3).for_each(|port| refused.push(flow(port)));
        let taken: Vec<_> = std::iter::from_fn(|| refused.take()).collect();
        assert_eq!(taken.len(), PENDING_MAX);
        assert_eq!((&taken[0], refused.take()), (&flow(4), None));
    }
}
