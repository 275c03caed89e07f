//! The client API: tunnels of an entry in this process, through a chain of others.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use eddy_node::{AsyncUdpTunnel, Destination, Entry, NodeReport, NotReady, StartError, TunnelError, UdpTunnel};

use crate::common::nameserver::NameServer;
use crate::common::nodes::{Nodes, PATIENCE, Plan, until};

#[path = "../../node/examples/echo.rs"]
mod example;

fn server() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn tunnel(entry: &Entry) -> UdpTunnel {
    let tunnel = UdpTunnel::open(entry).unwrap();
    tunnel.set_read_timeout(Some(PATIENCE)).unwrap();
    tunnel
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
fn talk(tunnel: &UdpTunnel, to: &Destination, server: &UdpSocket, data: &[u8]) -> SocketAddr {
    let again = Some(Duration::from_secs(5));
    server.set_read_timeout(again).unwrap();
    tunnel.set_read_timeout(again).unwrap();
    let send = || assert_eq!(tunnel.send_to(data, to).unwrap(), data.len());
    let (got, exit) = across(send, |buffer| server.recv_from(buffer));
    assert!(got == data, "{} bytes instead of {}", got.len(), data.len());
    let answer = [b"re: ", data].concat();
    let (got, from) = across(|| _ = server.send_to(&answer, exit).unwrap(), |buffer| Ok(tunnel.recv_from(buffer)?));
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    tunnel.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(from, at(server), "the true address, whatever was asked for");
    assert!(got == answer, "{} bytes", got.len());
    exit
}

fn dropped(report: &NodeReport, why: &str) -> u64 {
    report.ledger.datagrams.as_ref().map_or(0, |datagrams| datagrams.forward.dropped.get(why).copied().unwrap_or(0))
}

#[test]
fn tunnel_is_a_udp_socket_at_the_exit() {
    let names = NameServer::start();
    let resolver = format!("resolver = \"{}\"", names.address);
    let mut nodes = Nodes::start(Plan { extra: vec![(3, resolver)], ..Plan::default() });
    let entry = Entry::start(nodes.another_entry()).unwrap();
    let (one, other) = (tunnel(&entry), tunnel(&entry));
    let (first, second) = (server(), server());
    // Sent before any channel is up: it waits for one.
    let port = talk(&one, &at(&first), &first, b"question");
    assert_eq!(talk(&one, &at(&second), &second, b"same port"), port);
    assert_ne!(talk(&other, &at(&first), &first, b"another port"), port);
    let named = format!("here.test:{}", first.local_addr().unwrap().port()).parse().unwrap();
    assert_eq!(talk(&one, &named, &first, b"a name is resolved at the exit"), port);
    for len in [0, 1, entry.max_single_cell_len(), entry.max_single_cell_len() + 1, entry.max_datagram_len() - 4] {
        talk(&one, &at(&first), &first, &vec![7; len]);
    }

    // A datagram that cannot be sent is an error at once.
    let said = |data: &[u8], to: &Destination| one.send_to(data, to).unwrap_err();
    let (max, long) = (entry.max_datagram_len(), said(&vec![0; entry.max_datagram_len() + 1], &at(&first)));
    assert!(matches!(long, TunnelError::TooLong { len, max: most, .. } if (len, most) == (max + 1, max)), "{long}");
    let longest = vec![0; max];
    first.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let send = || _ = one.send_to(&longest, &at(&first)).unwrap();
    assert_eq!(across(send, |buffer| first.recv_from(buffer)).0.len(), longest.len());
    first.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = |text: &str| Destination::Name(text.into(), 7);
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 0)).into();
    for bad in [name(&"a".repeat(254)), name(&"a".repeat(300)), name(""), name("a b"), nowhere] {
        assert!(matches!(said(b"", &bad), TunnelError::InvalidDestination { .. }), "{bad}");
    }

    // Bytes beyond the buffer are cut off, as with any datagram socket.
    one.send_to(b"cut", &at(&second)).unwrap();
    let (_, exit) = second.recv_from(&mut [0; 9]).unwrap();
    second.send_to(b"to size", exit).unwrap();
    let mut short = [0; 3];
    assert_eq!((one.recv_from(&mut short).unwrap().0, &short), (3, b"to "));
    one.set_nonblocking(true).unwrap();
    assert_eq!(one.recv_from(&mut short).unwrap_err().kind(), ErrorKind::WouldBlock);

    // The policy of the exit holds for it as for everybody, and the next call says so.
    let refused = Destination::from(SocketAddr::from(([10, 0, 0, 1], 9)));
    one.set_nonblocking(false).unwrap();
    one.send_to(b"must not leave", &refused).unwrap();
    match one.recv_from(&mut short) {
        Err(TunnelError::PolicyRefused { destination }) => assert_eq!(destination, refused),
        other => panic!("{other:?}"),
    }
    assert!(nodes.count(3, "/ledger/datagrams/forward/dropped/policy") > 0);
    talk(&one, &at(&first), &first, b"a refusal is of one destination");

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

    let report = entry.shutdown().unwrap();
    let datagrams = report.ledger.datagrams.as_ref().unwrap();
    assert!(datagrams.forward.closed && datagrams.backward.closed);
    assert_eq!(dropped(&report, "too-large"), 0, "the library had said so before");
    let gone = one.send_to(b"", &at(&first)).and_then(|_| one.recv_from(&mut short)).unwrap_err();
    assert!(matches!(gone, TunnelError::Closed), "{gone}");
    nodes.end();
}

