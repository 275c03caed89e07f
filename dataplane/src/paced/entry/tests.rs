mod meeting;
mod packing;
mod session;
mod waiting;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use rand::SeedableRng;
use wire::cell::CellKind;
use wire::frames::{self, Frame, Frames, SESSION_FLOW, Status, Writer};
use wire::gcm::{encipher_batch, open_batch, seal_batch};
use wire::kdf::Secret;
use wire::link::LinkContent;
use wire::paced::clock::ClockCell;
use wire::paced::{EntryKeys, ExitKeys, HopKeys, MeetingSecret, Phase, RoundSub, SALT_LEN};
use wire::setup::{HopSecrets, Suite};

use super::pacer::SETTLE;
use super::rounds::next_early;
use super::*;
use crate::entry::listener::{Destination, ListenerKind};
use crate::paced::control_cells::Control;
use crate::paced::peer::{BODY, CLASS, Cell as Read, HOPS, Peer, terms};
use crate::punt::Punt;
use crate::socket::memory::{Datagram, MemApps, MemNet, MemPort};
use crate::sys::Waker;
use crate::{MICRO, MILLI};

const P: usize = CLASS.size().payload();
/// The first batch of the tests.
const BATCH: u64 = 350_000_000;
const MAX_AGE: Duration = Duration::from_millis(60);

