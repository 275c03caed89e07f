//! ICMP errors: a program learns of a refused datagram as it would from a network.

use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use dataplane::exit::policy::Rule;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::thread::{CapabilitySet, capabilities};

use crate::common::command::eddy;
use crate::common::nameserver::NameServer;
use crate::common::network::in_a_network_without_routes;
use crate::common::nodes::{Nodes, Plan, until};

/// Sends until the system has an error for this socket.
fn error(client: &UdpSocket, data: &[u8]) -> Error {
    client.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut error = None;
    until("the system has an error for this socket", || {
        let heard = client.send(data).and_then(|_| client.recv(&mut [0; 100]));
        error = heard.err().filter(|why| why.kind() != ErrorKind::WouldBlock);
        error.is_some()
    });
    error.unwrap()
}

fn connected(host: &str, to: SocketAddr) -> UdpSocket {
    let client = UdpSocket::bind((host, 0)).unwrap();
    client.connect(to).unwrap();
    client
}

#[test]
fn program_gets_icmp_errors_for_length_and_refusal() {
    if !in_a_network_without_routes("icmp::program_gets_icmp_errors_for_length_and_refusal") {
        return;
    }
    let ours = capabilities(None).unwrap();
    assert!(ours.effective.contains(CapabilitySet::NET_RAW), "the creator of a network namespace is root in it");
    let names = NameServer::start();
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let inside: SocketAddr = "10.0.0.1:9".parse().unwrap();
    let allow = "127.0.0.0/8".parse::<Rule>().unwrap();
    let six = "[::1]:4646";
    let mut nodes = Nodes::start(Plan {
        allow: vec![allow],
        forwards: vec![inside, closed],
        extra: vec![(3, format!("resolver = \"{}\"", names.address))],
        ..Plan::default()
    });
    let long = connected("127.0.0.1", nodes.forward());
    let said = |client: &UdpSocket, data: &[u8]| error(client, data).raw_os_error().map(Errno::from_raw_os_error);
    let before = sockopt::ip_mtu(&long).unwrap();
    assert_eq!(said(&long, &[0; 20_000]), Some(Errno::MSGSIZE));
    assert!(sockopt::ip_mtu(&long).unwrap() + 1 >= before, "others on this path send as before");
    assert_eq!(said(&connected("127.0.0.1", nodes.further_forward(0)), b"in?"), Some(Errno::HOSTUNREACH));
    assert_eq!(said(&connected("127.0.0.1", nodes.further_forward(1)), b"?"), Some(Errno::CONNREFUSED));

    // Over IPv6, and for a name that does not exist.
    let forward = format!("{six}=nowhere.test:9");
    let added = eddy().args(["forward", "add", "--config"]).arg(nodes.config(0)).arg(&forward).output().unwrap();
    assert!(added.status.success(), "{added:?}");
    let six = connected("::1", six.parse().unwrap());
    assert_eq!(said(&six, &[0; 20_000]), Some(Errno::MSGSIZE));
    assert_eq!(said(&six, b"?"), Some(Errno::CONNREFUSED));
    nodes.assert_carries();
    nodes.end();
}
