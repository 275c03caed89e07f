//! The worker of an exit in a paced class (SPEC 9.12, 9.13).
//!
//! ```text
//! forward    gate -> opened, or for a meeting enciphered -> rounds ... release ... frames of sessions -> flows
//! backward   queues of sessions, and meetings -> sealed at the forward release of the round ... release -> sender
//!
//! cells      layers, frames and seals of a round
//! meetings   channels of a batch with one token
//! sessions   what flows belong to, and the answers that wait
//! outside    flows and sockets
//! ```
//!
//! A round that leaves has c cells of every channel of its batch, whatever came and whatever waits. It is sealed before
//! the frames of its number take effect, and no work for users or destinations delays it: see `outside`.

mod cells;
mod meetings;
mod outside;
mod sessions;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;
use wire::ids::{ChannelIndex, ChannelKeys, LinkId, Side};
use wire::paced::clock::SteadyClock;
use wire::paced::{AHEAD_MAX, ControlSlots, ExitKeys, MeetingToken, PacedHeader, Schedule, Timetable};

use super::batches::{Batches, Channel};
use super::gate::{ArrivalTime, Arrived, Gate, Intake};
use super::links::PacedLinks;
use super::report_counts::ReportCounts;
use super::sender::{Leaving, Release, Sender};
use super::{ChannelAt, Command, RECEIVES};
use crate::batch::{Arrivals, Departures, RECEIVE_MAX};
use crate::buffer::{Cell, FreeList, Opened};
use crate::command::LinkCommand;
use crate::exit::GatewaySettings;
use crate::latency;
use crate::ledger::{Buffers, DropReason, Gauges, Ledger, RoundCounts, Tally};
use crate::links::report_activity;
use crate::per_direction::PerDirection;
use crate::punt::PuntSender;
use crate::runner::{APPS, BLOCKED_WAIT, Clock, UP, Worker};
use crate::socket::Port;
use crate::socket::apps::Apps;
use crate::stage::rounds::noise::Noise;
use crate::stage::rounds::{Place, Rounds};
use crate::{MILLI, Nanos};
use meetings::Meetings;
use outside::Outside;

/// The longest time from one look at the link socket to the next.
const WORK_MAX: Nanos = MILLI;

/// The configuration of an exit of a paced class.
pub struct Settings {
    pub class: super::Settings,
    pub gateway: GatewaySettings,
    /// The longest time that an answer waits for a round, and frames for their session or to take effect (SPEC 9.1.4).
    pub queue_age: Duration,
}

/// An exit's part of a channel.
struct ExitChannel {
    keys: ExitKeys,
    /// The channel that it meets.
    peer: Option<usize>,
    /// The session that it has named.
    session: Option<ChannelIndex>,
}

/// The cells of a round by place: c of each channel.
type ByPlace = Vec<Option<Cell<Opened>>>;

/// The worker of an exit between its link socket and the internet.
pub struct Exit<U, A> {
    class: super::Settings,
    times: Timetable,
    up: U,
    links: PacedLinks,
    batches: Batches<ExitChannel>,
    meetings: Meetings,
    outside: Outside<A>,
    gate: Gate,
    /// What came for rounds that are not released.
    rounds: Rounds,
    /// With repeat, the latest round that was released, and what came for it: it takes effect with the next one.
    latest: (u64, ByPlace),
    schedules: PerDirection<Schedule>,
    /// Rounds that are sealed and not released.
    sealed: VecDeque<(u64, Vec<Leaving>)>,
    /// The last round that was released backward.
    released: u64,
    /// For empty places of meetings.
    noise: Noise,
    slots: ControlSlots,
    sender: Sender,
    out: Departures,
    tally: PerDirection<Tally>,
    counts: RoundCounts,
    /// Places of forward cells, for reports.
    places: ReportCounts,
    clock: SteadyClock,
    free: FreeList,
    commands: rtrb::Consumer<Command>,
    punts: PuntSender,
    report_due: Nanos,
    arrivals: Arrivals,
    arrived: Vec<Arrived<Place>>,
    published: Arc<Mutex<Ledger>>,
    profile: latency::Shared,
    /// The clock of the runner, to stop reading by.
    runner_clock: Option<Clock>,
    /// More has come than was read.
    is_flooded: bool,
}

