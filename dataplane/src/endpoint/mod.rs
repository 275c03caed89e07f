//! The common part of entry and exit: one link socket, application sockets, and a way to build cells.
//!
//! An endpoint does not pool. In each turn it receives on the link, hands datagrams to applications, packs what
//! applications sent into cells, seals these and sends them. Layers and flows are the business of its owner, `entry`
//! or `exit`.

pub mod packer;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrayvec::ArrayVec;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Header, SEQ_END, Shape};
use wire::ids::{ChannelIndex, LinkId, Side, SlotId};
use wire::layer::{BATCH_MAX, data_header};

use crate::age::{AgeLimit, DRAIN_APP_BATCHES, DRAIN_CALLS, LastRead};
use crate::batch::{Arrivals, Departures, Label, NO_PREFIX, RECEIVE_MAX, Ticket};
use crate::buffer::{Cell, FreeList, Opened};
use crate::latency::{self, Times};
use crate::ledger::{Buffers, DropReason, Gauges, Ledger, Releases, Tally};
use crate::links::report_activity;
use crate::per_direction::PerDirection;
use crate::punt::PuntSender;
use crate::runner::{APPS, BLOCKED_WAIT, DOWN, UP};
use crate::socket::Port;
use crate::socket::app_batch::{ReceiveBatch, SendBatch, SocketId};
use crate::socket::apps::Apps;
use crate::stage::ingress::{Admitted, Gate};
use crate::stage::pool::Pooled;
use crate::stage::seal::Sealer;
use crate::table::{ChannelState, Record, Table};
use crate::{Nanos, SECOND};
use packer::Packer;

/// Receive calls on the link in one turn.
const RECEIVES: usize = 4;
/// Receive calls on application sockets in one turn.
const APP_BATCHES: usize = 64;

/// A cell that was packed, with its channel.
pub(crate) struct Built {
    pub(crate) channel: ChannelIndex,
    ticket: Ticket,
    pub(crate) cell: Cell<Opened>,
}

impl Built {
    pub(crate) fn header(&self) -> Header {
        self.ticket.header
    }
}

/// A channel that an endpoint sends on.
pub(crate) trait Sender: ChannelState + Sized {
    /// The number of the next cell.
    fn next_seq(&mut self) -> &mut u64;
    /// Puts the layers on a batch of cells. A batch may span two generations of keys.
    fn put_layers(shape: Shape, table: &mut Table<Self>, batch: &mut [Built]);
}

/// The times of control's cells and of packed ones in the table of a release.
const OWN: u32 = 0;
const PACKED: u32 = 1;

/// The parameters of an endpoint.
pub(crate) struct Settings {
    pub(crate) shape: Shape,
    /// Its hop: 0 is the entry.
    pub(crate) position: usize,
    /// Lanes of the neighbour.
    pub(crate) lanes: usize,
    /// Most buffers that one batch of application datagrams needs.
    pub(crate) batch_buffers: usize,
    pub(crate) hugepages: bool,
    /// The longest time that a cell may wait.
    pub(crate) max_age: Duration,
}

/// What a turn may receive from applications, see [`Endpoint::begin_apps`].
pub(crate) struct AppTurn {
    now: Nanos,
    /// How long the datagrams can have waited.
    waited: Nanos,
    /// Receive calls.
    pub(crate) batches: usize,
    is_late: bool,
}

impl AppTurn {
    /// Everything may be received if it may have waited for too long since `read`.
    pub(crate) fn begin(apps: &mut impl Apps, age: &AgeLimit, read: LastRead, now: Nanos) -> AppTurn {
        let waited = read.waited(now);
        let is_late = age.is_exceeded(waited);
        if is_late {
            apps.set_all_ready();
        }
        AppTurn { now, waited, batches: if is_late { DRAIN_APP_BATCHES } else { APP_BATCHES }, is_late }
    }

    /// Receives a batch, which the owner puts back into `place`. `None` if nothing waits. Also returns how long it can
    /// have waited.
    pub(crate) fn receive(
        &self,
        apps: &mut impl Apps,
        read: &mut LastRead,
        place: &mut ReceiveBatch,
    ) -> Option<(ReceiveBatch, Nanos)> {
        let mut batch = std::mem::replace(place, ReceiveBatch::placeholder());
        let received = apps.recv(&mut batch);
        if !(received && self.is_late) {
            read.set(self.now);
        }
        if received {
            let waited = self.waited.max(apps.waited(batch.socket(), self.now));
            return Some((batch, waited));
        }
        *place = batch;
        None
    }
}

