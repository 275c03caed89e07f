//! What moving a cell through two link sockets costs, without cryptography, by recvmmsg and sendmmsg and by io_uring:
//! `cargo bench -p dataplane --bench relay`.
//!
//! One thread in three steps: it fills a link socket over loopback, relays what waits there to another link socket's
//! peer, and empties that one. Only the second step is on the clock, its own thread's CPU time. Both backends take
//! turns, so what disturbs the machine disturbs both. Prints nanoseconds per cell, medians of the rounds.

use std::net::{SocketAddr, UdpSocket};

use dataplane::batch::{Arrivals, Departures, Lengths};
use dataplane::frame::FreeList;
use dataplane::io::calls::{Calls, Io};
use dataplane::io::link::LinkPort;
use dataplane::io::offload::Trains;
use dataplane::io::{Port, Rx, Tx};
use dataplane::ledger::Tally;
use dataplane::sys::{self, Message};
use rustix::time::{ClockId, clock_gettime};

/// A cell of class L at the first link of a chain of three mixes and an exit.
const CELL: usize = 1408;
/// Cells of the longest train.
const TRAIN: usize = 46;
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
    fn new(io: Io, trains: Trains) -> Relay {
        let port = |socket: UdpSocket| {
            let (calls, why) = Calls::new(io, &socket);
            assert!(why.is_none(), "no io_uring here: {}", why.unwrap());
            LinkPort::new(socket, calls, Lengths { cell: CELL, handshakes: &[] }, trains)
        };
        let (input, sink) = (socket(), socket());
        if trains.join {
            sys::join_trains(&input).unwrap();
            sys::join_trains(&sink).unwrap();
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

    /// Relays so many cells: the turns of a worker that does nothing else.
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

    /// CPU time of relaying so many cells that came in trains of `train`.
    fn round(&mut self, sender: &UdpSocket, cells: usize, train: usize, buffer: &mut [u8]) -> u64 {
        let payload = [7; CELL];
        let mut left = cells;
        while left > 0 {
            let trains = (0..left.div_ceil(train)).map(|i| Message {
                to: self.at,
                pieces: train.min(left - i * train),
                segment: (train > 1).then_some(CELL as u16),
            });
            let sent = sys::send(sender, trains, std::iter::repeat(&payload[..])).unwrap();
            left -= left.min(sent * train);
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
        ("trains, 20 waiting", Trains::BOTH, 20 * TRAIN, TRAIN),
        ("trains, 5 waiting", Trains::BOTH, 5 * TRAIN, TRAIN),
        ("trains, 1 waiting", Trains::BOTH, TRAIN, TRAIN),
        ("trains of 8, 8 waiting", Trains::BOTH, 64, 8),
        ("lone, 512 waiting", Trains::NONE, 512, 1),
        ("lone, 64 waiting", Trains::NONE, 64, 1),
        ("lone, 8 waiting", Trains::NONE, 8, 1),
        ("lone, 1 waiting", Trains::NONE, 1, 1),
        ("lone in, trains out, 64", Trains::BOTH, 64, 1),
    ];
    for (name, trains, cells, train) in rows {
        let mut relays = [Relay::new(Io::Mmsg, trains), Relay::new(Io::Uring, trains)];
        let mut spent = [vec![], vec![]];
        for round in 0..ROUNDS {
            for (relay, spent) in relays.iter_mut().zip(&mut spent) {
                let ns = (0..4).map(|_| relay.round(&sender, cells, train, &mut buffer)).sum::<u64>() / 4;
                // The first rounds find nothing where it will be.
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
