//! What every kind of link port must do: one suite, run on ports in memory, by recvmmsg and sendmmsg, and by io_uring,
//! with offload and without.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use super::Port;
use super::backend::{Calls, Io};
use super::link::LinkPort;
use super::memory::{Datagram, MemNet};
use super::offload::Offloads;
use crate::batch::{Arrivals, Departures, Lengths};
use crate::buffer::{Cell, FreeList};
use crate::ledger::Tally;
use crate::sys::{self, Message};

const CELL: usize = 300;
const LONG: usize = 120;
const SHORT: usize = 77;
const LENGTHS: Lengths = Lengths { cell: CELL, handshakes: &[LONG, SHORT] };
const BUFFERS: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortKind {
    Mem,
    Socket(Io, Offloads),
}

impl PortKind {
    /// All that there are on this host.
    fn all() -> Vec<PortKind> {
        let mut all = vec![PortKind::Mem];
        let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
        for io in [Io::Mmsg, Io::Uring] {
            match Calls::new(io, &probe).1 {
                Some(why) => crate::skipped(format_args!("{io}: {why}")),
                None => all.extend([Offloads::NONE, Offloads::BOTH].map(|offloads| PortKind::Socket(io, offloads))),
            }
        }
        all
    }

    /// Those that are sockets.
    fn sockets() -> Vec<(Io, Offloads)> {
        let socket = |kind| if let PortKind::Socket(io, offloads) = kind { Some((io, offloads)) } else { None };
        PortKind::all().into_iter().filter_map(socket).collect()
    }

    /// True if bursts arrive as bursts.
    fn joins(self) -> bool {
        matches!(self, PortKind::Socket(_, Offloads { gro: true, .. }))
    }
}

/// A port, three peers of it, and what it works with.
struct Bed {
    port: Box<dyn Port>,
    at: SocketAddr,
    peers: Vec<Peer>,
    free: FreeList,
    arrivals: Arrivals,
}

enum Peer {
    Socket(UdpSocket),
    Mem(MemNet, SocketAddr),
}

/// Datagrams with their senders.
type Parcels = Vec<(SocketAddr, Vec<u8>)>;

/// The datagrams that a port received.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    cells: Parcels,
    handshakes: Parcels,
    odd: u64,
    cut: u64,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    sys::size_receive_buffer(&socket, 1 << 22).unwrap();
    socket
}

fn link_port(socket: UdpSocket, io: Io, offloads: Offloads) -> LinkPort {
    if offloads.gro {
        sys::enable_gro(&socket).unwrap();
    }
    let (calls, why) = Calls::new(io, &socket);
    assert!(why.is_none());
    LinkPort::new(socket, calls, LENGTHS, offloads)
}

impl Bed {
    fn new(kind: PortKind) -> Bed {
        let (port, at, peers): (Box<dyn Port>, _, _) = match kind {
            PortKind::Mem => {
                let net = MemNet::default();
                let address = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
                let peers = (1..=3).map(|i| Peer::Mem(net.clone(), address(i))).collect();
                (Box::new(net.port(address(9), LENGTHS)), address(9), peers)
            }
            PortKind::Socket(io, offloads) => {
                let own = socket();
                let at = own.local_addr().unwrap();
                (Box::new(link_port(own, io, offloads)), at, (0..3).map(|_| Peer::Socket(socket())).collect())
            }
        };
        Bed { port, at, peers, free: FreeList::new(BUFFERS), arrivals: Arrivals::new() }
    }

    fn peer(&self, i: usize) -> SocketAddr {
        match &self.peers[i] {
            Peer::Socket(socket) => socket.local_addr().unwrap(),
            Peer::Mem(_, address) => *address,
        }
    }

