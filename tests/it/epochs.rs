//! Epochs under traffic, in memory: channels come and go under the keys of several epochs, and no datagram is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use dataplane::SECOND;
use dataplane::socket::memory::Datagram;
use wire::cell::Class;

use crate::common::memchain::{Chain, Plan, app};

#[test]
fn three_epochs_under_traffic_lose_nothing() {
    let plan = Plan {
        class: Class::S,
        mixes: 2,
        lanes: vec![1; 2],
        interval_s: 1,
        epoch_s: 10,
        lifetime_s: 20,
        ..Plan::default()
    };
    let mut chain = Chain::new(plan);
    chain.open();
    let clients = [app(20, 1), app(21, 2), app(22, 3)];
    let (mut arrived, mut answered) = (BTreeSet::new(), BTreeSet::new());
    let mut sent = 0u64;
    let end = chain.now + 45 * SECOND;
    while chain.now < end + SECOND {
        if chain.now < end {
            for client in clients {
                chain.send(client, &sent.to_be_bytes());
                sent += 1;
            }
        }
        chain.run(Duration::from_millis(20));
        for datagram in chain.receive(chain.plan.destination) {
            assert!(arrived.insert(datagram.bytes.clone()), "a datagram came twice");
            chain.apps.send(Datagram { from: chain.plan.destination, to: datagram.from, bytes: datagram.bytes });
        }
        for client in clients {
            answered.extend(chain.receive(client).into_iter().map(|datagram| datagram.bytes));
        }
    }
    assert_eq!((arrived.len() as u64, answered.len() as u64), (sent, sent), "{:#?}", chain.notes);
    chain.assert_lossless();
    let opened = chain.notes.iter().filter(|note| note.starts_with("0: ChannelOpen")).count();
    assert!(opened >= 3 * 4, "{opened} channels: each was replaced twice");
    let switched = chain.notes.iter().filter(|note| note.contains("Setup")).collect::<Vec<_>>();
    assert!(switched.is_empty(), "{switched:#?}");
}
