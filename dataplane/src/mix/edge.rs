//! The sockets of a mix: receives and opens arriving cells, seals and sends departing ones.
//!
//! An edge owns a socket towards each neighbour, the channels that come in there, and buffers. It knows no pool: opened
//! cells go to [`Pools`], released ones come back through [`Edge::leave`].

use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Header};
use wire::ids::{ChannelIndex, ChannelKeys, EndReason, LinkId, Side};

use super::{MixChannel, Settings};
use crate::age::{AgeLimit, DRAIN_CALLS, LastRead};
use crate::batch::{Arrivals, Departures, Label, NO_PREFIX, RECEIVE_MAX, Ticket};
use crate::buffer::{Cell, FreeList, Opened};
use crate::command::Command;
use crate::latency::{Profile, Times};
use crate::ledger::{Buffers, DropReason, Gauges, Ledger, Tally};
use crate::links::report_activity;
use crate::per_direction::{DIRECTIONS, PerDirection};
use crate::punt::PuntSender;
use crate::runner::{BLOCKED_WAIT, Clock, DOWN, UP};
use crate::socket::Port;
use crate::stage::ingress::{Admitted, Gate};
use crate::stage::open;
use crate::stage::pool::{POOL_MAX, Pooled};
use crate::stage::seal::Sealer;
use crate::table::{BackwardHalf, ForwardHalf, Half, IDLE_S, Record, Table};
use crate::wheel::Wheel;
use crate::{Nanos, SECOND};

/// Receive calls per socket and turn, if its pool is not due before: bounds a turn, and what one side can delay the
/// other.
const RECEIVES: usize = 4;

/// The destination of opened cells: a mixer, or the ring to one.
pub(super) trait Pools {
    /// Cells that it can still take.
    fn room(&self, direction: Direction) -> usize;
    /// True if it takes no more for now. Later cells wait in the socket.
    fn sated(&self, direction: Direction, now: Nanos) -> bool;
    /// Takes one. The caller asks for room first.
    fn admit(&mut self, direction: Direction, cell: Cell<Opened>, ticket: Ticket);
}

/// One direction: what comes in at one socket and goes out at the other.
struct Pipe {
    gate: Gate,
    out: Departures,
    /// Lanes of the neighbour it leaves to.
    lanes: usize,
    /// Of the socket where cells come in.
    read: LastRead,
    tally: Tally,
}

/// The work of a mix between two sockets: receive, open, seal, send.
pub(super) struct Edge<U, D> {
    settings: Settings,
    /// Index of this edge in its mix.
    index: usize,
    up: U,
    down: D,
    table: Table<MixChannel>,
    /// Channels in the table whose forward cells come to another edge.
    copies: usize,
    pipes: PerDirection<Pipe>,
    free: FreeList,
    commands: rtrb::Consumer<Command>,
    punts: PuntSender,
    sealer: Sealer,
    /// A cell that does not wait in a pool.
    urgent: Vec<Pooled>,
    /// One was sealed and not sent yet.
    has_urgent: bool,
    age: AgeLimit,
    wheel: Wheel,
    report_due: Nanos,
    arrivals: Arrivals,
    admitted: Vec<Admitted>,
    due: Vec<u32>,
}

impl<U: Port, D: Port> Edge<U, D> {
    /// An edge with empty tables and `buffers` buffers. The generator is for the order of groups.
    pub(super) fn new(
        settings: Settings,
        index: usize,
        buffers: usize,
        (up, down): (U, D),
        (commands, punts): (rtrb::Consumer<Command>, PuntSender),
        rng: ChaCha20Rng,
        now: Nanos,
    ) -> Self {
        let Settings { shape, position, lanes, hugepages, .. } = settings;
        let pipe = |side, gate_lanes, direction, link, lanes| Pipe {
            gate: Gate::new(shape, position, side, gate_lanes),
            out: Departures::new(shape.cell_len(direction, link), POOL_MAX),
            lanes,
            read: LastRead::default(),
            tally: Tally::default(),
        };
        Edge {
            pipes: PerDirection {
                forward: pipe(Side::Up, 1, Direction::Forward, position + 1, lanes.next),
                backward: pipe(Side::Down, lanes.next, Direction::Backward, position, 1),
            },
            settings,
            index,
            up,
            down,
            table: Table::on(hugepages),
            copies: 0,
            free: FreeList::on(buffers, hugepages),
            commands,
            punts,
            sealer: Sealer::new(rng),
            urgent: Vec::with_capacity(1),
            has_urgent: false,
            age: AgeLimit::new(settings.max_age),
            wheel: Wheel::new(now / SECOND),
            report_due: now,
            arrivals: Arrivals::new(),
            admitted: Vec::with_capacity(RECEIVE_MAX),
            due: Vec::new(),
        }
    }

