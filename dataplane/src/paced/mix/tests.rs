mod loops;

use std::collections::HashMap;
use std::net::SocketAddr;

use rand::{Rng, SeedableRng};
use wire::cell::CellKind;
use wire::gcm::seal_batch;
use wire::kdf::Secret;
use wire::link::LinkContent;
use wire::paced::clock::ClockCell;
use wire::paced::{CLOCK_EVERY, EntryKeys, ExitKeys, MeetingSecret, PacedTerms, Report, SALT_LEN};
use wire::setup::{HopSecrets, Suite};

use loops::{secrets, with_loops};

use super::*;
use crate::paced::peer::{BODY, CLASS, Cell, HOPS, Peer, data, terms};
use crate::paced::{ChannelAt, Control};
use crate::punt::Punt;
use crate::socket::memory::{MemNet, MemPort};
use crate::sys::Waker;
use crate::{MILLI, SECOND};

struct Bench {
    net: MemNet,
    mix: Mix<MemPort, MemPort>,
    commands: rtrb::Producer<Command>,
    punts: rtrb::Consumer<Punt>,
    /// At a mix behind the first, the hop before it.
    entries: Vec<Peer>,
    next: Peer,
    times: Timetable,
    rng: ChaCha20Rng,
    now: Nanos,
}

/// The batch of most tests.
const BATCH: u64 = 350_000_000;

impl Bench {
    /// Mix 1 of a chain with two mixes, and some entries; its clock shows 20 rounds before [`BATCH`].
    fn new(entries: u8) -> Bench {
        Bench::with(terms(), entries)
    }

    fn with(terms: PacedTerms, entries: u8) -> Bench {
        Bench::at(1, terms, entries)
    }

    fn at(position: usize, terms: PacedTerms, entries: u8) -> Bench {
        let (net, now) = (MemNet::default(), SECOND);
        let times = terms.timetable(HOPS);
        let (commands, worker_commands) = rtrb::RingBuffer::new(4096);
        let (worker_punts, punts) = rtrb::RingBuffer::new(2048);
        let settings = Settings { terms, suite: Suite::Hybrid, hops: HOPS, position, hugepages: false };
        let (up, down): (SocketAddr, SocketAddr) = (([192, 0, 2, 1], 1).into(), ([192, 0, 2, 1], 2).into());
        let ports = (net.port(up, settings.lengths(Side::Up)), net.port(down, settings.lengths(Side::Down)));
        let sender = PuntSender::new(worker_punts, Arc::new(Waker::new().unwrap()));
        let clock = SteadyClock::new(now, times.begin(times.first(BATCH) - 20));
        let mix = Mix::new(settings, ports, worker_commands, sender, ChaCha20Rng::seed_from_u64(1), clock, now);
        let entries = (0..entries).map(|number| Peer::new(number, up, true)).collect();
        let next = Peer::new(50, down, false);
        let mut bench =
            Bench { net, mix, commands, punts, entries, next, times, rng: ChaCha20Rng::seed_from_u64(2), now };
        for i in 0..bench.entries.len() {
            bench.connect(Some(i));
        }
        bench.connect(None);
        bench
    }

    fn command(&mut self, command: Command) {
        assert!(self.commands.push(command).is_ok());
    }

    /// Installs the link of an entry, or of the next hop.
    fn connect(&mut self, entry: Option<usize>) {
        let peer = entry.map_or(&self.next, |entry| &self.entries[entry]);
        peer.link_commands().into_iter().for_each(|command| self.command(command));
    }

    /// Adds the channel of an entry to a batch. Its number is 10 more than the entry's on link 1, and 100 more on the
    /// next one.
    fn open(&mut self, batch: u64, entry: u8) {
        let (number, link) = (u32::from(entry), self.mix.is_first().then_some(LinkId(entry.into())));
        let keys = ChannelKeys::Hop { forward: Secret::new([entry; 32]), backward: Secret::new([!entry; 32]) };
        let up = ChannelAt { link, number: number + 10 };
        self.command(Command::InstallChannel {
            batch,
            up,
            down: Some(number + 100),
            keys: Box::new(keys),
            token: None,
        });
    }

    /// Adds a loop to [`BATCH`], through Mix 2 and the exit. Its number is 200 more. Those with one secret meet.
    fn open_loop(&mut self, loop_: u8, secret: u8) {
        let first = self.times.first(BATCH);
        let call = MeetingSecret::new([secret; 32]).meeting(&[1; 32], CLASS, first).call([loop_; SALT_LEN]);
        let keys = Some((Box::new(EntryKeys::new(secrets(loop_).into())), Box::new(call)));
        self.command(Command::InstallLoop { batch: BATCH, number: u32::from(loop_) + 200, keys });
    }

    fn keys(entry: u8) -> HopKeys {
        HopKeys::new(&Secret::new([entry; 32]), &Secret::new([!entry; 32]))
    }

