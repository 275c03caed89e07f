//! Input that a careless node would not survive: empty and cut datagrams, forged cells, unreachable destinations, ends
//! that come and go. Each is sent, each is counted where it is refused, and the same processes carry traffic
//! afterwards.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction::{self, Backward, Forward};

use crate::common::attack::Port;
use crate::common::command::{complaint, run};
use crate::common::network::in_a_network_without_routes;
use crate::common::nodes::{Nodes, PATIENCE, Plan, until};

pub const SENT_BY_ENTRY: &str = "/ledger/datagrams/forward/consumed";
/// Every chain sends these at its start: three datagrams that its exit must refuse.
pub const PROBES: u64 = 3;
const SENT_BY_EXIT: &str = "/ledger/datagrams/forward/sent";
const BAD_ADDRESS: &str = "/ledger/datagrams/forward/dropped/bad-address";

pub fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The next datagram at a socket.
pub fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).expect("a datagram");
    (buffer[..len].to_vec(), from)
}

/// One datagram to the sink and its answer back: each must be the next to arrive at its end. The exit's address.
pub fn there_and_back(nodes: &Nodes, client: &UdpSocket, data: &[u8]) -> SocketAddr {
    client.send_to(data, nodes.forward()).unwrap();
    let (got, exit) = next(&nodes.sink);
    assert_eq!(got, data);
    nodes.sink.send_to(data, exit).unwrap();
    assert_eq!(next(client).0, data);
    exit
}

/// Waits until a counter has its value, and finds no more than that.
pub fn counted(nodes: &Nodes, position: usize, pointer: &str, want: u64) {
    until(&format!("{want} at {pointer} of node {position}"), || nodes.count(position, pointer) >= want);
    assert_eq!(nodes.count(position, pointer), want, "{pointer} of node {position}");
}

/// A pymix datagram.
fn pymix(to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let SocketAddr::V4(to) = to else { panic!("pymix is for IPv4") };
    [&to.ip().octets()[..], &to.port().to_be_bytes(), data].concat()
}

/// How many lines each node has said, but for those that a slow machine explains: strangers must not be able to make
/// it say more.
fn lines(nodes: &Nodes) -> Vec<usize> {
    let own = ["the exit refused", "the exit cannot", "next hop", "previous hop", "channel setup"];
    let counts = |line: &&String| !own.iter().any(|own| line.contains(own));
    nodes.positions().map(|position| nodes.said(position).iter().filter(counts).count()).collect()
}

/// The counters of a node's drops at a link port.
pub fn dropped_at(port: &Port) -> &'static str {
    match port.direction {
        Forward => "/ledger/cells/forward/dropped",
        Backward => "/ledger/cells/backward/dropped",
    }
}

#[test]
fn empty_datagram_is_harmless_at_any_port() {
    let mut nodes = Nodes::start(Plan { taps: true, ..Plan::quiet() });
    let (pids, said) = (nodes.pids(), lines(&nodes));
    let (client, stranger) = (socket(), socket());
    // Link ports, by a stranger and by the neighbour.
    for port in Port::all(&nodes) {
        for _ in 0..3 {
            stranger.send_to(b"", port.address).unwrap();
            nodes.taps[port.link() - 1].inject(port.direction, b"");
        }
    }
    for port in Port::all(&nodes) {
        counted(&nodes, port.position, &format!("{}/length", dropped_at(&port)), 6);
    }
    // A forward carries it, there and back.
    counted(&nodes, 0, SENT_BY_ENTRY, PROBES);
    let exit = there_and_back(&nodes, &client, b"");
    counted(&nodes, 0, SENT_BY_ENTRY, PROBES + 1);
    // A datagram to the exit's own socket, from an address that no flow sends to.
    stranger.send_to(b"", exit).unwrap();
    counted(&nodes, nodes.exit(), "/ledger/datagrams/backward/dropped/filtered", 1);
    // A pymix port.
    client.send_to(b"", nodes.pymix()).unwrap();
    counted(&nodes, 0, BAD_ADDRESS, 1);
    assert_eq!(lines(&nodes), said);
    nodes.assert_unharmed(&pids);
}

