//! A mix between two ports that cost nothing: cells sealed beforehand come in as bursts, what leaves is counted. For
//! the test that a turn allocates nothing, and for the bench of a turn.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dataplane::batch::{Arrivals, Departures};
use dataplane::buffer::{Cell, FreeList};
use dataplane::command::{Command, LinkCommand};
use dataplane::lanes::Lanes;
use dataplane::latency::Shared;
use dataplane::ledger::{Ledger, Tally};
use dataplane::mix::{Mix, Settings};
use dataplane::punt::{Punt, PuntSender};
use dataplane::runner::Worker;
use dataplane::socket::Port;
use dataplane::sys::Waker;
use dataplane::{MILLI, Nanos, SECOND};
use rand::SeedableRng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{CellKind, Class, Direction, Header, Shape};
use wire::gcm::{AeadKey, Job, seal_batch};
use wire::ids::{ChannelIndex, ChannelKeys, LinkId, Rank, Side, SlotId};
use wire::kdf::Secret;
use wire::key::Generations;
use wire::link::HeaderKey;
use zeroize::Zeroizing;

/// Cells of a burst.
const BURST: usize = 46;
/// Bursts of a receive call.
const BURSTS: usize = 5;

/// Which buffers came in, and which went out, by address.
#[derive(Default)]
pub struct Traces {
    pub received: Vec<*const u8>,
    pub sent: Vec<*const u8>,
}

/// What waits to be received, and a trace of buffers if somebody wants one.
#[derive(Default)]
pub struct Wire {
    /// With the time at which they arrived.
    cells: std::collections::VecDeque<(Nanos, Box<[u8]>)>,
    /// When the cell arrived that was received last.
    newest: Nanos,
    pub traces: Option<Traces>,
}

/// One side of the mix.
pub struct Side1 {
    wire: Rc<RefCell<Wire>>,
    peer: SocketAddr,
}

impl Port for Side1 {
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize {
        let mut wire = self.wire.borrow_mut();
        let Wire { cells, newest, traces } = &mut *wire;
        let count = cells.len().min(BURSTS * BURST);
        for _ in 0..count {
            let buffer = free.take().expect("a mix has buffers for a batch");
            let (arrived, bytes) = cells.pop_front().expect("counted");
            *newest = arrived;
            buffer.bytes_mut()[..bytes.len()].copy_from_slice(&bytes);
            if let Some(traces) = traces {
                traces.received.push(buffer.bytes().as_ptr());
            }
            into.push(Cell::new(buffer), self.peer);
            // Freed where nobody counts allocations.
            std::mem::forget(bytes);
        }
        count
    }

    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool {
        if let Some(traces) = &mut self.wire.borrow_mut().traces {
            traces.sent.extend(out.cells().map(<[u8]>::as_ptr));
        }
        tally.sent += out.len() as u64;
        out.done(out.len(), free);
        true
    }

    fn set_ready(&mut self) {}

    fn waited(&mut self, now: Nanos) -> Nanos {
        now - self.wire.borrow().newest
    }
}

/// The mix, its neighbours' keys and its channels' secrets.
pub struct Stand {
    shape: Shape,
    mix: Mix<Side1, Side1>,
    commands: rtrb::Producer<Command>,
    punts: rtrb::Consumer<Punt>,
    pub wires: [Rc<RefCell<Wire>>; 2],
    pub ledger: Arc<Mutex<Ledger>>,
    pub profile: Shared,
    keys: Vec<(u32, Generations<AeadKey>, u64)>,
    now: Nanos,
}

const HEADER_KEYS: [[u8; 16]; 4] = [[1; 16], [2; 16], [3; 16], [4; 16]];

impl Stand {
    pub fn new(class: Class, channels: u32, mixing: &str) -> Stand {
        Stand::limited(class, channels, mixing, Duration::MAX)
    }

