mod time;

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use wire::cell::CellKind;
use wire::frames::{Address, Frame, Writer, parse_paced};
use wire::gcm::{encipher_batch, open_batch, seal_batch};
use wire::kdf::Secret;
use wire::link::LinkContent;
use wire::paced::{PacedTerms, Report};
use wire::setup::Suite;

use super::*;
use crate::exit::policy::Policy;
use crate::exit::{Caps, Filtering, QueryId, limits::Limits};
use crate::paced::Control;
use crate::paced::peer::{BODY, Cell as Received, HOPS, Peer, data, terms};
use crate::punt::Punt;
use crate::socket::memory::{Datagram, MemApps, MemNet, MemPort};
use crate::sys::Waker;
use crate::{MILLI, SECOND};

/// Bytes of frames in a cell.
const P: usize = BODY - 16;
/// The number of a batch.
const BATCH: u64 = 350_000_000;
const SESSION: [u8; 16] = [0x5e; 16];

/// An exit, Mix m, and the internet. Its clock shows the end of the batch before [`BATCH`].
struct Bench {
    link: MemNet,
    net: MemNet,
    exit: Exit<MemPort, MemApps>,
    commands: rtrb::Producer<Command>,
    punts: rtrb::Consumer<Punt>,
    mix: Peer,
    times: Timetable,
    rng: ChaCha20Rng,
    now: Nanos,
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 7], port))
}

fn keys(channel: u8) -> ExitKeys {
    ExitKeys::new(&Secret::new([channel; 32]), &Secret::new([!channel; 32]))
}

fn open(flow: u16, to: SocketAddr) -> Frame<'static> {
    let mut token = [7; 16];
    token[..2].copy_from_slice(&flow.to_be_bytes());
    Frame::Open { flow, map: 1, token, to: Address::Ip(to) }
}

fn datagram(flow: u16, data: &[u8]) -> Frame<'_> {
    Frame::Dgram { flow, data }
}

/// The inner bytes of a cell with these frames.
fn inner(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut bytes = vec![0xee; P];
    let mut writer = Writer::new(&mut bytes);
    assert!(frames.iter().all(|frame| writer.put(frame)));
    writer.finish();
    bytes
}

/// Frames as they are encoded.
fn encoded(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut bytes = inner(frames);
    bytes.truncate(frames.iter().map(Frame::len).sum());
    bytes
}

impl Bench {
    fn new(repeat: bool) -> Bench {
        let (link, net, now) = (MemNet::default(), MemNet::default(), SECOND);
        let terms = PacedTerms { repeat, ..terms() };
        let times = terms.timetable(HOPS);
        let (commands, worker_commands) = rtrb::RingBuffer::new(4096);
        let (worker_punts, punts) = rtrb::RingBuffer::new(2048);
        let class =
            crate::paced::Settings { terms, suite: Suite::Hybrid, hops: HOPS, position: HOPS, hugepages: false };
        let up: SocketAddr = ([192, 0, 2, 1], 1).into();
        let port = link.port(up, class.lengths(Side::Up));
        let apps = MemApps::new(net.clone(), Vec::new(), [192, 0, 2, 1].into());
        let gateway = GatewaySettings {
            policy: Policy::new(vec!["198.51.100.0/24".parse().unwrap()], Vec::new(), Vec::new()),
            filtering: Filtering::default(),
            limits: Limits::default(),
            caps: Caps { flows_per_channel: 1024, sockets: 4096 },
            flow_idle: Duration::from_secs(300),
            max_age: Duration::from_millis(250),
        };
        let settings = Settings { class, gateway, queue_age: Duration::from_millis(60) };
        let sender = PuntSender::new(worker_punts, Arc::new(Waker::new().unwrap()));
        let clock = SteadyClock::new(now, times.begin(times.first(BATCH) - 20));
        let exit =
            Exit::new(settings, (port, apps), worker_commands, sender, ChaCha20Rng::seed_from_u64(1), clock, now);
        let mix = Peer::new(1, up, true);
        let rng = ChaCha20Rng::seed_from_u64(2);
        let mut bench = Bench { link, net, exit, commands, punts, mix, times, rng, now };
        bench.mix.link_commands().into_iter().for_each(|command| bench.command(command));
        bench.exit.turn(bench.now);
        // As if a cell had come on it.
        bench.exit.links.heard(bench.mix.link, bench.now);
        bench
    }

    fn command(&mut self, command: Command) {
        assert!(self.commands.push(command).is_ok());
    }

    /// Adds a channel to a batch. Its number on the link is 10 more.
    fn channel(&mut self, batch: u64, channel: u8, token: [u8; 32]) {
        let keys = ChannelKeys::Hop { forward: Secret::new([channel; 32]), backward: Secret::new([!channel; 32]) };
        let up = ChannelAt { link: None, number: u32::from(channel) + 10 };
        let token = Some(MeetingToken::new(token));
        self.command(Command::InstallChannel { batch, up, down: None, keys: Box::new(keys), token });
    }

