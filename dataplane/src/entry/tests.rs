//! The worker of an entry by itself: what it forgets, and how much of a flood it reads in a turn.

use super::*;
use crate::buffer::Cell;
use crate::ledger::Tally;
use crate::socket::memory::{Datagram, MemApps, MemNet, MemPort};
use crate::stage::ingress::Admitted;
use crate::stage::ingress::lengths;
use rand::SeedableRng;
use wire::cell::Class;
use wire::gcm::{AeadKey, Job, Prepared, StreamKey, ctr_batch, seal_batch};
use wire::ids::LinkId;
use wire::ids::Side;
use wire::kdf::Secret;
use wire::key::Generations;
use wire::layer::data_header;
use wire::layer::unwrap;
use wire::setup::HopSecrets;

const SHAPE: (Class, usize) = (Class::S, 2);
const LISTENER: ([u8; 4], u16) = ([192, 0, 2, 1], 2);
const MAX_AGE: Duration = Duration::from_millis(250);

fn entry() -> Entry<MemPort, MemApps> {
    entry_on(MemNet::default())
}

/// An entry with one listener, [`LISTENER`].
fn entry_on(net: MemNet) -> Entry<MemPort, MemApps> {
    entry_with(net, &[MAX_AGE])
}

/// An entry with listeners of these maximum ages, at [`LISTENER`] and the ports after it.
fn entry_with(net: MemNet, max_ages: &[Duration]) -> Entry<MemPort, MemApps> {
    let listener =
        |max_age: &Duration| Listener { kind: ListenerKind::Pymix, idle: Duration::from_secs(300), max_age: *max_age };
    let settings = Settings {
        shape: Shape::new(SHAPE.0, SHAPE.1).unwrap(),
        listeners: max_ages.iter().map(listener).collect(),
        window: 64,
        hugepages: false,
        next_lanes: 1,
        mixing_round_trip: Duration::ZERO,
        max_age: MAX_AGE,
    };
    let port = net.port("192.0.2.1:1".parse().unwrap(), lengths(settings.shape, 0, Side::Down));
    let ports = (LISTENER.1..).take(max_ages.len());
    let apps = MemApps::new(net, ports.map(|port| (LISTENER.0, port).into()).collect(), LISTENER.0.into());
    let (_, commands) = rtrb::RingBuffer::new(8);
    let (ring, _) = rtrb::RingBuffer::new(8);
    let punts = PuntSender::new(ring, Arc::new(crate::sys::Waker::new().unwrap()));
    let rngs = [1, 2].map(ChaCha20Rng::seed_from_u64);
    Entry::new(settings, port, apps, commands, punts, rngs, SECOND)
}

fn secrets() -> Vec<HopSecrets> {
    (0..SHAPE.1 as u8)
        .map(|hop| HopSecrets {
            confirm: Default::default(),
            ack: zeroize::Zeroizing::new([0; 28]),
            forward: Secret::new([hop; 32]),
            backward: Secret::new([0x80 | hop; 32]),
        })
        .collect()
}

/// An entry with channel 0, whose numbers start just before the second generation.
fn entry_with_channel() -> Entry<MemPort, MemApps> {
    let mut entry = entry();
    let first = (1 << 20) - 1;
    let state = EntryChannel {
        keys: EntryKeys::new(&secrets(), first),
        next_seq: 1 << 20,
        window: Window::new(first, 64),
        reassembler: Reassembler::new(entry.settings.shape.payload()),
        liveness: Liveness::new(0, &mut entry.rng),
    };
    entry.endpoint.table.install(ChannelIndex(0), Record { up: None, down: Some((LinkId(0), 5)), ends_s: 100, state });
    entry
}

/// A backward cell as Mix 1 sends it, all zeros inside.
fn backward(shape: Shape, seq: u64) -> Vec<u8> {
    fn of<K: Prepared>(secret: &Secret, seq: u64, work: impl FnOnce(&K, [u8; 12])) {
        let keys = Generations::<K>::new(secret, (1 << 20) - 1);
        let (key, iv) = keys.of(seq).unwrap();
        work(key, data_header(Shape::new(SHAPE.0, SHAPE.1).unwrap(), 5, seq).data_nonce(iv));
    }
    let mut cell = vec![0; shape.cell_len(Direction::Backward, 1)];
    let secrets = secrets();
    of::<AeadKey>(&secrets[1].backward, seq, |key, nonce| seal_batch(&mut [Job::new(key, nonce, &mut cell[16..])]));
    of::<StreamKey>(&secrets[0].backward, seq, |key, nonce| ctr_batch(&mut [Job::new(key, nonce, &mut cell[16..])]));
    cell
}