    /// A peer sends bytes to the port: in datagrams of `step`, as a burst where there are bursts. False if this
    /// kernel cuts no burst into so many.
    fn arrive(&self, peer: usize, bytes: &[u8], step: usize) -> bool {
        match &self.peers[peer] {
            Peer::Socket(socket) => {
                let segment = (bytes.len() > step).then_some(step as u16);
                let message = Message { to: self.at, pieces: 1, segment };
                let sent = sys::send(socket, std::iter::once(message), std::iter::once(bytes));
                assert!(sent.is_ok() || bytes.len() > 64 * step, "{sent:?}");
                sent.is_ok()
            }
            Peer::Mem(net, from) => {
                let send = |bytes: &[u8]| net.send(Datagram { from: *from, to: self.at, bytes: bytes.to_vec() });
                if bytes.is_empty() {
                    send(bytes)
                } else {
                    bytes.chunks(step).for_each(send)
                };
                true
            }
        }
    }

    /// Takes all that waits. Every buffer is somewhere, before and after.
    fn take(&mut self) -> Seen {
        let mut seen = Seen::default();
        loop {
            // The poller sees it readable while anything waits.
            self.port.set_ready();
            let came = self.port.recv(&mut self.free, &mut self.arrivals);
            assert_eq!(came, self.arrivals.len());
            let held = self.arrivals.cells.len();
            assert_eq!(self.free.free() + self.port.rx_buffers() + held, BUFFERS);
            let peers = self.arrivals.runs.drain(..).flat_map(|run| std::iter::repeat_n(run.peer, run.count));
            for (cell, peer) in self.arrivals.cells.drain(..).zip(peers.collect::<Vec<_>>()) {
                seen.cells.push((peer, cell.bytes(CELL).to_vec()));
                self.free.give(cell.into_buffer());
            }
            assert_eq!(self.free.free() + self.port.rx_buffers(), BUFFERS);
            let handshakes = self.arrivals.handshakes.drain(..);
            seen.handshakes.extend(handshakes.map(|(from, bytes)| (from, bytes.into_vec())));
            seen.odd += std::mem::take(&mut self.arrivals.odd);
            seen.cut += std::mem::take(&mut self.arrivals.cut);
            assert_eq!(std::mem::take(&mut self.arrivals.handshakes_over), 0);
            if came == 0 {
                return seen;
            }
        }
    }

    /// Takes what a peer received, one datagram after the other.
    fn taken_by(&self, peer: usize) -> Vec<Vec<u8>> {
        match &self.peers[peer] {
            Peer::Socket(socket) => {
                let mut buffer = vec![0; 65_536];
                let next = || socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec());
                std::iter::from_fn(next).collect()
            }
            Peer::Mem(net, at) => std::iter::from_fn(|| net.receive(*at)).map(|datagram| datagram.bytes).collect(),
        }
    }

    /// Cells to send, each filled with a number of its own, to the peers in runs.
    fn departures(&mut self, runs: &[(SocketAddr, usize)]) -> Departures {
        let mut out = Departures::new(CELL, BUFFERS);
        let mut number = 0u32;
        for (to, count) in runs {
            for _ in 0..*count {
                let mut cell = Cell::new(self.free.take().unwrap());
                cell.bytes_mut(CELL).copy_from_slice(&numbered(number));
                out.push_run(std::iter::once(cell), *to);
                number += 1;
            }
        }
        out
    }
}

/// A cell that says which one it is, in every byte.
fn numbered(number: u32) -> [u8; CELL] {
    let mut cell = [number as u8; CELL];
    cell[..4].copy_from_slice(&number.to_be_bytes());
    cell
}

fn number(cell: &[u8]) -> u32 {
    let number = u32::from_be_bytes(cell[..4].try_into().unwrap());
    assert_eq!(cell, numbered(number), "whole");
    number
}

fn numbers(parcels: &Parcels) -> Vec<u32> {
    parcels.iter().map(|(_, cell)| number(cell)).collect()
}

fn cells(range: std::ops::Range<u32>) -> Vec<u8> {
    range.flat_map(numbered).collect()
}

