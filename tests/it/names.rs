//! Names are resolved at the exit, by the resolver its configuration names.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::common::process::{Demo, closed};

/// A name server of one zone: `here.test` is 127.0.0.1, `inside.test` is 10.0.0.1, nothing else exists.
struct NameServer {
    address: std::net::SocketAddr,
    asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NameServer {
    fn start() -> NameServer {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let address = socket.local_addr().unwrap();
        let (asked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (asked.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut query = [0; 512];
            while !end.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut query) else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                socket.send_to(&answer(&query[..len]), from).unwrap();
            }
        });
        NameServer { address, asked, stop, thread: Some(thread) }
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// RFC 1035 4.1: header, question, and an A record if there is one.
fn answer(query: &[u8]) -> Vec<u8> {
    let end = 12 + query[12..].iter().position(|b| *b == 0).unwrap() + 1;
    let name: Vec<u8> = query[12..end].to_ascii_lowercase();
    let (kind, question) = (query[end + 1], &query[12..end + 4]);
    let record = match (&name[..], kind) {
        (b"\x04here\x04test\0", 1) => Some([127, 0, 0, 1]),
        (b"\x06inside\x04test\0", 1) => Some([10, 0, 0, 1]),
        _ => None,
    };
    let known = matches!(&name[..], b"\x04here\x04test\0" | b"\x06inside\x04test\0");
    let mut out = query[..2].to_vec();
    out.extend_from_slice(&[0x84, if known { 0 } else { 3 }, 0, 1, 0, u8::from(record.is_some()), 0, 0, 0, 0]);
    out.extend_from_slice(question);
    if let Some(ip) = record {
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend_from_slice(&ip);
    }
    out
}

#[test]
fn a_forward_to_a_name_is_resolved_at_the_exit_and_judged_after() {
    let server = NameServer::start();
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    target.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = target.local_addr().unwrap().port();
    let names = [format!("here.test:{port}"), format!("inside.test:{port}"), format!("nowhere.test:{port}")];
    let forwards: Vec<String> = names.iter().map(|name| format!("127.0.0.1:0={name}")).collect();
    let resolver = server.address.to_string();
    let mut arguments = vec!["--messages", "1", "--resolver", &resolver];
    for forward in &forwards {
        arguments.extend(["--forward", forward]);
    }
    let demo = Demo::start(&arguments);
    assert_eq!(server.asked.load(Ordering::Relaxed), 0, "nobody resolves before there is traffic");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 100];
    // What comes while the name is being resolved waits for it.
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
        for tries in 0.. {
            client.send_to(b"?", demo.forward(name)).unwrap();
            if dropped(4) > 0 && dropped(0) > 0 {
                break;
            }
            assert!(tries < 300, "{name} was not refused: {:#}", demo.status(4));
        }
    }
    closed(&demo.end());
}
