//! The bridge between control and the data plane: punts become inputs, outputs become commands.
//!
//! The two crates do not know each other; this file alone translates. It owns no thread and no socket:
//! [`crate::runtime::node`] runs it on the control thread, and tests run whole chains of a free class with it in
//! memory. Those of a paced class in memory (`virtual`) use its translations and [`PacedCommands`].

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use control::paced::{LoopPlaces, Places};
use control::{
    ACK_COPIES_MAX, Change, Control, Event, Input, LINKS_MAX, Output, PacedChange, SETUP_CELLS_MAX,
    SETUPS_IN_FLIGHT_MAX, TRUST_CELLS_MAX,
};
use dataplane::command::{Command, CommandSender, LinkCommand, PacedSender};
use dataplane::exit::{QUESTIONS_MAX, QueryId};
use dataplane::paced::mix::LoopCounts;
use dataplane::paced::{self, EntryCommand};
use dataplane::punt::{Notice, Punt};
use wire::cell::CellKind;
use wire::ids::{ChannelIndex, Side};

use crate::runtime::door::DOOR_HALVES_PER_TURN;

/// Most handshake datagrams that wait.
const OUTGOING_MAX: usize = 1024;
/// Time until the next look at a ring that was not drained.
pub const AGAIN: Duration = Duration::from_micros(100);
/// Punts taken in one turn.
const PUNTS_PER_TURN: usize = 1024;
/// Commands for each link in a turn: three slots, a keepalive and the end of the link.
const PER_LINK: usize = 5;
/// Most commands that follow from a punt: a setup is sent on, and a channel changes.
const PER_PUNT: usize = SETUP_CELLS_MAX + 8;
/// Most commands of one turn, in addition to one for every channel that is retired with its link. Ack cells that were
/// due are among them. While some of them wait, neither punts nor commands of listeners of their class are taken in.
/// Answers of the resolver are always queued, one for each open question. Beyond this, cells are lost.
const BACKLOG_MAX: usize = PER_LINK * (LINKS_MAX + 1)
    + SETUP_CELLS_MAX * SETUPS_IN_FLIGHT_MAX
    + PER_PUNT * (PUNTS_PER_TURN + 2 * DOOR_HALVES_PER_TURN)
    + ACK_COPIES_MAX
    + TRUST_CELLS_MAX
    + QUESTIONS_MAX
    + LISTENER_COMMANDS_PER_TURN;
/// Commands about listening sockets taken in one turn.
const LISTENER_COMMANDS_PER_TURN: usize = 64;

/// A message of a class to the node that runs it.
pub enum Note {
    /// Control has something for the log.
    Event(Event),
    /// The data plane has something for the log.
    Notice(Notice),
    /// A name to resolve; answer with [`Bridge::resolved`].
    Resolve { query: QueryId, name: Box<str> },
    /// Names of the next hop, with ports, to resolve; answer with [`Control::resolved`].
    ResolveNext(Vec<(String, u16)>),
}

/// A handshake datagram. It leaves when the worker has taken `after` commands.
struct Outgoing {
    after: u64,
    side: Side,
    to: SocketAddr,
    datagram: Vec<u8>,
}

/// Sends a handshake datagram of a class, by place, from the socket of a side.
pub type SendHandshake<'a> = &'a mut dyn FnMut(usize, Side, SocketAddr, &[u8]);

/// The control plane with its ends of the rings to and from the workers.
pub struct Bridge {
    control: Control,
    /// By place, as in control.
    classes: Vec<Ends>,
}

/// The way to the workers of one class. Commands that found a ring full wait in the backlog, in binding order. While
/// there are any, control takes in nothing of this class. What other classes and its clock lead to meanwhile is
/// bounded: cells may be lost like any others, so no more of them wait than `BACKLOG_MAX` and one for each channel in a
/// free class, and than the ring has places in a paced one. The rest is a few commands for each link.
pub enum Commands {
    Free { sender: CommandSender, backlog: VecDeque<Command> },
    Paced(PacedCommands),
}

/// The way to the worker of a paced class.
pub struct PacedCommands {
    sender: PacedSender,
    backlog: VecDeque<paced::Command>,
}