fn client(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn listener(port: u16) -> SocketAddr {
    ([127, 0, 0, 2], 5000 + port).into()
}

fn destination() -> SocketAddr {
    ([198, 51, 100, 1], 53).into()
}

/// An entry, Mix 1 at the other end of its link, and the hops of its channels.
struct Bench {
    net: MemNet,
    apps: MemNet,
    entry: Entry<MemPort, MemApps>,
    commands: rtrb::Producer<Command>,
    punts: rtrb::Consumer<Punt>,
    mix: Peer,
    times: Timetable,
    /// Its channels have other keys than those of a bench with another seed.
    seed: u8,
    now: Nanos,
}

impl Bench {
    /// An entry whose clock shows the time of Mix 1, 20 rounds before [`BATCH`], with its link and its lead.
    fn new(terms: PacedTerms, service: Service, seed: u8) -> Bench {
        let mut bench = Bench::without_lead(terms, service, seed);
        bench.command(Command::Entry(EntryCommand::Lead { lead_ns: 0, is_known: true }));
        bench
    }

    fn without_lead(terms: PacedTerms, service: Service, seed: u8) -> Bench {
        let (net, apps, now) = (MemNet::default(), MemNet::default(), 5 * crate::SECOND);
        let times = terms.timetable(HOPS);
        let (commands, worker_commands) = rtrb::RingBuffer::new(4096);
        let (worker_punts, punts_out) = rtrb::RingBuffer::new(2048);
        let settings = Settings { terms, suite: Suite::Hybrid, hops: HOPS, position: 0, hugepages: false };
        let at: SocketAddr = ([192, 0, 2, 1], 1).into();
        let sockets = match &service {
            Service::Destinations(listeners) => listeners.len(),
            Service::Meeting { .. } => 1,
        };
        let local = (0..sockets as u16).map(listener).collect();
        let ports = (net.port(at, settings.lengths(Side::Down)), MemApps::new(apps.clone(), local, at.ip()));
        let punts = PuntSender::new(worker_punts, Arc::new(Waker::new().unwrap()));
        let clock = SteadyClock::new(now, times.begin(times.first(BATCH) - 20));
        let rng = ChaCha20Rng::seed_from_u64(seed.into());
        let entry = Entry::new((settings, service), ports, worker_commands, punts, rng, clock, now);
        let mix = Peer::new(seed, at, false);
        let mut bench = Bench { net, apps, entry, commands, punts: punts_out, mix, times, seed, now };
        bench.mix.link_commands().into_iter().for_each(|command| bench.command(command));
        bench
    }

    /// With one forward to [`destination`].
    fn to_destination(terms: PacedTerms) -> Bench {
        Bench::new(terms, forwards(&[MAX_AGE]), 1)
    }

    fn command(&mut self, command: Command) {
        assert!(self.commands.push(command).is_ok());
    }

    fn number(batch: u64) -> u32 {
        (batch - BATCH) as u32 + 70
    }

    fn secrets(&self, batch: u64) -> Vec<HopSecrets> {
        let of = |hop: u8, way: u8| Secret::new([self.seed << 5 | (batch as u8 & 7) << 3 | hop << 1 | way; 32]);
        let hop = |hop| HopSecrets {
            confirm: Default::default(),
            ack: zeroize::Zeroizing::new([0; 28]),
            forward: of(hop, 0),
            backward: of(hop, 1),
        };
        (0..HOPS as u8).map(hop).collect()
    }

    /// Adds a channel, in a meeting of the first one.
    fn open(&mut self, batch: u64) {
        self.open_of(batch, 1);
    }

    /// Adds a channel, in a meeting of the one with this number.
    fn open_of(&mut self, batch: u64, number: u32) {
        let meeting = self
            .entry
            .meeting
            .is_some()
            .then(|| MeetingSecret::new([9; 32]).meeting(&[1; 32], CLASS, self.times.first(batch)));
        let keys = Box::new(EntryKeys::new(self.secrets(batch)));
        let mut salt = [0; SALT_LEN];
        self.entry.rng.fill_bytes(&mut salt);
        let call = meeting.map(|meeting| Box::new(meeting.call(salt)));
        let (number, meeting) = (Bench::number(batch), number);
        self.command(Command::Entry(EntryCommand::InstallChannel { batch, number, keys, call, meeting }));
    }

    /// Layers of the first hops on a body, in their order.
    fn pass(&self, hops: usize, direction: Direction, place: RoundSub, body: &mut [u8]) {
        let mut secrets = self.secrets(self.times.batch_of(place.round));
        secrets.truncate(hops);
        if direction == Direction::Backward {
            secrets.reverse();
        }
        for hop in secrets {
            let keys = HopKeys::new(&hop.forward, &hop.backward);
            encipher_batch(&mut [keys.job(direction, place, body)]);
        }
    }

    fn exit_keys(&self, round: u64) -> ExitKeys {
        let HopSecrets { forward, backward, .. } = self.secrets(self.times.batch_of(round)).remove(HOPS - 1);
        ExitKeys::new(&forward, &backward)
    }

    /// The inner bytes that the exit reads in a data cell, if it opens.
    fn read_at_exit(&self, cell: &Read) -> Option<Vec<u8>> {
        let (place, mut body) = (cell.header.round_sub(), cell.body.clone());
        self.pass(HOPS - 1, Direction::Forward, place, &mut body);
        let keys = self.exit_keys(place.round);
        let mut jobs = [keys.data_job(Direction::Forward, place, &mut body)];
        open_batch(&mut jobs);
        let is_open = jobs[0].ok;
        is_open.then(|| body[..P].to_vec())
    }

    /// The body of a cell in which the exit says this.
    fn exit_body(&self, place: RoundSub, frames: &[Frame<'_>]) -> Vec<u8> {
        let mut body = vec![0; BODY];
        let mut writer = Writer::new(&mut body[..P]);
        assert!(frames.iter().all(|frame| writer.put(frame)));
        writer.finish();
        seal_batch(&mut [self.exit_keys(place.round).data_job(Direction::Backward, place, &mut body)]);
        self.pass(HOPS - 1, Direction::Backward, place, &mut body);
        body
    }

    fn send_from_mix(&self, place: RoundSub, body: &[u8]) -> Datagram {
        let number = Bench::number(self.times.batch_of(place.round));
        let datagram = self.mix.data(number, place.round, place.sub, body);
        self.net.send(datagram.clone());
        datagram
    }

    fn turn(&mut self) -> Nanos {
        let wake = self.entry.turn(self.now);
        self.entry.record_latency(self.now);
        assert!(self.entry.published.lock().unwrap().closed());
        wake
    }

    /// Lets the entry run until this time of its clock.
    fn run_until(&mut self, time: Nanos) {
        loop {
            let wake = self.turn();
            if self.entry.clock.at(self.now) >= time {
                return;
            }
            assert!(wake > self.now, "it does not spin");
            self.now = wake.min(self.entry.clock.when(time));
        }
    }

    /// Runs until a round has left. Returns what has left since the last call.
    fn run_to(&mut self, round: u64) -> Vec<Vec<u8>> {
        self.run_until(self.entry.pacer.due_at(round));
        self.take()
    }

    fn take(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.net.receive(self.mix.at)).map(|datagram| datagram.bytes).collect()
    }

    /// The data cells of a round, in order of sub. Nothing has left for it before.
    fn data_of(&mut self, round: u64) -> Vec<Read> {
        let cells = self.run_to(round);
        let cells = cells.iter().map(|bytes| self.mix.read(bytes, round));
        let mut cells: Vec<_> =
            cells.filter(|cell| cell.header.kind == CellKind::Data && cell.header.seq == round).collect();
        cells.sort_by_key(|cell| cell.header.sub);
        cells
    }

    /// An application's datagram.
    fn say(&self, from: SocketAddr, data: &[u8]) {
        self.apps.send(Datagram { from, to: listener(0), bytes: data.to_vec() });
    }

    /// The datagrams that have come to an application.
    fn heard(&self, at: SocketAddr) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.apps.receive(at)).map(|datagram| datagram.bytes).collect()
    }

    fn ledger(&self) -> Ledger {
        *self.entry.published.lock().unwrap()
    }

    fn shown(&self) -> EntryView {
        *self.entry.shown.lock().unwrap()
    }
}

/// Forwards to [`destination`], at sockets 0 and up, with these maximum ages.
fn forwards(max_ages: &[Duration]) -> Service {
    let kind = ListenerKind::Forward(Destination::Ip(destination()));
    let listener =
        |max_age: &Duration| Listener { kind: kind.clone(), idle: Duration::from_secs(300), max_age: *max_age };
    Service::Destinations(max_ages.iter().map(listener).collect())
}

/// The frames of a cell in short.
fn kinds(inner: &[u8], repeat: bool) -> Vec<&'static str> {
    let frames = frames::parse_paced(inner, Direction::Forward, repeat).unwrap();
    frames.map(|frame| kind(&frame)).collect()
}