    pub(super) fn set_clock(&mut self, clock: Clock) {
        self.age.set_clock(clock);
    }

    /// Applies the commands of control, and removes expired channels.
    pub(super) fn begin(&mut self, now: Nanos, pools: &mut impl Pools) {
        while let Ok(command) = self.commands.pop() {
            self.apply(command, now, pools);
        }
        // Urgent cells must not keep a release waiting.
        if std::mem::take(&mut self.has_urgent) {
            self.send(now);
        }
        self.tick(now);
    }

    /// Receives and opens cells until the pool has enough, or the socket no more; a call's worth at least. Cells that
    /// may have waited for too long are dropped.
    pub(super) fn receive(&mut self, direction: Direction, now: Nanos, pools: &mut impl Pools) {
        let Self { pipes, up, down, table, punts, free, arrivals, admitted, settings, age, .. } = self;
        let (shape, position) = (settings.shape, settings.position);
        let pipe = &mut pipes[direction];
        let port: &mut dyn Port = match direction {
            Direction::Forward => up,
            Direction::Backward => down,
        };
        if !(pipe.out.is_empty() && pools.room(direction) >= RECEIVE_MAX) {
            return;
        }
        let is_late = age.is_exceeded(pipe.read.waited(now));
        pipe.read.set(now);
        if is_late {
            port.set_ready();
        }
        for _ in 0..if is_late { DRAIN_CALLS } else { RECEIVES } {
            if pools.room(direction) < RECEIVE_MAX || port.recv(free, arrivals) == 0 {
                return;
            }
            pipe.gate.admit(arrivals, table, punts, free, &mut pipe.tally, admitted);
            if is_late || age.is_exceeded(port.waited(now)) {
                pipe.tally.drop_many(DropReason::Aged, admitted.len() as u64);
                admitted.drain(..).for_each(|dropped| free.give(dropped.cell.into_buffer()));
                continue;
            }
            match direction {
                Direction::Forward => {
                    open::forward(admitted, shape, position, table, punts, free, &mut pipe.tally, now);
                }
                Direction::Backward => open::backward(admitted, shape, table, free, &mut pipe.tally, now),
            }
            for Admitted { cell, header, channel, link: from, .. } in admitted.drain(..) {
                let state = &table.record(channel).expect("admitted this turn").state;
                let egress = match direction {
                    Direction::Forward => state.forward().egress,
                    Direction::Backward => state.backward().egress,
                };
                let Some((link, number)) = egress else {
                    pipe.tally.drop(DropReason::Channel);
                    free.give(cell.into_buffer());
                    continue;
                };
                let prefix = if position == 1 {
                    table.links.prefix(if direction == Direction::Forward { from } else { link })
                } else {
                    NO_PREFIX
                };
                // A new header, for the next link.
                let header = Header { channel: number, ..header };
                let ticket = Ticket { link, header, label: Label::Channel(channel), arrived: now, times: 0, prefix };
                pools.admit(direction, cell.opened(), ticket);
            }
            if pools.sated(direction, now) {
                return;
            }
        }
    }

