mod abuse;
mod fallback;

use std::net::SocketAddr;

use super::*;
use crate::socket::memory::{Datagram, MemApps, MemNet, MemPort};
use crate::stage::ingress::lengths;
use crate::sys::Waker;
use wire::cell::Class;
use wire::frames::{Address, Status, parse};
use wire::ids::LinkId;
use wire::ids::Side;
use wire::kdf::Secret;

/// An exit with channels 0 to `channels - 1`, its ends of the rings, and the network of its applications.
struct Bench {
    exit: Exit<MemPort, MemApps>,
    commands: rtrb::Producer<Command>,
    punts: rtrb::Consumer<crate::punt::Punt>,
    net: MemNet,
    /// Cells from Mix m.
    link: MemNet,
    now: Nanos,
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 7], port))
}

impl Bench {
    fn new(class: Class, channels: u32) -> Bench {
        Bench::with(class, channels, |_| ())
    }

    fn with(class: Class, channels: u32, change: impl FnOnce(&mut Settings)) -> Bench {
        let net = MemNet::default();
        let (commands, worker_commands) = rtrb::RingBuffer::new(1024);
        let (worker_punts, punts) = rtrb::RingBuffer::new(256);
        let mut settings = Settings {
            shape: Shape::new(class, 2).unwrap(),
            window: 4096,
            hugepages: false,
            policy: Policy::new(vec!["198.51.100.0/24".parse().unwrap()], Vec::new(), Vec::new()),
            filtering: Filtering::default(),
            limits: Limits::default(),
            caps: Caps { flows_per_channel: 1024, sockets: 4096 },
            flow_idle: Duration::from_secs(300),
            max_age: Duration::MAX,
        };
        change(&mut settings);
        let apps = MemApps::new(net.clone(), Vec::new(), [192, 0, 2, 1].into());
        let link = MemNet::default();
        let port = link.port(address(1), lengths(settings.shape, 2, Side::Up));
        let punt_sender = PuntSender::new(worker_punts, Arc::new(Waker::new().unwrap()));
        let rng = |seed| <ChaCha20Rng as rand::SeedableRng>::seed_from_u64(seed);
        let exit = Exit::new(settings, port, apps, worker_commands, punt_sender, [rng(1), rng(2)], SECOND);
        let mut bench = Bench { exit, commands, punts, net, link, now: SECOND };
        for channel in 0..channels {
            let [forward, backward] = [1, 2].map(|n| Secret::new([n; 32]));
            let keys = ChannelKeys::Hop { forward, backward };
            let command = Command::InstallChannel {
                channel: ChannelIndex(channel),
                up: Some((LinkId(9), channel)),
                down: None,
                keys,
                lifetime_s: 3600,
                first: 0,
            };
            assert!(bench.commands.push(command).is_ok());
        }
        bench.turn();
        bench
    }

    fn frame(&mut self, channel: u32, frame: &Frame<'_>) {
        let Exit { endpoint, gateway, .. } = &mut self.exit;
        gateway.forward_frame(&mut context(endpoint, self.now), ChannelIndex(channel), frame);
    }

    fn open(&mut self, channel: u32, flow: u16, to: Address<'_>) {
        let mut token = [0; 16];
        token[..2].copy_from_slice(&flow.to_be_bytes());
        token[2..6].copy_from_slice(&channel.to_be_bytes());
        self.frame(channel, &Frame::Open { flow, map: flow, token, to });
    }

    /// An OPEN and a datagram behind it.
    fn send(&mut self, channel: u32, flow: u16, to: SocketAddr) {
        self.open(channel, flow, Address::Ip(to));
        self.frame(channel, &Frame::Dgram { flow, data: b"x" });
    }

    /// The STATUS frames that are ready for the entry.
    fn statuses(&mut self) -> Vec<(u16, Status)> {
        self.said(|frame| match *frame {
            Frame::Status { flow, code } => Some((flow, code)),
            _ => None,
        })
    }

