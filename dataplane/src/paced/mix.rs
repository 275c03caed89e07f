//! The worker of a mix in a paced class (SPEC 9.10).
//!
//! Both directions are alike: what arrives gets a layer and takes its place in a round, and the release of the round
//! sends a cell for every place of every channel. At Mix 1 backward the round is divided by entry link, and a link
//! whose entry has no channel gets as many random cells. The mix's own loops send and receive on the next link.

mod loops;
mod release;

use std::sync::{Arc, Mutex, PoisonError};

use arrayvec::ArrayVec;
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::gcm::{Job, encipher_batch};
use wire::ids::{ChannelKeys, LinkId, Side};
use wire::layer::BATCH_MAX;
use wire::paced::clock::SteadyClock;
use wire::paced::{AHEAD_MAX, ControlSlots, HopKeys, PacedHeader, Schedule, Timetable};

use super::batches::{Batches, Channel};
use super::gate::{ArrivalTime, Arrived, Gate, Intake};
use super::links::PacedLinks;
use super::report_counts::ReportCounts;
use super::sender::{Leaving, Sender};
use super::{Command, RECEIVES, Settings};
use crate::Nanos;
use crate::batch::{Arrivals, Departures, RECEIVE_MAX};
use crate::buffer::FreeList;
use crate::command::LinkCommand;
use crate::latency;
use crate::ledger::{Buffers, DropReason, Gauges, Ledger, RoundCounts, Tally};
use crate::links::report_activity;
use crate::per_direction::{DIRECTIONS, PerDirection};
use crate::punt::PuntSender;
use crate::runner::{BLOCKED_WAIT, Clock, DOWN, UP, Worker};
use crate::socket::Port;
use crate::stage::rounds::noise::Noise;
use crate::stage::rounds::{Place, Released, Rounds};
use loops::Loops;
pub use loops::{Delay, LoopCounts, LoopsView};

/// A mix that has read its sockets empty reads them again after this time.
const REST: Nanos = crate::MILLI;

/// One direction: what comes in at one socket and goes out at the other.
struct Pipe {
    gate: Gate,
    rounds: Rounds,
    noise: Noise,
    schedule: Schedule,
    slots: ControlSlots,
    sender: Sender,
    out: Departures,
    tally: Tally,
    places: ReportCounts,
}

/// What a turn has read of a socket.
struct Read {
    has_come: bool,
    /// Nothing is left.
    is_empty: bool,
}

/// What a mix knows of a channel.
struct MixChannel {
    keys: HopKeys,
    /// A backward cell has come in this batch. A channel that a hop behind this one has refused brings none, and says
    /// nothing of the next link.
    is_heard: bool,
}

/// The worker of a mix between its two link sockets.
pub struct Mix<U, D> {
    settings: Settings,
    times: Timetable,
    up: U,
    down: D,
    links: PacedLinks,
    batches: Batches<MixChannel>,
    loops: Loops,
    pipes: PerDirection<Pipe>,
    clock: SteadyClock,
    free: FreeList,
    commands: rtrb::Consumer<Command>,
    punts: PuntSender,
    report_due: Nanos,
    rng: ChaCha20Rng,
    arrivals: Arrivals,
    arrived: Vec<Arrived<Place>>,
    released: Vec<Released>,
    by_link: Vec<(LinkId, Vec<Leaving>)>,
    counts: RoundCounts,
    published: Arc<Mutex<Ledger>>,
    shown: Arc<Mutex<LoopsView>>,
    profile: latency::Shared,
    /// The clock of the runner, to stop reading by.
    runner_clock: Option<Clock>,
    /// Something has come in this turn, and the sockets were read empty.
    rests: bool,
    /// More has come than was read.
    is_flooded: bool,
}

/// Buffers of a mix: both directions' rounds, noise for the next one, what one release leaves in the send queue with
/// its control cells and copies, those of its loops, and what is being received.
fn buffers(settings: &Settings) -> usize {
    let terms = &settings.terms;
    let places = settings.channels_max() * usize::from(terms.cells);
    // An entry's link may have no channel, so there are as many cells again at Mix 1.
    let links = if settings.position == 1 { 2 * usize::from(terms.seats) * (usize::from(terms.cells) + 2) } else { 0 };
    let copies = 1 + usize::from(terms.copies - 1) * usize::from(terms.gap) + 1;
    let control: usize = DIRECTIONS.into_iter().map(|direction| settings.slots(direction).most()).sum();
    let loops = settings.loops() * usize::from(terms.cells) * (AHEAD_MAX as usize + 2);
    2 * places * (AHEAD_MAX as usize + 3) + loops + links * (copies + 2) + 4 * control + 3 * RECEIVE_MAX
}

