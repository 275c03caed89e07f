//! The worker of an exit: Mix m on one side, the internet on the other.
//!
//! Outwards: cells are opened, parsed whole, and their datagrams sent from the flow's socket, all that
//! one turn has opened in random flow order ([`crate::socket::app_batch::SendBatch::shuffle_flows`]). Backwards:
//! datagrams are matched to their flow, packed into its channel's cells, sealed and sent. The exit does
//! not pool.

mod flows;
mod forward;
pub mod limits;
pub mod policy;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrayvec::ArrayVec;
use hashbrown::HashMap;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Header, SEQ_END, Shape};
use wire::frames::{self, Frame, Status};
use wire::gcm::{AeadKey, Job, seal_batch};
use wire::ids::{ChannelIndex, ChannelKeys, EndReason, Side};
use wire::key::Generations;
use wire::layer::data_header;
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
use crate::punt::PuntSender;
use crate::runner::{BLOCKED_WAIT, Worker};
use crate::socket::Port;
use crate::socket::app_batch::{RECEIVE_BATCH_BYTES_MAX, RECEIVE_BATCH_MAX, ReceiveBatch, SendBatch};
use crate::socket::apps::Apps;
use crate::stage::ingress::{Admitted, Gate};
use crate::stage::open;
use crate::stage::pool::Pooled;
use crate::stage::seal::Sealer;
use crate::table::{ChannelState, ForwardHalf, Half, IDLE_S, Record, Table};
use crate::wheel::Wheel;
use crate::{Nanos, SECOND};
pub use flows::{Caps, QUESTIONS_MAX};
use flows::{Flows, Opens};
use limits::{Limiter, Limits};
use policy::Policy;

/// Buffers of an exit: what one turn builds or receives, as much again waiting to be sent, and what the socket offers
/// for what comes.
pub const BUFFERS: usize = BATCH_BUFFERS + 4 * RECEIVE_MAX;
/// Application sockets read in one turn.
const APP_BATCHES: usize = 64;
/// Buffers that one batch of application datagrams can need: as many as hold its bytes, 200 in a cell of class S, with
/// an unfilled one for each datagram.
const BATCH_BUFFERS: usize = RECEIVE_BATCH_MAX + RECEIVE_BATCH_BYTES_MAX / 200;
/// Refused flows remembered at most.
const REFUSED_MAX: usize = 4096;
/// Datagrams over all channels of which some fragments are here: of class L 43 MB.
const REASSEMBLING_MAX: u64 = 4096;
/// Cells sealed at a time.
const CHUNK: usize = 64;

/// Whom a client's socket hears (RFC 4787, 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// The peers of its flows: address- and port-dependent filtering.
    #[default]
    Endpoint,
    /// Everybody whom the policy would let it answer: endpoint-independent filtering.
    None,
}

impl std::str::FromStr for Filtering {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Filtering, &'static str> {
        match text {
            "endpoint" => Ok(Filtering::Endpoint),
            "none" => Ok(Filtering::None),
            _ => Err("filtering is \"endpoint\" or \"none\""),
        }
    }
}

/// What an exit worker is made with.
pub struct Settings {
    /// Lengths of the chain.
    pub shape: Shape,
    /// Width of replay windows.
    pub window: usize,
    /// Buffers on huge pages.
    pub hugepages: bool,
    /// Where it may send.
    pub policy: Policy,
    /// Whom its sockets hear.
    pub filtering: Filtering,
    /// How much goes to and comes from destinations that the policy does not trust.
    pub limits: Limits,
    /// Bounds of its tables.
    pub caps: Caps,
    /// Idle flows end after this.
    pub flow_idle: Duration,
}

/// An exit's part of a channel; what a cell from the link needs comes first.
#[repr(C)]
struct ExitChannel {
    forward: Half<AeadKey>,
    backward: Generations<AeadKey>,
    next_seq: u64,
    reassembler: Reassembler,
    opens: Opens,
}

impl ChannelState for ExitChannel {
    fn window(&self, _direction: Direction) -> &Window {
        self.forward.window()
    }
}

impl ForwardHalf for ExitChannel {
    fn forward(&self) -> &Half<AeadKey> {
        &self.forward
    }

    fn forward_mut(&mut self) -> &mut Half<AeadKey> {
        &mut self.forward
    }
}

