//! Free classes, event by event: hops that hold cells, links that carry bursts, an exit that sends flow by flow.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
};

use rand::{RngExt as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use super::{Application, CELL_BYTES, Chain, Draw, MS, SECOND, Simulation, US, exponential, generator};
use crate::record::{Passage, Place, Record, Seen};

/// Cells of one GSO burst, which have one time on the wire.
const BURST: usize = 48;
/// How late the timer of a mix is on average (exponential), in nanoseconds: Linux wakes a thread up to 50 us after its
/// timer, and the scheduler adds to it.
const LATE: f64 = 100.0 * US as f64;
/// Datagrams a second that the adversary's own user sends.
const PROBE_PER_SECOND: f64 = 20.0;

#[derive(Clone, Copy)]
struct Cell {
    /// The number of the user; the probe comes after the last one.
    user: usize,
    bytes: u32,
    cover: bool,
    forward: bool,
    entered: u64,
}

enum What {
    Arrival(Cell),
    /// The grid of a pool is due.
    Tick {
        due: u64,
    },
    /// A token of this user and direction is due.
    Due {
        user: usize,
        forward: bool,
    },
}

struct Event {
    at: u64,
    number: u64,
    hop: usize,
    what: What,
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Event {}

struct World<'a> {
    chain: &'a Chain,
    hops: usize,
    /// Mean of the exponential jitter of a link, in nanoseconds.
    jitter: f64,
    rng: ChaCha8Rng,
    events: BinaryHeap<Reverse<Event>>,
    number: u64,
    held: Vec<Vec<Cell>>,
    /// When a link was last busy, so that it keeps its order: `[hop][forward]`.
    busy: Vec<[u64; 2]>,
    exit_busy: u64,
    record: Record,
}

pub(super) fn run(simulation: &Simulation, applications: &[Application]) -> Record {
    let (hops, jitter) = match simulation.chain {
        Chain::Off { hops } => (hops, 100.0 * US as f64),
        Chain::Pool { hops, .. } | Chain::Exponential { hops, .. } => (hops, 10.0 * US as f64),
        Chain::Ideal(_) => unreachable!("ideal rounds are simulated elsewhere"),
    };
    let users = simulation.users;
    let mut world = World {
        chain: &simulation.chain,
        hops,
        jitter,
        rng: generator(simulation.seed, Draw::Chain, 0),
        events: BinaryHeap::new(),
        number: 0,
        held: vec![Vec::new(); hops],
        busy: vec![[0; 2]; hops + 1],
        exit_busy: 0,
        record: Record {
            length: simulation.length(),
            cell_bytes: CELL_BYTES,
            access: vec![Place::default(); users],
            inner: vec![Place::default(); hops],
            flows: vec![Place::default(); users],
            ..Record::default()
        },
    };
    world.start(simulation, applications);
    world.run();
    world.record.first(simulation.length())
}

impl World<'_> {
    fn start(&mut self, simulation: &Simulation, applications: &[Application]) {
        for (user, application) in applications.iter().enumerate() {
            let mut rng = generator(simulation.seed, Draw::Link, user);
            let cells = entry(&application.forward, self.chain, self.record.length, &mut rng);
            let lost = simulation.lost(user, cells.len());
            for ((at, bytes, cover), _) in cells.into_iter().zip(lost).filter(|(_, lost)| !lost) {
                let Some(at) = simulation.passes(user, at) else { continue };
                self.record.access[user].forward.push(Seen { at, bytes: CELL_BYTES });
                self.push(at, 0, What::Arrival(Cell { user, bytes, cover, forward: true, entered: at }));
            }
            // Cells that an adversary delays may be overtaken.
            self.record.access[user].forward.sort_by_key(|seen| seen.at);
            for seen in &application.backward {
                self.record.flows[user].backward.push(*seen);
                let cell = Cell { user, bytes: seen.bytes, cover: false, forward: false, entered: seen.at };
                self.push(seen.at + 30 * US, self.hops, What::Arrival(cell));
            }
        }
        let mut rng = generator(simulation.seed, Draw::Link, simulation.users);
        let mut at = exponential(&mut rng, SECOND as f64 / PROBE_PER_SECOND) as u64;
        while at < self.record.length {
            if let Some(entered) = simulation.passes(simulation.users, at) {
                let cell = Cell { user: simulation.users, bytes: 200, cover: false, forward: true, entered };
                self.push(entered, 0, What::Arrival(cell));
            }
            at += exponential(&mut rng, SECOND as f64 / PROBE_PER_SECOND) as u64;
        }
        if let Chain::Pool { period_ms, .. } = *self.chain {
            for hop in 0..self.hops {
                let phase = self.rng.random_range(0.0..period_ms);
                self.tick(hop, (phase * MS as f64) as u64);
            }
        }
    }

    fn push(&mut self, at: u64, hop: usize, what: What) {
        self.number += 1;
        if at < self.record.length {
            self.events.push(Reverse(Event { at, number: self.number, hop, what }));
        }
    }

    fn run(&mut self) {
        while let Some(Reverse(Event { at, hop, what, .. })) = self.events.pop() {
            match what {
                // The exit does not hold answers.
                What::Arrival(cell) if hop == self.hops => self.send(hop, vec![cell], at),
                What::Arrival(cell) => self.arrive(hop, cell, at),
                What::Tick { due } => {
                    self.release(hop, at);
                    if let Chain::Pool { period_ms, .. } = *self.chain {
                        self.tick(hop, due + (period_ms * MS as f64) as u64);
                    }
                }
                What::Due { user, forward } => {
                    // A token sends the oldest cell of its label.
                    let oldest = self.held[hop].iter().position(|cell| cell.user == user && cell.forward == forward);
                    let cell = self.held[hop].remove(oldest.expect("a token for each held cell"));
                    self.send(hop, vec![cell], at);
                }
            }
        }
    }

    /// Wakes a hop a little after its grid is due.
    fn tick(&mut self, hop: usize, due: u64) {
        let late = exponential(&mut self.rng, LATE) as u64;
        self.push(due + late, hop, What::Tick { due });
    }

    fn arrive(&mut self, hop: usize, cell: Cell, at: u64) {
        match *self.chain {
            Chain::Off { .. } | Chain::Ideal(_) => self.send(hop, vec![cell], at),
            Chain::Exponential { mean_ms, .. } => {
                self.held[hop].push(cell);
                let wait = exponential(&mut self.rng, mean_ms).min(7.0 * mean_ms) * MS as f64;
                self.push(at + wait as u64, hop, What::Due { user: cell.user, forward: cell.forward });
            }
            Chain::Pool { threshold, .. } => {
                self.held[hop].push(cell);
                if self.held[hop].len() >= threshold {
                    let channels: HashSet<usize> = self.held[hop].iter().map(|cell| cell.user).collect();
                    if channels.len() >= threshold.div_ceil(8) {
                        self.release(hop, at);
                    }
                }
            }
        }
    }

    fn release(&mut self, hop: usize, at: u64) {
        let held = std::mem::take(&mut self.held[hop]);
        for forward in [true, false] {
            let mut cells: Vec<Cell> = held.iter().copied().filter(|cell| cell.forward == forward).collect();
            if !matches!(self.chain, Chain::Pool { shuffle: false, .. }) {
                shuffle(&mut cells, &mut self.rng);
            }
            self.send(hop, cells, at + 20 * US);
        }
    }

    /// Sends what a hop releases at one time in one direction.
    fn send(&mut self, hop: usize, cells: Vec<Cell>, at: u64) {
        let Some(&Cell { forward, .. }) = cells.first() else { return };
        if !forward && hop == 0 {
            return self.send_to_entries(cells, at);
        }
        let mut at = at;
        for burst in cells.chunks(BURST) {
            let (link, next) = if forward { (hop, hop + 1) } else { (hop - 1, hop.wrapping_sub(1)) };
            at = at.max(self.busy[link][usize::from(forward)]);
            self.busy[link][usize::from(forward)] = at + 10 * US;
            let place = &mut self.record.inner[link];
            let trace = if forward { &mut place.forward } else { &mut place.backward };
            trace.extend(burst.iter().map(|_| Seen { at, bytes: CELL_BYTES }));
            if next < self.hops {
                let arrival = at + 30 * US + exponential(&mut self.rng, self.jitter) as u64;
                for &cell in burst {
                    self.push(arrival, next, What::Arrival(cell));
                }
            }
        }
        if forward && hop + 1 == self.hops {
            let arrival = at + 30 * US + exponential(&mut self.rng, self.jitter) as u64;
            self.leave(&cells, arrival);
        }
    }

    /// The exit's turn: the flows in random order, each flow's datagrams in their own.
    fn leave(&mut self, cells: &[Cell], at: u64) {
        let mut order: Vec<usize> = cells.iter().map(|cell| cell.user).collect();
        if !matches!(self.chain, Chain::Pool { shuffle: false, .. }) {
            order.sort_unstable();
            order.dedup();
            order.shuffle(&mut self.rng);
        }
        let mut by_user: HashMap<usize, VecDeque<&Cell>> = HashMap::new();
        for cell in cells.iter().filter(|cell| !cell.cover) {
            by_user.entry(cell.user).or_default().push_back(cell);
        }
        let mut at = (at + 30 * US).max(self.exit_busy);
        for user in order {
            for cell in by_user.remove(&user).into_iter().flatten() {
                at += 2 * US;
                match self.record.flows.get_mut(user) {
                    Some(flow) => flow.forward.push(Seen { at, bytes: cell.bytes }),
                    None => self.record.probe.push(Passage { entered: cell.entered, left: at }),
                }
            }
        }
        self.exit_busy = at;
    }

    /// Mix 1 groups the cells by link, each group in its own order, the groups in the order of their first cells.
    fn send_to_entries(&mut self, cells: Vec<Cell>, at: u64) {
        let mut at = at.max(self.busy[self.hops][0]);
        let mut order: Vec<usize> = Vec::new();
        let mut cells_of: HashMap<usize, usize> = HashMap::new();
        for cell in &cells {
            let count = cells_of.entry(cell.user).or_insert(0);
            if *count == 0 {
                order.push(cell.user);
            }
            *count += 1;
        }
        for user in order {
            at += 3 * US;
            let group = (0..cells_of[&user]).map(|_| Seen { at, bytes: CELL_BYTES });
            self.record.access[user].backward.extend(group);
        }
        self.busy[self.hops][0] = at;
    }
}

