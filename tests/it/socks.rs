//! SOCKS5 for UDP, checked against RFC 1928 by a client that knows only that.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};

use crate::common::nameserver::NameServer;
use crate::common::nodes::{PATIENCE, until};
use crate::common::process::{Demo, closed};

fn socket(at: &str) -> UdpSocket {
    let socket = UdpSocket::bind(at).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn dial(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends `bytes`; returns the answer until the server closes the connection, up to `len` bytes.
fn answer(to: SocketAddr, bytes: &[u8], len: usize) -> Vec<u8> {
    let mut stream = dial(to);
    stream.write_all(bytes).unwrap();
    let (mut answer, mut got) = (vec![0; len], 0);
    while got < len {
        match stream.read(&mut answer[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            Err(why) if why.kind() == ErrorKind::ConnectionReset => break,
            Err(why) => panic!("{why} after {:?}", &answer[..got]),
        }
    }
    answer.truncate(got);
    answer
}

/// RFC 1928, 4: a request for a command with an IPv4 address of zeros.
fn request(command: u8) -> Vec<u8> {
    vec![5, command, 0, 1, 0, 0, 0, 0, 0, 0]
}

/// An association: its connection and its relay.
struct Association {
    stream: TcpStream,
    relay: SocketAddr,
}

fn associate(to: SocketAddr, request: &[u8]) -> Association {
    let mut stream = dial(to);
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).unwrap();
    assert_eq!(method, [5, 0]);
    stream.write_all(request).unwrap();
    let mut head = [0; 4];
    stream.read_exact(&mut head).unwrap();
    assert_eq!((head[0], head[1], head[2]), (5, 0, 0));
    let mut octets = vec![0; if head[3] == 4 { 16 } else { 4 }];
    let mut port = [0; 2];
    stream.read_exact(&mut octets).unwrap();
    stream.read_exact(&mut port).unwrap();
    let ip: IpAddr = match <[u8; 4]>::try_from(&octets[..]) {
        Ok(four) => Ipv4Addr::from(four).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(&octets[..]).unwrap()).into(),
    };
    Association { stream, relay: SocketAddr::new(ip, u16::from_be_bytes(port)) }
}

/// RFC 1928, 7: the header of a datagram to or from an address.
fn header(peer: SocketAddr) -> Vec<u8> {
    let mut header = vec![0, 0, 0];
    match peer.ip() {
        IpAddr::V4(ip) => header.extend([&[1][..], &ip.octets()].concat()),
        IpAddr::V6(ip) => header.extend([&[4][..], &ip.octets()].concat()),
    }
    header.extend(peer.port().to_be_bytes());
    header
}

fn named(name: &str, port: u16) -> Vec<u8> {
    [&[0, 0, 0, 3, name.len() as u8], name.as_bytes(), &port.to_be_bytes()].concat()
}

impl Association {
    /// Sends to a peer by a header and receives its answer, which must carry the peer's true address. Returns the port
    /// that the peer saw.
    fn talk(&self, client: &UdpSocket, header_there: &[u8], server: &UdpSocket) -> u16 {
        let mut buffer = [0; 2000];
        client.send_to(&[header_there, b"question"].concat(), self.relay).unwrap();
        let (len, from) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"question");
        server.send_to(b"answer", from).unwrap();
        let (len, sender) = client.recv_from(&mut buffer).unwrap();
        assert_eq!(sender, self.relay);
        assert_eq!(buffer[..len], [&header(server.local_addr().unwrap()), &b"answer"[..]].concat());
        from.port()
    }
}

#[test]
fn socks_association_reaches_many_peers_until_it_closes() {
    let names = NameServer::start();
    let demo = Demo::start(&[
        "--messages",
        "1",
        "--receivers",
        "1",
        "--socks",
        "127.0.0.1:0",
        "--resolver",
        &names.address.to_string(),
    ]);
    let flows = |position: usize| demo.status(position)["flows"].as_u64().unwrap();
    until("the demonstration's own flow is there", || (flows(0), flows(4)) == (1, 1));
    let association = associate(demo.socks(), &request(3));
    assert_eq!(association.relay.ip(), demo.socks().ip(), "the client reached us there");
    let (client, one, other) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let address = |server: &UdpSocket| server.local_addr().unwrap();
    let port = association.talk(&client, &header(address(&one)), &one);
    assert_eq!(association.talk(&client, &header(address(&other)), &other), port, "one port towards all peers");
    // A name is looked up at the exit, and answers carry the address.
    assert_eq!(association.talk(&client, &named("here.test", address(&other).port()), &other), port);
    if let Ok(six) = UdpSocket::bind("[::1]:0") {
        six.set_read_timeout(Some(PATIENCE)).unwrap();
        association.talk(&client, &header(address(&six)), &six);
    }
    // An empty datagram is a datagram, too.
    client.send_to(&header(address(&one)), association.relay).unwrap();
    assert_eq!(one.recv_from(&mut [0; 9]).unwrap().0, 0);
    // Another association of the same client is another client to the exit.
    let second = associate(demo.socks(), &request(3));
    assert_ne!(second.talk(&client, &header(address(&one)), &one), port);
    drop(second);
    association.talk(&client, &header(address(&one)), &one);

    let Association { stream, relay } = association;
    drop(stream);
    until("all flows of the associations are closed", || (flows(0), flows(4)) == (1, 1));
    // Its port is closed: the system reports that to a sender.
    client.connect(relay).unwrap();
    client.set_nonblocking(true).unwrap();
    let refused = |result: std::io::Result<usize>| result.is_err_and(|why| why.kind() == ErrorKind::ConnectionRefused);
    until("the relay is gone", || refused(client.send(&header(address(&one)))) || refused(client.recv(&mut [0; 9])));
    closed(&demo.end());
}