fn kind(frame: &Frame<'_>) -> &'static str {
    match frame {
        Frame::Again(_) => "again",
        Frame::Session(_) => "session",
        Frame::Close { .. } => "close",
        Frame::Open { .. } => "open",
        Frame::Dgram { .. } => "dgram",
        Frame::Frag { .. } => "frag",
        _ => "other",
    }
}

/// What a round sends, without the copies of `before`, which must be among it byte for byte.
fn without_copies(mut cells: Vec<Vec<u8>>, before: &[Vec<u8>]) -> Vec<Vec<u8>> {
    for copy in before {
        let at = cells.iter().position(|cell| cell == copy).expect("a copy of each cell follows");
        cells.swap_remove(at);
    }
    cells
}

#[test]
fn rounds_have_one_number_of_cells_whatever_they_carry() {
    for (copies, gap) in [(1, 1), (2, 1), (2, 3), (3, 2)] {
        let terms = PacedTerms { copies, gap, ..terms() };
        let mut bench = Bench::without_lead(terms, forwards(&[MAX_AGE]), 1);
        let first = bench.times.first(BATCH);
        bench.open(BATCH);
        let setups = bench.times.rounds_of(BATCH, Phase::Setup(1)).start + 30..first + bench.times.used();
        let mut firsts = BTreeMap::<u64, Vec<Vec<u8>>>::new();
        let mut numbers = HashSet::new();
        for round in first - 19..first + 60 {
            if round == first - 10 {
                bench.command(Command::Entry(EntryCommand::Lead { lead_ns: 0, is_known: true }));
            }
            if round > first + 20 {
                bench.say(client(1), &[1; 300]);
            }
            if setups.contains(&round) {
                let control = Control { kind: CellKind::Setup, channel: 77, sub: 1, content: vec![1; 20] };
                bench.command(Command::AtRound { link: None, direction: Direction::Forward, round, control });
                let control = Control::link(LinkContent::Ask, &[1; 20]);
                bench.command(Command::AtNextSlot { link: bench.mix.link, control });
            }
            let mut cells = bench.run_to(round);
            for j in 1..u64::from(copies) {
                cells = without_copies(cells, firsts.get(&(round - j * u64::from(gap))).map_or(&[], Vec::as_slice));
            }
            let slots = bench.entry.slots.of(&bench.times, round);
            assert_eq!(cells.len(), 2 + slots.total(), "round {round}, {copies} copies");
            let data: Vec<_> = cells.iter().map(|bytes| bench.mix.read(bytes, round)).collect();
            let data = data.iter().filter(|cell| cell.header.kind == CellKind::Data);
            let places: Vec<_> = data.map(|cell| (cell.header.channel, cell.header.seq, cell.header.sub)).collect();
            assert!(places.len() == 2 && places.iter().all(|(_, of, _)| *of == round));
            numbers.insert(places[0].0);
            firsts.insert(round, cells);
        }
        assert_eq!(numbers.len(), 2, "that of the batch before was drawn");
        let setups = firsts.values().flatten().map(|bytes| bench.mix.read(bytes, first));
        assert!(setups.filter(|cell| cell.header.kind == CellKind::Setup).count() > 20);
    }
}

/// Mix 1 could send something to be repeated, end the link, and know the entry by it on the next one.
#[test]
fn link_cells_that_wait_do_not_leave_on_another_link() {
    let mut bench = Bench::to_destination(terms());
    bench.run_to(bench.times.first(BATCH) - 15);
    let ask = |link, byte| Command::AtNextSlot { link, control: Control::link(LinkContent::Ask, &[byte; 20]) };
    let (old, new) = (bench.mix.link, LinkId(99));
    (1..6).for_each(|byte| bench.command(ask(old, byte)));
    bench.turn();
    bench.command(Command::Link(LinkCommand::Retire { link: old }));
    bench.command(ask(old, 6));
    bench.turn();
    bench.mix.link = new;
    bench.mix.link_commands().into_iter().for_each(|command| bench.command(command));
    bench.command(ask(new, 7));
    bench.take();
    let mut asks = Vec::new();
    for round in bench.times.first(BATCH) - 14..bench.times.first(BATCH) + 20 {
        let cells = bench.run_to(round);
        let read = cells.iter().map(|bytes| bench.mix.read(bytes, round)).collect::<Vec<_>>();
        asks.extend(read.iter().filter(|cell| cell.body[0] == LinkContent::Ask as u8).map(|cell| cell.body[1]));
    }
    asks.dedup();
    assert_eq!(asks, [7]);
}

#[test]
fn datagram_reaches_the_exit_and_its_answer_comes_back() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 3);
    bench.say(client(1), b"ask");
    let cells = bench.data_of(first + 4);
    let inner = bench.read_at_exit(&cells[0]).expect("it opens");
    let frames: Vec<_> = frames::parse_paced(&inner, Direction::Forward, false).unwrap().collect();
    assert!(matches!(frames[0], Frame::Session(_)) && matches!(frames[2], Frame::Dgram { data: b"ask", .. }));
    let Frame::Open { flow, to, .. } = frames[1] else { panic!("{frames:?}") };
    assert_eq!(to, frames::Address::Ip(destination()));
    let rest = bench.read_at_exit(&cells[1]).expect("it opens");
    assert_eq!(kinds(&rest, false), [""; 0], "the other cell of the round is PAD");

    let place = RoundSub { round: first + 3, sub: 1 };
    let answer = [Frame::Status { flow, code: Status::Open }, Frame::Dgram { flow, data: b"answer" }];
    let body = bench.exit_body(place, &answer);
    (0..2).for_each(|_| drop(bench.send_from_mix(place, &body)));
    bench.say(client(1), b"again");
    let cells = bench.data_of(first + 5);
    assert_eq!(bench.heard(client(1)), [b"answer"], "once");
    assert_eq!(kinds(&bench.read_at_exit(&cells[0]).unwrap(), false), ["session", "dgram"]);
    let Ledger { cells, datagrams, .. } = bench.ledger();
    assert_eq!((cells.backward.consumed, cells.backward.drops(DropReason::Copy)), (1, 1));
    assert_eq!((datagrams.forward.consumed, datagrams.backward.sent), (2, 1));
}

