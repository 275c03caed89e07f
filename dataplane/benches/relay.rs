//! Measures the cost of moving a cell through two link sockets, without cryptography, by recvmmsg and sendmmsg and by
//! io_uring: `cargo bench -p dataplane --bench relay`.
//!
//! One thread in three steps: it fills a link socket over loopback, relays what waits there to another link socket's
//! peer, and empties that one. Only the second step is on the clock, its own thread's CPU time. Both backends take
//! turns, so what disturbs the machine disturbs both. Prints nanoseconds per cell, medians of the rounds.

use std::net::{SocketAddr, UdpSocket};

use dataplane::batch::{Arrivals, Departures, Lengths};
use dataplane::buffer::FreeList;
use dataplane::ledger::Tally;
use dataplane::socket::Port;
use dataplane::socket::backend::{Calls, Io};
use dataplane::socket::link::LinkPort;
use dataplane::socket::offload::Offloads;
use dataplane::sys::{self, Message};
use rustix::time::{ClockId, clock_gettime};

/// A cell of class L at the first link of a chain of three mixes and an exit.
const CELL: usize = 1408;
/// Cells of the longest burst.
const BURST: usize = 46;
const ROUNDS: usize = 301;

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    sys::size_receive_buffer(&socket, 16 << 20).unwrap();
    socket
}

struct Relay {
    at: SocketAddr,
    input: LinkPort,
    output: LinkPort,
    free: FreeList,
    arrivals: Arrivals,
    out: Departures,
    sink: UdpSocket,
    sent: u64,
}

impl Relay {
    fn new(io: Io, offloads: Offloads) -> Relay {
        let port = |socket: UdpSocket| {
            let (calls, why) = Calls::new(io, &socket);
            assert!(why.is_none(), "no io_uring here: {}", why.unwrap());
            LinkPort::new(socket, calls, Lengths { cell: CELL, handshakes: &[] }, offloads)
        };
        let (input, sink) = (socket(), socket());
        if offloads.gro {
            sys::enable_gro(&input).unwrap();
            sys::enable_gro(&sink).unwrap();
        }
        Relay {
            at: input.local_addr().unwrap(),
            input: port(input),
            output: port(socket()),
            free: FreeList::new(8192),
            arrivals: Arrivals::new(),
            out: Departures::new(CELL, 4096),
            sink,
            sent: 0,
        }
    }

    /// Relays `cells` cells: the turns of a worker that does nothing else.
    fn relay(&mut self, cells: usize) {
        let to = self.sink.local_addr().unwrap();
        while self.sent < cells as u64 {
            // The poller sees it readable while anything waits.
            self.input.set_ready();
            self.input.recv(&mut self.free, &mut self.arrivals);
            self.arrivals.runs.clear();
            for cell in self.arrivals.cells.drain(..) {
                self.out.push_run(std::iter::once(cell), to);
            }
            let mut tally = Tally::default();
            assert!(self.output.send(&mut self.out, &mut self.free, &mut tally));
            self.sent += tally.sent;
        }
    }

    /// CPU time of relaying `cells` cells that came in bursts of `segments`.
    fn round(&mut self, sender: &UdpSocket, cells: usize, segments: usize, buffer: &mut [u8]) -> u64 {
        let payload = [7; CELL];
        let mut left = cells;
        while left > 0 {
            let bursts = (0..left.div_ceil(segments)).map(|i| Message {
                to: self.at,
                pieces: segments.min(left - i * segments),
                segment: (segments > 1).then_some(CELL as u16),
            });
            let sent = sys::send(sender, bursts, std::iter::repeat(&payload[..])).unwrap();
            left -= left.min(sent * segments);
        }
        self.sent = 0;
        let before = cpu_ns();
        self.relay(cells);
        let spent = cpu_ns() - before;
        assert_eq!(self.sent as usize, cells);
        let mut got = 0;
        while got < cells * CELL {
            got += self.sink.recv(buffer).unwrap();
        }
        spent
    }
}

fn main() {
    let sender = socket();
    let mut buffer = vec![0; 1 << 16];
    println!("{:>24} {:>6} {:>6} {:>6}", "", "mmsg", "uring", "ratio");
    let rows = [
        ("bursts, 20 waiting", Offloads::BOTH, 20 * BURST, BURST),
        ("bursts, 5 waiting", Offloads::BOTH, 5 * BURST, BURST),
        ("bursts, 1 waiting", Offloads::BOTH, BURST, BURST),
        ("bursts of 8, 8 waiting", Offloads::BOTH, 64, 8),
        ("lone, 512 waiting", Offloads::NONE, 512, 1),
        ("lone, 64 waiting", Offloads::NONE, 64, 1),
        ("lone, 8 waiting", Offloads::NONE, 8, 1),
        ("lone, 1 waiting", Offloads::NONE, 1, 1),
        ("lone in, bursts out, 64", Offloads::BOTH, 64, 1),
    ];
    for (name, offloads, cells, segments) in rows {
        let mut relays = [Relay::new(Io::Mmsg, offloads), Relay::new(Io::Uring, offloads)];
        let mut spent = [vec![], vec![]];
        for round in 0..ROUNDS {
            for (relay, spent) in relays.iter_mut().zip(&mut spent) {
                let ns = (0..4).map(|_| relay.round(&sender, cells, segments, &mut buffer)).sum::<u64>() / 4;
                // The first rounds find cold caches.
                if round > 10 {
                    spent.push(ns as f64 / cells as f64);
                }
            }
        }
        let [mmsg, uring] = spent.map(|mut spent| {
            spent.sort_by(f64::total_cmp);
            spent[spent.len() / 2]
        });
        println!("{name:>24} {mmsg:>6.0} {uring:>6.0} {:>6.2}", uring / mmsg);
    }
}
