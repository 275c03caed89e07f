//! The worker of an entry: applications on one side, Mix 1 on the other.
//!
//! Outwards: application datagrams are given a client, a flow and a channel (`clients`), packed into
//! cells, wrapped in all layers and sent. Backwards: cells are stripped of all layers, parsed, and
//! their datagrams handed to the client's socket. The entry does not pool.

mod backward;
mod clients;
mod listener;
mod liveness;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrayvec::ArrayVec;
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Header, SEQ_END, Shape};
use wire::frames::{self, Frame};
use wire::ids::{ChannelIndex, ChannelKeys, EndReason, Side};
use wire::layer::{BATCH_MAX, EntryJob, EntryKeys, data_header, wrap};
use wire::reassembly::Reassembler;
use wire::replay::Window;

use crate::batch::{Arrivals, Departures, Label, RECEIVE_MAX, Ticket};
use crate::buffer::{Cell, FreeList, Opened};
use crate::command::Command;
use crate::endpoint::packer::Packer;
use crate::latency::{self, Times};
use crate::ledger::{Batches, DropReason, Gauges, Ledger, Tally};
use crate::links::report_activity;
use crate::per_direction::PerDirection;
use crate::punt::{ClientAt, Notice, Punt, PuntSender};
use crate::rate::{Bucket, Rate};
use crate::runner::{BLOCKED_WAIT, Worker};
use crate::socket::Port;
use crate::socket::app_batch::{RECEIVE_BATCH_BYTES_MAX, RECEIVE_BATCH_MAX, ReceiveBatch, SendBatch, SocketId};
use crate::socket::apps::Apps;
use crate::stage::ingress::{Admitted, Gate};
use crate::stage::pool::Pooled;
use crate::stage::seal::Sealer;
use crate::table::{ChannelState, Record, Table};
use crate::{Nanos, SECOND};
use clients::{Clients, FlowState};
use liveness::Liveness;

/// Buffers of an entry: what one turn builds or receives, as much again waiting to be sent, and what the socket offers
/// for what comes.
pub const BUFFERS: usize = BATCH_BUFFERS + 4 * RECEIVE_MAX;
/// Datagrams that wait for the first channel (SPEC 5.5).
pub const WAITING_MAX: usize = 1024;
/// Notices to control.
const NOTICES: Rate = Rate::per_second(100);
/// Application sockets read in one turn.
const APP_BATCHES: usize = 64;
/// Buffers that one batch of application datagrams can need: an OPEN for each, and as many as hold their bytes, 200 in
/// a cell of class S, with an unfilled one for each.
const BATCH_BUFFERS: usize = 2 * RECEIVE_BATCH_MAX + RECEIVE_BATCH_BYTES_MAX / 200;

pub use listener::{
    Association, Destination, HEADER_MAX, Listener, ListenerKind, NotADestination, pymix_destination, read_socks,
    socks_header,
};

/// What an entry worker is made with.
pub struct Settings {
    /// Lengths of the chain.
    pub shape: Shape,
    /// One per application socket, in order; control knows each by its place here.
    pub listeners: Vec<Listener>,
    /// Width of replay windows.
    pub window: usize,
    /// Lanes of Mix 1.
    pub next_lanes: usize,
    /// Buffers on huge pages.
    pub hugepages: bool,
    /// The longest round trip that mixing alone can cause: the exit is lost when it has not answered
    /// for this and three seconds more.
    pub mixing_round_trip: Duration,
}

/// A listening socket in use.
struct Listening {
    /// What control calls it.
    id: u32,
    listener: Listener,
}

/// An entry's part of a channel.
struct EntryChannel {
    keys: EntryKeys,
    next_seq: u64,
    window: Window,
    reassembler: Reassembler,
    liveness: Liveness,
}

impl ChannelState for EntryChannel {
    fn window(&self, _direction: Direction) -> &Window {
        &self.window
    }
}