/// Buffers of an exit: forward rounds, and the one that waits for its repetition; backward rounds that are sealed, all
/// that a late exit releases at once; noise, the send queue, control cells, and what is being received.
fn buffers(class: &super::Settings) -> usize {
    let places = class.channels_max() * usize::from(class.terms.cells);
    2 * places * (AHEAD_MAX as usize + 3) + 4 * class.slots(Direction::Backward).most() + 3 * RECEIVE_MAX
}

impl<U: Port, A: Apps> Exit<U, A> {
    /// An exit without links and channels, whose class's clock is `clock`.
    pub fn new(
        settings: Settings,
        (up, apps): (U, A),
        commands: rtrb::Consumer<Command>,
        punts: PuntSender,
        mut rng: ChaCha20Rng,
        clock: SteadyClock,
        now: Nanos,
    ) -> Self {
        let class = settings.class.clone();
        let (terms, channels_max, total) = (&class.terms, class.channels_max(), buffers(&class));
        let mut draw = || rand::SeedableRng::from_rng(&mut rng);
        let schedules =
            PerDirection { forward: class.schedule(Direction::Forward), backward: class.schedule(Direction::Backward) };
        let last_due = |schedule: Schedule| schedule.last_due(clock.at(now));
        let released = last_due(schedules.forward);
        Exit {
            times: class.times(),
            up,
            links: PacedLinks::default(),
            batches: Batches::new(terms.rounds.into(), channels_max),
            meetings: Meetings::default(),
            outside: Outside::new(settings, apps, draw(), now),
            gate: Gate::new(&class, Side::Up),
            rounds: Rounds::new(channels_max, terms.cells, released),
            latest: (released, Vec::new()),
            schedules,
            sealed: VecDeque::new(),
            released: last_due(schedules.backward),
            noise: Noise::new(terms.class.body_len(), draw()),
            slots: class.slots(Direction::Backward),
            sender: Sender::new(terms, false, draw()),
            out: Departures::new(terms.class.cell_len(), total),
            tally: PerDirection::default(),
            counts: RoundCounts::default(),
            places: ReportCounts::new(released),
            clock,
            free: FreeList::on(total, class.hugepages),
            commands,
            punts,
            report_due: now,
            arrivals: Arrivals::new(),
            arrived: Vec::with_capacity(RECEIVE_MAX),
            published: Arc::default(),
            profile: latency::Shared::default(),
            runner_clock: None,
            is_flooded: false,
            class,
        }
    }

    /// The ledger, published at every turn boundary.
    pub fn published(&self) -> Arc<Mutex<Ledger>> {
        self.published.clone()
    }

    /// Histograms, as of an exit of a free class; cells that leave with their round are not in them.
    pub fn profile(&self) -> latency::Shared {
        self.profile.clone()
    }

    fn apply(&mut self, command: Command, now: Nanos) {
        match command {
            Command::Link(command) => {
                match &command {
                    LinkCommand::Retire { link } => self.sender.forget(*link, &mut self.free),
                    LinkCommand::InstallSlot { link, .. } => self.sender.forget_clock(*link),
                    _ => {}
                }
                self.links.apply(command, now);
            }
            Command::SlotKeys { link, slot, keys } => self.links.add_keys(link, slot, &keys),
            Command::InstallChannel { batch, up, keys, token, .. } => match &*keys {
                ChannelKeys::Hop { forward, backward } => {
                    self.install(batch, up, ExitKeys::new(forward, backward), token);
                }
                ChannelKeys::Entry(_) => debug_assert!(false, "keys of an entry"),
            },
            Command::AtRound { round, control, .. } => self.sender.control(None).add_at_round(round, control),
            Command::AtNextSlot { link, control } => {
                if self.links.links.side(link).is_some() {
                    self.sender.queue(None, control, &mut self.tally.backward);
                }
            }
            Command::ClockSeen { link, sent, received } => {
                if self.links.links.side(link).is_some() {
                    self.sender.clock_seen(link, sent, received);
                }
            }
            Command::Clock(clock) => self.clock = clock,
            Command::Resolved { query, addresses } => self.outside.resolved(query, addresses),
            Command::OwnAddresses { addresses } => self.outside.gateway.set_own_addresses(addresses),
            Command::InstallLoop { .. } => debug_assert!(false, "a command for a mix"),
            Command::Entry(_) => debug_assert!(false, "a command for an entry"),
        }
    }