/// Drops datagrams for applications, if the turn that began at `began` was stopped for longer than `max_age` of their
/// socket.
pub(crate) fn drop_late(
    send_batch: &mut SendBatch,
    tally: &mut Tally,
    (age, began): (&AgeLimit, Nanos),
    max_age: impl Fn(SocketId) -> Nanos,
) {
    if !send_batch.is_empty() {
        let waited = age.since(began);
        if age.is_exceeded(waited) {
            let aged = send_batch.retain(|socket| waited <= max_age(socket));
            tally.drop_many(DropReason::Aged, aged as u64);
        }
    }
}

/// One end of a chain.
pub(crate) struct Endpoint<L, A, C> {
    pub(crate) shape: Shape,
    /// The side of its link.
    side: Side,
    lanes: usize,
    batch_buffers: usize,
    link: L,
    pub(crate) apps: A,
    pub(crate) table: Table<C>,
    gate: Gate,
    pub(crate) packer: Packer,
    release: Vec<Pooled>,
    sealer: Sealer,
    out: Departures,
    pub(crate) free: FreeList,
    pub(crate) punts: PuntSender,
    pub(crate) cells: PerDirection<Tally>,
    pub(crate) datagrams: PerDirection<Tally>,
    releases: Releases,
    pub(crate) age: AgeLimit,
    link_read: LastRead,
    apps_read: LastRead,
    /// How long what this turn receives on the link can have waited.
    turn_waited: Nanos,
    /// The same of what the last call received.
    pub(crate) link_waited: Nanos,
    report_due: Nanos,
    arrivals: Arrivals,
    pub(crate) admitted: Vec<Admitted>,
    /// What [`Endpoint::receive_apps`] fills; its owner puts it back.
    pub(crate) receive_batch: ReceiveBatch,
    pub(crate) send_batch: SendBatch,
    pub(crate) published: Arc<Mutex<Ledger>>,
    pub(crate) profile: latency::Shared,
    /// Start of the turn, and datagrams handed out before it.
    began: (Nanos, u64),
    /// Cells packed in this turn.
    packed: usize,
}

/// Buffers of the link batch that is being received.
const RECEIVING: usize = RECEIVE_MAX;
/// Rx buffers of the link socket.
const RX_BUFFERS: usize = RECEIVE_MAX;
/// Buffers of cells that were built earlier and wait to be sent.
const WAITING: usize = 2 * RECEIVE_MAX;

/// Buffers of an endpoint whose batches of application datagrams need up to `batch_buffers`.
pub(crate) const fn buffers(batch_buffers: usize) -> usize {
    batch_buffers + RECEIVING + RX_BUFFERS + WAITING
}

impl<L: Port, A: Apps, C: Sender> Endpoint<L, A, C> {
    /// An endpoint with empty tables. The generator is for the order of groups of cells.
    pub(crate) fn new(
        settings: Settings,
        (link, apps): (L, A),
        punts: PuntSender,
        rng: ChaCha20Rng,
        now: Nanos,
    ) -> Endpoint<L, A, C> {
        let Settings { shape, position, lanes, batch_buffers, hugepages, max_age } = settings;
        let side = if position == 0 { Side::Down } else { Side::Up };
        let cell_len = match side {
            Side::Down => shape.longest_cell(),
            Side::Up => shape.cell_len(Direction::Backward, position),
        };
        let buffers = buffers(batch_buffers);
        Endpoint {
            shape,
            side,
            lanes,
            batch_buffers,
            link,
            apps,
            table: Table::on(hugepages),
            gate: Gate::new(shape, position, side, lanes),
            packer: Packer::new(shape.payload()),
            release: Vec::with_capacity(buffers),
            sealer: Sealer::new(rng),
            out: Departures::new(cell_len, buffers),
            free: FreeList::on(buffers, hugepages),
            punts,
            cells: PerDirection::default(),
            datagrams: PerDirection::default(),
            releases: Releases::default(),
            age: AgeLimit::new(max_age),
            link_read: LastRead::default(),
            apps_read: LastRead::default(),
            turn_waited: 0,
            link_waited: 0,
            report_due: now,
            arrivals: Arrivals::new(),
            admitted: Vec::with_capacity(RECEIVE_MAX),
            receive_batch: ReceiveBatch::default(),
            send_batch: SendBatch::default(),
            published: Arc::default(),
            profile: latency::Shared::default(),
            began: (now, 0),
            packed: 0,
        }
    }

    /// The direction of the cells that it sends.
    fn outgoing(&self) -> Direction {
        match self.side {
            Side::Down => Direction::Forward,
            Side::Up => Direction::Backward,
        }
    }

    /// The direction of the cells that it receives, and of the datagrams that it hands to applications.
    fn incoming(&self) -> Direction {
        match self.side {
            Side::Down => Direction::Backward,
            Side::Up => Direction::Forward,
        }
    }