struct Waiting {
    socket: SocketId,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// The worker of an entry.
pub struct Entry<D, A> {
    settings: Settings,
    down: D,
    apps: A,
    table: Table<EntryChannel>,
    /// By socket.
    listening: Vec<Option<Listening>>,
    clients: Clients,
    waiting: VecDeque<Waiting>,
    gate: Gate,
    packer: Packer,
    release: Vec<Pooled>,
    sealer: Sealer,
    out: Departures,
    free: FreeList,
    commands: rtrb::Consumer<Command>,
    punts: PuntSender,
    rng: ChaCha20Rng,
    cells: PerDirection<Tally>,
    datagrams: PerDirection<Tally>,
    batches: Batches,
    report_due: Nanos,
    next_tick: Nanos,
    arrivals: Arrivals,
    admitted: Vec<Admitted>,
    receive_batch: ReceiveBatch,
    send_batch: SendBatch,
    noticed: Bucket,
    published: Arc<Mutex<Ledger>>,
    profile: latency::Shared,
    /// Start of the turn, and datagrams handed out before it.
    began: (Nanos, u64),
    /// Cells packed in this turn.
    packed: usize,
}

impl<D: Port, A: Apps> Entry<D, A> {
    /// An entry with empty tables. Two generators: for numbers and times, and for group order.
    pub fn new(
        mut settings: Settings,
        down: D,
        apps: A,
        commands: rtrb::Consumer<Command>,
        punts: PuntSender,
        [rng, rng_groups]: [ChaCha20Rng; 2],
        now: Nanos,
    ) -> Self {
        let shape = settings.shape;
        let listening = |(listener, id)| Some(Listening { id, listener });
        Entry {
            down,
            apps,
            table: Table::on(settings.hugepages),
            listening: settings.listeners.drain(..).zip(0..).map(listening).collect(),
            clients: Clients::new(now),
            waiting: VecDeque::with_capacity(WAITING_MAX),
            gate: Gate::new(shape, 0, Side::Down, settings.next_lanes),
            packer: Packer::new(shape.payload()),
            release: Vec::with_capacity(BUFFERS),
            sealer: Sealer::new(rng_groups),
            out: Departures::new(shape.longest_cell(), BUFFERS),
            free: FreeList::on(BUFFERS, settings.hugepages),
            commands,
            punts,
            rng,
            cells: PerDirection::default(),
            datagrams: PerDirection::default(),
            batches: Batches::default(),
            report_due: now,
            next_tick: now,
            arrivals: Arrivals::new(),
            admitted: Vec::with_capacity(RECEIVE_MAX),
            receive_batch: ReceiveBatch::default(),
            send_batch: SendBatch::default(),
            noticed: Bucket::default(),
            published: Arc::default(),
            profile: latency::Shared::default(),
            began: (now, 0),
            packed: 0,
            settings,
        }
    }

    /// Where the ledger appears at every turn boundary.
    pub fn published(&self) -> Arc<Mutex<Ledger>> {
        self.published.clone()
    }

    /// Where it counts how long cells stay that leave on the link, and datagrams that leave for applications; and cells
    /// packed in a turn.
    pub fn profile(&self) -> latency::Shared {
        self.profile.clone()
    }

    fn apply(&mut self, command: Command, now: Nanos) {
        let Some(command) = self.table.apply(command) else { return };
        match command {
            Command::InstallChannel { channel, down, keys: ChannelKeys::Entry(hops), lifetime_s, first, .. } => {
                let state = EntryChannel {
                    keys: EntryKeys::new(&hops, first),
                    next_seq: first,
                    window: Window::new(first, self.settings.window),
                    reassembler: Reassembler::new(self.settings.shape.payload()),
                    liveness: Liveness::new(now, &mut self.rng),
                };
                let ends_s = now / SECOND + u64::from(lifetime_s);
                self.table.install(channel, Record { up: None, down, ends_s, state });
                self.clients.channel_up(channel);
                for Waiting { socket, from, bytes } in std::mem::take(&mut self.waiting) {
                    self.outwards(socket, from, &bytes, now);
                }
            }
            Command::RetireChannel { channel } => self.end(channel, EndReason::Retired),
            Command::Supersede { old, new } => self.clients.supersede(old, new),
            Command::Inject { link, slot, header, body } => {
                self.cells.forward.injected += 1;
                let Some(buffer) = self.free.take() else {
                    self.cells.forward.drop(DropReason::NoBuffer);
                    return;
                };
                let mut cell = Cell::own(buffer);
                cell.body_mut(body.len()).copy_from_slice(&body);
                let ticket = Ticket { link, slot: Some(slot), header, label: Label::Own, arrived: now, times: 0 };
                self.release.push(Pooled { cell, ticket });
            }
            Command::Listen { id, socket, listener } => match self.apps.adopt(socket) {
                Ok(socket) => {
                    let at = socket as usize;
                    if self.listening.len() <= at {
                        self.listening.resize_with(at + 1, || None);
                    }
                    self.listening[at] = Some(Listening { id, listener });
                }
                Err(why) => {
                    let _ = self.punts.send(Punt::Notice(Notice::Deaf { why: why.to_string() }));
                }
            },
            Command::Unlisten { id } => self.unlisten(id),
            // Not for an entry; control never sends them here.
            _ => {}
        }
    }

