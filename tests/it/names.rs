//! Names are resolved at the exit, by the resolver its configuration names.

use std::net::UdpSocket;
use std::sync::atomic::Ordering;

use crate::common::nameserver::NameServer;
use crate::common::nodes::{PATIENCE, until};
use crate::common::process::{Demo, closed};

#[test]
fn forwarded_name_is_resolved_at_the_exit_then_judged() {
    let server = NameServer::start();
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    target.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = target.local_addr().unwrap().port();
    let names = [format!("here.test:{port}"), format!("inside.test:{port}"), format!("nowhere.test:{port}")];
    let forwards: Vec<String> = names.iter().map(|name| format!("127.0.0.1:0={name}")).collect();
    let resolver = server.address.to_string();
    let mut arguments = vec!["--messages", "1", "--resolver", &resolver];
    for forward in &forwards {
        arguments.extend(["--forward", forward]);
    }
    let demo = Demo::start(&arguments);
    assert_eq!(server.asked.load(Ordering::Relaxed), 0, "no name is resolved before there is traffic");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 100];
    // Datagrams that arrive while the name is being resolved wait.
    for i in 0..3u8 {
        client.send_to(&[i], demo.forward(&names[0])).unwrap();
    }
    for i in 0..3u8 {
        let (len, from) = target.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..len], [i]);
        target.send_to(b"yes", from).unwrap();
        assert_eq!(client.recv_from(&mut buffer).unwrap().0, 3);
    }
    for (name, reason) in [(&names[1], "policy"), (&names[2], "unresolvable")] {
        let dropped = |position: usize| {
            demo.status(position)["ledger"]["datagrams"]["forward"]["dropped"][reason].as_u64().unwrap_or(0)
        };
        // The exit drops what waited for the name; then the entry knows, and drops what follows.
        until(&format!("{name} is refused at both ends"), || {
            client.send_to(b"?", demo.forward(name)).unwrap();
            dropped(4) > 0 && dropped(0) > 0
        });
    }
    closed(&demo.end());
}

/// `localhost` resolves to ::1 first, and no server listens there.
#[test]
fn localhost_reaches_a_server_that_listens_on_ipv4_only() {
    let names = NameServer::start();
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    target.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = format!("localhost:{}", target.local_addr().unwrap().port());
    let resolver = names.address.to_string();
    let forward = format!("127.0.0.1:0={name}");
    let demo = Demo::start(&["--messages", "1", "--resolver", &resolver, "--forward", &forward]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 100];
    client.send_to(b"first", demo.forward(&name)).unwrap();
    let (len, exit) = target.recv_from(&mut buffer).expect("what ::1 refused is sent again to 127.0.0.1");
    assert_eq!(buffer[..len], *b"first");
    target.send_to(b"answer", exit).unwrap();
    let (len, _) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(buffer[..len], *b"answer");
    for _ in 0..10 {
        client.send_to(b"more", demo.forward(&name)).unwrap();
        target.recv_from(&mut buffer).unwrap();
    }
    closed(&demo.end());
}
