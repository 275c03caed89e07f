//! A name server of one zone.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// `here.test` is 127.0.0.1, `inside.test` is 10.0.0.1, nothing else exists.
pub struct NameServer {
    /// Where it is asked.
    pub address: std::net::SocketAddr,
    /// How often it was.
    pub asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NameServer {
    /// Starts it.
    pub fn start() -> NameServer {
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