impl<U: Port, D: Port> Mix<U, D> {
    /// A mix without links and channels, whose class's clock is `clock`.
    pub fn new(
        settings: Settings,
        (up, down): (U, D),
        commands: rtrb::Consumer<Command>,
        punts: PuntSender,
        mut rng: ChaCha20Rng,
        clock: SteadyClock,
        now: Nanos,
    ) -> Self {
        let total = buffers(&settings);
        let (terms, channels_max) = (&settings.terms, settings.channels_max());
        let mut draw = || rand::SeedableRng::from_rng(&mut rng);
        let pipe = |direction, from, draw: &mut dyn FnMut() -> ChaCha20Rng| {
            let schedule = settings.schedule(direction);
            let released = schedule.last_due(clock.at(now));
            let is_first_link = direction == Direction::Backward && settings.position == 1;
            // Backward cells of loops have places behind the others.
            let places = if direction == Direction::Backward { channels_max + settings.loops() } else { channels_max };
            Pipe {
                gate: Gate::new(&settings, from),
                rounds: Rounds::new(places, terms.cells, released),
                noise: Noise::new(terms.class.body_len(), draw()),
                schedule,
                slots: settings.slots(direction),
                sender: Sender::new(terms, is_first_link, draw()),
                out: Departures::new(terms.class.cell_len(), total),
                tally: Tally::default(),
                places: ReportCounts::new(released),
            }
        };
        let pipes = PerDirection {
            forward: pipe(Direction::Forward, Side::Up, &mut draw),
            backward: pipe(Direction::Backward, Side::Down, &mut draw),
        };
        let mut mix = Mix {
            times: settings.times(),
            batches: Batches::new(terms.rounds.into(), channels_max),
            loops: Loops::new(&settings, draw(), pipes.backward.rounds.released()),
            up,
            down,
            links: PacedLinks::default(),
            pipes,
            clock,
            free: FreeList::on(total, settings.hugepages),
            commands,
            punts,
            report_due: now,
            rng,
            arrivals: Arrivals::new(),
            arrived: Vec::with_capacity(RECEIVE_MAX),
            released: Vec::new(),
            by_link: Vec::new(),
            counts: RoundCounts::default(),
            published: Arc::default(),
            shown: Arc::default(),
            profile: latency::Shared::default(),
            runner_clock: None,
            rests: false,
            is_flooded: false,
            settings,
        };
        mix.prepare();
        mix
    }

    /// The ledger, published at every turn boundary.
    pub fn published(&self) -> Arc<Mutex<Ledger>> {
        self.published.clone()
    }

    /// What it measures by its loops, published with the ledger.
    pub fn view(&self) -> Arc<Mutex<LoopsView>> {
        self.shown.clone()
    }

    /// Histograms, as of a mix of a free class; cells that leave with their round are not in them.
    pub fn profile(&self) -> latency::Shared {
        self.profile.clone()
    }

    /// Its sockets, towards the entry and towards the exit.
    pub fn ports(&mut self) -> (&mut U, &mut D) {
        (&mut self.up, &mut self.down)
    }

    fn is_first(&self) -> bool {
        self.settings.position == 1
    }

    fn apply(&mut self, command: Command, now: Nanos) {
        match command {
            Command::Link(command) => {
                let senders = self.pipes.iter_mut().map(|pipe| &mut pipe.sender);
                match &command {
                    LinkCommand::Retire { link } => senders.for_each(|sender| sender.forget(*link, &mut self.free)),
                    LinkCommand::InstallSlot { link, .. } => senders.for_each(|sender| sender.forget_clock(*link)),
                    _ => {}
                }
                self.links.apply(command, now);
            }
            Command::SlotKeys { link, slot, keys } => self.links.add_keys(link, slot, &keys),
            Command::InstallChannel { batch, up, down, keys, .. } => match &*keys {
                ChannelKeys::Hop { forward, backward } => {
                    let released = self.pipes.forward.rounds.released();
                    let state = MixChannel { keys: HopKeys::new(forward, backward), is_heard: false };
                    self.batches.add(batch, released, Channel { up, down, state });
                }
                ChannelKeys::Entry(_) => debug_assert!(false, "keys of an entry"),
            },
            Command::InstallLoop { batch, number, keys } => {
                self.loops.install(batch, self.pipes.forward.rounds.released(), number, keys);
            }
            Command::AtRound { link, direction, round, control } => {
                // Its link may have gone: then nobody would take the cell.
                if link.is_none_or(|link| self.links.links.side(link).is_some()) {
                    self.pipes[direction].sender.control(link).add_at_round(round, control);
                }
            }
            Command::AtNextSlot { link, control } => {
                if let Some((direction, key)) = self.way(link) {
                    let Pipe { sender, tally, .. } = &mut self.pipes[direction];
                    sender.queue(key, control, tally);
                }
            }
            Command::ClockSeen { link, sent, received } => {
                // An entry without a channel is heard by its control cells alone (SPEC 9.6.3).
                self.links.heard(link, now);
                if let Some((direction, _)) = self.way(link) {
                    self.pipes[direction].sender.clock_seen(link, sent, received);
                }
            }
            Command::Clock(clock) => self.clock = clock,
            Command::Resolved { .. } | Command::OwnAddresses { .. } => debug_assert!(false, "a command for an exit"),
            Command::Entry(_) => debug_assert!(false, "a command for an entry"),
        }
    }

