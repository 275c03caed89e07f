//! What a mix of a paced class costs for each channel and round in user space, without the kernel: `cargo bench -p
//! dataplane --bench rounds`.
//!
//! A mix between two others, all of whose channels send in every round both ways. Prints nanoseconds of thread CPU time
//! for each cell, to take it in and to release it, medians of the rounds, and how many channels a core would
//! carry with one cell in 10 ms both ways: computed from these, so without system calls. The copy of each cell into its
//! buffer, which the kernel makes in the real thing, is in it.

use std::net::SocketAddr;
use std::sync::Arc;

use dataplane::batch::{Arrivals, Departures};
use dataplane::buffer::{Cell, FreeList};
use dataplane::ledger::Tally;
use dataplane::paced::mix::Mix;
use dataplane::paced::{ChannelAt, Command, Settings, link_commands};
use dataplane::punt::PuntSender;
use dataplane::runner::Worker;
use dataplane::socket::Port;
use dataplane::sys::Waker;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use rustix::time::{ClockId, clock_gettime};
use wire::cell::{CellKind, Class, Direction};
use wire::gcm::PolyvalKey;
use wire::ids::{ChannelKeys, LinkId, Side};
use wire::kdf::Secret;
use wire::link::{HeaderKey, LinkSecrets};
use wire::paced::clock::SteadyClock;
use wire::paced::{PacedClass, PacedHeader, PacedTerms};
use wire::setup::Suite;

const HOPS: usize = 4;
const POSITION: usize = 2;
const MS: u64 = 1_000_000;
const START: u64 = 1_000 * MS;
const BATCH: u64 = 1_000_000;
const ROUNDS: usize = 64;
/// The first rounds find cold caches, and links that have not heard of each other.
const WARM_UP: u64 = 10;

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A socket whose cells are ready, and that forgets what it sends.
struct Ready {
    peer: SocketAddr,
    cells: Vec<Vec<u8>>,
}

impl Port for Ready {
    fn recv(&mut self, free: &mut FreeList, into: &mut Arrivals) -> usize {
        let count = self.cells.len().min(1024).min(free.free());
        for bytes in self.cells.drain(..count) {
            let mut cell = Cell::new(free.take().expect("it is free"));
            cell.bytes_mut(bytes.len()).copy_from_slice(&bytes);
            into.push(cell, self.peer);
        }
        count
    }

    fn send(&mut self, out: &mut Departures, free: &mut FreeList, tally: &mut Tally) -> bool {
        tally.sent += out.len() as u64;
        out.done(out.len(), free);
        true
    }

    fn set_ready(&mut self) {}
}

fn terms(class: Class, seats: u16) -> PacedTerms {
    let class = PacedClass::new(class);
    PacedTerms { n_min: 1, seats, loops: 0, steps_ms: vec![2; HOPS - 1], ..PacedTerms::new(class, "bench", HOPS) }
}

/// A neighbour: its link, and how it seals.
struct Neighbour {
    side: Side,
    at: SocketAddr,
    secrets: LinkSecrets,
}

impl Neighbour {
    fn new(side: Side) -> Neighbour {
        let secrets = LinkSecrets::derive(&[side as u8; 32], &[1; 32], &[2; 32], &[3; 32]);
        Neighbour { side, at: ([192, 0, 2, 1 + side as u8], 9).into(), secrets }
    }

    fn commands(&self) -> [Command; 3] {
        link_commands(LinkId(self.side as u32), self.side, self.at, self.secrets.clone())
    }

