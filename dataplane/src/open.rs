//! Taking a layer off, or putting one on: the cryptography of a hop (SPEC 3.4, 3.5, 3.7).
//!
//! Forward the order is open, then test and mark: only an authentic cell moves a window. Backward a
//! mix has nothing to authenticate, so it marks first, and nothing is enciphered twice.

use arrayvec::ArrayVec;
use wire::cell::Shape;
use wire::gcm::{AeadKey, Job, StreamKey, ctr_batch, open_batch};

use crate::frame::FreeList;
use crate::ingress::Admitted;
use crate::ledger::{Drop, Tally};
use crate::punt::{Punt, PuntSender};
use crate::table::{ChannelState, Lane, Table};
use crate::{Nanos, SECOND};

/// Cells worked on at a time.
const CHUNK: usize = 64;

/// A channel with a forward layer to take off: at a mix and at the exit.
pub trait ForwardLane: ChannelState {
    /// Its keys and window.
    fn forward(&self) -> &Lane<AeadKey>;
    /// The same, to be marked.
    fn forward_mut(&mut self) -> &mut Lane<AeadKey>;
}

/// Opens forward cells at hop `hop` in place. What is authentic and new stays in `cells`.
///
/// Control is told of a cell that authenticates under a link's next slot, and promotes it.
#[allow(clippy::too_many_arguments)]
pub fn forward<C: ForwardLane>(
    cells: &mut Vec<Admitted>,
    shape: Shape,
    hop: usize,
    table: &mut Table<C>,
    punts: &mut PuntSender,
    free: &mut FreeList,
    tally: &mut Tally,
    now: Nanos,
) {
    let body = shape.forward_body(hop);
    let mut verdicts: Vec<Option<Drop>> = Vec::new();
    std::mem::swap(&mut verdicts, &mut table.verdicts);
    for chunk in cells.chunks_mut(CHUNK) {
        let mut jobs: ArrayVec<Job<'_, AeadKey>, CHUNK> = ArrayVec::new();
        for cell in chunk.iter_mut() {
            let lane = table.record(cell.channel).expect("admitted this turn").state.forward();
            let (key, iv) = lane.key(cell.header.seq).expect("the window admitted it");
            jobs.push(Job::new(key, cell.header.data_nonce(iv), cell.cell.body_mut(body)));
        }
        open_batch(&mut jobs);
        verdicts.extend(jobs.iter().map(|job| (!job.ok).then_some(Drop::Forged)));
    }
    for (cell, verdict) in cells.iter().zip(&mut verdicts) {
        if verdict.is_some() {
            continue;
        }
        let record = table.record_mut(cell.channel).expect("admitted this turn");
        if let Err(refused) = record.state.forward_mut().mark(cell.header.seq) {
            *verdict = Some(refused.into());
            continue;
        }
        record.seen_s = now / SECOND;
        table.links.received(cell.link);
        // Control promotes, in the order of its operations; it may have overwritten the slot meanwhile.
        if let Some((slot, from)) = cell.next_slot
            && punts.room() > 0
            && table.links.proposes(cell.link, slot)
        {
            let _ = punts.send(Punt::Promoted { link: cell.link, slot, from });
        }
    }
    keep(cells, &mut verdicts, free, tally);
    std::mem::swap(&mut verdicts, &mut table.verdicts);
}

/// A channel with a backward layer to put on: at a mix.
pub trait BackwardLane: ChannelState {
    /// Its keys and window, to be marked.
    fn backward_mut(&mut self) -> &mut Lane<StreamKey>;
    /// The same.
    fn backward(&self) -> &Lane<StreamKey>;
}

/// Covers backward cells with a mix's keystream in place. What is new stays in `cells`.
pub fn backward<C: BackwardLane>(
    cells: &mut Vec<Admitted>,
    shape: Shape,
    table: &mut Table<C>,
    free: &mut FreeList,
    tally: &mut Tally,
) {
    let mut verdicts: Vec<Option<Drop>> = Vec::new();
    std::mem::swap(&mut verdicts, &mut table.verdicts);
    for cell in cells.iter() {
        let lane = table.record_mut(cell.channel).expect("admitted this turn").state.backward_mut();
        // A mark may retire a generation, but never one that the window still admits: cells marked
        // in this turn stay within it or are dropped here.
        let verdict = lane.mark(cell.header.seq).err().map(Drop::from);
        verdicts.push(verdict);
        if verdict.is_none() {
            table.links.received(cell.link);
        }
    }
    for (chunk, verdicts) in cells.chunks_mut(CHUNK).zip(verdicts.chunks_mut(CHUNK)) {
        let mut jobs: ArrayVec<Job<'_, StreamKey>, CHUNK> = ArrayVec::new();
        for (cell, verdict) in chunk.iter_mut().zip(verdicts) {
            if verdict.is_some() {
                continue;
            }
            let lane = table.record(cell.channel).expect("admitted this turn").state.backward();
            match lane.key(cell.header.seq) {
                Some((key, iv)) => {
                    let nonce = cell.header.data_nonce(iv);
                    jobs.push(Job::new(key, nonce, cell.cell.body_mut(shape.backward_body())));
                }
                None => *verdict = Some(Drop::Old),
            }
        }
        ctr_batch(&mut jobs);
    }
    keep(cells, &mut verdicts, free, tally);
    std::mem::swap(&mut verdicts, &mut table.verdicts);
}

/// Drops what has a verdict; the rest keeps its order.
pub(crate) fn keep(
    cells: &mut Vec<Admitted>,
    verdicts: &mut Vec<Option<Drop>>,
    free: &mut FreeList,
    tally: &mut Tally,
) {
    let mut verdicts = verdicts.drain(..);
    for dropped in cells.extract_if(.., |_| match verdicts.next().expect("one verdict per cell") {
        Some(reason) => {
            tally.drop(reason);
            true
        }
        None => false,
    }) {
        free.give(dropped.cell.into_frame());
    }
}
