//! Policy and limits of an exit, from one end of a chain to the other.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Instant;

use eddy_node::{Destination, Entry, TunnelError, UdpTunnel};

use crate::common::nameserver::{NameServer, name_of};
use crate::common::network::in_a_network_without_routes;
use crate::common::nodes::{Nodes, Plan, until, while_receiving};

/// One of each range that is not the Internet (SPEC 3.10).
const DENIED: [&str; 28] = [
    "0.0.0.1",
    "10.1.2.3",
    "100.64.0.1",
    "127.0.0.2",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.251",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "100::1",
    "fe80::1",
    "fc00::1",
    "fdff::1",
    "ff02::1",
    "2001:db8::1",
    "2001:10::1",
    "64:ff9b::10.0.0.1",
    "2002:a00:1::1",
];

#[test]
fn denied_ranges_are_unreachable_by_address_and_name() {
    if !in_a_network_without_routes("policy::denied_ranges_are_unreachable_by_address_and_name") {
        return;
    }
    let names = NameServer::start();
    let mut nodes = Nodes::start(Plan {
        open: true,
        trusting: false,
        allow: vec!["127.0.0.1/32".parse().unwrap()],
        extra: vec![(3, format!("resolver = \"{}\"", names.address))],
        ..Plan::default()
    });
    let entry = Entry::start(nodes.another_entry()).unwrap();
    let tunnel = UdpTunnel::open(&entry).unwrap();
    let port = nodes.sink.local_addr().unwrap().port();
    let named = |ip: IpAddr| Destination::Name(name_of(ip).as_str().into(), port);
    // An allowed destination is reached in all these ways, so that a refusal means something.
    let mut buffer = [0; 100];
    let here = Ipv4Addr::LOCALHOST;
    let ways = |ip: IpAddr| {
        let mut ways = vec![Destination::Ip(SocketAddr::new(ip, port)), named(ip)];
        if let IpAddr::V4(ip) = ip {
            ways.push(Destination::Ip(SocketAddr::new(ip.to_ipv6_mapped().into(), port)));
            ways.push(named(ip.to_ipv6_mapped().into()));
        }
        ways
    };
    for (number, way) in (0..).zip(ways(here.into())) {
        tunnel.send_to(&[number], &way).unwrap();
        assert_eq!(nodes.sink.recv(&mut buffer).unwrap(), 1, "{way}");
        assert_eq!(buffer[0], number, "{way}");
    }
    let exit = nodes.exit();
    // A worker publishes at the end of a turn: a datagram may arrive before it is counted.
    until("the exit has counted them", || nodes.count(exit, "/ledger/datagrams/forward/sent") == 4);
    let refused = || nodes.count(exit, "/ledger/datagrams/forward/dropped/policy");
    let (sent, flows) = (nodes.count(exit, "/ledger/datagrams/forward/sent"), nodes.count(exit, "/flows"));
    let descriptors = nodes.descriptors(exit);
    let mut tried = 0;
    for ip in DENIED {
        let ip: IpAddr = ip.parse().unwrap();
        for way in ways(ip) {
            // Refusals of earlier ones come first.
            while let Err(why) = tunnel.send_to(b"must not leave", &way) {
                assert!(matches!(why, TunnelError::PolicyRefused { .. }), "{way}: {why}");
            }
            tried += 1;
            // Spelled otherwise it is the same flow, which the entry knows to be refused.
            until(&format!("{way} is refused"), || {
                let known = entry.report().ledger.datagrams.map(|datagrams| datagrams.forward.dropped);
                refused() + known.and_then(|dropped| dropped.get("policy").copied()).unwrap_or(0) == tried
            });
        }
    }
    assert!(refused() >= 2 * DENIED.len() as u64, "by address and by name");
    assert_eq!(nodes.count(exit, "/ledger/datagrams/forward/sent"), sent, "nothing left");
    assert_eq!((nodes.count(exit, "/flows"), nodes.descriptors(exit)), (flows, descriptors));
    entry.shutdown().unwrap();
    nodes.end();
}

