//! Has the kernel sort what arrives at a port: halves of message 1 to sockets of their own (SPEC 4.2, 4.9).
//!
//! ```text
//! setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, { len, program })
//!   The sockets of a port that have SO_REUSEPORT are numbered in the order in which they were bound. For each datagram
//!   or burst the program returns a number. It sees the payload; a load beyond its end returns 0. A number that has no
//!   socket counts as none: then the kernel chooses among those that are left.
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use wire::handshake::MAC2_LEN;

/// The numbers of the sockets: cells and everything that is not a half, halves without a cookie, and halves that claim
/// one.
const OTHERS: u32 = 0;
const WITHOUT_COOKIE: u32 = 1;
const WITH_COOKIE: u32 = 2;

/// The first four bytes of a half: kind 1, and a part in the last bit.
const HALF: u32 = 0x0001_0000;
const PART: u32 = 1;

const PROGRAM_LEN: usize = 18;

/// Classic BPF. A datagram is a half by its length. A burst is one of halves if it is as long as several and begins
/// like one: a burst of cells that is as long begins so once in 2^31, and is then lost.
fn program(half_len: usize) -> [libc::sock_filter; PROGRAM_LEN] {
    let len = half_len as u32;
    let op = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let load = |at: usize| op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at as u32);
    let equals = |at: usize, k: u32, yes: usize, no: usize| {
        let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        libc::sock_filter { code, jt: (yes - at - 1) as u8, jf: (no - at - 1) as u8, k }
    };
    let returns = |socket: u32| op(libc::BPF_RET | libc::BPF_K, socket);
    let mac2 = half_len - MAC2_LEN;
    [
        op(libc::BPF_LD | libc::BPF_W | libc::BPF_LEN, 0),
        equals(1, len, 7, 2),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, len),
        equals(3, 0, 4, 17),
        load(0),
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, !PART),
        equals(6, HALF, 7, 17),
        load(mac2),
        equals(8, 0, 9, 16),
        load(mac2 + 4),
        equals(10, 0, 11, 16),
        load(mac2 + 8),
        equals(12, 0, 13, 16),
        load(mac2 + 12),
        equals(14, 0, 15, 16),
        returns(WITHOUT_COOKIE),
        returns(WITH_COOKIE),
        returns(OTHERS),
    ]
}

/// Steers halves of `half_len` bytes away from the first socket that was bound to the port of `socket`: those whose
/// mac2 is zeros to the second one, others to the third. All three must have SO_REUSEPORT.
///
/// # Errors
/// A kernel before 4.5, or a socket without SO_REUSEPORT.
pub fn steer_halves(socket: impl AsFd, half_len: usize) -> io::Result<()> {
    const SO_ATTACH_REUSEPORT_CBPF: libc::c_int = 51;
    let mut program = program(half_len);
    let filter = libc::sock_fprog { len: PROGRAM_LEN as libc::c_ushort, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which outlives the call; both sizes are given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
