//! A run: one thread sends what is due, one is the destination, one receives at the clients.
//!
//! Open loop: a datagram is sent when it is due, whatever happened to those before it, and its latency counts from
//! the time at which it was due. So a sender that falls behind, or a path that stalls it, shows as latency and not as
//! a lower rate (no coordinated omission).
//!
//! ```text
//! open       opens the flows     sender     sends one direction     receiver     destination and clients
//! ```

mod open;
mod receiver;
mod sender;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use dataplane::per_direction::PerDirection;
use dataplane::sys;
use hdrhistogram::Histogram;
use wire::cell::Direction::{self, Backward, Forward};

use self::receiver::Destination;
use self::sender::Sender;
use super::header::{self, Headers};
use super::plan::Plan;
use super::record::{Recorder, Sent, StreamName};
use crate::results::{Second, Spread, Stream};
use crate::udp;

/// Receive buffers of the destination, which receives everything, and of each client.
const SINK_BUFFER: usize = 32 << 20;
const CLIENT_BUFFER: usize = 1 << 20;
/// Shortest sleep of the sender: datagrams that become due meanwhile are sent together.
const SLEEP_MIN: Duration = Duration::from_micros(20);
/// Longest wait for anything, so that the end of the run is noticed.
const LOOK: Duration = Duration::from_millis(20);
/// The end of a run waits this long for the next datagram.
const QUIET_AFTER: Duration = Duration::from_secs(2);

/// Addresses of a run.
pub(crate) struct Target<'a> {
    /// A forward of an entry, or the sink itself.
    pub(crate) to: SocketAddr,
    /// Destination of the forward.
    pub(crate) sink: &'a UdpSocket,
    /// Longest delay of a datagram by the mixes, on top of [`QUIET_AFTER`].
    pub(crate) delay: Duration,
}

/// State of a run, for a progress line.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) elapsed: Duration,
    /// Datagrams sent, both directions.
    pub(crate) sent: u64,
    /// Datagrams that arrived, both directions, without answers.
    pub(crate) arrived: u64,
    /// The last whole second of the forward direction.
    pub(crate) second: Option<Second>,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Forward streams, then backward streams.
    pub(crate) streams: Vec<Stream>,
    /// Both directions together.
    pub(crate) series: Vec<Second>,
    /// From the first datagram to the end of sending.
    pub(crate) took: Duration,
    /// Datagrams that the kernel dropped at the destination and at the clients: the generator's own loss.
    pub(crate) kernel_drops: u64,
    /// A user or a signal ended the run early.
    pub(crate) interrupted: bool,
}

impl Outcome {
    /// The sum over all streams.
    pub(crate) fn sum(&self, of: impl Fn(&Stream) -> u64) -> u64 {
        self.streams.iter().map(of).sum()
    }
}

/// State that the threads share.
struct Shared {
    headers: Headers,
    began: Instant,
    sent: PerDirection<AtomicU64>,
    arrived: PerDirection<AtomicU64>,
    answers: AtomicU64,
    second: Mutex<Option<Second>>,
    /// Ends sending.
    stop: AtomicBool,
    /// Ends receiving.
    end: AtomicBool,
}

