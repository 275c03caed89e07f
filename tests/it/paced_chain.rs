//! A chain of a paced class, in memory: handshakes, setups by batches, calls there and back, constant links.

use std::time::Duration;

use dataplane::socket::memory::Datagram;
use wire::ids::Side;

use crate::common::pacedchain::{Chain, destination, link_address, listener, terms};

#[test]
fn datagrams_of_paced_entries_arrive_and_are_answered() {
    let mut chain = Chain::new(&terms(), 3);
    // Bundles come after an interval or two, then setups in the phases of a batch.
    for _ in 0..8 {
        chain.run_to_batch(1);
        eprintln!("{}", chain.debug());
    }
    chain.assert_closed();
    let client = "198.18.1.100:5000".parse().unwrap();
    for entry in 0..3 {
        let bytes = format!("hello {entry}").into_bytes();
        chain.apps.send(Datagram { from: client, to: listener(entry), bytes });
    }
    chain.run(Duration::from_millis(500));
    let mut got: Vec<Datagram> = std::iter::from_fn(|| chain.apps.receive(destination())).collect();
    got.sort_by(|a, b| a.bytes.cmp(&b.bytes));
    let texts: Vec<String> = got.iter().map(|datagram| String::from_utf8(datagram.bytes.clone()).unwrap()).collect();
    assert_eq!(texts, ["hello 0", "hello 1", "hello 2"], "{:?} {:?}", chain.refused(101), chain.events);
    for datagram in got {
        let bytes = [b"answer to ".as_slice(), &datagram.bytes].concat();
        chain.apps.send(Datagram { from: destination(), to: datagram.from, bytes });
    }
    chain.run(Duration::from_millis(500));
    let answers = std::iter::from_fn(|| chain.apps.receive(client)).count();
    assert_eq!(answers, 3);
    chain.assert_closed();
    let since = chain.now;
    chain.run(Duration::from_secs(2));
    let counts = chain.on_link(link_address(2, Side::Down), link_address(3, Side::Up), since);
    assert!(counts.len() > 150);
}
