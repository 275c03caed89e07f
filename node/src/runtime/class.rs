//! One class of a running node: starts its workers, and makes what the control thread and the report have of it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;
use std::time::Duration;

use control::Control;
use dataplane::lanes::Lanes;
use dataplane::runner::Clock;
use dataplane::sys::Waker;
use tracing::{Span, error_span};
use wire::cell::Shape;
use wire::paced::MeetingSecret;

use crate::config::{ChainFile, ClassName, NodeConfig, Part, Terms, queue_age};
use crate::error::StartError;
use crate::figures::Figures;
use crate::report::paced::ClassFacts;
use crate::runtime::bridge::Ends;
use crate::runtime::door::Door;
use crate::runtime::drop_counter::DropCounter;
use crate::runtime::flood::Flood;
use crate::runtime::flow_stop::FlowStop;
use crate::runtime::listeners::{Listeners, Times};
use crate::runtime::log::Log;
use crate::runtime::meeting::MeetingKeeper;
use crate::runtime::meter_alarm::MeterAlarm;
use crate::runtime::next_names::NextNames;
use crate::runtime::reporter::ClassReporter;
use crate::runtime::resolver::Resolver;
use crate::runtime::sockets::{HandshakeSockets, Sockets};
use crate::runtime::workers::{PacedWorker, WorkerPlan, Workers};

/// A class of a node that is about to start.
pub struct ClassSpec {
    pub terms: Terms,
    /// Class and length of its chain.
    pub shape: Shape,
    /// The node's configuration, with the settings of this class.
    pub config: NodeConfig,
    /// Address of the next hop, as far as it is known; none at the exit.
    pub next: Option<SocketAddr>,
    /// Of its links.
    pub lanes: Lanes,
    pub sockets: Sockets,
    /// Of an entry that serves a meeting in it.
    pub meeting: Option<MeetingSpec>,
}

/// A meeting of an entry.
pub struct MeetingSpec {
    pub secret: MeetingSecret,
    /// Its file, which is read again at each reload.
    pub file: PathBuf,
    /// How long a datagram waits for a round.
    pub max_age: Duration,
}

/// What the control thread has of a class.
pub(super) struct ClassState {
    /// Only at an exit.
    pub(super) resolver: Option<Resolver>,
    /// Only at a mix with a floor.
    pub(super) meter_alarm: Option<MeterAlarm>,
    pub(super) next_names: NextNames,
    pub(super) door: Option<Door>,
    pub(super) log: Log,
    pub(super) flood: Flood,
    /// Only at an entry that refuses new flows on the alarm `dropping`.
    pub(super) flow_stop: Option<FlowStop>,
    /// Only at an entry with a meeting in this class.
    pub(super) meeting: Option<MeetingKeeper>,
    /// Names the class in the lines of the log, if there are others.
    pub(super) span: Span,
}

/// A class whose workers run.
pub(super) struct Started {
    pub(super) workers: Vec<JoinHandle<()>>,
    pub(super) wakers: Vec<Arc<Waker>>,
    pub(super) ends: Ends,
    pub(super) state: ClassState,
    /// For its handshakes.
    pub(super) sockets: HandshakeSockets,
    pub(super) reporter: ClassReporter,
    pub(super) socks: Vec<TcpListener>,
}

/// What all classes of a node start with.
pub(super) struct Start<'a> {
    pub(super) chain: &'a ChainFile,
    pub(super) position: usize,
    pub(super) has_many: bool,
    pub(super) clock: Clock,
    pub(super) stop: &'a Arc<AtomicBool>,
    /// The control thread's.
    pub(super) waker: &'a Arc<Waker>,
    pub(super) control: &'a Control,
}

impl Start<'_> {
    /// Starts the workers of the class that control has at this place, after `first` of other classes.
    ///
    /// # Errors
    /// A socket option, a thread or the resolver is refused by the system.
    pub(super) fn class(&self, place: usize, spec: ClassSpec, first: usize) -> Result<Started, StartError> {
        let duplicate = || StartError::system("duplicate the link sockets");
        let ClassSpec { terms, shape, config, next, lanes, mut sockets, meeting } = spec;
        let watched = sockets.links().chain(&sockets.meeting).map(|socket| Ok(DropCounter::new(socket.try_clone()?)));
        let watched = watched.collect::<std::io::Result<Vec<_>>>().map_err(duplicate())?;
        let socks = std::mem::take(&mut sockets.socks);
        let listeners = match &config.part {
            Part::Entry(part) if meeting.is_none() => {
                let times = Times { idle: part.flow_idle, max_age: config.max_age };
                let listeners = Listeners::new(terms.payload(), times, &sockets.listeners, self.waker.clone());
                Some(listeners.map_err(StartError::system("duplicate the listening sockets"))?)
            }
            Part::Entry(_) | Part::Mix { .. } | Part::Exit(_) => None,
        };
        let handshakes = HandshakeSockets::new(&sockets).map_err(duplicate())?;
        let resolver = match &config.part {
            Part::Exit(part) => Some(Resolver::start(part.resolver, self.waker.clone())?),
            Part::Entry(_) | Part::Mix { .. } => None,
        };

        let (mixing_delay, paced) = match &terms {
            Terms::Free(terms) => (Duration::from_millis(u64::from(terms.mixing_delay_ms)), None),
            Terms::Paced(terms) => {
                let clock = self.control.class(place).paced_clock().expect("control has the class as paced").clone();
                let queue_age = meeting.as_ref().map_or_else(|| queue_age(&config, terms), |meeting| meeting.max_age);
                (
                    Duration::ZERO,
                    Some(PacedWorker { terms: terms.clone(), suite: self.chain.terms.suite, clock, queue_age }),
                )
            }
        };
        let plan = WorkerPlan { config: &config, shape, mixing_delay, paced, position: self.position, lanes, first };
        let Workers { threads, commands, punts, ledgers, profiles, turns, wakers, view, loops, door } =
            Workers::start(&plan, sockets, self.clock, (self.stop, self.waker))?;

        // A paced class has its own floor, which everybody in the chain knows.
        let floor = match (&terms, &config.part) {
            (Terms::Free(_), Part::Mix { meter_floor, .. }) => Some(*meter_floor),
            _ => None,
        };
        let name = terms.name();
        let reporter = ClassReporter {
            class: name.clone(),
            id: terms.id(),
            ledgers,
            profiles,
            control: Default::default(),
            sockets: watched,
            door: door.as_ref().map(Door::counts),
            listeners,
            turns,
            facts: terms.paced().map(|terms| ClassFacts {
                figures: Figures::of(terms, self.chain.terms.suite, shape.hops()),
                terms: terms.clone(),
                hops: shape.hops(),
                position: self.position,
            }),
            view,
            loops,
            floor,
        };
        let state = ClassState {
            resolver,
            meter_alarm: floor.filter(|floor| *floor > 0).map(|_| MeterAlarm::new(self.clock.elapsed())),
            next_names: NextNames::default(),
            door,
            log: Log::new(self.chain, self.position, next, terms.paced()),
            flood: Flood::default(),
            flow_stop: matches!(&config.part, Part::Entry(part) if part.refuses_on_alarm).then(FlowStop::default),
            meeting: meeting.map(|meeting| MeetingKeeper::new(meeting.file)),
            span: if self.has_many { span(&name) } else { Span::none() },
        };
        let ends = Ends::new(commands, punts);
        Ok(Started { workers: threads, wakers, ends, state, sockets: handshakes, reporter, socks })
    }
}

/// Enabled at every level of the log.
fn span(class: &ClassName) -> Span {
    error_span!("class", message = %class)
}
