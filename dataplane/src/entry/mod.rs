//! The worker of an entry: applications on one side, Mix 1 on the other.
//!
//! Forward: application datagrams are given a client, a flow and a channel (`clients`), packed into
//! cells, wrapped in all layers and sent. Backward: cells are stripped of all layers, parsed, and
//! their datagrams handed to the client's socket. The entry does not pool.

mod backward;
pub(crate) mod clients;
pub(crate) mod listener;
mod liveness;
pub(crate) mod users;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrayvec::ArrayVec;
use rand::Rng;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Shape};
use wire::frames::{self, Frame};
use wire::ids::{ChannelIndex, ChannelKeys, EndReason};
use wire::layer::{BATCH_MAX, EntryJob, EntryKeys, wrap};
use wire::reassembly::Reassembler;
use wire::replay::Window;

use crate::command::Command;
use crate::endpoint::{self, Built, Endpoint, Sender};
use crate::latency;
use crate::ledger::{DropReason, Ledger};
use crate::per_direction::PerDirection;
use crate::punt::PuntSender;
use crate::runner::{Clock, Worker};
use crate::socket::Port;
use crate::socket::app_batch::{RECEIVE_BATCH_BYTES_MAX, RECEIVE_BATCH_MAX, SocketId};
use crate::socket::apps::Apps;
use crate::table::{ChannelState, Record, Table};
use crate::{Nanos, SECOND};
use clients::FlowState;
use liveness::Liveness;
use users::{Request, Users};

pub use listener::{
    Association, Destination, HEADER_MAX, Listener, ListenerId, ListenerKind, NotADestination, pymix_destination,
    read_socks, socks_header,
};

/// Datagrams that wait for the first channel (SPEC 5.5).
pub const WAITING_MAX: usize = 1024;
/// In its last seconds a channel is not pinged: hops, where it opened earlier, may have ended it.
const LAST_S: u64 = 2;
/// Buffers that one batch of application datagrams can need: an OPEN for each, and as many as hold their bytes, 200 in
/// a cell of class S, with an unfilled one for each.
const BATCH_BUFFERS: usize = 2 * RECEIVE_BATCH_MAX + RECEIVE_BATCH_BYTES_MAX / 200;

/// The configuration of an entry worker.
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
    /// The longest round trip that mixing alone can cause: the exit is lost when it has not answered for this and
    /// `LOST_AFTER` more.
    pub mixing_round_trip: Duration,
    /// The longest time that a cell may wait. Listeners have limits of their own for datagrams.
    pub max_age: Duration,
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
    arrived: Nanos,
    socket: SocketId,
    from: SocketAddr,
    bytes: Vec<u8>,
}