#[test]
fn cells_and_bursts_of_several_peers_arrive_in_order() {
    for kind in PortKind::all() {
        let mut bed = Bed::new(kind);
        assert_eq!(bed.take(), Seen::default(), "{kind:?}: nothing waits");
        let (mut at, mut from) = (0, Vec::new());
        for (peer, count) in [(0, 1), (1, 1), (0, 64), (2, 3), (2, 1), (1, 64), (1, 17), (0, 1), (0, 1), (2, 64)] {
            assert!(bed.arrive(peer, &cells(at..at + count), CELL));
            at += count;
            from.extend(std::iter::repeat_n(bed.peer(peer), count as usize));
        }
        let seen = bed.take();
        assert_eq!(numbers(&seen.cells), (0..at).collect::<Vec<_>>(), "{kind:?}");
        assert_eq!(seen.cells.iter().map(|(peer, _)| *peer).collect::<Vec<_>>(), from, "{kind:?}");
        assert_eq!((seen.handshakes.len(), seen.odd, seen.cut), (0, 0, 0), "{kind:?}");
    }
}

#[test]
fn more_than_one_call_takes_comes_in_order() {
    for kind in PortKind::all() {
        let mut bed = Bed::new(kind);
        for lone in [true, false] {
            let per_message = if lone { 1 } else { 50 };
            let all = 1500;
            for at in (0..all).step_by(per_message as usize) {
                assert!(bed.arrive(0, &cells(at..at + per_message), CELL));
            }
            assert_eq!(numbers(&bed.take().cells), (0..all).collect::<Vec<_>>(), "{kind:?}, lone: {lone}");
        }
    }
}

#[test]
fn what_is_no_cell_is_judged_by_its_own_length() {
    for kind in PortKind::all() {
        let mut bed = Bed::new(kind);
        let noise: Vec<u8> = (0..65_507).map(|i| (i % 251) as u8).collect();
        // Bytes and step, and what comes of them: cells, handshakes of both lengths, others.
        for (bytes, step, cells, long, short, odd) in [
            (0, CELL, 0, 0, 0, 1),
            (1, CELL, 0, 0, 0, 1),
            (SHORT, CELL, 0, 0, 1, 0),
            (LONG, CELL, 0, 1, 0, 0),
            (CELL, CELL, 1, 0, 0, 0),
            // As long as buffers, and longer than all of a message's: one datagram each.
            (5 * CELL, 5 * CELL, 0, 0, 0, 1),
            (65_507, 65_507, 0, 0, 0, 1),
            // Tails.
            (20 * CELL + SHORT, CELL, 20, 0, 1, 0),
            (20 * CELL + LONG, CELL, 20, 1, 0, 0),
            (20 * CELL + LONG + 1, CELL, 20, 0, 0, 1),
            // Of other strides; the tails of two are cells.
            (7 * LONG, LONG, 0, 7, 0, 0),
            (7 * LONG + SHORT, LONG, 0, 7, 1, 0),
            (7 * SHORT + 5, SHORT, 0, 0, 7, 1),
            (50 * (CELL - 1), CELL - 1, 0, 0, 0, 50),
            (50 * (CELL + 1) + LONG, CELL + 1, 0, 1, 0, 50),
            (9 * 1400 + SHORT, 1400, 0, 0, 1, 9),
            (9 * 1400 + CELL, 1400, 1, 0, 0, 9),
            (CELL + 1 + CELL, CELL + 1, 1, 0, 0, 1),
            (60, 1, 0, 0, 0, 60),
        ] {
            assert!(bed.arrive(0, &noise[..bytes], step));
            let seen = bed.take();
            let of = |len: usize| seen.handshakes.iter().filter(|(_, bytes)| bytes.len() == len).count();
            let got = (seen.cells.len(), of(LONG), of(SHORT), seen.odd, seen.cut);
            assert_eq!(got, (cells, long, short, odd, 0), "{kind:?}: {bytes} in steps of {step}");
            // What stands is what was sent, piece by piece.
            let sent: Vec<&[u8]> = noise[..bytes].chunks(step).collect();
            let handshakes = sent.iter().filter(|piece| LENGTHS.handshakes.contains(&piece.len()));
            assert!(seen.handshakes.iter().map(|(_, bytes)| &bytes[..]).eq(handshakes.copied()), "{kind:?}");
            let whole = sent.iter().filter(|piece| piece.len() == CELL);
            assert!(seen.cells.iter().map(|(_, bytes)| &bytes[..]).eq(whole.copied()), "{kind:?}");
        }
    }
}

