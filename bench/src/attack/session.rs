//! One recorded run: nodes, access links, users and a capture, from the start of all to a record.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use attack::active::Plan;
use attack::{Record, Truth};
use dataplane::per_direction::PerDirection;
use eddy_node::report::NodeReport;

use super::capture::{Capture, Captured};
use super::facts::{Delay, Facts, MeterSample, PacedFacts, cpu, dropped, entries_cpu, jitter, off_grid};
use super::impairment::Impairments;
use super::network::{Network, Recorded, resident};
use super::places::{Tap, Wire};
use super::plant::{self, Leak, Plant, Speakers};
use super::profile::{self, FRAME_LEN, OWN_PACED_LEN, Traffic, WARM_UP};
use super::record::{Entries, Recording};
use super::relay::{Begin, Relay};
use super::users::{self, wall};
use crate::load::plan::Queue;
use crate::load::source::{Nanos, Source, Sources, seeded};
use crate::results::histogram;

/// Between two readings of the meters.
const METER_EVERY: Duration = Duration::from_secs(1);
/// A record that lacks more of its datagrams is refused.
const CAPTURE_LOSS_MAX: f64 = 1e-3;

/// Settings of one run.
pub(super) struct Session<'a> {
    pub(super) entries: Entries,
    pub(super) class: Recorded,
    pub(super) mixes: usize,
    pub(super) traffic: &'a Traffic,
    pub(super) length: Duration,
    pub(super) seed: u64,
    pub(super) impairments: Impairments,
    /// Of an active adversary.
    pub(super) plan: Option<Plan>,
    pub(super) tap: Tap,
    /// A leak that is planted.
    pub(super) leak: Option<Leak>,
    /// Entries that stop now and then. Under a virtual clock only.
    pub(super) stalls: Vec<usize>,
    /// The record also has what a corrupt exit sees. Under a virtual clock only.
    pub(super) corrupt_exit: bool,
}

pub(super) struct Run {
    pub(super) record: Record,
    pub(super) truth: Truth,
    /// Mean time that a datagram of the adversary's own waited for its cell.
    pub(super) wait_ms: Option<f64>,
    pub(super) facts: Facts,
}

/// Progress of a run.
pub(super) enum Stage {
    /// Users whose entries are ready.
    Starting(usize),
    Recording(Duration),
    Ending,
}