#[test]
fn entry_without_flows_or_channel_sends_random_bodies() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.command(Command::Entry(EntryCommand::Drawn { batch: BATCH + 1, number: 5 }));
    let cells = bench.data_of(first + 3);
    assert!(cells.iter().all(|cell| cell.header.channel == Bench::number(BATCH)));
    assert!(cells.iter().all(|cell| bench.read_at_exit(cell).is_none()));
    bench.run_to(first + 510);
    bench.say(client(1), b"ask");
    bench.run_to(first + 511);
    let cells = bench.data_of(first + 512);
    assert!(cells.iter().all(|cell| cell.header.channel == 5), "the number that was drawn");
    assert!(cells.iter().all(|cell| bench.read_at_exit(cell).is_none()));
}

#[test]
fn session_is_named_four_times_and_then_until_it_is_answered() {
    let mut bench = Bench::to_destination(PacedTerms { cells: 1, ..terms() });
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 3);
    bench.say(client(1), b"ask");
    let mut named = Vec::new();
    let mut flow_of_open = 0;
    for round in first + 4..first + 60 {
        let inner = bench.data_of(round).first().and_then(|cell| bench.read_at_exit(cell)).expect("it opens");
        for frame in frames::parse_paced(&inner, Direction::Forward, false).unwrap() {
            match frame {
                Frame::Session(session) => {
                    assert_eq!(session, bench.entry.session);
                    named.push(round - first);
                }
                Frame::Open { flow, .. } => flow_of_open = flow,
                _ => {}
            }
        }
        if round == first + 40 {
            let place = RoundSub { round: first + 38, sub: 0 };
            let statuses = [
                Frame::Status { flow: flow_of_open, code: Status::Open },
                Frame::Status { flow: SESSION_FLOW, code: Status::UnknownFlow },
            ];
            bench.send_from_mix(place, &bench.exit_body(place, &statuses));
        }
    }
    assert_eq!(named, [4, 5, 6, 7, 17, 27, 37]);
    bench.say(client(1), b"ask");
    let cells = bench.data_of(first + 60);
    assert_eq!(kinds(&bench.read_at_exit(&cells[0]).unwrap(), false), ["open", "dgram"], "OPEN again after 5");
}

#[test]
fn flows_pass_from_batch_to_batch_without_a_gap() {
    for repeat in [false, true] {
        let mut bench = Bench::to_destination(PacedTerms { repeat, cells: 1, ..terms() });
        (BATCH..BATCH + 2).for_each(|batch| bench.open(batch));
        let next = bench.times.first(BATCH + 1);
        bench.run_to(next - 20);
        let mut came = Vec::new();
        let mut flows = HashSet::new();
        for (round, number) in (next - 19..next + 20).zip(0..) {
            bench.say(client(1), &[number]);
            let cells = bench.data_of(round);
            let Some(inner) = bench.read_at_exit(&cells[0]) else { continue };
            for frame in frames::parse_paced(&inner, Direction::Forward, repeat).unwrap() {
                if let Frame::Dgram { flow, data } = frame {
                    flows.insert(flow);
                    came.push((round, data[0]));
                }
            }
        }
        assert_eq!(flows.len(), 1);
        assert!(came.iter().map(|(_, number)| *number).eq(0..39), "{came:?}");
        let skipped = (next - 19..next + 20).filter(|round| !came.iter().any(|(of, _)| of == round));
        let expected = if repeat { vec![next - 1] } else { vec![] };
        assert_eq!(skipped.collect::<Vec<_>>(), expected, "with repeat a batch ends without new frames");
    }
}

#[test]
fn rounds_leave_when_the_lead_says_and_are_sealed_before() {
    for lead_ns in [0, 3 * MILLI as i64, -4 * MILLI as i64] {
        let mut bench = Bench::to_destination(terms());
        bench.command(Command::Entry(EntryCommand::Lead { lead_ns, is_known: true }));
        bench.turn();
        let round = bench.times.first(BATCH) - 10;
        bench.run_to(round - 1);
        let due = bench.times.begin(round).checked_add_signed(-lead_ns).unwrap();
        bench.run_until(due - 1);
        assert_eq!(bench.take(), [[0; 0]; 0]);
        let sealed: Vec<Vec<u8>> = bench.entry.prepared.cells().map(<[u8]>::to_vec).collect();
        bench.say(client(1), b"too late for this round");
        bench.run_until(due);
        assert_eq!(bench.take(), sealed);
        assert_eq!(bench.shown().running, Some(round));
    }
}

#[test]
fn worker_that_wakes_early_spins_until_the_round_is_due() {
    let mut bench = Bench::to_destination(terms());
    let round = bench.times.first(BATCH) - 10;
    bench.run_until(bench.entry.pacer.due_at(round) - EARLY.end());
    bench.take();
    bench.entry.set_clock(Clock::showing(bench.now));
    bench.turn();
    let cells = bench.take();
    assert!(cells.iter().any(|bytes| bench.mix.read(bytes, round).header.seq == round));
    assert!(bench.entry.began.0 >= bench.entry.clock.when(bench.entry.pacer.due_at(round)));
}