    /// Channels that meet nobody, in [`BATCH`].
    fn channels(&mut self, channels: u8) {
        (0..channels).for_each(|channel| self.channel(BATCH, channel, [channel; 32]));
        self.release(Direction::Backward, self.times.first(BATCH) - 1);
        self.take();
    }

    fn first(&self) -> u64 {
        self.times.first(BATCH)
    }

    /// Sends a cell of a channel with this body.
    fn body(&mut self, channel: u8, round: u64, sub: u8, body: &[u8]) {
        self.link.send(self.mix.data(u32::from(channel) + 10, round, sub, body));
    }

    /// The same with these inner bytes.
    fn inner(&mut self, channel: u8, round: u64, sub: u8, inner: &[u8]) {
        let (keys, mut body) = (keys(channel), [inner, &[0; 16]].concat());
        let place = wire::paced::RoundSub { round, sub };
        seal_batch(&mut [keys.data_job(Direction::Forward, place, &mut body)]);
        self.body(channel, round, sub, &body);
    }

    /// The same with these frames.
    fn frames(&mut self, channel: u8, round: u64, sub: u8, frames: &[Frame<'_>]) {
        self.inner(channel, round, sub, &inner(frames));
    }

    fn random(&mut self) -> Vec<u8> {
        let mut body = vec![0; BODY];
        self.rng.fill_bytes(&mut body);
        body
    }

    /// Lets the exit run until this time of the class's clock. Its ledger must close in every turn.
    fn run_until(&mut self, time: Nanos) {
        loop {
            let wake = self.exit.turn(self.now);
            self.exit.record_latency(self.now);
            assert!(self.exit.published.lock().unwrap().closed());
            if self.exit.clock.at(self.now) >= time {
                return;
            }
            self.now = wake.min(self.exit.clock.when(time));
        }
    }

    /// Runs until a round has left in a direction.
    fn release(&mut self, direction: Direction, round: u64) {
        self.run_until(self.exit.schedules[direction].due_at(round));
    }

    /// Cells that have come to Mix m.
    fn take(&mut self) -> Vec<Received> {
        let running = self.exit.released;
        std::iter::from_fn(|| self.link.receive(self.mix.at))
            .map(|datagram| self.mix.read(&datagram.bytes, running))
            .collect()
    }

    /// What the cells among these say that are of a channel. They must be data bodies.
    fn heard(channel: u8, cells: &[Received]) -> Vec<String> {
        let keys = keys(channel);
        let mut own: Vec<Received> =
            data(cells).filter(|cell| cell.header.channel == u32::from(channel) + 10).cloned().collect();
        own.sort_unstable_by_key(|cell| (cell.header.seq, cell.header.sub));
        let mut heard = Vec::new();
        for Received { header, mut body } in own {
            let mut jobs = [keys.data_job(Direction::Backward, header.round_sub(), &mut body)];
            open_batch(&mut jobs);
            assert!(jobs[0].ok, "a data body");
            heard.extend(parse_paced(&body[..P], Direction::Backward, false).unwrap().map(|frame| match frame {
                Frame::Dgram { flow, data } => format!("{flow} {}", String::from_utf8_lossy(data)),
                Frame::Frag { flow, index, last, .. } => {
                    format!("{flow} part {index}{}", if last { " last" } else { "" })
                }
                Frame::Status { flow, code } => format!("{flow} {code:?}"),
                Frame::Close { flow } => format!("{flow} closed"),
                other => format!("{other:?}"),
            }));
        }
        heard
    }

    /// Runs until a round has left backward. What it says to a channel.
    fn hear(&mut self, channel: u8, round: u64) -> Vec<String> {
        self.release(Direction::Backward, round);
        Bench::heard(channel, &self.take())
    }

    /// Datagrams that have arrived somewhere.
    fn arrived(&self, to: SocketAddr) -> Vec<String> {
        std::iter::from_fn(|| self.net.receive(to)).map(|datagram| String::from_utf8(datagram.bytes).unwrap()).collect()
    }

    /// A channel opens a flow in a round; the exit's socket.
    fn flow(&mut self, channel: u8, round: u64, flow: u16, to: SocketAddr) -> SocketAddr {
        self.frames(channel, round, 0, &[Frame::Session(SESSION), open(flow, to), datagram(flow, b"hello")]);
        self.release(Direction::Backward, round + u64::from(self.exit.class.terms.repeat));
        self.take();
        self.net.receive(to).expect("it leaves with its round").from
    }

    fn answer(&self, from: SocketAddr, to: SocketAddr, text: &str) {
        self.net.send(Datagram { from, to, bytes: text.as_bytes().to_vec() });
    }

    /// Runs from the release of a round on until everything is done, by a clock with which the first call of some kind
    /// on application sockets takes until the backward round is due. That leaves next, and `count` such calls are made.
    fn is_in_time(&mut self, kind: &'static str, round: u64, count: usize) {
        let before = self.exit.schedules.forward.due_at(round) - 1;
        if self.exit.clock.at(self.now) < before {
            self.run_until(before);
        }
        self.take();
        let due = |direction: Direction| self.exit.clock.when(self.exit.schedules[direction].due_at(round));
        let (forward, backward) = (due(Direction::Forward), due(Direction::Backward));
        let (clock, order) = (Clock::showing(forward), std::rc::Rc::new(std::cell::RefCell::new(Vec::new())));
        let note = |order: &std::rc::Rc<std::cell::RefCell<Vec<_>>>| {
            let order = order.clone();
            move |name: &'static str| {
                order.borrow_mut().push(name);
                while name == kind && clock.now() < backward {
                    std::hint::spin_loop();
                }
            }
        };
        for (net, name) in [(&self.net, "datagram"), (&self.link, "cell")] {
            let note = note(&order);
            net.tap(move |datagram| {
                note(name);
                vec![datagram]
            });
        }
        self.net.on_call(note(&order));
        self.exit.set_clock(clock);
        let mut now = forward;
        while self.exit.turn(now) <= now || self.exit.released < round {
            assert!(self.ledger().closed());
            now = clock.now();
        }
        let order: Vec<_> = order.borrow().iter().copied().filter(|name| [kind, "cell"].contains(name)).collect();
        assert!(order.iter().take_while(|name| **name == kind).count() <= 1, "{order:?}");
        assert_eq!(order.iter().filter(|name| **name == kind).count(), count, "{order:?}");
        let cells = self.take();
        assert_eq!(
            data(&cells).filter(|cell| cell.header.seq == round).count(),
            2 * self.exit.batches.of_round(round).len()
        );
        self.now = now;
    }

