//! eddy's own cryptography of a forward hop, by the batch as the data plane has it.

use anyhow::{Context, ensure};
use arrayvec::ArrayVec;
use dataplane::table::Half;
use wire::cell::{Block, Class, HEADER_LEN, Header, Shape, TAG_LEN};
use wire::gcm::{AeadKey, Job, open_batch, seal_batch};
use wire::kdf::Secret;
use wire::key::Generations;
use wire::layer::data_header;
use wire::link::HeaderKey;
use wire::replay::WIDTH_DEFAULT;

use super::contest::{Contestant, Hop, PACKETS, PAYLOAD};

/// Channels that the cells belong to, in turn.
const CHANNELS: usize = 64;
/// Cells that are opened at a time, as in `dataplane::open`.
const CHUNK: usize = 8;
/// Channel numbers on the way in, and on the way out.
const NUMBERS: [u32; 2] = [1000, 500_000];
const HEADER_KEYS: [[u8; 16]; 2] = [[1; 16], [2; 16]];

/// A layer over as many bytes as the others carry, and over those of the largest cells.
pub fn contestants() -> Vec<Contestant> {
    let what = "open a header and a layer, mark the window, seal a new header";
    let cell = Shape::new(Class::L, 2).expect("one mix and an exit").forward_body(1);
    vec![
        Contestant::new("eddy", "1200 bytes", what, Forward::new(PAYLOAD + TAG_LEN)),
        Contestant::new("eddy", "a cell of class L", what, Forward::new(cell)),
    ]
}

struct Forward {
    body: usize,
    shape: Shape,
    /// Of the link that cells come on, and the next one.
    links: [HeaderKey; 2],
    sender: Vec<Generations<AeadKey>>,
    halves: Vec<Half<AeadKey>>,
    cells: Vec<Vec<u8>>,
    blocks: Vec<Block>,
    headers: Vec<Header>,
    /// Next number of every channel.
    seq: u64,
}

impl Forward {
    fn new(body: usize) -> Forward {
        let secrets = || (0..CHANNELS).map(|channel| Secret::new([channel as u8; 32]));
        Forward {
            body,
            shape: Shape::new(Class::L, 2).expect("one mix and an exit"),
            links: HEADER_KEYS.map(|key| HeaderKey::new(&key)),
            sender: secrets().map(|secret| Generations::new(&secret, 0)).collect(),
            halves: secrets().map(|secret| Half::new(&secret, 0, WIDTH_DEFAULT, None, 0)).collect(),
            cells: vec![vec![0; HEADER_LEN + body]; PACKETS],
            blocks: Vec::with_capacity(PACKETS),
            headers: Vec::with_capacity(PACKETS),
            seq: 0,
        }
    }

    /// Header of cell `i` of those that begin at `seq`, on one of the two links.
    fn header(&self, link: usize, i: usize, seq: u64) -> Header {
        data_header(self.shape, NUMBERS[link] + (i % CHANNELS) as u32, seq + (i / CHANNELS) as u64)
    }
}

fn plain(i: usize) -> u8 {
    i as u8 ^ 0x5a
}

impl Hop for Forward {
    fn prepare(&mut self) -> anyhow::Result<()> {
        let seq = self.seq;
        let headers: Vec<Header> = (0..PACKETS).map(|i| self.header(0, i, seq)).collect();
        let mut blocks: Vec<Block> = headers.iter().map(Header::to_block).collect();
        self.links[0].encipher(&mut blocks);
        self.sender.iter_mut().for_each(|keys| keys.advance(seq));
        for (i, cell) in self.cells.iter_mut().enumerate() {
            let (head, body) = cell.split_at_mut(HEADER_LEN);
            head.copy_from_slice(&blocks[i]);
            body.fill(plain(i));
            let (key, iv) = self.sender[i % CHANNELS].of(headers[i].seq).context("a number without a key")?;
            seal_batch(&mut [Job::new(key, headers[i].data_nonce(iv), body)]);
        }
        self.seq += (PACKETS / CHANNELS) as u64;
        Ok(())
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let Forward { shape, links, halves, cells, blocks, headers, .. } = self;
        blocks.clear();
        blocks.extend(cells.iter().filter_map(|cell| cell.first_chunk::<HEADER_LEN>()));
        links[0].decipher(blocks);
        headers.clear();
        for block in blocks.iter() {
            headers.push(Header::from_block(block, shape.class()).ok().context("a header does not open")?);
        }
        for (cells, headers) in cells.chunks_mut(CHUNK).zip(headers.chunks(CHUNK)) {
            let mut jobs: ArrayVec<Job<'_, AeadKey>, CHUNK> = ArrayVec::new();
            for (cell, header) in cells.iter_mut().zip(headers) {
                let half = &halves[(header.channel - NUMBERS[0]) as usize];
                let (key, iv) = half.key(header.seq).context("a number without a key")?;
                jobs.push(Job::new(key, header.data_nonce(iv), &mut cell[HEADER_LEN..]));
            }
            open_batch(&mut jobs);
            ensure!(jobs.iter().all(|job| job.ok), "a layer does not open");
            drop(jobs);
            for header in headers {
                let half = &mut halves[(header.channel - NUMBERS[0]) as usize];
                ensure!(half.mark(header.seq, 0).is_ok(), "a number comes twice");
            }
        }
        for (block, header) in blocks.iter_mut().zip(headers.iter()) {
            *block = Header { channel: header.channel - NUMBERS[0] + NUMBERS[1], ..*header }.to_block();
        }
        links[1].encipher(blocks);
        for (cell, block) in cells.iter_mut().zip(blocks.iter()) {
            cell[..HEADER_LEN].copy_from_slice(block);
        }
        Ok(())
    }

    fn sound(&mut self) -> anyhow::Result<bool> {
        let seq = self.seq - (PACKETS / CHANNELS) as u64;
        let mut blocks: Vec<Block> = self.cells.iter().filter_map(|cell| cell.first_chunk().copied()).collect();
        self.links[1].decipher(&mut blocks);
        let text = HEADER_LEN..HEADER_LEN + self.body - TAG_LEN;
        Ok((0..PACKETS).all(|i| {
            let header = Header::from_block(&blocks[i], self.shape.class());
            header == Ok(self.header(1, i, seq)) && self.cells[i][text.clone()].iter().all(|byte| *byte == plain(i))
        }))
    }
}