#[test]
fn waiting_receive_ends_with_its_entry() {
    let mut nodes = Nodes::start(Plan::default());
    let entry = Entry::start(nodes.another_entry()).unwrap();
    let (waits, asks_later) = (tunnel(&entry), tunnel(&entry));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asynchronous = runtime.block_on(async { AsyncUdpTunnel::open(&entry).unwrap() });

    let waiting = std::thread::spawn(move || waits.recv_from(&mut [0; 100]));
    let task = std::thread::spawn(move || {
        runtime.block_on(async { tokio::time::timeout(PATIENCE, asynchronous.recv_from(&mut [0; 100])).await })
    });
    entry.shutdown().unwrap();
    // None of them sends, so no ICMP error reports the closed port.
    let errors = [
        waiting.join().unwrap().unwrap_err(),
        task.join().unwrap().expect("it returns in time").unwrap_err(),
        asks_later.recv_from(&mut [0; 100]).unwrap_err(),
    ];
    assert!(errors.iter().all(|error| matches!(error, TunnelError::Closed)), "{errors:?}");
    nodes.end();
}

#[test]
fn tunnel_hears_strangers_only_where_the_exit_lets_them() {
    let mut nodes = Nodes::start(Plan { extra: vec![(3, "filtering = \"none\"".to_owned())], ..Plan::default() });
    let entry = Entry::start(nodes.another_entry()).unwrap();
    let (tunnel, asked, stranger) = (tunnel(&entry), server(), server());
    let exit = talk(&tunnel, &at(&asked), &asked, b"hello");
    stranger.send_to(b"psst", exit).unwrap();
    let mut buffer = [0; 100];
    let (len, from) = tunnel.recv_from(&mut buffer).unwrap();
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
    entry.shutdown().unwrap();
    nodes.end();
}

#[test]
fn configuration_of_a_mix_is_refused_with_its_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let said = |file: &Path| Entry::start(file).err().expect("refused").to_string();
    let missing = said(&dir.path().join("entry.toml"));
    assert!(missing.contains("entry.toml") && missing.contains("eddy init"), "{missing}");
    let chain = crate::common::command::run(dir.path(), "init demo");
    assert!(chain.status.success());
    let mix = said(&dir.path().join("demo/mix1.toml"));
    assert!(mix.contains("configures a mix, not an entry"), "{mix}");
}

