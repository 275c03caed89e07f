//! The worker of an entry in a paced class (SPEC 9.11).
//!
//! ```text
//! applications -> packer --\
//!                           prepare: channels, sender ... spin ... send
//! control cells -----------/
//! link -> gate -> backward -> applications
//!
//! rounds     building and sending them
//! pacer      when a round is due, and which one is next
//! channels   numbers, keys and marks, batch by batch
//! packer     what waits, and how cells are filled
//! backward   what Mix 1 sends
//! shown      what the worker has counted and measured
//! ```
//!
//! A round is built and sealed 2 ms before it is due. At its time the worker sends it, before it does
//! anything else, and until its next slot is due it tries again; what is left then is dropped. A timer alone is late,
//! by less or more depending on what else the host does. So the worker wakes before the round by as much as its timer
//! was late recently, 20 to 150 us, and spins for what is left of that.
//!
//! Listening sockets, clients and flows are those of the free entry. All flows belong to one session, which has no end.

mod backward;
mod channels;
mod pacer;
mod packer;
mod rounds;
mod shown;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::frames::{fragment_count, max_datagram_len};
use wire::ids::{LinkId, Side};
use wire::paced::clock::SteadyClock;
use wire::paced::{Call, ControlSlots, EntryKeys, MEETING_OVERHEAD, PacedTerms, Timetable};
use wire::reassembly::Reassembler;

use super::gate::{Arrived, Gate};
use super::links::PacedLinks;
use super::sender::Sender;
use super::{Command, EntryCommand, Settings, decoy, hold};
use crate::age::{LastRead, nanos};
use crate::batch::{Arrivals, Departures, RECEIVE_MAX};
use crate::buffer::FreeList;
use crate::command::LinkCommand;
use crate::endpoint::next_second;
use crate::entry::clients::FlowState;
use crate::entry::listener::{Listener, ListenerId};
use crate::entry::users::{Notices, Request, Users};
use crate::histogram::Histogram;
use crate::latency::{self, Times};
use crate::ledger::{DropReason, Ledger, Tally};
use crate::links::report_activity;
use crate::per_direction::PerDirection;
use crate::punt::{ClientAt, Notice, PuntSender};
use crate::runner::{APPS, Clock, DOWN, UP, Worker};
use crate::socket::Port;
use crate::socket::app_batch::{ReceiveBatch, SendBatch, SocketId};
use crate::socket::apps::Apps;
use crate::{MILLI, Nanos};
use channels::Channels;
pub use pacer::PREPARE;
use pacer::Pacer;
use packer::{FlowAt, Packer, SESSION, Waiting};
use rounds::{EARLY, Ready};
use shown::Told;
pub use shown::{EndToEnd, EntryView, LOST_AFTER, MeetingState, Outages, Waits};

/// In this time before a round is due the worker reads nothing: what comes would delay it.
const QUIET: Nanos = 3 * MILLI / 2;
/// In this time it takes in nothing that it has read before.
const STILL: Nanos = MILLI;
/// Receive calls on application sockets in one turn.
const APP_BATCHES: usize = 8;
/// A turn that has read this many datagrams of applications reads no further batch.
const APP_DATAGRAMS: usize = 256;
/// What the entry of a class serves (SPEC 9.11.3).
pub enum Service {
    /// One listener per application socket, in their order; control knows each by its place here.
    Destinations(Vec<Listener>),
    /// The other end of a meeting. There is one application socket. Answers go to the address that it last received
    /// from.
    Meeting {
        /// The longest time that a datagram may wait.
        max_age: Duration,
    },
}