    /// Forgets a channel, and tells control; what it was reassembling is lost.
    fn end(&mut self, channel: ChannelIndex, reason: EndReason) {
        if let Some(record) = self.table.remove(channel) {
            self.punts.ended(channel, reason);
            let lost = record.state.reassembler.held() as u64;
            self.datagrams.backward.drop_many(DropReason::Ended, lost);
        }
        self.clients.channel_down(channel);
    }

    /// Closes a listening socket; its clients are forgotten, and their flows closed.
    fn unlisten(&mut self, id: u32) {
        let known = |listening: &Option<Listening>| listening.as_ref().is_some_and(|listening| listening.id == id);
        let Some(at) = self.listening.iter().position(known) else { return };
        self.listening[at] = None;
        let socket = at as SocketId;
        self.apps.close(socket);
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.socket != socket);
        self.datagrams.forward.drop_many(DropReason::Ended, (before - self.waiting.len()) as u64);
        self.clients.forget(socket, |channel, flow| {
            let _ = self.packer.put(channel, &Frame::Close { flow }, &mut self.free);
        });
    }

    fn receive_apps(&mut self, now: Nanos) {
        for _ in 0..APP_BATCHES {
            if !self.out.is_empty() || self.free.free() < BATCH_BUFFERS + RECEIVE_MAX {
                return;
            }
            let mut receive_batch = std::mem::replace(&mut self.receive_batch, ReceiveBatch::placeholder());
            let some = self.apps.recv(&mut receive_batch);
            if some {
                for (from, bytes) in receive_batch.iter() {
                    self.datagrams.forward.received += 1;
                    self.outwards(receive_batch.socket(), from, bytes, now);
                }
            }
            self.receive_batch = receive_batch;
            if !some {
                return;
            }
        }
    }

    /// One application datagram: already counted as received.
    fn outwards(&mut self, socket: SocketId, from: SocketAddr, bytes: &[u8], now: Nanos) {
        if let Err(reason) = self.try_outwards(socket, from, bytes, now) {
            self.datagrams.forward.drop(reason);
        }
    }

    fn try_outwards(&mut self, socket: SocketId, from: SocketAddr, bytes: &[u8], now: Nanos) -> Result<(), DropReason> {
        let payload = self.settings.shape.payload();
        // Whatever a socket had received before it was closed has been counted, and goes nowhere.
        let Some(Listening { id, listener }) = self.listening.get(socket as usize).and_then(Option::as_ref) else {
            return Err(DropReason::Ended);
        };
        let client = ClientAt { listener: *id, address: from };
        let (destination, data) = listener.read(from, bytes)?;
        let idle = listener.idle;
        if destination.open_len() > payload {
            return Err(DropReason::BadAddress);
        }
        if frames::fragments(payload, data.len()).is_none() {
            self.notice(Notice::TooLarge { client, len: data.len(), max: frames::longest(payload) }, now);
            return Err(DropReason::TooLarge);
        }
        let Some(client) = self.clients.client(socket, from, idle)? else {
            // No channel is up.
            let oldest = (self.waiting.len() == WAITING_MAX).then(|| self.waiting.pop_front()).flatten();
            self.waiting.push_back(Waiting { socket, from, bytes: bytes.to_vec() });
            return oldest.map_or(Ok(()), |_| {
                self.datagrams.forward.drop(DropReason::ChannelQueueFull);
                Ok(())
            });
        };
        let flow = self.clients.flow(client, &destination, now, &mut self.rng)?;
        let (channel, number, id) = (flow.channel, flow.number, flow.next_id());
        match flow.state {
            FlowState::Open => {}
            FlowState::Opening => {
                let open = Frame::Open { flow: number, map: flow.map, token: flow.token, to: destination.address() };
                self.packer.put(channel, &open, &mut self.free)?;
            }
            FlowState::Moving => {
                let moved = Frame::Move { flow: number, token: flow.token };
                self.packer.put(channel, &moved, &mut self.free)?;
            }
            FlowState::Refused { reason, .. } => return Err(reason),
        }
        for frame in frames::split(payload, number, id, data) {
            self.packer.put(channel, &frame, &mut self.free)?;
        }
        self.datagrams.forward.consumed += 1;
        Ok(())
    }

