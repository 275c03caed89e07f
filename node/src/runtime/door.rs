//! The door: sockets of control's own for halves of message 1, at the port of the link socket towards the previous hop
//! (ADR 0021).
//!
//! The kernel sorts the halves out ([`sys::steer`]), so a flood of them costs a worker nothing. What is too short for a
//! cell goes to another socket, which refuses it. Where the kernel does not sort, because another user bound the port,
//! everything comes through the workers.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dataplane::ledger::{DropReason, Tally};
use dataplane::sys::{self, GRO_BYTES_MAX, Received, Steering};
use socket2::{Domain, Socket, Type};

use crate::runtime::drop_counter::DropCounter;

/// Bytes of the receive buffer of each socket, if the system grants them: 180 halves or more.
pub const DOOR_BUFFER: usize = 1 << 18;
/// Most halves that control takes from one socket in a turn.
pub const DOOR_HALVES_PER_TURN: usize = 256;
/// Whole messages 1 after which control takes no more from one socket in a turn: their public-key work takes
/// milliseconds, in which the other socket fills.
pub const DOOR_WHOLE_PER_TURN: usize = 16;
/// While many halves come, control looks for them once in this time, so that it leaves a worker on its core alone.
pub const DOOR_PAUSE: Duration = Duration::from_millis(1);
/// Messages of one receive call. Each may be a burst.
const MESSAGES: usize = 16;

/// The numbers of the sockets at the port of lane 0, which is where handshakes go, in the order in which they are bound
/// after the link socket; and at other lanes, where there is one for all that the worker does not get.
const LANE_0: [u32; 3] = [1, 2, 3];
const OTHER_LANES: [u32; 3] = [1, 1, 1];

/// The sockets of control's own.
pub struct Door {
    half_len: usize,
    /// Of each socket for halves.
    batches: [Batch; 2],
    counts: Arc<DoorCounts>,
}

/// What the last receive call brought. Control takes it in several turns if it is more than one turn may take.
struct Batch {
    buffers: Vec<Vec<u8>>,
    messages: Vec<Received>,
    /// The message and the byte at which the next datagram begins.
    next: (usize, usize),
}

impl Batch {
    fn new() -> Batch {
        Batch { buffers: vec![vec![0; GRO_BYTES_MAX]; MESSAGES], messages: Vec::new(), next: (0, 0) }
    }

    fn is_empty(&self) -> bool {
        self.next.0 == self.messages.len()
    }

    /// Receives once all that came before has been taken. Returns true if the call came back full.
    fn fill(&mut self, socket: &UdpSocket) -> bool {
        let Batch { buffers, messages, next } = self;
        messages.clear();
        *next = (0, 0);
        let _ = sys::recv(socket, buffers.iter_mut().map(Vec::as_mut_slice), 1, |_, message| messages.push(message));
        messages.len() == MESSAGES
    }

    /// Takes the next datagram, or all of a burst whose datagrams are shorter than a half. Returns how many they are.
    fn take(&mut self, half_len: usize) -> Option<(SocketAddr, &mut [u8], usize)> {
        let (at, start) = self.next;
        let Received { len, segment, from } = *self.messages.get(at)?;
        let len = len.min(GRO_BYTES_MAX);
        let each = segment.unwrap_or(len).max(1);
        let end = if each < half_len { len } else { len.min(start + each) };
        self.next = if end < len { (at, end) } else { (at + 1, 0) };
        Some((from, &mut self.buffers[at][start..end], (end - start).div_ceil(each).max(1)))
    }
}

/// The sockets of a door, whose drops the kernel counts, and its own counts.
pub struct DoorCounts {
    /// For halves without a cookie, and for those that claim one.
    halves: [DropCounter; 2],
    /// One for each lane: they refuse what is shorter than a cell, and halves at lanes to which no handshake goes.
    refusing: Vec<DropCounter>,
    taken: AtomicU64,
    odd: AtomicU64,
}

impl DoorCounts {
    /// Adds them to the cells of the direction in which they came. What found a receive buffer full is counted like
    /// what finds the queue of a worker full. Of what is refused a burst that the kernel has joined counts once.
    pub fn add_to(&self, tally: &mut Tally) {
        let [taken, odd] = [&self.taken, &self.odd].map(|count| count.load(Ordering::Relaxed));
        let [full, refused] =
            [&self.halves[..], &self.refusing].map(|all| all.iter().map(DropCounter::read).sum::<u64>());
        tally.received += taken + odd + full + refused;
        tally.consumed += taken;
        tally.drop_many(DropReason::Length, odd + refused);
        tally.drop_many(DropReason::PuntFull, full);
    }
}