#[test]
fn pymix_datagram_cut_anywhere_is_counted() {
    let mut nodes = Nodes::start(Plan::default());
    let (pids, said) = (nodes.pids(), lines(&nodes));
    let client = socket();
    let whole = pymix(nodes.sink.local_addr().unwrap(), b"");
    for len in 0..whole.len() {
        client.send_to(&whole[..len], nodes.pymix()).unwrap();
    }
    counted(&nodes, 0, BAD_ADDRESS, 6);
    client.send_to(&whole, nodes.pymix()).unwrap();
    let (got, exit) = next(&nodes.sink);
    assert!(got.is_empty());
    nodes.sink.send_to(b"thanks", exit).unwrap();
    assert_eq!(next(&client).0, b"thanks");
    counted(&nodes, 0, BAD_ADDRESS, 6);
    assert_eq!(lines(&nodes), said);
    nodes.assert_unharmed(&pids);
}

#[test]
fn destination_port_0_is_refused_and_counted() {
    let mut nodes = Nodes::start(Plan::default());
    let pids = nodes.pids();
    let client = socket();
    for data in [&b""[..], b"x", b"to nobody"] {
        client.send_to(&pymix("127.0.0.1:0".parse().unwrap(), data), nodes.pymix()).unwrap();
    }
    counted(&nodes, 0, BAD_ADDRESS, 3);
    counted(&nodes, 0, SENT_BY_ENTRY, PROBES);
    nodes.assert_unharmed(&pids);
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), "chain --forward 127.0.0.1:0=127.0.0.1:0");
    let (code, said) = complaint(&output);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("\"127.0.0.1:0\" has port 0: expected the port"), "{said}");
}

/// Everything that came of datagrams towards a destination and did not leave, at both ends.
pub fn lost_at_ends(nodes: &Nodes) -> u64 {
    [0, nodes.exit()].iter().map(|position| lost(nodes, *position, |_| true)).sum()
}

/// Send errors and drops of the reasons that `which` holds for, of datagrams towards destinations.
fn lost(nodes: &Nodes, position: usize, which: impl Fn(&str) -> bool) -> u64 {
    let report = nodes.status(position);
    let tally = &report["ledger"]["datagrams"]["forward"];
    let dropped = tally["dropped"].as_object().unwrap().iter().filter(|(reason, _)| which(reason));
    dropped.map(|(_, count)| count.as_u64().unwrap()).sum::<u64>() + tally["send_errors"].as_u64().unwrap()
}

/// Datagrams to `bad`, to which none can leave, among others from the same socket: those are counted, these arrive.
fn assert_only_bad_is_lost(nodes: &Nodes, bad: SocketAddr) {
    let client = socket();
    let good = nodes.sink.local_addr().unwrap();
    let before = lost_at_ends(nodes);
    // Ten at a time, so that some share a turn.
    for ten in 0..5u8 {
        let numbers = 10 * ten..10 * (ten + 1);
        for number in numbers.clone() {
            client.send_to(&pymix(bad, &[number]), nodes.pymix()).unwrap();
            client.send_to(&pymix(good, &[number]), nodes.pymix()).unwrap();
        }
        for number in numbers {
            assert_eq!(next(&nodes.sink).0, [number], "{bad}");
        }
    }
    until(&format!("50 datagrams to {bad} are counted"), || lost_at_ends(nodes) >= before + 50);
    assert_eq!(lost_at_ends(nodes), before + 50, "{bad}");
}

#[test]
fn refused_destination_costs_others_nothing() {
    let mut nodes = Nodes::start(Plan::default());
    let pids = nodes.pids();
    let policy = "/ledger/datagrams/forward/dropped/policy";
    let (at_exit, at_entry) = (nodes.count(nodes.exit(), policy), nodes.count(0, policy));
    assert_only_bad_is_lost(&nodes, "10.255.255.1:9".parse().unwrap());
    let (more_at_exit, more_at_entry) = (nodes.count(nodes.exit(), policy), nodes.count(0, policy));
    assert_eq!(more_at_exit - at_exit + more_at_entry - at_entry, 50);
    assert!(more_at_exit > at_exit, "the exit decides");
    // A broadcast address within what the policy admits: the kernel says EACCES.
    assert_only_bad_is_lost(&nodes, "127.255.255.255:9".parse().unwrap());
    nodes.assert_unharmed(&pids);
}

