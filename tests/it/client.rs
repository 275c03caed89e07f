//! The library: channels of an entry in this process, through a chain of others.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use eddy_node::client::{Channel, Destination, Entry};
use eddy_node::report::NodeReport;
use rustix::io::Errno;

use crate::common::nameserver::NameServer;
use crate::common::nodes::{Nodes, PATIENCE, Plan, until};

#[path = "../../node/examples/channel.rs"]
mod example;

fn server() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn channel(entry: &Entry) -> Channel {
    let channel = Channel::open(entry).unwrap();
    channel.set_read_timeout(Some(PATIENCE)).unwrap();
    channel
}

fn at(server: &UdpSocket) -> Destination {
    server.local_addr().unwrap().into()
}

/// Sends until something arrives: a datagram of several cells is lost if a busy machine delivers the last of them late.
fn across<A>(send: impl Fn(), receive: impl Fn(&mut [u8]) -> io::Result<(usize, A)>) -> (Vec<u8>, A) {
    let mut buffer = vec![0; 20_000];
    let mut got = None;
    until("a datagram arrives", || {
        send();
        got = receive(&mut buffer).ok();
        got.is_some()
    });
    let (len, from) = got.unwrap();
    buffer.truncate(len);
    (buffer, from)
}

/// A datagram there and another back; the port that the server saw.
fn talk(channel: &Channel, to: &Destination, server: &UdpSocket, data: &[u8]) -> SocketAddr {
    let again = Some(Duration::from_secs(5));
    server.set_read_timeout(again).unwrap();
    channel.set_read_timeout(again).unwrap();
    let send = || assert_eq!(channel.send_to(data, to).unwrap(), data.len());
    let (got, exit) = across(send, |buffer| server.recv_from(buffer));
    assert!(got == data, "{} bytes instead of {}", got.len(), data.len());
    let answer = [b"re: ", data].concat();
    let (got, from) = across(|| _ = server.send_to(&answer, exit).unwrap(), |buffer| channel.recv_from(buffer));
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    channel.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(from, at(server), "the true address, whatever was asked for");
    assert!(got == answer, "{} bytes", got.len());
    exit
}

fn dropped(report: &NodeReport, why: &str) -> u64 {
    report.ledger.datagrams.as_ref().map_or(0, |datagrams| datagrams.forward.dropped.get(why).copied().unwrap_or(0))
}

