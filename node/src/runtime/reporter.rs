//! The report of a running node, from what its threads share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control::Counters;
use control::paced::PacedStatus;
use control::trust::TrustStatus;
use dataplane::Nanos;
use dataplane::latency::{self, Profile};
use dataplane::ledger::{Ledger, Tally};
use dataplane::paced::entry::MeetingState;
use dataplane::paced::{entry, mix};
use dataplane::runner::{Clock, Turns};
use rustix::time::{ClockId, clock_gettime};
use wire::ids::ClassId;

use crate::config::{ClassName, NodeRole};
use crate::report::paced::{self, ClassFacts, CompanyReport, PacedReport};
use crate::report::{MeterReport, NodeReport};
use crate::runtime::door::DoorCounts;
use crate::runtime::drop_counter::DropCounter;
use crate::runtime::listeners::Listeners;
use crate::runtime::readiness::Readiness;

/// Control's part of the report of a class, updated at each of its turns.
#[derive(Clone, Default)]
pub(super) struct ControlState {
    pub(super) counters: Counters,
    pub(super) half_open: usize,
    /// Of a paced class.
    pub(super) paced: Option<PacedStatus>,
    /// Of an entry of one: setups that failed at a full class.
    pub(super) full: Option<CompanyReport>,
    /// It refuses new flows, by `on_alarm`.
    pub(super) refuses_flows: bool,
    /// Handshakes refused per second, while there is a flood of them.
    pub(super) flood_per_s: Option<u64>,
}

/// The sources of a node's report.
#[derive(Clone)]
pub(super) struct Reporter {
    pub(super) role: NodeRole,
    pub(super) position: usize,
    /// Id of the chain.
    pub(super) chain: [u8; 32],
    pub(super) trust: Arc<Mutex<TrustStatus>>,
    pub(super) clock: Clock,
    pub(super) readiness: Arc<Readiness>,
    /// At least one.
    pub(super) classes: Arc<[ClassReporter]>,
    /// It serves several classes, or another one than the chain's first.
    pub(super) names_classes: bool,
}

/// The sources of the report of a class.
pub(super) struct ClassReporter {
    pub(super) class: ClassName,
    pub(super) id: ClassId,
    /// One for each worker.
    pub(super) ledgers: Vec<Arc<Mutex<Ledger>>>,
    pub(super) profiles: Vec<latency::Shared>,
    pub(super) control: Mutex<ControlState>,
    /// Duplicates of the link sockets, for the kernel's drop counters.
    pub(super) sockets: Vec<DropCounter>,
    /// Of handshakes that do not pass a worker.
    pub(super) door: Option<Arc<DoorCounts>>,
    /// Only at an entry.
    pub(super) listeners: Option<Listeners>,
    pub(super) turns: Vec<Arc<Turns>>,
    /// Of a paced class.
    pub(super) facts: Option<ClassFacts>,
    /// Only at an entry, of a paced class.
    pub(super) view: Option<Arc<Mutex<entry::EntryView>>>,
    /// Only at a mix, of a paced class.
    pub(super) loops: Option<Arc<Mutex<mix::LoopsView>>>,
    /// Only at a mix: the floor of its meter.
    pub(super) floor: Option<u32>,
}

impl Reporter {
    /// The report now: that of the first class, and those of all by name if that says more.
    pub(super) fn report(&self) -> NodeReport {
        let mut all = self.classes.iter().map(|class| (class.class.to_string(), self.report_of(class)));
        let (name, first) = all.next().expect("a node has a class");
        let mut classes: BTreeMap<String, NodeReport> = all.collect();
        if self.names_classes {
            classes.insert(name, first.clone());
        }
        NodeReport { classes, ..first }
    }

    /// The report of the node with this class alone.
    fn report_of(&self, class: &ClassReporter) -> NodeReport {
        let profile = class.profile();
        let control = lock(&class.control).clone();
        let of_workers = class.turns.iter().map(|turns| turns.read());
        let (turns, sleeps) = of_workers.fold((0, 0), |(turns, sleeps), (t, s)| (turns + t, sleeps + s));
        NodeReport {
            class_number: class.id.number(),
            turns,
            sleeps,
            kernel_drops: class.kernel_drops(),
            uptime_s: self.clock.uptime().as_secs_f64(),
            cpu_s: Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).map_or(0.0, |cpu| cpu.as_secs_f64()),
            engine: wire::gcm::engine().name().to_owned(),
            meter: class.meter(&profile, self.clock.now()),
            paced: class.paced(&control),
            ..NodeReport::new(self.role, self.position, &class.ledger(), &profile)
        }
        .with_control(&control.counters, control.half_open)
        .with_flood(control.flood_per_s)
        .with_trust(&self.chain, &lock(&self.trust))
    }
}