/// The worker of an exit.
pub struct Exit<U, A> {
    settings: Settings,
    up: U,
    apps: A,
    table: Table<ExitChannel>,
    flows: Flows,
    limiter: Limiter,
    /// Flows refused within the last second: the datagrams behind their OPENs go the same way.
    refused: HashMap<(ChannelIndex, u16), DropReason, foldhash::fast::RandomState>,
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
    /// Datagrams of which some fragments are here.
    reassembling: u64,
    batches: Batches,
    wheel: Wheel,
    report_due: Nanos,
    next_tick: Nanos,
    arrivals: Arrivals,
    admitted: Vec<Admitted>,
    receive_batch: ReceiveBatch,
    send_batch: SendBatch,
    due: Vec<u32>,
    published: Arc<Mutex<Ledger>>,
    profile: latency::Shared,
    /// Start of the turn, and datagrams handed out before it.
    began: (Nanos, u64),
    /// Cells packed in this turn.
    packed: usize,
}

impl<U: Port, A: Apps> Exit<U, A> {
    /// An exit with empty tables. Two generators: for the order of flows, and of groups.
    pub fn new(
        settings: Settings,
        up: U,
        apps: A,
        commands: rtrb::Consumer<Command>,
        punts: PuntSender,
        [rng, rng_groups]: [ChaCha20Rng; 2],
        now: Nanos,
    ) -> Self {
        let shape = settings.shape;
        Exit {
            up,
            apps,
            table: Table::on(settings.hugepages),
            flows: Flows::new(settings.caps, settings.flow_idle, now),
            limiter: Limiter::new(settings.limits, now),
            refused: HashMap::default(),
            gate: Gate::new(shape, shape.hops(), Side::Up, 1),
            packer: Packer::new(shape.payload()),
            release: Vec::with_capacity(BUFFERS),
            sealer: Sealer::new(rng_groups),
            out: Departures::new(shape.cell_len(Direction::Backward, shape.hops()), BUFFERS),
            free: FreeList::on(BUFFERS, settings.hugepages),
            commands,
            punts,
            rng,
            cells: PerDirection::default(),
            datagrams: PerDirection::default(),
            reassembling: 0,
            batches: Batches::default(),
            wheel: Wheel::new(now / SECOND),
            report_due: now,
            next_tick: now,
            arrivals: Arrivals::new(),
            admitted: Vec::with_capacity(RECEIVE_MAX),
            receive_batch: ReceiveBatch::default(),
            send_batch: SendBatch::default(),
            due: Vec::new(),
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
            Command::InstallChannel {
                channel,
                up,
                keys: ChannelKeys::Hop { forward, backward },
                lifetime_s,
                first,
                ..
            } => {
                let now_s = now / SECOND;
                let state = ExitChannel {
                    forward: Half::new(&forward, first, self.settings.window, None, now_s),
                    backward: Generations::new(&backward, first),
                    next_seq: first,
                    reassembler: Reassembler::new(self.settings.shape.payload()),
                    opens: Opens::default(),
                };
                let ends_s = now_s + u64::from(lifetime_s);
                self.table.install(channel, Record { up, down: None, ends_s, state });
                self.wheel.arm(channel.0, now_s + IDLE_S.min(u64::from(lifetime_s)));
            }
            Command::RetireChannel { channel } => self.end(channel, EndReason::Retired),
            Command::Inject { link, slot, header, body } => {
                self.cells.backward.injected += 1;
                let Some(buffer) = self.free.take() else {
                    self.cells.backward.drop(DropReason::NoBuffer);
                    return;
                };
                let mut cell = Cell::own(buffer);
                cell.body_mut(body.len()).copy_from_slice(&body);
                let ticket = Ticket { link, slot: Some(slot), header, label: Label::Own, arrived: now, times: 0 };
                self.release.push(Pooled { cell, ticket });
            }
            Command::Resolved { query, addresses } => self.resolved(query, &addresses, now),
            // Not for an exit; control never sends them here.
            _ => {}
        }
    }

    /// Forgets a channel with its flows, and tells control.
    fn end(&mut self, channel: ChannelIndex, reason: EndReason) {
        let Some(record) = self.table.remove(channel) else { return };
        self.punts.ended(channel, reason);
        let waited = self.flows.close_channel(&mut self.apps, channel);
        self.refused.retain(|(of, _), _| *of != channel);
        let fragments = record.state.reassembler.held();
        self.reassembling -= fragments as u64;
        self.datagrams.forward.drop_many(DropReason::Ended, (waited + fragments) as u64);
    }

    fn receive_link(&mut self, now: Nanos) {
        for _ in 0..4 {
            if self.up.recv(&mut self.free, &mut self.arrivals) == 0 {
                return;
            }
            let Self { gate, arrivals, table, punts, free, cells, admitted, settings, .. } = self;
            let tally = &mut cells.forward;
            gate.admit(arrivals, table, punts, free, tally, admitted);
            open::forward(admitted, settings.shape, settings.shape.hops(), table, punts, free, tally, now);
            let mut admitted = std::mem::take(&mut self.admitted);
            for mut cell in admitted.drain(..) {
                let inner = cell.cell.body_mut(self.settings.shape.payload());
                match frames::parse(inner, Direction::Forward) {
                    Ok(frames) => {
                        self.cells.forward.consumed += 1;
                        for frame in frames {
                            self.outwards(cell.channel, &frame, now);
                        }
                    }
                    Err(_) => self.cells.forward.drop(DropReason::Frames),
                }
                self.free.give(cell.cell.into_buffer());
            }
            self.admitted = admitted;
        }
    }