#[test]
fn entry_forgets_backward_generations_behind_its_window() {
    let mut entry = entry_with_channel();
    let shape = entry.settings.shape;
    let opens = |entry: &Entry<MemPort, MemApps>, seq| {
        let (keys, mut cell) =
            (&entry.endpoint.table.record(ChannelIndex(0)).unwrap().state.keys, backward(shape, seq));
        let mut jobs = [EntryJob { keys, header: data_header(shape, 5, seq), cell: &mut cell, ok: false }];
        unwrap(shape, &mut jobs);
        jobs[0].ok
    };
    let last = (1 << 20) - 1;
    assert!(opens(&entry, last));
    for (seq, still) in [(1 << 20, true), ((1 << 20) + 64, false)] {
        let mut cell = Cell::new(entry.endpoint.free.take().unwrap());
        let bytes = backward(shape, seq);
        cell.bytes_mut(bytes.len()).copy_from_slice(&bytes);
        let header = data_header(shape, 5, seq);
        entry.endpoint.admitted.push(Admitted {
            cell,
            header,
            channel: ChannelIndex(0),
            link: LinkId(0),
            next_slot: None,
        });
        entry.strip();
        assert_eq!(entry.endpoint.admitted.drain(..).count(), 1);
        assert_eq!(opens(&entry, last), still, "after {seq}");
    }
}

#[test]
fn entry_forgets_forward_generations_it_has_sent_past() {
    let mut entry = entry_with_channel();
    let shape = entry.settings.shape;
    let wraps = |entry: &Entry<MemPort, MemApps>, seq| {
        let keys = &entry.endpoint.table.record(ChannelIndex(0)).unwrap().state.keys;
        let mut cell = vec![0; shape.longest_cell()];
        let mut jobs = [EntryJob { keys, header: data_header(shape, 5, seq), cell: &mut cell, ok: false }];
        // It panics because there is no key.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wrap(shape, &mut jobs))).is_ok()
    };
    let last = (1 << 20) - 1;
    assert!(wraps(&entry, last));
    entry.endpoint.packer.put(ChannelIndex(0), &Frame::Ping([0; 8]), &mut entry.endpoint.free).unwrap();
    entry.leave(SECOND);
    assert!(!wraps(&entry, last) && wraps(&entry, 1 << 20));
}

#[test]
fn flood_without_frames_does_not_monopolize_an_entry() {
    const FLOOD: u64 = 10_000;
    let net = MemNet::default();
    let mut entry = entry_on(net.clone());
    // Without an address: each is dropped as it is read.
    for _ in 0..FLOOD {
        net.send(Datagram { from: ([192, 0, 2, 9], 9).into(), to: LISTENER.into(), bytes: Vec::new() });
    }
    let mut read = 0;
    while read < FLOOD {
        entry.turn(SECOND);
        let ledger = *entry.endpoint.published.lock().unwrap();
        assert!(ledger.closed());
        let now = ledger.datagrams.forward;
        assert_eq!(now.drops(DropReason::BadAddress), now.received);
        assert!((1..=FLOOD / 10).contains(&(now.received - read)), "{} in one turn", now.received - read);
        read = now.received;
    }
}

/// A datagram of a client at the listener of this index.
fn ask(net: &MemNet, listener: u16) {
    let to = (LISTENER.0, LISTENER.1 + listener).into();
    net.send(Datagram { from: ([192, 0, 2, 9], 9).into(), to, bytes: vec![198, 51, 100, 1, 0, 9, 1] });
}

/// What has come from applications, waits, and was dropped as aged, after a turn at this time.
fn turn(entry: &mut Entry<MemPort, MemApps>, now_ms: u64) -> [u64; 3] {
    entry.turn(now_ms * crate::MILLI);
    let ledger = *entry.endpoint.published.lock().unwrap();
    assert!(ledger.closed());
    let Tally { received, held, .. } = ledger.datagrams.forward;
    [received, held, ledger.datagrams.forward.drops(DropReason::Aged)]
}