/// The worker of an entry.
pub struct Entry<D, A> {
    settings: Settings,
    endpoint: Endpoint<D, A, EntryChannel>,
    users: Users,
    waiting: VecDeque<Waiting>,
    commands: rtrb::Consumer<Command>,
    rng: ChaCha20Rng,
    next_tick: Nanos,
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
        let of_endpoint = endpoint::Settings {
            shape: settings.shape,
            position: 0,
            lanes: settings.next_lanes,
            batch_buffers: BATCH_BUFFERS,
            hugepages: settings.hugepages,
            max_age: settings.max_age,
        };
        let mut entry = Entry {
            endpoint: Endpoint::new(of_endpoint, (down, apps), punts, rng_groups, now),
            users: Users::new(std::mem::take(&mut settings.listeners), now),
            waiting: VecDeque::with_capacity(WAITING_MAX),
            commands,
            rng,
            next_tick: now,
            settings,
        };
        entry.find_shortest_age();
        entry
    }

    /// The listeners have changed: the worker has its turns by the shortest limit.
    fn find_shortest_age(&mut self) {
        self.endpoint.age.set_shortest(self.users.shortest_age());
    }

    /// The ledger, published at every turn boundary.
    pub fn published(&self) -> Arc<Mutex<Ledger>> {
        self.endpoint.published.clone()
    }

    /// Histograms of how long cells stay that leave on the link and datagrams that leave for applications, and of cells
    /// packed in a turn.
    pub fn profile(&self) -> latency::Shared {
        self.endpoint.profile.clone()
    }

    fn apply(&mut self, command: Command, now: Nanos) {
        match command {
            Command::Link(command) => self.endpoint.table.apply(command),
            Command::InstallChannel { channel, down, keys: ChannelKeys::Entry(hops), lifetime_s, first, .. } => {
                let state = EntryChannel {
                    keys: EntryKeys::new(&hops, first),
                    next_seq: first,
                    window: Window::new(first, self.settings.window),
                    reassembler: Reassembler::new(self.settings.shape.payload()),
                    liveness: Liveness::new(now, &mut self.rng),
                };
                let ends_s = now / SECOND + u64::from(lifetime_s);
                self.endpoint.table.install(channel, Record { up: None, down, ends_s, state });
                self.users.clients.channel_up(channel);
                for Waiting { socket, from, bytes, .. } in std::mem::take(&mut self.waiting) {
                    self.forward_datagram(socket, from, &bytes, now);
                }
            }
            Command::RetireChannel { channel } => self.end_channel(channel, EndReason::Retired),
            Command::Supersede { old, new } => self.users.clients.supersede(old, new),
            Command::Inject { link, slot, header, body, .. } => self.endpoint.inject(link, slot, header, &body, now),
            Command::Listen { id, socket, listener } => {
                let Endpoint { apps, punts, .. } = &mut self.endpoint;
                self.users.listen((id, socket, listener), apps, punts);
                self.find_shortest_age();
            }
            Command::Unlisten { id } => self.unlisten(id),
            // Control sends an entry no keys of a hop, and no answers to questions.
            Command::InstallChannel { .. } | Command::OwnAddresses { .. } | Command::Resolved { .. } => {}
        }
    }

    /// Removes a channel and reports it to control; what it was reassembling is lost.
    fn end_channel(&mut self, channel: ChannelIndex, reason: EndReason) {
        if let Some(record) = self.endpoint.table.remove(channel) {
            self.endpoint.punts.ended(channel, reason);
            let lost = record.state.reassembler.held() as u64;
            self.endpoint.datagrams.backward.drop_many(DropReason::Ended, lost);
        }
        self.users.clients.channel_down(channel);
    }

    /// Closes a listening socket; its clients are forgotten, and their flows closed.
    fn unlisten(&mut self, id: ListenerId) {
        let Endpoint { apps, packer, free, .. } = &mut self.endpoint;
        let close = |channel, flow| {
            let _ = packer.put(channel, &Frame::Close { flow }, free);
        };
        let Some(socket) = self.users.unlisten(id, apps, close) else { return };
        self.find_shortest_age();
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.socket != socket);
        self.endpoint.datagrams.forward.drop_many(DropReason::Ended, (before - self.waiting.len()) as u64);
    }

    /// Drops datagrams that have waited for a channel for too long.
    fn drop_aged(&mut self, now: Nanos) {
        let (before, users) = (self.waiting.len(), &self.users);
        self.waiting.retain(|waiting| now - waiting.arrived <= users.max_age(waiting.socket));
        self.endpoint.datagrams.forward.drop_many(DropReason::Aged, (before - self.waiting.len()) as u64);
    }

    fn receive_apps(&mut self, now: Nanos) {
        let turn = self.endpoint.begin_apps(now);
        for _ in 0..turn.batches {
            let Some((batch, waited)) = self.endpoint.receive_apps(&turn) else { return };
            if waited > self.users.max_age(batch.socket()) {
                let tally = &mut self.endpoint.datagrams.forward;
                tally.received += batch.len() as u64;
                tally.drop_many(DropReason::Aged, batch.len() as u64);
                self.endpoint.receive_batch = batch;
                continue;
            }
            for (from, bytes) in batch.iter() {
                self.endpoint.datagrams.forward.received += 1;
                self.forward_datagram(batch.socket(), from, bytes, now);
            }
            self.endpoint.receive_batch = batch;
        }
    }

    /// One application datagram: already counted as received.
    fn forward_datagram(&mut self, socket: SocketId, from: SocketAddr, bytes: &[u8], now: Nanos) {
        if let Err(reason) = self.try_forward(socket, from, bytes, now) {
            self.endpoint.datagrams.forward.drop(reason);
        }
    }

    fn try_forward(&mut self, socket: SocketId, from: SocketAddr, bytes: &[u8], now: Nanos) -> Result<(), DropReason> {
        let payload = self.settings.shape.payload();
        let read = self.users.read((socket, from, bytes), payload, &mut self.endpoint.punts, now)?;
        let Request { destination, data, idle } = read;
        let Some(client) = self.users.clients.client(socket, from, idle)? else {
            // No channel is up.
            if self.waiting.len() == WAITING_MAX {
                self.waiting.pop_front();
                self.endpoint.datagrams.forward.drop(DropReason::ChannelQueueFull);
            }
            self.waiting.push_back(Waiting { arrived: now, socket, from, bytes: bytes.to_vec() });
            return Ok(());
        };
        let flow = self.users.clients.flow(client, &destination, now, &mut self.rng)?;
        let (channel, number, id) = (flow.channel, flow.number, flow.next_id());
        match flow.state {
            FlowState::Open => {}
            FlowState::Opening => {
                self.endpoint.packer.put(channel, &flow.open(), &mut self.endpoint.free)?;
            }
            FlowState::Moving => {
                let moved = Frame::Move { flow: number, token: flow.token };
                self.endpoint.packer.put(channel, &moved, &mut self.endpoint.free)?;
            }
            FlowState::Refused { reason, .. } => return Err(reason),
        }
        for frame in frames::split(payload, number, id, data) {
            self.endpoint.packer.put(channel, &frame, &mut self.endpoint.free)?;
        }
        self.endpoint.datagrams.forward.consumed += 1;
        Ok(())
    }

    /// Once a second, and more often while a channel waits for an answer: liveness of channels, their ends,
    /// idle flows, stale fragments.
    fn tick(&mut self, now: Nanos) {
        if now < self.next_tick {
            return;
        }
        let late = now - self.next_tick;
        self.next_tick = endpoint::next_second(now);
        let now_s = now / SECOND;
        let lost_after = liveness::LOST_AFTER + self.settings.mixing_round_trip.as_nanos() as Nanos;
        for channel in self.endpoint.channels() {
            let record = self.endpoint.table.record_mut(channel).expect("just listed");
            record.state.liveness.excuse(late, now);
            if record.state.liveness.waits() {
                self.next_tick = self.next_tick.min(now + liveness::LOOK);
            }
            let lost = record.state.reassembler.sweep(Duration::from_nanos(now));
            self.endpoint.datagrams.backward.drop_many(DropReason::Incomplete, u64::from(lost));
            let ended = if record.ends_s <= now_s {
                Some(EndReason::Lifetime)
            } else if record.state.liveness.is_lost(now, lost_after) {
                Some(EndReason::Lost)
            } else {
                None
            };
            if let Some(reason) = ended {
                self.end_channel(channel, reason);
            } else if record.ends_s > now_s + LAST_S && record.state.liveness.wants_ping(now) {
                let ping = Frame::Ping(self.rng.next_u64().to_be_bytes());
                let _ = self.endpoint.packer.put(channel, &ping, &mut self.endpoint.free);
            }
        }
        self.users.clients.expire(now, |channel, flow| {
            let _ = self.endpoint.packer.put(channel, &Frame::Close { flow }, &mut self.endpoint.free);
        });
    }

    fn leave(&mut self, now: Nanos) {
        let rng = &mut self.rng;
        self.endpoint.leave(now, |state| state.liveness.sent(now, rng));
    }

    fn publish(&self) {
        let reassembling = self.endpoint.table.iter().map(|(_, record)| record.state.reassembler.held() as u64).sum();
        let held = PerDirection { forward: self.waiting.len() as u64, backward: reassembling };
        self.endpoint.publish(held, self.users.clients.flows(), self.users.clients.len());
    }
}

