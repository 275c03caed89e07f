//! Cells from Mix 1: removes all layers and passes their frames on (SPEC 9.11.8, 9.11.9, 9.13.6).

use std::time::Duration;

use wire::cell::Direction;
use wire::frames::{self, Frame, Frames, SESSION_FLOW, Status};
use wire::paced::{AHEAD_MAX, BEHIND_MAX, Inner, PacedHeader, RoundSub};
use wire::reassembly::Outcome;

use super::packer::SESSION;
use super::{Entry, MeetingState, STILL};
use crate::Nanos;
use crate::ledger::DropReason;
use crate::paced::gate::{ArrivalTime, Arrived, Intake};
use crate::socket::Port;
use crate::socket::app_batch::FlowId;
use crate::socket::apps::Apps;

/// Cells that are taken in, with their datagrams, between two looks at the clock.
const STEP: usize = 8;

impl<D: Port, A: Apps> Entry<D, A> {
    /// Takes in what Mix 1 has sent, as long as there is time before the next round. What is left waits: how long a
    /// cell takes depends on whether the entry has a channel, and of which kind.
    pub(super) fn receive_link(&mut self, now: Nanos) {
        let until = match &self.ready {
            Some(ready) => ready.at.saturating_sub(STILL),
            None => self.prepare_at(),
        };
        let clock = self.runner_clock;
        let has_time = || clock.map_or(now, |clock| clock.now()) < until;
        if self.arrived.is_empty() && has_time() {
            self.read_link(now);
        }
        while !self.arrived.is_empty() && has_time() {
            let waited = now.saturating_sub(self.arrived_at);
            for _ in 0..STEP {
                let Some(cell) = self.arrived.pop_front() else { break };
                self.take(cell, waited, now);
            }
            self.apps.send(&mut self.send_batch, &mut self.datagrams.backward);
        }
    }

    /// One call of the system's, and the checks that are the same for all cells.
    fn read_link(&mut self, now: Nanos) {
        let time = self.clock.at(now);
        let running = self.pacer.running(time);
        let since_read = self.link_read.waited(now);
        self.link_read.set(now);
        if self.down.recv(&mut self.free, &mut self.arrivals) == 0 {
            return;
        }
        self.arrived_at = now.saturating_sub(since_read.max(self.down.waited(now)));
        let Self { arrivals, links, channels, punts, free, cells, arrived, gate, .. } = self;
        let place = |_, header: &PacedHeader| match (running, header.seq) {
            // No header is one of a data cell then.
            (None, _) => Err(DropReason::Header),
            (Some(running), round) if round + BEHIND_MAX < running => Err(DropReason::Late),
            (Some(running), round) if round > running + AHEAD_MAX => Err(DropReason::Early),
            (_, round) => channels.is_number_of(round, header.channel).then_some(()).ok_or(DropReason::Channel),
        };
        let at = ArrivalTime { turn: now, class: time };
        let tally = &mut cells.backward;
        gate.admit(&mut Intake { arrivals, links, punts, free, tally, at }, running, place, arrived);
    }

    /// One cell that has passed the gate. The first of a place takes it, with a channel and without: Mix 1 sends the
    /// same bytes in all copies, so a flood of others costs nothing.
    fn take(&mut self, arrived: Arrived<()>, waited: Nanos, now: Nanos) {
        let Arrived { mut cell, header, link, next_slot, .. } = arrived;
        let place = header.round_sub();
        let body = cell.body_mut(self.settings.terms.class.body_len());
        let taken = if self.links.links.side(link).is_none() {
            // It has gone while the cell waited.
            Err(DropReason::LinkDown)
        } else if header.channel != 0 && !self.channels.claim(place) {
            Err(DropReason::Copy)
        } else {
            self.links.accepted(link, next_slot, &mut self.punts, now);
            if header.channel == 0 {
                // Noise of Mix 1.
                Ok(())
            } else if self.channels.channel(place.round).is_none() {
                // A channel's would take as long.
                let (keys, call) = &self.decoy;
                let _ = keys.open(call.as_ref(), place, body);
                Ok(())
            } else {
                self.open(place, body, waited, now)
            }
        };
        match taken {
            Ok(()) => self.cells.backward.consumed += 1,
            Err(reason) => self.cells.backward.drop(reason),
        }
        self.free.give(cell.into_buffer());
    }