    fn ledger(&self) -> Ledger {
        *self.exit.published.lock().unwrap()
    }

    fn drops(&self, reasons: &[DropReason]) -> Vec<u64> {
        reasons.iter().map(|reason| self.ledger().cells.forward.drops(*reason)).collect()
    }
}

#[test]
fn datagram_leaves_with_its_round_and_its_answer_returns() {
    let mut bench = Bench::new(false);
    bench.channels(2);
    let round = bench.first() + 2;
    bench.frames(0, round, 1, &[Frame::Session(SESSION), open(5, at(9)), datagram(5, b"question")]);
    bench.run_until(bench.exit.schedules.forward.due_at(round) - 1);
    assert_eq!(bench.arrived(at(9)), [""; 0], "not before its release");
    bench.release(Direction::Forward, round);
    let sent = bench.net.receive(at(9)).unwrap();
    assert_eq!(sent.bytes, b"question");
    assert_eq!(bench.hear(0, round), ["65535 UnknownFlow"], "sealed before other frames take effect");
    bench.answer(at(9), sent.from, "answer");
    bench.run_until(bench.exit.clock.at(bench.now) + MILLI);
    assert_eq!(bench.take().len(), 0);
    bench.release(Direction::Backward, round + 1);
    let cells = bench.take();
    assert_eq!(Bench::heard(0, &cells), ["5 Open", "5 answer"]);
    assert_eq!(Bench::heard(1, &cells), [""; 0]);
    let datagrams = bench.ledger().datagrams;
    assert_eq!((datagrams.forward.sent, datagrams.backward.consumed), (1, 1));
}

#[test]
fn keys_are_wiped_when_the_last_round_has_taken_effect() {
    for repeat in [false, true] {
        let mut bench = Bench::new(repeat);
        bench.channels(1);
        let last = bench.times.first(BATCH + 1) - 1;
        let channels = [last - 1, last, last + 1].map(|round| {
            bench.release(Direction::Backward, round);
            bench.exit.batches.of_round(last).len()
        });
        assert_eq!(channels, [1, usize::from(repeat), 0]);
    }
}

#[test]
fn lost_cell_is_repeated_and_leaves_with_its_round() {
    let mut bench = Bench::new(true);
    bench.channels(1);
    let round = bench.first() + 1;
    let [lost, came, next] = [b"lost", b"came", b"next"].map(|data| datagram(5, data));
    bench.frames(0, round - 1, 0, &[Frame::Session(SESSION), open(5, at(9))]);
    // The first cell of the round is lost. Both are repeated.
    bench.frames(0, round, 1, &[came]);
    bench.frames(0, round + 1, 0, &[Frame::Again(&encoded(&[lost])), next]);
    bench.frames(0, round + 1, 1, &[Frame::Again(&encoded(&[came]))]);
    bench.release(Direction::Forward, round);
    assert_eq!(bench.arrived(at(9)), [""; 0]);
    bench.release(Direction::Forward, round + 1);
    assert_eq!(bench.arrived(at(9)), ["lost", "came"], "in order of sub, each once");
    bench.release(Direction::Forward, round + 2);
    assert_eq!(bench.arrived(at(9)), ["next"]);
}

