//! Counts each channel's part of what an exit's channels share; [`super::flows`] applies the rule of SPEC 5.9.

use hashbrown::HashMap;
use wire::ids::ChannelIndex;

use crate::rate::{Bucket, Rate};
use crate::{Nanos, SECOND};

/// New flows that a channel may open at once, and per second.
const OPENS: Rate = Rate::new(64, 64);

/// A part is kept for channels that have fewer than this.
pub(super) const FEW: usize = 8;

/// True if more than the `own` of a channel are free in addition to those that are `kept` for others.
fn is_within_share(own: usize, free: usize, kept: usize) -> bool {
    free > own + kept
}

/// True if a channel that has `own` gets one more while `free` are left: its first one if there is one, and others only
/// within its share.
pub(super) fn may_have_another(own: usize, free: usize, kept: usize) -> bool {
    is_within_share(own, free, kept) || own == 0 && free > 0
}

/// The part of what all channels share from which a channel got one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// What is not kept.
    Common,
    /// An eighth of all, for channels that have fewer than [`FEW`].
    Few,
    /// The last eighth, for channels that have none.
    First,
}

impl Part {
    /// From which a channel that has `own` gets one more of `all` while `free` are left. None if it gets none.
    pub(super) fn of(own: usize, free: usize, all: usize) -> Option<Part> {
        let kept = all / 4;
        if is_within_share(own, free, kept) {
            Some(Part::Common)
        } else if own < FEW && is_within_share(own, free, kept.div_ceil(2)) {
            Some(Part::Few)
        } else {
            (own == 0 && free > 0).then_some(Part::First)
        }
    }

    /// To which one of this part belongs when it comes to another channel, which has `own`, among them `firsts` of
    /// [`Part::First`]. None if that may not have it: otherwise it could collect what others get from the kept parts.
    pub(super) fn passed_on(self, own: usize, firsts: usize, free: usize, all: usize) -> Option<Part> {
        let part = Part::of(own, free, all).map_or(self, |part| part.min(self));
        let may = match part {
            Part::Common => true,
            Part::Few => own < FEW,
            Part::First => firsts == 0,
        };
        may.then_some(part)
    }
}

/// Bounds of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Flows of one channel.
    pub flows_per_channel: usize,
    /// Sockets of all channels together.
    pub sockets: usize,
}

/// What one channel has of the shared resources, and how many of these are of [`Part::First`].
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) flows: usize,
    pub(super) first_flows: usize,
    pub(super) sockets: usize,
    pub(super) first_sockets: usize,
    pub(super) questions: usize,
}

impl Share {
    const NONE: Share = Share { flows: 0, first_flows: 0, sockets: 0, first_sockets: 0, questions: 0 };
    pub(super) const QUESTION: Share = Share { questions: 1, ..Share::NONE };

    pub(super) const fn flow(part: Part) -> Share {
        Share { flows: 1, first_flows: matches!(part, Part::First) as usize, ..Share::NONE }
    }

    pub(super) const fn socket(part: Part) -> Share {
        Share { sockets: 1, first_sockets: matches!(part, Part::First) as usize, ..Share::NONE }
    }
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
        share.first_flows += more.first_flows;
        share.sockets += more.sockets;
        share.first_sockets += more.first_sockets;
        share.questions += more.questions;
    }

    pub(super) fn give_back(&mut self, channel: ChannelIndex, less: Share) {
        if let Some(share) = self.shares.get_mut(&channel) {
            share.flows -= less.flows;
            share.first_flows -= less.first_flows;
            share.sockets -= less.sockets;
            share.first_sockets -= less.first_sockets;
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

/// Names that a channel, or all of them, have had resolved in the running second.
#[derive(Clone, Copy, Default)]
pub(super) struct Lookups {
    second: u64,
    count: u32,
}

impl Lookups {
    fn count(&mut self, now: Nanos) -> &mut u32 {
        let second = now / SECOND;
        if self.second != second {
            *self = Lookups { second, count: 0 };
        }
        &mut self.count
    }
}

/// A channel's use of new flows and names: a socket or a question costs the exit more than a cell.
#[derive(Default)]
pub(super) struct Opens {
    flows: Bucket,
    names: Lookups,
}

impl Opens {
    /// Takes a token for a flow, if there is one.
    pub(super) fn take(&mut self, now: Nanos) -> bool {
        self.flows.take(OPENS, now)
    }

    /// Counts one more name, if the channel may have another of the second's `max`.
    pub(super) fn take_name(&mut self, all: &mut Lookups, max: Option<u32>, now: Nanos) -> bool {
        let Some(max) = max else { return true };
        let (all, own) = (all.count(now), self.names.count(now));
        let may = may_have_another(*own as usize, max.saturating_sub(*all) as usize, max as usize / 2);
        *all += u32::from(may);
        *own += u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_second_are_shared_among_those_who_ask() {
        let (mut all, mut channels, mut got) = (Lookups::default(), [(); 4].map(|()| Opens::default()), [0u64; 4]);
        // Three ask all the time, the last one ten times a second.
        for ms in 0..10_000 {
            let mut ask = |channel: usize| {
                got[channel] += u64::from(channels[channel].take_name(&mut all, Some(100), ms * SECOND / 1000));
            };
            (0..10).for_each(|_| (0..3).for_each(&mut ask));
            if ms % 100 == 0 {
                ask(3);
            }
        }
        assert!(got[3] >= 20 && got[..3].iter().all(|got| *got >= 50), "{got:?}");
        assert!(got.iter().sum::<u64>() <= 600, "{got:?}");
    }

    /// Greedy channels, each until it gets no more, leave to newcomers what is kept for them.
    #[test]
    fn greedy_channels_leave_what_is_kept_for_others() {
        for (all, kept) in [(1, 0), (2, 1), (3, 0), (100, 25), (4096, 2048)] {
            let mut free = all;
            for _ in 0..20 {
                let mut own = 1;
                while may_have_another(own, free, kept) {
                    (own, free) = (own + 1, free - 1);
                }
            }
            assert!(free >= kept, "{free} of {all}");
            assert!((1..=free).all(|free| may_have_another(0, free, kept)));
            assert!(!may_have_another(0, 0, kept));
        }
    }
}