    /// What the body of a place is behind the mix.
    fn enciphered(entry: u8, direction: Direction, round: u64, sub: u8, body: &[u8]) -> Vec<u8> {
        let (keys, mut body) = (Bench::keys(entry), body.to_vec());
        encipher_batch(&mut [keys.job(direction, wire::paced::RoundSub { round, sub }, &mut body)]);
        body
    }

    fn body(&mut self) -> Vec<u8> {
        let mut body = vec![0; BODY];
        self.rng.fill_bytes(&mut body);
        body
    }

    /// Lets the mix run until this time of the class's clock.
    fn run_until(&mut self, time: Nanos) {
        loop {
            let wake = self.mix.turn(self.now);
            self.mix.record_latency(self.now);
            assert!(self.mix.published.lock().unwrap().closed());
            if self.mix.clock.at(self.now) >= time {
                return;
            }
            self.now = wake.min(self.mix.clock.when(time));
        }
    }

    /// Runs until a round has left in a direction.
    fn release(&mut self, direction: Direction, round: u64) {
        self.run_until(self.mix.pipes[direction].schedule.due_at(round));
    }

    /// What has come to the next hop, or to an entry.
    fn take(&mut self, entry: Option<usize>) -> Vec<Cell> {
        let peer = entry.map_or(&self.next, |entry| &self.entries[entry]);
        let running = self.mix.pipes.forward.rounds.released();
        std::iter::from_fn(|| self.net.receive(peer.at)).map(|datagram| peer.read(&datagram.bytes, running)).collect()
    }

    /// The reports among what has come.
    fn reports(&mut self, entry: Option<usize>) -> Vec<Report> {
        let is_report = |cell: &Cell| cell.header.kind == CellKind::Link && cell.body[0] == LinkContent::Report as u8;
        let cells = self.take(entry).into_iter().filter(is_report);
        let mut reports: Vec<_> = cells.map(|cell| Report::from_bytes(cell.body[1..].first_chunk().unwrap())).collect();
        reports.sort_unstable_by_key(|report| report.last);
        reports.dedup();
        reports
    }

    fn rounds(&self) -> RoundCounts {
        self.mix.published.lock().unwrap().rounds
    }

    fn tally(&self, direction: Direction) -> Tally {
        self.mix.published.lock().unwrap().cells[direction]
    }
}

#[test]
fn second_mix_has_the_places_of_all_channels_on_both_links() {
    let mut bench = Bench::at(2, terms(), 1);
    [0, 1].into_iter().for_each(|entry| bench.open(BATCH, entry));
    let first = bench.times.first(BATCH);
    let last = (first + 99..).find(|round| (round + 1).is_multiple_of(100)).unwrap();
    bench.release(Direction::Forward, first - 1);
    let body = bench.body();
    bench.net.send(bench.entries[0].data(11, first + 3, 1, &body));
    bench.net.send(bench.next.data(100, first + 4, 0, &body));
    bench.release(Direction::Backward, last + 8);
    for (direction, peer, numbers, came) in [
        (Direction::Forward, None, [100, 101], (101, first + 3, 1)),
        (Direction::Backward, Some(0), [10, 11], (10, first + 4, 0)),
    ] {
        let cells = bench.take(peer);
        for round in first..=last {
            let of_round = data(&cells).filter(|cell| cell.header.seq == round);
            let mut places: Vec<_> = of_round.map(|cell| (cell.header.channel, cell.header.sub)).collect();
            places.sort_unstable();
            assert_eq!(places, numbers.map(|number| [(number, 0), (number, 1)]).concat(), "round {round}");
        }
        let (number, round, sub) = came;
        let expected = Bench::enciphered((number % 10) as u8 & 1, direction, round, sub, &body);
        let place = |cell: &&Cell| (cell.header.channel, cell.header.seq, cell.header.sub) == came;
        assert_eq!(data(&cells).find(place).map(|cell| &cell.body), Some(&expected), "{direction:?}");
        // What came from the other side is reported there.
        let is_report = |cell: &&Cell| cell.header.kind == CellKind::Link && cell.body[0] == LinkContent::Report as u8;
        let reports =
            cells.iter().filter(is_report).map(|cell| Report::from_bytes(cell.body[1..].first_chunk().unwrap()));
        let latest = reports.max_by_key(|report| report.last).expect("a report");
        let count = (last + 1 - first) as u32 * 4;
        assert_eq!((latest.places, latest.filled, latest.lost), (count, count - 1, count - 1), "{direction:?}");
        let is_company = |cell: &Cell| cell.header.kind == CellKind::Link && cell.body[0] == LinkContent::Company as u8;
        assert!(!cells.iter().any(is_company));
    }
}