    pub(crate) fn begin(&mut self, now: Nanos) {
        self.began = (now, self.datagrams[self.incoming()].sent);
    }

    /// Queues a cell of control's.
    pub(crate) fn inject(&mut self, link: LinkId, slot: SlotId, header: Header, body: &[u8], now: Nanos) {
        let tally = &mut self.cells[if self.side == Side::Down { Direction::Forward } else { Direction::Backward }];
        tally.injected += 1;
        let Some(buffer) = self.free.take() else {
            tally.drop(DropReason::NoBuffer);
            return;
        };
        let mut cell = Cell::own(buffer);
        cell.body_mut(body.len()).copy_from_slice(body);
        let ticket = Ticket { link, header, label: Label::Own(slot), arrived: now, times: OWN, prefix: NO_PREFIX };
        self.release.push(Pooled { cell, ticket });
    }

    /// Returns how often [`Endpoint::receive`] may be called: until nothing is left, if that may have waited for too
    /// long.
    pub(crate) fn begin_link(&mut self, now: Nanos) -> usize {
        self.turn_waited = self.link_read.waited(now);
        self.link_read.set(now);
        if !self.age.is_exceeded(self.turn_waited) {
            return RECEIVES;
        }
        self.link.set_ready();
        DRAIN_CALLS
    }

    /// Receives once on the link and admits the cells. False if nothing came.
    pub(crate) fn receive(&mut self, now: Nanos) -> bool {
        let incoming = self.incoming();
        let Self { link, free, arrivals, gate, table, punts, cells, admitted, .. } = self;
        if link.recv(free, arrivals) == 0 {
            return false;
        }
        self.link_waited = self.turn_waited.max(link.waited(now));
        gate.admit(arrivals, table, punts, free, &mut cells[incoming], admitted);
        true
    }

    /// Hands the datagrams of this turn to applications, unless the turn was stopped for longer than `max_age` of their
    /// socket.
    pub(crate) fn send_datagrams(&mut self, max_age: impl Fn(SocketId) -> Nanos) {
        let incoming = self.incoming();
        let Self { apps, send_batch, datagrams, age, began, .. } = self;
        drop_late(send_batch, &mut datagrams[incoming], (age, began.0), max_age);
        // Without datagrams, sockets that were closed in this turn are closed now.
        apps.send(send_batch, &mut datagrams[incoming]);
    }

    /// What this turn may receive from applications: everything, if that may have waited for too long.
    pub(crate) fn begin_apps(&mut self, now: Nanos) -> AppTurn {
        AppTurn::begin(&mut self.apps, &self.age, self.apps_read, now)
    }

    /// Receives a batch of datagrams from applications. `None` if nothing waits, or if there are not enough buffers for
    /// its cells. Also returns how long it can have waited. The owner reads the batch and puts it back as
    /// `receive_batch`.
    pub(crate) fn receive_apps(&mut self, turn: &AppTurn) -> Option<(ReceiveBatch, Nanos)> {
        if !self.has_room_for_a_batch() {
            return None;
        }
        turn.receive(&mut self.apps, &mut self.apps_read, &mut self.receive_batch)
    }

    /// True if there are buffers for the cells of one more batch of application datagrams.
    fn has_room_for_a_batch(&self) -> bool {
        self.out.is_empty() && self.free.free() >= self.batch_buffers + RECEIVING
    }

    /// Seals what the packer holds, after control's cells, and sends. Calls `each` for every channel with a cell.
    pub(crate) fn leave(&mut self, now: Nanos, mut each: impl FnMut(&mut C)) {
        let direction = self.outgoing();
        let Self { shape, side, table, packer, release, free, cells, .. } = self;
        let tally = &mut cells[direction];
        let mut built: ArrayVec<Built, BATCH_MAX> = ArrayVec::new();
        let mut count = 0;
        let mut finished = packer.finish();
        loop {
            let next = finished.next();
            if built.is_full() || next.is_none() {
                C::put_layers(*shape, table, &mut built);
                release.extend(built.drain(..).map(|Built { cell, ticket, .. }| Pooled { cell, ticket }));
            }
            let Some((channel, cell)) = next else { break };
            tally.injected += 1;
            let Some(record) = table.record_mut(channel) else {
                tally.drop(DropReason::Ended);
                free.give(cell.into_buffer());
                continue;
            };
            let (link, number) = link_of(record, *side);
            let next_seq = record.state.next_seq();
            let seq = *next_seq;
            *next_seq += 1;
            if *next_seq >= SEQ_END {
                record.ends_s = 0;
            }
            each(&mut record.state);
            let header = data_header(*shape, number, seq);
            let ticket =
                Ticket { link, header, label: Label::Channel(channel), arrived: now, times: PACKED, prefix: NO_PREFIX };
            count += 1;
            built.push(Built { channel, ticket, cell });
        }
        drop(finished);

        if count > 0 {
            self.releases.add(count);
            self.packed = count;
        }
        if !self.release.is_empty() {
            let packed = Times::new(now, now);
            self.out.begin_release(&[packed.own(true), packed]);
        }
        let Self { link, lanes, table, release, sealer, out, free, cells, age, .. } = self;
        let tally = &mut cells[direction];
        sealer.run(release, *lanes, &mut table.links, out, free, tally);
        if !out.is_empty() {
            tally.drop_many(DropReason::Aged, out.drop_aged(age.oldest(now), free) as u64);
        }
        link.send(out, free, tally);
    }

