//! A run: one thread sends what is due, one is the destination, one gets what comes back.
//!
//! Open loop: a datagram leaves when it is due, whatever became of those before it, and is timed from when it was
//! *meant* to leave. So a sender that falls behind, or a path that stalls it, shows up as latency and not as fewer
//! datagrams.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use dataplane::runner::Poller;
use dataplane::sys::{self, GSO_BYTES_MAX, GSO_SEGMENTS_MAX, Message};
use hdrhistogram::Histogram;

use super::header::{self, Header, Headers, Kind};
use super::plan::{Due, Plan, Queue};
use super::profile::fresh_number;
use super::record::{Arrival, Recorder, Sent};
use crate::results::{Second, Spread, Stream, histogram};

/// Receive buffers: of the destination, which gets everything, and of each client.
const SINK_BUFFER: usize = 32 << 20;
const CLIENT_BUFFER: usize = 1 << 20;
/// Shortest sleep of the sender: what becomes due meanwhile leaves together.
const SLEEP_MIN: Duration = Duration::from_micros(20);
/// Longest wait for anything, so that an end is noticed.
const LOOK: Duration = Duration::from_millis(20);
/// When nothing has come for so long after the last datagram was sent, nothing more will.
const PATIENCE: Duration = Duration::from_secs(2);
/// Messages of a receive call, each of up to 64 kB.
const MESSAGES: usize = 16;
/// What is sent between two looks at what came.
const BURSTS_AT_ONCE: usize = 64;
/// How long flows may take to open.
const OPENING: Duration = Duration::from_secs(10);
/// Flows that are opened at once: an exit takes 64 of a channel.
const OPENED_AT_ONCE: usize = 32;

/// Where to, and where it comes out.
pub struct Target<'a> {
    /// A forward of an entry, or the sink itself.
    pub to: SocketAddr,
    /// Where the forward leads.
    pub sink: &'a UdpSocket,
    /// What the path may hold a datagram back, beside the two seconds that anything may take.
    pub delay: Duration,
}

/// How a run stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// How long it has run.
    pub elapsed: Duration,
    /// Sent, both ways.
    pub sent: u64,
    /// Arrived, both ways, without answers.
    pub arrived: u64,
    /// The last whole second towards the destination.
    pub second: Option<Second>,
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Kind by kind, forward and then backward.
    pub streams: Vec<Stream>,
    /// Both ways together.
    pub series: Vec<Second>,
    /// From the first datagram to the end of sending.
    pub took: Duration,
    /// Dropped by the kernel at the destination and at the clients: the generator's own loss.
    pub kernel_drops: u64,
    /// Somebody ended it before its time.
    pub interrupted: bool,
    /// Sent beforehand to open the flows; in no stream.
    pub hellos: u64,
}

impl Outcome {
    /// The sum over all streams.
    pub fn sum(&self, of: impl Fn(&Stream) -> u64) -> u64 {
        self.streams.iter().map(of).sum()
    }
}

/// What the threads share.
struct Shared {
    headers: Headers,
    began: Instant,
    sent: [AtomicU64; 2],
    arrived: [AtomicU64; 2],
    answers: AtomicU64,
    second: Mutex<Option<Second>>,
    /// Nothing more is sent.
    stop: AtomicBool,
    /// Nothing more is received.
    end: AtomicBool,
}