#[test]
fn order_of_a_release_is_uniform_over_all_its_cells() {
    let mut bench = with_loops();
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first - 1);
    bench.take(None);
    // Where the cells of the entry, of a loop and of control are among the twelve of a round.
    let mut positions = [[0; 12]; 3];
    for round in first..first + 512 {
        if round % 2 == 0 {
            bench.net.send(bench.entries[0].data(10, round, 1, &[round as u8; BODY]));
        }
        bench.release(Direction::Forward, round);
        let cells = bench.take(None);
        if cells.len() != 12 {
            continue;
        }
        for (at, cell) in cells.iter().enumerate() {
            match (cell.header.kind, cell.header.channel) {
                (CellKind::Data, 100) => positions[0][at] += 1,
                (CellKind::Data, 201) => positions[1][at] += 1,
                (CellKind::Link, _) => positions[2][at] += 1,
                _ => {}
            }
        }
    }
    for of in positions {
        let expected = f64::from(of.iter().sum::<u32>()) / 12.0;
        assert!(expected > 50.0, "{of:?}");
        // Chi-squared with 11 degrees of freedom: 31.3 has p = 0.001.
        let chi: f64 = of.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
        assert!(chi < 31.3, "{of:?}");
    }
}

#[test]
fn links_of_a_backward_release_are_in_random_order() {
    let mut bench = Bench::new(3);
    (0..3).for_each(|entry| bench.open(BATCH, entry));
    let first = bench.times.first(BATCH);
    bench.release(Direction::Backward, first - 1);
    (0..3).for_each(|entry| bench.mix.links.heard(LinkId(entry), bench.now));
    let next = bench.next.at;
    let to = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let tapped = to.clone();
    bench.net.tap(move |datagram| {
        tapped.borrow_mut().extend((datagram.to != next).then_some(datagram.to));
        vec![datagram]
    });
    let mut orders = std::collections::HashSet::new();
    for round in first..first + 100 {
        bench.release(Direction::Backward, round);
        let mut order = std::mem::take(&mut *to.borrow_mut());
        order.dedup();
        assert_eq!(order.len(), 3, "all cells of a link together");
        orders.insert(order);
    }
    assert_eq!(orders.len(), 6);
}

/// Not even one that is dropped may get a layer: two bodies would have one key, round and sub (SPEC 9.3.5).
#[test]
fn second_cell_of_a_place_is_dropped_before_it_is_enciphered() {
    let mut bench = Bench::new(1);
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first - 1);
    let bodies = [0; 3].map(|_| bench.body());
    let mut counts = Vec::new();
    for bodies in [&bodies[..2], &bodies[2..]] {
        bodies.iter().for_each(|body| bench.net.send(bench.entries[0].data(10, first, 0, body)));
        let Mix { pipes, up, links, batches, punts, free, arrivals, clock, .. } = &mut bench.mix;
        let Pipe { gate, rounds, tally, .. } = &mut pipes.forward;
        up.recv(free, arrivals);
        let channel =
            |link, header: &PacedHeader| batches.find(Direction::Forward, header.seq, Some(link), header.channel);
        let at = ArrivalTime { turn: bench.now, class: clock.at(bench.now) };
        let mut arrived = Vec::new();
        gate.claim(Intake { arrivals, links, punts, free, tally, at }, rounds, channel, &mut arrived);
        counts.push(arrived.len());
    }
    assert_eq!(counts, [1, 0], "these get layers next");
    assert_eq!(bench.mix.pipes.forward.tally.drops(DropReason::Copy), 2);
}

#[test]
fn keys_are_wiped_with_the_last_backward_round_of_a_batch() {
    let mut bench = Bench::new(1);
    bench.open(BATCH, 0);
    let last = bench.times.first(BATCH + 1) - 1;
    let channels = [last - 1, last].map(|round| {
        bench.release(Direction::Backward, round);
        bench.mix.batches.of_round(last).len()
    });
    assert_eq!(channels, [1, 0]);
}

#[test]
fn mix_that_has_read_everything_waits_for_more() {
    let mut bench = Bench::new(1);
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first - 1);
    let wake = bench.mix.turn(bench.now);
    assert!(!bench.mix.is_blocked(), "nothing has come");
    let body = bench.body();
    let datagram = bench.entries[0].data(10, first, 0, &body);
    bench.net.send(datagram);
    assert_eq!(bench.mix.turn(bench.now), wake - BLOCKED_WAIT, "a moment before the next release");
    assert!(bench.mix.is_blocked());
    bench.mix.turn(bench.now);
    assert!(!bench.mix.is_blocked());
}