    /// Tells control what the link did, and wakes it.
    pub(crate) fn report(&mut self, now: Nanos) {
        report_activity(&mut self.table.links, &mut self.punts, &mut self.report_due, now);
        self.punts.signal();
    }

    /// Publishes the ledger: its own part, and what the owner holds and counts.
    pub(crate) fn publish(&self, held: PerDirection<u64>, flows: usize, sockets: usize) {
        let mut ledger =
            Ledger { cells: self.cells, datagrams: self.datagrams, releases: self.releases, ..Ledger::default() };
        ledger.cells[self.outgoing()].held = (self.out.len() + self.release.len()) as u64;
        ledger.datagrams.forward.held = held.forward;
        ledger.datagrams.backward.held = held.backward;
        ledger.buffers =
            Buffers { free: (self.free.free() + self.link.rx_buffers()) as u64, total: self.free.total() as u64 };
        ledger.traffic = self.link.traffic();
        ledger.gauges = Gauges {
            links: self.table.links.len() as u64,
            channels: self.table.len() as u64,
            flows: flows as u64,
            sockets: sockets as u64,
        };
        debug_assert!(ledger.closed(), "{ledger:?}");
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = ledger;
    }

    /// The latest time of the next turn if nothing arrives and the owner's next work is due at `tick`.
    pub(crate) fn wake_at(&self, now: Nanos, tick: Nanos) -> Nanos {
        let wake = if self.out.is_empty() { tick.min(self.age.wake_at(now)) } else { now + BLOCKED_WAIT };
        if self.table.links.has_activity() { wake.min(self.report_due) } else { wake }
    }

    /// Records how long the cells and datagrams took that left in this turn.
    pub(crate) fn record_latency(&mut self, now: Nanos) {
        let (outgoing, incoming) = (self.outgoing(), self.incoming());
        let (began, before) = self.began;
        // What came on the link has gone to applications in the same turn, or not at all.
        let handed_out = self.datagrams[incoming].sent - before;
        if handed_out > 0 || self.packed > 0 || self.out.has_unrecorded() {
            let mut profile = self.profile.lock();
            self.out.record_latency(now, &mut profile.latency[outgoing]);
            if handed_out > 0 {
                profile.latency[incoming].count(Times::new(began, began), now, handed_out);
            }
            if self.packed > 0 {
                profile.releases.add(std::mem::take(&mut self.packed) as u64, 1);
            }
        }
        self.began.1 = self.datagrams[incoming].sent;
    }

    /// The poller saw the socket of this token readable.
    pub(crate) fn ready(&mut self, token: u64) {
        match token {
            UP | DOWN => self.link.set_ready(),
            token if token >= APPS => self.apps.set_ready(token),
            _ => {}
        }
    }

    /// True if cells wait that the link socket did not accept.
    pub(crate) fn is_blocked(&self) -> bool {
        !self.out.is_empty()
    }

    /// Drops what could not be sent before the node stopped.
    pub(crate) fn abandon(&mut self) {
        let direction = self.outgoing();
        self.cells[direction].drop_many(DropReason::Shutdown, self.out.len() as u64);
        self.out.lose(self.out.len(), &mut self.free);
    }

    pub(crate) fn channels(&self) -> Vec<ChannelIndex> {
        self.table.iter().map(|(channel, _)| channel).collect()
    }
}

/// Link and number of a channel's cells on the side of an endpoint's link.
fn link_of<C>(record: &Record<C>, side: Side) -> (LinkId, u32) {
    let link = if side == Side::Down { record.down } else { record.up };
    link.expect("a channel of an endpoint has a link on its side")
}

/// The next full second.
pub(crate) fn next_second(now: Nanos) -> Nanos {
    (now / SECOND + 1) * SECOND
}