/// The other end of the meeting.
struct MeetingEnd {
    max_age: Nanos,
    /// The application's address.
    client: Option<SocketAddr>,
    /// The number of the meeting: 1, and another one when its secret was changed.
    number: u32,
    /// When that was, until the application's socket is read empty: what is in it was for the one before.
    changed: Option<Nanos>,
    /// That of the latest fragmented datagram.
    next_id: u16,
    /// The latest round of which a cell has opened, and what that says.
    latest: Option<(u64, MeetingState)>,
    /// Rounds with a channel that it has sealed since then.
    silent: u64,
    /// The meeting of the latest place that was counted, and what was counted behind the latest one that has opened:
    /// the other end may have stopped there.
    counted: (u32, EndToEnd),
    notices: Notices,
}

impl MeetingEnd {
    fn new(max_age: Nanos, rng: &mut ChaCha20Rng) -> MeetingEnd {
        MeetingEnd {
            max_age,
            client: None,
            number: 1,
            changed: None,
            next_id: rng.next_u32() as u16,
            latest: None,
            silent: 0,
            counted: (1, EndToEnd::default()),
            notices: Notices::default(),
        }
    }
}

/// The worker of an entry.
pub struct Entry<D, A> {
    settings: Settings,
    times: Timetable,
    down: D,
    apps: A,
    links: PacedLinks,
    /// The link of the link cells that wait.
    link: Option<LinkId>,
    gate: Gate,
    slots: ControlSlots,
    sender: Sender,
    pacer: Pacer,
    channels: Channels,
    /// Random keys, and a meeting if the entry serves one, for cells of batches without a channel.
    decoy: (EntryKeys, Option<Call>),
    packer: Packer,
    users: Users,
    meeting: Option<MeetingEnd>,
    /// Names the entry's flows at the exit.
    session: [u8; 16],
    reassembler: Reassembler,
    ready: Option<Ready>,
    /// The time in which it has built every round, each with a channel.
    carries: Option<Range<Nanos>>,
    /// Notices that applications send more than the class carries: they are many, and leave the others room.
    over_rate: Notices,
    /// The latest round in which the session had a flow, since it was drawn.
    session_used: Option<u64>,
    /// The cells of `ready`.
    prepared: Departures,
    /// The worker wakes this long before it is due.
    early: Nanos,
    /// It is about to be due, and nothing is read.
    is_quiet: bool,
    /// Cells that are due, until this time by the class's clock.
    out: Departures,
    out_ends: Nanos,
    /// The last round whose backward places were counted, and one more.
    counted: u64,
    told: Told,
    /// How long datagrams waited for the rounds since then.
    waits: Histogram,
    view: EntryView,
    clock: SteadyClock,
    /// The clock of the runner, to spin by.
    runner_clock: Option<Clock>,
    free: FreeList,
    commands: rtrb::Consumer<Command>,
    punts: PuntSender,
    rng: ChaCha20Rng,
    shortest_age: Nanos,
    link_read: LastRead,
    apps_read: LastRead,
    next_tick: Nanos,
    report_due: Nanos,
    arrivals: Arrivals,
    /// Cells that have passed the gate, and when they were there at the earliest.
    arrived: VecDeque<Arrived<()>>,
    arrived_at: Nanos,
    receive_batch: ReceiveBatch,
    send_batch: SendBatch,
    cells: PerDirection<Tally>,
    datagrams: PerDirection<Tally>,
    published: Arc<Mutex<Ledger>>,
    shown: Arc<Mutex<EntryView>>,
    profile: latency::Shared,
    /// Start of the turn, and datagrams handed out before it.
    began: (Nanos, u64),
}

/// Buffers of an entry: a round with its copies that is prepared, one that is being sent, what is kept for copies, and
/// what is being received.
fn buffers(terms: &PacedTerms, slots: &ControlSlots) -> usize {
    let first = usize::from(terms.cells) + slots.most();
    let copies = usize::from(terms.copies);
    first * (2 * copies + (copies - 1) * usize::from(terms.gap) + 1) + 3 * RECEIVE_MAX
}

