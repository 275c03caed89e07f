//! Traffic through a chain of processes that stays: renewal, pymix clients, refusals.

use std::net::UdpSocket;
use std::time::Duration;

use eddy_bench::load::{Load, run};
use serde_json::Value;

use crate::common::process::{Demo, closed, tallies};

#[test]
fn links_renewed_every_two_seconds_under_traffic_lose_nothing() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let forward = format!("127.0.0.1:0={}", sink.local_addr().unwrap());
    let demo = Demo::start(&["--messages", "1", "--renew-after-s", "2", "--forward", &forward]);
    // Nodes that were started at once may have called twice; from here on nothing may be dropped.
    let dropped = |demo: &Demo| -> Vec<Value> {
        let nodes = (0..5).map(|position| demo.status(position));
        nodes.flat_map(|node| tallies(&node).map(|tally| tally["dropped"].clone()).collect::<Vec<_>>()).collect()
    };
    let before = dropped(&demo);
    let to = demo.forward_to(sink.local_addr().unwrap());
    let load = Load { to, flows: 10, rate: 300, len: 500, time: Duration::from_secs(9) };
    let outcome = run(&load, sink).unwrap();
    assert_eq!((outcome.sent, outcome.lost, outcome.reordered), (2700, 0, 0), "{outcome:?}");
    assert_eq!(dropped(&demo), before);
    let report = demo.end();
    closed(&report);
    for node in report["nodes"].as_array().unwrap() {
        assert!(node["handshakes"]["done"].as_u64() >= Some(4), "{node:#}");
    }
}

#[test]
fn a_pymix_client_gets_its_bare_answer_on_the_socket_it_sent_from() {
    let demo = Demo::start(&["--messages", "1", "--pymix", "127.0.0.1:0"]);
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let mut request = vec![127, 0, 0, 1];
    request.extend_from_slice(&server.local_addr().unwrap().port().to_be_bytes());
    request.extend_from_slice(b"Hello");
    let mut buffer = [0; 2000];
    for _ in 0..3 {
        client.send_to(&request, demo.pymix()).unwrap();
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"Hello");
        server.send_to(b"Got Message. Thanks!", from).unwrap();
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"Got Message. Thanks!"[..], demo.pymix()));
    }
    // A header alone is an empty datagram; less than a header, or port 0, is counted.
    client.send_to(&request[..6], demo.pymix()).unwrap();
    assert_eq!(server.recv_from(&mut buffer).unwrap().0, 0);
    client.send_to(&[127, 0, 0], demo.pymix()).unwrap();
    client.send_to(&[127, 0, 0, 1, 0, 0, 1], demo.pymix()).unwrap();
    client.send_to(&request, demo.pymix()).unwrap();
    assert_eq!(server.recv_from(&mut buffer).unwrap().0, 5);
    let report = demo.end();
    closed(&report);
    assert_eq!(report["nodes"][0]["ledger"]["datagrams"]["forward"]["dropped"]["bad-address"], 2);
}

#[test]
fn a_refused_destination_is_counted_and_costs_no_socket() {
    let demo = Demo::start(&["--messages", "1", "--pymix", "127.0.0.1:0"]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    // A private address: the demonstration's exit admits loopback and the internet, and this goes nowhere.
    for _ in 0..200 {
        client.send_to(&[10, 255, 255, 1, 0, 9, 1], demo.pymix()).unwrap();
        let dropped = demo.status(0)["ledger"]["datagrams"]["forward"]["dropped"]["policy"].as_u64();
        if dropped > Some(0) {
            let exit = demo.status(4);
            assert!(exit["sockets"].as_u64() <= Some(1), "the demonstration's own flow has one");
            assert!(exit["ledger"]["datagrams"]["forward"]["dropped"]["policy"].as_u64() > Some(0), "{exit:#}");
            closed(&demo.end());
            return;
        }
    }
    panic!("the entry never heard of the refusal");
}