#[test]
fn time_to_spin_follows_the_timers_of_the_host() {
    let after = |early, late: &[Nanos]| late.iter().fold(early, |early, late| next_early(early, *late));
    let [least, most] = [*EARLY.start(), *EARLY.end()];
    assert_eq!(after(most, &[40 * MICRO; 200]), 40 * MICRO);
    assert_eq!(after(most, &[MICRO; 1000]), least);
    assert_eq!(after(least, &[90 * MICRO]), 90 * MICRO, "at once");
    assert_eq!(after(least, &[most + 1, 4 * MILLI]), least, "another thread had the core");
}

#[test]
fn worker_sleeps_through_the_time_in_which_nothing_is_read() {
    let mut bench = Bench::to_destination(terms());
    let due = bench.entry.pacer.due_at(bench.times.first(BATCH) - 10);
    bench.run_until(due - QUIET);
    let wake = bench.turn();
    assert_eq!(wake, bench.entry.clock.when(due) - EARLY.end());
}

#[test]
fn nothing_is_read_just_before_a_round_is_due() {
    let mut bench = Bench::to_destination(terms());
    let due = bench.entry.pacer.due_at(bench.times.first(BATCH) - 10);
    bench.run_until(due - QUIET);
    let before = bench.ledger().datagrams.forward.received;
    bench.say(client(1), b"ask");
    bench.run_until(due - QUIET / 2);
    assert!(bench.entry.is_blocked(), "the runner does not poll");
    assert_eq!(bench.ledger().datagrams.forward.received, before);
    bench.run_until(due + MICRO);
    assert_eq!(bench.ledger().datagrams.forward.received, before + 1);
}

/// An entry to which cells come this long before a round is due, of which the first takes until this long before it:
/// the others wait. Returns the runner's clock, too.
fn with_cells_left(before: Nanos, until: Nanos) -> (Bench, Clock) {
    let mut bench = Bench::new(terms(), forwards(&[Duration::from_secs(60)]), 1);
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 2);
    bench.say(client(1), b"ask");
    bench.run_to(first + 20);
    let due = bench.entry.clock.when(bench.entry.pacer.due_at(first + 21));
    bench.run_until(bench.entry.clock.at(due - before));
    bench.take();
    for round in first..first + 20 {
        let place = RoundSub { round, sub: 0 };
        let body = bench.exit_body(place, &[Frame::Dgram { flow: 0, data: b"answer" }]);
        bench.send_from_mix(place, &body);
    }
    let clock = Clock::showing(bench.now);
    bench.apps.tap(move |datagram| {
        while clock.now() < due - until {
            std::hint::spin_loop();
        }
        vec![datagram]
    });
    bench.entry.set_clock(clock);
    let wake = bench.turn();
    let cells = bench.ledger().cells.backward;
    assert!(cells.consumed <= 8 && cells.consumed + cells.held == 20, "{cells:?}");
    assert!(wake <= bench.now, "it comes back at once");
    (bench, clock)
}

/// Mix 1 could see by that whether an entry has a channel, and of which kind.
#[test]
fn cells_of_mix_1_do_not_delay_a_round() {
    for (before, until) in [(PREPARE + MILLI, PREPARE), (PREPARE, STILL)] {
        let (mut bench, clock) = with_cells_left(before, until);
        while bench.take().is_empty() {
            let consumed = bench.ledger().cells.backward.consumed;
            assert!(consumed <= 8 || until == PREPARE, "the round leaves first");
            bench.now = clock.now();
            bench.turn();
        }
        while bench.ledger().cells.backward.held > 0 {
            bench.now = clock.now();
            bench.turn();
        }
        assert_eq!((bench.ledger().cells.backward.consumed, bench.heard(client(1)).len()), (20, 20));
    }
}

#[test]
fn cells_that_wait_are_dropped_with_their_link() {
    let (mut bench, ..) = with_cells_left(PREPARE + MILLI, PREPARE);
    let held = bench.ledger().cells.backward.held;
    bench.command(Command::Link(LinkCommand::Retire { link: bench.mix.link }));
    bench.entry.runner_clock = None;
    bench.run_until(bench.entry.clock.at(bench.now + 20 * MILLI));
    let cells = bench.ledger().cells.backward;
    assert_eq!((cells.held, cells.drops(DropReason::LinkDown)), (0, held));
}

#[test]
fn stopped_entry_counts_cells_that_wait() {
    let (mut bench, ..) = with_cells_left(PREPARE + MILLI, PREPARE);
    let held = bench.ledger().cells.backward.held;
    bench.entry.finish(bench.now);
    let Ledger { cells, buffers, .. } = bench.ledger();
    assert_eq!((cells.backward.held, cells.backward.drops(DropReason::Shutdown)), (0, held));
    assert_eq!(buffers.free, buffers.total);
}

#[test]
fn time_of_preparing_does_not_count_as_time_to_settle() {
    let mut bench = Bench::to_destination(terms());
    let due = bench.entry.pacer.due_at(bench.times.first(BATCH) - 10);
    bench.run_until(due - PREPARE - MILLI);
    // The turn begins just before the round is due, and has taken 50 us when the round is ready.
    let now = bench.entry.clock.when(due - SETTLE);
    bench.entry.runner_clock = Some(Clock::showing(now + 50 * MICRO));
    bench.entry.prepare(now);
    assert!(bench.entry.ready.as_ref().unwrap().at >= now + 50 * MICRO + SETTLE);
}