impl Shared {
    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

/// Runs a plan. `look` hears of it some times a second.
///
/// # Errors
/// Sockets or threads cannot be had, or flows do not open.
pub fn run(
    mut plan: Plan,
    target: &Target<'_>,
    interrupted: &AtomicBool,
    mut look: impl FnMut(Progress),
) -> anyhow::Result<Outcome> {
    ensure!(!plan.flows.is_empty(), "a load has at least one flow");
    ensure!(plan.flows.len() < header::FLOWS_MAX, "{} flows are more than fit a header", plan.flows.len());
    let host: IpAddr = match target.to.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let count = plan.flows.len();
    let clients = (0..count)
        .map(|_| UdpSocket::bind((host, 0)).and_then(|socket| prepare(&socket, CLIENT_BUFFER).map(|()| socket)))
        .collect::<io::Result<Vec<_>>>()
        .with_context(|| format!("{count} client sockets: raise `ulimit -n`, or take fewer flows"))?;
    prepare(target.sink, SINK_BUFFER)?;
    let mut shared = Shared {
        headers: Headers::new(fresh_number()),
        began: Instant::now(),
        sent: Default::default(),
        arrived: Default::default(),
        answers: AtomicU64::new(0),
        second: Mutex::new(None),
        stop: AtomicBool::new(false),
        end: AtomicBool::new(false),
    };
    let (peers, hellos) = open(&clients, target, &shared, interrupted)?;
    let drops =
        || -> u64 { clients.iter().chain([target.sink]).filter_map(|socket| sys::kernel_drops(socket).ok()).sum() };
    let dropped_before = drops();
    let kinds: Vec<usize> = plan.flows.iter().map(|flow| flow.kind).collect();
    let names = [plan.names("forward"), plan.names("backward")];
    let [forward, backward] = [0, 1].map(|direction| plan.queue(direction));
    let (streams, time, answers) = (plan.kinds.len(), plan.time, plan.answers);
    shared.began = Instant::now();
    let shared = &shared;
    thread::scope(|scope| -> anyhow::Result<Outcome> {
        let (kinds, clients) = (&kinds, &clients[..]);
        let sender = thread::Builder::new().name("sender".into()).spawn_scoped(scope, move || {
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            let to = |_| target.to;
            let mut sender = Sender::new(shared, forward, 0, kinds, streams);
            while let Some(wait) = sender.turn(|flow| &clients[flow], to) {
                if !wait.is_zero() {
                    thread::sleep(wait.max(SLEEP_MIN).min(LOOK));
                }
            }
            sender.sent
        })?;
        let destination = thread::Builder::new().name("destination".into()).spawn_scoped(scope, move || {
            let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
            let recorder = Recorder::new(streams, kinds.iter().copied());
            let sender = Sender::new(shared, backward, 1, kinds, streams);
            Destination { shared, sink: target.sink, recorder, sender, peers, answers }.run()
        })?;
        let receiver = thread::Builder::new().name("clients".into()).spawn_scoped(scope, move || {
            let recorder = Recorder::new(streams, kinds.iter().copied());
            receive(shared, clients, recorder, streams, kinds)
        })?;
        let mut quiet = (0, Instant::now());
        let mut took = None;
        let mut was_interrupted = false;
        let died = loop {
            thread::sleep(LOOK);
            let load = |pair: &[AtomicU64; 2]| pair.each_ref().map(|count| count.load(Ordering::Acquire));
            let elapsed = shared.began.elapsed();
            let done = sender.is_finished() && elapsed >= time.min(took.unwrap_or(time));
            let (sent, arrived) = (load(&shared.sent), load(&shared.arrived));
            let back = shared.answers.load(Ordering::Acquire);
            let second = *shared.second.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            look(Progress { elapsed, sent: sent[0] + sent[1], arrived: arrived[0] + arrived[1], second });
            if interrupted.load(Ordering::Relaxed) && !was_interrupted {
                was_interrupted = true;
                took = Some(elapsed);
                shared.stop.store(true, Ordering::Release);
            }
            if destination.is_finished() || receiver.is_finished() {
                break true;
            }
            let seen = arrived[0] + arrived[1] + back;
            if seen != quiet.0 || !done {
                quiet = (seen, Instant::now());
            }
            let all = arrived == sent && (!answers || back >= arrived[0]);
            if done && (all || quiet.1.elapsed() > PATIENCE + target.delay) {
                break false;
            }
        };
        shared.stop.store(true, Ordering::Release);
        shared.end.store(true, Ordering::Release);
        let gone = |_| anyhow::anyhow!("a thread of the generator died");
        let sent = sender.join().map_err(gone)?;
        let (seen, sent_back) = destination.join().map_err(gone)??;
        let (came_back, trips) = receiver.join().map_err(gone)??;
        ensure!(!died, "a thread of the generator ended early");
        let [names_there, names_back] = names;
        let (mut there, seconds) = seen.finish(&sent, &names_there);
        if answers {
            there.iter_mut().zip(&trips).for_each(|(stream, trips)| stream.round_trip = Some(Spread::of_times(trips)));
        }
        let (back, seconds_back) = came_back.finish(&sent_back, &names_back);
        let streams = there.into_iter().chain(back).filter(|stream| stream.sent + stream.refused > 0).collect();
        Ok(Outcome {
            streams,
            series: add(seconds, &seconds_back),
            took: took.unwrap_or(time),
            kernel_drops: drops().saturating_sub(dropped_before),
            interrupted: was_interrupted,
            hellos,
        })
    })
}

/// Seconds of both directions together; latencies are the slower direction's.
fn add(mut one: Vec<Second>, other: &[Second]) -> Vec<Second> {
    one.resize(one.len().max(other.len()), Second::default());
    for (sum, second) in one.iter_mut().zip(other) {
        sum.sent += second.sent;
        sum.delivered += second.delivered;
        sum.bytes += second.bytes;
        sum.p50_us = sum.p50_us.max(second.p50_us);
        sum.p99_us = sum.p99_us.max(second.p99_us);
        sum.max_us = sum.max_us.max(second.max_us);
    }
    one
}

fn prepare(socket: &UdpSocket, buffer: usize) -> io::Result<()> {
    sys::size_receive_buffer(socket, buffer)?;
    sys::enable_gro(socket)?;
    socket.set_nonblocking(true)
}

/// Opens every flow, a few at a time, and learns where each comes out. Also how many datagrams that took.
fn open(
    clients: &[UdpSocket],
    target: &Target<'_>,
    shared: &Shared,
    interrupted: &AtomicBool,
) -> anyhow::Result<(Vec<SocketAddr>, u64)> {
    let mut hellos = 0;
    let mut peers: Vec<Option<SocketAddr>> = vec![None; clients.len()];
    let mut buffers = buffers();
    let poller = Poller::new()?;
    poller.add(target.sink.as_fd(), 0)?;
    let deadline = Instant::now() + OPENING + target.delay;
    // With errors reported, a port at which nobody listens says so at once.
    sys::report_errors(&clients[0], target.to.is_ipv6())?;
    let mut first = 0;
    while first < clients.len() {
        let some = first..clients.len().min(first + OPENED_AT_ONCE);
        for flow in some.clone().filter(|flow| peers[*flow].is_none()) {
            let mut bytes = [0; header::LEN];
            let hello = Header { kind: Kind::Hello, flow: flow as u32, number: 0, intended_ns: 0 };
            shared.headers.write(hello, &mut bytes);
            clients[flow]
                .send_to(&bytes, target.to)
                .with_context(|| format!("nothing can be sent to {}", target.to))?;
            hellos += 1;
        }
        let again = Instant::now() + Duration::from_millis(500) + target.delay;
        while peers[some.clone()].iter().any(Option::is_none) && Instant::now() < again {
            poller.wait(Some(LOOK), |_| {});
            if let Ok(Some(why)) = clients[0].take_error() {
                bail!("nobody listens at {}: {why}", target.to);
            }
            each_datagram(target.sink, &mut buffers, |bytes, from| {
                if let Some(Header { kind: Kind::Hello, flow, .. }) = shared.headers.read(bytes)
                    && let Some(peer) = peers.get_mut(flow as usize)
                {
                    *peer = Some(from);
                }
            });
        }
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted before any flow was open");
        }
        while peers.get(first).is_some_and(Option::is_some) {
            first += 1;
        }
        if Instant::now() > deadline {
            let opened = peers.iter().flatten().count();
            bail!(
                "{opened} of {} flows are open after {} s: does {} forward to {}, and does the exit allow that?",
                clients.len(),
                OPENING.as_secs(),
                target.to,
                target.sink.local_addr().map_or_else(|_| "the sink".into(), |sink| sink.to_string()),
            );
        }
    }
    Ok((peers.into_iter().flatten().collect(), hellos))
}

