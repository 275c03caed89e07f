//! Further addresses of a name, for flows whose first one may turn out to be unreachable (SPEC 3.12.8).
//!
//! A flow is listed here from the answer of the resolver until its peer answers, its last address is in use, or it
//! ends. Meanwhile its latest datagrams are kept, to be sent again to the next address. Copies are bounded by flow, in
//! all and by age; a copy is counted in the ledger when it is sent again, as injected.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use hashbrown::HashMap;

use crate::socket::app_batch::FlowId;
use crate::{Nanos, SECOND};

/// Addresses of a name that a flow tries.
pub(crate) const CANDIDATES_MAX: usize = 4;
/// Datagrams of a flow that are kept.
const KEPT_PER_FLOW: usize = 4;
/// Datagrams that are kept, over all flows: of class L 10.8 MB.
const KEPT_MAX: usize = 1024;
/// A datagram is sent again at most this long after it was first sent.
pub(super) const KEEP: Nanos = SECOND;

/// Further addresses and latest datagrams of flows.
pub(super) struct Fallbacks {
    flows: HashMap<FlowId, Fallback, foldhash::fast::RandomState>,
    /// Datagrams that are kept.
    kept: usize,
    /// How long they are kept: [`KEEP`], or the maximum age if that is shorter.
    keep: Nanos,
}

impl Default for Fallbacks {
    fn default() -> Fallbacks {
        Fallbacks { flows: HashMap::default(), kept: 0, keep: KEEP }
    }
}

struct Fallback {
    /// In reverse: the next address is the last element.
    addresses: ArrayVec<IpAddr, CANDIDATES_MAX>,
    datagrams: ArrayVec<Kept, KEPT_PER_FLOW>,
}

/// A datagram, and when it was sent first.
pub(super) type Kept = (Nanos, Vec<u8>);

impl Fallbacks {
    /// Keeps datagrams for no longer than their maximum age.
    pub(super) fn keep_for(&mut self, max_age: Nanos) {
        self.keep = KEEP.min(max_age);
    }

    /// Lists a flow with the addresses that follow its first one.
    pub(super) fn add(&mut self, flow: FlowId, addresses: &[IpAddr]) {
        let addresses: ArrayVec<IpAddr, CANDIDATES_MAX> = addresses.iter().rev().copied().collect();
        if !addresses.is_empty() {
            self.flows.insert(flow, Fallback { addresses, datagrams: ArrayVec::new() });
        }
    }

    /// True if the flow has a further address.
    pub(super) fn has(&self, flow: FlowId) -> bool {
        self.flows.contains_key(&flow)
    }

    /// Keeps a copy of a datagram of a listed flow, if there is room.
    pub(super) fn keep(&mut self, flow: FlowId, data: &[u8], sent: Nanos) {
        if self.flows.is_empty() {
            return;
        }
        let Some(Fallback { datagrams, .. }) = self.flows.get_mut(&flow) else { return };
        if datagrams.is_full() {
            datagrams.remove(0);
        } else if self.kept < KEPT_MAX {
            self.kept += 1;
        } else {
            return;
        }
        datagrams.push((sent, data.to_vec()));
    }

    /// The next address of a flow, and the datagrams to send there again. With its last address a flow is no longer
    /// listed.
    pub(super) fn next(&mut self, flow: FlowId, now: Nanos) -> Option<(IpAddr, Vec<Kept>)> {
        let fallback = self.flows.get_mut(&flow)?;
        let address = fallback.addresses.pop()?;
        let datagrams = std::mem::take(&mut fallback.datagrams);
        self.kept -= datagrams.len();
        if fallback.addresses.is_empty() {
            self.flows.remove(&flow);
        }
        Some((address, datagrams.into_iter().filter(|(sent, _)| now <= sent + self.keep).collect()))
    }

    /// Removes a flow whose peer has answered, or that has ended.
    pub(super) fn forget(&mut self, flow: FlowId) {
        if !self.flows.is_empty()
            && let Some(fallback) = self.flows.remove(&flow)
        {
            self.kept -= fallback.datagrams.len();
        }
    }

    /// Frees datagrams that are too old to be sent again.
    pub(super) fn sweep(&mut self, now: Nanos) {
        let keep = self.keep;
        for fallback in self.flows.values_mut() {
            let before = fallback.datagrams.len();
            fallback.datagrams.retain(|(sent, _)| now <= *sent + keep);
            self.kept -= before - fallback.datagrams.len();
        }
    }

    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        assert_eq!(self.kept, self.flows.values().map(|fallback| fallback.datagrams.len()).sum::<usize>());
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn kept_datagrams_are_bounded_by_flow_exit_and_time() {
        let mut fallbacks = Fallbacks::default();
        for flow in 0..1000 {
            fallbacks.add(FlowId(flow), &[ip(2), ip(3)]);
            (0..6).for_each(|n| fallbacks.keep(FlowId(flow), &[n], Nanos::from(n)));
        }
        assert_eq!(fallbacks.kept(), KEPT_MAX);
        let latest = [2, 3, 4, 5].map(|n| (Nanos::from(n), vec![n])).to_vec();
        assert_eq!(fallbacks.next(FlowId(0), KEEP), Some((ip(2), latest)));
        assert_eq!(fallbacks.kept(), KEPT_MAX - KEPT_PER_FLOW);
        assert_eq!(
            fallbacks.next(FlowId(1), KEEP + 4),
            Some((ip(2), [4, 5].map(|n| (Nanos::from(n), vec![n])).to_vec()))
        );
        fallbacks.sweep(KEEP + 4);
        assert_eq!(fallbacks.kept(), KEPT_MAX / 2 - KEPT_PER_FLOW);
        fallbacks.sweep(KEEP + 6);
        assert_eq!(fallbacks.kept(), 0);
    }

    #[test]
    fn flow_is_listed_until_its_last_address_or_an_answer() {
        let mut fallbacks = Fallbacks::default();
        fallbacks.add(FlowId(1), &[]);
        assert!(!fallbacks.has(FlowId(1)));
        fallbacks.add(FlowId(1), &[ip(2), ip(3)]);
        fallbacks.keep(FlowId(1), b"x", 0);
        fallbacks.keep(FlowId(2), b"not listed", 0);
        assert_eq!(fallbacks.kept(), 1);
        assert_eq!(fallbacks.next(FlowId(1), 0).map(|(address, _)| address), Some(ip(2)));
        assert_eq!(fallbacks.next(FlowId(1), 0).map(|(address, _)| address), Some(ip(3)));
        assert_eq!(fallbacks.next(FlowId(1), 0), None);
        fallbacks.keep(FlowId(1), b"x", 0);
        fallbacks.add(FlowId(1), &[ip(2)]);
        fallbacks.keep(FlowId(1), b"x", 0);
        fallbacks.forget(FlowId(1));
        assert!(!fallbacks.has(FlowId(1)) && fallbacks.kept() == 0);
    }
}