impl Reporter {
    /// Looks at all counters of the kernel, so that none wraps around unseen.
    pub(super) fn read_drops(&self) {
        for class in &*self.classes {
            class.kernel_drops();
            if let Some(door) = &class.door {
                door.add_to(&mut Tally::default());
            }
        }
    }
}

impl ClassReporter {
    fn kernel_drops(&self) -> u64 {
        self.sockets.iter().map(DropCounter::read).sum::<u64>()
            + self.listeners.as_ref().map_or(0, Listeners::kernel_drops)
    }

    /// The sum of all workers' ledgers and of the door's counts. The ledgers are all locked at once, because one may
    /// have received what another has sent.
    fn ledger(&self) -> Ledger {
        let readings: Vec<_> = self.ledgers.iter().map(|ledger| lock(ledger)).collect();
        let sum = readings.iter().map(|reading| **reading).reduce(|sum, reading| sum.and(&reading));
        let mut sum = sum.unwrap_or_default();
        if let Some(door) = &self.door {
            door.add_to(&mut sum.cells.forward);
        }
        sum
    }

    fn paced(&self, control: &ControlState) -> Option<PacedReport> {
        let (view, loops) =
            (self.view.as_deref().map(|view| *lock(view)), self.loops.as_deref().map(|view| *lock(view)));
        let mut report = PacedReport::new(self.facts.as_ref()?, control.paced.as_ref()?, view, loops);
        if let Some(entry) = &mut report.entry {
            (entry.full, entry.refuses_flows) = (control.full, control.refuses_flows);
        }
        Some(report)
    }

    /// The state of an entry's meeting.
    pub(super) fn meeting(&self) -> Option<MeetingState> {
        let view = *lock(self.view.as_deref()?);
        let PacedStatus::Entry(status) = lock(&self.control).paced.clone()? else { return None };
        paced::meeting(&status, &view)
    }

    /// The anonymity meter of a mix.
    pub(super) fn meter(&self, profile: &Profile, now: Nanos) -> Option<MeterReport> {
        Some(MeterReport::new(self.class.to_string(), self.floor?, &profile.meters, now))
    }

    /// The sum of all workers' profiles.
    pub(super) fn profile(&self) -> Profile {
        self.profiles.iter().map(latency::Shared::read).reduce(|sum, more| sum.and(&more)).unwrap_or_default()
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::UdpSocket;

    use dataplane::sys;
    use wire::cell::Class;

    use super::*;

    /// A class without threads.
    pub(in crate::runtime) fn idle_class() -> ClassReporter {
        ClassReporter {
            class: Class::S.into(),
            id: Class::S.into(),
            ledgers: Vec::new(),
            profiles: Vec::new(),
            control: Mutex::default(),
            sockets: Vec::new(),
            door: None,
            listeners: None,
            turns: Vec::new(),
            facts: None,
            view: None,
            loops: None,
            floor: None,
        }
    }

    /// The reporter of a node with this class.
    pub(in crate::runtime) fn reporter_of(class: ClassReporter) -> Reporter {
        Reporter {
            role: NodeRole::Mix,
            position: 1,
            chain: [0; 32],
            trust: Arc::default(),
            clock: Clock::start(),
            readiness: Arc::default(),
            classes: [class].into(),
            names_classes: false,
        }
    }

    #[test]
    fn only_a_node_with_several_classes_lists_them() {
        let reporter = reporter_of(idle_class());
        assert!(reporter.report().classes.is_empty());
        let second = ClassReporter { class: Class::M.into(), id: Class::M.into(), ..idle_class() };
        let reporter = Reporter { classes: [idle_class(), second].into(), names_classes: true, ..reporter };
        lock(&reporter.classes[1].control).half_open = 7;
        let report = reporter.report();
        assert_eq!(report.handshakes.half_open, 0, "of the first class");
        let of_class = |name: &str| (report.classes[name].class_number, report.classes[name].handshakes.half_open);
        assert_eq!(["S", "M"].map(of_class), [(Class::S as u8, 0), (Class::M as u8, 7)]);
    }

    #[test]
    fn report_counts_kernel_drops() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        sys::size_receive_buffer(&socket, 4096).unwrap();
        let sockets = vec![DropCounter::new(socket.try_clone().unwrap())];
        let reporter = reporter_of(ClassReporter { sockets, ..idle_class() });
        assert_eq!(reporter.report().kernel_drops, 0);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        let got = std::iter::from_fn(|| socket.recv(&mut [0; 1000]).ok()).count() as u64;
        assert_eq!(reporter.report().kernel_drops, 100 - got);
        assert!(got < 100);
    }
}
