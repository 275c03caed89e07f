//! Taking a layer off, or putting one on: the cryptography of a hop (SPEC 3.4, 3.5, 3.7).
//!
//! Forward the order is open, then test and mark: only an authentic cell moves a window. Backward a
//! mix has nothing to authenticate, so it marks first, and nothing is enciphered twice.

use arrayvec::ArrayVec;
use wire::cell::Shape;
use wire::gcm::{AeadKey, Job, StreamKey, ctr_batch, open_batch};
use wire::ids::ChannelIndex;

use crate::buffer::FreeList;
use crate::ledger::{DropReason, Tally};
use crate::punt::{Punt, PuntSender};
use crate::stage::ingress::Admitted;
use crate::table::{BackwardHalf, ForwardHalf, Table};
use crate::{Nanos, SECOND};

/// Cells worked on at a time.
const CHUNK: usize = 8;
/// Keys are prefetched this many cells ahead of their use.
const AHEAD: usize = 4;

/// Channels and numbers of a chunk and of the first cells behind it, to look ahead while its cells are being worked on.
type Numbers = ArrayVec<(ChannelIndex, u64), { CHUNK + AHEAD }>;

/// The next chunk, what is behind it, and the numbers of both.
fn next_chunk(cells: &mut [Admitted]) -> Option<(&mut [Admitted], &mut [Admitted], Numbers)> {
    let numbers = cells.iter().take(CHUNK + AHEAD).map(|cell| (cell.channel, cell.header.seq)).collect();
    let (chunk, rest) = cells.split_at_mut(CHUNK.min(cells.len()));
    (!chunk.is_empty()).then_some((chunk, rest, numbers))
}

/// Opens forward cells at hop `hop` in place. What is authentic and new stays in `cells`.
///
/// Control gets a punt for a cell that authenticates under a link's next slot, and promotes the slot.
#[allow(clippy::too_many_arguments, reason = "the parts of a worker that a stage borrows one by one")]
pub fn forward<C: ForwardHalf>(
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
    let mut verdicts = std::mem::take(&mut table.verdicts);
    let mut rest = &mut cells[..];
    while let Some((chunk, behind, numbers)) = next_chunk(rest) {
        rest = behind;
        let first = verdicts.len();
        let mut jobs: ArrayVec<Job<'_, AeadKey>, CHUNK> = ArrayVec::new();
        for (i, cell) in chunk.iter_mut().enumerate() {
            if let Some(&(channel, seq)) = numbers.get(i + AHEAD) {
                table.record(channel).expect("admitted this turn").state.forward().prefetch(seq);
            }
            let half = table.record(cell.channel).expect("admitted this turn").state.forward();
            // A cell of an earlier chunk may have moved the window past this one's generation.
            match half.key(cell.header.seq) {
                Some((key, iv)) => {
                    verdicts.push(None);
                    jobs.push(Job::new(key, cell.header.data_nonce(iv), cell.cell.body_mut(body)));
                }
                None => verdicts.push(Some(DropReason::Old)),
            }
        }
        open_batch(&mut jobs);
        let mut opened = jobs.iter().map(|job| job.ok);
        for verdict in verdicts[first..].iter_mut().filter(|verdict| verdict.is_none()) {
            *verdict = (!opened.next().expect("one job for each")).then_some(DropReason::Forged);
        }
        drop(jobs);
        for (cell, verdict) in chunk.iter().zip(&mut verdicts[first..]) {
            if verdict.is_some() {
                continue;
            }
            let record = table.record_mut(cell.channel).expect("admitted this turn");
            if let Err(refused) = record.state.forward_mut().mark_seen(cell.header.seq, now / SECOND) {
                *verdict = Some(refused.into());
                continue;
            }
            table.links.received(cell.link);
            // Control promotes, in the order of its commands; it may have overwritten the slot meanwhile.
            if let Some((slot, from)) = cell.next_slot.as_deref().copied()
                && punts.room() > 0
                && table.links.proposes(cell.link, slot)
            {
                let _ = punts.send(Punt::Promoted { link: cell.link, slot, from });
            }
        }
    }
    keep(cells, &mut verdicts, free, tally);
    table.verdicts = verdicts;
}

/// Covers backward cells with a mix's keystream in place. What is new stays in `cells`.
pub fn backward<C: BackwardHalf>(
    cells: &mut Vec<Admitted>,
    shape: Shape,
    table: &mut Table<C>,
    free: &mut FreeList,
    tally: &mut Tally,
    now: Nanos,
) {
    let mut verdicts = std::mem::take(&mut table.verdicts);
    let mut rest = &mut cells[..];
    while let Some((chunk, behind, numbers)) = next_chunk(rest) {
        rest = behind;
        let first = verdicts.len();
        for (i, cell) in chunk.iter().enumerate() {
            if let Some(&(channel, seq)) = numbers.get(i + AHEAD) {
                table.record(channel).expect("admitted this turn").state.backward().prefetch(seq);
            }
            let half = table.record_mut(cell.channel).expect("admitted this turn").state.backward_mut();
            // A mark may wipe the generation of a cell that was marked before it in this chunk: one that
            // the window has left again. It is dropped below.
            let verdict = half.mark_seen(cell.header.seq, now / SECOND).err().map(DropReason::from);
            verdicts.push(verdict);
            if verdict.is_none() {
                table.links.received(cell.link);
            }
        }
        let mut jobs: ArrayVec<Job<'_, StreamKey>, CHUNK> = ArrayVec::new();
        for (cell, verdict) in chunk.iter_mut().zip(&mut verdicts[first..]) {
            if verdict.is_some() {
                continue;
            }
            let half = table.record(cell.channel).expect("admitted this turn").state.backward();
            match half.key(cell.header.seq) {
                Some((key, iv)) => {
                    let nonce = cell.header.data_nonce(iv);
                    jobs.push(Job::new(key, nonce, cell.cell.body_mut(shape.backward_body())));
                }
                // Behind the window by now: a later cell of this chunk is far ahead of it.
                None => *verdict = Some(DropReason::Old),
            }
        }
        ctr_batch(&mut jobs);
    }
    keep(cells, &mut verdicts, free, tally);
    table.verdicts = verdicts;
}

