//! Whole chains in memory, with a fixed seed: model against bytes at every hop.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use dataplane::histogram::Histogram;
use dataplane::latency::Profile;
use dataplane::{MILLI, Nanos, SECOND};
use wire::cell::{CellKind, Class, Direction, HEADER_LEN, Header};
use wire::frames::{Frame, parse};
use wire::gcm::{AeadKey, Job, StreamKey, ctr_batch, open_batch};
use wire::handshake::{RESPONSE_LEN, half_len, is_handshake_len};
use wire::key::Generations;
use wire::link::HeaderKey;

use crate::common::memchain::{Chain, Plan, TURN, app};

/// Sends numbered datagrams from `clients` clients, answers each, and checks that all arrive once, in
/// order, both ways. The destination's sockets are whatever the exit sends from.
fn exchange(chain: &mut Chain, clients: u16, rounds: u32, len: usize) {
    let destination = chain.plan.destination;
    let mut delivered: HashMap<u16, Vec<u32>> = HashMap::new();
    let mut answered: HashMap<u16, Vec<u32>> = HashMap::new();
    let mut ports: HashMap<u16, HashSet<std::net::SocketAddr>> = HashMap::new();
    for round in 0..rounds + 200 {
        if round < rounds {
            for client in 0..clients {
                let mut bytes = vec![0xab; len.max(6)];
                bytes[..2].copy_from_slice(&client.to_be_bytes());
                bytes[2..6].copy_from_slice(&round.to_be_bytes());
                chain.send(app(100, 1000 + client), &bytes);
            }
        }
        chain.run(Duration::from_micros(1500));
        for datagram in chain.receive(destination) {
            assert_eq!(datagram.bytes.len(), len.max(6));
            let client = u16::from_be_bytes([datagram.bytes[0], datagram.bytes[1]]);
            delivered.entry(client).or_default().push(u32::from_be_bytes(datagram.bytes[2..6].try_into().unwrap()));
            ports.entry(client).or_default().insert(datagram.from);
            chain.apps.send(dataplane::socket::memory::Datagram {
                from: destination,
                to: datagram.from,
                bytes: datagram.bytes,
            });
        }
        for client in 0..clients {
            for datagram in chain.receive(app(100, 1000 + client)) {
                assert_eq!(u16::from_be_bytes([datagram.bytes[0], datagram.bytes[1]]), client);
                answered.entry(client).or_default().push(u32::from_be_bytes(datagram.bytes[2..6].try_into().unwrap()));
            }
        }
    }
    for client in 0..clients {
        let all: Vec<u32> = (0..rounds).collect();
        assert_eq!(delivered.get(&client), Some(&all), "client {client}");
        assert_eq!(answered.get(&client), Some(&all), "client {client}");
        assert_eq!(ports[&client].len(), 1, "one exit port per client");
    }
    let all: HashSet<_> = ports.values().flatten().collect();
    assert_eq!(all.len(), usize::from(clients), "and one client per exit port");
}

#[test]
fn every_class_and_chain_length_closes_its_ledgers() {
    for class in [Class::S, Class::M, Class::L] {
        for mixes in [1, 3, 7] {
            let mut chain = Chain::new(Plan { class, mixes, ..Plan::default() });
            chain.open();
            exchange(&mut chain, 10, 20, 100);
            chain.assert_lossless();
        }
    }
}

/// Every cell that a mix sent is in its histograms: its time in the pool, and the rest of its time in the node. Every
/// release is counted by size.
fn assert_profile(chain: &Chain, position: usize, period: Nanos) {
    let (profile, ledger) = (chain.profile(position), chain.ledger(position));
    for (latency, tally) in
        [(profile.latency.forward, ledger.cells.forward), (profile.latency.backward, ledger.cells.backward)]
    {
        let counts = [&latency.pool, &latency.node, &latency.total].map(Histogram::count);
        assert_eq!(counts, [tally.sent; 3], "mix {position}");
        assert!(latency.pool.max() <= period && latency.pool.mean() > 0.0, "mix {position}: {:?}", latency.pool);
        assert!(latency.node.quantile(0.0) >= TURN && latency.node.quantile(0.5) < period / 2);
        let parts = latency.pool.mean() + latency.node.mean();
        assert!((parts - latency.total.mean()).abs() < 1e-6 * parts, "mix {position}");
    }
    let mean = ledger.releases.cells as f64 / ledger.releases.count as f64;
    assert_eq!((profile.releases.count(), profile.releases.mean()), (ledger.releases.count, mean));
    assert_eq!(profile.releases.max(), ledger.releases.largest);
}

