//! eddy's cryptography of a forward hop, in batches as in the data plane.

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

use super::candidate::{Candidate, Hop, PACKETS, PAYLOAD};

/// Channels of the cells.
const CHANNELS: usize = 64;
/// Cells that are opened together, as in `dataplane`.
const CHUNK: usize = 8;
/// First channel number of the link in, and of the link out.
const NUMBERS: [u32; 2] = [1000, 500_000];
const HEADER_KEYS: [[u8; 16]; 2] = [[1; 16], [2; 16]];

/// One layer over the payload of the others, and over the largest cells.
pub(super) fn candidates() -> Vec<Candidate> {
    let work = "open a header and a layer, mark the window, seal a new header";
    let cell = Shape::new(Class::L, 2).expect("one mix and an exit").forward_body(1);
    vec![
        Candidate::new("eddy", "1200 bytes", work, Forward::new(PAYLOAD + TAG_LEN)),
        Candidate::new("eddy", "a cell of class L", work, Forward::new(cell)),
    ]
}

struct Forward {
    body: usize,
    shape: Shape,
    /// Header keys of the link in, and of the link out.
    links: [HeaderKey; 2],
    sender: Vec<Generations<AeadKey>>,
    halves: Vec<Half<AeadKey>>,
    cells: Vec<Vec<u8>>,
    blocks: Vec<Block>,
    headers: Vec<Header>,
    /// Next sequence number of every channel.
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

    /// Header of cell `i` of a round that begins at `seq`, on the link in (0) or out (1).
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
            let (key, iv) = self.sender[i % CHANNELS].of(headers[i].seq).context("no key for this number")?;
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
            headers.push(Header::from_block(block, shape.class()).ok().context("a header is invalid")?);
        }
        for (cells, headers) in cells.chunks_mut(CHUNK).zip(headers.chunks(CHUNK)) {
            let mut jobs: ArrayVec<Job<'_, AeadKey>, CHUNK> = ArrayVec::new();
            for (cell, header) in cells.iter_mut().zip(headers) {
                let half = &halves[(header.channel - NUMBERS[0]) as usize];
                let (key, iv) = half.key(header.seq).context("no key for this number")?;
                jobs.push(Job::new(key, header.data_nonce(iv), &mut cell[HEADER_LEN..]));
            }
            open_batch(&mut jobs);
            ensure!(jobs.iter().all(|job| job.ok), "a layer is forged");
            drop(jobs);
            for header in headers {
                let half = &mut halves[(header.channel - NUMBERS[0]) as usize];
                ensure!(half.mark_seen(header.seq, 0).is_ok(), "a number was repeated");
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

    fn is_correct(&mut self) -> anyhow::Result<bool> {
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