#[test]
fn what_waits_while_a_mix_rests_is_read_before_the_release() {
    let mut bench = Bench::new(3);
    (0..3).for_each(|entry| bench.open(BATCH, entry));
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first - 1);
    let body = bench.body();
    let cell = |bench: &Bench, entry: u32, sub| bench.entries[entry as usize].data(entry + 10, first, sub, &body);
    bench.net.send(cell(&bench, 0, 0));
    bench.mix.turn(bench.now);
    assert!(bench.mix.is_blocked());
    // More than one call takes in: no two of one sender follow each other.
    for _ in 0..100 {
        [1, 2].into_iter().for_each(|entry| bench.net.send(cell(&bench, entry, 0)));
    }
    bench.net.send(cell(&bench, 0, 1));
    bench.release(Direction::Forward, first);
    let tally = bench.tally(Direction::Forward);
    assert_eq!((tally.drops(DropReason::Late), tally.drops(DropReason::Copy)), (0, 2 * 99));
}

#[test]
fn release_has_a_cell_for_every_place_whatever_came() {
    let mut bench = Bench::new(3);
    (0..3).for_each(|entry| bench.open(BATCH, entry));
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first - 1);
    bench.take(None);
    let (here, there) = (bench.body(), bench.body());
    for (entry, round, sub, body) in [(0, first, 0, &here), (1, first, 1, &there), (1, first + 2, 0, &here)] {
        let datagram = bench.entries[entry].data(entry as u32 + 10, round, sub, body);
        bench.net.send(datagram);
    }
    let mut seen = Vec::new();
    for round in first..first + 4 {
        bench.release(Direction::Forward, round);
        let cells = bench.take(None);
        assert!(cells.iter().all(|cell| cell.header.kind != CellKind::Data || cell.header.seq == round));
        let mut places: Vec<_> = data(&cells).map(|cell| (cell.header.channel, cell.header.sub)).collect();
        places.sort_unstable();
        assert_eq!(places, [(100, 0), (100, 1), (101, 0), (101, 1), (102, 0), (102, 1)]);
        let slots = bench.mix.settings.slots(Direction::Forward).of(&bench.times, round);
        assert_eq!(cells.len() - 6, slots.link + slots.placed, "control cells of round {round}");
        seen.extend(data(&cells).cloned());
    }
    let body_at = |channel, round, sub| {
        let is_it = |cell: &&Cell| (cell.header.channel, cell.header.seq, cell.header.sub) == (channel, round, sub);
        seen.iter().find(is_it).unwrap().body.clone()
    };
    assert_eq!(body_at(100, first, 0), Bench::enciphered(0, Direction::Forward, first, 0, &here));
    assert_eq!(body_at(101, first, 1), Bench::enciphered(1, Direction::Forward, first, 1, &there));
    assert_eq!(body_at(101, first + 2, 0), Bench::enciphered(1, Direction::Forward, first + 2, 0, &here));
    let bodies: std::collections::HashSet<_> = seen.iter().map(|cell| &cell.body).collect();
    assert_eq!(bodies.len(), seen.len(), "noise is fresh");
}

#[test]
fn copies_and_cells_out_of_place_change_nothing() {
    // What comes twice is a `copy` in chains without copies, too (SPEC 9.4.7).
    [1, 2].into_iter().for_each(change_nothing);
}

fn change_nothing(copies: u8) {
    let mut bench = Bench::with(PacedTerms { copies, ..terms() }, 2);
    (0..2).for_each(|entry| bench.open(BATCH, entry));
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first);
    bench.take(None);
    let (body, other) = (bench.body(), bench.body());
    let genuine = bench.entries[0].data(10, first + 1, 0, &body);
    let mut damaged = bench.entries[1].data(11, first + 1, 0, &body);
    damaged.bytes[100] ^= 1;
    let datagrams = [
        genuine.clone(),
        genuine,
        bench.entries[0].data(10, first + 1, 0, &other),
        bench.entries[0].data(10, first, 1, &body),
        bench.entries[0].data(10, first + 9, 1, &body),
        bench.entries[0].data(11, first + 1, 1, &body),
        bench.entries[1].data(11, first + 1, 2, &body),
        damaged,
    ];
    datagrams.into_iter().for_each(|datagram| bench.net.send(datagram));
    bench.release(Direction::Forward, first + 1);
    let cells = bench.take(None);
    assert_eq!(data(&cells).count(), 4);
    let expected = Bench::enciphered(0, Direction::Forward, first + 1, 0, &body);
    assert!(data(&cells).any(|cell| cell.header.channel == 100 && cell.body == expected));
    let tally = bench.tally(Direction::Forward);
    let counted =
        [DropReason::Copy, DropReason::Late, DropReason::Early, DropReason::Channel, DropReason::Sub, DropReason::Tag]
            .map(|reason| tally.drops(reason));
    assert_eq!(counted, [2, 1, 1, 1, 1, 1]);
}