#[test]
fn lone_cell_takes_its_pool_time_and_one_turn_per_node() {
    let period = 10 * MILLI;
    let mut chain = Chain::new(Plan { mixing: "timed:t=10ms".parse().unwrap(), channels: 1, ..Plan::default() });
    chain.open();
    chain.run(Duration::from_secs(1));
    let before: Vec<Profile> = (0..=chain.shape.hops()).map(|position| chain.profile(position)).collect();
    let sent = chain.now;
    chain.send(app(100, 1), b"lone");
    while chain.receive(chain.plan.destination).is_empty() {
        chain.run(Duration::from_micros(20));
    }
    let took = chain.now - sent;
    let mut pools = 0;
    for (position, before) in before.iter().enumerate() {
        let now = chain.profile(position);
        let new = |now: &Histogram, before: &Histogram| {
            let sum = |all: &Histogram| (all.mean() * all.count() as f64).round() as Nanos;
            assert_eq!(now.count(), before.count() + 1, "node {position}");
            sum(now) - sum(before)
        };
        let [pool, node, total] = [
            new(&now.latency.forward.pool, &before.latency.forward.pool),
            new(&now.latency.forward.node, &before.latency.forward.node),
            new(&now.latency.forward.total, &before.latency.forward.total),
        ];
        assert_eq!(pool + node, total);
        assert!(pool <= period && (pool > 0 || position == 0 || position == chain.shape.hops()));
        // The clock of the chain goes by steps of 20 us: so much later than due is a turn.
        assert!((TURN..=TURN + 20_000).contains(&node), "node {position}: {node} ns");
        pools += pool;
    }
    assert!(pools <= took && took - pools <= 4 * 20_000, "{took} ns, of which {pools} in pools");
    for position in 1..chain.shape.hops() {
        assert_profile(&chain, position, period);
    }
}

#[test]
fn multicore_mixes_keep_order_and_share_one_pool() {
    for lanes in [[2, 2, 2], [2, 1, 3], [3, 3, 1], [1, 2, 4]] {
        let mixing = "threshold-or-timed:n=64,n_min=1,t=2ms".parse().unwrap();
        let mut chain = Chain::new(Plan { lanes: lanes.to_vec(), channels: 16, mixing, ..Plan::default() });
        chain.open();
        exchange(&mut chain, 32, 20, 100);
        chain.assert_lossless();
        for (position, lanes) in (1..).zip(lanes) {
            let edges = chain.ledgers(position);
            assert_eq!(edges.len(), lanes);
            assert!(edges.iter().all(|edge| edge.cells.forward.received > 0), "forward cells spread at mix {position}");
            let ledger = chain.ledger(position);
            assert_eq!((ledger.gauges.channels, ledger.gauges.links), (16, 2));
            for meter in chain.profile(position).meters.iter() {
                let company = meter.last_minute(chain.now);
                assert!(company.mean_channels() > Some(5.0), "a release mixes channels of all lanes: {company:?}");
                // All channels are of one entry, which Mix 1 alone sees.
                assert_eq!(company.mean_prefixes(), (position == 1).then_some(1.0));
            }
            assert_profile(&chain, position, 2 * MILLI);
        }
    }
}