impl Door {
    /// Binds more sockets to the port of each of `links`, one for each lane, and has the kernel sort what arrives
    /// there: halves of `half_len` bytes, and what is shorter than `cell_len`. They join bursts if `gro` is set, as the
    /// links must: the kernel may ask any socket of a port.
    ///
    /// # Errors
    /// The port belongs to another user, or the kernel does not sort. Then it still delivers everything to the links.
    pub fn open(links: &[UdpSocket], half_len: usize, cell_len: usize, gro: bool) -> io::Result<Door> {
        let [first, others @ ..] = links else { return Err(io::ErrorKind::InvalidInput.into()) };
        let steer = |socket: &UdpSocket, [without_cookie, with_cookie, short]: [u32; 3]| {
            sys::steer(socket, &Steering { half_len, cell_len, without_cookie, with_cookie, short })
        };

        let halves = [at_port_of(first, gro)?, at_port_of(first, gro)?];
        for socket in &halves {
            sys::size_receive_buffer(socket, DOOR_BUFFER)?;
        }
        let mut refusing = vec![refusing_at_port_of(first, gro)?];
        steer(first, LANE_0)?;
        for link in others {
            refusing.push(refusing_at_port_of(link, gro)?);
            steer(link, OTHER_LANES)?;
        }

        let counts = DoorCounts {
            halves: halves.map(DropCounter::new),
            refusing: refusing.into_iter().map(DropCounter::new).collect(),
            taken: AtomicU64::new(0),
            odd: AtomicU64::new(0),
        };
        let batches = [Batch::new(), Batch::new()];
        Ok(Door { half_len, batches, counts: Arc::new(counts) })
    }

    pub fn counts(&self) -> Arc<DoorCounts> {
        self.counts.clone()
    }

    /// Its sockets, to be polled.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.counts.halves.iter().map(|one| one.socket.as_fd())
    }

    /// Hands over the halves that wait, with their sender. The flag is set for those without a cookie if they fill half
    /// of their receive buffer, or more. `each` returns true if a half cost public-key work; after
    /// [`DOOR_WHOLE_PER_TURN`] of these the rest waits. Returns true if there may be more.
    pub fn read(&mut self, mut each: impl FnMut(SocketAddr, &mut [u8], bool) -> bool) -> bool {
        let Door { half_len, batches, counts } = self;
        let mut is_busy = false;
        for (i, (batch, DropCounter { socket, .. })) in batches.iter_mut().zip(&counts.halves).enumerate() {
            let is_crowded = i == 0 && sys::is_half_full(socket).unwrap_or(false);
            let (mut seen, mut taken, mut odd, mut whole) = (0, 0, 0, 0);
            let mut may_have_more = true;
            while seen < DOOR_HALVES_PER_TURN && whole < DOOR_WHOLE_PER_TURN {
                match batch.take(*half_len) {
                    Some((from, half, 1)) if half.len() == *half_len => {
                        taken += 1;
                        whole += usize::from(each(from, half, is_crowded));
                    }
                    // A burst of many short datagrams counts once, because it has the length of a half.
                    Some((.., count)) => odd += count,
                    None if may_have_more => {
                        may_have_more = batch.fill(socket);
                        continue;
                    }
                    None => break,
                }
                seen += 1;
            }
            // The poller does not see what a batch still holds.
            is_busy |= may_have_more || !batch.is_empty();
            counts.taken.fetch_add(taken as u64, Ordering::Relaxed);
            counts.odd.fetch_add(odd as u64, Ordering::Relaxed);
        }
        is_busy
    }
}

/// Binds another socket to the port of `link`.
fn at_port_of(link: &UdpSocket, gro: bool) -> io::Result<UdpSocket> {
    let link = socket2::SockRef::from(link);
    link.set_reuse_port(true)?;
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
    socket.bind(&at)?;
    Ok(socket.into())
}