    /// The direction of what leaves on a link, and the name of its control cells.
    fn way(&self, link: LinkId) -> Option<(Direction, Option<LinkId>)> {
        Some(match self.links.links.side(link)? {
            Side::Up => (Direction::Backward, self.is_first().then_some(link)),
            Side::Down => (Direction::Forward, None),
        })
    }

    /// Takes in what has come, until a release is due: a flood delays it by what is left of one call at most.
    fn receive(&mut self, direction: Direction, now: Nanos) -> Read {
        for call in 0..RECEIVES {
            let has_come = call > 0;
            if self.next_due() <= self.runner_clock.map_or(now, |clock| clock.now()) {
                return Read { has_come, is_empty: false };
            }
            if self.receive_once(direction, now) == 0 {
                return Read { has_come, is_empty: true };
            }
        }
        Read { has_come: true, is_empty: false }
    }

    /// When the next release of a direction is due, by the runner's clock.
    fn due(&self, direction: Direction) -> Nanos {
        let Pipe { schedule, rounds, .. } = &self.pipes[direction];
        self.clock.when(schedule.due_at(rounds.released() + 1))
    }

    /// When the next release is due, by the runner's clock.
    fn next_due(&self) -> Nanos {
        DIRECTIONS.into_iter().map(|direction| self.due(direction)).fold(Nanos::MAX, Nanos::min)
    }

    /// One call's worth of arrivals. Returns how many came.
    fn receive_once(&mut self, direction: Direction, now: Nanos) -> usize {
        let is_first = self.is_first();
        let leaves = self.pipes.forward.schedule;
        let Self { pipes, up, down, links, batches, loops, punts, free, arrivals, arrived, clock, settings, .. } = self;
        let Pipe { gate, rounds, tally, .. } = &mut pipes[direction];
        let port: &mut dyn Port = match direction {
            Direction::Forward => up,
            Direction::Backward => down,
        };
        let faces_entries = is_first && direction == Direction::Forward;
        let count = port.recv(free, arrivals);
        if count == 0 {
            return 0;
        }
        let channel = |link, header: &PacedHeader| {
            let found = batches.find(direction, header.seq, faces_entries.then_some(link), header.channel);
            // Looked up for all, so that those of loops take no longer.
            let own = (direction == Direction::Backward).then(|| loops.find(header.seq, header.channel));
            found.or(own.flatten())
        };
        let at = ArrivalTime { turn: now, class: clock.at(now) };
        gate.claim(Intake { arrivals, links, punts, free, tally, at }, rounds, channel, arrived);
        let body_len = settings.terms.class.body_len();
        for cells in arrived.chunks_mut(BATCH_MAX) {
            let mut jobs = ArrayVec::<Job<'_, _>, BATCH_MAX>::new();
            for Arrived { cell, header, place, .. } in cells {
                let keys = match loops.owns(*place) {
                    true => loops.layer(),
                    false => &batches.of_round(header.seq)[place.channel].state.keys,
                };
                jobs.push(keys.job(direction, header.round_sub(), cell.body_mut(body_len)));
            }
            encipher_batch(&mut jobs);
        }
        for Arrived { cell, header, place, .. } in arrived.drain(..) {
            if loops.owns(place) {
                loops.waited(header.seq, place, at.class.saturating_sub(leaves.due_at(header.seq)));
            }
            rounds.put(header.seq, place, cell.opened());
        }
        count
    }

    /// Noise for the places of the next round of each direction, and the cells of loops.
    fn prepare(&mut self) {
        let places = |settings: &Settings| settings.channels_max() * usize::from(settings.terms.cells);
        let links = if self.is_first() { self.links.links.len() * usize::from(self.settings.terms.cells) } else { 0 };
        for direction in DIRECTIONS {
            let more = if direction == Direction::Backward { links } else { 0 };
            self.pipes[direction].noise.draw(places(&self.settings) + more, &mut self.free);
        }
        self.loops.seal(self.pipes.forward.rounds.released() + 1, &mut self.free);
    }