impl PacedCommands {
    pub fn new(sender: PacedSender) -> PacedCommands {
        PacedCommands { sender, backlog: VecDeque::new() }
    }

    /// Queues a command of control. False if it was for a cell, and too many wait.
    pub fn push(&mut self, command: paced::Command) -> bool {
        use paced::Command::{AtNextSlot, AtRound, ClockSeen};
        let is_cell = matches!(command, AtRound { .. } | AtNextSlot { .. } | ClockSeen { .. });
        let has_room = self.backlog.len() < self.sender.capacity() || !is_cell;
        self.backlog.extend(has_room.then_some(command));
        has_room
    }

    /// Commands in the backlog. While there are any, control takes in nothing of the class.
    pub fn waiting(&self) -> usize {
        self.backlog.len()
    }

    /// Moves waiting commands into the ring until it is full.
    pub fn hand_over(&mut self) {
        if !self.backlog.is_empty() {
            hand_over(&mut self.backlog, |command| self.sender.send(command));
            self.sender.signal();
        }
    }
}

impl Commands {
    /// To the workers of a free class.
    pub fn free(sender: CommandSender) -> Commands {
        Commands::Free { sender, backlog: VecDeque::new() }
    }

    /// To the worker of a paced class.
    pub fn paced(sender: PacedSender) -> Commands {
        Commands::Paced(PacedCommands::new(sender))
    }

    /// Queues a command of control, which has at most `channels` channels. False if it was for a cell, and too many
    /// wait.
    fn push(&mut self, change: Change, channels: usize) -> bool {
        match self {
            Commands::Free { backlog, .. } => {
                let command = command(change);
                let has_room = backlog.len() < BACKLOG_MAX + channels || !matches!(command, Command::Inject { .. });
                backlog.extend(has_room.then_some(command));
                has_room
            }
            Commands::Paced(commands) => paced_command(change).is_none_or(|command| commands.push(command)),
        }
    }

    /// Queues commands that do not come from control.
    fn extend(&mut self, commands: impl IntoIterator<Item = Command>) {
        match self {
            Commands::Free { backlog, .. } => backlog.extend(commands),
            Commands::Paced(PacedCommands { backlog, .. }) => {
                backlog.extend(commands.into_iter().filter_map(shared_command));
            }
        }
    }

    /// Commands in the backlog.
    fn waiting(&self) -> usize {
        match self {
            Commands::Free { backlog, .. } => backlog.len(),
            Commands::Paced(commands) => commands.waiting(),
        }
    }

    /// Commands that reached a ring, and those that will.
    fn queued(&self) -> u64 {
        let pushed = match self {
            Commands::Free { sender, .. } => sender.pushed(),
            Commands::Paced(PacedCommands { sender, .. }) => sender.pushed(),
        };
        pushed + self.waiting() as u64
    }

    /// Commands that the workers have taken.
    fn taken(&self) -> u64 {
        match self {
            Commands::Free { sender, .. } => sender.taken(),
            Commands::Paced(PacedCommands { sender, .. }) => sender.taken(),
        }
    }

    /// Moves waiting commands into the rings until one is full.
    fn hand_over(&mut self) {
        match self {
            Commands::Free { sender, backlog } if !backlog.is_empty() => {
                hand_over(backlog, |command| sender.send(command));
                sender.signal();
            }
            Commands::Free { .. } => {}
            Commands::Paced(commands) => commands.hand_over(),
        }
    }

    /// As [`CommandSender::ended`], after which other workers are told.
    fn ended(&mut self, worker: usize, channel: ChannelIndex) -> bool {
        // Channels of a paced class end by themselves.
        let Commands::Free { sender, backlog } = self else { return false };
        let (ended, other) = sender.ended(worker, channel);
        backlog.extend(other);
        ended
    }
}

fn hand_over<C>(backlog: &mut VecDeque<C>, mut send: impl FnMut(C) -> Result<(), C>) {
    while let Some(command) = backlog.pop_front() {
        if let Err(command) = send(command) {
            backlog.push_front(command);
            return;
        }
    }
    // Memory that a link with thousands of channels needed is returned.
    backlog.shrink_to(PUNTS_PER_TURN);
}

