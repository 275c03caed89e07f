//! The report of a running node, from what its threads share.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use control::Counters;
use control::trust::TrustStatus;
use dataplane::latency::{self, Profile};
use dataplane::ledger::{Ledger, Tally};
use dataplane::runner::{Clock, Turns};
use rustix::time::{ClockId, clock_gettime};
use wire::cell::Class;

use crate::config::NodeRole;
use crate::report::{MeterReport, NodeReport};
use crate::runtime::door::DoorCounts;
use crate::runtime::drop_counter::DropCounter;
use crate::runtime::listeners::Listeners;
use crate::runtime::readiness::Readiness;

/// Control's part of the report, updated at each of its turns.
#[derive(Clone, Default)]
pub(super) struct ControlState {
    pub(super) counters: Counters,
    pub(super) half_open: usize,
    pub(super) trust: TrustStatus,
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
    /// One for each worker.
    pub(super) ledgers: Vec<Arc<Mutex<Ledger>>>,
    pub(super) profiles: Vec<latency::Shared>,
    pub(super) control: Arc<Mutex<ControlState>>,
    /// Duplicates of the link sockets, for the kernel's drop counters.
    pub(super) sockets: Arc<Vec<DropCounter>>,
    /// Of handshakes that do not pass a worker.
    pub(super) door: Option<Arc<DoorCounts>>,
    /// Only at an entry.
    pub(super) listeners: Option<Listeners>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) turns: Vec<Arc<Turns>>,
    pub(super) clock: Clock,
    /// Only at a mix: the class of its cells, and the floor of its meter.
    pub(super) meter: Option<(Class, u32)>,
}

impl Reporter {
    /// The report now.
    pub(super) fn report(&self) -> NodeReport {
        let profile = self.profile();
        let control = lock(&self.control).clone();
        let of_workers = self.turns.iter().map(|turns| turns.read());
        let (turns, sleeps) = of_workers.fold((0, 0), |(turns, sleeps), (t, s)| (turns + t, sleeps + s));
        NodeReport {
            turns,
            sleeps,
            kernel_drops: self.kernel_drops(),
            uptime_s: self.clock.uptime().as_secs_f64(),
            cpu_s: Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).map_or(0.0, |cpu| cpu.as_secs_f64()),
            engine: wire::gcm::engine().name().to_owned(),
            meter: self.meter(&profile),
            ..NodeReport::new(self.role, self.position, &self.ledger(), &profile)
        }
        .with_control(&control.counters, control.half_open)
        .with_flood(control.flood_per_s)
        .with_trust(&self.chain, &control.trust)
    }

    fn kernel_drops(&self) -> u64 {
        self.sockets.iter().map(DropCounter::read).sum::<u64>()
            + self.listeners.as_ref().map_or(0, Listeners::kernel_drops)
    }

    /// Looks at all counters of the kernel, so that none wraps around unseen.
    pub(super) fn read_drops(&self) {
        self.kernel_drops();
        if let Some(door) = &self.door {
            door.add_to(&mut Tally::default());
        }
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

    /// The anonymity meter of a mix.
    pub(super) fn meter(&self, profile: &Profile) -> Option<MeterReport> {
        let (class, floor) = self.meter?;
        Some(MeterReport::new(class, floor, &profile.meters, self.clock.now()))
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

    use super::*;

    /// A reporter of a node without threads.
    pub(in crate::runtime) fn idle_reporter() -> Reporter {
        Reporter {
            role: NodeRole::Mix,
            position: 1,
            chain: [0; 32],
            ledgers: Vec::new(),
            profiles: Vec::new(),
            control: Arc::default(),
            sockets: Arc::default(),
            door: None,
            listeners: None,
            readiness: Arc::default(),
            turns: Vec::new(),
            clock: Clock::start(),
            meter: None,
        }
    }

    #[test]
    fn report_counts_kernel_drops() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        sys::size_receive_buffer(&socket, 4096).unwrap();
        let counters = vec![DropCounter::new(socket.try_clone().unwrap())];
        let reporter = Reporter { sockets: Arc::new(counters), ..idle_reporter() };
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