fn buffers() -> Vec<Vec<u8>> {
    vec![vec![0; 1 << 16]; MESSAGES]
}

/// Calls `each` with every datagram that waits, up to a call's worth. Whether there may be more.
fn each_datagram(socket: &UdpSocket, buffers: &mut [Vec<u8>], mut each: impl FnMut(&[u8], SocketAddr)) -> bool {
    let mut got = arrayvec::ArrayVec::<sys::Received, MESSAGES>::new();
    let whole = buffers.iter_mut().map(|buffer| &mut buffer[..]);
    let count = sys::recv(socket, whole, 1, |_, message| got.push(message)).unwrap_or(0);
    for (message, buffer) in got.iter().zip(buffers.iter()) {
        let bytes = &buffer[..message.len.min(buffer.len())];
        bytes.chunks(message.segment.unwrap_or(message.len).max(1)).for_each(|datagram| each(datagram, message.from));
    }
    count == MESSAGES
}

/// Sends one direction.
struct Sender<'a> {
    shared: &'a Shared,
    queue: Queue,
    direction: usize,
    kinds: &'a [usize],
    bytes: Vec<u8>,
    sent: Sent,
}

impl<'a> Sender<'a> {
    fn new(shared: &'a Shared, queue: Queue, direction: usize, kinds: &'a [usize], streams: usize) -> Self {
        let sent = Sent { numbers: vec![0; kinds.len()], seconds: Vec::new(), refused: vec![0; streams] };
        Sender { shared, queue, direction, kinds, bytes: vec![0x5a; 1 << 16], sent }
    }