#[test]
fn entry_gets_as_many_cells_without_a_channel() {
    let mut bench = Bench::new(2);
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first - 3);
    for entry in 0..2 {
        // A cell of a channel that there is not promotes nothing; one with a place does.
        bench.mix.links.heard(LinkId(entry), bench.now);
    }
    bench.release(Direction::Backward, first);
    (0..2).for_each(|entry| drop(bench.take(Some(entry))));
    let body = bench.body();
    bench.net.send(bench.next.data(100, first + 2, 1, &body));
    let mut counts = HashMap::<usize, Vec<usize>>::new();
    let mut seen = Vec::new();
    for round in first + 1..first + 40 {
        bench.release(Direction::Backward, round);
        for entry in 0..2 {
            let cells = bench.take(Some(entry));
            counts.entry(entry).or_default().push(cells.len());
            let number = if entry == 0 { 10 } else { 0 };
            assert!(data(&cells).all(|cell| cell.header.channel == number), "entry {entry}");
            let mut rounds: Vec<u64> = data(&cells).map(|cell| cell.header.seq).collect();
            rounds.sort_unstable();
            assert_eq!(rounds, [round - 1, round - 1, round, round], "a copy of each cell follows a round later");
            seen.extend(cells.into_iter().filter(|_| entry == 0));
        }
    }
    assert_eq!(counts[&0], counts[&1]);
    let expected = Bench::enciphered(0, Direction::Backward, first + 2, 1, &body);
    assert_eq!(seen.iter().filter(|cell| cell.body == expected).count(), 2);
}

#[test]
fn noise_for_an_entry_without_a_buffer_is_counted() {
    let mut bench = Bench::new(1);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Backward, first);
    bench.mix.links.heard(LinkId(0), bench.now);
    let Mix { free, pipes, .. } = &mut bench.mix;
    let cells = std::iter::from_fn(|| pipes.backward.noise.take()).map(|cell| cell.into_buffer());
    let taken: Vec<_> = cells.collect::<Vec<_>>().into_iter().chain(std::iter::from_fn(|| free.take())).collect();
    bench.take(Some(0));
    bench.release(Direction::Backward, first + 1);
    assert_eq!(data(&bench.take(Some(0))).filter(|cell| cell.header.seq == first + 1).count(), 0);
    let tally = bench.tally(Direction::Backward);
    assert!(tally.drops(DropReason::NoBuffer) >= 2, "its two data cells: {tally:?}");
    taken.into_iter().for_each(|buffer| bench.mix.free.give(buffer));
}

#[test]
fn control_cells_leave_in_their_rounds_and_dummies_elsewhere() {
    let mut bench = Bench::new(1);
    let phase = bench.times.rounds_of(BATCH, wire::paced::Phase::Setup(2));
    let slots = bench.mix.settings.slots(Direction::Forward).of(&bench.times, phase.start);
    for (round, sub) in [(phase.start, 1), (phase.start, 2), (phase.start + 1, 3)] {
        let control = Control { kind: CellKind::Setup, channel: 77, sub, content: vec![sub; 20] };
        bench.command(Command::AtRound { link: None, direction: Direction::Forward, round, control });
    }
    bench.release(Direction::Forward, phase.start - 1);
    bench.take(None);
    for (round, expected) in [(phase.start, vec![1, 2]), (phase.start + 1, vec![3]), (phase.start + 2, vec![])] {
        bench.release(Direction::Forward, round);
        let cells = bench.take(None);
        assert_eq!(cells.len(), slots.total(), "round {round}");
        let mut setups: Vec<u8> =
            cells.iter().filter(|cell| cell.header.kind == CellKind::Setup).map(|cell| cell.header.sub).collect();
        setups.sort_unstable();
        assert_eq!(setups, expected);
    }
}

#[test]
fn too_few_channels_are_all_noise() {
    let mut bench = Bench::new(1);
    bench.mix.settings.terms.n_min = 2;
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first - 1);
    bench.take(None);
    let body = bench.body();
    bench.net.send(bench.entries[0].data(10, first, 0, &body));
    bench.release(Direction::Forward, first);
    let cells = bench.take(None);
    let expected = Bench::enciphered(0, Direction::Forward, first, 0, &body);
    assert_eq!(data(&cells).filter(|cell| cell.body != expected).count(), 2);
    assert_eq!(bench.tally(Direction::Forward).drops(DropReason::Floor), 1);
}

#[test]
fn late_mix_releases_eight_rounds_and_skips_older_ones() {
    let mut bench = Bench::new(1);
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first);
    bench.take(None);
    let body = bench.body();
    (1..9).for_each(|ahead| bench.net.send(bench.entries[0].data(10, first + ahead, 0, &body)));
    // It takes them in, and then is stopped for 12 rounds.
    bench.run_until(bench.mix.clock.at(bench.now) + MILLI);
    let before = bench.rounds();
    bench.now += 120 * MILLI;
    bench.mix.turn(bench.now);
    let RoundCounts { released, uneven, skipped, cells } = bench.rounds();
    // Only the forward ones leave for another hop.
    assert_eq!((released - before.released, uneven, skipped - before.skipped), (8, 0, 2 * 4));
    assert_eq!(cells - before.cells, 8 * 2, "two of its channel in each round, without control cells");
    let rounds: std::collections::BTreeSet<u64> = data(&bench.take(None)).map(|cell| cell.header.seq).collect();
    assert_eq!(rounds, (first + 5..=first + 12).collect());
    assert_eq!(bench.tally(Direction::Forward).drops(DropReason::Skipped), 4);
}