    fn apply(&mut self, command: Command, now: Nanos, pools: &mut impl Pools) {
        match command {
            Command::Link(command) => self.table.apply(command),
            Command::InstallChannel {
                channel,
                up,
                down,
                keys: ChannelKeys::Hop { forward, backward },
                lifetime_s,
                first,
            } => {
                let (now_s, width) = (now / SECOND, self.settings.window);
                let ends_s = now_s + u64::from(lifetime_s);
                // Where the forward cells come to another edge, that one sees when they cease.
                let copy = self.is_copy(up);
                let (seen_s, look_s) = if copy { (ends_s, ends_s) } else { (now_s, ends_s.min(now_s + IDLE_S)) };
                self.forget(channel);
                self.copies += usize::from(copy);
                let from_down = down.is_some_and(|(_, number)| self.settings.lanes.down_edge(number) == self.index);
                let state = MixChannel {
                    forward: Half::new(&forward, first, width, down, seen_s),
                    backward: Half::new(&backward, first, width, up, seen_s),
                };
                let record = Record { up, down, ends_s, state };
                self.table.install_half(channel, record, [!copy, from_down]);
                self.wheel.arm(channel.0, look_s);
            }
            Command::RetireChannel { channel } => self.end(channel, EndReason::Retired),
            Command::Inject { link, slot, header, body, at_once } => {
                let direction = match self.table.links.side(link) {
                    Some(Side::Up) => Direction::Backward,
                    Some(Side::Down) | None => Direction::Forward,
                };
                let ticket =
                    Ticket { link, header, label: Label::Own(slot), arrived: now, times: 0, prefix: NO_PREFIX };
                if at_once {
                    self.inject_at_once(direction, ticket, &body, now);
                } else {
                    self.inject(direction, ticket, &body, pools);
                }
            }
            // Control sends a mix no keys of an entry, and nothing about clients and names.
            Command::InstallChannel { .. }
            | Command::Supersede { .. }
            | Command::Listen { .. }
            | Command::Unlisten { .. }
            | Command::OwnAddresses { .. }
            | Command::Resolved { .. } => {}
        }
    }

    /// Copies a cell of control's into a buffer and pools it.
    fn inject(&mut self, direction: Direction, ticket: Ticket, body: &[u8], pools: &mut impl Pools) {
        let tally = &mut self.pipes[direction].tally;
        tally.injected += 1;
        if pools.room(direction) == 0 {
            tally.drop(DropReason::PoolFull);
            return;
        }
        if let Some(cell) = self.own_cell(direction, body) {
            pools.admit(direction, cell, ticket);
        }
    }

    /// Copies a cell of control's into a buffer and seals it, past the pool.
    fn inject_at_once(&mut self, direction: Direction, ticket: Ticket, body: &[u8], now: Nanos) {
        self.pipes[direction].tally.injected += 1;
        let Some(cell) = self.own_cell(direction, body) else { return };
        let mut urgent = std::mem::take(&mut self.urgent);
        urgent.push(Pooled { cell, ticket });
        self.leave(direction, &mut urgent, &[Times::new(now, now).own(true)]);
        (self.urgent, self.has_urgent) = (urgent, true);
    }

    fn own_cell(&mut self, direction: Direction, body: &[u8]) -> Option<Cell<Opened>> {
        let Some(buffer) = self.free.take() else {
            self.pipes[direction].tally.drop(DropReason::NoBuffer);
            return None;
        };
        let mut cell = Cell::own(buffer);
        cell.body_mut(body.len()).copy_from_slice(body);
        Some(cell)
    }