#[test]
fn channels_on_several_cores_end_everywhere_once() {
    let mut chain = Chain::new(Plan { lanes: vec![2, 3, 2], channels: 12, lifetime_s: 60, ..Plan::default() });
    chain.open();
    exchange(&mut chain, 12, 20, 100);
    // Three generations of channels, over indices that are used again.
    chain.run(Duration::from_secs(200));
    chain.assert_lossless();
    for client in 0..24 {
        chain.send(app(101, 1000 + client), b"still there");
    }
    chain.run(Duration::from_millis(100));
    assert_eq!(chain.receive(chain.plan.destination).len(), 24);
    chain.assert_lossless();
    chain.asleep.insert(0);
    chain.run(Duration::from_secs(70));
    for position in 1..=3 {
        assert_eq!(chain.ledger(position).gauges.channels, 0, "mix {position}");
        let ended = chain.notes.iter().filter(|note| note.starts_with(&format!("{position}: ChannelClosed"))).count();
        let opened = chain.notes.iter().filter(|note| note.starts_with(&format!("{position}: ChannelOpen"))).count();
        assert_eq!(ended, opened, "mix {position}");
        assert!(opened >= 36);
    }
    chain.assert_closed();
}

#[test]
fn datagrams_of_every_size_arrive_whole() {
    let mut chain = Chain::new(Plan { class: Class::L, ..Plan::default() });
    chain.open();
    let client = app(100, 1);
    let sizes = [0, 1, 1322, 1323, 1324, 2640, 2641, 4000, 10_559, 10_560];
    for (i, size) in sizes.into_iter().enumerate() {
        chain.send(client, &vec![i as u8; size]);
        chain.run(Duration::from_millis(50));
        let got = chain.receive(chain.plan.destination);
        assert_eq!(got.len(), 1, "{size} bytes");
        assert_eq!(got[0].bytes, vec![i as u8; size]);
        chain.apps.send(dataplane::socket::memory::Datagram {
            from: got[0].to,
            to: got[0].from,
            bytes: got[0].bytes.clone(),
        });
        chain.run(Duration::from_millis(50));
        assert_eq!(chain.receive(client).iter().map(|d| d.bytes.len()).collect::<Vec<_>>(), [size]);
    }
    chain.assert_lossless();
    chain.send(client, &vec![0; 10_561]);
    chain.run(Duration::from_millis(50));
    assert!(chain.receive(chain.plan.destination).is_empty());
    assert_eq!(chain.ledger(0).datagrams.forward.drops(dataplane::ledger::DropReason::TooLarge), 1);
    assert!(chain.notes.iter().any(|note| note.contains("TooLarge")), "the operator is told");
    // The same from the other side.
    chain.send(client, b"question");
    chain.run(Duration::from_millis(50));
    let [question] = &chain.receive(chain.plan.destination)[..] else { panic!("one question") };
    for size in [10_561, 65_507] {
        let answer = dataplane::socket::memory::Datagram { from: question.to, to: question.from, bytes: vec![0; size] };
        chain.apps.send(answer);
    }
    chain.run(Duration::from_millis(50));
    assert!(chain.receive(client).is_empty());
    assert_eq!(chain.ledger(4).datagrams.backward.drops(dataplane::ledger::DropReason::TooLarge), 2);
    chain.assert_closed();
}

#[test]
fn renewal_every_two_seconds_loses_nothing_in_memory() {
    let mut plan = Plan::default();
    plan.timing.renew_after = Duration::from_secs(2);
    plan.timing.expire_after = Duration::from_secs(3);
    let mut chain = Chain::new(plan);
    chain.open();
    exchange(&mut chain, 8, 14_000, 60);
    chain.assert_lossless();
    // One length per link and direction over setup, acks, renewals, keepalives and data.
    for seen in chain.seen.borrow().iter() {
        let cell = chain.shape.cell_len(seen.direction, seen.link);
        let handshake = match seen.direction {
            Direction::Forward => half_len(seen.link),
            Direction::Backward => RESPONSE_LEN,
        };
        assert!([cell, handshake].contains(&seen.bytes.len()), "{seen:?}");
    }
    for link in 1..=4 {
        assert!(chain.keys.slots[&link].len() >= 9, "link {link}: {} handshakes", chain.keys.slots[&link].len());
    }
    assert!(chain.ledger(0).gauges.channels >= 4, "channels outlive the handshakes they were set up under");
}