#[test]
fn round_that_lacks_a_cell_is_uneven() {
    let mut bench = Bench::new(1);
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first);
    let before = bench.rounds();
    let taken: Vec<_> = std::iter::from_fn(|| bench.mix.free.take()).collect();
    bench.release(Direction::Forward, first + 1);
    taken.into_iter().for_each(|buffer| bench.mix.free.give(buffer));
    bench.release(Direction::Forward, first + 3);
    let RoundCounts { released, uneven, .. } = bench.rounds();
    assert_eq!((before.uneven, released - before.released, uneven), (0, 3, 1), "no buffers for control cells");
}

#[test]
fn stopped_mix_counts_what_it_holds() {
    let mut bench = Bench::new(1);
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first);
    let body = bench.body();
    bench.net.send(bench.entries[0].data(10, first + 3, 0, &body));
    bench.mix.turn(bench.now);
    bench.mix.finish(bench.now);
    let tally = bench.tally(Direction::Forward);
    assert_eq!((tally.held, tally.drops(DropReason::Shutdown)), (0, 1));
    let buffers = bench.mix.published.lock().unwrap().buffers;
    assert_eq!(buffers.free, buffers.total);
}

#[test]
fn floor_covers_the_last_backward_rounds_of_its_batch() {
    let mut bench = Bench::new(2);
    bench.mix.settings.terms.n_min = 2;
    [(BATCH, 0), (BATCH + 1, 0), (BATCH + 1, 1)].into_iter().for_each(|(batch, entry)| bench.open(batch, entry));
    let next = bench.times.first(BATCH + 1);
    bench.release(Direction::Forward, next);
    bench.mix.links.heard(LinkId(0), bench.now);
    bench.take(Some(0));
    let body = bench.body();
    bench.net.send(bench.next.data(100, next - 1, 0, &body));
    bench.release(Direction::Backward, next - 1);
    let expected = Bench::enciphered(0, Direction::Backward, next - 1, 0, &body);
    let cells = bench.take(Some(0));
    assert_eq!(data(&cells).filter(|cell| cell.header.seq == next - 1 && cell.body != expected).count(), 2);
    assert_eq!(bench.tally(Direction::Backward).drops(DropReason::Floor), 1);
}

#[test]
fn floor_holds_if_the_first_round_is_skipped() {
    let mut bench = Bench::new(1);
    bench.mix.settings.terms.n_min = 2;
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first - 1);
    bench.now += 120 * MILLI;
    bench.mix.turn(bench.now);
    assert!(bench.mix.pipes.forward.rounds.released() > first + 8, "the first round was skipped");
    let (round, body) = (first + 13, bench.body());
    bench.net.send(bench.entries[0].data(10, round, 0, &body));
    bench.release(Direction::Forward, round);
    let expected = Bench::enciphered(0, Direction::Forward, round, 0, &body);
    assert!(data(&bench.take(None)).all(|cell| cell.body != expected));
    assert_eq!(bench.tally(Direction::Forward).drops(DropReason::Floor), 1);
}

#[test]
fn report_to_an_entry_counts_its_channels_of_two_batches() {
    let mut bench = Bench::new(2);
    let opened = [(BATCH, 0), (BATCH, 1), (BATCH + 1, 1), (BATCH + 1, 0)];
    opened.into_iter().for_each(|(batch, entry)| bench.open(batch, entry));
    let next = bench.times.first(BATCH + 1);
    // A report is due 50 rounds and more behind the first round of the batch, or in it.
    let last = (next..).find(|round| (round + 1).is_multiple_of(100)).unwrap();
    assert!(last < next + 99, "the report covers rounds of both batches");
    bench.release(Direction::Forward, last - 100);
    for round in last - 99..=last {
        for sub in 0..2 {
            bench.net.send(bench.entries[0].data(10, round, sub, &[round as u8; BODY]));
        }
        bench.release(Direction::Forward, round);
    }
    bench.release(Direction::Backward, last + 10);
    let first = bench.times.first(BATCH);
    let lost = (last - 99 - first) as u32 * 2;
    assert_eq!(bench.reports(Some(0)), [Report { first, last, places: lost + 200, filled: lost, lost }]);
}