impl<D: Port, A: Apps> Entry<D, A> {
    /// An entry without links and channels. `clock` is the class's, which an entry never corrects (SPEC 9.5.3).
    ///
    /// # Panics
    /// The settings are those of a hop.
    pub fn new(
        (settings, service): (Settings, Service),
        (down, apps): (D, A),
        commands: rtrb::Consumer<Command>,
        punts: PuntSender,
        mut rng: ChaCha20Rng,
        clock: SteadyClock,
        now: Nanos,
    ) -> Self {
        assert_eq!(settings.position, 0, "the position of an entry");
        let (terms, times) = (&settings.terms, settings.times());
        let (slots, class) = (settings.slots(Direction::Forward), terms.class);
        let total = buffers(terms, &slots);
        let (listeners, meeting) = match service {
            Service::Destinations(listeners) => (listeners, None),
            Service::Meeting { max_age } => {
                let max_age = nanos(max_age);
                (Vec::new(), Some(MeetingEnd::new(max_age, &mut rng)))
            }
        };
        let payload = class.size().payload();
        let inner = if meeting.is_some() { class.body_len() - MEETING_OVERHEAD } else { payload };
        let packer = Packer::new(terms, inner);
        // Backward AGAIN travels in meetings alone.
        let fragmented = if meeting.is_some() { packer.fresh_max() } else { payload };
        let period = times.period();
        let mut users = Users::new(listeners, now);
        users.clients.session_up(SESSION);
        let mut session = [0; 16];
        rng.fill_bytes(&mut session);
        let (keys, call) = decoy::entry_keys(settings.terms.class, settings.hops, &mut rng);
        let decoy = (keys, meeting.is_some().then_some(call));
        let mut entry = Entry {
            links: PacedLinks::default(),
            link: None,
            gate: Gate::new(&settings, Side::Down),
            sender: Sender::of_entry(terms, rand::SeedableRng::from_rng(&mut rng)),
            pacer: Pacer::new(period, clock.at(now)),
            channels: Channels::new(terms, times.clone()),
            decoy,
            reassembler: Reassembler::with_hold(fragmented, hold(&settings.terms)),
            prepared: Departures::new(class.cell_len(), total),
            out: Departures::new(class.cell_len(), total),
            free: FreeList::on(total, settings.hugepages),
            slots,
            times,
            down,
            apps,
            packer,
            users,
            meeting,
            session,
            carries: None,
            over_rate: Notices::default(),
            session_used: None,
            ready: None,
            early: *EARLY.end(),
            is_quiet: false,
            out_ends: 0,
            counted: 0,
            told: Told::default(),
            waits: Histogram::default(),
            view: EntryView::default(),
            clock,
            runner_clock: None,
            commands,
            punts,
            rng,
            shortest_age: 0,
            link_read: LastRead::default(),
            apps_read: LastRead::default(),
            next_tick: now,
            report_due: now,
            arrivals: Arrivals::new(),
            arrived: VecDeque::with_capacity(RECEIVE_MAX),
            arrived_at: 0,
            receive_batch: ReceiveBatch::default(),
            send_batch: SendBatch::default(),
            cells: PerDirection::default(),
            datagrams: PerDirection::default(),
            published: Arc::default(),
            shown: Arc::default(),
            profile: latency::Shared::default(),
            began: (now, 0),
            settings,
        };
        entry.find_shortest_age();
        entry
    }

    /// The ledger, published at every turn boundary.
    pub fn published(&self) -> Arc<Mutex<Ledger>> {
        self.published.clone()
    }

    /// What it shows in addition, published with the ledger.
    pub fn view(&self) -> Arc<Mutex<EntryView>> {
        self.shown.clone()
    }

    /// Histograms of how long datagrams stay that leave for applications.
    pub fn profile(&self) -> latency::Shared {
        self.profile.clone()
    }

    fn find_shortest_age(&mut self) {
        self.shortest_age = self.meeting.as_ref().map_or(self.users.shortest_age(), |meeting| meeting.max_age);
    }

