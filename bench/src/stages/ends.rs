//! The stages of entry and exit.

use arrayvec::ArrayVec;
use dataplane::buffer::{Cell, FreeList, Opened};
use dataplane::endpoint::packer::Packer;
use wire::cell::{Direction, HEADER_LEN, Header};
use wire::frames::{Frame, fragment_count, parse, split};
use wire::gcm::{AeadKey, Job, open_batch};
use wire::ids::ChannelIndex;
use wire::key::Generations;
use wire::layer::{BATCH_MAX, EntryJob, EntryKeys, data_header, wrap as wrap_layers};
use wire::setup::HopSecrets;
use zeroize::Zeroizing;

use super::{CHANNELS, FIRST_NUMBER, Stage, secret, shape};

fn hops(channel: u32) -> Vec<HopSecrets> {
    let hop = |hop| HopSecrets {
        confirm: Default::default(),
        ack: Zeroizing::new([0; 28]),
        forward: secret(channel, hop),
        backward: secret(channel, 0x80 | hop),
    };
    (1..=shape().hops() as u8).map(hop).collect()
}

/// Adds all layers to a batch of cells, one cell for each channel.
pub(super) struct Wrapping {
    keys: Vec<EntryKeys>,
    cells: Vec<Vec<u8>>,
    seq: u64,
}

impl Wrapping {
    pub(super) fn new() -> Wrapping {
        let keys = (0..CHANNELS).map(|channel| EntryKeys::new(&hops(channel), 0)).collect();
        Wrapping { keys, cells: vec![vec![0; shape().longest_cell()]; CHANNELS as usize], seq: 0 }
    }
}

fn inside(channel: u32) -> Vec<u8> {
    vec![channel as u8; shape().payload()]
}

fn header(channel: u32, seq: u64) -> Header {
    data_header(shape(), FIRST_NUMBER + channel, seq)
}

impl Stage for Wrapping {
    fn prepare(&mut self) {
        for (channel, cell) in (0..).zip(&mut self.cells) {
            cell[HEADER_LEN..HEADER_LEN + shape().payload()].copy_from_slice(&inside(channel));
        }
        self.seq += 1;
    }

    fn run(&mut self) -> usize {
        wrap(self);
        self.cells.len()
    }

    fn is_correct(&mut self) -> bool {
        let shape = shape();
        (0..).zip(&mut self.cells).all(|(channel, cell)| {
            let layers = (1..).zip(hops(channel));
            layers.into_iter().all(|(hop, secrets)| {
                let keys = Generations::<AeadKey>::new(&secrets.forward, 0);
                let (key, iv) = keys.of(self.seq).expect("the first generation is current");
                let body = &mut cell[HEADER_LEN..HEADER_LEN + shape.forward_body(hop)];
                let mut jobs = [Job::new(key, header(channel, self.seq).data_nonce(iv), body)];
                open_batch(&mut jobs);
                jobs[0].ok
            }) && cell[HEADER_LEN..].starts_with(&inside(channel))
        })
    }
}

#[inline(never)]
fn wrap(stage: &mut Wrapping) {
    let Wrapping { keys, cells, seq } = stage;
    let mut jobs: ArrayVec<EntryJob<'_>, BATCH_MAX> = ArrayVec::new();
    for (channel, (keys, cell)) in (0..).zip(keys.iter().zip(cells)) {
        jobs.push(EntryJob { keys, header: header(channel, *seq), cell, ok: false });
    }
    wrap_layers(shape(), &mut jobs);
    drop(jobs);
    keys.iter_mut().for_each(|keys| keys.advance_forward(*seq));
}

/// Lengths of the datagrams that each channel sends in a round: voice, video, and one that needs three cells.
const LENGTHS: [usize; 4] = [160, 160, 1200, 3000];

/// Packs datagrams into cells, and parses these cells.
pub(super) struct Packing {
    packer: Packer,
    free: FreeList,
    cells: Vec<Cell<Opened>>,
    data: Vec<u8>,
    frames: usize,
    bytes: usize,
}

impl Packing {
    pub(super) fn new() -> Packing {
        let data: Vec<u8> = (0..LENGTHS.into_iter().max().expect("the list is not empty")).map(|i| i as u8).collect();
        let frames = LENGTHS.into_iter().filter_map(|len| fragment_count(shape().payload(), len)).sum::<usize>();
        Packing {
            packer: Packer::new(shape().payload()),
            free: FreeList::new(frames * CHANNELS as usize),
            cells: Vec::with_capacity(frames * CHANNELS as usize),
            data,
            frames: 0,
            bytes: 0,
        }
    }
}

impl Stage for Packing {
    fn prepare(&mut self) {
        self.cells.drain(..).for_each(|cell| self.free.give(cell.into_buffer()));
        (self.frames, self.bytes) = (0, 0);
    }

    fn run(&mut self) -> usize {
        frames(self);
        self.cells.len()
    }

    fn is_correct(&mut self) -> bool {
        let payload = shape().payload();
        let sent = LENGTHS.into_iter().flat_map(|len| split(payload, 1, 2, &self.data[..len])).count();
        let channels = CHANNELS as usize;
        let bytes = LENGTHS.into_iter().sum::<usize>();
        (self.frames, self.bytes) == (sent * channels, bytes * channels)
    }
}

#[inline(never)]
fn frames(stage: &mut Packing) {
    let Packing { packer, free, cells, data, frames, bytes } = stage;
    let payload = shape().payload();
    for len in LENGTHS {
        for channel in 0..CHANNELS {
            for frame in split(payload, 1, 2, &data[..len]) {
                packer.put(ChannelIndex(channel), &frame, free).expect("there are enough buffers");
            }
        }
    }
    cells.extend(packer.finish().map(|(_, cell)| cell));
    for cell in cells {
        for frame in parse(cell.body_mut(payload), Direction::Forward).expect("the cell is well-formed") {
            *frames += 1;
            *bytes += match frame {
                Frame::Dgram { data, .. } | Frame::Frag { data, .. } => data.len(),
                _ => 0,
            };
        }
    }
}