impl Shared {
    fn new() -> Shared {
        let mut run = [0];
        // The number only distinguishes runs, so any value will do if the system has no randomness.
        let _ = getrandom::fill(&mut run);
        Shared {
            headers: Headers::new(run[0]),
            began: Instant::now(),
            sent: Default::default(),
            arrived: Default::default(),
            answers: AtomicU64::new(0),
            second: Mutex::new(None),
            stop: AtomicBool::new(false),
            end: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn second(&self) -> std::sync::MutexGuard<'_, Option<Second>> {
        self.second.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The group of each flow, and the number of groups. Each direction has one stream for each group.
struct Flows {
    groups: Vec<usize>,
    streams: usize,
}

impl Flows {
    fn recorder(&self) -> Recorder {
        Recorder::new(self.streams, self.groups.iter().copied())
    }
}

/// Results of the threads.
struct Records {
    sent: Sent,
    /// Of the destination: what arrived, and what it sent.
    destination: (Recorder, Sent),
    /// Of the clients: what arrived, and round trips of each group.
    clients: (Recorder, Vec<Histogram<u64>>),
}

/// Runs a plan. `look` is called several times a second.
///
/// # Errors
/// Sockets or threads cannot be created, or flows do not open.
pub(crate) fn run(
    mut plan: Plan,
    target: &Target<'_>,
    interrupted: &AtomicBool,
    look: impl FnMut(Progress),
) -> anyhow::Result<Outcome> {
    let clients = clients(plan.flows.len(), target.to)?;
    udp::prepare(target.sink, SINK_BUFFER)?;
    let mut shared = Shared::new();
    let peers = open::all(&clients, target, &shared.headers, interrupted)?;

    let kernel_drops =
        || -> u64 { clients.iter().chain([target.sink]).filter_map(|socket| sys::kernel_drops(socket).ok()).sum() };
    let dropped_before = kernel_drops();
    let flows = Flows { groups: plan.flows.iter().map(|flow| flow.group).collect(), streams: plan.groups.len() };
    let names = PerDirection::from_fn(|direction| plan.names(direction));
    let PerDirection { forward, backward } = PerDirection::from_fn(|direction| plan.queue(direction));

    shared.began = Instant::now();
    let (shared, flows, clients) = (&shared, &flows, &clients[..]);
    let (ending, records) = thread::scope(|scope| -> anyhow::Result<(Ending, Records)> {
        let sender = spawn(scope, "sender", move || {
            sleep_precisely();
            Sender::new(shared, forward, Forward, flows).run(clients, target.to)
        })?;
        let destination = spawn(scope, "destination", move || {
            sleep_precisely();
            let sender = Sender::new(shared, backward, Backward, flows);
            let (recorder, answers) = (flows.recorder(), plan.answers);
            Destination { shared, sink: target.sink, recorder, sender, peers, answers }.run()
        })?;
        let receiver = spawn(scope, "clients", move || receiver::clients(shared, clients, flows))?;

        let watch = Watch { shared, time: plan.time, answers: plan.answers, delay: target.delay, interrupted };
        let has_died = || destination.is_finished() || receiver.is_finished();
        let ending = watch.run(&|| sender.is_finished(), &has_died, look);
        shared.stop.store(true, Ordering::Release);
        shared.end.store(true, Ordering::Release);
        let records = Records { sent: join(sender)?, destination: join(destination)??, clients: join(receiver)?? };
        Ok((ending.context("a thread of the generator ended early")?, records))
    })?;

    let (streams, series) = combine(records, &names, plan.answers);
    Ok(Outcome {
        streams,
        series,
        took: ending.took,
        kernel_drops: kernel_drops().saturating_sub(dropped_before),
        interrupted: ending.interrupted,
    })
}

/// A socket for each flow.
fn clients(count: usize, to: SocketAddr) -> anyhow::Result<Vec<UdpSocket>> {
    ensure!(count > 0, "a load needs at least one flow");
    ensure!(count < header::FLOWS_MAX, "{count} flows are too many: at most {}", header::FLOWS_MAX - 1);
    let host: IpAddr = match to.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = |_| {
        let socket = UdpSocket::bind((host, 0))?;
        udp::prepare(&socket, CLIENT_BUFFER)?;
        Ok(socket)
    };
    (0..count)
        .map(client)
        .collect::<io::Result<_>>()
        .with_context(|| format!("cannot create {count} client sockets: raise `ulimit -n`, or use fewer flows"))
}

/// Lets the calling thread sleep for as long as it asks, without the kernel's default slack of 50 us.
fn sleep_precisely() {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    body: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    thread::Builder::new().name(name.into()).spawn_scoped(scope, body)
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the generator panicked"))
}

/// The end of a run.
struct Ending {
    took: Duration,
    interrupted: bool,
}

/// Watches a run until everything has arrived, or nothing more arrives.
struct Watch<'a> {
    shared: &'a Shared,
    time: Duration,
    answers: bool,
    delay: Duration,
    interrupted: &'a AtomicBool,
}

impl Watch<'_> {
    /// `None` if a receiving thread has died.
    fn run(
        &self,
        all_sent: &dyn Fn() -> bool,
        has_died: &dyn Fn() -> bool,
        mut look: impl FnMut(Progress),
    ) -> Option<Ending> {
        let shared = self.shared;
        let load = |counts: &PerDirection<AtomicU64>| {
            PerDirection::from_fn(|direction: Direction| counts[direction].load(Ordering::Acquire))
        };
        let mut ending = Ending { took: self.time, interrupted: false };
        let (mut last_seen, mut quiet_since) = (0, Instant::now());
        loop {
            thread::sleep(LOOK);
            let elapsed = shared.began.elapsed();
            let sending_done = all_sent() && elapsed >= ending.took;
            let (sent, arrived) = (load(&shared.sent), load(&shared.arrived));
            let answers = shared.answers.load(Ordering::Acquire);
            let second = *shared.second();
            let all_arrived = arrived.forward + arrived.backward;
            look(Progress { elapsed, sent: sent.forward + sent.backward, arrived: all_arrived, second });

            if self.interrupted.load(Ordering::Relaxed) && !ending.interrupted {
                ending = Ending { took: elapsed.min(self.time), interrupted: true };
                shared.stop.store(true, Ordering::Release);
            }
            if has_died() {
                return None;
            }
            let seen = all_arrived + answers;
            if seen != last_seen || !sending_done {
                (last_seen, quiet_since) = (seen, Instant::now());
            }
            let everything = arrived == sent && (!self.answers || answers >= arrived.forward);
            if sending_done && (everything || quiet_since.elapsed() > QUIET_AFTER + self.delay) {
                return Some(ending);
            }
        }
    }
}

/// The streams of both directions, and their seconds together.
fn combine(records: Records, names: &PerDirection<Vec<StreamName>>, answers: bool) -> (Vec<Stream>, Vec<Second>) {
    let Records { sent, destination: (at_destination, sent_back), clients: (at_clients, trips) } = records;
    let (mut forward, mut series) = at_destination.finish(&sent, &names.forward);
    if answers {
        for (stream, trips) in forward.iter_mut().zip(&trips) {
            stream.round_trip = Some(Spread::of_times(trips));
        }
    }
    let (backward, seconds_back) = at_clients.finish(&sent_back, &names.backward);
    let streams = forward.into_iter().chain(backward).filter(|stream| stream.sent + stream.refused > 0).collect();
    add(&mut series, &seconds_back);
    (streams, series)
}

/// Adds the seconds of the other direction; latencies are those of the slower direction.
fn add(series: &mut Vec<Second>, other: &[Second]) {
    series.resize(series.len().max(other.len()), Second::default());
    for (sum, second) in series.iter_mut().zip(other) {
        sum.sent += second.sent;
        sum.delivered += second.delivered;
        sum.bytes += second.bytes;
        sum.p50_us = sum.p50_us.max(second.p50_us);
        sum.p99_us = sum.p99_us.max(second.p99_us);
        sum.max_us = sum.max_us.max(second.max_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::even::{Arrivals, Even, Lengths};

    fn direct(plan: Plan) -> Outcome {
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = sink.local_addr().unwrap();
        let target = Target { to, sink: &sink, delay: Duration::ZERO };
        run(plan, &target, &AtomicBool::new(false), |_| {}).unwrap()
    }

    #[test]
    fn direct_load_arrives_once_in_order_with_answers() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson, Arrivals::Burst(50)] {
            let even = Even { flows: 7, rate: 4000.0, arrivals, lengths: "4-1200".parse::<Lengths>().unwrap() };
            let outcome = direct(Plan::even(&even, Duration::from_millis(500), true, 1));
            let [stream] = &outcome.streams[..] else { panic!("{outcome:?}") };
            assert_eq!((stream.lost, stream.reordered, stream.duplicated, stream.refused), (0, 0, 0, 0), "{arrivals}");
            assert!(stream.sent > 1000 && stream.delivered == stream.sent, "{stream:?}");
            assert_eq!(stream.round_trip.as_ref().map(|trips| trips.count), Some(stream.sent));
            assert_eq!(outcome.series.iter().map(|second| second.delivered).sum::<u64>(), stream.sent);
        }
    }

    #[test]
    fn profiles_send_in_both_directions() {
        let profiles = ["voip:5", "opus:2", "game:3", "video:1", "bulk:1"].map(|text| text.parse().unwrap());
        let outcome = direct(Plan::profiles(&profiles, Duration::from_secs(1), false, 3));
        let named = |profile: &str, direction: &str| {
            let found = outcome.streams.iter().find(|s| s.profile == profile && s.direction == direction);
            found.map(|stream| (stream.sent, stream.lost))
        };
        for (profile, direction) in
            [("game", "forward"), ("game", "backward"), ("video", "forward"), ("bulk", "forward")]
        {
            assert!(matches!(named(profile, direction), Some((1.., 0))), "{profile} {direction}: {outcome:?}");
        }
        for stream in &outcome.streams {
            assert_eq!(stream.mos.is_some(), ["voip", "opus"].contains(&stream.profile.as_str()), "{stream:?}");
        }
        assert!(named("video", "backward").is_none());
    }

    #[test]
    fn interrupted_run_reports_what_arrived() {
        let even = Even { flows: 2, rate: 1000.0, arrivals: Arrivals::Constant, lengths: Lengths::fixed(100) };
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = Target { to: sink.local_addr().unwrap(), sink: &sink, delay: Duration::ZERO };
        let stop = AtomicBool::new(false);
        let plan = Plan::even(&even, Duration::from_secs(3600), false, 1);
        let outcome =
            run(plan, &target, &stop, |progress| stop.store(progress.arrived > 50, Ordering::Relaxed)).unwrap();
        assert!(outcome.interrupted && outcome.took < Duration::from_secs(3600));
        assert_eq!(outcome.sum(|stream| stream.lost), 0);
        assert!(outcome.sum(|stream| stream.delivered) > 50);
    }
}
