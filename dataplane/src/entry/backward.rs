//! Cells from Mix 1: removes all layers and passes their frames to the clients.

use std::time::Duration;

use arrayvec::ArrayVec;
use wire::cell::Direction;
use wire::frames::{self, Frame};
use wire::ids::ChannelIndex;
use wire::layer::{BATCH_MAX, EntryJob, unwrap};
use wire::reassembly::Outcome;

use super::Entry;
use crate::Nanos;
use crate::endpoint::Endpoint;
use crate::ledger::DropReason;
use crate::socket::Port;
use crate::socket::apps::Apps;
use crate::stage::open::keep;

impl<D: Port, A: Apps> Entry<D, A> {
    pub(super) fn receive_link(&mut self, now: Nanos) {
        for _ in 0..self.endpoint.begin_link(now) {
            if !self.endpoint.receive(now) {
                return;
            }
            self.strip();
            let mut admitted = std::mem::take(&mut self.endpoint.admitted);
            for mut cell in admitted.drain(..) {
                if let Some(record) = self.endpoint.table.record_mut(cell.channel) {
                    record.state.liveness.heard();
                }
                let inner = cell.cell.body_mut(self.settings.shape.payload());
                match frames::parse(inner, Direction::Backward) {
                    Ok(frames) => {
                        self.endpoint.cells.backward.consumed += 1;
                        for frame in frames {
                            self.backward_frame(cell.channel, cell.header.seq, &frame, now);
                        }
                    }
                    Err(_) => self.endpoint.cells.backward.drop(DropReason::Frames),
                }
                self.endpoint.free.give(cell.cell.into_buffer());
            }
            self.endpoint.admitted = admitted;
        }
    }

    /// Removes all layers. Drops cells that are forged or were seen before.
    pub(super) fn strip(&mut self) {
        let Endpoint { table, admitted, free, cells, shape, .. } = &mut self.endpoint;
        let len = shape.cell_len(Direction::Backward, 1);
        let mut verdicts: Vec<Option<DropReason>> = std::mem::take(&mut table.verdicts);
        for chunk in admitted.chunks_mut(BATCH_MAX) {
            let mut jobs: ArrayVec<EntryJob<'_>, BATCH_MAX> = ArrayVec::new();
            for cell in chunk.iter_mut() {
                let keys = &table.record(cell.channel).expect("admitted this turn").state.keys;
                jobs.push(EntryJob { keys, header: cell.header, cell: cell.cell.bytes_mut(len), ok: false });
            }
            unwrap(*shape, &mut jobs);
            verdicts.extend(jobs.iter().map(|job| (!job.ok).then_some(DropReason::Forged)));
        }
        for (cell, verdict) in admitted.iter().zip(&mut verdicts) {
            if verdict.is_some() {
                continue;
            }
            let state = &mut table.record_mut(cell.channel).expect("admitted this turn").state;
            match state.window.mark_seen(cell.header.seq) {
                Ok(()) => {
                    state.keys.advance_backward(state.window.lowest());
                    table.links.received(cell.link);
                }
                Err(refused) => *verdict = Some(refused.into()),
            }
        }
        keep(admitted, &mut verdicts, free, &mut cells.backward);
        table.verdicts = verdicts;
    }

    /// One frame of cell `seq` from the exit.
    fn backward_frame(&mut self, channel: ChannelIndex, seq: u64, frame: &Frame<'_>, now: Nanos) {
        let tally = &mut self.endpoint.datagrams.backward;
        let (flow, from, data) = match *frame {
            Frame::Dgram { flow, data } => {
                tally.injected += 1;
                (flow, None, data)
            }
            Frame::Frag { flow, id, index, last, data } => {
                let Some(record) = self.endpoint.table.record_mut(channel) else { return };
                let pushed = record.state.reassembler.push(Duration::from_nanos(now), flow, id, index, last, data);
                tally.injected += u64::from(pushed.started);
                tally.drop_many(DropReason::Incomplete, u64::from(pushed.evicted));
                let Outcome::Complete(data) = pushed.outcome else { return };
                (flow, None, data)
            }
            Frame::From { flow, from, data } => {
                tally.injected += 1;
                (flow, Some(from), data)
            }
            _ => return self.users.report(channel, seq, frame, &mut self.endpoint.punts, now),
        };
        let answered = (self.endpoint.link_waited, data);
        self.users.answer((channel, flow), from, answered, &mut self.endpoint.send_batch, tally);
    }
}