#[test]
fn late_worker_drops_rounds_and_seals_no_place_twice() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 2);
    let mut sealed = BTreeMap::new();
    for (late, stop) in [(0, 9 * MILLI), (10, 35 * MILLI), (20, 3 * MILLI), (30, 200 * MILLI)] {
        bench.say(client(1), &[late as u8; 20]);
        // It has just prepared a round, and then is stopped.
        let round = bench.entry.pacer.last() + 1;
        bench.run_until(bench.entry.pacer.due_at(round) - MILLI);
        bench.now += stop;
        let from = bench.entry.pacer.last();
        let cells = [bench.take(), bench.run_to(from + 24)].concat();
        for cell in cells.iter().map(|bytes| bench.mix.read(bytes, from)) {
            if cell.header.kind == CellKind::Data {
                let body = sealed.entry((cell.header.seq, cell.header.sub)).or_insert_with(|| cell.body.clone());
                assert_eq!(*body, cell.body, "one body for a place");
            }
        }
        let due = bench.entry.clock.at(bench.now) / (10 * MILLI);
        assert!(sealed.keys().any(|(round, _)| *round == due), "it goes on with the round that is due");
    }
    let aged = bench.ledger().cells.forward.drops(DropReason::Aged);
    assert!(aged >= 8, "{aged} cells of rounds that were prepared");
    assert_eq!(bench.shown().skipped, 2 + 18, "rounds in which it was stopped");
}

#[test]
fn round_that_is_prepared_late_leaves_a_fixed_time_later() {
    let mut bench = Bench::to_destination(terms());
    let round = bench.times.first(BATCH) - 10;
    bench.run_to(round - 1);
    bench.now = bench.entry.clock.when(bench.entry.pacer.due_at(round) + MILLI);
    let late = bench.now;
    bench.turn();
    bench.now = late + SETTLE - 1;
    bench.turn();
    assert_eq!(bench.take(), [[0; 0]; 0]);
    bench.now = late + SETTLE;
    bench.turn();
    let cells = bench.take();
    assert!(cells.iter().any(|bytes| bench.mix.read(bytes, round).header.seq == round));
}

#[test]
fn cells_that_miss_their_slot_are_dropped() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 9);
    bench.net.block(true);
    assert_eq!(bench.run_to(first + 10), [[0; 0]; 0]);
    assert!(bench.entry.is_blocked());
    bench.run_until(bench.entry.pacer.due_at(first + 11) - MILLI);
    let before = bench.ledger().cells.forward;
    bench.net.block(false);
    bench.net.block(true);
    bench.run_until(bench.entry.pacer.due_at(first + 12) - MILLI);
    bench.net.block(false);
    let cells: Vec<_> = bench.run_to(first + 12).iter().map(|bytes| bench.mix.read(bytes, first + 12)).collect();
    let rounds: HashSet<u64> =
        cells.iter().filter(|cell| cell.header.kind == CellKind::Data).map(|cell| cell.header.seq).collect();
    // First copies of 11 and copies of 10 could leave until 12 was due.
    assert_eq!(rounds, [first + 10, first + 11, first + 12].into());
    let aged = bench.ledger().cells.forward.drops(DropReason::Aged) - before.drops(DropReason::Aged);
    assert_eq!(aged, 4 + 2 * bench.entry.slots.of(&bench.times, first + 10).placed as u64);
}

/// The places of the latest 512 rounds are remembered. Mix 1 could get behind that by a lead that jumps there and back.
#[test]
fn place_that_has_opened_is_not_opened_again_whatever_came() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    bench.run_to(bench.times.first(BATCH) + 9);
    let place = RoundSub { round: bench.times.first(BATCH) + 5, sub: 1 };
    let body = bench.exit_body(place, &[]);
    let counted = |bench: &mut Bench| {
        bench.send_from_mix(place, &body);
        bench.turn();
        let tally = bench.ledger().cells.backward;
        (tally.consumed, tally.drops(DropReason::Copy))
    };
    assert_eq!(counted(&mut bench), (1, 0));
    assert!(bench.entry.channels.claim(RoundSub { round: place.round + 512, ..place }));
    assert_eq!(counted(&mut bench), (1, 1));
}

/// Mix 1 sends the same bytes in all copies: others would cost an entry with a channel more time than one without.
#[test]
fn first_cell_takes_its_place_with_and_without_a_channel() {
    for has_channel in [true, false] {
        let mut bench = Bench::to_destination(terms());
        if has_channel {
            bench.open(BATCH);
        } else {
            bench.command(Command::Entry(EntryCommand::Drawn { batch: BATCH, number: Bench::number(BATCH) }));
        }
        let first = bench.times.first(BATCH);
        bench.run_to(first + 9);
        let place = RoundSub { round: first + 5, sub: 1 };
        let genuine = bench.exit_body(place, &[]);
        let mut damaged = genuine.clone();
        damaged[50] ^= 1;
        let counted = |bench: &mut Bench| {
            bench.turn();
            let tally = bench.ledger().cells.backward;
            (tally.consumed, tally.drops(DropReason::Garbled), tally.drops(DropReason::Copy))
        };
        (0..3).for_each(|_| drop(bench.send_from_mix(place, &damaged)));
        let garbled = u64::from(has_channel);
        assert_eq!(counted(&mut bench), (1 - garbled, garbled, 2));
        (0..2).for_each(|_| drop(bench.send_from_mix(place, &genuine)));
        assert_eq!(counted(&mut bench), (1 - garbled, garbled, 4), "another body of the place is not tried");
        let other = RoundSub { sub: 0, ..place };
        let body = bench.exit_body(other, &[]);
        (0..2).for_each(|_| drop(bench.send_from_mix(other, &body)));
        assert_eq!(counted(&mut bench), (2 - garbled, garbled, 5));
    }
}