#[test]
fn repetition_in_another_batch_has_no_effect() {
    let mut bench = Bench::new(true);
    bench.channels(1);
    bench.channel(BATCH + 1, 0, [0; 32]);
    let next = bench.times.first(BATCH + 1);
    bench.release(Direction::Forward, next - 3);
    bench.frames(0, next - 2, 0, &[Frame::Session(SESSION), open(5, at(9))]);
    bench.frames(0, next - 1, 0, &[datagram(5, b"last")]);
    bench.frames(0, next, 1, &[Frame::Again(&encoded(&[datagram(5, b"other")])), Frame::Session(SESSION)]);
    bench.release(Direction::Forward, next + 1);
    assert_eq!(bench.arrived(at(9)), ["last"]);
}

#[test]
fn joined_channels_hear_each_other_and_the_exit_opens_nothing() {
    let mut bench = Bench::new(false);
    (0..2).for_each(|channel| bench.channel(BATCH, channel, [9; 32]));
    bench.channels(0);
    let round = bench.first() + 1;
    bench.release(Direction::Backward, round - 1);
    bench.take();
    let (one, other) = (bench.random(), bench.random());
    bench.body(0, round, 1, &one);
    bench.body(1, round, 0, &other);
    // Even what the exit could open goes to the other.
    bench.frames(1, round + 1, 0, &[Frame::Session(SESSION), open(5, at(9)), datagram(5, b"x")]);
    bench.release(Direction::Backward, round);
    let cells = bench.take();
    assert_eq!(data(&cells).count(), 4);
    let body_of = |channel: u8, sub| {
        let is_it = |cell: &&Received| (cell.header.channel, cell.header.sub) == (u32::from(channel) + 10, sub);
        data(&cells).find(is_it).unwrap().body.clone()
    };
    let mirrored = |from: u8, to: u8, sub, mut body: Vec<u8>| {
        let place = wire::paced::RoundSub { round, sub };
        let (from, to) = (keys(from), keys(to));
        encipher_batch(&mut [from.layers.job(Direction::Forward, place, &mut body)]);
        encipher_batch(&mut [to.layers.job(Direction::Backward, place, &mut body)]);
        body
    };
    assert_eq!(body_of(1, 1), mirrored(0, 1, 1, one));
    assert_eq!(body_of(0, 0), mirrored(1, 0, 0, other));
    bench.release(Direction::Backward, round + 1);
    let ledger = bench.ledger();
    assert_eq!((ledger.gauges.flows, ledger.datagrams.forward.injected), (0, 0));
    assert_eq!(bench.drops(&[DropReason::Garbled, DropReason::Frames]), [0, 0]);
    assert_eq!(bench.arrived(at(9)), [""; 0]);
}

#[test]
fn third_channel_with_a_token_gets_data_bodies() {
    let mut bench = Bench::new(false);
    (0..3).for_each(|channel| bench.channel(BATCH, channel, [9; 32]));
    bench.channels(0);
    let round = bench.first();
    (0..3).for_each(|channel| bench.body(channel, round, 0, &[channel; BODY]));
    bench.release(Direction::Backward, round);
    let cells = bench.take();
    assert_eq!((data(&cells).count(), Bench::heard(2, &cells)), (6, Vec::new()));
    assert_eq!(bench.drops(&[DropReason::Garbled]), [1], "only what the third has sent");
}

#[test]
fn channel_that_comes_when_its_batch_begins_is_refused() {
    let mut bench = Bench::new(false);
    bench.channel(BATCH, 0, [9; 32]);
    let first = bench.first();
    bench.release(Direction::Forward, first - 8);
    bench.channel(BATCH, 1, [9; 32]);
    bench.release(Direction::Backward, first - 1);
    bench.take();
    bench.release(Direction::Backward, first);
    let cells = bench.take();
    assert_eq!((data(&cells).count(), Bench::heard(0, &cells)), (2, Vec::new()), "one channel, which meets nobody");
}

#[test]
fn what_does_not_open_or_comes_twice_or_late_is_counted() {
    let mut bench = Bench::new(false);
    bench.channels(2);
    let round = bench.first() + 1;
    bench.release(Direction::Forward, round - 1);
    let random = bench.random();
    bench.body(0, round, 0, &random);
    bench.frames(0, round, 0, &[datagram(1, b"second")]);
    bench.frames(0, round, 1, &[Frame::Session(SESSION), Frame::Ping([0; 8])]);
    bench.frames(1, round, 0, &[Frame::Again(&encoded(&[datagram(1, b"x")]))]);
    bench.frames(1, round - 1, 1, &[datagram(1, b"late")]);
    bench.frames(1, round + 8, 1, &[datagram(1, b"early")]);
    bench.frames(1, round, 2, &[datagram(1, b"sub")]);
    bench.frames(2, round, 0, &[datagram(1, b"nobody's")]);
    bench.release(Direction::Backward, round);
    use DropReason::{Channel, Early, Frames, Garbled, Late, Replay, Sub};
    assert_eq!(bench.drops(&[Garbled, Replay, Frames, Late, Early, Sub, Channel]), [1, 1, 2, 1, 1, 1, 1]);
    assert_eq!(Bench::heard(0, &bench.take()), [""; 0]);
    assert_eq!(bench.ledger().datagrams.forward.injected, 0);
}