/// A port of the exit's own host is reached by an address that the host gets later, or that only others know.
#[test]
fn exit_closes_own_addresses_while_it_runs() {
    if !in_a_network_without_routes("policy::exit_closes_own_addresses_while_it_runs") {
        return;
    }
    let [known, later] = ["93.184.216.34", "93.184.216.35"].map(|ip| ip.parse::<IpAddr>().unwrap());
    let mut nodes =
        Nodes::start(Plan { open: true, extra: vec![(3, format!("own = [\"{known}\"]"))], ..Plan::default() });
    let entry = Entry::start(nodes.another_entry()).unwrap();
    let tunnel = UdpTunnel::open(&entry).unwrap();
    let refused = || nodes.count(nodes.exit(), "/ledger/datagrams/forward/dropped/policy");

    // The configuration names it before the host has it.
    tunnel.send_to(b"!", &Destination::Ip(SocketAddr::new(known, 9))).unwrap();
    until("the configured address is closed", || refused() == 1);

    let added = Command::new("ip").args(["addr", "add", &format!("{later}/32"), "dev", "lo"]).status();
    assert!(added.unwrap().success());
    let mut port = 1024;
    until("the host's new address is closed", || {
        // Each time a flow of its own: a flow that is open stays open.
        port += 1;
        let _ = tunnel.send_to(b"!", &Destination::Ip(SocketAddr::new(later, port)));
        refused() > 1
    });
    entry.shutdown().unwrap();
    nodes.end();
}

#[test]
fn destination_budget_and_answer_rate_are_enforced() {
    const BUDGET: u64 = 100;
    // One channel gets half.
    const SHARE: u64 = BUDGET / 2;
    const ANSWERS: u64 = 5000;
    const AT_ONCE: u64 = 200;
    let limits = format!("max_unanswered = {BUDGET}\nmax_flow_rate = 1000");
    let mut nodes = Nodes::start(Plan { trusting: false, extra: vec![(3, limits)], ..Plan::default() });
    let exit = nodes.exit();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dropped = |nodes: &Nodes, direction: &str, why: &str| {
        nodes.count(exit, &format!("/ledger/datagrams/{direction}/dropped/{why}"))
    };
    let mut buffer = [0; 100];
    dataplane::sys::size_receive_buffer(&nodes.sink, 1 << 20).unwrap();
    dataplane::sys::size_receive_buffer(&client, 8 << 20).unwrap();
    nodes.sink.set_nonblocking(true).unwrap();
    let (mut arrived, mut from) = (0u64, None);
    for sent in 1..=3 * BUDGET {
        client.send_to(b"is anybody there?", nodes.forward()).unwrap();
        until("delivered or dropped", || {
            while_receiving(&nodes.sink, &mut buffer, |_, exit| {
                arrived += 1;
                from = Some(exit);
            });
            arrived + dropped(&nodes, "forward", "unanswered") == sent
        });
    }
    assert_eq!(arrived, SHARE);

    // It answers with more than was asked for.
    let from = from.unwrap();
    let answered = |nodes: &Nodes| {
        let received = nodes.count(exit, "/ledger/datagrams/backward/received");
        (received, dropped(nodes, "backward", "flow-rate"))
    };
    let before = answered(&nodes);
    let began = Instant::now();
    let (mut answers, mut capped) = (0, 0);
    until("answers are capped", || {
        // As many as the buffer of any socket holds.
        (0..AT_ONCE).for_each(|_| _ = nodes.sink.send_to(b"!", from).unwrap());
        answers += AT_ONCE;
        until("all are read", || answered(&nodes).0 == before.0 + answers);
        capped = answered(&nodes).1 - before.1;
        capped > 0 && answers >= ANSWERS
    });
    let took = began.elapsed();
    // A quarter of a second's at once, and a thousand a second.
    let most = 250 + (1000.0 * took.as_secs_f64()) as u64;
    assert!(answers - capped <= most, "{capped} of {answers} capped within {took:?}");
    client.set_nonblocking(true).unwrap();
    let mut back = 0;
    until("the others come back", || {
        while_receiving(&client, &mut buffer, |_, _| back += 1);
        back == answers - capped
    });
    // After an answer the budget does not apply.
    for _ in 0..2 * BUDGET {
        client.send_to(b"go on", nodes.forward()).unwrap();
        until("delivered", || {
            let mut some = false;
            while_receiving(&nodes.sink, &mut buffer, |_, _| some = true);
            some
        });
    }
    assert_eq!(dropped(&nodes, "forward", "unanswered"), 3 * BUDGET - SHARE);
    nodes.sink.set_nonblocking(false).unwrap();
    nodes.end();
}
