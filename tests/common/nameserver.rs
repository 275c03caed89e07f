//! A name server of one zone.

use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// `here.test` is 127.0.0.1, `inside.test` is 10.0.0.1, [`name_of`] an address is that; nothing else exists.
pub struct NameServer {
    pub address: std::net::SocketAddr,
    /// Number of questions so far.
    pub asked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NameServer {
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

/// The name that has this address here: as 32 or 128 bits, whichever it is.
pub fn name_of(ip: IpAddr) -> String {
    let bytes = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + ".test"
}

fn address_of(name: &str) -> Option<IpAddr> {
    match name.strip_suffix(".test")? {
        "here" => Some([127, 0, 0, 1].into()),
        "inside" => Some([10, 0, 0, 1].into()),
        four if four.len() == 8 => Some(u32::from_str_radix(four, 16).ok()?.to_be_bytes().into()),
        sixteen if sixteen.len() == 32 => Some(u128::from_str_radix(sixteen, 16).ok()?.to_be_bytes().into()),
        _ => None,
    }
}

/// RFC 1035 4.1 and RFC 3596: header, question, and an A or AAAA record if there is one.
fn answer(query: &[u8]) -> Vec<u8> {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let label = &query[at + 1..][..usize::from(query[at])];
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + label.len();
    }
    let (kind, question) = (query[at + 2], &query[12..at + 5]);
    let known = address_of(&labels.join("."));
    let record = match (known, kind) {
        (Some(IpAddr::V4(ip)), 1) => ip.octets().to_vec(),
        (Some(IpAddr::V6(ip)), 28) => ip.octets().to_vec(),
        _ => Vec::new(),
    };
    let mut out = query[..2].to_vec();
    let (code, answers) = (if known.is_some() { 0 } else { 3 }, u8::from(!record.is_empty()));
    out.extend_from_slice(&[0x84, code, 0, 1, 0, answers, 0, 0, 0, 0]);
    out.extend_from_slice(question);
    if answers > 0 {
        out.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, record.len() as u8]);
        out.extend_from_slice(&record);
    }
    out
}