    /// Sends what is due, or some of it. How long until the next is; nothing when there is none.
    fn turn<'s>(
        &mut self,
        socket: impl Fn(usize) -> &'s UdpSocket,
        to: impl Fn(usize) -> SocketAddr,
    ) -> Option<Duration> {
        for _ in 0..BURSTS_AT_ONCE {
            let due = self.queue.peek()?;
            let now = self.shared.now();
            if self.shared.stop.load(Ordering::Relaxed) {
                return None;
            }
            if due.at_ns > now {
                return Some(Duration::from_nanos(due.at_ns - now));
            }
            self.send_burst(now, due, socket(due.flow), to(due.flow));
        }
        Some(Duration::ZERO)
    }

    /// Sends a datagram that is due, and with it those of the same flow and length that are next.
    fn send_burst(&mut self, now: u64, first: Due, socket: &UdpSocket, to: SocketAddr) {
        let Due { flow, len, .. } = first;
        let kind = if self.direction == 0 { Kind::Forward } else { Kind::Backward };
        let most = GSO_SEGMENTS_MAX.min(GSO_BYTES_MAX / len).max(1);
        let mut times = arrayvec::ArrayVec::<u64, GSO_SEGMENTS_MAX>::new();
        while times.len() < most
            && self.queue.peek().is_some_and(|due| due.at_ns <= now && due.flow == flow && due.len == len)
        {
            let Some(due) = self.queue.pop() else { break };
            let number = self.sent.count(flow, due.at_ns);
            let header = Header { kind, flow: flow as u32, number, intended_ns: due.at_ns };
            self.shared.headers.write(header, &mut self.bytes[times.len() * len..][..len]);
            times.push(due.at_ns);
        }
        let pieces = times.len();
        // Counted before they leave: what arrives was sent.
        self.shared.sent[self.direction].fetch_add(pieces as u64, Ordering::Release);
        let segment = (pieces > 1).then_some(len as u16);
        let message = Message { to, pieces: 1, segment };
        if sys::send(socket, std::iter::once(message), std::iter::once(&self.bytes[..pieces * len])).is_err() {
            self.shared.sent[self.direction].fetch_sub(pieces as u64, Ordering::Release);
            times.iter().for_each(|at_ns| self.sent.refuse(flow, self.kinds[flow], *at_ns));
        }
    }
}

/// Counts what comes, answers it, and sends what it has to send itself.
struct Destination<'a> {
    shared: &'a Shared,
    sink: &'a UdpSocket,
    recorder: Recorder,
    sender: Sender<'a>,
    peers: Vec<SocketAddr>,
    answers: bool,
}