    fn install(&mut self, batch: u64, up: ChannelAt, keys: ExitKeys, token: Option<MeetingToken>) {
        let state = ExitChannel { keys, peer: None, session: None };
        // For a batch that begins, cells may have been opened that a meeting must not get.
        if !self.batches.add(batch, self.rounds.released(), Channel { up, down: None, state }) {
            return;
        }
        let channels = self.batches.of_round_mut(self.times.first(batch));
        let second = channels.len() - 1;
        if let Some(first) = token.and_then(|token| self.meetings.add(batch, token, second)) {
            channels[first].state.peer = Some(second);
            channels[second].state.peer = Some(first);
        }
    }

    /// Takes in what has come, until a release is due: a flood delays it by what is left of one call at most. One call
    /// is made even if one is due. Returns whether the socket was read empty.
    fn receive(&mut self, now: Nanos) -> bool {
        for _ in 0..RECEIVES {
            let Self { gate, rounds, up, links, batches, punts, free, arrivals, arrived, clock, tally, .. } = self;
            if up.recv(free, arrivals) == 0 {
                return true;
            }
            let channel =
                |_: LinkId, header: &PacedHeader| batches.find(Direction::Forward, header.seq, None, header.channel);
            let at = ArrivalTime { turn: now, class: clock.at(now) };
            let tally = &mut tally.forward;
            gate.claim(Intake { arrivals, links, punts, free, tally, at }, rounds, channel, arrived);
            self.encipher_joined();
            self.open_data();
            if self.next_due() <= self.runner_clock.map_or(now, |clock| clock.now()) {
                break;
            }
        }
        false
    }

    /// When the next release is due, by the runner's clock.
    fn next_due(&self) -> Nanos {
        let forward = self.schedules.forward.due_at(self.rounds.released() + 1);
        let backward = self.schedules.backward.due_at(self.released + 1);
        self.clock.when(forward.min(backward))
    }

    /// Releases forward rounds that are due, and seals the backward rounds of the same numbers. Channels name their
    /// sessions before that, so answers have no gap between batches. Other frames take effect later.
    fn release_forward(&mut self, now: Nanos) {
        let due = self.schedules.forward.due(self.rounds.released(), self.clock.at(now));
        if due.is_empty() {
            return;
        }
        let (_, dropped) = self.rounds.skip_to(*due.start(), &mut self.free);
        self.tally.forward.drop_many(DropReason::Skipped, dropped as u64);
        for round in due {
            let (came, met) = self.take_round(round);
            self.outside.tick(now);
            if self.class.terms.repeat {
                let (before, cells) = std::mem::replace(&mut self.latest, (round, came));
                self.take_frames(before, cells, now);
            } else {
                self.take_frames(round, came, now);
            }
            self.seal(round, met, now);
            if ReportCounts::is_due(round) {
                let report = self.places.report(None, round);
                let _ = self.sender.control(None).queue(report);
                self.places.reported(round, |_| true);
            }
        }
        self.outside.released(now);
    }

    /// Works for users and destinations until a release is due. False if something may be left: the next turn goes on.
    fn work(&mut self, now: Nanos) -> bool {
        let (due, clock) = (self.next_due(), self.runner_clock);
        let until = clock.map_or(due, |clock| due.min(clock.now() + WORK_MAX));
        self.outside.work(&mut self.punts, now, &mut || clock.is_some_and(|clock| clock.now() >= until))
    }

    /// Releases backward rounds that are due and sealed.
    fn release_backward(&mut self, now: Nanos) {
        let due = self.schedules.backward.due(self.released, self.clock.at(now));
        let due = *due.start()..=*due.end().min(&self.rounds.released());
        if due.is_empty() {
            return;
        }
        let Self { sealed, sender, slots, times, schedules, links, out, free, batches, counts, class, .. } = self;
        let tally = &mut self.tally.backward;
        // What the socket has not taken in a whole period comes too late.
        tally.drop_many(DropReason::Aged, out.len() as u64);
        out.lose(out.len(), free);
        let passed = due.end() - std::mem::replace(&mut self.released, *due.end());
        let mut left = 0;
        while let Some((round, cells)) = sealed.pop_front_if(|(round, _)| *round <= *due.end()) {
            if !due.contains(&round) {
                tally.drop_many(DropReason::Skipped, cells.len() as u64);
                cells.into_iter().for_each(|leaving| free.give(leaving.cell.into_buffer()));
                continue;
            }
            left += 1;
            let release = Release { round, due: schedules.backward.due_at(round), slots: slots.of(times, round) };
            let of_channels = batches.of_round(round).len() * usize::from(class.terms.cells);
            let (link, before) = (links.neighbour(Side::Up), out.len());
            sender.leave(link, release, cells.into_iter(), links, out, free, tally);
            if link.is_some() {
                counts.add(out.len() - before, release.slots.total(), of_channels);
            }
            sender.end_round(round, free);
        }
        counts.skipped += passed - left;
        // With repeat, frames of the last round that was released forward have yet to take effect.
        let in_use = if class.terms.repeat { self.latest.0 } else { u64::MAX };
        batches.forget_before(in_use.min(self.released + 1));
    }