/// The ends of the rings of one class.
pub struct Ends {
    commands: Commands,
    /// One ring for each worker.
    punts: Vec<rtrb::Consumer<Punt>>,
    /// Handshake datagrams that wait until the worker has their keys: the receiver of a message 2 may answer with a
    /// cell before this node's worker has woken up.
    outgoing: VecDeque<Outgoing>,
}

impl Ends {
    /// The rings to and from the workers of one class.
    pub fn new(commands: Commands, punts: Vec<rtrb::Consumer<Punt>>) -> Ends {
        Ends { commands, punts, outgoing: VecDeque::new() }
    }
}

impl Bridge {
    /// Connects a control plane to the rings of the workers of its classes.
    pub fn new(control: Control, classes: Vec<Ends>) -> Bridge {
        Bridge { control, classes }
    }

    /// The control plane, for its counters.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The same, to load keys and descriptors. Its outputs are taken at the next turn.
    pub fn control_mut(&mut self) -> &mut Control {
        &mut self.control
    }

    /// Hands everything over in both directions. `save` writes the node's state to disk and returns whether it is
    /// there. Returns the latest time of the next call.
    pub fn turn(
        &mut self,
        now: Duration,
        wall: SystemTime,
        send: SendHandshake<'_>,
        note: &mut dyn FnMut(usize, Note),
        save: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Duration {
        self.classes.iter_mut().for_each(|class| class.commands.hand_over());
        for class in 0..self.classes.len() {
            if self.takes_handshakes(class) {
                self.take_punts(class, now, &mut |one| note(class, one));
            }
        }
        self.control.tick(now, wall);
        self.collect(now, note, save);
        self.classes.iter_mut().for_each(|class| class.commands.hand_over());

        for (place, Ends { commands, outgoing, .. }) in self.classes.iter_mut().enumerate() {
            let taken = commands.taken();
            while let Some(Outgoing { side, to, datagram, .. }) = outgoing.pop_front_if(|next| next.after <= taken) {
                send(place, side, to, &datagram);
            }
        }
        let is_done = self.classes.iter().all(|class| class.commands.waiting() == 0 && class.outgoing.is_empty());
        if is_done { self.control.next_wake() } else { now + AGAIN }
    }

    /// Takes what the workers of a class have for control.
    fn take_punts(&mut self, class: usize, now: Duration, note: &mut dyn FnMut(Note)) {
        let workers = self.classes[class].punts.len();
        let share = PUNTS_PER_TURN / workers;
        for worker in 0..workers {
            for _ in 0..share {
                let Ok(punt) = self.classes[class].punts[worker].pop() else { break };
                self.take(class, worker, punt, now, note);
            }
        }
    }

    /// Takes all outputs of control.
    fn collect(&mut self, now: Duration, note: &mut dyn FnMut(usize, Note), save: &mut dyn FnMut(&[u8]) -> bool) {
        while let Some((place, output)) = self.control.poll_output() {
            let Ends { commands, outgoing, .. } = &mut self.classes[place];
            match output {
                Output::Send { side, to, datagram } => {
                    let after = commands.queued();
                    // A datagram too many is lost like any other; control tries its handshake again.
                    if outgoing.len() < OUTGOING_MAX {
                        outgoing.push_back(Outgoing { after, side, to, datagram });
                    } else {
                        self.control.lost_outgoing(place);
                    }
                }
                Output::Change(change) => {
                    if !commands.push(change, self.control.class(place).caps().channels) {
                        self.control.lost_command(place);
                    }
                }
                Output::Save(number) => {
                    if save(&self.control.state().to_bytes()) {
                        self.control.saved(now, number);
                    }
                }
                Output::Resolve(names) => note(place, Note::ResolveNext(names)),
                Output::Event(event) => note(place, Note::Event(event)),
            }
        }
    }

    /// Takes some commands for the worker of a class that do not come from control, unless commands of control wait.
    pub fn take_commands(&mut self, class: usize, commands: impl Iterator<Item = Command>) {
        let way = &mut self.classes[class].commands;
        if way.waiting() == 0 {
            way.extend(commands.take(LISTENER_COMMANDS_PER_TURN));
        }
    }

    /// Makes the worker of an entry's paced class refuse new flows, or take them again.
    pub fn refuse_new_flows(&mut self, class: usize, refuses: bool) {
        if let Commands::Paced(PacedCommands { backlog, .. }) = &mut self.classes[class].commands {
            backlog.push_back(paced::Command::Entry(EntryCommand::RefuseNewFlows(refuses)));
        }
    }

    /// Answers a [`Note::Resolve`] of a class. At most [`QUESTIONS_MAX`] wait for an answer, so this needs no room in
    /// the backlog.
    pub fn resolved(&mut self, class: usize, query: QueryId, addresses: Vec<IpAddr>) {
        self.classes[class].commands.extend([Command::Resolved { query, addresses }]);
    }

    /// Gives an exit the addresses of its host.
    pub fn own_addresses(&mut self, addresses: &[IpAddr]) {
        for class in &mut self.classes {
            class.commands.extend([Command::OwnAddresses { addresses: addresses.to_vec() }]);
        }
    }

    /// True if control takes in what comes in a class. While commands wait for its workers it does not.
    pub fn takes_handshakes(&self, class: usize) -> bool {
        self.classes[class].commands.waiting() == 0
    }

    /// True while commands wait for a worker of any class.
    pub fn has_waiting(&self) -> bool {
        self.classes.iter().any(|class| class.commands.waiting() > 0)
    }

    /// A handshake datagram of a class. `is_crowded` if the queue in which it waited was half full. Returns true if it
    /// cost public-key work.
    pub fn take_handshake(
        &mut self,
        (class, side): (usize, Side),
        from: SocketAddr,
        datagram: &mut [u8],
        is_crowded: bool,
        now: Duration,
    ) -> bool {
        if is_crowded {
            self.control.queue_fills(now, class);
        }
        let before = self.control.class(class).counters().handshakes_read;
        self.control.handle(now, class, Input::Handshake { side, from, datagram });
        self.control.class(class).counters().handshakes_read > before
    }

    fn take(&mut self, class: usize, worker: usize, mut punt: Punt, now: Duration, note: &mut dyn FnMut(Note)) {
        match punt {
            Punt::Handshake { side, from, mut datagram, is_crowded, place } => {
                // Its place in the ring is free from here on.
                drop(place);
                self.take_handshake((class, side), from, &mut datagram, is_crowded, now);
            }
            Punt::ChannelEnded { channel, .. } if !self.classes[class].commands.ended(worker, channel) => {}
            Punt::Resolve { query, name } => note(Note::Resolve { query, name }),
            Punt::Notice(notice) => note(Note::Notice(notice)),
            _ => {
                if let Some(input) = input(&mut punt) {
                    self.control.handle(now, class, input);
                }
            }
        }
    }
}

/// The input that a punt is for control; none if it is for the node.
pub fn input(punt: &mut Punt) -> Option<Input<'_>> {
    Some(match punt {
        Punt::Handshake { side, from, datagram, .. } => Input::Handshake { side: *side, from: *from, datagram },
        Punt::Cell { link, slot, from, header, body } => {
            Input::Cell { link: *link, slot: *slot, from: *from, header: *header, body }
        }
        Punt::PacedCell { link, slot, from, header, content, at } => {
            Input::PacedCell { link: *link, slot: *slot, from: *from, header: *header, content, at_ns: *at }
        }
        &mut Punt::PacedClockSent { link, number, sent_ns } => Input::PacedClockSent { link, number, sent_ns },
        &mut Punt::PacedPlaces { first, rounds, places, lost } => {
            Input::PacedPlaces(Places { first, rounds, places, lost })
        }
        &mut Punt::PacedLoops { first, rounds, counts } => {
            let LoopCounts { places, lost, garbled, link_places, link_lost } = counts;
            Input::PacedLoops(LoopPlaces { first, rounds, places, lost, garbled, link_places, link_lost })
        }
        &mut Punt::Promoted { link, slot, from } => Input::Promoted { link, slot, from },
        &mut Punt::Activity { link, received, sent } => Input::Activity { link, received, sent },
        &mut Punt::ChannelEnded { channel, reason } => Input::ChannelEnded { channel, reason },
        Punt::Resolve { .. } | Punt::Notice(_) => return None,
    })
}