#[test]
fn session_passes_to_the_next_batch_without_a_gap() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    bench.channel(BATCH + 1, 1, [1; 32]);
    let next = bench.times.first(BATCH + 1);
    bench.release(Direction::Backward, next - 20);
    let socket = bench.flow(0, next - 19, 5, at(9));
    bench.release(Direction::Backward, next - 4);
    bench.take();
    for round in next - 3..next + 3 {
        let (channel, frames) = match round < next {
            true => (0, vec![datagram(5, b"on")]),
            false => (1, vec![Frame::Session(SESSION), datagram(5, b"on")]),
        };
        bench.frames(channel, round, 0, &frames);
        bench.answer(at(9), socket, "back");
        let heard = bench.hear(channel, round);
        assert_eq!(bench.arrived(at(9)), ["on"], "round {round}");
        let status = (round == next).then(|| "65535 Open".to_owned());
        let expected: Vec<String> = ["5 back".to_owned()].into_iter().chain(status).collect();
        assert_eq!(heard, expected, "round {round}");
    }
    assert_eq!(bench.ledger().gauges.flows, 1);
}

#[test]
fn session_is_answered_once_in_ten_rounds() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let first = bench.first();
    let mut heard = Vec::new();
    for round in first..first + 22 {
        let mut frames = vec![Frame::Session(SESSION)];
        if round == first + 12 {
            frames.push(open(5, at(9)));
        }
        bench.frames(0, round, 0, &frames);
        heard.extend(bench.hear(0, round).into_iter().map(|heard| (round - first, heard)));
    }
    let expected = [(0, "65535 UnknownFlow"), (10, "65535 UnknownFlow"), (13, "5 Open"), (20, "65535 Open")];
    assert_eq!(heard, expected.map(|(round, heard)| (round, heard.to_owned())));
}

#[test]
fn frames_wait_for_their_session_up_to_their_age() {
    let mut bench = Bench::new(false);
    bench.channels(2);
    let first = bench.first();
    for (ahead, data) in [(0, b"zero"), (1, b"one "), (2, b"two ")] {
        bench.frames(0, first + ahead, 0, &[open(5, at(9)), datagram(5, data)]);
    }
    bench.release(Direction::Forward, first + 2);
    bench.frames(0, first + 7, 0, &[Frame::Session(SESSION), datagram(5, b"now")]);
    bench.release(Direction::Forward, first + 6);
    assert_eq!(bench.arrived(at(9)), [""; 0]);
    bench.release(Direction::Forward, first + 7);
    assert_eq!(bench.arrived(at(9)), ["one ", "two ", "now"]);
    assert_eq!(bench.ledger().datagrams.forward.drops(DropReason::Aged), 1);
}

#[test]
fn flow_number_of_session_answers_is_never_given_out() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let round = bench.first();
    let flow = wire::frames::SESSION_FLOW;
    bench.frames(0, round, 0, &[Frame::Session(SESSION), open(flow, at(9)), datagram(flow, b"x")]);
    assert_eq!(bench.hear(0, round + 1), ["65535 UnknownFlow"]);
    let ledger = bench.ledger();
    assert_eq!((ledger.gauges.flows, ledger.datagrams.forward.drops(DropReason::Flow)), (0, 1));
}

#[test]
fn channel_names_one_session() {
    let mut bench = Bench::new(false);
    bench.channels(3);
    let first = bench.first();
    let session = |name| Frame::Session([name; 16]);
    (0..2).for_each(|channel| bench.frames(channel, first, 0, &[session(channel)]));
    // One that is there, one that is not, and both in a cell: nothing else in these cells has an effect.
    bench.frames(0, first + 1, 0, &[session(1), open(5, at(9)), datagram(5, b"x")]);
    bench.frames(0, first + 2, 0, &[session(9), open(5, at(9)), datagram(5, b"x")]);
    bench.frames(0, first + 3, 0, &[session(0), session(1), open(5, at(9)), datagram(5, b"x")]);
    bench.frames(2, first + 3, 0, &[session(2), session(3)]);
    bench.release(Direction::Backward, first + 3);
    assert_eq!((bench.arrived(at(9)), bench.exit.outside.sessions.all().len()), (vec![], 2));
    assert_eq!(bench.drops(&[DropReason::Frames]), [4]);
    bench.frames(0, first + 4, 0, &[session(0), open(5, at(9)), datagram(5, b"own")]);
    bench.release(Direction::Backward, first + 4);
    assert_eq!(bench.arrived(at(9)), ["own"]);
}