/// Drops what has a verdict; the rest keeps its order.
pub(crate) fn keep(
    cells: &mut Vec<Admitted>,
    verdicts: &mut Vec<Option<DropReason>>,
    free: &mut FreeList,
    tally: &mut Tally,
) {
    if verdicts.iter().all(Option::is_none) {
        verdicts.clear();
        return;
    }
    let mut verdicts = verdicts.drain(..);
    for dropped in cells.extract_if(.., |_| match verdicts.next().expect("one verdict per cell") {
        Some(reason) => {
            tally.drop(reason);
            true
        }
        None => false,
    }) {
        free.give(dropped.cell.into_buffer());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Cell;
    use crate::table::{ChannelState, Half, Record};
    use wire::cell::{Class, Direction, HEADER_LEN};
    use wire::gcm::seal_batch;
    use wire::ids::{LinkId, Rank, Side, SlotId};
    use wire::kdf::Secret;
    use wire::key::Generations;
    use wire::layer::data_header;
    use wire::replay::Window;
    use zeroize::Zeroizing;

    struct OneHalf(Half<AeadKey>);

    impl ChannelState for OneHalf {
        fn window(&self, _direction: Direction) -> &Window {
            self.0.window()
        }
    }

    impl ForwardHalf for OneHalf {
        fn forward(&self) -> &Half<AeadKey> {
            &self.0
        }

        fn forward_mut(&mut self) -> &mut Half<AeadKey> {
            &mut self.0
        }
    }

    #[test]
    fn only_authentic_cells_mark_refresh_or_promote() {
        let shape = Shape::new(Class::S, 2).unwrap();
        let secret = Secret::new([5; 32]);
        let peer = "192.0.2.1:1".parse().unwrap();
        let mut table = Table::default();
        table.links.install(LinkId(3), Side::Up, peer);
        let key = Zeroizing::new([1; 16]);
        table.links.install_slot(LinkId(3), SlotId(10), peer, Rank::Current, &key, &key);
        table.links.install_slot(LinkId(3), SlotId(11), peer, Rank::Next, &key, &key);
        let state = OneHalf(Half::new(&secret, 0, 64, None, 0));
        table.install(ChannelIndex(0), Record { up: Some((LinkId(3), 77)), down: None, ends_s: 100, state });
        let (ring, mut control) = rtrb::RingBuffer::new(8);
        let mut punts = PuntSender::new(ring, std::sync::Arc::new(crate::sys::Waker::new().unwrap()));
        let (mut free, mut tally) = (FreeList::new(1), Tally::default());
        let keys = Generations::<AeadKey>::new(&secret, 0);
        let body = shape.forward_body(1);
        for (seq, forged) in [(4, true), (4, false), (4, false), (5, true)] {
            let header = data_header(shape, 77, seq);
            let mut cell = Cell::new(free.take().unwrap());
            let (key, iv) = keys.of(seq).unwrap();
            seal_batch(&mut [Job::new(key, header.data_nonce(iv), cell.body_mut(body))]);
            cell.bytes_mut(HEADER_LEN + body)[40] ^= u8::from(forged);
            let mut cells = vec![Admitted {
                cell,
                header,
                channel: ChannelIndex(0),
                link: LinkId(3),
                next_slot: Some(Box::new((SlotId(11), peer))),
            }];
            let now = (seq + 2) * SECOND;
            forward(&mut cells, shape, 1, &mut table, &mut punts, &mut free, &mut tally, now);
            let told = control
                .pop()
                .is_ok_and(|punt| matches!(punt, Punt::Promoted { link: LinkId(3), slot: SlotId(11), .. }));
            let record = table.record(ChannelIndex(0)).unwrap();
            let seen = (
                told,
                cells.len(),
                record.state.0.window().next(),
                record.state.0.seen_s(),
                table.links.has_activity(),
            );
            match tally.dropped_total() {
                1 if forged => assert_eq!(seen, (false, 0, 0, 0, false), "a forged cell changes nothing"),
                1 => assert_eq!(seen, (true, 1, 5, 6, true)),
                _ => assert_eq!(seen, (false, 0, 5, 6, true), "neither does a copy, nor what is forged behind it"),
            }
            cells.drain(..).for_each(|admitted| free.give(admitted.cell.into_buffer()));
        }
        assert_eq!((tally.drops(DropReason::Forged), tally.drops(DropReason::Replay)), (2, 1));
    }
}
