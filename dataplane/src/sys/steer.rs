//! Has the kernel sort what arrives at a port: halves of message 1 to sockets of their own, and what is too short for
//! a cell to one that refuses it (SPEC 4.2, 4.9).
//!
//! ```text
//! setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, { len, program })
//!   The sockets of a port that have SO_REUSEPORT are numbered in the order in which they were bound. For each datagram
//!   or burst the program returns a number. It sees the payload; a load beyond its end returns 0. A number that has no
//!   socket counts as none: then the kernel chooses among those that are left.
//! setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, { len, program })
//!   The program returns how many bytes of a datagram the socket gets. With 0 the kernel drops and counts it.
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::sock_filter;
use wire::handshake::{MAC2_LEN, half_head};

/// The number of the socket for cells and everything else.
const CELLS: u32 = 0;

/// The first four bytes of a half as a load returns them, and the bit in which the two halves differ.
const HALF: u32 = u32::from_be_bytes(half_head(0));
const PART: u32 = HALF ^ u32::from_be_bytes(half_head(1));

/// How the datagrams of a port are sorted. The numbers are those of its sockets, in the order in which they were bound;
/// number 0 gets cells and everything else.
#[derive(Clone, Copy, Debug)]
pub struct Steering {
    /// Bytes of a half of message 1. A burst is one of halves if it is as long as several and begins like one: a burst
    /// of cells that is as long begins so once in 2^31, and is then lost.
    pub half_len: usize,
    /// Bytes of a cell: no burst of cells is shorter. Longer ones are not judged by their length. The kernel joins a
    /// shorter datagram to the cells before it if it has their addresses, so a forged one of a byte would take
    /// dozens of cells along. The worker drops that byte alone.
    pub cell_len: usize,
    /// Gets halves whose mac2 is zeros.
    pub without_cookie: u32,
    /// Gets other halves.
    pub with_cookie: u32,
    /// Gets what is shorter than a cell and not a half.
    pub short: u32,
}

const PROGRAM_LEN: usize = 22;

/// Classic BPF: finds halves by their length, then bursts of halves, then what is too short.
fn program(steering: &Steering) -> [sock_filter; PROGRAM_LEN] {
    let half_len = steering.half_len as u32;
    let load = |at: usize| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at as u32);
    let jump = |test: u32, at: usize, k: u32, yes: usize, no: usize| {
        let code = (libc::BPF_JMP | test | libc::BPF_K) as u16;
        sock_filter { code, jt: (yes - at - 1) as u8, jf: (no - at - 1) as u8, k }
    };
    let equals = |at: usize, k: u32, yes: usize, no: usize| jump(libc::BPF_JEQ, at, k, yes, no);
    let returns = |socket: u32| op(libc::BPF_RET | libc::BPF_K, socket);
    let length = op(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0);
    let mac2 = steering.half_len - MAC2_LEN;
    [
        length,
        equals(1, half_len, 8, 2),
        jump(libc::BPF_JGT, 2, half_len, 3, 18),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, half_len),
        equals(4, 0, 5, 18),
        load(0),
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, !PART),
        equals(7, HALF, 8, 18),
        load(mac2),
        equals(9, 0, 10, 17),
        load(mac2 + 4),
        equals(11, 0, 12, 17),
        load(mac2 + 8),
        equals(13, 0, 14, 17),
        load(mac2 + 12),
        equals(15, 0, 16, 17),
        returns(steering.without_cookie),
        returns(steering.with_cookie),
        length,
        jump(libc::BPF_JGE, 19, steering.cell_len as u32, 20, 21),
        returns(CELLS),
        returns(steering.short),
    ]
}

fn op(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Sorts what arrives at the port of `socket`. All sockets of the port must have SO_REUSEPORT.
///
/// # Errors
/// A kernel before 4.5, or a socket without SO_REUSEPORT.
pub fn steer(socket: impl AsFd, steering: &Steering) -> io::Result<()> {
    attach(socket.as_fd(), libc::SO_ATTACH_REUSEPORT_CBPF, &mut program(steering))
}

/// Has the kernel drop everything that arrives at a socket. [`super::kernel_drops`] counts it.
///
/// # Errors
/// Not a socket.
pub fn refuse_all(socket: impl AsFd) -> io::Result<()> {
    attach(socket.as_fd(), libc::SO_ATTACH_FILTER, &mut [op(libc::BPF_RET | libc::BPF_K, 0)])
}

fn attach(fd: BorrowedFd<'_>, option: libc::c_int, program: &mut [sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which outlives the call; both sizes are given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
