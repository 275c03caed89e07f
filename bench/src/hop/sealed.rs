//! Cells sealed ahead into memory, and checked at the far end with its keys.
//!
//! Cells can be sent only once, since the mix's replay windows refuse copies. Their channels follow in shuffled
//! rounds of all channels, so a mix rarely finds a channel twice in a row.

use std::collections::HashMap;

use arrayvec::ArrayVec;
use dataplane::sys::{GSO_BYTES_MAX, GSO_SEGMENTS_MAX};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use wire::cell::{Block, Direction, HEADER_LEN, Header, Shape};
use wire::gcm::{AeadKey, Job, open_batch, seal_batch};
use wire::ids::ChannelKeys;
use wire::key::Generations;
use wire::layer::{BATCH_MAX, EntryJob, EntryKeys, data_header, unwrap, wrap};
use wire::link::HeaderKey;

use super::neighbour::OpenedChannel;

/// The entry's end of a channel.
struct EntryChannel {
    entry: usize,
    number: u32,
    keys: EntryKeys,
    next: u64,
}

/// The exit's end of a channel.
struct ExitChannel {
    number: u32,
    forward: Generations<AeadKey>,
    backward: Generations<AeadKey>,
    next: u64,
}

/// Both ends of all channels, in independent orders: the ends of a channel have different numbers.
#[derive(Default)]
pub(crate) struct Channels {
    entry: Vec<EntryChannel>,
    exit: Vec<ExitChannel>,
    /// Indices by entry and channel number.
    at_entry: HashMap<(usize, u32), usize>,
    /// Indices by channel number.
    at_exit: HashMap<u32, usize>,
}

impl Channels {
    /// Channels that both ends have opened.
    pub(crate) fn len(&self) -> usize {
        self.entry.len().min(self.exit.len())
    }

    /// Adds one end of a channel; `entry` is the number of the entry.
    pub(crate) fn add(&mut self, entry: usize, OpenedChannel { number, keys }: OpenedChannel) {
        match keys {
            ChannelKeys::Entry(hops) => {
                self.at_entry.insert((entry, number), self.entry.len());
                self.entry.push(EntryChannel { entry, number, keys: EntryKeys::new(&hops, 0), next: 0 });
            }
            ChannelKeys::Hop { forward, backward } => {
                let (forward, backward) = (Generations::new(&forward, 0), Generations::new(&backward, 0));
                self.at_exit.insert(number, self.exit.len());
                self.exit.push(ExitChannel { number, forward, backward, next: 0 });
            }
        }
    }

    /// True if a cell that reached the exit is an authentic forward cell.
    pub(crate) fn is_forward(&mut self, header: &Header, bytes: &mut [u8]) -> bool {
        let Some(channel) = self.at_exit.get(&header.channel).map(|at| &mut self.exit[*at]) else { return false };
        if channel.forward.of(header.seq).is_none() {
            channel.forward.advance(header.seq);
        }
        let Some((key, iv)) = channel.forward.of(header.seq) else { return false };
        let mut jobs = [Job::new(key, header.data_nonce(iv), &mut bytes[HEADER_LEN..])];
        open_batch(&mut jobs);
        jobs[0].ok
    }

    /// True if a cell that reached an entry is an authentic backward cell.
    pub(crate) fn is_backward(&mut self, shape: Shape, entry: usize, header: &Header, bytes: &mut [u8]) -> bool {
        let Some(at) = self.at_entry.get(&(entry, header.channel)) else { return false };
        let keys = &mut self.entry[*at].keys;
        keys.advance_backward(header.seq);
        let mut jobs = [EntryJob { keys, header: *header, cell: bytes, ok: false }];
        unwrap(shape, &mut jobs);
        jobs[0].ok
    }
}

/// Cells ready to be sent, one after the other.
pub(crate) struct SealedCells {
    bytes: Vec<u8>,
    cell_len: usize,
    /// The entry that sends each cell.
    entries: Vec<u16>,
    rng: ChaCha8Rng,
}