#[test]
fn nodes_started_in_any_order_connect_within_two_seconds() {
    for last in 0..5 {
        for seed in 0..5 {
            let mut chain = Chain::new(Plan { seed, ..Plan::default() });
            chain.asleep.insert(last);
            chain.run(Duration::from_secs(7));
            assert_eq!(chain.ledger(0).gauges.channels, 0);
            chain.asleep.clear();
            chain.run(Duration::from_secs(2));
            for link in 1..=4 {
                assert!(chain.keys.slots.contains_key(&link), "link {link}, node {last} last: {:#?}", chain.notes);
            }
            chain.run(Duration::from_secs(3));
            assert_eq!(chain.ledger(0).gauges.channels, 4, "node {last} last: {:#?}", chain.notes);
            exchange(&mut chain, 3, 5, 50);
        }
    }
}

#[test]
fn replaced_channels_keep_the_ports_of_their_flows() {
    let mut chain = Chain::new(Plan { lifetime_s: 400, ..Plan::default() });
    chain.open();
    let client = app(100, 1);
    let mut ports = HashSet::new();
    for second in 0..900u32 {
        chain.send(client, &second.to_be_bytes());
        chain.run(Duration::from_millis(1000));
        let got = chain.receive(chain.plan.destination);
        assert_eq!(got.iter().map(|d| &d.bytes[..]).collect::<Vec<_>>(), [second.to_be_bytes()], "second {second}");
        ports.insert(got[0].from);
    }
    assert!(chain.keys.channels.len() > 8, "{} channels were made", chain.keys.channels.len());
    assert_eq!(ports.len(), 1);
    chain.assert_closed();
}

#[test]
fn batch_across_two_key_generations_passes() {
    let mut chain = Chain::new(Plan { first: (1 << 20) - 150, channels: 2, ..Plan::default() });
    chain.open();
    exchange(&mut chain, 12, 100, 150);
    chain.assert_lossless();
}

/// One datagram on a link, deciphered by the model.
struct Cell {
    header: Header,
    body: Vec<u8>,
}

