//! The door: sockets of control's own for halves of message 1, at the ports of the link sockets towards the previous
//! hop (ADR 0021).
//!
//! The kernel sorts the halves out ([`sys::steer_halves`]), so a flood of them costs a worker nothing. Where it does
//! not, because another user bound the socket, halves reach control through the workers.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dataplane::ledger::{DropReason, Tally};
use dataplane::sys::{self, GRO_BYTES_MAX};
use socket2::{Domain, Socket, Type};

/// Bytes of the receive buffer of each socket, if the system grants them: 300 halves or more.
pub const DOOR_BUFFER: usize = 1 << 18;
/// Most halves that control takes from one socket in a turn, and somewhat more if they come in bursts.
pub const DOOR_HALVES_PER_TURN: usize = 256;
/// While many halves come, control looks for them once in this time, so that it leaves a worker on its core alone.
pub const DOOR_PAUSE: Duration = Duration::from_millis(1);
/// Messages of one receive call. Each may be a burst.
const MESSAGES: usize = 16;

/// The sockets of control's own.
pub struct Door {
    half_len: usize,
    buffers: Vec<Vec<u8>>,
    counts: Arc<DoorCounts>,
}

/// The sockets of a door, whose drops the kernel counts, and its own counts.
pub struct DoorCounts {
    /// For halves without a cookie, and for those that claim one: two for each lane.
    sockets: Vec<UdpSocket>,
    taken: AtomicU64,
    odd: AtomicU64,
}

impl DoorCounts {
    /// Adds them to the cells of the direction in which they came. What found a receive buffer full is counted like
    /// what finds the queue of a worker full.
    pub fn add_to(&self, tally: &mut Tally) {
        let [taken, odd] = [&self.taken, &self.odd].map(|count| count.load(Ordering::Relaxed));
        let full: u64 = self.sockets.iter().filter_map(|socket| sys::kernel_drops(socket).ok()).sum();
        tally.received += taken + odd + full;
        tally.consumed += taken;
        tally.drop_many(DropReason::Length, odd);
        tally.drop_many(DropReason::PuntFull, full);
    }
}

impl Door {
    /// Binds two more sockets to the port of each of `links`, and has the kernel steer halves of `half_len` bytes to
    /// them. They join bursts if `gro` is set, as the links must: the kernel may ask any socket of a port.
    ///
    /// # Errors
    /// The port belongs to another user, or the kernel does not steer. Then it still delivers everything to the links.
    pub fn open(links: &[UdpSocket], half_len: usize, gro: bool) -> io::Result<Door> {
        let mut sockets = Vec::new();
        for link in links {
            let link = socket2::SockRef::from(link);
            link.set_reuse_port(true)?;
            for _ in 0..2 {
                sockets.push(at_port_of(&link, gro)?);
            }
            sys::steer_halves(&sockets[sockets.len() - 1], half_len)?;
        }
        let counts = DoorCounts { sockets, taken: AtomicU64::new(0), odd: AtomicU64::new(0) };
        Ok(Door { half_len, buffers: vec![vec![0; GRO_BYTES_MAX]; MESSAGES], counts: Arc::new(counts) })
    }

    pub fn counts(&self) -> Arc<DoorCounts> {
        self.counts.clone()
    }

    /// Its sockets, to be polled.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.counts.sockets.iter().map(AsFd::as_fd)
    }

    /// Hands over the halves that wait, with their sender. The flag is set for those without a cookie if they fill half
    /// of their receive buffer, or more. Returns true if a receive call came back full.
    pub fn read(&mut self, mut each: impl FnMut(SocketAddr, &mut [u8], bool)) -> bool {
        let Door { half_len, buffers, counts } = self;
        let mut is_busy = false;
        for (i, socket) in counts.sockets.iter().enumerate() {
            let is_crowded = i % 2 == 0 && sys::is_half_full(socket).unwrap_or(false);
            let (mut taken, mut odd) = (0, 0);
            while taken + odd < DOOR_HALVES_PER_TURN {
                let mut received = [None; MESSAGES];
                let slices = buffers.iter_mut().map(Vec::as_mut_slice);
                let got = sys::recv(socket, slices, 1, |at, message| received[at] = Some(message)).unwrap_or(0);
                for (buffer, message) in buffers.iter_mut().zip(received.into_iter().flatten()) {
                    let bytes = message.len.min(buffer.len());
                    for datagram in buffer[..bytes].chunks_mut(message.segment.unwrap_or(bytes).max(1)) {
                        if datagram.len() == *half_len {
                            taken += 1;
                            each(message.from, datagram, is_crowded);
                        } else {
                            odd += 1;
                        }
                    }
                }
                if got < MESSAGES {
                    break;
                }
                is_busy = true;
            }
            counts.taken.fetch_add(taken as u64, Ordering::Relaxed);
            counts.odd.fetch_add(odd as u64, Ordering::Relaxed);
        }
        is_busy
    }
}