/// A uniform shuffle of the labels, whose positions are filled with each label's cells, oldest first.
fn shuffle(cells: &mut [Cell], rng: &mut ChaCha8Rng) {
    let mut queues: HashMap<usize, VecDeque<Cell>> = HashMap::new();
    for &cell in cells.iter() {
        queues.entry(cell.user).or_default().push_back(cell);
    }
    cells.shuffle(rng);
    for cell in cells {
        *cell = queues.get_mut(&cell.user).and_then(VecDeque::pop_front).expect("a cell for each label");
    }
}

/// What the entry puts on the access link: times, the datagrams' bytes, and which cells are cover.
fn entry(datagrams: &[Seen], chain: &Chain, length: u64, rng: &mut ChaCha8Rng) -> Vec<(u64, u32, bool)> {
    let mut cells: Vec<(u64, u32, bool)> = datagrams.iter().map(|seen| (seen.at, seen.bytes, false)).collect();
    if let Chain::Exponential { cover, .. } = *chain
        && cover > 0.0
    {
        let mean = SECOND as f64 / cover;
        let mut at = exponential(rng, mean);
        while at < length as f64 {
            cells.push((at as u64, 0, true));
            at += exponential(rng, mean);
        }
        cells.sort_by_key(|cell| cell.0);
    }
    let mut busy = 0;
    for cell in &mut cells {
        cell.0 = (cell.0 + 40 * US + exponential(rng, 20.0 * US as f64) as u64).max(busy);
        busy = cell.0 + US;
    }
    cells
}
