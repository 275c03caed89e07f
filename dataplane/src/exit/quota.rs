//! Divides what all channels of an exit share: flows, sockets, names being resolved, and their rate.
//!
//! A channel gets one more only while more of them are free than it has. So k greedy channels leave a part in k + 1 to
//! the others.

use hashbrown::HashMap;
use wire::ids::ChannelIndex;

use crate::Nanos;
use crate::rate::{Bucket, Rate};

/// New flows that a channel may open at once, and per second.
const OPENS: Rate = Rate::new(64, 64);

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Flows of one channel.
    pub flows_per_channel: usize,
    /// Sockets of all channels together.
    pub sockets: usize,
}

/// One channel's part of the shared resources.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) flows: usize,
    pub(super) sockets: usize,
    pub(super) questions: usize,
}

impl Share {
    pub(super) const FLOW: Share = Share { flows: 1, sockets: 0, questions: 0 };
    pub(super) const SOCKET: Share = Share { flows: 0, sockets: 1, questions: 0 };
    pub(super) const QUESTION: Share = Share { flows: 0, sockets: 0, questions: 1 };
}

/// The shares of all channels that hold anything.
#[derive(Default)]
pub(super) struct Quota {
    shares: HashMap<ChannelIndex, Share, foldhash::fast::RandomState>,
}

impl Quota {
    pub(super) fn of(&self, channel: ChannelIndex) -> Share {
        self.shares.get(&channel).copied().unwrap_or_default()
    }

    pub(super) fn take(&mut self, channel: ChannelIndex, more: Share) {
        let share = self.shares.entry(channel).or_default();
        share.flows += more.flows;
        share.sockets += more.sockets;
        share.questions += more.questions;
    }

    pub(super) fn give_back(&mut self, channel: ChannelIndex, less: Share) {
        if let Some(share) = self.shares.get_mut(&channel) {
            share.flows -= less.flows;
            share.sockets -= less.sockets;
            share.questions -= less.questions;
            if *share == Share::default() {
                self.shares.remove(&channel);
            }
        }
    }

    pub(super) fn holds(&self, channel: ChannelIndex) -> bool {
        self.shares.contains_key(&channel)
    }

    /// Forgets a channel. True if it still held something.
    pub(super) fn forget(&mut self, channel: ChannelIndex) -> bool {
        self.shares.remove(&channel).is_some()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }
}

/// A channel's token buckets for new flows and names: a socket or a question costs the exit more than a cell.
#[derive(Default)]
pub(super) struct Opens {
    flows: Bucket,
    /// Its part in the use of the exit's bucket.
    names: Bucket,
}

impl Opens {
    /// Takes a token for a flow, if there is one.
    pub(super) fn take(&mut self, now: Nanos) -> bool {
        self.flows.take(OPENS, now)
    }

    /// Takes a token for a name from the exit's bucket, if others are left enough.
    pub(super) fn take_name(&mut self, names: &mut Bucket, rate: Option<Rate>, now: Nanos) -> bool {
        rate.is_none_or(|rate| names.take_shared(&mut self.names, rate, now))
    }
}