#[test]
fn unroutable_destination_costs_others_nothing() {
    if !in_a_network_without_routes("robustness::unroutable_destination_costs_others_nothing") {
        return;
    }
    let mut nodes = Nodes::start(Plan { allow: vec!["198.51.100.0/24".parse().unwrap()], ..Plan::default() });
    let pids = nodes.pids();
    assert_only_bad_is_lost(&nodes, "198.51.100.1:9".parse().unwrap());
    nodes.assert_unharmed(&pids);
}

#[test]
fn forged_headers_and_bodies_are_counted_and_dropped() {
    const COUNT: u64 = 20;
    let mut nodes = Nodes::start(Plan { taps: true, channels: 1, ..Plan::quiet() });
    let (pids, said) = (nodes.pids(), lines(&nodes));
    let (client, stranger) = (socket(), socket());
    let mut rng = ChaCha20Rng::seed_from_u64(6);
    let mut random = |len: usize| {
        let mut bytes = vec![0; len];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    there_and_back(&nodes, &client, b"the flow is open");
    counted(&nodes, nodes.exit(), SENT_BY_EXIT, 1);
    for port in Port::all(&nodes) {
        let Port { position, direction, address, cell_len: len } = port;
        let tap = &nodes.taps[port.link() - 1];
        // One after the other, so that few nodes have a keepalive to send.
        (0..COUNT).for_each(|number| _ = there_and_back(&nodes, &client, &[number as u8]));
        let records = tap.records(direction);
        let data: Vec<Vec<u8>> =
            records.into_iter().map(|r| r.bytes).filter(|b| b.len() == len).rev().take(COUNT as usize).collect();
        assert_eq!(data.len() as u64, COUNT);
        let [stranger_at, header_at, forged_at, replay_at] =
            ["stranger", "header", "forged", "replay"].map(|reason| format!("{}/{reason}", dropped_at(&port)));
        // A mix cannot check a backward body: it finds the number used. Forward, and at the entry, the tag of the body
        // fails.
        let of_body = if direction == Backward && position != 0 { replay_at } else { forged_at };
        // If there was a keepalive after all, control refuses it.
        let of_body = [&of_body, "/refused/cell-replayed", "/refused/cell-forged"];
        let bodies = || of_body.iter().map(|pointer| nodes.count(position, pointer)).sum::<u64>();
        let before = (nodes.count(position, &stranger_at), nodes.count(position, &header_at), bodies());
        for cell in &data {
            stranger.send_to(&random(len), address).unwrap();
            stranger.send_to(cell, address).unwrap();
            tap.inject(direction, &random(len));
            tap.inject(direction, &[&random(16)[..], &cell[16..]].concat());
            tap.inject(direction, &[&cell[..16], &random(len - 16)[..]].concat());
        }
        counted(&nodes, position, &stranger_at, before.0 + 2 * COUNT);
        counted(&nodes, position, &header_at, before.1 + 2 * COUNT);
        until(&format!("forged bodies {direction:?} to node {position}"), || bodies() >= before.2 + COUNT);
        assert_eq!(bodies(), before.2 + COUNT, "{direction:?} to node {position}");
    }
    let answered = Port::all(&nodes).len() as u64 * COUNT;
    there_and_back(&nodes, &client, b"the next to arrive");
    counted(&nodes, nodes.exit(), SENT_BY_EXIT, 1 + answered + 1);
    assert_eq!(lines(&nodes), said);
    nodes.assert_unharmed(&pids);
}

#[test]
fn forged_copy_ahead_of_its_cell_costs_it_only_backward() {
    let mut nodes = Nodes::start(Plan { taps: true, channels: 1, ..Plan::quiet() });
    let pids = nodes.pids();
    let client = socket();
    there_and_back(&nodes, &client, b"the flow is open");
    // Of every cell: which of them carries the datagram cannot be seen, and link cells travel as well.
    let overtake = |direction: Direction| {
        let len = nodes.shape().cell_len(direction, 2);
        nodes.taps[1].script(Some(Box::new(move |of, bytes| {
            let mut fates = vec![(Duration::ZERO, of, bytes.to_vec())];
            if of == direction && bytes.len() == len {
                let garbage = bytes[16..].iter().map(|byte| byte ^ 0x55);
                fates.insert(0, (Duration::ZERO, of, bytes[..16].iter().copied().chain(garbage).collect()));
            }
            fates
        })));
    };
    let comes = |position, pointer: &str| until(pointer, || nodes.count(position, pointer) > 0);
    overtake(Forward);
    there_and_back(&nodes, &client, b"passes all the same");
    comes(2, "/ledger/cells/forward/dropped/forged");
    nodes.taps[1].script(None);
    // The mix in front of the link marks the copy's number, and the entry finds the copy out.
    let exit = there_and_back(&nodes, &client, b"once more");
    overtake(Backward);
    nodes.sink.send_to(b"never arrives", exit).unwrap();
    comes(1, "/ledger/cells/backward/dropped/replay");
    comes(0, "/ledger/cells/backward/dropped/forged");
    nodes.taps[1].script(None);
    there_and_back(&nodes, &client, b"the next to arrive");
    nodes.assert_unharmed(&pids);
}

#[test]
fn vanishing_clients_and_servers_cost_others_nothing() {
    let mut nodes = Nodes::start(Plan::default());
    let pids = nodes.pids();
    let client = socket();
    // Below the ephemeral ports, so that no other socket gets the address meanwhile.
    let address = SocketAddr::new(nodes.forward().ip(), 6000);
    let peer = || {
        let peer = UdpSocket::bind(address).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer
    };
    let send = |to: SocketAddr, data: &[u8]| _ = client.send_to(&pymix(to, data), nodes.pymix()).unwrap();
    let good = nodes.sink.local_addr().unwrap();
    let receiver = peer();
    send(address, b"one");
    send(good, b"two");
    let (exit, same) = (next(&receiver).1, next(&nodes.sink).1);
    assert_eq!(exit, same, "both flows leave from one socket");

    // The receiver vanishes; the other goes on, both ways.
    drop(receiver);
    counted(&nodes, nodes.exit(), SENT_BY_EXIT, 2);
    for number in 0..100u8 {
        send(address, b"not there");
        send(good, &[number]);
        assert_eq!(next(&nodes.sink).0, [number]);
        nodes.sink.send_to(&[number], exit).unwrap();
        assert_eq!(next(&client).0, [number]);
    }
    let gone = || (nodes.count(nodes.exit(), SENT_BY_EXIT) - 2, lost_at_ends(&nodes) - PROBES);
    until("200 datagrams are accounted for", || gone().0 + gone().1 >= 200);
    let (sent, lost) = gone();
    assert_eq!(sent + lost, 200);
    assert!(sent >= 100);
    until("the entry logs it, which it does at most once a second", || {
        send(address, b"not there");
        nodes.said(0).iter().any(|line| line.contains(&address.to_string()) && line.contains("cannot reach"))
    });

    // It comes back.
    let receiver = peer();
    receiver.set_nonblocking(true).unwrap();
    let mut got = false;
    until("datagrams arrive again", || {
        send(address, b"are you back?");
        got = got || receiver.recv(&mut [0; 32]).is_ok();
        got
    });
    println!("a receiver that came back was reached; {lost} of 100 were counted as lost");

    // A client vanishes while answers flow: they are sent in vain, and the others get theirs.
    let vanishing = socket();
    let exit = there_and_back(&nodes, &vanishing, b"and good bye");
    drop(vanishing);
    let answers = || {
        let tally = |name: &str| nodes.count(0, &format!("/ledger/datagrams/backward/{name}"));
        tally("sent") + tally("send_errors")
    };
    until("101 answers are accounted for", || answers() >= 101);
    assert_eq!(answers(), 101);
    let other = socket();
    for number in 0..100u8 {
        nodes.sink.send_to(b"are you there?", exit).unwrap();
        there_and_back(&nodes, &other, &[number]);
    }
    until("200 more answers are accounted for", || answers() >= 301);
    assert_eq!(answers(), 301);
    nodes.assert_unharmed(&pids);
}