#[test]
fn overlong_burst_brings_64_cells_and_its_rest_is_counted() {
    for kind in PortKind::all() {
        let mut bed = Bed::new(kind);
        if !bed.arrive(0, &cells(0..100), CELL) {
            crate::skipped("this kernel cuts no burst into more than 64");
            return;
        }
        assert!(bed.arrive(1, &cells(100..102), CELL));
        let seen = bed.take();
        let (first, cut) = if kind.joins() { (64, 36) } else { (100, 0) };
        assert_eq!(numbers(&seen.cells), (0..first).chain(100..102).collect::<Vec<_>>(), "{kind:?}");
        assert_eq!((seen.cut, seen.odd), (cut, 0), "{kind:?}");
        // A tail beyond the buffers is lost with the cells before it.
        assert!(bed.arrive(0, &cells(0..65)[..64 * CELL + LONG], CELL));
        let seen = bed.take();
        let (handshakes, cut) = if kind.joins() { (0, 1) } else { (1, 0) };
        assert_eq!((seen.cells.len(), seen.handshakes.len(), seen.cut), (64, handshakes, cut), "{kind:?}");
    }
}

#[test]
fn without_buffers_nothing_is_taken_and_nothing_is_lost() {
    for kind in PortKind::all() {
        let mut bed = Bed::new(kind);
        assert_eq!(bed.take(), Seen::default());
        let held: Vec<_> = std::iter::from_fn(|| bed.free.take()).collect();
        for at in 0..10 {
            assert!(bed.arrive(at % 3, &cells(at as u32 * 5..at as u32 * 5 + 5), CELL));
        }
        bed.port.set_ready();
        assert_eq!(bed.port.recv(&mut bed.free, &mut bed.arrivals), 0, "{kind:?}");
        assert!(bed.arrivals.is_empty());
        held.into_iter().for_each(|buffer| bed.free.give(buffer));
        assert_eq!(numbers(&bed.take().cells), (0..50).collect::<Vec<_>>(), "{kind:?}");
    }
}

#[test]
fn sent_cells_reach_peers_in_order_and_buffers_return() {
    for kind in PortKind::all() {
        let mut bed = Bed::new(kind);
        let runs = [(0, 1), (1, 200), (2, 2), (0, 64), (1, 65), (0, 1), (2, 1), (0, 1), (1, 900)];
        let addressed = runs.map(|(peer, count)| (bed.peer(peer), count));
        let mut out = bed.departures(&addressed);
        let mut want = vec![VecDeque::new(); 3];
        let mut at = 0;
        for (peer, count) in runs {
            want[peer].extend(at..at + count as u32);
            at += count as u32;
        }
        let mut tally = Tally::default();
        assert!(bed.port.send(&mut out, &mut bed.free, &mut tally), "{kind:?}");
        assert_eq!((tally.sent, tally.send_errors, out.len()), (u64::from(at), 0, 0), "{kind:?}");
        assert_eq!(bed.free.free() + bed.port.rx_buffers(), BUFFERS);
        for (peer, want) in want.iter().enumerate() {
            let got: Vec<u32> = bed.taken_by(peer).iter().map(|cell| number(cell)).collect();
            assert!(got.iter().eq(want), "{kind:?}, peer {peer}: {got:?}");
        }
        assert!(bed.port.send(&mut out, &mut bed.free, &mut tally), "nothing is all gone");
    }
}

#[test]
fn cells_for_a_peer_that_is_gone_are_sent_and_hold_nobody_up() {
    for (io, offloads) in PortKind::sockets() {
        let mut bed = Bed::new(PortKind::Socket(io, offloads));
        let gone = socket().local_addr().unwrap();
        let there = bed.peer(0);
        for _ in 0..3 {
            let mut out = bed.departures(&[(gone, 70), (there, 5), (gone, 1), (there, 1)]);
            let mut tally = Tally::default();
            assert!(bed.port.send(&mut out, &mut bed.free, &mut tally));
            assert_eq!((tally.sent, tally.send_errors), (77, 0), "{io}, {offloads:?}");
            assert_eq!(bed.taken_by(0).len(), 6);
        }
        assert_eq!(bed.port.traffic().gso, offloads.gso);
    }
}