/// A socket at the port of `link`.
fn at_port_of(link: &Socket, gro: bool) -> io::Result<UdpSocket> {
    let at = link.local_addr()?;
    let address = at.as_socket().ok_or(io::ErrorKind::Unsupported)?;
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(link.only_v6()?)?;
    }
    if let Some(device) = link.device()? {
        socket.bind_device(Some(&device))?;
    }
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    if gro {
        sys::enable_gro(&socket)?;
    }
    sys::size_receive_buffer(&socket, DOOR_BUFFER)?;
    socket.bind(&at)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::sys::Message;

    const HALF: usize = wire::handshake::NK_HALF_LEN;

    fn half(part: u8, mac2: u8) -> Vec<u8> {
        let mut bytes = vec![7; HALF];
        bytes[..4].copy_from_slice(&[0, 1, 0, part]);
        bytes[HALF - 16..].fill(0);
        bytes[HALF - 1] = mac2;
        bytes
    }

    /// Everything that the door has, by sender and last byte.
    fn read(door: &mut Door) -> Vec<(SocketAddr, u8)> {
        let mut all = Vec::new();
        while door.read(|from, half, _| all.push((from, half[HALF - 1]))) {}
        all
    }

    fn open(gro: bool) -> (UdpSocket, Door) {
        let link = UdpSocket::bind("127.0.0.1:0").unwrap();
        link.set_nonblocking(true).unwrap();
        if gro {
            sys::enable_gro(&link).unwrap();
        }
        let door = Door::open(std::slice::from_ref(&link), HALF, gro).unwrap();
        (link, door)
    }

    #[test]
    fn halves_go_to_control_and_everything_else_to_the_worker() {
        let (link, mut door) = open(false);
        let (at, sender) = (link.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let from = sender.local_addr().unwrap();
        let cells =
            [vec![0, 1, 0, 0], vec![9; HALF - 1], vec![0; HALF + 1], vec![1; 1360], Vec::new(), half(0, 0).repeat(2)];
        for other in &cells[..5] {
            sender.send_to(other, at).unwrap();
        }
        for half in [half(0, 0), half(1, 5), vec![9; HALF]] {
            sender.send_to(&half, at).unwrap();
        }
        assert_eq!(read(&mut door), [(from, 0), (from, 5), (from, 9)]);
        let mut buffer = [0; 2048];
        for other in &cells[..5] {
            assert_eq!(link.recv_from(&mut buffer).unwrap(), (other.len(), from));
        }
        assert!(link.recv_from(&mut buffer).is_err());
        // One datagram as long as two halves is not one.
        sender.send_to(&cells[5], at).unwrap();
        assert_eq!(read(&mut door), []);

        let mut tally = Tally::default();
        door.counts().add_to(&mut tally);
        assert_eq!((tally.received, tally.consumed, tally.drops(DropReason::Length)), (4, 3, 1));
    }

    #[test]
    fn bursts_of_halves_are_taken_apart_and_of_cells_left_alone() {
        let (link, mut door) = open(true);
        let (to, sender) = (link.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let from = sender.local_addr().unwrap();
        let send = |pieces: &[Vec<u8>]| {
            let message = Message { to, pieces: pieces.len(), segment: Some(pieces[0].len() as u16) };
            sys::send(&sender, std::iter::once(message), pieces.iter().map(Vec::as_slice)).unwrap();
        };
        send(&[half(0, 1), half(1, 2), half(0, 3)]);
        // As long as five halves, and a burst that ends in something else.
        send(&vec![vec![8; 240]; 14]);
        send(&[half(0, 1), vec![8; 240]]);
        assert_eq!(read(&mut door), [(from, 1), (from, 2), (from, 3)]);
        let mut buffer = [0; 8192];
        for len in [14 * 240, HALF + 240] {
            assert_eq!(link.recv_from(&mut buffer).unwrap(), (len, from));
        }
    }

    #[test]
    fn flood_without_cookies_leaves_room_to_those_who_claim_one() {
        let (link, mut door) = open(false);
        let (at, sender) = (link.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        for _ in 0..20_000 {
            sender.send_to(&half(0, 0), at).unwrap();
        }
        sender.send_to(&half(0, 5), at).unwrap();
        let (mut crowded, mut claims) = (0, 0);
        while door.read(|_, half, is_crowded| {
            crowded += usize::from(is_crowded);
            claims += usize::from(half[HALF - 1] == 5);
        }) {}
        assert!(crowded >= DOOR_HALVES_PER_TURN.min(64), "{crowded}");
        assert_eq!(claims, 1);
        let mut tally = Tally::default();
        door.counts().add_to(&mut tally);
        assert_eq!(tally.received, 20_001);
        assert_eq!(tally.received, tally.consumed + tally.drops(DropReason::PuntFull));
        assert!(tally.drops(DropReason::PuntFull) > 0);
        assert_eq!(sys::kernel_drops(&link).unwrap(), 0);
    }

    #[test]
    fn without_its_door_a_link_hears_everything() {
        let (link, door) = open(false);
        drop(door);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&half(0, 0), link.local_addr().unwrap()).unwrap();
        assert_eq!(link.recv(&mut [0; 1024]).unwrap(), HALF);
    }

    #[test]
    fn port_with_a_door_stays_taken() {
        let (link, _door) = open(false);
        assert_eq!(UdpSocket::bind(link.local_addr().unwrap()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