impl SealedCells {
    /// None yet.
    pub(crate) fn new(rng: ChaCha8Rng) -> SealedCells {
        SealedCells { bytes: Vec::new(), cell_len: 1, entries: Vec::new(), rng }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn cell_len(&self) -> usize {
        self.cell_len
    }

    /// The bytes of consecutive cells.
    pub(crate) fn cells(&self, range: std::ops::Range<usize>) -> &[u8] {
        &self.bytes[range.start * self.cell_len..range.end * self.cell_len]
    }

    /// The entry that sends a cell.
    pub(crate) fn entry(&self, cell: usize) -> usize {
        usize::from(self.entries[cell])
    }

    /// Shuffled rounds of `all`, until there are `cells`.
    fn order(&mut self, all: &[usize], cells: usize) -> Vec<usize> {
        let mut round = all.to_vec();
        let mut order = Vec::with_capacity(cells + round.len());
        while order.len() < cells {
            round.shuffle(&mut self.rng);
            order.extend_from_slice(&round);
        }
        order.truncate(cells);
        order
    }

    fn clear(&mut self, shape: Shape, direction: Direction, link: usize, cells: usize) {
        self.cell_len = shape.cell_len(direction, link);
        self.bytes.resize(cells * self.cell_len, 0);
        self.entries.clear();
        self.entries.resize(cells, 0);
    }

    /// Seals `cells` forward cells of the first `channels` channels of the first `entries` entries, each with the
    /// header key of its own link.
    pub(crate) fn seal_forward(
        &mut self,
        shape: Shape,
        all: &mut Channels,
        keys: &[&HeaderKey],
        (entries, channels): (usize, usize),
        cells: usize,
    ) {
        self.clear(shape, Direction::Forward, 1, cells);
        let ours = (0..all.entry.len()).filter(|at| all.entry[*at].entry < entries).take(channels).collect::<Vec<_>>();
        let order = self.order(&ours, cells);
        let mut at = 0;
        for (order, bytes) in order.chunks(BATCH_MAX).zip(self.bytes.chunks_mut(BATCH_MAX * self.cell_len)) {
            let headers: ArrayVec<Header, BATCH_MAX> = order
                .iter()
                .map(|channel| {
                    let channel = &mut all.entry[*channel];
                    let header = data_header(shape, channel.number, channel.next);
                    channel.next += 1;
                    channel.keys.advance_forward(header.seq);
                    header
                })
                .collect();
            let mut jobs: ArrayVec<EntryJob<'_>, BATCH_MAX> = ArrayVec::new();
            for ((channel, header), cell) in order.iter().zip(&headers).zip(bytes.chunks_mut(self.cell_len)) {
                fill(shape, cell, header);
                jobs.push(EntryJob { keys: &all.entry[*channel].keys, header: *header, cell, ok: false });
            }
            wrap(shape, &mut jobs);
            drop(jobs);
            for ((channel, header), cell) in order.iter().zip(&headers).zip(bytes.chunks_mut(self.cell_len)) {
                let entry = all.entry[*channel].entry;
                self.entries[at] = entry as u16;
                at += 1;
                encipher(keys[entry], header, cell);
            }
        }
    }

    /// Seals `cells` backward cells of the first `channels` channels.
    pub(crate) fn seal_backward(
        &mut self,
        shape: Shape,
        all: &mut Channels,
        key: &HeaderKey,
        channels: usize,
        cells: usize,
    ) {
        self.clear(shape, Direction::Backward, 2, cells);
        let ours: Vec<usize> = (0..channels.min(all.exit.len())).collect();
        let order = self.order(&ours, cells);
        for (order, bytes) in order.chunks(BATCH_MAX).zip(self.bytes.chunks_mut(BATCH_MAX * self.cell_len)) {
            let headers: ArrayVec<Header, BATCH_MAX> = order
                .iter()
                .map(|channel| {
                    let channel = &mut all.exit[*channel];
                    let header = data_header(shape, channel.number, channel.next);
                    channel.next += 1;
                    channel.backward.advance(header.seq);
                    header
                })
                .collect();
            let mut jobs: ArrayVec<Job<'_, AeadKey>, BATCH_MAX> = ArrayVec::new();
            for ((channel, header), cell) in order.iter().zip(&headers).zip(bytes.chunks_mut(self.cell_len)) {
                fill(shape, cell, header);
                let (key, iv) = all.exit[*channel].backward.of(header.seq).expect("it has just advanced there");
                jobs.push(Job::new(key, header.data_nonce(iv), &mut cell[HEADER_LEN..]));
            }
            seal_batch(&mut jobs);
            drop(jobs);
            for (header, cell) in headers.iter().zip(bytes.chunks_mut(self.cell_len)) {
                encipher(key, header, cell);
            }
        }
    }
}

/// Most cells of this length in one GSO burst.
pub(crate) fn burst_max(cell_len: usize) -> usize {
    GSO_SEGMENTS_MAX.min(GSO_BYTES_MAX / cell_len)
}

/// The payload: the cell's number, then padding.
fn fill(shape: Shape, cell: &mut [u8], header: &Header) {
    let inner = &mut cell[HEADER_LEN..HEADER_LEN + shape.payload()];
    inner.fill(0);
    inner[..8].copy_from_slice(&header.seq.to_be_bytes());
}

fn encipher(key: &HeaderKey, header: &Header, cell: &mut [u8]) {
    let mut block: [Block; 1] = [header.to_block()];
    key.encipher(&mut block);
    cell[..HEADER_LEN].copy_from_slice(&block[0]);
}