#[test]
fn cells_refused_by_the_kernel_are_counted_and_others_leave() {
    for (io, offloads) in PortKind::sockets() {
        let mut bed = Bed::new(PortKind::Socket(io, offloads));
        // This socket may not broadcast.
        let forbidden = "255.255.255.255:9".parse().unwrap();
        let there = bed.peer(0);
        let mut out = bed.departures(&[(there, 3), (forbidden, 2), (there, 70), (forbidden, 1)]);
        let mut tally = Tally::default();
        assert!(bed.port.send(&mut out, &mut bed.free, &mut tally));
        assert_eq!((tally.sent, tally.send_errors), (73, 3), "{io}, {offloads:?}");
        let got: Vec<u32> = bed.taken_by(0).iter().map(|cell| number(cell)).collect();
        assert_eq!(got, (0..3).chain(5..75).collect::<Vec<_>>());
        assert_eq!(bed.port.traffic().gso, offloads.gso, "that was not the fault of GSO");
        assert_eq!(bed.free.free() + bed.port.rx_buffers(), BUFFERS);
    }
}

#[test]
fn refused_burst_leaves_as_cells_and_disables_gso() {
    for (io, offloads) in PortKind::sockets() {
        let mut bed = Bed::new(PortKind::Mem);
        let (own, there) = (socket(), socket());
        sys::refuse_gso(own.as_fd()).unwrap();
        let mut port = link_port(own, io, offloads);
        let mut out = bed.departures(&[(there.local_addr().unwrap(), 200)]);
        let mut tally = Tally::default();
        assert!(port.send(&mut out, &mut bed.free, &mut tally));
        assert_eq!((tally.sent, tally.send_errors), (200, 0), "{io}, {offloads:?}");
        bed.peers[0] = Peer::Socket(there);
        let got: Vec<u32> = bed.taken_by(0).iter().map(|cell| number(cell)).collect();
        assert_eq!(got, (0..200).collect::<Vec<_>>(), "{io}, {offloads:?}");
        assert!(!port.traffic().gso);
    }
}

#[test]
fn a_cell_stays_in_the_buffer_that_the_kernel_filled() {
    for (io, offloads) in PortKind::sockets() {
        let own = socket();
        let at = own.local_addr().unwrap();
        let mut port = link_port(own, io, offloads);
        let (mut free, mut arrivals) = (FreeList::new(BUFFERS), Arrivals::new());
        assert_eq!(port.recv(&mut free, &mut arrivals), 0);
        let kept = port.rx_buffers_at();
        let sender = socket();
        for count in if offloads.gro { [20, 3] } else { [1, 1] } {
            let message = Message { to: at, pieces: 1, segment: (count > 1).then_some(CELL as u16) };
            sys::send(&sender, std::iter::once(message), std::iter::once(&cells(0..count)[..])).unwrap();
        }
        port.set_ready();
        assert!(port.recv(&mut free, &mut arrivals) >= 2);
        let came: Vec<*const u8> = arrivals.cells.iter().map(|cell| cell.bytes(CELL).as_ptr()).collect();
        let filled = if offloads.gro { (0..20).chain(64..67).collect() } else { vec![0, 1] };
        assert_eq!(came, filled.into_iter().map(|i| kept[i]).collect::<Vec<_>>(), "{io}, {offloads:?}");
    }
}

#[test]
fn while_a_sender_is_at_work_nothing_overtakes() {
    const ALL: u32 = 30_000;
    for (io, offloads) in PortKind::sockets() {
        let mut bed = Bed::new(PortKind::Socket(io, offloads));
        let Peer::Socket(sender) = &bed.peers[0] else { unreachable!() };
        let (sender, to) = (sender.try_clone().unwrap(), bed.at);
        let work = std::thread::spawn(move || {
            let (mut at, mut step) = (0, 1);
            while at < ALL {
                let count = step.min(ALL - at);
                let message = Message { to, pieces: 1, segment: (count > 1).then_some(CELL as u16) };
                sys::send(&sender, std::iter::once(message), std::iter::once(&cells(at..at + count)[..])).unwrap();
                (at, step) = (at + count, step * 7 % 61 + 1);
            }
        });
        let mut seen = Vec::new();
        while !work.is_finished() {
            seen.extend(numbers(&bed.take().cells));
        }
        seen.extend(numbers(&bed.take().cells));
        work.join().unwrap();
        // The kernel may have dropped some for want of room; what came is in order.
        assert!(seen.is_sorted_by(|a, b| a < b), "{io}, {offloads:?}");
        assert!(seen.len() > 1000, "{io}, {offloads:?}: {}", seen.len());
    }
}