    /// A cell of every channel for a round.
    fn cells(&self, class: PacedClass, channels: u32, round: u64, rng: &mut ChaCha20Rng) -> Vec<Vec<u8>> {
        let (header, tag) = match self.side {
            Side::Up => (&self.secrets.header_i2r, &self.secrets.tag_i2r),
            Side::Down => (&self.secrets.header_r2i, &self.secrets.tag_r2i),
        };
        let (header, tag) = (HeaderKey::new(header), PolyvalKey::prepare(tag));
        let mut body = vec![0; class.body_len()];
        let mut cell = |channel| {
            rng.fill_bytes(&mut body);
            let tag = tag.link_tag(&body);
            let of_cell = PacedHeader { channel, seq: round, sub: 0, kind: CellKind::Data, class, tag };
            let mut block = [of_cell.to_block()];
            header.encipher(&mut block);
            [&block[0][..], &body].concat()
        };
        (1..=channels).map(&mut cell).collect()
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Nanoseconds for each cell, to take it in and to release it.
fn measure(class: Class, channels: u32) -> (u64, u64) {
    let terms = terms(class, channels as u16);
    let (times, paced) = (terms.timetable(HOPS), terms.class);
    let settings = Settings { terms, suite: Suite::Hybrid, hops: HOPS, position: POSITION, hugepages: false };
    let (mut commands, worker_commands) = rtrb::RingBuffer::new(1 << 16);
    let (worker_punts, _punts) = rtrb::RingBuffer::new(1024);
    let first = times.first(BATCH);
    // Channels are added before their batch begins.
    let start = times.begin(first - 16);
    let clock = SteadyClock::new(START, start);
    let neighbours = [Neighbour::new(Side::Up), Neighbour::new(Side::Down)];
    let [up, down] = [0, 1].map(|side: usize| Ready { peer: neighbours[side].at, cells: Vec::new() });
    let punts = PuntSender::new(worker_punts, Arc::new(Waker::new().expect("a descriptor is free")));
    let mut mix = Mix::new(settings, (up, down), worker_commands, punts, ChaCha20Rng::seed_from_u64(1), clock, START);
    let mut send = |command| assert!(commands.push(command).is_ok(), "the ring has room");
    neighbours.iter().flat_map(Neighbour::commands).for_each(&mut send);
    for number in 1..=channels {
        let secret = |byte| Secret::new([byte ^ number as u8; 32]);
        let keys = ChannelKeys::Hop { forward: secret(1), backward: secret(2) };
        let (up, down) = (ChannelAt { link: None, number }, Some(number));
        send(Command::InstallChannel { batch: BATCH, up, down, keys: Box::new(keys), token: None });
    }
    let (ledger, mut rng) = (mix.published(), ChaCha20Rng::seed_from_u64(2));
    let (mut taken, mut released, mut warm) = (Vec::new(), Vec::new(), None);
    // What comes for round r comes a millisecond before its release.
    for round in first + 8..first + 8 + ROUNDS as u64 {
        let mut spent = [0; 2];
        for direction in [Direction::Forward, Direction::Backward] {
            let neighbour = &neighbours[(direction == Direction::Backward) as usize];
            let cells = neighbour.cells(paced, channels, round, &mut rng);
            match direction {
                Direction::Forward => mix.ports().0.cells = cells,
                Direction::Backward => mix.ports().1.cells = cells,
            }
            let due = times.schedule(direction, POSITION).due_at(round) - start + START;
            for (part, at) in [(0, due - MS), (1, due)] {
                let before = cpu_ns();
                for _ in 0..=channels / 4096 {
                    mix.turn(at);
                }
                spent[part] += cpu_ns() - before;
                mix.record_latency(at);
            }
        }
        if warm.is_none() && round == first + 8 + WARM_UP {
            warm = Some(*ledger.lock().expect("nobody panicked"));
        }
        taken.push(spent[0] / u64::from(2 * channels));
        released.push(spent[1] / u64::from(2 * channels));
    }
    let (before, after) = (warm.expect("there are more rounds"), *ledger.lock().expect("nobody panicked"));
    for (before, after) in [(before.cells.forward, after.cells.forward), (before.cells.backward, after.cells.backward)]
    {
        assert_eq!(after.received - before.received, (ROUNDS as u64 - 1 - WARM_UP) * u64::from(channels));
        assert_eq!(after.dropped_total(), before.dropped_total());
    }
    (median(taken), median(released))
}

fn main() {
    println!("{:>5} {:>8} {:>8} {:>8} {:>17}", "class", "channels", "take in", "release", "channels per core");
    for class in [Class::S, Class::L] {
        for channels in [100, 2_000, 10_000] {
            let (taken, released) = measure(class, channels);
            let most = 10 * MS / (2 * (taken + released)).max(1);
            println!("{:>5} {channels:>8} {taken:>8} {released:>8} {most:>17}", class.name());
        }
    }
}
