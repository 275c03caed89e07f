//! The worker of an exit: Mix m on one side, the internet on the other.
//!
//! Forward: cells are opened, parsed whole, and their datagrams sent from the flow's socket, all that
//! one turn has opened in random flow order (`SendBatch::shuffle_flows`). Backward:
//! datagrams are matched to their flow, packed into its channel's cells, sealed and sent. The exit does
//! not pool.

mod fallback;
mod flows;
mod forward;
pub(crate) mod gateway;
pub mod limits;
mod mappings;
pub(crate) mod names;
pub mod policy;
mod quota;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrayvec::ArrayVec;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Shape};
use wire::frames::{self, Frame};
use wire::gcm::{AeadKey, Job, seal_batch};
use wire::ids::{ChannelIndex, ChannelKeys, EndReason};
use wire::key::Generations;
use wire::layer::BATCH_MAX;
use wire::reassembly::HOLD;
use wire::replay::Window;

use crate::buffer::FreeList;
use crate::command::Command;
use crate::endpoint::packer::Packer;
use crate::endpoint::{self, Built, Endpoint, Sender};
use crate::latency;
use crate::ledger::{DropReason, Ledger};
use crate::per_direction::PerDirection;
use crate::punt::PuntSender;
use crate::runner::{Clock, Worker};
use crate::socket::Port;
use crate::socket::app_batch::{RECEIVE_BATCH_BYTES_MAX, RECEIVE_BATCH_MAX};
use crate::socket::apps::Apps;
use crate::stage::open;
use crate::table::{ChannelState, ForwardHalf, Half, IDLE_S, Record, Table};
use crate::wheel::Wheel;
use crate::{Nanos, SECOND};
pub use gateway::Settings as GatewaySettings;
use gateway::{Answers, Context, Gateway};
use limits::Limits;
pub use names::{QUESTIONS_MAX, QueryId};
use policy::Policy;
pub use quota::Caps;

/// Buffers that one batch of application datagrams can need: as many as hold its bytes, 200 in a cell of class S, with
/// an unfilled one for each datagram.
const BATCH_BUFFERS: usize = RECEIVE_BATCH_MAX + RECEIVE_BATCH_BYTES_MAX / 200;
/// A turn that has this many datagrams to send receives no more on the link. What one receive call brings goes out
/// whole, so a turn sends at most this many less one, [`RECEIVE_MAX`] cells full of datagrams, and copies for the next
/// address of a name (SPEC 3.13.7).
const SENDS_MAX: usize = 4096;
/// Refused flows remembered at most.
const REFUSED_MAX: usize = 4096;
/// Datagrams over all owners of which some fragments are here: of class L 43 MB.
const REASSEMBLING_MAX: usize = 4096;

/// The senders whose datagrams a client's socket accepts (RFC 4787, 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filtering {
    /// The peers of its flows: address- and port-dependent filtering.
    #[default]
    Endpoint,
    /// All senders that the policy would let it answer: endpoint-independent filtering.
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

/// The configuration of an exit worker.
pub struct Settings {
    /// Lengths of the chain.
    pub shape: Shape,
    /// Width of replay windows.
    pub window: usize,
    /// Buffers on huge pages.
    pub hugepages: bool,
    /// The destinations that it may send to.
    pub policy: Policy,
    /// The senders that its sockets accept.
    pub filtering: Filtering,
    /// Limits for destinations that the policy does not trust.
    pub limits: Limits,
    /// Bounds of its tables.
    pub caps: Caps,
    /// Idle flows end after this.
    pub flow_idle: Duration,
    /// The longest time that a datagram or cell may wait (SPEC 6.6).
    pub max_age: Duration,
}

/// An exit's part of a channel; what a cell from the link needs comes first.
#[repr(C)]
struct ExitChannel {
    forward: Half<AeadKey>,
    backward: Generations<AeadKey>,
    next_seq: u64,
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
    /// Width of replay windows.
    window: usize,
    endpoint: Endpoint<U, A, ExitChannel>,
    gateway: Gateway,
    commands: rtrb::Consumer<Command>,
    rng: ChaCha20Rng,
    wheel: Wheel,
    next_tick: Nanos,
    due: Vec<u32>,
}

/// The packer, as the place where answers go.
struct Packing<'a> {
    packer: &'a mut Packer,
    free: &'a mut FreeList,
}

