//! The worker of an exit: Mix m on one side, the internet on the other.
//!
//! Forward: cells are opened, parsed whole, and their datagrams sent from the flow's socket, all that
//! one turn has opened in random flow order (`SendBatch::shuffle_flows`). Backward:
//! datagrams are matched to their flow, packed into its channel's cells, sealed and sent. The exit does
//! not pool.

mod fallback;
mod flows;
mod forward;
pub mod limits;
mod mappings;
pub(crate) mod names;
pub mod policy;
mod quota;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrayvec::ArrayVec;
use hashbrown::HashMap;
use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Shape};
use wire::frames::{self, Frame};
use wire::gcm::{AeadKey, Job, seal_batch};
use wire::ids::{ChannelIndex, ChannelKeys, EndReason};
use wire::key::Generations;
use wire::layer::BATCH_MAX;
use wire::reassembly::Reassembler;
use wire::replay::Window;

use crate::age::nanos;
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
use crate::stage::open;
use crate::table::{ChannelState, ForwardHalf, Half, IDLE_S, Record, Table};
use crate::wheel::Wheel;
use crate::{Nanos, SECOND};
use flows::Flows;
use limits::{Limiter, Limits};
pub use names::{QUESTIONS_MAX, QueryId};
use policy::Policy;
pub use quota::Caps;
use quota::{Lookups, Opens};