/// Binds another socket to the port of `link`. It refuses what it gets.
fn refusing_at_port_of(link: &UdpSocket, gro: bool) -> io::Result<UdpSocket> {
    let socket = at_port_of(link, gro)?;
    sys::refuse_all(&socket)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dataplane::sys::Message;
    use wire::handshake::half_head;

    const HALF: usize = wire::handshake::NK_HALF_LEN;
    /// Of class L, longer than two halves, and of class S, shorter than one.
    const CELL: usize = 1360;
    const SHORT_CELL: usize = 240;

    fn half(part: u8, mac2: u8) -> Vec<u8> {
        let mut bytes = vec![7; HALF];
        bytes[..4].copy_from_slice(&half_head(part));
        bytes[HALF - 16..].fill(0);
        bytes[HALF - 1] = mac2;
        bytes
    }

    /// Everything that the door has, by sender and last byte.
    fn read(door: &mut Door) -> Vec<(SocketAddr, u8)> {
        let mut all = Vec::new();
        while door.read(|from, half, _| {
            all.push((from, half[HALF - 1]));
            false
        }) {}
        all
    }

    fn link() -> UdpSocket {
        let link = UdpSocket::bind("127.0.0.1:0").unwrap();
        link.set_nonblocking(true).unwrap();
        link
    }

    fn open() -> (UdpSocket, Door) {
        let link = link();
        let door = Door::open(std::slice::from_ref(&link), HALF, CELL, false).unwrap();
        (link, door)
    }

    fn tally(door: &Door) -> Tally {
        let mut tally = Tally::default();
        door.counts().add_to(&mut tally);
        tally
    }

    #[test]
    fn halves_go_to_control_and_everything_else_to_the_worker() {
        let (link, mut door) = open();
        let (at, sender) = (link.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let from = sender.local_addr().unwrap();
        let cells = [vec![1; CELL], vec![1; CELL + 1], half(0, 0).repeat(3)[1..].to_vec()];
        let halves = [half(0, 0), half(1, 5), vec![9; HALF]];
        for bytes in cells.iter().chain(&halves) {
            sender.send_to(bytes, at).unwrap();
        }
        assert_eq!(read(&mut door), [(from, 0), (from, 5), (from, 9)]);
        let mut buffer = [0; 2048];
        for cell in &cells {
            assert_eq!(link.recv_from(&mut buffer).unwrap(), (cell.len(), from));
        }
        assert!(link.recv_from(&mut buffer).is_err());
        // One datagram as long as two halves is not one.
        sender.send_to(&half(0, 0).repeat(2), at).unwrap();
        assert_eq!(read(&mut door), []);
        let tally = tally(&door);
        assert_eq!((tally.received, tally.consumed, tally.drops(DropReason::Length)), (4, 3, 1));
    }

    #[test]
    fn what_is_too_short_for_a_cell_reaches_nobody_and_counts() {
        let (link, mut door) = open();
        let (at, sender) = (link.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let start = half_head(0).to_vec();
        for short in [Vec::new(), start, vec![9; HALF - 1], vec![0; HALF + 1], vec![1; CELL - 1]] {
            sender.send_to(&short, at).unwrap();
        }
        for _ in 0..20_000 {
            sender.send_to(&[], at).unwrap();
        }
        assert_eq!(read(&mut door), []);
        assert!(link.recv_from(&mut [0; 2048]).is_err());
        assert_eq!(sys::kernel_drops(&link).unwrap(), 0);
        for _ in 0..2 {
            let tally = tally(&door);
            assert_eq!((tally.received, tally.consumed, tally.drops(DropReason::Length)), (20_005, 0, 20_005));
        }
    }

    #[test]
    fn bursts_of_halves_are_taken_apart_and_of_cells_left_alone() {
        let (link, mut door, send) = joining(SHORT_CELL);
        send(&[half(0, 1), half(1, 2), half(0, 3)]);
        send(&[half(1, 4), half(0, 5)]);
        // As long as five halves, a burst that ends in something else, and one that is too short for a cell.
        send(&vec![vec![8; SHORT_CELL]; 14]);
        send(&[half(0, 1), vec![8; SHORT_CELL]]);
        send(&[vec![8; 40], vec![8; 40]]);
        let halves: Vec<_> = read(&mut door).into_iter().map(|(_, last)| last).collect();
        assert_eq!(halves, [1, 2, 3, 4, 5]);
        let mut buffer = [0; 8192];
        for len in [14 * SHORT_CELL, HALF + SHORT_CELL] {
            assert_eq!(link.recv(&mut buffer).unwrap(), len);
        }
        assert!(link.recv_from(&mut buffer).is_err());
        assert_eq!(tally(&door).drops(DropReason::Length), 1, "a burst counts once");
    }

    #[test]
    fn halves_at_another_lane_than_the_first_are_refused() {
        let links = [link(), link()];
        let mut door = Door::open(&links, HALF, CELL, false).unwrap();
        assert_eq!(door.sockets().count(), 2);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let from = sender.local_addr().unwrap();
        for (lane, link) in links.iter().enumerate() {
            for bytes in [half(0, 0), half(0, 5), vec![7; 9], vec![9; CELL]] {
                sender.send_to(&bytes, link.local_addr().unwrap()).unwrap();
            }
            assert_eq!(link.recv_from(&mut [0; 2048]).unwrap(), (CELL, from), "lane {lane}");
            assert!(link.recv_from(&mut [0; 2048]).is_err());
        }
        assert_eq!(read(&mut door), [(from, 0), (from, 5)]);
        let tally = tally(&door);
        assert_eq!((tally.received, tally.consumed, tally.drops(DropReason::Length)), (6, 2, 4));
    }

    #[test]
    fn flood_without_cookies_leaves_room_to_those_who_claim_one() {
        let (link, mut door) = open();
        let (at, sender) = (link.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        for _ in 0..20_000 {
            sender.send_to(&half(0, 0), at).unwrap();
        }
        sender.send_to(&half(0, 5), at).unwrap();
        let (mut crowded, mut claims) = (0, 0);
        while door.read(|_, half, is_crowded| {
            crowded += usize::from(is_crowded);
            claims += usize::from(half[HALF - 1] == 5);
            false
        }) {}
        assert!(crowded > 0);
        assert_eq!(claims, 1);
        let tally = tally(&door);
        assert_eq!(tally.received, 20_001);
        assert_eq!(tally.received, tally.consumed + tally.drops(DropReason::PuntFull));
        assert!(tally.drops(DropReason::PuntFull) > 0);
        assert_eq!(sys::kernel_drops(&link).unwrap(), 0);
    }

    #[test]
    fn turn_ends_after_sixteen_whole_messages() {
        let (link, mut door) = open();
        let (at, sender) = (link.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        for _ in 0..60 {
            sender.send_to(&half(0, 0), at).unwrap();
            sender.send_to(&half(0, 5), at).unwrap();
        }
        let mut taken = [0, 0];
        let mut turn = || {
            let before = taken;
            let is_busy = door.read(|_, half, _| {
                taken[usize::from(half[HALF - 1] == 5)] += 1;
                true
            });
            ([0, 1].map(|kind| taken[kind] - before[kind]), is_busy)
        };
        assert_eq!(turn(), ([DOOR_WHOLE_PER_TURN; 2], true));
        while turn().1 {}
        assert_eq!(taken, [60, 60]);
    }

    /// A link socket and its door that join bursts, and what sends them.
    fn joining(cell_len: usize) -> (UdpSocket, Door, impl Fn(&[Vec<u8>])) {
        let link = link();
        sys::enable_gro(&link).unwrap();
        let door = Door::open(std::slice::from_ref(&link), HALF, cell_len, true).unwrap();
        let (to, sender) = (link.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let send = move |pieces: &[Vec<u8>]| {
            let message = Message { to, pieces: pieces.len(), segment: Some(pieces[0].len() as u16) };
            sys::send(&sender, std::iter::once(message), pieces.iter().map(Vec::as_slice)).unwrap();
        };
        (link, door, send)
    }

    #[test]
    fn turn_ends_after_sixteen_whole_messages_of_a_burst() {
        let (_link, mut door, send) = joining(CELL);
        let halves: Vec<_> = (1..=60).map(|number| half(0, number)).collect();
        halves.chunks(20).for_each(&send);
        let mut turn = || {
            let mut taken = Vec::new();
            let is_busy = door.read(|_, half, _| {
                taken.push(half[HALF - 1]);
                true
            });
            (taken, is_busy)
        };
        for (numbers, is_busy) in [(1..=16, true), (17..=32, true), (33..=48, true), (49..=60, false)] {
            assert_eq!(turn(), (numbers.collect(), is_busy));
        }
        assert_eq!(tally(&door).consumed, 60);
    }

    /// The kernel joins them to bursts that are as long as a half and begin like one.
    #[test]
    fn bursts_of_short_datagrams_use_up_no_turn() {
        const SHORT: usize = 12;
        let (_link, mut door, send) = joining(CELL);
        let short: Vec<_> = half(0, 0).chunks(SHORT).map(<[u8]>::to_vec).collect();
        (0..20).for_each(|_| send(&short));
        send(&[half(0, 0)]);
        let mut taken = 0;
        door.read(|_, _, _| {
            taken += 1;
            false
        });
        let tally = tally(&door);
        assert_eq!((taken, tally.consumed, tally.drops(DropReason::Length)), (1, 1, 20 * (HALF / SHORT) as u64));
    }

    /// The kernel joins a datagram that is shorter than a cell to the cells before it if it has their sender's address,
    /// whoever has sent it.
    #[test]
    fn short_datagram_joined_to_cells_takes_none_of_them_along() {
        let (link, mut door, send) = joining(CELL);
        let mut buffer = [0; 8192];
        for tail in [1, HALF, CELL - 1] {
            send(&[vec![1; CELL], vec![2; CELL], vec![3; CELL], vec![4; tail]]);
            assert_eq!(link.recv(&mut buffer).unwrap(), 3 * CELL + tail);
        }
        assert_eq!(read(&mut door), []);
        assert_eq!(tally(&door).received, 0);
    }

    #[test]
    fn without_its_door_a_link_hears_everything() {
        let (link, door) = open();
        drop(door);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(&half(0, 0), link.local_addr().unwrap()).unwrap();
        assert_eq!(link.recv(&mut [0; 1024]).unwrap(), HALF);
    }

    #[test]
    fn port_with_a_door_stays_taken() {
        let (link, _door) = open();
        assert_eq!(UdpSocket::bind(link.local_addr().unwrap()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