    fn publish(&self) {
        let mut ledger = Ledger {
            cells: self.tally,
            datagrams: self.outside.tallies(),
            traffic: self.up.traffic(),
            rounds: self.counts,
            ..Ledger::default()
        };
        let waiting = self.latest.1.iter().flatten().count();
        let sealed: usize = self.sealed.iter().map(|(_, cells)| cells.len()).sum();
        ledger.cells.forward.hold(self.rounds.held() + waiting);
        ledger.cells.backward.hold(sealed + self.out.len());
        let free = self.free.free() + self.up.rx_buffers() + self.noise.len();
        ledger.buffers = Buffers { free: free as u64, total: self.free.total() as u64 };
        let (flows, sockets) = self.outside.gateway.sizes();
        ledger.gauges = Gauges {
            links: self.links.links.len() as u64,
            channels: self.batches.of_round(self.rounds.released() + 1).len() as u64,
            flows: flows as u64,
            sockets: sockets as u64,
        };
        debug_assert!(ledger.closed(), "{ledger:?}");
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = ledger;
    }
}

impl<U: Port, A: Apps> Worker for Exit<U, A> {
    fn set_clock(&mut self, clock: Clock) {
        self.outside.set_clock(clock);
        self.runner_clock = Some(clock);
    }

    fn turn(&mut self, now: Nanos) -> Nanos {
        while let Ok(command) = self.commands.pop() {
            self.apply(command, now);
        }
        // An exit that reads all the time has taken in what came before a release that is due.
        if !self.is_flooded || self.next_due() > now {
            self.is_flooded = !self.receive(now);
        }
        self.release_forward(now);
        self.release_backward(now);
        self.up.send(&mut self.out, &mut self.free, &mut self.tally.backward);
        let is_done = self.work(now);
        report_activity(&mut self.links.links, &mut self.punts, &mut self.report_due, now);
        self.punts.signal();
        self.publish();
        let due = self.next_due();
        match (is_done, self.is_blocked()) {
            (false, _) => now,
            (true, true) => due.min(now + BLOCKED_WAIT),
            (true, false) => due,
        }
    }

    fn record_latency(&mut self, now: Nanos) {
        if self.out.has_unrecorded() {
            self.out.record_latency(now, &mut self.profile.lock().latency[Direction::Backward]);
        }
    }

    fn ready(&mut self, token: u64) {
        match token {
            UP => self.up.set_ready(),
            token if token >= APPS => self.outside.apps.set_ready(token),
            _ => {}
        }
    }

    fn is_blocked(&self) -> bool {
        !self.out.is_empty()
    }

    /// What waits is not sent early: a release out of its time would show.
    fn finish(&mut self, now: Nanos) {
        self.up.send(&mut self.out, &mut self.free, &mut self.tally.backward);
        let (_, dropped) = self.rounds.skip_to(self.rounds.released() + AHEAD_MAX + 1, &mut self.free);
        let Self { latest: (_, cells), sealed, out, tally, free, .. } = self;
        let last: Vec<_> = cells.drain(..).flatten().collect();
        let sealed: Vec<_> = sealed.drain(..).flat_map(|(_, cells)| cells).map(|leaving| leaving.cell).collect();
        tally.forward.drop_many(DropReason::Shutdown, (dropped + last.len()) as u64);
        tally.backward.drop_many(DropReason::Shutdown, (sealed.len() + out.len()) as u64);
        last.into_iter().chain(sealed).for_each(|cell| free.give(cell.into_buffer()));
        out.lose(out.len(), free);
        self.outside.finish(now);
        self.publish();
    }
}