impl Answers for Packing<'_> {
    fn put(&mut self, channel: ChannelIndex, frame: &Frame<'_>) -> Result<(), DropReason> {
        self.packer.put(channel, frame, self.free)
    }
}

/// What the gateway works with.
fn context<U, A>(endpoint: &mut Endpoint<U, A, ExitChannel>, now: Nanos) -> Context<'_, A, Packing<'_>> {
    let Endpoint { apps, send_batch, datagrams, punts, packer, free, age, link_waited, .. } = endpoint;
    let (tally, link_waited, answers) = (&mut datagrams.forward, *link_waited, Packing { packer, free });
    Context { now, apps, send_batch, tally, punts, answers, age, link_waited }
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
        let of_endpoint = endpoint::Settings {
            shape: settings.shape,
            position: settings.shape.hops(),
            lanes: 1,
            batch_buffers: BATCH_BUFFERS,
            hugepages: settings.hugepages,
            max_age: settings.max_age,
        };
        let Settings { shape, window, policy, filtering, limits, caps, flow_idle, max_age, .. } = settings;
        let of_gateway = GatewaySettings { policy, filtering, limits, caps, flow_idle, max_age };
        let payload = shape.payload();
        Exit {
            window,
            endpoint: Endpoint::new(of_endpoint, (up, apps), punts, rng_groups, now),
            gateway: Gateway::new(of_gateway, payload, (payload, HOLD), now),
            commands,
            rng,
            wheel: Wheel::new(now / SECOND),
            next_tick: now,
            due: Vec::new(),
        }
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
                    forward: Half::new(&forward, first, self.window, None, now_s),
                    backward: Generations::new(&backward, first),
                    next_seq: first,
                };
                let ends_s = now_s + u64::from(lifetime_s);
                self.endpoint.table.install(channel, Record { up, down: None, ends_s, state });
                self.gateway.add_owner(channel);
                self.wheel.arm(channel.0, now_s + IDLE_S.min(u64::from(lifetime_s)));
            }
            Command::RetireChannel { channel } => self.end_channel(channel, EndReason::Retired),
            Command::Inject { link, slot, header, body, .. } => self.endpoint.inject(link, slot, header, &body, now),
            Command::Resolved { query, addresses } => {
                self.gateway.resolved(&mut context(&mut self.endpoint, now), query, &addresses);
            }
            Command::OwnAddresses { addresses } => self.gateway.set_own_addresses(addresses),
            // Control sends an exit no keys of an entry, and nothing about clients.
            Command::InstallChannel { .. }
            | Command::Supersede { .. }
            | Command::Listen { .. }
            | Command::Unlisten { .. } => {}
        }
    }

    /// Removes a channel with its flows and reports it to control.
    fn end_channel(&mut self, channel: ChannelIndex, reason: EndReason) {
        if self.endpoint.table.remove(channel).is_none() {
            return;
        }
        let Endpoint { punts, apps, datagrams, packer, free, .. } = &mut self.endpoint;
        punts.ended(channel, reason);
        self.gateway.end_owner(channel, apps, &mut datagrams.forward, &mut Packing { packer, free });
    }

    fn receive_link(&mut self, now: Nanos) {
        for _ in 0..self.endpoint.begin_link(now) {
            if self.endpoint.send_batch.len() >= SENDS_MAX || !self.endpoint.receive(now) {
                return;
            }
            let Endpoint { shape, table, punts, free, cells, admitted, .. } = &mut self.endpoint;
            open::forward(admitted, *shape, shape.hops(), table, punts, free, &mut cells.forward, now);
            let mut admitted = std::mem::take(&mut self.endpoint.admitted);
            for mut cell in admitted.drain(..) {
                let inner = cell.cell.body_mut(self.endpoint.shape.payload());
                match frames::parse(inner, Direction::Forward) {
                    Ok(frames) => {
                        self.endpoint.cells.forward.consumed += 1;
                        let mut cx = context(&mut self.endpoint, now);
                        frames.for_each(|frame| self.gateway.forward_frame(&mut cx, cell.channel, &frame));
                    }
                    Err(_) => self.endpoint.cells.forward.drop(DropReason::Frames),
                }
                self.endpoint.free.give(cell.cell.into_buffer());
            }
            self.endpoint.admitted = admitted;
        }
    }

    /// Hands the datagrams of this turn to their flows' sockets.
    fn send_datagrams(&mut self) {
        let max_age = self.endpoint.age.max();
        self.endpoint.send_datagrams(|_| max_age);
    }

    fn receive_apps(&mut self, now: Nanos) {
        let turn = self.endpoint.begin_apps(now);
        for _ in 0..turn.batches {
            let Some((batch, waited)) = self.endpoint.receive_apps(&turn) else { return };
            if self.endpoint.age.is_exceeded(waited) {
                let tally = &mut self.endpoint.datagrams.backward;
                tally.received += batch.len() as u64;
                tally.drop_many(DropReason::Aged, batch.len() as u64);
                self.endpoint.receive_batch = batch;
                continue;
            }
            let Endpoint { packer, free, datagrams, .. } = &mut self.endpoint;
            let mut answers = Packing { packer, free };
            for (from, data) in batch.iter() {
                datagrams.backward.received += 1;
                match self.gateway.backward_datagram(&mut answers, (batch.socket(), from), data, now) {
                    Ok(()) => datagrams.backward.consumed += 1,
                    Err(reason) => datagrams.backward.drop(reason),
                }
            }
            self.endpoint.receive_batch = batch;
        }
    }

    /// Handles errors that the system has reported for peers, and sends the datagrams of flows that move on.
    fn move_on(&mut self, now: Nanos) {
        loop {
            self.gateway.handle_errors(&mut context(&mut self.endpoint, now), usize::MAX);
            // This ends, because each flow has few addresses.
            if self.endpoint.send_batch.is_empty() {
                return;
            }
            self.endpoint.send_batch.shuffle_flows(&mut self.rng);
            self.send_datagrams();
        }
    }

    /// Once a second: ends of channels, idle flows, stale fragments.
    fn tick(&mut self, now: Nanos) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = endpoint::next_second(now);
        let now_s = now / SECOND;
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(now_s, &mut due);
        for channel in due.drain(..).map(ChannelIndex) {
            match self.endpoint.table.lifespan(channel, now_s) {
                Some(Ok(until_s)) => self.wheel.arm(channel.0, until_s),
                Some(Err(reason)) => self.end_channel(channel, reason),
                None => {}
            }
        }
        self.due = due;
        self.gateway.tick(&mut context(&mut self.endpoint, now));
        self.gateway.expire(&mut context(&mut self.endpoint, now), usize::MAX);
    }

    fn publish(&self) {
        let held = PerDirection { forward: self.gateway.held(), backward: 0 };
        let (flows, sockets) = self.gateway.sizes();
        self.endpoint.publish(held, flows, sockets);
    }
}