#[test]
fn every_byte_on_every_link_matches_the_model() {
    for (class, mixes) in [(Class::S, 3), (Class::L, 2), (Class::S, 7)] {
        let mut chain = Chain::new(Plan { class, mixes, seed: 42, ..Plan::default() });
        chain.open();
        exchange(&mut chain, 6, 30, 150);
        chain.assert_lossless();
        let shape = chain.shape;
        let hops = shape.hops();
        // Every handshake and control cell was authentic and well-formed. In class S an entry may ask again while an
        // answer of a hundred cells is under way.
        for node in 0..=hops {
            let refused = chain.refused(node);
            assert!(refused.iter().all(|(why, _)| *why == "trust-rate-limited"), "node {node}: {refused:?}");
        }

        // One length per link and direction; handshakes have their own.
        let mut links: HashMap<(usize, Direction), Vec<Cell>> = HashMap::new();
        for seen in chain.seen.borrow().iter() {
            if is_handshake_len(seen.bytes.len()) {
                continue;
            }
            assert_eq!(seen.bytes.len(), shape.cell_len(seen.direction, seen.link));
            let mut headers = chain.keys.slots[&seen.link].iter().filter_map(|(forward, backward)| {
                let key = if seen.direction == Direction::Forward { forward } else { backward };
                let mut block = [seen.bytes[..HEADER_LEN].try_into().unwrap()];
                HeaderKey::new(key).decipher(&mut block);
                Header::from_block(&block[0], class).ok()
            });
            let header = headers.next().expect("every cell is under a slot of its link");
            let cell = Cell { header, body: seen.bytes[HEADER_LEN..].to_vec() };
            links.entry((seen.link, seen.direction)).or_default().push(cell);
        }

        // Data cells: each body follows from the one on the link before by one layer, and the inside is frames.
        let data = |link, direction| -> Vec<&Cell> {
            links[&(link, direction)].iter().filter(|cell| cell.header.kind == CellKind::Data).collect()
        };
        let mut counted = 0;
        for first in data(1, Direction::Forward) {
            let (_, secrets) = chain.keys.channels.iter().find(|(n, _)| *n == first.header.channel).expect("a channel");
            let mut body = first.body.clone();
            for hop in 1..=hops {
                let on_link: Vec<_> =
                    data(hop, Direction::Forward).into_iter().filter(|cell| cell.body == body).collect();
                assert_eq!(on_link.len(), 1, "hop {hop} got what the model says, once");
                assert_eq!((on_link[0].header.seq, on_link[0].header.sub), (first.header.seq, 0));
                let keys = Generations::<AeadKey>::new(&secrets[hop - 1].forward, 0);
                let (key, iv) = keys.of(first.header.seq).unwrap();
                let mut jobs = [Job::new(key, first.header.data_nonce(iv), &mut body)];
                open_batch(&mut jobs);
                assert!(jobs[0].ok);
                body.truncate(body.len() - 16);
            }
            explained(&body, Direction::Forward);
            counted += 1;
        }
        assert_eq!(
            counted as u64,
            chain.ledger(hops).cells.forward.consumed - control_cells(&links[&(hops, Direction::Forward)])
        );

        let mut datagrams = 0;
        for last in data(hops, Direction::Backward) {
            // Find the channel by what opens it.
            let mut inside = None;
            for (number, secrets) in &chain.keys.channels {
                let keys = Generations::<AeadKey>::new(&secrets[hops - 1].backward, 0);
                let (key, iv) = keys.of(last.header.seq).unwrap();
                let mut body = last.body.clone();
                let mut jobs = [Job::new(key, last.header.data_nonce(iv), &mut body)];
                open_batch(&mut jobs);
                if jobs[0].ok {
                    inside = Some((number, secrets, body[..shape.payload()].to_vec()));
                }
            }
            let (number, secrets, inner) = inside.expect("the exit sealed it for a channel");
            explained(&inner, Direction::Backward);
            datagrams +=
                parse(&inner, Direction::Backward).unwrap().filter(|f| matches!(f, Frame::Dgram { .. })).count();
            let mut body = last.body.clone();
            for mix in (1..hops).rev() {
                let keys = Generations::<StreamKey>::new(&secrets[mix - 1].backward, 0);
                let (key, iv) = keys.of(last.header.seq).unwrap();
                ctr_batch(&mut [Job::new(key, last.header.data_nonce(iv), &mut body)]);
                let on_link = data(mix, Direction::Backward).into_iter().filter(|cell| cell.body == body).count();
                assert_eq!(on_link, 1, "mix {mix} sent what the model says, once");
            }
            let on_first = data(1, Direction::Backward).into_iter().find(|cell| cell.body == body).unwrap();
            assert_eq!(on_first.header.channel, *number);
        }
        assert_eq!(datagrams, 6 * 30);
    }
}

/// An inside is frames, and zeros behind them: nothing of what the frame held before.
fn explained(inner: &[u8], heading: Direction) {
    let written: usize = parse(inner, heading).unwrap().map(|frame| frame.len()).sum();
    assert!(inner[written..].iter().all(|byte| *byte == 0));
}

fn control_cells(cells: &[Cell]) -> u64 {
    let control = cells.iter().filter(|cell| cell.header.kind != CellKind::Data).count() as u64;
    // Message 1 comes in two halves, and is consumed by control too.
    control + 2
}

#[test]
fn idle_chain_keeps_its_channels_and_links() {
    let mut chain = Chain::new(Plan::default());
    chain.open();
    chain.run(Duration::from_secs(400));
    assert_eq!(chain.keys.channels.len(), 4, "no channel had to be made again");
    assert_eq!(chain.ledger(4).gauges.channels, 4);
    chain.assert_lossless();
    assert!(chain.now > 400 * SECOND);
}