    /// Wraps and seals what the packer holds; `release` may already hold control's cells.
    fn leave(&mut self, now: Nanos) {
        let shape = self.settings.shape;
        let mut built: ArrayVec<(ChannelIndex, Header, Ticket, Cell<Opened>), BATCH_MAX> = ArrayVec::new();
        let (mut cells, channels) = (0, self.packer.channels());
        {
            let mut finished = self.packer.finish();
            loop {
                let next = finished.next();
                if built.is_full() || next.is_none() {
                    wrap_batch(shape, &mut self.table, &mut built, &mut self.release);
                }
                let Some((channel, cell)) = next else { break };
                self.cells.forward.injected += 1;
                let Some(record) = self.table.record_mut(channel) else {
                    self.cells.forward.drop(DropReason::Ended);
                    self.free.give(cell.into_buffer());
                    continue;
                };
                let (link, number) = record.down.expect("an entry's channel leads down");
                let seq = record.state.next_seq;
                record.state.next_seq += 1;
                record.state.liveness.sent(now, &mut self.rng);
                if record.state.next_seq >= SEQ_END {
                    record.ends_s = 0;
                }
                let header = data_header(shape, number, seq);
                let ticket =
                    Ticket { link, slot: None, header, label: Label::Channel(channel), arrived: now, times: 0 };
                cells += 1;
                built.push((channel, header, ticket, cell));
            }
        }
        if cells > 0 {
            self.batches.add(cells, channels);
            self.packed = cells;
        }
        if !self.release.is_empty() {
            self.out.begin_release(&[Times::new(now, now)]);
        }
        self.sealer.run(
            &mut self.release,
            self.settings.next_lanes,
            &mut self.table.links,
            &mut self.out,
            &mut self.free,
            &mut self.cells.forward,
        );
        self.down.send(&mut self.out, &mut self.free, &mut self.cells.forward);
    }

    /// Tells control what an operator or a client should know; not everything of what comes often.
    fn notice(&mut self, notice: Notice, now: Nanos) {
        if self.noticed.take(NOTICES, now) {
            let _ = self.punts.send(Punt::Notice(notice));
        }
    }

    /// Once a second, and more often while a channel waits for an answer: liveness of channels, their ends,
    /// idle flows, stale fragments.
    fn tick(&mut self, now: Nanos) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = (now / SECOND + 1) * SECOND;
        let now_s = now / SECOND;
        let lost_after = 3 * SECOND + self.settings.mixing_round_trip.as_nanos() as Nanos;
        let channels: Vec<ChannelIndex> = self.table.iter().map(|(channel, _)| channel).collect();
        for channel in channels {
            let record = self.table.record_mut(channel).expect("just listed");
            if record.state.liveness.waits() {
                self.next_tick = self.next_tick.min(now + liveness::LOOK);
            }
            let lost = record.state.reassembler.sweep(Duration::from_nanos(now));
            self.datagrams.backward.drop_many(DropReason::Incomplete, u64::from(lost));
            let ended = if record.ends_s <= now_s {
                Some(EndReason::Lifetime)
            } else if record.state.liveness.is_lost(now, lost_after) {
                Some(EndReason::Lost)
            } else {
                None
            };
            if let Some(reason) = ended {
                self.end(channel, reason);
            } else if record.state.liveness.wants_ping(now) {
                let ping = Frame::Ping(self.rng.next_u64().to_be_bytes());
                let _ = self.packer.put(channel, &ping, &mut self.free);
            }
        }
        self.clients.expire(now, |channel, flow| {
            let _ = self.packer.put(channel, &Frame::Close { flow }, &mut self.free);
        });
    }

    fn publish(&self) {
        let mut ledger =
            Ledger { cells: self.cells, datagrams: self.datagrams, batches: self.batches, ..Ledger::default() };
        ledger.cells.forward.held = (self.out.len() + self.release.len()) as u64;
        ledger.datagrams.forward.held = self.waiting.len() as u64;
        ledger.datagrams.backward.held = self.table.iter().map(|(_, r)| r.state.reassembler.held() as u64).sum();
        ledger.buffers = ((self.free.free() + self.down.rx_buffers()) as u64, self.free.total() as u64);
        ledger.traffic = self.down.traffic();
        ledger.gauges = Gauges {
            links: self.table.links.len() as u64,
            channels: self.table.len() as u64,
            flows: self.clients.flows() as u64,
            sockets: self.clients.len() as u64,
        };
        debug_assert!(ledger.closed(), "{ledger:?}");
        *self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = ledger;
    }
}