    fn receive_apps(&mut self, now: Nanos) {
        for _ in 0..APP_BATCHES {
            if !self.out.is_empty() || self.free.free() < BATCH_BUFFERS + RECEIVE_MAX {
                break;
            }
            let mut receive_batch = std::mem::replace(&mut self.receive_batch, ReceiveBatch::placeholder());
            let some = self.apps.recv(&mut receive_batch);
            if some {
                for (from, data) in receive_batch.iter() {
                    self.datagrams.backward.received += 1;
                    match self.inwards(receive_batch.socket(), from, data, now) {
                        Ok(()) => self.datagrams.backward.consumed += 1,
                        Err(reason) => self.datagrams.backward.drop(reason),
                    }
                }
            }
            self.receive_batch = receive_batch;
            if !some {
                break;
            }
        }
        let Self { apps, flows, packer, free, .. } = self;
        apps.unreachable(&mut |socket, to| {
            if let Some(flow) = flows.talking_to(socket, to)
                && flow.may_report(now)
            {
                let status = Frame::Status { flow: flow.number, code: Status::Unreachable };
                let _ = packer.put(flow.channel, &status, free);
            }
        });
    }

    /// One datagram from the internet.
    fn inwards(&mut self, socket: u32, from: SocketAddr, data: &[u8], now: Nanos) -> Result<(), DropReason> {
        let Self { flows, limiter, packer, free, settings, .. } = self;
        let payload = settings.shape.payload();
        let Some(flow) = flows.talking_to(socket, from) else {
            if settings.filtering == Filtering::Endpoint || !settings.policy.admits(from.ip(), from.port()) {
                return Err(DropReason::Filtered);
            }
            let flow = flows.of_client(socket).ok_or(DropReason::Filtered)?;
            let frame = Frame::From { flow: flow.number, from, data };
            if frame.len() > payload {
                return Err(DropReason::TooLarge);
            }
            if let Some(usage) = &mut flow.usage {
                limiter.inwards(usage, from.ip(), false, now)?;
            }
            return packer.put(flow.channel, &frame, free);
        };
        if frames::fragments(payload, data.len()).is_none() {
            return Err(DropReason::TooLarge);
        }
        if let Some(usage) = &mut flow.usage {
            limiter.inwards(usage, from.ip(), true, now)?;
        }
        let (channel, number, id) = (flow.channel, flow.number, flow.next_id());
        for frame in frames::split(payload, number, id, data) {
            packer.put(channel, &frame, free)?;
        }
        Ok(())
    }

    /// Seals what the packer holds; `release` may already hold control's cells.
    fn leave(&mut self, now: Nanos) {
        let shape = self.settings.shape;
        let (mut count, channels) = (0, self.packer.channels());
        let mut built: ArrayVec<(ChannelIndex, Header, Ticket, Cell<Opened>), CHUNK> = ArrayVec::new();
        {
            let mut finished = self.packer.finish();
            loop {
                let next = finished.next();
                if built.is_full() || next.is_none() {
                    seal_built(shape, &mut self.table, &mut built, &mut self.release);
                }
                let Some((channel, cell)) = next else { break };
                self.cells.backward.injected += 1;
                let Some(record) = self.table.record_mut(channel) else {
                    self.cells.backward.drop(DropReason::Ended);
                    self.free.give(cell.into_buffer());
                    continue;
                };
                let (link, number) = record.up.expect("an exit's channel leads up");
                let seq = record.state.next_seq;
                record.state.next_seq += 1;
                if record.state.next_seq >= SEQ_END {
                    record.ends_s = 0;
                }
                let header = data_header(shape, number, seq);
                let ticket =
                    Ticket { link, slot: None, header, label: Label::Channel(channel), arrived: now, times: 0 };
                count += 1;
                built.push((channel, header, ticket, cell));
            }
        }
        if count > 0 {
            self.batches.add(count, channels);
            self.packed = count;
        }
        if !self.release.is_empty() {
            self.out.begin_release(&[Times::new(now, now)]);
        }
        let tally = &mut self.cells.backward;
        self.sealer.run(&mut self.release, 1, &mut self.table.links, &mut self.out, &mut self.free, tally);
        self.up.send(&mut self.out, &mut self.free, tally);
    }