#[test]
fn channel_that_comes_too_late_is_not_shown() {
    for late in [false, true] {
        let mut bench = Bench::to_destination(terms());
        let first = bench.times.first(BATCH);
        bench.run_to(first - u64::from(!late));
        bench.open(BATCH);
        bench.run_to(first + 3);
        assert_eq!(bench.shown().has_channel, !late);
    }
}

/// So it takes as long as with a channel.
#[test]
fn decoy_keys_decipher_what_comes_without_a_channel() {
    let mut bench = Bench::to_destination(terms());
    bench.command(Command::Entry(EntryCommand::Drawn { batch: BATCH, number: Bench::number(BATCH) }));
    let first = bench.times.first(BATCH);
    bench.run_to(first + 9);
    let body = [7; BODY];
    // Noise of Mix 1 has number 0 and keeps its bytes.
    for (number, is_kept) in [(0, true), (Bench::number(BATCH), false)] {
        bench.net.send(bench.mix.data(number, first + 5, 1, &body));
        bench.turn();
        let buffer = bench.entry.free.take().expect("that of the cell");
        assert_eq!(buffer.bytes()[..CLASS.cell_len()].ends_with(&body), is_kept);
        bench.entry.free.give(buffer);
    }
    assert_eq!(bench.ledger().cells.backward.consumed, 2);
}

#[test]
fn cells_out_of_place_are_counted_and_change_nothing() {
    let mut bench = Bench::to_destination(terms());
    (BATCH..BATCH + 2).for_each(|batch| bench.open(batch));
    let next = bench.times.first(BATCH + 1);
    bench.run_to(next + 250);
    let place = |round, sub| RoundSub { round, sub };
    for round in [next - 7, next - 6, next + 258, next + 259] {
        bench.send_from_mix(place(round, 0), &bench.exit_body(place(round, 0), &[]));
    }
    let noise = [3; BODY];
    bench.net.send(bench.mix.data(0, next + 250, 0, &noise));
    bench.net.send(bench.mix.data(Bench::number(BATCH), next + 250, 0, &noise));
    bench.net.send(bench.mix.data(Bench::number(BATCH + 1), next + 250, 2, &noise));
    bench.turn();
    let tally = bench.ledger().cells.backward;
    let reasons = [DropReason::Late, DropReason::Early, DropReason::Channel, DropReason::Sub];
    assert_eq!(reasons.map(|reason| tally.drops(reason)), [1, 1, 1, 1]);
    assert_eq!(tally.consumed, 3, "256 rounds behind, 8 ahead, and noise without a channel");
    bench.run_to(next + 270);
    bench.send_from_mix(place(next - 1, 0), &noise);
    bench.turn();
    assert_eq!(bench.ledger().cells.backward.drops(DropReason::Late), 2);
}

#[test]
fn without_a_lead_no_data_cell_is_accepted() {
    let mut bench = Bench::without_lead(terms(), forwards(&[MAX_AGE]), 1);
    let round = bench.times.first(BATCH) - 10;
    bench.run_to(round);
    bench.net.send(bench.mix.data(0, round, 0, &[3; BODY]));
    bench.turn();
    assert_eq!((bench.ledger().cells.backward.drops(DropReason::Header), bench.shown().running), (1, None));
    // The clock was an hour ahead of that of Mix 1.
    let hour = 3_600 * crate::SECOND;
    bench.command(Command::Entry(EntryCommand::Lead { lead_ns: -(hour as i64), is_known: true }));
    bench.take();
    bench.run_until(bench.entry.clock.at(bench.now) + 25 * MILLI);
    let behind = round - hour / (10 * MILLI);
    assert!((behind..behind + 4).contains(&bench.shown().running.unwrap()));
    let cells = bench.take();
    assert!(cells.len() >= 6 && cells.iter().all(|bytes| bench.mix.read(bytes, behind).header.seq < round));
}

/// Nobody sends in its rounds any more, and the entry would keep the keys until its time has come again.
#[test]
fn channel_far_ahead_of_a_lead_that_jumped_back_is_forgotten() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 20);
    for (batches, kept) in [(1, 1), (5, 0)] {
        let lead_ns = -((batches * bench.times.begin(bench.times.first(1))) as i64);
        bench.command(Command::Entry(EntryCommand::Lead { lead_ns, is_known: true }));
        bench.run_until(bench.entry.clock.at(bench.now) + crate::SECOND);
        assert_eq!(bench.entry.channels.len(), kept, "{batches} batches back");
    }
}

#[test]
fn wait_of_datagrams_for_their_round_is_shown() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 20);
    assert_eq!(bench.shown().waits, None);
    // They come when a round has just left.
    for round in first + 21..first + 60 {
        bench.say(client(1), b"ask");
        bench.run_to(round);
    }
    bench.run_to(first + 260);
    let Waits { p50, p99 } = bench.shown().waits.expect("datagrams have left");
    let period = bench.times.period();
    assert!(p50 >= period && p99 <= period * 9 / 8, "{p50} and {p99} of {period}");
}