    /// Opens a body of the entry's channel and lets its frames take effect.
    fn open(&mut self, place: RoundSub, body: &mut [u8], waited: Nanos, now: Nanos) -> Result<(), DropReason> {
        let repeat = self.settings.terms.repeat;
        let channel = self.channels.channel(place.round).expect("looked up before");
        // Of the user that this one met before the secret was changed.
        let is_former = self.meeting.as_ref().is_some_and(|meeting| meeting.number != channel.meeting);
        let inner = channel.keys.open(channel.call.as_deref(), place, body).ok_or(DropReason::Garbled)?;
        if !self.channels.mark_opened(place) {
            return Err(DropReason::Copy);
        }
        match (inner, self.meeting.is_some()) {
            (Inner::Data(inner), false) => {
                // AGAIN does not travel backward from the exit.
                let frames = frames::parse_paced(inner, Direction::Backward, false).map_err(|_| DropReason::Frames)?;
                frames.for_each(|frame| self.frame(place, &frame, waited, now));
            }
            (Inner::Data(inner), true) => {
                if !is_former {
                    self.heard(place.round, MeetingState::Waiting);
                }
                // The exit has the keys: nothing that it says may reach a call.
                let is_pad =
                    frames::parse_paced(inner, Direction::Backward, false).is_ok_and(|mut of| of.next().is_none());
                return if is_pad { Ok(()) } else { Err(DropReason::Garbled) };
            }
            (Inner::Meeting(_), _) if is_former => self.channels.mark_met(place),
            (Inner::Meeting(inner), _) => {
                self.heard(place.round, MeetingState::Joined);
                self.channels.mark_met(place);
                let frames = frames::parse_meeting(inner, repeat).map_err(|_| DropReason::Frames)?;
                let is_new = self.channels.mark_used(place);
                for frame in frames {
                    match frame {
                        Frame::Again(again) => self.again(place, again, waited, now),
                        _ if is_new => self.frame(place, &frame, waited, now),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Frames of the round before, in a meeting: they count if those of that round have not come.
    fn again(&mut self, place: RoundSub, frames: &[u8], waited: Nanos, now: Nanos) {
        if let Some(round) = self.channels.round_before(place.round)
            && self.channels.mark_used(RoundSub { round, ..place })
        {
            Frames::of_again(frames).for_each(|frame| self.frame(place, &frame, waited, now));
        }
    }

    fn heard(&mut self, round: u64, state: MeetingState) {
        if let Some(meeting) = &mut self.meeting
            && meeting.latest.is_none_or(|(latest, _)| round >= latest)
        {
            meeting.latest = Some((round, state));
            meeting.silent = 0;
        }
    }

    /// One frame of the cell of a place.
    fn frame(&mut self, place: RoundSub, frame: &Frame<'_>, waited: Nanos, now: Nanos) {
        let tally = &mut self.datagrams.backward;
        let (flow, from, data) = match *frame {
            Frame::Dgram { flow, data } => {
                tally.injected += 1;
                (flow, None, data)
            }
            Frame::Frag { flow, id, index, last, data } => {
                let pushed = self.reassembler.push(Duration::from_nanos(now), flow, id, index, last, data);
                tally.injected += u64::from(pushed.started);
                tally.drop_many(DropReason::Incomplete, u64::from(pushed.evicted));
                let Outcome::Complete(data) = pushed.outcome else { return };
                (flow, None, data)
            }
            Frame::From { flow, from, data } => {
                tally.injected += 1;
                (flow, Some(from), data)
            }
            Frame::Status { flow: SESSION_FLOW, code } => {
                if let Some(channel) = self.channels.channel(place.round) {
                    channel.session_answered();
                }
                if code == Status::UnknownFlow {
                    self.users.clients.session_forgotten();
                }
                return;
            }
            _ => {
                // Of two places the later one has the greater number.
                let seq = place.round << 8 | u64::from(place.sub);
                return self.users.report(SESSION, seq, frame, &mut self.punts, now);
            }
        };
        match &self.meeting {
            None => self.users.answer((SESSION, flow), from, (waited, data), &mut self.send_batch, tally),
            Some(meeting) => match meeting.client {
                None => tally.drop(DropReason::Flow),
                Some(_) if waited > meeting.max_age => tally.drop(DropReason::Aged),
                Some(client) => self.send_batch.push(0, client, FlowId(0), data),
            },
        }
    }
}