#[test]
fn only_entries_that_were_heard_have_control_cells() {
    let mut bench = Bench::new(2);
    bench.mix.turn(bench.now);
    bench.mix.links.heard(LinkId(0), bench.now);
    bench.mix.links.heard(bench.next.link, bench.now);
    let round = bench.mix.pipes.backward.rounds.released() + 1;
    let control = Control { kind: CellKind::Ack, channel: 10, sub: 0, content: vec![1] };
    let link = Some(LinkId(99));
    bench.command(Command::AtRound { link, direction: Direction::Backward, round, control });
    // Of these rounds one has a report, and one a company cell.
    bench.release(Direction::Backward, round + 128);
    assert_eq!(bench.mix.pipes.backward.sender.controlled(), [Some(LinkId(0))]);
}

#[test]
fn control_cells_for_an_entry_that_is_silent_do_not_pile_up() {
    let mut bench = Bench::new(1);
    bench.mix.turn(bench.now);
    let first = bench.mix.pipes.backward.rounds.released() + 1;
    let link = Some(bench.entries[0].link);
    for round in first..first + 100 {
        let control = Control { kind: CellKind::Ack, channel: 10, sub: 0, content: vec![1] };
        bench.command(Command::AtRound { link, direction: Direction::Backward, round, control });
    }
    let mut placed_after = |round| {
        bench.release(Direction::Backward, round);
        bench.mix.pipes.backward.sender.control(link).placed()
    };
    assert_eq!([first, first + 98, first + 99].map(&mut placed_after), [99, 1, 0]);
    assert!(bench.take(Some(0)).is_empty(), "it was never heard");
}

/// Control hands over a slot and its keys one after the other, and a release may come between the two.
#[test]
fn round_leaves_under_the_slot_before_until_a_new_one_has_keys() {
    let mut bench = Bench::new(0);
    bench.mix.turn(bench.now);
    let [_, mut command, _] = bench.next.link_commands();
    let Command::Link(LinkCommand::InstallSlot { slot, .. }) = &mut command else { panic!("a slot") };
    *slot = wire::ids::SlotId(999);
    bench.command(command);
    let round = bench.mix.pipes.forward.rounds.released() + 1;
    bench.release(Direction::Forward, round);
    assert!(!bench.take(None).is_empty());
}

#[test]
fn new_slot_of_a_link_forgets_the_clock_of_its_other_end() {
    let mut bench = Bench::new(0);
    bench.mix.turn(bench.now);
    bench.command(Command::ClockSeen { link: bench.next.link, sent: 7, received: 9 });
    let mut seen = |is_new: bool| {
        if is_new {
            bench.connect(None);
        }
        let round = bench.mix.pipes.forward.rounds.released() + 2 * CLOCK_EVERY;
        bench.release(Direction::Forward, round);
        let cells = bench.take(None);
        let clock = cells.iter().rfind(|cell| cell.body[0] == LinkContent::Clock as u8).expect("one in 16 rounds");
        let cell = ClockCell::from_bytes(clock.body[1..].first_chunk().unwrap());
        (cell.peer, cell.received)
    };
    assert_eq!([seen(false), seen(true)], [(7, 9), (0, 0)]);
}

#[test]
fn neighbour_is_the_link_with_a_slot() {
    let mut bench = Bench::new(0);
    bench.mix.turn(bench.now);
    let (before, after) = (bench.next.link, Peer::new(51, bench.next.at, false));
    let [install, slot, keys] = after.link_commands();
    bench.command(install);
    bench.mix.turn(bench.now);
    assert_eq!(bench.mix.links.neighbour(Side::Down), Some(before), "the new one has no slot");
    [slot, keys].into_iter().for_each(|command| bench.command(command));
    bench.mix.turn(bench.now);
    assert_eq!(bench.mix.links.neighbour(Side::Down), Some(after.link));
    bench.command(Command::Link(crate::command::LinkCommand::Retire { link: after.link }));
    bench.mix.turn(bench.now);
    assert_eq!(bench.mix.links.neighbour(Side::Down), Some(before));
}

#[test]
fn flood_does_not_delay_a_release() {
    let mut bench = Bench::new(1);
    bench.mix.turn(bench.now);
    let due = bench.mix.next_due();
    let junk = bench.entries[0].data(99, 1, 0, &[0; BODY]);
    (0..3 * RECEIVE_MAX).for_each(|_| bench.net.send(junk.clone()));
    let of_a_call = bench.mix.receive_once(Direction::Forward, bench.now) as u64;
    bench.mix.turn(due);
    assert!(bench.mix.next_due() > due);
    assert_eq!(bench.tally(Direction::Forward).received, 2 * of_a_call);
}

#[test]
fn reading_stops_when_a_release_is_due_by_the_clock() {
    let mut bench = Bench::new(1);
    bench.mix.turn(bench.now);
    let due = bench.mix.next_due();
    let junk = bench.entries[0].data(99, 1, 0, &[0; BODY]);
    (0..3 * RECEIVE_MAX).for_each(|_| bench.net.send(junk.clone()));
    bench.mix.set_clock(Clock::showing(due));
    assert_eq!(bench.mix.turn(due - MILLI), due);
    assert_eq!(bench.tally(Direction::Forward).received, 0);
    bench.mix.turn(due);
    assert!(bench.mix.next_due() > due && bench.tally(Direction::Forward).received > 0);
}

