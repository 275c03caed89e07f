//! The stages of a mix.

use std::sync::Arc;

use dataplane::SECOND;
use dataplane::batch::{Arrivals, Departures, Label, Ticket};
use dataplane::buffer::{Cell, FreeList, Opened};
use dataplane::latency::{Latency, Times};
use dataplane::ledger::Tally;
use dataplane::links::Links;
use dataplane::punt::{Punt, PuntSender};
use dataplane::stage::ingress::{Admitted, Gate};
use dataplane::stage::pool::{Pool, Pooled};
use dataplane::stage::seal::Sealer;
use dataplane::sys::Waker;
use dataplane::table::{ChannelState, Half, Record, Table};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Block, Direction, Header};
use wire::gcm::AeadKey;
use wire::ids::{ChannelIndex, LinkId, Rank, Side, SlotId};
use wire::layer::data_header;
use wire::link::HeaderKey;
use wire::replay::{WIDTH_DEFAULT, Window};
use zeroize::Zeroizing;

use super::{CELLS, CHANNELS, FIRST_NUMBER, Stage, peer, secret, shape};

/// The link on which cells arrive or leave.
const LINK: LinkId = LinkId(3);
const HEADER_KEYS: [[u8; 16]; 2] = [[1; 16], [2; 16]];

/// Installs the header keys of [`LINK`].
fn install(links: &mut Links, side: Side) {
    let [header_i2r, header_r2i] = HEADER_KEYS.map(Zeroizing::new);
    links.install(LINK, side, peer());
    links.install_slot(LINK, SlotId(7), peer(), Rank::Current, &header_i2r, &header_r2i);
}

/// Headers of a round's cells, channel after channel.
fn headers(round: u64) -> impl Iterator<Item = (ChannelIndex, Header)> {
    (0..CELLS as u32).map(move |i| {
        let (channel, seq) = (i % CHANNELS, round * (CELLS as u64 / u64::from(CHANNELS)) + u64::from(i / CHANNELS));
        (ChannelIndex(channel), data_header(shape(), FIRST_NUMBER + channel, seq))
    })
}

/// A channel with a forward half only.
struct OneWay(Half<AeadKey>);

impl ChannelState for OneWay {
    fn window(&self, _direction: Direction) -> &Window {
        self.0.window()
    }
}

/// Decrypts and checks header blocks, and looks up channels.
pub(super) struct Ingress {
    gate: Gate,
    table: Table<OneWay>,
    key: HeaderKey,
    arrivals: Arrivals,
    punts: PuntSender,
    /// Stays empty.
    control: rtrb::Consumer<Punt>,
    free: FreeList,
    tally: Tally,
    out: Vec<Admitted>,
    round: u64,
}

impl Ingress {
    pub(super) fn new() -> Ingress {
        let (ring, control) = rtrb::RingBuffer::new(64);
        let mut table = Table::default();
        install(&mut table.links, Side::Up);
        for channel in 0..CHANNELS {
            let state = OneWay(Half::new(&secret(channel, 1), 0, WIDTH_DEFAULT, None, 0));
            let up = Some((LINK, FIRST_NUMBER + channel));
            table.install(ChannelIndex(channel), Record { up, down: None, ends_s: 3600, state });
        }
        Ingress {
            gate: Gate::new(shape(), 1, Side::Up, 1),
            table,
            key: HeaderKey::new(&HEADER_KEYS[0]),
            arrivals: Arrivals::new(),
            punts: PuntSender::new(ring, Arc::new(Waker::new().expect("a descriptor is available"))),
            control,
            free: FreeList::new(CELLS),
            tally: Tally::default(),
            out: Vec::with_capacity(CELLS),
            round: 0,
        }
    }
}

impl Stage for Ingress {
    fn prepare(&mut self) {
        self.out.drain(..).for_each(|admitted| self.free.give(admitted.cell.into_buffer()));
        let mut blocks: Vec<Block> = headers(self.round).map(|(_, header)| header.to_block()).collect();
        self.key.encipher(&mut blocks);
        let Ingress { free, arrivals, .. } = self;
        let cells = blocks.iter().map(|block| {
            let buffer = free.take().expect("there is a buffer for each cell");
            buffer.bytes_mut()[..block.len()].copy_from_slice(block);
            Cell::new(buffer)
        });
        arrivals.push_burst(cells, peer());
        self.round += 1;
    }

    fn run(&mut self) -> usize {
        ingress(self);
        CELLS
    }