#[test]
fn lost_places_are_those_of_which_no_copy_came() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    for round in first..first + 20 {
        bench.run_to(round);
        for sub in 0..2 {
            let place = RoundSub { round, sub };
            // What is damaged came, too.
            let body = if round % 3 == 0 { vec![1; BODY] } else { bench.exit_body(place, &[]) };
            if (round - first) % 5 != 4 {
                bench.send_from_mix(place, &body);
            }
        }
    }
    bench.run_to(first + 19 + 257);
    assert_eq!((bench.shown().places, bench.shown().lost), (40, 8));
    assert_eq!(bench.shown().outages.count, 0, "no two rounds in a row");

    // Control hears of them after every 100 rounds.
    bench.run_to(first + 19 + 257 + 200);
    let reported = std::iter::from_fn(|| bench.punts.pop().ok()).filter_map(|punt| match punt {
        Punt::PacedPlaces { first, rounds, places, lost } => Some((first, rounds, places, lost)),
        _ => None,
    });
    let reported: Vec<_> = reported.collect();
    assert!(reported.iter().all(|(_, rounds, ..)| *rounds == 100) && reported.len() >= 3, "{reported:?}");
    assert!(reported.windows(2).all(|pair| pair[0].0 + 100 == pair[1].0), "{reported:?}");
    let sum = reported.iter().fold((0, 0), |sum, (.., places, lost)| (sum.0 + places, sum.1 + lost));
    assert!(reported.last().unwrap().0 + 100 > first + 20);
    assert_eq!((sum.1, sum.0 >= 40), (8 + (sum.0 - 40), true), "nothing came in later rounds");
    // The last round that came is the one before the end of the loop.
    let Outages { count, longest, .. } = bench.shown().outages;
    assert_eq!((count, longest >= 180), (1, true), "{longest}");
}

#[test]
fn entry_without_a_link_counts_what_it_cannot_send() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first);
    let before = bench.ledger().cells.forward;
    bench.command(Command::Link(LinkCommand::Retire { link: bench.mix.link }));
    bench.say(client(1), b"ask");
    assert_eq!(bench.run_to(first + 5), [[0; 0]; 0]);
    let forward = bench.ledger().cells.forward;
    assert_eq!(forward.drops(DropReason::LinkDown) - before.drops(DropReason::LinkDown), 2 * 5);
    assert_eq!(bench.entry.sender.kept(), 0);
    bench.mix.link_commands().into_iter().for_each(|command| bench.command(command));
    let cells = bench.data_of(first + 8);
    assert!(bench.read_at_exit(&cells[0]).is_some(), "it goes on in the same batch");
}

#[test]
fn stopped_entry_counts_what_it_holds() {
    let mut bench = Bench::to_destination(terms());
    bench.open(BATCH);
    let first = bench.times.first(BATCH);
    bench.run_to(first + 5);
    bench.say(client(1), b"ask");
    bench.run_until(bench.entry.pacer.due_at(first + 7) - (QUIET + PREPARE) / 2);
    bench.say(client(1), b"ask");
    bench.turn();
    bench.entry.finish(bench.now);
    let Ledger { cells, datagrams, buffers, .. } = bench.ledger();
    assert!(cells.forward.drops(DropReason::Shutdown) >= 4 && cells.forward.held == 0);
    assert_eq!((datagrams.forward.drops(DropReason::Shutdown), datagrams.forward.held), (1, 0));
    assert_eq!(buffers.free, buffers.total);
}

#[test]
fn clock_cells_of_an_entry_are_numbers_and_nothing_else() {
    let mut bench = Bench::to_destination(terms());
    let first = bench.times.first(BATCH).next_multiple_of(16);
    let mut cells = Vec::new();
    for round in first..first + 40 {
        let came = bench.run_to(round);
        let of_link = came.iter().map(|bytes| bench.mix.read(bytes, round));
        cells.extend(
            of_link.filter(|cell| cell.header.kind == CellKind::Link && cell.body[0] == 2).map(|cell| cell.body),
        );
    }
    let clocks: Vec<_> = cells.iter().map(|body| ClockCell::from_bytes(body[1..].first_chunk().unwrap())).collect();
    // Each cell has a copy.
    let sent: Vec<_> = clocks.iter().step_by(2).map(|cell| cell.sent).collect();
    assert!(sent.len() >= 3 && sent.iter().copied().eq(sent[0]..sent[0] + sent.len() as u64), "{sent:?}");
    assert!(sent[0] == 1 && clocks.iter().all(|cell| (cell.peer, cell.received) == (0, 0)), "{clocks:?}");
    let reported: Vec<_> = std::iter::from_fn(|| bench.punts.pop().ok()).collect();
    let reported = reported.iter().filter_map(|punt| match *punt {
        Punt::PacedClockSent { link, number, sent_ns } => Some((link, number, sent_ns)),
        _ => None,
    });
    // The entry starts 20 rounds before the batch.
    let at = |number| bench.times.begin(first + 16 * number - 32);
    let expected = sent.iter().map(|number| (bench.mix.link, *number, at(*number)));
    assert!(reported.take(sent.len()).eq(expected), "when each of them was due");
}
