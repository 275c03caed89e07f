//! Captures datagrams on loopback with packet sockets: time, watched port, direction and length.
//!
//! A packet socket of the protocol IPv4 sees what loopback delivers and not what is sent, so it sees each datagram
//! once. The kernel stamps its time when it is queued for delivery, in the call that sends it. A filter in the kernel
//! keeps the watched ports and cuts datagrams behind their first bytes.

use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use dataplane::sys;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, recvmmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::places::WATCHED;

/// Bytes of headers, IPv4 without options and UDP, and those of data that are kept.
const IP: usize = 20;
const HEADERS: usize = IP + 8;
const SNAP: usize = HEADERS + 4;
/// Receive buffer that holds half a second of a large run. A smaller one is made up for by more sockets.
const BUFFER: usize = 64 << 20;
const SOCKETS_MAX: usize = 16;
/// Datagrams of one receive call.
const BATCH: usize = 64;
/// The kernel stamps the times, so reading may wait: to be woken for each datagram would take a core from the nodes.
const PAUSE: Duration = Duration::from_millis(5);

/// A datagram, or a GSO burst, which passes loopback in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Captured {
    /// Wall clock, ns.
    pub(super) at: u64,
    /// The watched port.
    pub(super) port: u16,
    /// To that port, not from it.
    pub(super) to_port: bool,
    /// Bytes of UDP payload.
    pub(super) bytes: u16,
    /// The first four bytes of the payload. Only those of the adversary's own datagrams may be used.
    pub(super) first: u32,
    /// On an access link: a number that equal datagrams share. 0 where nobody compared them.
    pub(super) content: u32,
}

/// A capture that runs.
pub(super) struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<Captured>, u64)>,
}

impl Capture {
    /// # Errors
    /// The system refuses packet sockets.
    pub(super) fn start() -> anyhow::Result<Capture> {
        let first = Socket::new(Domain::PACKET, Type::DGRAM, Some(ipv4()))
            .context("cannot open a packet socket, which needs CAP_NET_RAW in the network namespace")?;
        let granted = sys::size_receive_buffer(&first, BUFFER)?;
        let count = BUFFER.div_ceil(granted).next_power_of_two().min(SOCKETS_MAX);
        drop(first);
        let sockets = (0..count).map(|index| open(index, count)).collect::<anyhow::Result<Vec<Socket>>>()?;

        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("capture".into()).spawn(move || {
            let mut found = vec![Vec::new(); sockets.len()];
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(PAUSE);
                sockets.iter().zip(&mut found).for_each(|(socket, found)| drain(socket, found));
            }
            let mut lost = 0u64;
            for (socket, found) in sockets.iter().zip(&mut found) {
                drain(socket, found);
                lost = lost.saturating_add(sys::kernel_drops(socket).unwrap_or(u64::MAX));
            }
            let mut all: Vec<Captured> = found.concat();
            // Stable: datagrams of one time keep the order of their socket, and a wire has one socket.
            all.sort_by_key(|captured| captured.at);
            (all, lost)
        })?;
        Ok(Capture { stop, thread })
    }

    /// Ends it. Returns what it saw in order of time, and how many datagrams it lost.
    pub(super) fn finish(self) -> anyhow::Result<(Vec<Captured>, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread of the capture panicked"))
    }
}

fn ipv4() -> Protocol {
    const ETH_P_IP: u16 = 0x0800;
    Protocol::from(i32::from(ETH_P_IP.to_be()))
}

/// A socket for the watched ports whose number has this remainder.
fn open(index: usize, count: usize) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(ipv4()))?;
    socket.attach_filter(&filter(index as u32, count as u32)).context("cannot attach a filter to a packet socket")?;
    sys::size_receive_buffer(&socket, BUFFER)?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("cannot ask for the kernel's timestamps")?;
    // What came before the filter was attached.
    while socket.recv_with_flags(&mut [], MsgFlags::MSG_DONTWAIT.bits()).is_ok() {}
    Ok(socket)
}

/// Accepts UDP from or to a watched port whose number is `index` modulo `count`, a power of two (bpf(4)).
fn filter(index: u32, count: u32) -> Vec<SockFilter> {
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const AND: u16 = 0x54;
    const EQUAL: u16 = 0x15;
    const AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const UDP: u32 = 17;
    let (from, before) = (u32::from(WATCHED.0), u32::from(WATCHED.1));
    // Jumps count from the next instruction.
    [
        (LOAD_BYTE, 0, 0, 9),
        (EQUAL, 0, 9, UDP),
        (LOAD_HALF, 0, 0, IP as u32 + 2),
        (AT_LEAST, 0, 1, from),
        (AT_LEAST, 0, 3, before),
        (LOAD_HALF, 0, 0, IP as u32),
        (AT_LEAST, 0, 4, from),
        (AT_LEAST, 3, 0, before),
        (AND, 0, 0, count - 1),
        (EQUAL, 0, 1, index),
        (RETURN, 0, 0, SNAP as u32),
        (RETURN, 0, 0, 0),
    ]
    .map(|(code, yes, no, value)| SockFilter::new(code, yes, no, value))
    .into()
}

/// Receives everything that a socket has.
fn drain(socket: &Socket, found: &mut Vec<Captured>) {
    let space = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, Some(space));
    loop {
        let mut bytes = [[0; SNAP]; BATCH];
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = bytes.iter_mut().map(|bytes| [IoSliceMut::new(bytes)]).collect();
        let received = match recvmmsg(socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_DONTWAIT, None) {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        let mut times = [(0, 0); BATCH];
        let mut count = 0;
        for message in received {
            let at = message.cmsgs().into_iter().flatten().find_map(|message| match message {
                ControlMessageOwned::ScmTimestampns(time) => Some(Duration::from(time).as_nanos() as u64),
                _ => None,
            });
            times[count] = (at.unwrap_or(0), message.bytes);
            count += 1;
        }
        found.extend(times[..count].iter().zip(&bytes).filter_map(|(&(at, len), bytes)| parse(at, &bytes[..len])));
        if count < BATCH {
            return;
        }
    }
}

fn parse(at: u64, packet: &[u8]) -> Option<Captured> {
    let half = |offset: usize| Some(u16::from_be_bytes(packet.get(offset..offset + 2)?.try_into().ok()?));
    let (from, to, len) = (half(IP)?, half(IP + 2)?, half(IP + 4)?);
    let watched = |port: u16| (WATCHED.0..WATCHED.1).contains(&port);
    let port = [to, from].into_iter().find(|port| watched(*port))?;
    let first = packet.get(HEADERS..HEADERS + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
    Some(Captured { at, port, to_port: watched(to), bytes: len.checked_sub(8)?, first, content: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_is_read_up_to_its_first_bytes() {
        let mut packet = vec![0; SNAP];
        packet[20..26].copy_from_slice(&[[0x9c, 0x40], 10_000u16.to_be_bytes(), 1416u16.to_be_bytes()].concat());
        packet[28..32].copy_from_slice(&7u32.to_be_bytes());
        let wanted = Captured { at: 5, port: 10_000, to_port: true, bytes: 1408, first: 7, content: 0 };
        assert_eq!(parse(5, &packet), Some(wanted));
        packet.swap(20, 22);
        packet.swap(21, 23);
        assert_eq!(parse(5, &packet), Some(Captured { to_port: false, ..wanted }));
        assert_eq!(parse(5, &packet[..HEADERS]).map(|captured| captured.first), Some(0));
        packet[20..24].fill(1);
        assert_eq!((parse(5, &packet), parse(5, &packet[..25])), (None, None));
    }
}