/// Buffers that one batch of application datagrams can need: as many as hold its bytes, 200 in a cell of class S, with
/// an unfilled one for each datagram.
const BATCH_BUFFERS: usize = RECEIVE_BATCH_MAX + RECEIVE_BATCH_BYTES_MAX / 200;
/// A turn that has this many datagrams to send receives no more on the link. What one receive call brings goes out
/// whole, so a turn sends at most this many less one, [`RECEIVE_MAX`] cells full of datagrams, and copies for the next
/// address of a name (SPEC 3.13.7).
const SENDS_MAX: usize = 4096;
/// Refused flows remembered at most.
const REFUSED_MAX: usize = 4096;
/// Datagrams over all channels of which some fragments are here: of class L 43 MB.
const REASSEMBLING_MAX: u64 = 4096;

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
    endpoint: Endpoint<U, A, ExitChannel>,
    flows: Flows,
    limiter: Limiter,
    /// Names that all channels have had resolved.
    lookups: Lookups,
    /// Flows refused within the last second: the datagrams behind their OPENs go the same way.
    refused: HashMap<(ChannelIndex, u16), DropReason, foldhash::fast::RandomState>,
    commands: rtrb::Consumer<Command>,
    rng: ChaCha20Rng,
    /// Datagrams of which some fragments are here.
    reassembling: u64,
    wheel: Wheel,
    next_tick: Nanos,
    /// Peers that the system has reported unreachable in this turn.
    unreachable: Vec<(SocketId, SocketAddr)>,
    due: Vec<u32>,
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
        let mut flows = Flows::new(settings.caps, settings.flow_idle, now);
        flows.fallbacks.keep_for(nanos(settings.max_age));
        Exit {
            endpoint: Endpoint::new(of_endpoint, (up, apps), punts, rng_groups, now),
            flows,
            limiter: Limiter::new(settings.limits, now),
            lookups: Lookups::default(),
            refused: HashMap::default(),
            commands,
            rng,
            reassembling: 0,
            wheel: Wheel::new(now / SECOND),
            next_tick: now,
            unreachable: Vec::new(),
            due: Vec::new(),
            settings,
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
                    forward: Half::new(&forward, first, self.settings.window, None, now_s),
                    backward: Generations::new(&backward, first),
                    next_seq: first,
                    reassembler: Reassembler::new(self.settings.shape.payload()),
                    opens: Opens::default(),
                };
                let ends_s = now_s + u64::from(lifetime_s);
                self.endpoint.table.install(channel, Record { up, down: None, ends_s, state });
                self.wheel.arm(channel.0, now_s + IDLE_S.min(u64::from(lifetime_s)));
            }
            Command::RetireChannel { channel } => self.end_channel(channel, EndReason::Retired),
            Command::Inject { link, slot, header, body, .. } => self.endpoint.inject(link, slot, header, &body, now),
            Command::Resolved { query, addresses } => self.resolved(query, &addresses, now),
            Command::OwnAddresses { addresses } => self.settings.policy.set_own(addresses),
            // Control sends an exit no keys of an entry, and nothing about clients.
            Command::InstallChannel { .. }
            | Command::Supersede { .. }
            | Command::Listen { .. }
            | Command::Unlisten { .. } => {}
        }
    }

    /// Removes a channel with its flows and reports it to control.
    fn end_channel(&mut self, channel: ChannelIndex, reason: EndReason) {
        let Some(record) = self.endpoint.table.remove(channel) else { return };
        self.endpoint.punts.ended(channel, reason);
        let waited = self.flows.close_channel(&mut self.endpoint.apps, channel);
        self.report_evicted();
        self.limiter.forget(channel);
        self.refused.retain(|(of, _), _| *of != channel);
        let fragments = record.state.reassembler.held();
        self.reassembling -= fragments as u64;
        self.endpoint.datagrams.forward.drop_many(DropReason::Ended, (waited + fragments) as u64);
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
                let inner = cell.cell.body_mut(self.settings.shape.payload());
                match frames::parse(inner, Direction::Forward) {
                    Ok(frames) => {
                        self.endpoint.cells.forward.consumed += 1;
                        for frame in frames {
                            self.forward_frame(cell.channel, &frame, now);
                        }
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
            for (from, data) in batch.iter() {
                self.endpoint.datagrams.backward.received += 1;
                match self.backward_datagram(batch.socket(), from, data, now) {
                    Ok(()) => self.endpoint.datagrams.backward.consumed += 1,
                    Err(reason) => self.endpoint.datagrams.backward.drop(reason),
                }
            }
            self.endpoint.receive_batch = batch;
        }
    }

    /// One datagram from the internet.
    fn backward_datagram(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        data: &[u8],
        now: Nanos,
    ) -> Result<(), DropReason> {
        let Self { endpoint: Endpoint { packer, free, .. }, flows, limiter, settings, .. } = self;
        let payload = settings.shape.payload();
        let Some(flow) = flows.heard(socket, from) else {
            if settings.filtering == Filtering::Endpoint || !settings.policy.admits(from.ip(), from.port()) {
                return Err(DropReason::Filtered);
            }
            let flow = flows.of_client(socket).ok_or(DropReason::Filtered)?;
            let frame = Frame::From { flow: flow.number, from, data };
            if frame.len() > payload {
                return Err(DropReason::TooLarge);
            }
            if let Some(usage) = &mut flow.usage {
                limiter.backward(flow.channel, usage, from.ip(), false, now)?;
            }
            return packer.put(flow.channel, &frame, free);
        };
        if frames::fragment_count(payload, data.len()).is_none() {
            return Err(DropReason::TooLarge);
        }
        if let Some(usage) = &mut flow.usage {
            limiter.backward(flow.channel, usage, from.ip(), true, now)?;
        }
        let (channel, number, id) = (flow.channel, flow.number, flow.next_id());
        if now >= flow.peer_due {
            flow.peer_due = now + SECOND;
            packer.put(channel, &Frame::Peer { flow: number, from }, free)?;
        }
        for frame in frames::split(payload, number, id, data) {
            packer.put(channel, &frame, free)?;
        }
        Ok(())
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
        let aged = self.flows.drop_all_aged(now.saturating_sub(self.endpoint.age.max()));
        self.endpoint.datagrams.forward.drop_many(DropReason::Aged, aged as u64);
        self.flows.forget_aliases(now);
        self.flows.fallbacks.sweep(now);
        self.limiter.tick(now, self.flows.usages());
        self.refused.clear();
        let Self { endpoint: Endpoint { apps, packer, free, .. }, flows, .. } = self;
        let waited = flows.expire(apps, now, |channel, flow| {
            let _ = packer.put(channel, &Frame::Close { flow }, free);
        });
        self.endpoint.datagrams.forward.drop_many(DropReason::Ended, waited as u64);
        let channels: Vec<ChannelIndex> = self
            .endpoint
            .table
            .iter()
            .filter(|(_, record)| !record.state.reassembler.is_bare())
            .map(|(channel, _)| channel)
            .collect();
        for channel in channels {
            let record = self.endpoint.table.record_mut(channel).expect("just listed");
            let lost = u64::from(record.state.reassembler.sweep(Duration::from_nanos(now)));
            self.reassembling -= lost;
            self.endpoint.datagrams.forward.drop_many(DropReason::Incomplete, lost);
        }
    }

    fn publish(&self) {
        let held = PerDirection { forward: self.flows.waiting() as u64 + self.reassembling, backward: 0 };
        self.endpoint.publish(held, self.flows.len(), self.flows.sockets());
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
        self.endpoint.leave(now, |_| {});
        self.endpoint.channels().into_iter().for_each(|channel| self.end_channel(channel, EndReason::Retired));
        self.endpoint.abandon();
        self.publish();
    }
}