impl Session<'_> {
    /// Runs it.
    ///
    /// # Errors
    /// Something does not start, the user interrupts, or the capture lost too much.
    pub(super) fn run(&self, interrupted: &AtomicBool, mut progress: impl FnMut(Stage) + Send) -> anyhow::Result<Run> {
        let started = Instant::now();
        let own_len = if let Recorded::Paced(_) = self.class { OWN_PACED_LEN } else { FRAME_LEN };
        let (truth, sources) = profile::draw(self.traffic, self.entries.rows, own_len, self.seed);
        let mut flows = truth.0.clone();
        // The adversary's own user.
        flows.push(self.entries.rows);

        let network = Network::start(self.mixes, &self.class)?;
        let begin = Begin::default();
        let links = self.entries.count();
        let speakers = plant::nobody(links);
        let planted = self.plant(&flows, &speakers);
        let relay = Relay::start(links, &self.impairments, (self.plan.clone(), planted), begin.clone(), self.seed)?;
        let start = users::Start {
            chain: &network.chain,
            class: &self.class,
            entries: self.entries,
            flows: &flows,
            speakers,
            interrupted,
        };
        let users = yielding(|| start.run(|ready| progress(Stage::Starting(ready))))?;
        let capture = Capture::start()?;

        let (before, cpu_before) = (network.reports()?, (cpu(), entries_cpu()));
        let queues = self.queues(sources);
        let (origin, stop) = (Instant::now(), AtomicBool::new(false));
        let (traffic, begin_wall, meter) = std::thread::scope(|scope| {
            let apps = std::thread::Builder::new().name("apps".into());
            let apps = apps.spawn_scoped(scope, || users::play(&users, queues, origin, &stop))?;
            std::thread::sleep(WARM_UP.saturating_sub(origin.elapsed()));
            let (_, begin_wall) = (begin.set(Instant::now()), wall());
            let begun = Instant::now();
            let mut meter = Vec::<MeterSample>::new();
            while begun.elapsed() < self.length && !interrupted.load(Ordering::Relaxed) && !apps.is_finished() {
                progress(Stage::Recording(begun.elapsed()));
                if begun.elapsed() > METER_EVERY * (meter.len() as u32 + 1) {
                    // A node that does not answer now shows in the reports at the end.
                    meter.extend(network.reports().ok().map(|reports| MeterSample::new(begun.elapsed(), &reports)));
                }
                std::thread::sleep((self.length - begun.elapsed().min(self.length)).min(Duration::from_millis(100)));
            }
            stop.store(true, Ordering::Relaxed);
            let traffic = apps.join().map_err(|_| anyhow!("the thread of the applications panicked"))??;
            anyhow::Ok((traffic, begin_wall, meter))
        })?;
        ensure!(!interrupted.load(Ordering::Relaxed), "interrupted");

        progress(Stage::Ending);
        let took = origin.elapsed().as_secs_f64();
        let (captured, capture_lost) = capture.finish()?;
        let (after, cpu_after) = (network.reports()?, (cpu(), entries_cpu()));
        let of_entries = users.reports();
        let hops: Vec<&NodeReport> = after.iter().map(|report| self.class.of(report)).collect();
        let entries: Vec<&NodeReport> = of_entries.iter().map(|report| self.class.of(report)).collect();
        let paced = match self.class {
            Recorded::Free { .. } => None,
            Recorded::Paced(_) => Some(PacedFacts::new(&entries, hops.iter().chain(&entries).copied())),
        };
        let nodes_cpu = |reports: &[NodeReport]| reports.iter().map(|report| report.cpu_s).sum::<f64>();
        let facts = Facts {
            sent: [traffic.sent.forward, traffic.sent.backward],
            arrived: [traffic.arrived.forward, traffic.arrived.backward],
            delays: Delay::of_both(&traffic.delays),
            off_grid_ms: self.off_grid(&captured).map(|deviation| deviation / 1e6),
            entry_jitter_ms: self.entry_jitter(&captured),
            dropped: match &paced {
                Some(paced) => paced.dropped(),
                None => after.iter().chain(&of_entries).map(dropped).sum(),
            },
            ledgers_closed: hops.iter().all(|report| report.ledger.closed()),
            captured: captured.len() as u64,
            capture_lost,
            cores_here: (cpu_after.0 - cpu_before.0).as_secs_f64() / took,
            cores_entries: (cpu_after.1 - cpu_before.1).as_secs_f64() / took,
            paced,
            cores_nodes: (nodes_cpu(&after) - nodes_cpu(&before)) / took,
            memory_here: resident("self"),
            memory_nodes: network.resident(),
            late_ms: traffic.late.as_secs_f64() * 1e3,
            virtual_clock: None,
            start_s: (origin + WARM_UP - started).as_secs_f64(),
            meter,
        };
        users.end()?;
        relay.finish()?;
        let share = facts.capture_lost as f64 / facts.captured.max(1) as f64;
        ensure!(
            share <= CAPTURE_LOSS_MAX,
            "the capture lost {capture_lost} datagrams, more than {} % of {}: use fewer --users, or allow larger receive \
             buffers with `sudo sysctl -w net.core.rmem_max=67108864`",
            100.0 * CAPTURE_LOSS_MAX,
            captured.len()
        );

        let recording = Recording {
            captured: &captured,
            begin: begin_wall,
            length: self.length.as_nanos() as u64,
            class: &self.class,
            mixes: self.mixes,
            tap: self.tap,
            entries: self.entries,
            probe: &traffic.probe,
            has_contents: false,
        };
        let (record, wait_ms) = recording.record();
        Ok(Run { record, truth, wait_ms, facts })
    }

    /// Standard deviation of what leaves the exit from the grid of rounds, in ns.
    fn off_grid(&self, captured: &[Captured]) -> Option<f64> {
        let Recorded::Paced(terms) = &self.class else { return None };
        let leaves = |seen: &&Captured| matches!(Wire::of(seen.port, seen.to_port), Some((Wire::Flow(_), true)));
        let times: Vec<u64> = captured.iter().filter(leaves).map(|seen| seen.at).collect();
        off_grid(&times, u64::from(terms.period_ms) * 1_000_000).filter(|_| !self.entries.meetings)
    }

    /// The jitter of all entries' rounds where they leave: p50 and p99, in ms.
    fn entry_jitter(&self, captured: &[Captured]) -> Option<[f64; 2]> {
        let Recorded::Paced(terms) = &self.class else { return None };
        let mut times = vec![Vec::new(); self.entries.count()];
        for seen in captured {
            if let Some((Wire::Access(Tap::User, entry), true)) = Wire::of(seen.port, seen.to_port) {
                times[entry].push(seen.at);
            }
        }
        let mut all = histogram();
        let period = u64::from(terms.period_ms) * 1_000_000;
        times.iter().flat_map(|times| jitter(times, period)).for_each(|off| all.saturating_record(off));
        Some([0.5, 0.99].map(|quantile| all.value_at_quantile(quantile) as f64 / 1e6))
    }

    /// The leak that is planted, if one is.
    pub(super) fn plant(&self, flows: &[usize], speakers: &Speakers) -> Option<Plant> {
        let Recorded::Paced(terms) = &self.class else { return None };
        let mut partners = vec![None; self.entries.count()];
        for (user, &flow) in flows.iter().enumerate().filter(|_| self.entries.meetings) {
            let (own, partner) = (self.entries.user(user), self.entries.partner(flow));
            (partners[own], partners[partner]) = (Some(partner), Some(own));
        }
        // Users draw from stream 0 of the same seed, and links from stream 1.
        let mut rng = seeded(self.seed);
        rng.set_stream(4);
        let leak = self.leak?;
        Some(Plant::new(leak, (terms, self.mixes + 1), partners, speakers.clone(), rng))
    }

    /// What all users and destinations send.
    pub(super) fn queues(&self, sources: Vec<Sources>) -> PerDirection<Queue> {
        let limit = (WARM_UP + self.length + Duration::from_secs(1)).as_nanos() as Nanos;
        let mut all = PerDirection::from_fn(|_| Vec::<Option<Box<dyn Source>>>::new());
        for flow in sources {
            all.forward.push(flow.forward);
            all.backward.push(flow.backward);
        }
        PerDirection { forward: Queue::new(all.forward, limit), backward: Queue::new(all.backward, limit) }
    }
}

/// Runs `start` so that the threads that it starts yield to those of the nodes, which would have a host of their own.
fn yielding<R: Send>(start: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            // It fails only where a limit forbids it; the processor is shared evenly then.
            let _ = rustix::process::nice(10);
            start()
        });
        started.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