#[test]
fn oldest_session_ends_when_there_are_too_many() {
    let mut bench = Bench::new(false);
    let sessions = |bench: &Bench| (0..8).map(|name| bench.exit.outside.sessions.find(&[name; 16]).is_some()).collect();
    assert_eq!(bench.exit.outside.sessions.most, 4 * bench.exit.class.channels_max());
    bench.exit.outside.sessions.most = 4;
    bench.channels(1);
    let mut there = Vec::new();
    for name in 0..6 {
        let batch = BATCH + u64::from(name);
        if name > 0 {
            bench.channel(batch, 0, [0; 32]);
        }
        let round = bench.times.first(batch);
        bench.release(Direction::Backward, round - 1);
        let open = Frame::Open { flow: 5, map: 1, token: [name; 16], to: Address::Ip(at(9)) };
        // The first one is named again.
        let name = if name == 3 { 0 } else { name };
        bench.frames(0, round, 0, &[Frame::Session([name; 16]), open]);
        bench.release(Direction::Backward, round);
        there = sessions(&bench);
    }
    assert_eq!(there, [true, false, true, false, true, true, false, false]);
    assert_eq!(bench.ledger().gauges.flows, 4, "flows end with them");
}

#[test]
fn flow_of_another_session_is_not_moved() {
    let mut bench = Bench::new(false);
    bench.channels(2);
    let first = bench.first();
    let socket = bench.flow(0, first, 5, at(9));
    // Somebody knows its token.
    bench.frames(1, first + 1, 0, &[Frame::Session([1; 16]), open(5, at(9)), datagram(5, b"mine")]);
    assert_eq!(bench.hear(1, first + 2), ["65535 UnknownFlow", "5 TooManyFlows"]);
    assert_eq!(bench.arrived(at(9)), [""; 0]);
    bench.answer(at(9), socket, "yours");
    assert_eq!(bench.hear(0, first + 3), ["5 yours"]);
}

#[test]
fn session_without_cells_ends_with_its_flows() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let socket = bench.flow(0, bench.first(), 5, at(9));
    let began = bench.now;
    let run_for = |bench: &mut Bench, seconds| bench.run_until(bench.exit.clock.at(began) + seconds * SECOND);
    run_for(&mut bench, 59);
    bench.answer(at(9), socket, "nobody sends it");
    run_for(&mut bench, 60);
    assert_eq!(bench.ledger().gauges.flows, 1);
    let backward = bench.ledger().datagrams.backward;
    assert_eq!((backward.held, backward.drops(DropReason::Aged)), (0, 1), "its channel has ended");
    run_for(&mut bench, 62);
    assert_eq!((bench.ledger().gauges.flows, bench.ledger().gauges.sockets), (0, 0));
    assert_eq!(bench.exit.outside.sessions.all().len(), 0);
}

#[test]
fn every_backward_round_has_all_its_cells() {
    let mut bench = Bench::new(false);
    (0..2).for_each(|channel| bench.channel(BATCH, channel, [9; 32]));
    (2..5).for_each(|channel| bench.channel(BATCH, channel, [channel; 32]));
    bench.channels(0);
    let first = bench.first();
    let socket = bench.flow(2, first, 5, at(9));
    let mut bodies = std::collections::HashSet::new();
    for round in first + 1..first + 60 {
        let random = bench.random();
        match round % 5 {
            0 => bench.body(0, round, 1, &random),
            1 => (0..20).for_each(|_| bench.answer(at(9), socket, &"x".repeat(150))),
            2 => bench.body(3, round, 0, &random),
            3 => bench.frames(2, round, 1, &[datagram(5, b"x")]),
            _ => {}
        }
        bench.release(Direction::Backward, round);
        let cells = bench.take();
        let mut places: Vec<_> = data(&cells).map(|cell| (cell.header.channel, cell.header.sub)).collect();
        places.sort_unstable();
        let all: Vec<_> = (10..15).flat_map(|channel| [(channel, 0), (channel, 1)]).collect();
        assert_eq!(places, all, "round {round}");
        let slots = bench.exit.slots.of(&bench.times, round);
        assert_eq!(cells.len() - all.len(), slots.link + slots.placed, "control cells of round {round}");
        assert!(data(&cells).all(|cell| cell.header.seq == round && bodies.insert(cell.body.clone())));
    }
    let backward = bench.ledger().datagrams.backward;
    assert!(backward.drops(DropReason::Aged) > 0 && backward.consumed > 50, "{backward:?}");
}