/// Wraps a batch of built cells and appends them to the release.
fn wrap_batch(
    shape: Shape,
    table: &mut Table<EntryChannel>,
    built: &mut ArrayVec<(ChannelIndex, Header, Ticket, Cell<Opened>), BATCH_MAX>,
    release: &mut Vec<Pooled>,
) {
    let mut jobs: ArrayVec<EntryJob<'_>, BATCH_MAX> = ArrayVec::new();
    for (channel, header, _, cell) in built.iter_mut() {
        let keys = &table.record(*channel).expect("looked up this turn").state.keys;
        jobs.push(EntryJob { keys, header: *header, cell: cell.bytes_mut(shape.longest_cell()), ok: false });
    }
    wrap(shape, &mut jobs);
    drop(jobs);
    // Only now: a batch may span two generations.
    for (channel, header, ..) in built.iter() {
        let record = table.record_mut(*channel).expect("looked up this turn");
        record.state.keys.advance_forward(header.seq);
    }
    release.extend(built.drain(..).map(|(_, _, ticket, cell)| Pooled { cell, ticket }));
}

impl<D: Port, A: Apps> Worker for Entry<D, A> {
    fn turn(&mut self, now: Nanos) -> Option<Nanos> {
        self.began = (now, self.datagrams.backward.sent);
        while let Ok(command) = self.commands.pop() {
            self.apply(command, now);
        }
        self.tick(now);
        self.receive_link(now);
        self.apps.send(&mut self.send_batch, &mut self.datagrams.backward);
        self.receive_apps(now);
        self.leave(now);
        report_activity(&mut self.table.links, &mut self.punts, &mut self.report_due, now);
        self.punts.signal();
        self.publish();
        let mut wake = self.next_tick;
        if !self.out.is_empty() {
            wake = now + BLOCKED_WAIT;
        }
        if self.table.links.has_activity() {
            wake = wake.min(self.report_due);
        }
        Some(wake)
    }

    fn record_latency(&mut self, now: Nanos) {
        let (began, before) = self.began;
        // What came on the link has gone to applications in the same turn, or not at all.
        let handed_out = self.datagrams.backward.sent - before;
        if handed_out > 0 || self.packed > 0 || self.out.has_unrecorded() {
            let mut profile = self.profile.lock();
            self.out.record_latency(now, &mut profile.latency.forward);
            if handed_out > 0 {
                profile.latency.backward.count(Times::new(began, began), now, handed_out);
            }
            if self.packed > 0 {
                profile.batches.add(std::mem::take(&mut self.packed) as u64, 1);
            }
        }
        self.began.1 = self.datagrams.backward.sent;
    }

    fn ready(&mut self, token: u64) {
        match token {
            crate::runner::DOWN => self.down.set_ready(),
            token if token >= crate::runner::APPS => self.apps.set_ready(token),
            _ => {}
        }
    }

    fn is_blocked(&self) -> bool {
        !self.out.is_empty()
    }

    fn finish(&mut self, now: Nanos) {
        self.leave(now);
        self.datagrams.forward.drop_many(DropReason::Shutdown, self.waiting.len() as u64);
        self.waiting.clear();
        let channels: Vec<ChannelIndex> = self.table.iter().map(|(channel, _)| channel).collect();
        channels.into_iter().for_each(|channel| self.end(channel, EndReason::Retired));
        self.cells.forward.drop_many(DropReason::Shutdown, self.out.len() as u64);
        self.out.lose(self.out.len(), &mut self.free);
        self.publish();
    }
}

#[cfg(test)]
mod tests;
