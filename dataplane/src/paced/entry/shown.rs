//! What an entry shows: its meeting, what it has lost, how long datagrams waited, and its ledger.

use std::sync::PoisonError;

use wire::paced::{BEHIND_MAX, REPORT_EVERY};

use super::{Entry, MeetingEnd};
use crate::Nanos;
use crate::ledger::{Buffers, Gauges, Ledger};
use crate::punt::Punt;
use crate::socket::Port;
use crate::socket::apps::Apps;

/// Rounds with a channel and without an authentic body after which a meeting is lost (SPEC 9.13.7).
pub const LOST_AFTER: u64 = 100;
/// Lost places are counted this many rounds back at most.
pub(super) const COUNTED_MAX: u64 = 128;

/// What control has heard of lost places: those of the rounds before `next`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    next: u64,
    places: u64,
    lost: u64,
}

/// What the entry of a meeting sees of it (SPEC 9.13.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeetingState {
    /// The exit answers: the other end is not there.
    Waiting,
    /// The other end answers.
    Joined,
    /// Nothing opened in the last 100 rounds with a channel. Below the floor nothing can, of which a worker knows
    /// nothing.
    Lost,
}

/// What a worker shows in addition to its ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryView {
    /// The round of which first copies leave; none before the lead is known.
    pub running: Option<u64>,
    /// It has the keys of a channel in that round: control may have been too late with them.
    pub has_channel: bool,
    /// None for destinations.
    pub meeting: Option<MeetingState>,
    /// Rounds that were not sent because the worker was late, or because the lead has jumped.
    pub skipped: u64,
    /// Backward places of the entry's channels in rounds of which no cell is accepted any more.
    pub places: u64,
    /// Those of them of which no copy came (SPEC 9.15.3).
    pub lost: u64,
    /// Of the same rounds.
    pub outages: Outages,
    /// Those of a meeting in batches in which the other end is there, up to the latest one that has opened.
    pub of_other_end: EndToEnd,
    /// Of about 100 rounds, the latest ones in which datagrams left.
    pub waits: Option<Waits>,
}

/// Two rounds or more in a row of which nothing came: copies do not make up for that, and a repeat not for long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outages {
    pub count: u64,
    /// In rounds.
    pub longest: u64,
    /// Rounds without a cell up to the latest one that was counted.
    in_a_row: u64,
}

impl Outages {
    /// One round more.
    fn count(&mut self, is_lost: bool) {
        self.in_a_row = if is_lost { self.in_a_row + 1 } else { 0 };
        self.count += u64::from(self.in_a_row == 2);
        if self.in_a_row >= 2 {
            self.longest = self.longest.max(self.in_a_row);
        }
    }
}

/// Places of cells that the other end of a meeting has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndToEnd {
    pub places: u64,
    /// Those for which no cell of the other end opened.
    pub lost: u64,
    /// Those of them for which the exit sent a cell of its own, though it has joined the channels. All of them, also
    /// behind the latest place that has opened (SPEC 9.11.9).
    pub of_exit: u64,
}

/// How long datagrams waited for the round of their last cell, in nanoseconds. At most an eighth too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    pub p50: Nanos,
    pub p99: Nanos,
}

impl<D: Port, A: Apps> Entry<D, A> {
    /// Counts the places of rounds that have left the range.
    pub(super) fn count_lost(&mut self, running: u64) {
        let end = running.saturating_sub(BEHIND_MAX);
        for round in self.counted.max(end.saturating_sub(COUNTED_MAX))..end {
            let (places, lost) = self.channels.lost(round);
            self.view.places += places;
            self.view.lost += lost;
            self.view.outages.count(places > 0 && lost == places);
            if let Some(MeetingEnd { counted: (number, unsure), .. }) = &mut self.meeting {
                let EndToEnd { places, lost, of_exit } = self.channels.of_other_end(round);
                if let Some(channel) = self.channels.channel(round)
                    && std::mem::replace(number, channel.meeting) != channel.meeting
                {
                    // Places without the former other end say nothing about this one.
                    *unsure = EndToEnd::default();
                }
                let view = &mut self.view.of_other_end;
                view.of_exit += of_exit;
                *unsure = match places {
                    0 => EndToEnd::default(),
                    _ => EndToEnd { places: unsure.places + places, lost: unsure.lost + lost, of_exit: 0 },
                };
                if lost < places {
                    let EndToEnd { places, lost, .. } = std::mem::take(unsure);
                    (view.places, view.lost) = (view.places + places, view.lost + lost);
                }
            }
        }
        self.counted = self.counted.max(end);
        let Told { next, places, lost } = self.told;
        if self.counted < next + REPORT_EVERY {
            return;
        }
        if self.waits.count() > 0 {
            let waits = std::mem::take(&mut self.waits);
            self.view.waits = Some(Waits { p50: waits.quantile(0.5), p99: waits.quantile(0.99) });
        }
        let lost = Punt::PacedPlaces {
            first: next,
            rounds: self.counted - next,
            places: self.view.places - places,
            lost: self.view.lost - lost,
        };
        // Nothing is known of the rounds before the first one that was counted.
        if next == 0 || self.punts.send(lost) {
            self.told = Told { next: self.counted, places: self.view.places, lost: self.view.lost };
        }
    }

    pub(super) fn publish(&mut self, now: Nanos) {
        self.view.running = self.pacer.running(self.clock.at(now));
        self.view.has_channel = self.view.running.is_some_and(|round| self.channels.channel(round).is_some());
        self.view.meeting = self.meeting.as_ref().map(|meeting| match meeting.latest {
            _ if meeting.silent > LOST_AFTER => MeetingState::Lost,
            Some((_, state)) => state,
            None => MeetingState::Waiting,
        });
        self.view.skipped = self.pacer.skipped();
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = self.view;

        let mut ledger =
            Ledger { cells: self.cells, datagrams: self.datagrams, traffic: self.down.traffic(), ..Ledger::default() };
        ledger.cells.forward.hold(self.out.len() + self.prepared.len());
        ledger.cells.backward.hold(self.arrived.len());
        ledger.datagrams.forward.hold(self.packer.len());
        ledger.datagrams.backward.hold(self.reassembler.held());
        let free = self.free.free() + self.down.rx_buffers() + self.sender.kept();
        ledger.buffers = Buffers { free: free as u64, total: self.free.total() as u64 };
        ledger.gauges = Gauges {
            links: self.links.links.len() as u64,
            channels: self.channels.len() as u64,
            flows: self.users.clients.flows() as u64,
            sockets: self.users.clients.len() as u64,
        };
        debug_assert!(ledger.closed(), "{ledger:?}");
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = ledger;
    }
}