#[test]
fn long_answer_leaves_in_fragments_and_does_not_age_then() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let first = bench.first();
    let socket = bench.flow(0, first, 5, at(9));
    // 20 cells: the last of them is sealed after 100 ms, three with their first fragment in time.
    (0..4).for_each(|_| bench.answer(at(9), socket, &"x".repeat(900)));
    let heard: Vec<_> = (1..14).flat_map(|ahead| bench.hear(0, first + ahead)).collect();
    let datagram = ["5 part 0", "5 part 1", "5 part 2", "5 part 3", "5 part 4 last"];
    assert_eq!(heard[0], "5 Open");
    assert_eq!(heard[1..], [datagram; 3].concat());
    let backward = bench.ledger().datagrams.backward;
    assert_eq!((backward.consumed, backward.drops(DropReason::Aged), backward.held), (3, 1, 0));
}

#[test]
fn report_counts_places_that_stayed_empty() {
    let mut bench = Bench::new(false);
    let start = bench.exit.released + 1;
    bench.channels(2);
    let first = bench.first().next_multiple_of(100);
    bench.release(Direction::Forward, first - 1);
    bench.release(Direction::Backward, first + 2);
    bench.take();
    for ahead in 3..8 {
        // One of them does not open: it has come nevertheless.
        let random = bench.random();
        bench.body(1, first + ahead, 1, &random);
    }
    bench.release(Direction::Backward, first + 110);
    let cells = bench.take();
    let reports: Vec<Report> = cells
        .iter()
        .filter(|cell| cell.header.kind == CellKind::Link && cell.body[0] == LinkContent::Report as u8)
        .map(|cell| Report::from_bytes(cell.body[1..].first_chunk().unwrap()))
        .collect();
    assert_eq!(reports, [Report { first: start, last: first + 99, places: 400, filled: 395, lost: 395 }]);
}

#[test]
fn flow_to_a_name_sends_with_the_next_release() {
    let mut bench = Bench::new(false);
    bench.channels(1);
    let first = bench.first();
    let named = Frame::Open { flow: 5, map: 1, token: [1; 16], to: Address::Name("a.example", 9) };
    bench.frames(0, first, 0, &[Frame::Session(SESSION), named, datagram(5, b"x")]);
    bench.release(Direction::Backward, first);
    let asked = std::iter::from_fn(|| bench.punts.pop().ok()).find_map(|punt| match punt {
        Punt::Resolve { query, .. } => Some(query),
        _ => None,
    });
    assert_eq!(asked, Some(QueryId(0)));
    let addresses: Vec<IpAddr> = vec![at(9).ip()];
    bench.command(Command::Resolved { query: QueryId(0), addresses });
    bench.run_until(bench.exit.clock.at(bench.now) + MILLI);
    assert_eq!(bench.arrived(at(9)), [""; 0]);
    bench.release(Direction::Forward, first + 1);
    assert_eq!(bench.arrived(at(9)), ["x"]);
}

#[test]
fn control_cells_leave_in_their_rounds() {
    let mut bench = Bench::new(false);
    let round = bench.times.rounds_of(BATCH, wire::paced::Phase::Ack(HOPS)).start + 1;
    let control = Control { kind: CellKind::Ack, channel: 77, sub: 1, content: vec![1; 20] };
    bench.command(Command::AtRound { link: None, direction: Direction::Backward, round, control });
    bench.release(Direction::Backward, round - 1);
    bench.take();
    bench.release(Direction::Backward, round);
    let acks = |cells: Vec<Received>| cells.iter().filter(|cell| cell.header.kind == CellKind::Ack).count();
    assert_eq!(acks(bench.take()), 1);
}

#[test]
fn late_exit_releases_the_latest_rounds_and_skips_older_ones() {
    for repeat in [false, true] {
        let mut bench = Bench::new(repeat);
        bench.channels(1);
        let first = bench.first();
        bench.frames(0, first, 0, &[Frame::Session(SESSION), open(5, at(9))]);
        bench.release(Direction::Backward, first + 1);
        bench.take();
        (2..10).for_each(|ahead| {
            let text = format!("{ahead}");
            bench.frames(0, first + ahead, 0, &[datagram(5, text.as_bytes())]);
        });
        // It takes them in, and then is stopped for 12 rounds.
        bench.run_until(bench.exit.clock.at(bench.now) + MILLI);
        bench.now += 120 * MILLI;
        bench.exit.turn(bench.now);
        assert!(bench.ledger().closed());
        let rounds: std::collections::BTreeSet<u64> = data(&bench.take()).map(|cell| cell.header.seq).collect();
        assert_eq!((rounds.len(), rounds.last()), (8, Some(&(first + 13))));
        assert_eq!(bench.arrived(at(9)), ["6", "7", "8", "9"]);
        assert_eq!(bench.drops(&[DropReason::Skipped]), [4]);
    }
}