/// The command for a worker of a paced class; none for changes of free classes.
pub fn paced_command(change: Change) -> Option<paced::Command> {
    let control = |kind, channel, sub, content| paced::Control { kind, channel, sub, content };
    Some(match change {
        Change::Paced(PacedChange::SlotKeys { link, slot, tag_in, tag_out, control_in, control_out }) => {
            paced::Command::SlotKeys {
                link,
                slot,
                keys: Box::new(paced::SlotKeys { tag_in, tag_out, control_in, control_out }),
            }
        }
        Change::Paced(PacedChange::InstallChannel { batch, up: (link, number), down, keys, token }) => {
            let up = paced::ChannelAt { link, number };
            paced::Command::InstallChannel { batch, up, down, keys, token }
        }
        Change::Paced(PacedChange::InstallEntryChannel { batch, number, keys, call, meeting }) => {
            paced::Command::Entry(EntryCommand::InstallChannel { batch, number, keys, call, meeting })
        }
        Change::Paced(PacedChange::Drawn { batch, number }) => {
            paced::Command::Entry(EntryCommand::Drawn { batch, number })
        }
        Change::Paced(PacedChange::InstallLoop { batch, number, keys }) => {
            paced::Command::InstallLoop { batch, number, keys }
        }
        Change::Paced(PacedChange::Lead { lead_ns, is_known }) => {
            paced::Command::Entry(EntryCommand::Lead { lead_ns, is_known })
        }
        Change::Paced(PacedChange::AtRound { link, direction, round, kind, channel, sub, content }) => {
            paced::Command::AtRound { link, direction, round, control: control(kind, channel, sub, content) }
        }
        Change::Paced(PacedChange::AtNextSlot { link, content }) => {
            paced::Command::AtNextSlot { link, control: control(CellKind::Link, 0, 0, content) }
        }
        Change::Paced(PacedChange::ClockSeen { link, sent_ns, received_ns }) => {
            paced::Command::ClockSeen { link, sent: sent_ns, received: received_ns }
        }
        Change::Paced(PacedChange::Clock(clock)) => paced::Command::Clock(clock),
        Change::InstallChannel { .. }
        | Change::RetireChannel { .. }
        | Change::Supersede { .. }
        | Change::Inject { .. } => return None,
        link => return shared_command(command(link)),
    })
}