impl Sender for ExitChannel {
    fn next_seq(&mut self) -> &mut u64 {
        &mut self.next_seq
    }

    fn put_layers(shape: Shape, table: &mut Table<ExitChannel>, batch: &mut [Built]) {
        let mut jobs: ArrayVec<Job<'_, AeadKey>, BATCH_MAX> = ArrayVec::new();
        for built in batch.iter_mut() {
            let keys = &table.record(built.channel).expect("looked up this turn").state.backward;
            let header = built.header();
            let (key, iv) = keys.of(header.seq).expect("the sender's generation is live");
            jobs.push(Job::new(key, header.data_nonce(iv), built.cell.body_mut(shape.backward_body())));
        }
        seal_batch(&mut jobs);
        drop(jobs);
        // Not earlier: the batch may span two generations.
        for built in batch.iter() {
            let record = table.record_mut(built.channel).expect("looked up this turn");
            record.state.backward.advance(built.header().seq);
        }
    }
}

impl<U: Port, A: Apps> Worker for Exit<U, A> {
    fn set_clock(&mut self, clock: Clock) {
        self.endpoint.age.set_clock(clock);
    }

    fn turn(&mut self, now: Nanos) -> Nanos {
        self.endpoint.begin(now);
        while let Ok(command) = self.commands.pop() {
            self.apply(command, now);
        }
        self.tick(now);

        self.receive_link(now);
        self.endpoint.send_batch.shuffle_flows(&mut self.rng);
        crate::rekey(&mut self.rng);
        self.send_datagrams();

        self.receive_apps(now);
        self.move_on(now);
        self.endpoint.leave(now, |_| {});

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
        self.endpoint.channels().into_iter().for_each(|channel| self.end_channel(channel, EndReason::Retired));
        // What a channel is told of the end of another one finds it ended.
        self.endpoint.leave(now, |_| {});
        self.endpoint.abandon();
        self.publish();
    }
}