#[test]
fn stopped_exit_counts_what_it_holds() {
    for repeat in [false, true] {
        let mut bench = Bench::new(repeat);
        bench.channels(2);
        let first = bench.first();
        let socket = bench.flow(0, first, 5, at(9));
        let last = bench.exit.rounds.released();
        bench.frames(0, last + 3, 0, &[datagram(5, b"x")]);
        bench.frames(1, last + 1, 0, &[datagram(5, b"x")]);
        bench.release(Direction::Forward, last + 1);
        bench.answer(at(9), socket, "x");
        bench.exit.turn(bench.now);
        bench.exit.finish(bench.now);
        let ledger = bench.ledger();
        assert!(ledger.closed());
        let held = [ledger.cells.forward, ledger.cells.backward, ledger.datagrams.forward, ledger.datagrams.backward];
        assert_eq!(held.map(|tally| tally.held), [0; 4]);
        assert_eq!(ledger.datagrams.backward.drops(DropReason::Shutdown), 1);
        assert_eq!(ledger.buffers.free, ledger.buffers.total);
    }
}

/// What may happen to an exit.
#[derive(Clone, Debug)]
enum Step {
    /// A cell for a round ahead, with one of some contents.
    Cell {
        channel: u8,
        ahead: u64,
        sub: u8,
        content: u8,
        flow: u16,
        len: usize,
    },
    /// Answers to all that has arrived.
    Answer {
        copies: usize,
        len: usize,
    },
    Run {
        ms: u64,
    },
    /// It does not run for some time.
    Stop {
        ms: u64,
    },
    Block(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let cell = (0u8..4, 0u64..10, 0u8..2, 0u8..8, 0u16..3, 0usize..170);
    prop_oneof![
        8 => cell.prop_map(|(channel, ahead, sub, content, flow, len)| {
            Step::Cell { channel, ahead, sub, content, flow, len }
        }),
        3 => (0usize..20, 0usize..1700).prop_map(|(copies, len)| Step::Answer { copies, len }),
        4 => (0u64..40).prop_map(|ms| Step::Run { ms }),
        1 => (0u64..200).prop_map(|ms| Step::Stop { ms }),
        1 => any::<bool>().prop_map(Step::Block),
    ]
}

impl Bench {
    fn do_step(&mut self, step: Step) {
        match step {
            Step::Cell { channel, ahead, sub, content, flow, len } => {
                let (round, data) = (self.exit.rounds.released() + ahead, vec![1; len]);
                let name = Frame::Session([channel; 16]);
                let sent = [datagram(flow, &data)];
                match content {
                    0 => self.body(channel, round, sub, &[9; BODY]),
                    1 => self.frames(channel, round, sub, &[Frame::Ping([0; 8])]),
                    2 => self.frames(channel, round, sub, &sent),
                    3 => self.frames(channel, round, sub, &[name, open(flow, at(9))]),
                    4 => self.frames(channel, round, sub, &[Frame::Again(&encoded(&sent)), Frame::Close { flow }]),
                    5 => {
                        let last = sub == 1;
                        let data =
                            vec![1; if last { 20 } else { P - 3 * usize::from(self.exit.class.terms.repeat) - 8 }];
                        self.frames(channel, round, sub, &[Frame::Frag { flow, id: 1, index: sub, last, data: &data }]);
                    }
                    _ => self.frames(channel, round, sub, &[name, sent[0]]),
                }
            }
            Step::Answer { copies, len } => {
                while let Some(Datagram { from, .. }) = self.net.receive(at(9)) {
                    (0..copies).for_each(|_| self.answer(at(9), from, &"y".repeat(len)));
                }
            }
            Step::Run { ms } => self.run_until(self.exit.clock.at(self.now) + ms * MILLI),
            Step::Stop { ms } => self.now += ms * MILLI,
            Step::Block(is_blocked) => self.link.block(is_blocked),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Cells, datagrams and buffers are accounted for at every turn, and nothing is left when the exit stops.
    #[test]
    fn ledger_closes_whatever_comes(repeat: bool, steps in prop::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new(repeat);
        (0..2).for_each(|channel| bench.channel(BATCH, channel, [9; 32]));
        (2..4).for_each(|channel| bench.channel(BATCH, channel, [channel; 32]));
        bench.channels(0);
        bench.release(Direction::Forward, bench.first() - 1);
        steps.into_iter().for_each(|step| bench.do_step(step));
        bench.run_until(bench.exit.clock.at(bench.now));
        bench.exit.finish(bench.now);
        let ledger = bench.ledger();
        prop_assert!(ledger.closed());
        let tallies = [ledger.cells.forward, ledger.cells.backward, ledger.datagrams.forward, ledger.datagrams.backward];
        prop_assert_eq!(tallies.map(|tally| tally.held), [0; 4]);
        prop_assert_eq!(ledger.buffers.free, ledger.buffers.total);
        prop_assert_eq!(ledger.cells.backward.drops(DropReason::NoBuffer), 0);
    }
}