#[test]
fn release_that_a_flood_has_delayed_goes_before_what_is_unread() {
    let mut bench = Bench::new(1);
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH) + 1;
    bench.release(Direction::Forward, first - 1);
    let junk = bench.entries[0].data(99, 1, 0, &[0; BODY]);
    (0..2 * RECEIVE_MAX).for_each(|_| bench.net.send(junk.clone()));
    let of_a_call = bench.mix.receive_once(Direction::Forward, bench.now);
    while bench.mix.receive_once(Direction::Forward, bench.now) > 0 {}
    for (round, is_flooded) in [(first, true), (first + 1, false)] {
        let due = bench.mix.due(Direction::Forward);
        let junk = if is_flooded { vec![junk.clone(); RECEIVES * of_a_call] } else { Vec::new() };
        junk.into_iter().for_each(|junk| bench.net.send(junk));
        bench.mix.turn(due - MILLI);
        let body = bench.body();
        bench.net.send(bench.entries[0].data(10, round, 0, &body));
        bench.mix.turn(due);
        bench.mix.turn(due);
        let late = bench.mix.pipes.forward.tally.drops(DropReason::Late);
        assert_eq!(late, 1, "of the flooded round alone; this is {round}");
    }
}

#[test]
fn flood_of_control_cells_of_one_link_leaves_room_for_others() {
    let mut bench = Bench::new(2);
    bench.release(Direction::Forward, bench.times.first(BATCH));
    let before = bench.tally(Direction::Forward);
    for seq in 0..1000 {
        let cell = bench.entries[0].control(seq);
        (0..3).for_each(|_| bench.net.send(cell.clone()));
    }
    bench.net.send(bench.entries[1].control(0));
    while bench.mix.receive_once(Direction::Forward, bench.now) > 0 {}
    let tally = bench.mix.pipes.forward.tally;
    // Twice the two slots of link 1, in 16 rounds.
    assert_eq!(tally.consumed - before.consumed, 2 * 2 * 16 + 1);
    assert_eq!(tally.drops(DropReason::Copy), 2 * 2 * 2 * 16, "of those that have passed");
    assert_eq!(tally.drops(DropReason::ControlRate), 3 * (1000 - 2 * 2 * 16));
    let mut links = std::iter::from_fn(|| bench.punts.pop().ok()).filter_map(|punt| match punt {
        Punt::PacedCell { link, .. } => Some(link),
        _ => None,
    });
    assert!(links.any(|link| link == bench.entries[1].link));
}

#[test]
fn floods_of_32_links_cost_no_setup_of_another() {
    const FLOODING: usize = 32;
    let mut bench = Bench::new(FLOODING as u8 + 1);
    bench.release(Direction::Forward, bench.times.first(BATCH));
    while bench.punts.pop().is_ok() {}
    // Control takes nothing for four rounds. The cells of the other link come last in each.
    for round in 0..4 {
        for seq in 64 * round..64 * (round + 1) {
            bench.entries[..FLOODING].iter().for_each(|entry| bench.net.send(entry.control(seq)));
        }
        [2 * round, 2 * round + 1].into_iter().for_each(|seq| bench.net.send(bench.entries[FLOODING].control(seq)));
        while bench.mix.receive_once(Direction::Forward, bench.now) > 0 {}
        bench.now += 10 * MILLI;
    }
    let other = bench.entries[FLOODING].link;
    let came = std::iter::from_fn(|| bench.punts.pop().ok());
    assert_eq!(came.filter(|punt| matches!(punt, Punt::PacedCell { link, .. } if *link == other)).count(), 8);
    assert_eq!(bench.mix.pipes.forward.tally.drops(DropReason::PuntFull), 0);
}

#[test]
fn late_rounds_leave_one_by_one_and_share_buffers() {
    let mut bench = Bench::new(1);
    bench.open(BATCH, 0);
    let first = bench.times.first(BATCH);
    bench.release(Direction::Forward, first);
    bench.take(None);
    // As many as the control cells of one round need.
    let most = bench.mix.settings.slots(Direction::Forward).most();
    let taken: Vec<_> =
        std::iter::from_fn(|| (bench.mix.free.free() > most).then(|| bench.mix.free.take()).flatten()).collect();
    bench.now += 120 * MILLI;
    bench.mix.turn(bench.now);
    assert_eq!(data(&bench.take(None)).count(), 8 * 2);
    assert_eq!(bench.tally(Direction::Forward).drops(DropReason::NoBuffer), 0);
    taken.into_iter().for_each(|buffer| bench.mix.free.give(buffer));
}
