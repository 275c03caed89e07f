//! A hop or an entry: its control, its worker, and what is between them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control::trust::State;
use control::{Caps, Change, Config, Control, Event, Output, PacedChange, Role, Timing};
use dataplane::Nanos;
use dataplane::command::PacedSender;
use dataplane::entry::{Destination, Listener, ListenerKind};
use dataplane::exit::limits::Limits;
use dataplane::exit::policy::Policy;
use dataplane::exit::{Filtering, GatewaySettings};
use dataplane::ledger::Ledger;
use dataplane::paced::Settings;
use dataplane::paced::default_max_age;
use dataplane::paced::entry::{self, Entry, Service};
use dataplane::paced::exit::{self, Exit};
use dataplane::paced::mix::{self, Mix};
use dataplane::punt::{Punt, PuntSender};
use dataplane::runner::Worker;
use dataplane::socket::memory::{Datagram, MemApps, MemNet};
use dataplane::sys::Waker;
use eddy_node::runtime::bridge::{PacedCommands, input, paced_command};
use eddy_node::runtime::workers::{COMMANDS_MAX, PUNTS_MAX};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::{Direction, Shape};
use wire::ids::Side;
use wire::paced::MeetingSecret;

use super::wires::Wires;
use super::{Chain, EXIT_HOST, FIRST_ENTRY, Hops, Plan, link_address, listener, wall_of_host};

/// Time that a flow may be idle.
const IDLE: Duration = Duration::from_secs(300);

/// What nodes are made of, also when they restart.
pub(super) struct Kit {
    pub(super) hops: Hops,
    pub(super) plan: Plan,
}

pub(super) struct Node {
    /// Hops from 1, entries from 101.
    number: usize,
    pub(super) control: Control,
    pub(super) commands: PacedCommands,
    pub(super) punts: rtrb::Consumer<Punt>,
    pub(super) worker: Box<dyn Worker>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    /// Of a mix.
    pub(super) loops: Option<Arc<Mutex<mix::LoopsView>>>,
    /// What an entry shows.
    pub(super) shown: Option<Arc<Mutex<entry::EntryView>>>,
    /// Its addresses towards the entry and towards the exit.
    pub(super) at: [SocketAddr; 2],
    /// When its timer fires.
    pub(super) due: Nanos,
    /// By how much its host's clock is ahead.
    pub(super) wall_ahead: i64,
    /// It does not run before this time.
    pub(super) stopped_until: Nanos,
    /// It is corrupt: dummies take the place of setups and acks that would leave in this direction.
    pub(super) withholds: Option<Direction>,
}

impl Node {
    /// Control takes what its worker passed up, unless commands wait for room, has its timers, and passes down what
    /// follows, in the order of a node's bridge.
    pub(super) fn run_control(
        &mut self,
        now: Nanos,
        (links, wires): (&MemNet, &Wires),
        events: &mut Vec<(usize, Event)>,
    ) {
        let elapsed = Duration::from_nanos(now);
        self.commands.hand_over();
        while self.commands.waiting() == 0
            && let Ok(mut punt) = self.punts.pop()
        {
            if let Some(input) = input(&mut punt) {
                self.control.handle(elapsed, 0, input);
            }
        }
        if self.control.next_wake() <= elapsed {
            self.control.tick(elapsed, wall_of_host(now, self.wall_ahead));
        }
        while let Some((_, output)) = self.control.poll_output() {
            match output {
                Output::Send { side, to, datagram } => {
                    let from = self.at[usize::from(side == Side::Down)];
                    links.send(Datagram { from, to, bytes: datagram });
                }
                Output::Change(Change::Paced(PacedChange::AtRound { direction, .. }))
                    if self.withholds == Some(direction) => {}
                Output::Change(change) => {
                    let command = paced_command(change).expect("the chain has a paced class only");
                    wires.command(self.number, &command);
                    if !self.commands.push(command) {
                        self.control.lost_command(0);
                    }
                }
                Output::Save(number) => self.control.saved(elapsed, number),
                Output::Resolve(_) => {}
                Output::Event(event) => events.push((self.number, event)),
            }
        }
        self.commands.hand_over();
    }
}