    fn send(&mut self) {
        let Pipe { out, tally, .. } = &mut self.pipes.forward;
        self.down.send(out, &mut self.free, tally);
        let Pipe { out, tally, .. } = &mut self.pipes.backward;
        self.up.send(out, &mut self.free, tally);
    }

    /// True if a socket did not take everything.
    fn is_behind(&self) -> bool {
        self.pipes.iter().any(|pipe| !pipe.out.is_empty())
    }

    fn publish(&self) {
        let mut ledger = Ledger {
            cells: PerDirection { forward: self.pipes.forward.tally, backward: self.pipes.backward.tally },
            traffic: self.up.traffic().and(self.down.traffic()),
            rounds: self.counts,
            ..Ledger::default()
        };
        let mut kept = self.loops.sealed();
        for direction in DIRECTIONS {
            let Pipe { rounds, noise, out, sender, .. } = &self.pipes[direction];
            ledger.cells[direction].hold(rounds.held() + out.len());
            kept += noise.len() + sender.kept();
        }
        let rx = self.up.rx_buffers() + self.down.rx_buffers();
        ledger.buffers = Buffers { free: (self.free.free() + rx + kept) as u64, total: self.free.total() as u64 };
        ledger.gauges = Gauges {
            links: self.links.links.len() as u64,
            channels: self.batches.of_round(self.pipes.forward.rounds.released()).len() as u64,
            ..Gauges::default()
        };
        debug_assert!(ledger.closed(), "{ledger:?}");
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = ledger;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = self.loops.view;
    }
}

impl<U: Port, D: Port> Worker for Mix<U, D> {
    fn set_clock(&mut self, clock: Clock) {
        self.runner_clock = Some(clock);
    }

    fn turn(&mut self, now: Nanos) -> Nanos {
        while let Ok(command) = self.commands.pop() {
            self.apply(command, now);
        }
        // Entries that are new have places in the next round.
        self.prepare();
        // After a wait for a release the cells of its round are in the socket. A mix that reads all the time has taken
        // in what came before.
        let before = DIRECTIONS.map(|direction| {
            let is_read = self.due(direction) <= now && !self.is_flooded;
            is_read.then(|| self.receive_once(direction, now))
        });
        DIRECTIONS.into_iter().for_each(|direction| self.release(direction, now));
        self.is_flooded = false;
        let read = [0, 1].map(|i| match before[i] {
            Some(count) => Read { has_come: count > 0, is_empty: count == 0 },
            None => {
                let read = self.receive(DIRECTIONS[i], now);
                self.is_flooded |= read.has_come && !read.is_empty;
                read
            }
        });
        self.rests = read.iter().any(|read| read.has_come) && read.iter().all(|read| read.is_empty);
        self.send();
        report_activity(&mut self.links.links, &mut self.punts, &mut self.report_due, now);
        self.punts.signal();
        self.publish();
        let due = self.next_due();
        match (self.is_behind(), self.rests) {
            (true, _) => due.min(now + BLOCKED_WAIT),
            // What waits just before a release is read until nothing is left: a call takes in 64 messages at most.
            (false, true) => due.min(due.saturating_sub(BLOCKED_WAIT).clamp(now + BLOCKED_WAIT, now + REST)),
            (false, false) => due,
        }
    }

    fn record_latency(&mut self, now: Nanos) {
        if self.pipes.iter().any(|pipe| pipe.out.has_unrecorded()) {
            let mut profile = self.profile.lock();
            for direction in DIRECTIONS {
                self.pipes[direction].out.record_latency(now, &mut profile.latency[direction]);
            }
        }
    }

    fn ready(&mut self, token: u64) {
        match token {
            UP => self.up.set_ready(),
            DOWN => self.down.set_ready(),
            _ => {}
        }
    }

    /// A cell is due at its release only, so a mix also waits for more cells to come before it reads them: a turn for
    /// each would cost more than the cells.
    fn is_blocked(&self) -> bool {
        self.rests || self.is_behind()
    }

    /// What waits is not sent early: a release out of its time would show.
    fn finish(&mut self, _now: Nanos) {
        self.send();
        for direction in DIRECTIONS {
            let Pipe { rounds, out, tally, .. } = &mut self.pipes[direction];
            let (_, dropped) = rounds.skip_to(rounds.released() + AHEAD_MAX + 1, &mut self.free);
            tally.drop_many(DropReason::Shutdown, dropped as u64 + out.len() as u64);
            out.lose(out.len(), &mut self.free);
        }
        self.publish();
    }
}

#[cfg(test)]
mod tests;