    fn apply(&mut self, command: Command, now: Nanos) {
        match command {
            Command::Link(command) => {
                if let LinkCommand::Retire { link } = &command {
                    self.sender.forget(*link, &mut self.free);
                }
                self.links.apply(command, now);
            }
            Command::SlotKeys { link, slot, keys } => self.links.add_keys(link, slot, &keys),
            Command::Entry(command) => self.apply_own(command, now),
            Command::AtRound { round, control, .. } => self.sender.control(None).replace_at_round(round, control),
            Command::AtNextSlot { link, control } => {
                self.follow_link();
                if self.link == Some(link) {
                    self.sender.queue(None, control, &mut self.cells.forward);
                }
            }
            Command::InstallChannel { .. }
            | Command::InstallLoop { .. }
            | Command::Clock(_)
            | Command::ClockSeen { .. }
            | Command::Resolved { .. }
            | Command::OwnAddresses { .. } => debug_assert!(false, "a command for a hop"),
        }
    }

    fn apply_own(&mut self, command: EntryCommand, now: Nanos) {
        match command {
            EntryCommand::InstallChannel { batch, number, keys, call, meeting } => {
                debug_assert_eq!(call.is_some(), self.meeting.is_some(), "an entry serves one kind");
                let fits = call.is_some() == self.meeting.is_some();
                // Nobody joins a batch that has begun.
                let is_early = self.pacer.last() < self.times.first(batch);
                let channel = (fits && is_early).then_some((keys, call, meeting));
                self.channels.install(batch, number, channel);
            }
            EntryCommand::Drawn { batch, number } => self.channels.install(batch, number, None),
            EntryCommand::Lead { lead_ns, is_known } => {
                if self.pacer.set_lead(lead_ns, is_known, self.clock.at(now)) {
                    self.sender.forget_copies(&mut self.free);
                }
            }
            EntryCommand::Listen { id, socket, listener } => {
                self.users.listen((id, socket, listener), &mut self.apps, &mut self.punts);
                self.find_shortest_age();
            }
            EntryCommand::RefuseNewFlows(refuses) => self.users.clients.refuse_new(refuses),
            EntryCommand::Unlisten { id } => self.unlisten(id),
        }
    }

    /// Link cells leave on the link that they are for, or never.
    fn follow_link(&mut self) {
        let link = self.links.neighbour(Side::Down);
        if std::mem::replace(&mut self.link, link) != link {
            self.sender.control(None).forget_link_cells();
        }
    }

    /// Closes a listening socket; its clients are forgotten, and their flows closed.
    fn unlisten(&mut self, id: ListenerId) {
        let Self { users, apps, packer, datagrams, .. } = self;
        let Some(socket) = users.unlisten(id, apps, |_, flow| packer.close(flow)) else { return };
        packer.drop_of(Some(socket), DropReason::Ended, &mut datagrams.forward);
        self.find_shortest_age();
    }

    /// The longest time that a datagram from or for a socket may wait.
    fn max_age(&self, socket: SocketId) -> Nanos {
        self.meeting.as_ref().map_or_else(|| self.users.max_age(socket), |meeting| meeting.max_age)
    }