    fn is_correct(&mut self) -> bool {
        let channels = self.out.iter().map(|admitted| (admitted.channel, admitted.header));
        channels.eq(headers(self.round - 1)) && self.tally.dropped_total() == 0 && self.control.is_empty()
    }
}

#[inline(never)]
fn ingress(stage: &mut Ingress) {
    let Ingress { gate, table, arrivals, punts, free, tally, out, .. } = stage;
    gate.admit(arrivals, table, punts, free, tally, out);
}

fn ticket((channel, header): (ChannelIndex, Header)) -> Ticket {
    Ticket { link: LINK, header, label: Label::Channel(channel), arrived: SECOND, times: 0, prefix: channel.0 + 1 }
}

/// Pools, shuffles and releases cells.
pub(super) struct Pooling {
    pool: Pool,
    free: FreeList,
    cells: Vec<(Cell<Opened>, Ticket)>,
    out: Vec<Pooled>,
}

impl Pooling {
    pub(super) fn new() -> Pooling {
        let mixing = format!("threshold:n={CELLS}").parse().expect("well-formed");
        Pooling {
            pool: Pool::new(mixing, ChaCha20Rng::seed_from_u64(1)),
            free: FreeList::new(CELLS),
            cells: Vec::with_capacity(CELLS),
            out: Vec::new(),
        }
    }
}

impl Stage for Pooling {
    fn prepare(&mut self) {
        self.out.drain(..).for_each(|pooled| self.free.give(pooled.cell.into_buffer()));
        let Pooling { free, cells, .. } = self;
        let own = |channel| (Cell::own(free.take().expect("there is a buffer for each cell")), ticket(channel));
        cells.extend(headers(0).map(own));
    }

    fn run(&mut self) -> usize {
        pool(self);
        CELLS
    }

    fn is_correct(&mut self) -> bool {
        let of = |label| self.out.iter().map(|pooled| pooled.ticket).filter(move |ticket| ticket.label == label);
        let ordered = |channel| of(Label::Channel(ChannelIndex(channel))).map(|ticket| ticket.header.seq).eq(0..4);
        let shuffled = !self.out.iter().map(|pooled| pooled.ticket.header).eq(headers(0).map(|(_, header)| header));
        self.out.len() == CELLS && (0..CHANNELS).all(ordered) && shuffled
    }
}

#[inline(never)]
fn pool(stage: &mut Pooling) {
    let Pooling { pool, cells, out, .. } = stage;
    for (cell, ticket) in cells.drain(..) {
        pool.admit(cell, ticket);
    }
    if pool.due(SECOND) {
        pool.release(SECOND, out);
    }
}

/// Encrypts new headers, and queues cells for sending.
pub(super) struct Sealing {
    sealer: Sealer,
    links: Links,
    key: HeaderKey,
    release: Vec<Pooled>,
    free: FreeList,
    tally: Tally,
    latency: Latency,
    out: Departures,
}

impl Sealing {
    pub(super) fn new() -> Sealing {
        let mut links = Links::default();
        install(&mut links, Side::Down);
        Sealing {
            sealer: Sealer::new(ChaCha20Rng::seed_from_u64(2)),
            links,
            key: HeaderKey::new(&HEADER_KEYS[0]),
            release: Vec::with_capacity(CELLS),
            free: FreeList::new(CELLS),
            tally: Tally::default(),
            latency: Latency::default(),
            out: Departures::new(shape().cell_len(Direction::Forward, 2), CELLS),
        }
    }
}

impl Stage for Sealing {
    fn prepare(&mut self) {
        self.out.done(self.out.len(), &mut self.free);
        self.out.record_latency(SECOND, &mut self.latency);
        self.out.begin_release(&[Times::new(SECOND, SECOND)]);
        let Sealing { free, release, .. } = self;
        release.extend(headers(0).map(|channel| {
            let cell = Cell::own(free.take().expect("there is a buffer for each cell"));
            Pooled { cell, ticket: ticket(channel) }
        }));
    }

    fn run(&mut self) -> usize {
        seal(self);
        CELLS
    }

    fn is_correct(&mut self) -> bool {
        let mut blocks: Vec<Block> = self.out.cells().filter_map(|cell| cell.first_chunk().copied()).collect();
        self.key.decipher(&mut blocks);
        let class = shape().class();
        let found = blocks.iter().map(|block| Header::from_block(block, class).ok());
        found.eq(headers(0).map(|(_, header)| Some(header))) && self.tally.dropped_total() == 0
    }
}

#[inline(never)]
fn seal(stage: &mut Sealing) {
    let Sealing { sealer, links, release, free, tally, out, .. } = stage;
    sealer.run(release, 1, links, out, free, tally);
}