/// A command that workers of free and of paced classes know; none for one of free classes.
fn shared_command(command: Command) -> Option<paced::Command> {
    Some(match command {
        Command::Link(command) => paced::Command::Link(command),
        Command::Listen { id, socket, listener } => {
            paced::Command::Entry(EntryCommand::Listen { id, socket, listener })
        }
        Command::Unlisten { id } => paced::Command::Entry(EntryCommand::Unlisten { id }),
        Command::Resolved { query, addresses } => paced::Command::Resolved { query, addresses },
        Command::OwnAddresses { addresses } => paced::Command::OwnAddresses { addresses },
        Command::InstallChannel { .. }
        | Command::RetireChannel { .. }
        | Command::Supersede { .. }
        | Command::Inject { .. } => return None,
    })
}

/// Control's changes are a subset of a worker's commands.
fn command(change: Change) -> Command {
    match change {
        Change::Paced(_) => unreachable!("a change of a paced class goes to a worker of one"),
        Change::InstallLink { link, side, peer } => Command::Link(LinkCommand::Install { link, side, peer }),
        Change::InstallSlot { link, slot, peer, header_i2r, header_r2i, rank } => {
            Command::Link(LinkCommand::InstallSlot { link, slot, peer, header_i2r, header_r2i, rank })
        }
        Change::Promote { link, slot, peer } => Command::Link(LinkCommand::Promote { link, slot, peer }),
        Change::MoveLink { link, peer } => Command::Link(LinkCommand::Move { link, peer }),
        Change::RetireSlot { link, slot } => Command::Link(LinkCommand::RetireSlot { link, slot }),
        Change::RetireLink { link } => Command::Link(LinkCommand::Retire { link }),
        Change::InstallChannel { channel, up, down, keys, lifetime_s, first } => {
            Command::InstallChannel { channel, up, down, keys, lifetime_s, first }
        }
        Change::RetireChannel { channel } => Command::RetireChannel { channel },
        Change::Supersede { old, new } => Command::Supersede { old, new },
        Change::Inject { link, slot, header, body, at_once } => Command::Inject { link, slot, header, body, at_once },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use control::draw::{draw_secret, draw_x25519};
    use control::trust::hop::HopState;
    use control::trust::{ChainTerms, ClassTerms, Contact, HopRole, NodeDescriptor, Signer, View};
    use control::{Caps, Config, NodeKeys, Refusal, Role, Timing, TrustSetup};
    use dataplane::sys::Waker;
    use rand::SeedableRng;
    use rand_chacha::ChaCha20Rng;
    use wire::cell::{Class, Shape};
    use wire::ids::{LinkId, SlotId};
    use wire::setup::Suite;

    const RING: usize = 4;

    /// The worker's ends of the rings of a class.
    type WorkerEnds = (rtrb::Consumer<Command>, rtrb::Producer<Punt>);

    /// A mix whose worker has a ring for four commands, and the ring's other ends.
    fn bridge() -> (Bridge, rtrb::Consumer<Command>, rtrb::Producer<Punt>) {
        let (bridge, mut ends) = bridge_of(&[Class::S]);
        let (commands, punts) = ends.remove(0);
        (bridge, commands, punts)
    }

    /// The same with these classes.
    fn bridge_of(classes: &[Class]) -> (Bridge, Vec<WorkerEnds>) {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let signers: Vec<Signer> = (0..3).map(|_| Signer::from_seed(&draw_secret(&mut rng))).collect();
        let [mix, exit, signer] = &signers[..] else { unreachable!("three were drawn") };
        let (noise, public) = draw_x25519(&mut rng);
        let terms = ChainTerms {
            suite: Suite::default(),
            interval_s: 10,
            epoch_s: 3600,
            classes: classes
                .iter()
                .map(|class| ClassTerms { class: *class, mixing_delay_ms: 0, lifetime_s: 3600 })
                .collect(),
            paced: Vec::new(),
            identities: vec![mix.public(), exit.public()],
        };
        let mut view = View::new(terms.clone());
        for (hop, role, identity) in [(1, HopRole::Mix, mix), (2, HopRole::Exit, exit)] {
            let own = hop == 1;
            let descriptor = NodeDescriptor {
                role,
                revision: 1,
                floor: 0,
                not_before: 0,
                not_after: u64::MAX,
                identity: identity.public(),
                noise: if own { public } else { [9; 32] },
                signing: if own { signer.public() } else { [9; 32] },
                contacts: (1..)
                    .zip(classes)
                    .map(|(port, class)| Contact {
                        class: (*class).into(),
                        lanes: 1,
                        addresses: vec![SocketAddr::from(([10, 0, 0, hop as u8], port))],
                        names: Vec::new(),
                    })
                    .collect(),
            };
            view.take_descriptor(hop, descriptor.sign(identity).unwrap(), 0).unwrap();
        }
        let config = |class: &Class| Config {
            role: Role::Mix,
            shape: Shape::new(*class, 2).unwrap(),
            position: 1,
            terms: terms.clone(),
            next: None,
            previous: Vec::new(),
            shared_prefixes: Vec::new(),
            paced: false,
            psk_up: None,
            psk_down: None,
            timing: Timing::default(),
            caps: Caps::default(),
        };
        let signer = signers.into_iter().nth(2).expect("three were drawn");
        let trust = TrustSetup { view, keys: vec![NodeKeys { noise, signer }], state: HopState::default() };
        let configs = classes.iter().map(config).collect();
        let control = Control::new(configs, trust, rng, Duration::ZERO, SystemTime::UNIX_EPOCH).unwrap();
        let rings = |_: &Class| {
            let (commands, worker_commands) = rtrb::RingBuffer::new(RING);
            let (worker_punts, punts) = rtrb::RingBuffer::new(256);
            let commands = Commands::free(CommandSender::new(commands, Arc::new(Waker::new().unwrap())));
            (Ends::new(commands, vec![punts]), (worker_commands, worker_punts))
        };
        let (ends, workers) = classes.iter().map(rings).unzip();
        (Bridge::new(control, ends), workers)
    }

    /// One turn; how many datagrams left.
    fn turn(bridge: &mut Bridge, now: Duration) -> usize {
        let mut sent = 0;
        bridge.turn(now, SystemTime::UNIX_EPOCH + now, &mut |_, _, _, _| sent += 1, &mut |_, _| (), &mut |_| true);
        sent
    }

    #[test]
    fn while_commands_wait_nothing_more_is_taken_in() {
        let (mut bridge, mut worker, mut punts) = bridge();
        (0..10).for_each(|query| bridge.resolved(0, QueryId(query), Vec::new()));
        for _ in 0..3 {
            let from = SocketAddr::from(([1, 1, 1, 1], 1));
            assert!(punts.push(Punt::Promoted { link: LinkId(9), slot: SlotId(9), from }).is_ok());
        }
        let mut taken = Vec::new();
        for left in [6, 2, 0] {
            let waiting = punts.slots();
            turn(&mut bridge, Duration::ZERO);
            assert_eq!(bridge.classes[0].commands.waiting(), left);
            assert_eq!(punts.slots() == waiting, left > 0, "punts wait as long as commands do");
            while let Ok(Command::Resolved { query, .. }) = worker.pop() {
                taken.push(query.0);
            }
        }
        assert!(taken.into_iter().eq(0..10), "in order");
        assert_eq!(punts.slots(), 256);
        let Commands::Free { backlog, .. } = &bridge.classes[0].commands else { panic!("a free class") };
        assert!(backlog.capacity() <= PUNTS_PER_TURN);
    }

    #[test]
    fn full_ring_of_a_class_does_not_stop_another() {
        let (mut bridge, mut ends) = bridge_of(&[Class::S, Class::M]);
        (0..10).for_each(|query| bridge.resolved(0, QueryId(query), Vec::new()));
        bridge.resolved(1, QueryId(10), Vec::new());
        for (_, punts) in &mut ends {
            let from = SocketAddr::from(([1, 1, 1, 1], 1));
            assert!(punts.push(Punt::Promoted { link: LinkId(9), slot: SlotId(9), from }).is_ok());
        }
        turn(&mut bridge, Duration::ZERO);
        assert!(bridge.has_waiting());
        assert_eq!([0, 1].map(|class| bridge.takes_handshakes(class)), [false, true]);
        let [(_, stalled), (commands, punts)] = &mut ends[..] else { panic!("two classes") };
        assert_eq!([stalled.slots(), punts.slots()], [255, 256]);
        assert!(matches!(commands.pop(), Ok(Command::Resolved { query: QueryId(10), .. })));
    }

    #[test]
    fn worker_that_stalls_loses_cells_and_no_links() {
        let (ring, _worker) = rtrb::RingBuffer::new(RING);
        let mut commands = Commands::paced(PacedSender::new(ring, Arc::new(Waker::new().unwrap())));
        let mut push = |change| {
            let has_room = commands.push(change, 0);
            commands.hand_over();
            has_room
        };
        let mut wait = || push(Change::Paced(PacedChange::AtNextSlot { link: LinkId(1), content: vec![0] }));
        let taken = (0..20).filter(|_| wait()).count();
        assert_eq!(taken, 2 * RING, "in the ring, and as many behind it");
        assert!(push(Change::RetireLink { link: LinkId(1) }));
        assert_eq!(commands.waiting(), RING + 1);
    }

    #[test]
    fn waiting_handshakes_are_bounded_and_counted() {
        let (mut bridge, mut worker, _punts) = bridge();
        bridge.resolved(0, QueryId(0), Vec::new());
        let mut second = 0;
        while bridge.control().class(0).counters().refused(Refusal::OutgoingFull) < 10 {
            second += 1;
            assert!(second < 10_000);
            assert_eq!(turn(&mut bridge, Duration::from_secs(second)), 0, "the worker has not taken the command");
        }
        assert_eq!(bridge.classes[0].outgoing.len(), OUTGOING_MAX);
        let made = 2 * bridge.control().class(0).counters().handshakes_started as usize;
        assert_eq!(made, OUTGOING_MAX + bridge.control().class(0).counters().refused(Refusal::OutgoingFull) as usize);
        worker.pop().unwrap_or_else(|_| panic!("it is there"));
        assert!(turn(&mut bridge, Duration::from_secs(second)) >= OUTGOING_MAX);
        assert!(bridge.classes[0].outgoing.is_empty());
    }
}