    /// Reads what applications have sent, as long as there is time before the next round: one call's worth at least.
    fn receive_apps(&mut self, now: Nanos) {
        let until = self.ready.as_ref().map_or_else(|| self.prepare_at(), |ready| ready.at.saturating_sub(QUIET));
        let waited = self.apps_read.waited(now);
        self.apps_read.set(now);
        if let Some(MeetingEnd { changed: Some(changed), max_age, .. }) = &mut self.meeting
            && waited > *max_age
        {
            // It was stopped, and has read nothing meanwhile.
            *changed = now;
        }
        let mut count = 0;
        for call in 0..APP_BATCHES {
            if call > 0 && self.runner_clock.is_some_and(|clock| clock.now() >= until) {
                return;
            }
            let mut batch = std::mem::replace(&mut self.receive_batch, ReceiveBatch::placeholder());
            let may_read = count < APP_DATAGRAMS;
            let is_filled = may_read && self.apps.recv(&mut batch);
            if let Some(meeting) = self.meeting.as_mut().filter(|_| may_read && !is_filled) {
                meeting.changed = None;
            }
            if is_filled {
                let socket = batch.socket();
                let waited = waited.max(self.apps.waited(socket, now));
                let late = self.why_late(socket, waited, now);
                for (from, bytes) in batch.iter() {
                    self.datagrams.forward.received += 1;
                    let taken = late.map_or_else(|| self.queue((socket, from, bytes), now), Err);
                    if let Err(reason) = taken {
                        self.datagrams.forward.drop(reason);
                    }
                }
                count += batch.len();
            }
            self.receive_batch = batch;
            if !is_filled {
                return;
            }
        }
    }

    /// Why datagrams are dropped that may have waited for so long in a socket, if they are.
    fn why_late(&self, socket: SocketId, waited: Nanos, now: Nanos) -> Option<DropReason> {
        let max_age = self.max_age(socket);
        let changed = self.meeting.as_ref().and_then(|meeting| meeting.changed);
        if changed.is_some_and(|changed| now <= changed.saturating_add(max_age)) {
            return Some(DropReason::Ended);
        }
        (waited > max_age).then_some(DropReason::Aged)
    }

    /// Queues a datagram of an application, which was counted as received.
    fn queue(&mut self, (socket, from, bytes): (SocketId, SocketAddr, &[u8]), now: Nanos) -> Result<(), DropReason> {
        let fresh_max = self.packer.fresh_max();
        let (flow, id, data) = match &mut self.meeting {
            Some(meeting) => {
                meeting.client = Some(from);
                let Some(fragments) = fragment_count(fresh_max, bytes.len()) else {
                    let client = ClientAt { listener: ListenerId(socket), address: from };
                    let notice = Notice::TooLarge { client, len: bytes.len(), max: max_datagram_len(fresh_max) };
                    meeting.notices.send(notice, &mut self.punts, now);
                    return Err(DropReason::TooLarge);
                };
                meeting.next_id = meeting.next_id.wrapping_add(u16::from(fragments > 1));
                (None, meeting.next_id, bytes)
            }
            None => {
                let read = self.users.read((socket, from, bytes), fresh_max, &mut self.punts, now)?;
                let Request { destination, data, idle } = read;
                let clients = &mut self.users.clients;
                let client = clients.client(socket, from, idle)?.expect("the session is up");
                let flow = clients.flow(client, &destination, now, &mut self.rng)?;
                if let FlowState::Refused { reason, .. } = flow.state {
                    return Err(reason);
                }
                (Some(FlowAt { number: flow.number, token: flow.token }), flow.next_id(), data)
            }
        };
        let waiting = Waiting { arrived: now, socket, flow, id, data: data.to_vec(), written: 0, is_opened: false };
        if let Some(arrived) = self.packer.push(waiting) {
            let is_carried = self.carries.as_ref().is_some_and(|carries| carries.contains(&arrived));
            let reason = if is_carried { DropReason::OverRate } else { DropReason::ChannelQueueFull };
            self.datagrams.forward.drop(reason);
            if is_carried {
                self.over_rate.send(Notice::OverRate, &mut self.punts, now);
            }
        }
        Ok(())
    }

    /// Drops datagrams that have waited for too long.
    fn drop_aged(&mut self, now: Nanos) {
        // A worker that was stopped is late, whatever the applications send.
        let is_on_time = now <= self.prepare_at() + self.times.period();
        let Self { packer, users, meeting, datagrams, carries, over_rate, punts, .. } = self;
        let max_age = |socket| meeting.as_ref().map_or_else(|| users.max_age(socket), |meeting| meeting.max_age);
        let is_aged = |waiting: &Waiting| now - waiting.arrived > max_age(waiting.socket);
        packer.drop_aged(is_aged, |arrived| match carries {
            // It was there for a round with a channel, and found no room in it.
            Some(carries) if is_on_time && carries.contains(&arrived) => {
                datagrams.forward.drop(DropReason::OverRate);
                over_rate.send(Notice::OverRate, punts, now);
            }
            _ => datagrams.forward.drop(DropReason::Aged),
        });
    }