#[test]
fn entry_from_memory_reports_refusals_by_name() {
    let names = NameServer::start();
    let resolver = format!("resolver = \"{}\"", names.address);
    let mut nodes = Nodes::start(Plan { extra: vec![(3, resolver)], ..Plan::default() });
    let chain = std::fs::read_to_string(nodes.config(0).with_file_name("chain.toml")).unwrap();
    let bind = SocketAddr::new(nodes.host(), 0);
    let listen = SocketAddr::new(nodes.host(), 5900);
    let server = server();
    let builder = Entry::builder().chain_text(chain).channels(2).bind(bind).options("window = 1024");
    let entry = builder.forward(listen, at(&server)).start().unwrap();
    entry.wait_ready(PATIENCE).unwrap();

    let client = self::server();
    client.send_to(b"by a forward", listen).unwrap();
    let mut buffer = [0; 100];
    let (len, _) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"by a forward");

    let tunnel = tunnel(&entry);
    let closed = self::server();
    let closed_port = at(&closed);
    drop(closed);
    let unknown: Destination = "no-such-name.test:7".parse().unwrap();
    // Whichever call comes next fails, a send as well as a receive.
    tunnel.send_to(b"", &unknown).unwrap();
    let error = tunnel.recv_from(&mut buffer).unwrap_err();
    assert!(matches!(&error, TunnelError::Unresolvable { destination } if *destination == unknown), "{error}");
    tunnel.send_to(b"", &closed_port).unwrap();
    let mut refused = None;
    until("a send fails", || {
        refused = tunnel.send_to(b"", &closed_port).err();
        refused.is_some()
    });
    let refused = refused.unwrap();
    assert!(matches!(&refused, TunnelError::Unreachable { destination } if *destination == closed_port), "{refused}");
    assert_eq!(std::io::Error::from(refused).kind(), ErrorKind::HostUnreachable);
    entry.shutdown().unwrap();
    nodes.end();
}

#[test]
fn wait_ready_reports_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    // A chain whose nodes do not run.
    assert!(crate::common::command::run(dir.path(), "init demo --mixes 1 --host 127.9.9.9").status.success());
    let entry = Entry::builder().chain_file(dir.path().join("demo/chain.toml")).start().unwrap();
    let error = entry.wait_ready(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, NotReady::NoLink { .. }), "{error}");
    assert!(error.to_string().contains("127.9.9.9:4701"), "{error}");
}

#[test]
fn builder_refuses_wrong_options_with_a_remedy() {
    let refused = |builder: eddy_node::EntryBuilder| match builder.start().err().expect("refused") {
        StartError::Config(why) => why.to_string(),
        other => panic!("{other}"),
    };
    let why = refused(Entry::builder());
    assert!(why.contains("chain_file"), "{why}");
    let dir = tempfile::tempdir().unwrap();
    assert!(crate::common::command::run(dir.path(), "init demo --mixes 1").status.success());
    let builder = || Entry::builder().chain_file(dir.path().join("demo/chain.toml"));
    let why = refused(builder().channels(0));
    assert!(why.starts_with("entry options: ") && why.contains("channels") && why.contains("256"), "{why}");
    let why = refused(builder().options("chanels = 4"));
    assert!(why.contains("chanels") && why.contains("channels"), "{why}");
    let why = refused(builder().socks_user("", "secret"));
    assert!(why.contains("1 to 255 bytes") && !why.contains("secret"), "{why}");
}

#[test]
fn async_tunnel_carries_both_ways_and_reports_refusals() {
    let mut nodes = Nodes::start(Plan::default());
    let entry = Entry::start(nodes.another_entry()).unwrap();
    let server = server();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        entry.wait_ready_async(PATIENCE).await.unwrap();
        let tunnel = AsyncUdpTunnel::open(&entry).unwrap();
        let echo = server.try_clone().unwrap();
        let answers = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            let (len, from) = echo.recv_from(&mut buffer).unwrap();
            echo.send_to(&buffer[..len], from).unwrap();
        });
        tunnel.send_to(b"question", &at(&server)).await.unwrap();
        let mut buffer = [0; 100];
        let (len, from) = tunnel.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], from), (&b"question"[..], at(&server)));
        answers.join().unwrap();

        let refused = Destination::from(SocketAddr::from(([10, 0, 0, 1], 9)));
        tunnel.send_to(b"must not leave", &refused).await.unwrap();
        let error = tunnel.recv_from(&mut buffer).await.unwrap_err();
        assert!(matches!(&error, TunnelError::PolicyRefused { destination } if *destination == refused), "{error}");
    });
    entry.shutdown().unwrap();
    nodes.end();
}