#[test]
fn a_channel_is_a_socket_at_the_exit() {
    let names = NameServer::start();
    let resolver = format!("resolver = \"{}\"", names.address);
    let mut nodes = Nodes::start(Plan { extra: vec![(3, resolver)], ..Plan::default() });
    let entry = Entry::start(&nodes.another_entry()).unwrap();
    let (one, other) = (channel(&entry), channel(&entry));
    let (first, second) = (server(), server());
    // Sent before any channel is up: it waits for one.
    let port = talk(&one, &at(&first), &first, b"question");
    assert_eq!(talk(&one, &at(&second), &second, b"same port"), port);
    assert_ne!(talk(&other, &at(&first), &first, b"another port"), port);
    let named = format!("here.test:{}", first.local_addr().unwrap().port()).parse().unwrap();
    assert_eq!(talk(&one, &named, &first, b"a name is resolved at the exit"), port);
    for len in [0, 1, entry.one_cell(), entry.one_cell() + 1, entry.longest() - 4] {
        talk(&one, &at(&first), &first, &vec![7; len]);
    }

    // What cannot be sent is said at once.
    let said = |data: &[u8], to: &Destination| one.send_to(data, to).unwrap_err();
    let long = said(&vec![0; entry.longest() + 1], &at(&first));
    assert_eq!(long.raw_os_error(), Some(Errno::MSGSIZE.raw_os_error()));
    let longest = vec![0; entry.longest()];
    first.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let send = || _ = one.send_to(&longest, &at(&first)).unwrap();
    assert_eq!(across(send, |buffer| first.recv_from(buffer)).0.len(), longest.len());
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = |text: &str| Destination::Name(text.into(), 7);
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    for bad in [name(&"a".repeat(254)), name(&"a".repeat(300)), name(""), name("a b"), nowhere] {
        assert_eq!(said(b"", &bad).kind(), ErrorKind::InvalidInput, "{bad}");
    }

    // What has no room is cut, as with any datagram socket.
    one.send_to(b"cut", &at(&second)).unwrap();
    let (_, exit) = second.recv_from(&mut [0; 9]).unwrap();
    second.send_to(b"to size", exit).unwrap();
    let mut short = [0; 3];
    assert_eq!((one.recv_from(&mut short).unwrap().0, &short), (3, b"to "));
    one.set_nonblocking(true).unwrap();
    assert_eq!(one.recv_from(&mut short).unwrap_err().kind(), ErrorKind::WouldBlock);

    // The policy of the exit holds for it as for everybody.
    let refused = [10, 0, 0, 1];
    one.send_to(b"must not leave", &SocketAddr::from((refused, 9)).into()).unwrap();
    until("the exit refuses", || nodes.count(3, "/ledger/datagrams/forward/dropped/policy") > 0);

    let flows = |nodes: &Nodes| nodes.count(3, "/flows");
    let before = flows(&nodes);
    drop(other);
    until("its flow is closed at the exit", || flows(&nodes) == before - 1);
    let (answer_to, answer) = {
        let echo = first.try_clone().unwrap();
        let answers = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            let (len, from) = echo.recv_from(&mut buffer).unwrap();
            echo.send_to(&buffer[..len], from).unwrap();
        });
        let asked = example::ask(&entry, &at(&first), b"as in the example").unwrap();
        answers.join().unwrap();
        asked
    };
    assert_eq!((answer_to, &answer[..]), (at(&first), &b"as in the example"[..]));

    let report = entry.stop().unwrap();
    let datagrams = report.ledger.datagrams.as_ref().unwrap();
    assert!(datagrams.forward.closed && datagrams.backward.closed);
    assert_eq!(dropped(&report, "too-large"), 0, "the library had said so before");
    one.set_nonblocking(false).unwrap();
    let gone = one.send_to(b"", &at(&first)).and_then(|_| one.recv_from(&mut short)).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::ConnectionRefused);
    nodes.end();
}

#[test]
fn whoever_asks_is_told_who_answers_and_strangers_come_in_only_where_the_exit_lets_them() {
    let mut nodes = Nodes::start(Plan { extra: vec![(3, "filtering = \"none\"".to_owned())], ..Plan::default() });
    let entry = Entry::start(&nodes.another_entry()).unwrap();
    let (channel, asked, stranger) = (channel(&entry), server(), server());
    let exit = talk(&channel, &at(&asked), &asked, b"hello");
    stranger.send_to(b"psst", exit).unwrap();
    let mut buffer = [0; 100];
    let (len, from) = channel.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..len], from), (&b"psst"[..], at(&stranger)));
    // A forward has one peer: its client could not tell them apart.
    let client = server();
    client.send_to(b"hello", nodes.forward()).unwrap();
    let (_, exit) = nodes.sink.recv_from(&mut buffer).unwrap();
    stranger.send_to(b"psst", exit).unwrap();
    until("the entry keeps it", || nodes.count(0, "/ledger/datagrams/backward/dropped/filtered") == 1);
    nodes.sink.send_to(b"yes?", exit).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"yes?");
    entry.stop().unwrap();
    nodes.end();
}

#[test]
fn a_configuration_that_is_no_entrys_is_refused_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let said = |file: &Path| Entry::start(file).err().expect("refused").to_string();
    let missing = said(&dir.path().join("entry.toml"));
    assert!(missing.contains("entry.toml") && missing.contains("eddy init"), "{missing}");
    let chain = crate::common::command::run(dir.path(), "init demo");
    assert!(chain.status.success());
    let mix = said(&dir.path().join("demo/mix1.toml"));
    assert!(mix.contains("configures a mix, not an entry"), "{mix}");
}