    /// Once a second: idle flows, stale fragments, batches that are over.
    fn tick(&mut self, now: Nanos) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = next_second(now);
        let lost = self.reassembler.sweep(Duration::from_nanos(now));
        self.datagrams.backward.drop_many(DropReason::Incomplete, u64::from(lost));
        let Self { users, packer, .. } = self;
        users.clients.expire(now, |_, flow| packer.close(flow));
        let last = self.pacer.last();
        let running = self.pacer.running(self.clock.at(now)).unwrap_or(last);
        self.channels.forget(running.min(last), running);
    }
}

impl<D: Port, A: Apps> Worker for Entry<D, A> {
    fn set_clock(&mut self, clock: Clock) {
        self.runner_clock = Some(clock);
    }

    fn turn(&mut self, now: Nanos) -> Nanos {
        let now = self.spin(now);
        self.began = (now, self.datagrams.backward.sent);
        self.send_round(now);
        while let Ok(command) = self.commands.pop() {
            self.apply(command, now);
        }
        self.tick(now);
        if !self.is_due_soon(now) {
            self.receive_apps(now);
        }
        self.drop_aged(now);
        // Reading has taken time, maybe until the next round is to be built.
        self.prepare(self.runner_clock.map_or(now, |clock| clock.now()));
        self.is_quiet = self.is_due_soon(now);
        if !self.is_quiet {
            self.receive_link(now);
        }
        if let Some(running) = self.pacer.running(self.clock.at(now)) {
            self.count_lost(running);
        }
        report_activity(&mut self.links.links, &mut self.punts, &mut self.report_due, now);
        self.punts.signal();
        self.publish(now);
        if self.is_quiet || self.arrived.is_empty() { self.wake_at(now) } else { now }
    }

    fn record_latency(&mut self, now: Nanos) {
        let (began, before) = self.began;
        let handed_out = self.datagrams.backward.sent - before;
        if handed_out > 0 || self.out.has_unrecorded() {
            let mut profile = self.profile.lock();
            self.out.record_latency(now, &mut profile.latency.forward);
            if handed_out > 0 {
                profile.latency.backward.count(Times::new(began, began), now, handed_out);
            }
        }
        self.began.1 = self.datagrams.backward.sent;
    }

    fn ready(&mut self, token: u64) {
        match token {
            UP | DOWN => self.down.set_ready(),
            token if token >= APPS => self.apps.set_ready(token),
            _ => {}
        }
    }

    fn is_blocked(&self) -> bool {
        self.is_quiet || !self.out.is_empty()
    }

    /// What waits is not sent early: a round out of its time would show.
    fn finish(&mut self, now: Nanos) {
        self.send_round(now);
        for out in [&mut self.out, &mut self.prepared] {
            self.cells.forward.drop_many(DropReason::Shutdown, out.len() as u64);
            out.lose(out.len(), &mut self.free);
        }
        self.ready = None;
        self.cells.backward.drop_many(DropReason::Shutdown, self.arrived.len() as u64);
        self.arrived.drain(..).for_each(|arrived| self.free.give(arrived.cell.into_buffer()));
        self.packer.drop_of(None, DropReason::Shutdown, &mut self.datagrams.forward);
        self.datagrams.backward.drop_many(DropReason::Shutdown, self.reassembler.held() as u64);
        self.reassembler = Reassembler::new(self.settings.terms.class.size().payload());
        self.publish(now);
    }
}

#[cfg(test)]
mod tests;
