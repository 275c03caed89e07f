//! Traffic through a chain of processes that stays: renewal, pymix clients, refusals.

use std::net::UdpSocket;

use crate::common::nodes::{PATIENCE, until};
use crate::common::process::{CROSSED, Demo, closed, tallies};
use crate::common::traffic::{Load, Traffic};

#[test]
fn renewal_every_two_seconds_loses_nothing() {
    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let forward = format!("127.0.0.1:0={}", sink.local_addr().unwrap());
    let demo = Demo::start(&["--messages", "1", "--renew-after-s", "2", "--forward", &forward]);
    let to = demo.forward_to(sink.local_addr().unwrap());
    let load = Load { flows: 10, len: 500, ..Load::default() };
    let counts = Traffic::exchange(to, &sink, load, 2700);
    let report = demo.end();
    closed(&report);
    let mut crossed = 0;
    for node in report["nodes"].as_array().unwrap() {
        assert!(node["handshakes"]["done"].as_u64() >= Some(4), "{node:#}");
        for tally in tallies(node) {
            for (why, count) in tally["dropped"].as_object().unwrap() {
                assert!(CROSSED.contains(&why.as_str()), "{node:#}");
                crossed += count.as_u64().unwrap();
            }
        }
    }
    // In memory, where no handshake takes long, not one is lost.
    println!("{counts:?}, {crossed} cells under keys of handshakes that crossed");
    assert!(counts.sent == 2700 && counts.sent - counts.answered <= crossed, "{counts:?}, {crossed} crossed");
    assert_eq!((counts.again, counts.reordered, counts.strange), (0, 0, 0), "{counts:?}");
}

#[test]
fn pymix_client_gets_its_answer_on_its_own_socket() {
    let demo = Demo::start(&["--messages", "1", "--pymix", "127.0.0.1:0"]);
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
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
fn refused_destination_is_counted_and_costs_no_socket() {
    let demo = Demo::start(&["--messages", "1", "--pymix", "127.0.0.1:0"]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    // A private address: the demonstration's exit admits loopback and the internet, and this goes nowhere.
    let refused = |position: usize| {
        demo.status(position)["ledger"]["datagrams"]["forward"]["dropped"]["policy"].as_u64() > Some(0)
    };
    until("the entry learns of the refusal and refuses itself", || {
        client.send_to(&[10, 255, 255, 1, 0, 9, 1], demo.pymix()).unwrap();
        refused(0)
    });
    assert!(refused(4), "{:#}", demo.status(4));
    assert!(demo.status(4)["sockets"].as_u64() <= Some(1), "the demonstration's own flow has one");
    closed(&demo.end());
}