#[test]
fn datagram_waits_for_a_channel_up_to_its_age() {
    let net = MemNet::default();
    let mut entry = entry_with(net.clone(), &[MAX_AGE, Duration::from_millis(100)]);
    turn(&mut entry, 2000);
    ask(&net, 0);
    assert_eq!(turn(&mut entry, 2040), [1, 1, 0]);
    ask(&net, 1);
    assert_eq!(turn(&mut entry, 2080), [2, 2, 0]);
    assert_eq!(turn(&mut entry, 2180), [2, 2, 0]);
    assert_eq!(turn(&mut entry, 2181), [2, 1, 1], "a forward has a limit of its own");
    assert_eq!(turn(&mut entry, 2270), [2, 1, 1]);
    assert_eq!(turn(&mut entry, 2290), [2, 1, 1]);
    assert_eq!(turn(&mut entry, 2291), [2, 0, 2]);
}

#[test]
fn entry_that_did_not_run_reads_its_sockets_empty() {
    let net = MemNet::default();
    let mut entry = entry_with(net.clone(), &[MAX_AGE, Duration::from_millis(100), Duration::from_secs(60)]);
    assert_eq!(entry.turn(2 * SECOND), 2050 * crate::MILLI, "two turns in the shortest limit");
    (0..3).for_each(|listener| ask(&net, listener));
    assert_eq!(turn(&mut entry, 2150), [3, 2, 1], "as the limit of each forward has it");
    (0..1000).for_each(|_| ask(&net, 0));
    ask(&net, 2);
    assert_eq!(turn(&mut entry, 2401), [1004, 2, 1002]);
}

#[test]
fn backlog_of_a_listener_is_bounded_by_its_age() {
    let net = MemNet::default();
    let mut entry = entry_with(net.clone(), &[MAX_AGE, Duration::from_secs(60)]);
    let mut ask_both = |now_ms, waited_ms: u64| {
        net.set_waited(waited_ms * crate::MILLI);
        (0..2).for_each(|listener| ask(&net, listener));
        turn(&mut entry, now_ms)
    };
    assert_eq!(ask_both(2000, 250), [2, 2, 0]);
    assert_eq!(ask_both(2001, 251), [4, 3, 1], "as the limit of each forward has it");
}

#[test]
fn cells_built_before_a_stop_are_not_sent_after_it() {
    let mut entry = entry_with_channel();
    let key = || zeroize::Zeroizing::new([7; 16]);
    let (link, peer) = (LinkId(0), ([192, 0, 2, 8], 8).into());
    entry.endpoint.table.links.install(link, Side::Down, peer);
    let (rank, slot) = (wire::ids::Rank::Current, wire::ids::SlotId(1));
    entry.endpoint.table.links.install_slot(link, slot, peer, rank, &key(), &key());
    let mut leave = |clock_ms: u64| {
        entry.endpoint.age.set_clock(Clock::showing(clock_ms * crate::MILLI));
        entry.endpoint.packer.put(ChannelIndex(0), &Frame::Ping([0; 8]), &mut entry.endpoint.free).unwrap();
        entry.leave(2 * SECOND);
        let tally = &entry.endpoint.cells.forward;
        (tally.sent, tally.drops(DropReason::Aged))
    };
    assert_eq!(leave(2000), (1, 0));
    assert_eq!(leave(12_000), (1, 1));
}

#[test]
fn channel_is_not_given_up_while_its_entry_does_not_run() {
    let mut entry = entry_with_channel();
    entry.tick(2 * SECOND);
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    entry.endpoint.table.record_mut(ChannelIndex(0)).unwrap().state.liveness.sent(2 * SECOND, &mut rng);
    let is_open = |entry: &Entry<MemPort, MemApps>| entry.endpoint.table.record(ChannelIndex(0)).is_some();
    for _ in 0..5 {
        entry.tick(entry.next_tick + 4 * SECOND);
        assert!(is_open(&entry), "its turns come late");
    }
    let end = entry.next_tick + liveness::LOST_AFTER + 2 * SECOND;
    while entry.next_tick < end {
        entry.tick(entry.next_tick);
    }
    assert!(!is_open(&entry), "its turns come in time, and no answer does");
}