#[test]
fn socks_relay_drops_strangers_and_bad_datagrams() {
    let demo = Demo::start(&["--messages", "1", "--receivers", "1", "--socks", "127.0.0.1:0"]);
    let (client, server) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    let there = header(server.local_addr().unwrap());
    let association = associate(demo.socks(), &request(3));
    association.talk(&client, &there, &server);
    let send =
        |from: &UdpSocket, bytes: &[u8]| assert_eq!(from.send_to(bytes, association.relay).unwrap(), bytes.len());
    let stranger = socket("127.0.0.2:0");
    (0..3).for_each(|_| send(&stranger, &there));
    for fragment in [1, 2, 0x80] {
        send(&client, &[&[0, 0, fragment], &there[3..], b"part"].concat());
    }
    let bad: [&[u8]; 8] = [
        &[],
        &[0],
        &[0, 0, 0],
        &[0, 0, 0, 9],
        &there[..9],
        &[&[0, 1], &there[2..]].concat(),
        &named("", 9),
        &named("not a name", 9),
    ];
    bad.iter().for_each(|bytes| send(&client, bytes));
    association.talk(&client, &there, &server);
    let dropped = demo.status(0)["ledger"]["datagrams"]["forward"]["dropped"].clone();
    assert_eq!(dropped["not-the-client"], 3, "{dropped}");
    assert_eq!(dropped["socks-fragment"], 3, "{dropped}");
    assert_eq!(dropped["bad-address"], bad.len(), "{dropped}");

    // If a client names its source address, only datagrams from there are accepted.
    let mine = client.local_addr().unwrap();
    let strict = associate(demo.socks(), &[&[5, 3, 0, 1, 0, 0, 0, 0], &mine.port().to_be_bytes()[..]].concat());
    socket("127.0.0.1:0").send_to(&there, strict.relay).unwrap();
    strict.talk(&client, &there, &server);
    assert_eq!(demo.status(0)["ledger"]["datagrams"]["forward"]["dropped"]["not-the-client"], 4);
    closed(&demo.end());
}

#[test]
fn socks_replies_to_bad_requests_follow_the_rfc() {
    let demo = Demo::start(&["--messages", "1", "--receivers", "1", "--socks", "127.0.0.1:0"]);
    let at = demo.socks();
    let asked = |request: &[u8]| answer(at, &[&[5, 1, 0], request].concat(), 12);
    let reply = |code: u8| [&[5, 0, 5, code, 0, 1][..], &[0; 6]].concat();
    // CONNECT, BIND, and what no RFC knows.
    for command in [1, 2, 0, 4, 0xff] {
        assert_eq!(asked(&request(command)), reply(7), "command {command}");
    }
    assert_eq!(asked(&[5, 1, 0, 3, 4, b'h', b'o', b's', b't', 0, 80]), reply(7), "CONNECT to a name");
    for kind in [0, 2, 5, 0xff] {
        assert_eq!(asked(&[5, 3, 0, kind, 0, 0, 0, 0, 0, 0]), reply(8), "address type {kind}");
    }
    assert_eq!(asked(&[&[5, 3, 0, 3, 2, 0xff, 0xfe][..], &[0, 7]].concat())[..3], [5, 0, 5], "no text");
    // No method in common; other versions get no answer.
    assert_eq!(answer(at, &[5, 1, 1], 3), [5, 0xff]);
    assert_eq!(answer(at, &[5, 0], 3), [5, 0xff]);
    assert!(answer(at, &[4, 1, 0, 80, 127, 0, 0, 1, 0], 3).is_empty());
    assert!(answer(at, b"GET / HTTP/1.1\r\n\r\n", 3).is_empty());
    assert_eq!(answer(at, &[&[5, 1, 0, 4][..], &[0; 20]].concat(), 12)[..2], [5, 0], "another version in the request");
    // A client that offers only name and password is served; at loopback any will do.
    let user = [&[5, 1, 2, 1, 5][..], b"alice", &[3], b"abc", &request(3)].concat();
    assert_eq!(answer(at, &user, 8)[..7], [5, 2, 1, 0, 5, 0, 0]);
    // A request that ends anywhere.
    let whole = [&[5, 1, 0][..], &request(3)].concat();
    for len in 0..whole.len() {
        let mut stream = dial(at);
        stream.write_all(&whole[..len]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got.len() <= 12 && got.get(3).is_none_or(|code| *code != 0), "{len}: {got:?}");
    }
    // Bytes after a request are ignored.
    let mut talkative = associate(at, &request(3));
    talkative.stream.write_all(&[0x55; 100_000]).unwrap();
    let (client, server) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
    talkative.talk(&client, &header(server.local_addr().unwrap()), &server);
    closed(&demo.end());
}