impl Destination<'_> {
    fn run(mut self) -> anyhow::Result<(Recorder, Sent)> {
        let Self { shared, sink, .. } = self;
        let poller = Poller::new()?;
        poller.add(sink.as_fd(), 0)?;
        let mut buffers = buffers();
        let mut told = 0;
        while !shared.end.load(Ordering::Acquire) {
            let more = self.receive(&mut buffers);
            let peers = &self.peers;
            let wait = self.sender.turn(|_| sink, |flow| peers[flow]).unwrap_or(LOOK);
            if !more && !wait.is_zero() {
                poller.wait(Some(wait.max(SLEEP_MIN).min(LOOK)), |_| {});
            }
            let now = shared.now();
            if now / 1_000_000_000 > told {
                told = now / 1_000_000_000;
                *shared.second.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                    self.recorder.last_second(now);
            }
        }
        Ok((self.recorder, self.sender.sent))
    }

    /// A call's worth. Whether there may be more.
    fn receive(&mut self, buffers: &mut [Vec<u8>]) -> bool {
        let (shared, sink) = (self.shared, self.sink);
        let Self { recorder, peers, answers, .. } = self;
        let mut got = arrayvec::ArrayVec::<sys::Received, MESSAGES>::new();
        let whole = buffers.iter_mut().map(|buffer| &mut buffer[..]);
        let count = sys::recv(sink, whole, 1, |_, message| got.push(message)).unwrap_or(0);
        let (now_ns, mut fresh) = (shared.now(), 0);
        for (message, buffer) in got.iter().zip(buffers.iter_mut()) {
            let bytes = &mut buffer[..message.len.min(1 << 16)];
            let step = message.segment.unwrap_or(message.len).max(1);
            let mut answer = *answers;
            for datagram in bytes.chunks_mut(step) {
                let Some(Header { kind: Kind::Forward, flow, number, intended_ns }) = shared.headers.read(datagram)
                else {
                    answer = false;
                    continue;
                };
                let flow = flow as usize;
                // An exit may give a flow another port in the middle of its life.
                if let Some(peer) = peers.get_mut(flow) {
                    *peer = message.from;
                }
                let arrival = Arrival { flow, number, intended_ns, now_ns, len: datagram.len() };
                fresh += u64::from(recorder.arrived(arrival));
                if answer {
                    Headers::answer(datagram);
                }
            }
            if answer {
                let segment = message.segment.filter(|segment| *segment < message.len).map(|segment| segment as u16);
                let back = Message { to: message.from, pieces: 1, segment };
                // What the kernel does not take is lost, and is missed at the client.
                let _ = sys::send(sink, std::iter::once(back), std::iter::once(&bytes[..]));
            }
        }
        shared.arrived[0].fetch_add(fresh, Ordering::Release);
        count == MESSAGES
    }
}

/// Counts what comes to the clients, and how long answers took, kind by kind.
fn receive(
    shared: &Shared,
    clients: &[UdpSocket],
    mut recorder: Recorder,
    streams: usize,
    kinds: &[usize],
) -> anyhow::Result<(Recorder, Vec<Histogram<u64>>)> {
    let poller = Poller::new()?;
    for (flow, client) in clients.iter().enumerate() {
        poller.add(client.as_fd(), flow as u64)?;
    }
    let mut trips: Vec<Histogram<u64>> = (0..streams).map(|_| histogram()).collect();
    let mut buffers = buffers();
    let mut ready = Vec::new();
    while !shared.end.load(Ordering::Acquire) {
        poller.wait(Some(LOOK), |flow| ready.push(flow as usize));
        for client in ready.drain(..) {
            let (mut fresh, mut answers) = (0, 0);
            while each_datagram(&clients[client], &mut buffers, |bytes, _| {
                let now_ns = shared.now();
                let Some(Header { kind, flow, number, intended_ns }) = shared.headers.read(bytes) else { return };
                let flow = flow as usize;
                // What comes to the wrong client has not arrived.
                if flow != client {
                    return;
                }
                match kind {
                    Kind::Backward => {
                        let arrival = Arrival { flow, number, intended_ns, now_ns, len: bytes.len() };
                        fresh += u64::from(recorder.arrived(arrival));
                    }
                    Kind::Answer => {
                        answers += 1;
                        trips[kinds[flow]].saturating_record(now_ns.saturating_sub(intended_ns).max(1));
                    }
                    Kind::Hello | Kind::Forward => {}
                }
            }) {}
            shared.arrived[1].fetch_add(fresh, Ordering::Release);
            shared.answers.fetch_add(answers, Ordering::Release);
        }
    }
    Ok((recorder, trips))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::plan::Even;
    use crate::load::profile::{Arrivals, Lengths};

    fn direct(plan: Plan) -> Outcome {
        let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = sink.local_addr().unwrap();
        let target = Target { to, sink: &sink, delay: Duration::ZERO };
        run(plan, &target, &AtomicBool::new(false), |_| {}).unwrap()
    }

    #[test]
    fn straight_to_the_sink_everything_arrives_once_in_order_and_is_answered() {
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
    fn profiles_go_both_ways() {
        let profiles = ["voip:5", "game:3", "video:1", "bulk:1"].map(|text| text.parse().unwrap());
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
        assert!(outcome.streams.iter().filter(|stream| stream.profile == "voip").all(|stream| stream.mos.is_some()));
        assert!(named("video", "backward").is_none());
    }

    #[test]
    fn an_interrupted_run_tells_what_it_has() {
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