    /// Ends channels that are idle or past their lifetime.
    fn tick(&mut self, now: Nanos) {
        let now_s = now / SECOND;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now_s, &mut due);
        for channel in due.drain(..).map(ChannelIndex) {
            match self.table.lifespan(channel, now_s) {
                Some(Ok(until_s)) => self.wheel.arm(channel.0, until_s),
                Some(Err(reason)) => self.end(channel, reason),
                None => {}
            }
        }
        self.due = due;
    }

    /// Removes a channel and reports it to control. Its pooled cells carry all they need.
    fn end(&mut self, channel: ChannelIndex, reason: EndReason) {
        if self.forget(channel) {
            self.punts.ended(channel, reason);
        }
    }

    /// Returns true if the channel existed.
    fn forget(&mut self, channel: ChannelIndex) -> bool {
        let Some(Record { up, .. }) = self.table.remove(channel) else { return false };
        self.copies -= usize::from(self.is_copy(up));
        true
    }

    /// True if the forward cells of a channel with this link and number arrive at another edge.
    fn is_copy(&self, up: Option<(LinkId, u32)>) -> bool {
        up.is_some_and(|(_, number)| self.settings.lanes.up_edge(number) != self.index)
    }

    /// True if the last release has been sent, so that the next one may leave.
    pub(crate) fn may_leave(&self, direction: Direction) -> bool {
        self.pipes[direction].out.is_empty()
    }

    /// Seals a release, which then waits for [`Edge::send`]. `times` is the table into which the `times` of each ticket
    /// points.
    pub(super) fn leave(&mut self, direction: Direction, release: &mut Vec<Pooled>, times: &[Times]) {
        let Self { pipes, table, free, sealer, .. } = self;
        let pipe = &mut pipes[direction];
        pipe.out.begin_release(times);
        sealer.run(release, pipe.lanes, &mut table.links, &mut pipe.out, free, &mut pipe.tally);
    }

    /// Sends as much as the sockets take, except cells that have waited for too long since they were released.
    pub(super) fn send(&mut self, now: Nanos) {
        if self.is_blocked() {
            let oldest = self.age.oldest(now);
            for pipe in self.pipes.iter_mut() {
                pipe.tally.drop_many(DropReason::Aged, pipe.out.drop_aged(oldest, &mut self.free) as u64);
            }
        }
        let PerDirection { forward, backward } = &mut self.pipes;
        self.down.send(&mut forward.out, &mut self.free, &mut forward.tally);
        self.up.send(&mut backward.out, &mut self.free, &mut backward.tally);
    }

    /// Drops cells and counts them.
    pub(super) fn give_up(&mut self, direction: Direction, cells: impl Iterator<Item = Pooled>, reason: DropReason) {
        for pooled in cells {
            self.pipes[direction].tally.drop(reason);
            self.free.give(pooled.cell.into_buffer());
        }
    }

    /// Drops what could not be sent before the end.
    pub(crate) fn abandon(&mut self, direction: Direction) {
        let pipe = &mut self.pipes[direction];
        pipe.tally.drop_many(DropReason::Shutdown, pipe.out.len() as u64);
        pipe.out.lose(pipe.out.len(), &mut self.free);
    }

    /// True if something was sent whose time is not counted yet.
    pub(crate) fn has_unrecorded(&self) -> bool {
        self.pipes.iter().any(|pipe| pipe.out.has_unrecorded())
    }

    /// Counts what was sent: now it has left.
    pub(super) fn record_latency(&mut self, now: Nanos, profile: &mut Profile) {
        for direction in DIRECTIONS {
            self.pipes[direction].out.record_latency(now, &mut profile.latency[direction]);
        }
    }

    /// Reports to control what the links did.
    pub(super) fn report(&mut self, now: Nanos) {
        report_activity(&mut self.table.links, &mut self.punts, &mut self.report_due, now);
        self.punts.signal();
    }

    /// All its counters. It holds the cells that wait to be sent.
    pub(super) fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::default();
        for direction in DIRECTIONS {
            let pipe = &self.pipes[direction];
            ledger.cells[direction] = Tally { held: pipe.out.len() as u64, ..pipe.tally };
        }
        ledger.buffers = Buffers { free: self.bare() as u64, total: self.free.total() as u64 };
        ledger.traffic = self.up.traffic().and(self.down.traffic());
        ledger.gauges = Gauges {
            links: self.table.links.len() as u64,
            channels: (self.table.len() - self.copies) as u64,
            ..Gauges::default()
        };
        ledger
    }

    /// Buffers without a cell.
    pub(crate) fn bare(&self) -> usize {
        self.free.free() + self.up.rx_buffers() + self.down.rx_buffers()
    }

    /// Its buffers, to be exchanged for full ones.
    pub(super) fn buffers(&mut self) -> &mut FreeList {
        &mut self.free
    }

    /// The latest time of the next turn if nothing arrives.
    pub(crate) fn wake_at(&self, now: Nanos) -> Nanos {
        let blocked = self.is_blocked().then_some(now + BLOCKED_WAIT);
        let report = self.table.links.has_activity().then_some(self.report_due);
        let tick = (!self.table.is_empty()).then_some((now / SECOND + 1) * SECOND);
        [blocked, report, tick].into_iter().flatten().fold(self.age.wake_at(now), Nanos::min)
    }

    /// The poller saw the socket with this token readable.
    pub(super) fn ready(&mut self, token: u64) {
        match token {
            UP => self.up.set_ready(),
            DOWN => self.down.set_ready(),
            _ => {}
        }
    }

    /// True if a send queue is not empty.
    pub(crate) fn is_blocked(&self) -> bool {
        !DIRECTIONS.into_iter().all(|direction| self.may_leave(direction))
    }
}
