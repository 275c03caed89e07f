//! Hostile datagrams for link ports, and kernel counters of sockets.

use std::net::SocketAddr;

use rand::Rng;
use rand_chacha::ChaCha20Rng;
use wire::cell::Direction::{self, Backward, Forward};
use wire::cell::HEADER_LEN;
use wire::handshake::{COOKIE_LEN, IK_HALF_LEN, NK_HALF_LEN, RESPONSE_LEN};

use super::nodes::Nodes;
use super::tap::Tap;

/// One of a node's link sockets.
#[derive(Clone, Copy)]
pub struct Port {
    pub position: usize,
    /// Direction of the cells that arrive here.
    pub direction: Direction,
    pub address: SocketAddr,
    /// Bytes of a cell on its link in that direction.
    pub cell_len: usize,
}

impl Port {
    /// A hop's socket towards the previous hop.
    pub fn up(nodes: &Nodes, position: usize) -> Port {
        let cell_len = nodes.shape().cell_len(Forward, position);
        Port { position, direction: Forward, address: nodes.up(position), cell_len }
    }

    /// A node's socket towards the next hop.
    pub fn down(nodes: &Nodes, position: usize) -> Port {
        let cell_len = nodes.shape().cell_len(Backward, position + 1);
        Port { position, direction: Backward, address: nodes.down(position), cell_len }
    }

    /// Every link port of a chain.
    pub fn all(nodes: &Nodes) -> Vec<Port> {
        let ups = (1..=nodes.exit()).map(|position| Port::up(nodes, position));
        ups.chain((0..nodes.exit()).map(|position| Port::down(nodes, position))).collect()
    }

    /// Number of its link.
    pub fn link(&self) -> usize {
        if self.direction == Forward { self.position } else { self.position + 1 }
    }

    /// Lengths accepted as handshakes here.
    pub fn handshake_lens(&self) -> &'static [usize] {
        match (self.direction, self.link()) {
            (Forward, 1) => &[NK_HALF_LEN],
            (Forward, _) => &[IK_HALF_LEN],
            (Backward, _) => &[RESPONSE_LEN, COOKIE_LEN],
        }
    }
}

/// Bytes that wait at a UDP port, and datagrams that the kernel has dropped there. A node has several sockets at one
/// port.
pub fn queue(address: SocketAddr) -> (u64, u64) {
    let SocketAddr::V4(v4) = address else { panic!("IPv4") };
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port());
    let read = || {
        let text = std::fs::read_to_string("/proc/net/udp").unwrap();
        let rows = text.lines().filter(|line| line.split_whitespace().nth(1) == Some(&local));
        let sockets = rows.map(|row| {
            let mut columns = row.split_whitespace();
            let waiting = columns.nth(4).and_then(|queues| queues.split_once(':')).expect("tx:rx").1;
            (u64::from_str_radix(waiting, 16).unwrap(), columns.last().unwrap().parse::<u64>().unwrap())
        });
        sockets.reduce(|sum, more| (sum.0 + more.0, sum.1 + more.1))
    };
    // The kernel shows the table in parts, and leaves rows out if sockets of others come and go between two of them.
    (0..100).find_map(|_| read()).expect("it is bound")
}

/// Recorded datagrams of a port and of other links, from which hostile datagrams are made.
pub struct Material {
    /// Cells that came to the port.
    pub cells: Vec<Vec<u8>>,
    /// Handshake datagrams that came to it.
    pub handshakes: Vec<Vec<u8>>,
    /// Everything of other links and of the other direction.
    pub elsewhere: Vec<Vec<u8>>,
    pub port: Port,
}

impl Material {
    /// Everything that the taps have recorded.
    pub fn of(port: Port, taps: &[Tap]) -> Material {
        let (mut cells, mut handshakes, mut elsewhere) = (Vec::new(), Vec::new(), Vec::new());
        for (link, tap) in (1..).zip(taps) {
            for direction in [Forward, Backward] {
                let here = (link, direction) == (port.link(), port.direction);
                for bytes in tap.records(direction).into_iter().map(|record| record.bytes) {
                    match bytes.len() {
                        _ if !here => elsewhere.push(bytes),
                        len if len == port.cell_len => cells.push(bytes),
                        len if port.handshake_lens().contains(&len) => handshakes.push(bytes),
                        _ => {}
                    }
                }
            }
        }
        Material { cells, handshakes, elsewhere, port }
    }

    /// A hostile datagram of a kind chosen at random.
    pub fn draw(&self, rng: &mut ChaCha20Rng) -> Vec<u8> {
        let kind = below(rng, 8);
        let mut one_of = |all: &[Vec<u8>]| if all.is_empty() { Vec::new() } else { all[below(rng, all.len())].clone() };
        let len = match kind {
            // Played again.
            0 => return one_of(&self.cells),
            1 => return one_of(&self.handshakes),
            // Played on another link, or in the other direction.
            2 => return one_of(&self.elsewhere),
            // Two bodies under one header.
            3 => {
                let (mut one, two) = (one_of(&self.cells), one_of(&self.cells));
                if one.len() == two.len() && one.len() > HEADER_LEN {
                    one[HEADER_LEN..].copy_from_slice(&two[HEADER_LEN..]);
                }
                return one;
            }
            // One bit flipped.
            4 | 5 => {
                let mut one = one_of(if kind == 4 { &self.cells } else { &self.handshakes });
                if !one.is_empty() {
                    let bit = below(rng, one.len() * 8);
                    one[bit / 8] ^= 1 << (bit % 8);
                }
                return one;
            }
            // Noise of the right length.
            6 => self.port.cell_len,
            _ => self.port.handshake_lens()[0],
        };
        let mut bytes = vec![0; len];
        rng.fill_bytes(&mut bytes);
        bytes
    }
}

/// A number below `n`.
pub fn below(rng: &mut ChaCha20Rng, n: usize) -> usize {
    rng.next_u32() as usize % n
}