    /// A mix with a maximum age.
    pub fn limited(class: Class, channels: u32, mixing: &str, max_age: Duration) -> Stand {
        let shape = Shape::new(class, 2).unwrap();
        let (commands, from_control) = rtrb::RingBuffer::new(1024);
        let (to_control, punts) = rtrb::RingBuffer::new(256);
        let wires = [(); 2].map(|()| Rc::new(RefCell::new(Wire::default())));
        let [up, down] = [0, 1].map(|i: usize| Side1 { wire: wires[i].clone(), peer: peer(i) });
        let settings = Settings {
            shape,
            position: 1,
            mixing: mixing.parse().unwrap(),
            lanes: Lanes::ONE,
            window: 4096,
            hugepages: false,
            max_age,
        };
        let sender = PuntSender::new(to_control, Arc::new(Waker::new().unwrap()));
        let rngs = [1, 2, 3].map(ChaCha20Rng::seed_from_u64);
        let mix = Mix::new(settings, (up, down), from_control, sender, rngs, SECOND);
        let (ledger, profile) = (mix.published(), mix.profile());
        let mut stand = Stand { shape, mix, commands, punts, wires, ledger, profile, keys: Vec::new(), now: SECOND };
        for (link, side) in [(0, Side::Up), (1, Side::Down)] {
            let [i2r, r2i] = [0, 1].map(|way| Zeroizing::new(HEADER_KEYS[2 * link as usize + way]));
            stand.command(Command::Link(LinkCommand::Install { link: LinkId(link), side, peer: peer(link as usize) }));
            let (header_i2r, header_r2i, rank) = (i2r, r2i, Rank::Current);
            stand.command(Command::Link(LinkCommand::InstallSlot {
                link: LinkId(link),
                slot: SlotId(7),
                peer: peer(link as usize),
                header_i2r,
                header_r2i,
                rank,
            }));
        }
        for channel in 0..channels {
            let secret = |way: u8| {
                let mut bytes = [way; 32];
                bytes[..4].copy_from_slice(&channel.to_be_bytes());
                Secret::new(bytes)
            };
            stand.keys.push((1000 + channel, Generations::new(&secret(1), 0), 0));
            stand.command(Command::InstallChannel {
                channel: ChannelIndex(channel),
                up: Some((LinkId(0), 1000 + channel)),
                down: Some((LinkId(1), 500_000 + channel)),
                keys: ChannelKeys::Hop { forward: secret(1), backward: secret(2) },
                lifetime_s: 3600,
                first: 0,
            });
        }
        stand
    }

    fn command(&mut self, command: Command) {
        assert!(self.commands.push(command).is_ok());
        if self.commands.slots() == 0 {
            self.turn();
        }
    }

    /// A turn, a millisecond after the last.
    pub fn turn(&mut self) {
        self.turn_after(MILLI);
    }

    /// A turn this long after the last.
    pub fn turn_after(&mut self, time: Nanos) {
        self.now += time;
        self.mix.turn(self.now);
        self.mix.record_latency(self.now + MILLI / 4);
        while self.punts.pop().is_ok() {}
    }

    /// Seals `count` forward cells, channel after channel in turn, and puts them on the wire.
    pub fn load(&mut self, count: usize) {
        let header_key = HeaderKey::new(&HEADER_KEYS[0]);
        for i in 0..count {
            let at = i % self.keys.len();
            let (channel, keys, seq) = &mut self.keys[at];
            let header =
                Header { channel: *channel, seq: *seq, sub: 0, kind: CellKind::Data, class: self.shape.class() };
            let mut cell = vec![0x5a; self.shape.cell_len(Direction::Forward, 1)];
            let (key, iv) = keys.of(*seq).unwrap();
            seal_batch(&mut [Job::new(key, header.data_nonce(iv), &mut cell[16..])]);
            let mut block = [header.to_block()];
            header_key.encipher(&mut block);
            cell[..16].copy_from_slice(&block[0]);
            self.wires[0].borrow_mut().cells.push_back((self.now, cell.into()));
            *seq += 1;
        }
    }

    /// Puts `count` backward cells on the wire; a mix cannot tell them from the exit's.
    pub fn load_backward(&mut self, count: usize, seq: u64) {
        let header_key = HeaderKey::new(&HEADER_KEYS[3]);
        let channels = self.keys.len();
        for i in 0..count {
            let channel = 500_000 + (i % channels) as u32;
            let seq = seq + (i / channels) as u64;
            let header = Header { channel, seq, sub: 0, kind: CellKind::Data, class: self.shape.class() };
            let mut cell = vec![0xa5; self.shape.cell_len(Direction::Backward, 2)];
            let mut block = [header.to_block()];
            header_key.encipher(&mut block);
            cell[..16].copy_from_slice(&block[0]);
            self.wires[1].borrow_mut().cells.push_back((self.now, cell.into()));
        }
    }

    /// Cells that nobody has received yet.
    pub fn waiting(&self) -> usize {
        self.wires.iter().map(|wire| wire.borrow().cells.len()).sum()
    }
}

fn peer(side: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1 + side as u8], 9))
}