/// Runs a test of this binary in a network of its own, where d0 leads to 192.0.2.0/24 and nobody answers there. False
/// if this host has no such thing.
fn apart(test: &str) -> bool {
    const SETUP: &str = "ip link add d0 type veth peer name d1 && ip address add 192.0.2.1/24 dev d0 && \
                         ip link set d0 up && ip link set d1 up && ip link set lo up";
    let run = |command: &str| {
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["-rn", "sh", "-c", &format!("{SETUP} && {command}")]);
        unshare.env("EDDY_TEST_APART", "1").output().ok()
    };
    if run("true").is_none_or(|output| !output.status.success()) {
        crate::skipped("needs network namespaces, `unshare` and `ip`");
        return false;
    }
    let this = std::env::current_exe().unwrap();
    let output = run(&format!("exec {} --exact {test} --nocapture", this.display())).unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    true
}

#[test]
fn full_socket_leaves_the_rest_for_the_next_turn() {
    // In memory the network is told to.
    let mut bed = Bed::new(PortKind::Mem);
    let Peer::Mem(net, to) = &bed.peers[0] else { unreachable!() };
    let (net, to) = (net.clone(), *to);
    net.block(true);
    let (mut out, mut tally) = (bed.departures(&[(to, 100)]), Tally::default());
    assert!(!bed.port.send(&mut out, &mut bed.free, &mut tally));
    assert_eq!((tally.sent, tally.send_errors, out.len()), (0, 0, 100));
    net.block(false);
    assert!(bed.port.send(&mut out, &mut bed.free, &mut tally));
    assert_eq!((tally.sent, bed.taken_by(0).len()), (100, 100));
    // Sockets need a next hop that does not answer, so that what was sent waits for its address.
    if std::env::var_os("EDDY_TEST_APART").is_none() {
        apart("socket::suite::full_socket_leaves_the_rest_for_the_next_turn");
        return;
    }
    for (i, (io, offloads)) in PortKind::sockets().into_iter().enumerate() {
        let own = UdpSocket::bind("192.0.2.1:0").unwrap();
        own.set_nonblocking(true).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&own, 30_000).unwrap();
        let host = format!("192.0.2.{}", 10 + i);
        let to = format!("{host}:9").parse().unwrap();
        let mut port = link_port(own, io, offloads);
        let (mut out, mut tally) = (bed.departures(&[(to, 1000)]), Tally::default());
        assert!(!port.send(&mut out, &mut bed.free, &mut tally), "{io}, {offloads:?}");
        let went = tally.sent as usize;
        assert!(went > 0 && out.len() == 1000 - went, "{io}, {offloads:?}: {went}");
        let next = number(out.cells().next().unwrap());
        assert_eq!(next as usize, went, "the first that is left is the first that did not go");
        assert!(!port.send(&mut out, &mut bed.free, &mut tally), "and still not");
        assert_eq!((tally.sent as usize, tally.send_errors), (went, 0));
        let answer = format!("ip neighbour replace {host} lladdr 02:00:00:00:00:01 dev d0");
        assert!(std::process::Command::new("sh").args(["-c", &answer]).status().unwrap().success());
        while !port.send(&mut out, &mut bed.free, &mut tally) {
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!((tally.sent, tally.send_errors), (1000, 0), "{io}, {offloads:?}");
        assert_eq!(port.traffic().gso, offloads.gso, "a full buffer is not the fault of GSO");
        assert_eq!(bed.free.free(), BUFFERS);
    }
}