impl Chain {
    /// A hop, from 1, or an entry, from 101, that starts with this state, on a host whose clock is ahead.
    pub(super) fn node(&self, number: usize, (state, wall_ahead): (State, i64), rng: &mut ChaCha20Rng) -> Node {
        let Kit { hops: drawn, plan } = &*self.kit;
        let (hops, terms) = (self.hops, &plan.terms);
        let (position, meeting) = (if number >= FIRST_ENTRY { 0 } else { number }, plan.meetings.get(&number));
        let shape = Shape::new(terms.class.size(), hops).expect("a chain has at most eight hops");
        let at = [Side::Up, Side::Down].map(|side| link_address(number, side));
        let mut seed = || ChaCha20Rng::seed_from_u64(rng.next_u64());
        let config = Config {
            role: match position {
                0 => Role::Entry { channels: 0 },
                exit if exit == hops => Role::Exit,
                _ => Role::Mix,
            },
            shape,
            paced: true,
            position,
            terms: drawn.terms.clone(),
            next: None,
            previous: position
                .checked_sub(2)
                .map(|_| link_address(position - 1, Side::Down).ip())
                .into_iter()
                .collect(),
            shared_prefixes: Vec::new(),
            psk_up: None,
            psk_down: None,
            timing: Timing::default(),
            caps: Caps::default(),
        };
        let elapsed = Duration::from_nanos(self.now);
        let wall = wall_of_host(self.now, wall_ahead);
        let trust = drawn.trust(position, state.hop);
        let mut control = Control::new(vec![config], trust, seed(), elapsed, wall).expect("a good config");
        if let Some(secret) = meeting {
            control.meet(0, MeetingSecret::new(*secret));
        }
        let clock = control.class(0).paced_clock().expect("a paced class").clone();
        let settings = Settings { terms: terms.clone(), suite: drawn.terms.suite, hops, position, hugepages: false };
        let (commands, worker_commands) = rtrb::RingBuffer::new(settings.commands_max().max(COMMANDS_MAX));
        let (worker_punts, punts) = rtrb::RingBuffer::new(settings.punts_max().max(PUNTS_MAX));
        let waker = || Arc::new(Waker::new().expect("an eventfd"));
        let commands = PacedCommands::new(PacedSender::new(commands, waker()));
        let sender = PuntSender::new(worker_punts, waker());
        let [up, down] =
            [Side::Up, Side::Down].map(|side| self.links.port(link_address(number, side), settings.lengths(side)));
        let (mut loops, mut shown) = (None, None);
        let (worker, ledger): (Box<dyn Worker>, _) = match position {
            0 => {
                let at = listener(number - FIRST_ENTRY);
                let kind = ListenerKind::Forward(Destination::Ip((plan.destination)(number)));
                let max_age = default_max_age(terms);
                let apps = MemApps::new(self.apps.clone(), vec![at], at.ip());
                let service = match meeting {
                    Some(_) => Service::Meeting { max_age },
                    None => Service::Destinations(vec![Listener { kind, idle: IDLE, max_age }]),
                };
                let entry =
                    Entry::new((settings, service), (down, apps), worker_commands, sender, seed(), clock, self.now);
                let ledger = entry.published();
                shown = Some(entry.view());
                (Box::new(entry), ledger)
            }
            exit if exit == hops => {
                let gateway = GatewaySettings {
                    policy: Policy::new(vec!["198.18.0.0/24".parse().expect("a rule")], Vec::new(), Vec::new()),
                    filtering: Filtering::default(),
                    limits: Limits::default(),
                    caps: dataplane::exit::Caps { flows_per_channel: 1024, sockets: 4096 },
                    flow_idle: IDLE,
                    max_age: Duration::from_millis(250),
                };
                let settings = exit::Settings { class: settings, gateway, queue_age: default_max_age(terms) };
                let apps = MemApps::new(self.apps.clone(), Vec::new(), EXIT_HOST.into());
                let exit = Exit::new(settings, (up, apps), worker_commands, sender, seed(), clock, self.now);
                let ledger = exit.published();
                (Box::new(exit), ledger)
            }
            _ => {
                let mix = Mix::new(settings, (up, down), worker_commands, sender, seed(), clock, self.now);
                let ledger = mix.published();
                loops = Some(mix.view());
                (Box::new(mix), ledger)
            }
        };
        Node {
            number,
            control,
            commands,
            punts,
            worker,
            ledger,
            loops,
            shown,
            at,
            due: 0,
            wall_ahead,
            stopped_until: 0,
            withholds: None,
        }
    }
}