    /// Something of the frames that are ready for the entry.
    fn said<T>(&mut self, of: impl Fn(&Frame<'_>) -> Option<T>) -> Vec<T> {
        let payload = self.exit.endpoint.shape.payload();
        let Endpoint { packer, free, .. } = &mut self.exit.endpoint;
        let mut said = Vec::new();
        for (_, mut cell) in packer.finish() {
            said.extend(parse(cell.body_mut(payload), Direction::Backward).unwrap().filter_map(|frame| of(&frame)));
            free.give(cell.into_buffer());
        }
        said
    }

    /// A turn; its ledger must close.
    fn turn(&mut self) -> Ledger {
        self.exit.turn(self.now);
        // The channels' cells would lead over link 9, and control hears of their ends.
        while self.punts.pop().is_ok() {}
        let ledger = *self.exit.endpoint.published.lock().unwrap();
        assert!(ledger.closed(), "{ledger:?}");
        ledger
    }

    fn drops(&mut self, why: DropReason) -> u64 {
        self.turn().datagrams.forward.drops(why)
    }

    fn delivered(&self, to: SocketAddr) -> usize {
        std::iter::from_fn(|| self.net.receive(to)).collect::<Vec<Datagram>>().len()
    }
}

#[test]
fn opens_beyond_the_rate_are_refused_and_what_is_open_lives_on() {
    let mut bench = Bench::new(Class::S, 2);
    for flow in 0..100 {
        bench.send(0, flow, address(9));
    }
    let said = bench.statuses();
    let count = |said: &[(u16, Status)], code| said.iter().filter(|(_, status)| *status == code).count();
    assert_eq!((count(&said, Status::Open), count(&said, Status::TooManyFlows)), (64, 36));
    assert_eq!((bench.drops(DropReason::OpenRate), bench.delivered(address(9))), (36, 64));
    // Repeated OPENs cost nothing, another channel has its own rate, and a second later there is room.
    for flow in 0..64 {
        bench.send(0, flow, address(9));
    }
    bench.send(1, 0, address(9));
    assert_eq!((bench.drops(DropReason::OpenRate), bench.delivered(address(9))), (36, 65));
    bench.now += SECOND;
    for flow in 64..100 {
        bench.send(0, flow, address(9));
    }
    assert_eq!((bench.drops(DropReason::OpenRate), bench.delivered(address(9))), (36, 36));
    assert_eq!(bench.turn().gauges.flows, 101);
    bench.now += 40 * SECOND;
    let ledger = bench.turn();
    assert_eq!((ledger.gauges.flows, ledger.gauges.sockets, ledger.gauges.channels), (0, 0, 0));
    assert!(bench.exit.gateway.refused.is_empty());
}

#[test]
fn an_exit_without_descriptors_says_so_and_recovers() {
    let mut bench = Bench::new(Class::S, 1);
    bench.send(0, 0, address(9));
    bench.net.fail_open(Some(libc::EMFILE));
    bench.send(0, 1, address(9));
    bench.send(0, 0, address(9));
    assert_eq!(bench.statuses(), [(0, Status::Open), (1, Status::TooManyFlows), (0, Status::Open)]);
    assert_eq!((bench.drops(DropReason::NoSocket), bench.delivered(address(9))), (1, 2));
    bench.net.fail_open(None);
    bench.send(0, 1, address(9));
    assert_eq!(bench.statuses(), [(1, Status::Open)]);
    assert_eq!((bench.drops(DropReason::NoSocket), bench.delivered(address(9))), (1, 1));
}

#[test]
fn a_failed_send_has_its_reason_and_blocks_nobody() {
    let mut bench = Bench::new(Class::S, 1);
    bench.net.fail_send(address(2), Some(libc::ENETUNREACH));
    bench.net.fail_send(address(3), Some(libc::EPERM));
    bench.net.fail_send(address(4), Some(libc::EMSGSIZE));
    for port in 2..6 {
        bench.send(0, port, address(port));
    }
    bench.send(0, 6, address(0));
    let told = bench.statuses();
    assert_eq!(told.last(), Some(&(6, Status::Refused)), "nobody is at port 0");
    let ledger = bench.turn().datagrams.forward;
    let reasons = [DropReason::Unreachable, DropReason::Forbidden, DropReason::PathMtu, DropReason::Policy]
        .map(|why| ledger.drops(why));
    assert_eq!((reasons, ledger.sent, ledger.send_errors), ([1; 4], 1, 0));
    assert_eq!(bench.turn().gauges.flows, 4, "a flow lives on, for the way may open");
    bench.net.fail_send(address(2), None);
    bench.send(0, 2, address(2));
    bench.turn();
    assert_eq!((bench.delivered(address(2)), bench.delivered(address(5))), (1, 1));
}

#[test]
fn unreachable_peer_is_reported_at_most_once_a_second() {
    let mut bench = Bench::new(Class::S, 1);
    bench.net.fail_send(address(2), Some(libc::ENETUNREACH));
    // The middle of a turn: what it reports stays where `statuses` finds it.
    let reported = |bench: &mut Bench| {
        bench.send(0, 2, address(2));
        bench.send(0, 3, address(3));
        let Endpoint { apps, send_batch, datagrams, .. } = &mut bench.exit.endpoint;
        apps.send(send_batch, &mut datagrams.forward);
        bench.exit.receive_apps(bench.now);
        bench.exit.move_on(bench.now);
        let mut said = bench.statuses();
        said.retain(|(_, status)| *status == Status::Unreachable);
        said
    };
    assert_eq!(reported(&mut bench), [(2, Status::Unreachable)]);
    assert_eq!(reported(&mut bench), []);
    bench.now += SECOND - 1;
    assert_eq!(reported(&mut bench), []);
    bench.now += 1;
    assert_eq!(reported(&mut bench), [(2, Status::Unreachable)]);
    assert_eq!((bench.drops(DropReason::Unreachable), bench.delivered(address(3))), (4, 4));
}

#[test]
fn flood_without_frames_does_not_monopolize_an_exit() {
    const FLOOD: u64 = 10_000;
    let mut bench = Bench::new(Class::S, 1);
    bench.send(0, 1, address(9));
    bench.turn();
    let exit = bench.net.receive(address(9)).unwrap().from;
    // From nobody's peer: each is dropped as it is read.
    for _ in 0..FLOOD {
        bench.net.send(Datagram { from: address(10), to: exit, bytes: Vec::new() });
    }
    let mut read = 0;
    while read < FLOOD {
        let now = bench.turn().datagrams.backward;
        assert_eq!(now.drops(DropReason::Filtered), now.received);
        assert!((1..=FLOOD / 10).contains(&(now.received - read)), "{} in one turn", now.received - read);
        read = now.received;
    }
}

#[test]
fn refusals_are_remembered_within_bounds_and_for_a_second() {
    let mut bench = Bench::new(Class::S, 1);
    let inside = SocketAddr::from(([10, 0, 0, 1], 9));
    for flow in 0..REFUSED_MAX as u16 + 1 {
        bench.open(0, flow, Address::Ip(inside));
        if flow % 512 == 0 {
            bench.statuses();
        }
    }
    bench.frame(0, &Frame::Dgram { flow: 0, data: b"x" });
    bench.frame(0, &Frame::Dgram { flow: REFUSED_MAX as u16, data: b"x" });
    assert_eq!(bench.exit.gateway.refused.len(), REFUSED_MAX);
    assert_eq!(
        (bench.drops(DropReason::Policy), bench.drops(DropReason::RefusedFull), bench.drops(DropReason::Flow)),
        (1, 1, 0)
    );
    bench.now += SECOND;
    bench.turn();
    assert!(bench.exit.gateway.refused.is_empty());
    bench.frame(0, &Frame::Dgram { flow: 0, data: b"x" });
    assert_eq!(bench.drops(DropReason::Flow), 1);
}

#[test]
fn incomplete_datagrams_of_an_exit_are_bounded_and_freed() {
    let channels = 600;
    let mut bench = Bench::new(Class::S, channels);
    let data = [7; 200];
    let first = |id| Frame::Frag { flow: 1, id, index: 0, last: false, data: &data };
    for channel in 0..channels {
        (0..16).for_each(|id| bench.frame(channel, &first(id)));
    }
    let ledger = bench.turn().datagrams.forward;
    // Greedy channels get three quarters and a few each, and the others one each.
    let refused = u64::from(channels) * 16 - ledger.held;
    assert_eq!(ledger.drops(DropReason::ReassemblyFull), refused);
    assert!((REASSEMBLING_MAX as u64 * 7 / 8..REASSEMBLING_MAX as u64).contains(&ledger.held));
    let has_some = |bench: &mut Bench, of| bench.exit.gateway.reassembler(ChannelIndex(of)).unwrap().held() > 0;
    assert!((0..channels).all(|of| has_some(&mut bench, of)));
    // Within a channel the oldest is evicted as before, and incomplete datagrams complete.
    bench.frame(0, &first(16));
    bench.frame(0, &Frame::Frag { flow: 1, id: 16, index: 1, last: true, data: b"x" });
    let ledger = bench.turn().datagrams.forward;
    assert_eq!((ledger.drops(DropReason::Incomplete), ledger.drops(DropReason::Flow)), (1, 1));
    bench.now += 2 * SECOND;
    let ledger = bench.turn().datagrams.forward;
    assert_eq!((ledger.held, ledger.drops(DropReason::ReassemblyFull)), (0, refused));
    assert!(!bench.exit.gateway.has_fragments(), "no buffer is kept");
    bench.frame(channels - 1, &first(0));
    assert_eq!(bench.turn().datagrams.forward.held, 1);
}

#[test]
fn names_beyond_controls_queue_are_refused() {
    let mut bench = Bench::new(Class::S, 250);
    let asked = 250;
    for channel in 0..250 {
        bench.open(channel, 0, Address::Name("example.org", 53));
        bench.frame(channel, &Frame::Dgram { flow: 0, data: b"x" });
    }
    let refused = bench.statuses().len() as u64;
    let room = 256 - crate::punt::RESERVED as u64;
    let ledger = bench.turn().datagrams.forward;
    assert_eq!((ledger.held, ledger.drops(DropReason::PuntFull)), (room, refused));
    assert_eq!((room + refused, bench.exit.gateway.flows.len() as u64), (asked, room));
    for query in (0..256).map(QueryId) {
        assert!(bench.commands.push(Command::Resolved { query, addresses: vec![address(1).ip()] }).is_ok());
    }
    let ledger = bench.turn().datagrams.forward;
    assert_eq!((ledger.held, ledger.sent), (0, room));
    bench.open(0, 40, Address::Name("example.org", 53));
    assert_eq!(bench.exit.gateway.flows.len() as u64, room + 1);
}

#[test]
fn entry_learns_that_an_idle_flow_has_lost_its_socket() {
    let mut bench = Bench::with(Class::S, 2, |settings| settings.caps.sockets = 1);
    bench.send(0, 5, address(9));
    bench.now += 30 * SECOND;
    bench.send(1, 6, address(9));
    let said = bench.said(|frame| match *frame {
        Frame::Close { flow } => Some((flow, None)),
        Frame::Status { flow, code } => Some((flow, Some(code))),
        _ => None,
    });
    assert_eq!(said, [(5, Some(Status::Open)), (5, None), (6, Some(Status::Open))]);
}

#[test]
fn flow_order_of_a_turn_cannot_be_drawn_again() {
    let mut bench = Bench::new(Class::S, 1);
    for _ in 0..2 {
        let before = bench.exit.rng.get_seed();
        bench.turn();
        assert_ne!(bench.exit.rng.get_seed(), before);
    }
}

#[test]
fn an_exit_forgets_generations_once_it_has_sealed_past_them() {
    let mut bench = Bench::new(Class::S, 1);
    let live = |bench: &Bench, seq| {
        bench.exit.endpoint.table.record(ChannelIndex(0)).unwrap().state.backward.of(seq).is_some()
    };
    assert!(live(&bench, 0));
    bench.exit.endpoint.table.record_mut(ChannelIndex(0)).unwrap().state.next_seq = 1 << 20;
    bench.frame(0, &Frame::Ping([0; 8]));
    bench.turn();
    assert!(!live(&bench, (1 << 20) - 1) && live(&bench, 1 << 20) && live(&bench, 2 << 20));
}

const MAX_AGE: Duration = Duration::from_millis(250);

fn limited() -> Bench {
    Bench::with(Class::S, 1, |settings| settings.max_age = MAX_AGE)
}

#[test]
fn answer_that_waited_too_long_is_dropped() {
    let mut bench = limited();
    bench.send(0, 1, address(9));
    bench.turn();
    let from = bench.net.receive(address(9)).expect("a datagram").from;
    let answers = |bench: &mut Bench, after_ms: u64| {
        bench.net.send(Datagram { from: address(9), to: from, bytes: vec![1] });
        bench.now += after_ms * crate::MILLI;
        let tally = bench.turn().datagrams.backward;
        (tally.consumed, tally.drops(DropReason::Aged))
    };
    assert_eq!(answers(&mut bench, 250), (1, 0));
    assert_eq!(answers(&mut bench, 251), (1, 1));
    assert_eq!(answers(&mut bench, 1), (2, 1));
}

#[test]
fn datagram_waits_for_its_name_up_to_its_age() {
    let mut bench = limited();
    bench.open(0, 1, Address::Name("a.example", 9));
    for wait_ms in [0, 200, 60, 0] {
        bench.now += wait_ms * crate::MILLI;
        bench.frame(0, &Frame::Dgram { flow: 1, data: b"x" });
    }
    assert_eq!(bench.drops(DropReason::Aged), 1, "the oldest makes room");
    bench.now += 200 * crate::MILLI;
    assert!(bench.commands.push(Command::Resolved { query: QueryId(0), addresses: vec![address(9).ip()] }).is_ok());
    let ledger = bench.turn().datagrams.forward;
    assert_eq!((ledger.sent, ledger.drops(DropReason::Aged), ledger.held), (2, 2, 0));
}

#[test]
fn names_that_take_long_hold_no_aged_datagrams() {
    let mut bench = limited();
    bench.open(0, 1, Address::Name("a.example", 9));
    bench.frame(0, &Frame::Dgram { flow: 1, data: b"x" });
    bench.now += SECOND;
    let tally = bench.turn().datagrams.forward;
    assert_eq!((tally.held, tally.drops(DropReason::Aged)), (0, 1));
}

#[test]
fn late_link_input_drops_datagrams_and_obeys_frames() {
    let mut bench = limited();
    bench.exit.endpoint.link_waited = 251 * crate::MILLI;
    bench.send(0, 1, address(9));
    assert_eq!(bench.statuses(), [(1, Status::Open)]);
    assert_eq!(bench.drops(DropReason::Aged), 1);
    bench.exit.endpoint.link_waited = 0;
    bench.send(0, 1, address(9));
    assert_eq!(bench.turn().datagrams.forward.sent, 1);
}

#[test]
fn turn_that_was_stopped_hands_nothing_out() {
    let mut bench = limited();
    bench.exit.set_clock(Clock::showing(bench.now + 10 * SECOND));
    bench.send(0, 1, address(9));
    let tally = bench.turn().datagrams.forward;
    assert_eq!((tally.sent, tally.drops(DropReason::Aged)), (0, 1));
    bench.exit.set_clock(Clock::showing(bench.now));
    bench.send(0, 1, address(9));
    assert_eq!(bench.turn().datagrams.forward.sent, 1);
}