    /// Once a second: ends of channels, idle flows, stale fragments.
    fn tick(&mut self, now: Nanos) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = (now / SECOND + 1) * SECOND;
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
        self.flows.forget_aliases(now);
        self.limiter.tick(now, self.flows.usages());
        self.refused.clear();
        let Self { flows, apps, packer, free, .. } = self;
        let waited = flows.expire(apps, now, |channel, flow| {
            let _ = packer.put(channel, &Frame::Close { flow }, free);
        });
        self.datagrams.forward.drop_many(DropReason::Ended, waited as u64);
        let channels: Vec<ChannelIndex> = self
            .table
            .iter()
            .filter(|(_, record)| !record.state.reassembler.is_bare())
            .map(|(channel, _)| channel)
            .collect();
        for channel in channels {
            let record = self.table.record_mut(channel).expect("just listed");
            let lost = u64::from(record.state.reassembler.sweep(Duration::from_nanos(now)));
            self.reassembling -= lost;
            self.datagrams.forward.drop_many(DropReason::Incomplete, lost);
        }
    }

    fn publish(&self) {
        let mut ledger =
            Ledger { cells: self.cells, datagrams: self.datagrams, batches: self.batches, ..Ledger::default() };
        ledger.cells.backward.held = (self.out.len() + self.release.len()) as u64;
        ledger.datagrams.forward.held = self.flows.waiting() as u64 + self.reassembling;
        ledger.buffers = ((self.free.free() + self.up.rx_buffers()) as u64, self.free.total() as u64);
        ledger.traffic = self.up.traffic();
        ledger.gauges = Gauges {
            links: self.table.links.len() as u64,
            channels: self.table.len() as u64,
            flows: self.flows.len() as u64,
            sockets: self.flows.sockets() as u64,
        };
        debug_assert!(ledger.closed(), "{ledger:?}");
        *self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = ledger;
    }
}

/// Seals a batch of built cells and appends them to the release.
fn seal_built(
    shape: Shape,
    table: &mut Table<ExitChannel>,
    built: &mut ArrayVec<(ChannelIndex, Header, Ticket, Cell<Opened>), CHUNK>,
    release: &mut Vec<Pooled>,
) {
    let mut jobs: ArrayVec<Job<'_, AeadKey>, CHUNK> = ArrayVec::new();
    for (channel, header, _, cell) in built.iter_mut() {
        let keys = &table.record(*channel).expect("looked up this turn").state.backward;
        let (key, iv) = keys.of(header.seq).expect("the sender's generation is live");
        jobs.push(Job::new(key, header.data_nonce(iv), cell.body_mut(shape.backward_body())));
    }
    seal_batch(&mut jobs);
    drop(jobs);
    // Only now: a batch may span two generations.
    for (channel, header, ..) in built.iter() {
        let record = table.record_mut(*channel).expect("looked up this turn");
        record.state.backward.advance(header.seq);
    }
    release.extend(built.drain(..).map(|(_, _, ticket, cell)| Pooled { cell, ticket }));
}

impl<U: Port, A: Apps> Worker for Exit<U, A> {
    fn turn(&mut self, now: Nanos) -> Option<Nanos> {
        self.began = (now, self.datagrams.forward.sent);
        while let Ok(command) = self.commands.pop() {
            self.apply(command, now);
        }
        self.tick(now);
        self.receive_link(now);
        self.send_batch.shuffle_flows(&mut self.rng);
        crate::rekey(&mut self.rng);
        self.apps.send(&mut self.send_batch, &mut self.datagrams.forward);
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
        let handed_out = self.datagrams.forward.sent - before;
        if handed_out > 0 || self.packed > 0 || self.out.has_unrecorded() {
            let mut profile = self.profile.lock();
            self.out.record_latency(now, &mut profile.latency.backward);
            if handed_out > 0 {
                profile.latency.forward.count(Times::new(began, began), now, handed_out);
            }
            if self.packed > 0 {
                profile.batches.add(std::mem::take(&mut self.packed) as u64, 1);
            }
        }
        self.began.1 = self.datagrams.forward.sent;
    }

    fn ready(&mut self, token: u64) {
        match token {
            crate::runner::UP => self.up.set_ready(),
            token if token >= crate::runner::APPS => self.apps.set_ready(token),
            _ => {}
        }
    }

    fn is_blocked(&self) -> bool {
        !self.out.is_empty()
    }

    fn finish(&mut self, now: Nanos) {
        self.leave(now);
        let channels: Vec<ChannelIndex> = self.table.iter().map(|(channel, _)| channel).collect();
        channels.into_iter().for_each(|channel| self.end(channel, EndReason::Retired));
        self.cells.backward.drop_many(DropReason::Shutdown, self.out.len() as u64);
        self.out.lose(self.out.len(), &mut self.free);
        self.publish();
    }
}
