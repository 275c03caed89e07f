//! Order and delay at mixes, measured on whole chains (SPEC 6).

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use dataplane::socket::memory::Datagram;
use dataplane::{MILLI, Nanos};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction;

use crate::common::memchain::{Chain, Plan, app, pymix_listener};

/// Chi-squared statistic against equal expectations.
fn chi_squared(counts: &[u32]) -> f64 {
    let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
    counts.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum()
}

/// A pymix datagram that fills a cell of class S by itself, also behind an OPEN.
fn pymix(to: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(v4) = to else { panic!("pymix speaks IPv4") };
    let mut bytes = v4.ip().octets().to_vec();
    bytes.extend_from_slice(&v4.port().to_be_bytes());
    bytes.resize(6 + 150, 0x5a);
    bytes
}

#[test]
fn exit_hides_the_rank_of_a_cell_in_its_channel() {
    // Two channels of ten cells each, flushed together. An event is known to be A's first cell or B's
    // last. Label-shuffled positions alone would betray it: seen in the first position, it is A's for certain.
    let mixing = "threshold-or-timed:n=20,n_min=2,t=1s".parse().unwrap();
    let mut chain = Chain::new(Plan { mixes: 1, channels: 2, mixing, ..Plan::default() });
    let order: Rc<RefCell<Vec<u16>>> = Rc::default();
    let seen = order.clone();
    chain.apps.tap(move |datagram: Datagram| {
        if datagram.to.ip() == app(9, 0).ip() {
            seen.borrow_mut().push(datagram.to.port());
        }
        vec![datagram]
    });
    chain.open();
    let [a, b] = [app(100, 1), app(100, 2)];
    const EVENT: u16 = 500;
    let mut positions = [[0u32; 20]; 2];
    for trial in 0..4000 {
        let by_b = trial % 2;
        order.borrow_mut().clear();
        for i in 0..10u16 {
            let to_a = if by_b == 0 && i == 0 { EVENT } else { 100 + i };
            let to_b = if by_b == 1 && i == 9 { EVENT } else { 200 + i };
            chain.apps.send(Datagram { from: a, to: pymix_listener(), bytes: pymix(app(9, to_a)) });
            chain.apps.send(Datagram { from: b, to: pymix_listener(), bytes: pymix(app(9, to_b)) });
        }
        chain.run(Duration::from_millis(5));
        let order = order.borrow();
        // A keepalive or a ping now and then shares a flush and splits the twenty: not this trial.
        if order.len() == 20 {
            positions[by_b][order.iter().position(|port| *port == EVENT).expect("the event is among them")] += 1;
        } else {
            drop(order);
            chain.run(Duration::from_millis(1500));
        }
    }
    for counts in positions {
        assert!(counts.iter().sum::<u32>() > 1000, "{counts:?}");
        // 19 degrees of freedom: 43.8 has p = 0.001.
        assert!(chi_squared(&counts) < 43.8, "{counts:?}");
    }
}

#[test]
fn lone_cell_delay_is_uniform_up_to_t() {
    let t = 5 * MILLI;
    let mut rng = ChaCha20Rng::seed_from_u64(3);
    let mut bins = [0u32; 10];
    for seed in 0..40 {
        let mut chain = Chain::new(Plan { mixes: 1, seed, ..Plan::default() });
        chain.open();
        for _ in 0..50 {
            chain.run(Duration::from_nanos(rng.random_range(20 * MILLI..30 * MILLI)));
            chain.seen.borrow_mut().clear();
            chain.send(app(100, 1), &[0; 100]);
            chain.run(Duration::from_millis(15));
            let seen = chain.seen.borrow();
            let at = |link| -> Vec<Nanos> {
                seen.iter().filter(|s| s.link == link && s.direction == Direction::Forward).map(|s| s.at).collect()
            };
            // Alone in the pool: one cell in, one out.
            if let ([came], [went]) = (&at(1)[..], &at(2)[..]) {
                let delay = went - came;
                assert!(delay > 0 && delay <= t, "{delay}");
                bins[((delay - 1) * 10 / t) as usize] += 1;
            }
        }
    }
    assert!(bins.iter().sum::<u32>() > 1000, "{bins:?}");
    // 9 degrees of freedom: 27.9 has p = 0.001.
    assert!(chi_squared(&bins) < 27.9, "{bins:?}");
}

#[test]
fn release_order_is_uniform_and_keeps_channels_in_order() {
    let mut plan = Plan { mixes: 2, channels: 4, ..Plan::default() };
    plan.mixing = "threshold-or-timed:n=64,n_min=4,t=5ms".parse().unwrap();
    let mut chain = Chain::new(plan);
    chain.open();
    // Four clients on four channels, one full cell each at one instant: 24 orders at the exit's turn
    // would be shuffled again, so look at the last link, by the order of channel numbers there.
    let mut orders: HashMap<Vec<u32>, u32> = HashMap::new();
    let mut last_seq: HashMap<u32, u64> = HashMap::new();
    for _ in 0..6000 {
        chain.seen.borrow_mut().clear();
        for client in 0..4 {
            chain.send(app(100, client), &[0; 190]);
        }
        chain.run(Duration::from_millis(11));
        chain.receive(chain.plan.destination);
        let keys = &chain.keys.slots[&3];
        let mut order = Vec::new();
        for cell in chain.seen.borrow().iter().filter(|s| s.link == 3 && s.direction == Direction::Forward) {
            let header = keys.iter().find_map(|(forward, _)| {
                let mut block = [cell.bytes[..16].try_into().unwrap()];
                wire::link::HeaderKey::new(forward).decipher(&mut block);
                wire::cell::Header::from_block(&block[0], chain.plan.class).ok()
            });
            let header = header.expect("under one of the link's slots");
            if header.kind == wire::cell::CellKind::Data {
                if let Some(last) = last_seq.insert(header.channel, header.seq) {
                    assert_eq!(header.seq, last + 1, "a channel keeps its order");
                }
                order.push(header.channel);
            }
        }
        if order.len() == 4 {
            *orders.entry(order).or_default() += 1;
        }
    }
    assert_eq!(orders.len(), 24);
    let counts: Vec<u32> = orders.into_values().collect();
    assert!(counts.iter().sum::<u32>() > 4000, "{counts:?}");
    // 23 degrees of freedom: 49.7 has p = 0.001.
    assert!(chi_squared(&counts) < 49.7, "{counts:?}");
}
