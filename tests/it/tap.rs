//! The tap itself: it applies its faults, the same for the same seed.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use wire::cell::Direction::{Backward, Forward};

use crate::common::nodes::{Nodes, PATIENCE, Plan};
use crate::common::tap::{Faults, Tap};

/// Sends numbered datagrams through a tap and returns what arrives, until a last one that was told to pass.
fn through(seed: u64, faults: Faults) -> Vec<Vec<u8>> {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let receiver = UdpSocket::bind(any).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = UdpSocket::bind(any).unwrap();
    let tap = Tap::start(any, receiver.local_addr().unwrap(), seed);
    tap.set_both(faults);
    let mut buffer = [0; 2000];
    for number in 0..100u8 {
        sender.send_to(&[number; 100], tap.front()).unwrap();
        // One at a time: their order is the same in every run.
        while tap.passed(Forward) <= u64::from(number) {
            std::thread::yield_now();
        }
    }
    let records = tap.records(Forward);
    assert_eq!(records.len(), 100);
    assert!(records.is_sorted_by_key(|record| record.at));
    tap.set_both(Faults { delay: faults.reorder_by, ..Faults::default() });
    sender.send_to(b"the end", tap.front()).unwrap();
    let mut got = Vec::new();
    loop {
        let (len, from) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!(from, tap.back());
        if &buffer[..len] == b"the end" {
            return got;
        }
        got.push(buffer[..len].to_vec());
    }
}

#[test]
fn tap_applies_its_faults_and_repeats_them_for_a_seed() {
    let clean: Vec<Vec<u8>> = (0..100u8).map(|number| vec![number; 100]).collect();
    assert_eq!(through(1, Faults::default()), clean);
    let dropped = through(1, Faults { drop: 0.2, ..Faults::default() });
    assert!((60..95).contains(&dropped.len()), "{}", dropped.len());
    assert_eq!(dropped, through(1, Faults { drop: 0.2, ..Faults::default() }));
    assert_ne!(dropped, through(2, Faults { drop: 0.2, ..Faults::default() }));
    let copied = through(1, Faults { duplicate: 0.2, ..Faults::default() });
    assert!((105..145).contains(&copied.len()), "{}", copied.len());
    let mutated = through(1, Faults { mutate: 1.0, ..Faults::default() });
    for (one, was) in mutated.iter().zip(&clean) {
        let flipped: u32 = one.iter().zip(was).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(flipped, 1);
    }
    assert!(through(1, Faults { truncate: 1.0, ..Faults::default() }).iter().all(|one| one.len() < 100));
    assert!(through(1, Faults { extend: 1.0, ..Faults::default() }).iter().all(|one| one.len() > 100));
    let replayed = through(1, Faults { replay: 0.5, ..Faults::default() });
    assert!(replayed.len() > 120 && clean.iter().all(|one| replayed.contains(one)));
    let mut late = through(1, Faults { reorder: 0.3, reorder_by: Duration::from_millis(200), ..Faults::default() });
    assert_ne!(late, clean);
    late.sort();
    assert_eq!(late, clean, "nothing is lost");
}

#[test]
fn tapped_chain_carries_traffic_and_survives_restarts() {
    let mut nodes = Nodes::start(Plan { taps: true, ..Plan::default() });
    nodes.assert_carries();
    for tap in &nodes.taps {
        assert!(tap.passed(Forward) > 3 && tap.passed(Backward) > 2);
    }
    nodes.stop(1);
    nodes.run(1);
    nodes.assert_carries();
    nodes.kill(2);
    nodes.run(2);
    nodes.assert_carries();
    nodes.end();
}