impl Sender for EntryChannel {
    fn next_seq(&mut self) -> &mut u64 {
        &mut self.next_seq
    }

    fn put_layers(shape: Shape, table: &mut Table<EntryChannel>, batch: &mut [Built]) {
        let mut jobs: ArrayVec<EntryJob<'_>, BATCH_MAX> = ArrayVec::new();
        for built in batch.iter_mut() {
            let (keys, header) =
                (&table.record(built.channel).expect("looked up this turn").state.keys, built.header());
            jobs.push(EntryJob { keys, header, cell: built.cell.bytes_mut(shape.longest_cell()), ok: false });
        }
        wrap(shape, &mut jobs);
        drop(jobs);
        // Not earlier: the batch may span two generations.
        for built in batch.iter() {
            let record = table.record_mut(built.channel).expect("looked up this turn");
            record.state.keys.advance_forward(built.header().seq);
        }
    }
}

impl<D: Port, A: Apps> Worker for Entry<D, A> {
    fn set_clock(&mut self, clock: Clock) {
        self.endpoint.age.set_clock(clock);
    }

    fn turn(&mut self, now: Nanos) -> Nanos {
        self.endpoint.begin(now);
        self.drop_aged(now);
        while let Ok(command) = self.commands.pop() {
            self.apply(command, now);
        }
        self.tick(now);

        self.receive_link(now);
        let users = &self.users;
        self.endpoint.send_datagrams(|socket| users.max_age(socket));

        self.receive_apps(now);
        self.leave(now);

        self.endpoint.report(now);
        self.publish();
        self.endpoint.wake_at(now, self.next_tick)
    }

    fn record_latency(&mut self, now: Nanos) {
        self.endpoint.record_latency(now);
    }

    fn ready(&mut self, token: u64) {
        self.endpoint.ready(token);
    }

    fn is_blocked(&self) -> bool {
        self.endpoint.is_blocked()
    }

    fn finish(&mut self, now: Nanos) {
        self.leave(now);
        self.endpoint.datagrams.forward.drop_many(DropReason::Shutdown, self.waiting.len() as u64);
        self.waiting.clear();
        self.endpoint.channels().into_iter().for_each(|channel| self.end_channel(channel, EndReason::Retired));
        self.endpoint.abandon();
        self.publish();
    }
}

#[cfg(test)]
mod tests;
